//! Takes in an export that somebody carried here: follows a primary that is a folder.
//!
//! 1. The folder is opened: no file is missing, too much or cut off, and the entries are those of
//!    the checkpoint (`seed/folder.rs`). *Nothing is written.*
//! 2. Its ledger key must be known here, from a primary that is followed, from an import before, or
//!    from the command line; and its checkpoint must continue what was seen of that ledger.
//! 3. The row of the import, and an entry in the own ledger. *Crash: the same command goes on.*
//! 4. One look at the folder, by the code that looks at a primary (`follow.rs`): entries, pending
//!    snapshots, trees, commits. *Crash: as for a primary. What was stored is found again.*
//!
//! The position of a primary that is followed does not move. It catches up by itself and finds all
//! that was imported.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::id::{Label, PublicKey};
use strongroom_protocol::merkle::verify_consistency;

use super::blocking;
use super::error::ReplicaError;
use super::follow::Follower;
use super::source::Source;
use crate::error::ServerError;
use crate::replica_rows::PrimaryRow;
use crate::repository::Repository;
use crate::seed::folder::SeedFolder;
use crate::seed::{bad, manifest_file};

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct NewImport {
    /// The folder.
    pub from: PathBuf,
    /// The ledger key of the server that made it, where it is not known here.
    pub ledger_key: Option<PublicKey>,
    /// What to call that server here, where it is not known.
    pub name: Option<Label>,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// What the server that made the export is called here.
    pub name: Label,
    /// Entries of its ledger that are taken over.
    pub ledger_size: u64,
    /// Snapshots of all servers that are here and were not here before.
    pub snapshots: u64,
}

/// Takes in an export.
pub async fn import(
    repository: &Arc<Repository>,
    wanted: NewImport,
) -> Result<ImportReport, ReplicaError> {
    let from = wanted.from.clone();
    let folder = Arc::new(blocking(move || Ok(SeedFolder::open(&from)?)).await?);
    let ledger_key = folder.ledger_key();
    let Some(_import) = repository.followers().begin_import(ledger_key) else {
        let message = "another export of the same server is being taken in; wait until it is done";
        return Err(ServerError::Operator(message.into()).into());
    };
    let (preparing, seed) = (repository.clone(), folder.clone());
    let (row, before) = blocking(move || Ok(prepare(&preparing, &seed, wanted)?)).await?;
    let source = Arc::new(Source::Folder(folder.clone()));
    let mut follower = Follower::new(repository.clone(), row.enrolment(), source);
    let mut stop = repository.followers().stopping();
    let looking = async {
        let mut trouble = follower.look().await?;
        if trouble.is_some() {
            // All that is pending is tried once more, and says what is wrong with it.
            follower.forgive();
            trouble = follower.look().await?;
        }
        Ok(trouble)
    };
    let trouble = tokio::select! {
        outcome = looking => outcome.map_err(|error| explain(&folder, error))?,
        () = stop.wait() => return Err(ReplicaError::Stopping),
    };
    let (counting, enrolment) = (repository.clone(), row.enrolment());
    let (after, row) = blocking(move || {
        let row = counting.followed(&enrolment)?;
        Ok((counting.status()?.snapshot_count, row))
    })
    .await?;
    match trouble {
        None => Ok(ImportReport {
            name: row.name,
            ledger_size: row.followed.size(),
            snapshots: after.saturating_sub(before),
        }),
        Some(trouble) => Err(ServerError::Operator(format!(
            "{}: {} snapshots are here now, but not all of the export: {trouble}",
            folder.path().display(),
            after.saturating_sub(before)
        ))
        .into()),
    }
}

/// Checks whose export it is, and makes its row; gives the number of snapshots before.
fn prepare(
    repository: &Repository,
    folder: &SeedFolder,
    wanted: NewImport,
) -> Result<(PrimaryRow, u64), ServerError> {
    let (key, file) = (folder.ledger_key(), manifest_file(folder.path()));
    if key == repository.keys().ledger_public() {
        return Err(bad(&file, "this server made the export itself"));
    }
    if let Some(given) = wanted.ledger_key.filter(|given| *given != key) {
        return Err(bad(&file, format!("made by the server with ledger key {key}, not {given}")));
    }
    let primary = repository.primaries()?.into_iter().find(|row| row.ledger_key == key);
    let origin = repository.origin(&key)?;
    if primary.is_none() && origin.is_none() && wanted.ledger_key.is_none() {
        return Err(bad(
            &file,
            format!(
                "made by the server with ledger key {key}, which is not known here. Compare it \
                 with what `strongroomd status` says there, and add: --ledger-key {key}"
            ),
        ));
    }
    if let Some(primary) = &primary {
        check_against(folder, primary)?;
    }
    let name = match (&primary, &origin, wanted.name) {
        (Some(row), _, _) | (None, Some(row), _) => row.name.clone(),
        (None, None, Some(name)) => name,
        (None, None, None) => {
            let digits: String = key.to_string().chars().take(8).collect();
            format!("origin-{digits}").parse().map_err(|_| ServerError::Bug("name".into()))?
        }
    };
    let before = repository.status()?.snapshot_count;
    let only = folder.manifest().only.clone();
    if let Some(origin) = &origin {
        check_against(folder, origin)?;
        let seen = checkpoint_of(origin)?;
        if seen.is_some_and(|seen| seen.size > folder.checkpoint().size) {
            return Err(older(folder, origin)?);
        }
    }
    Ok((repository.begin_import(name, key, only, folder.checkpoint())?, before))
}

/// The export must show the history that was seen of its server: up to the checkpoint that was seen
/// last, or, where it is older than that, up to the entries that were taken over.
fn check_against(folder: &SeedFolder, row: &PrimaryRow) -> Result<(), ServerError> {
    let other = || {
        bad(
            &manifest_file(folder.path()),
            "shows another history of its server than was seen before: the export was tampered \
             with, or the server was rolled back; keep both as they are",
        )
    };
    let Some(known) = checkpoint_of(row)? else { return Ok(()) };
    let shown = folder.checkpoint();
    if known.size <= shown.size {
        let proof = folder.consistency(known.size, shown.size)?.ok_or_else(other)?;
        return verify_consistency(known.size, shown.size, &proof, &known.root, &shown.root)
            .map_err(|_| other());
    }
    let followed = row.followed.size();
    if followed <= shown.size && folder.root_at(followed)? != row.followed.root() {
        return Err(other());
    }
    Ok(())
}

fn checkpoint_of(row: &PrimaryRow) -> Result<Option<Checkpoint>, ServerError> {
    if row.checkpoint.is_empty() {
        return Ok(None);
    }
    let checkpoint = Checkpoint::verify(&row.checkpoint, &[row.ledger_key]);
    checkpoint.map(Some).map_err(|error| ServerError::Bug(error.to_string()))
}

fn older(folder: &SeedFolder, row: &PrimaryRow) -> Result<ServerError, ServerError> {
    let known = checkpoint_of(row)?.map_or(0, |known| known.size);
    Ok(bad(
        &manifest_file(folder.path()),
        format!(
            "older than an export that was taken in before: {} entries of the ledger, and {known} \
             were seen; export to the folder once more",
            folder.checkpoint().size
        ),
    ))
}

/// What the follower says of a primary, said of a folder.
fn explain(folder: &SeedFolder, error: ReplicaError) -> ReplicaError {
    match error {
        ReplicaError::Wrong(what) => bad(folder.path(), what).into(),
        error => error,
    }
}
