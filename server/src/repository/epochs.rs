//! Whether a primary's ledger has a record where an honest server takes it: before the next epoch.
//!
//! A convergence secret that was stolen makes records that verify, for ever, because records of its
//! epoch stay readable. What ends it is the order of the ledger: from the descriptor on that begins
//! the next epoch, the server that takes the namespace's backups takes no record of an older one.
//! So whoever follows that server passes over a record of an older epoch that stands behind the
//! descriptor, or behind a record that goes by it.
//!
//! The order says this of the server alone that the descriptor in force there names, and names
//! alone: any other may have had the descriptor before it brought the snapshots.
//!
//! | family | key | value |
//! |---|---|---|
//! | policies | `begun`, ledger key(32), ns_id(32) | [`BegunRow`] |

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{NamespaceId, PublicKey};
use strongroom_protocol::limits::{DESCRIPTORS_NOTED_MAX, REPLICA_NAMESPACES_MAX};
use strongroom_protocol::record::RecordBody;

use crate::error::ServerError;
use crate::replica_rows::Enrolment;
use crate::repository::Repository;
use crate::rows::descriptor_key;
use crate::store::Store;
use crate::store::schema::Family;

/// Where in a primary's ledger a namespace's descriptors stand first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct BegunRow {
    /// Version to leaf.
    leaves: BTreeMap<u64, u64>,
}

impl BegunRow {
    fn key(ledger_key: &PublicKey, namespace: &NamespaceId) -> Vec<u8> {
        [Self::prefix(ledger_key).as_slice(), &namespace.0].concat()
    }

    fn prefix(ledger_key: &PublicKey) -> Vec<u8> {
        [&b"begun"[..], &ledger_key.0].concat()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RBG1");
        out.count(self.leaves.len());
        for (version, leaf) in &self.leaves {
            out.u64(*version).u64(*leaf);
        }
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("row of descriptors", bytes);
        reader.magic(b"RBG1")?;
        let mut leaves = BTreeMap::new();
        for _ in 0..reader.count(DESCRIPTORS_NOTED_MAX)? {
            leaves.insert(reader.u64()?, reader.u64()?);
        }
        reader.finish()?;
        Ok(Self { leaves })
    }

    fn read(
        store: &Store,
        ledger_key: &PublicKey,
        namespace: &NamespaceId,
    ) -> Result<Self, ServerError> {
        let value = store.get(Family::Policies, &Self::key(ledger_key, namespace))?;
        Ok(value.map(|value| Self::decode(&value)).transpose()?.unwrap_or_default())
    }

    /// Whether it says already that this version stands there, or before.
    fn knows(&self, version: u64, leaf: u64) -> bool {
        self.leaves.get(&version).is_some_and(|known| *known <= leaf)
    }
}

impl Repository {
    /// Notes that `version` of a namespace's descriptor stands at `leaf` of a primary's ledger. The
    /// position does not move by that: the entry may lead to more.
    pub fn note_descriptor(
        &self,
        primary: &Enrolment,
        ledger_key: &PublicKey,
        namespace: &NamespaceId,
        (version, leaf): (u64, u64),
    ) -> Result<(), ServerError> {
        let (key, id) = (*ledger_key, *namespace);
        if BegunRow::read(&self.store, &key, &id)?.knows(version, leaf) {
            return Ok(());
        }
        let is_here = self.registry.namespace(namespace).is_some();
        let refuse = move |what: &str| {
            Err(ServerError::Operator(format!(
                "namespace {id}: its ledger names more {what} than any honest one; remove it, and \
                 look into it"
            )))
        };
        self.change_primary(primary, move |decision, _| {
            let mut row = BegunRow::read(decision.store, &key, &id)?;
            if row.leaves.is_empty() && !is_here && is_full(decision.store, &key)? {
                return refuse("namespaces");
            }
            let known = row.leaves.entry(version).or_insert(leaf);
            *known = leaf.min(*known);
            if u32::try_from(row.leaves.len()).map_or(true, |count| count > DESCRIPTORS_NOTED_MAX) {
                return refuse("descriptors");
            }
            decision.batch.put(Family::Policies, BegunRow::key(&key, &id), row.encode());
            Ok(())
        })
    }

    /// The epoch that had begun where a record stands in a primary's ledger, if it is a later one
    /// than the record's and that server took the namespace's backups by then: an honest one does
    /// not take such a record.
    pub fn later_epoch_before(
        &self,
        ledger_key: &PublicKey,
        leaf: u64,
        body: &RecordBody,
    ) -> Result<Option<u32>, ServerError> {
        let row = BegunRow::read(&self.store, ledger_key, &body.namespace)?;
        let Some(here) = self.registry.namespace(&body.namespace) else { return Ok(None) };
        // Versions that are not here were refused, or never were.
        for (version, _) in row.leaves.iter().rev().filter(|(_, at)| **at < leaf) {
            let key = descriptor_key(here.number, *version);
            let Some(encoded) = self.store.get(Family::Descriptors, &key)? else { continue };
            let in_force = VerifiedDescriptor::decode(&encoded)
                .map_err(|error| ServerError::Bug(error.to_string()))?;
            let contents = in_force.contents();
            let is_taking = contents.ledger_keys == [*ledger_key];
            return Ok((is_taking && contents.epoch > body.epoch).then_some(contents.epoch));
        }
        Ok(None)
    }
}

/// Whether descriptors of as many namespaces of a primary are noted as there may be.
fn is_full(store: &Store, ledger_key: &PublicKey) -> Result<bool, ServerError> {
    let mut count = 0u32;
    store.scan(Family::Policies, &BegunRow::prefix(ledger_key), None, &mut |_, _| {
        count = count.saturating_add(1);
        if count < REPLICA_NAMESPACES_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(count >= REPLICA_NAMESPACES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_know_the_first_place() {
        let row = BegunRow { leaves: BTreeMap::from([(2, 40), (3, 70)]) };
        assert_eq!(BegunRow::decode(&row.encode()), Ok(row.clone()));
        assert!(row.knows(2, 40) && row.knows(2, 41) && !row.knows(2, 39) && !row.knows(4, 99));
    }
}
