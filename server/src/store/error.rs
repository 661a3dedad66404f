//! What can go wrong in the store, and who is to blame.
//!
//! Two kinds matter to callers. *Answers* (`NotFound`, `Damaged`, `Invalid`, `ReservedFamily`)
//! concern one request; the store goes on. *Failures* of a write, sync, finish or ingest poison the
//! store: after them nobody knows what is on disk, so every later write gets `Poisoned` and the
//! process must restart into the open check. Refusals at open name what to do next.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom_protocol::id::SealedDigest;
use thiserror::Error;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Another process holds the data folder.
    #[error("{}: repository is in use by a running strongroomd", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
    },
    /// No row points to this envelope.
    #[error("envelope {0}: not found")]
    NotFound(SealedDigest),
    /// The bytes of this envelope can't be read back as they were written.
    #[error("envelope {0}: stored bytes are damaged")]
    Damaged(SealedDigest),
    /// The caller broke a rule of the interface.
    #[error("invalid request to the store: {0}")]
    Invalid(&'static str),
    /// The caller tried to write rows that only the store writes.
    #[error("family {0}: written by the store alone")]
    ReservedFamily(&'static str),
    /// A write, sync, finish or ingest failed earlier.
    #[error("store refuses writes after a failure, restart strongroomd: {0}")]
    Poisoned(Arc<str>),
    /// RocksDB reported an error.
    #[error("{operation}: {cause}")]
    Engine {
        /// What was attempted, as a verb phrase.
        operation: &'static str,
        /// RocksDB's own words.
        cause: Arc<str>,
    },
    /// A file operation of the store itself failed.
    #[error("{operation}: {}: {cause}", path.display())]
    File {
        /// What was attempted, as a verb phrase.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        cause: Arc<std::io::Error>,
    },
    /// A stored row can't be decoded.
    #[error("family {family}: row {key}: {problem}")]
    RowInvalid {
        /// The family that holds the row.
        family: &'static str,
        /// Its key in hexadecimal.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The data folder was written by a newer program.
    #[error("data folder has schema version {found}, this program knows {known}: use a newer one")]
    SchemaNewer {
        /// The version found.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The data folder was written by a program from before this version's layout.
    #[error(
        "data folder has schema version {found}, this program knows {known}: use the program that \
         wrote it, or make a new folder and have it follow this one as a replica"
    )]
    SchemaOlder {
        /// The version found.
        found: u32,
        /// The only version that this program reads.
        known: u32,
    },
    /// The data folder has rows that this program does not know.
    #[error("data folder has rows of a family {family}, unknown to this program: use a newer one")]
    FamilyUnknown {
        /// The name of the family.
        family: String,
    },
    /// One of the two databases is there without the other.
    #[error("{}: {problem}; restore the data folder as a whole, or from a replica", path.display())]
    Halved {
        /// The data folder.
        path: PathBuf,
        /// Which half is missing.
        problem: &'static str,
    },
    /// A segment that the catalogue lists is absent or differs.
    #[error(
        "segment {segment}: {problem}; stop here, keep the data folder as it is, and restore file \
         {} from a replica or a copy of the disk",
        file.display()
    )]
    SegmentBroken {
        /// The segment's number.
        segment: u32,
        /// The file that should hold it.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// An uncatalogued segment could not be dropped.
    #[error("segment {segment}: still there after it was dropped")]
    DropFailed {
        /// The segment's number.
        segment: u32,
    },
}

impl StoreError {
    /// Whether one envelope is at fault, and all others can be read.
    pub fn is_of_one_envelope(&self) -> bool {
        matches!(self, StoreError::NotFound(_) | StoreError::Damaged(_))
    }

    /// An error of RocksDB while it did `operation`.
    pub(super) fn engine(operation: &'static str, error: &rocksdb::Error) -> Self {
        StoreError::Engine { operation, cause: Arc::from(error.as_ref()) }
    }

    /// Whether something stored cannot be read back, which says nothing about anything else.
    pub fn is_damage(&self) -> bool {
        match self {
            StoreError::Damaged(_) | StoreError::RowInvalid { .. } => true,
            // The engine's words: its kinds do not tell a lost file from a limit of open files.
            StoreError::Engine { cause, .. } => {
                cause.starts_with("Corruption")
                    || cause.contains("No such file")
                    || cause.contains("Input/output error")
            }
            _ => false,
        }
    }

    /// An error of the file system while the store did `operation` on `path`.
    pub(super) fn file(operation: &'static str, path: &Path, error: std::io::Error) -> Self {
        StoreError::File { operation, path: path.to_path_buf(), cause: Arc::new(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_object_and_the_remedy() {
        let broken = StoreError::SegmentBroken {
            segment: 7,
            file: PathBuf::from("chunks/000012.sst"),
            problem: "file is missing".to_owned(),
        };
        assert!(broken.to_string().starts_with("segment 7: file is missing; stop here"));
        assert!(broken.to_string().contains("chunks/000012.sst"));
        let in_use = StoreError::InUse { path: PathBuf::from("data") };
        assert_eq!(in_use.to_string(), "data: repository is in use by a running strongroomd");
    }
}
