//! Options of the two databases: every knob, with the reason for it.
//!
//! `chunks/` never sees a memtable, a log or a compaction: all of its files are written by the
//! store and ingested into the bottom level. `meta/` is an ordinary database whose log is always
//! on. Memory is bounded here and in `cache.rs`, and nowhere else: one block cache for both, one
//! limit for all write buffers, and a limit on open files; see
//! docs/decisions/0001-sealed-segments.md for the sum.

use std::sync::{Arc, LazyLock};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ChecksumType, DBCompressionType,
    DataBlockIndexType, IngestExternalFileOptions, Options, ReadOptions, WriteOptions,
};

use super::poison::{BackgroundErrors, Poison};
use super::schema::Family;

/// Write buffers of all families together.
const WRITE_BUFFERS_BYTES: usize = 96 << 20;
/// Write buffer of the index: about 300 000 rows, so that its files are few and large.
const INDEX_BUFFER_BYTES: usize = 32 << 20;
/// Write buffer of the inbox, whose rows are envelopes.
const INBOX_BUFFER_BYTES: usize = 16 << 20;
/// Write buffer of any other family.
const SMALL_BUFFER_BYTES: usize = 4 << 20;
/// Log that may pile up before the family that holds it back is flushed. A start after a kill reads
/// all of it, a million index rows, at some 400 000 a second.
const LOG_MAX_BYTES: u64 = 64 << 20;
/// Open files of each database; a table reader takes some kilobytes.
const OPEN_FILES_MAX: i32 = 400;
/// Bytes after which written data is pushed to the disk, so that a sync finds little left to do.
const BYTES_PER_SYNC: u64 = 1 << 20;
/// Bits of filter a row: about one false hit in a hundred.
const FILTER_BITS: f64 = 10.0;

/// Options of every segment writer. They are constant, and a writer borrows its options for as long
/// as it lives: one immutable value for the process lets writers move between threads and stores.
static SEGMENT_WRITER: LazyLock<Options> = LazyLock::new(|| {
    let mut table = segment_table();
    table.disable_cache();
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&table);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    options
});

/// Options of segment writers.
pub(super) fn segment_writer_options() -> &'static Options {
    &SEGMENT_WRITER
}

/// Options of `chunks/`.
pub(super) fn chunks_options(cache: &Cache) -> Options {
    let mut table = segment_table();
    table.set_block_cache(cache);
    let mut options = common_options();
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&table);
    // A segment is never rewritten: it lives and dies whole.
    options.set_disable_auto_compactions(true);
    // A file whose own index is damaged must not keep the others from being opened. (Sizes and keys
    // of all files are compared with the catalogue at open, and every read is hashed.)
    options.set_paranoid_checks(false);
    options
}

/// How a segment is put into `chunks/`: moved, never copied, never given a sequence number of its
/// own, and only into the bottom level; anything else would mean that two segments overlap.
pub(super) fn ingest_options() -> IngestExternalFileOptions {
    let mut options = IngestExternalFileOptions::default();
    options.set_move_files(true);
    options.set_failed_move_fall_back_to_copy(false);
    options.set_snapshot_consistency(false);
    options.set_allow_global_seqno(false);
    options.set_allow_blocking_flush(false);
    options.set_fail_if_not_bottommost_level(true);
    options.set_fill_cache(false);
    options.set_prefetch_lmax_index_and_filter_blocks(false);
    options
}

/// Options of the database `meta/` as a whole.
pub(super) fn meta_options(poison: &Arc<Poison>) -> Options {
    let mut options = common_options();
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(LOG_MAX_BYTES);
    options.set_wal_bytes_per_sync(BYTES_PER_SYNC);
    options.set_max_background_jobs(2);
    // All families are written out together, so that the list of files describes one moment: where
    // its last records are lost, an end of history is, and the ledger is shorter than `HEAD` says.
    options.set_atomic_flush(true);
    options.add_event_listener(BackgroundErrors(poison.clone()));
    options
}

/// Options of one family of `meta/`.
pub(super) fn family_options(family: Family, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_checksum_type(ChecksumType::XXH3);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_max_write_buffer_number(3);
    match family {
        Family::Index | Family::Locks | Family::Seen => {
            // Random digests: nothing to compress, point lookups only, most of them misses.
            options.set_compression_type(DBCompressionType::None);
            options.set_write_buffer_size(INDEX_BUFFER_BYTES);
            options.set_memtable_prefix_bloom_ratio(0.05);
            options.set_memtable_whole_key_filtering(true);
            // A ribbon filter takes a quarter less memory, is not faster to ask, and a table with
            // it costs a third more to make.
            table.set_bloom_filter(FILTER_BITS, false);
            table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
            table.set_partition_filters(true);
            table.set_pin_top_level_index_and_filter(true);
            table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        }
        Family::Inbox => {
            options.set_compression_type(DBCompressionType::None);
            options.set_write_buffer_size(INBOX_BUFFER_BYTES);
        }
        _ => {
            options.set_compression_type(DBCompressionType::Lz4);
            options.set_write_buffer_size(SMALL_BUFFER_BYTES);
            table.set_bloom_filter(FILTER_BITS, false);
        }
    }
    options.set_block_based_table_factory(&table);
    options
}

/// Options of a write to `meta/`: through the log, not synced.
pub(super) fn write_options() -> WriteOptions {
    WriteOptions::default()
}

/// Options of a read of one row.
pub(super) fn point_read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options
}

/// Options of a read of `bytes` neighbouring bytes, which ends before `end`.
pub(super) fn run_read_options(bytes: u64, end: &[u8]) -> ReadOptions {
    let mut options = point_read_options();
    options.fill_cache(false);
    options.set_readahead_size(usize::try_from(bytes).unwrap_or(READAHEAD_MAX).min(READAHEAD_MAX));
    options.set_iterate_upper_bound(end);
    options
}

/// Most bytes that an iterator reads ahead. The buffer is taken anew for each iterator, and what
/// was read stays in the processor's cache until it is hashed and sent.
const READAHEAD_MAX: usize = 512 << 10;

/// Options that both databases share.
fn common_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    // Opening must not read files for the sake of statistics.
    options.set_skip_stats_update_on_db_open(true);
    // A failure ends the process; see `poison.rs`.
    options.set_max_bgerror_resume_count(0);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_log_file_size(4 << 20);
    options.set_keep_log_file_num(4);
    options
}

/// Table format of a segment: a block holds one chunk or a few small ones, keys are looked up by
/// slot number only, so a filter would be of no use, and a two-level index keeps memory flat.
fn segment_table() -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_size(4096);
    table.set_checksum_type(ChecksumType::XXH3);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_cache_index_and_filter_blocks(true);
    table
}
