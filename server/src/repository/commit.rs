//! Commit: a tree that this session has brought together becomes a locked snapshot.
//!
//! Order, and what a crash after each step leaves (`store` and `writer` argue the rest):
//!
//! 1. A record that was committed before gets its old receipt; nothing else is looked at.
//! 2. Record, signatures, principal and session are checked. *Nothing is written.*
//! 3. Envelopes of this session are sealed into segments and indexed. *Invisible; "have" finds
//!    them, so the client need not send them again.*
//! 4. A large tree is locked ahead, in slices (`lock.rs`). *Locked without a snapshot, until the
//!    locks end; the next commit of the same tree finds them.*
//! 5. On the writer thread, in one batch: node locks (children first), snapshot, `seen`, the
//!    source's new head, the ledger entry. *Whole or absent.* The lock comes with the snapshot: no
//!    moment exists in which a committed snapshot is unlocked.
//! 6. One sync. *Before it: invisible after a crash. After it: committed, answered or not.*
//! 7. The receipt: the ledger's proof.

use std::sync::Arc;

use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, PublicKey, SessionId};
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::{Record, RecordBody};
use strongroom_protocol::retention::Lock;

use crate::error::ServerError;
use crate::lock::{Plan, Tree, ahead_of, lock_tree, node_lock_end};
use crate::registry::{Namespace, Principal, Registry};
use crate::repository::Repository;
use crate::repository::descriptors::refuse_unless_primary;
use crate::repository::quota::count_commit;
use crate::repository::retention::refused_wish;
use crate::rows::{SeenRow, SnapshotRow, descriptor_key, head_key};
use crate::session::Session;
use crate::store::Store;
use crate::store::schema::{Family, IndexRow};
use crate::writer::Decision;

/// Row of family `ledger` that holds the number of the last commit.
const COMMIT_COUNTER: &[u8] = b"commits";
/// Row of family `ledger` that holds the number of snapshots that are listed.
pub(super) const SNAPSHOT_COUNTER: &[u8] = b"snapshots";

/// Lock rows that the decision itself may write.
const ROWS_AT_ONCE: usize = 1024;
/// Trees of at most so many chunks are not walked ahead: they have few nodes.
const CHUNKS_AT_ONCE: u64 = 1024;

impl Repository {
    /// Commits an encoded record in a session.
    pub fn commit(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        session_id: &SessionId,
        encoded: Vec<u8>,
    ) -> Result<Receipt, ServerError> {
        let bad = |message: String| ServerError::peer(ErrorCode::BadRecord, message);
        let namespace = self.namespace(namespace)?;
        let record = Record::decode(&encoded).map_err(|error| bad(error.to_string()))?;
        let seen_key = SeenRow::key(namespace.number, &record.digest());
        // Only its own writer learns that a record was seen.
        let is_own = record.body.principal == principal.id;
        let before = || match self.store.get(Family::Seen, &seen_key)?.filter(|_| is_own) {
            Some(value) => self.receipt_of(SeenRow::decode(&value)?).map(Some),
            None => Ok(None),
        };
        if let Some(receipt) = before()? {
            return Ok(receipt);
        }
        let committed = self.commit_new(principal, &namespace, session_id, record, encoded);
        // What refuses it may be that it came twice at once, and the other has ended the session.
        committed.or_else(|error| before()?.ok_or(error))
    }

    fn commit_new(
        &self,
        principal: &Principal,
        namespace: &Arc<Namespace>,
        session_id: &SessionId,
        record: Record,
        encoded: Vec<u8>,
    ) -> Result<Receipt, ServerError> {
        let session = self.session(principal, &namespace.row.namespace, session_id)?;
        self.check_record(namespace, principal, &session, &record)?;
        if session.needs_seal() {
            self.store.seal()?;
        }
        let source = record.body.source.clone();
        let (principal, registry) = (principal.clone(), self.registry.clone());
        let namespace_then = namespace.clone();
        let (chunk_count, ending) = (record.body.totals.chunk_count, session.clone());
        let terms = CommitTerms {
            registry,
            ledger_key: self.keys.ledger_public(),
            principal,
            namespace: namespace_then,
            session,
            record,
            encoded,
        };
        self.lock_ahead(&terms)?;
        let (leaf_index, committed_ms) =
            self.writer.decide(move |decision| terms.decide(decision))?;
        if self.sessions.close(session_id).is_some() {
            self.settle_hits(&ending, chunk_count);
        }
        self.metrics.commits.inc();
        self.note_backup(namespace, source.as_str(), committed_ms);
        self.ledger.receipt(leaf_index)
    }

    /// A large tree is locked ahead of the decision, in slices, so that no other commit waits for
    /// it. The decision walks again and finds it high enough: a step more makes up for the time in
    /// between. If the commit fails after this, the tree stays locked without a snapshot.
    fn lock_ahead(&self, terms: &CommitTerms) -> Result<(), ServerError> {
        let (body, ns) = (&terms.record.body, terms.namespace.number);
        if body.totals.chunk_count <= CHUNKS_AT_ONCE {
            return Ok(());
        }
        let head_key = head_key(ns, &body.principal, &body.source);
        terms.check_sequence(self.store.get(Family::Heads, &head_key)?)?;
        let rule = terms.namespace.row.policy.rule_for(&body.source);
        let lock = rule.new_lock(self.moment(), body.lock_wanted).map_err(refused_wish)?;
        self.lock_tree_ahead(terms.tree(), &terms.session, &lock)
    }

    /// Locks a tree of a session ahead, if it is not small.
    pub(super) fn lock_tree_ahead(
        &self,
        tree: Tree,
        session: &Arc<Session>,
        lock: &Lock,
    ) -> Result<(), ServerError> {
        let now = self.moment().retention_seconds;
        let until = ahead_of(node_lock_end(lock, now), now);
        let is_pinned = |digest: &_, row: &IndexRow| session.is_pinned(digest, row);
        let plan = Plan::make(&self.store, tree, now, until, &is_pinned)?;
        if plan.len() > ROWS_AT_ONCE {
            let session = session.clone();
            self.writer.lock_in_slices(plan, move || refuse_ended(&session))?;
        }
        Ok(())
    }

    fn check_record(
        &self,
        namespace: &Namespace,
        principal: &Principal,
        session: &Session,
        record: &Record,
    ) -> Result<(), ServerError> {
        let bad = |message: &str| Err(ServerError::peer(ErrorCode::BadRecord, message));
        let descriptor = self.descriptor_of(namespace, record)?;
        if let Err(error) = record.verify(&descriptor) {
            return bad(&error.to_string());
        }
        let body = &record.body;
        if body.principal != principal.id || record.certificate.signing_key != principal.signing_key
        {
            return bad("the record is another principal's");
        }
        if body.session_nonce != session.terms.nonce || body.source != session.terms.source {
            return bad("the record was made for another session or source");
        }
        self.check_root(namespace, session, body)
    }

    /// The root must be known to the session, and the record must say of its tree what was counted
    /// here.
    pub(super) fn check_root(
        &self,
        namespace: &Namespace,
        session: &Session,
        body: &RecordBody,
    ) -> Result<(), ServerError> {
        let bad = |message: &str| Err(ServerError::peer(ErrorCode::BadRecord, message));
        let row = self.store.lookup(namespace.number, &[body.root])?.pop().flatten();
        let is_known = |row: &IndexRow| row.is_usable() && session.is_pinned(&body.root, row);
        let Some(row) = row.filter(is_known) else {
            return bad("the root was neither uploaded nor asked about in this session");
        };
        let totals = (row.totals.chunk_count, row.totals.sealed_bytes);
        let claimed = (body.totals.chunk_count, body.totals.sealed_bytes);
        if row.level != body.root_level || totals != claimed {
            return bad("level or totals of the record are not those of its tree");
        }
        Ok(())
    }

    /// The descriptor that the record's writer went by: the newest, as long as epochs do not mix.
    fn descriptor_of(
        &self,
        namespace: &Namespace,
        record: &Record,
    ) -> Result<VerifiedDescriptor, ServerError> {
        let newest = &namespace.descriptor;
        refuse_ended_epoch(newest, record)?;
        if newest.digest() == record.body.descriptor {
            return Ok(newest.clone());
        }
        let version = newest.contents().version.saturating_sub(1);
        let key = descriptor_key(namespace.number, version);
        if let Some(bytes) = self.store.get(Family::Descriptors, &key)?
            && let Ok(previous) = VerifiedDescriptor::decode(&bytes)
            && previous.digest() == record.body.descriptor
        {
            return Ok(previous);
        }
        Err(ServerError::peer(
            ErrorCode::BadRecord,
            "the record goes by a descriptor that this server does not have or no longer takes",
        ))
    }
}

/// A checked commit on its way to the writer thread.
struct CommitTerms {
    registry: Arc<Registry>,
    /// This server's.
    ledger_key: PublicKey,
    principal: Principal,
    /// As it was when the record was checked.
    namespace: Arc<Namespace>,
    session: Arc<Session>,
    record: Record,
    encoded: Vec<u8>,
}

impl CommitTerms {
    /// Runs alone. Returns leaf index and time of the commit.
    fn decide(self, decision: &mut Decision<'_>) -> Result<(u64, u64), ServerError> {
        let ns = self.namespace.number;
        let body = &self.record.body;
        let record_digest = self.record.digest();
        let seen_key = SeenRow::key(ns, &record_digest);
        if let Some(value) = decision.store.get(Family::Seen, &seen_key)? {
            // The same record came twice at once; the other was first.
            return Ok((SeenRow::decode(&value)?.leaf_index, decision.now_ms));
        }
        refuse_ended(&self.session)?;
        let head_key = head_key(ns, &body.principal, &body.source);
        self.check_sequence(decision.store.get(Family::Heads, &head_key)?)?;
        let row = decision.store.lookup(ns, &[body.root])?.pop().flatten();
        let is_known = |row: IndexRow| {
            row.durable && row.is_usable() && self.session.is_pinned(&body.root, &row)
        };
        if !row.is_some_and(is_known) {
            return Err(ServerError::Bug("root of a checked commit is not durable".into()));
        }
        let now = decision.retention_seconds;
        // The namespace may have been dropped since the record was checked, its policy be another.
        let namespace = self.registry.standing(&self.principal, &self.namespace.row.namespace)?;
        // So may the descriptor: from the one on that does not name this server, nothing is taken.
        refuse_unless_primary(&namespace, &self.ledger_key)?;
        refuse_ended_epoch(&namespace.descriptor, &self.record)?;
        let rule = namespace.row.policy.rule_for(&body.source);
        let lock = rule.new_lock(decision.moment(), body.lock_wanted).map_err(refused_wish)?;
        let record_bytes = u64::try_from(self.encoded.len()).unwrap_or(u64::MAX);
        let stored = self.session.stored_bytes().saturating_add(record_bytes);
        count_commit(decision, &namespace, stored)?;
        let commit = next_commit(decision)?;
        let event = Event::Committed {
            commit,
            record: record_digest,
            root: body.root,
            sequence: body.sequence,
            lock,
        };
        let (store, until) = (decision.store, node_lock_end(&lock, now));
        let is_pinned = |digest: &_, row: &IndexRow| self.session.is_pinned(digest, row);
        lock_tree(store, &mut decision.batch, self.tree(), now, until, &is_pinned)?;
        let leaf_index = decision.enter(body.principal, self.namespace.row.namespace, event);
        let snapshot = SnapshotRow {
            record_digest,
            committed_ms: decision.now_ms,
            lock,
            leaf_index,
            record: self.encoded.clone(),
        };
        let seen = SeenRow { commit, leaf_index };
        let batch = &mut decision.batch;
        batch.put(Family::Snapshots, SnapshotRow::key(ns, commit), snapshot.encode());
        batch.put(Family::Seen, seen_key, seen.encode());
        batch.put(Family::Heads, head_key, self.encoded);
        Ok((leaf_index, decision.now_ms))
    }

    fn tree(&self) -> Tree {
        let body = &self.record.body;
        Tree { ns: self.namespace.number, root: body.root, level: body.root_level }
    }

    fn check_sequence(&self, head: Option<Vec<u8>>) -> Result<(), ServerError> {
        let (last, previous) = match head {
            Some(encoded) => {
                let head = Record::decode(&encoded)?;
                (head.body.sequence, head.digest())
            }
            None => (0, strongroom_protocol::id::RecordDigest([0; 32])),
        };
        let body = &self.record.body;
        if body.sequence == last.saturating_add(1) && body.previous == previous {
            return Ok(());
        }
        Err(ServerError::peer(
            ErrorCode::OutOfSequence,
            format!(
                "the newest snapshot of {} has number {last}; another run of this client was \
                 faster: run the backup again; if this machine runs no other, another machine has \
                 a copy of its profile and needs one of its own (docs/operations.md, 9)",
                body.source
            ),
        ))
    }
}

/// From the descriptor on that begins an epoch, no record of an older one is taken.
fn refuse_ended_epoch(newest: &VerifiedDescriptor, record: &Record) -> Result<(), ServerError> {
    let epoch = newest.contents().epoch;
    if record.body.epoch >= epoch {
        return Ok(());
    }
    Err(ServerError::peer(
        ErrorCode::EpochEnded,
        format!(
            "the namespace began epoch {epoch}: this machine needs its secret; run `strongroom \
             key renew`, then the backup again"
        ),
    ))
}

/// The pins of a session that has ended protect nothing any more.
pub(super) fn refuse_ended(session: &Session) -> Result<(), ServerError> {
    if session.is_live() {
        return Ok(());
    }
    Err(ServerError::peer(
        ErrorCode::SessionEnded,
        "the session has ended; open another and ask again what is missing",
    ))
}

pub(super) fn next_commit(decision: &mut Decision<'_>) -> Result<u64, ServerError> {
    let commit = read_counter(decision.store, COMMIT_COUNTER)?.saturating_add(1);
    let listed = read_counter(decision.store, SNAPSHOT_COUNTER)?.saturating_add(1);
    decision.batch.put(Family::Ledger, COMMIT_COUNTER, commit.to_be_bytes());
    decision.batch.put(Family::Ledger, SNAPSHOT_COUNTER, listed.to_be_bytes());
    Ok(commit)
}

/// Value of a counter row; 0 before it is first written.
pub(super) fn read_counter(store: &Store, name: &[u8]) -> Result<u64, ServerError> {
    let Some(value) = store.get(Family::Ledger, name)? else { return Ok(0) };
    let bytes = value.try_into().map_err(|_| ServerError::Bug("counter row".into()))?;
    Ok(u64::from_be_bytes(bytes))
}
