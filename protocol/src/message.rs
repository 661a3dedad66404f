//! Bodies of control requests and answers, as JSON; bulk bodies are binary (`docs/protocol.md`).
//!
//! Requests refuse unknown fields; answers ignore them, so that a newer server can say more.

use serde::{Deserialize, Serialize};

use crate::id::{
    Label, NamespaceId, PrincipalId, PublicKey, RecordDigest, SessionId, SessionNonce,
    TlsKeyDigest, from_hex, to_hex,
};
use crate::retention::{RetentionMode, RetentionPolicy};
use crate::role::Role;

/// Bytes as hexadecimal text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Retention that the record will ask for, in seconds; refused now rather than later.
    pub lock_wanted_seconds: u64,
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
    /// Mode of its lock.
    pub mode: RetentionMode,
    /// End of its lock, seconds since 1970.
    pub locked_until_seconds: u64,
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
}

/// One row of `GET /v1/namespaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRow {
    /// Its name on this server.
    pub name: Label,
    /// Its id.
    pub namespace: NamespaceId,
    /// Its policy.
    pub policy: RetentionPolicy,
}

/// `POST .../forget`: the snapshot is gone from lists; its bytes follow by garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The snapshot.
    pub record: RecordDigest,
}

/// `GET /v1/status`, and `strongroomd status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the server program.
    pub version: String,
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
}
