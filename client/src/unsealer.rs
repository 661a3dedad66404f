//! Opens chunks on all cores and hands their plaintext over in stream order.
//!
//! ```text
//! fetch tasks -> jobs of some envelopes -> workers: every check -> one writer thread: in order
//! ```
//!
//! Room is counted in plaintext bytes: a fetch task takes room before it asks for chunks, and the
//! writer gives it back when they are written, so what is in flight is bounded whatever the order
//! of arrival. The first failure ends everything; not a byte of a chunk that failed a check, or of
//! one after it, is handed over.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::compressor::Decompressor;
use crate::error::ClientError;
use crate::fetch::open_leaf;
use crate::keys::PlaintextKeys;
use crate::progress::Monitor;
use crate::sealer::NodeChild;

/// Room is counted in this many bytes, so that it fits a semaphore's permits.
const ROOM_UNIT_BYTES: u64 = 4096;
/// Buffers of each kind that are kept for the next jobs.
const IDLE_BUFFERS: usize = 12;
/// A longer buffer, in bytes, is not kept.
const IDLE_BUFFER_MAX_BYTES: usize = 1 << 20;

/// Where plaintext goes.
pub trait Sink: Send {
    /// Takes bytes of the stream, and how many of its bytes come before. What was not asked for
    /// is left out; the rest comes in order.
    fn write(&mut self, offset: u64, plaintext: &[u8]) -> io::Result<()>;

    /// Everything that was asked for has come.
    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Some neighbouring chunks, sealed.
pub struct Job {
    /// Place of the first among the chunks that are asked for.
    pub first: u64,
    /// Bytes of the stream before it.
    pub offset: u64,
    /// What the nodes say of them.
    pub leaves: Vec<NodeChild>,
    /// Their envelopes, one after another.
    pub envelopes: Vec<u8>,
    /// Where each envelope ends.
    pub ends: Vec<usize>,
    /// Room that the job takes.
    pub room: Option<OwnedSemaphorePermit>,
}

/// The running threads.
pub struct Unsealer {
    jobs: Sender<Job>,
    room: Arc<Semaphore>,
    idle_envelopes: Receiver<Vec<u8>>,
    is_whole: Arc<AtomicBool>,
    outcome: oneshot::Receiver<Result<u64, ClientError>>,
}

struct Opened {
    first: u64,
    offset: u64,
    chunk_count: u64,
    plaintext: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Unsealer {
    /// Starts `worker_count` workers and a writer; `room_bytes` of plaintext may be in flight.
    pub fn start(
        keys: &PlaintextKeys,
        worker_count: usize,
        room_bytes: u64,
        sink: Box<dyn Sink>,
        monitor: &Monitor,
    ) -> Result<Self, ClientError> {
        let (jobs, waiting) = unbounded::<Job>();
        let (opened, to_write) = unbounded();
        let (home, idle) = bounded(IDLE_BUFFERS);
        let (envelopes_home, idle_envelopes) = bounded(IDLE_BUFFERS);
        for number in 0..worker_count.max(1) {
            let worker = Worker {
                keys: keys.clone(),
                waiting: waiting.clone(),
                opened: opened.clone(),
                idle: idle.clone(),
                envelopes_home: envelopes_home.clone(),
                decompressor: Decompressor::new(),
            };
            spawn(format!("unseal-{number}"), move || worker.work())?;
        }
        let units = usize::try_from(room_bytes / ROOM_UNIT_BYTES).unwrap_or(1).max(1);
        let room = Arc::new(Semaphore::new(units));
        let (tell, outcome) = oneshot::channel();
        let is_whole = Arc::new(AtomicBool::new(false));
        let writer =
            Writer { to_write, home, sink, monitor: monitor.clone(), is_whole: is_whole.clone() };
        let closing = room.clone();
        spawn("write".into(), move || {
            let written = writer.work();
            // Whoever waits for room must not wait for a writer that has gone.
            closing.close();
            let _ = tell.send(written);
        })?;
        Ok(Self { jobs, room, idle_envelopes, is_whole, outcome })
    }

    /// Waits for room for `bytes` of plaintext; nothing when the writer has failed.
    pub async fn take_room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes / ROOM_UNIT_BYTES).unwrap_or(u32::MAX).saturating_add(1);
        self.room.clone().acquire_many_owned(units).await.ok()
    }

    /// An empty buffer for the envelopes of a job.
    pub fn buffer(&self) -> Vec<u8> {
        self.idle_envelopes.try_recv().unwrap_or_default()
    }

    /// A handle that fetch tasks send jobs through.
    pub fn jobs(&self) -> Sender<Job> {
        self.jobs.clone()
    }

    /// Waits until everything that was sent is written; gives the number of bytes. All handles
    /// must be dropped before.
    pub async fn finish(self) -> Result<u64, ClientError> {
        // A run that fails before this drops its handles as well, and is not whole.
        self.is_whole.store(true, Ordering::Release);
        drop(self.jobs);
        self.outcome.await.map_err(|_| ClientError::Bug("the writer thread ended".into()))?
    }
}

struct Worker {
    keys: PlaintextKeys,
    waiting: Receiver<Job>,
    opened: Sender<Result<Opened, ClientError>>,
    idle: Receiver<Vec<u8>>,
    envelopes_home: Sender<Vec<u8>>,
    decompressor: Decompressor,
}

impl Worker {
    fn work(mut self) {
        while let Ok(job) = self.waiting.recv() {
            let opened = self.open(job);
            let is_over = opened.is_err();
            if self.opened.send(opened).is_err() || is_over {
                return;
            }
        }
    }

    fn open(&mut self, mut job: Job) -> Result<Opened, ClientError> {
        let mut plaintext = self.idle.try_recv().unwrap_or_default();
        plaintext.clear();
        let wanted: u64 = job.leaves.iter().map(|leaf| leaf.plaintext_bytes).sum();
        plaintext.reserve_exact(usize::try_from(wanted).unwrap_or(0));
        let mut start = 0;
        for (leaf, end) in job.leaves.iter().zip(&job.ends) {
            let envelope = job.envelopes.get(start..*end).unwrap_or(&[]);
            start = *end;
            open_leaf(&self.keys, envelope, leaf, &mut plaintext, &mut self.decompressor)?;
        }
        job.envelopes.clear();
        keep(&self.envelopes_home, job.envelopes);
        let chunk_count = count_of(job.leaves.len());
        let Job { first, offset, room, .. } = job;
        Ok(Opened { first, offset, chunk_count, plaintext, room })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.opened.send(Err(ClientError::Bug("an unsealing thread panicked".into())));
        }
    }
}

struct Writer {
    to_write: Receiver<Result<Opened, ClientError>>,
    home: Sender<Vec<u8>>,
    sink: Box<dyn Sink>,
    monitor: Monitor,
    is_whole: Arc<AtomicBool>,
}

impl Writer {
    fn work(mut self) -> Result<u64, ClientError> {
        let mut early: BTreeMap<u64, Opened> = BTreeMap::new();
        let (mut next, mut bytes) = (0u64, 0u64);
        while let Ok(opened) = self.to_write.recv() {
            let opened = opened?;
            early.insert(opened.first, opened);
            while let Some(turn) = early.remove(&next) {
                next = next.saturating_add(turn.chunk_count);
                self.sink.write(turn.offset, &turn.plaintext).map_err(failed)?;
                let length = count_of(turn.plaintext.len());
                bytes = bytes.saturating_add(length);
                self.monitor.add_done(length);
                keep(&self.home, turn.plaintext);
                drop(turn.room);
            }
        }
        if early.is_empty() {
            if self.is_whole.load(Ordering::Acquire) {
                self.sink.end().map_err(failed)?;
            }
            return Ok(bytes);
        }
        Err(ClientError::Bug("a part of the stream never came".into()))
    }
}

fn failed(error: io::Error) -> ClientError {
    ClientError::file("write what was restored", error)
}

/// Gives a buffer back for the next job.
fn keep(home: &Sender<Vec<u8>>, buffer: Vec<u8>) {
    if buffer.capacity() <= IDLE_BUFFER_MAX_BYTES {
        // A full house means that enough memory is kept already.
        let _ = home.try_send(buffer);
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<(), ClientError> {
    let thread = std::thread::Builder::new().name(name).spawn(work);
    thread.map(drop).map_err(|error| ClientError::file("start a thread", error))
}

fn count_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
