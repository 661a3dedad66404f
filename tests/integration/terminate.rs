//! SIGTERM at any moment: the server ends in order and within its configured time, whatever is
//! under way; the client ends with the code that says "run it again"; nothing is lost, and the next
//! run is as if nothing had been.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::gc::noise;
use crate::harness::program;
use crate::programs::{Served, json, text};

/// Small segments, and a time to end that a test can wait for.
const CONFIG: &str = "segment = \"1MiB\"\n[limits]\nshutdown = \"3s\"\n[scrub]\npace = 0.01\n\
                      [replica]\npoll_interval = \"20ms\"\nbytes_per_second = \"2MiB\"\n";

struct Office {
    served: Served,
    kit: String,
    dump: PathBuf,
}

fn start() -> Served {
    start_with("")
}

/// A server with `more` in its configuration.
fn start_with(more: &str) -> Served {
    let mut served = Served::start();
    assert!(served.signal(Signal::TERM).success());
    served.config = [CONFIG, more].concat();
    served.serve();
    served
}

impl Office {
    fn start() -> Self {
        Self::start_with("")
    }

    fn start_with(more: &str) -> Self {
        let served = start_with(more);
        let kit = served.set_up().to_str().unwrap().to_owned();
        let dump = served.folder.path().join("dump");
        Self { served, kit, dump }
    }

    fn write(&self, seed: u64, pieces: u64) {
        std::fs::write(&self.dump, noise(seed, pieces).concat()).unwrap();
    }

    fn begin(&self, home: &str, words: &[&str]) -> Child {
        Command::new(program("strongroom"))
            .arg("--home")
            .arg(self.served.folder.path().join(home))
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn begin_backup(&self) -> Child {
        self.begin("home", &["--json", "backup", "db", self.dump.to_str().unwrap()])
    }

    /// Bytes of segments, finished or not.
    fn stored(&self) -> u64 {
        let data = self.served.data();
        bytes_in(&data.join("staging")) + bytes_in(&data.join("chunks"))
    }

    /// Tells the server to end, and starts it again once it has.
    fn end_and_serve(&mut self) {
        let status = self.served.signal(Signal::TERM);
        assert!(status.success(), "{status:?}: {}", self.log());
        assert!(self.log().contains("stopped"), "{}", self.log());
        self.served.serve();
        let opened = self.log();
        assert!(opened.contains("staged_files_wiped: 0"), "not sealed: {opened}");
        assert!(opened.contains("orphans: []"), "{opened}");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.served.folder.path().join("log")).unwrap()
    }

    fn restored(&self, snapshot: &str) -> Vec<u8> {
        let words = ["restore", snapshot, "--kit", &self.kit, "--to", "-"];
        let output = self.served.client("fresh", &words);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    }

    /// What a snapshot has, or nothing if it is not there.
    fn restored_or_gone(&self, snapshot: &str) -> Option<Vec<u8>> {
        let words = ["restore", snapshot, "--kit", &self.kit, "--to", "-"];
        let output = self.served.client("fresh", &words);
        if output.status.success() {
            return Some(output.stdout);
        }
        let said = text(&output.stderr);
        assert!(said.contains("see `strongroom list`"), "{said}");
        None
    }

    fn assert_restores_the_dump(&self, snapshot: &str) {
        assert!(self.restored(snapshot) == std::fs::read(&self.dump).unwrap(), "{snapshot}");
    }
}

fn bytes_in(folder: &Path) -> u64 {
    let Ok(files) = std::fs::read_dir(folder) else { return 0 };
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

/// Waits until something holds, as long as `child` runs; whether it does.
fn is_under_way(child: &mut Child, is_far: impl Fn() -> bool) -> bool {
    while child.try_wait().unwrap().is_none() {
        if is_far() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn ended(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

fn terminate(child: Child) -> Output {
    // It may just have ended.
    let _ = kill_process(Pid::from_child(&child), Signal::TERM);
    ended(child)
}

#[test]
fn a_server_that_is_told_to_end_ends_in_order_under_backups_and_restores() {
    let mut office = Office::start();
    // A first backup, and one that shares half of it: the client waits and goes on.
    for (seed, name) in [(1, "first"), (2, "incremental")] {
        let shared = noise(9, 600).concat();
        std::fs::write(&office.dump, [shared, noise(seed, 600).concat()].concat()).unwrap();
        let before = office.stored();
        let mut backup = office.begin_backup();
        let is_far = || office.stored() > before + (3 << 20);
        assert!(is_under_way(&mut backup, is_far), "{name}");
        office.end_and_serve();
        let made = json(&ended(backup));
        office.assert_restores_the_dump(made["snapshot"].as_str().unwrap());
    }
    // A restore.
    let to = office.served.folder.path().join("restored");
    let words = ["restore", "db", "--kit", &office.kit, "--to", to.to_str().unwrap()];
    let mut restore = office.begin("fresh", &words);
    is_under_way(&mut restore, || bytes_in(office.served.folder.path()) > (26 << 20));
    office.end_and_serve();
    let output = ended(restore);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(std::fs::read(&to).unwrap() == std::fs::read(&office.dump).unwrap());
}

/// One connects and says nothing, one stops in the middle of a request.
#[test]
fn whoever_keeps_a_server_from_ending_is_cut_off_when_the_time_to_end_is_over() {
    let mut office = Office::start();
    office.write(3, 1500);
    let silent = std::net::TcpStream::connect(office.served.address()).unwrap();
    let mut backup = office.begin_backup();
    assert!(is_under_way(&mut backup, || office.stored() > 2 << 20));
    kill_process(Pid::from_child(&backup), Signal::STOP).unwrap();
    let status = office.served.signal(Signal::TERM);
    assert!(status.success(), "{}", office.log());
    assert!(office.log().contains("were cut off"), "{}", office.log());
    drop(silent);
    office.served.serve();
    kill_process(Pid::from_child(&backup), Signal::CONT).unwrap();
    json(&ended(backup));
    office.assert_restores_the_dump("db");
}

#[test]
fn a_server_that_is_told_to_end_ends_in_order_under_its_own_work() {
    let mut office = Office::start();
    office.write(4, 2500);
    json(&ended(office.begin_backup()));
    let disk = office.served.folder.path().join("disk");
    let to = disk.to_str().unwrap().to_owned();
    let mut in_the_middle = 0;
    for words in [
        &["scrub", "run"][..],
        &["gc", "run"],
        &["export", "--to", &to],
        &["scrub", "run"],
        &["export", "--to", &to],
    ] {
        let mut command = office.served.prepared(words);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        office.end_and_serve();
        let output = ended(child);
        in_the_middle += u32::from(!output.status.success());
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{words:?}: {}", text(&output.stderr));
            assert!(!output.stderr.is_empty(), "{words:?}");
        }
        office.assert_restores_the_dump("db");
    }
    println!("terminate: {in_the_middle} commands were ended by the server's end");
    for words in [&["scrub", "run"][..], &["gc", "run"], &["export", "--to", &to]] {
        let output = office.served.command(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    }
    let mut check = Command::new(program("strongroomd"));
    let check = check.args(["import", "--from", &to, "--check", "--json"]);
    let checked = json(&check.output().unwrap());
    assert_eq!(checked["snapshots"], 1, "{checked}");

    // A second server takes the export in, and is told to end.
    let mut remote = start();
    let key = checked["ledger_key"].as_str().unwrap().to_owned();
    let import = ["import", "--from", &to, "--ledger-key", &key];
    let mut command = remote.prepared(&import);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert!(remote.signal(Signal::TERM).success());
    ended(child);
    remote.serve();
    let done = remote.command(&import);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(remote.signal(Signal::TERM).success());
}

/// Server or client is told to end at some moment of a forget: the snapshot is gone or whole, and
/// gone where the client said so.
#[test]
fn a_forget_that_is_told_to_end_has_happened_or_not() {
    let mut office = Office::start_with("[retention]\nminimum = \"1s\"\ndefault = \"1s\"\n");
    let made = |seed: u64| {
        office.write(seed, 10);
        let made = json(&ended(office.begin_backup()));
        made["snapshot"].as_str().unwrap().to_owned()
    };
    let snapshots: Vec<String> = (0..12).map(made).collect();
    let token = office.served.token(None, "operator");
    let enrolled = office.served.client("operator", &["enroll", "--token", &token]);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    // The last lock ends a second after its commit.
    std::thread::sleep(Duration::from_secs(2));
    let mut forgotten = 0;
    for (round, snapshot) in (0u64..).zip(&snapshots) {
        let words = ["forget", snapshot, "--namespace", "erp"];
        let forget = office.begin("operator", &words);
        std::thread::sleep(Duration::from_millis(4 * round));
        let output = if round.is_multiple_of(3) {
            terminate(forget)
        } else {
            office.end_and_serve();
            ended(forget)
        };
        let (code, said) = (output.status.code(), text(&output.stderr));
        // None: it ended before it could have done anything, as a program does that was just begun.
        assert!(matches!(code, None | Some(0 | 7)), "round {round}: {code:?} {said}");
        let left = office.restored_or_gone(snapshot);
        assert!(code != Some(0) || left.is_none(), "round {round}: said to be gone, and is not");
        if let Some(left) = left {
            assert!(left == noise(round, 10).concat(), "round {round}");
        }
        // The same command again does what is left of it.
        let again = office.served.client("operator", &words);
        let is_done =
            again.status.success() || text(&again.stderr).contains("see `strongroom list`");
        assert!(is_done, "round {round}: {}", text(&again.stderr));
        assert!(office.restored_or_gone(snapshot).is_none(), "round {round}");
        forgotten += u32::from(code == Some(0));
    }
    println!("terminate: {forgotten} of {} forgets were through", snapshots.len());
}

#[test]
fn a_replica_that_is_told_to_end_in_the_middle_of_a_snapshot_goes_on_with_it() {
    let office = Office::start();
    let mut replica = start();
    office.write(5, 1000);
    json(&ended(office.begin_backup()));
    let token = office.served.token(None, "replica");
    let added = replica.command(&["replica", "add", "--token", &token, "--name", "office"]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    let arrived = |replica: &Served| {
        bytes_in(&replica.data().join("staging")) + bytes_in(&replica.data().join("chunks"))
    };
    for round in 1..=3u64 {
        let before = arrived(&replica);
        while arrived(&replica) < before + (2 << 20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(replica.signal(Signal::TERM).success(), "round {round}");
        replica.serve();
    }
    wait_for_sync(&replica);
    let address = replica.address();
    let words = ["--server", &address, "verify", "db", "--kit", &office.kit, "--from-replica"];
    let verified = office.served.client("fresh", &words);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

/// Waits until the replica has nothing left to do.
fn wait_for_sync(replica: &Served) {
    for _ in 0..6000 {
        if crate::replica_kill::status(replica)["state"] == "in_sync" {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("never in sync: {}", crate::replica_kill::status(replica));
}

#[test]
fn a_client_that_is_told_to_end_says_run_it_again_and_the_next_run_goes_on() {
    let office = Office::start();
    office.write(6, 1500);
    let mut sealed = 0;
    for round in 1..=3u64 {
        // What the server still takes in of the run before is not this one's.
        let mut before = office.stored();
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = office.stored();
            if std::mem::replace(&mut before, now) == now {
                break;
            }
        }
        let mut backup = office.begin_backup();
        if !is_under_way(&mut backup, || office.stored() > before + (2 << 20)) {
            break;
        }
        let output = terminate(backup);
        assert_eq!(output.status.code(), Some(7), "round {round}: {}", text(&output.stderr));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("interrupted; run the same command again"), "{said}");
        sealed += 1;
    }
    assert!(sealed > 0, "no backup was ended in the middle");
    json(&ended(office.begin_backup()));
    office.assert_restores_the_dump("db");

    let to = office.served.folder.path().join("back");
    std::fs::create_dir(&to).unwrap();
    let target = to.join("dump");
    let words = ["restore", "db", "--kit", &office.kit, "--to", target.to_str().unwrap()];
    let mut restore = office.begin("fresh", &words);
    if is_under_way(&mut restore, || bytes_in(&to) > (1 << 20)) {
        let output = terminate(restore);
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
            assert!(!target.exists(), "half a dump under its name");
        }
    }
    let again = office.served.client("fresh", &[&words[..], &["--overwrite"]].concat());
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(std::fs::read(&target).unwrap() == std::fs::read(&office.dump).unwrap());
}

#[test]
fn what_was_acknowledged_stands_after_orders_to_end_at_random_moments() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (rounds, seed) = (number("TERMS", 6), number("SEED", 1));
    println!("terminate: {rounds} orders to end, SEED={seed}");
    let mut office = Office::start();
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let random = *blake3::hash(&[seed.to_le_bytes(), round.to_le_bytes()].concat()).as_bytes();
        office.write(1000 + round, 20 + u64::from(random[1]));
        let digest = blake3::hash(&std::fs::read(&office.dump).unwrap());
        let backup = office.begin_backup();
        std::thread::sleep(Duration::from_millis(u64::from(random[0]) * 3));
        office.end_and_serve();
        // The client goes on by itself.
        let made = json(&ended(backup));
        acknowledged.push((made["snapshot"].as_str().unwrap().to_owned(), digest));
        let (newest, digest) = acknowledged.last().unwrap();
        assert_eq!(blake3::hash(&office.restored(newest)), *digest);
    }
    for (snapshot, digest) in &acknowledged {
        assert_eq!(blake3::hash(&office.restored(snapshot)), *digest, "{snapshot}");
    }
    println!("campaign-terms: {rounds} orders to end, 0 acknowledged lost, 0 half visible");
}
