//! Requests to a primary: HTTP/1.1 over TLS 1.3 with the pinned key, a few connections that are
//! used again, a bound on every wait and every answer. This server dials the primary, or asks over
//! the connections that the primary lends (`lent.rs`).
//!
//! All requests but the enrolment may be repeated, so one that fails on a connection that had been
//! idle is sent once more on another one. Every wait ends at once when this server stops.
//!
//! An answer is bounded in size and in time: it must begin within `replica.patience`, and from then
//! on bring [`RATE_MIN_BYTES`] a second over any such period. So a primary that sends without end,
//! or a byte a minute, holds up nothing but itself.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use strongroom_protocol::error::ErrorBody;
use strongroom_protocol::frame::FrameDecoder;
use strongroom_protocol::id::{NamespaceId, SealedDigest, TlsKeyDigest};
use strongroom_protocol::limits::{ANSWER_MAX_BYTES, CONTROL_MAX_BYTES};
use strongroom_protocol::route::Route;
use tokio::sync::RwLockReadGuard;
use tokio::time::{Sleep, sleep, timeout};

use super::dialling::{Dialling, Follow, Renewal};
use super::error::ReplicaError;
use super::keys::PeerKeys;
use super::throttle::Throttle;
use crate::dial::{DialError, Dialled, dial};
use crate::error::ServerError;
use crate::key_gates::Shown;
use crate::lent::{Place, Pool, Sender};
use crate::stop::Stop;
use crate::successor;

/// An answer that brings less than this a second is given up.
const RATE_MIN_BYTES: u64 = 1024;

/// A primary, as it is reached.
pub struct Peer {
    way: Way,
    /// Connections that were dialled and that nobody uses.
    idle: Mutex<Vec<Connection>>,
    throttle: Arc<Throttle>,
    patience: Duration,
    stop: Stop,
}

/// How connections come about.
enum Way {
    /// This server dials.
    Dial(Box<Dialling>),
    /// The primary dials, and lends them.
    Lent(Arc<Pool>),
}

/// An open connection.
pub struct Connection {
    sender: Sender,
    host: String,
    exporter: [u8; 32],
    /// Which keys were shown when it was dialled.
    turn: Option<u64>,
    /// Where it is one that the primary lends.
    place: Option<Place>,
}

/// Envelopes that arrive, in the order in which they were asked for. Nothing of them is checked.
pub struct Reading<'a> {
    peer: &'a Peer,
    connection: Option<Connection>,
    body: Incoming,
    decoder: FrameDecoder,
    window: Window,
}

/// What an answer brought in the period under way. None is under way before anybody waits.
#[derive(Default)]
struct Window {
    end: Option<Pin<Box<Sleep>>>,
    bytes: u64,
}

impl Peer {
    /// A primary at `addresses` (`host:port`, several with commas), whose TLS key has this pin.
    pub fn dialling(
        addresses: &str,
        keys: &PeerKeys,
        pin: TlsKeyDigest,
        throttle: Arc<Throttle>,
        patience: Duration,
        stop: Stop,
    ) -> Result<Self, ReplicaError> {
        let dialling = Dialling::new(addresses, keys, pin)?;
        let way = Way::Dial(Box::new(dialling));
        Ok(Self { way, idle: Mutex::default(), throttle, patience, stop })
    }

    /// The same, which follows the primary when it shows another TLS key.
    pub fn following(mut self, follow: Follow) -> Self {
        if let Way::Dial(dialling) = &mut self.way {
            dialling.follow = Some(Mutex::new(follow));
        }
        self
    }

    /// The same, where this server's keys may become others meanwhile.
    pub fn renewing(mut self, renewal: Renewal) -> Self {
        if let Way::Dial(dialling) = &mut self.way {
            dialling.renewal = Some(renewal);
        }
        self
    }

    /// A primary that lends its connections.
    pub fn lent(pool: Arc<Pool>, throttle: Arc<Throttle>, patience: Duration, stop: Stop) -> Self {
        Self { way: Way::Lent(pool), idle: Mutex::default(), throttle, patience, stop }
    }

    /// A new connection: dialled, or the next that is lent.
    pub async fn connect(&self) -> Result<Connection, ReplicaError> {
        match &self.way {
            Way::Dial(dialling) => {
                let (tls, turn) = dialling.shown();
                let mut dialled = self.unless_stopping(dial(&dialling.addresses, &tls)).await?;
                if let (Err(DialError::WrongKey(_)), Some(follow)) = (&dialled, &dialling.follow) {
                    let tls = self.followed(dialling, follow).await?;
                    dialled = self.unless_stopping(dial(&dialling.addresses, &tls)).await?;
                }
                let dialled = dialled.map_err(|error| ReplicaError::Unreachable(error.to_string()));
                Ok(Connection { turn, ..speak(dialled?).await? })
            }
            Way::Lent(pool) => {
                let lent = self.unless_stopping(pool.borrow()).await?;
                let (sender, place) = lent.ok_or_else(|| {
                    ReplicaError::Unreachable("the primary lends no connection".into())
                })?;
                let (host, exporter) = ("primary".into(), [0; 32]);
                Ok(Connection { sender, host, exporter, turn: None, place: Some(place) })
            }
        }
    }

    /// Pins the primary's next TLS key, if its ledger key vouches for it.
    async fn followed(
        &self,
        dialling: &Dialling,
        follow: &Mutex<Follow>,
    ) -> Result<Arc<ClientConfig>, ReplicaError> {
        let (ledger_key, pinned, keep) = {
            let follow = follow.lock();
            (follow.ledger_key, follow.pinned, follow.keep.clone())
        };
        let open = dialling.open()?;
        let found = successor::find(&dialling.addresses, &open, pinned, &ledger_key, self.patience);
        let next = self.unless_stopping(found).await?.map_err(ReplicaError::Unreachable)?;
        let kept = tokio::task::spawn_blocking(move || keep(next)).await;
        kept.map_err(|error| ServerError::Bug(error.to_string()))??;
        follow.lock().pinned = next;
        let tls = dialling.pin(next.tls_key)?;
        tracing::info!(serial = next.serial, "a primary has another TLS key, and is followed");
        Ok(tls)
    }

    /// Passes the gate of the keys, with those of now; they stay as long as what comes is held.
    async fn pass(&self) -> Result<Option<RwLockReadGuard<'_, Shown>>, ReplicaError> {
        let Way::Dial(dialling) = &self.way else { return Ok(None) };
        let Some(renewal) = &dialling.renewal else { return Ok(None) };
        let shown = self.unless_stopping(renewal.gate.pass_settled()).await?;
        let shown = shown.map_err(|unsettled| ReplicaError::Unreachable(unsettled.into()))?;
        if dialling.shown().1 != Some(shown.turn) {
            let load = renewal.load.clone();
            let keys = tokio::task::spawn_blocking(move || load()).await;
            let keys = keys.map_err(|error| ServerError::Bug(error.to_string()))??;
            dialling.show(keys, shown.turn)?;
            self.idle.lock().clear();
        }
        Ok(Some(shown))
    }

    /// A connection that was used before, or a new one; says whether it was.
    async fn any_connection(&self) -> Result<(Connection, bool), ReplicaError> {
        if let Way::Dial(dialling) = &self.way {
            let (idle, (_, turn)) = (self.idle.lock().pop(), dialling.shown());
            // One that was dialled with older keys may not be used again.
            let is_good = |idle: &Connection| idle.turn == turn && !idle.sender.is_closed();
            if let Some(connection) = idle.filter(is_good) {
                return Ok((connection, true));
            }
        }
        // One that is lent may have been idle for long.
        Ok((self.connect().await?, matches!(self.way, Way::Lent(_))))
    }

    /// Keeps a connection to be used again.
    fn keep(&self, mut connection: Connection) {
        match (&self.way, connection.place.take()) {
            (_, Some(place)) => place.give_back(connection.sender),
            (Way::Dial(_), None) => self.idle.lock().push(connection),
            (Way::Lent(_), None) => {}
        }
    }

    /// Sends a request and reads its whole answer, at most `max_bytes`.
    pub async fn call(
        &self,
        route: &Route,
        query: &str,
        body: Bytes,
        max_bytes: u64,
    ) -> Result<Bytes, ReplicaError> {
        let (connection, answer) = self.exchange(route, query, body).await?;
        let bytes = self.whole(answer.into_body(), max_bytes).await?;
        self.keep(connection);
        Ok(bytes)
    }

    /// Sends a request on this connection, once, and reads its whole answer.
    pub async fn call_on(
        &self,
        connection: &mut Connection,
        route: &Route,
        body: Bytes,
        max_bytes: u64,
    ) -> Result<Bytes, ReplicaError> {
        let answer = self.send(connection, route, "", body).await?;
        self.whole(answer.into_body(), max_bytes).await
    }

    /// Asks for a JSON answer.
    pub async fn json<T: DeserializeOwned>(
        &self,
        route: &Route,
        query: &str,
    ) -> Result<T, ReplicaError> {
        let bytes = self.call(route, query, Bytes::new(), u64::from(ANSWER_MAX_BYTES)).await?;
        parse_json(route, &bytes)
    }

    /// Asks for envelopes.
    pub async fn read(
        &self,
        namespace: NamespaceId,
        digests: &[SealedDigest],
    ) -> Result<Reading<'_>, ReplicaError> {
        let mut body = BytesMut::with_capacity(digests.len().saturating_mul(SealedDigest::BYTES));
        for digest in digests {
            body.extend_from_slice(&digest.0);
        }
        let (connection, answer) =
            self.exchange(&Route::Read(namespace), "", body.freeze()).await?;
        let (body, decoder) = (answer.into_body(), FrameDecoder::default());
        let window = Window::default();
        Ok(Reading { peer: self, connection: Some(connection), body, decoder, window })
    }

    /// Sends on a connection; on another one, if the first broke and may have been idle too long.
    async fn exchange(
        &self,
        route: &Route,
        query: &str,
        body: Bytes,
    ) -> Result<(Connection, Response<Incoming>), ReplicaError> {
        let _passing = self.pass().await?;
        let (mut connection, was_used) = self.any_connection().await?;
        match self.send(&mut connection, route, query, body.clone()).await {
            Ok(answer) => return Ok((connection, answer)),
            Err(ReplicaError::Unreachable(_)) if was_used => drop(connection),
            Err(error) => return Err(self.kept_after(error, connection)),
        }
        let mut connection = self.connect().await?;
        match self.send(&mut connection, route, query, body).await {
            Ok(answer) => Ok((connection, answer)),
            Err(error) => Err(self.kept_after(error, connection)),
        }
    }

    /// A refusal was read to its end, and is no reason to give a connection up.
    fn kept_after(&self, error: ReplicaError, connection: Connection) -> ReplicaError {
        if matches!(error, ReplicaError::Primary(_)) {
            self.keep(connection);
        }
        error
    }

    async fn send(
        &self,
        connection: &mut Connection,
        route: &Route,
        query: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ReplicaError> {
        let path = route.path();
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let request = Request::builder()
            .method(route.method())
            .uri(target)
            .header(HOST, &connection.host)
            .header(CONTENT_LENGTH, body.len())
            .body(Full::new(body))
            .map_err(|error| ReplicaError::Wrong(format!("request: {error}")))?;
        let exchange = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let answer = match self.unless_stopping(timeout(self.patience, exchange)).await? {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let message = format!("connection broke during {}: {error}", route.name());
                return Err(ReplicaError::Unreachable(message));
            }
            Err(_) => {
                let message = format!("no answer to {} in time", route.name());
                return Err(ReplicaError::Unreachable(message));
            }
        };
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let body = self.whole(answer.into_body(), u64::from(CONTROL_MAX_BYTES)).await?;
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => Err(ReplicaError::Primary(Box::new(error))),
            Err(_) => Err(ReplicaError::Wrong(format!("{} answers {status}", route.name()))),
        }
    }

    async fn whole(&self, mut body: Incoming, max_bytes: u64) -> Result<Bytes, ReplicaError> {
        let (mut whole, mut window) = (BytesMut::new(), Window::default());
        while let Some(part) = self.next_part(&mut body, &mut window).await? {
            let length = whole.len().saturating_add(part.len());
            if u64::try_from(length).map_or(true, |length| length > max_bytes) {
                return Err(ReplicaError::Wrong("an answer is too long".into()));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    async fn next_part(
        &self,
        body: &mut Incoming,
        window: &mut Window,
    ) -> Result<Option<Bytes>, ReplicaError> {
        loop {
            let end = window.end.get_or_insert_with(|| Box::pin(sleep(self.patience)));
            let arriving = async {
                tokio::select! {
                    frame = body.frame() => Some(frame),
                    () = end => None,
                }
            };
            let Some(frame) = self.unless_stopping(arriving).await? else {
                let least = self.patience.as_secs().max(1).saturating_mul(RATE_MIN_BYTES);
                if window.bytes < least {
                    let message = "an answer stopped coming, or comes too slowly";
                    return Err(ReplicaError::Unreachable(message.into()));
                }
                *window = Window::default();
                continue;
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| {
                ReplicaError::Unreachable(format!("an answer was cut off: {error}"))
            })?;
            if let Ok(part) = frame.into_data() {
                let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
                window.bytes = window.bytes.saturating_add(length);
                return Ok(Some(part));
            }
        }
    }

    async fn unless_stopping<T>(&self, work: impl Future<Output = T>) -> Result<T, ReplicaError> {
        let mut stop = self.stop.clone();
        tokio::select! {
            outcome = work => Ok(outcome),
            () = stop.wait() => Err(ReplicaError::Stopping),
        }
    }
}

impl Connection {
    /// The TLS exporter, which an enrolment binds itself to.
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }
}

impl Reading<'_> {
    /// The next envelope, or nothing at the end of the answer.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReplicaError> {
        loop {
            if let Some(envelope) = self.decoder.next_frame()? {
                return Ok(Some(envelope));
            }
            let arriving = self.peer.next_part(&mut self.body, &mut self.window);
            let Some(part) = arriving.await? else {
                self.decoder.finish()?;
                if let Some(connection) = self.connection.take() {
                    self.peer.keep(connection);
                }
                return Ok(None);
            };
            if self.peer.unless_stopping(self.peer.throttle.take(part.len())).await? {
                self.window = Window::default();
            }
            self.decoder.push(&part);
        }
    }

    /// Lets go of the memory that envelopes given so far share with what is still arriving. What
    /// is done with them until the next is asked for is not the primary's time.
    pub fn detach(&mut self) {
        self.decoder.detach();
        self.window = Window::default();
    }
}

/// Reads a JSON answer.
pub fn parse_json<T: DeserializeOwned>(route: &Route, bytes: &[u8]) -> Result<T, ReplicaError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ReplicaError::Wrong(format!("answer to {}: {error}", route.name())))
}

async fn speak(dialled: Dialled) -> Result<Connection, ReplicaError> {
    let Dialled { stream, address, exporter } = dialled;
    let (sender, driver) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ReplicaError::Unreachable(format!("{address}: {error}")))?;
    tokio::spawn(async move {
        // Whoever waits for an answer sees the error; here it has no reader.
        if let Err(error) = driver.await {
            tracing::debug!(%error, "connection to a primary ended");
        }
    });
    Ok(Connection { sender, host: address, exporter, turn: None, place: None })
}
