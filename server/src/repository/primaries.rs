//! Which servers this one follows: how one is added, by command or by enrolling as one that lends
//! its connections, and removed.

use std::ops::ControlFlow;

use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId};
use strongroom_protocol::limits::PRIMARIES_MAX;
use strongroom_protocol::token::EnrollRequest;

use crate::error::ServerError;
use crate::replica_rows::{PrimaryRow, Reach};
use crate::repository::Repository;
use crate::repository::replication::{all_primaries, put_primary, read_primary};
use crate::rows::TokenRow;
use crate::store::schema::Family;
use crate::writer::Decision;

const NOWHERE: NamespaceId = NamespaceId([0; 32]);

impl Repository {
    /// Begins to follow a primary, from the beginning of its ledger.
    pub fn add_primary(self: &std::sync::Arc<Self>, row: PrimaryRow) -> Result<(), ServerError> {
        let repository = self.clone();
        self.writer.decide(move |decision| repository.insert_primary(decision, row))
    }

    /// In the decision that enrols it: a primary that lends its connections is followed from then
    /// on, under the name that its token was made for. Its signing key is its ledger's.
    pub(super) fn insert_feeder(
        &self,
        decision: &mut Decision<'_>,
        token: &TokenRow,
        request: &EnrollRequest,
        feeder: PrincipalId,
    ) -> Result<(), ServerError> {
        let refuse = |message: &str| ServerError::peer(ErrorCode::BadRequest, message);
        let name = token.display_name.parse();
        let name: Label = name.map_err(|_| refuse("the token names no primary"))?;
        let (tls_key, ledger_key) = (request.tls_key, request.signing_key);
        let row = PrimaryRow::new(name, Reach::Lent, tls_key, ledger_key, feeder);
        self.insert_primary(decision, row).map_err(|error| match error {
            ServerError::Operator(message) => {
                tracing::warn!(%message, "a primary was not enrolled");
                refuse("that server cannot follow this one, or does already; ask its operator")
            }
            error => error,
        })
    }

    /// Adds a primary. What an export of it has shown of its ledger, it must continue.
    fn insert_primary(
        &self,
        decision: &mut Decision<'_>,
        mut row: PrimaryRow,
    ) -> Result<(), ServerError> {
        if row.ledger_key == self.keys.ledger_public() {
            return Err(ServerError::Operator("this server cannot follow itself".into()));
        }
        let (imports, others): (Vec<_>, Vec<_>) =
            all_primaries(decision.store)?.into_iter().partition(PrimaryRow::is_import);
        if u32::try_from(others.len()).map_or(true, |count| count >= PRIMARIES_MAX) {
            let message = format!("at most {PRIMARIES_MAX} primaries can be followed");
            return Err(ServerError::Operator(message));
        }
        for other in others {
            if other.name == row.name || other.ledger_key == row.ledger_key {
                return Err(ServerError::Operator(format!(
                    "primary {} is followed already; remove it first",
                    other.name
                )));
            }
        }
        let PrimaryRow { ledger_key, tls_key, principal, .. } = row;
        if let Some(import) = imports.into_iter().find(|row| row.ledger_key == ledger_key) {
            row.checkpoint = import.checkpoint;
        }
        let event = Event::PrimaryAdded { ledger_key, tls_key, principal };
        decision.enter(PrincipalId::LOCAL, NOWHERE, event);
        put_primary(decision, &row);
        Ok(())
    }

    /// Follows a primary no more. What came from it stays, with its locks. If it lends its
    /// connections, it is revoked here. *Crash between the two: revoked, and removed by the same
    /// command.*
    pub fn remove_primary(self: &std::sync::Arc<Self>, name: &Label) -> Result<(), ServerError> {
        let row = self.primary(name)?;
        if row.reach == Reach::Lent {
            self.revoke(row.principal)?;
        }
        let name = name.clone();
        let (principal, followers) = (row.principal, self.followers.clone());
        self.writer.decide(move |decision| {
            let row = read_primary(decision.store, &name)?;
            if row.principal != principal {
                let message = "another primary was added under this name just now";
                return Err(ServerError::Operator(message.into()));
            }
            // What an import waits for too is its own.
            let import = PrimaryRow::import_key(&row.ledger_key);
            if decision.store.get(Family::Primaries, &import)?.is_none() {
                let batch = &mut decision.batch;
                decision.store.scan(Family::Pending, &row.ledger_key.0, None, &mut |key, _| {
                    batch.delete(Family::Pending, key.to_vec());
                    ControlFlow::Continue(())
                })?;
            }
            decision.batch.delete(Family::Primaries, PrimaryRow::key(&name));
            let event = Event::PrimaryRemoved { ledger_key: row.ledger_key };
            decision.enter(PrincipalId::LOCAL, NOWHERE, event);
            followers.forget(&name);
            Ok(())
        })
    }

    /// How a primary that lends its connections is reached, for people.
    pub(super) fn lent_text(&self, row: &PrimaryRow) -> String {
        if self.registry.principal(&row.tls_key).is_none_or(|feeder| feeder.id != row.principal) {
            return "it dials; its principal was REVOKED here".into();
        }
        match self.followers.lent().pool(row.principal).count() {
            0 => "it dials; no connection now".into(),
            count => format!("it dials; {count} connections"),
        }
    }
}
