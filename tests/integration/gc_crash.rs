//! Collection crashes at each of its durable steps: what lives is whole, the ledger keeps its
//! promises, and the next cycle ends what was begun.
//!
//! The process that dies is this test binary, as in `crash.rs`, with a clock that stands still at
//! the moment that the test names.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use strongroom_server::clock::{Clock, ManualClock};
use strongroom_server::gc::Outcome;
use strongroom_server::repository::{Repository, Witness};
use strongroom_server::store::schema::SegmentState;

use crate::crash::DiesAt;
use crate::gc::{
    assert_whole, check_ledger, collect, commit, forget, gc_config, noise, number, snapshot,
    sync_up, tree_of,
};
use crate::harness::{Actor, Calm, DAY, TestServer, Tree, digests, test_config};

const CHILD: &str = "STRONGROOM_SUITE_GC_CHILD";

pub fn open(data: &Path, wall_ms: u64, witness: Arc<dyn Witness>) -> Arc<Repository> {
    let clock = Arc::new(ManualClock::at_ms(wall_ms));
    let config = test_config(gc_config);
    Arc::new(Repository::open(data, config, clock, witness).unwrap().0)
}

/// Not a test: runs one cycle and dies in it, run by the test below.
#[test]
#[ignore = "started by the crash tests"]
fn child_cycle() {
    let Ok(data) = std::env::var(CHILD) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<i64>().unwrap();
    let step = std::env::var("STRONGROOM_SUITE_STEP").unwrap();
    let witness = Arc::new(DiesAt { step, left: AtomicI64::new(0) });
    let wall_ms = u64::try_from(number("STRONGROOM_SUITE_MS")).unwrap();
    let repository = open(Path::new(&data), wall_ms, witness.clone());
    let count = number("STRONGROOM_SUITE_COUNT");
    witness.left.store(count, std::sync::atomic::Ordering::SeqCst);
    collect(&repository).unwrap();
}

/// Runs a cycle in a process of its own; true if it died.
fn dies(data: &Path, wall_ms: u64, step: &str, count: u32) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["gc_crash::child_cycle", "--exact", "--ignored", "--nocapture"])
        .env(CHILD, data)
        .env("STRONGROOM_SUITE_STEP", step)
        .env("STRONGROOM_SUITE_COUNT", count.to_string())
        .env("STRONGROOM_SUITE_MS", wall_ms.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    !status.success()
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn known(repository: &Repository, writer: &Actor, tree: &Tree) -> usize {
    let wanted = digests(&tree.chunks[1..]);
    let rows = repository.store().lookup(number(repository, writer), &wanted).unwrap();
    rows.iter().flatten().count()
}

/// A folder in which the next cycle quarantines, reaps, evacuates and drops.
pub struct Prepared {
    pub folder: Arc<tempfile::TempDir>,
    pub wall_ms: u64,
    pub writer: Actor,
    /// To be reaped.
    pub gone: Vec<Tree>,
    /// To be quarantined.
    pub fresh: Tree,
    pub live: Vec<Tree>,
}

pub async fn prepare() -> Prepared {
    let server = TestServer::start_with(gc_config).await;
    let writer = server.writer("erp").await;
    let trees: Vec<Tree> = (20..25).map(|seed| tree_of(&writer, &noise(seed, 12))).collect();
    let mut trees = trees.into_iter();
    let mut next = || trees.next().unwrap();
    let (alone, beside, moved, fresh, live) = (next(), next(), next(), next(), next());
    // One segment of its own, one that is shared with something that lives.
    let gone_alone = snapshot(&writer, "alone", &alone).await;
    let more = tree_of(&writer, &noise(30, 20));
    let (one, two) = (writer.session("beside").await, writer.session("moved").await);
    sync_up(&one, &beside).await;
    sync_up(&one, &more).await;
    sync_up(&two, &moved).await;
    let gone_beside = commit(&writer, &one, "beside", &beside).await;
    commit(&writer, &two, "moved", &moved).await;
    let fresh_record = snapshot(&writer, "fresh", &fresh).await;
    snapshot(&writer, "live", &live).await;
    server.clock.advance(DAY * 4);
    for record in [gone_alone, gone_beside] {
        forget(&server.repository, &writer, &record);
    }
    assert!(collect(&server.repository).unwrap().quarantined_count > 40);
    server.clock.advance(DAY * 8);
    forget(&server.repository, &writer, &fresh_record);
    let (folder, clock) = server.stop().await;
    let gone = vec![alone, beside, more];
    Prepared { folder, wall_ms: clock.wall_ms(), writer, gone, fresh, live: vec![moved, live] }
}

fn check(prepared: &Prepared, data: &Path) {
    let Prepared { writer, wall_ms, .. } = prepared;
    let repository = open(data, *wall_ms, Arc::new(Calm));
    for tree in &prepared.live {
        assert_whole(&repository, writer, tree);
    }
    // The next cycle ends what was begun, and nothing is left over.
    assert_eq!(collect(&repository).unwrap().outcome, Outcome::Complete);
    collect(&repository).unwrap();
    for tree in &prepared.live {
        assert_whole(&repository, writer, tree);
    }
    for tree in &prepared.gone {
        assert_eq!(known(&repository, writer, tree), 0);
    }
    let rows = digests(&prepared.fresh.chunks[1..]);
    let rows = repository.store().lookup(number(&repository, writer), &rows).unwrap();
    assert!(rows.iter().all(|row| row.is_some_and(|row| !row.is_usable())));
    let catalogue = repository.store().catalogue().unwrap();
    assert!(catalogue.iter().all(|(_, row)| row.state == SegmentState::Live));
    assert_eq!(catalogue.len(), 3, "fresh, live, and what was moved: {catalogue:?}");
    let files = std::fs::read_dir(data.join("chunks")).unwrap();
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "sst");
    let files = files.map(|file| file.unwrap().path()).filter(is_segment).count();
    assert_eq!(files, catalogue.len(), "a file stayed");
    let copies = catalogue
        .iter()
        .map(|(segment, _)| repository.store().record_copies(*segment).unwrap().len());
    assert!(copies.sum::<usize>() > 0);
    check_intents(&repository);
}

/// Crashes may leave an intent without an outcome, but never an outcome without an intent.
fn check_intents(repository: &Repository) {
    use strongroom_protocol::entry::{Entry, Event};
    use strongroom_server::store::schema::Family;
    let (mut cycles, mut segments) = (Vec::new(), Vec::new());
    let mut each = |_: &[u8], value: &[u8]| {
        match Entry::decode(value).unwrap().event {
            Event::CollectionIntended { generation, .. } => cycles.push(generation),
            Event::Collected { generation, .. } => assert!(cycles.contains(&generation)),
            Event::SegmentDropIntended { segment, .. } => segments.push(segment),
            Event::SegmentDropped { segment, .. } => assert!(segments.contains(&segment)),
            _ => {}
        }
        std::ops::ControlFlow::Continue(())
    };
    repository.store().scan(Family::Ledger, b"e", None, &mut each).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lives_survives_death_at_each_step_of_a_cycle() {
    let prepared = prepare().await;
    let data = prepared.folder.path().join("data");
    let mut steps = vec![
        ("Quarantined", 1),
        ("Reaped", 1),
        ("SegmentFinished", 1),
        ("SegmentIngested", 1),
        ("Evacuated", 1),
        ("Moved", 1),
        ("SegmentDropped", 1),
        ("SegmentDropped", 2),
    ];
    // Begin, intent, outcome, and for each of two segments: intent, outcome; the end.
    steps.extend((1..=8).flat_map(|count| [("MetaWritten", count), ("MetaSynced", count)]));
    for (step, count) in steps {
        let copy = tempfile::tempdir().unwrap();
        let data_copy = copy.path().join("data");
        copy_folder(&data, &data_copy);
        assert!(dies(&data_copy, prepared.wall_ms, step, count), "{step} {count} never came");
        check(&prepared, &data_copy);
    }
    let copy = tempfile::tempdir().unwrap();
    let data_copy = copy.path().join("data");
    copy_folder(&data, &data_copy);
    assert!(!dies(&data_copy, prepared.wall_ms, "none", 1));
    check(&prepared, &data_copy);
    let repository = open(&data_copy, prepared.wall_ms, Arc::new(Calm));
    check_ledger(repository.store());
}
