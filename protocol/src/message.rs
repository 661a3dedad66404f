//! Bodies of control requests and answers, as JSON; bulk bodies are binary (`docs/protocol.md`).
//!
//! Requests refuse unknown fields; answers ignore them, so that a newer server can say more.

use serde::{Deserialize, Serialize};

use crate::id::{
    Label, NamespaceId, PrincipalId, PublicKey, RecordDigest, SessionId, SessionNonce,
    TlsKeyDigest, from_hex, to_hex,
};
use crate::policy::Policy;
use crate::proposal::{Operation, Verdict};
use crate::retention::{Kept, Lock, LockWanted, RetentionMode};
use crate::role::Role;

/// Bytes as hexadecimal text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HexBytes(pub Vec<u8>);

impl From<HexBytes> for String {
    fn from(bytes: HexBytes) -> String {
        to_hex(&bytes.0)
    }
}

impl TryFrom<String> for HexBytes {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return Err("odd number of hexadecimal digits");
        }
        let decode = |pair: &[u8; 2]| {
            let text = std::str::from_utf8(pair).ok()?;
            from_hex::<1>(text).map(|[byte]| byte)
        };
        let bytes: Option<Vec<u8>> = pairs.iter().map(decode).collect();
        bytes.map(Self).ok_or("not hexadecimal")
    }
}

/// `GET /v1/identity`: who the server is. Asked before anything else by a client without a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the protocol.
    pub protocol: u32,
    /// The ledger's public key.
    pub ledger_key: PublicKey,
    /// The TLS key of this connection.
    pub tls_key: TlsKeyDigest,
    /// The ledger key's signature over the TLS key ([`crate::signature::SignedType::TlsKey`]).
    pub vouch: HexBytes,
    /// Number of the TLS key among those that the server had, from 1; 0 from a server that says
    /// none.
    #[serde(default)]
    pub tls_serial: u64,
    /// The ledger key's signature over the TLS key and its number ([`crate::vouch`]).
    #[serde(default)]
    pub tls_vouch: HexBytes,
}

/// `POST /v1/keys`: the keys of the request are the principal's from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysRolled {
    /// Whose.
    pub principal: PrincipalId,
    /// Since when, milliseconds since 1970 by the server's clock.
    pub rolled_ms: u64,
}

/// `POST /v1/enroll`: answer to the binary request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollAnswer {
    /// The new principal.
    pub principal: PrincipalId,
    /// Its role.
    pub role: Role,
    /// Its namespace, where it has one.
    pub namespace: Option<NamespaceId>,
    /// The namespace's name on this server.
    pub namespace_name: Option<Label>,
    /// The ledger's public key.
    pub ledger_key: PublicKey,
}

/// How much a session means to upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeClass {
    /// At most [`crate::limits::SMALL_SESSION_MAX_BYTES`] of envelopes.
    Small,
    /// Anything.
    Stream,
}

/// `POST /v1/ns/{ns}/sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// What will be backed up.
    pub source: Label,
    /// How much it may be.
    pub size_class: SizeClass,
    /// Retention that the record will ask for; refused now rather than later.
    pub lock_wanted: LockWanted,
}

/// Answer to [`OpenSession`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpened {
    /// Names the session.
    pub session: SessionId,
    /// Must stand in the record.
    pub nonce: SessionNonce,
    /// The session ends when it is silent for this long.
    pub lease_ms: u64,
    /// The principal's newest record of this source, whole: a client that lost its state goes on
    /// from there, after it has checked its own signature.
    pub head: Option<HexBytes>,
    /// Version of the newest descriptor that the server has.
    pub descriptor_version: u64,
}

/// `POST /v1/ns/{ns}/descriptor`: what came of the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorOffered {
    /// Its version.
    pub version: u64,
    /// It was not here before.
    pub is_new: bool,
}

/// `POST .../envelopes` in a session: what came of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// Envelopes that were new.
    pub stored_count: u64,
    /// Envelopes that the repository had already.
    pub duplicate_count: u64,
    /// Bytes that were new.
    pub stored_bytes: u64,
}

/// One row of `GET /v1/ns/{ns}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// Names the snapshot.
    pub record: RecordDigest,
    /// Number of its commit in the repository.
    pub commit: u64,
    /// When it was committed, by the server's clock, milliseconds since 1970.
    pub committed_ms: u64,
    /// Its lock.
    pub lock: Lock,
    /// What keeps it now, by the server's clocks.
    pub kept: Option<Kept>,
    /// Encoded body of its record ([`crate::record::RecordBody`]).
    pub body: HexBytes,
}

/// `GET /v1/ns/{ns}/snapshots`: a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPage {
    /// Oldest commit first.
    pub rows: Vec<SnapshotRow>,
    /// Commit number to ask for next, where there is more.
    pub next_after: Option<u64>,
    /// The retention clock when the page was made, seconds since 1970.
    pub retention_seconds: u64,
}

/// One row of `GET /v1/namespaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRow {
    /// Its name on this server.
    pub name: Label,
    /// Its id.
    pub namespace: NamespaceId,
    /// Its policy.
    pub policy: Policy,
    /// Version of its newest descriptor on this server.
    #[serde(default)]
    pub descriptor_version: u64,
    /// Whether that descriptor names this server, so that it takes backups.
    #[serde(default)]
    pub takes_backups: bool,
}

/// `POST .../forget`: the snapshot is gone from lists; its bytes follow by garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The snapshot.
    pub record: RecordDigest,
}

/// `POST .../retain`: a later end, a higher mode, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retain {
    /// The new end.
    pub lock_wanted: LockWanted,
    /// The new mode; the one that it has, where there is none.
    pub mode: Option<RetentionMode>,
}

/// `POST .../hold` and `POST .../release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldReason {
    /// For people, at most [`crate::limits::REASON_MAX_BYTES`], not empty.
    pub reason: String,
}

/// Answer to changes of a lock or hold: what keeps the snapshot from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockState {
    /// The snapshot.
    pub record: RecordDigest,
    /// Its lock.
    pub lock: Lock,
}

/// `POST /v1/clock`: what the retention clock needs; both take a second principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClockWish {
    /// Count so many seconds without power.
    Credit(u64),
    /// End the freeze.
    Thaw,
}

/// Answer where a second principal may be needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Done at once, or not.
    pub is_done: bool,
    /// The proposal that waits for another principal, by its leaf.
    pub proposal: Option<u64>,
}

/// One row of `GET /v1/proposals`: what waits for a second principal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalRow {
    /// Its leaf in the ledger, which names it.
    pub proposal: u64,
    /// That leaf's entry, whose hash an approval signs; it holds the operation's digest.
    pub entry: HexBytes,
    /// Who proposed it.
    pub proposer: PrincipalId,
    /// What.
    pub operation: Operation,
    /// When, by the server's clock, milliseconds since 1970.
    pub proposed_ms: u64,
    /// When it ends undecided.
    pub expires_ms: u64,
}

/// `POST /v1/proposals/{leaf}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decide {
    /// Yes or no.
    pub verdict: Verdict,
    /// In the approver's words, at most [`crate::limits::REASON_MAX_BYTES`].
    pub meaning: String,
    /// The approver's signature ([`crate::proposal::Approval`]).
    pub signature: HexBytes,
}

/// `GET /v1/clock`, and `strongroomd clock status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// The retention clock, seconds since 1970.
    pub retention_seconds: u64,
    /// The wall clock, seconds since 1970.
    pub wall_seconds: u64,
    /// Disagreement of wall clock and machine clock that has added up, in seconds.
    pub skew_seconds: u64,
    /// More than this freezes expiry.
    pub skew_bound_seconds: u64,
    /// Time without power that was not counted, and may be credited, in seconds.
    pub lost_seconds: u64,
    /// What is left of this year's allowance for time without power, in seconds.
    pub allowance_seconds: u64,
    /// Why expiry is frozen, in plain words; nothing, if it is not.
    pub frozen: Option<String>,
    /// What the clock has seen, newest last, in plain words.
    pub history: Vec<String>,
}

/// `GET /v1/consistency/{size}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistencyAnswer {
    /// The newest signed checkpoint.
    pub checkpoint: String,
    /// The proof, as hashes one after the other.
    pub proof: HexBytes,
}

/// `GET /v1/status`, and `strongroomd status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the server program.
    pub version: String,
    /// The ledger's public key.
    pub ledger_key: PublicKey,
    /// Leaves of the ledger.
    pub ledger_size: u64,
    /// Newest signed checkpoint.
    pub checkpoint: String,
    /// Snapshots that are listed.
    pub snapshot_count: u64,
    /// Sealed segments.
    pub segment_count: u64,
    /// Bytes of sealed segments.
    pub segment_bytes: u64,
    /// Sessions that hold a lease.
    pub session_count: u64,
    /// Free bytes of the filesystem.
    pub free_bytes: u64,
    /// Whether uploads are accepted.
    pub accepts_uploads: bool,
    /// Envelopes that are damaged now.
    pub damaged_count: u64,
    /// Envelopes that were damaged and are whole again.
    pub repaired_count: u64,
}
