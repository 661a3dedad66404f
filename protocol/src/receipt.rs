//! A commit's receipt: the proof that its entry is in the server's ledger.
//!
//! ```text
//! "SRX1" | leaf index u64 | bytes entry | u32 n, n x hash(32) | bytes checkpoint note
//! ```
//!
//! Nothing else is signed: the checkpoint is, and the proof leads from the entry to its root.

use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::codec::{DecodeError, Reader, Writer};
use crate::entry::Entry;
use crate::id::PublicKey;
use crate::limits::{CHECKPOINT_MAX_BYTES, ENTRY_MAX_BYTES, PROOF_HASHES_MAX, RECEIPT_MAX_BYTES};
use crate::merkle::{Hash, ProofError, leaf_hash, verify_inclusion};

const MAGIC: &[u8; 4] = b"SRX1";
const WHAT: &str = "receipt";

/// A receipt does not prove anything.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ReceiptError {
    /// It, or the entry in it, does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its checkpoint is not one of a known ledger.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its proof does not lead to the checkpoint.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// A receipt, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Position of the entry in the ledger.
    pub leaf_index: u64,
    /// The encoded entry.
    pub entry: Vec<u8>,
    /// Inclusion proof.
    pub proof: Vec<Hash>,
    /// Signed checkpoint.
    pub checkpoint: String,
}

impl Receipt {
    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        out.u64(self.leaf_index).bytes(&self.entry).count(self.proof.len());
        for hash in &self.proof {
            out.raw(hash);
        }
        out.bytes(self.checkpoint.as_bytes());
        out.finish()
    }

    /// Decodes a receipt.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > RECEIPT_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let leaf_index = reader.u64()?;
        let entry = reader.bytes(ENTRY_MAX_BYTES)?.to_vec();
        let mut proof = Vec::new();
        for _ in 0..reader.count(PROOF_HASHES_MAX)? {
            proof.push(reader.array()?);
        }
        let checkpoint = reader.text(CHECKPOINT_MAX_BYTES)?.to_owned();
        reader.finish()?;
        Ok(Self { leaf_index, entry, proof, checkpoint })
    }

    /// Checks that the entry is in a ledger that one of `ledger_keys` signs, and returns it with
    /// the checkpoint.
    pub fn verify(&self, ledger_keys: &[PublicKey]) -> Result<(Entry, Checkpoint), ReceiptError> {
        let checkpoint = Checkpoint::verify(&self.checkpoint, ledger_keys)?;
        let leaf = leaf_hash(&self.entry);
        let (size, root) = (checkpoint.size, &checkpoint.root);
        verify_inclusion(&leaf, self.leaf_index, size, &self.proof, root)?;
        Ok((Entry::decode(&self.entry)?, checkpoint))
    }
}
