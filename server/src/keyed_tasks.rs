//! Tasks that run as long as what they are for is there: at most one for each key.

use std::collections::HashMap;
use std::hash::Hash;

use tokio::task::{Id, JoinSet};

/// Running tasks by what they are for.
pub struct KeyedTasks<K> {
    tasks: JoinSet<()>,
    running: HashMap<K, Id>,
}

impl<K> Default for KeyedTasks<K> {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), running: HashMap::new() }
    }
}

impl<K: Eq + Hash> KeyedTasks<K> {
    /// Forgets tasks that ended; one that panicked is told in the log as `what`.
    pub fn reap(&mut self, what: &str) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let id = match ended {
                Ok((id, ())) => id,
                Err(error) => {
                    tracing::error!(%error, "{what} ended badly");
                    error.id()
                }
            };
            self.running.retain(|_, running| *running != id);
        }
    }

    /// Starts a task for `key`, unless one is running.
    pub fn ensure<F>(&mut self, key: K, task: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tasks = &mut self.tasks;
        self.running.entry(key).or_insert_with(|| tasks.spawn(task()).id());
    }

    /// Waits until all have ended.
    pub async fn finish(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
