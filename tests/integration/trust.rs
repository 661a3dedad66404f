//! What keys open: a kit everything, a stolen client nothing, a wrong identity nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_client::age_file;
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::fetch::Fetcher;
use strongroom_client::kit::Kit;
use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::snapshot;
use strongroom_client::source::Source;
use strongroom_client::tree::Leaf;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::limits::CHUNK_MAX_BYTES;
use strongroom_protocol::record::Totals;
use strongroom_protocol::role::Role;

use crate::harness::{Actor, TestServer, Tree, frames, unpack_dumps};

async fn restore_with(
    access: &ReadAccess,
    snapshot: &str,
    to: &Path,
    unverified: bool,
) -> Result<(), ClientError> {
    let target = Target::Path(to.to_path_buf());
    let options = RestoreOptions { unverified, ..RestoreOptions::to(target) };
    let found = snapshot::find(access, snapshot).await?.snapshot;
    restore::restore(access, found, &options, &Monitor::hidden()).await.map(drop)
}

fn same(one: &Path, other: &Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(other).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_days_come_back_byte_for_byte_and_cost_what_changed() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let days = unpack_dumps(folder.path());
    let mut summaries = Vec::new();
    for day in &days {
        summaries.push(writer.backup("db", day).await.unwrap());
    }
    assert!(summaries[1].sent_sealed_bytes < summaries[0].sent_sealed_bytes / 2);
    let again = writer.backup("db", &days[2]).await.unwrap();
    assert!(again.sent_bytes < again.plaintext_bytes / 200, "{} bytes", again.sent_bytes);
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    for (at, (day, summary)) in days.iter().zip(&summaries).enumerate() {
        let to = folder.path().join(format!("restored{at}"));
        restore_with(&access, &summary.snapshot.to_string(), &to, false).await.unwrap();
        assert!(same(day, &to), "day {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_around_every_boundary_come_back() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let dump = std::fs::read(day0).unwrap();
    let kib = 1024;
    let sizes = [0, 1, 16 * kib - 1, 16 * kib, 64 * kib, 256 * kib, 256 * kib + 1, 9000 * kib];
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    for size in sizes {
        let bytes = dump[..size].to_vec();
        let source = Source::Stream(Box::new(std::io::Cursor::new(bytes.clone())));
        let summary = writer.backup_from("sizes", source).await.unwrap();
        assert_eq!(summary.plaintext_bytes, size as u64);
        let to = folder.path().join(format!("size{size}"));
        restore_with(&access, &summary.snapshot.to_string(), &to, false).await.unwrap();
        assert!(std::fs::read(&to).unwrap() == bytes, "{size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stolen_client_opens_nothing() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    // All files that the client keeps; the kit was taken off the machine, as it should be.
    let kit = writer.kit();
    let mut stolen = Vec::new();
    gather(writer.profile.folder().path("").as_path(), &mut stolen);
    assert!(stolen.len() > 4, "{stolen:?}");
    let secrets: [&[u8]; 2] = [kit.authority_key.as_bytes(), kit.access_key.as_bytes()];
    for file in &stolen {
        let bytes = std::fs::read(file).unwrap();
        let text = String::from_utf8_lossy(&bytes).to_uppercase();
        assert!(!text.contains("AGE-SECRET-KEY"), "{}", file.display());
        for secret in secrets {
            let hex = strongroom_protocol::id::to_hex(secret).to_uppercase();
            assert!(!bytes.windows(32).any(|window| window == secret), "{}", file.display());
            assert!(!text.contains(&hex), "{}", file.display());
        }
    }
    // With the keys it has, and even with the help of a server that hands out records: the record
    // does not open, and neither does the root, because no h is on the machine.
    let record = {
        let reader = server.principal(Some("erp"), Role::Restore).await;
        let route = strongroom_protocol::route::Route::Record(reader.namespace(), summary.snapshot);
        let bytes = reader.client().request(&route, "", Default::default()).await.unwrap();
        strongroom_protocol::record::Record::decode(&bytes).unwrap()
    };
    let (identity, _) = age_file::generate_identity();
    assert!(age_file::open_with(&[identity], &record.key_block).is_err());
    let reader = server.principal(Some("erp"), Role::Restore).await;
    let keys = writer.keys().plaintext().clone();
    let fetcher = Fetcher::new(reader.client(), reader.namespace(), keys.clone());
    let guess = strongroom_client::sealer::NodeChild {
        digest: record.body.root,
        h: keys.hash_chunk(b"guess"),
        plaintext_bytes: 0,
    };
    let mut totals = Totals::default();
    assert!(fetcher.nodes(record.body.root_level, &[guess], &mut totals).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_identity_opens_nothing() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    writer.backup("db", &day0).await.unwrap();
    let mut reader = server.principal(Some("erp"), Role::Restore).await;
    let (wrong, _) = age_file::generate_identity();
    let connect = reader.connect.clone();
    let access =
        ReadAccess::with_profile(&mut reader.profile, vec![wrong], &connect).await.unwrap();
    let to = folder.path().join("restored");
    let error = restore_with(&access, "db@latest", &to, true).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    assert!(!to.exists());
    let right = writer.kit().identity;
    let access =
        ReadAccess::with_profile(&mut reader.profile, vec![right], &connect).await.unwrap();
    restore_with(&access, "db@latest", &to, false).await.unwrap();
    assert!(same(&day0, &to));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_namespaces_kit_opens_nothing() {
    let server = TestServer::start().await;
    let (mut writer, other) = (server.writer("erp").await, server.writer("other").await);
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    let access = ReadAccess::with_kit(&other.kit(), &other.connect, false).await.unwrap();
    let to = folder.path().join("restored");
    assert!(restore_with(&access, &summary.snapshot.to_string(), &to, true).await.is_err());
    assert!(!to.exists());
    // A kit that names another namespace than its keys is refused before anything is read.
    let mut mixed: Kit = other.kit();
    mixed.namespace = writer.namespace();
    assert!(ReadAccess::with_kit(&mixed, &writer.connect, false).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_command_that_fails_makes_no_snapshot() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let fails = "head -c 100000000 /dev/zero; echo 'out of memory' >&2; exit 3";
    let command = ["sh", "-c", fails].map(String::from).to_vec();
    let error = writer.backup_from("db", Source::Command(command)).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::DumpFailed, "{error}");
    assert_eq!(server.repository.status().unwrap().snapshot_count, 0);
    let good = ["sh", "-c", "echo dump; echo warning >&2"].map(String::from).to_vec();
    let summary = writer.backup_from("db", Source::Command(good)).await.unwrap();
    assert_eq!((summary.plaintext_bytes, summary.sequence), (5, 1));
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    let record = access.open_record(summary.snapshot, false).await.unwrap();
    assert_eq!(record.key_block.private.standard_error, b"warning\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_lost_its_state_goes_on_from_its_own_head() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let dump = |text: &'static str| Source::Stream(Box::new(text.as_bytes()));
    writer.backup_from("db", dump("one")).await.unwrap();
    for lost in ["cache.redb", "receipts", "pending"] {
        let path = writer.profile.folder().path(lost);
        let _ = std::fs::remove_dir_all(&path);
        let _ = std::fs::remove_file(&path);
    }
    let next = writer.backup_from("db", dump("two")).await.unwrap();
    assert_eq!(next.sequence, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_between_backups_loses_nothing() {
    let server = TestServer::start().await;
    let mut writer: Actor = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    writer.backup("db", &day0).await.unwrap();
    let server = server.restart().await;
    writer.connect = server.connect();
    let summary = writer.backup("db", &day1).await.unwrap();
    assert!(summary.sent_sealed_bytes < summary.sealed_bytes / 2, "day 0 was forgotten");
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    let to = folder.path().join("restored");
    restore_with(&access, "db@latest", &to, false).await.unwrap();
    assert!(same(&day1, &to));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_claims_more_than_a_chunk_can_hold_is_refused() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    for claimed in [u64::from(CHUNK_MAX_BYTES) + 1, 1 << 40, u64::MAX / 4] {
        let session = writer.session("db").await;
        let lie = |leaf: &mut Leaf| {
            // The catalogue stays true, so that the walk gets as far as the data.
            if leaf.plaintext_bytes == 4 {
                leaf.plaintext_bytes = claimed;
            }
        };
        let tree = Tree::seal_as(&writer.keys(), &[b"some", b"data"], lie);
        session.upload(frames(&tree.envelopes())).await.unwrap();
        let record = writer.record(&session, "db", &tree.root, |_| {});
        session.commit(record.encode().into()).await.unwrap();
        let to = folder.path().join("restored");
        let restoring = restore_with(&access, "db@latest", &to, false);
        let outcome = tokio::time::timeout(Duration::from_secs(20), restoring).await;
        let error = outcome.expect("the restore hangs").unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
        assert!(error.to_string().contains("no chunk has more"), "{error}");
        assert!(!to.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_source_that_the_record_does_not_name_is_refused() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let dump = Source::Stream(Box::new(&b"mail"[..]));
    writer.backup_from("mail", dump).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("restored");
    let mut access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    // As if a lying server had listed the snapshot under this name.
    access.wanted_source = Some("db".parse().unwrap());
    let error = restore_with(&access, "mail@latest", &to, true).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    assert!(!to.exists());
    access.wanted_source = Some("mail".parse().unwrap());
    restore_with(&access, "mail@latest", &to, false).await.unwrap();
}

fn gather(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { gather(&path, files) } else { files.push(path) }
    }
}
