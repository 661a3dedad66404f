//! Reads the snapshots of primaries whose trees are not here yet. Each row may bring a record of
//! half a megabyte, so nobody reads all of them at once.

use std::ops::ControlFlow;

use crate::error::ServerError;
use crate::replica_rows::{PendingRow, PrimaryRow};
use crate::repository::Repository;
use crate::store::Store;
use crate::store::schema::Family;

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

    /// How many snapshots of a primary are pending.
    pub fn pending_count(&self, row: &PrimaryRow) -> Result<u32, ServerError> {
        let mut count = 0u32;
        self.store.scan(Family::Pending, &row.ledger_key.0, None, &mut |_, _| {
            count = count.saturating_add(1);
            ControlFlow::Continue(())
        })?;
        Ok(count)
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
