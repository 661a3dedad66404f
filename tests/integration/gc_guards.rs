//! What keeps an envelope, one thing at a time: each namespace for itself, holds and locks without
//! end alone and together, and the lock of a root to the day.

use std::sync::{Arc, Mutex};

use strongroom_client::session::Session;
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::retention::{FOREVER, Lock};
use strongroom_server::clock::ManualClock;
use strongroom_server::gc::Outcome;
use strongroom_server::lock::{Day, locked_until};
use strongroom_server::repository::Repository;
use strongroom_server::rows::{SnapshotRow, lock_key};
use strongroom_server::store::meta::MetaBatch;
use strongroom_server::store::schema::Family;
use strongroom_server::writer::Decision;

use crate::gc::{
    Hook, HookClock, assert_whole, collect, commit, events, forget, gc_config, noise, number,
    reaped_count, snapshot, sync_up, tree_of,
};
use crate::harness::{DAY, START_MS, TestServer, digests};

/// A session that a breath of a cycle opened, and what it found there.
type Opened = (Session, Option<RecordDigest>);

/// More than a cycle over next to nothing breathes.
const BREATHS_MAX: u64 = 40;

/// Changes the lock in the row of a snapshot, and nothing else.
fn set_lock(repository: &Arc<Repository>, ns: u32, commit: u64, change: impl Fn(&mut Lock)) {
    let key = SnapshotRow::key(ns, commit);
    let value = repository.store().get(Family::Snapshots, &key).unwrap().unwrap();
    let mut row = SnapshotRow::decode(&value).unwrap();
    change(&mut row.lock);
    let write = move |decision: &mut Decision<'_>| {
        decision.batch.put(Family::Snapshots, key, row.encode());
        Ok(())
    };
    repository.writer().decide(write).unwrap();
}

/// The server cannot tell whose keys sealed an envelope, so two namespaces may hold one digest.
#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_that_two_namespaces_hold_is_kept_in_each() {
    let server = TestServer::start_with(gc_config).await;
    let repository = server.repository.clone();
    let (one, two) = (server.writer("one").await, server.writer("two").await);
    let (tree, other) = (tree_of(&one, &noise(1, 8)), tree_of(&one, &noise(2, 8)));
    let first = snapshot(&one, "db", &tree).await;
    snapshot(&two, "db", &tree).await;
    snapshot(&one, "other", &other).await;
    snapshot(&two, "other", &other).await;
    // A third has nothing of theirs, and nothing of it is looked for among theirs.
    let three = server.writer("three").await;
    let own = tree_of(&three, &noise(3, 8));
    snapshot(&three, "db", &own).await;
    assert_eq!(collect(&repository).unwrap().quarantined_count, 0);
    for writer in [&one, &two] {
        assert_whole(&repository, writer, &tree);
        assert_whole(&repository, writer, &other);
    }
    // What one forgets, the other keeps; without locks, only the records say so.
    server.clock.advance(DAY * 4);
    forget(&repository, &one, &first);
    assert_eq!(collect(&repository).unwrap().quarantined_count, 8 + 2, "chunks, node, root");
    server.clock.advance(DAY * 8);
    assert_eq!(collect(&repository).unwrap().outcome, Outcome::Complete);
    assert_whole(&repository, &two, &tree);
    assert_whole(&repository, &one, &other);
    assert_whole(&repository, &two, &other);
    assert_whole(&repository, &three, &own);
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_and_locks_without_end_are_raised_alone_and_together() {
    let server = TestServer::start_with(gc_config).await;
    let repository = server.repository.clone();
    let writer = server.writer("erp").await;
    let ns = number(&repository, &writer);
    let tree = tree_of(&writer, &noise(3, 5));
    snapshot(&writer, "db", &tree).await;
    let dated = SnapshotRow::decode(
        &repository.store().get(Family::Snapshots, &SnapshotRow::key(ns, 1)).unwrap().unwrap(),
    );
    let dated = dated.unwrap().lock.until_seconds;
    for (is_held, until_seconds) in [(true, dated), (false, FOREVER), (true, FOREVER)] {
        set_lock(&repository, ns, 1, |lock| {
            *lock = Lock { is_held, until_seconds, ..*lock };
        });
        server.clock.advance(DAY * 450);
        let report = collect(&repository).unwrap();
        assert_eq!((report.outcome, report.raised_count), (Outcome::Complete, 1));
        let today = Day::of(repository.moment().retention_seconds);
        let root = locked_until(repository.store(), ns, &tree.root.digest).unwrap().unwrap();
        assert!(root >= today.plus(400), "held {is_held}, until {until_seconds}");
        assert_eq!(collect(&repository).unwrap().raised_count, 0);
        // Again where less than 200 days are left, and not before.
        let left = root.number() - today.number();
        server.clock.advance(DAY * (left - 200));
        assert_eq!(collect(&repository).unwrap().raised_count, 0, "200 days are left");
        server.clock.advance(DAY);
        assert_eq!(collect(&repository).unwrap().raised_count, 1, "less than 200 days");
    }
    assert_whole(&repository, &writer, &tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_locked_a_day_less_than_its_record_ends_the_cycle() {
    let server = TestServer::start_with(gc_config).await;
    let repository = server.repository.clone();
    let writer = server.writer("erp").await;
    let ns = number(&repository, &writer);
    let (dead, live) = (tree_of(&writer, &noise(4, 5)), tree_of(&writer, &noise(5, 5)));
    let record = snapshot(&writer, "dead", &dead).await;
    server.clock.advance(DAY * 4);
    forget(&repository, &writer, &record);
    snapshot(&writer, "live", &live).await;
    let until = repository.moment().retention_seconds + 20 * 24 * 3600 + 1;
    set_lock(&repository, ns, 2, |lock| lock.until_seconds = until);
    let put_root = |day: Day| {
        let mut batch = MetaBatch::new();
        let key = lock_key(ns, &live.root.digest);
        batch.put(Family::Locks, key, day.number().to_be_bytes());
        repository.store().write(&batch).unwrap();
    };
    let wanted = Day::at_or_after(until);
    put_root(Day::of(until));
    assert!(collect(&repository).is_err(), "the lock ends in the course of that day");
    assert_whole(&repository, &writer, &dead);
    put_root(wanted);
    let report = collect(&repository).unwrap();
    assert_eq!(report.quarantined_count, 5 + 2);
    assert_whole(&repository, &writer, &live);
}

/// Rows are read a batch at a time: a record that stands behind more than one batch of others is
/// marked from like them.
#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_marked_from_however_many_there_are() {
    let server = TestServer::start_with(gc_config).await;
    let repository = server.repository.clone();
    let writer = server.writer("erp").await;
    let ns = number(&repository, &writer);
    let (many, last) = (tree_of(&writer, &noise(6, 3)), tree_of(&writer, &noise(7, 3)));
    snapshot(&writer, "many", &many).await;
    snapshot(&writer, "last", &last).await;
    let store = repository.store();
    let row = |commit| store.get(Family::Snapshots, &SnapshotRow::key(ns, commit)).unwrap();
    let (one, two) = (row(1).unwrap(), row(2).unwrap());
    let mut batch = MetaBatch::new();
    for commit in 2..1500 {
        batch.put(Family::Snapshots, SnapshotRow::key(ns, commit), one.clone());
    }
    batch.put(Family::Snapshots, SnapshotRow::key(ns, 1500), two);
    store.write(&batch).unwrap();
    server.clock.advance(DAY * 4);
    let report = collect(&repository).unwrap();
    assert_eq!((report.outcome, report.quarantined_count), (Outcome::Complete, 0));
    assert_whole(&repository, &writer, &last);
}

/// Time in quarantine counts for each envelope, whatever else the same cycle sweeps. And each
/// sweep has its intent and its outcome in the ledger, with what it was to do and what it did.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_reaped_early_beside_what_is_swept() {
    let server = TestServer::start_with(gc_config).await;
    let repository = server.repository.clone();
    let writer = server.writer("erp").await;
    let trees: Vec<_> = (0..3).map(|seed| tree_of(&writer, &noise(seed, 5))).collect();
    let mut records = Vec::new();
    for (tree, source) in trees.iter().zip(["first", "second", "third"]) {
        records.push(snapshot(&writer, source, tree).await);
    }
    snapshot(&writer, "lives", &tree_of(&writer, &noise(3, 5))).await;
    let ns = number(&repository, &writer);
    let present = |tree: &crate::harness::Tree| {
        let wanted = digests(&tree.chunks[1..]);
        let rows = repository.store().lookup(ns, &wanted).unwrap();
        rows.iter().filter(|row| row.is_some()).count()
    };
    server.clock.advance(DAY * 4);
    let mut swept = Vec::new();
    let mut cycle = |quarantined: u64, reaped: u64| {
        let report = collect(&repository).unwrap();
        assert_eq!((report.quarantined_count, reaped_count(&report)), (quarantined, reaped));
        swept.push((report.generation, quarantined, reaped));
    };
    forget(&repository, &writer, &records[0]);
    cycle(7, 0);
    server.clock.advance(DAY * 4);
    forget(&repository, &writer, &records[1]);
    cycle(7, 0);
    assert_eq!(present(&trees[0]), 5, "four days of seven");
    server.clock.advance(DAY * 3);
    forget(&repository, &writer, &records[2]);
    cycle(7, 7);
    assert_eq!((present(&trees[0]), present(&trees[1])), (0, 5));
    server.clock.advance(DAY * 4);
    cycle(0, 7);
    assert_eq!((present(&trees[1]), present(&trees[2])), (0, 5));
    let mut said = Vec::new();
    for event in events(repository.store()) {
        match event {
            Event::CollectionIntended { generation, dead_count, reap_count, .. } => {
                said.push(("intent", generation, dead_count, reap_count));
            }
            Event::Collected { generation, quarantined_count, reaped_count, .. } => {
                said.push(("outcome", generation, quarantined_count, reaped_count));
            }
            _ => {}
        }
    }
    let both = |(generation, dead, reaped)| {
        [("intent", generation, dead, reaped), ("outcome", generation, dead, reaped)]
    };
    assert_eq!(said, swept.into_iter().flat_map(both).collect::<Vec<_>>());
}

/// What was dead when the cycle looked, and is pinned, or pinned, committed and let go of, before
/// the cycle sweeps: at each breath of the cycle once.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_to_life_at_any_breath_is_not_swept() {
    let manual = Arc::new(ManualClock::at_ms(START_MS));
    let clock = HookClock::on(manual.clone());
    let server = TestServer::start_on(clock.clone(), manual, gc_config).await;
    let repository = server.repository.clone();
    let writer = Arc::new(server.writer("erp").await);
    let (mut came_back, mut swept) = (0, 0);
    for (seed, commits_at_once) in (0..BREATHS_MAX * 2).map(|n| (n, n % 2 == 1)) {
        let tree = Arc::new(tree_of(&writer, &noise(100 + seed, 3)));
        let garbage = tree_of(&writer, &noise(1000 + seed, 3));
        for (source, dead) in [("back", &*tree), ("garbage", &garbage)] {
            let record = snapshot(&writer, source, dead).await;
            server.clock.advance(DAY * 4);
            forget(&repository, &writer, &record);
        }
        let runtime = tokio::runtime::Handle::current();
        let opened: Arc<Mutex<Option<Opened>>> = Arc::default();
        let (w, t, slot) = (writer.clone(), tree.clone(), Arc::clone(&opened));
        let hook: Hook = Box::new(move |breath| {
            if breath == seed / 2 {
                *slot.lock().unwrap() = Some(runtime.block_on(async {
                    let session = w.session("back").await;
                    sync_up(&session, &t).await;
                    let record = match commits_at_once {
                        true => Some(commit(&w, &session, "back", &t).await),
                        false => None,
                    };
                    (session, record)
                }));
            }
        });
        let (report, breaths) = clock.try_cycle(&repository, Some(hook)).await;
        swept += report.unwrap().quarantined_count;
        let Some((session, record)) = opened.lock().unwrap().take() else {
            assert!(breaths <= seed / 2, "the cycle has breathed and nothing was done");
            break;
        };
        let record = match record {
            Some(record) => record,
            None => commit(&writer, &session, "back", &tree).await,
        };
        assert_whole(&repository, &writer, &tree);
        server.clock.advance(DAY * 8);
        collect(&repository).unwrap();
        assert_whole(&repository, &writer, &tree);
        // Nothing is left of it, so that the next cycle is as long as this one.
        forget(&repository, &writer, &record);
        collect(&repository).unwrap();
        server.clock.advance(DAY * 8);
        collect(&repository).unwrap();
        came_back += 1;
    }
    assert!(came_back > 10 && came_back < BREATHS_MAX * 2, "{came_back} times");
    assert!(swept > 0, "nothing was ever swept: nothing was tested");
}
