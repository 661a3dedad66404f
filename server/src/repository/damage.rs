//! Known damage: what was met becomes durable here, and what is whole again leaves the list.
//!
//! Whoever reads notes what it meets (`store/damage.rs`). [`Repository::mark_damage`] takes the
//! notes and decides: index row, damage row and ledger entry in one batch, for rows that are as
//! they were seen and not on the list yet. So each envelope alarms once, however often it is met.
//! *Crash before: it is met again. After: it is known.*
//!
//! A marked row stands for a lack: "have" says so, an upload stores the envelope anew and
//! overwrites the row, a read refuses at once and says why. Locks are on nodes and not touched:
//! what is locked stays locked, and a repaired envelope is as locked as before.
//!
//! [`Repository::settle_damage`] looks at what is on the list: a row that is whole again, by
//! whatever way, or that was collected, leaves it. A repair ([`Repository::store_repaired`]) stores
//! bytes that have the digest, through the inbox, and settles at once, naming who gave them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use strongroom_protocol::entry::Event;
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::{NamespaceId, PrincipalId, PublicKey, SealedDigest};
use strongroom_protocol::record::Totals;

use crate::damage::{DamageRow, KnownDamage, ScrubRow, Told};
use crate::error::ServerError;
use crate::registry::Registry;
use crate::repository::Repository;
use crate::store::collect::{Found, IndexPosition};
use crate::store::schema::{Family, IndexRow, SlotId};
use crate::store::table::TableRow;
use crate::store::{NewEnvelope, Store};
use crate::writer::Decision;

/// Envelopes of one decision.
const DECISION_COUNT: usize = 1024;
/// Rows of the list that a tick looks at.
const TICK_COUNT: usize = 8192;
const HERE: PublicKey = PublicKey([0; 32]);

/// Who gave what is whole again.
#[derive(Debug, Clone, Copy)]
pub struct Giver {
    /// Who stands in the ledger for it.
    pub actor: PrincipalId,
    /// Its ledger key; zeros for clients and this server itself.
    pub ledger_key: PublicKey,
}

impl Giver {
    /// A client that sent it again, or this server that found it.
    pub const HERE: Giver = Giver { actor: PrincipalId::LOCAL, ledger_key: HERE };
}

impl Repository {
    /// Known damage.
    pub fn damage(&self) -> &KnownDamage {
        &self.damage
    }

    /// Makes durable what was noted of damage; gives how much of it was not known.
    pub fn mark_damage(&self) -> Result<u64, ServerError> {
        let seen = self.store.take_damage();
        let mut marked_count = 0;
        for part in seen.chunks(DECISION_COUNT) {
            let (part, registry) = (part.to_vec(), self.registry.clone());
            let marked = self.writer.decide(move |decision| mark(decision, &registry, &part))?;
            for found in &marked {
                self.damage.add(found.ns);
                self.metrics.damage.found.inc();
            }
            marked_count += u64::try_from(marked.len()).unwrap_or(u64::MAX);
            if let Some(first) = marked.first() {
                tracing::error!(
                    count = marked.len(), first = %first.digest,
                    "ALARM: stored envelopes are damaged; they are answered \"lack\" until they \
                     are sent again or repaired"
                );
            }
        }
        self.show_damage();
        Ok(marked_count)
    }

    /// Damaged envelopes after a position, in the order of the keys.
    pub fn damaged(
        &self,
        after: Option<IndexPosition>,
        max: usize,
    ) -> Result<Vec<IndexPosition>, ServerError> {
        let start = after.map(|(ns, digest)| [&DamageRow::key(ns, &digest)[..], &[0]].concat());
        let mut keys = Vec::new();
        self.store.scan(Family::Damage, &[], start.as_deref(), &mut |key, _| {
            keys.push(DamageRow::parse_key(key));
            if keys.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        keys.into_iter().map(|key| Ok(key?)).collect()
    }

    /// Strikes off the list what is whole again or gone; gives how much.
    pub fn settle_damage(&self) -> Result<u64, ServerError> {
        if self.damage.count() == 0 {
            return Ok(0);
        }
        let (mut after, mut settled_count, mut looked_at) = (None, 0, 0);
        while looked_at < TICK_COUNT {
            let listed = self.damaged(after, DECISION_COUNT)?;
            let Some(last) = listed.last() else { break };
            after = Some(*last);
            looked_at += listed.len();
            settled_count += self.settle_listed(listed, Giver::HERE)?;
        }
        Ok(settled_count)
    }

    /// Stores envelopes of a namespace that are known to be damaged; what has not the digest, or is
    /// not on the list, is left out. Gives how many are whole now.
    pub fn store_repaired(
        &self,
        namespace: &NamespaceId,
        envelopes: Vec<(SealedDigest, Bytes)>,
        giver: Giver,
    ) -> Result<u64, ServerError> {
        let ns = self.namespace(namespace)?.number;
        if !self.store.accepts_uploads()? {
            return Err(ServerError::Operator("no room for repairs: add disk space".into()));
        }
        let mut fitting = Vec::with_capacity(envelopes.len());
        for (digest, bytes) in envelopes {
            let listed = self.store.get(Family::Damage, &DamageRow::key(ns, &digest))?;
            if listed.is_none() || SealedDigest::of(&bytes) != digest {
                continue;
            }
            let Ok(envelope) = Envelope::parse(&bytes) else { continue };
            let level = envelope.level;
            let Some(totals) = totals_of(&self.store, ns, &envelope, bytes.len())? else {
                continue; // a child is lost too, and comes first
            };
            fitting.push(NewEnvelope { digest, level, totals, bytes });
        }
        self.store_fitting(ns, namespace, fitting, giver)
    }

    /// Stores what a segment's own table and bytes say of a damaged row that names another place.
    pub fn store_found(&self, row: &TableRow, bytes: Vec<u8>) -> Result<u64, ServerError> {
        let Some(namespace) = namespace_of(&self.registry, row.ns) else { return Ok(0) };
        let TableRow { ns, level, digest, totals, .. } = *row;
        let found = NewEnvelope { digest, level, totals, bytes: bytes.into() };
        self.store_fitting(ns, &namespace, vec![found], Giver::HERE)
    }

    /// A damaged row whose place holds its bytes after all is whole from now on.
    pub fn found_whole(&self, slot: SlotId, row: &TableRow) -> Result<u64, ServerError> {
        let wanted = *row;
        self.writer.decide(move |decision| decision.mark_whole(slot, &wanted))?;
        self.settle_listed(vec![(row.ns, row.digest)], Giver::HERE)
    }

    /// How scrub stands, and what was ever damaged and repaired.
    pub fn scrub_row(&self) -> Result<ScrubRow, ServerError> {
        read_scrub_row(&self.store)
    }

    /// Changes how scrub stands.
    pub fn change_scrub_row(
        &self,
        change: impl FnOnce(&mut ScrubRow, &mut Decision<'_>) + Send + 'static,
    ) -> Result<(), ServerError> {
        self.writer.decide(move |decision| {
            let mut row = read_scrub_row(decision.store)?;
            change(&mut row, decision);
            decision.batch.put(Family::Ledger, ScrubRow::KEY, row.encode());
            Ok(())
        })
    }

    /// Problems that scrub has told.
    pub fn told_problems(&self) -> Result<Told, ServerError> {
        let value = self.store.get(Family::Ledger, Told::KEY)?;
        Ok(value.map(|value| Told::decode(&value)).transpose()?.unwrap_or_default())
    }

    /// Remembers which problems were told.
    pub fn tell_problems(&self, told: Told) -> Result<(), ServerError> {
        self.writer.decide(move |decision| {
            decision.batch.put(Family::Ledger, Told::KEY, told.encode());
            Ok(())
        })
    }

    /// Loads the counts, at open.
    pub(super) fn load_damage(&self) -> Result<(), ServerError> {
        let mut after = None;
        loop {
            let listed = self.damaged(after, DECISION_COUNT)?;
            let Some(last) = listed.last() else { break };
            after = Some(*last);
            listed.iter().for_each(|(ns, _)| self.damage.add(*ns));
        }
        self.show_damage();
        Ok(())
    }

    fn store_fitting(
        &self,
        ns: u32,
        namespace: &NamespaceId,
        fitting: Vec<NewEnvelope>,
        giver: Giver,
    ) -> Result<u64, ServerError> {
        let digests: Vec<SealedDigest> = fitting.iter().map(|new| new.digest).collect();
        // Who has pinned the damaged place goes on with the digest.
        let rows = self.store.indexed(ns, &digests)?;
        let places = rows.iter().zip(&digests);
        let places: Vec<_> = places.filter_map(|(row, d)| Some(((*row)?.slot, *d))).collect();
        self.sessions.follow(namespace, &places);
        self.store.append_inbox(ns, fitting)?;
        self.settle_listed(digests.into_iter().map(|digest| (ns, digest)).collect(), giver)
    }

    fn settle_listed(
        &self,
        mut listed: Vec<IndexPosition>,
        giver: Giver,
    ) -> Result<u64, ServerError> {
        listed.sort_unstable();
        let settled = settled_among(&self.store, &listed)?;
        if settled.is_empty() {
            return Ok(0);
        }
        let registry = self.registry.clone();
        let keys = settled.into_iter().map(|(key, _)| key).collect();
        let settled =
            self.writer.decide(move |decision| strike(decision, &registry, keys, giver))?;
        let mut repaired_count = 0;
        for ((ns, _), is_whole) in settled {
            self.damage.subtract(ns);
            repaired_count += u64::from(is_whole);
        }
        self.metrics.damage.repaired.inc_by(repaired_count);
        self.show_damage();
        Ok(repaired_count)
    }

    fn show_damage(&self) {
        self.metrics.damage.known.set(i64::try_from(self.damage.count()).unwrap_or(i64::MAX));
    }
}

/// Runs alone.
fn mark(
    decision: &mut Decision<'_>,
    registry: &Registry,
    seen: &[Found],
) -> Result<Vec<Found>, ServerError> {
    let mut fresh = Vec::with_capacity(seen.len());
    for found in seen {
        let key = DamageRow::key(found.ns, &found.digest);
        if decision.store.get(Family::Damage, &key)?.is_none() {
            fresh.push(*found);
        }
    }
    let marked = decision.mark_damaged(&fresh)?;
    let found = DamageRow { found_ms: decision.now_ms };
    for Found { ns, digest, .. } in &marked {
        decision.batch.put(Family::Damage, DamageRow::key(*ns, digest), found.encode());
    }
    let keys: Vec<_> = marked.iter().map(|found| (found.ns, found.digest)).collect();
    enter_lists(decision, registry, &keys, PrincipalId::LOCAL, |count, digests| Event::Damaged {
        count,
        digests,
    });
    if !marked.is_empty() {
        let mut row = read_scrub_row(decision.store)?;
        row.damaged_total += u64::try_from(marked.len()).unwrap_or(0);
        decision.batch.put(Family::Ledger, ScrubRow::KEY, row.encode());
    }
    Ok(marked)
}

/// Runs alone; gives what left the list, and whether it is whole.
fn strike(
    decision: &mut Decision<'_>,
    registry: &Registry,
    keys: Vec<IndexPosition>,
    giver: Giver,
) -> Result<Vec<(IndexPosition, bool)>, ServerError> {
    let mut listed = Vec::with_capacity(keys.len());
    for key in keys {
        if decision.store.get(Family::Damage, &DamageRow::key(key.0, &key.1))?.is_some() {
            listed.push(key);
        }
    }
    let settled = settled_among(decision.store, &listed)?;
    for ((ns, digest), _) in &settled {
        decision.batch.delete(Family::Damage, DamageRow::key(*ns, digest));
    }
    let whole: Vec<_> = settled.iter().filter(|(_, whole)| *whole).map(|(key, _)| *key).collect();
    let from = giver.ledger_key;
    enter_lists(decision, registry, &whole, giver.actor, |count, digests| Event::Repaired {
        count,
        digests,
        from,
    });
    if !whole.is_empty() {
        let mut row = read_scrub_row(decision.store)?;
        row.repaired_total += u64::try_from(whole.len()).unwrap_or(0);
        decision.batch.put(Family::Ledger, ScrubRow::KEY, row.encode());
    }
    Ok(settled)
}

/// What of a list is whole (true) or has no row any more (false).
fn settled_among(
    store: &Store,
    listed: &[IndexPosition],
) -> Result<Vec<(IndexPosition, bool)>, ServerError> {
    let mut settled = Vec::new();
    for same in listed.chunk_by(|one, other| one.0 == other.0) {
        let Some((ns, _)) = same.first().copied() else { continue };
        let digests: Vec<SealedDigest> = same.iter().map(|(_, digest)| *digest).collect();
        // What is not sealed yet has no row of its own, and is settled later.
        for (key, row) in same.iter().zip(store.indexed(ns, &digests)?) {
            if row.is_none_or(|row| !row.damaged) {
                settled.push((*key, row.is_some()));
            }
        }
    }
    Ok(settled)
}

/// One entry a namespace.
fn enter_lists(
    decision: &mut Decision<'_>,
    registry: &Registry,
    keys: &[IndexPosition],
    actor: PrincipalId,
    event: impl Fn(u64, [u8; 32]) -> Event,
) {
    let mut lists: BTreeMap<u32, (u64, blake3::Hasher)> = BTreeMap::new();
    for (ns, digest) in keys {
        let (count, hasher) = lists.entry(*ns).or_default();
        *count += 1;
        hasher.update(&digest.0);
    }
    for (ns, (count, hasher)) in lists {
        let namespace = namespace_of(registry, ns).unwrap_or(NamespaceId([0; 32]));
        decision.enter(actor, namespace, event(count, *hasher.finalize().as_bytes()));
    }
}

fn namespace_of(registry: &Registry, ns: u32) -> Option<NamespaceId> {
    let namespaces = registry.namespaces();
    let found = namespaces.iter().find(|namespace| namespace.number == ns)?;
    Some(found.row.namespace)
}

/// Totals of an envelope that comes back; nothing while a child of it is lost.
fn totals_of(
    store: &Store,
    ns: u32,
    envelope: &Envelope<'_>,
    length: usize,
) -> Result<Option<Totals>, ServerError> {
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if !envelope.is_node() {
        return Ok(Some(Totals::of_chunk(length)));
    }
    let children: Vec<SealedDigest> = envelope.children().collect();
    let rows = store.lookup(ns, &children)?;
    let known = |row: Option<IndexRow>| row.filter(|row| !row.is_lost()).map(|row| row.totals);
    let totals: Option<Vec<Totals>> = rows.into_iter().map(known).collect();
    Ok(totals.map(|totals| Totals::of_node(length, totals)))
}

fn read_scrub_row(store: &Store) -> Result<ScrubRow, ServerError> {
    let value = store.get(Family::Ledger, ScrubRow::KEY)?;
    Ok(value.map(|value| ScrubRow::decode(&value)).transpose()?.unwrap_or_default())
}
