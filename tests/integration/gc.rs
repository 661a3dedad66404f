//! Garbage collection: what nobody needs goes and its space comes back; what somebody needs stays,
//! whatever happens beside a cycle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use strongroom_client::error::ClientError;
use strongroom_client::session::Session;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{PrincipalId, PublicKey, RecordDigest, SealedDigest};
use strongroom_protocol::record::Totals;
use strongroom_protocol::retention::Lock;
use strongroom_protocol::role::Role;
use strongroom_server::admin::collector;
use strongroom_server::clock::{Clock, ManualClock, Reading};
use strongroom_server::config::{Config, Period};
use strongroom_server::error::ServerError;
use strongroom_server::gc::{CycleReport, Outcome};
use strongroom_server::lock::{Day, locked_until};
use strongroom_server::registry::Principal;
use strongroom_server::repository::Repository;
use strongroom_server::rows::{SnapshotRow, lock_key};
use strongroom_server::store::meta::MetaBatch;
use strongroom_server::store::schema::{Family, IndexRow};
use strongroom_server::store::{NewEnvelope, Store};
use strongroom_server::writer::Decision;

use crate::harness::{Actor, DAY, START_MS, TestServer, Tree, digests, frames, refused_with};

/// Locks last a day, and only the tests run cycles.
pub fn gc_config(config: &mut Config) {
    config.retention.default = Period::seconds(24 * 3600);
    config.gc.interval = Period::seconds(100 * 365 * 24 * 3600);
    config.gc.pace = 1.0;
}

pub fn collect(repository: &Arc<Repository>) -> Result<CycleReport, ServerError> {
    collector(repository).run()
}

/// Incompressible pieces that depend on the seed alone.
pub fn noise(seed: u64, count: u64) -> Vec<Vec<u8>> {
    let piece = |n: u64| {
        let mut bytes = vec![0; 20_000];
        let seed = [seed.to_le_bytes(), n.to_le_bytes()].concat();
        blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
        bytes
    };
    (0..count).map(piece).collect()
}

pub fn tree_of(writer: &Actor, pieces: &[Vec<u8>]) -> Tree {
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    Tree::seal(&writer.keys(), &pieces)
}

/// Asks for the chunks, sends what is lacking and all nodes; gives the number of chunks sent.
pub async fn sync_up(session: &Session, tree: &Tree) -> usize {
    try_sync_up(session, tree).await.unwrap()
}

/// The same, where the server may refuse, or die.
pub async fn try_sync_up(session: &Session, tree: &Tree) -> Result<usize, ClientError> {
    let have = session.have(&digests(&tree.chunks)).await?;
    let lacking = tree.chunks.iter().zip(have).filter(|(_, have)| !have).map(|(chunk, _)| chunk);
    let mut envelopes: Vec<Bytes> = lacking.cloned().collect();
    let sent = envelopes.len();
    envelopes.extend(tree.nodes.iter().map(|node| Bytes::from(node.envelope.clone())));
    session.upload(frames(&envelopes)).await?;
    Ok(sent)
}

pub async fn commit(writer: &Actor, session: &Session, source: &str, tree: &Tree) -> RecordDigest {
    let record = writer.record(session, source, &tree.root, |_| {});
    session.commit(record.encode().into()).await.unwrap();
    record.digest()
}

pub async fn snapshot(writer: &Actor, source: &str, tree: &Tree) -> RecordDigest {
    let session = writer.session(source).await;
    sync_up(&session, tree).await;
    commit(writer, &session, source, tree).await
}

pub fn forget(repository: &Repository, writer: &Actor, record: &RecordDigest) {
    let operator = Principal {
        id: PrincipalId::LOCAL,
        role: Role::Operator,
        namespace: None,
        signing_key: PublicKey([0; 32]),
    };
    repository.forget(&operator, &writer.namespace(), record).unwrap();
}

/// Every envelope of the tree is there, as it was sent, and nothing of it is quarantined.
pub fn assert_whole(repository: &Repository, writer: &Actor, tree: &Tree) {
    let (ns, envelopes) = (number(repository, writer), tree.envelopes());
    let rows = repository.store().lookup(ns, &digests(&envelopes)).unwrap();
    assert!(rows.iter().all(|row| row.is_some_and(|row| row.is_usable())), "not all usable");
    let mut at = 0;
    let mut each = |bytes: &[u8]| {
        assert!(bytes == envelopes[at]);
        at += 1;
        std::ops::ControlFlow::Continue(())
    };
    repository.read(&writer.namespace(), &digests(&envelopes), &mut each).unwrap();
    assert_eq!(at, envelopes.len());
}

pub fn number(repository: &Repository, writer: &Actor) -> u32 {
    repository.registry().namespace(&writer.namespace()).unwrap().number
}

fn known(repository: &Repository, writer: &Actor, tree: &Tree) -> Vec<Option<IndexRow>> {
    let wanted = digests(&tree.chunks[1..]); // the first is the catalogue, which trees share
    repository.store().lookup(number(repository, writer), &wanted).unwrap()
}

pub fn events(store: &Store) -> Vec<Event> {
    let mut events = Vec::new();
    store
        .scan(Family::Ledger, b"e", None, &mut |_, value| {
            events.push(Entry::decode(value).unwrap().event);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    events
}

pub fn reaped_count(report: &CycleReport) -> u64 {
    report.reaped.values().map(|reaped| reaped.count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_needs_is_quarantined_revived_and_in_the_end_gone() {
    let server = TestServer::start_with(gc_config).await;
    let (repository, clock) = (server.repository.clone(), server.clock.clone());
    let writer = server.writer("erp").await;
    let (dead, live) = (tree_of(&writer, &noise(1, 12)), tree_of(&writer, &noise(2, 12)));
    let record = snapshot(&writer, "dead", &dead).await;
    snapshot(&writer, "live", &live).await;
    clock.advance(DAY * 4);
    // Listed, it stays, although its lock has ended; forgotten, it goes.
    assert_eq!(collect(&repository).unwrap().quarantined_count, 0);
    forget(&repository, &writer, &record);
    let report = collect(&repository).unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(report.quarantined_count, 12 + 2, "chunks, their node, the root");
    assert!(known(&repository, &writer, &dead).iter().all(|row| !row.unwrap().is_usable()));
    // Quarantined: nobody is told "have", a node on it is refused, reading still works.
    let session = writer.session("dead").await;
    let wanted = digests(&dead.chunks[1..]);
    assert!(session.have(&wanted).await.unwrap().iter().all(|have| !have));
    let node = Bytes::from(dead.nodes[1].envelope.clone());
    refused_with(session.upload(frames(&[node])).await, ErrorCode::MissingChildren);
    let mut read = 0;
    let mut each = |_: &[u8]| {
        read += 1;
        std::ops::ControlFlow::Continue(())
    };
    repository.read(&writer.namespace(), &wanted, &mut each).unwrap();
    assert_eq!(read, 12);
    // Offered again, it is stored again, and lives.
    assert_eq!(sync_up(&session, &dead).await, 12);
    let record = commit(&writer, &session, "dead", &dead).await;
    assert_whole(&repository, &writer, &dead);
    clock.advance(DAY * 9);
    let report = collect(&repository).unwrap();
    assert_eq!((report.quarantined_count, reaped_count(&report)), (0, 0));
    assert_eq!(report.dropped_segments, 1, "the first copy's segment is empty now");
    assert_whole(&repository, &writer, &dead);
    // Forgotten for good: quarantined, and after seven days and a second cycle gone.
    forget(&repository, &writer, &record);
    assert_eq!(collect(&repository).unwrap().quarantined_count, 14);
    clock.advance(DAY * 7 - Duration::from_secs(1));
    assert_eq!(reaped_count(&collect(&repository).unwrap()), 0, "a second too early");
    clock.advance(Duration::from_secs(1));
    let before = repository.store().statistics().segment_bytes;
    let report = collect(&repository).unwrap();
    assert_eq!((reaped_count(&report), report.dropped_segments), (14, 1));
    assert!(known(&repository, &writer, &dead).iter().all(Option::is_none));
    assert_eq!(repository.store().statistics().segment_bytes, before - report.dropped_bytes);
    assert!(report.dropped_bytes > 12 * 20_000);
    assert_whole(&repository, &writer, &live);
    check_ledger(repository.store());
    drop(repository);
    let server = server.restart().await;
    assert_whole(&server.repository, &writer, &live);
}

/// Nothing went without an intent before it, and each intent has its outcome.
pub fn check_ledger(store: &Store) {
    let (mut intended, mut dropping) = (None, Vec::new());
    for event in events(store) {
        match event {
            Event::CollectionIntended { generation, reap_count, .. } => {
                intended = Some((generation, reap_count));
            }
            Event::Collected { generation, reaped_count, .. } => {
                let (of, at_most) = intended.take().expect("an outcome without an intent");
                assert!(of == generation && reaped_count <= at_most);
            }
            Event::SegmentDropIntended { segment, .. } => dropping.push(segment),
            Event::SegmentDropped { segment, .. } => {
                let at = dropping.iter().position(|intended| *intended == segment);
                dropping.remove(at.expect("a drop without an intent"));
            }
            _ => {}
        }
    }
    assert!(dropping.is_empty(), "drops that never ended: {dropping:?}");
}

/// Two snapshots in one segment; `dead` is more than half of it.
pub async fn mixed(server: &TestServer, writer: &Actor) -> (Tree, RecordDigest, Tree) {
    let (dead, live) = (tree_of(writer, &noise(3, 30)), tree_of(writer, &noise(4, 10)));
    let (one, two) = (writer.session("dead").await, writer.session("live").await);
    sync_up(&one, &dead).await;
    sync_up(&two, &live).await;
    let record = commit(writer, &one, "dead", &dead).await;
    commit(writer, &two, "live", &live).await;
    server.clock.advance(DAY * 4);
    forget(&server.repository, writer, &record);
    (dead, record, live)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lives_in_a_sparse_segment_moves_and_stays_pinned() {
    let server = TestServer::start_with(gc_config).await;
    let repository = server.repository.clone();
    let writer = server.writer("erp").await;
    let (dead, _, live) = mixed(&server, &writer).await;
    assert_eq!(collect(&repository).unwrap().quarantined_count, 32);
    // Forgotten, but a session was told "have" before: its pins follow the move, and keep it.
    server.clock.advance(DAY * 8);
    let session = writer.session("live").await;
    assert_eq!(sync_up(&session, &live).await, 0);
    let report = collect(&repository).unwrap();
    assert_eq!(reaped_count(&report), 32);
    assert_eq!(report.moved_count, 10 + 4, "with the catalogue, its node, data node, root");
    assert!(known(&repository, &writer, &dead).iter().all(Option::is_none));
    assert_whole(&repository, &writer, &live);
    let given_back = report.dropped_bytes.saturating_sub(report.evacuated_bytes);
    assert!(given_back * 100 >= report.promised_bytes * 95, "{report:?}");
    let listed = repository.list(&writer.namespace(), None, 0).unwrap();
    forget(&repository, &writer, &listed.rows[0].record);
    assert_eq!(collect(&repository).unwrap().quarantined_count, 0, "the session has pinned it");
    commit(&writer, &session, "live", &live).await;
    assert_whole(&repository, &writer, &live);
    check_ledger(repository.store());
    // The records whose copies went with the segment are copied again by the next.
    snapshot(&writer, "next", &tree_of(&writer, &noise(5, 2))).await;
    let store = repository.store();
    let segments = store.catalogue().unwrap();
    let copies: usize =
        segments.iter().map(|(segment, _)| store.record_copies(*segment).unwrap().len()).sum();
    assert!(copies >= 1, "no segment carries a record");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_swept_after_anything_that_looks_wrong() {
    let server = TestServer::start_with(gc_config).await;
    let writer = server.writer("erp").await;
    let (dead, _, live) = mixed(&server, &writer).await;
    let repository = server.repository.clone();
    let (store, ns) = (repository.store(), number(&repository, &writer));
    let root = live.root.digest;
    let lock = store.get(Family::Locks, &lock_key(ns, &root)).unwrap().unwrap();
    let refused = |what: &str| {
        assert!(collect(&repository).is_err(), "{what}: the cycle went through");
        let usable = known(&repository, &writer, &dead).iter().all(|row| row.unwrap().is_usable());
        assert!(usable, "{what}: something was swept");
    };
    let put_lock = |key: &SealedDigest, day: &[u8]| {
        let mut batch = MetaBatch::new();
        batch.put(Family::Locks, lock_key(ns, key), day);
        store.write(&batch).unwrap();
    };
    put_lock(&root, &1u32.to_be_bytes());
    refused("short lock of a root");
    put_lock(&root, b"junk!");
    refused("lock that does not decode");
    put_lock(&root, &lock);
    let nowhere = SealedDigest([7; 32]);
    put_lock(&nowhere, &u32::MAX.to_be_bytes());
    refused("locked node that is not there");
    // A node that parses but has not its digest: only hashing it again finds that.
    let totals = Totals { chunk_count: 1, sealed_bytes: 1 };
    let bytes = Bytes::from(live.nodes[0].envelope.clone());
    let wrong = NewEnvelope { digest: nowhere, level: 1, totals, bytes };
    store.append(ns, vec![wrong]).unwrap();
    store.seal().unwrap();
    refused("locked node with another's bytes");
    let mut batch = MetaBatch::new();
    batch.delete(Family::Locks, lock_key(ns, &nowhere));
    batch.put(Family::Snapshots, [ns.to_be_bytes().as_slice(), &99u64.to_be_bytes()].concat(), [1]);
    store.write(&batch).unwrap();
    refused("record that does not decode");
    let mut batch = MetaBatch::new();
    batch.delete(Family::Snapshots, [ns.to_be_bytes().as_slice(), &99u64.to_be_bytes()].concat());
    store.write(&batch).unwrap();
    // Needed and quarantined: it is released, and the cycle ends.
    let found = store.scan_index(None, usize::MAX).unwrap();
    let chunk = digests(&live.chunks)[3];
    let found: Vec<_> = found.into_iter().filter(|found| found.digest == chunk).collect();
    let mark = strongroom_server::store::schema::Quarantine { day: 1, generation: 1 };
    assert_eq!(store.quarantine(&found, mark).unwrap(), 1);
    refused("needed and quarantined");
    assert_whole(&repository, &writer, &live);
    assert_eq!(collect(&repository).unwrap().quarantined_count, 32 + 1, "with the odd node");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_node_ends_the_cycle() {
    let server = TestServer::start_with(gc_config).await;
    let writer = server.writer("erp").await;
    let (dead, _, live) = mixed(&server, &writer).await;
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    let node = &live.nodes[1].envelope;
    let mut flipped = 0;
    for file in std::fs::read_dir(data.join("chunks")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(64).position(|window| window == &node[..64]);
        if let (Some(at), true) = (at, path.extension().is_some_and(|end| end == "sst")) {
            bytes[at + 40] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
    let mut config = crate::harness::test_config(|_| {});
    gc_config(&mut config);
    let calm = Arc::new(crate::harness::Calm);
    let repository = Arc::new(Repository::open(&data, config, clock, calm).unwrap().0);
    assert!(collect(&repository).is_err());
    assert!(known(&repository, &writer, &dead).iter().all(|row| row.unwrap().is_usable()));
}

pub type Hook = Box<dyn FnMut(u64) + Send>;

/// A clock that does something at each breath of a cycle.
pub struct HookClock {
    manual: Arc<ManualClock>,
    breath: AtomicU64,
    hook: Mutex<Option<Hook>>,
}

const CYCLE: &str = "cycle under test";

impl Clock for HookClock {
    fn wall_ms(&self) -> u64 {
        self.manual.wall_ms()
    }

    fn reading(&self) -> Reading {
        self.manual.reading()
    }

    fn monotonic(&self) -> Duration {
        if std::thread::current().name() == Some(CYCLE) {
            let breath = self.breath.fetch_add(1, Ordering::SeqCst);
            if let Some(hook) = self.hook.lock().unwrap().as_mut() {
                hook(breath);
            }
        }
        self.manual.monotonic()
    }
}

impl HookClock {
    fn new() -> Arc<Self> {
        Self::on(Arc::new(ManualClock::at_ms(START_MS)))
    }

    pub fn on(manual: Arc<ManualClock>) -> Arc<Self> {
        Arc::new(Self { manual, breath: AtomicU64::new(0), hook: Mutex::new(None) })
    }

    /// Runs a cycle with `hook`; gives its report and how often it breathed.
    async fn cycle(&self, repository: &Arc<Repository>, hook: Option<Hook>) -> (CycleReport, u64) {
        let (report, breaths) = self.try_cycle(repository, hook).await;
        (report.unwrap(), breaths)
    }

    /// The same, where the cycle may end in an alarm.
    pub async fn try_cycle(
        &self,
        repository: &Arc<Repository>,
        hook: Option<Hook>,
    ) -> (Result<CycleReport, ServerError>, u64) {
        *self.hook.lock().unwrap() = hook;
        self.breath.store(0, Ordering::SeqCst);
        let repository = repository.clone();
        let thread = std::thread::Builder::new().name(CYCLE.into());
        let (sender, report) = tokio::sync::oneshot::channel();
        let run = move || drop(sender.send(collect(&repository)));
        let thread = thread.spawn(run).unwrap();
        let report = report.await.unwrap();
        thread.join().unwrap();
        *self.hook.lock().unwrap() = None;
        (report, self.breath.load(Ordering::SeqCst))
    }
}

/// The four steps of Proxmox's PSA-2025-00019-1: collection lists the snapshots; S1 reuses what S0
/// has; S0 is pruned before it is read; sweep. Here the steps of S1 and S0 fall between any two
/// steps of the cycle, chosen by a seed.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_reuses_a_forgotten_one_is_whole_however_they_interleave() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let clock = HookClock::new();
    let server = TestServer::start_on(clock.clone(), clock.manual.clone(), gc_config).await;
    let repository = server.repository.clone();
    let writer = Arc::new(server.writer("erp").await);
    let (mut breaths, mut swept_beside) = (30, 0);
    for seed in 0..seeds {
        let random = blake3::hash(&seed.to_le_bytes());
        let mut places: Vec<u64> =
            random.as_bytes()[..3].iter().map(|byte| u64::from(*byte) % (breaths + 1)).collect();
        // Half of them in the published order, half with S0 forgotten before S1 asks.
        places.sort_unstable();
        if random.as_bytes()[4].is_multiple_of(2) {
            places.swap(0, 1);
        }
        let tree = Arc::new(tree_of(&writer, &noise(100 + seed, 6)));
        let other = tree_of(&writer, &noise(10_000 + seed, 3));
        let s0 = snapshot(&writer, "s0", &tree).await;
        let garbage = snapshot(&writer, "garbage", &other).await;
        server.clock.advance(DAY * 4);
        forget(&repository, &writer, &garbage);
        let (runtime, mut session) = (tokio::runtime::Handle::current(), None);
        let (w, t, r) = (writer.clone(), tree.clone(), repository.clone());
        let done = Arc::new(AtomicU64::new(0));
        let (places_in, done_in) = (places.clone(), done.clone());
        let act = move |breath: u64| {
            if breath == places_in[0] {
                runtime.block_on(async {
                    let opened = w.session("s1").await;
                    sync_up(&opened, &t).await;
                    session = Some(opened);
                });
            }
            if breath == places_in[1] {
                forget(&r, &w, &s0);
            }
            if let (true, Some(opened)) = (breath == places_in[2], &session) {
                runtime.block_on(commit(&w, opened, "s1", &t));
                done_in.store(1, Ordering::SeqCst);
            }
        };
        let hook: Hook = Box::new(act);
        let (report, breathed) = clock.cycle(&repository, Some(hook)).await;
        swept_beside += report.quarantined_count;
        breaths = breathed;
        if done.load(Ordering::SeqCst) == 1 {
            assert_whole(&repository, &writer, &tree);
            server.clock.advance(DAY * 8);
            clock.cycle(&repository, None).await;
            assert_whole(&repository, &writer, &tree);
        }
    }
    println!("gc: {seeds} interleavings, {swept_beside} envelopes swept beside them");
    assert!(swept_beside > 0, "nothing was ever swept: nothing was tested");
    check_ledger(repository.store());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_that_is_stopped_anywhere_leaves_a_whole_repository() {
    for place in [0, 3, 6, 9, 12] {
        let clock = HookClock::new();
        let server = TestServer::start_on(clock.clone(), clock.manual.clone(), gc_config).await;
        let writer = server.writer("erp").await;
        let (dead, _, live) = mixed(&server, &writer).await;
        clock.cycle(&server.repository, None).await;
        server.clock.advance(DAY * 8);
        let noted = server.repository.writer().noted().clone();
        let stop = move |breath| {
            if breath == place {
                noted.stop();
            }
        };
        let (report, _) = clock.cycle(&server.repository, Some(Box::new(stop))).await;
        assert_eq!(report.outcome, Outcome::Stopped, "stopped at breath {place}");
        assert_whole(&server.repository, &writer, &live);
        let server = server.restart_with(gc_config).await;
        assert_eq!(collect(&server.repository).unwrap().outcome, Outcome::Complete);
        assert!(known(&server.repository, &writer, &dead).iter().all(Option::is_none));
        assert_whole(&server.repository, &writer, &live);
        check_ledger(server.repository.store());
    }
}

/// Locks without a date, and those that outlive theirs, are raised by cycles, for the whole tree.
#[tokio::test(flavor = "multi_thread")]
async fn locks_without_a_date_are_raised_again_before_they_end() {
    let server = TestServer::start_with(gc_config).await;
    let repository = server.repository.clone();
    let writer = server.writer("erp").await;
    let tree = tree_of(&writer, &noise(8, 5));
    snapshot(&writer, "db", &tree).await;
    let ns = number(&repository, &writer);
    let set_lock = |change: fn(&mut Lock)| {
        let key = SnapshotRow::key(ns, 1);
        let value = repository.store().get(Family::Snapshots, &key).unwrap().unwrap();
        let mut row = SnapshotRow::decode(&value).unwrap();
        change(&mut row.lock);
        let write = move |decision: &mut Decision<'_>| {
            decision.batch.put(Family::Snapshots, key, row.encode());
            Ok(())
        };
        repository.writer().decide(write).unwrap();
    };
    let lowest_lock = || {
        let nodes = tree.nodes.iter().map(|node| SealedDigest::of(&node.envelope));
        let days = nodes.map(|node| locked_until(repository.store(), ns, &node).unwrap().unwrap());
        days.min().unwrap()
    };
    let today = || Day::of(server.repository.moment().retention_seconds);
    assert_eq!(collect(&repository).unwrap().raised_count, 0);
    set_lock(|lock| lock.is_held = true);
    server.clock.advance(DAY * 30);
    for _ in 0..3 {
        assert_eq!(collect(&repository).unwrap().raised_count, 1);
        assert!(lowest_lock() >= today().plus(400));
        assert_eq!(collect(&repository).unwrap().raised_count, 0);
        server.clock.advance(DAY * 250);
    }
    // Released, but its date is not past by the wall clock.
    set_lock(|lock| {
        lock.is_held = false;
        lock.until_wall_seconds = u64::MAX;
    });
    server.clock.advance(DAY * 200);
    for _ in 0..3 {
        assert_eq!(collect(&repository).unwrap().raised_count, 1);
        assert!(lowest_lock() >= today().plus(30));
        server.clock.advance(DAY * 28);
    }
    assert_whole(&repository, &writer, &tree);
}

/// A session builds on a node because it is locked; the lock ends before the commit, and what is
/// below is swept: the commit is refused, and the client sends again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_proves_what_ended_locks_do_not_vouch_for() {
    let server = TestServer::start_with(|config| {
        gc_config(config);
        config.limits.lease = Period::seconds(30 * 24 * 3600);
    })
    .await;
    let repository = server.repository.clone();
    let writer = server.writer("erp").await;
    let tree = tree_of(&writer, &noise(6, 8));
    let record = snapshot(&writer, "db", &tree).await;
    // The session asks for nodes only: the chunks below them are not pinned.
    let session = writer.session("db").await;
    let nodes: Vec<Bytes> = tree.nodes.iter().map(|n| Bytes::from(n.envelope.clone())).collect();
    let below = digests(&nodes[..nodes.len() - 1]);
    assert!(session.have(&below).await.unwrap().iter().all(|have| *have));
    session.upload(frames(&nodes[nodes.len() - 1..])).await.unwrap();
    server.clock.advance(DAY * 4);
    forget(&repository, &writer, &record);
    assert_eq!(collect(&repository).unwrap().quarantined_count, 9, "chunks and the catalogue");
    let body = writer.record(&session, "db", &tree.root, |_| {});
    let refused = session.commit(body.encode().into()).await;
    refused_with(refused, ErrorCode::MissingChildren);
    assert_eq!(sync_up(&session, &tree).await, 9);
    commit(&writer, &session, "db", &tree).await;
    assert_whole(&repository, &writer, &tree);
}

/// Clients that back up, give up and forget, beside cycles that run without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uploads_beside_cycles_lose_nothing() {
    let server = TestServer::start_with(|config| {
        gc_config(config);
        // Days go by in seconds here.
        config.limits.lease = Period::seconds(365 * 24 * 3600);
        config.limits.sessions_per_principal = 1000;
    })
    .await;
    let repository = server.repository.clone();
    let writer = Arc::new(server.writer("erp").await);
    let is_done = Arc::new(AtomicU64::new(0));
    let (cycling, done, clock) = (repository.clone(), is_done.clone(), server.clock.clone());
    let cycles = std::thread::spawn(move || cycle_until(&done, &cycling, &clock));
    let mut clients = Vec::new();
    for client in 0..3u64 {
        let (writer, repository) = (writer.clone(), repository.clone());
        clients.push(tokio::spawn(busy_client(writer, repository, client)));
    }
    let mut kept = Vec::new();
    for client in clients {
        kept.extend(client.await.unwrap());
    }
    is_done.store(1, Ordering::SeqCst);
    let (count, quarantined, reaped) =
        tokio::task::spawn_blocking(|| cycles.join().unwrap()).await.unwrap();
    println!("gc: {count} cycles, {quarantined} quarantined, {reaped} reaped, {} kept", kept.len());
    for (_, tree) in &kept {
        assert_whole(&repository, &writer, tree);
    }
    assert!(quarantined > 0 && !kept.is_empty());
    // A drop whose file a reader had open ends with the next cycle.
    collect(&repository).unwrap();
    check_ledger(repository.store());
}

/// Backs up 25 times, gives up now and then, and forgets what is old; gives what is left.
async fn busy_client(
    writer: Arc<Actor>,
    repository: Arc<Repository>,
    client: u64,
) -> Vec<(RecordDigest, Tree)> {
    let source = format!("source{client}");
    let mut kept = Vec::new();
    for round in 0..25u64 {
        let random = blake3::hash(&[client.to_le_bytes(), round.to_le_bytes()].concat());
        let pool = noise(7, 24);
        let pieces: Vec<Vec<u8>> =
            random.as_bytes()[..6].iter().map(|n| pool[*n as usize % 24].clone()).collect();
        let tree = tree_of(&writer, &pieces);
        let session = writer.session(&source).await;
        let sent = try_sync_up(&session, &tree).await.is_ok();
        if !sent || random.as_bytes()[7].is_multiple_of(3) {
            session.close().await;
            continue;
        }
        let record = writer.record(&session, &source, &tree.root, |_| {});
        if session.commit(record.encode().into()).await.is_err() {
            session.close().await;
            continue; // a lock that it built on has ended
        }
        assert_whole(&repository, &writer, &tree);
        kept.push((record.digest(), tree));
        if kept.len() > 2 {
            let (oldest, tree) = kept.remove(0);
            if try_forget(&repository, &writer, &oldest).is_err() {
                kept.push((oldest, tree));
            }
        }
    }
    kept
}

/// Cycles, a day apart, until `done`; how many, and what they quarantined and reaped.
fn cycle_until(
    done: &AtomicU64,
    repository: &Arc<Repository>,
    clock: &ManualClock,
) -> (u64, u64, u64) {
    let mut sum = (0, 0, 0);
    while done.load(Ordering::SeqCst) == 0 {
        let report = collect(repository).unwrap();
        clock.advance(DAY);
        sum = (sum.0 + 1, sum.1 + report.quarantined_count, sum.2 + reaped_count(&report));
    }
    sum
}

fn try_forget(
    repository: &Repository,
    writer: &Actor,
    record: &RecordDigest,
) -> Result<(), ServerError> {
    let operator = Principal {
        id: PrincipalId::LOCAL,
        role: Role::Operator,
        namespace: None,
        signing_key: PublicKey([0; 32]),
    };
    repository.forget(&operator, &writer.namespace(), record)
}
