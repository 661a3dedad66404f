//! Where a primary's ledger, records and envelopes come from: the primary itself, or an export that
//! it made, as files in a folder. Whoever asks verifies what comes in the same way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{Label, NamespaceId, RecordDigest, SealedDigest};
use strongroom_protocol::limits::{
    CHECKPOINT_MAX_BYTES, DESCRIPTOR_MAX_BYTES, ENTRY_MAX_BYTES, RECORD_MAX_BYTES,
};
use strongroom_protocol::message::{ConsistencyAnswer, HexBytes, NamespaceRow};
use strongroom_protocol::route::Route;
use strongroom_protocol::tile::{TILE_WIDTH, Tile, push_entry};

use super::blocking;
use super::error::ReplicaError;
use super::peer::{self, Peer};
use crate::seed::folder::{Place, SeedFolder};

/// Envelopes of an export that are read at once.
const BATCH_BYTES: usize = 2 << 20;
const BATCH_MAX: usize = 256;
/// Digests that are asked for at once: of a primary, whose answers are bounded, and of a folder,
/// where a question costs more than its answer.
const PEER_REQUEST_MAX: usize = 1024;
const FOLDER_REQUEST_MAX: usize = 16_384;

/// A primary, however it is reached.
pub enum Source {
    /// Over the network.
    Peer(Peer),
    /// By an export.
    Folder(Arc<SeedFolder>),
}

/// Envelopes that arrive, in the order in which they were asked for. Nothing of them is checked.
pub enum Reading<'a> {
    /// From the primary.
    Peer(peer::Reading<'a>),
    /// From packs.
    Folder(FolderReading),
}

/// Envelopes that are read from packs.
pub struct FolderReading {
    folder: Arc<SeedFolder>,
    left: VecDeque<Place>,
    ready: VecDeque<Bytes>,
}

impl Source {
    /// The folder, if it is one.
    pub fn folder(&self) -> Option<&Arc<SeedFolder>> {
        match self {
            Self::Peer(_) => None,
            Self::Folder(folder) => Some(folder),
        }
    }

    /// Most digests of one question.
    pub fn request_max(&self) -> usize {
        match self {
            Self::Peer(_) => PEER_REQUEST_MAX,
            Self::Folder(_) => FOLDER_REQUEST_MAX,
        }
    }

    /// The newest checkpoint, and the proof from the tree of `size` to it, or to that of `to`.
    pub async fn consistency(
        &self,
        size: u64,
        to: Option<u64>,
    ) -> Result<ConsistencyAnswer, ReplicaError> {
        match self {
            Self::Peer(peer) => {
                let query = to.map(|to| format!("to={to}")).unwrap_or_default();
                peer.json(&Route::Consistency(size), &query).await
            }
            Self::Folder(folder) => {
                let folder = folder.clone();
                let to = to.unwrap_or(folder.checkpoint().size);
                let checkpoint = folder.manifest().checkpoint.clone();
                let proof = blocking(move || Ok(folder.consistency(size, to)?)).await?;
                let lacks = || ReplicaError::Lacking("the export is older".into());
                let proof = HexBytes(proof.ok_or_else(lacks)?.concat());
                Ok(ConsistencyAnswer { checkpoint, proof })
            }
        }
    }

    /// The newest checkpoint, without a proof.
    pub async fn checkpoint(&self) -> Result<String, ReplicaError> {
        match self {
            Self::Peer(peer) => {
                let max = u64::from(CHECKPOINT_MAX_BYTES);
                let note = peer.call(&Route::Checkpoint, "", Bytes::new(), max).await?;
                Ok(String::from_utf8_lossy(&note).into_owned())
            }
            Self::Folder(folder) => Ok(folder.manifest().checkpoint.clone()),
        }
    }

    /// A bundle of entries.
    pub async fn bundle(&self, tile: Tile) -> Result<Bytes, ReplicaError> {
        match self {
            Self::Peer(peer) => {
                let max = u64::from(TILE_WIDTH).saturating_mul(u64::from(ENTRY_MAX_BYTES) + 2);
                peer.call(&Route::Tile(tile), "", Bytes::new(), max).await
            }
            Self::Folder(folder) => {
                let folder = folder.clone();
                let start = tile.index.saturating_mul(u64::from(TILE_WIDTH));
                let width = u64::from(tile.width);
                let entries = blocking(move || Ok(folder.entries(start, width)?)).await?;
                let mut bundle = Vec::new();
                for entry in entries {
                    push_entry(&mut bundle, &entry)?;
                }
                Ok(bundle.into())
            }
        }
    }

    /// Names of namespaces.
    pub async fn names(&self) -> Result<HashMap<NamespaceId, Label>, ReplicaError> {
        match self {
            Self::Peer(peer) => {
                let rows: Vec<NamespaceRow> = peer.json(&Route::Namespaces, "").await?;
                Ok(rows.into_iter().map(|row| (row.namespace, row.name)).collect())
            }
            Self::Folder(folder) => {
                let listed = folder.manifest().namespaces.iter();
                Ok(listed.map(|row| (row.namespace, row.name.clone())).collect())
            }
        }
    }

    /// The newest descriptor of a namespace, or a certain version.
    pub async fn descriptor(
        &self,
        namespace: &NamespaceId,
        version: Option<u64>,
    ) -> Result<Bytes, ReplicaError> {
        match self {
            Self::Peer(peer) => {
                let query = version.map_or_else(String::new, |number| format!("version={number}"));
                let (route, max) = (Route::Descriptor(*namespace), u64::from(DESCRIPTOR_MAX_BYTES));
                peer.call(&route, &query, Bytes::new(), max).await
            }
            Self::Folder(folder) => {
                let (folder, namespace) = (folder.clone(), *namespace);
                let versions = blocking(move || Ok(folder.descriptors(&namespace)?)).await?;
                let is_asked = |one: &&VerifiedDescriptor| {
                    version.is_none_or(|version| one.contents().version == version)
                };
                let lacks = || {
                    ReplicaError::Lacking(format!("that descriptor of {namespace} is not in it"))
                };
                let found = versions.iter().rfind(is_asked).ok_or_else(lacks)?;
                Ok(found.encoded().to_vec().into())
            }
        }
    }

    /// A record.
    pub async fn record(
        &self,
        namespace: &NamespaceId,
        digest: &RecordDigest,
    ) -> Result<Bytes, ReplicaError> {
        match self {
            Self::Peer(peer) => {
                let route = Route::Record(*namespace, *digest);
                peer.call(&route, "", Bytes::new(), u64::from(RECORD_MAX_BYTES)).await
            }
            Self::Folder(folder) => {
                let (folder, namespace, digest) = (folder.clone(), *namespace, *digest);
                let record = blocking(move || Ok(folder.record(&namespace, &digest)?)).await?;
                let lacks = || ReplicaError::Lacking("its record is not in the export".into());
                record.ok_or_else(lacks)
            }
        }
    }

    /// Asks for envelopes.
    pub async fn read(
        &self,
        namespace: NamespaceId,
        digests: &[SealedDigest],
    ) -> Result<Reading<'_>, ReplicaError> {
        let folder = match self {
            Self::Peer(peer) => return Ok(Reading::Peer(peer.read(namespace, digests).await?)),
            Self::Folder(folder) => folder.clone(),
        };
        let (asked, wanted) = (folder.clone(), digests.to_vec());
        let places = blocking(move || Ok(asked.locate(&namespace, &wanted)?)).await?;
        let mut left = VecDeque::with_capacity(places.len());
        for (place, digest) in places.into_iter().zip(digests) {
            let lacks = || ReplicaError::Lacking(format!("envelope {digest} is not in the export"));
            left.push_back(place.ok_or_else(lacks)?);
        }
        Ok(Reading::Folder(FolderReading { folder, left, ready: VecDeque::new() }))
    }

    /// What to say of an envelope that is not what its digest says.
    pub fn wrong_bytes(&self, namespace: &NamespaceId, digest: &SealedDigest) -> ReplicaError {
        match self {
            Self::Peer(_) => ReplicaError::Wrong(format!("envelope {digest}: other bytes came")),
            Self::Folder(folder) => folder.damaged(namespace, digest).into(),
        }
    }
}

impl Reading<'_> {
    /// The next envelope, or nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReplicaError> {
        match self {
            Self::Peer(reading) => reading.next().await,
            Self::Folder(reading) => reading.next().await,
        }
    }

    /// Lets go of the memory that envelopes given so far share with what is still arriving.
    pub fn detach(&mut self) {
        if let Self::Peer(reading) = self {
            reading.detach();
        }
    }
}

impl FolderReading {
    async fn next(&mut self) -> Result<Option<Bytes>, ReplicaError> {
        if self.ready.is_empty() && !self.left.is_empty() {
            let (mut bytes, mut places) = (0usize, Vec::new());
            while let Some(place) = self.left.front()
                && bytes < BATCH_BYTES
                && places.len() < BATCH_MAX
            {
                bytes = bytes.saturating_add(place.bytes());
                places.extend(self.left.pop_front());
            }
            let folder = self.folder.clone();
            self.ready = blocking(move || Ok(folder.read(&places)?)).await?.into();
        }
        Ok(self.ready.pop_front())
    }
}
