//! Trees with what needs privilege or luck to make: owners, devices, lists that folders hand on;
//! names that are no text; files that change while they are read.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Dev, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use rustix::process::geteuid;
use serde_json::Value;

use crate::harness::{TestServer, program};
use crate::programs::{Served, text};
use crate::trees::{assert_same, back_up, below, restore_to, tree_of};

/// Runs of a race that is won nearly always.
const TRIES: u32 = 20;

/// Something of everybody's, and devices that no driver need have.
fn make_what_root_can(root: &Path) -> Result<(), rustix::io::Errno> {
    let device = |name: &str, kind: FileType, number: Dev| {
        mknodat(CWD, root.join(name), kind, Mode::RUSR | Mode::WGRP, number)
    };
    device("character", FileType::CharacterDevice, makedev(240, 17))?;
    device("block", FileType::BlockDevice, makedev(240, 300))?;
    device("pipe", FileType::Fifo, 0)?;
    fs::create_dir_all(root.join("shared")).unwrap();
    fs::write(root.join("shared/file"), b"of somebody").unwrap();
    symlink("file", root.join("shared/link")).unwrap();
    for (name, owner) in [("shared", 1234), ("shared/file", 4_000_000_000), ("pipe", 5)] {
        chown(root.join(name), Some(owner), Some(owner - 1)).unwrap();
    }
    lchown(root.join("shared/link"), Some(77), Some(88)).unwrap();
    lchown(root.join("character"), Some(9), Some(10)).unwrap();
    // user::rwx, user:1000:r-x, group::r-x, mask::r-x, other::---, handed on to what is made in it.
    let list =
        [(1, 7, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in list {
        acl.extend_from_slice(&u16::to_le_bytes(tag));
        acl.extend_from_slice(&u16::to_le_bytes(bits));
        acl.extend_from_slice(&u32::to_le_bytes(id));
    }
    lsetxattr(root.join("shared"), "system.posix_acl_default", &acl, XattrFlags::empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_devices_and_default_lists_come_back_where_root_restores() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root makes devices, and files of others");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    if let Err(error) = make_what_root_can(folder.path()) {
        eprintln!("skipped: this root makes no devices here: {error}");
        return;
    }
    let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let summary = back_up(&mut writer, tree_of(folder.path())).await;
    let collected = summary.tree.unwrap();
    // A socket is nothing without its process.
    assert_eq!((collected.other_count, collected.skipped_count), (4, 1));
    assert!(summary.is_complete);
    let target = tempfile::tempdir().unwrap();
    let restored = restore_to(&writer, summary.snapshot, target.path(), &[], false).await.unwrap();
    assert_eq!(restored.tree.unwrap().problems, Vec::<String>::new());
    fs::remove_file(folder.path().join("socket")).unwrap();
    let back = below(target.path(), folder.path());
    let device = |name: &str| fs::symlink_metadata(back.join(name)).unwrap().rdev();
    assert_eq!((device("character"), device("block")), (makedev(240, 17), makedev(240, 300)));
    assert_same(folder.path(), &back);

    // Without --special none of them is there.
    let mut plain = tree_of(folder.path());
    plain.special = false;
    let summary = back_up(&mut writer, plain).await;
    assert_eq!(summary.tree.unwrap().skipped_count, 3);
    let target = tempfile::tempdir().unwrap();
    restore_to(&writer, summary.snapshot, target.path(), &[], false).await.unwrap();
    for name in ["character", "block", "pipe"] {
        assert!(!below(target.path(), folder.path()).join(name).exists(), "{name}");
    }
}

#[test]
fn a_name_that_is_no_text_is_listed_and_restored_by_its_bytes() {
    let served = Served::start();
    let kit = served.set_up();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("menu"), b"soup").unwrap();
    fs::write(folder.path().join(OsStr::from_bytes(b"caf\xea")), b"other").unwrap();
    let made = served.client("home", &["backup", "files", folder.path().to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let run = |verb: &str, path: &Path, rest: &[&str]| {
        let output = Command::new(program("strongroom"))
            .arg("--home")
            .arg(served.folder.path().join("home"))
            .args([verb, "files@latest"])
            .arg(path)
            .arg("--kit")
            .arg(&kit)
            .args(rest)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    };
    let listed: Value = serde_json::from_slice(&run("list", &path, &["--json"])).unwrap();
    let rows = listed["entries"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "the folder and what is in it");
    assert!(rows[0]["path_hex"].as_str().unwrap().ends_with("636166e9"), "{}", rows[0]);
    assert_eq!(run("restore", &path.join("menu"), &["--to", "-"]), b"soup");
    let target = tempfile::tempdir().unwrap();
    run("restore", &path, &["--to", target.path().to_str().unwrap()]);
    assert_eq!(fs::read(below(target.path(), &path).join("menu")).unwrap(), b"soup");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_told_and_the_exit_code_is_3() {
    let served = Served::start();
    let kit = served.set_up();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    fs::write(&path, vec![b'a'; 40 << 20]).unwrap();
    fs::write(folder.path().join("rest"), b"still").unwrap();
    let is_over = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = File::options().append(true).open(&path).unwrap();
            while !is_over.load(Ordering::SeqCst) {
                log.write_all(b"one more line\n").unwrap();
                std::thread::yield_now();
            }
        });
        let back_up = || {
            let output = Command::new(program("strongroom"))
                .arg("--home")
                .arg(served.folder.path().join("home"))
                .args(["backup", "files", "--json"])
                .arg(folder.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            (output.status.code() == Some(3)).then_some(output)
        };
        let made = (0..TRIES).find_map(|_| back_up());
        is_over.store(true, Ordering::SeqCst);
        made
    });
    let made = made.expect("the file changes all the time");
    assert!(
        text(&made.stderr).contains("log: changed while it was read"),
        "{}",
        text(&made.stderr)
    );
    let summary: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(summary["tree"]["changed_count"], 1);
    assert_eq!(summary["is_complete"], false);
    let (rest, kit) = (folder.path().join("rest"), kit.to_str().unwrap());
    let words = ["restore", "files", rest.to_str().unwrap(), "--kit", kit, "--to", "-"];
    assert_eq!(served.client("home", &words).stdout, b"still");
}
