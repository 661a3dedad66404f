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
use crate::id::{
    DescriptorDigest, NamespaceId, PrincipalId, PublicKey, RecordDigest, RepositoryId,
    SealedDigest, TlsKeyDigest, TokenId,
};
use crate::limits::ENTRY_MAX_BYTES;
use crate::policy::{Quota, read_rule, write_rule};
use crate::proposal::Verdict;
use crate::retention::{Lock, RetentionMode, RetentionRule};
use crate::role::Role;
use crate::signature::SIGNATURE_BYTES;

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

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// 1: the repository was made.
    Initialised {
        /// Its id.
        repository: RepositoryId,
        /// Its ledger's key.
        ledger_key: PublicKey,
        /// Its first TLS key.
        tls_key: TlsKeyDigest,
    },
    /// 2: an enrolment token was made.
    TokenMade {
        /// Which.
        token: TokenId,
        /// The role that it gives.
        role: Role,
        /// When it ends, seconds since 1970.
        expires_seconds: u64,
    },
    /// 3: a namespace was made by the descriptor of its first client.
    NamespaceCreated {
        /// Its first descriptor.
        descriptor: DescriptorDigest,
        /// Its first retention rule.
        rule: RetentionRule,
    },
    /// 4: a principal was enrolled.
    Enrolled {
        /// Who.
        principal: PrincipalId,
        /// In which role.
        role: Role,
        /// Its TLS key.
        tls_key: TlsKeyDigest,
        /// Its signing key.
        signing_key: PublicKey,
        /// By which token.
        token: TokenId,
    },
    /// 5: a principal was revoked.
    Revoked {
        /// Who.
        principal: PrincipalId,
    },
    /// 6: a snapshot was committed.
    Committed {
        /// Number of the commit, counted per repository from 1.
        commit: u64,
        /// The snapshot.
        record: RecordDigest,
        /// Root of its tree.
        root: SealedDigest,
        /// Its number in its source.
        sequence: u64,
        /// Its lock.
        lock: Lock,
    },
    /// 7: a snapshot was forgotten, after its lock had ended.
    Forgotten {
        /// The snapshot.
        record: RecordDigest,
        /// Number of its commit.
        commit: u64,
        /// When its lock had ended.
        locked_until_seconds: u64,
    },
    /// 8: somebody asked for what the lock, the hold or the clock of a snapshot forbids.
    Refused {
        /// The snapshot.
        record: RecordDigest,
        /// What was asked for.
        wish: Wish,
        /// What keeps it.
        lock: Lock,
    },
    /// 9: a record was handed out to be restored or verified.
    RecordRead {
        /// The snapshot.
        record: RecordDigest,
    },
    /// 10: a lock was extended or its mode raised.
    Retained {
        /// The snapshot.
        record: RecordDigest,
        /// Its lock from now on.
        lock: Lock,
    },
    /// 11: a legal hold was placed.
    HoldPlaced {
        /// The snapshot.
        record: RecordDigest,
        /// BLAKE3 of the reason; the server keeps the reason itself.
        reason: [u8; 32],
    },
    /// 12: a legal hold was released.
    HoldReleased {
        /// The snapshot.
        record: RecordDigest,
        /// BLAKE3 of the reason.
        reason: [u8; 32],
    },
    /// 13: a namespace goes by another policy from now on.
    PolicySet {
        /// Digest of the policy.
        policy: [u8; 32],
        /// Its rule for sources without a class.
        rule: RetentionRule,
        /// Its quota.
        quota: Quota,
    },
    /// 14: a namespace without a snapshot was removed.
    NamespaceDropped,
    /// 15: somebody proposed what takes two.
    Proposed {
        /// Kind of operation ([`crate::proposal::Operation::code`]).
        operation: u8,
        /// Digest of operation and parameters.
        parameters: [u8; 32],
        /// Digest of the state that it was made against.
        state: [u8; 32],
        /// Random, so that equal proposals are different leaves.
        nonce: [u8; 16],
        /// When it ends undecided, milliseconds since 1970.
        expires_ms: u64,
    },
    /// 16: the second principal decided; an approval was carried out in the same write.
    Decided {
        /// The leaf of the proposal.
        proposal: u64,
        /// Yes or no.
        verdict: Verdict,
        /// BLAKE3 of the stated meaning.
        meaning: [u8; 32],
        /// The approver's signature ([`crate::proposal::Approval`]).
        signature: [u8; SIGNATURE_BYTES],
    },
    /// 17: the retention clock saw something.
    Clock {
        /// What.
        event: ClockEvent,
        /// How much, in milliseconds; 0 where there is no amount.
        amount_ms: u64,
    },
    /// 18: a collection cycle is about to quarantine or reap: the intent.
    CollectionIntended {
        /// Number of the cycle.
        generation: u64,
        /// Envelopes that no snapshot, lock or session needs: to be quarantined.
        dead_count: u64,
        /// Envelopes that were dead in an earlier cycle too: to be reaped.
        reap_count: u64,
        /// BLAKE3 over the digests to be reaped, in the order of the index.
        reap_digest: [u8; 32],
    },
    /// 19: a collection cycle is done: the outcome.
    Collected {
        /// Number of the cycle.
        generation: u64,
        /// Envelopes that were quarantined.
        quarantined_count: u64,
        /// Envelopes that were reaped.
        reaped_count: u64,
        /// Their bytes.
        reaped_bytes: u64,
    },
    /// 20: a segment without a live envelope is about to be dropped: the intent.
    SegmentDropIntended {
        /// Number of the segment.
        segment: u32,
        /// Digest of its table.
        table: [u8; 32],
    },
    /// 21: a segment's file is gone: the outcome.
    SegmentDropped {
        /// Number of the segment.
        segment: u32,
        /// Size of its file.
        file_bytes: u64,
    },
    /// 22: the server runs with another configuration.
    Configured {
        /// BLAKE3 of the configuration in force.
        configuration: [u8; 32],
    },
}

/// What was asked for and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// 1: to forget the snapshot.
    Forget,
    /// 2: to forget it although governance keeps it.
    ForgetGovernance,
    /// 3: to end its lock earlier, or lower its mode.
    Shorten,
}

/// What the retention clock saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockEvent {
    /// 1: the clock began to run, at `init`.
    Started,
    /// 2: the machine was started again.
    Rebooted,
    /// 3: the wall clock went forward against the machine's own.
    WallAhead,
    /// 4: the wall clock went back.
    WallBack,
    /// 5: time without power was counted, within the yearly allowance.
    OffTimeCounted,
    /// 6: time without power was not counted.
    OffTimeLost,
    /// 7: two principals counted time without power.
    OffTimeCredited,
    /// 8: the data folder runs on another machine.
    MachineChanged,
    /// 9: the data folder is older than a head that it signed.
    RolledBack,
    /// 10: expiry is frozen.
    Frozen,
    /// 11: two principals ended the freeze.
    Thawed,
}

impl Wish {
    const ALL: [Self; 3] = [Self::Forget, Self::ForgetGovernance, Self::Shorten];

    /// The byte that names it.
    pub const fn code(self) -> u8 {
        match self {
            Self::Forget => 1,
            Self::ForgetGovernance => 2,
            Self::Shorten => 3,
        }
    }
}

impl ClockEvent {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Started,
        Self::Rebooted,
        Self::WallAhead,
        Self::WallBack,
        Self::OffTimeCounted,
        Self::OffTimeLost,
        Self::OffTimeCredited,
        Self::MachineChanged,
        Self::RolledBack,
        Self::Frozen,
        Self::Thawed,
    ];

    /// The byte that names it.
    pub const fn code(self) -> u8 {
        match self {
            Self::Started => 1,
            Self::Rebooted => 2,
            Self::WallAhead => 3,
            Self::WallBack => 4,
            Self::OffTimeCounted => 5,
            Self::OffTimeLost => 6,
            Self::OffTimeCredited => 7,
            Self::MachineChanged => 8,
            Self::RolledBack => 9,
            Self::Frozen => 10,
            Self::Thawed => 11,
        }
    }

    /// The word for metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Rebooted => "rebooted",
            Self::WallAhead => "wall_ahead",
            Self::WallBack => "wall_back",
            Self::OffTimeCounted => "off_time_counted",
            Self::OffTimeLost => "off_time_lost",
            Self::OffTimeCredited => "off_time_credited",
            Self::MachineChanged => "machine_changed",
            Self::RolledBack => "rolled_back",
            Self::Frozen => "frozen",
            Self::Thawed => "thawed",
        }
    }
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
        Event::Forgotten { record, commit, locked_until_seconds } => {
            out.u8(7).raw(&record.0).u64(*commit).u64(*locked_until_seconds);
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
        // The first nine are written by the caller.
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
            locked_until_seconds: reader.u64()?,
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

    #[test]
    fn codes_of_clock_events_and_wishes_are_distinct() {
        let clock: Vec<u8> = ClockEvent::ALL.iter().map(|event| event.code()).collect();
        assert_eq!(clock, (1..=11).collect::<Vec<u8>>());
        let wishes: Vec<u8> = Wish::ALL.iter().map(|wish| wish.code()).collect();
        assert_eq!(wishes, [1, 2, 3]);
    }
}
