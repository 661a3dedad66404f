//! Memory for bodies of requests: one budget for the whole server, and a share for each principal.
//!
//! Room is taken **before** bytes are read, for as much as one read may bring, and given back as
//! they leave memory. Whoever finds no room waits, and reads nothing meanwhile, so that TCP holds
//! the sender. A principal gets a quarter of the budget at most, so none keeps the others out;
//! strangers are one principal here.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;
use strongroom_protocol::id::PrincipalId;
use strongroom_protocol::limits::{BODY_BYTES_MIN, BODY_SHARE};
use tokio::sync::Notify;

/// A read of a connection brings at most so much.
pub const PIECE_BYTES: usize = 128 * 1024;

/// The budget.
pub struct BodyBudget {
    most: u64,
    share: u64,
    state: Mutex<State>,
    freed: Notify,
    gauge: IntGauge,
}

#[derive(Default)]
struct State {
    held: u64,
    by_holder: HashMap<Option<PrincipalId>, u64>,
}

/// Room that one request has; dropping it gives it back.
pub struct Held {
    budget: Arc<BodyBudget>,
    /// Nobody, for strangers.
    holder: Option<PrincipalId>,
    bytes: u64,
}

impl BodyBudget {
    /// So many bytes; `gauge` shows what is taken.
    pub fn new(most: u64, gauge: IntGauge) -> Self {
        // A share holds one envelope at least, or an upload could never go on.
        let share = (most / BODY_SHARE).max(BODY_BYTES_MIN / 2);
        Self { most, share, state: Mutex::default(), freed: Notify::new(), gauge }
    }

    /// No room yet, for a request of `holder`.
    pub fn holder(self: &Arc<Self>, holder: Option<PrincipalId>) -> Held {
        Held { budget: self.clone(), holder, bytes: 0 }
    }

    /// Bytes that are taken.
    pub fn held(&self) -> u64 {
        self.state.lock().held
    }

    fn take(&self, holder: Option<PrincipalId>, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let own = state.by_holder.get(&holder).copied().unwrap_or(0).saturating_add(bytes);
        let all = state.held.saturating_add(bytes);
        if all > self.most || own > self.share {
            return false;
        }
        state.held = all;
        state.by_holder.insert(holder, own);
        self.show(all);
        true
    }

    fn give_back(&self, holder: Option<PrincipalId>, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.held = state.held.saturating_sub(bytes);
        if let Some(own) = state.by_holder.get_mut(&holder) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                state.by_holder.remove(&holder);
            }
        }
        self.show(state.held);
        drop(state);
        self.freed.notify_waiters();
    }

    fn show(&self, held: u64) {
        self.gauge.set(i64::try_from(held).unwrap_or(i64::MAX));
    }
}

impl Held {
    /// Makes the room so large at least, if there is as much.
    pub fn try_grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && !self.budget.take(self.holder, more) {
            return false;
        }
        self.bytes = self.bytes.max(bytes);
        true
    }

    /// The same, and waits as long as there is not.
    pub async fn grow_to(&mut self, bytes: u64) {
        loop {
            let budget = self.budget.clone();
            let mut freed = std::pin::pin!(budget.freed.notified());
            // From here on nothing that is given back is missed.
            freed.as_mut().enable();
            if self.try_grow_to(bytes) {
                return;
            }
            freed.await;
        }
    }

    /// A part of the room, for whoever has the bytes from now on.
    pub fn split_off(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        Self { budget: self.budget.clone(), holder: self.holder, bytes }
    }

    /// Makes the room so large at most.
    pub fn shrink_to(&mut self, bytes: u64) {
        self.budget.give_back(self.holder, self.bytes.saturating_sub(bytes));
        self.bytes = self.bytes.min(bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(most: u64) -> Arc<BodyBudget> {
        Arc::new(BodyBudget::new(most, IntGauge::new("held", "held").unwrap()))
    }

    #[test]
    fn nobody_gets_more_than_a_share_and_all_together_no_more_than_there_is() {
        let budget = budget(64 * MIB);
        let mut held: Vec<Held> =
            (0..5).map(|number| budget.holder(Some(PrincipalId([number; 16])))).collect();
        assert!(!held[0].try_grow_to(16 * MIB + 1));
        assert!(held[0].try_grow_to(16 * MIB));
        let mut second = budget.holder(Some(PrincipalId([0; 16])));
        assert!(!second.try_grow_to(1), "a second request of the same principal");
        assert!(held[1..4].iter_mut().all(|held| held.try_grow_to(16 * MIB)));
        assert!(!held[4].try_grow_to(1));
        assert_eq!((budget.held(), budget.gauge.get()), (64 * MIB, 64 << 20));
        let part = held[0].split_off(MIB);
        assert!(!held[4].try_grow_to(1), "what is split off is still taken");
        drop(part);
        assert!(held[4].try_grow_to(MIB) && !second.try_grow_to(1));
        drop(held);
        assert!(second.try_grow_to(1));
        drop(second);
        assert_eq!(budget.held(), 0);
        assert!(budget.state.lock().by_holder.is_empty());
    }

    #[tokio::test]
    async fn who_finds_no_room_gets_it_when_there_is() {
        let budget = budget(BODY_BYTES_MIN);
        let (mut one, mut other) = (budget.holder(None), budget.holder(None));
        one.grow_to(BODY_BYTES_MIN / 2).await;
        let waiting = tokio::spawn(async move {
            other.grow_to(1).await;
            other
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        one.shrink_to(3);
        let other = waiting.await.unwrap();
        assert_eq!((one.bytes, other.bytes, budget.held()), (3, 1, 4));
    }
}
