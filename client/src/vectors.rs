//! Golden vectors: the bytes that the formats make of fixed inputs, kept in `tests/vectors/`.
//!
//! A vector that no longer matches means that data written before would not be found, or not be
//! read, by this program; or that a library (zstd above all) makes other bytes now, which costs
//! deduplication against older snapshots. Where that is meant, `UPDATE_VECTORS=1` writes the files
//! anew. A second implementation can be tested with the same files: every input is in them, or is
//! output of BLAKE3 in extendable mode over a text that is. age files are random and left out.

use std::path::PathBuf;

use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use strongroom_protocol::catalogue::{Entry, Hole, Kind, Xattr};
use strongroom_protocol::certificate::WriterCertificate;
use strongroom_protocol::checkpoint::{Checkpoint, origin_of};
use strongroom_protocol::descriptor::{ChunkSizes, Codec, Descriptor};
use strongroom_protocol::entry::{ClockEvent, ClosedCause, Entry as LedgerEntry, Event, Wish};
use strongroom_protocol::envelope::Suite;
use strongroom_protocol::id::{
    DescriptorDigest, NamespaceId, PrincipalId, PublicKey, RecordDigest, RepositoryId,
    SealedDigest, SessionNonce, TlsKeyDigest, TokenId, to_hex,
};
use strongroom_protocol::merkle::leaf_hash;
use strongroom_protocol::policy::Quota;
use strongroom_protocol::promotion::PromotionRequest;
use strongroom_protocol::proposal::Verdict;
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::{KeyBlock, PrivateFields, Record, RecordBody, Totals};
use strongroom_protocol::retention::{FOREVER, Lock, LockWanted, RetentionMode, RetentionRule};
use strongroom_protocol::role::Role;
use strongroom_protocol::roll::{NewKeys, POINT_BYTES, RollRequest, pin_of_point};
use strongroom_protocol::seed::{
    KIND_RECORD, Manifest, PackItem, PackTable, SeedNamespace, pack_end, pack_head,
};
use strongroom_protocol::token::{EnrollRequest, Scope, Token};
use strongroom_protocol::vouch::ServerTls;
use strongroom_protocol::{catalogue, record};

use crate::chunker::Chunker;
use crate::compressor::{Compressor, zstd_version};
use crate::keys::{ConvergenceSecret, EpochKeys, PlaintextKeys, public_key_of};
use crate::sealer::{NodeChild, challenge_answer, seal_chunk, seal_node};

const PRINCIPAL: PrincipalId = PrincipalId([0x55; 16]);
const EPOCH: u32 = 1;

/// Compares `found` with the vector file, or writes it.
fn check(name: &str, found: &Value) {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.push("../tests/vectors");
    path.push(format!("{name}.json"));
    let mut text = serde_json::to_string_pretty(found).unwrap();
    text.push('\n');
    if std::env::var_os("UPDATE_VECTORS").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    let first_difference = text.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
    assert!(
        text == wanted,
        "tests/vectors/{name}.json: bytes changed, first at {first_difference:?}. Data sealed \
         before would no longer be found or read. If the format is meant to change, run \
         `UPDATE_VECTORS=1 cargo test --release -p strongroom-client vectors`, review the \
         difference, and give the format a new magic."
    );
}

fn hex(bytes: &[u8]) -> String {
    to_hex(bytes)
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// `length` bytes of BLAKE3's extendable output over `label`.
fn stream(label: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(label.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn authority() -> SigningKey {
    SigningKey::from_bytes(&[0x11; 32])
}

fn ledger() -> SigningKey {
    SigningKey::from_bytes(&[0x22; 32])
}

fn writer() -> SigningKey {
    SigningKey::from_bytes(&[0x33; 32])
}

fn namespace() -> NamespaceId {
    NamespaceId::of_authority(&public_key_of(&authority()))
}

fn epoch_keys() -> EpochKeys {
    EpochKeys::derive(&ConvergenceSecret::from_bytes([0x44; 32]), &namespace(), EPOCH)
}

fn keys() -> PlaintextKeys {
    epoch_keys().plaintext().clone()
}

/// Text that compresses, the same for ever.
fn text(length: usize) -> Vec<u8> {
    let line =
        |n: u32| format!("{n}\tinvoice {}\t{}\tposted\n", n.wrapping_mul(2_654_435_761), n % 97);
    (0..).flat_map(|n| line(n).into_bytes()).take(length).collect()
}

#[test]
fn key_derivation() {
    let (epoch, keys) = (epoch_keys(), keys());
    let h = keys.hash_chunk(b"plaintext");
    let gear: Vec<u8> = keys.gear().iter().flat_map(|value| value.to_le_bytes()).collect();
    check(
        "keys",
        &json!({
            "convergence_secret": hex(&[0x44; 32]),
            "authority_seed": hex(&[0x11; 32]),
            "namespace": namespace().to_string(),
            "epoch": EPOCH,
            "plaintext_key": hex(keys.plaintext_key()),
            "record_key_public": public_key_of(&epoch.record_key()).to_string(),
            "cache_mac_key": hex(keys.cache_mac_key()),
            "gear_first_entries": hex(&gear[..32]),
            "gear_table_blake3": digest(&gear),
            "h_of_chunk_plaintext": hex(&h.0),
            "h_of_node_plaintext": hex(&keys.hash_node(b"plain", b"text").0),
            "chunk_id": h.chunk_id().to_string(),
            "seal_key": hex(&*h.seal_key()),
        }),
    );
}

fn chunk_vector(label: &str, plaintext: &[u8], codec: Codec) -> Value {
    let (h, mut envelope) = (keys().hash_chunk(plaintext), Vec::new());
    let mut compressor = Compressor::new(codec);
    let body = compressor.compress(plaintext);
    let sealed_digest = seal_chunk(&h, &body, &mut envelope);
    let shown = if envelope.len() <= 1024 { hex(&envelope) } else { String::new() };
    json!({
        "plaintext": label,
        "plaintext_bytes": plaintext.len(),
        "plaintext_blake3": digest(plaintext),
        "codec": body.codec,
        "h": hex(&h.0),
        "envelope_bytes": envelope.len(),
        "envelope": shown,
        "sealed_digest": sealed_digest.to_string(),
        "challenge_answer_of_nonce_66": hex(&challenge_answer(&[0x66; 32], &envelope)),
    })
}

#[test]
fn chunk_envelopes() {
    let noise = stream("strongroom vector chunk", 65_536);
    let lines = text(65_536);
    check(
        "chunks",
        &json!([
            chunk_vector("empty", b"", Codec::Zstd(1)),
            chunk_vector("one byte 0x00", &[0], Codec::Zstd(1)),
            chunk_vector("text, 700 bytes", &text(700), Codec::None),
            chunk_vector("text, 65536 bytes", &lines, Codec::None),
            chunk_vector("BLAKE3 XOF of 'strongroom vector chunk'", &noise, Codec::Zstd(1)),
        ]),
    );
}

/// Apart from the others: the only vectors that an update of the zstd library may change.
#[test]
fn chunk_envelopes_of_zstd() {
    let lines = text(65_536);
    check(
        "chunks_zstd",
        &json!({
            "zstd": zstd_version(),
            "envelopes": [
                chunk_vector("text, 700 bytes", &text(700), Codec::Zstd(1)),
                chunk_vector("text, 65536 bytes", &lines, Codec::Zstd(1)),
                chunk_vector("text, 65536 bytes", &lines, Codec::Zstd(9)),
                chunk_vector("65536 zeros", &vec![0; 65_536], Codec::Zstd(1)),
            ],
        }),
    );
}

#[test]
fn node_envelopes() {
    let keys = keys();
    let children: Vec<_> = (0..3u8)
        .map(|n| NodeChild {
            digest: SealedDigest([0xa0 + n; 32]),
            h: keys.hash_chunk(&[n]),
            plaintext_bytes: 1000 + u64::from(n),
        })
        .collect();
    let vector = |level: u8, children: &[NodeChild]| {
        let node = seal_node(&keys, level, children);
        json!({
            "level": level,
            "child_digests": children.iter().map(|c| c.digest.to_string()).collect::<Vec<_>>(),
            "child_h": children.iter().map(|c| hex(&c.h.0)).collect::<Vec<_>>(),
            "child_bytes": children.iter().map(|c| c.plaintext_bytes).collect::<Vec<_>>(),
            "h": hex(&node.h.0),
            "node_id": node.id.to_string(),
            "envelope": hex(&node.envelope),
            "sealed_digest": node.digest.to_string(),
        })
    };
    check("nodes", &json!([vector(1, &children), vector(8, &children[..1])]));
}

#[test]
fn chunk_cuts() {
    let data = stream("strongroom vector cuts", 4 << 20);
    let cuts = |average: u32, data: &[u8]| {
        let chunker = Chunker::new(&keys(), ChunkSizes::around(average).unwrap());
        let (mut rest, mut lengths) = (data, Vec::new());
        while let Some(length) = chunker.cut(rest, true) {
            lengths.push(length);
            rest = &rest[length..];
        }
        let listed: Vec<u8> =
            lengths.iter().flat_map(|length| (*length as u32).to_le_bytes()).collect();
        json!({
            "average": average,
            "count": lengths.len(),
            "first": lengths[..lengths.len().min(8)],
            "lengths_u32_blake3": digest(&listed),
        })
    };
    check(
        "cuts",
        &json!({
            "data": "BLAKE3 XOF of 'strongroom vector cuts', 4194304 bytes",
            "random": [cuts(4096, &data), cuts(16_384, &data), cuts(65_536, &data)],
            "text_1000000_bytes": cuts(16_384, &text(1_000_000)),
            "zeros_300001_bytes": cuts(16_384, &vec![0; 300_001]),
        }),
    );
}

#[test]
fn catalogue_entries() {
    let mut file = Entry::empty(Kind::File);
    file.path = b"attachments/\xff.pdf".to_vec();
    (file.mode, file.uid, file.gid) = (0o640, 1000, 1001);
    (file.owner, file.group) = (b"tryton".to_vec(), b"erp".to_vec());
    (file.modified_seconds, file.modified_nanoseconds) = (1_700_000_000, 123_456_789);
    file.xattrs = vec![Xattr { name: b"user.tag".to_vec(), value: b"x".to_vec() }];
    file.holes = vec![Hole { offset: 4096, length: 8192 }];
    (file.size_bytes, file.data_offset, file.data_bytes) = (20_000, 77, 11_808);
    let mut dump = Entry::empty(Kind::Stream);
    (dump.size_bytes, dump.data_bytes) = (5, 5);
    check(
        "catalogue",
        &json!({
            "stream_entry": hex(&dump.encode()),
            "file_entry": hex(&file.encode()),
            "catalogue_of_dump": hex(&catalogue::encode(&[dump])),
        }),
    );
}

fn descriptor() -> Descriptor {
    Descriptor {
        authority: public_key_of(&authority()),
        version: 1,
        previous: DescriptorDigest([0; 32]),
        suite: Suite::Blake3ChaCha20Poly1305,
        chunk_sizes: ChunkSizes::around(65_536).unwrap(),
        codec: Codec::Zstd(1),
        epoch: EPOCH,
        record_key: public_key_of(&epoch_keys().record_key()),
        access_key: public_key_of(&SigningKey::from_bytes(&[0x77; 32])),
        recipients: vec!["age1example".into(), "age1second".into()],
        ledger_keys: vec![public_key_of(&ledger())],
        wrapped_secret: b"an age file".to_vec(),
    }
}

fn record_body() -> RecordBody {
    let encoded = descriptor().sign(&authority());
    let verified = strongroom_protocol::descriptor::VerifiedDescriptor::decode(&encoded).unwrap();
    RecordBody {
        namespace: namespace(),
        epoch: EPOCH,
        descriptor: verified.digest(),
        principal: PRINCIPAL,
        source: "erp-production".parse().unwrap(),
        session_nonce: SessionNonce([0x88; 32]),
        sequence: 1,
        previous: RecordDigest([0; 32]),
        root: SealedDigest([0x99; 32]),
        root_level: 2,
        totals: Totals { chunk_count: 1000, sealed_bytes: 18_000_000 },
        padded_plaintext_bytes: 65_536_000,
        client_time_ms: 1_700_000_000_123,
        lock_wanted: LockWanted::Period(31_536_000),
        complete: true,
    }
}

fn private_fields() -> PrivateFields {
    PrivateFields {
        host: "erp-1".into(),
        command: vec!["pg_dump".into(), "tryton".into()],
        paths: vec!["/srv".into()],
        exit_code: 0,
        standard_error: b"warning\n".to_vec(),
        plaintext_bytes: 65_530_000,
        catalogue_bytes: 100,
        tags: vec!["day0".into()],
    }
}

#[test]
fn signed_objects() {
    let record_key = epoch_keys().record_key();
    let writer_public = public_key_of(&writer());
    let certificate =
        WriterCertificate::issue(&record_key, namespace(), EPOCH, PRINCIPAL, writer_public);
    let body = record_body();
    let key_block = KeyBlock {
        body_digest: *blake3::hash(&body.encode()).as_bytes(),
        plaintext_key: (*keys().plaintext_key()).into(),
        root_h: [0xbb; 32].into(),
        private: private_fields(),
    };
    let encoded_body = body.encode();
    assert_eq!(record::RecordBody::decode(&encoded_body).as_ref(), Ok(&body));
    let signed = Record::sign(body, b"an age file".to_vec(), certificate.clone(), &writer());
    check(
        "signed",
        &json!({
            "descriptor": hex(&descriptor().sign(&authority())),
            "writer_seed": hex(&[0x33; 32]),
            "writer_certificate": hex(&certificate.encode()),
            "record_body": hex(&encoded_body),
            "key_block_plaintext": hex(&key_block.encode()),
            "record_with_key_block_'an age file'": hex(&signed.encode()),
            "record_digest": signed.digest().to_string(),
        }),
    );
}

fn ledger_entries() -> Vec<LedgerEntry> {
    let (record, token) = (RecordDigest([1; 32]), TokenId([2; 16]));
    let tls_key = TlsKeyDigest([3; 32]);
    let role = Role::Backup;
    let lock = Lock {
        mode: RetentionMode::Compliance,
        until_seconds: 10,
        until_wall_seconds: 11,
        is_held: false,
    };
    let rule = RetentionRule {
        mode: RetentionMode::Governance,
        minimum_seconds: 1,
        default_seconds: 2,
        maximum_seconds: FOREVER,
        after_date_seconds: 4,
    };
    let events = [
        Event::Initialised {
            repository: RepositoryId([4; 16]),
            ledger_key: public_key_of(&ledger()),
            tls_key,
        },
        Event::TokenMade { token, role, expires_seconds: 5 },
        Event::NamespaceCreated { descriptor: DescriptorDigest([6; 32]), rule },
        Event::Enrolled {
            principal: PRINCIPAL,
            role,
            tls_key,
            signing_key: public_key_of(&writer()),
            token,
        },
        Event::Revoked { principal: PRINCIPAL },
        Event::Committed { commit: 7, record, root: SealedDigest([8; 32]), sequence: 9, lock },
        Event::Forgotten { record, commit: 7, lock, proposal: 12 },
        Event::Refused { record, wish: Wish::Shorten, lock },
        Event::RecordRead { record },
    ];
    let later = later_events(record, rule, lock).into_iter().chain(key_events());
    let entry = |event| LedgerEntry {
        server_time_ms: 1_700_000_000_000,
        retention_time_seconds: 1_700_000_000,
        actor: PRINCIPAL,
        namespace: namespace(),
        event,
    };
    events.into_iter().chain(later).map(entry).collect()
}

/// Events of retention, clock, collection and replication.
fn later_events(record: RecordDigest, rule: RetentionRule, lock: Lock) -> Vec<Event> {
    vec![
        Event::Retained { record, lock: Lock { until_seconds: FOREVER, ..lock } },
        Event::HoldPlaced { record, reason: [12; 32] },
        Event::HoldReleased { record, reason: [13; 32] },
        Event::PolicySet { policy: [14; 32], rule, quota: Quota { bytes: 15, snapshots: 16 } },
        Event::NamespaceDropped,
        Event::Proposed {
            operation: 1,
            parameters: [17; 32],
            state: [18; 32],
            nonce: [19; 16],
            expires_ms: 20,
        },
        Event::Decided {
            proposal: 21,
            verdict: Verdict::Approve,
            meaning: [22; 32],
            signature: [23; 64],
        },
        Event::Clock { event: ClockEvent::WallAhead, amount_ms: 24 },
        Event::CollectionIntended {
            generation: 25,
            dead_count: 26,
            reap_count: 27,
            reap_digest: [28; 32],
        },
        Event::Collected {
            generation: 25,
            quarantined_count: 26,
            reaped_count: 27,
            reaped_bytes: 28,
        },
        Event::SegmentDropIntended { segment: 29, table: [30; 32] },
        Event::SegmentDropped { segment: 29, file_bytes: 31 },
        Event::Configured { configuration: [32; 32] },
        Event::PrimaryAdded {
            ledger_key: PublicKey([33; 32]),
            tls_key: TlsKeyDigest([34; 32]),
            principal: PRINCIPAL,
        },
        Event::FeedAdded {
            ledger_key: PublicKey([61; 32]),
            tls_key: TlsKeyDigest([62; 32]),
            principal: PRINCIPAL,
        },
        Event::PrimaryFollowed { ledger_key: PublicKey([33; 32]), size: 35, root: [36; 32] },
        Event::PrimaryRefused {
            ledger_key: PublicKey([33; 32]),
            known_size: 37,
            known_root: [38; 32],
            shown_size: 39,
        },
        Event::PrimaryRemoved { ledger_key: PublicKey([33; 32]) },
        Event::Damaged { count: 50, digests: [51; 32] },
        Event::Repaired { count: 50, digests: [51; 32], from: PublicKey([52; 32]) },
        Event::Scrubbed { pass: 53, envelope_count: 54, bytes: 55, damaged_count: 56 },
        Event::DescriptorTaken { descriptor: DescriptorDigest([40; 32]), version: 41 },
        Event::DescriptorRefused {
            ledger_key: PublicKey([33; 32]),
            descriptor: DescriptorDigest([40; 32]),
            version: 41,
        },
        Event::Exported { namespace_count: 40, namespaces: [41; 32] },
        Event::Imported { ledger_key: PublicKey([33; 32]), size: 42, root: [43; 32] },
        Event::FilterSet { ledger_key: PublicKey([33; 32]), names: [40; 32] },
        Event::NamespaceReadmitted { ledger_key: PublicKey([33; 32]) },
        Event::NotCarriedOut { proposal: 40, cause: ClosedCause::Refused },
    ]
}

/// Events of keys that roll over, and of epochs.
fn key_events() -> [Event; 4] {
    [
        Event::KeysRolled {
            principal: PRINCIPAL,
            tls_key: TlsKeyDigest([5; 32]),
            signing_key: PublicKey([33; 32]),
            vouch: [60; 64],
        },
        Event::TlsKeyRolled { tls_key: TlsKeyDigest([5; 32]), serial: 61 },
        Event::PeerKeyFollowed {
            ledger_key: PublicKey([33; 32]),
            tls_key: TlsKeyDigest([5; 32]),
            serial: 62,
        },
        Event::RecordRefused {
            ledger_key: PublicKey([33; 32]),
            record: RecordDigest([63; 32]),
            leaf: 64,
            epoch: 65,
        },
    ]
}

#[test]
fn ledger_objects() {
    let encoded: Vec<_> = ledger_entries().iter().map(LedgerEntry::encode).collect();
    let (left, right) = (leaf_hash(&encoded[4]), leaf_hash(&encoded[5]));
    let root = strongroom_protocol::merkle::node_hash(&left, &right);
    let key = public_key_of(&ledger());
    let checkpoint = Checkpoint { origin: origin_of(&key), size: 2, root }.sign(&ledger());
    let receipt = Receipt {
        leaf_index: 1,
        entry: encoded[5].clone(),
        proof: vec![left],
        checkpoint: checkpoint.clone(),
    };
    assert!(receipt.verify(&[key]).is_ok());
    check(
        "ledger",
        &json!({
            "ledger_seed": hex(&[0x22; 32]),
            "entries": encoded.iter().map(|entry| hex(entry)).collect::<Vec<_>>(),
            "leaf_hash_of_entry_5": hex(&right),
            "checkpoint_over_entries_4_and_5": checkpoint,
            "receipt": hex(&receipt.encode()),
        }),
    );
}

#[test]
fn enrolment_objects() {
    let token = Token {
        id: TokenId([1; 16]),
        secret: [2; 32].into(),
        tls_key: TlsKeyDigest([3; 32]),
        ledger_key_digest: [4; 32],
        scope: Scope::New("erp".parse().unwrap()),
        role: Role::Backup,
        expires_seconds: 1_700_000_000,
        addresses: "backup.example:7443".into(),
    };
    let existing = Token {
        scope: Scope::Existing(namespace(), "erp".parse().unwrap()),
        role: Role::Restore,
        ..token.clone()
    };
    let request = EnrollRequest {
        token: token.id,
        tls_key: TlsKeyDigest([5; 32]),
        signing_key: PublicKey([6; 32]),
        display_name: "erp-1".into(),
        descriptor: b"descriptor".to_vec(),
    };
    let promotion = PromotionRequest {
        namespace_name: "erp".parse().unwrap(),
        descriptor: descriptor().sign(&authority()),
        ledger_key: public_key_of(&ledger()),
        tls_key: TlsKeyDigest([3; 32]),
        vouch: [8; 64],
        addresses: "replica.example:7443".into(),
        checkpoint: "a note".into(),
        snapshots: 9,
    };
    check(
        "enrolment",
        &json!({
            "promotion_request_(vouch of 64 x 8, checkpoint 'a note')": hex(&promotion.encode()),
            "token_for_new_namespace": token.to_text(),
            "token_for_existing_namespace": existing.to_text(),
            "exporter": hex(&[7; 32]),
            "request": hex(&request.encode(&token.secret, &[7; 32])),
        }),
    );
}

#[test]
fn keys_that_roll_over() {
    let point = [4; POINT_BYTES];
    let keys = NewKeys {
        ledger_key: public_key_of(&ledger()),
        principal: PRINCIPAL,
        tls_key: pin_of_point(&point),
        signing_key: public_key_of(&authority()),
    };
    let mut request = RollRequest::vouched(&keys, point, &writer());
    request.prove_held(&authority(), &[7; 32]);
    request.tls_possession = vec![8; 70];
    let tls = ServerTls { tls_key: TlsKeyDigest([5; 32]), serial: 2 };
    check(
        "roll",
        &json!({
            "exporter": hex(&[7; 32]),
            "tls_key_of_point_65_x_4": hex(&keys.tls_key.0),
            "statement": hex(&keys.digest()),
            "message_for_the_tls_key": hex(&request.tls_message(&[7; 32])),
            "request_(tls_possession_70_x_8)": hex(&request.encode()),
            "vouch_for_tls_key_32_x_5_number_2": hex(&tls.vouch(&ledger())),
        }),
    );
}

#[test]
fn exports() {
    let ledger_key = public_key_of(&ledger());
    let item = |kind, length, digest| PackItem { namespace: 0, kind, length, digest: [digest; 32] };
    let items = vec![item(0, 568, 1), item(1, 132, 2), item(KIND_RECORD, 1000, 3)];
    let table = PackTable { namespaces: vec![namespace()], items };
    let manifest = Manifest {
        ledger_key,
        only: vec!["erp".parse().unwrap()],
        namespaces: vec![SeedNamespace {
            namespace: namespace(),
            name: "erp".parse().unwrap(),
            descriptor: DescriptorDigest([4; 32]),
        }],
        packs: vec![table.pack()],
        checkpoint: "checkpoint\n".into(),
    };
    check(
        "seed",
        &json!({
            "pack_head": hex(&pack_head(&ledger_key)),
            "pack_table": hex(&table.encode()),
            "pack_end": hex(&pack_end(&table.encode())),
            "pack_bytes": table.pack().file_bytes,
            "manifest": hex(&manifest.encode()),
        }),
    );
}
