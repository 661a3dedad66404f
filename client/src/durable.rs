//! Small files that must be there, whole and private, after a power cut.
//!
//! 1. Write a temporary file beside the target (mode 0600, a name of its own) and fsync it. *Crash:
//!    a stray temporary file.*
//! 2. Rename it over the target. *Crash: old or new contents, never a mixture.*
//! 3. fsync the folder, so that the rename itself is on disk.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::ClientError;

/// Writes `bytes` to `path` with mode 0600, durably and atomically.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    let fail = |error| ClientError::file(format!("write {}", path.display()), error);
    // Two processes that write the same file must not share a temporary one.
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(".new-").permissions(Permissions::from_mode(0o600));
    let mut temporary = builder.tempfile_in(folder_of(path)).map_err(fail)?;
    temporary.write_all(bytes).map_err(fail)?;
    temporary.as_file().sync_all().map_err(fail)?;
    temporary.persist(path).map_err(|error| fail(error.error))?;
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

/// Makes a folder with mode 0700, and those above it, durably. One that is there stays as it is.
pub fn make_folder(path: &Path) -> Result<(), ClientError> {
    let fail = |error| ClientError::file(format!("make folder {}", path.display()), error);
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    missing.into_iter().try_for_each(sync_folder_of)
}

/// Waits until no other process has the lock file at `path`, and has it until the answer is
/// dropped. It holds among those who ask for it, and ends with the process.
pub fn lock(path: &Path) -> Result<File, ClientError> {
    let file = open_lock(path)?;
    file.lock().map_err(|error| ClientError::file(format!("lock {}", path.display()), error))?;
    Ok(file)
}

/// The lock file at `path`, as one of several who use what it guards; [`lock_alone`] keeps them
/// out. It is held until the answer is dropped.
pub fn lock_shared(path: &Path) -> Result<File, ClientError> {
    let file = open_lock(path)?;
    file.lock_shared()
        .map_err(|error| ClientError::file(format!("lock {}", path.display()), error))?;
    Ok(file)
}

/// The lock file at `path` alone; nothing, while somebody shares it.
pub fn lock_alone(path: &Path) -> Result<Option<File>, ClientError> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(ClientError::file(format!("lock {}", path.display()), error))
        }
    }
}

fn open_lock(path: &Path) -> Result<File, ClientError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(|error| ClientError::file(format!("lock {}", path.display()), error))
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

/// Removes a file that may be absent; a power cut may bring it back.
pub fn discard(path: &Path) -> Result<(), ClientError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ClientError::file(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Moves a file that may be absent to another name on the same filesystem; one that has it goes.
pub fn relocate(from: &Path, to: &Path) -> Result<(), ClientError> {
    match std::fs::rename(from, to) {
        Ok(()) => sync_folder_of(to),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(()),
        Err(error) => {
            let what = format!("move {} to {}", from.display(), to.display());
            Err(ClientError::file(what, error))
        }
    }
}

/// Makes names in the folder of `path` durable.
pub fn sync_folder_of(path: &Path) -> Result<(), ClientError> {
    let folder = folder_of(path);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| ClientError::file(format!("sync folder {}", folder.display()), error))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_of_one_file_at_once_leave_one_of_their_texts_whole() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        std::thread::scope(|scope| {
            for writer in 0..8u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write(path, &vec![writer; 1000 + usize::from(writer)]).unwrap();
                    }
                });
            }
        });
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes, vec![bytes[0]; 1000 + usize::from(bytes[0])]);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "a stray file");
    }

    #[test]
    fn folders_that_are_made_are_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("some/kit");
        make_folder(&path).unwrap();
        make_folder(&path).unwrap();
        for folder in [&path, &home.path().join("some")] {
            assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
