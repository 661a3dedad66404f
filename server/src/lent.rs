//! Connections that primaries lend: they dialled, and this server asks over them
//! (`docs/decisions/0014-lent-connections.md`).
//!
//! One pool for each principal of role `feeder`. A connection is idle in it, or in use by whoever
//! follows that primary. State in memory: after a restart the primaries dial again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use strongroom_protocol::id::PrincipalId;
use strongroom_protocol::limits::LENT_CONNECTIONS_MAX;
use tokio::sync::Notify;
use tokio::time::timeout;

/// So long it takes at most until a primary that can lend has lent, if it dials at once.
const ARRIVAL: Duration = Duration::from_secs(2);

/// The near end of an HTTP/1.1 connection on which this server asks.
pub type Sender = SendRequest<Full<Bytes>>;

/// The pools of all primaries that lend connections.
#[derive(Default)]
pub struct LentConnections {
    pools: Mutex<HashMap<PrincipalId, Arc<Pool>>>,
}

/// What one primary lends.
#[derive(Default)]
pub struct Pool {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    idle: Vec<Sender>,
    in_use: usize,
    is_closed: bool,
}

/// A place in a pool whose connection is in use. Dropping it says that the connection is gone.
pub struct Place {
    pool: Arc<Pool>,
}

impl LentConnections {
    /// The pool of a primary, by what it is enrolled as here.
    pub fn pool(&self, feeder: PrincipalId) -> Arc<Pool> {
        self.pools.lock().entry(feeder).or_default().clone()
    }

    /// Ends what a primary lends, for good.
    pub fn close(&self, feeder: PrincipalId) {
        self.pool(feeder).close();
    }

    /// Ends what all of them lend, for good.
    pub fn close_all(&self) {
        self.pools.lock().values().for_each(|pool| pool.close());
    }
}

impl Pool {
    /// Connections that can be used or are in use.
    pub fn count(&self) -> usize {
        self.state.lock().count()
    }

    /// Whether one more connection is taken.
    pub fn has_room(&self) -> bool {
        self.state.lock().has_room()
    }

    /// Takes a connection in, if there is room.
    pub fn lend(&self, sender: Sender) {
        let mut state = self.state.lock();
        if state.has_room() {
            state.idle.push(sender);
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// The connection that was used last. Waits for one: while others are in use, until one of them
    /// is given back or breaks; while there is none, for two seconds.
    pub async fn borrow(self: &Arc<Self>) -> Option<(Sender, Place)> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let is_in_use = {
                let mut state = self.state.lock();
                if state.is_closed {
                    return None;
                }
                state.forget_dead();
                if let Some(sender) = state.idle.pop() {
                    state.in_use = state.in_use.saturating_add(1);
                    return Some((sender, Place { pool: self.clone() }));
                }
                state.in_use > 0
            };
            match is_in_use {
                true => changed.await,
                false => timeout(ARRIVAL, changed).await.ok()?,
            }
        }
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.idle.clear();
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    /// Drops connections that are closed; the listener's keep-alive closes those whose other end
    /// is gone without a word.
    fn forget_dead(&mut self) {
        self.idle.retain(|sender| !sender.is_closed());
    }

    fn count(&mut self) -> usize {
        self.forget_dead();
        self.idle.len().saturating_add(self.in_use)
    }

    fn has_room(&mut self) -> bool {
        let count = u32::try_from(self.count()).unwrap_or(u32::MAX);
        !self.is_closed && count < LENT_CONNECTIONS_MAX
    }
}

impl Place {
    /// Gives the connection back, to be used again.
    pub fn give_back(self, sender: Sender) {
        let mut state = self.pool.state.lock();
        if !state.is_closed {
            state.idle.push(sender);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.in_use = state.in_use.saturating_sub(1);
        drop(state);
        self.pool.changed.notify_waiters();
    }
}
