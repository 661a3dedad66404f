//! A profile with two servers: which of them takes this machine's backups now.
//!
//! ```text
//! HOME/PROFILE/            the first server
//! HOME/PROFILE/standby/    the second: a whole profile, with keys, floors, receipts of its own
//! ```
//!
//! **The namespace's newest descriptor decides, not who answers.** Both servers are asked for the
//! descriptor that they have, briefly; what the authority signed is believed whoever brings it, and
//! is kept as the floor of both. The server that the newest one names is used, and waited for. So a
//! first server that is merely slow loses nothing to the second, one that comes back after the
//! namespace has moved is not believed, and a second that was not promoted gets no backups.
//!
//! If that one is down and the other answers, the run ends after a few tries and says what to do:
//! waiting longer would not help where somebody has to decide.
//!
//! Reading is another matter: every byte is verified, so where the named server does not answer,
//! the other one is read from, and says no more than that its state may be old.

use std::time::Duration;

use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use tokio::time::{sleep, timeout};

use crate::error::ClientError;
use crate::history;
use crate::profile::{ConnectOptions, Profile};
use crate::transport::{Body, RetryPolicy};

/// How long a server may take to say which descriptor it has.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How often the server that takes the backups is asked while the other one answers.
const TRIES_MAX: u32 = 3;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Snapshots are made: only a server that the descriptor names will do.
    Backup,
    /// Snapshots are read.
    Read,
}

/// The server to use.
#[derive(Debug)]
pub struct Chosen {
    /// Its profile.
    pub profile: Profile,
    /// The newest descriptor does not name it: it can be read from, and its state may be old.
    pub is_replica: bool,
}

/// The second server of a profile, where it has one.
pub fn second_of(first: &Profile) -> Result<Option<Profile>, ClientError> {
    let folder = first.folder().standby();
    if folder.is_enrolled() { Profile::open(folder).map(Some) } else { Ok(None) }
}

/// The server of `first` to use. With `--server` it is always the first, at that address.
pub async fn choose(
    mut first: Profile,
    connect: &ConnectOptions,
    purpose: Purpose,
) -> Result<Chosen, ClientError> {
    let second = if connect.servers.is_empty() { second_of(&first)? } else { None };
    let Some(mut second) = second else { return Ok(Chosen { profile: first, is_replica: false }) };
    let (one, two) = tokio::join!(ask(&first, connect), ask(&second, connect));
    let kept = [first.kept_descriptor()?, second.kept_descriptor()?];
    let (hears_first, hears_second) = (one.is_some(), two.is_some());
    let newest = newest_of(kept.into_iter().chain([one, two]).flatten())?;
    let Some(newest) = newest else {
        // Nothing is known yet: the first server was enrolled with, and is asked patiently.
        return Ok(Chosen { profile: first, is_replica: false });
    };
    first.accept_descriptor(newest.encoded())?;
    second.accept_descriptor(newest.encoded())?;
    let names = |profile: &Profile| newest.names(&profile.settings().ledger_key);
    let (is_first, is_second) = match (names(&first), names(&second)) {
        (true, true) => (hears_first || !hears_second, hears_second),
        named => named,
    };
    if !is_first && !is_second {
        return Err(ClientError::Untrusted(format!(
            "version {} of the namespace's descriptor names neither server of this profile: the \
             namespace has moved to another one; ask its operator for a token, move {} away and \
             run `strongroom enroll --standby`",
            newest.contents().version,
            second.folder().path("").display()
        )));
    }
    let (named, mut other, hears_named, hears_other) = match is_first {
        true => (first, second, hears_first, hears_second),
        false => (second, first, hears_second, hears_first),
    };
    if hears_other {
        keep_young(&mut other, connect).await?;
    }
    if hears_named || !hears_other {
        return Ok(Chosen { profile: named, is_replica: false });
    }
    if purpose == Purpose::Read && named.settings().role == Role::Restore {
        tracing::warn!(
            "the server that takes the backups does not answer: reading from the other one, whose \
             state may be older"
        );
        return Ok(Chosen { profile: other, is_replica: true });
    }
    if !answers_later(&named, connect).await {
        let addresses = |profile: &Profile| profile.settings().addresses.join(",");
        let (named, other) = (addresses(&named), addresses(&other));
        return Err(ClientError::NotPromoted { named, other });
    }
    Ok(Chosen { profile: named, is_replica: false })
}

/// Rolls keys over that are due at the server that is not used now.
async fn keep_young(other: &mut Profile, connect: &ConnectOptions) -> Result<(), ClientError> {
    if history::are_keys_due(other)?
        && let Err(error) = history::connect(other, connect).await
    {
        let address = other.settings().addresses.join(",");
        tracing::warn!("{address}: the keys there are due, and were not rolled over: {error}");
    }
    Ok(())
}

/// Whether a server that did not answer does so a moment later. With another one at hand, people
/// must hear soon that they have to decide; whoever has one server waits for it much longer.
async fn answers_later(profile: &Profile, connect: &ConnectOptions) -> bool {
    let retry = RetryPolicy { attempts: connect.retry.attempts.min(TRIES_MAX), ..connect.retry };
    let mut failures = 1;
    while let Some(pause) = retry.pause(failures) {
        sleep(pause).await;
        if ask(profile, connect).await.is_some() {
            return true;
        }
        failures += 1;
    }
    false
}

/// The descriptor that a server has; nothing, if it does not answer with one in time.
async fn ask(profile: &Profile, connect: &ConnectOptions) -> Option<VerifiedDescriptor> {
    let asked = async {
        let options = ConnectOptions { retry: RetryPolicy::never(), ..connect.clone() };
        let mut own = Profile::open(profile.folder().clone())?;
        history::finish_rolling(&mut own, &options).await?;
        let client = own.client(&options)?;
        let namespace = profile.namespace()?;
        let bytes = client.request_once(&Route::Descriptor(namespace), "", Body::empty()).await?;
        Ok::<_, ClientError>(VerifiedDescriptor::decode_for(&bytes, &namespace, 0)?)
    };
    let address = profile.settings().addresses.join(",");
    match timeout(ANSWER_TIME, asked).await {
        Ok(Ok(descriptor)) => Some(descriptor),
        Ok(Err(error)) => {
            tracing::info!("{address}: {}", error.reason());
            None
        }
        Err(_) => {
            tracing::info!("{address}: no answer in time");
            None
        }
    }
}

/// The newest of some descriptors; an error, if two of one version differ.
fn newest_of(
    all: impl Iterator<Item = VerifiedDescriptor>,
) -> Result<Option<VerifiedDescriptor>, ClientError> {
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|descriptor| descriptor.contents().version);
    let is_fork = |pair: &[VerifiedDescriptor]| match pair {
        [one, two] => {
            one.contents().version == two.contents().version && one.digest() != two.digest()
        }
        _ => false,
    };
    if all.windows(2).any(is_fork) {
        return Err(ClientError::Untrusted(
            "the two servers of this profile have different descriptors of one version: the \
             authority key signed twice or was stolen; ask whoever keeps the recovery kit"
                .into(),
        ));
    }
    Ok(all.pop())
}
