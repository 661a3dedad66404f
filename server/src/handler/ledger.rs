//! The ledger on the wire: tiles, and proofs that it only grew.

use std::sync::Arc;

use strongroom_protocol::tile::Tile;

use crate::error::ServerError;
use crate::handler::{Answer, bad_request, binary, blocking, json};
use crate::repository::Repository;

/// `GET /v1/tile/...`
pub async fn tile(repository: &Arc<Repository>, tile: Tile) -> Result<Answer, ServerError> {
    binary(blocking(repository, move |r| r.ledger().tile(&tile)).await?)
}

/// `GET /v1/statements/{leaf}`
pub async fn statement(repository: &Arc<Repository>, leaf: u64) -> Result<Answer, ServerError> {
    binary(blocking(repository, move |r| r.ledger().statement(leaf)).await?)
}

/// `GET /v1/consistency/{size}?to=SIZE`
pub async fn consistency(
    repository: &Arc<Repository>,
    old_size: u64,
    query: Option<&str>,
) -> Result<Answer, ServerError> {
    let mut size = None;
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        let number = query.strip_prefix("to=").and_then(|number| number.parse().ok());
        size = Some(number.ok_or_else(|| bad_request("unknown query: to=SIZE is known"))?);
    }
    json(&blocking(repository, move |r| r.ledger().consistency(old_size, size)).await?)
}
