//! Question: what do thousands of sockets that never get anywhere cost those who belong here, and
//! what do very many clients at once cost the server?
//!
//! Expected on two cores: the lobby holds 128 of 5000 sockets at a time, some 20 KB each, so the
//! server grows by a few MB, far below 200. A commit from connection to receipt waits for a sync of
//! the disk and computes a handshake; the flood costs the server an accept for each socket that
//! comes, some 2000 a second here, which is a tenth of a core: the 99th percentile stays below
//! twice what it is alone. 64 clients at once wait for one another; the memory for their bodies is
//! bounded by `limits.body_bytes` (256 MiB), and the store has 100 to 200 MB of its own.
//!
//! ```text
//! DUMPS=folder cargo bench --bench hostile [-- quick]     the folder has day0.sql and day1.sql
//! ```
//!
//! Each commit is a backup of a new small file by the client's own code, over connections that it
//! opens. A socket of the flood says one byte of a handshake a second; when it is closed it comes
//! again three seconds later. Flood and client are in this process, on the same two cores.

mod harness;

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::place::{Dumps, Place};
use harness::process::run_to_end;
use harness::programs::{Client, Server, all_at_once};
use harness::reference::warm;
use harness::rows::{Row, machine, medians, percentile, publish};
use harness::{Failure, as_f64, has_word, mb, run_count};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use strongroom_client::backup::{self, BackupOptions};
use strongroom_client::profile::{ConnectOptions, Profile, ProfileFolder};
use strongroom_client::progress::Monitor;
use strongroom_client::source::Source;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const SOCKETS: u64 = 5000;
const CLIENTS: u64 = 64;
const SMALL_BYTES: usize = 64 * 1024;
const COMES_AGAIN: Duration = Duration::from_secs(3);

fn main() -> Result<(), Failure> {
    let (quick, runs) = (has_word("quick"), run_count()?);
    let place = Place::new("bench-hostile")?;
    let dumps = Dumps::find(&place.scratch, true)?;
    let parts = dumps.parts(CLIENTS, &place.scratch)?;
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    println!("{}", machine());
    println!(
        "{SOCKETS} sockets; {CLIENTS} clients, {} bytes in all; median of {runs}",
        dumps.bytes[0]
    );
    let mut all = Vec::new();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        let mut rows = flood(&place, if quick { 100 } else { 300 })?;
        rows.extend(at_once(&place, &parts)?);
        all.push(rows);
    }
    publish(&place, "hostile", runs, &medians(&all))
}

/// Commits alone, then the same beside the flood.
fn flood(place: &Place, commits: u64) -> Result<Vec<Row>, Failure> {
    let server = Server::start(place, &place.folder("run")?)?;
    let client = Client::set_up(place, &server, "erp", &[])?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let small = place.scratch.join("small");
    let commit_all = |from: u64| commit_all(&runtime, &client, &small, from..from + commits);
    // Caches and pools are warm for both.
    commit_all(0)?;
    server.reset_peak();
    let alone = commit_all(commits)?;
    let peak_alone = server.peak();
    let connected = Arc::<AtomicU64>::default();
    let flood = runtime.spawn(dribble_all(server.address, connected.clone()));
    while connected.load(Ordering::Relaxed) < SOCKETS {
        std::thread::sleep(Duration::from_millis(10));
    }
    server.reset_peak();
    let (before, began) = (connected.load(Ordering::Relaxed), Instant::now());
    let beside = commit_all(2 * commits)?;
    let rate = as_f64(connected.load(Ordering::Relaxed) - before) / began.elapsed().as_secs_f64();
    let peak_beside = server.peak();
    flood.abort();
    let p50 = Row::figure("commit alone, 50th percentile", percentile(&alone, 0.5), "ms");
    let p99 = Row::figure("commit alone, 99th percentile", percentile(&alone, 0.99), "ms");
    let beside_p50 = percentile(&beside, 0.5);
    let beside_p99 = percentile(&beside, 0.99);
    Ok(vec![
        Row::figure("commit beside the flood, 50th percentile", beside_p50, "ms").beside(&p50),
        Row::figure("commit beside the flood, 99th percentile", beside_p99, "ms")
            .below(2.0 * p99.figure)
            .beside(&p99),
        p50,
        p99,
        Row::figure("sockets that came a second", rate, ""),
        Row::figure("server's peak alone", mb(peak_alone), "MB"),
        Row::figure("server's peak beside the flood", mb(peak_beside), "MB")
            .below(mb(peak_alone) + 200.0),
    ])
}

/// Backs up a new small file for each number; milliseconds of each, sorted.
fn commit_all(
    runtime: &Runtime,
    client: &Client,
    small: &PathBuf,
    numbers: std::ops::Range<u64>,
) -> Result<Vec<f64>, Failure> {
    let folder = ProfileFolder::new(&client.home.join("machine"), "default")?;
    let mut profile = Profile::open(folder)?;
    let connect = ConnectOptions::default();
    let options = BackupOptions::new("small".parse()?, connect);
    let mut taken = Vec::new();
    for number in numbers {
        let mut bytes = vec![0; SMALL_BYTES];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        fs::File::create(small)?.write_all(&bytes)?;
        let began = Instant::now();
        let mut source = Source::File(small.clone());
        runtime.block_on(backup::run(&mut profile, &mut source, &options, &Monitor::hidden()))?;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

/// All sockets, until nobody polls this any more.
async fn dribble_all(address: SocketAddr, connected: Arc<AtomicU64>) {
    let mut sockets = tokio::task::JoinSet::new();
    for number in 0..SOCKETS {
        let connected = connected.clone();
        sockets.spawn(async move {
            tokio::time::sleep(COMES_AGAIN.mul_f64(as_f64(number) / as_f64(SOCKETS))).await;
            loop {
                if let Ok(socket) = TcpStream::connect(address).await {
                    connected.fetch_add(1, Ordering::Relaxed);
                    dribble(socket).await;
                }
                tokio::time::sleep(COMES_AGAIN).await;
            }
        });
    }
    while sockets.join_next().await.is_some() {}
}

/// A byte of a first message that is announced and never whole, each second, until it is closed.
async fn dribble(mut socket: TcpStream) {
    let start = [0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb];
    for byte in start.into_iter().chain(std::iter::repeat(3)) {
        if socket.write_all(&[byte]).await.is_err() {
            return;
        }
        let closed = tokio::time::timeout(Duration::from_secs(1), socket.read_u8()).await;
        if closed.is_ok() {
            return;
        }
    }
}

fn at_once(place: &Place, parts: &[PathBuf]) -> Result<Vec<Row>, Failure> {
    let server = Server::start(place, &place.folder("run")?)?;
    let clients: Vec<Client> = (0..parts.len())
        .map(|number| Client::set_up(place, &server, &format!("erp-{number}"), &[]))
        .collect::<Result<_, _>>()?;
    for part in parts {
        warm(part)?;
    }
    run_to_end(&mut Command::new("sync"))?;
    server.reset_peak();
    let (before, began) = (server.usage()?, Instant::now());
    let measured = all_at_once(&clients, parts)?;
    let (seconds, after) = (began.elapsed().as_secs_f64(), server.usage()?);
    let mut bytes = 0;
    for part in parts {
        bytes += fs::metadata(part)?.len();
    }
    let total = Row {
        scenario: "64 clients at once".into(),
        seconds,
        client_cpu_seconds: measured.iter().map(|one| one.usage.cpu_seconds).sum(),
        server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        server_peak_bytes: after.peak_bytes,
        ..Row::default()
    };
    Ok(vec![
        total.rate_of(bytes),
        Row::figure("64 clients: those that finished", as_f64(measured.len() as u64), "")
            .at_least(as_f64(CLIENTS)),
        Row::figure("64 clients: server's peak", mb(after.peak_bytes), "MB").below(600.0),
    ])
}
