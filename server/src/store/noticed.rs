//! What readers notice: envelopes that are not there, or not as they were written.
//!
//! Notes are in memory, bounded, and lost with the process: what is lost is met again. `damage.rs`
//! says what becomes of them.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use strongroom_protocol::id::SealedDigest;

use super::schema::IndexRow;

/// Notes that are kept; what is met beyond is met again.
const NOTES_MAX: usize = 65_536;

/// Rows by namespace and content address.
type Notes = BTreeMap<(u32, SealedDigest), IndexRow>;

/// What was met since somebody took the notes last.
#[derive(Default)]
pub(super) struct Noticed(Mutex<Notes>);

impl Noticed {
    /// Notes a row as it was seen.
    pub(super) fn note(&self, ns: u32, digest: SealedDigest, row: IndexRow) {
        let mut notes = self.0.lock();
        if notes.len() < NOTES_MAX {
            notes.insert((ns, digest), row);
        }
    }

    /// Takes all notes.
    pub(super) fn take(&self) -> Notes {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Whether `envelope` is what its row and its name say.
pub(super) fn is_whole(length: u32, digest: &SealedDigest, envelope: &[u8]) -> bool {
    envelope.len() as u64 == u64::from(length) && SealedDigest::of(envelope) == *digest
}
