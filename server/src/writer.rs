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
//! Whatever ends this thread while the server runs, an error of any step or a panic, is told to
//! the observer as fatal, which ends the process: a server that cannot decide must not look alive.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{NamespaceId, PrincipalId};
use strongroom_protocol::retention::Moment;

use crate::clock::Clock;
use crate::error::ServerError;
use crate::ledger::{Appender, Ledger};
use crate::lock::Plan;
use crate::noted::Noted;
use crate::store::Store;
use crate::store::error::StoreError;
use crate::store::meta::MetaBatch;
use crate::store::observer::{Observer, Step};

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
    entries: Vec<Entry>,
    next_leaf: u64,
}

impl Decision<'_> {
    /// The clocks at the moment of the decision.
    pub fn moment(&self) -> Moment {
        Moment {
            retention_seconds: self.retention_seconds,
            wall_seconds: self.now_ms / 1000,
            is_suspect: false,
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
    ) -> Result<Self, ServerError> {
        let (jobs, waiting) = crossbeam_channel::bounded(QUEUE_MAX);
        let head_saved_at = Duration::ZERO;
        let noted = Arc::new(Noted::default());
        let mut desk = Desk {
            store,
            ledger,
            appender,
            clock,
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
        let mut decision = Decision {
            store: &self.store,
            batch: MetaBatch::new(),
            now_ms: self.clock.wall_ms(),
            retention_seconds: self.clock.retention_seconds(),
            entries: Vec::new(),
            next_leaf: self.appender.size(),
        };
        let (accepted, answer) = job(&mut decision);
        let Decision { mut batch, entries, .. } = decision;
        if !accepted || (batch.is_empty() && entries.is_empty()) {
            return Ok((false, answer));
        }
        for entry in &entries {
            self.appender.append(&mut batch, entry);
        }
        self.store.write(&batch)?;
        self.noted.note(&batch);
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
