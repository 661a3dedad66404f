//! The writer thread: the one place where decisions about data become rows and ledger entries.
//!
//! A decision is a closure that looks at the rows as they are, refuses or adds rows and entries to
//! a [`Decision`], and runs alone: no two decisions interleave, so what it looked at stays true.
//!
//! For each group of waiting decisions:
//!
//! 1. Each decision's rows and its ledger leaves go into **one** batch, written through the log.
//!    *Crash: the log's tail may be lost; it holds whole batches in order, so a decision is there
//!    with its entry, or neither is. Nobody was told yet.*
//! 2. One sync covers the group, and whatever was written before (index rows of sealed segments).
//!    *Crash: all decisions of the group are there; nobody was told yet; a client that asks again
//!    finds them (commits are idempotent).*
//! 3. The head is signed and published. *Crash: the same as after 2.*
//! 4. The callers are answered.
//! 5. At most once a second, and within a second when nothing more comes, the head goes to the
//!    file `HEAD`. *Crash: `HEAD` is older than the ledger, which the open check allows.*
//!
//! Each decision begins with a reading of the clocks, which advances the retention clock
//! (`retention_clock.rs`). The clock's row, and an entry for whatever it saw, are in the decision's
//! batch; if the decision is refused, they are written without it.
//!
//! Whatever ends this thread while the server runs, an error of any step or a panic, is told to
//! the observer as fatal, which ends the process: a server that cannot decide must not look alive.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, PrincipalId};
use strongroom_protocol::retention::Moment;

use crate::clock::Clock;
use crate::clock_state::{ClockState, Seen, TendError};
use crate::error::ServerError;
use crate::ledger::{Appender, Ledger, statement_key};
use crate::lock::Plan;
use crate::noted::Noted;
use crate::retention_clock::RetentionClock;
use crate::rows::UsageRow;
use crate::store::Store;
use crate::store::collect::Found;
use crate::store::damage::OrderGuard;
use crate::store::error::StoreError;
use crate::store::meta::MetaBatch;
use crate::store::observer::{Observer, Step};
use crate::store::schema::{Family, SlotId};
use crate::store::table::TableRow;

/// Decisions that may wait; more callers block.
const QUEUE_MAX: usize = 1024;
/// Most decisions under one sync.
const GROUP_MAX: usize = 256;
/// `HEAD` is written at most this often.
const HEAD_INTERVAL: Duration = Duration::from_secs(1);

/// What a decision adds to the repository.
pub struct Decision<'a> {
    /// The rows as they are.
    pub store: &'a Store,
    /// Rows to write.
    pub batch: MetaBatch,
    /// Wall clock, milliseconds since 1970.
    pub now_ms: u64,
    /// Retention clock, seconds since 1970.
    pub retention_seconds: u64,
    clock: ClockState,
    seen: Vec<Seen>,
    entries: Vec<Entry>,
    next_leaf: u64,
    order: Option<OrderGuard<'a>>,
}

/// How far a decision had come.
struct Mark {
    clock: ClockState,
    retention_seconds: u64,
    seen_count: usize,
    entry_count: usize,
}

impl<'a> Decision<'a> {
    /// Marks index rows that are as they were seen as damaged; gives those. Until this decision is
    /// written, nobody else writes index rows.
    pub fn mark_damaged(&mut self, seen: &[Found]) -> Result<Vec<Found>, ServerError> {
        let store = self.store;
        let order = self.order.get_or_insert_with(|| store.order());
        Ok(store.mark_damaged(order, seen, &mut self.batch)?)
    }

    /// Marks a damaged row as whole, whose place was just seen to hold its bytes; true, if it
    /// still names that place.
    pub fn mark_whole(&mut self, slot: SlotId, row: &TableRow) -> Result<bool, ServerError> {
        let store = self.store;
        let order = self.order.get_or_insert_with(|| store.order());
        Ok(store.mark_whole(order, (slot, row), &mut self.batch)?)
    }

    /// The clocks at the moment of the decision.
    pub fn moment(&self) -> Moment {
        Moment {
            retention_seconds: self.retention_seconds,
            wall_seconds: self.now_ms / 1000,
            is_suspect: self.clock.is_suspect(),
        }
    }

    /// Counts time without power that was lost. Two principals must have agreed, against a state
    /// of the clock that has [`Self::clock_digest`].
    pub fn credit_clock(&mut self, actor: PrincipalId, seconds: u64) -> Result<(), ServerError> {
        self.clock.credit(seconds.saturating_mul(1000)).map_err(refused_clock)?;
        self.enter_seen(actor);
        Ok(())
    }

    /// Ends all suspicion of the clock. Two principals must have agreed, as above.
    pub fn thaw_clock(&mut self, actor: PrincipalId) -> Result<(), ServerError> {
        self.clock.thaw().map_err(refused_clock)?;
        self.enter_seen(actor);
        Ok(())
    }

    /// Freezes expiry: somebody showed that the ledger was longer, or another.
    pub fn roll_back_clock(&mut self, reporter: PrincipalId) {
        self.clock.roll_back();
        self.enter_seen(reporter);
    }

    /// Digest of what a credit or a thaw is proposed against: it is another one as soon as the
    /// clock sees anything more.
    pub fn clock_digest(&self) -> [u8; 32] {
        self.clock.digest()
    }

    /// Runs a part of the decision that may be refused while the rest stands: a refused part
    /// leaves nothing.
    pub fn attempt<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T, ServerError>,
    ) -> Result<T, ServerError> {
        let before = (self.batch.clone(), self.mark());
        let outcome = part(self);
        if outcome.is_err() {
            self.batch = before.0;
            self.take_back(before.1);
        }
        outcome
    }

    fn mark(&self) -> Mark {
        let retention_seconds = self.retention_seconds;
        let (seen_count, entry_count) = (self.seen.len(), self.entries.len());
        Mark { clock: self.clock.clone(), retention_seconds, seen_count, entry_count }
    }

    /// Takes back what was entered, and what the clock was told, since the mark.
    fn take_back(&mut self, mark: Mark) {
        self.clock = mark.clock;
        self.retention_seconds = mark.retention_seconds;
        self.seen.truncate(mark.seen_count);
        self.entries.truncate(mark.entry_count);
    }

    /// Keeps the words that an entry holds the digest of: a reason, a meaning, a policy. They stay.
    pub fn state(&mut self, leaf: u64, words: &[u8]) {
        self.batch.put(Family::Ledger, statement_key(leaf), words);
    }

    /// Changes what a namespace takes of its quota; at most once in a decision.
    pub fn change_usage(
        &mut self,
        ns: u32,
        change: impl FnOnce(&mut UsageRow),
    ) -> Result<(), ServerError> {
        let mut usage = read_usage(self.store, ns)?;
        change(&mut usage);
        self.batch.put(Family::Policies, UsageRow::key(ns), usage.encode());
        Ok(())
    }

    /// Enters what the clock saw since this was called last.
    fn enter_seen(&mut self, actor: PrincipalId) {
        self.retention_seconds = self.clock.clock_ms() / 1000;
        for seen in self.clock.take_unwritten() {
            let event = Event::Clock { event: seen.event, amount_ms: seen.amount_ms };
            self.enter(actor, NamespaceId([0; 32]), event);
            self.seen.push(seen);
        }
    }

    /// Adds a ledger entry; returns its leaf index, which holds once the decision is durable.
    pub fn enter(&mut self, actor: PrincipalId, namespace: NamespaceId, event: Event) -> u64 {
        let leaf = self.next_leaf.saturating_add(u64::try_from(self.entries.len()).unwrap_or(0));
        self.entries.push(Entry {
            server_time_ms: self.now_ms,
            retention_time_seconds: self.retention_seconds,
            actor,
            namespace,
            event,
        });
        leaf
    }
}

/// What a namespace takes of its quota.
pub fn read_usage(store: &Store, ns: u32) -> Result<UsageRow, ServerError> {
    let value = store.get(Family::Policies, &UsageRow::key(ns))?;
    Ok(value.map(|value| UsageRow::decode(&value)).transpose()?.unwrap_or_default())
}

type Answer = Box<dyn FnOnce() + Send>;
type Job = Box<dyn FnOnce(&mut Decision<'_>) -> (bool, Answer) + Send>;

/// Hands decisions to the writer thread.
pub struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    noted: Arc<Noted>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(
        store: Store,
        ledger: Arc<Ledger>,
        appender: Appender,
        clock: Arc<dyn Clock>,
        retention_clock: Arc<RetentionClock>,
    ) -> Result<Self, ServerError> {
        let (jobs, waiting) = crossbeam_channel::bounded(QUEUE_MAX);
        let head_saved_at = Duration::ZERO;
        let noted = Arc::new(Noted::default());
        let mut desk = Desk {
            store,
            ledger,
            appender,
            clock,
            retention_clock,
            noted: noted.clone(),
            head_saved_at,
            saved_size: 0,
        };
        let thread = std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || {
                let mut watch = DeathWatch(Some(desk.store.observer().clone()));
                if let Err(error) = desk.serve(&waiting) {
                    tracing::error!(%error, "writer thread failed");
                    return;
                }
                watch.disarm();
            })
            .map_err(|error| ServerError::file("start writer thread", error))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), noted })
    }

    /// Runs a decision and waits until it is durable. If `decide` refuses, nothing is written.
    pub fn decide<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Decision<'_>) -> Result<T, ServerError> + Send + 'static,
    ) -> Result<T, ServerError> {
        let (sender, answer) = crossbeam_channel::bounded(1);
        let job: Job = Box::new(move |decision| {
            let outcome = decide(decision);
            let accepted = outcome.is_ok();
            // The caller may have gone away; its decision stands all the same.
            (accepted, Box::new(move || drop(sender.send(outcome))))
        });
        let jobs = self.jobs.as_ref().ok_or(ServerError::Closing)?;
        jobs.send(job).map_err(|_| ServerError::Closing)?;
        answer.recv().map_err(|_| ServerError::Closing)?
    }

    /// Writes a plan of locks in slices, each a decision of its own: others decide in between. It
    /// ends when `holds` no longer does: what the plan took as given must be so in each slice.
    pub fn lock_in_slices(
        &self,
        plan: Plan,
        holds: impl Fn() -> Result<(), ServerError> + Clone + Send + 'static,
    ) -> Result<(), ServerError> {
        for slice in plan.into_slices() {
            let holds = holds.clone();
            self.decide(move |decision| {
                holds()?;
                slice.write(decision.store, &mut decision.batch)
            })?;
        }
        Ok(())
    }

    /// Where decisions are noted while a collection cycle watches.
    pub fn noted(&self) -> &Arc<Noted> {
        &self.noted
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Desk {
    store: Store,
    ledger: Arc<Ledger>,
    appender: Appender,
    clock: Arc<dyn Clock>,
    retention_clock: Arc<RetentionClock>,
    noted: Arc<Noted>,
    head_saved_at: Duration,
    saved_size: u64,
}

impl Desk {
    /// Serves until nobody can ask any more.
    fn serve(&mut self, waiting: &Receiver<Job>) -> Result<(), ServerError> {
        loop {
            let first = match waiting.recv_timeout(HEAD_INTERVAL) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    self.save_head(Duration::ZERO)?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return self.save_head(Duration::ZERO),
            };
            let group = std::iter::once(first).chain(waiting.try_iter()).take(GROUP_MAX);
            let mut answers = Vec::new();
            let mut written = false;
            for job in group {
                let (changed, answer) = self.write_one(job)?;
                written |= changed;
                answers.push(answer);
            }
            if written {
                self.store.sync()?;
                self.ledger.publish(&self.appender);
            }
            for answer in answers {
                answer();
            }
            self.save_head(HEAD_INTERVAL)?;
        }
    }

    fn write_one(&mut self, job: Job) -> Result<(bool, Answer), ServerError> {
        let (clock, now) = self.retention_clock.observe();
        let is_due = self.retention_clock.is_due(&clock);
        let mut decision = Decision {
            store: &self.store,
            batch: MetaBatch::new(),
            now_ms: now.wall_ms,
            retention_seconds: clock.clock_ms() / 1000,
            clock,
            seen: Vec::new(),
            entries: Vec::new(),
            next_leaf: self.appender.size(),
            order: None,
        };
        decision.enter_seen(PrincipalId::LOCAL);
        let before = decision.mark();
        let (accepted, answer) = job(&mut decision);
        if !accepted {
            decision.batch = MetaBatch::new();
            decision.take_back(before);
        }
        let Decision { mut batch, entries, clock, seen, order, .. } = decision;
        if batch.is_empty() && entries.is_empty() && !is_due {
            return Ok((false, answer));
        }
        RetentionClock::put(&mut batch, &clock, &seen);
        for entry in &entries {
            self.appender.append(&mut batch, entry);
        }
        self.store.write(&batch)?;
        drop(order);
        self.noted.note(&batch);
        self.retention_clock.install(clock, &seen);
        Ok((true, answer))
    }

    /// Writes `HEAD` if it is behind and was last written at least `interval` ago.
    fn save_head(&mut self, interval: Duration) -> Result<(), ServerError> {
        let now = self.clock.monotonic();
        let size = self.appender.size();
        if size == self.saved_size || now.saturating_sub(self.head_saved_at) < interval {
            return Ok(());
        }
        self.ledger.save_head()?;
        self.head_saved_at = now;
        self.saved_size = size;
        self.store.observer().step(Step::HeadWritten);
        Ok(())
    }
}

/// What two principals are told who want from the clock what it does not give.
fn refused_clock(error: TendError) -> ServerError {
    let message = match error {
        TendError::NotFrozen => "the retention clock is not frozen".to_owned(),
        TendError::AboveLost { lost_ms } => {
            format!("between 1 and {} seconds without power can be credited", lost_ms / 1000)
        }
    };
    ServerError::peer(ErrorCode::BadRequest, message)
}

/// Tells the observer when it is dropped armed: the thread ends, and not because it should.
struct DeathWatch(Option<Arc<dyn Observer>>);

impl DeathWatch {
    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        if let Some(observer) = &self.0 {
            observer.fatal(&StoreError::Invalid("the writer thread ended"));
        }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use strongroom_protocol::entry::ClockEvent;

    use super::*;
    use crate::clock::ManualClock;
    use crate::metrics::Metrics;
    use crate::store::schema::Family;

    const TEN_YEARS: Duration = Duration::from_secs(3650 * 86_400);
    const OFFICER: PrincipalId = PrincipalId([7; 16]);

    struct Bench {
        writer: Writer,
        ledger: Arc<Ledger>,
        clock: Arc<ManualClock>,
        store: Store,
        retention_clock: Arc<RetentionClock>,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(folder.path(), Default::default()).unwrap();
            let key = SigningKey::from_bytes(&[5; 32]);
            let (ledger, appender) = Ledger::open(&store, key, folder.path()).unwrap();
            let (ledger, clock) = (Arc::new(ledger), Arc::new(ManualClock::at_ms(1_000_000_000)));
            let retention_clock = Arc::new(Self::open_clock(&store, &clock, None));
            let (time, shared) = (clock.clone(), retention_clock.clone());
            let writer =
                Writer::start(store.clone(), ledger.clone(), appender, time, shared).unwrap();
            Self { writer, ledger, clock, store, retention_clock, _folder: folder }
        }

        fn open_clock(
            store: &Store,
            clock: &Arc<ManualClock>,
            ledger_seconds: Option<u64>,
        ) -> RetentionClock {
            let metrics = Arc::new(Metrics::new().unwrap());
            RetentionClock::open(store, clock.clone(), metrics, ledger_seconds).unwrap()
        }

        fn entries(&self) -> Vec<(PrincipalId, ClockEvent)> {
            let leaves = 0..self.ledger.head().size;
            let entries = leaves.map(|leaf| Entry::decode(&self.ledger.entry(leaf).unwrap()));
            let events =
                entries.map(|entry| entry.unwrap()).filter_map(|entry| match entry.event {
                    Event::Clock { event, .. } => Some((entry.actor, event)),
                    _ => None,
                });
            events.collect()
        }
    }

    #[test]
    fn a_refused_decision_enters_what_the_clock_saw_and_nothing_else() {
        let bench = Bench::new();
        bench.clock.set_wall_ahead(TEN_YEARS);
        let refused: Result<(), _> = bench.writer.decide(|decision| {
            assert!(decision.moment().is_suspect);
            decision.thaw_clock(OFFICER)?;
            decision.batch.put(Family::Holds, b"row".to_vec(), b"value".to_vec());
            Err(ServerError::Closing)
        });
        assert!(refused.is_err());
        assert!(bench.retention_clock.moment().is_suspect);
        assert_eq!(bench.store.get(Family::Holds, b"row").unwrap(), None);
        let local = PrincipalId::LOCAL;
        let expected = [
            (local, ClockEvent::Started),
            (local, ClockEvent::WallAhead),
            (local, ClockEvent::Frozen),
        ];
        assert_eq!(bench.entries(), expected);
        // What is on the disk is what is in memory.
        let again = Bench::open_clock(&bench.store, &bench.clock, Some(0));
        assert_eq!(again.observe().0, bench.retention_clock.observe().0);
    }

    #[test]
    fn two_principals_thaw_and_credit_what_they_proposed_against() {
        let bench = Bench::new();
        bench.writer.decide(|_| Ok(())).unwrap();
        bench.clock.reboot(Duration::from_secs(20 * 86_400));
        bench.clock.set_wall_ahead(TEN_YEARS);
        let digest = bench.writer.decide(|decision| Ok(decision.clock_digest())).unwrap();
        bench.clock.set_wall_back(TEN_YEARS);
        let later = bench.writer.decide(|decision| Ok(decision.clock_digest())).unwrap();
        assert_ne!(digest, later, "what was seen since makes an older proposal stale");
        let lost = bench.retention_clock.status().lost_seconds;
        let too_much =
            bench.writer.decide(move |decision| decision.credit_clock(OFFICER, lost + 1));
        assert!(matches!(too_much, Err(ServerError::Peer(_))));
        let before = bench.retention_clock.moment().retention_seconds;
        bench
            .writer
            .decide(|decision| {
                decision.thaw_clock(OFFICER)?;
                decision.credit_clock(OFFICER, 6 * 86_400)
            })
            .unwrap();
        let moment = bench.retention_clock.moment();
        assert_eq!(moment.retention_seconds, before + 6 * 86_400);
        assert!(!moment.is_suspect);
        let thawed = (OFFICER, ClockEvent::Thawed);
        let credited = (OFFICER, ClockEvent::OffTimeCredited);
        assert!(bench.entries().ends_with(&[thawed, credited]));
        let again = bench.writer.decide(|decision| decision.thaw_clock(OFFICER));
        assert!(matches!(again, Err(ServerError::Peer(_))));
    }

    #[test]
    fn an_idle_clock_is_written_each_minute_and_not_more_often() {
        let bench = Bench::new();
        bench.writer.decide(|_| Ok(())).unwrap();
        let row = || bench.store.get(Family::Clock, b"state").unwrap();
        let before = row();
        bench.clock.advance(Duration::from_secs(59));
        bench.writer.decide(|_| Ok(())).unwrap();
        assert_eq!(row(), before);
        bench.clock.advance(Duration::from_secs(1));
        bench.writer.decide(|_| Ok(())).unwrap();
        assert_ne!(row(), before);
    }

    #[test]
    fn the_newest_head_is_in_its_file_when_the_writer_ends() {
        let Bench { writer, ledger, clock, _folder: folder, .. } = Bench::new();
        for _ in 0..3 {
            clock.advance(Duration::from_secs(5));
            writer
                .decide(|decision| {
                    let event = Event::Configured { configuration: [1; 32] };
                    decision.enter(OFFICER, NamespaceId([0; 32]), event);
                    Ok(())
                })
                .unwrap();
        }
        drop(writer);
        let kept = std::fs::read_to_string(folder.path().join("HEAD")).unwrap();
        assert_eq!(kept, ledger.head().note);
    }
}
