//! Handlers: decode, call one verb of the repository, encode. No storage code, no decisions.
//!
//! Verbs block, so they run on threads that may. Bodies are read only after `auth.rs` agreed, and
//! never beyond the route's limit.

pub mod body;
pub mod clock;
pub mod ledger;
pub mod lend;
pub mod retention;
pub mod session;
pub mod snapshot;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use strongroom_protocol::error::{ErrorBody, ErrorCode};
use strongroom_protocol::id::{SealedDigest, TlsKeyDigest};

use crate::error::{Refusal, ServerError};
pub use crate::handler::body::RequestBody;
use crate::repository::Repository;

/// Body of an answer. An error in the middle of one cuts the connection.
pub type AnswerBody = BoxBody<Bytes, ServerError>;
/// An answer.
pub type Answer = Response<AnswerBody>;

/// What is known of the connection that a request came on.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Pin of the client's TLS key.
    pub tls_key: TlsKeyDigest,
    /// RFC 9266 exporter of the connection.
    pub exporter: [u8; 32],
}

/// Runs a verb on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    repository: &Arc<Repository>,
    verb: impl FnOnce(&Arc<Repository>) -> Result<T, ServerError> + Send + 'static,
) -> Result<T, ServerError> {
    let repository = repository.clone();
    let outcome = tokio::task::spawn_blocking(move || verb(&repository)).await;
    outcome.map_err(|error| ServerError::Bug(format!("verb ended: {error}")))?
}

/// An answer with a JSON body.
pub fn json<T: Serialize>(value: &T) -> Result<Answer, ServerError> {
    let bytes = serde_json::to_vec(value).map_err(|error| ServerError::Bug(error.to_string()))?;
    answer(StatusCode::OK, "application/json", bytes.into())
}

/// An answer with a binary body.
pub fn binary(bytes: impl Into<Bytes>) -> Result<Answer, ServerError> {
    answer(StatusCode::OK, "application/octet-stream", bytes.into())
}

/// The answer to a refused request.
pub fn refused(refusal: Refusal, request_id: &str) -> Result<Answer, ServerError> {
    let status = StatusCode::from_u16(refusal.code.status())
        .map_err(|error| ServerError::Bug(error.to_string()))?;
    let code = refusal.code;
    let body = ErrorBody {
        code,
        message: refusal.message,
        request_id: request_id.to_owned(),
        missing: refusal.missing,
        locked_until_seconds: refusal.locked_until_seconds,
    };
    let bytes = serde_json::to_vec(&body).map_err(|error| ServerError::Bug(error.to_string()))?;
    let mut answer = answer(status, "application/json", bytes.into())?;
    if code == ErrorCode::UnknownPrincipal {
        // Strangers, and those who were revoked, do not keep a connection by asking.
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(answer)
}

/// A refusal of a request that is not well formed.
pub fn bad_request(message: &str) -> ServerError {
    ServerError::peer(ErrorCode::BadRequest, message)
}

/// Digests that stand one after the other.
pub fn digests_of(bytes: &[u8]) -> Result<Vec<SealedDigest>, ServerError> {
    let (digests, rest) = bytes.as_chunks::<{ SealedDigest::BYTES }>();
    if !rest.is_empty() || digests.is_empty() {
        return Err(bad_request("the body is not a list of digests of 32 bytes"));
    }
    Ok(digests.iter().map(|digest| SealedDigest(*digest)).collect())
}

fn answer(status: StatusCode, kind: &str, bytes: Bytes) -> Result<Answer, ServerError> {
    let body = Full::new(bytes).map_err(|never| match never {}).boxed();
    Response::builder()
        .status(status)
        .header("content-type", kind)
        .body(body)
        .map_err(|error| ServerError::Bug(error.to_string()))
}
