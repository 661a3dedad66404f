//! The retention clock as others see it, and the proof that a data folder was put back.
//!
//! Whoever puts an older copy of the whole data folder back also puts back `HEAD`, the clock's row
//! and all locks that were made since; nothing in the folder can tell. But every client remembers
//! the largest head that it was shown, signed by this ledger. A head that is larger than the
//! ledger, or has another root at a size that the ledger has, is proof: from then on no lock ends.

use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::entry::Entry;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::merkle::{Hash, leaf_hash, node_hash};
use strongroom_protocol::message::ClockStatus;

use crate::error::ServerError;
use crate::ledger::Ledger;
use crate::registry::Principal;
use crate::repository::Repository;

impl Repository {
    /// Where the retention clock stands and why.
    pub fn clock_status(&self) -> ClockStatus {
        self.retention_clock.status()
    }

    /// Takes a head that a client remembers. One that this ledger signed and does not have freezes
    /// the retention clock; one that it has is no news.
    pub fn report_head(&self, reporter: &Principal, note: &[u8]) -> Result<(), ServerError> {
        let refuse = |message: &str| ServerError::peer(ErrorCode::BadRequest, message);
        let note = std::str::from_utf8(note).map_err(|_| refuse("not a checkpoint"))?;
        let head = Checkpoint::verify(note, &[self.keys.ledger_public()])
            .map_err(|_| refuse("not a checkpoint that this ledger signed"))?;
        // Heads are shown after they were published, so an honest one is not above this.
        let is_known = head.size <= self.ledger.head().size
            && (head.size == 0 || root_at(&self.ledger, head.size)? == head.root);
        if is_known {
            return Ok(());
        }
        tracing::error!(size = head.size, "a client remembers a head that the ledger lacks");
        let reporter = reporter.id;
        self.writer.decide(move |decision| {
            decision.roll_back_clock(reporter);
            Ok(())
        })
    }

    /// Writes the retention clock, if it saw something or was not written for a minute.
    pub(super) fn keep_clock(&self) -> Result<(), ServerError> {
        let (state, _) = self.retention_clock.observe();
        if self.retention_clock.is_due(&state) {
            self.writer.decide(|_| Ok(()))?;
        }
        self.retention_clock.show();
        Ok(())
    }
}

/// The retention time of the newest entry; nothing, if there is none.
pub(super) fn last_retention_seconds(ledger: &Ledger) -> Result<Option<u64>, ServerError> {
    let Some(last) = ledger.head().size.checked_sub(1) else { return Ok(None) };
    Ok(Some(Entry::decode(&ledger.entry(last)?)?.retention_time_seconds))
}

/// The root that the ledger had when it had `size` entries, at least one.
fn root_at(ledger: &Ledger, size: u64) -> Result<Hash, ServerError> {
    let receipt = ledger.receipt(size.saturating_sub(1))?;
    let now = Checkpoint::verify(&receipt.checkpoint, &[ledger.public_key()])
        .map_err(|error| ServerError::Bug(error.to_string()))?;
    Ok(root_up_to(receipt.leaf_index, now.size, leaf_hash(&receipt.entry), &receipt.proof))
}

/// The root of a tree whose last leaf is `index`, from that leaf's inclusion proof in a larger
/// tree: what stands left of it is the same in both, and what stands right of it is left out.
fn root_up_to(index: u64, size: u64, leaf: Hash, proof: &[Hash]) -> Hash {
    let (mut at, mut last) = (index, size.saturating_sub(1));
    let mut root = leaf;
    for sibling in proof {
        // A node without a right neighbour rises until it has a left one.
        while at.is_multiple_of(2) && at == last && at > 0 {
            (at, last) = (at >> 1, last >> 1);
        }
        if !at.is_multiple_of(2) {
            root = node_hash(sibling, &root);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    root
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use strongroom_protocol::merkle::{SubtreeHashes, inclusion_proof, root};

    use super::*;

    struct Leaves;

    impl SubtreeHashes for Leaves {
        type Error = Infallible;
        fn complete(&self, height: u32, index: u64) -> Result<Hash, Infallible> {
            if height == 0 {
                return Ok(leaf_hash(&index.to_be_bytes()));
            }
            let left = self.complete(height - 1, index * 2)?;
            Ok(node_hash(&left, &self.complete(height - 1, index * 2 + 1)?))
        }
    }

    #[test]
    fn every_earlier_root_follows_from_a_proof() {
        for size in 1..70 {
            for earlier in 1..=size {
                let proof = inclusion_proof(&Leaves, earlier - 1, size).unwrap();
                let leaf = leaf_hash(&(earlier - 1).to_be_bytes());
                let found = root_up_to(earlier - 1, size, leaf, &proof);
                assert_eq!(found, root(&Leaves, earlier).unwrap(), "{earlier} of {size}");
            }
        }
    }
}
