//! Fills a folder with what this server has, or adds what is new to one that it filled before.
//!
//! 1. An entry in the ledger, before anything is read.
//! 2. The packs that are there, whole ones of an export that was killed included: what they hold is
//!    marked, by its place in the store.
//! 3. The head of the ledger. For each snapshot that it covers: what is not marked of its tree,
//!    children first, then its record. Each envelope is compared with its digest.
//! 4. If a snapshot was forgotten meanwhile, 3 again: the head must cover that too.
//! 5. Descriptors, entries up to the head, and last the manifest. *A crash before it leaves packs
//!    that the next export goes on with; nobody can import until then.*
//!
//! A snapshot that cannot be read whole here is left out and named; all others are exported.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::codec::Writer;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{
    Label, NamespaceId, PrincipalId, PublicKey, RecordDigest, SealedDigest,
};
use strongroom_protocol::limits::{PRIMARY_FILTER_MAX, SEED_LEDGER_FILE_ENTRIES};
use strongroom_protocol::seed::{KIND_RECORD, Manifest, PackItem, SeedNamespace};
use strongroom_protocol::tile::push_entry;

use super::pack::{self, PackWriter};
use super::walk::Walk;
use super::{
    DESCRIPTORS_MAGIC, Use, bad, descriptor_file, ledger_file, lock_folder, manifest_file, names_in,
};
use crate::durable;
use crate::error::ServerError;
use crate::registry::Namespace;
use crate::repository::Repository;
use crate::rows::{SeenRow, SnapshotRow};
use crate::stop::Stop;
use crate::store::schema::Family;

/// Snapshots that are listed at once.
const PAGE: usize = 64;
/// Digests that are looked up at once.
const LOOKUP_BATCH: usize = 8192;
/// Rounds until no snapshot is forgotten during one.
const ROUNDS_MAX: u32 = 8;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Into which folder.
    pub folder: &'a Path,
    /// Which namespaces; all, where it is empty.
    pub only: Vec<Label>,
    /// Where a pack ends.
    pub pack_bytes: u64,
}

/// What an export did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportReport {
    /// The ledger key of this server, which the other one must know.
    pub ledger_key: PublicKey,
    /// Entries of the ledger up to which all is in the folder.
    pub ledger_size: u64,
    /// Snapshots that were added.
    pub snapshots: u64,
    /// Bytes of envelopes and records that were added.
    pub bytes: u64,
    /// Packs in the folder.
    pub packs: u64,
    /// Snapshots that could not be read whole, and why.
    pub left_out: Vec<String>,
}

/// Exports; blocks until it is done, or `stop` is given.
pub fn export(
    repository: &Repository,
    wanted: Wanted<'_>,
    stop: &Stop,
) -> Result<ExportReport, ServerError> {
    let mut only = wanted.only;
    only.sort();
    only.dedup();
    if u32::try_from(only.len()).map_or(true, |count| count > PRIMARY_FILTER_MAX) {
        let message = format!("--namespace takes at most {PRIMARY_FILTER_MAX} names");
        return Err(ServerError::Operator(message));
    }
    let namespaces = namespaces(repository, &only)?;
    durable::make_folder(wanted.folder)?;
    let _lock = lock_folder(wanted.folder, Use::Writing)?;
    let ledger_key = repository.keys().ledger_public();
    let known = known_manifest(wanted.folder, repository, &only)?;
    enter(repository, &namespaces)?;
    for folder in ["packs", "ledger", "descriptors"] {
        durable::make_folder(&wanted.folder.join(folder))?;
    }
    let packs = adopt(wanted.folder, ledger_key, known.as_ref(), wanted.pack_bytes)?;
    let mut export = Export {
        repository,
        namespaces,
        records: RoaringTreemap::new(),
        walk: Walk { repository, stop, packs, envelopes: RoaringTreemap::new() },
        added: 0,
        left_out: BTreeMap::new(),
    };
    export.mark_packs(wanted.folder)?;
    let (size, checkpoint) = export.rounds()?;
    export.write_descriptors(wanted.folder)?;
    export.write_entries(wanted.folder, size)?;
    let manifest = Manifest {
        ledger_key,
        only,
        namespaces: export.listed_namespaces(),
        packs: export.walk.packs.packs().to_vec(),
        checkpoint,
    };
    durable::write(&manifest_file(wanted.folder), &manifest.encode())?;
    let left_out = export.left_out.iter();
    Ok(ExportReport {
        ledger_key,
        ledger_size: size,
        snapshots: export.added,
        bytes: export.walk.packs.written_bytes(),
        packs: u64::try_from(manifest.packs.len()).unwrap_or(u64::MAX),
        left_out: left_out.map(|(record, why)| format!("snapshot {record}: {why}")).collect(),
    })
}

/// An export under way.
struct Export<'a> {
    repository: &'a Repository,
    namespaces: Vec<Arc<Namespace>>,
    /// Records that are in packs, by the numbers of their commits.
    records: RoaringTreemap,
    walk: Walk<'a>,
    added: u64,
    left_out: BTreeMap<RecordDigest, String>,
}

impl Export<'_> {
    /// Marks what the packs hold.
    fn mark_packs(&mut self, folder: &Path) -> Result<(), ServerError> {
        let ledger_key = self.repository.keys().ledger_public();
        for (number, wanted) in self.walk.packs.packs().to_vec().iter().enumerate() {
            self.walk.breathe()?;
            let (_, table) = pack::open(folder, number, &ledger_key, Some(wanted))?;
            for (which, id) in table.namespaces.iter().enumerate() {
                let Some(namespace) = self.repository.registry().namespace(id) else { continue };
                let of_it = |item: &&PackItem| {
                    usize::try_from(item.namespace).is_ok_and(|item| item == which)
                };
                let (records, envelopes): (Vec<&PackItem>, Vec<&PackItem>) =
                    table.items.iter().filter(of_it).partition(|item| item.kind == KIND_RECORD);
                for item in records {
                    let key = SeenRow::key(namespace.number, &RecordDigest(item.digest));
                    if let Some(seen) = self.repository.store().get(Family::Seen, &key)? {
                        self.records.insert(SeenRow::decode(&seen)?.commit);
                    }
                }
                let digests: Vec<_> =
                    envelopes.into_iter().map(|item| SealedDigest(item.digest)).collect();
                for digests in digests.chunks(LOOKUP_BATCH) {
                    let rows = self.repository.store().lookup(namespace.number, digests)?;
                    self.walk.envelopes.extend(rows.iter().flatten().map(|row| row.slot.number()));
                }
            }
        }
        Ok(())
    }

    /// Writes snapshots until a head covers all that happened to them; gives its size and note.
    fn rounds(&mut self) -> Result<(u64, String), ServerError> {
        for _ in 0..ROUNDS_MAX {
            let head = self.repository.ledger().head();
            self.left_out.clear();
            for namespace in self.namespaces.clone() {
                self.write_snapshots(&namespace, head.size)?;
            }
            self.walk.packs.finish()?;
            let end = self.repository.ledger().head().size;
            if !self.was_forgotten(head.size, end)? {
                return Ok((head.size, head.note));
            }
        }
        Err(ServerError::Operator(
            "snapshots are forgotten faster than they are exported; run the export again".into(),
        ))
    }

    /// Whether a snapshot was forgotten, or a namespace dropped, between two sizes of the ledger.
    fn was_forgotten(&self, start: u64, end: u64) -> Result<bool, ServerError> {
        for leaf in start..end {
            let event = Entry::decode(&self.repository.ledger().entry(leaf)?)?.event;
            if matches!(event, Event::Forgotten { .. } | Event::NamespaceDropped) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes the snapshots of a namespace that a ledger of `size` entries has, oldest first.
    fn write_snapshots(&mut self, namespace: &Namespace, size: u64) -> Result<(), ServerError> {
        let mut after = 0u64;
        loop {
            let page = page(self.repository, namespace.number, after)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = *last;
            for (commit, row) in page {
                self.walk.breathe()?;
                if row.leaf_index >= size || self.records.contains(commit) {
                    continue;
                }
                match self.walk.write_snapshot(namespace, &row) {
                    Ok(()) => {
                        self.records.insert(commit);
                        self.added = self.added.saturating_add(1);
                    }
                    Err(ServerError::Store(error)) if error.is_of_one_envelope() => {
                        self.left_out.insert(row.record_digest, error.to_string());
                    }
                    Err(ServerError::Row(error)) => {
                        self.left_out.insert(row.record_digest, error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn listed_namespaces(&self) -> Vec<SeedNamespace> {
        let listed = |namespace: &Arc<Namespace>| SeedNamespace {
            namespace: namespace.row.namespace,
            name: namespace.row.name.clone(),
            descriptor: namespace.descriptor.digest(),
        };
        self.namespaces.iter().map(listed).collect()
    }

    /// Writes descriptors, and removes those of namespaces that were dropped since.
    fn write_descriptors(&self, folder: &Path) -> Result<(), ServerError> {
        for namespace in &self.namespaces {
            let id = namespace.row.namespace;
            let mut versions = Writer::with_magic(DESCRIPTORS_MAGIC);
            for version in 1..=namespace.descriptor.contents().version {
                versions.bytes(&self.repository.descriptor(&id, Some(version))?);
            }
            durable::write(&descriptor_file(folder, &id), &versions.finish())?;
        }
        let is_listed = |name: &String| {
            self.namespaces.iter().any(|namespace| namespace.row.namespace.to_string() == *name)
        };
        let descriptors = folder.join("descriptors");
        for name in names_in(&descriptors)?.iter().filter(|name| !is_listed(name)) {
            let path = descriptors.join(name);
            std::fs::remove_file(&path)
                .map_err(|error| ServerError::file(format!("remove {}", path.display()), error))?;
        }
        Ok(())
    }

    /// Writes the entries of a ledger of `size`; files that are full stay as they are.
    fn write_entries(&self, folder: &Path, size: u64) -> Result<(), ServerError> {
        let per_file = u64::from(SEED_LEDGER_FILE_ENTRIES);
        let full_before = names_in(&folder.join("ledger"))?.len();
        let full_before = u64::try_from(full_before).unwrap_or(0).saturating_sub(1);
        for number in full_before..size.div_ceil(per_file) {
            self.walk.breathe()?;
            let start = number.saturating_mul(per_file);
            let mut bytes = Vec::new();
            for leaf in start..start.saturating_add(per_file).min(size) {
                push_entry(&mut bytes, &self.repository.ledger().entry(leaf)?)?;
            }
            durable::write(&ledger_file(folder, number), &bytes)?;
        }
        Ok(())
    }
}

/// The namespaces that are exported, by their ids.
fn namespaces(repository: &Repository, only: &[Label]) -> Result<Vec<Arc<Namespace>>, ServerError> {
    let mut namespaces = match only.is_empty() {
        true => repository.registry().namespaces(),
        false => {
            let named = |name: &Label| {
                let unknown = || ServerError::Operator(format!("no namespace is called {name}"));
                repository.registry().namespace_named(name).ok_or_else(unknown)
            };
            only.iter().map(named).collect::<Result<_, _>>()?
        }
    };
    namespaces.sort_by_key(|namespace| namespace.row.namespace);
    Ok(namespaces)
}

/// The manifest of the export that is there, if it is one of this server and of these namespaces.
fn known_manifest(
    folder: &Path,
    repository: &Repository,
    only: &[Label],
) -> Result<Option<Manifest>, ServerError> {
    let ledger_key = repository.keys().ledger_public();
    for name in names_in(folder)? {
        if !["manifest", "manifest.new", "packs", "ledger", "descriptors"].contains(&name.as_str())
        {
            return Err(bad(&folder.join(name), "not part of an export; name another folder"));
        }
    }
    let path = manifest_file(folder);
    if !path.exists() {
        return Ok(None);
    }
    let manifest = Manifest::decode(&durable::read(&path)?)
        .map_err(|error| bad(&path, format!("{error}; name another folder")))?;
    if manifest.ledger_key != ledger_key {
        return Err(bad(&path, "the export of another server; name another folder"));
    }
    let known = Checkpoint::verify(&manifest.checkpoint, &[ledger_key])
        .map_err(|error| bad(&path, error))?;
    if known.size > repository.ledger().head().size {
        return Err(bad(
            &path,
            "the ledger was longer when this was exported than it is now: this data folder was put \
             back to an older state (docs/operations.md, 9)",
        ));
    }
    if manifest.only != only {
        return Err(bad(&path, "the export has other namespaces; name another folder for these"));
    }
    Ok(Some(manifest))
}

/// Takes the packs over that are there: those of the manifest, and whole ones behind them.
fn adopt(
    folder: &Path,
    ledger_key: PublicKey,
    known: Option<&Manifest>,
    pack_bytes: u64,
) -> Result<PackWriter, ServerError> {
    let (count, others) = pack::list(folder)?;
    if let Some(name) = others.iter().find(|name| !name.ends_with(".new")) {
        let path = folder.join("packs").join(name);
        return Err(bad(&path, "not part of an export; remove it or name another folder"));
    }
    // What a killed export left half.
    for name in others {
        let path = folder.join("packs").join(name);
        std::fs::remove_file(&path)
            .map_err(|error| ServerError::file(format!("remove {}", path.display()), error))?;
    }
    let listed = known.map_or(&[][..], |manifest| &manifest.packs);
    if count < listed.len() {
        return Err(bad(&pack::pack_file(folder, count), "the pack is missing; name a new folder"));
    }
    let mut packs = Vec::with_capacity(count);
    for number in 0..count {
        packs.push(pack::open(folder, number, &ledger_key, listed.get(number))?.1.pack());
    }
    Ok(PackWriter::new(folder, ledger_key, packs, pack_bytes))
}

/// Enters that all of these namespaces are about to be read.
fn enter(repository: &Repository, namespaces: &[Arc<Namespace>]) -> Result<(), ServerError> {
    let mut ids = blake3::Hasher::new();
    for namespace in namespaces {
        ids.update(&namespace.row.namespace.0);
    }
    let event = Event::Exported {
        namespace_count: u32::try_from(namespaces.len()).unwrap_or(u32::MAX),
        namespaces: *ids.finalize().as_bytes(),
    };
    repository.writer().decide(move |decision| {
        decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
        Ok(())
    })
}

/// Some snapshots of a namespace after a commit, oldest first.
fn page(
    repository: &Repository,
    ns: u32,
    after: u64,
) -> Result<Vec<(u64, SnapshotRow)>, ServerError> {
    let start = SnapshotRow::key(ns, after.saturating_add(1));
    let (mut rows, mut failure) = (Vec::new(), None);
    repository.store().scan(
        Family::Snapshots,
        &ns.to_be_bytes(),
        Some(&start),
        &mut |key, value| {
            match SnapshotRow::commit_of(key)
                .and_then(|commit| Ok((commit, SnapshotRow::decode(value)?)))
            {
                Ok(row) => rows.push(row),
                Err(error) => failure = Some(error),
            }
            match rows.len() < PAGE && failure.is_none() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        },
    )?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(rows),
    }
}
