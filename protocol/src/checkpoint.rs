//! Signed tree heads: C2SP `tlog-checkpoint` in C2SP `signed-note` form.
//!
//! ```text
//! <origin>\n<size>\n<base64 root>\n\n<em dash> <origin> <base64(key id(4) || signature(64))>\n
//! ```
//!
//! The signature is plain Ed25519 over the text up to and with the empty line's first newline, as
//! the signed-note specification wants it (type 1), so that public verifiers accept it. It is made
//! by a ledger key, which signs nothing else of this shape.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::id::{PublicKey, to_hex};
use crate::limits::CHECKPOINT_MAX_BYTES;
use crate::merkle::Hash;

/// A text is not a checkpoint, or not one of a known key.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointError {
    /// The text is not a checkpoint note.
    #[error("checkpoint: not in checkpoint form")]
    Form,
    /// No known ledger key signed it.
    #[error("checkpoint: no known ledger key signed it")]
    Signature,
}

/// A tree head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Names the ledger; follows from its key.
    pub origin: String,
    /// Number of leaves.
    pub size: u64,
    /// Root hash.
    pub root: Hash,
}

/// The origin of the ledger that `key` signs.
pub fn origin_of(key: &PublicKey) -> String {
    let digest = blake3::hash(&key.0);
    let name: &[u8] = digest.as_bytes().first_chunk::<16>().map_or(&[], |head| head);
    format!("strongroom/{}", to_hex(name))
}

impl Checkpoint {
    /// The signed note.
    pub fn sign(&self, ledger: &SigningKey) -> String {
        let text = self.text();
        let key = PublicKey(ledger.verifying_key().to_bytes());
        let mut signed = key_id(&self.origin, &key).to_vec();
        signed.extend_from_slice(&ledger.sign(text.as_bytes()).to_bytes());
        format!("{text}\n\u{2014} {} {}\n", self.origin, STANDARD.encode(signed))
    }

    /// Reads a note and checks that one of `keys` signed it under its own origin.
    pub fn verify(note: &str, keys: &[PublicKey]) -> Result<Self, CheckpointError> {
        let (checkpoint, signatures) = Self::parse(note)?;
        let text = checkpoint.text();
        for key in keys {
            if origin_of(key) != checkpoint.origin {
                continue;
            }
            let wanted = key_id(&checkpoint.origin, key);
            let genuine = signatures.iter().any(|(name, id, signature)| {
                *name == checkpoint.origin
                    && *id == wanted
                    && VerifyingKey::from_bytes(&key.0)
                        .is_ok_and(|key| key.verify_strict(text.as_bytes(), signature).is_ok())
            });
            if genuine {
                return Ok(checkpoint);
            }
        }
        Err(CheckpointError::Signature)
    }

    /// The text that is signed.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Reads a note, and the signatures of its form under it; checks none.
    #[expect(clippy::type_complexity)]
    pub(crate) fn parse(
        note: &str,
    ) -> Result<(Self, Vec<(&str, [u8; 4], Signature)>), CheckpointError> {
        const FORM: CheckpointError = CheckpointError::Form;
        if u32::try_from(note.len()).map_or(true, |length| length > CHECKPOINT_MAX_BYTES) {
            return Err(FORM);
        }
        let (text, signature_lines) = note.split_once("\n\n").ok_or(FORM)?;
        let mut lines = text.split('\n');
        let origin = lines.next().filter(|line| !line.is_empty()).ok_or(FORM)?.to_owned();
        let size_text = lines.next().ok_or(FORM)?;
        let size: u64 = size_text.parse().map_err(|_| FORM)?;
        let root = STANDARD.decode(lines.next().ok_or(FORM)?).map_err(|_| FORM)?;
        let checkpoint = Self { origin, size, root: root.try_into().map_err(|_| FORM)? };
        // Extension lines are allowed by the specification; this system writes none.
        if lines.next().is_some() || checkpoint.text() != format!("{text}\n") {
            return Err(FORM);
        }
        let mut signatures = Vec::new();
        for line in signature_lines.strip_suffix('\n').ok_or(FORM)?.split('\n') {
            let fields = line.strip_prefix("\u{2014} ").and_then(|line| line.split_once(' '));
            let (name, encoded) = fields.ok_or(FORM)?;
            let bytes = STANDARD.decode(encoded).map_err(|_| FORM)?;
            let (id, signature) = bytes.split_first_chunk::<4>().ok_or(FORM)?;
            // A signature of another length is of another algorithm, such as a witness's.
            if let Ok(signature) = Signature::from_slice(signature) {
                signatures.push((name, *id, signature));
            }
        }
        Ok((checkpoint, signatures))
    }
}

/// First four bytes of `SHA-256(name || "\n" || 0x01 || public key)`.
fn key_id(name: &str, key: &PublicKey) -> [u8; 4] {
    let digest = Sha256::new()
        .chain_update(name.as_bytes())
        .chain_update(b"\n\x01")
        .chain_update(key.0)
        .finalize();
    let [a, b, c, d, ..] = <[u8; 32]>::from(digest);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_verifies_only_with_the_right_key() {
        let ledger = SigningKey::from_bytes(&[7; 32]);
        let key = PublicKey(ledger.verifying_key().to_bytes());
        let checkpoint = Checkpoint { origin: origin_of(&key), size: 42, root: [3; 32] };
        let note = checkpoint.sign(&ledger);
        assert_eq!(Checkpoint::verify(&note, &[key]), Ok(checkpoint));
        let other = PublicKey(SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes());
        assert_eq!(Checkpoint::verify(&note, &[other]), Err(CheckpointError::Signature));
        let larger = note.replace("\n42\n", "\n43\n");
        assert_eq!(Checkpoint::verify(&larger, &[key]), Err(CheckpointError::Signature));
        let padded = note.replace("\n42\n", "\n042\n");
        assert_eq!(Checkpoint::verify(&padded, &[key]), Err(CheckpointError::Form));
        assert_eq!(Checkpoint::verify("", &[key]), Err(CheckpointError::Form));
    }

    #[test]
    fn names_and_key_ids_are_what_the_specification_and_the_key_make_them() {
        let ledger = SigningKey::from_bytes(&[7; 32]);
        let key = PublicKey(ledger.verifying_key().to_bytes());
        assert_eq!(
            to_hex(&key.0),
            "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c"
        );
        assert_eq!(origin_of(&key), "strongroom/0871f3aabc26e4582c508af5c03884e6");
        assert_eq!(to_hex(&key_id(&origin_of(&key), &key)), "958af7f6");
    }

    #[test]
    fn a_signature_under_another_name_or_key_id_does_not_count() {
        let ledger = SigningKey::from_bytes(&[7; 32]);
        let key = PublicKey(ledger.verifying_key().to_bytes());
        let checkpoint = Checkpoint { origin: origin_of(&key), size: 42, root: [3; 32] };
        let note = checkpoint.sign(&ledger);
        let renamed = note.replace("\u{2014} strongroom/", "\u{2014} another/");
        assert_eq!(Checkpoint::verify(&renamed, &[key]), Err(CheckpointError::Signature));
        let (text, line) = note.split_at(note.len() - 1 - STANDARD.encode([0; 68]).len());
        let mut signed = STANDARD.decode(line.trim_end()).unwrap();
        signed[0] ^= 1;
        let misnumbered = format!("{text}{}\n", STANDARD.encode(signed));
        assert_eq!(Checkpoint::verify(&misnumbered, &[key]), Err(CheckpointError::Signature));
        // Whoever else signed it before does no harm.
        let witness = format!("\u{2014} witness {}\n\u{2014} ", STANDARD.encode([1; 68]));
        let witnessed = note.replacen("\u{2014} ", &witness, 1);
        assert_eq!(Checkpoint::verify(&witnessed, &[key]), Ok(checkpoint));
    }

    #[test]
    fn a_note_is_bounded() {
        let ledger = SigningKey::from_bytes(&[7; 32]);
        let key = PublicKey(ledger.verifying_key().to_bytes());
        let checkpoint = Checkpoint { origin: origin_of(&key), size: 42, root: [3; 32] };
        let mut note = checkpoint.sign(&ledger);
        let max = usize::try_from(CHECKPOINT_MAX_BYTES).unwrap();
        // A line of a witness, as long as what is left: its name makes up for base64's fours.
        let rest = max - note.len();
        let name_bytes = 8 + (rest - 14) % 4;
        let signed = STANDARD.encode(vec![1; (rest - 6 - name_bytes) / 4 * 3]);
        note.push_str(&format!("\u{2014} {} {signed}\n", "w".repeat(name_bytes)));
        assert_eq!(note.len(), max);
        assert_eq!(Checkpoint::verify(&note, &[key]), Ok(checkpoint));
        let longer = note.replace("\u{2014} w", "\u{2014} ww");
        assert_eq!(Checkpoint::verify(&longer, &[key]), Err(CheckpointError::Form));
    }
}
