//! Question: what does a collection cycle cost, in time, memory and in the throughput of those who
//! upload beside it; does its cost follow what is stored, or snapshots times chunks; and does the
//! space that it promises come back?
//!
//! Expected: a cycle looks each stored envelope up twice (mark, guard) and scans the index twice,
//! some microseconds each: 10^6 chunks in 10^3 snapshots in 10 to 20 s, below 60 s, with less than
//! 256 MB more memory (bitmaps of a few MB; the rest is what RocksDB buffers). The same chunks in
//! 10, 100 and 1000 snapshots: within a factor of two of each other, because a node that snapshots
//! share is read once. Upload beside a cycle: 70 % or more of without, at the default pace. Given
//! back of what was promised: 95 % or more. A whole old tree whose locks have ended is raised in
//! seconds, and no other decision waits for more than 50 ms meanwhile. A snapshot in which each
//! hundredth of 10^6 chunks is another one has all its 1960 nodes new: each costs a look for its
//! lock, one for its index row and a row in the batch, some microseconds each, and only the five
//! nodes above level 1 are read: a walk of 10 to 30 ms, below 100 ms.
//!
//! ```text
//! cargo bench --bench gc -- [CHUNKS] [SCENARIO] [FOLDER]     default: 1000000, all, under target/
//! ```
//!
//! Envelopes are small and made up: nodes parse, chunks are filler; the cycle reads no chunks but
//! those that it copies. Trees are three levels of nodes with at most 512 children; each snapshot
//! replaces a run of neighbouring chunks of the one before. MB are decimal.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use strongroom_protocol::certificate::WriterCertificate;
use strongroom_protocol::envelope::{SIV_BYTES, Suite, TAG_BYTES, clear_of_node};
use strongroom_protocol::id::{
    DescriptorDigest, NamespaceId, PrincipalId, PublicKey, RecordDigest, SealedDigest, SessionNonce,
};
use strongroom_protocol::record::Totals;
use strongroom_protocol::record::{Record, RecordBody};
use strongroom_protocol::retention::{Lock, LockWanted, RetentionMode};
use strongroom_server::admin::collector;
use strongroom_server::clock::{Clock, ManualClock, Reading, SystemClock};
use strongroom_server::config::Config;
use strongroom_server::gc::CycleReport;
use strongroom_server::lock::{Plan, Tree, lock_tree};
use strongroom_server::repository::{Repository, Witness};
use strongroom_server::rows::SnapshotRow;
use strongroom_server::store::NewEnvelope;
use strongroom_server::store::schema::Family;

type Failure = Box<dyn std::error::Error>;

const NS: u32 = 1;
const CHUNK_BYTES: usize = 568;
const FANOUT: usize = 512;
const DAY_SECONDS: u64 = 24 * 3600;
const START_MS: u64 = 1_767_225_600_000;
/// What an upload beside the cycle brings.
const UPLOAD_CHUNK_BYTES: usize = 18 << 10;
/// Most that one measurement of uploads writes.
const UPLOAD_MAX_BYTES: u64 = 4 << 30;

struct Calm;
impl Witness for Calm {}

fn main() -> Result<(), Failure> {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let chunks = words.first().map_or(Ok(1_000_000), |word| word.parse::<u64>())?;
    let scenario = words.get(1).map_or("all", String::as_str);
    let wants = |name: &str| scenario == "all" || scenario == name;
    let folder = words.get(2).map_or(Path::new(env!("CARGO_TARGET_TMPDIR")), Path::new);
    // Each scenario has a folder of its own, which goes before the next begins.
    let fresh = || Folder::new(folder.join("gc-bench"));
    println!("| scenario | result |");
    println!("|---|---|");
    for snapshots in [10, 100, 1000].into_iter().filter(|_| wants("curve")) {
        curve(&fresh()?.0, chunks, snapshots)?;
    }
    if wants("scattered") {
        scattered(&fresh()?.0, chunks)?;
    }
    if wants("raise") {
        raise(&fresh()?.0, chunks)?;
    }
    for pace in [0.5, 1.0].into_iter().filter(|_| wants("beside")) {
        beside(&fresh()?.0, chunks / 2, pace)?;
    }
    if wants("space") {
        space(&fresh()?.0, chunks / 4)?;
    }
    Ok(())
}

/// One cycle over `chunks` stored chunks in `snapshots` snapshots; a tenth more is garbage.
fn curve(folder: &Path, chunks: u64, snapshots: u64) -> Result<(), Failure> {
    let bench = Bench::create(folder, 1.0)?;
    let nodes = bench.fill(chunks, snapshots)?;
    bench.append_chunks(1 << 40, chunks / 10)?;
    bench.repository.store().seal()?;
    let before = memory_mib("VmRSS:")?;
    let peak = Sampler::start();
    let began = Instant::now();
    let report = bench.collect()?;
    let seconds = began.elapsed().as_secs_f64();
    let more = peak.stop().saturating_sub(before);
    println!(
        "| cycle: {chunks} chunks, {snapshots} snapshots, {nodes} nodes | {seconds:.1} s, {more} \
         MiB more memory, {} marked, {} quarantined |",
        report.marked_count, report.quarantined_count
    );
    assert_eq!(report.quarantined_count, chunks / 10);
    Ok(())
}

/// Locks snapshots in each of which every hundredth chunk is another one; a day between them.
fn scattered(folder: &Path, chunks: u64) -> Result<(), Failure> {
    let bench = Bench::create(folder, 1.0)?;
    let mut current = bench.append_chunks(0, chunks)?;
    bench.commit(&current)?;
    let (mut walks, mut rows) = (Vec::new(), 0);
    for day in 1..=9u64 {
        bench.clock.advance(Duration::from_secs(DAY_SECONDS));
        let new = bench.append_chunks(day << 40, chunks / 100)?;
        for (digest, place) in new.into_iter().zip((day as usize * 7..).step_by(100)) {
            current[place] = digest;
        }
        let (tree, _) = bench.append_tree(&current)?;
        let now = bench.repository.moment().retention_seconds;
        let until = now + 1000 * DAY_SECONDS;
        let (walk, count) = bench.repository.writer().decide(move |decision| {
            let began = Instant::now();
            let before = decision.batch.len();
            let (store, batch) = (decision.store, &mut decision.batch);
            lock_tree(store, batch, tree, now, until, &|_, _| true)?;
            Ok((began.elapsed(), decision.batch.len() - before))
        })?;
        walks.push(walk);
        rows = rows.max(count);
    }
    walks.sort_unstable();
    let ms = |at: usize| walks[at].as_secs_f64() * 1000.0;
    println!(
        "| lock walk: each hundredth of {chunks} chunks is new, at most {rows} rows | median {:.1} \
         ms, slowest {:.1} ms of {} |",
        ms(walks.len() / 2),
        ms(walks.len() - 1),
        walks.len()
    );
    Ok(())
}

/// Raises a whole tree whose locks have ended, while somebody else decides.
fn raise(folder: &Path, chunks: u64) -> Result<(), Failure> {
    let bench = Bench::create(folder, 1.0)?;
    bench.fill(chunks, 1)?;
    let tree = bench.last_tree();
    bench.clock.advance(Duration::from_secs(4000 * DAY_SECONDS));
    let is_done = Arc::new(AtomicBool::new(false));
    let worst = Arc::new(AtomicU64::new(0));
    let (done, slowest, other) = (is_done.clone(), worst.clone(), bench.repository.clone());
    let prober = std::thread::spawn(move || {
        while !done.load(Ordering::SeqCst) {
            let began = Instant::now();
            let decided = other.writer().decide(|decision| {
                decision.batch.put(Family::Holds, [1], [1]);
                Ok(())
            });
            decided.map_err(|error| error.to_string())?;
            let elapsed = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            slowest.fetch_max(elapsed, Ordering::SeqCst);
        }
        Ok::<(), String>(())
    });
    let began = Instant::now();
    let until = bench.repository.moment().retention_seconds + 100 * DAY_SECONDS;
    bench.repository.lock_in_slices(tree, until)?;
    let seconds = began.elapsed().as_secs_f64();
    is_done.store(true, Ordering::SeqCst);
    prober.join().map_err(|_| "prober panicked")??;
    let worst_ms = worst.load(Ordering::SeqCst) as f64 / 1000.0;
    println!(
        "| raise a tree of {chunks} chunks whose locks have ended | {seconds:.1} s; the slowest \
         other decision took {worst_ms:.1} ms |"
    );
    Ok(())
}

/// Upload throughput beside a whole cycle, against the mean of without, before and after it.
fn beside(folder: &Path, chunks: u64, pace: f64) -> Result<(), Failure> {
    let bench = Bench::create(folder, pace)?;
    bench.fill(chunks, 100)?;
    let alone = |first| {
        let began = Instant::now();
        bench.upload_while(first, || began.elapsed() < Duration::from_secs(4))
    };
    let before = alone(1 << 41)?;
    let cycling = bench.repository.clone();
    let is_done = Arc::new(AtomicBool::new(false));
    let done = is_done.clone();
    let began = Instant::now();
    let cycle = std::thread::spawn(move || {
        let outcome = collector(&cycling).run().map_err(|error| error.to_string());
        done.store(true, Ordering::SeqCst);
        outcome
    });
    let with = bench.upload_while(1 << 42, || !is_done.load(Ordering::SeqCst))?;
    cycle.join().map_err(|_| "cycle panicked")??;
    let seconds = began.elapsed().as_secs_f64();
    let without = (before + alone(1 << 43)?) / 2.0;
    println!(
        "| upload beside a cycle of {seconds:.0} s at pace {pace} | {with:.0} MB/s, without \
             {without:.0} MB/s: {:.0} % |",
        100.0 * with / without
    );
    Ok(())
}

/// Six of ten chunks in each segment are garbage: what is promised must come back.
fn space(folder: &Path, chunks: u64) -> Result<(), Failure> {
    let bench = Bench::create(folder, 1.0)?;
    let mut roots = Vec::new();
    for part in 0..chunks / 10_000 {
        let first = part * 10_000;
        roots.extend(bench.append_chunks(first, 4000)?);
        bench.append_chunks((1 << 40) + first, 6000)?;
    }
    bench.commit(&roots)?;
    bench.repository.store().seal()?;
    let before = bench.repository.store().statistics().segment_bytes;
    bench.collect()?;
    bench.clock.advance(Duration::from_secs(9 * DAY_SECONDS));
    let began = Instant::now();
    let report = bench.collect()?;
    let seconds = began.elapsed().as_secs_f64();
    let after = bench.repository.store().statistics().segment_bytes;
    let given_back = before.saturating_sub(after);
    println!(
        "| reap, copy and drop: {chunks} chunks, six of ten dead | {seconds:.1} s; {} MB of {} MB \
         promised came back: {:.1} %; {} MB were copied |",
        given_back / 1_000_000,
        report.promised_bytes / 1_000_000,
        100.0 * given_back as f64 / report.promised_bytes as f64,
        report.evacuated_bytes / 1_000_000
    );
    Ok(())
}

struct Bench {
    repository: Arc<Repository>,
    clock: Arc<BenchClock>,
    commit: AtomicU64,
    last: std::sync::Mutex<Option<Tree>>,
    filler: Bytes,
}

/// Days by hand, durations as they are.
struct BenchClock {
    manual: ManualClock,
    system: SystemClock,
}

impl Clock for BenchClock {
    fn wall_ms(&self) -> u64 {
        self.manual.wall_ms()
    }

    fn reading(&self) -> Reading {
        self.manual.reading()
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }
}

impl BenchClock {
    fn advance(&self, by: Duration) {
        self.manual.advance(by);
    }
}

impl Bench {
    fn create(folder: &Path, pace: f64) -> Result<Self, Failure> {
        let manual = ManualClock::at_ms(START_MS);
        let clock = Arc::new(BenchClock { manual, system: SystemClock::default() });
        let mut config = Config::default();
        config.gc.pace = pace;
        config.store.segment.0 = 64 << 20;
        config.store.reserve.0 = 1 << 20;
        let (hosts, time) = (vec!["localhost".into()], clock.clone());
        let repository = Repository::create(folder, hosts, 1, config, time, Arc::new(Calm))?;
        let mut filler = vec![0; UPLOAD_CHUNK_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut filler);
        Ok(Self {
            repository: Arc::new(repository),
            clock,
            commit: AtomicU64::new(0),
            last: std::sync::Mutex::new(None),
            filler: filler.into(),
        })
    }

    fn collect(&self) -> Result<CycleReport, Failure> {
        Ok(collector(&self.repository).run()?)
    }

    /// Half of the chunks in the first snapshot, the rest spread over the others; gives the number
    /// of nodes.
    fn fill(&self, chunks: u64, snapshots: u64) -> Result<u64, Failure> {
        let first_count = if snapshots == 1 { chunks } else { chunks / 2 };
        let mut current = self.append_chunks(0, first_count)?;
        let mut nodes = self.commit(&current)?;
        let per_snapshot =
            if snapshots == 1 { 0 } else { (chunks - first_count) / (snapshots - 1) };
        for snapshot in 1..snapshots {
            let first = first_count + (snapshot - 1) * per_snapshot;
            let new = self.append_chunks(first, per_snapshot)?;
            let mut at = (snapshot as usize * 7919 * FANOUT) % current.len();
            for digest in new {
                current[at] = digest;
                at = (at + 1) % current.len();
            }
            nodes += self.commit(&current)?;
        }
        self.repository.store().seal()?;
        Ok(nodes)
    }

    fn append_chunks(&self, first: u64, count: u64) -> Result<Vec<SealedDigest>, Failure> {
        let totals = Totals { chunk_count: 1, sealed_bytes: CHUNK_BYTES as u64 };
        let mut digests = Vec::with_capacity(count as usize);
        let mut batch = Vec::new();
        for number in first..first + count {
            let mut bytes = vec![0; CHUNK_BYTES];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            let digest = SealedDigest::of(&bytes);
            digests.push(digest);
            batch.push(NewEnvelope { digest, level: 0, totals, bytes: bytes.into() });
            if batch.len() == 1024 {
                self.repository.store().append(NS, std::mem::take(&mut batch))?;
            }
        }
        self.repository.store().append(NS, batch)?;
        Ok(digests)
    }

    /// Stores nodes over `chunks`; gives the tree and the number of new nodes.
    fn append_tree(&self, chunks: &[SealedDigest]) -> Result<(Tree, u64), Failure> {
        let (mut below, mut level, mut new) = (chunks.to_vec(), 0u8, 0);
        while level < 3 {
            level += 1;
            let mut row = Vec::new();
            for children in below.chunks(FANOUT) {
                let (digest, is_new) = self.append_node(level, children)?;
                new += u64::from(is_new);
                row.push(digest);
            }
            below = row;
        }
        self.repository.store().seal()?;
        Ok((Tree { ns: NS, root: below[0], level }, new))
    }

    /// Nodes over `chunks`, locks, and a row of `snapshots`; gives the number of new nodes.
    fn commit(&self, chunks: &[SealedDigest]) -> Result<u64, Failure> {
        let (tree, new) = self.append_tree(chunks)?;
        let store = self.repository.store();
        let now = self.repository.moment().retention_seconds;
        let until = now + 1000 * DAY_SECONDS;
        let plan = Plan::make(store, tree, now, until, &|_, _| true)?;
        self.repository.writer().lock_in_slices(plan, || Ok(()))?;
        let commit = self.commit.fetch_add(1, Ordering::SeqCst) + 1;
        let row = snapshot_row(tree, until);
        self.repository.writer().decide(move |decision| {
            let key = SnapshotRow::key(NS, commit);
            decision.batch.put(Family::Snapshots, key, row.encode());
            Ok(())
        })?;
        *self.last.lock().map_err(|_| "poisoned")? = Some(tree);
        Ok(new)
    }

    fn append_node(
        &self,
        level: u8,
        children: &[SealedDigest],
    ) -> Result<(SealedDigest, bool), Failure> {
        let mut bytes = clear_of_node(Suite::Blake3ChaCha20Poly1305, level, children);
        bytes.resize(bytes.len() + SIV_BYTES + 40 * children.len() + TAG_BYTES, 7);
        let digest = SealedDigest::of(&bytes);
        let totals = Totals { chunk_count: 1, sealed_bytes: bytes.len() as u64 };
        let node = NewEnvelope { digest, level, totals, bytes: bytes.into() };
        let appended = self.repository.store().append(NS, vec![node])?;
        Ok((digest, appended.first().is_some_and(|node| !node.duplicate)))
    }

    fn last_tree(&self) -> Tree {
        let last = self.last.lock().map(|last| *last);
        last.ok().flatten().unwrap_or(Tree { ns: 0, root: SealedDigest([0; 32]), level: 1 })
    }

    /// Hashes and stores new envelopes for as long as `goes_on`; gives MB a second.
    fn upload_while(&self, first: u64, goes_on: impl Fn() -> bool) -> Result<f64, Failure> {
        let store = self.repository.store();
        let (began, mut number, mut bytes) = (Instant::now(), first, 0u64);
        while goes_on() && bytes < UPLOAD_MAX_BYTES {
            let mut batch = Vec::new();
            for _ in 0..128 {
                let mut envelope = self.filler.to_vec();
                envelope[..8].copy_from_slice(&number.to_le_bytes());
                number += 1;
                bytes += envelope.len() as u64;
                let digest = SealedDigest::of(&envelope);
                let totals = Totals { chunk_count: 1, sealed_bytes: envelope.len() as u64 };
                batch.push(NewEnvelope { digest, level: 0, totals, bytes: envelope.into() });
            }
            store.append(NS, batch)?;
        }
        store.seal()?;
        store.sync()?;
        Ok(bytes as f64 / 1e6 / began.elapsed().as_secs_f64())
    }
}

/// A row that decodes; nobody verifies its signatures here.
fn snapshot_row(tree: Tree, until_seconds: u64) -> SnapshotRow {
    let key = SigningKey::from_bytes(&[1; 32]);
    let (namespace, principal) = (NamespaceId([1; 32]), PrincipalId([1; 16]));
    let public = PublicKey(key.verifying_key().to_bytes());
    let certificate = WriterCertificate::issue(&key, namespace, 1, principal, public);
    let body = RecordBody {
        namespace,
        epoch: 1,
        descriptor: DescriptorDigest([0; 32]),
        principal,
        source: "bench".parse().unwrap_or_else(|_| unreachable!("a valid label")),
        session_nonce: SessionNonce([0; 32]),
        sequence: 1,
        previous: RecordDigest([0; 32]),
        root: tree.root,
        root_level: tree.level,
        totals: strongroom_protocol::record::Totals { chunk_count: 1, sealed_bytes: 1 },
        padded_plaintext_bytes: 0,
        client_time_ms: 0,
        lock_wanted: LockWanted::Default,
        complete: true,
    };
    let record = Record::sign(body, vec![0; 512], certificate, &key);
    let mode = RetentionMode::Compliance;
    SnapshotRow {
        record_digest: record.digest(),
        committed_ms: START_MS,
        lock: Lock { mode, until_seconds, until_wall_seconds: 0, is_held: false },
        leaf_index: 0,
        record: record.encode(),
    }
}

/// Watches the memory of the process.
struct Sampler {
    is_done: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Sampler {
    fn start() -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while !done.load(Ordering::SeqCst) {
                most = most.max(memory_mib("VmRSS:").unwrap_or(0));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        Self { is_done, thread }
    }

    fn stop(self) -> u64 {
        self.is_done.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or(0)
    }
}

fn memory_mib(name: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
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
