//! Servers whose exports are taken in: one row each, whether they are followed too or not.
//!
//! The row is that of a primary without an address (`replication.rs`), under its ledger key. It
//! pins that key, remembers the newest checkpoint that an export showed, and how far the entries
//! were taken over. What is *pending* is shared with the primary of the same key: whichever way a
//! tree comes first, it is committed once.

use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, PublicKey, TlsKeyDigest};
use strongroom_protocol::limits::PRIMARIES_MAX;
use strongroom_protocol::merkle::Frontier;

use crate::error::ServerError;
use crate::replica_rows::{PrimaryRow, Reach};
use crate::repository::Repository;
use crate::repository::replication::{all_primaries, put_primary};
use crate::store::schema::Family;

impl Repository {
    /// The row of a server whose exports were taken in before.
    pub fn origin(&self, ledger_key: &PublicKey) -> Result<Option<PrimaryRow>, ServerError> {
        let value = self.store.get(Family::Primaries, &PrimaryRow::import_key(ledger_key))?;
        Ok(value.map(|value| PrimaryRow::decode(&value)).transpose()?)
    }

    /// Begins to take in an export of `only` these namespaces, on record. Entries that were taken
    /// over stay so, unless they were of other namespaces.
    pub fn begin_import(
        &self,
        name: Label,
        ledger_key: PublicKey,
        only: Vec<Label>,
        shown: &Checkpoint,
    ) -> Result<PrimaryRow, ServerError> {
        let (size, root) = (shown.size, shown.root);
        self.writer.decide(move |decision| {
            let key = PrimaryRow::import_key(&ledger_key);
            let mut row = match decision.store.get(Family::Primaries, &key)? {
                Some(value) => PrimaryRow::decode(&value)?,
                None => {
                    let rows = all_primaries(decision.store)?.into_iter();
                    let count = rows.filter(PrimaryRow::is_import).count();
                    if u32::try_from(count).map_or(true, |count| count >= PRIMARIES_MAX) {
                        let message = format!("exports of at most {PRIMARIES_MAX} servers");
                        return Err(ServerError::Operator(message));
                    }
                    let (tls_key, principal) = (TlsKeyDigest([0; 32]), PrincipalId::LOCAL);
                    PrimaryRow::new(name, Reach::Carried, tls_key, ledger_key, principal)
                }
            };
            if row.only != only {
                row.followed = Frontier::default();
                row.only = only;
            }
            if row.followed.size() < size {
                let event = Event::Imported { ledger_key, size, root };
                decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
            }
            put_primary(decision, &row);
            Ok(row)
        })
    }
}
