//! Every bound of the system, in one place.
//!
//! A decoder or handler that accepts a size, count, depth or duration from a peer compares it with
//! a constant of this file before it allocates. Times are in milliseconds or seconds, sizes in
//! bytes, as each name says.

/// Version of the wire protocol, the `v1` of every path.
pub const PROTOCOL_VERSION: u32 = 1;

// --- Chunks, nodes, envelopes ---------------------------------------------------------------

/// Smallest average chunk size that a descriptor may name.
pub const CHUNK_AVERAGE_MIN_BYTES: u32 = 4 * 1024;
/// Largest average chunk size that a descriptor may name.
pub const CHUNK_AVERAGE_MAX_BYTES: u32 = 1024 * 1024;
/// Largest chunk of plaintext: four times the largest average.
pub const CHUNK_MAX_BYTES: u32 = 4 * CHUNK_AVERAGE_MAX_BYTES;
/// Smallest padded payload of a chunk.
pub const PAYLOAD_MIN_BYTES: u64 = 512;
/// Largest envelope: the largest chunk, uncompressed, with header and padding.
pub const ENVELOPE_MAX_BYTES: u32 = CHUNK_MAX_BYTES + 512 * 1024;
/// Fewest children of a node that is not the last of its level.
pub const NODE_CHILDREN_MIN: u32 = 128;
/// Most children of a node.
pub const NODE_CHILDREN_MAX: u32 = 2048;
/// A node ends where these low bits of a child's `ChunkId` are zero.
pub const NODE_CUT_MASK: u16 = 0x01ff;
/// Highest level of a node; `128^8` chunks are more than a year of dumps of one appliance.
pub const LEVEL_MAX: u8 = 8;

// --- Signed objects -------------------------------------------------------------------------

/// Longest source label or namespace name, in bytes.
pub const LABEL_MAX_BYTES: u32 = 64;
/// Longest display name of a principal, in bytes.
pub const NAME_MAX_BYTES: u32 = 128;
/// Most age recipients in a descriptor.
pub const RECIPIENTS_MAX: u32 = 32;
/// Longest age recipient, in bytes (post-quantum recipients are near 2 KiB).
pub const RECIPIENT_MAX_BYTES: u32 = 4096;
/// Most server ledger keys in a descriptor.
pub const LEDGER_KEYS_MAX: u32 = 16;
/// Longest age file that wraps a convergence secret.
pub const WRAPPED_SECRET_MAX_BYTES: u32 = 128 * 1024;
/// Longest descriptor.
pub const DESCRIPTOR_MAX_BYTES: u32 = 512 * 1024;
/// Longest standard error text kept in a record, in bytes; the end of it is kept.
pub const STDERR_MAX_BYTES: u32 = 64 * 1024;
/// Longest single text in the private part of a record, in bytes.
pub const PRIVATE_TEXT_MAX_BYTES: u32 = 32 * 1024;
/// Most arguments, paths or tags in the private part of a record.
pub const PRIVATE_ITEMS_MAX: u32 = 1024;
/// Longest key block (an age file) of a record.
pub const KEY_BLOCK_MAX_BYTES: u32 = 512 * 1024;
/// Longest snapshot record.
pub const RECORD_MAX_BYTES: u32 = KEY_BLOCK_MAX_BYTES + 4096;

// --- Catalogue ------------------------------------------------------------------------------

/// Longest path or link target in a catalogue, in bytes.
pub const PATH_MAX_BYTES: u32 = 16 * 1024;
/// Most extended attributes of an entry.
pub const XATTRS_MAX: u32 = 1024;
/// Longest value of an extended attribute, in bytes.
pub const XATTR_MAX_BYTES: u32 = 64 * 1024;
/// Most holes of a sparse file.
pub const HOLES_MAX: u32 = 1024 * 1024;
/// Longest catalogue entry, in bytes.
pub const CATALOGUE_ENTRY_MAX_BYTES: u32 = 32 * 1024 * 1024;
/// Longest catalogue that is read: some hundred million files.
pub const CATALOGUE_MAX_BYTES: u64 = 16 << 30;

// --- Ledger ---------------------------------------------------------------------------------

/// Longest ledger entry.
pub const ENTRY_MAX_BYTES: u32 = 4096;
/// Longest signed checkpoint note.
pub const CHECKPOINT_MAX_BYTES: u32 = 4096;
/// Most hashes of a proof: one a level of a tree of `2^64` leaves.
pub const PROOF_HASHES_MAX: u32 = 64;
/// Longest receipt.
pub const RECEIPT_MAX_BYTES: u32 = 16 * 1024;

// --- Enrolment ------------------------------------------------------------------------------

/// Longest life of an enrolment token, in seconds.
pub const TOKEN_TTL_MAX_SECONDS: u64 = 24 * 3600;
/// Wrong proofs after which a token is dead.
pub const TOKEN_TRIES_MAX: u32 = 5;
/// Longest token, decoded.
pub const TOKEN_MAX_BYTES: u32 = 1024;
/// Longest address list in a token.
pub const ADDRESS_MAX_BYTES: u32 = 512;
/// Longest enrolment request.
pub const ENROLL_MAX_BYTES: u32 = DESCRIPTOR_MAX_BYTES + 4096;

/// Longest request for new keys.
pub const ROLL_MAX_BYTES: u32 = 512;
/// Longest ECDSA signature of P-256 in DER, with room.
pub const ECDSA_SIGNATURE_MAX_BYTES: u32 = 80;
/// Most of its own former signing keys that a profile keeps.
pub const FORMER_KEYS_MAX: u32 = 64;

// --- Requests -------------------------------------------------------------------------------

/// Longest JSON body of a control request.
pub const CONTROL_MAX_BYTES: u32 = 64 * 1024;
/// Longest command to a running server: a descriptor in hexadecimal, and words around it.
pub const COMMAND_MAX_BYTES: u32 = 2 * DESCRIPTOR_MAX_BYTES + CONTROL_MAX_BYTES;
/// Longest request to promote a server.
pub const PROMOTION_MAX_BYTES: u32 = DESCRIPTOR_MAX_BYTES + CHECKPOINT_MAX_BYTES + 4096;
/// Longest JSON body of an answer that a client accepts.
pub const ANSWER_MAX_BYTES: u32 = 8 * 1024 * 1024;
/// Most digests in one "have" question.
pub const HAVE_MAX_COUNT: u32 = 8192;
/// Most digests in one challenge.
pub const PROVE_MAX_COUNT: u32 = 64;
/// Most challenged envelopes a session.
pub const CHALLENGES_MAX: u32 = 64;
/// Most digests in one read.
pub const READ_MAX_COUNT: u32 = 4096;
/// Longest body of one upload request.
pub const UPLOAD_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Most envelopes in one upload request.
pub const UPLOAD_MAX_COUNT: u32 = 65_536;
/// Most digests of missing children named in an error.
pub const MISSING_MAX_COUNT: u32 = 64;
/// Most snapshots in one page of a list.
pub const LIST_MAX_COUNT: u32 = 1000;
/// A session that declares at most this many bytes of envelopes is a small one.
pub const SMALL_SESSION_MAX_BYTES: u64 = 32 * 1024 * 1024;

// --- Connections ----------------------------------------------------------------------------

/// One connection in so many is for handshakes and for keys that are not enrolled.
pub const STRANGER_SHARE: u32 = 8;
/// Longest head of a request: its first line and its headers.
pub const HEAD_MAX_BYTES: u32 = 16 * 1024;
/// Most headers of a request.
pub const HEADERS_MAX: u32 = 64;
/// Least memory for bodies of requests: a share of it holds an envelope, and more is read.
pub const BODY_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// A principal's requests take this part of the places for requests in flight at most.
pub const REQUEST_SHARE: u64 = 8;
/// A principal's bodies take this part of the memory for bodies at most.
pub const BODY_SHARE: u64 = 4;
/// Most records of one primary that are entered as taken after their epoch had ended.
pub const BACKDATED_NOTED_MAX: u32 = 1024;
/// A refusal is entered in the ledger once in so many seconds for each principal and snapshot,
pub const REFUSED_ENTRY_SECONDS: u64 = 60;
/// and at most so many of one principal in that time.
pub const REFUSED_ENTRIES_MAX: usize = 60;

// --- Replication ----------------------------------------------------------------------------

/// Most primaries that a server follows.
pub const PRIMARIES_MAX: u32 = 64;
/// Most servers that a primary lends its connections to.
pub const FEEDS_MAX: u32 = 64;
/// Most connections that wait here, of those that one primary lends.
pub const LENT_CONNECTIONS_MAX: u32 = 16;
/// Most namespaces that a primary is narrowed to.
pub const PRIMARY_FILTER_MAX: u32 = 256;
/// Most versions of a namespace's descriptor whose places in a primary's ledger are noted.
pub const DESCRIPTORS_NOTED_MAX: u32 = 4096;
/// A replica makes no namespace beyond so many, whatever its primaries say they have.
pub const REPLICA_NAMESPACES_MAX: u32 = 4096;

// --- Exports --------------------------------------------------------------------------------

/// Longest file of descriptors of an export.
pub const SEED_DESCRIPTORS_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Most packs of an export.
pub const SEED_PACKS_MAX: u32 = 1 << 20;
/// Most envelopes and records of a pack.
pub const SEED_PACK_ITEMS_MAX: u32 = 65_536;
/// A pack ends when it is this long.
pub const SEED_PACK_BYTES: u64 = 256 * 1024 * 1024;
/// Longest table of a pack.
pub const SEED_TABLE_MAX_BYTES: u32 = 3 * 1024 * 1024;
/// Longest manifest.
pub const SEED_MANIFEST_MAX_BYTES: u32 = 64 * 1024 * 1024;
/// Ledger entries of a file.
pub const SEED_LEDGER_FILE_ENTRIES: u32 = 4096;

// --- Retention ------------------------------------------------------------------------------

/// Longest retention that a policy may name, in seconds (200 years).
pub const RETENTION_MAX_SECONDS: u64 = 200 * 366 * 24 * 3600;
/// Most classes that a policy may define.
pub const POLICY_CLASSES_MAX: u32 = 64;
/// Most sources that a policy may name.
pub const POLICY_SOURCES_MAX: u32 = 512;
/// Longest encoded policy.
pub const POLICY_MAX_BYTES: u32 = 128 * 1024;
/// Longest reason of a hold or meaning of an approval, in bytes.
pub const REASON_MAX_BYTES: u32 = 1024;
/// A proposal that nobody decided ends after this time, in seconds (7 days).
pub const PROPOSAL_TTL_SECONDS: u64 = 7 * 24 * 3600;
/// Most proposals of one principal that wait for a decision.
pub const PROPOSALS_MAX: u32 = 8;
