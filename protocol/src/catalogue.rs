//! The catalogue: the first of a snapshot's two streams, a list of files and where their bytes
//! stand in the second.
//!
//! ```text
//! stream = "SRC1" | entries, in the order of [`compare_paths`]
//! entry  = u32 length of the rest | kind u8 | bytes path | u32 mode | u32 uid | u32 gid
//!        | bytes owner | bytes group | i64 modified (s) | u32 modified (ns) | u64 device number
//!        | bytes link target | u32 n, n x (bytes name | bytes value)
//!        | u32 n, n x (u64 offset | u64 length)     holes
//!        | u64 size | u64 offset in the data stream | u64 bytes in the data stream
//! ```
//!
//! A dump from standard input or a command is a catalogue of one entry of kind [`Kind::Stream`], a
//! single file one of kind [`Kind::File`]. A tree begins with the directory that all paths are
//! relative to, whose own path is empty. [`Order`] is what a reader demands of all of them: with it
//! no entry can stand in what is not a directory of the same catalogue, twice, or outside.

use std::cmp::Ordering;

use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer};
use crate::limits::{
    CATALOGUE_ENTRY_MAX_BYTES, HOLES_MAX, NAME_MAX_BYTES, PATH_MAX_BYTES, XATTR_MAX_BYTES,
    XATTRS_MAX,
};

/// First bytes of a catalogue.
pub const MAGIC: &[u8; 4] = b"SRC1";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The output of a command, or standard input.
    Stream,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    SymbolicLink,
    /// Another name of a file that stands earlier in the catalogue (the link target).
    HardLink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A socket.
    Socket,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Stream,
        Self::File,
        Self::Directory,
        Self::SymbolicLink,
        Self::HardLink,
        Self::Fifo,
        Self::CharacterDevice,
        Self::BlockDevice,
        Self::Socket,
    ];

    fn code(self) -> u8 {
        match self {
            Self::Stream => 0,
            Self::File => 1,
            Self::Directory => 2,
            Self::SymbolicLink => 3,
            Self::HardLink => 4,
            Self::Fifo => 5,
            Self::CharacterDevice => 6,
            Self::BlockDevice => 7,
            Self::Socket => 8,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Name, as the system gives it.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// A range of a sparse file that holds no data, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Relative path as bytes; empty for a stream.
    pub path: Vec<u8>,
    /// Permission bits, as in `st_mode & 0o7777`.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Owner's name, empty where unknown.
    pub owner: Vec<u8>,
    /// Group's name, empty where unknown.
    pub group: Vec<u8>,
    /// Last change, seconds since 1970.
    pub modified_seconds: i64,
    /// Last change, nanoseconds of the second.
    pub modified_nanoseconds: u32,
    /// Device number of a device, else 0.
    pub device: u64,
    /// Target of a symbolic or hard link, else empty.
    pub link_target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
    /// Holes of a sparse file.
    pub holes: Vec<Hole>,
    /// Size of the file, holes included.
    pub size_bytes: u64,
    /// Where its bytes start in the data stream.
    pub data_offset: u64,
    /// How many bytes of the data stream are its.
    pub data_bytes: u64,
}

impl Entry {
    /// An entry of `kind` with nothing else known.
    pub fn empty(kind: Kind) -> Self {
        Self {
            kind,
            path: Vec::new(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            owner: Vec::new(),
            group: Vec::new(),
            modified_seconds: 0,
            modified_nanoseconds: 0,
            device: 0,
            link_target: Vec::new(),
            xattrs: Vec::new(),
            holes: Vec::new(),
            size_bytes: 0,
            data_offset: 0,
            data_bytes: 0,
        }
    }

    /// The encoding, length included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(self.kind.code()).bytes(&self.path);
        out.u32(self.mode).u32(self.uid).u32(self.gid).bytes(&self.owner).bytes(&self.group);
        out.i64(self.modified_seconds).u32(self.modified_nanoseconds).u64(self.device);
        out.bytes(&self.link_target).count(self.xattrs.len());
        for xattr in &self.xattrs {
            out.bytes(&xattr.name).bytes(&xattr.value);
        }
        out.count(self.holes.len());
        for hole in &self.holes {
            out.u64(hole.offset).u64(hole.length);
        }
        out.u64(self.size_bytes).u64(self.data_offset).u64(self.data_bytes);
        let mut framed = Writer::default();
        framed.bytes(&out.finish());
        framed.finish()
    }

    /// Decodes one entry without its length.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("catalogue entry", bytes);
        let Some(kind) = Kind::from_code(reader.u8()?) else {
            return reader.refuse();
        };
        let mut entry = Self::empty(kind);
        entry.path = reader.bytes(PATH_MAX_BYTES)?.to_vec();
        entry.mode = reader.u32()?;
        entry.uid = reader.u32()?;
        entry.gid = reader.u32()?;
        entry.owner = reader.bytes(NAME_MAX_BYTES)?.to_vec();
        entry.group = reader.bytes(NAME_MAX_BYTES)?.to_vec();
        entry.modified_seconds = reader.i64()?;
        entry.modified_nanoseconds = reader.u32()?;
        entry.device = reader.u64()?;
        entry.link_target = reader.bytes(PATH_MAX_BYTES)?.to_vec();
        for _ in 0..reader.count(XATTRS_MAX)? {
            let name = reader.bytes(NAME_MAX_BYTES.saturating_mul(2))?.to_vec();
            entry.xattrs.push(Xattr { name, value: reader.bytes(XATTR_MAX_BYTES)?.to_vec() });
        }
        for _ in 0..reader.count(HOLES_MAX)? {
            entry.holes.push(Hole { offset: reader.u64()?, length: reader.u64()? });
        }
        entry.size_bytes = reader.u64()?;
        entry.data_offset = reader.u64()?;
        entry.data_bytes = reader.u64()?;
        if entry.mode > 0o7777 || entry.modified_nanoseconds >= 1_000_000_000 {
            return reader.refuse();
        }
        reader.finish()?;
        Ok(entry)
    }
}

/// Encodes a whole catalogue.
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for entry in entries {
        out.extend_from_slice(&entry.encode());
    }
    out
}

/// Decodes a whole catalogue that is in memory.
pub fn decode(bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    let mut reader = Reader::new("catalogue", bytes);
    reader.magic(MAGIC)?;
    let mut entries = Vec::new();
    while reader.remaining() > 0 {
        entries.push(Entry::decode(reader.bytes(CATALOGUE_ENTRY_MAX_BYTES)?)?);
    }
    Ok(entries)
}

/// Order of paths in a catalogue: byte by byte, with `/` before every other byte. So a directory
/// stands right before what is in it.
pub fn compare_paths(one: &[u8], other: &[u8]) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte).saturating_add(1) };
    one.iter().map(key).cmp(other.iter().map(key))
}

/// Whether `path` is `above` itself or lies below it; everything lies below the empty path.
pub fn is_within(path: &[u8], above: &[u8]) -> bool {
    let rest = path.strip_prefix(above);
    above.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The directory that `path` lies in, and its name there.
pub fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => {
            (path.get(..at).unwrap_or(&[]), path.get(at.saturating_add(1)..).unwrap_or(&[]))
        }
        None => (&[], path),
    }
}

/// Why entries make no catalogue. The writer was broken or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OrderError {
    /// A part of the path is empty, `.` or `..`, or has a NUL.
    #[error("a path that names no place below the root")]
    Path,
    /// It stands before or at the one before.
    #[error("a path twice, or out of order")]
    Order,
    /// What it lies in is not a directory of the same catalogue.
    #[error("a path in what is no directory of the same snapshot")]
    Parent,
    /// One entry of its kind stands alone in a catalogue, or none may.
    #[error("an entry of a kind that has no place there")]
    Kind,
    /// The target of a hard link is no path that stands before it.
    #[error("a hard link to what does not stand before it")]
    Link,
    /// Holes and bytes of data do not make the size.
    #[error("sizes or holes that do not fit together")]
    Size,
    /// The bytes overlap those of another file, or lie beyond the data stream.
    #[error("bytes that are another file's, or not there")]
    Data,
    /// No entry at all.
    #[error("no entries")]
    Empty,
}

/// Takes the entries of a catalogue one by one and refuses what no honest writer makes. Its memory
/// is a few paths.
#[derive(Debug, Default)]
pub struct Order {
    count: u64,
    is_tree: bool,
    last: Vec<u8>,
    /// The last directory; those that it lies in are open too, and no other is.
    open: Vec<u8>,
    data_end: u64,
}

impl Order {
    /// Takes the next entry.
    pub fn take(&mut self, entry: &Entry) -> Result<(), OrderError> {
        let is_first = self.count == 0;
        self.count = self.count.saturating_add(1);
        if is_first {
            self.is_tree = entry.kind == Kind::Directory && entry.path.is_empty();
            let is_alone = matches!(entry.kind, Kind::Stream | Kind::File);
            if !self.is_tree && !is_alone {
                return Err(OrderError::Kind);
            }
        } else {
            if !self.is_tree || entry.kind == Kind::Stream {
                return Err(OrderError::Kind);
            }
            self.take_path(entry)?;
        }
        self.take_data(entry)
    }

    /// Ends the catalogue of a data stream of `data_bytes`; whether it is a tree's.
    pub fn finish(self, data_bytes: u64) -> Result<bool, OrderError> {
        match self.count {
            0 => Err(OrderError::Empty),
            _ if self.data_end > data_bytes => Err(OrderError::Data),
            _ => Ok(self.is_tree),
        }
    }

    fn take_path(&mut self, entry: &Entry) -> Result<(), OrderError> {
        check_path(&entry.path)?;
        if compare_paths(&self.last, &entry.path) != Ordering::Less {
            return Err(OrderError::Order);
        }
        let (parent, _) = split_path(&entry.path);
        if !is_within(&self.open, parent) {
            return Err(OrderError::Parent);
        }
        if entry.kind == Kind::HardLink {
            check_path(&entry.link_target)?;
            if compare_paths(&entry.link_target, &entry.path) != Ordering::Less {
                return Err(OrderError::Link);
            }
        }
        self.last.clone_from(&entry.path);
        if entry.kind == Kind::Directory {
            self.open.clone_from(&entry.path);
        } else {
            self.open = parent.to_vec();
        }
        Ok(())
    }

    fn take_data(&mut self, entry: &Entry) -> Result<(), OrderError> {
        let has_data = matches!(entry.kind, Kind::Stream | Kind::File | Kind::HardLink);
        let is_empty = entry.data_bytes == 0 && entry.size_bytes == 0 && entry.holes.is_empty();
        if !has_data {
            return if is_empty { Ok(()) } else { Err(OrderError::Size) };
        }
        let mut at: u64 = 0;
        let mut hole_bytes: u64 = 0;
        for hole in &entry.holes {
            let end = hole.offset.checked_add(hole.length).ok_or(OrderError::Size)?;
            if hole.length == 0 || hole.offset < at || end > entry.size_bytes {
                return Err(OrderError::Size);
            }
            hole_bytes = hole_bytes.saturating_add(hole.length);
            at = end;
        }
        if hole_bytes.checked_add(entry.data_bytes) != Some(entry.size_bytes) {
            return Err(OrderError::Size);
        }
        let end = entry.data_offset.checked_add(entry.data_bytes).ok_or(OrderError::Data)?;
        if entry.kind == Kind::HardLink {
            // It has the bytes of its target, which stands before it.
            return if end <= self.data_end { Ok(()) } else { Err(OrderError::Data) };
        }
        if entry.data_offset < self.data_end {
            return Err(OrderError::Data);
        }
        self.data_end = end;
        Ok(())
    }
}

/// Whether a path names a place below the root of a tree, by itself.
pub fn check_path(path: &[u8]) -> Result<(), OrderError> {
    let is_name = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    match path.split(|byte| *byte == b'/').all(is_name) {
        true => Ok(()),
        false => Err(OrderError::Path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, path: &str) -> Entry {
        Entry { path: path.as_bytes().to_vec(), ..Entry::empty(kind) }
    }

    fn file(path: &str, offset: u64, bytes: u64) -> Entry {
        let mut file = entry(Kind::File, path);
        (file.size_bytes, file.data_offset, file.data_bytes) = (bytes, offset, bytes);
        file
    }

    fn link(path: &str, target: &str) -> Entry {
        Entry { link_target: target.as_bytes().to_vec(), ..entry(Kind::HardLink, path) }
    }

    fn taken(entries: &[Entry]) -> Result<bool, OrderError> {
        let mut order = Order::default();
        entries.iter().try_for_each(|entry| order.take(entry))?;
        order.finish(100)
    }

    fn in_tree(entries: &[Entry]) -> Result<bool, OrderError> {
        let mut all = vec![entry(Kind::Directory, "")];
        all.extend_from_slice(entries);
        taken(&all)
    }

    #[test]
    fn a_directory_stands_right_before_what_is_in_it() {
        let mut paths = ["a.b", "a", "a/x", "a/x/y", "ab", "a/x.z", "", "a-"];
        paths.sort_by(|one, other| compare_paths(one.as_bytes(), other.as_bytes()));
        assert_eq!(paths, ["", "a", "a/x", "a/x/y", "a/x.z", "a-", "a.b", "ab"]);
        assert!(is_within(b"a/b", b"a") && is_within(b"a", b"a") && is_within(b"a", b""));
        assert!(!is_within(b"ab", b"a") && !is_within(b"a", b"a/b"));
        assert_eq!(split_path(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
        assert_eq!(split_path(b"c"), (b"".as_slice(), b"c".as_slice()));
    }

    #[test]
    fn streams_files_and_trees_are_catalogues() {
        assert_eq!(taken(&[entry(Kind::Stream, "")]), Ok(false));
        assert_eq!(taken(&[file("dump.sql", 0, 100)]), Ok(false));
        assert_eq!(in_tree(&[]), Ok(true));
        let mut sparse = file("a/sparse", 7, 10);
        sparse.holes = vec![Hole { offset: 0, length: 5 }, Hole { offset: 10, length: 90 }];
        sparse.size_bytes = 105;
        let mut other = link("b", "a/one");
        (other.size_bytes, other.data_bytes) = (4, 4);
        let tree = [
            entry(Kind::Directory, "a"),
            file("a/one", 0, 4),
            sparse,
            entry(Kind::SymbolicLink, "a.txt"),
            other,
            file("c", 17, 83),
        ];
        assert_eq!(in_tree(&tree), Ok(true));
    }

    #[test]
    fn what_no_honest_writer_makes_is_refused() {
        for path in ["../x", "/etc/passwd", "a//b", "", ".", "a/../b", "a/", "a\0b"] {
            let refused = in_tree(&[entry(Kind::Directory, "a"), file(path, 0, 0)]);
            let _ = refused.expect_err(path);
        }
        let folder = || entry(Kind::Directory, "a");
        let symlink = || entry(Kind::SymbolicLink, "a");
        let cases = [
            (vec![], OrderError::Order, vec![file("b", 0, 1), file("b", 1, 1)]),
            (vec![], OrderError::Order, vec![file("b", 0, 1), file("a", 1, 1)]),
            (vec![], OrderError::Parent, vec![symlink(), file("a/x", 0, 1)]),
            (vec![], OrderError::Parent, vec![file("a", 0, 1), file("a/x", 1, 1)]),
            (vec![folder()], OrderError::Order, vec![file("b", 0, 1), file("a/x", 1, 1)]),
            (vec![folder()], OrderError::Parent, vec![file("a/x/y", 1, 1)]),
            (vec![], OrderError::Link, vec![link("a", "b")]),
            (vec![], OrderError::Link, vec![link("a", "a")]),
            (vec![], OrderError::Path, vec![link("a", "../b")]),
            (vec![], OrderError::Path, vec![link("a", "/etc/shadow")]),
            (vec![], OrderError::Data, vec![file("a", 0, 2), file("b", 1, 1)]),
            (vec![], OrderError::Data, vec![file("a", 99, 2)]),
            (vec![], OrderError::Data, vec![file("a", u64::MAX, 2)]),
            (vec![], OrderError::Kind, vec![entry(Kind::Stream, "a")]),
        ];
        for (mut before, error, entries) in cases {
            before.extend(entries);
            assert_eq!(in_tree(&before), Err(error), "{before:?}");
        }
        assert_eq!(taken(&[]), Err(OrderError::Empty));
        assert_eq!(taken(&[file("a", 0, 1), file("b", 1, 1)]), Err(OrderError::Kind));
        assert_eq!(taken(&[entry(Kind::SymbolicLink, "a")]), Err(OrderError::Kind));
    }

    #[test]
    fn sizes_are_data_and_holes() {
        let with_holes = |size, bytes, holes: &[(u64, u64)]| {
            let mut sparse = file("a", 0, bytes);
            sparse.size_bytes = size;
            sparse.holes = holes.iter().map(|&(offset, length)| Hole { offset, length }).collect();
            in_tree(&[sparse])
        };
        assert_eq!(with_holes(10, 4, &[(2, 6)]), Ok(true));
        for (size, bytes, holes) in [
            (10, 5, &[(2, 6)][..]),
            (10, 4, &[(2, 4), (5, 2)]),
            (10, 4, &[(6, 3), (0, 3)]),
            (10, 4, &[(8, 6)]),
            (10, 10, &[(2, 0)]),
            (10, 4, &[(u64::MAX, 6)]),
            (10, 9, &[]),
        ] {
            assert_eq!(with_holes(size, bytes, holes), Err(OrderError::Size), "{holes:?}");
        }
        let mut pipe = entry(Kind::Fifo, "a");
        pipe.size_bytes = 1;
        assert_eq!(in_tree(&[pipe]), Err(OrderError::Size));
    }
}
