//! Writes the trees of snapshots into packs: children first, each envelope once.
//!
//! What is in a pack is marked by its place in the store, which no other envelope ever gets. An
//! envelope that moves meanwhile (a fold, an evacuation) loses its mark, and may be written once
//! more; none is left out.

use std::ops::ControlFlow;

use roaring::RoaringTreemap;
use strongroom_protocol::envelope::Envelope;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::record::Record;
use strongroom_protocol::seed::KIND_RECORD;

use super::pack::PackWriter;
use crate::error::ServerError;
use crate::registry::Namespace;
use crate::repository::Repository;
use crate::rows::SnapshotRow;
use crate::stop::Stop;
use crate::store::error::StoreError;

/// Nodes that are read at once.
const NODE_GROUP: usize = 16;

/// Receives envelopes: position among the digests asked for, and the bytes.
type EachEnvelope<'a> = dyn FnMut(usize, &[u8]) -> Result<(), ServerError> + 'a;

/// What was written so far.
pub struct Walk<'a> {
    /// Where it comes from.
    pub repository: &'a Repository,
    /// Ends the walk.
    pub stop: &'a Stop,
    /// Where it goes.
    pub packs: PackWriter,
    /// Envelopes that are in packs, by their places in the store.
    pub envelopes: RoaringTreemap,
}

/// A node whose children are being written.
struct Layer {
    level: u8,
    digest: SealedDigest,
    place: u64,
    node: Vec<u8>,
    below: Vec<SealedDigest>,
    /// Children that were looked at.
    done: usize,
}

impl Walk<'_> {
    /// Writes what is in no pack yet of a snapshot's tree, and then its record.
    pub fn write_snapshot(
        &mut self,
        namespace: &Namespace,
        row: &SnapshotRow,
    ) -> Result<(), ServerError> {
        let body = Record::decode(&row.record)?.body;
        let mut stack = self.layers(namespace, body.root_level, &[body.root])?;
        while let Some(top) = stack.last_mut() {
            let left = top.below.get(top.done..).unwrap_or_default();
            if left.is_empty() {
                if let Some(whole) = stack.pop() {
                    let (level, digest) = (whole.level, whole.digest.0);
                    self.packs.add(&namespace.row.namespace, level, digest, &whole.node)?;
                    self.envelopes.insert(whole.place);
                }
                continue;
            }
            let level = top.level.saturating_sub(1);
            if level == 0 {
                let chunks = left.to_vec();
                top.done = top.below.len();
                self.write_chunks(namespace, &chunks)?;
                continue;
            }
            let group = left[..left.len().min(NODE_GROUP)].to_vec();
            top.done = top.done.saturating_add(group.len());
            stack.extend(self.layers(namespace, level, &group)?.into_iter().rev());
        }
        let (id, digest) = (namespace.row.namespace, row.record_digest.0);
        self.packs.add(&id, KIND_RECORD, digest, &row.record)
    }

    /// The nodes among these that are in no pack yet.
    fn layers(
        &self,
        namespace: &Namespace,
        level: u8,
        digests: &[SealedDigest],
    ) -> Result<Vec<Layer>, ServerError> {
        let wanted = self.unmarked(namespace, digests)?;
        let mut layers: Vec<Layer> = Vec::with_capacity(wanted.len());
        let (digests, places): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        read(self.repository, namespace, &digests, &mut |at, bytes| {
            let envelope = Envelope::parse(bytes)?;
            if envelope.level != level {
                return Err(ServerError::Bug("a node is not at its level".into()));
            }
            let (node, below) = (bytes.to_vec(), envelope.children().collect());
            let (digest, place) = (digests[at], places[at]);
            layers.push(Layer { level, digest, place, node, below, done: 0 });
            Ok(())
        })?;
        Ok(layers)
    }

    fn write_chunks(
        &mut self,
        namespace: &Namespace,
        digests: &[SealedDigest],
    ) -> Result<(), ServerError> {
        let wanted = self.unmarked(namespace, digests)?;
        let (digests, places): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let (repository, stop) = (self.repository, self.stop);
        let (packs, id) = (&mut self.packs, namespace.row.namespace);
        read(repository, namespace, &digests, &mut |at, bytes| {
            if stop.is_given() {
                return Err(ServerError::Closing);
            }
            packs.add(&id, 0, digests[at].0, bytes)
        })?;
        self.envelopes.extend(places);
        Ok(())
    }

    /// Those that are in no pack, each once, with their places.
    fn unmarked(
        &self,
        namespace: &Namespace,
        digests: &[SealedDigest],
    ) -> Result<Vec<(SealedDigest, u64)>, ServerError> {
        let rows = self.repository.store().lookup(namespace.number, digests)?;
        let (mut wanted, mut met) = (Vec::new(), RoaringTreemap::new());
        for (digest, row) in digests.iter().zip(rows) {
            let row = row.ok_or(StoreError::NotFound(*digest))?;
            let place = row.slot.number();
            if !self.envelopes.contains(place) && met.insert(place) {
                wanted.push((*digest, place));
            }
        }
        Ok(wanted)
    }

    /// Ends the walk with an error, if it is to end.
    pub fn breathe(&self) -> Result<(), ServerError> {
        if self.stop.is_given() { Err(ServerError::Closing) } else { Ok(()) }
    }
}

/// Reads envelopes in their order, and compares each with its digest.
fn read(
    repository: &Repository,
    namespace: &Namespace,
    digests: &[SealedDigest],
    each: &mut EachEnvelope<'_>,
) -> Result<(), ServerError> {
    let (mut at, mut failure) = (0usize, None);
    let outcome = repository.read(&namespace.row.namespace, digests, &mut |bytes| {
        let digest = digests[at];
        let taken = match SealedDigest::of(bytes) == digest {
            true => each(at, bytes),
            false => Err(StoreError::Damaged(digest).into()),
        };
        at = at.saturating_add(1);
        match taken {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    match failure {
        Some(error) => Err(error),
        None => outcome,
    }
}
