//! A server whose answers somebody has in hand, byte by byte, inside TLS: its own keys, its own
//! code, and a relay between that cuts answers off or gives others.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use strongroom_protocol::route::Route;
use strongroom_server::handler::Peer;
use strongroom_server::listener::peer_of;
use strongroom_server::repository::Repository;
use strongroom_server::router::serve;
use strongroom_server::tls::server_config;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What is answered in the place of the true answer.
#[derive(Clone)]
pub struct Instead {
    /// Name of the route, as `Route::name` has it.
    pub route: &'static str,
    pub bytes: Vec<u8>,
    pub then: Then,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Close,
    /// This, again and again.
    Repeat(&'static [u8], Duration),
}

/// The relay's orders, and what it counted.
pub struct Wire {
    /// So many bytes of answers are passed on, over all connections.
    pub cut_after: AtomicU64,
    pub passed: AtomicU64,
    /// Answers that were given in the place of others.
    pub given: AtomicU64,
    instead: Mutex<Option<Instead>>,
    pub address: SocketAddr,
}

impl Wire {
    /// Serves a repository through the relay, which begins as an honest one.
    pub async fn before(repository: &Arc<Repository>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Arc::new(Self {
            cut_after: AtomicU64::new(u64::MAX),
            passed: AtomicU64::new(0),
            given: AtomicU64::new(0),
            instead: Mutex::new(None),
            address: listener.local_addr().unwrap(),
        });
        let acceptor = TlsAcceptor::from(server_config(repository.keys()).unwrap());
        let (repository, relay) = (repository.clone(), wire.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, repository) = (acceptor.clone(), repository.clone());
                let relay = relay.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let peer = peer_of(&stream).unwrap();
                    relay.run(stream, honest(repository, peer)).await;
                });
            }
        });
        wire
    }

    pub fn give(&self, instead: Option<Instead>) {
        *self.instead.lock().unwrap() = instead;
        self.given.store(0, Ordering::SeqCst);
    }

    /// Lets so many bytes pass from now on.
    pub fn cut(&self, after: u64) {
        self.passed.store(0, Ordering::SeqCst);
        self.cut_after.store(after, Ordering::SeqCst);
    }

    async fn run(&self, mut client: impl AsyncRead + AsyncWrite + Unpin, mut server: DuplexStream) {
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                read = client.read(&mut up) => {
                    let Some(request) = read.ok().and_then(|count| up.get(..count)) else { return };
                    if let Some(instead) = self.instead_of(request) {
                        return self.answer(&mut client, &instead).await;
                    }
                    if request.is_empty() || server.write_all(request).await.is_err() {
                        return;
                    }
                }
                read = server.read(&mut down) => {
                    let answer = read.ok().and_then(|count| down.get(..count));
                    let Some(answer) = answer else { return };
                    let count = answer.len() as u64;
                    let before = self.passed.fetch_add(count, Ordering::SeqCst);
                    let left = self.cut_after.load(Ordering::SeqCst).saturating_sub(before);
                    let passes = usize::try_from(left.min(count)).unwrap();
                    let sent = client.write_all(&answer[..passes]).await;
                    let flushed = client.flush().await;
                    if answer.is_empty() || left < count || sent.is_err() || flushed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// What is to be answered to a request whose head is at the start of these bytes.
    fn instead_of(&self, request: &[u8]) -> Option<Instead> {
        let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next()?);
        let mut words = line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let route = Route::parse(method, target.split('?').next()?)?;
        let instead = self.instead.lock().unwrap().clone();
        instead.filter(|instead| instead.route == route.name())
    }

    async fn answer(&self, client: &mut (impl AsyncWrite + Unpin), instead: &Instead) {
        self.given.fetch_add(1, Ordering::SeqCst);
        let mut sent = client.write_all(&instead.bytes).await;
        if let Then::Repeat(piece, pause) = instead.then {
            while sent.is_ok() {
                tokio::time::sleep(pause).await;
                sent = client.write_all(piece).await.and(client.flush().await);
            }
        }
        let _ = client.shutdown().await;
    }
}

/// The server's own code, at the other end of what this gives.
fn honest(repository: Arc<Repository>, peer: Peer) -> DuplexStream {
    let (near, far) = duplex(65_536);
    tokio::spawn(async move {
        let service = service_fn(|request| serve(repository.clone(), peer.clone(), request));
        let _ = http1::Builder::new().serve_connection(TokioIo::new(far), service).await;
    });
    near
}
