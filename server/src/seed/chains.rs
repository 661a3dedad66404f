//! Chains of descriptors of an export, each verified once.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use strongroom_protocol::codec::Reader;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::NamespaceId;
use strongroom_protocol::limits::{DESCRIPTOR_MAX_BYTES, SEED_DESCRIPTORS_MAX_BYTES};
use strongroom_protocol::seed::{Manifest, SeedNamespace};

use super::{DESCRIPTORS_MAGIC, bad, descriptor_file};
use crate::durable;
use crate::error::ServerError;

/// Encoded descriptors that are kept, in bytes; chains beyond that are read each time.
const KEPT_MAX_BYTES: usize = 32 << 20;

/// All descriptors of a namespace, from the first on.
pub(super) type Chain = Arc<[VerifiedDescriptor]>;

/// Verifies the chains of all namespaces and gives those that fit in memory.
pub(super) fn read_all(
    folder: &Path,
    manifest: &Manifest,
) -> Result<HashMap<NamespaceId, Chain>, ServerError> {
    let (mut chains, mut kept_bytes) = (HashMap::new(), 0usize);
    for namespace in &manifest.namespaces {
        let chain = read(folder, namespace)?;
        let bytes: usize = chain.iter().map(|version| version.encoded().len()).sum();
        let with_it = kept_bytes.saturating_add(bytes);
        if with_it <= KEPT_MAX_BYTES {
            kept_bytes = with_it;
            chains.insert(namespace.namespace, chain);
        }
    }
    Ok(chains)
}

/// Reads and verifies the chain of one namespace; it must end in what the manifest names.
pub(super) fn read(folder: &Path, known: &SeedNamespace) -> Result<Chain, ServerError> {
    let id = &known.namespace;
    let path = descriptor_file(folder, id);
    let length = path.metadata().map_or(0, |metadata| metadata.len());
    if length > SEED_DESCRIPTORS_MAX_BYTES {
        return Err(bad(&path, "longer than any chain of descriptors"));
    }
    let (bytes, mut versions) = (durable::read(&path)?, Vec::<VerifiedDescriptor>::new());
    let mut reader = Reader::new("descriptors", &bytes);
    reader.magic(DESCRIPTORS_MAGIC).map_err(|error| bad(&path, error))?;
    while reader.remaining() > 0 {
        let encoded = reader.bytes(DESCRIPTOR_MAX_BYTES).map_err(|error| bad(&path, error))?;
        let next =
            VerifiedDescriptor::decode_for(encoded, id, 0).map_err(|error| bad(&path, error))?;
        let follows = match versions.last() {
            Some(before) => next.check_follows(before).is_ok(),
            None => next.contents().version == 1,
        };
        if !follows {
            return Err(bad(&path, "its descriptors do not follow each other"));
        }
        versions.push(next);
    }
    match versions.last() {
        Some(newest) if newest.digest() == known.descriptor => Ok(versions.into()),
        _ => Err(bad(&path, "another descriptor than the manifest names")),
    }
}
