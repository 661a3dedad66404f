//! Peers that are too slow: the least rate of bodies that come, and of answers that go.
//!
//! Only time in which this server waits for the peer counts, so that a slow disk here cuts off
//! nobody. The peer must bring, or take, so many bytes in each *window* of waiting. Silence has a
//! bound of its own, which should be shorter.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::refusals::{Reason, Refusals};

/// The least that a peer must bring or take while it is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// 0 is none.
    pub bytes_per_second: u64,
    /// Over this time of waiting.
    pub window: Duration,
}

/// Waiting for one body.
#[derive(Debug)]
pub struct Waiting {
    floor: Floor,
    waited: Duration,
    moved: u64,
}

impl Floor {
    /// Bytes that a window must bring.
    fn bytes(&self) -> u64 {
        let millis = u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX);
        self.bytes_per_second.saturating_mul(millis) / 1000
    }
}

impl Waiting {
    /// A window begins.
    pub fn new(floor: Floor) -> Self {
        Self { floor, waited: Duration::ZERO, moved: 0 }
    }

    /// What is left of the window.
    pub fn left(&self) -> Duration {
        self.floor.window.saturating_sub(self.waited)
    }

    /// Bytes came.
    pub fn moved(&mut self, bytes: u64) {
        self.moved = self.moved.saturating_add(bytes);
    }

    /// So long was waited. False if a window is over that did not bring enough.
    pub fn waited(&mut self, time: Duration) -> bool {
        self.waited = self.waited.saturating_add(time);
        if self.waited < self.floor.window {
            return true;
        }
        let is_enough = self.moved >= self.floor.bytes();
        (self.waited, self.moved) = (Duration::ZERO, 0);
        is_enough
    }
}

/// A connection that ends when the peer takes what is written too slowly.
///
/// A window of waiting begins when a write finds no room and ends when all that was written is
/// gone. It must not be short: the system tells that there is room again only when there is much.
pub struct Taken<S> {
    stream: S,
    floor: Floor,
    refusals: Refusals,
    window: Option<Pin<Box<Sleep>>>,
    taken: u64,
}

impl<S> Taken<S> {
    /// Around `stream`; what is too slow is counted in `refusals`.
    pub fn new(stream: S, floor: Floor, refusals: Refusals) -> Self {
        Self { stream, floor, refusals, window: None, taken: 0 }
    }

    /// Waits for the peer, as long as it has taken enough in the window before.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let length = self.floor.window;
            let window = self.window.get_or_insert_with(|| Box::pin(sleep(length)));
            ready!(window.as_mut().poll(context));
            self.window = None;
            if std::mem::take(&mut self.taken) < self.floor.bytes() {
                self.refusals.count(Reason::AnswerSlow);
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn count(&mut self, written: usize) {
        self.taken = self.taken.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.wait(context).map(Err),
            Poll::Ready(outcome) => {
                self.count(outcome.as_ref().copied().unwrap_or(0));
                Poll::Ready(outcome)
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write_vectored(context, pieces) {
            Poll::Pending => self.wait(context).map(Err),
            Poll::Ready(outcome) => {
                self.count(outcome.as_ref().copied().unwrap_or(0));
                Poll::Ready(outcome)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Pending => self.wait(context).map(Err),
            Poll::Ready(outcome) => {
                // Nothing is owed: who is asked nothing need not take anything.
                (self.window, self.taken) = (None, 0);
                Poll::Ready(outcome)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(context) {
            Poll::Pending => self.wait(context).map(Err),
            ready => ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const FLOOR: Floor = Floor { bytes_per_second: 1000, window: Duration::from_secs(10) };

    fn refusals() -> Refusals {
        Refusals::new(IntCounterVec::new(Opts::new("refusals", "refusals"), &["reason"]).unwrap())
    }

    #[test]
    fn each_window_must_bring_enough_by_itself() {
        let mut waiting = Waiting::new(FLOOR);
        waiting.moved(9_999);
        assert!(waiting.waited(Duration::from_millis(9_999)));
        assert_eq!(waiting.left(), Duration::from_millis(1));
        waiting.moved(1);
        assert!(waiting.waited(Duration::from_millis(1)));
        assert_eq!(waiting.left(), FLOOR.window);
        waiting.moved(9_999);
        assert!(!waiting.waited(FLOOR.window), "what the window before had too much does not help");
    }

    /// Writes to somebody who takes `sip` bytes at a time and pauses after each; says whether that
    /// was too slow.
    async fn is_cut(floor: Floor, sip: usize, pause: Duration) -> bool {
        let (near, mut far) = tokio::io::duplex(1024);
        let refusals = refusals();
        let mut near = Taken::new(near, floor, refusals.clone());
        let taking = tokio::spawn(async move {
            let mut buffer = vec![0; sip];
            while far.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                sleep(pause).await;
            }
        });
        let outcome = near.write_all(&vec![0; 100_000]).await;
        assert_eq!(refusals.get(Reason::AnswerSlow), u64::from(outcome.is_err()));
        taking.abort();
        outcome.is_err()
    }

    #[tokio::test]
    async fn who_takes_nothing_or_too_little_is_cut_off_and_nobody_else() {
        let quick = Floor { window: Duration::from_millis(50), ..FLOOR };
        assert!(is_cut(quick, 1, Duration::from_secs(3600)).await);
        assert!(is_cut(quick, 1, Duration::from_millis(20)).await);
        assert!(!is_cut(FLOOR, 512, Duration::ZERO).await);
        let none = Floor { bytes_per_second: 0, ..quick };
        assert!(!is_cut(none, 512, Duration::from_millis(1)).await);
    }

    #[tokio::test]
    async fn who_is_owed_nothing_may_rest() {
        let (near, mut far) = tokio::io::duplex(1024);
        let quick = Floor { window: Duration::from_millis(10), ..FLOOR };
        let mut near = Taken::new(near, quick, refusals());
        for _ in 0..5 {
            // Less than a window must bring, and all of it taken.
            near.write_all(b"little").await.unwrap();
            near.flush().await.unwrap();
            far.read_exact(&mut [0; 6]).await.unwrap();
            sleep(4 * quick.window).await;
        }
    }
}
