//! The first half of a pass: each segment against its own table, and the index against both.
//!
//! For a slot and the index row of its envelope:
//!
//! | the row | bytes whole | bytes not whole |
//! |---|---|---|
//! | is not there | reaped; nothing | nothing |
//! | names this slot, as the table says it | nothing | it becomes damaged |
//! | names this slot, otherwise | it becomes damaged, and is put right | it becomes damaged |
//! | is damaged, names this slot | it is put right | nothing |
//! | is damaged, names another place | the bytes are stored anew | nothing |
//! | names another place | nothing: a copy that nobody needs | nothing |
//!
//! Putting right changes the row in place or stores the envelope through the inbox; no row is ever
//! pointed to another segment that is there already, which is what dropping segments rests on.

use std::collections::BTreeMap;

use super::{READ_BYTES, Scrub};
use crate::error::ServerError;
use crate::store::collect::Found;
use crate::store::schema::{IndexRow, Place, SegmentRow, SegmentState, SlotId};
use crate::store::table::TableRow;

/// How many index rows were found at the place that they name, by segment.
pub(super) type Occupants = BTreeMap<u32, u64>;

impl Scrub<'_> {
    /// Hashes a segment.
    pub(super) fn segment(
        &mut self,
        segment: u32,
        catalogued: &SegmentRow,
    ) -> Result<(), ServerError> {
        let store = self.repository.store();
        let table = match store.segment_table(segment) {
            Ok(table) => table,
            Err(error) if error.is_damage() => {
                if self.is_live(segment)? {
                    let message = format!("{error}: only what the index finds there is hashed");
                    self.problem(&format!("table of segment {segment}"), &message)?;
                    self.occupants.insert(segment, 0);
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let is_counted = u64::try_from(table.len()) == Ok(u64::from(catalogued.envelope_count));
        if !is_counted || store.record_copies(segment).is_err() {
            if !self.is_live(segment)? {
                return Ok(());
            }
            let thing = format!("segment {segment}");
            self.problem(&thing, "count or copies of records are damaged")?;
        }
        let mut first = 0;
        while first < table.len() {
            let whole = store.check_slots(segment, &table, first, READ_BYTES)?;
            // A segment that goes takes its bytes along, but no row.
            if !self.is_live(segment)? {
                return Ok(());
            }
            let rows = table.get(first..first + whole.len()).unwrap_or_default();
            self.slots(SlotId { segment, slot: first as u32 }, rows, &whole)?;
            first += whole.len();
            self.pace.breathe()?;
        }
        Ok(())
    }

    /// Compares index rows with neighbouring slots, from `first` on.
    fn slots(
        &mut self,
        first: SlotId,
        table: &[TableRow],
        whole: &[bool],
    ) -> Result<(), ServerError> {
        let store = self.repository.store();
        let mut here = 0;
        for ((at, row), is_whole) in table.iter().enumerate().zip(whole) {
            let slot = SlotId { slot: first.slot + at as u32, ..first };
            self.count(u64::from(row.length));
            let indexed = store.indexed(row.ns, &[row.digest])?.pop().flatten();
            let Some(indexed) = indexed else { continue };
            let names_slot = indexed.place == Place::Segment && indexed.slot == slot;
            here += u64::from(names_slot);
            let is_right = *is_whole && says_the_same(&indexed, row);
            // What is marked and not on the list was marked by a flipped bit.
            if indexed.damaged || (names_slot && !is_right) {
                store.note_damage(Found { ns: row.ns, digest: row.digest, row: indexed });
            }
        }
        *self.occupants.entry(first.segment).or_default() += here;
        self.mark()?;
        for ((at, row), is_whole) in table.iter().enumerate().zip(whole) {
            let slot = SlotId { slot: first.slot + at as u32, ..first };
            if *is_whole && self.repository.damage().count_in(row.ns) > 0 {
                self.put_right(slot, row)?;
            }
        }
        Ok(())
    }

    /// The bytes in this slot are whole: a damaged row that they belong to is mended by them.
    fn put_right(&mut self, slot: SlotId, row: &TableRow) -> Result<(), ServerError> {
        let store = self.repository.store();
        let indexed = store.indexed(row.ns, &[row.digest])?.pop().flatten();
        let Some(indexed) = indexed.filter(|indexed| indexed.damaged) else { return Ok(()) };
        if indexed.place == Place::Segment && indexed.slot == slot {
            self.repository.found_whole(slot, row)?;
        } else if let Some(bytes) = store.slot_bytes(slot)? {
            self.repository.store_found(row, bytes)?;
        }
        Ok(())
    }

    /// Whether the segment is still there and not on its way out.
    fn is_live(&self, segment: u32) -> Result<bool, ServerError> {
        let row = self.repository.store().segment_row(segment)?;
        Ok(row.is_some_and(|row| row.state == SegmentState::Live))
    }
}

fn says_the_same(indexed: &IndexRow, row: &TableRow) -> bool {
    (indexed.level, indexed.length, indexed.totals) == (row.level, row.length, row.totals)
}
