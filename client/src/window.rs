//! The window of chunks and nodes that the server has not acknowledged yet, in stream order.
//!
//! A chunk enters at the back, is asked about, sealed, sent or proven in any order, and leaves at
//! the front when it and all before it are settled. Only then does it enter the tree, so a leaf's
//! digest is final when a node is made of it, and a node's children are all acknowledged the
//! moment the node exists: nodes need no watermark of their own, only their own order.
//!
//! No I/O happens here; [`crate::uploader`] moves what this module names.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use strongroom_protocol::frame;
use strongroom_protocol::id::SealedDigest;

use crate::budget::QUESTION_MIN_BYTES;
use crate::error::ClientError;
use crate::feed::Stream;
use crate::keys::PlaintextKeys;
use crate::pipeline::{Content, Piece};
use crate::sealer::SealedNode;
use crate::tree::{Leaf, SealedRoot, TreeBuilder, TreeError, join};

/// Names a chunk or node of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ticket {
    /// A chunk, by its place among both streams' chunks.
    Chunk(u64),
    /// A node, by its place among nodes.
    Node(u64),
}

/// How a chunk or node came to be on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was there.
    Had,
    /// It was sent.
    Sent,
}

/// Counts of a run; plaintext and sealed bytes as named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowCounts {
    /// Chunks that were sent.
    pub sent_chunk_count: u64,
    /// Nodes that were sent.
    pub sent_node_count: u64,
    /// Bytes of plaintext that the server had.
    pub deduplicated_bytes: u64,
}

/// What is to be asked about, in order. A question costs both sides a request, however short it
/// is, so it waits for company: until so many wait that it is worth one, until they hold so much of
/// the window that it must not wait, or until somebody says that nothing more comes soon.
pub struct Unasked {
    tickets: VecDeque<(Ticket, u64)>,
    plaintext_bytes: u64,
    worth_count: usize,
}

impl Unasked {
    /// Nothing yet; so many are worth a question.
    pub fn new(worth_count: usize) -> Self {
        Self { tickets: VecDeque::new(), plaintext_bytes: 0, worth_count }
    }

    /// Adds a chunk or node of the window.
    pub fn push(&mut self, window: &Window, ticket: Ticket) {
        let bytes = window.leaf(ticket).map_or(0, |leaf| leaf.plaintext_bytes);
        self.tickets.push_back((ticket, bytes));
        self.plaintext_bytes = self.plaintext_bytes.saturating_add(bytes);
    }

    /// The first one.
    pub fn pop(&mut self) -> Option<Ticket> {
        let (ticket, bytes) = self.tickets.pop_front()?;
        self.plaintext_bytes = self.plaintext_bytes.saturating_sub(bytes);
        Some(ticket)
    }

    /// Whether to ask now; `is_late` says that there is nothing to wait for.
    pub fn is_due(&self, is_late: bool) -> bool {
        let is_worth_it = self.tickets.len() >= self.worth_count;
        let is_much = self.plaintext_bytes >= QUESTION_MIN_BYTES;
        !self.tickets.is_empty() && (is_late || is_worth_it || is_much)
    }
}

struct Item {
    leaf: Leaf,
    stream: Stream,
    content: Option<Content>,
    is_settled: bool,
}

struct NodeItem {
    digest: SealedDigest,
    framed: Option<Bytes>,
    /// The server lacks it: it may be sent in its turn.
    is_lacking: bool,
    is_settled: bool,
}

/// See the module.
pub struct Window {
    keys: PlaintextKeys,
    first_chunk: u64,
    chunks: VecDeque<Item>,
    first_node: u64,
    nodes: VecDeque<NodeItem>,
    /// Sealed chunks that are not settled, by digest.
    unsettled: HashMap<SealedDigest, u64>,
    /// Bytes of sealed chunks that are not settled.
    pending_bytes: usize,
    data: Option<TreeBuilder>,
    catalogue: Option<TreeBuilder>,
    root: Option<SealedRoot>,
    counts: WindowCounts,
}

impl Window {
    /// An empty window.
    pub fn new(keys: &PlaintextKeys) -> Self {
        Self {
            keys: keys.clone(),
            first_chunk: 0,
            chunks: VecDeque::new(),
            first_node: 0,
            nodes: VecDeque::new(),
            unsettled: HashMap::new(),
            pending_bytes: 0,
            data: Some(TreeBuilder::new(keys)),
            catalogue: Some(TreeBuilder::new(keys)),
            root: None,
            counts: WindowCounts::default(),
        }
    }

    /// Bytes of sealed chunks that are not settled.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// What was counted so far.
    pub fn counts(&self) -> WindowCounts {
        self.counts
    }

    /// Whether every chunk has left.
    pub fn has_no_chunk(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether every node has left.
    pub fn has_no_node(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The root, after [`Window::finish`].
    pub fn root(&self) -> Option<SealedRoot> {
        self.root
    }

    /// Takes in the next chunk of a stream. Gives its ticket, or nothing where an equal chunk
    /// before it is on its way already.
    pub fn admit(&mut self, piece: Piece, stream: Stream) -> Option<Ticket> {
        let number = self.end_chunk();
        let Piece { leaf, content } = piece;
        let mut item = Item { leaf, stream, content: Some(content), is_settled: false };
        if let Some(Content::Framed(framed)) = &item.content {
            if self.unsettled.contains_key(&leaf.digest) {
                item.content = None;
                item.is_settled = true;
                self.count_settled(&leaf, Settled::Had);
                self.chunks.push_back(item);
                return None;
            }
            self.pending_bytes = self.pending_bytes.saturating_add(framed.len());
            self.unsettled.insert(leaf.digest, number);
        }
        self.chunks.push_back(item);
        Some(Ticket::Chunk(number))
    }

    /// A chunk came back sealed. Gives true where its envelope is another than the one that the
    /// window knew: another version of the sealer made that one, and it is of no use.
    pub fn replace(&mut self, ticket: Ticket, piece: Piece) -> bool {
        let Ticket::Chunk(number) = ticket else { return false };
        let Some(item) = self.chunk_mut(number) else { return false };
        let is_other = item.leaf.digest != piece.leaf.digest;
        item.leaf = piece.leaf;
        if let Content::Framed(framed) = &piece.content {
            let (length, digest) = (framed.len(), piece.leaf.digest);
            item.content = Some(piece.content);
            self.pending_bytes = self.pending_bytes.saturating_add(length);
            self.unsettled.entry(digest).or_insert(number);
        }
        is_other
    }

    /// What the window knows of a chunk.
    pub fn leaf(&self, ticket: Ticket) -> Option<&Leaf> {
        let Ticket::Chunk(number) = ticket else { return None };
        Some(&self.chunks.get(index_of(number, self.first_chunk)?)?.leaf)
    }

    /// Digest of a chunk or node.
    pub fn digest(&self, ticket: Ticket) -> Option<SealedDigest> {
        match ticket {
            Ticket::Chunk(_) => self.leaf(ticket).map(|leaf| leaf.digest),
            Ticket::Node(number) => {
                Some(self.nodes.get(index_of(number, self.first_node)?)?.digest)
            }
        }
    }

    /// Bytes of a chunk or node that is not settled; shared, not copied.
    pub fn content(&self, ticket: Ticket) -> Option<Content> {
        match ticket {
            Ticket::Chunk(number) => {
                self.chunks.get(index_of(number, self.first_chunk)?)?.content.clone()
            }
            Ticket::Node(number) => {
                let node = self.nodes.get(index_of(number, self.first_node)?)?;
                node.framed.clone().map(Content::Framed)
            }
        }
    }

    /// The server has it now. Gives the tickets of nodes that are complete by this.
    pub fn settle(&mut self, ticket: Ticket, how: Settled) -> Vec<Ticket> {
        match ticket {
            Ticket::Chunk(number) => {
                let Some(item) = self.chunk_mut(number) else { return Vec::new() };
                let (leaf, content) = (item.leaf, item.content.take());
                item.is_settled = true;
                if let Some(Content::Framed(framed)) = content {
                    self.pending_bytes = self.pending_bytes.saturating_sub(framed.len());
                }
                if self.unsettled.get(&leaf.digest) == Some(&number) {
                    self.unsettled.remove(&leaf.digest);
                }
                self.count_settled(&leaf, how);
                self.advance()
            }
            Ticket::Node(number) => {
                if let Some(node) = self.node_mut(number) {
                    node.is_settled = true;
                    node.framed = None;
                }
                if how == Settled::Sent {
                    self.counts.sent_node_count = self.counts.sent_node_count.saturating_add(1);
                }
                while self.nodes.front().is_some_and(|node| node.is_settled) {
                    self.nodes.pop_front();
                    self.first_node = self.first_node.saturating_add(1);
                }
                Vec::new()
            }
        }
    }

    /// The server lacks a node.
    pub fn lacks_node(&mut self, ticket: Ticket) {
        if let Ticket::Node(number) = ticket
            && let Some(node) = self.node_mut(number)
        {
            node.is_lacking = true;
        }
    }

    /// Nodes that may be sent now, children first, of about `max_bytes`: those before the first one
    /// that the server has not been asked about.
    pub fn sendable_nodes(&self, max_bytes: usize) -> Vec<(Ticket, Bytes)> {
        let mut nodes = Vec::new();
        let mut bytes: usize = 0;
        for (number, node) in (self.first_node..).zip(&self.nodes) {
            if node.is_settled {
                continue;
            }
            let Some(framed) = node.framed.as_ref().filter(|_| node.is_lacking) else { break };
            bytes = bytes.saturating_add(framed.len());
            if bytes > max_bytes && !nodes.is_empty() {
                break;
            }
            nodes.push((Ticket::Node(number), framed.clone()));
        }
        nodes
    }

    /// Ends both streams after their last chunk has left; gives the tickets of the last nodes.
    pub fn finish(&mut self) -> Result<Vec<Ticket>, ClientError> {
        let (Some(catalogue), Some(data)) = (self.catalogue.take(), self.data.take()) else {
            return Err(ClientError::Bug("a tree was finished twice".into()));
        };
        let mut sealed = Vec::new();
        let mut sink = |node| sealed.push(node);
        let too_tall = |error: TreeError| ClientError::Usage(error.to_string());
        let data = data.finish(&mut sink).map_err(too_tall)?;
        let catalogue = catalogue.finish(&mut sink).map_err(too_tall)?;
        self.root = Some(join(&self.keys, catalogue, data, &mut sink));
        Ok(self.admit_nodes(sealed))
    }

    /// Moves settled chunks from the front into the trees.
    fn advance(&mut self) -> Vec<Ticket> {
        let mut sealed = Vec::new();
        while self.chunks.front().is_some_and(|item| item.is_settled) {
            let Some(item) = self.chunks.pop_front() else { break };
            self.first_chunk = self.first_chunk.saturating_add(1);
            let tree = match item.stream {
                Stream::Catalogue => self.catalogue.as_mut(),
                Stream::Data => self.data.as_mut(),
            };
            if let Some(tree) = tree {
                tree.push(item.leaf, &mut |node| sealed.push(node));
            }
        }
        self.admit_nodes(sealed)
    }

    fn admit_nodes(&mut self, sealed: Vec<SealedNode>) -> Vec<Ticket> {
        let mut tickets = Vec::with_capacity(sealed.len());
        for node in sealed {
            let number = self.first_node.saturating_add(count_of(self.nodes.len()));
            // A node is far below the longest envelope: 2048 children.
            let mut framed = frame::prefix(&node.envelope).unwrap_or_default().to_vec();
            framed.extend_from_slice(&node.envelope);
            self.nodes.push_back(NodeItem {
                digest: node.digest,
                framed: Some(framed.into()),
                is_lacking: false,
                is_settled: false,
            });
            tickets.push(Ticket::Node(number));
        }
        tickets
    }

    fn count_settled(&mut self, leaf: &Leaf, how: Settled) {
        let counts = &mut self.counts;
        match how {
            Settled::Had => {
                counts.deduplicated_bytes =
                    counts.deduplicated_bytes.saturating_add(leaf.plaintext_bytes);
            }
            Settled::Sent => counts.sent_chunk_count = counts.sent_chunk_count.saturating_add(1),
        }
    }

    fn end_chunk(&self) -> u64 {
        self.first_chunk.saturating_add(count_of(self.chunks.len()))
    }

    fn chunk_mut(&mut self, number: u64) -> Option<&mut Item> {
        self.chunks.get_mut(index_of(number, self.first_chunk)?)
    }

    fn node_mut(&mut self, number: u64) -> Option<&mut NodeItem> {
        self.nodes.get_mut(index_of(number, self.first_node)?)
    }
}

fn index_of(number: u64, first: u64) -> Option<usize> {
    usize::try_from(number.checked_sub(first)?).ok()
}

fn count_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::QUESTION_MIN_COUNT;
    use crate::pipeline::envelope_of;

    fn piece(keys: &PlaintextKeys, number: u64) -> Piece {
        let h = keys.hash_chunk(&number.to_le_bytes());
        let digest = SealedDigest(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let leaf = Leaf { digest, h, id: h.chunk_id(), plaintext_bytes: 10, envelope_bytes: 8 };
        let content = Content::Framed(Bytes::from_static(b"\x08\0\0\0envelope"));
        Piece { leaf, content }
    }

    #[test]
    fn a_question_waits_for_company_but_not_for_the_whole_window() {
        let keys = PlaintextKeys::from_plaintext_key([1; 32]);
        let (mut window, mut unasked) = (Window::new(&keys), Unasked::new(QUESTION_MIN_COUNT));
        let mut admit = |unasked: &mut Unasked, number, plaintext_bytes| {
            let mut piece = piece(&keys, number);
            piece.leaf.plaintext_bytes = plaintext_bytes;
            let ticket = window.admit(piece, Stream::Data).unwrap();
            unasked.push(&window, ticket);
            ticket
        };
        assert!(!unasked.is_due(true), "there is none");
        let first = admit(&mut unasked, 0, QUESTION_MIN_BYTES - 1);
        assert!(unasked.is_due(true) && !unasked.is_due(false));
        admit(&mut unasked, 1, 1);
        assert!(unasked.is_due(false), "large ones");
        assert_eq!(unasked.pop(), Some(first));
        assert!(!unasked.is_due(false));
        for number in 2..=u64::try_from(QUESTION_MIN_COUNT).unwrap() {
            admit(&mut unasked, number, 1);
        }
        assert!(unasked.is_due(false), "many");
    }

    #[test]
    fn chunks_leave_in_order_and_nodes_follow_their_children() {
        let keys = PlaintextKeys::from_plaintext_key([1; 32]);
        let mut window = Window::new(&keys);
        let mut tickets = Vec::new();
        for number in 0..3000 {
            tickets.push(window.admit(piece(&keys, number), Stream::Data).unwrap());
        }
        assert_eq!(window.admit(piece(&keys, 5), Stream::Data), None, "on its way already");
        assert_eq!(window.pending_bytes(), 3000 * 12);
        let first = tickets.remove(0);
        for ticket in tickets.into_iter().rev() {
            assert!(window.settle(ticket, Settled::Sent).is_empty(), "the first is missing");
        }
        let nodes = window.settle(first, Settled::Had);
        assert!(!nodes.is_empty() && window.has_no_chunk());
        let catalogue = window.admit(piece(&keys, 9000), Stream::Catalogue).unwrap();
        window.settle(catalogue, Settled::Had);
        let last = window.finish().unwrap();
        let root = window.root().unwrap();
        assert_eq!(window.digest(*last.last().unwrap()), Some(root.digest));
        assert_eq!(root.totals.chunk_count, 3002);
        let counts = window.counts();
        assert_eq!((counts.sent_chunk_count, counts.deduplicated_bytes), (2999, 30));

        assert!(window.sendable_nodes(1 << 30).is_empty(), "nobody was asked");
        let all: Vec<_> = nodes.into_iter().chain(last).collect();
        window.lacks_node(all[1]);
        assert!(window.sendable_nodes(1 << 30).is_empty(), "the first is not known to be there");
        window.settle(all[0], Settled::Had);
        let sendable = window.sendable_nodes(1 << 30);
        assert_eq!(sendable.len(), 1);
        assert_eq!(Some(SealedDigest::of(envelope_of(&sendable[0].1))), window.digest(all[1]));
        for ticket in all {
            window.settle(ticket, Settled::Sent);
        }
        assert!(window.has_no_node());
    }
}
