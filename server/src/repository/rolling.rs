//! A principal puts new keys in the place of its own
//! (`docs/decisions/0019-keys-that-roll-over.md`).
//!
//! Demanded of a request: its connection has the old TLS key; the old signing key vouches for both
//! new ones; both new ones sign that they are held, with the connection's exporter. Row, registry
//! and ledger entry change in one decision. *Crash: before it or after it.* Id, role, sources with
//! their numbers, sessions and proposals stay. The old TLS key is good for nothing from the next
//! request on, and is remembered: whoever still uses it is told, and it is an alarm, because then
//! two have had the same key.
//!
//! A server that lends its connections (role `feeder`) rolls its TLS key over alone: its signing
//! key is its ledger key, by which it is followed.
//!
//! An answer that gets lost is no matter: the client asks with the new key whether it is known.

use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, PrincipalId, TlsKeyDigest};
use strongroom_protocol::message::KeysRolled;
use strongroom_protocol::role::Role;
use strongroom_protocol::roll::{NewKeys, RollRequest};

use crate::error::ServerError;
use crate::principal_row::PrincipalRow;
use crate::registry::Principal;
use crate::replica_rows::{PrimaryRow, Reach};
use crate::repository::Repository;
use crate::repository::replication::{all_primaries, put_primary};
use crate::store::schema::Family;
use crate::tls::verify_p256;
use crate::writer::Decision;

impl Repository {
    /// Gives a principal the keys that its request names. `connection` is the TLS key and the
    /// exporter of the connection that the request came on.
    pub fn roll_keys(
        self: &std::sync::Arc<Self>,
        principal: &Principal,
        connection: (TlsKeyDigest, &[u8; 32]),
        body: &[u8],
    ) -> Result<KeysRolled, ServerError> {
        let request = RollRequest::decode(body).map_err(|error| refuse(&error.to_string()))?;
        let keys = request.keys(self.keys.ledger_public());
        check(principal, &request, &keys, connection.1)?;
        let (repository, principal) = (self.clone(), principal.clone());
        let old_tls_key = connection.0;
        self.writer.decide(move |decision| {
            repository.registry.refuse_fallen(&principal)?;
            let key = PrincipalRow::key(&principal.id);
            let value = decision.store.get(Family::Principals, &key)?;
            let value = value.ok_or_else(|| {
                let message = "the access key of a kit is no principal: it is changed by the \
                               namespace's next descriptor";
                ServerError::peer(ErrorCode::NotAllowed, message)
            })?;
            let row = PrincipalRow::decode(&value)?;
            if row.tls_key != old_tls_key || row.revoked_ms != 0 {
                return Err(refuse("these are not the keys that are to be rolled over"));
            }
            if repository.registry.is_taken(&keys.tls_key) {
                return Err(refuse("the new TLS key is in use already; make another"));
            }
            // It is known by the key of its listener, which is followed (`tls_roll.rs`).
            if repository.feeds()?.iter().any(|feed| feed.principal == principal.id) {
                return Err(refuse("the keys of a server that connections are lent to stay"));
            }
            let row = PrincipalRow {
                tls_key: keys.tls_key,
                signing_key: keys.signing_key,
                keys_ms: decision.now_ms,
                former_tls_key: Some(row.tls_key),
                ..row
            };
            decision.batch.put(Family::Principals, key, row.encode());
            let NewKeys { principal: id, tls_key, signing_key, .. } = keys;
            let event =
                Event::KeysRolled { principal: id, tls_key, signing_key, vouch: request.vouch };
            decision.enter(id, row.namespace.unwrap_or(NamespaceId([0; 32])), event);
            repository.follow_feeder(decision, &row, id)?;
            repository.registry.replace_keys(id, &row);
            Ok(KeysRolled { principal: id, rolled_ms: row.keys_ms })
        })
    }
}

impl Repository {
    /// A primary that lends its connections dials with the key of its principal.
    fn follow_feeder(
        &self,
        decision: &mut Decision<'_>,
        principal: &PrincipalRow,
        id: PrincipalId,
    ) -> Result<(), ServerError> {
        if principal.role == Role::Feeder {
            let is_it = |row: &PrimaryRow| row.reach == Reach::Lent && row.principal == id;
            for row in all_primaries(decision.store)?.into_iter().filter(is_it) {
                put_primary(decision, &PrimaryRow { tls_key: principal.tls_key, ..row });
            }
        }
        Ok(())
    }
}

/// Whether all four keys stand behind the request, on this connection.
fn check(
    principal: &Principal,
    request: &RollRequest,
    keys: &NewKeys,
    exporter: &[u8; 32],
) -> Result<(), ServerError> {
    let is_held =
        verify_p256(&request.tls_point, &request.tls_message(exporter), &request.tls_possession);
    // A server that lends is known by its ledger key, which lends.
    let is_kept = principal.role != Role::Feeder || request.signing_key == principal.signing_key;
    let is_good = request.principal == principal.id
        && is_kept
        && keys.check(&principal.signing_key, &request.vouch).is_ok()
        && request.check_held(exporter).is_ok()
        && is_held;
    match is_good {
        true => Ok(()),
        // Which of them is wrong is nobody's business who does not have them all.
        false => Err(refuse("the new keys are not vouched for by the old ones, or not held")),
    }
}

fn refuse(message: &str) -> ServerError {
    ServerError::peer(ErrorCode::BadRequest, message)
}
