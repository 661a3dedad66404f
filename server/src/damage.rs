//! What is known of damage: rows of `meta/`, and counts in memory.
//!
//! | family | key | value |
//! |---|---|---|
//! | damage | ns u32, SealedDigest | [`DamageRow`]: the index row is marked |
//! | ledger | `scrub` | [`ScrubRow`] |
//! | ledger | `scrub-told` | [`Told`] |
//!
//! Both are written by decisions only. The counts are loaded at open and changed after each
//! decision that changes the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::id::SealedDigest;

/// A damaged envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamageRow {
    /// When it was found, milliseconds since 1970.
    pub found_ms: u64,
}

/// What was counted in a pass of scrub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Envelopes that were hashed.
    pub envelopes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was found damaged and was not known to be.
    pub damaged: u64,
    /// What contradicts itself and no repair mends: records, tables of segments.
    pub problems: u64,
}

/// How scrub stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubRow {
    /// Number of the newest pass.
    pub pass: u64,
    /// When it began, seconds of the retention clock.
    pub began_seconds: u64,
    /// When the last whole pass was through; 0 before the first.
    pub completed_seconds: u64,
    /// Segments below this one are done in the newest pass; 0 when it is through.
    pub next_segment: u32,
    /// Of the newest pass.
    pub current: Counts,
    /// Of the last whole pass.
    pub last: Counts,
    /// Envelopes that were ever found damaged.
    pub damaged_total: u64,
    /// Of them, those that became whole again.
    pub repaired_total: u64,
}

/// Problems that scrub found and told, so that the next pass does not tell them again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told(BTreeSet<[u8; 16]>);

/// Known damage, in memory.
#[derive(Debug, Default)]
pub struct KnownDamage {
    counts: Mutex<BTreeMap<u32, u64>>,
    found: AtomicU64,
    scrubbing: Mutex<()>,
}

impl DamageRow {
    /// Key of an envelope's row.
    pub fn key(ns: u32, digest: &SealedDigest) -> Vec<u8> {
        [&ns.to_be_bytes()[..], &digest.0].concat()
    }

    /// Namespace and envelope in a key.
    pub fn parse_key(key: &[u8]) -> Result<(u32, SealedDigest), DecodeError> {
        let short = || DecodeError::Short("damage key");
        let (ns, digest) = key.split_first_chunk::<4>().ok_or_else(short)?;
        let digest = digest.try_into().map_err(|_| short())?;
        Ok((u32::from_be_bytes(*ns), SealedDigest(digest)))
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RDM1");
        out.u64(self.found_ms);
        out.finish()
    }
}

impl ScrubRow {
    /// Key of the one row, in family `ledger`.
    pub const KEY: &[u8] = b"scrub";

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RSC1");
        out.u64(self.pass).u64(self.began_seconds).u64(self.completed_seconds);
        out.u32(self.next_segment);
        for counts in [&self.current, &self.last] {
            out.u64(counts.envelopes).u64(counts.bytes);
            out.u64(counts.damaged).u64(counts.problems);
        }
        out.u64(self.damaged_total).u64(self.repaired_total);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("scrub row", bytes);
        reader.magic(b"RSC1")?;
        let mut row = Self {
            pass: reader.u64()?,
            began_seconds: reader.u64()?,
            completed_seconds: reader.u64()?,
            next_segment: reader.u32()?,
            ..Self::default()
        };
        for counts in [&mut row.current, &mut row.last] {
            *counts = Counts {
                envelopes: reader.u64()?,
                bytes: reader.u64()?,
                damaged: reader.u64()?,
                problems: reader.u64()?,
            };
        }
        (row.damaged_total, row.repaired_total) = (reader.u64()?, reader.u64()?);
        reader.finish()?;
        Ok(row)
    }
}

impl Told {
    /// Key of the one row, in family `ledger`.
    pub const KEY: &[u8] = b"scrub-told";
    /// Problems that are remembered; those beyond are told in each pass.
    const MAX: u32 = 4096;

    /// Adds what is wrong with `thing`; whether that is news.
    pub fn add(&mut self, thing: &str) -> bool {
        let digest = blake3::hash(thing.as_bytes());
        let name = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        let has_room = u32::try_from(self.0.len()).is_ok_and(|count| count < Self::MAX);
        !self.0.contains(&name) && (!has_room || self.0.insert(name))
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RTP1");
        out.count(self.0.len());
        for name in &self.0 {
            out.raw(name);
        }
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("told problems", bytes);
        reader.magic(b"RTP1")?;
        let count = reader.count(Self::MAX)?;
        let names = (0..count).map(|_| reader.array()).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self(names))
    }
}

impl KnownDamage {
    /// Damaged envelopes of a namespace.
    pub fn count_in(&self, ns: u32) -> u64 {
        self.counts.lock().get(&ns).copied().unwrap_or(0)
    }

    /// All damaged envelopes.
    pub fn count(&self) -> u64 {
        self.counts.lock().values().sum()
    }

    /// Grows whenever damage is found.
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Counts an envelope that was found damaged.
    pub fn add(&self, ns: u32) {
        *self.counts.lock().entry(ns).or_default() += 1;
        self.found.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that is whole again, or gone.
    pub fn subtract(&self, ns: u32) {
        let mut counts = self.counts.lock();
        let count = counts.entry(ns).or_default();
        *count = count.saturating_sub(1);
    }

    /// Held by the one scrub that may run; nothing, if one does.
    pub fn begin_scrub(&self) -> Option<MutexGuard<'_, ()>> {
        self.scrubbing.try_lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        let counts = |n| Counts { envelopes: n, bytes: n + 1, damaged: n + 2, problems: n + 3 };
        let row = ScrubRow {
            pass: 1,
            began_seconds: 2,
            completed_seconds: 3,
            next_segment: 4,
            current: counts(5),
            last: counts(9),
            damaged_total: 13,
            repaired_total: 14,
        };
        assert_eq!(ScrubRow::decode(&row.encode()), Ok(row));
        assert!(ScrubRow::decode(&row.encode()[1..]).is_err());
        let digest = SealedDigest([7; 32]);
        assert_eq!(DamageRow::parse_key(&DamageRow::key(9, &digest)), Ok((9, digest)));
        assert!(DamageRow::parse_key(&[1, 2, 3]).is_err());
    }

    #[test]
    fn a_problem_is_told_once() {
        let mut told = Told::default();
        assert!(told.add("one") && told.add("two") && !told.add("one"));
        assert_eq!(Told::decode(&told.encode()), Ok(told.clone()));
        assert!(Told::decode(&told.encode()[1..]).is_err());
        for number in 0..Told::MAX {
            told.add(&number.to_string());
        }
        // Where there is no room, twice is better than never.
        assert!(told.add("more") && told.add("more") && !told.add("two"));
        assert_eq!(Told::decode(&told.encode()), Ok(told));
    }

    #[test]
    fn damage_is_counted_by_namespace() {
        let known = KnownDamage::default();
        known.add(1);
        known.add(1);
        known.add(2);
        known.subtract(1);
        assert_eq!((known.count_in(1), known.count_in(2), known.count_in(3)), (1, 1, 0));
        assert_eq!((known.count(), known.found()), (2, 3));
        let held = known.begin_scrub();
        assert!(held.is_some() && known.begin_scrub().is_none());
    }
}
