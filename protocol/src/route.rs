//! The table of routes: method, path, capability, body limit. Client and server read the same.

use crate::id::{NamespaceId, RecordDigest, SessionId};
use crate::limits::{
    CHECKPOINT_MAX_BYTES, CONTROL_MAX_BYTES, DESCRIPTOR_MAX_BYTES, ENROLL_MAX_BYTES,
    HAVE_MAX_COUNT, PROVE_MAX_COUNT, READ_MAX_COUNT, RECORD_MAX_BYTES, ROLL_MAX_BYTES,
    UPLOAD_MAX_BYTES,
};
use crate::role::Capability;
use crate::tile::{Tile, TileContent};

/// A parsed request line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `GET /v1/identity`
    Identity,
    /// `POST /v1/enroll`
    Enroll,
    /// `GET /v1/status`
    Status,
    /// `GET /v1/namespaces`
    Namespaces,
    /// `GET /v1/checkpoint`
    Checkpoint,
    /// `GET /v1/ns/{ns}/descriptor`
    Descriptor(NamespaceId),
    /// `POST /v1/ns/{ns}/descriptor`: brings the next one
    OfferDescriptor(NamespaceId),
    /// `POST /v1/ns/{ns}/sessions`
    OpenSession(NamespaceId),
    /// `POST /v1/ns/{ns}/sessions/{session}/have`
    Have(NamespaceId, SessionId),
    /// `POST /v1/ns/{ns}/sessions/{session}/prove`
    Prove(NamespaceId, SessionId),
    /// `POST /v1/ns/{ns}/sessions/{session}/envelopes`
    Upload(NamespaceId, SessionId),
    /// `POST /v1/ns/{ns}/sessions/{session}/renew`
    Renew(NamespaceId, SessionId),
    /// `POST /v1/ns/{ns}/sessions/{session}/close`
    Close(NamespaceId, SessionId),
    /// `POST /v1/ns/{ns}/sessions/{session}/commit`
    Commit(NamespaceId, SessionId),
    /// `GET /v1/ns/{ns}/snapshots`
    Snapshots(NamespaceId),
    /// `GET /v1/ns/{ns}/snapshots/{record}`
    Record(NamespaceId, RecordDigest),
    /// `GET /v1/ns/{ns}/snapshots/{record}/receipt`
    Receipt(NamespaceId, RecordDigest),
    /// `POST /v1/ns/{ns}/snapshots/{record}/forget`
    Forget(NamespaceId, RecordDigest),
    /// `POST /v1/ns/{ns}/envelopes`
    Read(NamespaceId),
    /// `POST /v1/ns/{ns}/snapshots/{record}/retain`
    Retain(NamespaceId, RecordDigest),
    /// `POST /v1/ns/{ns}/snapshots/{record}/hold`
    PlaceHold(NamespaceId, RecordDigest),
    /// `POST /v1/ns/{ns}/snapshots/{record}/release`
    ReleaseHold(NamespaceId, RecordDigest),
    /// `POST /v1/ns/{ns}/snapshots/{record}/lift`: proposes to forget under governance
    Lift(NamespaceId, RecordDigest),
    /// `GET /v1/ns/{ns}/policy`
    Policy(NamespaceId),
    /// `POST /v1/ns/{ns}/policy`: sets it, or proposes a lower one
    SetPolicy(NamespaceId),
    /// `GET /v1/proposals`
    Proposals,
    /// `POST /v1/proposals/{leaf}`: approves or rejects
    Decide(u64),
    /// `GET /v1/clock`
    ClockStatus,
    /// `POST /v1/clock`: proposes a credit or a thaw
    TendClock,
    /// `GET /v1/consistency/{size}`: proof from a tree of that size to the newest
    Consistency(u64),
    /// `GET /v1/tile/...`
    Tile(Tile),
    /// `POST /v1/witness`: a head that the client remembers
    ReportHead,
    /// `GET /v1/statements/{leaf}`: the words that an entry holds the digest of
    Statement(u64),
    /// `POST /v1/lend`: turns the connection round; from the answer on, this server asks over it
    Lend,
    /// `POST /v1/keys`: puts new keys in the place of who asks
    RollKeys,
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever completes a handshake, with a key that need not be known.
    Anyone,
    /// A principal that has the capability, in the route's namespace where it names one.
    Needs(Capability),
}

impl Route {
    /// The route of a method and path, or nothing.
    pub fn parse(method: &str, path: &str) -> Option<Self> {
        if let ("GET", Some(tile)) = (method, path.strip_prefix("/v1/tile/")) {
            return Tile::parse(tile).map(Self::Tile);
        }
        let segments: Vec<&str> = path.strip_prefix("/v1/")?.splitn(8, '/').collect();
        let route = match (method, segments.as_slice()) {
            ("GET", ["identity"]) => Self::Identity,
            ("POST", ["enroll"]) => Self::Enroll,
            ("POST", ["lend"]) => Self::Lend,
            ("POST", ["keys"]) => Self::RollKeys,
            ("GET", ["status"]) => Self::Status,
            ("GET", ["namespaces"]) => Self::Namespaces,
            ("GET", ["checkpoint"]) => Self::Checkpoint,
            ("GET", ["ns", ns, "descriptor"]) => Self::Descriptor(ns.parse().ok()?),
            ("POST", ["ns", ns, "descriptor"]) => Self::OfferDescriptor(ns.parse().ok()?),
            ("POST", ["ns", ns, "sessions"]) => Self::OpenSession(ns.parse().ok()?),
            ("POST", ["ns", ns, "sessions", session, verb]) => {
                let (ns, session) = (ns.parse().ok()?, session.parse().ok()?);
                match *verb {
                    "have" => Self::Have(ns, session),
                    "prove" => Self::Prove(ns, session),
                    "envelopes" => Self::Upload(ns, session),
                    "renew" => Self::Renew(ns, session),
                    "close" => Self::Close(ns, session),
                    "commit" => Self::Commit(ns, session),
                    _ => return None,
                }
            }
            ("GET", ["ns", ns, "snapshots"]) => Self::Snapshots(ns.parse().ok()?),
            ("GET", ["ns", ns, "snapshots", record]) => {
                Self::Record(ns.parse().ok()?, record.parse().ok()?)
            }
            ("GET", ["ns", ns, "snapshots", record, "receipt"]) => {
                Self::Receipt(ns.parse().ok()?, record.parse().ok()?)
            }
            ("POST", ["ns", ns, "snapshots", record, verb]) => {
                let (ns, record) = (ns.parse().ok()?, record.parse().ok()?);
                match *verb {
                    "forget" => Self::Forget(ns, record),
                    "retain" => Self::Retain(ns, record),
                    "hold" => Self::PlaceHold(ns, record),
                    "release" => Self::ReleaseHold(ns, record),
                    "lift" => Self::Lift(ns, record),
                    _ => return None,
                }
            }
            ("GET", ["ns", ns, "policy"]) => Self::Policy(ns.parse().ok()?),
            ("POST", ["ns", ns, "policy"]) => Self::SetPolicy(ns.parse().ok()?),
            ("GET", ["proposals"]) => Self::Proposals,
            ("POST", ["proposals", leaf]) => Self::Decide(number(leaf)?),
            ("GET", ["clock"]) => Self::ClockStatus,
            ("POST", ["clock"]) => Self::TendClock,
            ("GET", ["consistency", size]) => Self::Consistency(number(size)?),
            ("POST", ["witness"]) => Self::ReportHead,
            ("GET", ["statements", leaf]) => Self::Statement(number(leaf)?),
            ("POST", ["ns", ns, "envelopes"]) => Self::Read(ns.parse().ok()?),
            _ => return None,
        };
        Some(route)
    }

    /// The method.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Identity
            | Self::Status
            | Self::Namespaces
            | Self::Checkpoint
            | Self::Descriptor(_)
            | Self::Snapshots(_)
            | Self::Record(..)
            | Self::Receipt(..)
            | Self::Policy(_)
            | Self::Proposals
            | Self::ClockStatus
            | Self::Consistency(_)
            | Self::Statement(_)
            | Self::Tile(_) => "GET",
            _ => "POST",
        }
    }

    /// The path.
    pub fn path(&self) -> String {
        match self {
            Self::Identity => "/v1/identity".into(),
            Self::Enroll => "/v1/enroll".into(),
            Self::Lend => "/v1/lend".into(),
            Self::RollKeys => "/v1/keys".into(),
            Self::Status => "/v1/status".into(),
            Self::Namespaces => "/v1/namespaces".into(),
            Self::Checkpoint => "/v1/checkpoint".into(),
            Self::Descriptor(ns) | Self::OfferDescriptor(ns) => format!("/v1/ns/{ns}/descriptor"),
            Self::OpenSession(ns) => format!("/v1/ns/{ns}/sessions"),
            Self::Have(ns, session) => format!("/v1/ns/{ns}/sessions/{session}/have"),
            Self::Prove(ns, session) => format!("/v1/ns/{ns}/sessions/{session}/prove"),
            Self::Upload(ns, session) => format!("/v1/ns/{ns}/sessions/{session}/envelopes"),
            Self::Renew(ns, session) => format!("/v1/ns/{ns}/sessions/{session}/renew"),
            Self::Close(ns, session) => format!("/v1/ns/{ns}/sessions/{session}/close"),
            Self::Commit(ns, session) => format!("/v1/ns/{ns}/sessions/{session}/commit"),
            Self::Snapshots(ns) => format!("/v1/ns/{ns}/snapshots"),
            Self::Record(ns, record) => format!("/v1/ns/{ns}/snapshots/{record}"),
            Self::Receipt(ns, record) => format!("/v1/ns/{ns}/snapshots/{record}/receipt"),
            Self::Forget(ns, record) => format!("/v1/ns/{ns}/snapshots/{record}/forget"),
            Self::Read(ns) => format!("/v1/ns/{ns}/envelopes"),
            Self::Retain(ns, record) => format!("/v1/ns/{ns}/snapshots/{record}/retain"),
            Self::PlaceHold(ns, record) => format!("/v1/ns/{ns}/snapshots/{record}/hold"),
            Self::ReleaseHold(ns, record) => format!("/v1/ns/{ns}/snapshots/{record}/release"),
            Self::Lift(ns, record) => format!("/v1/ns/{ns}/snapshots/{record}/lift"),
            Self::Policy(ns) | Self::SetPolicy(ns) => format!("/v1/ns/{ns}/policy"),
            Self::Proposals => "/v1/proposals".into(),
            Self::Decide(leaf) => format!("/v1/proposals/{leaf}"),
            Self::ClockStatus | Self::TendClock => "/v1/clock".into(),
            Self::Consistency(size) => format!("/v1/consistency/{size}"),
            Self::Tile(tile) => format!("/v1/tile/{}", tile.path()),
            Self::ReportHead => "/v1/witness".into(),
            Self::Statement(leaf) => format!("/v1/statements/{leaf}"),
        }
    }

    /// A short name for metrics and logs, without ids.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Enroll => "enroll",
            Self::Lend => "lend",
            Self::RollKeys => "roll_keys",
            Self::Status => "status",
            Self::Namespaces => "namespaces",
            Self::Checkpoint => "checkpoint",
            Self::Descriptor(_) => "descriptor",
            Self::OfferDescriptor(_) => "offer_descriptor",
            Self::OpenSession(_) => "open_session",
            Self::Have(..) => "have",
            Self::Prove(..) => "prove",
            Self::Upload(..) => "upload",
            Self::Renew(..) => "renew",
            Self::Close(..) => "close",
            Self::Commit(..) => "commit",
            Self::Snapshots(_) => "snapshots",
            Self::Record(..) => "record",
            Self::Receipt(..) => "receipt",
            Self::Forget(..) => "forget",
            Self::Read(_) => "read",
            Self::Retain(..) => "retain",
            Self::PlaceHold(..) => "place_hold",
            Self::ReleaseHold(..) => "release_hold",
            Self::Lift(..) => "lift",
            Self::Policy(_) => "policy",
            Self::SetPolicy(_) => "set_policy",
            Self::Proposals => "proposals",
            Self::Decide(_) => "decide",
            Self::ClockStatus => "clock_status",
            Self::TendClock => "tend_clock",
            Self::Consistency(_) => "consistency",
            Self::Tile(_) => "tile",
            Self::ReportHead => "report_head",
            Self::Statement(_) => "statement",
        }
    }

    /// Who may use it.
    pub const fn access(&self) -> Access {
        match self {
            Self::Identity | Self::Enroll => Access::Anyone,
            Self::Status
            | Self::Namespaces
            | Self::Policy(_)
            | Self::Proposals
            | Self::ClockStatus => Access::Needs(Capability::Observe),
            Self::Checkpoint | Self::Receipt(..) | Self::Consistency(_) | Self::ReportHead => {
                Access::Needs(Capability::ReadProofs)
            }
            Self::Tile(_) | Self::Statement(_) => Access::Needs(Capability::ReadLedger),
            Self::Retain(..) => Access::Needs(Capability::Retain),
            Self::PlaceHold(..) => Access::Needs(Capability::PlaceHold),
            Self::ReleaseHold(..) => Access::Needs(Capability::ReleaseHold),
            Self::Lift(..) => Access::Needs(Capability::BypassGovernance),
            Self::SetPolicy(_) => Access::Needs(Capability::SetPolicy),
            Self::Decide(_) => Access::Needs(Capability::Approve),
            Self::TendClock => Access::Needs(Capability::TendClock),
            Self::Descriptor(_) => Access::Needs(Capability::ReadDescriptor),
            Self::OfferDescriptor(_) => Access::Needs(Capability::OfferDescriptor),
            Self::OpenSession(_)
            | Self::Have(..)
            | Self::Prove(..)
            | Self::Upload(..)
            | Self::Renew(..)
            | Self::Close(..)
            | Self::Commit(..) => Access::Needs(Capability::Append),
            Self::Snapshots(_) => Access::Needs(Capability::ListSnapshots),
            Self::Record(..) => Access::Needs(Capability::ReadRecords),
            Self::Forget(..) => Access::Needs(Capability::Forget),
            Self::Read(_) => Access::Needs(Capability::ReadEnvelopes),
            Self::Lend => Access::Needs(Capability::LendConnection),
            Self::RollKeys => Access::Needs(Capability::RollKeys),
        }
    }

    /// The namespace that the path names.
    pub const fn namespace(&self) -> Option<NamespaceId> {
        match self {
            Self::Identity
            | Self::Enroll
            | Self::Status
            | Self::Namespaces
            | Self::Checkpoint
            | Self::Proposals
            | Self::Decide(_)
            | Self::ClockStatus
            | Self::TendClock
            | Self::Consistency(_)
            | Self::Tile(_)
            | Self::Statement(_)
            | Self::ReportHead
            | Self::RollKeys
            | Self::Lend => None,
            Self::Descriptor(ns)
            | Self::OfferDescriptor(ns)
            | Self::OpenSession(ns)
            | Self::Have(ns, _)
            | Self::Prove(ns, _)
            | Self::Upload(ns, _)
            | Self::Renew(ns, _)
            | Self::Close(ns, _)
            | Self::Commit(ns, _)
            | Self::Snapshots(ns)
            | Self::Record(ns, _)
            | Self::Receipt(ns, _)
            | Self::Forget(ns, _)
            | Self::Retain(ns, _)
            | Self::PlaceHold(ns, _)
            | Self::ReleaseHold(ns, _)
            | Self::Lift(ns, _)
            | Self::Policy(ns)
            | Self::SetPolicy(ns)
            | Self::Read(ns) => Some(*ns),
        }
    }

    /// Longest body, in bytes.
    pub fn body_max_bytes(&self) -> u64 {
        match self {
            Self::Enroll => u64::from(ENROLL_MAX_BYTES),
            Self::OfferDescriptor(_) => u64::from(DESCRIPTOR_MAX_BYTES),
            Self::OpenSession(_)
            | Self::Retain(..)
            | Self::PlaceHold(..)
            | Self::ReleaseHold(..)
            | Self::Lift(..)
            | Self::SetPolicy(_)
            | Self::Decide(_)
            | Self::TendClock => u64::from(CONTROL_MAX_BYTES),
            Self::ReportHead => u64::from(CHECKPOINT_MAX_BYTES),
            Self::RollKeys => u64::from(ROLL_MAX_BYTES),
            Self::Have(..) => u64::from(HAVE_MAX_COUNT).saturating_mul(32),
            Self::Prove(..) => u64::from(PROVE_MAX_COUNT).saturating_add(1).saturating_mul(32),
            Self::Upload(..) => UPLOAD_MAX_BYTES,
            Self::Commit(..) => u64::from(RECORD_MAX_BYTES),
            Self::Read(_) => u64::from(READ_MAX_COUNT).saturating_mul(32),
            _ => 0,
        }
    }

    /// One route of each kind, for tests that iterate over the table.
    pub const fn examples(ns: NamespaceId, session: SessionId, record: RecordDigest) -> [Self; 35] {
        [
            Self::Identity,
            Self::Enroll,
            Self::Status,
            Self::Namespaces,
            Self::Checkpoint,
            Self::Descriptor(ns),
            Self::OfferDescriptor(ns),
            Self::OpenSession(ns),
            Self::Have(ns, session),
            Self::Prove(ns, session),
            Self::Upload(ns, session),
            Self::Renew(ns, session),
            Self::Close(ns, session),
            Self::Commit(ns, session),
            Self::Snapshots(ns),
            Self::Record(ns, record),
            Self::Receipt(ns, record),
            Self::Forget(ns, record),
            Self::Read(ns),
            Self::Retain(ns, record),
            Self::PlaceHold(ns, record),
            Self::ReleaseHold(ns, record),
            Self::Lift(ns, record),
            Self::Policy(ns),
            Self::SetPolicy(ns),
            Self::Proposals,
            Self::Decide(1),
            Self::ClockStatus,
            Self::TendClock,
            Self::Consistency(1),
            Self::Tile(Tile { content: TileContent::Entries, index: 0, width: 1 }),
            Self::ReportHead,
            Self::Statement(1),
            Self::Lend,
            Self::RollKeys,
        ]
    }
}

/// A number in its shortest form, so that one route has one path.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_parse_back() {
        let examples =
            Route::examples(NamespaceId([1; 32]), SessionId([2; 16]), RecordDigest([3; 32]));
        for route in examples {
            assert_eq!(Route::parse(route.method(), &route.path()), Some(route));
            let other = if route.method() == "GET" { "POST" } else { "GET" };
            assert_ne!(Route::parse(other, &route.path()), Some(route));
        }
        for path in ["/", "/v1/", "/v2/identity", "/v1/ns//descriptor", "/v1/identity/"] {
            assert_eq!(Route::parse("GET", path), None, "{path}");
        }
    }
}
