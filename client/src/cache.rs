//! The client cache: which chunks this client has sealed before, and into which envelopes.
//!
//! ```text
//! header "scope"  -> repository's ledger key(32) | ns_id(32) | u32 epoch
//! header "sealer" -> name of the program and zstd version whose seals the rows are
//! row: ChunkId(32) -> SealedDigest(32) | u32 envelope length | MAC(8)
//! MAC = first 8 bytes of keyed(cache MAC key, ChunkId || SealedDigest || u32 length || scope)
//! ```
//!
//! A row says: this client made that envelope itself, from the plaintext with that id. A row that
//! somebody else wrote has a wrong MAC and is no row, so nobody without the namespace's secret can
//! make a backup refer to junk by editing the file. No `h`, key or unfinished node is in it.
//!
//! The cache is a help and never a reason to fail: a file that is damaged, foreign or of another
//! scope is set aside and a new one started, one that another process has open is done without, and
//! an error while it is used turns it off. [`Cache::condition`] says which. All of it may be lost
//! at any time; the price is time, not data.
//!
//! After `kill -9` the file holds what the last durable commit held. redb trusts the pages of a
//! file that was closed in order, and may panic over bytes that changed since; that is caught here.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use redb::{
    Builder, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition,
    TableError,
};
use strongroom_protocol::id::{ChunkId, NamespaceId, PublicKey, SealedDigest};
use thiserror::Error;

use crate::compressor::zstd_version;
use crate::keys::PlaintextKeys;

/// Rows that wait for a commit; at this many a commit is made. They take about 2 MB.
const WAITING_MAX_ROWS: usize = 16_384;
const MAC_BYTES: usize = 8;
const ROW_BYTES: usize = SealedDigest::BYTES + 4 + MAC_BYTES;
const SCOPE_BYTES: usize = 68;

type RowKey = &'static [u8; 32];
type RowValue = &'static [u8; ROW_BYTES];

const HEADER: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("header");
const ROWS: TableDefinition<'_, RowKey, RowValue> = TableDefinition::new("rows");

/// No cache file can be made where it should be.
#[derive(Debug, Error)]
#[error("client cache: cannot make {path}: {reason}; check the folder's owner and free space")]
pub struct CacheError {
    path: PathBuf,
    reason: String,
}

/// What the rows of one file are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheScope {
    /// Ledger key of the repository.
    pub repository: PublicKey,
    /// Namespace in it.
    pub namespace: NamespaceId,
    /// Epoch of the namespace's convergence secret.
    pub epoch: u32,
}

/// What the cache knows of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRow {
    /// The envelope that this client made.
    pub digest: SealedDigest,
    /// Its length: a tree's totals count it.
    pub envelope_bytes: u32,
}

/// How the cache came to be what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheCondition {
    /// The file was there, whole and of this scope.
    Opened,
    /// There was no file.
    Created,
    /// The file that was there is set aside, and a new one started. Worth a warning.
    Replaced {
        /// What was wrong with it.
        reason: String,
    },
    /// The cache holds nothing and keeps nothing. Worth a warning.
    Off {
        /// Why.
        reason: String,
    },
}

/// A cache file, open. Threads share it.
pub struct Cache {
    database: RwLock<Option<Database>>,
    /// The rows as of the last commit.
    committed: RwLock<Option<ReadOnlyTable<RowKey, RowValue>>>,
    waiting: RwLock<Waiting>,
    /// Held during a commit, so that commits keep their order; whether the last was not durable.
    commit: Mutex<bool>,
    condition: RwLock<CacheCondition>,
    sealer_changed: AtomicBool,
    mac: RowMac,
}

#[derive(Default)]
struct Waiting {
    new: HashMap<ChunkId, CacheRow>,
    in_commit: Arc<HashMap<ChunkId, CacheRow>>,
}

struct RowMac {
    keys: PlaintextKeys,
    scope: [u8; SCOPE_BYTES],
}

/// A file that passed the open checks.
struct Opened {
    database: Database,
    is_new: bool,
    sealer_changed: bool,
}

struct Header {
    scope: Vec<u8>,
    sealer: Vec<u8>,
}

enum OpenFailure {
    /// Another process has it.
    Busy,
    /// It must make way for a new one.
    Unusable(String),
}

impl Cache {
    /// Opens the cache file at `path`, or starts one; `memory_bytes` bounds the pages kept in
    /// memory. See [`Cache::condition`] for what was found.
    ///
    /// # Errors
    /// When there is no usable file and none can be made.
    pub fn open(
        path: &Path,
        scope: CacheScope,
        keys: &PlaintextKeys,
        memory_bytes: usize,
    ) -> Result<Self, CacheError> {
        let mac = RowMac { keys: keys.clone(), scope: scope.encode() };
        let (opened, replaced) = match open_file(path, &mac.scope, memory_bytes) {
            Err(OpenFailure::Busy) => {
                return Ok(Self::off(mac, "another process has it open".into()));
            }
            Ok(opened) => (opened, None),
            Err(OpenFailure::Unusable(reason)) => {
                set_aside(path)?;
                (reopen(path, &mac.scope, memory_bytes)?, Some(reason))
            }
        };
        let condition = match replaced {
            Some(reason) => CacheCondition::Replaced { reason },
            None if opened.is_new => CacheCondition::Created,
            None => CacheCondition::Opened,
        };
        let cache = Self::off(mac, String::new());
        *cache.committed.write() = read_rows(&opened.database);
        *cache.database.write() = Some(opened.database);
        *cache.condition.write() = condition;
        cache.sealer_changed.store(opened.sealer_changed, Ordering::Relaxed);
        Ok(cache)
    }

    /// A cache that knows nothing and remembers nothing.
    pub fn none(scope: CacheScope, keys: &PlaintextKeys) -> Self {
        Self::off(RowMac { keys: keys.clone(), scope: scope.encode() }, "not wanted".into())
    }

    /// The envelope that this client made of the chunk, if it did and the row is genuine.
    pub fn get(&self, id: &ChunkId) -> Option<CacheRow> {
        {
            let waiting = self.waiting.read();
            let found = waiting.new.get(id).or_else(|| waiting.in_commit.get(id));
            if let Some(row) = found {
                return Some(*row);
            }
        }
        let found = {
            let committed = self.committed.read();
            let table = committed.as_ref()?;
            guarded(|| Ok(table.get(id.as_bytes())?.map(|value| *value.value())))
        };
        match found {
            Ok(value) => value.and_then(|value| self.mac.open(id, &value)),
            Err(reason) => {
                self.turn_off(reason);
                None
            }
        }
    }

    /// Remembers envelopes that this client has just sealed. Every 16384 rows this commits.
    pub fn insert(&self, rows: impl IntoIterator<Item = (ChunkId, CacheRow)>) {
        if self.database.read().is_none() {
            return;
        }
        let is_full = {
            let mut waiting = self.waiting.write();
            waiting.new.extend(rows);
            waiting.new.len() >= WAITING_MAX_ROWS
        };
        if is_full {
            self.flush(true);
        }
    }

    /// Commits what was inserted. Only a `durable` commit outlives a crash of the program.
    pub fn flush(&self, durable: bool) {
        let mut is_owed = self.commit.lock();
        let batch = {
            let mut waiting = self.waiting.write();
            waiting.in_commit = Arc::new(std::mem::take(&mut waiting.new));
            Arc::clone(&waiting.in_commit)
        };
        if batch.is_empty() && !(durable && *is_owed) {
            return;
        }
        *is_owed = !durable;
        let result = self.with_database(|database| self.write_rows(database, &batch, durable));
        if let Some(Err(reason)) = result {
            self.turn_off(reason);
        }
        self.waiting.write().in_commit = Arc::default();
    }

    /// Forgets all rows; the file is then one of this program's sealer.
    pub fn clear(&self) {
        let _order = self.commit.lock();
        *self.waiting.write() = Waiting::default();
        let result = self.with_database(|database| {
            guarded(|| {
                let transaction = database.begin_write()?;
                transaction.delete_table(ROWS)?;
                transaction.open_table(ROWS)?;
                transaction.open_table(HEADER)?.insert("sealer", sealer_name().as_bytes())?;
                Ok(transaction.commit()?)
            })?;
            *self.committed.write() = read_rows(database);
            Ok(())
        });
        match result {
            Some(Err(reason)) => self.turn_off(reason),
            _ => self.sealer_changed.store(false, Ordering::Relaxed),
        }
    }

    /// Whether rows may be of another version of the sealer: where sealing such a chunk again gives
    /// another digest, that is a miss and not an alarm. Stays so until [`Cache::adopt_sealer`] or
    /// [`Cache::clear`].
    pub fn sealer_changed(&self) -> bool {
        self.sealer_changed.load(Ordering::Relaxed)
    }

    /// Takes the rows for this program's own: for a caller that has sealed a sample of them again
    /// and got the same digests.
    pub fn adopt_sealer(&self) {
        let _order = self.commit.lock();
        let result = self.with_database(|database| guarded(|| write_sealer(database)));
        match result {
            Some(Err(reason)) => self.turn_off(reason),
            _ => self.sealer_changed.store(false, Ordering::Relaxed),
        }
    }

    /// What was found when the file was opened, or why it is off by now.
    pub fn condition(&self) -> CacheCondition {
        self.condition.read().clone()
    }

    fn off(mac: RowMac, reason: String) -> Self {
        Self {
            database: RwLock::new(None),
            committed: RwLock::new(None),
            waiting: RwLock::default(),
            commit: Mutex::new(false),
            condition: RwLock::new(CacheCondition::Off { reason }),
            sealer_changed: AtomicBool::new(false),
            mac,
        }
    }

    fn turn_off(&self, reason: String) {
        *self.condition.write() = CacheCondition::Off { reason };
        *self.waiting.write() = Waiting::default();
        let (committed, database) = (self.committed.write().take(), self.database.write().take());
        // Closing writes, and what made redb fail before can make it fail here.
        let _ = guarded(|| {
            drop((committed, database));
            Ok(())
        });
    }

    fn with_database<T>(&self, act: impl FnOnce(&Database) -> T) -> Option<T> {
        self.database.read().as_ref().map(act)
    }

    fn write_rows(
        &self,
        database: &Database,
        rows: &HashMap<ChunkId, CacheRow>,
        durable: bool,
    ) -> Result<(), String> {
        // In key order, neighbouring rows go to the same page one after another.
        let mut sorted: Vec<_> = rows.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        guarded(|| {
            let mut transaction = database.begin_write()?;
            if durable {
                transaction.set_durability(Durability::Immediate)?;
                transaction.set_quick_repair(true);
            } else {
                transaction.set_durability(Durability::None)?;
            }
            let mut table = transaction.open_table(ROWS)?;
            for (id, row) in sorted {
                table.insert(id.as_bytes(), &self.mac.seal(id, row))?;
            }
            drop(table);
            Ok(transaction.commit()?)
        })?;
        *self.committed.write() = read_rows(database);
        Ok(())
    }
}

impl CacheScope {
    fn encode(&self) -> [u8; SCOPE_BYTES] {
        let mut scope = [0; SCOPE_BYTES];
        let parts =
            self.repository.0.into_iter().chain(self.namespace.0).chain(self.epoch.to_le_bytes());
        scope.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        scope
    }
}

impl RowMac {
    fn of(&self, id: &ChunkId, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(self.keys.cache_mac_key());
        hasher.update(id.as_bytes()).update(body).update(&self.scope);
        let mut mac = [0; MAC_BYTES];
        hasher.finalize_xof().fill(&mut mac);
        mac
    }

    fn seal(&self, id: &ChunkId, row: &CacheRow) -> [u8; ROW_BYTES] {
        let length = row.envelope_bytes.to_le_bytes();
        let mut value = [0; ROW_BYTES];
        let (body, mac) = value.split_at_mut(ROW_BYTES - MAC_BYTES);
        let parts = row.digest.0.into_iter().chain(length);
        body.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        mac.copy_from_slice(&self.of(id, body));
        value
    }

    fn open(&self, id: &ChunkId, value: &[u8; ROW_BYTES]) -> Option<CacheRow> {
        let (body, mac) = value.split_last_chunk::<MAC_BYTES>()?;
        let (digest, length) = body.split_first_chunk::<{ SealedDigest::BYTES }>()?;
        if self.of(id, body) != *mac {
            return None;
        }
        let envelope_bytes = u32::from_le_bytes(length.try_into().ok()?);
        Some(CacheRow { digest: SealedDigest(*digest), envelope_bytes })
    }
}

fn sealer_name() -> String {
    format!("strongroom {} zstd {}", env!("CARGO_PKG_VERSION"), zstd_version())
}

/// Runs `act`; an error or a panic of redb comes back as text.
fn guarded<T>(act: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the file is damaged".into()),
    }
}

/// Opens or creates the file and checks its header.
fn open_file(
    path: &Path,
    scope: &[u8; SCOPE_BYTES],
    memory_bytes: usize,
) -> Result<Opened, OpenFailure> {
    let unusable = |reason: String| OpenFailure::Unusable(reason);
    // The mode of a file that redb makes would be everybody's.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| unusable(error.to_string()))?;
    let mut is_busy = false;
    let database = guarded(|| {
        let opened = Builder::new().set_cache_size(memory_bytes).create(path);
        is_busy = matches!(
            opened,
            Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch)
        );
        Ok(opened?)
    });
    if is_busy {
        return Err(OpenFailure::Busy);
    }
    let database = database.map_err(unusable)?;
    let header = guarded(|| read_header(&database)).map_err(unusable)?;
    let is_new = header.is_none();
    let sealer_changed = match header {
        None => {
            guarded(|| write_header(&database, scope)).map_err(unusable)?;
            false
        }
        Some(header) if header.scope != scope => {
            return Err(unusable("it belongs to another repository, namespace or epoch".into()));
        }
        Some(header) => header.sealer != sealer_name().as_bytes(),
    };
    Ok(Opened { database, is_new, sealer_changed })
}

fn reopen(
    path: &Path,
    scope: &[u8; SCOPE_BYTES],
    memory_bytes: usize,
) -> Result<Opened, CacheError> {
    open_file(path, scope, memory_bytes).map_err(|failure| CacheError {
        path: path.to_owned(),
        reason: match failure {
            OpenFailure::Busy => "another process has it open".into(),
            OpenFailure::Unusable(reason) => reason,
        },
    })
}

/// Moves the file out of the way, over one that was set aside before.
fn set_aside(path: &Path) -> Result<(), CacheError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".set-aside");
    match std::fs::rename(path, &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CacheError { path: path.to_owned(), reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// Nothing where the file is new.
fn read_header(database: &Database) -> Result<Option<Header>, redb::Error> {
    let transaction = database.begin_read()?;
    let header = match transaction.open_table(HEADER) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        header => header?,
    };
    transaction.open_table(ROWS)?;
    let field = |name: &str| -> Result<Vec<u8>, redb::Error> {
        Ok(header.get(name)?.map(|value| value.value().to_vec()).unwrap_or_default())
    };
    Ok(Some(Header { scope: field("scope")?, sealer: field("sealer")? }))
}

fn write_header(database: &Database, scope: &[u8; SCOPE_BYTES]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(ROWS)?;
    let mut header = transaction.open_table(HEADER)?;
    header.insert("scope", scope.as_slice())?;
    header.insert("sealer", sealer_name().as_bytes())?;
    drop(header);
    Ok(transaction.commit()?)
}

fn write_sealer(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(HEADER)?.insert("sealer", sealer_name().as_bytes())?;
    Ok(transaction.commit()?)
}

/// The rows as of now; nothing where they cannot be read, which the next write reports.
fn read_rows(database: &Database) -> Option<ReadOnlyTable<RowKey, RowValue>> {
    guarded(|| Ok(database.begin_read()?.open_table(ROWS)?)).ok()
}

#[cfg(test)]
mod tests;
