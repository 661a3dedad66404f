//! Why a peer was refused: the reasons that are counted (`docs/operations.md`, section 8).
//!
//! All of them are known when the server starts, so a peer can add to a count and never a series.
//! What a peer is told is in `error.rs`, and says less than some of these.

use prometheus::IntCounterVec;
use strongroom_protocol::error::ErrorCode;

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// All places for enrolled peers are taken.
    TooManyConnections,
    /// The principal has as many connections as it may.
    PrincipalConnections,
    /// A stranger's place was given to one that came later.
    Displaced,
    /// A stranger's time was over.
    StrangerTime,
    /// The TLS handshake failed, or the connection ended before it could begin.
    Handshake,
    /// The TLS handshake was not done in time.
    HandshakeTime,
    /// What came is not HTTP/1.1.
    BadHttp,
    /// The head of a request is too large.
    HeadTooLarge,
    /// Nothing of a body came for too long.
    BodySilent,
    /// A body came too slowly.
    BodySlow,
    /// The connection ended inside a body.
    BodyCut,
    /// Too many bytes of bodies were in memory.
    BodyMemory,
    /// An answer was not taken, or too slowly.
    AnswerSlow,
    /// A request took longer than any may.
    RequestTime,
    /// Too many "have" answers of a principal were never committed.
    Hits,
    /// A refusal was not entered in the ledger: that has a fresh entry of it, or many of the peer.
    NotEntered,
    /// A request was refused with this code.
    Code(ErrorCode),
}

impl Reason {
    /// Those that have no code of their own.
    const OWN: [Self; 16] = [
        Self::TooManyConnections,
        Self::PrincipalConnections,
        Self::Displaced,
        Self::StrangerTime,
        Self::Handshake,
        Self::HandshakeTime,
        Self::BadHttp,
        Self::HeadTooLarge,
        Self::BodySilent,
        Self::BodySlow,
        Self::BodyCut,
        Self::BodyMemory,
        Self::AnswerSlow,
        Self::RequestTime,
        Self::Hits,
        Self::NotEntered,
    ];

    /// All reasons.
    pub fn all() -> impl Iterator<Item = Self> {
        let codes = ErrorCode::ALL.into_iter().filter_map(Self::of_code);
        Self::OWN.into_iter().chain(codes)
    }

    /// The reason that a refusal with this code is counted under; nothing where it was this server
    /// that failed.
    pub fn of_code(code: ErrorCode) -> Option<Self> {
        match code {
            ErrorCode::Internal | ErrorCode::Unavailable | ErrorCode::Damaged => None,
            code => Some(Self::Code(code)),
        }
    }

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooManyConnections => "too_many_connections",
            Self::PrincipalConnections => "principal_connections",
            Self::Displaced => "displaced",
            Self::StrangerTime => "stranger_time",
            Self::Handshake => "handshake",
            Self::HandshakeTime => "handshake_time",
            Self::BadHttp => "bad_http",
            Self::HeadTooLarge => "head_too_large",
            Self::BodySilent => "body_silent",
            Self::BodySlow => "body_slow",
            Self::BodyCut => "body_cut",
            Self::BodyMemory => "body_memory",
            Self::AnswerSlow => "answer_slow",
            Self::RequestTime => "request_time",
            Self::Hits => "hits",
            Self::NotEntered => "not_entered",
            Self::Code(code) => code.name(),
        }
    }
}

/// The counts, by reason. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Refusals(IntCounterVec);

impl Refusals {
    /// Counts in `counters`, whose one label is the reason; each begins at 0.
    pub fn new(counters: IntCounterVec) -> Self {
        for reason in Reason::all() {
            counters.with_label_values(&[reason.name()]).reset();
        }
        Self(counters)
    }

    /// Counts one.
    pub fn count(&self, reason: Reason) {
        self.0.with_label_values(&[reason.name()]).inc();
    }

    /// How many there were.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.with_label_values(&[reason.name()]).get()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_reason_has_a_name_of_its_own_and_stands_in_the_document() {
        let names: Vec<&str> = Reason::all().map(Reason::name).collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len());
        assert_eq!(names.len(), Reason::OWN.len() + ErrorCode::ALL.len() - 3);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let document = std::fs::read_to_string(path).unwrap();
        for reason in Reason::OWN {
            let row = format!("| `{}` |", reason.name());
            assert!(document.contains(&row), "{row} is missing in docs/operations.md");
        }
    }
}
