//! Strict Ed25519 over `"strongroom-v1:<type>\n" || BLAKE3(object)`.
//!
//! The type keeps a signature for one kind of object from standing under another. Verification is
//! the strict one of `ed25519-dalek` (canonical encodings, no small-order keys), so that one
//! object has one valid signature.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use thiserror::Error;

use crate::id::PublicKey;

/// Length of a signature in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// A signature does not belong to the object, type and key.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{0}: signature is not valid")]
pub struct SignatureError(pub &'static str);

/// What kind of object a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedType {
    /// A namespace's descriptor, signed by its authority.
    Descriptor,
    /// A writer certificate, signed by the epoch's record key.
    WriterCertificate,
    /// A snapshot record, signed by a writer.
    Record,
    /// A server's TLS key, vouched for by its ledger key.
    TlsKey,
    /// An approval of a proposal, signed by the approver.
    Approval,
    /// A connection that is lent, signed by the ledger key of the server that lends it.
    Lend,
    /// A principal's next keys, vouched for by its old signing key.
    KeyRoll,
    /// The same, signed by the next signing key, which shows that it is held.
    KeyHeld,
}

impl SignedType {
    /// The `<type>` of the signed message.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Descriptor => "descriptor",
            Self::WriterCertificate => "writer-certificate",
            Self::Record => "record",
            Self::TlsKey => "tls-key",
            Self::Approval => "approval",
            Self::Lend => "lend",
            Self::KeyRoll => "key-roll",
            Self::KeyHeld => "key-held",
        }
    }
}

/// Signs the digest of an object.
pub fn sign(key: &SigningKey, signed_type: SignedType, digest: &[u8; 32]) -> [u8; SIGNATURE_BYTES] {
    key.sign(&message(signed_type, digest)).to_bytes()
}

/// Verifies a signature over the digest of an object.
pub fn verify(
    key: &PublicKey,
    signed_type: SignedType,
    digest: &[u8; 32],
    signature: &[u8; SIGNATURE_BYTES],
) -> Result<(), SignatureError> {
    let error = SignatureError(signed_type.name());
    let key = VerifyingKey::from_bytes(&key.0).map_err(|_| error)?;
    key.verify_strict(&message(signed_type, digest), &Signature::from_bytes(signature))
        .map_err(|_| error)
}

fn message(signed_type: SignedType, digest: &[u8; 32]) -> Vec<u8> {
    let mut message = format!("strongroom-v1:{}\n", signed_type.name()).into_bytes();
    message.extend_from_slice(digest);
    message
}
