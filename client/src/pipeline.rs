//! From the source's bytes to sealed chunks: the reader's threads, and a worker a core.
//!
//! ```text
//! read: blocks -> cut: runs of chunks -> workers: hash -> cache -> (compress -> seal) -> uploader
//! ```
//!
//! Bounds: the reader has so many blocks and no more, and the uploader returns a permit with each
//! run that it takes over, so what lies between them does not grow with the source.
//!
//! Chunks that the cache knows come out unsealed with their plaintext, so that the uploader can
//! have them sealed after all ([`Pipeline::reseal`]) when the server lacks or must prove them.
//! All threads end when the [`Pipeline`] is dropped; a reader that hangs in its source ends with
//! it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, never, select_biased, unbounded};
use strongroom_protocol::descriptor::{ChunkSizes, Codec};
use strongroom_protocol::frame;
use strongroom_protocol::id::ChunkId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::budget::Layout;
use crate::cache::{Cache, CacheRow};
use crate::cache_writer::NewRows;
use crate::chunker::Chunker;
use crate::compressor::Compressor;
use crate::error::ClientError;
use crate::feed::{Feed, Stream};
use crate::keys::PlaintextKeys;
use crate::reader::{self, Block, Gates, ReadOutcome, Run};
use crate::sealer::seal_chunk;
use crate::tree::Leaf;

/// Length prefix of an envelope on the wire.
const PREFIX_BYTES: usize = 4;
/// Buffers of sealed runs that are kept for the next ones.
const IDLE_PACKS: usize = 3;
/// A buffer of a sealed run grows by this much, in bytes: doubling would keep what nobody fills.
const PACK_STEP_BYTES: usize = 256 * 1024;

/// Where the bytes of a chunk are.
#[derive(Clone)]
pub enum Content {
    /// Not sealed: the cache knows the envelope.
    Plain(Arc<Block>, Range<usize>),
    /// Sealed: length prefix and envelope, as they go over the wire.
    Framed(Bytes),
}

/// A chunk that left the workers.
pub struct Piece {
    /// What the tree needs.
    pub leaf: Leaf,
    /// Its bytes.
    pub content: Content,
}

/// What threads tell the uploader.
pub enum Report {
    /// Run number `index` (from 0, every number once, in any order).
    Run {
        /// Its place among both streams' runs.
        index: u64,
        /// The stream that its chunks are of.
        stream: Stream,
        /// Its chunks, in order.
        pieces: Vec<Piece>,
    },
    /// A chunk that [`Pipeline::reseal`] asked for.
    Resealed {
        /// As given.
        ticket: u64,
        /// The chunk, sealed.
        piece: Piece,
    },
    /// The source has ended.
    End {
        /// Runs in all.
        run_count: u64,
        /// Bytes of the data stream.
        data_bytes: u64,
    },
    /// The source cannot be read, or a thread failed.
    Failed(ClientError),
}

/// What the threads need to know.
#[derive(Clone)]
pub struct PipelineOptions {
    /// Keys of the epoch.
    pub keys: PlaintextKeys,
    /// Where to cut.
    pub sizes: ChunkSizes,
    /// How to compress.
    pub codec: Codec,
    /// What was sealed before.
    pub cache: Arc<Cache>,
    /// Where to leave what is sealed now.
    pub new_rows: Option<NewRows>,
    /// Take the cache's word; else seal everything again.
    pub use_cache: bool,
    /// Threads and blocks.
    pub layout: Layout,
}

/// The running threads.
pub struct Pipeline {
    reports: UnboundedReceiver<Report>,
    reseals: Sender<Reseal>,
    permits: Sender<()>,
    /// Never sent on; its end is what the reader sees when the run is over.
    _running: Sender<()>,
}

struct Reseal {
    ticket: u64,
    leaf: Leaf,
    block: Arc<Block>,
    range: Range<usize>,
}

impl Pipeline {
    /// Starts to read and seal `source`.
    pub fn start(source: Box<dyn Feed>, options: &PipelineOptions) -> Result<Self, ClientError> {
        let layout = options.layout;
        let (report, reports) = unbounded_channel();
        let (reseals, reseal_tasks) = unbounded();
        let (permits, permitted) = bounded(layout.run_count);
        for _ in 0..layout.run_count {
            let _ = permits.try_send(());
        }
        let (running, stopped) = bounded(0);
        let (pack_home, idle_packs) = bounded(IDLE_PACKS);
        let fail = |error| ClientError::file("start a thread", error);
        let chunker = Chunker::new(&options.keys, options.sizes);
        let gates = Gates { permitted, stopped };
        let tell_end = report.clone();
        let tell = move |outcome: ReadOutcome| {
            let _ = tell_end.send(outcome.into());
        };
        let runs = reader::start(source, chunker, layout, gates, tell).map_err(fail)?;
        for number in 0..layout.worker_count {
            let mut worker = Worker {
                options: options.clone(),
                compressor: Compressor::new(options.codec),
                envelope: Vec::new(),
                pack_home: pack_home.clone(),
                idle_packs: idle_packs.clone(),
                report: report.clone(),
            };
            let (runs, reseals) = (runs.clone(), reseal_tasks.clone());
            let work = move || {
                layout.give_way();
                worker.work(runs, reseals);
            };
            let name = format!("seal-{number}");
            std::thread::Builder::new().name(name).spawn(work).map_err(fail)?;
        }
        Ok(Self { reports, reseals, permits, _running: running })
    }

    /// The next report; nothing when all threads have ended.
    pub async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// A report that is there already.
    pub fn next_now(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    /// Lets the reader make one more run: to be called once for each run that is taken over.
    pub fn permit(&self) {
        let _ = self.permits.try_send(());
    }

    /// Has a chunk sealed that the cache knew; answered by [`Report::Resealed`].
    pub fn reseal(&self, ticket: u64, leaf: Leaf, block: Arc<Block>, range: Range<usize>) {
        let _ = self.reseals.send(Reseal { ticket, leaf, block, range });
    }
}

impl From<ReadOutcome> for Report {
    fn from(outcome: ReadOutcome) -> Self {
        match outcome {
            ReadOutcome::End { run_count, data_bytes } => Self::End { run_count, data_bytes },
            // A source that knows more than what the system said of it says it.
            ReadOutcome::Failed(error) => Self::Failed(match error.downcast::<ClientError>() {
                Ok(error) => error,
                Err(error) => ClientError::file("read the source", error),
            }),
        }
    }
}

/// The envelope inside a framed one.
pub fn envelope_of(framed: &Bytes) -> &[u8] {
    framed.get(PREFIX_BYTES..).unwrap_or(&[])
}

/// Envelopes of a run, one after another; the memory is used again when they are gone.
struct Pack {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Pack {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Pack {
    fn drop(&mut self) {
        // A full house means that enough memory is kept already.
        let _ = self.home.try_send(std::mem::take(&mut self.bytes));
    }
}

struct Worker {
    options: PipelineOptions,
    compressor: Compressor,
    envelope: Vec<u8>,
    pack_home: Sender<Vec<u8>>,
    idle_packs: Receiver<Vec<u8>>,
    report: UnboundedSender<Report>,
}

impl Worker {
    /// Works until both queues have ended. What the uploader waits for goes first.
    fn work(&mut self, mut runs: Receiver<Run>, reseals: Receiver<Reseal>) {
        loop {
            let report = select_biased! {
                recv(reseals) -> task => match task {
                    Ok(task) => self.reseal(&task),
                    Err(_) => return,
                },
                recv(runs) -> task => match task {
                    Ok(run) => self.seal_run(run),
                    Err(_) => {
                        runs = never();
                        continue;
                    }
                },
            };
            if self.report.send(report.unwrap_or_else(Report::Failed)).is_err() {
                return;
            }
        }
    }

    fn seal_run(&mut self, run: Run) -> Result<Report, ClientError> {
        let mut pack = self.idle_packs.try_recv().unwrap_or_default();
        pack.clear();
        let mut sealed = Vec::with_capacity(run.chunks.len());
        let mut new_rows = Vec::new();
        for range in run.chunks {
            let plaintext = run.block.chunk(&range);
            let h = self.options.keys.hash_chunk(plaintext);
            let id = h.chunk_id();
            let plaintext_bytes = length_of(plaintext.len());
            let known = if self.options.use_cache { self.options.cache.get(&id) } else { None };
            if let Some(CacheRow { digest, envelope_bytes }) = known {
                let envelope_bytes = u64::from(envelope_bytes);
                let leaf = Leaf { digest, h, id, plaintext_bytes, envelope_bytes };
                sealed.push((leaf, None, range));
                continue;
            }
            let body = self.compressor.compress(plaintext);
            let digest = seal_chunk(&h, &body, &mut self.envelope);
            let prefix = frame::prefix(&self.envelope)?;
            let from = pack.len();
            let wanted = PREFIX_BYTES.saturating_add(self.envelope.len());
            if pack.capacity().saturating_sub(from) < wanted {
                pack.reserve_exact(wanted.max(PACK_STEP_BYTES));
            }
            pack.extend_from_slice(&prefix);
            pack.extend_from_slice(&self.envelope);
            let envelope_bytes = length_of(self.envelope.len());
            let leaf = Leaf { digest, h, id, plaintext_bytes, envelope_bytes };
            sealed.push((leaf, Some(from..pack.len()), range));
            new_rows.push((id, CacheRow { digest, envelope_bytes: u32::from_le_bytes(prefix) }));
        }
        if !new_rows.is_empty() {
            self.remember(new_rows);
        }
        let pack = Bytes::from_owner(Pack { bytes: pack, home: self.pack_home.clone() });
        let pieces = sealed.into_iter().map(|(leaf, framed, range)| {
            let content = match framed {
                Some(framed) => Content::Framed(pack.slice(framed)),
                None => Content::Plain(run.block.clone(), range),
            };
            Piece { leaf, content }
        });
        Ok(Report::Run { index: run.index, stream: run.stream, pieces: pieces.collect() })
    }

    fn remember(&self, rows: Vec<(ChunkId, CacheRow)>) {
        if let Some(new_rows) = &self.options.new_rows {
            new_rows.push(rows);
        }
    }

    fn reseal(&mut self, task: &Reseal) -> Result<Report, ClientError> {
        let plaintext = task.block.chunk(&task.range);
        let body = self.compressor.compress(plaintext);
        let digest = seal_chunk(&task.leaf.h, &body, &mut self.envelope);
        let prefix = frame::prefix(&self.envelope)?;
        if digest != task.leaf.digest {
            let row = CacheRow { digest, envelope_bytes: u32::from_le_bytes(prefix) };
            self.remember(vec![(task.leaf.id, row)]);
        }
        let mut framed = Vec::with_capacity(PREFIX_BYTES.saturating_add(self.envelope.len()));
        framed.extend_from_slice(&prefix);
        framed.extend_from_slice(&self.envelope);
        let envelope_bytes = length_of(self.envelope.len());
        let leaf = Leaf { digest, envelope_bytes, ..task.leaf };
        let piece = Piece { leaf, content: Content::Framed(framed.into()) };
        Ok(Report::Resealed { ticket: task.ticket, piece })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = ClientError::Bug("a sealing thread panicked".into());
            let _ = self.report.send(Report::Failed(error));
        }
    }
}

fn length_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
