//! Makes the files of a catalogue, in its order, as their bytes come.
//!
//! Folders are made when they are met, and get their modes and times when everything in them is
//! there. Files are their owner's alone until they are whole. What is there already is replaced
//! only where the user said so, by removing its name: its other names keep their content.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat,
    fchmod, fchown, fsetxattr, ftruncate, futimens, utimensat,
};
use strongroom_protocol::catalogue::{Entry, Kind, is_within};

use crate::error::ClientError;
use crate::files::confine::Confined;
use crate::files::select::{Pick, Selection};
use crate::files::spread::Spread;
use crate::files::walk::shown;
use crate::unsealer::Sink;

/// Bits that a captured writer could plant a program with which runs as somebody else.
const PLAIN_MODE: u32 = 0o777;
/// On a folder such bits only say how files in it are made and removed.
const FOLDER_MODE: u32 = 0o3777;
/// Problems that are kept for the summary; all are told and counted.
const PROBLEMS_MAX: usize = 100;

/// Entries that are wanted.
pub type Wanted = Box<dyn Iterator<Item = Result<(Entry, Pick), ClientError>> + Send>;

/// How files are made.
#[derive(Debug, Clone, Copy)]
pub struct PlantOptions {
    /// Something that is in the way is replaced.
    pub replace: bool,
    /// Files that are there are an earlier run's, and their bytes were looked at.
    pub resume: bool,
    /// Make pipes and devices.
    pub special: bool,
    /// Set-user-id bits, and attributes of the system's security.
    pub same_permissions: bool,
    /// Owners can be set.
    pub is_root: bool,
}

/// What was made.
#[derive(Debug, Default)]
pub struct Planted {
    /// Regular files, each name counted.
    pub file_count: u64,
    /// Directories.
    pub directory_count: u64,
    /// Symbolic links, pipes and devices.
    pub other_count: u64,
    /// Pipes, devices and sockets that were not asked for.
    pub skipped_count: u64,
    /// Owners, modes, times and attributes that could not be set.
    pub problem_count: u64,
    /// The first of them, as text.
    pub problems: Vec<String>,
    /// Links to what was not asked for; they become files of their own.
    pub late: Vec<Entry>,
    /// Folders on the way that were made.
    made_on_the_way: Vec<Vec<u8>>,
}

impl Planted {
    fn note(&mut self, path: &[u8], what: &str, error: &io::Error) {
        let text = format!("{}: {what}: {error}", shown(path));
        tracing::warn!("{text}");
        self.problem_count = self.problem_count.saturating_add(1);
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }
}

/// Takes the data stream and makes the files.
pub struct Planter {
    root: Confined,
    wanted: Wanted,
    selection: Selection,
    options: PlantOptions,
    planted: Arc<Mutex<Planted>>,
    current: Option<Current>,
}

/// A file whose bytes are coming.
struct Current {
    entry: Entry,
    file: File,
    spread: Spread,
}

impl Planter {
    /// Makes what is `wanted` below `root`.
    pub fn new(
        root: Confined,
        wanted: Wanted,
        selection: Selection,
        options: PlantOptions,
        planted: Arc<Mutex<Planted>>,
    ) -> Self {
        Self { root, wanted, selection, options, planted, current: None }
    }

    /// Goes on to the next file that has bytes; nothing when all entries are made.
    fn advance(&mut self) -> io::Result<Option<Current>> {
        while let Some(next) = self.wanted.next() {
            let (entry, pick) = next.map_err(|error| io::Error::other(error.to_string()))?;
            let made = self.make(&entry, pick);
            let file = made.map_err(|error| named(&entry.path, &error))?;
            let Some(file) = file else { continue };
            if entry.data_bytes > 0 {
                let spread = Spread::new(&entry);
                return Ok(Some(Current { entry, file, spread }));
            }
            self.finish_file(&entry, &file)?;
        }
        Ok(None)
    }

    /// Makes one entry; gives the file whose bytes are to come.
    fn make(&mut self, entry: &Entry, pick: Pick) -> io::Result<Option<File>> {
        let path = entry.path.as_slice();
        match entry.kind {
            Kind::Directory if path.is_empty() => {}
            Kind::Directory => {
                let is_new = self.replacing(path, |root| root.make_folder(path))?;
                let mut planted = self.planted.lock();
                if pick == Pick::OnTheWay {
                    if is_new {
                        planted.made_on_the_way.push(path.to_vec());
                    }
                } else {
                    planted.directory_count = planted.directory_count.saturating_add(1);
                }
            }
            _ if pick == Pick::OnTheWay => {
                return Err(io::Error::other(
                    "it is no directory, and something below it was asked for",
                ));
            }
            Kind::File | Kind::Stream => return self.make_file(entry).map(Some),
            Kind::HardLink if self.selection.pick(&entry.link_target) != Pick::Yes => {
                let late = Entry { kind: Kind::File, ..entry.clone() };
                self.planted.lock().late.push(late);
            }
            Kind::HardLink => {
                self.replacing(path, |root| root.make_hard_link(path, &entry.link_target))?;
                self.planted.lock().file_count += 1;
            }
            Kind::SymbolicLink => {
                self.replacing(path, |root| root.make_symbolic_link(path, &entry.link_target))?;
                self.set_by_name(entry)?;
                self.planted.lock().other_count += 1;
            }
            Kind::Fifo | Kind::CharacterDevice | Kind::BlockDevice if self.options.special => {
                let kind = match entry.kind {
                    Kind::CharacterDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                self.replacing(path, |root| root.make_special(path, kind, entry.device))?;
                self.set_by_name(entry)?;
                self.planted.lock().other_count += 1;
            }
            Kind::Fifo | Kind::CharacterDevice | Kind::BlockDevice | Kind::Socket => {
                self.planted.lock().skipped_count += 1;
            }
        }
        Ok(None)
    }

    fn make_file(&mut self, entry: &Entry) -> io::Result<File> {
        // A file with holes is made anew: what lies in them now would have to go.
        if self.options.resume
            && entry.holes.is_empty()
            && let Some(file) = self.root.present_file(&entry.path)?
        {
            return Ok(file);
        }
        self.replacing(&entry.path, |root| root.make_file(&entry.path))
    }

    /// Makes something; where something else is in its place, and may go, that goes first.
    fn replacing<T>(
        &mut self,
        path: &[u8],
        mut make: impl FnMut(&mut Confined) -> io::Result<T>,
    ) -> io::Result<T> {
        match make(&mut self.root) {
            Err(error) if self.options.replace && is_in_the_way(&error) => {
                self.root.remove(path)?;
                make(&mut self.root)
            }
            made => made,
        }
    }

    /// Gives a whole file its size, owner, mode, attributes and time, in the order in which none
    /// takes another one away.
    fn finish_file(&mut self, entry: &Entry, file: &File) -> io::Result<()> {
        ftruncate(file, entry.size_bytes).map_err(|error| named(&entry.path, &error.into()))?;
        let mut planted = self.planted.lock();
        set_by_handle(entry, file, PLAIN_MODE, self.options, &mut planted);
        planted.file_count = planted.file_count.saturating_add(1);
        Ok(())
    }

    /// The same for what is not opened: links, pipes, devices.
    fn set_by_name(&mut self, entry: &Entry) -> io::Result<()> {
        let handle = self.root.handle(&entry.path)?;
        let empty = AtFlags::EMPTY_PATH;
        let mut planted = self.planted.lock();
        if self.options.is_root {
            let (uid, gid) = owner_of(entry);
            if let Err(error) = chownat(&handle, "", uid, gid, empty) {
                planted.note(&entry.path, "its owner cannot be set", &error.into());
            }
        }
        if entry.kind != Kind::SymbolicLink {
            // The one way to change the mode of what a handle names, and of nothing else.
            let place = format!("/proc/self/fd/{}", handle.as_raw_fd());
            let mode = Mode::from_raw_mode(entry.mode & PLAIN_MODE);
            if let Err(error) = chmodat(CWD, place, mode, AtFlags::empty()) {
                planted.note(&entry.path, "its mode cannot be set", &error.into());
            }
        }
        if let Err(error) = utimensat(&handle, "", &times_of(entry), empty) {
            planted.note(&entry.path, "its time cannot be set", &error.into());
        }
        Ok(())
    }
}

impl Sink for Planter {
    fn write(&mut self, offset: u64, plaintext: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(u64::try_from(plaintext.len()).unwrap_or(u64::MAX));
        loop {
            if self.current.is_none() {
                self.current = self.advance()?;
            }
            let Some(current) = &mut self.current else { return Ok(()) };
            let Current { entry, file, spread } = current;
            if spread.at() >= end {
                return Ok(());
            }
            let put = |at: u64, piece: &[u8]| file.write_all_at(piece, at);
            spread.take(offset, plaintext, put).map_err(|error| named(&entry.path, &error))?;
            if !spread.is_done() {
                return Ok(());
            }
            if let Some(Current { entry, file, .. }) = self.current.take() {
                self.finish_file(&entry, &file)?;
            }
        }
    }

    fn end(&mut self) -> io::Result<()> {
        loop {
            if let Some(Current { entry, file, .. }) = self.current.take() {
                // What did not come was there.
                self.finish_file(&entry, &file)?;
            }
            self.current = self.advance()?;
            if self.current.is_none() {
                return Ok(());
            }
        }
    }
}

/// Gives folders their owners, modes, attributes and times, those inside before those around them.
pub fn finish_folders(
    root: &mut Confined,
    wanted: Wanted,
    options: PlantOptions,
    planted: &mut Planted,
) -> Result<(), ClientError> {
    let mut open: Vec<Entry> = Vec::new();
    let mut leave = |entry: &Entry, planted: &mut Planted| match root.folder(&entry.path) {
        Ok(folder) => set_by_handle(entry, folder, FOLDER_MODE, options, planted),
        Err(error) => planted.note(&entry.path, "it cannot be opened", &error),
    };
    for next in wanted {
        let (entry, pick) = next?;
        if entry.kind != Kind::Directory || entry.path.is_empty() {
            continue;
        }
        let is_ours = pick == Pick::Yes || planted.made_on_the_way.contains(&entry.path);
        while let Some(last) = open.pop_if(|last| !is_within(&entry.path, &last.path)) {
            leave(&last, planted);
        }
        if is_ours {
            open.push(entry);
        }
    }
    while let Some(last) = open.pop() {
        leave(&last, planted);
    }
    Ok(())
}

/// Gives the root itself what its entry says.
pub fn finish_root(root: &OwnedFd, entry: &Entry, options: PlantOptions, planted: &mut Planted) {
    set_by_handle(entry, root, FOLDER_MODE, options, planted);
}

fn set_by_handle(
    entry: &Entry,
    file: impl AsFd,
    mode_mask: u32,
    options: PlantOptions,
    planted: &mut Planted,
) {
    if options.is_root {
        let (uid, gid) = owner_of(entry);
        if let Err(error) = fchown(&file, uid, gid) {
            planted.note(&entry.path, "its owner cannot be set", &error.into());
        }
    }
    let mask = if options.same_permissions { 0o7777 } else { mode_mask };
    if let Err(error) = fchmod(&file, Mode::from_raw_mode(entry.mode & mask)) {
        planted.note(&entry.path, "its mode cannot be set", &error.into());
    }
    for xattr in &entry.xattrs {
        let is_harmless = [&b"user."[..], b"system.posix_acl_"]
            .iter()
            .any(|prefix| xattr.name.starts_with(prefix));
        if !is_harmless && !options.same_permissions {
            continue;
        }
        let name = xattr.name.as_slice();
        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = fsetxattr(&file, name, &xattr.value, flags) {
            let what = format!("attribute {} cannot be set", shown(name));
            planted.note(&entry.path, &what, &error.into());
        }
    }
    if let Err(error) = futimens(&file, &times_of(entry)) {
        planted.note(&entry.path, "its time cannot be set", &error.into());
    }
}

fn owner_of(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times_of(entry: &Entry) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: entry.modified_seconds,
            tv_nsec: entry.modified_nanoseconds.into(),
        },
    }
}

fn is_in_the_way(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn named(path: &[u8], error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", shown(path)))
}
