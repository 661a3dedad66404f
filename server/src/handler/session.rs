//! Sessions on the wire: open, have, prove, upload, renew, close, commit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strongroom_protocol::codec::DecodeError;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::frame::FrameDecoder;
use strongroom_protocol::id::{NamespaceId, SessionId};
use strongroom_protocol::limits::UPLOAD_MAX_COUNT;
use strongroom_protocol::message::Uploaded;

use crate::budget::Held;
use crate::error::ServerError;
use crate::handler::{Answer, RequestBody, bad_request, binary, blocking, digests_of, json};
use crate::registry::Principal;
use crate::repository::Repository;

/// Envelopes are handed to the repository in batches of about this size.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How long a refused upload may go on before its connection is cut.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Which session of which namespace a request is about, and who asks.
#[derive(Clone)]
pub struct InSession {
    /// Who.
    pub principal: Principal,
    /// Where.
    pub namespace: NamespaceId,
    /// Which.
    pub session: SessionId,
}

/// `POST /v1/ns/{ns}/sessions`
pub async fn open(
    repository: &Arc<Repository>,
    principal: Principal,
    namespace: NamespaceId,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let bytes = body.whole().await?;
    let request = serde_json::from_slice(&bytes)
        .map_err(|error| bad_request(&format!("the body does not open a session: {error}")))?;
    let opened =
        blocking(repository, move |r| r.open_session(&principal, &namespace, request)).await?;
    json(&opened)
}

/// `POST .../have`
pub async fn have(
    repository: &Arc<Repository>,
    at: InSession,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let digests = body.digests().await?;
    let answers =
        blocking(repository, move |r| r.have(&at.principal, &at.namespace, &at.session, &digests));
    binary(answers.await?)
}

/// `POST .../prove`
pub async fn prove(
    repository: &Arc<Repository>,
    at: InSession,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let bytes = body.whole().await?;
    let (nonce, digests) =
        bytes.split_first_chunk::<32>().ok_or_else(|| bad_request("the nonce is missing"))?;
    let (nonce, digests) = (*nonce, digests_of(digests)?);
    let answers = blocking(repository, move |r| {
        r.prove(&at.principal, &at.namespace, &at.session, &nonce, &digests)
    });
    binary(answers.await?)
}

/// `POST .../envelopes`: takes the stream in by batches, so that memory does not grow with it.
pub async fn upload(
    repository: &Arc<Repository>,
    at: InSession,
    mut body: RequestBody,
) -> Result<Answer, ServerError> {
    // Nothing is buffered for a session that is not there.
    repository.renew_session(&at.principal, &at.namespace, &at.session)?;
    let outcome = take_in(repository, &at, &mut body).await;
    if outcome.is_err() {
        // A client that still writes would see a broken connection instead of the refusal.
        body.drain(DRAIN_TIME).await;
    }
    json(&outcome?)
}

/// Whatever ends the stream, the whole envelopes before it are kept: the client need not send them
/// again.
async fn take_in(
    repository: &Arc<Repository>,
    at: &InSession,
    body: &mut RequestBody,
) -> Result<Uploaded, ServerError> {
    let mut batch = Batch::default();
    let mut sum = Uploaded::default();
    let arrived = store_full_batches(repository, at, body, &mut batch, &mut sum).await;
    add(&mut sum, batch.store(repository, at, body.hand_over(0)).await?);
    arrived.map(|()| sum)
}

/// Stores batch after batch; what is left in `batch` at the end is the caller's to store.
async fn store_full_batches(
    repository: &Arc<Repository>,
    at: &InSession,
    body: &mut RequestBody,
    batch: &mut Batch,
    sum: &mut Uploaded,
) -> Result<(), ServerError> {
    let bad_stream =
        |error: DecodeError| ServerError::peer(ErrorCode::BadEnvelope, error.to_string());
    let mut decoder = FrameDecoder::default();
    let mut count = 0u32;
    loop {
        if !batch.envelopes.is_empty() && !body.has_room() {
            // Storing what is whole makes room: nobody waits for others while it holds much.
            decoder.detach();
            let room = body.hand_over(decoder.waiting_bytes());
            add(sum, batch.store(repository, at, room).await?);
        }
        let Some(piece) = body.next().await? else { break };
        decoder.push(&piece);
        drop(piece);
        while let Some(envelope) = decoder.next_frame().map_err(bad_stream)? {
            count = count.saturating_add(1);
            if count > UPLOAD_MAX_COUNT {
                return Err(ServerError::peer(
                    ErrorCode::TooLarge,
                    "too many envelopes in one request",
                ));
            }
            batch.push(envelope);
        }
        if batch.bytes >= BATCH_BYTES {
            decoder.detach();
            let room = body.hand_over(decoder.waiting_bytes());
            add(sum, batch.store(repository, at, room).await?);
        }
    }
    decoder.finish().map_err(|_| bad_request("the stream ends inside an envelope"))
}

/// `POST .../renew`
pub async fn renew(repository: &Arc<Repository>, at: InSession) -> Result<Answer, ServerError> {
    repository.renew_session(&at.principal, &at.namespace, &at.session)?;
    binary(Bytes::new())
}

/// `POST .../close`
pub async fn close(repository: &Arc<Repository>, at: InSession) -> Result<Answer, ServerError> {
    repository.close_session(&at.principal, &at.namespace, &at.session)?;
    binary(Bytes::new())
}

/// `POST .../commit`
pub async fn commit(
    repository: &Arc<Repository>,
    at: InSession,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let record = body.whole().await?.to_vec();
    let receipt =
        blocking(repository, move |r| r.commit(&at.principal, &at.namespace, &at.session, record));
    binary(receipt.await?.encode())
}

#[derive(Default)]
struct Batch {
    envelopes: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, envelope: Bytes) {
        self.bytes = self.bytes.saturating_add(envelope.len());
        self.envelopes.push(envelope);
    }

    /// `room` goes back when the envelopes have left memory, also where the connection ends before.
    async fn store(
        &mut self,
        repository: &Arc<Repository>,
        at: &InSession,
        room: Held,
    ) -> Result<Uploaded, ServerError> {
        let Self { envelopes, .. } = std::mem::take(self);
        if envelopes.is_empty() {
            return Ok(Uploaded::default());
        }
        let at = at.clone();
        blocking(repository, move |r| {
            let uploaded = r.upload(&at.principal, &at.namespace, &at.session, envelopes);
            drop(room);
            uploaded
        })
        .await
    }
}

fn add(sum: &mut Uploaded, more: Uploaded) {
    sum.stored_count = sum.stored_count.saturating_add(more.stored_count);
    sum.duplicate_count = sum.duplicate_count.saturating_add(more.duplicate_count);
    sum.stored_bytes = sum.stored_bytes.saturating_add(more.stored_bytes);
}
