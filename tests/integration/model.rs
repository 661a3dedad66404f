//! The repository against a model of it: a plain map of snapshots with the instant until which each
//! was promised to be kept, in true time, which no clock of the machine shows.
//!
//! Random sequences of uploads, commits, changes of locks, forgets, collections, crashes,
//! reopenings, clock jumps, reboots and restored data folders run against both. Whatever happens:
//!
//! * nothing is forgotten before its promised instant, while it is held, or, in compliance mode, by
//!   a lift (*early deletion*);
//! * every snapshot that was not forgotten is listed and whole, to the last chunk (*lost*);
//! * no snapshot that was forgotten comes back (*resurrected*), but by a restored data folder,
//!   which brings back what it held.
//!
//! `OPS` and `SEED` set how much and which; a failure is shrunk and printed by proptest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, RngAlgorithm, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use strongroom_client::commit;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{PublicKey, RecordDigest, SessionId};
use strongroom_protocol::merkle::leaf_hash;
use strongroom_protocol::message::{
    ClockWish, Decide, HexBytes, OpenSession, Retain, SessionOpened, SizeClass,
};
use strongroom_protocol::proposal::{Approval, Verdict};
use strongroom_protocol::record::{PrivateFields, RecordBody};
use strongroom_protocol::retention::{LockWanted, RetentionMode};
use strongroom_protocol::role::Role;
use strongroom_server::admin::collector;
use strongroom_server::clock::{Clock, ManualClock};
use strongroom_server::config::{Config, Period};
use strongroom_server::error::ServerError;
use strongroom_server::registry::Principal;
use strongroom_server::repository::Repository;
use tempfile::TempDir;

use crate::harness::{Actor, Calm, TestServer, Tree, copy_folder, digests, label, test_config};

const DAY: u64 = 24 * 3600;
/// Pieces of plaintext that snapshots are made of; few, so that they share.
const PIECES: u8 = 24;
/// Sessions at a time.
const SLOTS: u8 = 3;
/// Shortest lock that the policy allows, in seconds.
const MINIMUM: u64 = DAY;
/// Time without power that the retention clock counts in a year, in seconds.
const ALLOWANCE: u64 = 14 * DAY;

/// What is done next. Numbers that pick something are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Begin { slot: u8, is_small: bool, source: u8 },
    Upload { slot: u8, pieces: Vec<u8> },
    Commit { slot: u8, days: u8 },
    Close { slot: u8 },
    Retain { pick: u16, days: u8, firmer: bool },
    Hold { pick: u16 },
    Release { pick: u16 },
    Forget { pick: u16 },
    Lift { pick: u16 },
    Collect,
    Advance { hours: u16 },
    WallAhead { days: u16 },
    WallBack { days: u16 },
    Reboot { off_hours: u16, ahead_days: u16 },
    Crash,
    Reopen,
    TakeImage,
    RestoreImage,
    Thaw,
    CheckAll,
}

fn ops() -> BoxedStrategy<Op> {
    let slot = 0..SLOTS;
    let pieces = prop::collection::vec(0..PIECES, 1..6);
    prop_oneof![
        4 => (slot.clone(), any::<bool>(), 0u8..2)
            .prop_map(|(slot, is_small, source)| Op::Begin { slot, is_small, source }),
        20 => (slot.clone(), pieces).prop_map(|(slot, pieces)| Op::Upload { slot, pieces }),
        24 => (slot.clone(), 0u8..12).prop_map(|(slot, days)| Op::Commit { slot, days }),
        2 => slot.prop_map(|slot| Op::Close { slot }),
        3 => (any::<u16>(), 0u8..20, any::<bool>())
            .prop_map(|(pick, days, firmer)| Op::Retain { pick, days, firmer }),
        2 => any::<u16>().prop_map(|pick| Op::Hold { pick }),
        3 => any::<u16>().prop_map(|pick| Op::Release { pick }),
        20 => any::<u16>().prop_map(|pick| Op::Forget { pick }),
        3 => any::<u16>().prop_map(|pick| Op::Lift { pick }),
        6 => Just(Op::Collect),
        14 => (1u16..100).prop_map(|hours| Op::Advance { hours }),
        1 => (1u16..4000).prop_map(|days| Op::WallAhead { days }),
        1 => (1u16..4000).prop_map(|days| Op::WallBack { days }),
        1 => (0u16..200, prop_oneof![3 => Just(0u16), 1 => 1u16..4000])
            .prop_map(|(off_hours, ahead_days)| Op::Reboot { off_hours, ahead_days }),
        1 => Just(Op::Crash),
        1 => Just(Op::Reopen),
        1 => Just(Op::TakeImage),
        1 => Just(Op::RestoreImage),
        4 => Just(Op::Thaw),
        1 => Just(Op::CheckAll),
    ]
    .boxed()
}

/// What was promised for a snapshot.
#[derive(Debug, Clone)]
struct Promise {
    pieces: BTreeSet<u8>,
    /// In true time, seconds since the beginning.
    until: u64,
    is_held: bool,
    mode: RetentionMode,
}

/// The model: what must be there.
#[derive(Debug, Clone, Default)]
struct Promises {
    kept: BTreeMap<RecordDigest, Promise>,
    gone: BTreeSet<RecordDigest>,
}

/// Counts of a campaign, printed at its end.
#[derive(Debug, Default)]
struct Tally {
    operations: u64,
    commits: u64,
    forgets: u64,
    collections: u64,
    frozen: u64,
}

static TALLY: LazyLock<parking_lot::Mutex<Tally>> = LazyLock::new(Default::default);

/// One enrolled writer, an operator and an officer, and the folder as it was then.
struct Cast {
    folder: Arc<TempDir>,
    writer: Actor,
    officer: Actor,
    operator: Actor,
    trees: parking_lot::Mutex<BTreeMap<BTreeSet<u8>, Arc<Tree>>>,
}

impl Cast {
    async fn enrol() -> Self {
        let server = TestServer::start_with(model_config).await;
        let writer = server.writer("erp").await;
        let officer = server.principal(None, Role::SecurityOfficer).await;
        let operator = server.principal(None, Role::Operator).await;
        let (folder, _) = server.stop().await;
        Self { folder, writer, officer, operator, trees: Default::default() }
    }

    /// Sealed once for all cases.
    fn tree(&self, pieces: &BTreeSet<u8>) -> Arc<Tree> {
        let seal = || {
            let plain: Vec<Vec<u8>> = pieces.iter().map(|piece| plaintext(*piece)).collect();
            let plain: Vec<&[u8]> = plain.iter().map(Vec::as_slice).collect();
            Arc::new(Tree::seal(&self.writer.keys(), &plain))
        };
        self.trees.lock().entry(pieces.clone()).or_insert_with(seal).clone()
    }
}

fn plaintext(piece: u8) -> Vec<u8> {
    let mut bytes = vec![0; 3000];
    blake3::Hasher::new().update(&[piece]).finalize_xof().fill(&mut bytes);
    bytes
}

fn model_config(config: &mut Config) {
    config.retention.mode = RetentionMode::Governance;
    config.retention.minimum = Period::seconds(MINIMUM);
    config.retention.default = Period::seconds(MINIMUM);
    config.store.segment.0 = 1 << 20;
    config.limits.lease = Period::seconds(30 * DAY);
    config.limits.sessions_per_principal = u32::from(SLOTS);
    config.gc.interval = Period::seconds(1000 * 365 * DAY);
    config.gc.pace = 1.0;
}

fn principal_of(actor: &Actor, role: Role) -> Principal {
    let namespace = role.is_of_namespace().then(|| actor.namespace());
    let signing_key: PublicKey = actor.profile.signing_public_key().unwrap();
    Principal { id: actor.profile.settings().principal, role, namespace, signing_key }
}

struct OpenSlot {
    session: SessionId,
    opened: SessionOpened,
    source: u8,
    tree: Option<(BTreeSet<u8>, Arc<Tree>)>,
}

/// The system under test, with the model beside it.
struct Machine {
    cast: Arc<Cast>,
    folder: TempDir,
    clock: Arc<ManualClock>,
    repository: Option<Arc<Repository>>,
    slots: BTreeMap<u8, OpenSlot>,
    promises: Promises,
    image: Option<(TempDir, Promises)>,
    /// True time, seconds since the beginning.
    now: u64,
    /// Nothing odd has happened to the clocks.
    is_clean: bool,
    /// The wall clock has lied, so that more time without power may have been counted than passed:
    /// never more than the yearly allowance.
    has_lied: bool,
}

impl Machine {
    fn new(cast: Arc<Cast>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&cast.folder.path().join("data"), folder.path());
        let clock = Arc::new(ManualClock::at_ms(crate::harness::START_MS));
        let mut machine = Self {
            cast,
            folder,
            clock,
            repository: None,
            slots: BTreeMap::new(),
            promises: Promises::default(),
            image: None,
            now: 0,
            is_clean: true,
            has_lied: false,
        };
        machine.open();
        machine
    }

    fn open(&mut self) {
        self.slots.clear();
        let config = test_config(model_config);
        let clock: Arc<dyn Clock> = self.clock.clone();
        let (repository, _) =
            Repository::open(self.folder.path(), config, clock, Arc::new(Calm)).unwrap();
        self.repository = Some(Arc::new(repository));
        self.check_list();
    }

    fn repository(&self) -> &Arc<Repository> {
        self.repository.as_ref().unwrap()
    }

    fn writer(&self) -> Principal {
        principal_of(&self.cast.writer, Role::Backup)
    }

    fn picked(&self, pick: u16) -> Option<RecordDigest> {
        let kept = &self.promises.kept;
        kept.keys().nth(usize::from(pick) % kept.len().max(1)).copied()
    }

    fn apply(&mut self, op: Op) {
        TALLY.lock().operations += 1;
        match op {
            Op::Begin { slot, is_small, source } => self.begin(slot, is_small, source),
            Op::Upload { slot, pieces } => self.upload(slot, pieces.into_iter().collect()),
            Op::Commit { slot, days } => self.commit(slot, u64::from(days) * DAY),
            Op::Close { slot } => self.close(slot),
            Op::Retain { pick, days, firmer } => self.retain(pick, u64::from(days) * DAY, firmer),
            Op::Hold { pick } => self.hold(pick, true),
            Op::Release { pick } => self.hold(pick, false),
            Op::Forget { pick } => self.forget(pick),
            Op::Lift { pick } => self.lift(pick),
            Op::Collect => self.collect(),
            Op::Advance { hours } => {
                let seconds = u64::from(hours) * 3600;
                self.clock.advance(Duration::from_secs(seconds));
                self.now += seconds;
            }
            Op::WallAhead { days } => {
                self.clock.set_wall_ahead(Duration::from_secs(u64::from(days) * DAY));
                (self.is_clean, self.has_lied) = (false, true);
            }
            Op::WallBack { days } => {
                self.clock.set_wall_back(Duration::from_secs(u64::from(days) * DAY));
                self.is_clean = false;
            }
            Op::Reboot { off_hours, ahead_days } => self.reboot(off_hours, ahead_days),
            Op::Crash => self.crash(),
            Op::Reopen => {
                self.repository().settle().unwrap();
                self.repository = None;
                self.open();
            }
            Op::TakeImage => {
                let image = tempfile::tempdir().unwrap();
                copy_folder(self.folder.path(), image.path());
                self.image = Some((image, self.promises.clone()));
            }
            Op::RestoreImage => self.restore_image(),
            Op::Thaw => self.thaw(),
            Op::CheckAll => self.check_all(),
        }
    }

    fn begin(&mut self, slot: u8, is_small: bool, source: u8) {
        if self.slots.contains_key(&slot) {
            return;
        }
        let size_class = if is_small { SizeClass::Small } else { SizeClass::Stream };
        let source_label = label(&format!("s{source}"));
        let lock_wanted = LockWanted::Default;
        let request = OpenSession { source: source_label, size_class, lock_wanted };
        let (writer, namespace) = (self.writer(), self.cast.writer.namespace());
        let Ok(opened) = self.repository().open_session(&writer, &namespace, request) else {
            return; // leases of sessions that were left open may still count
        };
        let open = OpenSlot { session: opened.session, opened, source, tree: None };
        self.slots.insert(slot, open);
    }

    fn upload(&mut self, slot: u8, pieces: BTreeSet<u8>) {
        if !self.slots.contains_key(&slot) {
            self.begin(slot, pieces.len().is_multiple_of(2), slot % 2);
        }
        let Some(open) = self.slots.get(&slot) else { return };
        let tree = self.cast.tree(&pieces);
        let (writer, namespace, session) =
            (self.writer(), self.cast.writer.namespace(), open.session);
        let asked = digests(&tree.chunks);
        let repository = self.repository().clone();
        let Ok(have) = repository.have(&writer, &namespace, &session, &asked) else {
            self.slots.remove(&slot);
            return;
        };
        let lacking = tree.chunks.iter().zip(have).filter(|(_, have)| *have == 0);
        let mut envelopes: Vec<Bytes> = lacking.map(|(chunk, _)| chunk.clone()).collect();
        envelopes.extend(tree.nodes.iter().map(|node| Bytes::from(node.envelope.clone())));
        repository.upload(&writer, &namespace, &session, envelopes).unwrap();
        if let Some(open) = self.slots.get_mut(&slot) {
            open.tree = Some((pieces, tree));
        }
    }

    fn commit(&mut self, slot: u8, period: u64) {
        let Some(open) = self.slots.remove(&slot) else { return };
        let Some((pieces, tree)) = open.tree else { return self.end(open.session) };
        let actor = &self.cast.writer;
        let source = label(&format!("s{}", open.source));
        let head = open.opened.head.as_ref().map(|head| head.0.as_slice());
        let position = commit::position_after(&actor.profile, &source, head).unwrap();
        let descriptor = actor.kept_descriptor();
        let lock_wanted =
            if period == 0 { LockWanted::Default } else { LockWanted::Period(period) };
        let body = RecordBody {
            namespace: actor.namespace(),
            epoch: 1,
            descriptor: descriptor.digest(),
            principal: actor.profile.settings().principal,
            source,
            session_nonce: open.opened.nonce,
            sequence: position.sequence,
            previous: position.previous,
            root: tree.root.digest,
            root_level: tree.root.level,
            totals: tree.root.totals,
            padded_plaintext_bytes: tree.root.plaintext_bytes,
            client_time_ms: 0,
            lock_wanted,
            complete: true,
        };
        let (keys, private) = (actor.keys(), PrivateFields::default());
        let record =
            commit::sign_record(&actor.profile, &descriptor, &keys, body, &tree.root, private)
                .unwrap();
        let (writer, namespace) = (self.writer(), actor.namespace());
        let outcome = self.repository().commit(&writer, &namespace, &open.session, record.encode());
        match outcome {
            Ok(_) => {
                let until = self.now + period.max(MINIMUM);
                let mode = RetentionMode::Governance;
                let promise = Promise { pieces, until, is_held: false, mode };
                self.promises.kept.insert(record.digest(), promise);
                TALLY.lock().commits += 1;
            }
            Err(error) => {
                let code = error.refusal().code;
                let is_fair = [
                    ErrorCode::SessionEnded,
                    ErrorCode::OutOfSequence,
                    ErrorCode::MissingChildren,
                    ErrorCode::BadRecord,
                ];
                assert!(is_fair.contains(&code), "commit: {error}");
                self.end(open.session);
            }
        }
    }

    fn close(&mut self, slot: u8) {
        if let Some(open) = self.slots.remove(&slot) {
            self.end(open.session);
        }
    }

    fn end(&self, session: SessionId) {
        // It may have ended already.
        let _ = self.repository().close_session(
            &self.writer(),
            &self.cast.writer.namespace(),
            &session,
        );
    }

    fn retain(&mut self, pick: u16, period: u64, firmer: bool) {
        let Some(record) = self.picked(pick) else { return };
        let mode = firmer.then_some(RetentionMode::Compliance);
        let period = period.max(1); // 0 is the default
        let wish = Retain { lock_wanted: LockWanted::Period(period), mode };
        let operator = principal_of(&self.cast.operator, Role::Operator);
        let namespace = self.cast.writer.namespace();
        let outcome = self.repository().retain(&operator, &namespace, &record, wish);
        let promise = self.promises.kept.get_mut(&record).unwrap();
        match outcome {
            Ok(_) => {
                promise.until = promise.until.max(self.now + period);
                promise.mode = mode.unwrap_or(promise.mode);
            }
            Err(error) => assert_eq!(error.refusal().code, ErrorCode::Shortens, "{error}"),
        }
    }

    fn hold(&mut self, pick: u16, is_placed: bool) {
        let Some(record) = self.picked(pick) else { return };
        let officer = principal_of(&self.cast.officer, Role::SecurityOfficer);
        let (namespace, reason) = (self.cast.writer.namespace(), "case".to_owned());
        let repository = self.repository();
        let state = match is_placed {
            true => repository.place_hold(&officer, &namespace, &record, reason),
            false => repository.release_hold(&officer, &namespace, &record, reason),
        };
        assert_eq!(state.unwrap().lock.is_held, is_placed);
        self.promises.kept.get_mut(&record).unwrap().is_held = is_placed;
    }

    fn forget(&mut self, pick: u16) {
        let Some(record) = self.picked(pick) else { return };
        let operator = principal_of(&self.cast.operator, Role::Operator);
        let namespace = self.cast.writer.namespace();
        let outcome = self.repository().forget(&operator, &namespace, &record);
        let promise = &self.promises.kept[&record];
        let is_due = self.now >= promise.until && !promise.is_held;
        match outcome {
            Ok(()) => {
                let is_due = self.latest() >= promise.until && !promise.is_held;
                assert!(is_due, "EARLY: forgot {record} at {}: {promise:?}", self.now);
                self.went(record);
            }
            Err(error) => {
                let is_refusal = matches!(&error, ServerError::Peer(_));
                assert!(is_refusal, "forget: {error}");
                assert!(!(is_due && self.is_clean), "kept {record} beyond its end: {error}");
            }
        }
    }

    fn lift(&mut self, pick: u16) {
        let Some(record) = self.picked(pick) else { return };
        let officer = principal_of(&self.cast.officer, Role::SecurityOfficer);
        let namespace = self.cast.writer.namespace();
        let outcome = self.repository().lift(&officer, &namespace, &record);
        let promise = self.promises.kept[&record].clone();
        let outcome = outcome.and_then(|outcome| match outcome.proposal {
            Some(proposal) => self.approve(proposal),
            None => Ok(()),
        });
        if outcome.is_ok() {
            let is_liftable =
                promise.mode == RetentionMode::Governance || self.latest() >= promise.until;
            assert!(is_liftable && !promise.is_held, "EARLY: lifted {record}: {promise:?}");
            self.went(record);
        } else {
            let is_kept = promise.is_held || promise.mode == RetentionMode::Compliance;
            assert!(is_kept, "a lift was refused: {:?} {promise:?}", outcome.err());
        }
    }

    fn approve(&self, proposal: u64) -> Result<(), ServerError> {
        let (repository, actor) = (self.repository(), &self.cast.operator);
        let ledger = repository.ledger();
        let leaf = leaf_hash(&ledger.entry(proposal)?);
        let meaning = "model".to_owned();
        let verdict = Verdict::Approve;
        let approval = Approval { leaf, origin: ledger.origin(), verdict, meaning: &meaning };
        let signature = approval.sign(&actor.profile.signing_key().unwrap());
        let answer =
            Decide { verdict, meaning: meaning.clone(), signature: HexBytes(signature.to_vec()) };
        let operator = principal_of(actor, Role::Operator);
        repository.decide_proposal(&operator, proposal, answer).map(drop)
    }

    fn went(&mut self, record: RecordDigest) {
        self.promises.kept.remove(&record);
        self.promises.gone.insert(record);
        TALLY.lock().forgets += 1;
    }

    fn collect(&mut self) {
        collector(self.repository()).run().unwrap();
        let mut tally = TALLY.lock();
        tally.collections += 1;
        if tally.collections.is_multiple_of(4) {
            drop(tally);
            self.check_all();
        }
    }

    fn thaw(&mut self) {
        if !self.repository().moment().is_suspect {
            return;
        }
        TALLY.lock().frozen += 1;
        let officer = principal_of(&self.cast.officer, Role::SecurityOfficer);
        let outcome = self.repository().tend_clock(&officer, ClockWish::Thaw).unwrap();
        self.approve(outcome.proposal.unwrap()).unwrap();
        assert!(!self.repository().moment().is_suspect);
    }

    fn reboot(&mut self, off_hours: u16, ahead_days: u16) {
        let off = u64::from(off_hours) * 3600;
        self.repository().settle().unwrap();
        self.repository = None;
        self.clock.reboot(Duration::from_secs(off));
        if ahead_days > 0 {
            self.clock.set_wall_ahead(Duration::from_secs(u64::from(ahead_days) * DAY));
            self.has_lied = true;
        }
        self.now += off;
        self.is_clean = false;
        self.open();
    }

    /// What is on the disk at this moment is what a killed process leaves.
    fn crash(&mut self) {
        let image = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), image.path());
        self.repository = None;
        self.folder = image;
        self.open();
    }

    fn restore_image(&mut self) {
        let Some((image, promises)) = self.image.take() else { return };
        self.repository = None;
        self.folder = image;
        // A folder from before the clocks were wrong may meet clocks that are.
        self.is_clean = false;
        self.promises = promises;
        self.open();
    }

    /// The latest that it may be by any clock of the server, in true time.
    fn latest(&self) -> u64 {
        let years = self.now / (365 * DAY) + 1;
        self.now + if self.has_lied { years * ALLOWANCE } else { 0 }
    }

    fn listed(&self) -> BTreeSet<RecordDigest> {
        let (mut listed, mut after) = (BTreeSet::new(), Some(0));
        while let Some(commit) = after {
            let namespace = self.cast.writer.namespace();
            let page = self.repository().list(&namespace, None, commit).unwrap();
            listed.extend(page.rows.iter().map(|row| row.record));
            after = page.next_after;
        }
        listed
    }

    fn check_list(&self) {
        let (listed, promises) = (self.listed(), &self.promises);
        let lost: Vec<_> = promises.kept.keys().filter(|kept| !listed.contains(kept)).collect();
        assert!(lost.is_empty(), "LOST: {lost:?}");
        let back: Vec<_> = promises.gone.iter().filter(|gone| listed.contains(gone)).collect();
        assert!(back.is_empty(), "RESURRECTED: {back:?}");
    }

    /// Every snapshot that is kept is whole, byte for byte.
    fn check_all(&self) {
        self.check_list();
        let namespace = self.cast.writer.namespace();
        let distinct: BTreeSet<_> =
            self.promises.kept.values().map(|promise| &promise.pieces).collect();
        for pieces in distinct {
            let tree = self.cast.tree(pieces);
            let envelopes = tree.envelopes();
            let mut at = 0;
            let mut each = |bytes: &[u8]| {
                assert!(bytes == envelopes[at], "LOST: another envelope");
                at += 1;
                std::ops::ControlFlow::Continue(())
            };
            let read = self.repository().read(&namespace, &digests(&envelopes), &mut each);
            assert!(read.is_ok() && at == envelopes.len(), "LOST: {read:?}");
        }
    }
}

/// Only generates: what must come of an operation depends on the clocks, so the model stands in
/// [`Machine`].
struct Operations;

impl ReferenceStateMachine for Operations {
    type State = ();
    type Transition = Op;

    fn init_state() -> BoxedStrategy<()> {
        Just(()).boxed()
    }

    fn transitions((): &()) -> BoxedStrategy<Op> {
        ops()
    }

    fn apply((): (), _: &Op) {}
}

struct Model;

static CAST: LazyLock<Arc<Cast>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    Arc::new(runtime.block_on(Cast::enrol()))
});

impl StateMachineTest for Model {
    type SystemUnderTest = Machine;
    type Reference = Operations;

    fn init_test((): &()) -> Machine {
        Machine::new(CAST.clone())
    }

    fn apply(mut machine: Machine, (): &(), op: Op) -> Machine {
        machine.apply(op);
        machine
    }

    fn teardown(machine: Machine, (): ()) {
        machine.check_all();
    }
}

/// 10^4 operations here; `make campaign-locks` runs 10^6.
#[test]
fn promises_hold_whatever_happens() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (operations, seed) = (number("OPS", 10_000), number("SEED", 1));
    let length = 200;
    println!("campaign-locks: SEED={seed} OPS={operations}");
    let cases = u32::try_from(operations.div_ceil(length)).unwrap();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config.clone(), random);
    let length = usize::try_from(length).unwrap();
    let sequences = Operations::sequential_strategy(length..=length);
    let outcome = runner.run(&sequences, |((), ops, seen)| {
        Model::test_sequential(config.clone(), (), ops, seen);
        Ok(())
    });
    let tally = TALLY.lock();
    println!("campaign-locks: {tally:?}");
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    println!(
        "campaign-locks: {} operations, 0 early deletions, 0 lost, 0 resurrected",
        tally.operations
    );
    let has_run = tally.commits > 100 && tally.forgets > 20 && tally.collections > 20;
    assert!(has_run || operations < 10_000, "{tally:?}");
}
