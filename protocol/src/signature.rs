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

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::Verifier;

    const ALL: [SignedType; 8] = [
        SignedType::Descriptor,
        SignedType::WriterCertificate,
        SignedType::Record,
        SignedType::TlsKey,
        SignedType::Approval,
        SignedType::Lend,
        SignedType::KeyRoll,
        SignedType::KeyHeld,
    ];

    #[test]
    fn a_signature_holds_for_its_type_digest_and_key_only() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let other = PublicKey(SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes());
        for made_for in ALL {
            let signature = sign(&key, made_for, &[1; 32]);
            for shown_for in ALL {
                let outcome = verify(&public, shown_for, &[1; 32], &signature);
                assert_eq!(outcome.is_ok(), made_for == shown_for, "{made_for:?} {shown_for:?}");
            }
            assert!(verify(&public, made_for, &[2; 32], &signature).is_err());
            assert!(verify(&other, made_for, &[1; 32], &signature).is_err());
        }
    }

    /// With a key of small order one signature fits every message; a plain verification takes it.
    #[test]
    fn a_key_of_small_order_signs_nothing() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        // R = the neutral point, s = 0: R = s B - k A holds for each k.
        let mut signature = [0; SIGNATURE_BYTES];
        signature[0] = 1;
        let weak = VerifyingKey::from_bytes(&identity_point).unwrap();
        let message = message(SignedType::Record, &[1; 32]);
        assert!(weak.verify(&message, &Signature::from_bytes(&signature)).is_ok());
        let weak = PublicKey(identity_point);
        for signed_type in ALL {
            assert!(verify(&weak, signed_type, &[1; 32], &signature).is_err());
        }
    }

    /// The order of the group, added to `s`, would give a second signature of the same message.
    #[test]
    fn one_object_has_one_signature() {
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let mut signature = sign(&key, SignedType::Record, &[1; 32]);
        let mut carry = 0;
        for (byte, add) in signature[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            [*byte, _] = sum.to_le_bytes();
            carry = sum >> 8;
        }
        assert_eq!(carry, 0);
        assert!(verify(&public, SignedType::Record, &[1; 32], &signature).is_err());
    }
}
