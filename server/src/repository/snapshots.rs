//! Snapshots after the commit: list, read, prove, forget.
//!
//! Forget looks at the lock on the writer thread, where nothing can change it in between, and is
//! refused for every role while the lock lasts. It drops the record only; the bytes stay until
//! garbage collection finds no lock and no record above them.

use std::ops::ControlFlow;

use strongroom_protocol::entry::{Event, Wish};
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, RecordDigest, SealedDigest};
use strongroom_protocol::limits::LIST_MAX_COUNT;
use strongroom_protocol::message::{HexBytes, SnapshotPage};
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::Moment;

use crate::error::ServerError;
use crate::guards::Refused;
use crate::registry::{Namespace, Principal};
use crate::repository::Repository;
use crate::repository::commit::{SNAPSHOT_COUNTER, read_counter};
use crate::repository::retention::{Found, refused_by};
use crate::rows::{SeenRow, SnapshotRow};
use crate::store::error::StoreError;
use crate::store::schema::Family;
use crate::writer::Decision;

/// A page ends when its bodies take this much.
const PAGE_BYTES: usize = 1024 * 1024;

impl Repository {
    /// A page of the snapshots of a namespace with commit numbers above `after`, oldest first.
    pub fn list(
        &self,
        namespace: &NamespaceId,
        source: Option<&Label>,
        after: u64,
    ) -> Result<SnapshotPage, ServerError> {
        let (ns, now) = (self.namespace(namespace)?.number, self.moment());
        let start = SnapshotRow::key(ns, after.saturating_add(1));
        let max = usize::try_from(LIST_MAX_COUNT).unwrap_or(usize::MAX);
        let (mut rows, mut bytes, mut next_after, mut failure) = (Vec::new(), 0usize, None, None);
        let mut collect = |key: &[u8], value: &[u8]| {
            let row = match page_row(key, value, now) {
                Ok((row, row_source)) if source.is_none_or(|wanted| *wanted == row_source) => row,
                Ok(_) => return ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            };
            bytes = bytes.saturating_add(row.body.0.len());
            next_after = Some(row.commit);
            rows.push(row);
            match rows.len() < max && bytes < PAGE_BYTES {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        self.store.scan(Family::Snapshots, &ns.to_be_bytes(), Some(&start), &mut collect)?;
        if let Some(error) = failure {
            return Err(error);
        }
        let is_full = rows.len() >= max || bytes >= PAGE_BYTES;
        let next_after = next_after.filter(|_| is_full);
        Ok(SnapshotPage { rows, next_after, retention_seconds: now.retention_seconds })
    }

    /// A whole record, and a ledger entry that it was read.
    pub fn record(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        digest: &RecordDigest,
    ) -> Result<Vec<u8>, ServerError> {
        let namespace = self.namespace(namespace)?;
        let row = Found::look_up(&self.store, &namespace, digest)?.row;
        let (actor, id, record) = (principal.id, namespace.row.namespace, *digest);
        self.writer.decide(move |decision| {
            decision.enter(actor, id, Event::RecordRead { record });
            Ok(())
        })?;
        Ok(row.record)
    }

    /// The proof that a snapshot's commit is in the ledger.
    pub fn receipt(
        &self,
        namespace: &NamespaceId,
        digest: &RecordDigest,
    ) -> Result<Receipt, ServerError> {
        let ns = self.namespace(namespace)?.number;
        let seen = self.store.get(Family::Seen, &SeenRow::key(ns, digest))?;
        let seen = seen.ok_or_else(ServerError::not_found)?;
        self.receipt_of(SeenRow::decode(&seen)?)
    }

    /// Refuses digests that are not in the namespace, or known to be damaged, before an answer
    /// begins.
    pub fn check_readable(
        &self,
        namespace: &NamespaceId,
        digests: &[SealedDigest],
    ) -> Result<(), ServerError> {
        let ns = self.namespace(namespace)?.number;
        let rows = self.store.lookup(ns, digests)?;
        if !rows.iter().all(Option::is_some) {
            return Err(ServerError::not_found());
        }
        let damaged = rows.iter().zip(digests).find(|(row, _)| row.is_some_and(|row| row.damaged));
        match damaged {
            Some((_, digest)) => Err(StoreError::Damaged(*digest).into()),
            None => Ok(()),
        }
    }

    /// Gives envelopes in the order asked. What is found to be damaged is known from then on.
    pub fn read(
        &self,
        namespace: &NamespaceId,
        digests: &[SealedDigest],
        each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ServerError> {
        let ns = self.namespace(namespace)?.number;
        let outcome = self.store.read(ns, digests, &mut |_, envelope| match each(envelope) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(StoreError::Invalid("reader went away")),
        });
        if outcome.as_ref().is_err_and(StoreError::is_damage) {
            self.mark_damage()?;
        }
        Ok(outcome?)
    }

    /// The proof of a commit that was found by its row. The row is readable before it is durable
    /// and its leaf is published: whoever is that early waits until the writer thread is through.
    pub(super) fn receipt_of(&self, seen: SeenRow) -> Result<Receipt, ServerError> {
        if seen.leaf_index >= self.ledger.head().size {
            self.writer.decide(|_| Ok(()))?;
        }
        self.ledger.receipt(seen.leaf_index)
    }

    /// Forgets a snapshot whose lock has ended; refuses, on record, while it lasts.
    pub fn forget(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        digest: &RecordDigest,
    ) -> Result<(), ServerError> {
        let (registry, principal) = (self.registry.clone(), principal.clone());
        let (actor, id, record) = (principal.id, *namespace, *digest);
        let (entries, clock) = (self.guards.entries.clone(), self.clock.clone());
        self.writer.decide(move |decision| {
            let namespace = registry.standing(&principal, &id)?;
            let found = Found::look_up(decision.store, &namespace, &record)?;
            let lock = found.row.lock;
            if let Some(kept) = lock.kept(decision.moment()) {
                // The refusal is entered, so it is an outcome, not an error.
                let refused = Refused { principal: actor, wish: "forget", record: Some(record) };
                if entries.is_due(refused, clock.monotonic()) {
                    let event = Event::Refused { record, wish: Wish::Forget, lock };
                    decision.enter(actor, namespace.row.namespace, event);
                }
                return Ok(Err(refused_by(kept, &lock)));
            }
            forget_found(decision, actor, &namespace, &found, 0)?;
            Ok(Ok(()))
        })?
    }
}

/// Drops the record of a snapshot that nothing keeps, or that `proposal` (its leaf, or 0) lifts:
/// the caller has looked, in this decision.
pub(super) fn forget_found(
    decision: &mut Decision<'_>,
    actor: PrincipalId,
    namespace: &Namespace,
    found: &Found,
    proposal: u64,
) -> Result<(), ServerError> {
    let listed = read_counter(decision.store, SNAPSHOT_COUNTER)?.saturating_sub(1);
    decision.batch.put(Family::Ledger, SNAPSHOT_COUNTER, listed.to_be_bytes());
    let key = SnapshotRow::key(namespace.number, found.commit);
    decision.batch.delete(Family::Snapshots, key);
    decision.change_usage(namespace.number, |usage| {
        usage.snapshots = usage.snapshots.saturating_sub(1);
        usage.bytes = usage.bytes.saturating_sub(found.row.record_bytes());
    })?;
    let event = Event::Forgotten {
        record: found.row.record_digest,
        commit: found.commit,
        lock: found.row.lock,
        proposal,
    };
    decision.enter(actor, namespace.row.namespace, event);
    Ok(())
}

fn page_row(
    key: &[u8],
    value: &[u8],
    now: Moment,
) -> Result<(strongroom_protocol::message::SnapshotRow, Label), ServerError> {
    let row = SnapshotRow::decode(value)?;
    let record = Record::decode(&row.record)?;
    let page_row = strongroom_protocol::message::SnapshotRow {
        record: row.record_digest,
        commit: SnapshotRow::commit_of(key)?,
        committed_ms: row.committed_ms,
        lock: row.lock,
        kept: row.lock.kept(now),
        body: HexBytes(record.body.encode()),
    };
    Ok((page_row, record.body.source))
}
