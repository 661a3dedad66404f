//! What tests share: a server in this process on a free port, clients enrolled with it, small
//! trees sealed by hand, real dumps.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strongroom_client::backup::{self, BackupOptions, BackupSummary};
use strongroom_client::commit;
use strongroom_client::compressor::Compressor;
use strongroom_client::connection::{Body, Timeouts};
use strongroom_client::enroll::{self, EnrollOptions};
use strongroom_client::error::ClientError;
use strongroom_client::keys::EpochKeys;
use strongroom_client::kit::Kit;
use strongroom_client::landing::Target;
use strongroom_client::namespace::NamespaceOptions;
use strongroom_client::profile::{ConnectOptions, Profile, ProfileFolder};
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::sealer::{self, NodeChild, SealedNode};
use strongroom_client::session::Session;
use strongroom_client::source::Source;
use strongroom_client::transport::{Client, RetryPolicy};
use strongroom_client::tree::{Leaf, SealedRoot, TreeBuilder, join};
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::catalogue;
use strongroom_protocol::descriptor::{Codec, VerifiedDescriptor};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::frame::prefix;
use strongroom_protocol::id::{Label, NamespaceId, RecordDigest, SealedDigest, SessionNonce};
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::{PrivateFields, Record, RecordBody};
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::Token;
use strongroom_server::clock::{Clock, ManualClock};
use strongroom_server::config::{Config, Period};
use strongroom_server::repository::enrolment::TokenRequest;
use strongroom_server::repository::{Repository, Witness};
use strongroom_server::run::BoundServer;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Wall time at which every manual clock starts: 2026-01-01.
pub const START_MS: u64 = 1_767_225_600_000;
pub const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Calm;
impl Witness for Calm {}

/// A server in this process.
pub struct TestServer {
    pub folder: Arc<TempDir>,
    pub clock: Arc<ManualClock>,
    pub repository: Arc<Repository>,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let clock = Arc::new(ManualClock::at_ms(START_MS));
        Self::start_on(clock.clone(), clock, change).await
    }

    /// With a clock that reads `clock` and may do more.
    pub async fn start_on(
        time: Arc<dyn Clock>,
        clock: Arc<ManualClock>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = test_config(change);
        let data = folder.path().join("data");
        let hosts = vec!["127.0.0.1".into()];
        let repository = Repository::create(&data, hosts, 1, config, time, Arc::new(Calm)).unwrap();
        Self::serve(Arc::new(folder), clock, Arc::new(repository)).await
    }

    pub async fn serve(
        folder: Arc<TempDir>,
        clock: Arc<ManualClock>,
        repository: Arc<Repository>,
    ) -> Self {
        let server =
            BoundServer::bind(repository.clone(), &folder.path().join("data")).await.unwrap();
        let address = server.client_address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            server.serve(async { drop(stopped.await) }).await.unwrap();
        });
        Self { folder, clock, repository, address, stop: Some(stop), task: Some(task) }
    }

    /// Stops in order; the data folder can be opened again then.
    pub async fn stop(mut self) -> (Arc<TempDir>, Arc<ManualClock>) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
        assert_eq!(Arc::strong_count(&self.repository), 1, "somebody still has the repository");
        (self.folder.clone(), self.clock.clone())
    }

    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let (folder, clock) = self.stop().await;
        Self::open_with(folder, clock, change).await
    }

    /// Serves a folder that was served before.
    pub async fn open(folder: Arc<TempDir>, clock: Arc<ManualClock>) -> Self {
        Self::open_with(folder, clock, |_| {}).await
    }

    pub async fn open_with(
        folder: Arc<TempDir>,
        clock: Arc<ManualClock>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let time: Arc<dyn Clock> = clock.clone();
        let data = folder.path().join("data");
        let (repository, _) =
            Repository::open(&data, test_config(change), time, Arc::new(Calm)).unwrap();
        Self::serve(folder, clock, Arc::new(repository)).await
    }

    pub fn token(&self, namespace: Option<&str>, role: Role) -> Token {
        let request = TokenRequest {
            namespace: namespace.map(|name| name.parse().unwrap()),
            role,
            display_name: format!("test-{role}"),
            ttl_seconds: 3600,
        };
        self.repository.make_token(request).unwrap()
    }

    pub fn connect(&self) -> ConnectOptions {
        connect_to(self.address)
    }

    /// Enrols a client of a new namespace.
    pub async fn writer(&self, namespace: &str) -> Actor {
        let token = self.token(Some(namespace), Role::Backup);
        Actor::enroll(self.connect(), token, true).await.unwrap()
    }

    /// Enrols a principal of any role; those of a namespace join an existing one.
    pub async fn principal(&self, namespace: Option<&str>, role: Role) -> Actor {
        let namespace = namespace.filter(|_| role.is_of_namespace());
        Actor::enroll(self.connect(), self.token(namespace, role), false).await.unwrap()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A replica that looks often.
pub fn quick(config: &mut Config) {
    config.replica.poll_interval = Period(Duration::from_millis(20));
}

/// A primary with a client of its namespace, and a second server that does not follow it yet.
pub async fn two_sites(second: impl FnOnce(&mut Config)) -> (TestServer, TestServer, Actor) {
    let primary = TestServer::start_with(quick).await;
    let replica = TestServer::start_with(second).await;
    let writer = primary.writer("erp").await;
    (primary, replica, writer)
}

/// Restores a snapshot with a kit alone, from a server that the descriptor names or a replica.
pub async fn restored_with_kit(
    server: &TestServer,
    kit: &Kit,
    record: RecordDigest,
    from_replica: bool,
) -> Vec<u8> {
    let connect = ConnectOptions { from_replica, ..connect_to(server.address) };
    let access = ReadAccess::with_kit(kit, &connect, false).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("restored");
    let target = Target::Path(to.clone());
    let options = RestoreOptions::to(target);
    let summary = restore::restore(&access, record, &options, &Monitor::hidden()).await.unwrap();
    assert!(summary.is_verified && summary.is_from_replica == from_replica);
    std::fs::read(to).unwrap()
}

pub fn test_config(change: impl FnOnce(&mut Config)) -> Config {
    let free_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config { listen: free_port, metrics: free_port, ..Config::default() };
    config.store.reserve.0 = 1 << 20;
    // Clocks are turned by years here; tests of keys set these.
    (config.keys.tls_age.0, config.keys.principal_age.0) = (Duration::ZERO, Duration::ZERO);
    config.keys.peer_age.0 = Duration::ZERO;
    change(&mut config);
    config
}

pub fn connect_to(address: SocketAddr) -> ConnectOptions {
    ConnectOptions {
        timeouts: Timeouts::default(),
        retry: RetryPolicy::never(),
        servers: vec![address.to_string()],
        from_replica: false,
    }
}

/// An enrolled client.
pub struct Actor {
    pub home: TempDir,
    pub profile: Profile,
    pub connect: ConnectOptions,
}

impl Actor {
    pub async fn enroll(
        connect: ConnectOptions,
        token: Token,
        new_namespace: bool,
    ) -> Result<Self, ClientError> {
        let home = tempfile::tempdir().unwrap();
        let folder = ProfileFolder::new(home.path(), "default").unwrap();
        if new_namespace {
            enroll::new_namespace(&folder, namespace_options())?;
        }
        let options = EnrollOptions {
            token,
            display_name: "test".into(),
            kit_folder: home.path().to_path_buf(),
            kit: None,
            second_of: None,
            connect: connect.clone(),
        };
        enroll::enroll(&folder, options).await?;
        Ok(Self { profile: Profile::open(folder)?, home, connect })
    }

    pub fn client(&self) -> Client {
        self.profile.client(&self.connect).unwrap()
    }

    pub fn namespace(&self) -> NamespaceId {
        self.profile.namespace().unwrap()
    }

    /// The kit that enrolment wrote.
    pub fn kit(&self) -> Kit {
        let text = std::fs::read_to_string(self.kit_path()).unwrap();
        Kit::parse(&text).unwrap()
    }

    pub fn kit_path(&self) -> PathBuf {
        let files = std::fs::read_dir(self.home.path()).unwrap();
        let mut kits = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "txt"));
        kits.next().expect("enrolment wrote a kit")
    }

    pub async fn descriptor(&self) -> VerifiedDescriptor {
        let route = Route::Descriptor(self.namespace());
        let bytes = self.client().request(&route, "", Body::empty()).await.unwrap();
        VerifiedDescriptor::decode_for(&bytes, &self.namespace(), 1).unwrap()
    }

    /// The descriptor as the profile keeps it; no server is asked.
    pub fn kept_descriptor(&self) -> VerifiedDescriptor {
        let bytes = std::fs::read(self.profile.folder().path("descriptor")).unwrap();
        VerifiedDescriptor::decode_for(&bytes, &self.namespace(), 1).unwrap()
    }

    pub fn keys(&self) -> EpochKeys {
        let secret = self.profile.convergence_secret().unwrap();
        EpochKeys::derive(&secret, &self.namespace(), 1)
    }

    pub async fn session(&self, source: &str) -> Session {
        self.session_of(source, SizeClass::Stream).await.unwrap()
    }

    pub async fn session_of(
        &self,
        source: &str,
        size_class: SizeClass,
    ) -> Result<Session, ClientError> {
        let wanted = LockWanted::Default;
        Session::open(&self.client(), self.namespace(), &label(source), size_class, wanted).await
    }

    pub async fn session_wanting(
        &self,
        source: &str,
        wanted: LockWanted,
    ) -> Result<Session, ClientError> {
        let (client, class) = (self.client(), SizeClass::Stream);
        Session::open(&client, self.namespace(), &label(source), class, wanted).await
    }

    /// A record of `tree` as this client would make it, its body changed by `change`.
    pub fn record(
        &self,
        session: &Session,
        source: &str,
        root: &SealedRoot,
        change: impl FnOnce(&mut RecordBody),
    ) -> Record {
        let descriptor = self.kept_descriptor();
        let (profile, source) = (&self.profile, label(source));
        let mut body = commit::body_of(profile, session, &descriptor, &source, root).unwrap();
        change(&mut body);
        let private =
            PrivateFields { plaintext_bytes: root.plaintext_bytes, ..PrivateFields::default() };
        commit::sign_record(profile, &descriptor, &self.keys(), body, root, private).unwrap()
    }

    /// The same record for another session.
    pub fn signed_again(&self, record: Record, nonce: SessionNonce, root: &SealedRoot) -> Record {
        let body = RecordBody { session_nonce: nonce, ..record.body };
        let (descriptor, private) = (self.kept_descriptor(), PrivateFields::default());
        let keys = self.keys();
        commit::sign_record(&self.profile, &descriptor, &keys, body, root, private).unwrap()
    }

    /// A small tree that is uploaded in `session`, and its record, which is not committed.
    pub async fn uploaded(
        &self,
        session: &Session,
        source: &str,
        pieces: &[&[u8]],
    ) -> (Tree, Record) {
        let tree = Tree::seal(&self.keys(), pieces);
        session.upload(frames(&tree.envelopes())).await.unwrap();
        let record = self.record(session, source, &tree.root, |_| {});
        (tree, record)
    }

    /// Uploads a small tree and commits it.
    pub async fn snapshot(&self, source: &str, pieces: &[&[u8]]) -> (Record, Receipt) {
        let session = self.session(source).await;
        let (_, record) = self.uploaded(&session, source, pieces).await;
        let receipt = session.commit(record.encode().into()).await.unwrap();
        (record, Receipt::decode(&receipt).unwrap())
    }

    /// Backs a file up with the whole pipeline.
    pub async fn backup(
        &mut self,
        source: &str,
        path: &Path,
    ) -> Result<BackupSummary, ClientError> {
        self.backup_from(source, Source::File(path.to_path_buf())).await
    }

    pub async fn backup_from(
        &mut self,
        source: &str,
        mut from: Source,
    ) -> Result<BackupSummary, ClientError> {
        let options = BackupOptions::new(label(source), self.connect.clone());
        backup::run(&mut self.profile, &mut from, &options, &Monitor::hidden()).await
    }
}

pub fn namespace_options() -> NamespaceOptions {
    NamespaceOptions {
        chunk_average_bytes: 64 * 1024,
        codec: Codec::Zstd(1),
        extra_recipients: Vec::new(),
    }
}

pub fn label(text: &str) -> Label {
    text.parse().unwrap()
}

/// A tree sealed by hand: each piece is one chunk of the data stream.
pub struct Tree {
    pub chunks: Vec<Bytes>,
    pub nodes: Vec<SealedNode>,
    pub root: SealedRoot,
}

impl Tree {
    pub fn seal(keys: &EpochKeys, pieces: &[&[u8]]) -> Self {
        Self::seal_as(keys, pieces, |_| {})
    }

    /// A tree that says of its leaves what `lie` makes of the truth.
    pub fn seal_as(keys: &EpochKeys, pieces: &[&[u8]], lie: impl Fn(&mut Leaf)) -> Self {
        let entry = catalogue::Entry::empty(catalogue::Kind::Stream);
        Self::seal_with(keys, &catalogue::encode(&[entry]), pieces, lie)
    }

    /// A tree with any catalogue.
    pub fn seal_with(
        keys: &EpochKeys,
        catalogue: &[u8],
        pieces: &[&[u8]],
        lie: impl Fn(&mut Leaf),
    ) -> Self {
        let keys = keys.plaintext();
        let (mut chunks, mut nodes) = (Vec::new(), Vec::new());
        let mut leaf = |plaintext: &[u8]| {
            let (mut leaf, envelope) = seal_leaf(keys, plaintext);
            chunks.push(envelope);
            lie(&mut leaf);
            leaf
        };
        let mut stream = |pieces: &[&[u8]], sink: &mut dyn FnMut(SealedNode)| {
            let mut sink = sink;
            let mut builder = TreeBuilder::new(keys);
            for piece in pieces {
                builder.push(leaf(piece), &mut sink);
            }
            builder.finish(&mut sink).unwrap()
        };
        let mut keep = |node| nodes.push(node);
        let catalogue = stream(&[catalogue], &mut keep);
        let data = stream(pieces, &mut keep);
        let root = join(keys, catalogue, data, &mut keep);
        Self { chunks, nodes, root }
    }

    /// All envelopes, children first.
    pub fn envelopes(&self) -> Vec<Bytes> {
        let nodes = self.nodes.iter().map(|node| Bytes::from(node.envelope.clone()));
        self.chunks.iter().cloned().chain(nodes).collect()
    }
}

pub fn seal_leaf(keys: &strongroom_client::keys::PlaintextKeys, plaintext: &[u8]) -> (Leaf, Bytes) {
    let h = keys.hash_chunk(plaintext);
    let mut compressor = Compressor::new(Codec::Zstd(1));
    let mut envelope = Vec::new();
    let digest = sealer::seal_chunk(&h, &compressor.compress(plaintext), &mut envelope);
    let leaf = Leaf {
        digest,
        id: h.chunk_id(),
        h,
        plaintext_bytes: plaintext.len() as u64,
        envelope_bytes: envelope.len() as u64,
    };
    (leaf, envelope.into())
}

pub fn child_of(leaf: &Leaf) -> NodeChild {
    NodeChild { digest: leaf.digest, h: leaf.h, plaintext_bytes: leaf.plaintext_bytes }
}

/// The body of an upload.
pub fn frames(envelopes: &[Bytes]) -> Body {
    let mut stream = Vec::new();
    for envelope in envelopes {
        stream.extend_from_slice(&prefix(envelope).unwrap());
        stream.extend_from_slice(envelope);
    }
    Bytes::from(stream).into()
}

pub fn digests(envelopes: &[Bytes]) -> Vec<SealedDigest> {
    envelopes.iter().map(|envelope| SealedDigest::of(envelope)).collect()
}

/// The server's code in a refusal, also where the client turned it into "session lost".
#[track_caller]
pub fn refused_with<T: std::fmt::Debug>(outcome: Result<T, ClientError>, code: ErrorCode) {
    match outcome {
        Err(ClientError::Server(body)) => assert_eq!(body.code, code, "{}", body.message),
        Err(ClientError::SessionLost(text)) => assert!(text.contains(code.name()), "{text}"),
        other => panic!("expected {}, got {other:?}", code.name()),
    }
}

/// Days 0, 1 and 2 of a real ERP database, unpacked into `folder`.
pub fn unpack_dumps(folder: &Path) -> [PathBuf; 3] {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let packed = std::fs::File::open(data.join("days.sql.zst")).unwrap();
    let mut decoder = zstd::Decoder::new(packed).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut all = Vec::new();
    std::io::copy(&mut decoder, &mut all).unwrap();
    let lengths = std::fs::read_to_string(data.join("LENGTHS")).unwrap();
    let mut start = 0;
    let paths: Vec<PathBuf> = lengths
        .lines()
        .map(|line| {
            let (name, length) = line.split_once(' ').unwrap();
            let end = start + length.trim().parse::<usize>().unwrap();
            let path = folder.join(name);
            std::fs::write(&path, &all[start..end]).unwrap();
            start = end;
            path
        })
        .collect();
    assert_eq!(start, all.len());
    paths.try_into().unwrap()
}

/// A program of this workspace, built beside the tests.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.ancestors().nth(2).unwrap();
    let path = folder.join(name);
    assert!(path.exists(), "{}: build it first (make test does)", path.display());
    path
}

/// Copies a folder as it is at one moment: again, if something changed meanwhile, because threads
/// of the store may just be writing.
pub fn copy_folder(from: &Path, to: &Path) {
    for _ in 0..100 {
        let before = sizes_below(from);
        let copied = try_copy(from, to);
        if copied.is_ok() && before.is_ok() && sizes_below(from).ok() == before.ok() {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
    panic!("{} never rests", from.display());
}

fn try_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            try_copy(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn sizes_below(folder: &Path) -> std::io::Result<BTreeMap<PathBuf, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            sizes.extend(sizes_below(&entry.path())?);
        }
        sizes.insert(entry.path(), metadata.len());
    }
    Ok(sizes)
}
