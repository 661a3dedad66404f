//! Why following a primary did not go on: who is to blame, and what happens next.

use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::codec::DecodeError;
use strongroom_protocol::error::{ErrorBody, ErrorCode};
use thiserror::Error;

use crate::error::ServerError;

/// Why following did not go on.
#[derive(Debug, Error)]
pub enum ReplicaError {
    /// The primary cannot be reached, or the connection broke; asked again later.
    #[error("{0}")]
    Unreachable(String),
    /// The primary refuses what was asked.
    #[error("the primary refuses: {}: {}", .0.code.name(), .0.message)]
    Primary(Box<ErrorBody>),
    /// The primary sent what it must not send. Nothing of it was stored.
    #[error("the primary sent something wrong: {0}")]
    Wrong(String),
    /// The primary's ledger does not continue the one that was seen.
    #[error(
        "the primary's ledger of {shown_size} entries does not continue the {} that were seen \
         before", .known.size
    )]
    History {
        /// The head that was seen.
        known: Box<Checkpoint>,
        /// Size of the ledger that is shown instead.
        shown_size: u64,
    },
    /// An export does not have what its ledger names.
    #[error("{0}")]
    Lacking(String),
    /// Something of this server failed, or its operator's command is wrong.
    #[error("{0}")]
    Here(#[from] ServerError),
    /// This server stops.
    #[error("this server is stopping")]
    Stopping,
}

impl ReplicaError {
    /// Whether the primary has no such thing, or says so.
    pub fn is_not_found(&self) -> bool {
        self.has_code(ErrorCode::NotFound) || matches!(self, Self::Lacking(_))
    }

    /// Whether the primary does not know this server.
    pub fn is_revoked(&self) -> bool {
        self.has_code(ErrorCode::UnknownPrincipal) || self.is_rolled_over()
    }

    /// Whether somebody else has rolled over the keys of this server there.
    pub fn is_rolled_over(&self) -> bool {
        self.has_code(ErrorCode::KeysRolled)
    }

    /// Whether the fault is in one snapshot, so that the next can be tried.
    pub fn is_of_one_snapshot(&self) -> bool {
        match self {
            Self::Primary(_) => !self.is_revoked(),
            Self::Wrong(_) | Self::Lacking(_) => true,
            Self::Here(ServerError::Peer(_) | ServerError::Operator(_)) => true,
            _ => false,
        }
    }

    fn has_code(&self, code: ErrorCode) -> bool {
        matches!(self, Self::Primary(body) if body.code == code)
    }
}

impl From<DecodeError> for ReplicaError {
    fn from(error: DecodeError) -> Self {
        Self::Wrong(error.to_string())
    }
}
