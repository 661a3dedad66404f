//! Rows of `meta/` that belong to the repository: keys and values.
//!
//! Keys: integers big-endian, `ns` is the namespace's number on this server. Values: protocol
//! encoding, a magic first.
//!
//! | family | key | value |
//! |---|---|---|
//! | namespaces | ns u32 | [`NamespaceRow`] |
//! | descriptors | ns u32, version u64 | the encoded descriptor |
//! | principals | principal(16) | [`crate::principal_row::PrincipalRow`] |
//! | tokens | token id(16) | [`TokenRow`] |
//! | snapshots | ns u32, commit u64 | [`SnapshotRow`] |
//! | seen | ns u32, record digest | [`SeenRow`] |
//! | heads | ns u32, principal(16), source | the encoded record |
//! | locks | ns u32, node digest | locked-until day u32 |
//! | holds | ns u32, record digest | [`HoldRow`] |
//! | approvals | leaf of the proposal u64 | [`WaitingRow`] |
//! | policies | ns u32 | [`UsageRow`] |
//! | policies | "configuration" | BLAKE3 of the configuration that the server ran with last |
//! | ledger | `collection` | [`CollectionRow`] |

use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::entry::{read_lock, write_lock};
use strongroom_protocol::id::{
    Label, NamespaceId, PrincipalId, RecordDigest, SealedDigest, TokenId,
};
use strongroom_protocol::limits::{
    LABEL_MAX_BYTES, NAME_MAX_BYTES, POLICY_MAX_BYTES, REASON_MAX_BYTES, RECORD_MAX_BYTES,
};
use strongroom_protocol::policy::Policy;
use strongroom_protocol::proposal::Operation;
use strongroom_protocol::retention::Lock;
use strongroom_protocol::role::Role;
use strongroom_protocol::token::Scope;

use crate::error::ServerError;

/// A namespace of this repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceRow {
    /// Its global id.
    pub namespace: NamespaceId,
    /// Its name here.
    pub name: Label,
    /// For new snapshots.
    pub policy: Policy,
    /// It was removed; the row stays, so that its number is never used again.
    pub is_dropped: bool,
}

/// How garbage collection stands. Times are those of the retention clock, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectionRow {
    /// Number of the newest cycle.
    pub generation: u64,
    /// When it began.
    pub began_seconds: u64,
    /// Number of the newest cycle that went through; 0 before the first.
    pub completed: u64,
    /// When that was.
    pub completed_seconds: u64,
}

/// An enrolment token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Checks proofs ([`strongroom_protocol::token::enrolment_key`]).
    pub enrolment_key: [u8; 32],
    /// What it gives access to.
    pub scope: Scope,
    /// In which role.
    pub role: Role,
    /// For people; replaces the client's own display name where not empty.
    pub display_name: String,
    /// When it ends, seconds since 1970.
    pub expires_seconds: u64,
    /// Wrong proofs so far.
    pub tries: u32,
    /// Whom it enrolled, once it was used.
    pub enrolled: Option<PrincipalId>,
}

/// A committed snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Names it.
    pub record_digest: RecordDigest,
    /// When it was committed, milliseconds since 1970.
    pub committed_ms: u64,
    /// What keeps it.
    pub lock: Lock,
    /// Its entry in the ledger.
    pub leaf_index: u64,
    /// The encoded record.
    pub record: Vec<u8>,
}

/// What became of a record that was committed once; stays when the snapshot is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenRow {
    /// Number of the commit.
    pub commit: u64,
    /// Its entry in the ledger.
    pub leaf_index: u64,
}

/// Why a snapshot is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRow {
    /// When the hold was placed, milliseconds since 1970.
    pub placed_ms: u64,
    /// By whom.
    pub principal: PrincipalId,
    /// In their words.
    pub reason: String,
}

/// A proposal that waits for a second principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRow {
    /// Who proposed it.
    pub proposer: PrincipalId,
    /// When, milliseconds since 1970.
    pub proposed_ms: u64,
    /// When it ends undecided, milliseconds since 1970.
    pub expires_ms: u64,
    /// Digest of the state that it was made against.
    pub state: [u8; 32],
    /// What is proposed.
    pub operation: Operation,
}

/// What a namespace takes of its quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageRow {
    /// Bytes of envelopes that were stored and not yet collected.
    pub bytes: u64,
    /// Snapshots that are listed.
    pub snapshots: u64,
}

impl NamespaceRow {
    /// Key of namespace number `ns`.
    pub fn key(ns: u32) -> Vec<u8> {
        ns.to_be_bytes().to_vec()
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RNS2");
        out.raw(&self.namespace.0).bytes(self.name.as_str().as_bytes());
        out.bytes(&self.policy.encode()).bool(self.is_dropped);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("namespace row", bytes);
        reader.magic(b"RNS2")?;
        let row = Self {
            namespace: NamespaceId(reader.array()?),
            name: read_label(&mut reader)?,
            policy: Policy::decode(reader.bytes(POLICY_MAX_BYTES)?)?,
            is_dropped: reader.bool()?,
        };
        reader.finish()?;
        Ok(row)
    }
}

impl TokenRow {
    /// Key of a token.
    pub fn key(token: &TokenId) -> Vec<u8> {
        token.0.to_vec()
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let (scope, namespace, name) = match &self.scope {
            Scope::Server => (0, NamespaceId([0; 32]), ""),
            Scope::Existing(namespace, name) => (1, *namespace, name.as_str()),
            Scope::New(name) => (2, NamespaceId([0; 32]), name.as_str()),
        };
        let mut out = Writer::with_magic(b"RTK1");
        out.raw(&self.enrolment_key).u8(scope).raw(&namespace.0).bytes(name.as_bytes());
        out.u8(self.role.code()).bytes(self.display_name.as_bytes());
        out.u64(self.expires_seconds).u32(self.tries).bool(self.enrolled.is_some());
        out.raw(&self.enrolled.unwrap_or(PrincipalId::LOCAL).0);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("token row", bytes);
        reader.magic(b"RTK1")?;
        let enrolment_key = reader.array()?;
        let (scope, namespace) = (reader.u8()?, NamespaceId(reader.array()?));
        let name = reader.text(LABEL_MAX_BYTES)?;
        let label = || name.parse().map_err(|_| DecodeError::Value("token row"));
        let scope = match scope {
            0 => Scope::Server,
            1 => Scope::Existing(namespace, label()?),
            2 => Scope::New(label()?),
            _ => return reader.refuse(),
        };
        let role = read_role(&mut reader)?;
        let display_name = reader.text(NAME_MAX_BYTES)?.to_owned();
        let (expires_seconds, tries) = (reader.u64()?, reader.u32()?);
        let (is_used, enrolled) = (reader.bool()?, PrincipalId(reader.array()?));
        reader.finish()?;
        let enrolled = is_used.then_some(enrolled);
        let row =
            Self { enrolment_key, scope, role, display_name, expires_seconds, tries, enrolled };
        Ok(row)
    }
}

impl SnapshotRow {
    /// Bytes of the record.
    pub fn record_bytes(&self) -> u64 {
        u64::try_from(self.record.len()).unwrap_or(u64::MAX)
    }

    /// Key of the snapshot of a commit; commits of a namespace sort by their number.
    pub fn key(ns: u32, commit: u64) -> Vec<u8> {
        [&ns.to_be_bytes()[..], &commit.to_be_bytes()].concat()
    }

    /// The commit number in a key.
    pub fn commit_of(key: &[u8]) -> Result<u64, DecodeError> {
        let bytes = key.last_chunk::<8>().ok_or(DecodeError::Short("snapshot key"))?;
        Ok(u64::from_be_bytes(*bytes))
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RSN2");
        out.raw(&self.record_digest.0).u64(self.committed_ms);
        write_lock(&mut out, &self.lock);
        out.u64(self.leaf_index).bytes(&self.record);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("snapshot row", bytes);
        reader.magic(b"RSN2")?;
        let row = Self {
            record_digest: RecordDigest(reader.array()?),
            committed_ms: reader.u64()?,
            lock: read_lock(&mut reader)?,
            leaf_index: reader.u64()?,
            record: reader.bytes(RECORD_MAX_BYTES)?.to_vec(),
        };
        reader.finish()?;
        Ok(row)
    }
}

impl SeenRow {
    /// Key of a record.
    pub fn key(ns: u32, record: &RecordDigest) -> Vec<u8> {
        [&ns.to_be_bytes()[..], &record.0].concat()
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RSE1");
        out.u64(self.commit).u64(self.leaf_index);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("seen row", bytes);
        reader.magic(b"RSE1")?;
        let row = Self { commit: reader.u64()?, leaf_index: reader.u64()? };
        reader.finish()?;
        Ok(row)
    }
}

impl HoldRow {
    /// Key of a snapshot's hold.
    pub fn key(ns: u32, record: &RecordDigest) -> Vec<u8> {
        [&ns.to_be_bytes()[..], &record.0].concat()
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RHD1");
        out.u64(self.placed_ms).raw(&self.principal.0).bytes(self.reason.as_bytes());
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("hold row", bytes);
        reader.magic(b"RHD1")?;
        let row = Self {
            placed_ms: reader.u64()?,
            principal: PrincipalId(reader.array()?),
            reason: reader.text(REASON_MAX_BYTES)?.to_owned(),
        };
        reader.finish()?;
        Ok(row)
    }
}

impl WaitingRow {
    /// Key of a proposal.
    pub fn key(leaf: u64) -> Vec<u8> {
        leaf.to_be_bytes().to_vec()
    }

    /// The leaf in a key.
    pub fn leaf_of(key: &[u8]) -> Result<u64, DecodeError> {
        let bytes = key.try_into().map_err(|_| DecodeError::Short("proposal key"))?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// The value. The operation stands in it as it came: as JSON.
    pub fn encode(&self) -> Result<Vec<u8>, ServerError> {
        let operation = serde_json::to_vec(&self.operation)
            .map_err(|error| ServerError::Bug(format!("proposal row: {error}")))?;
        let mut out = Writer::with_magic(b"RPP1");
        out.raw(&self.proposer.0).u64(self.proposed_ms).u64(self.expires_ms).raw(&self.state);
        out.bytes(&operation);
        Ok(out.finish())
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("proposal row", bytes);
        reader.magic(b"RPP1")?;
        let row = Self {
            proposer: PrincipalId(reader.array()?),
            proposed_ms: reader.u64()?,
            expires_ms: reader.u64()?,
            state: reader.array()?,
            operation: serde_json::from_slice(reader.bytes(POLICY_MAX_BYTES)?)
                .map_err(|_| DecodeError::Value("proposal row"))?,
        };
        reader.finish()?;
        Ok(row)
    }
}

impl UsageRow {
    /// Key of a namespace's usage.
    pub fn key(ns: u32) -> Vec<u8> {
        ns.to_be_bytes().to_vec()
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RUS1");
        out.u64(self.bytes).u64(self.snapshots);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("usage row", bytes);
        reader.magic(b"RUS1")?;
        let row = Self { bytes: reader.u64()?, snapshots: reader.u64()? };
        reader.finish()?;
        Ok(row)
    }
}

impl CollectionRow {
    /// Key of the one row, in family `ledger`.
    pub const KEY: &[u8] = b"collection";

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RGC1");
        out.u64(self.generation).u64(self.began_seconds);
        out.u64(self.completed).u64(self.completed_seconds);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("collection row", bytes);
        reader.magic(b"RGC1")?;
        let row = Self {
            generation: reader.u64()?,
            began_seconds: reader.u64()?,
            completed: reader.u64()?,
            completed_seconds: reader.u64()?,
        };
        reader.finish()?;
        Ok(row)
    }
}

/// Key of the newest record of a principal's source.
pub fn head_key(ns: u32, principal: &PrincipalId, source: &Label) -> Vec<u8> {
    [&ns.to_be_bytes()[..], &principal.0, source.as_str().as_bytes()].concat()
}

/// Key of a version of a namespace's descriptor.
pub fn descriptor_key(ns: u32, version: u64) -> Vec<u8> {
    [&ns.to_be_bytes()[..], &version.to_be_bytes()].concat()
}

/// Namespace and node in the key of a lock.
pub fn parse_lock_key(key: &[u8]) -> Result<(u32, SealedDigest), DecodeError> {
    let mut reader = Reader::new("lock key", key);
    let ns = u32::from_be_bytes(reader.array()?);
    let node = SealedDigest(reader.array()?);
    reader.finish()?;
    Ok((ns, node))
}

/// Key of a node's lock.
pub fn lock_key(ns: u32, node: &SealedDigest) -> Vec<u8> {
    [&ns.to_be_bytes()[..], &node.0].concat()
}

fn read_label(reader: &mut Reader<'_>) -> Result<Label, DecodeError> {
    reader.text(LABEL_MAX_BYTES)?.parse().map_err(|_| DecodeError::Value("label"))
}

fn read_role(reader: &mut Reader<'_>) -> Result<Role, DecodeError> {
    Role::from_code(reader.u8()?).ok_or(DecodeError::Value("role"))
}
