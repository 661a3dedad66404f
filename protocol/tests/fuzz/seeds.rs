//! Good examples of every format, from which fuzzing starts. All keys are fixed and guard nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use strongroom_protocol::catalogue::{self, Entry as File, Hole, Kind, Xattr};
use strongroom_protocol::certificate::WriterCertificate;
use strongroom_protocol::checkpoint::{Checkpoint, origin_of};
use strongroom_protocol::descriptor::{ChunkSizes, Codec, Descriptor};
use strongroom_protocol::entry::{ClockEvent, Entry, Event, Wish};
use strongroom_protocol::envelope::{Suite, clear_of_chunk, clear_of_node};
use strongroom_protocol::frame::prefix;
use strongroom_protocol::fuzzing::fixed_key;
use strongroom_protocol::id::{
    DescriptorDigest, Label, NamespaceId, PrincipalId, PublicKey, RecordDigest, RepositoryId,
    SealedDigest, SessionId, SessionNonce, TlsKeyDigest, TokenId,
};
use strongroom_protocol::lend;
use strongroom_protocol::merkle::{empty_root, leaf_hash, node_hash};
use strongroom_protocol::node::{self, Child};
use strongroom_protocol::policy::{Policy, Quota};
use strongroom_protocol::promotion::PromotionRequest;
use strongroom_protocol::proposal::Verdict;
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::{KeyBlock, PrivateFields, Record, RecordBody, Totals};
use strongroom_protocol::retention::{Lock, LockWanted, RetentionMode, RetentionRule};
use strongroom_protocol::role::Role;
use strongroom_protocol::roll::RollRequest;
use strongroom_protocol::route::Route;
use strongroom_protocol::seed::{
    KIND_RECORD, Manifest, PackItem, PackTable, SeedNamespace, SeedPack,
};
use strongroom_protocol::signature::SIGNATURE_BYTES;
use strongroom_protocol::token::{EnrollRequest, Scope, Token};

/// File names and bytes.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// The seeds of the target called `name`.
pub fn of(name: &str) -> Seeds {
    match name {
        "catalogue" => catalogues(),
        "certificate" => one("good", certificate().encode()),
        "checkpoint" | "checkpoint_signed" => one("good", checkpoint().into_bytes()),
        "descriptor" | "descriptor_signed" => descriptors(),
        "enroll_request" => enroll_requests(),
        "entry" => entries(),
        "envelope" => envelopes(),
        "frames" => frames(),
        "hex_bytes" => named([("empty", "".into()), ("some", "00ff17a5".into())]),
        "key_block" => one("good", key_block().encode()),
        "lend_proof" => one("good", lend::prove(&fixed_key(), &[1; 32]).into_bytes()),
        "merkle" => proofs(),
        "name" => names(),
        "node" => nodes(),
        "policy" => policies(),
        "promotion" => one("good", promotion().encode()),
        "receipt" => one("good", receipt().encode()),
        "record" => one("good", record().encode()),
        "record_body" => one("good", record_body().encode()),
        "roll_request" => one("good", roll_request().encode()),
        "route" => routes(),
        "seed_manifest" => one("good", seed_manifest()),
        "seed_table" => one("good", seed_table()),
        "tile" => tiles(),
        "token" => tokens(),
        _ => Vec::new(),
    }
}

fn one(name: &str, bytes: Vec<u8>) -> Seeds {
    vec![(name.to_owned(), bytes)]
}

fn named<const N: usize>(texts: [(&str, String); N]) -> Seeds {
    texts.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

fn public_key() -> PublicKey {
    PublicKey(fixed_key().verifying_key().to_bytes())
}

fn label() -> Label {
    "erp-production".parse().unwrap()
}

fn catalogues() -> Seeds {
    let mut folder = File::empty(Kind::Directory);
    folder.path = b"srv/erp".to_vec();
    let mut file = File::empty(Kind::File);
    file.path = b"srv/erp/db.tar".to_vec();
    (file.mode, file.uid, file.gid) = (0o644, 1000, 1000);
    (file.owner, file.group) = (b"erp".to_vec(), b"erp".to_vec());
    (file.modified_seconds, file.modified_nanoseconds) = (1_700_000_000, 5);
    file.xattrs = vec![Xattr { name: b"user.note".to_vec(), value: b"\0\x01".to_vec() }];
    file.holes = vec![Hole { offset: 4096, length: 8192 }];
    (file.size_bytes, file.data_offset, file.data_bytes) = (100_000, 0, 91_808);
    let mut link = File::empty(Kind::SymbolicLink);
    (link.path, link.link_target) = (b"srv/now".to_vec(), b"erp".to_vec());
    let stream = File::empty(Kind::Stream);
    vec![
        ("empty".into(), catalogue::encode(&[])),
        ("stream".into(), catalogue::encode(&[stream])),
        ("tree".into(), catalogue::encode(&[folder, file, link])),
    ]
}

fn certificate() -> WriterCertificate {
    let writer = SigningKey::from_bytes(&[8; 32]);
    let signing_key = PublicKey(writer.verifying_key().to_bytes());
    let (namespace, principal) = (NamespaceId::of_authority(&public_key()), PrincipalId([2; 16]));
    WriterCertificate::issue(&fixed_key(), namespace, 1, principal, signing_key)
}

fn checkpoint() -> String {
    let leaf = leaf_hash(&committed().encode());
    let checkpoint = Checkpoint { origin: origin_of(&public_key()), size: 1, root: leaf };
    checkpoint.sign(&fixed_key())
}

fn descriptors() -> Seeds {
    let mut descriptor = Descriptor {
        authority: public_key(),
        version: 1,
        previous: DescriptorDigest([0; 32]),
        suite: Suite::Blake3ChaCha20Poly1305,
        chunk_sizes: ChunkSizes::around(64 * 1024).unwrap(),
        codec: Codec::Zstd(1),
        epoch: 1,
        record_key: public_key(),
        access_key: PublicKey([3; 32]),
        recipients: vec!["age1one".into(), "age1two".into()],
        ledger_keys: vec![PublicKey([4; 32])],
        wrapped_secret: vec![5; 40],
    };
    let signed_part = |descriptor: &Descriptor| {
        let mut bytes = descriptor.sign(&fixed_key());
        bytes.truncate(bytes.len() - SIGNATURE_BYTES);
        bytes
    };
    let first = signed_part(&descriptor);
    (descriptor.version, descriptor.codec) = (2, Codec::None);
    vec![("first".into(), first), ("second".into(), signed_part(&descriptor))]
}

fn enroll_requests() -> Seeds {
    let mut request = EnrollRequest {
        token: TokenId([1; 16]),
        tls_key: TlsKeyDigest([2; 32]),
        signing_key: public_key(),
        display_name: "erp-1".into(),
        descriptor: Vec::new(),
    };
    let plain = request.encode(&[7; 32], &[8; 32]);
    request.descriptor = vec![9; 50];
    vec![("plain".into(), plain), ("with_descriptor".into(), request.encode(&[7; 32], &[8; 32]))]
}

fn entry(event: Event) -> Entry {
    Entry {
        server_time_ms: 1_700_000_000_123,
        retention_time_seconds: 1_700_000_000,
        actor: PrincipalId([2; 16]),
        namespace: NamespaceId([1; 32]),
        event,
    }
}

fn lock() -> Lock {
    Lock {
        mode: RetentionMode::Compliance,
        until_seconds: 1_800_000_000,
        until_wall_seconds: 0,
        is_held: false,
    }
}

fn committed() -> Entry {
    entry(Event::Committed {
        commit: 1,
        record: RecordDigest([3; 32]),
        root: SealedDigest([4; 32]),
        sequence: 1,
        lock: lock(),
    })
}

fn entries() -> Seeds {
    let (token, record) = (TokenId([1; 16]), RecordDigest([3; 32]));
    let (role, tls_key) = (Role::Backup, TlsKeyDigest([5; 32]));
    let rule = RetentionRule {
        mode: RetentionMode::Governance,
        minimum_seconds: 1,
        default_seconds: 2,
        maximum_seconds: 3,
        after_date_seconds: 0,
    };
    let (principal, signing_key) = (PrincipalId([6; 16]), public_key());
    let repository = RepositoryId([7; 16]);
    let events = [
        Event::Initialised { repository, ledger_key: signing_key, tls_key },
        Event::TokenMade { token, role, expires_seconds: 9 },
        Event::NamespaceCreated { descriptor: DescriptorDigest([8; 32]), rule },
        Event::Enrolled { principal, role, tls_key, signing_key, token },
        Event::Revoked { principal },
        committed().event,
        Event::Forgotten { record, commit: 1, lock: lock(), proposal: 2 },
        Event::Refused { record, wish: Wish::Forget, lock: lock() },
        Event::RecordRead { record },
        Event::Retained { record, lock: lock() },
        Event::HoldPlaced { record, reason: [9; 32] },
        Event::HoldReleased { record, reason: [9; 32] },
        Event::PolicySet { policy: [1; 32], rule, quota: Quota { bytes: 4, snapshots: 5 } },
        Event::NamespaceDropped,
        Event::Proposed {
            operation: 1,
            parameters: [1; 32],
            state: [2; 32],
            nonce: [3; 16],
            expires_ms: 4,
        },
        Event::Decided {
            proposal: 1,
            verdict: Verdict::Reject,
            meaning: [2; 32],
            signature: [3; 64],
        },
        Event::Clock { event: ClockEvent::WallAhead, amount_ms: 7 },
        Event::CollectionIntended {
            generation: 1,
            dead_count: 2,
            reap_count: 3,
            reap_digest: [4; 32],
        },
        Event::Collected { generation: 1, quarantined_count: 2, reaped_count: 3, reaped_bytes: 4 },
        Event::SegmentDropIntended { segment: 1, table: [2; 32] },
        Event::SegmentDropped { segment: 1, file_bytes: 2 },
        Event::Configured { configuration: [1; 32] },
    ];
    let events = events
        .into_iter()
        .chain(replica_events(signing_key, tls_key, principal))
        .chain(events_of_damage())
        .chain(key_events(signing_key, tls_key, principal));
    let numbered = events.enumerate();
    numbered.map(|(n, event)| (format!("event_{}", n + 1), entry(event).encode())).collect()
}

fn replica_events(
    ledger_key: PublicKey,
    tls_key: TlsKeyDigest,
    principal: PrincipalId,
) -> [Event; 11] {
    [
        Event::PrimaryAdded { ledger_key, tls_key, principal },
        Event::FeedAdded { ledger_key, tls_key, principal },
        Event::PrimaryFollowed { ledger_key, size: 1, root: [2; 32] },
        Event::PrimaryRefused { ledger_key, known_size: 2, known_root: [3; 32], shown_size: 1 },
        Event::PrimaryRemoved { ledger_key },
        Event::DescriptorTaken { descriptor: DescriptorDigest([8; 32]), version: 2 },
        Event::DescriptorRefused { ledger_key, descriptor: DescriptorDigest([8; 32]), version: 2 },
        Event::Exported { namespace_count: 1, namespaces: [2; 32] },
        Event::Imported { ledger_key, size: 1, root: [2; 32] },
        Event::FilterSet { ledger_key, names: [1; 32] },
        Event::NamespaceReadmitted { ledger_key },
    ]
}

fn key_events(key: PublicKey, tls_key: TlsKeyDigest, principal: PrincipalId) -> [Event; 4] {
    [
        Event::KeysRolled { principal, tls_key, signing_key: key, vouch: [6; 64] },
        Event::TlsKeyRolled { tls_key, serial: 2 },
        Event::PeerKeyFollowed { ledger_key: key, tls_key, serial: 2 },
        Event::RecordRefused { ledger_key: key, record: RecordDigest([9; 32]), leaf: 3, epoch: 2 },
    ]
}

fn roll_request() -> RollRequest {
    RollRequest {
        principal: PrincipalId([1; 16]),
        tls_point: [4; 65],
        signing_key: public_key(),
        vouch: [5; 64],
        possession: [6; 64],
        tls_possession: vec![7; 70],
    }
}

fn events_of_damage() -> [Event; 3] {
    [
        Event::Damaged { count: 1, digests: [2; 32] },
        Event::Repaired { count: 1, digests: [2; 32], from: public_key() },
        Event::Scrubbed { pass: 1, envelope_count: 2, bytes: 3, damaged_count: 4 },
    ]
}

fn chunk_envelope() -> Vec<u8> {
    let mut bytes = clear_of_chunk(Suite::Blake3ChaCha20Poly1305).to_vec();
    bytes.resize(bytes.len() + 32 + 512 + 16, 0xa5);
    bytes
}

fn node_envelope(level: u8, children: u8) -> Vec<u8> {
    let digests: Vec<_> = (0..children).map(|n| SealedDigest([n; 32])).collect();
    let mut bytes = clear_of_node(Suite::Blake3ChaCha20Poly1305, level, &digests);
    bytes.resize(bytes.len() + 32 + usize::from(children) * 40 + 16, 0x5a);
    bytes
}

fn envelopes() -> Seeds {
    vec![
        ("chunk".into(), chunk_envelope()),
        ("node_1".into(), node_envelope(1, 1)),
        ("node_8".into(), node_envelope(8, 5)),
    ]
}

fn frames() -> Seeds {
    let mut stream = Vec::new();
    for envelope in [vec![1], node_envelope(1, 2), chunk_envelope()] {
        stream.extend_from_slice(&prefix(&envelope).unwrap());
        stream.extend_from_slice(&envelope);
    }
    vec![("empty".into(), Vec::new()), ("three".into(), stream)]
}

fn key_block() -> KeyBlock {
    KeyBlock {
        body_digest: [1; 32],
        plaintext_key: [2; 32].into(),
        root_h: [3; 32].into(),
        private: PrivateFields {
            host: "erp-1".into(),
            command: vec!["pg_dump".into(), "erp".into()],
            paths: Vec::new(),
            exit_code: 0,
            standard_error: b"pg_dump: warning\n".to_vec(),
            plaintext_bytes: 21_511_634,
            catalogue_bytes: 104,
            tags: vec!["nightly".into()],
        },
    }
}

/// `kind | number | size | first hash | root | u32 n | hashes`, as `fuzzing::decode_merkle` reads.
fn proof(kind: u8, numbers: [u64; 2], hashes: [[u8; 32]; 2], proof: &[[u8; 32]]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(hashes.iter().flatten());
    bytes.extend(u32::try_from(proof.len()).unwrap().to_le_bytes());
    bytes.extend(proof.iter().flatten());
    bytes
}

fn proofs() -> Seeds {
    let leaves: Vec<_> = (0..3u8).map(|n| leaf_hash(&[n])).collect();
    let pair = node_hash(&leaves[0], &leaves[1]);
    let root = node_hash(&pair, &leaves[2]);
    vec![
        ("inclusion_0".into(), proof(0, [0, 3], [leaves[0], root], &[leaves[1], leaves[2]])),
        ("inclusion_2".into(), proof(0, [2, 3], [leaves[2], root], &[pair])),
        ("consistency_2".into(), proof(1, [2, 3], [pair, root], &[leaves[2]])),
        ("consistency_0".into(), proof(1, [0, 3], [empty_root(), root], &[])),
    ]
}

fn names() -> Seeds {
    named([
        ("digest", SealedDigest([0xab; 32]).to_string()),
        ("id", PrincipalId([0x17; 16]).to_string()),
        ("label", label().as_str().to_owned()),
        ("role", Role::SecurityOfficer.to_string()),
    ])
}

fn nodes() -> Seeds {
    let children: Vec<_> =
        (1..4u8).map(|n| Child { h: [n; 32], plaintext_bytes: 65_536 }).collect();
    let mut bytes = 3u16.to_le_bytes().to_vec();
    bytes.extend_from_slice(&node::encode(&children));
    vec![("empty".into(), vec![0, 0]), ("three".into(), bytes)]
}

fn promotion() -> PromotionRequest {
    PromotionRequest {
        namespace_name: label(),
        descriptor: vec![1; 40],
        ledger_key: public_key(),
        tls_key: TlsKeyDigest([5; 32]),
        vouch: [3; 64],
        addresses: "replica.example:7443".into(),
        checkpoint: checkpoint(),
        snapshots: 4,
    }
}

/// Without the check sum at its end.
fn seed_manifest() -> Vec<u8> {
    let namespace = NamespaceId::of_authority(&public_key());
    let descriptor = DescriptorDigest([1; 32]);
    let manifest = Manifest {
        ledger_key: public_key(),
        only: vec!["erp".parse().unwrap(), label()],
        namespaces: vec![SeedNamespace { namespace, name: label(), descriptor }],
        packs: vec![SeedPack { file_bytes: 700, table: [2; 32] }],
        checkpoint: checkpoint(),
    };
    let mut bytes = manifest.encode();
    bytes.truncate(bytes.len() - 32);
    bytes
}

fn seed_table() -> Vec<u8> {
    let item = |kind, length, digest| PackItem { namespace: 0, kind, length, digest: [digest; 32] };
    let namespaces = vec![NamespaceId::of_authority(&public_key())];
    let items = vec![item(0, 568, 1), item(1, 132, 2), item(KIND_RECORD, 1000, 3)];
    PackTable { namespaces, items }.encode()
}

fn receipt() -> Receipt {
    Receipt {
        leaf_index: 0,
        entry: committed().encode(),
        proof: vec![[1; 32], [2; 32]],
        checkpoint: checkpoint(),
    }
}

fn record_body() -> RecordBody {
    RecordBody {
        namespace: NamespaceId::of_authority(&public_key()),
        epoch: 1,
        descriptor: DescriptorDigest([1; 32]),
        principal: PrincipalId([2; 16]),
        source: label(),
        session_nonce: SessionNonce([3; 32]),
        sequence: 1,
        previous: RecordDigest([0; 32]),
        root: SealedDigest([4; 32]),
        root_level: 1,
        totals: Totals { chunk_count: 330, sealed_bytes: 5_600_000 },
        padded_plaintext_bytes: 22_020_096,
        client_time_ms: 1_700_000_000_123,
        lock_wanted: LockWanted::Period(86_400),
        complete: true,
    }
}

fn record() -> Record {
    Record::sign(record_body(), vec![6; 100], certificate(), &SigningKey::from_bytes(&[8; 32]))
}

fn routes() -> Seeds {
    let routes = Route::examples(NamespaceId([1; 32]), SessionId([2; 16]), RecordDigest([3; 32]));
    let text = |route: &Route| format!("{} {}", route.method(), route.path()).into_bytes();
    routes.iter().map(|route| (route.name().to_owned(), text(route))).collect()
}

fn policies() -> Seeds {
    let rule = RetentionRule {
        mode: RetentionMode::Compliance,
        minimum_seconds: 86_400,
        default_seconds: 30 * 86_400,
        maximum_seconds: 3650 * 86_400,
        after_date_seconds: 0,
    };
    let plain = Policy::of_rule(rule);
    let mut rich = plain.clone();
    let class: Label = "medical".parse().unwrap();
    rich.classes.insert(class.clone(), RetentionRule { after_date_seconds: 86_400, ..rule });
    rich.sources.insert(label(), class);
    rich.quota = Quota { bytes: 1 << 40, snapshots: 1000 };
    vec![("plain".into(), plain.encode()), ("rich".into(), rich.encode())]
}

fn tiles() -> Seeds {
    let paths = [("hashes", "0/000"), ("part", "3/x123/456.p/7"), ("entries", "entries/x001/234")];
    named(paths.map(|(name, path)| (name, path.to_owned())))
}

fn tokens() -> Seeds {
    let scopes = [
        ("server", Role::Operator, Scope::Server),
        ("existing", Role::Restore, Scope::Existing(NamespaceId([9; 32]), label())),
        ("new", Role::Backup, Scope::New(label())),
    ];
    let token = |role: Role, scope: Scope| Token {
        id: TokenId([1; 16]),
        secret: [2; 32].into(),
        tls_key: TlsKeyDigest([3; 32]),
        ledger_key_digest: [4; 32],
        scope,
        role,
        expires_seconds: 1_800_000_000,
        addresses: "backup.example:7443".into(),
    };
    let mut seeds = Vec::new();
    for (name, role, scope) in scopes {
        let text = token(role, scope).to_text();
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix("srk1_").unwrap()).unwrap();
        let (fields, _check) = bytes.split_last_chunk::<4>().unwrap();
        seeds.push((format!("{name}_fields"), fields.to_vec()));
        seeds.push((format!("{name}_text"), text.into_bytes()));
    }
    seeds
}
