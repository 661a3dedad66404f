//! Small files that must be there, whole, after a power cut.
//!
//! 1. Write a temporary file beside the target and fdatasync it. *Crash: a stray temporary file.*
//! 2. Rename it over the target. *Crash: old or new contents, never a mixture.*
//! 3. fsync the folder, so that the rename itself is on disk.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::ServerError;

/// Writes `bytes` to `path` with mode 0600, durably and atomically.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), ServerError> {
    let fail = |error| ServerError::file(format!("write {}", path.display()), error);
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_data().map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Gives a file that was written whole its name, durably: step 1 is its writer's but for the sync.
pub fn publish(file: &File, temporary: &Path, path: &Path) -> Result<(), ServerError> {
    let fail = |error| ServerError::file(format!("write {}", path.display()), error);
    let folder = path.parent().unwrap_or(Path::new("."));
    file.sync_data().map_err(fail)?;
    std::fs::rename(temporary, path).map_err(fail)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Gives a file that is on disk another name, durably.
pub fn rename(from: &Path, to: &Path) -> Result<(), ServerError> {
    let fail = |error| ServerError::file(format!("write {}", to.display()), error);
    std::fs::rename(from, to).map_err(fail)?;
    let folder = to.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Makes a folder with mode 0700, and those above it.
pub fn make_folder(path: &Path) -> Result<(), ServerError> {
    let fail = |error| ServerError::file(format!("make folder {}", path.display()), error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, ServerError> {
    std::fs::read(path).map_err(|e| ServerError::file(format!("read {}", path.display()), e))
}
