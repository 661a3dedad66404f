//! Upload sessions: leases in memory, and what each session has pinned.
//!
//! A pin says "this session knows that the repository has this envelope", because the session
//! uploaded it or was answered "have". A node is accepted only over pinned (or locked) children,
//! and a root is committed only if it is pinned: so nobody can name what it has neither sent nor
//! been told of, and garbage collection must not take what a live session has pinned.
//!
//! Pins are slots of segments in a compressed bitmap: about two bytes a chunk. Envelopes in the
//! inbox may move to a segment while a session lives, so they are pinned by digest; the inbox is
//! small. An envelope in an open segment that a small session stores too moves to the inbox; pins
//! follow it ([`Sessions::follow`]); so they do when garbage collection moves what lives in a
//! segment ([`Sessions::follow_all`]). Whoever pins notes the count of moves before it looks an
//! envelope up, and looks again if that has changed once the pin is there.
//!
//! **The gate.** Who finds an envelope and then pins it holds the gate for reading in between. The
//! sweep holds it for writing from the moment when it reads the pins until what it took for dead is
//! quarantined. So no envelope is quarantined between somebody's look and somebody's pin.
//!
//! Nothing here survives a restart: the client opens a new
//! session, asks "have" again, and sends what was lost with the open segment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use roaring::RoaringTreemap;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{
    Label, NamespaceId, PrincipalId, SealedDigest, SessionId, SessionNonce,
};
use strongroom_protocol::limits::CHALLENGES_MAX;
use strongroom_protocol::message::SizeClass;

use crate::error::ServerError;
use crate::store::collect::Found;
use crate::store::schema::{IndexRow, Lifetime, Place, SlotId};

/// What a session is about; does not change.
#[derive(Debug, Clone)]
pub struct SessionTerms {
    /// Who opened it.
    pub principal: PrincipalId,
    /// Where.
    pub namespace: NamespaceId,
    /// Must stand in the record.
    pub nonce: SessionNonce,
    /// What is backed up.
    pub source: Label,
    /// How much it may be.
    pub size_class: SizeClass,
    /// How long it will be locked, as far as its wish says.
    pub lifetime: Lifetime,
}

/// A live session.
pub struct Session {
    /// What it is about.
    pub terms: SessionTerms,
    state: Mutex<SessionState>,
}

struct SessionState {
    deadline: Duration,
    pinned_slots: RoaringTreemap,
    pinned_digests: HashSet<SealedDigest>,
    needs_seal: bool,
    uploaded_bytes: u64,
    stored_bytes: u64,
    hit_count: u64,
    challenge_count: u32,
    have_budget: u64,
    have_refilled_at: Duration,
    /// It was closed or its lease is over: its pins protect nothing any more.
    is_ended: bool,
}

/// All live sessions.
pub struct Sessions {
    lease: Duration,
    per_principal_max: u32,
    have_per_second: u32,
    live: Mutex<HashMap<SessionId, Arc<Session>>>,
    gate: RwLock<()>,
    move_count: AtomicU64,
}

impl Sessions {
    /// None yet.
    pub fn new(lease: Duration, per_principal_max: u32, have_per_second: u32) -> Self {
        let (live, gate, move_count) = (Mutex::default(), RwLock::new(()), AtomicU64::new(0));
        Self { lease, per_principal_max, have_per_second, live, gate, move_count }
    }

    /// How long a silent session lives.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Opens a session.
    pub fn open(
        &self,
        id: SessionId,
        terms: SessionTerms,
        now: Duration,
    ) -> Result<(), ServerError> {
        let mut live = self.live.lock();
        let held = live.values().filter(|held| held.terms.principal == terms.principal).count();
        if u32::try_from(held).map_or(true, |held| held >= self.per_principal_max) {
            return Err(ServerError::peer(
                ErrorCode::TooMany,
                "this client holds too many sessions; wait until they end",
            ));
        }
        let state = SessionState {
            deadline: now.saturating_add(self.lease),
            pinned_slots: RoaringTreemap::new(),
            pinned_digests: HashSet::new(),
            needs_seal: false,
            uploaded_bytes: 0,
            stored_bytes: 0,
            hit_count: 0,
            challenge_count: 0,
            have_budget: self.have_burst(),
            have_refilled_at: now,
            is_ended: false,
        };
        live.insert(id, Arc::new(Session { terms, state: Mutex::new(state) }));
        Ok(())
    }

    /// A principal's live session, its lease renewed. "Never was", "ended" and "not yours" are one
    /// answer.
    pub fn find(
        &self,
        id: &SessionId,
        principal: &PrincipalId,
        namespace: &NamespaceId,
        now: Duration,
    ) -> Result<Arc<Session>, ServerError> {
        let session = self.live.lock().get(id).cloned().filter(|session| {
            session.terms.principal == *principal && session.terms.namespace == *namespace
        });
        let ended = || {
            ServerError::peer(
                ErrorCode::SessionEnded,
                "the session has ended; open another and ask again what is missing",
            )
        };
        let session = session.ok_or_else(ended)?;
        let mut state = session.state.lock();
        if state.deadline <= now {
            return Err(ended());
        }
        state.deadline = now.saturating_add(self.lease);
        drop(state);
        Ok(session)
    }

    /// Ends a session; returns it if it was live.
    pub fn close(&self, id: &SessionId) -> Option<Arc<Session>> {
        let session = self.live.lock().remove(id)?;
        session.state.lock().is_ended = true;
        Some(session)
    }

    /// Ends sessions whose lease is over; returns them.
    pub fn reap(&self, now: Duration) -> Vec<Arc<Session>> {
        let mut live = self.live.lock();
        let is_over = |session: &Arc<Session>| {
            let mut state = session.state.lock();
            state.is_ended |= state.deadline <= now;
            state.is_ended
        };
        live.extract_if(|_, session| is_over(session)).map(|(_, session)| session).collect()
    }

    /// Follows envelopes that are about to move from an open segment to the inbox, because a small
    /// session stores them too: whoever pinned the old slots has them pinned by digest from now.
    pub fn follow(&self, namespace: &NamespaceId, moving: &[(SlotId, SealedDigest)]) {
        self.follow_in(moving, |session| session.terms.namespace == *namespace);
    }

    /// Follows envelopes that have moved, for whomever.
    pub fn follow_all(&self, moved: &[(SlotId, SealedDigest)]) {
        self.follow_in(moved, |_| true);
    }

    fn follow_in(&self, moving: &[(SlotId, SealedDigest)], concerns: impl Fn(&Session) -> bool) {
        if moving.is_empty() {
            return;
        }
        // Who pins later than this finds that the count has changed, and looks again.
        self.move_count.fetch_add(1, Ordering::SeqCst);
        for session in self.sessions().iter().filter(|session| concerns(session)) {
            let mut state = session.state.lock();
            for (slot, digest) in moving {
                if state.pinned_slots.contains(slot.number()) {
                    state.pinned_digests.insert(*digest);
                }
            }
        }
    }

    /// Bytes that live sessions of a namespace have stored so far.
    pub fn stored_in(&self, namespace: &NamespaceId) -> u64 {
        let live = self.live.lock();
        let of_namespace = live.values().filter(|held| held.terms.namespace == *namespace);
        of_namespace.map(|held| held.stored_bytes()).sum()
    }

    /// Answers "have" that live sessions of a principal were given.
    pub fn hits_of(&self, principal: &PrincipalId) -> u64 {
        let live = self.live.lock();
        let own = live.values().filter(|held| held.terms.principal == *principal);
        own.map(|held| held.hit_count()).sum()
    }

    /// Number of moves so far.
    pub fn move_count(&self) -> u64 {
        self.move_count.load(Ordering::SeqCst)
    }

    /// Held by whoever looks envelopes up in order to pin them.
    pub fn pinning(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Held by the sweep: nobody pins meanwhile.
    pub fn hold_pins(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    /// Which of these envelopes a live session has pinned, by place or by digest.
    pub fn pinned_among(&self, found: &[Found]) -> Vec<bool> {
        let wanted: RoaringTreemap = found.iter().map(|found| found.row.slot.number()).collect();
        let mut pinned = vec![false; found.len()];
        for session in self.sessions() {
            let state = session.state.lock();
            if state.pinned_digests.is_empty() && state.pinned_slots.is_disjoint(&wanted) {
                continue;
            }
            for (found, pinned) in found.iter().zip(&mut pinned) {
                *pinned |= state.pinned_slots.contains(found.row.slot.number())
                    || state.pinned_digests.contains(&found.digest);
            }
        }
        pinned
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.live.lock().values().cloned().collect()
    }

    /// Ends all sessions of a namespace.
    pub fn end_all(&self, namespace: &NamespaceId) {
        let ended: Vec<_> = {
            let live = self.live.lock();
            let of = live.iter().filter(|(_, held)| held.terms.namespace == *namespace);
            of.map(|(id, _)| *id).collect()
        };
        for id in ended {
            self.close(&id);
        }
    }

    /// Number of live sessions.
    pub fn count(&self) -> usize {
        self.live.lock().len()
    }

    /// Takes `count` digests out of the session's "have" budget, which refills with time.
    pub fn spend_have(
        &self,
        session: &Session,
        count: usize,
        now: Duration,
    ) -> Result<(), ServerError> {
        let mut state = session.state.lock();
        let elapsed_ms = now.saturating_sub(state.have_refilled_at).as_millis();
        let elapsed_ms = u64::try_from(elapsed_ms).unwrap_or(u64::MAX);
        let refill = u64::from(self.have_per_second).saturating_mul(elapsed_ms) / 1000;
        state.have_budget = state.have_budget.saturating_add(refill).min(self.have_burst());
        state.have_refilled_at = now;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        match state.have_budget.checked_sub(count) {
            Some(rest) => {
                state.have_budget = rest;
                Ok(())
            }
            None => Err(ServerError::peer(
                ErrorCode::TooMany,
                "too many questions a second; slow down and try again",
            )),
        }
    }

    fn have_burst(&self) -> u64 {
        u64::from(self.have_per_second).saturating_mul(4)
    }
}

impl Session {
    /// Pins an uploaded envelope at `slot`. A small session's own uploads are in the inbox, and
    /// may move: they are pinned by digest.
    pub fn pin_uploaded(&self, digest: SealedDigest, slot: SlotId, place: Place) {
        let mut state = self.state.lock();
        state.needs_seal |= place == Place::Unsealed;
        state.pin(digest, slot, place);
    }

    /// Pins envelopes that were answered "have".
    pub fn pin_hits(&self, hits: impl IntoIterator<Item = (SealedDigest, IndexRow)>) {
        let mut state = self.state.lock();
        for (digest, row) in hits {
            state.needs_seal |= !row.durable;
            state.pin(digest, row.slot, row.place);
        }
    }

    /// Counts answers "have".
    pub fn count_hits(&self, count: u64) {
        let mut state = self.state.lock();
        state.hit_count = state.hit_count.saturating_add(count);
    }

    /// Whether its pins still protect what they name. On the writer thread the answer stays true
    /// until the decision is written, as far as garbage collection is concerned.
    pub fn is_live(&self) -> bool {
        !self.state.lock().is_ended
    }

    /// Whether the envelope at `row` is pinned.
    pub fn is_pinned(&self, digest: &SealedDigest, row: &IndexRow) -> bool {
        self.state.lock().is_pinned(digest, row)
    }

    /// Which of these envelopes is not pinned; one look at the lock for all of them.
    pub fn unpinned<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a SealedDigest, &'a IndexRow)>,
    ) -> Vec<SealedDigest> {
        let state = self.state.lock();
        rows.into_iter()
            .filter(|(digest, row)| !state.is_pinned(digest, row))
            .map(|(digest, _)| *digest)
            .collect()
    }

    /// Whether something pinned is not in a sealed segment, so that a commit must seal first.
    pub fn needs_seal(&self) -> bool {
        self.state.lock().needs_seal
    }

    /// Counts uploaded bytes; a small session may not exceed what it declared.
    pub fn count_upload(&self, bytes: u64, small_max: u64) -> Result<(), ServerError> {
        let mut state = self.state.lock();
        state.uploaded_bytes = state.uploaded_bytes.saturating_add(bytes);
        if self.terms.size_class == SizeClass::Small && state.uploaded_bytes > small_max {
            return Err(ServerError::peer(
                ErrorCode::TooLarge,
                "more was uploaded than a small session may; open one of class stream",
            ));
        }
        Ok(())
    }

    /// Counts bytes that were new.
    pub fn count_stored(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.stored_bytes = state.stored_bytes.saturating_add(bytes);
    }

    /// Bytes that this session has stored so far.
    pub fn stored_bytes(&self) -> u64 {
        self.state.lock().stored_bytes
    }

    /// Bytes that a commit has counted are the session's no more; it may go on to another commit.
    pub fn settle(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.stored_bytes = state.stored_bytes.saturating_sub(bytes);
    }

    /// Takes `count` out of the session's challenges.
    pub fn spend_challenges(&self, count: usize) -> Result<(), ServerError> {
        let mut state = self.state.lock();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let used = state.challenge_count.saturating_add(count);
        if used > CHALLENGES_MAX {
            return Err(ServerError::peer(
                ErrorCode::TooMany,
                "no challenges left in this session",
            ));
        }
        state.challenge_count = used;
        Ok(())
    }

    /// How often this session was answered "have".
    pub fn hit_count(&self) -> u64 {
        self.state.lock().hit_count
    }
}

impl SessionState {
    fn pin(&mut self, digest: SealedDigest, slot: SlotId, place: Place) {
        if place == Place::Inbox {
            self.pinned_digests.insert(digest);
        } else {
            self.pinned_slots.insert(slot.number());
        }
    }

    fn is_pinned(&self, digest: &SealedDigest, row: &IndexRow) -> bool {
        self.pinned_slots.contains(row.slot.number()) || self.pinned_digests.contains(digest)
    }
}
