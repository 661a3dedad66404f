//! Brings what is pending: the trees of snapshots whose records are here, each then committed in
//! one batch, in the order of the primary's ledger.
//!
//! Small snapshots of one namespace that stand one after the other come as one forest: their trees
//! are asked for together, level by level, so that a thousand of them do not cost a thousand times
//! the round trips of one. Each is committed by itself. If the forest does not come whole, each
//! tree is tried alone, so that a damaged one keeps no other waiting.

use std::sync::Arc;

use strongroom_protocol::id::NamespaceId;
use strongroom_protocol::record::{Record, RecordBody};

use super::error::ReplicaError;
use super::follow::Follower;
use super::tree::Transfer;
use crate::replica_rows::{PendingRow, PrimaryRow};
use crate::repository::replicated::Arrival;
use crate::seed::folder::SeedFolder;

/// Snapshots that come together at most.
const FOREST_MAX: usize = 64;
/// Bytes of their trees at most: more than that is worth its own round trips.
const FOREST_MAX_BYTES: u64 = 64 << 20;
/// A pending snapshot that failed often is left alone for so many looks at most.
const SKIPS_MAX: u32 = 64;
/// Pending rows that are read at a time; each may have a record of half a megabyte.
const PAGE_MAX: usize = 64;

/// A snapshot whose record is here.
struct Wanted {
    leaf: u64,
    pending: PendingRow,
    body: RecordBody,
}

impl Follower {
    /// Brings what is pending behind leaf `after`, in the order of the primary's ledger; gives what
    /// is wrong with that which stays so.
    pub(super) async fn bring_pending(
        &mut self,
        mut after: Option<u64>,
    ) -> Result<Option<String>, ReplicaError> {
        let (mut row, mut trouble) = (self.row().await?, None);
        loop {
            let (listed, from) = (row.clone(), after);
            let page = self.here(move |r| r.pending_page(&listed, from, PAGE_MAX)).await?;
            let Some((last, _)) = page.last() else { return Ok(trouble) };
            if after.is_some_and(|after| after.saturating_add(1) >= row.followed.size()) {
                return Ok(trouble);
            }
            after = Some(*last);
            trouble = self.bring_page(&row, page).await?.or(trouble);
            row = self.row().await?;
            if row.is_paused {
                return Ok(trouble);
            }
        }
    }

    async fn bring_page(
        &mut self,
        row: &PrimaryRow,
        page: Vec<(u64, PendingRow)>,
    ) -> Result<Option<String>, ReplicaError> {
        let mut trouble = None;
        let mut forest: Vec<Wanted> = Vec::new();
        for (leaf, pending) in page {
            if !self.is_covered(row, leaf, &pending) {
                continue;
            }
            if pending.is_set_aside && !self.takes(row, &pending.namespace) {
                let record = pending.record_digest;
                trouble = Some(format!(
                    "snapshot {record} is not taken over: it was committed there after the \
                     namespace had moved here"
                ));
                continue;
            }
            let is_fresh = match self.failed.get_mut(&leaf) {
                Some((_, left)) if *left > 0 => {
                    *left -= 1;
                    let record = pending.record_digest;
                    trouble = Some(format!("snapshot {record} is tried again later"));
                    continue;
                }
                Some(_) => false,
                None => true,
            };
            let wanted = match self.wanted(row, leaf, pending).await {
                Ok(wanted) => wanted,
                Err((record, error)) => {
                    trouble = Some(self.failed_once(leaf, &record, error)?);
                    continue;
                }
            };
            let Some(wanted) = wanted else { continue };
            if !(is_fresh && joins(&forest, &wanted)) {
                trouble = self.bring_forest(row, std::mem::take(&mut forest)).await?.or(trouble);
            }
            forest.push(wanted);
            if !is_fresh {
                trouble = self.bring_forest(row, std::mem::take(&mut forest)).await?.or(trouble);
            }
        }
        Ok(self.bring_forest(row, forest).await?.or(trouble))
    }

    /// Whether a pending snapshot is this follower's to bring. What is pending of a primary may
    /// have been put there by pull or by import: each brings what it has come to itself, because
    /// only then does it know the primary's clock, which locks are counted in.
    fn is_covered(&self, row: &PrimaryRow, leaf: u64, pending: &PendingRow) -> bool {
        let has_namespace =
            |folder: &Arc<SeedFolder>| folder.namespace(&pending.namespace).is_some();
        leaf < row.followed.size() && self.source.folder().is_none_or(has_namespace)
    }

    /// A pending snapshot with its record, which is asked for if it is not here; nothing, if the
    /// primary has forgotten it.
    async fn wanted(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        mut pending: PendingRow,
    ) -> Result<Option<Wanted>, (String, ReplicaError)> {
        let record = pending.record_digest.to_string();
        if self.repository.is_passed(row, &pending.namespace) {
            tracing::info!(%record, "its namespace was dropped here: no more pending");
            let dropping = self.primary.clone();
            let dropped = self.here(move |r| r.drop_pending(&dropping, leaf)).await;
            return dropped.map(|()| None).map_err(|error| (record, error));
        }
        let outcome = self.complete(row, leaf, &mut pending).await;
        match outcome {
            Ok(body) => Ok(Some(Wanted { leaf, pending, body })),
            Err(error) if error.is_not_found() && pending.is_forgotten => {
                self.give_up(leaf).await.map_err(|error| (record, error))?;
                Ok(None)
            }
            Err(error) => Err((record, error)),
        }
    }

    async fn complete(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        pending: &mut PendingRow,
    ) -> Result<RecordBody, ReplicaError> {
        if pending.record.is_empty() {
            let bytes = self.record(row, leaf, &pending.namespace, pending.record_digest).await?;
            let (primary, found) = (self.primary.clone(), bytes.clone());
            self.here(move |r| r.complete_pending(&primary, leaf, found)).await?;
            pending.record = bytes;
        }
        Ok(Record::decode(&pending.record)?.body)
    }

    async fn give_up(&self, leaf: u64) -> Result<(), ReplicaError> {
        let primary = self.primary.clone();
        tracing::info!(primary = %primary.name, leaf, "forgotten there before it came");
        self.here(move |repository| repository.drop_pending(&primary, leaf)).await
    }

    /// Notes that a snapshot did not come, if the fault is in it, and says so.
    fn failed_once(
        &mut self,
        leaf: u64,
        record: &str,
        error: ReplicaError,
    ) -> Result<String, ReplicaError> {
        if !error.is_of_one_snapshot() {
            return Err(error);
        }
        let primary = &self.primary.name;
        tracing::warn!(%primary, %record, %error, "a snapshot stays pending");
        let failures = self.failed.get(&leaf).map_or(0, |(failures, _)| *failures);
        let skips = 1u32.checked_shl(failures).unwrap_or(SKIPS_MAX).min(SKIPS_MAX);
        self.failed.insert(leaf, (failures.saturating_add(1), skips));
        Ok(format!("snapshot {record}: {error}"))
    }

    /// Brings snapshots together, or each alone if that does not go well.
    async fn bring_forest(
        &mut self,
        row: &PrimaryRow,
        forest: Vec<Wanted>,
    ) -> Result<Option<String>, ReplicaError> {
        // The operator need not wait for what else is listed.
        if forest.is_empty() || self.row().await?.is_paused {
            return Ok(None);
        }
        if forest.len() > 1 {
            match self.bring_trees(row, &forest).await {
                Ok(()) => return Ok(None),
                Err(error) if error.is_of_one_snapshot() => {}
                Err(error) => return Err(error),
            }
        }
        let mut trouble = None;
        for wanted in forest {
            let (leaf, record) = (wanted.leaf, wanted.pending.record_digest.to_string());
            let is_forgotten = wanted.pending.is_forgotten;
            match self.bring_trees(row, &[wanted]).await {
                Ok(()) => drop(self.failed.remove(&leaf)),
                Err(error) if error.is_not_found() && is_forgotten => self.give_up(leaf).await?,
                Err(error) => trouble = Some(self.failed_once(leaf, &record, error)?),
            }
        }
        Ok(trouble)
    }

    async fn bring_trees(&self, row: &PrimaryRow, forest: &[Wanted]) -> Result<(), ReplicaError> {
        let Some(first) = forest.first() else { return Ok(()) };
        let namespace = first.pending.namespace;
        let arrival = self.repository.open_arrival(row, &namespace, &first.body.source)?;
        let transfer = self.transfer(arrival.clone(), namespace);
        let roots = forest.iter().map(|wanted| (wanted.body.root_level, wanted.body.root));
        let mut outcome = transfer.bring_all(roots.collect()).await;
        for wanted in forest {
            if outcome.is_err() {
                break;
            }
            let (arrival, leaf) = (arrival.clone(), wanted.leaf);
            outcome = self.here(move |r| r.commit_arrival(&arrival, leaf)).await;
        }
        // After a failure, what came is counted.
        self.here(move |repository| repository.close_arrival(&arrival)).await?;
        outcome
    }

    fn transfer(&self, arrival: Arrival, namespace: NamespaceId) -> Transfer {
        let connections = self.repository.config().replica.connections;
        let (repository, name) = (self.repository.clone(), self.primary.name.clone());
        let is_peer = self.source.folder().is_none();
        let count = move |bytes: u64| {
            if !is_peer {
                return;
            }
            repository.followers().note(&name, |progress| {
                progress.received_bytes = progress.received_bytes.saturating_add(bytes);
            });
            let received = &repository.metrics().replica.received_bytes;
            received.with_label_values(&[name.as_str()]).inc_by(bytes);
        };
        Transfer {
            repository: self.repository.clone(),
            source: self.source.clone(),
            arrival,
            namespace,
            connections: usize::try_from(connections).unwrap_or(1),
            count: Arc::new(count),
        }
    }
}

/// Whether a snapshot may come together with those before it.
fn joins(forest: &[Wanted], wanted: &Wanted) -> bool {
    let bytes_of = |wanted: &Wanted| wanted.body.totals.sealed_bytes;
    let bytes = forest.iter().map(bytes_of).fold(bytes_of(wanted), u64::saturating_add);
    let is_same = forest.first().is_none_or(|first| {
        first.pending.namespace == wanted.pending.namespace && !first.pending.is_forgotten
    });
    is_same
        && !wanted.pending.is_forgotten
        && forest.len() < FOREST_MAX
        && (forest.is_empty() || bytes <= FOREST_MAX_BYTES)
}
