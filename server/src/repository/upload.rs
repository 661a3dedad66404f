//! Sessions and uploads: what a client may learn, prove and add before it commits.
//!
//! An envelope becomes visible to others only through the index, and reaches the index only after
//! its digest was recomputed here and its bytes are durable (`store`). A node is accepted only if
//! every child is indexed at the level below, and pinned by this session or locked; its totals are
//! summed here, so a record cannot lie about them.

use bytes::Bytes;
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, SealedDigest, SessionId, SessionNonce};
use strongroom_protocol::limits::SMALL_SESSION_MAX_BYTES;
use strongroom_protocol::message::{HexBytes, OpenSession, SessionOpened, SizeClass, Uploaded};
use strongroom_protocol::record::Totals;
use strongroom_protocol::role::Role;

use crate::error::ServerError;
use crate::lock::{Day, locked_until};
use crate::refusals::Reason;
use crate::registry::{Namespace, Principal};
use crate::repository::Repository;
use crate::repository::descriptors::refuse_unless_primary;
use crate::repository::retention::refused_wish;
use crate::rows::head_key;
use crate::server_keys::random_bytes;
use crate::session::{Session, SessionTerms};
use crate::store::error::StoreError;
use crate::store::schema::{Family, IndexRow, Lifetime, Place, SlotId};
use crate::store::{Appended, NewEnvelope};

/// How often an envelope is stored before its absence is a bug.
const STORE_TRIES: u32 = 3;

impl Repository {
    /// Opens a session.
    pub fn open_session(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        request: OpenSession,
    ) -> Result<SessionOpened, ServerError> {
        let namespace = self.namespace(namespace)?;
        refuse_unless_primary(&namespace, &self.keys.ledger_public())?;
        let rule = namespace.row.policy.rule_for(&request.source);
        let now = self.moment();
        let lock = rule.new_lock(now, request.lock_wanted).map_err(refused_wish)?;
        let seconds = lock.until_seconds.saturating_sub(now.retention_seconds);
        self.check_room()?;
        let session = SessionId(random_bytes()?);
        let nonce = SessionNonce(random_bytes()?);
        let key = head_key(namespace.number, &principal.id, &request.source);
        let head = self.store.get(Family::Heads, &key)?.map(HexBytes);
        let terms = SessionTerms {
            principal: principal.id,
            namespace: namespace.row.namespace,
            nonce,
            source: request.source,
            size_class: request.size_class,
            lifetime: Lifetime::of_seconds(seconds),
        };
        self.sessions.open(session, terms, self.clock.monotonic())?;
        let lease_ms = u64::try_from(self.sessions.lease().as_millis()).unwrap_or(u64::MAX);
        let descriptor_version = namespace.descriptor.contents().version;
        Ok(SessionOpened { session, nonce, lease_ms, head, descriptor_version })
    }

    /// Renews a session's lease.
    pub fn renew_session(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        session: &SessionId,
    ) -> Result<(), ServerError> {
        self.session(principal, namespace, session).map(drop)
    }

    /// Ends a session without a commit.
    pub fn close_session(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        session: &SessionId,
    ) -> Result<(), ServerError> {
        self.session(principal, namespace, session)?;
        if let Some(closed) = self.sessions.close(session) {
            self.settle_hits(&closed, 0);
            self.settle_session(&closed)?;
        }
        Ok(())
    }

    /// Which of these digests the repository has: 1 for "have", 0 for "lack", in order. What is
    /// answered "have" is pinned. A node is "have" only while its lock is in the future, and while
    /// nothing of the namespace is damaged: what is below it must be asked about then. What is
    /// quarantined or damaged is lacking.
    pub fn have(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        session: &SessionId,
        digests: &[SealedDigest],
    ) -> Result<Vec<u8>, ServerError> {
        let session = self.session(principal, namespace, session)?;
        let now = self.clock.monotonic();
        self.sessions.spend_have(&session, digests.len(), now)?;
        let live = self.sessions.hits_of(&principal.id);
        if !self.guards.hits.may_learn(&principal.id, live, now) {
            // "Lack" tells nothing, and stops no backup.
            self.metrics.refusals.count(Reason::Hits);
            return Ok(vec![0; digests.len()]);
        }
        let namespace = self.namespace(namespace)?;
        let trusts_nodes = self.damage.count_in(namespace.number) == 0;
        let answers = self.find_and_pin(&namespace, &session, digests, trusts_nodes)?;
        let hit_count: u64 = answers.iter().map(|answer| u64::from(*answer)).sum();
        self.metrics.envelopes_deduplicated.inc_by(hit_count);
        session.count_hits(hit_count);
        Ok(answers)
    }

    /// What is known of `digests`, pinned where it lies now.
    pub(super) fn find_and_pin(
        &self,
        namespace: &Namespace,
        session: &Session,
        digests: &[SealedDigest],
        trusts_nodes: bool,
    ) -> Result<Vec<u8>, ServerError> {
        loop {
            let move_count = self.sessions.move_count();
            let answers = self.pin_known(namespace, session, digests, trusts_nodes)?;
            if self.sessions.move_count() == move_count {
                return Ok(answers);
            }
        }
    }

    /// Finds and pins, behind the gate.
    fn pin_known(
        &self,
        namespace: &Namespace,
        session: &Session,
        digests: &[SealedDigest],
        trusts_nodes: bool,
    ) -> Result<Vec<u8>, ServerError> {
        let today = Day::of(self.moment().retention_seconds);
        let _pinning = self.sessions.pinning();
        let rows = self.store.lookup(namespace.number, digests)?;
        let mut answers = Vec::with_capacity(digests.len());
        let mut hits = Vec::new();
        for (digest, row) in digests.iter().zip(rows) {
            let known = match row.filter(IndexRow::is_usable) {
                Some(row) if row.level == 0 => Some(row),
                Some(_) if !trusts_nodes => None,
                Some(row) => self.is_locked(namespace, digest, today)?.then_some(row),
                None => None,
            };
            answers.push(u8::from(known.is_some()));
            hits.extend(known.map(|row| (*digest, row)));
        }
        session.pin_hits(hits);
        Ok(answers)
    }

    /// Proves possession: `keyed(nonce, envelope)` for each digest, which must be pinned here.
    pub fn prove(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        session: &SessionId,
        nonce: &[u8; 32],
        digests: &[SealedDigest],
    ) -> Result<Vec<u8>, ServerError> {
        let session = self.session(principal, namespace, session)?;
        session.spend_challenges(digests.len())?;
        let ns = self.namespace(namespace)?.number;
        let rows = self.store.lookup(ns, digests)?;
        for (digest, row) in digests.iter().zip(&rows) {
            if !row.is_some_and(|row| row.is_usable() && session.is_pinned(digest, &row)) {
                return Err(ServerError::not_found());
            }
        }
        let mut answers = Vec::with_capacity(digests.len().saturating_mul(32));
        let read = self.store.read(ns, digests, &mut |_, envelope| {
            answers.extend_from_slice(blake3::keyed_hash(nonce, envelope).as_bytes());
            Ok(())
        });
        if read.as_ref().is_err_and(StoreError::is_damage) {
            // Asked again, it is lacking, and is sent.
            self.mark_damage()?;
            return Err(ServerError::peer(
                ErrorCode::SessionEnded,
                "an envelope was found damaged; open another session and ask again what is missing",
            ));
        }
        read?;
        Ok(answers)
    }

    /// Takes in a batch of envelopes, in order; children must come before their nodes. What came
    /// before an envelope that is refused stays.
    pub fn upload(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        session: &SessionId,
        envelopes: Vec<Bytes>,
    ) -> Result<Uploaded, ServerError> {
        let session = self.session(principal, namespace, session)?;
        self.check_room()?;
        let namespace = self.namespace(namespace)?;
        if principal.role == Role::Backup {
            // What a primary has comes this way too, to servers that take no backups.
            refuse_unless_primary(&namespace, &self.keys.ledger_public())?;
        }
        let bytes: usize = envelopes.iter().map(Bytes::len).sum();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        session.count_upload(bytes, SMALL_SESSION_MAX_BYTES)?;
        self.check_byte_quota(&namespace, bytes)?;
        self.metrics.received_bytes.inc_by(bytes);
        let mut intake = Intake {
            repository: self,
            session: &session,
            ns: namespace.number,
            today: Day::of(self.moment().retention_seconds),
            waiting: Vec::new(),
            uploaded: Uploaded::default(),
        };
        for bytes in envelopes {
            intake.take(bytes)?;
        }
        intake.store_waiting()?;
        let uploaded = intake.uploaded;
        self.metrics.envelopes_new.inc_by(uploaded.stored_count);
        self.metrics.envelopes_deduplicated.inc_by(uploaded.duplicate_count);
        Ok(uploaded)
    }

    pub(super) fn session(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
        session: &SessionId,
    ) -> Result<std::sync::Arc<Session>, ServerError> {
        self.sessions.find(session, &principal.id, namespace, self.clock.monotonic())
    }

    fn check_room(&self) -> Result<(), ServerError> {
        if self.store.accepts_uploads()? {
            return Ok(());
        }
        Err(ServerError::peer(
            ErrorCode::RepositoryFull,
            "the repository is full: the operator must add disk space; snapshots, locks and \
             restores are not affected",
        ))
    }

    fn is_locked(
        &self,
        namespace: &Namespace,
        node: &SealedDigest,
        today: Day,
    ) -> Result<bool, ServerError> {
        Ok(locked_until(&self.store, namespace.number, node)?.is_some_and(|day| day > today))
    }
}

/// One upload under way.
struct Intake<'a> {
    repository: &'a Repository,
    session: &'a Session,
    ns: u32,
    today: Day,
    /// Chunks that were checked and will be stored together.
    waiting: Vec<NewEnvelope>,
    uploaded: Uploaded,
}

impl Intake<'_> {
    fn take(&mut self, bytes: Bytes) -> Result<(), ServerError> {
        let envelope = Envelope::parse(&bytes)
            .map_err(|error| ServerError::peer(ErrorCode::BadEnvelope, error.to_string()))?;
        let digest = SealedDigest::of(&bytes);
        let level = envelope.level;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let totals = if envelope.is_node() {
            self.store_waiting()?;
            let children: Vec<SealedDigest> = envelope.children().collect();
            self.totals_of_node(level, length, &children)?
        } else {
            Totals::of_chunk(length)
        };
        self.waiting.push(NewEnvelope { digest, level, totals, bytes });
        Ok(())
    }

    fn store_waiting(&mut self) -> Result<(), ServerError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::take(&mut self.waiting);
        let sent_count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let stored_before = self.uploaded.stored_count;
        // What was there may have been quarantined before it was pinned; then it is stored again,
        // and what is stored again cannot be.
        for _ in 0..STORE_TRIES {
            self.store_batch(batch.clone())?;
            batch = self.pin_where_it_is(batch)?;
            if batch.is_empty() {
                let stored = self.uploaded.stored_count.saturating_sub(stored_before);
                let duplicates = sent_count.saturating_sub(stored);
                let sum = self.uploaded.duplicate_count.saturating_add(duplicates);
                self.uploaded.duplicate_count = sum;
                return Ok(());
            }
        }
        Err(ServerError::Bug("what was stored just now is not there".into()))
    }

    fn store_batch(&mut self, batch: Vec<NewEnvelope>) -> Result<(), ServerError> {
        let sizes: Vec<(SealedDigest, usize)> =
            batch.iter().map(|new| (new.digest, new.bytes.len())).collect();
        let digests: Vec<SealedDigest> = sizes.iter().map(|(digest, _)| *digest).collect();
        let store = &self.repository.store;
        let (place, appended) = match self.session.terms.size_class {
            SizeClass::Small => {
                let moving = self.unsealed_of(&digests)?;
                let appended = store.append_inbox(self.ns, batch)?;
                let namespace = &self.session.terms.namespace;
                self.repository.sessions.follow(namespace, &moving);
                (Place::Inbox, appended)
            }
            SizeClass::Stream => {
                let lifetime = self.session.terms.lifetime;
                (Place::Unsealed, store.append_for(self.ns, lifetime, batch)?)
            }
        };
        for ((digest, size), Appended { slot, duplicate }) in sizes.into_iter().zip(appended) {
            if duplicate {
                continue;
            }
            self.uploaded.stored_count = self.uploaded.stored_count.saturating_add(1);
            let size = u64::try_from(size).unwrap_or(u64::MAX);
            self.uploaded.stored_bytes = self.uploaded.stored_bytes.saturating_add(size);
            self.session.count_stored(size);
            self.session.pin_uploaded(digest, slot, place);
        }
        Ok(())
    }

    /// A small commit never waits for a large session's segment, so the store takes a copy of what
    /// is still in an open segment into the inbox. These are the places that become dead by that.
    fn unsealed_of(
        &self,
        digests: &[SealedDigest],
    ) -> Result<Vec<(SlotId, SealedDigest)>, ServerError> {
        let rows = self.repository.store.lookup(self.ns, digests)?;
        let unsealed = rows.into_iter().zip(digests).filter_map(|(row, digest)| {
            let row = row.filter(|row| row.place == Place::Unsealed)?;
            Some((row.slot, *digest))
        });
        Ok(unsealed.collect())
    }

    /// Pins the places that the index names now. What was pinned by its slot a moment ago may have
    /// moved to the inbox since, by the hand of a small session: either that session found this pin
    /// and followed it, or this look finds the new place. Gives what is not there, or quarantined.
    fn pin_where_it_is(&self, batch: Vec<NewEnvelope>) -> Result<Vec<NewEnvelope>, ServerError> {
        let (sessions, store) = (&self.repository.sessions, &self.repository.store);
        let digests: Vec<SealedDigest> = batch.iter().map(|new| new.digest).collect();
        loop {
            let move_count = sessions.move_count();
            let pinning = sessions.pinning();
            let rows = store.lookup(self.ns, &digests)?;
            let mut is_there = Vec::with_capacity(batch.len());
            for (digest, row) in digests.iter().zip(rows) {
                let row = row.filter(IndexRow::is_usable);
                is_there.push(row.is_some());
                if let Some(row) = row {
                    self.session.pin_uploaded(*digest, row.slot, row.place);
                }
            }
            drop(pinning);
            if sessions.move_count() == move_count {
                let lacking = batch.into_iter().zip(is_there).filter(|(_, is_there)| !is_there);
                return Ok(lacking.map(|(new, _)| new).collect());
            }
        }
    }

    fn totals_of_node(
        &self,
        level: u8,
        length: u64,
        children: &[SealedDigest],
    ) -> Result<Totals, ServerError> {
        // A child that is pinned stays usable; one that is locked is looked at again at commit.
        let rows = self.repository.store.lookup(self.ns, children)?;
        let rows: Vec<_> = rows.into_iter().map(|row| row.filter(IndexRow::is_usable)).collect();
        let lacking = children.iter().zip(&rows).filter(|(_, row)| row.is_none());
        let lacking: Vec<SealedDigest> = lacking.map(|(digest, _)| *digest).collect();
        if !lacking.is_empty() {
            return Err(ServerError::missing_children(lacking));
        }
        let known: Vec<(&SealedDigest, IndexRow)> =
            children.iter().zip(rows).filter_map(|(digest, row)| Some((digest, row?))).collect();
        let below = level.checked_sub(1);
        if known.iter().any(|(_, row)| Some(row.level) != below) {
            return Err(ServerError::peer(
                ErrorCode::BadEnvelope,
                "a child of the node is not at the level below it",
            ));
        }
        let mut unpinned = self.session.unpinned(known.iter().map(|(digest, row)| (*digest, row)));
        if below != Some(0) {
            let mut loose = Vec::new();
            for digest in unpinned {
                let lock = locked_until(&self.repository.store, self.ns, &digest)?;
                if lock.is_none_or(|day| day <= self.today) {
                    loose.push(digest);
                }
            }
            unpinned = loose;
        }
        if !unpinned.is_empty() {
            return Err(ServerError::missing_children(unpinned));
        }
        Ok(Totals::of_node(length, known.iter().map(|(_, row)| row.totals)))
    }
}
