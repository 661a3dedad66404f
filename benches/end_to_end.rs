//! Question: how fast do client, TLS and server on one machine back up, deduplicate and restore ERP
//! dumps, for how much CPU, memory and disk?
//!
//! Expected on two cores whose `openssl speed` gives 3700 MB/s for ChaCha20-Poly1305, with a disk
//! of 500 MB/s or more and dumps of 2 GB or more: first backup 400 MB/s (zstd takes 3 ns a byte of
//! one core), of incompressible data without compression 450 MB/s, the next day 1.2 GB/s, the same
//! again 1.6 GB/s or 95 % of `cat` where both begin with a cold cache, restore 1.1 GB/s to nowhere
//! and 95 % of `dd conv=fdatasync` to a file; the server writes less than 1.1 times what it
//! receives; client below 128 MB, server below 768 MB.
//!
//! ```text
//! DUMPS=folder cargo bench --bench end_to_end [-- quick]      the folder has day0.sql and day1.sql
//! ```
//!
//! `quick` takes the first 200 MB of each dump, and one run; `RUNS` sets the runs (default 3), and
//! each figure is the median. Repository, profile and restored files stand below the target folder.
//! The dumps are in the page cache when a row starts unless the row says cold; what was written
//! before is on disk (`sync`). A row's bytes and seconds are those of the client process from start
//! to end. MB are decimal. Peak memory is `VmHWM`; the server's is reset before each row. What the
//! server writes is `write_bytes` of its `/proc/PID/io`. A cold file is one whose pages were given
//! back (`posix_fadvise`); the disk, or what is below it, may still know it.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::place::{Dumps, Place};
use harness::process::run_to_end;
use harness::programs::{Client, Server};
use harness::reference::{cat, cool, dd, openssl, warm};
use harness::rows::{Row, machine, medians, publish};
use harness::{Failure, as_f64, has_word, run_count};

const LONG_BYTES: u64 = 8_000_000_000;
const SOURCE: &str = "bench";

fn main() -> Result<(), Failure> {
    let (quick, runs) = (has_word("quick"), run_count()?);
    let place = Place::new("bench-end-to-end")?;
    let dumps = Dumps::find(&place.scratch, quick)?;
    let dense = dumps.incompressible(&place.scratch)?;
    println!("{}", machine());
    println!("dumps: {} and {} bytes; median of {runs}", dumps.bytes[0], dumps.bytes[1]);
    let mut all = Vec::new();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        let mut rows = run_once(&place, &dumps)?;
        rows.push(incompressible(&place, &dense)?);
        let references = plain(&place, &dumps)?;
        add_references(&mut rows, &references);
        rows.extend(references);
        rows.extend(openssl(1).into_iter().chain(openssl(2)));
        all.push(rows);
    }
    let mut rows = medians(&all);
    if !quick {
        rows.extend(long_stream(&place, &dumps)?);
    }
    publish(&place, "end_to_end", runs, &rows)
}

/// One server with one client, in a folder that the next one clears.
fn start(place: &Place, keys: &[&str]) -> Result<(Server, Client, PathBuf), Failure> {
    let folder = place.folder("run")?;
    let server = Server::start(place, &folder)?;
    let client = Client::set_up(place, &server, SOURCE, keys)?;
    Ok((server, client, folder))
}

fn run_once(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let (server, client, folder) = start(place, &[])?;
    let [day0, day1] = &dumps.days;
    let restored = folder.join("restored.sql");
    let backup = |scenario: &str, dump: &Path| {
        warm(dump)?;
        client.backup_row(scenario, &server, SOURCE, dump)
    };
    let restore = |scenario: &str, to: Option<&Path>| {
        client.restore_row(scenario, &server, (SOURCE, dumps.bytes[1]), to)
    };
    let first = backup("first backup", day0)?.at_least(400.0);
    let amplification = written_for_received(&first);
    let mut rows = vec![first, amplification];
    rows.push(backup("next day", day1)?.at_least(1200.0));
    rows.push(backup("same again", day1)?.at_least(1600.0));
    cool(day1)?;
    rows.push(client.backup_row("same again, cold cache", &server, SOURCE, day1)?);
    rows.push(restore("restore to file", Some(&restored))?);
    rows.push(restore("restore to /dev/null", None)?.at_least(1100.0));
    run_to_end(Command::new("cmp").arg(day1).arg(&restored))?;
    Ok(rows)
}

/// What the server had written for each byte of sealed envelopes that it received.
fn written_for_received(backup: &Row) -> Row {
    let (written, stored) = (backup.written_bytes.unwrap_or(0), backup.stored_bytes.unwrap_or(0));
    let times = as_f64(written) / as_f64(stored.max(1));
    Row::figure("written by the server / sealed bytes, first backup", times, "").below(1.1)
}

/// A file that compression makes no smaller, in a namespace without compression.
fn incompressible(place: &Place, dense: &Path) -> Result<Row, Failure> {
    let (server, client, _) = start(place, &["--zstd-level", "0"])?;
    warm(dense)?;
    let row = client.backup_row("first backup, incompressible", &server, SOURCE, dense)?;
    Ok(row.at_least(450.0))
}

/// One dump of 8 GB or more, to see that memory does not follow the size of what is backed up: the
/// two days in turn through standard input, so all of it is cut and hashed, and a quarter is new.
fn long_stream(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let (server, client, _) = start(place, &[])?;
    let turns = LONG_BYTES.div_ceil((dumps.bytes[0] + dumps.bytes[1]).max(1));
    let files: Vec<&PathBuf> = (0..turns).flat_map(|_| &dumps.days).collect();
    let mut feeder = Command::new("cat").args(files).stdout(Stdio::piped()).spawn()?;
    let mut command = client.command("machine");
    let stream = feeder.stdout.take().ok_or("no pipe")?;
    command.args(["backup", SOURCE, "--stdin"]).stdin(stream).stdout(Stdio::piped());
    let (row, json) = client.row("8 GB stream", &server, &mut command)?;
    // The command holds the pipe's end that it was given.
    drop(command);
    feeder.wait()?;
    let backup = row.of_summary(&serde_json::from_str(&json)?)?;
    let of_all = (SOURCE, backup.plaintext_bytes);
    let restore = client.restore_row("8 GB restore to /dev/null", &server, of_all, None)?;
    Ok(vec![backup, restore])
}

/// What moves the same bytes plainly.
fn plain(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let day1 = &dumps.days[1];
    fs::File::open(day1)?.sync_all()?;
    cool(day1)?;
    let cold = cat("cat FILE >/dev/null, cold cache", day1)?;
    warm(day1)?;
    let warm = cat("cat FILE >/dev/null", day1)?;
    let dd = dd("dd conv=fdatasync", day1, dumps.bytes[1], &place.scratch)?;
    Ok(vec![cold, warm, dd])
}

/// Rows beside what bounds them: the same bytes read, or written durably.
fn add_references(rows: &mut [Row], references: &[Row]) {
    for row in rows {
        let (plain, share) = match row.scenario.as_str() {
            "restore to file" => ("dd conv=fdatasync", Some(0.95)),
            "same again, cold cache" => ("cat FILE >/dev/null, cold cache", Some(0.95)),
            "same again" => ("cat FILE >/dev/null", None),
            _ => continue,
        };
        let Some(plain) = references.iter().find(|other| other.scenario == plain) else { continue };
        let beside = row.clone().beside(plain);
        *row = match share {
            Some(share) => beside.at_least(plain.figure * share),
            None => beside,
        };
    }
}
