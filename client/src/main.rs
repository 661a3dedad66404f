//! `strongroom`: parse, log, run, exit.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use strongroom_client::cli::Cli;
use strongroom_client::commands::run;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = keep_private() {
        eprintln!("strongroom: cannot keep its memory from core dumps: {error}");
        return ExitCode::FAILURE;
    }
    let level = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("STRONGROOM_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("strongroom: cannot start: {error}; try again later");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(Box::pin(run(cli)));
    // Nothing that still waits on the network has anything left to say.
    runtime.shutdown_background();
    ExitCode::from(code.number())
}

/// Nothing that this process makes is readable to others unless it says so, and its memory, which
/// has keys and plain text, gets into no core dump. Both are needed for that: a limit of 0 stops
/// files, but not a dump that the kernel pipes to a program; a process that is not dumpable is also
/// closed to other processes of its user. A dump command inherits mask and limit.
fn keep_private() -> std::io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
