//! How following each primary goes: state in memory, for `replica status` and metrics. What must
//! survive a restart is in the rows (`replica_rows.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use strongroom_protocol::id::{Label, PrincipalId, PublicKey};

use crate::feeds::Feeds;
use crate::key_gates::KeyGates;
use crate::lent::LentConnections;
use crate::stop::{self, Stop, Stopper};

/// How it stands with a primary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowState {
    /// No server runs on the folder, or it has not asked the primary yet.
    #[default]
    Waiting,
    /// Everything that the primary's ledger showed last is here.
    InSync,
    /// There is more to fetch.
    CatchingUp,
    /// Something of the primary could not be taken over; it is tried again.
    Failing,
    /// The primary cannot be reached.
    Unreachable,
    /// It is not followed, only asked for what is damaged here.
    RepairOnly,
    /// The primary does not know this server any more.
    Revoked,
    /// Paused by command.
    Paused,
    /// The primary's history is not the one that was seen.
    Refused,
}

/// What is known in memory of one primary.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// How it stands.
    pub state: FollowState,
    /// When this server began to follow it, by the machine's clock.
    pub began: Duration,
    /// When it had everything last, by the machine's clock; nothing since the start.
    pub in_sync_at: Option<Duration>,
    /// When the primary answered last, milliseconds since 1970; 0 since the start.
    pub contact_ms: u64,
    /// Entries of the primary's newest checkpoint.
    pub known_entries: u64,
    /// Bytes of envelopes that came from it since the start.
    pub received_bytes: u64,
    /// Damaged envelopes that it gave whole since the start.
    pub repaired_count: u64,
    /// What went wrong last, in plain words; empty, if nothing did since all went well.
    pub trouble: String,
}

/// A primary, for `replica list` and `replica status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrimaryStatus {
    /// Its name here.
    pub name: Label,
    /// Where it is asked.
    pub addresses: String,
    /// Its ledger key.
    pub ledger_key: PublicKey,
    /// What this server is enrolled as there.
    pub principal: PrincipalId,
    /// Namespaces that are followed, by their names there; all, where it is empty.
    pub only: Vec<Label>,
    /// Namespaces that were dropped here and are passed over, by the names that they had.
    pub passed: Vec<Label>,
    /// How it stands.
    pub state: FollowState,
    /// Entries of its ledger that are taken over.
    pub followed_entries: u64,
    /// Entries of its newest checkpoint.
    pub known_entries: u64,
    /// Snapshots whose trees are not here yet.
    pub pending_snapshots: u64,
    /// Bytes of their trees, what is here already included.
    pub pending_bytes: u64,
    /// How long ago this server had everything; nothing, if not since it was started.
    pub lag_seconds: Option<u64>,
    /// When the primary answered last, milliseconds since 1970; 0 if not since the start.
    pub contact_ms: u64,
    /// Bytes of envelopes that came from it since the start.
    pub received_bytes: u64,
    /// It is not followed, only asked for what is damaged here.
    pub is_repair_only: bool,
    /// Damaged envelopes that it gave whole since the start.
    pub repaired_count: u64,
    /// What went wrong last, in plain words.
    pub trouble: String,
    /// When the keys were made with which this server is enrolled there, milliseconds since 1970.
    #[serde(default)]
    pub keys_ms: Option<u64>,
    /// What is wrong with the age of these keys, in plain words.
    #[serde(default)]
    pub keys_trouble: String,
}

/// Progress of all primaries, what is lent here and from here, and what imports and exports under
/// way need to know of each other.
pub struct Followers {
    progress: Mutex<BTreeMap<Label, Progress>>,
    importing: Mutex<BTreeSet<PublicKey>>,
    lent: LentConnections,
    feeds: Feeds,
    key_gates: KeyGates,
    stopper: Stopper,
    stop: Stop,
}

/// An import under way; dropping it ends it.
pub struct Importing<'a> {
    followers: &'a Followers,
    ledger_key: PublicKey,
}

impl Default for Followers {
    fn default() -> Self {
        let (stopper, stop) = stop::signal();
        Self {
            progress: Mutex::default(),
            importing: Mutex::default(),
            lent: LentConnections::default(),
            feeds: Feeds::default(),
            key_gates: KeyGates::default(),
            stopper,
            stop,
        }
    }
}

impl Followers {
    /// Begins to take in an export of a server; nothing, if one is being taken in.
    pub fn begin_import(&self, ledger_key: PublicKey) -> Option<Importing<'_>> {
        let is_first = self.importing.lock().insert(ledger_key);
        is_first.then_some(Importing { followers: self, ledger_key })
    }

    /// Ends imports and exports that are under way, and gives up what is lent.
    pub fn stop(&self) {
        self.stopper.stop();
        self.lent.close_all();
    }

    /// The signal that ends them.
    pub fn stopping(&self) -> Stop {
        self.stop.clone()
    }

    /// Connections that primaries lend.
    pub fn lent(&self) -> &LentConnections {
        &self.lent
    }

    /// How lending to other servers goes.
    pub fn feeds(&self) -> &Feeds {
        &self.feeds
    }

    /// Which keys are shown where this server is enrolled.
    pub fn key_gates(&self) -> &KeyGates {
        &self.key_gates
    }

    /// What is known of a primary.
    pub fn progress(&self, name: &Label) -> Progress {
        self.progress.lock().get(name).cloned().unwrap_or_default()
    }

    /// Changes what is known.
    pub fn note(&self, name: &Label, change: impl FnOnce(&mut Progress)) {
        change(self.progress.lock().entry(name.clone()).or_default());
    }

    /// Forgets a primary.
    pub fn forget(&self, name: &Label) {
        self.progress.lock().remove(name);
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        self.followers.importing.lock().remove(&self.ledger_key);
    }
}
