//! Sets: a dump and the files that belong to it as one snapshot, through the programs as people run
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::program;
use crate::programs::{Served, text};
use crate::trees::make_path_that_is_too_long;

/// A server, a machine that is set up, and a folder of attachments.
struct Site {
    served: Served,
    kit: PathBuf,
    folder: TempDir,
}

impl Site {
    fn start() -> Self {
        let served = Served::start();
        let kit = served.set_up();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("2026")).unwrap();
        fs::write(folder.path().join("2026/invoice.pdf"), vec![7; 300_000]).unwrap();
        fs::write(folder.path().join("note"), b"small").unwrap();
        Self { served, kit, folder }
    }

    fn files(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn run(&self, words: &[&str]) -> Output {
        self.served.client("home", words)
    }

    /// Runs a command that needs the kit; it must succeed.
    fn read(&self, words: &[&str]) -> String {
        let kit = self.kit.to_str().unwrap();
        let output = self.run(&[words, &["--kit", kit]].concat());
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.read(&[words, &["--json"]].concat())).unwrap()
    }

    fn snapshot_count(&self) -> usize {
        self.json(&["list"])["snapshots"].as_array().unwrap().len()
    }
}

fn below(target: &Path, folder: &Path) -> PathBuf {
    target.join(folder.strip_prefix("/").unwrap())
}

#[test]
fn a_dump_and_its_files_are_one_snapshot() {
    let site = Site::start();
    let script = "echo dump of the day; echo careful >&2";
    let words = ["backup", "erp", "--json", "--tag", "nightly", "--part", "db", "--", "sh", "-c"];
    let rest = [script, "--part", "files", site.files(), "--exclude", "note"];
    let made = site.run(&[&words[..], &rest].concat());
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let summary: Value = serde_json::from_slice(&made.stdout).unwrap();
    let part = |number: usize, key: &str| summary["parts"][number][key].clone();
    assert_eq!(summary["parts"].as_array().unwrap().len(), 2);
    assert_eq!((part(0, "name"), part(0, "kind")), ("db".into(), "command".into()));
    assert_eq!((part(0, "plaintext_bytes"), part(0, "file_count")), (16.into(), 1.into()));
    assert_eq!((part(1, "name"), part(1, "kind")), ("files".into(), "files".into()));
    assert_eq!(part(1, "plaintext_bytes"), 300_000);
    assert_eq!(summary["plaintext_bytes"], 300_016);
    assert_eq!(summary["tree"]["excluded_count"], 1);
    assert_eq!(summary["is_complete"], true);

    let id = summary["snapshot"].as_str().unwrap();
    let shown = site.json(&["show", id]);
    let typed: Vec<_> = shown["sealed_fields"]["command"].as_array().unwrap().iter().collect();
    assert_eq!(typed[..6], ["--part", "db", "--", "sh", "-c", script]);
    assert_eq!(shown["sealed_fields"]["paths"], serde_json::json!([site.files()]));
    assert_eq!(shown["sealed_fields"]["standard_error"], "careful\n");
    let listed = site.json(&["list", id]);
    let entries = listed["entries"].as_array().unwrap();
    let row = |path: &str| entries.iter().find(|row| row["path"] == path).unwrap();
    assert_eq!((&row("db")["kind"], &row("db")["mode"]), (&"directory".into(), &0o700.into()));
    assert_eq!(
        (&row("db/dump")["kind"], &row("db/dump")["size_bytes"]),
        (&"file".into(), &16.into())
    );
    let invoice = format!("files{}/2026/invoice.pdf", site.files());
    assert_eq!(row(&invoice)["size_bytes"], 300_000);

    // One part: to standard output, to a file; a file of the other; everything.
    assert_eq!(site.read(&["restore", "erp", "db", "--to", "-"]), "dump of the day\n");
    assert_eq!(site.read(&["restore", "erp", "db", "--to", "-", "--range", "5:7"]), "of");
    let target = tempfile::tempdir().unwrap();
    let to = |name: &str| target.path().join(name);
    let path = |name: &str| to(name).to_str().unwrap().to_owned();
    site.read(&["restore", "erp", "db", "--to", &path("dump.sql")]);
    assert_eq!(fs::read(to("dump.sql")).unwrap(), b"dump of the day\n");
    site.read(&["restore", "erp", &invoice, "--to", &path("invoice.pdf")]);
    assert_eq!(fs::read(to("invoice.pdf")).unwrap(), vec![7; 300_000]);
    site.read(&["restore", "erp", "--to", &path("all")]);
    assert_eq!(fs::read(to("all/db/dump")).unwrap(), b"dump of the day\n");
    let back = below(&to("all/files"), site.folder.path());
    assert_eq!(fs::read(back.join("2026/invoice.pdf")).unwrap(), vec![7; 300_000]);
    assert!(!back.join("note").exists());
    site.read(&["verify", "erp"]);
}

#[test]
fn the_next_day_sends_what_is_new_and_diff_tells_it() {
    let site = Site::start();
    let dump = site.folder.path().join("dump");
    fs::write(&dump, b"x".repeat(1 << 20)).unwrap();
    let run = |day: &str| {
        let script = format!("cat {}; echo {day}", dump.display());
        let words = ["backup", "erp", "--json", "--part", "db", "--", "sh", "-c", &script];
        let made = site.run(&[&words[..], &["--part", "files", site.files()]].concat());
        assert!(made.status.success(), "{}", text(&made.stderr));
        serde_json::from_slice::<Value>(&made.stdout).unwrap()
    };
    let first = run("monday");
    fs::write(site.folder.path().join("2026/new.pdf"), b"new").unwrap();
    let second = run("tuesday");
    let sent = |summary: &Value| summary["sent_chunk_count"].as_u64().unwrap();
    assert!(sent(&second) <= 4, "{} of {}", sent(&second), sent(&first));
    let differing = site.json(&["diff", first["snapshot"].as_str().unwrap(), "erp@latest"]);
    let rows = differing["entries"].as_array().unwrap();
    let change =
        |path: &str| rows.iter().find(|row| row["path"] == path).unwrap()["change"].clone();
    assert_eq!(change("db/dump"), "changed");
    assert_eq!(change(&format!("files{}/2026/new.pdf", site.files())), "added");
    let invoice = format!("files{}/2026/invoice.pdf", site.files());
    assert!(!rows.iter().any(|row| row["path"] == invoice.as_str()));
}

#[test]
fn a_part_that_fails_leaves_nothing() {
    let site = Site::start();
    let files = site.files();
    let missing = format!("{files}/none");
    let bad_last =
        ["--part", "db", "--", "sh", "-c", "echo whole", "--part", "then", "--", "false"];
    let bad_first =
        ["--part", "db", "--", "sh", "-c", "echo half; exit 3", "--part", "files", files];
    let no_program = ["--part", "db", "--", "/no/such/program", "--part", "files", files];
    let no_path = ["--part", "db", "--", "echo", "whole", "--part", "files", &missing];
    let no_order = ["--part", "files", files, "--part", "db", "--", "echo", "whole"];
    for (parts, code, word) in [
        (&bad_first[..], 9, "exited with code 3"),
        (&bad_last, 9, "exited with code 1"),
        (&no_program, 9, "cannot run /no/such/program"),
        (&no_path, 1, "none"),
        (&no_order, 2, "must come after it in the alphabet"),
    ] {
        let output = site.run(&[&["backup", "erp"], parts].concat());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{parts:?}: {told}");
        assert!(told.contains(word), "{parts:?}: {told}");
    }
    assert_eq!(site.snapshot_count(), 0);
}

#[test]
fn files_that_cannot_be_read_make_a_set_incomplete() {
    let site = Site::start();
    make_path_that_is_too_long(site.folder.path());
    let words =
        ["backup", "erp", "--json", "--part", "db", "--", "echo", "dump", "--part", "files"];
    let made = site.run(&[&words[..], &[site.files()]].concat());
    assert_eq!(made.status.code(), Some(3), "{}", text(&made.stderr));
    let summary: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(summary["tree"]["unreadable_count"], 1);
    assert_eq!(site.read(&["restore", "erp", "db", "--to", "-"]), "dump\n");
    assert_eq!(site.json(&["list"])["snapshots"][0]["is_complete"], false);
}

#[test]
fn a_signal_ends_the_command_and_removes_its_folder() {
    let site = Site::start();
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_str().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut backup = Command::new(program("strongroom"))
            .arg("--home")
            .arg(site.served.folder.path().join("home"))
            .args(["backup", "erp", "--part", "db", "--folder-command", "--scratch", place, "--"])
            .args(["sh", "-c", "echo secret > {}/toc.dat; sleep 1000"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let is_filled = || {
            let folders = fs::read_dir(scratch.path()).unwrap().flatten();
            folders.map(|entry| entry.path().join("toc.dat")).any(|path| path.exists())
        };
        while !is_filled() {
            assert!(backup.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        kill_process(Pid::from_child(&backup), signal).unwrap();
        assert_eq!(backup.wait().unwrap().code(), Some(7), "interrupted: run it again");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
    assert_eq!(site.snapshot_count(), 0);
}

/// What is killed at once cannot tidy up: the next run does.
#[test]
fn the_next_run_removes_what_a_killed_one_left() {
    let site = Site::start();
    let scratch = tempfile::tempdir().unwrap();
    let left = scratch.path().join(".strongroom-dump-killed");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("toc.dat"), b"secret").unwrap();
    let place = scratch.path().to_str().unwrap();
    let words = ["backup", "erp", "--part", "db", "--folder-command", "--scratch", place, "--"];
    let made = site.run(&[&words[..], &["sh", "-c", "echo toc > {}/toc.dat"]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stderr).contains("removed what a run left"), "{}", text(&made.stderr));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    // One file that a command left in a folder is a folder with a file in it.
    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("back");
    site.read(&["restore", "erp", "db", "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read(to.join("db/toc.dat")).unwrap(), b"toc\n");
}
