//! What a principal may hold open, how fast it may ask, and bodies that are not as long as was
//! announced.

use std::time::Duration;

use http_body_util::BodyExt;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::limits::HAVE_MAX_COUNT;
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::route::Route;
use strongroom_server::config::Period;
use strongroom_server::refusals::Reason;
use tokio::io::AsyncWriteExt;

use crate::harness::{TestServer, Tree, digests, frames, refused_with};
use crate::raw::{Raw, is_refused, is_well, refused, request_announcing};

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_open_leases_have_a_bound_for_each_principal() {
    let server = TestServer::start_with(|config| config.limits.sessions_per_principal = 3).await;
    let (one, other) = (server.writer("one").await, server.writer("other").await);
    let mut held = Vec::new();
    for source in ["a", "b", "c"] {
        held.push(one.session(source).await);
    }
    for class in [SizeClass::Stream, SizeClass::Small] {
        refused_with(one.session_of("d", class).await.map(drop), ErrorCode::TooMany);
    }
    assert_eq!(server.repository.sessions().count(), 3);
    // Others have places of their own.
    let theirs = other.session("a").await;
    // One that is closed makes room for one.
    held.pop().unwrap().close().await;
    held.push(one.session("d").await);
    refused_with(one.session_of("e", SizeClass::Stream).await.map(drop), ErrorCode::TooMany);
    // Those that say nothing end with their leases, and hold nothing any more.
    server.clock.advance(server.repository.config().limits.lease.0 + Duration::from_secs(1));
    server.repository.tick();
    assert_eq!(server.repository.sessions().count(), 0);
    refused_with(held[0].have(&[SealedDigest([7; 32])]).await, ErrorCode::SessionEnded);
    for source in ["a", "b", "c"] {
        held.push(one.session(source).await);
    }
    drop((held, theirs));
    is_well(&server, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_have_a_rate_for_each_session() {
    let server =
        TestServer::start_with(|config| config.limits.have_per_second = HAVE_MAX_COUNT).await;
    let honest = server.writer("erp").await;
    let (fast, slow) = (honest.session("a").await, honest.session("b").await);
    let question = vec![SealedDigest([7; 32]); HAVE_MAX_COUNT as usize];
    // A burst of four seconds' worth, and not one more; the clock stands still.
    for _ in 0..4 {
        fast.have(&question).await.unwrap();
    }
    refused_with(fast.have(&question).await, ErrorCode::TooMany);
    refused_with(fast.have(&question[..1]).await, ErrorCode::TooMany);
    slow.have(&question).await.unwrap();
    server.clock.advance(Duration::from_secs(1));
    fast.have(&question).await.unwrap();
    refused_with(fast.have(&question[..1]).await, ErrorCode::TooMany);
    // However long nobody asks, no more than that comes together.
    server.clock.advance(Duration::from_secs(300));
    for _ in 0..4 {
        fast.have(&question).await.unwrap();
    }
    refused_with(fast.have(&question[..1]).await, ErrorCode::TooMany);
    assert_eq!(refused(&server, Reason::Code(ErrorCode::TooMany)), 4);
    drop((fast, slow));
    is_well(&server, &honest).await;
}

fn upload_of(route: &Route, announced: usize, body: &[u8]) -> Vec<u8> {
    request_announcing(route.method(), &route.path(), announced, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_longer_or_shorter_than_announced_end_and_leave_nothing_half() {
    let server = TestServer::start_with(|config| {
        config.limits.body_idle = Period(Duration::from_millis(700));
    })
    .await;
    let honest = server.writer("erp").await;
    let session = honest.session("db").await;
    let upload = Route::Upload(honest.namespace(), session.opened().session);
    let tree = Tree::seal(&honest.keys(), &[b"one"]);
    let chunk = digests(&tree.chunks)[1];
    let body = frames(&tree.chunks[1..2]).collect().await.unwrap().to_bytes();

    // Longer: what is announced is read, and is half an envelope; the rest is no request.
    let mut raw = Raw::of(&server, &honest).await;
    raw.send(&upload_of(&upload, body.len() - 10, &body)).await.unwrap();
    let answer = raw.answer().await.unwrap();
    assert_eq!(answer.status, ErrorCode::BadEnvelope.status(), "{answer:?}");
    let rest = String::from_utf8(raw.until_closed().await).unwrap();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400"), "{rest}");
    assert_eq!(session.have(&[chunk]).await.unwrap(), [false]);

    // Shorter, and silent then.
    let mut raw = Raw::of(&server, &honest).await;
    raw.send(&upload_of(&upload, body.len() + 10, &body[..body.len() - 10])).await.unwrap();
    let status = raw.answer().await.map(|answer| answer.status);
    assert!(status.is_none_or(|status| status == ErrorCode::BadRequest.status()), "{status:?}");
    is_refused(&server, Reason::BodySilent, 1).await;
    assert_eq!(session.have(&[chunk]).await.unwrap(), [false]);

    // Shorter, and gone then.
    let mut raw = Raw::of(&server, &honest).await;
    raw.send(&upload_of(&upload, body.len() + 10, &body[..body.len() - 10])).await.unwrap();
    let _ = raw.stream.shutdown().await;
    raw.cut();
    is_refused(&server, Reason::BodyCut, 1).await;
    assert_eq!(session.have(&[chunk]).await.unwrap(), [false]);

    // As long as announced.
    let mut raw = Raw::of(&server, &honest).await;
    assert_eq!(raw.ask(&upload_of(&upload, body.len(), &body)).await.unwrap().status, 200);
    assert_eq!(session.have(&[chunk]).await.unwrap(), [true]);
    drop((raw, session));
    is_well(&server, &honest).await;
}
