//! The keys with which this server is enrolled at others, replaced before a set age
//! (`docs/decisions/0019-keys-that-roll-over.md`).
//!
//! 1. The next keys are made, and written whole to `next.pem`. *Crash: the next start goes on with
//!    the very same keys.*
//! 2. The other server is asked to take them, over a connection with the old TLS key. The old
//!    signing key vouches for them, and both new ones sign that they are held. To a server that
//!    connections are lent to, the ledger key is the old signing key and the new one: it names this
//!    server there. *Crash, or an answer that got lost: the next TLS key is shown first. If the
//!    other server knows it, go on with 3, else begin again with 2. The old key is not shown before
//!    that, because whoever shows one that was rolled over is taken for a thief.*
//! 3. `next.pem` becomes `keys.pem`. *Crash: done.*
//!
//! All of it alone at the gate (`key_gates.rs`): who follows or lends sends nothing meanwhile, and
//! goes on with the new keys. Answers that have begun go on too.

use std::sync::Arc;

use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, PrincipalId, PublicKey};
use strongroom_protocol::limits::{CHECKPOINT_MAX_BYTES, CONTROL_MAX_BYTES};
use strongroom_protocol::roll::{NewKeys, RollRequest};
use strongroom_protocol::route::Route;
use strongroom_protocol::vouch::ServerTls;

use super::blocking;
use super::dialling::{Follow, Keep};
use super::error::ReplicaError;
use super::keys::{PeerKeys, Whom};
use super::peer::Peer;
use super::throttle::Throttle;
use crate::error::{ServerError, plain_words};
use crate::feeds::FeedRow;
use crate::key_gates::{KeyGate, Shown};
use crate::replica_rows::{PrimaryRow, Reach};
use crate::repository::Repository;
use crate::stop::Stop;

/// A server where this one is enrolled with keys of its own.
pub struct Party {
    /// Its name here.
    pub name: Label,
    is_feed: bool,
    addresses: String,
    pinned: ServerTls,
    ledger_key: PublicKey,
    /// What this server is there; not known where an older version enrolled it.
    principal: Option<PrincipalId>,
    keep: Keep,
}

impl Party {
    /// A primary, if this server dials it.
    pub fn of_primary(repository: &Arc<Repository>, row: &PrimaryRow) -> Option<Self> {
        let Reach::Dialled(addresses) = &row.reach else { return None };
        let (following, primary) = (repository.clone(), row.enrolment());
        Some(Self {
            name: row.name.clone(),
            is_feed: false,
            addresses: addresses.clone(),
            pinned: ServerTls { tls_key: row.tls_key, serial: row.tls_serial },
            ledger_key: row.ledger_key,
            principal: Some(row.principal),
            keep: Arc::new(move |next| following.follow_primary_key(&primary, next)),
        })
    }

    /// A server that connections are lent to.
    pub fn of_feed(repository: &Arc<Repository>, row: &FeedRow) -> Self {
        let (following, feed) = (repository.clone(), row.clone());
        Self {
            name: row.name.clone(),
            is_feed: true,
            addresses: row.addresses.clone(),
            pinned: ServerTls { tls_key: row.tls_key, serial: row.tls_serial },
            ledger_key: row.ledger_key,
            principal: row.enrolled_as,
            keep: Arc::new(move |next| following.follow_feed_key(&feed.name, &feed, next)),
        }
    }

    /// For whom its keys are.
    pub fn whom(&self) -> Whom<'_> {
        match self.is_feed {
            true => Whom::Feed(&self.name),
            false => Whom::Primary(&self.name),
        }
    }

    fn peer(
        &self,
        repository: &Repository,
        keys: &PeerKeys,
        stop: &Stop,
    ) -> Result<Peer, ReplicaError> {
        let throttle = Arc::new(Throttle::unbounded(repository.clock().clone()));
        let patience = repository.config().replica.patience.0;
        let (pinned, ledger_key, keep) = (self.pinned, self.ledger_key, self.keep.clone());
        let pin = pinned.tls_key;
        let peer = Peer::dialling(&self.addresses, keys, pin, throttle, patience, stop.clone())?;
        Ok(peer.following(Follow { ledger_key, pinned, keep }))
    }

    /// The request for `next`, on a connection with the TLS key of `old` and this exporter.
    fn request(
        &self,
        repository: &Repository,
        (old, next): (&PeerKeys, &PeerKeys),
        exporter: &[u8; 32],
    ) -> Result<RollRequest, ServerError> {
        let principal = self.principal.ok_or_else(|| {
            let message = "an older version enrolled this server there: remove it and add it again";
            ServerError::Operator(format!("{}: {message}", self.name))
        })?;
        let (vouching, signing) = match self.is_feed {
            true => (&repository.keys().ledger, &repository.keys().ledger),
            false => (old.signing(), next.signing()),
        };
        let bug = || ServerError::Bug("keys that were just made do not sign".into());
        let keys = NewKeys {
            ledger_key: self.ledger_key,
            principal,
            tls_key: next.tls_key_digest,
            signing_key: PublicKey(signing.verifying_key().to_bytes()),
        };
        let mut request = RollRequest::vouched(&keys, next.point().ok_or_else(bug)?, vouching);
        request.prove_held(signing, exporter);
        request.tls_possession = next.sign(&request.tls_message(exporter)).ok_or_else(bug)?;
        Ok(request)
    }
}

/// The gate of the keys for a server.
pub fn gate(repository: &Repository, whom: Whom<'_>) -> Arc<KeyGate> {
    repository.followers().key_gates().gate(&whom.folder())
}

/// Finishes what a crash or a lost answer left of a roll-over, so that it is known which keys to
/// show. Nothing may be sent to that server before.
pub async fn settle(
    repository: &Arc<Repository>,
    party: &Party,
    stop: &Stop,
) -> Result<(), ReplicaError> {
    let gate = gate(repository, party.whom());
    if gate.pass().await.is_settled {
        return Ok(());
    }
    let mut shown = gate.alone().await;
    match finish(repository, party, &mut shown, stop).await {
        // That the other side does not want the next keys is no reason not to use the old ones.
        Err(error) if shown.is_settled => {
            tracing::warn!(of = %party.name, %error, "keys were not rolled over");
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

/// Puts new keys in the place of those that a server knows.
pub async fn roll(
    repository: &Arc<Repository>,
    party: &Party,
    stop: &Stop,
) -> Result<(), ReplicaError> {
    let gate = gate(repository, party.whom());
    let mut shown = gate.alone().await;
    let outcome = async {
        if finish(repository, party, &mut shown, stop).await? {
            return Ok(());
        }
        ask(repository, party, &mut shown, None, stop).await
    };
    let outcome = outcome.await;
    gate.set_trouble(outcome.as_ref().err().map(trouble_of).unwrap_or_default());
    outcome
}

/// The same by command, for a server of this name.
pub async fn roll_named(
    repository: &Arc<Repository>,
    whom: Whom<'_>,
    stop: Stop,
) -> Result<Label, ReplicaError> {
    let party = match whom {
        Whom::Primary(name) => Party::of_primary(repository, &repository.primary(name)?)
            .ok_or_else(|| ServerError::Operator(format!(
                "{name} dials, or its exports are carried: this server shows it no key of its own \
                 but the TLS key of its listener (strongroomd tls roll). The key that {name} dials \
                 with rolls over there (strongroomd feed roll)"
            )))?,
        Whom::Feed(name) => Party::of_feed(repository, &repository.feed(name)?),
    };
    roll(repository, &party, &stop).await?;
    Ok(party.name)
}

/// Finishes a roll-over that was begun, if one was; says whether the keys are others now.
async fn finish(
    repository: &Arc<Repository>,
    party: &Party,
    shown: &mut Shown,
    stop: &Stop,
) -> Result<bool, ReplicaError> {
    let next = files(repository, party, |folder, whom| {
        PeerKeys::remove_first(folder, whom)?;
        PeerKeys::next(folder, whom)
    });
    let Some(next) = next.await? else {
        if !shown.is_settled {
            // Whoever ended early may have put them in their place.
            *shown = Shown { turn: shown.turn.wrapping_add(1), is_settled: true };
        }
        return Ok(false);
    };
    shown.is_settled = false;
    match is_known(repository, party, &next, stop).await? {
        true => adopt(repository, party, shown).await?,
        false => ask(repository, party, shown, Some(next), stop).await?,
    }
    Ok(true)
}

/// Steps 1 to 3. On an error `shown` says whether it is known which keys the other side knows.
async fn ask(
    repository: &Arc<Repository>,
    party: &Party,
    shown: &mut Shown,
    next: Option<PeerKeys>,
    stop: &Stop,
) -> Result<(), ReplicaError> {
    let old = files(repository, party, PeerKeys::load).await?;
    let peer = party.peer(repository, &old, stop)?;
    let mut connection = peer.connect().await?;
    let now_ms = repository.clock().wall_ms();
    shown.is_settled = false;
    let next = match next {
        Some(next) => next,
        None => {
            files(repository, party, move |f, whom| PeerKeys::make_next(f, whom, now_ms)).await?
        }
    };
    let request = party.request(repository, (&old, &next), connection.exporter());
    let answer = match request {
        Ok(request) => {
            let (body, max) = (request.encode().into(), u64::from(CONTROL_MAX_BYTES));
            peer.call_on(&mut connection, &Route::RollKeys, body, max).await
        }
        Err(error) => Err(error.into()),
    };
    match answer {
        Ok(_) => return adopt(repository, party, shown).await,
        // An earlier request may have arrived late.
        Err(ReplicaError::Primary(body)) if body.code == ErrorCode::KeysRolled => {
            if is_known(repository, party, &next, stop).await? {
                return adopt(repository, party, shown).await;
            }
            alarm(&party.name);
            discard(repository, party, shown, ReplicaError::Primary(body)).await
        }
        // It may have been carried out all the same, or be carried out yet.
        Err(ReplicaError::Primary(body)) if body.code.is_retryable() => {
            Err(ReplicaError::Primary(body))
        }
        // It surely has the old ones still.
        Err(error @ (ReplicaError::Primary(_) | ReplicaError::Here(_))) => {
            discard(repository, party, shown, error).await
        }
        Err(error) => Err(error),
    }
}

/// Says that keys are somebody else's.
pub fn alarm(name: &Label) {
    tracing::error!(
        of = %name,
        "ALARM: somebody else has rolled over the keys of this server there: they were stolen, or \
         an old copy of keys/ was put back; have it revoked there, look at what was read since, \
         and add it again"
    );
}

/// Whether a server knows keys that were made for it.
async fn is_known(
    repository: &Arc<Repository>,
    party: &Party,
    keys: &PeerKeys,
    stop: &Stop,
) -> Result<bool, ReplicaError> {
    let peer = party.peer(repository, keys, stop)?;
    let mut connection = peer.connect().await?;
    let (route, max) = (Route::Checkpoint, u64::from(CHECKPOINT_MAX_BYTES));
    match peer.call_on(&mut connection, &route, bytes::Bytes::new(), max).await {
        Ok(_) => Ok(true),
        // Role `feeder` may not even ask this, which only somebody who is known is told.
        Err(ReplicaError::Primary(body)) if body.code == ErrorCode::NotAllowed => Ok(true),
        Err(ReplicaError::Primary(body)) if body.code == ErrorCode::UnknownPrincipal => Ok(false),
        Err(error) => Err(error),
    }
}

async fn adopt(
    repository: &Arc<Repository>,
    party: &Party,
    shown: &mut Shown,
) -> Result<(), ReplicaError> {
    files(repository, party, PeerKeys::adopt_next).await?;
    *shown = Shown { turn: shown.turn.wrapping_add(1), is_settled: true };
    tracing::info!(of = %party.name, "the keys of this server there were rolled over");
    Ok(())
}

/// Gives up the next keys after a refusal.
async fn discard(
    repository: &Arc<Repository>,
    party: &Party,
    shown: &mut Shown,
    refusal: ReplicaError,
) -> Result<(), ReplicaError> {
    files(repository, party, PeerKeys::discard_next).await?;
    shown.is_settled = true;
    Err(refusal)
}

/// Does something with the files of keys, on a thread that may block.
pub(super) async fn files<T: Send + 'static>(
    repository: &Arc<Repository>,
    party: &Party,
    work: impl FnOnce(&std::path::Path, Whom<'_>) -> Result<T, ServerError> + Send + 'static,
) -> Result<T, ReplicaError> {
    let (repository, name, is_feed) = (repository.clone(), party.name.clone(), party.is_feed);
    blocking(move || {
        let whom = if is_feed { Whom::Feed(&name) } else { Whom::Primary(&name) };
        Ok(work(repository.folder(), whom)?)
    })
    .await
}

fn trouble_of(error: &ReplicaError) -> String {
    plain_words(&error.to_string())
}
