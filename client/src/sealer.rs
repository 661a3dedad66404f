//! Envelopes: sealing plaintext into them, and getting it back with every check made.
//!
//! ```text
//! siv      = keyed(k, 0x01 || u32 len(clear) || clear || payload)
//! mk       = keyed(k, 0x02 || siv)
//! ct, tag  = ChaCha20-Poly1305(mk, nonce = 0, payload, aad = clear)
//! envelope = clear || siv || ct || tag
//! chunk payload = codec u8 | u32 body length | body | zeros up to max(512, Padme(5 + length))
//! ```
//!
//! Why a zero nonce is safe: `mk` follows from a hash of the whole message under a key that follows
//! from the plaintext, so it seals one message only, even where another compressor makes other
//! bytes of the same plaintext.
//!
//! Reading gives out no byte before, in this order, the digest, the AEAD tag, the padding, the
//! length that the node above names, and `h` recomputed from the plaintext were right. Lengths are
//! compared with [`CHUNK_MAX_BYTES`] before anything is allocated. The reader need not recompute
//! `siv`: a wrong one gives another `mk`, and the tag fails.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use aws_lc_rs::error::Unspecified;
use strongroom_protocol::codec::DecodeError;
use strongroom_protocol::envelope::{
    CLEAR_BYTES, Envelope, SIV_BYTES, Suite, TAG_BYTES, clear_of_chunk, clear_of_node,
};
use strongroom_protocol::id::{ChunkId, SealedDigest};
use strongroom_protocol::limits::CHUNK_MAX_BYTES;
use strongroom_protocol::node::{self, Child};
use strongroom_protocol::padding::padded_payload_bytes;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::compressor::{Body, DecompressError, Decompressor};
use crate::keys::{PlaintextHash, PlaintextKeys};

const SUITE: Suite = Suite::Blake3ChaCha20Poly1305;
/// Bytes of a chunk's envelope before its ciphertext.
const CHUNK_HEAD_BYTES: usize = CLEAR_BYTES + SIV_BYTES;
/// Bytes of a chunk's payload before its body.
const BODY_PREFIX_BYTES: usize = 5;
/// Bytes before the clear part in what `siv` hashes.
const SIV_PREFIX_BYTES: usize = 5;
const SIV_DOMAIN: u8 = 1;
const MESSAGE_KEY_DOMAIN: u8 = 2;

/// An envelope is not the one that its node (or record) names.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum UnsealError {
    /// Other bytes than the ones asked for.
    #[error("envelope: digest does not match; it is damaged, fetch it again or from a replica")]
    Digest,
    /// Not an envelope.
    #[error(transparent)]
    Form(#[from] DecodeError),
    /// A node where a chunk should be, or a node of another level.
    #[error("envelope: kind or level is not what the tree says")]
    Level,
    /// Sealed with another key, or changed after it was sealed.
    #[error("envelope: does not open with its key")]
    Tag,
    /// The payload is not padded as the format says.
    #[error("envelope: padding is wrong")]
    Padding,
    /// The body does not give plaintext of the length that the tree says.
    #[error("envelope: {0}")]
    Body(#[from] DecompressError),
    /// The plaintext is not the one that was backed up.
    #[error("envelope: plaintext does not have the hash that the tree says")]
    PlaintextHash,
}

/// What a node says of one child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeChild {
    /// The child's envelope.
    pub digest: SealedDigest,
    /// `h` of the child, from which its key follows.
    pub h: PlaintextHash,
    /// Bytes of plaintext below the child, with multiplicity.
    pub plaintext_bytes: u64,
}

/// A node, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedNode {
    /// `h` of the node.
    pub h: PlaintextHash,
    /// Its name, on which the level above is cut.
    pub id: ChunkId,
    /// Digest of the envelope.
    pub digest: SealedDigest,
    /// One more than its children's, which are at 0 when they are chunks.
    pub level: u8,
    /// The bytes to store.
    pub envelope: Vec<u8>,
    /// Bytes of plaintext below it, with multiplicity.
    pub plaintext_bytes: u64,
}

impl SealedNode {
    /// What the node above says of this one.
    pub fn as_child(&self) -> NodeChild {
        NodeChild { digest: self.digest, h: self.h, plaintext_bytes: self.plaintext_bytes }
    }
}

/// Seals the chunk whose plaintext hash is `h` into `out`, whose old contents are lost. The payload
/// is laid out and encrypted in place: the body is copied once.
pub fn seal_chunk(h: &PlaintextHash, body: &Body<'_>, out: &mut Vec<u8>) -> SealedDigest {
    let payload_bytes = padded_bytes(body.bytes.len());
    out.clear();
    out.reserve(CHUNK_HEAD_BYTES + payload_bytes + TAG_BYTES);
    out.extend_from_slice(&clear_of_chunk(SUITE));
    out.extend_from_slice(&[0; SIV_BYTES]);
    out.push(body.codec);
    out.extend_from_slice(&length_bytes(body.bytes.len()));
    out.extend_from_slice(body.bytes);
    out.resize(CHUNK_HEAD_BYTES + payload_bytes, 0);
    seal_chunk_payload(h, out)
}

/// Seals a node at `level` (1 or more) over `children`, of which there are at most
/// [`strongroom_protocol::limits::NODE_CHILDREN_MAX`].
pub fn seal_node(keys: &PlaintextKeys, level: u8, children: &[NodeChild]) -> SealedNode {
    let digests: Vec<_> = children.iter().map(|child| child.digest).collect();
    let clear = clear_of_node(SUITE, level, &digests);
    let in_payload =
        |child: &NodeChild| Child { h: child.h.0, plaintext_bytes: child.plaintext_bytes };
    let children_sealed: Vec<_> = children.iter().map(in_payload).collect();
    let mut payload = Zeroizing::new(node::encode(&children_sealed));
    let h = keys.hash_node(&clear, &payload);
    let key = h.seal_key();
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(&[SIV_DOMAIN]).update(&length_bytes(clear.len()));
    let siv = *hasher.update(&clear).update(&payload).finalize().as_bytes();
    let tag = encrypt(&message_key(&key, &siv), &clear, &mut payload);
    let mut envelope = clear;
    envelope.extend_from_slice(&siv);
    envelope.extend_from_slice(&payload);
    envelope.extend_from_slice(tag.as_ref());
    let plaintext_bytes =
        children.iter().fold(0u64, |sum, child| sum.saturating_add(child.plaintext_bytes));
    SealedNode {
        h,
        id: h.chunk_id(),
        digest: SealedDigest::of(&envelope),
        level,
        envelope,
        plaintext_bytes,
    }
}

/// Opens the envelope of a chunk, makes every check, and appends the plaintext to `out`. `digest`,
/// `h` and `plaintext_bytes` are what the node above says.
///
/// # Errors
/// When a check fails; `out` is as it was then.
pub fn unseal_chunk(
    keys: &PlaintextKeys,
    envelope: &[u8],
    digest: &SealedDigest,
    h: &PlaintextHash,
    plaintext_bytes: u64,
    out: &mut Vec<u8>,
    decompressor: &mut Decompressor,
) -> Result<(), UnsealError> {
    let start = out.len();
    let plaintext_bytes = chunk_length(plaintext_bytes)?;
    let envelope = checked(envelope, digest, 0)?;
    let mut scratch = std::mem::take(&mut decompressor.scratch);
    let opened = decrypt(h, &envelope, &mut scratch)
        .and_then(body_of)
        .and_then(|body| Ok(decompressor.decompress(body, plaintext_bytes, out)?));
    decompressor.scratch = scratch;
    opened?;
    if keys.hash_chunk(out.get(start..).unwrap_or(&[])) != *h {
        out.truncate(start);
        return Err(UnsealError::PlaintextHash);
    }
    Ok(())
}

/// Opens the envelope of a node and makes every check. `digest`, `h` and `level` are what the node
/// above, or the record, says.
///
/// # Errors
/// When a check fails.
pub fn unseal_node(
    keys: &PlaintextKeys,
    envelope: &[u8],
    digest: &SealedDigest,
    h: &PlaintextHash,
    level: u8,
) -> Result<Vec<NodeChild>, UnsealError> {
    let envelope = checked(envelope, digest, level)?;
    if !envelope.is_node() {
        return Err(UnsealError::Level);
    }
    let mut scratch = Zeroizing::new(Vec::new());
    let payload = decrypt(h, &envelope, &mut scratch)?;
    if keys.hash_node(envelope.clear, payload) != *h {
        return Err(UnsealError::PlaintextHash);
    }
    let children = node::decode(payload, envelope.children().len())?;
    let join = |(digest, child): (SealedDigest, Child)| NodeChild {
        digest,
        h: PlaintextHash(child.h),
        plaintext_bytes: child.plaintext_bytes,
    };
    Ok(envelope.children().zip(children).map(join).collect())
}

/// The answer to a challenge: proves that one has `envelope`, to somebody who just made `nonce`.
pub fn challenge_answer(nonce: &[u8; 32], envelope: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(nonce, envelope).as_bytes()
}

/// Seals `clear || room for siv || payload` of a chunk in place, and appends the tag.
///
/// What `siv` hashes is laid out without a copy: domain, length and clear part take the end of the
/// room for `siv`, right before the payload, so that one call hashes one piece of memory. (Piece by
/// piece, BLAKE3 would use its wide instructions for far fewer bytes of a small chunk.)
fn seal_chunk_payload(h: &PlaintextHash, out: &mut Vec<u8>) -> SealedDigest {
    const SIV_INPUT_START: usize = CHUNK_HEAD_BYTES - CLEAR_BYTES - SIV_PREFIX_BYTES;
    let clear = clear_of_chunk(SUITE);
    let key = h.seal_key();
    if let Some(room) = out.get_mut(SIV_INPUT_START..CHUNK_HEAD_BYTES) {
        let prefix = [SIV_DOMAIN].into_iter().chain(length_bytes(CLEAR_BYTES)).chain(clear);
        room.iter_mut().zip(prefix).for_each(|(to, from)| *to = from);
    }
    let siv = *blake3::keyed_hash(&key, out.get(SIV_INPUT_START..).unwrap_or(&[])).as_bytes();
    if let Some(room) = out.get_mut(CLEAR_BYTES..CHUNK_HEAD_BYTES) {
        room.copy_from_slice(&siv);
    }
    let payload = out.get_mut(CHUNK_HEAD_BYTES..).unwrap_or(&mut []);
    let tag = encrypt(&message_key(&key, &siv), &clear, payload);
    out.extend_from_slice(tag.as_ref());
    SealedDigest::of(out)
}

/// `mk`.
fn message_key(key: &[u8; 32], siv: &[u8; SIV_BYTES]) -> Zeroizing<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_keyed(key);
    Zeroizing::new(*hasher.update(&[MESSAGE_KEY_DOMAIN]).update(siv).finalize().as_bytes())
}

/// The cipher under a key that seals one message only, which is why there is no nonce to choose.
fn cipher_of(message_key: &[u8; 32]) -> Result<LessSafeKey, Unspecified> {
    UnboundKey::new(&CHACHA20_POLY1305, message_key).map(LessSafeKey::new)
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn encrypt(message_key: &[u8; 32], clear: &[u8], payload: &mut [u8]) -> Tag {
    let sealed = cipher_of(message_key).and_then(|cipher| {
        cipher.seal_in_place_separate_tag(zero_nonce(), Aad::from(clear), payload)
    });
    // A wrong tag would be an envelope that nobody can ever open again.
    #[expect(clippy::expect_used, reason = "the key has its length, and no payload 256 GiB")]
    sealed.expect("ChaCha20-Poly1305 seals every payload")
}

/// Decrypts the payload into `scratch`, which grows to the largest payload seen and stays.
fn decrypt<'s>(
    h: &PlaintextHash,
    envelope: &Envelope<'_>,
    scratch: &'s mut Vec<u8>,
) -> Result<&'s [u8], UnsealError> {
    let length = envelope.ciphertext.len();
    if scratch.len() < length {
        scratch.resize(length, 0);
    }
    let payload = scratch.get_mut(..length).ok_or(UnsealError::Tag)?;
    let (sealed, tag) = (envelope.ciphertext, envelope.tag.as_slice());
    cipher_of(&message_key(&h.seal_key(), envelope.siv))
        .and_then(|cipher| {
            let clear = Aad::from(envelope.clear);
            cipher.open_separate_gather(zero_nonce(), clear, sealed, tag, payload)
        })
        .map_err(|_| UnsealError::Tag)?;
    Ok(payload)
}

/// Parses an envelope whose digest and level are the expected ones.
fn checked<'a>(
    envelope: &'a [u8],
    digest: &SealedDigest,
    level: u8,
) -> Result<Envelope<'a>, UnsealError> {
    if SealedDigest::of(envelope) != *digest {
        return Err(UnsealError::Digest);
    }
    let envelope = Envelope::parse(envelope)?;
    if envelope.suite != SUITE || envelope.level != level {
        return Err(UnsealError::Level);
    }
    Ok(envelope)
}

/// Takes a chunk's payload apart: the padding must be of exactly the right length, and zeros.
pub(crate) fn body_of(payload: &[u8]) -> Result<Body<'_>, UnsealError> {
    let ([codec, length @ ..], rest) =
        payload.split_first_chunk::<BODY_PREFIX_BYTES>().ok_or(UnsealError::Padding)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| UnsealError::Padding)?;
    let (bytes, zeros) = rest.split_at_checked(length).ok_or(UnsealError::Padding)?;
    let length_is_good = padded_bytes(length) == payload.len();
    if !length_is_good || zeros.iter().any(|byte| *byte != 0) {
        return Err(UnsealError::Padding);
    }
    Ok(Body { codec: *codec, bytes })
}

/// A chunk's length as a node says it, if a chunk can be that long.
fn chunk_length(plaintext_bytes: u64) -> Result<usize, UnsealError> {
    if plaintext_bytes > u64::from(CHUNK_MAX_BYTES) {
        return Err(DecompressError::Length.into());
    }
    usize::try_from(plaintext_bytes).map_err(|_| DecompressError::Length.into())
}

/// Length of the payload whose body is `body_bytes` long. Lengths in memory fit 64 bits.
fn padded_bytes(body_bytes: usize) -> usize {
    let used = body_bytes.saturating_add(BODY_PREFIX_BYTES);
    let padded = u64::try_from(used).map_or(u64::MAX, padded_payload_bytes);
    usize::try_from(padded).unwrap_or(usize::MAX)
}

/// A length as four bytes. Chunks and nodes are bounded by the protocol's limits, far below.
fn length_bytes(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests;
