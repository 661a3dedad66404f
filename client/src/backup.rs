//! A backup from beginning to end: one source, one snapshot.
//!
//! 1. Fetch and verify the newest descriptor; check the ledger's checkpoint against the last one.
//! 2. Commit the record that an earlier run may have left behind.
//! 3. Open the source, then a session; read, cut, seal, ask and upload (`pipeline`, `uploader`).
//! 4. Wait for the source's verdict: a command that failed makes no snapshot.
//! 5. Sign and commit the record (`commit`).
//!
//! Nothing is visible to a reader before 5. What was uploaded and not committed is asked about by
//! the next run and not sent again while the server has it. A file is read again from its start
//! when a session is lost, which is quick because the cache knows its chunks; a stream cannot be,
//! so the run fails and says that running it again re-sends only what is missing.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use serde::Serialize;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{Label, RecordDigest};
use strongroom_protocol::limits::{PRIVATE_ITEMS_MAX, PRIVATE_TEXT_MAX_BYTES};
use strongroom_protocol::message::SizeClass;
use strongroom_protocol::record::PrivateFields;
use strongroom_protocol::retention::{LockWanted, RetentionMode};
use strongroom_protocol::role::Role;
use tokio::sync::oneshot;

use crate::arguments::end_of;
use crate::budget::{
    self, CACHE_BYTES, LARGE_SOURCE_NICENESS, Layout, PEEK_BYTES, QUESTION_MIN_COUNT,
    SMALL_QUESTION_MIN_COUNT, SMALL_SOURCE_BYTES, SMALL_UPLOAD_BYTES, UPLOAD_BYTES,
};
use crate::cache::{Cache, CacheCondition, CacheScope};
use crate::cache_writer::CacheWriter;
use crate::clock::Moment;
use crate::commit::{self, Statement, finish_pending, host_name, position_after};
use crate::durable;
use crate::error::ClientError;
use crate::files::collect::Collected;
use crate::history;
use crate::keys::{EpochKeys, PlaintextKeys};
use crate::parts::PartRead;
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::profile::{ConnectOptions, Profile};
use crate::progress::Monitor;
use crate::receipts::Committed;
use crate::session::Session;
use crate::source::{Content, OpenSource, Source, SourceEnd};
use crate::transport::Client;
use crate::trust::fetch_descriptor;
use crate::uploader::{Acknowledged, UploadOptions, Uploader};

/// How often a file is read again from its start because its session was lost.
const RESTARTS_MAX: u32 = 5;

/// What a user chooses for a snapshot.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Name of what is backed up.
    pub source: Label,
    /// Retention to ask for, in seconds; 0 takes the namespace's default.
    pub lock_wanted: LockWanted,
    /// Words to find it by; sealed.
    pub tags: Vec<String>,
    /// How to reach the server.
    pub connect: ConnectOptions,
    /// Worker threads; as many as there are cores where nothing is said.
    pub worker_count: Option<usize>,
    /// What of the client cache to use.
    pub cache: CacheUse,
}

impl BackupOptions {
    /// The default for a snapshot of `source`.
    pub fn new(source: Label, connect: ConnectOptions) -> Self {
        Self {
            source,
            lock_wanted: LockWanted::Default,
            tags: Vec::new(),
            connect,
            worker_count: None,
            cache: CacheUse::Keep,
        }
    }
}

/// What a run does with the client cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheUse {
    /// Look up what was sealed before, and remember what is sealed now.
    Keep,
    /// Leave it to others: one process at a time can have it open.
    Leave,
}

/// What came of it; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupSummary {
    /// The snapshot.
    pub snapshot: RecordDigest,
    /// What was backed up.
    pub source: Label,
    /// Its number in its source.
    pub sequence: u64,
    /// Bytes of the dump.
    pub plaintext_bytes: u64,
    /// Chunks of the snapshot, with multiplicity.
    pub chunk_count: u64,
    /// Bytes of all envelopes of the snapshot, with multiplicity.
    pub sealed_bytes: u64,
    /// Chunks that were sent.
    pub sent_chunk_count: u64,
    /// Nodes that were sent.
    pub sent_node_count: u64,
    /// Bytes of envelopes that were sent.
    pub sent_sealed_bytes: u64,
    /// Bytes of all request bodies, questions included.
    pub sent_bytes: u64,
    /// Bytes of the dump that the server had already.
    pub deduplicated_bytes: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// The server's clock at the commit, milliseconds since 1970.
    pub committed_ms: u64,
    /// End of the lock, seconds since 1970; nothing for a lock without end.
    pub locked_until_seconds: Option<u64>,
    /// Mode of the lock.
    pub mode: RetentionMode,
    /// The file changed while it was read: the dump may not be of one moment.
    pub changed_while_read: bool,
    /// Everything that was to be read was read as it was.
    pub is_complete: bool,
    /// Files of a tree or a set; nothing for a single file or stream.
    pub tree: Option<Collected>,
    /// Parts of a set, in the order in which they were read.
    pub parts: Vec<PartRead>,
    /// How often the source was read again because a session was lost.
    pub restart_count: u32,
    /// The server was asked nothing, because it was caught lying before.
    pub distrusted: bool,
    /// A snapshot that an earlier run had left uncommitted, and this one committed first.
    pub recovered_snapshot: Option<RecordDigest>,
}

/// Backs `source` up with an enrolled profile of role `backup`.
pub async fn run(
    profile: &mut Profile,
    source: &mut Source,
    options: &BackupOptions,
    monitor: &Monitor,
) -> Result<BackupSummary, ClientError> {
    let since = Moment::now();
    let mut writer = Writer::prepare(profile, options).await?;
    writer.snapshot(source, since, monitor).await
}

/// How an attempt goes about it.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The server's "have" is believed, as far as it can prove it.
    trusts: bool,
    request_bytes: usize,
    question_count: usize,
    niceness: i32,
}

impl Pace {
    /// A small source is to be there soon; a large one must not disturb.
    fn of(size_class: SizeClass, distrusted: bool) -> Self {
        let trusts = !distrusted;
        match size_class {
            SizeClass::Small => Self {
                trusts,
                request_bytes: SMALL_UPLOAD_BYTES,
                question_count: SMALL_QUESTION_MIN_COUNT,
                niceness: 0,
            },
            SizeClass::Stream => Self {
                trusts,
                request_bytes: UPLOAD_BYTES,
                question_count: QUESTION_MIN_COUNT,
                niceness: LARGE_SOURCE_NICENESS,
            },
        }
    }
}

/// What stays the same over all snapshots of a run, and all attempts at one.
pub struct Writer<'a> {
    profile: &'a mut Profile,
    options: &'a BackupOptions,
    client: Client,
    descriptor: VerifiedDescriptor,
    keys: EpochKeys,
    cache: Arc<Cache>,
    cache_writer: CacheWriter,
    recovered: Option<RecordDigest>,
}

impl<'a> Writer<'a> {
    /// Steps 1 and 2: nothing is read of a source yet.
    pub async fn prepare(
        profile: &'a mut Profile,
        options: &'a BackupOptions,
    ) -> Result<Self, ClientError> {
        check_texts(&options.tags)?;
        if profile.settings().role != Role::Backup {
            return Err(ClientError::Usage(format!(
                "a profile of role {} cannot make backups: use one of role backup (--profile)",
                profile.settings().role
            )));
        }
        let client = history::connect(profile, &options.connect).await?;
        let descriptor = fetch_descriptor(profile, &client).await?;
        let (namespace, contents) = (descriptor.namespace(), descriptor.contents());
        let secret = profile.convergence_secret()?;
        let keys = EpochKeys::of_descriptor(&descriptor, &secret);
        let keys = keys.ok_or_else(|| ClientError::epoch_ended(contents.epoch))?;
        let repository = profile.settings().ledger_key;
        let scope = CacheScope { repository, namespace, epoch: contents.epoch };
        let cache = Arc::new(open_cache(profile, scope, keys.plaintext(), options.cache)?);
        let cache_writer = CacheWriter::start(cache.clone())?;
        let recovered = finish_pending(profile, &client, &options.source).await?;
        let recovered = recovered.map(|committed| committed.record);
        Ok(Self { profile, options, client, descriptor, keys, cache, cache_writer, recovered })
    }

    /// Steps 3 to 5: one snapshot of `source`, which took since `since`.
    pub async fn snapshot(
        &mut self,
        source: &mut Source,
        since: Moment,
        monitor: &Monitor,
    ) -> Result<BackupSummary, ClientError> {
        let sent_before = self.client.sent_bytes();
        let marker = self.profile.folder().path("distrust");
        let mut distrusted = marker.exists();
        let mut restart_count = 0;
        let (committed, acknowledged, end) = loop {
            let error = match self.attempt(source, distrusted, monitor).await {
                Ok(outcome) => break outcome,
                Err(error) => error,
            };
            if matches!(error, ClientError::Unproven(_)) {
                tracing::error!("{error}");
                durable::write(&marker, b"")?;
                self.cache.clear();
            }
            let may_restart = match &error {
                ClientError::Unproven(_) => !distrusted,
                ClientError::SessionLost(_) => restart_count < RESTARTS_MAX,
                _ => false,
            };
            if !may_restart || !source.can_restart() {
                return Err(error);
            }
            tracing::warn!("{}; reading the source again from its start", error.reason());
            distrusted = marker.exists();
            restart_count += 1;
            monitor.restart();
        };
        if distrusted {
            durable::remove(&marker)?;
        }
        let elapsed_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(BackupSummary {
            snapshot: committed.record,
            source: committed.body.source,
            sequence: committed.body.sequence,
            plaintext_bytes: acknowledged.data_bytes,
            chunk_count: committed.body.totals.chunk_count,
            sealed_bytes: committed.body.totals.sealed_bytes,
            sent_chunk_count: acknowledged.counts.sent_chunk_count,
            sent_node_count: acknowledged.counts.sent_node_count,
            sent_sealed_bytes: acknowledged.sent_sealed_bytes,
            sent_bytes: self.client.sent_bytes().saturating_sub(sent_before),
            deduplicated_bytes: acknowledged.counts.deduplicated_bytes,
            elapsed_ms,
            committed_ms: committed.committed_ms,
            locked_until_seconds: end_of(&committed.lock),
            mode: committed.lock.mode,
            changed_while_read: end.changed,
            is_complete: committed.body.complete,
            tree: end.tree,
            parts: end.parts,
            restart_count,
            distrusted,
            recovered_snapshot: self.recovered.take(),
        })
    }

    /// Reads the source once, and commits it.
    async fn attempt(
        &mut self,
        source: &mut Source,
        distrusted: bool,
        monitor: &Monitor,
    ) -> Result<(Committed, Acknowledged, SourceEnd), ClientError> {
        let mut source = source.open()?;
        check_texts(&source.command)?;
        let size_class = declare_size(&mut source).await?;
        let label = &self.options.source;
        let wanted = self.options.lock_wanted;
        let namespace = self.descriptor.namespace();
        let session = Session::open(&self.client, namespace, label, size_class, wanted).await?;
        let renewal = session.keep_alive();
        let pace = Pace::of(size_class, distrusted);
        let outcome = self.upload_and_commit(&session, source, pace, monitor).await;
        drop(renewal);
        if outcome.is_err() {
            session.close().await;
        }
        outcome
    }

    fn pipeline_options(&self, pace: Pace) -> PipelineOptions {
        let contents = self.descriptor.contents();
        let cores = self.options.worker_count.unwrap_or_else(budget::cores);
        PipelineOptions {
            keys: self.keys.plaintext().clone(),
            sizes: contents.chunk_sizes,
            codec: contents.codec,
            cache: self.cache.clone(),
            new_rows: self.cache_writer.new_rows(),
            use_cache: pace.trusts,
            layout: Layout::new(contents.chunk_sizes, cores).nice(pace.niceness),
        }
    }

    async fn upload_and_commit(
        &mut self,
        session: &Session,
        source: OpenSource,
        pace: Pace,
        monitor: &Monitor,
    ) -> Result<(Committed, Acknowledged, SourceEnd), ClientError> {
        let OpenSource { content, size_hint, command, paths, mut guard } = source;
        let label = &self.options.source;
        let head = session.opened().head.as_ref().map(|head| head.0.as_slice());
        let position = position_after(self.profile, label, head)?;
        let contents = self.descriptor.contents();
        let by_size = size_hint.unwrap_or(0) / u64::from(contents.chunk_sizes.average);
        let upload_options = UploadOptions {
            ask: pace.trusts,
            request_bytes: pace.request_bytes,
            question_count: pace.question_count,
            expected_chunk_count: by_size.max(position.previous_chunk_count),
        };
        monitor.set_total(size_hint.unwrap_or(0));
        let pipeline_options = self.pipeline_options(pace);
        let feed = content.into_feed(contents.chunk_sizes.average);
        let pipeline = Pipeline::start(feed, &pipeline_options)?;
        let keys = self.keys.plaintext();
        let uploader = Uploader::new(session.clone(), pipeline, keys, &upload_options, monitor);
        let acknowledged = Box::pin(uploader.run()).await?;
        self.cache_writer.flush();
        let end = guard.finish().await?;
        if end.changed {
            tracing::warn!("the file changed while it was read: the dump may not be of one moment");
        }
        let statement = Statement {
            lock_wanted: self.options.lock_wanted,
            complete: end.is_complete(),
            private: PrivateFields {
                host: host_name(),
                command,
                paths,
                exit_code: 0,
                standard_error: end.standard_error.clone(),
                plaintext_bytes: acknowledged.data_bytes,
                catalogue_bytes: acknowledged.catalogue_bytes(),
                tags: self.options.tags.clone(),
            },
        };
        let committed = commit::commit(
            self.profile,
            session,
            &self.descriptor,
            &self.keys,
            label,
            &acknowledged.root,
            statement,
        )
        .await?;
        if self.cache.sealer_changed() && !acknowledged.sealer_differs {
            self.cache.adopt_sealer();
        }
        Ok((committed, acknowledged, end))
    }
}

fn open_cache(
    profile: &Profile,
    scope: CacheScope,
    keys: &PlaintextKeys,
    cache_use: CacheUse,
) -> Result<Cache, ClientError> {
    if cache_use == CacheUse::Leave {
        return Ok(Cache::none(scope, keys));
    }
    let path = profile.folder().path("cache.redb");
    let cache = Cache::open(&path, scope, keys, CACHE_BYTES)
        .map_err(|error| ClientError::Usage(error.to_string()))?;
    match cache.condition() {
        CacheCondition::Replaced { reason } => {
            tracing::warn!("client cache: started anew ({reason}); this run is slower");
        }
        CacheCondition::Off { reason } => {
            tracing::warn!("client cache: not used ({reason}); this run is slower");
        }
        CacheCondition::Opened | CacheCondition::Created => {}
    }
    Ok(cache)
}

/// Finds out whether the session will be a small one; a stream's start is read for that.
async fn declare_size(source: &mut OpenSource) -> Result<SizeClass, ClientError> {
    if let Some(bytes) = source.size_hint {
        let is_small = bytes <= SMALL_SOURCE_BYTES;
        return Ok(if is_small { SizeClass::Small } else { SizeClass::Stream });
    }
    let Content::Single(reader, _) = &mut source.content else { return Ok(SizeClass::Stream) };
    let reader = std::mem::replace(reader, Box::new(io::empty()));
    // Not one of the runtime's own threads: a stream that hangs must not hold up the exit.
    let (sender, receiver) = oneshot::channel();
    let peek = move || drop(sender.send(peek(reader)));
    std::thread::Builder::new()
        .name("peek".into())
        .spawn(peek)
        .map_err(|error| ClientError::file("start a thread", error))?;
    let peeked = receiver.await.map_err(|_| ClientError::Bug("peek thread ended".into()))?;
    let (reader, is_whole) = peeked.map_err(|error| ClientError::file("read the source", error))?;
    if let Content::Single(place, _) = &mut source.content {
        *place = reader;
    }
    Ok(if is_whole { SizeClass::Small } else { SizeClass::Stream })
}

/// Reads the start of a stream; gives all of it back, and whether that was everything.
fn peek(mut reader: Box<dyn Read + Send>) -> io::Result<(Box<dyn Read + Send>, bool)> {
    let limit = u64::try_from(PEEK_BYTES).unwrap_or(u64::MAX);
    // All of it at once, so that growing leaves no holes in the heap; what is not read costs
    // nothing.
    let mut start = Vec::with_capacity(PEEK_BYTES);
    reader.by_ref().take(limit).read_to_end(&mut start)?;
    let is_whole = start.len() < PEEK_BYTES;
    Ok((Box::new(Peeked { start: start.into(), rest: reader }), is_whole))
}

/// A stream whose start was read before; its memory goes when it has been read again.
struct Peeked {
    start: VecDeque<u8>,
    rest: Box<dyn Read + Send>,
}

impl Read for Peeked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start.is_empty() {
            return self.rest.read(buffer);
        }
        let count = self.start.read(buffer)?;
        if self.start.is_empty() {
            self.start = VecDeque::new();
        }
        Ok(count)
    }
}

/// Refuses before anything is sent what no record could hold.
fn check_texts(texts: &[String]) -> Result<(), ClientError> {
    let fits = |length: usize, max: u32| u32::try_from(length).is_ok_and(|length| length <= max);
    let is_good = fits(texts.len(), PRIVATE_ITEMS_MAX)
        && texts.iter().all(|text| fits(text.len(), PRIVATE_TEXT_MAX_BYTES));
    if is_good {
        return Ok(());
    }
    Err(ClientError::Usage("command line or tags are too long for a record: shorten them".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peeked_stream_gives_everything_once() {
        for length in [0, 10, PEEK_BYTES - 1, PEEK_BYTES, PEEK_BYTES + 10] {
            let bytes: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[1]).collect();
            let (mut reader, is_whole) = peek(Box::new(io::Cursor::new(bytes.clone()))).unwrap();
            assert_eq!(is_whole, length < PEEK_BYTES);
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            assert!(back == bytes, "{length}");
        }
    }
}
