//! Catalogues that no honest writer makes, from a machine that has been captured: nothing of them
//! is written, and nothing outside the target is touched.

use std::fs;
use std::path::Path;

use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::catalogue::{self, Entry, Hole, Kind};
use strongroom_protocol::id::RecordDigest;

use crate::harness::{Actor, TestServer, Tree, frames};

fn entry(kind: Kind, path: &str) -> Entry {
    Entry { path: path.as_bytes().to_vec(), ..Entry::empty(kind) }
}

fn file(path: &str, offset: u64, bytes: u64) -> Entry {
    let mut file = entry(Kind::File, path);
    (file.size_bytes, file.data_offset, file.data_bytes) = (bytes, offset, bytes);
    file
}

fn link(kind: Kind, path: &str, target: &str) -> Entry {
    Entry { link_target: target.as_bytes().to_vec(), ..entry(kind, path) }
}

/// Commits a snapshot with any catalogue over eight bytes of data.
async fn committed(writer: &Actor, catalogue: &[u8]) -> RecordDigest {
    let session = writer.session("files").await;
    let tree = Tree::seal_with(&writer.keys(), catalogue, &[b"data", b"more"], |_| {});
    session.upload(frames(&tree.envelopes())).await.unwrap();
    let record = writer.record(&session, "files", &tree.root, |_| {});
    session.commit(record.encode().into()).await.unwrap();
    record.digest()
}

async fn restored(
    access: &ReadAccess,
    snapshot: RecordDigest,
    to: &Path,
) -> Result<(), ClientError> {
    let overwrite = true;
    let target = Target::Path(to.to_path_buf());
    let options = RestoreOptions { overwrite, ..RestoreOptions::to(target) };
    restore::restore(access, snapshot, &options, &Monitor::hidden()).await.map(drop)
}

fn hostile_trees() -> Vec<(&'static str, Vec<Entry>)> {
    let folder = || entry(Kind::Directory, "a");
    let mut overlapping = file("b", 0, 4);
    overlapping.holes = vec![Hole { offset: 2, length: 9 }, Hole { offset: 4, length: 1 }];
    vec![
        ("the folder above", vec![file("../escaped", 0, 4)]),
        ("above, further in", vec![folder(), file("a/../../escaped", 0, 4)]),
        ("from the root of all", vec![file("/tmp/strongroom-escaped", 0, 4)]),
        ("no name", vec![folder(), file("a/", 0, 4)]),
        ("twice", vec![file("b", 0, 4), file("b", 4, 4)]),
        (
            "through a link",
            vec![link(Kind::SymbolicLink, "a", "../outside"), file("a/escaped", 0, 4)],
        ),
        ("in a file", vec![file("a", 0, 4), file("a/escaped", 4, 4)]),
        (
            "a link that becomes a folder",
            vec![
                link(Kind::SymbolicLink, "a", "../outside"),
                entry(Kind::Directory, "a"),
                file("a/escaped", 0, 4),
            ],
        ),
        ("a hard link to what is outside", vec![link(Kind::HardLink, "b", "../outside/secret")]),
        ("a hard link to what is there", vec![link(Kind::HardLink, "there2", "there")]),
        (
            "a hard link through a link",
            vec![
                link(Kind::SymbolicLink, "a", "../outside"),
                link(Kind::HardLink, "b", "a/secret"),
            ],
        ),
        (
            "a hard link to a link",
            vec![
                link(Kind::SymbolicLink, "a", "../outside/secret"),
                link(Kind::HardLink, "b", "a"),
            ],
        ),
        ("bytes of another file", vec![file("a", 0, 4), file("b", 2, 4)]),
        ("bytes that are not there", vec![file("a", 4, 5)]),
        ("holes over each other", vec![overlapping]),
        ("a stream in a tree", vec![entry(Kind::Stream, "b")]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_catalogues_write_nothing() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    for (name, entries) in hostile_trees() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("to");
        fs::create_dir_all(place.path().join("outside")).unwrap();
        fs::write(place.path().join("outside/secret"), b"secret").unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(to.join("there"), b"mine").unwrap();
        let mut all = vec![entry(Kind::Directory, "")];
        all.extend(entries);
        let snapshot = committed(&writer, &catalogue::encode(&all)).await;
        let error = restored(&access, snapshot, &to).await.expect_err(name);
        assert_eq!(error.exit_code(), ExitCode::Untrusted, "{name}: {error}");
        let names = |folder: &Path| -> Vec<_> {
            let mut names: Vec<_> =
                fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&to), ["there"], "{name}");
        assert_eq!(names(place.path()), ["outside", "to"], "{name}");
        assert_eq!(names(&place.path().join("outside")), ["secret"], "{name}");
    }
    assert!(!Path::new("/tmp/strongroom-escaped").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogues_that_are_none_are_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    let root = entry(Kind::Directory, "");
    let good = catalogue::encode(&[root.clone(), file("a", 0, 8)]);
    let cases = [
        b"".to_vec(),
        b"SRC1".to_vec(),
        b"SRC9".to_vec(),
        good[..good.len() - 1].to_vec(),
        [good.as_slice(), &[0xff; 4]].concat(),
        catalogue::encode(&[file("a", 0, 4), file("b", 4, 4)]),
        catalogue::encode(&[file("a", 0, 4), root]),
    ];
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("to");
    for bytes in cases {
        let snapshot = committed(&writer, &bytes).await;
        let error = restored(&access, snapshot, &to).await.unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Untrusted, "{bytes:02x?}: {error}");
        assert!(!to.exists());
    }
    let snapshot = committed(&writer, &good).await;
    restored(&access, snapshot, &to).await.unwrap();
    assert_eq!(fs::read(to.join("a")).unwrap(), b"datamore");
}
