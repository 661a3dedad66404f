//! Which namespaces of a primary are followed, by this server's operator.
//!
//! **More namespaces later.** The entries that were passed over are read again: the position goes
//! back to the beginning of the primary's ledger, and up to where it was, entries lead to something
//! only if they are of a namespace that was not followed then. So a hold that was released here
//! since, for a namespace that was followed all along, is not placed again.
//!
//! **Dropped here.** A namespace that this server's operator dropped does not come back by itself:
//! its entries are passed over, its pending snapshots given up, and the status says so. The
//! operator can take it again; it is then made anew, and all that the primary still has comes.
//!
//! **Set aside beyond the bound.** Of a namespace that moved here, only so many snapshots of a
//! server that it left are noted. Entries that name more are passed over, and the namespace is
//! listed as passed. When this server takes that primary's snapshots again, the ledger is read
//! again like above. A hold that stands there is then placed again, even if it was released here.
//!
//! Each of these is one decision with a ledger entry. *Crash: before it or after it.*

use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId};
use strongroom_protocol::limits::PRIMARY_FILTER_MAX;
use strongroom_protocol::merkle::Frontier;

use crate::error::ServerError;
use crate::registry::all_rows;
use crate::replica_rows::{Enrolment, PrimaryRow};
use crate::repository::Repository;
use crate::repository::replication::Step;
use crate::store::schema::Family;
use crate::writer::Decision;

const NOWHERE: NamespaceId = NamespaceId([0; 32]);

impl Repository {
    /// Follows these namespaces of a primary and no others; all, where there is none.
    pub fn set_only(&self, name: &Label, only: Vec<Label>) -> Result<(), ServerError> {
        if is_too_long(&only) {
            let message = format!("at most {PRIMARY_FILTER_MAX} namespaces can be named");
            return Err(ServerError::Operator(message));
        }
        let primary = self.primary(name)?.enrolment();
        self.change_primary(&primary, move |decision, row| {
            let is_new = |name: &Label| !row.only.contains(name);
            let is_wider = !row.only.is_empty() && (only.is_empty() || only.iter().any(is_new));
            if is_wider {
                read_again(row)?;
            }
            row.only = only;
            let names: Vec<&str> = row.only.iter().map(Label::as_str).collect();
            let names = names.join("\n");
            let digest = *blake3::hash(names.as_bytes()).as_bytes();
            let event = Event::FilterSet { ledger_key: row.ledger_key, names: digest };
            let leaf = decision.enter(PrincipalId::LOCAL, NOWHERE, event);
            decision.state(leaf, names.as_bytes());
            Ok(())
        })
    }

    /// Takes a namespace from a primary again that was dropped here; `text` is the name that it had
    /// here, or its id.
    pub fn take_again(&self, name: &Label, text: &str) -> Result<(), ServerError> {
        let unknown = || {
            let message = "no namespace of this name or id was dropped here";
            ServerError::Operator(format!("{text}: {message}; see: strongroomd replica status"))
        };
        let id = self.registry.dropped(text).ok_or_else(unknown)?;
        let primary = self.primary(name)?.enrolment();
        self.change_primary(&primary, move |decision, row| {
            if !row.readmitted.contains(&id) {
                if is_too_long(&row.readmitted) {
                    let message = "too many dropped namespaces are taken again; remove the \
                                   primary and add it anew";
                    return Err(ServerError::Operator(message.into()));
                }
                row.readmitted.push(id);
            }
            read_again(row)?;
            row.passed.retain(|passed| *passed != id);
            let event = Event::NamespaceReadmitted { ledger_key: row.ledger_key };
            decision.enter(PrincipalId::LOCAL, id, event);
            Ok(())
        })
    }

    /// Whether a primary's namespace was dropped here and is not to come back.
    pub fn is_passed(&self, row: &PrimaryRow, namespace: &NamespaceId) -> bool {
        self.registry.dropped_name(namespace).is_some() && !row.readmitted.contains(namespace)
    }

    /// Passes an entry of a namespace that moved here, of which enough is set aside.
    pub fn pass_set_aside(
        &self,
        primary: &Enrolment,
        step: Step,
        namespace: NamespaceId,
    ) -> Result<(), ServerError> {
        self.change_primary(primary, move |_, row| {
            if !row.passed.contains(&namespace) {
                if is_too_long(&row.passed) {
                    let message = "too many namespaces of this primary are passed over";
                    return Err(ServerError::Operator(message.into()));
                }
                row.passed.push(namespace);
            }
            step.take(row);
            Ok(())
        })
    }

    /// Goes back to the beginning of a primary's ledger, if snapshots were passed over that are
    /// taken from it now; says whether it did.
    pub fn read_what_was_set_aside(&self, primary: &Enrolment) -> Result<bool, ServerError> {
        let row = self.followed(primary)?;
        let is_due = |id: &NamespaceId| {
            let here = self.registry.namespace(id);
            here.is_some_and(|here| self.takes_from(&here, &row.ledger_key))
        };
        let due: Vec<NamespaceId> = row.passed.iter().copied().filter(is_due).collect();
        let is_reading = row.followed.size() < row.reread_to;
        let fits = |id: &NamespaceId| row.readmitted.contains(id) || !is_too_long(&row.readmitted);
        let Some(id) = due.into_iter().find(fits).filter(|_| !is_reading) else {
            return Ok(false);
        };
        self.change_primary(primary, move |decision, row| {
            read_again(row)?;
            if !row.readmitted.contains(&id) {
                row.readmitted.push(id);
            }
            row.passed.retain(|passed| *passed != id);
            let event = Event::NamespaceReadmitted { ledger_key: row.ledger_key };
            decision.enter(row.actor(), id, event);
            Ok(true)
        })
    }

    /// Passes an entry of a namespace that was dropped here.
    pub fn pass_dropped(
        &self,
        primary: &Enrolment,
        step: Step,
        namespace: NamespaceId,
    ) -> Result<(), ServerError> {
        self.change_primary(primary, move |_, row| {
            step.take(row);
            if !row.passed.contains(&namespace) && !is_too_long(&row.passed) {
                row.passed.push(namespace);
            }
            Ok(())
        })
    }

    /// In the decision that drops a namespace: no primary brings it back.
    pub(super) fn end_readmission(
        &self,
        decision: &mut Decision<'_>,
        namespace: &NamespaceId,
    ) -> Result<(), ServerError> {
        for (key, value) in all_rows(decision.store, Family::Primaries)? {
            let mut row = PrimaryRow::decode(&value)?;
            if row.readmitted.contains(namespace) {
                row.readmitted.retain(|readmitted| readmitted != namespace);
                decision.batch.put(Family::Primaries, key, row.encode());
            }
        }
        Ok(())
    }
}

fn read_again(row: &mut PrimaryRow) -> Result<(), ServerError> {
    let position = row.followed.size();
    if position < row.reread_to {
        let message = "entries are still read again after the last change; try again when \
                       strongroomd replica status says: in sync";
        return Err(ServerError::Operator(message.into()));
    }
    row.reread_to = position;
    row.had = row.only.clone();
    row.followed = Frontier::default();
    Ok(())
}

fn is_too_long<T>(list: &[T]) -> bool {
    u32::try_from(list.len()).map_or(true, |length| length >= PRIMARY_FILTER_MAX)
}
