//! From a record back to the dump or the files: restore and verify.
//!
//! 1. Verify the chain down to the key block (`trust`).
//! 2. Open the root; read and check the catalogue (`stream`).
//! 3. A tree, or more than one file of it, goes its own way (`files::restore`). One file or stream:
//!    fetch the data stream's envelopes, some requests ahead; open them on all cores; write them
//!    in order to a temporary file in the target's folder. *Crash: a stray temporary file.*
//! 4. fsync, set mode and time, rename, fsync the folder. *Crash: the whole file, or none.*
//!
//! A chunk's bytes are written after all its checks and after everything before them was written.
//! Verify is the same walk with a sink that forgets, over all chunks or a random share of them.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use strongroom_protocol::catalogue::Entry;
use strongroom_protocol::id::{Label, RecordDigest};
use strongroom_protocol::record::Totals;

use crate::clock::Moment;
use crate::error::ClientError;
use crate::fetch::sum;
use crate::files::restore::{TreeRestoreOptions, TreeRestored, restore_tree};
use crate::files::select::{only_file, range_of};
use crate::landing::{Landing, Target};
use crate::parts::PART_WORD;
use crate::progress::Monitor;
use crate::stream::{OpenTree, Part};
use crate::trust::{Freshness, ReadAccess};
use crate::unsealer::Sink;

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Where to.
    pub target: Target,
    /// Replace a file that is there.
    pub overwrite: bool,
    /// Go on where the chain of trust is broken.
    pub unverified: bool,
    /// Bytes of the only file or stream that is restored; all of it where nothing is said.
    pub range: Option<Range<u64>>,
    /// What of a tree, and how.
    pub tree: TreeRestoreOptions,
}

impl RestoreOptions {
    /// All of a snapshot to `target`, verified, and nothing replaced.
    pub fn to(target: Target) -> Self {
        let tree = TreeRestoreOptions::default();
        Self { target, overwrite: false, unverified: false, range: None, tree }
    }
}

/// What came of a restore; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreSummary {
    /// The snapshot.
    pub snapshot: RecordDigest,
    /// What was backed up.
    pub source: Label,
    /// Where it is now; nothing for standard output.
    pub path: Option<PathBuf>,
    /// Bytes of the dump.
    pub plaintext_bytes: u64,
    /// Chunks that were opened.
    pub chunk_count: u64,
    /// Bytes of envelopes that were fetched.
    pub fetched_sealed_bytes: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Every link of the chain of trust held.
    pub is_verified: bool,
    /// The namespace's state is known to be fresh up to the kit's floor only.
    pub fresh_to_kit_floor_only: bool,
    /// It came from a replica that the descriptor does not name: nothing proves how new it is.
    pub is_from_replica: bool,
    /// Files of a tree; nothing for a single file or stream.
    pub tree: Option<TreeRestored>,
}

impl RestoreSummary {
    /// Everything is as it was when it was backed up.
    pub fn is_complete(&self) -> bool {
        self.tree.as_ref().is_none_or(|tree| tree.problem_count == 0)
    }
}

/// What came of a verify; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifySummary {
    /// The snapshot.
    pub snapshot: RecordDigest,
    /// What was backed up.
    pub source: Label,
    /// Share of the chunks that was to be opened, in percent.
    pub sample_percent: f64,
    /// Chunks that were opened, the catalogue's included.
    pub verified_chunk_count: u64,
    /// Chunks of the snapshot.
    pub chunk_count: u64,
    /// Bytes of plaintext that were opened.
    pub verified_bytes: u64,
    /// Bytes of envelopes that were fetched.
    pub fetched_sealed_bytes: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Every link of the chain of trust held.
    pub is_verified: bool,
}

/// Restores a snapshot.
pub async fn restore(
    access: &ReadAccess,
    snapshot: RecordDigest,
    options: &RestoreOptions,
    monitor: &Monitor,
) -> Result<RestoreSummary, ClientError> {
    let since = Moment::now();
    let opened = access.open_record(snapshot, options.unverified).await?;
    let tree = OpenTree::open(access.fetcher(&opened), opened.level(), opened.root()).await?;
    let place = Place {
        snapshot,
        source: &opened.record.body.source,
        is_set: opened.key_block.private.command.first().is_some_and(|word| word == PART_WORD),
    };
    let restored = restore_opened(&tree, &place, options, monitor);
    let restored = Box::pin(restored).await?;
    let totals = sum(tree.totals, restored.totals);
    let body = &opened.record.body;
    if restored.is_whole && totals != body.totals {
        tracing::warn!("the record's totals differ from its tree: the writer was broken");
    }
    Ok(RestoreSummary {
        snapshot,
        source: body.source.clone(),
        path: restored.path,
        plaintext_bytes: restored.bytes,
        chunk_count: totals.chunk_count,
        fetched_sealed_bytes: totals.sealed_bytes,
        elapsed_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        is_verified: opened.is_verified,
        fresh_to_kit_floor_only: access.freshness == Freshness::KitFloor,
        is_from_replica: access.freshness == Freshness::Replica,
        tree: restored.tree,
    })
}

/// What was written, and where.
struct Restored {
    path: Option<PathBuf>,
    bytes: u64,
    totals: Totals,
    /// Every chunk of the snapshot was read.
    is_whole: bool,
    tree: Option<TreeRestored>,
}

/// What of a record says how its tree is restored.
struct Place<'a> {
    snapshot: RecordDigest,
    source: &'a Label,
    /// It has parts.
    is_set: bool,
}

async fn restore_opened(
    tree: &OpenTree,
    place: &Place<'_>,
    options: &RestoreOptions,
    monitor: &Monitor,
) -> Result<Restored, ClientError> {
    let Place { snapshot, source, is_set } = *place;
    if !tree.is_tree {
        if options.tree.selection.only().is_some() {
            return Err(ClientError::Usage(
                "the snapshot is one file or stream: leave the path away".into(),
            ));
        }
        let Some(entry) = tree.catalogue.entries().next_entry()? else {
            return Err(ClientError::Bug("a catalogue that was checked is empty".into()));
        };
        return match &options.range {
            None => restore_file(tree, &entry, Part::All, source, options, monitor).await,
            Some(range) => {
                let piece = piece_of(entry, range)?;
                restore_file(tree, &piece, only(&piece), source, options, monitor).await
            }
        };
    }
    if let Some(mut entry) = only_file(&tree.catalogue, &options.tree.selection, is_set)? {
        if let Some(range) = &options.range {
            entry = piece_of(entry, range)?;
        }
        return restore_file(tree, &entry, only(&entry), source, options, monitor).await;
    }
    if options.range.is_some() {
        return Err(ClientError::Usage("--range is of one file: name it".into()));
    }
    let Target::Path(folder) = &options.target else {
        return Err(ClientError::Usage(
            "only one file fits into a pipe: name a folder with --to, or one file of the snapshot"
                .into(),
        ));
    };
    let mut tree_options = options.tree.clone();
    tree_options.overwrite = options.overwrite;
    let outcome = restore_tree(tree, snapshot, folder, &tree_options, monitor).await?;
    Ok(Restored {
        path: Some(folder.clone()),
        bytes: outcome.data_bytes,
        totals: outcome.totals,
        is_whole: false,
        tree: Some(outcome.restored),
    })
}

/// A file of these bytes of another.
fn piece_of(entry: Entry, range: &Range<u64>) -> Result<Entry, ClientError> {
    if !entry.holes.is_empty() {
        return Err(ClientError::Usage("the file has holes: restore all of it".into()));
    }
    if range.end > entry.data_bytes {
        let bytes = entry.data_bytes;
        return Err(ClientError::Usage(format!("the range ends beyond the file's {bytes} bytes")));
    }
    let length = range.end.saturating_sub(range.start);
    let data_offset = entry.data_offset.saturating_add(range.start);
    Ok(Entry { data_offset, data_bytes: length, size_bytes: length, ..entry })
}

/// The chunks of one file.
fn only(entry: &Entry) -> Part {
    let range = Some(range_of(entry)).filter(|range| !range.is_empty());
    Part::Ranges { ranges: range.into_iter().collect(), has: None }
}

async fn restore_file(
    tree: &OpenTree,
    entry: &Entry,
    part: Part,
    source: &Label,
    options: &RestoreOptions,
    monitor: &Monitor,
) -> Result<Restored, ClientError> {
    let is_whole = matches!(part, Part::All);
    monitor.set_total(entry.data_bytes);
    let (mut landing, sink) = Landing::prepare(&options.target, options.overwrite, entry, source)?;
    let read = tree.read(sink, part, monitor).await?;
    if is_whole && read.bytes != entry.data_bytes {
        return Err(ClientError::Untrusted(format!(
            "the data is {} bytes, but the catalogue says {}: the writer was broken",
            read.bytes, entry.data_bytes
        )));
    }
    let path = landing.finish(entry)?;
    let bytes = entry.size_bytes;
    Ok(Restored { path, bytes, totals: read.totals, is_whole, tree: None })
}

/// Proves that a snapshot restores, without writing it. `sample_percent` of 100 opens all chunks.
pub async fn verify(
    access: &ReadAccess,
    snapshot: RecordDigest,
    sample_percent: f64,
    unverified: bool,
    monitor: &Monitor,
) -> Result<VerifySummary, ClientError> {
    let since = Moment::now();
    let opened = access.open_record(snapshot, unverified).await?;
    let tree = OpenTree::open(access.fetcher(&opened), opened.level(), opened.root()).await?;
    monitor.set_total(tree.data.plaintext_bytes);
    let is_whole = sample_percent >= 100.0;
    let part = if is_whole { Part::All } else { Part::Sample(sample_percent) };
    let read = tree.read(Box::new(Nowhere), part, monitor).await?;
    let body = &opened.record.body;
    let totals = sum(tree.totals, read.totals);
    if is_whole && totals != body.totals {
        return Err(ClientError::Untrusted(
            "the record's totals differ from its tree: the writer was broken; the data is whole"
                .into(),
        ));
    }
    Ok(VerifySummary {
        snapshot,
        source: body.source.clone(),
        sample_percent: sample_percent.min(100.0),
        verified_chunk_count: totals.chunk_count,
        chunk_count: body.totals.chunk_count,
        verified_bytes: read.bytes,
        fetched_sealed_bytes: totals.sealed_bytes,
        elapsed_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        is_verified: opened.is_verified,
    })
}

/// Bytes that were only to be checked.
struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
