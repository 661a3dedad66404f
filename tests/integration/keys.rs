//! The life of keys: descriptors that are published, recipients, epochs, exports.

use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use strongroom_client::age_file::{self, generate_identity};
use strongroom_client::connection::Body;
use strongroom_client::enroll::{self, EnrollOptions};
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::export::Export;
use strongroom_client::keys::EpochKeys;
use strongroom_client::kit::Kit;
use strongroom_client::profile::{ConnectOptions, Profile, ProfileFolder};
use strongroom_client::trust::{ReadAccess, open_wrapped_secret};
use strongroom_client::{commit, epoch, offer, recipients, reprint};
use strongroom_protocol::descriptor::{Descriptor, VerifiedDescriptor};
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{DescriptorDigest, PublicKey, RecordDigest};
use strongroom_protocol::message::DescriptorOffered;
use strongroom_protocol::record::{PrivateFields, Record};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_server::seed::check::check;

use crate::harness::{
    Actor, TestServer, Tree, refused_with, restored_with_kit, two_sites, unpack_dumps,
};
use crate::lying_server::{Lies, captured};
use crate::promote::{add_standby, pair, promote, signed, version};
use crate::replica::{events, follow, quick, snapshots, synced};
use crate::seed::{carry, export_to};

/// The next descriptor after the one that the server has.
pub async fn next(
    actor: &Actor,
    make: impl FnOnce(&Kit, &VerifiedDescriptor) -> Result<Descriptor, ClientError>,
) -> Vec<u8> {
    let kit = actor.kit();
    make(&kit, &actor.descriptor().await).unwrap().sign(&kit.authority_key)
}

pub async fn offered(actor: &Actor, signed: Vec<u8>) -> Result<DescriptorOffered, ClientError> {
    let namespace = VerifiedDescriptor::decode(&signed).unwrap().namespace();
    offer::publish(&actor.client(), namespace, signed).await
}

/// Begins the next epoch, as `key rotate` does.
pub async fn rotate(actor: &Actor) -> VerifiedDescriptor {
    let signed = next(actor, |_, newest| epoch::begin(newest)).await;
    assert!(offered(actor, signed.clone()).await.unwrap().is_new);
    VerifiedDescriptor::decode(&signed).unwrap()
}

/// Gives a machine the new secret, as `key renew` does.
pub fn renew(actor: &Actor, descriptor: &VerifiedDescriptor) {
    let secret = open_wrapped_secret(descriptor, &[actor.kit().identity]).unwrap();
    epoch::adopt(&actor.profile, descriptor, &secret).unwrap();
}

fn refusals(server: &TestServer) -> usize {
    let own = events(&server.repository);
    own.iter().filter(|event| matches!(event, Event::DescriptorRefused { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_is_made_by_the_authority_and_brought_by_whoever_reads_the_namespace() {
    let server = TestServer::start().await;
    let (writer, other) = (server.writer("erp").await, server.writer("other").await);
    let (kit, thief) = (writer.kit(), SigningKey::from_bytes(&[66; 32]));
    let newest = writer.descriptor().await;
    let contents = offer::next_after(&newest).unwrap();
    let (_, friend) = generate_identity();
    let with = |change: &dyn Fn(&mut Descriptor), key: &SigningKey| {
        let mut changed = contents.clone();
        changed.recipients.push(friend.clone());
        change(&mut changed);
        changed.sign(key)
    };
    let authority = &kit.authority_key;
    let key = PublicKey([7; 32]);
    let refused: [(&str, Vec<u8>); 7] = [
        ("signed by another", with(&|_| {}, &thief)),
        ("a version later", with(&|next| next.version = 3, authority)),
        ("another before it", with(&|next| next.previous = DescriptorDigest([7; 32]), authority)),
        ("other servers", with(&|next| next.ledger_keys = vec![key], authority)),
        ("one server more", with(&|next| next.ledger_keys.push(key), authority)),
        ("another record key", with(&|next| next.record_key = key, authority)),
        ("two epochs later", with(&|next| (next.epoch, next.record_key) = (3, key), authority)),
    ];
    let route = Route::OfferDescriptor(writer.namespace());
    let send = async |actor: &Actor, bytes: Vec<u8>| {
        actor.client().request(&route, "", Body::from(bytes)).await.map(drop)
    };
    for (what, bytes) in refused {
        // One entry a minute: `refused_descriptors_are_entered_once_a_minute`.
        server.clock.advance(Duration::from_secs(60));
        let outcome = send(&writer, bytes).await;
        assert!(outcome.is_err(), "{what}");
        refused_with(outcome, ErrorCode::BadDescriptor);
        assert_eq!(version(&server), 1, "{what}");
    }
    // What the authority signed and cannot come next is on record; a move is not tried.
    assert_eq!(refusals(&server), 4);
    refused_with(send(&writer, b"SRD1".to_vec()).await, ErrorCode::BadDescriptor);
    let good = with(&|_| {}, authority);
    refused_with(send(&other, good.clone()).await, ErrorCode::NotFound);
    for role in [Role::Audit, Role::SecurityOfficer, Role::Replica] {
        let actor = server.principal(None, role).await;
        refused_with(send(&actor, good.clone()).await, ErrorCode::NotAllowed);
    }
    // The first brings it, the others find it there: the kit alone too.
    assert!(offered(&writer, good.clone()).await.unwrap().is_new);
    let operator = server.principal(None, Role::Operator).await;
    let reader = server.principal(Some("erp"), Role::Restore).await;
    for actor in [&operator, &reader] {
        let again = offered(actor, good.clone()).await.unwrap();
        assert_eq!((again.version, again.is_new), (2, false));
    }
    let (seen, with_kit) = offer::newest_with_kit(&kit, &writer.connect).await.unwrap();
    assert_eq!(seen.encoded(), good);
    let again = offer::publish(&with_kit, writer.namespace(), good.clone()).await.unwrap();
    assert!(!again.is_new);
    // The authority signed another version 2: an alarm, on record, and nothing changes.
    let twin = with(&|next| next.recipients.truncate(1), authority);
    refused_with(send(&writer, twin).await, ErrorCode::BadDescriptor);
    assert_eq!((refusals(&server), version(&server)), (5, 2));
    let server = server.restart().await;
    assert_eq!(server.repository.descriptor(&writer.namespace(), None).unwrap(), good);
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_are_published_where_the_backups_are_taken_and_reach_the_others() {
    let (primary, replica, writer) = pair().await;
    let second = add_standby(&writer, &replica).await;
    let (_, friend) = generate_identity();
    let signed_next = next(&writer, |kit, newest| recipients::add(kit, newest, &friend)).await;
    let to_replica = second.client(&replica.connect()).unwrap();
    let outcome = offer::publish(&to_replica, writer.namespace(), signed_next.clone()).await;
    refused_with(outcome, ErrorCode::NotPrimary);
    assert!(offered(&writer, signed_next).await.unwrap().is_new);
    synced(&replica, &primary, "office").await;
    assert_eq!((version(&primary), version(&replica)), (2, 2));
    // A move that is signed after it stands on it, and is published by command only.
    let moving = signed(&writer.kit(), &replica);
    refused_with(offered(&writer, moving.clone()).await, ErrorCode::BadDescriptor);
    assert_eq!(promote(&replica, &moving), Ok(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_change_for_snapshots_from_then_on_and_for_no_older_ones() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, day2] = unpack_dumps(folder.path());
    let (friend, friends_public) = generate_identity();
    let first = writer.backup("db", &day0).await.unwrap();
    let add = next(&writer, |kit, newest| recipients::add(kit, newest, &friends_public)).await;
    offered(&writer, add).await.unwrap();
    let second = writer.backup("db", &day1).await.unwrap();
    let remove =
        next(&writer, |kit, newest| recipients::remove(kit, newest, &friends_public, true)).await;
    offered(&writer, remove).await.unwrap();
    let third = writer.backup("db", &day2).await.unwrap();
    // The friend has a profile of role restore and his own identity, and no kit.
    let mut reader = server.principal(Some("erp"), Role::Restore).await;
    let connect = reader.connect.clone();
    let access = ReadAccess::with_profile(&mut reader.profile, vec![friend.clone()], &connect)
        .await
        .unwrap();
    let opens = async |record: RecordDigest| access.open_record(record, false).await.is_ok();
    let opened =
        [opens(first.snapshot).await, opens(second.snapshot).await, opens(third.snapshot).await];
    assert_eq!(opened, [false, true, false]);
    for (summary, day) in [(first, &day0), (second, &day1), (third, &day2)] {
        let bytes = restored_with_kit(&server, &writer.kit(), summary.snapshot, false).await;
        assert!(bytes == std::fs::read(day).unwrap());
    }
    // A new secret was not needed: what the friend could open he still can, and nothing else.
    let newest = writer.descriptor().await;
    assert!(open_wrapped_secret(&newest, &[friend]).is_err());
    assert_eq!(newest.contents().epoch, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_that_leave_few_ways_in_are_removed_by_force_only_and_the_last_never() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (kit, newest) = (writer.kit(), writer.descriptor().await);
    let own = age_file::recipient_of(&kit.identity).unwrap();
    let refused = |outcome: Result<Descriptor, ClientError>, why: &str| {
        let error = outcome.expect_err(why);
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(recipients::remove(&kit, &newest, &own, true), "the last recipient");
    refused(recipients::add(&kit, &newest, &own), "in the list already");
    refused(recipients::add(&kit, &newest, "age1nonsense"), "not an age recipient");
    refused(recipients::add(&kit, &newest, &kit.identity), "a secret key");
    let (_, friend) = generate_identity();
    refused(recipients::remove(&kit, &newest, &friend, true), "not in the list");
    let two = recipients::add(&kit, &newest, &friend).unwrap().sign(&kit.authority_key);
    let two = VerifiedDescriptor::decode(&two).unwrap();
    assert_eq!(two.check_follows(&newest), Ok(()));
    refused(recipients::remove(&kit, &two, &own, false), "this kit's own recipient");
    refused(recipients::remove(&kit, &two, &friend, false), "one recipient would be left");
    let without = recipients::remove(&kit, &two, &own, true).unwrap();
    assert_eq!(without.recipients, [friend]);
    // Another namespace's kit opens nothing, so it makes nothing.
    let stranger = server.writer("other").await.kit();
    assert!(recipients::add(&stranger, &newest, &generate_identity().1).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_ends_the_old_secret_and_old_snapshots_open_as_ever() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let first = writer.backup("db", &day0).await.unwrap();
    // A session that is open when the epoch begins, its record signed and ready.
    let open = writer.session("log").await;
    let (_, record) = writer.uploaded(&open, "log", &[b"line"]).await;
    let rotated = rotate(&writer).await;
    assert_eq!((rotated.contents().version, rotated.contents().epoch), (2, 2));
    refused_with(open.commit(record.encode().into()).await.map(drop), ErrorCode::EpochEnded);
    // The machine is told what to do, and makes no snapshot.
    let error = writer.backup("db", &day1).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(error.to_string().contains("strongroom key renew"), "{error}");
    assert_eq!(snapshots(&server, &writer.namespace()).len(), 1);

    renew(&writer, &rotated);
    let second = writer.backup("db", &day0).await.unwrap();
    assert_eq!((second.sequence, second.deduplicated_bytes), (2, 0), "a full upload");
    let third = writer.backup("db", &day1).await.unwrap();
    assert!(third.sent_sealed_bytes < second.sent_sealed_bytes / 2, "the new cache works");
    let server = server.restart().await;
    for (summary, day) in [(first, &day0), (second, &day0), (third, &day1)] {
        let bytes = restored_with_kit(&server, &writer.kit(), summary.snapshot, false).await;
        assert!(bytes == std::fs::read(day).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_two_epochs_reach_a_replica_and_an_export_verified() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let mut made = vec![writer.backup("db", &day0).await.unwrap().snapshot];
    for _ in 0..2 {
        let rotated = rotate(&writer).await;
        renew(&writer, &rotated);
        made.push(writer.backup("db", &day1).await.unwrap().snapshot);
    }
    // The follower meets the newest descriptor first, and records of all three epochs after it.
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    let disk = folder.path().join("disk");
    export_to(&primary, &disk, &[]).await;
    assert_eq!(check(&disk, None).unwrap().snapshots, 3);
    let imported = TestServer::start().await;
    assert_eq!(carry(&disk, &primary, &imported).await.snapshots, 3);
    for server in [&replica, &imported] {
        for (record, day) in made.iter().zip([&day0, &day1, &day1]) {
            let bytes = restored_with_kit(server, &writer.kit(), *record, true).await;
            assert!(bytes == std::fs::read(day).unwrap());
        }
    }
}

/// A record by somebody who has a profile's keys and the secret of an epoch.
fn forged(
    writer: &Actor,
    (keys, certified_by): (&EpochKeys, &VerifiedDescriptor),
    real: &Record,
    names: DescriptorDigest,
) -> Record {
    let tree = Tree::seal(keys, &[b"forged"]);
    let mut body = real.body.clone();
    body.sequence += 1;
    body.previous = real.digest();
    (body.root, body.root_level, body.totals) =
        (tree.root.digest, tree.root.level, tree.root.totals);
    body.epoch = certified_by.contents().epoch;
    body.descriptor = names;
    let private = PrivateFields::default();
    commit::sign_record(&writer.profile, certified_by, keys, body, &tree.root, private).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_an_old_epoch_must_name_a_descriptor_of_the_chain_that_was_of_it() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (real, _) = writer.snapshot("db", &[b"one"]).await;
    let (old, old_keys) = (writer.kept_descriptor(), writer.keys());
    let rotated = rotate(&writer).await;
    let lies = Arc::new(Lies::default());
    let address = captured(server.repository.clone(), lies.clone()).await;
    let mut connect = writer.connect.clone();
    connect.servers = vec![address.to_string()];
    let access = ReadAccess::with_kit(&writer.kit(), &connect, false).await.unwrap();
    let verified = async |record: &Record| {
        lies.records.lock().unwrap().insert(record.digest(), record.encode());
        access.open_record(record.digest(), false).await.map(drop)
    };
    verified(&real).await.unwrap();
    // A thief with the old secret, and a server that shows what he made:
    let names = |digest| forged(&writer, (&old_keys, &old), &real, digest);
    let untrusted = |outcome: Result<(), ClientError>, what: &str| {
        assert!(matches!(outcome, Err(ClientError::Untrusted(_))), "{what}: {outcome:?}");
    };
    untrusted(verified(&names(rotated.digest())).await, "an old record under the new descriptor");
    untrusted(verified(&names(DescriptorDigest([9; 32]))).await, "a descriptor that is not");
    // One that the authority signed once for another chain: it leads nowhere.
    let kit = writer.kit();
    let stray = Descriptor {
        codec: strongroom_protocol::descriptor::Codec::None,
        ..old.contents().clone()
    };
    let stray = VerifiedDescriptor::decode(&stray.sign(&kit.authority_key)).unwrap();
    untrusted(verified(&names(stray.digest())).await, "a descriptor of another chain");
    // The new epoch's record key is not his.
    let mut of_new = forged(&writer, (&old_keys, &old), &real, rotated.digest());
    of_new.body.epoch = 2;
    untrusted(verified(&of_new).await, "a record that says it is of the new epoch");
    // What he can do: docs/security.md says so. The ledger says which came first.
    verified(&names(old.digest())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_machine_joins_by_an_export_and_without_the_kit() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    writer.backup("db", &day0).await.unwrap();
    let file = Export::of_profile(&writer.profile).unwrap().seal("five random words").unwrap();
    let export = || Export::open("five random words", &file).unwrap();
    let second = join(&server, "erp", Some(export())).await.unwrap();
    // What the first sent, the second finds.
    let mut second = Actor { home: second.0, profile: second.1, connect: server.connect() };
    let summary = second.backup("db", &day0).await.unwrap();
    assert_eq!((summary.sequence, summary.sent_chunk_count), (1, 0));
    assert!(!second.profile.folder().path("imported").exists());
    let bytes = restored_with_kit(&server, &writer.kit(), summary.snapshot, false).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
    // Neither without it, nor with another namespace's, nor with one of an older epoch.
    let none = join(&server, "erp", None).await;
    assert!(matches!(&none, Err(ClientError::Usage(why)) if why.contains("key export")));
    let evil = server.writer("evil").await;
    let foreign = Export::of_profile(&evil.profile).unwrap();
    let crossed = join(&server, "erp", Some(foreign)).await.map(drop);
    assert!(matches!(crossed, Err(ClientError::Untrusted(_))), "{crossed:?}");
    let rotated = rotate(&writer).await;
    let stale = join(&server, "erp", Some(export())).await.map(drop);
    assert!(matches!(&stale, Err(ClientError::Usage(why)) if why.contains("at epoch 2")));
    // A machine that lost the secret itself hands none on.
    writer.profile.accept_descriptor(rotated.encoded()).unwrap();
    let error = Export::of_profile(&writer.profile).err().unwrap().to_string();
    assert!(error.contains("key renew"), "{error}");
}

/// Enrols a further machine in a namespace, after `key import` if there is an export.
pub async fn join(
    server: &TestServer,
    namespace: &str,
    export: Option<Export>,
) -> Result<(tempfile::TempDir, Profile), ClientError> {
    let home = tempfile::tempdir().unwrap();
    let folder = ProfileFolder::new(home.path(), "default").unwrap();
    folder.make().unwrap();
    if let Some(export) = export {
        export.keep(&folder).unwrap();
    }
    let options = EnrollOptions {
        token: server.token(Some(namespace), Role::Backup),
        display_name: "second".into(),
        kit_folder: home.path().to_path_buf(),
        kit: None,
        second_of: None,
        connect: server.connect(),
    };
    enroll::enroll(&folder, options).await?;
    let profile = Profile::open(folder)?;
    Ok((home, profile))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kit_that_is_printed_anew_has_todays_floors_and_the_same_keys() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump");
    std::fs::write(&path, b"dump").unwrap();
    let old = writer.kit();
    let before = writer.backup("db", &path).await.unwrap();
    rotate(&writer).await;
    let today = "2026-05-06".parse().unwrap();
    let fresh = reprint::renewed(&old, &writer.connect, today).await.unwrap();
    assert_eq!((fresh.descriptor_version, fresh.created), (2, today));
    assert_eq!(fresh.servers, writer.connect.servers);
    let (was, is) = (old.checkpoint.unwrap(), fresh.checkpoint.unwrap());
    assert!(is.size > was.size && is.ledger_key == was.ledger_key);
    let keys =
        |kit: &Kit| (kit.identity.clone(), kit.authority_key.to_bytes(), kit.access_key.to_bytes());
    assert_eq!(keys(&old), keys(&fresh));
    let fresh = Kit::parse(&fresh.to_text().unwrap()).unwrap();
    restored_with_kit(&server, &fresh, before.snapshot, false).await;
    // A server that shows what was before the rotation is refused by the fresh one.
    let lies = Arc::new(Lies::default());
    let first = server.repository.descriptor(&writer.namespace(), Some(1)).unwrap();
    *lies.descriptor.lock().unwrap() = Some(first);
    let address = captured(server.repository.clone(), lies).await;
    let connect = ConnectOptions { servers: vec![address.to_string()], ..writer.connect };
    let refused = ReadAccess::with_kit(&fresh, &connect, false).await.map(drop);
    assert!(matches!(refused, Err(ClientError::Untrusted(_))), "{refused:?}");
    ReadAccess::with_kit(&old, &connect, false).await.unwrap();
}
