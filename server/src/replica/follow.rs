//! One look at a primary: its newest checkpoint, the entries up to it, the snapshots they commit.
//!
//! 1. The newest checkpoint, with the proof that its ledger continues the one seen last. If there
//!    is no such proof, the primary is refused: on record, with an alarm, until an operator says
//!    otherwise. *Nothing is written.*
//! 2. The checkpoint is remembered, durably. *Crash: asked again.*
//! 3. Entries, 256 at a time, proven to be those of the checkpoint before any is acted upon. For
//!    each one in order: what it leads to, and the position after it, in one batch
//!    (`repository/replication.rs`). A snapshot's record and lock become *pending*.
//! 4. After each 256, the trees of pending snapshots (`tree.rs`), each committed in one batch. One
//!    that does not come whole stays pending, and does not keep the others waiting.
//! 5. If anything was taken over, the own ledger names the primary's.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{Label, NamespaceId, RecordDigest};
use strongroom_protocol::limits::{CHECKPOINT_MAX_BYTES, ENTRY_MAX_BYTES, RECORD_MAX_BYTES};
use strongroom_protocol::merkle::{Frontier, empty_root, leaf_hash, verify_consistency};
use strongroom_protocol::message::{ConsistencyAnswer, NamespaceRow};
use strongroom_protocol::record::Record;
use strongroom_protocol::route::Route;
use strongroom_protocol::tile::{TILE_WIDTH, Tile, TileContent, entries_of};

use super::blocking;
use super::error::ReplicaError;
use super::peer::Peer;
use super::tree::Transfer;
use crate::followers::FollowState;
use crate::replica_rows::{Enrolment, PendingRow, PrimaryRow};
use crate::repository::Repository;
use crate::repository::replication::{Received, Step};

/// A pending snapshot that failed often is left alone for so many looks at most.
const SKIPS_MAX: u32 = 64;

/// Follows one primary.
pub struct Follower {
    /// This server.
    pub repository: Arc<Repository>,
    /// Which primary.
    pub primary: Enrolment,
    /// The primary.
    pub peer: Arc<Peer>,
    /// Names of namespaces there; asked for when they are needed.
    names: HashMap<NamespaceId, Label>,
    /// Pending snapshots that failed: how often, and how many looks to leave them alone.
    failed: HashMap<u64, (u32, u32)>,
}

impl Follower {
    /// Follows nothing yet.
    pub fn new(repository: Arc<Repository>, primary: Enrolment, peer: Arc<Peer>) -> Self {
        Self { repository, primary, peer, names: HashMap::new(), failed: HashMap::new() }
    }

    /// One look. Gives what is wrong with snapshots that stay pending; nothing, if all is here.
    pub async fn look(&mut self) -> Result<Option<String>, ReplicaError> {
        let mut row = self.row().await?;
        let newest = self.newest(&row).await?;
        let (now_ms, size) = (self.repository.clock().wall_ms(), newest.size);
        let followed = row.followed.size();
        self.repository.followers().note(&self.primary.name, |progress| {
            progress.contact_ms = now_ms;
            progress.known_entries = size;
            if size > followed {
                progress.state = FollowState::CatchingUp;
            }
        });
        let mut trouble = self.bring_pending().await?;
        while row.followed.size() < newest.size {
            self.take_bundle(&row, &newest).await?;
            trouble = self.bring_pending().await?;
            row = self.row().await?;
            if row.is_paused {
                break;
            }
        }
        if row.owes_entry || self.row().await?.owes_entry {
            let primary = self.primary.clone();
            self.here(move |repository| repository.enter_followed(&primary)).await?;
        }
        Ok(trouble)
    }

    /// The newest checkpoint, proven to continue the one that is remembered.
    async fn newest(&self, row: &PrimaryRow) -> Result<Checkpoint, ReplicaError> {
        let keys = [row.ledger_key];
        let known = match row.checkpoint.is_empty() {
            true => Checkpoint { origin: String::new(), size: 0, root: empty_root() },
            false => Checkpoint::verify(&row.checkpoint, &keys)
                .map_err(|error| crate::error::ServerError::Bug(error.to_string()))?,
        };
        let route = Route::Consistency(known.size);
        let answer: ConsistencyAnswer = match self.peer.json(&route, "").await {
            Err(error) if error.is_not_found() => {
                let max = u64::from(CHECKPOINT_MAX_BYTES);
                let note = self.peer.call(&Route::Checkpoint, "", Bytes::new(), max).await?;
                let shown = verified(&String::from_utf8_lossy(&note), row)?;
                return Err(history(known, shown.size));
            }
            answer => answer?,
        };
        let newest = verified(&answer.checkpoint, row)?;
        let (hashes, rest) = answer.proof.0.as_chunks::<32>();
        let proven = verify_consistency(known.size, newest.size, hashes, &known.root, &newest.root);
        if proven.is_err() || !rest.is_empty() {
            return Err(history(known, newest.size));
        }
        if answer.checkpoint != row.checkpoint {
            let (primary, note) = (self.primary.clone(), answer.checkpoint);
            self.here(move |repository| repository.remember_checkpoint(&primary, note)).await?;
        }
        Ok(newest)
    }

    /// Takes over the entries from the position to the end of their bundle.
    async fn take_bundle(
        &mut self,
        row: &PrimaryRow,
        newest: &Checkpoint,
    ) -> Result<(), ReplicaError> {
        let start = row.followed.size();
        let index = start / u64::from(TILE_WIDTH);
        let tile = Tile::widest(TileContent::Entries, index, newest.size)
            .ok_or_else(|| ReplicaError::Wrong("no entries to follow".into()))?;
        let max = u64::from(TILE_WIDTH).saturating_mul(u64::from(ENTRY_MAX_BYTES) + 2);
        let bundle = self.peer.call(&Route::Tile(tile), "", Bytes::new(), max).await?;
        let before = usize::try_from(start % u64::from(TILE_WIDTH)).unwrap_or(usize::MAX);
        let entries = entries_of(&bundle, tile.width)?;
        let entries = entries.get(before..).unwrap_or_default();
        let mut end = row.followed.clone();
        entries.iter().for_each(|entry| end.push(0, leaf_hash(entry)));
        self.prove(&end, newest).await?;
        let mut step = Step { followed: row.followed.clone(), clock_seconds: row.clock_seconds };
        let mut is_stored = true;
        for bytes in entries {
            let leaf = step.followed.size();
            let entry = Entry::decode(bytes).map_err(|error| {
                ReplicaError::Wrong(format!(
                    "{error}: entry {leaf} is of a newer program; update this server"
                ))
            })?;
            step.followed.push(0, leaf_hash(bytes));
            step.clock_seconds = step.clock_seconds.max(entry.retention_time_seconds);
            is_stored = self.take_entry(row, leaf, &entry, &step).await?;
        }
        if !is_stored {
            let primary = self.primary.clone();
            self.here(move |repository| repository.pass_entries(&primary, step)).await?;
        }
        Ok(())
    }

    /// Whether the ledger up to `end` is the beginning of the newest.
    async fn prove(&self, end: &Frontier, newest: &Checkpoint) -> Result<(), ReplicaError> {
        let mut proof = Vec::new();
        if end.size() < newest.size {
            let query = format!("to={}", newest.size);
            let answer: ConsistencyAnswer =
                self.peer.json(&Route::Consistency(end.size()), &query).await?;
            proof = answer.proof.0;
        }
        let (hashes, rest) = proof.as_chunks::<32>();
        let proven = verify_consistency(end.size(), newest.size, hashes, &end.root(), &newest.root);
        if proven.is_ok() && rest.is_empty() {
            return Ok(());
        }
        Err(ReplicaError::Wrong("entries are not those that its checkpoint signs".into()))
    }

    /// Does what an entry leads to here; true if the position was stored with it.
    async fn take_entry(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        entry: &Entry,
        step: &Step,
    ) -> Result<bool, ReplicaError> {
        let (record, received) = match entry.event {
            Event::Committed { record, lock, .. } => (record, Received::Lock(lock)),
            Event::Retained { record, lock } => (record, Received::Lock(lock)),
            Event::HoldPlaced { record, reason } => (record, Received::Hold(reason)),
            Event::Forgotten { record, .. } => (record, Received::Forgotten),
            Event::DescriptorTaken { descriptor, version } => {
                return self.take_descriptor(entry.namespace, (descriptor, version), step).await;
            }
            Event::NamespaceDropped => {
                let (primary, step, namespace) =
                    (self.primary.clone(), step.clone(), entry.namespace);
                self.here(move |r| r.receive_drop(&primary, step, &namespace)).await?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let namespace = entry.namespace;
        if !self.is_wanted(row, &namespace).await? {
            return Ok(false);
        }
        let (primary, step) = (self.primary.clone(), step.clone());
        if let Event::Committed { lock, .. } = entry.event {
            let seen = move |r: &Repository| r.has_seen(&namespace, &record);
            if !self.here(seen).await? {
                let is_set_aside = !self.takes(row, &namespace);
                let bytes = match is_set_aside {
                    true => Vec::new(),
                    false => self.record_or_nothing(row, entry, record).await?,
                };
                let pending = PendingRow {
                    namespace,
                    record_digest: record,
                    lock,
                    is_forgotten: false,
                    is_set_aside,
                    record: bytes,
                };
                self.here(move |r| r.put_pending(&primary, step, leaf, pending)).await?;
                return Ok(true);
            }
        }
        self.here(move |r| r.receive(&primary, step, &namespace, &record, received)).await?;
        Ok(true)
    }

    /// Whether a namespace is followed. One that the primary does not list is, unless the list
    /// narrows it out: so nothing is passed over because a list was short.
    async fn is_wanted(
        &mut self,
        row: &PrimaryRow,
        namespace: &NamespaceId,
    ) -> Result<bool, ReplicaError> {
        if row.only.is_empty() {
            return Ok(true);
        }
        let name = self.name_of(namespace).await?;
        Ok(name.is_none_or(|name| row.only.contains(&name)))
    }

    pub(super) async fn name_of(
        &mut self,
        namespace: &NamespaceId,
    ) -> Result<Option<Label>, ReplicaError> {
        if !self.names.contains_key(namespace) {
            let rows: Vec<NamespaceRow> = self.peer.json(&Route::Namespaces, "").await?;
            self.names = rows.into_iter().map(|row| (row.namespace, row.name)).collect();
        }
        Ok(self.names.get(namespace).cloned())
    }

    /// A committed record; nothing where the primary does not give it, or gives something else. It
    /// stays pending then, and is asked for again.
    async fn record_or_nothing(
        &mut self,
        row: &PrimaryRow,
        entry: &Entry,
        record: RecordDigest,
    ) -> Result<Vec<u8>, ReplicaError> {
        match self.record(row, &entry.namespace, record).await {
            Err(error) if error.is_of_one_snapshot() => {
                let primary = &self.primary.name;
                tracing::info!(%primary, %record, %error, "a record is not here yet");
                Ok(Vec::new())
            }
            outcome => outcome,
        }
    }

    /// A record, its chain verified as far as anybody without an identity can.
    async fn record(
        &mut self,
        row: &PrimaryRow,
        namespace: &NamespaceId,
        digest: RecordDigest,
    ) -> Result<Vec<u8>, ReplicaError> {
        let descriptor = self.descriptor(row, namespace).await?;
        let route = Route::Record(*namespace, digest);
        let max = u64::from(RECORD_MAX_BYTES);
        let bytes = self.peer.call(&route, "", Bytes::new(), max).await?.to_vec();
        let record = Record::decode(&bytes)?;
        if record.digest() != digest || record.body.namespace != *namespace {
            return Err(ReplicaError::Wrong("another record than the one asked for".into()));
        }
        record.verify(&descriptor).map_err(|error| ReplicaError::Wrong(error.to_string()))?;
        self.demand_descriptor(namespace, record.body.descriptor).await?;
        Ok(bytes)
    }

    /// Brings what is pending, in the order of the primary's ledger; gives what is wrong with that
    /// which stays so.
    async fn bring_pending(&mut self) -> Result<Option<String>, ReplicaError> {
        let row = self.row().await?;
        let listed = row.clone();
        let pending = self.here(move |repository| repository.pending(&listed)).await?;
        let mut trouble = None;
        for (leaf, pending) in pending {
            if pending.is_set_aside && !self.takes(&row, &pending.namespace) {
                let record = pending.record_digest;
                trouble = Some(format!(
                    "snapshot {record} is not taken over: it was committed there after the \
                     namespace had moved here"
                ));
                continue;
            }
            let failures = match self.failed.get_mut(&leaf) {
                Some((_, left)) if *left > 0 => {
                    *left -= 1;
                    let record = pending.record_digest;
                    trouble = Some(format!("snapshot {record} is tried again later"));
                    continue;
                }
                Some((failures, _)) => *failures,
                None => 0,
            };
            let record = pending.record_digest;
            match self.bring(&row, leaf, pending).await {
                Ok(()) => drop(self.failed.remove(&leaf)),
                Err(error) if error.is_of_one_snapshot() => {
                    let primary = &self.primary.name;
                    tracing::warn!(%primary, %record, %error, "a snapshot stays pending");
                    let skips = 1u32.checked_shl(failures).unwrap_or(SKIPS_MAX).min(SKIPS_MAX);
                    self.failed.insert(leaf, (failures.saturating_add(1), skips));
                    trouble = Some(format!("snapshot {record}: {error}"));
                }
                Err(error) => return Err(error),
            }
            if self.row().await?.is_paused {
                break;
            }
        }
        Ok(trouble)
    }

    async fn bring(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        pending: PendingRow,
    ) -> Result<(), ReplicaError> {
        let is_forgotten = pending.is_forgotten;
        match self.bring_tree(row, leaf, pending).await {
            Err(error) if error.is_not_found() && is_forgotten => {
                let primary = self.primary.clone();
                tracing::info!(primary = %primary.name, leaf, "forgotten there before it came");
                self.here(move |repository| repository.drop_pending(&primary, leaf)).await
            }
            outcome => outcome,
        }
    }

    async fn bring_tree(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        pending: PendingRow,
    ) -> Result<(), ReplicaError> {
        let namespace = pending.namespace;
        let mut bytes = pending.record;
        if bytes.is_empty() {
            bytes = self.record(row, &namespace, pending.record_digest).await?;
            let (primary, found) = (self.primary.clone(), bytes.clone());
            self.here(move |r| r.complete_pending(&primary, leaf, found)).await?;
        }
        let body = Record::decode(&bytes)?.body;
        let arrival = self.repository.open_arrival(row, &namespace, &body.source)?;
        let connections = self.repository.config().replica.connections;
        let (repository, name) = (self.repository.clone(), self.primary.name.clone());
        let count = move |bytes: u64| {
            repository.followers().note(&name, |progress| {
                progress.received_bytes = progress.received_bytes.saturating_add(bytes);
            });
            let received = &repository.metrics().replica.received_bytes;
            received.with_label_values(&[name.as_str()]).inc_by(bytes);
        };
        let transfer = Transfer {
            repository: self.repository.clone(),
            peer: self.peer.clone(),
            arrival: arrival.clone(),
            namespace,
            connections: usize::try_from(connections).unwrap_or(1),
            count: Arc::new(count),
        };
        let mut outcome = transfer.bring(body.root, body.root_level).await;
        let ending = arrival.clone();
        if outcome.is_ok() {
            outcome = self.here(move |r| r.commit_arrival(&arrival, leaf)).await;
        }
        // Nothing is left of it after a commit; after a failure what came is counted.
        self.here(move |repository| repository.close_arrival(&ending)).await?;
        outcome
    }

    async fn row(&self) -> Result<PrimaryRow, ReplicaError> {
        let primary = self.primary.clone();
        self.here(move |repository| repository.followed(&primary)).await
    }

    /// Runs a verb of this server on a thread that may block.
    pub(super) async fn here<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Repository) -> Result<T, crate::error::ServerError> + Send + 'static,
    ) -> Result<T, ReplicaError> {
        let repository = self.repository.clone();
        blocking(move || Ok(verb(&repository)?)).await
    }
}

fn verified(note: &str, row: &PrimaryRow) -> Result<Checkpoint, ReplicaError> {
    Checkpoint::verify(note, &[row.ledger_key])
        .map_err(|error| ReplicaError::Wrong(error.to_string()))
}

fn history(known: Checkpoint, shown_size: u64) -> ReplicaError {
    ReplicaError::History { known: Box::new(known), shown_size }
}
