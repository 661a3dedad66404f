//! Question: how fast do client, TLS and server on one machine back up, deduplicate and restore ERP
//! dumps, for how much CPU and memory?
//!
//! Expected on two cores with a disk of 500 MB/s or more, for dumps of 2 GB: first backup 250 MB/s
//! or more, the next day 600 MB/s with less than 3 % of it sent, the same again 900 MB/s with less
//! than 0.5 % sent, restore to a file 400 MB/s; client below 128 MB, server below 768 MB.
//!
//! ```text
//! DUMPS=folder cargo bench --bench end_to_end [-- quick]      the folder has day0.sql and day1.sql
//! ```
//!
//! `quick` takes the first 200 MB of each dump, and one run; `RUNS` sets the runs (default 3), and
//! each figure is the median. Repository, profile and restored files stand below the target folder.
//! The dumps are in the page cache when a row starts, what was written before is on disk (`sync`).
//! A row's bytes and seconds are those of the client process from start to end. MB are decimal.
//! Peak memory is `VmHWM`, sampled; the server's is reset before each row.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

const QUICK_BYTES: u64 = 200_000_000;
const LONG_BYTES: u64 = 8_000_000_000;
const SAMPLE_EVERY: Duration = Duration::from_millis(4);
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Linux counts processor time for user space in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;
const SOURCE: &str = "bench";

/// One line of the table: a scenario, or something to compare it with.
#[derive(Debug, Clone, Default)]
struct Row {
    scenario: String,
    plaintext_bytes: u64,
    seconds: f64,
    client_cpu_seconds: f64,
    server_cpu_seconds: f64,
    client_peak_bytes: u64,
    server_peak_bytes: u64,
    sent_bytes: Option<u64>,
    stored_bytes: Option<u64>,
    /// Wanted at least, where there is a target.
    wanted_mb_per_s: Option<f64>,
    /// What this is compared with, and its rate.
    reference: Option<(String, f64)>,
}

impl Row {
    fn mb_per_s(&self) -> f64 {
        as_f64(self.plaintext_bytes) / 1e6 / self.seconds.max(1e-9)
    }
}

/// Exact up to 2^53, far above any size here.
fn as_f64(number: u64) -> f64 {
    number as f64
}

fn main() -> Result<(), Failure> {
    let quick = std::env::args().any(|word| word == "quick");
    let runs = match std::env::var("RUNS") {
        Ok(text) => text.parse::<usize>()?.max(1),
        Err(_) if quick => 1,
        Err(_) => 3,
    };
    let place = Place::new()?;
    let dumps = Dumps::find(&place.scratch, quick)?;
    println!("{}", machine());
    println!("dumps: {} and {} bytes; median of {runs}", dumps.bytes[0], dumps.bytes[1]);
    let (mut ours, mut references) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        ours.push(run_once(&place, &dumps)?);
        references.push(plain_references(&place, &dumps)?);
    }
    let mut rows = medians(&ours);
    if !quick {
        rows.extend(long_stream(&place, &dumps)?);
    }
    let mut others = medians(&references);
    others.extend(restic(&place, &dumps)?);
    let openssl = openssl_mb_per_s();
    add_references(&mut rows, &others);
    print_table(&rows, &others, openssl);
    let json = place.target.join("bench.json");
    fs::write(&json, format!("{:#}\n", to_json(&rows, &others, openssl, runs)))?;
    println!("\nwritten to {}", json.display());
    Ok(())
}

// --- Where things are -----------------------------------------------------------------------

/// The target folder, the binaries in it, and a folder for what the bench makes.
struct Place {
    target: PathBuf,
    client: PathBuf,
    server: PathBuf,
    scratch: PathBuf,
}

impl Place {
    fn new() -> Result<Self, Failure> {
        // This program stands in TARGET/release/deps.
        let program = std::env::current_exe()?;
        let release = program.ancestors().nth(2).ok_or("no target folder")?.to_path_buf();
        let target = release.parent().ok_or("no target folder")?.to_path_buf();
        let (client, server) = (release.join("strongroom"), release.join("strongroomd"));
        for binary in [&client, &server] {
            if !binary.exists() {
                return Err(format!("{} is not built; run make bench", binary.display()).into());
            }
        }
        let scratch = target.join("bench-end-to-end");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch)?;
        Ok(Self { target, client, server, scratch })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Two successive days of one database.
struct Dumps {
    days: [PathBuf; 2],
    bytes: [u64; 2],
}

impl Dumps {
    fn find(scratch: &Path, quick: bool) -> Result<Self, Failure> {
        let folder = match std::env::var_os("DUMPS") {
            Some(folder) => PathBuf::from(folder),
            None => {
                println!("DUMPS is not set: taking the small dumps of tests/data, whose figures");
                println!("say little, because starting and committing take most of the time");
                let folder = scratch.join("dumps");
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/unpack_dumps.sh");
                run_to_end(Command::new(script).arg(&folder))?;
                folder
            }
        };
        let mut days = [folder.join("day0.sql"), folder.join("day1.sql")];
        for day in &mut days {
            let length = fs::metadata(&*day).map_err(|e| format!("{}: {e}", day.display()))?.len();
            if quick && length > QUICK_BYTES {
                let short = scratch.join(day.file_name().ok_or("no name")?);
                let mut start = File::open(&*day)?.take(QUICK_BYTES);
                std::io::copy(&mut start, &mut File::create(&short)?)?;
                *day = short;
            }
        }
        let bytes = [fs::metadata(&days[0])?.len(), fs::metadata(&days[1])?.len()];
        Ok(Self { days, bytes })
    }
}

fn run_to_end(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{command:?}: {}: {message}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

// --- Server and client ----------------------------------------------------------------------

struct Server {
    child: Child,
    probes: SocketAddr,
}

impl Server {
    /// Makes a repository below `folder` and serves it.
    fn start(program: &Path, folder: &Path) -> Result<Self, Failure> {
        let (clients, probes) = (free_address()?, free_address()?);
        let (data, log) = (folder.join("data"), folder.join("server.log"));
        let init = ["init", "--host", "localhost", "--port", &clients.port().to_string()];
        run_to_end(Command::new(program).args(init).arg("--data").arg(&data))?;
        let mut serve = Command::new(program);
        serve.args(["serve", "--listen", &clients.to_string(), "--metrics", &probes.to_string()]);
        serve.arg("--data").arg(&data).stdout(Stdio::null()).stderr(File::create(&log)?);
        let mut server = Self { child: serve.spawn()?, probes };
        let started = Instant::now();
        while !server.is_ready() {
            if server.child.try_wait()?.is_some() || started.elapsed() > READY_WITHIN {
                return Err(fs::read_to_string(&log)?.into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.probes)?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Forgets the peak of memory so far.
    fn reset_peak(&self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    cpu_seconds: f64,
    peak_bytes: u64,
    has_ended: bool,
}

fn usage_of(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state follows it.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak_kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib = peak_kib.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Some(Usage {
        cpu_seconds: as_f64(ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
        peak_bytes: peak_kib.unwrap_or(0) * 1024,
        has_ended: fields.first() == Some(&"Z"),
    })
}

/// Runs a command to its end; answers time, processor time, peak memory and standard output.
fn measure(command: &mut Command) -> Result<(f64, Usage, String), Failure> {
    let started = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
    let output = child.stdout.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).map(|_| text)
        })
    });
    let mut last = Usage::default();
    // The process stays a zombie, with its times, until wait collects it.
    while let Some(now) = usage_of(child.id()) {
        last = Usage { peak_bytes: last.peak_bytes.max(now.peak_bytes), ..now };
        if last.has_ended {
            break;
        }
        std::thread::sleep(SAMPLE_EVERY);
    }
    let seconds = started.elapsed().as_secs_f64();
    let status = child.wait()?;
    let text = match output.map(std::thread::JoinHandle::join) {
        Some(Ok(text)) => text?,
        _ => String::new(),
    };
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    Ok((seconds, last, text))
}

/// The number of a key in the one JSON object that a command prints.
fn number(json: &str, key: &str) -> Result<u64, Failure> {
    let object: Value = serde_json::from_str(json)?;
    object[key].as_u64().ok_or_else(|| format!("no {key} in {json}").into())
}

// --- Scenarios ------------------------------------------------------------------------------

/// One server with one client, in a folder that the next one clears.
struct Bench<'a> {
    place: &'a Place,
    folder: PathBuf,
    server: Server,
}

fn run_once(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let bench = Bench::start(place)?;
    let [day0, day1] = &dumps.days;
    let restored = bench.folder.join("restored.sql");
    let rows = vec![
        bench.backup("first backup", day0, Some(250.0))?,
        bench.backup("next day", day1, Some(600.0))?,
        bench.backup("same again", day1, Some(900.0))?,
        bench.restore("restore to file", Some(&restored), dumps.bytes[1], Some(400.0))?,
        bench.restore("restore to /dev/null", None, dumps.bytes[1], None)?,
    ];
    run_to_end(Command::new("cmp").arg(day1).arg(&restored))?;
    Ok(rows)
}

/// One dump of 8 GB or more, to see that memory does not follow the size of what is backed up: the
/// two days in turn through standard input, so all of it is cut and hashed, and a quarter is new.
fn long_stream(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let bench = Bench::start(place)?;
    let turns = LONG_BYTES.div_ceil((dumps.bytes[0] + dumps.bytes[1]).max(1));
    let files: Vec<&PathBuf> = (0..turns).flat_map(|_| &dumps.days).collect();
    let mut feeder = Command::new("cat").args(files).stdout(Stdio::piped()).spawn()?;
    let mut command = bench.client("machine")?;
    let stream = feeder.stdout.take().ok_or("no pipe")?;
    command.args(["backup", SOURCE, "--stdin"]).stdin(stream).stdout(Stdio::piped());
    let (row, json) = bench.row("8 GB stream", &mut command, None)?;
    feeder.wait()?;
    let bytes = number(&json, "plaintext_bytes")?;
    let backup = Row {
        plaintext_bytes: bytes,
        sent_bytes: Some(number(&json, "sent_bytes")?),
        stored_bytes: Some(number(&json, "sent_sealed_bytes")?),
        ..row
    };
    Ok(vec![backup, bench.restore("8 GB restore to /dev/null", None, bytes, None)?])
}

impl<'a> Bench<'a> {
    /// A new repository, and a client that is enrolled.
    fn start(place: &'a Place) -> Result<Self, Failure> {
        let folder = place.scratch.join("run");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let server = Server::start(&place.server, &folder)?;
        let token = run_to_end(
            Command::new(&place.server)
                .args(["token", "--namespace", SOURCE, "--role", "backup", "--data"])
                .arg(folder.join("data")),
        )?;
        let bench = Self { place, folder, server };
        let setup = ["setup", "--token", token.trim(), "--kit-folder"];
        run_to_end(bench.client("machine")?.args(setup).arg(&bench.folder))?;
        Ok(bench)
    }

    fn client(&self, home: &str) -> Result<Command, Failure> {
        let mut command = Command::new(&self.place.client);
        command.arg("--home").arg(self.folder.join(home)).arg("--json");
        command.stderr(File::create(self.folder.join("client.log"))?);
        Ok(command)
    }

    /// A row for what a client command takes, on this side and on the server's.
    fn row(
        &self,
        scenario: &str,
        command: &mut Command,
        wanted: Option<f64>,
    ) -> Result<(Row, String), Failure> {
        run_to_end(&mut Command::new("sync"))?;
        self.server.reset_peak();
        let pid = self.server.child.id();
        let before = usage_of(pid).ok_or("the server is gone")?;
        let (seconds, client, text) = measure(command).map_err(|failure| {
            let log = fs::read_to_string(self.folder.join("client.log")).unwrap_or_default();
            format!("{failure}: {log}")
        })?;
        let after = usage_of(pid).ok_or("the server is gone")?;
        let row = Row {
            scenario: scenario.to_owned(),
            seconds,
            client_cpu_seconds: client.cpu_seconds,
            server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            client_peak_bytes: client.peak_bytes,
            server_peak_bytes: after.peak_bytes,
            wanted_mb_per_s: wanted,
            ..Row::default()
        };
        Ok((row, text))
    }

    fn backup(&self, scenario: &str, dump: &Path, wanted: Option<f64>) -> Result<Row, Failure> {
        warm(dump)?;
        let mut command = self.client("machine")?;
        command.args(["backup", SOURCE]).arg(dump).stdout(Stdio::piped());
        let (row, json) = self.row(scenario, &mut command, wanted)?;
        Ok(Row {
            plaintext_bytes: number(&json, "plaintext_bytes")?,
            sent_bytes: Some(number(&json, "sent_bytes")?),
            stored_bytes: Some(number(&json, "sent_sealed_bytes")?),
            ..row
        })
    }

    fn restore(
        &self,
        scenario: &str,
        to: Option<&Path>,
        bytes: u64,
        wanted: Option<f64>,
    ) -> Result<Row, Failure> {
        let mut command = self.client("fresh")?;
        command.args(["restore", &format!("{SOURCE}@latest"), "--kit"]);
        command.arg(self.folder.join(format!("recovery-kit-{SOURCE}.txt")));
        command.arg("--to").arg(to.unwrap_or(Path::new("-"))).stdout(Stdio::null());
        let (row, _) = self.row(scenario, &mut command, wanted)?;
        Ok(Row { plaintext_bytes: bytes, ..row })
    }
}

/// Reads a file, so that it is in the page cache where memory allows.
fn warm(path: &Path) -> Result<(), Failure> {
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

// --- References -----------------------------------------------------------------------------

fn reference(scenario: &str, bytes: u64, command: &mut Command) -> Result<Row, Failure> {
    run_to_end(&mut Command::new("sync"))?;
    let (seconds, usage, _) = measure(command)?;
    Ok(Row {
        scenario: scenario.to_owned(),
        plaintext_bytes: bytes,
        seconds,
        client_cpu_seconds: usage.cpu_seconds,
        client_peak_bytes: usage.peak_bytes,
        ..Row::default()
    })
}

fn plain_references(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let (day1, bytes) = (&dumps.days[1], dumps.bytes[1]);
    let copy = place.scratch.join("copy");
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", day1.display())).arg(format!("of={}", copy.display()));
    dd.args(["bs=1M", "conv=fdatasync", "status=none"]);
    warm(day1)?;
    let rows = vec![
        reference(
            "cat FILE >/dev/null",
            bytes,
            Command::new("cat").arg(day1).stdout(Stdio::null()),
        )?,
        reference("dd conv=fdatasync", bytes, &mut dd)?,
    ];
    fs::remove_file(&copy)?;
    Ok(rows)
}

/// The same scenarios with restic, once, where it is installed.
fn restic(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    if Command::new("restic").arg("version").output().is_err() {
        return Ok(Vec::new());
    }
    let (repository, restored) = (place.scratch.join("restic"), place.scratch.join("restored"));
    let command = |words: &[&str]| {
        let mut command = Command::new("restic");
        command.env("RESTIC_PASSWORD", "bench").arg("--quiet").arg("--repo").arg(&repository);
        command.arg("--cache-dir").arg(place.scratch.join("restic-cache")).args(words);
        command
    };
    run_to_end(&mut command(&["init"]))?;
    let days = [("first backup", 0), ("next day", 1), ("same again", 1)];
    let (mut rows, mut stored) = (Vec::new(), bytes_below(&repository)?);
    for (scenario, day) in days {
        warm(&dumps.days[day])?;
        let mut backup = command(&["backup", "--stdin", "--stdin-filename", "dump.sql"]);
        backup.stdin(File::open(&dumps.days[day])?);
        let row = reference(&format!("restic {scenario}"), dumps.bytes[day], &mut backup)?;
        let now = bytes_below(&repository)?;
        rows.push(Row { stored_bytes: Some(now - stored), ..row });
        stored = now;
    }
    let mut restore = command(&["restore", "latest", "--target"]);
    restore.arg(&restored);
    rows.push(reference("restic restore to file", dumps.bytes[1], &mut restore)?);
    run_to_end(Command::new("cmp").arg(&dumps.days[1]).arg(restored.join("dump.sql")))?;
    for folder in [repository, restored] {
        fs::remove_dir_all(folder)?;
    }
    Ok(rows)
}

fn bytes_below(folder: &Path) -> Result<u64, Failure> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        sum += if metadata.is_dir() { bytes_below(&path)? } else { metadata.len() };
    }
    Ok(sum)
}

/// ChaCha20-Poly1305 on one core, on messages of 64 KiB.
fn openssl_mb_per_s() -> Option<f64> {
    let words = ["speed", "-seconds", "1", "-bytes", "65536", "-evp", "chacha20-poly1305"];
    let text = run_to_end(Command::new("openssl").args(words)).ok()?;
    let last = text.trim_end().rsplit(' ').next()?;
    last.strip_suffix('k')?.parse::<f64>().ok().map(|thousands| thousands / 1000.0)
}

/// Each row is compared with restic at the same, or with what moves the same bytes plainly.
fn add_references(rows: &mut [Row], others: &[Row]) {
    for row in rows {
        let plain = match row.scenario.as_str() {
            "restore to file" => "dd conv=fdatasync",
            _ => "cat FILE >/dev/null",
        };
        let same = format!("restic {}", row.scenario);
        let find = |name: &str| others.iter().find(|other| other.scenario == name);
        let other = find(&same).or_else(|| find(plain));
        row.reference = other.map(|other| (other.scenario.clone(), other.mb_per_s()));
    }
}

// --- Results --------------------------------------------------------------------------------

/// For each scenario the run with the median rate.
fn medians(runs: &[Vec<Row>]) -> Vec<Row> {
    let count = runs.first().map_or(0, Vec::len);
    (0..count)
        .filter_map(|at| {
            let mut same: Vec<&Row> = runs.iter().filter_map(|rows| rows.get(at)).collect();
            same.sort_by(|a, b| a.mb_per_s().total_cmp(&b.mb_per_s()));
            same.get(same.len() / 2).map(|row| (*row).clone())
        })
        .collect()
}

fn machine() -> String {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} x {}, {} of memory, Linux {}",
        cores,
        first("/proc/cpuinfo", "model name"),
        first("/proc/meminfo", "MemTotal"),
        kernel.trim()
    )
}

fn print_table(rows: &[Row], others: &[Row], openssl: Option<f64>) {
    println!();
    let heads = [
        "scenario",
        "MB/s",
        "wanted",
        "CPU-s client + server",
        "peak MB client, server",
        "sent",
        "stored",
        "reference",
    ];
    println!("| {} |", heads.join(" | "));
    println!("|---|---|---|---|---|---|---|---|");
    let share = |bytes: Option<u64>, of: u64| {
        bytes.map_or("-".to_owned(), |bytes| {
            format!("{bytes} ({:.2} %)", 100.0 * as_f64(bytes) / as_f64(of.max(1)))
        })
    };
    for row in rows.iter().chain(others) {
        let reference = row.reference.as_ref();
        println!(
            "| {} | {:.0} | {} | {:.2} + {:.2} | {:.0}, {:.0} | {} | {} | {} |",
            row.scenario,
            row.mb_per_s(),
            row.wanted_mb_per_s.map_or("-".to_owned(), |wanted| format!("{wanted:.0}")),
            row.client_cpu_seconds,
            row.server_cpu_seconds,
            as_f64(row.client_peak_bytes) / 1e6,
            as_f64(row.server_peak_bytes) / 1e6,
            share(row.sent_bytes, row.plaintext_bytes),
            share(row.stored_bytes, row.plaintext_bytes),
            reference.map_or("-".to_owned(), |(name, rate)| format!("{name} {rate:.0}")),
        );
    }
    if let Some(rate) = openssl {
        println!("| openssl ChaCha20-Poly1305, 64 KiB, one core | {rate:.0} | | | | | | |");
    }
}

fn to_json(rows: &[Row], others: &[Row], openssl: Option<f64>, runs: usize) -> Value {
    let row = |row: &Row| {
        json!({
            "scenario": row.scenario,
            "mb_per_s": row.mb_per_s(),
            "wanted_mb_per_s": row.wanted_mb_per_s,
            "seconds": row.seconds,
            "plaintext_bytes": row.plaintext_bytes,
            "client_cpu_seconds": row.client_cpu_seconds,
            "server_cpu_seconds": row.server_cpu_seconds,
            "client_peak_bytes": row.client_peak_bytes,
            "server_peak_bytes": row.server_peak_bytes,
            "sent_bytes": row.sent_bytes,
            "stored_bytes": row.stored_bytes,
            "reference": row.reference.as_ref().map(|(name, _)| name),
            "reference_mb_per_s": row.reference.as_ref().map(|(_, rate)| rate),
        })
    };
    json!({
        "machine": machine(),
        "runs": runs,
        "openssl_mb_per_s": openssl,
        "rows": rows.iter().chain(others).map(row).collect::<Vec<_>>(),
    })
}
