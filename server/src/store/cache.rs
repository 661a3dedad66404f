//! The block cache of both databases, and how large it is.
//!
//! Filters and indexes of the index's tables take about two bytes of the 66 of a row. Each look-up
//! touches a part of both at random, so what of them is not in the cache costs two more reads a
//! look-up. The half of the cache that is kept for such blocks must hold all of them: so it grows
//! with the index, if the operator has not said how large it is, up to a bound that is far beyond
//! most repositories. Beyond the bound look-ups get slower, nothing else happens.
//!
//! What counts is the size of the tables, which the engine knows without opening one. (Its estimate
//! of rows counts only tables that were opened before, so it is next to nothing after a start.)

use rocksdb::Cache;

/// Twice the share of filters and indexes, and some room.
const SHARE_OF_TABLES: u64 = 12;
/// Enough for 800 MB of tables, 12 million rows.
const BYTES_MIN: u64 = 64 << 20;
/// Enough for 13 GB of tables, 195 million rows.
const BYTES_MAX: u64 = 1 << 30;

/// The cache.
pub(super) struct BlockCache {
    engine: Cache,
    /// What the operator said; 0 is nothing.
    given: u64,
}

impl BlockCache {
    /// A cache of `given` bytes; 0 means that it follows the index.
    pub(super) fn new(given: u64) -> Self {
        BlockCache { engine: Cache::new_lru_cache(as_size(bytes_for(given, 0))), given }
    }

    /// As the engine knows it.
    pub(super) fn engine(&self) -> &Cache {
        &self.engine
    }

    /// Makes it as large as an index with so many bytes of tables wants it, unless it is larger.
    pub(super) fn fit(&self, table_bytes: u64) {
        let wanted = as_size(bytes_for(self.given, table_bytes));
        if wanted > self.engine.get_capacity() {
            // A clone is a handle to the same cache.
            self.engine.clone().set_capacity(wanted);
        }
    }
}

fn bytes_for(given: u64, table_bytes: u64) -> u64 {
    match given {
        0 => (table_bytes / SHARE_OF_TABLES).clamp(BYTES_MIN, BYTES_MAX),
        given => given,
    }
}

fn as_size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_index_within_bounds() {
        let cache = BlockCache::new(0);
        for (table_bytes, capacity) in [
            (66_000_000, BYTES_MIN),
            (6_600_000_000, 550_000_000),
            (3_300_000_000, 550_000_000), // rows went; what was taken stays
            (u64::MAX, BYTES_MAX),
        ] {
            cache.fit(table_bytes);
            assert_eq!(cache.engine().get_capacity() as u64, capacity, "{table_bytes} bytes");
        }
    }

    #[test]
    fn what_the_operator_says_stays() {
        let cache = BlockCache::new(8 << 20);
        cache.fit(100_000_000_000);
        assert_eq!(cache.engine().get_capacity(), 8 << 20);
    }
}
