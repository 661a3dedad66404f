//! Claims of `docs/security.md` about who can do what, where no other module tries them: strangers,
//! the line, captured servers, officers, keys, and servers that were put back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use strongroom_client::age_file::generate_identity;
use strongroom_client::commit::position_after;
use strongroom_client::connection::Body;
use strongroom_client::enroll::{self, EnrollOptions};
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::files::restore::TreeRestoreOptions;
use strongroom_client::landing::Target;
use strongroom_client::profile::ProfileFolder;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::source::Source;
use strongroom_client::trust::ReadAccess;
use strongroom_client::{audit, epoch, history, offer, recipients};
use strongroom_protocol::catalogue::{self, Entry, Kind, Xattr};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::limits::STRANGER_SHARE;
use strongroom_protocol::message::{LockState, Outcome, Retain, SizeClass};
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::{LockWanted, RetentionMode};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;

use crate::harness::{DAY, TestServer, connect_to, copy_folder, frames, label, refused_with};
use crate::keys::{next, offered};
use crate::line::Line;
use crate::loss::new_machine;
use crate::lying_server::{Lies, captured};
use crate::raw::{Raw, is_well, request_of, stranger};
use crate::replica::OFFICER;
use crate::wire::{Instead, Then, Wire};

fn dump(text: &str) -> Source {
    Source::Stream(Box::new(std::io::Cursor::new(text.to_owned().into_bytes())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_learns_who_the_server_is_and_nothing_else() {
    let server = TestServer::start().await;
    server.writer("erp").await.snapshot("db", &[b"one"]).await;
    let mut raw = Raw::open(server.address, &stranger()).await.unwrap();
    let answer = raw.ask(&request_of(&Route::Identity, b"")).await.unwrap();
    let headers: BTreeSet<&str> = answer.headers.keys().map(String::as_str).collect();
    let known = BTreeSet::from(["content-length", "content-type", "date"]);
    assert!(headers.is_subset(&known), "{headers:?}");
    let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let keys: BTreeSet<&str> = said.as_object().unwrap().keys().map(String::as_str).collect();
    let known = ["protocol", "ledger_key", "tls_key", "tls_serial", "tls_vouch", "vouch"];
    assert_eq!(keys, BTreeSet::from(known));
    // It is the same before there is anything, so it says nothing of that.
    let empty = TestServer::start().await;
    let mut raw = Raw::open(empty.address, &stranger()).await.unwrap();
    let other = raw.ask(&request_of(&Route::Identity, b"")).await.unwrap();
    assert_eq!(other.body.len(), answer.body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_touches_no_connection_of_a_client_whose_handshake_is_done() {
    let server = TestServer::start_with(|config| config.limits.connections = 64).await;
    let honest = server.writer("erp").await;
    let mut open = Raw::of(&server, &honest).await;
    let ask = request_of(&Route::Descriptor(honest.namespace()), b"");
    assert_eq!(open.ask(&ask).await.unwrap().status, 200);
    // Three times as many as the lobby holds, from the same address; half of them say something.
    let lobby = 64 / STRANGER_SHARE;
    let mut flood = Vec::new();
    for number in 0..3 * lobby {
        let mut raw = Raw::open(server.address, &stranger()).await.unwrap();
        if number % 2 == 0 {
            assert!(raw.ask(&request_of(&Route::Identity, b"")).await.is_some());
        }
        flood.push(raw);
        assert_eq!(open.ask(&ask).await.unwrap().status, 200, "after {number}");
    }
    drop((open, flood));
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_heard_between_client_and_server_names_nothing_and_replayed_does_nothing() {
    use std::io::{Read, Write};
    let server = TestServer::start().await;
    let mut writer = server.writer("payroll").await;
    let line = Line::to(server.address).await;
    line.listen();
    writer.connect = connect_to(line.address);
    let salaries = "salaries of the directors ".repeat(20_000);
    let summary = writer.backup_from("salaries", dump(&salaries)).await.unwrap();
    let (namespace, record) = (writer.namespace(), summary.snapshot);
    let [asked, answered] = line.heard();
    assert!(asked.len() > 1000 && answered.len() > 1000);
    let shown = record.to_string();
    let names: [&[u8]; 6] =
        [b"payroll", b"salaries", b"/v1/ns/", &record.0, &namespace.0, shown.as_bytes()];
    for name in names {
        for stream in [&asked, &answered] {
            assert!(!stream.windows(name.len()).any(|window| window == name));
        }
    }
    let state = || {
        let repository = &server.repository;
        (repository.ledger().head().size, repository.status().unwrap().snapshot_count)
    };
    let before = state();
    let (address, heard) = (server.address, asked.clone());
    let replayed = tokio::task::spawn_blocking(move || {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The server may be gone before all is said.
        let _ = socket.write_all(&heard);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        answer.len()
    });
    assert!(replayed.await.unwrap() < 10_000);
    assert_eq!(state(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_of_the_servers_own_making_or_an_older_one_moves_no_client() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let (kit, first) = (writer.kit(), writer.descriptor().await);
    let (_, friend) = generate_identity();
    let second = next(&writer, |kit, newest| recipients::add(kit, newest, &friend)).await;
    offered(&writer, second).await.unwrap();
    writer.backup_from("db", dump("one")).await.unwrap();
    assert_eq!(writer.kept_descriptor().contents().version, 2);
    // The server's own recipient, in a descriptor that is right in all but its signature.
    let (thief, (_, thiefs)) = (SigningKey::from_bytes(&[66; 32]), generate_identity());
    let mut third = offer::next_after(&writer.descriptor().await).unwrap();
    third.recipients.push(thiefs.clone());
    let mut unsigned = third.sign(&kit.authority_key);
    *unsigned.last_mut().unwrap() ^= 1;
    let mut another = third.clone();
    another.authority = strongroom_client::keys::public_key_of(&thief);
    let cases = [
        ("signed by the server", third.sign(&thief)),
        ("signed by nobody", unsigned),
        ("of an authority of its own", another.sign(&thief)),
        ("older than the one that was seen", first.encoded().to_vec()),
    ];
    for (what, shown) in cases {
        let lies = Arc::new(Lies::default());
        *lies.descriptor.lock().unwrap() = Some(shown);
        writer.connect = connect_to(captured(server.repository.clone(), lies).await);
        let outcome = writer.backup_from("db", dump(what)).await.map(drop);
        // Either it is refused aloud, or the client goes on with the one it has; it never seals to
        // the thief, and never goes back.
        if let Err(error) = &outcome {
            assert_eq!(error.exit_code(), ExitCode::Untrusted, "{what}: {error}");
        }
        let kept = writer.kept_descriptor();
        assert_eq!(kept.contents().version, 2, "{what}");
        assert!(!kept.contents().recipients.contains(&thiefs), "{what}");
        let read = ReadAccess::with_kit(&kit, &writer.connect, false).await.map(drop);
        if what.contains("older") {
            // A kit that was printed before the second version has seen nothing newer.
            assert!(read.is_ok(), "{what}: {read:?}");
        } else {
            assert!(read.is_err(), "{what}: a kit believes it");
            assert!(outcome.is_err(), "{what}: a client believes it");
        }
    }
    // And all records are sealed to those whom the authority named.
    let rows = server.repository.list(&writer.namespace(), None, 0).unwrap().rows;
    for row in rows {
        let bytes = server.repository.record(&OFFICER, &writer.namespace(), &row.record);
        let bytes = bytes.unwrap();
        let record = Record::decode(&bytes).unwrap();
        assert_ne!(record.body.descriptor, first.digest());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_beyond_the_policys_maximum_is_refused_at_the_commit_too() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    // What the session was told is not what the record says: a stolen client writes both.
    let session = writer.session("db").await;
    let tree = crate::harness::Tree::seal(&writer.keys(), &[b"a"]);
    session.upload(frames(&tree.envelopes())).await.unwrap();
    for wanted in [LockWanted::Period(40 * 365 * 86_400), LockWanted::Forever] {
        let record = writer.record(&session, "db", &tree.root, |body| body.lock_wanted = wanted);
        let outcome = session.commit(record.encode().into()).await;
        refused_with(outcome, ErrorCode::RetentionOutOfPolicy);
    }
    assert_eq!(server.repository.status().unwrap().snapshot_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_client_gets_its_own_newest_record_alone_and_cannot_open_it() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let second = new_machine(&server, writer.kit()).await;
    let (mine, _) = writer.snapshot("db", &[b"mine"]).await;
    let (theirs, _) = second.snapshot("db", &[b"theirs"]).await;
    for (actor, own) in [(&writer, &mine), (&second, &theirs)] {
        let session = actor.session_of("db", SizeClass::Small).await.unwrap();
        let head = session.opened().head.as_ref().expect("its own").0.clone();
        assert_eq!(head, own.encode());
        let record = Record::decode(&head).unwrap();
        assert!(record.key_block.starts_with(b"age-encryption.org/v1\n"));
        // With every secret that lies on the machine.
        let folder = actor.profile.folder().path("");
        for file in std::fs::read_dir(folder).unwrap() {
            let Ok(text) = std::fs::read_to_string(file.unwrap().path()) else { continue };
            let lines: Vec<&str> = text.lines().collect();
            assert!(strongroom_client::age_file::open_with(&lines, &record.key_block).is_err());
        }
    }
    let elsewhere = writer.session_of("mail", SizeClass::Small).await.unwrap();
    assert!(elsewhere.opened().head.is_none());
}

/// "Cannot forget what is locked, shorten or lower anything alone."
#[tokio::test(flavor = "multi_thread")]
async fn an_officer_alone_forgets_what_is_free_and_lowers_nothing() {
    let server = TestServer::start_with(|config| {
        config.retention.mode = RetentionMode::Governance;
    })
    .await;
    let writer = server.writer("erp").await;
    let officer = server.principal(None, Role::SecurityOfficer).await;
    let (locked, _) = writer.snapshot("db", &[b"one"]).await;
    let (namespace, client) = (writer.namespace(), officer.client());
    let record = locked.digest();
    let forget = async || {
        client.request_once(&Route::Forget(namespace, record), "", Body::empty()).await.map(drop)
    };
    refused_with(forget().await, ErrorCode::Locked);
    let shorter = Retain { lock_wanted: LockWanted::Period(86_400), mode: None };
    let route = Route::Retain(namespace, record);
    let outcome: Result<LockState, ClientError> = client.json(&route, "", Some(&shorter)).await;
    refused_with(outcome, ErrorCode::Shortens);
    // What lifts or lowers is proposed, of which nothing is done; the proposer cannot approve.
    let route = Route::Lift(namespace, record);
    let lift: Outcome = client.json(&route, "", None::<&()>).await.unwrap();
    assert!(!lift.is_done && lift.proposal.is_some());
    let mut policy = server.repository.policy(&namespace).unwrap();
    policy.rule.minimum_seconds = 0;
    let route = Route::SetPolicy(namespace);
    let lower: Outcome = client.json(&route, "", Some(&policy)).await.unwrap();
    assert!(!lower.is_done && lower.proposal.is_some());
    for proposal in [lift.proposal.unwrap(), lower.proposal.unwrap()] {
        let (verdict, words) = (strongroom_protocol::proposal::Verdict::Approve, "mine".to_owned());
        let profile = &officer.profile;
        let own =
            strongroom_client::retention::decide(profile, &client, proposal, verdict, words).await;
        refused_with(own.map(drop), ErrorCode::NotAllowed);
    }
    refused_with(forget().await, ErrorCode::Locked);
    server.clock.advance(DAY * 31);
    forget().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_by_the_authority_is_an_entry_that_any_auditor_sees() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (_, friend) = generate_identity();
    let mut made = vec![writer.descriptor().await];
    for step in 0..3 {
        let signed = next(&writer, |kit, newest| match step {
            0 => recipients::add(kit, newest, &friend),
            1 => epoch::begin(newest),
            _ => recipients::remove(kit, newest, &friend, true),
        })
        .await;
        offered(&writer, signed).await.unwrap();
        made.push(writer.descriptor().await);
    }
    let mut auditor = server.principal(None, Role::Audit).await;
    let connect = auditor.connect.clone();
    let mut rows = Vec::new();
    let mut keep = |row: audit::LogRow| {
        rows.push(row);
        Ok(())
    };
    audit::log(&mut auditor.profile, &connect, 0, &mut keep).await.unwrap();
    for descriptor in made.iter().skip(1) {
        let version = descriptor.contents().version;
        let about: Vec<_> = rows
            .iter()
            .filter(|row| row.event == "descriptor_taken" && row.namespace == writer.namespace())
            .filter(|row| row.text.contains(&format!("version {version} of")))
            .collect();
        assert_eq!(about.len(), 1, "version {version}: {rows:?}");
        assert_eq!(about[0].actor, writer.profile.settings().principal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tls_key_is_one_principal_of_one_role() {
    let server = TestServer::start().await;
    let officer = server.principal(None, Role::SecurityOfficer).await;
    let again = async |role: Role, namespace: Option<&str>| {
        let home = tempfile::tempdir().unwrap();
        let folder = ProfileFolder::new(home.path(), "default").unwrap();
        folder.make().unwrap();
        for name in ["tls.key", "tls.crt"] {
            std::fs::copy(officer.profile.folder().path(name), folder.path(name)).unwrap();
        }
        let options = EnrollOptions {
            token: server.token(namespace, role),
            display_name: "the same".into(),
            kit_folder: home.path().to_path_buf(),
            kit: None,
            second_of: None,
            connect: server.connect(),
        };
        enroll::enroll(&folder, options).await.map(drop)
    };
    for role in [Role::Operator, Role::SecurityOfficer, Role::Audit, Role::Replica] {
        refused_with(again(role, None).await, ErrorCode::BadRequest);
    }
    assert_eq!(server.repository.principals().unwrap().len(), 1);
}

/// Everybody who has a profile: backup clients are in `ledger.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn who_saw_more_refuses_a_server_that_was_put_back_whatever_the_role() {
    let server = TestServer::start().await;
    server.writer("erp").await;
    let mut seeing = Vec::new();
    for role in Role::OF_CLIENTS.into_iter().filter(|role| *role != Role::Backup) {
        seeing.push((role, server.principal(Some("erp"), role).await));
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let (data, clock) = server.stop().await;
    copy_folder(&data.path().join("data"), &folder.path().join("data"));
    let server = TestServer::open(data, clock.clone()).await;
    server.token(None, Role::Audit);
    for (role, actor) in &mut seeing {
        let seen = history::connect(&mut actor.profile, &server.connect()).await;
        assert!(seen.is_ok(), "{role}");
    }
    server.stop().await;
    let back = TestServer::open(folder, clock).await;
    for (role, actor) in &mut seeing {
        let outcome = history::connect(&mut actor.profile, &back.connect()).await;
        let error = outcome.expect_err("a server that was put back");
        assert_eq!(error.exit_code(), ExitCode::History, "{role}: {error}");
    }
    assert!(back.repository.moment().is_suspect, "they told it, and it stands still");
    assert_eq!(ExitCode::History.number(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_notices_that_its_newest_snapshot_is_withheld() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let first = writer.backup_from("db", dump("one")).await.unwrap();
    writer.backup_from("db", dump("two")).await.unwrap();
    let record = server.repository.record(&OFFICER, &writer.namespace(), &first.snapshot).unwrap();
    let db = label("db");
    for shown in [Some(record.as_slice()), None] {
        let error = position_after(&writer.profile, &db, shown).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
        assert!(error.to_string().contains("has the receipt of number 2"), "{error}");
    }
    // Another source has no receipt, so nothing is missed there.
    assert_eq!(position_after(&writer.profile, &label("mail"), None).unwrap().sequence, 1);
}

/// What somebody with a stolen TLS key, or any other server, can sign is no receipt.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_another_ledger_key_signed_is_refused() {
    let (server, thief) = (TestServer::start().await, TestServer::start().await);
    let mut writer = server.writer("erp").await;
    let (_, receipt) = thief.writer("erp").await.snapshot("db", &[b"one"]).await;
    let wire = Wire::before(&server.repository).await;
    writer.connect = connect_to(wire.address);
    let receipt: Receipt = receipt;
    let body = receipt.encode();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let bytes = [head.as_bytes(), &body].concat();
    wire.give(Some(Instead { route: "commit", bytes, then: Then::Close }));
    let error = writer.backup_from("db", dump("one")).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    let own = strongroom_client::receipts::newest_sequence(&writer.profile, &label("db")).unwrap();
    assert_eq!(own, 0, "none is kept");
}

/// What a captured machine put into its catalogue: a capability, and whose user the file runs as.
#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_the_systems_security_come_back_only_where_they_are_asked_for() {
    use rustix::fs::{XattrFlags, lsetxattr};
    // Revision 2, effective, all of the first ten.
    let capability = [&[1, 0, 0, 2][..], &[0xff, 3], &[0; 14]].concat();
    let name = "security.capability";
    let place = tempfile::tempdir().unwrap();
    let probe = place.path().join("probe");
    std::fs::write(&probe, b"x").unwrap();
    let may_set = lsetxattr(&probe, name, &capability, XattrFlags::empty()).is_ok();
    if !may_set {
        println!("only half of it is tried: {name} cannot be set here");
    }

    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let mut program = Entry::empty(Kind::File);
    program.path = b"folder/program".to_vec();
    (program.mode, program.size_bytes, program.data_bytes) = (0o6755, 4, 4);
    program.uid = rustix::process::getuid().as_raw();
    program.gid = rustix::process::getgid().as_raw();
    let attribute = |name: &[u8], value: &[u8]| Xattr { name: name.into(), value: value.into() };
    program.xattrs =
        vec![attribute(name.as_bytes(), &capability), attribute(b"user.colour", b"red")];
    let session = writer.session("files").await;
    let mut folder = Entry::empty(Kind::Directory);
    (folder.path, folder.mode) = (b"folder".to_vec(), 0o700);
    (folder.uid, folder.gid) = (program.uid, program.gid);
    let root = Entry { path: Vec::new(), ..folder.clone() };
    let listed = catalogue::encode(&[root, folder, program]);
    let tree = crate::harness::Tree::seal_with(&writer.keys(), &listed, &[b"data"], |_| {});
    session.upload(frames(&tree.envelopes())).await.unwrap();
    let record = writer.record(&session, "files", &tree.root, |_| {});
    session.commit(record.encode().into()).await.unwrap();
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    for same_permissions in [false, true] {
        let to = place.path().join(same_permissions.to_string());
        let tree = TreeRestoreOptions { same_permissions, ..TreeRestoreOptions::default() };
        let options = RestoreOptions { tree, ..RestoreOptions::to(Target::Path(to.clone())) };
        let monitor = Monitor::hidden();
        restore::restore(&access, record.digest(), &options, &monitor).await.unwrap();
        let back = to.join("folder/program");
        let has = |name: &str| {
            let mut value = [0_u8; 64];
            rustix::fs::lgetxattr(&back, name, &mut value[..]).is_ok()
        };
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&back).unwrap());
        assert!(has("user.colour"));
        assert_eq!(has(name), same_permissions && may_set);
        assert_eq!(mode & 0o6000 != 0, same_permissions, "{mode:o}");
    }
}
