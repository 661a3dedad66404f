//! The layout of an envelope, as the server and everybody without a key sees it.
//!
//! ```text
//! clear || siv(32) || ciphertext || tag(16)
//! clear = "SRE1" | suite u8 | kind u8 (1 chunk, 2 node) | level u8 (chunk 0) | 0 u8
//!         a node adds: u32 n | n x SealedDigest(32)
//! ```
//!
//! [`Envelope::parse`] accepts exactly one encoding of each envelope: every length follows from
//! the clear part, and a chunk's payload length is on the padding scale. Nothing here knows a key.

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::SealedDigest;
use crate::limits::{ENVELOPE_MAX_BYTES, LEVEL_MAX, NODE_CHILDREN_MAX};
use crate::node::CHILD_PAYLOAD_BYTES;
use crate::padding::is_on_scale;

/// First bytes of every envelope.
pub const MAGIC: &[u8; 4] = b"SRE1";
/// Length of the synthetic initialisation vector.
pub const SIV_BYTES: usize = 32;
/// Length of the AEAD tag.
pub const TAG_BYTES: usize = 16;
/// Length of a chunk's clear part, and of the fixed start of a node's.
pub const CLEAR_BYTES: usize = 8;

const WHAT: &str = "envelope";
const KIND_CHUNK: u8 = 1;
const KIND_NODE: u8 = 2;

/// The set of algorithms that sealed an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Keyed BLAKE3 and ChaCha20-Poly1305.
    Blake3ChaCha20Poly1305,
}

impl Suite {
    /// The byte that names the suite.
    pub const fn code(self) -> u8 {
        match self {
            Self::Blake3ChaCha20Poly1305 => 1,
        }
    }

    /// The suite that `code` names.
    pub fn from_code(code: u8) -> Result<Self, DecodeError> {
        match code {
            1 => Ok(Self::Blake3ChaCha20Poly1305),
            _ => Err(DecodeError::Magic("suite")),
        }
    }
}

/// An envelope, taken apart without a key.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// Algorithms.
    pub suite: Suite,
    /// 0 for a chunk; for a node one more than its children's.
    pub level: u8,
    /// The clear part, which the AEAD authenticates.
    pub clear: &'a [u8],
    /// Synthetic initialisation vector.
    pub siv: &'a [u8; SIV_BYTES],
    /// Sealed payload, without the tag.
    pub ciphertext: &'a [u8],
    /// AEAD tag.
    pub tag: &'a [u8; TAG_BYTES],
    children: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes an envelope apart; refuses every encoding but the canonical one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > ENVELOPE_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let suite = Suite::from_code(reader.u8()?)?;
        let kind = reader.u8()?;
        let level = reader.u8()?;
        if reader.u8()? != 0 {
            return reader.refuse();
        }
        let children: &[u8] = match (kind, level) {
            (KIND_CHUNK, 0) => &[],
            (KIND_NODE, 1..=LEVEL_MAX) => {
                let count = reader.count(NODE_CHILDREN_MAX)?;
                if count == 0 {
                    return reader.refuse();
                }
                let count = usize::try_from(count).map_err(|_| DecodeError::TooLong(WHAT))?;
                reader.take(count.saturating_mul(SealedDigest::BYTES))?
            }
            _ => return reader.refuse(),
        };
        let clear_bytes = bytes.len().saturating_sub(reader.remaining());
        let (siv, rest) = rest_of(&mut reader)?;
        let (ciphertext, tag) =
            rest.split_last_chunk::<TAG_BYTES>().ok_or(DecodeError::Short(WHAT))?;
        let envelope = Self {
            suite,
            level,
            clear: bytes.get(..clear_bytes).ok_or(DecodeError::Short(WHAT))?,
            siv,
            ciphertext,
            tag,
            children,
        };
        envelope.check_payload_length()?;
        Ok(envelope)
    }

    /// Digests of the children, in order; none for a chunk.
    pub fn children(&self) -> impl ExactSizeIterator<Item = SealedDigest> + use<'a> {
        let (digests, _) = self.children.as_chunks::<{ SealedDigest::BYTES }>();
        digests.iter().map(|digest| SealedDigest(*digest))
    }

    /// Whether this is a node.
    pub fn is_node(&self) -> bool {
        self.level > 0
    }

    fn check_payload_length(&self) -> Result<(), DecodeError> {
        let length = self.ciphertext.len();
        let good = if self.is_node() {
            length == self.children().len().saturating_mul(CHILD_PAYLOAD_BYTES)
        } else {
            u64::try_from(length).is_ok_and(is_on_scale)
        };
        if good { Ok(()) } else { Err(DecodeError::Value(WHAT)) }
    }
}

/// The clear part of a chunk's envelope.
pub fn clear_of_chunk(suite: Suite) -> [u8; CLEAR_BYTES] {
    let [a, b, c, d] = *MAGIC;
    [a, b, c, d, suite.code(), KIND_CHUNK, 0, 0]
}

/// The clear part of the envelope of a node at `level` with these children.
pub fn clear_of_node(suite: Suite, level: u8, children: &[SealedDigest]) -> Vec<u8> {
    let mut clear = Writer::with_magic(MAGIC);
    clear.u8(suite.code()).u8(KIND_NODE).u8(level).u8(0);
    clear.count(children.len());
    for child in children {
        clear.raw(child.as_bytes());
    }
    clear.finish()
}

fn rest_of<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8; SIV_BYTES], &'a [u8]), DecodeError> {
    let rest = reader.take(reader.remaining())?;
    rest.split_first_chunk::<SIV_BYTES>().ok_or(DecodeError::Short(WHAT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk_envelope(payload_bytes: usize) -> Vec<u8> {
        let mut bytes = clear_of_chunk(Suite::Blake3ChaCha20Poly1305).to_vec();
        bytes.resize(bytes.len() + SIV_BYTES + payload_bytes + TAG_BYTES, 7);
        bytes
    }

    fn node_envelope(level: u8, count: u8) -> Vec<u8> {
        let children: Vec<_> = (0..count).map(|n| SealedDigest([n; 32])).collect();
        let mut bytes = clear_of_node(Suite::Blake3ChaCha20Poly1305, level, &children);
        let rest = SIV_BYTES + usize::from(count) * CHILD_PAYLOAD_BYTES + TAG_BYTES;
        bytes.resize(bytes.len() + rest, 7);
        bytes
    }

    #[test]
    fn parses_what_it_lays_out() {
        let bytes = chunk_envelope(512);
        assert_eq!(Envelope::parse(&bytes).map(|e| e.level), Ok(0));
        let bytes = node_envelope(3, 5);
        assert_eq!(bytes.len(), 60 + 72 * 5);
        let envelope = Envelope::parse(&bytes).unwrap();
        assert_eq!((envelope.level, envelope.children().len()), (3, 5));
        assert_eq!(envelope.children().nth(4), Some(SealedDigest([4; 32])));
    }

    #[test]
    fn refuses_every_other_encoding() {
        let good = chunk_envelope(512);
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            Envelope::parse(&bytes).is_err()
        };
        assert!(changed(3, b'2'), "version");
        assert!(changed(4, 9), "suite");
        assert!(changed(5, 3), "kind");
        assert!(changed(5, 2), "a chunk called node");
        assert!(changed(6, 1), "level of a chunk");
        assert!(changed(7, 1), "reserved byte");
        assert!(Envelope::parse(&chunk_envelope(511)).is_err(), "below the scale");
        assert!(Envelope::parse(&chunk_envelope(513)).is_err(), "off the scale");
        assert!(Envelope::parse(&node_envelope(0, 5)).is_err(), "node at level 0");
        assert!(Envelope::parse(&node_envelope(9, 5)).is_err(), "too high");
        assert!(Envelope::parse(&node_envelope(1, 0)).is_err(), "no children");
        let mut long = node_envelope(1, 5);
        long.push(0);
        assert!(Envelope::parse(&long).is_err(), "leftover");
        for length in 0..good.len() {
            assert!(Envelope::parse(&good[..length]).is_err(), "cut at {length}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Envelope::parse(&bytes);
        }
    }
}
