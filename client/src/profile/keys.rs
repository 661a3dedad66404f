//! A profile's keys as they become others: their age, those that are to take their place, the
//! server's next TLS key. `rolling.rs` argues the order in which files are written.

use std::fs::File;

use strongroom_protocol::id::{PublicKey, to_hex};
use strongroom_protocol::vouch::ServerTls;
use zeroize::Zeroizing;

use super::{Profile, ProfileFolder, SETTINGS_MAX_BYTES, secret_text};
use crate::clock;
use crate::durable;
use crate::error::ClientError;
use crate::keys::public_key_of;
use crate::rolling::NextKeys;

impl ProfileFolder {
    /// The keys that are to take the place of this profile's.
    pub fn next_keys(&self) -> Result<Option<NextKeys>, ClientError> {
        let path = self.path("next-keys");
        match durable::read_if_there(&path, SETTINGS_MAX_BYTES)? {
            Some(bytes) => NextKeys::from_text(&secret_text(&path, bytes)?).map(Some),
            None => Ok(None),
        }
    }

    /// Keeps next keys until they are in use.
    pub fn write_next_keys(&self, next: &NextKeys) -> Result<(), ClientError> {
        durable::write(&self.path("next-keys"), next.to_text()?.as_bytes())
    }

    /// Forgets next keys that the server did not take.
    pub fn remove_next_keys(&self) -> Result<(), ClientError> {
        durable::remove(&self.path("next-keys"))
    }

    /// Has the keys alone, to change them; nothing, while a run of this profile uses them.
    pub fn keys_alone(&self) -> Result<Option<File>, ClientError> {
        durable::lock_alone(&self.path("keys.lock"))
    }

    /// Pins another TLS key of the server with this ledger key; an older one changes nothing.
    pub fn follow(&self, ledger_key: PublicKey, next: ServerTls) -> Result<(), ClientError> {
        let mut profile = Profile::open(self.clone())?;
        if profile.settings.ledger_key == ledger_key {
            profile.settings.pin(next);
            profile.save()?;
        }
        Ok(())
    }
}

impl Profile {
    /// When this machine's keys were made, seconds since 1970.
    pub fn keys_made_seconds(&self) -> u64 {
        if self.settings.keys.made_seconds > 0 {
            return self.settings.keys.made_seconds;
        }
        // Profiles of before did not write it down.
        clock::modified_seconds(&self.folder.path("tls.crt")).unwrap_or(0)
    }

    /// From when on the keys are rolled over, seconds since 1970; nothing for never.
    pub fn keys_due_seconds(&self) -> Option<u64> {
        self.settings.keys.due_seconds(self.keys_made_seconds())
    }

    /// Puts keys that the server has taken in the place of this profile's. Done again after a
    /// crash, it changes nothing that was done.
    pub fn adopt(&mut self, next: &NextKeys) -> Result<(), ClientError> {
        let folder = &self.folder;
        let old = public_key_of(&folder.signing_key()?);
        if old != public_key_of(&next.signing_key) {
            self.settings.keys.add_former(old);
        }
        self.settings.keys.made_seconds = next.made_seconds;
        let turn = self.folder.lock()?;
        self.save_changed(|settings| settings.keys.made_seconds = next.made_seconds)?;
        drop(turn);
        let folder = &self.folder;
        let seed = Zeroizing::new(format!("{}\n", to_hex(next.signing_key.as_bytes())));
        durable::write(&folder.path("tls.key"), next.identity.key_pem().as_bytes())?;
        durable::write(&folder.path("tls.crt"), next.identity.certificate_pem().as_bytes())?;
        durable::write(&folder.path("signing.key"), seed.as_bytes())?;
        folder.remove_next_keys()
    }

    /// Whether this machine signs, or signed before, with this key.
    pub fn is_own_key(&self, key: &PublicKey) -> Result<bool, ClientError> {
        Ok(self.signing_public_key()? == *key || self.settings.keys.former.contains(key))
    }
}
