//! Damage that a collection cycle meets: bits that flipped in rows before they were written, bits
//! that flipped in files, files that cannot be read any more. Either the folder is refused, or the
//! cycle ends with an alarm and has swept nothing.
//!
//! Rows are changed below the store, through the engine itself, because the store would not write
//! them so, and because its checksums see flips of the other kind: those in files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rocksdb::{DB, IteratorMode, Options};
use strongroom_protocol::id::SealedDigest;
use strongroom_server::clock::ManualClock;
use strongroom_server::gc::Outcome;
use strongroom_server::repository::Repository;
use strongroom_server::store::Store;
use strongroom_server::store::schema::IndexRow;

use crate::gc::{HookClock, collect, gc_config, mixed, noise, number, snapshot, tree_of};
use crate::gc_crash::{Prepared, copy_folder, prepare};
use crate::harness::{Calm, TestServer, Tree, digests, test_config};

/// One bit of a row: key and value, one after the other.
#[derive(Debug, Clone)]
pub struct Flip {
    pub family: &'static str,
    pub key: Vec<u8>,
    pub byte: usize,
    pub bit: u8,
}

/// How a cycle over damaged rows ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// The folder was not opened.
    Refused,
    /// The cycle ended, and nothing was swept.
    Alarm,
    /// The cycle ended after its sweep, and what lives is there.
    LateAlarm,
    /// The cycle went through, and what lives is there.
    Complete,
}

pub type Row = (Vec<u8>, Vec<u8>);

pub fn rows_of(data: &Path, family: &str) -> Vec<Row> {
    let (meta, options) = (data.join("meta"), Options::default());
    let families = DB::list_cf(&options, &meta).unwrap();
    let db = DB::open_cf_for_read_only(&options, &meta, &families, false).unwrap();
    let rows = db.iterator_cf(db.cf_handle(family).unwrap(), IteratorMode::Start);
    rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
}

impl Flip {
    pub fn apply(&self, data: &Path) {
        let (meta, options) = (data.join("meta"), Options::default());
        let families = DB::list_cf(&options, &meta).unwrap();
        let db = DB::open_cf(&options, &meta, &families).unwrap();
        let family = db.cf_handle(self.family).unwrap();
        let mut row = self.key.clone();
        row.extend(db.get_cf(family, &self.key).unwrap().expect("the row is there"));
        row[self.byte] ^= 1 << self.bit;
        let (key, value) = row.split_at(self.key.len());
        db.delete_cf(family, &self.key).unwrap();
        db.put_cf(family, key, value).unwrap();
    }
}

fn row_at(store: &Store, ns: u32, digest: &SealedDigest) -> Option<IndexRow> {
    store.lookup(ns, &[*digest]).ok().and_then(|mut rows| rows.pop().flatten())
}

/// Index rows of all trees but the row that was changed.
fn others(
    prepared: &Prepared,
    repository: &Repository,
    flip: &Flip,
) -> BTreeMap<SealedDigest, Option<IndexRow>> {
    let ns = number(repository, &prepared.writer);
    let trees = prepared.gone.iter().chain(&prepared.live).chain([&prepared.fresh]);
    let all = trees.flat_map(|tree| digests(&tree.envelopes()));
    let others = all.filter(|digest| flip.family != "index" || !flip.key.ends_with(&digest.0));
    others.map(|digest| (digest, row_at(repository.store(), ns, &digest))).collect()
}

/// Flips a bit in a copy of the folder, opens it and runs a cycle.
fn end_of(prepared: &Prepared, flip: &Flip) -> End {
    let copy = tempfile::tempdir().unwrap();
    let data = copy.path().join("data");
    copy_folder(&prepared.folder.path().join("data"), &data);
    flip.apply(&data);
    let clock = Arc::new(ManualClock::at_ms(prepared.wall_ms));
    let opened = Repository::open(&data, test_config(gc_config), clock, Arc::new(Calm));
    let Ok((repository, _)) = opened else { return End::Refused };
    let repository = Arc::new(repository);
    let before = others(prepared, &repository, flip);
    let report = collect(&repository);
    assert!(report.as_ref().map_or(true, |report| report.outcome == Outcome::Complete));
    let is_swept = others(prepared, &repository, flip) != before;
    if report.is_err() && !is_swept {
        return End::Alarm;
    }
    assert_live(prepared, &repository, flip);
    if report.is_err() { End::LateAlarm } else { End::Complete }
}

/// What lives is there, but for the envelope whose row was changed, whose bytes are there.
fn assert_live(prepared: &Prepared, repository: &Repository, flip: &Flip) {
    let ns = number(repository, &prepared.writer);
    let mut stored = Vec::new();
    let mut each = |_, digest, _| {
        stored.push(digest);
        Ok(())
    };
    let rebuilt = repository.store().rebuild_index(&mut each);
    assert!(rebuilt.is_ok() || flip.family == "segments", "{rebuilt:?}");
    for envelope in prepared.live.iter().flat_map(Tree::envelopes) {
        let digest = SealedDigest::of(&envelope);
        assert!(
            rebuilt.is_err() || stored.contains(&digest),
            "{flip:?}: {digest} is in no segment"
        );
        if flip.family == "index" && flip.key.ends_with(&digest.0) {
            continue;
        }
        let row = row_at(repository.store(), ns, &digest);
        assert!(row.is_some_and(|row| row.is_usable()), "{flip:?}: {digest} was swept");
        let mut each = |bytes: &[u8]| {
            assert!(bytes == envelope);
            std::ops::ControlFlow::Continue(())
        };
        repository.read(&prepared.writer.namespace(), &[digest], &mut each).unwrap();
    }
}

/// Bits of one row, in the bytes that are given, counted from the first of the value.
fn flips(data: &Path, family: &'static str, end_of_key: &[u8], bytes: &[isize]) -> Vec<Flip> {
    let rows = rows_of(data, family);
    let (key, value) = rows.iter().find(|(key, _)| key.ends_with(end_of_key)).unwrap();
    let length = key.len() + value.len();
    let places = bytes.iter().map(|byte| key.len().checked_add_signed(*byte).unwrap());
    let bits = places.filter(|byte| *byte < length).map(|byte| (byte, [0, 6][byte % 2]));
    bits.map(|(byte, bit)| Flip { family, key: key.clone(), byte, bit }).collect()
}

/// Namespace and digest, in the key.
const KEY: [isize; 4] = [-36, -33, -32, -1];
/// Flags, level, segment and slot, in the value of an index row.
const PLACE: [isize; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_swept_after_a_flipped_bit_in_the_index() {
    let prepared = prepare().await;
    let data = prepared.folder.path().join("data");
    for live in &prepared.live {
        let node = SealedDigest::of(&live.nodes[1].envelope);
        for digest in [node, live.root.digest] {
            for flip in flips(&data, "index", &digest.0, &[&KEY[..], &PLACE].concat()) {
                assert_eq!(end_of(&prepared, &flip), End::Alarm, "{flip:?}");
            }
        }
        let chunk = digests(&live.chunks)[3];
        for flip in flips(&data, "index", &chunk.0, &[&KEY[..], &[1]].concat()) {
            assert_eq!(end_of(&prepared, &flip), End::Alarm, "{flip:?}");
        }
        // A chunk is not read while marking. A wrong place is seen when its segment is to go.
        for flip in flips(&data, "index", &chunk.0, &PLACE) {
            end_of(&prepared, &flip);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_live_is_swept_after_a_flipped_bit_in_a_lock() {
    let prepared = prepare().await;
    let data = prepared.folder.path().join("data");
    let live = &prepared.live[1];
    for flip in flips(&data, "locks", &live.root.digest.0, &KEY) {
        assert_eq!(end_of(&prepared, &flip), End::Alarm, "{flip:?}");
    }
    // A later day keeps more, an earlier one is an alarm.
    let day = locked_day(&data, &live.root.digest);
    for flip in flips(&data, "locks", &live.root.digest.0, &[0, 1, 2, 3]) {
        let flipped = day ^ (1 << (8 * (3 - (flip.byte - flip.key.len())) + usize::from(flip.bit)));
        let wanted = if flipped < day { End::Alarm } else { End::Complete };
        assert_eq!(end_of(&prepared, &flip), wanted, "{flip:?}: {day} -> {flipped}");
    }
    // Below the root the records alone keep everything.
    let node = SealedDigest::of(&live.nodes[1].envelope);
    for flip in flips(&data, "locks", &node.0, &[&KEY[..], &[0, 1, 2, 3]].concat()) {
        end_of(&prepared, &flip);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_live_is_swept_after_a_flipped_bit_in_the_catalogue_of_segments() {
    let prepared = prepare().await;
    let data = prepared.folder.path().join("data");
    for (key, _) in rows_of(&data, "segments") {
        // The state, number and size of the file, number of slots.
        for flip in flips(&data, "segments", &key, &[-4, -1, 0, 2, 9, 10, 12, 17, 18, 21]) {
            assert_eq!(end_of(&prepared, &flip), End::Refused, "{flip:?}");
        }
        // The class, the number of envelopes, the digest of the table.
        for flip in flips(&data, "segments", &key, &[1, 22, 25, 26, 40, 57]) {
            end_of(&prepared, &flip);
        }
    }
}

/// Cuts all segments short, as a disk does that reads no further.
fn cut_segments(data: &Path) {
    for file in std::fs::read_dir(data.join("chunks")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "sst") {
            std::fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_swept_after_a_read_error_in_the_middle_of_marking() {
    let server = TestServer::start_with(gc_config).await;
    let writer = server.writer("erp").await;
    for seed in 40..44 {
        snapshot(&writer, "more", &tree_of(&writer, &noise(seed, 3))).await;
    }
    let (dead, _, _) = mixed(&server, &writer).await;
    let (folder, manual) = server.stop().await;
    let (mut alarm_count, wanted) = (0, digests(&dead.envelopes()));
    for place in 0.. {
        let copy = tempfile::tempdir().unwrap();
        let data = copy.path().join("data");
        copy_folder(&folder.path().join("data"), &data);
        // Opened anew, so that no node is in a cache.
        let clock = HookClock::on(manual.clone());
        let config = test_config(gc_config);
        let opened = Repository::open(&data, config, clock.clone(), Arc::new(Calm));
        let repository = Arc::new(opened.unwrap().0);
        let cut = move |breath| {
            if breath == place {
                cut_segments(&data);
            }
        };
        let (report, _) = clock.try_cycle(&repository, Some(Box::new(cut))).await;
        let rows = repository.store().lookup(number(&repository, &writer), &wanted).unwrap();
        let is_swept = rows.iter().any(|row| row.is_none_or(|row| !row.is_usable()));
        assert_eq!(report.is_ok(), is_swept, "cut at breath {place}: {report:?}");
        if is_swept {
            break; // everything was marked before
        }
        alarm_count += 1;
    }
    println!("gc: {alarm_count} places in the middle of marking");
    assert!(alarm_count > 5, "only {alarm_count} places in the middle of marking");
}

fn locked_day(data: &Path, node: &SealedDigest) -> u32 {
    let rows = rows_of(data, "locks");
    let (_, value) = rows.iter().find(|(key, _)| key.ends_with(&node.0)).unwrap();
    u32::from_be_bytes(value.as_slice().try_into().unwrap())
}
