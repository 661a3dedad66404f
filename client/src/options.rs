//! Options that several commands share.

use std::path::PathBuf;

use clap::Args;
use strongroom_protocol::retention::LockWanted;

use crate::arguments::{parse_date, parse_duration};
use crate::error::ClientError;
use crate::files::collect::TreeOptions;
use crate::files::exclude::Excludes;
use crate::files::walk::WalkOptions;

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Folder of profiles [default: $XDG_CONFIG_HOME/strongroom or ~/.config/strongroom]
    #[arg(long, global = true, env = "STRONGROOM_HOME", value_name = "FOLDER")]
    pub home: Option<PathBuf>,
    /// Which principal of which server this is
    #[arg(long, global = true, env = "STRONGROOM_PROFILE", default_value = "default")]
    pub profile: String,
    /// Server addresses instead of the profile's or the kit's; its key is still checked
    #[arg(long, global = true, value_name = "HOST:PORT[,...]")]
    pub server: Option<String>,
    /// Print one JSON object on standard output at the end
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Say more on standard error; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How long to lock a snapshot.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct Until {
    /// Lock the snapshot for so long, as in 5y (365 days each), 90d, 12h
    #[arg(
        long,
        visible_alias = "for",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    pub retain: Option<u64>,
    /// Lock it until the end of this day (UTC), or this instant
    #[arg(long, value_parser = parse_date, value_name = "DATE")]
    pub until: Option<u64>,
    /// Expiry date of the product, for sources whose class counts from it
    #[arg(long, value_parser = parse_date, value_name = "DATE")]
    pub expiry: Option<u64>,
    /// Lock it without end
    #[arg(long)]
    pub forever: bool,
}

impl Until {
    /// What to ask the server for.
    pub fn wanted(&self) -> LockWanted {
        match (self.retain, self.until.or(self.expiry), self.forever) {
            (Some(seconds), ..) => LockWanted::Period(seconds),
            (_, Some(date), _) => LockWanted::Date(date),
            (_, _, true) => LockWanted::Forever,
            _ => LockWanted::Default,
        }
    }
}

/// What of folders is backed up.
#[derive(Debug, Clone, Default, Args)]
pub struct TreeChoice {
    /// Leave out what the pattern names; may be repeated
    #[arg(long, conflicts_with_all = ["stdin", "command"], value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Stay on the file systems of the paths
    #[arg(long, conflicts_with_all = ["stdin", "command"])]
    pub one_file_system: bool,
    /// Back up pipes and devices too
    #[arg(long, conflicts_with_all = ["stdin", "command"])]
    pub special: bool,
}

impl TreeChoice {
    /// The same of these paths.
    pub fn of_paths(self, paths: Vec<PathBuf>) -> Result<TreeOptions, ClientError> {
        let walk = WalkOptions {
            base: None,
            paths,
            excludes: Excludes::parse(&self.exclude)?,
            one_file_system: self.one_file_system,
        };
        Ok(TreeOptions { walk, special: self.special })
    }
}

/// Which namespace to read, and with what.
#[derive(Debug, Clone, Args)]
pub struct Reading {
    /// Recovery kit; no profile is needed then
    #[arg(long, value_name = "FILE", conflicts_with_all = ["identity", "namespace"])]
    pub kit: Option<PathBuf>,
    /// Read from a replica (with --server): a server that the namespace's descriptor does not name.
    /// Snapshots are verified as ever; how new its state is, nothing proves
    #[arg(long, requires = "kit")]
    pub from_replica: bool,
    /// age identity file, with a profile of role restore
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Namespace by name or id, with a profile of the whole server
    #[arg(long, value_name = "NAME|ID")]
    pub namespace: Option<String>,
}
