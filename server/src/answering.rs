//! Answers HTTP/1.1 requests on one connection, whoever opened it, until it ends.

use std::sync::Arc;
use std::time::Duration;

use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use strongroom_protocol::limits::{HEAD_MAX_BYTES, HEADERS_MAX};

use crate::budget::PIECE_BYTES;
use crate::handler::Peer;
use crate::refusals::Reason;
use crate::repository::Repository;
use crate::router::serve;
use crate::stop::Stop;

/// How much a peer is given.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// The head of a request must be there within this, idle time before it included.
    pub head: Duration,
    /// Reads of the connection are this large at most.
    pub read_bytes: usize,
}

impl Manner {
    /// For principals: uploads arrive in large pieces.
    pub fn of_principals(head: Duration) -> Self {
        Self { head, read_bytes: PIECE_BYTES }
    }

    /// For strangers: what a request to enrol needs.
    pub fn of_strangers(head: Duration) -> Self {
        Self { head, read_bytes: usize::try_from(HEAD_MAX_BYTES).unwrap_or(usize::MAX) }
    }
}

/// Answers on `stream` as for `peer`. When the server stops, the request under way is answered.
pub async fn answer_on(
    repository: &Arc<Repository>,
    stream: impl Read + Write + Unpin + Send + 'static,
    peer: &Peer,
    manner: Manner,
    mut stop: Stop,
) {
    let size = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let service = service_fn(|request| serve(repository.clone(), peer.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(manner.head)
        .max_buf_size(manner.read_bytes)
        .max_header_size(size(HEAD_MAX_BYTES))
        .max_headers(size(HEADERS_MAX))
        .serve_connection(stream, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let Err(error) = outcome else { return };
    if error.is_parse_too_large() {
        repository.metrics().refusals.count(Reason::HeadTooLarge);
    } else if error.is_parse() {
        repository.metrics().refusals.count(Reason::BadHttp);
    }
    tracing::debug!(%error, "connection ended");
}
