//! Log shipping with the real programs: nothing is removed before it is committed, nothing is
//! passed over, and it goes on after whatever passes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{program, unpack_dumps};
use crate::programs::{Served, json, text};

/// A client that ships, and the folder that it watches.
struct Shipper {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Shipper {
    fn start(served: &Served, folder: &Path, options: &[&str]) -> Self {
        let mut process = Command::new(program("strongroom"))
            .arg("--home")
            .arg(served.folder.path().join("home"))
            .args(["--json", "ship", "erp-log"])
            .arg(folder)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { process, lines }
    }

    /// What it says of the next file.
    fn next(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn stop(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
        self.process.wait().unwrap().code()
    }
}

/// A server, a client, a spool folder, and a dump in pieces, as log segments would be.
fn office() -> (Served, PathBuf, PathBuf, Vec<Vec<u8>>) {
    let served = Served::start();
    let kit = served.set_up();
    let spool = served.folder.path().join("spool");
    std::fs::create_dir(&spool).unwrap();
    let [day0, ..] = unpack_dumps(served.folder.path());
    let bytes = std::fs::read(day0).unwrap();
    let pieces = bytes.chunks(bytes.len() / 5 + 1).map(<[u8]>::to_vec).collect();
    (served, kit, spool, pieces)
}

/// Puts a file in as a database's archive command should.
fn put(spool: &Path, name: &str, bytes: &[u8]) {
    let hidden = spool.join(format!(".{name}"));
    std::fs::write(&hidden, bytes).unwrap();
    std::fs::rename(hidden, spool.join(name)).unwrap();
}

fn restored(served: &Served, kit: &Path, snapshot: &serde_json::Value) -> Vec<u8> {
    let (kit, snapshot) = (kit.to_str().unwrap(), snapshot.as_str().unwrap());
    let output = served.client("fresh", &["restore", snapshot, "--kit", kit, "--to", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    output.stdout
}

/// Ships what is there, as soon as it has settled.
fn ship_all(served: &Served, spool: &Path, options: &[&str]) {
    let command = ["ship", "erp-log", spool.to_str().unwrap(), "--once"];
    while std::fs::read_dir(spool).unwrap().count() > 0 {
        let done = served.client("home", &[&command, options].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn count(served: &Served) -> usize {
    let list = json(&served.client("home", &["--json", "list", "erp-log"]));
    list["snapshots"].as_array().unwrap().len()
}

#[test]
fn each_segment_is_locked_and_only_then_removed() {
    let (served, kit, spool, pieces) = office();
    put(&spool, "0001", &pieces[0]);
    let mut shipper = Shipper::start(&served, &spool, &["--retain", "90d"]);
    for (number, piece) in pieces.iter().enumerate() {
        let name = format!("{:04}", number + 1);
        if number > 0 {
            put(&spool, &name, piece);
        }
        let shipped = shipper.next();
        assert_eq!(shipped["file"], name.as_str());
        assert!(shipped["locked_until_seconds"].as_u64().unwrap() > 0, "{shipped}");
        assert!(!spool.join(&name).exists());
        assert!(restored(&served, &kit, &shipped["snapshot"]) == *piece);
    }
    // A dump beside it has the client cache to itself.
    let dump = served.client("home", &["backup", "erp-db", "/etc/passwd"]);
    assert!(dump.status.success());
    assert!(!text(&dump.stderr).contains("cache"), "{}", text(&dump.stderr));
    assert_eq!(count(&served), pieces.len());
    assert_eq!(shipper.stop(Signal::TERM), Some(0));
}

#[test]
fn shipping_waits_for_a_server_that_is_down() {
    let (mut served, kit, spool, pieces) = office();
    let mut shipper = Shipper::start(&served, &spool, &[]);
    put(&spool, "1", &pieces[0]);
    assert_eq!(shipper.next()["file"], "1");
    served.signal(Signal::KILL);
    put(&spool, "2", &pieces[1]);
    put(&spool, "3", &pieces[2]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(spool.join("2").exists() && spool.join("3").exists());
    served.serve();
    for (name, piece) in [("2", &pieces[1]), ("3", &pieces[2])] {
        let shipped = shipper.next();
        assert_eq!(shipped["file"], name);
        assert!(restored(&served, &kit, &shipped["snapshot"]) == **piece);
    }
    assert_eq!(shipper.stop(Signal::INT), Some(0));
}

#[test]
fn a_killed_shipper_loses_nothing() {
    let (served, kit, spool, pieces) = office();
    let mut names = Vec::new();
    for delay_ms in [20, 45, 70, 110, 160] {
        for (number, piece) in pieces.iter().enumerate() {
            let name = format!("{delay_ms:03}-{number}");
            // Each content once, so that its snapshots can be told apart.
            put(&spool, &name, &[name.as_bytes(), piece].concat());
            names.push(name);
        }
        let shipper = Shipper::start(&served, &spool, &[]);
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        assert_eq!(shipper.stop(Signal::KILL), None);
    }
    ship_all(&served, &spool, &[]);
    // What was shipped twice is there twice; nothing is missing.
    let list = json(&served.client("home", &["--json", "list", "erp-log"]));
    let mut found: Vec<String> = Vec::new();
    for row in list["snapshots"].as_array().unwrap() {
        let bytes = restored(&served, &kit, &row["snapshot"]);
        found.push(text(&bytes[..5]));
    }
    found.dedup();
    names.sort();
    found.sort();
    found.dedup();
    assert_eq!(found, names);
}

#[test]
fn what_does_not_pass_ends_it_and_leaves_the_file() {
    let (served, _, spool, pieces) = office();
    put(&spool, "1", &pieces[0]);
    let folder = spool.to_str().unwrap();
    let too_long = served.client("home", &["ship", "erp-log", folder, "--retain", "99y"]);
    assert_eq!(too_long.status.code(), Some(4), "{}", text(&too_long.stderr));
    assert!(spool.join("1").exists());
    let done = served.folder.path().join("done");
    std::fs::create_dir(&done).unwrap();
    ship_all(&served, &spool, &["--done", done.to_str().unwrap()]);
    assert!(std::fs::read(done.join("1")).unwrap() == pieces[0]);
    assert!(!spool.join("1").exists());
    let nowhere = served.client("home", &["ship", "erp-log", "/nowhere/at/all"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("/nowhere/at/all"), "{}", text(&nowhere.stderr));
}
