//! Commits: only what is whole, signed, in turn and in its session; and the same one twice is one.

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use strongroom_client::sealer::{SealedNode, seal_node};
use strongroom_client::tree::SealedRoot;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{PublicKey, RecordDigest, SessionNonce};
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::{Record, RecordBody, Totals};
use strongroom_server::repository::Repository;
use strongroom_server::store::schema::Family;

use crate::harness::{
    DAY, START_MS, TestServer, Tree, child_of, digests, frames, label, refused_with, seal_leaf,
};

fn snapshot_count(repository: &Repository) -> u64 {
    repository.status().unwrap().snapshot_count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_proven_by_its_receipt() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, receipt) = writer.snapshot("db", &[b"a", b"b"]).await;
    let ledger_key = writer.profile.settings().ledger_key;
    let (entry, checkpoint) = receipt.verify(&[ledger_key]).unwrap();
    assert_eq!(entry.namespace, writer.namespace());
    assert_eq!(entry.server_time_ms, START_MS);
    assert_eq!(checkpoint.size, server.repository.ledger().head().size);
    let Event::Committed { record: digest, root, sequence, lock, .. } = entry.event else {
        panic!("{entry:?}")
    };
    assert_eq!((digest, root, sequence), (record.digest(), record.body.root, 1));
    assert_eq!(lock.until_seconds, START_MS / 1000 + 30 * 24 * 3600);
    let stranger = PublicKey([1; 32]);
    assert!(receipt.verify(&[stranger]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_record_twice_is_one_snapshot() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let (_, record) = writer.uploaded(&session, "db", &[b"a"]).await;
    let first = session.commit(record.encode().into()).await.unwrap();
    let again = session.commit(record.encode().into()).await.unwrap();
    let index = |receipt: &[u8]| Receipt::decode(receipt).unwrap().leaf_index;
    assert_eq!(index(&first), index(&again));
    assert_eq!(snapshot_count(&server.repository), 1);
    // Also when the server has forgotten the session.
    let server = server.restart().await;
    let client = writer.profile.client(&server.connect()).unwrap();
    let late = strongroom_client::session::commit_in(
        &client,
        writer.namespace(),
        session.opened().session,
        record.encode().into(),
    );
    assert_eq!(index(&late.await.unwrap()), index(&first));
    assert_eq!(snapshot_count(&server.repository), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_record_twice_at_once_is_one_snapshot() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let index = |receipt: &[u8]| Receipt::decode(receipt).unwrap().leaf_index;
    // The second one can come before, while and after the first is written, synced and published.
    for round in 1..=30 {
        let source = format!("db{round}");
        let session = writer.session(&source).await;
        let (_, record) = writer.uploaded(&session, &source, &[b"a"]).await;
        let later = async {
            tokio::time::sleep(Duration::from_micros(200 * (round % 10))).await;
            session.commit(record.encode().into()).await
        };
        let (a, b) = tokio::join!(session.commit(record.encode().into()), later);
        assert_eq!(index(&a.unwrap()), index(&b.unwrap()));
        assert_eq!(snapshot_count(&server.repository), round);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_lie_are_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let other = server.writer("other").await;
    let session = writer.session("db").await;
    let (tree, mut record) = writer.uploaded(&session, "db", &[b"a", b"b"]).await;
    type Lie = fn(&mut RecordBody);
    let lies: [(&str, Lie); 9] = [
        ("chunk count", |body| body.totals.chunk_count += 1),
        ("sealed bytes", |body| body.totals.sealed_bytes -= 1),
        ("level", |body| body.root_level += 1),
        ("root", |body| body.root.0[0] ^= 1),
        ("session", |body| body.session_nonce = SessionNonce([0; 32])),
        ("source", |body| body.source = label("payroll")),
        ("principal", |body| body.principal.0[0] ^= 1),
        ("epoch", |body| body.epoch = 2),
        ("descriptor", |body| body.descriptor.0[0] ^= 1),
    ];
    for (name, lie) in lies {
        let record = writer.record(&session, "db", &tree.root, lie);
        let outcome = session.commit(record.encode().into()).await;
        assert!(outcome.is_err(), "{name}");
        refused_with(outcome, ErrorCode::BadRecord);
    }
    // Another namespace's record, and one with a broken signature.
    let elsewhere = other.session("db").await;
    let foreign = other.record(&elsewhere, "db", &tree.root, |_| {});
    refused_with(session.commit(foreign.encode().into()).await, ErrorCode::BadRecord);
    record.signature[0] ^= 1;
    refused_with(session.commit(record.encode().into()).await, ErrorCode::BadRecord);
    assert_eq!(snapshot_count(&server.repository), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_record_is_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"a"]).await;
    let descriptor = writer.descriptor().await;
    assert!(record.verify(&descriptor).is_ok());
    // Whoever has the server has records and envelopes, but neither the writer's key nor the
    // convergence secret: with keys of its own it cannot make a record that a reader accepts.
    let forger = SigningKey::from_bytes(&[3; 32]);
    let public = PublicKey(forger.verifying_key().to_bytes());
    let mut body = record.body.clone();
    body.sequence += 1;
    let mut certificate = record.certificate.clone();
    let key_block = record.key_block.clone();
    let with_old_certificate =
        Record::sign(body.clone(), key_block.clone(), certificate.clone(), &forger);
    assert!(with_old_certificate.verify(&descriptor).is_err());
    certificate = strongroom_protocol::certificate::WriterCertificate::issue(
        &forger,
        certificate.namespace,
        certificate.epoch,
        certificate.principal,
        public,
    );
    let with_own_certificate = Record::sign(body, key_block, certificate, &forger);
    assert!(with_own_certificate.verify(&descriptor).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_and_forks_in_a_source_are_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    writer.snapshot("db", &[b"a"]).await;
    let session = writer.session("db").await;
    let (tree, record) = writer.uploaded(&session, "db", &[b"b"]).await;
    type Change = fn(&mut RecordBody);
    let changes: [Change; 3] = [
        |body| body.sequence = 3,
        |body| body.sequence = 1,
        |body| body.previous = RecordDigest([0; 32]),
    ];
    for change in changes {
        let record = writer.record(&session, "db", &tree.root, change);
        refused_with(session.commit(record.encode().into()).await, ErrorCode::OutOfSequence);
    }
    session.commit(record.encode().into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_after_the_lease_ended_is_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let (tree, record) = writer.uploaded(&session, "db", &[b"a"]).await;
    server.clock.advance(Duration::from_secs(601));
    refused_with(session.commit(record.encode().into()).await, ErrorCode::SessionEnded);
    // What arrived is still there for the next session.
    let next = writer.session("db").await;
    let chunks = digests(&tree.chunks);
    assert!(next.have(&chunks).await.unwrap().iter().all(|have| *have));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_the_session_does_not_know_is_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let (tree, _) = writer.uploaded(&session, "db", &[b"a"]).await;
    let other = writer.session("db").await;
    let record = writer.record(&other, "db", &tree.root, |_| {});
    refused_with(other.commit(record.encode().into()).await, ErrorCode::BadRecord);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_had_only_while_they_are_locked() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let (tree, record) = writer.uploaded(&session, "db", &[b"a"]).await;
    assert_eq!(session.have(&[tree.root.digest]).await.unwrap(), [false], "not locked yet");
    session.commit(record.encode().into()).await.unwrap();
    let next = writer.session("db").await;
    assert_eq!(next.have(&[tree.root.digest]).await.unwrap(), [true]);
    server.clock.advance(DAY * 70);
    let late = writer.session("db").await;
    assert_eq!(late.have(&[tree.root.digest]).await.unwrap(), [false], "its lock has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_and_stream_sessions_share_what_they_store() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let tree = Tree::seal(&writer.keys(), &[b"a", b"b"]);
    let small = writer.session_of("db", SizeClass::Small).await.unwrap();
    small.upload(frames(&tree.envelopes())).await.unwrap();
    let record = writer.record(&small, "db", &tree.root, |_| {});
    small.commit(record.encode().into()).await.unwrap();
    let stream = writer.session("db").await;
    let again = stream.upload(frames(&tree.envelopes())).await.unwrap();
    assert_eq!(again.stored_count, 0);
    // The inbox moves to a segment while the session lives; its pins must hold all the same.
    server.repository.store().fold_inbox().unwrap();
    let record = writer.record(&stream, "db", &tree.root, |_| {});
    stream.commit(record.encode().into()).await.unwrap();
    assert_eq!(snapshot_count(&server.repository), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_repository_refuses_uploads_and_serves_the_rest() {
    let server = TestServer::start_with(|config| config.store.reserve.0 = u64::MAX / 4).await;
    let writer = server.writer("erp").await;
    let refused = writer.session_of("db", SizeClass::Stream).await;
    refused_with(refused.map(drop), ErrorCode::RepositoryFull);
    writer.descriptor().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_a_snapshot_is_locked_children_not_before_parents() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let pieces: Vec<Vec<u8>> = (0..900u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    for days in [0u32, 1, 9, 40] {
        server.clock.advance(DAY * days);
        let session = writer.session("db").await;
        let (tree, record) = writer.uploaded(&session, "db", &pieces).await;
        session.commit(record.encode().into()).await.unwrap();
        let store = server.repository.store();
        let namespace = server.repository.registry().namespace(&writer.namespace()).unwrap();
        let day_of = |node: &strongroom_client::sealer::SealedNode| {
            let key = strongroom_server::rows::lock_key(namespace.number, &node.digest);
            let value = store.get(Family::Locks, &key).unwrap().expect("every node is locked");
            u32::from_be_bytes(value.try_into().unwrap())
        };
        let by_digest: std::collections::HashMap<_, _> =
            tree.nodes.iter().map(|node| (node.digest, day_of(node))).collect();
        let now = server.repository.moment().retention_seconds;
        let needed = u32::try_from((now + 30 * 86_400).div_ceil(86_400)).unwrap();
        for node in &tree.nodes {
            let own = by_digest[&node.digest];
            assert!(own >= needed, "locked until {own}, needed {needed}");
            let envelope = strongroom_protocol::envelope::Envelope::parse(&node.envelope).unwrap();
            for child in envelope.children() {
                assert!(by_digest.get(&child).is_none_or(|day| *day >= own));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_names_one_node_a_million_times_costs_its_distinct_nodes() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let keys = writer.keys();
    let session = writer.session("db").await;
    let (leaf, envelope) = seal_leaf(keys.plaintext(), b"");
    session.upload(frames(std::slice::from_ref(&envelope))).await.unwrap();
    let mut child = child_of(&leaf);
    let mut totals = Totals::of_chunk(envelope.len() as u64);
    // 2048 to the 8th power chunks, in eight nodes.
    for level in 1..=8 {
        let node = seal_node(keys.plaintext(), level, &vec![child; 2048]);
        session.upload(frames(&[node.envelope.clone().into()])).await.unwrap();
        totals = Totals::of_node(node.envelope.len() as u64, vec![totals; 2048]);
        child = node.as_child();
    }
    let root =
        SealedRoot { digest: child.digest, h: child.h, level: 8, plaintext_bytes: 0, totals };
    let record = writer.record(&session, "db", &root, |_| {});
    session.commit(record.encode().into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_node_is_locked_as_long_as_its_longest_parent() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let keys = writer.keys();
    let plaintext = keys.plaintext();
    let (leaf, envelope) = seal_leaf(plaintext, b"shared");
    let (other_leaf, other_envelope) = seal_leaf(plaintext, b"other");
    let shared = seal_node(plaintext, 1, &[child_of(&leaf)]);
    let old_low = seal_node(plaintext, 1, &[child_of(&other_leaf)]);
    let old = seal_node(plaintext, 2, &[old_low.as_child()]);
    let envelopes = |nodes: &[&SealedNode]| -> Vec<Bytes> {
        let nodes = nodes.iter().map(|node| Bytes::from(node.envelope.clone()));
        [envelope.clone(), other_envelope.clone()].into_iter().chain(nodes).collect()
    };
    let day_of = |node: &SealedNode| {
        let namespace = server.repository.registry().namespace(&writer.namespace()).unwrap();
        strongroom_server::lock::locked_until(
            server.repository.store(),
            namespace.number,
            &node.digest,
        )
        .unwrap()
        .expect("locked")
    };
    let commit = async |nodes: &[&SealedNode], level: u8, totals: Totals| {
        let session = writer.session("db").await;
        session.upload(frames(&envelopes(nodes))).await.unwrap();
        let top = nodes.last().unwrap();
        let (digest, h) = (top.digest, top.h);
        let root = SealedRoot { digest, h, level, plaintext_bytes: 0, totals };
        let record = writer.record(&session, "db", &root, |_| {});
        session.commit(record.encode().into()).await.unwrap();
    };
    let chunk = Totals::of_chunk(envelope.len() as u64);
    let other_chunk = Totals::of_chunk(other_envelope.len() as u64);
    let length = |node: &SealedNode| node.envelope.len() as u64;
    let old_totals =
        Totals::of_node(length(&old), [Totals::of_node(length(&old_low), [other_chunk])]);
    commit(&[&old_low, &old], 2, old_totals).await;
    server.clock.advance(DAY * 9);
    // Under one new parent (fresh date) and one old parent (raised one step more), in that order
    // and in the other: the shared node must get the later of the two.
    for order in [[false, true], [true, false]] {
        let new_low = seal_node(plaintext, 1, &[child_of(&leaf), child_of(&other_leaf)]);
        let new = seal_node(plaintext, 2, &[new_low.as_child(), old_low.as_child()]);
        let pair = order.map(|is_old| if is_old { old.as_child() } else { new.as_child() });
        let top = seal_node(plaintext, 3, &pair);
        let low = Totals::of_node(length(&old_low), [other_chunk]);
        let new_low_totals = Totals::of_node(length(&new_low), [chunk, other_chunk]);
        let new_totals = Totals::of_node(length(&new), [new_low_totals, low]);
        let totals = Totals::of_node(length(&top), [new_totals, old_totals]);
        commit(&[&shared, &old_low, &new_low, &old, &new, &top], 3, totals).await;
        for (parent, child) in [(&top, &old), (&top, &new), (&old, &old_low), (&new, &old_low)] {
            assert!(day_of(child) >= day_of(parent), "a child's lock ends before its parent's");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_session_that_overtakes_a_stream_takes_nothing_from_it() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let tree = Tree::seal(&writer.keys(), &[b"a", b"b"]);
    let stream = writer.session("stream").await;
    stream.upload(frames(&tree.chunks)).await.unwrap();
    let small = writer.session_of("small", SizeClass::Small).await.unwrap();
    small.upload(frames(&tree.envelopes())).await.unwrap();
    let record = writer.record(&small, "small", &tree.root, |_| {});
    small.commit(record.encode().into()).await.unwrap();
    // The stream's chunks are in the inbox now; it still stands on them, also after a fold.
    let nodes: Vec<Bytes> =
        tree.nodes.iter().map(|node| Bytes::from(node.envelope.clone())).collect();
    stream.upload(frames(&nodes)).await.unwrap();
    server.repository.store().fold_inbox().unwrap();
    stream.upload(frames(&nodes)).await.unwrap();
    let record = writer.record(&stream, "stream", &tree.root, |_| {});
    stream.commit(record.encode().into()).await.unwrap();
    assert_eq!(snapshot_count(&server.repository), 2);
}
