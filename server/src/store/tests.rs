//! Tests of the store as a whole: each breaks something by name, or crosses two threads.
//!
//! A crash is an image of the data folder, copied at the moment when a step is reported: what a
//! kill of the process at that moment leaves.

mod lifetimes;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Totals;
use tempfile::TempDir;

use super::error::StoreError;
use super::meta::MetaBatch;
use super::observer::{Observer, Step};
use super::schema::{Family, IndexRow, Place};
use super::{NewEnvelope, Store, StoreOptions};

const NS: u32 = 7;

/// Counts steps and failures, and takes an image of the folder at one step.
#[derive(Default)]
struct Watch {
    steps: Mutex<Vec<Step>>,
    fatal: AtomicU64,
    image: Mutex<Option<(Step, PathBuf, PathBuf)>>,
}

impl Watch {
    fn count(&self, step: Step) -> usize {
        self.steps.lock().iter().filter(|seen| **seen == step).count()
    }

    /// At the next `step`, copies `from` to `to`.
    fn image_at(&self, step: Step, from: &Path, to: &Path) {
        *self.image.lock() = Some((step, from.to_path_buf(), to.to_path_buf()));
    }
}

impl Observer for Watch {
    fn step(&self, step: Step) {
        self.steps.lock().push(step);
        let mut image = self.image.lock();
        if image.as_ref().is_some_and(|(at, _, _)| *at == step)
            && let Some((_, from, to)) = image.take()
        {
            copy_folder(&from, &to);
        }
    }

    fn fatal(&self, _: &StoreError) {
        self.fatal.fetch_add(1, Ordering::SeqCst);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn options() -> StoreOptions {
    StoreOptions { segment_bytes: 1 << 20, block_cache_bytes: 8 << 20, ..StoreOptions::default() }
}

fn open(folder: &Path) -> Store {
    Store::open(folder, options()).unwrap().0
}

fn open_watched(folder: &Path) -> (Store, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let options = StoreOptions { observer: watch.clone(), ..options() };
    (Store::open(folder, options).unwrap().0, watch)
}

/// Incompressible bytes that depend on `seed` alone.
fn envelope(seed: u64) -> NewEnvelope {
    let mut bytes = vec![0; 1000 + (seed as usize * 37) % 9000];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    let totals = Totals { chunk_count: 1 + seed % 2, sealed_bytes: bytes.len() as u64 };
    let digest = SealedDigest(*blake3::hash(&bytes).as_bytes());
    NewEnvelope { digest, level: (seed % 2) as u8, totals, bytes: Bytes::from(bytes) }
}

fn envelopes(seeds: std::ops::Range<u64>) -> Vec<NewEnvelope> {
    seeds.map(envelope).collect()
}

fn digests(envelopes: &[NewEnvelope]) -> Vec<SealedDigest> {
    envelopes.iter().map(|envelope| envelope.digest).collect()
}

/// An image of the folder without what the log holds.
fn image_without_log(from: &Path, to: &Path) {
    copy_folder(from, to);
    for entry in fs::read_dir(to.join("meta")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "log") {
            fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        }
    }
}

/// Reads `wanted` back and compares every byte and the order.
fn assert_readable(store: &Store, wanted: &[NewEnvelope]) {
    let mut positions = Vec::new();
    store
        .read(NS, &digests(wanted), &mut |position, bytes| {
            assert!(bytes == wanted[position].bytes);
            positions.push(position);
            Ok(())
        })
        .unwrap();
    assert!(positions.into_iter().eq(0..wanted.len()));
}

fn is_segment(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "sst"))
}

fn rows(store: &Store, wanted: &[NewEnvelope]) -> Vec<Option<IndexRow>> {
    store.lookup(NS, &digests(wanted)).unwrap()
}

fn known(store: &Store, wanted: &[NewEnvelope]) -> usize {
    rows(store, wanted).iter().flatten().count()
}

#[test]
fn rows_that_were_flushed_need_no_log() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let store = open(&data);
    let wanted = envelopes(0..50);
    store.append(NS, wanted.clone()).unwrap();
    store.seal().unwrap();
    store.sync().unwrap();
    let before = folder.path().join("before");
    image_without_log(&data, &before);
    store.flush_rows().unwrap();
    let after = folder.path().join("after");
    image_without_log(&data, &after);
    assert!(store.open.meta.table_bytes(Family::Index).unwrap() > 0);
    drop(store);
    let (again, _) = Store::open(&data, options()).unwrap();
    assert!(again.open.meta.table_bytes(Family::Index).unwrap() > 0, "known without a read");
    drop(again);
    // What was only in the log is lost with it, so this looks at what it should.
    let found = Store::open(&before, options()).map(|(store, _)| {
        let rows = store.lookup(NS, &digests(&wanted)).unwrap();
        rows.into_iter().flatten().count()
    });
    assert!(!matches!(found, Ok(1..)), "rows were in tables before the flush: {found:?}");
    assert_readable(&open(&after), &wanted);
}

#[test]
fn envelopes_come_back_as_they_were_appended() {
    let folder = TempDir::new().unwrap();
    let (store, report) = Store::open(folder.path(), options()).unwrap();
    assert!(report.created);
    let batch = envelopes(0..500); // several segments
    let appended = store.append(NS, batch.clone()).unwrap();
    assert!(appended.iter().all(|answer| !answer.duplicate));
    assert!(appended.is_sorted_by_key(|answer| answer.slot));
    assert_eq!(known(&store, &batch), 500);
    store.seal().unwrap();
    store.sync().unwrap();
    for (row, new) in rows(&store, &batch).into_iter().flatten().zip(&batch) {
        assert!(row.durable && row.place == Place::Segment);
        assert_eq!((row.length as usize, row.level), (new.bytes.len(), new.level));
        assert_eq!(row.totals, new.totals);
    }
    assert_readable(&store, &batch);
    assert!(store.statistics().segment_count > 1);
    assert_eq!(store.statistics().envelope_count, 500);
    assert_eq!(store.statistics().unsealed_bytes, 0);
}

#[test]
fn namespaces_do_not_see_each_other() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.append(NS, envelopes(0..3)).unwrap();
    assert_eq!(store.lookup(NS + 1, &digests(&envelopes(0..3))).unwrap(), [None; 3]);
    store.seal().unwrap();
    assert_eq!(store.lookup(NS + 1, &digests(&envelopes(0..3))).unwrap(), [None; 3]);
    let result = store.read(NS + 1, &digests(&envelopes(0..1)), &mut |_, _| Ok(()));
    assert!(matches!(result, Err(StoreError::NotFound(_))));
}

#[test]
fn a_new_envelope_from_many_threads_is_stored_once() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let fresh = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, fresh) = (&store, &fresh);
            scope.spawn(move || {
                for start in (0..600).step_by(20) {
                    let batch = envelopes(start..start + 20);
                    let answers = match (thread, start % 40) {
                        (3, 0) => store.append_inbox(NS, batch).unwrap(),
                        _ => store.append(NS, batch).unwrap(),
                    };
                    let new = answers.iter().filter(|answer| !answer.duplicate).count();
                    fresh.fetch_add(new as u64, Ordering::SeqCst);
                    if thread == 0 && start % 100 == 0 {
                        store.seal().unwrap();
                    }
                }
            });
        }
    });
    store.seal().unwrap();
    assert_readable(&store, &envelopes(0..600));
    let held = store.statistics();
    assert_eq!(held.envelope_count + held.inbox_count, fresh.load(Ordering::SeqCst));
    // The inbox stores again what another thread has in an unsealed segment, and nothing else.
    assert!(held.envelope_count <= 600 && held.inbox_count <= 300);
}

#[test]
fn a_repeated_envelope_is_a_duplicate_before_and_after_the_seal() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let twice = vec![envelope(1), envelope(1)];
    let answers = store.append(NS, twice.clone()).unwrap();
    assert_eq!([answers[0].duplicate, answers[1].duplicate], [false, true]);
    assert_eq!(answers[0].slot, answers[1].slot);
    store.seal().unwrap();
    assert!(store.append(NS, twice.clone()).unwrap().iter().all(|answer| answer.duplicate));
    assert!(store.append_inbox(NS, twice).unwrap().iter().all(|answer| answer.duplicate));
    assert_eq!(store.statistics().unsealed_bytes, 0);
    store.seal().unwrap(); // the open segment is empty: nothing to do
    assert_eq!(store.statistics().segment_count, 1);
}

#[test]
fn waiting_sessions_share_a_seal() {
    let folder = TempDir::new().unwrap();
    let (store, watch) = open_watched(folder.path());
    std::thread::scope(|scope| {
        for thread in 0..32u64 {
            let store = &store;
            scope.spawn(move || {
                let batch = envelopes(thread * 4..thread * 4 + 4);
                store.append(NS, batch.clone()).unwrap();
                store.seal().unwrap();
                assert!(rows(store, &batch).into_iter().flatten().all(|row| row.durable));
            });
        }
    });
    assert!(watch.count(Step::IndexWritten) < 32);
    assert_readable(&store, &envelopes(0..128));
}

#[test]
fn reads_follow_the_order_asked() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.append(NS, envelopes(0..200)).unwrap();
    store.append_inbox(NS, envelopes(200..220)).unwrap();
    store.seal().unwrap();
    store.append(NS, envelopes(220..240)).unwrap(); // unsealed: reading seals it
    let mut wanted = Vec::new();
    wanted.extend(envelopes(50..60));
    wanted.extend([5, 5, 4, 3, 100, 104, 108, 150, 151].map(envelope));
    wanted.extend(envelopes(195..240));
    wanted.extend(envelopes(0..240).into_iter().step_by(9));
    assert_readable(&store, &wanted);
}

#[test]
fn sealed_envelopes_survive_a_restart_and_open_ones_do_not() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.append(NS, envelopes(0..100)).unwrap();
    store.seal().unwrap();
    store.append(NS, envelopes(100..120)).unwrap();
    drop(store);
    let (store, report) = Store::open(folder.path(), options()).unwrap();
    assert_eq!((report.created, report.staged_files_wiped), (false, 1));
    assert_eq!(known(&store, &envelopes(0..120)), 100);
    assert_readable(&store, &envelopes(0..100));
    // Numbers of segments go on.
    let next = store.append(NS, envelopes(100..101)).unwrap()[0].slot.segment;
    assert!(store.catalogue().unwrap().iter().all(|(segment, _)| *segment < next));
}

#[test]
fn dozens_of_segments_open_again() {
    let folder = TempDir::new().unwrap();
    let small = || StoreOptions { segment_bytes: 1, ..options() };
    let (store, _) = Store::open(folder.path(), small()).unwrap();
    store.append(NS, envelopes(0..60)).unwrap();
    store.seal().unwrap();
    drop(store);
    let (store, report) = Store::open(folder.path(), small()).unwrap();
    assert_eq!((report.segment_count, report.orphans.len()), (60, 0));
    assert_readable(&store, &envelopes(0..60));
}

#[test]
fn a_crash_leaves_whole_segments_or_nothing() {
    for (step, survives, orphans, wiped) in [
        (Step::Appended, false, 0, 1),
        (Step::SegmentFinished, false, 0, 1),
        (Step::SegmentIngested, false, 1, 0),
        (Step::IndexWritten, true, 0, 0),
    ] {
        let (folder, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (store, watch) = open_watched(folder.path());
        store.append(NS, envelopes(0..40)).unwrap();
        store.seal().unwrap();
        watch.image_at(step, folder.path(), image.path());
        store.append(NS, envelopes(40..60)).unwrap();
        store.seal().unwrap();
        let (after, report) = Store::open(image.path(), options()).unwrap();
        assert_eq!(known(&after, &envelopes(40..60)), if survives { 20 } else { 0 }, "{step:?}");
        assert_eq!(report.orphans.len(), orphans, "{step:?}");
        assert_eq!(report.staged_files_wiped, wiped, "{step:?}");
        assert_readable(&after, &envelopes(0..40));
        // The same session again completes, and leaves one copy of everything.
        after.append(NS, envelopes(40..60)).unwrap();
        assert_readable(&after, &envelopes(0..60));
        assert_eq!(after.statistics().envelope_count, 60);
        let files =
            || fs::read_dir(image.path().join("chunks")).unwrap().filter(is_segment).count();
        assert_eq!(files(), after.catalogue().unwrap().len() + orphans);
        after.drop_orphans().unwrap();
        assert_eq!(files(), after.catalogue().unwrap().len());
        drop(after);
        let (after, report) = Store::open(image.path(), options()).unwrap();
        assert_eq!(report.orphans.len(), 0);
        assert_readable(&after, &envelopes(0..60));
    }
}

#[test]
fn a_missing_or_changed_segment_file_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.append(NS, envelopes(0..10)).unwrap();
    store.seal().unwrap();
    let (segment, row) = store.catalogue().unwrap()[0];
    drop(store);
    let file = folder.path().join(format!("chunks/{:06}.sst", row.file_number));
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let error = Store::open(folder.path(), options()).err().unwrap();
    assert!(error.to_string().contains(&format!("segment {segment}: file has")), "{error}");
    fs::remove_file(&file).unwrap();
    let error = Store::open(folder.path(), options()).err().unwrap();
    assert!(error.to_string().contains(&format!("segment {segment}: file is missing")), "{error}");
    fs::write(&file, &bytes).unwrap();
    assert_readable(&open(folder.path()), &envelopes(0..10));
}

#[test]
fn a_flipped_byte_damages_one_envelope_and_no_other() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let batch = envelopes(200..232); // each longer than a block
    store.append(NS, batch.clone()).unwrap();
    store.seal().unwrap();
    let file_number = store.catalogue().unwrap()[0].1.file_number;
    drop(store);
    let file = folder.path().join(format!("chunks/{file_number:06}.sst"));
    let mut bytes = fs::read(&file).unwrap();
    let victim = batch.iter().position(|new| new.bytes.len() > 8192).unwrap();
    let sample = &batch[victim].bytes[4200..4264];
    let place = bytes.windows(64).position(|window| window == sample).unwrap();
    bytes[place] ^= 1;
    fs::write(&file, bytes).unwrap();
    let store = open(folder.path());
    let mut whole = 0;
    for new in &batch {
        match store.read(NS, &[new.digest], &mut |_, _| Ok(())) {
            Ok(()) => whole += 1,
            Err(StoreError::Damaged(digest)) => assert_eq!(digest, batch[victim].digest),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(whole, batch.len() - 1);
    let mut read = 0;
    let result = store.read(NS, &digests(&batch), &mut |position, _| {
        read = position + 1;
        Ok(())
    });
    assert!(matches!(result, Err(StoreError::Damaged(digest)) if digest == batch[victim].digest));
    assert_eq!(read, victim);
}

#[test]
fn small_sessions_are_durable_without_a_seal_and_fold_in_order() {
    let (folder, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (store, watch) = open_watched(folder.path());
    watch.image_at(Step::MetaSynced, folder.path(), image.path());
    store.append_inbox(NS, envelopes(0..50)).unwrap();
    store.sync().unwrap();
    let after = open(image.path());
    assert_readable(&after, &envelopes(0..50));
    assert_eq!(after.statistics().inbox_count, 50);
    store.append_inbox(NS, envelopes(30..70)).unwrap();
    store.fold_inbox().unwrap();
    assert_eq!((store.statistics().inbox_count, store.statistics().inbox_bytes), (0, 0));
    assert_readable(&store, &envelopes(0..70));
    let slots: Vec<_> =
        rows(&store, &envelopes(0..70)).iter().map(|row| row.unwrap().slot).collect();
    assert!(slots.is_sorted());
    store.fold_inbox().unwrap(); // nothing to do
    assert_eq!(watch.count(Step::InboxFolded), 1);
}

#[test]
fn an_inbox_over_its_limit_folds_by_itself() {
    let folder = TempDir::new().unwrap();
    let limited = || StoreOptions { inbox_fold_bytes: 100_000, ..options() };
    let (store, _) = Store::open(folder.path(), limited()).unwrap();
    for start in (0..400).step_by(20) {
        store.append_inbox(NS, envelopes(start..start + 20)).unwrap();
    }
    store.fold_inbox().unwrap(); // also waits for a fold under way
    assert!(store.statistics().segment_count > 1);
    assert_readable(&store, &envelopes(0..400));
    drop(store);
    assert_readable(&Store::open(folder.path(), limited()).unwrap().0, &envelopes(0..400));
}

#[test]
fn a_crash_in_a_fold_loses_nothing_and_keeps_nothing_twice() {
    for (step, folded) in
        [(Step::SegmentFinished, false), (Step::SegmentIngested, false), (Step::InboxFolded, true)]
    {
        let (folder, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (store, watch) = open_watched(folder.path());
        store.append_inbox(NS, envelopes(0..50)).unwrap();
        store.sync().unwrap();
        watch.image_at(step, folder.path(), image.path());
        store.fold_inbox().unwrap();
        let (after, report) = Store::open(image.path(), options()).unwrap();
        assert_eq!(after.statistics().inbox_count, if folded { 0 } else { 50 }, "{step:?}");
        assert_eq!(report.orphans.len(), usize::from(step == Step::SegmentIngested));
        assert_readable(&after, &envelopes(0..50));
        after.fold_inbox().unwrap();
        assert_readable(&after, &envelopes(0..50));
        assert_eq!(after.statistics().envelope_count, 50);
    }
}

#[test]
fn a_reader_finds_what_is_folded_under_it() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (store, done) = (&store, &done);
        store.append_inbox(NS, envelopes(0..100)).unwrap();
        scope.spawn(move || {
            for start in (100..600).step_by(50) {
                store.append_inbox(NS, envelopes(start..start + 50)).unwrap();
                store.fold_inbox().unwrap();
            }
            done.store(1, Ordering::SeqCst);
        });
        while done.load(Ordering::SeqCst) == 0 {
            assert_readable(store, &envelopes(0..100));
        }
    });
    assert_readable(&store, &envelopes(0..600));
}

#[test]
fn a_small_session_does_not_wait_for_a_large_one() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.append(NS, envelopes(0..10)).unwrap();
    let answers = store.append_inbox(NS, envelopes(5..15)).unwrap();
    assert!(answers.iter().all(|answer| !answer.duplicate));
    assert!(rows(&store, &envelopes(5..15)).into_iter().flatten().all(|row| row.durable));
    assert!(rows(&store, &envelopes(0..5)).into_iter().flatten().all(|row| !row.durable));
    store.seal().unwrap();
    assert!(rows(&store, &envelopes(5..15)).iter().all(|row| row.unwrap().place == Place::Inbox));
    assert_readable(&store, &envelopes(0..15));
    store.fold_inbox().unwrap();
    assert_readable(&store, &envelopes(0..15));
}

#[test]
fn tables_and_inbox_give_the_index_again() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    store.append(NS, envelopes(0..300)).unwrap();
    store.append(NS + 1, envelopes(0..50)).unwrap();
    store.seal().unwrap();
    store.append_inbox(NS, envelopes(300..330)).unwrap();
    store.fold_inbox().unwrap();
    store.append_inbox(NS + 2, envelopes(0..20)).unwrap();
    let mut rebuilt = BTreeMap::new();
    store
        .rebuild_index(&mut |ns, digest, row| {
            let key = [&ns.to_be_bytes()[..], digest.as_bytes()].concat();
            assert!(rebuilt.insert(key, row.encode()).is_none());
            Ok(())
        })
        .unwrap();
    let mut index = BTreeMap::new();
    store
        .scan(Family::Index, &[], None, &mut |key, value| {
            index.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(index.len(), 400);
    assert!(rebuilt == index);
}

#[test]
fn segments_carry_each_record_once() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let key = |ns: u32, number: u64| [&ns.to_be_bytes()[..], &number.to_be_bytes()[..]].concat();
    let commit = |ns, numbers: std::ops::Range<u64>| {
        let mut batch = MetaBatch::new();
        for number in numbers {
            batch.put(Family::Snapshots, key(ns, number), format!("record {ns} {number}"));
        }
        store.write(&batch).unwrap();
    };
    commit(NS, 0..3);
    commit(u32::MAX, 5..6);
    store.append(NS, envelopes(0..5)).unwrap();
    store.seal().unwrap();
    commit(NS, 3..4);
    commit(2, 0..1);
    store.append_inbox(NS, envelopes(5..9)).unwrap();
    store.fold_inbox().unwrap();
    let copies: Vec<_> = store
        .catalogue()
        .unwrap()
        .iter()
        .map(|(segment, _)| store.record_copies(*segment).unwrap())
        .collect();
    let keys: Vec<Vec<_>> =
        copies.iter().map(|rows| rows.iter().map(|(key, _)| key.clone()).collect()).collect();
    assert_eq!(keys[0], [key(NS, 0), key(NS, 1), key(NS, 2), key(u32::MAX, 5)]);
    assert_eq!(keys[1], [key(2, 0), key(NS, 3)]);
    assert_eq!(copies[1][1].1, format!("record {NS} 3").as_bytes());
}

#[test]
fn the_first_failure_ends_all_writing() {
    let folder = TempDir::new().unwrap();
    let (store, watch) = open_watched(folder.path());
    store.append(NS, envelopes(0..5)).unwrap();
    store.seal().unwrap();
    let staging = folder.path().join("staging");
    fs::remove_dir_all(&staging).unwrap();
    fs::write(&staging, "not a folder").unwrap();
    assert!(matches!(store.append(NS, envelopes(5..9)), Err(StoreError::Engine { .. })));
    assert_eq!(watch.fatal.load(Ordering::SeqCst), 1);
    let mut batch = MetaBatch::new();
    batch.put(Family::Holds, "key", "value");
    assert!(matches!(store.write(&batch), Err(StoreError::Poisoned(_))));
    assert!(matches!(store.sync(), Err(StoreError::Poisoned(_))));
    assert!(matches!(store.seal(), Err(StoreError::Poisoned(_))));
    assert!(matches!(store.fold_inbox(), Err(StoreError::Poisoned(_))));
    assert!(matches!(store.append(NS, envelopes(0..1)), Err(StoreError::Poisoned(_))));
    assert!(matches!(store.append_inbox(NS, envelopes(9..10)), Err(StoreError::Poisoned(_))));
    assert_readable(&store, &envelopes(0..5)); // reading goes on
    assert_eq!(watch.fatal.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_ingestion_wakes_those_who_wait_for_the_seal() {
    let folder = TempDir::new().unwrap();
    let (store, watch) = open_watched(folder.path());
    store.append(NS, envelopes(0..5)).unwrap();
    fs::remove_dir_all(folder.path().join("staging")).unwrap();
    assert!(matches!(store.seal(), Err(StoreError::Poisoned(_))));
    assert_eq!(watch.fatal.load(Ordering::SeqCst), 1);
    drop(store);
    let (store, _) = Store::open(folder.path(), options()).unwrap();
    assert_eq!(known(&store, &envelopes(0..5)), 0);
}

#[test]
fn a_second_process_is_told_that_the_repository_is_in_use() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let error = Store::open(folder.path(), options()).err().unwrap();
    assert!(error.to_string().ends_with("repository is in use by a running strongroomd"));
    let clone = store.clone();
    drop(store);
    assert!(Store::open(folder.path(), options()).is_err());
    drop(clone);
    assert!(Store::open(folder.path(), options()).is_ok());
}

#[test]
fn half_a_repository_and_a_newer_schema_are_refused() {
    let folder = TempDir::new().unwrap();
    drop(open(folder.path()));
    fs::rename(folder.path().join("meta"), folder.path().join("elsewhere")).unwrap();
    assert!(matches!(Store::open(folder.path(), options()), Err(StoreError::Halved { .. })));
    fs::rename(folder.path().join("elsewhere"), folder.path().join("meta")).unwrap();
    let store = open(folder.path());
    let mut batch = MetaBatch::new();
    batch.put(Family::Counters, "schema_version", 3u32.to_le_bytes());
    assert!(matches!(store.write(&batch), Err(StoreError::ReservedFamily("counters"))));
    store.open.meta.write_own(&batch, Step::MetaWritten).unwrap();
    drop(store);
    let error = Store::open(folder.path(), options()).err().unwrap();
    assert!(matches!(error, StoreError::SchemaNewer { found: 3, known: 2 }), "{error}");
}

#[test]
fn an_idle_segment_is_sealed() {
    let folder = TempDir::new().unwrap();
    let (store, _) =
        Store::open(folder.path(), StoreOptions { idle_seal_ms: 20, ..options() }).unwrap();
    store.append(NS, envelopes(0..5)).unwrap();
    let sealed = || store.statistics().segment_count == 1;
    assert!((0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        sealed()
    }));
}

#[test]
fn rows_scan_in_key_order_within_their_prefix() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let mut batch = MetaBatch::new();
    for key in [[1, 1], [1, 2], [1, 3], [2, 1], [0xff, 0xff]] {
        batch.put(Family::Ledger, key, key);
    }
    batch.put(Family::Holds, [1, 9], "elsewhere");
    store.write(&batch).unwrap();
    let keys = |prefix: &[u8], start: Option<&[u8]>| {
        let mut keys = Vec::new();
        let each = &mut |key: &[u8], _: &[u8]| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        };
        store.scan(Family::Ledger, prefix, start, each).unwrap();
        keys
    };
    assert_eq!(keys(&[1], None), [[1, 1], [1, 2], [1, 3]]);
    assert_eq!(keys(&[1], Some(&[1, 2])), [[1, 2], [1, 3]]);
    assert_eq!(keys(&[], Some(&[2])), [[2, 1], [0xff, 0xff]]);
    let last = |prefix: &[u8]| store.last(Family::Ledger, prefix).unwrap().map(|row| row.0);
    assert_eq!(last(&[1]), Some(vec![1, 3]));
    assert_eq!(last(&[0xff]), Some(vec![0xff, 0xff]));
    assert_eq!(last(&[]), Some(vec![0xff, 0xff]));
    assert_eq!(last(&[3]), None);
    let mut removal = MetaBatch::new();
    removal.delete(Family::Ledger, [1, 3]);
    store.write(&removal).unwrap();
    assert_eq!(last(&[1]), Some(vec![1, 2]));
    assert_eq!(store.get(Family::Ledger, &[1, 3]).unwrap(), None);
}
