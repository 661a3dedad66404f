//! Reads the snapshots of primaries whose trees are not here yet. Each row may bring a record of
//! half a megabyte, so nobody reads all of them at once.

use std::ops::ControlFlow;

use crate::error::ServerError;
use crate::replica_rows::{PendingRow, PrimaryRow};
use crate::repository::Repository;
use crate::store::Store;
use crate::store::schema::Family;

/// Snapshots of a primary that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PendingCounts {
    /// Their trees are to come.
    pub to_fetch: u32,
    /// They were committed there after the namespace had moved here, and are not fetched.
    pub set_aside: u32,
}

impl Repository {
    /// Snapshots of a primary whose trees are not here yet, in the order of its ledger, behind leaf
    /// `after`: at most `count` of them, because each may bring a long record.
    pub fn pending_page(
        &self,
        row: &PrimaryRow,
        after: Option<u64>,
        count: usize,
    ) -> Result<Vec<(u64, PendingRow)>, ServerError> {
        let mut page = Vec::new();
        each_pending(&self.store, row, after, &mut |key, pending| {
            page.push((key, pending));
            if page.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        page.into_iter().map(|(key, row)| Ok((PendingRow::leaf_of(&key)?, row))).collect()
    }

    /// How many snapshots of a primary wait, behind leaf `after` and before the position.
    pub fn pending_counts(
        &self,
        row: &PrimaryRow,
        after: Option<u64>,
    ) -> Result<PendingCounts, ServerError> {
        let mut counts = PendingCounts::default();
        each_pending(&self.store, row, after, &mut |key, pending| {
            if PendingRow::leaf_of(&key).is_ok_and(|leaf| leaf >= row.followed.size()) {
                return ControlFlow::Break(());
            }
            let here = self.registry.namespace(&pending.namespace);
            let is_taken = here.is_none_or(|here| self.takes_from(&here, &row.ledger_key));
            counts.add(pending.is_set_aside && !is_taken);
            ControlFlow::Continue(())
        })?;
        Ok(counts)
    }
}

impl PendingCounts {
    /// Counts one more.
    pub fn add(&mut self, is_set_aside: bool) {
        let count = if is_set_aside { &mut self.set_aside } else { &mut self.to_fetch };
        *count = count.saturating_add(1);
    }
}

/// Gives pending rows of a primary, in the order of its ledger, without keeping them.
pub(super) fn each_pending(
    store: &Store,
    row: &PrimaryRow,
    after: Option<u64>,
    each: &mut dyn FnMut(Vec<u8>, PendingRow) -> ControlFlow<()>,
) -> Result<(), ServerError> {
    let mut bad = None;
    let start = after.map(|leaf| PendingRow::key(&row.ledger_key, leaf.saturating_add(1)));
    store.scan(Family::Pending, &row.ledger_key.0, start.as_deref(), &mut |key, value| {
        match PendingRow::decode(value) {
            Ok(pending) => each(key.to_vec(), pending),
            Err(error) => {
                bad = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    bad.map_or(Ok(()), |error| Err(error.into()))
}

pub(super) fn pending_where(
    store: &Store,
    row: &PrimaryRow,
    is_meant: impl Fn(&PendingRow) -> bool,
) -> Result<Vec<(Vec<u8>, PendingRow)>, ServerError> {
    let mut rows = Vec::new();
    each_pending(store, row, None, &mut |key, pending| {
        if is_meant(&pending) {
            rows.push((key, pending));
        }
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}
