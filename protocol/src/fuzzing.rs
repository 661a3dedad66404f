//! Entry points for fuzzers: one for each decoder of bytes or text that a peer chose.
//!
//! Each takes any bytes, must not panic, and answers whether they were accepted. What is accepted
//! must encode to the very same bytes, which also bounds what a decoder can build from an input.
//! Signatures and check sums that a fuzzer cannot guess are made here with fixed keys, so that it
//! gets past them: targets whose names end in `signed` do so, at the price of a signature for each
//! input, beside one of the same decoder that costs none. Nothing but the `fuzz/` and `tests/fuzz/`
//! folders of this crate and of the client calls this file.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;

use crate::catalogue;
use crate::certificate::WriterCertificate;
use crate::checkpoint::Checkpoint;
use crate::codec::{DecodeError, Reader};
use crate::descriptor::{Descriptor, DescriptorError, VerifiedDescriptor};
use crate::entry::Entry;
use crate::envelope::{Envelope, clear_of_chunk, clear_of_node};
use crate::frame::{FrameDecoder, prefix};
use crate::id::{ChunkId, Label, PrincipalId, PublicKey, SealedDigest};
use crate::lend;
use crate::limits::PROOF_HASHES_MAX;
use crate::merkle::{Hash, verify_consistency, verify_inclusion};
use crate::message::HexBytes;
use crate::node;
use crate::policy::Policy;
use crate::promotion::PromotionRequest;
use crate::receipt::Receipt;
use crate::record::{KeyBlock, Record, RecordBody};
use crate::role::Role;
use crate::roll::RollRequest;
use crate::route::Route;
use crate::seed::{Manifest, PackTable};
use crate::signature::SIGNATURE_BYTES;
use crate::tile::Tile;
use crate::token::{EnrollRequest, Token};

/// A decoder, its name, and what it may cost.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is also that of its fuzz target and of its corpus folder.
    pub name: &'static str,
    /// Whether the decoder accepts the bytes.
    pub decode: fn(&[u8]) -> bool,
    /// Most memory that it may have at once.
    pub memory: Memory,
    /// An input costs as much as so many of the others, because keys or signatures are made.
    pub cost: u64,
}

/// Memory that an entry point may have at once, the encoding that it compares with included: it
/// grows with the input and with nothing that the input says.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// For any input.
    pub fixed_bytes: u64,
    /// For each byte of the input.
    pub per_byte: u64,
}

impl Memory {
    /// The bound for an input of `length` bytes.
    pub fn bound(&self, length: usize) -> u64 {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        self.fixed_bytes.saturating_add(self.per_byte.saturating_mul(length))
    }
}

impl Target {
    /// An entry point that costs what reading costs.
    pub const fn new(name: &'static str, decode: fn(&[u8]) -> bool, per_byte: u64) -> Self {
        let memory = Memory { fixed_bytes: 1024, per_byte };
        Self { name, decode, memory, cost: 1 }
    }

    /// One that makes or checks a signature for an input.
    pub const fn signing(name: &'static str, decode: fn(&[u8]) -> bool, per_byte: u64) -> Self {
        Self { cost: 100, ..Self::new(name, decode, per_byte) }
    }
}

/// All entry points.
pub const TARGETS: [Target; 27] = [
    Target::new("catalogue", decode_catalogue, 16),
    Target::new("certificate", decode_certificate, 8),
    Target::new("checkpoint", decode_checkpoint, 16),
    Target::signing("checkpoint_signed", decode_checkpoint_signed, 16),
    Target::new("descriptor", decode_descriptor, 8),
    Target::signing("descriptor_signed", decode_descriptor_signed, 8),
    Target::new("enroll_request", decode_enroll_request, 8),
    Target::new("entry", decode_entry, 8),
    Target::new("envelope", decode_envelope, 8),
    Target::new("frames", decode_frames, 8),
    Target::new("hex_bytes", decode_hex_bytes, 8),
    Target::new("key_block", decode_key_block, 16),
    Target::signing("lend_proof", decode_lend_proof, 8),
    Target::new("merkle", decode_merkle, 8),
    Target::new("name", decode_name, 8),
    Target::new("node", decode_node, 8),
    Target::new("policy", decode_policy, 16),
    Target::new("promotion", decode_promotion, 8),
    Target::new("receipt", decode_receipt, 8),
    Target::new("record", decode_record, 8),
    Target::new("record_body", decode_record_body, 8),
    Target::new("roll_request", decode_roll_request, 8),
    Target::new("route", decode_route, 8),
    Target::new("seed_manifest", decode_seed_manifest, 8),
    Target::new("seed_table", decode_seed_table, 8),
    Target::new("tile", decode_tile, 8),
    Target::new("token", decode_token, 8),
];

/// The key that stands for a namespace's authority and for a ledger. It guards nothing.
pub fn fixed_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn fixed_public_key() -> PublicKey {
    PublicKey(fixed_key().verifying_key().to_bytes())
}

/// Accepts, after the check that all decoders share.
pub fn accept(data: &[u8], encoded: &[u8]) -> bool {
    assert!(data == encoded, "what was decoded encodes to other bytes");
    true
}

/// A request for new keys.
pub fn decode_roll_request(data: &[u8]) -> bool {
    RollRequest::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// A catalogue.
pub fn decode_catalogue(data: &[u8]) -> bool {
    catalogue::decode(data).is_ok_and(|entries| accept(data, &catalogue::encode(&entries)))
}

/// A writer certificate.
pub fn decode_certificate(data: &[u8]) -> bool {
    WriterCertificate::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// A checkpoint note, as it is read before a signature is looked at. Signatures of others may stand
/// under it, so only its text is compared.
pub fn decode_checkpoint(data: &[u8]) -> bool {
    let Ok(note) = std::str::from_utf8(data) else { return false };
    let Ok((checkpoint, _)) = Checkpoint::parse(note) else { return false };
    let text = checkpoint.text();
    assert!(note.starts_with(&format!("{text}\n")), "the text of a checkpoint has two forms");
    true
}

/// The same with its signature, by a ledger key that is known.
pub fn decode_checkpoint_signed(data: &[u8]) -> bool {
    let Ok(note) = std::str::from_utf8(data) else { return false };
    let Ok(checkpoint) = Checkpoint::verify(note, &[fixed_public_key()]) else { return false };
    let again = checkpoint.sign(&fixed_key());
    assert!(
        note.split_once("\n\n").map(|(text, _)| text)
            == again.split_once("\n\n").map(|(text, _)| text),
        "the text of a checkpoint has two forms"
    );
    true
}

/// The signed part of a descriptor, as it is read before its signature is checked.
pub fn decode_descriptor(data: &[u8]) -> bool {
    Descriptor::decode_signed_part(data).is_ok_and(|value| accept(data, &value.signed_part()))
}

/// The same with its signature: the authority's key in it is replaced and the signature made.
pub fn decode_descriptor_signed(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    if let Some(authority) = bytes.get_mut(4..36) {
        authority.copy_from_slice(&fixed_public_key().0);
    }
    let digest = *blake3::hash(&bytes).as_bytes();
    bytes.extend_from_slice(&[0; SIGNATURE_BYTES]);
    match VerifiedDescriptor::decode(&bytes) {
        Err(DescriptorError::Signature(_)) => {}
        other => {
            assert!(other.is_err(), "a signature of zeros was accepted");
            return false;
        }
    }
    let signed_type = crate::signature::SignedType::Descriptor;
    let signature = crate::signature::sign(&fixed_key(), signed_type, &digest);
    bytes.truncate(data.len());
    bytes.extend_from_slice(&signature);
    let Ok(verified) = VerifiedDescriptor::decode(&bytes) else {
        unreachable!("the authority's signature was refused")
    };
    accept(&bytes, &verified.contents().sign(&fixed_key()))
}

/// An enrolment request; the proof at its end is not part of what decodes.
pub fn decode_enroll_request(data: &[u8]) -> bool {
    assert!(!EnrollRequest::proves(data, &[1; 32], &[2; 32]), "the proof was guessed");
    let Ok(request) = EnrollRequest::decode(data) else { return false };
    let again = request.encode(&[0; 32], &[0; 32]);
    let fields = |bytes: &[u8]| bytes.split_last_chunk::<32>().map(|(fields, _)| fields.to_vec());
    assert!(fields(data) == fields(&again), "an enrolment request has two forms");
    true
}

/// A ledger entry.
pub fn decode_entry(data: &[u8]) -> bool {
    Entry::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// An envelope, as a server without keys takes it apart.
pub fn decode_envelope(data: &[u8]) -> bool {
    let Ok(envelope) = Envelope::parse(data) else { return false };
    let children: Vec<SealedDigest> = envelope.children().collect();
    let mut again = if envelope.is_node() {
        clear_of_node(envelope.suite, envelope.level, &children)
    } else {
        clear_of_chunk(envelope.suite).to_vec()
    };
    assert!(again == envelope.clear, "a clear part has two forms");
    again.extend_from_slice(envelope.siv);
    again.extend_from_slice(envelope.ciphertext);
    again.extend_from_slice(envelope.tag);
    accept(data, &again)
}

/// A stream of envelopes, which must give the same frames in whatever pieces it arrives.
pub fn decode_frames(data: &[u8]) -> bool {
    let whole = frames_of(data, data.len().max(1));
    let piece = data.first().map_or(1, |byte| usize::from(*byte).saturating_add(1));
    assert!(whole == frames_of(data, piece), "frames depend on how the stream was cut");
    let (stream, good) = whole;
    assert!(data.starts_with(&stream), "frames are not what the stream holds");
    good && accept(data, &stream)
}

/// The frames of a stream that arrives in pieces, framed again, and whether it ended well.
fn frames_of(data: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let (mut decoder, mut stream) = (FrameDecoder::default(), Vec::new());
    for bytes in data.chunks(piece) {
        decoder.push(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(envelope)) => {
                    let Ok(prefix) = prefix(&envelope) else { unreachable!("frame out of bounds") };
                    stream.extend_from_slice(&prefix);
                    stream.extend_from_slice(&envelope);
                }
                Ok(None) => break,
                Err(_) => return (stream, false),
            }
        }
    }
    let good = decoder.finish().is_ok();
    (stream, good)
}

/// Hexadecimal text of any length.
pub fn decode_hex_bytes(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let decoded = HexBytes::try_from(text.to_owned());
    decoded.is_ok_and(|bytes| accept(data, String::from(bytes).as_bytes()))
}

/// The plaintext of a key block.
pub fn decode_key_block(data: &[u8]) -> bool {
    KeyBlock::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// The header that proves whose a lent connection is: one text for one key and connection.
pub fn decode_lend_proof(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let exporter = [1; 32];
    if lend::check(&fixed_public_key(), &exporter, text).is_err() {
        return false;
    }
    accept(data, lend::prove(&fixed_key(), &exporter).as_bytes())
}

/// A proof: kind u8 (0 inclusion, 1 consistency), index or old size u64, size u64, leaf or old
/// root, root, `u32 n`, n hashes. What verifies must not verify for another first hash.
pub fn decode_merkle(data: &[u8]) -> bool {
    let Ok((kind, first_number, size, first, root, proof)) = read_proof(data) else { return false };
    let verify = |hash: &Hash| match kind {
        0 => verify_inclusion(hash, first_number, size, &proof, &root).is_ok(),
        _ => verify_consistency(first_number, size, &proof, hash, &root).is_ok(),
    };
    let is_empty_prefix = kind != 0 && first_number == 0;
    let mut other = first;
    if let Some(byte) = other.first_mut() {
        *byte ^= 1;
    }
    assert!(is_empty_prefix || !(verify(&first) && verify(&other)), "a proof proves two things");
    verify(&first)
}

type Proof = (u8, u64, u64, Hash, Hash, Vec<Hash>);

fn read_proof(data: &[u8]) -> Result<Proof, DecodeError> {
    let mut reader = Reader::new("proof", data);
    let (kind, first_number, size) = (reader.u8()?, reader.u64()?, reader.u64()?);
    let (first, root, mut proof) = (reader.array()?, reader.array()?, Vec::new());
    for _ in 0..reader.count(PROOF_HASHES_MAX)? {
        proof.push(reader.array()?);
    }
    reader.finish()?;
    Ok((kind, first_number, size, first, root, proof))
}

/// The names that stand in paths, JSON and command lines: ids, labels, roles.
pub fn decode_name(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let digest = text.parse::<ChunkId>().is_ok_and(|id| accept(data, id.to_string().as_bytes()));
    let id = text.parse::<PrincipalId>().is_ok_and(|id| accept(data, id.to_string().as_bytes()));
    let label = text.parse::<Label>().is_ok_and(|label| accept(data, label.as_str().as_bytes()));
    let role = text.parse::<Role>().is_ok_and(|role| accept(data, role.name().as_bytes()));
    digest || id || label || role
}

/// The payload of a node, after a u16 that says how many children its clear part names.
pub fn decode_node(data: &[u8]) -> bool {
    let Some((count, payload)) = data.split_first_chunk::<2>() else { return false };
    let children = node::decode(payload, usize::from(u16::from_le_bytes(*count)));
    children.is_ok_and(|children| accept(payload, &node::encode(&children)))
}

/// A namespace's policy.
pub fn decode_policy(data: &[u8]) -> bool {
    Policy::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// A request to promote a server; nothing of it is verified.
pub fn decode_promotion(data: &[u8]) -> bool {
    PromotionRequest::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// A receipt.
pub fn decode_receipt(data: &[u8]) -> bool {
    Receipt::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// A snapshot record.
pub fn decode_record(data: &[u8]) -> bool {
    Record::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// The body of a snapshot record, as it stands in lists.
pub fn decode_record_body(data: &[u8]) -> bool {
    RecordBody::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// A method and a path, with a space between.
pub fn decode_route(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Some((method, path)) = text.split_once(' ') else { return false };
    let route = Route::parse(method, path);
    route.is_some_and(|route| {
        accept(data, format!("{} {}", route.method(), route.path()).as_bytes())
    })
}

/// The manifest of an export, without its check sum.
pub fn decode_seed_manifest(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    bytes.extend_from_slice(blake3::hash(data).as_bytes());
    Manifest::decode(&bytes).is_ok_and(|value| accept(&bytes, &value.encode()))
}

/// The table of a pack.
pub fn decode_seed_table(data: &[u8]) -> bool {
    PackTable::decode(data).is_ok_and(|value| accept(data, &value.encode()))
}

/// The path of a tile, after `tile/`.
pub fn decode_tile(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    Tile::parse(text).is_some_and(|tile| accept(data, tile.path().as_bytes()))
}

/// The fields of an enrolment token, as bytes without their check sum; also the text as it is.
pub fn decode_token(data: &[u8]) -> bool {
    if let Ok(Ok(token)) = std::str::from_utf8(data).map(Token::from_text) {
        return accept(data.trim_ascii(), token.to_text().as_bytes());
    }
    let check = *blake3::hash(data).as_bytes();
    let mut bytes = data.to_vec();
    bytes.extend_from_slice(check.first_chunk::<4>().map_or(&[][..], |check| check));
    let text = format!("srk1_{}", URL_SAFE_NO_PAD.encode(&bytes));
    Token::from_text(&text).is_ok_and(|token| accept(text.as_bytes(), token.to_text().as_bytes()))
}
