//! How this server dials one primary: with which of its own keys, and which key it demands there.
//! Both may become others while connections are open.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ClientConfig;
use strongroom_protocol::id::{PublicKey, TlsKeyDigest};
use strongroom_protocol::vouch::ServerTls;

use super::keys::PeerKeys;
use crate::error::ServerError;
use crate::key_gates::KeyGate;
use crate::tls::{client_config, open_config};

/// A primary that this server dials.
pub struct Dialling {
    /// `host:port`, several with commas.
    pub addresses: String,
    /// How its next TLS key is followed.
    pub follow: Option<Mutex<Follow>>,
    /// How this server's own keys become others.
    pub renewal: Option<Renewal>,
    showing: Mutex<Showing>,
}

/// How the primary's next TLS key is followed.
pub struct Follow {
    /// The primary's ledger key, which vouches for it.
    pub ledger_key: PublicKey,
    /// The TLS key that is pinned.
    pub pinned: ServerTls,
    /// Writes the next one down.
    pub keep: Keep,
}

/// Writes down that another key is pinned from now on.
pub type Keep = Arc<dyn Fn(ServerTls) -> Result<(), ServerError> + Send + Sync>;

/// How this server's keys for the primary become others.
pub struct Renewal {
    /// Whoever sends passes it.
    pub gate: Arc<KeyGate>,
    /// Loads the keys of now.
    pub load: Load,
}

/// Loads keys.
pub type Load = Arc<dyn Fn() -> Result<PeerKeys, ServerError> + Send + Sync>;

/// What is shown to the primary now.
struct Showing {
    keys: PeerKeys,
    tls: Arc<ClientConfig>,
    pin: TlsKeyDigest,
    /// Which turn at the gate; nothing before the first.
    turn: Option<u64>,
}

impl Dialling {
    /// With these keys, and the pin of the primary's.
    pub fn new(addresses: &str, keys: &PeerKeys, pin: TlsKeyDigest) -> Result<Self, ServerError> {
        let (keys, tls) = (keys.copy(), configured(keys, pin)?);
        Ok(Self {
            addresses: addresses.to_owned(),
            follow: None,
            renewal: None,
            showing: Mutex::new(Showing { keys, tls, pin, turn: None }),
        })
    }

    /// How is dialled now, and which turn that is.
    pub fn shown(&self) -> (Arc<ClientConfig>, Option<u64>) {
        let showing = self.showing.lock();
        (showing.tls.clone(), showing.turn)
    }

    /// The same, to whoever answers.
    pub fn open(&self) -> Result<Arc<ClientConfig>, ServerError> {
        let keys = self.showing.lock().keys.copy();
        open_config(keys.certificate, keys.tls_key)
    }

    /// Shows these keys from now on. What was dialled with others may not be used again.
    pub fn show(&self, keys: PeerKeys, turn: u64) -> Result<(), ServerError> {
        let mut showing = self.showing.lock();
        if showing.turn == Some(turn) {
            return Ok(());
        }
        let (tls, pin) = (configured(&keys, showing.pin)?, showing.pin);
        *showing = Showing { keys, tls, pin, turn: Some(turn) };
        Ok(())
    }

    /// Demands another key of the primary from now on.
    pub fn pin(&self, pin: TlsKeyDigest) -> Result<Arc<ClientConfig>, ServerError> {
        let mut showing = self.showing.lock();
        showing.tls = configured(&showing.keys, pin)?;
        showing.pin = pin;
        Ok(showing.tls.clone())
    }
}

fn configured(keys: &PeerKeys, pin: TlsKeyDigest) -> Result<Arc<ClientConfig>, ServerError> {
    client_config(keys.certificate.clone(), keys.tls_key.clone_key(), pin)
}
