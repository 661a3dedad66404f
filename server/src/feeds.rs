//! Servers that this one lends its connections to: their rows, and how lending goes.
//!
//! | family | key | value |
//! |---|---|---|
//! | feeds | name | [`FeedRow`] |

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::id::{Label, PrincipalId, PublicKey, TlsKeyDigest};
use strongroom_protocol::limits::{ADDRESS_MAX_BYTES, LABEL_MAX_BYTES};

/// A server that this one lends its connections to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedRow {
    /// Its name here.
    pub name: Label,
    /// Where it is dialled: `host:port`, several with commas.
    pub addresses: String,
    /// Pin of its TLS key.
    pub tls_key: TlsKeyDigest,
    /// Number of that key there; 0 where it is not known.
    pub tls_serial: u64,
    /// Its ledger key, which names it everywhere.
    pub ledger_key: PublicKey,
    /// What it is here, of role `replica`.
    pub principal: PrincipalId,
    /// Nothing is lent while it is set.
    pub is_paused: bool,
    /// What this server is there, of role `feeder`; not known where an older version enrolled it.
    pub enrolled_as: Option<PrincipalId>,
}

/// How lending to one server goes, in memory.
#[derive(Debug, Clone, Default)]
pub struct FeedProgress {
    /// Connections that are lent now.
    pub lent: u32,
    /// When one was lent last, milliseconds since 1970; 0 if none since the start.
    pub lent_ms: u64,
    /// What went wrong last, in plain words; empty since a connection was lent.
    pub trouble: String,
}

/// A server that connections are lent to, for `feed list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FeedStatus {
    /// Its name here.
    pub name: Label,
    /// Where it is dialled.
    pub addresses: String,
    /// Its ledger key.
    pub ledger_key: PublicKey,
    /// What it is here.
    pub principal: PrincipalId,
    /// Nothing is lent by command.
    pub is_paused: bool,
    /// Its principal was revoked: it may ask nothing, and nothing is lent.
    pub is_revoked: bool,
    /// Connections that are lent now.
    pub lent: u32,
    /// When one was lent last, milliseconds since 1970; 0 if none since the start.
    pub lent_ms: u64,
    /// What went wrong last, in plain words.
    pub trouble: String,
    /// When the keys were made with which this server dials there, milliseconds since 1970.
    #[serde(default)]
    pub keys_ms: Option<u64>,
    /// What is wrong with the age of these keys, in plain words.
    #[serde(default)]
    pub keys_trouble: String,
}

/// How lending to all servers goes.
#[derive(Default)]
pub struct Feeds {
    /// By what each is here, which no later one is again.
    progress: Mutex<BTreeMap<PrincipalId, FeedProgress>>,
}

impl Feeds {
    /// Begins to know of a server; what is known stays.
    pub fn begin(&self, principal: PrincipalId) {
        self.progress.lock().entry(principal).or_default();
    }

    /// How lending to a server goes.
    pub fn progress(&self, principal: &PrincipalId) -> FeedProgress {
        self.progress.lock().get(principal).cloned().unwrap_or_default()
    }

    /// Changes what is known, unless the server was removed; gives how many connections are lent.
    pub fn note(
        &self,
        principal: &PrincipalId,
        change: impl FnOnce(&mut FeedProgress),
    ) -> Option<u32> {
        let mut all = self.progress.lock();
        let progress = all.get_mut(principal)?;
        change(progress);
        Some(progress.lent)
    }

    /// Forgets a server.
    pub fn forget(&self, principal: &PrincipalId) {
        self.progress.lock().remove(principal);
    }
}

impl FeedRow {
    /// Key of a feed.
    pub fn key(name: &Label) -> Vec<u8> {
        name.as_str().as_bytes().to_vec()
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RFD3");
        out.bytes(self.name.as_str().as_bytes()).bytes(self.addresses.as_bytes());
        out.raw(&self.tls_key.0).raw(&self.ledger_key.0).raw(&self.principal.0);
        out.bool(self.is_paused).u64(self.tls_serial);
        out.raw(&self.enrolled_as.unwrap_or(PrincipalId::LOCAL).0);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("feed row", bytes);
        // Rows of before: the first end with the pause, the second with the number of the key.
        let version = bytes.first_chunk().filter(|magic| [b"RFD1", b"RFD2"].contains(magic));
        reader.magic(version.unwrap_or(b"RFD3"))?;
        let name = reader.text(LABEL_MAX_BYTES)?.parse();
        let mut row = Self {
            name: name.map_err(|_| DecodeError::Value("label"))?,
            addresses: reader.text(ADDRESS_MAX_BYTES)?.to_owned(),
            tls_key: TlsKeyDigest(reader.array()?),
            ledger_key: PublicKey(reader.array()?),
            principal: PrincipalId(reader.array()?),
            is_paused: reader.bool()?,
            tls_serial: 0,
            enrolled_as: None,
        };
        if version != Some(b"RFD1") {
            row.tls_serial = reader.u64()?;
        }
        if version.is_none() {
            let id = PrincipalId(reader.array()?);
            row.enrolled_as = Some(id).filter(|id| *id != PrincipalId::LOCAL);
        }
        reader.finish()?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        let row = FeedRow {
            name: "vault".parse().unwrap(),
            addresses: "10.0.0.9:7443".into(),
            tls_key: TlsKeyDigest([1; 32]),
            ledger_key: PublicKey([2; 32]),
            principal: PrincipalId([3; 16]),
            is_paused: true,
            tls_serial: 4,
            enrolled_as: Some(PrincipalId([5; 16])),
        };
        assert_eq!(FeedRow::decode(&row.encode()).unwrap(), row);
        let row = FeedRow { enrolled_as: None, ..row };
        assert_eq!(FeedRow::decode(&row.encode()).unwrap(), row);
        let mut second = row.encode();
        second.truncate(second.len() - 16);
        second[3] = b'2';
        assert_eq!(FeedRow::decode(&second).unwrap(), row);
        let mut first = second;
        first.truncate(first.len() - 8);
        first[3] = b'1';
        assert_eq!(FeedRow::decode(&first).unwrap(), FeedRow { tls_serial: 0, ..row });
    }
}
