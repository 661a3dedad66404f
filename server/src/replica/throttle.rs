//! Holds what is fetched below a number of bytes a second, which may depend on the time of day.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::config::Rates;

/// A pause is at least so long, because timers are not finer than a millisecond.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Shared by all connections to all primaries.
pub struct Throttle {
    clock: Arc<dyn Clock>,
    rates: Rates,
    /// Bytes that were let through and not paused for.
    owed: Mutex<u64>,
}

impl Throttle {
    /// Lets through what the table says for the time of day.
    pub fn new(clock: Arc<dyn Clock>, rates: Rates) -> Self {
        Self { clock, rates, owed: Mutex::new(0) }
    }

    /// Lets everything through.
    pub fn unbounded(clock: Arc<dyn Clock>) -> Self {
        Self::new(clock, Rates::default())
    }

    /// Lets `bytes` through, and waits until more may follow. Whoever else comes waits behind. True
    /// if there may have been a wait.
    pub async fn take(&self, bytes: usize) -> bool {
        if self.rates.is_unbounded() {
            return false;
        }
        let mut owed = self.owed.lock().await;
        // The lock may have been waited for, and the hour have changed.
        let rate = self.rates.at_ms(self.clock.wall_ms());
        if rate == 0 {
            *owed = 0;
            return true;
        }
        *owed = owed.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let pause = Duration::from_micros(owed.saturating_mul(1_000_000) / rate);
        if pause >= PAUSE_MIN {
            tokio::time::sleep(pause).await;
            *owed = 0;
        }
        true
    }
}
