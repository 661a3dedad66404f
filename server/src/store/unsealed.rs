//! What is known of envelopes that the index does not list yet.
//!
//! One map holds every envelope of the open segment and of segments on their way through the
//! sealer. It is what makes "have" true for them, and what lets two threads append the same new
//! envelope at once without storing it twice: a slot is *reserved* here, under one lock, before its
//! bytes are written. A reservation rests on a look at the index; the *generation* changes whenever
//! index rows appear, are quarantined or go, so a reservation that rests on an older look is
//! refused and made again.
//!
//! A small session does not wait for a large one: it stores an envelope in the inbox even if the
//! map has it, and the map's row is then *superseded*: the sealer leaves it out of the index, and
//! its slot in the segment is dead from birth. If the inbox' copy is quarantined later, the next
//! who appends the envelope gets a new slot, and the map's row names that one.
//!
//! Segments are counted as they are handed to the sealer and as it is done with them. Nothing here
//! survives the process, and nothing here needs to: no acknowledged commit rests on it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Totals;

use super::error::StoreError;
use super::poison::Poison;
use super::schema::{IndexRow, Place, SlotId};
use super::table::TableRow;

/// How long a waiter sleeps before it looks for poison, which wakes nobody.
const POISON_POLL: Duration = Duration::from_millis(100);

/// An envelope that somebody wants to append, and where the index has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) row: TableRow,
    pub(super) indexed: Option<SlotId>,
}

/// Where an appended envelope lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its place.
    pub slot: SlotId,
    /// True if it was there before, and nothing was written.
    pub duplicate: bool,
}

/// Answer to a wish for slots.
pub(super) enum Reservation {
    /// Outcomes for the first of the wanted envelopes: all of them, or as many as there was room
    /// for.
    Made(Vec<Appended>),
    /// Index rows appeared since the look that the wish rests on.
    Stale,
}

/// Free slots and bytes of the open segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) first: SlotId,
    pub(super) slots: u32,
    pub(super) bytes: u64,
}

/// Envelopes on their way into the index.
#[derive(Default)]
pub(super) struct Unsealed {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    rows: HashMap<(u32, SealedDigest), UnsealedRow>,
    /// What the inbox is writing at this moment.
    inbox: HashSet<(u32, SealedDigest)>,
    generation: u64,
    handed_over: u64,
    done: u64,
    bytes: u64,
}

struct UnsealedRow {
    slot: SlotId,
    length: u32,
    level: u8,
    totals: Totals,
    superseded: bool,
}

impl Unsealed {
    /// Changes whenever index rows appear, are quarantined or go.
    pub(super) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Rows of `digests` that are not in the index yet.
    pub(super) fn lookup(&self, ns: u32, digests: &[SealedDigest]) -> Vec<Option<IndexRow>> {
        let state = self.state.lock();
        let row = |digest: &SealedDigest| {
            let row = state.rows.get(&(ns, *digest)).filter(|row| !row.superseded)?;
            Some(IndexRow {
                slot: row.slot,
                place: Place::Unsealed,
                length: row.length,
                level: row.level,
                totals: row.totals,
                durable: false,
                quarantined: None,
                damaged: false,
            })
        };
        digests.iter().map(row).collect()
    }

    /// Reserves slots for those of `wanted` that are nowhere yet. `seen` is the generation before
    /// the look at the index that `wanted` rests on.
    pub(super) fn reserve(
        &self,
        seen: u64,
        wanted: &[Wanted],
        room: Room,
        poison: &Poison,
    ) -> Result<Reservation, StoreError> {
        let mut state = self.state.lock();
        let mut made = Vec::with_capacity(wanted.len());
        let (mut slots, mut bytes) = (0, 0);
        if state.generation != seen {
            return Ok(Reservation::Stale);
        }
        for Wanted { row, indexed } in wanted {
            let key = (row.ns, row.digest);
            if let Some(slot) = indexed {
                made.push(Appended { slot: *slot, duplicate: true });
            } else if let Some(known) = state.rows.get(&key).filter(|known| !known.superseded) {
                made.push(Appended { slot: known.slot, duplicate: true });
            } else if state.inbox.contains(&key) {
                if made.is_empty() {
                    self.wait(&mut state, poison)?;
                    return Ok(Reservation::Stale);
                }
                break;
            } else if slots == room.slots || bytes >= room.bytes {
                break;
            } else {
                let slot = SlotId { slot: room.first.slot + slots, ..room.first };
                state.rows.insert(key, UnsealedRow::new(slot, row));
                made.push(Appended { slot, duplicate: false });
                slots += 1;
                bytes += u64::from(row.length);
            }
        }
        state.bytes += bytes;
        Ok(Reservation::Made(made))
    }

    /// Says what the inbox is about to write. The caller holds the order lock of the index.
    pub(super) fn begin_inbox(&self, rows: &[TableRow]) {
        self.state.lock().inbox.extend(rows.iter().map(|row| (row.ns, row.digest)));
    }

    /// Says that the inbox has written what it began; unsealed copies of it are superseded.
    pub(super) fn end_inbox(&self) {
        let mut state = self.state.lock();
        let written = std::mem::take(&mut state.inbox);
        for key in &written {
            if let Some(row) = state.rows.get_mut(key) {
                row.superseded = true;
            }
        }
        state.generation += 1;
        self.changed.notify_all();
    }

    /// Which of a segment's `rows` the sealer should list in the index. The caller holds its order
    /// lock.
    pub(super) fn listed(&self, segment: u32, rows: &[TableRow]) -> Vec<bool> {
        let state = self.state.lock();
        let listed = |row: &TableRow| {
            let known = state.rows.get(&(row.ns, row.digest));
            known.is_some_and(|known| known.slot.segment == segment && !known.superseded)
        };
        rows.iter().map(listed).collect()
    }

    /// Says that index rows were quarantined or are gone: who found them must look again.
    pub(super) fn rows_changed(&self) {
        self.state.lock().generation += 1;
    }

    /// Counts a segment that was handed to the sealer.
    pub(super) fn hand_over(&self) {
        self.state.lock().handed_over += 1;
    }

    /// Number of segments handed to the sealer so far.
    pub(super) fn handed_over(&self) -> u64 {
        self.state.lock().handed_over
    }

    /// The index has the rows of one more segment.
    pub(super) fn done(&self, segment: u32, rows: &[TableRow], bytes: u64) {
        let mut state = self.state.lock();
        for row in rows {
            // A superseded row may have given way to one of a later segment.
            let key = (row.ns, row.digest);
            if state.rows.get(&key).is_some_and(|known| known.slot.segment == segment) {
                state.rows.remove(&key);
            }
        }
        state.bytes = state.bytes.saturating_sub(bytes);
        state.generation += 1;
        state.done += 1;
        self.changed.notify_all();
    }

    /// Waits until the sealer has fewer than `limit` segments.
    pub(super) fn wait_for_sealer(&self, limit: u64, poison: &Poison) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        while state.handed_over - state.done >= limit {
            self.wait(&mut state, poison)?;
        }
        Ok(())
    }

    /// Waits until `target` segments are done: true. Or until the sealer has nothing to do although
    /// the target was not handed over yet: false, and the caller should hand it over.
    pub(super) fn wait_until_done(&self, target: u64, poison: &Poison) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        loop {
            if state.done >= target {
                return Ok(true);
            }
            if state.handed_over < target && state.handed_over == state.done {
                return Ok(false);
            }
            self.wait(&mut state, poison)?;
        }
    }

    /// Bytes of envelopes in unsealed segments.
    pub(super) fn bytes(&self) -> u64 {
        self.state.lock().bytes
    }

    fn wait(&self, state: &mut MutexGuard<'_, State>, poison: &Poison) -> Result<(), StoreError> {
        poison.check()?;
        self.changed.wait_for(state, POISON_POLL);
        poison.check()
    }
}

impl UnsealedRow {
    fn new(slot: SlotId, row: &TableRow) -> Self {
        let TableRow { length, level, totals, .. } = *row;
        UnsealedRow { slot, length, level, totals, superseded: false }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::observer::Unobserved;
    use super::*;

    fn wanted(seed: u8) -> Wanted {
        let totals = Totals::of_chunk(10);
        let digest = SealedDigest([seed; 32]);
        Wanted { row: TableRow { ns: 1, level: 0, length: 10, digest, totals }, indexed: None }
    }

    fn room(slots: u32) -> Room {
        Room { first: SlotId { segment: 5, slot: 0 }, slots, bytes: 1000 }
    }

    fn poison() -> Poison {
        Poison::new(Arc::new(Unobserved))
    }

    #[test]
    fn the_first_reservation_wins() {
        let unsealed = Unsealed::default();
        for duplicate in [false, true] {
            let made = unsealed.reserve(0, &[wanted(1)], room(9), &poison());
            let Ok(Reservation::Made(made)) = made else { panic!("no reservation") };
            assert_eq!(made, [Appended { slot: SlotId { segment: 5, slot: 0 }, duplicate }]);
        }
    }

    #[test]
    fn a_reservation_stops_where_the_room_ends() {
        let wishes = [wanted(1), wanted(2), wanted(3)];
        let made = Unsealed::default().reserve(0, &wishes, room(2), &poison());
        let Ok(Reservation::Made(made)) = made else { panic!("no reservation") };
        assert_eq!(made.len(), 2);
    }

    #[test]
    fn an_older_look_at_the_index_is_refused() {
        let unsealed = Unsealed::default();
        unsealed.begin_inbox(&[wanted(1).row]);
        unsealed.end_inbox();
        let made = unsealed.reserve(0, &[wanted(1)], room(9), &poison());
        assert!(matches!(made, Ok(Reservation::Stale)));
        assert_eq!(unsealed.generation(), 1);
    }

    #[test]
    fn rows_that_the_inbox_wrote_are_superseded() {
        let unsealed = Unsealed::default();
        let row = wanted(1).row;
        assert!(unsealed.reserve(0, &[wanted(1)], room(9), &poison()).is_ok());
        assert_eq!(unsealed.listed(5, &[row]), [true]);
        unsealed.begin_inbox(&[row]);
        assert!(unsealed.lookup(1, &[row.digest])[0].is_some());
        unsealed.end_inbox();
        assert_eq!(unsealed.listed(5, &[row]), [false]);
        assert!(unsealed.lookup(1, &[row.digest])[0].is_none());
    }
}
