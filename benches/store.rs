//! Question: does the store take incompressible envelopes of 64 KiB and 18 KiB durably at 500 MB/s
//! or more, for at most one CPU-second per GB?
//!
//! Expected, on a disk that takes 1000 MB/s: each byte is copied to the page cache once and
//! checksummed once, so about the rate of a plain file with fdatasync, and below one CPU-second per
//! GB. Reading back in order: 1000 MB/s or more. Index lookups: a few microseconds each while the
//! index is in memory, so 200 000 a second or more. Small commits: a third or more of what the same
//! bytes reach that are appended to a plain file with an fdatasync each: the log takes the bytes
//! with a record and index rows, the memtable takes them again, and some commits wait for a flush.
//!
//! ```text
//! cargo bench --bench store -- [MIB] [SEGMENT_MIB] [FOLDER]     default: 2048, 256, under target/
//! ```
//!
//! The reference runs in the same minute on the same disk: a plain file, written in equal pieces.
//! CPU-seconds are those of this process, kernel time included. MB and GB are decimal.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Totals;
use strongroom_server::store::meta::MetaBatch;
use strongroom_server::store::schema::Family;
use strongroom_server::store::{NewEnvelope, Store, StoreOptions};

type Failure = Box<dyn std::error::Error>;

const NS: u32 = 1;
/// Envelopes handed over at once: an upload request of some megabytes.
const BATCH_COUNT: usize = 64;
/// Digests of one "have" question and of one read.
const QUESTION_COUNT: usize = 4096;
const POOL_BYTES: usize = 64 << 20;
const INDEX_ROWS: u64 = 1_000_000;
const COMMITS: u64 = 500;
/// A small commit: some envelopes of compressed log.
const COMMIT_ENVELOPES: u64 = 4;
const COMMIT_ENVELOPE_BYTES: usize = 18 << 10;

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let mib = arguments.first().map_or(Ok(2048), |word| word.parse::<u64>())?;
    let segment_mib = arguments.get(1).map_or(Ok(256), |word| word.parse::<u64>())?;
    let folder = arguments.get(2).map_or(Path::new(env!("CARGO_TARGET_TMPDIR")), Path::new);
    let folder = Folder::new(folder.join("store-bench"))?;
    let pool = Pool::new()?;
    println!("| scenario | amount | rate | CPU-s/GB | against reference |");
    println!("|---|---|---|---|---|");
    for kib in [64, 18] {
        sequential(&folder.0, &pool, (mib << 20, segment_mib << 20), kib << 10)?;
    }
    lookups(&folder.0, &pool)?;
    small_commits(&folder.0, &pool)?;
    println!("\npeak memory of the process: {} MiB, {} of them test data", peak_mib()?, 64);
    Ok(())
}

/// Plain file, store, and reading back, in envelopes of `piece` bytes.
fn sequential(
    folder: &Path,
    pool: &Pool,
    (bytes, segment_bytes): (u64, u64),
    piece: usize,
) -> Result<(), Failure> {
    let options = || StoreOptions { segment_bytes, ..StoreOptions::default() };
    let count = bytes / piece as u64;
    let bytes = count * piece as u64;
    let label = format!("{} KiB", piece >> 10);
    let mut plain = Lap::begin()?;
    let mut file = File::create(folder.join("plain"))?;
    for number in 0..count {
        file.write_all(pool.piece(number, piece))?;
    }
    file.sync_data()?;
    plain.end(bytes)?;
    plain.print(&format!("{label}: plain file, fdatasync"), bytes, None);
    fs::remove_file(folder.join("plain"))?;

    let path = folder.join("data");
    let (store, _) = Store::open(&path, options())?;
    let mut stored = Lap::begin()?;
    for first in (0..count).step_by(BATCH_COUNT) {
        let numbers = first..count.min(first + BATCH_COUNT as u64);
        let batch = numbers.map(|number| pool.envelope(number, piece)).collect();
        store.append(NS, batch)?;
    }
    store.seal()?;
    store.sync()?;
    stored.end(bytes)?;
    stored.print(&format!("{label}: store, sealed and synced"), bytes, Some(&plain));
    drop(store);

    let mut opened = Lap::begin()?;
    let (store, report) = Store::open(&path, options())?;
    opened.end(bytes)?;
    let (segments, ms) = (report.segment_count, opened.seconds * 1000.0);
    println!("| {label}: open check | {segments} segments | {ms:.0} ms | | |");
    let mut back = Lap::begin()?;
    let mut read_bytes = 0;
    let numbers: Vec<_> = (0..count).collect();
    for numbers in numbers.chunks(QUESTION_COUNT) {
        let digests: Vec<_> = numbers.iter().map(|number| digest(*number)).collect();
        store.read(NS, &digests, &mut |_, envelope| {
            read_bytes += envelope.len() as u64;
            Ok(())
        })?;
    }
    assert_eq!(read_bytes, bytes);
    back.end(bytes)?;
    back.print(&format!("{label}: store, read in order"), bytes, None);
    drop(store);
    fs::remove_dir_all(path)?;
    Ok(())
}

/// Batched lookups in an index of a million rows, before and after a restart.
fn lookups(folder: &Path, pool: &Pool) -> Result<(), Failure> {
    let path = folder.join("data");
    let mut store = Store::open(&path, StoreOptions::default())?.0;
    for first in (0..INDEX_ROWS).step_by(QUESTION_COUNT) {
        let numbers = first..INDEX_ROWS.min(first + QUESTION_COUNT as u64);
        store.append(NS, numbers.map(|number| pool.envelope(number, 64)).collect())?;
    }
    store.seal()?;
    store.sync()?;
    for state in ["same process", "after a restart"] {
        for (kind, offset) in [("known", 0), ("unknown", INDEX_ROWS)] {
            let mut lap = Lap::begin()?;
            let asked = 100 * QUESTION_COUNT as u64;
            for question in 0..100u64 {
                let first = question * 7919;
                let numbers = (first..first + QUESTION_COUNT as u64).map(|n| n * 31 % INDEX_ROWS);
                let digests: Vec<_> = numbers.map(|number| digest(number + offset)).collect();
                let found = store.lookup(NS, &digests)?.iter().flatten().count();
                assert_eq!(found, if offset == 0 { QUESTION_COUNT } else { 0 });
            }
            lap.end(1)?;
            let (rate, cost) = (asked as f64 / lap.seconds, lap.cpu * 1e6 / asked as f64);
            println!("| lookups, {kind}, {state} | {asked} | {rate:.0}/s | {cost:.1} us each | |");
        }
        drop(store);
        store = Store::open(&path, StoreOptions::default())?.0;
    }
    drop(store);
    fs::remove_dir_all(path)?;
    Ok(())
}

/// Small sessions, one after the other: envelopes, a record, one sync.
fn small_commits(folder: &Path, pool: &Pool) -> Result<(), Failure> {
    let bytes = COMMITS * COMMIT_ENVELOPES * COMMIT_ENVELOPE_BYTES as u64;
    let mut plain = Lap::begin()?;
    let mut file = File::create(folder.join("plain"))?;
    for number in 0..COMMITS * COMMIT_ENVELOPES {
        file.write_all(pool.piece(number, COMMIT_ENVELOPE_BYTES))?;
        if (number + 1) % COMMIT_ENVELOPES == 0 {
            file.sync_data()?;
        }
    }
    plain.end(bytes)?;
    let reference = COMMITS as f64 / plain.seconds;
    println!("| small commits: plain file, fdatasync each | {COMMITS} | {reference:.0}/s | | |");
    let path = folder.join("data");
    let store = Store::open(&path, StoreOptions::default())?.0;
    let mut lap = Lap::begin()?;
    for commit in 0..COMMITS {
        let numbers = commit * COMMIT_ENVELOPES..(commit + 1) * COMMIT_ENVELOPES;
        let envelopes = numbers.map(|number| pool.envelope(number, COMMIT_ENVELOPE_BYTES));
        store.append_inbox(NS, envelopes.collect())?;
        let mut batch = MetaBatch::new();
        let key = [&NS.to_be_bytes()[..], &commit.to_be_bytes()[..]].concat();
        batch.put(Family::Snapshots, key, pool.piece(commit, 1500));
        store.write(&batch)?;
        store.sync()?;
    }
    lap.end(bytes)?;
    let (rate, ratio) = (COMMITS as f64 / lap.seconds, plain.seconds / lap.seconds);
    println!("| small commits: inbox, record, sync | {COMMITS} | {rate:.0}/s | | {ratio:.2} |");
    Ok(())
}

/// Wall time and CPU time between two moments.
struct Lap {
    began: Instant,
    cpu_before: f64,
    seconds: f64,
    cpu: f64,
    rate: f64,
}

impl Lap {
    fn begin() -> Result<Lap, Failure> {
        let cpu_before = cpu_seconds()?;
        Ok(Lap { began: Instant::now(), cpu_before, seconds: 0.0, cpu: 0.0, rate: 0.0 })
    }

    fn end(&mut self, bytes: u64) -> Result<(), Failure> {
        self.seconds = self.began.elapsed().as_secs_f64();
        self.cpu = cpu_seconds()? - self.cpu_before;
        self.rate = bytes as f64 / 1e6 / self.seconds;
        Ok(())
    }

    fn print(&self, label: &str, bytes: u64, reference: Option<&Lap>) {
        let cost = self.cpu / (bytes as f64 / 1e9);
        let ratio = reference.map_or(String::new(), |lap| format!("{:.2}", self.rate / lap.rate));
        let (megabytes, rate) = (bytes / 1_000_000, self.rate);
        println!("| {label} | {megabytes} MB | {rate:.0} MB/s | {cost:.2} | {ratio} |");
    }
}

/// Random bytes, of which every envelope is a slice.
struct Pool(NewEnvelope);

impl Pool {
    fn new() -> Result<Pool, Failure> {
        let mut bytes = vec![0; POOL_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let totals = Totals::default();
        Ok(Pool(NewEnvelope { digest: digest(0), level: 0, totals, bytes: bytes.into() }))
    }

    fn offset(&self, number: u64, length: usize) -> usize {
        (number as usize).wrapping_mul(length + 4099) % (POOL_BYTES - length)
    }

    fn piece(&self, number: u64, length: usize) -> &[u8] {
        let offset = self.offset(number, length);
        &self.0.bytes[offset..offset + length]
    }

    fn envelope(&self, number: u64, length: usize) -> NewEnvelope {
        let offset = self.offset(number, length);
        let totals = Totals::of_chunk(length as u64);
        let bytes = self.0.bytes.slice(offset..offset + length);
        NewEnvelope { digest: digest(number), level: 0, totals, bytes }
    }
}

/// As random as a digest; the store does not check it against the bytes.
fn digest(number: u64) -> SealedDigest {
    let mut state = number;
    let mut bytes = [0; 32];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    }
    SealedDigest(bytes)
}

/// User and kernel time of this process so far.
fn cpu_seconds() -> Result<f64, Failure> {
    let line = fs::read_to_string("/proc/self/stat")?;
    let fields = line.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}

fn peak_mib() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib = line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) >> 10)
}

/// A folder that goes away with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Result<Folder, Failure> {
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
