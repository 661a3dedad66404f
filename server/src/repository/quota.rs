//! Quotas: what a namespace may hold, so that a stolen client key cannot fill the store with locked
//! snapshots unseen.
//!
//! A row counts what was stored for the namespace and not yet collected, envelopes and records, and
//! its snapshots. It is changed by decisions only: a commit adds its record and what its session
//! stored, a session that ends without a commit adds what it leaves behind, a forget takes snapshot
//! and record off, collection the envelopes. What live sessions have stored so far is added when a
//! quota is asked. A restart loses the count of what sessions had stored without a commit; the next
//! collection cycle counts anew (`gc/usage.rs`). Uploads that run at the same time are checked one
//! by one, so a quota of bytes may be passed by what is under way.

use strongroom_protocol::error::ErrorCode;

use crate::error::ServerError;
use crate::registry::Namespace;
use crate::repository::Repository;
use crate::rows::UsageRow;
use crate::session::Session;
use crate::writer::{Decision, read_usage};

impl Repository {
    /// What a namespace takes of its quota, live sessions included.
    pub fn usage(&self, namespace: &Namespace) -> Result<UsageRow, ServerError> {
        let mut usage = read_usage(&self.store, namespace.number)?;
        let under_way = self.sessions.stored_in(&namespace.row.namespace);
        usage.bytes = usage.bytes.saturating_add(under_way);
        Ok(usage)
    }

    /// Refuses `incoming` more bytes than the namespace's quota allows.
    pub(super) fn check_byte_quota(
        &self,
        namespace: &Namespace,
        incoming: u64,
    ) -> Result<(), ServerError> {
        let most = namespace.row.policy.quota.bytes;
        if most == 0 || self.usage(namespace)?.bytes.saturating_add(incoming) <= most {
            return Ok(());
        }
        Err(exceeded(&format!("{most} bytes")))
    }

    /// Counts what a session stored that ends without a commit.
    pub(super) fn settle_session(&self, session: &Session) -> Result<(), ServerError> {
        let stored = session.stored_bytes();
        let namespace = self.registry.namespace(&session.terms.namespace);
        let Some(namespace) = namespace.filter(|_| stored > 0) else { return Ok(()) };
        self.writer.decide(move |decision| {
            decision.change_usage(namespace.number, |usage| {
                usage.bytes = usage.bytes.saturating_add(stored);
            })
        })
    }
}

/// Counts a commit, or refuses it where the namespace has as many snapshots as it may.
pub(super) fn count_commit(
    decision: &mut Decision<'_>,
    namespace: &Namespace,
    stored_bytes: u64,
) -> Result<(), ServerError> {
    let most = namespace.row.policy.quota.snapshots;
    if most != 0 && read_usage(decision.store, namespace.number)?.snapshots >= most {
        return Err(exceeded(&format!("{most} snapshots")));
    }
    decision.change_usage(namespace.number, |usage| {
        usage.bytes = usage.bytes.saturating_add(stored_bytes);
        usage.snapshots = usage.snapshots.saturating_add(1);
    })
}

fn exceeded(most: &str) -> ServerError {
    let message = format!(
        "the namespace may hold {most}, and holds as much; the security officer sets the quota \
         with: strongroom policy set"
    );
    ServerError::peer(ErrorCode::QuotaExceeded, message)
}
