//! Reading an export: where everything is, and what is wrong with a file that is not as it should
//! be.
//!
//! Opening it checks that no file is missing, cut off or too much, and that the entries are those
//! that the checkpoint signs. Items are compared with their digests by whoever takes them.
//!
//! Memory: tables of the packs that were asked for last, at most [`TABLES_MAX`] of some 4 MB,
//! chains of descriptors of 32 MB encoded, and 32 bytes for each 256 entries of the ledger. What is
//! in none of those tables is looked for in all packs, for all digests of a question at once; a
//! question goes in the order of the export, so that is rare.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::id::{NamespaceId, PublicKey, RecordDigest, SealedDigest};
use strongroom_protocol::limits::SEED_LEDGER_FILE_ENTRIES;
use strongroom_protocol::merkle::{
    Frontier, Hash, SubtreeHashes, consistency_proof, leaf_hash, node_hash,
};
use strongroom_protocol::seed::{KIND_RECORD, Manifest, PACK_HEAD_BYTES, SeedNamespace};
use strongroom_protocol::tile::{TILE_HEIGHT, TILE_WIDTH};

use super::chains::{self, Chain};
use super::{Use, bad, descriptor_file, ledger_file, lock_folder, manifest_file, names_in, pack};
use crate::durable;
use crate::error::ServerError;

/// Tables that are kept.
const TABLES_MAX: usize = 8;
/// Neighbours in a pack are read together up to so many bytes.
const RUN_BYTES: u64 = 2 << 20;

/// An export that was opened. Nobody can write to it while it is.
pub struct SeedFolder {
    folder: PathBuf,
    manifest: Manifest,
    checkpoint: Checkpoint,
    /// Hashes of whole bundles of entries, and the entries after them.
    bundles: Vec<Hash>,
    rest: Vec<Hash>,
    tables: Mutex<Tables>,
    chains: HashMap<NamespaceId, Chain>,
    _lock: File,
}

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pack: usize,
    offset: u64,
    length: u32,
    /// Level of an envelope, or [`KIND_RECORD`].
    pub kind: u8,
}

impl Place {
    /// Length of the item.
    pub fn bytes(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }
}

type Table = HashMap<(NamespaceId, [u8; 32]), Place>;

#[derive(Default)]
struct Tables {
    /// The one that was asked last comes first.
    recent: VecDeque<(usize, Arc<Table>)>,
}

impl SeedFolder {
    /// Opens an export.
    pub fn open(folder: &Path) -> Result<Self, ServerError> {
        let path = manifest_file(folder);
        if !path.exists() {
            return Err(bad(&path, "no such file; the export was not finished: run it again"));
        }
        let lock = lock_folder(folder, Use::Reading)?;
        let manifest = Manifest::decode(&durable::read(&path)?).map_err(|error| {
            bad(&path, format!("{error}; copy it again from where it was exported to"))
        })?;
        let checkpoint = Checkpoint::verify(&manifest.checkpoint, &[manifest.ledger_key])
            .map_err(|error| bad(&path, error))?;
        let mut seed = Self {
            folder: folder.to_path_buf(),
            manifest,
            checkpoint,
            bundles: Vec::new(),
            rest: Vec::new(),
            tables: Mutex::default(),
            chains: HashMap::new(),
            _lock: lock,
        };
        seed.check_files()?;
        seed.chains = chains::read_all(&seed.folder, &seed.manifest)?;
        seed.read_ledger()?;
        Ok(seed)
    }

    /// The ledger key of the server that made it.
    pub fn ledger_key(&self) -> PublicKey {
        self.manifest.ledger_key
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The head of the ledger up to which all is here.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// A namespace that it holds.
    pub fn namespace(&self, id: &NamespaceId) -> Option<&SeedNamespace> {
        let namespaces = &self.manifest.namespaces;
        let at = namespaces.binary_search_by(|known| known.namespace.cmp(id)).ok()?;
        namespaces.get(at)
    }

    /// All descriptors of a namespace that it holds, from the first to the one that the manifest
    /// names; none, if it does not hold the namespace.
    pub fn descriptors(&self, id: &NamespaceId) -> Result<Chain, ServerError> {
        let Some(known) = self.namespace(id) else { return Ok(Arc::new([])) };
        match self.chains.get(id) {
            Some(chain) => Ok(chain.clone()),
            None => chains::read(&self.folder, known),
        }
    }

    /// Root of the first `size` entries.
    pub fn root_at(&self, size: u64) -> Result<Hash, ServerError> {
        strongroom_protocol::merkle::root(self, size)
    }

    /// The proof that the ledger of `old_size` is the beginning of that of `size`; nothing, where
    /// they go beyond the checkpoint.
    pub fn consistency(&self, old_size: u64, size: u64) -> Result<Option<Vec<Hash>>, ServerError> {
        if old_size > size || size > self.checkpoint.size {
            return Ok(None);
        }
        if old_size == 0 {
            return Ok(Some(Vec::new()));
        }
        Ok(Some(consistency_proof(self, old_size, size)?))
    }

    /// Entries from `start` on, at most `max`, and none beyond the file in which they are.
    pub fn entries(&self, start: u64, max: u64) -> Result<Vec<Vec<u8>>, ServerError> {
        let per_file = u64::from(SEED_LEDGER_FILE_ENTRIES);
        let number = start / per_file;
        let before = usize::try_from(start % per_file).unwrap_or(usize::MAX);
        let left = self.checkpoint.size.saturating_sub(start).min(max);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let path = ledger_file(&self.folder, number);
        let bytes = durable::read(&path)?;
        let mut rest = &bytes[..];
        let mut entries = Vec::new();
        while entries.len() < before.saturating_add(left) && !rest.is_empty() {
            let (entry, tail) =
                next_entry(rest).ok_or_else(|| bad(&path, "an entry is cut off"))?;
            entries.push(entry);
            rest = tail;
        }
        Ok(entries.into_iter().skip(before).map(<[u8]>::to_vec).collect())
    }

    /// Where the envelopes of a namespace stand.
    pub fn locate(
        &self,
        namespace: &NamespaceId,
        digests: &[SealedDigest],
    ) -> Result<Vec<Option<Place>>, ServerError> {
        let digests = digests.iter().map(|digest| digest.0);
        let places = self.find(namespace, &digests.collect::<Vec<_>>())?;
        let is_envelope = |place: &Place| place.kind != KIND_RECORD;
        Ok(places.into_iter().map(|place| place.filter(is_envelope)).collect())
    }

    /// A record; nothing, if it is not here.
    pub fn record(
        &self,
        namespace: &NamespaceId,
        digest: &RecordDigest,
    ) -> Result<Option<Bytes>, ServerError> {
        let place = self.find(namespace, &[digest.0])?.pop().flatten();
        let Some(place) = place.filter(|place| place.kind == KIND_RECORD) else { return Ok(None) };
        Ok(self.read(&[place])?.pop())
    }

    /// The items at `places`, in this order, as they stand there.
    pub fn read(&self, places: &[Place]) -> Result<Vec<Bytes>, ServerError> {
        let mut items = Vec::with_capacity(places.len());
        for run in runs(places) {
            let Some(first) = run.first() else { continue };
            let path = pack::pack_file(&self.folder, first.pack);
            let fail = |error| ServerError::file(format!("read {}", path.display()), error);
            let file = File::open(&path).map_err(fail)?;
            let bytes: usize = run.iter().map(Place::bytes).sum();
            let mut whole = BytesMut::zeroed(bytes);
            file.read_exact_at(&mut whole, first.offset).map_err(fail)?;
            items.extend(run.iter().map(|place| whole.split_to(place.bytes()).freeze()));
        }
        Ok(items)
    }

    /// What to say of an envelope that is not what its digest says.
    pub fn damaged(&self, namespace: &NamespaceId, digest: &SealedDigest) -> ServerError {
        match self.locate(namespace, &[*digest]).ok().and_then(|mut places| places.pop().flatten())
        {
            Some(place) => bad(
                &pack::pack_file(&self.folder, place.pack),
                format!("envelope {digest} is damaged; copy the pack again"),
            ),
            None => bad(&self.folder, format!("envelope {digest} is damaged")),
        }
    }

    /// Finds items in the tables at hand, then in all others.
    fn find(
        &self,
        namespace: &NamespaceId,
        digests: &[[u8; 32]],
    ) -> Result<Vec<Option<Place>>, ServerError> {
        let mut places = vec![None; digests.len()];
        let mut tables = self.tables.lock();
        let (mut at_hand, mut newest) = (HashSet::new(), 0);
        let mut lacking = digests.len();
        let mut look = |table: &Table, lacking: &mut usize| {
            let before = *lacking;
            for (place, digest) in places.iter_mut().zip(digests) {
                if place.is_none() {
                    *place = table.get(&(*namespace, *digest)).copied();
                    *lacking = lacking.saturating_sub(usize::from(place.is_some()));
                }
            }
            *lacking < before
        };
        let mut used = None;
        for (position, (number, table)) in tables.recent.iter().enumerate() {
            if position == 0 {
                newest = *number;
            }
            at_hand.insert(*number);
            if lacking > 0 && look(table, &mut lacking) {
                used = Some(position);
            }
        }
        if let Some(table) = used.and_then(|position| tables.recent.remove(position)) {
            tables.recent.push_front(table);
        }
        let count = self.manifest.packs.len();
        for number in (newest..count).chain(0..newest) {
            if lacking == 0 {
                break;
            }
            if at_hand.contains(&number) {
                continue;
            }
            let table = Arc::new(self.table(number)?);
            if look(&table, &mut lacking) {
                tables.recent.push_front((number, table));
                tables.recent.truncate(TABLES_MAX);
            }
        }
        Ok(places)
    }

    fn table(&self, number: usize) -> Result<Table, ServerError> {
        let wanted = self.manifest.packs.get(number);
        let (_, listed) = pack::open(&self.folder, number, &self.manifest.ledger_key, wanted)?;
        let (mut table, mut offset) = (Table::new(), PACK_HEAD_BYTES as u64);
        for item in listed.items {
            let which = usize::try_from(item.namespace).ok();
            let namespace = which.and_then(|which| listed.namespaces.get(which));
            let place = Place { pack: number, offset, length: item.length, kind: item.kind };
            offset = offset.saturating_add(u64::from(item.length));
            if let Some(namespace) = namespace {
                table.insert((*namespace, item.digest), place);
            }
        }
        Ok(table)
    }

    /// All files that the manifest needs are there, as long as they must be, and no others.
    fn check_files(&self) -> Result<(), ServerError> {
        let extra = |path: &Path| {
            bad(
                path,
                "not part of the export; if an export was interrupted, run it again, else remove \
                 the file",
            )
        };
        for name in names_in(&self.folder)? {
            if !["manifest", "descriptors", "ledger", "packs"].contains(&name.as_str()) {
                return Err(extra(&self.folder.join(name)));
            }
        }
        for name in names_in(&self.folder.join("packs"))? {
            let path = self.folder.join("packs").join(&name);
            let number = name.strip_suffix(".pack").and_then(|number| number.parse().ok());
            let is_listed = |number: &usize| {
                *number < self.manifest.packs.len()
                    && pack::pack_file(&self.folder, *number) == path
            };
            if number.filter(is_listed).is_none() {
                return Err(extra(&path));
            }
        }
        for (number, wanted) in self.manifest.packs.iter().enumerate() {
            let path = pack::pack_file(&self.folder, number);
            let metadata = path.metadata().map_err(|_| bad(&path, "the pack is missing"))?;
            if metadata.len() != wanted.file_bytes {
                let (found, wanted) = (metadata.len(), wanted.file_bytes);
                let message = format!("{found} bytes, but {wanted} were exported; copy it again");
                return Err(bad(&path, message));
            }
        }
        let descriptors = self.folder.join("descriptors");
        let names = names_in(&descriptors)?;
        for name in &names {
            let known = name.parse().ok().and_then(|id| self.namespace(&id));
            if known.is_none() {
                return Err(extra(&descriptors.join(name)));
            }
        }
        for namespace in &self.manifest.namespaces {
            let path = descriptor_file(&self.folder, &namespace.namespace);
            if !path.exists() {
                return Err(bad(&path, "the descriptor is missing; copy it again"));
            }
        }
        self.check_ledger_files(&extra)
    }

    fn check_ledger_files(&self, extra: &dyn Fn(&Path) -> ServerError) -> Result<(), ServerError> {
        let count = self.checkpoint.size.div_ceil(u64::from(SEED_LEDGER_FILE_ENTRIES));
        let names: HashSet<String> = names_in(&self.folder.join("ledger"))?.into_iter().collect();
        for number in 0..count {
            let path = ledger_file(&self.folder, number);
            if !names.contains(&format!("{number:08}")) {
                return Err(bad(&path, "entries of the ledger are missing; copy the file again"));
            }
        }
        for name in &names {
            if name.parse::<u64>().map_or(true, |number| number >= count) {
                return Err(extra(&self.folder.join("ledger").join(name)));
            }
        }
        Ok(())
    }

    /// Reads all entries once: they must be those that the checkpoint signs.
    fn read_ledger(&mut self) -> Result<(), ServerError> {
        let (mut tree, mut position) = (Frontier::default(), 0u64);
        while position < self.checkpoint.size {
            let entries = self.entries(position, u64::MAX)?;
            if entries.is_empty() {
                let path =
                    ledger_file(&self.folder, position / u64::from(SEED_LEDGER_FILE_ENTRIES));
                return Err(bad(&path, "entries of the ledger are missing; copy the file again"));
            }
            for entry in entries {
                let hash = leaf_hash(&entry);
                tree.push(0, hash);
                self.rest.push(hash);
                if self.rest.len() == usize::from(TILE_WIDTH) {
                    let bundle = std::mem::take(&mut self.rest);
                    self.bundles.extend(join(bundle));
                }
                position = position.saturating_add(1);
            }
        }
        if tree.root() != self.checkpoint.root {
            return Err(bad(
                &self.folder.join("ledger"),
                "the entries are not those that the checkpoint in the manifest signs; copy them \
                 again",
            ));
        }
        Ok(())
    }
}

impl SubtreeHashes for SeedFolder {
    type Error = ServerError;

    fn complete(&self, height: u32, index: u64) -> Result<Hash, ServerError> {
        let lacks = || ServerError::Bug("the export lacks a hash of its ledger".into());
        if height >= TILE_HEIGHT {
            let height = height.saturating_sub(TILE_HEIGHT);
            let first = usize::try_from(index << height).map_err(|_| lacks())?;
            let bundles = self.bundles.get(first..).unwrap_or_default();
            let bundles = bundles.get(..1usize << height).ok_or_else(lacks)?;
            return join(bundles.to_vec()).ok_or_else(lacks);
        }
        let (first, count) = (index << height, 1u64 << height);
        let width = u64::from(TILE_WIDTH);
        let in_rest = u64::try_from(self.bundles.len()).unwrap_or(u64::MAX).saturating_mul(width);
        let hashes = match first.checked_sub(in_rest).map(usize::try_from) {
            Some(first) => {
                let first = first.map_err(|_| lacks())?;
                self.rest.get(first..).unwrap_or_default().to_vec()
            }
            None => self.entries(first, count)?.iter().map(|entry| leaf_hash(entry)).collect(),
        };
        let count = usize::try_from(count).map_err(|_| lacks())?;
        join(hashes.get(..count).ok_or_else(lacks)?.to_vec()).ok_or_else(lacks)
    }
}

/// The hash above a power of two of neighbours.
fn join(mut level: Vec<Hash>) -> Option<Hash> {
    while level.len() > 1 {
        let (pairs, _) = level.as_chunks::<2>();
        level = pairs.iter().map(|[left, right]| node_hash(left, right)).collect();
    }
    level.pop()
}

fn next_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// Neighbours in one pack, together.
fn runs(places: &[Place]) -> Vec<&[Place]> {
    let mut bytes = 0u64;
    let follows = |place: &Place, next: &Place| {
        bytes = bytes.saturating_add(u64::from(place.length));
        let end = place.offset.saturating_add(u64::from(place.length));
        let is_one = next.pack == place.pack && next.offset == end && bytes < RUN_BYTES;
        if !is_one {
            bytes = 0;
        }
        is_one
    };
    places.chunk_by(follows).collect()
}
