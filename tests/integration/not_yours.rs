//! "Not yours" and "not there" are one answer: status, headers and body, for each role and route.

use std::collections::BTreeMap;

use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, RecordDigest, SealedDigest, SessionId};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::{Access, Route};

use crate::harness::{Actor, TestServer};
use crate::raw::{Raw, RawAnswer, request, request_of};

/// What a peer can tell one answer from another by: all but when it was given, and its number.
fn told(answer: RawAnswer) -> (u16, BTreeMap<String, String>, String) {
    let RawAnswer { status, mut headers, body } = answer;
    assert!(headers.remove("date").is_some());
    let mut body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let id = body["request_id"].take();
    assert!(id.as_str().is_some_and(|id| id.len() == 16), "{id}");
    (status, headers, body.to_string())
}

/// Asks the same of what is there and of what is not; counts how often.
struct Asking<'a> {
    server: &'a TestServer,
    actor: &'a Actor,
    compared: usize,
}

impl Asking<'_> {
    async fn is_one_answer(&mut self, routes: [Route; 2], body: &[u8]) -> u16 {
        let mut answers = Vec::new();
        for route in routes {
            let mut raw = Raw::of(self.server, self.actor).await;
            answers.push(told(raw.ask(&request_of(&route, body)).await.unwrap()));
        }
        assert_eq!(answers[0], answers[1], "{}", routes[0].name());
        self.compared += 1;
        answers[0].0
    }
}

/// A body that the route would take.
fn body_for(route: &Route, digest: &SealedDigest) -> Vec<u8> {
    match route {
        Route::Have(..) | Route::Read(_) => digest.0.to_vec(),
        Route::Prove(..) => [[7; 32], digest.0].concat(),
        Route::OpenSession(_) => {
            br#"{"source": "db", "size_class": "small", "lock_wanted_seconds": 0}"#.to_vec()
        }
        Route::PlaceHold(..) | Route::ReleaseHold(..) => br#"{"reason": "a case"}"#.to_vec(),
        Route::Retain(..) => br#"{"lock_wanted": 0, "mode": null}"#.to_vec(),
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn not_yours_is_answered_like_not_there_on_every_route_for_every_role() {
    let server = TestServer::start().await;
    let owner = server.writer("one").await;
    server.writer("other").await;
    let (record, _) = owner.snapshot("db", &[b"secret"]).await;
    let (record, root) = (record.digest(), record.body.root);
    let session = owner.session("db").await;
    let id = session.opened().session;
    let (theirs, nobodys) = (owner.namespace(), NamespaceId([7; 32]));
    for role in Role::OF_CLIENTS {
        let actor = match role {
            Role::Backup => server.writer("third").await,
            role => server.principal(Some("other"), role).await,
        };
        let mut asking = Asking { server: &server, actor: &actor, compared: 0 };
        let there = Route::examples(theirs, id, record);
        let not_there = Route::examples(nobodys, SessionId([9; 16]), RecordDigest([9; 32]));
        for routes in there.into_iter().zip(not_there) {
            let (there, not_there) = routes;
            let Access::Needs(capability) = there.access() else { continue };
            // Those of the whole server may see each namespace, where their role allows it.
            if there.namespace().is_none() || (!role.is_of_namespace() && role.may(capability)) {
                continue;
            }
            let body = body_for(&there, &root);
            let status = asking.is_one_answer([there, not_there], &body).await;
            let expected = match role.may(capability) {
                true => ErrorCode::NotFound.status(),
                false => ErrorCode::NotAllowed.status(),
            };
            assert_eq!(status, expected, "{role} {}", there.name());
        }
        let least = if role.is_of_namespace() { 20 } else { 8 };
        assert!(asking.compared >= least, "{role}: {}", asking.compared);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_a_namespace_what_is_anothers_is_not_there() {
    let server = TestServer::start().await;
    let owner = server.writer("one").await;
    let (record, _) = owner.snapshot("db", &[b"secret"]).await;
    let session = owner.session("db").await;
    let id = session.opened().session;
    let root = record.body.root;
    // A second machine of the same namespace, and a reader of another one.
    let stranger = server.writer("other").await;
    let (his, _) = stranger.snapshot("db", &[b"his"]).await;
    let ns = stranger.namespace();
    let mut asking = Asking { server: &server, actor: &stranger, compared: 0 };
    let never = SessionId([9; 16]);
    for routes in [
        [Route::Have(ns, id), Route::Have(ns, never)],
        [Route::Prove(ns, id), Route::Prove(ns, never)],
        [Route::Upload(ns, id), Route::Upload(ns, never)],
        [Route::Renew(ns, id), Route::Renew(ns, never)],
        [Route::Close(ns, id), Route::Close(ns, never)],
    ] {
        let body = body_for(&routes[0], &root);
        let status = asking.is_one_answer(routes, &body).await;
        assert_eq!(status, ErrorCode::SessionEnded.status(), "{}", routes[0].name());
    }
    let reader = server.principal(Some("other"), Role::Restore).await;
    let mut asking = Asking { server: &server, actor: &reader, compared: 0 };
    let (theirs, nobodys) = (record.digest(), RecordDigest([9; 32]));
    for routes in [
        [Route::Record(ns, theirs), Route::Record(ns, nobodys)],
        [Route::Receipt(ns, theirs), Route::Receipt(ns, nobodys)],
    ] {
        let status = asking.is_one_answer(routes, b"").await;
        assert_eq!(status, ErrorCode::NotFound.status(), "{}", routes[0].name());
    }
    // Envelopes: one that is elsewhere and one that is nowhere, alone and beside one of his own.
    let mut answers = Vec::new();
    for digest in [root, SealedDigest([9; 32])] {
        for body in [digest.0.to_vec(), [his.body.root.0, digest.0].concat()] {
            let mut raw = Raw::of(&server, &reader).await;
            let answer = raw.ask(&request_of(&Route::Read(ns), &body)).await.unwrap();
            assert_eq!(answer.status, ErrorCode::NotFound.status());
            answers.push(told(answer));
        }
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    // "Have" says the same of both: lack.
    let lacking = stranger.session("db").await;
    assert_eq!(lacking.have(&[root, SealedDigest([9; 32])]).await.unwrap(), [false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_and_a_revoked_client_learn_nothing_of_what_is_there() {
    let server = TestServer::start().await;
    let owner = server.writer("one").await;
    let revoked = server.writer("other").await;
    let (record, _) = owner.snapshot("db", &[b"secret"]).await;
    let key = revoked.profile.folder().tls_identity().unwrap().key_digest().unwrap();
    let principal = server.repository.registry().principal(&key).unwrap().id;
    server.repository.revoke(principal).unwrap();
    let mut answers = Vec::new();
    for config in [crate::raw::stranger(), crate::raw::config_of(&revoked)] {
        for namespace in [owner.namespace(), revoked.namespace(), NamespaceId([7; 32])] {
            for route in Route::examples(namespace, SessionId([1; 16]), record.digest()) {
                if route.access() == Access::Anyone {
                    continue;
                }
                let mut raw = Raw::open(server.address, &config).await.unwrap();
                let answer = raw.ask(&request_of(&route, b"")).await.unwrap();
                answers.push(told(answer));
            }
        }
    }
    assert!(answers.len() > 100);
    assert_eq!(answers[0].0, ErrorCode::UnknownPrincipal.status());
    for answer in &answers {
        assert_eq!(answer, &answers[0]);
    }
    // What is no route at all is not there for anybody.
    let mut raw = Raw::open(server.address, &crate::raw::stranger()).await.unwrap();
    let answer = raw.ask(&request("GET", "/v1/elsewhere", b"")).await.unwrap();
    assert_eq!(answer.status, ErrorCode::NotFound.status());
}
