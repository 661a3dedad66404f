//! Primary and replica are killed at random moments, as real processes, under backups that go on:
//! what was acknowledged reaches the replica whole, and nothing is visible there that is not.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::transport::RetryPolicy;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::token::Token;

use crate::gc::noise;
use crate::harness::{Actor, connect_to};
use crate::programs::{Served, json, text};

const QUICK: &str = "segment = \"1MiB\"\n[replica]\npoll_interval = \"20ms\"\n\
                     patience = \"2s\"\nbytes_per_second = \"12MiB\"\n";

/// What a seed and a number choose.
pub struct Dice([u8; 32]);

impl Dice {
    pub fn of(seed: u64, number: u64) -> Self {
        Self(*blake3::hash(&[seed.to_le_bytes(), number.to_le_bytes()].concat()).as_bytes())
    }

    pub fn byte(&self, index: usize) -> u64 {
        u64::from(self.0[index])
    }
}

pub fn socket(served: &Served) -> std::net::SocketAddr {
    served.address().parse().unwrap()
}

pub fn start() -> Served {
    let mut served = Served::start();
    served.signal(Signal::TERM);
    served.config = QUICK.into();
    served.serve();
    served
}

/// A dump that shares most of its bytes with the others.
fn dump(folder: &Path, dice: &Dice, number: u64) -> (std::path::PathBuf, [u8; 32]) {
    let mut bytes = noise(dice.byte(3) % 3, 60 + dice.byte(4) % 40).concat();
    bytes.extend_from_slice(&noise(1000 + number, 1 + dice.byte(5) % 50).concat());
    let path = folder.join("dump");
    std::fs::write(&path, &bytes).unwrap();
    (path, *blake3::hash(&bytes).as_bytes())
}

pub fn status(replica: &Served) -> serde_json::Value {
    let answer = json(&replica.command(&["replica", "status", "--json"]));
    answer["primaries"][0].clone()
}

/// Waits until the replica has all that the primary's ledger says.
pub async fn synced(primary: &Served, replica: &Served) {
    let mut seen = serde_json::Value::Null;
    for _ in 0..600 {
        let size = json(&primary.command(&["status", "--json"]))["status"]["ledger_size"].clone();
        seen = status(replica);
        if seen["state"] == "in_sync" && seen["followed_entries"] == size {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never in sync: {seen}");
}

/// Every snapshot that the replica shows is restored and compared with what was backed up. Gives
/// those that it shows.
pub async fn check(
    replica: &Served,
    writer: &Actor,
    hashes: &BTreeMap<RecordDigest, [u8; 32]>,
    newest_only: bool,
) -> Vec<RecordDigest> {
    let mut connect = connect_to(socket(replica));
    connect.from_replica = true;
    let Ok(access) = ReadAccess::with_kit(&writer.kit(), &connect, false).await else {
        return Vec::new();
    };
    let shown = strongroom_client::snapshot::list(&access, None).await.unwrap();
    let shown: Vec<RecordDigest> = shown.iter().map(|row| row.snapshot).collect();
    let folder = tempfile::tempdir().unwrap();
    let skipped = if newest_only { shown.len().saturating_sub(2) } else { 0 };
    for record in shown.iter().skip(skipped) {
        let to = folder.path().join("restored");
        let target = Target::Path(to.clone());
        let options = RestoreOptions { overwrite: true, ..RestoreOptions::to(target) };
        restore::restore(&access, *record, &options, &Monitor::hidden()).await.unwrap();
        let hash = *blake3::hash(&std::fs::read(&to).unwrap()).as_bytes();
        // What was never acknowledged may be there, and must be whole: it was restored.
        if let Some(known) = hashes.get(record) {
            assert_eq!(hash, *known, "snapshot {record} came back as something else");
        }
    }
    shown
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_torn_when_primary_and_replica_are_killed() {
    let (kills, seed) = (number("KILLS", 8), number("SEED", 1));
    println!("replica kills: {kills} kills, SEED={seed}");
    let (mut primary, mut replica) = (start(), start());
    let token = Token::from_text(&primary.token(Some("erp"), "backup")).unwrap();
    let mut connect = connect_to(socket(&primary));
    connect.retry = RetryPolicy::default();
    let mut writer = Actor::enroll(connect, token, true).await.unwrap();
    let token = primary.token(None, "replica");
    let added = replica.command(&["replica", "add", "--token", &token, "--name", "office"]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    let folder = tempfile::tempdir().unwrap();
    let mut hashes = BTreeMap::new();
    let (mut of_primary, mut of_replica, mut in_the_middle) = (0, 0, 0);
    for kill in 0..kills {
        let dice = Dice::of(seed, kill);
        let (path, hash) = dump(folder.path(), &dice, kill);
        let backing_up = tokio::spawn(async move {
            let outcome = writer.backup("db", &path).await;
            (writer, outcome)
        });
        tokio::time::sleep(Duration::from_millis(dice.byte(0) * 3)).await;
        let (kills_primary, kills_replica) =
            [(true, false), (false, true), (false, true), (true, true)]
                [usize::try_from(dice.byte(1) % 4).unwrap()];
        in_the_middle += u64::from(status(&replica)["state"] != "in_sync");
        if kills_replica {
            replica.signal(Signal::KILL);
            of_replica += 1;
        }
        if kills_primary {
            primary.signal(Signal::KILL);
            of_primary += 1;
            primary.serve();
        }
        if kills_replica {
            replica.serve();
        }
        let (back, outcome) = backing_up.await.unwrap();
        writer = back;
        // A client that gave up has no snapshot; one that has was told so.
        if let Ok(summary) = outcome {
            hashes.insert(summary.snapshot, hash);
        }
        check(&replica, &writer, &hashes, true).await;
    }
    synced(&primary, &replica).await;
    let shown = check(&replica, &writer, &hashes, false).await;
    for record in hashes.keys() {
        assert!(shown.contains(record), "acknowledged snapshot {record} is not on the replica");
    }
    assert!(!hashes.is_empty(), "nothing was tested");
    println!(
        "replica kills: {kills} kills ({of_replica} of the replica, {of_primary} of the primary, \
         {in_the_middle} while it was behind), {} acknowledged, {} on the replica; 0 lost, 0 torn",
        hashes.len(),
        shown.len()
    );
}

/// Runs a program where the server sees its own disk.
fn inside(served: &Served, words: &[&str]) -> Output {
    let pid = served.pid().to_string();
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-U", "-m", "--preserve-credentials", "--"]);
    command.args(words).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_disk_is_full_says_so_and_goes_on_when_it_grows() {
    let try_mount = ["-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"];
    let may_mount = Command::new("unshare").args(try_mount).output();
    if !may_mount.is_ok_and(|output| output.status.success()) {
        println!("skipped: no mount namespaces here; the reserve alone is tested");
        return;
    }
    let (primary, mut replica) = (start(), Served::start());
    replica.signal(Signal::TERM);
    replica.config = QUICK.replace("segment", "inbox_fold = \"1MiB\"\nsegment");
    // A disk of its own, in the place of the data folder.
    let data = replica.data().to_str().unwrap().to_owned();
    let script = format!(
        "cp -a {data} {data}.made && mount -t tmpfs -o size=40m,mode=700 tmpfs {data} && \
         cp -a {data}.made/. {data}/ && exec \"$@\""
    );
    replica.wrapper = ["unshare", "-rm", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    replica.serve();
    let strongroomd = crate::harness::program("strongroomd");
    let strongroomd = strongroomd.to_str().unwrap();
    let ask = |words: &[&str]| {
        let words = [&[strongroomd, "replica"], words, &["--data", &data]].concat();
        let output = inside(&replica, &words);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    ask(&["add", "--token", &primary.token(None, "replica"), "--name", "office"]);

    let token = Token::from_text(&primary.token(Some("erp"), "backup")).unwrap();
    let mut writer = Actor::enroll(connect_to(socket(&primary)), token, true).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump");
    let bytes = noise(7, 3000).concat();
    std::fs::write(&path, &bytes).unwrap();
    let summary = writer.backup("db", &path).await.unwrap();
    let mut seen = String::new();
    for _ in 0..1200 {
        seen = ask(&["status", "--json"]);
        if seen.contains("the repository is full") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(seen.contains("the repository is full"), "{seen}");
    let hashes = BTreeMap::from([(summary.snapshot, *blake3::hash(&bytes).as_bytes())]);
    assert!(check(&replica, &writer, &hashes, false).await.is_empty());

    let grown = inside(&replica, &["mount", "-o", "remount,size=300m", &data]);
    assert!(grown.status.success(), "{}", text(&grown.stderr));
    let mut shown = Vec::new();
    for _ in 0..600 {
        shown = check(&replica, &writer, &hashes, false).await;
        if !shown.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(shown, [summary.snapshot], "{}", ask(&["status", "--json"]));
}
