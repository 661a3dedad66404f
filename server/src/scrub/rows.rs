//! The second half of a pass: the inbox, and rows that name what must be there.
//!
//! **Index.** A row may name a place that holds another envelope. The first half has counted, for
//! each segment, the rows that it found at the place they name; here all rows are counted by the
//! segment they name. Where there are more, some are wrong, or the segment's table
//! could not be read: rows of such segments are read, and the
//! reader notes what has not its digest. (Rows move meanwhile; then some are read in vain.) Rows
//! that name no live segment, and rows of the inbox, are always read.
//!
//! **Locks.** A lock in force vouches for its node and all below it. Each such node must be there,
//! readable, and each child must have a row. What has none gets one that says *lost*.
//!
//! **Records.** A snapshot's row must have its own digest, be the one that `seen` names, and have
//! its commit in the ledger.

use std::collections::BTreeSet;

use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Record;

use super::segments::Occupants;
use super::{READ_BYTES, Scrub};
use crate::error::ServerError;
use crate::lock::{Day, decode_day};
use crate::rows::{SeenRow, SnapshotRow, parse_lock_key};
use crate::store::collect::Found;
use crate::store::error::StoreError;
use crate::store::schema::{Family, IndexRow, Place, SegmentState};

/// Index rows read at once.
const SCAN_COUNT: usize = 8192;
/// Rows of locks or snapshots read at once.
const ROWS_COUNT: usize = 256;

impl Scrub<'_> {
    /// Hashes the inbox.
    pub(super) fn inbox(&mut self) -> Result<(), ServerError> {
        let store = self.repository.store();
        let max = usize::try_from(READ_BYTES).unwrap_or(usize::MAX);
        let mut after = None;
        loop {
            let found = store.check_inbox(after, max)?;
            let Some(last) = found.last() else { return Ok(()) };
            after = Some(last.slot);
            for one in &found {
                // A head that does not decode names nothing; its index row is read further down.
                let Some(row) = one.row else { continue };
                self.count(u64::from(row.length));
                let indexed = store.indexed(row.ns, &[row.digest])?.pop().flatten();
                let here = |found: &IndexRow| found.place == Place::Inbox && found.slot == one.slot;
                let Some(indexed) = indexed.filter(here) else { continue };
                let found = Found { ns: row.ns, digest: row.digest, row: indexed };
                if !one.is_whole && !indexed.damaged {
                    store.note_damage(found);
                }
            }
            self.mark()?;
            self.pace.breathe()?;
        }
    }

    /// Looks for index rows that name a place where they are not found.
    pub(super) fn index(&mut self) -> Result<(), ServerError> {
        let store = self.repository.store();
        let catalogue = store.catalogue()?;
        let live = catalogue.iter().filter(|(_, row)| row.state == SegmentState::Live);
        let live: BTreeSet<u32> = live.map(|(segment, _)| *segment).collect();
        let mut named = Occupants::new();
        self.each_row(&mut |scrub, found| match found.row.place {
            Place::Segment if !found.row.damaged && live.contains(&found.row.slot.segment) => {
                *named.entry(found.row.slot.segment).or_default() += 1;
                Ok(())
            }
            _ => scrub.read(found),
        })?;
        // What came since the first half, or was done before a restart, was not counted.
        let found = std::mem::take(&mut self.occupants);
        let is_suspect = |segment: &u32| {
            let count = named.get(segment).copied().unwrap_or(0);
            found.get(segment).is_some_and(|found| *found < count)
        };
        let suspects: BTreeSet<u32> = live.into_iter().filter(is_suspect).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        self.each_row(&mut |scrub, found| match suspects.contains(&found.row.slot.segment) {
            true => scrub.read(found),
            false => Ok(()),
        })
    }

    /// Compares locks in force with what they vouch for.
    pub(super) fn locks(&mut self) -> Result<(), ServerError> {
        let store = self.repository.store();
        let mut start = None;
        loop {
            let rows = store.page(Family::Locks, start.as_deref(), ROWS_COUNT)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            start = Some([last.as_slice(), &[0]].concat());
            let today = Day::of(self.repository.moment().retention_seconds);
            for (key, value) in &rows {
                if decode_day(value)? > today {
                    let (ns, node) = parse_lock_key(key)?;
                    self.locked_node(ns, node)?;
                }
            }
            self.mark()?;
            self.pace.breathe()?;
        }
    }

    /// Compares records with `seen` and the ledger.
    pub(super) fn records(&mut self) -> Result<(), ServerError> {
        let store = self.repository.store();
        let mut start = None;
        loop {
            let rows = store.page(Family::Snapshots, start.as_deref(), ROWS_COUNT)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            start = Some([last.as_slice(), &[0]].concat());
            for (key, value) in &rows {
                if let Err(error) = self.record(key, value) {
                    // A snapshot that was forgotten meanwhile is none.
                    if store.get(Family::Snapshots, key)?.is_some() {
                        self.problem(&format!("snapshot row {key:02x?}"), &error.to_string())?;
                    }
                }
            }
            self.pace.breathe()?;
        }
    }

    fn each_row(
        &mut self,
        each: &mut dyn FnMut(&mut Self, &Found) -> Result<(), ServerError>,
    ) -> Result<(), ServerError> {
        let mut after = None;
        loop {
            let rows = self.repository.store().scan_index(after, SCAN_COUNT)?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.ns, last.digest));
            for found in &rows {
                each(self, found)?;
            }
            self.mark()?;
            self.pace.breathe()?;
        }
    }

    /// Reads what a row names; the reader notes damage. What is known already is not read.
    fn read(&mut self, found: &Found) -> Result<(), ServerError> {
        let store = self.repository.store();
        if found.row.damaged {
            // It may be damaged by its own flag alone; if it is on the list, the note is no news.
            store.note_damage(*found);
            return Ok(());
        }
        match store.read(found.ns, &[found.digest], &mut |_, _| Ok(())) {
            Err(StoreError::NotFound(_)) | Ok(()) => Ok(()),
            Err(error) if error.is_damage() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn locked_node(&mut self, ns: u32, node: SealedDigest) -> Result<(), ServerError> {
        let store = self.repository.store();
        let mut children = Vec::new();
        let mut level = 1;
        let read = store.read(ns, &[node], &mut |_, bytes| {
            if let Ok(envelope) = Envelope::parse(bytes) {
                level = envelope.level;
                children.extend(envelope.children());
            }
            Ok(())
        });
        match read {
            Ok(()) => {}
            Err(StoreError::NotFound(_)) => {
                store.note_damage(Found { ns, digest: node, row: IndexRow::lost(level) });
            }
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error.into()),
        }
        let below = level.saturating_sub(1);
        for (digest, row) in children.iter().zip(store.lookup(ns, &children)?) {
            match row {
                None => {
                    let row = IndexRow::lost(below);
                    store.note_damage(Found { ns, digest: *digest, row });
                }
                Some(row) if row.level != below && !row.damaged => {
                    store.note_damage(Found { ns, digest: *digest, row });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn record(&self, key: &[u8], value: &[u8]) -> Result<(), ServerError> {
        let wrong = |what: &str| Err(ServerError::Bug(what.to_owned()));
        let row = SnapshotRow::decode(value)?;
        let record = Record::decode(&row.record)?;
        let ns = key.first_chunk::<4>().map_or(0, |ns| u32::from_be_bytes(*ns));
        if record.digest() != row.record_digest {
            return wrong("the record has not the digest of its row");
        }
        let seen = SeenRow::key(ns, &row.record_digest);
        let seen = self.repository.store().get(Family::Seen, &seen)?;
        let seen = seen.map(|seen| SeenRow::decode(&seen)).transpose()?;
        let commit = SnapshotRow::commit_of(key)?;
        if seen.is_none_or(|seen| (seen.commit, seen.leaf_index) != (commit, row.leaf_index)) {
            return wrong("it is not the one that was seen");
        }
        let entry = Entry::decode(&self.repository.ledger().entry(row.leaf_index)?)?;
        match entry.event {
            Event::Committed { record: committed, root, .. }
                if committed == row.record_digest && root == record.body.root =>
            {
                Ok(())
            }
            _ => wrong("its commit is not in the ledger"),
        }
    }
}
