//! What must happen now and then, whoever asks.

use crate::repository::Repository;
use crate::session::Session;

impl Repository {
    /// What must happen now and then: ends silent sessions, writes the retention clock, refreshes
    /// gauges, replaces the TLS key when it is due.
    pub fn tick(&self) {
        for session in self.sessions.reap(self.clock.monotonic()) {
            self.settle_hits(&session, 0);
            if let Err(error) = self.settle_session(&session) {
                tracing::warn!(%error, "what an ended session left was not counted");
            }
        }
        self.show_usage();
        if let Err(error) = self.mark_damage().and_then(|_| self.settle_damage()) {
            tracing::warn!(%error, "damage was not written down");
        }
        if let Err(error) = self.keep_clock() {
            tracing::warn!(%error, "the retention clock was not written");
        }
        if let Err(error) = self.roll_tls_key_if_due() {
            tracing::error!(%error, "ALARM: the TLS key was not replaced");
        }
        self.metrics.sessions.set(i64::try_from(self.sessions.count()).unwrap_or(i64::MAX));
        if let Ok(free) = self.store.free_bytes() {
            self.metrics.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        }
    }

    fn show_usage(&self) {
        for namespace in self.registry.namespaces() {
            let Ok(usage) = self.usage(&namespace) else { continue };
            let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            let name = [namespace.row.name.as_str()];
            self.metrics.namespace_bytes.with_label_values(&name).set(gauge(usage.bytes));
            let snapshots = self.metrics.namespace_snapshots.with_label_values(&name);
            snapshots.set(gauge(usage.snapshots));
        }
    }

    /// Counts the answers "have" that a session leaves which is over: all but as many as the tree
    /// has chunks that it committed.
    pub(super) fn settle_hits(&self, session: &Session, committed_chunks: u64) {
        let left = session.hit_count().saturating_sub(committed_chunks);
        self.metrics.hits_uncommitted.inc_by(left);
        self.guards.hits.add(session.terms.principal, left, self.clock.monotonic());
    }
}
