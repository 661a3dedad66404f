//! A replica on a bad line and with bad luck: what was here stays, nothing is visible before it is
//! whole, and it goes on where it was as soon as it can.

use std::sync::Arc;
use std::time::Duration;

use strongroom_protocol::id::NamespaceId;
use strongroom_protocol::message::Retain;
use strongroom_protocol::retention::LockWanted;
use strongroom_server::config::{Config, Period, Size};
use strongroom_server::followers::FollowState;
use strongroom_server::replica;
use strongroom_server::repository::Repository;

use crate::gc::noise;
use crate::harness::{Actor, DAY, TestServer, label, two_sites, unpack_dumps};
use crate::line::Line;
use crate::replica::{
    OFFICER, add, follow, quick, replica, restored, snapshots, status, synced, token_at, until,
};

/// Impatient, so that a test need not wait for a minute.
pub fn impatient(config: &mut Config) {
    quick(config);
    config.replica.patience = Period(Duration::from_secs(1));
}

/// Begins to follow `primary` over a line.
async fn follow_over(replica: &TestServer, primary: &TestServer) -> Line {
    let line = Line::to(primary.address).await;
    add(replica, &token_at(primary, line.address), "office", &[]).await;
    line
}

/// Requests of one kind that a server answered.
fn requests(server: &TestServer, route: &str) -> u64 {
    let text = String::from_utf8(server.repository.metrics().render().unwrap()).unwrap();
    let start = format!("strongroom_requests_total{{code=\"ok\",route=\"{route}\"}}");
    let line = text.lines().find(|line| line.starts_with(&start));
    line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// A snapshot of noise.
async fn big_snapshot(writer: &Actor, source: &str, seed: u64, chunk_count: u64) {
    let pieces = noise(seed, chunk_count);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    writer.snapshot(source, &pieces).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_cut_in_the_middle_of_envelopes_only_delays() {
    let (primary, replica, mut writer) = two_sites(impatient).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let line = follow_over(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    let before = line.answered_bytes();
    let summary = {
        replica.repository.pause_primary(&label("office"), true).unwrap();
        let summary = writer.backup("db", &day0).await.unwrap();
        replica.repository.pause_primary(&label("office"), false).unwrap();
        summary
    };
    let total = summary.sent_sealed_bytes;
    // Nowhere near a boundary of anything, and it never lasts for more than an eighth.
    line.cut_every(total / 8 + 7919);
    until("cut", || line.cut_count() >= 3).await;
    let seen = snapshots(&replica, &writer.namespace());
    assert!(seen.is_empty(), "visible before it is whole: {seen:?}");
    synced(&replica, &primary, "office").await;
    let cuts = line.cut_count();
    assert!((7..20).contains(&cuts), "{cuts} cuts");
    // What came whole before a cut was kept, but for what was in the air over each connection.
    let carried = line.answered_bytes() - before;
    assert!(carried < total * 2, "{carried} bytes for {total}");
    let bytes = restored(&replica, &writer, summary.snapshot).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_line_that_is_down_for_a_while_brings_all() {
    let (primary, replica, writer) = two_sites(impatient).await;
    let line = follow_over(&replica, &primary).await;
    line.round_trip(Duration::from_millis(200));
    line.rate(1 << 20);
    big_snapshot(&writer, "db", 1, 150).await;
    until("begun", || status(&replica, "office").received_bytes > 256 << 10).await;
    line.down(true);
    until("noticed", || status(&replica, "office").state == FollowState::Unreachable).await;
    line.down(false);
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
    // Each byte came about once.
    assert!(line.answered_bytes() < 5 << 20, "{}", line.answered_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_with_a_long_round_trip_that_loses_segments_only_delays() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let line = Line::to(primary.address).await;
    line.round_trip(Duration::from_millis(200));
    line.loss(100);
    let path = folder.path().join("dump");
    std::fs::write(&path, noise(1, 40).concat()).unwrap();
    let first = writer.backup("db", &path).await.unwrap();
    add(&replica, &token_at(&primary, line.address), "office", &[]).await;
    synced(&replica, &primary, "office").await;
    // And what is made while it follows.
    let small = writer.snapshot("small", &[b"one", b"two"]).await.0.digest();
    synced(&replica, &primary, "office").await;
    println!("{} of the segments were lost", line.lost_count());
    assert!(line.lost_count() >= 3, "{} of {}", line.lost_count(), line.answered_bytes());
    // What was lost on the line was not asked for again by the replica.
    assert!(line.answered_bytes() * 10 < first.sent_sealed_bytes * 11 + (1 << 20));
    let listed = snapshots(&replica, &writer.namespace());
    assert!(listed.len() == 2 && listed.iter().any(|row| row.record == small));
    let bytes = restored(&replica, &writer, first.snapshot).await;
    assert!(bytes == std::fs::read(&path).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_stalls_is_given_up_and_taken_again() {
    let (primary, replica, writer) = two_sites(impatient).await;
    let line = follow_over(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    line.stall(true);
    big_snapshot(&writer, "db", 1, 40).await;
    until("given up", || status(&replica, "office").state == FollowState::Unreachable).await;
    line.stall(false);
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_change_costs_few_round_trips_and_a_look_at_nothing_one() {
    let (primary, replica, writer) = two_sites(quick).await;
    big_snapshot(&writer, "db", 1, 200).await;
    let line = follow_over(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    line.round_trip(Duration::from_millis(50));
    let kinds = ["tile", "record", "read", "namespaces", "descriptor"];
    let count = || kinds.iter().map(|kind| requests(&primary, kind)).sum::<u64>();
    let before = count();
    let pieces = noise(1, 200);
    let mut pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    pieces[100] = b"what changed";
    writer.snapshot("db", &pieces).await;
    synced(&replica, &primary, "office").await;
    // Entries, record, root, nodes below it, chunks. One look more sees that the record was read,
    // and one may have come while the snapshot was made.
    let asked = count() - before;
    assert!(asked <= 7, "{asked} requests");
    let (looks, rest) = (requests(&primary, "consistency"), count());
    until("five more looks", || requests(&primary, "consistency") >= looks + 5).await;
    assert_eq!(count(), rest);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_snapshots_come_in_groups() {
    let (primary, replica, writer) = two_sites(quick).await;
    for number in 0..120u64 {
        writer.snapshot("db", &[&number.to_le_bytes(), b"the same"]).await;
    }
    let line = Line::to(primary.address).await;
    line.round_trip(Duration::from_millis(20));
    add(&replica, &token_at(&primary, line.address), "office", &[]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 120);
    // In the primary's order.
    let order = |server: &TestServer| -> Vec<_> {
        snapshots(server, &writer.namespace()).iter().map(|row| row.record).collect()
    };
    assert_eq!(order(&replica), order(&primary));
    let reads = requests(&primary, "read");
    assert!(reads <= 30, "{reads} requests for envelopes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_revoked_in_the_middle_keeps_what_is_whole_and_shows_nothing_else() {
    let slow = |config: &mut Config| {
        quick(config);
        config.replica.bytes_per_second = Size(8 << 20);
        config.replica.connections = 1;
    };
    let (primary, replica, writer) = two_sites(slow).await;
    writer.snapshot("db", &[b"one"]).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    // More than one request of 1024 chunks.
    big_snapshot(&writer, "db", 1, 1300).await;
    let before = status(&replica, "office").received_bytes;
    until("half way", || status(&replica, "office").received_bytes > before + (2 << 20)).await;
    primary.repository.revoke(status(&replica, "office").principal).unwrap();
    // What was granted before ends; the next question is refused.
    until("noticed", || status(&replica, "office").state == FollowState::Revoked).await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
    // Enrolled again, it goes on, and what came before is not fetched again.
    strongroom_server::replica::remove(&replica.repository, &label("office")).unwrap();
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_replica_says_so_locks_on_and_goes_on_when_there_is_room() {
    let (primary, replica, writer) = two_sites(quick).await;
    let (first, _) = writer.snapshot("db", &[b"one"]).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    // No room: the reserve is more than any disk has.
    let full = |config: &mut Config| {
        quick(config);
        config.store.reserve = Size(1 << 60);
    };
    let replica = replica.restart_with(full).await;
    big_snapshot(&writer, "db", 1, 40).await;
    let says_full = || status(&replica, "office").trouble.contains("full");
    until("said", says_full).await;
    assert_eq!(status(&replica, "office").pending_snapshots, 1);
    // What needs no room goes on meanwhile.
    let (namespace, record) = (writer.namespace(), first.digest());
    let wish = Retain { lock_wanted: LockWanted::Period(400 * DAY.as_secs()), mode: None };
    let longer = primary.repository.retain(&OFFICER, &namespace, &record, wish).unwrap();
    let until_here = || snapshots(&replica, &namespace)[0].lock.until_seconds;
    until("lock grown", || until_here() >= longer.lock.until_seconds).await;
    let replica = replica.restart_with(quick).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &namespace).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_reached_holds_up_nothing_smaller() {
    let narrow = |config: &mut Config| {
        quick(config);
        config.retention.quota_bytes = Size(512 << 10);
    };
    let (primary, replica, writer) = two_sites(narrow).await;
    let namespace = writer.namespace();
    writer.snapshot("db", &[b"small"]).await;
    big_snapshot(&writer, "big", 1, 40).await;
    writer.snapshot("db", &[b"small too"]).await;
    follow(&replica, &primary, "office").await;
    let trouble = || status(&replica, "office").trouble;
    until("said", || trouble().contains("quota") || trouble().contains("tried again")).await;
    // The big one keeps no other waiting.
    until("the others", || snapshots(&replica, &namespace).len() == 2).await;
    assert_eq!(status(&replica, "office").pending_snapshots, 1);
    assert_eq!(status(&replica, "office").state, FollowState::Failing);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_years_apart_shorten_nothing() {
    let (primary, ahead, behind) = (TestServer::start().await, replica().await, replica().await);
    ahead.clock.advance(DAY * 3000);
    ahead.repository.tick();
    behind.clock.set_wall_back(DAY * 3000);
    behind.repository.tick();
    let writer = primary.writer("erp").await;
    let namespace = writer.namespace();
    writer.snapshot("db", &[b"one"]).await;
    for replica in [&ahead, &behind] {
        follow(replica, &primary, "office").await;
        synced(replica, &primary, "office").await;
        let until = snapshots(replica, &namespace)[0].lock.until_seconds;
        assert!(until >= left_at(&primary, &namespace) + now(&replica.repository));
        assert!(until >= snapshots(&primary, &namespace)[0].lock.until_seconds);
    }
    // The primary's clock runs away: what is locked here stays so.
    let before = snapshots(&behind, &namespace)[0].lock;
    primary.clock.advance(DAY * 9000);
    primary.repository.tick();
    writer.snapshot("db", &[b"two"]).await;
    synced(&behind, &primary, "office").await;
    assert_eq!(snapshots(&behind, &namespace)[0].lock, before);
    let record = snapshots(&behind, &namespace)[0].record;
    assert!(behind.repository.forget(&OFFICER, &namespace, &record).is_err());
}

fn now(repository: &Arc<Repository>) -> u64 {
    repository.moment().retention_seconds
}

fn left_at(server: &TestServer, namespace: &NamespaceId) -> u64 {
    let until = snapshots(server, namespace)[0].lock.until_seconds;
    until.saturating_sub(now(&server.repository))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_restarted_in_the_middle_go_on() {
    let slow = |config: &mut Config| {
        quick(config);
        config.replica.bytes_per_second = Size(1 << 20);
    };
    let (primary, replica, mut writer) = two_sites(slow).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    follow(&replica, &primary, "office").await;
    until("begun", || status(&replica, "office").received_bytes > 1 << 20).await;
    let address = primary.address;
    let primary = primary.restart_with(|config| config.listen = address).await;
    let replica = replica.restart_with(quick).await;
    synced(&replica, &primary, "office").await;
    let bytes = restored(&replica, &writer, summary.snapshot).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_added_again_does_not_wait_for_what_was_before() {
    let seldom = |config: &mut Config| config.replica.poll_interval = Period(DAY);
    let (primary, replica) = (TestServer::start().await, TestServer::start_with(seldom).await);
    let writer = primary.writer("erp").await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    // The next look would be tomorrow.
    writer.snapshot("db", &[b"one"]).await;
    replica::remove(&replica.repository, &label("office")).unwrap();
    follow(&replica, &primary, "office").await;
    until("it came", || snapshots(&replica, &writer.namespace()).len() == 1).await;
}
