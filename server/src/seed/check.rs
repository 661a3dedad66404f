//! Says whether an export is whole and undamaged, without keys and without a repository.
//!
//! Every envelope is compared with its digest and with the level that it is listed at, every record
//! with its digest and its namespace's descriptor. Each snapshot that the ledger has and has not
//! forgotten must be there with its tree. What only a repository can judge, such as totals and the
//! history that was seen before, the import judges.
//!
//! Memory: 32 bytes a node and 64 a snapshot, and the children of the nodes on the way down.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::{NamespaceId, PublicKey, RecordDigest, SealedDigest};
use strongroom_protocol::record::Record;
use strongroom_protocol::seed::{KIND_RECORD, PACK_HEAD_BYTES, PackItem};

use super::folder::SeedFolder;
use super::{bad, manifest_file, pack};
use crate::error::ServerError;

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The ledger key of the server that made it.
    pub ledger_key: PublicKey,
    /// Entries of its ledger.
    pub ledger_size: u64,
    /// Namespaces.
    pub namespaces: u64,
    /// Snapshots that it has whole.
    pub snapshots: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of their items.
    pub bytes: u64,
}

/// Checks an export, which must be of the server with `ledger_key`, if one is given.
pub fn check(folder: &Path, ledger_key: Option<PublicKey>) -> Result<CheckReport, ServerError> {
    let seed = SeedFolder::open(folder)?;
    if ledger_key.is_some_and(|wanted| wanted != seed.ledger_key()) {
        let message = format!("made by the server with ledger key {}", seed.ledger_key());
        return Err(bad(&manifest_file(folder), message));
    }
    let bytes = check_packs(&seed)?;
    let wanted = snapshots_of(&seed)?;
    let mut nodes = HashSet::new();
    for (record, namespace) in &wanted {
        check_snapshot(&seed, namespace, record, &mut nodes)?;
    }
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Ok(CheckReport {
        ledger_key: seed.ledger_key(),
        ledger_size: seed.checkpoint().size,
        namespaces: count(seed.manifest().namespaces.len()),
        snapshots: count(wanted.len()),
        packs: count(seed.manifest().packs.len()),
        bytes,
    })
}

/// Reads all packs from their beginnings to their ends; gives the bytes of their items.
fn check_packs(seed: &SeedFolder) -> Result<u64, ServerError> {
    let mut sum = 0u64;
    for (number, wanted) in seed.manifest().packs.iter().enumerate() {
        let (file, table) = pack::open(seed.path(), number, &seed.ledger_key(), Some(wanted))?;
        let path = pack::pack_file(seed.path(), number);
        let mut offset = PACK_HEAD_BYTES as u64;
        for item in &table.items {
            let mut bytes = vec![0; usize::try_from(item.length).unwrap_or(0)];
            file.read_exact_at(&mut bytes, offset)
                .map_err(|error| ServerError::file(format!("read {}", path.display()), error))?;
            offset = offset.saturating_add(u64::from(item.length));
            sum = sum.saturating_add(u64::from(item.length));
            if !is_item(item, &bytes) {
                let what = if item.kind == KIND_RECORD { "record" } else { "envelope" };
                let digest = RecordDigest(item.digest);
                return Err(bad(&path, format!("{what} {digest} is damaged; copy the pack again")));
            }
        }
    }
    Ok(sum)
}

fn is_item(item: &PackItem, bytes: &[u8]) -> bool {
    if item.kind == KIND_RECORD {
        return Record::decode(bytes).is_ok_and(|record| record.digest().0 == item.digest);
    }
    let is_level = |envelope: Envelope<'_>| envelope.level == item.kind;
    SealedDigest::of(bytes).0 == item.digest && Envelope::parse(bytes).is_ok_and(is_level)
}

/// Snapshots that the ledger has committed and not forgotten, of namespaces that are here.
fn snapshots_of(seed: &SeedFolder) -> Result<HashMap<RecordDigest, NamespaceId>, ServerError> {
    let (mut snapshots, mut leaf) = (HashMap::new(), 0u64);
    while leaf < seed.checkpoint().size {
        for bytes in seed.entries(leaf, u64::MAX)? {
            let entry = Entry::decode(&bytes).map_err(|error| {
                let message = format!("entry {leaf}: {error}; it is of a newer program");
                bad(&seed.path().join("ledger"), message)
            })?;
            let is_here = seed.namespace(&entry.namespace).is_some();
            match entry.event {
                Event::Committed { record, .. } if is_here => {
                    snapshots.insert(record, entry.namespace);
                }
                Event::Forgotten { record, .. } => drop(snapshots.remove(&record)),
                _ => {}
            }
            leaf = leaf.saturating_add(1);
        }
    }
    Ok(snapshots)
}

/// The record is there and signed, and so is its tree. Nodes that were met are not met again.
fn check_snapshot(
    seed: &SeedFolder,
    namespace: &NamespaceId,
    digest: &RecordDigest,
    nodes: &mut HashSet<SealedDigest>,
) -> Result<(), ServerError> {
    let lacks = |what: &dyn std::fmt::Display| {
        bad(seed.path(), format!("snapshot {digest}: {what}; export to the folder once more"))
    };
    let bytes = seed.record(namespace, digest)?.ok_or_else(|| lacks(&"its record is not here"))?;
    let record = Record::decode(&bytes)?;
    let versions = seed.descriptors(namespace)?;
    let is_its = |one: &&VerifiedDescriptor| one.digest() == record.body.descriptor;
    let descriptor = versions.iter().find(is_its);
    let descriptor = descriptor.ok_or_else(|| lacks(&"its descriptor is not here"))?;
    if record.body.namespace != *namespace {
        return Err(lacks(&"its record is of another namespace"));
    }
    record.verify(descriptor).map_err(|error| lacks(&error))?;
    let mut waiting = vec![(record.body.root_level, record.body.root)];
    while let Some((level, digest)) = waiting.pop() {
        if !nodes.insert(digest) {
            continue;
        }
        let missing = |digest| lacks(&format!("envelope {digest} is not here at its level"));
        let place = seed.locate(namespace, &[digest])?.pop().flatten();
        let place = place.filter(|place| place.kind == level);
        let place = place.ok_or_else(|| missing(digest))?;
        let node = seed.read(&[place])?.pop().unwrap_or_default();
        let children: Vec<SealedDigest> = Envelope::parse(&node)?.children().collect();
        let below = level.saturating_sub(1);
        for (child, place) in children.iter().zip(seed.locate(namespace, &children)?) {
            if place.is_none_or(|place| place.kind != below) {
                return Err(missing(*child));
            }
            if below > 0 {
                waiting.push((below, *child));
            }
        }
    }
    Ok(())
}
