//! Where the bytes of a file's part of the data stream belong in the file: around its holes.

use std::io;

use strongroom_protocol::catalogue::{Entry, Hole};

/// The way through one file's part of the data stream.
#[derive(Debug)]
pub struct Spread {
    /// Place in the data stream, and where the file's part of it ends.
    at: u64,
    end: u64,
    /// The same place in the file.
    file_at: u64,
    size_bytes: u64,
    holes: Vec<Hole>,
    next_hole: usize,
}

impl Spread {
    /// At the start of the file that `entry` tells of.
    pub fn new(entry: &Entry) -> Self {
        Self {
            at: entry.data_offset,
            end: entry.data_offset.saturating_add(entry.data_bytes),
            file_at: 0,
            size_bytes: entry.size_bytes,
            holes: entry.holes.clone(),
            next_hole: 0,
        }
    }

    /// Place in the data stream of what comes next.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether every byte was taken or passed over.
    pub fn is_done(&self) -> bool {
        self.at == self.end
    }

    /// Passes over the bytes before `offset`.
    pub fn skip_to(&mut self, offset: u64) {
        let target = offset.min(self.end);
        while self.at < target {
            let step = self.piece_bytes().min(target.saturating_sub(self.at));
            self.advance(step);
        }
    }

    /// Takes what belongs to the file of bytes that stand at `offset` of the stream, and gives
    /// `put` each piece with its place in the file.
    pub fn take(
        &mut self,
        offset: u64,
        bytes: &[u8],
        mut put: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.skip_to(offset);
        let before = usize::try_from(self.at.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut rest = bytes.get(before..).unwrap_or(&[]);
        while !rest.is_empty() && self.at < self.end {
            let length = usize::try_from(self.piece_bytes()).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            put(self.file_at, piece)?;
            self.advance(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            rest = after;
        }
        Ok(())
    }

    /// Bytes up to the next hole or the end, at least one while there are any. Moves past a hole.
    fn piece_bytes(&mut self) -> u64 {
        while let Some(hole) = self.holes.get(self.next_hole)
            && hole.offset == self.file_at
        {
            self.file_at = self.file_at.saturating_add(hole.length);
            self.next_hole += 1;
        }
        let piece_end = self.holes.get(self.next_hole).map_or(self.size_bytes, |hole| hole.offset);
        let left = self.end.saturating_sub(self.at);
        piece_end.saturating_sub(self.file_at).clamp(1, left.max(1))
    }

    fn advance(&mut self, bytes: u64) {
        self.at = self.at.saturating_add(bytes);
        self.file_at = self.file_at.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use strongroom_protocol::catalogue::Kind;

    fn sparse(pieces: &[(u64, u64)], offset: u64) -> (Entry, Vec<u8>) {
        let mut entry = Entry::empty(Kind::File);
        let mut content = Vec::new();
        for (hole, data) in pieces {
            if *hole > 0 {
                entry.holes.push(Hole { offset: content.len() as u64, length: *hole });
                content.resize(content.len() + *hole as usize, 0);
            }
            for _ in 0..*data {
                content.push(1 + content.len() as u8 % 200);
            }
            entry.data_bytes += data;
        }
        entry.size_bytes = content.len() as u64;
        entry.data_offset = offset;
        (entry, content)
    }

    proptest! {
        #[test]
        fn any_pieces_in_any_steps_make_the_file_again(
            pieces in prop::collection::vec((0u64..50, 1u64..60), 0..8),
            offset in 0u64..100, step in 1usize..40,
        ) {
            let (entry, content) = sparse(&pieces, offset);
            let data: Vec<u8> = content.iter().copied().filter(|byte| *byte != 0).collect();
            let mut stream = vec![99; offset as usize];
            stream.extend_from_slice(&data);
            stream.extend_from_slice(&[98; 70]);
            let mut spread = Spread::new(&entry);
            let mut back = vec![0; content.len()];
            for (number, part) in stream.chunks(step).enumerate() {
                let at = (number * step) as u64;
                spread.take(at, part, |place, piece| {
                    back[place as usize..place as usize + piece.len()].copy_from_slice(piece);
                    Ok(())
                }).unwrap();
            }
            prop_assert!(spread.is_done());
            prop_assert_eq!(back, content);
        }

        #[test]
        fn what_is_left_out_leaves_the_rest_in_its_place(
            pieces in prop::collection::vec((0u64..50, 1u64..60), 1..8), from in 0u64..200,
        ) {
            let (entry, content) = sparse(&pieces, 7);
            let data: Vec<u8> = content.iter().copied().filter(|byte| *byte != 0).collect();
            let from = from.min(data.len() as u64);
            let mut spread = Spread::new(&entry);
            let mut back = content.clone();
            spread.take(7 + from, &data[from as usize..], |place, piece| {
                let here = &mut back[place as usize..place as usize + piece.len()];
                assert_eq!(here, piece);
                here.fill(0);
                Ok(())
            }).unwrap();
            let left: Vec<u8> = back.into_iter().filter(|byte| *byte != 0).collect();
            prop_assert_eq!(left, &data[..from as usize]);
            prop_assert!(spread.is_done());
        }
    }
}
