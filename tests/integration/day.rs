//! A day of a server: backups of every kind, a hold, a token and an enrolment, a forget, a fold of
//! the inbox, a collection cycle that quarantines, reaps, evacuates and drops, and the orderly end.
//! What clients were told of it is compared with a folder that is opened afterwards.
//!
//! The server is this test binary, as in `crash.rs`, behind the library of `disk.rs`, which fails
//! calls (`failing.rs`) or writes them down (`power.rs`).

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_client::session::Session;
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::message::{HoldReason, LockState, SizeClass, SnapshotRow};
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::RecordBody;
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::Token;
use strongroom_server::admin;
use strongroom_server::admin_messages::{AdminAnswer, AdminRequest};
use strongroom_server::cli::AbortOnFatal;
use strongroom_server::clock::{Clock, ManualClock, Reading, SystemClock};
use strongroom_server::config::Config;
use strongroom_server::gc::Outcome;
use strongroom_server::lock::{Day as LockDay, locked_until};
use strongroom_server::repository::{Repository, Witness};
use strongroom_server::run::BoundServer;

use crate::crash::{CHILD, walk};
use crate::gc::{collect, gc_config, noise, tree_of, try_sync_up};
use crate::gc_crash::{self, copy_folder};
use crate::harness::{Actor, Calm, TestServer, Tree, connect_to, label, test_config};

const TIMES: &str = "STRONGROOM_SUITE_DAY";
const CHILD_TEST: &str = "day::child_of_a_day";
/// Where a server that did not start, or did not end well, says why.
const REFUSAL_FILE: &str = "refusal";

/// The machine's clock, but it goes on where a manual clock stood.
struct LaterClock {
    system: SystemClock,
    times: Times,
}

/// When the day began: on the machine's count, and for the repository.
#[derive(Clone, Copy)]
struct Times {
    boot_ms: u64,
    wall_ms: u64,
}

impl LaterClock {
    fn at(times: Times) -> Arc<dyn Clock> {
        Arc::new(Self { system: SystemClock::default(), times })
    }
}

impl Clock for LaterClock {
    fn wall_ms(&self) -> u64 {
        self.reading().wall_ms
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }

    fn reading(&self) -> Reading {
        let passed_ms = self.system.reading().boot_ms.saturating_sub(self.times.boot_ms);
        let still = ManualClock::at_ms(self.times.wall_ms).reading();
        Reading { wall_ms: still.wall_ms + passed_ms, boot_ms: still.boot_ms + passed_ms, ..still }
    }
}

/// Segments and inbox so small that each is sealed and folded several times a day.
fn day_config(config: &mut Config) {
    gc_config(config);
    config.store.segment.0 = 1 << 20;
    config.store.inbox_fold.0 = 200 << 10;
}

fn open(
    folder: &Path,
    times: Times,
    witness: Arc<dyn Witness>,
) -> Result<Arc<Repository>, strongroom_server::error::ServerError> {
    let (config, clock) = (test_config(day_config), LaterClock::at(times));
    Ok(Arc::new(Repository::open(&folder.join("data"), config, clock, witness)?.0))
}

/// Not a test: the server of the day.
#[test]
#[ignore = "started by the tests of failing disks and power cuts"]
fn child_of_a_day() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = PathBuf::from(folder);
    let times = std::env::var(TIMES).unwrap();
    let (boot_ms, wall_ms) = times.split_once(' ').unwrap();
    let times = Times { boot_ms: boot_ms.parse().unwrap(), wall_ms: wall_ms.parse().unwrap() };
    let outcome = open(&folder, times, Arc::new(AbortOnFatal)).and_then(|repository| {
        repository.note_configuration()?;
        tokio::runtime::Runtime::new().unwrap().block_on(serve(repository, &folder))
    });
    if let Err(error) = outcome {
        std::fs::write(folder.join(REFUSAL_FILE), error.to_string()).unwrap();
    }
}

async fn serve(
    repository: Arc<Repository>,
    folder: &Path,
) -> Result<(), strongroom_server::error::ServerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let server = BoundServer::bind(repository, &folder.join("data")).await?;
    let address = server.client_address()?.to_string();
    std::fs::write(folder.join("address.new"), address).unwrap();
    std::fs::rename(folder.join("address.new"), folder.join("address")).unwrap();
    server.serve(async move { terminate.recv().await.unwrap_or_default() }).await
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// In order, after SIGTERM.
    Done,
    /// By its own hand, after a failure of its store.
    Aborted,
    /// With words, before it served or at its end.
    Refused,
}

/// A server of the day.
struct Server {
    process: Child,
    address: SocketAddr,
    folder: PathBuf,
}

/// Sorts an end; anything else than these three is a fault.
fn end_of(status: ExitStatus, folder: &Path) -> End {
    let refusal = std::fs::read_to_string(folder.join(REFUSAL_FILE));
    match (status.success(), status.signal(), refusal) {
        (true, _, Ok(words)) if !words.is_empty() => End::Refused,
        (true, _, Err(_)) => End::Done,
        (_, Some(signal), _) if signal == Signal::ABORT.as_raw() => End::Aborted,
        other => panic!("the server ended in no way that it knows: {other:?}"),
    }
}

impl Server {
    fn start(folder: &Path, times: Times, variables: &[(String, String)]) -> Result<Self, End> {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([CHILD_TEST, "--exact", "--ignored", "--nocapture"])
            .env(CHILD, folder)
            .env(TIMES, format!("{} {}", times.boot_ms, times.wall_ms))
            .envs(variables.iter().cloned())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..6000 {
            if let Ok(text) = std::fs::read_to_string(folder.join("address")) {
                let (address, folder) = (text.parse().unwrap(), folder.to_path_buf());
                return Ok(Self { process, address, folder });
            }
            if let Some(status) = process.try_wait().unwrap() {
                return Err(end_of(status, folder));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server of the day is not ready");
    }

    fn is_dead(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    fn stop(mut self) -> End {
        // It may be dead already.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        end_of(self.process.wait().unwrap(), &self.folder)
    }

    async fn ask(&self, request: AdminRequest) -> Option<AdminAnswer> {
        let data = self.folder.join("data");
        let asked = tokio::task::spawn_blocking(move || admin::ask(&data, &request));
        asked.await.unwrap().ok().flatten()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq)]
enum Act {
    Commit(RecordDigest),
    Hold(RecordDigest),
    Forget(RecordDigest),
    /// A namespace of this name.
    Enrol(&'static str),
    Collect,
}

/// One thing that a client asked for. Times are lengths of the trace: what was done on the disk.
#[derive(Debug)]
struct Deed {
    act: Act,
    began: u64,
    /// When it was acknowledged.
    done: Option<u64>,
    receipt: Option<Receipt>,
}

/// What clients asked for and were told.
#[derive(Debug, Default)]
pub struct Told {
    deeds: Vec<Deed>,
    trace: Option<PathBuf>,
    /// What cycles were answered.
    words: Vec<String>,
}

impl Told {
    fn now(&self) -> u64 {
        let length = |path: &PathBuf| path.metadata().map_or(0, |trace| trace.len());
        self.trace.as_ref().map_or(0, length)
    }

    fn begin(&mut self, act: Act) {
        let began = self.now();
        self.deeds.push(Deed { act, began, done: None, receipt: None });
    }

    fn done(&mut self, is_done: bool) {
        let now = self.now();
        self.deeds.last_mut().unwrap().done = is_done.then_some(now);
    }

    /// What was acknowledged by then.
    fn done_by(&self, at: u64) -> impl Iterator<Item = &Deed> {
        self.deeds.iter().filter(move |deed| deed.done.is_some_and(|done| done <= at))
    }

    fn is_forget_begun(&self, record: &RecordDigest, at: u64) -> bool {
        let is_it = |deed: &Deed| deed.act == Act::Forget(*record) && deed.began <= at;
        self.deeds.iter().any(is_it)
    }

    /// How many were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.done_by(u64::MAX).count()
    }

    /// Nothing was refused, and the server ended in order.
    pub fn assert_whole_day(&self, end: End) {
        let undone = self.deeds.iter().filter(|deed| deed.done.is_none());
        let undone: Vec<&Act> = undone.map(|deed| &deed.act).collect();
        assert!(undone.is_empty() && self.deeds.len() == DEEDS, "{undone:?}: {:?}", self.words);
        assert_eq!(end, End::Done);
    }
}

/// Four commits, a hold, a forget, an enrolment, two collections.
const DEEDS: usize = 9;

/// A folder at the morning of the day, and who acts on it.
pub struct Day {
    morning: Arc<tempfile::TempDir>,
    times: Times,
    writer: Actor,
    operator: Actor,
    officer: Actor,
    /// Snapshots that are there in the morning; the first is forgotten in the day.
    before: Vec<RecordDigest>,
}

impl Day {
    /// Makes the folder; whatever a cycle can do, the first cycle of the day has to do.
    pub async fn prepare() -> Self {
        let made = gc_crash::prepare().await;
        let clock = Arc::new(ManualClock::at_ms(made.wall_ms));
        let server = TestServer::open_with(made.folder.clone(), clock, day_config).await;
        let operator = server.principal(None, Role::Operator).await;
        let officer = server.principal(None, Role::SecurityOfficer).await;
        let page = server.repository.list(&made.writer.namespace(), None, 0).unwrap();
        let before = page.rows.iter().map(|row| row.record).collect();
        let (morning, _) = server.stop().await;
        let boot_ms = SystemClock::default().reading().boot_ms;
        let times = Times { boot_ms, wall_ms: made.wall_ms };
        Self { morning, times, writer: made.writer, operator, officer, before }
    }

    /// Puts the morning's folder into `folder`.
    pub fn copy_morning(&self, folder: &Path) {
        copy_folder(&self.morning.path().join("data"), &folder.join("data"));
    }

    /// The folder of the morning.
    pub fn morning(&self) -> PathBuf {
        self.morning.path().join("data")
    }

    /// Lives through the day on `folder` until the server is gone; `variables` are for it.
    pub async fn live(&self, folder: &Path, variables: &[(String, String)]) -> (Told, End) {
        let trace = variables.iter().find(|(name, _)| name.ends_with("_TRACE"));
        let trace = trace.map(|(_, path)| path.into());
        let mut told = Told { trace, ..Told::default() };
        match Server::start(folder, self.times, variables) {
            Ok(mut server) => {
                self.act(&mut server, &mut told).await;
                (told, server.stop())
            }
            Err(end) => (told, end),
        }
    }

    async fn act(&self, server: &mut Server, told: &mut Told) {
        let large = noise(50, 130);
        let next: Vec<_> = large.iter().take(120).cloned().chain(noise(51, 10)).collect();
        let (large, next) = (tree_of(&self.writer, &large), tree_of(&self.writer, &next));
        self.commit(server, told, SizeClass::Stream, &large).await;
        if let Some(Act::Commit(record)) = told.deeds.first().map(|deed| deed.act.clone()) {
            self.hold(server, told, record).await;
        }
        self.enrol(server, told).await;
        self.collect(server, told).await;
        self.forget(server, told).await;
        self.commit(server, told, SizeClass::Stream, &next).await;
        for seed in [60, 61] {
            // The second fills the inbox, which is folded.
            let small = tree_of(&self.writer, &noise(seed, 7));
            self.commit(server, told, SizeClass::Small, &small).await;
        }
        self.collect(server, told).await;
    }

    async fn commit(&self, server: &mut Server, told: &mut Told, class: SizeClass, tree: &Tree) {
        if server.is_dead() {
            return;
        }
        let client = self.writer.profile.client(&connect_to(server.address)).unwrap();
        let (namespace, source) = (self.writer.namespace(), label("day"));
        let wanted = LockWanted::Default;
        let Ok(session) = Session::open(&client, namespace, &source, class, wanted).await else {
            return;
        };
        if try_sync_up(&session, tree).await.is_ok() {
            let record = self.writer.record(&session, "day", &tree.root, |_| {});
            told.begin(Act::Commit(record.digest()));
            let receipt = session.commit(record.encode().into()).await;
            told.done(receipt.is_ok());
            let receipt = receipt.ok().map(|bytes| Receipt::decode(&bytes).unwrap());
            told.deeds.last_mut().unwrap().receipt = receipt;
        }
        session.close().await;
    }

    async fn hold(&self, server: &mut Server, told: &mut Told, record: RecordDigest) {
        if server.is_dead() {
            return;
        }
        told.begin(Act::Hold(record));
        let client = self.officer.profile.client(&connect_to(server.address)).unwrap();
        let route = Route::PlaceHold(self.writer.namespace(), record);
        let reason = HoldReason { reason: "court case 7".into() };
        let held: Result<LockState, ClientError> = client.json(&route, "", Some(&reason)).await;
        told.done(held.is_ok());
    }

    async fn forget(&self, server: &mut Server, told: &mut Told) {
        if server.is_dead() {
            return;
        }
        let record = self.before[0];
        told.begin(Act::Forget(record));
        let client = self.operator.profile.client(&connect_to(server.address)).unwrap();
        let route = Route::Forget(self.writer.namespace(), record);
        let forgotten = client.request(&route, "", Body::empty()).await;
        told.done(forgotten.is_ok());
    }

    async fn enrol(&self, server: &mut Server, told: &mut Told) {
        if server.is_dead() {
            return;
        }
        told.begin(Act::Enrol("crm"));
        let request = AdminRequest::Token {
            namespace: Some(label("crm")),
            role: Role::Backup,
            display_name: "of the day".into(),
            ttl_seconds: 3600,
        };
        let Some(AdminAnswer::Token { token }) = server.ask(request).await else { return };
        let token = Token::from_text(&token).unwrap();
        let enrolled = Actor::enroll(connect_to(server.address), token, true).await;
        told.done(enrolled.is_ok());
    }

    async fn collect(&self, server: &mut Server, told: &mut Told) {
        if server.is_dead() {
            return;
        }
        told.begin(Act::Collect);
        let answer = server.ask(AdminRequest::Collect).await;
        told.done(matches!(answer, Some(AdminAnswer::Collected { .. })));
        told.words.extend(answer.map(|answer| format!("{answer:?}")));
    }

    /// Opens the folder as the day left it, and compares it with what clients had been told when
    /// the trace was `at` long.
    pub fn check(&self, folder: &Path, told: &Told, at: u64) {
        let repository = open(folder, self.times, Arc::new(Calm)).unwrap();
        let rows = self.listed(&repository);
        let find = |record: &RecordDigest| rows.iter().find(|row| row.record == *record);
        for record in &self.before {
            let is_doubtful = told.is_forget_begun(record, at);
            assert!(is_doubtful || find(record).is_some(), "snapshot {record} of before is lost");
        }
        for deed in told.done_by(at) {
            match &deed.act {
                Act::Commit(record) => {
                    assert!(find(record).is_some(), "acknowledged snapshot {record} is lost");
                    let receipt = deed.receipt.as_ref().unwrap();
                    let entry = repository.ledger().entry(receipt.leaf_index).unwrap();
                    assert!(entry == receipt.entry, "the ledger has another entry");
                }
                Act::Hold(record) => assert!(find(record).unwrap().lock.is_held, "hold is lost"),
                Act::Forget(record) => assert!(find(record).is_none(), "{record} came back"),
                Act::Enrol(name) => {
                    let namespace = repository.registry().namespace_named(&label(name));
                    assert!(namespace.is_some(), "enrolment in {name} is lost");
                }
                Act::Collect => {}
            }
        }
        self.check_whole(&repository, &rows);
        assert_eq!(collect(&repository).unwrap().outcome, Outcome::Complete);
        self.check_whole(&repository, &rows);
        assert_eq!(repository.status().unwrap().snapshot_count, rows.len() as u64);
        repository.settle().unwrap();
    }

    fn listed(&self, repository: &Repository) -> Vec<SnapshotRow> {
        let page = repository.list(&self.writer.namespace(), None, 0).unwrap();
        assert!(page.next_after.is_none(), "one page holds what a day makes");
        page.rows
    }

    /// What is listed can be read to its last chunk, is locked as its row says, and is proven.
    fn check_whole(&self, repository: &Repository, rows: &[SnapshotRow]) {
        let ns = repository.registry().namespace(&self.writer.namespace()).unwrap().number;
        let ledger_key = self.writer.profile.settings().ledger_key;
        for row in rows {
            let body = RecordBody::decode(&row.body.0).unwrap();
            walk(repository, &self.writer, ns, &body);
            let lock = locked_until(repository.store(), ns, &body.root).unwrap().unwrap();
            assert!(lock >= LockDay::of(row.lock.until_seconds), "lock of {}", row.record);
            let receipt = repository.receipt(&self.writer.namespace(), &row.record).unwrap();
            receipt.verify(&[ledger_key]).unwrap();
        }
    }
}
