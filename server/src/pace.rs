//! How fast a job in the background may go, and when it must end: collection and scrub.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::ServerError;
use crate::noted::Noted;

/// Longest sleep between two looks at the signal to stop.
const NAP: Duration = Duration::from_millis(50);
/// Longest sleep after one piece of work.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// Paces a job: after each piece of work it sleeps as long as the configured share asks.
pub struct Pace {
    clock: Arc<dyn Clock>,
    noted: Arc<Noted>,
    share: f64,
    worked_since: Duration,
}

impl Pace {
    /// Begins now; works `share` of the time, until `noted` says stop.
    pub fn new(clock: Arc<dyn Clock>, noted: Arc<Noted>, share: f64) -> Self {
        let worked_since = clock.monotonic();
        Self { clock, noted, share, worked_since }
    }

    /// To be called between pieces of work, in a state in which the job may end.
    pub fn breathe(&mut self) -> Result<(), ServerError> {
        let worked = self.clock.monotonic().saturating_sub(self.worked_since);
        let mut rest = worked.mul_f64((1.0 - self.share) / self.share).min(SLEEP_MAX);
        while !self.noted.is_stopping() && !rest.is_zero() {
            let nap = rest.min(NAP);
            std::thread::sleep(nap);
            rest = rest.saturating_sub(nap);
        }
        self.worked_since = self.clock.monotonic();
        if self.noted.is_stopping() { Err(ServerError::Closing) } else { Ok(()) }
    }
}
