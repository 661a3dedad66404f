//! What namespaces hold, counted anew in each cycle.
//!
//! The running count (`repository/quota.rs`) goes wrong by what a restart forgets: bytes that
//! sessions had stored without a commit. So each cycle counts: the envelopes that the survey meets
//! in segments that were sealed before it began, the records, and what was counted as stored since
//! then. What is stored between the first look and the seal is counted twice, until the next cycle:
//! a quota may be reached a little early, never be passed for longer than from cycle to cycle.

use std::collections::BTreeMap;

use strongroom_protocol::id::NamespaceId;

use super::Collector;
use crate::error::ServerError;
use crate::registry::all_rows;
use crate::rows::NamespaceRow;
use crate::store::schema::Family;
use crate::writer::read_usage;

/// Bytes by the number of a namespace.
pub(super) type Held = BTreeMap<u32, u64>;

/// What each namespace was counted to hold, live sessions included.
pub(super) struct Counted(Vec<(u32, NamespaceId, u64)>);

impl Collector {
    /// The running counts, to be taken before what is stored is sealed and counted.
    pub(super) fn counted(&self) -> Result<Counted, ServerError> {
        let mut counted = Vec::new();
        for (key, value) in all_rows(&self.store, Family::Namespaces)? {
            let number = key.try_into().map(u32::from_be_bytes);
            let number = number.map_err(|_| ServerError::Bug("namespace key".into()))?;
            let id = NamespaceRow::decode(&value)?.namespace;
            let live = self.sessions.stored_in(&id);
            let bytes = read_usage(&self.store, number)?.bytes.saturating_add(live);
            counted.push((number, id, bytes));
        }
        Ok(Counted(counted))
    }

    /// Sets the counts to what was found, and what came since `before`.
    pub(super) fn recount(&self, before: Counted, held: Held) -> Result<(), ServerError> {
        let sessions = self.sessions.clone();
        self.writer.decide(move |decision| {
            for (ns, id, before) in before.0 {
                let live = sessions.stored_in(&id);
                let found = held.get(&ns).copied().unwrap_or(0);
                decision.change_usage(ns, |usage| {
                    let since = usage.bytes.saturating_add(live).saturating_sub(before);
                    usage.bytes = found.saturating_add(since).saturating_sub(live);
                })?;
            }
            Ok(())
        })
    }
}
