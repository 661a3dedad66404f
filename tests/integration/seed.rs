//! Exports: files that one server writes and another takes in, whole, damaged, old and forged.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{PublicKey, RecordDigest};
use strongroom_protocol::message::Retain;
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::seed::Manifest;
use strongroom_server::config::{Config, Size};
use strongroom_server::error::ServerError;
use strongroom_server::followers::FollowState;
use strongroom_server::replica::error::ReplicaError;
use strongroom_server::replica::import::{ImportReport, NewImport, import};
use strongroom_server::repository::Repository;
use strongroom_server::repository::pending::PendingCounts;
use strongroom_server::seed::check::check;
use strongroom_server::seed::export::{ExportReport, Wanted, export};
use strongroom_server::stop;

use crate::gc::{assert_whole, noise, snapshot, sync_up, tree_of};
use crate::harness::{Actor, DAY, TestServer, copy_folder, label, two_sites, unpack_dumps};
use crate::programs::{Served, json, text};
use crate::promote::{add_standby, back_up, pair, promote, signed, version};
use crate::replica::{
    OFFICER, events, follow, quick, replica, restored, snapshots, status, synced, until,
};

use crate::scrub::{flip_in_segments, reopen, scrub_config};

const PACK: u64 = 1 << 20;

/// Exports on a thread that may block, as a command does.
pub async fn export_to(server: &TestServer, to: &Path, only: &[&str]) -> ExportReport {
    try_export(server, to, only).await.unwrap()
}

async fn try_export(
    server: &TestServer,
    to: &Path,
    only: &[&str],
) -> Result<ExportReport, ServerError> {
    let (repository, to) = (server.repository.clone(), to.to_path_buf());
    let only = only.iter().map(|name| label(name)).collect();
    let work = move || {
        let (_stopper, stop) = stop::signal();
        export(&repository, Wanted { folder: &to, only, pack_bytes: PACK }, &stop)
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn import_from(
    repository: &Arc<Repository>,
    from: &Path,
    ledger_key: Option<PublicKey>,
) -> Result<ImportReport, ReplicaError> {
    let wanted = NewImport { from: from.to_path_buf(), ledger_key, name: None };
    import(repository, wanted).await
}

/// Imports with the right key.
pub async fn carry(from: &Path, primary: &TestServer, replica: &TestServer) -> ImportReport {
    let key = primary.repository.keys().ledger_public();
    import_from(&replica.repository, from, Some(key)).await.unwrap()
}

async fn refusal(replica: &TestServer, from: &Path, key: PublicKey) -> String {
    import_from(&replica.repository, from, Some(key)).await.unwrap_err().to_string()
}

fn key_of(server: &TestServer) -> PublicKey {
    server.repository.keys().ledger_public()
}

fn commits(server: &TestServer) -> usize {
    let own = events(&server.repository);
    own.iter().filter(|event| matches!(event, Event::Committed { .. })).count()
}

fn packs_in(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder.join("packs")).unwrap();
    let mut packs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    packs.sort();
    packs
}

fn flip(file: &Path, at: u64) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_carried_grows_and_the_line_goes_on_from_it() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let [day0, day1, day2] = unpack_dumps(folder.path());
    let first = writer.backup("db", &day0).await.unwrap();
    let exported = export_to(&primary, &disk, &[]).await;
    assert_eq!((exported.snapshots, exported.left_out.len()), (1, 0));
    assert!(exported.packs > 2, "{exported:?}");
    let checked = check(&disk, Some(exported.ledger_key)).unwrap();
    assert_eq!((checked.snapshots, checked.bytes), (1, exported.bytes));

    // Whose it is must be known here.
    let refused = import_from(&replica.repository, &disk, None).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("--ledger-key {}", exported.ledger_key)), "{refused}");
    assert_eq!(carry(&disk, &primary, &replica).await.snapshots, 1);

    // What is new is added, and nothing else; the origin is known now.
    let second = writer.backup("db", &day1).await.unwrap();
    let more = export_to(&primary, &disk, &[]).await;
    assert_eq!(more.snapshots, 1);
    assert!(more.bytes * 100 < second.sent_sealed_bytes * 110, "{more:?} for {second:?}");
    assert_eq!(check(&disk, None).unwrap().snapshots, 2);
    assert_eq!(import_from(&replica.repository, &disk, None).await.unwrap().snapshots, 1);
    let again = import_from(&replica.repository, &disk, None).await.unwrap();
    assert_eq!((again.snapshots, commits(&replica)), (0, 2));
    assert_eq!(export_to(&primary, &disk, &[]).await.bytes, 0);

    // The line finds all that, and brings the rest.
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    assert_eq!((status(&replica, "office").received_bytes, commits(&replica)), (0, 2));
    let third = writer.backup("db", &day2).await.unwrap();
    synced(&replica, &primary, "office").await;
    for (day, summary) in [(day0, first), (day1, second), (day2, third)] {
        let bytes = restored(&replica, &writer, summary.snapshot).await;
        assert!(bytes == std::fs::read(&day).unwrap());
    }
    let own = events(&primary.repository);
    assert!(own.iter().any(|event| matches!(event, Event::Exported { namespace_count: 1, .. })));
    let own = events(&replica.repository);
    assert!(own.iter().any(|event| matches!(event, Event::Imported { .. })));
}

/// An export of two snapshots, the second in packs of its own, and where it is.
async fn two_snapshots(primary: &TestServer) -> (tempfile::TempDir, PathBuf, Actor) {
    let mut writer = primary.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let [day0, ..] = unpack_dumps(folder.path());
    writer.backup("db", &day0).await.unwrap();
    export_to(primary, &disk, &[]).await;
    writer.snapshot("other", &[b"one", b"two"]).await;
    export_to(primary, &disk, &[]).await;
    (folder, disk, writer)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_file_is_said_with_its_name_and_nothing_is_taken_in() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let (folder, good, writer) = two_snapshots(&primary).await;
    let ns = writer.namespace();
    type Change = fn(&Path);
    let changes: [(&str, Change); 11] = [
        ("manifest", |disk| flip(&disk.join("manifest"), 50)),
        ("manifest", |disk| std::fs::remove_file(disk.join("manifest")).unwrap()),
        ("packs/00000001.pack", |disk| {
            std::fs::remove_file(disk.join("packs/00000001.pack")).unwrap();
        }),
        ("packs/00000001.pack", |disk| {
            let pack = std::fs::File::options().write(true).open(disk.join("packs/00000001.pack"));
            let pack = pack.unwrap();
            pack.set_len(pack.metadata().unwrap().len() - 1).unwrap();
        }),
        ("packs/99999999.pack", |disk| {
            let packs = packs_in(disk);
            std::fs::copy(&packs[0], disk.join("packs/99999999.pack")).unwrap();
        }),
        ("packs/00000000.new", |disk| {
            std::fs::write(disk.join("packs/00000000.new"), b"").unwrap()
        }),
        ("ledger", |disk| flip(&disk.join("ledger/00000000"), 40)),
        ("ledger/00000000", |disk| {
            std::fs::remove_file(disk.join("ledger/00000000")).unwrap();
        }),
        ("ledger/00000007", |disk| std::fs::write(disk.join("ledger/00000007"), b"").unwrap()),
        ("descriptors", |disk| {
            let file = std::fs::read_dir(disk.join("descriptors")).unwrap().next().unwrap();
            flip(&file.unwrap().path(), 100);
        }),
        ("notes.txt", |disk| std::fs::write(disk.join("notes.txt"), b"x").unwrap()),
    ];
    for (number, (named, change)) in changes.into_iter().enumerate() {
        let disk = folder.path().join(format!("changed{number}"));
        copy_folder(&good, &disk);
        change(&disk);
        let refused = refusal(&replica, &disk, key_of(&primary)).await;
        let checked = check(&disk, None).unwrap_err().to_string();
        assert!(refused.contains(named) && checked.contains(named), "{refused}\n{checked}");
        assert!(!refused.contains("internal"), "{refused}");
    }
    let other = PublicKey([7; 32]);
    assert!(refusal(&replica, &good, other).await.contains("not 0707"));
    assert!(check(&good, Some(other)).is_err());
    let own = import_from(&primary.repository, &good, None).await.unwrap_err().to_string();
    assert!(own.contains("itself"), "{own}");
    assert!(snapshots(&replica, &ns).is_empty());
    assert_eq!(commits(&replica), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_costs_the_snapshots_in_it_until_it_is_copied_again() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let (folder, good, writer) = two_snapshots(&primary).await;
    let disk = folder.path().join("damaged");
    copy_folder(&good, &disk);
    flip(&disk.join("packs/00000001.pack"), PACK / 2);
    let checked = check(&disk, None).unwrap_err().to_string();
    assert!(checked.contains("packs/00000001.pack"), "{checked}");
    let refused = refusal(&replica, &disk, key_of(&primary)).await;
    assert!(
        refused.contains("packs/00000001.pack") && refused.contains("1 snapshots"),
        "{refused}"
    );
    let rows = snapshots(&replica, &writer.namespace());
    assert_eq!((rows.len(), commits(&replica)), (1, 1));
    std::fs::copy(good.join("packs/00000001.pack"), disk.join("packs/00000001.pack")).unwrap();
    let done = import_from(&replica.repository, &disk, None).await.unwrap();
    assert_eq!((done.snapshots, commits(&replica)), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_of_an_export_is_missed() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let (folder, good, writer) = two_snapshots(&primary).await;
    // A manifest that fits: whoever carries the disk can make one.
    let disk = folder.path().join("short");
    copy_folder(&good, &disk);
    let mut manifest = Manifest::decode(&std::fs::read(disk.join("manifest")).unwrap()).unwrap();
    std::fs::remove_file(packs_in(&disk).pop().unwrap()).unwrap();
    manifest.packs.pop();
    std::fs::write(disk.join("manifest"), manifest.encode()).unwrap();
    assert!(check(&disk, None).unwrap_err().to_string().contains("not here"));
    let refused = refusal(&replica, &disk, key_of(&primary)).await;
    assert!(refused.contains("record is not in the export"), "{refused}");
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
    // The whole export brings what was missing.
    assert_eq!(carry(&good, &primary, &replica).await.snapshots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_read_whole_is_left_out_and_named_until_it_can() {
    let primary = TestServer::start_with(scrub_config).await;
    let replica = replica().await;
    let writer = primary.writer("erp").await;
    let (broken, whole) = (tree_of(&writer, &noise(1, 30)), tree_of(&writer, &noise(2, 30)));
    let damaged = snapshot(&writer, "broken", &broken).await;
    let kept = snapshot(&writer, "whole", &whole).await;
    let address = primary.address;
    let (data, clock) = primary.stop().await;
    flip_in_segments(&data.path().join("data"), &broken.chunks[7]);
    let primary = reopen(data, clock, address).await;
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    // The export meets the damage itself, and once more when it is known.
    for _ in 0..2 {
        let report = export_to(&primary, &disk, &[]).await;
        assert_eq!(report.left_out.len(), 1, "{report:?}");
        assert!(report.left_out[0].contains(&damaged.to_string()), "{report:?}");
        primary.repository.mark_damage().unwrap();
        assert_eq!(primary.repository.damage().count(), 1);
    }
    // The disk says so too, and brings the rest.
    let checked = check(&disk, None).unwrap_err().to_string();
    assert!(checked.contains(&damaged.to_string()), "{checked}");
    let refused = refusal(&replica, &disk, key_of(&primary)).await;
    assert!(refused.contains("1 snapshots") && refused.contains(&damaged.to_string()), "{refused}");
    let listed = snapshots(&replica, &writer.namespace());
    assert!(listed.len() == 1 && listed[0].record == kept);
    // The next backup heals it, and then it is exported.
    let session = writer.session("broken").await;
    assert_eq!(sync_up(&session, &broken).await, 1);
    primary.repository.store().seal().unwrap();
    primary.repository.tick();
    let report = export_to(&primary, &disk, &[]).await;
    assert_eq!((report.snapshots, report.left_out.len()), (1, 0), "{report:?}");
    assert_eq!(check(&disk, None).unwrap().snapshots, 2);
    assert_eq!(carry(&disk, &primary, &replica).await.snapshots, 1);
    assert_whole(&replica.repository, &writer, &broken);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_export_and_one_of_another_history_are_refused() {
    let (primary, replica, writer) = two_sites(quick).await;
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    writer.snapshot("db", &[b"one"]).await;
    export_to(&primary, &old, &[]).await;
    let address = primary.address;
    let at = |config: &mut Config| config.listen = address;
    let (data, clock) = primary.stop().await;
    let back = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&data.path().join("data"), &back.path().join("data"));
    let primary = TestServer::open_with(data, clock.clone(), at).await;
    writer.snapshot("db", &[b"two"]).await;
    export_to(&primary, &new, &[]).await;
    carry(&new, &primary, &replica).await;
    let key = key_of(&primary);
    let refused = refusal(&replica, &old, key).await;
    assert!(refused.contains("old/manifest: older than an export"), "{refused}");

    // The server is put back, and goes on from there.
    primary.stop().await;
    let forked = TestServer::open_with(back, clock, at).await;
    let put_back = try_export(&forked, &new, &[]).await.unwrap_err().to_string();
    assert!(put_back.contains("put back"), "{put_back}");
    for _ in 0..8 {
        forked.token(None, strongroom_protocol::role::Role::Audit);
    }
    let fork = folder.path().join("fork");
    export_to(&forked, &fork, &[]).await;
    let refused = refusal(&replica, &fork, key).await;
    assert!(refused.contains("fork/manifest: shows another history"), "{refused}");
    // The line is held to what the disk has shown.
    follow(&replica, &forked, "office").await;
    until("refused", || status(&replica, "office").state == FollowState::Refused).await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_was_broken_off_goes_on_behind_its_last_whole_pack() {
    let primary = TestServer::start().await;
    let mut writer = primary.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let [day0, ..] = unpack_dumps(folder.path());
    writer.backup("db", &day0).await.unwrap();
    let (stopper, stop) = stop::signal();
    let (repository, to) = (primary.repository.clone(), disk.clone());
    let breaking = tokio::task::spawn_blocking(move || {
        let only = Vec::new();
        export(&repository, Wanted { folder: &to, only, pack_bytes: PACK / 16 }, &stop)
    });
    let begun = disk.join("packs/00000001.pack");
    let watching = tokio::task::spawn_blocking(move || {
        while !begun.exists() {
            std::hint::spin_loop();
        }
        stopper.stop();
    });
    watching.await.unwrap();
    assert!(matches!(breaking.await.unwrap(), Err(ServerError::Closing)));
    assert!(check(&disk, None).unwrap_err().to_string().contains("not finished"));
    let inode = |pack: &PathBuf| pack.metadata().unwrap().ino();
    let whole = |pack: &PathBuf| pack.extension().is_some_and(|end| end == "pack");
    let before: Vec<_> = packs_in(&disk).into_iter().filter(whole).collect();
    let inodes: Vec<_> = before.iter().map(inode).collect();
    export_to(&primary, &disk, &[]).await;
    assert_eq!(before.iter().map(inode).collect::<Vec<_>>(), inodes);
    let checked = check(&disk, None).unwrap();
    assert!(checked.snapshots == 1 && packs_in(&disk).len() > before.len());
    // Nothing is there twice.
    let once = folder.path().join("once");
    assert_eq!(export_to(&primary, &once, &[]).await.bytes, checked.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_broken_off_goes_on() {
    let small = |config: &mut Config| config.store.segment = Size(1 << 20);
    let (primary, replica, mut writer) = two_sites(small).await;
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    export_to(&primary, &disk, &[]).await;
    let holders = Arc::strong_count(&replica.repository);
    let (repository, from, key) = (replica.repository.clone(), disk.clone(), key_of(&primary));
    let breaking = tokio::spawn(async move { import_from(&repository, &from, Some(key)).await });
    until("half way", || replica.repository.store().statistics().segment_count > 2).await;
    // What a kill leaves is what lies on the disk at some moment.
    let killed = Arc::new(tempfile::tempdir().unwrap());
    copy_folder(&replica.folder.path().join("data"), &killed.path().join("data"));
    replica.repository.followers().stop();
    let broken = breaking.await.unwrap();
    let is_let_go = || Arc::strong_count(&replica.repository) <= holders;
    until("nobody else has the repository", is_let_go).await;
    assert!(matches!(broken, Ok(_) | Err(ReplicaError::Stopping)), "{broken:?}");
    let replica = TestServer::open_with(killed, replica.clock.clone(), small).await;
    carry(&disk, &primary, &replica).await;
    assert_eq!((snapshots(&replica, &writer.namespace()).len(), commits(&replica)), (1, 1));
    let bytes = restored(&replica, &writer, summary.snapshot).await;
    assert!(bytes == std::fs::read(&day0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_holds_come_with_the_disk_and_never_shorten_what_is_here() {
    let primary = TestServer::start().await;
    let (short, long) = (
        TestServer::start_with(quick).await,
        TestServer::start_with(|config| {
            config.retention.default.0 = DAY * 900;
            config.retention.minimum.0 = DAY * 900;
        })
        .await,
    );
    let writer = primary.writer("erp").await;
    let namespace = writer.namespace();
    let (held, _) = writer.snapshot("db", &[b"one"]).await;
    let (gone, _) = writer.snapshot("db", &[b"two"]).await;
    let (plain, _) = writer.snapshot("db", &[b"three"]).await;
    let (held, gone, plain) = (held.digest(), gone.digest(), plain.digest());
    let wish =
        |days: u32| Retain { lock_wanted: LockWanted::Period((DAY * days).as_secs()), mode: None };
    primary.repository.retain(&OFFICER, &namespace, &held, wish(400)).unwrap();
    primary.repository.place_hold(&OFFICER, &namespace, &held, "audit".to_owned()).unwrap();
    primary.repository.retain(&OFFICER, &namespace, &plain, wish(60)).unwrap();
    primary.clock.advance(DAY * 31);
    primary.repository.forget(&OFFICER, &namespace, &gone).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    assert_eq!(export_to(&primary, &disk, &[]).await.snapshots, 2);
    let left = |replica: &TestServer, record: RecordDigest| {
        let rows = snapshots(replica, &namespace);
        let lock = rows.iter().find(|row| row.record == record).unwrap().lock;
        let now = replica.repository.moment().retention_seconds;
        ((lock.until_seconds - now) / DAY.as_secs(), lock.is_held)
    };
    for replica in [&short, &long] {
        replica.clock.advance(DAY * 31);
        assert_eq!(carry(&disk, &primary, replica).await.snapshots, 2);
        let row = replica_row(replica, &primary);
        let left = replica.repository.pending_counts(&row, None).unwrap();
        assert_eq!(left, PendingCounts::default());
    }
    // The origin's clock has gone on by 31 days: what was left there then is left here.
    assert!((368..=370).contains(&left(&short, held).0), "{:?}", left(&short, held));
    assert!(left(&short, held).1 && !left(&short, plain).1);
    assert!((29..=31).contains(&left(&short, plain).0), "{:?}", left(&short, plain));
    assert!((899..=901).contains(&left(&long, plain).0) && left(&long, held).1);
}

fn replica_row(
    replica: &TestServer,
    primary: &TestServer,
) -> strongroom_server::replica_rows::PrimaryRow {
    replica.repository.origin(&key_of(primary)).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_comes_by_import_and_by_pull_at_once_is_one_with_the_longer_lock() {
    let (primary, replica, mut writer) = two_sites(quick).await;
    let namespace = writer.namespace();
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let [day0, day1, _] = unpack_dumps(folder.path());
    let mut records = Vec::new();
    for day in [&day0, &day1] {
        records.push(writer.backup("db", day).await.unwrap().snapshot);
    }
    for piece in [&b"one"[..], b"two", b"three"] {
        records.push(writer.snapshot("other", &[piece]).await.0.digest());
    }
    export_to(&primary, &disk, &[]).await;
    let wish =
        |days: u32| Retain { lock_wanted: LockWanted::Period((DAY * days).as_secs()), mode: None };
    // The line knows of longer locks than the disk.
    let mut ends = Vec::new();
    for (record, days) in records.iter().zip([100, 200, 300, 400, 500]) {
        let lock = primary.repository.retain(&OFFICER, &namespace, record, wish(days)).unwrap();
        ends.push(lock.lock.until_seconds);
    }
    follow(&replica, &primary, "office").await;
    let (repository, from) = (replica.repository.clone(), disk.clone());
    let importing = tokio::spawn(async move { import_from(&repository, &from, None).await });
    importing.await.unwrap().unwrap();
    synced(&replica, &primary, "office").await;
    let rows = snapshots(&replica, &namespace);
    assert_eq!((rows.len(), commits(&replica)), (5, 5));
    for (record, end) in records.iter().zip(ends) {
        let lock = rows.iter().find(|row| row.record == *record).unwrap().lock;
        assert!(lock.until_seconds >= end, "{} < {end}", lock.until_seconds);
        assert!(lock.until_seconds < end + DAY.as_secs());
    }
    for (day, record) in [(&day0, records[0]), (&day1, records[1])] {
        let bytes = restored(&replica, &writer, record).await;
        assert!(bytes == std::fs::read(day).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_can_be_narrowed_and_a_wider_one_brings_the_rest() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let (erp, files) = (primary.writer("erp").await, primary.writer("files").await);
    erp.snapshot("db", &[b"one"]).await;
    files.snapshot("home", &[b"one"]).await;
    let folder = tempfile::tempdir().unwrap();
    let (narrow, wide) = (folder.path().join("narrow"), folder.path().join("wide"));
    assert_eq!(export_to(&primary, &narrow, &["erp"]).await.snapshots, 1);
    let other = try_export(&primary, &narrow, &["files"]).await.unwrap_err().to_string();
    assert!(other.contains("narrow/manifest: the export has other namespaces"), "{other}");
    let unknown = try_export(&primary, &wide, &["nobody"]).await.unwrap_err().to_string();
    assert!(unknown.contains("nobody"), "{unknown}");
    let foreign = try_export(&replica, &narrow, &[]).await.unwrap_err().to_string();
    assert!(foreign.contains("another server"), "{foreign}");
    let full = try_export(&primary, folder.path(), &[]).await.unwrap_err().to_string();
    assert!(full.contains("not part of an export"), "{full}");
    carry(&narrow, &primary, &replica).await;
    assert_eq!(snapshots(&replica, &erp.namespace()).len(), 1);
    assert!(snapshots(&replica, &files.namespace()).is_empty());
    export_to(&primary, &wide, &[]).await;
    assert_eq!(carry(&wide, &primary, &replica).await.snapshots, 1);
    assert_eq!(snapshots(&replica, &files.namespace()).len(), 1);
}

#[test]
fn the_programs_export_check_and_import_running_or_not() {
    let (mut office, mut remote) = (Served::start(), Served::start());
    office.set_up();
    let done = office.client("home", &["backup", "db", "/etc/hostname"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let disk = office.folder.path().join("disk");
    let disk = disk.to_str().unwrap();
    let exported = json(&office.command(&["export", "--to", disk, "--json"]));
    let key = exported["report"]["ledger_key"].as_str().unwrap();
    let shown = office.command(&["status"]);
    assert!(text(&shown.stdout).contains(key), "{}", text(&shown.stdout));
    let program = crate::harness::program("strongroomd");
    let run =
        |arguments: &[&str]| std::process::Command::new(&program).args(arguments).output().unwrap();
    let checked = run(&["import", "--from", disk, "--check", "--ledger-key", key]);
    assert!(text(&checked.stdout).contains("whole"), "{}", text(&checked.stderr));
    assert_eq!(run(&["import", "--from", disk]).status.code(), Some(2), "no data folder");
    let refused = remote.command(&["import", "--from", disk]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--ledger-key"), "{}", text(&refused.stderr));
    let imported =
        json(&remote.command(&["import", "--from", disk, "--ledger-key", key, "--json"]));
    assert_eq!(imported["report"]["snapshots"], 1);

    // The same with nobody serving.
    let done = office.client("home", &["backup", "db", "/etc/passwd"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    for served in [&mut office, &mut remote] {
        assert!(served.signal(rustix::process::Signal::TERM).success());
    }
    let exported = office.command(&["export", "--to", disk]);
    assert!(text(&exported.stdout).contains("1 snapshots"), "{}", text(&exported.stderr));
    let imported = remote.command(&["import", "--from", disk]);
    assert!(text(&imported.stdout).contains("1 snapshots"), "{}", text(&imported.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_every_version_of_a_descriptor() {
    let (_primary, second, writer) = pair().await;
    promote(&second, &signed(&writer.kit(), &second)).unwrap();
    add_standby(&writer, &second).await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    back_up(&writer, &day0).await.unwrap();
    let disk = folder.path().join("disk");
    assert_eq!(export_to(&second, &disk, &[]).await.snapshots, 2);
    assert_eq!(check(&disk, None).unwrap().snapshots, 2);
    let third = replica().await;
    assert_eq!(carry(&disk, &second, &third).await.snapshots, 2);
    assert_eq!((version(&third), commits(&third)), (2, 2));

    // Without its first, the chain is none.
    let file = std::fs::read_dir(disk.join("descriptors")).unwrap().next().unwrap();
    let (path, mut chain) = (file.as_ref().unwrap().path(), Vec::new());
    let whole = std::fs::read(&path).unwrap();
    let first = u32::from_le_bytes(whole[4..8].try_into().unwrap()) as usize;
    chain.extend_from_slice(&whole[..4]);
    chain.extend_from_slice(&whole[8 + first..]);
    std::fs::write(&path, chain).unwrap();
    let refused = refusal(&replica().await, &disk, key_of(&second)).await;
    assert!(refused.contains("follow each other"), "{refused}");
}
