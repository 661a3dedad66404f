//! The only file of the client that reads time.
//!
//! Time measures progress and back-off, and dates records as information; nothing is trusted or
//! refused by this clock.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment from which time is measured.
#[derive(Debug, Clone, Copy)]
pub struct Moment(Instant);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// Time since then.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Wall clock, seconds since 1970; 0 before that.
pub fn wall_seconds() -> u64 {
    u64::try_from(wall_ms() / 1000).unwrap_or(0)
}

/// When a file was written last, seconds since 1970; nothing where nobody knows.
pub fn modified_seconds(path: &Path) -> Option<u64> {
    let written = std::fs::metadata(path).and_then(|file| file.modified()).ok()?;
    written.duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs())
}

/// The wall clock, milliseconds since 1970; negative before.
pub fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_millis()).map_or(i64::MIN, i64::wrapping_neg)
        }
    }
}

/// Today's date where this machine stands.
pub fn today() -> jiff::civil::Date {
    let now = jiff::Timestamp::from_millisecond(wall_ms()).unwrap_or_default();
    now.to_zoned(jiff::tz::TimeZone::system()).date()
}
