//! Two servers in this process: one backs up, the other follows it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use strongroom_client::trust::ReadAccess;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{NamespaceId, PrincipalId, PublicKey, RecordDigest};
use strongroom_protocol::message::{Retain, SnapshotRow};
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::Role;
use strongroom_protocol::token::Token;
use strongroom_server::config::{Config, Period, Size};
use strongroom_server::followers::{FollowState, PrimaryStatus};
use strongroom_server::registry::Principal;
use strongroom_server::replica::enrol::{self, NewPrimary};
use strongroom_server::repository::Repository;
use strongroom_server::stop;

use crate::harness::{
    Actor, DAY, TestServer, connect_to, copy_folder, label, restored_with_kit, two_sites,
    unpack_dumps,
};
use crate::lying_server::{Lies, captured};

pub use crate::harness::quick;

pub const OFFICER: Principal = Principal {
    id: PrincipalId::LOCAL,
    role: Role::SecurityOfficer,
    namespace: None,
    signing_key: PublicKey([9; 32]),
};

pub async fn replica() -> TestServer {
    TestServer::start_with(quick).await
}

pub fn token_at(primary: &TestServer, address: std::net::SocketAddr) -> Token {
    Token { addresses: address.to_string(), ..primary.token(None, Role::Replica) }
}

pub async fn add(replica: &TestServer, token: &Token, name: &str, only: &[&str]) {
    let wanted = NewPrimary {
        token: token.to_text(),
        name: Some(label(name)),
        only: only.iter().map(|name| label(name)).collect(),
        is_repair_only: false,
    };
    let (_stopper, stop) = stop::signal();
    enrol::add(&replica.repository, wanted, stop).await.unwrap();
}

pub async fn follow(replica: &TestServer, primary: &TestServer, name: &str) {
    add(replica, &token_at(primary, primary.address), name, &[]).await;
}

pub fn status(replica: &TestServer, name: &str) -> PrimaryStatus {
    let statuses = replica.repository.primary_statuses().unwrap();
    statuses.into_iter().find(|status| status.name == label(name)).unwrap()
}

pub async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Waits until the replica has all that the primary's ledger says.
pub async fn synced(replica: &TestServer, primary: &TestServer, name: &str) {
    until("in sync", || {
        let status = status(replica, name);
        status.state == FollowState::InSync
            && status.followed_entries == primary.repository.ledger().head().size
    })
    .await;
}

pub fn snapshots(server: &TestServer, namespace: &NamespaceId) -> Vec<SnapshotRow> {
    match server.repository.list(namespace, None, 0) {
        Ok(page) => page.rows,
        Err(_) => Vec::new(),
    }
}

pub fn events(repository: &Repository) -> Vec<Event> {
    let leaves = 0..repository.ledger().head().size;
    let entries = leaves.map(|leaf| Entry::decode(&repository.ledger().entry(leaf).unwrap()));
    entries.map(|entry| entry.unwrap().event).collect()
}

/// Restores from a replica with the kit; without the word for it, the replica is not believed.
pub async fn restored(replica: &TestServer, actor: &Actor, record: RecordDigest) -> Vec<u8> {
    let connect = connect_to(replica.address);
    assert!(
        ReadAccess::with_kit(&actor.kit(), &connect, false).await.is_err(),
        "the descriptor does not name the replica"
    );
    restored_with_kit(replica, &actor.kit(), record, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_catches_up_and_gives_back_every_byte_without_its_primary() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let first = writer.backup("db", &day0).await.unwrap();
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    let whole = status(&replica, "office").received_bytes;
    assert!(whole > 0);

    // What is here is not fetched again.
    let second = writer.backup("db", &day1).await.unwrap();
    synced(&replica, &primary, "office").await;
    let later = status(&replica, "office").received_bytes - whole;
    assert!(later * 100 < second.sent_sealed_bytes * 105, "{later} for {second:?}");

    // With nothing to do, a look is one request.
    let rendered = || String::from_utf8(primary.repository.metrics().render().unwrap()).unwrap();
    let count = |route: &str| {
        let start = format!("strongroom_requests_total{{code=\"ok\",route=\"{route}\"}}");
        let text = rendered();
        let line = text.lines().find(|line| line.starts_with(&start)).unwrap().to_owned();
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    let (tiles, looks) = (count("tile"), count("consistency"));
    until("five more looks", || count("consistency") >= looks + 5).await;
    assert_eq!(count("tile"), tiles);

    let own = events(&replica.repository);
    let committed = own.iter().filter(|event| matches!(event, Event::Committed { .. })).count();
    assert_eq!(committed, 2);
    assert!(own.iter().any(|event| matches!(event, Event::PrimaryFollowed { .. })));
    assert_eq!(status(&replica, "office").lag_seconds, Some(0));

    primary.stop().await;
    until("noticed", || status(&replica, "office").state == FollowState::Unreachable).await;
    replica.clock.advance(Duration::from_secs(7200));
    assert_eq!(status(&replica, "office").lag_seconds, Some(7200));
    for (day, summary) in [(day0, first), (day1, second)] {
        let bytes = restored(&replica, &writer, summary.snapshot).await;
        assert!(bytes == std::fs::read(&day).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_under_a_right_digest_are_refused_and_leave_nothing_visible() {
    let (primary, replica, writer) = two_sites(quick).await;
    let lies = Arc::new(Lies::default());
    let address = captured(primary.repository.clone(), lies.clone()).await;
    lies.flips.store(true, Ordering::SeqCst);
    writer.snapshot("db", &[b"one", b"two"]).await;
    add(&replica, &token_at(&primary, address), "office", &[]).await;
    until("noticed", || status(&replica, "office").trouble.contains("other bytes")).await;
    let seen = status(&replica, "office");
    assert_eq!((seen.state, seen.pending_snapshots), (FollowState::Failing, 1));
    assert!(snapshots(&replica, &writer.namespace()).is_empty());
    assert!(!events(&replica.repository).iter().any(|e| matches!(e, Event::Committed { .. })));
    lies.flips.store(false, Ordering::SeqCst);
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tile_that_the_checkpoint_does_not_sign_leads_to_nothing() {
    let (primary, replica, writer) = two_sites(quick).await;
    writer.snapshot("db", &[b"one"]).await;
    let lies = Arc::new(Lies::default());
    let address = captured(primary.repository.clone(), lies.clone()).await;
    let token = token_at(&primary, address);
    // The enrolment is one more entry.
    let size = primary.repository.ledger().head().size + 1;
    *lies.flipped_tile.lock().unwrap() = Some(format!("entries/000.p/{size}"));
    add(&replica, &token, "office", &[]).await;
    until("noticed", || status(&replica, "office").trouble.contains("checkpoint")).await;
    assert_eq!(status(&replica, "office").followed_entries, 0);
    *lies.flipped_tile.lock().unwrap() = None;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_rolled_back_is_refused_on_record_and_what_is_here_stays() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let address = primary.address;
    let at = |config: &mut Config| config.listen = address;
    let writer = primary.writer("erp").await;
    writer.snapshot("db", &[b"one"]).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    let (folder, clock) = primary.stop().await;
    let old = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&folder.path().join("data"), &old.path().join("data"));
    let primary = TestServer::open_with(folder, clock, at).await;
    writer.snapshot("db", &[b"two"]).await;
    synced(&replica, &primary, "office").await;
    let (_folder, clock) = primary.stop().await;
    let primary = TestServer::open_with(old, clock, at).await;
    let is_refused = || status(&replica, "office").state == FollowState::Refused;
    until("refused", is_refused).await;
    let refusals = || {
        let own = events(&replica.repository);
        own.iter().filter(|event| matches!(event, Event::PrimaryRefused { .. })).count()
    };
    until("on record", || refusals() == 1).await;
    until("the primary is told, and freezes", || primary.repository.moment().is_suspect).await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 2);
    // Going on forgives nothing.
    replica.repository.pause_primary(&label("office"), false).unwrap();
    until("refused again", || refusals() == 2).await;
    assert!(is_refused());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forked_primary_is_refused() {
    let (primary, replica, writer) = two_sites(quick).await;
    let lies = Arc::new(Lies::default());
    let address = captured(primary.repository.clone(), lies.clone()).await;
    add(&replica, &token_at(&primary, address), "office", &[]).await;
    synced(&replica, &primary, "office").await;
    lies.proves_less.store(true, Ordering::SeqCst);
    writer.snapshot("db", &[b"one"]).await;
    until("refused", || status(&replica, "office").state == FollowState::Refused).await;
    until("told", || !lies.reported.lock().unwrap().is_empty()).await;
    assert!(snapshots(&replica, &writer.namespace()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_killed_in_the_middle_goes_on() {
    let slow = |config: &mut Config| {
        quick(config);
        config.replica.bytes_per_second = Size(2 << 20);
        config.replica.connections = 1;
        config.store.segment = Size(1 << 20);
    };
    let (primary, replica, mut writer) = two_sites(slow).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    follow(&replica, &primary, "office").await;
    let middle = (summary.sent_sealed_bytes / 2).min(6 << 20);
    until("half way", || status(&replica, "office").received_bytes > middle).await;
    assert!(snapshots(&replica, &writer.namespace()).is_empty());
    // What a kill leaves is what lies on the disk at some moment.
    let killed = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&replica.folder.path().join("data"), &killed.path().join("data"));
    let clock = replica.clock.clone();
    replica.stop().await;
    let replica = TestServer::open_with(killed, clock, quick).await;
    synced(&replica, &primary, "office").await;
    let rest = status(&replica, "office").received_bytes;
    assert!(rest < summary.sent_sealed_bytes, "{rest} of {}", summary.sent_sealed_bytes);
    let bytes = restored(&replica, &writer, summary.snapshot).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn retains_and_holds_travel_releases_and_forgets_do_not() {
    let (primary, replica, writer) = two_sites(quick).await;
    let namespace = writer.namespace();
    let (one, _) = writer.snapshot("db", &[b"one"]).await;
    let (two, _) = writer.snapshot("db", &[b"two"]).await;
    let (one, two) = (one.digest(), two.digest());
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    let wish = Retain { lock_wanted: LockWanted::Period(400 * DAY.as_secs()), mode: None };
    let extended =
        primary.repository.retain(&OFFICER, &namespace, &one, wish).unwrap().lock.until_seconds;
    let reason = || "tax audit".to_owned();
    primary.repository.place_hold(&OFFICER, &namespace, &one, reason()).unwrap();
    synced(&replica, &primary, "office").await;
    let lock_of = |record| {
        let rows = snapshots(&replica, &namespace);
        rows.iter().find(|row| row.record == record).unwrap().lock
    };
    assert!(lock_of(one).is_held && lock_of(one).until_seconds >= extended);
    assert!(!lock_of(two).is_held);

    primary.repository.release_hold(&OFFICER, &namespace, &one, reason()).unwrap();
    primary.clock.advance(DAY * 31);
    primary.repository.forget(&OFFICER, &namespace, &two).unwrap();
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&primary, &namespace).len(), 1);
    assert_eq!(snapshots(&replica, &namespace).len(), 2);
    assert!(lock_of(one).is_held);

    // What the replica forgets itself does not come back.
    replica.clock.advance(DAY * 31);
    replica.repository.forget(&OFFICER, &namespace, &two).unwrap();
    let (other, _) = writer.snapshot("db2", &[b"three"]).await;
    synced(&replica, &primary, "office").await;
    let listed: Vec<_> = snapshots(&replica, &namespace).iter().map(|row| row.record).collect();
    assert_eq!(listed, [one, other.digest()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_here_is_the_longer_of_received_and_own_whatever_the_clocks() {
    let primary = TestServer::start_with(|config| {
        config.retention.default = Period::seconds(90 * DAY.as_secs());
    })
    .await;
    let short = TestServer::start_with(|config| {
        quick(config);
        config.retention.maximum = Period::seconds(40 * DAY.as_secs());
    })
    .await;
    let long = TestServer::start_with(|config| {
        quick(config);
        config.retention.minimum = Period::seconds(200 * DAY.as_secs());
        config.retention.default = Period::seconds(200 * DAY.as_secs());
    })
    .await;
    // Years ahead, as far as its retention clock goes.
    short.clock.advance(DAY * 1000);
    short.repository.tick();
    let writer = primary.writer("erp").await;
    writer.snapshot("db", &[b"one"]).await;
    for replica in [&short, &long] {
        follow(replica, &primary, "office").await;
        synced(replica, &primary, "office").await;
    }
    let left = |replica: &TestServer| {
        let lock = snapshots(replica, &writer.namespace())[0].lock;
        (lock.until_seconds - replica.repository.moment().retention_seconds) / DAY.as_secs()
    };
    assert!((89..=91).contains(&left(&short)), "{}", left(&short));
    assert!((199..=201).contains(&left(&long)), "{}", left(&long));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_replica_says_so() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    primary.repository.revoke(status(&replica, "office").principal).unwrap();
    until("noticed", || status(&replica, "office").state == FollowState::Revoked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_primaries_with_one_name_stand_side_by_side() {
    let (one, two, replica) =
        (TestServer::start().await, TestServer::start().await, replica().await);
    let (first, second) = (one.writer("erp").await, two.writer("erp").await);
    first.snapshot("db", &[b"same"]).await;
    second.snapshot("db", &[b"same"]).await;
    follow(&replica, &one, "one").await;
    synced(&replica, &one, "one").await;
    follow(&replica, &two, "two").await;
    synced(&replica, &two, "two").await;
    for actor in [&first, &second] {
        assert_eq!(snapshots(&replica, &actor.namespace()).len(), 1);
    }
    let names: Vec<_> =
        replica.repository.namespaces().iter().map(|row| row.name.to_string()).collect();
    assert_eq!(names[0], "erp");
    assert!(names[1].starts_with("erp-") && names.len() == 2, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_can_be_narrowed_paused_and_removed_and_keeps_what_it_has() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let (erp, files) = (primary.writer("erp").await, primary.writer("files").await);
    erp.snapshot("db", &[b"one"]).await;
    files.snapshot("home", &[b"one"]).await;
    add(&replica, &token_at(&primary, primary.address), "office", &["erp"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &erp.namespace()).len(), 1);
    assert!(snapshots(&replica, &files.namespace()).is_empty());

    replica.repository.pause_primary(&label("office"), true).unwrap();
    let followed = status(&replica, "office").followed_entries;
    erp.snapshot("db", &[b"two"]).await;
    assert_eq!(status(&replica, "office").state, FollowState::Paused);
    assert_eq!(status(&replica, "office").followed_entries, followed);
    replica.repository.pause_primary(&label("office"), false).unwrap();
    synced(&replica, &primary, "office").await;

    strongroom_server::replica::remove(&replica.repository, &label("office")).unwrap();
    assert!(replica.repository.primary_statuses().unwrap().is_empty());
    assert_eq!(snapshots(&replica, &erp.namespace()).len(), 2);
    // A second enrolment, under the same name, begins at the beginning and stores nothing twice.
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &erp.namespace()).len(), 2);
    assert_eq!(snapshots(&replica, &files.namespace()).len(), 1);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_a_replica_has_the_same_and_two_that_follow_each_other_come_to_rest() {
    let primary = TestServer::start_with(quick).await;
    let (middle, last) = (replica().await, replica().await);
    let writer = primary.writer("erp").await;
    writer.snapshot("db", &[b"one"]).await;
    follow(&middle, &primary, "office").await;
    synced(&middle, &primary, "office").await;
    follow(&last, &middle, "middle").await;
    synced(&last, &middle, "middle").await;
    assert_eq!(snapshots(&last, &writer.namespace()).len(), 1);
    follow(&primary, &middle, "middle").await;
    synced(&primary, &middle, "middle").await;
    synced(&middle, &primary, "office").await;
    let size = primary.repository.ledger().head().size;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(primary.repository.ledger().head().size, size);
    assert_eq!(snapshots(&primary, &writer.namespace()).len(), 1);
}
