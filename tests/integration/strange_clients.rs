//! Clients that are not as they should be: two machines with one profile, and machines whose clocks
//! are years off.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::clock::faketime_library;
use crate::harness::{program, unpack_dumps};
use crate::programs::{Served, json, text};

/// Both machines back up at once so many times.
const AT_ONCE: usize = 12;

fn client(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program("strongroom"));
    command.arg("--home").arg(home).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn copy_of(home: &Path) -> PathBuf {
    let copy = home.with_extension("copy");
    let copied = Command::new("cp").arg("-a").arg(home).arg(&copy).status().unwrap();
    assert!(copied.success());
    copy
}

/// What a machine backs up the `turn`-th time.
fn dump(folder: &Path, machine: usize, turn: usize) -> PathBuf {
    let path = folder.join(format!("dump{machine}.{turn}"));
    std::fs::write(&path, format!("machine {machine}, turn {turn}\n").repeat(5000)).unwrap();
    path
}

#[test]
fn two_machines_with_one_profile_lose_nothing() {
    let served = Served::start();
    let kit = served.set_up();
    let folder = served.folder.path();
    let homes = [folder.join("home"), copy_of(&folder.join("home"))];
    let mut made = Vec::new();
    let mut told = |output: &Output, path: &Path| {
        let summary = json(output);
        let name = summary["snapshot"].as_str().unwrap().to_owned();
        made.push((summary["sequence"].as_u64().unwrap(), name, path.to_path_buf()));
    };
    // In turn, each is the other's successor.
    for turn in 0..4 {
        let (machine, path) = (turn % 2, dump(folder, turn % 2, turn));
        let words = ["--json", "backup", "db", path.to_str().unwrap()];
        told(&client(&homes[machine], &words).output().unwrap(), &path);
    }
    // At once, one may be faster, and the other is told so.
    for turn in 4..4 + AT_ONCE {
        let paths = [dump(folder, 0, turn), dump(folder, 1, turn)];
        let started: Vec<_> = (0..2)
            .map(|at| {
                let words = ["--json", "backup", "db", paths[at].to_str().unwrap()];
                client(&homes[at], &words).spawn().unwrap()
            })
            .collect();
        for (at, running) in started.into_iter().enumerate() {
            let mut output = running.wait_with_output().unwrap();
            if !output.status.success() {
                let says = text(&output.stderr);
                assert!(says.contains("another machine has a copy of its profile"), "{says}");
                let words = ["--json", "backup", "db", paths[at].to_str().unwrap()];
                output = client(&homes[at], &words).output().unwrap();
            }
            told(&output, &paths[at]);
        }
    }
    let sequences: BTreeSet<u64> = made.iter().map(|(sequence, ..)| *sequence).collect();
    assert_eq!(sequences.len(), 4 + 2 * AT_ONCE, "two snapshots of one number");
    assert_eq!(sequences.last(), Some(&(4 + 2 * AT_ONCE as u64)));
    for (_, name, path) in made {
        let words = ["restore", &name, "--kit", kit.to_str().unwrap(), "--to", "-"];
        let back = client(&folder.join("fresh"), &words).output().unwrap();
        assert!(back.stdout == std::fs::read(path).unwrap(), "{}", text(&back.stderr));
    }
}

/// A client whose clock is off by so many days.
fn at(library: &str, days: i64, home: &Path, words: &[&str]) -> Output {
    let mut command = client(home, words);
    command.env("LD_PRELOAD", library).env("FAKETIME", format!("{days:+}d"));
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").output().unwrap()
}

#[test]
fn a_client_whose_clock_is_years_off_works_as_any_other() {
    let Some(library) = faketime_library() else {
        eprintln!("skipped: libfaketime is not installed");
        return;
    };
    let served = Served::start();
    let [day0, day1, _] = unpack_dumps(served.folder.path());
    for (name, days) in [("ahead", 3650), ("behind", -3650), ("before-1970", -25_000)] {
        let home = served.folder.path().join(name);
        let run = |words: &[&str]| at(library, days, &home, words);
        let token = served.token(Some(name), "backup");
        let kits = home.join("kit");
        let words = ["setup", "--token", &token, "--kit-folder", kits.to_str().unwrap()];
        let done = run(&words);
        assert!(done.status.success(), "{name}: {}", text(&done.stderr));
        let kit = std::fs::read_dir(&kits).unwrap().map(|file| file.unwrap().path());
        let kit = kit.into_iter().find(|path| path.extension().is_some_and(|end| end == "txt"));
        let kit = kit.unwrap();
        let kit = kit.to_str().unwrap();
        let mut snapshots = Vec::new();
        for day in [&day0, &day1] {
            let made = json(&run(&["--json", "backup", "db", day.to_str().unwrap()]));
            snapshots.push(made["snapshot"].as_str().unwrap().to_owned());
            // The lock is by the server's clock.
            let until = made["locked_until_seconds"].as_u64().unwrap();
            let committed = made["committed_ms"].as_u64().unwrap() / 1000;
            assert!((29 * 86_400..31 * 86_400).contains(&(until - committed)), "{made}");
        }
        let words = ["restore", &snapshots[0], "--kit", kit, "--to", "-"];
        assert!(run(&words).stdout == std::fs::read(&day0).unwrap(), "{name}");
        let verified = run(&["verify", "db@latest", "--kit", kit]);
        assert!(verified.status.success(), "{name}: {}", text(&verified.stderr));
        // Whose clock is right reads it all the same.
        let fresh = served.folder.path().join("fresh");
        let words = ["restore", &snapshots[1], "--kit", kit, "--to", "-"];
        let back = client(&fresh, &words).output().unwrap();
        assert!(back.stdout == std::fs::read(&day1).unwrap(), "{name}");
        // An operator whose clock says that the lock has ended is told that it has not.
        let operator = served.token(None, "operator");
        let enrolled = run(&["--profile", "operator", "enroll", "--token", &operator]);
        assert!(enrolled.status.success(), "{name}: {}", text(&enrolled.stderr));
        let words = ["--profile", "operator", "forget", &snapshots[0], "--namespace", name];
        let refused = run(&words);
        assert_eq!(refused.status.code(), Some(4), "{name}: {}", text(&refused.stderr));
    }
}

#[test]
fn a_token_that_has_ended_is_not_revived_by_a_clients_clock() {
    let Some(library) = faketime_library() else {
        eprintln!("skipped: libfaketime is not installed");
        return;
    };
    let served = Served::start();
    let words = ["token", "--role", "operator", "--ttl", "1s"];
    let output = served.command(&words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let token = text(&output.stdout).trim().to_owned();
    std::thread::sleep(Duration::from_millis(2100));
    let home = served.folder.path().join("late");
    let refused = at(library, -3650, &home, &["enroll", "--token", &token]);
    assert_eq!(refused.status.code(), Some(6), "{}", text(&refused.stderr));
    // And one that lives is not ended by it.
    let token = served.token(None, "operator");
    let done = at(library, 3650, &home, &["enroll", "--token", &token]);
    assert!(done.status.success(), "{}", text(&done.stderr));
}
