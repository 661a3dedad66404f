//! Question: how fast does a replica catch up, with how many bytes on the wire and how much memory,
//! and how soon after a commit is a small change there?
//!
//! Expected on two cores, both servers on them, dumps of 2 GB: the first day's sealed bytes at 250
//! MB/s or more over loopback; the second day in less than 3 s, with less than 1.05 times its
//! new bytes on the wire; less than 256 MB more memory on either side. Over a line of 50 ms, a
//! small change is there in less than 2 s: half a poll interval (0.5 s) on average and 1 s at most,
//! six round trips (proof, entries, record, root, nodes, chunks), the commit: 0.9 s in the middle.
//! A thousand small snapshots over that line: 10 s or less; without groups they took 150 s.
//!
//! ```text
//! DUMPS=folder cargo bench --bench replica [-- quick]     the folder has day0.sql and day1.sql
//! ```
//!
//! `quick` takes the first 200 MB of each dump, and 100 small snapshots. MB are decimal. The line
//! is a relay in this program, which delays what goes through and counts it, TLS and HTTP included.
//! The reference is `dd conv=fdatasync` of as many bytes on the same disk, in the same run.
//! `scripts/netem-replica.sh` measures over a line that the kernel emulates.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

type Failure = Box<dyn std::error::Error>;

const QUICK_BYTES: u64 = 200_000_000;
const READY_WITHIN: Duration = Duration::from_secs(30);
const SYNC_WITHIN: Duration = Duration::from_secs(600);
const LINE_ROUND_TRIP: Duration = Duration::from_millis(50);
const CHANGES: u32 = 12;

fn main() -> Result<(), Failure> {
    let quick = std::env::args().any(|word| word == "quick");
    let place = Place::new()?;
    let dumps = dumps(&place.scratch, quick)?;
    println!("{} and {} bytes", fs::metadata(&dumps[0])?.len(), fs::metadata(&dumps[1])?.len());
    let primary = Server::start(&place.server, &place.scratch.join("primary"))?;
    let near = Server::start(&place.server, &place.scratch.join("near"))?;
    let far = Server::start(&place.server, &place.scratch.join("far"))?;
    let client = Client { place: &place, home: place.scratch.join("home") };
    client.set_up(&primary)?;
    whole_days(&client, &primary, [&near, &far], &dumps)?;
    over_a_line(&client, &primary, &far, if quick { 100 } else { 1000 })
}

/// First and second day over loopback; the second also through a counting relay.
fn whole_days(
    client: &Client<'_>,
    primary: &Server,
    [near, far]: [&Server; 2],
    dumps: &[PathBuf; 2],
) -> Result<(), Failure> {
    let first = client.backup("day", &dumps[0])?;
    let reference = dd_mb_per_s(&client.place.scratch, first)?;
    let before = [primary.peak(), near.peak()];
    let began = Instant::now();
    near.follow(primary, primary.address)?;
    near.wait(primary, began)?;
    let rate = mb(first) / began.elapsed().as_secs_f64();
    println!(
        "first day     {:8.1} MB sealed  {:6.2} s  {rate:6.0} MB/s (wanted 250)  {:.2} of dd \
         ({reference:.0} MB/s)",
        mb(first),
        began.elapsed().as_secs_f64(),
        rate / reference,
    );
    let more = |server: &Server, before: u64| mb(server.peak().saturating_sub(before));
    println!(
        "memory        primary {:+.0} MB, replica {:+.0} MB (wanted less than 256)",
        more(primary, before[0]),
        more(near, before[1])
    );
    let relay = Relay::to(primary.address)?;
    far.follow(primary, relay.address)?;
    far.wait(primary, Instant::now())?;
    far.command(&["replica", "pause", "office"])?;

    near.command(&["replica", "pause", "office"])?;
    let second = client.backup("day", &dumps[1])?;
    near.command(&["replica", "resume", "office"])?;
    let began = Instant::now();
    near.wait(primary, began)?;
    let seconds = began.elapsed().as_secs_f64();
    let counted = relay.carried();
    far.command(&["replica", "resume", "office"])?;
    far.wait(primary, Instant::now())?;
    let carried = relay.carried() - counted;
    println!(
        "second day    {:8.1} MB sealed  {seconds:6.2} s (wanted less than 3)  {:.1} MB on the \
         wire, {:.3} of the new bytes (wanted less than 1.05)",
        mb(second),
        mb(carried),
        mb(carried) / mb(second),
    );
    // From here on, one replica asks.
    near.command(&["replica", "pause", "office"])?;
    far.command(&["replica", "remove", "office"])?;
    Ok(())
}

/// Small changes over a line with a delay.
fn over_a_line(
    client: &Client<'_>,
    primary: &Server,
    far: &Server,
    small_count: u32,
) -> Result<(), Failure> {
    let relay = Relay::to(primary.address)?;
    far.follow(primary, relay.address)?;
    far.wait(primary, Instant::now())?;
    relay.delay(LINE_ROUND_TRIP / 2);
    let mut behind: Vec<f64> = Vec::new();
    for change in 0..CHANGES {
        let small = client.place.scratch.join("small");
        fs::write(&small, format!("change {change} {}", "of little ".repeat(2000)))?;
        client.backup("small", &small)?;
        let began = Instant::now();
        far.wait_for_entries(primary, began)?;
        behind.push(began.elapsed().as_secs_f64());
        // Nowhere near the rhythm of the looks.
        std::thread::sleep(Duration::from_millis(1000 + u64::from(change) * 83));
    }
    behind.sort_by(f64::total_cmp);
    println!(
        "small change  {:.2} s in the middle, {:.2} s at most, of {CHANGES}, at 50 ms (wanted less \
         than 2)",
        behind[behind.len() / 2],
        behind[behind.len() - 1]
    );
    far.command(&["replica", "pause", "office"])?;
    for number in 0..small_count {
        let small = client.place.scratch.join("small");
        fs::write(&small, format!("snapshot {number}"))?;
        client.backup("many", &small)?;
    }
    far.command(&["replica", "resume", "office"])?;
    let began = Instant::now();
    far.wait(primary, began)?;
    let seconds = began.elapsed().as_secs_f64();
    println!("{small_count} snapshots  {seconds:.2} s at 50 ms (wanted 10 for 1000)");
    let before = [primary.requests()?, relay.carried()];
    std::thread::sleep(Duration::from_secs(10));
    println!(
        "nothing new   {} requests and {} bytes in 10 s of looks each second",
        primary.requests()? - before[0],
        relay.carried() - before[1]
    );
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    // Exact up to 2^53.
    bytes as f64 / 1e6
}

fn dd_mb_per_s(folder: &Path, bytes: u64) -> Result<f64, Failure> {
    let file = folder.join("dd");
    let began = Instant::now();
    let count = format!("count={}", bytes.div_ceil(1 << 20).max(1));
    let to = format!("of={}", file.display());
    run(Command::new("dd").args(["if=/dev/urandom", &to, "bs=1M", &count, "conv=fdatasync"]))?;
    // Random bytes are not for free: written once more, from the page cache.
    let made = began.elapsed();
    let again = format!("of={}", folder.join("dd2").display());
    let from = format!("if={}", file.display());
    let began = Instant::now();
    run(Command::new("dd").args([&from, &again, "bs=1M", "conv=fdatasync"]))?;
    let seconds = began.elapsed().min(made).as_secs_f64();
    fs::remove_file(folder.join("dd"))?;
    fs::remove_file(folder.join("dd2"))?;
    Ok(mb(bytes) / seconds)
}

// --- Where things are -----------------------------------------------------------------------

struct Place {
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
        let scratch = target.join("bench-replica");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch)?;
        Ok(Self { client, server, scratch })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

fn dumps(scratch: &Path, quick: bool) -> Result<[PathBuf; 2], Failure> {
    let folder = match std::env::var_os("DUMPS") {
        Some(folder) => PathBuf::from(folder),
        None => {
            println!("DUMPS is not set: taking the small dumps of tests/data");
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/unpack_dumps.sh");
            let folder = scratch.join("dumps");
            run(Command::new(script).arg(&folder))?;
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
    Ok(days)
}

fn run(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{command:?}: {}: {message}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

// --- Servers and client ---------------------------------------------------------------------

struct Server {
    program: PathBuf,
    folder: PathBuf,
    child: Child,
    address: SocketAddr,
    probes: SocketAddr,
}

impl Server {
    /// Makes a repository in `folder` and serves it.
    fn start(program: &Path, folder: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(folder)?;
        let (address, probes) = (free_address()?, free_address()?);
        let (data, log) = (folder.join("data"), folder.join("server.log"));
        let init = ["init", "--host", "localhost", "--port", &address.port().to_string()];
        run(Command::new(program).args(init).arg("--data").arg(&data))?;
        let mut serve = Command::new(program);
        serve.args(["serve", "--listen", &address.to_string(), "--metrics", &probes.to_string()]);
        serve.arg("--data").arg(&data).stdout(Stdio::null()).stderr(File::create(&log)?);
        let (program, folder) = (program.to_path_buf(), folder.to_path_buf());
        let mut server = Self { program, folder, child: serve.spawn()?, address, probes };
        let started = Instant::now();
        while !server.probe("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if server.child.try_wait()?.is_some() || started.elapsed() > READY_WITHIN {
                return Err(fs::read_to_string(&log)?.into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn probe(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.probes)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn command(&self, words: &[&str]) -> Result<String, Failure> {
        run(Command::new(&self.program).args(words).arg("--data").arg(self.folder.join("data")))
    }

    /// Follows a primary that is reached at `address`: where its token says, or through a relay.
    fn follow(&self, primary: &Self, address: SocketAddr) -> Result<(), Failure> {
        let token = primary.command(&["token", "--role", "replica"])?;
        let mut token = strongroom_protocol::token::Token::from_text(token.trim())?;
        token.addresses = address.to_string();
        let token = token.to_text();
        self.command(&["replica", "add", "--token", &token, "--name", "office"]).map(drop)
    }

    /// The last number of each line of the metrics that begins with `name`.
    fn metric(&self, name: &str) -> Result<u64, Failure> {
        let text = self.probe("/metrics")?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }

    fn requests(&self) -> Result<u64, Failure> {
        self.metric("strongroom_requests_total")
    }

    fn status(&self) -> Result<Value, Failure> {
        let answer: Value = serde_json::from_str(&self.command(&["replica", "status", "--json"])?)?;
        Ok(answer["primaries"][0].clone())
    }

    fn ledger_size(&self) -> Result<u64, Failure> {
        let answer: Value = serde_json::from_str(&self.command(&["status", "--json"])?)?;
        answer["status"]["ledger_size"].as_u64().ok_or_else(|| "no ledger_size".into())
    }

    /// Waits until all that the primary has now is here.
    fn wait(&self, primary: &Self, began: Instant) -> Result<(), Failure> {
        self.wait_for_entries(primary, began)
    }

    /// Waits until the entries that the primary has now, and what they commit, are here. Whatever
    /// this server's questions add to the ledger there is not waited for.
    fn wait_for_entries(&self, primary: &Self, began: Instant) -> Result<(), Failure> {
        let wanted = primary.ledger_size()?;
        loop {
            let status = self.status()?;
            let followed = status["followed_entries"].as_u64().unwrap_or(0);
            if followed >= wanted && status["pending_snapshots"] == 0 {
                return Ok(());
            }
            if began.elapsed() > SYNC_WITHIN {
                return Err(format!("never in sync: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The peak of memory so far.
    fn peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
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

struct Client<'a> {
    place: &'a Place,
    home: PathBuf,
}

impl Client<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.place.client);
        command.arg("--home").arg(&self.home).arg("--json");
        command
    }

    fn set_up(&self, server: &Server) -> Result<(), Failure> {
        let token = server.command(&["token", "--role", "backup", "--namespace", "bench"])?;
        let kit = self.home.join("kit");
        let words = ["setup", "--token", token.trim(), "--kit-folder"];
        run(self.command().args(words).arg(kit)).map(drop)
    }

    /// Backs a file up; gives the sealed bytes that were sent.
    fn backup(&self, source: &str, file: &Path) -> Result<u64, Failure> {
        let printed = run(self.command().args(["backup", source]).arg(file))?;
        let summary: Value = serde_json::from_str(&printed)?;
        let sent = summary["sent_sealed_bytes"].as_u64();
        sent.ok_or_else(|| format!("no sent_sealed_bytes in {printed}").into())
    }
}

// --- A line ---------------------------------------------------------------------------------

/// Carries connections to a server, later by a delay, and counts the bytes of both directions.
struct Relay {
    address: SocketAddr,
    carried: Arc<AtomicU64>,
    delay_us: Arc<AtomicU64>,
}

impl Relay {
    fn to(target: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (carried, delay_us) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counting, delaying) = (carried.clone(), delay_us.clone());
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let _ = (from.set_nodelay(true), to.set_nodelay(true));
                    let (counting, delaying) = (counting.clone(), delaying.clone());
                    std::thread::spawn(move || carry(from, to, &counting, &delaying));
                }
            }
        });
        Ok(Self { address, carried, delay_us })
    }

    fn delay(&self, one_way: Duration) {
        let micros = u64::try_from(one_way.as_micros()).unwrap_or(u64::MAX);
        self.delay_us.store(micros, Ordering::SeqCst);
    }

    fn carried(&self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }
}

fn carry(mut from: TcpStream, to: TcpStream, carried: &AtomicU64, delay_us: &AtomicU64) {
    let (sender, pieces) = sync_channel(4096);
    let delivering = std::thread::spawn(move || deliver(pieces, to));
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        carried.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::SeqCst);
        let due = Instant::now() + Duration::from_micros(delay_us.load(Ordering::SeqCst));
        let Some(piece) = buffer.get(..count) else { break };
        if sender.send((due, piece.to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = delivering.join();
}

fn deliver(pieces: Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    while let Ok((due, piece)) = pieces.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
