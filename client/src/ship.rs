//! Log shipping: every file that is put into a folder becomes a snapshot at once, as long as the
//! program runs.
//!
//! 1. Take the next file that is ready (`spool`).
//! 2. Make a snapshot of it (`backup`): committed, locked, its receipt on disk. *Crash before that:
//!    the file is there, and the next run takes it.*
//! 3. Remove it, or move it to where such files go. *Crash before that: the next run takes it
//!    again, and makes a second snapshot of the same chunks, which the server has already.*
//!
//! So a file goes only after its receipt is on disk, and none is passed over. A file that changed
//! while it was read stays, and is taken again when it has settled.
//!
//! Connection, descriptor and keys are kept between files; they are renewed once a minute, busy or
//! not, so that a new descriptor is followed and a lost server is noticed before a file waits for
//! it. What may go away by itself (a server that is down, not promoted or full) is waited for; any
//! other error ends the run, because somebody has to look. The client cache is left to the backups
//! of dumps: logs hardly repeat themselves.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{sleep, timeout};

use crate::backup::{BackupOptions, BackupSummary, Writer};
use crate::clock::Moment;
use crate::error::{ClientError, ExitCode};
use crate::profile::Profile;
use crate::progress::Monitor;
use crate::source::Source;
use crate::spool::Spool;
use crate::standby::{self, Purpose};

/// How long connection and descriptor are used before they are renewed.
const RENEWAL_STEP: Duration = Duration::from_secs(60);
/// Between two tries, when the tries of single requests have been in vain.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What to ship.
#[derive(Debug, Clone)]
pub struct ShipOptions {
    /// How its snapshots are made.
    pub backup: BackupOptions,
    /// Where files are put.
    pub folder: PathBuf,
    /// Where they go after their snapshot, on the same filesystem; nothing removes them.
    pub done: Option<PathBuf>,
    /// End when no file is ready.
    pub once: bool,
}

/// One file that was shipped; the object that `--json` prints, a line each.
#[derive(Debug, Serialize)]
pub struct Shipped {
    /// The file's name.
    pub file: String,
    /// Its snapshot.
    #[serde(flatten)]
    pub summary: BackupSummary,
}

/// Ships files until there is an error that does not go away by itself, or none is ready and the
/// options say so. `profile` opens the profile; `tell` hears of each file after it was removed.
pub async fn run(
    profile: impl Fn() -> Result<Profile, ClientError>,
    options: &ShipOptions,
    mut tell: impl FnMut(&Shipped) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut spool = Spool::open(&options.folder)?;
    loop {
        let error = match ship(profile()?, options, &mut spool, &mut tell).await {
            Ok(true) => return Ok(()),
            Ok(false) => continue,
            Err(error) => error,
        };
        if options.once || !may_pass(&error) {
            return Err(error);
        }
        tracing::warn!("{error}; trying again");
        sleep(RETRY_PAUSE).await;
    }
}

/// Ships with one connection, until it is to be renewed. Gives whether all is done.
async fn ship(
    profile: Profile,
    options: &ShipOptions,
    spool: &mut Spool,
    tell: &mut impl FnMut(&Shipped) -> Result<(), ClientError>,
) -> Result<bool, ClientError> {
    let chosen = standby::choose(profile, &options.backup.connect, Purpose::Backup).await?;
    let mut profile = chosen.profile;
    let mut writer = Writer::prepare(&mut profile, &options.backup).await?;
    let since = Moment::now();
    loop {
        if options.once && !spool.has_ready()? {
            return Ok(true);
        }
        let Some(rest) = RENEWAL_STEP.checked_sub(since.elapsed()) else { return Ok(false) };
        let Ok(name) = timeout(rest, spool.next()).await else { return Ok(false) };
        let name = name?;
        let began = Moment::now();
        let mut source = Source::File(spool.path(&name));
        let monitor = Monitor::hidden();
        match Box::pin(writer.snapshot(&mut source, began, &monitor)).await {
            // It is found again when it has settled.
            Ok(summary) if summary.changed_while_read => {}
            Ok(summary) => {
                spool.finish(&name, options.done.as_deref())?;
                tell(&Shipped { file: name.to_string_lossy().into_owned(), summary })?;
            }
            Err(error) => recover(spool, &name, error)?,
        }
    }
}

/// A file that has gone is no reason to end; whatever else failed, the file is still to be shipped.
fn recover(spool: &mut Spool, name: &OsStr, error: ClientError) -> Result<(), ClientError> {
    if !spool.put_back(name)? {
        tracing::warn!("{}: gone before it was read", spool.path(name).display());
        return Ok(());
    }
    Err(error)
}

fn may_pass(error: &ClientError) -> bool {
    matches!(error.exit_code(), ExitCode::Temporary | ExitCode::Full)
}
