//! Losing keys, machines and servers: each row of the table in `docs/security.md`, 5.

use std::path::Path;

use ed25519_dalek::SigningKey;
use strongroom_client::age_file::generate_identity;
use strongroom_client::enroll::{self, EnrollOptions};
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::export::Export;
use strongroom_client::kit::Kit;
use strongroom_client::landing::Target;
use strongroom_client::profile::{Profile, ProfileFolder};
use strongroom_client::progress::Monitor;
use strongroom_client::recipients;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::shares::{self, Share};
use strongroom_client::trust::{ReadAccess, open_wrapped_secret};
use strongroom_client::{epoch, offer};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::role::Role;

use crate::harness::{
    Actor, TestServer, quick, refused_with, restored_with_kit, two_sites, unpack_dumps,
};
use crate::keys::{join, next, offered, renew};
use crate::promote::{promote, signed};
use crate::replica::{follow, synced};

/// A namespace with a second recipient, one snapshot, and the second recipient's identity.
async fn with_a_friend(server: &TestServer, day: &Path) -> (Actor, RecordDigest, String) {
    let mut writer = server.writer("erp").await;
    let (friend, public) = generate_identity();
    let signed = next(&writer, |kit, newest| recipients::add(kit, newest, &public)).await;
    offered(&writer, signed).await.unwrap();
    let made = writer.backup("db", day).await.unwrap();
    (writer, made.snapshot, friend.to_string())
}

/// What a recipient who has no kit gets, with a profile of role restore.
async fn read_by(server: &TestServer, identity: &str, record: RecordDigest) -> Vec<u8> {
    let mut reader = server.principal(Some("erp"), Role::Restore).await;
    let identities = vec![identity.to_owned().into()];
    let connect = reader.connect.clone();
    let access = ReadAccess::with_profile(&mut reader.profile, identities, &connect).await.unwrap();
    restored(&access, record).await
}

async fn restored(access: &ReadAccess, record: RecordDigest) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("restored");
    let target = Target::Path(to.clone());
    let options = RestoreOptions::to(target);
    let summary = restore::restore(access, record, &options, &Monitor::hidden()).await.unwrap();
    assert!(summary.is_verified);
    std::fs::read(to).unwrap()
}

/// Enrols a machine that has nothing, with the kit.
pub async fn new_machine(server: &TestServer, kit: Kit) -> Actor {
    let home = tempfile::tempdir().unwrap();
    let folder = ProfileFolder::new(home.path(), "default").unwrap();
    let options = EnrollOptions {
        token: server.token(Some("erp"), Role::Backup),
        display_name: "new".into(),
        kit_folder: home.path().to_path_buf(),
        kit: Some(kit),
        second_of: None,
        connect: server.connect(),
    };
    enroll::enroll(&folder, options).await.unwrap();
    Actor { profile: Profile::open(folder).unwrap(), home, connect: server.connect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_kit_stops_no_backup_and_another_recipient_reads() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let (mut writer, first, friend) = with_a_friend(&server, &day0).await;
    std::fs::remove_file(writer.kit_path()).unwrap();
    let second = writer.backup("db", &day1).await.unwrap();
    for (record, day) in [(first, &day0), (second.snapshot, &day1)] {
        assert!(read_by(&server, &friend, record).await == std::fs::read(day).unwrap());
    }
    // No file of the machine opens anything, and it can bring no descriptor of its own.
    let secret = writer.profile.convergence_secret().unwrap();
    let newest = writer.descriptor().await;
    let own = epoch::begin(&newest).unwrap().sign(&writer.profile.signing_key().unwrap());
    let route = strongroom_protocol::route::Route::OfferDescriptor(writer.namespace());
    let refused = writer.client().request(&route, "", own.into()).await;
    refused_with(refused, ErrorCode::BadDescriptor);
    assert!(!secret.as_bytes().iter().all(|byte| *byte == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_kit_without_another_recipient_loses_the_backups() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let mut writer = server.writer("erp").await;
    let made = writer.backup("db", &day0).await.unwrap();
    std::fs::remove_file(writer.kit_path()).unwrap();
    // Server, operator and machine together have no identity: whoever makes one opens nothing.
    let (stranger, _) = generate_identity();
    let mut reader = server.principal(Some("erp"), Role::Restore).await;
    let connect = reader.connect.clone();
    let access = ReadAccess::with_profile(&mut reader.profile, vec![stranger], &connect).await;
    let opened = access.unwrap().open_record(made.snapshot, false).await.map(drop);
    assert_eq!(opened.unwrap_err().exit_code(), ExitCode::Untrusted);
    // Backups go on all the same: nobody notices but whoever checks the kit.
    writer.backup("db", &day0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_authority_or_access_key_stops_changes_and_reading_with_the_kit_alone() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let mut writer = server.writer("erp").await;
    let made = writer.backup("db", &day0).await.unwrap();
    let kit = writer.kit();
    let text = std::fs::read_to_string(writer.kit_path()).unwrap();
    for key in ["authority_key", "access_key"] {
        let unreadable: String = text
            .lines()
            .filter(|line| !line.starts_with(key))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(Kit::parse(&unreadable).is_err(), "{key}");
    }
    // The line with the identity is enough for whoever enrols as a reader.
    assert!(read_by(&server, &kit.identity, made.snapshot).await == std::fs::read(&day0).unwrap());
    // Another authority's signature changes nothing: there is no way round the key.
    let (_, public) = generate_identity();
    let newest = writer.descriptor().await;
    let next = recipients::add(&kit, &newest, &public).unwrap();
    let other = server.writer("other").await.kit();
    let route = strongroom_protocol::route::Route::OfferDescriptor(writer.namespace());
    let outcome = writer.client().request(&route, "", next.sign(&other.authority_key).into()).await;
    refused_with(outcome, ErrorCode::BadDescriptor);
    writer.backup("db", &day0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_convergence_secret_is_mended_with_the_kit_or_an_export() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let mut writer = server.writer("erp").await;
    writer.backup("db", &day0).await.unwrap();
    let export = Export::of_profile(&writer.profile).unwrap();
    let secret = writer.profile.folder().path("convergence.secret");
    let descriptor = writer.descriptor().await;
    for with_kit in [true, false] {
        std::fs::remove_file(&secret).unwrap();
        let error = writer.backup("db", &day0).await.unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Usage, "{error}");
        assert!(error.to_string().contains("key renew"), "{error}");
        match with_kit {
            true => renew(&writer, &descriptor),
            false => epoch::adopt(&writer.profile, &descriptor, &export.secret).unwrap(),
        }
        let again = writer.backup("db", &day0).await.unwrap();
        assert_eq!(again.sent_chunk_count, 0, "it is the same secret");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_a_machines_keys_or_the_machine_costs_an_enrolment() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let mut writer = server.writer("erp").await;
    let first = writer.backup("db", &day0).await.unwrap();
    let (kit, old) = (writer.kit(), writer.profile.settings().principal);
    // A TLS key that is made anew is nobody; a signing key that is made anew signs no record.
    let file = |name: &str| writer.profile.folder().path(name);
    let signing = std::fs::read(file("signing.key")).unwrap();
    std::fs::remove_file(file("signing.key")).unwrap();
    assert!(writer.backup("db", &day1).await.is_err());
    let file = |name: &str| writer.profile.folder().path(name);
    std::fs::write(file("signing.key"), signing).unwrap();
    std::fs::remove_file(file("tls.key")).unwrap();
    std::fs::remove_file(file("tls.crt")).unwrap();
    let error = writer.backup("db", &day1).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::NotAuthorised, "{error}");
    drop(writer);
    // A new machine with the kit; the old principal is revoked.
    let mut machine = new_machine(&server, kit.clone()).await;
    server.repository.revoke(old).unwrap();
    let second = machine.backup("db", &day1).await.unwrap();
    assert_eq!(second.sequence, 1, "a chain of its own");
    for (summary, day) in [(first, &day0), (second, &day1)] {
        let bytes = restored_with_kit(&server, &kit, summary.snapshot, false).await;
        assert!(bytes == std::fs::read(day).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_kit_and_machine_leaves_what_another_recipient_reads_from_the_server() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let (writer, record, friend) = with_a_friend(&server, &day0).await;
    drop(writer);
    assert!(read_by(&server, &friend, record).await == std::fs::read(&day0).unwrap());
    // The convergence secret comes back with the same identity: the namespace can be gone on with.
    let mut reader = server.principal(Some("erp"), Role::Restore).await;
    let connect = reader.connect.clone();
    let access = ReadAccess::with_profile(&mut reader.profile, Vec::new(), &connect).await.unwrap();
    let newest = access.descriptor.unwrap();
    assert!(open_wrapped_secret(&newest, &[friend.into()]).is_ok());
    // But no machine joins without the kit or an export.
    let outcome = join(&server, "erp", None).await.map(drop);
    assert!(matches!(outcome, Err(ClientError::Usage(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_server_and_machine_leaves_everything_to_replica_and_kit() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let first = writer.backup("db", &day0).await.unwrap();
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    let kit = writer.kit();
    drop(writer);
    primary.stop().await;
    let bytes = restored_with_kit(&replica, &kit, first.snapshot, true).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
    // The kit promotes the replica, and brings a new machine to it.
    promote(&replica, &signed(&kit, &replica)).unwrap();
    let mut machine = new_machine(&replica, kit.clone()).await;
    let second = machine.backup("db", &day1).await.unwrap();
    let bytes = restored_with_kit(&replica, &kit, second.snapshot, false).await;
    assert!(bytes == std::fs::read(&day1).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_kit_and_server_leaves_what_another_recipient_reads_from_the_replica() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let (friend, public) = generate_identity();
    let add = next(&writer, |kit, newest| recipients::add(kit, newest, &public)).await;
    offered(&writer, add).await.unwrap();
    let first = writer.backup("db", &day0).await.unwrap();
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    std::fs::remove_file(writer.kit_path()).unwrap();
    primary.stop().await;
    let mut reader = enrolled_reader(&replica).await;
    let connect =
        strongroom_client::profile::ConnectOptions { from_replica: true, ..reader.connect.clone() };
    let access = ReadAccess::with_profile(&mut reader.profile, vec![friend], &connect).await;
    let bytes = restored(&access.unwrap(), first.snapshot).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
    // Without the authority key the replica takes no backups: a new namespace is made there.
    let mut own = offer::next_after(&writer.kept_descriptor()).unwrap();
    own.ledger_keys = vec![replica.repository.keys().ledger_public()];
    let thief = SigningKey::from_bytes(&[66; 32]);
    let error = promote(&replica, &own.sign(&thief)).unwrap_err();
    assert!(error.contains("signature"), "{error}");
    let mut anew = replica.writer("erp-after").await;
    anew.backup("db", &day0).await.unwrap();
}

/// A reader of a server that does not take the namespace's backups.
async fn enrolled_reader(replica: &TestServer) -> Actor {
    let home = tempfile::tempdir().unwrap();
    let folder = ProfileFolder::new(home.path(), "default").unwrap();
    let options = EnrollOptions {
        token: replica.token(Some("erp"), Role::Restore),
        display_name: "reader".into(),
        kit_folder: home.path().to_path_buf(),
        kit: None,
        second_of: None,
        connect: replica.connect(),
    };
    // Enrolled it is; that the descriptor names another server is said, and is no obstacle to
    // whoever reads from a replica on purpose.
    let outcome = enroll::enroll(&folder, options).await.map(drop);
    assert!(matches!(outcome, Err(ClientError::Untrusted(_))), "{outcome:?}");
    Actor { profile: Profile::open(folder).unwrap(), home, connect: replica.connect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_server_alone_without_a_replica_leaves_the_machine_and_the_kit_and_no_backups() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let mut writer = server.writer("erp").await;
    writer.backup("db", &day0).await.unwrap();
    server.stop().await;
    let error = writer.backup("db", &day0).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Temporary, "{error}");
    // A new server is another one: the profile does not speak to it, a new namespace does.
    let other = TestServer::start().await;
    writer.connect = other.connect();
    let error = writer.backup("db", &day0).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    let mut anew = other.writer("erp").await;
    anew.backup("db", &day0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_servers_keys_is_losing_the_server() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let first = writer.backup("db", &day0).await.unwrap();
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    let (data, clock) = primary.stop().await;
    std::fs::remove_file(data.path().join("data/keys/ledger.key")).unwrap();
    let opened = strongroom_server::repository::Repository::open(
        &data.path().join("data"),
        crate::harness::test_config(|_| {}),
        clock,
        std::sync::Arc::new(crate::harness::Calm),
    );
    let error = opened.map(drop).unwrap_err().to_string();
    assert!(error.contains("ledger.key"), "{error}");
    let kit = writer.kit();
    promote(&replica, &signed(&kit, &replica)).unwrap();
    let bytes = restored_with_kit(&replica, &kit, first.snapshot, false).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_passphrase_of_an_export_costs_another_export() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let file = Export::of_profile(&writer.profile).unwrap().seal("five random words").unwrap();
    let error = Export::open("five random word", &file).err().unwrap();
    assert_eq!(error.exit_code(), ExitCode::Untrusted);
    let again = Export::of_profile(&writer.profile).unwrap().seal("other random words").unwrap();
    let opened = Export::open("other random words", &again).unwrap();
    join(&server, "erp", Some(opened)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_shares_is_no_loss_while_enough_are_left() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let mut writer = server.writer("erp").await;
    let first = writer.backup("db", &day0).await.unwrap();
    let today = "2026-05-06".parse().unwrap();
    let made = shares::split(&writer.kit(), 3, 2, today).unwrap();
    let text = |share: &Share| share.to_text().unwrap().to_string();
    let left = [&made[0], &made[2]]
        .map(|share| ("file".into(), Share::parse("file", &text(share)).unwrap()));
    let kit = shares::join(&left).unwrap();
    let bytes = restored_with_kit(&server, &kit, first.snapshot, false).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
    assert!(shares::join(&left[..1]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_machine_with_only_the_kit_restores_and_says_what_it_can_prove() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let mut writer = server.writer("erp").await;
    let made = writer.backup("db", &day0).await.unwrap();
    let access = ReadAccess::with_kit(&writer.kit(), &server.connect(), false).await.unwrap();
    let to = folder.path().join("restored");
    let options = RestoreOptions::to(Target::Path(to.clone()));
    let summary = restore::restore(&access, made.snapshot, &options, &Monitor::hidden()).await;
    let summary = summary.unwrap();
    assert!(std::fs::read(to).unwrap() == std::fs::read(&day0).unwrap());
    assert!(summary.is_verified && summary.fresh_to_kit_floor_only);
    // What it cannot prove it does not claim: the newest descriptor is the newest that it is shown.
    let (shown, _) = offer::newest_with_kit(&writer.kit(), &server.connect()).await.unwrap();
    assert_eq!(shown.contents().version, 1);
}
