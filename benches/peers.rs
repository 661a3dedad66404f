//! Question: what do peers do with the same dumps on the same machine, and how much do they store?
//!
//! Expected: their chunks are larger (1 MiB in the middle, where ours have 64 KiB), so the next day
//! stores four times as much or more; they hash with SHA-256 or BLAKE2 and compress more slowly, so
//! a first backup runs at a third to a half of our rate.
//!
//! ```text
//! DUMPS=folder cargo bench --bench peers [-- quick]       the folder has day0.sql and day1.sql
//! ```
//!
//! Peers that are found on the path: restic, borg (with its own chunks, and with chunks of 64 KiB),
//! rustic, bupstash. All of them write to a repository in a local folder, which spares them the
//! network that ours has, and encrypt. Each reads the dump from standard input, so that none skips
//! a file whose times did not change. Scenarios as in `end_to_end.rs`; what a peer stored is how
//! much its repository grew. They do not sync what they restore, ours does. Levels are zstd 1 where
//! a peer has levels. `RUNS` sets the runs (default 3); borg with small chunks, which is here for
//! what it stores, gets one.

mod harness;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::place::{Dumps, Place, bytes_below};
use harness::process::run_to_end;
use harness::reference::{reference, warm};
use harness::rows::{Row, machine, medians, publish};
use harness::{Failure, has_word, run_count};

/// A program that makes backups, and how it is told to.
struct Peer {
    name: &'static str,
    program: &'static str,
    make: fn(&At<'_>, &mut Command),
    back_up: fn(&At<'_>, &mut Command),
    /// Writes the dump to standard output.
    print: fn(&At<'_>, &mut Command),
    /// Writes `dump.sql` in the folder [`At::restored`]; nothing if it prints there, too.
    restore: Option<fn(&At<'_>, &mut Command)>,
    /// It is here for what it stores, which is the same each time.
    once: bool,
}

/// Where a peer works.
struct At<'a> {
    folder: &'a Path,
    /// Number of the backup that is made, or that was made last.
    number: usize,
}

impl At<'_> {
    fn repository(&self) -> PathBuf {
        self.folder.join("repository")
    }

    fn restored(&self) -> PathBuf {
        self.folder.join("restored")
    }

    /// In borg's notation.
    fn archive(&self) -> String {
        format!("{}::{}", self.repository().display(), self.number)
    }
}

const PEERS: [Peer; 5] = [
    Peer {
        name: "restic",
        program: "restic",
        make: |at, command| {
            restic(at, command).arg("init");
        },
        back_up: |at, command| {
            restic(at, command).args(["backup", "--stdin", "--stdin-filename", "dump.sql"]);
        },
        print: |at, command| {
            restic(at, command).args(["dump", "latest", "/dump.sql"]);
        },
        restore: Some(|at, command| {
            restic(at, command).args(["restore", "latest", "--target"]).arg(at.restored());
        }),
        once: false,
    },
    Peer {
        name: "borg",
        program: "borg",
        make: borg_make,
        back_up: |at, command| {
            borg(at, command).args(["create", "--compression", "zstd,1"]);
            command.arg(at.archive()).arg("-");
        },
        print: borg_print,
        restore: None,
        once: false,
    },
    Peer {
        name: "borg, chunks of 64 KiB",
        program: "borg",
        make: borg_make,
        back_up: |at, command| {
            borg(at, command).args(["create", "--compression", "zstd,1"]);
            command.args(["--chunker-params", "buzhash,14,18,16,4095"]);
            command.arg(at.archive()).arg("-");
        },
        print: borg_print,
        restore: None,
        once: true,
    },
    Peer {
        name: "rustic",
        program: "rustic",
        make: |at, command| {
            rustic(at, command).args(["init", "--set-compression", "1"]);
        },
        back_up: |at, command| {
            rustic(at, command).args(["backup", "--stdin-filename", "dump.sql", "-"]);
        },
        print: |at, command| {
            rustic(at, command).args(["dump", "latest:dump.sql"]);
        },
        restore: Some(|at, command| {
            rustic(at, command).args(["restore", "latest"]).arg(at.restored());
        }),
        once: false,
    },
    Peer {
        name: "bupstash",
        program: "bupstash",
        make: |at, command| {
            bupstash(at, command).arg("init");
        },
        back_up: |at, command| {
            bupstash(at, command).args(["put", "--compression", "zstd:1"]);
            command.arg(format!("number={}", at.number)).arg("-");
        },
        print: |at, command| {
            bupstash(at, command).args(["get", &format!("number={}", at.number)]);
        },
        restore: None,
        once: false,
    },
];

fn restic<'c>(at: &At<'_>, command: &'c mut Command) -> &'c mut Command {
    command.env("RESTIC_PASSWORD", "bench").arg("--quiet").arg("--repo").arg(at.repository());
    command.arg("--cache-dir").arg(at.folder.join("cache"))
}

fn borg<'c>(at: &At<'_>, command: &'c mut Command) -> &'c mut Command {
    command.env("BORG_PASSPHRASE", "bench").env("BORG_BASE_DIR", at.folder.join("base"))
}

fn borg_make(at: &At<'_>, command: &mut Command) {
    borg(at, command).args(["init", "--encryption", "repokey-blake2"]).arg(at.repository());
}

fn borg_print(at: &At<'_>, command: &mut Command) {
    borg(at, command).args(["extract", "--stdout"]).arg(at.archive());
}

fn rustic<'c>(at: &At<'_>, command: &'c mut Command) -> &'c mut Command {
    command.env("RUSTIC_PASSWORD", "bench").arg("--repository").arg(at.repository());
    command.arg("--cache-dir").arg(at.folder.join("cache")).args(["--log-level", "error"])
}

fn bupstash<'c>(at: &At<'_>, command: &'c mut Command) -> &'c mut Command {
    command.env("BUPSTASH_REPOSITORY", at.repository()).env("HOME", at.folder);
    command.env("BUPSTASH_KEY", at.folder.join("key"))
}

fn main() -> Result<(), Failure> {
    let (quick, runs) = (has_word("quick"), run_count()?);
    let place = Place::new("bench-peers")?;
    let dumps = Dumps::find(&place.scratch, quick)?;
    println!("{}", machine());
    println!("dumps: {} and {} bytes; median of {runs}", dumps.bytes[0], dumps.bytes[1]);
    let mut rows = Vec::new();
    for peer in PEERS {
        // Each of them knows the option, and says its version.
        let Ok(version) = run_to_end(Command::new(peer.program).arg("--version"))
            .or_else(|_| run_to_end(Command::new(peer.program).arg("version")))
        else {
            println!("{}: not found", peer.name);
            continue;
        };
        println!("{}: {}", peer.name, version.trim());
        let run = |_| run_once(&peer, &place, &dumps);
        let runs = if peer.once { 1 } else { runs };
        match (0..runs).map(run).collect::<Result<Vec<_>, Failure>>() {
            Ok(all) => rows.extend(medians(&all)),
            // Another version may want other words; that is no reason to measure nothing else.
            Err(failure) => println!("{}: left out: {failure}", peer.name),
        }
    }
    publish(&place, "peers", runs, &rows)
}

fn run_once(peer: &Peer, place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let folder = place.folder("peer")?;
    let mut at = At { folder: &folder, number: 0 };
    if peer.program == "bupstash" {
        run_to_end(Command::new("bupstash").arg("new-key").arg("-o").arg(folder.join("key")))?;
    }
    let command = |at: &At<'_>, words: fn(&At<'_>, &mut Command)| {
        let mut command = Command::new(peer.program);
        words(at, command.stdin(Stdio::null()).stdout(Stdio::null()));
        command
    };
    run_to_end(&mut command(&at, peer.make))?;
    let mut rows = Vec::new();
    let mut stored = bytes_below(&at.repository())?;
    for (scenario, day) in [("first backup", 0), ("next day", 1), ("same again", 1)] {
        at.number += 1;
        warm(&dumps.days[day])?;
        let mut backup = command(&at, peer.back_up);
        backup.stdin(File::open(&dumps.days[day])?);
        let name = format!("{} {scenario}", peer.name);
        let row = reference(&name, dumps.bytes[day], &mut backup)?;
        let now = bytes_below(&at.repository())?;
        rows.push(Row { stored_bytes: Some(now.saturating_sub(stored)), ..row });
        stored = now;
    }
    fs::create_dir_all(at.restored())?;
    let restored = at.restored().join("dump.sql");
    let mut restore = command(&at, peer.restore.unwrap_or(peer.print));
    if peer.restore.is_none() {
        restore.stdout(File::create(&restored)?);
    }
    let name = |to: &str| format!("{} restore to {to}", peer.name);
    rows.push(reference(&name("file"), dumps.bytes[1], &mut restore)?);
    rows.push(reference(&name("/dev/null"), dumps.bytes[1], &mut command(&at, peer.print))?);
    run_to_end(Command::new("cmp").arg(&dumps.days[1]).arg(&restored))?;
    fs::remove_dir_all(&folder)?;
    Ok(rows)
}
