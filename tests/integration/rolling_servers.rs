//! TLS keys of servers that roll over, and who follows; epochs in the ledger of a primary.

use std::sync::Arc;

use strongroom_client::connection::Body;
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::history;
use strongroom_client::profile::Profile;
use strongroom_client::transport::Client;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_server::config::Period;
use strongroom_server::followers::FollowState;
use strongroom_server::server_keys::ServerKeys;

use crate::feed::{feed, lent};
use crate::harness::{Actor, DAY, TestServer, copy_folder, two_sites};
use crate::keys::{next, offered, renew};
use crate::replica::{events, follow, quick, replica, snapshots, status, synced, until};
use crate::replica_hostile::forge;

async fn ask(client: &Client) -> Result<(), ClientError> {
    client.request(&Route::Checkpoint, "", Body::empty()).await.map(drop)
}

fn reopen(actor: &mut Actor) {
    actor.profile = Profile::open(actor.profile.folder().clone()).unwrap();
}

fn serial(actor: &Actor) -> u64 {
    let profile = Profile::open(actor.profile.folder().clone()).unwrap();
    profile.settings().keys.server_serial
}

fn shown(server: &TestServer) -> u64 {
    server.repository.keys().tls().serial
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_follow_a_new_tls_key_while_they_are_connected() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    assert_eq!((serial(&writer), shown(&server)), (1, 1));
    let client = writer.client();
    let mut open = client.connect().await.unwrap();
    let session = writer.session("db").await;
    server.repository.roll_tls_key().unwrap();
    // What is open goes on; what is dialled anew meets the new key, on many connections at once.
    open.call(&Route::Checkpoint, "", Body::empty(), 4096).await.unwrap();
    session.have(&[SealedDigest([1; 32])]).await.unwrap();
    let fresh = writer.profile.client(&writer.connect).unwrap();
    let many = (0..8).map(|_| {
        let fresh = fresh.clone();
        tokio::spawn(async move { ask(&fresh).await })
    });
    for one in many.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    assert_eq!(serial(&writer), 2);
    // A profile that was open all the time pins no older key again when it is written.
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(serial(&writer), 2);
    writer.snapshot("db", &[b"one"]).await;
    let pinned = writer.profile.folder().clone();
    let pinned = Profile::open(pinned).unwrap().settings().tls_key;
    assert_eq!(pinned, server.repository.keys().tls_key_digest());
    let is_rolled = |event: &Event| match event {
        Event::TlsKeyRolled { tls_key, serial } => (*tls_key, *serial) == (pinned, 2),
        _ => false,
    };
    assert!(events(&server.repository).iter().any(is_rolled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_offline_during_two_new_tls_keys_follows_and_a_token_does_not() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let kit = writer.kit();
    let token = server.token(None, Role::Operator);
    server.repository.roll_tls_key().unwrap();
    server.repository.roll_tls_key().unwrap();
    let server = server.restart().await;
    assert_eq!(shown(&server), 3);
    writer.connect = server.connect();
    reopen(&mut writer);
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(serial(&writer), 3);
    let outcome = Actor::enroll(server.connect(), token, false).await;
    assert!(matches!(outcome.map(drop), Err(ClientError::WrongKey(_))));
    let operator = server.principal(None, Role::Operator).await;
    assert_eq!(serial(&operator), 3);
    assert!(ReadAccess::with_kit(&kit, &writer.connect, false).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_older_tls_key_is_nothing_to_a_client_that_met_the_newer() {
    let server = TestServer::start().await;
    let (mut writer, mut absent) = (server.writer("erp").await, server.writer("other").await);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&server.folder.path().join("data"), &folder.path().join("data"));
    let thief = TestServer::open(folder, server.clock.clone()).await;
    server.repository.roll_tls_key().unwrap();
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(serial(&writer), 2);
    // The thief has the older key and its vouch.
    let astray = history::connect(&mut writer.profile, &thief.connect()).await;
    let error = astray.expect_err("an older key");
    assert_eq!(error.exit_code(), ExitCode::Untrusted);
    assert!(error.to_string().contains("number 1 after number 2"), "{error}");
    assert_eq!(serial(&writer), 2);
    // To who has not met the newer one it is the server, as far as its ledger goes on.
    ask(&absent.profile.client(&thief.connect()).unwrap()).await.unwrap();
    drop(history::connect(&mut absent.profile, &absent.connect).await.unwrap());
    assert!(history::connect(&mut absent.profile, &thief.connect()).await.is_err());
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_key_is_replaced_at_its_age_and_not_before() {
    let server = TestServer::start_with(|config| config.keys.tls_age = Period(30 * DAY)).await;
    let mut writer = server.writer("erp").await;
    server.clock.advance(29 * DAY);
    server.repository.tick();
    assert_eq!(shown(&server), 1);
    server.clock.advance(2 * DAY);
    server.repository.tick();
    server.repository.tick();
    assert_eq!(shown(&server), 2);
    // One that was off for long does it when it starts again.
    let (folder, clock) = server.stop().await;
    clock.advance(100 * DAY);
    let aged = |config: &mut strongroom_server::config::Config| {
        config.keys.tls_age = Period(30 * DAY);
    };
    let server = TestServer::open_with(folder, clock, aged).await;
    until("replaced", || shown(&server) == 3).await;
    writer.connect = server.connect();
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(serial(&writer), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_a_tls_key_is_replaced_leaves_the_one_or_the_other() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    // Before the decision: the key that was kept aside is given up.
    let (folder, clock) = server.stop().await;
    let data = folder.path().join("data");
    ServerKeys::make_next(&data, &["127.0.0.1".into()], 2).unwrap();
    let server = TestServer::open(folder, clock).await;
    assert_eq!(shown(&server), 1);
    assert!(!data.join("keys/tls-next.pem").exists());
    // After it: the key takes its place.
    let first = ["keys/tls.key", "keys/tls.crt"]
        .map(|name| (data.join(name), std::fs::read(data.join(name)).unwrap()));
    server.repository.roll_tls_key().unwrap();
    let (folder, clock) = server.stop().await;
    assert!(first.iter().all(|(path, _)| !path.exists()), "the older key is gone");
    std::fs::rename(data.join("keys/tls.pem"), data.join("keys/tls-next.pem")).unwrap();
    for (path, bytes) in &first {
        std::fs::write(path, bytes).unwrap();
    }
    assert_eq!(ServerKeys::load(&data).unwrap().tls().serial, 1);
    let server = TestServer::open(folder, clock).await;
    assert_eq!(shown(&server), 2);
    assert!(first.iter().all(|(path, _)| !path.exists()), "the older key is gone");
    let count = events(&server.repository)
        .iter()
        .filter(|event| matches!(event, Event::TlsKeyRolled { .. }))
        .count();
    assert_eq!(count, 1);
    ask(&writer.profile.client(&server.connect()).unwrap()).await.unwrap();
    // An older copy of the keys is put back: another key takes its place, which clients follow.
    let (folder, clock) = server.stop().await;
    std::fs::remove_file(data.join("keys/tls.pem")).unwrap();
    for (path, bytes) in &first {
        std::fs::write(path, bytes).unwrap();
    }
    let server = TestServer::open(folder, clock).await;
    assert_eq!(shown(&server), 3);
    ask(&writer.profile.client(&server.connect()).unwrap()).await.unwrap();
}

fn followed(server: &TestServer) -> usize {
    let own = events(&server.repository);
    own.iter().filter(|event| matches!(event, Event::PeerKeyFollowed { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_follows_its_primarys_new_tls_key() {
    let (primary, replica, writer) = two_sites(quick).await;
    follow(&replica, &primary, "office").await;
    writer.snapshot("db", &[b"one"]).await;
    synced(&replica, &primary, "office").await;
    primary.repository.roll_tls_key().unwrap();
    writer.snapshot("db", &[b"two"]).await;
    // Started again, it dials anew and meets the new key.
    let replica = replica.restart_with(quick).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 2);
    assert_eq!(followed(&replica), 1);
    let replica = replica.restart_with(quick).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(followed(&replica), 1, "it is pinned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_does_not_follow_a_primary_back_to_an_older_tls_key() {
    let (primary, replica, writer) = two_sites(quick).await;
    follow(&replica, &primary, "office").await;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&primary.folder.path().join("data"), &folder.path().join("data"));
    primary.repository.roll_tls_key().unwrap();
    writer.snapshot("db", &[b"one"]).await;
    let replica = replica.restart_with(quick).await;
    synced(&replica, &primary, "office").await;
    // The thief of the older key takes the primary's place.
    let (address, clock) = (primary.address, primary.clock.clone());
    primary.stop().await;
    until("noticed", || status(&replica, "office").state == FollowState::Unreachable).await;
    let at = |config: &mut strongroom_server::config::Config| config.listen = address;
    let _thief = TestServer::open_with(folder, clock, at).await;
    until("said", || status(&replica, "office").trouble.contains("number 1 after number 2")).await;
    assert_eq!(followed(&replica), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_lends_follows_the_new_tls_key_of_its_replica() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let writer = primary.writer("erp").await;
    feed(&primary, &replica).await;
    writer.snapshot("db", &[b"one"]).await;
    synced(&replica, &primary, "office").await;
    lent(&primary, 4).await;
    replica.repository.roll_tls_key().unwrap();
    let at = replica.address;
    let again = move |config: &mut strongroom_server::config::Config| {
        quick(config);
        config.listen = at;
    };
    let replica = replica.restart_with(again).await;
    writer.snapshot("db", &[b"two"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 2);
    until("on record", || followed(&primary) == 1).await;
    let row = primary.repository.feeds().unwrap().remove(0);
    assert_eq!(row.tls_key, replica.repository.keys().tls_key_digest());
    assert!(primary.repository.is_fed(&row));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_behind_the_next_epoch_in_a_primarys_ledger_is_not_taken_over() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let namespace = writer.namespace();
    writer.snapshot("db", &[b"honest"]).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    // A captured primary with a stolen secret: its ledger has the next epoch before a record of the
    // one that ended.
    let signed = next(&writer, |_, newest| strongroom_client::epoch::begin(newest)).await;
    let descriptor = VerifiedDescriptor::decode(&signed).unwrap();
    let begun = Event::DescriptorTaken { descriptor: descriptor.digest(), version: 2 };
    replica.repository.pause_primary(&"office".parse().unwrap(), true).unwrap();
    forge(&primary, namespace, begun);
    let (backdated, receipt) = writer.snapshot("db", &[b"backdated"]).await;
    assert!(offered(&writer, signed).await.unwrap().is_new);
    renew(&writer, &descriptor);
    reopen(&mut writer);
    writer.profile.accept_descriptor(descriptor.encoded()).unwrap();
    replica.repository.pause_primary(&"office".parse().unwrap(), false).unwrap();
    let trouble = || status(&replica, "office").trouble;
    until("said", || trouble().contains("behind the beginning of epoch 2")).await;
    let listed = snapshots(&replica, &namespace);
    assert_eq!(listed.len(), 1);
    assert!(listed.iter().all(|row| row.record != backdated.digest()));
    // On record once, and counted.
    let refused = |server: &TestServer| {
        let own = events(&server.repository).into_iter();
        own.filter(|event| matches!(event, Event::RecordRefused { .. })).collect::<Vec<_>>()
    };
    let entered = Event::RecordRefused {
        ledger_key: primary.repository.keys().ledger_public(),
        record: backdated.digest(),
        leaf: receipt.leaf_index,
        epoch: 2,
    };
    assert_eq!(refused(&replica), std::slice::from_ref(&entered));
    let text = String::from_utf8(replica.repository.metrics().render().unwrap()).unwrap();
    let counted = "strongroom_replica_backdated_records_total{primary=\"office\"} ";
    assert!(text.lines().any(|line| line.starts_with(counted) && !line.ends_with(" 0")));
    replica.clock.advance(std::time::Duration::from_secs(3600));
    // It keeps nothing else waiting, and stays out after a start.
    let replica = replica.restart_with(quick).await;
    until("said again", || {
        let status = status(&replica, "office");
        status.state == FollowState::Failing && status.pending_snapshots == 1
    })
    .await;
    assert_eq!(snapshots(&replica, &namespace).len(), 1);
    assert_eq!(refused(&replica), [entered], "and on record no second time");
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_in_their_order_are_taken_over_whoever_brings_them() {
    let (primary, replica, writer) = two_sites(quick).await;
    let third = TestServer::start_with(quick).await;
    let namespace = writer.namespace();
    writer.snapshot("db", &[b"first"]).await;
    let descriptor = crate::keys::rotate(&writer).await;
    renew(&writer, &descriptor);
    let mut writer = writer;
    reopen(&mut writer);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("second");
    std::fs::write(&path, b"second").unwrap();
    writer.backup("db", &path).await.unwrap();
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &namespace).len(), 2);
    // The replica has had the newest descriptor before it had the first snapshot. It takes no
    // backups, so that says nothing.
    follow(&third, &replica, "vault").await;
    synced(&third, &replica, "vault").await;
    assert_eq!(snapshots(&third, &namespace).len(), 2);
}
