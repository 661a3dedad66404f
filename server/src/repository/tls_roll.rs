//! This server's TLS key is replaced before a set age, and those of other servers are followed.
//!
//! 1. The next key is made and kept aside, whole. *Crash: the next start finds that nothing was
//!    decided about it, and removes it.*
//! 2. Row and ledger entry, in one decision: from here on it is this server's key. *Crash: the next
//!    start finds both, and goes on with 3.*
//! 3. It takes the place of the present one on the disk, and new connections are shown it. *Crash:
//!    done.* Connections that are open stay as they are.
//!
//! Clients and other servers pin the key that they met last. They follow a key with a higher number
//! for which the ledger key vouches (`strongroom_protocol::vouch`), so nobody need be told. Tokens
//! name the key of the time when they were made, and are made anew.

use std::sync::Arc;

use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, TlsKeyDigest};
use strongroom_protocol::message::Identity;
use strongroom_protocol::vouch::ServerTls;

use crate::error::ServerError;
use crate::feeds::FeedRow;
use crate::principal_row::PrincipalRow;
use crate::replica_rows::Enrolment;
use crate::repository::Repository;
use crate::repository::feeding::read_feed;
use crate::server_keys::ServerKeys;
use crate::store::Store;
use crate::store::schema::Family;

/// Row of family `policies` that says which TLS key this server has, and since when.
const TLS_ROW: &[u8] = b"tls-key";
const NOWHERE: NamespaceId = NamespaceId([0; 32]);

/// Which TLS key this server has, and since when.
struct TlsRow {
    tls: ServerTls,
    /// Milliseconds since 1970.
    since_ms: u64,
}

impl TlsRow {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RTL1");
        out.raw(&self.tls.tls_key.0).u64(self.tls.serial).u64(self.since_ms);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("TLS row", bytes);
        reader.magic(b"RTL1")?;
        let tls = ServerTls { tls_key: TlsKeyDigest(reader.array()?), serial: reader.u64()? };
        let row = Self { tls, since_ms: reader.u64()? };
        reader.finish()?;
        Ok(row)
    }

    fn read(store: &Store) -> Result<Option<Self>, ServerError> {
        let value = store.get(Family::Policies, TLS_ROW)?;
        Ok(value.map(|value| Self::decode(&value)).transpose()?)
    }
}

impl Repository {
    /// Who this server is.
    pub fn identity(&self) -> Identity {
        self.keys.identity()
    }

    /// At a start: finishes what a crash left of a replacement. A key that is not the one that was
    /// decided, because somebody put back an older copy, is followed by nobody and is replaced at
    /// once. The age of a key that has no row counts from here.
    pub(super) fn settle_tls_key(&self) -> Result<(), ServerError> {
        let row = TlsRow::read(&self.store)?;
        match (ServerKeys::next(&self.folder)?, &row) {
            (Some(next), Some(row)) if row.tls == next => self.keys.show_next(&self.folder)?,
            (Some(_), _) => ServerKeys::discard_next(&self.folder)?,
            (None, _) => ServerKeys::remove_first(&self.folder)?,
        }
        let tls = self.keys.tls();
        if let Some(row) = row {
            if row.tls != tls {
                tracing::warn!("an older copy of the TLS key was put back; it is replaced");
                self.roll_tls_key()?;
            }
            return Ok(());
        }
        self.writer.decide(move |decision| {
            let row = TlsRow { tls, since_ms: decision.now_ms };
            decision.batch.put(Family::Policies, TLS_ROW, row.encode());
            Ok(())
        })
    }

    /// Replaces the TLS key, if it is as old as the configuration allows.
    pub fn roll_tls_key_if_due(&self) -> Result<(), ServerError> {
        let age_max = u64::try_from(self.config.keys.tls_age.0.as_millis()).unwrap_or(u64::MAX);
        let since_ms = TlsRow::read(&self.store)?.map_or(0, |row| row.since_ms);
        if age_max == 0 || self.clock.wall_ms().saturating_sub(since_ms) < age_max {
            return Ok(());
        }
        self.roll_tls_key().map(drop)
    }

    /// Replaces the TLS key now; gives the new one.
    pub fn roll_tls_key(&self) -> Result<ServerTls, ServerError> {
        let _one = self.rolling_tls.lock();
        let known = TlsRow::read(&self.store)?.map_or(0, |row| row.tls.serial);
        let serial = self.keys.tls().serial.max(known).saturating_add(1);
        let next = ServerKeys::make_next(&self.folder, &self.identification.hosts, serial)?;
        self.writer.decide(move |decision| {
            let row = TlsRow { tls: next, since_ms: decision.now_ms };
            decision.batch.put(Family::Policies, TLS_ROW, row.encode());
            let ServerTls { tls_key, serial } = next;
            decision.enter(PrincipalId::LOCAL, NOWHERE, Event::TlsKeyRolled { tls_key, serial });
            Ok(())
        })?;
        self.keys.show_next(&self.folder)?;
        tracing::info!(serial = next.serial, tls_key = %next.tls_key, "another TLS key is shown");
        Ok(next)
    }

    /// Pins another TLS key of a primary, which its ledger key vouched for.
    pub fn follow_primary_key(
        &self,
        primary: &Enrolment,
        next: ServerTls,
    ) -> Result<(), ServerError> {
        self.change_primary(primary, move |decision, row| {
            if next.serial > row.tls_serial {
                (row.tls_key, row.tls_serial) = (next.tls_key, next.serial);
                let (ledger_key, ServerTls { tls_key, serial }) = (row.ledger_key, next);
                let event = Event::PeerKeyFollowed { ledger_key, tls_key, serial };
                decision.enter(row.actor(), NOWHERE, event);
            }
            Ok(())
        })
    }

    /// Pins another TLS key of a server that connections are lent to, which its ledger key vouched
    /// for: whoever holds it may ask over them from now on, and the old one nothing more.
    pub fn follow_feed_key(
        self: &Arc<Self>,
        name: &Label,
        known: &FeedRow,
        next: ServerTls,
    ) -> Result<(), ServerError> {
        let (repository, name, known) = (self.clone(), name.clone(), known.clone());
        self.writer.decide(move |decision| {
            let row = read_feed(decision.store, &name)?;
            let key = PrincipalRow::key(&row.principal);
            let principal = decision.store.get(Family::Principals, &key)?;
            let principal = principal.map(|value| PrincipalRow::decode(&value)).transpose()?;
            let standing = principal.filter(|principal| principal.revoked_ms == 0);
            let is_same = row.principal == known.principal && next.serial > row.tls_serial;
            let (Some(principal), true) = (standing, is_same) else { return Ok(()) };
            if repository.registry.is_taken(&next.tls_key) {
                let message = format!("the new TLS key of {name} is a principal here already");
                return Err(ServerError::Operator(message));
            }
            let keys_ms = decision.now_ms;
            let principal = PrincipalRow { tls_key: next.tls_key, keys_ms, ..principal };
            let ServerTls { tls_key, serial } = next;
            let row = FeedRow { tls_key, tls_serial: serial, ..row };
            decision.batch.put(Family::Principals, key, principal.encode());
            decision.batch.put(Family::Feeds, FeedRow::key(&name), row.encode());
            let event = Event::PeerKeyFollowed { ledger_key: row.ledger_key, tls_key, serial };
            decision.enter(row.principal, NOWHERE, event);
            repository.registry.replace_keys(row.principal, &principal);
            Ok(())
        })
    }
}
