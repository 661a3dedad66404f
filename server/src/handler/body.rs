//! Bodies of requests: read with bounds on size, on memory, on silence and on slowness.
//!
//! Room in memory is taken before anything is read (`budget.rs`). What was handed out counts
//! as in memory until [`RequestBody::hand_over`] gives the room for it to somebody else.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{PrincipalId, SealedDigest};
use tokio::time::timeout;

use crate::budget::{Held, PIECE_BYTES};
use crate::clock::Stopwatch;
use crate::error::ServerError;
use crate::handler::{bad_request, digests_of};
use crate::refusals::{Reason, Refusals};
use crate::repository::Repository;
use crate::slow_peer::Waiting;

/// A body that is being read.
pub struct RequestBody {
    incoming: Incoming,
    left: u64,
    idle: Duration,
    waiting: Waiting,
    held: Held,
    /// Bytes that were handed out and are in memory.
    kept: u64,
    /// It stopped, was too slow or was cut off: that is counted once.
    has_failed: bool,
    refusals: Refusals,
}

/// Bytes that count as in memory while they live.
struct Counted {
    bytes: Bytes,
    _held: Held,
}

impl RequestBody {
    /// Refuses at once what announces more than `max` bytes. `principal` is nobody for strangers.
    pub fn new(
        repository: &Repository,
        principal: Option<PrincipalId>,
        incoming: Incoming,
        max: u64,
    ) -> Result<Self, ServerError> {
        if incoming.size_hint().lower() > max {
            return Err(too_large());
        }
        let limits = &repository.config().limits;
        Ok(Self {
            incoming,
            left: max,
            idle: limits.body_idle.0,
            waiting: Waiting::new(limits.floor()),
            held: repository.guards().bodies.holder(principal),
            kept: 0,
            has_failed: false,
            refusals: repository.metrics().refusals.clone(),
        })
    }

    /// Whether there is room for the next piece, so that [`Self::next`] does not wait for it.
    pub fn has_room(&mut self) -> bool {
        let wanted = self.wanted();
        self.held.try_grow_to(wanted)
    }

    /// The room of what was handed out, for whoever has it now; all but `waiting` bytes of it.
    pub fn hand_over(&mut self, waiting: usize) -> Held {
        let waiting = byte_count(waiting);
        let room = self.held.split_off(self.kept.saturating_sub(waiting));
        self.kept = self.kept.min(waiting);
        room
    }

    /// The next piece, or nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ServerError> {
        loop {
            let wanted = self.wanted();
            if timeout(self.idle, self.held.grow_to(wanted)).await.is_err() {
                self.refusals.count(Reason::BodyMemory);
                let message = "bodies of requests take all the memory that they may; try again";
                return Err(ServerError::peer(ErrorCode::TooMany, message));
            }
            let Some(frame) = self.frame().await? else { return Ok(None) };
            let Ok(data) = frame.into_data() else { continue };
            let length = byte_count(data.len());
            self.left = self.left.checked_sub(length).ok_or_else(too_large)?;
            self.kept = self.kept.saturating_add(length);
            self.held.shrink_to(self.kept);
            self.waiting.moved(length);
            return Ok(Some(data));
        }
    }

    /// Reads and forgets what is left, for at most `time`. Of a body that failed nothing is left.
    pub async fn drain(&mut self, time: Duration) {
        if self.has_failed {
            return;
        }
        // Nothing of it is kept, so it needs no room.
        drop(self.hand_over(0));
        let rest = async { while let Ok(Some(_)) = self.frame().await {} };
        // Whoever sends for longer has had its chance.
        let _ = timeout(time, rest).await;
    }

    /// The whole body, which must be there within one idle time.
    pub async fn whole(mut self) -> Result<Bytes, ServerError> {
        let deadline = self.idle;
        let reading = async {
            let mut bytes = BytesMut::new();
            while let Some(piece) = self.next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        };
        let outcome = timeout(deadline, reading).await;
        let bytes = outcome.unwrap_or_else(|_| Err(self.too_slow()))?;
        Ok(Bytes::from_owner(Counted { bytes, _held: self.held }))
    }

    /// The whole body as digests.
    pub async fn digests(self) -> Result<Vec<SealedDigest>, ServerError> {
        digests_of(&self.whole().await?)
    }

    /// Room for what was handed out and for one more piece, as far as there can be one.
    fn wanted(&self) -> u64 {
        let announced = self.incoming.size_hint().upper().unwrap_or(u64::MAX);
        self.kept.saturating_add(self.left.min(announced).min(byte_count(PIECE_BYTES)))
    }

    async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, ServerError> {
        let mut silent = Duration::ZERO;
        loop {
            let patience = self.idle.saturating_sub(silent).min(self.waiting.left());
            let watch = Stopwatch::start();
            let frame = timeout(patience, self.incoming.frame()).await;
            // A timer may be a little early by this clock, and then nothing would be over yet.
            let waited =
                if frame.is_err() { watch.elapsed().max(patience) } else { watch.elapsed() };
            silent = silent.saturating_add(waited);
            if !self.waiting.waited(waited) {
                return Err(self.too_slow());
            }
            match frame {
                Ok(frame) => return frame.transpose().map_err(|_| self.cut_off()),
                Err(_) if silent >= self.idle => {
                    return Err(self.failed(Reason::BodySilent, "the body stopped arriving"));
                }
                Err(_) => {}
            }
        }
    }

    fn too_slow(&mut self) -> ServerError {
        self.failed(Reason::BodySlow, "the body arrives too slowly")
    }

    fn cut_off(&mut self) -> ServerError {
        self.failed(Reason::BodyCut, "the body was cut off")
    }

    fn failed(&mut self, reason: Reason, message: &str) -> ServerError {
        self.has_failed = true;
        self.refusals.count(reason);
        bad_request(message)
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn too_large() -> ServerError {
    ServerError::peer(ErrorCode::TooLarge, "the body is larger than this request allows")
}

fn byte_count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
