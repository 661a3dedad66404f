//! What decisions change while a collection cycle looks at the repository.
//!
//! A cycle reads for minutes while commits go on. The writer thread notes here, for as long as a
//! cycle watches, which locks and which snapshots each decision wrote, in the same breath as it
//! writes them. The cycle takes the notes, marks what they keep, and does so a last time on the
//! writer thread, where nothing can be added in between. So nothing that became live while the
//! cycle was looking elsewhere can be swept.
//!
//! One cycle watches at a time, and the signal to end it early stands here too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::store::meta::MetaBatch;
use crate::store::schema::Family;

/// Notes that are kept; more than this between two looks ends the cycle.
const NOTES_MAX: usize = 4_000_000;

/// Keys of rows that were written since the last look.
#[derive(Debug, Default)]
pub struct Changes {
    /// Of family `locks`.
    pub locks: Vec<Vec<u8>>,
    /// Of family `snapshots`.
    pub snapshots: Vec<Vec<u8>>,
    /// There were more; the cycle cannot go on.
    pub is_cut: bool,
}

/// The notes.
#[derive(Debug, Default)]
pub struct Noted {
    /// There while a cycle watches.
    changes: Mutex<Option<Changes>>,
    dropping: Mutex<()>,
    is_stopping: AtomicBool,
}

/// A cycle that watches; it ends with this.
pub struct Watch(Arc<Noted>);

impl Noted {
    /// Begins to note; nothing, if a cycle watches already.
    pub fn watch(self: &Arc<Self>) -> Option<Watch> {
        let mut changes = self.changes.lock();
        if changes.is_some() {
            return None;
        }
        *changes = Some(Changes::default());
        Some(Watch(self.clone()))
    }

    /// Waits until nobody else drops segments; for as long as it is held, nobody else does.
    pub fn dropping(&self) -> MutexGuard<'_, ()> {
        self.dropping.lock()
    }

    /// Notes what a decision has written. The writer thread calls it.
    pub fn note(&self, batch: &MetaBatch) {
        let mut changes = self.changes.lock();
        let Some(changes) = changes.as_mut() else { return };
        changes.locks.extend(batch.keys_set(Family::Locks).map(<[u8]>::to_vec));
        changes.snapshots.extend(batch.keys_set(Family::Snapshots).map(<[u8]>::to_vec));
        if changes.locks.len().saturating_add(changes.snapshots.len()) > NOTES_MAX {
            *changes = Changes { is_cut: true, ..Changes::default() };
        }
    }

    /// Asks the cycle that runs, and those to come, to end.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    /// Whether cycles are to end.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }
}

impl Watch {
    /// Takes the notes since the last call.
    pub fn take(&self) -> Changes {
        let mut changes = self.0.changes.lock();
        let is_cut = changes.as_ref().is_none_or(|changes| changes.is_cut);
        let taken = changes.replace(Changes { is_cut, ..Changes::default() });
        taken.unwrap_or(Changes { is_cut: true, ..Changes::default() })
    }

    /// Whether the cycle is to end.
    pub fn is_stopping(&self) -> bool {
        self.0.is_stopping()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.0.changes.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_taken_once_and_only_while_somebody_watches() {
        let noted = Arc::new(Noted::default());
        let mut batch = MetaBatch::new();
        batch.put(Family::Locks, [1], [2]);
        batch.put(Family::Snapshots, [3], [4]);
        batch.delete(Family::Locks, [5]);
        noted.note(&batch);
        let watch = noted.watch().unwrap();
        assert!(noted.watch().is_none(), "one cycle at a time");
        assert!(watch.take().locks.is_empty());
        noted.note(&batch);
        let changes = watch.take();
        assert_eq!((changes.locks, changes.snapshots), (vec![vec![1]], vec![vec![3]]));
        assert!(watch.take().locks.is_empty());
        drop(watch);
        assert!(noted.watch().is_some());
    }
}
