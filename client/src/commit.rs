//! From an acknowledged tree to a receipt: the record, and the promise that it is committed once.
//!
//! 1. Build and sign the record, on the session's head. *Crash: nothing was made.*
//! 2. Write it to `pending/`. *Crash: the next run commits it, or learns that its session ended.*
//! 3. Commit it. *Crash: the next run commits the same bytes again and gets the old receipt.*
//! 4. Verify the receipt, write it to `receipts/`, and demand that its checkpoint continues the
//!    remembered one. *Crash: as after 3.*
//! 5. Remove the pending record.

use std::path::Path;

use bytes::Bytes;
use strongroom_protocol::certificate::WriterCertificate;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, RecordDigest};
use strongroom_protocol::limits::{KEY_BLOCK_MAX_BYTES, NAME_MAX_BYTES};
use strongroom_protocol::padding::padme;
use strongroom_protocol::record::{KeyBlock, PrivateFields, Record, RecordBody};
use strongroom_protocol::retention::LockWanted;
use zeroize::Zeroizing;

use crate::age_file;
use crate::clock;
use crate::error::ClientError;
use crate::history;
use crate::keys::EpochKeys;
use crate::profile::Profile;
use crate::receipts::{self, Committed, PendingRecord};
use crate::session::{Session, commit_in};
use crate::transport::Client;
use crate::tree::SealedRoot;

/// What a record says besides the tree.
pub struct Statement {
    /// Retention asked for.
    pub lock_wanted: LockWanted,
    /// Every file could be read.
    pub complete: bool,
    /// What only a recovery identity can read.
    pub private: PrivateFields,
}

/// Place of a new record in its source's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Number of the record, from 1.
    pub sequence: u64,
    /// The one before; zeros before the first.
    pub previous: RecordDigest,
    /// Chunks of the one before, 0 before the first.
    pub previous_chunk_count: u64,
}

/// Where the next record of `source` stands, by the head that the server gave with the session.
/// The head must be this principal's own work, and not older than a receipt that is kept here.
pub fn position_after(
    profile: &Profile,
    source: &Label,
    head: Option<&[u8]>,
) -> Result<Position, ClientError> {
    let kept = receipts::newest_sequence(profile, source)?;
    let behind = |sequence: u64| {
        ClientError::Untrusted(format!(
            "the server's newest snapshot of {source} is number {sequence}, but this machine has \
             the receipt of number {kept}: the server was rolled back; tell its operator and keep \
             this profile as evidence"
        ))
    };
    let Some(head) = head else {
        if kept > 0 {
            return Err(behind(0));
        }
        let previous = RecordDigest([0; 32]);
        return Ok(Position { sequence: 1, previous, previous_chunk_count: 0 });
    };
    let head = Record::decode(head)?;
    head.verify_signature()?;
    let is_own = profile.is_own_key(&head.certificate.signing_key)?
        && head.body.principal == profile.settings().principal
        && head.body.namespace == profile.namespace()?
        && head.body.source == *source;
    if !is_own {
        return Err(ClientError::Untrusted(format!(
            "the server's newest snapshot of {source} was not signed by this machine; tell its \
             operator"
        )));
    }
    if head.body.sequence < kept {
        return Err(behind(head.body.sequence));
    }
    Ok(Position {
        sequence: head.body.sequence.saturating_add(1),
        previous: head.digest(),
        previous_chunk_count: head.body.totals.chunk_count,
    })
}

/// Makes, signs, keeps and commits the record of an acknowledged tree.
pub async fn commit(
    profile: &mut Profile,
    session: &Session,
    descriptor: &VerifiedDescriptor,
    keys: &EpochKeys,
    source: &Label,
    root: &SealedRoot,
    statement: Statement,
) -> Result<Committed, ClientError> {
    let mut body = body_of(profile, session, descriptor, source, root)?;
    body.lock_wanted = statement.lock_wanted;
    body.complete = statement.complete;
    let record = sign_record(profile, descriptor, keys, body, root, statement.private)?;
    let pending = PendingRecord { session: session.opened().session, record: record.encode() };
    receipts::write_pending(profile, source, &pending)?;
    let receipt = session.commit(Bytes::from(pending.record)).await?;
    accept(profile, session.client(), &record, &receipt).await
}

/// What a record of an acknowledged tree says to everybody; the lock is the namespace's default.
pub fn body_of(
    profile: &Profile,
    session: &Session,
    descriptor: &VerifiedDescriptor,
    source: &Label,
    root: &SealedRoot,
) -> Result<RecordBody, ClientError> {
    let head = session.opened().head.as_ref().map(|head| head.0.as_slice());
    let position = position_after(profile, source, head)?;
    Ok(RecordBody {
        namespace: descriptor.namespace(),
        epoch: descriptor.contents().epoch,
        descriptor: descriptor.digest(),
        principal: profile.settings().principal,
        source: source.clone(),
        session_nonce: session.opened().nonce,
        sequence: position.sequence,
        previous: position.previous,
        root: root.digest,
        root_level: root.level,
        totals: root.totals,
        padded_plaintext_bytes: padme(root.plaintext_bytes),
        client_time_ms: clock::wall_ms(),
        lock_wanted: LockWanted::Default,
        complete: true,
    })
}

/// Seals the keys of a tree, and what only a recovery identity may read, into a record, and signs
/// it.
pub fn sign_record(
    profile: &Profile,
    descriptor: &VerifiedDescriptor,
    keys: &EpochKeys,
    body: RecordBody,
    root: &SealedRoot,
    private: PrivateFields,
) -> Result<Record, ClientError> {
    let block = KeyBlock {
        body_digest: *blake3::hash(&body.encode()).as_bytes(),
        plaintext_key: (*keys.plaintext().plaintext_key()).into(),
        root_h: root.h.0.into(),
        private,
    };
    let contents = descriptor.contents();
    let key_block = age_file::seal_to(&contents.recipients, &Zeroizing::new(block.encode()))
        .map_err(|error| ClientError::Usage(error.to_string()))?;
    if u32::try_from(key_block.len()).map_or(true, |length| length > KEY_BLOCK_MAX_BYTES) {
        return Err(ClientError::Usage(
            "command line, paths and tags are too long for a snapshot record: shorten them".into(),
        ));
    }
    let certificate = WriterCertificate::issue(
        &keys.record_key(),
        descriptor.namespace(),
        contents.epoch,
        profile.settings().principal,
        profile.signing_public_key()?,
    );
    Ok(Record::sign(body, key_block, certificate, &profile.signing_key()?))
}

/// Commits the record that an earlier run left behind, if there is one. Nothing comes of a record
/// whose session ended before it was committed; its chunks are asked about again by the next run.
pub async fn finish_pending(
    profile: &mut Profile,
    client: &Client,
    source: &Label,
) -> Result<Option<Committed>, ClientError> {
    let Some(pending) = receipts::read_pending(profile, source)? else { return Ok(None) };
    let Ok(record) = Record::decode(&pending.record) else {
        receipts::remove_pending(profile, source)?;
        return Ok(None);
    };
    let namespace = profile.namespace()?;
    let bytes = Bytes::from(pending.record);
    match commit_in(client, namespace, pending.session, bytes).await {
        Ok(receipt) => accept(profile, client, &record, &receipt).await.map(Some),
        Err(error) if is_hopeless(&error) => {
            receipts::remove_pending(profile, source)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Name of this machine, as far as it is known.
pub fn host_name() -> String {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
    text.trim().chars().take(usize::try_from(NAME_MAX_BYTES / 4).unwrap_or(0)).collect()
}

async fn accept(
    profile: &mut Profile,
    client: &Client,
    record: &Record,
    receipt: &[u8],
) -> Result<Committed, ClientError> {
    let committed = receipts::verify(record, receipt, profile.settings().ledger_key)?;
    receipts::write(profile, &committed, receipt)?;
    history::confirm(profile, client, &committed.checkpoint).await?;
    receipts::remove_pending(profile, &record.body.source)?;
    Ok(committed)
}

/// Whether a pending record can never be committed any more.
fn is_hopeless(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Some(
            ErrorCode::SessionEnded
                | ErrorCode::OutOfSequence
                | ErrorCode::BadRecord
                | ErrorCode::MissingChildren
                | ErrorCode::NotFound
                | ErrorCode::NotPrimary
                | ErrorCode::EpochEnded
                | ErrorCode::RetentionOutOfPolicy
        )
    )
}
