//! The latch that ends all writing after one failure.
//!
//! When a write, sync, finish or ingest fails, the kernel may have dropped dirty pages and RocksDB
//! may hold in memory what the disk lost: a retry could report success for bytes that are gone. So
//! the first failure is final for this process. It is latched here, the observer is told once (a
//! server aborts then), and everybody who wants to write asks [`Poison::check`] first. What is on
//! disk is then whatever a crash at that moment leaves, which the open check handles.

use std::sync::{Arc, OnceLock};

use super::error::StoreError;
use super::observer::Observer;

/// First failure of a store, if there was one.
pub(super) struct Poison {
    cause: OnceLock<Arc<str>>,
    observer: Arc<dyn Observer>,
}

impl Poison {
    pub(super) fn new(observer: Arc<dyn Observer>) -> Self {
        Poison { cause: OnceLock::new(), observer }
    }

    /// Refuses if there was a failure.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.cause.get() {
            Some(cause) => Err(StoreError::Poisoned(cause.clone())),
            None => Ok(()),
        }
    }

    /// Passes `result` on; an error becomes the failure that ends all writing.
    pub(super) fn guard<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result {
            self.latch(error);
        }
        result
    }

    /// Records `error` as final and tells the observer, unless there was one before.
    pub(super) fn latch(&self, error: &StoreError) {
        if self.cause.set(Arc::from(error.to_string())).is_ok() {
            self.observer.fatal(error);
        }
    }
}

/// Latches background errors of RocksDB, which no call would report before the next write.
pub(super) struct BackgroundErrors(pub(super) Arc<Poison>);

impl rocksdb::event_listener::EventListener for BackgroundErrors {
    fn on_background_error(
        &self,
        _: rocksdb::event_listener::DBBackgroundErrorReason,
        status: rocksdb::event_listener::MutableStatus,
    ) {
        if let Err(error) = status.result() {
            self.0.latch(&StoreError::engine("background work of the engine", error));
        }
    }

    fn on_error_recovery_begin(
        &self,
        _: rocksdb::event_listener::DBBackgroundErrorReason,
        _: &rocksdb::event_listener::BackgroundErrorStatus,
        recover: &mut bool,
    ) {
        // The engine must not resume by itself: see the header.
        *recover = false;
    }
}
