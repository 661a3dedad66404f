//! Packs: files of envelopes and records, of bounded size, each with a table at its end.
//!
//! 1. `packs/N.new` is written, then its table, then synced. *Crash: the next export writes over
//!    it.*
//! 2. It is renamed to `packs/N.pack`, and the folder synced. *From here on it is whole, and the
//!    next export goes on behind it, whether a manifest names it or not.*
//!
//! Numbers have no gaps, and items stand in the order in which they were written: children before
//! their nodes, the record of a snapshot after its tree. So whoever has a record in packs 0 to N
//! has its tree there too.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use strongroom_protocol::id::{NamespaceId, PublicKey};
use strongroom_protocol::limits::{REPLICA_NAMESPACES_MAX, SEED_PACK_ITEMS_MAX};
use strongroom_protocol::seed::{
    PACK_END_BYTES, PACK_HEAD_BYTES, PackItem, PackTable, SeedPack, pack_end, pack_head,
    read_pack_end,
};

use super::{bad, names_in};
use crate::durable;
use crate::error::ServerError;

const BUFFER_BYTES: usize = 1 << 20;
const DAMAGED: &str = "the pack is damaged; copy it again from where it was exported to, or remove \
                       all of the export and export again";

/// Writes packs, one after the other.
pub struct PackWriter {
    folder: PathBuf,
    ledger_key: PublicKey,
    pack_bytes: u64,
    packs: Vec<SeedPack>,
    open: Option<OpenPack>,
    /// Bytes of items in all packs that this writer finished.
    written_bytes: u64,
}

struct OpenPack {
    temporary: PathBuf,
    file: BufWriter<File>,
    table: PackTable,
    item_bytes: u64,
}

impl PackWriter {
    /// Goes on behind the packs that are there; a pack ends at `pack_bytes`.
    pub fn new(
        folder: &Path,
        ledger_key: PublicKey,
        packs: Vec<SeedPack>,
        pack_bytes: u64,
    ) -> Self {
        let (folder, open) = (folder.to_path_buf(), None);
        Self { folder, ledger_key, pack_bytes, packs, open, written_bytes: 0 }
    }

    /// Adds an item.
    pub fn add(
        &mut self,
        namespace: &NamespaceId,
        kind: u8,
        digest: [u8; 32],
        bytes: &[u8],
    ) -> Result<(), ServerError> {
        let number = self.packs.len();
        let mut open = match self.open.take() {
            Some(open) => open,
            None => OpenPack::begin(&self.folder, number, &self.ledger_key)?,
        };
        let which = match open.table.namespaces.iter().rposition(|known| known == namespace) {
            Some(which) => which,
            None => {
                open.table.namespaces.push(*namespace);
                open.table.namespaces.len().saturating_sub(1)
            }
        };
        let too_long = |_| ServerError::Bug("an item is too long for a pack".into());
        let length = u32::try_from(bytes.len()).map_err(too_long)?;
        let which = u32::try_from(which).map_err(too_long)?;
        open.table.items.push(PackItem { namespace: which, kind, length, digest });
        open.file.write_all(bytes).map_err(|error| open.failed(error))?;
        open.item_bytes = open.item_bytes.saturating_add(u64::from(length));
        let full = |count: usize, max: u32| u32::try_from(count).map_or(true, |n| n >= max);
        let is_full = open.item_bytes >= self.pack_bytes
            || full(open.table.items.len(), SEED_PACK_ITEMS_MAX)
            || full(open.table.namespaces.len(), REPLICA_NAMESPACES_MAX);
        self.open = Some(open);
        if is_full { self.finish() } else { Ok(()) }
    }

    /// Ends the pack under way: what was added so far is whole and durable then.
    pub fn finish(&mut self) -> Result<(), ServerError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let table = open.table.encode();
        let ended = open.file.write_all(&table).and_then(|()| {
            open.file.write_all(&pack_end(&table))?;
            open.file.flush()
        });
        ended.map_err(|error| open.failed(error))?;
        let path = pack_file(&self.folder, self.packs.len());
        durable::publish(open.file.get_ref(), &open.temporary, &path)?;
        self.packs.push(open.table.pack());
        self.written_bytes = self.written_bytes.saturating_add(open.item_bytes);
        Ok(())
    }

    /// All packs, with those that were there before.
    pub fn packs(&self) -> &[SeedPack] {
        &self.packs
    }

    /// Bytes of items in packs that this writer finished.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}

impl OpenPack {
    fn begin(folder: &Path, number: usize, ledger_key: &PublicKey) -> Result<Self, ServerError> {
        let temporary = pack_file(folder, number).with_extension("new");
        let fail = |error| ServerError::file(format!("write {}", temporary.display()), error);
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&temporary).map_err(fail)?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        file.write_all(&pack_head(ledger_key)).map_err(fail)?;
        Ok(Self { temporary, file, table: PackTable::default(), item_bytes: 0 })
    }

    fn failed(&self, error: std::io::Error) -> ServerError {
        ServerError::file(format!("write {}", self.temporary.display()), error)
    }
}

/// Where a pack stands.
pub fn pack_file(folder: &Path, number: usize) -> PathBuf {
    folder.join("packs").join(format!("{number:08}.pack"))
}

/// Numbers of the packs in a folder, which have no gaps, and names of other files there.
pub fn list(folder: &Path) -> Result<(usize, Vec<String>), ServerError> {
    let (mut count, mut others) = (0usize, Vec::new());
    for name in names_in(&folder.join("packs"))? {
        match name.strip_suffix(".pack").and_then(|number| number.parse::<usize>().ok()) {
            Some(number) if number == count => count = count.saturating_add(1),
            Some(number) if number > count => {
                return Err(bad(&pack_file(folder, count), "the pack is missing"));
            }
            _ => others.push(name),
        }
    }
    Ok((count, others))
}

/// Opens a pack and reads its table, which must be the one that `wanted` says, if it is known; the
/// items are not looked at.
pub fn open(
    folder: &Path,
    number: usize,
    ledger_key: &PublicKey,
    wanted: Option<&SeedPack>,
) -> Result<(File, PackTable), ServerError> {
    let path = pack_file(folder, number);
    let fail = |error| ServerError::file(format!("read {}", path.display()), error);
    let mut file = File::open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => bad(&path, "the pack is missing"),
        _ => fail(error),
    })?;
    let file_bytes = file.metadata().map_err(fail)?.len();
    if wanted.is_some_and(|wanted| wanted.file_bytes != file_bytes) {
        return Err(bad(&path, format!("{file_bytes} bytes are not its length; {DAMAGED}")));
    }
    let mut head = [0; PACK_HEAD_BYTES];
    file.read_exact(&mut head).map_err(|_| bad(&path, DAMAGED))?;
    if head[..] != pack_head(ledger_key) {
        return Err(bad(&path, "not a pack of this server; name another folder"));
    }
    let end_at = file_bytes.checked_sub(PACK_END_BYTES as u64);
    let end_at = end_at.ok_or_else(|| bad(&path, DAMAGED))?;
    let mut end = [0; PACK_END_BYTES];
    file.read_exact_at(&mut end, end_at).map_err(fail)?;
    let (table_bytes, digest) = read_pack_end(&end).map_err(|_| bad(&path, DAMAGED))?;
    let table_at = end_at.checked_sub(u64::from(table_bytes));
    let table_at = table_at.ok_or_else(|| bad(&path, DAMAGED))?;
    let mut table = vec![0; usize::try_from(table_bytes).unwrap_or(0)];
    file.read_exact_at(&mut table, table_at).map_err(fail)?;
    let is_wanted = wanted.is_none_or(|wanted| wanted.table == digest);
    if blake3::hash(&table) != digest || !is_wanted {
        return Err(bad(&path, DAMAGED));
    }
    let table = PackTable::decode(&table).map_err(|error| bad(&path, error))?;
    if table.pack().file_bytes != file_bytes {
        return Err(bad(&path, DAMAGED));
    }
    Ok((file, table))
}
