//! Opening a data folder, and making sure that it is whole.
//!
//! ```text
//! DIR/lock       held by the running server
//! DIR/staging/   segments being written; wiped here
//! DIR/meta/      rows
//! DIR/chunks/    sealed segments
//! ```
//!
//! The check takes time in proportion to segments, not to envelopes. It compares the catalogue in
//! `meta/` with the files in `chunks/`, both ways:
//!
//! * A file without a catalogue row is a seal that a crash cut off between steps 3 and 4 of
//!   `segments.rs`. Nothing refers to it. It is reported as an orphan, its number is never used
//!   again, and it is dropped when the caller says so: if the log of `meta/` was damaged, so that
//!   its end is missing, the same files are all that is left of acknowledged commits. The caller
//!   knows whether the rows are whole (it compares the ledger with its `HEAD` file); the store
//!   does not.
//! * A catalogue row without its file, or whose file has another size, number or last slot, is
//!   loss of acknowledged data. The store refuses to open and names the segment, and leaves
//!   `chunks/` and `staging/` as they are: they may be needed to repair it. So the comparison is
//!   made twice, the first time by a look that writes nothing: an engine that may write deletes
//!   files that its own list lacks, and in half a copy that list can be an older one.
//!
//! A new folder is made in the order meta, schema version, chunks: a crash in between leaves a
//! folder without `chunks/`, and no rows, which the next open completes. `chunks/` without `meta/`
//! is half of a repository and is refused.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rocksdb::Cache;
use rustix::fs::FlockOperation;

use super::error::StoreError;
use super::meta::{Meta, MetaBatch};
use super::observer::{Observer, Step};
use super::poison::Poison;
use super::rebuild::read_catalogue;
use super::schema::{
    COUNTER_NEXT_SEGMENT, COUNTER_SCHEMA_VERSION, Family, SCHEMA_VERSION, SegmentRow, SegmentState,
    SlotId, row_invalid,
};
use super::segments::{LiveSegment, Segments, list_unopened, segment_file};
use super::statistics::Gauges;
use super::table::ROW_BYTES;

/// What was found at open, and what was done about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The folder held no repository before.
    pub created: bool,
    /// Catalogued segments.
    pub segment_count: u64,
    /// Bytes of their files.
    pub segment_bytes: u64,
    /// Envelopes in the inbox.
    pub inbox_count: u64,
    /// Unfinished segments that a crash left in `staging/`.
    pub staged_files_wiped: u64,
    /// Segments without a catalogue row, to be dropped once the rows are known to be whole.
    pub orphans: Vec<u32>,
}

/// An open data folder.
pub(super) struct Opened {
    pub(super) meta: Arc<Meta>,
    pub(super) segments: Arc<Segments>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) report: OpenReport,
    /// Keeps other processes out for as long as it is open.
    pub(super) lock: File,
}

/// Opens `folder`, which is made if it is not there.
pub(super) fn open(
    folder: &Path,
    cache: &Cache,
    poison: &Arc<Poison>,
    observer: &Arc<dyn Observer>,
) -> Result<Opened, StoreError> {
    fs::create_dir_all(folder)
        .map_err(|error| StoreError::file("create data folder", folder, error))?;
    let lock = take_lock(folder)?;
    let chunks = folder.join("chunks");
    let staging = folder.join("staging");
    let created = !folder.join("meta/CURRENT").exists();
    if created && chunks.join("CURRENT").exists() {
        let path = folder.to_path_buf();
        return Err(StoreError::Halved { path, problem: "chunks/ is there but meta/ is not" });
    }
    let meta = Arc::new(Meta::open(&folder.join("meta"), cache, poison, observer)?);
    check_schema(&meta)?;
    let catalogue = read_catalogue(&meta)?;
    check_files(&chunks, &catalogue)?;
    if !catalogue.is_empty() {
        compare(&chunks, &catalogue, &list_unopened(&chunks, cache)?)?;
    }
    let mut report = OpenReport { created, ..OpenReport::default() };
    report.staged_files_wiped = wipe_staging(&staging)?;
    let segments = Arc::new(Segments::open(&chunks, &staging, cache, poison, observer)?);
    sync_folder(folder)?;
    report.orphans = compare(&chunks, &catalogue, &segments.live()?)?;
    for segment in &report.orphans {
        segments.raise_next_number(segment.saturating_add(1));
    }
    let gauges = Arc::new(count(&meta, &segments, &catalogue)?);
    let held = gauges.read(0);
    report.segment_count = held.segment_count;
    report.segment_bytes = held.segment_bytes;
    report.inbox_count = held.inbox_count;
    Ok(Opened { meta, segments, gauges, report, lock })
}

/// Keeps a second server out.
fn take_lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| StoreError::file("create lock file", &path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            Err(StoreError::InUse { path: folder.to_path_buf() })
        }
        Err(error) => Err(StoreError::file("lock", &path, error.into())),
    }
}

/// Refuses what a newer program wrote; marks a new folder.
fn check_schema(meta: &Meta) -> Result<(), StoreError> {
    let Some(value) = meta.get(Family::Counters, COUNTER_SCHEMA_VERSION)? else {
        if meta.last(Family::Segments, &[])?.is_some() {
            let problem = "missing, though segments are there";
            return Err(row_invalid(Family::Counters, COUNTER_SCHEMA_VERSION, problem));
        }
        let mut batch = MetaBatch::new();
        batch.put(Family::Counters, COUNTER_SCHEMA_VERSION, SCHEMA_VERSION.to_le_bytes());
        meta.write_own(&batch, Step::MetaWritten)?;
        return meta.sync();
    };
    match number(COUNTER_SCHEMA_VERSION, &value)? {
        SCHEMA_VERSION => Ok(()),
        found if found > SCHEMA_VERSION => {
            Err(StoreError::SchemaNewer { found, known: SCHEMA_VERSION })
        }
        found => Err(StoreError::SchemaOlder { found, known: SCHEMA_VERSION }),
    }
}

/// Empties `staging/`; gives the number of files that were in it.
fn wipe_staging(staging: &Path) -> Result<u64, StoreError> {
    let mut wiped = 0;
    if staging.exists() {
        let entries = fs::read_dir(staging)
            .map_err(|error| StoreError::file("list staging folder", staging, error))?;
        wiped = entries.count() as u64;
        fs::remove_dir_all(staging)
            .map_err(|error| StoreError::file("wipe staging folder", staging, error))?;
    }
    fs::create_dir(staging)
        .map_err(|error| StoreError::file("create staging folder", staging, error))?;
    Ok(wiped)
}

/// Makes the names in `folder` durable.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|error| StoreError::file("sync folder", folder, error))
}

/// Every catalogued segment must have its file, of the right size. This comes before the engine
/// opens `chunks/`, because the engine would refuse without naming the segment.
fn check_files(chunks: &Path, catalogue: &[(u32, SegmentRow)]) -> Result<(), StoreError> {
    for (segment, row) in catalogue {
        if row.state == SegmentState::Dropping {
            continue; // its file may be there or not
        }
        let file = segment_file(chunks, row.file_number);
        let problem = match fs::metadata(&file) {
            Ok(found) if found.len() == row.file_bytes => continue,
            Ok(found) => {
                format!("file has {} bytes, the catalogue says {}", found.len(), row.file_bytes)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                format!("file is missing (it had {} bytes)", row.file_bytes)
            }
            Err(error) => return Err(StoreError::file("examine segment", &file, error)),
        };
        return Err(StoreError::SegmentBroken { segment: *segment, file, problem });
    }
    Ok(())
}

/// Compares catalogue and engine; gives the segments that nobody refers to.
fn compare(
    chunks: &Path,
    catalogue: &[(u32, SegmentRow)],
    live: &[LiveSegment],
) -> Result<Vec<u32>, StoreError> {
    let mut missing: BTreeMap<u32, &SegmentRow> =
        catalogue.iter().map(|(segment, row)| (*segment, row)).collect();
    let mut orphans = Vec::new();
    for found in live {
        let file = segment_file(chunks, found.file_number);
        let (Some(first), Some(last)) = (found.first, found.last) else {
            let problem = "keys of the file are not slots".to_owned();
            return Err(StoreError::SegmentBroken { segment: 0, file, problem });
        };
        let segment = first.segment;
        let Some(row) = missing.remove(&segment) else {
            orphans.push(segment);
            continue;
        };
        let whole = first.slot == 0
            && last == SlotId { segment, slot: row.slot_count.saturating_sub(1) }
            && (found.file_number, found.file_bytes) == (row.file_number, row.file_bytes);
        if !whole {
            let problem = format!("file differs from the catalogue: {found:?} against {row:?}");
            return Err(StoreError::SegmentBroken { segment, file, problem });
        }
    }
    let lost = missing.into_iter().find(|(_, row)| row.state == SegmentState::Live);
    if let Some((segment, row)) = lost {
        let file = segment_file(chunks, row.file_number);
        let problem = "file is there but not part of the database".to_owned();
        return Err(StoreError::SegmentBroken { segment, file, problem });
    }
    orphans.sort_unstable();
    orphans.dedup();
    Ok(orphans)
}

/// Sets the counters of what the store holds, and the number of the next segment.
fn count(
    meta: &Meta,
    segments: &Segments,
    catalogue: &[(u32, SegmentRow)],
) -> Result<Gauges, StoreError> {
    let gauges = Gauges::default();
    for (segment, row) in catalogue {
        gauges.sealed(row);
        segments.raise_next_number(segment.saturating_add(1));
    }
    if let Some(value) = meta.get(Family::Counters, COUNTER_NEXT_SEGMENT)? {
        segments.raise_next_number(number(COUNTER_NEXT_SEGMENT, &value)?);
    }
    meta.scan(Family::Inbox, &[], None, &mut |key, value| {
        gauges.inbox_added(1, (value.len().saturating_sub(ROW_BYTES)) as u64);
        if let Some(slot) = SlotId::from_key(key) {
            segments.raise_next_number(slot.segment.saturating_add(1));
        }
        ControlFlow::Continue(())
    })?;
    Ok(gauges)
}

fn number(key: &[u8], value: &[u8]) -> Result<u32, StoreError> {
    let bytes = <[u8; 4]>::try_from(value)
        .map_err(|_| row_invalid(Family::Counters, key, "not a number of four bytes"))?;
    Ok(u32::from_le_bytes(bytes))
}
