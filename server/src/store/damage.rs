//! Damage: who meets it notes it here, and rows are marked by decisions of others.
//!
//! Whoever reads an envelope that is not there, or not as it was written, notes the index row that
//! led to it (`noticed.rs`).
//! The rows themselves are changed in a caller's batch, with the ledger's entry: the caller holds
//! the order lock ([`OrderGuard`]) from the look at the rows until its batch is written, so nobody
//! overwrites a row in between, and a row that is not as it was seen is left alone. *Crash: row and
//! entry, or neither.*
//!
//! Checking here means hashing: the engine's checksums see bits that flipped on the disk, not those
//! that flipped before a block was written, and not a row that names another place.

use std::ops::ControlFlow;

use parking_lot::MutexGuard;
use strongroom_protocol::id::SealedDigest;

use super::Store;
use super::collect::Found;
use super::engine;
use super::error::StoreError;
use super::meta::MetaBatch;
use super::noticed::is_whole;
use super::schema::{
    Family, IndexRow, Place, SegmentRow, SlotId, index_key, row_invalid, slot_key,
};
use super::table::TableRow;
use super::unsealed::Unsealed;

/// Keeps other writers of index rows out, until the batch of whoever holds it is written.
pub struct OrderGuard<'a> {
    unsealed: &'a Unsealed,
    _order: MutexGuard<'a, ()>,
}

impl Drop for OrderGuard<'_> {
    fn drop(&mut self) {
        self.unsealed.rows_changed();
    }
}

/// One envelope of the inbox, as it was found there.
#[derive(Debug, Clone, Copy)]
pub struct InboxFound {
    /// Its place.
    pub slot: SlotId,
    /// What its head says; nothing, if that does not decode.
    pub row: Option<TableRow>,
    /// Whether the bytes have the digest of the head.
    pub is_whole: bool,
}

impl Store {
    /// Notes that the envelope of a row is not there, or not as it was written.
    pub fn note_damage(&self, found: Found) {
        self.open.noticed.note(found.ns, found.digest, found.row);
    }

    /// Takes what was noted, in the order of the keys.
    pub fn take_damage(&self) -> Vec<Found> {
        let notes = self.open.noticed.take();
        notes.into_iter().map(|((ns, digest), row)| Found { ns, digest, row }).collect()
    }

    /// Keeps other writers of index rows out while the guard lives.
    pub fn order(&self) -> OrderGuard<'_> {
        let order = self.open.reader.index.order();
        OrderGuard { unsealed: &self.open.unsealed, _order: order }
    }

    /// Index rows as they are written: the map of unsealed rows is not asked.
    pub fn indexed(
        &self,
        ns: u32,
        digests: &[SealedDigest],
    ) -> Result<Vec<Option<IndexRow>>, StoreError> {
        self.open.reader.index.lookup(ns, digests)
    }

    /// Adds to `batch` that rows which are as they were seen are damaged; gives those.
    pub fn mark_damaged(
        &self,
        _held: &OrderGuard<'_>,
        seen: &[Found],
        batch: &mut MetaBatch,
    ) -> Result<Vec<Found>, StoreError> {
        let mut marked = Vec::with_capacity(seen.len());
        for found in seen {
            let now = self.indexed(found.ns, &[found.digest])?.pop().flatten();
            // What is missing altogether gets a row that says so.
            let is_same = now == Some(found.row) || (now.is_none() && found.row.is_lost());
            if is_same {
                let row = IndexRow { damaged: true, ..found.row };
                put(batch, found, row);
                marked.push(Found { row, ..*found });
            }
        }
        Ok(marked)
    }

    /// Adds to `batch` what a segment's own table says of a damaged row whose place in that segment
    /// was just seen to hold its bytes; true, if the row still names the place.
    pub fn mark_whole(
        &self,
        _held: &OrderGuard<'_>,
        (slot, row): (SlotId, &TableRow),
        batch: &mut MetaBatch,
    ) -> Result<bool, StoreError> {
        let now = self.indexed(row.ns, &[row.digest])?.pop().flatten();
        let here = |now: &IndexRow| now.damaged && now.place == Place::Segment && now.slot == slot;
        let Some(now) = now.filter(here) else { return Ok(false) };
        let TableRow { ns, level, length, digest, totals } = *row;
        let whole = IndexRow { level, length, totals, damaged: false, ..now };
        put(batch, &Found { ns, digest, row: now }, whole);
        Ok(true)
    }

    /// Whether the slots of `table` from `first` on hold what it says: for as many of them as make
    /// about `max_bytes`, in order. What cannot be read is not whole.
    pub fn check_slots(
        &self,
        segment: u32,
        table: &[TableRow],
        first: usize,
        max_bytes: u64,
    ) -> Result<Vec<bool>, StoreError> {
        let wanted = table.get(first..).unwrap_or_default();
        let end = slot_key(segment, u32::MAX);
        let mut slots = self.open.segments.iterate(engine::run_read_options(max_bytes, &end));
        let (mut whole, mut bytes) = (Vec::new(), 0);
        let mut is_placed = false;
        for (at, row) in wanted.iter().enumerate() {
            if bytes >= max_bytes {
                break;
            }
            bytes += u64::from(row.length);
            let slot = SlotId { segment, slot: (first + at) as u32 };
            if !is_placed {
                slots.seek(slot.key());
            }
            let item = slots.item().filter(|(key, _)| *key == slot.key());
            is_placed = item.is_some();
            if let Some((_, envelope)) = item {
                whole.push(is_whole(row.length, &row.digest, envelope));
                slots.next();
                continue;
            }
            let read = self.slot_bytes(slot)?;
            whole.push(read.is_some_and(|read| is_whole(row.length, &row.digest, &read)));
        }
        Ok(whole)
    }

    /// Row of one segment in the catalogue.
    pub fn segment_row(&self, segment: u32) -> Result<Option<SegmentRow>, StoreError> {
        let key = segment.to_be_bytes();
        let value = self.get(Family::Segments, &key)?;
        let decode = |value: Vec<u8>| {
            let invalid = || row_invalid(Family::Segments, &key, "not a catalogue row");
            SegmentRow::decode(&value).ok_or_else(invalid)
        };
        value.map(decode).transpose()
    }

    /// The bytes in a slot of a segment, whatever they are; nothing, if they cannot be read.
    pub fn slot_bytes(&self, slot: SlotId) -> Result<Option<Vec<u8>>, StoreError> {
        let read = self.open.segments.get(slot);
        let read = read.map_err(|error| StoreError::engine("read segment", &error));
        match read {
            Ok(bytes) => Ok(bytes.map(|bytes| bytes.to_vec())),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Envelopes of the inbox after a place, each hashed: some, of at most about `max_bytes`.
    pub fn check_inbox(
        &self,
        after: Option<SlotId>,
        max_bytes: usize,
    ) -> Result<Vec<InboxFound>, StoreError> {
        let start = after.map(|slot| [&slot.key()[..], &[0]].concat());
        let (mut found, mut bytes) = (Vec::new(), 0);
        self.open.meta.scan(Family::Inbox, &[], start.as_deref(), &mut |key, value| {
            let Some(slot) = SlotId::from_key(key) else { return ControlFlow::Continue(()) };
            let mut envelope = value;
            let row = TableRow::decode(&mut envelope);
            let is_whole = row.is_some_and(|row| is_whole(row.length, &row.digest, envelope));
            found.push(InboxFound { slot, row, is_whole });
            bytes += value.len();
            if bytes < max_bytes { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(found)
    }
}

fn put(batch: &mut MetaBatch, found: &Found, row: IndexRow) {
    let key = index_key(found.ns, &found.digest).to_vec();
    batch.change_own(Family::Index, key, Some(row.encode()));
}
