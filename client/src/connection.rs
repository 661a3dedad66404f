//! One HTTP/1.1 connection over TLS 1.3 to the pinned server.
//!
//! A connection carries one request at a time. It knows the digest of the key that the server
//! proved and the TLS exporter (RFC 9266) of its own handshake, which is what an enrolment binds
//! itself to. Every wait has a bound: connecting, the answer's head, each piece of its body.

use std::convert::Infallible;
use std::pin::Pin as PinnedPointer;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use strongroom_protocol::error::ErrorBody;
use strongroom_protocol::id::TlsKeyDigest;
use strongroom_protocol::limits::CONTROL_MAX_BYTES;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::EXPORTER_LABEL;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::error::ClientError;
use crate::tls::key_digest_of;

/// How long each wait may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// TCP and TLS handshake with one address.
    pub connect: Duration,
    /// From the end of a request to the head of its answer.
    pub answer: Duration,
    /// The same for a commit, which waits for the server's disks.
    pub commit: Duration,
    /// Between two pieces of an answer's body.
    pub idle: Duration,
    /// Slowest upload or answer that is waited for, in bytes per second.
    pub min_bytes_per_second: u64,
    /// Slowest stream of envelopes that is waited for, in bytes per second; several share a line.
    pub stream_min_bytes_per_second: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            commit: Duration::from_secs(900),
            idle: Duration::from_secs(60),
            min_bytes_per_second: 32 * 1024,
            stream_min_bytes_per_second: 1024,
        }
    }
}

impl Timeouts {
    /// `base`, and what so many bytes take on the slowest line that is waited for.
    fn patience_for(&self, base: Duration, bytes: u64) -> Duration {
        base.saturating_add(Duration::from_secs(bytes / self.min_bytes_per_second.max(1)))
    }
}

/// A request's body: pieces that are sent as they are, without copying. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Body {
    parts: std::collections::VecDeque<Bytes>,
    bytes: u64,
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Appends a piece.
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.bytes = self.bytes.saturating_add(byte_count(part.len()));
            self.parts.push_back(part);
        }
    }

    /// Bytes in all pieces that are left.
    pub fn byte_count(&self) -> u64 {
        self.bytes
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        let mut body = Self::default();
        body.push(bytes.into());
        body
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: PinnedPointer<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        if let Some(part) = &part {
            self.bytes = self.bytes.saturating_sub(byte_count(part.len()));
        }
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Body>,
    host: String,
    server_key: TlsKeyDigest,
    exporter: [u8; 32],
    timeouts: Timeouts,
}

impl Connection {
    /// Connects to `address` (`host:port`).
    pub async fn open(
        address: &str,
        config: Arc<ClientConfig>,
        timeouts: Timeouts,
    ) -> Result<Self, ClientError> {
        let attempt = Self::handshake(address, config, timeouts);
        match timeout(timeouts.connect, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ClientError::Unreachable(format!("{address} does not answer in time"))),
        }
    }

    /// Digest of the key that the server proved.
    pub fn server_key(&self) -> TlsKeyDigest {
        self.server_key
    }

    /// The TLS exporter of this connection ([`EXPORTER_LABEL`], no context).
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    /// Waits until a request can be sent; false when the connection is gone.
    pub async fn is_usable(&mut self) -> bool {
        !self.sender.is_closed() && self.sender.ready().await.is_ok()
    }

    /// Sends a request and gives the head of a good answer; an error answer is read whole.
    pub async fn send(
        &mut self,
        route: &Route,
        query: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let path = route.path();
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let patience = self.patience(route, body.byte_count());
        let request = Request::builder()
            .method(route.method())
            .uri(target)
            .header(HOST, &self.host)
            .header(CONTENT_LENGTH, body.byte_count())
            .body(body)
            .map_err(|error| ClientError::Bug(format!("request: {error}")))?;
        // The answer before may have been read a moment before its connection is free again.
        let exchange = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let response = match timeout(patience, exchange).await {
            Ok(outcome) => outcome.map_err(|error| broken(route, &error))?,
            Err(_) => {
                let name = route.name();
                return Err(ClientError::Unreachable(format!("no answer to {name} in time")));
            }
        };
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = read_body(response, u64::from(CONTROL_MAX_BYTES), self.timeouts).await?;
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => Err(ClientError::Server(Box::new(error))),
            Err(_) => Err(ClientError::Protocol(format!("{} answers {status}", route.name()))),
        }
    }

    /// Sends a request and reads its whole answer, at most `answer_max_bytes`.
    pub async fn call(
        &mut self,
        route: &Route,
        query: &str,
        body: Body,
        answer_max_bytes: u64,
    ) -> Result<Bytes, ClientError> {
        let response = self.send(route, query, body).await?;
        read_body(response, answer_max_bytes, self.timeouts).await
    }

    async fn handshake(
        address: &str,
        config: Arc<ClientConfig>,
        timeouts: Timeouts,
    ) -> Result<Self, ClientError> {
        let unreachable =
            |error: std::io::Error| ClientError::Unreachable(format!("{address}: {error}"));
        let socket = TcpStream::connect(address).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| ClientError::Usage(format!("{address}: not HOST:PORT")))?;
        let connector = TlsConnector::from(config);
        let stream = connector.connect(name, socket).await.map_err(|error| {
            handshake_error(address, &error).unwrap_or_else(|| unreachable(error))
        })?;
        let (_, session) = stream.get_ref();
        let server_key = session
            .peer_certificates()
            .and_then(|certificates| certificates.first())
            .and_then(key_digest_of)
            .ok_or_else(|| ClientError::Bug("no server certificate after a handshake".into()))?;
        let exporter = session
            .export_keying_material([0; 32], EXPORTER_LABEL, None)
            .map_err(|error| ClientError::Bug(format!("TLS exporter: {error}")))?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ClientError::Unreachable(format!("{address}: {error}")))?;
        tokio::spawn(async move {
            // Whoever waits for an answer sees the error; here it has no reader.
            if let Err(error) = driver.await {
                tracing::debug!("connection ended: {error}");
            }
        });
        Ok(Self { sender, host: address.to_owned(), server_key, exporter, timeouts })
    }

    fn patience(&self, route: &Route, body_bytes: u64) -> Duration {
        let base = match route {
            Route::Commit(..) => self.timeouts.commit,
            _ => self.timeouts.answer,
        };
        self.timeouts.patience_for(base, body_bytes)
    }
}

/// The next piece of an answer's body, or nothing at its end.
pub async fn next_part(body: &mut Incoming, idle: Duration) -> Result<Option<Bytes>, ClientError> {
    loop {
        let frame = match timeout(idle, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(ClientError::Unreachable(format!("answer was cut off: {error}")));
            }
            Ok(None) => return Ok(None),
            Err(_) => return Err(ClientError::Unreachable("answer stopped coming".into())),
        };
        if let Ok(part) = frame.into_data() {
            return Ok(Some(part));
        }
    }
}

/// Reads an answer of at most `max_bytes`. Also one that never stops coming ends.
async fn read_body(
    response: Response<Incoming>,
    max_bytes: u64,
    timeouts: Timeouts,
) -> Result<Bytes, ClientError> {
    let whole = read_whole(response, max_bytes, timeouts.idle);
    match timeout(timeouts.patience_for(timeouts.answer, max_bytes), whole).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ClientError::Unreachable("the answer comes too slowly".into())),
    }
}

async fn read_whole(
    response: Response<Incoming>,
    max_bytes: u64,
    idle: Duration,
) -> Result<Bytes, ClientError> {
    let mut body = response.into_body();
    let mut whole = BytesMut::new();
    while let Some(part) = next_part(&mut body, idle).await? {
        if byte_count(whole.len().saturating_add(part.len())) > max_bytes {
            return Err(ClientError::Protocol("answer is too long".into()));
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.freeze())
}

/// What a failed handshake means, where it does not mean that the network failed.
fn handshake_error(address: &str, error: &std::io::Error) -> Option<ClientError> {
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match tls {
        rustls::Error::InvalidCertificate(_) => Some(ClientError::WrongKey(address.to_owned())),
        _ => None,
    }
}

fn broken(route: &Route, error: &hyper::Error) -> ClientError {
    ClientError::Unreachable(format!("connection broke during {}: {error}", route.name()))
}

fn byte_count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
