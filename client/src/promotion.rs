//! Moves a namespace to another server: from a server's request and the recovery kit to the next
//! descriptor, which names that server's ledger key and no other.
//!
//! No server is asked: this runs where the kit is, offline. The request proves that one ledger key
//! stands behind it, and nothing about whose it is; so the key is shown, to be compared with what
//! the server itself printed. Equal requests and kits give equal bytes.
//!
//! **One server at a time**: two that are named would both take backups, and nothing would say
//! whose are the newest (`docs/decisions/0011-promotion.md`).

use std::path::PathBuf;

use serde::Serialize;
use strongroom_protocol::descriptor::Descriptor;
use strongroom_protocol::id::{Label, NamespaceId, PublicKey};
use strongroom_protocol::promotion::PromotionRequest;

use crate::error::ClientError;
use crate::kit::Kit;
use crate::offer::next_after;

/// What is signed; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promotion {
    /// The namespace.
    pub namespace: NamespaceId,
    /// Its name on the server that asks.
    pub namespace_name: Label,
    /// Version of the descriptor that is signed.
    pub version: u64,
    /// Ledger key of the server that takes backups from then on.
    pub ledger_key: PublicKey,
    /// Where that server says it is reached.
    pub addresses: String,
    /// Snapshots that it says it has.
    pub snapshots: u64,
    /// Entries of its ledger.
    pub ledger_size: u64,
    /// Ledger keys of the servers that take no more backups from then on.
    pub dropped_ledger_keys: Vec<PublicKey>,
    /// Where the descriptor is.
    pub file: PathBuf,
}

/// What is to be signed, and where it goes.
pub struct Prepared {
    next: Descriptor,
    summary: Promotion,
}

/// Reads a request, and checks that the kit may answer it. Nothing is signed yet.
pub fn prepare(kit: &Kit, request: &[u8], file: PathBuf) -> Result<Prepared, ClientError> {
    let refused = |error: &dyn std::fmt::Display| {
        ClientError::Untrusted(format!(
            "{error}; nothing was signed: make the request again with `strongroomd promote \
             --request FILE`, and carry the whole file"
        ))
    };
    let request = PromotionRequest::decode(request).map_err(|error| refused(&error))?;
    let verified = request.verify().map_err(|error| refused(&error))?;
    let newest = verified.descriptor.contents();
    if verified.descriptor.namespace() != kit.namespace {
        return Err(ClientError::Untrusted(format!(
            "the request is about another namespace ({}) than the kit; nothing was signed",
            request.namespace_name
        )));
    }
    if newest.version < kit.descriptor_version {
        return Err(ClientError::Untrusted(format!(
            "the server's newest descriptor is version {}, and the kit has seen version {}: the \
             server was rolled back or is too far behind; nothing was signed",
            newest.version, kit.descriptor_version
        )));
    }
    let ledger_key = request.ledger_key;
    if newest.ledger_keys == [ledger_key] {
        return Err(ClientError::Usage(format!(
            "version {} of the descriptor names this server already, and no other: there is \
             nothing to sign",
            newest.version
        )));
    }
    let next = next_after(&verified.descriptor).map_err(|_| refused(&"no version is left"))?;
    let dropped = newest.ledger_keys.iter().copied().filter(|key| *key != ledger_key);
    let summary = Promotion {
        namespace: kit.namespace,
        namespace_name: request.namespace_name,
        version: next.version,
        ledger_key,
        addresses: request.addresses,
        snapshots: request.snapshots,
        ledger_size: verified.ledger_size,
        dropped_ledger_keys: dropped.collect(),
        file,
    };
    Ok(Prepared { next: Descriptor { ledger_keys: vec![ledger_key], ..next }, summary })
}

impl Prepared {
    /// What will be signed.
    pub fn summary(&self) -> &Promotion {
        &self.summary
    }

    /// Signs with the kit's authority key; gives the descriptor.
    pub fn sign(&self, kit: &Kit) -> Vec<u8> {
        self.next.sign(&kit.authority_key)
    }
}
