//! Keys that take the place of a profile's own (`docs/decisions/0019-keys-that-roll-over.md`).
//!
//! 1. The next keys are made, and written whole to `next-keys`. *Crash: the next run goes on with
//!    the very same keys.*
//! 2. The server is asked to take them, over a connection with the old TLS key; the old signing key
//!    vouches for them, and both new ones sign that they are held. *Crash, or an answer that got
//!    lost: the next run shows the next TLS key first. If the server knows it, go on with 3, else
//!    begin again with 2. The old key is not shown before that, because a server that has rolled it
//!    over takes whoever shows it for a thief.*
//! 3. `profile.toml` gets the old signing key, as one that was this machine's, and the new date.
//! 4. The key files are written. *Crash: `next-keys` is still there; as after 2.*
//! 5. `next-keys` is removed.
//!
//! A record that was signed with the old key and not committed is refused after that; the next run
//! of its backup finds that out and makes another. One that was committed gets its receipt.
//!
//! All of it under a lock that every user of the keys shares: no run of this profile is under way
//! with the old keys while they change (`Profile::client`). Who cannot have it leaves the keys as
//! they are; there is a month for that.

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use strongroom_protocol::id::{PrincipalId, PublicKey, from_hex, to_hex};
use strongroom_protocol::limits::CONTROL_MAX_BYTES;
use strongroom_protocol::message::KeysRolled;
use strongroom_protocol::roll::{NewKeys, RollRequest};
use strongroom_protocol::route::Route;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::clock;
use crate::connection::Connection;
use crate::error::ClientError;
use crate::keys::{public_key_of, random_signing_key};
use crate::tls::TlsIdentity;

/// From so many days before their age is reached, keys are rolled over.
const EARLY_DAYS: u64 = 30;
const DAY_SECONDS: u64 = 24 * 3600;
/// How old keys become where nothing else is set.
pub const KEY_AGE_DAYS: u32 = 365;

/// What `profile.toml` says about keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySettings {
    /// When this machine's keys were made, seconds since 1970; 0 where that is not known.
    pub made_seconds: u64,
    /// They are rolled over before they are so many days old; 0 is never.
    pub age_days: u32,
    /// Signing keys that were this machine's before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<PublicKey>,
    /// Number of the server's TLS key that is pinned; an older one is never followed.
    pub server_serial: u64,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self { made_seconds: 0, age_days: KEY_AGE_DAYS, former: Vec::new(), server_serial: 0 }
    }
}

impl KeySettings {
    /// From when on keys that were made at `made_seconds` are rolled over; nothing for never.
    pub fn due_seconds(&self, made_seconds: u64) -> Option<u64> {
        let age = u64::from(self.age_days).saturating_mul(DAY_SECONDS);
        let early = (EARLY_DAYS * DAY_SECONDS).min(age / 2);
        (age > 0).then(|| made_seconds.saturating_add(age - early))
    }

    /// What another process, or whoever looks after this machine, has written since stays.
    pub fn merge(&mut self, written: Self) {
        (self.made_seconds, self.age_days) = (written.made_seconds, written.age_days);
        self.server_serial = self.server_serial.max(written.server_serial);
        for key in written.former {
            self.add_former(key);
        }
    }

    /// Remembers a signing key that was this machine's.
    pub fn add_former(&mut self, key: PublicKey) {
        if !self.former.contains(&key) {
            self.former.push(key);
        }
    }
}

/// The keys that are to take the place of a profile's own.
pub struct NextKeys {
    /// TLS key.
    pub identity: TlsIdentity,
    /// Signs records and approvals.
    pub signing_key: SigningKey,
    /// When they were made, seconds since 1970.
    pub made_seconds: u64,
}

/// The file `next-keys`.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct NextKeysText {
    made_seconds: u64,
    signing_key: String,
    tls_certificate: String,
    tls_key: String,
}

impl NextKeys {
    /// New keys.
    pub fn generate() -> Result<Self, ClientError> {
        let signing_key =
            random_signing_key().map_err(|error| ClientError::Bug(error.to_string()))?;
        let made_seconds = clock::wall_seconds();
        Ok(Self { identity: TlsIdentity::generate()?, signing_key, made_seconds })
    }

    /// The text of the file.
    pub fn to_text(&self) -> Result<Zeroizing<String>, ClientError> {
        let text = NextKeysText {
            made_seconds: self.made_seconds,
            signing_key: to_hex(self.signing_key.as_bytes()),
            tls_certificate: self.identity.certificate_pem().to_owned(),
            tls_key: self.identity.key_pem().to_owned(),
        };
        let text = toml::to_string(&text);
        text.map(Zeroizing::new).map_err(|error| ClientError::Bug(format!("next keys: {error}")))
    }

    /// Reads the text of the file.
    pub fn from_text(text: &str) -> Result<Self, ClientError> {
        let damaged = || {
            ClientError::Usage(
                "next-keys in the profile is damaged: remove it; if the server then says that the \
                 keys were rolled over, enrol this machine again"
                    .into(),
            )
        };
        let text: NextKeysText = toml::from_str(text).map_err(|_| damaged())?;
        let seed = from_hex(&text.signing_key).map(Zeroizing::new).ok_or_else(damaged)?;
        Ok(Self {
            identity: TlsIdentity::from_pem(&text.tls_certificate, &text.tls_key)?,
            signing_key: SigningKey::from_bytes(&seed),
            made_seconds: text.made_seconds,
        })
    }
}

/// Asks the server on this connection, which has the old TLS key, to take the next keys.
pub async fn ask(
    connection: &mut Connection,
    (ledger_key, principal): (PublicKey, PrincipalId),
    old: &SigningKey,
    next: &NextKeys,
) -> Result<KeysRolled, ClientError> {
    let request = request(connection.exporter(), (ledger_key, principal), old, next)?;
    let route = Route::RollKeys;
    let max_bytes = u64::from(CONTROL_MAX_BYTES);
    let answer = connection.call(&route, "", request.encode().into(), max_bytes).await?;
    serde_json::from_slice(&answer)
        .map_err(|error| ClientError::Protocol(format!("answer to {}: {error}", route.name())))
}

/// The request, for a connection with this exporter.
pub fn request(
    exporter: &[u8; 32],
    (ledger_key, principal): (PublicKey, PrincipalId),
    old: &SigningKey,
    next: &NextKeys,
) -> Result<RollRequest, ClientError> {
    let point = next.identity.point()?;
    let keys = NewKeys {
        ledger_key,
        principal,
        tls_key: next.identity.key_digest()?,
        signing_key: public_key_of(&next.signing_key),
    };
    let mut request = RollRequest::vouched(&keys, point, old);
    request.prove_held(&next.signing_key, exporter);
    request.tls_possession = next.identity.sign(&request.tls_message(exporter))?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = crate::secrecy::wipes::<NextKeysText>();

    #[test]
    fn next_keys_come_back_from_their_text() {
        let next = NextKeys::generate().unwrap();
        let back = NextKeys::from_text(&next.to_text().unwrap()).unwrap();
        assert_eq!(back.identity.key_digest().unwrap(), next.identity.key_digest().unwrap());
        assert_eq!(back.signing_key.to_bytes(), next.signing_key.to_bytes());
        assert_eq!(back.made_seconds, next.made_seconds);
        assert!(NextKeys::from_text("made_seconds = 1").is_err());
    }

    #[test]
    fn keys_are_due_a_month_before_their_age() {
        let due = |age_days| KeySettings { age_days, ..KeySettings::default() }.due_seconds(1000);
        assert_eq!(due(365), Some(1000 + 335 * DAY_SECONDS));
        assert_eq!(due(31), Some(1000 + 31 * DAY_SECONDS / 2));
        assert_eq!(due(0), None);
    }

    #[test]
    fn what_was_written_meanwhile_stays() {
        let mut settings = KeySettings { server_serial: 3, ..KeySettings::default() };
        settings.add_former(PublicKey([1; 32]));
        let written = KeySettings {
            made_seconds: 9,
            former: vec![PublicKey([1; 32]), PublicKey([2; 32])],
            server_serial: 2,
            ..KeySettings::default()
        };
        settings.merge(written);
        assert_eq!((settings.made_seconds, settings.server_serial), (9, 3));
        assert_eq!(settings.former, [PublicKey([1; 32]), PublicKey([2; 32])]);
    }
}
