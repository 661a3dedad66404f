//! Brings trees of snapshots here: asked for from the root down, stored from the chunks up.
//!
//! A node that is locked here stands for all that is below it, and is not asked for. A node that is
//! here without a lock, as after a crash, is read here, and what is below it is looked at. All else
//! is fetched in batches: nodes some at a time, then all chunks that a group of lowest nodes lacks,
//! in large requests over several connections. So a level costs a round trip for a group, not for a
//! node; and while the chunks of a group of lowest nodes come, the nodes of the next one are asked
//! for, so that the line is never idle for them. Chunks are stored as they arrive; a node waits in
//! memory until its children are stored, as an upload demands. Each distinct node is met once,
//! however often a tree names it, so a hostile tree costs no more than its distinct nodes.
//!
//! The primary is trusted with nothing: the digest of each envelope is compared with the one that
//! was asked for before it is stored, levels and children are checked by the upload, and totals by
//! the commit.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::{NamespaceId, SealedDigest};
use tokio::task::JoinSet;

use super::blocking;
use super::error::ReplicaError;
use super::source::{Reading, Source};
use crate::repository::Repository;
use crate::repository::replicated::Arrival;

/// Lowest nodes whose chunks are asked for together: some 600 MB of chunks, 10 MB of nodes; and
/// those of the next group beside them.
const LOWEST_GROUP: usize = 64;
/// The first group is this small, each later one twice as large: where the line breaks often, some
/// groups come whole.
const FIRST_GROUP: usize = 4;
/// Higher nodes that are asked for together.
const HIGHER_GROUP: usize = 8;
/// Digests that are looked up at once.
const LOOKUP_BATCH: usize = 8192;
/// Fewest chunks of one request, where there are connections for more requests.
const REQUEST_MIN: usize = 64;
/// Bytes that are stored together.
const STORE_BATCH_BYTES: usize = 2 << 20;

/// Where a tree comes from and where it goes.
#[derive(Clone)]
pub struct Transfer {
    /// This server.
    pub repository: Arc<Repository>,
    /// The primary.
    pub source: Arc<Source>,
    /// What pins that which arrives.
    pub arrival: Arrival,
    /// Where.
    pub namespace: NamespaceId,
    /// Requests at a time.
    pub connections: usize,
    /// Told of bytes that came.
    pub count: Arc<dyn Fn(u64) + Send + Sync>,
}

/// Nodes of one level that wait for what is below them.
struct Layer {
    level: u8,
    nodes: Vec<Bytes>,
    below: VecDeque<SealedDigest>,
}

impl Transfer {
    /// Brings the trees of roots here, all of them pinned or locked. What they share comes once.
    pub async fn bring_all(&self, roots: Vec<(u8, SealedDigest)>) -> Result<(), ReplicaError> {
        let mut levels: BTreeMap<u8, Vec<SealedDigest>> = BTreeMap::new();
        for (level, root) in roots {
            levels.entry(level).or_default().push(root);
        }
        let mut met = HashSet::new();
        for (level, roots) in levels.into_iter().rev() {
            self.bring(level, roots, &mut met).await?;
        }
        Ok(())
    }

    async fn bring(
        &self,
        level: u8,
        roots: Vec<SealedDigest>,
        met: &mut HashSet<SealedDigest>,
    ) -> Result<(), ReplicaError> {
        let (mut stack, mut lowest) = (Vec::new(), FIRST_GROUP);
        stack.extend(self.layer(level, roots, met).await?);
        while let Some(mut top) = stack.pop() {
            if top.below.is_empty() {
                self.take_in(top.nodes).await?;
            } else if top.level > 1 {
                let group = next_group(&mut top, &mut lowest);
                let below = self.layer(top.level - 1, group, met).await?;
                stack.push(top);
                stack.extend(below);
            } else {
                let chunks = Vec::from(std::mem::take(&mut top.below));
                let above = stack.last_mut().filter(|above| above.level == 2);
                let group = above.map(|above| next_group(above, &mut lowest)).unwrap_or_default();
                let next = self.layer(1, group, met);
                let (brought, next) = tokio::join!(self.bring_chunks(chunks), next);
                // What came is kept, whatever became of the next group.
                brought?;
                self.take_in(top.nodes).await?;
                stack.extend(next?);
            }
        }
        Ok(())
    }

    /// Stores nodes whose children are stored.
    async fn take_in(&self, nodes: Vec<Bytes>) -> Result<(), ReplicaError> {
        let (repository, arrival) = (self.repository.clone(), self.arrival.clone());
        blocking(move || Ok(repository.take_in(&arrival, nodes).map(drop)?)).await
    }

    /// The nodes among `digests` that are neither locked nor met before, with what is below them.
    async fn layer(
        &self,
        level: u8,
        mut digests: Vec<SealedDigest>,
        met: &mut HashSet<SealedDigest>,
    ) -> Result<Option<Layer>, ReplicaError> {
        digests.retain(|digest| met.insert(*digest));
        let lacking = self.lacking(digests).await?;
        if lacking.is_empty() {
            return Ok(None);
        }
        let (repository, arrival) = (self.repository.clone(), self.arrival.clone());
        let namespace = self.namespace;
        let (mut nodes, absent) = blocking(move || {
            let is_here = repository.is_here(&arrival, level, &lacking)?;
            let (mut here, mut absent) = (Vec::new(), Vec::new());
            for (digest, is_here) in lacking.into_iter().zip(is_here) {
                if is_here { here.push(digest) } else { absent.push(digest) }
            }
            let mut nodes = Vec::new();
            repository.read(&namespace, &here, &mut |envelope| {
                nodes.push(Bytes::copy_from_slice(envelope));
                ControlFlow::Continue(())
            })?;
            Ok((nodes, absent))
        })
        .await?;
        if !absent.is_empty() {
            let mut reading = self.source.read(self.namespace, &absent).await?;
            for digest in &absent {
                let node = reading.next().await?.ok_or_else(too_few)?;
                self.check_digest(digest, &node)?;
                (self.count)(u64::try_from(node.len()).unwrap_or(u64::MAX));
                nodes.push(Bytes::copy_from_slice(&node));
            }
            end(reading.next().await?)?;
        }
        let mut below = Vec::new();
        let mut seen = HashSet::new();
        for node in &nodes {
            let envelope = Envelope::parse(node)?;
            if envelope.level != level {
                return Err(ReplicaError::Wrong(format!(
                    "a node of level {} stands where one of level {level} should",
                    envelope.level
                )));
            }
            below.extend(envelope.children().filter(|child| seen.insert(*child)));
        }
        Ok(Some(Layer { level, nodes, below: below.into() }))
    }

    /// Those that are neither here as chunks nor locked as nodes; the others are pinned.
    async fn lacking(&self, digests: Vec<SealedDigest>) -> Result<Vec<SealedDigest>, ReplicaError> {
        let (repository, arrival) = (self.repository.clone(), self.arrival.clone());
        blocking(move || {
            let mut lacking = Vec::new();
            for part in digests.chunks(LOOKUP_BATCH) {
                let known = repository.known_to_arrival(&arrival, part)?;
                let unknown = part.iter().zip(known).filter(|(_, is_known)| !is_known);
                lacking.extend(unknown.map(|(digest, _)| *digest));
            }
            Ok(lacking)
        })
        .await
    }

    /// Fetches and stores the chunks that are not here.
    async fn bring_chunks(&self, digests: Vec<SealedDigest>) -> Result<(), ReplicaError> {
        let lacking = self.lacking(digests).await?;
        let share = lacking.len().div_ceil(self.connections.max(1));
        let request = share.clamp(REQUEST_MIN, self.source.request_max());
        let mut requests = lacking.chunks(request).map(<[SealedDigest]>::to_vec);
        let (mut running, mut outcome) = (JoinSet::new(), Ok(()));
        loop {
            while outcome.is_ok()
                && running.len() < self.connections.max(1)
                && let Some(digests) = requests.next()
            {
                let transfer = self.clone();
                running.spawn(async move { transfer.fetch(digests).await });
            }
            // All are waited for, so that nothing goes on when this returns.
            let Some(ended) = running.join_next().await else { return outcome };
            let ended = ended.unwrap_or_else(|error| {
                Err(crate::error::ServerError::Bug(error.to_string()).into())
            });
            outcome = outcome.and(ended);
        }
    }

    /// One request of chunks, stored as they arrive. What came before the answer broke is stored
    /// too: on a line that never lasts long, each try must get further than the one before.
    async fn fetch(&self, digests: Vec<SealedDigest>) -> Result<(), ReplicaError> {
        let mut reading = self.source.read(self.namespace, &digests).await?;
        let mut batch = Vec::new();
        let mut outcome = self.receive(&mut reading, digests, &mut batch).await;
        if outcome.is_ok() {
            outcome = reading.next().await.and_then(end);
        }
        let stored = self.store(batch).await;
        outcome.and(stored)
    }

    /// Stores what arrives in large batches, and leaves the last one.
    async fn receive(
        &self,
        reading: &mut Reading<'_>,
        digests: Vec<SealedDigest>,
        batch: &mut Vec<(SealedDigest, Bytes)>,
    ) -> Result<(), ReplicaError> {
        let mut batch_bytes = 0usize;
        for digest in digests {
            let chunk = reading.next().await?.ok_or_else(too_few)?;
            batch_bytes = batch_bytes.saturating_add(chunk.len());
            batch.push((digest, chunk));
            if batch_bytes >= STORE_BATCH_BYTES {
                reading.detach();
                self.store(std::mem::take(batch)).await?;
                batch_bytes = 0;
            }
        }
        Ok(())
    }

    async fn store(&self, batch: Vec<(SealedDigest, Bytes)>) -> Result<(), ReplicaError> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes: usize = batch.iter().map(|(_, envelope)| envelope.len()).sum();
        (self.count)(u64::try_from(bytes).unwrap_or(u64::MAX));
        let transfer = self.clone();
        blocking(move || {
            let mut envelopes = Vec::with_capacity(batch.len());
            for (digest, envelope) in batch {
                transfer.check_digest(&digest, &envelope)?;
                envelopes.push(envelope);
            }
            Ok(transfer.repository.take_in(&transfer.arrival, envelopes).map(drop)?)
        })
        .await
    }

    fn check_digest(&self, digest: &SealedDigest, envelope: &[u8]) -> Result<(), ReplicaError> {
        if SealedDigest::of(envelope) == *digest {
            return Ok(());
        }
        Err(self.source.wrong_bytes(&self.namespace, digest))
    }
}

/// Nodes below a layer that are asked for together.
fn next_group(layer: &mut Layer, lowest: &mut usize) -> Vec<SealedDigest> {
    let mut count = HIGHER_GROUP;
    if layer.level == 2 {
        count = *lowest;
        *lowest = lowest.saturating_mul(2).min(LOWEST_GROUP);
    }
    layer.below.drain(..count.min(layer.below.len())).collect()
}

fn too_few() -> ReplicaError {
    ReplicaError::Wrong("fewer envelopes came than were asked for".into())
}

fn end(further: Option<Bytes>) -> Result<(), ReplicaError> {
    match further {
        None => Ok(()),
        Some(_) => Err(ReplicaError::Wrong("more envelopes came than were asked for".into())),
    }
}
