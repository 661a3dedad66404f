//! The store: envelopes in sealed segments, everything else in rows. The only code that names
//! RocksDB.
//!
//! **One rule: an index row is written only after the bytes it points to are durable.** Envelopes
//! of large sessions go to segments, files that the store writes in arrival order and hands to
//! RocksDB whole (`segments.rs`: the steps, and what a crash after each of them leaves). Envelopes
//! of small sessions go through the log with their index rows (`inbox.rs`), so that they are
//! durable with one sync. All rows are in one database behind one log (`meta.rs`): what is written
//! later is durable later, so the caller's synced commit covers every index row before it.
//!
//! A commit of a large session is: [`Store::append`] its envelopes, [`Store::seal`],
//! [`Store::write`] its record, [`Store::sync`], answer. A crash before the sync leaves nothing
//! that a reader can see; a crash after it leaves everything. A small session uses
//! [`Store::append_inbox`], and needs no `seal` unless it refers to envelopes of others that
//! [`Store::lookup`] calls not durable.
//!
//! After the first failed write, sync, finish or ingest nothing is written any more (`poison.rs`).
//! Memory is bounded by [`StoreOptions`] and `engine.rs`, whatever the repository's size.
//!
//! Calls block. A [`Store`] is a handle: clones share one store, which closes with the last of
//! them; what is unsealed then is lost, as in a crash, so seal before you drop it.
//!
//! Reading order: `schema`, `table`, `segments`, `unsealed`, `appender`, `sealer`, `inbox`,
//! `index`, `reader`, `meta`, `records`, `rebuild`, `collect`, `evacuate`, `open_check`, `engine`,
//! `cache`, `poison`.

mod appender;
mod cache;
pub mod collect;
pub mod damage;
mod engine;
pub mod error;
mod evacuate;
mod inbox;
mod index;
pub mod meta;
mod noticed;
pub mod observer;
pub mod open_check;
mod poison;
mod reader;
mod rebuild;
mod records;
pub mod schema;
mod sealer;
mod segments;
pub mod statistics;
pub mod table;
#[cfg(test)]
mod tests;
mod unsealed;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use strongroom_protocol::id::SealedDigest;

pub use self::appender::NewEnvelope;
use self::appender::{Appender, Job, OPEN_MAX, SEALING_MAX, SegmentLimits};
use self::cache::BlockCache;
use self::collect::{Collection, Found, IndexPosition, Move};
use self::error::StoreError;
use self::inbox::{FoldLimits, Inbox};
use self::index::Index;
use self::meta::{EachRow, Meta, MetaBatch, Row};
use self::noticed::Noticed;
use self::observer::{Observer, Unobserved};
use self::open_check::OpenReport;
use self::poison::Poison;
pub use self::reader::EachEnvelope;
use self::reader::Reader;
use self::rebuild::Rebuilder;
pub use self::rebuild::{EachIndexRow, RecordCopy};
use self::schema::{Family, IndexRow, Lifetime, Quarantine, SegmentRow};
use self::sealer::Sealer;
use self::segments::Segments;
use self::statistics::{Gauges, StoreStatistics};
use self::table::TableRow;
pub use self::unsealed::Appended;
use self::unsealed::Unsealed;

/// How a store works.
#[derive(Clone)]
pub struct StoreOptions {
    /// Size at which a segment is sealed.
    pub segment_bytes: u64,
    /// Envelopes at which a segment is sealed.
    pub segment_slots_max: u32,
    /// A segment that got nothing for this long is sealed (after at most twice as long).
    pub idle_seal_ms: u64,
    /// Size at which the inbox is folded into a segment.
    pub inbox_fold_bytes: u64,
    /// Cache of blocks, indexes and filters, for both databases; 0 is as the index needs it.
    pub block_cache_bytes: u64,
    /// Free space that uploads must leave.
    pub reserve_bytes: u64,
    /// Watches the store.
    pub observer: Arc<dyn Observer>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            segment_bytes: 256 << 20,
            segment_slots_max: 262_144,
            idle_seal_ms: 60_000,
            inbox_fold_bytes: 64 << 20,
            block_cache_bytes: 0,
            reserve_bytes: 1 << 30,
            observer: Arc::new(Unobserved),
        }
    }
}

/// An open store.
#[derive(Clone)]
pub struct Store {
    open: Arc<OpenStore>,
}

impl Store {
    /// Opens the store in `folder` after the open check; makes it if it is not there.
    pub fn open(folder: &Path, options: StoreOptions) -> Result<(Store, OpenReport), StoreError> {
        let (open, report) = OpenStore::start(folder, options)?;
        Ok((Store { open: Arc::new(open) }, report))
    }

    /// Appends envelopes to the open segment, in order; answers in the same order. What is indexed
    /// or unsealed already is not written again, even if two threads append it at once.
    pub fn append(&self, ns: u32, batch: Vec<NewEnvelope>) -> Result<Vec<Appended>, StoreError> {
        self.append_for(ns, Lifetime::Long, batch)
    }

    /// [`Self::append`], to the open segment of what is wanted for so long.
    pub fn append_for(
        &self,
        ns: u32,
        lifetime: Lifetime,
        batch: Vec<NewEnvelope>,
    ) -> Result<Vec<Appended>, StoreError> {
        self.open.appender.append(ns, lifetime, batch)
    }

    /// Stores envelopes of a small session with their index rows through the log. They are durable
    /// with the next `sync`; no `seal` is needed.
    pub fn append_inbox(
        &self,
        ns: u32,
        batch: Vec<NewEnvelope>,
    ) -> Result<Vec<Appended>, StoreError> {
        self.open.inbox.append(ns, &batch)
    }

    /// What is known of each of `digests`, unsealed envelopes included.
    pub fn lookup(
        &self,
        ns: u32,
        digests: &[SealedDigest],
    ) -> Result<Vec<Option<IndexRow>>, StoreError> {
        self.open.reader.lookup(ns, digests)
    }

    /// Waits until all that was appended before this call is in a segment on disk and in the index.
    /// Its index rows still need a `sync`. Callers share seals.
    pub fn seal(&self) -> Result<(), StoreError> {
        self.open.appender.seal()
    }

    /// Moves the inbox to segments now.
    pub fn fold_inbox(&self) -> Result<(), StoreError> {
        self.open.poison.check()?;
        let (sender, answer) = crossbeam_channel::bounded(1);
        let closing = |_| StoreError::Invalid("store is closing");
        self.open.jobs.send(Job::Fold(Some(sender))).map_err(|_| closing(()))?;
        answer.recv().map_err(|_| closing(()))?
    }

    /// Gives the envelopes of `digests` to `each`, in the order asked, as they are stored: whoever
    /// needs to be sure checks the digest. What is unsealed is sealed first.
    pub fn read(
        &self,
        ns: u32,
        digests: &[SealedDigest],
        each: &mut EachEnvelope<'_>,
    ) -> Result<(), StoreError> {
        self.open.reader.read(ns, digests, each)
    }

    /// Value of a row.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.open.meta.get(family, key)
    }

    /// Calls `each` for the rows whose key begins with `prefix` and is at least `start`, in order.
    pub fn scan(
        &self,
        family: Family,
        prefix: &[u8],
        start: Option<&[u8]>,
        each: &mut EachRow<'_>,
    ) -> Result<(), StoreError> {
        self.open.meta.scan(family, prefix, start, each)
    }

    /// Key and value of the last row whose key begins with `prefix`.
    pub fn last(&self, family: Family, prefix: &[u8]) -> Result<Option<Row>, StoreError> {
        self.open.meta.last(family, prefix)
    }

    /// Rows of a family from `start` on, or from its beginning: at most `count`.
    pub fn page(
        &self,
        family: Family,
        start: Option<&[u8]>,
        count: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let mut rows: Vec<Row> = Vec::new();
        self.scan(family, &[], start, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(rows)
    }

    /// Writes rows: all or none of them, visible at once, durable with the next `sync`.
    pub fn write(&self, batch: &MetaBatch) -> Result<(), StoreError> {
        self.open.meta.write(batch)
    }

    /// Makes every row written before this call durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.open.meta.sync()
    }

    /// Bytes that the file system still has for this store.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let space = rustix::fs::statvfs(&self.open.folder)
            .map_err(|error| StoreError::file("measure", &self.open.folder, error.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// True while there is room for uploads: what is free covers the reserve, all segments that may
    /// be under way, and a fold of the inbox, which needs room for a second copy.
    pub fn accepts_uploads(&self) -> Result<bool, StoreError> {
        let held = self.statistics();
        let under_way = self.open.segment_bytes.saturating_mul(SEALING_MAX + OPEN_MAX);
        let inbox = held.inbox_bytes.saturating_add(self.open.inbox_fold_bytes);
        let needed = under_way
            .saturating_sub(held.unsealed_bytes)
            .saturating_add(inbox)
            .saturating_add(self.open.reserve_bytes);
        Ok(self.free_bytes()? > needed)
    }

    /// Drops the orphans that the open report names. To be called once the rows are known to be
    /// whole, that is: none that an acknowledged commit wrote is missing. Until then they only take
    /// room.
    pub fn drop_orphans(&self) -> Result<(), StoreError> {
        for segment in std::mem::take(&mut *self.open.orphans.lock()) {
            self.open.segments.drop_segment(segment)?;
        }
        Ok(())
    }

    /// What the store holds.
    pub fn statistics(&self) -> StoreStatistics {
        self.open.gauges.read(self.open.unsealed.bytes())
    }

    /// Catalogue of sealed segments, in the order of their numbers.
    pub fn catalogue(&self) -> Result<Vec<(u32, SegmentRow)>, StoreError> {
        self.open.rebuilder.catalogue()
    }

    /// What a segment's own table says of its envelopes, in slot order.
    pub fn segment_table(&self, segment: u32) -> Result<Vec<TableRow>, StoreError> {
        self.open.rebuilder.table(segment)
    }

    /// Copies of rows of `snapshots` that a segment carries.
    pub fn record_copies(&self, segment: u32) -> Result<Vec<RecordCopy>, StoreError> {
        self.open.rebuilder.records(segment)
    }

    /// Gives every index row that the segments' tables and the inbox imply, without the index.
    pub fn rebuild_index(&self, each: &mut EachIndexRow<'_>) -> Result<(), StoreError> {
        self.open.rebuilder.index_rows(each)
    }

    /// At most `max` index rows after a position, in the order of their keys.
    pub fn scan_index(
        &self,
        after: Option<IndexPosition>,
        max: usize,
    ) -> Result<Vec<Found>, StoreError> {
        self.open.collection.scan(after, max)
    }

    /// Quarantines rows that are as they were seen; gives their number.
    pub fn quarantine(&self, seen: &[Found], mark: Quarantine) -> Result<u64, StoreError> {
        self.open.collection.quarantine(seen, mark)
    }

    /// Takes rows that are as they were seen out of quarantine; gives their number.
    pub fn release(&self, seen: &[Found]) -> Result<u64, StoreError> {
        self.open.collection.release(seen)
    }

    /// Removes quarantined rows that are as they were seen, and what `also` adds for each; gives
    /// those that went.
    pub fn reap(
        &self,
        seen: &[Found],
        also: &mut dyn FnMut(&Found, &mut MetaBatch),
    ) -> Result<Vec<Found>, StoreError> {
        self.open.collection.reap(seen, also)
    }

    /// Copies what lives in `segments` to a new one; gives where each copy is. The index goes on to
    /// name the old places until [`Store::move_rows`].
    pub fn evacuate(&self, segments: Vec<u32>) -> Result<Vec<Move>, StoreError> {
        self.open.poison.check()?;
        let (sender, answer) = crossbeam_channel::bounded(1);
        let closing = |_| StoreError::Invalid("store is closing");
        self.open.jobs.send(Job::Evacuate(segments, sender)).map_err(|_| closing(()))?;
        answer.recv().map_err(|_| closing(()))?
    }

    /// Points index rows that are still at their old place to the copies; gives the moves made.
    pub fn move_rows(&self, moves: &[Move]) -> Result<Vec<Move>, StoreError> {
        self.open.collection.move_rows(moves)
    }

    /// What the index still finds in a segment, in slot order.
    pub fn occupants(&self, segment: u32) -> Result<Vec<Found>, StoreError> {
        self.open.collection.occupants(segment)
    }

    /// Rows for a decision that says that a segment, which nothing occupies, is being dropped;
    /// nothing, if it may hold the last copy of something.
    pub fn dropping(&self, segment: u32) -> Result<Option<(SegmentRow, MetaBatch)>, StoreError> {
        self.open.collection.dropping(segment)
    }

    /// Deletes the file of a segment that is being dropped; true once it is gone.
    pub fn drop_file(&self, segment: u32) -> Result<bool, StoreError> {
        self.open.collection.drop_file(segment)
    }

    /// Adds to `batch` that a segment whose file is gone leaves the catalogue.
    pub fn strike(&self, segment: u32, batch: &mut MetaBatch) -> Result<(), StoreError> {
        self.open.collection.strike(segment, batch)
    }

    /// Writes to tables what of all rows only the log holds, so that the next open replays nothing.
    /// For an orderly end; it changes nothing that a reader sees, and nothing needs it.
    pub fn flush_rows(&self) -> Result<(), StoreError> {
        self.open.meta.flush()
    }

    /// The observer that the store was opened with.
    pub fn observer(&self) -> &Arc<dyn Observer> {
        &self.open.observer
    }
}

/// Everything that is open. Fields close in this order, the lock last.
struct OpenStore {
    appender: Arc<Appender>,
    inbox: Arc<Inbox>,
    reader: Reader,
    rebuilder: Rebuilder,
    collection: Collection,
    meta: Arc<Meta>,
    segments: Arc<Segments>,
    unsealed: Arc<Unsealed>,
    gauges: Arc<Gauges>,
    poison: Arc<Poison>,
    cache: Arc<BlockCache>,
    noticed: Arc<Noticed>,
    observer: Arc<dyn Observer>,
    orphans: Mutex<Vec<u32>>,
    jobs: Sender<Job>,
    sealer: Option<JoinHandle<()>>,
    folder: PathBuf,
    segment_bytes: u64,
    inbox_fold_bytes: u64,
    reserve_bytes: u64,
    _lock: File,
}

impl OpenStore {
    fn start(folder: &Path, options: StoreOptions) -> Result<(Self, OpenReport), StoreError> {
        let observer = options.observer;
        let poison = Arc::new(Poison::new(observer.clone()));
        let cache = Arc::new(BlockCache::new(options.block_cache_bytes));
        let opened = open_check::open(folder, cache.engine(), &poison, &observer)?;
        let (meta, segments, gauges) = (opened.meta, opened.segments, opened.gauges);
        let unsealed = Arc::new(Unsealed::default());
        let noticed = Arc::new(Noticed::default());
        let index = Arc::new(Index::new(meta.clone()));
        let (jobs, waiting) = crossbeam_channel::unbounded();
        let appender = Arc::new(Appender::new(
            SegmentLimits { bytes: options.segment_bytes, slots: options.segment_slots_max },
            segments.clone(),
            index.clone(),
            unsealed.clone(),
            (poison.clone(), observer.clone()),
            jobs.clone(),
        ));
        let inbox = Arc::new(Inbox {
            meta: meta.clone(),
            segments: segments.clone(),
            index: index.clone(),
            unsealed: unsealed.clone(),
            gauges: gauges.clone(),
            poison: poison.clone(),
            limits: FoldLimits {
                trigger_bytes: options.inbox_fold_bytes,
                segment_bytes: options.segment_bytes,
            },
            jobs: jobs.clone(),
            next: Mutex::new(None),
        });
        let collection = Collection::new(&meta, &segments, &index, &unsealed, (&gauges, &noticed));
        let mut store = OpenStore {
            collection,
            reader: Reader {
                noticed: noticed.clone(),
                index,
                unsealed: unsealed.clone(),
                segments: segments.clone(),
                inbox: inbox.clone(),
                appender: appender.clone(),
            },
            rebuilder: Rebuilder { meta: meta.clone(), segments: segments.clone() },
            appender,
            inbox,
            meta,
            segments,
            unsealed,
            gauges,
            poison,
            cache,
            noticed,
            observer,
            orphans: Mutex::new(opened.report.orphans.clone()),
            jobs,
            sealer: None,
            folder: folder.to_path_buf(),
            segment_bytes: options.segment_bytes,
            inbox_fold_bytes: options.inbox_fold_bytes,
            reserve_bytes: options.reserve_bytes,
            _lock: opened.lock,
        };
        let idle = Duration::from_millis(options.idle_seal_ms);
        store.sealer = Some(store.sealer().start(waiting, idle)?);
        if store.inbox.wants_fold() {
            store.jobs.send(Job::Fold(None)).map_err(|_| StoreError::Invalid("no sealer"))?;
        }
        Ok((store, opened.report))
    }

    fn sealer(&self) -> Sealer {
        Sealer {
            meta: self.meta.clone(),
            segments: self.segments.clone(),
            index: self.reader.index.clone(),
            unsealed: self.unsealed.clone(),
            appender: self.appender.clone(),
            inbox: self.inbox.clone(),
            gauges: self.gauges.clone(),
            poison: self.poison.clone(),
            cache: self.cache.clone(),
            noticed: self.noticed.clone(),
            observer: self.observer.clone(),
        }
    }
}

impl Drop for OpenStore {
    fn drop(&mut self) {
        // Errors mean that the thread is gone already.
        let _ = self.jobs.send(Job::Stop);
        if let Some(sealer) = self.sealer.take() {
            let _ = sealer.join();
        }
    }
}
