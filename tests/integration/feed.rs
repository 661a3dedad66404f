//! A replica that cannot reach its primary: the primary dials, and lends its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::server::conn::http1 as server_http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::{ErrorBody, ErrorCode};
use strongroom_protocol::id::{Label, PrincipalId, RecordDigest, SessionId, TlsKeyDigest};
use strongroom_protocol::lend::{LEND_PROOF_HEADER, LEND_PROTOCOL};
use strongroom_protocol::limits::LENT_CONNECTIONS_MAX;
use strongroom_protocol::role::{Capability, Role};
use strongroom_protocol::route::{Access, Route};
use strongroom_protocol::token::Token;
use strongroom_server::config::Config;
use strongroom_server::dial::dial;
use strongroom_server::error::ServerError;
use strongroom_server::feed;
use strongroom_server::feeds::FeedStatus;
use strongroom_server::followers::FollowState;
use strongroom_server::replica;
use strongroom_server::replica::keys::{PeerKeys, Whom};
use strongroom_server::repository::Repository;
use strongroom_server::repository::enrolment::TokenRequest;
use strongroom_server::stop;
use strongroom_server::tls::{client_config, server_config};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::gc::{noise, snapshot, tree_of};
use crate::harness::{Actor, TestServer, label, refused_with, unpack_dumps};
use crate::line::Line;
use crate::programs::{Served, text};
use crate::replica::{events, follow, quick, replica, restored, snapshots, status, synced, until};

fn feeder_token(replica: &TestServer, name: &str) -> Token {
    let request = TokenRequest {
        namespace: None,
        role: Role::Feeder,
        display_name: name.into(),
        ttl_seconds: 3600,
    };
    let token = replica.repository.make_token(request).unwrap();
    Token { addresses: replica.address.to_string(), ..token }
}

async fn try_feed(primary: &TestServer, token: &Token, name: &str) -> Result<Label, String> {
    let (_stopper, stop) = stop::signal();
    let text = token.to_text();
    let outcome = feed::enrol::add(&primary.repository, &text, Some(label(name)), stop);
    outcome.await.map_err(|error| error.to_string())
}

/// The replica calls the primary "office", the primary calls the replica "vault".
pub async fn feed(primary: &TestServer, replica: &TestServer) {
    try_feed(primary, &feeder_token(replica, "office"), "vault").await.unwrap();
}

fn feed_status(primary: &TestServer) -> FeedStatus {
    primary.repository.feed_statuses().unwrap().into_iter().next().unwrap()
}

pub async fn lent(primary: &TestServer, count: u32) {
    until("lent", || feed_status(primary).lent == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_dial_catches_up_and_gives_back_every_byte() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let mut writer = primary.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let first = writer.backup("db", &day0).await.unwrap();
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    lent(&primary, 4).await;
    assert_eq!(status(&replica, "office").addresses, "it dials; 4 connections");
    let second = writer.backup("db", &day1).await.unwrap();
    synced(&replica, &primary, "office").await;

    // Both are on record: who is followed here, and who may ask there.
    let ledger_key = primary.repository.keys().ledger_public();
    let is_added = |event: &Event| match event {
        Event::PrimaryAdded { ledger_key: added, .. } => *added == ledger_key,
        _ => false,
    };
    assert!(events(&replica.repository).iter().any(is_added));
    let fed = feed_status(&primary).principal;
    let is_fed =
        |event: &Event| matches!(event, Event::FeedAdded { principal, .. } if *principal == fed);
    assert!(events(&primary.repository).iter().any(is_fed));

    primary.stop().await;
    until("noticed", || status(&replica, "office").state == FollowState::Unreachable).await;
    for (day, summary) in [(day0, first), (day1, second)] {
        let bytes = restored(&replica, &writer, summary.snapshot).await;
        assert!(bytes == std::fs::read(&day).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_servers_start_again_and_lending_goes_on() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    feed(&primary, &replica).await;
    let (address, here) = (replica.address, primary.address);
    writer.snapshot("db", &[b"one"]).await;
    synced(&replica, &primary, "office").await;

    let at = move |config: &mut Config| {
        quick(config);
        config.listen = address;
    };
    let (folder, clock) = replica.stop().await;
    until("noticed", || !feed_status(&primary).trouble.is_empty()).await;
    writer.snapshot("db", &[b"two"]).await;
    let replica = TestServer::open_with(folder, clock, at).await;
    synced(&replica, &primary, "office").await;

    let primary = primary.restart_with(|config| config.listen = here).await;
    writer.snapshot("db", &[b"three"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 3);
    assert_eq!(feed_status(&primary).trouble, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn lent_connections_that_break_are_lent_again_and_nothing_is_torn() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let mut writer = primary.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    let line = Line::to(replica.address).await;
    let token = Token { addresses: line.address.to_string(), ..feeder_token(&replica, "office") };
    // What the proxy counts as answers is what the replica says; so cut by hand.
    try_feed(&primary, &token, "vault").await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        line.cut_now();
    }
    synced(&replica, &primary, "office").await;
    let bytes = restored(&replica, &writer, summary.snapshot).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
}

/// A feeder's key, used by hand: opens connections to the replica, and lends them.
struct Stranger {
    keys: PeerKeys,
    pin: TlsKeyDigest,
    address: SocketAddr,
    /// Of a captured primary; who stole the other key alone signs with one of his own.
    ledger: Arc<Repository>,
}

impl Stranger {
    /// With all keys of the primary.
    fn capturing(primary: &TestServer, replica: &TestServer) -> Self {
        let (folder, vault) = (primary.repository.folder(), label("vault"));
        let keys = PeerKeys::load(folder, Whom::Feed(&vault)).unwrap();
        let pin = replica.repository.keys().tls_key_digest();
        let ledger = primary.repository.clone();
        Self { keys, pin, address: replica.address, ledger }
    }

    async fn ask(&self, route: &Route, upgrade: Option<&str>) -> Response<hyper::body::Incoming> {
        let Self { keys, pin, address, ledger } = self;
        let tls = client_config(keys.certificate.clone(), keys.tls_key.clone_key(), *pin).unwrap();
        let dialled = dial(&address.to_string(), &tls).await.unwrap();
        let (mut sender, driver) = http1::handshake(TokioIo::new(dialled.stream)).await.unwrap();
        tokio::spawn(driver.with_upgrades());
        let mut request =
            Request::builder().method(route.method()).uri(route.path()).header(HOST, "replica");
        if let Some(protocol) = upgrade {
            let proof = ledger.keys().prove_lending(&dialled.exporter);
            request = request.header(CONNECTION, "upgrade").header(UPGRADE, protocol);
            request = request.header(LEND_PROOF_HEADER, proof);
        }
        sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    }

    async fn lend(&self) -> Upgraded {
        let answer = self.ask(&Route::Lend, Some(LEND_PROTOCOL)).await;
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        hyper::upgrade::on(answer).await.unwrap()
    }

    async fn code(&self, route: &Route, upgrade: Option<&str>) -> Option<ErrorCode> {
        let answer = self.ask(route, upgrade).await;
        if answer.status().is_success() || answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return None;
        }
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        Some(serde_json::from_slice::<ErrorBody>(&body).unwrap().code)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_lends_can_do_nothing_else() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"one"]).await;
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    let stranger = Stranger::capturing(&primary, &replica);
    let before = events(&replica.repository).len();
    for route in Route::examples(writer.namespace(), SessionId([1; 16]), record.digest()) {
        let code = stranger.code(&route, None).await;
        match route.access() {
            Access::Needs(Capability::LendConnection) => {
                assert_eq!(code, Some(ErrorCode::BadRequest), "without an upgrade");
                assert_eq!(stranger.code(&route, Some("h2c")).await, Some(ErrorCode::BadRequest));
            }
            // Its own key, if it has the ledger key too: `rolling_peers.rs`.
            Access::Needs(Capability::RollKeys) => assert_eq!(code, Some(ErrorCode::BadRequest)),
            Access::Needs(_) => assert_eq!(code, Some(ErrorCode::NotAllowed), "{}", route.name()),
            // Without a token an enrolment is none.
            Access::Anyone if route == Route::Enroll => assert_eq!(code, Some(ErrorCode::BadToken)),
            Access::Anyone => assert_eq!(code, None, "{}", route.name()),
        }
    }
    assert_eq!(events(&replica.repository).len(), before);
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_in_the_primarys_place_is_believed_nothing_and_raises_no_alarm() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    writer.snapshot("db", &[b"one"]).await;
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    // The key is stolen, and the primary is away. Another server's answers come instead.
    let other = TestServer::start().await;
    let stranger = Stranger::capturing(&primary, &replica);
    let size = primary.repository.ledger().head().size;
    primary.repository.pause_feed(&label("vault"), true).unwrap();
    lent(&primary, 0).await;
    let note = other.repository.ledger().head().note;
    let stream = stranger.lend().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noting = asked.clone();
    tokio::spawn(async move {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            noting.lock().push((request.method().clone(), request.uri().path().to_owned()));
            let body = format!("{{\"checkpoint\":{},\"proof\":\"\"}}", serde_json::json!(note));
            let answer = Response::new(Full::new(Bytes::from(body)));
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        drop(server_http1::Builder::new().serve_connection(stream, service).await);
    });
    until("noticed", || status(&replica, "office").state == FollowState::Failing).await;
    let seen = status(&replica, "office");
    assert!(seen.trouble.contains("wrong"), "{}", seen.trouble);
    assert_eq!(seen.followed_entries, size);
    assert!(!events(&replica.repository).iter().any(|e| matches!(e, Event::PrimaryRefused { .. })));
    // What it is asked is what a primary is asked; nothing of this server is told.
    assert!(asked.lock().iter().all(|(method, _)| method == hyper::Method::GET));
    // The primary comes back, and lending goes on beside it.
    primary.repository.pause_feed(&label("vault"), false).unwrap();
    writer.snapshot("db", &[b"two"]).await;
    until("both are here", || snapshots(&replica, &writer.namespace()).len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_are_lent_than_a_replica_takes() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    feed(&primary, &replica).await;
    lent(&primary, 4).await;
    let stranger = Stranger::capturing(&primary, &replica);
    let mut kept = Vec::new();
    for _ in 4..LENT_CONNECTIONS_MAX {
        kept.push(stranger.lend().await);
        let count = 4 + kept.len();
        let text = format!("it dials; {count} connections");
        until("taken in", || status(&replica, "office").addresses == text).await;
    }
    let code = stranger.code(&Route::Lend, Some(LEND_PROTOCOL)).await;
    assert_eq!(code, Some(ErrorCode::TooMany));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_dials_alone_is_lent_nothing() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    let other = TestServer::start().await;
    let mut stranger = Stranger::capturing(&primary, &replica);
    stranger.ledger = other.repository.clone();
    let code = stranger.code(&Route::Lend, Some(LEND_PROTOCOL)).await;
    assert_eq!(code, Some(ErrorCode::NotAllowed));
    lent(&primary, 4).await;
    assert_eq!(status(&replica, "office").addresses, "it dials; 4 connections");
}

/// By the real program, whose log can be read.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_dials_alone_is_an_alarm_in_the_log() {
    let (primary, other, served) =
        (TestServer::start().await, TestServer::start().await, Served::start());
    let made = served.command(&["token", "--role", "feeder", "--name", "office"]);
    let token = Token::from_text(&text(&made.stdout)).unwrap();
    try_feed(&primary, &token, "vault").await.unwrap();
    let log = || std::fs::read_to_string(served.folder.path().join("log")).unwrap();
    lent(&primary, 4).await;
    assert!(!log().contains("ALARM"), "{}", log());
    let (folder, vault) = (primary.repository.folder(), label("vault"));
    let stranger = Stranger {
        keys: PeerKeys::load(folder, Whom::Feed(&vault)).unwrap(),
        pin: token.tls_key,
        address: served.address().parse().unwrap(),
        ledger: other.repository.clone(),
    };
    let code = stranger.code(&Route::Lend, Some(LEND_PROTOCOL)).await;
    assert_eq!(code, Some(ErrorCode::NotAllowed));
    let alarm = "ALARM: somebody lends a connection with a primary's key and without its ledger";
    until("an alarm", || log().contains(alarm)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_proof_of_history_raises_no_alarm_beside_honest_ones() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    writer.snapshot("db", &[b"one"]).await;
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    let stranger = Stranger::capturing(&primary, &replica);
    let stream = stranger.lend().await;
    let (asked, asking) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let service = service_fn(move |_: Request<hyper::body::Incoming>| {
            let told = asked.send(());
            let body = r#"{"code":"not_found","message":"","request_id":"","missing":[]}"#;
            let answer = Response::builder().status(404).body(Full::new(Bytes::from(body)));
            async move { told.map(|()| answer.unwrap()).map_err(std::io::Error::other) }
        });
        drop(server_http1::Builder::new().serve_connection(stream, service).await);
    });
    let (mut asking, mut asked, mut made) = (asking, 0, 1);
    while asked < 3 {
        match tokio::time::timeout(Duration::from_millis(200), asking.recv()).await {
            Ok(question) => asked += question.map_or_else(|| panic!("it was let go"), |_| 1),
            // What was used last is used first: more to ask about takes more connections.
            Err(_) => {
                made += 1;
                assert!(made < 200, "never asked");
                let news = noise(made, 100);
                snapshot(&writer, "db", &tree_of(&writer, &news)).await;
            }
        }
    }
    writer.snapshot("db", &[b"the last"]).await;
    drop(asking);
    synced(&replica, &primary, "office").await;
    let is_refusal = |event: &Event| matches!(event, Event::PrimaryRefused { .. });
    assert!(!events(&replica.repository).iter().any(is_refusal));
    let there = snapshots(&replica, &writer.namespace()).len();
    assert_eq!(u64::try_from(there).unwrap(), made + 1);
}

/// A replica that was captured: it has its key, and asks over what it is lent whatever it likes.
async fn ask_over_lent(
    primary: &TestServer,
    replica: &TestServer,
    routes: Vec<Route>,
) -> Vec<(Route, StatusCode, Option<ErrorCode>)> {
    let tls = server_config(replica.repository.keys()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token = Token {
        addresses: listener.local_addr().unwrap().to_string(),
        ..feeder_token(replica, "office")
    };
    // The enrolment itself goes to the honest server; what dials later meets the captured one.
    let line = Line::to(replica.address).await;
    let honest = Token { addresses: line.address.to_string(), ..token };
    try_feed(primary, &honest, "vault").await.unwrap();
    line.retarget(listener.local_addr().unwrap());
    line.cut_now();
    let (taken, lending) = tokio::sync::oneshot::channel();
    let taken = Arc::new(Mutex::new(Some(taken)));
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(stream) = TlsAcceptor::from(tls.clone()).accept(socket).await else { continue };
            let taken = taken.clone();
            tokio::spawn(async move {
                let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
                    let turned = hyper::upgrade::on(&mut request);
                    let taken = taken.clone();
                    tokio::spawn(async move {
                        let stream = turned.await.unwrap();
                        if let Some(taken) = taken.lock().take() {
                            drop(taken.send(stream));
                        }
                    });
                    let answer = Response::builder()
                        .status(StatusCode::SWITCHING_PROTOCOLS)
                        .header(CONNECTION, "upgrade")
                        .header(UPGRADE, LEND_PROTOCOL)
                        .body(Empty::<Bytes>::new());
                    async move { answer }
                });
                let connection =
                    server_http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                drop(connection.with_upgrades().await);
            });
        }
    });
    let (mut sender, driver) = http1::handshake(lending.await.unwrap()).await.unwrap();
    tokio::spawn(driver);
    let mut answers = Vec::new();
    for route in routes {
        let request = Request::builder()
            .method(route.method())
            .uri(route.path())
            .header(HOST, "primary")
            .body(Empty::<Bytes>::new())
            .unwrap();
        sender.ready().await.unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let code = serde_json::from_slice::<ErrorBody>(&body).ok().map(|body| body.code);
        answers.push((route, status, code));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_lent_connection_a_captured_replica_may_ask_what_a_replica_may_and_no_more() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"one"]).await;
    let digest: RecordDigest = record.digest();
    let routes = Route::examples(writer.namespace(), SessionId([1; 16]), digest).to_vec();
    let answers = ask_over_lent(&primary, &replica, routes).await;
    assert_eq!(
        answers.len(),
        Route::examples(writer.namespace(), SessionId([1; 16]), digest).len()
    );
    let mut allowed = 0;
    for (route, status, code) in answers {
        match route.access() {
            Access::Needs(capability) if !Role::Replica.may(capability) => {
                assert_eq!(code, Some(ErrorCode::NotAllowed), "{}", route.name());
            }
            _ => {
                assert_ne!(code, Some(ErrorCode::NotAllowed), "{}", route.name());
                allowed += u32::from(status == StatusCode::OK);
            }
        }
    }
    assert!(allowed > 5, "{allowed}");
    assert_eq!(snapshots(&primary, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_either_side_ends_it_at_the_next_request() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    // At the primary: what is asked is refused, and nothing is lent.
    let fed = feed_status(&primary).principal;
    primary.repository.revoke(fed).unwrap();
    writer.snapshot("db", &[b"one"]).await;
    let is_cut = || {
        let state = status(&replica, "office").state;
        [FollowState::Revoked, FollowState::Unreachable].contains(&state)
    };
    until("refused", is_cut).await;
    lent(&primary, 0).await;
    assert!(feed_status(&primary).is_revoked);
    assert!(snapshots(&replica, &writer.namespace()).is_empty());
    // Once more, from the beginning; then at the replica.
    feed::remove(&primary.repository, &label("vault")).unwrap();
    replica::remove(&replica.repository, &label("office")).unwrap();
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
    let feeder = status(&replica, "office").principal;
    replica.repository.revoke(feeder).unwrap();
    lent(&primary, 0).await;
    until("told", || feed_status(&primary).trouble.contains("unknown_principal")).await;
    writer.snapshot("db", &[b"two"]).await;
    until("noticed", || status(&replica, "office").state == FollowState::Unreachable).await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_feed_lends_nothing_and_a_removed_one_leaves_no_principal() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    feed(&primary, &replica).await;
    synced(&replica, &primary, "office").await;
    primary.repository.pause_feed(&label("vault"), true).unwrap();
    lent(&primary, 0).await;
    writer.snapshot("db", &[b"one"]).await;
    until("noticed", || status(&replica, "office").state == FollowState::Unreachable).await;
    primary.repository.pause_feed(&label("vault"), false).unwrap();
    synced(&replica, &primary, "office").await;

    feed::remove(&primary.repository, &label("vault")).unwrap();
    assert!(primary.repository.feeds().unwrap().is_empty());
    let tls_key = replica.repository.keys().tls_key_digest();
    assert!(primary.repository.registry().principal(&tls_key).is_none());
    let key = primary.repository.folder().join("keys/feeds/vault");
    assert!(!key.exists());
    replica::remove(&replica.repository, &label("office")).unwrap();
    let active = |principals: Vec<strongroom_server::repository::enrolment::PrincipalSummary>| {
        principals.into_iter().filter(|p| p.role == Role::Feeder && p.revoked_ms == 0).count()
    };
    assert_eq!(active(replica.repository.principals().unwrap()), 0);
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1, "what came stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_do_not_fit_are_refused_and_leave_nothing() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let pulling =
        Token { addresses: replica.address.to_string(), ..replica.token(None, Role::Replica) };
    let refused = try_feed(&primary, &pulling, "vault").await.unwrap_err();
    assert!(refused.contains("--role feeder"), "{refused}");
    let token = feeder_token(&replica, "office");
    let elsewhere = Token { addresses: primary.address.to_string(), ..token.clone() };
    assert!(try_feed(&primary, &elsewhere, "vault").await.is_err(), "another server's key");
    let unnamed = TokenRequest {
        namespace: None,
        role: Role::Feeder,
        display_name: "Head Office".into(),
        ttl_seconds: 60,
    };
    let refused = replica.repository.make_token(unnamed);
    assert!(matches!(refused, Err(ServerError::Operator(text)) if text.contains("--name")));
    // A server that is followed already is not followed twice, and its second token is not used.
    follow(&replica, &primary, "office").await;
    let refused = try_feed(&primary, &token, "vault").await.unwrap_err();
    assert!(refused.contains("already"), "{refused}");
    assert!(primary.repository.feeds().unwrap().is_empty());
    replica::remove(&replica.repository, &label("office")).unwrap();
    try_feed(&primary, &token, "vault").await.unwrap();
    let again = try_feed(&primary, &token, "vault").await.unwrap_err();
    assert!(again.contains("fed already"), "{again}");
    // A client is told where such a token belongs.
    let refused = Actor::enroll(replica.connect(), feeder_token(&replica, "other"), false).await;
    assert!(matches!(refused, Err(ClientError::Usage(text)) if text.contains("feed add")));
    // Who lends to itself gets nothing.
    let own = feeder_token(&primary, "me");
    assert!(try_feed(&primary, &own, "mirror").await.is_err());
    let client = replica.principal(None, Role::Operator).await;
    refused_with(
        client.client().request_once(&Route::Lend, "", Body::empty()).await,
        ErrorCode::NotAllowed,
    );
    assert_ne!(status(&replica, "office").principal, PrincipalId::LOCAL);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_whose_answer_was_lost_goes_on_with_the_same_token() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let token = feeder_token(&replica, "office");
    try_feed(&primary, &token, "vault").await.unwrap();
    // As if the primary had died before it wrote its row: the keys are there, the row is not.
    primary.repository.remove_feed(&label("vault")).unwrap();
    try_feed(&primary, &token, "vault").await.unwrap();
    synced(&replica, &primary, "office").await;
    assert_eq!(replica.repository.primaries().unwrap().len(), 1);
}
