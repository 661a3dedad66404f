//! The plaintext payload of a node: per child `h(32) | u64 plaintext length`.
//!
//! `h` is the keyed hash from which a child's key, id and check follow, so whoever opens a node
//! can open its children. Also the rule that says where a node ends.

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::ChunkId;
use crate::limits::{NODE_CHILDREN_MAX, NODE_CHILDREN_MIN, NODE_CUT_MASK};

/// Bytes of payload per child.
pub const CHILD_PAYLOAD_BYTES: usize = 40;

/// What a node says of one child, sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Keyed hash of the child's plaintext.
    pub h: [u8; 32],
    /// Bytes of plaintext below the child, with multiplicity.
    pub plaintext_bytes: u64,
}

/// Encodes the payload of a node.
pub fn encode(children: &[Child]) -> Vec<u8> {
    let mut payload = Writer::default();
    for child in children {
        payload.raw(&child.h).u64(child.plaintext_bytes);
    }
    payload.finish()
}

/// Decodes the payload of a node that has `child_count` children.
pub fn decode(payload: &[u8], child_count: usize) -> Result<Vec<Child>, DecodeError> {
    let mut reader = Reader::new("node", payload);
    if child_count.saturating_mul(CHILD_PAYLOAD_BYTES) != payload.len() {
        return Err(DecodeError::Value("node"));
    }
    let mut children = Vec::with_capacity(child_count);
    for _ in 0..child_count {
        children.push(Child { h: reader.array()?, plaintext_bytes: reader.u64()? });
    }
    reader.finish()?;
    Ok(children)
}

/// Whether a node that now has `child_count` children, the last being `last`, ends here.
///
/// Cutting on the id of the child, which follows from plaintext, makes two nearly equal snapshots
/// share almost all nodes, whatever compressor or sealer made their envelopes.
pub fn ends_after(last: &ChunkId, child_count: u32) -> bool {
    let [low, high, ..] = last.0;
    let cut_here = u16::from_le_bytes([low, high]) & NODE_CUT_MASK == 0;
    child_count >= NODE_CHILDREN_MAX || (child_count >= NODE_CHILDREN_MIN && cut_here)
}
