//! What a cache keeps and loses: reopened, shared, forged, foreign, damaged, killed.

use super::*;
use std::io::{BufRead, BufReader};

const SCOPE: CacheScope =
    CacheScope { repository: PublicKey([1; 32]), namespace: NamespaceId([2; 32]), epoch: 1 };

fn keys(key: u8) -> PlaintextKeys {
    PlaintextKeys::from_plaintext_key([key; 32])
}

fn open(path: &Path) -> Cache {
    Cache::open(path, SCOPE, &keys(1), 1 << 20).unwrap()
}

fn row(number: u32) -> (ChunkId, CacheRow) {
    let bytes = number.to_le_bytes();
    let id = ChunkId(*blake3::hash(&bytes).as_bytes());
    let digest = SealedDigest(blake3::derive_key("cache test", &bytes));
    (id, CacheRow { digest, envelope_bytes: number })
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    (folder, path)
}

fn all_found(cache: &Cache, count: u32) -> bool {
    (0..count).map(row).all(|(id, row)| cache.get(&id) == Some(row))
}

#[test]
fn rows_are_found_at_once_and_after_reopening() {
    let (_folder, path) = temporary();
    let cache = open(&path);
    assert_eq!(cache.condition(), CacheCondition::Created);
    cache.insert((0..40_000).map(row));
    assert!(all_found(&cache, 40_000), "committed by itself");
    cache.insert((40_000..40_010).map(row));
    assert!(all_found(&cache, 40_010), "waiting");
    assert_eq!(cache.get(&row(50_000).0), None);
    cache.flush(false);
    assert!(all_found(&cache, 40_010));
    cache.flush(true);
    drop(cache);
    let cache = open(&path);
    assert_eq!(cache.condition(), CacheCondition::Opened);
    assert!(all_found(&cache, 40_010) && !cache.sealer_changed());
    cache.clear();
    assert_eq!(cache.get(&row(1).0), None);
    cache.insert([row(1)]);
    assert!(cache.get(&row(1).0).is_some());
}

#[test]
fn the_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path) = temporary();
    drop(open(&path));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn another_scope_or_key_finds_nothing() {
    let (_folder, path) = temporary();
    let cache = open(&path);
    cache.insert([row(1)]);
    cache.flush(true);
    drop(cache);
    let cache = Cache::open(&path, SCOPE, &keys(2), 1 << 20).unwrap();
    assert_eq!(cache.condition(), CacheCondition::Opened);
    assert_eq!(cache.get(&row(1).0), None, "MAC of another key");
    drop(cache);
    let other = CacheScope { epoch: 2, ..SCOPE };
    let cache = Cache::open(&path, other, &keys(1), 1 << 20).unwrap();
    assert!(matches!(cache.condition(), CacheCondition::Replaced { .. }));
    assert_eq!(cache.get(&row(1).0), None);
    drop(cache);
    assert!(path.with_file_name("cache.set-aside").exists());
}

#[test]
fn forged_rows_are_no_rows() {
    let (_folder, path) = temporary();
    let cache = open(&path);
    let (id, good) = row(1);
    let value = cache.mac.seal(&id, &good);
    assert_eq!(cache.mac.open(&id, &value), Some(good));
    assert_eq!(cache.mac.open(&row(2).0, &value), None);
    for at in 0..ROW_BYTES {
        let mut changed = value;
        changed[at] ^= 1;
        assert_eq!(cache.mac.open(&id, &changed), None, "byte {at}");
    }
}

#[test]
fn a_file_in_use_is_done_without() {
    let (_folder, path) = temporary();
    let first = open(&path);
    let second = open(&path);
    assert!(matches!(second.condition(), CacheCondition::Off { .. }));
    second.insert([row(1)]);
    second.flush(true);
    second.clear();
    assert_eq!(second.get(&row(1).0), None);
    first.insert([row(1)]);
    assert!(first.get(&row(1).0).is_some());
}

#[test]
fn foreign_and_damaged_files_never_stop_a_backup() {
    let (_folder, path) = temporary();
    std::fs::write(&path, b"somebody's letter").unwrap();
    assert!(matches!(open(&path).condition(), CacheCondition::Replaced { .. }));
    let aside = path.with_file_name("cache.set-aside");
    assert_eq!(std::fs::read(aside).unwrap(), b"somebody's letter");

    let cache = open(&path);
    cache.insert((0..20_000).map(row));
    cache.flush(true);
    drop(cache);
    let whole = std::fs::read(&path).unwrap();
    for round in 0..60 {
        let mut damaged = whole.clone();
        let mut noise = blake3::Hasher::new().update(&[round]).finalize_xof();
        for _ in 0..1 + round % 8 {
            let mut bytes = [0; 9];
            noise.fill(&mut bytes);
            let [at @ .., value] = bytes;
            let at = u64::from_le_bytes(at) as usize % damaged.len();
            let from = if round % 2 == 0 { at } else { at % 8192 };
            let end = (from + 200).min(damaged.len());
            damaged[from..end].fill(value);
        }
        damaged.truncate(if round % 5 == 0 { damaged.len() / 2 } else { damaged.len() });
        std::fs::write(&path, &damaged).unwrap();
        let cache = open(&path);
        for (id, good) in (0..20_000).map(row) {
            assert!(cache.get(&id).is_none_or(|found| found == good));
        }
        cache.insert((20_000..20_100).map(row));
        cache.flush(true);
    }
}

#[test]
fn another_sealer_is_noticed_until_adopted_or_cleared() {
    let (_folder, path) = temporary();
    let rename = || {
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction
            .open_table(HEADER)
            .unwrap()
            .insert("sealer", b"strongroom 0.0 zstd 0".as_slice())
            .unwrap();
        transaction.commit().unwrap();
    };
    drop(open(&path));
    for act in [Cache::adopt_sealer, Cache::clear] {
        rename();
        assert!(open(&path).sealer_changed());
        let cache = open(&path);
        assert!(cache.sealer_changed());
        act(&cache);
        assert!(!cache.sealer_changed());
        drop(cache);
        assert!(!open(&path).sealer_changed());
    }
}

#[test]
fn threads_share_it() {
    let (_folder, path) = temporary();
    let cache = open(&path);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for number in (thread * 10_000)..(thread + 1) * 10_000 {
                    let (id, row) = row(number);
                    cache.insert([(id, row)]);
                    assert_eq!(cache.get(&id), Some(row));
                }
            });
        }
    });
    assert!(all_found(&cache, 40_000));
}

const CHILD_PATH: &str = "STRONGROOM_TEST_CACHE";
const CHILD_BATCH_ROWS: u32 = 500;

/// Not a test of its own: the process that `what_was_flushed_survives_kill_9` kills.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    let cache = open(Path::new(&path));
    for batch in 0.. {
        cache.insert((batch * CHILD_BATCH_ROWS..(batch + 1) * CHILD_BATCH_ROWS).map(row));
        cache.flush(true);
        cache.insert([row(u32::MAX - batch)]);
        cache.flush(false);
        println!("\nflushed {}", batch + 1);
    }
}

#[test]
fn what_was_flushed_survives_kill_9() {
    let (_folder, path) = temporary();
    for kill_after in [1, 7, 30] {
        let _ = std::fs::remove_file(&path);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::tests::child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD_PATH, &path)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let flushed: u32 = output
            .lines()
            .filter_map(|line| line.unwrap().strip_prefix("flushed ").map(str::to_owned))
            .map(|count| count.parse().unwrap())
            .find(|count| *count >= kill_after)
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = open(&path);
        assert_eq!(cache.condition(), CacheCondition::Opened);
        assert!(all_found(&cache, flushed * CHILD_BATCH_ROWS), "after {flushed} flushes");
    }
}
