//! A folder into which files are put by renaming, such as a database's finished log segments.
//!
//! A file is ready the moment it was renamed into the folder, because a rename shows it whole. One
//! that came another way, or before the watch began, is ready when nothing about it has changed for
//! [`SETTLE_TIME`]: whoever writes into the folder itself may still be writing. Names that begin
//! with a dot are somebody's temporary files, and no files. Ready files come in the order of their
//! names, which is that of a database's logs.
//!
//! The kernel tells of renames (inotify); it may drop what it has to tell, so the folder is looked
//! through each [`LOOK_STEP`] as well.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock::wall_ms;
use crate::durable;
use crate::error::ClientError;

/// How long a file that was not renamed into the folder must stay as it is.
pub const SETTLE_TIME: Duration = Duration::from_secs(2);
/// How often the folder is looked through.
const LOOK_STEP: Duration = Duration::from_secs(1);
/// Names that are held at once; what is beyond is found by a later look.
const READY_MAX: usize = 4096;
/// Room for what the kernel tells at once, in bytes.
const EVENTS_BYTES: usize = 8192;

/// How often the watching thread looks whether it is still wanted.
const WATCH_STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// The folder, watched.
pub struct Spool {
    folder: PathBuf,
    renamed: Receiver<OsString>,
    ready: BTreeSet<OsString>,
    looks: Interval,
}

impl Spool {
    /// Watches `folder`, and looks through what is there already.
    pub fn open(folder: &Path) -> Result<Self, ClientError> {
        let watch = || {
            let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            inotify::add_watch(&events, folder, WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
            let (tell, renamed) = channel(READY_MAX);
            let listen = move || {
                // Without the kernel's word there are the looks.
                if let Err(error) = listen(&events, &tell) {
                    tracing::warn!("watch the spool folder: {error}");
                }
            };
            std::thread::Builder::new().name("watch".into()).spawn(listen)?;
            Ok(renamed)
        };
        let renamed = watch().map_err(|error: io::Error| {
            ClientError::file(format!("watch the folder {}", folder.display()), error)
        })?;
        let mut looks = interval(LOOK_STEP);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut spool = Self { folder: folder.to_owned(), renamed, ready: BTreeSet::new(), looks };
        spool.look()?;
        Ok(spool)
    }

    /// The next file that is ready, by its name; waits for one.
    pub async fn next(&mut self) -> Result<OsString, ClientError> {
        while !self.has_ready()? {
            tokio::select! {
                Some(name) = self.renamed.recv() => self.take_in(name)?,
                _ = self.looks.tick() => self.look()?,
            }
        }
        self.ready.pop_first().ok_or_else(|| ClientError::Bug("no file is ready".into()))
    }

    /// Whether a file is ready now.
    pub fn has_ready(&mut self) -> Result<bool, ClientError> {
        while let Ok(name) = self.renamed.try_recv() {
            self.take_in(name)?;
        }
        Ok(!self.ready.is_empty())
    }

    /// The file is still to be taken; false where it has gone.
    pub fn put_back(&mut self, name: &OsStr) -> Result<bool, ClientError> {
        let is_there = self.state(name)?.is_some();
        if is_there {
            self.add(name.to_owned());
        }
        Ok(is_there)
    }

    /// Where a file of the folder is.
    pub fn path(&self, name: &OsStr) -> PathBuf {
        self.folder.join(name)
    }

    /// The file is done with: it moves to `done`, or is removed. One that has gone is no error.
    pub fn finish(&self, name: &OsStr, done: Option<&Path>) -> Result<(), ClientError> {
        let path = self.path(name);
        match done {
            Some(done) => durable::relocate(&path, &done.join(name)),
            None => durable::discard(&path),
        }
    }

    fn take_in(&mut self, renamed: OsString) -> Result<(), ClientError> {
        if self.state(&renamed)?.is_some() {
            self.add(renamed);
        }
        Ok(())
    }

    /// Finds files that came another way.
    fn look(&mut self) -> Result<(), ClientError> {
        let entries = std::fs::read_dir(&self.folder);
        for entry in entries.map_err(|error| self.failed("read", error))? {
            let name = entry.map_err(|error| self.failed("read", error))?.file_name();
            if self.state(&name)?.is_some_and(is_settled) {
                self.add(name);
            }
        }
        Ok(())
    }

    fn add(&mut self, name: OsString) {
        if self.ready.len() < READY_MAX {
            self.ready.insert(name);
        }
    }

    /// When anything about a file was last changed, in seconds since 1970; nothing for what is
    /// no file to take.
    fn state(&self, name: &OsStr) -> Result<Option<i64>, ClientError> {
        if name.as_bytes().starts_with(b".") {
            return Ok(None);
        }
        match std::fs::symlink_metadata(self.path(name)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.ctime())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    fn failed(&self, verb: &str, error: io::Error) -> ClientError {
        ClientError::file(format!("{verb} the folder {}", self.folder.display()), error)
    }
}

/// Passes on what the kernel tells, until nobody wants it any more.
fn listen(events: &OwnedFd, tell: &Sender<OsString>) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    while !tell.is_closed() {
        match reader.next() {
            Ok(event) => {
                let Some(name) = event.file_name() else { continue };
                // A full queue loses nothing: the looks find the file.
                let _ = tell.try_send(OsStr::from_bytes(name.to_bytes()).to_owned());
            }
            Err(Errno::WOULDBLOCK) => {
                match poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&WATCH_STEP)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A change that lies in the future was dated by a clock that has been set since.
fn is_settled(changed_seconds: i64) -> bool {
    let since = wall_ms().div_euclid(1000).saturating_sub(changed_seconds);
    let settle = i64::try_from(SETTLE_TIME.as_secs()).unwrap_or(i64::MAX);
    since > settle || since < -settle
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn name(text: &str) -> OsString {
        text.into()
    }

    #[tokio::test]
    async fn a_renamed_file_is_ready_at_once_and_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut spool = Spool::open(folder.path()).unwrap();
        for file in [".b", ".a", ".c"] {
            fs::write(at(file), file).unwrap();
        }
        fs::create_dir(at("folder")).unwrap();
        fs::rename(at(".b"), at("b")).unwrap();
        assert_eq!(spool.next().await.unwrap(), name("b"));
        fs::rename(at(".c"), at("c")).unwrap();
        fs::rename(at(".a"), at("a")).unwrap();
        while spool.ready.len() < 2 {
            let renamed = spool.renamed.recv().await.unwrap();
            spool.take_in(renamed).unwrap();
        }
        assert_eq!(spool.next().await.unwrap(), name("a"));
        assert_eq!(spool.next().await.unwrap(), name("c"));
        assert!(!spool.has_ready().unwrap());
        assert!(spool.put_back(&name("c")).unwrap());
        assert_eq!(spool.next().await.unwrap(), name("c"));
        spool.finish(&name("c"), None).unwrap();
        spool.finish(&name("c"), None).unwrap();
        assert!(!spool.put_back(&name("c")).unwrap());
        spool.finish(&name("a"), Some(&at("folder"))).unwrap();
        assert!(at("folder").join("a").exists() && !at("a").exists() && at("b").exists());
    }

    #[tokio::test]
    async fn a_file_that_is_written_in_place_waits_until_it_settles() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x"), b"half").unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        assert!(!spool.has_ready().unwrap(), "it was written just now");
        assert_eq!(spool.next().await.unwrap(), name("x"));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_hide_a_file() {
        let now = wall_ms() / 1000;
        assert!(!is_settled(now) && !is_settled(now - 1));
        assert!(is_settled(now - 5) && is_settled(now + 3600));
    }

    #[tokio::test]
    async fn a_folder_that_goes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        drop(folder);
        assert!(spool.next().await.is_err());
        assert!(Spool::open(Path::new("/nowhere/at/all")).is_err());
    }
}
