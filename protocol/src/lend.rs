//! A connection that a primary lends: what it is upgraded to, and the proof that it is the
//! primary's own (`docs/protocol.md`, lend).
//!
//! ```text
//! proof = Ed25519 by the primary's ledger key, type "lend", over BLAKE3("SRL1" || exporter(32))
//! ```
//!
//! The exporter is RFC 9266's of the connection, so a proof is good on one connection only. Without
//! it, whoever stole the key that dials could answer in the primary's place.

use ed25519_dalek::SigningKey;

use crate::id::{PublicKey, from_hex, to_hex};
use crate::signature::{SignatureError, SignedType, sign, verify};

/// What a lent connection is upgraded to (RFC 9110, 7.8): HTTP/1.1 with the roles turned round.
pub const LEND_PROTOCOL: &str = "strongroom-lend/1";
/// The header that carries the proof, in hexadecimal.
pub const LEND_PROOF_HEADER: &str = "strongroom-lend-proof";

/// The proof for the connection with this exporter.
pub fn prove(ledger_key: &SigningKey, exporter: &[u8; 32]) -> String {
    to_hex(&sign(ledger_key, SignedType::Lend, &digest_of(exporter)))
}

/// Whether a proof is that of `ledger_key` for this connection.
pub fn check(
    ledger_key: &PublicKey,
    exporter: &[u8; 32],
    proof: &str,
) -> Result<(), SignatureError> {
    let proof = from_hex(proof).ok_or(SignatureError(SignedType::Lend.name()))?;
    verify(ledger_key, SignedType::Lend, &digest_of(exporter), &proof)
}

fn digest_of(exporter: &[u8; 32]) -> [u8; 32] {
    *blake3::hash(&[&b"SRL1"[..], exporter].concat()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_key_and_one_connection() {
        let (key, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let public = |key: &SigningKey| PublicKey(key.verifying_key().to_bytes());
        let proof = prove(&key, &[3; 32]);
        assert_eq!(check(&public(&key), &[3; 32], &proof), Ok(()));
        check(&public(&key), &[4; 32], &proof).unwrap_err();
        check(&public(&other), &[3; 32], &proof).unwrap_err();
        for wrong in ["", "00", &proof[2..], &format!("{proof}00")] {
            check(&public(&key), &[3; 32], wrong).unwrap_err();
        }
    }
}
