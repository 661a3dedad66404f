//! Copies of snapshot records for the next segment.
//!
//! Each sealed segment carries the rows of `snapshots` that were written since the last one, so
//! that records can be read back from `chunks/` alone. How far a namespace got stands in a counter
//! that is written in the same batch as the catalogue row: a crash before that batch orphans
//! the segment with its copies, and the next segment carries them again. What one segment takes is
//! bounded; the rest follows with the next one. A copy may be of a record that is not synced yet;
//! the catalogue row comes after it in the log, so if that survives, the record does too.
//!
//! When a segment is to be dropped, the records whose copies go with it are listed to be copied
//! *again*, in the batch that says so; the segment that carries them strikes them off the list.

use std::ops::ControlFlow;

use super::error::StoreError;
use super::meta::{Meta, MetaBatch};
use super::schema::{COUNTER_RECORDS_AGAIN, Family, records_copied_key, row_invalid, take};

/// Most bytes of records that one segment carries.
const COPIES_MAX_BYTES: usize = 16 << 20;
/// Most copies that one segment makes again.
const COPIES_AGAIN_MAX: usize = 16_384;

/// Rows of `snapshots` to be carried, and the counters that say so.
#[derive(Default)]
pub(super) struct RecordCopies {
    /// Key and value of each row.
    pub(super) rows: Vec<(Vec<u8>, Vec<u8>)>,
    counters: Vec<(u32, u64)>,
    /// Keys of the list of copies to be made again that this segment settles.
    settled: Vec<Vec<u8>>,
}

impl RecordCopies {
    /// Rows that no catalogued segment carries, up to the bound.
    pub(super) fn collect(meta: &Meta) -> Result<RecordCopies, StoreError> {
        let mut copies = RecordCopies::default();
        let mut bytes = copies.collect_again(meta)?;
        let mut next = Some(0);
        while let Some(ns) = next_namespace(meta, next)? {
            let prefix = ns.to_be_bytes();
            let start = match copied(meta, ns)? {
                Some(last) => record_key(ns, last.saturating_add(1)),
                None => record_key(ns, 0),
            };
            let mut last = None;
            meta.scan(Family::Snapshots, &prefix, Some(&start), &mut |key, value| {
                if bytes >= COPIES_MAX_BYTES {
                    return ControlFlow::Break(());
                }
                let Some((_, number)) = parse_record_key(key) else {
                    return ControlFlow::Continue(()); // not a record
                };
                bytes += key.len() + value.len();
                last = Some(number);
                copies.rows.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })?;
            copies.counters.extend(last.map(|number| (ns, number)));
            if bytes >= COPIES_MAX_BYTES {
                break;
            }
            next = ns.checked_add(1);
        }
        Ok(copies)
    }

    /// Rows that are to be copied again, up to the bound; gives their bytes.
    fn collect_again(&mut self, meta: &Meta) -> Result<usize, StoreError> {
        meta.scan(Family::Counters, COUNTER_RECORDS_AGAIN, None, &mut |key, _| {
            self.settled.push(key.to_vec());
            let is_full = self.settled.len() >= COPIES_AGAIN_MAX;
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let (mut bytes, mut looked_at) = (0, 0);
        for key in &self.settled {
            if bytes >= COPIES_MAX_BYTES {
                break;
            }
            looked_at += 1;
            let record = &key[COUNTER_RECORDS_AGAIN.len()..];
            // A record that is gone by now needs no copy.
            if let Some(value) = meta.get(Family::Snapshots, record)? {
                bytes += record.len() + value.len();
                self.rows.push((record.to_vec(), value));
            }
        }
        self.settled.truncate(looked_at);
        Ok(bytes)
    }

    /// Adds the counters to the batch that catalogues the segment.
    pub(super) fn count_into(&self, batch: &mut MetaBatch) {
        for (ns, number) in &self.counters {
            batch.put(Family::Counters, records_copied_key(*ns), number.to_le_bytes());
        }
        for key in &self.settled {
            batch.delete(Family::Counters, key.as_slice());
        }
    }
}

/// First namespace at or after `from` that has rows.
fn next_namespace(meta: &Meta, from: Option<u32>) -> Result<Option<u32>, StoreError> {
    let Some(from) = from else { return Ok(None) };
    let mut found = None;
    meta.scan(Family::Snapshots, &[], Some(&from.to_be_bytes()), &mut |key, _| {
        found = key.first_chunk::<4>().map(|ns| u32::from_be_bytes(*ns));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Last commit number of `ns` that a catalogued segment carries.
fn copied(meta: &Meta, ns: u32) -> Result<Option<u64>, StoreError> {
    let key = records_copied_key(ns);
    let Some(value) = meta.get(Family::Counters, &key)? else { return Ok(None) };
    let number = <[u8; 8]>::try_from(value.as_slice())
        .map_err(|_| row_invalid(Family::Counters, &key, "not a number of eight bytes"))?;
    Ok(Some(u64::from_le_bytes(number)))
}

fn record_key(ns: u32, number: u64) -> Vec<u8> {
    [&ns.to_be_bytes()[..], &number.to_be_bytes()[..]].concat()
}

fn parse_record_key(key: &[u8]) -> Option<(u32, u64)> {
    let mut input = key;
    let ns = u32::from_be_bytes(take(&mut input)?);
    let number = u64::from_be_bytes(take(&mut input)?);
    input.is_empty().then_some((ns, number))
}
