//! Snapshots on the wire: list, record, receipt, envelopes, forget; and who the server is.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper::{Response, StatusCode};
use strongroom_protocol::frame::prefix;
use strongroom_protocol::id::{Label, NamespaceId, RecordDigest};
use strongroom_protocol::message::Forgotten;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::clock::Stopwatch;
use crate::error::ServerError;
use crate::handler::{Answer, Peer, RequestBody, bad_request, binary, blocking, json};
use crate::metrics::Metrics;
use crate::refusals::Reason;
use crate::registry::Principal;
use crate::repository::Repository;

/// Pieces that wait for the network; with the size of one, the memory of one reader.
const PIECES_WAITING: usize = 8;

/// `POST /v1/enroll`
pub async fn enroll(
    repository: &Arc<Repository>,
    peer: &Peer,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let bytes = body.whole().await?;
    let peer = peer.clone();
    let answer =
        blocking(repository, move |r| r.enroll(&bytes, peer.tls_key, &peer.exporter)).await?;
    json(&answer)
}

/// `POST /v1/keys`
pub async fn roll_keys(
    repository: &Arc<Repository>,
    (peer, principal): (&Peer, &Principal),
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let (bytes, peer, principal) = (body.whole().await?, peer.clone(), principal.clone());
    let rolled = blocking(repository, move |r| {
        r.roll_keys(&principal, (peer.tls_key, &peer.exporter), &bytes)
    });
    json(&rolled.await?)
}

/// `GET /v1/ns/{ns}/descriptor?version=N`
pub async fn descriptor(
    repository: &Arc<Repository>,
    namespace: NamespaceId,
    query: Option<&str>,
) -> Result<Answer, ServerError> {
    let version = match query.map(|query| query.strip_prefix("version=").map(str::parse)) {
        None => None,
        Some(Some(Ok(version))) => Some(version),
        Some(_) => return Err(bad_request("unknown query: version=N is known")),
    };
    binary(blocking(repository, move |r| r.descriptor(&namespace, version)).await?)
}

/// `POST /v1/ns/{ns}/descriptor`
pub async fn offer_descriptor(
    repository: &Arc<Repository>,
    principal: Principal,
    namespace: NamespaceId,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let bytes = body.whole().await?;
    json(&blocking(repository, move |r| r.offer_descriptor(&principal, &namespace, &bytes)).await?)
}

/// `GET /v1/ns/{ns}/snapshots?after=N&source=LABEL`
pub async fn list(
    repository: &Arc<Repository>,
    namespace: NamespaceId,
    query: Option<&str>,
) -> Result<Answer, ServerError> {
    let (mut after, mut source) = (0, None);
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("after", number)) => {
                after = number.parse().map_err(|_| bad_request("after: not a number"))?;
            }
            Some(("source", label)) => {
                let label: Label =
                    label.parse().map_err(|_| bad_request("source: not a source label"))?;
                source = Some(label);
            }
            _ => return Err(bad_request("unknown query: after=N and source=LABEL are known")),
        }
    }
    let page = blocking(repository, move |r| r.list(&namespace, source.as_ref(), after)).await?;
    json(&page)
}

/// `GET /v1/ns/{ns}/snapshots/{record}`
pub async fn record(
    repository: &Arc<Repository>,
    principal: Principal,
    namespace: NamespaceId,
    digest: RecordDigest,
) -> Result<Answer, ServerError> {
    binary(blocking(repository, move |r| r.record(&principal, &namespace, &digest)).await?)
}

/// `GET /v1/ns/{ns}/snapshots/{record}/receipt`
pub async fn receipt(
    repository: &Arc<Repository>,
    namespace: NamespaceId,
    digest: RecordDigest,
) -> Result<Answer, ServerError> {
    let receipt = blocking(repository, move |r| r.receipt(&namespace, &digest)).await?;
    binary(receipt.encode())
}

/// `POST /v1/ns/{ns}/snapshots/{record}/forget`
pub async fn forget(
    repository: &Arc<Repository>,
    principal: Principal,
    namespace: NamespaceId,
    record: RecordDigest,
) -> Result<Answer, ServerError> {
    blocking(repository, move |r| r.forget(&principal, &namespace, &record)).await?;
    json(&Forgotten { record })
}

/// `POST /v1/ns/{ns}/envelopes`: a stream, read ahead by at most [`PIECES_WAITING`] pieces.
pub async fn read(
    repository: &Arc<Repository>,
    principal: Principal,
    namespace: NamespaceId,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let digests = body.digests().await?;
    let digests = blocking(repository, move |r| {
        r.check_readable(&namespace, &digests)?;
        Ok(digests)
    });
    let digests = digests.await?;
    let place = repository.readers().enter(principal.id)?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, ServerError>>(PIECES_WAITING);
    let reader = repository.clone();
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let limits = &reader.config().limits;
        let (patience, began) = (limits.body_idle.0, Stopwatch::start());
        // A reader that takes nothing for so long loses its thread; so does one that never ends.
        let send = |piece| {
            let is_late = began.elapsed() > limits.request.0;
            if is_late {
                reader.metrics().refusals.count(Reason::RequestTime);
            }
            !is_late && runtime.block_on(sender.send_timeout(piece, patience)).is_ok()
        };
        let mut piece = reader.readers().piece();
        let mut each = |envelope: &[u8]| {
            let Ok(prefix) = prefix(envelope) else { return ControlFlow::Break(()) };
            if piece.is_full(prefix.len().saturating_add(envelope.len())) {
                let full = std::mem::replace(&mut piece, reader.readers().piece());
                if !send(Ok(full.freeze())) {
                    return ControlFlow::Break(());
                }
            }
            piece.push(&prefix);
            piece.push(envelope);
            ControlFlow::Continue(())
        };
        match reader.read(&namespace, &digests, &mut each) {
            Ok(()) => send(Ok(piece.freeze())),
            Err(error) => {
                tracing::warn!(%error, "reading envelopes ended early");
                send(Err(error))
            }
        };
    });
    let body = PieceBody { receiver, metrics: repository.metrics().clone() };
    Response::builder()
        .status(StatusCode::OK)
        .header("content-type", "application/octet-stream")
        .body(body.boxed())
        .map_err(|error| ServerError::Bug(error.to_string()))
}

/// Body made of the pieces that a reading thread sends.
struct PieceBody {
    receiver: mpsc::Receiver<Result<Bytes, ServerError>>,
    metrics: Arc<Metrics>,
}

impl Body for PieceBody {
    type Data = Bytes;
    type Error = ServerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ServerError>>> {
        self.receiver.poll_recv(context).map(|piece| {
            let piece = piece?;
            if let Ok(bytes) = &piece {
                self.metrics.sent_bytes.inc_by(u64::try_from(bytes.len()).unwrap_or(0));
            }
            Some(piece.map(Frame::data))
        })
    }
}
