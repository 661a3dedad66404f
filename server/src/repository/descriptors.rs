//! Newer descriptors of a namespace, and what follows from them: who takes its backups.
//!
//! A server takes backups of a namespace only while the newest descriptor that it has names its
//! ledger key. So an unpromoted replica takes none, and a primary takes none from the moment on
//! when it learns that the namespace has moved.
//!
//! A descriptor is taken if it is the authority's, the next version, and names the one that is
//! here as the one before; nothing else about who brings it matters. It comes by command
//! (`promote`, `demote`), from a client, or from a primary. One decision holds row and ledger
//! entry. *Crash: before it or after it.* No version is ever replaced, and all are kept and served.

use std::ops::ControlFlow;
use std::sync::Arc;

use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{DescriptorDigest, Label, NamespaceId, PrincipalId, PublicKey};
use strongroom_protocol::message::DescriptorOffered;
use strongroom_protocol::promotion::PromotionRequest;

use crate::error::ServerError;
use crate::guards::Refused;
use crate::registry::{Namespace, Principal};
use crate::replica_rows::Enrolment;
use crate::repository::Repository;
use crate::repository::replication::Step;
use crate::rows::descriptor_key;
use crate::server_keys::pin_of_ed25519;
use crate::store::schema::Family;
use crate::writer::Decision;

/// What a command wants of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Move {
    /// The namespace comes to this server.
    Promote,
    /// The namespace leaves this server.
    Demote,
}

/// What became of a descriptor that a primary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is the newest here now.
    Taken,
    /// It was here before.
    Known,
    /// It does not come after those that are here.
    Refused,
}

impl Repository {
    /// Whether this server takes backups of a namespace.
    pub fn is_primary_of(&self, namespace: &Namespace) -> bool {
        namespace.descriptor.names(&self.keys.ledger_public())
    }

    /// Whether what the server with this ledger key commits to a namespace is taken over here. As
    /// long as the namespace's backups come to this server, only from those that take them too.
    pub fn takes_from(&self, namespace: &Namespace, ledger_key: &PublicKey) -> bool {
        !self.is_primary_of(namespace) || namespace.descriptor.names(ledger_key)
    }

    /// A namespace's descriptor, encoded: the newest, or a certain version.
    pub fn descriptor(
        &self,
        namespace: &NamespaceId,
        version: Option<u64>,
    ) -> Result<Vec<u8>, ServerError> {
        let namespace = self.namespace(namespace)?;
        let Some(version) = version else { return Ok(namespace.descriptor.encoded().to_vec()) };
        let key = descriptor_key(namespace.number, version);
        self.store.get(Family::Descriptors, &key)?.ok_or_else(ServerError::not_found)
    }

    /// The descriptor with this digest, which a namespace had once or has now.
    pub fn descriptor_with(
        &self,
        namespace: &NamespaceId,
        digest: &DescriptorDigest,
    ) -> Result<Option<VerifiedDescriptor>, ServerError> {
        let namespace = self.namespace(namespace)?;
        if namespace.descriptor.digest() == *digest {
            return Ok(Some(namespace.descriptor.clone()));
        }
        let prefix = namespace.number.to_be_bytes();
        let mut found = None;
        self.store.scan(Family::Descriptors, &prefix, None, &mut |_, encoded| {
            let one = VerifiedDescriptor::decode(encoded).ok();
            found = one.filter(|one| one.digest() == *digest);
            if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// What whoever keeps the authority key must know in order to move a namespace here.
    pub fn promotion_request(&self, name: &Label) -> Result<PromotionRequest, ServerError> {
        let namespace = self.namespace_called(name)?;
        Ok(PromotionRequest {
            namespace_name: name.clone(),
            descriptor: namespace.descriptor.encoded().to_vec(),
            ledger_key: self.keys.ledger_public(),
            tls_key: self.keys.tls_key_digest(),
            vouch: self.keys.vouch(),
            addresses: self.addresses(),
            checkpoint: self.ledger.head().note,
            snapshots: self.usage(&namespace)?.snapshots,
        })
    }

    /// Takes a descriptor by command. The same one again changes nothing. Returns its version.
    pub fn move_namespace(
        self: &Arc<Self>,
        name: &Label,
        wanted: Move,
        encoded: &[u8],
    ) -> Result<u64, ServerError> {
        let operator = |message: String| Err(ServerError::Operator(message));
        let id = self.namespace_called(name)?.row.namespace;
        let descriptor = match VerifiedDescriptor::decode_for(encoded, &id, 0) {
            Ok(descriptor) => descriptor,
            Err(error) => return operator(format!("{error}; nothing was changed")),
        };
        let version = descriptor.contents().version;
        match (wanted, descriptor.names(&self.keys.ledger_public())) {
            (Move::Promote, false) => {
                return operator(format!(
                    "descriptor: version {version} does not name this server; make a request here \
                     (promote --request FILE) and have that one signed; nothing was changed"
                ));
            }
            (Move::Demote, true) => {
                return operator(format!(
                    "descriptor: version {version} names this server: it is for promote, not for \
                     demote; nothing was changed"
                ));
            }
            _ => {}
        }
        let repository = self.clone();
        self.writer.decide(move |decision| {
            match repository.take(decision, PrincipalId::LOCAL, descriptor) {
                Err(ServerError::Peer(refusal)) => {
                    Err(ServerError::Operator(format!("{}; nothing was changed", refusal.message)))
                }
                outcome => outcome.map(|_| version),
            }
        })
    }

    /// Takes a descriptor that a client brings. The same one again changes nothing.
    ///
    /// Who brings it proves nothing and need not: the authority signed it. It may not name other
    /// servers, because a namespace moves by command; and it is taken where the namespace's backups
    /// are taken, so that all versions are made in one order. That the authority signed two of one
    /// version is entered in the ledger, once a minute for each principal.
    pub fn offer_descriptor(
        self: &Arc<Self>,
        principal: &Principal,
        namespace: &NamespaceId,
        encoded: &[u8],
    ) -> Result<DescriptorOffered, ServerError> {
        let refuse = |message: String| ServerError::peer(ErrorCode::BadDescriptor, message);
        let descriptor = VerifiedDescriptor::decode_for(encoded, namespace, 0)
            .map_err(|error| refuse(error.to_string()))?;
        let (digest, version) = (descriptor.digest(), descriptor.contents().version);
        let (repository, principal) = (self.clone(), principal.clone());
        self.writer.decide(move |decision| {
            let id = descriptor.namespace();
            let here = repository.registry.standing(&principal, &id)?;
            let key = descriptor_key(here.number, version);
            let known = decision.store.get(Family::Descriptors, &key)?;
            if known.is_some_and(|known| known == descriptor.encoded()) {
                return Ok(Ok(DescriptorOffered { version, is_new: false }));
            }
            let ledger_key = repository.keys.ledger_public();
            refuse_unless_primary(&here, &ledger_key)?;
            let newest = here.descriptor.contents();
            let is_newer = version > newest.version;
            if is_newer && descriptor.contents().ledger_keys != newest.ledger_keys {
                return Err(refuse(
                    "descriptor: it names other servers; a namespace moves with `strongroomd \
                     promote` and `demote` only"
                        .into(),
                ));
            }
            match repository.take(decision, principal.id, descriptor) {
                Ok(is_new) => Ok(Ok(DescriptorOffered { version, is_new })),
                // The authority signed it all the same, so the refusal is entered: an outcome.
                Err(refusal @ ServerError::Peer(_)) => {
                    let wish = if is_newer { "does not follow" } else { "another is here" };
                    let refused = Refused { principal: principal.id, wish, record: None };
                    if !repository.guards.entries.is_due(refused, repository.clock.monotonic()) {
                        return Ok(Err(refusal));
                    }
                    if !is_newer {
                        tracing::error!(
                            namespace = %id, version,
                            "ALARM: another descriptor of a version that is here was offered: \
                             the authority key signed twice or was stolen"
                        );
                    }
                    let event =
                        Event::DescriptorRefused { ledger_key, descriptor: digest, version };
                    decision.enter(principal.id, id, event);
                    Ok(Err(refusal))
                }
                Err(error) => Err(error),
            }
        })?
    }

    /// Takes a descriptor that a primary has; refuses what cannot come after those that are here.
    pub fn receive_descriptor(
        self: &Arc<Self>,
        primary: &Enrolment,
        descriptor: VerifiedDescriptor,
    ) -> Result<Outcome, ServerError> {
        let repository = self.clone();
        self.change_primary(primary, move |decision, row| {
            match repository.take(decision, row.actor(), descriptor) {
                Ok(is_new) => {
                    row.owes_entry |= is_new;
                    Ok(if is_new { Outcome::Taken } else { Outcome::Known })
                }
                Err(ServerError::Peer(refusal)) if refusal.code == ErrorCode::BadDescriptor => {
                    Ok(Outcome::Refused)
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Passes an entry that names a descriptor which cannot come after those that are here, and
    /// enters that it was refused.
    pub fn refuse_descriptor(
        &self,
        primary: &Enrolment,
        step: Step,
        namespace: NamespaceId,
        (descriptor, version): (DescriptorDigest, u64),
    ) -> Result<(), ServerError> {
        self.change_primary(primary, move |decision, row| {
            step.take(row);
            let ledger_key = row.ledger_key;
            let event = Event::DescriptorRefused { ledger_key, descriptor, version };
            decision.enter(row.actor(), namespace, event);
            Ok(())
        })
    }

    /// Adds row and entry of the next descriptor; false, if it is here already.
    fn take(
        &self,
        decision: &mut Decision<'_>,
        actor: PrincipalId,
        descriptor: VerifiedDescriptor,
    ) -> Result<bool, ServerError> {
        let refuse = |message: String| Err(ServerError::peer(ErrorCode::BadDescriptor, message));
        let id = descriptor.namespace();
        let here = self.namespace(&id)?;
        let version = descriptor.contents().version;
        let key = descriptor_key(here.number, version);
        if let Some(known) = decision.store.get(Family::Descriptors, &key)? {
            let known = VerifiedDescriptor::decode(&known).map(|known| known.digest());
            if known == Ok(descriptor.digest()) {
                return Ok(false);
            }
            return refuse(format!(
                "descriptor: there is another version {version} here: the authority key signed \
                 twice or was stolen; ask whoever keeps the recovery kit"
            ));
        }
        if let Err(error) = descriptor.check_follows(&here.descriptor) {
            return refuse(error.to_string());
        }
        // A key has one owner: a descriptor that names somebody else's would shut him out.
        let access_key = descriptor.contents().access_key;
        let is_new_key = access_key != here.descriptor.contents().access_key;
        if is_new_key && self.registry.principal(&pin_of_ed25519(&access_key)).is_some() {
            return refuse("the descriptor's access key is in use already".into());
        }
        let digest = descriptor.digest();
        decision.batch.put(Family::Descriptors, key, descriptor.encoded());
        decision.enter(actor, id, Event::DescriptorTaken { descriptor: digest, version });
        self.registry.replace_descriptor(descriptor);
        Ok(true)
    }

    fn namespace_called(&self, name: &Label) -> Result<Arc<Namespace>, ServerError> {
        let unknown = || {
            ServerError::Operator(format!(
                "no namespace is called {name}: see `strongroomd namespaces --data DIR`"
            ))
        };
        self.registry.namespace_named(name).ok_or_else(unknown)
    }
}

/// The fence: refuses backups of a namespace whose descriptor does not name this server.
pub(super) fn refuse_unless_primary(
    namespace: &Namespace,
    ledger_key: &PublicKey,
) -> Result<(), ServerError> {
    if namespace.descriptor.names(ledger_key) {
        return Ok(());
    }
    Err(ServerError::peer(
        ErrorCode::NotPrimary,
        format!(
            "this server takes no backups of the namespace: version {} of its descriptor names \
             another; back up there, or have this server promoted",
            namespace.descriptor.contents().version
        ),
    ))
}
