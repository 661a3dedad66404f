//! `meta/`: small rows in families, always through the write-ahead log.
//!
//! A batch is whole or absent after a crash, and batches reach the disk in the order in which they
//! were written: if a later one survives, so do all earlier ones. That order is what the commit
//! steps rest on. `write` makes rows visible at once; only `sync` makes them durable. The log is
//! never switched off, and a failed write or sync poisons the store.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rocksdb::properties::LIVE_SST_FILES_SIZE;
use rocksdb::{
    Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, FlushOptions,
    Options, ReadOptions, WriteBatch,
};

use super::engine;
use super::error::StoreError;
use super::observer::{Observer, Step};
use super::poison::Poison;
use super::schema::{Family, prefix_end};

/// Key and value of a row.
pub type Row = (Vec<u8>, Vec<u8>);
/// Takes key and value of one row after the other, until it breaks off.
pub type EachRow<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Rows to be written together, or not at all.
#[derive(Debug, Default, Clone)]
pub struct MetaBatch {
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
struct Change {
    /// Of a family that the store alone writes, and put there by the store.
    is_own: bool,
    family: Family,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl MetaBatch {
    /// An empty batch.
    pub fn new() -> Self {
        MetaBatch::default()
    }

    /// Sets a row.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), Some(value.into()));
        self.changes.push(Change { is_own: false, family, key, value });
    }

    /// Sets or removes a row of any family; for the store alone.
    pub(super) fn change_own(&mut self, family: Family, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.changes.push(Change { is_own: true, family, key, value });
    }

    /// Adds the changes of another batch.
    pub fn append(&mut self, other: MetaBatch) {
        self.changes.extend(other.changes);
    }

    /// Keys of the rows of a family that are set.
    pub fn keys_set(&self, family: Family) -> impl Iterator<Item = &[u8]> {
        let set = move |change: &&Change| change.family == family && change.value.is_some();
        self.changes.iter().filter(set).map(|change| change.key.as_slice())
    }

    /// Removes a row.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.changes.push(Change { is_own: false, family, key: key.into(), value: None });
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// True if nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// The open database `meta/`.
pub(super) struct Meta {
    db: DB,
    poison: Arc<Poison>,
    observer: Arc<dyn Observer>,
}

impl Meta {
    pub(super) fn open(
        path: &Path,
        cache: &Cache,
        poison: &Arc<Poison>,
        observer: &Arc<dyn Observer>,
    ) -> Result<Meta, StoreError> {
        refuse_unknown_families(path)?;
        let families = Family::ALL.map(|family| {
            ColumnFamilyDescriptor::new(family.name(), engine::family_options(family, cache))
        });
        let db = DB::open_cf_descriptors(&engine::meta_options(poison), path, families)
            .map_err(|error| StoreError::engine("open meta", &error))?;
        Ok(Meta { db, poison: poison.clone(), observer: observer.clone() })
    }

    pub(super) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db
            .get_cf(self.family(family)?, key)
            .map_err(|error| StoreError::engine("read meta", &error))
    }

    /// Values of `keys`, which must be sorted, in their order.
    pub(super) fn get_sorted<T>(
        &self,
        family: Family,
        keys: &[[u8; 36]],
        mut decode: impl FnMut(&[u8; 36], &[u8]) -> Result<T, StoreError>,
    ) -> Result<Vec<Option<T>>, StoreError> {
        let handle = self.family(family)?;
        let options = engine::point_read_options();
        let mut values = Vec::with_capacity(keys.len());
        for some_keys in keys.chunks(LOOKUP_BATCH_COUNT) {
            let found = self.db.batched_multi_get_cf_opt(handle, some_keys, true, &options);
            for (key, value) in some_keys.iter().zip(found) {
                let value = value.map_err(|error| StoreError::engine("read meta", &error))?;
                values.push(value.map(|value| decode(key, &value)).transpose()?);
            }
        }
        Ok(values)
    }

    /// Calls `each` for every row whose key begins with `prefix` and is at least `start`, in order.
    pub(super) fn scan(
        &self,
        family: Family,
        prefix: &[u8],
        start: Option<&[u8]>,
        each: &mut EachRow<'_>,
    ) -> Result<(), StoreError> {
        let handle = self.family(family)?;
        let mut rows = self.db.raw_iterator_cf_opt(handle, prefix_read_options(prefix));
        rows.seek(start.unwrap_or(prefix).max(prefix));
        while let Some((key, value)) = rows.item() {
            if each(key, value).is_break() {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| StoreError::engine("scan meta", &error))
    }

    /// The last row whose key begins with `prefix`.
    pub(super) fn last(&self, family: Family, prefix: &[u8]) -> Result<Option<Row>, StoreError> {
        let handle = self.family(family)?;
        let mut rows = self.db.raw_iterator_cf_opt(handle, prefix_read_options(prefix));
        rows.seek_to_last();
        rows.status().map_err(|error| StoreError::engine("scan meta", &error))?;
        let row = rows.item().filter(|(key, _)| key.starts_with(prefix));
        Ok(row.map(|(key, value)| (key.to_vec(), value.to_vec())))
    }

    /// Writes rows of families that belong to callers.
    pub(super) fn write(&self, batch: &MetaBatch) -> Result<(), StoreError> {
        let foreign = |change: &&Change| change.family.is_reserved() && !change.is_own;
        if let Some(change) = batch.changes.iter().find(foreign) {
            return Err(StoreError::ReservedFamily(change.family.name()));
        }
        self.write_own(batch, Step::MetaWritten)
    }

    /// Writes rows of any family; `step` says what is done then.
    pub(super) fn write_own(&self, batch: &MetaBatch, step: Step) -> Result<(), StoreError> {
        let mut rows = WriteBatch::default();
        for change in &batch.changes {
            let handle = self.family(change.family)?;
            match &change.value {
                Some(value) => rows.put_cf(handle, &change.key, value),
                None => rows.delete_cf(handle, &change.key),
            }
        }
        self.write_rows(&rows, step)
    }

    /// Writes a batch of the engine; `step` says what is done then.
    pub(super) fn write_rows(&self, rows: &WriteBatch, step: Step) -> Result<(), StoreError> {
        self.poison.check()?;
        let began = self.observer.monotonic();
        let result = self.db.write_opt(rows, &engine::write_options());
        self.poison.guard(result.map_err(|error| StoreError::engine("write meta", &error)))?;
        self.observer.meta_written(self.observer.monotonic().saturating_sub(began));
        self.observer.step(step);
        Ok(())
    }

    /// Makes everything written before durable. A failure is final: no retry.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.poison.check()?;
        let began = self.observer.monotonic();
        let result = self.db.flush_wal(true);
        self.poison.guard(result.map_err(|error| StoreError::engine("sync meta", &error)))?;
        self.observer.synced(self.observer.monotonic().saturating_sub(began));
        self.observer.step(Step::MetaSynced);
        Ok(())
    }

    /// Size of a family's tables; no file is looked at.
    pub(super) fn table_bytes(&self, family: Family) -> Result<u64, StoreError> {
        let bytes = self.db.property_int_value_cf(self.family(family)?, LIVE_SST_FILES_SIZE);
        Ok(bytes.map_err(|error| StoreError::engine("measure meta", &error))?.unwrap_or(0))
    }

    /// Writes what only the log holds to tables. A failure is final: no retry.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.poison.check()?;
        let families: Vec<_> =
            Family::ALL.into_iter().map(|family| self.family(family)).collect::<Result<_, _>>()?;
        let result = self.db.flush_cfs_opt(&families, &FlushOptions::default());
        self.poison.guard(result.map_err(|error| StoreError::engine("flush meta", &error)))
    }

    /// Handle of a family; all of them are made at open.
    pub(super) fn family(&self, family: Family) -> Result<&ColumnFamily, StoreError> {
        self.db.cf_handle(family.name()).ok_or(StoreError::Invalid("family is not open"))
    }
}

/// A newer program may have families that this one does not know. (A folder that cannot be listed
/// is new, or is refused when it is opened.)
fn refuse_unknown_families(path: &Path) -> Result<(), StoreError> {
    let known = |name: &String| {
        name == DEFAULT_COLUMN_FAMILY_NAME || Family::ALL.iter().any(|family| family.name() == name)
    };
    let there = DB::list_cf(&Options::default(), path).unwrap_or_default();
    match there.into_iter().find(|name| !known(name)) {
        Some(family) => Err(StoreError::FamilyUnknown { family }),
        None => Ok(()),
    }
}

/// Keys that one lookup hands to the engine: enough to share work between neighbours, few enough
/// to keep what it pins small.
const LOOKUP_BATCH_COUNT: usize = 512;

fn prefix_read_options(prefix: &[u8]) -> ReadOptions {
    let mut options = engine::point_read_options();
    if let Some(end) = prefix_end(prefix) {
        options.set_iterate_upper_bound(end);
    }
    options
}
