//! Question: how long is a database's log segment in danger, with a full backup running beside it?
//!
//! Expected: a segment of 16 MB that compresses to a quarter costs 16 MB of a first backup's
//! processor time, 60 to 90 ms of one core, so 30 to 45 of two; then some round trips, three syncs
//! of the server and seven of small files of the client, 10 ms in all. `ship` keeps its connection,
//! so there is no start to pay for. The full backup's threads give way, but the server serves both,
//! and both wait for one disk. Wanted: 40 ms in the middle, 150 ms in 99 of 100.
//!
//! ```text
//! DUMPS=folder [SEGMENTS=folder] cargo bench --bench segments [-- quick]
//! ```
//!
//! Segments are the files of `SEGMENTS`, real ones of 16 MB; without it they are pieces of the
//! first day, which is SQL and compresses otherwise. None comes twice. The time of one goes from
//! its rename into the folder until `ship` says that it is committed, locked and removed; or it is
//! that of a `backup` process, started for it. Full backups of the first day follow one another
//! beside it, each into a new namespace. `quick` takes the first 200 MB, and fewer segments.

mod harness;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::place::{Dumps, Place, copy_part};
use harness::process::run_to_end;
use harness::programs::{Client, Server};
use harness::rows::{Row, machine, percentile, publish};
use harness::{Failure, has_word};
use serde_json::Value;

const SEGMENT_BYTES: u64 = 16 << 20;
const SEGMENTS: usize = 120;
/// Between two segments, as a database that writes 100 MB of log a second.
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> Result<(), Failure> {
    let place = Place::new("bench-segments")?;
    let dumps = Dumps::find(&place.scratch, has_word("quick"))?;
    let mut segments = Segments::find(&dumps)?;
    let count = if has_word("quick") { SEGMENTS / 12 } else { SEGMENTS }.min(segments.left() / 2);
    println!("{}\n{count} {}", machine(), segments.kind);
    let folder = place.folder("run")?;
    let server = Server::start(&place, &folder)?;
    let client = Client::set_up(&place, &server, "log", &[])?;
    let mut shipper = Shipper::start(&client)?;
    let few = count / 6 + 1;
    let alone = series(few, || shipper.ship(&mut segments))?;
    let started = series(few, || back_up(&client, &mut segments))?;
    let (is_busy, is_done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (beside, started_beside) = std::thread::scope(|scope| {
        let full = scope.spawn(|| {
            full_backups(&place, &server, &dumps, &is_busy, &is_done).map_err(|e| e.to_string())
        });
        while !is_busy.load(Ordering::SeqCst) && !full.is_finished() {
            std::thread::sleep(PAUSE);
        }
        let mut measured = || -> Result<_, Failure> {
            let beside = series(count, || shipper.ship(&mut segments))?;
            Ok((beside, series(few, || back_up(&client, &mut segments))?))
        };
        let measured = measured();
        is_done.store(true, Ordering::SeqCst);
        match full.join() {
            Ok(Ok(())) => measured,
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err("the full backups panicked".into()),
        }
    })?;
    let row = |what: &str, times: &[f64], share: f64| {
        let spread = [percentile(times, 0.0), percentile(times, 1.0)];
        let name = format!("{} of 16 MB, {what}, p{:.0}", segments.kind, share * 100.0);
        Row { spread: Some(spread), ..Row::figure(&name, percentile(times, share), "ms") }
    };
    let alone = row("shipped alone", &alone, 0.5);
    let rows = [
        row("shipped beside a full backup", &beside, 0.5).below(40.0).beside(&alone),
        row("shipped beside a full backup", &beside, 0.99).below(150.0),
        alone,
        row("a process each, beside a full backup", &started_beside, 0.5),
        row("a process each, alone", &started, 0.5),
    ];
    publish(&place, "segments", 1, &rows)
}

/// Where segments come from.
struct Segments {
    kind: &'static str,
    files: Vec<PathBuf>,
    dump: PathBuf,
    dump_count: usize,
    taken: usize,
}

impl Segments {
    fn find(dumps: &Dumps) -> Result<Self, Failure> {
        let dump_count = usize::try_from(dumps.bytes[0] / SEGMENT_BYTES)?;
        let dump = dumps.days[0].clone();
        let mut files = Vec::new();
        if let Some(folder) = std::env::var_os("SEGMENTS") {
            for entry in std::fs::read_dir(folder)? {
                files.push(entry?.path());
            }
            files.sort();
        }
        let kind = if files.is_empty() { "piece of a dump" } else { "log segment" };
        Ok(Self { kind, files, dump, dump_count, taken: 0 })
    }

    fn left(&self) -> usize {
        let all = if self.files.is_empty() { self.dump_count } else { self.files.len() };
        all.saturating_sub(self.taken)
    }

    /// Copies the next one to `path`.
    fn next(&mut self, path: &Path) -> Result<(), Failure> {
        let number = self.taken;
        self.taken += 1;
        if self.files.is_empty() {
            let offset = u64::try_from(number)? * SEGMENT_BYTES;
            return copy_part(&self.dump, offset, SEGMENT_BYTES, path);
        }
        std::fs::copy(self.files.get(number).ok_or("no segment is left")?, path)?;
        Ok(())
    }
}

/// `strongroom ship`, running.
struct Shipper {
    child: Child,
    lines: BufReader<ChildStdout>,
    spool: PathBuf,
}

impl Shipper {
    fn start(client: &Client) -> Result<Self, Failure> {
        let spool = client.home.join("spool");
        std::fs::create_dir_all(&spool)?;
        let mut command = client.command("machine");
        command.args(["ship", "log"]).arg(&spool).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Self { child, lines, spool })
    }

    /// Milliseconds until the next segment is committed and locked.
    fn ship(&mut self, segments: &mut Segments) -> Result<f64, Failure> {
        let hidden = self.spool.join(".segment");
        segments.next(&hidden)?;
        std::thread::sleep(PAUSE);
        let name = self.spool.join(format!("{:08}", segments.taken));
        let began = Instant::now();
        std::fs::rename(&hidden, &name)?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        let milliseconds = began.elapsed().as_secs_f64() * 1e3;
        is_locked(&line)?;
        Ok(milliseconds)
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Milliseconds of a process that backs up the next segment.
fn back_up(client: &Client, segments: &mut Segments) -> Result<f64, Failure> {
    let file = client.home.join("segment");
    segments.next(&file)?;
    std::thread::sleep(PAUSE);
    let mut backup = client.backup_of("started", &file);
    let began = Instant::now();
    let output = run_to_end(&mut backup)?;
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    is_locked(&output)?;
    Ok(milliseconds)
}

fn is_locked(summary: &str) -> Result<(), Failure> {
    let summary: Value = serde_json::from_str(summary)?;
    match summary["locked_until_seconds"].as_u64() {
        Some(until) if until > 0 => Ok(()),
        _ => Err(format!("not locked: {summary}").into()),
    }
}

/// What `count` of these took, sorted.
fn series(
    count: usize,
    mut one: impl FnMut() -> Result<f64, Failure>,
) -> Result<Vec<f64>, Failure> {
    let mut times = (0..count).map(|_| one()).collect::<Result<Vec<f64>, Failure>>()?;
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
