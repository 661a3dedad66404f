//! The ledger: an append-only RFC 6962 tree whose leaves are the decisions of this repository.
//!
//! Rows of family `ledger`:
//!
//! ```text
//! 'e' | index u64                 -> encoded entry
//! 't' | index u64                 -> words that the entry holds the digest of, where there are any
//! 'h' | height u8 | index u64     -> hash of a complete subtree; heights 0, 8, 16 ... only
//! ```
//!
//! Heights that are multiples of eight are the levels of C2SP `tlog-tiles`: a tile is 256
//! neighbouring hashes. [`Appender`] belongs to the writer thread: it adds leaf rows to the same
//! atomic batch as the rows that the entry is about. [`Ledger`] is shared: it proves, and holds the
//! newest signed head. A head is signed and published only after its leaves were synced, so a
//! crash never leaves a signed head that is longer than the tree on disk.
//!
//! The file `HEAD` holds a recent signed head. At open, a tree that is shorter than `HEAD`, or has
//! another root at its size, was rolled back, and is refused.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use parking_lot::RwLock;
use strongroom_protocol::checkpoint::{Checkpoint, origin_of};
use strongroom_protocol::entry::Entry;
use strongroom_protocol::id::PublicKey;
use strongroom_protocol::merkle::{
    Hash, SubtreeHashes, consistency_proof, empty_root, inclusion_proof, leaf_hash, node_hash, root,
};
use strongroom_protocol::message::{ConsistencyAnswer, HexBytes};
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::tile::{TILE_HEIGHT, TILE_WIDTH, Tile, TileContent, push_entry};

use crate::durable;
use crate::error::ServerError;
use crate::store::Store;
use crate::store::meta::MetaBatch;
use crate::store::schema::Family;

/// A published tree head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHead {
    /// Number of leaves.
    pub size: u64,
    /// Root hash.
    pub root: Hash,
    /// The signed note.
    pub note: String,
}

/// Reads and proves.
pub struct Ledger {
    store: Store,
    key: SigningKey,
    public: PublicKey,
    origin: String,
    head_file: PathBuf,
    head: RwLock<SignedHead>,
}

/// Appends; owned by the writer thread.
pub struct Appender {
    size: u64,
    /// Complete subtrees from left to right, each higher than the next.
    frontier: Vec<(u32, Hash)>,
}

impl Ledger {
    /// Opens the ledger of `folder` and checks it against `HEAD`.
    pub fn open(
        store: &Store,
        key: SigningKey,
        folder: &Path,
    ) -> Result<(Self, Appender), ServerError> {
        let size = match store.last(Family::Ledger, b"e")? {
            Some((key, _)) => index_of(&key)?.saturating_add(1),
            None => 0,
        };
        let hashes = StoredHashes(store);
        let appender = Appender { size, frontier: frontier_of(&hashes, size)? };
        let public = PublicKey(key.verifying_key().to_bytes());
        let head_file = folder.join("HEAD");
        check_against_head_file(&hashes, size, &head_file, &public)?;
        let head = SignedHead { size: 0, root: empty_root(), note: String::new() };
        let ledger = Self {
            store: store.clone(),
            key,
            public,
            origin: origin_of(&public),
            head_file,
            head: RwLock::new(head),
        };
        ledger.publish(&appender);
        Ok((ledger, appender))
    }

    /// The newest signed head.
    pub fn head(&self) -> SignedHead {
        self.head.read().clone()
    }

    /// Public half of the key that signs heads.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Signs the appender's head. Call only after a sync that covers its leaves.
    pub fn publish(&self, appender: &Appender) {
        let (size, root) = (appender.size, appender.root());
        if size == self.head.read().size && size > 0 {
            return;
        }
        let checkpoint = Checkpoint { origin: self.origin.clone(), size, root };
        *self.head.write() = SignedHead { size, root, note: checkpoint.sign(&self.key) };
    }

    /// Writes the published head to `HEAD`, durably.
    pub fn save_head(&self) -> Result<(), ServerError> {
        durable::write(&self.head_file, self.head().note.as_bytes())
    }

    /// The name of this ledger in checkpoints.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The words that an entry holds the digest of.
    pub fn statement(&self, leaf_index: u64) -> Result<Vec<u8>, ServerError> {
        let words = self.store.get(Family::Ledger, &statement_key(leaf_index))?;
        words.ok_or_else(ServerError::not_found)
    }

    /// An encoded entry.
    pub fn entry(&self, leaf_index: u64) -> Result<Vec<u8>, ServerError> {
        let entry = self.store.get(Family::Ledger, &entry_key(leaf_index))?;
        entry.ok_or_else(ServerError::not_found)
    }

    /// The proof that entry `leaf_index` is under the published head.
    pub fn receipt(&self, leaf_index: u64) -> Result<Receipt, ServerError> {
        let head = self.head();
        let entry = self.store.get(Family::Ledger, &entry_key(leaf_index))?;
        let entry = entry.filter(|_| leaf_index < head.size);
        let entry = entry.ok_or_else(|| ServerError::Bug(format!("no leaf {leaf_index}")))?;
        let proof = inclusion_proof(&StoredHashes(&self.store), leaf_index, head.size)?;
        Ok(Receipt { leaf_index, entry, proof, checkpoint: head.note })
    }

    /// A tile, if the published head covers it. What it covers never changes, so neither does a
    /// tile: a full one is the same for ever, and so is a partial one of a given width.
    pub fn tile(&self, tile: &Tile) -> Result<Vec<u8>, ServerError> {
        if !tile.is_within(self.head().size) {
            return Err(ServerError::not_found());
        }
        let first = tile.index.saturating_mul(u64::from(TILE_WIDTH));
        let (prefix, start) = match tile.content {
            TileContent::Entries => (vec![b'e'], entry_key(first)),
            TileContent::Hashes(level) => {
                let height = u32::from(level).saturating_mul(TILE_HEIGHT);
                let key = hash_key(height, first);
                (key.iter().copied().take(2).collect(), key)
            }
        };
        let (mut bytes, mut count, mut failure) = (Vec::new(), 0, None);
        self.store.scan(Family::Ledger, &prefix, Some(&start), &mut |_, value| {
            match tile.content {
                TileContent::Entries => failure = push_entry(&mut bytes, value).err(),
                TileContent::Hashes(_) => bytes.extend_from_slice(value),
            }
            count += 1;
            match count < tile.width && failure.is_none() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        if count != tile.width || failure.is_some() {
            return Err(ServerError::Bug(format!("ledger lacks rows of tile {}", tile.path())));
        }
        Ok(bytes)
    }

    /// The newest head, and the proof that the tree of `old_size` is a prefix of the one of `size`
    /// (the newest, where nothing is said). What the head does not cover is not found.
    pub fn consistency(
        &self,
        old_size: u64,
        size: Option<u64>,
    ) -> Result<ConsistencyAnswer, ServerError> {
        let head = self.head();
        let size = size.unwrap_or(head.size);
        if old_size > size || size > head.size {
            return Err(ServerError::not_found());
        }
        let mut proof = Vec::new();
        if old_size > 0 {
            proof = consistency_proof(&StoredHashes(&self.store), old_size, size)?;
        }
        Ok(ConsistencyAnswer { checkpoint: head.note, proof: HexBytes(proof.concat()) })
    }
}

impl Appender {
    /// Number of leaves, those of batches not yet written included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds an entry and its hashes to `batch`; returns the leaf's index.
    pub fn append(&mut self, batch: &mut MetaBatch, entry: &Entry) -> u64 {
        let leaf_index = self.size;
        let data = entry.encode();
        let (mut height, mut hash) = (0, leaf_hash(&data));
        batch.put(Family::Ledger, entry_key(leaf_index), data);
        batch.put(Family::Ledger, hash_key(0, leaf_index), hash);
        while let Some((_, left)) = self.frontier.pop_if(|(top, _)| *top == height) {
            hash = node_hash(&left, &hash);
            height = height.saturating_add(1);
            if height.is_multiple_of(TILE_HEIGHT) {
                batch.put(Family::Ledger, hash_key(height, leaf_index >> height), hash);
            }
        }
        self.frontier.push((height, hash));
        self.size = leaf_index.saturating_add(1);
        leaf_index
    }

    fn root(&self) -> Hash {
        let mut subtrees = self.frontier.iter().rev();
        let Some((_, last)) = subtrees.next() else { return empty_root() };
        subtrees.fold(*last, |right, (_, left)| node_hash(left, &right))
    }
}

struct StoredHashes<'a>(&'a Store);

impl SubtreeHashes for StoredHashes<'_> {
    type Error = ServerError;

    fn complete(&self, height: u32, index: u64) -> Result<Hash, ServerError> {
        let above_tile = height % TILE_HEIGHT;
        let (base, first) = (height.saturating_sub(above_tile), index << above_tile);
        let count = 1usize << above_tile;
        let mut level = Vec::with_capacity(count);
        let mut collect = |_: &[u8], value: &[u8]| {
            level.extend(Hash::try_from(value));
            if level.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let prefix = [b'h', u8::try_from(base).unwrap_or(u8::MAX)];
        self.0.scan(Family::Ledger, &prefix, Some(&hash_key(base, first)), &mut collect)?;
        if level.len() != count {
            return Err(ServerError::Bug(format!("ledger lacks hashes at height {base}")));
        }
        while level.len() > 1 {
            let (pairs, _) = level.as_chunks::<2>();
            level = pairs.iter().map(|[left, right]| node_hash(left, right)).collect();
        }
        level.pop().ok_or_else(|| ServerError::Bug("empty ledger level".into()))
    }
}

fn frontier_of(hashes: &StoredHashes<'_>, size: u64) -> Result<Vec<(u32, Hash)>, ServerError> {
    let mut frontier = Vec::new();
    let mut start = 0u64;
    for height in (0..64).rev() {
        if size & (1 << height) != 0 {
            frontier.push((height, hashes.complete(height, start >> height)?));
            start = start.saturating_add(1 << height);
        }
    }
    Ok(frontier)
}

fn check_against_head_file(
    hashes: &StoredHashes<'_>,
    size: u64,
    head_file: &Path,
    key: &PublicKey,
) -> Result<(), ServerError> {
    if !head_file.exists() {
        return Ok(());
    }
    let refuse = |problem: &str| {
        Err(ServerError::Operator(format!(
            "{}: {problem}; the data folder was rolled back or damaged: keep it as it is, and \
             restore the whole folder or go on from a replica",
            head_file.display()
        )))
    };
    let note = durable::read(head_file)?;
    let note = std::str::from_utf8(&note).unwrap_or_default();
    let Ok(head) = Checkpoint::verify(note, &[*key]) else {
        return refuse("not a head that this repository signed");
    };
    if head.size > size {
        return refuse(&format!("ledger has {size} entries, but had {} before", head.size));
    }
    if head.size > 0 && root(hashes, head.size)? != head.root {
        return refuse("ledger differs from the one that was signed");
    }
    Ok(())
}

/// Key of the words that entry `index` holds the digest of.
pub fn statement_key(index: u64) -> Vec<u8> {
    [&b"t"[..], &index.to_be_bytes()].concat()
}

fn entry_key(index: u64) -> Vec<u8> {
    [&b"e"[..], &index.to_be_bytes()].concat()
}

fn hash_key(height: u32, index: u64) -> Vec<u8> {
    let height = u8::try_from(height).unwrap_or(u8::MAX);
    [&[b'h', height][..], &index.to_be_bytes()].concat()
}

fn index_of(key: &[u8]) -> Result<u64, ServerError> {
    let bytes = key.last_chunk::<8>().ok_or_else(|| ServerError::Bug("ledger key".into()))?;
    Ok(u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_protocol::entry::Event;
    use strongroom_protocol::id::{NamespaceId, PrincipalId};
    use strongroom_protocol::merkle::{Frontier, verify_consistency};
    use strongroom_protocol::tile::{entries_of, hashes_of};

    fn entry(n: u64) -> Entry {
        Entry {
            server_time_ms: n,
            retention_time_seconds: n,
            actor: PrincipalId([1; 16]),
            namespace: NamespaceId([2; 32]),
            event: Event::Revoked { principal: PrincipalId([3; 16]) },
        }
    }

    #[test]
    fn proves_every_entry_and_survives_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::from_bytes(&[5; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let mut expected_size = 0;
        for round in [1u64, 255, 2, 300, 513] {
            let (store, _) = Store::open(folder.path(), Default::default()).unwrap();
            let (ledger, mut appender) = Ledger::open(&store, key.clone(), folder.path()).unwrap();
            assert_eq!(ledger.head().size, expected_size);
            for n in 0..round {
                let mut batch = MetaBatch::new();
                assert_eq!(appender.append(&mut batch, &entry(n)), expected_size + n);
                store.write(&batch).unwrap();
            }
            store.sync().unwrap();
            ledger.publish(&appender);
            ledger.save_head().unwrap();
            expected_size += round;
            for index in (0..expected_size).step_by(7) {
                ledger.receipt(index).unwrap().verify(&[public]).unwrap();
            }
            assert!(ledger.receipt(expected_size).is_err());
        }
    }

    /// The root of a tree of `size` as a stranger computes it: from entry bundles, and again from
    /// the tiles of hashes of each level.
    fn root_of_tiles(ledger: &Ledger, size: u64) -> Hash {
        let mut roots = Vec::new();
        for content in [TileContent::Entries, TileContent::Hashes(0), TileContent::Hashes(1)] {
            let mut tree = Frontier::default();
            let mut tiles = (0..).map_while(|index| Tile::widest(content, index, size));
            for tile in tiles.by_ref() {
                let bytes = ledger.tile(&tile).unwrap();
                match content {
                    TileContent::Hashes(level) => {
                        let height = u32::from(level) * TILE_HEIGHT;
                        let hashes = hashes_of(&bytes, tile.width).unwrap();
                        hashes.iter().for_each(|hash| tree.push(height, *hash));
                    }
                    TileContent::Entries => {
                        let entries = entries_of(&bytes, tile.width).unwrap();
                        entries.iter().for_each(|entry| tree.push(0, leaf_hash(entry)));
                    }
                }
            }
            if let (TileContent::Hashes(1), Some(rest)) =
                (content, Tile::widest(TileContent::Hashes(0), tree.size() / 256, size))
            {
                let bytes = ledger.tile(&rest).unwrap();
                let hashes = hashes_of(&bytes, rest.width).unwrap();
                hashes.iter().for_each(|hash| tree.push(0, *hash));
            }
            assert_eq!(tree.size(), size, "{content:?}");
            roots.push(tree.root());
        }
        assert!(roots.iter().all(|root| *root == roots[0]), "size {size}");
        roots[0]
    }

    #[test]
    fn tiles_of_every_size_have_the_root_of_the_tree() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path(), Default::default()).unwrap();
        let key = SigningKey::from_bytes(&[5; 32]);
        let (ledger, mut appender) = Ledger::open(&store, key, folder.path()).unwrap();
        let mut batch = MetaBatch::new();
        let mut roots = vec![empty_root()];
        for n in 0..1300 {
            appender.append(&mut batch, &entry(n));
            roots.push(appender.root());
        }
        store.write(&batch).unwrap();
        // Rows are there, but nothing is given before the head that covers them is published.
        let first = Tile { content: TileContent::Entries, index: 0, width: 1 };
        assert!(matches!(ledger.tile(&first), Err(ServerError::Peer(_))));
        store.sync().unwrap();
        ledger.publish(&appender);
        let hashes = StoredHashes(&store);
        for size in [1, 2, 3, 255, 256, 257, 511, 512, 600, 767, 768, 1023, 1024, 1299, 1300] {
            let expected = roots[usize::try_from(size).unwrap()];
            assert_eq!(root(&hashes, size).unwrap(), expected);
            assert_eq!(root_of_tiles(&ledger, size), expected);
            let answer = ledger.consistency(size, None).unwrap();
            let proof =
                hashes_of(&answer.proof.0, u16::try_from(answer.proof.0.len() / 32).unwrap());
            let (proof, newest) = (proof.unwrap(), &roots[1300]);
            verify_consistency(size, 1300, proof, &expected, newest).unwrap();
        }
        for beyond in [(5, 21), (6, 1), (5, 256)] {
            let tile = Tile { content: TileContent::Entries, index: beyond.0, width: beyond.1 };
            assert!(matches!(ledger.tile(&tile), Err(ServerError::Peer(_))), "{beyond:?}");
        }
        let second = Tile { content: TileContent::Hashes(1), index: 0, width: 6 };
        assert!(matches!(ledger.tile(&second), Err(ServerError::Peer(_))));
        assert!(ledger.consistency(0, None).unwrap().proof.0.is_empty());
        assert!(ledger.consistency(1300, None).unwrap().proof.0.is_empty());
        for (old_size, size) in [(1301, None), (3, Some(1301)), (3, Some(2))] {
            let refused = ledger.consistency(old_size, size);
            assert!(matches!(refused, Err(ServerError::Peer(_))), "{old_size} to {size:?}");
        }
    }

    #[test]
    fn refuses_a_tree_that_is_shorter_than_the_head_file() {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::from_bytes(&[5; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let (store, _) = Store::open(folder.path(), Default::default()).unwrap();
        let checkpoint = Checkpoint { origin: origin_of(&public), size: 9, root: [0; 32] };
        durable::write(&folder.path().join("HEAD"), checkpoint.sign(&key).as_bytes()).unwrap();
        let refused = Ledger::open(&store, key, folder.path());
        assert!(matches!(refused, Err(ServerError::Operator(_))));
    }

    #[test]
    fn refuses_another_history_than_the_one_in_the_head_file() {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::from_bytes(&[5; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let (store, _) = Store::open(folder.path(), Default::default()).unwrap();
        let (ledger, mut appender) = Ledger::open(&store, key.clone(), folder.path()).unwrap();
        let mut batch = MetaBatch::new();
        for n in 0..5 {
            appender.append(&mut batch, &entry(n));
        }
        store.write(&batch).unwrap();
        store.sync().unwrap();
        ledger.publish(&appender);
        ledger.save_head().unwrap();
        let head_file = folder.path().join("HEAD");
        assert_eq!(durable::read(&head_file).unwrap(), ledger.head().note.as_bytes());
        let open = || Ledger::open(&store, key.clone(), folder.path()).map(drop);
        open().unwrap();
        let head = ledger.head();
        let write = |size, root| {
            let checkpoint = Checkpoint { origin: origin_of(&public), size, root };
            durable::write(&head_file, checkpoint.sign(&key).as_bytes()).unwrap();
        };
        for (size, root) in [(5, [9; 32]), (4, head.root), (1, [9; 32]), (6, head.root)] {
            write(size, root);
            assert!(matches!(open(), Err(ServerError::Operator(_))), "{size}");
        }
        write(3, root(&StoredHashes(&store), 3).unwrap());
        open().unwrap();
        write(0, empty_root());
        open().unwrap();
        durable::write(&head_file, b"junk").unwrap();
        assert!(matches!(open(), Err(ServerError::Operator(_))));
    }
}
