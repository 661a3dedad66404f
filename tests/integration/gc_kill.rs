//! Kills at random moments of collection cycles that run without a pause, beside commits and
//! forgets: what was acknowledged and not forgotten is whole, what was forgotten stays gone.
//!
//! The server that dies is this test binary, as in `crash.rs`. A day passes in 40 milliseconds of
//! its clock, so that locks end and quarantines pass between two kills.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_client::session::Session;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::record::RecordBody;
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_server::clock::{Clock, Reading, SystemClock};
use strongroom_server::config::{Config, Period};
use strongroom_server::gc::Outcome;
use strongroom_server::repository::Repository;
use strongroom_server::store::schema::Family;

use crate::crash::{CHILD, ChildServer, serve_until_killed, walk};
use crate::gc::{collect, gc_config, noise, tree_of, try_sync_up};
use crate::harness::{Actor, Calm, START_MS, TestServer, Tree, connect_to, label, test_config};

const BEGAN: &str = "STRONGROOM_SUITE_BEGAN_MS";
/// Where a cycle of the child that ended in an alarm says so.
const ALARM_FILE: &str = "alarm";
const DAY_MS: u64 = 40;
/// Snapshots that are kept before the oldest is forgotten.
const KEPT_MAX: usize = 3;

/// The machine's clock, but a day passes in [`DAY_MS`]. It goes on where a manual clock that was
/// never turned stood.
struct FastClock {
    system: SystemClock,
    began_ms: u64,
}

impl Clock for FastClock {
    fn wall_ms(&self) -> u64 {
        self.reading().wall_ms
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }

    fn reading(&self) -> Reading {
        let passed = self.system.reading().boot_ms.saturating_sub(self.began_ms);
        let passed_ms = passed * (24 * 3600 * 1000 / DAY_MS);
        let still = strongroom_server::clock::ManualClock::at_ms(START_MS).reading();
        Reading { wall_ms: still.wall_ms + passed_ms, boot_ms: still.boot_ms + passed_ms, ..still }
    }
}

fn fast_config(config: &mut Config) {
    gc_config(config);
    config.store.segment.0 = 1 << 20;
    config.gc.quarantine = Period::seconds(2 * 24 * 3600);
}

fn open(folder: &Path, began_ms: u64) -> Arc<Repository> {
    let clock = Arc::new(FastClock { system: SystemClock::default(), began_ms });
    let config = test_config(fast_config);
    Arc::new(Repository::open(&folder.join("data"), config, clock, Arc::new(Calm)).unwrap().0)
}

/// Not a test: a server whose cycles never pause, run by the test below.
#[test]
#[ignore = "started by the kill test"]
fn child_server_with_cycles() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = PathBuf::from(folder);
    let began_ms = std::env::var(BEGAN).unwrap().parse().unwrap();
    let repository = open(&folder, began_ms);
    let (cycling, alarm) = (repository.clone(), folder.join(ALARM_FILE));
    std::thread::spawn(move || {
        loop {
            let text = match collect(&cycling) {
                Ok(report) if report.outcome == Outcome::Complete => continue,
                Ok(report) => format!("{report:?}"),
                Err(error) => error.to_string(),
            };
            // The server itself finishes what was begun.
            if !text.contains("runs already") {
                std::fs::write(&alarm, text).unwrap();
            }
        }
    });
    serve_until_killed(repository, &folder, || {});
}

/// What clients were told of their snapshots.
#[derive(Default)]
struct Told {
    /// Acknowledged, the oldest first.
    kept: Vec<RecordDigest>,
    /// Whether it was forgotten was never answered.
    doubtful: BTreeSet<RecordDigest>,
    gone: BTreeSet<RecordDigest>,
    acknowledged_count: u64,
}

/// Who acts, and on what.
struct People {
    writer: Actor,
    operator: Actor,
    /// Trees that share most of their chunks.
    trees: Vec<Tree>,
}

impl People {
    fn new(writer: Actor, operator: Actor) -> Self {
        let pool = noise(11, 40);
        let tree = |number: u64| {
            let random = blake3::hash(&number.to_le_bytes());
            let shared = random.as_bytes()[..8].iter().map(|n| pool[usize::from(*n) % 40].clone());
            let pieces: Vec<Vec<u8>> = shared.chain(noise(1000 + number, 4)).collect();
            tree_of(&writer, &pieces)
        };
        let trees = (0..24).map(tree).collect();
        Self { writer, operator, trees }
    }
}

async fn try_commit(
    writer: &Actor,
    address: SocketAddr,
    tree: &Tree,
) -> Result<RecordDigest, ClientError> {
    let client = writer.profile.client(&connect_to(address))?;
    let (namespace, source) = (writer.namespace(), label("db"));
    let wanted = LockWanted::Default;
    let session = Session::open(&client, namespace, &source, SizeClass::Stream, wanted).await?;
    let committed = async {
        try_sync_up(&session, tree).await?;
        let record = writer.record(&session, "db", &tree.root, |_| {});
        session.commit(record.encode().into()).await?;
        Ok(record.digest())
    };
    let committed = committed.await;
    session.close().await;
    committed
}

async fn try_forget(
    people: &People,
    address: SocketAddr,
    record: RecordDigest,
) -> Result<(), ClientError> {
    let client = people.operator.profile.client(&connect_to(address))?;
    let route = Route::Forget(people.writer.namespace(), record);
    client.request(&route, "", Body::empty()).await.map(drop)
}

/// Commits and forgets until the server is dead.
async fn busy_until(
    is_dead: &AtomicBool,
    people: &People,
    address: SocketAddr,
    first: usize,
    told: &mut Told,
) {
    for number in first.. {
        if is_dead.load(Ordering::SeqCst) {
            return;
        }
        let tree = &people.trees[number % people.trees.len()];
        if let Ok(record) = try_commit(&people.writer, address, tree).await {
            told.kept.push(record);
            told.acknowledged_count += 1;
        }
        if told.kept.len() <= KEPT_MAX {
            continue;
        }
        let oldest = told.kept[0];
        match try_forget(people, address, oldest).await {
            Ok(()) => drop(told.gone.insert(told.kept.remove(0))),
            // Its lock lasts.
            Err(ClientError::Server(_)) => {}
            Err(_) => drop(told.doubtful.insert(told.kept.remove(0))),
        }
    }
}

/// Opens the folder after a kill and compares it with what clients were told; runs a cycle.
fn check(folder: &Path, began_ms: u64, writer: &Actor, told: &mut Told) {
    let alarm = std::fs::read_to_string(folder.join(ALARM_FILE));
    assert!(alarm.is_err(), "a cycle beside the clients: {alarm:?}");
    let repository = open(folder, began_ms);
    let ns = repository.registry().namespace(&writer.namespace()).unwrap().number;
    let mut bodies = Vec::new();
    let (mut listed, mut after) = (Vec::new(), Some(0));
    while let Some(commit) = after {
        let page = repository.list(&writer.namespace(), None, commit).unwrap();
        listed.extend(page.rows.iter().map(|row| row.record));
        bodies.extend(page.rows.iter().map(|row| RecordBody::decode(&row.body.0).unwrap()));
        after = page.next_after;
    }
    for record in &told.kept {
        assert!(listed.contains(record), "acknowledged snapshot {record} is lost");
    }
    for record in &listed {
        assert!(!told.gone.contains(record), "forgotten snapshot {record} came back");
    }
    let walk_all = || bodies.iter().for_each(|body| walk(&repository, writer, ns, body));
    walk_all();
    assert_eq!(collect(&repository).unwrap().outcome, Outcome::Complete);
    walk_all();
    assert_eq!(repository.status().unwrap().snapshot_count, listed.len() as u64);
    // What was in doubt is decided now, and stays so.
    let doubtful = std::mem::take(&mut told.doubtful);
    told.gone.extend(doubtful.into_iter().filter(|record| !listed.contains(record)));
    told.kept = listed;
}

/// Cycles that were cut off in their sweep, and what all cycles reaped and dropped.
fn sums(repository: &Repository) -> (u64, u64, u64) {
    let (mut open_intents, mut reaped, mut dropped) = (0, 0, 0);
    let mut each = |_: &[u8], value: &[u8]| {
        match Entry::decode(value).unwrap().event {
            Event::CollectionIntended { .. } => open_intents += 1,
            Event::Collected { reaped_count, .. } => {
                open_intents -= 1;
                reaped += reaped_count;
            }
            Event::SegmentDropped { .. } => dropped += 1,
            _ => {}
        }
        std::ops::ControlFlow::Continue(())
    };
    repository.store().scan(Family::Ledger, b"e", None, &mut each).unwrap();
    (open_intents, reaped, dropped)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lives_survives_kills_of_cycles_and_forgets() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (kills, seed) = (number("KILLS", 20), number("SEED", 1));
    println!("gc kills: {kills} kills, SEED={seed}");
    let server = TestServer::start_with(fast_config).await;
    let writer = server.writer("erp").await;
    let operator = server.principal(None, Role::Operator).await;
    let (folder, _) = server.stop().await;
    let people = People::new(writer, operator);
    let began_ms = SystemClock::default().reading().boot_ms;
    let mut told = Told::default();
    for kill in 0..kills {
        let variables = [(BEGAN, &*began_ms.to_string())];
        let name = "gc_kill::child_server_with_cycles";
        let child = ChildServer::start_as(name, folder.path(), &variables);
        let random = blake3::hash(&[seed.to_le_bytes(), kill.to_le_bytes()].concat());
        let delay = u64::from(random.as_bytes()[0]) * 6;
        let (address, is_dead) = (child.address, Arc::new(AtomicBool::new(false)));
        let dead = is_dead.clone();
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(delay));
            child.kill();
            dead.store(true, Ordering::SeqCst);
        });
        let first = usize::from(random.as_bytes()[1]);
        busy_until(&is_dead, &people, address, first, &mut told).await;
        killer.await.unwrap();
        check(folder.path(), began_ms, &people.writer, &mut told);
    }
    let (cut_off, reaped, dropped) = sums(&open(folder.path(), began_ms));
    println!(
        "gc kills: {kills} kills, {} acknowledged, {} forgotten, {cut_off} in the middle of a \
         sweep, {reaped} envelopes reaped, {dropped} segments dropped; 0 lost, 0 resurrected",
        told.acknowledged_count,
        told.gone.len()
    );
    assert!(!told.gone.is_empty() && reaped > 0, "nothing was tested");
}
