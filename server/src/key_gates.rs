//! Which keys this server shows each server where it is enrolled, while they may become others.
//!
//! Whoever sends there holds the gate open from choosing a connection until the answer begins.
//! Whoever puts other keys in the place of those has it alone: so no request with the older keys is
//! on its way when the other side stops knowing them, which would be an alarm there. Answers that
//! have begun go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The gates of all servers where this one is enrolled, by the folders of their keys.
#[derive(Default)]
pub struct KeyGates {
    gates: Mutex<BTreeMap<String, Arc<KeyGate>>>,
}

/// The gate of one server.
#[derive(Default)]
pub struct KeyGate {
    shown: RwLock<Shown>,
    trouble: Mutex<String>,
}

/// Which keys are shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// Counts how often they became others since the start.
    pub turn: u64,
    /// It is known which keys the other side knows. Nothing is shown before, because the older ones
    /// may have been rolled over already.
    pub is_settled: bool,
}

impl KeyGates {
    /// The gate of the server whose keys are in this folder.
    pub fn gate(&self, folder: &str) -> Arc<KeyGate> {
        self.gates.lock().entry(folder.to_owned()).or_default().clone()
    }
}

impl KeyGate {
    /// Which keys are shown; they stay as long as the guard is held.
    pub async fn pass(&self) -> RwLockReadGuard<'_, Shown> {
        self.shown.read().await
    }

    /// The same, where it is known which keys to show; says that it is not.
    pub async fn pass_settled(&self) -> Result<RwLockReadGuard<'_, Shown>, &'static str> {
        let shown = self.pass().await;
        match shown.is_settled {
            true => Ok(shown),
            false => Err("it is not known yet which keys of this server it knows"),
        }
    }

    /// Waits until nobody passes, and lets nobody pass meanwhile.
    pub async fn alone(&self) -> RwLockWriteGuard<'_, Shown> {
        self.shown.write().await
    }

    /// Why the keys are not as young as they should be, in plain words; empty, if they are.
    pub fn trouble(&self) -> String {
        self.trouble.lock().clone()
    }

    /// Says why.
    pub fn set_trouble(&self, trouble: String) {
        *self.trouble.lock() = trouble;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_while_somebody_is_alone() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let gates = KeyGates::default();
            let (gate, other) = (gates.gate("primaries/a"), gates.gate("feeds/a"));
            let passing = gate.pass().await;
            assert!(gate.shown.try_write().is_err() && other.shown.try_write().is_ok());
            drop(passing);
            let mut alone = gate.alone().await;
            assert!(gate.shown.try_read().is_err());
            (alone.turn, alone.is_settled) = (1, true);
            drop(alone);
            let again = gates.gate("primaries/a");
            let shown = *again.pass().await;
            assert_eq!((shown.turn, shown.is_settled), (1, true));
        });
    }
}
