//! Appending to the open segments, and handing them to the sealer.
//!
//! There is one open segment for each lifetime, under one lock: who holds it may append, roll over
//! or create the next one. Lock order: open segments, then unsealed rows; index order, then
//! unsealed rows. The sealer never waits for the open segments, so an appender may wait for the
//! sealer (back-pressure: at most [`SEALING_MAX`] segments are on their way) while it holds that
//! lock.
//!
//! A seal is a group commit. Who wants one notes which segments are open and hold something, and
//! waits until none of them is open any more, and the sealer is done with all that was handed over
//! until then. While the sealer works, nobody rolls over; when it falls idle, the first waiter
//! hands the open segments over with everything that all of them appended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::limits::ENVELOPE_MAX_BYTES;
use strongroom_protocol::record::Totals;

use super::collect::Move;
use super::error::StoreError;
use super::index::Index;
use super::observer::{Observer, Step};
use super::poison::Poison;
use super::schema::{IndexRow, Lifetime, SlotId};
use super::segments::{SegmentWriter, Segments};
use super::table::TableRow;
use super::unsealed::{Appended, Reservation, Room, Unsealed, Wanted};

/// Segments that may be on their way through the sealer while the next one fills.
pub(super) const SEALING_MAX: u64 = 2;
/// Segments that may be open: one a lifetime.
pub(super) const OPEN_MAX: u64 = 3;

/// An envelope to be stored. Its digest must have been verified by the caller.
#[derive(Debug, Clone)]
pub struct NewEnvelope {
    /// Its content address.
    pub digest: SealedDigest,
    /// Level in its tree; 0 is a chunk.
    pub level: u8,
    /// Totals of its subtree.
    pub totals: Totals,
    /// The envelope itself.
    pub bytes: Bytes,
}

impl NewEnvelope {
    /// What a table says of it.
    pub(super) fn row(&self, ns: u32) -> Result<TableRow, StoreError> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if length > ENVELOPE_MAX_BYTES || length == 0 {
            return Err(StoreError::Invalid("envelope is empty or too long"));
        }
        let NewEnvelope { digest, level, totals, .. } = *self;
        Ok(TableRow { ns, level, length, digest, totals })
    }
}

/// Work for the sealer.
pub(super) enum Job {
    /// Make a full or wanted segment durable and list it.
    Seal(Box<SegmentWriter>),
    /// Move the inbox to segments; answer if somebody waits.
    Fold(Option<Sender<Result<(), StoreError>>>),
    /// Copy what lives in these segments to a new one.
    Evacuate(Vec<u32>, Sender<Result<Vec<Move>, StoreError>>),
    /// End.
    Stop,
}

/// Size at which the open segment is handed over.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentLimits {
    pub(super) bytes: u64,
    pub(super) slots: u32,
}

/// The open segment of each lifetime.
#[derive(Default)]
struct OpenSegments([Option<Box<SegmentWriter>>; Lifetime::ALL.len()]);

impl OpenSegments {
    fn of(&mut self, lifetime: Lifetime) -> &mut Option<Box<SegmentWriter>> {
        let [short, medium, long] = &mut self.0;
        match lifetime {
            Lifetime::Short => short,
            Lifetime::Medium => medium,
            Lifetime::Long => long,
        }
    }

    /// Numbers of those that hold something.
    fn numbers(&self) -> Vec<u32> {
        let open = self.0.iter().flatten().filter(|segment| segment.next_slot() > 0);
        open.map(|segment| segment.number()).collect()
    }
}

/// The open segments and the way to the sealer.
pub(super) struct Appender {
    open: Mutex<OpenSegments>,
    appended: AtomicU64,
    limits: SegmentLimits,
    segments: Arc<Segments>,
    index: Arc<Index>,
    unsealed: Arc<Unsealed>,
    poison: Arc<Poison>,
    observer: Arc<dyn Observer>,
    jobs: Sender<Job>,
}

/// Envelopes to append, with what is known of them.
struct Batch {
    envelopes: Vec<NewEnvelope>,
    wanted: Vec<Wanted>,
    /// Generation before the look at the index that `wanted` rests on.
    seen: u64,
}

impl Appender {
    pub(super) fn new(
        limits: SegmentLimits,
        segments: Arc<Segments>,
        index: Arc<Index>,
        unsealed: Arc<Unsealed>,
        (poison, observer): (Arc<Poison>, Arc<dyn Observer>),
        jobs: Sender<Job>,
    ) -> Self {
        let open = Mutex::new(OpenSegments::default());
        let appended = AtomicU64::new(0);
        Appender { open, appended, limits, segments, index, unsealed, poison, observer, jobs }
    }

    /// Appends those of `envelopes` that are stored nowhere yet; answers in their order.
    pub(super) fn append(
        &self,
        ns: u32,
        lifetime: Lifetime,
        envelopes: Vec<NewEnvelope>,
    ) -> Result<Vec<Appended>, StoreError> {
        self.poison.check()?;
        let wanted = envelopes
            .iter()
            .map(|envelope| Ok(Wanted { row: envelope.row(ns)?, indexed: None }))
            .collect::<Result<_, StoreError>>()?;
        let mut batch = Batch { envelopes, wanted, seen: 0 };
        self.look_up(&mut batch, 0)?;
        let mut done = Vec::with_capacity(batch.wanted.len());
        let mut open = self.open.lock();
        self.poison.check()?;
        while done.len() < batch.wanted.len() {
            self.append_some(&mut open, lifetime, &mut batch, &mut done)?;
        }
        drop(open);
        self.appended.fetch_add(1, Ordering::Relaxed);
        self.observer.step(Step::Appended);
        Ok(done)
    }

    /// Waits until everything that was appended before this call is in the index.
    pub(super) fn seal(&self) -> Result<(), StoreError> {
        self.poison.check()?;
        let wanted = self.open.lock().numbers();
        loop {
            let (target, is_open) = {
                let open = self.open.lock().numbers();
                let is_open = open.iter().any(|number| wanted.contains(number));
                (self.unsealed.handed_over() + u64::from(is_open), is_open)
            };
            let is_done = self.unsealed.wait_until_done(target, &self.poison)?;
            if is_done && !is_open {
                return self.poison.check();
            }
            if !is_done {
                self.hand_over_all(&mut self.open.lock())?;
            }
        }
    }

    /// Hands the open segments over if nothing was appended since `mark` was taken; gives a new
    /// mark. Never waits, because the sealer calls it.
    pub(super) fn seal_if_idle(&self, mark: u64) -> Result<u64, StoreError> {
        let now = self.appended.load(Ordering::Relaxed);
        if now == mark
            && let Some(mut open) = self.open.try_lock()
        {
            self.hand_over_all(&mut open)?;
        }
        Ok(now)
    }

    /// Appends the next of `batch` to the open segment, as many as fit.
    fn append_some(
        &self,
        open: &mut OpenSegments,
        lifetime: Lifetime,
        batch: &mut Batch,
        done: &mut Vec<Appended>,
    ) -> Result<(), StoreError> {
        let start = done.len();
        let open = open.of(lifetime);
        let segment = match open {
            Some(segment) => segment,
            None => open.insert(Box::new(self.segments.create(lifetime.class())?)),
        };
        let room = Room {
            first: SlotId { segment: segment.number(), slot: segment.next_slot() },
            slots: self.limits.slots.saturating_sub(segment.next_slot()),
            bytes: self.limits.bytes.saturating_sub(segment.bytes()),
        };
        let wanted = &batch.wanted[start..];
        match self.unsealed.reserve(batch.seen, wanted, room, &self.poison)? {
            Reservation::Stale => return self.look_up(batch, start),
            Reservation::Made(made) => done.extend(made),
        }
        for (position, appended) in done.iter().enumerate().skip(start) {
            if !appended.duplicate {
                let envelope = &batch.envelopes[position];
                self.poison.guard(segment.append(batch.wanted[position].row, &envelope.bytes))?;
            }
        }
        let full = segment.bytes() >= self.limits.bytes || segment.next_slot() >= self.limits.slots;
        if full {
            self.unsealed.wait_for_sealer(SEALING_MAX, &self.poison)?;
            self.hand_over(open)?;
        }
        Ok(())
    }

    /// Looks up in the index what was not found there before, from position `start` on.
    fn look_up(&self, batch: &mut Batch, start: usize) -> Result<(), StoreError> {
        batch.seen = self.unsealed.generation();
        let Some(first) = batch.wanted.first() else { return Ok(()) };
        let ns = first.row.ns;
        let digests: Vec<_> =
            batch.wanted[start..].iter().map(|wanted| wanted.row.digest).collect();
        let found = self.index.lookup(ns, &digests)?;
        for (wanted, row) in batch.wanted[start..].iter_mut().zip(found) {
            // A quarantined row is overwritten: what comes again is stored again.
            wanted.indexed = row.filter(IndexRow::is_usable).map(|row| row.slot);
        }
        Ok(())
    }

    fn hand_over_all(&self, open: &mut OpenSegments) -> Result<(), StoreError> {
        open.0.iter_mut().try_for_each(|open| self.hand_over(open))
    }

    /// Gives the open segment, if there is one, to the sealer. An open segment is empty only after
    /// a batch of duplicates; it then stays open.
    fn hand_over(&self, open: &mut Option<Box<SegmentWriter>>) -> Result<(), StoreError> {
        self.poison.check()?;
        if open.as_ref().is_none_or(|segment| segment.next_slot() == 0) {
            return Ok(());
        }
        if let Some(segment) = open.take() {
            self.unsealed.hand_over();
            let sent = self.jobs.send(Job::Seal(segment));
            sent.map_err(|_| StoreError::Invalid("store is closing"))?;
        }
        Ok(())
    }
}
