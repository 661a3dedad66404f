//! Requests that are none, two in one, never end, end early, or are never read to the end.

use std::time::Duration;

use bytes::Bytes;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::limits::{HEAD_MAX_BYTES, HEADERS_MAX, UPLOAD_MAX_BYTES};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_server::config::{Period, Size};
use strongroom_server::refusals::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Actor, TestServer, Tree, digests, frames};
use crate::raw::{Raw, is_well, refused, request, request_of};

const IDENTITY: &str = "GET /v1/identity HTTP/1.1\r\nhost: x\r\n";

fn short(millis: u64) -> Period {
    Period(Duration::from_millis(millis))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_1_1_is_refused_and_closed() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(70_000));
    let lines = |count: usize| "x: y\r\n".repeat(count);
    let many = format!("{IDENTITY}{}\r\n", lines(HEADERS_MAX as usize));
    let large = format!("{IDENTITY}x: {}\r\n\r\n", "a".repeat(HEAD_MAX_BYTES as usize));
    let cases: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Reason::BadHttp),
        ("HTTP/3", b"GET / HTTP/3.0\r\n\r\n".to_vec(), Reason::BadHttp),
        ("TLS in TLS", vec![0x16, 3, 1, 2, 0, 1, 0], Reason::BadHttp),
        ("zeros", vec![0; 5000], Reason::BadHttp),
        ("no number", body_of("content-length: five\r\n"), Reason::BadHttp),
        ("less than nothing", body_of("content-length: -1\r\n"), Reason::BadHttp),
        ("more than any", body_of("content-length: 99999999999999999999999\r\n"), Reason::BadHttp),
        ("two lengths", body_of("content-length: 3\r\ncontent-length: 4\r\n"), Reason::BadHttp),
        ("another coding", body_of("transfer-encoding: gzip\r\n"), Reason::BadHttp),
        ("chunked first", body_of("transfer-encoding: chunked, gzip\r\n"), Reason::BadHttp),
        ("a folded line", body_of("x: a\r\n b\r\n"), Reason::BadHttp),
        ("a space before the colon", body_of("content-length : 3\r\n"), Reason::BadHttp),
        ("too many headers", many.into_bytes(), Reason::HeadTooLarge),
        ("too large a head", large.into_bytes(), Reason::HeadTooLarge),
        ("too long a path", long_path.into_bytes(), Reason::HeadTooLarge),
    ];
    for (what, bytes, reason) in cases {
        let before = refused(&server, reason);
        let mut raw = Raw::of(&server, &honest).await;
        // It may be closed before all of it was said.
        let _ = raw.send(&bytes).await;
        let said = String::from_utf8(raw.until_closed().await).unwrap();
        let is_refusal = said.is_empty() || said.starts_with("HTTP/1.1 4");
        assert!(is_refusal && !said.contains("ledger_key"), "{what}: {said}");
        drop(raw);
        is_well(&server, &honest).await;
        assert_eq!(refused(&server, reason), before + 1, "{what}");
    }
}

/// A request to open a session, with these headers in place of the right one.
fn body_of(headers: &str) -> Vec<u8> {
    format!("POST /v1/witness HTTP/1.1\r\nhost: x\r\n{headers}\r\nabc").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_cannot_be_smuggled_into_another() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let inner = String::from_utf8(request_of(&Route::Identity, b"")).unwrap();
    // By its length the body holds a request, by its chunks it is empty. The chunks count, and the
    // connection ends: what comes after is nobody's.
    let length = inner.len() + 5;
    let both = format!(
        "POST /v1/witness HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\
         transfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
    );
    // The same length twice is one length.
    let twice = format!(
        "POST /v1/witness HTTP/1.1\r\nhost: x\r\ncontent-length: {0}\r\ncontent-length: {0}\r\n\
         \r\n{inner}",
        inner.len()
    );
    for (what, bytes) in [("both", both), ("twice", twice)] {
        let mut raw = Raw::of(&server, &honest).await;
        let answer = raw.ask(bytes.as_bytes()).await.unwrap();
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        if what == "both" {
            assert_eq!(raw.until_closed().await, b"");
        } else {
            assert_eq!(raw.ask(inner.as_bytes()).await.unwrap().status, 200);
        }
        drop(raw);
        is_well(&server, &honest).await;
    }
    // More than was announced is the next request, or none.
    let mut raw = Raw::of(&server, &honest).await;
    raw.send(&[&request("POST", "/v1/witness", b"abc")[..], b"more than that\r\n\r\n"].concat())
        .await
        .unwrap();
    assert_eq!(raw.answer().await.unwrap().status, 400);
    let rest = String::from_utf8(raw.until_closed().await).unwrap();
    assert!(rest.starts_with("HTTP/1.1 400"), "{rest}");
    drop(raw);
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_targets_lead_to_a_route_or_nowhere() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let mut raw = Raw::of(&server, &honest).await;
    for (line, status) in [
        // RFC 9112 demands that the absolute form is taken; whose name it has means nothing here.
        ("GET https://elsewhere.example/v1/identity HTTP/1.1", 200),
        ("GET /v1/identity?x=1 HTTP/1.1", 200),
        ("GET //v1/identity HTTP/1.1", 404),
        ("GET /v1/../v1/identity HTTP/1.1", 404),
        ("GET /v1/%69dentity HTTP/1.1", 404),
        ("GET /v1/identity/ HTTP/1.1", 404),
        ("get /v1/identity HTTP/1.1", 404),
        ("OPTIONS * HTTP/1.1", 404),
        ("TRACE /v1/identity HTTP/1.1", 404),
        ("GET /v1/ns/0000/descriptor HTTP/1.1", 404),
    ] {
        let answer = raw.ask(format!("{line}\r\nhost: x\r\n\r\n").as_bytes()).await;
        assert_eq!(answer.unwrap_or_else(|| panic!("{line}")).status, status, "{line}");
    }
    // A tunnel is not opened.
    let answer = raw.ask(b"CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.is_none_or(|answer| answer.status == 404));
    raw.cut();
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_and_very_many_requests_are_answered_in_order_one_at_a_time() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let mut raw = Raw::of(&server, &honest).await;
    let routes = [Route::Identity, Route::Descriptor(honest.namespace()), Route::Consistency(1)];
    for _ in 0..20 {
        let all: Vec<u8> =
            routes.iter().cycle().take(60).flat_map(|route| request_of(route, b"")).collect();
        raw.send(&all).await.unwrap();
        let mut first = Vec::new();
        for index in 0..60 {
            let answer = raw.answer().await.unwrap();
            assert_eq!(answer.status, 200);
            assert!(server.repository.metrics().requests_in_flight.get() <= 1);
            if index < routes.len() {
                first.push(answer.body);
            } else {
                assert_eq!(answer.body, first[index % routes.len()], "{index}");
            }
        }
    }
    drop(raw);
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_end_end() {
    let server = TestServer::start_with(|config| {
        config.limits.head = short(1000);
        config.limits.body_idle = short(700);
        config.limits.rate_min = Size(20_000);
        config.limits.rate_window = short(1400);
    })
    .await;
    let honest = server.writer("erp").await;
    let namespace = honest.namespace();

    // A head that never ends, however fast.
    let mut raw = Raw::of(&server, &honest).await;
    raw.send(format!("{IDENTITY}x: ").as_bytes()).await.unwrap();
    while raw.send(&[b'a'; 8192]).await.is_ok() {}
    drop(raw);
    is_well(&server, &honest).await;
    assert_eq!(refused(&server, Reason::HeadTooLarge), 1);

    // And however slow.
    let mut raw = Raw::of(&server, &honest).await;
    raw.send(IDENTITY.as_bytes()).await.unwrap();
    dribble(&mut raw).await;
    drop(raw);
    is_well(&server, &honest).await;

    // Chunks without end, on a route that reads its body whole.
    let session = honest.session("db").await;
    let have = Route::Have(namespace, session.opened().session);
    let mut raw = Raw::of(&server, &honest).await;
    let answer = endless_chunks(&mut raw, &have).await;
    // Whoever still sends may see the end of the connection and not the answer.
    assert!(answer.is_none_or(|status| status == ErrorCode::TooLarge.status()), "{answer:?}");
    drop((raw, session));
    is_well(&server, &honest).await;
    assert_eq!(refused(&server, Reason::Code(ErrorCode::TooLarge)), 1);

    // Bodies that stop, and bodies that drip.
    for (drips, reason) in [(false, Reason::BodySilent), (true, Reason::BodySlow)] {
        let session = honest.session("db").await;
        let upload = Route::Upload(namespace, session.opened().session);
        let mut raw = Raw::of(&server, &honest).await;
        let whole = request_of(&upload, &[0; 5000]);
        raw.send(&whole[..whole.len() - 4000]).await.unwrap();
        if drips {
            dribble(&mut raw).await;
        }
        let status = raw.answer().await.map(|answer| answer.status);
        assert!(status.is_none_or(|status| status == ErrorCode::BadRequest.status()));
        drop((raw, session));
        is_well(&server, &honest).await;
        assert!(refused(&server, reason) >= 1, "{reason:?}");
    }
}

/// Says a byte now and then until nobody listens.
async fn dribble(raw: &mut Raw) {
    while raw.send(b"1").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The status of the answer to a body without end.
async fn endless_chunks(raw: &mut Raw, route: &Route) -> Option<u16> {
    let head = format!(
        "{} {} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
        route.method(),
        route.path()
    );
    raw.send(head.as_bytes()).await.unwrap();
    let chunk = [&b"4000\r\n"[..], &[7; 0x4000], b"\r\n"].concat();
    let mut said = Vec::new();
    let (mut from, mut to) = tokio::io::split(&mut raw.stream);
    let sending = async {
        while to.write_all(&chunk).await.is_ok() {
            to.flush().await.ok();
        }
    };
    let hearing = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            said.extend_from_slice(&buffer[..count]);
            if said.windows(4).any(|four| four == b"\r\n\r\n") {
                break;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = hearing => {}
    }
    let line = String::from_utf8_lossy(&said).into_owned();
    line.split(' ').nth(1).and_then(|status| status.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_longer_than_they_may_be_are_refused_before_they_come() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let session = honest.session("db").await;
    let (namespace, id) = (honest.namespace(), session.opened().session);
    for route in Route::examples(namespace, id, strongroom_protocol::id::RecordDigest([2; 32])) {
        let may = server.repository.registry();
        let key = honest.profile.folder().tls_identity().unwrap().key_digest().unwrap();
        let role = may.principal(&key).unwrap().role;
        let is_open = match route.access() {
            strongroom_protocol::route::Access::Anyone => true,
            strongroom_protocol::route::Access::Needs(capability) => role.may(capability),
        };
        if !is_open {
            continue;
        }
        let (method, path) = (route.method(), route.path());
        let length = route.body_max_bytes() + 1;
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        let mut raw = Raw::of(&server, &honest).await;
        let answer = raw.ask(head.as_bytes()).await.unwrap();
        assert_eq!(answer.status, ErrorCode::TooLarge.status(), "{}", route.name());
        assert!(length <= UPLOAD_MAX_BYTES + 1);
    }
    drop(session);
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_total_time_however_lively_it_is() {
    let server = TestServer::start_with(|config| {
        config.limits.request = short(2000);
        config.limits.rate_min = Size(0);
    })
    .await;
    let honest = server.writer("erp").await;
    let session = honest.session("db").await;
    let upload = Route::Upload(honest.namespace(), session.opened().session);
    let mut raw = Raw::of(&server, &honest).await;
    let whole = request_of(&upload, &[0; 50_000]);
    raw.send(&whole[..whole.len() - 50_000]).await.unwrap();
    dribble(&mut raw).await;
    drop((raw, session));
    is_well(&server, &honest).await;
    assert_eq!(refused(&server, Reason::RequestTime), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_ends() {
    let server = TestServer::start_with(|config| {
        config.limits.rate_window = short(200);
        config.limits.body_idle = short(400);
    })
    .await;
    let honest = server.writer("erp").await;
    let reader = server.principal(Some("erp"), Role::Restore).await;
    let mut random = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let session = honest.session("db").await;
    let (tree, record) = honest.uploaded(&session, "db", &[&random]).await;
    session.commit(record.encode().into()).await.unwrap();
    drop(session);
    let largest = tree.chunks.iter().max_by_key(|chunk| chunk.len()).unwrap().clone();
    let digest = digests(&[largest])[0];
    // 400 MB, of which nothing is taken: more than the system holds back for anybody.
    let read = request_of(&Route::Read(honest.namespace()), &digest.0.repeat(100));
    let mut raw = Raw::of(&server, &reader).await;
    raw.send(&read).await.unwrap();
    is_well(&server, &honest).await;
    assert!(refused(&server, Reason::AnswerSlow) >= 1);
    drop(raw);
}

/// Cuts off `message` after each number of its first bytes.
async fn cut_at_each(server: &TestServer, honest: &Actor, message: &[u8]) {
    for cut in 0..message.len() {
        let mut raw = Raw::of(server, honest).await;
        raw.send(&message[..cut]).await.unwrap();
        // In order, or without a word.
        if cut.is_multiple_of(2) {
            let _ = raw.stream.shutdown().await;
        }
        raw.cut();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_ends_early_at_any_byte_leaves_nothing_visible() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let operator = server.principal(None, Role::Operator).await;
    let namespace = honest.namespace();
    let session = honest.session("db").await;
    let id = session.opened().session;
    let tree = Tree::seal(&honest.keys(), &[b"one", b"another"]);
    let body = frames(&tree.envelopes());
    let mut bytes = Vec::new();
    collect(body, &mut bytes).await;
    let upload = request_of(&Route::Upload(namespace, id), &bytes);
    let record = honest.record(&session, "db", &tree.root, |_| {}).encode();
    let commit = request_of(&Route::Commit(namespace, id), &record);
    let visible = async || {
        let list = Route::Snapshots(namespace);
        let page = operator.client().request(&list, "", Bytes::new().into()).await.unwrap();
        let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
        page["rows"].as_array().unwrap().len()
    };
    cut_at_each(&server, &honest, &upload).await;
    assert_eq!(visible().await, 0);
    // Whole now; then its commit is cut.
    let mut raw = Raw::of(&server, &honest).await;
    assert_eq!(raw.ask(&upload).await.unwrap().status, 200);
    cut_at_each(&server, &honest, &commit).await;
    assert_eq!(visible().await, 0);
    assert_eq!(raw.ask(&commit).await.unwrap().status, 200);
    assert_eq!(visible().await, 1);
    // Whoever ends its connection inside a body is counted.
    assert!(refused(&server, Reason::BodyCut) > 0);
    println!("cut at each of {} and {} bytes", upload.len(), commit.len());
    drop((raw, session));
    is_well(&server, &honest).await;
}

async fn collect(mut body: strongroom_client::connection::Body, into: &mut Vec<u8>) {
    use http_body_util::BodyExt;
    while let Some(Ok(frame)) = body.frame().await {
        into.extend_from_slice(&frame.into_data().unwrap());
    }
}
