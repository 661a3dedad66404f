//! Servers that this one lends its connections to: each is a principal of role `replica` here, and
//! its row says where it is dialled. Both are written and ended in one decision.

use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId};
use strongroom_protocol::limits::FEEDS_MAX;
use strongroom_protocol::role::Role;

use crate::error::ServerError;
use crate::feeds::{FeedRow, FeedStatus};
use crate::principal_row::PrincipalRow;
use crate::registry::all_rows;
use crate::repository::Repository;
use crate::store::Store;
use crate::store::schema::Family;

const NOWHERE: NamespaceId = NamespaceId([0; 32]);

impl Repository {
    /// All servers that connections are lent to, by name.
    pub fn feeds(&self) -> Result<Vec<FeedRow>, ServerError> {
        let rows = all_rows(&self.store, Family::Feeds)?;
        rows.iter().map(|(_, value)| Ok(FeedRow::decode(value)?)).collect()
    }

    /// A server that connections are lent to; refuses names that are none.
    pub fn feed(&self, name: &Label) -> Result<FeedRow, ServerError> {
        read_feed(&self.store, name)
    }

    /// Whether a server may still ask what role `replica` may.
    pub fn is_fed(&self, row: &FeedRow) -> bool {
        let principal = self.registry.principal(&row.tls_key);
        principal.is_some_and(|principal| principal.id == row.principal)
    }

    /// All servers that connections are lent to, and how that goes.
    pub fn feed_statuses(&self) -> Result<Vec<FeedStatus>, ServerError> {
        let rows = self.feeds()?.into_iter();
        Ok(rows
            .map(|row| {
                let progress = self.followers.feeds().progress(&row.principal);
                FeedStatus {
                    is_revoked: !self.is_fed(&row),
                    name: row.name,
                    addresses: row.addresses,
                    ledger_key: row.ledger_key,
                    principal: row.principal,
                    is_paused: row.is_paused,
                    lent: progress.lent,
                    lent_ms: progress.lent_ms,
                    trouble: progress.trouble,
                    keys_ms: None,
                    keys_trouble: String::new(),
                }
            })
            .collect())
    }

    /// Lends connections to a server from now on: whoever holds its TLS key may ask over them what
    /// role `replica` may.
    pub fn add_feed(self: &std::sync::Arc<Self>, row: FeedRow) -> Result<(), ServerError> {
        let repository = self.clone();
        self.writer.decide(move |decision| {
            let refuse = |message: String| Err(ServerError::Operator(message));
            let others = all_rows(decision.store, Family::Feeds)?;
            if u32::try_from(others.len()).map_or(true, |count| count >= FEEDS_MAX) {
                return refuse(format!("connections are lent to at most {FEEDS_MAX} servers"));
            }
            for (_, value) in others {
                let other = FeedRow::decode(&value)?;
                if other.name == row.name || other.ledger_key == row.ledger_key {
                    return refuse(format!("{} is fed already; remove it first", other.name));
                }
            }
            if repository.registry.principal(&row.tls_key).is_some() {
                return refuse("that server's key is a principal here already".into());
            }
            let principal = PrincipalRow {
                role: Role::Replica,
                namespace: None,
                tls_key: row.tls_key,
                signing_key: row.ledger_key,
                display_name: format!("fed as {}", row.name),
                enrolled_ms: decision.now_ms,
                revoked_ms: 0,
                keys_ms: decision.now_ms,
                former_tls_key: None,
            };
            let key = PrincipalRow::key(&row.principal);
            decision.batch.put(Family::Principals, key, principal.encode());
            decision.batch.put(Family::Feeds, FeedRow::key(&row.name), row.encode());
            let FeedRow { ledger_key, tls_key, principal: id, .. } = row;
            let event = Event::FeedAdded { ledger_key, tls_key, principal: id };
            decision.enter(PrincipalId::LOCAL, NOWHERE, event);
            repository.registry.add_principal(id, &principal);
            Ok(())
        })
    }

    /// Lends nothing to a server, or goes on.
    pub fn pause_feed(&self, name: &Label, is_paused: bool) -> Result<(), ServerError> {
        let name = name.clone();
        self.writer.decide(move |decision| {
            let row = FeedRow { is_paused, ..read_feed(decision.store, &name)? };
            decision.batch.put(Family::Feeds, FeedRow::key(&name), row.encode());
            Ok(())
        })
    }

    /// Lends nothing to a server any more, and revokes it. *Crash between the two: revoked, and
    /// removed by the same command.*
    pub fn remove_feed(self: &std::sync::Arc<Self>, name: &Label) -> Result<(), ServerError> {
        let principal = self.feed(name)?.principal;
        self.revoke(principal)?;
        let (name, followers) = (name.clone(), self.followers.clone());
        self.writer.decide(move |decision| {
            // Another may stand under the name by now.
            if read_feed(decision.store, &name)?.principal == principal {
                decision.batch.delete(Family::Feeds, FeedRow::key(&name));
            }
            followers.feeds().forget(&principal);
            Ok(())
        })
    }
}

pub(super) fn read_feed(store: &Store, name: &Label) -> Result<FeedRow, ServerError> {
    let value = store.get(Family::Feeds, &FeedRow::key(name))?;
    let value = value.ok_or_else(|| {
        let message = "nothing is lent to a server of this name; strongroomd feed list has them";
        ServerError::Operator(format!("{name}: {message}"))
    })?;
    Ok(FeedRow::decode(&value)?)
}
