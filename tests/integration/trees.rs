//! Trees of files: there and back with everything that a file can be, in part, again, and after a
//! restore that was broken off.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, lgetxattr,
    llistxattr, lsetxattr, mkdirat, mknodat, openat, utimensat,
};
use strongroom_client::backup::BackupSummary;
use strongroom_client::error::ClientError;
use strongroom_client::files::collect::TreeOptions;
use strongroom_client::files::exclude::Excludes;
use strongroom_client::files::restore::TreeRestoreOptions;
use strongroom_client::files::select::Selection;
use strongroom_client::files::walk::WalkOptions;
use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions, RestoreSummary};
use strongroom_client::source::Source;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::id::RecordDigest;

use crate::harness::{Actor, TestServer};
use crate::programs::{Served, text};

/// Everything that is to come back of one file.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    size: u64,
    content: Vec<u8>,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    device: u64,
    /// The first path of the same file.
    same_as: Option<PathBuf>,
}

/// What is below a folder, by path.
fn seen(root: &Path) -> BTreeMap<PathBuf, Item> {
    let (mut items, mut first) = (BTreeMap::new(), BTreeMap::new());
    see(root, root, &mut items, &mut first);
    items
}

fn see(
    root: &Path,
    folder: &Path,
    items: &mut BTreeMap<PathBuf, Item>,
    first: &mut BTreeMap<(u64, u64), PathBuf>,
) {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let below = path.strip_prefix(root).unwrap().to_path_buf();
        let is_file = metadata.is_file();
        let inode = (metadata.dev(), metadata.ino());
        let same_as = (is_file && metadata.nlink() > 1)
            .then(|| first.entry(inode).or_insert_with(|| below.clone()).clone());
        let item = Item {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: if is_file { metadata.len() } else { 0 },
            content: if is_file { fs::read(&path).unwrap() } else { Vec::new() },
            target: fs::read_link(&path).ok(),
            xattrs: xattrs_of(&path),
            device: if metadata.is_dir() || is_file { 0 } else { metadata.rdev() },
            same_as,
        };
        items.insert(below, item);
        if metadata.is_dir() {
            see(root, &path, items, first);
        }
    }
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 4096];
    let length = llistxattr(path, list.as_mut_slice()).unwrap();
    list.truncate(length);
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let length = lgetxattr(path, name, value.as_mut_slice()).unwrap();
        value.truncate(length);
        (name.to_vec(), value)
    };
    names.map(value).collect()
}

#[track_caller]
pub fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (seen(one), seen(other));
    let names = |items: &BTreeMap<PathBuf, Item>| items.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&one), names(&other));
    for (path, item) in &one {
        let back = &other[path];
        assert!(item.content == back.content, "{}: content", path.display());
        let without = |item: &Item| format!("{:?}", Item { content: Vec::new(), ..copy(item) });
        assert_eq!(without(item), without(back), "{}", path.display());
    }
}

fn copy(item: &Item) -> Item {
    Item {
        content: Vec::new(),
        target: item.target.clone(),
        xattrs: item.xattrs.clone(),
        same_as: item.same_as.clone(),
        ..*item
    }
}

pub fn tree_of(folder: &Path) -> TreeOptions {
    let walk = WalkOptions { paths: vec![folder.to_path_buf()], ..WalkOptions::default() };
    TreeOptions { walk, special: true }
}

pub async fn back_up(writer: &mut Actor, options: TreeOptions) -> BackupSummary {
    writer.backup_from("files", Source::Tree(options)).await.unwrap()
}

pub async fn restore_to(
    writer: &Actor,
    snapshot: RecordDigest,
    target: &Path,
    paths: &[PathBuf],
    overwrite: bool,
) -> Result<RestoreSummary, ClientError> {
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    let tree = TreeRestoreOptions {
        selection: Selection::parse(paths).unwrap(),
        special: true,
        ..TreeRestoreOptions::default()
    };
    let target = Target::Path(target.to_path_buf());
    let options = RestoreOptions { overwrite, tree, ..RestoreOptions::to(target) };
    restore::restore(&access, snapshot, &options, &Monitor::hidden()).await
}

/// Where a folder that was backed up lies below a target.
pub fn below(target: &Path, folder: &Path) -> PathBuf {
    target.join(folder.strip_prefix("/").unwrap())
}

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with one of everything that needs no privilege.
fn make_everything(root: &Path) {
    let dir = |name: &str| fs::create_dir_all(root.join(name)).unwrap();
    let put = |name: &[u8], content: &[u8]| {
        fs::write(root.join(OsStr::from_bytes(name)), content).unwrap();
    };
    dir("a/deep/er");
    dir("empty");
    put(b"a.b", b"stands after what is in a");
    put(b"a/empty", b"");
    put(b"a/small", b"small");
    put(b"a/deep/large", &noise(1, 3_000_000));
    put(b"a/deep/er/small", b"another small one");
    put(b"not-utf8-\xff\xfe", b"bytes");
    put(b"line\nbreak", b"a name is bytes");
    put(&[b'n'; 255], b"as long as a name can be");
    fs::hard_link(root.join("a/small"), root.join("z-hard-link")).unwrap();
    fs::hard_link(root.join("a/small"), root.join("a/another")).unwrap();
    for (name, target) in [("dangling", "no/where"), ("up", "../.."), ("absolute", "/etc/passwd")] {
        symlink(target, root.join(name)).unwrap();
        set_time(&root.join(name), 1_000_000_000, 5);
    }
    for (name, pieces, size) in [
        ("sparse", &[(1 << 20, 5000), (3 << 20, 9)][..], 5 << 20),
        ("hole-at-end", &[(0, 4096)], 1 << 20),
        ("all-hole", &[], 7 << 20),
    ] {
        let file = File::create(root.join(name)).unwrap();
        for (offset, length) in pieces {
            file.write_all_at(&noise(2, *length), *offset).unwrap();
        }
        file.set_len(size).unwrap();
    }
    mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0 as Dev).unwrap();
    let user = lsetxattr(root.join("a/small"), "user.colour", b"red\0", XattrFlags::empty());
    user.expect("the folder for temporary files takes attributes");
    lsetxattr(root.join("empty"), "user.kind", b"", XattrFlags::empty()).unwrap();
    // user::rw-, user:1000:r--, group::r--, mask::r--, other::---
    let list =
        [(1, 6, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in list {
        acl.extend_from_slice(&u16::to_le_bytes(tag));
        acl.extend_from_slice(&u16::to_le_bytes(bits));
        acl.extend_from_slice(&u32::to_le_bytes(id));
    }
    let set = lsetxattr(root.join("a.b"), "system.posix_acl_access", &acl, XattrFlags::empty());
    set.expect("the folder for temporary files takes access control lists");
    for (name, mode) in [("a/small", 0o640), ("a/deep/large", 0o400), ("empty", 0o1777)] {
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    }
    set_time(&root.join("a/small"), 1_600_000_000, 123_456_789);
    set_time(&root.join("a.b"), -5, 7);
    set_time(&root.join("a/deep/er"), 1_500_000_000, 1);
    set_time(&root.join("a"), 1_400_000_000, 999_999_999);
    fs::set_permissions(root.join("a/deep"), Permissions::from_mode(0o555)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_with_everything_comes_back() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    make_everything(folder.path());
    let summary = back_up(&mut writer, tree_of(folder.path())).await;
    let collected = summary.tree.as_ref().unwrap();
    assert!(summary.is_complete && collected.is_complete(), "{:?}", collected.problems);
    assert_eq!(collected.file_count, 13, "three of them one file");
    // Holes are not read: what is stored is what has content.
    assert!(summary.plaintext_bytes < 3_100_000, "{}", summary.plaintext_bytes);

    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("back");
    let restored = restore_to(&writer, summary.snapshot, &to, &[], false).await.unwrap();
    let tree = restored.tree.unwrap();
    assert_eq!(tree.problems, Vec::<String>::new());
    assert_eq!((tree.file_count, tree.is_resumed), (13, false));
    assert_same(folder.path(), &below(&to, folder.path()));
    let blocks = |name: &str| fs::metadata(below(&to, folder.path()).join(name)).unwrap().blocks();
    assert_eq!(blocks("all-hole"), 0, "holes are holes again");
    assert!(blocks("sparse") < 100);
    let left: Vec<_> = fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "no marker is left: {left:?}");

    // The same tree again is nothing new, but for the time of the folder that it lies in.
    let again = back_up(&mut writer, tree_of(folder.path())).await;
    assert!(again.sent_chunk_count <= 1, "{}", again.sent_chunk_count);
    fs::set_permissions(folder.path().join("a/deep"), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(below(&to, folder.path()).join("a/deep"), Permissions::from_mode(0o755))
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn set_user_id_comes_back_only_where_it_is_asked_for() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    fs::write(&path, b"#!/bin/sh\n").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o4755)).unwrap();
    let summary = back_up(&mut writer, tree_of(folder.path())).await;
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    for (same_permissions, mode) in [(false, 0o755), (true, 0o4755)] {
        let target = tempfile::tempdir().unwrap();
        let tree = TreeRestoreOptions { same_permissions, ..TreeRestoreOptions::default() };
        let to = Target::Path(target.path().to_path_buf());
        let options = RestoreOptions { tree, ..RestoreOptions::to(to) };
        let monitor = Monitor::hidden();
        restore::restore(&access, summary.snapshot, &options, &monitor).await.unwrap();
        let back = fs::metadata(below(target.path(), &path)).unwrap();
        assert_eq!(back.mode() & 0o7777, mode);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_costs_what_it_is() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["a", "b", "d/e"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for number in 0..20 {
        fs::write(root.join(format!("a/{number:02}")), noise(number, 1 << 20)).unwrap();
        fs::write(root.join(format!("d/{number:02}")), noise(100 + number, 1 << 20)).unwrap();
    }
    fs::write(root.join("b/wanted"), noise(999, 300_000)).unwrap();
    fs::write(root.join("d/e/too"), b"small").unwrap();
    fs::hard_link(root.join("a/03"), root.join("d/linked")).unwrap();
    let summary = back_up(&mut writer, tree_of(root)).await;
    let path_of = |name: &str| root.join(name);
    let target = tempfile::tempdir().unwrap();

    // One file: to a name of its own.
    let one = target.path().join("one");
    let restored =
        restore_to(&writer, summary.snapshot, &one, &[path_of("b/wanted")], false).await.unwrap();
    assert_eq!(fs::read(&one).unwrap(), noise(999, 300_000));
    assert_eq!(restored.plaintext_bytes, 300_000);
    assert!(restored.fetched_sealed_bytes < 1_000_000, "{}", restored.fetched_sealed_bytes);

    // Two places: below a folder.
    let two = target.path().join("two");
    let paths = [path_of("b"), path_of("d/e/too")];
    let restored = restore_to(&writer, summary.snapshot, &two, &paths, false).await.unwrap();
    assert!(restored.fetched_sealed_bytes < 1_300_000, "{}", restored.fetched_sealed_bytes);
    assert_eq!(fs::read(below(&two, &path_of("b/wanted"))).unwrap(), noise(999, 300_000));
    assert_eq!(fs::read(below(&two, &path_of("d/e/too"))).unwrap(), b"small");
    assert_eq!(seen(&below(&two, root)).len(), 5, "b, b/wanted, d, d/e, d/e/too");

    // A link to what was not asked for is a file of its own.
    let three = target.path().join("three");
    let paths = [path_of("d/linked"), path_of("d/e")];
    restore_to(&writer, summary.snapshot, &three, &paths, false).await.unwrap();
    assert_eq!(fs::read(below(&three, &path_of("d/linked"))).unwrap(), noise(3, 1 << 20));

    let missing = [path_of("b/none")];
    let error = restore_to(&writer, summary.snapshot, &three, &missing, false).await.unwrap_err();
    assert!(error.to_string().contains("no such path"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_out_is_not_there() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    make_everything(folder.path());
    let mut options = tree_of(folder.path());
    options.special = false;
    let patterns = ["deep", "*hole*", &format!("{}/up", folder.path().display())];
    options.walk.excludes = Excludes::parse(&patterns.map(str::to_owned)).unwrap();
    let summary = back_up(&mut writer, options).await;
    let collected = summary.tree.unwrap();
    assert_eq!((collected.excluded_count, collected.skipped_count), (4, 1));
    assert!(summary.is_complete, "leaving out is no failure");
    let target = tempfile::tempdir().unwrap();
    restore_to(&writer, summary.snapshot, target.path(), &[], false).await.unwrap();
    let back = seen(&below(target.path(), folder.path()));
    let is_there = |name: &str| back.contains_key(Path::new(name));
    assert!(is_there("a/small") && is_there("sparse") && is_there("dangling"));
    for name in ["a/deep", "all-hole", "hole-at-end", "up", "pipe"] {
        assert!(!is_there(name), "{name}");
    }
    fs::set_permissions(folder.path().join("a/deep"), Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_off_restore_goes_on() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    for number in 0..40 {
        fs::write(folder.path().join(format!("{number:02}")), noise(number, 200_000)).unwrap();
    }
    fs::write(folder.path().join("large"), noise(77, 8 << 20)).unwrap();
    fs::hard_link(folder.path().join("03"), folder.path().join("zz")).unwrap();
    let summary = back_up(&mut writer, tree_of(folder.path())).await;
    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("to");
    restore_to(&writer, summary.snapshot, &to, &[], false).await.unwrap();
    let back = below(&to, folder.path());

    // Without its marker it is not ours, and nothing is touched.
    let error = restore_to(&writer, summary.snapshot, &to, &[], false).await.unwrap_err();
    assert!(error.to_string().contains("there already"), "{error}");

    // As a kill or a power cut leaves it: files missing, short, long, lost pages, wrong modes.
    let digits = summary.snapshot.to_string();
    let marker = to.join(format!(".strongroom-restore-{}", &digits[..16]));
    fs::write(&marker, b"").unwrap();
    fs::remove_file(back.join("07")).unwrap();
    fs::write(back.join("11"), &noise(11, 200_000)[..70_000]).unwrap();
    fs::write(back.join("12"), [noise(12, 200_000), vec![9; 10]].concat()).unwrap();
    File::options()
        .write(true)
        .open(back.join("large"))
        .unwrap()
        .write_all_at(b"lost", 5 << 20)
        .unwrap();
    fs::set_permissions(back.join("20"), Permissions::from_mode(0o600)).unwrap();
    symlink("/etc/passwd", back.join("07")).unwrap();
    let restored = restore_to(&writer, summary.snapshot, &to, &[], false).await.unwrap();
    let tree = restored.tree.unwrap();
    assert!(tree.is_resumed);
    assert_same(folder.path(), &back);
    assert!(!marker.exists());
    assert!(tree.kept_bytes > 12 << 20, "{}", tree.kept_bytes);
    assert!(restored.fetched_sealed_bytes < 2 << 20, "{}", restored.fetched_sealed_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_replaced_only_when_told_and_never_through_links() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/file"), b"new").unwrap();
    fs::write(folder.path().join("other"), b"new").unwrap();
    let summary = back_up(&mut writer, tree_of(folder.path())).await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), b"precious").unwrap();
    let target = tempfile::tempdir().unwrap();
    let back = below(target.path(), folder.path());
    fs::create_dir_all(&back).unwrap();
    symlink(outside.path(), back.join("sub")).unwrap();
    fs::hard_link(outside.path().join("file"), back.join("other")).unwrap();
    for _ in 0..2 {
        let refused = restore_to(&writer, summary.snapshot, target.path(), &[], false).await;
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("--overwrite"), "{error}");
    }
    restore_to(&writer, summary.snapshot, target.path(), &[], true).await.unwrap();
    assert_same(folder.path(), &back);
    assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);

    // A folder in the place of a file is nobody's to remove.
    fs::remove_file(back.join("other")).unwrap();
    fs::create_dir(back.join("other")).unwrap();
    let error = restore_to(&writer, summary.snapshot, target.path(), &[], true).await.unwrap_err();
    assert!(error.to_string().contains("never replaced"), "{error}");
}

/// A restore program that is killed again and again goes on until it is done.
#[test]
fn a_killed_restore_goes_on() {
    let served = Served::start();
    let kit = served.set_up();
    let kit = kit.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for number in 0..3000u64 {
        let path = folder.path().join(format!("{}/{number}", number % 10));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(number, 20_000)).unwrap();
    }
    let backup = served.client("home", &["backup", "files", folder.path().to_str().unwrap()]);
    assert!(backup.status.success(), "{}", text(&backup.stderr));
    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("to");
    let mut killed = 0;
    for files in [1, 500, 1500] {
        let mut restoring = Command::new(crate::harness::program("strongroom"))
            .args(["restore", "files", "--kit", kit, "--to"])
            .arg(&to)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let there = || {
            let folders = fs::read_dir(below(&to, folder.path())).into_iter().flatten().flatten();
            folders.filter_map(|e| fs::read_dir(e.path()).ok()).map(Iterator::count).sum::<usize>()
        };
        while there() < files && restoring.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        killed += usize::from(restoring.try_wait().unwrap().is_none());
        let _ = restoring.kill();
        restoring.wait().unwrap();
    }
    assert!(killed > 0, "every run was over before it could be killed");
    let to_text = to.to_str().unwrap();
    let last =
        served.client("home", &["restore", "files", "--kit", kit, "--to", to_text, "--json"]);
    assert!(last.status.success(), "{}", text(&last.stderr));
    assert!(text(&last.stdout).contains("\"is_resumed\":true"), "{}", text(&last.stdout));
    assert_same(folder.path(), &below(&to, folder.path()));
}

/// A path longer than a catalogue holds: nobody can read it, whoever runs this.
pub fn make_path_that_is_too_long(root: &Path) {
    let mut folder = openat(CWD, root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..90 {
        let name = "d".repeat(200);
        mkdirat(&folder, name.as_str(), Mode::RWXU).unwrap();
        folder = openat(&folder, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
}

#[test]
fn programs_tell_what_is_missing_list_and_compare() {
    let served = Served::start();
    let kit = served.set_up();
    let kit = kit.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("sub")).unwrap();
    fs::write(root.join("sub/one"), b"one").unwrap();
    fs::write(root.join("two"), b"two").unwrap();
    let root_text = root.to_str().unwrap();
    let first = served.client("home", &["backup", "files", root_text]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    fs::write(root.join("two"), b"longer").unwrap();
    fs::remove_file(root.join("sub/one")).unwrap();
    fs::write(root.join("sub/new\n"), b"").unwrap();
    make_path_that_is_too_long(root);
    let second = served.client("home", &["backup", "files", root_text, "--json"]);
    assert_eq!(second.status.code(), Some(3), "incomplete: {}", text(&second.stderr));
    assert!(text(&second.stderr).contains("its path is too long"), "{}", text(&second.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&second.stdout).unwrap();
    assert_eq!(summary["is_complete"], false);
    assert_eq!(summary["tree"]["unreadable_count"], 1);

    let rows = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let output = served.client("home", &[arguments, &["--kit", kit, "--json"]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        object["entries"].as_array().unwrap().clone()
    };
    let id = summary["snapshot"].as_str().unwrap();
    let listed = rows(&["list", id, &format!("{root_text}/two")]);
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["kind"], &listed[0]["size_bytes"]), (&"file".into(), &6.into()));
    let first_id = {
        let output = served.client("home", &["list", "files", "--kit", kit, "--json"]);
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["snapshots"][1]["is_complete"], false);
        object["snapshots"][0]["snapshot"].as_str().unwrap().to_owned()
    };
    let differing = rows(&["diff", &first_id, "files@latest"]);
    let changes: Vec<String> = differing
        .iter()
        .filter(|row| !row["path"].as_str().unwrap().contains("ddd"))
        .map(|row| {
            let path = row["path"].as_str().unwrap();
            let name = path.rsplit('/').next().unwrap();
            format!("{} {name:?}", row["change"].as_str().unwrap())
        })
        .filter(|change| !change.contains(root.file_name().unwrap().to_str().unwrap()))
        .collect();
    let wanted = ["changed \"sub\"", "added \"new\\n\"", "removed \"one\"", "changed \"two\""];
    for change in wanted {
        assert!(changes.contains(&change.to_owned()), "{change}: {changes:?}");
    }
    let lines = served.client("home", &["diff", &first_id, id, "--kit", kit]);
    assert!(text(&lines.stdout).contains("sub/new\\n\n"), "{}", text(&lines.stdout));
}

/// What a random tree is made of.
#[derive(Debug, Clone)]
enum Made {
    Folder(u32),
    File { mode: u32, pieces: Vec<(u32, u32)>, seed: u64 },
    Link(String),
    Name(usize),
}

fn made() -> impl Strategy<Value = Made> {
    let mode = prop::sample::select(vec![0o700u32, 0o755, 0o640, 0o600]);
    let pieces = prop::collection::vec((0u32..3, 0u32..90_000), 0..4);
    prop_oneof![
        2 => prop::sample::select(vec![0o700u32, 0o750, 0o755]).prop_map(Made::Folder),
        5 => (mode, pieces, any::<u64>())
            .prop_map(|(mode, pieces, seed)| Made::File { mode, pieces, seed }),
        1 => "[a-z./]{1,12}".prop_map(Made::Link),
        1 => any::<prop::sample::Index>().prop_map(|index| Made::Name(index.index(1000))),
    ]
}

fn make(root: &Path, plan: &[(usize, String, Made)]) {
    let (mut folders, mut files) = (vec![root.to_path_buf()], Vec::<PathBuf>::new());
    for (place, name, made) in plan {
        let path = folders[place % folders.len()].join(name);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match made {
            Made::Folder(mode) => {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(*mode)).unwrap();
                folders.push(path);
            }
            Made::File { mode, pieces, seed } => {
                let file = File::create(&path).unwrap();
                let mut at = 0;
                for (holes, length) in pieces {
                    at += u64::from(*holes) * 65_536;
                    file.write_all_at(&noise(seed % 5, *length as usize), at).unwrap();
                    at += u64::from(*length);
                }
                file.set_len(at).unwrap();
                file.set_permissions(Permissions::from_mode(*mode)).unwrap();
                files.push(path);
            }
            Made::Link(target) => symlink(target, &path).unwrap(),
            Made::Name(index) if !files.is_empty() => {
                fs::hard_link(&files[index % files.len()], &path).unwrap();
            }
            Made::Name(_) => {}
        }
    }
}

#[test]
fn random_trees_come_back() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (_server, writer) = runtime.block_on(async {
        let server = TestServer::start().await;
        let writer = server.writer("erp").await;
        (server, writer)
    });
    let writer = std::cell::RefCell::new(writer);
    let name = "[a-c.\\-]{1,3}x";
    let plan = prop::collection::vec((any::<usize>(), name, made()), 0..40);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(24));
    let outcome = runner.run(&plan, |plan| {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &plan);
        let mut writer = writer.borrow_mut();
        let summary = runtime.block_on(back_up(&mut writer, tree_of(folder.path())));
        prop_assert!(summary.is_complete);
        let target = tempfile::tempdir().unwrap();
        let restoring = restore_to(&writer, summary.snapshot, target.path(), &[], false);
        runtime.block_on(restoring).unwrap();
        assert_same(folder.path(), &below(target.path(), folder.path()));
        Ok(())
    });
    outcome.unwrap();
}
