//! What each command of `strongroom` does, and what it prints.
//!
//! Results go to standard output, everything else to standard error. With `--json` the result is
//! one object, also where the command failed: `{"error": ..., "code": ..., "exit_code": ...}`.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use strongroom_protocol::descriptor::Codec;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::message::Status;
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::{Scope, Token};
use zeroize::Zeroizing;

use crate::arguments::{identities_in, local_time_of_seconds};
use crate::audit::{self, LogRow};
use crate::audit_cli::Audit;
use crate::audit_text::{check_text, ledger_text, log_row_text, prove_text};
use crate::backup::{self, BackupOptions};
use crate::cli::{
    Backup, Cli, Command, Enroll, Forget, Global, Key, KitCommand, List, NewKeys, Reading, Restore,
    Setup, Show, Verify,
};
use crate::commit::host_name;
use crate::durable;
use crate::enroll::{self, EnrollOptions};
use crate::error::{ClientError, ExitCode};
use crate::history;
use crate::kit::{KIT_MAX_BYTES, Kit};
use crate::landing::Target;
use crate::namespace::NamespaceOptions;
use crate::output::{
    backup_text, details_text, enrolled_text, kit_text, restore_text, row_text, status_text,
    verify_text,
};
use crate::profile::{ConnectOptions, Profile, ProfileFolder, locate_home, parse_addresses};
use crate::progress::{Display, Monitor, Style};
use crate::restore::{self, RestoreOptions};
use crate::snapshot::{self, SnapshotSummary};
use crate::source::Source;
use crate::trust::{ReadAccess, is_server_role};

const TOKEN_FILE_MAX_BYTES: u64 = 8192;

/// Runs a parsed command line to its exit code; errors are printed here.
pub async fn run(cli: Cli) -> ExitCode {
    let global = cli.global.clone();
    // A restore to standard output has no room there for a result.
    let is_piped = matches!(&cli.command, Command::Restore(r) if r.to == Path::new("-"));
    let outcome = tokio::select! {
        outcome = Box::pin(execute(cli, is_piped)) => outcome,
        () = interrupted() => Err(ClientError::Interrupted),
    };
    let Err(error) = outcome else { return ExitCode::Done };
    report(&global, is_piped, &error);
    error.exit_code()
}

async fn execute(cli: Cli, is_piped: bool) -> Result<(), ClientError> {
    let output = Output { global: cli.global, is_piped };
    match cli.command {
        Command::Setup(setup) => set_up(&output, setup).await,
        Command::Enroll(options) => enroll(&output, options).await,
        Command::Key(Key::New(keys)) => new_keys(&output, keys),
        Command::Key(Key::Kit(KitCommand::Check { kit })) => check_kit(&output, &kit).await,
        Command::Backup(options) => back_up(&output, options).await,
        Command::List(options) => list(&output, options).await,
        Command::Show(options) => show(&output, options).await,
        Command::Restore(options) => restore_one(&output, options).await,
        Command::Verify(options) => verify(&output, options).await,
        Command::Forget(options) => forget(&output, options).await,
        Command::Status => status(&output).await,
        Command::Audit(command) => audit(&output, command).await,
    }
}

async fn set_up(output: &Output, setup: Setup) -> Result<(), ClientError> {
    let folder = output.folder()?;
    let token = read_token(&setup.enroll.token)?;
    if matches!(token.scope, Scope::New(_)) && enroll::pending_namespace(&folder)?.is_none() {
        enroll::new_namespace(&folder, namespace_options(setup.keys))?;
    }
    enroll(output, setup.enroll).await
}

async fn enroll(output: &Output, options: Enroll) -> Result<(), ClientError> {
    let folder = output.folder()?;
    let options = EnrollOptions {
        token: read_token(&options.token)?,
        display_name: options.name.unwrap_or_else(host_name),
        kit_folder: options.kit_folder,
        kit: options.kit.as_deref().map(read_kit).transpose()?,
        connect: output.connect()?,
    };
    let summary = Box::pin(enroll::enroll(&folder, options)).await?;
    output.emit(&summary, || enrolled_text(&summary, &output.global.profile))
}

fn new_keys(output: &Output, keys: NewKeys) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct NewKeysSummary {
        namespace: strongroom_protocol::id::NamespaceId,
    }
    let namespace = enroll::new_namespace(&output.folder()?, namespace_options(keys))?;
    let summary = NewKeysSummary { namespace: namespace.namespace() };
    output.emit(&summary, || {
        format!(
            "namespace {}\nIts secrets wait in this profile. Next: strongroom enroll --token \
             TOKEN, which writes the recovery kit and removes them.\n",
            summary.namespace
        )
    })
}

fn namespace_options(keys: NewKeys) -> NamespaceOptions {
    NamespaceOptions {
        chunk_average_bytes: keys.chunk_kib.saturating_mul(1024),
        codec: match keys.zstd_level {
            0 => Codec::None,
            level => Codec::Zstd(level),
        },
        extra_recipients: keys.recipient,
    }
}

async fn check_kit(output: &Output, path: &Path) -> Result<(), ClientError> {
    let kit = read_kit(path)?;
    let access = ReadAccess::with_kit(&kit, &output.connect()?, false).await?;
    let check = Box::pin(snapshot::check_kit(&access)).await?;
    output.emit(&check, || kit_text(&check))
}

async fn back_up(output: &Output, options: Backup) -> Result<(), ClientError> {
    let mut source = match (options.file, options.stdin, options.command) {
        (Some(file), ..) => Source::File(file),
        (_, true, _) => Source::stdin()?,
        (_, _, command) if !command.is_empty() => Source::Command(command),
        _ => {
            return Err(ClientError::Usage(
                "nothing to back up: give a FILE, --stdin, or a command after --".into(),
            ));
        }
    };
    let mut profile = output.profile()?;
    let backup_options = BackupOptions {
        source: options.source,
        lock_wanted: options.retain.map_or(LockWanted::Default, LockWanted::Period),
        tags: options.tag,
        connect: output.connect()?,
        worker_count: options.threads,
    };
    let monitor = Monitor::hidden();
    let display = output.display(&monitor, "backup");
    let run = backup::run(&mut profile, &mut source, &backup_options, &monitor);
    let summary = Box::pin(run).await?;
    drop(display);
    output.emit(&summary, || backup_text(&summary))
}

async fn list(output: &Output, options: List) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Listing {
        snapshots: Vec<SnapshotSummary>,
    }
    let source = options.source.as_ref();
    let is_own = options.reading.kit.is_none() && output.profile()?.settings().role == Role::Backup;
    let snapshots = if is_own {
        snapshot::list_own(&output.profile()?, source)?
    } else {
        let access = access(output, &options.reading, false).await?;
        snapshot::list(&access, source).await?
    };
    let listing = Listing { snapshots };
    output.emit(&listing, || listing.snapshots.iter().map(row_text).collect())
}

async fn show(output: &Output, options: Show) -> Result<(), ClientError> {
    let access = access(output, &options.reading, options.unverified).await?;
    let details = Box::pin(snapshot::show(&access, &options.snapshot, options.unverified)).await?;
    output.emit(&details, || details_text(&details))
}

async fn restore_one(output: &Output, options: Restore) -> Result<(), ClientError> {
    let mut access = access(output, &options.reading, options.unverified).await?;
    let found = snapshot::find(&access, &options.snapshot).await?;
    access.wanted_source = Some(found.source.clone());
    let is_stdout = options.to == Path::new("-");
    let restore_options = RestoreOptions {
        target: if is_stdout { Target::Stdout } else { Target::Path(options.to) },
        overwrite: options.overwrite,
        unverified: options.unverified,
    };
    let monitor = Monitor::hidden();
    let display = output.display(&monitor, "restore");
    let run = restore::restore(&access, found.snapshot, &restore_options, &monitor);
    let summary = Box::pin(run).await?;
    drop(display);
    output.emit(&summary, || restore_text(&summary))
}

async fn verify(output: &Output, options: Verify) -> Result<(), ClientError> {
    let mut access = access(output, &options.reading, options.unverified).await?;
    let found = snapshot::find(&access, &options.snapshot).await?;
    access.wanted_source = Some(found.source.clone());
    let monitor = Monitor::hidden();
    let display = output.display(&monitor, "verify");
    let percent = options.sample.unwrap_or(100.0);
    let run = restore::verify(&access, found.snapshot, percent, options.unverified, &monitor);
    let summary = Box::pin(run).await?;
    drop(display);
    output.emit(&summary, || verify_text(&summary))
}

async fn forget(output: &Output, options: Forget) -> Result<(), ClientError> {
    let access = access(output, &options.reading, false).await?;
    let forgotten = snapshot::forget(&access, &options.snapshot).await?;
    output.emit(&forgotten, || format!("forgot snapshot {}\n", forgotten.record))
}

async fn status(output: &Output) -> Result<(), ClientError> {
    let mut profile = output.profile()?;
    let client = history::connect(&mut profile, &output.connect()?).await?;
    let status: Status = client.json(&Route::Status, "", None::<&()>).await?;
    output.emit(&status, || status_text(&status))
}

async fn audit(output: &Output, command: Audit) -> Result<(), ClientError> {
    match command {
        Audit::Log(options) => audit_log(output, options.from).await,
        Audit::Verify => {
            let (mut profile, connect) = (output.profile()?, output.connect()?);
            let summary = Box::pin(audit::verify(&mut profile, &connect)).await?;
            output.emit(&summary, || ledger_text(&summary))
        }
        Audit::Prove(options) => {
            let (mut profile, connect) = (output.profile()?, output.connect()?);
            let (namespace, name) = (&options.namespace, &options.snapshot);
            let run = audit::prove(&mut profile, &connect, namespace, name, &options.to);
            let summary = Box::pin(run).await?;
            output.emit(&summary, || prove_text(&summary))
        }
        Audit::Check(options) => {
            let summary = audit::check(&options.file, options.ledger_key)?;
            output.emit(&summary, || check_text(&summary))
        }
    }
}

/// Entries are printed as they come, because there may be millions of them; with `--json` as the
/// items of one object, which is closed when all of them are proven.
async fn audit_log(output: &Output, from: u64) -> Result<(), ClientError> {
    let (mut profile, connect) = (output.profile()?, output.connect()?);
    let is_json = output.global.json;
    let put = |text: &str| {
        if output.global.quiet && !is_json {
            return Ok(());
        }
        print(false, text).map_err(|error| ClientError::file("print the result", error))
    };
    let mut before = "{\"entries\":[\n";
    let mut each = |row: LogRow| {
        if !is_json {
            return put(&log_row_text(&row));
        }
        let json = serde_json::to_string(&row)
            .map_err(|error| ClientError::Bug(format!("result: {error}")))?;
        put(&format!("{}{json}", std::mem::replace(&mut before, ",\n")))
    };
    let head = Box::pin(audit::log(&mut profile, &connect, from, &mut each)).await?;
    if is_json {
        let start = if before == ",\n" { "" } else { before };
        put(&format!("{start}\n],\"size\":{}}}\n", head.size))?;
    }
    Ok(())
}

/// The way to read that the options name.
async fn access(
    output: &Output,
    reading: &Reading,
    unverified: bool,
) -> Result<ReadAccess, ClientError> {
    let connect = output.connect()?;
    if let Some(kit) = &reading.kit {
        return ReadAccess::with_kit(&read_kit(kit)?, &connect, unverified).await;
    }
    let mut profile = output.profile()?;
    let role = profile.settings().role;
    if is_server_role(role) {
        let Some(namespace) = &reading.namespace else {
            return Err(ClientError::Usage(format!(
                "a profile of role {role} sees all namespaces: name one with --namespace"
            )));
        };
        return ReadAccess::with_server_profile(&mut profile, namespace, &connect).await;
    }
    let identities = match &reading.identity {
        Some(path) => identities_in(&read_text(path)?)?,
        None => Vec::new(),
    };
    ReadAccess::with_profile(&mut profile, identities, &connect).await
}

fn read_kit(path: &Path) -> Result<Kit, ClientError> {
    Kit::parse(&read_text(path)?)
        .map_err(|error| ClientError::Usage(format!("{}: {error}", path.display())))
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, ClientError> {
    let max_bytes = u64::try_from(KIT_MAX_BYTES).unwrap_or(u64::MAX);
    let bytes = Zeroizing::new(durable::read(path, max_bytes)?);
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

fn read_token(text: &str) -> Result<Token, ClientError> {
    let text = match text.strip_prefix('@') {
        Some(path) => {
            let bytes = durable::read(Path::new(path), TOKEN_FILE_MAX_BYTES)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        None => text.to_owned(),
    };
    Token::from_text(&text)
        .map_err(|error| ClientError::Usage(format!("{error}: copy the whole token")))
}

/// Where results go.
struct Output {
    global: Global,
    is_piped: bool,
}

impl Output {
    fn folder(&self) -> Result<ProfileFolder, ClientError> {
        ProfileFolder::new(&locate_home(self.global.home.clone())?, &self.global.profile)
    }

    fn profile(&self) -> Result<Profile, ClientError> {
        Profile::open(self.folder()?)
    }

    fn connect(&self) -> Result<ConnectOptions, ClientError> {
        let servers = self.global.server.as_deref().map(parse_addresses).transpose()?;
        Ok(ConnectOptions { servers: servers.unwrap_or_default(), ..ConnectOptions::default() })
    }

    fn display(&self, monitor: &Monitor, verb: &'static str) -> Display {
        let is_hidden = self.global.quiet || self.global.json;
        Display::start(monitor, verb, if is_hidden { Style::Hidden } else { Style::Automatic })
    }

    fn emit<T: Serialize>(
        &self,
        result: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), ClientError> {
        let line = if self.global.json {
            let json = serde_json::to_string(result)
                .map_err(|error| ClientError::Bug(format!("result: {error}")))?;
            format!("{json}\n")
        } else if self.global.quiet {
            return Ok(());
        } else {
            text()
        };
        print(self.is_piped, &line).map_err(|error| ClientError::file("print the result", error))
    }
}

fn report(global: &Global, is_piped: bool, error: &ClientError) {
    let mut text = format!("strongroom: {error}\n");
    let mut code = None;
    if let ClientError::Server(body) = error {
        code = Some(body.code.name());
        if let (ErrorCode::Locked, Some(until)) = (body.code, body.locked_until_seconds) {
            text.push_str(&format!("strongroom: locked until {}\n", local_time_of_seconds(until)));
        }
    }
    // Where nobody listens there is nobody to tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
    if global.json {
        let number = error.exit_code().number();
        let object = serde_json::json!({
            "error": error.to_string(), "code": code, "exit_code": number,
        });
        let _ = print(is_piped, &format!("{object}\n"));
    }
}

fn print(is_piped: bool, text: &str) -> std::io::Result<()> {
    if is_piped {
        return std::io::stderr().write_all(text.as_bytes());
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Ends with Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
}
