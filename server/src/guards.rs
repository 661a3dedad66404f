//! What bounds the harm that peers can do, as far as it is state in memory: room for bodies, what
//! principals were told and did not commit, and how often a refusal is entered in the ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom_protocol::id::PrincipalId;
use strongroom_protocol::limits::REFUSED_ENTRY_SECONDS;

use crate::body_budget::BodyBudget;
use crate::config::LimitConfig;
use crate::hits::Hits;
use crate::metrics::Metrics;

/// All guards.
pub struct Guards {
    /// Room for bodies of requests.
    pub bodies: Arc<BodyBudget>,
    /// Answers "have" that were not committed.
    pub hits: Hits,
    /// Refusals that are entered in the ledger.
    pub entries: Entries,
}

/// Which refusals were entered lately.
#[derive(Default)]
pub struct Entries {
    last: Mutex<HashMap<(PrincipalId, &'static str), Duration>>,
}

impl Guards {
    /// As the configuration has them.
    pub fn new(limits: &LimitConfig, metrics: &Metrics) -> Self {
        Self {
            bodies: Arc::new(BodyBudget::new(limits.body_bytes.0, metrics.body_bytes.clone())),
            hits: Hits::new(limits.hits_uncommitted),
            entries: Entries::default(),
        }
    }
}

impl Entries {
    /// Whether a refusal of this kind is entered: one a minute for each principal and kind, so that
    /// whoever repeats itself does not fill the ledger.
    pub fn is_due(&self, principal: PrincipalId, kind: &'static str, now: Duration) -> bool {
        let mut last = self.last.lock();
        let before = last.get(&(principal, kind)).copied();
        let pause = Duration::from_secs(REFUSED_ENTRY_SECONDS);
        let is_due = before.is_none_or(|before| now.saturating_sub(before) >= pause);
        if is_due {
            last.insert((principal, kind), now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_entry_a_minute_for_each_principal_and_kind() {
        let entries = Entries::default();
        let (one, other) = (PrincipalId([1; 16]), PrincipalId([2; 16]));
        let at = |seconds: u64| Duration::from_secs(1000 + seconds);
        assert!(entries.is_due(one, "a", at(0)) && !entries.is_due(one, "a", at(59)));
        assert!(entries.is_due(one, "b", at(59)) && entries.is_due(other, "a", at(59)));
        assert!(entries.is_due(one, "a", at(60)) && !entries.is_due(one, "a", at(119)));
    }
}
