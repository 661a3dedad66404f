//! Options that every command on a data folder has.

use std::path::PathBuf;

use clap::Args;

/// Which folder, and how to answer.
#[derive(Debug, Args)]
pub struct Folder {
    /// Data folder of the repository
    #[arg(long, value_name = "DIR", env = "STRONGROOMD_DATA")]
    pub data: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
