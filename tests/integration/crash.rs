//! Crashes: the server dies at each durable step of a commit, and at random moments; the client
//! dies in the middle. Acknowledged snapshots are there and whole; others are whole or invisible.
//!
//! The server that dies is a child: this very test binary, told by the environment to serve a data
//! folder and to abort at the n-th step of a kind. So no way to crash stands in the product.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use strongroom_client::error::ClientError;
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::{RecordDigest, SealedDigest};
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::{Record, RecordBody};
use strongroom_protocol::retention::LockWanted;
use strongroom_server::clock::SystemClock;
use strongroom_server::lock::locked_until;
use strongroom_server::repository::{Repository, Witness};
use strongroom_server::run::BoundServer;
use strongroom_server::store::observer::Step;
use strongroom_server::store::schema::IndexRow;

use crate::harness::{Actor, Calm, TestServer, Tree, connect_to, frames, test_config};

/// Names the folder that a child serves.
pub const CHILD: &str = "STRONGROOM_SUITE_CHILD";

/// Aborts at a step.
pub struct DiesAt {
    pub step: String,
    pub left: AtomicI64,
}

impl Witness for DiesAt {
    fn step(&self, step: Step) {
        let is_due = format!("{step:?}") == self.step;
        if is_due && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}

/// Not a test: the server that dies, run by the tests below.
#[test]
#[ignore = "started by the crash tests"]
fn child_server() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = PathBuf::from(folder);
    let step = std::env::var("STRONGROOM_SUITE_STEP").unwrap_or_default();
    let left = std::env::var("STRONGROOM_SUITE_COUNT").map_or(1, |n| n.parse().unwrap());
    let witness = Arc::new(DiesAt { step, left: AtomicI64::new(0) });
    let config = test_config(|config| config.store.segment.0 = 1 << 20);
    let clock = Arc::new(SystemClock::default());
    let data = folder.join("data");
    let (repository, _) = Repository::open(&data, config, clock, witness.clone()).unwrap();
    serve_until_killed(Arc::new(repository), &folder, || {
        witness.left.store(left, Ordering::SeqCst);
    });
}

/// Serves `folder` and says where, for as long as the process lives.
pub fn serve_until_killed(repository: Arc<Repository>, folder: &Path, begin: impl FnOnce()) {
    tokio::runtime::Runtime::new().unwrap().block_on(async move {
        let server = BoundServer::bind(repository, &folder.join("data")).await.unwrap();
        begin();
        let address = server.client_address().unwrap().to_string();
        std::fs::write(folder.join("address.new"), address).unwrap();
        std::fs::rename(folder.join("address.new"), folder.join("address")).unwrap();
        server.serve(std::future::pending()).await.unwrap();
    });
}

/// A running child, killed when dropped.
pub struct ChildServer {
    process: Child,
    pub address: SocketAddr,
}

impl ChildServer {
    fn start(folder: &Path, step: &str, count: u32) -> Self {
        let count = count.to_string();
        let variables = [("STRONGROOM_SUITE_STEP", step), ("STRONGROOM_SUITE_COUNT", &count)];
        Self::start_as("crash::child_server", folder, &variables)
    }

    /// Starts the ignored test `name` of this binary, which must serve `folder`.
    pub fn start_as(name: &str, folder: &Path, variables: &[(&str, &str)]) -> Self {
        let address_file = folder.join("address");
        let _ = std::fs::remove_file(&address_file);
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .env(CHILD, folder)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..1200 {
            if let Ok(text) = std::fs::read_to_string(&address_file) {
                return Self { process, address: text.parse().unwrap() };
            }
            assert!(process.try_wait().unwrap().is_none(), "child server did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("child server is not ready");
    }

    pub fn kill(mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Pieces of plaintext that no other round has, about `bytes` in all.
fn pieces_of(round: u64, bytes: usize) -> Vec<Vec<u8>> {
    let piece = 30_000;
    (0..bytes.div_ceil(piece) as u64)
        .map(|n| {
            let mut bytes = vec![0; piece];
            let seed = [round.to_le_bytes(), n.to_le_bytes()].concat();
            blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
            bytes
        })
        .collect()
}

/// Backs a hand-made tree up; gives its name when the server acknowledged it.
async fn try_snapshot(
    writer: &Actor,
    address: SocketAddr,
    size_class: SizeClass,
    round: u64,
) -> Result<RecordDigest, ClientError> {
    let pieces = pieces_of(round, if size_class == SizeClass::Small { 200_000 } else { 3_000_000 });
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let tree = Tree::seal(&writer.keys(), &pieces);
    let here = connect_to(address);
    let client = writer.profile.client(&here)?;
    let source = crate::harness::label("db");
    let namespace = writer.namespace();
    let session = strongroom_client::session::Session::open(
        &client,
        namespace,
        &source,
        size_class,
        LockWanted::Default,
    )
    .await?;
    for envelopes in tree.envelopes().chunks(20) {
        session.upload(frames(envelopes)).await?;
    }
    let record = writer.record(&session, "db", &tree.root, |_: &mut RecordBody| {});
    let receipt = session.commit(Bytes::from(record.encode())).await?;
    Receipt::decode(&receipt)?.verify(&[writer.profile.settings().ledger_key]).unwrap();
    Ok(record.digest())
}

/// Opens the folder after a crash and checks everything that a reader can see; the trees of the
/// snapshots only from `walk_from` on.
fn check(folder: &Path, writer: &Actor, acknowledged: &[RecordDigest], walk_from: usize) -> usize {
    let clock = Arc::new(SystemClock::default());
    let config = test_config(|config| config.store.segment.0 = 1 << 20);
    let (repository, _) =
        Repository::open(&folder.join("data"), config, clock, Arc::new(Calm)).unwrap();
    let namespace = repository.registry().namespace(&writer.namespace()).unwrap();
    let (mut rows, mut after) = (Vec::new(), Some(0));
    while let Some(commit) = after {
        let page = repository.list(&writer.namespace(), None, commit).unwrap();
        rows.extend(page.rows);
        after = page.next_after;
    }
    let listed: HashSet<RecordDigest> = rows.iter().map(|row| row.record).collect();
    for digest in acknowledged {
        assert!(listed.contains(digest), "acknowledged snapshot {digest} is lost");
    }
    let ledger_key = writer.profile.settings().ledger_key;
    for (at, row) in rows.iter().enumerate() {
        let receipt = repository.receipt(&writer.namespace(), &row.record).unwrap();
        receipt.verify(&[ledger_key]).unwrap();
        let body = RecordBody::decode(&row.body.0).unwrap();
        assert_eq!(body.sequence, at as u64 + 1, "sequence has a gap");
        if at < walk_from {
            continue;
        }
        walk(&repository, writer, namespace.number, &body);
    }
    // The segments' own tables say the same as the index.
    let store = repository.store();
    let mut each = |ns, digest, row: IndexRow| {
        let known = store.lookup(ns, &[digest])?.pop().flatten();
        assert_eq!(known.map(|known| (known.length, known.level)), Some((row.length, row.level)));
        Ok(())
    };
    store.rebuild_index(&mut each).unwrap();
    assert_eq!(repository.status().unwrap().snapshot_count, rows.len() as u64);
    rows.len()
}

/// Reads a whole tree: every envelope is there and has its digest, every node is locked.
pub fn walk(repository: &Repository, writer: &Actor, ns: u32, body: &RecordBody) {
    let mut level = vec![body.root];
    for _ in 0..=body.root_level {
        let (mut below, mut at) = (Vec::new(), 0);
        let mut each = |envelope: &[u8]| {
            let parsed = Envelope::parse(envelope).unwrap();
            let digest = SealedDigest::of(envelope);
            assert!(level.contains(&digest));
            if parsed.is_node() {
                let lock = locked_until(repository.store(), ns, &digest);
                assert!(lock.unwrap().is_some(), "a node of a snapshot is not locked");
            }
            below.extend(parsed.children());
            at += 1;
            std::ops::ControlFlow::Continue(())
        };
        repository.read(&writer.namespace(), &level, &mut each).unwrap();
        assert_eq!(at, level.len());
        level = below;
    }
}

async fn prepare() -> (Arc<tempfile::TempDir>, Actor, Vec<RecordDigest>) {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"first"]).await;
    let (folder, _) = server.stop().await;
    (folder, writer, vec![record.digest()])
}

async fn die_at_each(size_class: SizeClass, steps: &[(&str, u32)]) {
    let (folder, writer, mut acknowledged) = prepare().await;
    let mut round = 0;
    for (step, count) in steps {
        round += 1;
        let child = ChildServer::start(folder.path(), step, *count);
        let outcome = try_snapshot(&writer, child.address, size_class, round).await;
        acknowledged.extend(outcome.ok());
        child.kill();
        let listed = check(folder.path(), &writer, &acknowledged, 0);
        // The same backup, again and undisturbed, succeeds, whatever the crash left.
        let child = ChildServer::start(folder.path(), "none", 1);
        round += 1;
        let again = try_snapshot(&writer, child.address, size_class, round).await.unwrap();
        acknowledged.push(again);
        child.kill();
        assert_eq!(check(folder.path(), &writer, &acknowledged, 0), listed + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_survives_death_at_each_step_of_a_stream() {
    let steps = [
        ("Appended", 1),
        ("Appended", 4),
        ("SegmentFinished", 1),
        ("SegmentIngested", 1),
        ("IndexWritten", 1),
        ("IndexWritten", 2),
        ("MetaWritten", 1),
        ("MetaSynced", 1),
        ("HeadWritten", 1),
    ];
    die_at_each(SizeClass::Stream, &steps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_survives_death_at_each_step_of_a_small_session() {
    let steps = [("InboxWritten", 1), ("MetaWritten", 1), ("MetaSynced", 1), ("HeadWritten", 1)];
    die_at_each(SizeClass::Small, &steps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_survives_kill() {
    let kills: u64 = std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let seed: u64 = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("crash: {kills} kills, SEED={seed}");
    let (folder, writer, mut acknowledged) = prepare().await;
    let mut walked = 0;
    for kill in 0..kills {
        let child = ChildServer::start(folder.path(), "none", 1);
        let random = blake3::hash(&[seed.to_le_bytes(), kill.to_le_bytes()].concat());
        let delay = u64::from(random.as_bytes()[0]) * 2;
        let size_class =
            [SizeClass::Small, SizeClass::Stream][usize::from(random.as_bytes()[1] & 1)];
        let address = child.address;
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(delay));
            child.kill();
        });
        for round in 0.. {
            match try_snapshot(&writer, address, size_class, 1000 * (kill + 1) + round).await {
                Ok(digest) => acknowledged.push(digest),
                Err(_) => break,
            }
        }
        killer.await.unwrap();
        // Each round walks what is new, the last one everything.
        walked = check(folder.path(), &writer, &acknowledged, walked);
    }
    check(folder.path(), &writer, &acknowledged, 0);
    println!("crash: {kills} kills, {} acknowledged, 0 lost, 0 half visible", acknowledged.len());
    assert!(acknowledged.len() > 1, "no snapshot was ever acknowledged: nothing was tested");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_died_sends_nothing_twice() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let pieces = pieces_of(7, 3_000_000);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let tree = Tree::seal(&writer.keys(), &pieces);
    {
        // The first client sends half of the chunks and is never heard of again.
        let session = writer.session("db").await;
        session.upload(frames(&tree.chunks[..tree.chunks.len() / 2])).await.unwrap();
    }
    let session = writer.session("db").await;
    let have = session.have(&crate::harness::digests(&tree.chunks)).await.unwrap();
    let arrived = have.iter().filter(|have| **have).count();
    assert_eq!(arrived, tree.chunks.len() / 2);
    let rest: Vec<Bytes> = tree
        .chunks
        .iter()
        .zip(&have)
        .filter(|(_, have)| !**have)
        .map(|(chunk, _)| chunk.clone())
        .chain(tree.nodes.iter().map(|node| node.envelope.clone().into()))
        .collect();
    let uploaded = session.upload(frames(&rest)).await.unwrap();
    assert_eq!(uploaded.duplicate_count, 0);
    let record: Record = writer.record(&session, "db", &tree.root, |_| {});
    session.commit(record.encode().into()).await.unwrap();
}
