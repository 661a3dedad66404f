//! Ledger entries: one for every decision about data.
//!
//! ```text
//! "SRL1" | server time u64 (ms) | retention time u64 (s) | actor principal(16) | ns_id(32)
//!   | event u8 | fields of the event
//! ```
//!
//! The actor is zeros for commands given on the server, the namespace zeros for events of the
//! whole repository. Entries hold no personal data and no secret.

use crate::codec::{DecodeError, Reader, Writer};
pub use crate::event::{ClockEvent, ClosedCause, Event, Wish};
use crate::id::{
    DescriptorDigest, NamespaceId, PrincipalId, PublicKey, RecordDigest, RepositoryId,
    SealedDigest, TlsKeyDigest, TokenId,
};
use crate::limits::ENTRY_MAX_BYTES;
use crate::policy::{Quota, read_rule, write_rule};
use crate::proposal::Verdict;
use crate::retention::{Lock, RetentionMode};
use crate::role::Role;

const MAGIC: &[u8; 4] = b"SRL1";
const WHAT: &str = "ledger entry";

/// One leaf of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The server's wall clock, milliseconds since 1970.
    pub server_time_ms: u64,
    /// The retention clock, seconds since 1970.
    pub retention_time_seconds: u64,
    /// Who caused it.
    pub actor: PrincipalId,
    /// Where.
    pub namespace: NamespaceId,
    /// What.
    pub event: Event,
}

impl Entry {
    /// The encoding, which is the leaf's data.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.u64(self.server_time_ms).u64(self.retention_time_seconds);
        out.raw(&self.actor.0).raw(&self.namespace.0);
        write_event(&mut out, &self.event);
        out.finish()
    }

    /// Decodes an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > ENTRY_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let entry = Self {
            server_time_ms: reader.u64()?,
            retention_time_seconds: reader.u64()?,
            actor: PrincipalId(reader.array()?),
            namespace: NamespaceId(reader.array()?),
            event: read_event(&mut reader)?,
        };
        reader.finish()?;
        Ok(entry)
    }
}

fn write_event(out: &mut Writer, event: &Event) {
    match event {
        Event::Initialised { repository, ledger_key, tls_key } => {
            out.u8(1).raw(&repository.0).raw(&ledger_key.0).raw(&tls_key.0);
        }
        Event::TokenMade { token, role, expires_seconds } => {
            out.u8(2).raw(&token.0).u8(role.code()).u64(*expires_seconds);
        }
        Event::NamespaceCreated { descriptor, rule } => {
            out.u8(3).raw(&descriptor.0);
            write_rule(out, rule);
        }
        Event::Enrolled { principal, role, tls_key, signing_key, token } => {
            out.u8(4).raw(&principal.0).u8(role.code());
            out.raw(&tls_key.0).raw(&signing_key.0).raw(&token.0);
        }
        Event::Revoked { principal } => {
            out.u8(5).raw(&principal.0);
        }
        Event::Committed { commit, record, root, sequence, lock } => {
            out.u8(6).u64(*commit).raw(&record.0).raw(&root.0).u64(*sequence);
            write_lock(out, lock);
        }
        Event::Forgotten { record, commit, lock, proposal } => {
            out.u8(7).raw(&record.0).u64(*commit);
            write_lock(out, lock);
            out.u64(*proposal);
        }
        Event::Refused { record, wish, lock } => {
            out.u8(8).raw(&record.0).u8(wish.code());
            write_lock(out, lock);
        }
        Event::RecordRead { record } => {
            out.u8(9).raw(&record.0);
        }
        later => write_later_event(out, later),
    }
}

/// Events of retention, clock and collection.
fn write_later_event(out: &mut Writer, event: &Event) {
    match event {
        Event::Retained { record, lock } => {
            out.u8(10).raw(&record.0);
            write_lock(out, lock);
        }
        Event::HoldPlaced { record, reason } => {
            out.u8(11).raw(&record.0).raw(reason);
        }
        Event::HoldReleased { record, reason } => {
            out.u8(12).raw(&record.0).raw(reason);
        }
        Event::PolicySet { policy, rule, quota } => {
            out.u8(13).raw(policy);
            write_rule(out, rule);
            out.u64(quota.bytes).u64(quota.snapshots);
        }
        Event::NamespaceDropped => {
            out.u8(14);
        }
        Event::Proposed { operation, parameters, state, nonce, expires_ms } => {
            out.u8(15).u8(*operation).raw(parameters).raw(state).raw(nonce).u64(*expires_ms);
        }
        Event::Decided { proposal, verdict, meaning, signature } => {
            out.u8(16).u64(*proposal).u8(verdict.code()).raw(meaning).raw(signature);
        }
        Event::Clock { event, amount_ms } => {
            out.u8(17).u8(event.code()).u64(*amount_ms);
        }
        Event::CollectionIntended { generation, dead_count, reap_count, reap_digest } => {
            out.u8(18).u64(*generation).u64(*dead_count).u64(*reap_count).raw(reap_digest);
        }
        Event::Collected { generation, quarantined_count, reaped_count, reaped_bytes } => {
            out.u8(19).u64(*generation).u64(*quarantined_count);
            out.u64(*reaped_count).u64(*reaped_bytes);
        }
        Event::SegmentDropIntended { segment, table } => {
            out.u8(20).u32(*segment).raw(table);
        }
        Event::SegmentDropped { segment, file_bytes } => {
            out.u8(21).u32(*segment).u64(*file_bytes);
        }
        Event::Configured { configuration } => {
            out.u8(22).raw(configuration);
        }
        other => write_replica_event(out, other),
    }
}

/// Events of replication and descriptors.
fn write_replica_event(out: &mut Writer, event: &Event) {
    match event {
        Event::PrimaryAdded { ledger_key, tls_key, principal } => {
            out.u8(23).raw(&ledger_key.0).raw(&tls_key.0).raw(&principal.0);
        }
        Event::FeedAdded { ledger_key, tls_key, principal } => {
            out.u8(29).raw(&ledger_key.0).raw(&tls_key.0).raw(&principal.0);
        }
        Event::PrimaryFollowed { ledger_key, size, root } => {
            out.u8(24).raw(&ledger_key.0).u64(*size).raw(root);
        }
        Event::PrimaryRefused { ledger_key, known_size, known_root, shown_size } => {
            out.u8(25).raw(&ledger_key.0).u64(*known_size).raw(known_root).u64(*shown_size);
        }
        Event::PrimaryRemoved { ledger_key } => {
            out.u8(26).raw(&ledger_key.0);
        }
        Event::DescriptorTaken { descriptor, version } => {
            out.u8(27).raw(&descriptor.0).u64(*version);
        }
        Event::DescriptorRefused { ledger_key, descriptor, version } => {
            out.u8(28).raw(&ledger_key.0).raw(&descriptor.0).u64(*version);
        }
        newer => write_newer_event(out, newer),
    }
}

/// Events of exports, and of approvals that came to nothing.
fn write_newer_event(out: &mut Writer, event: &Event) {
    match event {
        Event::Exported { namespace_count, namespaces } => {
            out.u8(33).u32(*namespace_count).raw(namespaces);
        }
        Event::Imported { ledger_key, size, root } => {
            out.u8(34).raw(&ledger_key.0).u64(*size).raw(root);
        }
        Event::FilterSet { ledger_key, names } => {
            out.u8(36).raw(&ledger_key.0).raw(names);
        }
        Event::NamespaceReadmitted { ledger_key } => {
            out.u8(37).raw(&ledger_key.0);
        }
        Event::NotCarriedOut { proposal, cause } => {
            out.u8(38).u64(*proposal).u8(cause.code());
        }
        later => write_key_event(out, later),
    }
}

/// Events of keys that roll over, and of epochs.
fn write_key_event(out: &mut Writer, event: &Event) {
    match event {
        Event::KeysRolled { principal, tls_key, signing_key, vouch } => {
            out.u8(39).raw(&principal.0).raw(&tls_key.0).raw(&signing_key.0).raw(vouch);
        }
        Event::TlsKeyRolled { tls_key, serial } => {
            out.u8(40).raw(&tls_key.0).u64(*serial);
        }
        Event::PeerKeyFollowed { ledger_key, tls_key, serial } => {
            out.u8(41).raw(&ledger_key.0).raw(&tls_key.0).u64(*serial);
        }
        Event::RecordRefused { ledger_key, record, leaf, epoch } => {
            out.u8(42).raw(&ledger_key.0).raw(&record.0).u64(*leaf).u32(*epoch);
        }
        later => write_damage_event(out, later),
    }
}

/// Events of damage and repair.
fn write_damage_event(out: &mut Writer, event: &Event) {
    match event {
        Event::Damaged { count, digests } => {
            out.u8(30).u64(*count).raw(digests);
        }
        Event::Repaired { count, digests, from } => {
            out.u8(31).u64(*count).raw(digests).raw(&from.0);
        }
        Event::Scrubbed { pass, envelope_count, bytes, damaged_count } => {
            out.u8(32).u64(*pass).u64(*envelope_count).u64(*bytes).u64(*damaged_count);
        }
        // The others are written by the callers.
        _ => {}
    }
}

fn read_event(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    Ok(match reader.u8()? {
        1 => Event::Initialised {
            repository: RepositoryId(reader.array()?),
            ledger_key: PublicKey(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
        },
        2 => Event::TokenMade {
            token: TokenId(reader.array()?),
            role: read_role(reader)?,
            expires_seconds: reader.u64()?,
        },
        3 => Event::NamespaceCreated {
            descriptor: DescriptorDigest(reader.array()?),
            rule: read_rule(reader)?,
        },
        4 => Event::Enrolled {
            principal: PrincipalId(reader.array()?),
            role: read_role(reader)?,
            tls_key: TlsKeyDigest(reader.array()?),
            signing_key: PublicKey(reader.array()?),
            token: TokenId(reader.array()?),
        },
        5 => Event::Revoked { principal: PrincipalId(reader.array()?) },
        6 => Event::Committed {
            commit: reader.u64()?,
            record: RecordDigest(reader.array()?),
            root: SealedDigest(reader.array()?),
            sequence: reader.u64()?,
            lock: read_lock(reader)?,
        },
        7 => Event::Forgotten {
            record: RecordDigest(reader.array()?),
            commit: reader.u64()?,
            lock: read_lock(reader)?,
            proposal: reader.u64()?,
        },
        8 => Event::Refused {
            record: RecordDigest(reader.array()?),
            wish: read_wish(reader)?,
            lock: read_lock(reader)?,
        },
        9 => Event::RecordRead { record: RecordDigest(reader.array()?) },
        code => return read_later_event(reader, code),
    })
}

fn read_later_event(reader: &mut Reader<'_>, code: u8) -> Result<Event, DecodeError> {
    Ok(match code {
        10 => Event::Retained { record: RecordDigest(reader.array()?), lock: read_lock(reader)? },
        11 => Event::HoldPlaced { record: RecordDigest(reader.array()?), reason: reader.array()? },
        12 => {
            Event::HoldReleased { record: RecordDigest(reader.array()?), reason: reader.array()? }
        }
        13 => Event::PolicySet {
            policy: reader.array()?,
            rule: read_rule(reader)?,
            quota: Quota { bytes: reader.u64()?, snapshots: reader.u64()? },
        },
        14 => Event::NamespaceDropped,
        15 => Event::Proposed {
            operation: reader.u8()?,
            parameters: reader.array()?,
            state: reader.array()?,
            nonce: reader.array()?,
            expires_ms: reader.u64()?,
        },
        16 => Event::Decided {
            proposal: reader.u64()?,
            verdict: Verdict::from_code(reader.u8()?).ok_or(DecodeError::Value("verdict"))?,
            meaning: reader.array()?,
            signature: reader.array()?,
        },
        17 => Event::Clock { event: read_clock_event(reader)?, amount_ms: reader.u64()? },
        18 => Event::CollectionIntended {
            generation: reader.u64()?,
            dead_count: reader.u64()?,
            reap_count: reader.u64()?,
            reap_digest: reader.array()?,
        },
        19 => Event::Collected {
            generation: reader.u64()?,
            quarantined_count: reader.u64()?,
            reaped_count: reader.u64()?,
            reaped_bytes: reader.u64()?,
        },
        20 => Event::SegmentDropIntended { segment: reader.u32()?, table: reader.array()? },
        21 => Event::SegmentDropped { segment: reader.u32()?, file_bytes: reader.u64()? },
        22 => Event::Configured { configuration: reader.array()? },
        code => return read_replica_event(reader, code),
    })
}

fn read_replica_event(reader: &mut Reader<'_>, code: u8) -> Result<Event, DecodeError> {
    Ok(match code {
        23 => Event::PrimaryAdded {
            ledger_key: PublicKey(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
            principal: PrincipalId(reader.array()?),
        },
        29 => Event::FeedAdded {
            ledger_key: PublicKey(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
            principal: PrincipalId(reader.array()?),
        },
        24 => Event::PrimaryFollowed {
            ledger_key: PublicKey(reader.array()?),
            size: reader.u64()?,
            root: reader.array()?,
        },
        25 => Event::PrimaryRefused {
            ledger_key: PublicKey(reader.array()?),
            known_size: reader.u64()?,
            known_root: reader.array()?,
            shown_size: reader.u64()?,
        },
        26 => Event::PrimaryRemoved { ledger_key: PublicKey(reader.array()?) },
        27 => Event::DescriptorTaken {
            descriptor: DescriptorDigest(reader.array()?),
            version: reader.u64()?,
        },
        28 => Event::DescriptorRefused {
            ledger_key: PublicKey(reader.array()?),
            descriptor: DescriptorDigest(reader.array()?),
            version: reader.u64()?,
        },
        code => return read_newer_event(reader, code),
    })
}

fn read_newer_event(reader: &mut Reader<'_>, code: u8) -> Result<Event, DecodeError> {
    Ok(match code {
        33 => Event::Exported { namespace_count: reader.u32()?, namespaces: reader.array()? },
        34 => Event::Imported {
            ledger_key: PublicKey(reader.array()?),
            size: reader.u64()?,
            root: reader.array()?,
        },
        36 => Event::FilterSet { ledger_key: PublicKey(reader.array()?), names: reader.array()? },
        37 => Event::NamespaceReadmitted { ledger_key: PublicKey(reader.array()?) },
        38 => Event::NotCarriedOut { proposal: reader.u64()?, cause: read_cause(reader)? },
        code => return read_key_event(reader, code),
    })
}

fn read_key_event(reader: &mut Reader<'_>, code: u8) -> Result<Event, DecodeError> {
    Ok(match code {
        39 => Event::KeysRolled {
            principal: PrincipalId(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
            signing_key: PublicKey(reader.array()?),
            vouch: reader.array()?,
        },
        40 => Event::TlsKeyRolled { tls_key: TlsKeyDigest(reader.array()?), serial: reader.u64()? },
        41 => Event::PeerKeyFollowed {
            ledger_key: PublicKey(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
            serial: reader.u64()?,
        },
        42 => Event::RecordRefused {
            ledger_key: PublicKey(reader.array()?),
            record: RecordDigest(reader.array()?),
            leaf: reader.u64()?,
            epoch: reader.u32()?,
        },
        code => return read_damage_event(reader, code),
    })
}

fn read_damage_event(reader: &mut Reader<'_>, code: u8) -> Result<Event, DecodeError> {
    Ok(match code {
        30 => Event::Damaged { count: reader.u64()?, digests: reader.array()? },
        31 => Event::Repaired {
            count: reader.u64()?,
            digests: reader.array()?,
            from: PublicKey(reader.array()?),
        },
        32 => Event::Scrubbed {
            pass: reader.u64()?,
            envelope_count: reader.u64()?,
            bytes: reader.u64()?,
            damaged_count: reader.u64()?,
        },
        _ => return reader.refuse(),
    })
}

/// Writes a lock: `mode u8 | until u64 | until by the wall clock u64 | held u8`. Rows of the
/// server use the same bytes.
pub fn write_lock(out: &mut Writer, lock: &Lock) {
    out.u8(lock.mode.code()).u64(lock.until_seconds).u64(lock.until_wall_seconds);
    out.bool(lock.is_held);
}

/// Reads a lock.
pub fn read_lock(reader: &mut Reader<'_>) -> Result<Lock, DecodeError> {
    let mode = RetentionMode::from_code(reader.u8()?);
    Ok(Lock {
        mode: mode.ok_or(DecodeError::Value("retention mode"))?,
        until_seconds: reader.u64()?,
        until_wall_seconds: reader.u64()?,
        is_held: reader.bool()?,
    })
}

fn read_wish(reader: &mut Reader<'_>) -> Result<Wish, DecodeError> {
    let code = reader.u8()?;
    Wish::ALL.into_iter().find(|wish| wish.code() == code).ok_or(DecodeError::Value("wish"))
}

fn read_cause(reader: &mut Reader<'_>) -> Result<ClosedCause, DecodeError> {
    let code = reader.u8()?;
    let cause = ClosedCause::ALL.into_iter().find(|cause| cause.code() == code);
    cause.ok_or(DecodeError::Value("cause"))
}

fn read_clock_event(reader: &mut Reader<'_>) -> Result<ClockEvent, DecodeError> {
    let code = reader.u8()?;
    let event = ClockEvent::ALL.into_iter().find(|event| event.code() == code);
    event.ok_or(DecodeError::Value("clock event"))
}

fn read_role(reader: &mut Reader<'_>) -> Result<Role, DecodeError> {
    Role::from_code(reader.u8()?).ok_or(DecodeError::Value("role"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of event with the number of bytes behind its code, as docs/format.md has them.
    const KINDS: [(u8, usize); 41] = [
        (1, 80),
        (2, 25),
        (3, 65),
        (4, 97),
        (5, 16),
        (6, 98),
        (7, 66),
        (8, 51),
        (9, 32),
        (10, 50),
        (11, 64),
        (12, 64),
        (13, 81),
        (14, 0),
        (15, 89),
        (16, 105),
        (17, 9),
        (18, 56),
        (19, 32),
        (20, 36),
        (21, 12),
        (22, 32),
        (23, 80),
        (24, 72),
        (25, 80),
        (26, 32),
        (27, 40),
        (28, 72),
        (29, 80),
        (30, 40),
        (31, 72),
        (32, 32),
        (33, 36),
        (34, 72),
        (36, 64),
        (37, 32),
        (38, 9),
        (39, 144),
        (40, 40),
        (41, 72),
        (42, 76),
    ];

    /// An entry whose fields hold nothing but ones, which all of them allow.
    fn of_ones(code: u8, length: usize) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&[1; 64]).u8(code).raw(&vec![1; length]);
        out.finish()
    }

    #[test]
    fn every_kind_of_entry_comes_back_and_has_one_length() {
        for code in 0..=u8::MAX {
            let expected =
                KINDS.iter().find(|(known, _)| *known == code).map(|(_, length)| *length);
            let mut lengths = Vec::new();
            for length in 0..150 {
                let bytes = of_ones(code, length);
                if let Ok(entry) = Entry::decode(&bytes) {
                    assert_eq!(entry.encode(), bytes, "{code}");
                    lengths.push(length);
                }
            }
            assert_eq!(lengths, Vec::from_iter(expected), "{code}");
        }
    }

    #[test]
    fn an_entry_over_the_bound_is_not_looked_at() {
        let max = usize::try_from(ENTRY_MAX_BYTES).unwrap();
        assert_eq!(Entry::decode(&vec![0; max]), Err(DecodeError::Magic(WHAT)));
        assert_eq!(Entry::decode(&vec![0; max + 1]), Err(DecodeError::TooLong(WHAT)));
        assert_eq!(Entry::decode(&vec![0; max + 2]), Err(DecodeError::TooLong(WHAT)));
    }

    #[test]
    fn the_last_code_of_each_choice_comes_back_and_the_next_is_refused() {
        // Code of the event, place of the field behind it, the field's last code.
        for (code, at, last) in
            [(2, 16, 7), (8, 32, 3), (10, 32, 2), (16, 8, 2), (17, 0, 11), (38, 8, 2)]
        {
            let length = KINDS.iter().find(|(known, _)| *known == code).unwrap().1;
            let mut bytes = of_ones(code, length);
            let field = 4 + 64 + 1 + at;
            bytes[field] = last;
            assert_eq!(Entry::decode(&bytes).unwrap().encode(), bytes, "{code}");
            bytes[field] = last + 1;
            assert!(matches!(Entry::decode(&bytes), Err(DecodeError::Value(_))), "{code}");
        }
    }
}
