//! One look at a primary: its newest checkpoint, the entries up to it, the snapshots they commit.
//!
//! 1. The newest checkpoint, with the proof that its ledger continues the one seen last. If there
//!    is no such proof, the primary is refused: on record, with an alarm, until an operator says
//!    otherwise. *Nothing is written.*
//! 2. The checkpoint is remembered, durably. *Crash: asked again.*
//! 3. Entries, 256 at a time, proven to be those of the checkpoint before any is acted upon. For
//!    each one in order: what it leads to, and the position after it, in one batch
//!    (`repository/replication.rs`). A snapshot's record and lock become *pending*.
//!    Records are asked for ahead, a run of entries at a time, over all connections.
//! 4. After each 256, the trees of pending snapshots, small ones together (`pending.rs`), each
//!    committed in one batch. One that does not come whole stays pending, and does not keep the
//!    others waiting.
//! 5. If anything was taken over, the own ledger names the primary's.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{Label, NamespaceId, RecordDigest};
use strongroom_protocol::merkle::{Frontier, empty_root, leaf_hash, verify_consistency};
use strongroom_protocol::record::Record;
use strongroom_protocol::tile::{TILE_WIDTH, Tile, TileContent, entries_of};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::blocking;
use super::error::ReplicaError;
use super::source::Source;
use crate::followers::FollowState;
use crate::replica_rows::{Enrolment, PendingRow, PrimaryRow};
use crate::repository::Repository;
use crate::repository::pending::PendingCounts;
use crate::repository::replication::{Received, Step};

/// Entries whose records are asked for together: 16 MB of records at most.
const RUN: usize = 32;

/// Follows one primary.
pub struct Follower {
    /// This server.
    pub repository: Arc<Repository>,
    /// Which primary.
    pub primary: Enrolment,
    /// The primary.
    pub source: Arc<Source>,
    /// Names of namespaces there; asked for when they are needed.
    names: HashMap<NamespaceId, Label>,
    /// Records that were asked for ahead.
    records: HashMap<RecordDigest, Bytes>,
    /// Pending snapshots that failed: how often, and how many looks to leave them alone.
    pub(super) failed: HashMap<u64, (u32, u32)>,
    /// What waits, as of this look.
    counts: PendingCounts,
}

impl Follower {
    /// Follows nothing yet.
    pub fn new(repository: Arc<Repository>, primary: Enrolment, source: Arc<Source>) -> Self {
        let (names, records, failed) = (HashMap::new(), HashMap::new(), HashMap::new());
        let counts = PendingCounts::default();
        Self { repository, primary, source, names, records, failed, counts }
    }

    /// Lets no snapshot that failed wait at the next look.
    pub fn forgive(&mut self) {
        self.failed.clear();
    }

    /// One look. Gives what is wrong with snapshots that stay pending; nothing, if all is here.
    pub async fn look(&mut self) -> Result<Option<String>, ReplicaError> {
        let mut row = self.row().await?;
        let newest = self.newest(&row).await?;
        let (now_ms, size) = (self.repository.clock().wall_ms(), newest.size);
        let followed = row.followed.size();
        if self.source.folder().is_none() {
            self.repository.followers().note(&self.primary.name, |progress| {
                progress.contact_ms = now_ms;
                progress.known_entries = size;
                if size > followed {
                    progress.state = FollowState::CatchingUp;
                }
            });
        }
        let mut trouble = self.bring_pending(None).await?;
        self.counts = self.waiting(None).await?;
        while row.followed.size() < newest.size {
            // A primary that names what it does not have fills no disk with it.
            let pending_max = self.repository.config().replica.pending_max;
            if self.counts.to_fetch >= pending_max {
                trouble = Some(format!(
                    "{pending_max} snapshots are pending; no more are taken over until they came"
                ));
                break;
            }
            let (before, after) = (self.counts, row.followed.size().checked_sub(1));
            self.take_bundle(&row, &newest).await?;
            // What waited before was tried in this look.
            trouble = self.bring_pending(after).await?.or(trouble);
            let fresh = self.waiting(after).await?;
            self.counts.to_fetch = before.to_fetch.saturating_add(fresh.to_fetch);
            row = self.row().await?;
            if row.is_paused {
                break;
            }
        }
        if row.owes_entry || self.row().await?.owes_entry {
            let primary = self.primary.clone();
            self.here(move |repository| repository.enter_followed(&primary)).await?;
        }
        // Nobody must take it for in sync before that is read.
        let primary = self.primary.clone();
        if self.here(move |repository| repository.read_what_was_set_aside(&primary)).await? {
            trouble = Some("snapshots that were passed over are asked for now".into());
        }
        Ok(trouble)
    }

    /// How many pending snapshots wait, of those behind leaf `after`.
    async fn waiting(&self, after: Option<u64>) -> Result<PendingCounts, ReplicaError> {
        let row = self.row().await?;
        self.here(move |repository| repository.pending_counts(&row, after)).await
    }

    /// The newest checkpoint, proven to continue the one that is remembered.
    async fn newest(&self, row: &PrimaryRow) -> Result<Checkpoint, ReplicaError> {
        let keys = [row.ledger_key];
        let known = match row.checkpoint.is_empty() {
            true => Checkpoint { origin: String::new(), size: 0, root: empty_root() },
            false => Checkpoint::verify(&row.checkpoint, &keys)
                .map_err(|error| crate::error::ServerError::Bug(error.to_string()))?,
        };
        let answer = match self.source.consistency(known.size, None).await {
            Err(error) if error.is_not_found() => {
                let shown = verified(&self.source.checkpoint().await?, row)?;
                if shown.size >= known.size {
                    let message = "it gives no proof, though its ledger is long enough";
                    return Err(ReplicaError::Wrong(message.into()));
                }
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
        let bundle = self.source.bundle(tile).await?;
        let before = usize::try_from(start % u64::from(TILE_WIDTH)).unwrap_or(usize::MAX);
        let entries = entries_of(&bundle, tile.width)?;
        let entries = entries.get(before..).unwrap_or_default();
        let mut end = row.followed.clone();
        entries.iter().for_each(|entry| end.push(0, leaf_hash(entry)));
        self.prove(&end, newest).await?;
        let mut step = Step { followed: row.followed.clone(), clock_seconds: row.clock_seconds };
        let mut is_stored = true;
        for run in entries.chunks(RUN) {
            self.ask_ahead(row, step.followed.size(), run).await?;
            for bytes in run {
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
            self.records.clear();
        }
        if !is_stored {
            let primary = self.primary.clone();
            self.here(move |repository| repository.pass_entries(&primary, step)).await?;
        }
        Ok(())
    }

    /// Asks for the records that a run of entries commits, over all connections. What does not come
    /// is asked for again by whoever needs it, and its error told there.
    async fn ask_ahead(
        &mut self,
        row: &PrimaryRow,
        start: u64,
        run: &[&[u8]],
    ) -> Result<(), ReplicaError> {
        let mut wanted = Vec::new();
        for (entry, leaf) in run.iter().zip(start..) {
            let Ok(entry) = Entry::decode(entry) else { continue };
            let Event::Committed { record, .. } = entry.event else { continue };
            let namespace = entry.namespace;
            let seen = move |r: &Repository| r.has_seen(&namespace, &record);
            let is_passed =
                self.repository.is_passed(row, &namespace) || !self.takes(row, &namespace);
            if self.is_wanted(row, leaf, &namespace).await?
                && !is_passed
                && !self.here(seen).await?
            {
                wanted.push((namespace, record));
            }
        }
        if wanted.len() < 2 {
            return Ok(());
        }
        let connections = usize::try_from(self.repository.config().replica.connections);
        let places = Arc::new(Semaphore::new(connections.unwrap_or(1)));
        let mut asking = JoinSet::new();
        for (namespace, record) in wanted {
            let (source, places) = (self.source.clone(), places.clone());
            asking.spawn(async move {
                let _place = places.acquire().await.ok()?;
                Some((record, source.record(&namespace, &record).await.ok()?))
            });
        }
        while let Some(came) = asking.join_next().await {
            self.records.extend(came.ok().flatten());
        }
        Ok(())
    }

    /// Whether the ledger up to `end` is the beginning of the newest.
    async fn prove(&self, end: &Frontier, newest: &Checkpoint) -> Result<(), ReplicaError> {
        let mut proof = Vec::new();
        if end.size() < newest.size {
            proof = self.source.consistency(end.size(), Some(newest.size)).await?.proof.0;
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
                self.note_descriptor(row, leaf, &entry.namespace, version).await?;
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
        if !self.is_wanted(row, leaf, &namespace).await? {
            return Ok(false);
        }
        if self.repository.is_passed(row, &namespace) {
            let (primary, step) = (self.primary.clone(), step.clone());
            self.here(move |r| r.pass_dropped(&primary, step, namespace)).await?;
            return Ok(true);
        }
        let (primary, step) = (self.primary.clone(), step.clone());
        if let Event::Committed { lock, .. } = entry.event {
            let seen = move |r: &Repository| r.has_seen(&namespace, &record);
            if !self.here(seen).await? {
                let is_set_aside = !self.takes(row, &namespace);
                let bound = self.repository.config().replica.pending_max;
                if is_set_aside && self.counts.set_aside >= bound {
                    self.here(move |r| r.pass_set_aside(&primary, step, namespace)).await?;
                    return Ok(true);
                }
                self.counts.add(is_set_aside);
                let bytes = match is_set_aside {
                    true => Vec::new(),
                    false => self.record_or_nothing(row, (leaf, entry), record).await?,
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

    /// Whether an entry of a namespace is taken over.
    pub(super) async fn is_wanted(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        namespace: &NamespaceId,
    ) -> Result<bool, ReplicaError> {
        if let Some(folder) = self.source.folder() {
            return Ok(folder.namespace(namespace).is_some());
        }
        if row.only.is_empty() && leaf >= row.reread_to {
            return Ok(true);
        }
        let name = self.name_of(namespace).await?;
        Ok(row.wants(leaf, namespace, name.as_ref()))
    }

    pub(super) async fn name_of(
        &mut self,
        namespace: &NamespaceId,
    ) -> Result<Option<Label>, ReplicaError> {
        if !self.names.contains_key(namespace) {
            self.names = self.source.names().await?;
        }
        Ok(self.names.get(namespace).cloned())
    }

    /// A committed record; nothing where the primary does not give it, or gives something else. It
    /// stays pending then, and is asked for again.
    async fn record_or_nothing(
        &mut self,
        row: &PrimaryRow,
        (leaf, entry): (u64, &Entry),
        record: RecordDigest,
    ) -> Result<Vec<u8>, ReplicaError> {
        match self.record(row, leaf, &entry.namespace, record).await {
            Err(error) if error.is_of_one_snapshot() => {
                let primary = &self.primary.name;
                tracing::info!(%primary, %record, %error, "a record is not here yet");
                Ok(Vec::new())
            }
            outcome => outcome,
        }
    }

    /// The record that the entry at `leaf` commits, its chain verified as far as anybody without an
    /// identity can, and its place in the ledger.
    pub(super) async fn record(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        namespace: &NamespaceId,
        digest: RecordDigest,
    ) -> Result<Vec<u8>, ReplicaError> {
        self.descriptor(row, namespace).await?;
        let bytes = match self.records.remove(&digest) {
            Some(bytes) => bytes.to_vec(),
            None => self.source.record(namespace, &digest).await?.to_vec(),
        };
        let record = Record::decode(&bytes)?;
        if record.digest() != digest || record.body.namespace != *namespace {
            return Err(ReplicaError::Wrong("another record than the one asked for".into()));
        }
        // The one that the record names: the newest may be of a later epoch.
        let descriptor = self.demand_descriptor(namespace, record.body.descriptor).await?;
        record.verify(&descriptor).map_err(|error| ReplicaError::Wrong(error.to_string()))?;
        self.check_place(row, leaf, (digest, &record.body)).await?;
        let version = descriptor.contents().version;
        self.note_descriptor(row, leaf, namespace, version).await?;
        Ok(bytes)
    }

    pub(super) async fn row(&self) -> Result<PrimaryRow, ReplicaError> {
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
