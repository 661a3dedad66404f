//! What each command of `strongroom` does, and what it prints.
//!
//! Results go to standard output, everything else to standard error. With `--json` the result is
//! one object, also where the command failed: `{"error": ..., "code": ..., "exit_code": ...}`.

use std::path::Path;

use serde::Serialize;
use strongroom_protocol::id::Label;
use strongroom_protocol::message::Status;
use strongroom_protocol::proposal::Verdict;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::{Scope, Token};
use zeroize::Zeroizing;

use crate::arguments::TokenWord;
use crate::audit_commands;
use crate::backup::{self, BackupOptions, CacheUse};
use crate::cli::{Backup, Cli, Command, Enroll, Forget, List, Restore, Setup, Ship, Show, Verify};
use crate::commit::host_name;
use crate::durable;
use crate::enroll::{self, EnrollOptions};
use crate::error::{ClientError, ExitCode};
use crate::file_commands;
use crate::files::restore::TreeRestoreOptions;
use crate::files::select::Selection;
use crate::key_commands;
use crate::landing::Target;
use crate::output::{
    backup_text, details_text, enrolled_text, key_age_text, restore_text, row_text, shipped_text,
    status_text, verify_text,
};
use crate::part_cli;
use crate::progress::Monitor;
use crate::restore::{self, RestoreOptions};
use crate::retention_commands;
use crate::ship::{self, ShipOptions, Shipped};
use crate::snapshot::{self, SnapshotSummary};
use crate::source::Source;
use crate::standby::{self, Purpose};
use crate::terminal::{Output, read_kit, report};

const TOKEN_FILE_MAX_BYTES: u64 = 8192;

/// Runs a parsed command line to its exit code; errors are printed here.
pub async fn run(cli: Cli) -> ExitCode {
    let global = cli.global.clone();
    // A restore to standard output has no room there for a result.
    let is_piped = matches!(&cli.command, Command::Restore(r) if r.to == Path::new("-"));
    // What runs until it is stopped does its work when it is.
    let is_endless = matches!(&cli.command, Command::Ship(_));
    let outcome = tokio::select! {
        outcome = Box::pin(execute(cli, is_piped)) => outcome,
        () = interrupted() => match is_endless {
            true => Ok(ExitCode::Done),
            false => Err(ClientError::Interrupted),
        },
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            report(&global, is_piped, &error);
            error.exit_code()
        }
    }
}

async fn execute(cli: Cli, is_piped: bool) -> Result<ExitCode, ClientError> {
    let output = Output { global: cli.global, is_piped };
    let done = match cli.command {
        Command::Backup(options) => return back_up(&output, options).await,
        Command::Restore(options) => return Box::pin(restore_one(&output, options)).await,
        Command::Setup(setup) => set_up(&output, setup).await,
        Command::Enroll(options) => enroll(&output, options).await,
        Command::Key(command) => Box::pin(key_commands::run(&output, command)).await,
        Command::Ship(options) => ship_files(&output, options).await,
        Command::List(options) => list(&output, options).await,
        Command::Diff(options) => Box::pin(file_commands::diff(&output, options)).await,
        Command::Show(options) => show(&output, options).await,
        Command::Verify(options) => verify(&output, options).await,
        Command::Forget(options) => forget(&output, options).await,
        Command::Retain(options) => retention_commands::retain(&output, options).await,
        Command::Hold(options) => retention_commands::hold(&output, options).await,
        Command::Policy(options) => retention_commands::policy(&output, options).await,
        Command::Prune(options) => retention_commands::prune(&output, options).await,
        Command::Proposals => retention_commands::proposals(&output).await,
        Command::Approve(options) => {
            retention_commands::decide(&output, options, Verdict::Approve).await
        }
        Command::Reject(options) => {
            retention_commands::decide(&output, options, Verdict::Reject).await
        }
        Command::Clock(options) => retention_commands::clock(&output, options).await,
        Command::Status => status(&output).await,
        Command::Audit(command) => audit_commands::run(&output, command).await,
    };
    done.map(|()| ExitCode::Done)
}

async fn set_up(output: &Output, setup: Setup) -> Result<(), ClientError> {
    let folder = output.folder()?;
    let token = read_token(&setup.enroll.token)?;
    if matches!(token.scope, Scope::New(_)) && enroll::pending_namespace(&folder)?.is_none() {
        enroll::new_namespace(&folder, key_commands::namespace_options(setup.keys))?;
    }
    enroll(output, setup.enroll).await
}

async fn enroll(output: &Output, options: Enroll) -> Result<(), ClientError> {
    let second_of = options.standby.then(|| output.profile()).transpose()?;
    let folder = match &second_of {
        Some(first) => first.folder().standby(),
        None => output.folder()?,
    };
    let options = EnrollOptions {
        token: read_token(&options.token)?,
        display_name: options.name.unwrap_or_else(host_name),
        kit_folder: options.kit_folder,
        kit: options.kit.as_deref().map(read_kit).transpose()?,
        second_of,
        connect: output.connect()?,
    };
    let summary = Box::pin(enroll::enroll(&folder, options)).await?;
    output.emit(&summary, || enrolled_text(&summary, &output.global.profile))
}

async fn back_up(output: &Output, mut options: Backup) -> Result<ExitCode, ClientError> {
    let mut source = source_of(&mut options)?;
    let connect = output.connect()?;
    let chosen = standby::choose(output.profile()?, &connect, Purpose::Backup).await?;
    let mut profile = chosen.profile;
    let backup_options = BackupOptions {
        lock_wanted: options.until.wanted(),
        tags: options.tag,
        worker_count: options.threads,
        ..BackupOptions::new(options.source, connect)
    };
    let monitor = Monitor::hidden();
    let display = output.display(&monitor, "backup");
    let run = backup::run(&mut profile, &mut source, &backup_options, &monitor);
    let summary = Box::pin(run).await?;
    drop(display);
    output.emit(&summary, || backup_text(&summary))?;
    Ok(if summary.is_complete { ExitCode::Done } else { ExitCode::Incomplete })
}

/// What the command line says is to be backed up.
fn source_of(options: &mut Backup) -> Result<Source, ClientError> {
    if options.stdin {
        return Source::stdin();
    }
    if !options.command.is_empty() {
        return Ok(Source::Command(std::mem::take(&mut options.command)));
    }
    if !options.part.is_empty() {
        return part_cli::parse(&options.part).map(Source::Set);
    }
    let paths = std::mem::take(&mut options.paths);
    match paths.as_slice() {
        [] => Err(ClientError::Usage(
            "nothing to back up: give a PATH, --stdin, --part, or a command after --".into(),
        )),
        // One file alone is the same whatever folder it lies in.
        [path] if path.is_file() => Ok(Source::File(path.clone())),
        _ => Ok(Source::Tree(std::mem::take(&mut options.tree).of_paths(paths)?)),
    }
}

async fn ship_files(output: &Output, options: Ship) -> Result<(), ClientError> {
    let backup = BackupOptions {
        lock_wanted: options.until.wanted(),
        tags: options.tag,
        worker_count: options.threads,
        cache: CacheUse::Leave,
        ..BackupOptions::new(options.source, output.connect()?)
    };
    let Ship { folder, done, once, .. } = options;
    let options = ShipOptions { backup, folder, done, once };
    let tell = |shipped: &Shipped| output.emit(shipped, || shipped_text(shipped));
    Box::pin(ship::run(|| output.profile(), &options, tell)).await
}

async fn list(output: &Output, options: List) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Listing {
        snapshots: Vec<SnapshotSummary>,
    }
    let is_own = options.reading.kit.is_none() && output.profile()?.settings().role == Role::Backup;
    // A name that no source can have, or has, is a snapshot's.
    let source: Option<Label> = options.name.as_ref().and_then(|name| name.parse().ok());
    let is_source = options.path.is_none()
        && options.name.as_deref() != Some("latest")
        && options.name.is_some() == source.is_some();
    let snapshots = if is_own {
        if !is_source {
            return Err(ClientError::Usage(
                "a machine that backs up cannot read what is in a snapshot: use the recovery kit \
                 (--kit)"
                    .into(),
            ));
        }
        snapshot::list_own(&output.profile()?, source.as_ref())?
    } else {
        let mut access = output.access(&options.reading, options.unverified).await?;
        let snapshots = match is_source {
            true => snapshot::list(&access, source.as_ref()).await?,
            false => Vec::new(),
        };
        if snapshots.is_empty()
            && let Some(name) = &options.name
        {
            let found = snapshot::find(&access, name).await?;
            return file_commands::list(output, &mut access, found, options).await;
        }
        snapshots
    };
    let listing = Listing { snapshots };
    output.emit(&listing, || listing.snapshots.iter().map(row_text).collect())
}

async fn show(output: &Output, options: Show) -> Result<(), ClientError> {
    let access = output.access(&options.reading, options.unverified).await?;
    let details = Box::pin(snapshot::show(&access, &options.snapshot, options.unverified)).await?;
    output.emit(&details, || details_text(&details))
}

async fn restore_one(output: &Output, options: Restore) -> Result<ExitCode, ClientError> {
    let selection = Selection::parse(&options.paths)?;
    let mut access = output.access(&options.reading, options.unverified).await?;
    let found = snapshot::find(&access, &options.snapshot).await?;
    access.wanted_source = Some(found.source.clone());
    let is_stdout = options.to == Path::new("-");
    let restore_options = RestoreOptions {
        target: if is_stdout { Target::Stdout } else { Target::Path(options.to) },
        overwrite: options.overwrite,
        unverified: options.unverified,
        range: options.range,
        tree: TreeRestoreOptions {
            selection,
            overwrite: options.overwrite,
            special: options.special,
            same_permissions: options.same_permissions,
        },
    };
    let monitor = Monitor::hidden();
    let display = output.display(&monitor, "restore");
    let run = restore::restore(&access, found.snapshot, &restore_options, &monitor);
    let summary = Box::pin(run).await?;
    drop(display);
    output.emit(&summary, || restore_text(&summary))?;
    Ok(if summary.is_complete() { ExitCode::Done } else { ExitCode::Incomplete })
}

async fn verify(output: &Output, options: Verify) -> Result<(), ClientError> {
    let mut access = output.access(&options.reading, options.unverified).await?;
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
    let access = output.access(&options.reading, false).await?;
    if options.bypass_governance {
        return retention_commands::lift(output, &access, &options.snapshot).await;
    }
    let forgotten = snapshot::forget(&access, &options.snapshot).await?;
    output.emit(&forgotten, || format!("forgot snapshot {}\n", forgotten.record))
}

async fn status(output: &Output) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct StatusAndKeys {
        #[serde(flatten)]
        server: Status,
        keys_made_seconds: u64,
        keys_due_seconds: Option<u64>,
    }
    let client = output.client().await?;
    let server: Status = client.json(&Route::Status, "", None::<&()>).await?;
    let profile = output.profile()?;
    let (made, due) = (profile.keys_made_seconds(), profile.keys_due_seconds());
    let status = StatusAndKeys { server, keys_made_seconds: made, keys_due_seconds: due };
    output.emit(&status, || format!("{}{}\n", status_text(&status.server), key_age_text(made, due)))
}

fn read_token(word: &TokenWord) -> Result<Token, ClientError> {
    let text = word.as_str();
    let text = match text.strip_prefix('@') {
        Some(path) => {
            let bytes = Zeroizing::new(durable::read(Path::new(path), TOKEN_FILE_MAX_BYTES)?);
            Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
        }
        None => Zeroizing::new(text.to_owned()),
    };
    Token::from_text(&text)
        .map_err(|error| ClientError::Usage(format!("{error}: copy the whole token")))
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
