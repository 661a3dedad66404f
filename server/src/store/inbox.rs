//! `inbox`: envelopes of small sessions, and how they move to segments.
//!
//! A small session writes its envelopes and their index rows in one batch through the log of
//! `meta/`: one sync later it is durable, without a segment of its own and without waiting for a
//! large session. When enough has piled up, the sealer folds: it copies the rows in order to a
//! segment, publishes that, and in one batch points the index rows to it, removes the inbox rows
//! and catalogues the segment. *Crash before that batch: the segment is an orphan at open, and the
//! inbox is untouched. After it: the envelopes are in the segment alone.* Never is there neither.
//!
//! Inbox rows are numbered like slots, in runs that take their number from the segments' counter.
//! A fold ends the run: rows that come while it works belong to the next run and to the next fold.
//! A fold hashes what it copies. What is damaged, head or envelope, stays in the inbox: a fold must
//! not carry an envelope to a place under a wrong name and remove the only copy.
//!
//! A reader that looked an envelope up before the switch finds no inbox row; it looks up again.

use std::io::IoSlice;
use std::ops::ControlFlow;
use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use rocksdb::WriteBatch;

use super::appender::{Job, NewEnvelope};
use super::error::StoreError;
use super::index::Index;
use super::meta::Meta;
use super::noticed::is_whole;
use super::observer::Step;
use super::poison::Poison;
use super::schema::{Family, IndexRow, Place, SlotId, index_key, row_invalid, slot_key};
use super::segments::{SegmentWriter, Segments};
use super::statistics::Gauges;
use super::table::{ROW_BYTES, TableRow};
use super::unsealed::{Appended, Unsealed};

/// When to fold, and how large a segment of folded rows may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoldLimits {
    pub(super) trigger_bytes: u64,
    pub(super) segment_bytes: u64,
}

/// The inbox.
pub(super) struct Inbox {
    pub(super) meta: Arc<Meta>,
    pub(super) segments: Arc<Segments>,
    pub(super) index: Arc<Index>,
    pub(super) unsealed: Arc<Unsealed>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) poison: Arc<Poison>,
    pub(super) limits: FoldLimits,
    pub(super) jobs: Sender<Job>,
    /// Where the next row goes; none before the first row of a run. Locked after the index order.
    pub(super) next: Mutex<Option<SlotId>>,
}

/// A segment with copies of inbox rows, and where each came from.
pub(super) struct Folding {
    pub(super) segment: SegmentWriter,
    pub(super) sources: Vec<SlotId>,
}

impl Inbox {
    /// Stores those of `envelopes` that the index does not list, or only as quarantined or damaged;
    /// answers in
    /// their order.
    pub(super) fn append(
        &self,
        ns: u32,
        envelopes: &[NewEnvelope],
    ) -> Result<Vec<Appended>, StoreError> {
        self.poison.check()?;
        let rows = envelopes.iter().map(|new| new.row(ns)).collect::<Result<Vec<_>, _>>()?;
        let digests: Vec<_> = rows.iter().map(|row| row.digest).collect();
        let order = self.index.order();
        self.poison.check()?;
        let indexed = self.index.lookup(ns, &digests)?;
        let mut next = self.next.lock();
        let mut batch = WriteBatch::default();
        let (mut answers, mut written, mut bytes) = (Vec::with_capacity(rows.len()), Vec::new(), 0);
        let mut in_batch = std::collections::HashMap::new();
        for ((row, new), known) in rows.iter().zip(envelopes).zip(indexed) {
            // A quarantined row is overwritten: what comes again is stored again.
            let known = known
                .filter(IndexRow::is_usable)
                .map(|known| known.slot)
                .or(in_batch.get(&row.digest).copied());
            if let Some(slot) = known {
                answers.push(Appended { slot, duplicate: true });
                continue;
            }
            let slot = self.take_slot(&mut next)?;
            self.put(&mut batch, row, slot, &new.bytes)?;
            in_batch.insert(row.digest, slot);
            answers.push(Appended { slot, duplicate: false });
            bytes += u64::from(row.length);
            written.push(*row);
        }
        if !written.is_empty() {
            self.unsealed.begin_inbox(&written);
            self.meta.write_rows(&batch, Step::InboxWritten)?;
            self.unsealed.end_inbox();
            self.gauges.inbox_added(written.len() as u64, bytes);
        }
        drop((next, order));
        self.ask_for_fold(bytes)?;
        Ok(answers)
    }

    /// Value of an inbox row: the envelope.
    pub(super) fn get(&self, slot: SlotId) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(mut value) = self.meta.get(Family::Inbox, &slot.key())? else { return Ok(None) };
        if value.len() < ROW_BYTES {
            return Err(row_invalid(Family::Inbox, &slot.key(), "too short"));
        }
        value.drain(..ROW_BYTES);
        Ok(Some(value))
    }

    /// Ends the current run; gives the key before which rows are to be folded.
    pub(super) fn begin_fold(&self) -> Result<[u8; 8], StoreError> {
        let _order = self.index.order();
        *self.next.lock() = None;
        Ok(slot_key(self.segments.next_number(), 0))
    }

    /// Copies the first rows before `end` to a new segment; none if there are no such rows. The
    /// caller publishes the segment and removes the rows, so that the next call finds others.
    pub(super) fn fold_some(&self, end: [u8; 8]) -> Result<Option<Folding>, StoreError> {
        let mut folding: Option<Folding> = None;
        let mut failure = None;
        self.meta.scan(Family::Inbox, &[], None, &mut |key, value| {
            if key >= end.as_slice() {
                return ControlFlow::Break(());
            }
            match self.fold_row(&mut folding, key, value) {
                Ok(bytes) if bytes < self.limits.segment_bytes => ControlFlow::Continue(()),
                Ok(_) => ControlFlow::Break(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        match failure {
            Some(error) => Err(error),
            None => Ok(folding),
        }
    }

    /// Which of `rows` the index still finds at their source. The caller holds its order lock.
    pub(super) fn still_listed(
        &self,
        rows: &[TableRow],
        sources: &[SlotId],
    ) -> Result<Vec<bool>, StoreError> {
        let mut found = Vec::with_capacity(rows.len());
        for same_namespace in rows.chunk_by(|one, other| one.ns == other.ns) {
            let digests: Vec<_> = same_namespace.iter().map(|row| row.digest).collect();
            found.extend(self.index.lookup(same_namespace[0].ns, &digests)?);
        }
        let at_source = |found: &IndexRow, source: &SlotId| {
            found.place == Place::Inbox && found.slot == *source
        };
        let pairs = found.iter().zip(sources);
        Ok(pairs.map(|(row, source)| row.is_some_and(|row| at_source(&row, source))).collect())
    }

    /// Adds one row, if it is whole, to the segment of folded rows; gives the bytes in it.
    fn fold_row(
        &self,
        folding: &mut Option<Folding>,
        key: &[u8],
        value: &[u8],
    ) -> Result<u64, StoreError> {
        let mut envelope = value;
        let row = TableRow::decode(&mut envelope)
            .filter(|row| is_whole(row.length, &row.digest, envelope));
        let (Some(row), Some(source)) = (row, SlotId::from_key(key)) else {
            return Ok(folding.as_ref().map_or(0, |folding| folding.segment.bytes()));
        };
        let folding = match folding {
            Some(folding) => folding,
            None => {
                let segment = self.segments.create(0)?;
                folding.insert(Folding { segment, sources: Vec::new() })
            }
        };
        folding.segment.append(row, envelope)?;
        folding.sources.push(source);
        Ok(folding.segment.bytes())
    }

    /// Adds inbox row and index row of an envelope to `batch`.
    fn put(
        &self,
        batch: &mut WriteBatch,
        row: &TableRow,
        slot: SlotId,
        envelope: &[u8],
    ) -> Result<(), StoreError> {
        let indexed = row.indexed(slot, Place::Inbox);
        let head = row.encode();
        let value = [IoSlice::new(&head), IoSlice::new(envelope)];
        batch
            .put_cf_vectored(self.meta.family(Family::Inbox)?, &[IoSlice::new(&slot.key())], &value)
            .map_err(|error| StoreError::engine("write inbox", &error))?;
        let index = self.meta.family(Family::Index)?;
        batch.put_cf(index, index_key(row.ns, &row.digest), indexed.encode());
        Ok(())
    }

    fn take_slot(&self, next: &mut Option<SlotId>) -> Result<SlotId, StoreError> {
        let slot = match *next {
            Some(slot) => slot,
            None => SlotId { segment: self.segments.allocate_number()?, slot: 0 },
        };
        let following = slot.slot.checked_add(1);
        *next = following.map(|following| SlotId { slot: following, ..slot });
        Ok(slot)
    }

    /// True if the inbox holds more than it should.
    pub(super) fn wants_fold(&self) -> bool {
        self.gauges.inbox_bytes() > self.limits.trigger_bytes
    }

    /// Asks the sealer to fold when the inbox has just grown over its limit.
    fn ask_for_fold(&self, added_bytes: u64) -> Result<(), StoreError> {
        let before = self.gauges.inbox_bytes().saturating_sub(added_bytes);
        if self.wants_fold() && before <= self.limits.trigger_bytes {
            let sent = self.jobs.send(Job::Fold(None));
            sent.map_err(|_| StoreError::Invalid("store is closing"))?;
        }
        Ok(())
    }
}
