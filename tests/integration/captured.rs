//! What a captured party of replication cannot do, where no other test shows it: the primary, the
//! replica, a client, and somebody on the line between the servers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{RecordDigest, SessionId};
use strongroom_protocol::record::{Record, RecordBody};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::{Access, Route};
use strongroom_server::followers::FollowState;

use crate::gc::{assert_whole, noise, snapshot, tree_of};
use crate::harness::{TestServer, digests, label, refused_with, two_sites};
use crate::line::Line;
use crate::lying_server::{Lies, captured};
use crate::promote::{add_standby, pair};
use crate::replica::{add, events, quick, replica, snapshots, status, synced, token_at, until};
use crate::replica_hostile::forge;
use crate::replica_line::impatient;

/// Requests that a server answered or refused, but for those that ask who it is.
fn requests(server: &TestServer) -> u64 {
    let text = String::from_utf8(server.repository.metrics().render().unwrap()).unwrap();
    let is_counted = |line: &&str| {
        line.starts_with("strongroom_requests_total{") && !line.contains("\"identity\"")
    };
    let lines = text.lines().filter(is_counted);
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_replica_changes_nothing_at_its_primary() {
    let (primary, replica, writer) = pair().await;
    replica.repository.pause_primary(&label("office"), true).unwrap();
    // Whoever has the replica has a principal of this role there.
    let thief = primary.principal(None, Role::Replica).await;
    let size = || primary.repository.ledger().head().size;
    let (before, listed) = (size(), snapshots(&primary, &writer.namespace()));
    let examples = Route::examples(writer.namespace(), SessionId([1; 16]), listed[0].record);
    let mut may_call = Vec::new();
    for route in examples {
        let outcome = thief.client().request_once(&route, "", Body::empty()).await;
        let code = outcome.err().and_then(|error| error.code());
        if matches!(route.access(), Access::Needs(_)) && code != Some(ErrorCode::NotAllowed) {
            may_call.push((route.method(), route.name()));
        }
    }
    may_call.retain(|(method, _)| *method != "GET");
    assert_eq!(may_call, [("POST", "read"), ("POST", "report_head"), ("POST", "roll_keys")]);
    // A head that the primary did not sign freezes nothing, nor does one that it has.
    let report = async |note: String| {
        let body = Bytes::from(note).into();
        thief.client().request_once(&Route::ReportHead, "", body).await
    };
    let own = replica.repository.ledger().head().note;
    refused_with(report(own).await, ErrorCode::BadRequest);
    let genuine = primary.repository.ledger().head().note;
    let larger = genuine.replacen(&format!("\n{}\n", size()), "\n999999\n", 1);
    assert_ne!(larger, genuine);
    refused_with(report(larger).await, ErrorCode::BadRequest);
    report(genuine).await.unwrap();
    assert!(!primary.repository.moment().is_suspect);
    assert!(snapshots(&primary, &writer.namespace()) == listed);
    // Its ledger has what was read, and nothing else.
    let since = events(&primary.repository).split_off(usize::try_from(before).unwrap());
    assert!(since.iter().all(|event| matches!(event, Event::RecordRead { .. })), "{since:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_is_nobody_on_its_replica() {
    let (primary, replica, _writer) = pair().await;
    assert!(replica.repository.principals().unwrap().is_empty());
    let keys = primary.repository.keys();
    assert!(replica.repository.registry().principal(&keys.tls_key_digest()).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_no_writer_of_the_namespace_signed_is_not_taken() {
    let primary = TestServer::start().await;
    let replica = TestServer::start_with(quick).await;
    let (writer, evil) = (primary.writer("erp").await, primary.writer("evil").await);
    let namespace = writer.namespace();
    let (real, _) = writer.snapshot("db", &[b"one"]).await;
    let lock = snapshots(&primary, &namespace)[0].lock;
    let lies = Arc::new(Lies::default());
    let address = captured(primary.repository.clone(), lies.clone()).await;
    add(&replica, &token_at(&primary, address), "office", &["erp"]).await;
    synced(&replica, &primary, "office").await;

    // The tree is there, the body is right in all: only who signed it is not.
    let body = RecordBody { sequence: 2, previous: real.digest(), ..real.body.clone() };
    let session = evil.session("db").await;
    let (tree, _) = evil.uploaded(&session, "db", &[b"x"]).await;
    let by_another = evil.record(&session, "db", &tree.root, |signed| *signed = body.clone());
    let mut flipped = Record { body: body.clone(), ..real.clone() };
    flipped.signature[7] ^= 1;
    let borrowed = Record { certificate: real.certificate.clone(), ..by_another.clone() };
    let root = real.body.root;
    for (count, record) in [by_another, flipped, borrowed].into_iter().enumerate() {
        let digest = record.digest();
        lies.records.lock().unwrap().insert(digest, record.encode());
        let commit = 90 + u64::try_from(count).unwrap();
        let event = Event::Committed { commit, record: digest, root, sequence: 2, lock };
        forge(&primary, namespace, event);
        let says = || status(&replica, "office").trouble.contains(&digest.to_string());
        until("said", says).await;
        let seen = status(&replica, "office");
        assert_eq!(seen.state, FollowState::Failing, "{seen:?}");
        let listed: Vec<RecordDigest> =
            snapshots(&replica, &namespace).iter().map(|row| row.record).collect();
        assert_eq!(listed, [real.digest()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_client_is_revoked_at_each_server_by_itself() {
    let (primary, replica, writer) = pair().await;
    let second = add_standby(&writer, &replica).await;
    primary.repository.revoke(writer.profile.settings().principal).unwrap();
    let ask = async |profile: &strongroom_client::profile::Profile, server: &TestServer| {
        let client = profile.client(&server.connect()).unwrap();
        let route = Route::Descriptor(writer.namespace());
        client.request_once(&route, "", Body::empty()).await
    };
    refused_with(ask(&writer.profile, &primary).await, ErrorCode::UnknownPrincipal);
    ask(&second, &replica).await.unwrap();
    replica.repository.revoke(second.settings().principal).unwrap();
    refused_with(ask(&second, &replica).await, ErrorCode::UnknownPrincipal);
    // Keys of one server are nobody's on the other.
    let crossed: Result<_, ClientError> = ask(&writer.profile, &replica).await;
    assert!(crossed.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_heard_on_the_line_names_nothing_and_replayed_does_nothing() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("payroll").await;
    let line = Line::to(primary.address).await;
    line.listen();
    let token = token_at(&primary, line.address);
    add(&replica, &token, "office", &[]).await;
    let tree = tree_of(&writer, &noise(1, 5));
    let record = snapshot(&writer, "salaries", &tree).await;
    synced(&replica, &primary, "office").await;
    let bytes_here = status(&replica, "office").received_bytes;
    replica.stop().await;
    let [asked, answered] = line.heard();
    assert!(u64::try_from(answered.len()).unwrap() > bytes_here && bytes_here > 90_000);
    let envelope = &tree.chunks[1][500..524];
    let digest = digests(&tree.chunks)[1];
    let secrets: [&[u8]; 6] =
        [b"payroll", b"salaries", &*token.secret, &record.0, &digest.0, envelope];
    for secret in secrets {
        for stream in [&asked, &answered] {
            assert!(!stream.windows(secret.len()).any(|window| window == secret));
        }
    }
    let (size, count) = (primary.repository.ledger().head().size, requests(&primary));
    let mut replayed = TcpStream::connect(primary.address).unwrap();
    replayed.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The server may be gone before all is said.
    let _ = replayed.write_all(&asked);
    let mut answer = Vec::new();
    let _ = replayed.read_to_end(&mut answer);
    assert!(answer.len() < 10_000, "{} bytes", answer.len());
    assert_eq!((primary.repository.ledger().head().size, requests(&primary)), (size, count));
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_that_are_flipped_on_the_line_only_delay() {
    let (primary, replica, writer) = two_sites(impatient).await;
    let line = Line::to(primary.address).await;
    add(&replica, &token_at(&primary, line.address), "office", &[]).await;
    synced(&replica, &primary, "office").await;
    line.flip_every(100_000);
    let tree = tree_of(&writer, &noise(1, 400));
    let record = snapshot(&writer, "db", &tree).await;
    let is_here = || !snapshots(&replica, &writer.namespace()).is_empty();
    until("flipped", || line.flipped_count() >= 5 || is_here()).await;
    assert!(line.flipped_count() >= 5, "{}", line.flipped_count());
    line.flip_every(0);
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace())[0].record, record);
    assert_whole(&replica.repository, &writer, &tree);
    let is_refusal = |event: &Event| matches!(event, Event::PrimaryRefused { .. });
    assert!(!events(&replica.repository).iter().any(is_refusal));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_poses_as_the_primary_is_told_nothing() {
    let (primary, other, replica) =
        (TestServer::start().await, TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    writer.snapshot("db", &[b"one"]).await;
    let line = Line::to(primary.address).await;
    add(&replica, &token_at(&primary, line.address), "office", &[]).await;
    synced(&replica, &primary, "office").await;
    let followed = status(&replica, "office").followed_entries;
    line.redirect(other.address);
    until("noticed", || status(&replica, "office").state == FollowState::Unreachable).await;
    let counter = &replica.repository.metrics().replica.failures;
    let failures = || counter.with_label_values(&["office"]).get();
    let before = failures();
    until("tried again", || failures() >= before + 2).await;
    assert_eq!(requests(&other), 0, "more than who it is was asked of a server with another key");
    assert_eq!(status(&replica, "office").followed_entries, followed);
    line.redirect(primary.address);
    writer.snapshot("db", &[b"two"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 2);
}
