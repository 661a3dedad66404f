//! Question: what does the ledger add to a commit, and how long does an auditor's own work take
//! for 10^6 entries?
//!
//! Expected, on a machine with SHA instructions. **Append**: an entry of some 180 bytes is encoded
//! and hashed (4 blocks of SHA-256), one inner node is hashed on average (2 blocks), and two rows
//! go into the batch: 1 to 2 us; with the write of the rows, in groups of 256, below 10 us, so 10^6
//! in 10 s. **Share of a commit**: append, and one signature of the head (20 to 30 us); a small
//! commit is a request, one segment sealed (four syncs) and one sync more, 1 ms even where a sync
//! takes 0.1 ms, so below 5 %. **Verification**: 10^6 times one leaf
//! and one node are 6 x 10^6 blocks, 0.3 s, and decoding: about 1 s, wanted below 10 s; reading
//! the tiles back costs the server 2 x 10^6 rows, 1 to 2 s.
//!
//! ```text
//! cargo bench --bench ledger -- [ENTRIES] [FOLDER]     default: 1000000, under target/
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use strongroom_client::ledger_reader::TreeCheck;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{NamespaceId, PrincipalId, RecordDigest, SealedDigest};
use strongroom_protocol::retention::{Lock, RetentionMode};
use strongroom_protocol::tile::{Tile, TileContent};
use strongroom_server::ledger::{Appender, Ledger};
use strongroom_server::store::meta::MetaBatch;
use strongroom_server::store::{Store, StoreOptions};

#[path = "../tests/integration/harness.rs"]
#[allow(dead_code, clippy::expect_used, clippy::unwrap_used, reason = "it belongs to the tests")]
mod harness;

use harness::TestServer;

type Failure = Box<dyn std::error::Error>;

/// Decisions under one sync at most, as in the writer.
const GROUP: u64 = 256;
const COMMITS: u64 = 400;

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let entries = arguments.first().map_or(Ok(1_000_000), |word| word.parse::<u64>())?;
    let parent = arguments.get(1).map_or(Path::new(env!("CARGO_TARGET_TMPDIR")), Path::new);
    std::fs::create_dir_all(parent)?;
    let folder = tempfile::tempdir_in(parent)?;
    let (store, _) = Store::open(folder.path(), StoreOptions::default())?;
    let key = SigningKey::from_bytes(&[5; 32]);
    let (ledger, mut appender) = Ledger::open(&store, key, folder.path())?;
    println!("| what | amount | time | each |");
    println!("|---|---|---|---|");
    append(&store, &ledger, &mut appender, entries)?;
    verify(&ledger, entries)?;
    share_of_a_commit(&store, &ledger, &mut appender)?;
    Ok(())
}

fn entry(number: u64) -> Entry {
    let mut record = [0; 32];
    record[..8].copy_from_slice(&number.to_le_bytes());
    let lock = Lock {
        mode: RetentionMode::Compliance,
        until_seconds: number,
        until_wall_seconds: 0,
        is_held: false,
    };
    Entry {
        server_time_ms: number,
        retention_time_seconds: number,
        actor: PrincipalId([1; 16]),
        namespace: NamespaceId([2; 32]),
        event: Event::Committed {
            commit: number,
            record: RecordDigest(record),
            root: SealedDigest(record),
            sequence: number,
            lock,
        },
    }
}

fn append(
    store: &Store,
    ledger: &Ledger,
    appender: &mut Appender,
    entries: u64,
) -> Result<(), Failure> {
    let (mut appending, mut writing) = (Duration::ZERO, Duration::ZERO);
    let mut next = 0;
    while next < entries {
        let mut batch = MetaBatch::new();
        let group: Vec<Entry> = (next..entries.min(next + GROUP)).map(entry).collect();
        let since = Instant::now();
        for entry in &group {
            appender.append(&mut batch, entry);
        }
        appending += since.elapsed();
        let since = Instant::now();
        store.write(&batch)?;
        writing += since.elapsed();
        next += GROUP;
    }
    store.sync()?;
    ledger.publish(appender);
    print("append: encode, hash, batch", entries, appending);
    print("append: write the rows, groups of 256", entries, writing);
    Ok(())
}

fn verify(ledger: &Ledger, entries: u64) -> Result<(), Failure> {
    let (mut reading, mut checking) = (Duration::ZERO, Duration::ZERO);
    let (mut check, mut decoded) = (TreeCheck::new(entries / 2), 0u64);
    let bundles = (0..).map_while(|index| Tile::widest(TileContent::Entries, index, entries));
    for bundle in bundles {
        let since = Instant::now();
        let bytes = ledger.tile(&bundle)?;
        let hashes = ledger.tile(&Tile { content: TileContent::Hashes(0), ..bundle })?;
        reading += since.elapsed();
        let since = Instant::now();
        for bytes in check.add(bundle, &bytes, &hashes)? {
            decoded += u64::from(Entry::decode(bytes).is_ok());
        }
        checking += since.elapsed();
        for (tile, expected) in check.take_completed() {
            assert_eq!(ledger.tile(&tile)?, expected.concat());
        }
    }
    let end = check.finish();
    assert_eq!((end.size, end.root, decoded), (entries, ledger.head().root, entries));
    print("verify: the server reads tiles and bundles", entries, reading);
    print("verify: the auditor's own work (wanted: 10^6 in 10 s)", entries, checking);
    Ok(())
}

/// What a small commit takes, from its request to its receipt, over TLS on loopback; and how much
/// of that is the ledger's. Medians, because other work on the machine lands in single rounds.
fn share_of_a_commit(
    store: &Store,
    ledger: &Ledger,
    appender: &mut Appender,
) -> Result<(), Failure> {
    let (mut appends, mut signatures) = (Vec::new(), Vec::new());
    for number in 0..COMMITS {
        let (mut batch, entry) = (MetaBatch::new(), entry(number));
        let since = Instant::now();
        appender.append(&mut batch, &entry);
        appends.push(since.elapsed());
        store.write(&batch)?;
        store.sync()?;
        let since = Instant::now();
        ledger.publish(appender);
        signatures.push(since.elapsed());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let commits = runtime.block_on(commits())?;
    let (whole, append, sign) = (median(commits), median(appends), median(signatures));
    print("commit: request, seal, decision, sync, receipt (median)", 1, whole);
    print("ledger: append an entry (median)", 1, append);
    print("ledger: sign the head (median)", 1, sign);
    let share = (append + sign).as_secs_f64() / whole.as_secs_f64() * 100.0;
    println!("\nthe ledger's share of a small commit: {share:.2} % (wanted: below 5 %)");
    Ok(())
}

/// Times of commits of one new chunk, each in a session of its own.
async fn commits() -> Result<Vec<Duration>, Failure> {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let mut times = Vec::new();
    for number in 0..COMMITS {
        let session = writer.session("log").await;
        let (_, record) = writer.uploaded(&session, "log", &[&number.to_le_bytes()]).await;
        let record = record.encode();
        let since = Instant::now();
        session.commit(record.into()).await?;
        times.push(since.elapsed());
    }
    drop(server.stop().await);
    Ok(times)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn print(what: &str, count: u64, time: Duration) {
    let each = time.as_secs_f64() * 1e6 / count as f64;
    println!("| {what} | {count} | {:.2} s | {each:.2} us |", time.as_secs_f64());
}
