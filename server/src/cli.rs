//! The command line of `strongroomd`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Parser, Subcommand};
use strongroom_protocol::id::{Label, PrincipalId};
use strongroom_protocol::limits::ADDRESS_MAX_BYTES;
use strongroom_protocol::role::Role;

use crate::admin;
use crate::admin_messages::{AdminAnswer, AdminRequest};
use crate::admin_text::{clock_text, cycle_text, instant, instant_of, status_text};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Period};
use crate::error::ServerError;
use crate::feed_cli::{FeedCommand, feed_text};
use crate::folder::Folder;
use crate::promote_cli::{Demote, Promote, moved_text};
use crate::replica_cli::{ReplicaCommand, primary_line, primary_text};
use crate::repository::{Repository, Witness};
use crate::run::BoundServer;
use crate::scrub_cli::{ScrubCommand, scrub_text};
use crate::seed_cli::{ExportArguments, ImportArguments, seed_text};
use crate::store::error::StoreError;

/// Hardened backup repository: keeps what it cannot read, and cannot be talked into deleting it.
#[derive(Debug, Parser)]
#[command(name = "strongroomd", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Log as JSON lines (STRONGROOMD_LOG sets the level: error, warn, info, debug)
    #[arg(long, global = true)]
    pub log_json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  strongroomd init --data /srv/strongroom --host backup.example.com
  strongroomd serve --data /srv/strongroom
  strongroomd token --data /srv/strongroom --namespace erp --role backup

Exit codes: 0 done, 1 failed, 2 the command line is wrong.";

/// Files that store, logs and sockets of the server itself may have open.
const STORE_FILES_MAX: u64 = 960;

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a data folder: keys, ledger, and the first operator's enrolment token
    Init {
        #[command(flatten)]
        folder: Folder,
        /// Host names or addresses that clients will use, with commas
        #[arg(long, value_delimiter = ',', required = true, value_name = "NAME")]
        host: Vec<String>,
        /// Port that clients will use
        #[arg(long, default_value_t = 7443)]
        port: u16,
    },
    /// Serve clients until SIGTERM or Ctrl-C
    Serve {
        #[command(flatten)]
        folder: Folder,
        /// Configuration file (docs/operations.md lists its keys)
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Address for clients; overrides the configuration
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
        /// Address for Prometheus and probes; overrides the configuration
        #[arg(long, value_name = "ADDR")]
        metrics: Option<SocketAddr>,
    },
    /// Make a one-time enrolment token
    Token {
        #[command(flatten)]
        folder: Folder,
        /// Namespace of the principal; made by its first client. Left out for operator,
        /// security-officer, audit, replica and feeder
        #[arg(long, value_name = "NAME")]
        namespace: Option<Label>,
        /// backup, restore, audit, operator, security-officer, replica or feeder
        #[arg(long)]
        role: Role,
        /// Name for people, shown by `principals list`; for role feeder, what to call that primary
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// How long the token lives, at most 24h
        #[arg(long, default_value = "1h", value_parser = parse_period)]
        ttl: Period,
    },
    /// List or revoke principals
    Principals {
        #[command(subcommand)]
        command: PrincipalsCommand,
    },
    /// List namespaces and their retention policies
    Namespaces {
        #[command(flatten)]
        folder: Folder,
    },
    /// Remove a namespace that holds no snapshot, and everybody who belongs to it
    Drop {
        #[command(flatten)]
        folder: Folder,
        /// Its name
        #[arg(long, value_name = "NAME")]
        namespace: Label,
    },
    /// Say how the repository stands
    Status {
        #[command(flatten)]
        folder: Folder,
    },
    /// The clock that locks are counted in
    Clock {
        #[command(subcommand)]
        command: ClockCommand,
    },
    /// Follow other servers and keep what they have
    Replica {
        #[command(subcommand)]
        command: ReplicaCommand,
    },
    /// Dial servers that follow this one and cannot dial it: they ask over these connections
    Feed {
        #[command(subcommand)]
        command: FeedCommand,
    },
    /// Hash all that is stored, and say what is damaged
    Scrub {
        #[command(subcommand)]
        command: ScrubCommand,
    },
    /// Have a namespace's backups come to this server: ask for it, then take the answer
    Promote(Promote),
    /// Take no more backups of a namespace whose descriptor names another server
    Demote(Demote),
    /// Write what this server has to a folder, to be carried to another one; add what is new
    Export(ExportArguments),
    /// Take in what another server wrote to a folder, or check such a folder
    Import(ImportArguments),
    /// This server's TLS key
    Tls {
        #[command(subcommand)]
        command: TlsCommand,
    },
    /// Give back the space of what no snapshot, lock or session needs
    Gc {
        #[command(subcommand)]
        command: GcCommand,
    },
}

#[derive(Debug, Subcommand)]
enum ClockCommand {
    /// Say where it stands, what it has seen, and whether locks end
    Status {
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Debug, Subcommand)]
enum GcCommand {
    /// Run a cycle now, and say what it found
    Run {
        #[command(flatten)]
        folder: Folder,
    },
    /// Say when cycles ran
    Status {
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Debug, Subcommand)]
enum TlsCommand {
    /// Replace it now, as the server does by itself before keys.tls_age; clients and other servers
    /// that pin it follow, and tokens that were made before are of no use any more
    Roll {
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Debug, Subcommand)]
enum PrincipalsCommand {
    /// List all, revoked ones included
    List {
        #[command(flatten)]
        folder: Folder,
    },
    /// Revoke one: its next request is refused
    Revoke {
        #[command(flatten)]
        folder: Folder,
        /// Id, as `principals list` prints it
        principal: PrincipalId,
    },
}

/// Ends the process when the store fails: the service manager restarts it into the open check.
pub struct AbortOnFatal;

impl Witness for AbortOnFatal {
    fn fatal(&self, error: &StoreError) {
        tracing::error!(%error, "store failed; aborting without closing anything");
        std::process::abort();
    }
}

/// Runs a parsed command line.
pub fn run(cli: Cli) -> Result<(), ServerError> {
    match cli.command {
        Command::Init { folder, host, port } => init(&folder, host, port),
        Command::Serve { folder, config, listen, metrics } => {
            let mut config = Config::load(config.as_deref())?;
            config.listen = listen.unwrap_or(config.listen);
            config.metrics = metrics.unwrap_or(config.metrics);
            serve(&folder.data, config)
        }
        Command::Token { folder, namespace, role, name, ttl } => {
            let ttl_seconds = ttl.0.as_secs();
            let display_name = name;
            let request = AdminRequest::Token { namespace, role, display_name, ttl_seconds };
            ask_or_open(&folder, request)
        }
        Command::Principals { command: PrincipalsCommand::List { folder } } => {
            ask_or_open(&folder, AdminRequest::Principals)
        }
        Command::Principals { command: PrincipalsCommand::Revoke { folder, principal } } => {
            ask_or_open(&folder, AdminRequest::Revoke { principal })
        }
        Command::Namespaces { folder } => ask_or_open(&folder, AdminRequest::Namespaces),
        Command::Drop { folder, namespace } => {
            ask_or_open(&folder, AdminRequest::DropNamespace { namespace })
        }
        Command::Status { folder } => ask_or_open(&folder, AdminRequest::Status),
        Command::Clock { command: ClockCommand::Status { folder } } => {
            ask_or_open(&folder, AdminRequest::Clock)
        }
        Command::Replica { command } => {
            let (folder, request) = command.request()?;
            ask_or_open(&folder, request)
        }
        Command::Feed { command } => {
            let (folder, request) = command.request()?;
            ask_or_open(&folder, request)
        }
        Command::Scrub { command } => ask_or_open(command.folder(), command.request()),
        Command::Promote(promote) => {
            let answer = answer_of(&promote.folder, promote.request()?)?;
            print_answer(&promote.finish(answer)?, promote.folder.json)
        }
        Command::Demote(demote) => ask_or_open(&demote.folder, demote.request()?),
        Command::Export(arguments) => {
            let (folder, request) = arguments.request()?;
            ask_or_open(&folder, request)
        }
        Command::Import(arguments) => match arguments.request()? {
            Some((folder, request)) => ask_or_open(&folder, request),
            None => arguments.check(say),
        },
        Command::Tls { command: TlsCommand::Roll { folder } } => {
            ask_or_open(&folder, AdminRequest::RollTlsKey)
        }
        Command::Gc { command: GcCommand::Run { folder } } => {
            ask_or_open(&folder, AdminRequest::Collect)
        }
        Command::Gc { command: GcCommand::Status { folder } } => {
            ask_or_open(&folder, AdminRequest::CollectionStatus)
        }
    }
}

fn init(folder: &Folder, hosts: Vec<String>, port: u16) -> Result<(), ServerError> {
    let address_bytes: usize = hosts.iter().map(|host| host.len() + "[]:65535,".len()).sum();
    if u32::try_from(address_bytes).map_or(true, |bytes| bytes > ADDRESS_MAX_BYTES) {
        return Err(ServerError::Operator("--host: fewer or shorter names, please".into()));
    }
    let path = &folder.data;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let config = Config::default();
    let repository = Repository::create(path, hosts, port, config, clock, Arc::new(AbortOnFatal))?;
    let request = AdminRequest::Token {
        namespace: None,
        role: Role::Operator,
        display_name: "first operator".into(),
        ttl_seconds: strongroom_protocol::limits::TOKEN_TTL_MAX_SECONDS,
    };
    let answer = admin::execute(&Arc::new(repository), request)?;
    if !folder.json {
        say(&format!("repository made in {}\n", path.display()));
        say("next: strongroomd serve --data DIR, then a token for the first client:\n");
        say("      strongroomd token --data DIR --namespace NAME --role backup\n");
        say("enrolment token of the first operator (one use, 24 hours):\n");
    }
    print_answer(&answer, folder.json)
}

fn serve(path: &Path, mut config: Config) -> Result<(), ServerError> {
    config.limits.connections = connections_within_limits(config.limits.connections)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let (repository, report) = Repository::open(path, config, clock, Arc::new(AbortOnFatal))?;
    tracing::info!(?report, "repository opened");
    repository.note_configuration()?;
    let repository = Arc::new(repository);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(128)
        .build()
        .map_err(|error| ServerError::file("start the runtime", error))?;
    runtime.block_on(async {
        let server = BoundServer::bind(repository, path).await?;
        let (clients, probes) = (server.client_address()?, server.probe_address()?);
        tracing::info!(%clients, %probes, "serving");
        server.serve(termination()).await
    })
}

/// Raises the limit of open files as far as it goes, and takes no more connections than leave the
/// store its files: a store that cannot open one fails for good, a connection only for now.
fn connections_within_limits(wanted: u32) -> Result<u32, ServerError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = files.saturating_sub(STORE_FILES_MAX);
    let fitting = u32::try_from(left).unwrap_or(u32::MAX).min(wanted);
    if fitting == 0 {
        return Err(ServerError::Operator(format!(
            "only {files} files may be open; allow at least {} (ulimit -n, LimitNOFILE=)",
            STORE_FILES_MAX.saturating_add(64)
        )));
    }
    if fitting < wanted {
        tracing::warn!(files, connections = fitting, "fewer connections than configured");
    }
    Ok(fitting)
}

/// Ends at SIGTERM or SIGINT.
async fn termination() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Asks the running server, or opens the folder where none runs.
fn ask_or_open(folder: &Folder, request: AdminRequest) -> Result<(), ServerError> {
    print_answer(&answer_of(folder, request)?, folder.json)
}

fn answer_of(folder: &Folder, request: AdminRequest) -> Result<AdminAnswer, ServerError> {
    if let Some(answer) = admin::ask(&folder.data, &request)? {
        return Ok(answer);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let config = Config::default();
    let (repository, _) = Repository::open(&folder.data, config, clock, Arc::new(AbortOnFatal))?;
    admin::execute(&Arc::new(repository), request)
}

fn print_answer(answer: &AdminAnswer, json: bool) -> Result<(), ServerError> {
    if let AdminAnswer::Refused { message } = answer {
        return Err(ServerError::Operator(message.clone()));
    }
    if json {
        let text = serde_json::to_string(answer).map_err(|e| ServerError::Bug(e.to_string()))?;
        say(&format!("{text}\n"));
        return Ok(());
    }
    match answer {
        AdminAnswer::Token { token } => say(&format!("{token}\n")),
        AdminAnswer::Principals { principals } => {
            for p in principals {
                let namespace = p.namespace.as_ref().map_or("-", Label::as_str);
                let state = if p.revoked_ms == 0 { "active" } else { "revoked" };
                let (id, role, enrolled) = (p.principal, p.role.name(), instant(p.enrolled_ms));
                let keys = instant(p.keys_ms);
                say(&format!(
                    "{id}  {role:<16} {namespace:<20} {state:<8} enrolled {enrolled}, keys of \
                     {keys}  {}\n",
                    p.display_name
                ));
            }
        }
        AdminAnswer::Namespaces { namespaces } => {
            for n in namespaces {
                let days = |seconds: u64| seconds / 86_400;
                let takes = if n.takes_backups { "backups" } else { "NO backups" };
                say(&format!(
                    "{:<20} {}  {} mode, locks of {} to {} days, default {}; descriptor {}, takes \
                     {takes}\n",
                    n.name,
                    n.namespace,
                    n.policy.rule.mode.name(),
                    days(n.policy.rule.minimum_seconds),
                    days(n.policy.rule.maximum_seconds),
                    days(n.policy.rule.default_seconds),
                    n.descriptor_version
                ));
            }
        }
        AdminAnswer::Status { status } => say(&status_text(status)),
        AdminAnswer::Clock { status } => say(&clock_text(status)),
        AdminAnswer::Collected { report } => say(&cycle_text(report)),
        AdminAnswer::Collection { generation, began_seconds, completed, completed_seconds } => {
            say(&format!("newest cycle     {generation}, begun {}\n", instant_of(*began_seconds)));
            say(&format!("newest complete  {completed}, {}\n", instant_of(*completed_seconds)));
        }
        AdminAnswer::TlsKeyRolled { tls_key, serial } => {
            say(&format!("TLS key number {serial}, {tls_key}, is shown from now on\n"));
        }
        AdminAnswer::Done => say("done\n"),
        other => print_replica(other),
    }
    Ok(())
}

/// What commands about primaries, feeds and scrub are answered.
fn print_replica(answer: &AdminAnswer) {
    match answer {
        AdminAnswer::Scrubbed { report } => say(&scrub_text(report, instant_of)),
        AdminAnswer::ReplicaAdded { name } => {
            say(&format!("primary {name} is followed while the server runs\n"));
        }
        AdminAnswer::PeerKeysRolled { name } => {
            say(&format!("{name} knows this server by new keys from now on\n"));
        }
        AdminAnswer::FeedAdded { name } => {
            say(&format!("connections are lent to {name} while the server runs\n"));
        }
        AdminAnswer::Feeds { feeds } => {
            feeds.iter().for_each(|feed| say(&feed_text(feed, instant)));
        }
        AdminAnswer::Primaries { primaries } => {
            primaries.iter().for_each(|primary| say(&primary_line(primary)));
        }
        AdminAnswer::Following { primaries } => {
            primaries.iter().for_each(|primary| say(&primary_text(primary, instant)));
        }
        AdminAnswer::Exported { .. } | AdminAnswer::Imported { .. } => say(&seed_text(answer)),
        other => say(&moved_text(other)),
    }
}

/// Writes to standard output; a reader that has gone away is no error.
fn say(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn parse_period(text: &str) -> Result<Period, String> {
    Period::try_from(text.to_owned())
}
