//! No setting of a clock, no start of a machine and no old copy of a data folder unlocks early.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use rustix::process::Signal;
use strongroom_client::connection::Body;
use strongroom_protocol::checkpoint::{Checkpoint, origin_of};
use strongroom_protocol::entry::{ClockEvent, Entry, Event};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::PublicKey;
use strongroom_protocol::message::ClockStatus;
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::{Kept, LockWanted};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_server::clock::ManualClock;
use tempfile::TempDir;

use crate::harness::{Actor, DAY, START_MS, TestServer, Tree, frames, refused_with};
use crate::programs::{Served, json, text};

const SECOND: Duration = Duration::from_secs(1);
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A server with one snapshot that is locked for 30 days, and who would forget it.
struct Scene {
    server: TestServer,
    writer: Actor,
    operator: Actor,
    record: Record,
}

impl Scene {
    async fn new() -> Self {
        let server = TestServer::start().await;
        let writer = server.writer("erp").await;
        let (record, _) = writer.snapshot("db", &[b"a"]).await;
        let operator = server.principal(None, Role::Operator).await;
        Self { server, writer, operator, record }
    }

    fn clock(&self) -> &ManualClock {
        &self.server.clock
    }

    async fn restart(self) -> Self {
        let (folder, clock, rest) = self.stop().await;
        rest.serve(folder, clock).await
    }

    async fn stop(self) -> (Arc<TempDir>, Arc<ManualClock>, Stopped) {
        let (folder, clock) = self.server.stop().await;
        let Self { writer, operator, record, .. } = self;
        (folder, clock, Stopped { writer, operator, record })
    }

    async fn forget(&self) -> Result<Bytes, strongroom_client::error::ClientError> {
        let route = Route::Forget(self.writer.namespace(), self.record.digest());
        self.operator.client().request_once(&route, "", Body::empty()).await
    }

    async fn report(&self, note: &str) -> Result<Bytes, strongroom_client::error::ClientError> {
        let body = Bytes::copy_from_slice(note.as_bytes()).into();
        self.writer.client().request_once(&Route::ReportHead, "", body).await
    }

    async fn status(&self) -> ClockStatus {
        let route = Route::ClockStatus;
        let bytes = self.operator.client().request(&route, "", Body::empty()).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// What the clock entered in the ledger, after the newest reading was entered too.
    fn events(&self) -> Vec<ClockEvent> {
        self.server.repository.tick();
        let ledger = self.server.repository.ledger();
        let entries = (0..ledger.head().size).map(|leaf| ledger.entry(leaf).unwrap());
        let events = entries.filter_map(|entry| match Entry::decode(&entry).unwrap().event {
            Event::Clock { event, .. } => Some(event),
            _ => None,
        });
        events.collect()
    }

    /// Retention times in the ledger, which must never go back.
    fn times(&self) -> Vec<u64> {
        let ledger = self.server.repository.ledger();
        let entries = (0..ledger.head().size).map(|leaf| ledger.entry(leaf).unwrap());
        entries.map(|entry| Entry::decode(&entry).unwrap().retention_time_seconds).collect()
    }
}

struct Stopped {
    writer: Actor,
    operator: Actor,
    record: Record,
}

impl Stopped {
    async fn serve(self, folder: Arc<TempDir>, clock: Arc<ManualClock>) -> Scene {
        let server = TestServer::open(folder, clock).await;
        let Self { mut writer, mut operator, record } = self;
        writer.connect = server.connect();
        operator.connect = server.connect();
        Scene { server, writer, operator, record }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_holds_to_its_last_second_over_restarts_and_sleep() {
    let scene = Scene::new().await;
    scene.clock().advance(DAY * 10);
    let scene = scene.restart().await;
    scene.clock().suspend(DAY * 10);
    let scene = scene.restart().await;
    scene.clock().advance(DAY * 10 - SECOND);
    refused_with(scene.forget().await, ErrorCode::Locked);
    let scene = scene.restart().await;
    refused_with(scene.forget().await, ErrorCode::Locked);
    scene.clock().advance(SECOND);
    scene.forget().await.unwrap();
    assert_eq!(scene.events(), [ClockEvent::Started]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_set_ten_years_forward_and_back_unlocks_nothing() {
    let scene = Scene::new().await;
    scene.clock().set_wall_ahead(TEN_YEARS);
    refused_with(scene.forget().await, ErrorCode::Locked);
    let scene = scene.restart().await;
    refused_with(scene.forget().await, ErrorCode::Locked);
    // Backups go on, and their locks count from the retention clock.
    let (later, _) = scene.writer.snapshot("db", &[b"b"]).await;
    let page = scene.server.repository.list(&scene.writer.namespace(), None, 0).unwrap();
    let row = page.rows.iter().find(|row| row.record == later.digest()).unwrap();
    assert_eq!(row.lock.until_seconds, START_MS / 1000 + 30 * 86_400);
    assert_eq!(row.kept, Some(Kept::Locked));

    scene.clock().set_wall_back(TEN_YEARS);
    let scene = scene.restart().await;
    refused_with(scene.forget().await, ErrorCode::Locked);
    scene.writer.snapshot("db", &[b"c"]).await;
    let status = scene.status().await;
    assert_eq!(status.retention_seconds, START_MS / 1000);
    assert!(status.frozen.unwrap().contains("somebody set the wall clock"));
    let history = status.history.join("\n");
    assert!(history.contains("ahead of the machine clock by 3650 d"), "{history}");
    assert!(history.contains("behind the machine clock by 3650 d"), "{history}");

    // Time passes and the locks are over, but who would believe this clock?
    scene.clock().advance(DAY * 31);
    refused_with(scene.forget().await, ErrorCode::ClockSuspect);
    scene.writer.snapshot("db", &[b"d"]).await;
    let expected = [ClockEvent::Started, ClockEvent::WallAhead, ClockEvent::Frozen];
    assert_eq!(scene.events(), [&expected[..], &[ClockEvent::WallBack]].concat());
    assert!(scene.times().is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
async fn time_without_power_counts_up_to_the_allowance() {
    let scene = Scene::new().await;
    let (folder, clock, rest) = scene.stop().await;
    clock.reboot(DAY * 20);
    let scene = rest.serve(folder, clock).await;
    let status = scene.status().await;
    assert_eq!((status.lost_seconds, status.allowance_seconds), (6 * 86_400, 0));
    assert_eq!(status.frozen, None);
    scene.clock().advance(DAY * 16 - SECOND);
    refused_with(scene.forget().await, ErrorCode::Locked);
    scene.clock().advance(SECOND);
    scene.forget().await.unwrap();
    let events = scene.events();
    let expected = [ClockEvent::Rebooted, ClockEvent::OffTimeCounted, ClockEvent::OffTimeLost];
    assert_eq!(events[1..], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_wall_clock_ten_years_ahead_gains_no_more_than_the_allowance() {
    let scene = Scene::new().await;
    let (folder, clock, rest) = scene.stop().await;
    clock.reboot(SECOND);
    clock.set_wall_ahead(TEN_YEARS);
    let scene = rest.serve(folder, clock).await;
    refused_with(scene.forget().await, ErrorCode::Locked);
    assert_eq!(scene.status().await.retention_seconds, START_MS / 1000 + 14 * 86_400);
    let (folder, clock, rest) = scene.stop().await;
    clock.reboot(SECOND);
    clock.set_wall_ahead(TEN_YEARS);
    let scene = rest.serve(folder, clock).await;
    refused_with(scene.forget().await, ErrorCode::Locked);
    assert_eq!(scene.status().await.retention_seconds, START_MS / 1000 + 14 * 86_400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_needs_both_clocks() {
    for wall_is_ahead in [false, true] {
        let mut scene = Scene::new().await;
        let session = scene.writer.session("dated").await;
        let tree = Tree::seal(&scene.writer.keys(), &[b"dated"]);
        session.upload(frames(&tree.envelopes())).await.unwrap();
        let date = START_MS / 1000 + 40 * 86_400;
        scene.record = scene.writer.record(&session, "dated", &tree.root, |body| {
            body.lock_wanted = LockWanted::Date(date);
        });
        session.commit(scene.record.encode().into()).await.unwrap();
        // Less than would be suspicious.
        let half_an_hour = SECOND * 1800;
        match wall_is_ahead {
            true => scene.clock().set_wall_ahead(half_an_hour),
            false => scene.clock().set_wall_back(half_an_hour),
        }
        scene.server.repository.tick();
        scene.clock().advance(DAY * 40 - half_an_hour);
        refused_with(scene.forget().await, ErrorCode::Locked);
        scene.clock().advance(half_an_hour - SECOND);
        refused_with(scene.forget().await, ErrorCode::Locked);
        scene.clock().advance(SECOND);
        if !wall_is_ahead {
            refused_with(scene.forget().await, ErrorCode::Locked);
            scene.clock().advance(half_an_hour);
        }
        scene.forget().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_was_put_back_is_frozen_by_what_a_client_remembers() {
    let scene = Scene::new().await;
    let (folder, clock, rest) = scene.stop().await;
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy"));
    copy_folder(&data, &copy);
    let scene = rest.serve(folder, clock).await;
    scene.writer.snapshot("db", &[b"b"]).await;
    let remembered = scene.server.repository.ledger().head().note;
    let (folder, clock, rest) = scene.stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&copy, &data);
    let scene = rest.serve(folder, clock).await;
    // Nothing in the folder tells.
    assert_eq!(scene.status().await.frozen, None);
    scene.report(&remembered).await.unwrap();
    assert!(scene.status().await.frozen.unwrap().contains("put back"));
    scene.report(&remembered).await.unwrap();
    let scene = scene.restart().await;
    scene.clock().advance(DAY * 31);
    refused_with(scene.forget().await, ErrorCode::ClockSuspect);
    let events = scene.events();
    let rolled_back = events.iter().filter(|event| **event == ClockEvent::RolledBack);
    assert_eq!(rolled_back.count(), 1);
    assert_eq!(events.last(), Some(&ClockEvent::Frozen));
    // Backups go on: another source, because this client remembers more of the first.
    scene.writer.snapshot("other", &[b"c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_heads_that_this_ledger_signed_and_lacks_are_news() {
    let scene = Scene::new().await;
    let ledger = scene.server.repository.ledger();
    let old = ledger.head();
    scene.writer.snapshot("db", &[b"b"]).await;
    scene.report(&old.note).await.unwrap();
    scene.report(&ledger.head().note).await.unwrap();
    let stranger = SigningKey::from_bytes(&[7; 32]);
    let origin = origin_of(&PublicKey(stranger.verifying_key().to_bytes()));
    let forged = Checkpoint { origin, size: 1000, root: [1; 32] }.sign(&stranger);
    refused_with(scene.report(&forged).await, ErrorCode::BadRequest);
    let larger = old.note.replace(&format!("\n{}\n", old.size), "\n1000\n");
    refused_with(scene.report(&larger).await, ErrorCode::BadRequest);
    refused_with(scene.report("").await, ErrorCode::BadRequest);
    assert_eq!(scene.status().await.frozen, None);
    // The same size and another root: the ledger was forked with its own key.
    let key = scene.server.repository.keys().ledger.clone();
    let origin = origin_of(&PublicKey(key.verifying_key().to_bytes()));
    let forked = Checkpoint { origin, size: old.size, root: [1; 32] }.sign(&key);
    scene.report(&forked).await.unwrap();
    assert!(scene.status().await.frozen.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_in_another_machine_keep_everything_locked() {
    let scene = Scene::new().await;
    let (folder, clock, rest) = scene.stop().await;
    clock.move_to_another_machine(TEN_YEARS);
    clock.set_wall_ahead(DAY * 60);
    let scene = rest.serve(folder, clock).await;
    refused_with(scene.forget().await, ErrorCode::Locked);
    scene.clock().advance(DAY * 30);
    refused_with(scene.forget().await, ErrorCode::ClockSuspect);
    scene.writer.snapshot("db", &[b"b"]).await;
    let status = scene.status().await;
    assert_eq!(status.lost_seconds, 60 * 86_400);
    assert!(status.frozen.unwrap().contains("another machine"));
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Libraries that lie about the wall clock to the program that loads them.
const LIARS: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

pub fn faketime_library() -> Option<&'static str> {
    LIARS.into_iter().find(|path| Path::new(path).exists())
}

/// The real program: with the real clocks, with a wall clock ten years ahead, and with real ones.
#[test]
fn the_real_program_is_not_moved_by_a_wall_clock_ten_years_ahead() {
    let Some(library) = faketime_library() else {
        eprintln!("skipped: libfaketime is not installed");
        return;
    };
    let ahead = [
        "env".to_owned(),
        format!("LD_PRELOAD={library}"),
        "FAKETIME=+3650d".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    lie_to_the_real_program(
        ahead.to_vec(),
        &["ahead of the machine clock by 36", "behind the machine clock by 36"],
    );
}

/// The same with the clock that cannot be set, in a namespace of its own.
#[test]
fn the_real_program_is_not_moved_by_a_boot_clock_ten_years_ahead() {
    let wrapper = ["unshare", "--time", "--boottime", "315360000", "--"].map(str::to_owned);
    let possible = Command::new("unshare").args(&wrapper[1..]).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: time namespaces cannot be made here");
        return;
    }
    lie_to_the_real_program(wrapper.to_vec(), &["behind the machine clock by 36"]);
}

fn lie_to_the_real_program(wrapper: Vec<String>, expected: &[&str]) {
    let mut served = Served::start();
    served.set_up();
    let first = json(&served.client("home", &["--json", "backup", "db", "/etc/hostname"]));
    let operator = served.token(None, "operator");
    let profile = ["--profile", "operator"];
    let enroll = [&profile[..], &["enroll", "--token", &operator]].concat();
    assert!(served.client("home", &enroll).status.success());
    let snapshot = first["snapshot"].as_str().unwrap();
    let forget = [&profile[..], &["forget", snapshot, "--namespace", "erp"]].concat();
    let refused = |served: &Served| {
        let output = served.client("home", &forget);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    };
    let status = |served: &Served| json(&served.command(&["clock", "status", "--json"]));
    refused(&served);
    let before = status(&served)["status"]["retention_seconds"].as_u64().unwrap();
    for round in 0..3 {
        assert!(served.signal(Signal::TERM).success());
        served.wrapper = if round % 2 == 0 { wrapper.clone() } else { Vec::new() };
        served.serve();
        refused(&served);
        json(&served.client("home", &["--json", "backup", "db", "/etc/hostname"]));
    }
    let status = status(&served);
    let after = status["status"]["retention_seconds"].as_u64().unwrap();
    assert!((before..before + 3600).contains(&after), "{before} {after}");
    assert!(status["status"]["frozen"].is_string(), "{status}");
    for line in expected {
        assert!(status.to_string().contains(line), "{line}: {status}");
    }
    let metrics = served.probe("/metrics").unwrap();
    assert!(metrics.contains("strongroom_clock_frozen 1"), "{metrics}");
    let people = text(&served.command(&["clock", "status"]).stdout);
    assert!(people.contains("locks end        NO"), "{people}");
}
