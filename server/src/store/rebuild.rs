//! Reading back what segments say of themselves: tables and record copies.
//!
//! `meta/index` is an acceleration. The tables of all segments and the heads of the inbox rows give
//! it again, row for row, with one freedom: if two slots hold the same envelope (one of them dead
//! from birth, see `unsealed.rs`), any of them will do, because they hold the same bytes.

use std::ops::ControlFlow;
use std::sync::Arc;

use strongroom_protocol::id::SealedDigest;

use super::error::StoreError;
use super::meta::Meta;
use super::schema::{
    Family, IndexRow, Place, SegmentRow, SegmentState, SlotId, row_invalid, slot_key,
};
use super::segments::Segments;
use super::table::{TableRow, decode_record, decode_table};

/// Receives an index row: namespace, content address, row.
pub type EachIndexRow<'a> = dyn FnMut(u32, SealedDigest, IndexRow) -> Result<(), StoreError> + 'a;

/// Key and value of a row of `snapshots`.
pub type RecordCopy = (Vec<u8>, Vec<u8>);

/// Reads segments without the index.
pub(super) struct Rebuilder {
    pub(super) meta: Arc<Meta>,
    pub(super) segments: Arc<Segments>,
}

impl Rebuilder {
    /// Catalogue rows in the order of their numbers.
    pub(super) fn catalogue(&self) -> Result<Vec<(u32, SegmentRow)>, StoreError> {
        read_catalogue(&self.meta)
    }

    /// What the segment's own table says of its envelopes, in slot order.
    pub(super) fn table(&self, segment: u32) -> Result<Vec<TableRow>, StoreError> {
        Ok(self.table_and_record_count(segment)?.0)
    }

    /// The copies of records that a segment carries.
    pub(super) fn records(&self, segment: u32) -> Result<Vec<RecordCopy>, StoreError> {
        let (rows, record_count) = self.table_and_record_count(segment)?;
        let first = rows.len() as u32;
        let mut records = Vec::new();
        for slot in first..first.saturating_add(record_count) {
            let value = self.slot(SlotId { segment, slot })?;
            let (key, record) =
                decode_record(&value).ok_or(StoreError::Invalid("slot holds no record copy"))?;
            records.push((key.to_vec(), record.to_vec()));
        }
        Ok(records)
    }

    /// Gives every index row that tables and inbox imply.
    pub(super) fn index_rows(&self, each: &mut EachIndexRow<'_>) -> Result<(), StoreError> {
        for (segment, row) in self.catalogue()? {
            if row.state == SegmentState::Dropping {
                continue; // no index row points into it, and its file may be gone
            }
            for (slot, row) in self.table(segment)?.iter().enumerate() {
                let slot = SlotId { segment, slot: slot as u32 };
                each(row.ns, row.digest, row.indexed(slot, Place::Segment))?;
            }
        }
        let mut result = Ok(());
        self.meta.scan(Family::Inbox, &[], None, &mut |key, value| {
            let mut input = value;
            result = match (TableRow::decode(&mut input), SlotId::from_key(key)) {
                (Some(row), Some(slot)) => {
                    each(row.ns, row.digest, row.indexed(slot, Place::Inbox))
                }
                _ => Err(row_invalid(Family::Inbox, key, "not an inbox row")),
            };
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result
    }

    /// Table of a segment, checked against the digest in the catalogue.
    fn table_and_record_count(&self, segment: u32) -> Result<(Vec<TableRow>, u32), StoreError> {
        let key = segment.to_be_bytes();
        let value = self.meta.get(Family::Segments, &key)?;
        let row = value.as_deref().and_then(SegmentRow::decode);
        let row = row.ok_or_else(|| row_invalid(Family::Segments, &key, "not a catalogue row"))?;
        let slot = row.slot_count.saturating_sub(1);
        let table = self.slot(SlotId { segment, slot })?;
        if *blake3::hash(&table).as_bytes() != row.table_digest {
            return Err(damaged_table(segment));
        }
        decode_table(&table).ok_or(damaged_table(segment))
    }

    fn slot(&self, slot: SlotId) -> Result<Vec<u8>, StoreError> {
        let value =
            self.segments.get(slot).map_err(|error| StoreError::engine("read segment", &error))?;
        let value = value.ok_or(damaged_table(slot.segment))?;
        Ok(value.to_vec())
    }
}

/// Catalogue rows in the order of their numbers.
pub(super) fn read_catalogue(meta: &Meta) -> Result<Vec<(u32, SegmentRow)>, StoreError> {
    let mut rows = Vec::new();
    let mut result = Ok(());
    meta.scan(Family::Segments, &[], None, &mut |key, value| {
        let segment = <[u8; 4]>::try_from(key).map(u32::from_be_bytes);
        match (segment, SegmentRow::decode(value)) {
            (Ok(segment), Some(row)) => {
                rows.push((segment, row));
                ControlFlow::Continue(())
            }
            _ => {
                result = Err(row_invalid(Family::Segments, key, "not a catalogue row"));
                ControlFlow::Break(())
            }
        }
    })?;
    result.map(|()| rows)
}

fn damaged_table(segment: u32) -> StoreError {
    let key = slot_key(segment, u32::MAX);
    row_invalid(Family::Segments, &key, "the segment's own table is damaged")
}
