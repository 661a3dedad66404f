//! Whether the keys in a ledger follow from each other: each key of a principal was vouched for by
//! the one before, each TLS key of the server has the next number.
//!
//! A ledger names a principal's signing key when the principal is enrolled (entries 4 and 29). Each
//! roll-over (entry 39) must carry the word of the signing key of before for the keys that it
//! names, given for this very server. So whoever wrote the ledger cannot put a key of its own in
//! the place of a principal's without that being seen here. The server's own TLS keys (entry 40)
//! are vouched for by the ledger key, as every entry is; their numbers rise by one, from the first.

use std::collections::HashMap;

use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{PrincipalId, PublicKey};
use strongroom_protocol::roll::NewKeys;

use crate::error::ClientError;

/// Takes the entries of one ledger, from its first on.
#[derive(Debug)]
pub struct VouchCheck {
    ledger_key: PublicKey,
    signing_keys: HashMap<PrincipalId, PublicKey>,
    tls_serial: u64,
    vouched_count: u64,
}

impl VouchCheck {
    /// For the ledger of this key.
    pub fn new(ledger_key: PublicKey) -> Self {
        Self { ledger_key, signing_keys: HashMap::new(), tls_serial: 1, vouched_count: 0 }
    }

    /// Roll-overs of principals' keys so far, each vouched for.
    pub fn vouched_count(&self) -> u64 {
        self.vouched_count
    }

    /// Number of the newest TLS key of the server.
    pub fn tls_serial(&self) -> u64 {
        self.tls_serial
    }

    /// Takes the next entry; refuses keys that do not follow from those before.
    pub fn take(&mut self, index: u64, entry: &Entry) -> Result<(), ClientError> {
        match &entry.event {
            Event::Enrolled { principal, signing_key, .. } => {
                self.signing_keys.insert(*principal, *signing_key);
            }
            // It signs with its ledger key.
            Event::FeedAdded { ledger_key, principal, .. } => {
                self.signing_keys.insert(*principal, *ledger_key);
            }
            Event::Revoked { principal } => {
                self.signing_keys.remove(principal);
            }
            Event::KeysRolled { principal, tls_key, signing_key, vouch } => {
                let keys = NewKeys {
                    ledger_key: self.ledger_key,
                    principal: *principal,
                    tls_key: *tls_key,
                    signing_key: *signing_key,
                };
                let old = self.signing_keys.get(principal);
                if old.is_none_or(|old| keys.check(old, vouch).is_err()) {
                    return Err(ClientError::Untrusted(format!(
                        "entry {index} puts keys in the place of those of principal {principal} \
                         that its key of before did not vouch for: somebody who has the ledger key \
                         acts as that principal; keep what you have, have it revoked, and tell \
                         whoever runs the server"
                    )));
                }
                self.signing_keys.insert(*principal, *signing_key);
                self.vouched_count = self.vouched_count.saturating_add(1);
            }
            Event::TlsKeyRolled { serial, .. } => {
                if *serial != self.tls_serial.saturating_add(1) {
                    return Err(ClientError::Untrusted(format!(
                        "entry {index} names TLS key number {serial} of the server after number \
                         {}: a key is missing in between, or an older one was put back; tell \
                         whoever runs the server",
                        self.tls_serial
                    )));
                }
                self.tls_serial = *serial;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use strongroom_protocol::id::{NamespaceId, TlsKeyDigest, TokenId};
    use strongroom_protocol::role::Role;

    use super::*;
    use crate::keys::public_key_of;

    const PRINCIPAL: PrincipalId = PrincipalId([3; 16]);
    const LEDGER: PublicKey = PublicKey([9; 32]);

    fn entry(event: Event) -> Entry {
        Entry {
            server_time_ms: 1,
            retention_time_seconds: 1,
            actor: PRINCIPAL,
            namespace: NamespaceId([0; 32]),
            event,
        }
    }

    fn key(number: u8) -> SigningKey {
        SigningKey::from_bytes(&[number; 32])
    }

    fn enrolled() -> Event {
        Event::Enrolled {
            principal: PRINCIPAL,
            role: Role::Backup,
            tls_key: TlsKeyDigest([1; 32]),
            signing_key: public_key_of(&key(1)),
            token: TokenId([5; 16]),
        }
    }

    /// A roll-over to key `next`, vouched for by key `by`, at the server with this ledger key.
    fn rolled(by: u8, next: u8, ledger_key: PublicKey) -> Event {
        let (tls_key, signing_key) = (TlsKeyDigest([next; 32]), public_key_of(&key(next)));
        let keys = NewKeys { ledger_key, principal: PRINCIPAL, tls_key, signing_key };
        let vouch = keys.vouch(&key(by));
        Event::KeysRolled { principal: PRINCIPAL, tls_key, signing_key, vouch }
    }

    fn check(events: Vec<Event>) -> Result<VouchCheck, ClientError> {
        let mut check = VouchCheck::new(LEDGER);
        for (index, event) in (0..).zip(events) {
            check.take(index, &entry(event))?;
        }
        Ok(check)
    }

    fn refused(events: Vec<Event>, words: &str) {
        match check(events) {
            Err(ClientError::Untrusted(text)) => assert!(text.contains(words), "{text}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_key_is_vouched_for_by_the_one_before() {
        let events = vec![enrolled(), rolled(1, 2, LEDGER), rolled(2, 4, LEDGER)];
        assert_eq!(check(events).unwrap().vouched_count(), 2);
        let words = "did not vouch";
        refused(vec![enrolled(), rolled(7, 2, LEDGER)], "entry 1 ");
        refused(vec![enrolled(), rolled(1, 2, LEDGER), rolled(1, 4, LEDGER)], "entry 2 ");
        refused(vec![enrolled(), rolled(1, 2, PublicKey([8; 32]))], words);
        refused(vec![rolled(1, 2, LEDGER)], words);
        let revoked = Event::Revoked { principal: PRINCIPAL };
        refused(vec![enrolled(), revoked, rolled(1, 2, LEDGER)], words);
        let Event::KeysRolled { principal, tls_key, vouch, .. } = rolled(1, 2, LEDGER) else {
            unreachable!("made above");
        };
        let signing_key = public_key_of(&key(7));
        let exchanged = Event::KeysRolled { principal, tls_key, signing_key, vouch };
        refused(vec![enrolled(), exchanged], words);
    }

    #[test]
    fn a_server_that_is_fed_or_feeds_is_vouched_for_by_its_ledger_key() {
        let ledger_key = public_key_of(&key(1));
        let tls_key = TlsKeyDigest([1; 32]);
        let added = Event::FeedAdded { ledger_key, tls_key, principal: PRINCIPAL };
        assert!(check(vec![added.clone(), rolled(1, 1, LEDGER)]).is_ok());
        refused(vec![added, rolled(2, 1, LEDGER)], "did not vouch");
    }

    #[test]
    fn numbers_of_tls_keys_rise_by_one() {
        let shown = |serial| Event::TlsKeyRolled { tls_key: TlsKeyDigest([1; 32]), serial };
        assert_eq!(check(vec![shown(2), shown(3)]).unwrap().tls_serial(), 3);
        for wrong in [vec![shown(1)], vec![shown(3)], vec![shown(2), shown(2)]] {
            refused(wrong, "after number");
        }
        refused(vec![shown(2), shown(4)], "entry 1 ");
    }
}
