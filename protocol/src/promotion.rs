//! A request to promote: what a server says of itself to whoever keeps the authority key.
//!
//! ```text
//! "SRM1" | text namespace name | bytes newest descriptor | ledger key(32) | TLS key digest(32)
//!   | vouch(64) | text addresses | text checkpoint | snapshots u64
//! ```
//!
//! The descriptor verifies by itself. The vouch shows that whoever made the request has the ledger
//! key, and for which TLS key; the checkpoint, signed by the same key, shows how long its ledger
//! is. The rest is the server's word. **Nothing here says that this server should be promoted**:
//! people compare the ledger key with the one that the server itself printed.

use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::codec::{DecodeError, Reader, Writer};
use crate::descriptor::{DescriptorError, VerifiedDescriptor};
use crate::id::{Label, PublicKey, TlsKeyDigest};
use crate::limits::{
    ADDRESS_MAX_BYTES, CHECKPOINT_MAX_BYTES, DESCRIPTOR_MAX_BYTES, LABEL_MAX_BYTES,
    PROMOTION_MAX_BYTES,
};
use crate::signature::{SIGNATURE_BYTES, SignatureError, SignedType, verify};

const MAGIC: &[u8; 4] = b"SRM1";
const WHAT: &str = "promotion request";

/// A request to promote cannot be believed.
#[derive(Debug, Error)]
pub enum PromotionError {
    /// It does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its descriptor does not verify.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// The ledger key does not vouch for the TLS key.
    #[error("promotion request: {0}")]
    Vouch(#[from] SignatureError),
    /// The ledger key did not sign the checkpoint.
    #[error("promotion request: {0}")]
    Checkpoint(#[from] CheckpointError),
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotionRequest {
    /// The namespace's name on the server.
    pub namespace_name: Label,
    /// The newest descriptor that the server has, encoded.
    pub descriptor: Vec<u8>,
    /// The server's ledger key.
    pub ledger_key: PublicKey,
    /// Its TLS key.
    pub tls_key: TlsKeyDigest,
    /// The ledger key's signature over the TLS key.
    pub vouch: [u8; SIGNATURE_BYTES],
    /// Where clients reach it: `host:port`, several with commas.
    pub addresses: String,
    /// Its newest signed checkpoint.
    pub checkpoint: String,
    /// Snapshots of the namespace that it lists.
    pub snapshots: u64,
}

/// What of a request was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRequest {
    /// The descriptor.
    pub descriptor: VerifiedDescriptor,
    /// Size of the server's ledger.
    pub ledger_size: u64,
    /// Its root.
    pub ledger_root: [u8; 32],
}

/// What a ledger key signs to vouch for a TLS key.
pub fn vouched_digest(tls_key: &TlsKeyDigest, ledger_key: &PublicKey) -> [u8; 32] {
    let hasher = &mut blake3::Hasher::new();
    *hasher.update(b"SRV1").update(&tls_key.0).update(&ledger_key.0).finalize().as_bytes()
}

impl PromotionRequest {
    /// The encoding: the contents of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.bytes(self.namespace_name.as_str().as_bytes()).bytes(&self.descriptor);
        out.raw(&self.ledger_key.0).raw(&self.tls_key.0).raw(&self.vouch);
        out.bytes(self.addresses.as_bytes()).bytes(self.checkpoint.as_bytes());
        out.u64(self.snapshots);
        out.finish()
    }

    /// Decodes a request; [`PromotionRequest::verify`] says what of it is proven.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > PROMOTION_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let name = reader.text(LABEL_MAX_BYTES)?;
        let request = Self {
            namespace_name: name.parse().map_err(|_| DecodeError::Value(WHAT))?,
            descriptor: reader.bytes(DESCRIPTOR_MAX_BYTES)?.to_vec(),
            ledger_key: PublicKey(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
            vouch: reader.array()?,
            addresses: reader.text(ADDRESS_MAX_BYTES)?.to_owned(),
            checkpoint: reader.text(CHECKPOINT_MAX_BYTES)?.to_owned(),
            snapshots: reader.u64()?,
        };
        reader.finish()?;
        Ok(request)
    }

    /// Verifies the descriptor, and that one ledger key stands behind the rest.
    pub fn verify(&self) -> Result<VerifiedRequest, PromotionError> {
        let descriptor = VerifiedDescriptor::decode(&self.descriptor)?;
        let digest = vouched_digest(&self.tls_key, &self.ledger_key);
        verify(&self.ledger_key, SignedType::TlsKey, &digest, &self.vouch)?;
        let checkpoint = Checkpoint::verify(&self.checkpoint, &[self.ledger_key])?;
        let (ledger_size, ledger_root) = (checkpoint.size, checkpoint.root);
        Ok(VerifiedRequest { descriptor, ledger_size, ledger_root })
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::checkpoint::origin_of;
    use crate::descriptor::tests::descriptor;
    use crate::signature::sign;

    fn public(key: &SigningKey) -> PublicKey {
        PublicKey(key.verifying_key().to_bytes())
    }

    fn request() -> PromotionRequest {
        let authority = SigningKey::from_bytes(&[9; 32]);
        let ledger = SigningKey::from_bytes(&[8; 32]);
        let (ledger_key, tls_key) = (public(&ledger), TlsKeyDigest([5; 32]));
        let descriptor = descriptor(&authority);
        let digest = vouched_digest(&tls_key, &ledger_key);
        let checkpoint = Checkpoint { origin: origin_of(&ledger_key), size: 7, root: [6; 32] };
        PromotionRequest {
            namespace_name: "erp".parse().unwrap(),
            descriptor: descriptor.sign(&authority),
            ledger_key,
            tls_key,
            vouch: sign(&ledger, SignedType::TlsKey, &digest),
            addresses: "replica.example:7443".into(),
            checkpoint: checkpoint.sign(&ledger),
            snapshots: 3,
        }
    }

    #[test]
    fn comes_back_and_verifies() {
        let request = request();
        let bytes = request.encode();
        assert_eq!(PromotionRequest::decode(&bytes).as_ref(), Ok(&request));
        let verified = request.verify().unwrap();
        assert_eq!((verified.ledger_size, verified.descriptor.contents().version), (7, 3));
        for at in 0..bytes.len() {
            assert!(PromotionRequest::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn another_ledger_or_tls_key_than_the_one_that_vouches_is_refused() {
        let good = request();
        let other = PromotionRequest { ledger_key: PublicKey([4; 32]), ..good.clone() };
        assert!(matches!(other.verify(), Err(PromotionError::Vouch(_))));
        let other = PromotionRequest { tls_key: TlsKeyDigest([1; 32]), ..good.clone() };
        assert!(matches!(other.verify(), Err(PromotionError::Vouch(_))));
        let checkpoint = good.checkpoint.replace("\n7\n", "\n8\n");
        let other = PromotionRequest { checkpoint, ..good.clone() };
        assert!(matches!(other.verify(), Err(PromotionError::Checkpoint(_))));
        let mut descriptor = good.descriptor.clone();
        *descriptor.last_mut().unwrap() ^= 1;
        let other = PromotionRequest { descriptor, ..good };
        assert!(matches!(other.verify(), Err(PromotionError::Descriptor(_))));
    }
}
