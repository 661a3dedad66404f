//! `POST /v1/lend`: a primary's connection is turned round, and this server asks over it
//! (`docs/decisions/0014-lent-connections.md`).

use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HeaderName, UPGRADE};
use hyper::{Request, Response, StatusCode};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::lend::{self, LEND_PROOF_HEADER, LEND_PROTOCOL};

use crate::error::ServerError;
use crate::handler::{Answer, Peer, bad_request};
use crate::registry::Principal;
use crate::repository::Repository;

/// Takes the connection of a feeder into its pool, once it is turned round. The feeder's signing
/// key is the ledger key of the primary; who holds only the key that dials is refused.
pub async fn lend(
    repository: &Arc<Repository>,
    (peer, feeder): (&Peer, &Principal),
    mut request: Request<Incoming>,
) -> Result<Answer, ServerError> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let is_lending = text(UPGRADE) == Some(LEND_PROTOCOL) && request.body().is_end_stream();
    let proof = text(HeaderName::from_static(LEND_PROOF_HEADER)).filter(|_| is_lending);
    let Some(proof) = proof else {
        return Err(bad_request("this request only turns a connection round, with a proof"));
    };
    if lend::check(&feeder.signing_key, &peer.exporter, proof).is_err() {
        tracing::error!(
            feeder = %feeder.id,
            "ALARM: somebody lends a connection with a primary's key and without its ledger key"
        );
        let message = "the proof is not that of the ledger that is followed";
        return Err(ServerError::peer(ErrorCode::NotAllowed, message));
    }
    let pool = repository.followers().lent().pool(feeder.id);
    if !pool.has_room() {
        return Err(ServerError::peer(ErrorCode::TooMany, "no more connections are taken now"));
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
