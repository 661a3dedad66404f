//! Keys of principals that roll over: by themselves, by hand, at each crash, against thieves.

use std::path::Path;

use ed25519_dalek::SigningKey;
use strongroom_client::connection::{Body, Connection};
use strongroom_client::enroll::{self, EnrollOptions};
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::history::{self, Rolled};
use strongroom_client::profile::{ConnectOptions, Profile, ProfileFolder};
use strongroom_client::rolling::{self, NextKeys};
use strongroom_client::tls::TlsIdentity;
use strongroom_client::transport::Client;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{PrincipalId, PublicKey, TlsKeyDigest};
use strongroom_protocol::message::{Retain, SizeClass};
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::Role;
use strongroom_protocol::roll::{NewKeys, RollRequest};
use strongroom_protocol::route::Route;
use strongroom_server::config::Period;

use crate::harness::{
    Actor, DAY, TestServer, Tree, copy_folder, frames, refused_with, restored_with_kit,
    unpack_dumps,
};
use crate::programs::{Served, json, text};
use crate::replica::events;

/// What the profile shows and signs with.
fn keys_of(profile: &Profile) -> (TlsKeyDigest, PublicKey) {
    let identity = profile.folder().tls_identity().unwrap();
    (identity.key_digest().unwrap(), profile.signing_public_key().unwrap())
}

/// Reads the profile again, as the next run does.
fn reopen(actor: &mut Actor) {
    actor.profile = Profile::open(actor.profile.folder().clone()).unwrap();
}

/// Lets the profile's keys be so many days old.
fn age(actor: &mut Actor, days: u64) {
    let path = actor.profile.folder().path("profile.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let made = actor.profile.keys_made_seconds();
    let older = text.replace(
        &format!("made_seconds = {made}"),
        &format!("made_seconds = {}", made - days * 24 * 3600),
    );
    assert_ne!(text, older);
    std::fs::write(&path, older).unwrap();
    reopen(actor);
}

/// The roll-overs in a server's ledger.
fn rolled(server: &TestServer) -> Vec<NewKeys> {
    let ledger_key = server.repository.keys().ledger_public();
    let event = |event| match event {
        Event::KeysRolled { principal, tls_key, signing_key, .. } => {
            Some(NewKeys { ledger_key, principal, tls_key, signing_key })
        }
        _ => None,
    };
    events(&server.repository).into_iter().filter_map(event).collect()
}

/// A client that shows a certain key of a profile.
fn client_with(actor: &Actor, identity: &TlsIdentity) -> Client {
    actor.profile.client_as(identity, &actor.connect).unwrap()
}

async fn ask(client: &Client) -> Result<(), ClientError> {
    client.request(&Route::Checkpoint, "", Body::empty()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_roll_over_by_themselves_before_their_age_and_all_else_stays() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, day2] = unpack_dumps(folder.path());
    let first = writer.backup("db", &day0).await.unwrap();
    let (old_keys, id) = (keys_of(&writer.profile), writer.profile.settings().principal);
    let old = writer.profile.folder().tls_identity().unwrap();
    age(&mut writer, 334);
    writer.backup("other", &day0).await.unwrap();
    assert_eq!(keys_of(&writer.profile), old_keys, "a day too early");
    age(&mut writer, 2);
    let second = writer.backup("db", &day1).await.unwrap();
    let new_keys = keys_of(&writer.profile);
    assert!(new_keys.0 != old_keys.0 && new_keys.1 != old_keys.1);
    // The same principal goes on with the same chain; the old TLS key is nobody's.
    assert_eq!(writer.profile.settings().principal, id);
    assert_eq!((first.sequence, second.sequence), (1, 2));
    refused_with(ask(&client_with(&writer, &old)).await, ErrorCode::KeysRolled);
    // On record, vouched for by the old key: any auditor can check it.
    let [entry] = rolled(&server).try_into().unwrap();
    assert_eq!((entry.tls_key, entry.signing_key, entry.principal), (new_keys.0, new_keys.1, id));
    let vouch = events(&server.repository).into_iter().find_map(|event| match event {
        Event::KeysRolled { vouch, .. } => Some(vouch),
        _ => None,
    });
    assert!(entry.check(&old_keys.1, &vouch.unwrap()).is_ok());
    assert!(entry.check(&new_keys.1, &vouch.unwrap()).is_err());
    // It stays so after a restart, and nothing is rolled over that is young.
    let server = server.restart().await;
    writer.connect = server.connect();
    reopen(&mut writer);
    let third = writer.backup("db", &day2).await.unwrap();
    assert_eq!((third.sequence, keys_of(&writer.profile)), (3, new_keys));
    refused_with(ask(&client_with(&writer, &old)).await, ErrorCode::KeysRolled);
    for (day, summary) in [(day0, first), (day1, second), (day2, third)] {
        let bytes = restored_with_kit(&server, &writer.kit(), summary.snapshot, false).await;
        assert!(bytes == std::fs::read(&day).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_lost_its_receipts_knows_what_its_older_keys_signed() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let (first, _) = writer.snapshot("db", &[b"one"]).await;
    for _ in 0..2 {
        history::roll_now(&mut writer.profile, &writer.connect).await.unwrap();
    }
    let (second, _) = writer.snapshot("db", &[b"two"]).await;
    assert_eq!((second.body.sequence, second.body.previous), (2, first.digest()));
    assert_ne!(second.certificate.signing_key, first.certificate.signing_key);
    assert_eq!(writer.profile.settings().keys.former.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_role_roll_over() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"one"]).await;
    for role in Role::OF_CLIENTS.into_iter().filter(|role| *role != Role::Backup) {
        let mut actor = server.principal(Some("erp"), role).await;
        let old = actor.profile.folder().tls_identity().unwrap();
        history::roll_now(&mut actor.profile, &actor.connect).await.unwrap();
        ask(&actor.client()).await.unwrap();
        refused_with(ask(&client_with(&actor, &old)).await, ErrorCode::KeysRolled);
        if role == Role::SecurityOfficer {
            // It still is who may do this.
            let wanted = Retain { lock_wanted: LockWanted::Period(90 * 24 * 3600), mode: None };
            let route = Route::Retain(writer.namespace(), record.digest());
            let done: Result<serde_json::Value, _> =
                actor.client().json(&route, "", Some(&wanted)).await;
            done.unwrap();
        }
    }
    assert_eq!(rolled(&server).len(), Role::OF_CLIENTS.len() - 1);
}

/// Where a roll-over ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    BeforeAsking,
    AnswerLost,
    SettingsWritten,
    TlsKeyWritten,
    AllWritten,
}

async fn roll_until(crash: Crash, actor: &mut Actor) {
    let profile = &actor.profile;
    let (next, old) = (NextKeys::generate().unwrap(), profile.signing_key().unwrap());
    profile.folder().write_next_keys(&next).unwrap();
    if crash == Crash::BeforeAsking {
        return;
    }
    let settings = profile.settings();
    let who = (settings.ledger_key, settings.principal);
    let mut connection = actor.client().connect().await.unwrap();
    rolling::ask(&mut connection, who, &old, &next).await.unwrap();
    drop(connection);
    if crash == Crash::AnswerLost {
        return;
    }
    let folder = profile.folder().clone();
    let before = ["tls.key", "tls.crt", "signing.key"]
        .map(|name| (name, std::fs::read(folder.path(name)).unwrap()));
    actor.profile.adopt(&next).unwrap();
    folder.write_next_keys(&next).unwrap();
    let undone = match crash {
        Crash::SettingsWritten => 0,
        Crash::TlsKeyWritten => 1,
        _ => 3,
    };
    for (name, bytes) in &before[undone..] {
        std::fs::write(folder.path(name), bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_each_step_of_a_roll_over_is_finished_by_the_next_run() {
    let crashes = [
        Crash::BeforeAsking,
        Crash::AnswerLost,
        Crash::SettingsWritten,
        Crash::TlsKeyWritten,
        Crash::AllWritten,
    ];
    for crash in crashes {
        let server = TestServer::start().await;
        let mut writer = server.writer("erp").await;
        writer.snapshot("db", &[b"one"]).await;
        let old = keys_of(&writer.profile);
        roll_until(crash, &mut writer).await;
        reopen(&mut writer);
        drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
        assert!(writer.profile.folder().next_keys().unwrap().is_none(), "{crash:?}");
        let [entry] = rolled(&server).try_into().unwrap();
        assert_eq!(keys_of(&writer.profile), (entry.tls_key, entry.signing_key), "{crash:?}");
        assert_eq!(writer.profile.settings().keys.former, [old.1], "{crash:?}");
        let (record, _) = writer.snapshot("db", &[b"two"]).await;
        assert_eq!(record.body.sequence, 2, "{crash:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_roll_over_stops_no_backup_and_is_tried_anew() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    // The server has another signing key for this machine: it cannot vouch.
    let own = writer.profile.folder().path("signing.key");
    let kept = std::fs::read(&own).unwrap();
    std::fs::write(&own, format!("{}\n", "07".repeat(32))).unwrap();
    let refused = history::roll_now(&mut writer.profile, &writer.connect).await;
    refused_with(refused.map(drop), ErrorCode::BadRequest);
    assert!(writer.profile.folder().next_keys().unwrap().is_none());
    age(&mut writer, 400);
    let client = history::connect(&mut writer.profile, &writer.connect).await.unwrap();
    assert!(rolled(&server).is_empty());
    drop(client);
    std::fs::write(&own, kept).unwrap();
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(rolled(&server).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_who_rolls_first_shuts_the_owner_out_who_says_what_to_do() {
    let server = TestServer::start().await;
    let mut owner = server.writer("erp").await;
    let stolen = tempfile::tempdir().unwrap();
    copy_folder(&owner.home.path().join("default"), &stolen.path().join("default"));
    let folder = ProfileFolder::new(stolen.path(), "default").unwrap();
    let mut thief = Profile::open(folder).unwrap();
    history::roll_now(&mut thief, &owner.connect).await.unwrap();
    let outcome = history::connect(&mut owner.profile, &owner.connect).await;
    let error = outcome.expect_err("shut out");
    assert_eq!(error.code(), Some(ErrorCode::KeysRolled));
    assert_eq!(error.exit_code(), ExitCode::NotAuthorised);
    let id = owner.profile.settings().principal;
    let says = error.to_string();
    assert!(says.contains("stolen") && says.contains(&format!("principal {id} revoked")), "{says}");
    // What it says to do ends both.
    server.repository.revoke(id).unwrap();
    let thief = thief.client(&owner.connect).unwrap();
    refused_with(ask(&thief).await, ErrorCode::UnknownPrincipal);
    let owner = owner.client();
    refused_with(ask(&owner).await, ErrorCode::UnknownPrincipal);
}

type Change = Box<dyn Fn(&mut RollRequest, &[u8; 32])>;

/// Requests that lack one of the keys.
fn lies() -> Vec<(&'static str, Change)> {
    let thief_key = SigningKey::from_bytes(&[66; 32]);
    let another = NextKeys::generate().unwrap();
    let stranger = PrincipalId([9; 16]);
    vec![
        ("another principal", Box::new(move |request, _| request.principal = stranger)),
        (
            "a signing key that is not held",
            Box::new(move |request, _| request.possession = [7; 64]),
        ),
        (
            "a signing key that nobody vouched for",
            Box::new(move |request, exporter| {
                request.signing_key = PublicKey(thief_key.verifying_key().to_bytes());
                request.prove_held(&thief_key, exporter);
            }),
        ),
        (
            "a TLS key that is not held",
            Box::new(move |request, exporter| {
                request.tls_possession =
                    another.identity.sign(&request.tls_message(exporter)).unwrap();
            }),
        ),
        ("no proof of the TLS key", Box::new(|request, _| request.tls_possession.clear())),
    ]
}

async fn connection_of(actor: &Actor) -> Connection {
    actor.client().connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_need_all_four_keys_and_a_connection_of_their_own() {
    let server = TestServer::start().await;
    let (writer, other) = (server.writer("erp").await, server.writer("other").await);
    let settings = writer.profile.settings();
    let who = (settings.ledger_key, settings.principal);
    let (own, next) = (writer.profile.signing_key().unwrap(), NextKeys::generate().unwrap());
    let made = |exporter: &[u8; 32], who, old: &SigningKey| {
        rolling::request(exporter, who, old, &next).unwrap()
    };
    let thief = SigningKey::from_bytes(&[66; 32]);
    let send = async |connection: &mut Connection, request: &RollRequest| {
        let body = Body::from(request.encode());
        connection.call(&Route::RollKeys, "", body, 4096).await.map(drop)
    };
    let mut connection = connection_of(&writer).await;
    let exporter = *connection.exporter();
    for (what, change) in lies() {
        let mut request = made(&exporter, who, &own);
        change(&mut request, &exporter);
        let outcome = send(&mut connection, &request).await;
        assert!(outcome.is_err(), "{what}");
        refused_with(outcome, ErrorCode::BadRequest);
    }
    refused_with(send(&mut connection, &made(&exporter, who, &thief)).await, ErrorCode::BadRequest);
    let elsewhere = (PublicKey([8; 32]), who.1);
    let outcome = send(&mut connection, &made(&exporter, elsewhere, &own)).await;
    refused_with(outcome, ErrorCode::BadRequest);
    let heard = made(&[1; 32], who, &own);
    refused_with(send(&mut connection, &heard).await, ErrorCode::BadRequest);
    let good = made(&exporter, who, &own);
    // Somebody else's connection, a stranger's, and that of the kit's access key.
    let mut foreign = connection_of(&other).await;
    refused_with(send(&mut foreign, &good).await, ErrorCode::BadRequest);
    let mut unknown = client_with(&writer, &TlsIdentity::generate().unwrap());
    refused_with(
        send(&mut unknown.connect().await.unwrap(), &good).await,
        ErrorCode::UnknownPrincipal,
    );
    let access = TlsIdentity::of_ed25519_seed(writer.kit().access_key.as_bytes()).unwrap();
    unknown = client_with(&writer, &access);
    let mut with_kit = unknown.connect().await.unwrap();
    let kit_key = writer.kit().access_key.clone();
    let body = made(with_kit.exporter(), who, &kit_key);
    assert!(send(&mut with_kit, &body).await.is_err());
    assert!(rolled(&server).is_empty());
    // None of them has done anything to it.
    send(&mut connection, &good).await.unwrap();
    let replayed = send(&mut connection, &good).await;
    refused_with(replayed, ErrorCode::KeysRolled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_key_that_is_or_was_somebodys_is_not_taken() {
    let server = TestServer::start().await;
    let (mut writer, other) = (server.writer("erp").await, server.writer("other").await);
    let first = writer.profile.folder().tls_identity().unwrap();
    history::roll_now(&mut writer.profile, &writer.connect).await.unwrap();
    let second = writer.profile.folder().tls_identity().unwrap();
    let mut connection = connection_of(&other).await;
    let settings = other.profile.settings();
    let who = (settings.ledger_key, settings.principal);
    let own = other.profile.signing_key().unwrap();
    for identity in [first, second] {
        let taken = NextKeys { identity, ..NextKeys::generate().unwrap() };
        let outcome = rolling::ask(&mut connection, who, &own, &taken).await;
        refused_with(outcome.map(drop), ErrorCode::BadRequest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_too_old_do_nothing_but_roll_over() {
    let server = TestServer::start_with(|config| config.keys.principal_age = Period(2 * DAY)).await;
    let mut writer = server.writer("erp").await;
    let replica = server.principal(None, Role::Replica).await;
    writer.snapshot("db", &[b"one"]).await;
    server.clock.advance(3 * DAY);
    let opened = writer.session_of("db", SizeClass::Small).await;
    refused_with(opened.map(drop), ErrorCode::KeysExpired);
    // A server that follows has nobody who reads what it is told, and the kit has its own way.
    ask(&replica.client()).await.unwrap();
    assert!(ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.is_ok());
    // The next command rolls them over by itself, and goes on.
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(rolled(&server).len(), 1);
    writer.snapshot("db", &[b"two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_do_not_change_under_a_run_that_uses_them() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let run = writer.client();
    let outcome = history::roll_keys(&mut writer.profile, &writer.connect).await.unwrap();
    assert_eq!(outcome, Rolled::InUse);
    let by_hand = history::roll_now(&mut writer.profile, &writer.connect).await;
    assert!(by_hand.unwrap_err().to_string().contains("another run of this profile"));
    age(&mut writer, 400);
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    ask(&run).await.unwrap();
    assert!(rolled(&server).is_empty());
    drop(run);
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(rolled(&server).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_acts_on_open_connections_and_open_sessions() {
    let server = TestServer::start().await;
    let (writer, other) = (server.writer("erp").await, server.writer("other").await);
    let session = writer.session("db").await;
    let tree = Tree::seal(&writer.keys(), &[b"one"]);
    session.upload(frames(&tree.envelopes())).await.unwrap();
    let record = writer.record(&session, "db", &tree.root, |_| {});
    let mut connection = connection_of(&writer).await;
    let route = Route::Checkpoint;
    connection.call(&route, "", Body::empty(), 4096).await.unwrap();
    server.repository.revoke(writer.profile.settings().principal).unwrap();
    let outcome = connection.call(&route, "", Body::empty(), 4096).await;
    refused_with(outcome, ErrorCode::UnknownPrincipal);
    refused_with(session.have(&[]).await, ErrorCode::UnknownPrincipal);
    refused_with(session.upload(frames(&tree.envelopes())).await, ErrorCode::UnknownPrincipal);
    let committed = session.commit(record.encode().into()).await;
    refused_with(committed, ErrorCode::UnknownPrincipal);
    assert_eq!(server.repository.status().unwrap().snapshot_count, 0);
    // Neither can new keys be put in the place of revoked ones, on a connection of whichever age.
    let mut connection = connection_of(&writer).await;
    let settings = writer.profile.settings();
    let who = (settings.ledger_key, settings.principal);
    let (own, next) = (writer.profile.signing_key().unwrap(), NextKeys::generate().unwrap());
    let outcome = rolling::ask(&mut connection, who, &own, &next).await;
    refused_with(outcome.map(drop), ErrorCode::UnknownPrincipal);
    other.snapshot("db", &[b"theirs"]).await;
}

async fn enrolled(home: &Path, name: &str, server: &TestServer, namespace: &str) -> Profile {
    let folder = ProfileFolder::new(home, name).unwrap();
    enroll::new_namespace(&folder, crate::harness::namespace_options()).unwrap();
    let options = EnrollOptions {
        token: server.token(Some(namespace), Role::Backup),
        display_name: name.into(),
        kit_folder: home.join(format!("kit-{name}")),
        kit: None,
        second_of: None,
        connect: server.connect(),
    };
    enroll::enroll(&folder, options).await.unwrap();
    Profile::open(folder).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_of_one_machine_do_not_mix() {
    let (server, elsewhere) = (TestServer::start().await, TestServer::start().await);
    let home = tempfile::tempdir().unwrap();
    let (one, two) = (&server, &elsewhere);
    let mut profiles = Vec::new();
    for (name, at, namespace) in [("a", one, "erp"), ("b", one, "mail"), ("c", two, "erp")] {
        profiles.push((enrolled(home.path(), name, at, namespace).await, at.connect()));
    }
    let different = |of: &dyn Fn(&Profile) -> Vec<u8>| {
        let all: std::collections::BTreeSet<Vec<u8>> =
            profiles.iter().map(|(profile, _)| of(profile)).collect();
        assert_eq!(all.len(), profiles.len());
    };
    different(&|profile| profile.namespace().unwrap().0.to_vec());
    different(&|profile| profile.settings().principal.0.to_vec());
    different(&|profile| keys_of(profile).0.0.to_vec());
    different(&|profile| keys_of(profile).1.0.to_vec());
    different(&|profile| profile.convergence_secret().unwrap().as_bytes().to_vec());
    // Nobody of them reaches what is another's: not its namespace, not its server.
    let descriptor = |profile: &Profile| Route::Descriptor(profile.namespace().unwrap());
    let get = async |profile: &Profile, connect: &ConnectOptions, route: Route| {
        let client = profile.client(connect).unwrap();
        client.request(&route, "", Body::empty()).await.map(drop)
    };
    let [(a, at_one), (b, _), (c, at_two)] = &profiles[..] else { panic!() };
    get(a, at_one, descriptor(a)).await.unwrap();
    refused_with(get(a, at_one, descriptor(b)).await, ErrorCode::NotFound);
    refused_with(get(b, at_one, descriptor(a)).await, ErrorCode::NotFound);
    let led_astray = get(a, at_two, descriptor(c)).await;
    assert!(matches!(led_astray, Err(ClientError::Untrusted(_))), "{led_astray:?}");
    // Of what changes in one, the others know nothing: keys, revocation.
    let (before_b, before_c) = (keys_of(b), keys_of(c));
    let id = b.settings().principal;
    let mut first = Profile::open(a.folder().clone()).unwrap();
    history::roll_now(&mut first, at_one).await.unwrap();
    assert_eq!((keys_of(b), keys_of(c)), (before_b, before_c));
    server.repository.revoke(id).unwrap();
    refused_with(get(b, at_one, descriptor(b)).await, ErrorCode::UnknownPrincipal);
    get(&first, at_one, descriptor(&first)).await.unwrap();
    get(c, at_two, descriptor(c)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_ten_years_ago_and_a_clock_that_is_wrong_cost_a_roll_over_at_most() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    age(&mut writer, 3650);
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(rolled(&server).len(), 1);
    // A date in the future: made under a clock that was ahead. Nothing is due for long, and the
    // server's own bound holds all the same.
    let path = writer.profile.folder().path("profile.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let made = writer.profile.keys_made_seconds();
    let ahead = format!("made_seconds = {}", made + 10 * 365 * 24 * 3600);
    std::fs::write(&path, text.replace(&format!("made_seconds = {made}"), &ahead)).unwrap();
    reopen(&mut writer);
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(rolled(&server).len(), 1);
    let server = server.restart_with(|config| config.keys.principal_age = Period(DAY)).await;
    writer.connect = server.connect();
    server.clock.advance(2 * DAY);
    drop(history::connect(&mut writer.profile, &writer.connect).await.unwrap());
    assert_eq!(rolled(&server).len(), 2);
}

#[test]
fn the_programs_roll_keys_over_and_say_how_old_they_are() {
    let mut served = Served::start();
    let kit = served.set_up();
    let client = |served: &Served, words: &[&str]| served.client("home", words);
    let said = json(&client(&served, &["key", "roll", "--json"]));
    let keys = &said["keys"][0];
    assert_eq!(keys["is_rolled"], false);
    let made = keys["made_seconds"].as_u64().unwrap();
    assert_eq!(keys["due_seconds"].as_u64().unwrap() - made, 335 * 24 * 3600);
    let file = kit.to_str().unwrap();
    let back_up = |served: &Served| json(&client(served, &["backup", "erp", file, "--json"]));
    let first = back_up(&served);
    let rolled = client(&served, &["key", "roll", "--now"]);
    assert!(text(&rolled.stdout).contains("rolled over now"), "{}", text(&rolled.stdout));
    // The server's own key, while it runs.
    let shown = json(&served.command(&["tls", "roll", "--json"]));
    assert_eq!(shown["serial"], 2);
    let second = back_up(&served);
    assert_eq!((&first["sequence"], &second["sequence"]), (&1.into(), &2.into()));
    // And while it does not.
    served.signal(rustix::process::Signal::TERM);
    let shown = json(&served.command(&["tls", "roll", "--json"]));
    assert_eq!(shown["serial"], 3);
    served.serve();
    assert_eq!(back_up(&served)["sequence"], 3);
    let operator = served.token(None, "operator");
    let enrolled = served.client("desk", &["enroll", "--token", &operator]);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    let status = text(&served.client("desk", &["status"]).stdout);
    assert!(status.contains("keys made ") && status.contains("to be rolled over from"), "{status}");
    let listed = text(&served.command(&["principals", "list"]).stdout);
    assert!(listed.contains("keys of "), "{listed}");
    // What auditors read.
    let auditor = served.token(None, "audit");
    served.client("audit", &["enroll", "--token", &auditor]);
    let log = text(&served.client("audit", &["audit", "log"]).stdout);
    assert!(log.contains("put new keys in the place of those of"), "{log}");
    assert!(log.contains("shows TLS key number 3 from now on"), "{log}");
}
