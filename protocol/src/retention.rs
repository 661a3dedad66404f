//! Retention: modes, wishes, rules, and what may be done to a lock. Pure: no clock, no I/O.
//!
//! Semantics are those of S3 Object Lock. A lock has a mode and an end; a legal hold stands beside
//! it and knows nothing of it. While a lock lasts:
//!
//! | | governance | compliance |
//! |---|---|---|
//! | extend | whoever may set retention | whoever may set retention |
//! | shorten, or lower the mode | never here; a lift needs two principals | never |
//! | forget | by a lift of two principals | never |
//!
//! and while a hold stands, forgetting is refused whatever the lock says, a lift included.
//!
//! **Two clocks.** A period counts in the server's retention clock, which only runs while the
//! server can vouch for it. A date needs that clock *and* the wall clock to be past it. So a wall
//! clock that is set forward frees nothing, and one that is wrong locks nothing for longer than
//! was asked in the retention clock. While the clock is under suspicion nothing ends.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::RETENTION_MAX_SECONDS;

/// The end of a lock that has none.
pub const FOREVER: u64 = u64::MAX;
/// Marks a wish for a date in its number.
const DATE_BIT: u64 = 1 << 63;

/// Who could lift a lock before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetentionMode {
    /// Liftable by a named capability, on purpose, on record.
    Governance,
    /// Liftable by nobody until it ends.
    Compliance,
}

impl RetentionMode {
    /// The byte that names the mode.
    pub const fn code(self) -> u8 {
        match self {
            Self::Governance => 1,
            Self::Compliance => 2,
        }
    }

    /// The mode that `code` names.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Governance),
            2 => Some(Self::Compliance),
            _ => None,
        }
    }

    /// The word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        }
    }
}

/// How long somebody wants a snapshot to be locked. As a number, in records and requests: 0 is the
/// default, all ones is for ever, the top bit marks a date, everything else is a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u64", try_from = "u64")]
pub enum LockWanted {
    /// Whatever the rule says.
    Default,
    /// So many seconds of the retention clock, at least 1.
    Period(u64),
    /// Until this instant, seconds since 1970. Where the rule counts from a date (the expiry of a
    /// product), this is that date.
    Date(u64),
    /// Without end.
    Forever,
}

impl From<LockWanted> for u64 {
    fn from(wanted: LockWanted) -> u64 {
        match wanted {
            LockWanted::Default => 0,
            LockWanted::Period(seconds) => seconds,
            LockWanted::Date(seconds) => DATE_BIT | seconds,
            LockWanted::Forever => FOREVER,
        }
    }
}

impl TryFrom<u64> for LockWanted {
    type Error = RetentionError;
    fn try_from(number: u64) -> Result<Self, RetentionError> {
        let seconds = number & !DATE_BIT;
        match number {
            0 => Ok(Self::Default),
            FOREVER => Ok(Self::Forever),
            _ if seconds > RETENTION_MAX_SECONDS => Err(RetentionError::BadWish),
            _ if number & DATE_BIT != 0 => Ok(Self::Date(seconds)),
            _ => Ok(Self::Period(seconds)),
        }
    }
}

/// A rule for new locks; periods in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionRule {
    /// Mode of new locks.
    pub mode: RetentionMode,
    /// No snapshot is locked for less.
    pub minimum_seconds: u64,
    /// For a client that asks for nothing.
    pub default_seconds: u64,
    /// No snapshot is locked for more; [`FOREVER`] allows locks without end.
    pub maximum_seconds: u64,
    /// Not 0: a wish must name a date, and the lock ends so long after it.
    #[serde(default)]
    pub after_date_seconds: u64,
}

/// What a policy, a wish or a change of a lock violates.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum RetentionError {
    /// The periods of a rule are out of order, or absurd.
    #[error("retention policy: minimum <= default <= maximum <= 200 years does not hold")]
    BadPolicy,
    /// A wish is no period or date of this world.
    #[error("retention: a period or date beyond 200 years")]
    BadWish,
    /// The date is not in the future.
    #[error("retention: the date must be in the future")]
    PastDate,
    /// The rule counts from a date.
    #[error("retention: this class counts from a date; give the expiry date with --expiry DATE")]
    NeedsDate,
    /// More than the rule's maximum.
    #[error("retention of {wanted} s is above the namespace's maximum of {maximum} s")]
    AboveMaximum {
        /// Asked for, in seconds.
        wanted: u64,
        /// The rule's maximum, in seconds.
        maximum: u64,
    },
    /// The lock would end earlier than it does.
    #[error("the lock would end earlier than it does; a lock is only ever extended")]
    Shortens,
    /// The mode would go from compliance to governance.
    #[error("the lock is in compliance mode, which is never lowered while it lasts")]
    LowersMode,
}

/// The clocks at one moment, as the server knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The retention clock, seconds since 1970.
    pub retention_seconds: u64,
    /// The wall clock, seconds since 1970.
    pub wall_seconds: u64,
    /// The retention clock is under suspicion: nothing ends.
    pub is_suspect: bool,
}

/// What keeps a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Who could lift it.
    pub mode: RetentionMode,
    /// The retention clock must be past this, seconds since 1970; [`FOREVER`] never is.
    pub until_seconds: u64,
    /// The wall clock must be past this too; 0 where a period was asked for.
    pub until_wall_seconds: u64,
    /// A legal hold stands beside the lock.
    pub is_held: bool,
}

/// Why a snapshot may not be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// A legal hold stands.
    Held,
    /// Its lock lasts.
    Locked,
    /// Its lock has ended, but the clock that says so is under suspicion.
    ClockSuspect,
}

impl RetentionRule {
    /// Refuses a rule whose periods are out of order.
    pub fn check(&self) -> Result<(), RetentionError> {
        let sane = |period: u64| period == FOREVER || period <= RETENTION_MAX_SECONDS;
        let in_order = self.minimum_seconds <= self.default_seconds
            && self.default_seconds <= self.maximum_seconds
            && sane(self.minimum_seconds)
            && sane(self.default_seconds)
            && sane(self.maximum_seconds)
            && self.after_date_seconds <= RETENTION_MAX_SECONDS;
        if in_order { Ok(()) } else { Err(RetentionError::BadPolicy) }
    }

    /// The lock of a snapshot that is committed now. Less than the minimum is raised to it, because
    /// a stolen client must not weaken a lock; more than the maximum is refused, because it must
    /// not fill the store with what nobody can delete.
    pub fn new_lock(&self, now: Moment, wanted: LockWanted) -> Result<Lock, RetentionError> {
        let (until_seconds, until_wall_seconds) = self.end_of(now, wanted)?;
        let earliest = end_of_period(now, self.minimum_seconds);
        Ok(Lock {
            mode: self.mode,
            until_seconds: until_seconds.max(earliest),
            until_wall_seconds,
            is_held: false,
        })
    }

    /// End of a wished lock, in the retention clock and in the wall clock.
    fn end_of(&self, now: Moment, wanted: LockWanted) -> Result<(u64, u64), RetentionError> {
        if self.after_date_seconds > 0 && !matches!(wanted, LockWanted::Date(_)) {
            return Err(RetentionError::NeedsDate);
        }
        let (period, end) = match wanted {
            LockWanted::Default => (self.default_seconds, None),
            LockWanted::Forever => (FOREVER, None),
            LockWanted::Period(seconds) => (seconds, None),
            LockWanted::Date(date) => {
                let end = date.saturating_add(self.after_date_seconds);
                // Against the later clock, so that a slow one does not let a past date in; but
                // while the wall clock may lie, it does not keep backups with a date out.
                let wall_seconds = if now.is_suspect { 0 } else { now.wall_seconds };
                let latest = now.retention_seconds.max(wall_seconds);
                if end <= latest {
                    return Err(RetentionError::PastDate);
                }
                (end.saturating_sub(now.retention_seconds), Some(end))
            }
        };
        if period > self.maximum_seconds {
            let maximum = self.maximum_seconds;
            return Err(RetentionError::AboveMaximum { wanted: period, maximum });
        }
        Ok((end.unwrap_or_else(|| end_of_period(now, period)), end.unwrap_or(0)))
    }
}

impl Lock {
    /// A lock of another server, whose retention clock reads `theirs`, on one where it is `ours`
    /// now: it ends as long after now as it does there, and not before its own instant. A lock
    /// that has ended there has ended here too, unless this clock is behind.
    pub fn carried(&self, theirs: u64, ours: u64) -> Self {
        let left = self.until_seconds.saturating_sub(theirs);
        let until_seconds = match (self.until_seconds, left) {
            (FOREVER, _) => FOREVER,
            (end, 0) => end,
            (end, left) => end.max(ours.saturating_add(left)),
        };
        Self { until_seconds, ..*self }
    }

    /// A lock that keeps whatever either of two keeps, for as long and as firmly.
    pub fn joined(&self, other: &Self) -> Self {
        Self {
            mode: self.mode.max(other.mode),
            until_seconds: self.until_seconds.max(other.until_seconds),
            until_wall_seconds: self.until_wall_seconds.max(other.until_wall_seconds),
            is_held: self.is_held || other.is_held,
        }
    }

    /// Whether the lock, without any hold, lasts. A suspect clock ends nothing.
    pub fn lasts(&self, now: Moment) -> bool {
        !self.is_past_end(now) || now.is_suspect
    }

    /// Why the snapshot must be kept; nothing, if it may be forgotten.
    pub fn kept(&self, now: Moment) -> Option<Kept> {
        if self.is_held {
            return Some(Kept::Held);
        }
        match (self.is_past_end(now), now.is_suspect) {
            (false, _) => Some(Kept::Locked),
            (true, true) => Some(Kept::ClockSuspect),
            (true, false) => None,
        }
    }

    /// Why the snapshot must be kept although two principals lift governance.
    pub fn kept_from_lift(&self, now: Moment) -> Option<Kept> {
        match self.kept(now) {
            Some(Kept::Locked | Kept::ClockSuspect) if self.mode == RetentionMode::Governance => {
                None
            }
            kept => kept,
        }
    }

    /// The lock with a new end and mode: later, or refused. Once a lock has ended, any end in the
    /// future and any mode may follow.
    pub fn extended(
        &self,
        rule: &RetentionRule,
        now: Moment,
        wanted: LockWanted,
        mode: Option<RetentionMode>,
    ) -> Result<Self, RetentionError> {
        // The end of an existing lock is named as such; no class counts on from it.
        let rule = RetentionRule { after_date_seconds: 0, ..*rule };
        let (until_seconds, until_wall_seconds) = rule.end_of(now, wanted)?;
        let mode = mode.unwrap_or(self.mode);
        let is_held = self.is_held;
        if !self.lasts(now) {
            return Ok(Self { mode, until_seconds, until_wall_seconds, is_held });
        }
        if mode < self.mode {
            return Err(RetentionError::LowersMode);
        }
        // A date and a period are compared in the retention clock, where both count.
        if until_seconds < self.until_seconds {
            return Err(RetentionError::Shortens);
        }
        let until_wall_seconds = until_wall_seconds.max(self.until_wall_seconds);
        Ok(Self { mode, until_seconds, until_wall_seconds, is_held })
    }

    fn is_past_end(&self, now: Moment) -> bool {
        self.until_seconds != FOREVER
            && now.retention_seconds >= self.until_seconds
            && now.wall_seconds >= self.until_wall_seconds
    }
}

fn end_of_period(now: Moment, period: u64) -> u64 {
    if period == FOREVER { FOREVER } else { now.retention_seconds.saturating_add(period) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: RetentionRule = RetentionRule {
        mode: RetentionMode::Compliance,
        minimum_seconds: 10,
        default_seconds: 100,
        maximum_seconds: 1000,
        after_date_seconds: 0,
    };

    fn at(seconds: u64) -> Moment {
        Moment { retention_seconds: seconds, wall_seconds: seconds, is_suspect: false }
    }

    fn until(now: u64, wanted: LockWanted) -> Result<u64, RetentionError> {
        RULE.new_lock(at(now), wanted).map(|lock| lock.until_seconds)
    }

    fn lock(mode: RetentionMode, until_seconds: u64) -> Lock {
        Lock { mode, until_seconds, until_wall_seconds: 0, is_held: false }
    }

    #[test]
    fn wishes_are_bounded_by_the_rule() {
        assert_eq!(until(5, LockWanted::Default), Ok(105));
        assert_eq!(until(5, LockWanted::Period(1)), Ok(15));
        assert_eq!(until(5, LockWanted::Period(1000)), Ok(1005));
        assert!(until(5, LockWanted::Period(1001)).is_err());
        assert!(until(5, LockWanted::Forever).is_err());
        assert_eq!(until(5, LockWanted::Date(50)), Ok(50));
        assert_eq!(until(5, LockWanted::Date(6)), Ok(15));
        assert_eq!(until(5, LockWanted::Date(5)), Err(RetentionError::PastDate));
        assert!(until(5, LockWanted::Date(1006)).is_err());
    }

    #[test]
    fn a_lock_ends_at_its_instant() {
        let lock = lock(RetentionMode::Governance, 100);
        assert_eq!(lock.kept(at(99)), Some(Kept::Locked));
        assert_eq!(lock.kept(at(100)), None);
        let suspect = Moment { is_suspect: true, ..at(100) };
        assert_eq!(lock.kept(suspect), Some(Kept::ClockSuspect));
    }

    #[test]
    fn a_date_needs_both_clocks() {
        let lock = RULE.new_lock(at(0), LockWanted::Date(500)).unwrap();
        let moment = |retention_seconds, wall_seconds| Moment {
            retention_seconds,
            wall_seconds,
            is_suspect: false,
        };
        assert_eq!(lock.kept(moment(499, 9999)), Some(Kept::Locked));
        assert_eq!(lock.kept(moment(9999, 499)), Some(Kept::Locked));
        assert_eq!(lock.kept(moment(500, 500)), None);
    }

    #[test]
    fn a_hold_outlives_lock_and_lift() {
        let held = Lock { is_held: true, ..lock(RetentionMode::Governance, 100) };
        assert_eq!(held.kept(at(5000)), Some(Kept::Held));
        assert_eq!(held.kept_from_lift(at(5000)), Some(Kept::Held));
        assert_eq!(lock(RetentionMode::Governance, 100).kept_from_lift(at(5)), None);
        let compliance = lock(RetentionMode::Compliance, 100);
        assert_eq!(compliance.kept_from_lift(at(5)), Some(Kept::Locked));
    }

    #[test]
    fn modes_rise_and_never_fall_while_a_lock_lasts() {
        use RetentionMode::{Compliance, Governance};
        let change = |from, to, now| {
            lock(from, 100).extended(&RULE, at(now), LockWanted::Date(200), Some(to))
        };
        assert_eq!(change(Governance, Compliance, 50).unwrap().mode, Compliance);
        assert_eq!(change(Compliance, Governance, 50), Err(RetentionError::LowersMode));
        assert_eq!(change(Compliance, Governance, 100).unwrap().mode, Governance);
    }

    #[test]
    fn a_carried_lock_lasts_as_long_as_at_its_origin_and_keeps_its_instant() {
        let received = lock(RetentionMode::Governance, 1000);
        assert_eq!(received.carried(400, 400).until_seconds, 1000);
        assert_eq!(received.carried(400, 5000).until_seconds, 5600, "this clock is ahead");
        assert_eq!(received.carried(400, 10).until_seconds, 1000, "this clock is behind");
        assert_eq!(received.carried(2000, 5000).until_seconds, 1000, "it has ended there");
        assert_eq!(lock(RetentionMode::Governance, FOREVER).carried(4, 5).until_seconds, FOREVER);
        let own = Lock { is_held: true, ..lock(RetentionMode::Compliance, 500) };
        let joined = Lock { is_held: true, ..lock(RetentionMode::Compliance, 1000) };
        assert_eq!(own.joined(&received), joined);
        assert_eq!(received.joined(&own), joined);
    }

    #[test]
    fn rules_that_count_from_a_date_need_one() {
        let rule = RetentionRule { after_date_seconds: 300, ..RULE };
        assert_eq!(rule.new_lock(at(5), LockWanted::Default), Err(RetentionError::NeedsDate));
        assert_eq!(rule.new_lock(at(5), LockWanted::Date(50)).unwrap().until_seconds, 350);
        // A product that expired already is still kept for the rest of the period after it.
        assert_eq!(rule.new_lock(at(100), LockWanted::Date(50)).unwrap().until_seconds, 350);
    }

    #[test]
    fn rules_must_be_in_order() {
        assert!(RULE.check().is_ok());
        assert!(RetentionRule { minimum_seconds: 101, ..RULE }.check().is_err());
        assert!(RetentionRule { maximum_seconds: 99, ..RULE }.check().is_err());
        assert!(RetentionRule { maximum_seconds: u64::MAX - 1, ..RULE }.check().is_err());
        assert!(RetentionRule { maximum_seconds: FOREVER, ..RULE }.check().is_ok());
    }

    #[test]
    fn wishes_survive_as_numbers() {
        use LockWanted as W;
        for wanted in [W::Default, W::Period(7), W::Date(1_900_000_000), W::Forever] {
            assert_eq!(LockWanted::try_from(u64::from(wanted)), Ok(wanted));
        }
        assert!(LockWanted::try_from(RETENTION_MAX_SECONDS + 1).is_err());
        assert!(LockWanted::try_from(DATE_BIT | (RETENTION_MAX_SECONDS + 1)).is_err());
    }

    #[test]
    fn the_bounds_of_a_rule_are_within_it() {
        let all = |period| RetentionRule {
            minimum_seconds: period,
            default_seconds: period,
            maximum_seconds: period,
            after_date_seconds: 0,
            ..RULE
        };
        for period in [0, 7, RETENTION_MAX_SECONDS, FOREVER] {
            assert_eq!(all(period).check(), Ok(()), "{period}");
        }
        let beyond = RETENTION_MAX_SECONDS + 1;
        assert!(all(beyond).check().is_err());
        let endless = RetentionRule { maximum_seconds: FOREVER, ..RULE };
        assert!(RetentionRule { default_seconds: beyond, ..endless }.check().is_err());
        let default_seconds = FOREVER;
        let least = RetentionRule { minimum_seconds: beyond, default_seconds, ..endless };
        assert!(least.check().is_err());
        let after = |after_date_seconds| RetentionRule { after_date_seconds, ..RULE };
        assert!(after(RETENTION_MAX_SECONDS).check().is_ok() && after(beyond).check().is_err());
        for wanted in [LockWanted::Period(beyond - 1), LockWanted::Date(beyond - 1)] {
            assert_eq!(LockWanted::try_from(u64::from(wanted)), Ok(wanted));
        }
    }

    #[test]
    fn a_date_is_past_if_either_clock_says_so() {
        let rule = RetentionRule { minimum_seconds: 0, ..RULE };
        for (retention_seconds, wall_seconds) in [(50, 60), (60, 50)] {
            let now = Moment { retention_seconds, wall_seconds, is_suspect: false };
            let lock = |date| rule.new_lock(now, LockWanted::Date(date));
            assert_eq!(lock(60), Err(RetentionError::PastDate));
            assert_eq!(lock(61).map(|lock| lock.until_seconds), Ok(61));
        }
    }

    #[test]
    fn a_lock_is_extended_to_its_own_end_and_not_a_second_less() {
        let lock = lock(RetentionMode::Compliance, 100);
        let extended = |end| lock.extended(&RULE, at(50), LockWanted::Date(end), None);
        assert_eq!(extended(100).map(|lock| lock.until_seconds), Ok(100));
        assert_eq!(extended(99), Err(RetentionError::Shortens));
    }

    #[test]
    fn a_class_does_not_count_on_from_a_date_that_an_existing_lock_is_extended_to() {
        let rule = RetentionRule { after_date_seconds: 300, ..RULE };
        let lock = lock(RetentionMode::Compliance, 100);
        let extended = lock.extended(&rule, at(50), LockWanted::Date(200), None);
        assert_eq!(extended.map(|lock| lock.until_seconds), Ok(200));
        let extended = lock.extended(&rule, at(50), LockWanted::Period(150), None);
        assert_eq!(extended.map(|lock| lock.until_seconds), Ok(200));
    }

    #[test]
    fn a_lock_without_end_outlasts_every_clock() {
        let rule = RetentionRule { maximum_seconds: FOREVER, ..RULE };
        let lock = rule.new_lock(at(5), LockWanted::Forever).unwrap();
        assert_eq!(lock.kept(at(u64::MAX)), Some(Kept::Locked));
        assert!(lock.lasts(at(u64::MAX)));
    }

    #[test]
    fn modes_have_their_codes_and_words() {
        use RetentionMode::{Compliance, Governance};
        for (mode, code, name) in [(Governance, 1, "governance"), (Compliance, 2, "compliance")] {
            assert_eq!((mode.code(), mode.name()), (code, name));
            assert_eq!(RetentionMode::from_code(code), Some(mode));
        }
        assert_eq!(RetentionMode::from_code(0), None);
        assert_eq!(RetentionMode::from_code(3), None);
    }

    fn wish() -> impl Strategy<Value = LockWanted> {
        prop_oneof![
            Just(LockWanted::Default),
            Just(LockWanted::Forever),
            (1u64..3000).prop_map(LockWanted::Period),
            (0u64..3000).prop_map(LockWanted::Date),
        ]
    }

    proptest! {
        /// Whatever is asked, an existing lock that lasts keeps what it keeps now.
        #[test]
        fn extending_never_weakens(
            governance in any::<bool>(),
            held in any::<bool>(),
            end in 0u64..2000,
            wall in 0u64..2000,
            now in 0u64..2000,
            wall_now in 0u64..2000,
            is_suspect in any::<bool>(),
            wanted in wish(),
            lower in any::<bool>(),
            later in 0u64..4000,
        ) {
            let mode = match governance {
                true => RetentionMode::Governance,
                false => RetentionMode::Compliance,
            };
            let wished = match lower {
                true => Some(RetentionMode::Governance),
                false => None,
            };
            let old =
                Lock { mode, until_seconds: end, until_wall_seconds: wall, is_held: held };
            let now = Moment { retention_seconds: now, wall_seconds: wall_now, is_suspect };
            let rule = RetentionRule { maximum_seconds: FOREVER, ..RULE };
            if let Ok(new) = old.extended(&rule, now, wanted, wished)
                && old.lasts(now)
            {
                let then = Moment {
                    retention_seconds: now.retention_seconds + later,
                    wall_seconds: later,
                    is_suspect: false,
                };
                prop_assert!(old.kept(then).is_none() || new.kept(then).is_some());
                prop_assert!(
                    old.kept_from_lift(then).is_none() || new.kept_from_lift(then).is_some()
                );
                prop_assert!(new.mode >= old.mode && new.is_held == old.is_held);
            }
        }
    }
}
