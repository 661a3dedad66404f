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
//!
//! **What a lock in the future does not vouch for is proven.** A session may build on a node
//! because it is locked, and that lock may end before the commit; garbage collection may then have
//! taken what is below it. So a node whose lock has ended, or that has none and was not uploaded by
//! the session, is *unproven*: before it is locked it must be indexed and not quarantined, and so
//! must the chunks below it. (Nodes below it are proven in their turn.) If something is missing,
//! nothing is locked, and the client is told to send it again.
//!
//! **A huge tree is locked in slices** ([`Plan::into_slices`]): the walk runs on the caller's
//! thread, and each slice, children first, is a decision of its own on the writer thread, with
//! max(old, new) and its proofs made there. Between slices the rules above hold. The last decision
//! then finds nearly everything high enough.

use std::collections::{BTreeSet, HashMap};

use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::retention::{FOREVER, Lock};

use crate::error::ServerError;
use crate::rows::lock_key;
use crate::store::Store;
use crate::store::error::StoreError;
use crate::store::meta::MetaBatch;
use crate::store::schema::{Family, IndexRow};

const DAY_SECONDS: u64 = 24 * 3600;
/// A lock without an end reaches so far.
const ENDLESS_DAYS: u64 = 400;
/// Nodes read at once in the walk; bounds its memory.
const READ_BATCH: usize = 64;
/// Work of one slice: rows written and rows looked up. A few milliseconds of the writer thread.
const SLICE_COST: usize = 1024;
/// What it costs to prove a node of level 1: it has about so many chunks.
const PROOF_COST: usize = 512;

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

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// So many days later.
    pub fn plus(self, days: u32) -> Self {
        Self(self.0.saturating_add(days))
    }

    fn round_up_to(self, step: u32) -> Self {
        Self(self.0.div_ceil(step).saturating_mul(step))
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

/// An end so much later that what is locked until then ahead of a decision is found high enough by
/// it, although some time passes in between.
pub fn ahead_of(until_seconds: u64, now_seconds: u64) -> u64 {
    let days = u64::from(step_of(until_seconds, now_seconds)).saturating_add(1);
    until_seconds.saturating_add(days.saturating_mul(DAY_SECONDS))
}

/// Days that dates are rounded up to.
fn step_of(until_seconds: u64, now_seconds: u64) -> u32 {
    let retention_days = until_seconds.saturating_sub(now_seconds) / DAY_SECONDS;
    u32::try_from(retention_days / 16).unwrap_or(31).clamp(1, 31)
}

/// Until when a node is locked, or nothing.
pub fn locked_until(
    store: &Store,
    ns: u32,
    node: &SealedDigest,
) -> Result<Option<Day>, ServerError> {
    let value = store.get(Family::Locks, &lock_key(ns, node))?;
    value.map(|value| decode_day(&value)).transpose()
}

/// The day in the value of a lock row.
pub fn decode_day(value: &[u8]) -> Result<Day, ServerError> {
    let bytes = value.try_into().map_err(|_| ServerError::Bug("lock row".into()))?;
    Ok(Day(u32::from_be_bytes(bytes)))
}

/// A tree that is to be locked.
#[derive(Debug, Clone, Copy)]
pub struct Tree {
    /// Namespace, as the number used in keys.
    pub ns: u32,
    /// Its root.
    pub root: SealedDigest,
    /// Level of the root.
    pub level: u8,
}

/// Whether the session that commits has uploaded an envelope.
pub type IsPinned<'a> = dyn Fn(&SealedDigest, &IndexRow) -> bool + 'a;

/// Adds to `batch` what locks a tree until `until_seconds` of the retention clock. `now_seconds` is
/// that clock now. To be called on the writer thread.
pub fn lock_tree(
    store: &Store,
    batch: &mut MetaBatch,
    tree: Tree,
    now_seconds: u64,
    until_seconds: u64,
    is_pinned: &IsPinned<'_>,
) -> Result<(), ServerError> {
    let plan = Plan::make(store, tree, now_seconds, until_seconds, is_pinned)?;
    prove(store, tree.ns, &plan.rows)?;
    for row in &plan.rows {
        batch.put(Family::Locks, lock_key(tree.ns, &row.node), row.day.0.to_be_bytes());
    }
    Ok(())
}

/// Lock rows to be written, children first.
#[derive(Debug)]
pub struct Plan {
    ns: u32,
    rows: Vec<PlannedRow>,
}

#[derive(Debug, Clone, Copy)]
struct PlannedRow {
    node: SealedDigest,
    level: u8,
    day: Day,
    is_unproven: bool,
}

/// Neighbouring rows of a plan.
#[derive(Debug)]
pub struct Slice {
    ns: u32,
    rows: Vec<PlannedRow>,
}

impl Plan {
    /// Walks a tree. All that is above what is high enough is read; nothing is written.
    pub fn make(
        store: &Store,
        tree: Tree,
        now_seconds: u64,
        until_seconds: u64,
        is_pinned: &IsPinned<'_>,
    ) -> Result<Self, ServerError> {
        let ns = tree.ns;
        let step = step_of(until_seconds, now_seconds);
        let fresh = Day::at_or_after(until_seconds).round_up_to(step);
        let mut walk = Walk { store, ns, fresh, raised: fresh.plus(step), dates: HashMap::new() };
        let mut order = Vec::new();
        let mut level_nodes = vec![tree.root];
        walk.raise(tree.root, fresh)?;
        // Level by level from the root: when a level is read, the dates of all its nodes are final,
        // because only nodes of the level above can raise them.
        for level in (1..=tree.level).rev() {
            level_nodes.retain(|node| walk.dates.contains_key(node));
            order.extend(level_nodes.iter().map(|node| (*node, level)));
            // Children of a node of level 1 are chunks, which have no locks of their own.
            if level > 1 {
                level_nodes = walk.raise_children(&level_nodes)?;
            }
        }
        let today = Day::of(now_seconds);
        let mut rows = Vec::with_capacity(order.len());
        for (node, level) in order.into_iter().rev() {
            let Some(Dated { day, old }) = walk.dates.get(&node).copied() else { continue };
            // Without a lock it is new, or not: that is seen below.
            let is_unproven = old.is_none_or(|old| old <= today);
            rows.push(PlannedRow { node, level, day, is_unproven });
        }
        clear_pinned(store, ns, &walk.dates, &mut rows, is_pinned)?;
        Ok(Self { ns, rows })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if everything is high enough.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The plan in pieces that take the writer thread a few milliseconds each, children first.
    pub fn into_slices(self) -> Vec<Slice> {
        let mut slices = Vec::new();
        let (mut rows, mut cost) = (Vec::new(), 0);
        for row in self.rows {
            let proof = if row.is_unproven && row.level == 1 { PROOF_COST } else { 1 };
            cost += proof;
            rows.push(row);
            if cost >= SLICE_COST {
                slices.push(Slice { ns: self.ns, rows: std::mem::take(&mut rows) });
                cost = 0;
            }
        }
        if !rows.is_empty() {
            slices.push(Slice { ns: self.ns, rows });
        }
        slices
    }
}

impl Slice {
    /// Adds the rows to `batch`, as max(old, new), or refuses if something is not there any more.
    /// To be called on the writer thread.
    pub fn write(&self, store: &Store, batch: &mut MetaBatch) -> Result<(), ServerError> {
        prove(store, self.ns, &self.rows)?;
        for row in &self.rows {
            if locked_until(store, self.ns, &row.node)?.is_none_or(|old| old < row.day) {
                batch.put(Family::Locks, lock_key(self.ns, &row.node), row.day.0.to_be_bytes());
            }
        }
        Ok(())
    }
}

/// What the session has uploaded needs no proof: its children were looked at then, and its chunks
/// are pinned.
fn clear_pinned(
    store: &Store,
    ns: u32,
    dates: &HashMap<SealedDigest, Dated>,
    rows: &mut [PlannedRow],
    is_pinned: &IsPinned<'_>,
) -> Result<(), ServerError> {
    let is_new = |row: &PlannedRow| dates.get(&row.node).is_some_and(|dated| dated.old.is_none());
    let nodes: Vec<SealedDigest> =
        rows.iter().filter(|row| is_new(row)).map(|row| row.node).collect();
    let mut found = store.lookup(ns, &nodes)?.into_iter();
    for row in rows.iter_mut().filter(|row| is_new(row)) {
        let known = found.next().flatten();
        row.is_unproven = !known.is_some_and(|known| is_pinned(&row.node, &known));
    }
    Ok(())
}

/// Refuses unless what is unproven is there, with the chunks below it.
fn prove(store: &Store, ns: u32, rows: &[PlannedRow]) -> Result<(), ServerError> {
    let unproven: Vec<&PlannedRow> = rows.iter().filter(|row| row.is_unproven).collect();
    let nodes: Vec<SealedDigest> = unproven.iter().map(|row| row.node).collect();
    refuse_missing(store, ns, &nodes)?;
    let lowest = unproven.iter().filter(|row| row.level == 1).map(|row| row.node);
    for nodes in lowest.collect::<Vec<_>>().chunks(READ_BATCH) {
        let chunks: Vec<SealedDigest> =
            children_of(store, ns, nodes)?.into_iter().flat_map(|(_, children)| children).collect();
        refuse_missing(store, ns, &chunks)?;
    }
    Ok(())
}

fn refuse_missing(store: &Store, ns: u32, digests: &[SealedDigest]) -> Result<(), ServerError> {
    let rows = store.lookup(ns, digests)?;
    let is_missing = |row: &Option<IndexRow>| !row.is_some_and(|row| row.is_usable());
    let missing: Vec<SealedDigest> = digests
        .iter()
        .zip(&rows)
        .filter(|(_, row)| is_missing(row))
        .map(|(digest, _)| *digest)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(ServerError::missing_children(missing)) }
}

type NodeAndChildren = (SealedDigest, BTreeSet<SealedDigest>);

/// Each node with its distinct children.
fn children_of(
    store: &Store,
    ns: u32,
    nodes: &[SealedDigest],
) -> Result<Vec<NodeAndChildren>, ServerError> {
    let mut families = Vec::with_capacity(nodes.len());
    let mut is_damaged = false;
    let read = store.read(ns, nodes, &mut |at, bytes| {
        match (Envelope::parse(bytes), nodes.get(at)) {
            (Ok(envelope), Some(node)) => {
                let children: BTreeSet<SealedDigest> = envelope.children().collect();
                families.push((*node, children));
            }
            _ => is_damaged = true,
        }
        Ok(())
    });
    match read {
        Ok(()) if is_damaged => Err(ServerError::Bug("a stored node does not parse".into())),
        Ok(()) => Ok(families),
        // It was locked when the session built on it, and that lock has ended since.
        // Or it was found damaged just now: sent again, it is whole.
        Err(StoreError::NotFound(node) | StoreError::Damaged(node)) => {
            Err(ServerError::missing_children([node]))
        }
        Err(error) => Err(error.into()),
    }
}

/// The date that a node will get, and the one that it has.
#[derive(Debug, Clone, Copy)]
struct Dated {
    day: Day,
    old: Option<Day>,
}

struct Walk<'a> {
    store: &'a Store,
    ns: u32,
    /// Date of nodes that have none.
    fresh: Day,
    /// Date of nodes that have one which is too early.
    raised: Day,
    /// Dates that nodes will get; nodes that are high enough are not in it.
    dates: HashMap<SealedDigest, Dated>,
}

impl Walk<'_> {
    /// Sees to it that `node` gets at least the date of a parent; true if it is met first.
    fn raise(&mut self, node: SealedDigest, parent: Day) -> Result<bool, ServerError> {
        if let Some(dated) = self.dates.get_mut(&node) {
            dated.day = dated.day.max(parent);
            return Ok(false);
        }
        let old = locked_until(self.store, self.ns, &node)?;
        let day = match old {
            None => self.fresh.max(parent),
            Some(day) if day < parent => self.raised.max(parent),
            Some(_) => return Ok(false),
        };
        self.dates.insert(node, Dated { day, old });
        Ok(true)
    }

    /// Raises the children of `nodes`; returns those that were met first, each once.
    fn raise_children(&mut self, nodes: &[SealedDigest]) -> Result<Vec<SealedDigest>, ServerError> {
        let mut met = Vec::new();
        for nodes in nodes.chunks(READ_BATCH) {
            for (parent, children) in children_of(self.store, self.ns, nodes)? {
                let Some(dated) = self.dates.get(&parent).copied() else { continue };
                for child in children {
                    if self.raise(child, dated.day)? {
                        met.push(child);
                    }
                }
            }
        }
        Ok(met)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use strongroom_protocol::envelope::{SIV_BYTES, Suite, TAG_BYTES, clear_of_node};
    use strongroom_protocol::error::ErrorCode;
    use tempfile::TempDir;

    use super::*;
    use crate::store::schema::Quarantine;
    use crate::store::{NewEnvelope, StoreOptions};
    use strongroom_protocol::record::Totals;

    const NS: u32 = 1;
    const NOW: u64 = 1000 * DAY_SECONDS;

    /// A root over 20 nodes over 300 chunks each.
    struct Forest {
        store: Store,
        tree: Tree,
        lower: Vec<SealedDigest>,
        chunks: Vec<SealedDigest>,
        _folder: TempDir,
    }

    impl Forest {
        fn grow() -> Self {
            let folder = TempDir::new().unwrap();
            let store = Store::open(folder.path(), StoreOptions::default()).unwrap().0;
            let (mut lower, mut chunks) = (Vec::new(), Vec::new());
            for node in 0..20u64 {
                let below: Vec<SealedDigest> = (0..300u64)
                    .map(|chunk| put(&store, 0, [node, chunk].map(u64::to_le_bytes).concat()))
                    .collect();
                lower.push(put(&store, 1, node_of(1, &below)));
                chunks.extend(below);
            }
            let root = put(&store, 2, node_of(2, &lower));
            store.seal().unwrap();
            let tree = Tree { ns: NS, root, level: 2 };
            Self { store, tree, lower, chunks, _folder: folder }
        }

        fn plan(&self, now: u64, until: u64, is_pinned: bool) -> Plan {
            Plan::make(&self.store, self.tree, now, until, &|_, _| is_pinned).unwrap()
        }

        fn write(&self, slice: &Slice) -> Result<(), ServerError> {
            let mut batch = MetaBatch::new();
            slice.write(&self.store, &mut batch)?;
            self.store.write(&batch).unwrap();
            Ok(())
        }

        fn day(&self, node: &SealedDigest) -> Option<Day> {
            locked_until(&self.store, NS, node).unwrap()
        }

        fn quarantine(&self, digest: SealedDigest) {
            let found = self.store.scan_index(None, usize::MAX).unwrap();
            let found: Vec<_> = found.into_iter().filter(|found| found.digest == digest).collect();
            let mark = Quarantine { day: 1, generation: 1 };
            assert_eq!(self.store.quarantine(&found, mark).unwrap(), 1);
        }
    }

    fn put(store: &Store, level: u8, bytes: Vec<u8>) -> SealedDigest {
        let digest = SealedDigest::of(&bytes);
        let totals = Totals { chunk_count: 1, sealed_bytes: 1 };
        store.append(NS, vec![NewEnvelope { digest, level, totals, bytes: bytes.into() }]).unwrap();
        digest
    }

    fn node_of(level: u8, children: &[SealedDigest]) -> Vec<u8> {
        let mut bytes = clear_of_node(Suite::Blake3ChaCha20Poly1305, level, children);
        bytes.resize(bytes.len() + SIV_BYTES + 40 * children.len() + TAG_BYTES, 7);
        assert!(Envelope::parse(&Bytes::from(bytes.clone())).is_ok());
        bytes
    }

    fn refused(outcome: Result<(), ServerError>) {
        let refusal = outcome.expect_err("it was locked").refusal();
        assert_eq!(refusal.code, ErrorCode::MissingChildren);
    }

    #[test]
    fn after_each_slice_a_child_is_locked_at_least_as_long_as_its_parent() {
        let forest = Forest::grow();
        let slices = forest.plan(NOW, NOW + 90 * DAY_SECONDS, false).into_slices();
        assert!(slices.len() > 1, "unproven nodes make small slices");
        for slice in &slices {
            forest.write(slice).unwrap();
            if let Some(root) = forest.day(&forest.tree.root) {
                assert!(forest.lower.iter().all(|node| forest.day(node) >= Some(root)));
            }
        }
        assert!(forest.day(&forest.tree.root).is_some());
        assert!(forest.plan(NOW, NOW + 90 * DAY_SECONDS, false).is_empty(), "high enough");
    }

    #[test]
    fn a_slice_never_lowers_a_date() {
        let forest = Forest::grow();
        let early = forest.plan(NOW, NOW + 10 * DAY_SECONDS, true).into_slices();
        for slice in forest.plan(NOW, NOW + 500 * DAY_SECONDS, true).into_slices() {
            forest.write(&slice).unwrap();
        }
        let high = forest.day(&forest.tree.root);
        for slice in &early {
            forest.write(slice).unwrap();
        }
        assert_eq!(forest.day(&forest.tree.root), high);
    }

    #[test]
    fn what_is_locked_ahead_is_high_enough_for_a_decision_a_day_later() {
        let forest = Forest::grow();
        for days in [0, 1, 40, 90, 365, 800, 5000] {
            let until = NOW + days * DAY_SECONDS + 7;
            for slice in forest.plan(NOW, ahead_of(until, NOW), true).into_slices() {
                forest.write(&slice).unwrap();
            }
            for later in [0, 1, DAY_SECONDS] {
                let plan = forest.plan(NOW + later, until + later, false);
                assert!(plan.is_empty(), "{days} days, {later} s later");
            }
        }
    }

    #[test]
    fn a_node_is_locked_to_the_end_rounded_up_and_not_for_long_after_it() {
        for (days, step) in [(1, 1), (16, 1), (32, 2), (90, 5), (365, 22), (496, 31), (5000, 31)] {
            let until = NOW + days * DAY_SECONDS;
            assert_eq!(step_of(until, NOW), step, "{days} days");
            assert_eq!(ahead_of(until, NOW), until + u64::from(step + 1) * DAY_SECONDS);
        }
        let lock = |until_seconds, is_held| Lock {
            mode: strongroom_protocol::retention::RetentionMode::Governance,
            until_seconds,
            until_wall_seconds: 0,
            is_held,
        };
        let endless = NOW + 400 * DAY_SECONDS;
        assert_eq!(node_lock_end(&lock(NOW + 5, false), NOW), NOW + 5);
        assert_eq!(node_lock_end(&lock(NOW + 5, true), NOW), endless);
        assert_eq!(node_lock_end(&lock(FOREVER, false), NOW), endless);
        assert_eq!(node_lock_end(&lock(FOREVER, true), NOW), endless);
        assert_eq!(Day::at_or_after(NOW), Day(1000));
        assert_eq!(Day::at_or_after(NOW + 1), Day(1001));
        assert_eq!(Day::of(NOW + DAY_SECONDS - 1), Day(1000));
    }

    #[test]
    fn a_tree_with_a_node_that_does_not_parse_is_not_locked() {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap().0;
        let junk = put(&store, 1, b"not a node".to_vec());
        let root = put(&store, 2, node_of(2, &[junk]));
        store.seal().unwrap();
        let (tree, mut batch) = (Tree { ns: NS, root, level: 2 }, MetaBatch::new());
        let locked = lock_tree(&store, &mut batch, tree, NOW, NOW + 5, &|_, _| false);
        assert!(matches!(locked, Err(ServerError::Bug(_))) && batch.is_empty());
    }

    #[test]
    fn what_no_lock_vouches_for_is_proven_and_what_is_pinned_is_not() {
        let forest = Forest::grow();
        let until = NOW + 10 * DAY_SECONDS;
        forest.quarantine(forest.chunks[700]);
        let mut batch = MetaBatch::new();
        let lock = |batch: &mut MetaBatch, now, is_pinned: bool| {
            lock_tree(&forest.store, batch, forest.tree, now, now + 10 * DAY_SECONDS, &|_, _| {
                is_pinned
            })
        };
        refused(lock(&mut batch, NOW, false));
        assert!(batch.is_empty(), "nothing is locked if something is missing");
        let slices = forest.plan(NOW, until, false).into_slices();
        assert!(slices.iter().any(|slice| forest.write(slice).is_err()));
        lock(&mut batch, NOW, true).unwrap();
        forest.store.write(&batch).unwrap();
        // The locks last: they vouch. They have ended: they do not, whoever has pinned the nodes.
        lock(&mut MetaBatch::new(), NOW + 5 * DAY_SECONDS, false).unwrap();
        refused(lock(&mut MetaBatch::new(), NOW + 90 * DAY_SECONDS, true));
        forest.quarantine(forest.lower[3]);
        refused(lock(&mut MetaBatch::new(), NOW + 90 * DAY_SECONDS, true));
    }
}
