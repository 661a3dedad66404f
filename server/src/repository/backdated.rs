//! Records that a primary took after the epoch had ended that they belong to (`epochs.rs`): each is
//! entered in this server's ledger once, so that what the replica noticed outlives its log.
//!
//! | family | key | value |
//! |---|---|---|
//! | policies | `backdated`, ledger key(32), record(32) | leaf u64 |
//!
//! So many a minute of each primary as of a principal (`guards.rs`), and [`BACKDATED_NOTED_MAX`] in
//! all, so that a captured primary fills no ledger. What is not entered now is met again.

use std::ops::ControlFlow;

use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{NamespaceId, PublicKey, RecordDigest};
use strongroom_protocol::limits::BACKDATED_NOTED_MAX;

use crate::error::ServerError;
use crate::guards::Refused;
use crate::replica_rows::PrimaryRow;
use crate::repository::Repository;
use crate::store::schema::Family;

/// A record that stands behind the beginning of a later epoch.
#[derive(Debug, Clone, Copy)]
pub struct Backdated {
    /// Where.
    pub namespace: NamespaceId,
    /// Which.
    pub record: RecordDigest,
    /// Its place in the primary's ledger.
    pub leaf: u64,
    /// The epoch that had begun there.
    pub epoch: u32,
}

impl Repository {
    /// Enters that a primary's record was not taken over, if that is not on record.
    pub fn enter_backdated(
        &self,
        primary: &PrimaryRow,
        refused: Backdated,
    ) -> Result<(), ServerError> {
        let Backdated { namespace, record, leaf, epoch } = refused;
        let key = [prefix(&primary.ledger_key).as_slice(), &record.0].concat();
        if self.store.get(Family::Policies, &key)?.is_some()
            || self.is_backdated_full(&primary.ledger_key)?
        {
            return Ok(());
        }
        let principal = primary.actor();
        let refusal = Refused { principal, wish: "backdated", record: Some(record) };
        if !self.guards.entries.is_due(refusal, self.clock.monotonic()) {
            return Ok(());
        }
        self.change_primary(&primary.enrolment(), move |decision, row| {
            decision.batch.put(Family::Policies, key, leaf.to_be_bytes().to_vec());
            let event = Event::RecordRefused { ledger_key: row.ledger_key, record, leaf, epoch };
            decision.enter(row.actor(), namespace, event);
            Ok(())
        })
    }

    fn is_backdated_full(&self, ledger_key: &PublicKey) -> Result<bool, ServerError> {
        let mut count = 0u32;
        self.store.scan(Family::Policies, &prefix(ledger_key), None, &mut |_, _| {
            count = count.saturating_add(1);
            match count < BACKDATED_NOTED_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        Ok(count >= BACKDATED_NOTED_MAX)
    }
}

fn prefix(ledger_key: &PublicKey) -> Vec<u8> {
    [&b"backdated"[..], &ledger_key.0].concat()
}
