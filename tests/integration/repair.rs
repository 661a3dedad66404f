//! Damage is repaired from the other side: a replica asks its primary, a primary its replica.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{PublicKey, SealedDigest};
use strongroom_protocol::token::Token;
use strongroom_server::config::{Config, Size};
use strongroom_server::followers::FollowState;
use strongroom_server::replica::enrol::{self, NewPrimary};
use strongroom_server::repository::Repository;
use strongroom_server::stop;

use crate::gc::{assert_whole, noise, snapshot, sync_up, tree_of};
use crate::harness::{TestServer, Tree, copy_folder, label};
use crate::lying_server::{Lies, captured};
use crate::replica::{add, follow, quick, status, synced, token_at, until};
use crate::scrub::{entered, flip_in_segments, row, run, scrub_config};

fn config(config: &mut Config) {
    scrub_config(config);
    quick(config);
}

/// Stops a server, damages its folder, and serves it again where it was.
async fn damaged(server: TestServer, tree: &Tree, more: impl FnOnce(&mut Config)) -> TestServer {
    let address = server.address;
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    flip_in_segments(&data, &tree.chunks[3]);
    flip_in_segments(&data, &tree.nodes[0].envelope);
    let change = |wanted: &mut Config| {
        config(wanted);
        wanted.listen = address;
        more(wanted);
    };
    TestServer::open_with(folder, clock, change).await
}

/// Who is named as the giver of repairs, and of how many.
fn givers(repository: &Repository) -> Vec<(PublicKey, u64)> {
    let ledger = repository.ledger();
    let entries = (0..ledger.head().size).map(|leaf| ledger.entry(leaf).unwrap());
    let events = entries.map(|entry| Entry::decode(&entry).unwrap().event);
    let givers = events.filter_map(|event| match event {
        Event::Repaired { from, count, .. } => Some((from, count)),
        _ => None,
    });
    givers.collect()
}

fn key_of(server: &TestServer) -> PublicKey {
    server.repository.keys().ledger_public()
}

async fn ask_for_repairs(server: &TestServer, token: &Token, name: &str) {
    let wanted = NewPrimary {
        token: token.to_text(),
        name: Some(label(name)),
        only: Vec::new(),
        is_repair_only: true,
    };
    let (_stopper, stop) = stop::signal();
    enrol::add(&server.repository, wanted, stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_heals_itself_from_its_primary() {
    let primary = TestServer::start_with(config).await;
    let replica = TestServer::start_with(config).await;
    let writer = primary.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 200));
    snapshot(&writer, "db", &tree).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    let replica = damaged(replica, &tree, |_| {}).await;
    let report = run(&replica.repository).await;
    assert!(report.damaged_count >= 2, "{report:?}");
    until("healed", || replica.repository.damage().count() == 0).await;
    assert_whole(&replica.repository, &writer, &tree);
    let (damaged_count, repaired_count) = entered(&replica.repository);
    assert_eq!(damaged_count, repaired_count);
    let givers = givers(&replica.repository);
    assert!(givers.iter().all(|(from, _)| *from == key_of(&primary)), "{givers:?}");
    assert_eq!(status(&replica, "office").repaired_count, repaired_count);
    let again = run(&replica.repository).await;
    assert_eq!((again.damaged_count, again.repaired_total), (0, repaired_count));
    assert_eq!(entered(&primary.repository), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_heals_itself_from_its_replica_and_follows_nothing() {
    let primary = TestServer::start_with(config).await;
    let replica = TestServer::start_with(config).await;
    let writer = primary.writer("erp").await;
    let other = replica.writer("theirs").await;
    other.snapshot("db", &[b"not for the primary"]).await;
    let tree = tree_of(&writer, &noise(1, 200));
    snapshot(&writer, "db", &tree).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    ask_for_repairs(&primary, &token_at(&replica, replica.address), "branch").await;
    let primary = damaged(primary, &tree, |_| {}).await;
    assert!(run(&primary.repository).await.damaged_count >= 2);
    until("healed", || primary.repository.damage().count() == 0).await;
    assert_whole(&primary.repository, &writer, &tree);
    let (damaged_count, repaired_count) = entered(&primary.repository);
    assert_eq!(damaged_count, repaired_count);
    assert!(givers(&primary.repository).iter().all(|(from, _)| *from == key_of(&replica)));
    let seen = status(&primary, "branch");
    assert_eq!((seen.state, seen.followed_entries), (FollowState::RepairOnly, 0));
    assert!(primary.repository.registry().namespace(&other.namespace()).is_none());
    // The replica goes on as before.
    writer.snapshot("db2", &[b"later"]).await;
    synced(&replica, &primary, "office").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_sends_wrong_bytes_repairs_nothing() {
    let primary = TestServer::start_with(config).await;
    let replica = TestServer::start_with(config).await;
    let writer = primary.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 10));
    snapshot(&writer, "db", &tree).await;
    let lies = Arc::new(Lies::default());
    let address = captured(primary.repository.clone(), lies.clone()).await;
    add(&replica, &token_at(&primary, address), "office", &[]).await;
    synced(&replica, &primary, "office").await;
    lies.flips.store(true, Ordering::SeqCst);
    let replica = damaged(replica, &tree, |_| {}).await;
    let count = run(&replica.repository).await.damaged_total;
    assert!(count >= 2);
    // The lie is in the middle of the answer, which is in the chunk: the longest by far.
    until("the rest is healed", || replica.repository.damage().count() == 1).await;
    let before = status(&replica, "office").received_bytes;
    for _ in 0..20 {
        replica.clock.advance(std::time::Duration::from_secs(1));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let chunk = SealedDigest::of(&tree.chunks[3]);
    assert!(row(&replica.repository, &writer, &chunk).unwrap().damaged);
    assert_eq!(status(&replica, "office").received_bytes, before, "nothing was taken over");
    assert_eq!(entered(&replica.repository), (count, count - 1));
    lies.flips.store(false, Ordering::SeqCst);
    until("asked again", || {
        replica.clock.advance(std::time::Duration::from_secs(1));
        replica.repository.damage().count() == 0
    })
    .await;
    assert_whole(&replica.repository, &writer, &tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_other_lacks_stays_damaged_and_the_rest_is_repaired() {
    let primary = TestServer::start_with(config).await;
    let stranger = TestServer::start_with(config).await;
    let writer = primary.writer("erp").await;
    let (tree, late) = (tree_of(&writer, &noise(1, 10)), tree_of(&writer, &noise(2, 10)));
    snapshot(&writer, "db", &tree).await;
    follow(&stranger, &primary, "office").await;
    synced(&stranger, &primary, "office").await;
    stranger.repository.pause_primary(&label("office"), true).unwrap();
    snapshot(&writer, "late", &late).await;
    ask_for_repairs(&primary, &token_at(&stranger, stranger.address), "branch").await;
    let address = primary.address;
    let (folder, clock) = primary.stop().await;
    let data = folder.path().join("data");
    flip_in_segments(&data, &tree.chunks[3]);
    flip_in_segments(&data, &late.chunks[3]);
    let change = |wanted: &mut Config| {
        config(wanted);
        wanted.listen = address;
    };
    let primary = TestServer::open_with(folder, clock, change).await;
    assert_eq!(run(&primary.repository).await.damaged_count, 2);
    until("one is healed", || primary.repository.damage().count() == 1).await;
    assert_whole(&primary.repository, &writer, &tree);
    let session = writer.session("late").await;
    assert_eq!(sync_up(&session, &late).await, 1);
    primary.repository.store().seal().unwrap();
    primary.repository.tick();
    assert_eq!(primary.repository.damage().count(), 0);
    assert_whole(&primary.repository, &writer, &late);
    assert_eq!(entered(&primary.repository), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_reads_damage_makes_the_primary_mark_it() {
    let primary = TestServer::start_with(config).await;
    let replica = TestServer::start_with(config).await;
    let writer = primary.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 10));
    snapshot(&writer, "db", &tree).await;
    let primary = damaged(primary, &tree, |_| {}).await;
    assert_eq!(primary.repository.damage().count(), 0);
    follow(&replica, &primary, "office").await;
    until("marked", || primary.repository.damage().count() > 0).await;
    until("said", || status(&replica, "office").trouble.contains("damaged")).await;
    assert_eq!(status(&replica, "office").pending_snapshots, 1);
    // The next backup heals the primary, and then the replica has it all.
    // (A reader meets one damaged envelope after the other.)
    let is_here = || status(&replica, "office").state == FollowState::InSync;
    while !is_here() {
        if primary.repository.damage().count() > 0 {
            snapshot(&writer, "db", &tree).await;
            primary.repository.tick();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(primary.repository.damage().count(), 0);
    assert_whole(&replica.repository, &writer, &tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_was_killed_in_the_middle_goes_on() {
    let primary = TestServer::start_with(config).await;
    let replica = TestServer::start_with(config).await;
    let writer = primary.writer("erp").await;
    let tree = tree_of(&writer, &noise(1, 400));
    snapshot(&writer, "db", &tree).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    replica.repository.settle().unwrap();
    let address = replica.address;
    let (folder, clock) = replica.stop().await;
    let data = folder.path().join("data");
    for file in std::fs::read_dir(data.join("chunks")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "sst") {
            let bytes = std::fs::metadata(&path).unwrap().len();
            std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        }
    }
    let slow = |wanted: &mut Config| {
        config(wanted);
        wanted.listen = address;
        wanted.replica.bytes_per_second = Size(4 << 20);
    };
    let replica = TestServer::open_with(folder, clock, slow).await;
    let known = run(&replica.repository).await.known_count;
    let repository = replica.repository.clone();
    until("half way", move || repository.damage().count() < known.max(400) / 2 + 100).await;
    let killed = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&replica.folder.path().join("data"), &killed.path().join("data"));
    let clock = replica.clock.clone();
    replica.stop().await;
    let replica = TestServer::open_with(killed, clock, config).await;
    assert!(replica.repository.damage().count() > 0, "the kill was too late");
    until("healed", || replica.repository.damage().count() == 0).await;
    run(&replica.repository).await;
    until("healed", || replica.repository.damage().count() == 0).await;
    assert_whole(&replica.repository, &writer, &tree);
    let (damaged_count, repaired_count) = entered(&replica.repository);
    assert_eq!(damaged_count, repaired_count);
    assert!(damaged_count >= tree.envelopes().len() as u64);
}
