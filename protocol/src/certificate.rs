//! Writer certificate: binds a principal's signing key to a namespace and epoch.
//!
//! ```text
//! "SRW1" | ns_id(32) | epoch u32 | principal(16) | signing key(32) | signature(64)
//! ```
//!
//! The signature is by the epoch's record key, which is derived from the convergence secret: a
//! server, which never has that secret, cannot make one.

use ed25519_dalek::SigningKey;

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::{NamespaceId, PrincipalId, PublicKey};
use crate::signature::{SIGNATURE_BYTES, SignatureError, SignedType, sign, verify};

/// Length of an encoded certificate.
pub const CERTIFICATE_BYTES: usize = 4 + 32 + 4 + 16 + 32 + SIGNATURE_BYTES;

const MAGIC: &[u8; 4] = b"SRW1";

/// A writer certificate, decoded; [`WriterCertificate::verify`] says whether it is genuine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterCertificate {
    /// Namespace in which the key may write.
    pub namespace: NamespaceId,
    /// Epoch in which the key may write.
    pub epoch: u32,
    /// Whose key it is.
    pub principal: PrincipalId,
    /// The key that signs records.
    pub signing_key: PublicKey,
    /// By the epoch's record key.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl WriterCertificate {
    /// Makes a certificate with the epoch's record key.
    pub fn issue(
        record_key: &SigningKey,
        namespace: NamespaceId,
        epoch: u32,
        principal: PrincipalId,
        signing_key: PublicKey,
    ) -> Self {
        let signature = [0; SIGNATURE_BYTES];
        let mut certificate = Self { namespace, epoch, principal, signing_key, signature };
        certificate.signature =
            sign(record_key, SignedType::WriterCertificate, &certificate.signed_digest());
        certificate
    }

    /// Checks the signature with the record key that the descriptor names.
    pub fn verify(&self, record_key: &PublicKey) -> Result<(), SignatureError> {
        let digest = self.signed_digest();
        verify(record_key, SignedType::WriterCertificate, &digest, &self.signature)
    }

    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.signed_part();
        out.extend_from_slice(&self.signature);
        out
    }

    /// Decodes a certificate.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("writer certificate", bytes);
        reader.magic(MAGIC)?;
        let certificate = Self {
            namespace: NamespaceId(reader.array()?),
            epoch: reader.u32()?,
            principal: PrincipalId(reader.array()?),
            signing_key: PublicKey(reader.array()?),
            signature: reader.array()?,
        };
        reader.finish()?;
        Ok(certificate)
    }

    fn signed_part(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&self.namespace.0).u32(self.epoch).raw(&self.principal.0).raw(&self.signing_key.0);
        out.finish()
    }

    fn signed_digest(&self) -> [u8; 32] {
        *blake3::hash(&self.signed_part()).as_bytes()
    }
}
