//! Question: how does throughput follow cores, clients, connections of a replica, the size of a
//! dump, and the size of chunks; and what limits each curve?
//!
//! Expected:
//! * cores: a first backup is work for all cores, so two hyperthreads of one core make 1.3 to 1.6
//!   times what one makes, and never more than that core's units allow;
//! * clients at once: the cores are busy with one, so the total stays; what falls is each share;
//! * connections of a replica at 50 ms: one has as many bytes under way as a batch and its answer,
//!   so the rate grows with connections until the line or the cores are full;
//! * size of a dump: no state grows with it but index and cache, so the rate stays from 1 GB on;
//!   below, start, handshake and commit show;
//! * average chunk: small chunks cost look-ups, headers and ratio; large ones only cost the next
//!   day, of which each change makes a whole chunk new.
//!
//! Size of the repository: `cargo bench --bench index -- 100000`, and so on to 100000000.
//!
//! ```text
//! DUMPS=folder cargo bench --bench scaling [-- quick]     the folder has day0.sql and day1.sql
//! ```
//!
//! One run a point (`RUNS`), on 1 GB of the first day (`quick`: 100 MB). Longer dumps than there
//! are come from this program: each further copy has all its digits turned by one, so that it is
//! new and compresses alike; that costs the cores some tenths of a ns a byte.

mod harness;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::place::{Dumps, Place, copy_part};
use harness::process::run_to_end;
use harness::programs::{Client, Server};
use harness::reference::warm;
use harness::relay::Relay;
use harness::rows::{Row, machine, medians, publish};
use harness::{Failure, as_f64, has_word};

const PART_BYTES: u64 = 1_000_000_000;
const QUICK_PART_BYTES: u64 = 100_000_000;
const PIECE_BYTES: usize = 1 << 20;
const LINE_BYTES_PER_SECOND: u64 = 125_000_000;
const ONE_WAY: Duration = Duration::from_millis(25);

/// What all curves are made of.
struct Bench {
    place: Place,
    dumps: Dumps,
    /// The start of each day.
    parts: [PathBuf; 2],
    part_bytes: u64,
}

fn main() -> Result<(), Failure> {
    let quick = has_word("quick");
    let runs = std::env::var("RUNS").map_or(Ok(1), |text| text.parse::<usize>())?.max(1);
    let place = Place::new("bench-scaling")?;
    let dumps = Dumps::find(&place.scratch, false)?;
    let most = if quick { QUICK_PART_BYTES } else { PART_BYTES };
    let part_bytes = most.min(dumps.bytes[0]);
    let parts = [place.scratch.join("part0.sql"), place.scratch.join("part1.sql")];
    for (day, part) in dumps.days.iter().zip(&parts) {
        copy_part(day, 0, part_bytes, part)?;
    }
    println!("{}\nparts of {part_bytes} bytes; median of {runs}", machine());
    let bench = Bench { place, dumps, parts, part_bytes };
    let mut all = Vec::new();
    for _ in 0..runs {
        let mut rows = bench.cores()?;
        rows.extend(bench.clients()?);
        rows.extend(bench.connections()?);
        rows.extend(bench.chunk_sizes()?);
        rows.extend(bench.dump_sizes(quick)?);
        all.push(rows);
    }
    publish(&bench.place, "scaling", runs, &medians(&all))
}

/// Binds a process with all its threads to cores.
fn bind(pid: u32, cores: &str) -> Result<(), Failure> {
    let pid = pid.to_string();
    let words = ["--all-tasks", "--cpu-list", "--pid", cores, &pid];
    run_to_end(Command::new("taskset").args(words)).map(drop)
}

impl Bench {
    fn start(&self, keys: &[&str]) -> Result<(Server, Client), Failure> {
        let server = Server::start(&self.place, &self.place.folder("run")?)?;
        let client = Client::set_up(&self.place, &server, "bench", keys)?;
        warm(&self.parts[0])?;
        Ok((server, client))
    }

    /// Everything on one core, then on two; what is started by a bound process is bound, too.
    fn cores(&self) -> Result<Vec<Row>, Failure> {
        let (mut rows, own) = (Vec::new(), std::process::id());
        for (count, cores) in [(1, "0"), (2, "0,1")] {
            bind(own, cores)?;
            let (server, client) = self.start(&[])?;
            for scenario in ["first backup", "same again"] {
                let name = format!("cores {count}: {scenario}");
                rows.push(client.backup_row(&name, &server, "day", &self.parts[0])?);
            }
            let name = format!("cores {count}: restore to /dev/null");
            rows.push(client.restore_row(&name, &server, ("day", self.part_bytes), None)?);
        }
        let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        bind(own, &format!("0-{}", all.max(2) - 1))?;
        Ok(rows)
    }

    /// Several clients share a first backup among them.
    fn clients(&self) -> Result<Vec<Row>, Failure> {
        [1u64, 2, 4, 8, 16].into_iter().map(|count| self.clients_at_once(count)).collect()
    }

    fn clients_at_once(&self, count: u64) -> Result<Row, Failure> {
        let (server, _) = self.start(&[])?;
        let (mut clients, bytes) = (Vec::new(), self.part_bytes / count);
        for number in 0..count {
            let client = Client::set_up(&self.place, &server, &format!("erp-{number}"), &[])?;
            let file = client.home.join("part");
            copy_part(&self.parts[0], number * bytes, bytes, &file)?;
            clients.push((client, file));
        }
        run_to_end(&mut Command::new("sync"))?;
        let (began, mut running) = (Instant::now(), Vec::new());
        for (client, file) in &clients {
            running.push(client.backup_of("day", file).stdout(Stdio::null()).spawn()?);
        }
        for mut backup in running {
            if !backup.wait()?.success() {
                return Err("a backup failed".into());
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let scenario = format!("clients at once {count}: first backup, total");
        Ok(Row { scenario, seconds, ..Row::default() }.rate_of(bytes * count))
    }

    /// A replica's first day over a line of 1 Gbit/s and 50 ms.
    fn connections(&self) -> Result<Vec<Row>, Failure> {
        let (primary, client) = self.start(&[])?;
        let summary = client.backup("day", &self.parts[0])?;
        let sealed = summary["sent_sealed_bytes"].as_u64().ok_or("no sent_sealed_bytes")?;
        let mut rows = Vec::new();
        for count in [1, 2, 4, 8] {
            let folder = self.place.folder("replica")?;
            let config = format!("[replica]\nconnections = {count}\n");
            let replica = Server::start_with(&self.place, &folder, &config)?;
            let relay = Relay::to(primary.address)?;
            relay.delay(ONE_WAY);
            relay.rate(LINE_BYTES_PER_SECOND);
            let began = Instant::now();
            replica.follow(&primary, relay.address)?;
            replica.wait_for(&primary)?;
            let seconds = began.elapsed().as_secs_f64();
            let scenario = format!("connections {count}: replica at 1 Gbit/s and 50 ms");
            rows.push(Row { scenario, seconds, ..Row::default() }.rate_of(sealed));
        }
        Ok(rows)
    }

    /// Two days with chunks of other sizes.
    fn chunk_sizes(&self) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        for kib in ["4", "16", "64", "256", "1024"] {
            let (server, client) = self.start(&["--chunk-kib", kib])?;
            for (scenario, part) in ["first backup", "next day"].into_iter().zip(&self.parts) {
                warm(part)?;
                let name = format!("average chunk {kib} KiB: {scenario}");
                rows.push(client.backup_row(&name, &server, "day", part)?);
            }
        }
        Ok(rows)
    }

    /// First backups through standard input.
    fn dump_sizes(&self, quick: bool) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        for shift in 0..7 {
            let bytes = 250_000_000u64 << shift;
            if quick && bytes > QUICK_PART_BYTES << 2 {
                break;
            }
            let (server, client) = self.start(&[])?;
            let mut command = client.command("machine");
            let (stream, feed) = std::io::pipe()?;
            command.args(["backup", "day", "--stdin"]).stdin(stream).stdout(Stdio::piped());
            let name = format!("dump of {} GB: first backup", as_f64(bytes) / 1e9);
            let day = &self.dumps.days[0];
            let feeding = std::thread::scope(|scope| {
                let feeder = scope.spawn(|| turned(day, bytes, feed).map_err(|e| e.to_string()));
                let row = client.row(&name, &server, &mut command);
                // The command holds the pipe's end that it was given.
                drop(command);
                feeder.join().map_err(|_| "feeder panicked")??;
                row
            });
            let (row, json) = feeding?;
            rows.push(row.of_summary(&serde_json::from_str(&json)?)?);
        }
        Ok(rows)
    }
}

/// Writes so many bytes: copies of a dump, each with its digits turned once more.
fn turned(day: &Path, bytes: u64, mut to: std::io::PipeWriter) -> Result<(), Failure> {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut left, mut turn) = (bytes, 0);
    while left > 0 {
        let mut file = File::open(day)?.take(left);
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                break;
            }
            for byte in &mut piece[..count] {
                let digit = byte.wrapping_sub(b'0');
                let sum = digit.wrapping_add(turn);
                let turned = if sum >= 10 { sum.wrapping_sub(10) } else { sum };
                *byte = if digit < 10 { turned.wrapping_add(b'0') } else { *byte };
            }
            to.write_all(&piece[..count])?;
            left -= count as u64;
        }
        turn = (turn + 1) % 10;
    }
    Ok(())
}
