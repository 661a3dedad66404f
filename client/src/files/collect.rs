//! Reads a tree: the files one after the other as the data stream, and beside it the catalogue.
//!
//! Small files share chunks; a file longer than the average chunk begins one, so that the same
//! large file is the same chunks wherever it lies. Holes are in the catalogue and not in the
//! stream. What cannot be read, vanished or changed meanwhile is told at once and counted, and the
//! snapshot is made without it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, statat};
use serde::Serialize;
use strongroom_protocol::catalogue::{Entry, Hole, Kind, MAGIC};
use strongroom_protocol::limits::PATH_MAX_BYTES;

use crate::error::ClientError;
use crate::feed::{Fed, Feed, fed_from};
use crate::files::describe::{Described, OpenFile, OwnerNames, describe};
use crate::files::store::{Growing, StoreReader};
use crate::files::walk::{Problem, Step, Trouble, Walk, WalkOptions};

/// Memory for names of files that have several, in bytes; beyond it a name is a file of its own.
const LINKS_MAX_BYTES: usize = 16 << 20;
/// Problems that are kept for the summary; all are told and counted.
const PROBLEMS_MAX: usize = 100;
/// A tree is not measured beyond so many files.
const MEASURED_MAX: u64 = 4096;
/// About how long an entry of the catalogue is, in bytes.
const ENTRY_BYTES: u64 = 200;

/// What of a tree is backed up.
#[derive(Debug, Clone, Default)]
pub struct TreeOptions {
    /// Where.
    pub walk: WalkOptions,
    /// Pipes and devices too.
    pub special: bool,
}

/// What was read of a tree; a part of the object that `--json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Regular files, each name counted.
    pub file_count: u64,
    /// Directories.
    pub directory_count: u64,
    /// Symbolic links, pipes and devices.
    pub other_count: u64,
    /// Pipes, devices and sockets that were not asked for.
    pub skipped_count: u64,
    /// Files and folders that `--exclude` left out.
    pub excluded_count: u64,
    /// Files and folders that could not be read.
    pub unreadable_count: u64,
    /// Files that vanished before they were read.
    pub vanished_count: u64,
    /// Files that changed while they were read.
    pub changed_count: u64,
    /// The first problems, as text.
    pub problems: Vec<String>,
}

impl Collected {
    /// Everything is in the snapshot as it was.
    pub fn is_complete(&self) -> bool {
        self.unreadable_count == 0 && self.vanished_count == 0 && self.changed_count == 0
    }

    /// Adds what was read of another tree.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.file_count, other.file_count),
            (&mut self.directory_count, other.directory_count),
            (&mut self.other_count, other.other_count),
            (&mut self.skipped_count, other.skipped_count),
            (&mut self.excluded_count, other.excluded_count),
            (&mut self.unreadable_count, other.unreadable_count),
            (&mut self.vanished_count, other.vanished_count),
            (&mut self.changed_count, other.changed_count),
        ];
        for (sum, count) in pairs {
            *sum = sum.saturating_add(count);
        }
        let room = PROBLEMS_MAX.saturating_sub(self.problems.len());
        self.problems.extend(other.problems.iter().take(room).cloned());
    }

    fn note(&mut self, problem: &Problem) {
        tracing::warn!("{problem}");
        let count = match problem.trouble {
            Trouble::Unreadable(_) => &mut self.unreadable_count,
            Trouble::Vanished => &mut self.vanished_count,
            Trouble::Changed => &mut self.changed_count,
        };
        *count = count.saturating_add(1);
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem.to_string());
        }
    }
}

/// A catalogue that is being written, and the length of the data stream so far.
#[derive(Default)]
pub struct Written {
    /// The catalogue.
    pub growing: Growing,
    /// Bytes of the data stream.
    pub data_bytes: u64,
}

impl Written {
    /// The start of a catalogue.
    pub fn begin() -> io::Result<Self> {
        let mut written = Self::default();
        written.growing.push(MAGIC)?;
        Ok(written)
    }

    /// Ends the catalogue, which is read then.
    pub fn finish(self) -> io::Result<StoreReader> {
        Ok(self.growing.finish()?.bytes())
    }
}

/// Reads a tree, as a feed of both streams, or as a part of one.
pub struct Collector {
    walk: Walk,
    names: OwnerNames,
    special: bool,
    /// Folder of the catalogue that the tree is put in; empty for a catalogue of its own.
    place: Vec<u8>,
    /// A file longer than this begins a chunk, in bytes.
    cut_above_bytes: u64,
    current: Option<Box<OpenFile>>,
    links: Links,
    written: Written,
    /// Everything was met.
    is_over: bool,
    catalogue: Option<StoreReader>,
    collected: Arc<Mutex<Collected>>,
}

impl Collector {
    /// Begins to read a tree.
    pub fn begin(options: &TreeOptions) -> Result<Self, ClientError> {
        let fail = |error| ClientError::file("keep the catalogue", error);
        Self::go_on(options, &[], Written::begin().map_err(fail)?)
    }

    /// Begins to read a tree into the folder `place` of a catalogue that was begun.
    pub fn go_on(
        options: &TreeOptions,
        place: &[u8],
        written: Written,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            walk: Walk::begin(&options.walk)?,
            names: OwnerNames::load(),
            special: options.special,
            place: place.to_vec(),
            cut_above_bytes: u64::MAX,
            current: None,
            links: Links::default(),
            written,
            is_over: false,
            catalogue: None,
            collected: Arc::default(),
        })
    }

    /// Files longer than so many bytes begin a chunk.
    pub fn cut_above(&mut self, bytes: u64) {
        self.cut_above_bytes = bytes;
    }

    /// What was read so far; all of it when the feed has ended.
    pub fn collected(&self) -> Arc<Mutex<Collected>> {
        self.collected.clone()
    }

    /// The next of the data stream; nothing when all files were read.
    pub fn next_data(&mut self, room: &mut [u8]) -> io::Result<Option<Fed>> {
        loop {
            if self.current.is_some()
                && let Some(fed) = self.read_current(room)?
            {
                return Ok(Some(fed));
            }
            if self.is_over {
                return Ok(None);
            }
            if self.current.is_none()
                && let Some(fed) = self.advance()?
            {
                return Ok(Some(fed));
            }
        }
    }

    /// What was written of the catalogue when all files were read.
    pub fn into_written(self) -> Written {
        self.written
    }

    /// Goes on to the next file that has bytes, or to the end.
    fn advance(&mut self) -> io::Result<Option<Fed>> {
        while let Some(step) = self.walk.next() {
            let found = match step {
                Step::Found(found) => found,
                Step::Problem(problem) => {
                    self.collected.lock().note(&problem);
                    continue;
                }
            };
            if !self.is_short_enough(&found.path) {
                let trouble = Trouble::Unreadable(io::Error::other("its path is too long"));
                self.collected.lock().note(&Problem { path: found.path, trouble });
                continue;
            }
            match describe(&found, &self.names, self.special) {
                Ok(Described::Whole(entry)) => self.keep(entry)?,
                Ok(Described::File(file)) => {
                    if let Some(link) = self.links.find(&file) {
                        self.keep(link)?;
                        continue;
                    }
                    let is_long = file.entry.size_bytes > self.cut_above_bytes;
                    self.current = Some(file);
                    return Ok(is_long.then_some(Fed::Boundary));
                }
                Ok(Described::Skipped) => self.collected.lock().skipped_count += 1,
                Err(trouble) => {
                    self.collected.lock().note(&Problem { path: found.path, trouble });
                }
            }
        }
        self.collected.lock().excluded_count = self.walk.excluded_count;
        self.is_over = true;
        Ok(None)
    }

    /// A path gets longer by the place that it is put in.
    fn is_short_enough(&self, path: &[u8]) -> bool {
        let length = path.len().saturating_add(self.place.len()).saturating_add(1);
        self.place.is_empty() || u32::try_from(length).is_ok_and(|length| length <= PATH_MAX_BYTES)
    }

    /// A path of the tree as a path of the catalogue.
    fn placed(&self, path: Vec<u8>) -> Vec<u8> {
        match (self.place.is_empty(), path.is_empty()) {
            (true, _) => path,
            (_, true) => self.place.clone(),
            _ => [self.place.as_slice(), path.as_slice()].join(&b'/'),
        }
    }

    /// Writes an entry.
    fn keep(&mut self, mut entry: Entry) -> io::Result<()> {
        entry.path = self.placed(entry.path);
        if entry.kind == Kind::HardLink {
            entry.link_target = self.placed(entry.link_target);
        }
        let mut collected = self.collected.lock();
        let count = match entry.kind {
            Kind::File | Kind::HardLink => &mut collected.file_count,
            Kind::Directory => &mut collected.directory_count,
            _ => &mut collected.other_count,
        };
        *count = count.saturating_add(1);
        self.written.growing.push(&entry.encode())
    }

    /// Reads on in the current file; nothing at its end.
    fn read_current(&mut self, room: &mut [u8]) -> io::Result<Option<Fed>> {
        let Some(file) = &mut self.current else { return Ok(None) };
        match file.read(room) {
            Ok(0) => {}
            Ok(count) => {
                let length = u64::try_from(count).unwrap_or(u64::MAX);
                self.written.data_bytes = self.written.data_bytes.saturating_add(length);
                return Ok(Some(Fed::Bytes(count)));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Err(error);
            }
            Err(error) => {
                // What was read of it stays in the stream, and no entry names it.
                if let Some(file) = self.current.take() {
                    let trouble = Trouble::Unreadable(error);
                    self.collected.lock().note(&Problem { path: file.entry.path, trouble });
                }
                return Ok(None);
            }
        }
        let Some(file) = self.current.take() else { return Ok(None) };
        let inode = file.inode;
        let (mut entry, is_changed) = file.finish()?;
        entry.data_offset = self.written.data_bytes.saturating_sub(entry.data_bytes);
        if is_changed {
            let (path, trouble) = (entry.path.clone(), Trouble::Changed);
            self.collected.lock().note(&Problem { path, trouble });
        }
        self.links.remember(inode, &entry);
        self.keep(entry)?;
        Ok(None)
    }
}

impl Feed for Collector {
    fn feed(&mut self, room: &mut [u8]) -> io::Result<Fed> {
        if let Some(catalogue) = &mut self.catalogue {
            return fed_from(catalogue, room);
        }
        if let Some(fed) = self.next_data(room)? {
            return Ok(fed);
        }
        self.catalogue = Some(std::mem::take(&mut self.written).finish()?);
        Ok(Fed::Catalogue)
    }
}

/// Files that have several names, until all were met.
#[derive(Default)]
struct Links {
    first: HashMap<(u64, u64), FirstName>,
    bytes: usize,
}

/// What a further name must say of the first.
struct FirstName {
    path: Vec<u8>,
    holes: Vec<Hole>,
    size_bytes: u64,
    data_offset: u64,
    data_bytes: u64,
    names_left: u64,
}

impl FirstName {
    fn byte_count(&self) -> usize {
        const ROW_BYTES: usize = 128;
        let holes = self.holes.len().saturating_mul(size_of::<Hole>());
        self.path.len().saturating_add(holes).saturating_add(ROW_BYTES)
    }
}

impl Links {
    /// The entry of a further name of a file that was read.
    fn find(&mut self, file: &OpenFile) -> Option<Entry> {
        let (device, number, _) = file.inode?;
        let first = self.first.get_mut(&(device, number))?;
        let mut entry = file.entry.clone();
        entry.kind = Kind::HardLink;
        entry.link_target.clone_from(&first.path);
        entry.holes.clone_from(&first.holes);
        entry.size_bytes = first.size_bytes;
        entry.data_offset = first.data_offset;
        entry.data_bytes = first.data_bytes;
        first.names_left = first.names_left.saturating_sub(1);
        if first.names_left == 0 {
            self.bytes = self.bytes.saturating_sub(first.byte_count());
            self.first.remove(&(device, number));
        }
        Some(entry)
    }

    fn remember(&mut self, inode: Option<(u64, u64, u64)>, entry: &Entry) {
        let Some((device, number, name_count)) = inode else { return };
        let first = FirstName {
            path: entry.path.clone(),
            holes: entry.holes.clone(),
            size_bytes: entry.size_bytes,
            data_offset: entry.data_offset,
            data_bytes: entry.data_bytes,
            names_left: name_count.saturating_sub(1),
        };
        let bytes = self.bytes.saturating_add(first.byte_count());
        if bytes <= LINKS_MAX_BYTES {
            self.bytes = bytes;
            self.first.insert((device, number), first);
        }
    }
}

/// About how many bytes a tree has, where that is at most `max_bytes` and its files are few.
pub fn size_if_small(options: &TreeOptions, max_bytes: u64) -> Result<Option<u64>, ClientError> {
    let (mut bytes, mut count) = (0u64, 0u64);
    for step in Walk::begin(&options.walk)? {
        let Step::Found(found) = step else { continue };
        count = count.saturating_add(1);
        bytes = bytes.saturating_add(ENTRY_BYTES);
        if found.kind.is_file() {
            let stat = statat(&found.folder, found.name(), AtFlags::SYMLINK_NOFOLLOW);
            let size = stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
            bytes = bytes.saturating_add(size);
        }
        if bytes > max_bytes || count > MEASURED_MAX {
            return Ok(None);
        }
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use strongroom_protocol::catalogue::{Order, decode};

    struct Fetched {
        entries: Vec<Entry>,
        data: Vec<u8>,
        boundaries: Vec<u64>,
        collected: Collected,
    }

    fn collect(folder: &Path, cut_above: u64) -> Fetched {
        let walk = WalkOptions { paths: vec![folder.to_path_buf()], ..WalkOptions::default() };
        let options = TreeOptions { walk, special: true };
        let mut collector = Collector::begin(&options).unwrap();
        collector.cut_above(cut_above);
        let (mut data, mut catalogue, mut boundaries) = (Vec::new(), Vec::new(), Vec::new());
        let (mut room, mut is_catalogue) = ([0; 700], false);
        loop {
            match collector.feed(&mut room).unwrap() {
                Fed::Bytes(count) if is_catalogue => catalogue.extend_from_slice(&room[..count]),
                Fed::Bytes(count) => data.extend_from_slice(&room[..count]),
                Fed::Boundary => boundaries.push(data.len() as u64),
                Fed::Catalogue => is_catalogue = true,
                Fed::End => break,
            }
        }
        let entries = decode(&catalogue).unwrap();
        let mut order = Order::default();
        entries.iter().for_each(|entry| order.take(entry).unwrap());
        assert_eq!(order.finish(data.len() as u64), Ok(true));
        let collected = collector.collected().lock().clone();
        Fetched { entries, data, boundaries, collected }
    }

    impl Fetched {
        fn entry(&self, name: &str) -> &Entry {
            let is_it = |entry: &&Entry| entry.path.ends_with(name.as_bytes());
            self.entries.iter().find(is_it).unwrap()
        }

        fn bytes(&self, name: &str) -> &[u8] {
            let entry = self.entry(name);
            let start = entry.data_offset as usize;
            &self.data[start..start + entry.data_bytes as usize]
        }
    }

    #[test]
    fn files_follow_each_other_and_long_ones_begin_a_chunk() {
        let folder = tempfile::tempdir().unwrap();
        for (name, length) in [("a", 10), ("b", 2000), ("c", 0), ("d", 5), ("e", 1000)] {
            fs::write(folder.path().join(name), vec![name.as_bytes()[0]; length]).unwrap();
        }
        let fetched = collect(folder.path(), 1000);
        assert_eq!(fetched.data.len(), 3015);
        assert_eq!(fetched.boundaries, [10]);
        for name in ["/a", "/b", "/c", "/d", "/e"] {
            let all_equal = fetched.bytes(name).iter().all(|byte| *byte == name.as_bytes()[1]);
            assert!(all_equal, "{name}");
        }
        assert!(fetched.collected.is_complete());
        assert_eq!(fetched.collected.file_count, 5);
    }

    #[test]
    fn further_names_of_a_file_have_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("one"), b"content").unwrap();
        fs::hard_link(folder.path().join("one"), folder.path().join("two")).unwrap();
        let fetched = collect(folder.path(), 1000);
        assert_eq!(fetched.data, b"content");
        let two = fetched.entry("/two");
        assert_eq!(two.kind, Kind::HardLink);
        assert_eq!(two.link_target, fetched.entry("/one").path);
        assert_eq!(fetched.bytes("/two"), b"content");
    }

    #[test]
    fn what_vanishes_or_changes_meanwhile_is_told_and_the_rest_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let here = |name: &str| folder.path().join(name);
        for name in ["a", "b", "c"] {
            fs::write(here(name), vec![b'x'; 1000]).unwrap();
        }
        let walk =
            WalkOptions { paths: vec![folder.path().to_path_buf()], ..WalkOptions::default() };
        let options = TreeOptions { walk, special: false };
        let mut collector = Collector::begin(&options).unwrap();
        let mut room = [0; 600];
        assert_eq!(collector.feed(&mut room).unwrap(), Fed::Bytes(600), "of a");
        fs::write(here("a"), vec![b'y'; 1000]).unwrap();
        fs::remove_file(here("b")).unwrap();
        let mut catalogue = Vec::new();
        let mut is_catalogue = false;
        loop {
            match collector.feed(&mut room).unwrap() {
                Fed::Bytes(count) if is_catalogue => catalogue.extend_from_slice(&room[..count]),
                Fed::Catalogue => is_catalogue = true,
                Fed::End => break,
                Fed::Bytes(_) | Fed::Boundary => {}
            }
        }
        let collected = collector.collected().lock().clone();
        assert!(!collected.is_complete());
        let Collected { changed_count, vanished_count, unreadable_count, .. } = collected;
        assert_eq!((changed_count, vanished_count, unreadable_count), (1, 1, 0));
        assert!(collected.problems[0].ends_with("/a: changed while it was read"));
        assert!(collected.problems[1].ends_with("/b: vanished before it was read"));
        let entries = decode(&catalogue).unwrap();
        let files: Vec<_> = entries.iter().filter(|entry| entry.kind == Kind::File).collect();
        assert_eq!(files.len(), 2, "a as it was read, and c");
        assert!(files.iter().all(|file| file.data_bytes == 1000));
    }

    #[test]
    fn small_trees_are_measured() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), vec![0; 10_000]).unwrap();
        let walk =
            WalkOptions { paths: vec![folder.path().to_path_buf()], ..WalkOptions::default() };
        let options = TreeOptions { walk, special: false };
        let bytes = size_if_small(&options, 1 << 20).unwrap().unwrap();
        assert!((10_000..12_000).contains(&bytes), "{bytes}");
        assert_eq!(size_if_small(&options, 9_000).unwrap(), None);
    }
}
