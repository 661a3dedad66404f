//! Data that no honest writer makes, and that a server without keys cannot tell from honest data:
//! trees that share one node a million times, are too deep, too wide or lie about their lengths;
//! bombs in the place of compressed chunks; catalogues of a million entries of one name. Nothing of
//! it costs more than what it has of distinct nodes or says of bytes, and nothing of it is written.
//!
//! There are no cycles: a node names its children by digests of what they are, and stands one level
//! above them, so a node below itself would be a collision of BLAKE3, and of a wrong level.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use strongroom_client::compressor::{Body, CODEC_ZSTD};
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::keys::PlaintextKeys;
use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions, RestoreSummary};
use strongroom_client::sealer::{self, NodeChild, SealedNode, seal_node};
use strongroom_client::tree::{Leaf, SealedRoot, Subtree, TreeBuilder, join};
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::catalogue::{self, Entry, Kind};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{RecordDigest, SealedDigest};
use strongroom_protocol::limits::{LEVEL_MAX, NODE_CHILDREN_MAX};
use strongroom_protocol::record::Totals;
use strongroom_server::gc::Outcome;
use strongroom_server::lock::locked_until;

use crate::gc::{collect, number};
use crate::harness::{Actor, TestServer, child_of, frames, refused_with, seal_leaf, two_sites};
use crate::replica::{follow, quick, snapshots, synced};
use crate::scrub::{run, scrub_config};

/// Longer than any of it takes, and no bound of what is tested.
const HANG: Duration = Duration::from_secs(120);
const WIDTH: usize = 2048;

/// Envelopes of a snapshot, children first, each once.
struct Made {
    keys: PlaintextKeys,
    envelopes: Vec<Bytes>,
    /// With multiplicity, as a server computes them.
    totals: HashMap<SealedDigest, Totals>,
}

impl Made {
    fn by(writer: &Actor) -> Self {
        let keys = writer.keys().plaintext().clone();
        Self { keys, envelopes: Vec::new(), totals: HashMap::new() }
    }

    fn leaf(&mut self, plaintext: &[u8]) -> Leaf {
        let (leaf, envelope) = seal_leaf(&self.keys, plaintext);
        self.chunk(envelope);
        leaf
    }

    fn chunk(&mut self, envelope: Bytes) {
        let totals = Totals::of_chunk(envelope.len() as u64);
        self.totals.insert(SealedDigest::of(&envelope), totals);
        self.envelopes.push(envelope);
    }

    fn subtree(&self, level: u8, child: NodeChild) -> Subtree {
        Subtree { level, child, totals: self.totals[&child.digest] }
    }

    fn node(&mut self, level: u8, children: &[NodeChild]) -> SealedNode {
        let node = seal_node(&self.keys, level, children);
        let below = children.iter().map(|child| self.totals[&child.digest]);
        let totals = Totals::of_node(node.envelope.len() as u64, below);
        self.totals.insert(node.digest, totals);
        self.envelopes.push(node.envelope.clone().into());
        node
    }

    /// One node at each level up to `level`, of `width` children, all of them the one below.
    fn shared(&mut self, leaf: &Leaf, level: u8, width: usize) -> Subtree {
        let mut child = child_of(leaf);
        for level in 1..=level {
            child = self.node(level, &vec![child; width]).as_child();
        }
        self.subtree(level, child)
    }

    /// A catalogue of one stream that is as long as is said.
    fn stream_of(&mut self, bytes: u64) -> Subtree {
        let mut entry = Entry::empty(Kind::Stream);
        (entry.size_bytes, entry.data_bytes) = (bytes, bytes);
        let leaf = self.leaf(&catalogue::encode(&[entry]));
        self.subtree(0, child_of(&leaf))
    }

    fn root(&mut self, catalogue: Subtree, data: Subtree) -> SealedRoot {
        let (keys, envelopes) = (self.keys.clone(), &mut self.envelopes);
        join(&keys, catalogue, data, &mut |node| envelopes.push(node.envelope.into()))
    }

    async fn commit(&self, writer: &Actor, root: &SealedRoot) -> RecordDigest {
        let session = writer.session("db").await;
        for some in self.envelopes.chunks(100) {
            session.upload(frames(some)).await.unwrap();
        }
        let record = writer.record(&session, "db", root, |_| {});
        session.commit(record.encode().into()).await.unwrap();
        record.digest()
    }
}

async fn restored(
    writer: &Actor,
    record: RecordDigest,
    to: &Path,
) -> Result<RestoreSummary, ClientError> {
    let restoring = async {
        let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await?;
        let options = RestoreOptions::to(Target::Path(to.to_path_buf()));
        restore::restore(&access, record, &options, &Monitor::hidden()).await
    };
    tokio::time::timeout(HANG, restoring).await.expect("the restore hangs")
}

async fn is_refused(writer: &Actor, record: RecordDigest, name: &str) -> String {
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("restored");
    let error = restored(writer, record, &to).await.expect_err(name);
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{name}: {error}");
    let left = std::fs::read_dir(place.path()).unwrap().count();
    assert_eq!(left, 0, "{name}: something was left");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_named_a_million_times_costs_its_distinct_nodes_everywhere() {
    let (primary, replica, writer) = two_sites(quick).await;
    let mut made = Made::by(&writer);
    let leaf = made.leaf(b"x");
    let data = made.shared(&leaf, LEVEL_MAX - 1, WIDTH);
    let catalogue = made.stream_of(u64::MAX);
    let root = made.root(catalogue, data);
    let record = made.commit(&writer, &root).await;
    let distinct: BTreeSet<_> =
        made.envelopes.iter().map(|bytes| SealedDigest::of(bytes)).collect();
    let distinct = distinct.len() as u64;
    assert!(distinct < 32, "{distinct}");

    // Locked, marked and hashed: once each.
    let ns = number(&primary.repository, &writer);
    let locked = locked_until(primary.repository.store(), ns, &root.digest).unwrap();
    assert!(locked.is_some());
    let report = collect(&primary.repository).unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(report.marked_count, distinct);
    let scrubbed = run(&primary.repository).await;
    assert!(scrubbed.is_complete && scrubbed.damaged_count == 0);
    assert_eq!(scrubbed.envelope_count, distinct);

    // And so on a replica.
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace())[0].record, record);
    let report = collect(&replica.repository).unwrap();
    assert_eq!((report.outcome, report.marked_count), (Outcome::Complete, distinct));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_no_bytes_make_no_restore_endless() {
    let server = TestServer::start_with(scrub_config).await;
    let writer = server.writer("erp").await;
    for level in [1, 2, LEVEL_MAX - 1] {
        let mut made = Made::by(&writer);
        let empty = made.leaf(b"");
        let data = made.shared(&empty, level, WIDTH);
        let catalogue = made.stream_of(0);
        let root = made.root(catalogue, data);
        let record = made.commit(&writer, &root).await;
        let says = is_refused(&writer, record, "empty data").await;
        assert!(says.contains("has no bytes"), "{says}");
        // In the place of the catalogue, too.
        let mut made = Made::by(&writer);
        let empty = made.leaf(b"");
        let catalogue = made.shared(&empty, level, WIDTH);
        let data = made.leaf(b"data");
        let data = made.subtree(0, child_of(&data));
        let root = made.root(catalogue, data);
        let record = made.commit(&writer, &root).await;
        is_refused(&writer, record, "empty catalogue").await;
    }
    // What honest writers make of nothing.
    let mut made = Made::by(&writer);
    let empty = made.leaf(b"");
    let data = made.shared(&empty, 2, 1);
    let catalogue = made.stream_of(0);
    let root = made.root(catalogue, data);
    let record = made.commit(&writer, &root).await;
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("restored");
    restored(&writer, record, &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_named_often_costs_an_envelope_for_each_of_its_bytes_and_no_more() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let mut made = Made::by(&writer);
    let leaf = made.leaf(b"x");
    let child = child_of(&leaf);
    let low = made.node(1, &vec![child; WIDTH]).as_child();
    let data = made.node(2, &[low; 8]).as_child();
    let (data, bytes) = (made.subtree(2, data), 8 * WIDTH as u64);
    let catalogue = made.stream_of(bytes);
    let root = made.root(catalogue, data);
    let record = made.commit(&writer, &root).await;
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("restored");
    let summary = restored(&writer, record, &to).await.unwrap();
    assert!(std::fs::read(&to).unwrap() == vec![b'x'; 8 * WIDTH]);
    assert_eq!((summary.plaintext_bytes, summary.chunk_count), (bytes, bytes + 1));
    let chunk = made.envelopes[0].len() as u64;
    let nodes = 8 * low_bytes(&made);
    assert!(summary.fetched_sealed_bytes < (bytes + 8) * chunk + 2 * nodes, "{summary:?}");
}

/// Bytes of the widest envelope.
fn low_bytes(made: &Made) -> u64 {
    made.envelopes.iter().map(|envelope| envelope.len() as u64).max().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_that_are_too_deep_or_too_wide_are_refused_before_they_are_stored() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let keys = writer.keys();
    let session = writer.session("db").await;
    let (leaf, envelope) = seal_leaf(keys.plaintext(), b"leaf");
    session.upload(frames(&[envelope])).await.unwrap();
    let mut child = child_of(&leaf);
    let widest = usize::try_from(NODE_CHILDREN_MAX).unwrap();
    for level in 1..=LEVEL_MAX {
        for width in [0, widest + 1] {
            let bad = seal_node(keys.plaintext(), level, &vec![child; width]);
            let outcome = session.upload(frames(&[bad.envelope.into()])).await;
            refused_with(outcome, ErrorCode::BadEnvelope);
        }
        let node = seal_node(keys.plaintext(), level, &vec![child; widest]);
        session.upload(frames(&[node.envelope.clone().into()])).await.unwrap();
        child = node.as_child();
    }
    for level in [LEVEL_MAX + 1, 100, u8::MAX] {
        let deep = seal_node(keys.plaintext(), level, &[child]);
        let outcome = session.upload(frames(&[deep.envelope.into()])).await;
        refused_with(outcome, ErrorCode::BadEnvelope);
    }
    let mut made = Made::by(&writer);
    let (catalogue, data) = (made.stream_of(4), made.leaf(b"data"));
    let data = made.subtree(0, child_of(&data));
    let root = made.root(catalogue, data);
    session.upload(frames(&made.envelopes)).await.unwrap();
    for level in [0, 2, LEVEL_MAX, LEVEL_MAX + 1, u8::MAX] {
        let record = writer.record(&session, "db", &root, |body| body.root_level = level);
        refused_with(session.commit(record.encode().into()).await, ErrorCode::BadRecord);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_lie_about_what_is_below_them_are_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    for claimed in [0, 3, 5, 1 << 40, u64::MAX] {
        let mut made = Made::by(&writer);
        let leaf = made.leaf(b"four");
        let low = made.node(1, &[child_of(&leaf)]).as_child();
        let lying = NodeChild { plaintext_bytes: claimed, ..low };
        let data = made.node(2, &[lying]).as_child();
        let (data, catalogue) = (made.subtree(2, data), made.stream_of(claimed));
        let root = made.root(catalogue, data);
        let record = made.commit(&writer, &root).await;
        is_refused(&writer, record, &format!("{claimed} bytes")).await;
    }
    // A catalogue that is said to be longer than any.
    let mut made = Made::by(&writer);
    let (list, data) = (made.leaf(b"SRC1"), made.leaf(b"data"));
    let list = made.node(1, &[child_of(&list)]).as_child();
    let list = NodeChild { plaintext_bytes: 1 << 60, ..list };
    let (list, data) = (made.subtree(1, list), made.subtree(0, child_of(&data)));
    let root = made.root(list, data);
    let record = made.commit(&writer, &root).await;
    let says = is_refused(&writer, record, "a huge catalogue").await;
    assert!(says.contains("the catalogue is said to be"), "{says}");
}

/// Bodies that say that they are zstd, and what a node says of their length.
fn bombs() -> Vec<(&'static str, Vec<u8>, u64)> {
    let zeros = |bytes: usize| zstd::bulk::compress(&vec![0; bytes], 19).unwrap();
    let small = zstd::bulk::compress(b"four", 1).unwrap();
    // Magic, a descriptor byte, and what it announces.
    let header = |rest: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd], rest].concat();
    let raw_block = [0x21, 0, 0, b'f', b'o', b'u', b'r'];
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff][..], &small].concat();
    let empty_frames = zstd::bulk::compress(b"", 1).unwrap().repeat(40_000);
    vec![
        ("64 MiB in the place of 4 bytes", zeros(64 << 20), 4),
        ("64 MiB in the place of 4 MiB", zeros(64 << 20), 4 << 20),
        ("one byte more", zeros(1001), 1000),
        ("one byte less", zeros(999), 1000),
        ("two frames", [small.clone(), small.clone()].concat(), 4),
        ("two gigabytes of window", header(&[&[0, 0xa8][..], &raw_block].concat()), 5),
        (
            "a length of 2^63",
            header(&[&[0xe0][..], &[0, 0, 0, 0, 0, 0, 0, 0x80], &raw_block].concat()),
            4,
        ),
        ("a dictionary", header(&[&[0x21, 7, 4][..], &raw_block].concat()), 4),
        ("something to be skipped", skippable, 4),
        ("40 000 frames of nothing", empty_frames, 4),
        ("no frame", b"four".to_vec(), 4),
        ("nothing", Vec::new(), 4),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_in_the_place_of_chunks_are_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    for (name, body, length) in bombs() {
        for is_catalogue in [false, true] {
            let mut made = Made::by(&writer);
            let h = made.keys.hash_chunk(b"four");
            let mut envelope = Vec::new();
            let body = Body { codec: CODEC_ZSTD, bytes: &body };
            let digest = sealer::seal_chunk(&h, &body, &mut envelope);
            made.chunk(envelope.into());
            let bomb = made.subtree(0, NodeChild { digest, h, plaintext_bytes: length });
            let root = if is_catalogue {
                let data = made.leaf(b"data");
                let data = made.subtree(0, child_of(&data));
                made.root(bomb, data)
            } else {
                let catalogue = made.stream_of(length);
                made.root(catalogue, bomb)
            };
            let record = made.commit(&writer, &root).await;
            is_refused(&writer, record, name).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_of_a_million_entries_of_one_name_is_refused_and_writes_nothing() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let mut made = Made::by(&writer);
    let file = Entry { path: b"name".to_vec(), ..Entry::empty(Kind::File) };
    let entry = catalogue::encode(&[file])[4..].to_vec();
    let top = made.leaf(&catalogue::encode(&[Entry::empty(Kind::Directory)]));
    // The same chunk again and again.
    let count = (4 << 20) / entry.len();
    let many = made.leaf(&entry.repeat(count));
    let mut nodes = Vec::new();
    let mut builder = TreeBuilder::new(&made.keys);
    let mut keep = |node: SealedNode| nodes.push(Bytes::from(node.envelope));
    builder.push(top, &mut keep);
    for _ in 0..1_000_000usize.div_ceil(count) {
        builder.push(many, &mut keep);
    }
    let list = builder.finish(&mut keep).unwrap();
    made.envelopes.extend(nodes);
    let empty = made.leaf(b"");
    let data = made.subtree(0, child_of(&empty));
    let root = made.root(list, data);
    let record = made.commit(&writer, &root).await;
    let says = is_refused(&writer, record, "a million entries").await;
    assert!(says.contains("(name)"), "{says}");
}
