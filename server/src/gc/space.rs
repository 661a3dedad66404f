//! Space comes back by whole segments: those that nothing occupies are dropped, those that are less
//! than half alive are copied first.
//!
//! **Drop**, for each segment, and what a crash leaves:
//!
//! 1. It is seen, from its own table, that the index finds nothing there. That stays so: no row is
//!    ever pointed to an older segment.
//! 2. One decision, synced: the intent in the ledger, and *dropping* in the catalogue, with the
//!    list of records that are to be copied again. *Crash: the next start goes on with 3.*
//! 3. The file goes, through the engine, and it is seen to be gone. A reader that has it open keeps
//!    it; then the next cycle looks again. *Crash: the same.*
//! 4. One decision: the outcome in the ledger, and the catalogue row goes.
//!
//! **Evacuate**: live envelopes are copied to a new segment by the sealer, hashed again on the way
//! (`store/evacuate.rs`); then their index rows are switched, behind the gate: sessions that have
//! pinned an old place have its digest pinned before the row changes. *Crash: some rows are
//! switched, all bytes are in both places.* The old segment is then dropped as above.

use std::collections::{BTreeMap, HashMap};

use strongroom_protocol::entry::Event;
use strongroom_protocol::id::{NamespaceId, PrincipalId};

use super::sweep::Occupancy;
use super::{Collector, CycleReport};
use crate::error::ServerError;
use crate::pace::Pace;
use crate::store::error::StoreError;
use crate::store::schema::{SegmentRow, SegmentState};

/// Rows that are switched while the gate is closed.
const MOVE_COUNT: usize = 2048;
/// A segment is not copied while more than this part of its file is in quarantine: that will go.
const QUARANTINED_PART: u64 = 8;

impl Collector {
    /// Finishes the drops that were begun and not finished.
    pub(super) fn finish_drops(&self) -> Result<(), ServerError> {
        for (segment, row) in self.store.catalogue()? {
            if row.state == SegmentState::Dropping {
                self.finish_drop(segment, &row, &mut CycleReport::default())?;
            }
        }
        Ok(())
    }

    /// Gives back what the candidates hold in vain.
    pub(super) fn reclaim(
        &self,
        candidates: &BTreeMap<u32, SegmentRow>,
        occupancy: &HashMap<u32, Occupancy>,
        report: &mut CycleReport,
        pace: &mut Pace,
    ) -> Result<(), ServerError> {
        let of = |segment: &u32| occupancy.get(segment).copied().unwrap_or_default();
        for (segment, row) in candidates.iter().filter(|(segment, _)| of(segment).count == 0) {
            report.promised_bytes += row.file_bytes;
            self.drop_segment(*segment, report)?;
            pace.breathe()?;
        }
        let mut group = Vec::new();
        let mut group_bytes = 0;
        for (segment, row) in candidates.iter().filter(|(segment, _)| of(segment).count > 0) {
            let Occupancy { bytes, quarantined_bytes, damaged_count, .. } = of(segment);
            let may_be_sparse = bytes.saturating_mul(2) < row.file_bytes;
            // What is damaged is not copied, and its place may still be read again.
            if !may_be_sparse
                || damaged_count > 0
                || quarantined_bytes > row.file_bytes / QUARANTINED_PART
            {
                continue;
            }
            // The file of a small segment is mostly not envelopes: its table knows.
            let Some(table) = self.readable(*segment, self.store.segment_table(*segment))? else {
                continue;
            };
            let held_bytes: u64 = table.iter().map(|envelope| u64::from(envelope.length)).sum();
            if bytes.saturating_mul(2) >= held_bytes {
                continue;
            }
            report.promised_bytes += held_bytes.saturating_sub(bytes);
            group.push(*segment);
            group_bytes += bytes;
            if group_bytes >= self.evacuation_bytes {
                self.evacuate(std::mem::take(&mut group), report, pace)?;
                group_bytes = 0;
            }
        }
        if group.is_empty() { Ok(()) } else { self.evacuate(group, report, pace) }
    }

    fn evacuate(
        &self,
        segments: Vec<u32>,
        report: &mut CycleReport,
        pace: &mut Pace,
    ) -> Result<(), ServerError> {
        let Some(moves) = self.readable(segments[0], self.store.evacuate(segments.clone()))? else {
            return Ok(());
        };
        for moves in moves.chunks(MOVE_COUNT) {
            let gate = self.sessions.hold_pins();
            let places: Vec<_> = moves.iter().map(|made| (made.from, made.digest)).collect();
            self.sessions.follow_all(&places);
            self.store.move_rows(moves)?;
            drop(gate);
            pace.breathe()?;
        }
        report.moved_count += moves.len() as u64;
        let to = moves.first().map(|made| made.to.segment);
        let copied = self.store.catalogue()?.into_iter().find(|(number, _)| Some(*number) == to);
        if let Some((_, row)) = copied {
            report.evacuated_bytes += row.file_bytes;
            self.metrics.gc.evacuated_bytes.inc_by(row.file_bytes);
        }
        for segment in segments {
            self.drop_segment(segment, report)?;
            pace.breathe()?;
        }
        Ok(())
    }

    fn drop_segment(&self, segment: u32, report: &mut CycleReport) -> Result<(), ServerError> {
        let occupants = self.readable(segment, self.store.occupants(segment))?;
        if occupants.is_none_or(|occupants| !occupants.is_empty()) {
            // Something came back since the survey; the next cycle sees it.
            return Ok(());
        }
        let dropping = self.readable(segment, self.store.dropping(segment))?.flatten();
        let Some((row, rows)) = dropping else {
            tracing::info!(segment, "the segment stays: it may hold the last copy of something");
            return Ok(());
        };
        let event = Event::SegmentDropIntended { segment, table: row.table_digest };
        self.writer.decide(move |decision| {
            if decision.moment().is_suspect {
                return Err(ServerError::Operator("the retention clock is under suspicion".into()));
            }
            decision.batch.append(rows);
            decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
            Ok(())
        })?;
        self.finish_drop(segment, &row, report)
    }

    /// What was read of a segment; nothing where it is damaged: it stays as it is, and scrub says
    /// so.
    fn readable<T>(
        &self,
        segment: u32,
        outcome: Result<T, StoreError>,
    ) -> Result<Option<T>, ServerError> {
        match outcome {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.is_damage() => {
                tracing::warn!(segment, %error, "a damaged segment stays as it is");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn finish_drop(
        &self,
        segment: u32,
        row: &SegmentRow,
        report: &mut CycleReport,
    ) -> Result<(), ServerError> {
        if !self.store.drop_file(segment)? {
            tracing::info!(segment, "a reader has the dropped segment open; it goes later");
            return Ok(());
        }
        let file_bytes = row.file_bytes;
        self.writer.decide(move |decision| {
            decision.store.strike(segment, &mut decision.batch)?;
            let event = Event::SegmentDropped { segment, file_bytes };
            decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
            Ok(())
        })?;
        report.dropped_segments += 1;
        report.dropped_bytes += file_bytes;
        self.metrics.gc.dropped_bytes.inc_by(file_bytes);
        Ok(())
    }
}
