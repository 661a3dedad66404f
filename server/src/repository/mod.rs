//! The repository: its verbs, each in one file, over store, ledger, locks, sessions and registry.
//!
//! Nothing here knows HTTP. Verbs that take a [`Principal`] trust that the caller has already
//! checked its capability and namespace (`auth.rs`). All verbs block; callers run them on threads
//! that may.
//!
//! | file | verbs |
//! |---|---|
//! | `enrolment.rs` | make a token, enrol, revoke |
//! | `upload.rs` | open a session, have, prove, upload, close |
//! | `commit.rs` | commit, head |
//! | `snapshots.rs` | list, record, receipt, read, forget |
//! | `damage.rs` | mark what is damaged, store what was repaired |
//! | `clock.rs` | state of the retention clock, a head that a client remembers |
//! | `retention.rs` | retain, hold, release, policy, drop a namespace |
//! | `proposals.rs` | what takes two principals: lift, lower a policy, tend the clock |
//! | `waiting.rs` | proposals that wait, withdrawn when what they are about changes |
//! | `quota.rs` | what a namespace holds and may hold |
//! | `descriptors.rs` | newer descriptors: promote, demote, receive; who takes backups |
//! | `primaries.rs` | primaries: add, remove |
//! | `feeding.rs` | servers that connections are lent to: add, pause, remove |
//! | `replication.rs`, `epochs.rs`, `backdated.rs` | what the ledgers of primaries lead to here |
//! | `rolling.rs`, `tls_roll.rs` | next keys: a principal's, this server's, other servers' |
//! | `replicated.rs` | commit of a snapshot that a primary has |
//! | `importing.rs` | servers whose exports are taken in |
//! | `upkeep.rs` | what must happen now and then |

pub mod backdated;
pub mod clock;
pub mod commit;
pub mod damage;
pub mod descriptors;
pub mod enrolment;
mod epochs;
pub mod feeding;
mod filter;
pub mod importing;
pub mod pending;
mod presence;
pub mod primaries;
pub mod proposals;
pub mod quota;
pub mod replicated;
pub mod replication;
pub mod retention;
mod rolling;
pub mod snapshots;
mod tls_roll;
mod upkeep;
pub mod upload;
mod waiting;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{NamespaceId, PrincipalId, RepositoryId};
use strongroom_protocol::message::{NamespaceRow, Status};
use strongroom_protocol::record::Record;
use strongroom_protocol::retention::Moment;

use crate::clock::Clock;
use crate::config::Config;
use crate::damage::KnownDamage;
use crate::durable;
use crate::error::ServerError;
use crate::followers::Followers;
use crate::guards::Guards;
use crate::ledger::Ledger;
use crate::lock::{Plan, Tree};
use crate::metrics::Metrics;
use crate::readers::Readers;
use crate::registry::{Namespace, Registry};
use crate::repository::clock::last_retention_seconds;
use crate::repository::commit::{SNAPSHOT_COUNTER, read_counter};
use crate::repository::presence::require_whole;
use crate::retention_clock::RetentionClock;
use crate::rows::SeenRow;
use crate::server_keys::{ServerKeys, random_bytes};
use crate::session::Sessions;
use crate::store::error::StoreError;
use crate::store::observer::{Observer, Step};
use crate::store::open_check::OpenReport;
use crate::store::schema::Family;
use crate::store::{Store, StoreOptions};
use crate::writer::Writer;

/// A file of the data folder that is made once, by `init`, and read by everything else.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identification {
    /// Names the repository.
    pub repository: RepositoryId,
    /// Host names and addresses that clients use, without port.
    pub hosts: Vec<String>,
    /// Port that clients use.
    pub port: u16,
}

/// Row of family `policies` with the digest of the configuration that the server ran with last.
const CONFIGURATION_KEY: &[u8] = b"configuration";
const IDENTIFICATION_FILE: &str = "repository.toml";

/// What the world does when the store or a step asks for it; production aborts on a fatal error.
pub trait Witness: Send + Sync {
    /// A durable step is done.
    fn step(&self, _: Step) {}
    /// The store is poisoned: nothing may be written any more.
    fn fatal(&self, _: &StoreError) {}
}

/// An open repository.
pub struct Repository {
    store: Store,
    ledger: Arc<Ledger>,
    registry: Arc<Registry>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    retention_clock: Arc<RetentionClock>,
    keys: ServerKeys,
    identification: Identification,
    config: Config,
    readers: Arc<Readers>,
    guards: Guards,
    followers: Arc<Followers>,
    damage: KnownDamage,
    folder: PathBuf,
    rolling_tls: Mutex<()>,
    /// Last, so that it ends after nobody can ask it for anything.
    writer: Arc<Writer>,
}

impl Repository {
    /// Makes a data folder with new keys. Refuses a folder that holds anything.
    pub fn create(
        folder: &Path,
        hosts: Vec<String>,
        port: u16,
        config: Config,
        clock: Arc<dyn Clock>,
        witness: Arc<dyn Witness>,
    ) -> Result<Self, ServerError> {
        durable::make_folder(folder)?;
        let mut contents = std::fs::read_dir(folder)
            .map_err(|e| ServerError::file(format!("list {}", folder.display()), e))?;
        if contents.next().is_some() {
            return Err(ServerError::Operator(format!(
                "{}: folder is not empty; name a new one",
                folder.display()
            )));
        }
        let keys = ServerKeys::create(folder, &hosts)?;
        let repository = RepositoryId(random_bytes()?);
        let identification = Identification { repository, hosts, port };
        let text = toml::to_string(&identification).map_err(|e| ServerError::Bug(e.to_string()))?;
        let event = Event::Initialised {
            repository,
            ledger_key: keys.ledger_public(),
            tls_key: keys.tls_key_digest(),
        };
        let made = Self::assemble(folder, identification, keys, config, clock, witness)?.0;
        made.writer.decide(|decision| {
            decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
            Ok(())
        })?;
        made.settle_tls_key()?;
        made.ledger.save_head()?;
        // Written last: a folder without it is a failed `init`, and is refused by `open`.
        durable::write(&folder.join(IDENTIFICATION_FILE), text.as_bytes())?;
        Ok(made)
    }

    /// Opens a data folder, after the checks of store and ledger.
    pub fn open(
        folder: &Path,
        config: Config,
        clock: Arc<dyn Clock>,
        witness: Arc<dyn Witness>,
    ) -> Result<(Self, OpenReport), ServerError> {
        let identification = Self::identify(folder)?;
        let keys = ServerKeys::load(folder)?;
        let opened = Self::assemble(folder, identification, keys, config, clock, witness)?;
        // What the clock sees now, such as a start of the machine, belongs to this moment.
        opened.0.keep_clock()?;
        opened.0.settle_tls_key()?;
        Ok(opened)
    }

    /// Reads what a data folder says of itself.
    pub fn identify(folder: &Path) -> Result<Identification, ServerError> {
        let path: PathBuf = folder.join(IDENTIFICATION_FILE);
        require_whole(folder, &path)?;
        let text = String::from_utf8_lossy(&durable::read(&path)?).into_owned();
        toml::from_str(&text)
            .map_err(|error| ServerError::Operator(format!("{}: {error}", path.display())))
    }

    fn assemble(
        folder: &Path,
        identification: Identification,
        keys: ServerKeys,
        config: Config,
        clock: Arc<dyn Clock>,
        witness: Arc<dyn Witness>,
    ) -> Result<(Self, OpenReport), ServerError> {
        let metrics = Arc::new(Metrics::new()?);
        let observer = StoreObserver { metrics: metrics.clone(), clock: clock.clone(), witness };
        let options = StoreOptions {
            segment_bytes: config.store.segment.0,
            idle_seal_ms: u64::try_from(config.store.idle_seal.0.as_millis()).unwrap_or(u64::MAX),
            inbox_fold_bytes: config.store.inbox_fold.0,
            block_cache_bytes: config.store.block_cache.0,
            reserve_bytes: config.store.reserve.0,
            observer: Arc::new(observer),
            ..StoreOptions::default()
        };
        let (store, report) = Store::open(folder, options)?;
        let (ledger, appender) = Ledger::open(&store, keys.ledger.clone(), folder)?;
        // Only now is it known that the log was replayed whole: orphans are what a crash left.
        store.drop_orphans()?;
        let ledger = Arc::new(ledger);
        let registry = Arc::new(Registry::load(&store)?);
        let limits = &config.limits;
        let sessions =
            Sessions::new(limits.lease.0, limits.sessions_per_principal, limits.have_per_second);
        let retention_clock = Arc::new(RetentionClock::open(
            &store,
            clock.clone(),
            metrics.clone(),
            last_retention_seconds(&ledger)?,
        )?);
        let writer = Writer::start(
            store.clone(),
            ledger.clone(),
            appender,
            clock.clone(),
            retention_clock.clone(),
        )?;
        let repository = Self {
            store,
            ledger,
            registry,
            sessions: Arc::new(sessions),
            clock,
            retention_clock,
            keys,
            identification,
            guards: Guards::new(&config.limits, &metrics),
            readers: Arc::new(Readers::default()),
            followers: Arc::new(Followers::default()),
            damage: KnownDamage::default(),
            folder: folder.to_path_buf(),
            rolling_tls: Mutex::default(),
            config,
            metrics,
            writer: Arc::new(writer),
        };
        repository.load_last_backups()?;
        repository.load_damage()?;
        Ok((repository, report))
    }

    /// The clocks now.
    pub fn moment(&self) -> Moment {
        self.retention_clock.moment()
    }

    /// Namespaces and principals.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The server's keys.
    pub fn keys(&self) -> &ServerKeys {
        &self.keys
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who streams envelopes now; each holds a thread.
    pub fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// What bounds the harm that peers can do.
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// How following each primary goes.
    pub fn followers(&self) -> &Arc<Followers> {
        &self.followers
    }

    /// The data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Live sessions and their pins.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// The writer thread.
    pub fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }

    /// Locks the tree of a snapshot until `until_seconds` of the retention clock, before a decision
    /// that needs it locked so far: walked on this thread, written in slices.
    pub fn lock_in_slices(&self, tree: Tree, until_seconds: u64) -> Result<(), ServerError> {
        let now = self.moment().retention_seconds;
        let plan = Plan::make(&self.store, tree, now, until_seconds, &|_, _| false)?;
        self.writer.lock_in_slices(plan, || Ok(()))
    }

    /// The store, for jobs, and for tests that look behind the verbs.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The state of the server.
    pub fn status(&self) -> Result<Status, ServerError> {
        let held = self.store.statistics();
        let head = self.ledger.head();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            ledger_key: self.keys.ledger_public(),
            ledger_size: head.size,
            checkpoint: head.note,
            snapshot_count: read_counter(&self.store, SNAPSHOT_COUNTER)?,
            segment_count: held.segment_count,
            segment_bytes: held.segment_bytes,
            session_count: u64::try_from(self.sessions.count()).unwrap_or(u64::MAX),
            free_bytes: self.store.free_bytes()?,
            accepts_uploads: self.store.accepts_uploads()?,
            damaged_count: self.damage.count(),
            repaired_count: self.scrub_row()?.repaired_total,
        })
    }

    /// Names, ids and policies of all namespaces.
    pub fn namespaces(&self) -> Vec<NamespaceRow> {
        let rows = self.registry.namespaces();
        rows.iter()
            .map(|namespace| NamespaceRow {
                name: namespace.row.name.clone(),
                namespace: namespace.row.namespace,
                policy: namespace.row.policy.clone(),
                descriptor_version: namespace.descriptor.contents().version,
                takes_backups: self.is_primary_of(namespace),
            })
            .collect()
    }

    /// Enters in the ledger that the server runs with another configuration than last time.
    pub fn note_configuration(&self) -> Result<(), ServerError> {
        let configuration = *blake3::hash(format!("{:?}", self.config).as_bytes()).as_bytes();
        self.writer.decide(move |decision| {
            let last = decision.store.get(Family::Policies, CONFIGURATION_KEY)?;
            if last.as_deref() != Some(&configuration) {
                decision.batch.put(Family::Policies, CONFIGURATION_KEY, configuration);
                let event = Event::Configured { configuration };
                decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
            }
            Ok(())
        })
    }

    /// Seals what is unsealed and makes it durable, before an orderly end.
    pub fn settle(&self) -> Result<(), ServerError> {
        self.store.seal()?;
        Ok(self.store.sync()?)
    }

    /// Settles, and leaves nothing in the log that the next start would have to replay.
    pub fn rest(&self) -> Result<(), ServerError> {
        self.settle()?;
        Ok(self.store.flush_rows()?)
    }

    fn namespace(&self, id: &NamespaceId) -> Result<Arc<Namespace>, ServerError> {
        self.registry.namespace(id).ok_or_else(ServerError::not_found)
    }

    /// Sets the gauge of the last backup of each source, from the heads: one row a source, however
    /// many snapshots it has.
    fn load_last_backups(&self) -> Result<(), ServerError> {
        for namespace in self.registry.namespaces() {
            let mut heads = Vec::new();
            let prefix = namespace.number.to_be_bytes();
            self.store.scan(Family::Heads, &prefix, None, &mut |_, record| {
                let head = Record::decode(record);
                heads.push(head.map(|head| (head.digest(), head.body.source)));
                ControlFlow::Continue(())
            })?;
            for head in heads {
                let (digest, source) = head?;
                let seen =
                    self.store.get(Family::Seen, &SeenRow::key(namespace.number, &digest))?;
                let Some(seen) = seen else { continue };
                let proof = self.receipt_of(SeenRow::decode(&seen)?)?;
                let committed_ms = Entry::decode(&proof.entry)?.server_time_ms;
                self.note_backup(&namespace, source.as_str(), committed_ms);
            }
        }
        Ok(())
    }

    fn note_backup(&self, namespace: &Namespace, source: &str, committed_ms: u64) {
        let seconds = Duration::from_millis(committed_ms).as_secs_f64();
        let labels = [namespace.row.name.as_str(), source];
        self.metrics.last_backup_timestamp.with_label_values(&labels).set(seconds);
    }
}

/// Carries the store's news to metrics and witness.
struct StoreObserver {
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    witness: Arc<dyn Witness>,
}

impl Observer for StoreObserver {
    fn step(&self, step: Step) {
        self.witness.step(step);
    }

    fn fatal(&self, error: &StoreError) {
        self.metrics.store_errors.inc();
        self.witness.fatal(error);
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    fn sealed(&self, _bytes: u64, elapsed: Duration) {
        self.metrics.seal_seconds.observe(elapsed.as_secs_f64());
    }

    fn meta_written(&self, elapsed: Duration) {
        self.metrics.meta_batch_seconds.observe(elapsed.as_secs_f64());
    }

    fn synced(&self, elapsed: Duration) {
        self.metrics.sync_seconds.observe(elapsed.as_secs_f64());
    }
}
