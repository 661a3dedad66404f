//! `strongroomd`: parse, log, run, say what went wrong.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use strongroom_server::cli::{Cli, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("STRONGROOMD_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_json {
        true => log.json().init(),
        false => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
    if let Err(error) = keep_private() {
        eprintln!("strongroomd: cannot keep its memory from core dumps: {error}");
        return ExitCode::FAILURE;
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("strongroomd: {error}{}", error.advice());
            ExitCode::FAILURE
        }
    }
}

/// Nothing that this process makes is readable to others, and its memory, which has keys, gets into
/// no core dump. Both are needed for that: a limit of 0 stops files, but not a dump that the kernel
/// pipes to a program. What is not dumpable is closed to other processes of its user, too.
fn keep_private() -> std::io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
