//! The commit of a snapshot that a primary has committed before.
//!
//! It is a commit like any other (`commit.rs` argues its steps): a session pins what arrives, the
//! tree is sealed, and one batch on the writer thread holds node locks, snapshot, `seen`, the
//! ledger entry, and the end of the pending row. What differs:
//!
//! * the record was verified against the descriptor when it became pending; principal, session
//!   nonce and sequence are those of its origin and mean nothing here. Gaps are no fault: this
//!   server may have pruned, or follow another primary of the same namespace too;
//! * the newest record of a source is kept under an id derived from primary and writer, so that no
//!   primary can stand in the way of a writer that is enrolled here;
//! * the lock is what keeps for longer: this server's own policy from now on, or the lock received;
//! * a record that was seen here comes no second time, not even after this server forgot it.

use std::sync::Arc;

use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{
    Label, NamespaceId, RecordDigest, SealedDigest, SessionId, SessionNonce,
};
use strongroom_protocol::message::{SizeClass, Uploaded};
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::{Lock, LockWanted};
use strongroom_protocol::role::Role;

use crate::error::ServerError;
use crate::lock::{Tree, lock_tree, node_lock_end};
use crate::registry::{Namespace, Principal};
use crate::replica_rows::{Enrolment, PendingRow, PrimaryRow, replicated_writer};
use crate::repository::Repository;
use crate::repository::commit::{next_commit, refuse_ended};
use crate::repository::quota::count_commit;
use crate::repository::replication::put_hold;
use crate::repository::retention::Found;
use crate::rows::{SeenRow, SnapshotRow, head_key};
use crate::server_keys::random_bytes;
use crate::session::{Session, SessionTerms};
use crate::store::schema::{Family, IndexRow, Lifetime};
use crate::writer::Decision;

/// The session that pins what arrives of a snapshot, or of several that come together.
#[derive(Debug, Clone)]
pub struct Arrival {
    primary: Enrolment,
    principal: Principal,
    namespace: NamespaceId,
    session: SessionId,
}

impl Repository {
    /// Opens the session for a snapshot of a primary.
    pub fn open_arrival(
        &self,
        primary: &PrimaryRow,
        namespace: &NamespaceId,
        source: &Label,
    ) -> Result<Arrival, ServerError> {
        let principal = Principal {
            id: primary.actor(),
            role: Role::Replica,
            namespace: None,
            signing_key: primary.ledger_key,
        };
        let terms = SessionTerms {
            principal: principal.id,
            namespace: *namespace,
            nonce: SessionNonce(random_bytes()?),
            source: source.clone(),
            size_class: SizeClass::Stream,
            lifetime: Lifetime::Long,
        };
        let session = SessionId(random_bytes()?);
        self.sessions.open(session, terms, self.clock.monotonic())?;
        Ok(Arrival { primary: primary.enrolment(), principal, namespace: *namespace, session })
    }

    /// Ends an arrival; what came and was not committed stays until it is collected.
    pub fn close_arrival(&self, arrival: &Arrival) -> Result<(), ServerError> {
        let Some(session) = self.sessions.close(&arrival.session) else { return Ok(()) };
        self.settle_session(&session)
    }

    /// Which of these need not be fetched: chunks that are here, and nodes that are locked, with
    /// all that is below them. They are pinned.
    pub fn known_to_arrival(
        &self,
        arrival: &Arrival,
        digests: &[SealedDigest],
    ) -> Result<Vec<bool>, ServerError> {
        let session = self.session(&arrival.principal, &arrival.namespace, &arrival.session)?;
        let namespace = self.namespace(&arrival.namespace)?;
        let answers = self.find_and_pin(&namespace, &session, digests, true)?;
        Ok(answers.into_iter().map(|answer| answer == 1).collect())
    }

    /// Which of these are here at this level, locked or not.
    pub fn is_here(
        &self,
        arrival: &Arrival,
        level: u8,
        digests: &[SealedDigest],
    ) -> Result<Vec<bool>, ServerError> {
        let rows = self.store.lookup(self.namespace(&arrival.namespace)?.number, digests)?;
        let is_here =
            |row: Option<IndexRow>| row.is_some_and(|row| row.is_usable() && row.level == level);
        Ok(rows.into_iter().map(is_here).collect())
    }

    /// Takes in envelopes, children first, as an upload does.
    pub fn take_in(
        &self,
        arrival: &Arrival,
        envelopes: Vec<bytes::Bytes>,
    ) -> Result<Uploaded, ServerError> {
        self.upload(&arrival.principal, &arrival.namespace, &arrival.session, envelopes)
    }

    /// Commits the snapshot that is pending at `leaf`, whose tree has arrived. The session goes on:
    /// others may have arrived with it.
    pub fn commit_arrival(&self, arrival: &Arrival, leaf: u64) -> Result<(), ServerError> {
        let namespace = self.namespace(&arrival.namespace)?;
        let session = self.session(&arrival.principal, &arrival.namespace, &arrival.session)?;
        let primary = self.followed(&arrival.primary)?;
        let key = PendingRow::key(&primary.ledger_key, leaf);
        let Some(value) = self.store.get(Family::Pending, &key)? else { return Ok(()) };
        let pending = PendingRow::decode(&value)?;
        let record = Record::decode(&pending.record)?;
        self.check_root(&namespace, &session, &record.body)?;
        if session.needs_seal() {
            self.store.seal()?;
        }
        let source = record.body.source.clone();
        let terms = Terms { namespace: namespace.clone(), session, record, key };
        let now = self.moment();
        let lock = terms.lock(&primary, &pending, now);
        self.lock_tree_ahead(terms.tree(), &terms.session, &lock)?;
        let (stored, session) = (terms.session.stored_bytes(), terms.session.clone());
        let committed_ms = self.change_primary(&arrival.primary, move |decision, row| {
            terms.decide(decision, row, stored)
        })?;
        if committed_ms.is_some() {
            session.settle(stored);
        }
        if let Some(committed_ms) = committed_ms {
            self.metrics.commits.inc();
            self.note_backup(&namespace, source.as_str(), committed_ms);
        }
        Ok(())
    }
}

/// A replicated commit on its way to the writer thread.
struct Terms {
    namespace: Arc<Namespace>,
    session: Arc<Session>,
    record: Record,
    key: Vec<u8>,
}

impl Terms {
    /// Runs alone. Returns the time of the commit, if it was one.
    fn decide(
        self,
        decision: &mut Decision<'_>,
        primary: &mut PrimaryRow,
        stored_bytes: u64,
    ) -> Result<Option<u64>, ServerError> {
        let Some(value) = decision.store.get(Family::Pending, &self.key)? else {
            return Ok(None);
        };
        let pending = PendingRow::decode(&value)?;
        let digest = self.record.digest();
        decision.batch.delete(Family::Pending, self.key.clone());
        let seen_key = SeenRow::key(self.namespace.number, &digest);
        if decision.store.get(Family::Seen, &seen_key)?.is_some() {
            self.join(decision, primary, &pending, digest)?;
            return Ok(None);
        }
        refuse_ended(&self.session)?;
        let (ns, body) = (self.namespace.number, &self.record.body);
        let row = decision.store.lookup(ns, &[body.root])?.pop().flatten();
        let is_known = |row: IndexRow| {
            row.durable && row.is_usable() && self.session.is_pinned(&body.root, &row)
        };
        if !row.is_some_and(is_known) {
            return Err(ServerError::Bug("root of a replicated snapshot is not durable".into()));
        }
        let lock = self.lock(primary, &pending, decision.moment());
        let record_bytes = u64::try_from(pending.record.len()).unwrap_or(u64::MAX);
        count_commit(decision, &self.namespace, stored_bytes.saturating_add(record_bytes))?;
        let commit = next_commit(decision)?;
        let (store, now) = (decision.store, decision.retention_seconds);
        let until = node_lock_end(&lock, now);
        let is_pinned = |digest: &_, row: &IndexRow| self.session.is_pinned(digest, row);
        lock_tree(store, &mut decision.batch, self.tree(), now, until, &is_pinned)?;
        let (root, sequence) = (body.root, body.sequence);
        let event = Event::Committed { commit, record: digest, root, sequence, lock };
        let leaf_index = decision.enter(body.principal, self.namespace.row.namespace, event);
        let snapshot = SnapshotRow {
            record_digest: digest,
            committed_ms: decision.now_ms,
            lock,
            leaf_index,
            record: pending.record.clone(),
        };
        let seen = SeenRow { commit, leaf_index };
        decision.batch.put(Family::Snapshots, SnapshotRow::key(ns, commit), snapshot.encode());
        decision.batch.put(Family::Seen, seen_key, seen.encode());
        if lock.is_held {
            put_hold(decision, &self.namespace, &digest, primary.actor(), &primary.name);
        }
        self.put_head(decision, primary, pending.record)?;
        primary.owes_entry = true;
        Ok(Some(decision.now_ms))
    }

    /// The lock that keeps for longer: this server's own from now on, or the one received. A wish
    /// that this server's policy does not allow is no wish here; the received lock counts.
    fn lock(
        &self,
        primary: &PrimaryRow,
        pending: &PendingRow,
        now: strongroom_protocol::retention::Moment,
    ) -> Lock {
        let body = &self.record.body;
        let rule = self.namespace.row.policy.rule_for(&body.source);
        let received = pending.lock.carried(primary.clock_seconds, now.retention_seconds);
        let own = rule.new_lock(now, body.lock_wanted);
        match own.or_else(|_| rule.new_lock(now, LockWanted::Default)) {
            Ok(own) => own.joined(&received),
            Err(_) => received,
        }
    }

    /// The snapshot came another way meanwhile: its lock is joined with the one received here.
    fn join(
        &self,
        decision: &mut Decision<'_>,
        primary: &mut PrimaryRow,
        pending: &PendingRow,
        record: RecordDigest,
    ) -> Result<(), ServerError> {
        let Ok(mut found) = Found::look_up(decision.store, &self.namespace, &record) else {
            return Ok(());
        };
        let ours = decision.retention_seconds;
        let (own, received) = (found.row.lock, pending.lock.carried(primary.clock_seconds, ours));
        let lock = own.joined(&received);
        if lock == own {
            return Ok(());
        }
        found.set_lock(decision, &self.namespace, lock)?;
        if lock.is_held && !own.is_held {
            put_hold(decision, &self.namespace, &record, primary.actor(), &primary.name);
        }
        let event = Event::Retained { record, lock };
        decision.enter(primary.actor(), self.namespace.row.namespace, event);
        primary.owes_entry = true;
        Ok(())
    }

    fn put_head(
        &self,
        decision: &mut Decision<'_>,
        primary: &PrimaryRow,
        encoded: Vec<u8>,
    ) -> Result<(), ServerError> {
        let body = &self.record.body;
        let writer = replicated_writer(&primary.ledger_key, &body.principal);
        let key = head_key(self.namespace.number, &writer, &body.source);
        let last = match decision.store.get(Family::Heads, &key)? {
            Some(head) => Record::decode(&head)?.body.sequence,
            None => 0,
        };
        if body.sequence > last {
            decision.batch.put(Family::Heads, key, encoded);
        }
        Ok(())
    }

    fn tree(&self) -> Tree {
        let body = &self.record.body;
        Tree { ns: self.namespace.number, root: body.root, level: body.root_level }
    }
}
