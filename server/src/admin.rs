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

use strongroom_protocol::limits::{COMMAND_MAX_BYTES, SEED_PACK_BYTES};
use strongroom_protocol::message::HexBytes;
use strongroom_protocol::vouch::ServerTls;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;

use crate::admin_messages::{AdminAnswer, AdminRequest};
use crate::error::ServerError;
use crate::feed;
use crate::gc::Collector;
use crate::replica;
use crate::replica::enrol::NewPrimary;
use crate::replica::error::ReplicaError;
use crate::replica::import::NewImport;
use crate::replica::key_age::{with_feed_keys, with_keys};
use crate::replica::keys::Whom;
use crate::replica::rolling::roll_named;
use crate::repository::Repository;
use crate::repository::enrolment::TokenRequest;
use crate::scrub;
use crate::seed::export::{Wanted, export};
use crate::stop::{self, Stop};

const SOCKET_FILE: &str = "admin.sock";
/// A command gives up when the server says nothing for so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that a command reads.
const ANSWER_MAX_BYTES: u64 = 64 * 1024 * 1024;

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
        AdminRequest::RollTlsKey => {
            let ServerTls { tls_key, serial } = repository.roll_tls_key()?;
            AdminAnswer::TlsKeyRolled { tls_key, serial }
        }
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

/// Carries out a command about primaries, and about servers that follow this one.
fn execute_replica(
    repository: &Arc<Repository>,
    request: AdminRequest,
) -> Result<AdminAnswer, ServerError> {
    Ok(match request {
        AdminRequest::ReplicaAdd { token, name, only, is_repair_only } => {
            let wanted = NewPrimary { token, name, only, is_repair_only };
            let add = |stop| replica::enrol::add(repository, wanted, stop);
            AdminAnswer::ReplicaAdded { name: run_unstopped(add)? }
        }
        AdminRequest::ReplicaList => {
            AdminAnswer::Primaries { primaries: repository.primary_statuses()? }
        }
        AdminRequest::ReplicaStatus => {
            let primaries = with_keys(repository, repository.primary_statuses()?);
            AdminAnswer::Following { primaries }
        }
        AdminRequest::ReplicaRoll { name } => roll(repository, Whom::Primary(&name))?,
        AdminRequest::FeedRoll { name } => roll(repository, Whom::Feed(&name))?,
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
        AdminRequest::FeedAdd { token, name } => {
            let add = |stop| feed::enrol::add(repository, &token, name, stop);
            AdminAnswer::FeedAdded { name: run_unstopped(add)? }
        }
        AdminRequest::FeedList => {
            AdminAnswer::Feeds { feeds: with_feed_keys(repository, repository.feed_statuses()?) }
        }
        AdminRequest::FeedPause { name, is_paused } => {
            repository.pause_feed(&name, is_paused)?;
            AdminAnswer::Done
        }
        AdminRequest::FeedRemove { name } => {
            feed::remove(repository, &name)?;
            AdminAnswer::Done
        }
        // The others are carried out by the caller.
        other => return Err(ServerError::Bug(format!("no such command: {other:?}"))),
    })
}

/// Rolls over the keys with which this server is enrolled at another.
fn roll(repository: &Arc<Repository>, whom: Whom<'_>) -> Result<AdminAnswer, ServerError> {
    let name = run_unstopped(|stop| roll_named(repository, whom, stop))?;
    Ok(AdminAnswer::PeerKeysRolled { name })
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

/// Runs what could be stopped, and is not: the command ends by its own timeouts.
fn run_unstopped<T, F>(work: impl FnOnce(Stop) -> F) -> Result<T, ServerError>
where
    F: Future<Output = Result<T, ReplicaError>>,
{
    let (stopper, stop) = stop::signal();
    let outcome = run_here(work(stop));
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
            | AdminRequest::ReplicaRoll { .. }
            | AdminRequest::FeedRoll { .. }
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
