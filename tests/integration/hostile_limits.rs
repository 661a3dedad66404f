//! What one principal may take: connections, memory, answers "have", entries of the ledger. And
//! that what is refused is counted by reason.

use std::sync::Arc;
use std::time::Duration;

use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_client::{epoch, offer};
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, SealedDigest, SessionId};
use strongroom_protocol::limits::ENVELOPE_MAX_BYTES;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_server::config::{Period, Size};
use strongroom_server::refusals::Reason;
use tokio::sync::Notify;

use crate::harness::{Actor, DAY, TestServer, digests, frames, refused_with};
use crate::loss::new_machine;
use crate::raw::{Raw, config_of, is_refused, is_well, refused, request_of};
use crate::replica::events;

const MIB: u64 = 1 << 20;

async fn is_served(raw: &mut Raw) -> bool {
    raw.ask(&request_of(&Route::Identity, b"")).await.is_some_and(|answer| answer.status == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_principal_has_its_share_of_connections_and_all_of_them_theirs() {
    let server = TestServer::start_with(|config| {
        config.limits.connections = 8;
        config.limits.connections_per_principal = 4;
    })
    .await;
    let (one, other) = (server.writer("one").await, server.writer("other").await);
    is_well(&server, &one).await;
    let mut held = Vec::new();
    for actor in [&one, &other] {
        for number in 0..5 {
            let mut raw = Raw::of(&server, actor).await;
            // Seven places in all: the eighth is for strangers.
            let most = if std::ptr::eq(actor, &one) { 4 } else { 3 };
            assert_eq!(is_served(&mut raw).await, number < most, "{number}");
            held.push(raw);
        }
    }
    is_refused(&server, Reason::PrincipalConnections, 1).await;
    is_refused(&server, Reason::TooManyConnections, 2).await;
    // Who comes to enrol still gets in.
    let mut stranger = Raw::open(server.address, &crate::raw::stranger()).await.unwrap();
    assert!(is_served(&mut stranger).await);
    drop((held, stranger));
    for _ in 0..500 {
        if server.repository.metrics().connections.get() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    is_well(&server, &one).await;
}

/// Begins an upload whose one envelope is announced as long as any may be, sends `bytes` of it, and
/// goes on byte by byte until it is told to end.
async fn hoard(server: &TestServer, actor: &Actor, session: SessionId, bytes: usize) -> Raw {
    let mut raw = Raw::of(server, actor).await;
    let upload = Route::Upload(actor.namespace(), session);
    let whole = request_of(&upload, &vec![0; ENVELOPE_MAX_BYTES as usize + 4]);
    let head = whole.len() - (ENVELOPE_MAX_BYTES as usize + 4);
    raw.send(&whole[..head]).await.unwrap();
    raw.send(&ENVELOPE_MAX_BYTES.to_le_bytes()).await.unwrap();
    raw.send(&vec![0; bytes]).await.unwrap();
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_take_no_more_memory_than_they_may_and_nobody_takes_all_of_it() {
    let server = TestServer::start_with(|config| {
        config.limits.body_bytes = Size(16 * MIB);
        config.limits.rate_min = Size(0);
        config.limits.body_idle = Period(Duration::from_secs(1));
    })
    .await;
    let (greedy, honest) = (server.writer("greedy").await, server.writer("erp").await);
    let session = greedy.session("db").await;
    let id = session.opened().session;
    let bodies = &server.repository.guards().bodies;
    let most = 7 * MIB / 2;
    let end = Arc::new(Notify::new());
    let mut hoarding = Vec::new();
    for number in 1..=2 {
        let mut raw = hoard(&server, &greedy, id, most as usize).await;
        while bodies.held() < number * most {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let end = end.clone();
        hoarding.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = end.notified() => return,
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                }
                if raw.send(b"0").await.is_err() {
                    return;
                }
            }
        }));
    }
    // Its share is used up: a third upload waits, and is told so.
    let mut third = hoard(&server, &greedy, id, MIB as usize).await;
    let answer = third.answer().await.unwrap();
    assert_eq!(answer.status, ErrorCode::TooMany.status(), "{answer:?}");
    assert_eq!(refused(&server, Reason::BodyMemory), 1);
    assert!(bodies.held() <= 8 * MIB, "{}", bodies.held());
    // Another principal does not notice.
    let large: Vec<u8> = vec![7; 2 << 20];
    honest.snapshot("db", &[&large, b"and more"]).await;
    end.notify_waiters();
    for hoarding in hoarding {
        hoarding.await.unwrap();
    }
    drop((third, session));
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_bounded_in_all_and_for_each_principal() {
    let server = TestServer::start_with(|config| {
        config.limits.requests = 16;
        config.limits.rate_min = Size(0);
    })
    .await;
    let (greedy, honest) = (server.writer("greedy").await, server.writer("erp").await);
    let session = greedy.session("db").await;
    let id = session.opened().session;
    let (requests, metrics) = (&server.repository.guards().requests, server.repository.metrics());
    let upload = request_of(&Route::Upload(greedy.namespace(), id), &[1, 0, 0, 0, 7]);
    let (most, last) = upload.split_at(upload.len() - 1);
    let is = async |in_flight: u64, waiting: i64| {
        while (requests.held(), metrics.requests_waiting.get()) != (in_flight, waiting) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // An eighth of 16 is its own. One after the other, so that the first two are in flight.
    let begin = async |in_flight, waiting| {
        let mut raw = Raw::of(&server, &greedy).await;
        raw.send(most).await.unwrap();
        is(in_flight, waiting).await;
        raw
    };
    let end = async |mut raw: Raw| {
        raw.send(last).await.unwrap();
        assert_eq!(raw.answer().await.unwrap().status, ErrorCode::BadEnvelope.status());
    };
    let (first, second) = (begin(1, 0).await, begin(2, 0).await);
    let mut waiting = [begin(2, 1).await, begin(2, 2).await, begin(2, 3).await];
    // Others do not wait.
    honest.snapshot("db", &[b"beside them"]).await;
    is(2, 3).await;
    // Each that is answered lets one in.
    end(first).await;
    is(2, 2).await;
    end(second).await;
    is(2, 1).await;
    // Whichever of them is in flight, all are ended before one is answered.
    for raw in &mut waiting {
        raw.send(last).await.unwrap();
    }
    for raw in &mut waiting {
        assert_eq!(raw.answer().await.unwrap().status, ErrorCode::BadEnvelope.status());
    }
    is(0, 0).await;
    drop(waiting);
    // Each that goes does, and one that goes while it waits keeps no place when its turn comes.
    let (first, second, third) = (begin(1, 0).await, begin(2, 0).await, begin(2, 1).await);
    first.cut();
    is(2, 0).await;
    begin(2, 1).await.cut();
    end(second).await;
    end(third).await;
    is(0, 0).await;
    drop(session);
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn have_answers_that_are_never_committed_are_counted_and_end_in_lack() {
    let server = TestServer::start_with(|config| config.limits.hits_uncommitted = 20).await;
    let honest = server.writer("erp").await;
    let session = honest.session("db").await;
    let pieces: [&[u8]; 4] = [b"one", b"two", b"three", b"four"];
    let (tree, record) = honest.uploaded(&session, "db", &pieces).await;
    session.commit(record.encode().into()).await.unwrap();
    drop(session);
    let known = digests(&tree.chunks);
    assert_eq!(known.len(), 5, "four chunks and the catalogue");
    let uncommitted = || server.repository.metrics().hits_uncommitted.get();
    assert_eq!(uncommitted(), 0, "what was committed is not counted");
    // One that asks and goes, again and again.
    for round in 1..=3 {
        let asking = honest.session("other").await;
        assert_eq!(asking.have(&known).await.unwrap(), [true; 5]);
        asking.close().await;
        assert_eq!(uncommitted(), 5 * round);
    }
    // A live session counts as well: 15 are owed, 5 more may be told.
    let asking = honest.session("other").await;
    assert_eq!(asking.have(&known).await.unwrap(), [true; 5]);
    assert_eq!(asking.have(&known).await.unwrap(), [false; 5]);
    assert_eq!(refused(&server, Reason::Hits), 1);
    asking.close().await;
    drop(asking);
    // Whoever has data to back up does so all the same, and stores nothing twice.
    let session = honest.session("db").await;
    assert_eq!(session.have(&known).await.unwrap(), [false; 5]);
    let uploaded = session.upload(frames(&tree.envelopes())).await.unwrap();
    assert_eq!(uploaded.stored_count, 0);
    let again = honest.record(&session, "db", &tree.root, |_| {});
    session.commit(again.encode().into()).await.unwrap();
    // Others are told what they ask.
    let second = new_machine(&server, honest.kit()).await;
    let asking = second.session("db").await;
    assert_eq!(asking.have(&known).await.unwrap(), [true; 5]);
    drop(asking);
    // A day forgets as many as may be owed.
    server.clock.advance(DAY);
    let asking = honest.session("db").await;
    assert_eq!(asking.have(&known).await.unwrap(), [true; 5]);
    drop((asking, session));
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_descriptors_are_entered_once_a_minute() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let reader = server.principal(Some("erp"), Role::Restore).await;
    let newest = writer.descriptor().await;
    let kit = writer.kit();
    let next = offer::next_after(&newest).unwrap().sign(&kit.authority_key);
    let route = Route::OfferDescriptor(writer.namespace());
    let send = async |actor: &Actor, bytes: Vec<u8>| {
        actor.client().request(&route, "", Body::from(bytes)).await.map(drop)
    };
    send(&writer, next.clone()).await.unwrap();
    let twin = epoch::begin(&newest).unwrap().sign(&kit.authority_key);
    let mut later = offer::next_after(&newest).unwrap();
    later.version = 9;
    let later = later.sign(&kit.authority_key);
    let entered = || {
        let all = events(&server.repository);
        all.iter().filter(|event| matches!(event, Event::DescriptorRefused { .. })).count()
    };
    for _ in 0..20 {
        refused_with(send(&writer, twin.clone()).await, ErrorCode::BadDescriptor);
    }
    assert_eq!((entered(), refused(&server, Reason::NotEntered)), (1, 19));
    // Another reason, another principal, another minute.
    refused_with(send(&writer, later).await, ErrorCode::BadDescriptor);
    assert_eq!(entered(), 2);
    refused_with(send(&reader, twin.clone()).await, ErrorCode::BadDescriptor);
    assert_eq!(entered(), 3);
    server.clock.advance(Duration::from_secs(59));
    refused_with(send(&writer, twin.clone()).await, ErrorCode::BadDescriptor);
    assert_eq!(entered(), 3);
    server.clock.advance(Duration::from_secs(1));
    refused_with(send(&writer, twin).await, ErrorCode::BadDescriptor);
    assert_eq!(entered(), 4);
    assert_eq!(refused(&server, Reason::Code(ErrorCode::BadDescriptor)), 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_counted_by_its_reason() {
    let server = TestServer::start_with(|config| {
        config.limits.sessions_per_principal = 1;
        config.limits.stranger = Period(Duration::from_secs(2));
    })
    .await;
    let honest = server.writer("erp").await;
    let operator = server.principal(None, Role::Operator).await;
    let (record, _) = honest.snapshot("db", &[b"locked"]).await;
    let namespace = honest.namespace();
    let session = honest.session("db").await;
    let id = session.opened().session;
    let digest = SealedDigest([9; 32]).0;
    let other = NamespaceId([7; 32]);
    let cases: [(&Actor, Route, &[u8], ErrorCode); 9] = [
        (&honest, Route::Snapshots(namespace), b"", ErrorCode::NotAllowed),
        (&honest, Route::Descriptor(other), b"", ErrorCode::NotFound),
        (&honest, Route::OpenSession(namespace), b"{", ErrorCode::BadRequest),
        (&honest, Route::Enroll, b"SRE1", ErrorCode::BadToken),
        (&honest, Route::Have(namespace, SessionId([9; 16])), &digest, ErrorCode::SessionEnded),
        (&honest, Route::Upload(namespace, id), &[1, 0, 0, 0, 7], ErrorCode::BadEnvelope),
        (&honest, Route::Commit(namespace, id), b"SRR1", ErrorCode::BadRecord),
        (&honest, Route::OfferDescriptor(namespace), b"SRD1", ErrorCode::BadDescriptor),
        (&operator, Route::Forget(namespace, record.digest()), b"", ErrorCode::Locked),
    ];
    for (actor, route, body, code) in cases {
        let reason = Reason::of_code(code).unwrap();
        let before = refused(&server, reason);
        let mut raw = Raw::of(&server, actor).await;
        let answer = raw.ask(&request_of(&route, body)).await.unwrap();
        assert_eq!(answer.status, code.status(), "{}: {answer:?}", route.name());
        assert_eq!(refused(&server, reason), before + 1, "{}", route.name());
    }
    let second = honest.session_of("db", strongroom_protocol::message::SizeClass::Stream).await;
    refused_with(second, ErrorCode::TooMany);
    assert_eq!(refused(&server, Reason::Code(ErrorCode::TooMany)), 1);
    // A stranger that says nothing.
    let mut silent = Raw::open(server.address, &crate::raw::stranger()).await.unwrap();
    assert_eq!(silent.until_closed().await, b"");
    is_refused(&server, Reason::StrangerTime, 1).await;
    let unknown = Raw::open(server.address, &crate::raw::stranger()).await;
    let answer = unknown.unwrap().ask(&request_of(&Route::Checkpoint, b"")).await.unwrap();
    assert_eq!(answer.status, ErrorCode::UnknownPrincipal.status());
    assert_eq!(refused(&server, Reason::Code(ErrorCode::UnknownPrincipal)), 1);
    // All of it, and what is still 0, is shown.
    let shown = String::from_utf8(server.repository.metrics().render().unwrap()).unwrap();
    for reason in Reason::all() {
        let (name, count) = (reason.name(), refused(&server, reason));
        let line = format!("strongroom_refusals_total{{reason=\"{name}\"}} {count}\n");
        assert!(shown.contains(&line), "{line}");
    }
    session.close().await;
    drop(session);
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_enrols_over_a_connection_keeps_it() {
    let server = TestServer::start_with(|config| {
        config.limits.stranger = Period(Duration::from_secs(2));
    })
    .await;
    let token = server.token(Some("erp"), Role::Backup);
    let actor = Actor::enroll(server.connect(), token, true).await;
    let actor: Result<Actor, ClientError> = actor;
    let actor = actor.unwrap();
    let mut raw = Raw::open(server.address, &config_of(&actor)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(is_served(&mut raw).await, "a principal's connection does not end as a stranger's");
    assert_eq!(refused(&server, Reason::StrangerTime), 0);
    drop(raw);
    is_well(&server, &actor).await;
}
