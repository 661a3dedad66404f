//! A namespace's descriptor: everything that clients must agree on, signed by its authority.
//!
//! ```text
//! "SRD1" | authority key(32) | version u64 | previous digest(32)
//!   | suite u8 | chunker u8 | min u32 | average u32 | max u32 | codec u8 | level u8 | padding u8
//!   | epoch u32 | record key(32) | access key(32)
//!   | u32 n, n x text recipient | u32 n, n x ledger key(32) | bytes wrapped secret
//!   | signature(64)
//! ```
//!
//! Clients take recipients and pins from a verified descriptor only, never from one that is older
//! than the newest they have seen, and never from a server's word.

use ed25519_dalek::SigningKey;
use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer};
use crate::envelope::Suite;
use crate::id::{DescriptorDigest, NamespaceId, PublicKey};
use crate::limits::{
    CHUNK_AVERAGE_MAX_BYTES, CHUNK_AVERAGE_MIN_BYTES, CHUNK_MAX_BYTES, DESCRIPTOR_MAX_BYTES,
    LEDGER_KEYS_MAX, RECIPIENT_MAX_BYTES, RECIPIENTS_MAX, WRAPPED_SECRET_MAX_BYTES,
};
use crate::signature::{SIGNATURE_BYTES, SignatureError, SignedType, sign, verify};

const MAGIC: &[u8; 4] = b"SRD1";
const WHAT: &str = "descriptor";
const CHUNKER_FASTCDC: u8 = 1;
const PADDING_PADME: u8 = 1;

/// A descriptor cannot be accepted.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum DescriptorError {
    /// It does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its signature is not the authority's.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Its authority is not the one that the namespace id names.
    #[error("descriptor: belongs to another namespace")]
    OtherNamespace,
    /// It is older than one seen before.
    #[error("descriptor: version {offered} is older than version {known}, which was seen before")]
    Older {
        /// Version of the refused descriptor.
        offered: u64,
        /// Version known before.
        known: u64,
    },
    /// It is not the next version.
    #[error("descriptor: version {offered} does not come next after version {known}")]
    NotNext {
        /// Version of the refused descriptor.
        offered: u64,
        /// Newest version known.
        known: u64,
    },
    /// It comes after another descriptor than the one that is known.
    #[error(
        "descriptor: version {offered} comes after another version {known} than the one known here"
    )]
    Forked {
        /// Version of the refused descriptor.
        offered: u64,
        /// Newest version known.
        known: u64,
    },
    /// It begins an epoch that is not the next, or changes what the epoch's records are verified
    /// with.
    #[error("descriptor: another record key in one epoch, or an epoch that is not the next one")]
    OtherEpoch,
}

/// How chunk bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    None,
    /// zstd at this level (1 to 19).
    Zstd(u8),
}

/// Where chunks are cut, by FastCDC (Xia et al., USENIX ATC 2016; the 2020 variant), sizes in
/// bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    /// No chunk but the last is shorter.
    pub min: u32,
    /// Wanted average.
    pub average: u32,
    /// No chunk is longer.
    pub max: u32,
}

impl ChunkSizes {
    /// A quarter and four times of the average around it.
    pub fn around(average: u32) -> Result<Self, DecodeError> {
        let sizes = Self { min: average / 4, average, max: average.saturating_mul(4) };
        sizes.check()?;
        Ok(sizes)
    }

    fn check(&self) -> Result<(), DecodeError> {
        let average_is_good =
            (CHUNK_AVERAGE_MIN_BYTES..=CHUNK_AVERAGE_MAX_BYTES).contains(&self.average);
        let order_is_good = 64 <= self.min && self.min <= self.average && self.average <= self.max;
        if average_is_good && order_is_good && self.max <= CHUNK_MAX_BYTES {
            return Ok(());
        }
        Err(DecodeError::Value("chunk sizes"))
    }
}

/// A descriptor's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Public key of the namespace's authority.
    pub authority: PublicKey,
    /// Counts from 1.
    pub version: u64,
    /// Digest of the descriptor before; zeros in the first.
    pub previous: DescriptorDigest,
    /// Algorithms of envelopes.
    pub suite: Suite,
    /// Where chunks are cut.
    pub chunk_sizes: ChunkSizes,
    /// How bodies are compressed.
    pub codec: Codec,
    /// Number of the convergence secret.
    pub epoch: u32,
    /// Public half of the epoch's record key, which signs writer certificates.
    pub record_key: PublicKey,
    /// Public half of the kit's restore-only access key (an Ed25519 TLS client key).
    pub access_key: PublicKey,
    /// age recipients that records are sealed to.
    pub recipients: Vec<String>,
    /// Ledger keys of the servers that clients may trust.
    pub ledger_keys: Vec<PublicKey>,
    /// The convergence secret, as an age file to the recipients.
    pub wrapped_secret: Vec<u8>,
}

/// A descriptor whose signature and namespace were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedDescriptor {
    contents: Descriptor,
    encoded: Vec<u8>,
    digest: DescriptorDigest,
}

impl Descriptor {
    /// Signs with the authority's key, whose public half must be `self.authority`.
    pub fn sign(&self, authority: &SigningKey) -> Vec<u8> {
        let mut out = self.signed_part();
        let digest = *blake3::hash(&out).as_bytes();
        out.extend_from_slice(&sign(authority, SignedType::Descriptor, &digest));
        out
    }

    pub(crate) fn signed_part(&self) -> Vec<u8> {
        let (codec, level) = match self.codec {
            Codec::None => (0, 0),
            Codec::Zstd(level) => (1, level),
        };
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&self.authority.0).u64(self.version).raw(&self.previous.0);
        out.u8(self.suite.code()).u8(CHUNKER_FASTCDC);
        out.u32(self.chunk_sizes.min).u32(self.chunk_sizes.average).u32(self.chunk_sizes.max);
        out.u8(codec).u8(level).u8(PADDING_PADME).u32(self.epoch);
        out.raw(&self.record_key.0).raw(&self.access_key.0);
        out.count(self.recipients.len());
        for recipient in &self.recipients {
            out.bytes(recipient.as_bytes());
        }
        out.count(self.ledger_keys.len());
        for key in &self.ledger_keys {
            out.raw(&key.0);
        }
        out.bytes(&self.wrapped_secret);
        out.finish()
    }

    /// Reads what the signature is over; it is not checked.
    pub(crate) fn decode_signed_part(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let authority = PublicKey(reader.array()?);
        let version = reader.u64()?;
        let previous = DescriptorDigest(reader.array()?);
        let suite = Suite::from_code(reader.u8()?)?;
        if reader.u8()? != CHUNKER_FASTCDC || version == 0 {
            return reader.refuse();
        }
        let chunk_sizes =
            ChunkSizes { min: reader.u32()?, average: reader.u32()?, max: reader.u32()? };
        chunk_sizes.check()?;
        let codec = match (reader.u8()?, reader.u8()?) {
            (0, 0) => Codec::None,
            (1, level @ 1..=19) => Codec::Zstd(level),
            _ => return reader.refuse(),
        };
        if reader.u8()? != PADDING_PADME {
            return reader.refuse();
        }
        let epoch = reader.u32()?;
        let record_key = PublicKey(reader.array()?);
        let access_key = PublicKey(reader.array()?);
        let mut recipients = Vec::new();
        for _ in 0..reader.count(RECIPIENTS_MAX)? {
            recipients.push(reader.text(RECIPIENT_MAX_BYTES)?.to_owned());
        }
        let mut ledger_keys = Vec::new();
        for _ in 0..reader.count(LEDGER_KEYS_MAX)? {
            ledger_keys.push(PublicKey(reader.array()?));
        }
        let wrapped_secret = reader.bytes(WRAPPED_SECRET_MAX_BYTES)?.to_vec();
        if recipients.is_empty() || ledger_keys.is_empty() {
            return reader.refuse();
        }
        reader.finish()?;
        Ok(Self {
            authority,
            version,
            previous,
            suite,
            chunk_sizes,
            codec,
            epoch,
            record_key,
            access_key,
            recipients,
            ledger_keys,
            wrapped_secret,
        })
    }
}

impl VerifiedDescriptor {
    /// Decodes a descriptor and checks its signature with the authority key that it names; only
    /// [`VerifiedDescriptor::namespace`] says for which namespace it speaks.
    pub fn decode(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > DESCRIPTOR_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT).into());
        }
        let (signed, signature) =
            bytes.split_last_chunk::<SIGNATURE_BYTES>().ok_or(DecodeError::Short(WHAT))?;
        let contents = Descriptor::decode_signed_part(signed)?;
        let digest = DescriptorDigest(*blake3::hash(signed).as_bytes());
        verify(&contents.authority, SignedType::Descriptor, &digest.0, signature)?;
        Ok(Self { contents, encoded: bytes.to_vec(), digest })
    }

    /// Decodes a descriptor and checks that it is `namespace`'s and not older than `known_version`.
    pub fn decode_for(
        bytes: &[u8],
        namespace: &NamespaceId,
        known_version: u64,
    ) -> Result<Self, DescriptorError> {
        let descriptor = Self::decode(bytes)?;
        if descriptor.namespace() != *namespace {
            return Err(DescriptorError::OtherNamespace);
        }
        if descriptor.contents.version < known_version {
            let offered = descriptor.contents.version;
            return Err(DescriptorError::Older { offered, known: known_version });
        }
        Ok(descriptor)
    }

    /// Checks that it is the next version after `known`: of the same epoch, with the same record
    /// key, or of the next one, with another.
    pub fn check_follows(&self, known: &Self) -> Result<(), DescriptorError> {
        if self.namespace() != known.namespace() {
            return Err(DescriptorError::OtherNamespace);
        }
        let (offered, newest) = (&self.contents, &known.contents);
        let versions = (offered.version, newest.version);
        if newest.version.checked_add(1) != Some(offered.version) {
            return Err(DescriptorError::NotNext { offered: versions.0, known: versions.1 });
        }
        if offered.previous != known.digest {
            return Err(DescriptorError::Forked { offered: versions.0, known: versions.1 });
        }
        let is_same_key = offered.record_key == newest.record_key;
        let is_good = match offered.epoch.checked_sub(newest.epoch) {
            Some(0) => is_same_key,
            Some(1) => !is_same_key,
            _ => false,
        };
        if is_good { Ok(()) } else { Err(DescriptorError::OtherEpoch) }
    }

    /// Whether it names the server whose ledger this key signs.
    pub fn names(&self, ledger_key: &PublicKey) -> bool {
        self.contents.ledger_keys.contains(ledger_key)
    }

    /// What it says.
    pub fn contents(&self) -> &Descriptor {
        &self.contents
    }

    /// The bytes that were verified.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Digest of the signed part.
    pub fn digest(&self) -> DescriptorDigest {
        self.digest
    }

    /// The namespace it speaks for.
    pub fn namespace(&self) -> NamespaceId {
        NamespaceId::of_authority(&self.contents.authority)
    }
}

/// Tests, and a descriptor for those of others.
#[cfg(test)]
pub mod tests {
    use super::*;

    /// A descriptor as good as any, not signed.
    pub fn descriptor(authority: &SigningKey) -> Descriptor {
        Descriptor {
            authority: PublicKey(authority.verifying_key().to_bytes()),
            version: 3,
            previous: DescriptorDigest([1; 32]),
            suite: Suite::Blake3ChaCha20Poly1305,
            chunk_sizes: ChunkSizes::around(64 * 1024).unwrap(),
            codec: Codec::Zstd(1),
            epoch: 1,
            record_key: PublicKey([2; 32]),
            access_key: PublicKey([3; 32]),
            recipients: vec!["age1example".into()],
            ledger_keys: vec![PublicKey([4; 32])],
            wrapped_secret: vec![5; 100],
        }
    }

    #[test]
    fn signs_and_verifies() {
        let authority = SigningKey::from_bytes(&[9; 32]);
        let contents = descriptor(&authority);
        let encoded = contents.sign(&authority);
        let verified = VerifiedDescriptor::decode(&encoded).unwrap();
        assert_eq!(verified.contents(), &contents);
        let namespace = verified.namespace();
        assert!(VerifiedDescriptor::decode_for(&encoded, &namespace, 3).is_ok());
        assert_eq!(
            VerifiedDescriptor::decode_for(&encoded, &namespace, 4),
            Err(DescriptorError::Older { offered: 3, known: 4 })
        );
        assert_eq!(
            VerifiedDescriptor::decode_for(&encoded, &NamespaceId([0; 32]), 0),
            Err(DescriptorError::OtherNamespace)
        );
    }

    #[test]
    fn only_the_next_version_of_the_same_chain_and_epoch_follows() {
        let authority = SigningKey::from_bytes(&[9; 32]);
        let decoded = |contents: &Descriptor, key: &SigningKey| {
            VerifiedDescriptor::decode(&contents.sign(key)).unwrap()
        };
        let known = decoded(&descriptor(&authority), &authority);
        let next = Descriptor {
            version: 4,
            previous: known.digest(),
            ledger_keys: vec![PublicKey([6; 32])],
            ..descriptor(&authority)
        };
        assert_eq!(decoded(&next, &authority).check_follows(&known), Ok(()));
        assert!(decoded(&next, &authority).names(&PublicKey([6; 32])));
        assert!(!decoded(&next, &authority).names(&PublicKey([4; 32])));
        let refused = |change: fn(&mut Descriptor)| {
            let mut changed = next.clone();
            change(&mut changed);
            decoded(&changed, &authority).check_follows(&known).unwrap_err()
        };
        let not_next = |offered| DescriptorError::NotNext { offered, known: 3 };
        assert_eq!(refused(|next| next.version = 3), not_next(3));
        assert_eq!(refused(|next| next.version = 5), not_next(5));
        let forked = DescriptorError::Forked { offered: 4, known: 3 };
        assert_eq!(refused(|next| next.previous = DescriptorDigest([1; 32])), forked);
        assert_eq!(refused(|next| next.epoch = 2), DescriptorError::OtherEpoch);
        for (epoch, key, is_good) in [(2, 7, true), (3, 7, false), (0, 7, false), (1, 7, false)] {
            let record_key = PublicKey([key; 32]);
            let rotated = Descriptor { epoch, record_key, ..next.clone() };
            let outcome = decoded(&rotated, &authority).check_follows(&known);
            assert_eq!(outcome.is_ok(), is_good, "epoch {epoch}");
        }
        assert_eq!(
            refused(|next| next.record_key = PublicKey([7; 32])),
            DescriptorError::OtherEpoch
        );
        let other = SigningKey::from_bytes(&[8; 32]);
        let foreign = Descriptor { authority: descriptor(&other).authority, ..next.clone() };
        assert_eq!(
            decoded(&foreign, &other).check_follows(&known),
            Err(DescriptorError::OtherNamespace)
        );
    }

    #[test]
    fn refuses_every_changed_or_missing_byte() {
        let authority = SigningKey::from_bytes(&[9; 32]);
        let encoded = descriptor(&authority).sign(&authority);
        for at in 0..encoded.len() {
            let mut changed = encoded.clone();
            changed[at] ^= 1;
            assert!(VerifiedDescriptor::decode(&changed).is_err(), "byte {at}");
            assert!(VerifiedDescriptor::decode(&encoded[..at]).is_err(), "cut at {at}");
        }
    }
}
