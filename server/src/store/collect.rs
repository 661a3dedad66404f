//! What garbage collection does to rows and segments. Which of them, and when, others decide.
//!
//! * **Quarantine, release, reap** and **move** change index rows. Each looks at the rows again
//!   under the order lock and leaves alone what is not as the caller saw it: a row that was
//!   overwritten since (the envelope came again) is not touched.
//! * **Drop** takes three steps, because a file cannot go in the same write as a row. 1: the row in
//!   the catalogue says *dropping*, in the caller's batch, synced. *Crash: the file may be there or
//!   not; both are fine at open.* 2: the engine deletes the file, and it is gone. *Crash: the
//!   same.* 3: the row goes, in the caller's batch. Whoever opens the store next does steps 2 and 3
//!   again for every row that says *dropping*.
//!
//! Readers that found a row before it moved or went look again (`reader.rs`).

use std::ops::ControlFlow;
use std::sync::Arc;

use strongroom_protocol::id::SealedDigest;

use super::error::StoreError;
use super::index::Index;
use super::meta::{Meta, MetaBatch};
use super::noticed::Noticed;
use super::observer::Step;
use super::rebuild::Rebuilder;
use super::schema::{
    COUNTER_RECORDS_AGAIN, Family, IndexRow, Place, Quarantine, SegmentRow, SegmentState, SlotId,
    index_key, parse_index_key, row_invalid,
};
use super::segments::Segments;
use super::statistics::Gauges;
use super::table::TableRow;
use super::unsealed::Unsealed;

/// Digests of one look at the index.
const LOOKUP_COUNT: usize = 4096;

/// An index row as somebody saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Namespace, as the number used in keys.
    pub ns: u32,
    /// Content address.
    pub digest: SealedDigest,
    /// The row.
    pub row: IndexRow,
}

/// An envelope that has been copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Namespace, as the number used in keys.
    pub ns: u32,
    /// Content address.
    pub digest: SealedDigest,
    /// Where it was.
    pub from: SlotId,
    /// Where the copy is.
    pub to: SlotId,
}

/// Namespace and digest of an index row: where a scan goes on.
pub type IndexPosition = (u32, SealedDigest);

/// The part of a store that garbage collection works with.
pub(super) struct Collection {
    meta: Arc<Meta>,
    segments: Arc<Segments>,
    index: Arc<Index>,
    unsealed: Arc<Unsealed>,
    gauges: Arc<Gauges>,
    noticed: Arc<Noticed>,
}

impl Collection {
    pub(super) fn new(
        meta: &Arc<Meta>,
        segments: &Arc<Segments>,
        index: &Arc<Index>,
        unsealed: &Arc<Unsealed>,
        (gauges, noticed): (&Arc<Gauges>, &Arc<Noticed>),
    ) -> Self {
        Collection {
            meta: meta.clone(),
            segments: segments.clone(),
            index: index.clone(),
            unsealed: unsealed.clone(),
            gauges: gauges.clone(),
            noticed: noticed.clone(),
        }
    }

    /// At most `max` index rows after a position, in order of their keys.
    pub(super) fn scan(
        &self,
        after: Option<IndexPosition>,
        max: usize,
    ) -> Result<Vec<Found>, StoreError> {
        let start = after.map(|(ns, digest)| {
            let mut key = index_key(ns, &digest).to_vec();
            key.push(0);
            key
        });
        let (mut found, mut failure) = (Vec::new(), None);
        self.meta.scan(Family::Index, &[], start.as_deref(), &mut |key, value| {
            match parse_index_key(key) {
                Some((ns, digest)) => {
                    let row = IndexRow::decode(value).unwrap_or(IndexRow::lost(0));
                    found.push(Found { ns, digest, row });
                }
                None => failure = Some(row_invalid(Family::Index, key, "not an index key")),
            }
            let is_done = failure.is_some() || found.len() >= max;
            if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        failure.map_or(Ok(found), Err)
    }

    /// Quarantines rows that are as they were seen; gives their number.
    pub(super) fn quarantine(&self, seen: &[Found], mark: Quarantine) -> Result<u64, StoreError> {
        let marked = |row: &IndexRow| Some(IndexRow { quarantined: Some(mark), ..*row });
        let changed = self.change(seen, Step::Quarantined, &mut |found, batch| {
            put_row(batch, found, marked(&found.row));
        })?;
        Ok(changed.len() as u64)
    }

    /// Takes rows that are as they were seen out of quarantine; gives their number.
    pub(super) fn release(&self, seen: &[Found]) -> Result<u64, StoreError> {
        let changed = self.change(seen, Step::Quarantined, &mut |found, batch| {
            put_row(batch, found, Some(IndexRow { quarantined: None, ..found.row }));
        })?;
        Ok(changed.len() as u64)
    }

    /// Removes quarantined rows that are as they were seen, and what `also` adds to the batch for
    /// each; gives those that went.
    pub(super) fn reap(
        &self,
        seen: &[Found],
        also: &mut dyn FnMut(&Found, &mut MetaBatch),
    ) -> Result<Vec<Found>, StoreError> {
        if seen.iter().any(|found| found.row.quarantined.is_none()) {
            return Err(StoreError::Invalid("only quarantined rows are reaped"));
        }
        self.change(seen, Step::Reaped, &mut |found, batch| {
            put_row(batch, found, None);
            also(found, batch);
        })
    }

    /// Points rows that are still at their old place to the copies; gives the moves that were made.
    /// Rows keep everything else, quarantine included.
    pub(super) fn move_rows(&self, moves: &[Move]) -> Result<Vec<Move>, StoreError> {
        let order = self.index.order();
        let keys: Vec<_> = moves.iter().map(|wish| (wish.ns, wish.digest)).collect();
        let (mut batch, mut made) = (MetaBatch::new(), Vec::new());
        for (wish, row) in moves.iter().zip(self.look_up(&keys)?) {
            let here = |row: &IndexRow| row.place == Place::Segment && row.slot == wish.from;
            let Some(row) = row.filter(here) else { continue };
            let found = Found { ns: wish.ns, digest: wish.digest, row };
            put_row(&mut batch, &found, Some(IndexRow { slot: wish.to, ..row }));
            made.push(*wish);
        }
        if !batch.is_empty() {
            self.meta.write_own(&batch, Step::Moved)?;
            self.unsealed.rows_changed();
        }
        drop(order);
        Ok(made)
    }

    /// Rows of a segment's table that the index still finds there, with their slots.
    pub(super) fn occupants(&self, segment: u32) -> Result<Vec<Found>, StoreError> {
        let table = self.rebuilder().table(segment)?;
        let mut found = Vec::new();
        let mut first = 0;
        for rows in table.chunks(LOOKUP_COUNT) {
            let keys: Vec<_> = rows.iter().map(|row| (row.ns, row.digest)).collect();
            for (at, (key, row)) in keys.iter().zip(self.look_up(&keys)?).enumerate() {
                let slot = SlotId { segment, slot: (first + at) as u32 };
                let here = |row: &IndexRow| row.place == Place::Segment && row.slot == slot;
                let (ns, digest) = *key;
                found.extend(row.filter(here).map(|row| Found { ns, digest, row }));
            }
            first += rows.len();
        }
        Ok(found)
    }

    /// The rows that say that a segment is being dropped, and that the records whose copies go with
    /// it are to be copied again. The caller has seen that nothing occupies it. What the index
    /// finds elsewhere must be there: a damaged row must not cost the envelope that it is about. So
    /// nothing is given while that is not so, or a row is known to be damaged.
    pub(super) fn dropping(
        &self,
        segment: u32,
    ) -> Result<Option<(SegmentRow, MetaBatch)>, StoreError> {
        let row = self.segment(segment)?;
        let mut batch = MetaBatch::new();
        if row.state == SegmentState::Live {
            if !self.is_elsewhere(segment)? {
                return Ok(None);
            }
            for (key, _) in self.rebuilder().records(segment)? {
                if self.meta.get(Family::Snapshots, &key)?.is_some() {
                    let again = [COUNTER_RECORDS_AGAIN, &key].concat();
                    batch.change_own(Family::Counters, again, Some(Vec::new()));
                }
            }
        }
        let dropping = SegmentRow { state: SegmentState::Dropping, ..row };
        let key = segment.to_be_bytes().to_vec();
        batch.change_own(Family::Segments, key, Some(dropping.encode()));
        Ok(Some((dropping, batch)))
    }

    /// Whether all that the index finds of a segment's envelopes is elsewhere, and there.
    fn is_elsewhere(&self, segment: u32) -> Result<bool, StoreError> {
        let table = self.rebuilder().table(segment)?;
        let mut elsewhere = Vec::new();
        for rows in table.chunks(LOOKUP_COUNT) {
            let keys: Vec<_> = rows.iter().map(|row| (row.ns, row.digest)).collect();
            let rows = keys.iter().zip(self.look_up(&keys)?);
            elsewhere.extend(rows.filter_map(|(key, row)| Some((*key, row?))));
        }
        // Place by place, so that each table is read once and one is in memory.
        elsewhere.sort_unstable_by_key(|(_, row)| row.slot);
        let (mut table, mut is_proven) = ((segment, table), true);
        for (key, row) in elsewhere {
            if row.damaged {
                // Its mark may be a flipped bit, and on nobody's list.
                self.noticed.note(key.0, key.1, row);
                is_proven = false;
                continue;
            }
            if self.is_at(key, &row, &mut table)? {
                continue;
            }
            // It may have been folded just now; under the lock nothing moves.
            let _order = self.index.order();
            let row = self.look_up(&[key])?.pop().flatten();
            let Some(row) = row else { continue };
            if !self.is_at(key, &row, &mut table)? {
                self.noticed.note(key.0, key.1, row);
                is_proven = false;
            }
        }
        Ok(is_proven)
    }

    /// Whether the envelope is where its row says; `table` is the one that was read last.
    fn is_at(
        &self,
        key: IndexPosition,
        row: &IndexRow,
        table: &mut (u32, Vec<TableRow>),
    ) -> Result<bool, StoreError> {
        let SlotId { segment, slot } = row.slot;
        let found = if row.place == Place::Inbox {
            let value = self.meta.get(Family::Inbox, &row.slot.key())?;
            value.and_then(|value| TableRow::decode(&mut value.as_slice()))
        } else {
            if table.0 != segment {
                // A table that cannot be read proves nothing.
                *table = (segment, self.rebuilder().table(segment).unwrap_or_default());
            }
            usize::try_from(slot).ok().and_then(|slot| table.1.get(slot).copied())
        };
        Ok(found.is_some_and(|found| (found.ns, found.digest) == key))
    }

    /// Deletes the file of a segment whose row says *dropping*; true once it is gone. A reader that
    /// has it open keeps it; then a later call finds it gone.
    pub(super) fn drop_file(&self, segment: u32) -> Result<bool, StoreError> {
        let row = self.segment(segment)?;
        if row.state != SegmentState::Dropping {
            return Err(StoreError::Invalid("only a segment that is being dropped is dropped"));
        }
        match self.segments.drop_segment(segment) {
            Ok(()) => Ok(!self.segments.has_file(row.file_number)),
            Err(StoreError::DropFailed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds to `batch` that a segment whose file is gone leaves the catalogue.
    pub(super) fn strike(&self, segment: u32, batch: &mut MetaBatch) -> Result<(), StoreError> {
        let row = self.segment(segment)?;
        if row.state != SegmentState::Dropping || self.segments.has_file(row.file_number) {
            return Err(StoreError::DropFailed { segment });
        }
        batch.change_own(Family::Segments, segment.to_be_bytes().to_vec(), None);
        self.gauges.dropped(&row);
        Ok(())
    }

    /// Adds a change to a batch for each row that is as it was seen, and writes it under the order
    /// lock; gives those rows.
    fn change(
        &self,
        seen: &[Found],
        step: Step,
        each: &mut dyn FnMut(&Found, &mut MetaBatch),
    ) -> Result<Vec<Found>, StoreError> {
        let order = self.index.order();
        let keys: Vec<_> = seen.iter().map(|found| (found.ns, found.digest)).collect();
        let (mut batch, mut changed) = (MetaBatch::new(), Vec::new());
        for (found, row) in seen.iter().zip(self.look_up(&keys)?) {
            if row == Some(found.row) {
                each(found, &mut batch);
                changed.push(*found);
            }
        }
        if !batch.is_empty() {
            self.meta.write_own(&batch, step)?;
            self.unsealed.rows_changed();
        }
        drop(order);
        Ok(changed)
    }

    fn look_up(&self, keys: &[IndexPosition]) -> Result<Vec<Option<IndexRow>>, StoreError> {
        let mut rows = Vec::with_capacity(keys.len());
        for same_namespace in keys.chunk_by(|one, other| one.0 == other.0) {
            let digests: Vec<_> = same_namespace.iter().map(|(_, digest)| *digest).collect();
            rows.extend(self.index.lookup(same_namespace[0].0, &digests)?);
        }
        Ok(rows)
    }

    fn segment(&self, segment: u32) -> Result<SegmentRow, StoreError> {
        let key = segment.to_be_bytes();
        let value = self.meta.get(Family::Segments, &key)?;
        let row = value.as_deref().and_then(SegmentRow::decode);
        row.ok_or_else(|| row_invalid(Family::Segments, &key, "not a catalogue row"))
    }

    fn rebuilder(&self) -> Rebuilder {
        Rebuilder { meta: self.meta.clone(), segments: self.segments.clone() }
    }
}

fn put_row(batch: &mut MetaBatch, found: &Found, row: Option<IndexRow>) {
    let key = index_key(found.ns, &found.digest).to_vec();
    batch.change_own(Family::Index, key, row.map(|row| row.encode()));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::super::{NewEnvelope, Store, StoreOptions};
    use super::*;
    use strongroom_protocol::record::Totals;

    const MARK: Quarantine = Quarantine { day: 5, generation: 1 };

    fn open(folder: &TempDir) -> Store {
        Store::open(folder.path(), StoreOptions::default()).unwrap().0
    }

    fn envelopes(seeds: std::ops::Range<u8>) -> Vec<NewEnvelope> {
        let envelope = |seed: u8| {
            let bytes = Bytes::from(vec![seed; 1000]);
            let digest = SealedDigest(*blake3::hash(&bytes).as_bytes());
            let totals = Totals { chunk_count: 1, sealed_bytes: 1000 };
            NewEnvelope { digest, level: 0, totals, bytes }
        };
        seeds.map(envelope).collect()
    }

    fn stored(store: &Store, batch: &[NewEnvelope]) -> Vec<Found> {
        store.append(1, batch.to_vec()).unwrap();
        store.seal().unwrap();
        found(store, batch)
    }

    fn found(store: &Store, batch: &[NewEnvelope]) -> Vec<Found> {
        let digests: Vec<_> = batch.iter().map(|new| new.digest).collect();
        let rows = store.lookup(1, &digests).unwrap().into_iter().zip(digests);
        rows.filter_map(|(row, digest)| Some(Found { ns: 1, digest, row: row? })).collect()
    }

    #[test]
    fn a_quarantined_envelope_is_stored_anew_by_stream_and_inbox() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        for (seed, inbox) in [(1, false), (2, true)] {
            let batch = envelopes(seed..seed + 1);
            let old = stored(&store, &batch);
            assert_eq!(store.quarantine(&old, MARK).unwrap(), 1);
            assert_eq!(found(&store, &batch)[0].row.quarantined, Some(MARK));
            let appended = match inbox {
                true => store.append_inbox(1, batch.clone()).unwrap(),
                false => store.append(1, batch.clone()).unwrap(),
            };
            assert!(!appended[0].duplicate, "stored again");
            store.seal().unwrap();
            let new = found(&store, &batch);
            assert!(new[0].row.is_usable() && new[0].row.slot != old[0].row.slot);
            // What was seen before does not undo it.
            let quarantined =
                Found { row: IndexRow { quarantined: Some(MARK), ..old[0].row }, ..old[0] };
            assert!(store.reap(&[quarantined], &mut |_, _| {}).unwrap().is_empty());
            assert_eq!(store.quarantine(&old, MARK).unwrap(), 0);
            assert_eq!(found(&store, &batch), new);
        }
    }

    #[test]
    fn an_envelope_that_the_inbox_superseded_gets_a_new_slot_once_quarantined() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        let batch = envelopes(3..4);
        store.append(1, batch.clone()).unwrap();
        store.append_inbox(1, batch.clone()).unwrap();
        store.fold_inbox().unwrap();
        let folded = found(&store, &batch);
        assert_eq!(store.quarantine(&folded, MARK).unwrap(), 1);
        assert!(!store.append(1, batch.clone()).unwrap()[0].duplicate);
        store.seal().unwrap();
        assert!(found(&store, &batch)[0].row.is_usable());
    }

    #[test]
    fn only_quarantined_rows_are_reaped() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        let batch = envelopes(1..4);
        let rows = stored(&store, &batch);
        assert!(store.reap(&rows, &mut |_, _| {}).is_err());
        store.quarantine(&rows[..2], MARK).unwrap();
        let quarantined = found(&store, &batch[..2]);
        assert_eq!(store.release(&quarantined[..1]).unwrap(), 1);
        let reaped = store.reap(&quarantined, &mut |_, _| {}).unwrap();
        assert_eq!(reaped, quarantined[1..]);
        assert_eq!(found(&store, &batch).len(), 2);
    }

    #[test]
    fn a_segment_is_evacuated_and_dropped_and_stays_away() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        let batch = envelopes(1..9);
        let rows = stored(&store, &batch);
        let segment = rows[0].row.slot.segment;
        store.quarantine(&rows[1..], MARK).unwrap();
        store.reap(&found(&store, &batch[1..]), &mut |_, _| {}).unwrap();
        assert_eq!(store.occupants(segment).unwrap(), rows[..1]);
        let moves = store.evacuate(vec![segment]).unwrap();
        assert_eq!(store.move_rows(&moves).unwrap(), moves);
        assert!(store.occupants(segment).unwrap().is_empty());
        let (row, batch_of_rows) = store.dropping(segment).unwrap().unwrap();
        assert!(store.drop_file(segment).is_err(), "its row does not say so yet");
        store.write(&batch_of_rows).unwrap();
        assert_eq!(row.state, SegmentState::Dropping);
        store.sync().unwrap();
        // A crash here: it opens, and the drop is finished.
        drop(store);
        let store = open(&folder);
        assert!(store.drop_file(segment).unwrap());
        let mut strike = MetaBatch::new();
        store.strike(segment, &mut strike).unwrap();
        store.write(&strike).unwrap();
        assert_eq!(store.catalogue().unwrap().len(), 1);
        assert_eq!(store.statistics().segment_count, 1);
        let mut read = 0;
        let mut each = |_: usize, bytes: &[u8]| {
            assert!(bytes == batch[0].bytes);
            read += 1;
            Ok(())
        };
        store.read(1, &[batch[0].digest], &mut each).unwrap();
        assert_eq!(read, 1);
        drop(store);
        assert_eq!(found(&open(&folder), &batch).len(), 1);
    }

    #[test]
    fn a_segment_is_not_dropped_for_a_row_that_points_to_nowhere() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        let one = stored(&store, &envelopes(1..2))[0];
        let other = stored(&store, &envelopes(2..3))[0];
        let from = one.row.slot;
        // Nothing there, another's place, a place that is not.
        let nowhere = SlotId { segment: 999, slot: 0 };
        for to in [SlotId { slot: 7, ..from }, other.row.slot, nowhere] {
            let there = Move { ns: 1, digest: one.digest, from, to };
            assert_eq!(store.move_rows(&[there]).unwrap(), [there]);
            assert!(store.occupants(from.segment).unwrap().is_empty());
            assert!(store.dropping(from.segment).unwrap().is_none(), "{to:?}");
            let back = Move { from: to, to: from, ..there };
            assert_eq!(store.move_rows(&[back]).unwrap(), [back]);
        }
        // In the inbox, and rightly so.
        store.quarantine(&[one], MARK).unwrap();
        store.append_inbox(1, envelopes(1..2)).unwrap();
        assert!(store.dropping(from.segment).unwrap().is_some());
    }

    #[test]
    fn a_damaged_envelope_is_not_evacuated() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        let mut batch = envelopes(1..3);
        batch[0].digest = SealedDigest([9; 32]);
        let rows = stored(&store, &batch);
        let segment = rows[0].row.slot.segment;
        assert!(matches!(store.evacuate(vec![segment]), Err(StoreError::Damaged(_))));
        assert_eq!(store.catalogue().unwrap().len(), 1);
        assert_eq!(found(&store, &batch), rows);
        assert!(std::fs::read_dir(folder.path().join("staging")).unwrap().next().is_none());
    }
}
