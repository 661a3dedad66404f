//! What one file is: an entry of a catalogue, and for a regular file the file itself, open.
//!
//! A device or pipe is never read by accident: only what its folder calls a regular file is
//! opened, in a way that neither waits nor follows a link, and what was opened is asked again what
//! it is.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, openat,
    readlinkat, seek, statat,
};
use rustix::io::Errno;
use strongroom_protocol::catalogue::{Entry, Hole, Kind, Xattr};
use strongroom_protocol::limits::{HOLES_MAX, NAME_MAX_BYTES, XATTR_MAX_BYTES, XATTRS_MAX};

use crate::files::walk::{Found, Trouble};

/// Names of attributes that are read at once; longer lists take a second look.
const LIST_BYTES: usize = 1024;
/// How a regular file is opened: without waiting for whoever put a pipe in its place.
const REGULAR: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Names of users and groups on this machine.
#[derive(Debug, Default)]
pub struct OwnerNames {
    users: HashMap<u32, Vec<u8>>,
    groups: HashMap<u32, Vec<u8>>,
}

impl OwnerNames {
    /// Reads `/etc/passwd` and `/etc/group`.
    pub fn load() -> Self {
        Self { users: names_in("/etc/passwd"), groups: names_in("/etc/group") }
    }

    /// Sets owner and group of an entry by their numbers.
    pub fn name(&self, entry: &mut Entry) {
        entry.owner = self.users.get(&entry.uid).cloned().unwrap_or_default();
        entry.group = self.groups.get(&entry.gid).cloned().unwrap_or_default();
    }
}

fn names_in(table: &str) -> HashMap<u32, Vec<u8>> {
    let text = std::fs::read_to_string(table).unwrap_or_default();
    let max = usize::try_from(NAME_MAX_BYTES).unwrap_or(0);
    let name_of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id = fields.nth(1)?.parse().ok()?;
        Some((id, name.as_bytes().to_vec())).filter(|_| name.len() <= max)
    };
    let mut names = HashMap::new();
    for (id, name) in text.lines().filter_map(name_of) {
        names.entry(id).or_insert(name);
    }
    names
}

/// What was found.
#[derive(Debug)]
pub enum Described {
    /// All there is to it.
    Whole(Entry),
    /// A regular file, to be read.
    File(Box<OpenFile>),
    /// What is backed up on request only, or never.
    Skipped,
}

/// A regular file that is being read, its holes left out.
#[derive(Debug)]
pub struct OpenFile {
    /// What it is; sizes and holes are those at its opening until it was read.
    pub entry: Entry,
    /// Device and number, where the file has more names than this one, and how many.
    pub inode: Option<(u64, u64, u64)>,
    file: File,
    before: State,
    at: u64,
    next_hole: usize,
}

impl OpenFile {
    /// Reads what comes next; 0 bytes at the end.
    pub fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let end = loop {
            match self.entry.holes.get(self.next_hole) {
                Some(hole) if hole.offset == self.at => {
                    self.at = self.at.saturating_add(hole.length);
                    self.next_hole += 1;
                }
                Some(hole) => break hole.offset,
                None => break self.entry.size_bytes,
            }
        };
        let wanted = usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let length = wanted.min(room.len());
        let Some(room) = room.get_mut(..length).filter(|room| !room.is_empty()) else {
            return Ok(0);
        };
        let count = self.file.read_at(room, self.at)?;
        let read = u64::try_from(count).unwrap_or(0);
        self.at = self.at.saturating_add(read);
        self.entry.data_bytes = self.entry.data_bytes.saturating_add(read);
        Ok(count)
    }

    /// The entry of what was read, and whether the file changed meanwhile. One that became shorter
    /// is as long as what was read; one that became longer is as long as it was.
    pub fn finish(mut self) -> io::Result<(Entry, bool)> {
        let is_changed = state_in(&fstat(&self.file)?) != self.before;
        if self.at < self.entry.size_bytes {
            self.entry.size_bytes = self.at;
            self.entry.holes.truncate(self.next_hole);
            return Ok((self.entry, true));
        }
        Ok((self.entry, is_changed))
    }
}

/// Says what was found is. Pipes, devices and sockets are told only where `special` is asked for.
pub fn describe(found: &Found, names: &OwnerNames, special: bool) -> Result<Described, Trouble> {
    match found.kind {
        FileType::RegularFile => open_regular(found, names),
        FileType::Directory => match &found.opened {
            Some(opened) => {
                let stat = fstat(opened).map_err(Trouble::of)?;
                let mut entry = entry_of(Kind::Directory, found, &stat, names);
                entry.xattrs = xattrs_of(opened);
                Ok(Described::Whole(entry))
            }
            None => by_name(Kind::Directory, found, names),
        },
        FileType::Symlink => {
            let target =
                readlinkat(&found.folder, found.name(), Vec::new()).map_err(Trouble::of)?;
            let described = by_name(Kind::SymbolicLink, found, names)?;
            let Described::Whole(mut entry) = described else { return Ok(described) };
            entry.link_target = target.into_bytes();
            Ok(Described::Whole(entry))
        }
        FileType::Fifo if special => by_name(Kind::Fifo, found, names),
        FileType::CharacterDevice if special => by_name(Kind::CharacterDevice, found, names),
        FileType::BlockDevice if special => by_name(Kind::BlockDevice, found, names),
        // A socket means nothing without the process that made it.
        _ => Ok(Described::Skipped),
    }
}

fn open_regular(found: &Found, names: &OwnerNames) -> Result<Described, Trouble> {
    let opened = openat(&found.folder, found.name(), REGULAR, Mode::empty());
    let file = File::from(opened.map_err(Trouble::of)?);
    let stat = fstat(&file).map_err(Trouble::of)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Trouble::Changed);
    }
    let mut entry = entry_of(Kind::File, found, &stat, names);
    entry.xattrs = xattrs_of(&file);
    entry.size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if stored < entry.size_bytes {
        entry.holes = holes_of(&file, entry.size_bytes);
    }
    let inode = match stat.st_nlink {
        0 | 1 => None,
        _ => {
            let name_count = file.metadata().map_err(Trouble::of)?.nlink();
            Some((stat.st_dev, stat.st_ino, name_count))
        }
    };
    Ok(Described::File(Box::new(OpenFile {
        entry,
        inode,
        file,
        before: state_in(&stat),
        at: 0,
        next_hole: 0,
    })))
}

/// Describes what need not be opened, and must still be what its folder said.
fn by_name(kind: Kind, found: &Found, names: &OwnerNames) -> Result<Described, Trouble> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let stat = statat(&found.folder, found.name(), flags).map_err(Trouble::of)?;
    if FileType::from_raw_mode(stat.st_mode) != found.kind {
        return Err(Trouble::Changed);
    }
    let mut entry = entry_of(kind, found, &stat, names);
    if matches!(kind, Kind::CharacterDevice | Kind::BlockDevice) {
        entry.device = stat.st_rdev;
    }
    Ok(Described::Whole(entry))
}

fn entry_of(kind: Kind, found: &Found, stat: &Stat, names: &OwnerNames) -> Entry {
    let mut entry = Entry::empty(kind);
    entry.path.clone_from(&found.path);
    entry.mode = stat.st_mode & 0o7777;
    entry.uid = stat.st_uid;
    entry.gid = stat.st_gid;
    entry.modified_seconds = stat.st_mtime;
    entry.modified_nanoseconds = nanoseconds(stat.st_mtime_nsec);
    names.name(&mut entry);
    entry
}

/// Size and times that change with a file.
type State = (i64, i64, u32, i64, u32);

fn nanoseconds(of_second: impl TryInto<u32>) -> u32 {
    of_second.try_into().unwrap_or(0)
}

fn state_in(stat: &Stat) -> State {
    let modified = (stat.st_mtime, nanoseconds(stat.st_mtime_nsec));
    (stat.st_size, modified.0, modified.1, stat.st_ctime, nanoseconds(stat.st_ctime_nsec))
}

/// Extended attributes, access control lists among them. What this process may not read is left
/// out, as where the file system has none.
fn xattrs_of(file: impl AsFd) -> Vec<Xattr> {
    let mut list = vec![0; LIST_BYTES];
    let listed = match flistxattr(&file, list.as_mut_slice()) {
        Err(Errno::RANGE) => {
            list.resize(usize::try_from(XATTR_MAX_BYTES).unwrap_or(LIST_BYTES), 0);
            flistxattr(&file, list.as_mut_slice())
        }
        listed => listed,
    };
    list.truncate(listed.unwrap_or(0));
    let mut xattrs = Vec::new();
    let mut value = Vec::new();
    let max = usize::try_from(XATTRS_MAX).unwrap_or(0);
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).take(max) {
        value.resize(usize::try_from(XATTR_MAX_BYTES).unwrap_or(0), 0);
        if let Ok(length) = fgetxattr(&file, name, value.as_mut_slice()) {
            value.truncate(length);
            xattrs.push(Xattr { name: name.to_vec(), value: value.clone() });
        }
    }
    xattrs
}

/// Ranges without data. A file system that does not know them has none.
fn holes_of(file: &File, size_bytes: u64) -> Vec<Hole> {
    let max = usize::try_from(HOLES_MAX).unwrap_or(0).saturating_sub(1);
    let (mut holes, mut at) = (Vec::new(), 0);
    while at < size_bytes && holes.len() < max {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size_bytes),
            Err(Errno::NXIO) => size_bytes,
            Err(_) => return Vec::new(),
        };
        if data > at {
            holes.push(Hole { offset: at, length: data - at });
        }
        at = match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if hole > data => hole,
            _ => size_bytes,
        };
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::walk::{Step, Walk, WalkOptions};
    use std::path::Path;

    fn found_in(folder: &Path, name: &str) -> Found {
        let options = WalkOptions { paths: vec![folder.to_path_buf()], ..WalkOptions::default() };
        let mut steps = Walk::begin(&options).unwrap();
        let is_it =
            |step: &Step| matches!(step, Step::Found(found) if found.name() == name.as_bytes());
        match steps.find(is_it).unwrap() {
            Step::Found(found) => found,
            Step::Problem(problem) => panic!("{problem}"),
        }
    }

    fn opened(folder: &Path, name: &str) -> OpenFile {
        match describe(&found_in(folder, name), &OwnerNames::load(), false) {
            Ok(Described::File(file)) => *file,
            other => panic!("{other:?}"),
        }
    }

    fn read_all(file: &mut OpenFile) -> Vec<u8> {
        let (mut all, mut part) = (Vec::new(), [0; 1000]);
        loop {
            match file.read(&mut part).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&part[..count]),
            }
        }
    }

    #[test]
    fn holes_are_told_and_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.write_all_at(&[7; 4096], 1 << 20).unwrap();
        file.set_len(3 << 20).unwrap();
        let mut open = opened(folder.path(), "sparse");
        assert_eq!(read_all(&mut open), [7; 4096]);
        let (entry, is_changed) = open.finish().unwrap();
        assert!(!is_changed);
        assert_eq!((entry.size_bytes, entry.data_bytes), (3 << 20, 4096));
        let ends: Vec<_> = entry.holes.iter().map(|hole| (hole.offset, hole.length)).collect();
        assert_eq!(ends, [(0, 1 << 20), ((1 << 20) + 4096, (2 << 20) - 4096)]);
    }

    #[test]
    fn a_file_that_changes_is_what_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 5000]).unwrap();
        let mut shrinking = opened(folder.path(), "file");
        shrinking.read(&mut [0; 100]).unwrap();
        std::fs::write(&path, [1; 3000]).unwrap();
        assert_eq!(read_all(&mut shrinking).len(), 2900);
        let (entry, is_changed) = shrinking.finish().unwrap();
        assert!(is_changed);
        assert_eq!((entry.size_bytes, entry.data_bytes), (3000, 3000));

        let mut growing = opened(folder.path(), "file");
        std::fs::write(&path, [1; 9000]).unwrap();
        assert_eq!(read_all(&mut growing).len(), 3000, "as long as it was");
        let (entry, is_changed) = growing.finish().unwrap();
        assert!(is_changed && entry.size_bytes == 3000);
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"x").unwrap();
        let found = found_in(folder.path(), "file");
        std::fs::remove_file(&path).unwrap();
        let names = OwnerNames::load();
        let gone = describe(&found, &names, false);
        assert!(matches!(gone, Err(Trouble::Vanished)), "{gone:?}");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        let pipe = describe(&found, &names, false);
        assert!(matches!(pipe, Err(Trouble::Changed)), "{pipe:?}");
        let found = found_in(folder.path(), "file");
        assert!(matches!(describe(&found, &names, false), Ok(Described::Skipped)));
        let told = describe(&found, &names, true);
        assert!(matches!(told, Ok(Described::Whole(Entry { kind: Kind::Fifo, .. }))), "{told:?}");
    }

    #[test]
    fn owners_have_names_here() {
        let mut entry = Entry::empty(Kind::File);
        OwnerNames::load().name(&mut entry);
        assert_eq!((entry.owner.as_slice(), entry.group.as_slice()), (&b"root"[..], &b"root"[..]));
    }
}
