//! `index`: which envelope lies where.
//!
//! Who writes index rows holds the *order* lock from its last look at the index until its batch is
//! written, so that the first row wins: the sealer, the inbox and the fold. Readers need no lock.
//! An envelope is either in the map of unsealed rows or in the index, and for a moment in both,
//! never in neither: rows are written before they leave the map. So whoever looks for an envelope
//! asks the map first and the index second.
//!
//! A row that does not decode counts as damaged: it stands in nobody's way, and is overwritten.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use strongroom_protocol::id::SealedDigest;

use super::error::StoreError;
use super::meta::Meta;
use super::schema::{Family, IndexRow, index_key};

/// Point lookups in the index, and the lock that orders its writers.
pub(super) struct Index {
    meta: Arc<Meta>,
    order: Mutex<()>,
}

impl Index {
    pub(super) fn new(meta: Arc<Meta>) -> Self {
        Index { meta, order: Mutex::new(()) }
    }

    /// Keeps other writers of index rows out.
    pub(super) fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock()
    }

    /// Rows of `digests`, in their order.
    pub(super) fn lookup(
        &self,
        ns: u32,
        digests: &[SealedDigest],
    ) -> Result<Vec<Option<IndexRow>>, StoreError> {
        // Sorted keys let the engine share index, filter and data blocks between neighbours.
        let mut order: Vec<usize> = (0..digests.len()).collect();
        order.sort_unstable_by_key(|position| digests[*position]);
        let keys: Vec<_> =
            order.iter().map(|position| index_key(ns, &digests[*position])).collect();
        let found = self.meta.get_sorted(Family::Index, &keys, |_, value| {
            Ok(IndexRow::decode(value).unwrap_or(IndexRow::lost(0)))
        })?;
        let mut rows = vec![None; digests.len()];
        for (position, row) in order.into_iter().zip(found) {
            rows[position] = row;
        }
        Ok(rows)
    }
}
