//! Errors of the client: what went wrong, what to do, and the exit code that says so to a script.
//!
//! Every message ends in, or is, an instruction. Exit codes are part of the interface
//! (`docs/operations.md`): a scheduler may run the same command again after 7, and only then.

use std::io;

use strongroom_protocol::codec::DecodeError;
use strongroom_protocol::descriptor::DescriptorError;
use strongroom_protocol::error::{ErrorBody, ErrorCode};
use strongroom_protocol::receipt::ReceiptError;
use strongroom_protocol::record::RecordError;
use strongroom_protocol::signature::SignatureError;
use thiserror::Error;

/// What the process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// The command did what it says.
    Done,
    /// Something else; the message says what.
    Other,
    /// The command line makes no sense.
    Usage,
    /// A snapshot was made, but files could not be read.
    Incomplete,
    /// Refused by policy: locked, or a retention outside the namespace's bounds.
    Refused,
    /// A signature, digest or proof is wrong: nothing of it may be used.
    Untrusted,
    /// Revoked or unknown key, wrong role, bad token.
    NotAuthorised,
    /// Nothing is wrong with the command: run it again later.
    Temporary,
    /// The repository has no room.
    Full,
    /// The dump command failed; no snapshot was made.
    DumpFailed,
    /// The server's ledger is not a continuation of the one that was seen before.
    History,
}

impl ExitCode {
    /// The number that the shell sees.
    pub const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::Incomplete => 3,
            Self::Refused => 4,
            Self::Untrusted => 5,
            Self::NotAuthorised => 6,
            Self::Temporary => 7,
            Self::Full => 8,
            Self::DumpFailed => 9,
            Self::History => 10,
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The command line or the profile does not fit what was asked.
    #[error("{0}")]
    Usage(String),
    /// The server understood and refused.
    #[error("{}", describe(.0))]
    Server(Box<ErrorBody>),
    /// No address answers, or the connection broke too often.
    #[error("cannot reach the server: {0}; check address, network and server, then run again")]
    Unreachable(String),
    /// The server that takes the backups is down, and the profile's other one may not take them.
    #[error(
        "the server that takes the backups ({named}) does not answer. The other one ({other}) \
         does, but may take none: the namespace's newest descriptor does not name it. If the first \
         comes back, run again; if it is lost, promote the other, then run again: \"When the first \
         site is gone\" in docs/operations.md"
    )]
    NotPromoted {
        /// Addresses of the server that the descriptor names.
        named: String,
        /// Addresses of the other.
        other: String,
    },
    /// The session cannot go on, but nothing that arrived is lost.
    #[error("{0}; run the same command again, it re-sends only what is missing")]
    SessionLost(String),
    /// A signature, digest, pin or proof is wrong.
    #[error("{0}")]
    Untrusted(String),
    /// The server shows another TLS key than the pinned one.
    #[error(
        "{0}: the server's TLS key is not the pinned one; do not go on before its operator \
         explains why (a token goes with one key: ask for a new one)"
    )]
    WrongKey(String),
    /// The server's ledger was rolled back or forked: it lost or replaced decisions.
    #[error(
        "the server's ledger {0}: it was rolled back or forked. Nothing more is believed or sent. \
         Do not run again: keep this profile or kit as evidence, tell the security officer and \
         whoever runs the server, and see \"A rolled back or forked server\" in \
         docs/operations.md"
    )]
    History(String),
    /// The server claimed to have chunks and could not prove it.
    #[error(
        "the server says it has what it cannot prove ({0}); nothing was committed, the cache was \
         dropped and the next run will send everything: tell whoever runs the server"
    )]
    Unproven(String),
    /// The dump command failed.
    #[error("{0}; no snapshot was made")]
    DumpFailed(String),
    /// A file, pipe or folder of this machine.
    #[error("{what}: {source}")]
    File {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A signal ended the run.
    #[error("interrupted; run the same command again, it re-sends only what is missing")]
    Interrupted,
    /// The peer does not keep to the protocol.
    #[error("the server's answer is not in the protocol: {0}; use matching versions")]
    Protocol(String),
    /// A bug or a broken library.
    #[error("internal error: {0}; please report it")]
    Bug(String),
}

impl ClientError {
    /// Shorthand for a failed file operation.
    pub fn file(what: impl Into<String>, source: io::Error) -> Self {
        Self::File { what: what.into(), source }
    }

    /// What to do where a machine has the convergence secret of another epoch.
    pub fn epoch_ended(epoch: u32) -> Self {
        Self::Usage(format!(
            "the namespace began epoch {epoch}, and this machine has the secret of another: run \
             `strongroom key renew --kit FILE`, or `strongroom key import FILE` with an export of \
             a machine that has it"
        ))
    }

    /// The server's code, where it is the server that refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Server(body) => Some(body.code),
            _ => None,
        }
    }

    /// What happened without what to do about it, for logs of what is tried again.
    pub fn reason(&self) -> String {
        match self {
            Self::Unreachable(reason) | Self::SessionLost(reason) => reason.clone(),
            Self::Server(body) => {
                format!("{}: {} (request {})", body.code.name(), body.message, body.request_id)
            }
            Self::Unproven(reason) => format!("the server proves nothing ({reason})"),
            other => other.to_string(),
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Server(body) => body.code.is_retryable(),
            Self::Unreachable(_) => true,
            _ => false,
        }
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            Self::Server(body) => exit_code_of(body.code),
            Self::Unreachable(_)
            | Self::NotPromoted { .. }
            | Self::SessionLost(_)
            | Self::Interrupted => ExitCode::Temporary,
            Self::Untrusted(_) | Self::WrongKey(_) | Self::Unproven(_) => ExitCode::Untrusted,
            Self::DumpFailed(_) => ExitCode::DumpFailed,
            Self::History(_) => ExitCode::History,
            Self::File { .. } | Self::Protocol(_) | Self::Bug(_) => ExitCode::Other,
        }
    }
}

fn exit_code_of(code: ErrorCode) -> ExitCode {
    match code {
        ErrorCode::Locked
        | ErrorCode::Held
        | ErrorCode::ClockSuspect
        | ErrorCode::Shortens
        | ErrorCode::BadDate
        | ErrorCode::Stale
        | ErrorCode::RetentionOutOfPolicy => ExitCode::Refused,
        ErrorCode::UnknownPrincipal
        | ErrorCode::KeysRolled
        | ErrorCode::KeysExpired
        | ErrorCode::NotAllowed
        | ErrorCode::BadToken => ExitCode::NotAuthorised,
        ErrorCode::RepositoryFull | ErrorCode::QuotaExceeded => ExitCode::Full,
        ErrorCode::Unavailable
        | ErrorCode::TooMany
        | ErrorCode::Internal
        | ErrorCode::NotPrimary
        | ErrorCode::SessionEnded => ExitCode::Temporary,
        ErrorCode::Damaged => ExitCode::Untrusted,
        _ => ExitCode::Other,
    }
}

fn describe(body: &ErrorBody) -> String {
    // The server's message says what to do; here stands what only the client knows.
    let advice = match body.code {
        ErrorCode::NotAllowed => "; use a profile whose role allows it (--profile)",
        ErrorCode::NotFound => "; see `strongroom list` for what there is",
        ErrorCode::RetentionOutOfPolicy => "; choose another --retain",
        ErrorCode::NotPrimary => "; run again: the client asks which server takes the backups now",
        ErrorCode::RepositoryFull => "; nothing is lost: run again when there is room",
        ErrorCode::Internal => "; run again, and if it stays tell the operator the request id",
        _ => "",
    };
    let code = body.code.name();
    format!("server refused ({code}): {}{advice} (request {})", body.message, body.request_id)
}

impl From<DescriptorError> for ClientError {
    fn from(error: DescriptorError) -> Self {
        Self::Untrusted(format!(
            "{error}: the server offers a descriptor that this client must not follow; tell \
             whoever runs the server"
        ))
    }
}

impl From<RecordError> for ClientError {
    fn from(error: RecordError) -> Self {
        Self::Untrusted(format!("{error}: the snapshot was not made by an enrolled writer"))
    }
}

impl From<ReceiptError> for ClientError {
    fn from(error: ReceiptError) -> Self {
        Self::Untrusted(format!("{error}: the server's receipt proves nothing; tell its operator"))
    }
}

impl From<SignatureError> for ClientError {
    fn from(error: SignatureError) -> Self {
        Self::Untrusted(format!("{error}: do not use what it stands for"))
    }
}

impl From<DecodeError> for ClientError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_exit_code_and_message() {
        for code in ErrorCode::ALL {
            let error = ClientError::Server(Box::new(ErrorBody {
                code,
                message: "why".into(),
                request_id: "r1".into(),
                missing: Vec::new(),
                locked_until_seconds: None,
            }));
            assert!(error.to_string().contains(code.name()));
            assert!(error.exit_code() != ExitCode::Done);
        }
        let error = ClientError::Unreachable("refused".into());
        assert_eq!(error.exit_code().number(), 7);
    }
}
