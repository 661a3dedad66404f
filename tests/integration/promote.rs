//! A namespace that moves to another server, and back: fence, request, descriptor, clients with
//! two servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use strongroom_client::backup::{self, BackupOptions, BackupSummary};
use strongroom_client::enroll::{self, EnrollOptions};
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::kit::Kit;
use strongroom_client::profile::{ConnectOptions, Profile, ProfileFolder};
use strongroom_client::progress::Monitor;
use strongroom_client::promotion;
use strongroom_client::session::Session;
use strongroom_client::source::Source;
use strongroom_client::standby::{self, Chosen, Purpose};
use strongroom_client::transport::RetryPolicy;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::descriptor::{Descriptor, VerifiedDescriptor};
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{DescriptorDigest, NamespaceId, PrincipalId, PublicKey};
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::Role;
use strongroom_protocol::token::Token;
use strongroom_server::config::{Config, Size};
use strongroom_server::followers::FollowState;
use strongroom_server::repository::descriptors::Move;
use strongroom_server::writer::Decision;

use crate::harness::{
    Actor, TestServer, label, refused_with, restored_with_kit, two_sites, unpack_dumps,
};
use crate::lying_server::{Lies, captured};
use crate::replica::{add, events, follow, quick, replica, snapshots, status, synced, until};

/// What the kit makes of a server's request.
pub fn signed(kit: &Kit, server: &TestServer) -> Vec<u8> {
    let request = server.repository.promotion_request(&label("erp")).unwrap();
    promotion::prepare(kit, &request.encode(), PathBuf::new()).unwrap().sign(kit)
}

pub fn promote(server: &TestServer, descriptor: &[u8]) -> Result<u64, String> {
    let moved = server.repository.move_namespace(&label("erp"), Move::Promote, descriptor);
    moved.map_err(|error| error.to_string())
}

fn takes_backups(server: &TestServer) -> bool {
    server.repository.namespaces()[0].takes_backups
}

pub fn version(server: &TestServer) -> u64 {
    server.repository.namespaces()[0].descriptor_version
}

/// Adds a server to an actor's profile, as its second.
pub async fn add_standby(actor: &Actor, server: &TestServer) -> Profile {
    let folder = actor.profile.folder();
    let options = EnrollOptions {
        token: server.token(Some("erp"), Role::Backup),
        display_name: "second".into(),
        kit_folder: actor.home.path().to_path_buf(),
        kit: None,
        second_of: Some(Profile::open(folder.clone()).unwrap()),
        connect: server.connect(),
    };
    enroll::enroll(&folder.standby(), options).await.unwrap();
    Profile::open(folder.standby()).unwrap()
}

/// As a profile's addresses say.
fn connect() -> ConnectOptions {
    ConnectOptions { retry: RetryPolicy::never(), ..ConnectOptions::default() }
}

async fn choose(actor: &Actor) -> Result<Chosen, ClientError> {
    let profile = Profile::open(actor.profile.folder().clone()).unwrap();
    standby::choose(profile, &connect(), Purpose::Backup).await
}

/// Backs up as the program does.
pub async fn back_up(actor: &Actor, path: &Path) -> Result<BackupSummary, ClientError> {
    let mut chosen = choose(actor).await?;
    run(&mut chosen.profile, path).await
}

async fn run(profile: &mut Profile, path: &Path) -> Result<BackupSummary, ClientError> {
    let options = BackupOptions::new(label("db"), connect());
    let mut source = Source::File(path.to_path_buf());
    backup::run(profile, &mut source, &options, &Monitor::hidden()).await
}

async fn session(profile: &Profile, namespace: NamespaceId) -> Result<Session, ClientError> {
    let client = profile.client(&connect()).unwrap();
    let (class, wanted) = (SizeClass::Stream, LockWanted::Default);
    Session::open(&client, namespace, &label("db"), class, wanted).await
}

/// A primary with its first snapshot, a replica that has it, and a client that knows both.
pub async fn pair() -> (TestServer, TestServer, Actor) {
    let (primary, replica, writer) = two_sites(quick).await;
    writer.snapshot("first", &[b"one", b"two"]).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    (primary, replica, writer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpromoted_replica_takes_no_backups_and_reads_as_ever() {
    let (_primary, replica, writer) = pair().await;
    let second = add_standby(&writer, &replica).await;
    refused_with(session(&second, writer.namespace()).await.map(drop), ErrorCode::NotPrimary);
    assert!(!takes_backups(&replica));
    // The client knows where to go.
    let chosen = choose(&writer).await.unwrap();
    assert_eq!(chosen.profile.settings().ledger_key, writer.profile.settings().ledger_key);
    // Nothing of this is in its ledger, and the snapshot is there.
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_next_descriptor_of_the_authority_that_names_this_server_promotes_it() {
    let (primary, replica, writer) = pair().await;
    let (kit, other) = (writer.kit(), TestServer::start().await);
    let good = signed(&kit, &replica);
    let contents = VerifiedDescriptor::decode(&good).unwrap().contents().clone();
    let with = |change: &dyn Fn(&mut Descriptor), key: &SigningKey| {
        let mut changed = contents.clone();
        change(&mut changed);
        changed.sign(key)
    };
    let thief = SigningKey::from_bytes(&[66; 32]);
    let thiefs_key = PublicKey(thief.verifying_key().to_bytes());
    let others_key = other.repository.keys().ledger_public();
    let authority = &kit.authority_key;
    let mut unsigned = good.clone();
    *unsigned.last_mut().unwrap() ^= 1;
    let cases = [
        ("signature", unsigned),
        ("signature", with(&|_| {}, &thief)),
        ("another namespace", with(&|next| next.authority = thiefs_key, &thief)),
        ("does not name this server", with(&|next| next.ledger_keys = vec![others_key], authority)),
        ("does not come next", with(&|next| next.version = 3, authority)),
        ("another version 1", with(&|next| next.version = 1, authority)),
        ("comes after another", with(&|next| next.previous = DescriptorDigest([7; 32]), authority)),
        ("epoch", with(&|next| next.epoch = 2, authority)),
        ("descriptor", good[..good.len() / 2].to_vec()),
    ];
    let size = || replica.repository.ledger().head().size;
    let before = size();
    for (reason, descriptor) in cases {
        let error = promote(&replica, &descriptor).expect_err(reason);
        assert!(error.contains(reason), "{error} instead of {reason}");
        assert!(error.contains("nothing was changed"), "{error}");
    }
    assert_eq!((size(), version(&replica), takes_backups(&replica)), (before, 1, false));
    // The kit itself refuses what it must not answer.
    let request = replica.repository.promotion_request(&label("erp")).unwrap();
    let refuses = |kit: &Kit, bytes: &[u8]| {
        promotion::prepare(kit, bytes, PathBuf::new()).err().map(|error| error.exit_code())
    };
    let strangers = other.writer("erp").await.kit();
    assert_eq!(refuses(&strangers, &request.encode()), Some(ExitCode::Untrusted));
    let later = Kit { descriptor_version: 2, ..kit.clone() };
    assert_eq!(refuses(&later, &request.encode()), Some(ExitCode::Untrusted));
    let swapped = strongroom_protocol::promotion::PromotionRequest {
        ledger_key: others_key,
        ..request.clone()
    };
    assert_eq!(refuses(&kit, &swapped.encode()), Some(ExitCode::Untrusted));
    let request = primary.repository.promotion_request(&label("erp")).unwrap();
    assert_eq!(refuses(&kit, &request.encode()), Some(ExitCode::Usage), "it is primary already");

    assert_eq!(promote(&replica, &good), Ok(2));
    assert_eq!(promote(&replica, &good), Ok(2), "the same again");
    assert!(takes_backups(&replica));
    let twin = with(&|next| next.ledger_keys.push(others_key), authority);
    assert!(promote(&replica, &twin).unwrap_err().contains("signed twice"));
    let taken = |event: &&Event| matches!(event, Event::DescriptorTaken { version: 2, .. });
    assert_eq!(events(&replica.repository).iter().filter(taken).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_go_on_with_a_promoted_replica_which_stays_promoted() {
    let (primary, replica, writer) = pair().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    let first = back_up(&writer, &day0).await.unwrap();
    synced(&replica, &primary, "office").await;
    add_standby(&writer, &replica).await;
    primary.stop().await;
    // Not before it is promoted.
    let error = back_up(&writer, &day1).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Temporary, "{error}");
    assert!(error.to_string().contains("promote the other"), "{error}");
    assert_eq!(promote(&replica, &signed(&writer.kit(), &replica)), Ok(2));
    let second = back_up(&writer, &day1).await.unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 1), "each server has a chain of its own");

    let (data, clock, address) = (replica.folder.clone(), replica.clock.clone(), replica.address);
    replica.stop().await;
    let replica = TestServer::open_with(data, clock, |config| config.listen = address).await;
    assert!(takes_backups(&replica));
    let third = back_up(&writer, &day1).await.unwrap();
    assert_eq!(third.sequence, 2);
    // Records of both versions verify with the newest descriptor, which names this server.
    let kit = writer.kit();
    for (day, summary) in [(&day0, first), (&day1, second), (&day1, third)] {
        let bytes = restored_with_kit(&replica, &kit, summary.snapshot, false).await;
        assert!(bytes == std::fs::read(day).unwrap());
    }
    let profile = Profile::open(writer.profile.folder().clone()).unwrap();
    let own = strongroom_client::snapshot::list_own(&profile, Some(&label("db"))).unwrap();
    assert_eq!(own.len(), 3, "receipts of both servers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_saw_the_move_refuses_the_old_primary_when_it_comes_back() {
    let (primary, replica, writer) = pair().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    add_standby(&writer, &replica).await;
    let address = primary.address;
    let (data, clock) = primary.stop().await;
    promote(&replica, &signed(&writer.kit(), &replica)).unwrap();
    back_up(&writer, &day0).await.unwrap();
    let primary = TestServer::open_with(data, clock, |config| config.listen = address).await;
    assert!(takes_backups(&primary), "it has heard nothing yet");

    // Both answer: the second is used. Only the first answers: none is.
    let chosen = choose(&writer).await.unwrap();
    assert_ne!(chosen.profile.settings().ledger_key, writer.profile.settings().ledger_key);
    let [sent, held] =
        [&replica, &primary].map(|server| snapshots(server, &writer.namespace()).len());
    assert_eq!((sent, held), (2, 1));
    replica.stop().await;
    let error = back_up(&writer, &day0).await.unwrap_err();
    assert!(matches!(error, ClientError::NotPromoted { .. }), "{error}");
    // Not even where it is led to the first by hand: its floor knows better.
    let mut first = Profile::open(writer.profile.folder().clone()).unwrap();
    assert_eq!(first.settings().descriptor_version, 2);
    let error = run(&mut first, &day0).await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted(_)), "{error}");
    assert_eq!(snapshots(&primary, &writer.namespace()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_learns_of_the_move_takes_nothing_also_in_open_sessions() {
    let (primary, replica, mut writer) = pair().await;
    let open = writer.session("db").await;
    let (_, record) = writer.uploaded(&open, "db", &[b"three"]).await;
    promote(&replica, &signed(&writer.kit(), &replica)).unwrap();
    assert!(takes_backups(&primary) && takes_backups(&replica), "nobody told the primary yet");
    follow(&primary, &replica, "offsite").await;
    until("the primary learns of it", || version(&primary) == 2).await;
    assert!(!takes_backups(&primary));

    refused_with(open.commit(record.encode().into()).await.map(drop), ErrorCode::NotPrimary);
    let chunk = crate::harness::frames(&crate::harness::Tree::seal(&writer.keys(), &[b"x"]).chunks);
    refused_with(open.upload(chunk).await.map(drop), ErrorCode::NotPrimary);
    let opened = session(&writer.profile, writer.namespace()).await;
    refused_with(opened.map(drop), ErrorCode::NotPrimary);
    // A client that knows one server only is told, too.
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = writer.backup("db", file.path()).await.unwrap_err();
    assert!(error.to_string().contains("has left this server"), "{error}");
    assert_eq!(snapshots(&primary, &writer.namespace()).len(), 1);
    // The step down is undone by the authority alone.
    let own = primary.repository.promotion_request(&label("erp")).unwrap();
    let again = promotion::prepare(&writer.kit(), &own.encode(), PathBuf::new()).unwrap();
    assert_eq!(promote(&primary, &again.sign(&writer.kit())), Ok(3));
    assert!(session(&writer.profile, writer.namespace()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn promotion_while_a_pull_runs_shows_nothing_half() {
    let slow = |config: &mut Config| {
        quick(config);
        config.replica.bytes_per_second = Size(4 << 20);
        config.replica.connections = 1;
        config.store.segment = Size(1 << 20);
    };
    let (primary, replica, mut writer) = two_sites(slow).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    follow(&replica, &primary, "office").await;
    until("half way", || status(&replica, "office").received_bytes > 2 << 20).await;
    promote(&replica, &signed(&writer.kit(), &replica)).unwrap();
    assert!(snapshots(&replica, &writer.namespace()).is_empty());
    assert_eq!(status(&replica, "office").pending_snapshots, 1);
    // What was on its way comes whole; what is committed there from now on does not.
    let (late, _) = writer.snapshot("late", &[b"late"]).await;
    until("whole", || snapshots(&replica, &writer.namespace()).len() == 1).await;
    let bytes = restored_with_kit(&replica, &writer.kit(), summary.snapshot, false).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
    until("set aside", || {
        let seen = status(&replica, "office");
        seen.state == FollowState::Failing && seen.trouble.contains("had moved here")
    })
    .await;
    let listed = snapshots(&replica, &writer.namespace());
    assert!(listed.iter().all(|row| row.record != late.digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_back_moves_only_the_difference_and_loses_nothing() {
    let (primary, replica, writer) = pair().await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, day2] = unpack_dumps(folder.path());
    back_up(&writer, &day0).await.unwrap();
    synced(&replica, &primary, "office").await;
    add_standby(&writer, &replica).await;
    // This one never reaches the replica before the first site is gone.
    replica.repository.pause_primary(&label("office"), true).unwrap();
    let (lost, _) = writer.snapshot("late", &[b"late"]).await;
    let address = primary.address;
    let (data, clock) = primary.stop().await;
    promote(&replica, &signed(&writer.kit(), &replica)).unwrap();
    let second = back_up(&writer, &day1).await.unwrap();

    // The first site is back: it follows, steps down, and gets what it lacks and no more.
    let at = |config: &mut Config| {
        quick(config);
        config.listen = address;
    };
    let primary = TestServer::open_with(data, clock, at).await;
    follow(&primary, &replica, "offsite").await;
    synced(&primary, &replica, "offsite").await;
    assert!(!takes_backups(&primary));
    let moved = status(&primary, "offsite").received_bytes;
    assert!(moved > 0 && moved * 100 < second.sent_sealed_bytes * 105, "{moved} for {second:?}");
    replica.repository.pause_primary(&label("office"), false).unwrap();
    until("set aside", || status(&replica, "office").trouble.contains("had moved here")).await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 3);

    // Back again: first the one that steps down, so that nothing is committed in between.
    let kit = Kit { descriptor_version: 2, ..writer.kit() };
    let third = signed(&kit, &primary);
    let demote =
        |server: &TestServer| server.repository.move_namespace(&label("erp"), Move::Demote, &third);
    assert_eq!(demote(&replica).unwrap(), 3);
    assert!(demote(&primary).unwrap_err().to_string().contains("names this server"));
    until("the first takes backups again", || takes_backups(&primary)).await;
    let last = back_up(&writer, &day2).await.unwrap();
    assert_eq!(last.sequence, 2, "the chain of the first server goes on");
    synced(&replica, &primary, "office").await;
    synced(&primary, &replica, "offsite").await;
    for server in [&primary, &replica] {
        let rows = snapshots(server, &writer.namespace());
        assert_eq!(rows.len(), 5, "first, day0, late, day1, day2");
        assert!(rows.iter().any(|row| row.record == lost.digest()));
        let from_replica = !takes_backups(server);
        let bytes = restored_with_kit(server, &kit, last.snapshot, from_replica).await;
        assert!(bytes == std::fs::read(&day2).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_is_bounded_stops_nothing_and_all_comes_at_fail_back() {
    let primary = TestServer::start_with(quick).await;
    let narrow = |config: &mut Config| {
        quick(config);
        config.replica.pending_max = 256;
    };
    let replica = TestServer::start_with(narrow).await;
    let (writer, other) = (primary.writer("erp").await, primary.writer("files").await);
    writer.snapshot("first", &[b"one"]).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    promote(&replica, &signed(&writer.kit(), &replica)).unwrap();
    // Nobody told the first site, where backups go on: more than are noted.
    let count = 300;
    for number in 0..count {
        writer.snapshot("late", &[&u32::to_le_bytes(number)]).await;
    }
    let (after, _) = other.snapshot("home", &[b"after them"]).await;
    let (files, after) = (other.namespace(), after.digest());
    let is_here = || snapshots(&replica, &files).iter().any(|row| row.record == after);
    until("what stands behind them", is_here).await;
    let followed = || status(&replica, "office").followed_entries;
    until("the end", || followed() == primary.repository.ledger().head().size).await;
    until("the end of the look", || status(&replica, "office").state == FollowState::Failing).await;
    let seen = status(&replica, "office");
    assert_eq!((seen.state, seen.pending_snapshots), (FollowState::Failing, 256), "{seen:?}");
    assert!(seen.trouble.contains("had moved here"), "{seen:?}");
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
    // A restart forgets nothing of that.
    let replica = replica.restart_with(narrow).await;
    // The namespace goes back to the first site: all of them come.
    let own = primary.repository.promotion_request(&label("erp")).unwrap();
    assert_eq!(own.snapshots, u64::from(count) + 1);
    follow(&primary, &replica, "offsite").await;
    until("the first site learns of the move", || version(&primary) == 2).await;
    let kit = Kit { descriptor_version: 2, ..writer.kit() };
    let third = signed(&kit, &primary);
    replica.repository.move_namespace(&label("erp"), Move::Demote, &third).unwrap();
    let all = || snapshots(&replica, &writer.namespace()).len();
    until("all", || all() == usize::try_from(count).unwrap() + 1).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(status(&replica, "office").pending_snapshots, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kit_on_a_server_that_is_not_promoted_leaves_the_token_for_later() {
    let (_primary, replica, writer) = pair().await;
    let token = replica.token(Some("erp"), Role::Backup);
    let home = tempfile::tempdir().unwrap();
    let folder = ProfileFolder::new(home.path(), "default").unwrap();
    let enroll = async |kit: Kit| {
        let options = EnrollOptions {
            token: token.clone(),
            display_name: "further".into(),
            kit_folder: home.path().to_path_buf(),
            kit: Some(kit),
            second_of: None,
            connect: replica.connect(),
        };
        enroll::enroll(&folder, options).await
    };
    let error = enroll(writer.kit()).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    assert!(error.to_string().contains("promote"), "{error}");
    assert!(!folder.is_enrolled());
    assert_eq!(promote(&replica, &signed(&writer.kit(), &replica)), Ok(2));
    enroll(writer.kit()).await.unwrap();
    let profile = Profile::open(folder.clone()).unwrap();
    session(&profile, writer.namespace()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_descriptors_of_one_version_are_refused_on_record_and_replace_nothing() {
    let (primary, one, writer) = pair().await;
    let two = replica().await;
    follow(&two, &primary, "office").await;
    synced(&two, &primary, "office").await;
    // The kit is used twice, for two replicas.
    promote(&one, &signed(&writer.kit(), &one)).unwrap();
    promote(&two, &signed(&writer.kit(), &two)).unwrap();
    let kept = one.repository.descriptor(&writer.namespace(), None).unwrap();
    follow(&one, &two, "twin").await;
    let refused = |event: &&Event| matches!(event, Event::DescriptorRefused { version: 2, .. });
    let count = || events(&one.repository).iter().filter(refused).count();
    until("on record", || count() == 1).await;
    synced(&one, &two, "twin").await;
    assert_eq!(one.repository.descriptor(&writer.namespace(), None).unwrap(), kept);
    let metrics = String::from_utf8(one.repository.metrics().render().unwrap()).unwrap();
    let line = "strongroom_replica_refused_descriptors_total{primary=\"twin\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    assert_eq!(count(), 1);
    // A client that meets both trusts neither.
    add_standby(&writer, &one).await;
    let mut first = Profile::open(writer.profile.folder().clone()).unwrap();
    let twin = two.repository.descriptor(&writer.namespace(), None).unwrap();
    first.accept_descriptor(&twin).unwrap();
    let error = choose(&writer).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_gets_all_versions_and_old_ones_are_served() {
    let (primary, replica, writer) = pair().await;
    promote(&replica, &signed(&writer.kit(), &replica)).unwrap();
    let last = crate::replica::replica().await;
    follow(&last, &replica, "offsite").await;
    synced(&last, &replica, "offsite").await;
    assert_eq!((version(&last), takes_backups(&last)), (2, false));
    let namespace = writer.namespace();
    for number in [Some(1), Some(2), None] {
        let [have, had] =
            [&last, &replica].map(|server| server.repository.descriptor(&namespace, number));
        assert_eq!(have.unwrap(), had.unwrap());
    }
    let first = primary.repository.descriptor(&namespace, None).unwrap();
    assert_eq!(last.repository.descriptor(&namespace, Some(1)).unwrap(), first);
    assert!(last.repository.descriptor(&namespace, Some(3)).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_must_have_the_same_namespace_and_role() {
    let (primary, replica, writer) = pair().await;
    let other = TestServer::start().await;
    let stranger = other.writer("erp").await;
    let add = async |token| {
        let folder = writer.profile.folder();
        let options = EnrollOptions {
            token,
            display_name: "second".into(),
            kit_folder: writer.home.path().to_path_buf(),
            kit: None,
            second_of: Some(Profile::open(folder.clone()).unwrap()),
            connect: other.connect(),
        };
        enroll::enroll(&folder.standby(), options).await.map(drop)
    };
    let elsewhere = add(other.token(Some("erp"), Role::Backup)).await.unwrap_err();
    assert_eq!(elsewhere.exit_code(), ExitCode::Untrusted, "{elsewhere}");
    for token in [
        replica.token(Some("erp"), Role::Restore),
        replica.token(None, Role::Operator),
        other.token(Some("new"), Role::Backup),
    ] {
        let error = add(token).await.unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Usage, "{error}");
    }
    assert!(standby::second_of(&writer.profile).unwrap().is_none());
    drop((primary, stranger));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_that_a_captured_primary_made_is_not_taken() {
    let (primary, replica) = (TestServer::start_with(quick).await, replica().await);
    let writer = primary.writer("erp").await;
    let lies = Arc::new(Lies::default());
    let address = captured(primary.repository.clone(), lies.clone()).await;
    let token = Token { addresses: address.to_string(), ..primary.token(None, Role::Replica) };
    add(&replica, &token, "office", &[]).await;
    writer.snapshot("db", &[b"one"]).await;
    synced(&replica, &primary, "office").await;
    let kept = replica.repository.descriptor(&writer.namespace(), None).unwrap();

    // One that the primary's own hand signed, and one of a namespace of its own.
    let (kit, thief) = (writer.kit(), SigningKey::from_bytes(&[66; 32]));
    let genuine = signed(&kit, &replica);
    let contents = VerifiedDescriptor::decode(&genuine).unwrap().contents().clone();
    let authority = PublicKey(thief.verifying_key().to_bytes());
    let failures = || {
        let counter = &replica.repository.metrics().replica.failures;
        counter.with_label_values(&["office"]).get()
    };
    let foreign = Descriptor { authority, ..contents.clone() }.sign(&thief);
    for forged in [contents.sign(&thief), foreign] {
        *lies.descriptor.lock().unwrap() = Some(forged);
        // Its ledger is its own: there it can say that such a descriptor is in force.
        let event = Event::DescriptorTaken { descriptor: DescriptorDigest([9; 32]), version: 2 };
        let namespace = writer.namespace();
        let enter = move |decision: &mut Decision<'_>| {
            decision.enter(PrincipalId::LOCAL, namespace, event);
            Ok(())
        };
        primary.repository.writer().decide(enter).unwrap();
        let before = failures();
        until("noticed twice", || failures() >= before + 2).await;
        assert_eq!(status(&replica, "office").state, FollowState::Failing);
        assert_eq!(replica.repository.descriptor(&namespace, None).unwrap(), kept);
        assert!(!takes_backups(&replica));
    }
    // The genuine one is taken, and the entry that names another is refused, on record.
    *lies.descriptor.lock().unwrap() = Some(genuine.clone());
    until("taken", || takes_backups(&replica)).await;
    assert_eq!(replica.repository.descriptor(&writer.namespace(), None).unwrap(), genuine);
    until("refused", || {
        let refused = |event: &Event| matches!(event, Event::DescriptorRefused { version: 2, .. });
        events(&replica.repository).iter().any(refused)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_with_two_servers_reads_from_the_one_that_answers() {
    let (primary, replica, writer) = pair().await;
    let reader = primary.principal(Some("erp"), Role::Restore).await;
    let second = reader.profile.folder().standby();
    let options = EnrollOptions {
        token: replica.token(Some("erp"), Role::Restore),
        display_name: "second".into(),
        kit_folder: reader.home.path().to_path_buf(),
        kit: None,
        second_of: Some(Profile::open(reader.profile.folder().clone()).unwrap()),
        connect: replica.connect(),
    };
    enroll::enroll(&second, options).await.unwrap();
    let chosen = async || {
        let profile = Profile::open(reader.profile.folder().clone()).unwrap();
        standby::choose(profile, &connect(), Purpose::Read).await.unwrap()
    };
    assert!(!chosen().await.is_replica);
    primary.stop().await;
    let Chosen { mut profile, is_replica } = chosen().await;
    assert!(is_replica);
    let connect = ConnectOptions { from_replica: is_replica, ..connect() };
    let identities = vec![writer.kit().identity.clone()];
    let access = ReadAccess::with_profile(&mut profile, identities, &connect).await.unwrap();
    let listed = strongroom_client::snapshot::list(&access, None).await.unwrap();
    let opened = access.open_record(listed[0].snapshot, false).await.unwrap();
    assert!(listed.len() == 1 && opened.is_verified);
}
