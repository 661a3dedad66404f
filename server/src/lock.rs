//! Locks on nodes: a row per node that says until which day its whole subtree must be kept.
//!
//! What must always hold, whatever crashes:
//!
//! * a lock row means that the node's whole subtree is present;
//! * a child node's date is never before its parent's: rows of one commit are in one batch, and
//!   the walk below adds children before parents;
//! * a date is never lowered: the batch holds max(old, new), and one thread writes.
//!
//! A new node gets its date rounded up to a step (a sixteenth of the retention, 1 to 31 days); a
//! reused node below that is raised, with its whole subtree, to one step more, so that the next
//! commits find it high enough and skip it. A node whose date is high enough is skipped with all
//! that is below it: so a commit costs what changed, not what exists. A tree may name one node many
//! times; the walk keeps the date of each node that it met, so it meets none twice for the same
//! date, and a hostile tree costs no more than its distinct nodes.

use std::collections::{BTreeSet, HashMap};

use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::retention::{FOREVER, Lock};

use crate::error::ServerError;
use crate::rows::lock_key;
use crate::store::Store;
use crate::store::meta::MetaBatch;
use crate::store::schema::Family;

const DAY_SECONDS: u64 = 24 * 3600;
/// A lock without an end reaches so far.
const ENDLESS_DAYS: u64 = 400;
/// Nodes read at once in the walk; bounds its memory.
const READ_BATCH: usize = 64;

/// A day of the retention clock since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(u32);

impl Day {
    /// The day that has not begun before `seconds` has passed: rounded up.
    pub fn at_or_after(seconds: u64) -> Self {
        Self(u32::try_from(seconds.div_ceil(DAY_SECONDS)).unwrap_or(u32::MAX))
    }

    /// The day that `seconds` is in: rounded down.
    pub fn of(seconds: u64) -> Self {
        Self(u32::try_from(seconds / DAY_SECONDS).unwrap_or(u32::MAX))
    }

    fn round_up_to(self, step: u32) -> Self {
        Self(self.0.div_ceil(step).saturating_mul(step))
    }

    fn plus(self, days: u32) -> Self {
        Self(self.0.saturating_add(days))
    }
}

/// Until when the nodes of a snapshot must be locked, in seconds of the retention clock, when its
/// lock is this now. Holds and locks without end are locked for 400 days, and raised again before
/// less than 200 are left ([`crate::repository::retention`]).
pub fn node_lock_end(lock: &Lock, now_seconds: u64) -> u64 {
    if lock.is_held || lock.until_seconds == FOREVER {
        return now_seconds.saturating_add(ENDLESS_DAYS.saturating_mul(DAY_SECONDS));
    }
    lock.until_seconds
}

/// Until when a node is locked, or nothing.
pub fn locked_until(
    store: &Store,
    ns: u32,
    node: &SealedDigest,
) -> Result<Option<Day>, ServerError> {
    let value = store.get(Family::Locks, &lock_key(ns, node))?;
    let Some(value) = value else { return Ok(None) };
    let bytes = value.try_into().map_err(|_| ServerError::Bug("lock row".into()))?;
    Ok(Some(Day(u32::from_be_bytes(bytes))))
}

/// Adds to `batch` what locks the tree of `root` until `until_seconds` of the retention clock.
/// `now_seconds` is that clock now. All nodes of the tree must be indexed.
pub fn lock_tree(
    store: &Store,
    batch: &mut MetaBatch,
    ns: u32,
    root: SealedDigest,
    root_level: u8,
    now_seconds: u64,
    until_seconds: u64,
) -> Result<(), ServerError> {
    let retention_days = until_seconds.saturating_sub(now_seconds) / DAY_SECONDS;
    let step = u32::try_from(retention_days / 16).unwrap_or(31).clamp(1, 31);
    let fresh = Day::at_or_after(until_seconds).round_up_to(step);
    let mut walk = Walk { store, ns, fresh, raised: fresh.plus(step), dates: HashMap::new() };
    let mut order = Vec::new();
    let mut level_nodes = vec![root];
    walk.raise(root, fresh)?;
    // Level by level from the root: when a level is read, the dates of all its nodes are final,
    // because only nodes of the level above can raise them.
    for level in (1..=root_level).rev() {
        level_nodes.retain(|node| walk.dates.contains_key(node));
        order.extend_from_slice(&level_nodes);
        // Children of a node of level 1 are chunks, which have no locks of their own.
        if level > 1 {
            level_nodes = walk.raise_children(&level_nodes)?;
        }
    }
    for node in order.iter().rev() {
        if let Some(day) = walk.dates.get(node) {
            batch.put(Family::Locks, lock_key(ns, node), day.0.to_be_bytes());
        }
    }
    Ok(())
}

type NodeAndChildren = (SealedDigest, BTreeSet<SealedDigest>);

struct Walk<'a> {
    store: &'a Store,
    ns: u32,
    /// Date of nodes that have none.
    fresh: Day,
    /// Date of nodes that have one which is too early.
    raised: Day,
    /// Dates that nodes will get; nodes that are high enough are not in it.
    dates: HashMap<SealedDigest, Day>,
}

impl Walk<'_> {
    /// Sees to it that `node` gets at least the date of a parent; true if it is met first.
    fn raise(&mut self, node: SealedDigest, parent: Day) -> Result<bool, ServerError> {
        if let Some(day) = self.dates.get_mut(&node) {
            *day = (*day).max(parent);
            return Ok(false);
        }
        let day = match locked_until(self.store, self.ns, &node)? {
            None => self.fresh.max(parent),
            Some(day) if day < parent => self.raised.max(parent),
            Some(_) => return Ok(false),
        };
        self.dates.insert(node, day);
        Ok(true)
    }

    /// Raises the children of `nodes`; returns those that were met first, each once.
    fn raise_children(&mut self, nodes: &[SealedDigest]) -> Result<Vec<SealedDigest>, ServerError> {
        let mut met = Vec::new();
        for nodes in nodes.chunks(READ_BATCH) {
            for (parent, children) in self.children_of(nodes)? {
                let Some(day) = self.dates.get(&parent).copied() else { continue };
                for child in children {
                    if self.raise(child, day)? {
                        met.push(child);
                    }
                }
            }
        }
        Ok(met)
    }

    /// Each node with its distinct children.
    fn children_of(&self, nodes: &[SealedDigest]) -> Result<Vec<NodeAndChildren>, ServerError> {
        let mut families = Vec::with_capacity(nodes.len());
        let mut is_damaged = false;
        self.store.read(self.ns, nodes, &mut |at, bytes| {
            match (Envelope::parse(bytes), nodes.get(at)) {
                (Ok(envelope), Some(node)) => {
                    let children: BTreeSet<SealedDigest> = envelope.children().collect();
                    families.push((*node, children));
                }
                _ => is_damaged = true,
            }
            Ok(())
        })?;
        if is_damaged {
            return Err(ServerError::Bug("a stored node does not parse".into()));
        }
        Ok(families)
    }
}
