//! Question: what does an index of 10^8 chunks cost those who ask, whoever starts the server, and
//! its memory?
//!
//! Expected: a question of 8192 digests is sorted and read in one pass; a digest that is known
//! costs a filter, a block of the index and its decompression, some microseconds, so 200 000 a
//! second or more on two cores while hot blocks are in the page cache; one that is unknown costs
//! the filter.
//! Opening compares the catalogue with the files, a row a segment, and replays the log, at most
//! 128 MB or a million index rows, whatever the index holds: 1 to 3 s, below 5 s. Memory is the
//! block cache, the filters and indexes of the tables in it: below 2 GB.
//!
//! ```text
//! cargo bench --bench index -- [CHUNKS] [quick]      default: 10000000; with quick 1000000
//! ```
//!
//! Made-up envelopes of 100 bytes with made-up digests go straight into the store of a data folder
//! that a client was enrolled on. Then `strongroomd` serves the folder, from a cold cache, and the
//! client's own session asks over TLS what the server has, 8 questions at a time. Last, that client
//! backs up the first 200 MB of a dump. 10^8 chunks take 25 GB of disk and half an hour or so to
//! make.

mod harness;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::place::{Dumps, Place, bytes_below};
use harness::programs::{Client, Server};
use harness::reference::cool;
use harness::rows::{Row, machine, publish};
use harness::{Failure, as_f64, has_word, mb};
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
const BATCH: usize = 8192;
const ASKING: u64 = 8;
const ASK_FOR: Duration = Duration::from_secs(8);
/// Odd, so that numbers times it are spread.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

struct Calm;
impl Witness for Calm {}

/// The limit on questions is for strangers; here one client is to be as fast as it can.
const CONFIG: &str = "[limits]\nhave_per_second = 100000000\n";

fn main() -> Result<(), Failure> {
    let given = std::env::args().find_map(|word| word.parse::<u64>().ok());
    let chunks = given.unwrap_or(if has_word("quick") { 1_000_000 } else { 10_000_000 });
    let place = Place::new("bench-index")?;
    println!("{}\n{chunks} chunks of {ENVELOPE_BYTES} bytes", machine());
    let folder = place.folder("run")?;
    let server = Server::start_with(&place, &folder, CONFIG)?;
    let client = Client::set_up(&place, &server, "many", &[])?;
    let (address, data) = (server.address, server.data());
    server.stop();
    let began = Instant::now();
    fill(&data, chunks)?;
    let seconds = began.elapsed().as_secs_f64();
    println!("made in {seconds:.0} s, {:.0} MB on disk", mb(bytes_below(&data)?));
    cool_all(&data)?;
    let server = Server::serve(&place, &folder, address)?;
    let rows = questions(&place, &server, &client, chunks)?;
    // Other sizes keep their rows.
    publish(&place, &format!("index, {chunks}"), 1, &rows)
}

fn questions(
    place: &Place,
    server: &Server,
    client: &Client,
    chunks: u64,
) -> Result<Vec<Row>, Failure> {
    let name = |what: &str| format!("{what}, {:.0} million chunks", as_f64(chunks) / 1e6);
    let start = server.started_in.as_secs_f64();
    let mut rows = vec![Row::figure(&name("start-up, cold cache"), start, "s").below(5.0)];
    let runtime = tokio::runtime::Runtime::new()?;
    for (kind, first) in [("known", 0), ("unknown", chunks)] {
        let cpu_before = server.usage()?.cpu_seconds;
        let (asked, seconds) = runtime.block_on(ask(&client.home, first, chunks))?;
        let row = Row {
            seconds,
            server_cpu_seconds: server.usage()?.cpu_seconds - cpu_before,
            ..Row::figure(&name(&format!("lookups, {kind}")), as_f64(asked) / seconds, "/s")
        };
        rows.push(row.at_least(200_000.0));
    }
    // A backup's row resets the peak, so it is looked at before, too.
    let peak = server.peak();
    let dumps = Dumps::find(&place.scratch, true)?;
    let backup = client.backup_row(&name("first backup"), server, "day", &dumps.days[0])?;
    let peak = peak.max(backup.server_peak_bytes);
    rows.push(backup);
    rows.push(Row::figure(&name("server memory"), mb(peak), "MB").below(2000.0));
    Ok(rows)
}

/// Envelopes into the one namespace of a data folder that nobody serves.
fn fill(data: &Path, chunks: u64) -> Result<(), Failure> {
    let clock = Arc::new(SystemClock::default());
    let (repository, _) = Repository::open(data, Config::default(), clock, Arc::new(Calm))?;
    let namespaces = repository.registry().namespaces();
    let ns = namespaces.first().ok_or("no namespace")?.number;
    let totals = Totals::of_chunk(ENVELOPE_BYTES as u64);
    for first in (0..chunks).step_by(BATCH) {
        let envelope = |number| {
            let digest = digest(number);
            let mut bytes = vec![0; ENVELOPE_BYTES];
            for piece in bytes.chunks_mut(SealedDigest::BYTES) {
                piece.copy_from_slice(&digest.as_bytes()[..piece.len()]);
            }
            NewEnvelope { digest, level: 0, totals, bytes: bytes.into() }
        };
        let batch = (first..chunks.min(first + BATCH as u64)).map(envelope).collect();
        repository.store().append(ns, batch)?;
    }
    repository.store().seal()?;
    repository.store().sync()?;
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

/// Asks for a while, several questions at a time, for numbers spread over `chunks` after `first`;
/// gives the number of digests that were answered, and the seconds.
async fn ask(home: &Path, first: u64, chunks: u64) -> Result<(u64, f64), Failure> {
    let folder = ProfileFolder::new(&home.join("machine"), "default")?;
    let mut profile = Profile::open(folder)?;
    let client = history::connect(&mut profile, &ConnectOptions::default()).await?;
    let (namespace, source) = (profile.namespace()?, "questions".parse()?);
    let (class, lock) = (SizeClass::Stream, LockWanted::Default);
    let session = Session::open(&client, namespace, &source, class, lock).await?;
    let _renewal = session.keep_alive();
    let began = Instant::now();
    let asking = (0..ASKING).map(|task| {
        let session = session.clone();
        tokio::spawn(async move {
            let mut asked = 0;
            while began.elapsed() < ASK_FOR {
                let number = |at: u64| {
                    let spread = ((task << 32) | (asked + at)).wrapping_mul(SPREAD);
                    digest(first + spread % chunks)
                };
                let digests: Vec<_> = (0..u64::from(HAVE_MAX_COUNT)).map(number).collect();
                let have = session.have(&digests).await.map_err(|error| error.to_string())?;
                assert!(have.iter().all(|is_there| *is_there == (first == 0)));
                asked += u64::from(HAVE_MAX_COUNT);
            }
            Ok::<u64, String>(asked)
        })
    });
    let tasks: Vec<_> = asking.collect();
    let mut asked = 0;
    for task in tasks {
        asked += task.await??;
    }
    let seconds = began.elapsed().as_secs_f64();
    session.close().await;
    Ok((asked, seconds))
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
