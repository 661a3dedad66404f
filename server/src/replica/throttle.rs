//! Holds what is fetched below a number of bytes a second.

use std::time::Duration;

use tokio::sync::Mutex;

/// A pause is at least so long, because timers are not finer than a millisecond.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Shared by all connections to all primaries.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    /// Bytes that were let through and not paused for.
    owed: Mutex<u64>,
}

impl Throttle {
    /// Lets so many bytes a second through; 0 lets everything.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, owed: Mutex::new(0) }
    }

    /// Lets `bytes` through, and waits until more may follow. Whoever else comes waits behind.
    pub async fn take(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let mut owed = self.owed.lock().await;
        *owed = owed.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let pause_us = owed.saturating_mul(1_000_000) / self.bytes_per_second;
        let pause = Duration::from_micros(pause_us);
        if pause >= PAUSE_MIN {
            tokio::time::sleep(pause).await;
            *owed = 0;
        }
    }
}
