//! The accept loop for clients: limits, deadlines, one task a connection.
//!
//! A connection that does not finish its handshake in time is dropped. What the handshake showed
//! (the client's pin, the exporter) goes with every request of the connection.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use strongroom_protocol::token::EXPORTER_LABEL;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::answering::answer_on;
use crate::handler::Peer;
use crate::repository::Repository;
use crate::server_keys::pin_of_certificate;
use crate::stop::Stop;

/// One place in so many is for handshakes and for keys that are not enrolled.
const STRANGER_SHARE: usize = 8;

/// Serves until `stop` says so, then lets requests under way finish within the configured time.
pub async fn run(
    repository: Arc<Repository>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    mut stop: Stop,
) {
    let limits = repository.config().limits.clone();
    let places = usize::try_from(limits.connections).unwrap_or(usize::MAX);
    let places = places.min(Semaphore::MAX_PERMITS);
    let strangers = Arc::new(Semaphore::new((places / STRANGER_SHARE).max(1)));
    let places = Arc::new(Semaphore::new(places));
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.wait() => break,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            refuse(&repository, "too_many_connections");
            continue;
        };
        // Until its key is known, a connection holds one of the few places for strangers, so that
        // strangers cannot keep those out who belong here.
        let Ok(stranger) = strangers.clone().try_acquire_owned() else {
            refuse(&repository, "too_many_strangers");
            continue;
        };
        let (repository, acceptor, stop) = (repository.clone(), acceptor.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            repository.metrics().connections.inc();
            connection(&repository, &acceptor, stream, stranger, stop).await;
            repository.metrics().connections.dec();
        });
    }
    drop(listener);
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.shutdown.0, all_done).await.is_err() {
        tracing::warn!("requests under way did not end in time and were cut off");
    }
}

async fn connection(
    repository: &Arc<Repository>,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    stranger: OwnedSemaphorePermit,
    stop: Stop,
) {
    let limits = &repository.config().limits;
    if stream.set_nodelay(true).is_err() {
        return refuse(repository, "socket");
    }
    let stream = match tokio::time::timeout(limits.handshake.0, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            return refuse(repository, "handshake");
        }
        Err(_) => return refuse(repository, "handshake_timeout"),
    };
    let Some(peer) = peer_of(&stream) else { return refuse(repository, "no_client_key") };
    let stranger = match repository.registry().principal(&peer.tls_key) {
        Some(_) => None,
        None => Some(stranger),
    };
    answer_on(repository, TokioIo::new(stream), &peer, limits.head.0, stop).await;
    drop(stranger);
}

fn peer_of(stream: &TlsStream<TcpStream>) -> Option<Peer> {
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates()?.first()?;
    let tls_key = pin_of_certificate(certificate)?;
    let exporter = session.export_keying_material([0; 32], EXPORTER_LABEL, None).ok()?;
    Some(Peer { tls_key, exporter })
}

fn refuse(repository: &Repository, reason: &str) {
    repository.metrics().connections_refused.with_label_values(&[reason]).inc();
}
