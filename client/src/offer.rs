//! The namespace's next descriptor on its way: from the newest one, by way of the kit that signs,
//! to a server that takes it, or to a file.
//!
//! A descriptor is no secret and proves itself: the server demands the authority's signature, the
//! next version, and the digest of the one before. So a kit that stays offline reads the newest one
//! from a file (each profile keeps it as `descriptor`) and writes the next one to another, and any
//! machine of the namespace may send that. Sent twice, it is taken once.

use std::path::Path;

use bytes::Bytes;
use serde::Serialize;
use strongroom_protocol::descriptor::{Descriptor, VerifiedDescriptor};
use strongroom_protocol::id::NamespaceId;
use strongroom_protocol::limits::DESCRIPTOR_MAX_BYTES;
use strongroom_protocol::message::DescriptorOffered;
use strongroom_protocol::route::Route;

use crate::durable;
use crate::error::ClientError;
use crate::kit::Kit;
use crate::profile::ConnectOptions;
use crate::transport::{Body, Client, parse_json};
use crate::trust::ReadAccess;

/// What was signed; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The namespace.
    pub namespace: NamespaceId,
    /// Version of the new descriptor.
    pub version: u64,
    /// Its epoch.
    pub epoch: u32,
    /// Who opens the snapshots that are made by it.
    pub recipients: Vec<String>,
    /// Whether the server has it; else it waits in the file.
    pub is_published: bool,
}

/// The newest descriptor that the kit's servers have.
pub async fn newest_with_kit(
    kit: &Kit,
    connect: &ConnectOptions,
) -> Result<(VerifiedDescriptor, Client), ClientError> {
    let access = ReadAccess::with_kit(kit, connect, false).await?;
    let descriptor = access.descriptor.ok_or_else(|| {
        ClientError::Untrusted("the server has no descriptor of the namespace".into())
    })?;
    Ok((descriptor, access.client))
}

/// A descriptor of the kit's namespace from a file; not older than the kit.
pub fn newest_from_file(kit: &Kit, path: &Path) -> Result<VerifiedDescriptor, ClientError> {
    let bytes = durable::read(path, u64::from(DESCRIPTOR_MAX_BYTES))?;
    Ok(VerifiedDescriptor::decode_for(&bytes, &kit.namespace, kit.descriptor_version)?)
}

/// The next version after `newest`, with nothing changed yet.
pub fn next_after(newest: &VerifiedDescriptor) -> Result<Descriptor, ClientError> {
    let contents = newest.contents();
    let version = contents.version.checked_add(1).ok_or_else(|| {
        ClientError::Usage("no version of the descriptor is left: make a new namespace".into())
    })?;
    Ok(Descriptor { version, previous: newest.digest(), ..contents.clone() })
}

/// Gives a signed descriptor to a server.
pub async fn publish(
    client: &Client,
    namespace: NamespaceId,
    signed: Vec<u8>,
) -> Result<DescriptorOffered, ClientError> {
    let route = Route::OfferDescriptor(namespace);
    let answer = client.request(&route, "", Body::from(Bytes::from(signed))).await?;
    parse_json(&route, &answer)
}
