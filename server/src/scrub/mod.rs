//! Scrub: everything stored is hashed again, and rows are compared with what they are about.
//!
//! The engine's checksums are not enough: they see a bit that flips on the disk, not one that
//! flipped in memory before a block was written, not a row that names the wrong place, and nothing
//! that nobody reads. A pass:
//!
//! 1. `segments.rs`: of each segment the table (its digest stands in the catalogue), each envelope
//!    against the digest in the table, and the index row of each against both. A damaged row whose
//!    bytes are found whole, here or in a second copy, is put right at once.
//! 2. `rows.rs`: the inbox, each envelope; index rows that name a place where they are not found;
//!    what is locked is there, with its children; each record against `seen` and the ledger.
//!
//! What is wrong and can be named by a digest becomes *damaged* (`repository/damage.rs`): durable,
//! on record, answered "lack", and repaired by the next who sends it or by another server. The rest
//! (a record, a segment's table) is counted as a *problem*: no repair mends it, so it is counted in
//! each pass, and told in the log by the first that finds it.
//!
//! **What happens beside it.** Scrub reads without any lock of the store, and decides nothing by
//! itself: a row is marked by a decision, only if it is still as it was seen, under the lock that
//! orders writers of the index. So:
//!
//! * *upload, fold, evacuation, repair*: the row names another place by then, and is left alone;
//! * *sweep*: the same; what is quarantined is hashed like everything else, and what was reaped is
//!   no row any more;
//! * *drop*: a segment is read from the catalogue's row; if it is not live when the reading is
//!   done, nothing that was seen of it counts;
//! * *commit, lock*: scrub lowers and lifts nothing. A lock in force vouches for what is below it,
//!   at every moment: so what it finds missing is missing;
//! * *another scrub*: one pass runs at a time.
//!
//! It sleeps for a part of the time like collection (`pace.rs`), and ends when the server does. The
//! place that it reached is written after each segment; a pass goes on there after a restart.
//! Memory: one segment's table (15 MB at most), 4 MB of envelopes, 16 bytes a segment.

mod rows;
mod segments;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{NamespaceId, PrincipalId};

use crate::damage::{Counts, ScrubRow, Told};
use crate::error::ServerError;
use crate::pace::Pace;
use crate::repository::Repository;
use crate::store::schema::SegmentState;

use self::segments::Occupants;

/// Bytes of envelopes that are read at once.
const READ_BYTES: u64 = 4 << 20;

/// What a pass found, for people and programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Number of the newest pass.
    pub pass: u64,
    /// It is through.
    pub is_complete: bool,
    /// When the last whole pass was through, seconds of the retention clock; 0 for never.
    pub completed_seconds: u64,
    /// Envelopes that were hashed in the pass.
    pub envelope_count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What it found damaged and was not known.
    pub damaged_count: u64,
    /// What it found and no repair mends.
    pub problem_count: u64,
    /// Envelopes that are damaged now.
    pub known_count: u64,
    /// Envelopes that were ever found damaged.
    pub damaged_total: u64,
    /// Of them, those that became whole again.
    pub repaired_total: u64,
}

/// One pass under way.
struct Scrub<'a> {
    repository: &'a Repository,
    pace: Pace,
    counts: Counts,
    occupants: Occupants,
    /// Problems that were told, and those of them that this pass found too.
    told: Told,
    found: Told,
}

/// Runs a pass, or the rest of one that was interrupted. What it finds is an outcome, no error.
pub fn run(repository: &Repository) -> Result<ScrubReport, ServerError> {
    let Some(_alone) = repository.damage().begin_scrub() else {
        return Err(ServerError::Operator("a scrub runs already".into()));
    };
    let outcome = pass(repository);
    let name = match &outcome {
        Ok(()) => "complete",
        Err(ServerError::Closing) => "stopped",
        Err(_) => "aborted",
    };
    repository.metrics().damage.scrubs.with_label_values(&[name]).inc();
    match outcome {
        Ok(()) | Err(ServerError::Closing) => {}
        Err(error) => return Err(error),
    }
    let report = status(repository)?;
    tracing::info!(?report, "scrub ended");
    Ok(report)
}

/// Whether the next pass is due. The first is due one interval after the first question.
pub fn is_due(repository: &Repository) -> Result<bool, ServerError> {
    let (row, now) = (repository.scrub_row()?, repository.moment().retention_seconds);
    if row.next_segment > 0 {
        return Ok(true); // one was interrupted
    }
    if row.began_seconds == 0 {
        repository.change_scrub_row(move |row, _| row.began_seconds = now)?;
        return Ok(false);
    }
    let since = now.saturating_sub(row.began_seconds.max(row.completed_seconds));
    Ok(since >= repository.config().scrub.interval.0.as_secs())
}

/// How scrub stands.
pub fn status(repository: &Repository) -> Result<ScrubReport, ServerError> {
    let row = repository.scrub_row()?;
    let is_complete = row.pass > 0 && row.next_segment == 0;
    let counts = if is_complete { row.last } else { row.current };
    Ok(ScrubReport {
        pass: row.pass,
        is_complete,
        completed_seconds: row.completed_seconds,
        envelope_count: counts.envelopes,
        bytes: counts.bytes,
        damaged_count: counts.damaged,
        problem_count: counts.problems,
        known_count: repository.damage().count(),
        damaged_total: row.damaged_total,
        repaired_total: row.repaired_total,
    })
}

fn pass(repository: &Repository) -> Result<(), ServerError> {
    let noted = repository.writer().noted().clone();
    let pace = Pace::new(repository.clock().clone(), noted, repository.config().scrub.pace);
    let row = begin(repository)?;
    let (occupants, told) = (Occupants::default(), repository.told_problems()?);
    // What a pass found before it was interrupted is not known any more, and stays told.
    let found = if row.next_segment > 1 { told.clone() } else { Told::default() };
    let mut scrub = Scrub { repository, pace, counts: row.current, occupants, told, found };
    scrub.pace.breathe()?;
    // What others met since they looked last belongs to them, not to this pass.
    repository.mark_damage()?;
    for (segment, catalogued) in repository.store().catalogue()? {
        if segment < row.next_segment || catalogued.state != SegmentState::Live {
            continue;
        }
        scrub.segment(segment, &catalogued)?;
        let (counts, next) = (scrub.counts, segment.saturating_add(1));
        repository.change_scrub_row(move |row, _| {
            (row.current, row.next_segment) = (counts, next);
        })?;
    }
    scrub.inbox()?;
    scrub.index()?;
    scrub.locks()?;
    scrub.records()?;
    repository.settle_damage()?;
    if scrub.found != scrub.told {
        repository.tell_problems(scrub.found)?;
    }
    complete(repository, scrub.counts)
}

/// Gives the pass its number, or goes on with the one that was interrupted.
fn begin(repository: &Repository) -> Result<ScrubRow, ServerError> {
    let before = repository.scrub_row()?;
    if before.next_segment == 0 {
        let now = repository.moment().retention_seconds;
        repository.change_scrub_row(move |row, _| {
            row.pass = row.pass.saturating_add(1);
            (row.began_seconds, row.next_segment) = (now, 1);
            row.current = Counts::default();
        })?;
    }
    repository.scrub_row()
}

fn complete(repository: &Repository, counts: Counts) -> Result<(), ServerError> {
    let metrics = &repository.metrics().damage;
    repository.change_scrub_row(move |row, decision| {
        (row.last, row.current) = (counts, Counts::default());
        (row.completed_seconds, row.next_segment) = (decision.retention_seconds, 0);
        let Counts { envelopes: envelope_count, bytes, damaged: damaged_count, .. } = counts;
        let event = Event::Scrubbed { pass: row.pass, envelope_count, bytes, damaged_count };
        decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
    })?;
    metrics.problems.set(i64::try_from(counts.problems).unwrap_or(i64::MAX));
    let seconds = i64::try_from(repository.moment().wall_seconds).unwrap_or(i64::MAX);
    metrics.last_completed.set(seconds);
    Ok(())
}

impl Scrub<'_> {
    /// Makes durable what was noted, and counts it.
    fn mark(&mut self) -> Result<(), ServerError> {
        self.counts.damaged += self.repository.mark_damage()?;
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.counts.envelopes += 1;
        self.counts.bytes += bytes;
        self.repository.metrics().damage.scrubbed_bytes.inc_by(bytes);
    }

    /// Something is wrong with `thing` that no digest names.
    fn problem(&mut self, thing: &str, message: &str) -> Result<(), ServerError> {
        self.counts.problems += 1;
        self.found.add(thing);
        if self.told.add(thing) {
            tracing::error!("ALARM: scrub: {thing}: {message}");
            self.repository.metrics().damage.told_problems.inc();
            self.repository.tell_problems(self.told.clone())?;
        }
        Ok(())
    }
}

/// A scrub of a shared repository, as a job.
pub fn run_if_due(repository: &Arc<Repository>) -> Result<(), ServerError> {
    if is_due(repository)? { run(repository).map(drop) } else { Ok(()) }
}
