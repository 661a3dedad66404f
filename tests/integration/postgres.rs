//! A live PostgreSQL database and its attachments as a set, dumped in parallel by the real
//! `pg_dump` and brought back by the real `pg_restore`. Where PostgreSQL is not installed the test
//! says so and ends.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::harness::unpack_dumps;
use crate::programs::{Served, text};

/// The dumps of the tests are of this version.
const VERSION_MIN: u32 = 15;
const READY_TRIES: u32 = 600;

/// A database server of its own, on a socket in its folder.
struct Postgres {
    programs: PathBuf,
    folder: TempDir,
    process: Child,
}

impl Postgres {
    /// Nothing where no PostgreSQL of the dumps' version is installed.
    fn start() -> Option<Self> {
        let programs = newest_programs()?;
        let folder = tempfile::tempdir().unwrap();
        let owner = owner();
        if let Some((user, group)) = owner {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let as_owner = |name: &str| {
            let mut command = Command::new(programs.join(name));
            command.current_dir(folder.path()).env("HOME", folder.path());
            if let Some((user, group)) = owner {
                command.uid(user).gid(group);
            }
            command
        };
        let data = folder.path().join("data");
        let init = ["-U", "erp", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N", "-D"];
        let made = as_owner("initdb").args(init).arg(&data).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let sockets = format!("unix_socket_directories={}", folder.path().display());
        let process = as_owner("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", &sockets, "-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let postgres = Self { programs: programs.clone(), folder, process };
        for _ in 0..READY_TRIES {
            let asked = postgres.program("pg_isready").arg("-q").status().unwrap();
            if asked.success() {
                return Some(postgres);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{}", fs::read_to_string(postgres.folder.path().join("log")).unwrap());
    }

    /// A program that talks to the server as the database's owner.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.env("PGHOST", self.folder.path()).env("PGUSER", "erp");
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.program(name).args(arguments).output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn load(&self, database: &str, dump: &Path) {
        self.run("createdb", &[database]);
        let plain = self.folder.path().join("load.sql");
        fs::write(&plain, without_keys(&fs::read_to_string(dump).unwrap())).unwrap();
        let psql = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-d", database, "-f"];
        self.run("psql", &[&psql[..], &[plain.to_str().unwrap()]].concat());
    }

    fn plain_dump(&self, database: &str) -> String {
        without_keys(&self.run("pg_dump", &["-Fp", database]))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: what is in it is not needed any more.
        let _ = kill_process(Pid::from_child(&self.process), Signal::QUIT);
        let _ = self.process.wait();
    }
}

/// The folder with the programs of the newest version that is not too old.
fn newest_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let numbers = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let newest = numbers.filter(|number| *number >= VERSION_MIN).max()?;
    let programs = PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"));
    programs.join("initdb").exists().then_some(programs)
}

/// PostgreSQL refuses to run as root: user and group to become there.
fn owner() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let table = fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let mut fields =
            table.lines().find(|line| line.split(':').next() == Some(name))?.split(':');
        Some((fields.nth(2)?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    of("postgres").or_else(|| of("nobody"))
}

/// Newer minor versions write a random key into each dump, which older programs do not know.
fn without_keys(dump: &str) -> String {
    let is_kept =
        |line: &&str| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict ");
    dump.split_inclusive('\n').filter(is_kept).collect()
}

/// A backup of a set, run as somebody who may ask the database.
fn back_up(served: &Served, postgres: &Postgres, words: &[&str]) {
    let mut command = Command::new(crate::harness::program("strongroom"));
    let made = command
        .arg("--home")
        .arg(served.folder.path().join("home"))
        .args(words)
        .env("PGHOST", postgres.folder.path())
        .env("PGUSER", "erp")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(made.status.success(), "{words:?}: {}", text(&made.stderr));
}

#[test]
fn a_parallel_pg_dump_and_its_attachments_come_back() {
    let Some(postgres) = Postgres::start() else {
        eprintln!("skipped: no PostgreSQL {VERSION_MIN} or newer below /usr/lib/postgresql");
        return;
    };
    let served = Served::start();
    let kit = served.set_up();
    let kit = kit.to_str().unwrap();
    let work = tempfile::tempdir().unwrap();
    let [day, ..] = unpack_dumps(work.path());
    postgres.load("erp", &day);
    let wanted = postgres.plain_dump("erp");
    assert!(wanted.contains("COPY public.sale_line"), "a real database");
    let files = work.path().join("attachments");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("invoice.pdf"), vec![7; 100_000]).unwrap();
    let scratch = work.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let (files, scratch_text) = (files.to_str().unwrap(), scratch.to_str().unwrap());
    let dump = postgres.programs.join("pg_dump");
    let dump = dump.to_str().unwrap();

    // The directory format, written by four processes at once and read by two.
    let words = ["backup", "erp", "--part", "db", "--folder-command", "--scratch", scratch_text];
    let rest = ["--", dump, "-Fd", "-Z0", "-j4", "-f", "{}", "erp", "--part", "files", files];
    back_up(&served, &postgres, &[&words[..], &rest].concat());
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    let back = work.path().join("back");
    let to = ["restore", "erp", "--kit", kit, "--to", back.to_str().unwrap()];
    let restored = served.client("home", &to);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    postgres.run("createdb", &["again"]);
    let folder = back.join("db");
    postgres.run("pg_restore", &["-j2", "-e", "-d", "again", folder.to_str().unwrap()]);
    assert!(postgres.plain_dump("again") == wanted, "the database differs");
    let attachment = back.join("files").join(Path::new(files).strip_prefix("/").unwrap());
    assert_eq!(fs::read(attachment.join("invoice.pdf")).unwrap(), vec![7; 100_000]);

    // The custom format, by a pipe.
    let words = ["backup", "erp", "--part", "db", "--", dump, "-Fc", "-Z0", "erp"];
    back_up(&served, &postgres, &[&words[..], &["--part", "files", files]].concat());
    postgres.run("createdb", &["piped"]);
    let archive = work.path().join("erp.dump");
    let pipe = served.client("home", &["restore", "erp", "db", "--kit", kit, "--to", "-"]);
    assert!(pipe.status.success(), "{}", text(&pipe.stderr));
    fs::write(&archive, &pipe.stdout).unwrap();
    let input = fs::File::open(&archive).unwrap();
    let read = postgres.program("pg_restore").args(["-e", "-d", "piped"]).stdin(input).output();
    let read = read.unwrap();
    assert!(read.status.success(), "{}", text(&read.stderr));
    assert!(postgres.plain_dump("piped") == wanted, "the database differs");
}
