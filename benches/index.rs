//! Question: what does an index of 10^8 chunks cost those who ask, whoever starts the server, and
//! its memory?
//!
//! Expected: a question of 8192 digests is sorted and read in one pass. A digest that is known
//! costs the filters of three or four runs of the index, a block of 4 KB from the page cache with its
//! checksum, and its part of the question: 6 to 9 us of both programs, so 200 000 a second or more
//! on two cores. One that is unknown costs the filters. Digests are random, so the order in which
//! they were stored is as good as any other; and what is not in the page cache costs a read of the
//! disk each, so from a cold cache the disk's reads a second are the bound (10^4 or so here), until
//! the index has been read.
//! Opening compares the catalogue with the files, a row a segment, and replays the log, which is
//! bounded: below 5 s after a kill, below 1 s after an orderly stop, whatever the index holds.
//! Memory is the block cache, with filters and indexes of the tables in it: below 2 GB.
//!
//! ```text
//! cargo bench --bench index -- [CHUNKS] [quick] [keep=FOLDER] [ask]
//!                       default: 10000000 chunks, with quick 1000000; ask: without the starts
//! ```
//!
//! Made-up envelopes of 100 bytes with made-up digests go straight into the store of a data folder
//! that a client was enrolled on, by a child of this process, which rests the store and ends. A
//! second child adds two million more and aborts, which leaves what a kill leaves. `strongroomd`
//! starts on that, from a cold cache, is stopped, and starts again. The client's own session asks
//! over TLS what the server has, 8 questions at a time. Last, that client backs up the first 200 MB
//! of a dump.
//!
//! 10^8 chunks take 25 GB and a while, so `keep` fills a folder once and comes back to it; it goes
//! on where a fill was ended, and adds what lacks for more chunks. With `HOLLOW=1` the disk holds
//! 8 GB only: envelopes are cut out of the segments' files, which keep their sizes, because nobody
//! who asks or starts reads them.

mod harness;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use harness::place::{Dumps, Place, bytes_below};
use harness::process::Usage;
use harness::programs::{Client, Server};
use harness::reference::cool;
use harness::rows::{Row, machine, publish};
use harness::{Failure, as_f64, has_word, mb};
use rustix::fs::FallocateFlags;
use strongroom_client::history;
use strongroom_client::profile::{ConnectOptions, Profile, ProfileFolder};
use strongroom_client::session::Session;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::limits::HAVE_MAX_COUNT;
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::record::Totals;
use strongroom_protocol::retention::LockWanted;
use strongroom_server::clock::SystemClock;
use strongroom_server::config::Config;
use strongroom_server::repository::{Repository, Witness};
use strongroom_server::store::NewEnvelope;

const ENVELOPE_BYTES: usize = 100;
const BATCH: u64 = 8192;
const ASKING: u64 = 8;
const ASK_FOR: Duration = Duration::from_secs(8);
/// Odd, so that numbers times it are spread.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Chunks that are stored before a kill: more rows than the log may hold.
const BEFORE_KILL: u64 = 2_000_000;
/// Numbers of those begin here.
const KILLED_FROM: u64 = 1 << 40;
/// Numbers that are nowhere begin here.
const UNKNOWN_FROM: u64 = 1 << 50;
/// What is left at the end of a hollow file: the engine's own index and properties.
const HOLLOW_KEEPS: u64 = 1 << 20;
/// The engine works in the background until nothing below `meta/` changes for so long.
const STILL_FOR: Duration = Duration::from_secs(3);

struct Calm;
impl Witness for Calm {}

/// The limit on questions is for strangers; here one client is to be as fast as it can. Nothing
/// locks the chunks, so collection would sweep them, and a hollow file is damage.
const CONFIG: &str = "[limits]\nhave_per_second = 100000000\n\
                      [gc]\ninterval = \"36500d\"\n[scrub]\ninterval = \"36500d\"\n";

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, data, first, count] = words.as_slice()
        && let Some(is_killed) = ["fill", "kill"].iter().position(|known| known == verb)
    {
        return fill(Path::new(data), first.parse()?, count.parse()?, is_killed == 1);
    }
    let given = words.iter().find_map(|word| word.parse::<u64>().ok());
    let chunks = given.unwrap_or(if has_word("quick") { 1_000_000 } else { 10_000_000 });
    let place = Place::new("bench-index")?;
    println!("{}\n{chunks} chunks of {ENVELOPE_BYTES} bytes", machine());
    let kept = words.iter().find_map(|word| word.strip_prefix("keep="));
    let folder = kept.map_or_else(|| place.scratch.join("run"), PathBuf::from);
    let filled = Filled::find_or_make(&place, &folder, chunks)?;
    let mut rows = if has_word("ask") { Vec::new() } else { starts(&place, &filled)? };
    let server = Server::serve(&place, &filled.folder, filled.address)?;
    rows.extend(questions(&place, &server, &filled)?);
    // Other sizes keep their rows.
    publish(&place, &format!("index, {chunks}"), 1, &rows)
}

/// A data folder with chunks in it, and the client that may ask for them.
struct Filled {
    folder: PathBuf,
    chunks: u64,
    address: SocketAddr,
    client: Client,
}

impl Filled {
    /// Goes on where an earlier fill of the folder ended.
    fn find_or_make(place: &Place, folder: &Path, chunks: u64) -> Result<Self, Failure> {
        let note = folder.join("address");
        let (address, client) = if let Ok(text) = fs::read_to_string(&note) {
            (text.parse()?, Client::at(place, folder, "many"))
        } else {
            let server = Server::start_with(place, folder, CONFIG)?;
            let client = Client::set_up(place, &server, "many", &[])?;
            fs::write(note, server.address.to_string())?;
            (server.address, client)
        };
        let filled = Self { folder: folder.into(), chunks, address, client };
        let made = made_in(folder)?;
        fs::write(folder.join("config.toml"), CONFIG)?;
        if made > chunks {
            return Err(format!("{} has {made} chunks", folder.display()).into());
        }
        if made < chunks {
            let began = Instant::now();
            fill_in_child("fill", &filled.data(), made, chunks - made)?;
            let seconds = began.elapsed().as_secs_f64();
            let size = mb(bytes_below(&filled.data())?);
            println!("{} made in {seconds:.0} s, {size:.0} MB of files", chunks - made);
        }
        Ok(filled)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn meta(&self) -> PathBuf {
        self.data().join("meta")
    }

    fn name(&self, what: &str) -> String {
        format!("{what}, {:.0} million chunks", as_f64(self.chunks) / 1e6)
    }
}

/// How long the server takes to be ready: after a kill, and after an orderly stop.
fn starts(place: &Place, filled: &Filled) -> Result<Vec<Row>, Failure> {
    let salt = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    let first = KILLED_FROM + (u64::try_from(salt)? << 22);
    fill_in_child("kill", &filled.data(), first, BEFORE_KILL)?;
    let mut rows = Vec::new();
    for kind in ["kill", "stop"] {
        let log = sum_of_logs(&filled.meta())?;
        cool_all(&filled.data())?;
        let server = Server::serve(place, &filled.folder, filled.address)?;
        let seconds = server.started_in.as_secs_f64();
        println!("start-up after a {kind}: {seconds:.2} s, {:.0} MB of log", mb(log));
        let name = filled.name(&format!("start-up after a {kind}, cold cache"));
        rows.push(Row::figure(&name, seconds, "s").below(5.0));
        wait_until_still(&filled.meta())?;
        let stopping = Instant::now();
        server.stop();
        println!("stopped in {:.2} s", stopping.elapsed().as_secs_f64());
    }
    Ok(rows)
}

fn questions(place: &Place, server: &Server, filled: &Filled) -> Result<Vec<Row>, Failure> {
    wait_until_still(&filled.meta())?;
    println!("memory before questions: {:.0} MB", mb(server.peak()));
    let runtime = tokio::runtime::Runtime::new()?;
    let mut rows = Vec::new();
    let chunks = filled.chunks;
    for (name, order, first, is_cold) in [
        ("known, random order, cold cache", SPREAD, 0, true),
        ("known, stored order, cold cache", 1, 0, true),
        ("known, random order", SPREAD, 0, false),
        ("known, stored order", 1, 0, false),
        ("unknown, random order", SPREAD, UNKNOWN_FROM, false),
    ] {
        if is_cold {
            cool_all(&filled.data())?;
        } else {
            warm(&filled.meta())?;
        }
        let own = || Usage::of(std::process::id()).map_or(0.0, |usage| usage.cpu_seconds);
        let (own_before, cpu_before) = (own(), server.usage()?.cpu_seconds);
        let asking = ask(&filled.client.home, Numbers { order, first, chunks });
        let (asked, seconds) = runtime.block_on(asking)?;
        let name = filled.name(&format!("lookups, {name}"));
        let row = Row {
            seconds,
            client_cpu_seconds: own() - own_before,
            server_cpu_seconds: server.usage()?.cpu_seconds - cpu_before,
            ..Row::figure(&name, as_f64(asked) / seconds, "/s")
        };
        println!("{name}: {:.0} /s", row.figure);
        rows.push(if is_cold { row } else { row.at_least(200_000.0) });
    }
    // A backup's row resets the peak, so it is looked at before, too.
    let peak = server.peak();
    let dumps = Dumps::find(&place.scratch, true)?;
    let source = format!("day-{}", std::process::id());
    let name = filled.name("first backup");
    let backup = filled.client.backup_row(&name, server, &source, &dumps.days[0])?;
    let peak = peak.max(backup.server_peak_bytes);
    rows.push(backup);
    rows.push(Row::figure(&filled.name("server memory"), mb(peak), "MB").below(2000.0));
    Ok(rows)
}

/// Chunks in a folder that are in segments, numbered from 0.
fn made_in(folder: &Path) -> Result<u64, Failure> {
    let text = fs::read_to_string(folder.join("made")).unwrap_or_else(|_| "0".to_owned());
    Ok(text.parse()?)
}

fn fill_in_child(verb: &str, data: &Path, first: u64, count: u64) -> Result<(), Failure> {
    let mut child = Command::new(std::env::current_exe()?);
    child.arg(verb).arg(data).args([first.to_string(), count.to_string()]);
    let status = child.status()?;
    // A signal has no code.
    if status.success() || (verb == "kill" && status.code().is_none()) {
        return Ok(());
    }
    Err(format!("{child:?}: {status}").into())
}

/// Envelopes into the one namespace of a data folder that nobody serves.
fn fill(data: &Path, first: u64, count: u64, is_killed: bool) -> Result<(), Failure> {
    let clock = Arc::new(SystemClock::default());
    let (repository, _) = Repository::open(data, Config::default(), clock, Arc::new(Calm))?;
    let namespaces = repository.registry().namespaces();
    let ns = namespaces.first().ok_or("no namespace")?.number;
    let totals = Totals::of_chunk(ENVELOPE_BYTES as u64);
    let (began, mut hollowed) = (Instant::now(), 0);
    for at in (0..count).step_by(usize::try_from(BATCH)?) {
        let envelope = |number| {
            let digest = digest(first + number);
            let mut bytes = vec![0; ENVELOPE_BYTES];
            for piece in bytes.chunks_mut(SealedDigest::BYTES) {
                piece.copy_from_slice(&digest.as_bytes()[..piece.len()]);
            }
            NewEnvelope { digest, level: 0, totals, bytes: bytes.into() }
        };
        let batch = (at..count.min(at + BATCH)).map(envelope).collect();
        repository.store().append(ns, batch)?;
        let made = count.min(at + BATCH);
        if made == count || (made / BATCH).is_multiple_of(1000) {
            repository.settle()?;
            hollow(&data.join("chunks"), &mut hollowed)?;
            if !is_killed {
                fs::write(data.with_file_name("made"), (first + made).to_string())?;
                println!("{:.0} s: {} chunks", began.elapsed().as_secs_f64(), first + made);
            }
        }
    }
    if is_killed {
        std::process::abort();
    }
    repository.rest()?;
    wait_until_still(&data.join("meta"))
}

/// With `HOLLOW=1`: gives the disk back what envelopes take in segments numbered from `next`.
fn hollow(chunks: &Path, next: &mut u64) -> Result<(), Failure> {
    if std::env::var_os("HOLLOW").is_none() {
        return Ok(());
    }
    let first = *next;
    for entry in fs::read_dir(chunks)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|name| name.to_str()?.parse::<u64>().ok());
        let Some(number) = number.filter(|number| *number >= first) else { continue };
        let file = File::options().write(true).open(&path)?;
        let bytes = file.metadata()?.len().saturating_sub(HOLLOW_KEEPS);
        if bytes > 0 && path.extension().is_some_and(|ending| ending == "sst") {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, 0, bytes)?;
            *next = (*next).max(number + 1);
        }
    }
    Ok(())
}

/// Takes all files of a folder out of the page cache.
fn cool_all(folder: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            cool_all(&entry.path())?;
        } else if kind.is_file() {
            cool(&entry.path())?;
        }
    }
    Ok(())
}

/// Reads all tables in a folder, so that they are in the page cache, if that has room for them.
fn warm(folder: &Path) -> Result<(), Failure> {
    for path in files_of(folder, "sst")? {
        std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    }
    Ok(())
}

fn sum_of_logs(folder: &Path) -> Result<u64, Failure> {
    let logs = files_of(folder, "log")?;
    logs.iter().map(|path| Ok(fs::metadata(path)?.len())).sum()
}

/// Waits until the tables in a folder have been the same for a while.
fn wait_until_still(folder: &Path) -> Result<(), Failure> {
    let (mut seen, mut since) = (Vec::new(), Instant::now());
    while since.elapsed() < STILL_FOR {
        // A file may go between the look and the question for its size.
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |file| file.len());
        let mut now: Vec<_> =
            files_of(folder, "sst")?.into_iter().map(|path| (size(&path), path)).collect();
        now.sort();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn files_of(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == ending) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Which numbers are asked for, one after the other.
#[derive(Clone, Copy)]
struct Numbers {
    order: u64,
    first: u64,
    chunks: u64,
}

impl Numbers {
    fn digest(self, at: u64) -> SealedDigest {
        digest(self.first + at.wrapping_mul(self.order) % self.chunks)
    }
}

/// Asks for a while, several questions at a time; gives the number of digests that were answered,
/// and the seconds.
async fn ask(home: &Path, numbers: Numbers) -> Result<(u64, f64), Failure> {
    let folder = ProfileFolder::new(&home.join("machine"), "default")?;
    let mut profile = Profile::open(folder)?;
    let client = history::connect(&mut profile, &ConnectOptions::default()).await?;
    let (namespace, source) = (profile.namespace()?, "questions".parse()?);
    let (class, lock) = (SizeClass::Stream, LockWanted::Default);
    let session = Session::open(&client, namespace, &source, class, lock).await?;
    let _renewal = session.keep_alive();
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let asking = (0..ASKING).map(|_| {
        let (session, next) = (session.clone(), next.clone());
        tokio::spawn(async move {
            let count = u64::from(HAVE_MAX_COUNT);
            while began.elapsed() < ASK_FOR {
                let first = next.fetch_add(count, Ordering::Relaxed);
                let digests: Vec<_> = (first..first + count).map(|at| numbers.digest(at)).collect();
                let have = session.have(&digests).await.map_err(|error| error.to_string())?;
                assert!(have.iter().all(|is_there| *is_there == (numbers.first == 0)));
            }
            Ok::<(), String>(())
        })
    });
    let tasks: Vec<_> = asking.collect();
    for task in tasks {
        task.await??;
    }
    let seconds = began.elapsed().as_secs_f64();
    session.close().await;
    Ok((next.load(Ordering::Relaxed), seconds))
}

/// As random as a digest; the store does not check it against the bytes.
fn digest(number: u64) -> SealedDigest {
    let mut state = number;
    let mut bytes = [0; 32];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(SPREAD);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    }
    SealedDigest(bytes)
}
