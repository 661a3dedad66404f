//! The clock that locks are counted in, shared by the writer thread and by whoever only looks.
//!
//! The state is `clock_state.rs`; this file keeps it in two rows of family `clock` and shows it.
//!
//! * **The writer thread advances it.** Each decision takes a copy, advances it by a reading, and
//!   writes it in the decision's own batch, with an entry for all that it saw. Only when the batch
//!   is written the copy becomes the state. So times in the ledger never go back, and nothing that
//!   was seen is lost: *a crash before the batch leaves the state of before, which sees it again; a
//!   crash after it leaves both.* A decision is written for the clock alone once a minute.
//! * **Everybody else looks** at a copy that is advanced by a reading of their own and thrown away:
//!   what a look saw must be counted once, by the decision that enters it. So a look can be ahead
//!   of the next decision, if the wall clock is set back in between; no look ends a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use strongroom_protocol::entry::ClockEvent;
use strongroom_protocol::message::ClockStatus;
use strongroom_protocol::retention::Moment;

use crate::clock::{Clock, Reading};
use crate::clock_state::{ClockState, SKEW_BOUND_MS, Seen, Suspicion};
use crate::error::ServerError;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::meta::MetaBatch;
use crate::store::schema::Family;

const STATE_ROW: &[u8] = b"state";
const HISTORY_ROW: &[u8] = b"history";
/// The state is written at least this often.
const WRITE_INTERVAL_MS: u64 = 60_000;

/// The clock that locks are counted in.
pub struct RetentionClock {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    state: Mutex<ClockState>,
    written_ms: AtomicU64,
}

impl RetentionClock {
    /// Reads the rows; or starts the clock, in a repository without a single entry.
    /// `ledger_seconds` is the retention time of the last entry.
    pub fn open(
        store: &Store,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        ledger_seconds: Option<u64>,
    ) -> Result<Self, ServerError> {
        let now = clock.reading();
        let state = store.get(Family::Clock, STATE_ROW)?;
        let history = store.get(Family::Clock, HISTORY_ROW)?;
        let row = match (state, history) {
            (Some(state), Some(history)) => Some(ClockState::decode(&state, &history)?),
            _ => None,
        };
        let state = match ledger_seconds {
            None => ClockState::start(&now),
            Some(seconds) => ClockState::resume(row, seconds, &now),
        };
        let written_ms = AtomicU64::new(state.clock_ms());
        Ok(Self { clock, metrics, state: Mutex::new(state), written_ms })
    }

    /// The clocks now.
    pub fn moment(&self) -> Moment {
        let (state, now) = self.observe();
        state.moment(&now)
    }

    /// A copy of the state, advanced to now, and the clocks that it was advanced by.
    pub fn observe(&self) -> (ClockState, Reading) {
        let mut state = self.state.lock().clone();
        let now = self.clock.reading();
        state.observe(&now);
        (state, now)
    }

    /// Whether a copy of the state should be written although nothing else is.
    pub fn is_due(&self, state: &ClockState) -> bool {
        let written_ms = self.written_ms.load(Ordering::Relaxed);
        state.has_unwritten() || state.clock_ms().saturating_sub(written_ms) >= WRITE_INTERVAL_MS
    }

    /// Adds the rows of `state` to a batch; the one of the history only where it has changed.
    pub fn put(batch: &mut MetaBatch, state: &ClockState, seen: &[Seen]) {
        batch.put(Family::Clock, STATE_ROW, state.encode());
        if !seen.is_empty() {
            batch.put(Family::Clock, HISTORY_ROW, state.encode_history());
        }
    }

    /// Makes a state that was written the one that all see. `seen` is what was entered with it.
    pub fn install(&self, state: ClockState, seen: &[Seen]) {
        for Seen { event, amount_ms, .. } in seen {
            self.metrics.clock.events.with_label_values(&[event.name()]).inc();
            match event {
                ClockEvent::Started | ClockEvent::Rebooted | ClockEvent::OffTimeCounted => {
                    tracing::info!(event = event.name(), amount_ms, "retention clock");
                }
                _ => tracing::warn!(event = event.name(), amount_ms, "retention clock"),
            }
        }
        self.written_ms.store(state.clock_ms(), Ordering::Relaxed);
        *self.state.lock() = state;
    }

    /// Sets the gauges.
    pub fn show(&self) {
        let (state, _) = self.observe();
        let gauge = |ms: u64| i64::try_from(ms / 1000).unwrap_or(i64::MAX);
        self.metrics.clock.time.set(gauge(state.clock_ms()));
        self.metrics.clock.skew.set(gauge(state.skew_ms()));
        self.metrics.clock.off_time_lost.set(gauge(state.lost_ms()));
        self.metrics.clock.frozen.set(i64::from(state.is_suspect()));
    }

    /// Where the clock stands and why, in plain words.
    pub fn status(&self) -> ClockStatus {
        let (state, now) = self.observe();
        ClockStatus {
            retention_seconds: state.clock_ms() / 1000,
            wall_seconds: now.wall_ms / 1000,
            skew_seconds: state.skew_ms() / 1000,
            skew_bound_seconds: SKEW_BOUND_MS / 1000,
            lost_seconds: state.lost_ms() / 1000,
            allowance_seconds: state.allowance_ms() / 1000,
            frozen: reasons(&state),
            history: state.history().iter().map(line).collect(),
        }
    }
}

/// Why no lock ends, if none does.
fn reasons(state: &ClockState) -> Option<String> {
    let reason = |suspicion| match suspicion {
        Suspicion::Skew => format!(
            "wall clock and machine clock disagreed by {} in all, and {} is the bound: somebody \
             set the wall clock, or it is broken",
            period(state.skew_ms().max(SKEW_BOUND_MS)),
            period(SKEW_BOUND_MS)
        ),
        Suspicion::Machine => "the data folder came to another machine".to_owned(),
        Suspicion::RolledBack => "a client showed a head that this ledger signed and no longer \
                                  has: the data folder was put back to an older state"
            .to_owned(),
        Suspicion::Row => "the clock's own row was missing, or older than the ledger".to_owned(),
    };
    let found = Suspicion::ALL.into_iter().filter(|suspicion| state.has(*suspicion));
    let reasons: Vec<String> = found.map(reason).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// One line of the history.
fn line(seen: &Seen) -> String {
    let amount = period(seen.amount_ms);
    let what = match seen.event {
        ClockEvent::Started => "the clock was started from the wall clock".to_owned(),
        ClockEvent::Rebooted => format!("the machine was started again, {amount} without power"),
        ClockEvent::WallAhead => {
            format!("the wall clock ran ahead of the machine clock by {amount}")
        }
        ClockEvent::WallBack => format!("the wall clock fell behind the machine clock by {amount}"),
        ClockEvent::OffTimeCounted => format!("{amount} without power counted, by the allowance"),
        ClockEvent::OffTimeLost => format!("{amount} without power not counted; can be credited"),
        ClockEvent::OffTimeCredited => format!("{amount} without power credited by two principals"),
        ClockEvent::MachineChanged => "the data folder came to another machine".to_owned(),
        ClockEvent::RolledBack => "a client showed a newer head of this ledger".to_owned(),
        ClockEvent::Frozen => "frozen: no lock ends until two principals thaw the clock".to_owned(),
        ClockEvent::Thawed => "thawed by two principals: locks end again".to_owned(),
    };
    format!("{} (wall {}): {what}", instant(seen.clock_ms), instant(seen.wall_ms))
}

fn instant(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "?".into(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// The two largest units.
fn period(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
