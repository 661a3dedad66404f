//! Counts of what the store holds, kept up to date in memory and set at open.

use std::sync::atomic::{AtomicU64, Ordering};

use super::schema::SegmentRow;

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStatistics {
    /// Catalogued segments.
    pub segment_count: u64,
    /// Bytes of their files.
    pub segment_bytes: u64,
    /// Envelopes in them.
    pub envelope_count: u64,
    /// Envelopes in the inbox.
    pub inbox_count: u64,
    /// Bytes of those.
    pub inbox_bytes: u64,
    /// Bytes of envelopes in segments that are not sealed yet.
    pub unsealed_bytes: u64,
}

/// The counters behind [`StoreStatistics`].
#[derive(Default)]
pub(super) struct Gauges {
    segment_count: AtomicU64,
    segment_bytes: AtomicU64,
    envelope_count: AtomicU64,
    inbox_count: AtomicU64,
    inbox_bytes: AtomicU64,
}

impl Gauges {
    pub(super) fn sealed(&self, segment: &SegmentRow) {
        self.segment_count.fetch_add(1, Ordering::Relaxed);
        self.segment_bytes.fetch_add(segment.file_bytes, Ordering::Relaxed);
        self.envelope_count.fetch_add(u64::from(segment.envelope_count), Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, segment: &SegmentRow) {
        self.segment_count.fetch_sub(1, Ordering::Relaxed);
        self.segment_bytes.fetch_sub(segment.file_bytes, Ordering::Relaxed);
        self.envelope_count.fetch_sub(u64::from(segment.envelope_count), Ordering::Relaxed);
    }

    pub(super) fn inbox_added(&self, count: u64, bytes: u64) {
        self.inbox_count.fetch_add(count, Ordering::Relaxed);
        self.inbox_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn inbox_removed(&self, count: u64, bytes: u64) {
        self.inbox_count.fetch_sub(count, Ordering::Relaxed);
        self.inbox_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn inbox_bytes(&self) -> u64 {
        self.inbox_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self, unsealed_bytes: u64) -> StoreStatistics {
        StoreStatistics {
            segment_count: self.segment_count.load(Ordering::Relaxed),
            segment_bytes: self.segment_bytes.load(Ordering::Relaxed),
            envelope_count: self.envelope_count.load(Ordering::Relaxed),
            inbox_count: self.inbox_count.load(Ordering::Relaxed),
            inbox_bytes: self.inbox_bytes(),
            unsealed_bytes,
        }
    }
}
