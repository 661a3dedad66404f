//! Who may do what: every route for every role, and namespaces that cannot see each other.

use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, RecordDigest, SealedDigest, SessionId};
use strongroom_protocol::role::{Capability, Role};
use strongroom_protocol::route::{Access, Route};

use crate::harness::{TestServer, digests, frames, refused_with};

fn routes(namespace: NamespaceId) -> [Route; 35] {
    Route::examples(namespace, SessionId([1; 16]), RecordDigest([2; 32]))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_its_capability() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    // That of a feeder: `the_key_that_lends_can_do_nothing_else`.
    for role in Role::OF_CLIENTS {
        let actor = match role {
            Role::Backup => server.writer("other").await,
            role => server.principal(Some("erp"), role).await,
        };
        let namespace = actor.profile.settings().namespace.unwrap_or(writer.namespace());
        for route in routes(namespace) {
            let outcome = actor.client().request_once(&route, "", Body::empty()).await;
            let code = outcome.err().and_then(|error| error.code());
            match route.access() {
                Access::Needs(capability) if !role.may(capability) => {
                    assert_eq!(code, Some(ErrorCode::NotAllowed), "{role} {}", route.name());
                }
                _ => assert_ne!(code, Some(ErrorCode::NotAllowed), "{role} {}", route.name()),
            }
        }
    }
}

#[test]
fn the_matrix_in_the_documents_is_the_one_in_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
    let text = std::fs::read_to_string(path).unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
    };
    let header = text
        .lines()
        .map(cells)
        .find(|row| row.len() == Capability::ALL.len() + 1 && row[0] == "role")
        .expect("docs/security.md has a table that starts with `| role |`");
    for role in Role::ALL {
        let row = text.lines().map(cells).find(|row| row.len() > 3 && row[0] == role.name());
        let row = row.unwrap_or_else(|| panic!("no row for {role}"));
        for (name, cell) in header.iter().zip(&row).skip(1) {
            let capability = Capability::ALL.into_iter().find(|known| known.name() == name);
            let capability = capability.unwrap_or_else(|| panic!("unknown capability {name}"));
            assert_eq!(cell == "yes", role.may(capability), "{role} {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_invisible() {
    let server = TestServer::start().await;
    let (one, other) = (server.writer("one").await, server.writer("other").await);
    let (record, _) = one.snapshot("db", &[b"secret"]).await;
    let reader = server.principal(Some("other"), Role::Restore).await;
    let nobody = NamespaceId([7; 32]);
    // Whatever is asked of somebody else's namespace gets the answer of one that is not there.
    for (actor, role) in [(&other, Role::Backup), (&reader, Role::Restore)] {
        let mut answers = Vec::new();
        for namespace in [one.namespace(), nobody] {
            let examples = Route::examples(namespace, SessionId([1; 16]), record.digest());
            for route in examples.into_iter().filter(|route| route.namespace().is_some()) {
                let outcome = actor.client().request_once(&route, "", Body::empty()).await;
                let Err(ClientError::Server(body)) = outcome else { panic!("{outcome:?}") };
                let allowed = matches!(route.access(), Access::Needs(c) if role.may(c));
                if allowed {
                    assert_eq!(body.code, ErrorCode::NotFound, "{}", route.name());
                }
                answers.push((route.name(), body.code, body.message));
            }
        }
        let (his, nobodys) = answers.split_at(answers.len() / 2);
        assert_eq!(his, nobodys);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_plaintext_in_two_namespaces_has_nothing_in_common() {
    let server = TestServer::start().await;
    let (one, other) = (server.writer("one").await, server.writer("other").await);
    let mine = crate::harness::Tree::seal(&one.keys(), &[b"same bytes"]);
    let his = crate::harness::Tree::seal(&other.keys(), &[b"same bytes"]);
    let his_digests = digests(&his.envelopes());
    assert!(digests(&mine.envelopes()).iter().all(|digest| !his_digests.contains(digest)));
    let session = one.session("db").await;
    session.upload(frames(&mine.envelopes())).await.unwrap();
    // Even the very digests of the other namespace are "lack".
    let asked = other.session("db").await.have(&digests(&mine.envelopes())).await.unwrap();
    assert!(asked.iter().all(|have| !have));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_client_can_read_nothing_back() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"secret"]).await;
    let client = writer.client();
    let namespace = writer.namespace();
    let digest: Vec<u8> = record.body.root.0.to_vec();
    let routes = [
        (Route::Read(namespace), Body::from(bytes::Bytes::from(digest))),
        (Route::Record(namespace, record.digest()), Body::empty()),
        (Route::Snapshots(namespace), Body::empty()),
        (Route::Forget(namespace, record.digest()), Body::empty()),
    ];
    for (route, body) in routes {
        refused_with(client.request_once(&route, "", body).await, ErrorCode::NotAllowed);
    }
    // Nor does a proof come for what the session has not been told of.
    let unpinned = writer.session("db").await.prove(&[0; 32], &[SealedDigest([0; 32])]).await;
    assert!(matches!(unpinned, Err(ClientError::Unproven(_))), "{unpinned:?}");
}
