//! Errors of the server: who is to blame, and what each side may know.
//!
//! A [`ServerError::Peer`] is the peer's fault and carries what the peer is told. Everything else
//! is logged once, where the request ends, and reaches the peer as `internal` with a request id.

use std::collections::HashSet;
use std::io::ErrorKind;

use strongroom_protocol::codec::DecodeError;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::limits::MISSING_MAX_COUNT;
use thiserror::Error;

use crate::store::error::StoreError;

/// Why a request or command did not succeed.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The peer asked for something that it cannot have.
    #[error("{}: {}", .0.code.name(), .0.message)]
    Peer(Refusal),
    /// The store failed or holds something that it should not.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// A row that this program wrote does not decode.
    #[error("stored row: {0}")]
    Row(#[from] DecodeError),
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    File {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The operator's configuration or command is wrong.
    #[error("{0}")]
    Operator(String),
    /// The server is going down.
    #[error("server is shutting down")]
    Closing,
    /// A bug or a broken library.
    #[error("internal: {0}")]
    Bug(String),
}

/// What a peer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// Missing children, where that is the reason.
    pub missing: Vec<SealedDigest>,
    /// End of the lock, where that is the reason; seconds since 1970.
    pub locked_until_seconds: Option<u64>,
}

/// Characters of another server's words that are kept.
const WORDS_MAX: usize = 300;

/// Another server's words, as they may be shown on an operator's terminal.
pub fn plain_words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

impl ServerError {
    /// A refusal with a code and a sentence.
    pub fn peer(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Peer(Refusal { code, message, missing: Vec::new(), locked_until_seconds: None })
    }

    /// The one answer for "not yours" and "not there".
    pub fn not_found() -> Self {
        Self::peer(ErrorCode::NotFound, "no such thing here")
    }

    /// The one answer for children that are not there and children that this session has not
    /// touched. Each is named once, up to a limit.
    pub fn missing_children(digests: impl IntoIterator<Item = SealedDigest>) -> Self {
        let mut seen = HashSet::new();
        let max = usize::try_from(MISSING_MAX_COUNT).unwrap_or(usize::MAX);
        let missing = digests.into_iter().filter(|digest| seen.insert(*digest)).take(max);
        Self::Peer(Refusal {
            code: ErrorCode::MissingChildren,
            message: "a node names children that this session has neither uploaded nor asked about"
                .into(),
            missing: missing.collect(),
            locked_until_seconds: None,
        })
    }

    /// A failed file operation.
    pub fn file(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::File { what: what.into(), source }
    }

    /// What to do about an error that ends the program, where its own words do not say it.
    pub fn advice(&self) -> &'static str {
        let (kind, words) = match self {
            Self::File { source, .. } => (Some(source.kind()), ""),
            Self::Store(StoreError::File { cause, .. }) => (Some(cause.kind()), ""),
            Self::Store(StoreError::Engine { cause, .. }) => (None, &**cause),
            Self::Store(StoreError::Poisoned(cause)) => (None, &**cause),
            Self::Store(StoreError::RowInvalid { .. }) => (None, "Corruption"),
            _ => return "",
        };
        let is = |wanted: ErrorKind, text: &str| kind == Some(wanted) || words.contains(text);
        if is(ErrorKind::PermissionDenied, "Permission denied")
            || is(ErrorKind::ReadOnlyFilesystem, "Read-only file system")
        {
            "; the user that runs strongroomd must own the data folder and all in it, and be able \
             to write there"
        } else if is(ErrorKind::StorageFull, "No space left") {
            "; make room on that file system, then start again"
        } else if words.contains("Corruption") || words.contains("No such file") {
            "; keep the data folder as it is, and restore the whole folder or go on from a replica"
        } else if words.contains("IO error") {
            "; look at the disk (dmesg, SMART), then start again"
        } else {
            ""
        }
    }

    /// Whether something stored cannot be read back, which says nothing about anything else.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_damage())
    }

    /// What the peer is told, whatever happened.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Peer(refusal) => refusal.clone(),
            Self::Closing | Self::Store(StoreError::Poisoned(_)) => Refusal {
                code: ErrorCode::Unavailable,
                message: "the server is restarting; try again".into(),
                missing: Vec::new(),
                locked_until_seconds: None,
            },
            Self::Store(StoreError::Damaged(digest)) => Refusal {
                code: ErrorCode::Damaged,
                message: format!(
                    "envelope {digest} is damaged here; the operator has an alarm. Read from a \
                     replica of this server, or try again after it was repaired"
                ),
                missing: Vec::new(),
                locked_until_seconds: None,
            },
            _ => Refusal {
                code: ErrorCode::Internal,
                message: "the server failed; its log has this request id".into(),
                missing: Vec::new(),
                locked_until_seconds: None,
            },
        }
    }
}
