//! Export, import and repair are killed in the middle, as real processes; the same again ends well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::token::Token;

use crate::gc::noise;
use crate::harness::{Actor, connect_to};
use crate::programs::{Served, json, text};
use crate::replica_kill::{check, socket, start, status, synced};

/// A process that a test kills: the server that does the work, or the command that does it alone.
struct Work {
    command: Child,
    is_alone: bool,
}

impl Work {
    /// Starts a command on a server's folder; every second time nobody serves it.
    fn begin(served: &mut Served, arguments: &[&str], is_alone: bool) -> Self {
        if is_alone {
            assert!(served.signal(Signal::TERM).success());
        }
        let mut command = served.prepared(arguments);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { command, is_alone }
    }

    /// Kills as soon as `is_far` holds, and serves again; whether that was in the middle.
    fn kill(mut self, served: &mut Served, is_far: impl Fn() -> bool) -> bool {
        while !is_far() && self.command.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.is_alone {
            // It may have ended by itself meanwhile.
            let _ = kill_process(Pid::from_child(&self.command), Signal::KILL);
        } else {
            served.signal(Signal::KILL);
        }
        let is_in_the_middle = !self.command.wait().unwrap().success();
        served.serve();
        is_in_the_middle
    }
}

async fn writer_of(served: &Served) -> Actor {
    let token = Token::from_text(&served.token(Some("erp"), "backup")).unwrap();
    Actor::enroll(connect_to(socket(served)), token, true).await.unwrap()
}

/// Backs up 12 MB that no other number has.
async fn back_up(
    writer: &mut Actor,
    folder: &Path,
    number: u64,
    hashes: &mut BTreeMap<RecordDigest, [u8; 32]>,
) {
    let path = folder.join("dump");
    let bytes = noise(number, 600).concat();
    std::fs::write(&path, &bytes).unwrap();
    let summary = writer.backup("db", &path).await.unwrap();
    hashes.insert(summary.snapshot, *blake3::hash(&bytes).as_bytes());
}

/// Bytes of the files in a folder.
fn bytes_in(folder: PathBuf) -> u64 {
    let Ok(files) = std::fs::read_dir(folder) else { return 0 };
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

fn check_disk(disk: &str) -> std::process::Output {
    let mut command = std::process::Command::new(crate::harness::program("strongroomd"));
    command.args(["import", "--from", disk, "--check", "--json"]).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_again_and_again_is_whole_in_the_end() {
    let (mut office, remote) = (start(), start());
    let mut writer = writer_of(&office).await;
    let (folder, mut hashes) = (tempfile::tempdir().unwrap(), BTreeMap::new());
    let disk = folder.path().join("disk");
    let to = disk.to_str().unwrap().to_owned();
    let mut kills = 0;
    for round in 0..4u64 {
        back_up(&mut writer, folder.path(), round, &mut hashes).await;
        let enough = bytes_in(disk.join("packs")) + (round + 1) * (2 << 20);
        let work = Work::begin(&mut office, &["export", "--to", &to], round % 2 == 1);
        let is_far = || bytes_in(disk.join("packs")) > enough;
        if work.kill(&mut office, is_far) {
            kills += 1;
            let checked = check_disk(&to);
            assert!(!checked.status.success(), "half an export passes for a whole one");
        }
        if round % 2 == 1 {
            // What was killed twice ends, and adds what is new after that.
            let done = office.command(&["export", "--to", &to]);
            assert!(done.status.success(), "{}", text(&done.stderr));
            let checked = json(&check_disk(&to));
            assert_eq!(checked["snapshots"], round + 1, "{checked}");
        }
    }
    println!("export: {kills} kills in the middle");
    assert!(kills >= 2, "{kills} kills in the middle");
    let key = json(&check_disk(&to))["ledger_key"].as_str().unwrap().to_owned();
    let imported = remote.command(&["import", "--from", &to, "--ledger-key", &key]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    assert_eq!(check(&remote, &writer, &hashes, false).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_again_and_again_is_whole_in_the_end() {
    let (office, mut remote) = (start(), start());
    let mut writer = writer_of(&office).await;
    let (folder, mut hashes) = (tempfile::tempdir().unwrap(), BTreeMap::new());
    for number in 0..3 {
        back_up(&mut writer, folder.path(), number, &mut hashes).await;
    }
    let disk = folder.path().join("disk");
    let from = disk.to_str().unwrap().to_owned();
    let done = office.command(&["export", "--to", &from]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let key = json(&check_disk(&from))["ledger_key"].as_str().unwrap().to_owned();
    let (import, mut kills) = (["import", "--from", &from, "--ledger-key", &key], 0);
    for round in 0..4 {
        let data = remote.data();
        let stored = || bytes_in(data.join("chunks")) + bytes_in(data.join("staging"));
        let work = Work::begin(&mut remote, &import, round % 2 == 1);
        let enough = stored() + (round + 1) * (2 << 20);
        kills += u32::from(work.kill(&mut remote, || stored() > enough));
        // What is shown is whole, at each moment.
        check(&remote, &writer, &hashes, true).await;
    }
    println!("import: {kills} kills in the middle");
    assert!(kills >= 2, "{kills} kills in the middle");
    let imported = remote.command(&import);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    assert_eq!(check(&remote, &writer, &hashes, false).await.len(), 3);
    let again = json(&remote.command(&[&import[..], &["--json"]].concat()));
    assert_eq!(again["report"]["snapshots"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_killed_on_either_side_ends_well() {
    let (mut primary, mut replica) = (start(), start());
    let mut writer = writer_of(&primary).await;
    let (folder, mut hashes) = (tempfile::tempdir().unwrap(), BTreeMap::new());
    back_up(&mut writer, folder.path(), 1, &mut hashes).await;
    let token = primary.token(None, "replica");
    let added = replica.command(&["replica", "add", "--token", &token, "--name", "office"]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    synced(&primary, &replica).await;
    assert!(replica.signal(Signal::TERM).success());
    for file in std::fs::read_dir(replica.data().join("chunks")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "sst") {
            let bytes = path.metadata().unwrap().len();
            std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        }
    }
    replica.config = replica.config.replace("12MiB", "4MiB");
    replica.serve();
    let known = |replica: &Served| {
        let scrub = json(&replica.command(&["scrub", "status", "--json"]));
        scrub["report"]["known_count"].as_u64().unwrap()
    };
    let found = replica.command(&["scrub", "run"]);
    assert!(found.status.success(), "{}", text(&found.stderr));
    let mut left = known(&replica);
    println!("repair: {left} envelopes are damaged");
    let mut kills = 0;
    for round in 0..4 {
        let before = left;
        for _ in 0..2000 {
            left = known(&replica);
            if left < before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(left < before, "{left} of {before} are left: {}", status(&replica));
        kills += u32::from(left > 0);
        let killed = if round % 2 == 0 { &mut replica } else { &mut primary };
        killed.signal(Signal::KILL);
        killed.serve();
        if left == 0 {
            break;
        }
    }
    println!("repair: {kills} kills in the middle");
    assert!(kills >= 2, "{kills} kills in the middle");
    for _ in 0..2000 {
        left = known(&replica);
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(left, 0, "{}", status(&replica));
    let again = json(&replica.command(&["scrub", "run", "--json"]));
    assert_eq!(again["report"]["damaged_count"], 0, "{again}");
    assert_eq!(check(&replica, &writer, &hashes, false).await.len(), 1);
}
