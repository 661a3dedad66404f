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
//! that is below it: so a commit costs what changed, not what exists.

use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::SealedDigest;

use crate::error::ServerError;
use crate::rows::lock_key;
use crate::store::Store;
use crate::store::meta::MetaBatch;
use crate::store::schema::Family;

const DAY_SECONDS: u64 = 24 * 3600;
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
    let mut walk = Walk { store, batch, ns, fresh, raised: fresh.plus(step), rows: Vec::new() };
    let wanted = walk.wanted(root, fresh)?;
    if let Some(day) = wanted {
        walk.descend(&[(root, day)], root_level)?;
    }
    // Parents were found before their children; children must stand first.
    for (node, day) in walk.rows.iter().rev() {
        walk.batch.put(Family::Locks, lock_key(ns, node), day.0.to_be_bytes());
    }
    Ok(())
}

struct Walk<'a> {
    store: &'a Store,
    batch: &'a mut MetaBatch,
    ns: u32,
    /// Date of nodes that have none.
    fresh: Day,
    /// Date of nodes that have one which is too early.
    raised: Day,
    rows: Vec<(SealedDigest, Day)>,
}

impl Walk<'_> {
    /// The date that `node` must get under a parent that gets `parent`; nothing if it is high
    /// enough.
    fn wanted(&self, node: SealedDigest, parent: Day) -> Result<Option<Day>, ServerError> {
        Ok(match locked_until(self.store, self.ns, &node)? {
            None => Some(self.fresh.max(parent)),
            Some(day) if day < parent => Some(self.raised.max(parent)),
            Some(_) => None,
        })
    }

    /// Locks `nodes`, all of `level`, and what is below them.
    fn descend(&mut self, nodes: &[(SealedDigest, Day)], level: u8) -> Result<(), ServerError> {
        for nodes in nodes.chunks(READ_BATCH) {
            self.rows.extend_from_slice(nodes);
            // Children of a node of level 1 are chunks, which have no locks of their own.
            let Some(below) = level.checked_sub(1).filter(|&below| below > 0) else { continue };
            let mut children = Vec::new();
            for ((_, parent), child) in self.children_of(nodes)? {
                if let Some(day) = self.wanted(child, parent)? {
                    children.push((child, day));
                }
            }
            self.descend(&children, below)?;
        }
        Ok(())
    }

    #[expect(clippy::type_complexity)]
    fn children_of(
        &self,
        nodes: &[(SealedDigest, Day)],
    ) -> Result<Vec<((SealedDigest, Day), SealedDigest)>, ServerError> {
        let digests: Vec<SealedDigest> = nodes.iter().map(|(node, _)| *node).collect();
        let mut children = Vec::new();
        let mut bad_envelope = false;
        self.store.read(self.ns, &digests, &mut |at, bytes| {
            match (Envelope::parse(bytes), nodes.get(at)) {
                (Ok(envelope), Some(node)) => {
                    children.extend(envelope.children().map(|child| (*node, child)));
                }
                _ => bad_envelope = true,
            }
            Ok(())
        })?;
        if bad_envelope {
            return Err(ServerError::Bug("a stored node does not parse".into()));
        }
        Ok(children)
    }
}
