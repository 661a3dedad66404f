//! How a client follows its server's next TLS key: the ledger key, which stays, vouches for it.
//!
//! A server that shows another key than the pinned one is asked who it is, over a connection on
//! which nothing else is sent or believed. If the pinned ledger key vouches for the key of that
//! very connection, with a higher number than that of the pinned one, it is pinned from then on, on
//! disk before it is used. An older key, with whatever vouch, is never followed.

use std::fmt;
use std::sync::Arc;

use strongroom_protocol::id::{PublicKey, TlsKeyDigest};
use strongroom_protocol::message::Identity;
use strongroom_protocol::vouch::ServerTls;

use crate::error::ClientError;

/// Writes down that another key is pinned from now on.
pub type Keep = Arc<dyn Fn(ServerTls) -> Result<(), ClientError> + Send + Sync>;

/// Which keys are followed.
#[derive(Clone)]
pub struct Follow {
    /// The server's ledger key.
    pub ledger_key: PublicKey,
    /// The TLS key that is pinned.
    pub pinned: ServerTls,
    /// Writes the next one down.
    pub keep: Keep,
}

impl Follow {
    /// The key that was met, if it may stand in the place of the pinned one by what the server
    /// says.
    pub fn successor(&self, said: &Identity, met: TlsKeyDigest) -> Result<ServerTls, ClientError> {
        if let Some(next) = self.pinned.successor(said, &self.ledger_key, met) {
            return Ok(next);
        }
        let older = ServerTls::vouched_by(said, &self.ledger_key, met);
        Err(ClientError::Untrusted(match older {
            Some(older) => format!(
                "the server shows its older TLS key (number {} after number {}): an old copy of it \
                 runs, or somebody has stolen that key and poses as the server; do not go on \
                 before its operator explains why",
                older.serial, self.pinned.serial
            ),
            None => {
                "the server's TLS key is not the pinned one, and its ledger key does not vouch \
                     for it; do not go on before its operator explains why"
                    .into()
            }
        }))
    }
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow").field("pinned", &self.pinned).finish_non_exhaustive()
    }
}
