//! The server's ledger only grows: what this machine has seen of it must be contained in what it
//! is shown now.
//!
//! Every command that uses a profile begins with [`connect`], before anything that the server says
//! is believed: it asks for the proof that the remembered checkpoint is a prefix of the newest
//! one, and remembers the newest. A receipt's checkpoint must stand in the same line ([`confirm`]).
//! A recovery kit carries a floor of its own ([`demand_floor`]).
//!
//! Behind that proof, this machine's keys are rolled over when they are due.
//!
//! A server that cannot prove it was rolled back or forked. It is refused with an exit code of its
//! own, and told which head was remembered: if it was rolled back in good faith, from an old copy,
//! its operator learns of it there, and its clock stops to end locks.

use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::PublicKey;
use strongroom_protocol::merkle::{Hash, verify_consistency};
use strongroom_protocol::message::{ConsistencyAnswer, KeysRolled};
use strongroom_protocol::route::Route;

use crate::clock;
use crate::error::ClientError;
use crate::kit::CheckpointFloor;
use crate::profile::{ConnectOptions, Profile};
use crate::rolling::{self, NextKeys};
use crate::transport::{Body, Client};

/// A client of the profile's server, whose ledger was proven to continue the remembered one. Keys
/// that are due are rolled over behind that proof: a server that was rolled back learns none.
pub async fn connect(
    profile: &mut Profile,
    options: &ConnectOptions,
) -> Result<Client, ClientError> {
    finish_rolling(profile, options).await?;
    let client = profile.client(options)?;
    let greeted = greet(profile, &client).await.map(drop);
    let is_expired = matches!(&greeted, Err(error) if error.code() == Some(ErrorCode::KeysExpired));
    if !is_expired {
        greeted?;
        if !are_keys_due(profile)? {
            return Ok(client);
        }
    }
    drop(client);
    let rolled = roll_keys(profile, options).await;
    if is_expired {
        match rolled? {
            Rolled::Done(_) => {}
            Rolled::InUse => return Err(in_use()),
        }
    } else if let Err(error) = rolled {
        // They go on until the server refuses them, which it says then.
        tracing::warn!("this machine's keys are due, and were not rolled over: {error}");
    }
    let client = profile.client(options)?;
    greet(profile, &client).await?;
    Ok(client)
}

/// Whether the profile's keys are to be rolled over: they are old enough, or it was begun.
pub fn are_keys_due(profile: &Profile) -> Result<bool, ClientError> {
    let is_begun = profile.folder().next_keys()?.is_some();
    let due_seconds = profile.keys_due_seconds();
    Ok(is_begun || due_seconds.is_some_and(|due| clock::wall_seconds() >= due))
}

/// What came of rolling keys over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rolled {
    /// The profile has new keys.
    Done(KeysRolled),
    /// Another run of the profile uses the keys.
    InUse,
}

/// Puts new keys in the place of the profile's (`rolling.rs` argues the steps).
pub async fn roll_keys(
    profile: &mut Profile,
    options: &ConnectOptions,
) -> Result<Rolled, ClientError> {
    let Some(_alone) = profile.folder().keys_alone()? else { return Ok(Rolled::InUse) };
    let next = match profile.folder().next_keys()? {
        Some(next) => next,
        None => {
            let next = NextKeys::generate()?;
            profile.folder().write_next_keys(&next)?;
            next
        }
    };
    let who = (profile.settings().ledger_key, profile.settings().principal);
    let old = (profile.folder().tls_identity()?, profile.signing_key()?);
    let mut connection = profile.client_as(&old.0, options)?.connect().await?;
    let answer = match rolling::ask(&mut connection, who, &old.1, &next).await {
        Err(ClientError::Server(refusal)) => {
            // It surely has the old ones still: what was refused once is not asked again.
            profile.folder().remove_next_keys()?;
            return Err(ClientError::Server(refusal));
        }
        answer => answer?,
    };
    profile.adopt(&next)?;
    tracing::info!("this machine's keys were rolled over");
    Ok(Rolled::Done(answer))
}

/// Finishes a roll-over that an earlier run began: the server may have taken the next keys or not.
pub async fn finish_rolling(
    profile: &mut Profile,
    options: &ConnectOptions,
) -> Result<(), ClientError> {
    if profile.folder().next_keys()?.is_none() {
        return Ok(());
    }
    let Some(_alone) = profile.folder().keys_alone()? else { return Ok(()) };
    let Some(next) = profile.folder().next_keys()? else { return Ok(()) };
    let client = profile.client_as(&next.identity, options)?;
    match client.request(&Route::Checkpoint, "", Body::empty()).await {
        Ok(_) => profile.adopt(&next),
        // It has the old ones. When they are due, the same next keys are asked for again.
        Err(error) if error.code() == Some(ErrorCode::UnknownPrincipal) => Ok(()),
        Err(error) => Err(error),
    }
}

fn in_use() -> ClientError {
    ClientError::Usage(
        "another run of this profile is under way, and its keys must not change meanwhile: let it \
         end, then run this again"
            .into(),
    )
}

/// Rolls the profile's keys over now, by hand.
pub async fn roll_now(
    profile: &mut Profile,
    options: &ConnectOptions,
) -> Result<KeysRolled, ClientError> {
    finish_rolling(profile, options).await?;
    match roll_keys(profile, options).await? {
        Rolled::Done(rolled) => Ok(rolled),
        Rolled::InUse => Err(in_use()),
    }
}

/// Demands that the server's newest checkpoint continues the remembered one, and remembers it.
pub async fn greet(profile: &mut Profile, client: &Client) -> Result<Checkpoint, ClientError> {
    let known = profile.remembered()?;
    let known = known.as_ref().map_or((0, None), |known| (known.size, Some(&known.root)));
    let outcome = newest_after(client, profile.settings().ledger_key, known).await;
    let (newest, note) = judged(profile, client, outcome).await?;
    profile.remember(&note)?;
    Ok(newest)
}

/// Demands that the checkpoint of a receipt stands in one line with the remembered one, and
/// remembers the larger of both.
pub async fn confirm(
    profile: &mut Profile,
    client: &Client,
    note: &str,
) -> Result<(), ClientError> {
    let key = profile.settings().ledger_key;
    let new = verified(note, key)?;
    if let Some(known) = profile.remembered()? {
        let outcome = linked(client, &known, &new).await;
        judged(profile, client, outcome).await?;
    }
    profile.remember(note)
}

/// Demands that the ledger of `key` contains what a recovery kit has seen of it.
pub async fn demand_floor(client: &Client, floor: &CheckpointFloor) -> Result<(), ClientError> {
    let known = (floor.size, Some(&floor.root));
    newest_after(client, floor.ledger_key, known).await.map(drop)
}

/// The newest checkpoint of the ledger of `key`, which contains what a kit has seen of it.
pub async fn newest_beyond(
    client: &Client,
    key: PublicKey,
    floor: Option<&CheckpointFloor>,
) -> Result<Checkpoint, ClientError> {
    let floor = floor.filter(|floor| floor.ledger_key == key);
    let known = floor.map_or((0, None), |floor| (floor.size, Some(&floor.root)));
    Ok(newest_after(client, key, known).await?.0)
}

/// The newest checkpoint with its note, proven to contain a tree of this size and root.
async fn newest_after(
    client: &Client,
    key: PublicKey,
    (size, root): (u64, Option<&Hash>),
) -> Result<(Checkpoint, String), ClientError> {
    let answer: ConsistencyAnswer =
        match client.json(&Route::Consistency(size), "", None::<&()>).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                return Err(too_short(client, key, size).await);
            }
            answer => answer?,
        };
    let newest = verified(&answer.checkpoint, key)?;
    if newest.size < size {
        return Err(shorter(newest.size, size));
    }
    if let Some(root) = root {
        check(&answer.proof.0, (size, root), (newest.size, &newest.root))?;
    }
    Ok((newest, answer.checkpoint))
}

/// Checks that one of two signed checkpoints continues the other.
async fn linked(client: &Client, one: &Checkpoint, two: &Checkpoint) -> Result<(), ClientError> {
    let (old, new) = if one.size <= two.size { (one, two) } else { (two, one) };
    let mut proof = Vec::new();
    if old.size > 0 && old.size < new.size {
        let query = format!("to={}", new.size);
        let route = Route::Consistency(old.size);
        let answer: ConsistencyAnswer = match client.json(&route, &query, None::<&()>).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                return Err(ClientError::History(format!(
                    "has no {} entries any more, though it signed them",
                    new.size
                )));
            }
            answer => answer?,
        };
        proof = answer.proof.0;
    }
    check(&proof, (old.size, &old.root), (new.size, &new.root))
}

fn check(proof: &[u8], old: (u64, &Hash), new: (u64, &Hash)) -> Result<(), ClientError> {
    let (hashes, rest) = proof.as_chunks::<32>();
    let proven = verify_consistency(old.0, new.0, hashes, old.1, new.1);
    if rest.is_empty() && proven.is_ok() {
        return Ok(());
    }
    Err(ClientError::History(format!(
        "of {} entries does not contain the {} that were seen before",
        new.0, old.0
    )))
}

/// What it means that a server does not know a tree of `size`.
async fn too_short(client: &Client, key: PublicKey, size: u64) -> ClientError {
    let note = match client.request(&Route::Checkpoint, "", Body::empty()).await {
        Ok(note) => note,
        Err(error) => return error,
    };
    match verified(&String::from_utf8_lossy(&note), key) {
        Ok(newest) => shorter(newest.size, size),
        Err(error) => error,
    }
}

fn shorter(size: u64, seen_size: u64) -> ClientError {
    ClientError::History(format!("has {size} entries, and {seen_size} were seen before"))
}

fn verified(note: &str, key: PublicKey) -> Result<Checkpoint, ClientError> {
    Checkpoint::verify(note, &[key]).map_err(|error| {
        ClientError::Untrusted(format!(
            "{error}: the server's ledger is not the one of this profile or kit; tell whoever \
             runs the server"
        ))
    })
}

/// Tells the server which head is remembered, where its history is refused.
async fn judged<T>(
    profile: &Profile,
    client: &Client,
    outcome: Result<T, ClientError>,
) -> Result<T, ClientError> {
    if let (Err(ClientError::History(_)), Some(note)) = (&outcome, &profile.settings().checkpoint) {
        let body = Body::from(note.clone());
        match client.request_once(&Route::ReportHead, "", body).await {
            Ok(_) => tracing::warn!("the server was told which head is remembered here"),
            Err(error) => {
                let reason = error.reason();
                tracing::warn!("the server did not take the report of the head: {reason}");
            }
        }
    }
    outcome
}
