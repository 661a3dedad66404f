//! Envelopes from the server, and the walk down a snapshot's tree in stream order.
//!
//! A [`Walker`] keeps the frontier: what is still to be read, in order, nodes before they are
//! opened and chunks after. It opens nodes some at a time, only as far as chunks are asked for, so
//! its memory is a few nodes a level. A node says how many bytes are below each child, so a walk to
//! some ranges of the stream opens the nodes on the way to them and no others. Each node is checked
//! against what its parent (or the record) says of it before a child is believed.
//!
//! An answer that is cut off is asked for again from where it ended; what arrived is kept.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::frame::FrameDecoder;
use strongroom_protocol::id::{NamespaceId, SealedDigest};
use strongroom_protocol::limits::{CHUNK_MAX_BYTES, READ_MAX_COUNT};
use strongroom_protocol::record::Totals;
use strongroom_protocol::route::Route;
use tokio::time::sleep;

use crate::budget::READ_REQUEST_BYTES;
use crate::compressor::Decompressor;
use crate::error::ClientError;
use crate::keys::PlaintextKeys;
use crate::sealer::{NodeChild, UnsealError, unseal_chunk, unseal_node};
use crate::transport::Client;

/// Nodes that are opened at once.
const NODES_AT_ONCE: usize = 8;
/// An answer that breaks off so often before the same envelope will not come.
const BREAKS_MAX: u32 = 4;

/// Reads envelopes of one namespace and opens those of one epoch.
#[derive(Clone)]
pub struct Fetcher {
    client: Client,
    namespace: NamespaceId,
    keys: PlaintextKeys,
}

impl Fetcher {
    /// A reader of `namespace` with the keys of a snapshot's key block.
    pub fn new(client: Client, namespace: NamespaceId, keys: PlaintextKeys) -> Self {
        Self { client, namespace, keys }
    }

    /// Keys of the epoch.
    pub fn keys(&self) -> &PlaintextKeys {
        &self.keys
    }

    /// Reads the envelopes with `digests`, in order, and gives each to `take` as it arrives, not
    /// yet checked. `digests` may be longer than one request allows.
    pub async fn envelopes(
        &self,
        digests: &[SealedDigest],
        mut take: impl FnMut(&[u8]) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let at_once = usize::try_from(READ_MAX_COUNT).unwrap_or(1);
        for part in digests.chunks(at_once) {
            let (mut taken, mut failures, mut breaks) = (0, 0, 0);
            while let Some(rest) = part.get(taken..).filter(|rest| !rest.is_empty()) {
                let (before, mut is_answered) = (taken, false);
                let read = self.read_once(rest, &mut taken, &mut is_answered, &mut take).await;
                let Err(error) = read else { continue };
                if taken > before {
                    (failures, breaks) = (0, 0);
                }
                failures += 1;
                breaks += u32::from(is_answered);
                if let Some(next) = part.get(taken).filter(|_| breaks >= BREAKS_MAX) {
                    return Err(undelivered(next));
                }
                match self.client.retry().pause(failures).filter(|_| error.is_temporary()) {
                    Some(pause) => {
                        tracing::info!("read: {}; trying again in {pause:.1?}", error.reason());
                        sleep(pause).await;
                    }
                    None => return Err(lacking(error)),
                }
            }
        }
        Ok(())
    }

    /// Opens nodes of one level. Each must be what `nodes` says of it.
    pub async fn nodes(
        &self,
        level: u8,
        nodes: &[NodeChild],
        totals: &mut Totals,
    ) -> Result<Vec<Vec<NodeChild>>, ClientError> {
        let digests: Vec<SealedDigest> = nodes.iter().map(|node| node.digest).collect();
        let mut opened = Vec::with_capacity(nodes.len());
        let mut expected = nodes.iter();
        let mut sealed_bytes: u64 = 0;
        self.envelopes(&digests, |envelope| {
            let node = expected.next().ok_or_else(surplus)?;
            let children = unseal_node(&self.keys, envelope, &node.digest, &node.h, level)
                .map_err(|error| damaged(&node.digest, error))?;
            let below =
                children.iter().fold(0u64, |sum, child| sum.saturating_add(child.plaintext_bytes));
            if below != node.plaintext_bytes {
                return Err(damaged(&node.digest, UnsealError::PlaintextHash));
            }
            if level == 1 {
                children.iter().try_for_each(refuse_long)?;
            }
            sealed_bytes = sealed_bytes.saturating_add(length_of(envelope));
            opened.push(children);
            Ok(())
        })
        .await?;
        totals.sealed_bytes = totals.sealed_bytes.saturating_add(sealed_bytes);
        Ok(opened)
    }

    /// Reads a whole stream and gives its bytes to `take`, chunk by chunk, verified.
    pub async fn each_chunk(
        &self,
        level: u8,
        top: NodeChild,
        totals: &mut Totals,
        mut take: impl FnMut(&[u8]) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut walker = Walker::new(level, top);
        let (mut plaintext, mut decompressor) = (Vec::new(), Decompressor::new());
        loop {
            let leaves = walker.next_leaves(self, READ_REQUEST_BYTES, totals).await?;
            if leaves.is_empty() {
                return Ok(());
            }
            let digests: Vec<SealedDigest> = leaves.iter().map(|leaf| leaf.child.digest).collect();
            let mut expected = leaves.iter();
            let mut added = Totals::default();
            self.envelopes(&digests, |envelope| {
                let leaf = expected.next().ok_or_else(surplus)?;
                plaintext.clear();
                open_leaf(&self.keys, envelope, &leaf.child, &mut plaintext, &mut decompressor)?;
                added.chunk_count = added.chunk_count.saturating_add(1);
                added.sealed_bytes = added.sealed_bytes.saturating_add(length_of(envelope));
                take(&plaintext)
            })
            .await?;
            *totals = sum(*totals, added);
        }
    }

    async fn read_once(
        &self,
        digests: &[SealedDigest],
        taken: &mut usize,
        is_answered: &mut bool,
        take: &mut impl FnMut(&[u8]) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut body = BytesMut::with_capacity(digests.len().saturating_mul(32));
        for digest in digests {
            body.extend_from_slice(digest.as_bytes());
        }
        let wanted = taken.saturating_add(digests.len());
        let route = Route::Read(self.namespace);
        let mut answer = self.client.stream(&route, Bytes::from(body).into()).await?;
        *is_answered = true;
        let mut decoder = FrameDecoder::default();
        while let Some(part) = answer.next().await? {
            decoder.push(&part);
            while let Some(envelope) = decoder.next_frame()? {
                if *taken == wanted {
                    return Err(surplus());
                }
                take(&envelope)?;
                *taken = taken.saturating_add(1);
            }
        }
        decoder.finish()?;
        if *taken < wanted {
            return Err(ClientError::Unreachable("the answer ended early".into()));
        }
        answer.finish();
        Ok(())
    }
}

/// A chunk, and where in its stream it begins.
#[derive(Clone, Copy)]
pub struct Leaf {
    /// Bytes of the stream before it.
    pub offset: u64,
    /// What the node above says of it.
    pub child: NodeChild,
}

/// Walks a stream's chunks in order.
pub struct Walker {
    /// What is still to come, with its level; the next thing is in front.
    frontier: VecDeque<(u8, NodeChild)>,
    /// Bytes of the stream before what is in front.
    at: u64,
    /// What is wanted of the stream, in order, without overlaps; all of it where nothing is said.
    wanted: Option<VecDeque<Range<u64>>>,
}

impl Walker {
    /// A walk below `top`, which is a chunk at level 0 and a node above.
    pub fn new(level: u8, top: NodeChild) -> Self {
        Self { frontier: VecDeque::from([(level, top)]), at: 0, wanted: None }
    }

    /// A walk to the chunks that have bytes of `ranges`, which rise and do not overlap.
    pub fn to_ranges(level: u8, top: NodeChild, ranges: Vec<Range<u64>>) -> Self {
        Self { wanted: Some(ranges.into()), ..Self::new(level, top) }
    }

    /// The next chunks, of about `max_bytes` of plaintext and at most one request; none at the
    /// end. Counts the nodes that it opens into `totals`.
    pub async fn next_leaves(
        &mut self,
        fetcher: &Fetcher,
        max_bytes: u64,
        totals: &mut Totals,
    ) -> Result<Vec<Leaf>, ClientError> {
        let (mut leaves, mut bytes) = (Vec::new(), 0u64);
        while let Some((level, _)) = self.next_wanted() {
            if level > 0 {
                // Give out what is there before more is opened.
                if !leaves.is_empty() && bytes >= max_bytes / 2 {
                    return Ok(leaves);
                }
                self.open_front(fetcher, level, totals).await?;
                continue;
            }
            let is_full = u32::try_from(leaves.len()).map_or(true, |count| count >= READ_MAX_COUNT);
            if is_full || (bytes >= max_bytes && !leaves.is_empty()) {
                return Ok(leaves);
            }
            if let Some((_, child)) = self.frontier.pop_front() {
                leaves.push(Leaf { offset: self.at, child });
                bytes = bytes.saturating_add(child.plaintext_bytes);
                self.at = self.at.saturating_add(child.plaintext_bytes);
            }
        }
        Ok(leaves)
    }

    /// Passes over what nobody wants; gives what is in front then.
    fn next_wanted(&mut self) -> Option<(u8, NodeChild)> {
        loop {
            let (level, child) = self.frontier.front().copied()?;
            let end = self.at.saturating_add(child.plaintext_bytes);
            let Some(wanted) = &mut self.wanted else { return Some((level, child)) };
            while wanted.front().is_some_and(|range| range.end <= self.at) {
                wanted.pop_front();
            }
            if wanted.front()?.start < end {
                return Some((level, child));
            }
            self.frontier.pop_front();
            self.at = end;
        }
    }

    /// Opens the nodes in front, as far as they are wanted, and puts their children in their
    /// place.
    async fn open_front(
        &mut self,
        fetcher: &Fetcher,
        level: u8,
        totals: &mut Totals,
    ) -> Result<(), ClientError> {
        let (mut nodes, mut at) = (Vec::new(), self.at);
        while nodes.len() < NODES_AT_ONCE
            && let Some((here, node)) = self.frontier.front().copied()
            && here == level
        {
            let end = at.saturating_add(node.plaintext_bytes);
            if !nodes.is_empty() && !self.is_wanted(at..end) {
                break;
            }
            nodes.push(node);
            self.frontier.pop_front();
            at = end;
        }
        let opened = fetcher.nodes(level, &nodes, totals).await?;
        opened.iter().try_for_each(|children| refuse_empty(children))?;
        for child in opened.into_iter().flatten().rev() {
            self.frontier.push_front((level.saturating_sub(1), child));
        }
        Ok(())
    }

    fn is_wanted(&self, bytes: Range<u64>) -> bool {
        let Some(wanted) = &self.wanted else { return true };
        let first = wanted.partition_point(|range| range.end <= bytes.start);
        wanted.get(first).is_some_and(|range| range.start < bytes.end)
    }
}

/// Opens a chunk's envelope and appends it to `plaintext`: it must be what the node above says of
/// it.
pub fn open_leaf(
    keys: &PlaintextKeys,
    envelope: &[u8],
    leaf: &NodeChild,
    plaintext: &mut Vec<u8>,
    decompressor: &mut Decompressor,
) -> Result<(), ClientError> {
    let NodeChild { digest, h, plaintext_bytes } = leaf;
    unseal_chunk(keys, envelope, digest, h, *plaintext_bytes, plaintext, decompressor)
        .map_err(|error| damaged(digest, error))
}

/// An envelope that fails its checks: the snapshot cannot be trusted as it is.
fn damaged(digest: &SealedDigest, error: UnsealError) -> ClientError {
    ClientError::Untrusted(format!("chunk or node {digest}: {error}"))
}

/// The sum of two counts.
pub fn sum(one: Totals, other: Totals) -> Totals {
    Totals {
        chunk_count: one.chunk_count.saturating_add(other.chunk_count),
        sealed_bytes: one.sealed_bytes.saturating_add(other.sealed_bytes),
    }
}

/// Room for a chunk is taken before the chunk is there, by what the node above says of it.
fn refuse_long(leaf: &NodeChild) -> Result<(), ClientError> {
    if leaf.plaintext_bytes <= u64::from(CHUNK_MAX_BYTES) {
        return Ok(());
    }
    Err(ClientError::Untrusted(format!(
        "chunk {}: the node above it says {} bytes, and no chunk has more than {CHUNK_MAX_BYTES}: \
         the writer was broken or hostile; restore another snapshot",
        leaf.digest, leaf.plaintext_bytes
    )))
}

/// A part of a snapshot that is not there is damage, whatever the server calls it.
fn lacking(error: ClientError) -> ClientError {
    match error.code() {
        Some(ErrorCode::NotFound) => ClientError::Untrusted(format!(
            "the repository lacks a part of this snapshot ({error}): restore another snapshot or \
             from a replica, and tell the operator"
        )),
        Some(ErrorCode::Damaged) => ClientError::Untrusted(format!(
            "a part of this snapshot is damaged on the server ({error}): restore it from a replica \
             (--server HOST --from-replica), or restore another snapshot, and tell the operator"
        )),
        _ => error,
    }
}

fn undelivered(digest: &SealedDigest) -> ClientError {
    ClientError::Untrusted(format!(
        "the server breaks off before chunk or node {digest} each time: its copy is damaged or \
         gone; restore another snapshot or from a replica, and tell the operator"
    ))
}

/// Nothing stands for no bytes beside something: so a walk ends, because it meets no more chunks
/// than the stream has bytes. (An empty stream is one chunk, below nodes of one child.)
fn refuse_empty(children: &[NodeChild]) -> Result<(), ClientError> {
    let is_empty = |child: &&NodeChild| child.plaintext_bytes == 0;
    match children.iter().find(is_empty).filter(|_| children.len() > 1) {
        None => Ok(()),
        Some(child) => Err(ClientError::Untrusted(format!(
            "chunk or node {}: the node above it says that it has no bytes, and it is not alone: \
             the writer was broken or hostile; restore another snapshot",
            child.digest
        ))),
    }
}

fn surplus() -> ClientError {
    ClientError::Protocol("the server sent more envelopes than it was asked for".into())
}

fn length_of(envelope: &[u8]) -> u64 {
    u64::try_from(envelope.len()).unwrap_or(u64::MAX)
}
