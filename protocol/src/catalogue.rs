//! The catalogue: the first of a snapshot's two streams, a list of files and where their bytes
//! stand in the second.
//!
//! ```text
//! stream = "SRC1" | entries, sorted by path
//! entry  = u32 length of the rest | kind u8 | bytes path | u32 mode | u32 uid | u32 gid
//!        | bytes owner | bytes group | i64 modified (s) | u32 modified (ns) | u64 device number
//!        | bytes link target | u32 n, n x (bytes name | bytes value)
//!        | u32 n, n x (u64 offset | u64 length)     holes
//!        | u64 size | u64 offset in the data stream | u64 bytes in the data stream
//! ```
//!
//! A dump from standard input or a command is a catalogue of one entry of kind [`Kind::Stream`].

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
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
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
