//! Layout of the rows: families of `meta/`, keys, and the values that the store itself writes.
//!
//! Integers are big-endian in keys, so that keys sort as numbers, and little-endian in values. The
//! store owns the values of `index`, `inbox`, `segments` and `counters`; of all other families it
//! knows the name only. `snapshots` has keys `ns u32 || commit number u64`, because sealed segments
//! carry copies of those rows. `counters` holds:
//!
//! ```text
//! "schema_version"          u32   written once, synced, before anything else
//! "next_segment"            u32   smallest number that no segment or inbox run ever had
//! "records_copied" || ns    u64   last commit number whose record stands in a sealed segment
//! "records_again" || ns || commit u64   empty; a record whose copy went with a dropped segment
//! ```
//!
//! A **quarantined** index row is one that garbage collection found dead. Its bytes can still be
//! read, but nobody may build on it: who appends the same envelope stores it anew, and the row is
//! then overwritten.
//!
//! A **damaged** index row is one whose envelope cannot be read back as it was written. It stands
//! for a lack as well, and reading it says so without trying. A row that does not decode counts as
//! damaged and lies *nowhere* (segment 0, which no segment has).

use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Totals;

use super::error::StoreError;

/// Version of the layout described here and in `table.rs`.
pub(super) const SCHEMA_VERSION: u32 = 2;
/// Key of the schema version.
pub(super) const COUNTER_SCHEMA_VERSION: &[u8] = b"schema_version";
/// Key of the next segment number.
pub(super) const COUNTER_NEXT_SEGMENT: &[u8] = b"next_segment";
/// Start of the keys that tell how far records were copied into segments.
pub(super) const COUNTER_RECORDS_COPIED: &[u8] = b"records_copied";
/// Start of the keys that name records to be copied once more.
pub(super) const COUNTER_RECORDS_AGAIN: &[u8] = b"records_again";

/// A column family of `meta/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the documentation; docs/architecture.md lists the rows.
pub enum Family {
    Index,
    Inbox,
    Locks,
    Segments,
    Namespaces,
    Snapshots,
    Heads,
    Seen,
    Principals,
    Tokens,
    Policies,
    Descriptors,
    Holds,
    Approvals,
    Clock,
    Ledger,
    Counters,
    Primaries,
    Pending,
    Damage,
    Feeds,
}

impl Family {
    /// Every family, in the order in which they are created.
    pub const ALL: [Family; 21] = [
        Family::Index,
        Family::Inbox,
        Family::Locks,
        Family::Segments,
        Family::Namespaces,
        Family::Snapshots,
        Family::Heads,
        Family::Seen,
        Family::Principals,
        Family::Tokens,
        Family::Policies,
        Family::Descriptors,
        Family::Holds,
        Family::Approvals,
        Family::Clock,
        Family::Ledger,
        Family::Counters,
        Family::Primaries,
        Family::Pending,
        Family::Damage,
        Family::Feeds,
    ];

    /// Name of the family on disk.
    pub fn name(self) -> &'static str {
        match self {
            Family::Index => "index",
            Family::Inbox => "inbox",
            Family::Locks => "locks",
            Family::Segments => "segments",
            Family::Namespaces => "namespaces",
            Family::Snapshots => "snapshots",
            Family::Heads => "heads",
            Family::Seen => "seen",
            Family::Principals => "principals",
            Family::Tokens => "tokens",
            Family::Policies => "policies",
            Family::Descriptors => "descriptors",
            Family::Holds => "holds",
            Family::Approvals => "approvals",
            Family::Clock => "clock",
            Family::Ledger => "ledger",
            Family::Counters => "counters",
            Family::Primaries => "primaries",
            Family::Pending => "pending",
            Family::Damage => "damage",
            Family::Feeds => "feeds",
        }
    }

    /// True for families whose rows only the store writes.
    pub fn is_reserved(self) -> bool {
        matches!(self, Family::Index | Family::Inbox | Family::Segments | Family::Counters)
    }
}

/// Where an envelope lies: a segment or inbox run (both numbered by one counter), and the place in
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    /// Number of the segment or inbox run.
    pub segment: u32,
    /// Position in it, from 0.
    pub slot: u32,
}

impl SlotId {
    /// Both numbers as one, for bitmaps.
    pub fn number(self) -> u64 {
        (u64::from(self.segment) << 32) | u64::from(self.slot)
    }

    /// Key of this slot in `chunks/` and in `meta/inbox`.
    pub(super) fn key(self) -> [u8; 8] {
        slot_key(self.segment, self.slot)
    }

    /// The slot that `key` stands for.
    pub(super) fn from_key(key: &[u8]) -> Option<SlotId> {
        let mut input = key;
        let segment = u32::from_be_bytes(take(&mut input)?);
        let slot = u32::from_be_bytes(take(&mut input)?);
        input.is_empty().then_some(SlotId { segment, slot })
    }
}

/// Kind of place that holds an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A segment that is not catalogued yet: lost if the process ends now.
    Unsealed,
    /// A catalogued segment.
    Segment,
    /// A row of `meta/inbox`.
    Inbox,
}

/// When garbage collection found an envelope dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantine {
    /// Day of the retention clock, since 1970.
    pub day: u32,
    /// Number of the cycle.
    pub generation: u64,
}

/// What the index knows of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRow {
    /// Where it lies.
    pub slot: SlotId,
    /// The kind of that place.
    pub place: Place,
    /// Length of the envelope in bytes.
    pub length: u32,
    /// Level in its tree; 0 is a chunk.
    pub level: u8,
    /// Totals of its subtree.
    pub totals: Totals,
    /// True if the next `sync` makes it durable; false if a `seal` must come before that.
    pub durable: bool,
    /// Set while garbage collection takes it for dead.
    pub quarantined: Option<Quarantine>,
    /// Its bytes are not there, or are others.
    pub damaged: bool,
}

const FLAG_INBOX: u8 = 1;
const FLAG_TOTALS: u8 = 2;
const FLAG_QUARANTINED: u8 = 4;
const FLAG_DAMAGED: u8 = 8;

impl IndexRow {
    /// Length of the envelope in bytes, as a size in memory or on disk.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.length)
    }

    /// True if somebody may build on it.
    pub fn is_usable(&self) -> bool {
        self.quarantined.is_none() && !self.damaged
    }

    /// The row of an envelope that should be there and of which only the name is known.
    pub fn lost(level: u8) -> IndexRow {
        IndexRow {
            slot: SlotId { segment: 0, slot: 0 },
            place: Place::Segment,
            length: 0,
            level,
            totals: Totals::of_chunk(0),
            durable: true,
            quarantined: None,
            damaged: true,
        }
    }

    /// True if it says nothing of where its envelope lies.
    pub fn is_lost(&self) -> bool {
        self.damaged && self.slot.segment == 0
    }

    /// Value in `index`. Totals of a chunk follow from its length, so they take no room.
    pub(super) fn encode(&self) -> Vec<u8> {
        let plain = Totals::of_chunk(self.bytes());
        let mut flags = if self.place == Place::Inbox { FLAG_INBOX } else { 0 };
        if self.totals != plain {
            flags |= FLAG_TOTALS;
        }
        if self.quarantined.is_some() {
            flags |= FLAG_QUARANTINED;
        }
        if self.damaged {
            flags |= FLAG_DAMAGED;
        }
        let mut value = Vec::with_capacity(42);
        value.extend_from_slice(&[flags, self.level]);
        value.extend_from_slice(&self.slot.segment.to_le_bytes());
        value.extend_from_slice(&self.slot.slot.to_le_bytes());
        value.extend_from_slice(&self.length.to_le_bytes());
        if self.totals != plain {
            value.extend_from_slice(&self.totals.chunk_count.to_le_bytes());
            value.extend_from_slice(&self.totals.sealed_bytes.to_le_bytes());
        }
        if let Some(Quarantine { day, generation }) = self.quarantined {
            value.extend_from_slice(&day.to_le_bytes());
            value.extend_from_slice(&generation.to_le_bytes());
        }
        value
    }

    /// The row that `value` stands for.
    pub(super) fn decode(value: &[u8]) -> Option<IndexRow> {
        let mut input = value;
        let [flags, level] = take(&mut input)?;
        let segment = u32::from_le_bytes(take(&mut input)?);
        let slot = u32::from_le_bytes(take(&mut input)?);
        let length = u32::from_le_bytes(take(&mut input)?);
        let totals = match flags & FLAG_TOTALS {
            0 => Totals::of_chunk(u64::from(length)),
            _ => Totals {
                chunk_count: u64::from_le_bytes(take(&mut input)?),
                sealed_bytes: u64::from_le_bytes(take(&mut input)?),
            },
        };
        let quarantined = match flags & FLAG_QUARANTINED {
            0 => None,
            _ => Some(Quarantine {
                day: u32::from_le_bytes(take(&mut input)?),
                generation: u64::from_le_bytes(take(&mut input)?),
            }),
        };
        let place = if flags & FLAG_INBOX == 0 { Place::Segment } else { Place::Inbox };
        let known = flags & !(FLAG_INBOX | FLAG_TOTALS | FLAG_QUARANTINED | FLAG_DAMAGED) == 0;
        let slot = SlotId { segment, slot };
        (known && input.is_empty()).then_some(IndexRow {
            slot,
            place,
            length,
            level,
            totals,
            durable: true,
            quarantined,
            damaged: flags & FLAG_DAMAGED != 0,
        })
    }
}

/// How long the envelopes of a segment are wanted, as far as was known when they came. What dies
/// together lies together, so that segments go whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Up to 45 days.
    Short,
    /// Up to 400 days.
    Medium,
    /// Longer, or not known.
    Long,
}

impl Lifetime {
    /// All of them.
    pub const ALL: [Lifetime; 3] = [Lifetime::Short, Lifetime::Medium, Lifetime::Long];

    /// The band of a lock that lasts so many seconds.
    pub fn of_seconds(seconds: u64) -> Lifetime {
        const DAY_SECONDS: u64 = 24 * 3600;
        match seconds.div_ceil(DAY_SECONDS) {
            0..=45 => Lifetime::Short,
            46..=400 => Lifetime::Medium,
            _ => Lifetime::Long,
        }
    }

    /// The class in a segment's row; 0 is of segments that hold all kinds.
    pub fn class(self) -> u8 {
        match self {
            Lifetime::Short => 1,
            Lifetime::Medium => 2,
            Lifetime::Long => 3,
        }
    }
}

/// State of a catalogued segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// It holds envelopes that may be read.
    Live,
    /// Its file is being dropped.
    Dropping,
}

/// Catalogue row of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRow {
    /// What may be done with it.
    pub state: SegmentState,
    /// Band of lifetimes that its envelopes belong to.
    pub retention_class: u8,
    /// Number of its file in `chunks/`.
    pub file_number: u64,
    /// Size of that file.
    pub file_bytes: u64,
    /// Keys in it: envelopes, copies of records, the table.
    pub slot_count: u32,
    /// Envelopes in it.
    pub envelope_count: u32,
    /// BLAKE3 of its table.
    pub table_digest: [u8; 32],
}

impl SegmentRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let state = match self.state {
            SegmentState::Live => 1u8,
            SegmentState::Dropping => 2,
        };
        let mut value = Vec::with_capacity(58);
        value.extend_from_slice(&[state, self.retention_class]);
        value.extend_from_slice(&self.file_number.to_le_bytes());
        value.extend_from_slice(&self.file_bytes.to_le_bytes());
        value.extend_from_slice(&self.slot_count.to_le_bytes());
        value.extend_from_slice(&self.envelope_count.to_le_bytes());
        value.extend_from_slice(&self.table_digest);
        value
    }

    pub(super) fn decode(value: &[u8]) -> Option<SegmentRow> {
        let mut input = value;
        let [state, retention_class] = take(&mut input)?;
        let row = SegmentRow {
            state: match state {
                1 => SegmentState::Live,
                2 => SegmentState::Dropping,
                _ => return None,
            },
            retention_class,
            file_number: u64::from_le_bytes(take(&mut input)?),
            file_bytes: u64::from_le_bytes(take(&mut input)?),
            slot_count: u32::from_le_bytes(take(&mut input)?),
            envelope_count: u32::from_le_bytes(take(&mut input)?),
            table_digest: take(&mut input)?,
        };
        input.is_empty().then_some(row)
    }
}

/// Key of a slot.
pub(super) fn slot_key(segment: u32, slot: u32) -> [u8; 8] {
    ((u64::from(segment) << 32) | u64::from(slot)).to_be_bytes()
}

/// Key of an index row.
pub(super) fn index_key(ns: u32, digest: &SealedDigest) -> [u8; 36] {
    let mut key = [0; 36];
    key[..4].copy_from_slice(&ns.to_be_bytes());
    key[4..].copy_from_slice(digest.as_bytes());
    key
}

/// Namespace and digest in the key of an index row.
pub(super) fn parse_index_key(key: &[u8]) -> Option<(u32, SealedDigest)> {
    let mut input = key;
    let ns = u32::from_be_bytes(take(&mut input)?);
    let digest = SealedDigest(take(&mut input)?);
    input.is_empty().then_some((ns, digest))
}

/// Key of the counter of copied records of a namespace.
pub(super) fn records_copied_key(ns: u32) -> Vec<u8> {
    [COUNTER_RECORDS_COPIED, &ns.to_be_bytes()].concat()
}

/// First key after all keys that start with `prefix`; none if there is no such key.
pub(super) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Takes `N` bytes from the front of `input`.
pub(super) fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

/// The error for a row of `family` that can't be decoded.
pub(super) fn row_invalid(family: Family, key: &[u8], problem: &'static str) -> StoreError {
    let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
    StoreError::RowInvalid { family: family.name(), key, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_rows_survive_encoding() {
        let quarantined = Some(Quarantine { day: 20_000, generation: 3 });
        for (place, totals, quarantined) in [
            (Place::Segment, Totals::of_chunk(9), None),
            (Place::Inbox, Totals { chunk_count: 128, sealed_bytes: 1 << 40 }, None),
            (Place::Segment, Totals::of_chunk(9), quarantined),
            (Place::Segment, Totals { chunk_count: 128, sealed_bytes: 1 << 40 }, quarantined),
        ] {
            let slot = SlotId { segment: 3, slot: 4 };
            let (length, level, durable) = (9, 2, true);
            let damaged = place == Place::Inbox;
            let row =
                IndexRow { slot, place, length, level, totals, durable, quarantined, damaged };
            assert_eq!(IndexRow::decode(&row.encode()), Some(row));
            let mut longer = row.encode();
            longer.push(0);
            assert_eq!(IndexRow::decode(&longer), None);
            assert_eq!(IndexRow::decode(&row.encode()[..13]), None);
        }
    }

    #[test]
    fn segment_rows_survive_encoding() {
        let row = SegmentRow {
            state: SegmentState::Live,
            retention_class: 2,
            file_number: 12,
            file_bytes: 1 << 28,
            slot_count: 4001,
            envelope_count: 4000,
            table_digest: [7; 32],
        };
        assert_eq!(SegmentRow::decode(&row.encode()), Some(row));
        assert_eq!(SegmentRow::decode(&row.encode()[1..]), None);
    }

    #[test]
    fn prefixes_end_where_the_next_begins() {
        assert_eq!(prefix_end(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(prefix_end(&[1, 0xff]), Some(vec![2]));
        assert_eq!(prefix_end(&[0xff, 0xff]), None);
        assert_eq!(prefix_end(&[]), None);
    }

    #[test]
    fn slot_keys_sort_as_numbers() {
        assert!(slot_key(1, u32::MAX) < slot_key(2, 0));
        let slot = SlotId { segment: 258, slot: 5 };
        assert_eq!(SlotId::from_key(&slot.key()), Some(slot));
    }
}
