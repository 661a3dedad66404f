//! Garbage collection: what no record, no lock and no session needs goes, after a while.
//!
//! Deletion needs proof, so two barriers stand before it that know nothing of each other, and time
//! between them. A cycle:
//!
//! 1. `raise.rs` raises the locks that have no date and would end soon.
//! 2. Candidates are the segments in the catalogue now. What is sealed later is not looked at.
//! 3. `marks.rs` marks what records need (**M**) and guards what is locked (**G**).
//! 4. `sweep.rs` reads all index rows. What is in M or G, or pinned by a live session (**P**),
//!    lives; the rest is dead: it is quarantined, or reaped, if an earlier cycle has quarantined it
//!    [`GcConfig::quarantine`] ago and nobody has offered it since.
//! 5. `space.rs` drops segments that nothing occupies, and copies what lives in sparse ones.
//!
//! **Any error ends the cycle before step 4 deletes anything**: a row that does not decode, a node
//! that cannot be read, has not its digest or names a child that is not there, a record whose root
//! is locked for less than the record is. So does a contradiction: something needed that is
//! quarantined is taken out of quarantine, and the cycle ends. While the retention clock is under
//! suspicion only step 1 is done.
//!
//! Why nothing live is swept, operation against operation:
//!
//! * **Commit.** The writer thread notes each snapshot and each lock row that it writes while a
//!   cycle watches (`noted.rs`). Before each batch of the sweep, and again in the batch's decision,
//!   the cycle marks and guards what was noted. So a commit is either decided before the batch, and
//!   noted, or after it; then its session is live and its pins were read.
//! * **Have, upload.** Who finds an envelope and pins it holds a gate (`session.rs`) from the look
//!   to the pin. The batch holds it from reading the pins until the rows are written. So whoever
//!   was told "have" has pinned before the batch reads the pins, or was told "lack" after it.
//! * **A node on a locked child.** A session builds on a child because it is locked; nothing pins
//!   what is below. If that lock ends before the commit, a sweep may take it. So a commit proves
//!   that what its locks do not vouch for is still there (`lock.rs`), in the decision that locks
//!   it. A lock counts for G a day longer than it says, so none ends between scan and sweep.
//! * **Forget.** A record that is forgotten after it was marked costs a cycle. One that is
//!   forgotten before it was read leaves its tree unmarked: what somebody was told of it is pinned,
//!   what is locked is guarded, what was committed upon it is noted.
//! * **Upload of what is quarantined.** The bytes are stored anew and the index row is overwritten,
//!   under the lock that orders writers of the index. Quarantine and reap change a row only if it
//!   is as the survey saw it, under the same lock. So a revival is never undone.
//! * **A lock in slices** (`lock.rs`) proves what it locks in each slice, and is noted like a
//!   commit.
//! * **Seal, fold.** Neither moves what is in a candidate segment. **Evacuation** runs after the
//!   sweep, in this thread, so the bitmaps never name places that have moved.
//! * **Damage.** A node that cannot be read ends the cycle like any error: nothing is swept until
//!   it is whole again. A chunk that is known to be damaged lives and dies like others: its row is
//!   marked, and guards its place. A segment that holds damaged rows is not evacuated, and one that
//!   may hold the last good copy of something is not dropped.
//! * **Scrub** and repair change rows on the writer thread, and store anew what they have whole: an
//!   upload of what is quarantined, as above.
//! * **Read.** Whoever finds an empty place looks again. Quarantined bytes can be read.
//! * **Drop against drop, cycle against cycle.** One cycle runs at a time ([`Noted::watch`]).
//!
//! What a crash leaves stands with the steps in `sweep.rs` and `space.rs`. Memory: three bitmaps,
//! two of places to be swept, one entry a segment, and the nodes that wait to be read (at most a
//! few ten thousand).

mod marks;
mod raise;
mod space;
mod sweep;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use strongroom_protocol::retention::Moment;

use self::marks::{Marks, alarm};
use crate::clock::Clock;
use crate::config::{Config, GcConfig};
use crate::error::ServerError;
use crate::lock::Day;
use crate::metrics::Metrics;
use crate::noted::{Noted, Watch};
use crate::pace::Pace;
use crate::rows::CollectionRow;
use crate::session::Sessions;
use crate::store::Store;
use crate::store::schema::{Family, Quarantine, SegmentState};
use crate::writer::Writer;

/// Runs cycles. It has no state of its own: any number of them are one.
#[derive(Clone)]
pub struct Collector {
    store: Store,
    writer: Arc<Writer>,
    sessions: Arc<Sessions>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    settings: GcConfig,
    /// Live bytes that are copied into one segment.
    evacuation_bytes: u64,
}

/// How a cycle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It went through.
    Complete,
    /// The retention clock is under suspicion: nothing was swept.
    Frozen,
    /// It was stopped.
    #[default]
    Stopped,
}

/// What was reaped in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reaped {
    /// Envelopes.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a cycle found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CycleReport {
    /// Number of the cycle.
    pub generation: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Snapshots whose locks were raised.
    pub raised_count: u64,
    /// Envelopes that records need.
    pub marked_count: u64,
    /// Envelopes that locks guard.
    pub guarded_count: u64,
    /// Envelopes that were quarantined.
    pub quarantined_count: u64,
    /// What was reaped, by the number of the namespace.
    #[serde(deserialize_with = "by_number")]
    pub reaped: BTreeMap<u32, Reaped>,
    /// Envelopes that were copied out of sparse segments.
    pub moved_count: u64,
    /// Bytes of the segments that took them.
    pub evacuated_bytes: u64,
    /// Segments that were dropped.
    pub dropped_segments: u64,
    /// Bytes of their files.
    pub dropped_bytes: u64,
    /// Bytes that were to come back: of empty segments, and what is dead in sparse ones.
    pub promised_bytes: u64,
}

/// JSON has texts for keys, and inside a tagged answer serde does not take them for numbers.
fn by_number<'de, D: Deserializer<'de>>(reader: D) -> Result<BTreeMap<u32, Reaped>, D::Error> {
    let rows = BTreeMap::<String, Reaped>::deserialize(reader)?;
    let number = |text: &str| text.parse().map_err(serde::de::Error::custom);
    rows.into_iter().map(|(key, row)| Ok((number(&key)?, row))).collect()
}

impl Collector {
    /// A collector over the parts of an open repository.
    pub fn new(
        store: Store,
        writer: Arc<Writer>,
        sessions: Arc<Sessions>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        config: &Config,
    ) -> Self {
        let settings = config.gc.clone();
        let evacuation_bytes = config.store.segment.0;
        Self { store, writer, sessions, clock, metrics, settings, evacuation_bytes }
    }

    /// Runs a cycle. An error is an alarm: nothing was swept after it.
    pub fn run(&self) -> Result<CycleReport, ServerError> {
        let watch = self
            .noted()
            .watch()
            .ok_or_else(|| ServerError::Operator("a collection cycle runs already".into()))?;
        let _alone = self.noted().dropping();
        let mut report = CycleReport::default();
        let outcome = match self.cycle(&Arc::new(watch), &mut report) {
            Err(ServerError::Closing) => Ok(Outcome::Stopped),
            other => other,
        };
        let name = match &outcome {
            Ok(Outcome::Complete) => "complete",
            Ok(Outcome::Frozen) => "frozen",
            Ok(Outcome::Stopped) => "stopped",
            Err(error) if error.is_damage() => "damaged",
            Err(_) => "aborted",
        };
        self.metrics.gc.cycles.with_label_values(&[name]).inc();
        report.outcome = outcome?;
        tracing::info!(?report, "collection cycle ended");
        Ok(report)
    }

    /// Whether the next cycle is due. The first is due one interval after the first question.
    pub fn is_due(&self) -> Result<bool, ServerError> {
        let (now, status) = (self.moment()?, self.status()?);
        if status == CollectionRow::default() {
            let began_seconds = now.retention_seconds;
            let row = CollectionRow { began_seconds, ..status };
            self.writer.decide(move |decision| {
                decision.batch.put(Family::Ledger, CollectionRow::KEY, row.encode());
                Ok(())
            })?;
            return Ok(false);
        }
        let since = now.retention_seconds.saturating_sub(status.began_seconds);
        Ok(since >= self.settings.interval.0.as_secs())
    }

    /// Finishes the drops that an earlier process began. A cycle that is asked for meanwhile waits.
    pub fn finish_begun(&self) -> Result<(), ServerError> {
        let _alone = self.noted().dropping();
        self.finish_drops()
    }

    /// How collection stands.
    pub fn status(&self) -> Result<CollectionRow, ServerError> {
        status_in(&self.store)
    }

    fn cycle(&self, watch: &Arc<Watch>, report: &mut CycleReport) -> Result<Outcome, ServerError> {
        let mut pace = Pace::new(self.clock.clone(), self.noted().clone(), self.settings.pace);
        pace.breathe()?;
        self.finish_drops()?;
        let now = self.moment()?;
        let mark = self.begin(now)?;
        report.generation = mark.generation;
        report.raised_count = self.raise_locks(now, &mut pace)?;
        if now.is_suspect {
            return Ok(Outcome::Frozen);
        }
        let counted = self.counted()?;
        self.store.seal()?;
        let catalogue = self.store.catalogue()?.into_iter();
        let candidates = catalogue.filter(|(_, row)| row.state == SegmentState::Live).collect();
        let mut marks = Marks::default();
        marks.mark_records(&self.store, now, &mut || pace.breathe())?;
        marks.guard_locks(&self.store, now, &mut || pace.breathe())?;
        let changes = watch.take();
        if changes.is_cut {
            return Err(alarm("too much was decided meanwhile"));
        }
        marks.catch_up(&self.store, now, &changes, &mut || pace.breathe())?;
        self.refuse_contradictions(&mut marks)?;
        report.marked_count = marks.marked.len();
        report.guarded_count = marks.guarded.len();
        // Rounded down: what is quarantined must be old enough to the second.
        let today = Day::of(now.retention_seconds);
        let mut survey = self.survey(&marks, &candidates, (mark, today), &mut pace)?;
        self.recount(counted, std::mem::take(&mut survey.held))?;
        self.sweep((marks, watch), &mut survey, mark, report, &mut pace)?;
        self.reclaim(&candidates, &survey.occupancy, report, &mut pace)?;
        self.complete(mark)?;
        Ok(Outcome::Complete)
    }

    /// Gives the cycle its number, durably, before anything else.
    fn begin(&self, now: Moment) -> Result<Quarantine, ServerError> {
        let generation = self.writer.decide(move |decision| {
            let mut row = status_in(decision.store)?;
            row.generation += 1;
            row.began_seconds = now.retention_seconds;
            decision.batch.put(Family::Ledger, CollectionRow::KEY, row.encode());
            Ok(row.generation)
        })?;
        // Rounded up: what is quarantined late in a day is not a day old at midnight.
        Ok(Quarantine { day: Day::at_or_after(now.retention_seconds).number(), generation })
    }

    fn complete(&self, mark: Quarantine) -> Result<(), ServerError> {
        self.writer.decide(move |decision| {
            let mut row = status_in(decision.store)?;
            row.completed = mark.generation;
            row.completed_seconds = decision.retention_seconds;
            decision.batch.put(Family::Ledger, CollectionRow::KEY, row.encode());
            Ok(())
        })?;
        let seconds = i64::try_from(self.moment()?.wall_seconds).unwrap_or(i64::MAX);
        self.metrics.gc.last_completed.set(seconds);
        Ok(())
    }

    /// The clocks, as the writer thread knows them: suspicion has one source.
    fn moment(&self) -> Result<Moment, ServerError> {
        self.writer.decide(|decision| Ok(decision.moment()))
    }

    fn noted(&self) -> &Arc<Noted> {
        self.writer.noted()
    }
}

fn status_in(store: &Store) -> Result<CollectionRow, ServerError> {
    let value = store.get(Family::Ledger, CollectionRow::KEY)?;
    Ok(value.map(|value| CollectionRow::decode(&value)).transpose()?.unwrap_or_default())
}
