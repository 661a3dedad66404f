//! From what nobody keeps to what is gone: survey, intent, quarantine and reap, outcome.
//!
//! 1. **Survey**: all index rows are read once; rows in candidate segments that are neither marked
//!    nor guarded nor pinned are dead. Dead rows that were quarantined long enough ago, by an
//!    earlier cycle, are to be reaped. Nothing is written.
//! 2. **Intent**: a ledger entry, synced. *Crash: an intent without an outcome; nothing has gone.*
//! 3. **Sweep**: the rows are read again, and batch by batch, each a decision on the writer thread,
//!    what is still dead there is quarantined or reaped. *Crash: some rows are quarantined, which
//!    costs nothing but room, and some are gone, as intended.*
//! 4. **Outcome**: a ledger entry.
//!
//! In a batch's decision, in this order: what decisions wrote since is marked and guarded; the gate
//! is closed to whoever wants to pin; the pins are read; the rows that are still dead are written,
//! each only if it is as the survey saw it; the gate opens. So between the look and the write no
//! commit, no lock, no pin and no upload can come.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use roaring::RoaringTreemap;
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{NamespaceId, PrincipalId};

use super::marks::{Marks, alarm, guards};
use super::usage::Held;
use super::{Collector, CycleReport, Reaped};
use crate::error::ServerError;
use crate::lock::{Day, locked_until};
use crate::noted::{Changes, Watch};
use crate::pace::Pace;
use crate::rows::lock_key;
use crate::session::Sessions;
use crate::store::collect::{Found, IndexPosition};
use crate::store::schema::{Family, Place, Quarantine, SegmentRow};
use crate::writer::Decision;

/// Index rows read at once.
const SCAN_COUNT: usize = 8192;
/// Rows that one decision quarantines or reaps; while it does, nobody pins.
const SWEEP_COUNT: usize = 2048;
/// Notes that the writer thread itself may catch up with.
const NOTES_AT_ONCE: usize = 8;
/// How often a batch is tried again because more was noted.
const TRIES_MAX: u32 = 1000;

/// What occupies a segment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Occupancy {
    /// Bytes of envelopes that the index finds there.
    pub(super) bytes: u64,
    /// Bytes of those that are quarantined.
    pub(super) quarantined_bytes: u64,
    /// Envelopes that are known to be damaged.
    pub(super) damaged_count: u64,
    /// Number of those that the index finds there.
    pub(super) count: u64,
}

/// What the survey found.
#[derive(Default)]
pub(super) struct Survey {
    /// By place: to be quarantined.
    dead: RoaringTreemap,
    /// By place: to be reaped.
    reapable: RoaringTreemap,
    reap_hasher: blake3::Hasher,
    /// Of candidate segments.
    pub(super) occupancy: HashMap<u32, Occupancy>,
    /// Bytes of records, and of envelopes in candidate segments and in the inbox.
    pub(super) held: Held,
}

/// What the decisions of a sweep share with the cycle.
struct Desk {
    marks: Mutex<Marks>,
    pending: Mutex<Changes>,
    watch: Arc<Watch>,
    sessions: Arc<Sessions>,
    mark: Quarantine,
}

/// What became of a batch.
enum Swept {
    Done {
        quarantined_count: u64,
        reaped: Vec<Found>,
    },
    /// Too much was noted since; the cycle catches up on its own thread first.
    Behind,
}

impl Collector {
    /// Reads all index rows once.
    pub(super) fn survey(
        &self,
        marks: &Marks,
        candidates: &BTreeMap<u32, SegmentRow>,
        (mark, today): (Quarantine, Day),
        pace: &mut Pace,
    ) -> Result<Survey, ServerError> {
        let mut survey = Survey { held: marks.record_bytes.clone(), ..Survey::default() };
        let quarantined_by = today.number().checked_sub(self.quarantine_days());
        let mut after: Option<IndexPosition> = None;
        loop {
            let found = self.store.scan_index(after, SCAN_COUNT)?;
            let Some(last) = found.last() else { return Ok(survey) };
            after = Some((last.ns, last.digest));
            for found in &found {
                survey.count(found, candidates);
            }
            let of_candidates: Vec<Found> = found
                .into_iter()
                .filter(|found| found.row.place == Place::Segment)
                .filter(|found| {
                    found.row.is_lost() || candidates.contains_key(&found.row.slot.segment)
                })
                .collect();
            let pinned = self.sessions.pinned_among(&of_candidates);
            for (found, is_pinned) in of_candidates.iter().zip(pinned) {
                survey.add(found, is_pinned, marks, (mark.generation, quarantined_by));
            }
            pace.breathe()?;
        }
    }

    /// Enters the intent, quarantines and reaps, enters the outcome.
    pub(super) fn sweep(
        &self,
        (marks, watch): (Marks, &Arc<Watch>),
        survey: &mut Survey,
        mark: Quarantine,
        report: &mut CycleReport,
        pace: &mut Pace,
    ) -> Result<(), ServerError> {
        if survey.dead.is_empty() && survey.reapable.is_empty() {
            return Ok(());
        }
        let intent = Event::CollectionIntended {
            generation: mark.generation,
            dead_count: survey.dead.len(),
            reap_count: survey.reapable.len(),
            reap_digest: *survey.reap_hasher.finalize().as_bytes(),
        };
        self.enter(intent)?;
        let desk = Arc::new(Desk {
            marks: Mutex::new(marks),
            pending: Mutex::default(),
            watch: watch.clone(),
            sessions: self.sessions.clone(),
            mark,
        });
        let swept = self.sweep_rows(&desk, survey, report, pace);
        // The outcome is entered also where the sweep ended early.
        self.enter(Event::Collected {
            generation: mark.generation,
            quarantined_count: report.quarantined_count,
            reaped_count: report.reaped.values().map(|reaped| reaped.count).sum(),
            reaped_bytes: report.reaped.values().map(|reaped| reaped.bytes).sum(),
        })?;
        swept
    }

    fn sweep_rows(
        &self,
        desk: &Arc<Desk>,
        survey: &mut Survey,
        report: &mut CycleReport,
        pace: &mut Pace,
    ) -> Result<(), ServerError> {
        let (mut after, mut batch): (Option<IndexPosition>, Vec<Found>) = (None, Vec::new());
        loop {
            let found = self.store.scan_index(after, SCAN_COUNT)?;
            after = found.last().map(|last| (last.ns, last.digest));
            let is_last = after.is_none();
            batch.extend(found.into_iter().filter(|found| survey.takes(found)));
            while batch.len() >= SWEEP_COUNT || (is_last && !batch.is_empty()) {
                let rest = batch.split_off(batch.len().min(SWEEP_COUNT));
                let rows = std::mem::replace(&mut batch, rest);
                self.sweep_batch(desk, rows, survey, report, pace)?;
            }
            pace.breathe()?;
            if is_last {
                return Ok(());
            }
        }
    }

    fn sweep_batch(
        &self,
        desk: &Arc<Desk>,
        rows: Vec<Found>,
        survey: &mut Survey,
        report: &mut CycleReport,
        pace: &mut Pace,
    ) -> Result<(), ServerError> {
        let rows = Arc::new(rows);
        for _ in 0..TRIES_MAX {
            let changes = desk.changes(&desk.watch)?;
            let now = self.moment()?;
            desk.marks.lock().catch_up(&self.store, now, &changes, &mut || pace.breathe())?;
            self.refuse_contradictions(&mut desk.marks.lock())?;
            let (desk, rows) = (desk.clone(), rows.clone());
            match self.writer.decide(move |decision| desk.decide(decision, &rows))? {
                Swept::Behind => {}
                Swept::Done { quarantined_count, reaped } => {
                    report.quarantined_count += quarantined_count;
                    self.metrics.gc.quarantined.inc_by(quarantined_count);
                    survey.subtract(&reaped);
                    report.add_reaped(&reaped);
                    let bytes: u64 = reaped.iter().map(|found| u64::from(found.row.length)).sum();
                    self.metrics.gc.reaped_bytes.inc_by(bytes);
                    return pace.breathe();
                }
            }
        }
        Err(alarm("commits came faster than the cycle could follow"))
    }

    /// Takes what is needed and quarantined all the same out of quarantine, and ends the cycle.
    pub(super) fn refuse_contradictions(&self, marks: &mut Marks) -> Result<(), ServerError> {
        let found = std::mem::take(&mut marks.contradictions);
        let Some(first) = found.first().copied() else { return Ok(()) };
        let count = found.len();
        self.writer.decide(move |decision| Ok(decision.store.release(&found)?))?;
        Err(alarm(format!(
            "{count} needed envelopes were quarantined, among them {}",
            first.digest
        )))
    }

    fn quarantine_days(&self) -> u32 {
        let days = self.settings.quarantine.0.as_secs().div_ceil(24 * 3600);
        u32::try_from(days).unwrap_or(u32::MAX)
    }

    /// Enters an event of the repository as a whole.
    pub(super) fn enter(&self, event: Event) -> Result<(), ServerError> {
        self.writer.decide(move |decision| {
            decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
            Ok(())
        })
    }
}

impl Survey {
    fn count(&mut self, found: &Found, candidates: &BTreeMap<u32, SegmentRow>) {
        let is_counted = match found.row.place {
            Place::Segment => candidates.contains_key(&found.row.slot.segment),
            Place::Inbox => true,
            Place::Unsealed => false,
        };
        if is_counted {
            let held = self.held.entry(found.ns).or_default();
            *held = held.saturating_add(u64::from(found.row.length));
        }
    }

    fn add(
        &mut self,
        found: &Found,
        is_pinned: bool,
        marks: &Marks,
        (generation, quarantined_by): (u64, Option<u32>),
    ) {
        let Found { row, digest, .. } = found;
        let occupancy = self.occupancy.entry(row.slot.segment).or_default();
        occupancy.count += 1;
        occupancy.bytes += u64::from(row.length);
        occupancy.damaged_count += u64::from(row.damaged);
        if row.quarantined.is_some() {
            occupancy.quarantined_bytes += u64::from(row.length);
        }
        if is_pinned || !marks.frees(row) {
            return;
        }
        match row.quarantined {
            None => {
                self.dead.insert(row.slot.number());
            }
            Some(since)
                if since.generation < generation
                    && quarantined_by.is_some_and(|day| since.day <= day) =>
            {
                self.reapable.insert(row.slot.number());
                self.reap_hasher.update(&digest.0);
            }
            Some(_) => {}
        }
    }

    /// Whether the sweep is to look at a row.
    fn takes(&self, found: &Found) -> bool {
        let (row, number) = (&found.row, found.row.slot.number());
        match row.quarantined {
            _ if row.place != Place::Segment => false,
            None => self.dead.contains(number),
            Some(_) => self.reapable.contains(number),
        }
    }

    fn subtract(&mut self, reaped: &[Found]) {
        for found in reaped {
            let Some(occupancy) = self.occupancy.get_mut(&found.row.slot.segment) else { continue };
            let bytes = u64::from(found.row.length);
            let damaged_count = u64::from(found.row.damaged);
            occupancy.count = occupancy.count.saturating_sub(1);
            occupancy.damaged_count = occupancy.damaged_count.saturating_sub(damaged_count);
            occupancy.bytes = occupancy.bytes.saturating_sub(bytes);
            occupancy.quarantined_bytes = occupancy.quarantined_bytes.saturating_sub(bytes);
        }
    }
}

impl Desk {
    /// What was noted and not caught up with.
    fn changes(&self, watch: &Watch) -> Result<Changes, ServerError> {
        let mut changes = std::mem::take(&mut *self.pending.lock());
        let more = watch.take();
        if more.is_cut {
            return Err(alarm("too much was decided meanwhile"));
        }
        changes.locks.extend(more.locks);
        changes.snapshots.extend(more.snapshots);
        Ok(changes)
    }

    /// Runs alone, on the writer thread.
    fn decide(&self, decision: &mut Decision<'_>, rows: &[Found]) -> Result<Swept, ServerError> {
        let (store, now) = (decision.store, decision.moment());
        if now.is_suspect {
            return Err(ServerError::Operator("the retention clock is under suspicion".into()));
        }
        let changes = self.changes(&self.watch)?;
        if changes.locks.len() + changes.snapshots.len() > NOTES_AT_ONCE {
            *self.pending.lock() = changes;
            return Ok(Swept::Behind);
        }
        let mut marks = self.marks.lock();
        marks.catch_up(store, now, &changes, &mut || Ok(()))?;
        if !marks.contradictions.is_empty() {
            return Ok(Swept::Behind); // the cycle ends on its own thread
        }
        let _gate = self.sessions.hold_pins();
        let pinned = self.sessions.pinned_among(rows);
        let is_dead = |(found, is_pinned): &(&Found, bool)| !is_pinned && marks.frees(&found.row);
        let dead = rows.iter().zip(pinned).filter(is_dead).map(|(found, _)| *found);
        let (fresh, old): (Vec<Found>, Vec<Found>) =
            dead.partition(|found| found.row.quarantined.is_none());
        let quarantined_count = store.quarantine(&fresh, self.mark)?;
        let reaped = reap(decision, &old)?;
        give_back(decision, &reaped)?;
        Ok(Swept::Done { quarantined_count, reaped })
    }
}

/// Removes index rows, and locks of nodes among them, which have ended.
fn reap(decision: &Decision<'_>, rows: &[Found]) -> Result<Vec<Found>, ServerError> {
    let (store, today) = (decision.store, Day::of(decision.retention_seconds));
    let mut free = Vec::with_capacity(rows.len());
    for found in rows {
        let day = match found.row.level {
            0 => None,
            _ => locked_until(store, found.ns, &found.digest)?,
        };
        if !day.is_some_and(|day| guards(day, today)) {
            free.push(*found);
        } else if store.lookup(found.ns, &[found.digest])? == [Some(found.row)] {
            return Err(alarm(format!("node {} is locked and was to be reaped", found.digest)));
        }
        // Else it was stored anew since it was looked at, and locked at its new place.
    }
    let reaped = store.reap(&free, &mut |found, batch| {
        if found.row.level > 0 {
            batch.delete(Family::Locks, lock_key(found.ns, &found.digest));
        }
    })?;
    Ok(reaped)
}

/// Takes what is gone off what its namespaces hold. The rows are gone already: a crash in between
/// leaves a namespace counted for more than it has, never for less.
fn give_back(decision: &mut Decision<'_>, reaped: &[Found]) -> Result<(), ServerError> {
    let mut sums: BTreeMap<u32, u64> = BTreeMap::new();
    for found in reaped {
        let sum = sums.entry(found.ns).or_default();
        *sum = sum.saturating_add(u64::from(found.row.length));
    }
    for (ns, bytes) in sums {
        decision.change_usage(ns, |usage| usage.bytes = usage.bytes.saturating_sub(bytes))?;
    }
    Ok(())
}

impl CycleReport {
    fn add_reaped(&mut self, reaped: &[Found]) {
        for found in reaped {
            let sum: &mut Reaped = self.reaped.entry(found.ns).or_default();
            sum.count += 1;
            sum.bytes += u64::from(found.row.length);
        }
    }
}
