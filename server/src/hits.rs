//! "Have" answers that were never committed, by principal.
//!
//! Whoever holds a client's key can ask whether a chunk that it guesses is here; each answer
//! "have" tells it something. An honest session commits what it was told; what is left over is
//! counted, and has a bound. Beyond it the answer is "lack" for everything, which tells nothing and
//! costs an honest client bytes on the line and no backup. What is owed is forgotten evenly over a
//! day.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom_protocol::id::PrincipalId;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What each principal was told and did not commit.
pub struct Hits {
    most: u64,
    owed: Mutex<HashMap<PrincipalId, Owed>>,
}

#[derive(Clone, Copy)]
struct Owed {
    hits: u64,
    since: Duration,
}

impl Hits {
    /// Nobody owes anything; `most` is the bound.
    pub fn new(most: u64) -> Self {
        Self { most, owed: Mutex::default() }
    }

    /// A session ended and left so many.
    pub fn add(&self, principal: PrincipalId, hits: u64, now: Duration) {
        if hits == 0 {
            return;
        }
        let mut owed = self.owed.lock();
        let before = owed.get(&principal).map_or(0, |owed| self.left_of(*owed, now));
        owed.insert(principal, Owed { hits: before.saturating_add(hits), since: now });
    }

    /// Whether a principal whose live sessions were told `live` may be told more.
    pub fn may_learn(&self, principal: &PrincipalId, live: u64, now: Duration) -> bool {
        let mut all = self.owed.lock();
        let owed = all.get(principal).map_or(0, |owed| self.left_of(*owed, now));
        if owed == 0 {
            all.remove(principal);
        }
        owed.saturating_add(live) < self.most
    }

    fn left_of(&self, owed: Owed, now: Duration) -> u64 {
        let passed = now.saturating_sub(owed.since).as_millis();
        let forgotten = u128::from(self.most).saturating_mul(passed) / DAY.as_millis();
        owed.hits.saturating_sub(u64::try_from(forgotten).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_adds_up_and_is_forgotten_over_a_day() {
        let hits = Hits::new(100);
        let (thief, other) = (PrincipalId([1; 16]), PrincipalId([2; 16]));
        let at = Duration::from_secs;
        assert!(hits.may_learn(&thief, 99, at(0)) && !hits.may_learn(&thief, 100, at(0)));
        hits.add(thief, 60, at(0));
        hits.add(thief, 60, at(0));
        assert!(!hits.may_learn(&thief, 0, at(0)) && hits.may_learn(&other, 99, at(0)));
        // A quarter of the day forgets 25 of 120.
        let quarter = DAY / 4;
        assert!(hits.may_learn(&thief, 4, quarter) && !hits.may_learn(&thief, 5, quarter));
        hits.add(thief, 5, quarter);
        assert!(!hits.may_learn(&thief, 0, quarter));
        assert!(hits.may_learn(&thief, 99, quarter + DAY));
        assert!(hits.owed.lock().is_empty());
    }
}
