//! How old the keys are with which this server is enrolled at others: when they are rolled over
//! (`rolling.rs` says how), and what is said where they are not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::blocking;
use super::error::ReplicaError;
use super::keys::{PeerKeys, Whom};
use super::rolling::{Party, files, gate, roll};
use crate::feeds::FeedStatus;
use crate::followers::PrimaryStatus;
use crate::repository::Repository;
use crate::stop::Stop;

/// How often is looked whether keys are due.
const TICK: Duration = Duration::from_secs(5);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(600);
/// How often is said that keys are too old.
const REMINDER: Duration = Duration::from_secs(24 * 3600);
const DAY_MS: u64 = 24 * 3600 * 1000;
/// From so long before their age is reached, keys are rolled over.
const EARLY_MS: u64 = 30 * DAY_MS;

/// When it was tried and told last, by the machine's clock.
#[derive(Default)]
struct Tried {
    at: Option<Duration>,
    told: Option<Duration>,
}

/// Rolls keys over when they are due, until `stop` says so.
pub async fn run(repository: Arc<Repository>, mut stop: Stop) {
    let mut tried = BTreeMap::new();
    loop {
        match keep_young(&repository, &mut tried, &stop).await {
            Err(ReplicaError::Stopping) => return,
            Err(error) => tracing::error!(%error, "the age of keys cannot be looked at"),
            Ok(()) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = stop.wait() => return,
        }
    }
}

async fn keep_young(
    repository: &Arc<Repository>,
    tried: &mut BTreeMap<String, Tried>,
    stop: &Stop,
) -> Result<(), ReplicaError> {
    let age_max = repository.config().keys.peer_age.0.as_millis();
    let age_max = u64::try_from(age_max).unwrap_or(u64::MAX);
    let now_ms = repository.clock().wall_ms();
    let mut oldest_ms = 0;
    for (party, is_asked) in parties(repository).await? {
        // None where the keys were lost: whoever follows or lends says so.
        let Ok(keys) = files(repository, &party, PeerKeys::load).await else { continue };
        if is_asked && due_ms(keys.made_ms, age_max).is_some_and(|due| now_ms >= due) {
            try_one(repository, &party, tried.entry(party.whom().folder()).or_default(), stop)
                .await?;
        }
        let Ok(keys) = files(repository, &party, PeerKeys::load).await else { continue };
        let age_ms = if keys.made_ms == 0 { 0 } else { now_ms.saturating_sub(keys.made_ms) };
        oldest_ms = age_ms.max(oldest_ms);
        if age_max > 0 && age_ms > age_max {
            warn(repository, &party, tried.entry(party.whom().folder()).or_default(), age_ms);
        }
    }
    let seconds = i64::try_from(oldest_ms / 1000).unwrap_or(i64::MAX);
    repository.metrics().replica.key_age.set(seconds);
    Ok(())
}

/// Tries to roll over keys that are due, if it was not tried lately.
async fn try_one(
    repository: &Arc<Repository>,
    party: &Party,
    tried: &mut Tried,
    stop: &Stop,
) -> Result<(), ReplicaError> {
    let now = repository.clock().monotonic();
    if tried.at.is_some_and(|at| now.saturating_sub(at) < RETRY) {
        return Ok(());
    }
    tried.at = Some(now);
    match roll(repository, party, stop).await {
        Ok(()) => tried.at = None,
        Err(ReplicaError::Stopping) => return Err(ReplicaError::Stopping),
        Err(error) => tracing::warn!(of = %party.name, %error, "keys were not rolled over"),
    }
    Ok(())
}

/// Says now and then that keys are too old, and what to do.
fn warn(repository: &Repository, party: &Party, tried: &mut Tried, age_ms: u64) {
    let now = repository.clock().monotonic();
    if tried.told.is_none_or(|told| now.saturating_sub(told) >= REMINDER) {
        tried.told = Some(now);
        let (days, why) = (age_ms / DAY_MS, gate(repository, party.whom()).trouble());
        tracing::error!(
            of = %party.name, days, why,
            "ALARM: the keys of this server there are older than keys.peer_age: {}",
            command(party.whom())
        );
    }
}

/// All servers where this one has keys, and whether anything is asked there now.
async fn parties(repository: &Arc<Repository>) -> Result<Vec<(Party, bool)>, ReplicaError> {
    let reading = repository.clone();
    let rows = blocking(move || Ok((reading.primaries()?, reading.feeds()?)));
    let (primaries, feeds) = rows.await?;
    let mut parties = Vec::new();
    for row in primaries {
        let is_asked = !row.is_paused && !row.is_refused;
        parties.extend(Party::of_primary(repository, &row).map(|party| (party, is_asked)));
    }
    for row in feeds {
        let is_asked = !row.is_paused && repository.is_fed(&row);
        parties.push((Party::of_feed(repository, &row), is_asked));
    }
    Ok(parties)
}

/// From when on keys that were made at `made_ms` are rolled over; nothing for never.
fn due_ms(made_ms: u64, age_max: u64) -> Option<u64> {
    let early = EARLY_MS.min(age_max / 2);
    (age_max > 0).then(|| made_ms.saturating_add(age_max - early))
}

/// Adds what is known of the keys for primaries to what is said of these.
pub fn with_keys(repository: &Repository, mut all: Vec<PrimaryStatus>) -> Vec<PrimaryStatus> {
    for status in &mut all {
        let whom = Whom::Primary(&status.name);
        (status.keys_ms, status.keys_trouble) = said_of(repository, whom);
    }
    all
}

/// The same for servers that connections are lent to.
pub fn with_feed_keys(repository: &Repository, mut all: Vec<FeedStatus>) -> Vec<FeedStatus> {
    for status in &mut all {
        let whom = Whom::Feed(&status.name);
        (status.keys_ms, status.keys_trouble) = said_of(repository, whom);
    }
    all
}

/// When keys were made, where that is known, and what is wrong with their age.
fn said_of(repository: &Repository, whom: Whom<'_>) -> (Option<u64>, String) {
    let made_ms = PeerKeys::load(repository.folder(), whom).map_or(0, |keys| keys.made_ms);
    let mut trouble = gate(repository, whom).trouble();
    let age = repository.clock().wall_ms().saturating_sub(made_ms);
    let age_max = repository.config().keys.peer_age.0.as_millis();
    if made_ms > 0 && age_max > 0 && u128::from(age) > age_max {
        trouble = format!(
            "they are older than keys.peer_age: {}; if that is refused, remove it and add it \
             again. {trouble}",
            command(whom)
        );
    }
    (Some(made_ms).filter(|made_ms| *made_ms > 0), trouble)
}

/// The command that rolls keys over.
fn command(whom: Whom<'_>) -> String {
    match whom {
        Whom::Primary(name) => format!("strongroomd replica roll {name}"),
        Whom::Feed(name) => format!("strongroomd feed roll {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_due_a_month_before_their_age() {
        assert_eq!(due_ms(1000, 365 * DAY_MS), Some(1000 + 335 * DAY_MS));
        assert_eq!(due_ms(1000, 20 * DAY_MS), Some(1000 + 10 * DAY_MS));
        assert_eq!(due_ms(1000, 0), None);
    }
}
