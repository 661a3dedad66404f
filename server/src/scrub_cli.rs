//! The command line of `strongroomd scrub`.

use clap::Subcommand;

use crate::admin::AdminRequest;
use crate::folder::Folder;
use crate::scrub::ScrubReport;

/// What can be done about damage.
#[derive(Debug, Subcommand)]
pub enum ScrubCommand {
    /// Hash everything now, or go on where the last pass was interrupted
    Run {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
    },
    /// Say what is damaged, what was repaired, and when all was hashed last
    Status {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
    },
}

impl ScrubCommand {
    /// On which folder to ask what.
    pub fn request(self) -> (Folder, AdminRequest) {
        match self {
            Self::Run { folder } => (folder, AdminRequest::Scrub),
            Self::Status { folder } => (folder, AdminRequest::ScrubStatus),
        }
    }
}

/// How scrub stands, in words; `instant_of` writes seconds of the retention clock.
pub fn scrub_text(report: &ScrubReport, instant_of: fn(u64) -> String) -> String {
    let state = match (report.pass, report.is_complete) {
        (0, _) => "none yet",
        (_, true) => "complete",
        (_, false) => "interrupted, or under way",
    };
    let known = match report.known_count {
        0 => "none".to_owned(),
        count => format!("{count} ENVELOPES: see docs/operations.md, section 13"),
    };
    format!(
        "newest pass      {} ({state})\nlast complete    {}\nhashed           {} envelopes ({} \
         MiB)\nfound damaged    {}\nproblems         {}\ndamaged now      {known}\never damaged     \
         {}\never repaired    {}\n",
        report.pass,
        instant_of(report.completed_seconds),
        report.envelope_count,
        report.bytes >> 20,
        report.damaged_count,
        report.problem_count,
        report.damaged_total,
        report.repaired_total,
    )
}
