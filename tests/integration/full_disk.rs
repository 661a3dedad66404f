//! A disk that fills: at each step of a backup, and to the last byte by somebody else. The disk is
//! a small file system in memory, in a mount namespace that outlives the server.

use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use crate::gc::noise;
use crate::harness::program;
use crate::programs::{Served, json, text};

const KIB: u64 = 1024;
/// What the server keeps free with the configuration below: five segments, a fold, the reserve.
const KEPT_FREE: u64 = 6 * 1024 * KIB + 2 * 64 * KIB;

/// A file system in the place of a server's data folder, for as long as this lives.
struct SmallDisk {
    holder: Child,
    data: String,
}

impl SmallDisk {
    /// Puts the folder of a stopped server on a disk of its own; nothing, where that cannot be.
    fn under(served: &mut Served) -> Option<Self> {
        let try_mount = ["-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"];
        let may_mount = Command::new("unshare").args(try_mount).output();
        if !may_mount.is_ok_and(|output| output.status.success()) {
            println!("skipped: no mount namespaces here");
            return None;
        }
        assert!(served.signal(Signal::TERM).success());
        let data = served.data().to_str().unwrap().to_owned();
        let script = format!(
            "cp -a {data} {data}.made && mount -t tmpfs -o size=200m,mode=700 tmpfs {data} && \
             cp -a {data}.made/. {data}/ && echo mounted && exec sleep 100000"
        );
        let mut holder = Command::new("unshare")
            .args(["-rm", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let said = holder.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
        assert_eq!(line, "mounted\n");
        let disk = Self { holder, data };
        served.wrapper = disk.entering();
        Some(disk)
    }

    /// What a program is started by to see the disk.
    fn entering(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        let words = ["nsenter", "-t", &pid, "-U", "-m", "--preserve-credentials", "--"];
        words.map(str::to_owned).to_vec()
    }

    fn run(&self, words: &[&str]) -> Output {
        let entering = self.entering();
        let (first, rest) = entering.split_first().unwrap();
        Command::new(first).args(rest).args(words).output().unwrap()
    }

    fn done(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn bytes(&self, what: &str) -> u64 {
        let answer = self.done(&["df", "-B1", &format!("--output={what}"), &self.data]);
        answer.lines().last().unwrap().trim().parse().unwrap()
    }

    /// Makes the disk so large that this much is free.
    fn leave(&self, free: u64) {
        let size = self.bytes("used") + free;
        self.done(&["mount", "-o", &format!("remount,size={size}"), &self.data]);
    }

    /// Takes all but `left` bytes for a file. The server takes and gives back some meanwhile.
    fn fill(&self, file: &str, left: u64) {
        let mut size = 0;
        for _ in 0..50 {
            let spare = self.bytes("avail").saturating_sub(left);
            if spare == 0 {
                return;
            }
            let length = (size + spare).to_string();
            if self.run(&["fallocate", "-l", &length, file]).status.success() {
                size += spare;
            }
        }
        panic!("the disk does not get full");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A server with a client, a security officer, an auditor, and a snapshot.
struct Office {
    served: Served,
    kit: String,
    dump: String,
}

impl Office {
    fn start() -> Self {
        let mut served = Served::start();
        assert!(served.signal(Signal::TERM).success());
        served.config = "segment = \"1MiB\"\ninbox_fold = \"64KiB\"\n".into();
        served.serve();
        let kit = served.set_up().to_str().unwrap().to_owned();
        for role in ["security-officer", "audit"] {
            let token = served.token(None, role);
            let enrolled = served.client("home", &["--profile", role, "enroll", "--token", &token]);
            assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
        }
        let dump = served.folder.path().join("dump").to_str().unwrap().to_owned();
        let office = Self { served, kit, dump };
        office.write(1, 1000);
        json(&office.back_up("first"));
        office
    }

    fn write(&self, seed: u64, pieces: u64) {
        std::fs::write(&self.dump, noise(seed, pieces).concat()).unwrap();
    }

    fn back_up(&self, source: &str) -> Output {
        self.served.client("home", &["--json", "backup", source, &self.dump])
    }

    fn hold(&self, verb: &str) -> Output {
        let words =
            ["--profile", "security-officer", "hold", verb, "first", "--reason", "court case 7"];
        self.served.client("home", &[&words[..], &["--namespace", "erp"]].concat())
    }

    fn verify(&self, snapshot: &str) {
        let verified = self.served.client("fresh", &["verify", snapshot, "--kit", &self.kit]);
        assert!(verified.status.success(), "{snapshot}: {}", text(&verified.stderr));
    }

    /// What goes on while there is no room: reads, holds, the ledger, questions.
    fn goes_on(&self, disk: &SmallDisk) {
        self.verify("first");
        for verb in ["place", "release"] {
            let held = self.hold(verb);
            assert!(held.status.success(), "{}", text(&held.stderr));
        }
        let audit = ["--profile", "audit", "audit", "verify"];
        let audited = self.served.client("home", &audit);
        assert!(audited.status.success(), "{}", text(&audited.stderr));
        let server = program("strongroomd");
        let status = disk.done(&[server.to_str().unwrap(), "status", "--data", &disk.data]);
        assert!(status.contains("no: repository full"), "{status}");
        let ready = self.served.probe("/readyz").unwrap();
        assert!(ready.contains("503") && ready.contains("repository full"), "{ready}");
    }
}

/// Each try has a little more room than the one before, so it comes a little further.
#[test]
fn a_disk_that_is_full_at_any_step_of_a_backup_refuses_it_and_nothing_else() {
    let mut office = Office::start();
    let Some(disk) = SmallDisk::under(&mut office.served) else { return };
    office.served.serve();
    let pid = office.served.pid();
    office.write(2, 500);
    let step = std::env::var("STEP_KIB").map_or(1024, |text| text.parse().unwrap()) * KIB;
    let (mut refusals, mut stored, mut is_done) = (0, 0, false);
    let refused = |output: &Output| {
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{said}");
        assert!(said.contains("repository_full"), "{said}");
        assert!(said.contains("run again when there is room"), "{said}");
    };
    while !is_done {
        // Too little to begin with,
        disk.leave(KEPT_FREE - 1024 * KIB);
        refused(&office.back_up("large"));
        office.goes_on(&disk);
        // then enough for the next step.
        disk.leave(KEPT_FREE + step);
        let (used, output) = (disk.bytes("used"), office.back_up("large"));
        is_done = output.status.success();
        if !is_done {
            refused(&output);
            refusals += 1;
            stored += u64::from(disk.bytes("used") > used);
        }
    }
    println!("full disk: {refusals} backups refused, {stored} of them in the middle");
    assert!(refusals > 3 && stored > 2, "{refusals} {stored}");
    for snapshot in ["first", "large"] {
        office.verify(snapshot);
    }
    assert_eq!(office.served.pid(), pid);
    assert!(office.served.signal(Signal::TERM).success(), "it never had to end itself");
}

/// The last byte is taken by another program, which the reserve cannot know. Whatever cannot be
/// written then ends the server; what it acknowledged is there when there is room again.
#[test]
fn a_disk_that_somebody_else_fills_to_the_last_byte_costs_nothing_that_was_acknowledged() {
    let mut office = Office::start();
    let Some(disk) = SmallDisk::under(&mut office.served) else { return };
    let server = program("strongroomd");
    let filler = format!("{}/filler", disk.data);
    let (mut deaths, mut refused_starts) = (0, 0);
    for (round, left) in [0u64, 4, 16, 64, 256, 1024, 4096].into_iter().enumerate() {
        office.served.serve();
        office.write(10 + round as u64, 300);
        json(&office.back_up("more"));
        disk.fill(&filler, left * KIB);
        // Reads go on, or the server has ended itself; a backup is refused, or finds it gone.
        let backup = office.back_up_once("other");
        assert!(matches!(backup.status.code(), Some(7 | 8)), "{}", text(&backup.stderr));
        let (mut held, mut is_alive) = (false, true);
        for _ in 0..12 {
            // Where next to nothing is left, for longer than a second: so often `HEAD` is written,
            // which needs a new file. The log has room of its own.
            sleep(if left <= 16 { Duration::from_millis(250) } else { Duration::ZERO });
            let changed = office.hold_once(if held { "release" } else { "place" });
            if !changed.status.success() {
                assert_eq!(changed.status.code(), Some(7), "{}", text(&changed.stderr));
                is_alive = false;
                break;
            }
            held = !held;
        }
        let status = office.served.signal(if is_alive { Signal::TERM } else { Signal::KILL });
        deaths += u64::from(!status.success());
        // On the full disk it starts, or says why not.
        let words = ["status", "--json", "--data", &disk.data];
        let tried = disk.run(&[&[server.to_str().unwrap()], &words[..]].concat());
        if !tried.status.success() {
            let said = text(&tried.stderr);
            assert!(said.contains("No space left") && said.contains("make room"), "{said}");
            refused_starts += 1;
        }
        disk.done(&["rm", &filler]);
        office.served.serve();
        for snapshot in ["first", "more"] {
            office.verify(snapshot);
        }
        if office.is_held() != held {
            // The last answer was never given: it may have been decided.
            assert!(!is_alive, "a hold was acknowledged and is not there");
        }
        office.hold("release");
        assert!(office.served.signal(Signal::TERM).success());
    }
    println!("full disk: {deaths} ends by itself, {refused_starts} refused starts");
    assert!(deaths > 0 && refused_starts > 0, "{deaths} {refused_starts}");
}

impl Office {
    /// As a client that does not wait for the server to come back.
    fn once(&self, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--preserve-status", "--signal=TERM", "8"]).arg(program("strongroom"));
        command.arg("--home").arg(self.served.folder.path().join("home"));
        command.args(words).stdin(Stdio::null()).output().unwrap()
    }

    fn back_up_once(&self, source: &str) -> Output {
        self.once(&["--json", "backup", source, &self.dump])
    }

    fn hold_once(&self, verb: &str) -> Output {
        let words =
            ["--profile", "security-officer", "hold", verb, "first", "--reason", "court case 7"];
        self.once(&[&words[..], &["--namespace", "erp"]].concat())
    }

    fn is_held(&self) -> bool {
        let listed = self.served.client("fresh", &["--json", "list", "first", "--kit", &self.kit]);
        let listed = json(&listed);
        listed.to_string().contains("\"is_held\":true")
    }
}
