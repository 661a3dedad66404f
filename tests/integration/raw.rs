//! Connections on which a test says every byte itself, and what a server holds while it does.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use strongroom_client::tls::{Pin, TlsIdentity, client_config};
use strongroom_protocol::route::Route;
use strongroom_server::refusals::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;

use crate::harness::{Actor, TestServer};

/// An answer, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawAnswer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// One connection.
pub struct Raw {
    pub stream: TlsStream<TcpStream>,
    arrived: Vec<u8>,
}

/// The TLS configuration of an enrolled client.
pub fn config_of(actor: &Actor) -> Arc<ClientConfig> {
    let identity = actor.profile.folder().tls_identity().unwrap();
    let pin = Pin::Key(actor.profile.settings().tls_key);
    Arc::new(client_config(&identity, pin).unwrap())
}

/// That of somebody whose key nobody knows.
pub fn stranger() -> Arc<ClientConfig> {
    let identity = TlsIdentity::generate().unwrap();
    Arc::new(client_config(&identity, Pin::Unknown).unwrap())
}

/// A whole request.
pub fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    request_announcing(method, path, body.len(), body)
}

/// A request whose body is said to have so many bytes.
pub fn request_announcing(method: &str, path: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A request of a route.
pub fn request_of(route: &Route, body: &[u8]) -> Vec<u8> {
    request(route.method(), &route.path(), body)
}

impl Raw {
    pub async fn open(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        Self::over(socket, config).await
    }

    pub async fn over(socket: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let name = "strongroom".try_into().unwrap();
        let stream = TlsConnector::from(config.clone()).connect(name, socket).await?;
        Ok(Self { stream, arrived: Vec::new() })
    }

    /// A connection of an enrolled client.
    pub async fn of(server: &TestServer, actor: &Actor) -> Self {
        Self::open(server.address, &config_of(actor)).await.unwrap()
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next answer; nothing, if the connection ends before it.
    pub async fn answer(&mut self) -> Option<RawAnswer> {
        let head_end = loop {
            if let Some(at) = self.arrived.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head: Vec<u8> = self.arrived.drain(..head_end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
        while self.arrived.len() < length {
            self.more().await?;
        }
        Some(RawAnswer { status, headers, body: self.arrived.drain(..length).collect() })
    }

    /// A request and its answer.
    pub async fn ask(&mut self, bytes: &[u8]) -> Option<RawAnswer> {
        self.send(bytes).await.ok()?;
        self.answer().await
    }

    /// Waits until the other end has closed; what it still said.
    pub async fn until_closed(&mut self) -> Vec<u8> {
        while self.more().await.is_some() {}
        std::mem::take(&mut self.arrived)
    }

    /// Goes without a word of TLS or TCP more than the system says itself.
    pub fn cut(self) {
        drop(self.stream.into_inner().0);
    }

    async fn more(&mut self) -> Option<()> {
        let mut buffer = vec![0; 16 * 1024];
        let reading = self.stream.read(&mut buffer);
        // A test that would hang says so instead.
        let count = tokio::time::timeout(Duration::from_secs(60), reading).await;
        let count = count.expect("neither an answer nor an end").ok()?;
        self.arrived.extend_from_slice(&buffer[..count]);
        (count > 0).then_some(())
    }
}

/// What a server holds for its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauges {
    pub connections: i64,
    pub requests: i64,
    pub body_bytes: u64,
    pub sessions: usize,
    pub readers: usize,
}

impl Gauges {
    pub fn of(server: &TestServer) -> Self {
        let repository = &server.repository;
        Self {
            connections: repository.metrics().connections.get(),
            requests: repository.metrics().requests_in_flight.get(),
            body_bytes: repository.guards().bodies.held(),
            sessions: repository.sessions().count(),
            readers: repository.readers().count(),
        }
    }
}

/// How often a server refused for this reason.
pub fn refused(server: &TestServer, reason: Reason) -> u64 {
    server.repository.metrics().refusals.get(reason)
}

/// Waits until the server has counted so many; a refusal is counted when its connection is gone.
pub async fn is_refused(server: &TestServer, reason: Reason, count: u64) {
    for _ in 0..1000 {
        if refused(server, reason) == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(refused(server, reason), count, "{reason:?}");
}

/// The server serves an honest client, and then holds nothing more for anybody. Live sessions of
/// clients that went without a word end by their leases.
pub async fn is_well(server: &TestServer, honest: &Actor) {
    let said = format!("something new {:?}", std::time::Instant::now());
    honest.snapshot("honest", &[said.as_bytes()]).await;
    let nothing = Gauges { connections: 0, requests: 0, body_bytes: 0, sessions: 0, readers: 0 };
    server.clock.advance(server.repository.config().limits.lease.0);
    server.repository.tick();
    for _ in 0..3000 {
        if Gauges::of(server) == nothing {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server still holds {:?}", Gauges::of(server));
}
