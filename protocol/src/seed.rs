//! An export: files that bring what a server has to another one, carried by hand.
//!
//! ```text
//! manifest = "SRSM" | ledger key(32) | u32 n, n x text namespace wanted (rising; none: all)
//!          | u32 m, m x (ns_id(32) | text name | DescriptorDigest(32))       ns_ids rising
//!          | u32 p, p x (file bytes u64 | BLAKE3(table)(32))                 packs from 0 on
//!          | text checkpoint | BLAKE3(all before)(32)
//! pack     = "SRSK" | ledger key(32) | items | table | u32 bytes of the table | BLAKE3(table)(32)
//! table    = "SRST" | u32 k, k x ns_id(32)
//!          | u32 n, n x (u32 which ns_id | kind u8 | u32 length | digest(32))
//! ```
//!
//! Items are envelopes and records as they are, one after the other, as the table lists them. The
//! kind of an envelope is its level, and its digest the SealedDigest; the kind of a record is 255,
//! and its digest the RecordDigest. Nothing here is signed but the checkpoint, and nothing needs to
//! be: everything that is taken out of an export is proven by what it is.

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::{DescriptorDigest, Label, NamespaceId, PublicKey};
use crate::limits::{
    CHECKPOINT_MAX_BYTES, ENVELOPE_MAX_BYTES, LABEL_MAX_BYTES, LEVEL_MAX, PRIMARY_FILTER_MAX,
    RECORD_MAX_BYTES, REPLICA_NAMESPACES_MAX, SEED_MANIFEST_MAX_BYTES, SEED_PACK_ITEMS_MAX,
    SEED_PACKS_MAX, SEED_TABLE_MAX_BYTES,
};

const MANIFEST: &str = "manifest of an export";
const TABLE: &str = "table of a pack";
const PACK_MAGIC: &[u8; 4] = b"SRSK";
const CHECK_BYTES: usize = 32;
/// The kind of a record.
pub const KIND_RECORD: u8 = 255;
/// Bytes before the first item of a pack.
pub const PACK_HEAD_BYTES: usize = 36;
/// Bytes after the table of a pack.
pub const PACK_END_BYTES: usize = 36;

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The ledger key of the server that made it.
    pub ledger_key: PublicKey,
    /// Names of the namespaces that were asked for, rising; none, where all were.
    pub only: Vec<Label>,
    /// The namespaces, by their ids.
    pub namespaces: Vec<SeedNamespace>,
    /// The packs, by their numbers.
    pub packs: Vec<SeedPack>,
    /// The signed head of the ledger up to which all is here.
    pub checkpoint: String,
}

/// A namespace of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedNamespace {
    /// Its id.
    pub namespace: NamespaceId,
    /// Its name on the server that made the export.
    pub name: Label,
    /// Its descriptor, which is a file of its own.
    pub descriptor: DescriptorDigest,
}

/// A pack of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeedPack {
    /// Length of the file.
    pub file_bytes: u64,
    /// BLAKE3 of its table.
    pub table: [u8; 32],
}

/// What a pack holds, in the order in which it stands there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackTable {
    /// Namespaces that the items belong to.
    pub namespaces: Vec<NamespaceId>,
    /// The items.
    pub items: Vec<PackItem>,
}

/// An envelope or a record in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackItem {
    /// Which namespace of the table.
    pub namespace: u32,
    /// Level of an envelope, or [`KIND_RECORD`].
    pub kind: u8,
    /// Bytes.
    pub length: u32,
    /// SealedDigest or RecordDigest.
    pub digest: [u8; 32],
}

impl Manifest {
    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"SRSM");
        out.raw(&self.ledger_key.0).count(self.only.len());
        for name in &self.only {
            out.bytes(name.as_str().as_bytes());
        }
        out.count(self.namespaces.len());
        for namespace in &self.namespaces {
            out.raw(&namespace.namespace.0).bytes(namespace.name.as_str().as_bytes());
            out.raw(&namespace.descriptor.0);
        }
        out.count(self.packs.len());
        for pack in &self.packs {
            out.u64(pack.file_bytes).raw(&pack.table);
        }
        out.bytes(self.checkpoint.as_bytes());
        let mut bytes = out.finish();
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        bytes
    }

    /// Decodes a manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > SEED_MANIFEST_MAX_BYTES) {
            return Err(DecodeError::TooLong(MANIFEST));
        }
        let (fields, check) =
            bytes.split_last_chunk::<CHECK_BYTES>().ok_or(DecodeError::Short(MANIFEST))?;
        if blake3::hash(fields) != *check {
            return Err(DecodeError::Value("manifest of an export (bytes changed)"));
        }
        let mut reader = Reader::new(MANIFEST, fields);
        reader.magic(b"SRSM")?;
        let ledger_key = PublicKey(reader.array()?);
        let mut only: Vec<Label> = Vec::new();
        for _ in 0..reader.count(PRIMARY_FILTER_MAX)? {
            let name = read_label(&mut reader)?;
            if only.last().is_some_and(|last| *last >= name) {
                return reader.refuse();
            }
            only.push(name);
        }
        let mut namespaces: Vec<SeedNamespace> = Vec::new();
        for _ in 0..reader.count(REPLICA_NAMESPACES_MAX)? {
            let namespace = NamespaceId(reader.array()?);
            if namespaces.last().is_some_and(|last| last.namespace >= namespace) {
                return reader.refuse();
            }
            let name = read_label(&mut reader)?;
            let descriptor = DescriptorDigest(reader.array()?);
            namespaces.push(SeedNamespace { namespace, name, descriptor });
        }
        let mut packs = Vec::new();
        for _ in 0..reader.count(SEED_PACKS_MAX)? {
            packs.push(SeedPack { file_bytes: reader.u64()?, table: reader.array()? });
        }
        let checkpoint = reader.text(CHECKPOINT_MAX_BYTES)?.to_owned();
        reader.finish()?;
        Ok(Self { ledger_key, only, namespaces, packs, checkpoint })
    }
}

impl PackTable {
    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"SRST");
        out.count(self.namespaces.len());
        for namespace in &self.namespaces {
            out.raw(&namespace.0);
        }
        out.count(self.items.len());
        for item in &self.items {
            out.u32(item.namespace).u8(item.kind).u32(item.length).raw(&item.digest);
        }
        out.finish()
    }

    /// Decodes a table.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if u32::try_from(bytes.len()).map_or(true, |length| length > SEED_TABLE_MAX_BYTES) {
            return Err(DecodeError::TooLong(TABLE));
        }
        let mut reader = Reader::new(TABLE, bytes);
        reader.magic(b"SRST")?;
        let mut namespaces = Vec::new();
        let namespace_count = reader.count(REPLICA_NAMESPACES_MAX)?;
        for _ in 0..namespace_count {
            namespaces.push(NamespaceId(reader.array()?));
        }
        let mut items = Vec::new();
        for _ in 0..reader.count(SEED_PACK_ITEMS_MAX)? {
            let item = PackItem {
                namespace: reader.u32()?,
                kind: reader.u8()?,
                length: reader.u32()?,
                digest: reader.array()?,
            };
            let longest = match item.kind {
                KIND_RECORD => RECORD_MAX_BYTES,
                level if level <= LEVEL_MAX => ENVELOPE_MAX_BYTES,
                _ => return reader.refuse(),
            };
            if item.namespace >= namespace_count || item.length == 0 || item.length > longest {
                return reader.refuse();
            }
            items.push(item);
        }
        reader.finish()?;
        Ok(Self { namespaces, items })
    }

    /// Length of a pack with these items, head, table and end included, and BLAKE3 of the table.
    pub fn pack(&self) -> SeedPack {
        let table = self.encode();
        let around = PACK_HEAD_BYTES.saturating_add(table.len()).saturating_add(PACK_END_BYTES);
        let around = u64::try_from(around).unwrap_or(u64::MAX);
        let items = self.items.iter().map(|item| u64::from(item.length));
        let file_bytes = items.fold(around, u64::saturating_add);
        SeedPack { file_bytes, table: *blake3::hash(&table).as_bytes() }
    }
}

/// The beginning of a pack.
pub fn pack_head(ledger_key: &PublicKey) -> Vec<u8> {
    let mut head = Writer::with_magic(PACK_MAGIC);
    head.raw(&ledger_key.0);
    head.finish()
}

/// The end of a pack with this table.
pub fn pack_end(table: &[u8]) -> Vec<u8> {
    let mut end = Writer::default();
    end.count(table.len()).raw(blake3::hash(table).as_bytes());
    end.finish()
}

/// Length and BLAKE3 of the table, as the end of a pack says them.
pub fn read_pack_end(end: &[u8]) -> Result<(u32, [u8; 32]), DecodeError> {
    let mut reader = Reader::new("end of a pack", end);
    let (length, digest) = (reader.count(SEED_TABLE_MAX_BYTES)?, reader.array()?);
    reader.finish()?;
    Ok((length, digest))
}

fn read_label(reader: &mut Reader<'_>) -> Result<Label, DecodeError> {
    reader.text(LABEL_MAX_BYTES)?.parse().map_err(|_| DecodeError::Value(MANIFEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let namespace = |id: u8, name: &str| SeedNamespace {
            namespace: NamespaceId([id; 32]),
            name: name.parse().unwrap(),
            descriptor: DescriptorDigest([9; 32]),
        };
        Manifest {
            ledger_key: PublicKey([1; 32]),
            only: vec!["erp".parse().unwrap(), "files".parse().unwrap()],
            namespaces: vec![namespace(2, "files"), namespace(3, "erp")],
            packs: vec![SeedPack { file_bytes: 5, table: [4; 32] }],
            checkpoint: "note".into(),
        }
    }

    #[test]
    fn a_manifest_comes_back_and_notices_every_changed_byte() {
        let bytes = manifest().encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Manifest::decode(&changed).is_err(), "byte {at}");
            assert!(Manifest::decode(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn lists_have_one_order() {
        let only = |m: &mut Manifest| m.only.reverse();
        let namespaces = |m: &mut Manifest| m.namespaces.reverse();
        for change in [only as fn(&mut Manifest), namespaces] {
            let mut other = manifest();
            change(&mut other);
            assert!(Manifest::decode(&other.encode()).is_err());
        }
        let mut twice = manifest();
        twice.only[1] = twice.only[0].clone();
        assert!(Manifest::decode(&twice.encode()).is_err());
    }

    #[test]
    fn a_table_comes_back_and_refuses_what_cannot_be() {
        let item = PackItem { namespace: 0, kind: 0, length: 568, digest: [5; 32] };
        let of = |item| PackTable { namespaces: vec![NamespaceId([2; 32])], items: vec![item] };
        let table = of(item);
        assert_eq!(PackTable::decode(&table.encode()), Ok(table.clone()));
        let encoded = table.encode();
        let bytes = PACK_HEAD_BYTES + 568 + encoded.len() + PACK_END_BYTES;
        assert_eq!(table.pack().file_bytes, bytes as u64);
        let end = read_pack_end(&pack_end(&encoded)).unwrap();
        assert_eq!(end, (encoded.len() as u32, table.pack().table));
        for bad in [
            PackItem { namespace: 1, ..item },
            PackItem { kind: LEVEL_MAX + 1, ..item },
            PackItem { length: 0, ..item },
            PackItem { length: ENVELOPE_MAX_BYTES + 1, ..item },
            PackItem { kind: KIND_RECORD, length: RECORD_MAX_BYTES + 1, ..item },
        ] {
            assert!(PackTable::decode(&of(bad).encode()).is_err(), "{bad:?}");
        }
        assert_eq!(pack_head(&PublicKey([1; 32])).len(), PACK_HEAD_BYTES);
    }
}
