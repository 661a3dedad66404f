//! The table in a segment's last slot, the copies of records before it, and the head of an inbox
//! row: what makes the index rebuildable from the bytes alone.
//!
//! ```text
//! table        "SRTB" | u32 envelope count | u32 record count | envelope count x row
//! row          u32 ns | u8 level | u32 length | SealedDigest(32) | u64 chunks | u64 sealed bytes
//! record copy  "SRRC" | u32 key length | key in `snapshots` | value in `snapshots`
//! inbox row    row | envelope
//! ```
//!
//! All integers are little-endian. Slots 0 to `envelope count` - 1 hold the envelopes in the order
//! of the rows, then come the record copies, then the table. Its BLAKE3 digest stands in the
//! catalogue row of the segment, so a table can be trusted as much as the catalogue.

use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Totals;

use super::schema::{IndexRow, Place, SlotId, take};

const TABLE_MAGIC: [u8; 4] = *b"SRTB";
const RECORD_MAGIC: [u8; 4] = *b"SRRC";
/// Bytes of an encoded row.
pub(super) const ROW_BYTES: usize = 57;

/// What a table says of one envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRow {
    /// Namespace, as the number used in keys.
    pub ns: u32,
    /// Level in its tree; 0 is a chunk.
    pub level: u8,
    /// Length of the envelope in bytes.
    pub length: u32,
    /// Its content address.
    pub digest: SealedDigest,
    /// Totals of its subtree.
    pub totals: Totals,
}

impl TableRow {
    /// The index row of this envelope where it lies durably and whole.
    pub(super) fn indexed(&self, slot: SlotId, place: Place) -> IndexRow {
        let TableRow { length, level, totals, .. } = *self;
        IndexRow {
            slot,
            place,
            length,
            level,
            totals,
            durable: true,
            quarantined: None,
            damaged: false,
        }
    }

    pub(super) fn encode(&self) -> [u8; ROW_BYTES] {
        let mut bytes = [0; ROW_BYTES];
        bytes[..4].copy_from_slice(&self.ns.to_le_bytes());
        bytes[4] = self.level;
        bytes[5..9].copy_from_slice(&self.length.to_le_bytes());
        bytes[9..41].copy_from_slice(self.digest.as_bytes());
        bytes[41..49].copy_from_slice(&self.totals.chunk_count.to_le_bytes());
        bytes[49..].copy_from_slice(&self.totals.sealed_bytes.to_le_bytes());
        bytes
    }

    /// Takes a row from the front of `input`.
    pub(super) fn decode(input: &mut &[u8]) -> Option<TableRow> {
        let ns = u32::from_le_bytes(take(input)?);
        let [level] = take(input)?;
        let length = u32::from_le_bytes(take(input)?);
        let digest = SealedDigest(take(input)?);
        let chunk_count = u64::from_le_bytes(take(input)?);
        let sealed_bytes = u64::from_le_bytes(take(input)?);
        let totals = Totals { chunk_count, sealed_bytes };
        Some(TableRow { ns, level, length, digest, totals })
    }
}

/// Bytes of the table of a segment.
pub(super) fn encode_table(rows: &[TableRow], record_count: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12 + rows.len() * ROW_BYTES);
    bytes.extend_from_slice(&TABLE_MAGIC);
    bytes.extend_from_slice(&(rows.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&record_count.to_le_bytes());
    for row in rows {
        bytes.extend_from_slice(&row.encode());
    }
    bytes
}

/// The rows of a table and the number of record copies before it.
pub(super) fn decode_table(bytes: &[u8]) -> Option<(Vec<TableRow>, u32)> {
    let mut input = bytes;
    if take(&mut input)? != TABLE_MAGIC {
        return None;
    }
    let row_count = u32::from_le_bytes(take(&mut input)?);
    let record_count = u32::from_le_bytes(take(&mut input)?);
    if input.len() as u64 != u64::from(row_count) * ROW_BYTES as u64 {
        return None;
    }
    let rows = (0..row_count).map(|_| TableRow::decode(&mut input)).collect::<Option<_>>()?;
    Some((rows, record_count))
}

/// Bytes of a record copy.
pub(super) fn encode_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + key.len() + value.len());
    bytes.extend_from_slice(&RECORD_MAGIC);
    bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    bytes
}

/// Key and value of a record copy.
pub(super) fn decode_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut input = bytes;
    if take(&mut input)? != RECORD_MAGIC {
        return None;
    }
    let key_length = u32::from_le_bytes(take(&mut input)?);
    input.split_at_checked(key_length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: u8) -> TableRow {
        let totals = Totals { chunk_count: 2, sealed_bytes: u64::from(seed) };
        TableRow { ns: 1, level: seed, length: 5, digest: SealedDigest([seed; 32]), totals }
    }

    #[test]
    fn tables_survive_encoding_and_refuse_other_lengths() {
        let rows = vec![row(1), row(2)];
        let bytes = encode_table(&rows, 3);
        assert_eq!(decode_table(&bytes), Some((rows, 3)));
        assert_eq!(decode_table(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode_table(&[bytes.as_slice(), &[0]].concat()), None);
        assert_eq!(decode_table(&[&b"SRTC"[..], &bytes[4..]].concat()), None);
    }

    #[test]
    fn record_copies_survive_encoding() {
        let bytes = encode_record(b"key", b"value");
        assert_eq!(decode_record(&bytes), Some((&b"key"[..], &b"value"[..])));
        assert_eq!(decode_record(&bytes[..9]), None);
    }
}
