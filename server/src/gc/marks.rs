//! What may not be swept: **M**, marked from the records, and **G**, guarded by the locks.
//!
//! The two know nothing of each other, so that one bug is not enough. M starts at the root of every
//! record and goes down; it looks at no lock but the root's. G is a flat scan of the locks and
//! looks at no record: every node that is locked keeps itself and its children. (What is below the
//! children is kept by their own locks.)
//!
//! Both are bitmaps by place, segment and slot in one number; M's is its own set of visited nodes,
//! so each node is read once, however many snapshots share it. Every node that is read must have
//! its digest and parse, and every child must be indexed at the level below it. Whatever is not so
//! ends the cycle before anything is swept.

use std::collections::HashSet;

use roaring::RoaringTreemap;
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::{FOREVER, Moment};

use super::usage::Held;
use crate::error::ServerError;
use crate::lock::{Day, Tree, decode_day, locked_until};
use crate::noted::Changes;
use crate::rows::{SnapshotRow, parse_lock_key};
use crate::store::Store;
use crate::store::collect::Found;
use crate::store::schema::{Family, IndexRow};

/// Nodes read at once. With their children they bound the memory of a walk.
const NODE_BATCH: usize = 64;
/// Rows of locks or snapshots read at once.
pub(super) const SCAN_BATCH: usize = 512;
/// A lock is taken to last so many days longer than it says, so that none ends during a cycle.
const GRACE_DAYS: u32 = 1;

/// Chunks that one barrier remembers; 18 MB.
const KNOWN_MAX: usize = (1 << 20) / 8 * 7;

/// Chunks that were marked or guarded a while ago and need not be looked up again: two versions of
/// a node share most of their children. Half a digest tells two chunks apart.
#[derive(Debug, Default)]
struct Known {
    ns: u32,
    chunks: HashSet<u128>,
}

impl Known {
    /// Leaves those that are not known.
    fn strip(&mut self, ns: u32, digests: &mut Vec<SealedDigest>) {
        if self.ns == ns {
            digests.retain(|digest| !self.chunks.contains(&half_of(digest)));
        }
    }

    fn remember(&mut self, ns: u32, digests: &[SealedDigest]) {
        if self.ns != ns || self.chunks.len().saturating_add(digests.len()) > KNOWN_MAX {
            *self = Known { ns, chunks: HashSet::new() };
        }
        self.chunks.extend(digests.iter().map(half_of));
    }
}

fn half_of(digest: &SealedDigest) -> u128 {
    digest.0.first_chunk().map_or(0, |half| u128::from_le_bytes(*half))
}

/// What may not be swept.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// By place: what records need.
    pub(super) marked: RoaringTreemap,
    /// By place: what locks guard.
    pub(super) guarded: RoaringTreemap,
    /// Needed, and quarantined all the same: a contradiction.
    pub(super) contradictions: Vec<Found>,
    /// Bytes of the records that were marked from at first.
    pub(super) record_bytes: Held,
    marked_chunks: Known,
    guarded_chunks: Known,
}

/// Called between pieces of work; its error ends the walk.
pub(super) type Breathe<'a> = dyn FnMut() -> Result<(), ServerError> + 'a;
/// Where nodes that were met wait to be read.
type Waiting = Vec<(u32, u8, SealedDigest)>;

impl Marks {
    /// True if neither keeps the envelope at `row`.
    pub(super) fn frees(&self, row: &IndexRow) -> bool {
        let number = row.slot.number();
        !self.marked.contains(number) && !self.guarded.contains(number)
    }

    /// Marks from every record.
    pub(super) fn mark_records(
        &mut self,
        store: &Store,
        now: Moment,
        breathe: &mut Breathe<'_>,
    ) -> Result<(), ServerError> {
        let mut start = None;
        loop {
            let rows = store.page(Family::Snapshots, start.as_deref(), SCAN_BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            start = Some(after(last));
            for (key, value) in &rows {
                let tree = self.check_record(store, key, value, now)?;
                let bytes = SnapshotRow::decode(value)?.record_bytes();
                let held = self.record_bytes.entry(tree.ns).or_default();
                *held = held.saturating_add(bytes);
                self.mark_tree(store, tree, breathe)?;
            }
            breathe()?;
        }
    }

    /// Guards what is locked.
    pub(super) fn guard_locks(
        &mut self,
        store: &Store,
        now: Moment,
        breathe: &mut Breathe<'_>,
    ) -> Result<(), ServerError> {
        let today = Day::of(now.retention_seconds);
        let mut start = None;
        loop {
            let rows = store.page(Family::Locks, start.as_deref(), SCAN_BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            start = Some(after(last));
            let mut locked = Vec::with_capacity(rows.len());
            for (key, value) in &rows {
                if guards(decode_day(value)?, today) {
                    locked.push(parse_lock_key(key)?);
                }
            }
            for nodes in locked.chunks(NODE_BATCH) {
                self.guard_nodes(store, nodes)?;
                breathe()?;
            }
        }
    }

    /// Marks and guards what decisions have written since.
    pub(super) fn catch_up(
        &mut self,
        store: &Store,
        now: Moment,
        changes: &Changes,
        breathe: &mut Breathe<'_>,
    ) -> Result<(), ServerError> {
        let nodes = changes.locks.iter().map(|key| parse_lock_key(key));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        for nodes in nodes.chunks(NODE_BATCH) {
            self.guard_nodes(store, nodes)?;
            breathe()?;
        }
        for key in &changes.snapshots {
            // A record that is gone again needs nothing.
            let Some(value) = store.get(Family::Snapshots, key)? else { continue };
            let tree = self.check_record(store, key, &value, now)?;
            self.mark_tree(store, tree, breathe)?;
        }
        Ok(())
    }

    /// The tree of a record, whose root must be locked as long as the record is.
    fn check_record(
        &self,
        store: &Store,
        key: &[u8],
        value: &[u8],
        now: Moment,
    ) -> Result<Tree, ServerError> {
        let tree = tree_of(key, value)?;
        let lock = SnapshotRow::decode(value)?.lock;
        let locked = locked_until(store, tree.ns, &tree.root)?;
        let tomorrow = Day::of(now.retention_seconds).plus(1);
        let is_endless = lock.is_held || lock.until_seconds == FOREVER;
        let has_ended = lock.until_seconds <= now.retention_seconds;
        let wanted = if is_endless || (has_ended && lock.kept(now).is_some()) {
            tomorrow
        } else {
            Day::at_or_after(lock.until_seconds)
        };
        if locked.is_none_or(|day| day < wanted) {
            return Err(alarm(format!(
                "the lock of root {} is shorter than its record's",
                tree.root
            )));
        }
        Ok(tree)
    }

    /// Marks a tree, but for what was visited before.
    fn mark_tree(
        &mut self,
        store: &Store,
        tree: Tree,
        breathe: &mut Breathe<'_>,
    ) -> Result<(), ServerError> {
        let mut waiting = Waiting::new();
        self.mark_row(store, tree.ns, tree.level, &[tree.root], &mut waiting)?;
        // The deepest first, so that what waits stays short.
        while let Some((ns, level, _)) = waiting.last().copied() {
            let alike = |one: &&(u32, u8, SealedDigest)| (one.0, one.1) == (ns, level);
            let count = waiting.iter().rev().take_while(alike).take(NODE_BATCH).count();
            let nodes: Vec<SealedDigest> =
                waiting.split_off(waiting.len() - count).into_iter().map(|one| one.2).collect();
            let below = level.checked_sub(1).ok_or_else(|| alarm("a chunk in place of a node"))?;
            let mut children = children_of(store, ns, &nodes, Some(level))?;
            if below == 0 {
                self.marked_chunks.strip(ns, &mut children);
            }
            self.mark_row(store, ns, below, &children, &mut waiting)?;
            if below == 0 {
                self.marked_chunks.remember(ns, &children);
            }
            breathe()?;
        }
        Ok(())
    }

    /// Marks envelopes of one level; nodes that were met first wait to be read.
    fn mark_row(
        &mut self,
        store: &Store,
        ns: u32,
        level: u8,
        digests: &[SealedDigest],
        waiting: &mut Waiting,
    ) -> Result<(), ServerError> {
        for found in find(store, ns, digests)? {
            if found.row.level != level {
                return Err(alarm(format!("{} is not at level {level}", found.digest)));
            }
            if found.row.quarantined.is_some() {
                self.contradictions.push(found);
            }
            if self.marked.insert(found.row.slot.number()) && level > 0 {
                waiting.push((ns, level, found.digest));
            }
        }
        Ok(())
    }

    /// Guards nodes, which are in the order of their keys, and their children.
    fn guard_nodes(
        &mut self,
        store: &Store,
        nodes: &[(u32, SealedDigest)],
    ) -> Result<(), ServerError> {
        for same in nodes.chunk_by(|one, other| one.0 == other.0) {
            let Some((ns, _)) = same.first().copied() else { continue };
            let nodes: Vec<SealedDigest> = same.iter().map(|(_, node)| *node).collect();
            let mut children = children_of(store, ns, &nodes, None)?;
            self.guarded_chunks.strip(ns, &mut children);
            let mut chunks = Vec::with_capacity(children.len());
            for digests in [nodes, children] {
                for found in find(store, ns, &digests)? {
                    if found.row.quarantined.is_some() {
                        self.contradictions.push(found);
                    }
                    self.guarded.insert(found.row.slot.number());
                    chunks.extend((found.row.level == 0).then_some(found.digest));
                }
            }
            self.guarded_chunks.remember(ns, &chunks);
        }
        Ok(())
    }
}

/// Whether a lock that says `day` is in force, with some grace.
pub(super) fn guards(day: Day, today: Day) -> bool {
    day.plus(GRACE_DAYS) >= today
}

/// What ends a cycle and must be looked at by somebody.
pub(super) fn alarm(message: impl Into<String>) -> ServerError {
    ServerError::Bug(format!("collection: {}", message.into()))
}

/// The tree of the snapshot in a row.
pub(super) fn tree_of(key: &[u8], value: &[u8]) -> Result<Tree, ServerError> {
    let ns = key.first_chunk::<4>().ok_or_else(|| alarm("snapshot key"))?;
    let body = Record::decode(&SnapshotRow::decode(value)?.record)?.body;
    Ok(Tree { ns: u32::from_be_bytes(*ns), root: body.root, level: body.root_level })
}

/// The first key after `key`.
pub(super) fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Index rows of all of `digests`; it is an alarm if one has none.
fn find(store: &Store, ns: u32, digests: &[SealedDigest]) -> Result<Vec<Found>, ServerError> {
    let rows = store.lookup(ns, digests)?;
    let found = digests.iter().zip(rows).map(|(digest, row)| {
        let row = row.ok_or_else(|| alarm(format!("{digest} is needed and not there")))?;
        Ok(Found { ns, digest: *digest, row })
    });
    found.collect()
}

/// Distinct children of nodes, sorted; each node is hashed and parsed again.
fn children_of(
    store: &Store,
    ns: u32,
    nodes: &[SealedDigest],
    level: Option<u8>,
) -> Result<Vec<SealedDigest>, ServerError> {
    let (mut children, mut bad) = (Vec::new(), None);
    store.read(ns, nodes, &mut |at, bytes| {
        let node = nodes.get(at).copied();
        let is_whole = Some(SealedDigest::of(bytes)) == node;
        match Envelope::parse(bytes) {
            Ok(envelope)
                if is_whole
                    && envelope.is_node()
                    && level.is_none_or(|level| envelope.level == level) =>
            {
                children.extend(envelope.children());
            }
            _ => bad = node,
        }
        Ok(())
    })?;
    if let Some(node) = bad {
        return Err(alarm(format!("node {node} is damaged")));
    }
    children.sort_unstable();
    children.dedup();
    Ok(children)
}
