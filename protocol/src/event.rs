//! What a ledger entry can say: the events, by the numbers that stand for them in `entry.rs`.

use crate::id::{
    DescriptorDigest, PrincipalId, PublicKey, RecordDigest, RepositoryId, SealedDigest,
    TlsKeyDigest, TokenId,
};
use crate::policy::Quota;
use crate::proposal::Verdict;
use crate::retention::{Lock, RetentionRule};
use crate::role::Role;
use crate::signature::SIGNATURE_BYTES;

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
    /// 7: a snapshot was forgotten: nothing kept it, or two principals lifted what did.
    Forgotten {
        /// The snapshot.
        record: RecordDigest,
        /// Number of its commit.
        commit: u64,
        /// Its lock at that moment.
        lock: Lock,
        /// The leaf of the proposal that lifted it; 0 where nothing kept it.
        proposal: u64,
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
    /// 23: this server follows another one, the primary.
    PrimaryAdded {
        /// The primary's ledger key, which names it.
        ledger_key: PublicKey,
        /// Its TLS key.
        tls_key: TlsKeyDigest,
        /// What this server is enrolled as there.
        principal: PrincipalId,
    },
    /// 29: this server lends its connections to another one, which follows it as a principal here.
    FeedAdded {
        /// That server's ledger key, which names it.
        ledger_key: PublicKey,
        /// Its TLS key.
        tls_key: TlsKeyDigest,
        /// What it is here.
        principal: PrincipalId,
    },
    /// 24: snapshots or locks were taken over from a primary, whose ledger went so far then.
    PrimaryFollowed {
        /// The primary.
        ledger_key: PublicKey,
        /// Size of its ledger.
        size: u64,
        /// Root of its ledger.
        root: [u8; 32],
    },
    /// 25: a primary's ledger does not continue what was seen of it; it is followed no more.
    PrimaryRefused {
        /// The primary.
        ledger_key: PublicKey,
        /// Size of the ledger that it was seen to have, and cannot show any more.
        known_size: u64,
        /// Root of that ledger.
        known_root: [u8; 32],
        /// Size of the ledger that it shows instead.
        shown_size: u64,
    },
    /// 26: this server follows a primary no more, by command; what it has stays.
    PrimaryRemoved {
        /// The primary.
        ledger_key: PublicKey,
    },
    /// 27: a namespace goes by a newer descriptor from now on.
    DescriptorTaken {
        /// Which.
        descriptor: DescriptorDigest,
        /// Its version, one more than the one before.
        version: u64,
    },
    /// 28: a primary's ledger names, or a client brought, a descriptor of the authority that
    /// cannot come after those that are here; nothing was replaced.
    DescriptorRefused {
        /// The primary's, or this server's own where a client brought it.
        ledger_key: PublicKey,
        /// What it names.
        descriptor: DescriptorDigest,
        /// As which version.
        version: u64,
    },
    /// 33: sealed data is about to be written to an export, by command: the intent.
    Exported {
        /// How many namespaces.
        namespace_count: u32,
        /// BLAKE3 over their ids, rising.
        namespaces: [u8; 32],
    },
    /// 34: an export is about to be taken in, by command.
    Imported {
        /// The ledger key of the server that made it.
        ledger_key: PublicKey,
        /// Size of its ledger.
        size: u64,
        /// Root of its ledger.
        root: [u8; 32],
    },
    /// 36: other namespaces of a primary are followed from now on, by command.
    FilterSet {
        /// The primary.
        ledger_key: PublicKey,
        /// BLAKE3 of their names, one a line; the server keeps the names themselves. All, where
        /// there is none.
        names: [u8; 32],
    },
    /// 37: a namespace is taken from a primary again: one that was dropped here, by command, or one
    /// of which more than enough was set aside.
    NamespaceReadmitted {
        /// The primary.
        ledger_key: PublicKey,
    },
    /// 38: an approval came to nothing: the proposal was closed, and not carried out.
    NotCarriedOut {
        /// The leaf of the proposal.
        proposal: u64,
        /// Why.
        cause: ClosedCause,
    },
    /// 39: a principal has other keys from now on, which its old ones vouched for.
    KeysRolled {
        /// Who.
        principal: PrincipalId,
        /// Its TLS key.
        tls_key: TlsKeyDigest,
        /// Its signing key.
        signing_key: PublicKey,
        /// The old signing key's word for both ([`crate::roll::NewKeys`]).
        vouch: [u8; SIGNATURE_BYTES],
    },
    /// 40: this server shows another TLS key from now on.
    TlsKeyRolled {
        /// The key.
        tls_key: TlsKeyDigest,
        /// Its number, one more than that of the one before.
        serial: u64,
    },
    /// 41: another server shows another TLS key, which its ledger key vouched for.
    PeerKeyFollowed {
        /// The other server's ledger key.
        ledger_key: PublicKey,
        /// Its TLS key.
        tls_key: TlsKeyDigest,
        /// The key's number there.
        serial: u64,
    },
    /// 42: a primary's ledger has a record behind the descriptor that had ended the record's epoch;
    /// it was not taken over.
    RecordRefused {
        /// The primary.
        ledger_key: PublicKey,
        /// The record.
        record: RecordDigest,
        /// Its place in the primary's ledger.
        leaf: u64,
        /// The epoch that had begun there.
        epoch: u32,
    },
    /// 30: envelopes of the namespace cannot be read back as they were written.
    Damaged {
        /// How many.
        count: u64,
        /// BLAKE3 over their digests, rising.
        digests: [u8; 32],
    },
    /// 31: envelopes that were known to be damaged are whole again.
    Repaired {
        /// How many.
        count: u64,
        /// BLAKE3 over their digests, rising.
        digests: [u8; 32],
        /// Ledger key of the server that gave them; zeros where they came from a client or were
        /// found here.
        from: PublicKey,
    },
    /// 32: everything stored was hashed once.
    Scrubbed {
        /// Number of the pass.
        pass: u64,
        /// Envelopes that were hashed.
        envelope_count: u64,
        /// Their bytes.
        bytes: u64,
        /// What was found to be wrong and was not known before.
        damaged_count: u64,
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

/// Why an approved proposal was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedCause {
    /// 1: it had ended, its proposer was gone, or what it was about had changed.
    Stale,
    /// 2: the rules do not allow the operation.
    Refused,
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forget, Self::ForgetGovernance, Self::Shorten];

    /// The byte that names it.
    pub const fn code(self) -> u8 {
        match self {
            Self::Forget => 1,
            Self::ForgetGovernance => 2,
            Self::Shorten => 3,
        }
    }
}

impl ClosedCause {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Stale, Self::Refused];

    /// The byte that names it.
    pub const fn code(self) -> u8 {
        match self {
            Self::Stale => 1,
            Self::Refused => 2,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_clock_events_and_wishes_are_distinct() {
        let clock: Vec<u8> = ClockEvent::ALL.iter().map(|event| event.code()).collect();
        assert_eq!(clock, (1..=11).collect::<Vec<u8>>());
        let wishes: Vec<u8> = Wish::ALL.iter().map(|wish| wish.code()).collect();
        assert_eq!(wishes, [1, 2, 3]);
        assert_eq!(ClosedCause::ALL.map(ClosedCause::code), [1, 2]);
        let names: std::collections::BTreeSet<&str> =
            ClockEvent::ALL.iter().map(|event| event.name()).collect();
        assert!(names.len() == clock.len() && names.contains("off_time_lost"));
    }
}
