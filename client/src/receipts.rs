//! What a writer keeps of its own snapshots: signed records that wait, and receipts that came.
//!
//! ```text
//! pending/SOURCE.record           session id(16) | signed record
//! receipts/SOURCE/SEQUENCE-RECORD.receipt   bytes record body | bytes receipt
//! ```
//!
//! A record's key block is an age file, which comes out differently each time, so a record cannot
//! be made again: its bytes are on disk before it is sent for the first time, and they are removed
//! only when the receipt is on disk. After a crash in between, the same bytes are committed again
//! and the server answers with the old receipt.

use std::path::PathBuf;

use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{Label, PublicKey, RecordDigest, SessionId};
use strongroom_protocol::limits::{RECEIPT_MAX_BYTES, RECORD_MAX_BYTES};
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::record::{Record, RecordBody};
use strongroom_protocol::retention::Lock;

use crate::durable;
use crate::error::ClientError;
use crate::profile::Profile;

/// A record that was signed and may or may not have been committed.
pub struct PendingRecord {
    /// Session in which it was to be committed.
    pub session: SessionId,
    /// The signed bytes.
    pub record: Vec<u8>,
}

/// What a verified receipt says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The snapshot.
    pub record: RecordDigest,
    /// What the record says.
    pub body: RecordBody,
    /// The server's clock at the commit, milliseconds since 1970.
    pub committed_ms: u64,
    /// Its lock.
    pub lock: Lock,
    /// The signed checkpoint that the receipt's proof leads to.
    pub checkpoint: String,
}

/// Keeps a signed record until its receipt has come.
pub fn write_pending(
    profile: &Profile,
    source: &Label,
    pending: &PendingRecord,
) -> Result<(), ClientError> {
    durable::make_folder(&profile.folder().path("pending"))?;
    let mut bytes = pending.session.0.to_vec();
    bytes.extend_from_slice(&pending.record);
    durable::write(&pending_path(profile, source), &bytes)
}

/// The record of `source` whose receipt has not come.
pub fn read_pending(
    profile: &Profile,
    source: &Label,
) -> Result<Option<PendingRecord>, ClientError> {
    let max_bytes = u64::from(RECORD_MAX_BYTES).saturating_add(16);
    let bytes = durable::read_if_there(&pending_path(profile, source), max_bytes)?;
    let split = bytes.as_deref().and_then(<[u8]>::split_first_chunk::<16>);
    Ok(split.map(|(session, record)| PendingRecord {
        session: SessionId(*session),
        record: record.to_vec(),
    }))
}

/// Forgets a record that is committed, or cannot be any more. If a power cut brings it back, the
/// next run commits it again and gets the old receipt, or learns once more that it cannot be.
pub fn remove_pending(profile: &Profile, source: &Label) -> Result<(), ClientError> {
    durable::discard(&pending_path(profile, source))
}

/// Checks that `receipt` proves the commit of `record` in the ledger of `ledger_key`.
pub fn verify(
    record: &Record,
    receipt: &[u8],
    ledger_key: PublicKey,
) -> Result<Committed, ClientError> {
    let committed = read(record.digest(), record.body.clone(), receipt, ledger_key)?;
    Ok(committed)
}

/// Keeps a verified receipt.
pub fn write(profile: &Profile, committed: &Committed, receipt: &[u8]) -> Result<(), ClientError> {
    let folder = receipts_folder(profile).join(committed.body.source.as_str());
    durable::make_folder(&folder)?;
    let name = format!("{:012}-{}.receipt", committed.body.sequence, committed.record);
    let mut out = Writer::default();
    out.bytes(&committed.body.encode()).bytes(receipt);
    durable::write(&folder.join(name), &out.finish())
}

/// This profile's own snapshots, oldest first; of one source, or of all.
pub fn list(profile: &Profile, source: Option<&Label>) -> Result<Vec<Committed>, ClientError> {
    let root = receipts_folder(profile);
    let sources = match source {
        Some(source) => vec![root.join(source.as_str())],
        None => entries(&root)?,
    };
    let mut all = Vec::new();
    for path in sources {
        for file in entries(&path)? {
            let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let record = name.split_once('-').and_then(|(_, digest)| digest.parse().ok());
            // Temporary files of a run beside this one may go at any moment.
            let Some(record) = record else { continue };
            let max_bytes = u64::from(RECEIPT_MAX_BYTES).saturating_mul(2);
            let bytes = durable::read(&file, max_bytes)?;
            let (body, receipt) = split_file(&bytes)?;
            all.push(read(record, body, receipt, profile.settings().ledger_key)?);
        }
    }
    all.sort_by_key(|committed| (committed.committed_ms, committed.body.sequence));
    Ok(all)
}

/// Number of the newest own snapshot of `source` that a receipt is kept of; 0 for none.
pub fn newest_sequence(profile: &Profile, source: &Label) -> Result<u64, ClientError> {
    let files = entries(&receipts_folder(profile).join(source.as_str()))?;
    let sequence_of = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.split_once('-')?.0.parse::<u64>().ok()
    };
    Ok(files.iter().filter_map(sequence_of).max().unwrap_or(0))
}

fn read(
    record: RecordDigest,
    body: RecordBody,
    receipt: &[u8],
    ledger_key: PublicKey,
) -> Result<Committed, ClientError> {
    let receipt = Receipt::decode(receipt)?;
    let (entry, _) = receipt.verify(&[ledger_key])?;
    let other =
        || ClientError::Untrusted("the receipt is for another commit; tell the operator".into());
    let Event::Committed { record: named, root, sequence, lock, .. } = entry.event else {
        return Err(other());
    };
    let is_ours = named == record
        && root == body.root
        && sequence == body.sequence
        && entry.actor == body.principal
        && entry.namespace == body.namespace;
    if !is_ours {
        return Err(other());
    }
    Ok(Committed {
        record,
        body,
        committed_ms: entry.server_time_ms,
        lock,
        checkpoint: receipt.checkpoint,
    })
}

fn split_file(bytes: &[u8]) -> Result<(RecordBody, &[u8]), DecodeError> {
    let mut reader = Reader::new("stored receipt", bytes);
    let body = RecordBody::decode(reader.bytes(RECORD_MAX_BYTES)?)?;
    let receipt = reader.bytes(RECEIPT_MAX_BYTES)?;
    reader.finish()?;
    Ok((body, receipt))
}

fn pending_path(profile: &Profile, source: &Label) -> PathBuf {
    profile.folder().path("pending").join(format!("{source}.record"))
}

fn receipts_folder(profile: &Profile) -> PathBuf {
    profile.folder().path("receipts")
}

/// The files of a folder that may be absent, in order of their names.
fn entries(folder: &std::path::Path) -> Result<Vec<PathBuf>, ClientError> {
    let fail = |error| ClientError::file(format!("read folder {}", folder.display()), error);
    let listing = match std::fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut paths = Vec::new();
    for entry in listing {
        paths.push(entry.map_err(fail)?.path());
    }
    paths.sort();
    Ok(paths)
}
