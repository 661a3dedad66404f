//! `POST /v1/lend`: a primary's connection is turned round, and this server asks over it
//! (`docs/decisions/0014-lent-connections.md`).

use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Request, Response, StatusCode};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::route::LEND_PROTOCOL;

use crate::error::ServerError;
use crate::handler::{Answer, bad_request};
use crate::registry::Principal;
use crate::repository::Repository;

/// Takes the connection of a feeder into its pool, once it is turned round.
pub async fn lend(
    repository: &Arc<Repository>,
    feeder: &Principal,
    mut request: Request<Incoming>,
) -> Result<Answer, ServerError> {
    let protocol = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    if protocol != Some(LEND_PROTOCOL) || !request.body().is_end_stream() {
        return Err(bad_request("this request only turns a connection round"));
    }
    let pool = repository.followers().lent().pool(feeder.id);
    if !pool.has_room() {
        return Err(ServerError::peer(ErrorCode::TooMany, "enough connections are lent already"));
    }
    let turned = hyper::upgrade::on(&mut request);
    let patience = repository.config().limits.handshake.0;
    tokio::spawn(async move {
        let Ok(Ok(stream)) = tokio::time::timeout(patience, turned).await else { return };
        let Ok((sender, driver)) = http1::handshake(stream).await else { return };
        pool.lend(sender);
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a lent connection ended");
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, LEND_PROTOCOL)
        .body(Empty::new().map_err(|never| match never {}).boxed())
        .map_err(|error| ServerError::Bug(error.to_string()))
}
