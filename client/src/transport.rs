//! Requests to one repository: a small pool of connections, addresses tried in turn, retries.
//!
//! A request that may be repeated without harm (all but enrolment and forget) is repeated with
//! jittered, growing pauses while the server cannot be reached or says that it is busy. Nothing
//! is retried for ever, and nothing that the server refused is retried at all.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use strongroom_protocol::limits::{
    ANSWER_MAX_BYTES, CONTROL_MAX_BYTES, DESCRIPTOR_MAX_BYTES, HAVE_MAX_COUNT, PROVE_MAX_COUNT,
    RECEIPT_MAX_BYTES, RECORD_MAX_BYTES,
};
use strongroom_protocol::route::Route;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::sleep;

use crate::clock::Moment;
pub use crate::connection::{Body, Timeouts};
use crate::connection::{Connection, next_part};
use crate::error::ClientError;
use crate::follow::Follow;
use crate::tls::{Pin, TlsIdentity, client_config, client_config_of};

/// An idle connection older than this is not used again; servers drop them at their leisure.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Most idle connections that are kept.
const IDLE_MAX_COUNT: usize = 8;

/// How often and how patiently requests are repeated.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Pause after the first failure; doubles each time.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    /// About two minutes in all: longer than a server takes to restart.
    fn default() -> Self {
        Self {
            attempts: 12,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(15),
        }
    }
}

impl RetryPolicy {
    /// One attempt.
    pub fn never() -> Self {
        Self { attempts: 1, first_pause: Duration::ZERO, longest_pause: Duration::ZERO }
    }

    /// Pause after failure number `failures` (from 1), or nothing when it is time to give up.
    pub fn pause(&self, failures: u32) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doubled = self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let whole = doubled.min(self.longest_pause);
        // Half to whole, so that clients of one restarted server do not come back together.
        let jitter_per_mille = getrandom::u32().map_or(500, |random| 500 + random % 501);
        Some(whole.saturating_mul(jitter_per_mille) / 1000)
    }
}

/// Which server, and how patiently.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `host:port`, tried in turn.
    pub addresses: Vec<String>,
    /// Its key.
    pub pin: Pin,
    /// Bounds of waits.
    pub timeouts: Timeouts,
    /// Bounds of repetition.
    pub retry: RetryPolicy,
    /// Another key that may be met instead; nothing, if none may.
    pub follow: Option<Follow>,
}

/// Sends requests to one server. Cloning shares the connections.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    /// For handshakes with the pinned key.
    config: Arc<ClientConfig>,
    pin: Arc<Mutex<Pin>>,
    /// For handshakes with any key, to ask whose it is.
    open: Arc<ClientConfig>,
    /// Held while another key is looked at, so that one connection does it for all.
    follow: AsyncMutex<Option<Follow>>,
    /// What must stay as it is while this client is used.
    _guard: Option<File>,
    /// Index of the address that answered last.
    good_address: AtomicUsize,
    /// Held for a push or pop only, never across an await.
    idle: Mutex<Vec<(Connection, Moment)>>,
    sent_bytes: AtomicU64,
}

impl Client {
    /// A client that presents `identity`. Nothing is connected yet.
    pub fn new(endpoint: Endpoint, identity: &TlsIdentity) -> Result<Self, ClientError> {
        Self::guarded(endpoint, identity, None)
    }

    /// The same, which holds a lock as long as it, or a copy of it, is there.
    pub fn guarded(
        endpoint: Endpoint,
        identity: &TlsIdentity,
        guard: Option<File>,
    ) -> Result<Self, ClientError> {
        if endpoint.addresses.is_empty() {
            return Err(ClientError::Usage(
                "no server address is known: name one (--server)".into(),
            ));
        }
        let pin = Arc::new(Mutex::new(endpoint.pin));
        let config = Arc::new(client_config_of(identity, pin.clone())?);
        let open = Arc::new(client_config(identity, Pin::Unknown)?);
        let follow = AsyncMutex::new(endpoint.follow.clone());
        let shared = Shared {
            endpoint,
            config,
            pin,
            open,
            follow,
            _guard: guard,
            good_address: AtomicUsize::new(0),
            idle: Mutex::new(Vec::new()),
            sent_bytes: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Bounds of repetition.
    pub fn retry(&self) -> RetryPolicy {
        self.shared.endpoint.retry
    }

    /// Bytes of request bodies sent so far, repetitions included.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.sent_bytes.load(Ordering::Relaxed)
    }

    /// A new connection, to the first address that answers.
    pub async fn connect(&self) -> Result<Connection, ClientError> {
        let endpoint = &self.shared.endpoint;
        let start = self.shared.good_address.load(Ordering::Relaxed);
        let mut worst = None;
        for step in 0..endpoint.addresses.len() {
            let index = start.wrapping_add(step) % endpoint.addresses.len();
            let Some(address) = endpoint.addresses.get(index) else { continue };
            let config = self.shared.config.clone();
            match Connection::open(address, config, endpoint.timeouts).await {
                Ok(connection) => {
                    self.shared.good_address.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(ClientError::WrongKey(_)) if endpoint.follow.is_some() => {
                    match self.connect_to_successor(address).await {
                        Ok(connection) => {
                            self.shared.good_address.store(index, Ordering::Relaxed);
                            return Ok(connection);
                        }
                        Err(error) => worst = Some(error),
                    }
                }
                // A wrong key must be told even where another address is merely down.
                Err(error) if worst.is_none() || !error.is_temporary() => worst = Some(error),
                Err(_) => {}
            }
        }
        Err(worst.unwrap_or_else(|| ClientError::Unreachable("no address".into())))
    }

    /// A connection to a server that showed another key than the pinned one, if its ledger key
    /// vouches for that one; it is pinned from then on.
    async fn connect_to_successor(&self, address: &str) -> Result<Connection, ClientError> {
        let (shared, timeouts) = (&self.shared, self.shared.endpoint.timeouts);
        let mut follow = shared.follow.lock().await;
        let mut connection = Connection::open(address, shared.open.clone(), timeouts).await?;
        let met = connection.server_key();
        let Some(follow) = follow.as_mut() else {
            return Err(ClientError::WrongKey(address.to_owned()));
        };
        if follow.pinned.tls_key == met {
            return Ok(connection); // another connection was first
        }
        let route = Route::Identity;
        let max_bytes = u64::from(CONTROL_MAX_BYTES);
        let said = connection.call(&route, "", Body::empty(), max_bytes).await?;
        let next = follow.successor(&parse_json(&route, &said)?, met)?;
        (follow.keep)(next)?;
        tracing::info!(serial = next.serial, "the server has another TLS key, and is followed");
        follow.pinned = next;
        *shared.pin.lock() = Pin::Key(next.tls_key);
        Ok(connection)
    }

    /// Sends a request, with repetitions where they do no harm, and reads the whole answer.
    pub async fn request(
        &self,
        route: &Route,
        query: &str,
        body: Body,
    ) -> Result<Bytes, ClientError> {
        let mut failures = 0;
        loop {
            let error = match self.request_once(route, query, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failures += 1;
            let may_repeat = error.is_temporary() && is_repeatable(route);
            match self.retry().pause(failures).filter(|_| may_repeat) {
                Some(pause) => {
                    let (name, reason) = (route.name(), error.reason());
                    tracing::info!("{name}: {reason}; trying again in {pause:.1?}");
                    sleep(pause).await;
                }
                None => return Err(error),
            }
        }
    }

    /// Sends a request once.
    pub async fn request_once(
        &self,
        route: &Route,
        query: &str,
        body: Body,
    ) -> Result<Bytes, ClientError> {
        let max_bytes = answer_max_bytes(route);
        self.count_sent(&body);
        // A connection that the server closed while it was idle says nothing about the server.
        if let Some(mut connection) = self.idle_connection().await {
            match connection.call(route, query, body.clone(), max_bytes).await {
                Err(ClientError::Unreachable(_)) if is_repeatable(route) => {}
                outcome => return self.keep_if_good(connection, outcome),
            }
        }
        let mut connection = self.connect().await?;
        let outcome = connection.call(route, query, body, max_bytes).await;
        self.keep_if_good(connection, outcome)
    }

    /// Sends a JSON request (or none) and reads a JSON answer.
    pub async fn json<Q: Serialize, A: DeserializeOwned>(
        &self,
        route: &Route,
        query: &str,
        question: Option<&Q>,
    ) -> Result<A, ClientError> {
        let body = match question {
            Some(question) => serde_json::to_vec(question)
                .map_err(|error| ClientError::Bug(format!("encode {}: {error}", route.name())))?
                .into(),
            None => Body::empty(),
        };
        let answer = self.request(route, query, body).await?;
        parse_json(route, &answer)
    }

    /// Sends a request once and gives its answer piece by piece.
    pub async fn stream(&self, route: &Route, body: Body) -> Result<AnswerStream, ClientError> {
        self.count_sent(&body);
        let mut fresh = false;
        loop {
            let mut connection = match self.idle_connection().await.filter(|_| !fresh) {
                Some(connection) => connection,
                None => {
                    fresh = true;
                    self.connect().await?
                }
            };
            match connection.send(route, "", body.clone()).await {
                Ok(response) => {
                    let body = response.into_body();
                    let (waited, received) = (Duration::ZERO, 0);
                    let client = self.clone();
                    return Ok(AnswerStream { client, connection, body, waited, received });
                }
                Err(ClientError::Unreachable(_)) if !fresh => fresh = true,
                Err(error) => return Err(error),
            }
        }
    }

    async fn idle_connection(&self) -> Option<Connection> {
        loop {
            let (mut connection, since) = self.shared.idle.lock().pop()?;
            if since.elapsed() < IDLE_MAX && connection.is_usable().await {
                return Some(connection);
            }
        }
    }

    fn keep_if_good<T>(
        &self,
        connection: Connection,
        outcome: Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        if matches!(outcome, Ok(_) | Err(ClientError::Server(_))) {
            self.keep(connection);
        }
        outcome
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.shared.idle.lock();
        if idle.len() < IDLE_MAX_COUNT {
            idle.push((connection, Moment::now()));
        }
    }

    fn count_sent(&self, body: &Body) {
        self.shared.sent_bytes.fetch_add(body.byte_count(), Ordering::Relaxed);
    }
}

/// An answer that is read as it arrives.
#[derive(Debug)]
pub struct AnswerStream {
    client: Client,
    connection: Connection,
    body: Incoming,
    /// How long it was waited for; the pauses of whoever reads do not count.
    waited: Duration,
    received: u64,
}

impl AnswerStream {
    /// The next piece, or nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let timeouts = self.client.shared.endpoint.timeouts;
        let since = Moment::now();
        let part = next_part(&mut self.body, timeouts.idle).await?;
        self.waited = self.waited.saturating_add(since.elapsed());
        let length = part.as_ref().map_or(0, Bytes::len);
        self.received = self.received.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        // One that drips would never be silent for long enough.
        let rate = timeouts.stream_min_bytes_per_second.max(1);
        let patience = timeouts.idle.saturating_add(Duration::from_secs(self.received / rate));
        if part.is_some() && self.waited > patience {
            return Err(ClientError::Unreachable("the answer comes too slowly".into()));
        }
        Ok(part)
    }

    /// Gives the connection back after the end was seen.
    pub fn finish(self) {
        self.client.keep(self.connection);
    }
}

/// Reads a JSON answer.
pub fn parse_json<A: DeserializeOwned>(route: &Route, answer: &[u8]) -> Result<A, ClientError> {
    serde_json::from_slice(answer)
        .map_err(|error| ClientError::Protocol(format!("answer to {}: {error}", route.name())))
}

/// Whether sending the request twice leaves what sending it once leaves.
fn is_repeatable(route: &Route) -> bool {
    !matches!(
        route,
        Route::Enroll
            | Route::RollKeys
            | Route::Forget(..)
            | Route::Lift(..)
            | Route::SetPolicy(_)
            | Route::TendClock
            | Route::Decide(_)
    )
}

/// Longest answer of a route that is read whole, in bytes.
fn answer_max_bytes(route: &Route) -> u64 {
    match route {
        Route::Descriptor(_) => u64::from(DESCRIPTOR_MAX_BYTES),
        Route::Have(..) => u64::from(HAVE_MAX_COUNT),
        Route::Prove(..) => u64::from(PROVE_MAX_COUNT).saturating_mul(32),
        Route::Record(..) => u64::from(RECORD_MAX_BYTES),
        Route::Receipt(..) | Route::Commit(..) => u64::from(RECEIPT_MAX_BYTES),
        _ => u64::from(ANSWER_MAX_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_jittered_and_end() {
        let policy = RetryPolicy {
            attempts: 5,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(300),
        };
        for (failures, whole_ms) in [(1, 100), (2, 200), (3, 300), (4, 300)] {
            let pause = policy.pause(failures).unwrap();
            assert!(pause <= Duration::from_millis(whole_ms), "{pause:?}");
            assert!(pause >= Duration::from_millis(whole_ms / 2), "{pause:?}");
        }
        assert_eq!(policy.pause(5), None);
        assert_eq!(RetryPolicy::never().pause(1), None);
    }
}
