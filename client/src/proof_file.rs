//! A proof about one snapshot, as one file that can be checked without server and profile.
//!
//! The file is text for people, followed by the same in base64. The binary part is
//!
//! ```text
//! "SRP1" | ledger key(32) | u32 n, n x (leaf index u64 | bytes entry | u32 m, m x hash(32))
//!   | bytes checkpoint note
//! ```
//!
//! The first leaf is the commit, the last is the newest entry of the ledger, whose clocks date the
//! proof, and between them stand all entries that changed what keeps the snapshot, in order. The
//! text follows from the binary part alone, so a reader writes it again and compares: no byte of
//! the file can change unseen.
//!
//! Each leaf is proven to be in the ledger. That there are no further entries about the snapshot
//! is what the maker found by reading all of the ledger, and what the text calls so.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use strongroom_protocol::checkpoint::{Checkpoint, origin_of};
use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{NamespaceId, PrincipalId, PublicKey, RecordDigest, to_hex};
use strongroom_protocol::limits::{CHECKPOINT_MAX_BYTES, ENTRY_MAX_BYTES, PROOF_HASHES_MAX};
use strongroom_protocol::merkle::{Hash, leaf_hash, verify_inclusion};
use strongroom_protocol::retention::{Kept, Lock, Moment};

use crate::arguments::utc_time;
use crate::error::ClientError;
use crate::ledger_words::{lock_words, record_of, words_of};

const MAGIC: &[u8; 4] = b"SRP1";
const WHAT: &str = "ledger proof";
const BEGIN: &str = "-----BEGIN STRONGROOM LEDGER PROOF-----\n";
const END: &str = "-----END STRONGROOM LEDGER PROOF-----\n";
const LINE_BYTES: usize = 76;
/// Most entries of a proof: a lock that was changed more often is proven by the whole ledger.
pub const LEAVES_MAX: u32 = 1024;
/// Longest proof file.
pub const PROOF_FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// An entry with its inclusion proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenLeaf {
    /// Its place in the ledger.
    pub index: u64,
    /// The encoded entry.
    pub entry: Vec<u8>,
    /// Leads from the entry to the checkpoint's root.
    pub proof: Vec<Hash>,
}

/// The binary part of a proof file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofFile {
    /// Whose ledger.
    pub ledger_key: PublicKey,
    /// The commit, what changed, and the newest entry.
    pub leaves: Vec<ProvenLeaf>,
    /// Signed checkpoint.
    pub checkpoint: String,
}

/// What keeps the snapshot when the proof was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProvenState {
    /// A lock lasts.
    Locked,
    /// A legal hold stands.
    Held,
    /// Its lock had ended; it may be forgotten at any time.
    Free,
    /// It was forgotten.
    Forgotten,
}

/// What a proof file shows; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proven {
    /// The snapshot, by the digest of its record.
    pub snapshot: RecordDigest,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Who committed it.
    pub principal: PrincipalId,
    /// Its number in its source.
    pub sequence: u64,
    /// The server's clock at the commit, milliseconds since 1970.
    pub committed_ms: u64,
    /// Place of the commit in the ledger.
    pub leaf: u64,
    /// The lock that came with the commit.
    pub first_lock: Lock,
    /// The lock in the end; nothing once it was forgotten.
    pub lock: Option<Lock>,
    /// What kept it when the newest entry was written.
    pub state: ProvenState,
    /// The server's clock at the newest entry, milliseconds since 1970.
    pub as_of_ms: u64,
    /// The retention clock at the newest entry, seconds since 1970.
    pub as_of_retention_seconds: u64,
    /// Origin of the ledger.
    pub origin: String,
    /// The ledger's key.
    pub ledger_key: PublicKey,
    /// Entries of the ledger.
    pub ledger_size: u64,
    /// Its root, in hexadecimal digits.
    pub ledger_root: String,
}

/// A verified proof with what it is told from.
struct Told {
    proven: Proven,
    changes: Vec<(u64, Entry)>,
}

/// Whether an event changes what keeps the snapshot.
pub fn is_change(event: &Event) -> bool {
    matches!(
        event,
        Event::Retained { .. }
            | Event::HoldPlaced { .. }
            | Event::HoldReleased { .. }
            | Event::Forgotten { .. }
    )
}

impl ProofFile {
    /// The file.
    pub fn to_text(&self) -> Result<String, ClientError> {
        let told = self.told()?;
        let mut text = header(&told, &self.checkpoint);
        text.push_str(BEGIN);
        let encoded = STANDARD.encode(self.encode());
        for line in encoded.as_bytes().chunks(LINE_BYTES) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str(END);
        Ok(text)
    }

    /// Reads a file and checks every byte of it: proofs, signature, and that the text says what
    /// the binary part proves. Whether the ledger key is the right one is the caller's question.
    pub fn check(text: &str) -> Result<Proven, ClientError> {
        let file = Self::decode_text(text)?;
        let told = file.told()?;
        if file.to_text()? != text {
            return Err(untrusted("its text is not what its proof says"));
        }
        Ok(told.proven)
    }

    pub(crate) fn decode_text(text: &str) -> Result<Self, ClientError> {
        let no_proof = || untrusted("it is not a ledger proof");
        let (_, rest) = text.split_once(BEGIN).ok_or_else(no_proof)?;
        let (lines, _) = rest.split_once(END).ok_or_else(no_proof)?;
        let joined: String = lines.split('\n').collect();
        let bytes = STANDARD.decode(joined).map_err(|_| no_proof())?;
        Self::decode(&bytes).map_err(|error| untrusted(&error.to_string()))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&self.ledger_key.0).count(self.leaves.len());
        for leaf in &self.leaves {
            out.u64(leaf.index).bytes(&leaf.entry).count(leaf.proof.len());
            for hash in &leaf.proof {
                out.raw(hash);
            }
        }
        out.bytes(self.checkpoint.as_bytes());
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let ledger_key = PublicKey(reader.array()?);
        let mut leaves = Vec::new();
        for _ in 0..reader.count(LEAVES_MAX)? {
            let (index, entry) = (reader.u64()?, reader.bytes(ENTRY_MAX_BYTES)?.to_vec());
            let mut proof = Vec::new();
            for _ in 0..reader.count(PROOF_HASHES_MAX)? {
                proof.push(reader.array()?);
            }
            leaves.push(ProvenLeaf { index, entry, proof });
        }
        let checkpoint = reader.text(CHECKPOINT_MAX_BYTES)?.to_owned();
        reader.finish()?;
        Ok(Self { ledger_key, leaves, checkpoint })
    }

    /// Verifies everything that can be verified without asking anybody.
    fn told(&self) -> Result<Told, ClientError> {
        let key = self.ledger_key;
        let head = Checkpoint::verify(&self.checkpoint, &[key])
            .map_err(|error| untrusted(&error.to_string()))?;
        let mut entries: Vec<(u64, Entry)> = Vec::new();
        for leaf in &self.leaves {
            let hash = leaf_hash(&leaf.entry);
            verify_inclusion(&hash, leaf.index, head.size, &leaf.proof, &head.root)
                .map_err(|error| untrusted(&error.to_string()))?;
            if entries.last().is_some_and(|(before, _)| *before >= leaf.index) {
                return Err(untrusted("its entries are out of order"));
            }
            let entry =
                Entry::decode(&leaf.entry).map_err(|error| untrusted(&error.to_string()))?;
            entries.push((leaf.index, entry));
        }
        let newest = entries.last().cloned().filter(|(at, _)| *at == head.size.saturating_sub(1));
        let (_, newest) =
            newest.ok_or_else(|| untrusted("the ledger's newest entry is missing"))?;
        let mut entries = entries.into_iter();
        let (leaf, commit) = entries.next().ok_or_else(|| untrusted("it holds no entry"))?;
        let Event::Committed { record, sequence, lock, .. } = commit.event else {
            return Err(untrusted("its first entry is no commit"));
        };
        let is_about = |entry: &Entry| {
            entry.namespace == commit.namespace
                && record_of(&entry.event) == Some(record)
                && is_change(&entry.event)
        };
        let others: Vec<(u64, Entry)> = entries.collect();
        let last = head.size.saturating_sub(1);
        if others.iter().any(|(at, entry)| !is_about(entry) && *at != last) {
            return Err(untrusted("it holds entries about something else"));
        }
        let changes: Vec<_> = others.into_iter().filter(|(_, entry)| is_about(entry)).collect();
        let (lock_now, state) = state_after(lock, &changes, &newest);
        let proven = Proven {
            snapshot: record,
            namespace: commit.namespace,
            principal: commit.actor,
            sequence,
            committed_ms: commit.server_time_ms,
            leaf,
            first_lock: lock,
            lock: lock_now,
            state,
            as_of_ms: newest.server_time_ms,
            as_of_retention_seconds: newest.retention_time_seconds,
            origin: origin_of(&key),
            ledger_key: key,
            ledger_size: head.size,
            ledger_root: to_hex(&head.root),
        };
        Ok(Told { proven, changes })
    }
}

/// What keeps the snapshot after all changes, by the clocks of the newest entry.
fn state_after(
    first: Lock,
    changes: &[(u64, Entry)],
    newest: &Entry,
) -> (Option<Lock>, ProvenState) {
    let mut lock = first;
    for (_, entry) in changes {
        match &entry.event {
            Event::Retained { lock: new, .. } => lock = *new,
            Event::HoldPlaced { .. } => lock.is_held = true,
            Event::HoldReleased { .. } => lock.is_held = false,
            Event::Forgotten { .. } => return (None, ProvenState::Forgotten),
            _ => {}
        }
    }
    let now = Moment {
        retention_seconds: newest.retention_time_seconds,
        wall_seconds: newest.server_time_ms / 1000,
        is_suspect: false,
    };
    let state = match lock.kept(now) {
        Some(Kept::Held) => ProvenState::Held,
        Some(Kept::Locked | Kept::ClockSuspect) => ProvenState::Locked,
        None => ProvenState::Free,
    };
    (Some(lock), state)
}

fn header(told: &Told, checkpoint: &str) -> String {
    let proven = &told.proven;
    let mut text = format!(
        "STRONGROOM LEDGER PROOF\n\n\
         Snapshot   {}\nNamespace  {}\nCommitted  {} by {}\n           number {} of its source, \
         entry {} of the ledger\nLocked     {}\n\nLater entries that change what keeps it:\n",
        proven.snapshot,
        proven.namespace,
        utc_time(signed(proven.committed_ms)),
        proven.principal,
        proven.sequence,
        proven.leaf,
        lock_words(&proven.first_lock),
    );
    for (index, entry) in &told.changes {
        let (time, who) = (utc_time(signed(entry.server_time_ms)), entry.actor);
        text.push_str(&format!("  entry {index}, {time}: {who} {}\n", words_of(entry)));
    }
    if told.changes.is_empty() {
        text.push_str("  none\n");
    }
    text.push_str(&format!("\n{}\n", state_words(proven)));
    text.push_str(&format!(
        "Ledger of {} entries, origin {}\nLedger key {}\n\nIts signed checkpoint:\n\n\
         {checkpoint}\n\
         Proven by hashes and the ledger's signature: each entry named above is in this ledger,\n\
         at its place. That no further entry changes what keeps the snapshot was found by whoever\n\
         made this file, who read the ledger to its end.\n\n\
         Check this file, without any server:\n\
         strongroom audit check FILE --ledger-key KEY\n\
         with the ledger key as you know it from elsewhere.\n\n",
        proven.ledger_size, proven.origin, proven.ledger_key,
    ));
    text
}

/// How it stands, and when.
pub fn state_words(proven: &Proven) -> String {
    let when = utc_time(signed(proven.as_of_ms));
    let lock = proven.lock.as_ref().map(lock_words).unwrap_or_default();
    match proven.state {
        ProvenState::Locked => format!("On {when} it was LOCKED: {lock}."),
        ProvenState::Held => format!("On {when} it was under LEGAL HOLD: {lock}."),
        ProvenState::Free => format!("On {when} its lock had ENDED: {lock}."),
        ProvenState::Forgotten => format!("On {when} it was FORGOTTEN."),
    }
}

fn untrusted(problem: &str) -> ClientError {
    ClientError::Untrusted(format!(
        "the proof does not hold: {problem}; ask for a new one (strongroom audit prove)"
    ))
}

fn signed(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use strongroom_protocol::id::SealedDigest;
    use strongroom_protocol::merkle::node_hash;
    use strongroom_protocol::retention::RetentionMode;

    const RECORD: RecordDigest = RecordDigest([4; 32]);

    fn entry(retention_time_seconds: u64, event: Event) -> Vec<u8> {
        let entry = Entry {
            server_time_ms: retention_time_seconds * 1000,
            retention_time_seconds,
            actor: PrincipalId([1; 16]),
            namespace: NamespaceId([2; 32]),
            event,
        };
        entry.encode()
    }

    fn committed(until_seconds: u64) -> Event {
        let mode = RetentionMode::Compliance;
        let lock = Lock { mode, until_seconds, until_wall_seconds: 0, is_held: false };
        Event::Committed {
            commit: 1,
            record: RECORD,
            root: SealedDigest([5; 32]),
            sequence: 1,
            lock,
        }
    }

    /// A ledger of exactly these entries, all of them in the proof.
    fn file(entries: &[Vec<u8>]) -> ProofFile {
        let ledger = SigningKey::from_bytes(&[7; 32]);
        let ledger_key = PublicKey(ledger.verifying_key().to_bytes());
        let hashes: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        let (root, proofs): (Hash, Vec<Vec<Hash>>) = match hashes.as_slice() {
            [one] => (*one, vec![vec![]]),
            [one, two] => (node_hash(one, two), vec![vec![*two], vec![*one]]),
            [one, two, three] => {
                let left = node_hash(one, two);
                let proofs = vec![vec![*two, *three], vec![*one, *three], vec![left]];
                (node_hash(&left, three), proofs)
            }
            _ => panic!("one to three"),
        };
        let size = u64::try_from(entries.len()).unwrap();
        let head = Checkpoint { origin: origin_of(&ledger_key), size, root };
        let leaves = (0..).zip(entries.iter().zip(proofs));
        let leaves =
            leaves.map(|(index, (entry, proof))| ProvenLeaf { index, entry: entry.clone(), proof });
        ProofFile { ledger_key, leaves: leaves.collect(), checkpoint: head.sign(&ledger) }
    }

    #[test]
    fn says_whether_the_snapshot_was_still_locked() {
        let read = Event::RecordRead { record: RecordDigest([9; 32]) };
        let hold = Event::HoldPlaced { record: RECORD, reason: [0; 32] };
        let lock = Lock {
            mode: RetentionMode::Governance,
            until_seconds: 100,
            until_wall_seconds: 0,
            is_held: false,
        };
        let forgotten = Event::Forgotten { record: RECORD, commit: 1, lock, proposal: 0 };
        let cases = [
            (vec![entry(1, committed(100))], ProvenState::Locked),
            (vec![entry(1, committed(100)), entry(99, read.clone())], ProvenState::Locked),
            (vec![entry(1, committed(100)), entry(200, read.clone())], ProvenState::Free),
            (vec![entry(1, committed(100)), entry(2, hold), entry(200, read)], ProvenState::Held),
            (vec![entry(1, committed(100)), entry(101, forgotten)], ProvenState::Forgotten),
        ];
        for (entries, state) in cases {
            let text = file(&entries).to_text().unwrap();
            assert_eq!(ProofFile::check(&text).unwrap().state, state, "{text}");
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let hold = Event::HoldPlaced { record: RECORD, reason: [0; 32] };
        let text = file(&[entry(1, committed(100)), entry(2, hold)]).to_text().unwrap();
        ProofFile::check(&text).unwrap();
        for at in 0..text.len() {
            for flip in [1, 0x20] {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= flip;
                let changed = String::from_utf8_lossy(&bytes);
                assert!(ProofFile::check(&changed).is_err(), "byte {at} of\n{changed}");
            }
            let cut = String::from_utf8_lossy(&text.as_bytes()[..at]);
            assert!(ProofFile::check(&cut).is_err(), "cut at {at}");
        }
        assert!(ProofFile::check(&format!("{text}\n")).is_err());
    }

    #[test]
    fn entries_of_others_and_missing_ends_are_refused() {
        let other = Event::RecordRead { record: RECORD };
        let three = [entry(1, committed(9)), entry(2, other.clone()), entry(3, other.clone())];
        assert!(file(&three).to_text().is_err(), "an entry that changes nothing");
        let mut without_end = file(&[entry(1, committed(9)), entry(2, other)]);
        without_end.leaves.pop();
        assert!(without_end.to_text().is_err(), "no newest entry");
        let hold = entry(1, Event::HoldPlaced { record: RECORD, reason: [0; 32] });
        assert!(file(&[hold]).to_text().is_err(), "no commit");
    }
}
