//! Ledger entries: one for every decision about data.
//!
//! ```text
//! "SRL1" | server time u64 (ms) | retention time u64 (s) | actor principal(16) | ns_id(32)
//!   | event u8 | fields of the event
//! ```
//!
//! The actor is zeros for commands given on the server, the namespace zeros for events of the
//! whole repository. Entries hold no personal data and no secret.

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::{
    DescriptorDigest, NamespaceId, PrincipalId, PublicKey, RecordDigest, RepositoryId,
    SealedDigest, TlsKeyDigest, TokenId,
};
use crate::limits::ENTRY_MAX_BYTES;
use crate::retention::{RetentionMode, RetentionPolicy};
use crate::role::Role;

const MAGIC: &[u8; 4] = b"SRL1";
const WHAT: &str = "ledger entry";

/// One leaf of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The server's wall clock, milliseconds since 1970.
    pub server_time_ms: u64,
    /// The retention clock, seconds since 1970.
    pub retention_time_seconds: u64,
    /// Who caused it.
    pub actor: PrincipalId,
    /// Where.
    pub namespace: NamespaceId,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// 1: the repository was made.
    Initialised {
        /// Its id.
        repository: RepositoryId,
        /// Its ledger's key.
        ledger_key: PublicKey,
        /// Its first TLS key.
        tls_key: TlsKeyDigest,
    },
    /// 2: an enrolment token was made.
    TokenMade {
        /// Which.
        token: TokenId,
        /// The role that it gives.
        role: Role,
        /// When it ends, seconds since 1970.
        expires_seconds: u64,
    },
    /// 3: a namespace was made by the descriptor of its first client.
    NamespaceCreated {
        /// Its first descriptor.
        descriptor: DescriptorDigest,
        /// Its retention policy.
        policy: RetentionPolicy,
    },
    /// 4: a principal was enrolled.
    Enrolled {
        /// Who.
        principal: PrincipalId,
        /// In which role.
        role: Role,
        /// Its TLS key.
        tls_key: TlsKeyDigest,
        /// Its signing key.
        signing_key: PublicKey,
        /// By which token.
        token: TokenId,
    },
    /// 5: a principal was revoked.
    Revoked {
        /// Who.
        principal: PrincipalId,
    },
    /// 6: a snapshot was committed.
    Committed {
        /// Number of the commit, counted per repository from 1.
        commit: u64,
        /// The snapshot.
        record: RecordDigest,
        /// Root of its tree.
        root: SealedDigest,
        /// Its number in its source.
        sequence: u64,
        /// Mode of its lock.
        mode: RetentionMode,
        /// End of its lock, seconds of the retention clock since 1970.
        locked_until_seconds: u64,
    },
    /// 7: a snapshot was forgotten, after its lock had ended.
    Forgotten {
        /// The snapshot.
        record: RecordDigest,
        /// Number of its commit.
        commit: u64,
        /// When its lock had ended.
        locked_until_seconds: u64,
    },
    /// 8: somebody asked to forget a locked snapshot.
    ForgetRefused {
        /// The snapshot.
        record: RecordDigest,
        /// End of its lock.
        locked_until_seconds: u64,
    },
    /// 9: a record was handed out to be restored or verified.
    RecordRead {
        /// The snapshot.
        record: RecordDigest,
    },
}

impl Entry {
    /// The encoding, which is the leaf's data.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.u64(self.server_time_ms).u64(self.retention_time_seconds);
        out.raw(&self.actor.0).raw(&self.namespace.0);
        match &self.event {
            Event::Initialised { repository, ledger_key, tls_key } => {
                out.u8(1).raw(&repository.0).raw(&ledger_key.0).raw(&tls_key.0)
            }
            Event::TokenMade { token, role, expires_seconds } => {
                out.u8(2).raw(&token.0).u8(role.code()).u64(*expires_seconds)
            }
            Event::NamespaceCreated { descriptor, policy } => {
                out.u8(3).raw(&descriptor.0).u8(policy.mode.code());
                out.u64(policy.minimum_seconds).u64(policy.default_seconds);
                out.u64(policy.maximum_seconds)
            }
            Event::Enrolled { principal, role, tls_key, signing_key, token } => {
                out.u8(4).raw(&principal.0).u8(role.code());
                out.raw(&tls_key.0).raw(&signing_key.0).raw(&token.0)
            }
            Event::Revoked { principal } => out.u8(5).raw(&principal.0),
            Event::Committed { commit, record, root, sequence, mode, locked_until_seconds } => {
                out.u8(6).u64(*commit).raw(&record.0).raw(&root.0).u64(*sequence);
                out.u8(mode.code()).u64(*locked_until_seconds)
            }
            Event::Forgotten { record, commit, locked_until_seconds } => {
                out.u8(7).raw(&record.0).u64(*commit).u64(*locked_until_seconds)
            }
            Event::ForgetRefused { record, locked_until_seconds } => {
                out.u8(8).raw(&record.0).u64(*locked_until_seconds)
            }
            Event::RecordRead { record } => out.u8(9).raw(&record.0),
        };
        out.finish()
    }

    /// Decodes an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > ENTRY_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let entry = Self {
            server_time_ms: reader.u64()?,
            retention_time_seconds: reader.u64()?,
            actor: PrincipalId(reader.array()?),
            namespace: NamespaceId(reader.array()?),
            event: read_event(&mut reader)?,
        };
        reader.finish()?;
        Ok(entry)
    }
}

fn read_event(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    Ok(match reader.u8()? {
        1 => Event::Initialised {
            repository: RepositoryId(reader.array()?),
            ledger_key: PublicKey(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
        },
        2 => Event::TokenMade {
            token: TokenId(reader.array()?),
            role: read_role(reader)?,
            expires_seconds: reader.u64()?,
        },
        3 => Event::NamespaceCreated {
            descriptor: DescriptorDigest(reader.array()?),
            policy: RetentionPolicy {
                mode: read_mode(reader)?,
                minimum_seconds: reader.u64()?,
                default_seconds: reader.u64()?,
                maximum_seconds: reader.u64()?,
            },
        },
        4 => Event::Enrolled {
            principal: PrincipalId(reader.array()?),
            role: read_role(reader)?,
            tls_key: TlsKeyDigest(reader.array()?),
            signing_key: PublicKey(reader.array()?),
            token: TokenId(reader.array()?),
        },
        5 => Event::Revoked { principal: PrincipalId(reader.array()?) },
        6 => Event::Committed {
            commit: reader.u64()?,
            record: RecordDigest(reader.array()?),
            root: SealedDigest(reader.array()?),
            sequence: reader.u64()?,
            mode: read_mode(reader)?,
            locked_until_seconds: reader.u64()?,
        },
        7 => Event::Forgotten {
            record: RecordDigest(reader.array()?),
            commit: reader.u64()?,
            locked_until_seconds: reader.u64()?,
        },
        8 => Event::ForgetRefused {
            record: RecordDigest(reader.array()?),
            locked_until_seconds: reader.u64()?,
        },
        9 => Event::RecordRead { record: RecordDigest(reader.array()?) },
        _ => return reader.refuse(),
    })
}

fn read_role(reader: &mut Reader<'_>) -> Result<Role, DecodeError> {
    Role::from_code(reader.u8()?).ok_or(DecodeError::Value("role"))
}

fn read_mode(reader: &mut Reader<'_>) -> Result<RetentionMode, DecodeError> {
    RetentionMode::from_code(reader.u8()?).ok_or(DecodeError::Value("retention mode"))
}
