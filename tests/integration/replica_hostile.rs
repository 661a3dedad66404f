//! A captured primary: what it can send instead of what is asked for, and what it gets by that.

use std::sync::Arc;
use std::time::Duration;

use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, PrincipalId, RecordDigest, SealedDigest};
use strongroom_protocol::retention::{Lock, RetentionMode};
use strongroom_server::config::Config;
use strongroom_server::followers::FollowState;
use strongroom_server::repository::Repository;

use crate::gc::noise;
use crate::harness::{Actor, TestServer, label, two_sites};
use crate::lying_server::{Lies, Trick, captured};
use crate::replica::{add, events, quick, snapshots, status, synced, token_at, until};
use crate::replica_line::impatient;

pub async fn follow_captured(replica: &TestServer, primary: &TestServer) -> Arc<Lies> {
    let lies = Arc::new(Lies::default());
    let address = captured(primary.repository.clone(), lies.clone()).await;
    add(replica, &token_at(primary, address), "office", &[]).await;
    lies
}

/// Writes what a captured primary can write into its ledger: anything.
pub fn forge(primary: &TestServer, namespace: NamespaceId, event: Event) {
    let forging = primary.repository.writer().decide(move |decision| {
        decision.enter(PrincipalId::LOCAL, namespace, event);
        Ok(())
    });
    forging.unwrap();
}

async fn big(writer: &Actor, source: &str, seed: u64, count: u64) -> RecordDigest {
    let pieces = noise(seed, count);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    writer.snapshot(source, &pieces).await.0.digest()
}

/// Plays a trick on a replica that is about to fetch a snapshot; it must say `says`, show nothing,
/// and be whole once the trick ends.
async fn play(trick: Trick, says: &[&str]) {
    let (primary, replica, writer) = two_sites(impatient).await;
    writer.snapshot("db", &[b"one"]).await;
    let lies = follow_captured(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    lies.play(Some(trick));
    big(&writer, "db", 1, 60).await;
    let trouble = || status(&replica, "office").trouble;
    until(&format!("{trick:?} noticed"), || says.iter().any(|says| trouble().contains(says))).await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1, "{trick:?}");
    lies.play(None);
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 2, "{trick:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_envelopes_without_end_is_ended() {
    play(Trick::EndlessEnvelopes, &["more envelopes", "other bytes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_drips_is_given_up() {
    play(Trick::DrippingEnvelopes, &["too slowly"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_drips_is_given_up() {
    play(Trick::DrippingProof, &["too slowly"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_answer_is_not_read_to_its_end() {
    play(Trick::EndlessProof, &["too long"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_record_is_not_read_to_its_end() {
    play(Trick::EndlessRecord, &["too long", "later"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_never_begins_is_given_up() {
    play(Trick::Silence, &["no answer"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_envelopes_than_asked_for_are_refused() {
    play(Trick::FewerEnvelopes, &["fewer envelopes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_lacks_a_child_stays_pending_and_keeps_no_other_waiting() {
    let (primary, replica, writer) = two_sites(quick).await;
    let namespace = writer.namespace();
    let lies = follow_captured(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    let lacking = noise(1, 60)[30].clone();
    let tree = crate::harness::Tree::seal(&writer.keys(), &[&lacking]);
    // The first chunk is the catalogue, which all of these have.
    let withheld = SealedDigest::of(&tree.chunks[1]);
    lies.withheld.lock().unwrap().insert(withheld);
    let damaged = big(&writer, "db", 1, 60).await;
    let (whole, _) = writer.snapshot("other", &[b"whole"]).await;
    until("the other one", || {
        snapshots(&replica, &namespace).iter().any(|row| row.record == whole.digest())
    })
    .await;
    until("said", || status(&replica, "office").state == FollowState::Failing).await;
    assert_eq!(status(&replica, "office").pending_snapshots, 1);
    assert!(!snapshots(&replica, &namespace).iter().any(|row| row.record == damaged));
    lies.withheld.lock().unwrap().clear();
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &namespace).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_checkpoint_is_refused_however_well_it_is_signed() {
    let (primary, replica, writer) = two_sites(quick).await;
    let lies = follow_captured(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    let old = primary.repository.ledger().head().note;
    writer.snapshot("db", &[b"one"]).await;
    synced(&replica, &primary, "office").await;
    let known = status(&replica, "office").followed_entries;
    *lies.old_checkpoint.lock().unwrap() = Some(old);
    until("refused", || status(&replica, "office").state == FollowState::Refused).await;
    assert_eq!(status(&replica, "office").followed_entries, known);
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
    let is_refusal = |event: &Event| matches!(event, Event::PrimaryRefused { .. });
    until("on record", || events(&replica.repository).iter().any(is_refusal)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_lowers_releases_forgets_and_drops_changes_nothing_here() {
    let (primary, replica, writer) = two_sites(quick).await;
    let namespace = writer.namespace();
    let (record, _) = writer.snapshot("db", &[b"one"]).await;
    let body = record.body.clone();
    let record = record.digest();
    let _lies = follow_captured(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    forge(&primary, namespace, Event::HoldPlaced { record, reason: [1; 32] });
    synced(&replica, &primary, "office").await;
    let before = snapshots(&replica, &namespace);
    assert!(before[0].lock.is_held);
    let lower = Lock {
        mode: RetentionMode::Governance,
        until_seconds: 1,
        until_wall_seconds: 0,
        is_held: false,
    };
    let again = Event::Committed { commit: 99, record, root: body.root, sequence: 99, lock: lower };
    forge(&primary, namespace, Event::Retained { record, lock: lower });
    forge(&primary, namespace, again);
    forge(&primary, namespace, Event::HoldReleased { record, reason: [1; 32] });
    forge(&primary, namespace, Event::Forgotten { record, commit: 1, lock: lower, proposal: 0 });
    forge(&primary, namespace, Event::NamespaceDropped);
    synced(&replica, &primary, "office").await;
    let after = snapshots(&replica, &namespace);
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].lock, before[0].lock);
    assert_still_locked(&replica.repository, &namespace, &record);
}

fn assert_still_locked(
    repository: &Arc<Repository>,
    namespace: &NamespaceId,
    record: &RecordDigest,
) {
    match repository.forget(&crate::replica::OFFICER, namespace, record) {
        Err(strongroom_server::error::ServerError::Peer(refusal)) => {
            assert_eq!(refusal.code, ErrorCode::Held, "{}", refusal.message);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_do_not_exist_fill_neither_memory_nor_disk() {
    let narrow = |config: &mut Config| {
        quick(config);
        config.replica.pending_max = 256;
    };
    let (primary, replica, writer) = two_sites(narrow).await;
    let namespace = writer.namespace();
    let (real, _) = writer.snapshot("db", &[b"one"]).await;
    let lock = Lock {
        mode: RetentionMode::Compliance,
        until_seconds: 1 << 40,
        until_wall_seconds: 0,
        is_held: false,
    };
    primary
        .repository
        .writer()
        .decide(move |decision| {
            for number in 0..900u64 {
                let record = RecordDigest(*blake3::hash(&number.to_le_bytes()).as_bytes());
                let root = SealedDigest([7; 32]);
                let event = Event::Committed { commit: number, record, root, sequence: 1, lock };
                decision.enter(PrincipalId::LOCAL, namespace, event);
            }
            Ok(())
        })
        .unwrap();
    let _lies = follow_captured(&replica, &primary).await;
    let is_ended = || status(&replica, "office").trouble.contains("no more are taken over");
    until("ended", is_ended).await;
    let seen = status(&replica, "office");
    assert!((256..256 + 256).contains(&seen.pending_snapshots), "{seen:?}");
    // The real one is here all the same.
    assert_eq!(snapshots(&replica, &namespace)[0].record, real.digest());
    strongroom_server::replica::remove(&replica.repository, &label("office")).unwrap();
    tokio::time::timeout(Duration::from_secs(30), replica.stop()).await.unwrap();
}
