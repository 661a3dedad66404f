//! A snapshot's two streams, as a reader sees them: the catalogue, read whole and checked, and the
//! data, read whole, in part, or as a sample.
//!
//! Data goes through some requests at once and all cores, and comes out in order. A part costs the
//! nodes on the way to it and its own chunks; each chunk is verified as ever.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Sender;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::limits::CATALOGUE_MAX_BYTES;
use strongroom_protocol::record::Totals;
use tokio::task::{JoinError, JoinSet};

use crate::budget::{
    self, LONG_CHUNK_BYTES, LONG_READS_MAX, READ_REQUEST_BYTES, READS_MAX, WRITE_BYTES,
};
use crate::error::ClientError;
use crate::fetch::{Fetcher, Leaf, Walker, sum};
use crate::files::select;
use crate::files::store::{Growing, Store};
use crate::keys::PlaintextKeys;
use crate::progress::Monitor;
use crate::sealer::NodeChild;
use crate::unsealer::{Job, Sink, Unsealer};

/// Plaintext of one job, in bytes; at least one chunk.
const JOB_BYTES: u64 = 512 * 1024;

/// Says of a chunk whether its bytes need not be fetched.
pub type Has = Option<Box<dyn FnMut(&Leaf) -> bool + Send>>;

/// Which part of the data stream is read.
pub enum Part {
    /// All of it.
    All,
    /// A random share of its chunks, in percent.
    Sample(f64),
    /// The chunks that have bytes of some ranges.
    Ranges {
        /// Rising, apart.
        ranges: Vec<Range<u64>>,
        /// Which of them are there already.
        has: Has,
    },
}

/// The top of a snapshot's tree: its catalogue read, its data not yet.
pub struct OpenTree {
    fetcher: Fetcher,
    data_level: u8,
    /// The data stream.
    pub data: NodeChild,
    /// The list of files, checked.
    pub catalogue: Arc<Store>,
    /// It is a tree, not one stream or file.
    pub is_tree: bool,
    /// What was read so far.
    pub totals: Totals,
}

/// What was read of the data stream.
pub struct DataRead {
    /// Bytes that came out.
    pub bytes: u64,
    /// What was read for them.
    pub totals: Totals,
}

impl OpenTree {
    /// Opens the root and reads the catalogue.
    pub async fn open(fetcher: Fetcher, level: u8, root: NodeChild) -> Result<Self, ClientError> {
        let mut totals = Totals::default();
        let root = fetcher.nodes(level, &[root], &mut totals).await?;
        let below = level.saturating_sub(1);
        let Some([list, data]) = root.first().map(Vec::as_slice) else {
            return Err(ClientError::Untrusted(
                "the root has not two children: the writer was broken".into(),
            ));
        };
        if list.plaintext_bytes > CATALOGUE_MAX_BYTES {
            return Err(ClientError::Untrusted(format!(
                "the catalogue is said to be {} bytes, and no honest one is: the writer was broken",
                list.plaintext_bytes
            )));
        }
        let fail = |error| ClientError::file("keep the catalogue", error);
        let mut growing = Growing::default();
        let keep = |bytes: &[u8]| growing.push(bytes).map_err(fail);
        fetcher.each_chunk(below, *list, &mut totals, keep).await?;
        let catalogue = growing.finish().map_err(fail)?;
        let is_tree = select::check(&catalogue, data.plaintext_bytes)?;
        Ok(Self { fetcher, data_level: below, data: *data, catalogue, is_tree, totals })
    }

    /// Keys of the epoch.
    pub fn keys(&self) -> &PlaintextKeys {
        self.fetcher.keys()
    }

    /// Fetches and opens a part of the data stream.
    pub async fn read(
        &self,
        sink: Box<dyn Sink>,
        part: Part,
        monitor: &Monitor,
    ) -> Result<DataRead, ClientError> {
        let unsealer = Unsealer::start(self.keys(), budget::cores(), WRITE_BYTES, sink, monitor)?;
        let (level, data) = (self.data_level, self.data);
        let (mut walker, sample_percent, mut has) = match part {
            Part::All => (Walker::new(level, data), None, None),
            Part::Sample(percent) => (Walker::new(level, data), Some(percent), None),
            Part::Ranges { ranges, has } => (Walker::to_ranges(level, data, ranges), None, has),
        };
        let mut totals = Totals::default();
        let mut reads: JoinSet<Result<Totals, ClientError>> = JoinSet::new();
        let mut first: u64 = 0;
        loop {
            let found = walker.next_leaves(&self.fetcher, READ_REQUEST_BYTES, &mut totals).await?;
            if found.is_empty() {
                break;
            }
            let mut leaves = sampled(found, sample_percent);
            if let Some(has) = &mut has {
                leaves.retain(|leaf| !has(leaf));
            }
            if leaves.is_empty() {
                continue;
            }
            let is_long = leaves.iter().any(|leaf| leaf.child.plaintext_bytes > LONG_CHUNK_BYTES);
            let reads_max = if is_long { LONG_READS_MAX } else { READS_MAX };
            while reads.len() >= reads_max {
                totals = sum(totals, joined(reads.join_next().await)?);
            }
            let count = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
            let Some(read) = Read::prepare(&unsealer, first, leaves).await else { break };
            let (fetcher, jobs) = (self.fetcher.clone(), unsealer.jobs());
            reads.spawn(async move { read.run(&fetcher, &jobs).await });
            first = first.saturating_add(count);
        }
        while !reads.is_empty() {
            totals = sum(totals, joined(reads.join_next().await)?);
        }
        Ok(DataRead { bytes: unsealer.finish().await?, totals })
    }
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

fn sampled(leaves: Vec<Leaf>, percent: Option<f64>) -> Vec<Leaf> {
    let Some(percent) = percent else { return leaves };
    // Without random numbers all are opened.
    let is_picked = |_: &Leaf| {
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
    /// Puts neighbouring chunks into jobs and takes room for them, in order.
    async fn prepare(unsealer: &Unsealer, first: u64, leaves: Vec<Leaf>) -> Option<Self> {
        let mut jobs: Vec<Job> = Vec::new();
        let (mut bytes, mut next_offset): (u64, u64) = (0, 0);
        for (number, Leaf { offset, child }) in (first..).zip(leaves) {
            if bytes == 0 || bytes >= JOB_BYTES || offset != next_offset {
                if let Some(last) = jobs.last_mut() {
                    last.room = Some(unsealer.take_room(bytes).await?);
                }
                bytes = 0;
                jobs.push(Job {
                    first: number,
                    offset,
                    leaves: Vec::new(),
                    envelopes: unsealer.buffer(),
                    ends: Vec::new(),
                    room: None,
                });
            }
            bytes = bytes.saturating_add(child.plaintext_bytes.max(1));
            next_offset = offset.saturating_add(child.plaintext_bytes);
            if let Some(last) = jobs.last_mut() {
                last.leaves.push(child);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_about_as_large_as_asked() {
        let child = NodeChild {
            digest: SealedDigest([1; 32]),
            h: crate::keys::PlaintextHash([2; 32]),
            plaintext_bytes: 1,
        };
        let leaf = Leaf { offset: 0, child };
        let count = sampled(vec![leaf; 10_000], Some(10.0)).len();
        assert!((700..1300).contains(&count), "{count}");
        assert_eq!(sampled(vec![leaf; 10], None).len(), 10);
    }
}
