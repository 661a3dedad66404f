//! Proposals that wait: found, and withdrawn when what they are about changes.

use std::ops::ControlFlow;

use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::proposal::Operation;

use crate::error::ServerError;
use crate::rows::WaitingRow;
use crate::store::schema::Family;
use crate::writer::Decision;

/// Withdraws proposals whose snapshot or policy has changed: should it change back, they stay gone.
pub(super) fn withdraw(
    decision: &mut Decision<'_>,
    is_over: impl Fn(&Operation) -> bool,
) -> Result<(), ServerError> {
    for (leaf, row) in waiting_rows(decision)? {
        if is_over(&row.operation) {
            decision.batch.delete(Family::Approvals, WaitingRow::key(leaf));
        }
    }
    Ok(())
}

/// Whether an operation would forget this snapshot.
pub(super) fn is_about(operation: &Operation, snapshot: &RecordDigest) -> bool {
    matches!(operation, Operation::ForgetGovernance { record, .. } if record == snapshot)
}

/// All proposals that wait, by their leaf.
pub(super) fn waiting_rows(decision: &Decision<'_>) -> Result<Vec<(u64, WaitingRow)>, ServerError> {
    let mut rows = Vec::new();
    decision.store.scan(Family::Approvals, &[], None, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    rows.iter()
        .map(|(key, value)| Ok((WaitingRow::leaf_of(key)?, WaitingRow::decode(value)?)))
        .collect()
}
