//! A ledger key's word for its server's TLS key, by which clients follow a new one.
//!
//! ```text
//! vouched = BLAKE3("SRV2" | TLS key digest(32) | ledger key(32) | serial u64)
//! ```
//!
//! The serial rises with each TLS key of a server, from 1. Whoever pins one follows a key that the
//! same ledger key vouches for with a higher serial, and no other: so a stolen older key, with its
//! vouch, is nothing to those who have met a newer one.

use ed25519_dalek::SigningKey;

use crate::codec::Writer;
use crate::id::{PublicKey, TlsKeyDigest};
use crate::message::Identity;
use crate::signature::{SIGNATURE_BYTES, SignedType, sign, verify};

/// A TLS key of a server, and its place among those that the server had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerTls {
    /// The key.
    pub tls_key: TlsKeyDigest,
    /// Its number, from 1; 0 for one whose number is not known yet.
    pub serial: u64,
}

impl ServerTls {
    /// The word of the ledger key for it.
    pub fn vouch(&self, ledger: &SigningKey) -> [u8; SIGNATURE_BYTES] {
        let ledger_key = PublicKey(ledger.verifying_key().to_bytes());
        sign(ledger, SignedType::TlsKey, &self.digest(&ledger_key))
    }

    /// Whether `ledger_key` vouches for it.
    pub fn is_vouched(&self, ledger_key: &PublicKey, vouch: &[u8]) -> bool {
        let Ok(vouch) = vouch.try_into() else { return false };
        verify(ledger_key, SignedType::TlsKey, &self.digest(ledger_key), vouch).is_ok()
    }

    /// What a server says of the key of a connection, if its pinned ledger key vouches for it.
    pub fn vouched_by(said: &Identity, ledger_key: &PublicKey, met: TlsKeyDigest) -> Option<Self> {
        let tls = Self { tls_key: met, serial: said.tls_serial };
        let is_good = said.ledger_key == *ledger_key
            && said.tls_key == met
            && tls.is_vouched(ledger_key, &said.tls_vouch.0);
        is_good.then_some(tls)
    }

    /// The same, where it may stand in the place of this one: its serial is higher.
    pub fn successor(
        &self,
        said: &Identity,
        ledger_key: &PublicKey,
        met: TlsKeyDigest,
    ) -> Option<Self> {
        Self::vouched_by(said, ledger_key, met).filter(|next| next.serial > self.serial)
    }

    fn digest(&self, ledger_key: &PublicKey) -> [u8; 32] {
        let mut out = Writer::with_magic(b"SRV2");
        out.raw(&self.tls_key.0).raw(&ledger_key.0).u64(self.serial);
        *blake3::hash(&out.finish()).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::HexBytes;

    #[test]
    fn only_a_higher_serial_of_the_pinned_ledger_key_and_this_connection_succeeds() {
        let (ledger, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let key = PublicKey(ledger.verifying_key().to_bytes());
        let pinned = ServerTls { tls_key: TlsKeyDigest([3; 32]), serial: 4 };
        let identity = |serial: u64, by: &SigningKey| {
            let tls = ServerTls { tls_key: TlsKeyDigest([5; 32]), serial };
            Identity {
                protocol: 1,
                ledger_key: key,
                tls_key: tls.tls_key,
                vouch: HexBytes(Vec::new()),
                tls_serial: serial,
                tls_vouch: HexBytes(tls.vouch(by).to_vec()),
            }
        };
        let met = TlsKeyDigest([5; 32]);
        let next = pinned.successor(&identity(5, &ledger), &key, met);
        assert_eq!(next, Some(ServerTls { tls_key: met, serial: 5 }));
        for serial in [0, 3, 4] {
            assert_eq!(pinned.successor(&identity(serial, &ledger), &key, met), None);
        }
        assert_eq!(pinned.successor(&identity(5, &other), &key, met), None);
        let elsewhere = TlsKeyDigest([6; 32]);
        assert_eq!(pinned.successor(&identity(5, &ledger), &key, elsewhere), None);
        let lifted = Identity { tls_serial: 9, ..identity(5, &ledger) };
        assert_eq!(pinned.successor(&lifted, &key, met), None);
    }
}
