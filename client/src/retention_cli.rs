//! The command line of locks, holds, policies, pruning, proposals and the retention clock.

use clap::{Args, Subcommand, ValueEnum};
use strongroom_protocol::id::Label;
use strongroom_protocol::retention::RetentionMode;

use crate::arguments::{parse_class, parse_duration, parse_period};
use crate::options::{Reading, Until};
use crate::prune::Rules;

/// A mode, as it is typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ModeWord {
    /// Lifted by two principals, on record
    Governance,
    /// Lifted by nobody
    Compliance,
}

impl From<ModeWord> for RetentionMode {
    fn from(word: ModeWord) -> Self {
        match word {
            ModeWord::Governance => Self::Governance,
            ModeWord::Compliance => Self::Compliance,
        }
    }
}

/// `retain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  strongroom retain erp@latest --for 5y --namespace erp
  strongroom retain 3fa9c2 --until 2031-05-31 --namespace erp
  strongroom retain 3fa9c2 --forever --mode compliance --namespace erp

A lock is only ever extended. --until DATE ends at the end of that day, UTC, and needs both the
server's retention clock and its wall clock to be past it.")]
pub struct Retain {
    /// SOURCE, SOURCE@latest, latest, an id or its start
    pub snapshot: String,
    /// Until when.
    #[command(flatten)]
    pub until: Until,
    /// Raise the mode
    #[arg(long)]
    pub mode: Option<ModeWord>,
    /// Where it is.
    #[command(flatten)]
    pub reading: Reading,
}

/// `hold`.
#[derive(Debug, Subcommand)]
pub enum Hold {
    /// Keep a snapshot until the hold is released, whatever its lock says
    Place(HoldChange),
    /// Release a hold; the lock stays as it is (security officers)
    Release(HoldChange),
}

/// `hold place` and `hold release`.
#[derive(Debug, Args)]
pub struct HoldChange {
    /// SOURCE, SOURCE@latest, latest, an id or its start
    pub snapshot: String,
    /// Why, for the record; write no personal data
    #[arg(long)]
    pub reason: String,
    /// Where it is.
    #[command(flatten)]
    pub reading: Reading,
}

/// `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the retention policy of a namespace
    Show(PolicyShow),
    /// Change it; what is not named stays, and existing snapshots are not touched
    #[command(after_help = POLICY_EXAMPLES)]
    Set(PolicySet),
}

const POLICY_EXAMPLES: &str = "\
Examples:
  strongroom policy set --namespace erp --minimum 30d --default 1y --maximum 30y
  strongroom policy set --namespace erp --source lots=expiry-plus-2y --source implants=permanent
  strongroom policy set --namespace erp --quota-bytes 2000000000000 --quota-snapshots 100000

Classes: expiry-plus-2y (backups name the product's expiry date), at-least-5y, permanent. A change
that would lock less, or less firmly, or that raises a quota, is proposed: another principal
approves it with `strongroom approve`.";

/// `policy show`.
#[derive(Debug, Args)]
pub struct PolicyShow {
    /// Which namespace.
    #[command(flatten)]
    pub reading: Reading,
}

/// `policy set`.
#[derive(Debug, Args)]
pub struct PolicySet {
    /// Mode of new locks
    #[arg(long)]
    pub mode: Option<ModeWord>,
    /// Shortest lock
    #[arg(long, value_parser = parse_period, value_name = "DURATION|forever")]
    pub minimum: Option<u64>,
    /// Lock of backups that ask for nothing
    #[arg(long, value_parser = parse_period, value_name = "DURATION|forever")]
    pub default: Option<u64>,
    /// Longest lock
    #[arg(long, value_parser = parse_period, value_name = "DURATION|forever")]
    pub maximum: Option<u64>,
    /// Class of a source; without a class, the source goes by the rule; may be repeated
    #[arg(long, value_parser = parse_class, value_name = "SOURCE=CLASS")]
    pub source: Vec<(Label, Option<Label>)>,
    /// Bytes that the namespace may hold; 0 for no bound
    #[arg(long, value_name = "BYTES")]
    pub quota_bytes: Option<u64>,
    /// Snapshots that the namespace may hold; 0 for no bound
    #[arg(long, value_name = "COUNT")]
    pub quota_snapshots: Option<u64>,
    /// Which namespace.
    #[command(flatten)]
    pub reading: Reading,
}

/// `prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  strongroom prune erp --keep-last 7 --keep-weekly 8 --keep-monthly 24 --dry-run --namespace erp
  strongroom prune erp --keep-daily 14 --namespace erp

Locked and held snapshots are kept and take no place of what the rules keep. Periods are those of
the server's time, in UTC. Days with far more snapshots than usual are kept whole until you have
looked at them and give --accept-burst.")]
pub struct Prune {
    /// What was backed up
    pub source: Label,
    /// Keep the newest
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub keep_last: usize,
    /// Keep the newest of so many hours
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub keep_hourly: usize,
    /// Keep the newest of so many days
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub keep_daily: usize,
    /// Keep the newest of so many weeks
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub keep_weekly: usize,
    /// Keep the newest of so many months
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub keep_monthly: usize,
    /// Keep the newest of so many years
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub keep_yearly: usize,
    /// Print what would be kept and why, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Count days with far more snapshots than usual like any other
    #[arg(long)]
    pub accept_burst: bool,
    /// Where it is.
    #[command(flatten)]
    pub reading: Reading,
}

impl Prune {
    /// What to keep.
    pub const fn rules(&self) -> Rules {
        Rules {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
        }
    }
}

/// `approve` and `reject`.
#[derive(Debug, Args)]
pub struct Decision {
    /// Number of the proposal
    pub proposal: u64,
    /// What you mean by it, in your words, for the record
    #[arg(long)]
    pub meaning: String,
}

/// `clock`.
#[derive(Debug, Subcommand)]
pub enum Clock {
    /// Where the server's retention clock stands, and why
    Status,
    /// Propose to count time without power as time that has passed (security officers)
    Credit {
        /// How much, as in 30d
        #[arg(value_parser = parse_duration)]
        period: u64,
    },
    /// Propose to end the freeze of the retention clock (security officers)
    Thaw,
}
