//! Reads the ledger of a server by tiles, and believes nothing of it before the signed root is met.
//!
//! * [`LedgerReader::walk`] gives entries in order, from any place to the end. What stands before
//!   that place comes as a few hashes, so that the whole leads to the root; the walk fails at its
//!   end if it does not, whatever was given before.
//! * [`LedgerReader::prove`] builds inclusion proofs from tiles.
//! * [`TreeCheck`] recomputes every tile from the entries alone.
//!
//! Tiles are asked for ahead, a few at a time; memory does not grow with the ledger.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::merkle::{
    Frontier, Hash, SubtreeHashes, inclusion_proof, leaf_hash, node_hash, verify_inclusion,
};
use strongroom_protocol::route::Route;
use strongroom_protocol::tile::{
    TILE_HEIGHT, TILE_WIDTH, Tile, TileContent, count_at, entries_of, hashes_of,
};
use tokio::task::JoinHandle;

use crate::error::ClientError;
use crate::transport::{Body, Client};

/// Tiles that are asked for before they are needed.
const AHEAD_COUNT: usize = 6;
/// Level of the highest tiles.
const LEVEL_MAX: u8 = 7;
const WIDTH: u64 = TILE_WIDTH as u64;

/// What takes entries: their index and bytes.
pub type EachEntry<'a> = dyn FnMut(u64, &[u8]) -> Result<(), ClientError> + Send + 'a;

/// Reads one ledger, as long as a checkpoint says it is.
#[derive(Debug, Clone)]
pub struct LedgerReader {
    client: Client,
    head: Checkpoint,
}

/// What a whole check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeCheck {
    /// Tiles of hashes and entry bundles that were read.
    pub tile_count: u64,
    /// Root at the size that was watched, where the ledger is so long.
    pub watched_root: Option<Hash>,
}

impl LedgerReader {
    /// A reader of the tree that `head` signs.
    pub fn new(client: Client, head: Checkpoint) -> Self {
        Self { client, head }
    }

    /// The head that everything is checked against.
    pub fn head(&self) -> &Checkpoint {
        &self.head
    }

    /// Gives entries `from` and later to `each`, in order. An `Ok` at the end is the proof that all
    /// of them are what was signed.
    pub async fn walk(&self, from: u64, each: &mut EachEntry<'_>) -> Result<(), ClientError> {
        let size = self.head.size;
        let first = from.min(size) / WIDTH;
        let mut tree = self.left_of(first.saturating_mul(WIDTH)).await?;
        let bundles = (first..).map_while(|index| Tile::widest(TileContent::Entries, index, size));
        let mut bundles = TileStream::new(&self.client, bundles);
        while let Some((tile, bytes)) = bundles.next().await? {
            for entry in entries_of(&bytes, tile.width).map_err(|_| damaged(tile))? {
                let index = tree.size();
                tree.push(0, leaf_hash(entry));
                if index >= from {
                    each(index, entry)?;
                }
            }
        }
        if tree.size() == size && tree.root() == self.head.root {
            return Ok(());
        }
        Err(ClientError::Untrusted(format!(
            "the ledger's entries {from} to {size} do not lead to the signed root: what was shown \
             is not what was signed; run `strongroom audit verify` and tell whoever runs it"
        )))
    }

    /// Proofs that these leaves are in the tree, with their entries; each was verified.
    pub async fn prove(&self, leaves: &[(u64, Vec<u8>)]) -> Result<Vec<Vec<Hash>>, ClientError> {
        let (size, root) = (self.head.size, &self.head.root);
        let mut tiles = KnownTiles::default();
        let mut proofs = Vec::new();
        for (index, entry) in leaves {
            let proof = loop {
                // The first round only learns which tiles are needed.
                match inclusion_proof(&tiles, *index, size) {
                    Ok(proof) => break proof,
                    Err(Missing(key)) => self.fetch_hashes(&mut tiles, key).await?,
                }
            };
            verify_inclusion(&leaf_hash(entry), *index, size, &proof, root).map_err(|error| {
                ClientError::Untrusted(format!(
                    "{error}: the ledger's tiles are damaged; run `strongroom audit verify`"
                ))
            })?;
            proofs.push(proof);
        }
        Ok(proofs)
    }

    /// Reads every tile and every entry, and checks that the entries make all of them and the
    /// signed root. `each` gets the entries; `watched_size` is a size whose root is wanted.
    pub async fn check_whole(
        &self,
        watched_size: u64,
        each: &mut EachEntry<'_>,
    ) -> Result<WholeCheck, ClientError> {
        let size = self.head.size;
        let mut check = TreeCheck::new(watched_size);
        let pairs = (0..).map_while(|index| {
            let bundle = Tile::widest(TileContent::Entries, index, size)?;
            Some([bundle, Tile { content: TileContent::Hashes(0), ..bundle }])
        });
        let mut stream = TileStream::new(&self.client, pairs.flatten());
        let mut tile_count = 0u64;
        while let Some((tile, bundle)) = stream.next().await? {
            let Some((_, hashes)) = stream.next().await? else { break };
            let start = check.size();
            for (at, entry) in (start..).zip(check.add(tile, &bundle, &hashes)?) {
                each(at, entry)?;
            }
            tile_count = tile_count.saturating_add(2);
            for (tile, hashes) in check.take_completed() {
                self.compare(tile, &hashes).await?;
                tile_count = tile_count.saturating_add(1);
            }
        }
        let end = check.finish();
        for (tile, hashes) in &end.partial {
            self.compare(*tile, hashes).await?;
            tile_count = tile_count.saturating_add(1);
        }
        if end.size != size || end.root != self.head.root {
            return Err(ClientError::Untrusted(
                "the ledger's entries do not lead to the signed root: entries were changed or \
                 left out; keep what you have and tell whoever runs the server"
                    .into(),
            ));
        }
        Ok(WholeCheck { tile_count, watched_root: end.watched_root })
    }

    async fn compare(&self, tile: Tile, expected: &[Hash]) -> Result<(), ClientError> {
        let bytes = self.client.request(&Route::Tile(tile), "", Body::empty()).await?;
        match hashes_of(&bytes, tile.width) {
            Ok(hashes) if hashes == expected => Ok(()),
            _ => Err(damaged(tile)),
        }
    }

    /// The tree before leaf `start`, a multiple of a tile's width, from the tiles of hashes above.
    async fn left_of(&self, start: u64) -> Result<Frontier, ClientError> {
        let mut tree = Frontier::default();
        for level in (1..=LEVEL_MAX).rev() {
            let before = count_at(level, start);
            let (index, width) = (before / WIDTH, before % WIDTH);
            let Some(width) = u16::try_from(width).ok().filter(|width| *width > 0) else {
                continue;
            };
            let tile = Tile { content: TileContent::Hashes(level), index, width };
            let bytes = self.client.request(&Route::Tile(tile), "", Body::empty()).await?;
            for hash in hashes_of(&bytes, width).map_err(|_| damaged(tile))? {
                tree.push(u32::from(level).saturating_mul(TILE_HEIGHT), *hash);
            }
        }
        Ok(tree)
    }

    async fn fetch_hashes(
        &self,
        tiles: &mut KnownTiles,
        (level, index): (u8, u64),
    ) -> Result<(), ClientError> {
        let content = TileContent::Hashes(level);
        let tile = Tile::widest(content, index, self.head.size)
            .ok_or_else(|| ClientError::Bug("a tile outside of the tree".into()))?;
        let bytes = self.client.request(&Route::Tile(tile), "", Body::empty()).await?;
        let hashes = hashes_of(&bytes, tile.width).map_err(|_| damaged(tile))?;
        tiles.0.insert((level, index), hashes.to_vec());
        Ok(())
    }
}

/// Tiles of hashes by level and index.
#[derive(Default)]
struct KnownTiles(BTreeMap<(u8, u64), Vec<Hash>>);

/// Which tile must be fetched first.
struct Missing((u8, u64));

impl SubtreeHashes for KnownTiles {
    type Error = Missing;

    fn complete(&self, height: u32, index: u64) -> Result<Hash, Missing> {
        let (level, above) = (height / TILE_HEIGHT, height % TILE_HEIGHT);
        let first = index << above;
        let key = (u8::try_from(level).unwrap_or(LEVEL_MAX), first / WIDTH);
        let hashes = self.0.get(&key).ok_or(Missing(key))?;
        let start = usize::try_from(first % WIDTH).unwrap_or(usize::MAX);
        let part = hashes.iter().skip(start).take(1 << above).copied().collect();
        Ok(fold(part))
    }
}

/// Root of a complete subtree.
fn fold(mut level: Vec<Hash>) -> Hash {
    while level.len() > 1 {
        let (pairs, _) = level.as_chunks::<2>();
        level = pairs.iter().map(|[left, right]| node_hash(left, right)).collect();
    }
    level.pop().unwrap_or_default()
}

/// Recomputes a tree and all its tiles from entries. Pure; holds one tile a level.
#[derive(Debug, Default)]
pub struct TreeCheck {
    tree: Frontier,
    /// The open tile of each level above 0: how many are complete, and what is in it.
    levels: Vec<(u64, Vec<Hash>)>,
    completed: Vec<(Tile, Vec<Hash>)>,
    watched_size: u64,
    watched_root: Option<Hash>,
}

/// The end of a [`TreeCheck`].
#[derive(Debug)]
pub struct TreeEnd {
    /// Leaves.
    pub size: u64,
    /// Root.
    pub root: Hash,
    /// Tiles that are not full, above level 0, with what must be in them.
    pub partial: Vec<(Tile, Vec<Hash>)>,
    /// Root at the watched size.
    pub watched_root: Option<Hash>,
}

impl TreeCheck {
    /// An empty tree; the root at `watched_size` is kept on the way.
    pub fn new(watched_size: u64) -> Self {
        let watched_root = (watched_size == 0).then(|| Frontier::default().root());
        Self { watched_size, watched_root, ..Self::default() }
    }

    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Takes the next entry bundle and the tile of hashes beside it, which must say the same.
    pub fn add<'a>(
        &mut self,
        tile: Tile,
        bundle: &'a [u8],
        hashes: &[u8],
    ) -> Result<Vec<&'a [u8]>, ClientError> {
        let entries = entries_of(bundle, tile.width).map_err(|_| damaged(tile))?;
        let leaves: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        if hashes_of(hashes, tile.width).ok() != Some(&leaves) {
            return Err(damaged(tile));
        }
        let end = self.size().saturating_add(u64::from(tile.width));
        let is_watched = (self.size()..=end).contains(&self.watched_size);
        if tile.width == TILE_WIDTH && !is_watched {
            let hash = fold(leaves);
            self.tree.push(TILE_HEIGHT, hash);
            self.complete(1, hash);
            return Ok(entries);
        }
        for leaf in &leaves {
            self.tree.push(0, *leaf);
            if self.size() == self.watched_size {
                self.watched_root = Some(self.tree.root());
            }
        }
        if tile.width == TILE_WIDTH {
            self.complete(1, fold(leaves));
        }
        Ok(entries)
    }

    /// Tiles above level 0 that were completed since the last call, with what must be in them.
    pub fn take_completed(&mut self) -> Vec<(Tile, Vec<Hash>)> {
        std::mem::take(&mut self.completed)
    }

    /// What the whole came to.
    pub fn finish(self) -> TreeEnd {
        let open = (1u8..).zip(self.levels).filter(|(_, (_, hashes))| !hashes.is_empty());
        let partial = open.map(|(level, (index, hashes))| {
            let width = u16::try_from(hashes.len()).unwrap_or(TILE_WIDTH);
            (Tile { content: TileContent::Hashes(level), index, width }, hashes)
        });
        TreeEnd {
            size: self.tree.size(),
            root: self.tree.root(),
            partial: partial.collect(),
            watched_root: self.watched_root,
        }
    }

    fn complete(&mut self, level: u8, hash: Hash) {
        let at = usize::from(level.saturating_sub(1));
        if self.levels.len() <= at {
            self.levels.push((0, Vec::new()));
        }
        let Some((index, open)) = self.levels.get_mut(at) else { return };
        open.push(hash);
        if open.len() < usize::from(TILE_WIDTH) {
            return;
        }
        let hashes = std::mem::take(open);
        let tile = Tile { content: TileContent::Hashes(level), index: *index, width: TILE_WIDTH };
        *index = index.saturating_add(1);
        let above = fold(hashes.clone());
        self.completed.push((tile, hashes));
        self.complete(level.saturating_add(1), above);
    }
}

fn damaged(tile: Tile) -> ClientError {
    let first = tile.index.saturating_mul(WIDTH);
    ClientError::Untrusted(format!(
        "the ledger's tile {} does not fit its entries (from entry {first} on, where it is of \
         level 0): one of both was changed; keep what you have and tell whoever runs the server",
        tile.path()
    ))
}

/// Tiles in order, asked for ahead.
struct TileStream<I> {
    client: Client,
    wanted: I,
    asked: VecDeque<(Tile, Asked)>,
}

/// A request under way, ended when nobody waits for it any more.
struct Asked(JoinHandle<Result<Bytes, ClientError>>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<I: Iterator<Item = Tile>> TileStream<I> {
    fn new(client: &Client, wanted: I) -> Self {
        Self { client: client.clone(), wanted, asked: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Option<(Tile, Bytes)>, ClientError> {
        while self.asked.len() < AHEAD_COUNT {
            let Some(tile) = self.wanted.next() else { break };
            let client = self.client.clone();
            let asked =
                tokio::spawn(
                    async move { client.request(&Route::Tile(tile), "", Body::empty()).await },
                );
            self.asked.push_back((tile, Asked(asked)));
        }
        let Some((tile, mut asked)) = self.asked.pop_front() else { return Ok(None) };
        let answer = (&mut asked.0).await;
        let answer = answer.map_err(|error| ClientError::Bug(format!("request ended: {error}")))?;
        Ok(Some((tile, answer?)))
    }
}
