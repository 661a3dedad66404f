//! The tree of a snapshot: from a stream of chunks to one root node.
//!
//! Each stream (catalogue, data) becomes a subtree of its own. A node ends where
//! [`ends_after`] says so of its last child's `ChunkId`, which follows from plaintext alone, so two
//! nearly equal streams share almost all nodes. A node is given to the sink the moment it ends:
//! children always come before their parent, which is what the server demands, and what is kept is
//! one unfinished node a level: at most `LEVEL_MAX` times `NODE_CHILDREN_MAX` children.
//!
//! [`join`] puts the two subtrees under a root that has exactly these two children. The lower one
//! is padded with nodes of one child until both have the same level, so a root is always a node and
//! every node's children are of one level.
//!
//! Levels stop one below `LEVEL_MAX`, where the root may stand. No stream gets there: it takes
//! `128^7` chunks to end a node of level 7.

use strongroom_protocol::id::{ChunkId, SealedDigest};
use strongroom_protocol::limits::LEVEL_MAX;
use strongroom_protocol::node::ends_after;
use strongroom_protocol::record::Totals;
use thiserror::Error;

use crate::keys::{PlaintextHash, PlaintextKeys};
use crate::sealer::{NodeChild, SealedNode, seal_node};

/// Highest level of a stream's subtree.
const SUBTREE_LEVEL_MAX: u8 = LEVEL_MAX - 1;

/// A stream does not make a tree.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum TreeError {
    /// No chunk was pushed. An empty stream has one chunk, of length zero.
    #[error("tree: a stream without any chunk; push the empty chunk for an empty stream")]
    Empty,
    /// More chunks than a tree of `LEVEL_MAX` levels holds.
    #[error("tree: the stream has more chunks than a snapshot can hold; split the source")]
    TooHigh,
}

/// One chunk of a stream, sealed now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The chunk's envelope.
    pub digest: SealedDigest,
    /// `h` of the chunk.
    pub h: PlaintextHash,
    /// Name of the chunk: `h.chunk_id()`.
    pub id: ChunkId,
    /// Length of the plaintext.
    pub plaintext_bytes: u64,
    /// Length of the envelope.
    pub envelope_bytes: u64,
}

/// A finished stream: its topmost chunk or node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subtree {
    /// 0 where the stream is one chunk.
    pub level: u8,
    /// What the node above says of it.
    pub child: NodeChild,
    /// Totals with multiplicity, the topmost envelope included.
    pub totals: Totals,
}

/// A snapshot's root, which a record names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedRoot {
    /// The root's envelope.
    pub digest: SealedDigest,
    /// `h` of the root, which a record's key block holds.
    pub h: PlaintextHash,
    /// Level of the root, at least 1.
    pub level: u8,
    /// Bytes of plaintext below, the catalogue included.
    pub plaintext_bytes: u64,
    /// Totals with multiplicity, the root's envelope included.
    pub totals: Totals,
}

/// Builds the subtree of one stream.
pub struct TreeBuilder {
    keys: PlaintextKeys,
    /// The unfinished node over children of level 0, 1, ...
    unfinished: Vec<Children>,
}

#[derive(Default)]
struct Children {
    children: Vec<NodeChild>,
    totals: Vec<Totals>,
}

impl TreeBuilder {
    /// A builder for an empty stream.
    pub fn new(keys: &PlaintextKeys) -> Self {
        Self { keys: keys.clone(), unfinished: vec![Children::default()] }
    }

    /// Adds the stream's next chunk; `sink` gets each node that ends by it, children first.
    pub fn push(&mut self, leaf: Leaf, sink: &mut impl FnMut(SealedNode)) {
        let Leaf { digest, h, id, plaintext_bytes, envelope_bytes } = leaf;
        let child = NodeChild { digest, h, plaintext_bytes };
        self.push_child(0, child, id, Totals::of_chunk(envelope_bytes), sink);
    }

    /// Ends the stream: reduces level after level until one chunk or node is left. `sink` gets the
    /// nodes that this makes, children first.
    ///
    /// # Errors
    /// When the stream has no chunk, or more than a tree can hold.
    pub fn finish(mut self, sink: &mut impl FnMut(SealedNode)) -> Result<Subtree, TreeError> {
        let mut level = 0;
        // Ends: each turn leaves its level empty, and only the last level can gain one above.
        while let Some(here) = self.unfinished.get(usize::from(level)) {
            let is_last = usize::from(level) + 1 == self.unfinished.len();
            match (here.children.as_slice(), here.totals.as_slice()) {
                ([], _) if is_last => return Err(TreeError::Empty),
                ([child], [totals]) if is_last => {
                    return Ok(Subtree { level, child: *child, totals: *totals });
                }
                ([], _) => {}
                _ if level == SUBTREE_LEVEL_MAX => return Err(TreeError::TooHigh),
                _ => self.end_node(level, sink),
            }
            level += 1;
        }
        Err(TreeError::Empty)
    }

    fn push_child(
        &mut self,
        level: u8,
        child: NodeChild,
        id: ChunkId,
        totals: Totals,
        sink: &mut impl FnMut(SealedNode),
    ) {
        let index = usize::from(level);
        if self.unfinished.len() == index {
            self.unfinished.push(Children::default());
        }
        let Some(here) = self.unfinished.get_mut(index) else { return };
        here.children.push(child);
        here.totals.push(totals);
        let count = u32::try_from(here.children.len()).unwrap_or(u32::MAX);
        if level < SUBTREE_LEVEL_MAX && ends_after(&id, count) {
            self.end_node(level, sink);
        }
    }

    /// Seals the unfinished node over `level` and hands it to the level above.
    fn end_node(&mut self, level: u8, sink: &mut impl FnMut(SealedNode)) {
        let Some(here) = self.unfinished.get_mut(usize::from(level)) else { return };
        let (node, totals) = seal_over(&self.keys, level, &here.children, &here.totals);
        here.children.clear();
        here.totals.clear();
        let (child, id) = (node.as_child(), node.id);
        sink(node);
        self.push_child(level + 1, child, id, totals, sink);
    }
}

/// Puts a snapshot's two streams under one root. `sink` gets the nodes that this makes, children
/// first and the root last.
pub fn join(
    keys: &PlaintextKeys,
    catalogue: Subtree,
    data: Subtree,
    sink: &mut impl FnMut(SealedNode),
) -> SealedRoot {
    let level = catalogue.level.max(data.level);
    let mut raised = |mut subtree: Subtree| {
        while subtree.level < level {
            let (node, totals) =
                seal_over(keys, subtree.level, &[subtree.child], &[subtree.totals]);
            subtree = Subtree { level: node.level, child: node.as_child(), totals };
            sink(node);
        }
        subtree
    };
    let (catalogue, data) = (raised(catalogue), raised(data));
    let (root, totals) =
        seal_over(keys, level, &[catalogue.child, data.child], &[catalogue.totals, data.totals]);
    let sealed = SealedRoot {
        digest: root.digest,
        h: root.h,
        level: root.level,
        plaintext_bytes: root.plaintext_bytes,
        totals,
    };
    sink(root);
    sealed
}

/// Seals a node over children of `child_level`, and counts its totals.
fn seal_over(
    keys: &PlaintextKeys,
    child_level: u8,
    children: &[NodeChild],
    totals: &[Totals],
) -> (SealedNode, Totals) {
    let node = seal_node(keys, child_level.saturating_add(1), children);
    let envelope_bytes = u64::try_from(node.envelope.len()).unwrap_or(u64::MAX);
    let totals = Totals::of_node(envelope_bytes, totals.iter().copied());
    (node, totals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealer::unseal_node;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};
    use strongroom_protocol::limits::{NODE_CHILDREN_MAX, NODE_CHILDREN_MIN};

    fn keys() -> PlaintextKeys {
        PlaintextKeys::from_plaintext_key([1; 32])
    }

    fn leaf(keys: &PlaintextKeys, number: u64) -> Leaf {
        let h = keys.hash_chunk(&number.to_le_bytes());
        let digest = SealedDigest(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let (plaintext_bytes, envelope_bytes) = (1000 + number % 7, 600 + number % 5);
        Leaf { digest, h, id: h.chunk_id(), plaintext_bytes, envelope_bytes }
    }

    fn stream(numbers: impl IntoIterator<Item = u64>) -> (Subtree, Vec<SealedNode>) {
        let keys = keys();
        let (mut builder, mut nodes) = (TreeBuilder::new(&keys), Vec::new());
        let mut sink = |node| nodes.push(node);
        for number in numbers {
            builder.push(leaf(&keys, number), &mut sink);
        }
        let subtree = builder.finish(&mut sink).unwrap();
        (subtree, nodes)
    }

    /// Walks down from a child and gives the leaves' digests, in order.
    fn leaves(
        nodes: &HashMap<SealedDigest, &SealedNode>,
        level: u8,
        child: NodeChild,
    ) -> Vec<SealedDigest> {
        if level == 0 {
            return vec![child.digest];
        }
        let node = nodes[&child.digest];
        assert_eq!(node.plaintext_bytes, child.plaintext_bytes);
        let children = unseal_node(&keys(), &node.envelope, &child.digest, &child.h, level);
        children.unwrap().into_iter().flat_map(|child| leaves(nodes, level - 1, child)).collect()
    }

    fn by_digest(nodes: &[SealedNode]) -> HashMap<SealedDigest, &SealedNode> {
        nodes.iter().map(|node| (node.digest, node)).collect()
    }

    #[test]
    fn one_chunk_is_its_own_subtree_and_none_is_an_error() {
        let (subtree, nodes) = stream([7]);
        assert!(nodes.is_empty());
        assert_eq!((subtree.level, subtree.totals), (0, Totals::of_chunk(602)));
        let empty = TreeBuilder::new(&keys()).finish(&mut |_| ());
        assert_eq!(empty, Err(TreeError::Empty));
    }

    #[test]
    fn a_tree_gives_back_its_leaves_and_totals() {
        for count in [2, 127, 128, 129, 2048, 2049, 60_000] {
            let (subtree, nodes) = stream(0..count);
            let wanted: Vec<_> = (0..count).map(|number| leaf(&keys(), number)).collect();
            let digests: Vec<_> = wanted.iter().map(|leaf| leaf.digest).collect();
            assert_eq!(leaves(&by_digest(&nodes), subtree.level, subtree.child), digests);
            let sealed: u64 = wanted.iter().map(|leaf| leaf.envelope_bytes).sum::<u64>()
                + nodes.iter().map(|node| node.envelope.len() as u64).sum::<u64>();
            assert_eq!(subtree.totals, Totals { chunk_count: count, sealed_bytes: sealed });
            let plaintext: u64 = wanted.iter().map(|leaf| leaf.plaintext_bytes).sum();
            assert_eq!(subtree.child.plaintext_bytes, plaintext);
        }
    }

    #[test]
    fn children_come_first_and_nodes_keep_their_bounds() {
        let (subtree, nodes) = stream(0..200_000);
        let mut seen = HashSet::new();
        let mut last_of_level = HashMap::new();
        for node in &nodes {
            let children =
                unseal_node(&keys(), &node.envelope, &node.digest, &node.h, node.level).unwrap();
            assert!(node.level == 1 || children.iter().all(|child| seen.contains(&child.digest)));
            seen.insert(node.digest);
            last_of_level.insert(node.level, node.digest);
        }
        for node in &nodes {
            let count = (node.envelope.len() as u32 - 60) / 72;
            let is_last = last_of_level[&node.level] == node.digest;
            assert!(count <= NODE_CHILDREN_MAX && (is_last || count >= NODE_CHILDREN_MIN));
        }
        assert!((2..=3).contains(&subtree.level));
        assert!(nodes.len() < 200_000 / 300, "{} nodes", nodes.len());
    }

    #[test]
    fn equal_chunks_without_cuts_fill_nodes_to_the_bound() {
        let (subtree, nodes) = stream(std::iter::repeat_n(3, 10_000));
        assert_eq!(subtree.totals.chunk_count, 10_000);
        let largest = nodes.iter().map(|node| node.envelope.len()).max();
        assert_eq!(largest, Some(60 + 72 * NODE_CHILDREN_MAX as usize));
    }

    #[test]
    fn joining_pads_the_lower_stream_and_makes_a_root_of_two() {
        for (catalogue, data) in [(1, 1), (1, 5000), (5000, 1), (300, 70_000)] {
            let (left, mut nodes) = stream(0..catalogue);
            let (right, more) = stream(10..10 + data);
            nodes.extend(more);
            let before = nodes.len();
            let root = join(&keys(), left, right, &mut |node| nodes.push(node));
            assert_eq!(root.level, left.level.max(right.level) + 1);
            assert_eq!(root.totals.chunk_count, catalogue + data);
            let added: u64 = nodes[before..].iter().map(|node| node.envelope.len() as u64).sum();
            let below = left.totals.sealed_bytes + right.totals.sealed_bytes;
            assert_eq!(root.totals.sealed_bytes, below + added);
            assert_eq!(nodes.last().map(|node| node.digest), Some(root.digest));
            let index = by_digest(&nodes);
            let top = index[&root.digest];
            let two = unseal_node(&keys(), &top.envelope, &root.digest, &root.h, root.level);
            let [first, second] = two.unwrap()[..] else { panic!("a root has two children") };
            assert_eq!(leaves(&index, root.level - 1, first).len() as u64, catalogue);
            assert_eq!(leaves(&index, root.level - 1, second).len() as u64, data);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn a_changed_leaf_changes_few_nodes(at in 0u64..20_000) {
            let (_, before) = stream(0..20_000);
            let known: HashSet<_> = before.iter().map(|node| node.digest).collect();
            let changed = (0..20_000).map(|n| if n == at { 1 << 40 } else { n });
            let (_, after) = stream(changed);
            let new = after.iter().filter(|node| !known.contains(&node.digest)).count();
            prop_assert!(new <= 8, "{new} of {} nodes are new", after.len());
        }
    }
}
