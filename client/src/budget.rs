//! Memory and threads of a run, in one place: whatever the source's size, a client stays below
//! 128 MB.
//!
//! ```text
//! plaintext window    32 MiB   blocks of the source, until the server has answered for them
//! pending envelopes   16 MiB   sealed, not yet acknowledged
//! runs in flight      12 MiB   sealed (or not yet) between reader and uploader
//! workers             12 MiB   compressors and scratch
//! cache pages          8 MiB   and about twice as much while rows are written
//! ```
//!
//! The rest (TLS and HTTP buffers, code, stacks) measures about 15 MB. A restore has neither
//! window nor cache, but envelopes that were fetched and plaintext that waits to be written.
//!
//! A large source's threads give way to whatever else the machine does, the ERP and its log
//! segments first of all: a dump may take minutes, a segment may not.

use strongroom_protocol::descriptor::ChunkSizes;

/// Plaintext of a backup that is held at once, in bytes.
pub const WINDOW_BYTES: usize = 32 << 20;
/// Bytes of the source that are read into one block.
pub const BLOCK_BYTES: usize = 4 << 20;
/// Plaintext that goes to a worker at once, in bytes; at least one chunk.
pub const RUN_BYTES: usize = 1 << 20;
/// Envelopes that wait for an answer or for the wire, in bytes.
pub const PENDING_BYTES: usize = 16 << 20;
/// Plaintext of runs between reader and uploader, in bytes.
pub const RUNS_BYTES: usize = 12 << 20;
/// Memory of all workers, in bytes.
pub const WORKERS_BYTES: usize = 12 << 20;
/// zstd's context at the levels that a descriptor can name, for inputs as short as chunks.
pub const COMPRESSOR_BYTES: usize = 1 << 20;
/// Pages of the client cache, in bytes.
pub const CACHE_BYTES: usize = 8 << 20;
/// Batches of rows that wait to be written to the client cache.
pub const CACHE_QUEUE_MAX: usize = 64;
/// Envelopes of one upload request, in bytes.
pub const UPLOAD_BYTES: usize = 4 << 20;
/// The same of a small source, in bytes.
pub const SMALL_UPLOAD_BYTES: usize = 1 << 20;
/// Upload requests at once.
pub const UPLOADS_MAX: usize = 2;
/// "Have" questions at once.
pub const QUESTIONS_MAX: usize = 4;
/// Digests that make a "have" question worth a request before the stream's end.
pub const QUESTION_MIN_COUNT: usize = 128;
/// The same of a small source: sending begins while the rest is sealed.
pub const SMALL_QUESTION_MIN_COUNT: usize = 16;
/// The same as plaintext of the window, in bytes: of large chunks there are fewer.
pub const QUESTION_MIN_BYTES: u64 = 6 << 20;
/// Chunks that are sealed again at once because the server lacks what the cache knew.
pub const RESEALS_MAX: usize = 64;
/// Start of a stream that is read before its size class is declared, in bytes.
pub const PEEK_BYTES: usize = 8 << 20;
/// Files up to this many bytes declare a small session.
pub const SMALL_SOURCE_BYTES: u64 = 16 << 20;
/// Niceness of the threads that read, cut and seal a source that is not small: next to a thread of
/// the usual 0 they get a tenth of a core that both want, alone all of it.
pub const LARGE_SOURCE_NICENESS: i32 = 10;

/// Plaintext of a restore between the request for its envelopes and its place in the file, in
/// bytes.
pub const WRITE_BYTES: u64 = 32 << 20;
/// Plaintext asked for in one read request, in bytes.
pub const READ_REQUEST_BYTES: u64 = 6 << 20;
/// Read requests at once.
pub const READS_MAX: usize = 4;
/// Read requests at once where chunks are longer than [`LONG_CHUNK_BYTES`]: each holds one whole.
pub const LONG_READS_MAX: usize = 2;
/// From here on a chunk is a long one, in bytes.
pub const LONG_CHUNK_BYTES: u64 = 1 << 20;

/// How a run is laid out for a namespace's chunk sizes and this machine's cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a block, with room for an unfinished chunk at its start.
    pub block_bytes: usize,
    /// Blocks in all.
    pub block_count: usize,
    /// Worker threads.
    pub worker_count: usize,
    /// Runs between reader and uploader.
    pub run_count: usize,
    /// How much the threads give way to others, from 0 to 19 as in `nice`.
    pub niceness: i32,
}

impl Layout {
    /// The layout for `cores` cores.
    pub fn new(sizes: ChunkSizes, cores: usize) -> Self {
        let chunk_max = usize::try_from(sizes.max).unwrap_or(BLOCK_BYTES);
        let block_bytes = BLOCK_BYTES.saturating_add(chunk_max);
        let worker_bytes = COMPRESSOR_BYTES.saturating_add(chunk_max.saturating_mul(2));
        let worker_count = cores.clamp(1, (WORKERS_BYTES / worker_bytes).max(1));
        let run_bytes = RUN_BYTES.max(chunk_max);
        let run_count = (RUNS_BYTES / run_bytes).clamp(3, worker_count.saturating_mul(3).max(4));
        Self {
            block_bytes,
            block_count: (WINDOW_BYTES / block_bytes).max(3),
            worker_count,
            run_count,
            niceness: 0,
        }
    }

    /// The same, giving way to others.
    #[must_use]
    pub fn nice(self, niceness: i32) -> Self {
        Self { niceness, ..self }
    }

    /// To be called at the start of a run's thread: on Linux niceness is a thread's own.
    pub fn give_way(&self) {
        if self.niceness > 0
            && let Err(error) = rustix::process::nice(self.niceness)
        {
            tracing::debug!("give way to others: {error}");
        }
    }
}

/// Cores that the system lets this process use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_stays_in_its_budget() {
        for average in [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
            for cores in [1, 2, 8, 128] {
                let sizes = ChunkSizes::around(average).unwrap();
                let layout = Layout::new(sizes, cores);
                let chunk_max = sizes.max as usize;
                let workers = layout.worker_count * (COMPRESSOR_BYTES + 2 * chunk_max);
                let blocks = layout.block_count * layout.block_bytes;
                let runs = layout.run_count * RUN_BYTES.max(chunk_max);
                assert!(workers <= WORKERS_BYTES, "{layout:?}");
                assert!(blocks <= WINDOW_BYTES && layout.block_count >= 3, "{layout:?}");
                assert!(runs <= RUNS_BYTES && layout.run_count >= 3, "{layout:?}");
            }
        }
    }
}
