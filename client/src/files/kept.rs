//! What an earlier run of the same restore left in the target: a chunk whose bytes all lie there
//! already is not fetched again. It is believed by its keyed hash, which the node above it holds,
//! so neither times nor sizes need to be trusted, and a power cut that lost pages is noticed.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use strongroom_protocol::catalogue::{Entry, Kind};

use crate::fetch::Leaf;
use crate::files::confine::Confined;
use crate::files::plant::Wanted;
use crate::files::select::{Pick, range_of};
use crate::keys::PlaintextKeys;

/// The files of a target, as the data stream that they once were.
pub struct Kept {
    root: Confined,
    wanted: Wanted,
    keys: PlaintextKeys,
    /// Files whose bytes are in sight, in order.
    ahead: VecDeque<Entry>,
    is_at_end: bool,
    /// The file that was read last, and its path.
    open: Option<(Vec<u8>, Option<File>)>,
    buffer: Vec<u8>,
}

impl Kept {
    /// What of `wanted` lies below `root`.
    pub fn new(root: Confined, wanted: Wanted, keys: &PlaintextKeys) -> Self {
        let (ahead, buffer) = (VecDeque::new(), Vec::new());
        Self { root, wanted, keys: keys.clone(), ahead, is_at_end: false, open: None, buffer }
    }

    /// Whether all bytes of a chunk are there. To be asked in the order of the stream.
    pub fn has(&mut self, leaf: &Leaf) -> bool {
        let end = leaf.offset.saturating_add(leaf.child.plaintext_bytes);
        while self.ahead.front().is_some_and(|entry| range_of(entry).end <= leaf.offset) {
            self.ahead.pop_front();
        }
        while !self.is_at_end && self.ahead.back().is_none_or(|entry| range_of(entry).end < end) {
            self.look_ahead();
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(usize::try_from(leaf.child.plaintext_bytes).unwrap_or(0), 0);
        let is_there = self.read(leaf.offset, &mut buffer).is_some();
        let has = is_there && self.keys.hash_chunk(&buffer) == leaf.child.h;
        self.buffer = buffer;
        has
    }

    fn look_ahead(&mut self) {
        match self.wanted.next() {
            Some(Ok((entry, pick))) => {
                if pick == Pick::Yes && entry.kind == Kind::File && entry.data_bytes > 0 {
                    self.ahead.push_back(entry);
                }
            }
            // A catalogue that cannot be read any more ends the run elsewhere.
            Some(Err(_)) | None => self.is_at_end = true,
        }
    }

    /// Reads a piece of the stream from the files; nothing where a part is not there.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let (mut at, mut rest, mut index) = (offset, buffer, 0);
        while !rest.is_empty() {
            let entry = self.ahead.get(index)?;
            let range = range_of(entry);
            // Bytes that were not asked for belong to no file here.
            if at < range.start || !entry.holes.is_empty() {
                return None;
            }
            let left = usize::try_from(range.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at_mut(left.min(rest.len()));
            let place = at.saturating_sub(range.start);
            if self.open.as_ref().is_none_or(|(path, _)| *path != entry.path) {
                let file = self.root.present_file(&entry.path).ok().flatten();
                self.open = Some((entry.path.clone(), file));
            }
            let (_, file) = self.open.as_ref()?;
            file.as_ref()?.read_exact_at(piece, place).ok()?;
            at = at.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            rest = after;
            index += 1;
        }
        Some(())
    }
}
