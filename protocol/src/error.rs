//! Stable error codes of the wire.
//!
//! A peer gets a code, a sentence that says what to do, and a request id; nothing internal. What
//! is not yours and what is not there are one code, [`ErrorCode::NotFound`].

use serde::{Deserialize, Serialize};

use crate::id::SealedDigest;

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not well formed.
    BadRequest,
    /// The client's key belongs to no principal, or to a revoked one.
    UnknownPrincipal,
    /// The client's key was rolled over: the principal has another one by now.
    KeysRolled,
    /// The client's key is too old for anything but being rolled over.
    KeysExpired,
    /// The principal's role does not allow this.
    NotAllowed,
    /// No such thing, or not yours.
    NotFound,
    /// The token is unknown, used, expired, out of tries, or its proof is wrong.
    BadToken,
    /// The descriptor is not acceptable.
    BadDescriptor,
    /// The session's lease has ended, or it never was.
    SessionEnded,
    /// An envelope does not parse, or a node's level or children do not fit.
    BadEnvelope,
    /// The node names children that the repository lacks.
    MissingChildren,
    /// The record does not parse or its signature, principal, session or totals do not fit.
    BadRecord,
    /// The record does not follow the newest one of its source.
    OutOfSequence,
    /// The namespace's newest descriptor does not name this server, so it takes no backups.
    NotPrimary,
    /// The record is of an epoch that has ended: the namespace has a new convergence secret.
    EpochEnded,
    /// The retention asked for is outside the namespace's policy.
    RetentionOutOfPolicy,
    /// The snapshot is locked.
    Locked,
    /// A legal hold keeps the snapshot.
    Held,
    /// The lock has ended by a clock that is under suspicion, so nothing ends.
    ClockSuspect,
    /// The change would end the lock earlier, or lower its mode.
    Shortens,
    /// The date is not in the future, or beyond all bounds.
    BadDate,
    /// The namespace's quota is used up.
    QuotaExceeded,
    /// What was proposed no longer fits what is there, or the proposal has ended.
    Stale,
    /// A stored envelope is not as it was written.
    Damaged,
    /// The repository has no room for uploads.
    RepositoryFull,
    /// The body is larger than the route allows.
    TooLarge,
    /// Too many requests, sessions or challenges.
    TooMany,
    /// The server is shutting down or starting.
    Unavailable,
    /// The server failed; its log has the request id.
    Internal,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [Self; 29] = [
        Self::BadRequest,
        Self::UnknownPrincipal,
        Self::KeysRolled,
        Self::KeysExpired,
        Self::NotAllowed,
        Self::NotFound,
        Self::BadToken,
        Self::BadDescriptor,
        Self::SessionEnded,
        Self::BadEnvelope,
        Self::MissingChildren,
        Self::BadRecord,
        Self::OutOfSequence,
        Self::NotPrimary,
        Self::EpochEnded,
        Self::RetentionOutOfPolicy,
        Self::Locked,
        Self::Held,
        Self::ClockSuspect,
        Self::Shortens,
        Self::BadDate,
        Self::QuotaExceeded,
        Self::Stale,
        Self::Damaged,
        Self::RepositoryFull,
        Self::TooLarge,
        Self::TooMany,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The word on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownPrincipal => "unknown_principal",
            Self::KeysRolled => "keys_rolled",
            Self::KeysExpired => "keys_expired",
            Self::NotAllowed => "not_allowed",
            Self::NotFound => "not_found",
            Self::BadToken => "bad_token",
            Self::BadDescriptor => "bad_descriptor",
            Self::SessionEnded => "session_ended",
            Self::BadEnvelope => "bad_envelope",
            Self::MissingChildren => "missing_children",
            Self::BadRecord => "bad_record",
            Self::OutOfSequence => "out_of_sequence",
            Self::NotPrimary => "not_primary",
            Self::EpochEnded => "epoch_ended",
            Self::RetentionOutOfPolicy => "retention_out_of_policy",
            Self::Locked => "locked",
            Self::Held => "held",
            Self::ClockSuspect => "clock_suspect",
            Self::Shortens => "shortens",
            Self::BadDate => "bad_date",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Stale => "stale",
            Self::Damaged => "damaged",
            Self::RepositoryFull => "repository_full",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that goes with the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest
            | Self::BadDescriptor
            | Self::BadEnvelope
            | Self::BadRecord
            | Self::BadDate => 400,
            Self::UnknownPrincipal | Self::KeysRolled | Self::KeysExpired | Self::BadToken => 401,
            Self::NotAllowed => 403,
            Self::NotFound => 404,
            Self::MissingChildren
            | Self::OutOfSequence
            | Self::NotPrimary
            | Self::EpochEnded
            | Self::RetentionOutOfPolicy
            | Self::Stale => 409,
            Self::SessionEnded => 410,
            Self::TooLarge => 413,
            Self::Locked | Self::Held | Self::ClockSuspect | Self::Shortens => 423,
            Self::TooMany => 429,
            Self::Damaged | Self::Internal => 500,
            Self::Unavailable => 503,
            Self::RepositoryFull | Self::QuotaExceeded => 507,
        }
    }

    /// Whether the same request may succeed a little later.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::TooMany | Self::Internal)
    }
}

/// Body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// Stands in the server's log.
    pub request_id: String,
    /// With [`ErrorCode::MissingChildren`]: which.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<SealedDigest>,
    /// With [`ErrorCode::Locked`]: until when, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_until_seconds: Option<u64>,
}
