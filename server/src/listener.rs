//! The accept loop for clients: limits, deadlines, one task a connection.
//!
//! A connection is a stranger's until its handshake has shown a key that is enrolled, and strangers
//! have little room and little time (`admission.rs`). What the handshake showed (the client's pin,
//! the exporter) goes with every request of the connection.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use rustix::net::sockopt;
use rustls::ServerConfig;
use strongroom_protocol::token::EXPORTER_LABEL;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::admission::{Admission, Place, Stranger};
use crate::answering::{Manner, answer_on};
use crate::handler::Peer;
use crate::refusals::Reason;
use crate::repository::Repository;
use crate::server_keys::pin_of_certificate;
use crate::slow_peer::Taken;
use crate::stop::Stop;

/// A connection that is silent for so long is probed,
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
/// then again after so long,
const KEEP_ALIVE_STEP: Duration = Duration::from_secs(15);
/// and given up after so many probes without an answer.
const KEEP_ALIVE_COUNT: u32 = 4;

/// Serves until `stop` says so, then lets requests under way finish within the configured time.
pub async fn run(
    repository: Arc<Repository>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    mut stop: Stop,
) {
    let limits = repository.config().limits.clone();
    let admission = Admission::new(limits.connections, limits.connections_per_principal);
    let admission = Arc::new(admission);
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.wait() => break,
        };
        while connections.try_join_next().is_some() {}
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Until its key is known, a connection holds one of the few places for strangers, so that
        // strangers cannot keep those out who belong here.
        let stranger = tokio::select! {
            stranger = admission.enter(address.ip()) => stranger,
            () = stop.wait() => break,
        };
        let Some(stranger) = stranger else { break };
        let arrival = Arrival {
            repository: repository.clone(),
            admission: admission.clone(),
            acceptor: acceptor.clone(),
            stop: stop.clone(),
        };
        connections.spawn(async move {
            let open = Open::begin(&arrival.repository);
            if let Err(reason) = arrival.serve(stream, stranger).await {
                arrival.repository.metrics().refusals.count(reason);
            }
            drop(open);
        });
    }
    drop(listener);
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.shutdown.0, all_done).await.is_err() {
        tracing::warn!("requests under way did not end in time and were cut off");
    }
}

/// What one connection needs.
struct Arrival {
    repository: Arc<Repository>,
    admission: Arc<Admission>,
    acceptor: TlsAcceptor,
    stop: Stop,
}

/// A connection that is counted; dropping it ends that.
struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Open {
    fn begin(repository: &Repository) -> Self {
        let gauge = repository.metrics().connections.clone();
        gauge.inc();
        Self(gauge)
    }
}

impl Arrival {
    /// From the first byte to the last; says why it was refused, if it was.
    async fn serve(&self, stream: TcpStream, mut stranger: Stranger) -> Result<(), Reason> {
        let limits = &self.repository.config().limits;
        let time_up = tokio::time::sleep(limits.stranger.0);
        if stream.set_nodelay(true).is_err() || notice_silent_ends(&stream).is_err() {
            return Err(Reason::Handshake);
        }
        let shaking_hands = tokio::time::timeout(limits.handshake.0, self.acceptor.accept(stream));
        let stream = tokio::select! {
            shaken = shaking_hands => shaken.map_err(|_| Reason::HandshakeTime)?,
            () = stranger.displaced() => return Err(Reason::Displaced),
        };
        let stream = stream.map_err(|error| {
            tracing::debug!(%error, "handshake failed");
            Reason::Handshake
        })?;
        let peer = peer_of(&stream).ok_or(Reason::Handshake)?;
        let refusals = self.repository.metrics().refusals.clone();
        let stream = TokioIo::new(Taken::new(stream, limits.floor(), refusals));
        if let Some(place) = self.place_of(&peer)? {
            drop(stranger);
            let manner = Manner::of_principals(limits.head.0);
            answer_on(&self.repository, stream, &peer, manner, self.stop.clone()).await;
            drop(place);
            return Ok(());
        }
        let manner = Manner::of_strangers(limits.head.0);
        let answering = answer_on(&self.repository, stream, &peer, manner, self.stop.clone());
        let mut answering = std::pin::pin!(answering);
        let reason = tokio::select! {
            () = answering.as_mut() => return Ok(()),
            () = stranger.displaced() => Reason::Displaced,
            () = time_up => Reason::StrangerTime,
        };
        // It may have been enrolled meanwhile, over this very connection.
        let place = self.place_of(&peer)?.ok_or(reason)?;
        drop(stranger);
        answering.await;
        drop(place);
        Ok(())
    }

    /// A place among principals, for a key that is enrolled.
    fn place_of(&self, peer: &Peer) -> Result<Option<Place>, Reason> {
        let principal = self.repository.registry().principal(&peer.tls_key);
        principal.map(|principal| self.admission.admit(principal.id)).transpose()
    }
}

/// Has the system ask the other end now and then whether it is there, so that a connection whose
/// machine or firewall is gone without a word ends within two minutes, lent ones included.
fn notice_silent_ends(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_STEP)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_COUNT)
}

/// Who a finished handshake shows: the pin of the client's key, and the connection's exporter.
/// Nothing where the certificate has no key that can be pinned, which the handshake refuses before.
pub fn peer_of(stream: &TlsStream<TcpStream>) -> Option<Peer> {
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates()?.first()?;
    let tls_key = pin_of_certificate(certificate)?;
    let exporter = session.export_keying_material([0; 32], EXPORTER_LABEL, None).ok()?;
    Some(Peer { tls_key, exporter })
}
