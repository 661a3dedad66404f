//! Where a restored stream comes down: a file that is whole or not there, or standard output.
//!
//! The stream goes to a temporary file in the target's folder. When everything was verified and
//! written it gets its mode and time, is synced, and takes its name; then the folder is synced.
//! *Crash before the rename: a stray temporary file. After: the whole file.* While the stream is
//! written, its pages are pushed to the disk in the background, so that the last sync is short.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Sender, bounded};
use strongroom_protocol::catalogue::{Entry, Kind};
use strongroom_protocol::id::Label;
use tempfile::NamedTempFile;

use crate::durable;
use crate::error::ClientError;
use crate::files::spread::Spread;
use crate::unsealer::Sink;

/// After so many bytes a file's pages are pushed to the disk in the background.
const WRITE_BACK_BYTES: u64 = 32 << 20;

/// A captured writer could plant a program that runs as root: set-user-id bits are not restored.
const PLAIN_MODE: u32 = 0o777;

/// Where a restored stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file, or a folder in which the file gets its old name.
    Path(PathBuf),
    /// Standard output.
    Stdout,
}

/// A place that takes the bytes of one file.
trait Place: Send {
    /// Takes what belongs to place `at` of the file; places rise, and between them are holes.
    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// The file is so long.
    fn end(&mut self, size_bytes: u64) -> io::Result<()>;
}

/// Finds the file's bytes in what comes of the data stream.
struct ToPlace<P> {
    spread: Spread,
    size_bytes: u64,
    place: P,
}

impl<P: Place> ToPlace<P> {
    fn new(entry: &Entry, place: P) -> Box<Self> {
        Box::new(Self { spread: Spread::new(entry), size_bytes: entry.size_bytes, place })
    }
}

impl<P: Place> Sink for ToPlace<P> {
    fn write(&mut self, offset: u64, plaintext: &[u8]) -> io::Result<()> {
        let place = &mut self.place;
        self.spread.take(offset, plaintext, |at, piece| place.put(at, piece))
    }

    fn end(&mut self) -> io::Result<()> {
        if !self.spread.is_done() {
            return Err(io::Error::other("the stream ended before the file did"));
        }
        self.place.end(self.size_bytes)
    }
}

/// A pipe, in which holes are zeros.
struct ToStdout {
    pipe: File,
    at: u64,
}

impl ToStdout {
    fn fill_to(&mut self, place: u64) -> io::Result<()> {
        let zeros = place.saturating_sub(self.at);
        io::copy(&mut io::repeat(0).take(zeros), &mut self.pipe)?;
        self.at = place;
        Ok(())
    }
}

impl Place for ToStdout {
    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.fill_to(at)?;
        self.pipe.write_all(bytes)?;
        self.at = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn end(&mut self, size_bytes: u64) -> io::Result<()> {
        self.fill_to(size_bytes)
    }
}

/// A file that is pushed to the disk while it is written, so that the last fsync is short.
struct ToFile {
    file: File,
    since_push: u64,
    push: Sender<()>,
}

impl ToFile {
    fn new(file: &File) -> io::Result<Self> {
        let (push, pushed) = bounded(1);
        let behind = file.try_clone()?;
        std::thread::Builder::new().name("write-back".into()).spawn(move || {
            while pushed.recv().is_ok() {
                // The fsync before the rename is the one that counts.
                let _ = behind.sync_data();
            }
        })?;
        Ok(Self { file: file.try_clone()?, since_push: 0, push })
    }
}

impl Place for ToFile {
    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.since_push = self.since_push.saturating_add(length);
        if self.since_push >= WRITE_BACK_BYTES {
            self.since_push = 0;
            let _ = self.push.try_send(());
        }
        Ok(())
    }

    fn end(&mut self, size_bytes: u64) -> io::Result<()> {
        self.file.set_len(size_bytes)
    }
}

/// The temporary file and the name that it gets at the end.
pub struct Landing {
    file: Option<(NamedTempFile, PathBuf)>,
    overwrite: bool,
}

impl Landing {
    /// Opens the place where the stream of `entry` goes. A file that is there is an error unless
    /// `overwrite` was said.
    pub fn prepare(
        target: &Target,
        overwrite: bool,
        entry: &Entry,
        source: &Label,
    ) -> Result<(Self, Box<dyn Sink>), ClientError> {
        let Target::Path(target) = target else {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            let stdout =
                stdout.map_err(|error| ClientError::file("open standard output", error))?;
            let sink = ToPlace::new(entry, ToStdout { pipe: File::from(stdout), at: 0 });
            return Ok((Self { file: None, overwrite }, sink));
        };
        let path =
            if target.is_dir() { target.join(name_of(entry, source)) } else { target.clone() };
        refuse_existing(&path, overwrite)?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let fail = |error| ClientError::file(format!("restore into {}", folder.display()), error);
        let temporary = tempfile::Builder::new()
            .prefix(".strongroom-restore-")
            .tempfile_in(folder)
            .map_err(fail)?;
        let sink = ToFile::new(temporary.as_file()).map_err(fail)?;
        Ok((Self { file: Some((temporary, path)), overwrite }, ToPlace::new(entry, sink)))
    }

    /// Makes the file what it was, and gives it its name.
    pub fn finish(&mut self, entry: &Entry) -> Result<Option<PathBuf>, ClientError> {
        let Some((temporary, path)) = self.file.take() else { return Ok(None) };
        let fail = |error| ClientError::file(format!("restore {}", path.display()), error);
        let file = temporary.as_file();
        if matches!(entry.kind, Kind::File | Kind::HardLink) {
            file.set_permissions(Permissions::from_mode(entry.mode & PLAIN_MODE)).map_err(fail)?;
            if let Some(modified) = modified_of(entry) {
                file.set_modified(modified).map_err(fail)?;
            }
        }
        file.sync_all().map_err(fail)?;
        refuse_existing(&path, self.overwrite)?;
        temporary.persist(&path).map_err(|error| fail(error.error))?;
        durable::sync_folder_of(&path)?;
        Ok(Some(path))
    }
}

fn refuse_existing(path: &Path, overwrite: bool) -> Result<(), ClientError> {
    if overwrite || path.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(ClientError::Usage(format!(
        "{} exists: name another path, or replace it with --overwrite",
        path.display()
    )))
}

/// The last part of the path that was backed up; the source's name for a stream. A catalogue
/// cannot name a place outside the folder.
fn name_of(entry: &Entry, source: &Label) -> PathBuf {
    let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
    match path.file_name() {
        Some(name) => PathBuf::from(name),
        None => PathBuf::from(source.as_str()),
    }
}

fn modified_of(entry: &Entry) -> Option<SystemTime> {
    let nanoseconds = Duration::from_nanos(u64::from(entry.modified_nanoseconds));
    let seconds = Duration::from_secs(entry.modified_seconds.unsigned_abs());
    let whole = if entry.modified_seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(seconds)?
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)?
    };
    whole.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_folder() {
        let source: Label = "erp".parse().unwrap();
        let mut entry = Entry::empty(Kind::File);
        for (path, name) in
            [("dump.sql", "dump.sql"), ("../../etc/passwd", "passwd"), ("..", "erp"), ("", "erp")]
        {
            entry.path = path.as_bytes().to_vec();
            assert_eq!(name_of(&entry, &source), Path::new(name), "{path}");
        }
    }

    #[test]
    fn a_file_that_is_there_stays_unless_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.sql");
        let target = Target::Path(path.clone());
        let source: Label = "erp".parse().unwrap();
        let mut entry = Entry::empty(Kind::File);
        entry.mode = 0o640;
        entry.modified_seconds = -5;
        (entry.size_bytes, entry.data_bytes) = (3, 3);
        let (mut landing, mut sink) = Landing::prepare(&target, false, &entry, &source).unwrap();
        sink.write(0, b"one").unwrap();
        sink.end().unwrap();
        assert!(!path.exists(), "a temporary name until the end");
        assert_eq!(landing.finish(&entry).unwrap(), Some(path.clone()));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
        assert_eq!(metadata.modified().unwrap(), modified_of(&entry).unwrap());
        assert!(Landing::prepare(&target, false, &entry, &source).is_err());
        assert!(Landing::prepare(&target, true, &entry, &source).is_ok());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no stray files");
    }
}
