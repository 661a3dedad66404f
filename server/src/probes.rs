//! The listener for Prometheus and probes: plain HTTP, no secrets, loopback by default.
//!
//! `/metrics`, `/healthz` (the process answers), `/readyz` (it takes uploads and commits).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::repository::Repository;
use crate::stop::Stop;

/// Probes at a time.
const CONNECTIONS_MAX: usize = 16;
/// A probe sends its request in this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `stop` says so.
pub async fn run(repository: Arc<Repository>, listener: TcpListener, mut stop: Stop) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.wait() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let repository = repository.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(|request| answer(repository.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "probe ended");
            }
        });
    }
}

async fn answer<B>(
    repository: Arc<Repository>,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let is_get = request.method() == Method::GET;
    let answered = tokio::task::spawn_blocking(move || match path.as_str() {
        _ if !is_get => (StatusCode::METHOD_NOT_ALLOWED, b"GET only\n".to_vec()),
        "/metrics" => {
            repository.tick();
            match repository.metrics().render() {
                Ok(text) => (StatusCode::OK, text),
                Err(error) => {
                    tracing::error!(%error, "metrics failed");
                    (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
                }
            }
        }
        "/healthz" => (StatusCode::OK, b"ok\n".to_vec()),
        "/readyz" => match repository.store().accepts_uploads() {
            Ok(true) => (StatusCode::OK, b"ready\n".to_vec()),
            Ok(false) => (StatusCode::SERVICE_UNAVAILABLE, b"repository full\n".to_vec()),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, b"store failed\n".to_vec()),
        },
        _ => (StatusCode::NOT_FOUND, b"/metrics, /healthz, /readyz\n".to_vec()),
    });
    let (status, text) = match answered.await {
        Ok(answered) => answered,
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}
