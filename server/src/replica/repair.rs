//! Asks another server for envelopes that are damaged here.
//!
//! After each look, while damage is known: the list of damaged envelopes goes to the server in
//! requests for their digests; what comes is compared with the digest and stored
//! (`repository/damage.rs`), which makes the row whole and enters from whom. *Crash: what was
//! stored is whole, the rest is still on the list.*
//!
//! The other server is trusted with nothing: bytes that have not the digest are left out. It
//! refuses a request as a whole if it lacks one of the envelopes, or has it damaged too; then the
//! request is cut in two. A server that cannot help is asked again ever more seldom, until more
//! damage is found.
//!
//! Memory: one request's digests, and at most 2 MB and one envelope that wait to be stored.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, SealedDigest};

use super::blocking;
use super::error::ReplicaError;
use super::source::Source;
use crate::replica_rows::PrimaryRow;
use crate::repository::Repository;
use crate::repository::damage::Giver;
use crate::store::collect::IndexPosition;

/// Damaged envelopes that one request asks for.
const REQUEST_COUNT: usize = 256;
/// Bytes that are stored together.
const STORE_BATCH_BYTES: usize = 2 << 20;
/// A server that could not help is asked again after at most this.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// When to ask one server again.
#[derive(Debug, Default)]
pub(super) struct Repairer {
    failures: u32,
    next_at: Duration,
    /// What was ever found damaged here, when it was asked last.
    found: u64,
}

/// One server that is asked.
struct Asking<'a> {
    repository: &'a Arc<Repository>,
    source: &'a Source,
    row: &'a PrimaryRow,
    giver: Giver,
}

impl Repairer {
    /// Fetches what is damaged, if it is time to ask.
    pub(super) async fn mend(
        &mut self,
        repository: &Arc<Repository>,
        source: &Source,
        row: &PrimaryRow,
    ) -> Result<(), ReplicaError> {
        if repository.damage().count() == 0 {
            return Ok(());
        }
        let (now, found) = (repository.clock().monotonic(), repository.damage().found());
        if found != self.found {
            *self = Self { found, ..Self::default() };
        }
        if now < self.next_at {
            return Ok(());
        }
        let giver = Giver { actor: row.actor(), ledger_key: row.ledger_key };
        let outcome = Asking { repository, source, row, giver }.mend_all().await;
        self.failures = match outcome {
            Ok(()) if repository.damage().count() == 0 => 0,
            _ => self.failures.saturating_add(1),
        };
        let poll = repository.config().replica.poll_interval.0;
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.next_at = now.saturating_add(poll.saturating_mul(factor).min(PAUSE_MAX));
        outcome
    }
}

impl Asking<'_> {
    /// Goes through the list, again for as long as that helps: a node may wait for its children.
    async fn mend_all(&self) -> Result<(), ReplicaError> {
        loop {
            let (mut after, mut repaired_count) = (None, 0);
            loop {
                let repository = self.repository.clone();
                let listed =
                    blocking(move || Ok(repository.damaged(after, REQUEST_COUNT)?)).await?;
                let Some(last) = listed.last() else { break };
                after = Some(*last);
                repaired_count += self.mend_some(&listed).await?;
            }
            if repaired_count == 0 {
                return Ok(());
            }
        }
    }

    async fn mend_some(&self, listed: &[IndexPosition]) -> Result<u64, ReplicaError> {
        let mut repaired_count = 0;
        for same in listed.chunk_by(|one, other| one.0 == other.0) {
            let Some((ns, _)) = same.first().copied() else { continue };
            let namespaces = self.repository.registry().namespaces();
            let Some(here) = namespaces.iter().find(|here| here.number == ns) else { continue };
            let id = here.row.namespace;
            // What is refused as a whole is asked for in halves.
            let mut requests = vec![same.iter().map(|(_, digest)| *digest).collect::<Vec<_>>()];
            while let Some(digests) = requests.pop() {
                match self.fetch(id, &digests).await {
                    Ok(count) => repaired_count += count,
                    Err(error) if is_lacking(&error) => {
                        let (one, other) = digests.split_at(digests.len() / 2);
                        if !one.is_empty() {
                            requests.extend([other.to_vec(), one.to_vec()]);
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(repaired_count)
    }

    /// One request; gives how many envelopes are whole by it.
    async fn fetch(
        &self,
        namespace: NamespaceId,
        digests: &[SealedDigest],
    ) -> Result<u64, ReplicaError> {
        let mut reading = self.source.read(namespace, digests).await?;
        let (mut batch, mut batch_bytes, mut repaired_count) = (Vec::new(), 0usize, 0);
        for digest in digests {
            let Some(envelope) = reading.next().await? else {
                return Err(ReplicaError::Wrong("fewer envelopes came than were asked for".into()));
            };
            if SealedDigest::of(&envelope) != *digest {
                let name = &self.row.name;
                tracing::warn!(primary = %name, %digest, "other bytes came for a repair");
                continue;
            }
            batch_bytes = batch_bytes.saturating_add(envelope.len());
            batch.push((*digest, envelope));
            if batch_bytes >= STORE_BATCH_BYTES {
                reading.detach();
                repaired_count += self.store(namespace, std::mem::take(&mut batch)).await?;
                batch_bytes = 0;
            }
        }
        if reading.next().await?.is_some() {
            return Err(ReplicaError::Wrong("more envelopes came than were asked for".into()));
        }
        Ok(repaired_count + self.store(namespace, batch).await?)
    }

    async fn store(
        &self,
        namespace: NamespaceId,
        batch: Vec<(SealedDigest, Bytes)>,
    ) -> Result<u64, ReplicaError> {
        if batch.is_empty() {
            return Ok(0);
        }
        let bytes: usize = batch.iter().map(|(_, envelope)| envelope.len()).sum();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let (repository, giver) = (self.repository.clone(), self.giver);
        let repaired_count =
            blocking(move || Ok(repository.store_repaired(&namespace, batch, giver)?)).await?;
        let (name, metrics) = (&self.row.name, &self.repository.metrics().replica);
        metrics.received_bytes.with_label_values(&[name.as_str()]).inc_by(bytes);
        self.repository.followers().note(name, |progress| {
            progress.received_bytes = progress.received_bytes.saturating_add(bytes);
            progress.repaired_count = progress.repaired_count.saturating_add(repaired_count);
        });
        Ok(repaired_count)
    }
}

/// Whether the other server lacks something of a request, or has it damaged as well.
fn is_lacking(error: &ReplicaError) -> bool {
    let is_damaged =
        matches!(error, ReplicaError::Primary(body) if body.code == ErrorCode::Damaged);
    error.is_not_found() || is_damaged || matches!(error, ReplicaError::Lacking(_))
}
