//! What keeps a snapshot, after its commit: extend, hold, release, policy, drop of a namespace.
//!
//! Every decision here runs on the writer thread over the rows as they are, asks the pure rules of
//! `protocol/src/retention.rs`, and writes the snapshot's row, the locks of its nodes and the
//! ledger entry in one batch. So no moment exists in which a lock stands on record and not on the
//! nodes, and no crash leaves a lock that is shorter than what was acknowledged. Nothing here can
//! end a lock earlier: [`strongroom_protocol::retention::Lock::extended`] refuses, and node locks
//! only rise. What is refused is entered in the ledger too.
//!
//! A change of policy writes the policy's row alone: existing snapshots carry their own locks and
//! are not touched. A policy that is below the one in force is proposed, not set (`proposals.rs`).

use std::sync::Arc;

use strongroom_protocol::entry::{Event, Wish};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, RecordDigest};
use strongroom_protocol::limits::REASON_MAX_BYTES;
use strongroom_protocol::message::{LockState, Outcome, Retain};
use strongroom_protocol::policy::Policy;
use strongroom_protocol::proposal::Operation;
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::{FOREVER, Kept, Lock, Moment, RetentionError};

use crate::error::{Refusal, ServerError};
use crate::guards::Refused;
use crate::lock::{Tree, ahead_of, lock_tree, node_lock_end};
use crate::registry::{Namespace, Principal};
use crate::repository::Repository;
use crate::repository::waiting::{is_about, withdraw};
use crate::rows::{HoldRow, NamespaceRow, SeenRow, SnapshotRow};
use crate::store::Store;
use crate::store::schema::Family;
use crate::writer::Decision;

impl Repository {
    /// Extends a snapshot's lock, raises its mode, or both; refuses whatever would weaken it.
    pub fn retain(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        record: &RecordDigest,
        wish: Retain,
    ) -> Result<LockState, ServerError> {
        let (registry, principal) = (self.registry.clone(), principal.clone());
        let (actor, id, record) = (principal.id, *namespace, *record);
        let (entries, clock) = (self.guards.entries.clone(), self.clock.clone());
        self.lock_ahead_of(&id, &record, |policy, source, lock, now| {
            lock.extended(&policy.rule_for(source), now, wish.lock_wanted, wish.mode).ok()
        })?;
        self.writer.decide(move |decision| {
            let namespace = registry.standing(&principal, &id)?;
            let mut found = Found::look_up(decision.store, &namespace, &record)?;
            let rule = namespace.row.policy.rule_for(&found.record.body.source);
            let old = found.row.lock;
            match old.extended(&rule, decision.moment(), wish.lock_wanted, wish.mode) {
                Ok(lock) => {
                    found.set_lock(decision, &namespace, lock)?;
                    let event = Event::Retained { record, lock };
                    decision.enter(actor, namespace.row.namespace, event);
                    Ok(Ok(LockState { record, lock }))
                }
                Err(error @ (RetentionError::Shortens | RetentionError::LowersMode)) => {
                    let refused =
                        Refused { principal: actor, wish: "shorten", record: Some(record) };
                    if entries.is_due(refused, clock.monotonic()) {
                        let event = Event::Refused { record, wish: Wish::Shorten, lock: old };
                        decision.enter(actor, namespace.row.namespace, event);
                    }
                    Ok(Err(refused_wish(error)))
                }
                Err(error) => Err(refused_wish(error)),
            }
        })?
    }

    /// Places a legal hold. A snapshot that is held already stays so.
    pub fn place_hold(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        record: &RecordDigest,
        reason: String,
    ) -> Result<LockState, ServerError> {
        let (registry, principal) = (self.registry.clone(), principal.clone());
        let (actor, id, record) = (principal.id, *namespace, *record);
        check_reason(&reason)?;
        let held = |lock| Some(Lock { is_held: true, ..lock });
        self.lock_ahead_of(&id, &record, |_, _, lock, _| held(lock))?;
        self.writer.decide(move |decision| {
            let namespace = registry.standing(&principal, &id)?;
            let mut found = Found::look_up(decision.store, &namespace, &record)?;
            // A second hold changes nothing, but its reason is on record too.
            let digest = *blake3::hash(reason.as_bytes()).as_bytes();
            let leaf = decision.enter(actor, id, Event::HoldPlaced { record, reason: digest });
            decision.state(leaf, reason.as_bytes());
            if !found.row.lock.is_held {
                let lock = Lock { is_held: true, ..found.row.lock };
                let hold = HoldRow { placed_ms: decision.now_ms, principal: actor, reason };
                let key = HoldRow::key(namespace.number, &record);
                decision.batch.put(Family::Holds, key, hold.encode());
                found.set_lock(decision, &namespace, lock)?;
            }
            withdraw(decision, |operation| is_about(operation, &record))?;
            Ok(LockState { record, lock: found.row.lock })
        })
    }

    /// Locks the nodes of a snapshot as far as its new lock will need, in slices, so that a huge
    /// tree keeps no other decision waiting. A step more makes up for the time until the decision.
    /// If that is refused after all, the nodes stay locked for longer, which harms nobody.
    pub(super) fn lock_ahead_of(
        &self,
        namespace: &NamespaceId,
        record: &RecordDigest,
        change: impl FnOnce(&Policy, &Label, Lock, Moment) -> Option<Lock>,
    ) -> Result<(), ServerError> {
        let namespace = self.namespace(namespace)?;
        let found = Found::look_up(&self.store, &namespace, record)?;
        let now = self.moment();
        let changed = change(&namespace.row.policy, &found.record.body.source, found.row.lock, now);
        let Some(lock) = changed else { return Ok(()) };
        let end = ahead_of(node_lock_end(&lock, now.retention_seconds), now.retention_seconds);
        self.lock_in_slices(found.tree(&namespace), end)
    }

    /// Releases a legal hold; the lock beside it stays as it is.
    pub fn release_hold(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        record: &RecordDigest,
        reason: String,
    ) -> Result<LockState, ServerError> {
        let (registry, principal) = (self.registry.clone(), principal.clone());
        let (actor, id, record) = (principal.id, *namespace, *record);
        check_reason(&reason)?;
        self.writer.decide(move |decision| {
            let namespace = registry.standing(&principal, &id)?;
            let mut found = Found::look_up(decision.store, &namespace, &record)?;
            if found.row.lock.is_held {
                found.row.lock.is_held = false;
                decision.batch.delete(Family::Holds, HoldRow::key(namespace.number, &record));
                let key = SnapshotRow::key(namespace.number, found.commit);
                decision.batch.put(Family::Snapshots, key, found.row.encode());
                let digest = *blake3::hash(reason.as_bytes()).as_bytes();
                let event = Event::HoldReleased { record, reason: digest };
                let leaf = decision.enter(actor, id, event);
                decision.state(leaf, reason.as_bytes());
            }
            Ok(LockState { record, lock: found.row.lock })
        })
    }

    /// The policy of a namespace.
    pub fn policy(&self, namespace: &NamespaceId) -> Result<Policy, ServerError> {
        Ok(self.namespace(namespace)?.row.policy.clone())
    }

    /// Sets a policy at once, or proposes it where it is below the one in force.
    pub fn set_policy(
        self: &Arc<Self>,
        principal: &Principal,
        namespace: &NamespaceId,
        policy: Policy,
    ) -> Result<Outcome, ServerError> {
        let id = self.namespace(namespace)?.row.namespace;
        policy.check().map_err(refused_wish)?;
        let (repository, actor) = (self.clone(), principal.clone());
        let wished = policy.clone();
        let is_done = self.writer.decide(move |decision| {
            let current = repository.registry.standing(&actor, &id)?;
            if wished.is_below(&current.row.policy) {
                return Ok(false);
            }
            repository.write_policy(decision, actor.id, &current, wished)?;
            Ok(true)
        })?;
        if is_done {
            return Ok(Outcome { is_done, proposal: None });
        }
        self.propose(principal, Operation::LowerPolicy { namespace: id, policy })
    }

    /// Puts a policy into force from the next commit on.
    pub(super) fn write_policy(
        &self,
        decision: &mut Decision<'_>,
        actor: PrincipalId,
        namespace: &Namespace,
        policy: Policy,
    ) -> Result<(), ServerError> {
        let id = namespace.row.namespace;
        let event =
            Event::PolicySet { policy: policy.digest(), rule: policy.rule, quota: policy.quota };
        let leaf = decision.enter(actor, id, event);
        decision.state(leaf, &policy.encode());
        let is_of_it = |operation: &Operation| match operation {
            Operation::LowerPolicy { namespace, .. } => *namespace == id,
            _ => false,
        };
        withdraw(decision, is_of_it)?;
        let row = NamespaceRow { policy, ..namespace.row.clone() };
        let key = NamespaceRow::key(namespace.number);
        decision.batch.put(Family::Namespaces, key, row.encode());
        self.registry.replace_row(&id, row);
        Ok(())
    }

    /// Removes a namespace that holds no snapshot. Its number is never used again, so what is left
    /// of its rows can be seen by nobody; garbage collection takes the bytes.
    pub fn drop_namespace(self: &Arc<Self>, name: &Label) -> Result<(), ServerError> {
        let unknown = || ServerError::Operator(format!("no namespace is called {name}"));
        let id = self.registry.namespace_named(name).ok_or_else(unknown)?.row.namespace;
        let repository = self.clone();
        self.writer.decide(move |decision| {
            let namespace = repository.namespace(&id)?;
            let prefix = namespace.number.to_be_bytes();
            if let Some((_, value)) = decision.store.last(Family::Snapshots, &prefix)? {
                let lock = SnapshotRow::decode(&value)?.lock;
                let why = lock.kept(decision.moment()).map_or_else(
                    || "forget or prune them first".to_owned(),
                    |kept| refused_by(kept, &lock).to_string(),
                );
                return Err(ServerError::Operator(format!(
                    "namespace {} holds snapshots, so it cannot be dropped: {why}",
                    namespace.row.name
                )));
            }
            let row = NamespaceRow { is_dropped: true, ..namespace.row.clone() };
            let key = NamespaceRow::key(namespace.number);
            decision.batch.put(Family::Namespaces, key, row.encode());
            decision.enter(PrincipalId::LOCAL, id, Event::NamespaceDropped);
            repository.end_readmission(decision, &id)?;
            repository.revoke_members(decision, &id)?;
            withdraw(decision, |operation| operation.namespace() == Some(id))?;
            repository.registry.remove_namespace(&id);
            repository.sessions.end_all(&id);
            Ok(())
        })
    }
}

/// A snapshot as it stands; on the writer thread, as it stays until the decision is written.
pub(super) struct Found {
    pub(super) commit: u64,
    pub(super) row: SnapshotRow,
    pub(super) record: Record,
}

impl Found {
    pub(super) fn look_up(
        store: &Store,
        namespace: &Namespace,
        record: &RecordDigest,
    ) -> Result<Self, ServerError> {
        let seen_key = SeenRow::key(namespace.number, record);
        let seen = store.get(Family::Seen, &seen_key)?;
        let commit = SeenRow::decode(&seen.ok_or_else(ServerError::not_found)?)?.commit;
        let key = SnapshotRow::key(namespace.number, commit);
        let value = store.get(Family::Snapshots, &key)?;
        let row = SnapshotRow::decode(&value.ok_or_else(ServerError::not_found)?)?;
        let record = Record::decode(&row.record)?;
        Ok(Self { commit, row, record })
    }

    fn tree(&self, namespace: &Namespace) -> Tree {
        let body = &self.record.body;
        Tree { ns: namespace.number, root: body.root, level: body.root_level }
    }

    /// Writes a lock that is not weaker than the one before: nodes and row in one batch.
    pub(super) fn set_lock(
        &mut self,
        decision: &mut Decision<'_>,
        namespace: &Namespace,
        lock: Lock,
    ) -> Result<(), ServerError> {
        let now = decision.retention_seconds;
        let (store, batch) = (decision.store, &mut decision.batch);
        let (tree, end) = (self.tree(namespace), node_lock_end(&lock, now));
        lock_tree(store, batch, tree, now, end, &|_, _| false)?;
        self.row.lock = lock;
        let key = SnapshotRow::key(namespace.number, self.commit);
        batch.put(Family::Snapshots, key, self.row.encode());
        Ok(())
    }
}

/// What a peer is told whose wish no rule allows.
pub(super) fn refused_wish(error: RetentionError) -> ServerError {
    let code = match error {
        RetentionError::PastDate | RetentionError::BadWish => ErrorCode::BadDate,
        RetentionError::Shortens | RetentionError::LowersMode => ErrorCode::Shortens,
        _ => ErrorCode::RetentionOutOfPolicy,
    };
    ServerError::peer(code, error.to_string())
}

/// What a peer is told who asks for what a lock, a hold or a suspect clock forbids.
pub(super) fn refused_by(kept: Kept, lock: &Lock) -> ServerError {
    let (code, message) = match kept {
        Kept::Held => {
            (ErrorCode::Held, "a legal hold keeps the snapshot until it is released".to_owned())
        }
        Kept::ClockSuspect => (
            ErrorCode::ClockSuspect,
            "nothing ends while the retention clock is under suspicion; the operator sees why \
             with: strongroomd clock status"
                .to_owned(),
        ),
        Kept::Locked => (
            ErrorCode::Locked,
            format!("the snapshot is locked {} ({} mode)", end_text(lock), lock.mode.name()),
        ),
    };
    let end = lock.until_seconds.max(lock.until_wall_seconds);
    ServerError::Peer(Refusal {
        code,
        message,
        missing: Vec::new(),
        locked_until_seconds: (kept == Kept::Locked && end != FOREVER).then_some(end),
    })
}

fn end_text(lock: &Lock) -> String {
    if lock.until_seconds == FOREVER {
        return "without end".into();
    }
    let end = i64::try_from(lock.until_seconds.max(lock.until_wall_seconds));
    let end = end.ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    end.map_or_else(|| "until a distant date".into(), |instant| format!("until {instant}"))
}

fn check_reason(reason: &str) -> Result<(), ServerError> {
    let is_short = u32::try_from(reason.len()).is_ok_and(|length| length <= REASON_MAX_BYTES);
    if is_short && !reason.trim().is_empty() {
        return Ok(());
    }
    let message = format!("give a reason of at most {REASON_MAX_BYTES} bytes");
    Err(ServerError::peer(ErrorCode::BadRequest, message))
}
