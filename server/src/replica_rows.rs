//! Rows of `meta/` that belong to replication.
//!
//! | family | key | value |
//! |---|---|---|
//! | primaries | name | [`PrimaryRow`] |
//! | primaries | `+`, ledger key(32) | [`PrimaryRow`] of a server whose exports were taken in |
//! | pending | ledger key of the primary(32), leaf u64 | [`PendingRow`] |

use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::entry::{read_lock, write_lock};
use strongroom_protocol::id::{
    Label, NamespaceId, PrincipalId, PublicKey, RecordDigest, TlsKeyDigest,
};
use strongroom_protocol::limits::{
    ADDRESS_MAX_BYTES, CHECKPOINT_MAX_BYTES, LABEL_MAX_BYTES, PRIMARY_FILTER_MAX, PROOF_HASHES_MAX,
    RECORD_MAX_BYTES,
};
use strongroom_protocol::merkle::Frontier;
use strongroom_protocol::retention::Lock;

const WHAT: &str = "primary row";

/// How a primary is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// This server dials it: `host:port`, several with commas.
    Dialled(String),
    /// It dials, and lends its connections.
    Lent,
    /// Not at all: its exports are taken in.
    Carried,
}

/// A server that this one follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrimaryRow {
    /// Its name here.
    pub name: Label,
    /// How it is reached.
    pub reach: Reach,
    /// Pin of its TLS key; of the key that it dials with, where it lends its connections.
    pub tls_key: TlsKeyDigest,
    /// Its ledger's key, which names it everywhere.
    pub ledger_key: PublicKey,
    /// What this server is enrolled as there; what the primary is enrolled as here, where it lends
    /// its connections.
    pub principal: PrincipalId,
    /// Namespaces that are followed, by their names there; all, where it is empty.
    pub only: Vec<Label>,
    /// Nothing is asked while it is set.
    pub is_paused: bool,
    /// Its history is not the one that was seen; nothing is asked while it is set.
    pub is_refused: bool,
    /// Newest checkpoint that was proven to continue all before; empty before the first.
    pub checkpoint: String,
    /// The ledger up to the position: all entries before it are taken over.
    pub followed: Frontier,
    /// The latest time of its retention clock that an entry showed, seconds since 1970.
    pub clock_seconds: u64,
    /// Something was taken over since the own ledger named the primary's last.
    pub owes_entry: bool,
    /// Entries before this were read once before, with `had` as the filter: of them, only those of
    /// namespaces are taken over that were not followed then.
    pub reread_to: u64,
    /// Namespaces that were followed before; all, where it is empty.
    pub had: Vec<Label>,
    /// Namespaces of which entries were passed over, and that are taken again.
    pub readmitted: Vec<NamespaceId>,
    /// Namespaces that the primary goes on with, and of which entries were passed over: they were
    /// dropped here, or moved here and enough of them is set aside.
    pub passed: Vec<NamespaceId>,
    /// It is not followed, only asked for what is damaged here.
    pub is_repair_only: bool,
    /// Number of its TLS key there; 0 where it is not known.
    pub tls_serial: u64,
}

/// A primary for as long as this server is enrolled there in one way: whoever follows it must not
/// write into the row of another that was added under the same name since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The primary's name here.
    pub name: Label,
    /// What this server is enrolled as there.
    pub principal: PrincipalId,
    /// The ledger key, where it is not followed but its exports are taken in: that is a row of its
    /// own, so that neither moves the other's position.
    pub origin: Option<PublicKey>,
}

/// A snapshot of a primary whose tree is not here yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRow {
    /// Where.
    pub namespace: NamespaceId,
    /// Which.
    pub record_digest: RecordDigest,
    /// Its lock there, as of the position.
    pub lock: Lock,
    /// It was forgotten there since.
    pub is_forgotten: bool,
    /// It was committed there after the namespace had moved to this server: it is not fetched as
    /// long as the namespace stays.
    pub is_set_aside: bool,
    /// The verified record; empty where the primary did not give it.
    pub record: Vec<u8>,
}

impl PrimaryRow {
    /// A primary of which nothing is followed yet, with all its namespaces.
    pub fn new(
        name: Label,
        reach: Reach,
        tls_key: TlsKeyDigest,
        ledger_key: PublicKey,
        principal: PrincipalId,
    ) -> Self {
        Self {
            name,
            reach,
            tls_key,
            ledger_key,
            principal,
            only: Vec::new(),
            is_paused: false,
            is_refused: false,
            checkpoint: String::new(),
            followed: Frontier::default(),
            clock_seconds: 0,
            owes_entry: false,
            reread_to: 0,
            had: Vec::new(),
            readmitted: Vec::new(),
            passed: Vec::new(),
            is_repair_only: false,
            tls_serial: 0,
        }
    }

    /// Whether an entry at `leaf` is taken over that is of a namespace with this name there. One
    /// that the primary does not list is: so nothing is passed over because a list was short.
    pub fn wants(&self, leaf: u64, namespace: &NamespaceId, name: Option<&Label>) -> bool {
        let is_among =
            |names: &[Label]| names.is_empty() || name.is_none_or(|name| names.contains(name));
        let is_known = || is_among(&self.had) && !self.readmitted.contains(namespace);
        is_among(&self.only) && (leaf >= self.reread_to || !is_known())
    }

    /// Key of a primary.
    pub fn key(name: &Label) -> Vec<u8> {
        name.as_str().as_bytes().to_vec()
    }

    /// Key of the row of exports.
    pub fn import_key(ledger_key: &PublicKey) -> Vec<u8> {
        [&b"+"[..], &ledger_key.0].concat()
    }

    /// Whether the row is that of exports.
    pub fn is_import(&self) -> bool {
        self.reach == Reach::Carried
    }

    /// The primary as it was enrolled at.
    pub fn enrolment(&self) -> Enrolment {
        let origin = self.is_import().then_some(self.ledger_key);
        Enrolment { name: self.name.clone(), principal: self.principal, origin }
    }

    /// Who stands in this server's ledger for what a primary caused: an id that no enrolment gives.
    pub fn actor(&self) -> PrincipalId {
        derived_id("strongroom v1 primary", &self.ledger_key.0)
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RPM4");
        out.bytes(self.name.as_str().as_bytes());
        match &self.reach {
            Reach::Dialled(addresses) => out.u8(1).bytes(addresses.as_bytes()),
            Reach::Lent => out.u8(2),
            Reach::Carried => out.u8(3),
        };
        out.raw(&self.tls_key.0).raw(&self.ledger_key.0).raw(&self.principal.0);
        write_labels(&mut out, &self.only);
        out.bool(self.is_paused).bool(self.is_refused).bytes(self.checkpoint.as_bytes());
        out.count(self.followed.subtrees().len());
        for (height, hash) in self.followed.subtrees() {
            out.u32(*height).raw(hash);
        }
        out.u64(self.clock_seconds).bool(self.owes_entry).u64(self.reread_to);
        write_labels(&mut out, &self.had);
        for ids in [&self.readmitted, &self.passed] {
            out.count(ids.len());
            for id in ids {
                out.raw(&id.0);
            }
        }
        out.bool(self.is_repair_only).u64(self.tls_serial);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        // Rows of before: nothing behind `owes` in the first, addresses alone in the first two, no
        // number of a key in all three.
        let version =
            bytes.first_chunk().filter(|magic| [b"RPM1", b"RPM2", b"RPM3"].contains(magic));
        reader.magic(version.unwrap_or(b"RPM4"))?;
        let is_short = version == Some(b"RPM1");
        let name = read_label(&mut reader)?;
        let reach = match version {
            None | Some(b"RPM3") => read_reach(&mut reader)?,
            Some(_) => match reader.text(ADDRESS_MAX_BYTES)? {
                "" => Reach::Carried,
                addresses => Reach::Dialled(addresses.to_owned()),
            },
        };
        let tls_key = TlsKeyDigest(reader.array()?);
        let ledger_key = PublicKey(reader.array()?);
        let principal = PrincipalId(reader.array()?);
        let only = read_labels(&mut reader)?;
        let (is_paused, is_refused) = (reader.bool()?, reader.bool()?);
        let checkpoint = reader.text(CHECKPOINT_MAX_BYTES)?.to_owned();
        let mut followed = Frontier::default();
        for _ in 0..reader.count(PROOF_HASHES_MAX)? {
            followed.push(reader.u32()?, reader.array()?);
        }
        let (clock_seconds, owes_entry) = (reader.u64()?, reader.bool()?);
        let (mut reread_to, mut had) = (0, Vec::new());
        let (mut readmitted, mut passed, mut is_repair_only) = (Vec::new(), Vec::new(), false);
        if !is_short {
            (reread_to, had) = (reader.u64()?, read_labels(&mut reader)?);
            (readmitted, passed) = (read_ids(&mut reader)?, read_ids(&mut reader)?);
            is_repair_only = reader.bool()?;
        }
        let tls_serial = if version.is_none() { reader.u64()? } else { 0 };
        reader.finish()?;
        Ok(Self {
            name,
            reach,
            tls_key,
            ledger_key,
            principal,
            only,
            is_paused,
            is_refused,
            checkpoint,
            followed,
            clock_seconds,
            owes_entry,
            reread_to,
            had,
            readmitted,
            passed,
            is_repair_only,
            tls_serial,
        })
    }
}

impl Enrolment {
    /// Key of the row.
    pub fn row_key(&self) -> Vec<u8> {
        match &self.origin {
            Some(ledger_key) => PrimaryRow::import_key(ledger_key),
            None => PrimaryRow::key(&self.name),
        }
    }
}

impl PendingRow {
    /// Key of what entry `leaf` of a primary's ledger committed.
    pub fn key(primary: &PublicKey, leaf: u64) -> Vec<u8> {
        [&primary.0[..], &leaf.to_be_bytes()].concat()
    }

    /// The leaf in a key.
    pub fn leaf_of(key: &[u8]) -> Result<u64, DecodeError> {
        let bytes = key.last_chunk::<8>().ok_or(DecodeError::Short("pending key"))?;
        Ok(u64::from_be_bytes(*bytes))
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RPN2");
        out.raw(&self.namespace.0).raw(&self.record_digest.0);
        write_lock(&mut out, &self.lock);
        out.bool(self.is_forgotten).bool(self.is_set_aside).bytes(&self.record);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("pending row", bytes);
        reader.magic(b"RPN2")?;
        let row = Self {
            namespace: NamespaceId(reader.array()?),
            record_digest: RecordDigest(reader.array()?),
            lock: read_lock(&mut reader)?,
            is_forgotten: reader.bool()?,
            is_set_aside: reader.bool()?,
            record: reader.bytes(RECORD_MAX_BYTES)?.to_vec(),
        };
        reader.finish()?;
        Ok(row)
    }
}

/// Under which id the head of a replicated source is kept: not the writer's own, whose chain here
/// is another.
pub fn replicated_writer(primary: &PublicKey, writer: &PrincipalId) -> PrincipalId {
    derived_id("strongroom v1 replicated head", &[&primary.0[..], &writer.0].concat())
}

fn derived_id(context: &str, material: &[u8]) -> PrincipalId {
    let digest = blake3::derive_key(context, material);
    let mut id = [0; 16];
    id.copy_from_slice(digest.first_chunk::<16>().unwrap_or(&[0; 16]));
    PrincipalId(id)
}

fn write_labels(out: &mut Writer, labels: &[Label]) {
    out.count(labels.len());
    for label in labels {
        out.bytes(label.as_str().as_bytes());
    }
}

fn read_labels(reader: &mut Reader<'_>) -> Result<Vec<Label>, DecodeError> {
    (0..reader.count(PRIMARY_FILTER_MAX)?).map(|_| read_label(reader)).collect()
}

fn read_ids(reader: &mut Reader<'_>) -> Result<Vec<NamespaceId>, DecodeError> {
    (0..reader.count(PRIMARY_FILTER_MAX)?).map(|_| Ok(NamespaceId(reader.array()?))).collect()
}

fn read_reach(reader: &mut Reader<'_>) -> Result<Reach, DecodeError> {
    Ok(match reader.u8()? {
        1 => Reach::Dialled(reader.text(ADDRESS_MAX_BYTES)?.to_owned()),
        2 => Reach::Lent,
        3 => Reach::Carried,
        _ => return reader.refuse(),
    })
}

fn read_label(reader: &mut Reader<'_>) -> Result<Label, DecodeError> {
    reader.text(LABEL_MAX_BYTES)?.parse().map_err(|_| DecodeError::Value("label"))
}

#[cfg(test)]
mod tests {
    use strongroom_protocol::retention::RetentionMode;

    use super::*;

    #[test]
    fn rows_come_back() {
        let mut followed = Frontier::default();
        for leaf in 0..11 {
            followed.push(0, [leaf; 32]);
        }
        let reach = Reach::Dialled("10.0.0.1:7443".into());
        let (tls_key, ledger_key) = (TlsKeyDigest([1; 32]), PublicKey([2; 32]));
        let name = "head-office".parse().unwrap();
        let bare = PrimaryRow {
            only: vec!["erp".parse().unwrap()],
            is_paused: true,
            checkpoint: "note".into(),
            followed,
            clock_seconds: 4,
            owes_entry: true,
            ..PrimaryRow::new(name, reach, tls_key, ledger_key, PrincipalId([3; 16]))
        };
        let row = PrimaryRow {
            reread_to: 9,
            had: vec!["files".parse().unwrap(), "mail".parse().unwrap()],
            readmitted: vec![NamespaceId([7; 32])],
            passed: vec![NamespaceId([8; 32]), NamespaceId([9; 32])],
            is_repair_only: true,
            tls_serial: 5,
            ..bare.clone()
        };
        let back = PrimaryRow::decode(&row.encode()).unwrap();
        assert_eq!(back, row);
        assert_eq!(back.followed.root(), row.followed.root());
        for reach in [Reach::Lent, Reach::Carried] {
            let other = PrimaryRow { reach, ..row.clone() };
            assert_eq!(PrimaryRow::decode(&other.encode()).unwrap(), other);
        }
        // Rows of before.
        let row = PrimaryRow { tls_serial: 0, ..row };
        let mut third = row.encode();
        third.truncate(third.len() - 8);
        third[3] = b'3';
        assert_eq!(PrimaryRow::decode(&third).unwrap(), row);
        let at_reach = 4 + 4 + row.name.as_str().len();
        let mut second = third;
        second.remove(at_reach);
        second[3] = b'2';
        assert_eq!(PrimaryRow::decode(&second).unwrap(), row);
        let carried = PrimaryRow { reach: Reach::Carried, ..bare.clone() };
        let mut first = carried.encode();
        first.truncate(first.len() - 8 - 3 * 4 - 1 - 8);
        first.splice(at_reach..=at_reach, [0; 4]);
        first[3] = b'1';
        assert_eq!(PrimaryRow::decode(&first).unwrap(), carried);
        let pending = PendingRow {
            namespace: NamespaceId([5; 32]),
            record_digest: RecordDigest([6; 32]),
            lock: Lock {
                mode: RetentionMode::Compliance,
                until_seconds: 7,
                until_wall_seconds: 8,
                is_held: true,
            },
            is_forgotten: true,
            is_set_aside: true,
            record: vec![9; 100],
        };
        assert_eq!(PendingRow::decode(&pending.encode()).unwrap(), pending);
        assert_eq!(PendingRow::leaf_of(&PendingRow::key(&row.ledger_key, 77)), Ok(77));
    }
}
