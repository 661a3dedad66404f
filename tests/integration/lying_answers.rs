//! Answers that a captured server, or whoever is in its place, can give to a client: cut off at any
//! byte, not HTTP, not what was asked for, about something else, or without end. None is believed,
//! none is waited for for ever, and a backup is whole or an error.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use strongroom_client::backup::BackupSummary;
use strongroom_client::connection::{Body, Timeouts};
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::source::Source;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::frame::prefix;
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::record::RecordBody;
use strongroom_protocol::route::Route;

use crate::harness::{Actor, TestServer, connect_to, seal_leaf};
use crate::wire::{Instead, Then, Wire};

/// Answers are cut at one byte of so many; `CUTS` sets another.
const CUTS: u64 = 41;
/// Longer than any answer here takes, and no bound of what is tested.
const HANG: Duration = Duration::from_secs(60);

fn impatient() -> Timeouts {
    Timeouts {
        answer: Duration::from_millis(600),
        commit: Duration::from_millis(600),
        idle: Duration::from_millis(400),
        min_bytes_per_second: u64::MAX,
        stream_min_bytes_per_second: u64::MAX,
        ..Timeouts::default()
    }
}

async fn back_up(writer: &mut Actor, text: &str) -> Result<BackupSummary, ClientError> {
    let source = Source::Stream(Box::new(std::io::Cursor::new(text.to_owned().into_bytes())));
    let backup = writer.backup_from("db", source);
    tokio::time::timeout(HANG, backup).await.expect("the backup hangs")
}

async fn restored(
    wire: &Wire,
    writer: &Actor,
    record: RecordDigest,
    to: &Path,
) -> Result<(), ClientError> {
    let mut connect = connect_to(wire.address);
    connect.timeouts = impatient();
    let restoring = async {
        let access = ReadAccess::with_kit(&writer.kit(), &connect, false).await?;
        let options = RestoreOptions::to(Target::Path(to.to_path_buf()));
        restore::restore(&access, record, &options, &Monitor::hidden()).await.map(drop)
    };
    tokio::time::timeout(HANG, restoring).await.expect("the restore hangs")
}

fn cuts(all: u64) -> impl Iterator<Item = u64> {
    let step = std::env::var("CUTS").map_or(CUTS, |text| text.parse().unwrap());
    (0..all).step_by(usize::try_from(step).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_answers_are_cut_at_any_byte_is_whole_or_an_error() {
    // A session whose opening nobody heard of holds its place until its lease ends.
    let server =
        TestServer::start_with(|config| config.limits.sessions_per_principal = 100_000).await;
    let mut writer = server.writer("erp").await;
    let wire = Wire::before(&server.repository).await;
    writer.connect = connect_to(wire.address);
    writer.connect.timeouts = impatient();
    back_up(&mut writer, "first").await.unwrap();
    wire.cut(u64::MAX);
    back_up(&mut writer, "second").await.unwrap();
    let all = wire.passed.load(Ordering::SeqCst);
    let (mut tried, mut failed, mut acknowledged) = (0, 0, 2);
    for cut in cuts(all) {
        wire.cut(cut);
        tried += 1;
        match back_up(&mut writer, &format!("dump {cut}")).await {
            Ok(_) => acknowledged += 1,
            Err(error) => {
                assert!(error.is_temporary(), "cut after {cut} of {all}: {error}");
                failed += 1;
            }
        }
        // What was acknowledged is there; at most this one more, which nobody was told of.
        let listed = server.repository.status().unwrap().snapshot_count;
        assert!(listed >= acknowledged && listed <= 2 + tried, "{listed} after {cut} of {all}");
    }
    assert!(failed > tried / 2, "{failed} of {tried} failed, of {all} bytes");
    wire.cut(u64::MAX);
    let last = back_up(&mut writer, "last").await.unwrap();
    check_chain(&server, &writer, &wire, last.sequence).await;
}

/// All that is listed can be read back, and no number is missing.
async fn check_chain(server: &TestServer, writer: &Actor, wire: &Wire, newest: u64) {
    let rows = server.repository.list(&writer.namespace(), None, 0).unwrap().rows;
    let place = tempfile::tempdir().unwrap();
    for (at, row) in rows.iter().enumerate() {
        let body = RecordBody::decode(&row.body.0).unwrap();
        assert_eq!(body.sequence, at as u64 + 1, "a number is missing");
        let to = place.path().join(at.to_string());
        restored(wire, writer, row.record, &to).await.unwrap();
    }
    assert_eq!(rows.len() as u64, newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_answers_are_cut_at_any_byte_is_whole_or_nothing() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let snapshot = back_up(&mut writer, "what is restored").await.unwrap().snapshot;
    let wire = Wire::before(&server.repository).await;
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("restored");
    restored(&wire, &writer, snapshot, &to).await.unwrap();
    let all = wire.passed.load(Ordering::SeqCst);
    for cut in cuts(all) {
        std::fs::remove_file(&to).ok();
        wire.cut(cut);
        let outcome = restored(&wire, &writer, snapshot, &to).await;
        assert!(outcome.is_err(), "cut after {cut} of {all}");
        let names = std::fs::read_dir(place.path()).unwrap().count();
        assert_eq!(names, 0, "cut after {cut} of {all}: something was left");
    }
    wire.cut(u64::MAX);
    restored(&wire, &writer, snapshot, &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"what is restored");
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

/// What is no answer to anything that a backup asks.
fn no_answers() -> Vec<(&'static str, Vec<u8>, Then)> {
    let close = Then::Close;
    let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let refusal = br#"{"code":"nonsense","message":"m","request_id":"1"}"#;
    let endless = Then::Repeat(&[b'x'; 16_384], Duration::ZERO);
    let slowly = Then::Repeat(b" ", Duration::from_millis(50));
    let lines = Then::Repeat(b"x: y\r\n", Duration::ZERO);
    let going_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    let redirect = "302 Found\r\nlocation: https://thief.example/v1/status";
    vec![
        ("garbage JSON", answer("200 OK", b"{\"session\": 17, "), close),
        ("nothing at all", answer("200 OK", b""), close),
        ("an empty object", answer("200 OK", b"{}"), close),
        ("deep JSON", answer("200 OK", &nested), close),
        ("a page", answer("200 OK\r\ncontent-type: text/html", b"<html>welcome</html>"), close),
        ("compressed", answer("200 OK\r\ncontent-encoding: gzip", b"\x1f\x8b\x08"), close),
        ("a redirect", answer(redirect, b""), close),
        ("a redirect with JSON", answer(redirect, b"{}"), close),
        ("no content", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), close),
        ("a part", answer("206 Partial Content", b"{}"), close),
        ("another protocol", answer("101 Switching Protocols\r\nupgrade: x", b""), close),
        ("an unknown refusal", answer("500 Internal Server Error", refusal), close),
        ("shorter than announced", answer("200 OK\r\nx: y", b"{}")[..30].to_vec(), close),
        ("a body cut short", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec(), close),
        (
            "longer than announced",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{}{}".to_vec(),
            close,
        ),
        ("two lengths", answer("200 OK\r\ncontent-length: 1", b"{}"), close),
        ("a wrong length", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}".to_vec(), close),
        (
            "wrong chunks",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}"
                .to_vec(),
            close,
        ),
        ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), close),
        ("TLS in TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], close),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(), close),
        ("closed at once", Vec::new(), close),
        ("a body without end", b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), endless),
        ("a head without end", b"HTTP/1.1 200 OK\r\n".to_vec(), lines),
        ("patience asked for without end", Vec::new(), Then::Repeat(going_on, Duration::ZERO)),
        ("a head that drips", b"HTTP/1.1 200 OK\r\nx: ".to_vec(), slowly),
        ("a body that drips", b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n{".to_vec(), slowly),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_answers_are_refused() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let wire = Wire::before(&server.repository).await;
    writer.connect = connect_to(wire.address);
    writer.connect.timeouts = impatient();
    back_up(&mut writer, "first").await.unwrap();
    let count = || server.repository.status().unwrap().snapshot_count;
    for route in ["consistency", "open_session", "have", "upload", "commit"] {
        for (name, bytes, then) in no_answers() {
            wire.give(Some(Instead { route, bytes, then }));
            let text = format!("{route} {name}");
            let error = back_up(&mut writer, &text).await.expect_err(&text);
            assert!(!matches!(error, ClientError::Bug(_)), "{text}: {error}");
            assert!(wire.given.load(Ordering::SeqCst) > 0, "{route} was not asked");
            assert_eq!(count(), 1, "{text}: nothing was committed");
        }
    }
    // A record that was kept is committed by the next run, where its session lives.
    wire.give(None);
    let last = back_up(&mut writer, "last").await.unwrap();
    check_chain(&server, &writer, &wire, last.sequence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_another_commit_is_refused() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let first = back_up(&mut writer, "first").await.unwrap();
    let route = Route::Receipt(writer.namespace(), first.snapshot);
    let receipt = writer.client().request(&route, "", Body::empty()).await.unwrap();
    let wire = Wire::before(&server.repository).await;
    writer.connect = connect_to(wire.address);
    let bytes = answer("200 OK", &receipt);
    wire.give(Some(Instead { route: "commit", bytes, then: Then::Close }));
    let error = back_up(&mut writer, "second").await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    assert!(error.to_string().contains("another commit"), "{error}");
    assert_eq!(server.repository.status().unwrap().snapshot_count, 1);
    // The record was kept: the next run commits it, where its session lives, and goes on.
    wire.give(None);
    back_up(&mut writer, "third").await.unwrap();
    let rows = server.repository.list(&writer.namespace(), None, 0).unwrap().rows;
    check_chain(&server, &writer, &wire, rows.len() as u64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_envelope_than_the_one_asked_for_is_refused() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let snapshot = back_up(&mut writer, "what is restored").await.unwrap().snapshot;
    // Well formed, and sealed with the namespace's own keys.
    let (_, other) = seal_leaf(writer.keys().plaintext(), b"what an attacker wants it to be");
    let body = [&prefix(&other).unwrap()[..], &other].concat();
    let wire = Wire::before(&server.repository).await;
    let bytes = answer("200 OK", &body);
    wire.give(Some(Instead { route: "read", bytes, then: Then::Close }));
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("restored");
    let error = restored(&wire, &writer, snapshot, &to).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    assert!(wire.given.load(Ordering::SeqCst) > 0 && !to.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn envelopes_that_drip_or_never_end_are_given_up() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let snapshot = back_up(&mut writer, "what is restored").await.unwrap().snapshot;
    let wire = Wire::before(&server.repository).await;
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("restored");
    let announced = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n\0\0\x40\0";
    let tricks = [
        ("one byte at a time", Then::Repeat(b"x", Duration::from_millis(50))),
        ("envelopes without end", Then::Repeat(&[0; 16_384], Duration::ZERO)),
    ];
    for (name, then) in tricks {
        wire.give(Some(Instead { route: "read", bytes: announced.to_vec(), then }));
        let error = restored(&wire, &writer, snapshot, &to).await.expect_err(name);
        assert!(!matches!(error, ClientError::Bug(_)), "{name}: {error}");
        assert!(!to.exists(), "{name}");
    }
    wire.give(None);
    restored(&wire, &writer, snapshot, &to).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_or_more_envelopes_than_were_asked_for_are_refused() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let summary = back_up(&mut writer, "what is restored").await.unwrap();
    let rows = server.repository.list(&writer.namespace(), None, 0).unwrap().rows;
    let root = RecordBody::decode(&rows[0].body.0).unwrap().root;
    let mut frame = Vec::new();
    let mut each = |envelope: &[u8]| {
        frame.extend_from_slice(&prefix(envelope).unwrap());
        frame.extend_from_slice(envelope);
        std::ops::ControlFlow::Continue(())
    };
    server.repository.read(&writer.namespace(), &[root], &mut each).unwrap();
    let wire = Wire::before(&server.repository).await;
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("restored");
    // The first that is asked for is the root, alone.
    let gone = br#"{"code":"not_found","message":"m","request_id":"1"}"#;
    let cases = [
        ("none", answer("200 OK", b""), "ended early"),
        ("half of one", answer("200 OK", &frame[..frame.len() / 2]), "too short"),
        ("two", answer("200 OK", &frame.repeat(2)), "more envelopes"),
        ("it is not there", answer("404 Not Found", gone), "lacks a part"),
    ];
    for (name, bytes, says) in cases {
        wire.give(Some(Instead { route: "read", bytes, then: Then::Close }));
        let error = restored(&wire, &writer, summary.snapshot, &to).await.expect_err(name);
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(wire.given.load(Ordering::SeqCst) > 0 && !to.exists(), "{name}");
    }
}
