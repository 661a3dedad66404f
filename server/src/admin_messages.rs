//! What commands on the server itself ask, and what they are answered: one JSON line each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strongroom_protocol::id::{Label, PrincipalId, PublicKey, TlsKeyDigest};
use strongroom_protocol::message::{ClockStatus, HexBytes, NamespaceRow, Status};
use strongroom_protocol::role::Role;

use crate::feeds::FeedStatus;
use crate::followers::PrimaryStatus;
use crate::gc::CycleReport;
use crate::replica::import::ImportReport;
use crate::repository::descriptors::Move;
use crate::repository::enrolment::PrincipalSummary;
use crate::scrub::ScrubReport;
use crate::seed::export::ExportReport;

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Make a token.
    Token {
        /// Namespace, for roles of one.
        namespace: Option<Label>,
        /// Role.
        role: Role,
        /// For people.
        display_name: String,
        /// Life of the token.
        ttl_seconds: u64,
    },
    /// List principals.
    Principals,
    /// Revoke a principal.
    Revoke {
        /// Whom.
        principal: PrincipalId,
    },
    /// List namespaces.
    Namespaces,
    /// Remove a namespace that holds no snapshot.
    DropNamespace {
        /// Its name.
        namespace: Label,
    },
    /// State of the server.
    Status,
    /// State of the retention clock.
    Clock,
    /// Replace this server's TLS key now.
    RollTlsKey,
    /// Run a collection cycle now.
    Collect,
    /// How collection stands.
    CollectionStatus,
    /// Hash all that is stored now.
    Scrub,
    /// How scrub stands.
    ScrubStatus,
    /// Become a replica of another server.
    ReplicaAdd {
        /// Made by that server, for role `replica`.
        token: String,
        /// What to call it.
        name: Option<Label>,
        /// Namespaces to follow; all, where it is empty.
        only: Vec<Label>,
        /// Ask it only for what is damaged here.
        is_repair_only: bool,
    },
    /// Which servers are followed.
    ReplicaList,
    /// How following them goes.
    ReplicaStatus,
    /// Pause following a server, or go on.
    ReplicaPause {
        /// Its name here.
        name: Label,
        /// Pause.
        is_paused: bool,
    },
    /// Write what this server has to a folder.
    Export {
        /// The folder.
        to: PathBuf,
        /// Namespaces; all, where it is empty.
        only: Vec<Label>,
    },
    /// Take in what another server wrote to a folder.
    Import {
        /// The folder.
        from: PathBuf,
        /// The ledger key of that server, where it is not known here.
        ledger_key: Option<PublicKey>,
        /// What to call it here.
        name: Option<Label>,
    },
    /// Follow other namespaces of a server.
    ReplicaOnly {
        /// Its name here.
        name: Label,
        /// Namespaces to follow; all, where it is empty.
        only: Vec<Label>,
    },
    /// Take a namespace again that was dropped here.
    ReplicaTakeAgain {
        /// Name of the server here.
        name: Label,
        /// The name that the namespace had here, or its id.
        namespace: String,
    },
    /// Follow a server no more; what came from it stays.
    ReplicaRemove {
        /// Its name here.
        name: Label,
    },
    /// Roll over the keys with which this server is enrolled at one that it follows.
    ReplicaRoll {
        /// Its name here.
        name: Label,
    },
    /// Lend connections to a server that follows this one.
    FeedAdd {
        /// Made by that server, for role `feeder`.
        token: String,
        /// What to call it.
        name: Option<Label>,
    },
    /// Which servers connections are lent to, and how that goes.
    FeedList,
    /// Pause lending to a server, or go on.
    FeedPause {
        /// Its name here.
        name: Label,
        /// Pause.
        is_paused: bool,
    },
    /// Lend nothing to a server any more.
    FeedRemove {
        /// Its name here.
        name: Label,
    },
    /// Roll over the keys with which this server dials one that it lends to.
    FeedRoll {
        /// Its name here.
        name: Label,
    },
    /// Say what whoever keeps a namespace's authority key needs, to move it here.
    PromotionRequest {
        /// The namespace's name here.
        namespace: Label,
    },
    /// Take a descriptor: from it on the namespace's backups come here, or no longer.
    MoveNamespace {
        /// The namespace's name here.
        namespace: Label,
        /// Whether it comes or goes.
        wanted: Move,
        /// The descriptor.
        descriptor: HexBytes,
    },
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum AdminAnswer {
    /// A token's text.
    Token {
        /// To be handed to whoever enrols.
        token: String,
    },
    /// Principals.
    Principals {
        /// All, revoked ones included.
        principals: Vec<PrincipalSummary>,
    },
    /// Namespaces.
    Namespaces {
        /// All.
        namespaces: Vec<NamespaceRow>,
    },
    /// State of the server.
    Status {
        /// The state.
        status: Status,
    },
    /// State of the retention clock.
    Clock {
        /// The state.
        status: ClockStatus,
    },
    /// What a collection cycle found and did.
    Collected {
        /// The report.
        report: CycleReport,
    },
    /// How collection stands; times are seconds of the retention clock since 1970.
    Collection {
        /// Number of the newest cycle.
        generation: u64,
        /// When it began.
        began_seconds: u64,
        /// Number of the newest cycle that went through.
        completed: u64,
        /// When that was.
        completed_seconds: u64,
    },
    /// How scrub stands, or what a pass found.
    Scrubbed {
        /// The report.
        report: ScrubReport,
    },
    /// A server is followed from now on.
    ReplicaAdded {
        /// Its name here.
        name: Label,
    },
    /// Which servers are followed.
    Primaries {
        /// All.
        primaries: Vec<PrimaryStatus>,
    },
    /// Connections are lent to a server from now on.
    FeedAdded {
        /// Its name here.
        name: Label,
    },
    /// Which servers connections are lent to, and how that goes.
    Feeds {
        /// All.
        feeds: Vec<FeedStatus>,
    },
    /// How following them goes.
    Following {
        /// All.
        primaries: Vec<PrimaryStatus>,
    },
    /// What whoever keeps the authority key needs.
    PromotionRequest {
        /// The request, encoded.
        request: HexBytes,
    },
    /// The same, once it is in a file.
    RequestWritten {
        /// Which file.
        file: PathBuf,
        /// The namespace's name here.
        namespace: Label,
        /// This server's ledger key, by which people know it.
        ledger_key: PublicKey,
        /// Where clients reach it.
        addresses: String,
        /// Version of the newest descriptor here.
        descriptor_version: u64,
        /// Snapshots of the namespace.
        snapshots: u64,
    },
    /// A descriptor is the newest here.
    Moved {
        /// The namespace's name here.
        namespace: Label,
        /// Whether it came or went.
        wanted: Move,
        /// Version of the descriptor.
        version: u64,
    },
    /// An export is written.
    Exported {
        /// What it did.
        report: ExportReport,
    },
    /// An export is taken in.
    Imported {
        /// What that did.
        report: ImportReport,
    },
    /// Another server knows this one by other keys.
    PeerKeysRolled {
        /// That server's name here.
        name: Label,
    },
    /// Another TLS key is shown.
    TlsKeyRolled {
        /// Its pin.
        tls_key: TlsKeyDigest,
        /// Its number.
        serial: u64,
    },
    /// Done.
    Done,
    /// Refused.
    Refused {
        /// Why, and what to do.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gc::Reaped;

    #[test]
    fn what_a_cycle_reaped_is_read_as_it_was_written() {
        let mut report = CycleReport::default();
        report.reaped.insert(7, Reaped { count: 3, bytes: 4000 });
        let text = serde_json::to_string(&AdminAnswer::Collected { report: report.clone() });
        match serde_json::from_str(&text.unwrap()).unwrap() {
            AdminAnswer::Collected { report: read } => assert_eq!(read, report),
            other => panic!("{other:?}"),
        }
    }
}
