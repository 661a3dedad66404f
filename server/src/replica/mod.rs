//! This server as the replica of others: it asks, and they have no credential for it.
//!
//! One task a primary looks at it now and then (`follow.rs`). What it finds becomes decisions of
//! this server (`repository/replication.rs`, `repository/replicated.rs`); the tasks themselves keep
//! nothing that must survive. `docs/replication.md` has what moves, in which order, and what a
//! captured primary can do.
//!
//! Reading order: `keys`, `throttle`, `dialling`, `peer`, `rolling`, `key_age`, `enrol`, `source`,
//! `follow`, `descriptors`, `pending`, `tree`, `import`, `repair`.

mod descriptors;
mod dialling;
pub mod enrol;
pub mod error;
mod follow;
pub mod import;
pub mod key_age;
pub mod keys;
pub mod peer;
mod pending;
mod repair;
pub mod rolling;
mod source;
pub mod throttle;
mod tree;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strongroom_protocol::id::Label;
use strongroom_protocol::limits::CHECKPOINT_MAX_BYTES;
use strongroom_protocol::route::Route;
use strongroom_protocol::vouch::ServerTls;

use self::dialling::{Follow, Renewal};
use self::error::ReplicaError;
use self::follow::Follower;
use self::keys::{PeerKeys, Whom};
use self::peer::Peer;
use self::repair::Repairer;
use self::rolling::Party;
use self::source::Source;
use self::throttle::Throttle;
use crate::error::{ServerError, plain_words};
use crate::followers::FollowState;
use crate::keyed_tasks::KeyedTasks;
use crate::pause::pause_after;
use crate::replica_rows::{PrimaryRow, Reach};
use crate::repository::Repository;
use crate::stop::Stop;

/// New primaries are found within this time.
const TICK: Duration = Duration::from_millis(500);

/// Follows all primaries until `stop` says so.
pub async fn run(repository: Arc<Repository>, mut stop: Stop) {
    let rates = repository.config().replica.rates();
    let throttle = Arc::new(Throttle::new(repository.clock().clone(), rates));
    let mut tasks = KeyedTasks::default();
    loop {
        tasks.reap("following a primary");
        for name in names(&repository).await {
            let followed = name.clone();
            let task = || follow(repository.clone(), followed, throttle.clone(), stop.clone());
            tasks.ensure(name, task);
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = stop.wait() => break,
        }
    }
    tasks.finish().await;
}

/// Removes a primary and the keys that were shown to it.
pub fn remove(repository: &Arc<Repository>, name: &Label) -> Result<(), ServerError> {
    repository.remove_primary(name)?;
    PeerKeys::remove(repository.folder(), Whom::Primary(name))?;
    let metrics = &repository.metrics().replica;
    for gauge in
        [&metrics.lag, &metrics.pending_snapshots, &metrics.pending_bytes, &metrics.refused]
    {
        // It is an error only if it never had a value.
        let _ = gauge.remove_label_values(&[name.as_str()]);
    }
    Ok(())
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReplicaError> + Send + 'static,
) -> Result<T, ReplicaError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| Err(ServerError::Bug(error.to_string()).into()))
}

async fn names(repository: &Arc<Repository>) -> Vec<Label> {
    let repository = repository.clone();
    match blocking(move || Ok(repository.primaries()?)).await {
        Ok(rows) => rows.into_iter().map(|row| row.name).collect(),
        Err(error) => {
            tracing::error!(%error, "primaries cannot be read");
            Vec::new()
        }
    }
}

/// Follows one primary until it is removed or `stop` says so.
async fn follow(repository: Arc<Repository>, name: Label, throttle: Arc<Throttle>, mut stop: Stop) {
    let began = repository.clock().monotonic();
    repository.followers().note(&name, |progress| progress.began = began);
    let (mut follower, mut failures, mut repairer) = (None, 0u32, Repairer::default());
    loop {
        let (reading, wanted) = (repository.clone(), name.clone());
        let Ok(row) = blocking(move || Ok(reading.primary(&wanted)?)).await else { return };
        let is_asked = !row.is_paused && !row.is_refused;
        if is_asked {
            let outcome = ready(&repository, &row, follower.take(), (&throttle, &stop)).await;
            let before = repository.followers().progress(&name).received_bytes;
            let outcome = match outcome {
                Ok(mut opened) => {
                    let mut outcome = Ok(None);
                    if !row.is_repair_only {
                        outcome = opened.look().await;
                    }
                    if outcome.is_ok() {
                        let mended = repairer.mend(&repository, &opened.source, &row).await;
                        outcome = mended.and(outcome);
                    }
                    follower = Some(opened);
                    outcome
                }
                Err(error) => Err(error),
            };
            // A line that breaks now and then, and brings something in between, is not avoided.
            let came = repository.followers().progress(&name).received_bytes > before;
            failures = match outcome {
                Ok(_) => 0,
                Err(_) if came => 1,
                Err(_) => failures.saturating_add(1),
            };
            if let Err(ReplicaError::Stopping) = outcome {
                return;
            }
            settle(&repository, &row, follower.as_ref(), outcome).await;
        } else {
            follower = None;
        }
        show(&repository, &name).await;
        let pause = pause_after(repository.config().replica.poll_interval.0, failures);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = replaced(&repository, &row) => failures = 0,
            () = stop.wait() => return,
        }
    }
}

/// Waits until a primary is removed, or another stands under its name, which must not wait for what
/// failed before.
async fn replaced(repository: &Arc<Repository>, row: &PrimaryRow) {
    loop {
        tokio::time::sleep(TICK).await;
        let (reading, primary) = (repository.clone(), row.enrolment());
        if blocking(move || Ok(reading.followed(&primary)?)).await.is_err() {
            return;
        }
    }
}

/// The follower of before, or a new one; it is known which keys the primary knows.
async fn ready(
    repository: &Arc<Repository>,
    row: &PrimaryRow,
    before: Option<Follower>,
    (throttle, stop): (&Arc<Throttle>, &Stop),
) -> Result<Follower, ReplicaError> {
    if let Some(party) = Party::of_primary(repository, row) {
        rolling::settle(repository, &party, stop).await?;
    }
    // Another primary may stand under the name by now, with other keys.
    match before.filter(|follower| follower.primary == row.enrolment()) {
        Some(follower) => Ok(follower),
        None => open(repository, row, throttle.clone(), stop.clone()),
    }
}

fn open(
    repository: &Arc<Repository>,
    row: &PrimaryRow,
    throttle: Arc<Throttle>,
    stop: Stop,
) -> Result<Follower, ReplicaError> {
    let patience = repository.config().replica.patience.0;
    let peer = match &row.reach {
        Reach::Dialled(addresses) => {
            let (whom, now_ms) = (Whom::Primary(&row.name), repository.clock().wall_ms());
            let keys = PeerKeys::load_or_create(repository.folder(), whom, now_ms)?;
            let (loading, name) = (repository.clone(), row.name.clone());
            let load = move || PeerKeys::load(loading.folder(), Whom::Primary(&name));
            let renewal = Renewal { gate: rolling::gate(repository, whom), load: Arc::new(load) };
            let (following, primary) = (repository.clone(), row.enrolment());
            let keep = move |next| following.follow_primary_key(&primary, next);
            let pinned = ServerTls { tls_key: row.tls_key, serial: row.tls_serial };
            let follow = Follow { ledger_key: row.ledger_key, pinned, keep: Arc::new(keep) };
            Peer::dialling(addresses, &keys, row.tls_key, throttle, patience, stop)?
                .following(follow)
                .renewing(renewal)
        }
        Reach::Lent => {
            let pool = repository.followers().lent().pool(row.principal);
            Peer::lent(pool, throttle, patience, stop)
        }
        Reach::Carried => return Err(ReplicaError::Unreachable("nothing is asked of it".into())),
    };
    Ok(Follower::new(repository.clone(), row.enrolment(), Arc::new(Source::Peer(peer))))
}

/// Says what came of a look: in memory, in the log, and on record where the history is wrong.
async fn settle(
    repository: &Arc<Repository>,
    row: &PrimaryRow,
    follower: Option<&Follower>,
    outcome: Result<Option<String>, ReplicaError>,
) {
    let (name, now) = (&row.name, repository.clock().monotonic());
    let (state, trouble) = match &outcome {
        Ok(_) if row.is_repair_only => (FollowState::RepairOnly, String::new()),
        Ok(None) => (FollowState::InSync, String::new()),
        Ok(Some(trouble)) => (FollowState::Failing, trouble.clone()),
        Err(error) => {
            let state = match error {
                ReplicaError::Unreachable(_) => FollowState::Unreachable,
                ReplicaError::History { .. } => FollowState::Refused,
                error if error.is_revoked() => FollowState::Revoked,
                _ => FollowState::Failing,
            };
            (state, error.to_string())
        }
    };
    let trouble = plain_words(&trouble);
    if let Err(error) = &outcome {
        repository.metrics().replica.failures.with_label_values(&[name.as_str()]).inc();
        let before = repository.followers().progress(name).trouble;
        if before != trouble && error.is_rolled_over() {
            rolling::alarm(name);
        } else if before != trouble {
            tracing::warn!(primary = %name, %error, "a primary could not be followed");
        }
    }
    repository.followers().note(name, |progress| {
        progress.state = state;
        progress.trouble = trouble;
        if state == FollowState::InSync {
            progress.in_sync_at = Some(now);
        }
    });
    let Err(ReplicaError::History { known, shown_size }) = outcome else { return };
    tracing::error!(
        primary = %name, known_size = known.size, shown_size,
        "ALARM: the primary was rolled back or shows another history; it is followed no more"
    );
    let (refusing, primary) = (repository.clone(), row.enrolment());
    let refused =
        blocking(move || Ok(refusing.refuse_primary(&primary, &known, shown_size)?)).await;
    if let Err(error) = refused {
        tracing::error!(primary = %name, %error, "the refusal was not written");
    }
    if let Some(Source::Peer(peer)) = follower.map(|follower| &*follower.source) {
        let (route, note) = (Route::ReportHead, Bytes::from(row.checkpoint.clone()));
        let told = peer.call(&route, "", note, u64::from(CHECKPOINT_MAX_BYTES)).await;
        if let Err(error) = told {
            tracing::warn!(primary = %name, %error, "the primary was not told which head is known");
        }
    }
}

/// Refreshes the gauges of a primary.
async fn show(repository: &Arc<Repository>, name: &Label) {
    let reading = repository.clone();
    let Ok(statuses) = blocking(move || Ok(reading.primary_statuses()?)).await else { return };
    let Some(status) = statuses.into_iter().find(|status| status.name == *name) else { return };
    let (metrics, label) = (&repository.metrics().replica, [name.as_str()]);
    let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let began = repository.followers().progress(name).began;
    let since_began = repository.clock().monotonic().saturating_sub(began).as_secs();
    let lag = status.lag_seconds.unwrap_or(since_began);
    metrics.lag.with_label_values(&label).set(gauge(lag));
    metrics.pending_snapshots.with_label_values(&label).set(gauge(status.pending_snapshots));
    metrics.pending_bytes.with_label_values(&label).set(gauge(status.pending_bytes));
    let is_refused = status.state == FollowState::Refused;
    metrics.refused.with_label_values(&label).set(i64::from(is_refused));
}
