//! Damage at rest: scrub finds it, it alarms once, the next backup heals it, and nothing that is
//! locked is lost by it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::sealer::SealedNode;
use strongroom_client::transport::RetryPolicy;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::message::SizeClass;
use strongroom_server::clock::ManualClock;
use strongroom_server::config::Config;
use strongroom_server::error::ServerError;
use strongroom_server::repository::Repository;
use strongroom_server::scrub::{self, ScrubReport};
use strongroom_server::store::error::StoreError;
use strongroom_server::store::schema::{IndexRow, SegmentRow};
use tempfile::TempDir;

use crate::gc::{
    assert_whole, collect, commit, forget, gc_config, noise, number, snapshot, sync_up, tree_of,
};
use crate::gc_damage::{Flip, rows_of};
use crate::harness::{
    Actor, DAY, TestServer, Tree, copy_folder, digests, frames, program, refused_with, unpack_dumps,
};

pub fn scrub_config(config: &mut Config) {
    gc_config(config);
    config.scrub.pace = 1.0;
}

/// Flips a bit in the middle of an envelope, wherever a segment holds it.
pub fn flip_in_segments(data: &Path, envelope: &[u8]) {
    let sample = &envelope[envelope.len() / 2..][..24];
    let mut flipped = 0;
    for file in std::fs::read_dir(data.join("chunks")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|end| end != "sst") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let places: Vec<usize> =
            bytes.windows(24).enumerate().filter(|(_, w)| *w == sample).map(|(at, _)| at).collect();
        for at in places {
            bytes[at] ^= 1;
            flipped += 1;
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(flipped > 0, "no segment holds it");
}

/// Flips a bit of an index row: of key and value, counted from the first of the value.
pub fn flip_in_row(data: &Path, family: &'static str, digest: &SealedDigest, byte: isize, bit: u8) {
    let rows = rows_of(data, family);
    let (key, _) = rows.iter().find(|(key, _)| key.ends_with(&digest.0)).unwrap();
    let byte = key.len().checked_add_signed(byte).unwrap();
    Flip { family, key: key.clone(), byte, bit }.apply(data);
}

fn flip_in_inbox(data: &Path, envelope: &[u8]) {
    let rows = rows_of(data, "inbox");
    let (key, value) = rows.iter().find(|(_, value)| value.ends_with(envelope)).unwrap();
    let byte = key.len() + value.len() - envelope.len() / 2;
    Flip { family: "inbox", key: key.clone(), byte, bit: 3 }.apply(data);
}

pub async fn run(repository: &Arc<Repository>) -> ScrubReport {
    let repository = repository.clone();
    tokio::task::spawn_blocking(move || scrub::run(&repository).unwrap()).await.unwrap()
}

/// Counts in ledger entries: found damaged, repaired.
pub fn entered(repository: &Repository) -> (u64, u64) {
    let ledger = repository.ledger();
    let leaves = 0..ledger.head().size;
    let entries = leaves.map(|leaf| Entry::decode(&ledger.entry(leaf).unwrap()).unwrap());
    entries.fold((0, 0), |(damaged, repaired), entry| match entry.event {
        Event::Damaged { count, .. } => (damaged + count, repaired),
        Event::Repaired { count, .. } => (damaged, repaired + count),
        _ => (damaged, repaired),
    })
}

pub fn row(repository: &Repository, writer: &Actor, digest: &SealedDigest) -> Option<IndexRow> {
    let ns = number(repository, writer);
    repository.store().lookup(ns, &[*digest]).unwrap().pop().flatten()
}

fn read(repository: &Repository, writer: &Actor, digest: SealedDigest) -> Result<(), ServerError> {
    repository.check_readable(&writer.namespace(), &[digest])?;
    repository.read(&writer.namespace(), &[digest], &mut |_| ControlFlow::Continue(()))
}

/// Serves a folder at the address where it was served before.
pub async fn reopen(
    folder: Arc<TempDir>,
    clock: Arc<ManualClock>,
    address: SocketAddr,
) -> TestServer {
    let change = |config: &mut Config| {
        scrub_config(config);
        config.listen = address;
    };
    TestServer::open_with(folder, clock, change).await
}

/// Envelopes of a tree that are known to be damaged; all others are read. (Neighbours of what was
/// flipped may share its block, and be damaged with it.)
fn damaged_of(repository: &Repository, writer: &Actor, tree: &Tree) -> BTreeSet<SealedDigest> {
    let all: BTreeSet<SealedDigest> = digests(&tree.envelopes()).into_iter().collect();
    let is_damaged = |digest: &SealedDigest| row(repository, writer, digest).unwrap().damaged;
    let (damaged, whole): (BTreeSet<_>, BTreeSet<_>) = all.into_iter().partition(is_damaged);
    whole.into_iter().for_each(|digest| read(repository, writer, digest).unwrap());
    damaged
}

fn locks_of(data: &Path) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    rows_of(data, "locks").into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_are_found_once_and_healed_by_the_next_backup() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 12));
    snapshot(&writer, "db", &tree).await;
    let small = tree_of(&writer, &noise(2, 3));
    let session = writer.session_of("small", SizeClass::Small).await.unwrap();
    sync_up(&session, &small).await;
    commit(&writer, &session, "small", &small).await;
    assert_eq!(run(&server.repository).await.damaged_count, 0, "nothing is wrong yet");
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    let (chunk, node) = (&tree.chunks[4], &tree.nodes[1].envelope);
    flip_in_segments(&data, chunk);
    flip_in_segments(&data, node);
    flip_in_inbox(&data, &small.chunks[2]);
    let locks = locks_of(&data);
    let server = reopen(folder, clock, address).await;
    let repository = server.repository.clone();
    let report = run(&repository).await;
    let (of_tree, of_small) =
        (damaged_of(&repository, &writer, &tree), damaged_of(&repository, &writer, &small));
    assert!(
        of_tree.contains(&SealedDigest::of(chunk)) && of_tree.contains(&SealedDigest::of(node))
    );
    assert!(of_small.contains(&SealedDigest::of(&small.chunks[2])));
    let count = of_tree.union(&of_small).count() as u64;
    assert_eq!((report.damaged_count, report.known_count), (count, count));
    // Exactly once, however often it is met.
    let again = run(&repository).await;
    assert_eq!((again.damaged_count, again.known_count), (0, count));
    assert!(read(&repository, &writer, SealedDigest::of(chunk)).is_err());
    repository.tick();
    assert_eq!(entered(&repository), (count, 0));

    // It is lacking, and so are nodes while anything is damaged. The next backup heals.
    let session = writer.session("db").await;
    let have = session.have(&digests(&tree.chunks)).await.unwrap();
    let chunks = tree.chunks.iter().map(|chunk| SealedDigest::of(chunk));
    assert!(have.iter().zip(chunks).all(|(have, chunk)| *have != of_tree.contains(&chunk)));
    assert!(!session.have(&[tree.root.digest]).await.unwrap()[0]);
    sync_up(&session, &tree).await;
    commit(&writer, &session, "db", &tree).await;
    let session = writer.session_of("small", SizeClass::Small).await.unwrap();
    sync_up(&session, &small).await;
    commit(&writer, &session, "small", &small).await;
    repository.tick();
    assert_eq!(entered(&repository), (count, count));
    assert_whole(&repository, &writer, &tree);
    assert_whole(&repository, &writer, &small);
    let healed = run(&repository).await;
    assert_eq!((healed.damaged_count, healed.known_count), (0, 0));
    assert_eq!((healed.damaged_total, healed.repaired_total), (count, count));
    let session = writer.session("db").await;
    assert!(session.have(&[tree.root.digest]).await.unwrap()[0]);
    drop(repository);
    let (folder, _) = server.stop().await;
    let after = locks_of(&folder.path().join("data"));
    let keys: BTreeSet<_> = after.iter().map(|(key, _)| key.clone()).collect();
    assert!(locks.iter().all(|(key, _)| keys.contains(key)), "a lock is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_meets_damage_marks_it_and_the_client_says_what_to_do() {
    let server = TestServer::start_with(scrub_config).await;
    let mut writer = server.writer("erp").await;
    let files = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(files.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    let address = server.address;
    let (folder, clock) = server.stop().await;
    // The longest chunk of the first segment that has one.
    let server = reopen(folder, clock, address).await;
    let store = server.repository.store();
    let found = store.scan_index(None, usize::MAX).unwrap();
    let longest = found.iter().filter(|f| f.row.level == 0).max_by_key(|f| f.row.length).unwrap();
    let (digest, slot) = (longest.digest, longest.row.slot);
    let envelope = store.slot_bytes(slot).unwrap().unwrap();
    let address = server.address;
    let (folder, clock) = server.stop().await;
    flip_in_segments(&folder.path().join("data"), &envelope);
    let server = reopen(folder, clock, address).await;
    let mut connect = server.connect();
    connect.retry = RetryPolicy {
        attempts: 6,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(5),
    };
    let mut kit = writer.kit();
    kit.servers = connect.servers.clone();
    let access = ReadAccess::with_kit(&kit, &connect, false).await.unwrap();
    let target = files.path().join("restored");
    let options =
        RestoreOptions { overwrite: true, ..RestoreOptions::to(Target::Path(target.clone())) };
    let restored = restore::restore(&access, summary.snapshot, &options, &Monitor::hidden()).await;
    let message = restored.unwrap_err().to_string();
    assert!(message.contains("damaged") && message.contains("--from-replica"), "{message}");
    assert!(message.contains(&digest.to_string()), "{message}");
    assert!(!target.exists());
    assert_eq!(server.repository.damage().count(), 1);
    assert_eq!(entered(&server.repository), (1, 0));
    // A backup of the same data heals it, and then it restores.
    writer.connect = connect.clone();
    writer.backup("db", &day0).await.unwrap();
    server.repository.tick();
    assert_eq!(entered(&server.repository), (1, 1));
    restore::restore(&access, summary.snapshot, &options, &Monitor::hidden()).await.unwrap();
    assert!(std::fs::read(&target).unwrap() == std::fs::read(&day0).unwrap());
}

/// Flags, level, segment, slot, length of an index row; and the end of its key.
const ROW_BYTES: [isize; 7] = [0, 1, 2, 5, 6, 10, -20];

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_index_row_is_found_and_put_right_from_the_segment_itself() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let (one, two) = (tree_of(&writer, &noise(1, 5)), tree_of(&writer, &noise(2, 5)));
    snapshot(&writer, "one", &one).await;
    snapshot(&writer, "two", &two).await;
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let victims = [
        SealedDigest::of(&one.chunks[2]),
        SealedDigest::of(&one.nodes[1].envelope),
        one.root.digest,
    ];
    for victim in victims {
        for byte in ROW_BYTES {
            for bit in [0, 3].into_iter().filter(|bit| *bit == 0 || byte < 7) {
                let copy = Arc::new(tempfile::tempdir().unwrap());
                let data = copy.path().join("data");
                copy_folder(&folder.path().join("data"), &data);
                flip_in_row(&data, "index", &victim, byte, bit);
                let server = reopen(copy, clock.clone(), address).await;
                let repository = server.repository.clone();
                let what = format!("{victim} byte {byte} bit {bit}");
                let first = run(&repository).await;
                assert!(first.damaged_count > 0, "{what}: {first:?}");
                // What came to light late is mended from the tables in the next pass.
                run(&repository).await;
                let last = run(&repository).await;
                assert_eq!(last.damaged_count, 0, "{what}: {last:?}");
                // A row under a wrong name stays on the list until it is collected.
                let is_key = byte < 0;
                assert_eq!(last.known_count, u64::from(is_key), "{what}: {last:?}");
                assert_whole(&repository, &writer, &one);
                assert_whole(&repository, &writer, &two);
                if !is_key {
                    collect(&repository).unwrap();
                    assert_whole(&repository, &writer, &one);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_row_that_does_not_decode_stops_no_backup() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 5));
    snapshot(&writer, "one", &tree).await;
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let chunk = SealedDigest::of(&tree.chunks[2]);
    flip_in_row(&folder.path().join("data"), "index", &chunk, 0, 6);
    let server = reopen(folder, clock, address).await;
    let session = writer.session("one").await;
    assert_eq!(sync_up(&session, &tree).await, 1);
    commit(&writer, &session, "one", &tree).await;
    assert_whole(&server.repository, &writer, &tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_segment_is_refused_and_an_empty_file_in_its_place_is_damage_that_heals() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let (gone, kept) = (tree_of(&writer, &noise(1, 12)), tree_of(&writer, &noise(2, 12)));
    snapshot(&writer, "gone", &gone).await;
    let store = server.repository.store();
    let (_, lost) = store.catalogue().unwrap()[0];
    snapshot(&writer, "kept", &kept).await;
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    let file = data.join(format!("chunks/{:06}.sst", lost.file_number));
    std::fs::remove_file(&file).unwrap();
    let time: Arc<dyn strongroom_server::clock::Clock> = clock.clone();
    let config = crate::harness::test_config(scrub_config);
    let refused = Repository::open(&data, config, time, Arc::new(crate::harness::Calm));
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("file is missing"), "{message}");
    // An operator who has no copy of the file puts one of the right size there.
    std::fs::File::create(&file).unwrap().set_len(lost.file_bytes).unwrap();
    let server = reopen(folder, clock, address).await;
    let report = run(&server.repository).await;
    let count = digests(&gone.envelopes()).into_iter().collect::<BTreeSet<_>>().len() as u64;
    assert_eq!(report.known_count, count, "{report:?}");
    let again = run(&server.repository).await;
    assert_eq!((again.damaged_count, again.problem_count), (0, report.problem_count));
    assert_eq!(entered(&server.repository), (count, 0));
    // The segment's table is a problem that stays, and alarms once: not after a restart either.
    let told = |server: &TestServer| server.repository.metrics().damage.told_problems.get();
    assert_eq!((report.problem_count, told(&server)), (1, 1));
    let server =
        server.restart_with(|config| (scrub_config(config), config.listen = address).1).await;
    assert_eq!(run(&server.repository).await.problem_count, 1);
    assert_eq!(told(&server), 0);
    // Nothing is swept while nodes cannot be read.
    assert!(collect(&server.repository).unwrap_err().is_damage());
    let session = writer.session("gone").await;
    sync_up(&session, &gone).await;
    commit(&writer, &session, "gone", &gone).await;
    server.repository.tick();
    assert_eq!(entered(&server.repository), (count, count));
    assert_whole(&server.repository, &writer, &gone);
    assert_whole(&server.repository, &writer, &kept);
    collect(&server.repository).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_lets_nothing_locked_go_and_dead_damage_goes() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let (dead, live) = (tree_of(&writer, &noise(3, 30)), tree_of(&writer, &noise(4, 10)));
    let (one, two) = (writer.session("dead").await, writer.session("live").await);
    sync_up(&one, &dead).await;
    sync_up(&two, &live).await;
    let record = commit(&writer, &one, "dead", &dead).await;
    commit(&writer, &two, "live", &live).await;
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    flip_in_segments(&data, &dead.chunks[7]);
    flip_in_segments(&data, &live.chunks[4]);
    let server = reopen(folder, clock, address).await;
    let repository = server.repository.clone();
    assert_eq!(run(&repository).await.damaged_count, 2);
    server.clock.advance(DAY * 4);
    forget(&repository, &writer, &record);
    collect(&repository).unwrap();
    server.clock.advance(DAY * 8);
    let report = collect(&repository).unwrap();
    assert!(report.reaped.values().any(|reaped| reaped.count > 30), "{report:?}");
    assert_eq!(report.moved_count, 0, "a segment with damage is not copied");
    repository.tick();
    assert_eq!(repository.damage().count(), 1, "what was collected is off the list");
    assert_eq!(entered(&repository), (2, 0), "and was not repaired");
    for envelope in live.envelopes() {
        let found = row(&repository, &writer, &SealedDigest::of(&envelope)).unwrap();
        assert_eq!(found.damaged, envelope == live.chunks[4]);
        assert_eq!(found.quarantined, None);
    }
    let session = writer.session("live").await;
    assert_eq!(sync_up(&session, &live).await, 1);
    commit(&writer, &session, "live", &live).await;
    assert_whole(&repository, &writer, &live);
    let report = collect(&repository).unwrap();
    assert!(report.moved_count > 0 && report.dropped_segments > 0, "healed, it is: {report:?}");
    assert_whole(&repository, &writer, &live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_kept_while_it_may_hold_the_last_copy_of_a_damaged_row() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let (dead, live) = (tree_of(&writer, &noise(3, 30)), tree_of(&writer, &noise(4, 2)));
    let session = writer.session("dead").await;
    sync_up(&session, &dead).await;
    let record = commit(&writer, &session, "dead", &dead).await;
    snapshot(&writer, "live", &live).await;
    server.clock.advance(DAY * 4);
    forget(&server.repository, &writer, &record);
    let shared = SealedDigest::of(&dead.chunks[0]); // the catalogue's chunk
    let home = row(&server.repository, &writer, &shared).unwrap().slot.segment;
    let is_home = |(segment, _): &(u32, SegmentRow)| *segment == home;
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    // A locked chunk whose row is lost; its bytes are in the segment of what is dead.
    flip_in_row(&data, "index", &shared, 0, 6);
    let server = reopen(folder, clock, address).await;
    let repository = server.repository.clone();
    for _ in 0..3 {
        // No alarm again and again, and nothing lost.
        collect(&repository).unwrap();
        repository.tick();
        server.clock.advance(DAY * 8);
    }
    assert!(repository.store().catalogue().unwrap().iter().any(is_home));
    assert_eq!(entered(&repository), (1, 0));
    let report = run(&repository).await;
    assert_eq!((report.known_count, report.repaired_total), (0, 1), "{report:?}");
    assert_whole(&repository, &writer, &live);
    let report = collect(&repository).unwrap();
    assert!(!repository.store().catalogue().unwrap().iter().any(is_home), "{report:?}");
    assert_whole(&repository, &writer, &live);
}

#[tokio::test(flavor = "multi_thread")]
async fn scrub_beside_uploads_and_collection_finds_nothing_where_nothing_is_wrong() {
    let small_segments = |config: &mut Config| {
        scrub_config(config);
        config.store.segment.0 = 1 << 20;
        config.store.inbox_fold.0 = 1 << 18;
    };
    let server = TestServer::start_with(small_segments).await;
    let (repository, clock) = (server.repository.clone(), server.clock.clone());
    let writer = server.writer("erp").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (scrubbed, stopping) = (repository.clone(), stop.clone());
    let scrubs = std::thread::spawn(move || {
        let mut passes = 0;
        while !stopping.load(Ordering::SeqCst) {
            let report = scrub::run(&scrubbed).unwrap();
            assert_eq!((report.known_count, report.problem_count), (0, 0), "{report:?}");
            passes += 1;
        }
        passes
    });
    let (mut kept, mut old) = (Vec::new(), Vec::new());
    for round in 0..12 {
        let class = if round % 2 == 0 { SizeClass::Stream } else { SizeClass::Small };
        for (source, list) in [("keep", true), ("drop", false)] {
            let tree = tree_of(&writer, &noise(100 + 2 * round + u64::from(list), 40));
            let session = writer.session_of(source, class).await.unwrap();
            sync_up(&session, &tree).await;
            let record = commit(&writer, &session, source, &tree).await;
            if list { kept.push(tree) } else { old.push(record) }
        }
        clock.advance(DAY * 4);
        for record in old.drain(..) {
            forget(&repository, &writer, &record);
        }
        let collected = repository.clone();
        tokio::task::spawn_blocking(move || collect(&collected).unwrap()).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let passes = scrubs.join().unwrap();
    println!("scrub: {passes} passes beside uploads and collection");
    assert!(passes > 1);
    assert_eq!(entered(&repository), (0, 0));
    kept.iter().for_each(|tree| assert_whole(&repository, &writer, tree));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_pass_goes_on_after_a_restart_and_damage_stays_known() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let trees: Vec<Tree> = (0..4).map(|seed| tree_of(&writer, &noise(seed, 8))).collect();
    for tree in &trees {
        snapshot(&writer, "db", tree).await;
    }
    let address = server.address;
    let (folder, clock) = server.stop().await;
    flip_in_segments(&folder.path().join("data"), &trees[1].chunks[3]);
    let server = reopen(folder, clock, address).await;
    assert_eq!(run(&server.repository).await.known_count, 1);
    // As a pass that was stopped in the middle leaves it.
    let middle = server.repository.store().catalogue().unwrap()[2].0;
    let stopped = server.repository.change_scrub_row(move |row, _| {
        (row.pass, row.next_segment) = (row.pass + 1, middle);
    });
    stopped.unwrap();
    assert!(scrub::is_due(&server.repository).unwrap());
    assert!(!scrub::status(&server.repository).unwrap().is_complete);
    let killed = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&server.folder.path().join("data"), &killed.path().join("data"));
    let (clock, address) = (server.clock.clone(), server.address);
    server.stop().await;
    let server = reopen(killed, clock, address).await;
    assert_eq!(server.repository.damage().count(), 1);
    let report = run(&server.repository).await;
    assert!(report.is_complete && report.pass == 2);
    let half = (trees[2].envelopes().len() + trees[3].envelopes().len()) as u64;
    assert!(report.envelope_count <= half, "{report:?}");
    assert_eq!(entered(&server.repository), (1, 0));
    assert!(!scrub::is_due(&server.repository).unwrap());
    server.clock.advance(DAY * 31);
    assert!(scrub::is_due(&server.repository).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_altogether_is_found_by_its_lock() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 8));
    snapshot(&writer, "db", &tree).await;
    let chunk = SealedDigest::of(&tree.chunks[5]);
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    // The row is gone, and so are the bytes.
    flip_in_segments(&data, &tree.chunks[5]);
    {
        let (meta, options) = (data.join("meta"), rocksdb::Options::default());
        let families = rocksdb::DB::list_cf(&options, &meta).unwrap();
        let db = rocksdb::DB::open_cf(&options, &meta, &families).unwrap();
        let rows = rows_with(&db, &chunk);
        db.delete_cf(db.cf_handle("index").unwrap(), &rows[0]).unwrap();
    }
    let server = reopen(folder, clock, address).await;
    assert_eq!(row(&server.repository, &writer, &chunk), None);
    let report = run(&server.repository).await;
    assert_eq!((report.damaged_count, report.known_count), (1, 1));
    assert!(row(&server.repository, &writer, &chunk).unwrap().is_lost());
    collect(&server.repository).unwrap();
    let refused = read(&server.repository, &writer, chunk).unwrap_err();
    assert!(matches!(refused, ServerError::Store(StoreError::Damaged(_))));
    assert_eq!(refused.refusal().code, ErrorCode::Damaged);
    let session = writer.session("db").await;
    assert_eq!(sync_up(&session, &tree).await, 1);
    commit(&writer, &session, "db", &tree).await;
    server.repository.tick();
    assert_eq!(entered(&server.repository), (1, 1));
    assert_whole(&server.repository, &writer, &tree);
    collect(&server.repository).unwrap();
}

fn rows_with(db: &rocksdb::DB, digest: &SealedDigest) -> Vec<Vec<u8>> {
    let family = db.cf_handle("index").unwrap();
    let rows = db.iterator_cf(family, rocksdb::IteratorMode::Start);
    let keys = rows.map(|row| row.unwrap().0.to_vec());
    keys.filter(|key| key.ends_with(&digest.0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_damaged_child_is_refused_until_the_child_is_sent() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 8));
    snapshot(&writer, "db", &tree).await;
    let address = server.address;
    let (folder, clock) = server.stop().await;
    flip_in_segments(&folder.path().join("data"), &tree.chunks[5]);
    let server = reopen(folder, clock, address).await;
    assert_eq!(run(&server.repository).await.known_count, 1);
    let session = writer.session("db").await;
    session.have(&digests(&tree.chunks)).await.unwrap();
    let is_above = |node: &&SealedNode| {
        let envelope = Envelope::parse(&node.envelope).unwrap();
        envelope.children().any(|child| child == SealedDigest::of(&tree.chunks[5]))
    };
    let above = tree.nodes.iter().find(is_above).unwrap();
    let node = bytes::Bytes::from(above.envelope.clone());
    let refused = session.upload(frames(std::slice::from_ref(&node))).await;
    refused_with(refused, ErrorCode::MissingChildren);
    session.upload(frames(&[tree.chunks[5].clone(), node])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_scrubs_and_says_what_it_found() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 8));
    snapshot(&writer, "db", &tree).await;
    let (folder, _) = server.stop().await;
    let data = folder.path().join("data");
    flip_in_segments(&data, &tree.chunks[5]);
    let scrub = |verb: &str, more: &[&str]| {
        let mut command = std::process::Command::new(program("strongroomd"));
        command.args(["scrub", verb, "--data"]).arg(&data).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(scrub("status", &[]).contains("none yet"));
    let report: serde_json::Value = serde_json::from_str(&scrub("run", &["--json"])).unwrap();
    assert_eq!(report["report"]["known_count"], 1, "{report}");
    let text = scrub("status", &[]);
    assert!(text.contains("damaged now      1 ENVELOPES"), "{text}");
}
