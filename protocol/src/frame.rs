//! Streams of length-prefixed envelopes, decoded as they arrive.
//!
//! ```text
//! stream = n x (u32 length, little-endian | envelope)
//! ```
//!
//! [`FrameDecoder`] takes pieces of any size and gives whole envelopes; it compares a length with
//! [`ENVELOPE_MAX_BYTES`] before it waits for that many bytes, so what it buffers is bounded. An
//! envelope shares the buffer that it arrived in: it is not copied, and keeps that memory while it
//! lives.

use bytes::{Buf, Bytes, BytesMut};

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
fn length_of(prefix: [u8; PREFIX_BYTES]) -> Result<usize, DecodeError> {
    let length = u32::from_le_bytes(prefix);
    if length == 0 || length > ENVELOPE_MAX_BYTES {
        return Err(DecodeError::TooLong(WHAT));
    }
    usize::try_from(length).map_err(|_| DecodeError::TooLong(WHAT))
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    arrived: BytesMut,
}

impl FrameDecoder {
    /// Adds bytes that arrived. Where no envelope of before lives any more, their room is used
    /// again.
    pub fn push(&mut self, bytes: &[u8]) {
        self.arrived.extend_from_slice(bytes);
    }

    /// The next whole envelope, or nothing until more bytes are pushed.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, DecodeError> {
        let Some((prefix, rest)) = self.arrived.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = length_of(*prefix)?;
        if rest.len() < length {
            return Ok(None);
        }
        self.arrived.advance(PREFIX_BYTES);
        Ok(Some(self.arrived.split_to(length).freeze()))
    }

    /// Bytes of an envelope that has not arrived whole.
    pub fn waiting_bytes(&self) -> usize {
        self.arrived.len()
    }

    /// Moves what has not arrived whole to a buffer of its own, so that envelopes which are kept
    /// for a while give their memory back when they go.
    pub fn detach(&mut self) {
        self.arrived = BytesMut::from(&self.arrived[..]);
    }

    /// Ends the stream; a part of an envelope left over is an error.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.arrived.is_empty() { Ok(()) } else { Err(DecodeError::Short(WHAT)) }
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
            detaches in any::<bool>(),
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
                if detaches {
                    decoder.detach();
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
