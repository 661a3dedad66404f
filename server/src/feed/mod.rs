//! This server lends its connections to others that follow it: it dials them, and they ask
//! (`docs/decisions/0014-lent-connections.md`).
//!
//! For each such server a few tasks, each of which keeps one connection lent: dial, turn round,
//! answer until it ends, and again. What is asked passes `router.rs` like any request, as the
//! principal that the dialled server's pinned key is here. So a lent connection allows what one
//! that was dialled from there allows, and a revocation acts at the next request.
//!
//! Reading order: `enrol`, `connection`.

mod connection;
pub mod enrol;

use std::sync::Arc;
use std::time::Duration;

use strongroom_protocol::id::Label;

use self::connection::{Ended, keep_lent};
use crate::error::{ServerError, plain_words};
use crate::feeds::FeedRow;
use crate::keyed_tasks::KeyedTasks;
use crate::pause::pause_after;
use crate::replica::keys::{PeerKeys, Whom};
use crate::repository::Repository;
use crate::stop::Stop;

/// Changes of rows are seen within this time.
const TICK: Duration = Duration::from_millis(500);
/// The first wait after a failure; each later one is twice as long, up to a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Keeps connections lent until `stop` says so.
pub async fn run(repository: Arc<Repository>, mut stop: Stop) {
    let mut tasks = KeyedTasks::default();
    loop {
        tasks.reap("lending");
        for row in rows(&repository).await {
            repository.followers().feeds().begin(row.principal);
            for place in 0..repository.config().feed.connections {
                let name = row.name.clone();
                let task = || feed(repository.clone(), name, stop.clone());
                tasks.ensure((row.name.clone(), place), task);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = stop.wait() => break,
        }
    }
    let shutdown = repository.config().limits.shutdown.0;
    if tokio::time::timeout(shutdown, tasks.finish()).await.is_err() {
        tracing::warn!("answers over lent connections did not end in time and were cut off");
    }
}

/// Lends nothing to a server any more, and removes the keys that were shown to it.
pub fn remove(repository: &Arc<Repository>, name: &Label) -> Result<(), ServerError> {
    repository.remove_feed(name)?;
    PeerKeys::remove(repository.folder(), Whom::Feed(name))?;
    // It is an error only if it never had a value.
    let _ = repository.metrics().replica.lent_connections.remove_label_values(&[name.as_str()]);
    Ok(())
}

async fn rows(repository: &Arc<Repository>) -> Vec<FeedRow> {
    let reading = repository.clone();
    match tokio::task::spawn_blocking(move || reading.feeds()).await {
        Ok(Ok(rows)) => rows,
        Ok(Err(error)) => {
            tracing::error!(%error, "rows of feeds cannot be read");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Keeps one connection lent until the server is removed or `stop` says so.
async fn feed(repository: Arc<Repository>, name: Label, mut stop: Stop) {
    let mut failures = 0u32;
    loop {
        let Some(row) = current(&repository, &name).await else { return };
        let mut pause = TICK;
        if is_lending(&repository, &row) {
            let until = changed(&repository, &row);
            let began = repository.clock().monotonic();
            match keep_lent(&repository, &row, until, stop.clone()).await {
                Ok(Ended::Stopping) => return,
                Ok(Ended::Used) => {
                    // One that is taken and dropped at once is not dialled in a circle.
                    let lasted = repository.clock().monotonic().saturating_sub(began);
                    failures = 0;
                    pause = FIRST_PAUSE.saturating_sub(lasted);
                }
                Err(trouble) => {
                    failures = failures.saturating_add(1);
                    note_trouble(&repository, &row, trouble);
                    pause = pause_after(FIRST_PAUSE, failures);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.wait() => return,
        }
    }
}

async fn current(repository: &Arc<Repository>, name: &Label) -> Option<FeedRow> {
    let (reading, name) = (repository.clone(), name.clone());
    tokio::task::spawn_blocking(move || reading.feed(&name)).await.ok()?.ok()
}

fn is_lending(repository: &Repository, row: &FeedRow) -> bool {
    !row.is_paused && repository.is_fed(row)
}

/// Waits until a server is to get nothing more, or another one stands under its name.
async fn changed(repository: &Arc<Repository>, row: &FeedRow) {
    loop {
        tokio::time::sleep(TICK).await;
        let now = current(repository, &row.name).await;
        if now.as_ref() != Some(row) || !is_lending(repository, row) {
            return;
        }
    }
}

fn note_trouble(repository: &Repository, row: &FeedRow, trouble: String) {
    repository.metrics().replica.lending_failures.with_label_values(&[row.name.as_str()]).inc();
    let trouble = plain_words(&trouble);
    let feeds = repository.followers().feeds();
    if feeds.progress(&row.principal).trouble != trouble {
        tracing::warn!(to = %row.name, trouble, "a connection could not be lent");
    }
    feeds.note(&row.principal, |progress| progress.trouble = trouble);
}
