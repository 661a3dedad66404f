//! Snapshots as a person sees them: list, find by a short name, show, forget, and the kit's test.
//!
//! Lists come from the server's rows, which hold what everybody may know; what only a recovery
//! identity can read is shown by [`show`]. A `backup` profile may not list: it shows the receipts
//! that it holds, which prove more than a list does.

use serde::Serialize;
use strongroom_protocol::id::{Label, PrincipalId, RecordDigest, SealedDigest};
use strongroom_protocol::message::{Forgotten, SnapshotPage, SnapshotRow};
use strongroom_protocol::record::RecordBody;
use strongroom_protocol::retention::{Lock, RetentionMode};
use strongroom_protocol::route::Route;

use crate::arguments::end_of;
use crate::error::ClientError;
use crate::profile::Profile;
use crate::receipts::{self, Committed};
use crate::standby;
use crate::stream::OpenTree;
use crate::transport::{Body, parse_json};
use crate::trust::{Freshness, ReadAccess};

/// Fewest digits of a snapshot's id that find it.
const PREFIX_MIN_DIGITS: usize = 4;

/// A snapshot in a list; the objects that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotSummary {
    /// The snapshot.
    pub snapshot: RecordDigest,
    /// What was backed up.
    pub source: Label,
    /// Its number in its source.
    pub sequence: u64,
    /// Who made it.
    pub principal: PrincipalId,
    /// The server's clock at the commit, milliseconds since 1970.
    pub committed_ms: u64,
    /// The client's clock, milliseconds since 1970; information only.
    pub client_time_ms: i64,
    /// Bytes of plaintext, rounded up.
    pub padded_plaintext_bytes: u64,
    /// Bytes of all envelopes, with multiplicity.
    pub sealed_bytes: u64,
    /// Chunks, with multiplicity.
    pub chunk_count: u64,
    /// Mode of the lock.
    pub mode: RetentionMode,
    /// End of the lock, seconds since 1970; nothing for a lock without end.
    pub locked_until_seconds: Option<u64>,
    /// A legal hold stands.
    pub is_held: bool,
    /// Every file could be read.
    pub is_complete: bool,
}

/// A snapshot with what only a recovery identity can read; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotDetails {
    /// What everybody may know.
    #[serde(flatten)]
    pub summary: SnapshotSummary,
    /// Root of its tree.
    pub root: SealedDigest,
    /// The record before it in its source; zeros in the first.
    pub previous: RecordDigest,
    /// What an identity opened; nothing where none was given.
    pub sealed_fields: Option<SealedFields>,
}

/// The private part of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SealedFields {
    /// Machine that made the backup.
    pub host: String,
    /// Program and arguments whose output was backed up.
    pub command: Vec<String>,
    /// Paths that were backed up.
    pub paths: Vec<String>,
    /// Exit code of the command.
    pub exit_code: u32,
    /// End of what the command wrote to standard error.
    pub standard_error: String,
    /// Exact bytes of the dump.
    pub plaintext_bytes: u64,
    /// The user's words.
    pub tags: Vec<String>,
    /// Every link of the chain of trust held.
    pub is_verified: bool,
}

/// What a kit opened; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KitCheck {
    /// The snapshot that was opened.
    pub snapshot: RecordDigest,
    /// What was backed up.
    pub source: Label,
    /// When, by the server's clock, milliseconds since 1970.
    pub committed_ms: u64,
    /// Version of the namespace's newest descriptor.
    pub descriptor_version: Option<u64>,
}

/// The snapshots that a server lists, oldest first; of one source, or of all.
pub async fn list(
    access: &ReadAccess,
    source: Option<&Label>,
) -> Result<Vec<SnapshotSummary>, ClientError> {
    let rows = list_rows(access, source).await?;
    rows.into_iter().map(SnapshotSummary::of_row).collect()
}

/// The snapshots that this writer holds receipts of, from both servers of its profile, oldest
/// first.
pub fn list_own(
    profile: &Profile,
    source: Option<&Label>,
) -> Result<Vec<SnapshotSummary>, ClientError> {
    let mut kept = receipts::list(profile, source)?;
    if let Some(second) = standby::second_of(profile)? {
        kept.extend(receipts::list(&second, source)?);
        kept.sort_by_key(|committed| committed.committed_ms);
    }
    Ok(kept.into_iter().map(SnapshotSummary::of_receipt).collect())
}

/// Finds a snapshot by `latest`, `SOURCE`, `SOURCE@latest`, its id, or the start of its id.
pub async fn find(access: &ReadAccess, name: &str) -> Result<SnapshotSummary, ClientError> {
    let source = match name.strip_suffix("@latest") {
        Some(source) => Some(parse_source(source)?),
        None => None,
    };
    let rows = list(access, source.as_ref()).await?;
    if name == "latest" || source.is_some() {
        return rows.into_iter().next_back().ok_or_else(|| none_found(name));
    }
    find_among(rows, name)
}

/// What is known of a snapshot; with an identity, its private part too.
pub async fn show(
    access: &ReadAccess,
    name: &str,
    unverified: bool,
) -> Result<SnapshotDetails, ClientError> {
    let summary = find(access, name).await?;
    let rows = list_rows(access, Some(&summary.source)).await?;
    let row = rows.into_iter().find(|row| row.record == summary.snapshot);
    let row = row.ok_or_else(|| none_found(name))?;
    let body = RecordBody::decode(&row.body.0)?;
    let mut sealed_fields = None;
    if !access.identities.is_empty() {
        let opened = access.open_record(summary.snapshot, unverified).await?;
        if opened.record.body != body {
            return Err(ClientError::Untrusted(
                "the server lists another record than it has: tell whoever runs it".into(),
            ));
        }
        let private = opened.key_block.private;
        sealed_fields = Some(SealedFields {
            host: private.host,
            command: private.command,
            paths: private.paths,
            exit_code: private.exit_code,
            standard_error: String::from_utf8_lossy(&private.standard_error).into_owned(),
            plaintext_bytes: private.plaintext_bytes,
            tags: private.tags,
            is_verified: opened.is_verified,
        });
    }
    Ok(SnapshotDetails { summary, root: body.root, previous: body.previous, sealed_fields })
}

/// Forgets a snapshot whose lock has ended.
pub async fn forget(access: &ReadAccess, name: &str) -> Result<Forgotten, ClientError> {
    let summary = find(access, name).await?;
    let route = Route::Forget(access.namespace, summary.snapshot);
    let answer = access.client.request(&route, "", Body::empty()).await?;
    parse_json(&route, &answer)
}

/// Whether a kit still opens the newest snapshot: chain, key block, root and catalogue.
pub async fn check_kit(access: &ReadAccess) -> Result<KitCheck, ClientError> {
    debug_assert!(access.freshness == Freshness::KitFloor, "this is about kits");
    let newest = find(access, "latest").await?;
    let opened = access.open_record(newest.snapshot, false).await?;
    OpenTree::open(access.fetcher(&opened), opened.level(), opened.root()).await?;
    Ok(KitCheck {
        snapshot: newest.snapshot,
        source: newest.source,
        committed_ms: newest.committed_ms,
        descriptor_version: access.descriptor.as_ref().map(|known| known.contents().version),
    })
}

impl SnapshotSummary {
    fn of_row(row: SnapshotRow) -> Result<Self, ClientError> {
        let body = RecordBody::decode(&row.body.0)?;
        Ok(Self::of_body(row.record, body, row.committed_ms, &row.lock))
    }

    fn of_receipt(kept: Committed) -> Self {
        Self::of_body(kept.record, kept.body, kept.committed_ms, &kept.lock)
    }

    fn of_body(snapshot: RecordDigest, body: RecordBody, committed_ms: u64, lock: &Lock) -> Self {
        Self {
            snapshot,
            source: body.source,
            sequence: body.sequence,
            principal: body.principal,
            committed_ms,
            client_time_ms: body.client_time_ms,
            padded_plaintext_bytes: body.padded_plaintext_bytes,
            sealed_bytes: body.totals.sealed_bytes,
            chunk_count: body.totals.chunk_count,
            mode: lock.mode,
            locked_until_seconds: end_of(lock),
            is_held: lock.is_held,
            is_complete: body.complete,
        }
    }
}

/// Rows of the server's list, oldest first.
pub async fn list_rows(
    access: &ReadAccess,
    source: Option<&Label>,
) -> Result<Vec<SnapshotRow>, ClientError> {
    let route = Route::Snapshots(access.namespace);
    let (mut rows, mut after) = (Vec::new(), 0);
    loop {
        let mut query = format!("after={after}");
        if let Some(source) = source {
            query.push_str(&format!("&source={source}"));
        }
        let page: SnapshotPage = access.client.json(&route, &query, None::<&()>).await?;
        rows.extend(page.rows);
        match page.next_after {
            Some(next) if next > after => after = next,
            Some(_) => return Err(ClientError::Protocol("a list that goes round".into())),
            None => return Ok(rows),
        }
    }
}

/// The newest of a source of that name, else the one whose id starts so.
fn find_among(rows: Vec<SnapshotSummary>, name: &str) -> Result<SnapshotSummary, ClientError> {
    if let Some(newest) = rows.iter().rev().find(|row| row.source.as_str() == name) {
        return Ok(newest.clone());
    }
    let is_prefix = (PREFIX_MIN_DIGITS..=64).contains(&name.len());
    let matching = |row: &&SnapshotSummary| row.snapshot.to_string().starts_with(name);
    let mut found = rows.iter().filter(|row| is_prefix && matching(row));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(_), Some(_)) => Err(ClientError::Usage(format!(
            "{name} is the start of more than one snapshot's id: give more digits"
        ))),
        (None, _) => Err(none_found(name)),
    }
}

fn parse_source(text: &str) -> Result<Label, ClientError> {
    text.parse().map_err(|error| ClientError::Usage(format!("source {text:?}: {error}")))
}

fn none_found(name: &str) -> ClientError {
    ClientError::Usage(format!(
        "no snapshot {name}: see `strongroom list`, and name one by SOURCE, SOURCE@latest, latest, \
         or at least {PREFIX_MIN_DIGITS} digits of its id"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(byte: u8, source: &str) -> SnapshotSummary {
        SnapshotSummary {
            snapshot: RecordDigest([byte; 32]),
            source: source.parse().unwrap(),
            sequence: u64::from(byte),
            principal: PrincipalId([0; 16]),
            committed_ms: 0,
            client_time_ms: 0,
            padded_plaintext_bytes: 0,
            sealed_bytes: 0,
            chunk_count: 0,
            mode: RetentionMode::Compliance,
            locked_until_seconds: Some(0),
            is_held: false,
            is_complete: true,
        }
    }

    #[test]
    fn sources_and_prefixes_find_one_snapshot() {
        let mut twin = summary(0xab, "mail");
        twin.snapshot.0[31] = 0;
        let rows = vec![summary(1, "erp"), summary(2, "erp"), summary(0xab, "web"), twin];
        let find = |name: &str| find_among(rows.clone(), name).map(|row| row.sequence).ok();
        assert_eq!(find("erp"), Some(2), "the newest");
        assert_eq!(find("0101"), Some(1));
        assert_eq!(find(&"02".repeat(32)), Some(2));
        assert_eq!(find("010"), None, "too short");
        assert_eq!(find("abab"), None, "two of them");
        assert_eq!(find("nothing"), None);
    }
}
