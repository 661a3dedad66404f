//! Hostile uploads: what is not an envelope, not where it belongs, or not what it claims.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use strongroom_client::connection::Body;
use strongroom_client::sealer::seal_node;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::limits::{ENVELOPE_MAX_BYTES, SMALL_SESSION_MAX_BYTES};
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::route::Route;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    TestServer, Tree, child_of, connect_to, digests, frames, refused_with, seal_leaf,
};

#[tokio::test(flavor = "multi_thread")]
async fn malformed_envelopes_are_refused_and_leave_nothing() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let (_, good) = seal_leaf(writer.keys().plaintext(), b"good");
    let changed = |at: usize, to: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = to;
        Bytes::from(bytes)
    };
    let mut long = good.to_vec();
    long.push(0);
    let cases = [
        ("version", changed(3, b'9')),
        ("suite", changed(4, 7)),
        ("kind", changed(5, 2)),
        ("level", changed(6, 1)),
        ("reserved", changed(7, 1)),
        ("truncated", good.slice(..good.len() - 1)),
        ("one byte more", long.into()),
        ("junk", vec![0x55; 600].into()),
    ];
    for (name, envelope) in cases {
        let digest = SealedDigest::of(&envelope);
        let outcome = session.upload(frames(&[envelope])).await;
        refused_with(outcome, ErrorCode::BadEnvelope);
        assert_eq!(session.have(&[digest]).await.unwrap(), [false], "{name}");
    }
    let mut oversized = (ENVELOPE_MAX_BYTES + 1).to_le_bytes().to_vec();
    oversized.extend_from_slice(&[0; 100]);
    let outcome = session.upload(Bytes::from(oversized).into()).await;
    refused_with(outcome, ErrorCode::BadEnvelope);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_inside_an_envelope_keeps_what_came_before() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let (_, one) = seal_leaf(writer.keys().plaintext(), b"one");
    let (_, two) = seal_leaf(writer.keys().plaintext(), b"two");
    let mut stream = Vec::new();
    for envelope in [&one, &two] {
        stream.extend_from_slice(&u32::try_from(envelope.len()).unwrap().to_le_bytes());
        stream.extend_from_slice(envelope);
    }
    stream.truncate(stream.len() - 5);
    let outcome = session.upload(Bytes::from(stream).into()).await;
    refused_with(outcome, ErrorCode::BadRequest);
    assert_eq!(session.have(&digests(&[one, two])).await.unwrap(), [true, false]);
}

/// Forwards one connection to `server`, and cuts it after `upward_bytes` from the client.
async fn cutting_network(server: SocketAddr, upward_bytes: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) =
            TcpStream::connect(server).await.unwrap().into_split();
        let mut upward = from_client.take(upward_bytes);
        tokio::select! {
            _ = tokio::io::copy(&mut upward, &mut to_server) => (),
            _ = tokio::io::copy(&mut from_server, &mut to_client) => (),
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_cuts_an_upload_loses_no_whole_envelope() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let seal = |seed: u64| {
        let mut noise = vec![0; 10_000];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
        seal_leaf(writer.keys().plaintext(), &noise).1
    };
    // Less than one batch of the server, and cut in the middle.
    let envelopes: Vec<Bytes> = (0..60).map(seal).collect();
    let network = cutting_network(server.address, 300_000).await;
    let client = writer.profile.client(&connect_to(network)).unwrap();
    let route = Route::Upload(writer.namespace(), session.opened().session);
    assert!(client.request_once(&route, "", frames(&envelopes)).await.is_err());
    // The server is told by its own connection, which nobody here can wait for; so it is asked.
    let asked = digests(&envelopes);
    let mut had = Vec::new();
    for _ in 0..500 {
        had = session.have(&asked).await.unwrap();
        if had[0] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let whole = had.iter().take_while(|had| **had).count();
    assert!((20..30).contains(&whole), "{whole} of the first 300 000 bytes were kept");
    assert!(had[whole..].iter().all(|had| !had));
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_under_known_digest() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    writer.snapshot("db", &[b"precious"]).await;
    let (_, precious) = seal_leaf(writer.keys().plaintext(), b"precious");
    // The server computes digests itself: junk can only ever land under junk's own digest.
    let session = writer.session("db").await;
    let mut junk = precious.to_vec();
    let last = junk.len() - 1;
    junk[last] ^= 1;
    session.upload(frames(&[junk.clone().into()])).await.unwrap();
    let proof = session.have(&digests(std::slice::from_ref(&precious))).await.unwrap();
    assert_eq!(proof, [true]);
    let proven = session.prove(&[3; 32], &[SealedDigest::of(&precious)]).await.unwrap();
    assert_eq!(proven, [*blake3::keyed_hash(&[3; 32], &precious).as_bytes()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_must_stand_on_children_that_the_session_knows() {
    let server = TestServer::start().await;
    let (writer, stranger) = (server.writer("erp").await, server.writer("other").await);
    let keys = writer.keys();
    let (leaf, envelope) = seal_leaf(keys.plaintext(), b"leaf");
    let session = writer.session("db").await;
    let node = seal_node(keys.plaintext(), 1, &[child_of(&leaf)]);
    let node_frames = || frames(&[Bytes::from(node.envelope.clone())]);
    refused_with(session.upload(node_frames()).await, ErrorCode::MissingChildren);

    // Another namespace's chunk does not count, and neither does another session's.
    let elsewhere = stranger.session("db").await;
    elsewhere.upload(frames(std::slice::from_ref(&envelope))).await.unwrap();
    refused_with(session.upload(node_frames()).await, ErrorCode::MissingChildren);
    let other_session = writer.session("db").await;
    other_session.upload(frames(std::slice::from_ref(&envelope))).await.unwrap();
    refused_with(session.upload(node_frames()).await, ErrorCode::MissingChildren);

    // Asking pins, and then it does.
    assert_eq!(session.have(&[leaf.digest]).await.unwrap(), [true]);
    session.upload(node_frames()).await.unwrap();

    // A level that skips one, or stands on its own level, is refused.
    let high = seal_node(keys.plaintext(), 2, &[child_of(&leaf)]);
    let outcome = session.upload(frames(&[high.envelope.into()])).await;
    refused_with(outcome, ErrorCode::BadEnvelope);
    let flat = seal_node(keys.plaintext(), 1, &[node.as_child()]);
    let outcome = session.upload(frames(&[flat.envelope.into()])).await;
    refused_with(outcome, ErrorCode::BadEnvelope);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_upload_the_same_new_chunk_at_once() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let pieces: Vec<Vec<u8>> = (0..200u32).map(|n| n.to_le_bytes().repeat(300)).collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let tree = Tree::seal(&writer.keys(), &pieces);
    let (one, two) = (writer.session("one").await, writer.session("two").await);
    let envelopes = tree.envelopes();
    let (first, second) =
        tokio::join!(one.upload(frames(&envelopes)), two.upload(frames(&envelopes)));
    let (first, second) = (first.unwrap(), second.unwrap());
    let count = u64::try_from(envelopes.len()).unwrap();
    assert_eq!(first.stored_count + second.stored_count, count, "stored once");
    assert_eq!(first.duplicate_count + second.duplicate_count, count);
    for (session, source) in [(one, "one"), (two, "two")] {
        let record = writer.record(&session, source, &tree.root, |_| {});
        session.commit(record.encode().into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_session_may_not_grow_large() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session_of("db", SizeClass::Small).await.unwrap();
    let keys = writer.keys();
    let noise = |seed: u64| -> Bytes {
        let mut bytes = vec![0; 4_000_000];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        seal_leaf(keys.plaintext(), &bytes).1
    };
    let mut sent = 0;
    let mut seed = 0;
    let outcome = loop {
        let envelope = noise(seed);
        sent += u64::try_from(envelope.len()).unwrap();
        seed += 1;
        match session.upload(frames(&[envelope])).await {
            Ok(_) => assert!(sent <= SMALL_SESSION_MAX_BYTES),
            Err(error) => break Err::<(), _>(error),
        }
    };
    refused_with(outcome, ErrorCode::TooLarge);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_make_no_sense_are_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let (ns, id) = (writer.namespace(), session.opened().session);
    let client = writer.client();
    let send = async |route: Route, body: Vec<u8>| {
        client.request_once(&route, "", Body::from(Bytes::from(body))).await
    };
    refused_with(send(Route::Have(ns, id), vec![1; 33]).await, ErrorCode::BadRequest);
    refused_with(send(Route::Prove(ns, id), vec![1; 31]).await, ErrorCode::BadRequest);
    refused_with(send(Route::OpenSession(ns), b"{}".to_vec()).await, ErrorCode::BadRequest);
    let unknown_field = br#"{"source":"a","size_class":"small","lock_wanted_seconds":0,"x":1}"#;
    refused_with(send(Route::OpenSession(ns), unknown_field.to_vec()).await, ErrorCode::BadRequest);
    refused_with(send(Route::Commit(ns, id), vec![1; 100]).await, ErrorCode::BadRecord);
    refused_with(send(Route::Renew(ns, id), vec![1]).await, ErrorCode::TooLarge);
}
