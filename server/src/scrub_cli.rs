//! The command line of `strongroomd scrub`.

use clap::Subcommand;

use crate::admin_messages::AdminRequest;
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
    /// On which folder.
    pub fn folder(&self) -> &Folder {
        let (Self::Run { folder } | Self::Status { folder }) = self;
        folder
    }

    /// To ask what.
    pub fn request(&self) -> AdminRequest {
        match self {
            Self::Run { .. } => AdminRequest::Scrub,
            Self::Status { .. } => AdminRequest::ScrubStatus,
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
        count => format!("{count} ENVELOPES: see docs/operations.md, section 15"),
    };
    let mut text = format!("newest pass      {} ({state})\n", report.pass);
    text += &format!("last complete    {}\n", instant_of(report.completed_seconds));
    let mib = report.bytes >> 20;
    text += &format!("hashed           {} envelopes ({mib} MiB)\n", report.envelope_count);
    text += &format!("found damaged    {}\n", report.damaged_count);
    text += &format!("problems         {}\n", report.problem_count);
    text += &format!("damaged now      {known}\n");
    text += &format!("ever damaged     {}\n", report.damaged_total);
    text += &format!("ever repaired    {}\n", report.repaired_total);
    text
}
