//! The accept loop for clients: limits, deadlines, one task a connection.
//!
//! A connection that does not finish its handshake in time is dropped. What the handshake showed
//! (the client's pin, the exporter) goes with every request of the connection.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
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

/// A connection that is silent for so long is probed,
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
/// then again after so long,
const KEEP_ALIVE_STEP: Duration = Duration::from_secs(15);
/// and given up after so many probes without an answer.
const KEEP_ALIVE_COUNT: u32 = 4;
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
                tokio::time::sleep(Duration::from_millis(100)).await;
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
    if stream.set_nodelay(true).is_err() || notice_silent_ends(&stream).is_err() {
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

/// Has the system ask the other end now and then whether it is there, so that a connection whose
/// machine or firewall is gone without a word ends within two minutes, lent ones included.
fn notice_silent_ends(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_STEP)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_COUNT)
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
