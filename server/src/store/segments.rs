//! `chunks/` and `staging/`: writing a segment, making it part of the database, dropping it.
//!
//! A segment is one SST file with keys `segment u32 || slot u32`. Its life, and what a crash after
//! each step leaves:
//!
//! 1. **Write** to `staging/N.sst`. *Crash: `staging/` is wiped at open.*
//! 2. **Finish**: record copies, the table, index blocks, fdatasync. *Crash: the same.*
//! 3. **Ingest**: RocksDB links the file into `chunks/`, syncs file and folder, and logs it in the
//!    MANIFEST with another sync. *Crash: the file is part of `chunks/` or not; without its
//!    catalogue row it is an orphan (`open_check.rs`), and its number is not used again.*
//! 4. The caller writes index and catalogue rows to `meta/`: only now does anything refer to it.
//!
//! Numbers come from one counter that also counts inbox runs. The counter is saved with each
//! catalogue row; a number that was lost with a crash may be handed out again only if nothing on
//! disk bears it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use rocksdb::event_listener::{EventListener, IngestionInfo};
use rocksdb::{Cache, DB, DBPinnableSlice, DBRawIterator, ReadOptions, SstFileWriter};

use super::engine;
use super::error::StoreError;
use super::observer::{Observer, Step};
use super::poison::{BackgroundErrors, Poison};
use super::records::RecordCopies;
use super::schema::{SegmentRow, SegmentState, SlotId, slot_key};
use super::table::{TableRow, encode_record, encode_table};

/// A segment that is being written. Only its owner may touch it.
pub(super) struct SegmentWriter {
    number: u32,
    path: PathBuf,
    writer: SstFileWriter<'static>,
    rows: Vec<TableRow>,
    bytes: u64,
    class: u8,
}

impl SegmentWriter {
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Slot of the next envelope.
    pub(super) fn next_slot(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Bytes of envelopes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was appended, in slot order.
    pub(super) fn rows(&self) -> &[TableRow] {
        &self.rows
    }

    /// Puts `envelope` into the next slot.
    pub(super) fn append(&mut self, row: TableRow, envelope: &[u8]) -> Result<(), StoreError> {
        self.put(self.next_slot(), envelope)?;
        self.bytes += envelope.len() as u64;
        self.rows.push(row);
        Ok(())
    }

    /// Gives up: nothing refers to it, and its file goes.
    pub(super) fn abandon(self) {
        let SegmentWriter { path, writer, .. } = self;
        drop(writer);
        // What stays in `staging/` is wiped at open.
        let _ = std::fs::remove_file(path);
    }

    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), StoreError> {
        self.writer
            .put(slot_key(self.number, slot), value)
            .map_err(|error| StoreError::engine("write segment", &error))
    }

    /// Adds record copies and table and syncs the file; gives slot count and table digest.
    fn finish(&mut self, copies: &RecordCopies) -> Result<(u32, [u8; 32]), StoreError> {
        let mut slot = self.next_slot();
        for (key, value) in &copies.rows {
            self.put(slot, &encode_record(key, value))?;
            slot += 1;
        }
        let table = encode_table(&self.rows, copies.rows.len() as u32);
        self.put(slot, &table)?;
        self.writer.finish().map_err(|error| StoreError::engine("finish segment", &error))?;
        Ok((slot + 1, *blake3::hash(&table).as_bytes()))
    }
}

/// A file of `chunks/` as the engine lists it.
#[derive(Debug)]
pub(super) struct LiveSegment {
    pub(super) first: Option<SlotId>,
    pub(super) last: Option<SlotId>,
    pub(super) file_number: u64,
    pub(super) file_bytes: u64,
}

/// The open database `chunks/` and its staging folder.
pub(super) struct Segments {
    db: DB,
    folder: PathBuf,
    staging: PathBuf,
    next_number: AtomicU32,
    ingested: Arc<Mutex<Option<PathBuf>>>,
    poison: Arc<Poison>,
    observer: Arc<dyn Observer>,
}

impl Segments {
    /// Opens `chunks/`; `staging` must be an empty folder on the same file system.
    pub(super) fn open(
        folder: &Path,
        staging: &Path,
        cache: &Cache,
        poison: &Arc<Poison>,
        observer: &Arc<dyn Observer>,
    ) -> Result<Segments, StoreError> {
        let ingested = Arc::new(Mutex::new(None));
        let mut options = engine::chunks_options(cache);
        options.add_event_listener(BackgroundErrors(poison.clone()));
        options.add_event_listener(IngestedFiles(ingested.clone()));
        let db = DB::open(&options, folder)
            .map_err(|error| StoreError::engine("open chunks", &error))?;
        Ok(Segments {
            db,
            folder: folder.to_path_buf(),
            staging: staging.to_path_buf(),
            next_number: AtomicU32::new(1),
            ingested,
            poison: poison.clone(),
            observer: observer.clone(),
        })
    }

    /// Smallest number not handed out yet.
    pub(super) fn next_number(&self) -> u32 {
        self.next_number.load(Ordering::SeqCst)
    }

    /// Never hands out numbers below `floor`.
    pub(super) fn raise_next_number(&self, floor: u32) {
        self.next_number.fetch_max(floor, Ordering::SeqCst);
    }

    /// A number that no segment or inbox run has.
    pub(super) fn allocate_number(&self) -> Result<u32, StoreError> {
        self.next_number
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |number| number.checked_add(1))
            .map_err(|_| StoreError::Invalid("segment numbers are used up"))
    }

    /// Starts a segment in `staging/`.
    /// `class` is what it will hold ([`super::schema::Lifetime::class`], or 0 for all kinds).
    pub(super) fn create(&self, class: u8) -> Result<SegmentWriter, StoreError> {
        self.poison.check()?;
        let number = self.allocate_number()?;
        let path = self.staging.join(format!("{number}.sst"));
        let mut writer = SstFileWriter::create(engine::segment_writer_options());
        let opened = writer.open(&path);
        self.poison.guard(opened.map_err(|error| StoreError::engine("create segment", &error)))?;
        Ok(SegmentWriter { number, path, writer, rows: Vec::new(), bytes: 0, class })
    }

    /// Finishes and ingests a segment; gives the catalogue row that the caller must write.
    pub(super) fn publish(
        &self,
        segment: &mut SegmentWriter,
        copies: &RecordCopies,
    ) -> Result<SegmentRow, StoreError> {
        self.poison.check()?;
        let (slot_count, table_digest) = self.poison.guard(segment.finish(copies))?;
        self.observer.step(Step::SegmentFinished);
        let size = std::fs::metadata(&segment.path).map(|file| file.len());
        let file_bytes = self.poison.guard(
            size.map_err(|error| StoreError::file("measure segment", &segment.path, error)),
        )?;
        let file_number = self.poison.guard(self.ingest(&segment.path))?;
        self.observer.step(Step::SegmentIngested);
        Ok(SegmentRow {
            state: SegmentState::Live,
            retention_class: segment.class,
            file_number,
            file_bytes,
            slot_count,
            envelope_count: segment.next_slot(),
            table_digest,
        })
    }

    /// The value in a slot.
    pub(super) fn get(&self, slot: SlotId) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        self.db.get_pinned_opt(slot.key(), &engine::point_read_options())
    }

    /// An iterator over slots.
    pub(super) fn iterate(&self, options: ReadOptions) -> DBRawIterator<'_> {
        self.db.raw_iterator_opt(options)
    }

    /// Every file that is part of the database, from the engine's own list: no file is opened. (The
    /// list has a number of entries too, but it is 0 until the file was opened.)
    pub(super) fn live(&self) -> Result<Vec<LiveSegment>, StoreError> {
        list(&self.db)
    }

    /// Removes a segment's file from the database and verifies that it is gone.
    pub(super) fn drop_segment(&self, segment: u32) -> Result<(), StoreError> {
        self.poison.check()?;
        let listed = |live: &LiveSegment| live.first.is_some_and(|slot| slot.segment == segment);
        let files: Vec<_> = self.live()?.into_iter().filter(listed).collect();
        let dropped = self
            .db
            .delete_file_in_range(slot_key(segment, 0), slot_key(segment, u32::MAX))
            .map_err(|error| StoreError::engine("drop segment", &error));
        self.poison.guard(dropped)?;
        let still_listed = self.live()?.iter().any(listed);
        let still_there = files.iter().any(|live| self.file_path(live.file_number).exists());
        if still_listed || still_there {
            return Err(StoreError::DropFailed { segment });
        }
        self.observer.step(Step::SegmentDropped);
        Ok(())
    }

    /// True while a file with this number is in the folder.
    pub(super) fn has_file(&self, number: u64) -> bool {
        self.file_path(number).exists()
    }

    fn file_path(&self, number: u64) -> PathBuf {
        segment_file(&self.folder, number)
    }

    /// Moves a finished file into the database; gives the number of the file there.
    fn ingest(&self, path: &Path) -> Result<u64, StoreError> {
        *self.ingested.lock() = None;
        self.db
            .ingest_external_file_opts(&engine::ingest_options(), vec![path])
            .map_err(|error| StoreError::engine("ingest segment", &error))?;
        let inside = self.ingested.lock().take();
        let name = inside.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        match name.map(file_number) {
            Some(number) if number > 0 => Ok(number),
            _ => Err(StoreError::Invalid("engine did not name the ingested file")),
        }
    }
}

/// Every file that is part of the database in `folder`, which is neither opened for writing nor
/// changed.
pub(super) fn list_unopened(folder: &Path, cache: &Cache) -> Result<Vec<LiveSegment>, StoreError> {
    let db = DB::open_for_read_only(&engine::chunks_options(cache), folder, false)
        .map_err(|error| StoreError::engine("look into chunks", &error))?;
    list(&db)
}

fn list(db: &DB) -> Result<Vec<LiveSegment>, StoreError> {
    let files = db.live_files().map_err(|error| StoreError::engine("list segments", &error))?;
    let segments = files.into_iter().map(|file| LiveSegment {
        first: file.start_key.as_deref().and_then(SlotId::from_key),
        last: file.end_key.as_deref().and_then(SlotId::from_key),
        file_number: file_number(&file.name),
        file_bytes: file.size as u64,
    });
    Ok(segments.collect())
}

/// Path of file `number` of the database in `folder`.
pub(super) fn segment_file(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:06}.sst"))
}

/// Number in a name such as `/000012.sst`; 0, which no file has, if there is none.
fn file_number(name: &str) -> u64 {
    name.trim_start_matches('/').trim_end_matches(".sst").parse().unwrap_or(0)
}

/// Learns under which name a file was ingested. The engine calls it on the ingesting thread before
/// the ingestion returns, and only the sealer ingests.
struct IngestedFiles(Arc<Mutex<Option<PathBuf>>>);

impl EventListener for IngestedFiles {
    fn on_external_file_ingested(&self, file: &IngestionInfo) {
        let path = file.internal_file_path().and_then(|path| String::from_utf8(path).ok());
        *self.0.lock() = path.map(PathBuf::from);
    }
}
