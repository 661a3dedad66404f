//! Commands on the server itself, while it runs (`DIR/admin.sock`, mode 0600) and while it does
//! not (the data folder is opened for the one command).
//!
//! One JSON line asks, one answers. Whoever may open the socket is root or the service's user, who
//! could read the folder anyway: there is no further authentication.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_protocol::id::{Label, PrincipalId, PublicKey};
use strongroom_protocol::limits::{COMMAND_MAX_BYTES, SEED_PACK_BYTES};
use strongroom_protocol::message::{ClockStatus, HexBytes, NamespaceRow, Status};
use strongroom_protocol::role::Role;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;

use crate::error::ServerError;
use crate::followers::PrimaryStatus;
use crate::gc::{Collector, CycleReport};
use crate::replica;
use crate::replica::enrol::NewPrimary;
use crate::replica::error::ReplicaError;
use crate::replica::import::{ImportReport, NewImport};
use crate::repository::Repository;
use crate::repository::descriptors::Move;
use crate::repository::enrolment::{PrincipalSummary, TokenRequest};
use crate::scrub::{self, ScrubReport};
use crate::seed::export::{ExportReport, Wanted, export};
use crate::stop::{self, Stop};

const SOCKET_FILE: &str = "admin.sock";
/// A command gives up when the server says nothing for so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that a command reads.
const ANSWER_MAX_BYTES: u64 = 64 * 1024 * 1024;

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
    /// Done.
    Done,
    /// Refused.
    Refused {
        /// Why, and what to do.
        message: String,
    },
}

/// Carries out a command.
pub fn execute(
    repository: &Arc<Repository>,
    request: AdminRequest,
) -> Result<AdminAnswer, ServerError> {
    Ok(match request {
        AdminRequest::Token { namespace, role, display_name, ttl_seconds } => {
            let request = TokenRequest { namespace, role, display_name, ttl_seconds };
            AdminAnswer::Token { token: repository.make_token(request)?.to_text() }
        }
        AdminRequest::Principals => {
            AdminAnswer::Principals { principals: repository.principals()? }
        }
        AdminRequest::Revoke { principal } => {
            repository.revoke(principal)?;
            AdminAnswer::Done
        }
        AdminRequest::Namespaces => AdminAnswer::Namespaces { namespaces: repository.namespaces() },
        AdminRequest::DropNamespace { namespace } => {
            repository.drop_namespace(&namespace)?;
            AdminAnswer::Done
        }
        AdminRequest::Status => AdminAnswer::Status { status: repository.status()? },
        AdminRequest::Clock => AdminAnswer::Clock { status: repository.clock_status() },
        AdminRequest::Collect => AdminAnswer::Collected { report: collector(repository).run()? },
        AdminRequest::CollectionStatus => collection_status(repository)?,
        AdminRequest::Scrub => AdminAnswer::Scrubbed { report: scrub::run(repository)? },
        AdminRequest::ScrubStatus => AdminAnswer::Scrubbed { report: scrub::status(repository)? },
        AdminRequest::Export { to, only } => {
            let wanted = Wanted { folder: &to, only, pack_bytes: SEED_PACK_BYTES };
            let stop = repository.followers().stopping();
            AdminAnswer::Exported { report: export(repository, wanted, &stop)? }
        }
        AdminRequest::Import { from, ledger_key, name } => {
            let wanted = NewImport { from, ledger_key, name };
            let outcome = run_here(replica::import::import(repository, wanted));
            // What came in of snapshots that are not whole is kept for the next try.
            repository.settle()?;
            AdminAnswer::Imported { report: outcome? }
        }
        AdminRequest::PromotionRequest { namespace } => {
            let request = repository.promotion_request(&namespace)?;
            AdminAnswer::PromotionRequest { request: HexBytes(request.encode()) }
        }
        AdminRequest::MoveNamespace { namespace, wanted, descriptor } => {
            let version = repository.move_namespace(&namespace, wanted, &descriptor.0)?;
            AdminAnswer::Moved { namespace, wanted, version }
        }
        other => return execute_replica(repository, other),
    })
}

/// Carries out a command about primaries.
fn execute_replica(
    repository: &Arc<Repository>,
    request: AdminRequest,
) -> Result<AdminAnswer, ServerError> {
    Ok(match request {
        AdminRequest::ReplicaAdd { token, name, only, is_repair_only } => {
            let wanted = NewPrimary { token, name, only, is_repair_only };
            AdminAnswer::ReplicaAdded { name: add_primary(repository, wanted)? }
        }
        AdminRequest::ReplicaList => {
            AdminAnswer::Primaries { primaries: repository.primary_statuses()? }
        }
        AdminRequest::ReplicaStatus => {
            AdminAnswer::Following { primaries: repository.primary_statuses()? }
        }
        AdminRequest::ReplicaPause { name, is_paused } => {
            repository.pause_primary(&name, is_paused)?;
            AdminAnswer::Done
        }
        AdminRequest::ReplicaOnly { name, only } => {
            repository.set_only(&name, only)?;
            AdminAnswer::Done
        }
        AdminRequest::ReplicaTakeAgain { name, namespace } => {
            repository.take_again(&name, &namespace)?;
            AdminAnswer::Done
        }
        AdminRequest::ReplicaRemove { name } => {
            replica::remove(repository, &name)?;
            AdminAnswer::Done
        }
        // The others are carried out by the caller.
        other => return Err(ServerError::Bug(format!("no such command: {other:?}"))),
    })
}

fn collection_status(repository: &Repository) -> Result<AdminAnswer, ServerError> {
    let row = collector(repository).status()?;
    Ok(AdminAnswer::Collection {
        generation: row.generation,
        began_seconds: row.began_seconds,
        completed: row.completed,
        completed_seconds: row.completed_seconds,
    })
}

/// Enrols at another server.
fn add_primary(repository: &Arc<Repository>, wanted: NewPrimary) -> Result<Label, ServerError> {
    // Nobody gives this signal: the command ends by its own timeouts.
    let (stopper, stop) = stop::signal();
    let outcome = run_here(replica::enrol::add(repository, wanted, stop));
    drop(stopper);
    outcome
}

/// Runs what waits for I/O: on the runtime that serves, or on one for the command alone.
fn run_here<T>(work: impl Future<Output = Result<T, ReplicaError>>) -> Result<T, ServerError> {
    let outcome = match Handle::try_current() {
        Ok(runtime) => runtime.block_on(work),
        Err(_) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ServerError::file("start the runtime", error))?
            .block_on(work),
    };
    outcome.map_err(|error| match error {
        ReplicaError::Here(error) => error,
        error => ServerError::Operator(error.to_string()),
    })
}

/// A collector of an open repository.
pub fn collector(repository: &Repository) -> Collector {
    Collector::new(
        repository.store().clone(),
        repository.writer().clone(),
        repository.sessions().clone(),
        repository.clock().clone(),
        repository.metrics().clone(),
        repository.config(),
    )
}

/// Asks a running server; nothing, if none runs on this folder.
pub fn ask(folder: &Path, request: &AdminRequest) -> Result<Option<AdminAnswer>, ServerError> {
    let path = folder.join(SOCKET_FILE);
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&path) else { return Ok(None) };
    let fail = |error| ServerError::file(format!("ask the server at {}", path.display()), error);
    // These take as long as they take.
    let is_long = matches!(
        request,
        AdminRequest::Collect
            | AdminRequest::Scrub
            | AdminRequest::Export { .. }
            | AdminRequest::Import { .. }
    );
    let timeout = (!is_long).then_some(ANSWER_TIMEOUT);
    stream.set_read_timeout(timeout).map_err(fail)?;
    let mut line = serde_json::to_vec(request).map_err(|e| ServerError::Bug(e.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(fail)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_MAX_BYTES)).read_line(&mut answer).map_err(fail)?;
    serde_json::from_str(&answer)
        .map(Some)
        .map_err(|error| ServerError::Operator(format!("the server's answer: {error}")))
}

/// Makes the socket, in place of one that a killed server left.
pub fn bind(folder: &Path) -> Result<UnixListener, ServerError> {
    let path: PathBuf = folder.join(SOCKET_FILE);
    let fail = |error| ServerError::file(format!("make {}", path.display()), error);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    // The folder itself is 0700, so nobody can connect before the mode is set.
    let listener = UnixListener::bind(&path).map_err(fail)?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, mode).map_err(fail)?;
    Ok(listener)
}

/// Serves commands until `stop` says so.
pub async fn run(repository: Arc<Repository>, listener: UnixListener, mut stop: Stop) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.wait() => return,
        };
        if let Ok((stream, _)) = accepted {
            let repository = repository.clone();
            tokio::spawn(async move {
                if let Err(error) = serve_one(repository, stream).await {
                    tracing::warn!(%error, "admin command ended early");
                }
            });
        }
    }
}

async fn serve_one(repository: Arc<Repository>, stream: UnixStream) -> Result<(), std::io::Error> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(read.take(u64::from(COMMAND_MAX_BYTES)));
    reader.read_line(&mut line).await?;
    let outcome = match serde_json::from_str::<AdminRequest>(&line) {
        Ok(request) => tokio::task::spawn_blocking(move || execute(&repository, request))
            .await
            .map_err(|error| std::io::Error::other(format!("command ended: {error}")))?,
        Err(error) => Err(ServerError::Operator(format!("unknown command: {error}"))),
    };
    let answer = outcome.unwrap_or_else(|error| {
        tracing::info!(%error, "admin command refused");
        AdminAnswer::Refused { message: error.to_string() }
    });
    let mut bytes = serde_json::to_vec(&answer).map_err(std::io::Error::other)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}
