//! Exports: a server's snapshots as files on a disk that somebody carries to another server.
//!
//! `pack.rs` writes and finds packs, `walk.rs` and `export.rs` fill a folder, `folder.rs` reads
//! one with the help of `chains.rs`, and `check.rs` says whether one is whole. Taking an export in
//! is following a primary that is a folder: `replica/import.rs`. `docs/decisions/0013-seeding.md`
//! says why it is so, and `docs/format.md`, section 16, what the files are.

mod chains;
pub mod check;
pub mod export;
pub mod folder;
pub mod pack;
mod walk;

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::ServerError;

/// Who else may have the folder at the same time.
#[derive(Debug, Clone, Copy)]
pub enum Use {
    /// Others that read.
    Reading,
    /// Nobody.
    Writing,
}

/// Locks an export's folder for as long as the file lives.
pub fn lock_folder(folder: &Path, wanted: Use) -> Result<File, ServerError> {
    let fail = |error| ServerError::file(format!("open {}", folder.display()), error);
    let file = File::open(folder).map_err(fail)?;
    let operation = match wanted {
        Use::Reading => FlockOperation::NonBlockingLockShared,
        Use::Writing => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(_) => Err(ServerError::Operator(format!(
            "{}: another export or import has the folder; wait until it is done",
            folder.display()
        ))),
    }
}

/// How a file of descriptors begins.
const DESCRIPTORS_MAGIC: &[u8; 4] = b"SRSD";

/// Where the manifest stands; it is written last.
pub fn manifest_file(folder: &Path) -> PathBuf {
    folder.join("manifest")
}

/// Where the descriptors of a namespace stand, one after the other from version 1.
pub fn descriptor_file(folder: &Path, namespace: &strongroom_protocol::id::NamespaceId) -> PathBuf {
    folder.join("descriptors").join(namespace.to_string())
}

/// Where the entries of a part of the ledger stand.
pub fn ledger_file(folder: &Path, number: u64) -> PathBuf {
    folder.join("ledger").join(format!("{number:08}"))
}

/// An error that names a file of an export and says what to do.
pub fn bad(file: &Path, problem: impl std::fmt::Display) -> ServerError {
    ServerError::Operator(format!("{}: {problem}", file.display()))
}

/// Names of the files in a folder; none, if it is not there.
pub fn names_in(folder: &Path) -> Result<Vec<String>, ServerError> {
    let fail = |error| ServerError::file(format!("list {}", folder.display()), error);
    let files = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files.map_err(fail)?,
    };
    let name = |file: std::io::Result<std::fs::DirEntry>| {
        Ok(file.map_err(fail)?.file_name().to_string_lossy().into_owned())
    };
    let mut names = files.map(name).collect::<Result<Vec<_>, ServerError>>()?;
    names.sort();
    Ok(names)
}
