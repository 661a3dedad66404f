//! The one thread that makes segments durable and lists them.
//!
//! It takes segments in the order in which they were handed over. For each: finish, ingest, then
//! one batch with the index rows, the catalogue row and the counters (the steps and what a crash
//! leaves stand in `segments.rs`), and only then do the rows leave the map of unsealed rows. Any
//! failure poisons the store, which ends all waiting. The inbox is folded and segments are
//! evacuated (`evacuate.rs`) here too, so that ingestion has one caller.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::appender::{Appender, Job};
use super::cache::BlockCache;
use super::error::StoreError;
use super::inbox::Inbox;
use super::index::Index;
use super::meta::{Meta, MetaBatch};
use super::noticed::Noticed;
use super::observer::{Observer, Step};
use super::poison::Poison;
use super::records::RecordCopies;
use super::schema::{COUNTER_NEXT_SEGMENT, Family, Place, SegmentRow, SlotId, index_key};
use super::segments::{SegmentWriter, Segments};
use super::statistics::Gauges;
use super::table::TableRow;
use super::unsealed::Unsealed;

/// What the sealer works with.
pub(super) struct Sealer {
    pub(super) meta: Arc<Meta>,
    pub(super) segments: Arc<Segments>,
    pub(super) index: Arc<Index>,
    pub(super) unsealed: Arc<Unsealed>,
    pub(super) appender: Arc<Appender>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) poison: Arc<Poison>,
    pub(super) cache: Arc<BlockCache>,
    pub(super) noticed: Arc<Noticed>,
    pub(super) observer: Arc<dyn Observer>,
}

impl Sealer {
    /// Starts the thread; it ends at [`Job::Stop`].
    pub(super) fn start(
        self,
        jobs: Receiver<Job>,
        idle: Duration,
    ) -> Result<JoinHandle<()>, StoreError> {
        self.fit_cache()?;
        std::thread::Builder::new()
            .name("sealer".to_owned())
            .spawn(move || {
                let watch = PanicWatch(self.poison.clone());
                self.run(&jobs, idle);
                drop(watch);
            })
            .map_err(|_| StoreError::Invalid("no thread for the sealer"))
    }

    fn run(&self, jobs: &Receiver<Job>, idle: Duration) {
        let mut mark = 0;
        loop {
            let result = match jobs.recv_timeout(idle) {
                Ok(Job::Seal(segment)) => self.seal(segment),
                Ok(Job::Fold(answer)) => self.fold(answer.as_ref()),
                Ok(Job::Evacuate(segments, answer)) => {
                    // Whoever asked judges an error; what was written and failed has latched it.
                    let _ = answer.send(self.evacuate(&segments));
                    Ok(())
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.appender.seal_if_idle(mark).map(|seen| mark = seen)
                }
            };
            if let Err(error) = result {
                self.poison.latch(&error);
            }
        }
    }

    /// The index is largest here, and at open.
    fn fit_cache(&self) -> Result<(), StoreError> {
        self.cache.fit(self.meta.table_bytes(Family::Index)?);
        Ok(())
    }

    fn seal(&self, mut segment: Box<SegmentWriter>) -> Result<(), StoreError> {
        let began = self.observer.monotonic();
        let copies = RecordCopies::collect(&self.meta)?;
        let catalogued = self.segments.publish(&mut segment, &copies)?;
        // Crash here: the file has no catalogue row and is an orphan at open.
        let order = self.index.order();
        let mut batch = MetaBatch::new();
        let listed = self.unsealed.listed(segment.number(), segment.rows());
        for (slot, (row, listed)) in segment.rows().iter().zip(listed).enumerate() {
            if listed {
                let slot = SlotId { segment: segment.number(), slot: slot as u32 };
                list(&mut batch, row, slot);
            }
        }
        self.catalogue(&mut batch, segment.number(), &catalogued, &copies);
        self.meta.write_own(&batch, Step::IndexWritten)?;
        // Crash here: segment and rows are there, or, if the log was not synced, neither is.
        self.gauges.sealed(&catalogued);
        self.unsealed.done(segment.number(), segment.rows(), segment.bytes());
        drop(order);
        self.fit_cache()?;
        let elapsed = self.observer.monotonic().saturating_sub(began);
        self.observer.sealed(catalogued.file_bytes, elapsed);
        Ok(())
    }

    /// Moves the inbox to segments of its own. Any failure is final, so a waiter gets it as well.
    fn fold(
        &self,
        answer: Option<&crossbeam_channel::Sender<Result<(), StoreError>>>,
    ) -> Result<(), StoreError> {
        // What came while the sealer folded did not ask for a fold, so look again.
        let mut result = self.poison.check().and_then(|()| self.fold_all());
        // What cannot be folded stays, however much it is.
        while result.as_ref().is_ok_and(|moved| *moved) && self.inbox.wants_fold() {
            result = self.fold_all();
        }
        let result = result.map(drop);
        if let Err(error) = &result {
            self.poison.latch(error);
        }
        if let Some(answer) = answer {
            // A waiter that gave up does not need the answer.
            let _ = answer.send(result.clone());
        }
        result
    }

    /// True if anything was moved.
    fn fold_all(&self) -> Result<bool, StoreError> {
        let mut is_moved = false;
        let end = self.inbox.begin_fold()?;
        while let Some(folding) = self.inbox.fold_some(end)? {
            let mut segment = folding.segment;
            let copies = RecordCopies::collect(&self.meta)?;
            let catalogued = self.segments.publish(&mut segment, &copies)?;
            // Crash here: as above; the inbox still has its rows.
            let order = self.index.order();
            let mut batch = MetaBatch::new();
            let current = self.inbox.still_listed(segment.rows(), &folding.sources)?;
            for (slot, row) in segment.rows().iter().enumerate() {
                if current[slot] {
                    let slot = SlotId { segment: segment.number(), slot: slot as u32 };
                    list(&mut batch, row, slot);
                }
                batch.delete(Family::Inbox, folding.sources[slot].key());
            }
            self.catalogue(&mut batch, segment.number(), &catalogued, &copies);
            self.meta.write_own(&batch, Step::InboxFolded)?;
            drop(order);
            self.gauges.sealed(&catalogued);
            self.gauges.inbox_removed(segment.rows().len() as u64, segment.bytes());
            is_moved = true;
        }
        Ok(is_moved)
    }

    /// Adds everything but index rows that catalogues a segment.
    pub(super) fn catalogue(
        &self,
        batch: &mut MetaBatch,
        segment: u32,
        row: &SegmentRow,
        copies: &RecordCopies,
    ) {
        batch.put(Family::Segments, segment.to_be_bytes(), row.encode());
        let next = self.segments.next_number();
        batch.put(Family::Counters, COUNTER_NEXT_SEGMENT, next.to_le_bytes());
        copies.count_into(batch);
    }
}

/// Adds the index row of an envelope that lies in a sealed segment.
fn list(batch: &mut MetaBatch, row: &TableRow, slot: SlotId) {
    let indexed = row.indexed(slot, Place::Segment);
    batch.put(Family::Index, index_key(row.ns, &row.digest), indexed.encode());
}

/// Poisons the store if the thread that owns it panics: nobody would seal any more.
struct PanicWatch(Arc<Poison>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.latch(&StoreError::Invalid("sealer thread panicked"));
        }
    }
}
