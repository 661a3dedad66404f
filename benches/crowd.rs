//! Question: what do clients get that come at once, and what does a small backup wait for beside a
//! large one?
//!
//! Expected on two cores: the cores are the limit, so 16 clients get together 90 % or more of what
//! the best single one gets; what they lose is switching between processes and caches. Nobody is
//! preferred, so the slowest gets half of the mean or more. A log segment of 16 MB costs 16 MB of a
//! first backup's CPU time (60 to 100 ms of one core, two threads), one sync and some round trips;
//! beside a full backup that keeps both cores busy it gets half of them. Wanted: 40 ms in the
//! middle, 150 ms in 99 of 100.
//!
//! ```text
//! DUMPS=folder cargo bench --bench crowd [-- quick]       the folder has day0.sql and day1.sql
//! ```
//!
//! Each of the 16 has a namespace of its own and a sixteenth of the first day; the single client
//! has all of it. All of them are processes on this machine. A share is a client's own rate over
//! the mean of the rates; it would be 0.3 if they were served one after the other. A segment is 16
//! MB of the first day, never the same twice; its time is that of the process, as a database's
//! archive command waits for it. Beside it, full backups of the first day follow one another, each
//! into a new namespace. `quick` takes the first 200 MB, and as many segments as these have.

mod harness;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::place::{Dumps, Place, copy_part};
use harness::process::{Measured, measure, run_to_end};
use harness::programs::{Client, Server};
use harness::reference::warm;
use harness::rows::{Row, machine, medians, percentile, publish};
use harness::{Failure, as_f64, has_word, run_count};
use serde_json::Value;

const CLIENTS: u64 = 16;
const SEGMENT_BYTES: u64 = 16 << 20;
const SEGMENTS: u64 = 120;
/// Between two segments, as a database that writes 60 MB of log a second.
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> Result<(), Failure> {
    let (quick, runs) = (has_word("quick"), run_count()?);
    let place = Place::new("bench-crowd")?;
    let dumps = Dumps::find(&place.scratch, quick)?;
    let parts = dumps.parts(CLIENTS, &place.scratch)?;
    println!("{}", machine());
    println!("{CLIENTS} clients, {} bytes in all; median of {runs}", dumps.bytes[0]);
    let mut all = Vec::new();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        let single = single(&place, &dumps)?;
        let mut rows = at_once(&place, &parts, &single)?;
        rows.push(single);
        all.push(rows);
    }
    let mut rows = medians(&all);
    rows.extend(segments(&place, &dumps)?);
    publish(&place, "crowd", runs, &rows)
}

/// All of it by one client.
fn single(place: &Place, dumps: &Dumps) -> Result<Row, Failure> {
    let server = Server::start(place, &place.folder("run")?)?;
    let client = Client::set_up(place, &server, "single", &[])?;
    warm(&dumps.days[0])?;
    client.backup_row("1 client", &server, "day", &dumps.days[0])
}

fn at_once(place: &Place, parts: &[PathBuf], single: &Row) -> Result<Vec<Row>, Failure> {
    let server = Server::start(place, &place.folder("run")?)?;
    let clients: Vec<Client> = (0..parts.len())
        .map(|number| Client::set_up(place, &server, &format!("erp-{number}"), &[]))
        .collect::<Result<_, _>>()?;
    for part in parts {
        warm(part)?;
    }
    run_to_end(&mut std::process::Command::new("sync"))?;
    server.reset_peak();
    let (before, began) = (server.usage()?, Instant::now());
    let measured = std::thread::scope(|scope| {
        let start = |(client, part): (&Client, &PathBuf)| {
            let mut backup = client.backup_of("day", part);
            backup.stdout(Stdio::piped()).stderr(Stdio::null());
            scope.spawn(move || measure(&mut backup).map_err(|failure| failure.to_string()))
        };
        let threads: Vec<_> = clients.iter().zip(parts).map(start).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, Result<Measured, String>>| {
            thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        threads.into_iter().map(end).collect::<Result<Vec<Measured>, String>>()
    })?;
    let (seconds, after) = (began.elapsed().as_secs_f64(), server.usage()?);
    let mut rates = Vec::new();
    let (mut bytes, mut cpu_seconds, mut peak_bytes) = (0, 0.0, 0);
    for one in &measured {
        let row = Row { seconds: one.seconds, ..Row::default() };
        let row = row.of_summary(&serde_json::from_str(&one.output)?)?;
        rates.push(row.figure);
        bytes += row.plaintext_bytes;
        cpu_seconds += one.usage.cpu_seconds;
        peak_bytes = peak_bytes.max(one.usage.peak_bytes);
    }
    let total = Row {
        scenario: "16 clients at once".into(),
        seconds,
        client_cpu_seconds: cpu_seconds,
        server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        client_peak_bytes: peak_bytes,
        server_peak_bytes: after.peak_bytes,
        ..Row::default()
    };
    let slowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let fair = rates.iter().sum::<f64>() / as_f64(CLIENTS);
    Ok(vec![
        total.rate_of(bytes).at_least(0.9 * single.figure).beside(single),
        Row::figure("slowest of 16 / mean of 16", slowest / fair, "").at_least(0.5),
    ])
}

/// Log segments, one after the other, while full backups run.
fn segments(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let folder = place.folder("run")?;
    let server = Server::start(place, &folder)?;
    let client = Client::set_up(place, &server, "log", &[])?;
    let count = SEGMENTS.min(dumps.bytes[0] / SEGMENT_BYTES).max(1);
    let alone = series(&client, dumps, 0..count / 6 + 1)?;
    let (is_busy, is_done) = (AtomicBool::new(false), AtomicBool::new(false));
    let beside = std::thread::scope(|scope| {
        let full = scope.spawn(|| {
            full_backups(place, &server, dumps, &is_busy, &is_done).map_err(|e| e.to_string())
        });
        while !is_busy.load(Ordering::SeqCst) && !full.is_finished() {
            std::thread::sleep(PAUSE);
        }
        let client = Client::set_up(place, &server, "log-beside", &[]);
        let beside = client.and_then(|client| series(&client, dumps, 0..count));
        is_done.store(true, Ordering::SeqCst);
        match full.join() {
            Ok(Ok(())) => beside,
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err("the full backups panicked".into()),
        }
    })?;
    let row = |name: &str, times: &[f64], share: f64| {
        let spread = [percentile(times, 0.0), percentile(times, 1.0)];
        let row = Row::figure(name, percentile(times, share), "ms");
        Row { spread: Some(spread), ..row }
    };
    println!("{} log segments beside full backups, {} alone", beside.len(), alone.len());
    let alone = row("log segment of 16 MB alone, p50", &alone, 0.5);
    Ok(vec![
        row("log segment of 16 MB beside a full backup, p50", &beside, 0.5)
            .below(40.0)
            .beside(&alone),
        row("log segment of 16 MB beside a full backup, p99", &beside, 0.99).below(150.0),
        alone,
    ])
}

/// Milliseconds that each of these segments took, sorted.
fn series(
    client: &Client,
    dumps: &Dumps,
    numbers: std::ops::Range<u64>,
) -> Result<Vec<f64>, Failure> {
    let mut times = Vec::new();
    let file = client.home.join("segment");
    for number in numbers {
        copy_part(&dumps.days[0], number * SEGMENT_BYTES, SEGMENT_BYTES, &file)?;
        std::thread::sleep(PAUSE);
        let mut backup = client.backup_of("log", &file);
        let began = Instant::now();
        let output = run_to_end(&mut backup)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        let summary: Value = serde_json::from_str(&output)?;
        let is_locked = summary["locked_until_seconds"].as_u64().is_some_and(|until| until > 0);
        if !is_locked {
            return Err(format!("not locked: {summary}").into());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// One after the other, each into a namespace that knows nothing yet, until it is enough.
fn full_backups(
    place: &Place,
    server: &Server,
    dumps: &Dumps,
    is_busy: &AtomicBool,
    is_done: &AtomicBool,
) -> Result<(), Failure> {
    let mut next = Client::set_up(place, server, "full-0", &[])?;
    for number in 1.. {
        let mut backup = next.backup_of("day", &dumps.days[0]).stdout(Stdio::null()).spawn()?;
        is_busy.store(true, Ordering::SeqCst);
        next = Client::set_up(place, server, &format!("full-{number}"), &[])?;
        loop {
            let is_over = is_done.load(Ordering::SeqCst);
            if is_over {
                backup.kill()?;
            }
            match backup.try_wait()? {
                _ if is_over => {
                    backup.wait()?;
                    return Ok(());
                }
                Some(status) if !status.success() => {
                    return Err(format!("full backup: {status}").into());
                }
                Some(_) => break,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
    Ok(())
}
