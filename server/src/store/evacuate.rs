//! Copying what lives in half-empty segments to a new one.
//!
//! On the sealer thread, because ingestion has one caller: read each envelope that the index still
//! finds in the old segments, compute its digest again, append it to a new segment, publish that,
//! catalogue it. *Crash before the catalogue row: an orphan. After it: a segment that nothing
//! refers to, which the next cycle drops.* Index rows are not touched here: the caller switches
//! them ([`super::Store::move_rows`]), and drops the old segments when nothing is left in them.
//!
//! An envelope that does not have its digest any more ends the evacuation and nothing is written:
//! a bad copy must not take the place of a bad original that somebody may still repair.

use super::collect::{Collection, Found, Move};
use super::engine;
use super::error::StoreError;
use super::meta::MetaBatch;
use super::noticed::is_whole;
use super::observer::Step;
use super::records::RecordCopies;
use super::schema::{Family, SegmentRow, SlotId, slot_key};
use super::sealer::Sealer;
use super::segments::SegmentWriter;
use super::table::TableRow;

impl Sealer {
    /// Copies what lives in `segments` to a new one; gives where each copy is.
    pub(super) fn evacuate(&self, segments: &[u32]) -> Result<Vec<Move>, StoreError> {
        self.poison.check()?;
        let mut target = self.segments.create(self.class_of(segments)?)?;
        let moves = match self.copy_into(&mut target, segments) {
            Ok(moves) if !moves.is_empty() => moves,
            other => {
                target.abandon();
                return other;
            }
        };
        let copies = self.poison.guard(RecordCopies::collect(&self.meta))?;
        let catalogued = self.segments.publish(&mut target, &copies)?;
        // Crash here: an orphan.
        let mut batch = MetaBatch::new();
        self.catalogue(&mut batch, target.number(), &catalogued, &copies);
        self.meta.write_own(&batch, Step::Evacuated)?;
        self.gauges.sealed(&catalogued);
        Ok(moves)
    }

    /// The class that all of `segments` have, or 0.
    fn class_of(&self, segments: &[u32]) -> Result<u8, StoreError> {
        let mut classes = Vec::with_capacity(segments.len());
        for segment in segments {
            let key = segment.to_be_bytes();
            let row = self.meta.get(Family::Segments, &key)?;
            classes
                .push(row.and_then(|row| SegmentRow::decode(&row)).map(|row| row.retention_class));
        }
        classes.dedup();
        Ok(if let [Some(class)] = classes.as_slice() { *class } else { 0 })
    }

    fn copy_into(
        &self,
        target: &mut SegmentWriter,
        segments: &[u32],
    ) -> Result<Vec<Move>, StoreError> {
        let Sealer { meta, segments: files, index, unsealed, gauges, noticed, .. } = self;
        let collection = Collection::new(meta, files, index, unsealed, (gauges, noticed));
        let mut moves = Vec::new();
        for segment in segments {
            let occupants = collection.occupants(*segment)?;
            self.copy_segment(target, *segment, &occupants, &mut moves)?;
        }
        Ok(moves)
    }

    /// Copies the occupants of one segment, which are in the order of their slots.
    fn copy_segment(
        &self,
        target: &mut SegmentWriter,
        segment: u32,
        occupants: &[Found],
        moves: &mut Vec<Move>,
    ) -> Result<(), StoreError> {
        let bytes = occupants.iter().map(|found| found.row.bytes()).sum();
        let end = slot_key(segment, u32::MAX);
        let mut slots = self.segments.iterate(engine::run_read_options(bytes, &end));
        let mut is_placed = false;
        for found in occupants {
            let Found { ns, digest, row } = found;
            let key = row.slot.key();
            if !is_placed {
                slots.seek(key);
            }
            while slots.key().is_some_and(|found| found < key.as_slice()) {
                slots.next();
            }
            let is_it = |found: &[u8], envelope: &[u8]| {
                found == key && is_whole(row.length, digest, envelope)
            };
            let item = slots.item().filter(|(found, envelope)| is_it(found, envelope));
            is_placed = item.is_some();
            // A damaged block on the way ends the iteration, and says nothing of what comes after.
            let alone = match item {
                Some(_) => None,
                None => self.segments.get(row.slot).ok().flatten(),
            };
            let alone = alone.as_deref().filter(|envelope| is_it(&key, envelope));
            let Some(envelope) = item.map(|(_, envelope)| envelope).or(alone) else {
                self.noticed.note(*ns, *digest, *row);
                return Err(StoreError::Damaged(*digest));
            };
            let to = SlotId { segment: target.number(), slot: target.next_slot() };
            let (level, length, totals) = (row.level, row.length, row.totals);
            let copy = TableRow { ns: *ns, level, length, digest: *digest, totals };
            self.poison.guard(target.append(copy, envelope))?;
            moves.push(Move { ns: *ns, digest: *digest, from: row.slot, to });
        }
        Ok(())
    }
}
