//! Entry points for fuzzers: the decoders of this crate, as `strongroom_protocol::fuzzing` has
//! those of the protocol's formats, and under the same rules.
//!
//! A server's answers in JSON, what hostile writers put into chunks and catalogues, and the files
//! that people bring: kits, shares, exports, proofs. Keys are fixed and guard nothing. Memory that
//! C code takes (zstd's context) is not counted: it is the same for all inputs.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use strongroom_protocol::catalogue;
use strongroom_protocol::error::ErrorBody;
use strongroom_protocol::fuzzing::{Memory, Target, accept};
use strongroom_protocol::message;
use strongroom_protocol::padding::padded_payload_bytes;
use strongroom_protocol::policy::Policy;

use crate::age_file;
use crate::compressor::Decompressor;
use crate::export::Export;
use crate::files::select::{self, Plan, Selection};
use crate::files::store::{Growing, Store};
use crate::kit::Kit;
use crate::profile::parse_addresses;
use crate::proof_file::ProofFile;
use crate::sealer::body_of;
use crate::shares::Share;

/// Opens the age files of the target of that name.
pub const IDENTITY: &str =
    "AGE-SECRET-KEY-13X6XT6TM7A87A98EFPYR5G0WDEHHLSY5GGP5849MHFGX3ZY0N6QSMSQ4NR";

/// All entry points.
pub const TARGETS: [Target; 10] = [
    Target::new("addresses", read_addresses, 64),
    with_memory(Target::signing("age_file", read_age_file, 16), 256 * 1024),
    with_memory(Target::new("catalogue_rules", read_catalogue_rules, 32), 8 * 1024),
    // A chunk may be as long as its node says, here at most 64 KiB.
    with_memory(Target::new("chunk_payload", read_chunk_payload, 4), 66 * 1024),
    with_memory(Target::new("export", read_export, 64), 16 * 1024),
    Target::new("json", read_json, 128),
    with_memory(Target::new("kit", read_kit, 64), 16 * 1024),
    Target::new("proof_file", read_proof_file, 16),
    with_memory(Target::signing("proof_file_signed", read_proof_file_signed, 32), 8 * 1024),
    with_memory(Target::new("share", read_share, 64), 16 * 1024),
];

const fn with_memory(target: Target, fixed_bytes: u64) -> Target {
    let memory = Memory { fixed_bytes, ..target.memory };
    Target { memory, ..target }
}

/// Addresses of servers, as tokens and kits have them.
pub fn read_addresses(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(addresses) = parse_addresses(text) else { return false };
    assert!(parse_addresses(&addresses.join(",")).is_ok_and(|again| again == addresses));
    true
}

/// An age file, such as the key block of a record. The format has no one form for one content.
pub fn read_age_file(data: &[u8]) -> bool {
    age_file::open_with(&[IDENTITY], data).is_ok()
}

/// The rules of a catalogue, after a u16 that says how long its data stream is.
pub fn read_catalogue_rules(data: &[u8]) -> bool {
    let Some((data_bytes, bytes)) = data.split_first_chunk::<2>() else { return false };
    let mut growing = Growing::default();
    let stored = growing.push(bytes).and_then(|()| growing.finish());
    let Ok(store) = stored else { unreachable!("a short catalogue stays in memory") };
    if select::check(&store, u64::from(u16::from_le_bytes(*data_bytes))).is_err() {
        return false;
    }
    assert!(catalogue::decode(bytes).is_ok(), "one decoder takes what the other refuses");
    check_paths(&store);
    true
}

/// What was accepted stays below its root, and can be planned.
fn check_paths(store: &Arc<Store>) {
    let mut entries = store.entries();
    while let Ok(Some(entry)) = entries.next_entry() {
        let mut parts = entry.path.split(|byte| *byte == b'/');
        let is_inside = !entry.path.starts_with(b"/") && parts.all(|part| part != b"..");
        assert!(is_inside, "a path leaves the root");
    }
    let all = Selection::parse(&[]).and_then(|all| Plan::make(store, &all));
    assert!(all.is_ok(), "a catalogue that was checked cannot be planned");
}

/// What comes out of a chunk's envelope: `announced u16 | u8 | bytes`. Where the lowest bit of the
/// third byte is set, the bytes are codec and body, and the payload is laid out here.
pub fn read_chunk_payload(data: &[u8]) -> bool {
    let Some(([low, high, form], rest)) = data.split_first_chunk::<3>() else { return false };
    let announced = usize::from(u16::from_le_bytes([*low, *high]));
    let payload = if form & 1 == 1 { laid_out(rest) } else { rest.to_vec() };
    let Ok(body) = body_of(&payload) else { return false };
    let mut plaintext = Vec::new();
    let opened = Decompressor::new().decompress(body, announced, &mut plaintext);
    let expected = if opened.is_ok() { announced } else { 0 };
    assert!(plaintext.len() == expected, "the plaintext is not as long as announced");
    opened.is_ok()
}

/// `codec u8 | u32 body length | body | zeros`.
fn laid_out(codec_and_body: &[u8]) -> Vec<u8> {
    let Some((codec, body)) = codec_and_body.split_first() else { return Vec::new() };
    let mut payload = vec![*codec];
    payload.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    payload.extend_from_slice(body);
    let padded = u64::try_from(payload.len()).map_or(u64::MAX, padded_payload_bytes);
    payload.resize(usize::try_from(padded).unwrap_or(0), 0);
    payload
}

/// What an export has under its passphrase.
pub fn read_export(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(export) = Export::parse(text) else { return false };
    let Ok(again) = export.to_text() else { unreachable!("an export cannot be written") };
    assert!(
        Export::parse(&again).and_then(|export| export.to_text()).is_ok_and(|text| text == again),
        "an export changes when it is written"
    );
    true
}

/// A JSON body of some message, which the first byte chooses.
pub fn read_json(data: &[u8]) -> bool {
    let Some((kind, text)) = data.split_first() else { return false };
    let kinds = JSON.len();
    JSON.get(usize::from(*kind) % kinds).is_some_and(|read| read(text))
}

/// All that is JSON on the wire. A new one goes to the end: the corpus names them by their place.
const JSON: [fn(&[u8]) -> bool; 21] = [
    reads::<message::Identity>,
    reads::<message::EnrollAnswer>,
    reads::<message::OpenSession>,
    reads::<message::SessionOpened>,
    reads::<message::DescriptorOffered>,
    reads::<message::Uploaded>,
    reads::<message::SnapshotPage>,
    reads::<message::NamespaceRow>,
    reads::<message::Forgotten>,
    reads::<message::Retain>,
    reads::<message::HoldReason>,
    reads::<message::LockState>,
    reads::<message::ClockWish>,
    reads::<message::Outcome>,
    reads::<message::ProposalRow>,
    reads::<message::Decide>,
    reads::<message::ClockStatus>,
    reads::<message::ConsistencyAnswer>,
    reads::<message::Status>,
    reads::<ErrorBody>,
    reads::<Policy>,
];

/// JSON has many forms; what is read must be the same when it is written and read again.
fn reads<T: Serialize + DeserializeOwned + PartialEq>(text: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(text) else { return false };
    let again = serde_json::to_vec(&value).unwrap_or_default();
    assert!(
        serde_json::from_slice::<T>(&again).is_ok_and(|back| back == value),
        "a message changes when it is written"
    );
    true
}

/// A recovery kit.
pub fn read_kit(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(kit) = Kit::parse(text) else { return false };
    let Ok(again) = kit.to_text() else { unreachable!("a kit cannot be written") };
    let back = Kit::parse(&again).and_then(|kit| kit.to_text());
    assert!(back.is_ok_and(|text| text == again), "a kit changes when it is written");
    true
}

/// A proof file, before a proof or signature in it is checked.
pub fn read_proof_file(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(file) = ProofFile::decode_text(text) else { return false };
    let encoded = file.encode();
    let back = ProofFile::decode(&encoded);
    assert!(back.is_ok_and(|back| accept(&encoded, &back.encode())));
    true
}

/// The same with everything checked.
pub fn read_proof_file_signed(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| ProofFile::check(text).is_ok())
}

/// A share of a kit.
pub fn read_share(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(share) = Share::parse("share", text) else { return false };
    let Ok(again) = share.to_text() else { unreachable!("a share cannot be written") };
    let back = Share::parse("share", &again).and_then(|share| share.to_text());
    assert!(back.is_ok_and(|text| text == again), "a share changes when it is written");
    true
}
