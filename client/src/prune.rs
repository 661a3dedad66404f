//! What to keep and what to forget of a source: a pure function over its list of snapshots.
//!
//! * It chooses only among what is **free**: what a lock, a hold or a suspect clock keeps is kept,
//!   and takes no place of what the rules keep.
//! * It counts by the **server's** time of commit, in UTC; a client's time is not looked at.
//! * Each principal's snapshots are counted by themselves: what one client pushes never takes the
//!   place of another's.
//! * Days with a **burst** (more than 24, and ten times what a quarter of the other days has) are
//!   kept whole and take no place: ten thousand junk snapshots that somebody pushed with a stolen
//!   key push no real one out. A person who has looked at them says so (`--accept-burst`).
//!
//! A rule keeps the newest snapshot of each of the newest N periods that have one; `last` keeps the
//! newest N.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use strongroom_protocol::id::{PrincipalId, RecordDigest};
use strongroom_protocol::retention::Kept;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// A day may have so many times what a quarter of the others has.
const BURST_FACTOR: usize = 10;
/// And never counts as a burst with so many or less.
const BURST_MIN: usize = 24;

/// A snapshot, as far as pruning looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Names it.
    pub snapshot: RecordDigest,
    /// Who made it.
    pub principal: PrincipalId,
    /// The server's time of the commit, milliseconds since 1970.
    pub committed_ms: u64,
    /// What keeps it whatever the rules say.
    pub kept: Option<Kept>,
}

/// How many to keep; 0 keeps none by that rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// The newest.
    pub last: usize,
    /// The newest of each hour.
    pub hourly: usize,
    /// The newest of each day.
    pub daily: usize,
    /// The newest of each week, from Monday.
    pub weekly: usize,
    /// The newest of each month.
    pub monthly: usize,
    /// The newest of each year.
    pub yearly: usize,
}

/// Number of the period that an instant is in, milliseconds since 1970.
type PeriodOf = fn(u64) -> i64;

/// Why a snapshot is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its lock lasts.
    Locked,
    /// A legal hold stands.
    Held,
    /// The server's clock is under suspicion.
    ClockSuspect,
    /// Its day has far more snapshots than usual: somebody should look.
    Burst,
    /// Among the newest.
    Last,
    /// Newest of its hour.
    Hourly,
    /// Newest of its day.
    Daily,
    /// Newest of its week.
    Weekly,
    /// Newest of its month.
    Monthly,
    /// Newest of its year.
    Yearly,
}

/// A snapshot and why it is kept; for no reason, it is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The snapshot.
    pub snapshot: RecordDigest,
    /// When it was committed.
    pub committed_ms: u64,
    /// Why it is kept.
    pub reasons: BTreeSet<Reason>,
}

impl Rules {
    /// Whether the rules would keep nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Reason {
    /// The word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Held => "legal hold",
            Self::ClockSuspect => "clock under suspicion",
            Self::Burst => "burst: look at it",
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

/// A choice for each candidate, oldest first.
pub fn plan(candidates: &[Candidate], rules: &Rules, accepts_bursts: bool) -> Vec<Choice> {
    let mut by_principal: BTreeMap<[u8; 16], Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        by_principal.entry(candidate.principal.0).or_default().push(candidate);
    }
    let mut reasons: BTreeMap<RecordDigest, BTreeSet<Reason>> = BTreeMap::new();
    for own in by_principal.values() {
        plan_own(own, rules, accepts_bursts, &mut reasons);
    }
    let mut choices: Vec<Choice> = candidates
        .iter()
        .map(|candidate| Choice {
            snapshot: candidate.snapshot,
            committed_ms: candidate.committed_ms,
            reasons: reasons.remove(&candidate.snapshot).unwrap_or_default(),
        })
        .collect();
    choices.sort_by_key(|choice| choice.committed_ms);
    choices
}

/// Adds the reasons for one principal's snapshots.
fn plan_own(
    own: &[&Candidate],
    rules: &Rules,
    accepts_bursts: bool,
    reasons: &mut BTreeMap<RecordDigest, BTreeSet<Reason>>,
) {
    let bursts = if accepts_bursts { BTreeSet::new() } else { burst_days(own) };
    let mut keep = |candidate: &Candidate, reason| {
        reasons.entry(candidate.snapshot).or_default().insert(reason);
    };
    let mut free = Vec::new();
    for candidate in own {
        match candidate.kept {
            Some(Kept::Locked) => keep(candidate, Reason::Locked),
            Some(Kept::Held) => keep(candidate, Reason::Held),
            Some(Kept::ClockSuspect) => keep(candidate, Reason::ClockSuspect),
            None if bursts.contains(&day_of(candidate)) => keep(candidate, Reason::Burst),
            None => free.push(*candidate),
        }
    }
    free.sort_by_key(|candidate| std::cmp::Reverse(candidate.committed_ms));
    for candidate in free.iter().take(rules.last) {
        keep(candidate, Reason::Last);
    }
    let by_period: [(usize, Reason, PeriodOf); 5] = [
        (rules.hourly, Reason::Hourly, hour),
        (rules.daily, Reason::Daily, day),
        (rules.weekly, Reason::Weekly, week),
        (rules.monthly, Reason::Monthly, month),
        (rules.yearly, Reason::Yearly, year),
    ];
    for (count, reason, period_of) in by_period {
        let mut periods = BTreeSet::new();
        for candidate in &free {
            if periods.len() >= count {
                break;
            }
            if periods.insert(period_of(candidate.committed_ms)) {
                keep(candidate, reason);
            }
        }
    }
}

/// Days with far more snapshots than the others have.
fn burst_days(own: &[&Candidate]) -> BTreeSet<u64> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for candidate in own {
        *counts.entry(day_of(candidate)).or_default() += 1;
    }
    let is_burst = |day: &u64, count: usize| {
        let mut others: Vec<usize> =
            counts.iter().filter(|(other, _)| *other != day).map(|(_, count)| *count).collect();
        others.sort_unstable();
        // A quarter of the days, not half: junk that fills most days must not become the usual.
        let usual = others.get(others.len() / 4).copied().unwrap_or(0);
        count > BURST_MIN && count > usual.saturating_mul(BURST_FACTOR)
    };
    counts.iter().filter(|(day, count)| is_burst(day, **count)).map(|(day, _)| *day).collect()
}

fn day_of(candidate: &Candidate) -> u64 {
    candidate.committed_ms / DAY_MS
}

fn hour(milliseconds: u64) -> i64 {
    signed(milliseconds / (DAY_MS / 24))
}

fn day(milliseconds: u64) -> i64 {
    signed(milliseconds / DAY_MS)
}

fn week(milliseconds: u64) -> i64 {
    // 1 January 1970 was a Thursday.
    signed((milliseconds / DAY_MS).saturating_add(3) / 7)
}

fn month(milliseconds: u64) -> i64 {
    let (year, month) = civil(milliseconds);
    year.saturating_mul(12).saturating_add(month)
}

fn year(milliseconds: u64) -> i64 {
    civil(milliseconds).0
}

fn civil(milliseconds: u64) -> (i64, i64) {
    let time = Timestamp::from_millisecond(signed(milliseconds)).unwrap_or(Timestamp::MAX);
    let date = time.to_zoned(TimeZone::UTC).date();
    (i64::from(date.year()), i64::from(date.month()))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-01-01, a Thursday.
    const START_MS: u64 = 1_767_225_600_000;
    const ALICE: PrincipalId = PrincipalId([1; 16]);
    const BOB: PrincipalId = PrincipalId([2; 16]);

    fn candidate(number: u32, principal: PrincipalId, hours: u64) -> Candidate {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        digest[4] = principal.0[0];
        Candidate {
            snapshot: RecordDigest(digest),
            principal,
            committed_ms: START_MS + hours * DAY_MS / 24,
            kept: None,
        }
    }

    /// One a day, at two in the morning.
    fn nightly(days: u32, principal: PrincipalId) -> Vec<Candidate> {
        (0..days).map(|n| candidate(n, principal, u64::from(n) * 24 + 2)).collect()
    }

    fn kept(choices: &[Choice]) -> Vec<RecordDigest> {
        let kept = choices.iter().filter(|choice| !choice.reasons.is_empty());
        kept.map(|choice| choice.snapshot).collect()
    }

    #[test]
    fn rules_keep_the_newest_of_each_period() {
        let list = nightly(70, ALICE);
        let rules = Rules { last: 2, daily: 3, weekly: 2, monthly: 3, ..Rules::default() };
        let kept = kept(&plan(&list, &rules, false));
        // 11 March is a Wednesday; Sunday 8 March ends the week before; January and February.
        let days = [30, 58, 66, 67, 68, 69];
        assert_eq!(kept, days.map(|day| list[day].snapshot));
    }

    #[test]
    fn what_is_kept_anyway_takes_no_place() {
        let mut list = nightly(10, ALICE);
        for (candidate, kept) in list.iter_mut().rev().zip([Kept::Locked, Kept::Held]) {
            candidate.kept = Some(kept);
        }
        let rules = Rules { last: 1, ..Rules::default() };
        let choices = plan(&list, &rules, false);
        assert_eq!(kept(&choices), [7, 8, 9].map(|day: usize| list[day].snapshot));
        assert!(choices[7].reasons.contains(&Reason::Last));
        assert!(choices[9].reasons.contains(&Reason::Locked));
    }

    #[test]
    fn junk_of_a_stolen_key_pushes_nothing_real_out() {
        let real = nightly(30, ALICE);
        let rules = Rules { last: 5, daily: 10, monthly: 2, ..Rules::default() };
        let before: BTreeSet<_> = kept(&plan(&real, &rules, false)).into_iter().collect();
        let mut list = real.clone();
        list.extend((0..10_000).map(|n| Candidate {
            committed_ms: START_MS + 29 * DAY_MS + 3 * DAY_MS / 24 + u64::from(n),
            ..candidate(1_000_000 + n, ALICE, 0)
        }));
        let after: BTreeSet<_> = kept(&plan(&list, &rules, false)).into_iter().collect();
        assert!(before.is_subset(&after));
        assert!(after.len() >= 10_000, "junk stays until somebody has looked");
        let accepted = kept(&plan(&list, &rules, true));
        assert!(accepted.len() < 100);
    }

    #[test]
    fn another_principals_snapshots_take_no_place() {
        let alice = nightly(10, ALICE);
        let mut list = alice.clone();
        list.extend((0..20).map(|n| candidate(n, BOB, 240 + u64::from(n) * 24)));
        let rules = Rules { last: 3, ..Rules::default() };
        let kept = kept(&plan(&list, &rules, false));
        assert!(alice[7..].iter().all(|candidate| kept.contains(&candidate.snapshot)));
        assert_eq!(kept.len(), 6);
    }

    proptest! {
        #[test]
        fn nothing_that_is_kept_is_ever_chosen(
            hours in prop::collection::vec((0u64..5000, 0u8..4, any::<bool>()), 0..80),
            last in 0usize..5,
            daily in 0usize..5,
            yearly in 0usize..3,
        ) {
            let list: Vec<Candidate> = hours.iter().enumerate().map(|(n, (hours, kept, bob))| {
                let kept = [None, Some(Kept::Locked), Some(Kept::Held), Some(Kept::ClockSuspect)]
                    [usize::from(*kept)];
                let principal = if *bob { BOB } else { ALICE };
                Candidate { kept, ..candidate(u32::try_from(n).unwrap(), principal, *hours) }
            }).collect();
            let rules = Rules { last, daily, yearly, ..Rules::default() };
            let choices = plan(&list, &rules, true);
            prop_assert_eq!(choices.len(), list.len());
            for choice in &choices {
                let of = list.iter().find(|c| c.snapshot == choice.snapshot).unwrap();
                prop_assert!(of.kept.is_none() || !choice.reasons.is_empty());
            }
            // More to keep never keeps less.
            let more = Rules { last: last + 1, daily: daily + 1, ..rules };
            let more: BTreeSet<_> = kept(&plan(&list, &more, true)).into_iter().collect();
            prop_assert!(kept(&choices).iter().all(|snapshot| more.contains(snapshot)));
        }
    }
}
