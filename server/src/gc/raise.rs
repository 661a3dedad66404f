//! Locks that must be raised again, because no date was written when they were made.
//!
//! A hold, and a lock without end, lock their nodes for 400 days; they are raised again when less
//! than 200 are left. A snapshot that is kept although its lock has ended in the retention clock
//! (the wall clock is behind its date, or the clock is under suspicion) is locked for 30 days more,
//! and again when less than 7 are left. This is the first thing that a cycle does, and it is done
//! under suspicion too: locks only ever rise.

use strongroom_protocol::retention::{FOREVER, Moment};

use super::Collector;
use super::marks::{SCAN_BATCH, after, tree_of};
use crate::error::ServerError;
use crate::lock::{Day, Plan, locked_until, node_lock_end};
use crate::pace::Pace;
use crate::rows::SnapshotRow;
use crate::store::schema::Family;

/// A lock without a date is raised when it would end in less than so many days.
const ENDLESS_LEFT_DAYS: u32 = 200;
/// A kept snapshot's lock that has ended is raised when it would end in less than so many days.
const KEPT_LEFT_DAYS: u32 = 7;
/// By so much.
const KEPT_SECONDS: u64 = 30 * 24 * 3600;

impl Collector {
    /// Raises what must be raised; gives the number of snapshots.
    pub(super) fn raise_locks(&self, now: Moment, pace: &mut Pace) -> Result<u64, ServerError> {
        let (mut start, mut raised_count) = (None, 0);
        loop {
            let rows = self.store.page(Family::Snapshots, start.as_deref(), SCAN_BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(raised_count) };
            start = Some(after(last));
            for (key, value) in &rows {
                raised_count += u64::from(self.raise_lock(key, value, now)?);
            }
            pace.breathe()?;
        }
    }

    fn raise_lock(&self, key: &[u8], value: &[u8], now: Moment) -> Result<bool, ServerError> {
        let lock = SnapshotRow::decode(value)?.lock;
        let is_endless = lock.is_held || lock.until_seconds == FOREVER;
        let (left_days, until) = if is_endless {
            (ENDLESS_LEFT_DAYS, node_lock_end(&lock, now.retention_seconds))
        } else if lock.until_seconds <= now.retention_seconds && lock.kept(now).is_some() {
            (KEPT_LEFT_DAYS, now.retention_seconds.saturating_add(KEPT_SECONDS))
        } else {
            return Ok(false);
        };
        let tree = tree_of(key, value)?;
        let enough = Day::of(now.retention_seconds).plus(left_days);
        let locked = locked_until(&self.store, tree.ns, &tree.root)?;
        if locked.is_some_and(|day| day >= enough) {
            return Ok(false);
        }
        // The record may be forgotten in between: then the locks outlive it, and no harm is done.
        let plan = Plan::make(&self.store, tree, now.retention_seconds, until, &|_, _| false)?;
        self.writer.lock_in_slices(plan, || Ok(()))?;
        Ok(true)
    }
}
