//! The snapshot record: what a writer says it backed up, signed, with the keys sealed inside.
//!
//! ```text
//! body   = "SRR1" | ns_id(32) | epoch u32 | descriptor digest(32) | principal(16)
//!        | text source | session nonce(32) | seq u64 | previous record digest(32)
//!        | root SealedDigest(32) | root level u8 | chunk count u64 | sealed bytes u64
//!        | padded plaintext bytes u64 | client time i64 (ms) | lock wanted u64 (s) | complete u8
//! record = body | bytes key block | writer certificate(152) | signature(64)
//! RecordDigest = BLAKE3(body || bytes key block)
//! ```
//!
//! The key block is a whole age file to the descriptor's recipients; its plaintext is a
//! [`KeyBlock`]. The server reads the body and nothing else. `complete` is 0 when files could not
//! be read, and for no other reason.

use ed25519_dalek::SigningKey;
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::certificate::{CERTIFICATE_BYTES, WriterCertificate};
use crate::codec::{DecodeError, Reader, Writer};
use crate::descriptor::VerifiedDescriptor;
use crate::id::{
    DescriptorDigest, Label, NamespaceId, PrincipalId, RecordDigest, SealedDigest, SessionNonce,
};
use crate::limits::{
    KEY_BLOCK_MAX_BYTES, LABEL_MAX_BYTES, LEVEL_MAX, NAME_MAX_BYTES, PRIVATE_ITEMS_MAX,
    PRIVATE_TEXT_MAX_BYTES, RECORD_MAX_BYTES, STDERR_MAX_BYTES,
};
use crate::retention::LockWanted;
use crate::signature::{SIGNATURE_BYTES, SignatureError, SignedType, sign, verify};

const MAGIC: &[u8; 4] = b"SRR1";
const KEY_BLOCK_MAGIC: &[u8; 4] = b"SRP1";
const WHAT: &str = "snapshot record";

/// A record does not belong to its namespace's chain of trust.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// It does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A signature on it is not valid.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Namespace, epoch or principal of record, certificate and descriptor differ.
    #[error("snapshot record: {0} does not match its writer certificate or descriptor")]
    Mismatch(&'static str),
}

/// Totals of a tree, counted with multiplicity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Chunks below (and a chunk counts itself).
    pub chunk_count: u64,
    /// Bytes of all envelopes below and of the envelope itself.
    pub sealed_bytes: u64,
}

impl Totals {
    /// Totals of one chunk's envelope.
    pub fn of_chunk(envelope_bytes: u64) -> Self {
        Self { chunk_count: 1, sealed_bytes: envelope_bytes }
    }

    /// Totals of a node's envelope over those of its children.
    pub fn of_node(envelope_bytes: u64, children: impl IntoIterator<Item = Self>) -> Self {
        let start = Self { chunk_count: 0, sealed_bytes: envelope_bytes };
        children.into_iter().fold(start, |sum, child| Self {
            chunk_count: sum.chunk_count.saturating_add(child.chunk_count),
            sealed_bytes: sum.sealed_bytes.saturating_add(child.sealed_bytes),
        })
    }
}

/// The part of a record that the server reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordBody {
    /// Where the snapshot lives.
    pub namespace: NamespaceId,
    /// Epoch of the convergence secret.
    pub epoch: u32,
    /// The descriptor that the writer went by.
    pub descriptor: DescriptorDigest,
    /// Who wrote it.
    pub principal: PrincipalId,
    /// What was backed up.
    pub source: Label,
    /// Nonce of the session, so that a record cannot be committed in another.
    pub session_nonce: SessionNonce,
    /// Counts from 1 per principal and source, without gaps.
    pub sequence: u64,
    /// The record before, by the same principal of the same source; zeros in the first.
    pub previous: RecordDigest,
    /// Root node of the tree.
    pub root: SealedDigest,
    /// Level of the root, at least 1.
    pub root_level: u8,
    /// Totals of the root.
    pub totals: Totals,
    /// Bytes of plaintext, rounded up on the padding scale.
    pub padded_plaintext_bytes: u64,
    /// The client's clock, milliseconds since 1970. Information only.
    pub client_time_ms: i64,
    /// Retention asked for.
    pub lock_wanted: LockWanted,
    /// Whether every file could be read.
    pub complete: bool,
}

/// A record, decoded. The signatures are checked by [`Record::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the server reads.
    pub body: RecordBody,
    /// An age file; its plaintext is a [`KeyBlock`].
    pub key_block: Vec<u8>,
    /// Says that the writer may write.
    pub certificate: WriterCertificate,
    /// By the writer's key over the record digest.
    pub signature: [u8; SIGNATURE_BYTES],
}

/// What only a recovery identity can read.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBlock {
    /// BLAKE3 of the encoded body: ties the keys to the record.
    pub body_digest: [u8; 32],
    /// The epoch's plaintext key, from which chunk and node keys follow.
    pub plaintext_key: Zeroizing<[u8; 32]>,
    /// Keyed hash of the root node.
    pub root_h: Zeroizing<[u8; 32]>,
    /// What the snapshot is, in the user's words.
    pub private: PrivateFields,
}

/// Fields that a server must not see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrivateFields {
    /// Machine that made the backup.
    pub host: String,
    /// Program and arguments whose output was backed up; empty for files.
    pub command: Vec<String>,
    /// Paths that were backed up; empty for streams.
    pub paths: Vec<String>,
    /// Exit code of the command; 0 for files and standard input.
    pub exit_code: u32,
    /// End of what the command wrote to standard error.
    pub standard_error: Vec<u8>,
    /// Exact bytes of plaintext, catalogue excluded.
    pub plaintext_bytes: u64,
    /// Exact bytes of the catalogue.
    pub catalogue_bytes: u64,
    /// The user's tags.
    pub tags: Vec<String>,
}

impl RecordBody {
    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&self.namespace.0).u32(self.epoch).raw(&self.descriptor.0).raw(&self.principal.0);
        out.bytes(self.source.as_str().as_bytes()).raw(&self.session_nonce.0);
        out.u64(self.sequence).raw(&self.previous.0).raw(&self.root.0).u8(self.root_level);
        out.u64(self.totals.chunk_count).u64(self.totals.sealed_bytes);
        out.u64(self.padded_plaintext_bytes).i64(self.client_time_ms);
        out.u64(self.lock_wanted.into()).bool(self.complete);
        out.finish()
    }

    /// Decodes a body that stands alone, as in lists of snapshots.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        let body = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(body)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.magic(MAGIC)?;
        let body = Self {
            namespace: NamespaceId(reader.array()?),
            epoch: reader.u32()?,
            descriptor: DescriptorDigest(reader.array()?),
            principal: PrincipalId(reader.array()?),
            source: reader
                .text(LABEL_MAX_BYTES)?
                .parse()
                .map_err(|_| DecodeError::Value("source label"))?,
            session_nonce: SessionNonce(reader.array()?),
            sequence: reader.u64()?,
            previous: RecordDigest(reader.array()?),
            root: SealedDigest(reader.array()?),
            root_level: reader.u8()?,
            totals: Totals { chunk_count: reader.u64()?, sealed_bytes: reader.u64()? },
            padded_plaintext_bytes: reader.u64()?,
            client_time_ms: reader.i64()?,
            lock_wanted: LockWanted::try_from(reader.u64()?)
                .map_err(|_| DecodeError::Value("lock wanted"))?,
            complete: reader.bool()?,
        };
        let level_is_good = (1..=LEVEL_MAX).contains(&body.root_level);
        if !level_is_good || body.sequence == 0 {
            return reader.refuse();
        }
        Ok(body)
    }
}

impl Record {
    /// Signs a record with the writer's key.
    pub fn sign(
        body: RecordBody,
        key_block: Vec<u8>,
        certificate: WriterCertificate,
        writer: &SigningKey,
    ) -> Self {
        let digest = digest_of(&body, &key_block);
        let signature = sign(writer, SignedType::Record, &digest.0);
        Self { body, key_block, certificate, signature }
    }

    /// The name of the snapshot.
    pub fn digest(&self) -> RecordDigest {
        digest_of(&self.body, &self.key_block)
    }

    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = signed_part(&self.body, &self.key_block);
        out.raw(&self.certificate.encode()).raw(&self.signature);
        out.finish()
    }

    /// Decodes a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > RECORD_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let mut reader = Reader::new(WHAT, bytes);
        let record = Self {
            body: RecordBody::read(&mut reader)?,
            key_block: reader.bytes(KEY_BLOCK_MAX_BYTES)?.to_vec(),
            certificate: WriterCertificate::decode(reader.take(CERTIFICATE_BYTES)?)?,
            signature: reader.array()?,
        };
        reader.finish()?;
        Ok(record)
    }

    /// Checks certificate, names and signature against the namespace's descriptor.
    pub fn verify(&self, descriptor: &VerifiedDescriptor) -> Result<(), RecordError> {
        let (body, certificate) = (&self.body, &self.certificate);
        let namespace = descriptor.namespace();
        if body.namespace != namespace || certificate.namespace != namespace {
            return Err(RecordError::Mismatch("namespace"));
        }
        let epoch = descriptor.contents().epoch;
        if body.epoch != epoch || certificate.epoch != epoch {
            return Err(RecordError::Mismatch("epoch"));
        }
        if body.principal != certificate.principal {
            return Err(RecordError::Mismatch("principal"));
        }
        certificate.verify(&descriptor.contents().record_key)?;
        self.verify_signature()?;
        Ok(())
    }

    /// Checks only that the key which the certificate names signed this record: all that a server
    /// can say without the descriptor's epoch.
    pub fn verify_signature(&self) -> Result<(), SignatureError> {
        let digest = self.digest();
        let key = &self.certificate.signing_key;
        verify(key, SignedType::Record, &digest.0, &self.signature)
    }
}

impl KeyBlock {
    /// The plaintext of a record's key block.
    pub fn encode(&self) -> Vec<u8> {
        let private = &self.private;
        let mut out = Writer::with_magic(KEY_BLOCK_MAGIC);
        out.raw(&self.body_digest).raw(&*self.plaintext_key).raw(&*self.root_h);
        out.bytes(private.host.as_bytes());
        write_texts(&mut out, &private.command);
        write_texts(&mut out, &private.paths);
        out.u32(private.exit_code).bytes(&private.standard_error);
        out.u64(private.plaintext_bytes).u64(private.catalogue_bytes);
        write_texts(&mut out, &private.tags);
        out.finish()
    }

    /// Decodes the plaintext of a record's key block.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("key block", bytes);
        reader.magic(KEY_BLOCK_MAGIC)?;
        let block = Self {
            body_digest: reader.array()?,
            plaintext_key: Zeroizing::new(reader.array()?),
            root_h: Zeroizing::new(reader.array()?),
            private: PrivateFields {
                host: reader.text(NAME_MAX_BYTES)?.to_owned(),
                command: read_texts(&mut reader)?,
                paths: read_texts(&mut reader)?,
                exit_code: reader.u32()?,
                standard_error: reader.bytes(STDERR_MAX_BYTES)?.to_vec(),
                plaintext_bytes: reader.u64()?,
                catalogue_bytes: reader.u64()?,
                tags: read_texts(&mut reader)?,
            },
        };
        reader.finish()?;
        Ok(block)
    }
}

impl fmt::Debug for KeyBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys stay out of logs.
        f.debug_struct("KeyBlock").field("private", &self.private).finish_non_exhaustive()
    }
}

fn signed_part(body: &RecordBody, key_block: &[u8]) -> Writer {
    let mut out = Writer::default();
    out.raw(&body.encode()).bytes(key_block);
    out
}

fn digest_of(body: &RecordBody, key_block: &[u8]) -> RecordDigest {
    RecordDigest(*blake3::hash(&signed_part(body, key_block).finish()).as_bytes())
}

fn write_texts(out: &mut Writer, texts: &[String]) {
    out.count(texts.len());
    for text in texts {
        out.bytes(text.as_bytes());
    }
}

fn read_texts(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let mut texts = Vec::new();
    for _ in 0..reader.count(PRIVATE_ITEMS_MAX)? {
        texts.push(reader.text(PRIVATE_TEXT_MAX_BYTES)?.to_owned());
    }
    Ok(texts)
}
