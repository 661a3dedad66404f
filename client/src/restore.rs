//! From a record back to the dump: restore and verify.
//!
//! 1. Verify the chain down to the key block (`trust`).
//! 2. Open the root; read and check the catalogue.
//! 3. Fetch the data stream's envelopes, some requests ahead; open them on all cores; write them
//!    in order to a temporary file in the target's folder. *Crash: a stray temporary file.*
//! 4. fsync, set mode and time, rename, fsync the folder. *Crash: the whole file, or none.*
//!
//! A chunk's bytes are written after all its checks and after everything before them was written.
//! Verify is the same walk with a sink that forgets, over all chunks or a random share of them.

use std::io;
use std::path::PathBuf;

use crossbeam_channel::Sender;
use serde::Serialize;
use strongroom_protocol::catalogue::{self, Entry};
use strongroom_protocol::id::{Label, RecordDigest, SealedDigest};
use strongroom_protocol::record::Totals;
use tokio::task::{JoinError, JoinSet};

use crate::budget::{
    self, LONG_CHUNK_BYTES, LONG_READS_MAX, READ_REQUEST_BYTES, READS_MAX, WRITE_BYTES,
};
use crate::clock::Moment;
use crate::error::ClientError;
use crate::fetch::{Fetcher, Walker, sum};
use crate::landing::{Landing, Target};
use crate::progress::Monitor;
use crate::sealer::NodeChild;
use crate::trust::{Freshness, OpenRecord, ReadAccess};
use crate::unsealer::{Job, Sink, Unsealer};

/// Longest catalogue that is read, in bytes.
const CATALOGUE_MAX_BYTES: u64 = 64 << 20;
/// Plaintext of one job, in bytes; at least one chunk.
const JOB_BYTES: u64 = 512 * 1024;
/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Where to.
    pub target: Target,
    /// Replace a file that is there.
    pub overwrite: bool,
    /// Go on where the chain of trust is broken.
    pub unverified: bool,
}

/// What came of a restore; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreSummary {
    /// The snapshot.
    pub snapshot: RecordDigest,
    /// What was backed up.
    pub source: Label,
    /// Where it is now; nothing for standard output.
    pub path: Option<PathBuf>,
    /// Bytes of the dump.
    pub plaintext_bytes: u64,
    /// Chunks that were opened.
    pub chunk_count: u64,
    /// Bytes of envelopes that were fetched.
    pub fetched_sealed_bytes: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Every link of the chain of trust held.
    pub is_verified: bool,
    /// The namespace's state is known to be fresh up to the kit's floor only.
    pub fresh_to_kit_floor_only: bool,
    /// It came from a replica that the descriptor does not name: nothing proves how new it is.
    pub is_from_replica: bool,
}

/// What came of a verify; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifySummary {
    /// The snapshot.
    pub snapshot: RecordDigest,
    /// What was backed up.
    pub source: Label,
    /// Share of the chunks that was to be opened, in percent.
    pub sample_percent: f64,
    /// Chunks that were opened, the catalogue's included.
    pub verified_chunk_count: u64,
    /// Chunks of the snapshot.
    pub chunk_count: u64,
    /// Bytes of plaintext that were opened.
    pub verified_bytes: u64,
    /// Bytes of envelopes that were fetched.
    pub fetched_sealed_bytes: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Every link of the chain of trust held.
    pub is_verified: bool,
}

/// Restores a snapshot.
pub async fn restore(
    access: &ReadAccess,
    snapshot: RecordDigest,
    options: &RestoreOptions,
    monitor: &Monitor,
) -> Result<RestoreSummary, ClientError> {
    let since = Moment::now();
    let opened = access.open_record(snapshot, options.unverified).await?;
    let tree = open_tree(access, &opened).await?;
    monitor.set_total(tree.data.plaintext_bytes);
    let source = &opened.record.body.source;
    let (mut landing, sink) =
        Landing::prepare(&options.target, options.overwrite, &tree.entry, source)?;
    let read = read_data(&tree, sink, None, monitor).await?;
    if read.bytes != tree.entry.data_bytes {
        return Err(ClientError::Untrusted(format!(
            "the data is {} bytes, but the catalogue says {}: the writer was broken",
            read.bytes, tree.entry.data_bytes
        )));
    }
    let path = landing.finish(&tree.entry)?;
    let totals = sum(tree.totals, read.totals);
    let body = &opened.record.body;
    if totals != body.totals {
        tracing::warn!("the record's totals differ from its tree: the writer was broken");
    }
    Ok(RestoreSummary {
        snapshot,
        source: body.source.clone(),
        path,
        plaintext_bytes: read.bytes,
        chunk_count: totals.chunk_count,
        fetched_sealed_bytes: totals.sealed_bytes,
        elapsed_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        is_verified: opened.is_verified,
        fresh_to_kit_floor_only: access.freshness == Freshness::KitFloor,
        is_from_replica: access.freshness == Freshness::Replica,
    })
}

/// Proves that a snapshot restores, without writing it. `sample_percent` of 100 opens all chunks.
pub async fn verify(
    access: &ReadAccess,
    snapshot: RecordDigest,
    sample_percent: f64,
    unverified: bool,
    monitor: &Monitor,
) -> Result<VerifySummary, ClientError> {
    let since = Moment::now();
    let opened = access.open_record(snapshot, unverified).await?;
    let tree = open_tree(access, &opened).await?;
    monitor.set_total(tree.data.plaintext_bytes);
    let is_whole = sample_percent >= 100.0;
    let sample = Some(sample_percent).filter(|_| !is_whole);
    let read = read_data(&tree, Box::new(Nowhere), sample, monitor).await?;
    let body = &opened.record.body;
    let totals = sum(tree.totals, read.totals);
    if is_whole && totals != body.totals {
        return Err(ClientError::Untrusted(
            "the record's totals differ from its tree: the writer was broken; the data is whole"
                .into(),
        ));
    }
    Ok(VerifySummary {
        snapshot,
        source: body.source.clone(),
        sample_percent: sample_percent.min(100.0),
        verified_chunk_count: totals.chunk_count,
        chunk_count: body.totals.chunk_count,
        verified_bytes: read.bytes,
        fetched_sealed_bytes: totals.sealed_bytes,
        elapsed_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        is_verified: opened.is_verified,
    })
}

/// The top of a snapshot's tree: its catalogue read, its data not yet.
pub struct OpenTree {
    fetcher: Fetcher,
    data_level: u8,
    data: NodeChild,
    /// The one file or stream of the snapshot.
    pub entry: Entry,
    /// What was read so far.
    totals: Totals,
}

/// Opens the root and reads the catalogue.
pub async fn open_tree(access: &ReadAccess, opened: &OpenRecord) -> Result<OpenTree, ClientError> {
    let fetcher = Fetcher::new(access.client.clone(), access.namespace, opened.keys.clone());
    let level = opened.record.body.root_level;
    let mut totals = Totals::default();
    let root = fetcher.nodes(level, &[opened.root()], &mut totals).await?;
    let below = level.saturating_sub(1);
    let Some([catalogue, data]) = root.first().map(Vec::as_slice) else {
        return Err(ClientError::Untrusted(
            "the root has not two children: the writer was broken".into(),
        ));
    };
    let bytes = fetcher.whole_stream(below, *catalogue, CATALOGUE_MAX_BYTES, &mut totals).await?;
    let entries = catalogue::decode(&bytes)
        .map_err(|error| ClientError::Untrusted(format!("{error}: the writer was broken")))?;
    let [entry] = entries.as_slice() else {
        return Err(ClientError::Usage(format!(
            "the snapshot has {} files: restore it with a newer strongroom",
            entries.len()
        )));
    };
    Ok(OpenTree { fetcher, data_level: below, data: *data, entry: entry.clone(), totals })
}

struct DataRead {
    bytes: u64,
    totals: Totals,
}

/// Fetches and opens the data stream, or a random share of its chunks.
async fn read_data(
    tree: &OpenTree,
    sink: Box<dyn Sink>,
    sample_percent: Option<f64>,
    monitor: &Monitor,
) -> Result<DataRead, ClientError> {
    let keys = tree.fetcher.keys();
    let unsealer = Unsealer::start(keys, budget::cores(), WRITE_BYTES, sink, monitor)?;
    let mut walker = Walker::new(tree.data_level, tree.data);
    let mut totals = Totals::default();
    let mut reads: JoinSet<Result<Totals, ClientError>> = JoinSet::new();
    let mut first: u64 = 0;
    loop {
        let leaves = walker.next_leaves(&tree.fetcher, READ_REQUEST_BYTES, &mut totals).await?;
        if leaves.is_empty() {
            break;
        }
        let leaves = sampled(leaves, sample_percent);
        if leaves.is_empty() {
            continue;
        }
        let is_long = leaves.iter().any(|leaf| leaf.plaintext_bytes > LONG_CHUNK_BYTES);
        let reads_max = if is_long { LONG_READS_MAX } else { READS_MAX };
        while reads.len() >= reads_max {
            totals = sum(totals, joined(reads.join_next().await)?);
        }
        let count = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
        let Some(read) = Read::prepare(&unsealer, first, leaves).await else { break };
        let (fetcher, jobs) = (tree.fetcher.clone(), unsealer.jobs());
        reads.spawn(async move { read.run(&fetcher, &jobs).await });
        first = first.saturating_add(count);
    }
    while !reads.is_empty() {
        totals = sum(totals, joined(reads.join_next().await)?);
    }
    Ok(DataRead { bytes: unsealer.finish().await?, totals })
}

fn joined(
    outcome: Option<Result<Result<Totals, ClientError>, JoinError>>,
) -> Result<Totals, ClientError> {
    match outcome {
        Some(Ok(totals)) => totals,
        Some(Err(error)) => Err(ClientError::Bug(error.to_string())),
        None => Ok(Totals::default()),
    }
}

fn sampled(leaves: Vec<NodeChild>, percent: Option<f64>) -> Vec<NodeChild> {
    let Some(percent) = percent else { return leaves };
    // Without random numbers all are opened.
    let is_picked = |_: &NodeChild| {
        let random = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        random * 100.0 < percent
    };
    leaves.into_iter().filter(is_picked).collect()
}

/// One read request and the jobs that its answer is cut into.
struct Read {
    jobs: Vec<Job>,
}

impl Read {
    /// Cuts neighbouring chunks into jobs and takes room for them, in order.
    async fn prepare(unsealer: &Unsealer, first: u64, leaves: Vec<NodeChild>) -> Option<Self> {
        let mut jobs: Vec<Job> = Vec::new();
        let mut bytes: u64 = 0;
        for (number, leaf) in (first..).zip(leaves) {
            if bytes == 0 || bytes >= JOB_BYTES {
                if let Some(last) = jobs.last_mut() {
                    last.room = Some(unsealer.take_room(bytes).await?);
                }
                bytes = 0;
                jobs.push(Job {
                    first: number,
                    leaves: Vec::new(),
                    envelopes: unsealer.buffer(),
                    ends: Vec::new(),
                    room: None,
                });
            }
            bytes = bytes.saturating_add(leaf.plaintext_bytes.max(1));
            if let Some(last) = jobs.last_mut() {
                last.leaves.push(leaf);
            }
        }
        if let Some(last) = jobs.last_mut() {
            last.room = Some(unsealer.take_room(bytes).await?);
        }
        Some(Self { jobs })
    }

    async fn run(self, fetcher: &Fetcher, to: &Sender<Job>) -> Result<Totals, ClientError> {
        let digests: Vec<SealedDigest> =
            self.jobs.iter().flat_map(|job| &job.leaves).map(|leaf| leaf.digest).collect();
        let mut totals = Totals::default();
        let mut jobs = self.jobs.into_iter();
        let mut current = jobs.next();
        fetcher
            .envelopes(&digests, |envelope| {
                let Some(job) = current.as_mut() else { return Ok(()) };
                totals.chunk_count = totals.chunk_count.saturating_add(1);
                let length = u64::try_from(envelope.len()).unwrap_or(u64::MAX);
                totals.sealed_bytes = totals.sealed_bytes.saturating_add(length);
                job.envelopes.extend_from_slice(envelope);
                job.ends.push(job.envelopes.len());
                if job.ends.len() == job.leaves.len() {
                    // A writer that failed tells why at the end.
                    if let Some(whole) = std::mem::replace(&mut current, jobs.next()) {
                        let _ = to.send(whole);
                    }
                }
                Ok(())
            })
            .await?;
        Ok(totals)
    }
}

/// Bytes that were only to be checked.
struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_about_as_large_as_asked() {
        let leaf = NodeChild {
            digest: SealedDigest([1; 32]),
            h: crate::keys::PlaintextHash([2; 32]),
            plaintext_bytes: 1,
        };
        let count = sampled(vec![leaf; 10_000], Some(10.0)).len();
        assert!((700..1300).contains(&count), "{count}");
        assert_eq!(sampled(vec![leaf; 10], None).len(), 10);
    }
}
