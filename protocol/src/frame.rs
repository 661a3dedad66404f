//! Streams of length-prefixed envelopes, decoded as they arrive.
//!
//! ```text
//! stream = n x (u32 length, little-endian | envelope)
//! ```
//!
//! [`FrameDecoder`] takes pieces of any size and gives whole envelopes; it compares a length with
//! [`ENVELOPE_MAX_BYTES`] before it waits for that many bytes, so what it buffers is bounded.

use crate::codec::DecodeError;
use crate::limits::ENVELOPE_MAX_BYTES;

const WHAT: &str = "envelope stream";
const PREFIX_BYTES: usize = 4;

/// The length prefix of an envelope.
pub fn prefix(envelope: &[u8]) -> Result<[u8; PREFIX_BYTES], DecodeError> {
    match u32::try_from(envelope.len()) {
        Ok(length) if (1..=ENVELOPE_MAX_BYTES).contains(&length) => Ok(length.to_le_bytes()),
        _ => Err(DecodeError::TooLong(WHAT)),
    }
}

/// The length of the envelope that follows a prefix; refused before anybody waits for it.
pub fn length_of(prefix: [u8; PREFIX_BYTES]) -> Result<usize, DecodeError> {
    let length = u32::from_le_bytes(prefix);
    if length == 0 || length > ENVELOPE_MAX_BYTES {
        return Err(DecodeError::TooLong(WHAT));
    }
    usize::try_from(length).map_err(|_| DecodeError::TooLong(WHAT))
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameDecoder {
    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole envelope, or nothing until more bytes are pushed.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, DecodeError> {
        let rest = self.buffer.get(self.start..).unwrap_or(&[]);
        let Some((prefix, body)) = rest.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = length_of(*prefix)?;
        if body.len() < length {
            return Ok(None);
        }
        let from = self.start.saturating_add(PREFIX_BYTES);
        self.start = from.saturating_add(length);
        Ok(self.buffer.get(from..self.start))
    }

    /// Ends the stream; a part of an envelope left over is an error.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.start == self.buffer.len() { Ok(()) } else { Err(DecodeError::Short(WHAT)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gives_back_what_was_framed(
            envelopes in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 1..300), 0..20),
            piece in 1usize..700,
        ) {
            let mut stream = Vec::new();
            for envelope in &envelopes {
                stream.extend_from_slice(&prefix(envelope).unwrap());
                stream.extend_from_slice(envelope);
            }
            let mut decoder = FrameDecoder::default();
            let mut back = Vec::new();
            for bytes in stream.chunks(piece) {
                decoder.push(bytes);
                while let Some(envelope) = decoder.next_frame().unwrap() {
                    back.push(envelope.to_vec());
                }
            }
            prop_assert!(decoder.finish().is_ok());
            prop_assert_eq!(back, envelopes);
        }
    }

    #[test]
    fn refuses_absurd_lengths_before_waiting_for_them() {
        for length in [0, ENVELOPE_MAX_BYTES + 1, u32::MAX] {
            let mut decoder = FrameDecoder::default();
            decoder.push(&length.to_le_bytes());
            assert!(decoder.next_frame().is_err());
        }
        let mut decoder = FrameDecoder::default();
        decoder.push(&[5, 0, 0, 0, 1]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.finish().is_err());
    }
}
