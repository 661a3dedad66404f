//! A private folder that a command fills with a dump, and that goes with whoever made it.
//!
//! What lies in it is not sealed, so it must not stay. It is removed when it is dropped, also after
//! a failure or a signal. Who is killed at once leaves it behind: the next run that makes a folder
//! in the same place removes those of its own user that nobody holds locked any more.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::error::ClientError;

/// Start of the folders' names.
const PREFIX: &str = ".strongroom-dump-";
/// Where a dump has room on most systems; `/tmp` may be in memory.
const DEFAULT_FOLDER: &str = "/var/tmp";

/// A folder of one run.
#[derive(Debug)]
pub struct Scratch {
    folder: Option<TempDir>,
    /// Locked as long as it is open.
    _lock: File,
}

impl Scratch {
    /// Where folders are made if nobody says where: `TMPDIR`, else on the disk.
    pub fn default_place() -> PathBuf {
        std::env::var_os("TMPDIR").map_or_else(|| DEFAULT_FOLDER.into(), PathBuf::from)
    }

    /// Makes an empty folder in `place` that only this user can enter.
    pub fn make(place: &Path) -> Result<Self, ClientError> {
        let what = || format!("make a folder for the dump in {}", place.display());
        let fail = |error| ClientError::file(what(), error);
        remove_abandoned(place).map_err(fail)?;
        let mode = Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().prefix(PREFIX).permissions(mode).tempdir_in(place);
        let folder = made.map_err(fail)?;
        let lock = open(folder.path()).map_err(fail)?;
        // Another run may be looking into it just now, and goes away again.
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| fail(error.into()))?;
        Ok(Self { folder: Some(folder), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.as_ref().map_or(Path::new(""), TempDir::path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(folder) = self.folder.take() else { return };
        let path = folder.path().to_path_buf();
        if let Err(error) = folder.close() {
            let path = path.display();
            tracing::error!("{path} cannot be removed: {error}; remove it: a dump lies in it");
        }
    }
}

/// Opens a folder itself, not what a link points to.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(CWD, path, flags, Mode::empty())?))
}

/// Removes what runs of this user left in `place` that did not come to their end.
fn remove_abandoned(place: &Path) -> io::Result<()> {
    for entry in place.read_dir()? {
        let entry = entry?;
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        // What is no folder, or has gone, is not ours to mind.
        let Ok(folder) = open(&path) else { continue };
        if folder.metadata()?.uid() != geteuid().as_raw() {
            continue;
        }
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => continue,
            locked => locked?,
        }
        // A new one is empty until it is locked.
        if path.read_dir()?.next().is_none() {
            continue;
        }
        tracing::warn!("{}: removed what a run left that was killed", path.display());
        std::fs::remove_dir_all(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_is_private_and_goes_with_what_is_in_it() {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(place.path()).unwrap();
        let path = scratch.path().to_path_buf();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        fs::create_dir(path.join("sub")).unwrap();
        fs::write(path.join("sub/dump"), b"secret").unwrap();
        drop(scratch);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(Scratch::make(&place.path().join("none")).is_err());
    }

    #[test]
    fn what_a_killed_run_left_goes_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let here = |name: &str| place.path().join(name);
        fs::create_dir(here(".strongroom-dump-killed")).unwrap();
        fs::write(here(".strongroom-dump-killed/dump"), b"secret").unwrap();
        fs::create_dir(here(".strongroom-dump-new")).unwrap();
        fs::create_dir(here("other")).unwrap();
        fs::write(here("other/dump"), b"mine").unwrap();
        std::os::unix::fs::symlink("other", here(".strongroom-dump-link")).unwrap();
        let running = Scratch::make(place.path()).unwrap();
        fs::write(running.path().join("dump"), b"secret").unwrap();
        let second = Scratch::make(place.path()).unwrap();
        assert!(!here(".strongroom-dump-killed").exists());
        assert!(here(".strongroom-dump-new").exists());
        assert!(here(".strongroom-dump-link").exists());
        assert_eq!(fs::read(here("other/dump")).unwrap(), b"mine");
        assert_eq!(fs::read(running.path().join("dump")).unwrap(), b"secret");
        assert!(second.path().exists());
    }
}
