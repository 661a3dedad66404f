//! Roles and capabilities: who may do what, as one pure table.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::ParseIdError;

/// What a principal is enrolled as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Pushes backups into one namespace: append, and nothing else.
    Backup,
    /// Reads backups of one namespace.
    Restore,
    /// Reads what proves things, and nothing that holds data.
    Audit,
    /// Runs the appliance.
    Operator,
    /// Guards it; never the same principal as an operator.
    SecurityOfficer,
    /// Copies namespaces to another server.
    Replica,
    /// Lends its connections to a server that follows it; rolls its own key over; nothing else.
    Feeder,
}

/// What a route demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Open sessions, ask, upload and commit in one's namespace.
    Append,
    /// Read the namespace's descriptor.
    ReadDescriptor,
    /// Bring the namespace's next descriptor, which its authority signed.
    OfferDescriptor,
    /// Read receipts and the ledger's checkpoint.
    ReadProofs,
    /// Read the list of snapshots: bodies of records and locks.
    ListSnapshots,
    /// Read whole records.
    ReadRecords,
    /// Read envelopes.
    ReadEnvelopes,
    /// Forget snapshots whose lock has ended.
    Forget,
    /// Extend locks and raise their mode.
    Retain,
    /// Place legal holds.
    PlaceHold,
    /// Release legal holds.
    ReleaseHold,
    /// Set a namespace's policy; a lower one takes a second principal.
    SetPolicy,
    /// Propose to forget what governance keeps.
    BypassGovernance,
    /// Propose what the retention clock needs: credit of off-time, thaw.
    TendClock,
    /// Approve or reject what another principal proposed.
    Approve,
    /// Read the ledger's entries.
    ReadLedger,
    /// See the state of the server and the names of namespaces.
    Observe,
    /// Lend a connection, over which this server then asks.
    LendConnection,
    /// Put new keys in the place of one's own.
    RollKeys,
}

impl Role {
    /// All roles, in the order of their codes.
    pub const ALL: [Self; 7] = [
        Self::Backup,
        Self::Restore,
        Self::Audit,
        Self::Operator,
        Self::SecurityOfficer,
        Self::Replica,
        Self::Feeder,
    ];

    /// Roles that clients have. A feeder is another server.
    pub const OF_CLIENTS: [Self; 6] = [
        Self::Backup,
        Self::Restore,
        Self::Audit,
        Self::Operator,
        Self::SecurityOfficer,
        Self::Replica,
    ];

    /// The byte that names the role.
    pub const fn code(self) -> u8 {
        match self {
            Self::Backup => 1,
            Self::Restore => 2,
            Self::Audit => 3,
            Self::Operator => 4,
            Self::SecurityOfficer => 5,
            Self::Replica => 6,
            Self::Feeder => 7,
        }
    }

    /// The role that `code` names.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.code() == code)
    }

    /// The word for commands and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Audit => "audit",
            Self::Operator => "operator",
            Self::SecurityOfficer => "security-officer",
            Self::Replica => "replica",
            Self::Feeder => "feeder",
        }
    }

    /// Whether a principal of this role belongs to one namespace; the others belong to the
    /// server.
    pub const fn is_of_namespace(self) -> bool {
        matches!(self, Self::Backup | Self::Restore)
    }

    /// What the role may do (`docs/security.md` has the same table, and a test compares them).
    pub const fn capabilities(self) -> &'static [Capability] {
        use Capability as C;
        match self {
            Self::Backup => {
                &[C::Append, C::ReadDescriptor, C::OfferDescriptor, C::ReadProofs, C::RollKeys]
            }
            Self::Restore => &[
                C::ReadDescriptor,
                C::OfferDescriptor,
                C::ReadProofs,
                C::ListSnapshots,
                C::ReadRecords,
                C::ReadEnvelopes,
                C::RollKeys,
            ],
            Self::Audit => &[
                C::ReadDescriptor,
                C::ReadProofs,
                C::ListSnapshots,
                C::Observe,
                C::ReadLedger,
                C::RollKeys,
            ],
            Self::Operator => &[
                C::ReadDescriptor,
                C::OfferDescriptor,
                C::ReadProofs,
                C::ListSnapshots,
                C::Forget,
                C::Observe,
                C::Retain,
                C::PlaceHold,
                C::Approve,
                C::RollKeys,
            ],
            Self::SecurityOfficer => &[
                C::ReadDescriptor,
                C::ReadProofs,
                C::ListSnapshots,
                C::Forget,
                C::Observe,
                C::Retain,
                C::PlaceHold,
                C::ReleaseHold,
                C::SetPolicy,
                C::BypassGovernance,
                C::TendClock,
                C::Approve,
                C::RollKeys,
            ],
            Self::Replica => &[
                C::ReadDescriptor,
                C::ReadProofs,
                C::ListSnapshots,
                C::ReadRecords,
                C::ReadEnvelopes,
                C::Observe,
                C::ReadLedger,
                C::RollKeys,
            ],
            Self::Feeder => &[C::LendConnection, C::RollKeys],
        }
    }

    /// Whether the role may do it.
    pub fn may(self, capability: Capability) -> bool {
        self.capabilities().contains(&capability)
    }
}

impl Capability {
    /// All capabilities.
    pub const ALL: [Self; 19] = [
        Self::Append,
        Self::ReadDescriptor,
        Self::OfferDescriptor,
        Self::ReadProofs,
        Self::ListSnapshots,
        Self::ReadRecords,
        Self::ReadEnvelopes,
        Self::Forget,
        Self::Observe,
        Self::Retain,
        Self::PlaceHold,
        Self::ReleaseHold,
        Self::SetPolicy,
        Self::BypassGovernance,
        Self::TendClock,
        Self::Approve,
        Self::ReadLedger,
        Self::LendConnection,
        Self::RollKeys,
    ];

    /// The word for documents and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::ReadDescriptor => "read-descriptor",
            Self::OfferDescriptor => "offer-descriptor",
            Self::ReadProofs => "read-proofs",
            Self::ListSnapshots => "list-snapshots",
            Self::ReadRecords => "read-records",
            Self::ReadEnvelopes => "read-envelopes",
            Self::Forget => "forget",
            Self::Retain => "retain",
            Self::PlaceHold => "place-hold",
            Self::ReleaseHold => "release-hold",
            Self::SetPolicy => "set-policy",
            Self::BypassGovernance => "bypass-governance",
            Self::TendClock => "tend-clock",
            Self::Approve => "approve",
            Self::ReadLedger => "read-ledger",
            Self::Observe => "observe",
            Self::LendConnection => "lend-connection",
            Self::RollKeys => "roll-keys",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(ParseIdError(
            "role (backup, restore, audit, operator, security-officer, replica or feeder)",
        ))
    }
}
