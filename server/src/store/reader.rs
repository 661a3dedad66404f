//! Finding and reading envelopes.
//!
//! A stream lies on disk in stream order, so envelopes asked for in stream order are mostly
//! neighbours: a run of them is read with one iterator that reads ahead, which is several times as
//! fast as one lookup each. Each envelope is hashed before it is given out: what has not its digest
//! is damage, whatever the engine's checksums say. Whoever meets damage notes the row
//! (`damage.rs`). An envelope may move between lookup and read (a fold, later an evacuation): then
//! its slot is empty, and it is looked up again. If the index insists on an empty slot, it is
//! damage.

use std::sync::Arc;

use strongroom_protocol::id::SealedDigest;

use super::appender::Appender;
use super::engine;
use super::error::StoreError;
use super::inbox::Inbox;
use super::index::Index;
use super::noticed::{Noticed, is_whole};
use super::schema::{IndexRow, Place, slot_key};
use super::segments::Segments;
use super::unsealed::Unsealed;

/// Receives envelopes: position among the digests asked for, and the bytes.
pub type EachEnvelope<'a> = dyn FnMut(usize, &[u8]) -> Result<(), StoreError> + 'a;

/// Slots that a run may skip: reading over a few is cheaper than a new seek.
const GAP_MAX_SLOTS: u32 = 8;
/// Lookups of one envelope before an empty slot counts as damage.
const LOOKUPS_MAX: u32 = 3;

/// The reading half of a store.
pub(super) struct Reader {
    pub(super) index: Arc<Index>,
    pub(super) unsealed: Arc<Unsealed>,
    pub(super) segments: Arc<Segments>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) appender: Arc<Appender>,
    pub(super) noticed: Arc<Noticed>,
}

/// Consecutive wishes whose slots follow each other.
struct Run<'a> {
    ns: u32,
    first_position: usize,
    digests: &'a [SealedDigest],
    rows: &'a [IndexRow],
}

impl Reader {
    /// Rows of `digests`, in their order. The map is asked before the index: see `index.rs`.
    pub(super) fn lookup(
        &self,
        ns: u32,
        digests: &[SealedDigest],
    ) -> Result<Vec<Option<IndexRow>>, StoreError> {
        let mut rows = self.unsealed.lookup(ns, digests);
        let missing: Vec<_> =
            (0..digests.len()).filter(|position| rows[*position].is_none()).collect();
        if missing.len() == digests.len() {
            return self.index.lookup(ns, digests);
        }
        let wanted: Vec<_> = missing.iter().map(|position| digests[*position]).collect();
        for (position, row) in missing.into_iter().zip(self.index.lookup(ns, &wanted)?) {
            rows[position] = row;
        }
        Ok(rows)
    }

    /// Gives the envelopes of `digests` to `each`, in their order.
    pub(super) fn read(
        &self,
        ns: u32,
        digests: &[SealedDigest],
        each: &mut EachEnvelope<'_>,
    ) -> Result<(), StoreError> {
        let rows = self.locate(ns, digests)?;
        let mut first = 0;
        for rows in rows.chunk_by(follows) {
            let digests = &digests[first..first + rows.len()];
            let run = Run { ns, first_position: first, digests, rows };
            first += rows.len();
            if rows.len() == 1 {
                self.read_one(&run, 0, each)?;
            } else {
                self.read_run(&run, each)?;
            }
        }
        Ok(())
    }

    /// Rows of sealed envelopes; seals first if need be.
    fn locate(&self, ns: u32, digests: &[SealedDigest]) -> Result<Vec<IndexRow>, StoreError> {
        let mut found = self.lookup(ns, digests)?;
        if found.iter().flatten().any(|row| row.place == Place::Unsealed) {
            self.appender.seal()?;
            found = self.lookup(ns, digests)?;
        }
        let mut rows = Vec::with_capacity(digests.len());
        for (row, digest) in found.into_iter().zip(digests) {
            let row = row.ok_or(StoreError::NotFound(*digest))?;
            if row.damaged {
                self.noticed.note(ns, *digest, row);
                return Err(StoreError::Damaged(*digest));
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Reads a run with one iterator. What the iterator can't give is read by its own key, which
    /// tells damage of one envelope from damage of its neighbours.
    fn read_run(&self, run: &Run<'_>, each: &mut EachEnvelope<'_>) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (run.rows.first(), run.rows.last()) else { return Ok(()) };
        let bytes = run.rows.iter().map(|row| u64::from(row.length)).sum();
        let end = slot_key(last.slot.segment, last.slot.slot.saturating_add(1));
        let mut slots = self.segments.iterate(engine::run_read_options(bytes, &end));
        slots.seek(first.slot.key());
        for (offset, row) in run.rows.iter().enumerate() {
            let key = row.slot.key();
            while slots.key().is_some_and(|found| found < key.as_slice()) {
                slots.next();
            }
            match slots.item() {
                Some((found, envelope))
                    if found == key && is_whole(row.length, &run.digests[offset], envelope) =>
                {
                    each(run.first_position + offset, envelope)?;
                }
                _ => {
                    self.read_one(run, offset, each)?;
                    if let (false, Some(next)) = (slots.valid(), run.rows.get(offset + 1)) {
                        slots.seek(next.slot.key());
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads one envelope of a run by its key.
    fn read_one(
        &self,
        run: &Run<'_>,
        offset: usize,
        each: &mut EachEnvelope<'_>,
    ) -> Result<(), StoreError> {
        let (mut row, digest) = (run.rows[offset], run.digests[offset]);
        let position = run.first_position + offset;
        for _ in 0..LOOKUPS_MAX {
            let read = match row.place {
                Place::Inbox => self.inbox.get(row.slot),
                _ => match self.segments.get(row.slot) {
                    Ok(Some(envelope)) if is_whole(row.length, &digest, &envelope) => {
                        return each(position, &envelope);
                    }
                    Ok(envelope) => Ok(envelope.map(|envelope| envelope.to_vec())),
                    Err(error) => Err(StoreError::engine("read segment", &error)),
                },
            };
            match read {
                Ok(Some(envelope)) if is_whole(row.length, &digest, &envelope) => {
                    return each(position, &envelope);
                }
                Ok(None) => {}
                Err(error) if !error.is_damage() => return Err(error),
                Ok(Some(_)) | Err(_) => break,
            }
            row = self.locate(run.ns, &[digest])?.pop().ok_or(StoreError::NotFound(digest))?;
        }
        self.noticed.note(run.ns, digest, row);
        Err(StoreError::Damaged(digest))
    }
}

/// True if `next` belongs to the same run as `row`.
fn follows(row: &IndexRow, next: &IndexRow) -> bool {
    let in_segment = row.place == Place::Segment && next.place == Place::Segment;
    let gap = next.slot.slot.checked_sub(row.slot.slot);
    in_segment
        && row.slot.segment == next.slot.segment
        && gap.is_some_and(|gap| (1..=GAP_MAX_SLOTS).contains(&gap))
}
