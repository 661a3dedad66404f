//! Small files that must be there, whole and private, after a power cut.
//!
//! 1. Write a temporary file beside the target (mode 0600) and fsync it. *Crash: a stray
//!    temporary file.*
//! 2. Rename it over the target. *Crash: old or new contents, never a mixture.*
//! 3. fsync the folder, so that the rename itself is on disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::ClientError;

/// Writes `bytes` to `path` with mode 0600, durably and atomically.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    let fail = |error| ClientError::file(format!("write {}", path.display()), error);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)?;
    sync_folder_of(path)
}

/// Writes `bytes` to a file that must not exist yet, with mode 0600, durably.
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    let fail = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AlreadyExists => " (it exists; move it away or name another folder)",
            _ => "",
        };
        ClientError::file(format!("create {}{hint}", path.display()), error)
    };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    sync_folder_of(path)
}

/// Makes a folder with mode 0700, and those above it.
pub fn make_folder(path: &Path) -> Result<(), ClientError> {
    let fail = |error| ClientError::file(format!("make folder {}", path.display()), error);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)
}

/// Reads a whole file of at most `max_bytes`.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, ClientError> {
    use std::io::Read;
    let fail = |error| ClientError::file(format!("read {}", path.display()), error);
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(fail)?;
    if u64::try_from(bytes.len()).map_or(true, |length| length > max_bytes) {
        return Err(fail(io::Error::other("file is too large")));
    }
    Ok(bytes)
}

/// Reads a file that may be absent.
pub fn read_if_there(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, ClientError> {
    match read(path, max_bytes) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ClientError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Removes a file that may be absent, durably.
pub fn remove(path: &Path) -> Result<(), ClientError> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ClientError::file(format!("remove {}", path.display()), error)),
    }
}

/// Makes names in the folder of `path` durable.
pub fn sync_folder_of(path: &Path) -> Result<(), ClientError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| ClientError::file(format!("sync folder {}", folder.display()), error))
}
