//! What an auditor does: reads the ledger, checks all of it, proves one snapshot from it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{NamespaceId, PrincipalId, PublicKey, RecordDigest, to_hex};
use strongroom_protocol::message::NamespaceRow;
use strongroom_protocol::policy::Policy;
use strongroom_protocol::receipt::Receipt;
use strongroom_protocol::route::Route;

use crate::clock::Moment;
use crate::durable;
use crate::error::ClientError;
use crate::history;
use crate::ledger_reader::LedgerReader;
use crate::ledger_words::{kind_of, record_of, words_of};
use crate::profile::{ConnectOptions, Profile};
use crate::proof_file::{
    LEAVES_MAX, PROOF_FILE_MAX_BYTES, ProofFile, Proven, ProvenLeaf, is_change,
};
use crate::snapshot;
use crate::transport::Body;
use crate::trust::{ReadAccess, find_namespace};
use crate::vouches::VouchCheck;

/// One entry; the objects that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogRow {
    /// Its place in the ledger.
    pub index: u64,
    /// The server's wall clock, milliseconds since 1970.
    pub server_time_ms: u64,
    /// The retention clock, seconds since 1970.
    pub retention_time_seconds: u64,
    /// Who caused it; zeros for commands given on the server.
    pub actor: PrincipalId,
    /// Where; zeros for the whole repository.
    pub namespace: NamespaceId,
    /// The namespace's name, where it has one.
    pub namespace_name: Option<String>,
    /// The kind of event.
    pub event: &'static str,
    /// The snapshot that it is about.
    pub snapshot: Option<RecordDigest>,
    /// What happened, in plain words.
    pub text: String,
}

/// What a check of the whole ledger found; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerSummary {
    /// Entries.
    pub size: u64,
    /// Root, in hexadecimal digits.
    pub root: String,
    /// Origin of the ledger.
    pub origin: String,
    /// The size that was remembered here before.
    pub remembered_size: u64,
    /// Tiles and entry bundles that were read.
    pub tile_count: u64,
    /// Commits among the entries.
    pub commit_count: u64,
    /// Roll-overs of principals' keys, each of which the key before vouched for.
    pub vouched_count: u64,
    /// Number of the server's newest TLS key; they rise by one.
    pub tls_serial: u64,
    /// Entries of a newer server, whose words this program does not know.
    pub unknown_count: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// What was proven, and where it stands; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProveSummary {
    /// The file.
    pub path: PathBuf,
    /// What it proves.
    #[serde(flatten)]
    pub proven: Proven,
}

/// What a proof file proves; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckSummary {
    /// The ledger key was compared with one that was given.
    pub is_key_given: bool,
    /// What it proves.
    #[serde(flatten)]
    pub proven: Proven,
}

/// Gives entries `from` and later, in order; an `Ok` is the proof that all of them were signed.
pub async fn log(
    profile: &mut Profile,
    connect: &ConnectOptions,
    from: u64,
    each: &mut (dyn FnMut(LogRow) -> Result<(), ClientError> + Send),
) -> Result<Checkpoint, ClientError> {
    let client = history::connect(profile, connect).await?;
    let names: Vec<NamespaceRow> = client.json(&Route::Namespaces, "", None::<&()>).await?;
    let reader = LedgerReader::new(client, newest(profile)?);
    let mut give = |index: u64, bytes: &[u8]| each(row_of(index, bytes, &names));
    reader.walk(from, &mut give).await?;
    Ok(reader.head().clone())
}

fn row_of(index: u64, bytes: &[u8], names: &[NamespaceRow]) -> LogRow {
    let Ok(entry) = Entry::decode(bytes) else {
        return LogRow {
            index,
            server_time_ms: 0,
            retention_time_seconds: 0,
            actor: PrincipalId([0; 16]),
            namespace: NamespaceId([0; 32]),
            namespace_name: None,
            event: "unknown",
            snapshot: None,
            text: "wrote what only a newer strongroom can read".into(),
        };
    };
    let known = names.iter().find(|row| row.namespace == entry.namespace);
    LogRow {
        index,
        server_time_ms: entry.server_time_ms,
        retention_time_seconds: entry.retention_time_seconds,
        actor: entry.actor,
        namespace: entry.namespace,
        namespace_name: known.map(|row| row.name.to_string()),
        event: kind_of(&entry.event),
        snapshot: record_of(&entry.event),
        text: words_of(&entry),
    }
}

/// The words that an entry holds the digest of; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// Number of the entry.
    pub entry: u64,
    /// As they were given; a policy as JSON.
    pub words: String,
    /// Their BLAKE3, which `audit log` shows for reasons, meanings and policies.
    pub digest: String,
}

/// Asks for the words of an entry. The server could make them up: compare the digest with that of
/// the entry in `audit log`.
pub async fn statement(
    profile: &mut Profile,
    connect: &ConnectOptions,
    entry: u64,
) -> Result<Statement, ClientError> {
    let client = history::connect(profile, connect).await?;
    let bytes = client.request(&Route::Statement(entry), "", Body::empty()).await?;
    let words = match Policy::decode(&bytes) {
        Ok(policy) => serde_json::to_string(&policy)
            .map_err(|error| ClientError::Bug(format!("policy: {error}")))?,
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    };
    Ok(Statement { entry, words, digest: blake3::hash(&bytes).to_string() })
}

/// Reads all of the ledger and recomputes it from its entries.
pub async fn verify(
    profile: &mut Profile,
    connect: &ConnectOptions,
) -> Result<LedgerSummary, ClientError> {
    let since = Moment::now();
    let remembered = profile.remembered()?;
    let client = history::connect(profile, connect).await?;
    let reader = LedgerReader::new(client, newest(profile)?);
    let (mut commit_count, mut unknown_count) = (0u64, 0u64);
    let mut keys = VouchCheck::new(profile.settings().ledger_key);
    // It is told after the check that the entries are what was signed.
    let mut unvouched = None;
    let mut count = |index: u64, bytes: &[u8]| {
        match Entry::decode(bytes) {
            Ok(entry) => {
                commit_count += u64::from(matches!(entry.event, Event::Committed { .. }));
                if unvouched.is_none() {
                    unvouched = keys.take(index, &entry).err();
                }
            }
            Err(_) => unknown_count += 1,
        }
        Ok(())
    };
    let remembered_size = remembered.as_ref().map_or(0, |seen| seen.size);
    let check = reader.check_whole(remembered_size, &mut count).await?;
    if let Some(seen) = remembered
        && check.watched_root != Some(seen.root)
    {
        return Err(ClientError::History(format!(
            "does not have the root that was seen at {} entries",
            seen.size
        )));
    }
    if let Some(error) = unvouched {
        return Err(error);
    }
    let head = reader.head();
    Ok(LedgerSummary {
        size: head.size,
        root: to_hex(&head.root),
        origin: head.origin.clone(),
        remembered_size,
        tile_count: check.tile_count,
        commit_count,
        vouched_count: keys.vouched_count(),
        tls_serial: keys.tls_serial(),
        unknown_count,
        elapsed_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Writes the proof of one snapshot to a file that must not be there yet.
pub async fn prove(
    profile: &mut Profile,
    connect: &ConnectOptions,
    namespace: &str,
    name: &str,
    to: &Path,
) -> Result<ProveSummary, ClientError> {
    let client = history::connect(profile, connect).await?;
    let namespace = find_namespace(&client, namespace).await?;
    // A whole id needs no list, which does not have what was forgotten.
    let record = match name.parse::<RecordDigest>() {
        Ok(record) => record,
        Err(_) => {
            let access =
                ReadAccess::with_server_profile(profile, &namespace.to_string(), connect).await?;
            snapshot::find(&access, name).await?.snapshot
        }
    };
    let route = Route::Receipt(namespace, record);
    let receipt = Receipt::decode(&client.request(&route, "", Body::empty()).await?)?;
    history::confirm(profile, &client, &receipt.checkpoint).await?;
    let reader = LedgerReader::new(client, newest(profile)?);
    let leaves = gather(&reader, receipt.leaf_index, namespace, record).await?;
    let proofs = reader.prove(&leaves).await?;
    let leaves = leaves.into_iter().zip(proofs).map(|((index, entry), proof)| ProvenLeaf {
        index,
        entry,
        proof,
    });
    let file = ProofFile {
        ledger_key: profile.settings().ledger_key,
        leaves: leaves.collect(),
        checkpoint: profile.settings().checkpoint.clone().unwrap_or_default(),
    };
    let text = file.to_text()?;
    let proven = ProofFile::check(&text)?;
    if proven.snapshot != record {
        return Err(ClientError::Untrusted(
            "the server proves another snapshot than the one asked for; tell whoever runs it"
                .into(),
        ));
    }
    durable::create(to, text.as_bytes())?;
    Ok(ProveSummary { path: to.to_path_buf(), proven })
}

/// Checks a proof file, without any server or profile.
pub fn check(path: &Path, ledger_key: Option<PublicKey>) -> Result<CheckSummary, ClientError> {
    let bytes = durable::read(path, PROOF_FILE_MAX_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| {
        ClientError::Untrusted("the proof does not hold: it is not text; ask for a new one".into())
    })?;
    let proven = ProofFile::check(&text)?;
    if ledger_key.is_some_and(|wanted| wanted != proven.ledger_key) {
        return Err(ClientError::Untrusted(format!(
            "the proof is of another ledger, with key {}: compare where your key comes from",
            proven.ledger_key
        )));
    }
    Ok(CheckSummary { is_key_given: ledger_key.is_some(), proven })
}

/// The commit, all later entries that change what keeps the snapshot, and the newest entry; the
/// ledger was read and verified to its end for it.
async fn gather(
    reader: &LedgerReader,
    leaf: u64,
    namespace: NamespaceId,
    record: RecordDigest,
) -> Result<Vec<(u64, Vec<u8>)>, ClientError> {
    let last = reader.head().size.saturating_sub(1);
    let mut leaves = Vec::new();
    let mut keep = |index: u64, bytes: &[u8]| {
        let is_about = Entry::decode(bytes).is_ok_and(|entry| {
            entry.namespace == namespace
                && record_of(&entry.event) == Some(record)
                && is_change(&entry.event)
        });
        if is_about || index == leaf || index == last {
            leaves.push((index, bytes.to_vec()));
        }
        Ok(())
    };
    reader.walk(leaf, &mut keep).await?;
    if u32::try_from(leaves.len()).map_or(true, |count| count > LEAVES_MAX) {
        return Err(ClientError::Usage(format!(
            "the lock of this snapshot was changed more than {LEAVES_MAX} times: hand out the \
             whole ledger instead (strongroom audit log)"
        )));
    }
    Ok(leaves)
}

/// The checkpoint that was just proven and remembered.
fn newest(profile: &Profile) -> Result<Checkpoint, ClientError> {
    let newest = profile.remembered()?;
    newest.ok_or_else(|| ClientError::Bug("no checkpoint after it was remembered".into()))
}
