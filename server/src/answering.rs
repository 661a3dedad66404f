//! Answers HTTP/1.1 requests on one connection, whoever opened it, until it ends.

use std::sync::Arc;
use std::time::Duration;

use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;

use crate::handler::Peer;
use crate::repository::Repository;
use crate::router::serve;
use crate::stop::Stop;

/// Reads of a connection are this large at most, so that uploads arrive in large pieces.
const READ_BUFFER_BYTES: usize = 128 * 1024;

/// Answers on `stream` as for `peer`. The head of a request must be there within `head`, idle time
/// before it included. When the server stops, the request under way is answered.
pub async fn answer_on(
    repository: &Arc<Repository>,
    stream: impl Read + Write + Unpin + Send + 'static,
    peer: &Peer,
    head: Duration,
    mut stop: Stop,
) {
    let service = service_fn(|request| serve(repository.clone(), peer.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(READ_BUFFER_BYTES)
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
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}
