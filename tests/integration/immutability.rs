//! A locked snapshot stays, whoever asks; and its bytes stay with it.

use std::time::Duration;

use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::{Capability, Role};
use strongroom_protocol::route::Route;

use crate::harness::{DAY, START_MS, TestServer, refused_with};

#[tokio::test(flavor = "multi_thread")]
async fn forget_is_refused_for_every_role() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"a"]).await;
    let route = Route::Forget(writer.namespace(), record.digest());
    for role in Role::OF_CLIENTS {
        let actor = match role {
            Role::Backup => &writer,
            role => &server.principal(Some("erp"), role).await,
        };
        let outcome = actor.client().request_once(&route, "", Body::empty()).await;
        let Err(ClientError::Server(body)) = outcome else { panic!("{role}: {outcome:?}") };
        if role.may(Capability::Forget) {
            assert_eq!(body.code, ErrorCode::Locked);
            assert_eq!(body.locked_until_seconds, Some(START_MS / 1000 + 30 * 86_400));
            assert!(body.message.contains("2026-01-31"), "{}", body.message);
        } else {
            assert_eq!(body.code, ErrorCode::NotAllowed, "{role}");
        }
    }
    assert_eq!(server.repository.status().unwrap().snapshot_count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_holds_to_its_last_second_and_not_longer() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"a"]).await;
    let operator = server.principal(None, Role::Operator).await;
    let route = Route::Forget(writer.namespace(), record.digest());
    let forget = async || operator.client().request_once(&route, "", Body::empty()).await;
    server.clock.advance(DAY * 30 - Duration::from_secs(1));
    refused_with(forget().await, ErrorCode::Locked);
    server.clock.advance(Duration::from_secs(1));
    forget().await.unwrap();
    refused_with(forget().await, ErrorCode::NotFound);
    assert_eq!(server.repository.status().unwrap().snapshot_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_survive_restarts_and_refusals_are_on_record() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, receipt) = writer.snapshot("db", &[b"a"]).await;
    let operator = server.principal(None, Role::Operator).await;
    let server = server.restart().await;
    let client = operator.profile.client(&server.connect()).unwrap();
    let route = Route::Forget(writer.namespace(), record.digest());
    let size_before = server.repository.ledger().head().size;
    refused_with(client.request_once(&route, "", Body::empty()).await, ErrorCode::Locked);
    assert_eq!(server.repository.ledger().head().size, size_before + 1);
    let proof = server.repository.ledger().receipt(size_before).unwrap();
    let entry = Entry::decode(&proof.entry).unwrap();
    assert_eq!(entry.actor, operator.profile.settings().principal);
    assert!(matches!(entry.event, Event::Refused { record: r, .. } if r == record.digest()));
    // The old receipt's ledger is a prefix of today's: same key, and it still verifies.
    let ledger_key = writer.profile.settings().ledger_key;
    receipt.verify(&[ledger_key]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_wishes_are_bounded_by_the_policy() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let session = writer.session("db").await;
    let tree = crate::harness::Tree::seal(&writer.keys(), &[b"a"]);
    session.upload(crate::harness::frames(&tree.envelopes())).await.unwrap();
    // A stolen client cannot weaken a lock: less than the minimum becomes the minimum.
    let wish = |body: &mut strongroom_protocol::record::RecordBody| {
        body.lock_wanted = LockWanted::Period(1);
    };
    let record = writer.record(&session, "db", &tree.root, wish);
    session.commit(record.encode().into()).await.unwrap();
    let page = server.repository.list(&writer.namespace(), None, 0).unwrap();
    assert_eq!(
        page.rows[0].lock.until_seconds,
        server.repository.moment().retention_seconds + 86_400
    );
    // More than the maximum is refused before anything is sent.
    let db = crate::harness::label("db");
    let options = strongroom_client::backup::BackupOptions {
        lock_wanted: LockWanted::Period(40 * 365 * 86_400),
        ..strongroom_client::backup::BackupOptions::new(db, writer.connect.clone())
    };
    let mut source = strongroom_client::source::Source::Stream(Box::new(&b"dump"[..]));
    let monitor = strongroom_client::progress::Monitor::hidden();
    let profile = &mut writer.profile;
    let outcome = strongroom_client::backup::run(profile, &mut source, &options, &monitor).await;
    refused_with(outcome, ErrorCode::RetentionOutOfPolicy);
}
