//! Servers that this one follows: their rows, how far they were followed, and what their ledgers
//! lead to here, but for the commit of a snapshot (`replicated.rs`).
//!
//! **The position is written in the same batch as what it led to.** Each verb that takes a [`Step`]
//! moves the primary's row to the place after one entry, together with the pending snapshot, the
//! lock or the hold that the entry led to. A crash leaves the row before an entry or after it, with
//! all that belongs to it; an entry that is taken over twice changes nothing the second time.
//!
//! Nothing here ends a lock earlier: a received lock is joined with the own one
//! ([`Lock::joined`]), and a release or a forget of the primary releases and forgets nothing.

use std::ops::ControlFlow;

use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, RecordDigest};
use strongroom_protocol::limits::{LABEL_MAX_BYTES, REPLICA_NAMESPACES_MAX};
use strongroom_protocol::merkle::Frontier;
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::Lock;

use crate::error::ServerError;
use crate::followers::{FollowState, PrimaryStatus};
use crate::registry::{Namespace, all_rows};
use crate::replica_rows::{Enrolment, PendingRow, PrimaryRow, Reach};
use crate::repository::Repository;
use crate::repository::pending::{each_pending, pending_where};
use crate::repository::retention::Found;
use crate::rows::{HoldRow, SeenRow};
use crate::store::Store;
use crate::store::schema::Family;
use crate::writer::Decision;

const NOWHERE: NamespaceId = NamespaceId([0; 32]);

/// The place after one entry of a primary's ledger.
#[derive(Debug, Clone)]
pub struct Step {
    /// The ledger up to there.
    pub followed: Frontier,
    /// The primary's retention clock, as the entry shows it, seconds since 1970.
    pub clock_seconds: u64,
}

/// What an entry of a primary says about a snapshot that is here or on its way.
#[derive(Debug, Clone, Copy)]
pub enum Received {
    /// It is locked so there.
    Lock(Lock),
    /// It is held there; the digest is that of the reason.
    Hold([u8; 32]),
    /// It was forgotten there.
    Forgotten,
}

impl Step {
    /// Moves a primary's row there.
    pub(super) fn take(self, row: &mut PrimaryRow) {
        row.followed = self.followed;
        row.clock_seconds = row.clock_seconds.max(self.clock_seconds);
    }
}

impl Repository {
    /// All primaries that are followed, by name.
    pub fn primaries(&self) -> Result<Vec<PrimaryRow>, ServerError> {
        let mut rows = all_primaries(&self.store)?;
        rows.retain(|row| !row.is_import());
        Ok(rows)
    }

    /// A primary; refuses names that are none.
    pub fn primary(&self, name: &Label) -> Result<PrimaryRow, ServerError> {
        read_primary(&self.store, name)
    }

    /// A primary, if this server is still enrolled there as it was.
    pub fn followed(&self, primary: &Enrolment) -> Result<PrimaryRow, ServerError> {
        read_enrolled(&self.store, primary)
    }

    /// All primaries and how following them goes.
    pub fn primary_statuses(&self) -> Result<Vec<PrimaryStatus>, ServerError> {
        self.primaries()?.into_iter().map(|row| self.status_of(row)).collect()
    }

    fn status_of(&self, row: PrimaryRow) -> Result<PrimaryStatus, ServerError> {
        let progress = self.followers.progress(&row.name);
        let (mut pending_snapshots, mut pending_bytes) = (0u64, 0u64);
        each_pending(&self.store, &row, None, &mut |_, pending| {
            let record = Record::decode(&pending.record).ok();
            let bytes = record.map_or(0, |record| record.body.totals.sealed_bytes);
            pending_snapshots = pending_snapshots.saturating_add(1);
            pending_bytes = pending_bytes.saturating_add(bytes);
            ControlFlow::Continue(())
        })?;
        let passed = row.passed.iter().filter_map(|id| self.registry.dropped_name(id)).collect();
        let now = self.clock.monotonic();
        let lag = progress.in_sync_at.map(|at| now.saturating_sub(at).as_secs());
        let state = match (row.is_refused, row.is_paused) {
            (true, _) => FollowState::Refused,
            (false, true) => FollowState::Paused,
            (false, false) => progress.state,
        };
        let addresses = match &row.reach {
            Reach::Dialled(addresses) => addresses.clone(),
            Reach::Lent => self.lent_text(&row),
            Reach::Carried => String::new(),
        };
        Ok(PrimaryStatus {
            state,
            followed_entries: row.followed.size(),
            known_entries: progress.known_entries.max(row.followed.size()),
            pending_snapshots,
            pending_bytes,
            lag_seconds: lag,
            contact_ms: progress.contact_ms,
            received_bytes: progress.received_bytes,
            is_repair_only: row.is_repair_only,
            repaired_count: progress.repaired_count,
            trouble: progress.trouble,
            keys_ms: None,
            keys_trouble: String::new(),
            name: row.name,
            addresses,
            ledger_key: row.ledger_key,
            principal: row.principal,
            only: row.only,
            passed,
        })
    }

    /// Pauses following, or goes on. Going on after a refusal asks the primary again whether its
    /// ledger continues what was seen; nothing is forgiven.
    pub fn pause_primary(&self, name: &Label, is_paused: bool) -> Result<(), ServerError> {
        let primary = self.primary(name)?.enrolment();
        self.change_primary(&primary, move |_, row| {
            row.is_paused = is_paused;
            row.is_refused &= is_paused;
            Ok(())
        })
    }

    /// Remembers a checkpoint that was proven to continue the one before.
    pub fn remember_checkpoint(
        &self,
        primary: &Enrolment,
        note: String,
    ) -> Result<(), ServerError> {
        self.change_primary(primary, move |_, row| {
            row.checkpoint = note;
            Ok(())
        })
    }

    /// Ends following a primary whose ledger does not continue what was seen of it, on record.
    pub fn refuse_primary(
        &self,
        primary: &Enrolment,
        known: &Checkpoint,
        shown_size: u64,
    ) -> Result<(), ServerError> {
        let (known_size, known_root) = (known.size, known.root);
        self.change_primary(primary, move |decision, row| {
            if !std::mem::replace(&mut row.is_refused, true) {
                let ledger_key = row.ledger_key;
                let event =
                    Event::PrimaryRefused { ledger_key, known_size, known_root, shown_size };
                decision.enter(row.actor(), NOWHERE, event);
            }
            Ok(())
        })
    }

    /// Enters how far the primary's ledger was followed, if that led to anything here.
    pub fn enter_followed(&self, primary: &Enrolment) -> Result<(), ServerError> {
        self.change_primary(primary, |decision, row| {
            if std::mem::take(&mut row.owes_entry) {
                let (size, root) = (row.followed.size(), row.followed.root());
                let event = Event::PrimaryFollowed { ledger_key: row.ledger_key, size, root };
                decision.enter(row.actor(), NOWHERE, event);
            }
            Ok(())
        })
    }

    /// Whether a record was committed here once, by whatever way.
    pub fn has_seen(
        &self,
        namespace: &NamespaceId,
        record: &RecordDigest,
    ) -> Result<bool, ServerError> {
        let Some(namespace) = self.registry.namespace(namespace) else { return Ok(false) };
        Ok(self.store.get(Family::Seen, &SeenRow::key(namespace.number, record))?.is_some())
    }

    /// Passes entries that lead to nothing here.
    pub fn pass_entries(&self, primary: &Enrolment, step: Step) -> Result<(), ServerError> {
        self.change_primary(primary, move |_, row| {
            step.take(row);
            Ok(())
        })
    }

    /// Takes over that a snapshot was committed at `leaf`; its tree is still to come. If it is
    /// pending already, by pull or by import, what was received since stays.
    pub fn put_pending(
        &self,
        primary: &Enrolment,
        step: Step,
        leaf: u64,
        mut pending: PendingRow,
    ) -> Result<(), ServerError> {
        self.change_primary(primary, move |decision, row| {
            step.take(row);
            let key = PendingRow::key(&row.ledger_key, leaf);
            if let Some(value) = decision.store.get(Family::Pending, &key)? {
                let known = PendingRow::decode(&value)?;
                pending.lock = pending.lock.joined(&known.lock);
                pending.is_forgotten |= known.is_forgotten;
                if pending.record.is_empty() {
                    pending.record = known.record;
                }
            }
            decision.batch.put(Family::Pending, key, pending.encode());
            Ok(())
        })
    }

    /// Adds the record to a pending snapshot that had none.
    pub fn complete_pending(
        &self,
        primary: &Enrolment,
        leaf: u64,
        record: Vec<u8>,
    ) -> Result<(), ServerError> {
        self.change_primary(primary, move |decision, row| {
            let key = PendingRow::key(&row.ledger_key, leaf);
            if let Some(value) = decision.store.get(Family::Pending, &key)? {
                let pending = PendingRow { record, ..PendingRow::decode(&value)? };
                decision.batch.put(Family::Pending, key, pending.encode());
            }
            Ok(())
        })
    }

    /// Gives up a pending snapshot: the primary has forgotten it and its bytes.
    pub fn drop_pending(&self, primary: &Enrolment, leaf: u64) -> Result<(), ServerError> {
        self.change_primary(primary, move |decision, row| {
            let key = PendingRow::key(&row.ledger_key, leaf);
            decision.batch.delete(Family::Pending, key);
            Ok(())
        })
    }

    /// Takes over what an entry says about a snapshot. Locks grow, holds are placed; a forget only
    /// marks what is not here yet. A primary that the namespace has left changes nothing here.
    pub fn receive(
        &self,
        primary: &Enrolment,
        step: Step,
        namespace: &NamespaceId,
        record: &RecordDigest,
        received: Received,
    ) -> Result<(), ServerError> {
        let (id, record) = (*namespace, *record);
        let row = self.followed(primary)?;
        let (theirs, actor) = (step.clock_seconds, row.actor());
        let here =
            self.registry.namespace(&id).filter(|here| self.takes_from(here, &row.ledger_key));
        let primary_name = primary.name.clone();
        if let Some(namespace) = &here
            && Found::look_up(&self.store, namespace, &record).is_ok()
        {
            self.lock_ahead_of(&id, &record, |_, _, own, now| {
                grown(&own, received, theirs, now.retention_seconds)
            })?;
        }
        self.change_primary(primary, move |decision, row| {
            step.take(row);
            let is_meant = |pending: &PendingRow| pending.record_digest == record;
            for (key, mut pending) in pending_where(decision.store, row, is_meant)? {
                pending.receive(received);
                decision.batch.put(Family::Pending, key, pending.encode());
            }
            let Some(namespace) = here else { return Ok(()) };
            let Ok(mut found) = Found::look_up(decision.store, &namespace, &record) else {
                return Ok(());
            };
            let (own, now) = (found.row.lock, decision.retention_seconds);
            let Some(lock) = grown(&own, received, theirs, now) else { return Ok(()) };
            found.set_lock(decision, &namespace, lock)?;
            let event = match received {
                Received::Hold(reason) => Event::HoldPlaced { record, reason },
                _ => Event::Retained { record, lock },
            };
            decision.enter(actor, id, event);
            if lock.is_held && !own.is_held {
                put_hold(decision, &namespace, &record, actor, &primary_name);
            }
            row.owes_entry = true;
            Ok(())
        })
    }

    /// Takes over that a namespace is gone there: what is still to come of it was forgotten.
    pub fn receive_drop(
        &self,
        primary: &Enrolment,
        step: Step,
        namespace: &NamespaceId,
    ) -> Result<(), ServerError> {
        let namespace = *namespace;
        self.change_primary(primary, move |decision, row| {
            step.take(row);
            let is_meant = |pending: &PendingRow| pending.namespace == namespace;
            for (key, mut pending) in pending_where(decision.store, row, is_meant)? {
                pending.is_forgotten = true;
                decision.batch.put(Family::Pending, key, pending.encode());
            }
            Ok(())
        })
    }

    /// Makes a namespace that a primary has, with the descriptor that was verified, unless it is
    /// here. It gets the same name, or another where that is taken, and this server's own policy.
    pub fn receive_namespace(
        self: &std::sync::Arc<Self>,
        primary: &PrimaryRow,
        name: &Label,
        descriptor: VerifiedDescriptor,
    ) -> Result<(), ServerError> {
        let (repository, actor, name) = (self.clone(), primary.actor(), name.clone());
        let is_readmitted = primary.readmitted.contains(&descriptor.namespace());
        self.writer.decide(move |decision| {
            let id = descriptor.namespace();
            if repository.registry.namespace(&id).is_some() {
                return Ok(());
            }
            let count = repository.registry.namespaces().len();
            if u32::try_from(count).map_or(true, |count| count >= REPLICA_NAMESPACES_MAX) {
                let message =
                    format!("a replica makes at most {REPLICA_NAMESPACES_MAX} namespaces");
                return Err(ServerError::Operator(message));
            }
            let name = match repository.registry.namespace_named(&name) {
                Some(_) => distinct_name(&name, &id)?,
                None => name,
            };
            let made =
                repository.insert_namespace(decision, name, actor, descriptor, is_readmitted);
            made.map(drop)
        })
    }

    /// Changes a primary's row, and whatever belongs to it, in one decision.
    pub(super) fn change_primary<T: Send + 'static>(
        &self,
        primary: &Enrolment,
        change: impl FnOnce(&mut Decision<'_>, &mut PrimaryRow) -> Result<T, ServerError>
        + Send
        + 'static,
    ) -> Result<T, ServerError> {
        let primary = primary.clone();
        self.writer.decide(move |decision| {
            let mut row = read_enrolled(decision.store, &primary)?;
            let outcome = change(decision, &mut row)?;
            put_primary(decision, &row);
            Ok(outcome)
        })
    }
}

impl PendingRow {
    fn receive(&mut self, received: Received) {
        match received {
            Received::Lock(lock) => self.lock = self.lock.joined(&lock),
            Received::Hold(_) => self.lock.is_held = true,
            Received::Forgotten => self.is_forgotten = true,
        }
    }
}

/// What a lock becomes by what was received; nothing, if it keeps as much already.
fn grown(own: &Lock, received: Received, theirs: u64, ours: u64) -> Option<Lock> {
    let lock = match received {
        Received::Lock(lock) => own.joined(&lock.carried(theirs, ours)),
        Received::Hold(_) => Lock { is_held: true, ..*own },
        Received::Forgotten => return None,
    };
    (lock != *own).then_some(lock)
}

/// Writes down that a hold came from a primary; its words stay there.
pub(super) fn put_hold(
    decision: &mut Decision<'_>,
    namespace: &Namespace,
    record: &RecordDigest,
    actor: PrincipalId,
    primary: &Label,
) {
    let reason = format!("held at primary {primary}");
    let hold = HoldRow { placed_ms: decision.now_ms, principal: actor, reason };
    decision.batch.put(Family::Holds, HoldRow::key(namespace.number, record), hold.encode());
}

pub(super) fn read_primary(store: &Store, name: &Label) -> Result<PrimaryRow, ServerError> {
    let unknown = || ServerError::Operator(format!("no primary is called {name}"));
    let value = store.get(Family::Primaries, &PrimaryRow::key(name))?;
    Ok(PrimaryRow::decode(&value.ok_or_else(unknown)?)?)
}

fn read_enrolled(store: &Store, primary: &Enrolment) -> Result<PrimaryRow, ServerError> {
    let unknown = || ServerError::Operator(format!("no primary is called {}", primary.name));
    let value = store.get(Family::Primaries, &primary.row_key())?;
    let row = PrimaryRow::decode(&value.ok_or_else(unknown)?)?;
    if row.principal == primary.principal {
        return Ok(row);
    }
    Err(ServerError::Operator(format!("primary {} is another one now", primary.name)))
}

pub(super) fn put_primary(decision: &mut Decision<'_>, row: &PrimaryRow) {
    decision.batch.put(Family::Primaries, row.enrolment().row_key(), row.encode());
}

/// Rows of primaries and of imports.
pub(super) fn all_primaries(store: &Store) -> Result<Vec<PrimaryRow>, ServerError> {
    let rows = all_rows(store, Family::Primaries)?;
    rows.iter().map(|(_, value)| Ok(PrimaryRow::decode(value)?)).collect()
}

/// The name with the start of the id behind it.
fn distinct_name(name: &Label, id: &NamespaceId) -> Result<Label, ServerError> {
    let id: String = id.to_string().chars().take(8).collect();
    let room = usize::try_from(LABEL_MAX_BYTES).unwrap_or(0).saturating_sub(id.len() + 1);
    let head: String = name.as_str().chars().take(room).collect();
    format!("{head}-{id}").parse().map_err(|_| ServerError::Bug("name of a namespace".into()))
}
