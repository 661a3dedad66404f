//! The ledger as clients and auditors see it: it only grows, and every byte of it is checked.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use strongroom_client::audit;
use strongroom_client::connection::Body;
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::history;
use strongroom_client::profile::{Profile, ProfileFolder};
use strongroom_client::proof_file::ProvenState;
use strongroom_client::source::Source;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::PublicKey;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::tile::{Tile, TileContent};
use strongroom_server::clock::Clock;
use strongroom_server::repository::Repository;

use crate::harness::{
    Actor, Calm, DAY, TestServer, connect_to, program, refused_with, test_config,
};
use crate::lying_server::{Lies, captured};

fn dump(text: &'static str) -> Source {
    Source::Stream(Box::new(text.as_bytes()))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else if path.is_file() {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Serves a data folder with the keys that lie in it.
async fn serve_folder(data: &Path, clock: &Arc<dyn Clock>, lies: &Arc<Lies>) -> SocketAddr {
    let config = test_config(|_| {});
    let opened = Repository::open(data, config, clock.clone(), Arc::new(Calm)).unwrap();
    captured(Arc::new(opened.0), lies.clone()).await
}

/// A server that went on from `now`, and a copy of its folder from before.
struct TwoPasts {
    _folder: Arc<tempfile::TempDir>,
    writer: Actor,
    other: Actor,
    remembered: String,
    old_folder: tempfile::TempDir,
    clock: Arc<dyn Clock>,
}

async fn two_pasts() -> TwoPasts {
    let server = TestServer::start().await;
    let (mut writer, other) = (server.writer("erp").await, server.writer("other").await);
    writer.backup_from("db", dump("one")).await.unwrap();
    let (folder, clock) = server.stop().await;
    let old_folder = tempfile::tempdir().unwrap();
    copy(&folder.path().join("data"), old_folder.path());
    let clock: Arc<dyn Clock> = clock;
    let lies = Arc::new(Lies::default());
    writer.connect = connect_to(serve_folder(&folder.path().join("data"), &clock, &lies).await);
    writer.backup_from("db", dump("two")).await.unwrap();
    let remembered = writer.profile.settings().checkpoint.clone().unwrap();
    TwoPasts { _folder: folder, writer, other, remembered, old_folder, clock }
}

/// The next backup is refused with the exit code for it, the server is told, and nothing changes.
async fn is_refused_and_reported(writer: &mut Actor, address: SocketAddr, lies: &Lies, note: &str) {
    writer.connect = connect_to(address);
    let error = writer.backup_from("db", dump("three")).await.unwrap_err();
    assert!(matches!(error, ClientError::History(_)), "{error}");
    assert_eq!(error.exit_code(), ExitCode::History);
    assert_eq!(error.exit_code().number(), 10);
    assert!(error.to_string().contains("keep this profile"), "{error}");
    assert_eq!(*lies.reported.lock().unwrap(), [note]);
    let kept = Profile::open(writer.profile.folder().clone()).unwrap();
    assert_eq!(kept.settings().checkpoint.as_deref(), Some(note));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_rolled_back_is_refused_and_reported() {
    let mut past = two_pasts().await;
    let lies = Arc::new(Lies::default());
    let address = serve_folder(past.old_folder.path(), &past.clock, &lies).await;
    is_refused_and_reported(&mut past.writer, address, &lies, &past.remembered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forked_server_with_a_larger_ledger_is_refused_and_reported() {
    let mut past = two_pasts().await;
    let lies = Arc::new(Lies::default());
    let address = serve_folder(past.old_folder.path(), &past.clock, &lies).await;
    // The other client saw nothing after the copy was made, so for it the fork is the ledger.
    past.other.connect = connect_to(address);
    for text in ["a", "b", "c"] {
        past.other.backup_from("mail", dump(text)).await.unwrap();
    }
    let forked = past.other.profile.remembered().unwrap().unwrap();
    let seen = past.writer.profile.remembered().unwrap().unwrap();
    assert!(forked.size > seen.size && lies.reported.lock().unwrap().is_empty());
    is_refused_and_reported(&mut past.writer, address, &lies, &past.remembered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_a_fork_is_refused() {
    let past = two_pasts().await;
    let lies = Arc::new(Lies::default());
    let address = serve_folder(past.old_folder.path(), &past.clock, &lies).await;
    let mut other = past.other;
    other.connect = connect_to(address);
    for text in ["a", "b", "c"] {
        other.backup_from("mail", dump(text)).await.unwrap();
    }
    // As if the server had shown the one ledger at the beginning and the other in the receipt.
    let note = other.profile.settings().checkpoint.clone().unwrap();
    let mut writer = past.writer;
    let client = writer.profile.client(&connect_to(address)).unwrap();
    let error = history::confirm(&mut writer.profile, &client, &note).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::History, "{error}");
    assert_eq!(*lies.reported.lock().unwrap(), [past.remembered]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kit_refuses_a_server_older_than_itself() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let floor = writer.kit().checkpoint.expect("enrolment put a checkpoint into the kit");
    assert_eq!(floor.ledger_key, writer.profile.settings().ledger_key);
    ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    // The same server with another history of the same length knows nothing of the kit's.
    let mut kit = writer.kit();
    kit.checkpoint.as_mut().unwrap().root[0] ^= 1;
    let error = ReadAccess::with_kit(&kit, &writer.connect, false).await.map(drop).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::History, "{error}");
    kit.checkpoint.as_mut().unwrap().size += 100;
    let error = ReadAccess::with_kit(&kit, &writer.connect, false).await.map(drop).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::History, "{error}");
    // On the day when nothing else is left, it may be typed.
    ReadAccess::with_kit(&kit, &writer.connect, true).await.unwrap();
    // A floor of another server's ledger says nothing about this one.
    kit.checkpoint.as_mut().unwrap().ledger_key = PublicKey([1; 32]);
    ReadAccess::with_kit(&kit, &writer.connect, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_for_another_size_is_refused() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    writer.backup_from("db", dump("one")).await.unwrap();
    // Another enrolment makes the ledger longer, so that a proof is not empty.
    server.token(None, Role::Audit);
    let lies = Arc::new(Lies::default());
    writer.connect = connect_to(captured(server.repository.clone(), lies.clone()).await);
    lies.proves_less.store(true, Ordering::SeqCst);
    let error = writer.backup_from("db", dump("two")).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::History, "{error}");
    assert_eq!(lies.reported.lock().unwrap().len(), 1);
    lies.proves_less.store(false, Ordering::SeqCst);
    writer.backup_from("db", dump("two")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tile_beyond_the_head_is_not_given() {
    let server = TestServer::start().await;
    let auditor = server.principal(None, Role::Audit).await;
    let size = server.repository.ledger().head().size;
    let width = u16::try_from(size).unwrap();
    for content in [TileContent::Entries, TileContent::Hashes(0)] {
        let ask = async |index, width| {
            let route = Route::Tile(Tile { content, index, width });
            auditor.client().request_once(&route, "", Body::empty()).await
        };
        ask(0, width).await.unwrap();
        ask(0, 1).await.unwrap();
        refused_with(ask(0, width + 1).await, ErrorCode::NotFound);
        refused_with(ask(0, 256).await, ErrorCode::NotFound);
        refused_with(ask(1, 1).await, ErrorCode::NotFound);
    }
    let ask = async |size, query: &str| {
        auditor.client().request_once(&Route::Consistency(size), query, Body::empty()).await
    };
    for (good, query) in [(0, ""), (size, ""), (1, "to=2"), (0, "to=0")] {
        ask(good, query).await.unwrap();
    }
    refused_with(ask(size + 1, "").await, ErrorCode::NotFound);
    refused_with(ask(1, &format!("to={}", size + 1)).await, ErrorCode::NotFound);
    refused_with(ask(2, "to=1").await, ErrorCode::NotFound);
    refused_with(ask(1, "to=x").await, ErrorCode::BadRequest);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_auditors_and_replicas_get_entries() {
    let server = TestServer::start().await;
    server.writer("erp").await;
    for role in Role::OF_CLIENTS {
        let actor = match role {
            Role::Backup => server.writer("another").await,
            role => server.principal(Some("erp"), role).await,
        };
        for content in [TileContent::Entries, TileContent::Hashes(0)] {
            let route = Route::Tile(Tile { content, index: 0, width: 1 });
            let outcome = actor.client().request_once(&route, "", Body::empty()).await;
            match role {
                Role::Audit | Role::Replica => drop(outcome.unwrap()),
                _ => refused_with(outcome, ErrorCode::NotAllowed),
            }
        }
        // The proof that the ledger only grew is everybody's.
        let route = Route::Consistency(1);
        actor.client().request_once(&route, "", Body::empty()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_tile_or_entry_is_found_by_audit_verify() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    writer.backup_from("db", dump("one")).await.unwrap();
    for _ in 0..560 {
        server.token(None, Role::Audit);
    }
    let mut auditor = server.principal(None, Role::Audit).await;
    let lies = Arc::new(Lies::default());
    let connect = connect_to(captured(server.repository.clone(), lies.clone()).await);
    let summary = audit::verify(&mut auditor.profile, &connect).await.unwrap();
    let size = server.repository.ledger().head().size;
    assert_eq!((summary.size, summary.commit_count, summary.unknown_count), (size, 1, 0));
    assert_eq!(summary.tile_count, 7, "three bundles, three tiles, and one above them");
    let last = format!(".p/{}", size % 256);
    for path in ["entries/000", "0/001", "1/000.p/2", &format!("entries/002{last}")] {
        *lies.flipped_tile.lock().unwrap() = Some(path.to_owned());
        let error = audit::verify(&mut auditor.profile, &connect).await.unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Untrusted, "{path}: {error}");
        if path.starts_with("entries") {
            let mut rows = |_| Ok(());
            let log = audit::log(&mut auditor.profile, &connect, 0, &mut rows).await;
            assert!(log.is_err(), "{path}: the log showed what was not signed");
        }
    }
    *lies.flipped_tile.lock().unwrap() = None;
    // From any entry on, the log shows exactly the rest.
    for from in [0, 1, 255, 256, 300, 512, size - 1, size, size + 9] {
        let mut indexes = Vec::new();
        let mut rows = |row: audit::LogRow| {
            indexes.push(row.index);
            Ok(())
        };
        audit::log(&mut auditor.profile, &connect, from, &mut rows).await.unwrap();
        assert_eq!(indexes, (from..size).collect::<Vec<u64>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_a_snapshot_is_checked_without_a_server() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let made = writer.backup_from("db", dump("one")).await.unwrap();
    writer.backup_from("db", dump("two")).await.unwrap();
    let mut auditor = server.principal(None, Role::Audit).await;
    let connect = auditor.connect.clone();
    let path = auditor.home.path().join("snapshot.proof");
    let name = made.snapshot.to_string();
    let prove = audit::prove(&mut auditor.profile, &connect, "erp", &name, &path);
    let summary = prove.await.unwrap();
    assert_eq!(summary.proven.state, ProvenState::Locked);
    assert_eq!(summary.proven.committed_ms, made.committed_ms);
    let key = auditor.profile.settings().ledger_key;
    let (folder, clock) = server.stop().await;
    let checked = audit::check(&path, Some(key)).unwrap();
    assert!(checked.is_key_given && checked.proven == summary.proven);
    assert!(!audit::check(&path, None).unwrap().is_key_given);
    let error = audit::check(&path, Some(PublicKey([1; 32]))).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    // The program says the same, with an exit code for scripts.
    let run = |key: &str| {
        let mut command = std::process::Command::new(program("strongroom"));
        let arguments = ["--json", "audit", "check", path.to_str().unwrap(), "--ledger-key", key];
        command.env("STRONGROOM_HOME", "/nonexistent").args(arguments).output().unwrap()
    };
    let good = run(&key.to_string());
    let shown: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!((shown["state"].as_str(), good.status.code()), (Some("locked"), Some(0)));
    assert_eq!(run(&"01".repeat(32)).status.code(), Some(5));

    // Years later its lock has ended, and it is forgotten: a new proof says both.
    let clock_of_test = clock.clone();
    clock_of_test.advance(DAY * 400);
    let time: Arc<dyn Clock> = clock.clone();
    let data = folder.path().join("data");
    let (repository, _) =
        Repository::open(&data, test_config(|_| {}), time, Arc::new(Calm)).unwrap();
    let server = TestServer::serve(folder, clock, Arc::new(repository)).await;
    let operator = server.principal(None, Role::Operator).await;
    let connect = server.connect();
    let later = auditor.home.path().join("later.proof");
    let free = audit::prove(&mut auditor.profile, &connect, "erp", &name, &later).await.unwrap();
    assert_eq!(free.proven.state, ProvenState::Free);
    let route = Route::Forget(writer.namespace(), made.snapshot);
    operator.client().request_once(&route, "", Body::empty()).await.unwrap();
    let last = auditor.home.path().join("last.proof");
    let gone = audit::prove(&mut auditor.profile, &connect, "erp", &name, &last).await.unwrap();
    assert_eq!(gone.proven.state, ProvenState::Forgotten);
    // The first proof is as true as it was.
    assert_eq!(audit::check(&path, Some(key)).unwrap().proven.state, ProvenState::Locked);
    let again = audit::prove(&mut auditor.profile, &connect, "erp", &name, &last).await;
    assert!(matches!(again, Err(ClientError::File { .. })), "a proof is not written over");
}

#[tokio::test(flavor = "multi_thread")]
async fn floors_of_two_processes_only_rise() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = || ProfileFolder::new(writer.home.path(), "default").unwrap();
    let (mut slow, mut fast) = (Profile::open(folder()).unwrap(), Profile::open(folder()).unwrap());
    let client = writer.client();
    server.token(None, Role::Audit);
    let early = history::greet(&mut slow, &client).await.unwrap();
    let early_note = slow.settings().checkpoint.clone().unwrap();
    server.token(None, Role::Audit);
    let late = history::greet(&mut fast, &client).await.unwrap();
    assert!(late.size > early.size);
    slow.remember(&early_note).unwrap();
    fast.remember(&early_note).unwrap();
    let size = |profile: &Profile| profile.remembered().unwrap().unwrap().size;
    assert_eq!(size(&Profile::open(folder()).unwrap()), late.size);
    assert_eq!(size(&fast), late.size);
    // A floor that was tampered with is an error, not an absent one.
    let path = folder().path("profile.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = text.replace(&format!("\\n{}\\n", late.size), "\\n1\\n");
    let changed = changed.replace(&format!("\n{}\n", late.size), "\n1\n");
    assert_ne!(text, changed);
    std::fs::write(&path, changed).unwrap();
    writer.profile = Profile::open(folder()).unwrap();
    let error = writer.backup_from("db", dump("one")).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage, "{error}");
}
