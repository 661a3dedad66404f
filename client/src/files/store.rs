//! A catalogue that is being written or was read: in memory while it is short, else in a file
//! without a name, so that memory does not grow with the number of files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use strongroom_protocol::catalogue::{Entry, MAGIC};
use strongroom_protocol::codec::DecodeError;
use strongroom_protocol::limits::CATALOGUE_ENTRY_MAX_BYTES;

use crate::error::ClientError;

/// A longer catalogue goes to a file, in bytes.
const MEMORY_MAX_BYTES: usize = 8 << 20;
/// Bytes that are written to the file, or read from it, at once.
const STEP_BYTES: usize = 256 * 1024;

/// A catalogue that grows.
#[derive(Debug, Default)]
pub struct Growing {
    memory: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
}

impl Growing {
    /// Adds the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.memory.extend_from_slice(bytes);
        let max_bytes = if self.file.is_some() { STEP_BYTES } else { MEMORY_MAX_BYTES };
        if self.memory.len() > max_bytes {
            self.flush()?;
        }
        Ok(())
    }

    /// Ends it.
    pub fn finish(mut self) -> io::Result<Arc<Store>> {
        if self.file.is_some() {
            self.flush()?;
        }
        Ok(Arc::new(Store { memory: self.memory, file: self.file, file_bytes: self.file_bytes }))
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile()?),
        };
        file.write_all(&self.memory)?;
        self.file_bytes = self.file_bytes.saturating_add(length_of(self.memory.len()));
        // The first one is long, and its memory is not needed any more.
        self.memory = Vec::new();
        Ok(())
    }
}

/// A whole catalogue; any number of readers go through it at once.
#[derive(Debug)]
pub struct Store {
    memory: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
}

impl Store {
    /// Its length in bytes.
    pub fn byte_count(&self) -> u64 {
        self.file_bytes.saturating_add(length_of(self.memory.len()))
    }

    /// Reads its bytes from the start.
    pub fn bytes(self: &Arc<Self>) -> StoreReader {
        StoreReader { store: self.clone(), at: 0, buffer: Vec::new(), taken: 0 }
    }

    /// Decodes its entries from the first.
    pub fn entries(self: &Arc<Self>) -> Entries {
        Entries { reader: self.bytes(), is_begun: false, buffer: Vec::new() }
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        if let Some(file) = &self.file {
            return file.read_at(buffer, at);
        }
        let rest = usize::try_from(at).ok().and_then(|at| self.memory.get(at..)).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        let (from, to) = (rest.get(..count), buffer.get_mut(..count));
        if let (Some(from), Some(to)) = (from, to) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
}

/// Reads a store.
#[derive(Debug)]
pub struct StoreReader {
    store: Arc<Store>,
    at: u64,
    buffer: Vec<u8>,
    taken: usize,
}

impl Read for StoreReader {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buffer.len() {
            let step = usize::try_from(self.left()).unwrap_or(STEP_BYTES).min(STEP_BYTES);
            self.buffer.resize(step, 0);
            let count = self.store.read_at(&mut self.buffer, self.at)?;
            self.buffer.truncate(count);
            self.at = self.at.saturating_add(length_of(count));
            self.taken = 0;
        }
        let rest = self.buffer.get(self.taken..).unwrap_or(&[]);
        let count = rest.len().min(room.len());
        if let (Some(from), Some(to)) = (rest.get(..count), room.get_mut(..count)) {
            to.copy_from_slice(from);
        }
        self.taken = self.taken.saturating_add(count);
        Ok(count)
    }
}

impl StoreReader {
    /// Bytes that are not in the buffer yet.
    fn left(&self) -> u64 {
        self.store.byte_count().saturating_sub(self.at)
    }

    /// Bytes that were not read yet.
    fn unread(&self) -> u64 {
        self.left().saturating_add(length_of(self.buffer.len().saturating_sub(self.taken)))
    }
}

/// Entries of a store, one by one.
#[derive(Debug)]
pub struct Entries {
    reader: StoreReader,
    is_begun: bool,
    buffer: Vec<u8>,
}

impl Entries {
    /// The next entry; nothing at the end. What does not decode was written so.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ClientError> {
        let fail = |error| ClientError::file("read the catalogue", error);
        if !self.is_begun {
            self.is_begun = true;
            let mut magic = [0; MAGIC.len()];
            if !self.fill(&mut magic).map_err(fail)? || magic != *MAGIC {
                return Err(broken(DecodeError::Magic("catalogue")));
            }
        }
        let mut prefix = [0; 4];
        if !self.fill(&mut prefix).map_err(fail)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes(prefix);
        if length > CATALOGUE_ENTRY_MAX_BYTES {
            return Err(broken(DecodeError::TooLong("catalogue entry")));
        }
        // Before room is made for it.
        if u64::from(length) > self.reader.unread() {
            return Err(broken(DecodeError::Short("catalogue entry")));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(usize::try_from(length).unwrap_or(0), 0);
        let is_whole = self.reader.read_exact(&mut buffer).is_ok();
        let entry = match is_whole {
            true => Entry::decode(&buffer).map_err(broken),
            false => Err(broken(DecodeError::Short("catalogue entry"))),
        };
        self.buffer = buffer;
        entry.map(Some)
    }

    /// Whether there are so many bytes; none at all is the end.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.reader.read(room)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled = filled.saturating_add(count),
            }
        }
        Ok(true)
    }
}

fn broken(error: DecodeError) -> ClientError {
    ClientError::Untrusted(format!("{error}: the writer was broken"))
}

fn length_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_protocol::catalogue::{self, Kind};

    fn stored(bytes: &[u8], step: usize) -> Arc<Store> {
        let mut growing = Growing::default();
        for part in bytes.chunks(step) {
            growing.push(part).unwrap();
        }
        growing.finish().unwrap()
    }

    #[test]
    fn short_and_long_catalogues_come_back() {
        for count in [1u64, 200, 150_000] {
            let entry = |number: u64| {
                let mut entry = Entry::empty(Kind::File);
                entry.path = format!("folder/{number:012}").into_bytes();
                entry.size_bytes = number;
                entry
            };
            let mut bytes = MAGIC.to_vec();
            (0..count).for_each(|number| bytes.extend_from_slice(&entry(number).encode()));
            let store = stored(&bytes, 100_000);
            assert_eq!(store.byte_count(), bytes.len() as u64);
            assert_eq!(store.file.is_some(), bytes.len() > MEMORY_MAX_BYTES, "{count}");
            let mut back = Vec::new();
            store.bytes().read_to_end(&mut back).unwrap();
            assert!(back == bytes);
            let mut entries = store.entries();
            for number in 0..count {
                assert_eq!(entries.next_entry().unwrap(), Some(entry(number)));
            }
            assert_eq!(entries.next_entry().unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_catalogue_is_refused() {
        let good = catalogue::encode(&[Entry::empty(Kind::Stream)]);
        for bad in [&good[..3], &good[..6], &good[..good.len() - 1], b"SRC2", b""] {
            let mut entries = stored(bad, 10).entries();
            assert!(entries.next_entry().is_err(), "{bad:?}");
        }
        let mut long = MAGIC.to_vec();
        long.extend_from_slice(&(CATALOGUE_ENTRY_MAX_BYTES + 1).to_le_bytes());
        assert!(stored(&long, 10).entries().next_entry().is_err());
    }
}
