//! The programs as people run them: exit codes, messages, files; and a server that is killed under
//! a running backup.

use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::{program, unpack_dumps};

/// A repository served by the real program.
pub struct Served {
    pub folder: TempDir,
    port: u16,
    probes: u16,
    process: Option<Child>,
    /// More lines of its configuration.
    pub config: String,
    /// What the server is started by, such as a program that lies to it about the time.
    pub wrapper: Vec<String>,
}

impl Served {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, probes) = (free_port(), free_port());
        let port_text = port.to_string();
        let init = ["init", "--host", "127.0.0.1", "--port", &port_text, "--json"];
        let (config, wrapper) = (String::new(), Vec::new());
        let mut served = Self { folder, port, probes, process: None, config, wrapper };
        let made = served.command(&init);
        assert!(made.status.success(), "{}", text(&made.stderr));
        served.serve();
        served
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn command(&self, arguments: &[&str]) -> Output {
        self.prepared(arguments).output().unwrap()
    }

    /// A command on the data folder that is not started yet.
    pub fn prepared(&self, arguments: &[&str]) -> Command {
        let (verb, rest) = arguments.split_first().unwrap();
        let mut command = Command::new(program("strongroomd"));
        command.arg(verb);
        if ["principals", "clock", "replica", "feed", "scrub", "gc", "tls"].contains(verb) {
            let (verb, rest) = rest.split_first().unwrap();
            command.arg(verb).args(rest);
        } else {
            command.args(rest);
        }
        command.arg("--data").arg(self.data());
        command
    }

    /// Where clients reach it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn serve(&mut self) {
        let config = self.folder.path().join("config.toml");
        let text = format!("[store]\nreserve = \"1MiB\"\n{}", self.config);
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let server = program("strongroomd").to_str().unwrap().to_owned();
        let mut words = self.wrapper.iter().cloned().chain([server]);
        let process = Command::new(words.next().unwrap())
            .args(words)
            .arg("serve")
            .arg("--data")
            .arg(self.data())
            .arg("--config")
            .arg(config)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--metrics", &format!("127.0.0.1:{}", self.probes)])
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        for _ in 0..6000 {
            if self.probe("/readyz").is_some_and(|answer| answer.contains("200 OK")) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        panic!("server is not ready: {log}");
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub fn probe(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.probes)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub fn signal(&mut self, signal: rustix::process::Signal) -> std::process::ExitStatus {
        let mut process = self.process.take().unwrap();
        let id = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(id, signal).unwrap();
        process.wait().unwrap()
    }

    pub fn token(&self, namespace: Option<&str>, role: &str) -> String {
        let mut arguments = vec!["token", "--role", role];
        if let Some(namespace) = namespace {
            arguments.extend(["--namespace", namespace]);
        }
        let output = self.command(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    pub fn client(&self, home: &str, arguments: &[&str]) -> Output {
        Command::new(program("strongroom"))
            .arg("--home")
            .arg(self.folder.path().join(home))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    pub fn set_up(&self) -> PathBuf {
        let kit = self.folder.path().join("kit");
        let token = self.token(Some("erp"), "backup");
        let kit_text = kit.to_str().unwrap();
        let done = self.client("home", &["setup", "--token", &token, "--kit-folder", kit_text]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert_eq!(kit.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let files = std::fs::read_dir(&kit).unwrap().map(|file| file.unwrap().path());
        let mut kits = files.filter(|path| path.extension().is_some_and(|e| e == "txt"));
        kits.next().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Below those that the system gives to connections and to whoever asks for any: one of these stays
/// free until the server takes it, and again while it is down.
fn free_port() -> u16 {
    loop {
        let random = std::hash::RandomState::new().build_hasher().finish();
        let port = 10_000 + u16::try_from(random % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn from_nothing_to_a_restored_dump_and_a_lock_that_holds() {
    let mut served = Served::start();
    let kit = served.set_up();
    let kit = kit.to_str().unwrap();
    let [day0, day1, _] = unpack_dumps(served.folder.path());
    let first = json(&served.client("home", &["--json", "backup", "erp-db", path(&day0)]));
    let second = json(&served.client("home", &["--json", "backup", "erp-db", path(&day1)]));
    let (first, second) = (&first["snapshot"], &second["snapshot"]);

    // A fresh machine with nothing but the kit.
    let list = json(&served.client("fresh", &["--json", "list", "--kit", kit]));
    assert!(list.to_string().contains(first.as_str().unwrap()), "{list}");
    let restored = served.folder.path().join("restored.sql");
    let name = first.as_str().unwrap();
    let done = served.client("fresh", &["restore", name, "--kit", kit, "--to", path(&restored)]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(std::fs::read(&restored).unwrap() == std::fs::read(&day0).unwrap());
    let latest = served.client("fresh", &["restore", "erp-db@latest", "--kit", kit, "--to", "-"]);
    assert!(latest.stdout == std::fs::read(&day1).unwrap());
    let verified = served.client("fresh", &["verify", name, "--kit", kit]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));

    // The lock.
    let operator = served.token(None, "operator");
    let enrolled =
        served.client("home", &["--profile", "operator", "enroll", "--token", &operator]);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    let second = second.as_str().unwrap();
    let forget = ["--profile", "operator", "forget", second, "--namespace", "erp"];
    let refused = served.client("home", &forget);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("locked until"), "{}", text(&refused.stderr));

    // It all stands after an orderly stop.
    assert!(served.signal(rustix::process::Signal::TERM).success());
    served.serve();
    let refused = served.client("home", &forget);
    assert_eq!(refused.status.code(), Some(4));
    let metrics = served.probe("/metrics").unwrap();
    assert!(metrics.contains("strongroom_last_backup_timestamp_seconds"), "{metrics}");
}

#[test]
fn a_backup_outlives_a_server_that_is_killed_under_it() {
    let mut served = Served::start();
    let kit = served.set_up();
    let [day0, ..] = unpack_dumps(served.folder.path());
    let client = Command::new(program("strongroom"))
        .arg("--home")
        .arg(served.folder.path().join("home"))
        .args(["--json", "backup", "erp-db", path(&day0)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(60));
    served.signal(rustix::process::Signal::KILL);
    served.serve();
    let output = client.wait_with_output().unwrap();
    let summary = json(&output);
    let name = summary["snapshot"].as_str().unwrap().to_owned();
    let kit = kit.to_str().unwrap();
    let back = served.client("fresh", &["restore", &name, "--kit", kit, "--to", "-"]);
    assert!(back.stdout == std::fs::read(&day0).unwrap(), "{}", text(&back.stderr));
}

#[test]
fn a_killed_client_runs_again() {
    let served = Served::start();
    served.set_up();
    let [day0, ..] = unpack_dumps(served.folder.path());
    for delay_ms in [30, 80, 150] {
        let mut client = Command::new(program("strongroom"))
            .arg("--home")
            .arg(served.folder.path().join("home"))
            .args(["backup", "erp-db", path(&day0)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        let _ = client.kill();
        client.wait().unwrap();
    }
    json(&served.client("home", &["--json", "backup", "erp-db", path(&day0)]));
}

#[test]
fn exit_codes_and_messages_say_what_to_do() {
    let mut served = Served::start();
    served.set_up();
    let code = |output: &Output| output.status.code();
    // Usage.
    assert_eq!(code(&served.client("home", &["backup"])), Some(2));
    assert_eq!(code(&served.client("home", &["backup", "BAD LABEL", "/etc/hostname"])), Some(2));
    assert_eq!(code(&served.client("nobody", &["backup", "db", "/etc/hostname"])), Some(2));
    assert_eq!(code(&served.client("home", &["enroll", "--token", "srk1_x"])), Some(2));
    // The dump command.
    let failed = served.client("home", &["backup", "db", "--", "sh", "-c", "exit 3"]);
    assert_eq!(code(&failed), Some(9), "{}", text(&failed.stderr));
    // Wrong role.
    let refused = served.client("home", &["forget", &"0".repeat(64)]);
    assert_eq!(code(&refused), Some(6), "{}", text(&refused.stderr));
    // Revoked.
    let listed = text(&served.command(&["principals", "list", "--json"]).stdout);
    let rows: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let principal = rows["principals"][0]["principal"].as_str().unwrap().to_owned();
    assert!(served.command(&["principals", "revoke", &principal]).status.success());
    let refused = served.client("home", &["backup", "db", "/etc/hostname"]);
    assert_eq!(code(&refused), Some(6), "{}", text(&refused.stderr));
    // A second server on the same folder, and commands without a server.
    let second = Command::new(program("strongroomd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--data"])
        .arg(served.data())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("in use"), "{}", text(&second.stderr));
    assert!(served.signal(rustix::process::Signal::TERM).success());
    let status = served.command(&["status", "--json"]);
    assert!(text(&status.stdout).contains("ledger_size"), "{}", text(&status.stderr));
    let bad = served.command(&["token", "--role", "backup"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("--namespace"), "{}", text(&bad.stderr));
}

#[test]
fn what_a_dump_command_says_cannot_steer_the_terminal_of_who_reads_it() {
    let served = Served::start();
    let kit = served.set_up();
    let says = "echo dump; printf 'first\\nsecond \\033[2J\\r' >&2";
    let done = served.client("home", &["backup", "db", "--tag", "a\nb", "--", "sh", "-c", says]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let kit = kit.to_str().unwrap();
    let shown = served.client("fresh", &["show", "db", "--kit", kit]);
    let shown = text(&shown.stdout);
    assert!(shown.contains("tags         a\\nb\n"), "{shown}");
    assert!(shown.contains("first\nsecond \\u{1b}[2J"), "{shown}");
    assert!(shown.chars().all(|letter| letter == '\n' || !letter.is_control()), "{shown:?}");
    let exact = json(&served.client("fresh", &["--json", "show", "db", "--kit", kit]));
    assert_eq!(exact["sealed_fields"]["tags"][0], "a\nb");
}

#[test]
fn what_the_programs_write_is_for_its_owner_only() {
    let served = Served::start();
    served.set_up();
    let mut seen = 0;
    let mut folders = vec![served.data(), served.folder.path().join("home")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o077;
            assert_eq!(mode, 0, "{}: {mode:o}", path.display());
            seen += 1;
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(seen > 15, "{seen}");
}

#[test]
fn a_part_of_a_dump_costs_its_own_chunks() {
    let served = Served::start();
    let kit = served.set_up();
    let kit = kit.to_str().unwrap();
    let [day0, ..] = unpack_dumps(served.folder.path());
    let bytes = std::fs::read(&day0).unwrap();
    let made = json(&served.client("home", &["--json", "backup", "erp-db", path(&day0)]));
    let part = served.folder.path().join("part");
    let restore = |range: &str| {
        let words = ["--json", "restore", "erp-db", "--kit", kit, "--overwrite", "--range", range];
        served.client("fresh", &[&words[..], &["--to", path(&part)]].concat())
    };
    let end = bytes.len();
    for (from, to) in [(0, 1), (1_000_000, 1_300_000), (end - 70_000, end), (0, end)] {
        let summary = json(&restore(&format!("{from}:{to}")));
        assert!(std::fs::read(&part).unwrap() == bytes[from..to], "{from}:{to}");
        assert_eq!(summary["plaintext_bytes"], to - from);
        let fetched = summary["fetched_sealed_bytes"].as_u64().unwrap();
        let all = made["sealed_bytes"].as_u64().unwrap();
        assert!(to - from == end || fetched < all / 10, "{from}:{to} fetched {fetched} of {all}");
    }
    for range in [format!("0:{}", end + 1), "5:5".into(), "9:1".into(), "x".into()] {
        assert_eq!(restore(&range).status.code(), Some(2), "{range}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
