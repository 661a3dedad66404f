//! The retention clock on the wire.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::ServerError;
use crate::handler::{Answer, RequestBody, binary, blocking, json};
use crate::registry::Principal;
use crate::repository::Repository;

/// `GET /v1/clock`
pub async fn status(repository: &Arc<Repository>) -> Result<Answer, ServerError> {
    json(&blocking(repository, |r| Ok(r.clock_status())).await?)
}

/// `POST /v1/witness`
pub async fn report_head(
    repository: &Arc<Repository>,
    principal: Principal,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let note = body.whole().await?;
    blocking(repository, move |r| r.report_head(&principal, &note)).await?;
    binary(Bytes::new())
}
