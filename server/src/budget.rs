//! Room that requests share: one budget for the whole server, and a share of it for each principal,
//! so that none keeps the others out. Strangers are one principal here.
//!
//! There are two: memory for bodies, in bytes, and requests in flight. Room is taken **before**
//! anything is read: for a body, as much as one read may bring, given back as it leaves memory.
//! Whoever finds no room waits, and reads nothing meanwhile, so that TCP holds the sender.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;
use strongroom_protocol::id::PrincipalId;
use tokio::sync::Notify;

/// A read of a connection brings at most so much.
pub const PIECE_BYTES: usize = 128 * 1024;

/// The budget.
pub struct Budget {
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
    budget: Arc<Budget>,
    /// Nobody, for strangers.
    holder: Option<PrincipalId>,
    room: u64,
}

impl Budget {
    /// Room for `most`, of which a holder has `share`; `gauge` shows what is taken.
    pub fn new(most: u64, share: u64, gauge: IntGauge) -> Self {
        Self { most, share, state: Mutex::default(), freed: Notify::new(), gauge }
    }

    /// No room yet, for a request of `holder`.
    pub fn holder(self: &Arc<Self>, holder: Option<PrincipalId>) -> Held {
        Held { budget: self.clone(), holder, room: 0 }
    }

    /// How much is taken.
    pub fn held(&self) -> u64 {
        self.state.lock().held
    }

    fn take(&self, holder: Option<PrincipalId>, more: u64) -> bool {
        let mut state = self.state.lock();
        let own = state.by_holder.get(&holder).copied().unwrap_or(0).saturating_add(more);
        let all = state.held.saturating_add(more);
        if all > self.most || own > self.share {
            return false;
        }
        state.held = all;
        state.by_holder.insert(holder, own);
        self.show(all);
        true
    }

    fn give_back(&self, holder: Option<PrincipalId>, less: u64) {
        if less == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.held = state.held.saturating_sub(less);
        if let Some(own) = state.by_holder.get_mut(&holder) {
            *own = own.saturating_sub(less);
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
    pub fn try_grow_to(&mut self, room: u64) -> bool {
        let more = room.saturating_sub(self.room);
        if more > 0 && !self.budget.take(self.holder, more) {
            return false;
        }
        self.room = self.room.max(room);
        true
    }

    /// The same, and waits as long as there is not.
    pub async fn grow_to(&mut self, room: u64) {
        loop {
            let budget = self.budget.clone();
            let mut freed = std::pin::pin!(budget.freed.notified());
            // From here on nothing that is given back is missed.
            freed.as_mut().enable();
            if self.try_grow_to(room) {
                return;
            }
            freed.await;
        }
    }

    /// A part of the room, for whoever has what is in it from now on.
    pub fn split_off(&mut self, room: u64) -> Self {
        let room = room.min(self.room);
        self.room = self.room.saturating_sub(room);
        Self { budget: self.budget.clone(), holder: self.holder, room }
    }

    /// Makes the room so large at most.
    pub fn shrink_to(&mut self, room: u64) {
        self.budget.give_back(self.holder, self.room.saturating_sub(room));
        self.room = self.room.min(room);
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

    fn budget(most: u64, share: u64) -> Arc<Budget> {
        Arc::new(Budget::new(most, share, IntGauge::new("held", "held").unwrap()))
    }

    #[test]
    fn nobody_gets_more_than_a_share_and_all_together_no_more_than_there_is() {
        let budget = budget(64 * MIB, 16 * MIB);
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
        let budget = budget(2 * MIB, MIB);
        let (mut one, mut other) = (budget.holder(None), budget.holder(None));
        one.grow_to(MIB).await;
        let waiting = tokio::spawn(async move {
            other.grow_to(1).await;
            other
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        one.shrink_to(3);
        let other = waiting.await.unwrap();
        assert_eq!((one.room, other.room, budget.held()), (3, 1, 4));
    }
}
