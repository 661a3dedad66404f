//! The clock that locks are counted in, as a pure state machine: readings of the machine's clocks
//! in, a time C and what was seen out.
//!
//! What must always hold:
//!
//! * **C never goes back.** What was given out is kept (`issued_ms`), and nothing below it is given
//!   out again.
//! * **C never runs fast.** Between two readings of one start of the machine it gains the smaller
//!   of what the boot clock and what the wall clock gained, and nothing where the wall clock went
//!   back. The boot clock cannot be set, so no setting of the wall clock makes C gain more than has
//!   truly passed; the wall clock can only make it gain less.
//! * **Time without power is believed up to an allowance**: 14 days in any 365 days of C. Only the
//!   wall clock knows of it, and that can be set while the machine starts. The rest is remembered
//!   as lost, and two principals can credit up to that much.
//! * **Another machine** counts nothing: neither its boot clock nor its wall clock says anything of
//!   the time that the disks were on their way. All of it is lost until it is credited.
//! * **Suspicion stays until two principals thaw it.** Under suspicion C runs on, but no lock ends.
//!
//! So C - start <= time that passed + allowance that was counted + what two principals credited;
//! `c_is_never_ahead_of_what_passed` tries to break that.
//!
//! Readings are compared with the last one that was *kept*: one is kept when a minute has passed
//! since, or when the clocks disagree by 10 seconds. Were each kept, half a millisecond would be
//! lost each time, thousands of times a second. So a kill costs nothing: a row that is a minute old
//! says what C is now, as long as the machine was not started again; after a start, what was not
//! written before it, up to a minute, counts as time without power.
//!
//! Disagreement of the two clocks adds up, whatever its sign, and a minute of it is forgiven for
//! each day of C. Slewing moves both clocks alike; leap seconds and small corrections are forgiven.
//! Above an hour it is suspicion: somebody sets the wall clock, or it is broken.

use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::entry::ClockEvent;
use strongroom_protocol::retention::Moment;

use crate::clock::Reading;

/// A year of C.
pub const YEAR_MS: u64 = 365 * DAY_MS;
/// Time without power that is believed in any year of C.
pub const ALLOWANCE_MS: u64 = 14 * DAY_MS;
/// More disagreement than this is suspicion.
pub const SKEW_BOUND_MS: u64 = 3_600_000;

const DAY_MS: u64 = 24 * 3_600_000;
/// A reading is kept after this, or at once after a jump.
const KEEP_MS: u64 = 60_000;
/// A disagreement of the clocks that is worth an entry.
const JUMP_MS: u64 = 10_000;
/// One part of C in so many is forgiven: a minute a day.
const FORGIVEN_PART: u64 = 24 * 60;
/// Grants within one such step of C are one, as new as the newest of them.
const GRANT_STEP_MS: u64 = YEAR_MS / 16;
const GRANTS_MAX_COUNT: u32 = 18;
const HISTORY_MAX_COUNT: u32 = 32;

const STATE_MAGIC: &[u8; 4] = b"RCS1";
const HISTORY_MAGIC: &[u8; 4] = b"RCH1";

/// Why no lock ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Wall clock and boot clock disagree by more than the bound.
    Skew,
    /// The data folder came to another machine.
    Machine,
    /// The data folder is older than a head that its ledger signed.
    RolledBack,
    /// The clock's own row is missing, or is older than the ledger.
    Row,
}

/// Something that the clock saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What.
    pub event: ClockEvent,
    /// How much, in milliseconds; 0 where there is no amount.
    pub amount_ms: u64,
    /// When, by C.
    pub clock_ms: u64,
    /// When, by the wall clock.
    pub wall_ms: u64,
}

/// What two principals wished for and cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TendError {
    /// More than was lost, or nothing.
    AboveLost {
        /// What was lost, in milliseconds.
        lost_ms: u64,
    },
    /// Nothing is frozen.
    NotFrozen,
}

/// Time without power that was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    at_ms: u64,
    amount_ms: u64,
}

/// The clock's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClockState {
    /// C when `kept` was read.
    base_ms: u64,
    /// The largest C that was given out.
    issued_ms: u64,
    kept: Reading,
    skew_ms: u64,
    lost_ms: u64,
    /// A bit for each [`Suspicion`].
    suspicions: u8,
    /// How many things were seen in all.
    seen_count: u64,
    grants: Vec<Grant>,
    history: Vec<Seen>,
    /// What has no entry in the ledger yet; never in a row.
    unwritten: Vec<Seen>,
}

/// What the clocks of a machine gained since the kept reading.
struct Gain {
    boot_ms: u64,
    wall_ms: u64,
    wall_back_ms: u64,
}

impl Gain {
    fn counted(&self) -> u64 {
        self.boot_ms.min(self.wall_ms)
    }

    /// By how much the wall clock gained more.
    fn ahead(&self) -> u64 {
        self.wall_ms.saturating_sub(self.boot_ms)
    }

    /// By how much it gained less.
    fn behind(&self) -> u64 {
        self.boot_ms.saturating_sub(self.wall_ms).saturating_add(self.wall_back_ms)
    }
}

impl Suspicion {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Skew, Self::Machine, Self::RolledBack, Self::Row];

    const fn bit(self) -> u8 {
        match self {
            Self::Skew => 1,
            Self::Machine => 2,
            Self::RolledBack => 4,
            Self::Row => 8,
        }
    }
}

impl ClockState {
    /// A new clock, which starts from the wall clock.
    pub fn start(now: &Reading) -> Self {
        let mut state = Self::at(now.wall_ms, now);
        state.see(ClockEvent::Started, 0);
        state
    }

    /// The clock of a row, as it was left. A row that is missing or older than the ledger's last
    /// entry was taken away or put back: the clock goes on where the ledger says that it was at
    /// least, counts nothing for the time since, and is under suspicion.
    pub fn resume(row: Option<Self>, ledger_seconds: u64, now: &Reading) -> Self {
        match row {
            Some(row) if row.issued_ms / 1000 >= ledger_seconds => row,
            row => {
                let mut state = row.unwrap_or_else(|| Self::at(0, now));
                state.kept = *now;
                state.issued_ms = state.issued_ms.max(ledger_seconds.saturating_mul(1000));
                state.base_ms = state.issued_ms;
                state.suspect(Suspicion::Row);
                state
            }
        }
    }

    fn at(clock_ms: u64, now: &Reading) -> Self {
        Self { base_ms: clock_ms, issued_ms: clock_ms, kept: *now, ..Self::default() }
    }

    /// Takes note of the clocks.
    pub fn observe(&mut self, now: &Reading) {
        if now.machine != self.kept.machine {
            self.arrive(now);
        } else if now.boot_id != self.kept.boot_id {
            self.start_again(now);
        } else {
            self.go_on(now);
        }
        if self.skew_ms > SKEW_BOUND_MS {
            self.suspect(Suspicion::Skew);
        }
    }

    /// The machine has been running since the kept reading.
    fn go_on(&mut self, now: &Reading) {
        let gain = self.gain(now, now.boot_ms.saturating_sub(self.kept.boot_ms), 0);
        self.issued_ms = self.issued_ms.max(self.base_ms.saturating_add(gain.counted()));
        let disagreement = gain.ahead().saturating_add(gain.behind());
        if gain.boot_ms >= KEEP_MS || disagreement >= JUMP_MS {
            self.keep(now, gain.counted());
            self.settle();
            self.disagree(ClockEvent::WallAhead, gain.ahead());
            self.disagree(ClockEvent::WallBack, gain.behind());
        }
    }

    /// The machine was started again since. What its boot clock says is time that passed, as far
    /// as the wall clock agrees; what the wall clock says beyond that is time without power.
    fn start_again(&mut self, now: &Reading) {
        let given = self.settle();
        let gain = self.gain(now, now.boot_ms, given);
        self.keep(now, gain.counted());
        self.see(ClockEvent::Rebooted, gain.ahead());
        self.disagree(ClockEvent::WallBack, gain.behind());
        let counted = gain.ahead().min(self.allowance_ms());
        let lost = gain.ahead().saturating_sub(counted);
        if counted > 0 {
            self.add(counted);
            self.grant(counted);
            self.see(ClockEvent::OffTimeCounted, counted);
        }
        self.lose(lost);
    }

    /// The disks came to another machine.
    fn arrive(&mut self, now: &Reading) {
        let given = self.settle();
        let gain = self.gain(now, 0, given);
        self.keep(now, 0);
        self.see(ClockEvent::MachineChanged, 0);
        self.disagree(ClockEvent::WallBack, gain.behind());
        self.lose(gain.wall_ms);
        self.suspect(Suspicion::Machine);
    }

    /// Somebody showed that the data folder is older than what its ledger signed.
    pub fn roll_back(&mut self) {
        if !self.has(Suspicion::RolledBack) {
            self.see(ClockEvent::RolledBack, 0);
            self.suspect(Suspicion::RolledBack);
        }
    }

    /// Two principals end all suspicion. Call after [`Self::observe`]: the present clocks and the
    /// present machine are what counts from here on.
    pub fn thaw(&mut self) -> Result<(), TendError> {
        if !self.is_suspect() {
            return Err(TendError::NotFrozen);
        }
        let skew_ms = std::mem::take(&mut self.skew_ms);
        self.suspicions = 0;
        self.see(ClockEvent::Thawed, skew_ms);
        Ok(())
    }

    /// Two principals count time that was lost.
    pub fn credit(&mut self, amount_ms: u64) -> Result<(), TendError> {
        let lost_ms = self.lost_ms;
        if amount_ms == 0 || amount_ms > lost_ms {
            return Err(TendError::AboveLost { lost_ms });
        }
        self.lost_ms = lost_ms.saturating_sub(amount_ms);
        self.base_ms = self.base_ms.saturating_add(amount_ms);
        self.issued_ms = self.issued_ms.saturating_add(amount_ms);
        self.see(ClockEvent::OffTimeCredited, amount_ms);
        Ok(())
    }

    /// C, in milliseconds since 1970.
    pub fn clock_ms(&self) -> u64 {
        self.issued_ms
    }

    /// C and suspicion, beside the wall clock of `now`.
    pub fn moment(&self, now: &Reading) -> Moment {
        Moment {
            retention_seconds: self.issued_ms / 1000,
            wall_seconds: now.wall_ms / 1000,
            is_suspect: self.is_suspect(),
        }
    }

    /// Whether locks end.
    pub fn is_suspect(&self) -> bool {
        self.suspicions != 0
    }

    /// Whether this is a reason for suspicion.
    pub fn has(&self, suspicion: Suspicion) -> bool {
        self.suspicions & suspicion.bit() != 0
    }

    /// Disagreement of the clocks that was not forgiven.
    pub fn skew_ms(&self) -> u64 {
        self.skew_ms
    }

    /// Time that was not counted and can be credited.
    pub fn lost_ms(&self) -> u64 {
        self.lost_ms
    }

    /// What is left of the allowance for time without power.
    pub fn allowance_ms(&self) -> u64 {
        let since = self.issued_ms.saturating_sub(YEAR_MS);
        let used = self.grants.iter().filter(|grant| grant.at_ms > since);
        let used = used.fold(0u64, |sum, grant| sum.saturating_add(grant.amount_ms));
        ALLOWANCE_MS.saturating_sub(used)
    }

    /// What was seen, newest last.
    pub fn history(&self) -> &[Seen] {
        &self.history
    }

    /// Whether something waits for its entry.
    pub fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// What was seen since this was asked last.
    pub fn take_unwritten(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.unwritten)
    }

    /// BLAKE3 over what a credit or a thaw is proposed against: reasons, loss, all that was seen.
    pub fn digest(&self) -> [u8; 32] {
        let mut out = Writer::with_magic(STATE_MAGIC);
        out.u8(self.suspicions).u64(self.lost_ms).u64(self.seen_count);
        blake3::hash(&out.finish()).into()
    }

    /// What was gained since the kept reading, without what was `given` out of it already.
    fn gain(&self, now: &Reading, boot_ms: u64, given: u64) -> Gain {
        let since = self.kept.wall_ms.saturating_add(given);
        Gain {
            boot_ms,
            wall_ms: now.wall_ms.saturating_sub(since),
            wall_back_ms: since.saturating_sub(now.wall_ms),
        }
    }

    /// All that was given out has truly passed: C goes on from there. Says how much that was.
    fn settle(&mut self) -> u64 {
        let given = self.issued_ms.saturating_sub(self.base_ms);
        self.base_ms = self.issued_ms;
        given
    }

    fn keep(&mut self, now: &Reading, counted: u64) {
        self.kept = *now;
        self.add(counted);
        self.skew_ms = self.skew_ms.saturating_sub(counted / FORGIVEN_PART);
    }

    fn add(&mut self, counted: u64) {
        self.base_ms = self.base_ms.saturating_add(counted);
        self.issued_ms = self.issued_ms.max(self.base_ms);
    }

    fn disagree(&mut self, event: ClockEvent, amount_ms: u64) {
        self.skew_ms = self.skew_ms.saturating_add(amount_ms);
        if amount_ms >= JUMP_MS {
            self.see(event, amount_ms);
        }
    }

    fn lose(&mut self, amount_ms: u64) {
        if amount_ms > 0 {
            self.lost_ms = self.lost_ms.saturating_add(amount_ms);
            self.see(ClockEvent::OffTimeLost, amount_ms);
        }
    }

    fn grant(&mut self, amount_ms: u64) {
        let (at_ms, since) = (self.issued_ms, self.issued_ms.saturating_sub(YEAR_MS));
        self.grants.retain(|grant| grant.at_ms > since);
        match self.grants.last_mut() {
            Some(last) if last.at_ms / GRANT_STEP_MS == at_ms / GRANT_STEP_MS => {
                let amount_ms = last.amount_ms.saturating_add(amount_ms);
                *last = Grant { at_ms, amount_ms };
            }
            _ => self.grants.push(Grant { at_ms, amount_ms }),
        }
    }

    fn suspect(&mut self, suspicion: Suspicion) {
        let was_suspect = self.is_suspect();
        self.suspicions |= suspicion.bit();
        if !was_suspect {
            self.see(ClockEvent::Frozen, self.skew_ms);
        }
    }

    fn see(&mut self, event: ClockEvent, amount_ms: u64) {
        let seen = Seen { event, amount_ms, clock_ms: self.issued_ms, wall_ms: self.kept.wall_ms };
        self.seen_count = self.seen_count.saturating_add(1);
        let max = usize::try_from(HISTORY_MAX_COUNT).unwrap_or(usize::MAX);
        if self.history.len() >= max {
            self.history.remove(0);
        }
        self.history.push(seen);
        self.unwritten.push(seen);
    }

    /// The value of row `state`; without the history, which has its own.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(STATE_MAGIC);
        out.u64(self.base_ms).u64(self.issued_ms);
        out.u64(self.kept.wall_ms).u64(self.kept.boot_ms);
        out.raw(&self.kept.boot_id).raw(&self.kept.machine);
        out.u64(self.skew_ms).u64(self.lost_ms).u8(self.suspicions).u64(self.seen_count);
        out.count(self.grants.len());
        for grant in &self.grants {
            out.u64(grant.at_ms).u64(grant.amount_ms);
        }
        out.finish()
    }

    /// The value of row `history`.
    pub fn encode_history(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(HISTORY_MAGIC);
        out.count(self.history.len());
        for seen in &self.history {
            out.u8(seen.event.code()).u64(seen.amount_ms).u64(seen.clock_ms).u64(seen.wall_ms);
        }
        out.finish()
    }

    /// Reads both rows.
    pub fn decode(state: &[u8], history: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("retention clock", state);
        reader.magic(STATE_MAGIC)?;
        let (base_ms, issued_ms) = (reader.u64()?, reader.u64()?);
        let kept = Reading {
            wall_ms: reader.u64()?,
            boot_ms: reader.u64()?,
            boot_id: reader.array()?,
            machine: reader.array()?,
        };
        let (skew_ms, lost_ms, suspicions) = (reader.u64()?, reader.u64()?, reader.u8()?);
        let known = Suspicion::ALL.iter().fold(0, |bits, suspicion| bits | suspicion.bit());
        if base_ms > issued_ms || suspicions & !known != 0 {
            return reader.refuse();
        }
        let seen_count = reader.u64()?;
        let mut grants = Vec::new();
        for _ in 0..reader.count(GRANTS_MAX_COUNT)? {
            grants.push(Grant { at_ms: reader.u64()?, amount_ms: reader.u64()? });
        }
        reader.finish()?;
        Ok(Self {
            base_ms,
            issued_ms,
            kept,
            skew_ms,
            lost_ms,
            suspicions,
            seen_count,
            grants,
            history: decode_history(history)?,
            unwritten: Vec::new(),
        })
    }
}

fn decode_history(bytes: &[u8]) -> Result<Vec<Seen>, DecodeError> {
    let mut reader = Reader::new("history of the retention clock", bytes);
    reader.magic(HISTORY_MAGIC)?;
    let mut history = Vec::new();
    for _ in 0..reader.count(HISTORY_MAX_COUNT)? {
        let code = reader.u8()?;
        let event = ClockEvent::ALL.into_iter().find(|event| event.code() == code);
        history.push(Seen {
            event: event.ok_or(DecodeError::Value("clock event"))?,
            amount_ms: reader.u64()?,
            clock_ms: reader.u64()?,
            wall_ms: reader.u64()?,
        });
    }
    reader.finish()?;
    Ok(history)
}

#[cfg(test)]
mod tests;
