//! Tokens and enrolment: one use, one server, one connection, five tries; and revocation.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use strongroom_client::connection::Body;
use strongroom_client::enroll::{self, EnrollOptions};
use strongroom_client::error::ClientError;
use strongroom_client::profile::ProfileFolder;
use strongroom_client::tls::{Pin, TlsIdentity};
use strongroom_client::transport::{Client, Endpoint, RetryPolicy};
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, PublicKey};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::{EnrollRequest, Scope, Token};
use strongroom_server::error::ServerError;
use strongroom_server::repository::enrolment::TokenRequest;

use crate::harness::{Actor, TestServer, refused_with};

/// A client that has a key and no principal.
fn stranger(server: &TestServer, pin: Pin) -> (Client, TlsIdentity) {
    let identity = TlsIdentity::generate().unwrap();
    let endpoint = Endpoint {
        addresses: vec![server.address.to_string()],
        pin,
        timeouts: Default::default(),
        retry: RetryPolicy::never(),
        follow: None,
    };
    (Client::new(endpoint, &identity).unwrap(), identity)
}

fn request(token: &Token, identity: &TlsIdentity) -> EnrollRequest {
    EnrollRequest {
        token: token.id,
        tls_key: identity.key_digest().unwrap(),
        signing_key: PublicKey([7; 32]),
        display_name: "x".into(),
        descriptor: Vec::new(),
    }
}

async fn send(
    client: &Client,
    request: &EnrollRequest,
    secret: &[u8; 32],
    exporter: Option<[u8; 32]>,
) -> Result<(), ClientError> {
    let mut connection = client.connect().await?;
    let exporter = exporter.unwrap_or(*connection.exporter());
    let body = request.encode(secret, &exporter);
    connection.call(&Route::Enroll, "", body.into(), 65_536).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gives_one_enrolment() {
    let server = TestServer::start().await;
    let token = server.token(Some("erp"), Role::Backup);
    Actor::enroll(server.connect(), token.clone(), true).await.unwrap();
    let again = Actor::enroll(server.connect(), token, true).await;
    refused_with(again.map(drop), ErrorCode::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_gives_nothing() {
    let server = TestServer::start().await;
    let token = server.token(None, Role::Operator);
    server.clock.advance(Duration::from_secs(3600));
    let late = Actor::enroll(server.connect(), token, false).await;
    refused_with(late.map(drop), ErrorCode::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_another_server_is_not_even_sent() {
    let (one, other) = (TestServer::start().await, TestServer::start().await);
    let token = one.token(None, Role::Operator);
    let wrong = Actor::enroll(other.connect(), token, false).await;
    assert!(matches!(wrong.map(drop), Err(ClientError::WrongKey(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_cannot_be_relayed() {
    let server = TestServer::start().await;
    let token = server.token(None, Role::Operator);
    let (client, identity) = stranger(&server, Pin::Key(token.tls_key));
    let request = request(&token, &identity);
    // The relay's connection to the server has another exporter than the victim's to the relay.
    let relayed = send(&client, &request, &token.secret, Some([9; 32])).await;
    refused_with(relayed, ErrorCode::BadToken);
    // A proof for one client key does not enrol another.
    let (thief, _) = stranger(&server, Pin::Key(token.tls_key));
    refused_with(send(&thief, &request, &token.secret, None).await, ErrorCode::BadToken);
    send(&client, &request, &token.secret, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_dies_of_five_wrong_proofs() {
    let server = TestServer::start().await;
    let token = server.token(None, Role::Operator);
    let (client, identity) = stranger(&server, Pin::Key(token.tls_key));
    let request = request(&token, &identity);
    for _ in 0..5 {
        refused_with(send(&client, &request, &[0; 32], None).await, ErrorCode::BadToken);
    }
    refused_with(send(&client, &request, &token.secret, None).await, ErrorCode::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_wrong_proofs_leave_a_token_alive_and_are_counted_across_restarts() {
    let server = TestServer::start().await;
    let token = server.token(None, Role::Operator);
    let (client, identity) = stranger(&server, Pin::Key(token.tls_key));
    let request = request(&token, &identity);
    for _ in 0..4 {
        refused_with(send(&client, &request, &[0; 32], None).await, ErrorCode::BadToken);
    }
    drop(client);
    let server = server.restart().await;
    let (client, identity) = stranger(&server, Pin::Key(token.tls_key));
    let request = self::request(&token, &identity);
    refused_with(send(&client, &request, &[0; 32], None).await, ErrorCode::BadToken);
    refused_with(send(&client, &request, &token.secret, None).await, ErrorCode::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_learns_the_identity_and_nothing_else() {
    let server = TestServer::start().await;
    let (client, _) = stranger(&server, Pin::Unknown);
    client.request(&Route::Identity, "", Body::empty()).await.unwrap();
    let status = client.request(&Route::Status, "", Body::empty()).await;
    refused_with(status, ErrorCode::UnknownPrincipal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_at_its_next_request() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session("db").await;
    server.repository.revoke(writer.profile.settings().principal).unwrap();
    refused_with(session.have(&[]).await, ErrorCode::UnknownPrincipal);
    let opened = writer.session_of("db", strongroom_protocol::message::SizeClass::Small).await;
    refused_with(opened.map(drop), ErrorCode::UnknownPrincipal);
    // It stays so after a restart.
    let server = server.restart().await;
    let client = writer.profile.client(&server.connect()).unwrap();
    let descriptor = Route::Descriptor(writer.namespace());
    let refused = client.request(&descriptor, "", Body::empty()).await;
    refused_with(refused, ErrorCode::UnknownPrincipal);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_namespaces_cannot_have_one_name() {
    let server = TestServer::start().await;
    let tokens = [(); 2].map(|()| server.token(Some("erp"), Role::Backup));
    assert!(tokens.iter().all(|token| matches!(token.scope, Scope::New(_))));
    let [first, second] = tokens;
    Actor::enroll(server.connect(), first, true).await.unwrap();
    let late = Actor::enroll(server.connect(), second, true).await;
    refused_with(late.map(drop), ErrorCode::BadDescriptor);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_make_no_sense_are_not_made() {
    let server = TestServer::start().await;
    let make = |namespace: Option<&str>, role, ttl_seconds| {
        let namespace: Option<Label> = namespace.map(|name| name.parse().unwrap());
        let display_name = String::new();
        let request = TokenRequest { namespace, role, display_name, ttl_seconds };
        server.repository.make_token(request).map(drop)
    };
    let cases = [
        (None, Role::Backup, 60),
        (Some("erp"), Role::Operator, 60),
        (Some("not-there"), Role::Restore, 60),
        (None, Role::Operator, 0),
        (None, Role::Operator, 25 * 3600),
    ];
    for (namespace, role, ttl) in cases {
        let outcome = make(namespace, role, ttl);
        assert!(matches!(outcome, Err(ServerError::Operator(_))), "{namespace:?} {role} {ttl}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_namespace_cannot_take_over_anothers_access_key() {
    let server = TestServer::start().await;
    let victim = server.writer("erp").await;
    let token = server.token(Some("evil"), Role::Backup);
    let (client, identity) = stranger(&server, Pin::Key(token.tls_key));
    let authority = SigningKey::from_bytes(&[8; 32]);
    let mut contents = victim.kept_descriptor().contents().clone();
    contents.authority = PublicKey(authority.verifying_key().to_bytes());
    let mut request = request(&token, &identity);
    request.descriptor = contents.sign(&authority);
    let refused = send(&client, &request, &token.secret, None).await;
    refused_with(refused, ErrorCode::BadDescriptor);
    // The victim's kit still reads the victim's namespace.
    let access = ReadAccess::with_kit(&victim.kit(), &victim.connect, false).await.unwrap();
    assert_eq!(access.namespace, victim.namespace());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_whose_answer_was_lost_is_told_again_and_to_nobody_else() {
    let server = TestServer::start().await;
    let token = server.token(None, Role::Operator);
    let (client, identity) = stranger(&server, Pin::Key(token.tls_key));
    let request = request(&token, &identity);
    send(&client, &request, &token.secret, None).await.unwrap();
    send(&client, &request, &token.secret, None).await.unwrap();
    assert_eq!(server.repository.principals().unwrap().len(), 1);
    let mut other_key = request.clone();
    other_key.signing_key = PublicKey([8; 32]);
    refused_with(send(&client, &other_key, &token.secret, None).await, ErrorCode::BadToken);
    let (thief, thief_identity) = stranger(&server, Pin::Key(token.tls_key));
    let stolen = self::request(&token, &thief_identity);
    refused_with(send(&thief, &stolen, &token.secret, None).await, ErrorCode::BadToken);
    // Once revoked, the token does not bring the key back.
    let principal = server.repository.principals().unwrap()[0].principal;
    server.repository.revoke(principal).unwrap();
    refused_with(send(&client, &request, &token.secret, None).await, ErrorCode::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_writer_refuses_a_token_for_another_namespace_than_its_kit() {
    let server = TestServer::start().await;
    let (writer, evil) = (server.writer("erp").await, server.writer("evil").await);
    let enroll_with = async |namespace: &str| {
        let home = tempfile::tempdir().unwrap();
        let folder = ProfileFolder::new(home.path(), "default").unwrap();
        let options = EnrollOptions {
            token: server.token(Some(namespace), Role::Backup),
            display_name: "second".into(),
            kit_folder: home.path().to_path_buf(),
            kit: Some(writer.kit()),
            second_of: None,
            connect: server.connect(),
        };
        enroll::enroll(&folder, options).await.map(drop)
    };
    let refused = enroll_with("evil").await;
    assert!(matches!(refused, Err(ClientError::Untrusted(_))), "{refused:?}");
    enroll_with("erp").await.unwrap();
    drop(evil);
}
