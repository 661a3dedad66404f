//! What a run reads: the data stream, with the places where a chunk must begin, then the catalogue
//! that says what the data was.
//!
//! The catalogue comes last because only then it is known; in the snapshot's tree it stands first.

use std::io::{self, Cursor, Read};

use strongroom_protocol::catalogue::{self, Entry};

/// Which of a snapshot's streams something is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The list of files.
    Catalogue,
    /// Their bytes.
    Data,
}

/// What came of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// So many bytes, at least one.
    Bytes(usize),
    /// A chunk begins here.
    Boundary,
    /// The data stream has ended here; what follows is the catalogue.
    Catalogue,
    /// The catalogue has ended.
    End,
}

/// A source of both streams.
pub trait Feed: Send {
    /// Puts the next bytes into `room`, which is not empty, or says what comes in their place.
    fn feed(&mut self, room: &mut [u8]) -> io::Result<Fed>;
}

/// What a catalogue that is read to its end gives next.
pub fn fed_from(catalogue: &mut impl Read, room: &mut [u8]) -> io::Result<Fed> {
    Ok(match catalogue.read(room)? {
        0 => Fed::End,
        count => Fed::Bytes(count),
    })
}

/// One file or stream: a catalogue of one entry.
pub struct SingleFeed {
    reader: Box<dyn Read + Send>,
    entry: Entry,
    catalogue: Option<Cursor<Vec<u8>>>,
}

impl SingleFeed {
    /// Reads `reader` to its end and describes it with `entry`, whose sizes are set then.
    pub fn new(reader: Box<dyn Read + Send>, entry: Entry) -> Self {
        Self { reader, entry, catalogue: None }
    }
}

impl Feed for SingleFeed {
    fn feed(&mut self, room: &mut [u8]) -> io::Result<Fed> {
        if let Some(catalogue) = &mut self.catalogue {
            return fed_from(catalogue, room);
        }
        let count = self.reader.read(room)?;
        if count > 0 {
            let length = u64::try_from(count).unwrap_or(u64::MAX);
            self.entry.size_bytes = self.entry.size_bytes.saturating_add(length);
            return Ok(Fed::Bytes(count));
        }
        self.entry.data_bytes = self.entry.size_bytes;
        self.catalogue = Some(Cursor::new(catalogue::encode(std::slice::from_ref(&self.entry))));
        Ok(Fed::Catalogue)
    }
}
