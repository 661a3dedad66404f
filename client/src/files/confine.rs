//! A folder that nothing leaves: every name is looked up below it, and no link is followed.
//!
//! Names come from a catalogue, and the folder may hold links that somebody planted, or that the
//! catalogue itself made a moment before. A folder is reached with `openat2`, where the kernel
//! itself refuses links and whatever leaves the root; where there is no `openat2`, or the path is
//! longer than it takes, name by name, each from the folder before and none followed. In the last
//! folder everything happens by one name, which is not followed either.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, linkat, mkdirat, mknodat, openat,
    openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use strongroom_protocol::catalogue::{check_path, split_path};

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const PRESENT: OFlags = OFlags::RDWR
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Files and folders are their owner's alone until they are whole.
const PRIVATE: Mode = Mode::RWXU;

/// The root of a restore.
#[derive(Debug)]
pub struct Confined {
    root: Arc<OwnedFd>,
    /// The folder that was looked up last: most files lie beside the one before.
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
    has_openat2: bool,
}

impl Confined {
    /// Below an open folder.
    pub fn new(root: OwnedFd) -> Self {
        Self { root: Arc::new(root), last: None, has_openat2: true }
    }

    /// Another look at the same root.
    pub fn again(&self) -> Self {
        Self { root: self.root.clone(), last: None, has_openat2: self.has_openat2 }
    }

    /// The root itself.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens a folder; the empty path is the root.
    pub fn folder(&mut self, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(folder.clone());
        }
        check_path(path).map_err(io::Error::other)?;
        let folder = Arc::new(self.open_folder(path)?);
        self.last = Some((path.to_vec(), folder.clone()));
        Ok(folder)
    }

    fn open_folder(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        if self.has_openat2 {
            match openat2(&self.root, path, FOLDER, Mode::empty(), BELOW) {
                Ok(folder) => return Ok(folder),
                // Seccomp filters of old containers say EPERM for calls that they do not know.
                Err(Errno::NOSYS | Errno::PERM) => self.has_openat2 = false,
                // A rename somewhere made the kernel unsure; a path can be longer than it takes.
                Err(Errno::AGAIN | Errno::NAMETOOLONG) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut names = path.split(|byte| *byte == b'/');
        let first = names.next().unwrap_or_default();
        let mut folder = openat(&self.root, first, FOLDER, Mode::empty())?;
        for name in names {
            folder = openat(&folder, name, FOLDER, Mode::empty())?;
        }
        Ok(folder)
    }

    /// The folder of a path, and the name in it.
    fn place<'a>(&mut self, path: &'a [u8]) -> io::Result<(Arc<OwnedFd>, &'a [u8])> {
        check_path(path).map_err(io::Error::other)?;
        let (parent, name) = split_path(path);
        Ok((self.folder(parent)?, name))
    }

    /// What is there; nothing where nothing is.
    pub fn look(&mut self, path: &[u8]) -> io::Result<Option<Stat>> {
        let (folder, name) = match self.place(path) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a folder; whether it was not there. Something else in its place is an error.
    pub fn make_folder(&mut self, path: &[u8]) -> io::Result<bool> {
        let (folder, name) = self.place(path)?;
        match mkdirat(&folder, name, PRIVATE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                self.folder(path)?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a file, which must not be there.
    pub fn make_file(&mut self, path: &[u8]) -> io::Result<File> {
        let (folder, name) = self.place(path)?;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(File::from(openat(&folder, name, NEW, mode)?))
    }

    /// Opens a regular file that has no other name; nothing where there is none.
    pub fn present_file(&mut self, path: &[u8]) -> io::Result<Option<File>> {
        // What is no regular file is not opened: a device could mind.
        if !self.look(path)?.is_some_and(|stat| is_plain(&stat)) {
            return Ok(None);
        }
        let (folder, name) = self.place(path)?;
        let Ok(file) = openat(&folder, name, PRESENT, Mode::empty()) else { return Ok(None) };
        let is_still = is_plain(&fstat(&file)?);
        Ok(is_still.then(|| File::from(file)))
    }

    /// Removes what is there, if it is no folder.
    pub fn remove(&mut self, path: &[u8]) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        match unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a symbolic link. Whatever it says, nothing here follows it.
    pub fn make_symbolic_link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        Ok(symlinkat(target, &folder, name)?)
    }

    /// Makes another name of a regular file below the root.
    pub fn make_hard_link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let (from, target_name) = self.place(target)?;
        let (folder, name) = self.place(path)?;
        let stat = statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(io::Error::other("the target of a hard link is no regular file any more"));
        }
        Ok(linkat(&from, target_name, &folder, name, AtFlags::empty())?)
    }

    /// Makes a pipe or a device.
    pub fn make_special(&mut self, path: &[u8], kind: FileType, device: u64) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        Ok(mknodat(&folder, name, kind, Mode::RUSR | Mode::WUSR, device)?)
    }

    /// A handle on what is there, without opening it.
    pub fn handle(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let (folder, name) = self.place(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(folder.as_fd(), name, flags, Mode::empty())?)
    }
}

fn is_plain(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_nlink == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn confined(folder: &Path, has_openat2: bool) -> Confined {
        let root = openat(CWD, folder, FOLDER, Mode::empty()).unwrap();
        Confined { has_openat2, ..Confined::new(root) }
    }

    #[test]
    fn nothing_leaves_the_root() {
        for has_openat2 in [true, false] {
            let outside = tempfile::tempdir().unwrap();
            std::fs::write(outside.path().join("secret"), b"x").unwrap();
            let folder = tempfile::tempdir().unwrap();
            let mut root = confined(folder.path(), has_openat2);
            symlink(outside.path(), folder.path().join("link")).unwrap();
            symlink(".", folder.path().join("here")).unwrap();
            symlink(outside.path().join("secret"), folder.path().join("to-file")).unwrap();
            for path in ["link/x", "here/x", "../x", "/tmp/x", "a/../../x", "", "x\0y"] {
                assert!(root.make_file(path.as_bytes()).is_err(), "{path}");
                assert!(root.make_folder(path.as_bytes()).is_err(), "{path}");
                assert!(root.make_hard_link(b"new", path.as_bytes()).is_err(), "{path}");
                assert!(root.make_symbolic_link(path.as_bytes(), b"x").is_err(), "{path}");
                assert!(root.remove(path.as_bytes()).is_err(), "{path}");
            }
            assert!(root.make_file(b"to-file").is_err(), "a link in the place of a file");
            assert!(root.present_file(b"to-file").unwrap().is_none());
            assert!(root.make_hard_link(b"new", b"to-file").is_err());
            assert!(root.make_folder(b"link").is_err(), "a link in the place of a folder");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
            root.remove(b"to-file").unwrap();
            assert!(outside.path().join("secret").exists(), "the link went, not the file");
        }
    }

    /// Somebody who may write there makes a link of a folder and a folder of a link, at any moment.
    #[test]
    fn nothing_leaves_the_root_however_often_folder_and_link_are_swapped() {
        use rustix::fs::{RenameFlags, renameat_with};
        use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
        for has_openat2 in [true, false] {
            let (outside, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            std::fs::write(outside.path().join("secret"), b"x").unwrap();
            std::fs::create_dir(folder.path().join("place")).unwrap();
            symlink(outside.path(), folder.path().join("link")).unwrap();
            let (is_done, swaps) = (AtomicBool::new(false), AtomicU32::new(0));
            let (mut made, mut refused) = (0, 0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let root = openat(CWD, folder.path(), FOLDER, Mode::empty()).unwrap();
                    while !is_done.load(Ordering::SeqCst) {
                        let flags = RenameFlags::EXCHANGE;
                        renameat_with(&root, "place", &root, "link", flags).unwrap();
                        swaps.fetch_add(1, Ordering::SeqCst);
                    }
                });
                for number in 0.. {
                    let path = format!("place/{number}");
                    // No folder is remembered from the time before.
                    let mut root = confined(folder.path(), has_openat2);
                    let outcomes = [
                        root.make_file(path.as_bytes()).is_ok(),
                        root.again().make_folder(format!("{path}-folder").as_bytes()).is_ok(),
                        root.again()
                            .make_symbolic_link(format!("{path}-link").as_bytes(), b"x")
                            .is_ok(),
                        root.again().remove(b"place/secret").is_ok(),
                        root.again().present_file(b"place/secret").is_ok_and(|file| file.is_some()),
                    ];
                    assert!(!outcomes[4], "a file outside was opened");
                    made += outcomes.iter().filter(|is_made| **is_made).count();
                    refused += outcomes.iter().filter(|is_made| !**is_made).count();
                    let is_enough = number >= 500 && made > 100 && refused > 600;
                    if is_enough && swaps.load(Ordering::SeqCst) > 500 {
                        break;
                    }
                }
                is_done.store(true, Ordering::SeqCst);
            });
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
            assert!(outside.path().join("secret").exists());
        }
    }

    #[test]
    fn files_with_other_names_are_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let mut root = confined(folder.path(), true);
        root.make_folder(b"a").unwrap();
        drop(root.make_file(b"a/file").unwrap());
        assert!(root.present_file(b"a/file").unwrap().is_some());
        root.make_hard_link(b"b", b"a/file").unwrap();
        assert!(root.present_file(b"a/file").unwrap().is_none());
        assert!(root.present_file(b"none/file").unwrap().is_none());
        assert!(root.look(b"b").unwrap().is_some() && root.look(b"c").unwrap().is_none());
    }

    #[test]
    fn paths_longer_than_a_call_takes_are_reached() {
        let folder = tempfile::tempdir().unwrap();
        let mut root = confined(folder.path(), true);
        let mut path = Vec::new();
        for _ in 0..30 {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&[b'd'; 200]);
            assert!(root.make_folder(&path).unwrap());
        }
        path.extend_from_slice(b"/file");
        drop(root.make_file(&path).unwrap());
        assert!(root.look(&path).unwrap().is_some());
    }
}
