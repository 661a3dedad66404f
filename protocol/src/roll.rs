//! Keys that roll over: a principal's next keys, vouched for by its old ones and shown to be held.
//!
//! ```text
//! statement = BLAKE3("SRY1" | ledger key(32) | principal(16) | TLS key digest(32)
//!           | signing key(32))
//! request   = "SRY2" | principal(16) | point of the TLS key(65) | signing key(32) | vouch(64)
//!           | possession(64) | bytes TLS possession
//! held      = BLAKE3("SRY3" || exporter(32) || request up to and with the vouch)
//! ```
//!
//! The **vouch** is the old signing key's signature over the statement. It stands in the ledger, so
//! that any auditor can follow a principal's keys from its enrolment on. Both new keys sign `held`,
//! the TLS key (P-256) with ECDSA; the old TLS key is the one of the connection, whose exporter
//! (RFC 9266) is in `held`. So whoever relays a request, or heard one, has nothing.

use ed25519_dalek::SigningKey;

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::{PrincipalId, PublicKey, TlsKeyDigest};
use crate::limits::{ECDSA_SIGNATURE_MAX_BYTES, ROLL_MAX_BYTES};
use crate::signature::{SIGNATURE_BYTES, SignatureError, SignedType, sign, verify};

const MAGIC: &[u8; 4] = b"SRY2";
const WHAT: &str = "request for new keys";

/// Length of an uncompressed point of P-256.
pub const POINT_BYTES: usize = 65;

/// What stands before the point in a P-256 SubjectPublicKeyInfo (RFC 5480).
const POINT_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Which keys a principal has from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewKeys {
    /// The server, by its ledger key.
    pub ledger_key: PublicKey,
    /// Whose they are.
    pub principal: PrincipalId,
    /// The next TLS key.
    pub tls_key: TlsKeyDigest,
    /// The next signing key.
    pub signing_key: PublicKey,
}

/// A request for new keys, decoded; nothing of it is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollRequest {
    /// Whose keys.
    pub principal: PrincipalId,
    /// The next TLS key, an uncompressed point of P-256.
    pub tls_point: [u8; POINT_BYTES],
    /// The next signing key.
    pub signing_key: PublicKey,
    /// By the old signing key.
    pub vouch: [u8; SIGNATURE_BYTES],
    /// By the next signing key.
    pub possession: [u8; SIGNATURE_BYTES],
    /// By the next TLS key: ECDSA with SHA-256, DER.
    pub tls_possession: Vec<u8>,
}

impl NewKeys {
    /// What the old signing key signs.
    pub fn digest(&self) -> [u8; 32] {
        let mut out = Writer::with_magic(b"SRY1");
        out.raw(&self.ledger_key.0).raw(&self.principal.0);
        out.raw(&self.tls_key.0).raw(&self.signing_key.0);
        *blake3::hash(&out.finish()).as_bytes()
    }

    /// The old signing key's word for them.
    pub fn vouch(&self, old: &SigningKey) -> [u8; SIGNATURE_BYTES] {
        sign(old, SignedType::KeyRoll, &self.digest())
    }

    /// Whether `old` vouches for them.
    pub fn check(
        &self,
        old: &PublicKey,
        vouch: &[u8; SIGNATURE_BYTES],
    ) -> Result<(), SignatureError> {
        verify(old, SignedType::KeyRoll, &self.digest(), vouch)
    }
}

impl RollRequest {
    /// A request without the two proofs that the next keys are held.
    pub fn vouched(keys: &NewKeys, tls_point: [u8; POINT_BYTES], old: &SigningKey) -> Self {
        Self {
            principal: keys.principal,
            tls_point,
            signing_key: keys.signing_key,
            vouch: keys.vouch(old),
            possession: [0; SIGNATURE_BYTES],
            tls_possession: Vec::new(),
        }
    }

    /// The keys that are asked for, at the server with this ledger key.
    pub fn keys(&self, ledger_key: PublicKey) -> NewKeys {
        let tls_key = pin_of_point(&self.tls_point);
        NewKeys { ledger_key, principal: self.principal, tls_key, signing_key: self.signing_key }
    }

    /// What both next keys sign, on the connection with this exporter.
    pub fn held_digest(&self, exporter: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"SRY3").update(exporter).update(&self.vouched_part());
        *hasher.finalize().as_bytes()
    }

    /// The bytes that the next TLS key signs.
    pub fn tls_message(&self, exporter: &[u8; 32]) -> Vec<u8> {
        let mut message = b"strongroom-v1:tls-key-held\n".to_vec();
        message.extend_from_slice(&self.held_digest(exporter));
        message
    }

    /// Adds the proof that the next signing key is held.
    pub fn prove_held(&mut self, next: &SigningKey, exporter: &[u8; 32]) {
        self.possession = sign(next, SignedType::KeyHeld, &self.held_digest(exporter));
    }

    /// Whether the next signing key is held by whoever made the request on this connection.
    pub fn check_held(&self, exporter: &[u8; 32]) -> Result<(), SignatureError> {
        let digest = self.held_digest(exporter);
        verify(&self.signing_key, SignedType::KeyHeld, &digest, &self.possession)
    }

    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.raw(&self.vouched_part()).raw(&self.possession).bytes(&self.tls_possession);
        out.finish()
    }

    /// Decodes a request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > ROLL_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let request = Self {
            principal: PrincipalId(reader.array()?),
            tls_point: reader.array()?,
            signing_key: PublicKey(reader.array()?),
            vouch: reader.array()?,
            possession: reader.array()?,
            tls_possession: reader.bytes(ECDSA_SIGNATURE_MAX_BYTES)?.to_vec(),
        };
        reader.finish()?;
        Ok(request)
    }

    fn vouched_part(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&self.principal.0).raw(&self.tls_point).raw(&self.signing_key.0).raw(&self.vouch);
        out.finish()
    }
}

/// The pin of a P-256 key: BLAKE3 of its SubjectPublicKeyInfo.
pub fn pin_of_point(point: &[u8; POINT_BYTES]) -> TlsKeyDigest {
    let digest = blake3::Hasher::new().update(&POINT_PREFIX).update(point).finalize();
    TlsKeyDigest(*digest.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(key: &SigningKey) -> PublicKey {
        PublicKey(key.verifying_key().to_bytes())
    }

    fn request(exporter: &[u8; 32]) -> (RollRequest, PublicKey) {
        let (old, next) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let point = [4; POINT_BYTES];
        let keys = NewKeys {
            ledger_key: PublicKey([9; 32]),
            principal: PrincipalId([3; 16]),
            tls_key: pin_of_point(&point),
            signing_key: public(&next),
        };
        let mut request = RollRequest::vouched(&keys, point, &old);
        request.prove_held(&next, exporter);
        request.tls_possession = vec![5; 70];
        (request, public(&old))
    }

    #[test]
    fn a_request_comes_back_and_no_byte_of_it_can_be_another() {
        let exporter = [7; 32];
        let (good, old) = request(&exporter);
        let bytes = good.encode();
        assert_eq!(RollRequest::decode(&bytes).as_ref(), Ok(&good));
        let holds = |request: &RollRequest, ledger: u8, exporter: &[u8; 32]| {
            let keys = request.keys(PublicKey([ledger; 32]));
            keys.check(&old, &request.vouch).is_ok() && request.check_held(exporter).is_ok()
        };
        assert!(holds(&good, 9, &exporter));
        assert!(!holds(&good, 8, &exporter), "another server");
        assert!(!holds(&good, 9, &[8; 32]), "another connection");
        // Behind these stands the TLS key's own proof, which the server checks.
        let proven = bytes.len() - 74;
        for at in 0..bytes.len() {
            assert!(RollRequest::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if let Ok(changed) = RollRequest::decode(&changed) {
                assert!(at >= proven || !holds(&changed, 9, &exporter), "byte {at}");
            }
        }
    }
}
