//! What bounds the harm that peers can do, as far as it is state in memory: room for requests and
//! their bodies, what principals were told and did not commit, and how often a refusal is entered
//! in the ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom_protocol::id::{PrincipalId, RecordDigest};
use strongroom_protocol::limits::{
    BODY_BYTES_MIN, BODY_SHARE, REFUSED_ENTRIES_MAX, REFUSED_ENTRY_SECONDS, REQUEST_SHARE,
};

use crate::budget::Budget;
use crate::config::LimitConfig;
use crate::hits::Hits;
use crate::metrics::Metrics;
use crate::refusals::{Reason, Refusals};

/// All guards.
pub struct Guards {
    /// Room for requests in flight, from when it is known whose they are.
    pub requests: Arc<Budget>,
    /// Room for bodies of requests, in bytes.
    pub bodies: Arc<Budget>,
    /// Answers "have" that were not committed.
    pub hits: Hits,
    /// Refusals that are entered in the ledger.
    pub entries: Arc<Entries>,
}

/// Which refusals were entered in the ledger within the last minute.
pub struct Entries {
    entered: Mutex<HashMap<Refused, Duration>>,
    refusals: Refusals,
}

/// What of one principal was refused: a kind of wish, and the snapshot that it was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Refused {
    /// Whose wish.
    pub principal: PrincipalId,
    /// Which; a word of the code, never of the peer.
    pub wish: &'static str,
    /// None where it was not about one.
    pub record: Option<RecordDigest>,
}

impl Guards {
    /// As the configuration has them.
    pub fn new(limits: &LimitConfig, metrics: &Metrics) -> Self {
        let requests = u64::from(limits.requests);
        let request_share = (requests / REQUEST_SHARE).max(1);
        let body_bytes = limits.body_bytes.0;
        // A share holds one envelope at least, or an upload could never go on.
        let body_share = (body_bytes / BODY_SHARE).max(BODY_BYTES_MIN / 2);
        let in_flight = metrics.requests_in_flight.clone();
        Self {
            requests: Arc::new(Budget::new(requests, request_share, in_flight)),
            bodies: Arc::new(Budget::new(body_bytes, body_share, metrics.body_bytes.clone())),
            hits: Hits::new(limits.hits_uncommitted),
            entries: Arc::new(Entries {
                entered: Mutex::default(),
                refusals: metrics.refusals.clone(),
            }),
        }
    }
}

impl Entries {
    /// Whether a refusal is entered: each one once a minute, and at most so many a minute of one
    /// principal, so that whoever repeats itself, or tries everything, does not fill the ledger.
    /// What is not entered is counted.
    pub fn is_due(&self, refused: Refused, now: Duration) -> bool {
        let minute = Duration::from_secs(REFUSED_ENTRY_SECONDS);
        let mut entered = self.entered.lock();
        entered.retain(|_, at| now.saturating_sub(*at) < minute);
        let of_principal = entered.keys().filter(|other| other.principal == refused.principal);
        let is_due = of_principal.count() < REFUSED_ENTRIES_MAX && !entered.contains_key(&refused);
        if is_due {
            entered.insert(refused, now);
        } else {
            self.refusals.count(Reason::NotEntered);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts};

    use super::*;

    #[test]
    fn each_refusal_is_entered_once_a_minute_and_not_too_many_of_one_principal() {
        let counts = IntCounterVec::new(Opts::new("refusals", "refusals"), &["reason"]).unwrap();
        let entries = Entries { entered: Mutex::default(), refusals: Refusals::new(counts) };
        let of = |principal: u8, wish, record: u8| Refused {
            principal: PrincipalId([principal; 16]),
            wish,
            record: Some(RecordDigest([record; 32])),
        };
        let is_due = |refused, seconds| entries.is_due(refused, Duration::from_secs(seconds));
        assert!(is_due(of(1, "forget", 1), 1000) && !is_due(of(1, "forget", 1), 1059));
        let others = [of(1, "shorten", 1), of(1, "forget", 2), of(2, "forget", 1)];
        assert!(others.into_iter().all(|refused| is_due(refused, 1059)));
        assert!(is_due(of(1, "forget", 1), 1060) && !is_due(of(1, "forget", 1), 1119));
        // All snapshots, one after the other.
        let entered = (0..=255).filter(|record| is_due(of(3, "forget", *record), 2000)).count();
        assert_eq!(entered, REFUSED_ENTRIES_MAX);
        assert!(is_due(of(4, "forget", 0), 2000) && is_due(of(3, "forget", 255), 2060));
        assert_eq!(entries.entered.lock().len(), 1, "what is older than a minute is not kept");
        assert_eq!(entries.refusals.get(Reason::NotEntered), 2 + 256 - entered as u64);
    }
}
