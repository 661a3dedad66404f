//! Good examples of what the entry points of this crate read. All keys are fixed and guard nothing.

use std::fs;
use std::path::Path;

use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use strongroom_client::age_file;
use strongroom_client::fuzzing::IDENTITY;
use strongroom_client::proof_file::{ProofFile, ProvenLeaf};
use strongroom_protocol::catalogue::{self, Entry as File, Hole, Kind};
use strongroom_protocol::checkpoint::{Checkpoint, origin_of};
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{NamespaceId, PrincipalId, PublicKey, RecordDigest, SealedDigest};
use strongroom_protocol::merkle::leaf_hash;
use strongroom_protocol::retention::{Lock, RetentionMode};

/// File names and bytes.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// The seeds of the target called `name`.
pub fn of(name: &str) -> Seeds {
    match name {
        "addresses" => vec![
            ("one".into(), b"backup.example:7443".to_vec()),
            ("two".into(), b"[::1]:7443, 192.0.2.1:1".to_vec()),
        ],
        "age_file" => age_files(),
        "catalogue_rules" => catalogues(),
        "chunk_payload" => payloads(),
        "export" => vec![("good".into(), EXPORT.as_bytes().to_vec())],
        "json" => messages(),
        "kit" => kits(),
        "proof_file" | "proof_file_signed" => proofs(),
        "share" => shares(),
        _ => Vec::new(),
    }
}

const EXPORT: &str = r#"version = 1
namespace_name = "erp"
namespace = "83561adb398fd87f8e7ed8331bff2fcb945733cc3012879cb9fab07928667062"
epoch = 2
convergence_secret = "0303030303030303030303030303030303030303030303030303030303030303"
descriptor_version = 3
servers = ["backup.example:7443"]
ledger_key = "0909090909090909090909090909090909090909090909090909090909090909"
"#;

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Sealing is random: the one that is kept is the seed.
fn age_files() -> Seeds {
    let kept = fs::read(folder().join("fuzz/corpus/age_file/good"));
    let made = || {
        let recipient = age_file::recipient_of(IDENTITY).unwrap();
        age_file::seal_to(&[recipient], b"what is sealed").unwrap()
    };
    vec![("good".into(), kept.unwrap_or_else(|_| made()))]
}

fn golden() -> Value {
    let path = folder().join("../tests/vectors/shares.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Without its comments, which hide most changes.
fn bare(text: &Value) -> Vec<u8> {
    let lines = text.as_str().unwrap().lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| format!("{line}\n")).collect::<String>().into_bytes()
}

fn kits() -> Seeds {
    let kit = &golden()["kit"];
    let without_checkpoint = String::from_utf8(bare(kit)).unwrap();
    let (fields, _) = without_checkpoint.split_once("[checkpoint]").unwrap();
    vec![("good".into(), bare(kit)), ("without_checkpoint".into(), fields.as_bytes().to_vec())]
}

fn shares() -> Seeds {
    let golden = golden();
    let shares = golden["shares"].as_array().unwrap().iter().enumerate();
    shares.map(|(number, share)| (format!("share_{number}"), bare(share))).collect()
}

fn catalogues() -> Seeds {
    let named = |kind, path: &[u8]| File { path: path.to_vec(), ..File::empty(kind) };
    let mut file = named(Kind::File, b"erp/a");
    (file.size_bytes, file.data_bytes) = (4000, 1000);
    file.holes = vec![Hole { offset: 500, length: 3000 }];
    let mut second = named(Kind::File, b"erp/b");
    (second.size_bytes, second.data_offset, second.data_bytes) = (24, 1000, 24);
    let mut hard = named(Kind::HardLink, b"erp/c");
    hard.link_target = b"erp/a".to_vec();
    let mut link = named(Kind::SymbolicLink, b"now");
    link.link_target = b"erp".to_vec();
    let root = named(Kind::Directory, b"");
    let tree = [root, named(Kind::Directory, b"erp"), file, second, hard, link];
    let mut stream = File::empty(Kind::Stream);
    (stream.size_bytes, stream.data_bytes) = (1024, 1024);
    let of = |entries: &[File]| [&1024u16.to_le_bytes()[..], &catalogue::encode(entries)].concat();
    vec![("stream".into(), of(&[stream])), ("tree".into(), of(&tree))]
}

/// `announced u16 | form u8 | codec u8 | body`, as `fuzzing::read_chunk_payload` reads.
fn payloads() -> Seeds {
    let text = "invoice\t17\tt\n".repeat(40).into_bytes();
    let payload = |announced: usize, codec: u8, body: &[u8]| {
        let announced = u16::try_from(announced).unwrap().to_le_bytes();
        [&announced[..], &[1, codec], body].concat()
    };
    let compressed = zstd::bulk::compress(&text, 3).unwrap();
    let streamed = zstd::encode_all(&text[..], 19).unwrap();
    let zeros = zstd::bulk::compress(&vec![0; 60_000], 3).unwrap();
    let two_frames = [compressed.clone(), zstd::bulk::compress(b"more", 1).unwrap()].concat();
    vec![
        ("plain".into(), payload(text.len(), 0, &text)),
        ("zstd".into(), payload(text.len(), 1, &compressed)),
        ("zstd_without_length".into(), payload(text.len(), 1, &streamed)),
        ("zstd_zeros".into(), payload(60_000, 1, &zeros)),
        ("zstd_two_frames".into(), payload(text.len() + 4, 1, &two_frames)),
    ]
}

fn proofs() -> Seeds {
    let ledger = SigningKey::from_bytes(&[9; 32]);
    let ledger_key = PublicKey(ledger.verifying_key().to_bytes());
    let lock = Lock {
        mode: RetentionMode::Compliance,
        until_seconds: 1_900_000_000,
        is_held: false,
        until_wall_seconds: 0,
    };
    let event = Event::Committed {
        commit: 1,
        record: RecordDigest([3; 32]),
        root: SealedDigest([4; 32]),
        sequence: 1,
        lock,
    };
    let entry = Entry {
        server_time_ms: 1_700_000_000_000,
        retention_time_seconds: 1_700_000_000,
        namespace: NamespaceId([5; 32]),
        actor: PrincipalId([6; 16]),
        event,
    };
    let entry = entry.encode();
    let root = leaf_hash(&entry);
    let checkpoint = Checkpoint { origin: origin_of(&ledger_key), size: 1, root }.sign(&ledger);
    let leaves = vec![ProvenLeaf { index: 0, entry, proof: Vec::new() }];
    let text = ProofFile { ledger_key, leaves, checkpoint }.to_text().unwrap();
    vec![("good".into(), text.into_bytes())]
}

/// The place of the message's kind in `fuzzing::JSON`, and the message.
fn messages() -> Seeds {
    let digest = |byte: &str| byte.repeat(32);
    let id = "17".repeat(16);
    let lock = json!({"mode": "compliance", "until_seconds": 9, "is_held": true,
        "until_wall_seconds": 0});
    let rule = json!({"mode": "governance", "minimum_seconds": 1, "default_seconds": 2,
        "maximum_seconds": 3, "after_date_seconds": 0});
    let policy = json!({"rule": rule, "classes": {"medical": rule}, "sources": {"db": "medical"},
        "quota": {"bytes": 1, "snapshots": 2}});
    let row = json!({"record": digest("ab"), "commit": 1, "committed_ms": 2, "lock": lock,
        "kept": "locked", "body": "00ff"});
    let bodies = [
        json!({"protocol": 1, "ledger_key": digest("09"), "tls_key": digest("05"), "vouch": "00"}),
        json!({"principal": id, "role": "backup", "namespace": digest("01"),
            "namespace_name": "erp", "ledger_key": digest("09")}),
        json!({"source": "db", "size_class": "small", "lock_wanted": 86400}),
        json!({"session": id, "nonce": digest("03"), "lease_ms": 600_000, "head": "00",
            "descriptor_version": 1}),
        json!({"version": 2, "is_new": true}),
        json!({"stored_count": 1, "duplicate_count": 2, "stored_bytes": 3}),
        json!({"rows": [row, row], "next_after": 2, "retention_seconds": 3}),
        json!({"name": "erp", "namespace": digest("01"), "policy": policy,
            "descriptor_version": 1, "takes_backups": true}),
        json!({"record": digest("ab")}),
        json!({"lock_wanted": 0, "mode": "compliance"}),
        json!({"reason": "a reason\n"}),
        json!({"record": digest("ab"), "lock": lock}),
        json!({"credit": 5}),
        json!({"is_done": false, "proposal": 4}),
        json!({"proposal": 4, "entry": "00", "proposer": id, "proposed_ms": 1, "expires_ms": 2,
            "operation": {"kind": "lower_policy", "namespace": digest("01"), "policy": policy}}),
        json!({"verdict": "approve", "meaning": "yes", "signature": "00"}),
        json!({"retention_seconds": 1, "wall_seconds": 2, "skew_seconds": 3,
            "skew_bound_seconds": 4, "lost_seconds": 5, "allowance_seconds": 6,
            "frozen": "why", "history": ["a", "b"]}),
        json!({"checkpoint": "text", "proof": "00"}),
        json!({"version": "0.1.0", "ledger_key": digest("09"), "ledger_size": 1,
            "checkpoint": "text", "snapshot_count": 1, "segment_count": 1, "segment_bytes": 1,
            "session_count": 0, "free_bytes": 1, "accepts_uploads": true, "damaged_count": 0,
            "repaired_count": 0}),
        json!({"code": "missing_children", "message": "m", "request_id": "1",
            "missing": [digest("ab")]}),
        policy.clone(),
    ];
    let seed = |(kind, body): (usize, &Value)| {
        let mut bytes = vec![u8::try_from(kind).unwrap()];
        bytes.extend_from_slice(body.to_string().as_bytes());
        (format!("kind_{kind}"), bytes)
    };
    bodies.iter().enumerate().map(seed).collect()
}
