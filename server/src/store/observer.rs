//! What the store tells the world: durable steps, durations, and the one failure that ends it.
//!
//! The store reads no clock and prints nothing. An [`Observer`] supplies a monotonic time for
//! durations, turns `fatal` into an abort of the process, and lets a crash test stop the world
//! after each durable step. Its methods run on the thread that did the step, sometimes with locks
//! of the store held: they must be quick and must not call back into the store.

use std::time::Duration;

use super::error::StoreError;

/// A step after which the state on disk is a different one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Envelopes went to the open segment in `staging/`; nothing refers to them.
    Appended,
    /// A segment is whole and synced in `staging/`; nothing refers to it.
    SegmentFinished,
    /// A segment is part of `chunks/`; the catalogue does not list it yet.
    SegmentIngested,
    /// Index rows and the catalogue row of a segment are written, not yet synced.
    IndexWritten,
    /// Envelopes and index rows of a small session are written, not yet synced.
    InboxWritten,
    /// Inbox rows live in a catalogued segment now; the switch is written, not yet synced.
    InboxFolded,
    /// A batch of other rows is written, not yet synced.
    MetaWritten,
    /// All rows written before are on disk.
    MetaSynced,
    /// The `HEAD` file holds a new ledger length (emitted by the ledger's writer).
    HeadWritten,
    /// A segment's file was dropped: an orphan's, or one whose rows say so.
    SegmentDropped,
    /// Rows were quarantined, or taken out of it; not yet synced.
    Quarantined,
    /// Quarantined rows are gone; not yet synced.
    Reaped,
    /// What lived in a segment was copied to another that is catalogued now; not yet synced.
    Evacuated,
    /// Index rows point to copies now; not yet synced.
    Moved,
}

/// Watches a store. Every method has a default that does nothing.
pub trait Observer: Send + Sync {
    /// A durable step is done.
    fn step(&self, _: Step) {}

    /// The store is poisoned. A server aborts the process here, without closing anything.
    fn fatal(&self, _: &StoreError) {}

    /// Monotonic time since any fixed moment; only differences are used.
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    /// A segment of `bytes` went from handed over to catalogued in `elapsed`.
    fn sealed(&self, _bytes: u64, _elapsed: Duration) {}

    /// A batch was written to `meta/`.
    fn meta_written(&self, _elapsed: Duration) {}

    /// The log of `meta/` was synced.
    fn synced(&self, _elapsed: Duration) {}
}

/// The observer of those who do not care.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}
