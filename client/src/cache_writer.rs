//! Writes new rows to the client cache on a thread of its own.
//!
//! A commit of the cache takes tens of milliseconds and copies many pages. On the workers' threads
//! it would stop the sealing, and each of them would keep memory for it. Rows on their way are not
//! found yet: the price is a chunk that is sealed twice. What is left is written durably when the
//! run says so, while the server commits, or when the handle is dropped, so that what was sealed is
//! remembered however a run ends.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};
use strongroom_protocol::id::ChunkId;

use crate::budget::CACHE_QUEUE_MAX;
use crate::cache::{Cache, CacheRow};
use crate::error::ClientError;

/// Where workers leave new rows.
#[derive(Clone)]
pub struct NewRows(Sender<Task>);

enum Task {
    Insert(Vec<(ChunkId, CacheRow)>),
    Flush,
}

/// The thread. All [`NewRows`] must be gone soon after it is dropped, because it waits for them.
pub struct CacheWriter {
    rows: Option<NewRows>,
    thread: Option<JoinHandle<()>>,
}

impl NewRows {
    /// Leaves rows to be written.
    pub fn push(&self, rows: Vec<(ChunkId, CacheRow)>) {
        // The thread ends only after all senders.
        let _ = self.0.send(Task::Insert(rows));
    }
}

impl CacheWriter {
    /// Starts the thread.
    pub fn start(cache: Arc<Cache>) -> Result<Self, ClientError> {
        let (sender, receiver) = bounded(CACHE_QUEUE_MAX);
        let write = move || {
            for task in receiver {
                match task {
                    Task::Insert(rows) => cache.insert(rows),
                    Task::Flush => cache.flush(true),
                }
            }
            cache.flush(true);
        };
        let thread = std::thread::Builder::new()
            .name("cache".into())
            .spawn(write)
            .map_err(|error| ClientError::file("start a thread", error))?;
        Ok(Self { rows: Some(NewRows(sender)), thread: Some(thread) })
    }

    /// Has what is left written durably, and does not wait for it.
    pub fn flush(&self) {
        if let Some(NewRows(tasks)) = &self.rows {
            // With a full queue, dropping the handle does it.
            let _ = tasks.try_send(Task::Flush);
        }
    }

    /// A handle for a worker.
    pub fn new_rows(&self) -> Option<NewRows> {
        self.rows.clone()
    }
}

impl Drop for CacheWriter {
    fn drop(&mut self) {
        drop(self.rows.take());
        if let Some(thread) = self.thread.take() {
            // A cache that cannot be written is no reason to fail.
            let _ = thread.join();
        }
    }
}
