//! `strongroomd`: parse, log, run, say what went wrong.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use strongroom_server::cli::{Cli, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Nothing that this process makes is readable to others.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let filter = EnvFilter::try_from_env("STRONGROOMD_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_json {
        true => log.json().init(),
        false => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("strongroomd: {error}");
            ExitCode::FAILURE
        }
    }
}
