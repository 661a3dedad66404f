//! Places for answers that stream envelopes: each holds a thread that may block, so there are fewer
//! of them than threads, and one principal gets only some. And the memory that they stream from,
//! which is used again by the next: taking it from the system each time costs a page fault for each
//! 4 KiB that is sent.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::PrincipalId;

use crate::error::ServerError;

/// Streams at a time; half of the threads that may block.
const READERS_MAX: usize = 64;
/// Streams of one principal at a time.
const READERS_PER_PRINCIPAL_MAX: usize = 16;

/// Envelopes leave in pieces of at most so many bytes; one that is longer is a piece of its own.
pub const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that are kept for the next answers: 6 MiB.
const IDLE_PIECES_MAX: usize = 24;

/// Who streams now, and the pieces that nobody uses.
#[derive(Default)]
pub struct Readers {
    places: Mutex<HashMap<PrincipalId, usize>>,
    idle_pieces: Mutex<Vec<Vec<u8>>>,
}

/// A part of an answer; its memory goes back when it was sent.
pub struct Piece {
    bytes: Vec<u8>,
    readers: Arc<Readers>,
}

/// A place; dropping it gives it back.
pub struct ReadingPlace {
    readers: Arc<Readers>,
    principal: PrincipalId,
}

impl Readers {
    /// Takes a place.
    pub fn enter(self: &Arc<Self>, principal: PrincipalId) -> Result<ReadingPlace, ServerError> {
        let mut places = self.places.lock();
        let held = places.get(&principal).copied().unwrap_or(0);
        if places.values().sum::<usize>() >= READERS_MAX || held >= READERS_PER_PRINCIPAL_MAX {
            return Err(ServerError::peer(ErrorCode::TooMany, "too many readers; try again later"));
        }
        places.insert(principal, held.saturating_add(1));
        Ok(ReadingPlace { readers: self.clone(), principal })
    }

    /// Streams now.
    pub fn count(&self) -> usize {
        self.places.lock().values().sum()
    }

    /// An empty piece.
    pub fn piece(self: &Arc<Self>) -> Piece {
        let idle = self.idle_pieces.lock().pop();
        let bytes = idle.unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES));
        Piece { bytes, readers: self.clone() }
    }
}

impl Piece {
    /// Whether `more` bytes would make it longer than a piece is.
    pub fn is_full(&self, more: usize) -> bool {
        !self.bytes.is_empty() && self.bytes.len().saturating_add(more) > PIECE_BYTES
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// As it is sent.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut idle = self.readers.idle_pieces.lock();
        // One that a long envelope made grow is not kept.
        if bytes.capacity() <= PIECE_BYTES && idle.len() < IDLE_PIECES_MAX {
            idle.push(bytes);
        }
    }
}

impl Drop for ReadingPlace {
    fn drop(&mut self) {
        let mut places = self.readers.places.lock();
        if let Some(held) = places.get_mut(&self.principal) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                places.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_empty_and_only_some_are_kept() {
        let readers = Arc::new(Readers::default());
        let mut piece = readers.piece();
        assert!(!piece.is_full(PIECE_BYTES + 1), "a long envelope is a piece of its own");
        piece.push(b"envelope");
        assert!(!piece.is_full(PIECE_BYTES - 8) && piece.is_full(PIECE_BYTES - 7));
        let sent = piece.freeze();
        assert_eq!(sent, b"envelope"[..]);
        assert!(readers.idle_pieces.lock().is_empty(), "it is on its way");
        drop(sent);
        assert!(readers.piece().as_ref().is_empty());
        let many: Vec<_> = (0..2 * IDLE_PIECES_MAX).map(|_| readers.piece()).collect();
        drop(many);
        assert_eq!(readers.idle_pieces.lock().len(), IDLE_PIECES_MAX);
        readers.idle_pieces.lock().clear();
        let mut long = readers.piece();
        long.push(&vec![1; PIECE_BYTES + 1]);
        drop(long);
        assert!(readers.idle_pieces.lock().is_empty());
    }

    #[test]
    fn readers_have_a_bound_in_all_and_one_for_each_principal() {
        let readers = Arc::new(Readers::default());
        let enter = |number: u8| readers.enter(PrincipalId([number; 16]));
        let is_refused = |outcome: Result<ReadingPlace, ServerError>| {
            let error = outcome.err().expect("one more than there may be");
            assert_eq!(error.refusal().code, ErrorCode::TooMany);
        };
        let first: Vec<_> = (0..READERS_PER_PRINCIPAL_MAX).map(|_| enter(1).unwrap()).collect();
        is_refused(enter(1));
        let mut others = Vec::new();
        for number in 2.. {
            let Ok(place) = enter(number) else { break };
            others.push(place);
        }
        assert_eq!(readers.count(), READERS_MAX);
        is_refused(enter(2));
        drop(first);
        drop(enter(1).unwrap());
        drop(others);
        assert_eq!(readers.count(), 0);
    }
}
