//! Round trips, and everything that a reader must refuse.

use super::*;
use crate::compressor::{CODEC_NONE, CODEC_ZSTD, Compressor};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce as ReferenceNonce};
use proptest::prelude::*;
use strongroom_protocol::descriptor::Codec;

fn keys(key: u8) -> PlaintextKeys {
    PlaintextKeys::from_plaintext_key([key; 32])
}

fn sealed(keys: &PlaintextKeys, plaintext: &[u8], codec: Codec) -> (NodeChild, Vec<u8>) {
    let h = keys.hash_chunk(plaintext);
    let mut envelope = Vec::new();
    let digest = seal_chunk(&h, &Compressor::new(codec).compress(plaintext), &mut envelope);
    (NodeChild { digest, h, plaintext_bytes: plaintext.len() as u64 }, envelope)
}

fn unsealed(
    keys: &PlaintextKeys,
    child: &NodeChild,
    envelope: &[u8],
) -> Result<Vec<u8>, UnsealError> {
    let (mut out, mut decompressor) = (vec![1, 2, 3], Decompressor::new());
    let NodeChild { digest, h, plaintext_bytes } = child;
    let result =
        unseal_chunk(keys, envelope, digest, h, *plaintext_bytes, &mut out, &mut decompressor);
    assert!(out.starts_with(&[1, 2, 3]), "what was there is gone");
    assert!(result.is_ok() || out.len() == 3, "bytes were given out");
    result.map(|()| out.split_off(3))
}

fn text(length: usize) -> Vec<u8> {
    (0..).flat_map(|n| format!("{n}\tparty {}\n", n * 7).into_bytes()).take(length).collect()
}

/// Seals a payload as it stands, as only a writer with the keys could.
fn seal_raw(keys: &PlaintextKeys, plaintext: &[u8], payload: &[u8]) -> (NodeChild, Vec<u8>) {
    let h = keys.hash_chunk(plaintext);
    let mut envelope = clear_of_chunk(SUITE).to_vec();
    envelope.extend_from_slice(&[0; SIV_BYTES]);
    envelope.extend_from_slice(payload);
    let digest = seal_chunk_payload(&h, &mut envelope);
    (NodeChild { digest, h, plaintext_bytes: plaintext.len() as u64 }, envelope)
}

fn payload(codec: u8, body: &[u8], length: u32) -> Vec<u8> {
    let mut payload = vec![codec];
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(body);
    payload.resize(padded_bytes(body.len()), 0);
    payload
}

#[test]
fn chunks_of_every_size_come_back() {
    let keys = keys(1);
    let max = CHUNK_MAX_BYTES as usize;
    for length in [0, 1, 506, 507, 508, 4095, 4096, 16_383, 65_536, max - 1, max] {
        for codec in [Codec::None, Codec::Zstd(1)] {
            for plaintext in [text(length), vec![0; length]] {
                let (child, envelope) = sealed(&keys, &plaintext, codec);
                assert_eq!(unsealed(&keys, &child, &envelope), Ok(plaintext));
            }
        }
    }
}

#[test]
fn sealing_is_deterministic_and_follows_the_written_format() {
    let keys = keys(1);
    let plaintext = text(1000);
    let (child, envelope) = sealed(&keys, &plaintext, Codec::None);
    assert_eq!(sealed(&keys, &plaintext, Codec::None).1, envelope);
    let clear = clear_of_chunk(SUITE);
    let payload = payload(CODEC_NONE, &plaintext, 1000);
    let mut hashed = vec![1, 8, 0, 0, 0];
    hashed.extend_from_slice(&clear);
    hashed.extend_from_slice(&payload);
    let key = child.h.seal_key();
    let siv = blake3::keyed_hash(&key, &hashed);
    let message_key = blake3::keyed_hash(&key, &[&[2], siv.as_bytes().as_slice()].concat());
    let cipher = ChaCha20Poly1305::new(&Key::from(*message_key.as_bytes()));
    let message = Payload { msg: &payload, aad: &clear };
    let sealed = cipher.encrypt(&ReferenceNonce::default(), message).unwrap();
    assert_eq!(envelope, [&clear[..], siv.as_bytes(), &sealed].concat());
    assert_eq!(child.digest, SealedDigest(*blake3::hash(&envelope).as_bytes()));
}

#[test]
fn every_flipped_or_missing_byte_is_refused() {
    let keys = keys(1);
    let (child, envelope) = sealed(&keys, &text(700), Codec::Zstd(1));
    for at in 0..envelope.len() {
        let mut changed = envelope.clone();
        changed[at] ^= 0x10;
        assert_eq!(unsealed(&keys, &child, &changed), Err(UnsealError::Digest));
        // Whoever can change a node's list can name the changed bytes, and gets no further.
        let renamed = NodeChild { digest: SealedDigest::of(&changed), ..child };
        assert!(unsealed(&keys, &renamed, &changed).is_err(), "byte {at}");
        let renamed = NodeChild { digest: SealedDigest::of(&envelope[..at]), ..child };
        assert!(unsealed(&keys, &renamed, &envelope[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn an_envelope_is_bound_to_namespace_kind_and_plaintext() {
    let (ours, theirs) = (keys(1), keys(2));
    let (child, envelope) = sealed(&ours, b"ours", Codec::None);
    assert_eq!(unsealed(&theirs, &child, &envelope), Err(UnsealError::PlaintextHash));
    let moved = NodeChild { h: theirs.hash_chunk(b"ours"), ..child };
    assert_eq!(unsealed(&theirs, &moved, &envelope), Err(UnsealError::Tag));
    let longer = NodeChild { plaintext_bytes: 5, ..child };
    assert_eq!(unsealed(&ours, &longer, &envelope), Err(DecompressError::Length.into()));
    let huge = NodeChild { plaintext_bytes: u64::MAX, ..child };
    assert_eq!(unsealed(&ours, &huge, &envelope), Err(DecompressError::Length.into()));
    let node = unseal_node(&ours, &envelope, &child.digest, &child.h, 0);
    assert_eq!(node, Err(UnsealError::Level));
    let node = seal_node(&ours, 1, &[child]);
    assert_eq!(unsealed(&ours, &node.as_child(), &node.envelope), Err(UnsealError::Level));
}

#[test]
fn other_padding_is_refused() {
    let keys = keys(1);
    let mut not_zero = payload(CODEC_NONE, b"plaintext", 9);
    assert!(unseal_raw(&keys, &not_zero).is_ok());
    not_zero[511] = 1;
    assert_eq!(unseal_raw(&keys, &not_zero), Err(UnsealError::Padding));
    let mut too_long = payload(CODEC_NONE, b"plaintext", 9);
    too_long.resize(544, 0);
    assert_eq!(unseal_raw(&keys, &too_long), Err(UnsealError::Padding));
    let beyond = payload(CODEC_NONE, b"plaintext", 508);
    assert_eq!(unseal_raw(&keys, &beyond), Err(UnsealError::Padding));
    let shorter = payload(CODEC_NONE, b"plaintext", 8);
    assert_eq!(unseal_raw(&keys, &shorter), Err(UnsealError::Padding));
    let codec = payload(7, b"plaintext", 9);
    assert_eq!(unseal_raw(&keys, &codec), Err(DecompressError::Codec(7).into()));
}

fn unseal_raw(keys: &PlaintextKeys, payload: &[u8]) -> Result<Vec<u8>, UnsealError> {
    let (child, envelope) = seal_raw(keys, b"plaintext", payload);
    unsealed(keys, &child, &envelope)
}

#[test]
fn bombs_and_other_plaintext_are_refused() {
    let keys = keys(1);
    let bomb = zstd::bulk::compress(&vec![0; 32 << 20], 1).unwrap();
    let bomb = payload(CODEC_ZSTD, &bomb, bomb.len() as u32);
    assert_eq!(unseal_raw(&keys, &bomb), Err(DecompressError::Body.into()));
    let other = payload(CODEC_NONE, b"plaintexT", 9);
    assert_eq!(unseal_raw(&keys, &other), Err(UnsealError::PlaintextHash));
}

#[test]
fn nodes_come_back_and_cannot_be_swapped() {
    let keys = keys(1);
    let children: Vec<_> = (0..5).map(|n| sealed(&keys, &text(n * 100), Codec::None).0).collect();
    let node = seal_node(&keys, 2, &children);
    assert_eq!(node.envelope.len(), 60 + 72 * 5);
    assert_eq!(node.plaintext_bytes, 1000);
    let open = |envelope: &[u8], digest, h, level| unseal_node(&keys, envelope, &digest, &h, level);
    assert_eq!(open(&node.envelope, node.digest, node.h, 2), Ok(children.clone()));
    assert_eq!(open(&node.envelope, node.digest, node.h, 1), Err(UnsealError::Level));
    let other_keys = self::keys(2);
    let moved = unseal_node(&other_keys, &node.envelope, &node.digest, &node.h, 2);
    assert_eq!(moved, Err(UnsealError::PlaintextHash));

    // The same list of `h`, another child digest: another node, under another key.
    let mut swapped = children.clone();
    swapped[1].digest = SealedDigest([9; 32]);
    let twin = seal_node(&keys, 2, &swapped);
    assert_ne!((twin.h, twin.digest), (node.h, node.digest));
    assert_eq!(open(&twin.envelope, twin.digest, node.h, 2), Err(UnsealError::Tag));
    let mut forged = node.envelope.clone();
    forged[12 + 32] ^= 1;
    let digest = SealedDigest::of(&forged);
    assert_eq!(open(&forged, digest, node.h, 2), Err(UnsealError::Tag));
    assert_ne!(seal_node(&keys, 3, &children).h, node.h, "level is hashed");

    for at in 0..node.envelope.len() {
        let mut changed = node.envelope.clone();
        changed[at] ^= 1;
        assert_eq!(open(&changed, node.digest, node.h, 2), Err(UnsealError::Digest));
        let digest = SealedDigest::of(&changed);
        assert!(open(&changed, digest, node.h, 2).is_err(), "byte {at}");
    }
}

#[test]
fn challenges_need_the_whole_envelope() {
    let answer = challenge_answer(&[1; 32], b"envelope");
    assert_eq!(answer, challenge_answer(&[1; 32], b"envelope"));
    assert_ne!(answer, challenge_answer(&[2; 32], b"envelope"));
    assert_ne!(answer, challenge_answer(&[1; 32], b"envelopE"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_plaintext_comes_back(
        plaintext in proptest::collection::vec(any::<u8>(), 0..9000),
        run in 0usize..9000,
        level in 0u8..4,
    ) {
        let mut plaintext = plaintext;
        plaintext.resize(plaintext.len() + run, b' ');
        let codec = if level == 0 { Codec::None } else { Codec::Zstd(level) };
        let (child, envelope) = sealed(&keys(1), &plaintext, codec);
        prop_assert!(Envelope::parse(&envelope).is_ok());
        prop_assert_eq!(unsealed(&keys(1), &child, &envelope), Ok(plaintext));
    }

    #[test]
    fn the_cipher_is_the_reference(
        key in any::<[u8; 32]>(),
        clear in proptest::collection::vec(any::<u8>(), 0..100),
        plain in proptest::collection::vec(any::<u8>(), 0..5000),
    ) {
        let reference = ChaCha20Poly1305::new(&Key::from(key));
        let message = Payload { msg: &plain, aad: &clear };
        let expected = reference.encrypt(&ReferenceNonce::default(), message).unwrap();
        let mut sealed = plain;
        let tag = encrypt(&key, &clear, &mut sealed);
        sealed.extend_from_slice(tag.as_ref());
        prop_assert_eq!(sealed, expected);
    }

    #[test]
    fn no_bytes_panic(envelope in proptest::collection::vec(any::<u8>(), 0..700)) {
        let digest = SealedDigest::of(&envelope);
        let child = NodeChild { digest, h: PlaintextHash([1; 32]), plaintext_bytes: 9 };
        prop_assert!(unsealed(&keys(1), &child, &envelope).is_err());
        prop_assert!(unseal_node(&keys(1), &envelope, &digest, &child.h, 1).is_err());
    }
}
