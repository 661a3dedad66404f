//! Moves a run's chunks and nodes to the server: ask, prove, send, in that order.
//!
//! One task owns all state; requests run beside it and come back as replies. For each chunk:
//!
//! 1. Ask "have", in batches, for what the cache knows and for what was just sealed.
//! 2. A "have" that the sampler picks must be proven; a wrong proof ends the run.
//! 3. A "lack" is sealed (where it is not yet) and sent, some MiB a request.
//! 4. Settled chunks leave the window in stream order and make nodes; nodes are asked about too,
//!    and sent in the order in which they were made, one request at a time.
//!
//! A request that the network lost is not simply sent again: what was in it is asked about first,
//! because part of it may have arrived. Nothing here is kept on disk; after a crash the next run
//! asks the server.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use strongroom_protocol::limits::{HAVE_MAX_COUNT, PROVE_MAX_COUNT, UPLOAD_MAX_COUNT};
use strongroom_protocol::message::Uploaded;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::budget::{PENDING_BYTES, QUESTIONS_MAX, RESEALS_MAX, UPLOADS_MAX};
use crate::challenge::{self, Sampler};
use crate::error::ClientError;
use crate::feed::Stream;
use crate::keys::PlaintextKeys;
use crate::pipeline::{Content, Piece, Pipeline, Report};
use crate::progress::Monitor;
use crate::session::{Session, Setback};
use crate::transport::Body;
use crate::tree::SealedRoot;
use crate::window::{Settled, Ticket, Unasked, Window, WindowCounts};

/// What waits longer than this is sent although it does not fill a request.
const FLUSH_STEP: Duration = Duration::from_millis(500);

/// What a run uploads with.
pub struct UploadOptions {
    /// Ask what the server has; else send everything (after it was caught lying).
    pub ask: bool,
    /// About how many chunks there will be, for the sampler.
    pub expected_chunk_count: u64,
    /// Envelopes of one request, in bytes.
    pub request_bytes: usize,
    /// Digests that are worth a question before the stream's end.
    pub question_count: usize,
}

/// What the server has acknowledged at the end.
#[derive(Debug, Clone, Copy)]
pub struct Acknowledged {
    /// The snapshot's root.
    pub root: SealedRoot,
    /// Bytes of the data stream.
    pub data_bytes: u64,
    /// Counts of chunks.
    pub counts: WindowCounts,
    /// Sealed bytes that were sent, with repetitions.
    pub sent_sealed_bytes: u64,
    /// Cached chunks turned out to be of another sealer's making.
    pub sealer_differs: bool,
}

impl Acknowledged {
    /// Bytes of the catalogue.
    pub fn catalogue_bytes(&self) -> u64 {
        self.root.plaintext_bytes.saturating_sub(self.data_bytes)
    }
}

/// One run.
pub struct Uploader {
    session: Session,
    pipeline: Pipeline,
    ask: bool,
    request_bytes: usize,
    monitor: Monitor,
    window: Window,
    sampler: Sampler,

    next_run: u64,
    early_runs: BTreeMap<u64, (Stream, Vec<Piece>)>,
    end: Option<(u64, u64)>,
    is_whole: bool,

    to_ask: Unasked,
    to_prove: Vec<Ticket>,
    to_reseal: VecDeque<Ticket>,
    to_send: VecDeque<Ticket>,
    to_send_bytes: usize,
    /// Chunks whose "have" is to be proven once they are sealed again.
    challenged: HashSet<Ticket>,
    resealing_count: usize,

    requests: JoinSet<Reply>,
    question_count: usize,
    upload_count: usize,
    is_proving: bool,
    is_sending_nodes: bool,
    failures: u32,
    sent_sealed_bytes: u64,
    sealer_differs: bool,
}

/// How a request ended.
enum Reply {
    Had(Vec<Ticket>, Result<Vec<bool>, ClientError>),
    Proved(Result<Vec<Ticket>, ClientError>),
    Sent(Vec<Ticket>, u64, Result<Uploaded, Setback>),
    SentNodes(Vec<Ticket>, u64, Result<Uploaded, Setback>),
}

impl Uploader {
    /// A run of `pipeline` into `session`.
    pub fn new(
        session: Session,
        pipeline: Pipeline,
        keys: &PlaintextKeys,
        options: &UploadOptions,
        monitor: &Monitor,
    ) -> Self {
        Self {
            window: Window::new(keys),
            session,
            pipeline,
            ask: options.ask,
            request_bytes: options.request_bytes,
            monitor: monitor.clone(),
            sampler: Sampler::new(options.expected_chunk_count),
            next_run: 0,
            early_runs: BTreeMap::new(),
            end: None,
            is_whole: false,
            to_ask: Unasked::new(options.question_count),
            to_prove: Vec::new(),
            to_reseal: VecDeque::new(),
            to_send: VecDeque::new(),
            to_send_bytes: 0,
            challenged: HashSet::new(),
            resealing_count: 0,
            requests: JoinSet::new(),
            question_count: 0,
            upload_count: 0,
            is_proving: false,
            is_sending_nodes: false,
            failures: 0,
            sent_sealed_bytes: 0,
            sealer_differs: false,
        }
    }

    /// Runs until the server has acknowledged everything.
    pub async fn run(mut self) -> Result<Acknowledged, ClientError> {
        let mut flush = flush_timer();
        let mut is_flush_due = false;
        loop {
            self.admit_runs();
            self.is_whole |= self.has_all_runs();
            if self.is_whole && self.window.has_no_chunk() && self.window.root().is_none() {
                let tickets = self.window.finish()?;
                self.enqueue_new(tickets);
            }
            if let Some(root) = self.window.root().filter(|_| self.window.has_no_node()) {
                return Ok(Acknowledged {
                    root,
                    data_bytes: self.data_bytes(),
                    counts: self.window.counts(),
                    sent_sealed_bytes: self.sent_sealed_bytes,
                    sealer_differs: self.sealer_differs,
                });
            }
            self.dispatch(std::mem::take(&mut is_flush_due));
            tokio::select! {
                biased;
                Some(reply) = self.requests.join_next() => {
                    let reply = reply.map_err(|error| ClientError::Bug(error.to_string()))?;
                    self.handle_reply(reply)?;
                }
                report = self.pipeline.next(), if !self.is_whole || self.resealing_count > 0 => {
                    let report = report.ok_or_else(|| ClientError::Bug("no reader".into()))?;
                    self.handle_report(report)?;
                }
                _ = flush.tick() => is_flush_due = true,
            }
        }
    }

    fn data_bytes(&self) -> u64 {
        self.end.map_or(0, |(_, bytes)| bytes)
    }

    fn has_all_runs(&self) -> bool {
        self.end.is_some_and(|(run_count, _)| self.next_run == run_count)
    }

    fn handle_report(&mut self, report: Report) -> Result<(), ClientError> {
        match report {
            Report::Run { index, stream, pieces } => {
                self.early_runs.insert(index, (stream, pieces));
            }
            Report::Resealed { ticket, piece } => {
                self.resealing_count = self.resealing_count.saturating_sub(1);
                let ticket = Ticket::Chunk(ticket);
                let is_other = self.window.replace(ticket, piece);
                let is_challenged = self.challenged.remove(&ticket);
                self.sealer_differs |= is_other;
                match (is_other, is_challenged) {
                    (false, true) => self.to_prove.push(ticket),
                    (false, false) => self.enqueue_to_send(ticket),
                    (true, _) => self.to_ask.push(&self.window, ticket),
                }
            }
            Report::End { run_count, data_bytes } => {
                self.end = Some((run_count, data_bytes));
            }
            Report::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes runs over in stream order while there is room for their envelopes.
    fn admit_runs(&mut self) {
        while self.window.pending_bytes() < PENDING_BYTES {
            let Some((stream, pieces)) = self.early_runs.remove(&self.next_run) else { return };
            self.next_run = self.next_run.saturating_add(1);
            self.pipeline.permit();
            for piece in pieces {
                self.admit(piece, stream);
            }
        }
    }

    fn admit(&mut self, piece: Piece, stream: Stream) {
        let plaintext_bytes = piece.leaf.plaintext_bytes;
        match self.window.admit(piece, stream) {
            Some(ticket) if self.ask => self.to_ask.push(&self.window, ticket),
            Some(ticket) => self.enqueue_to_send(ticket),
            None => {
                self.monitor.add_done(plaintext_bytes);
                self.monitor.add_deduplicated(plaintext_bytes);
            }
        }
    }

    /// New nodes: asked about, or sent unasked.
    fn enqueue_new(&mut self, nodes: Vec<Ticket>) {
        if self.ask {
            nodes.into_iter().for_each(|node| self.to_ask.push(&self.window, node));
        } else {
            nodes.into_iter().for_each(|node| self.window.lacks_node(node));
        }
    }

    fn enqueue_to_send(&mut self, ticket: Ticket) {
        if let Some(Content::Framed(framed)) = self.window.content(ticket) {
            self.to_send_bytes = self.to_send_bytes.saturating_add(framed.len());
            self.to_send.push_back(ticket);
        }
    }

    /// Starts every request that is worth it now.
    fn dispatch(&mut self, is_flush_due: bool) {
        while self.window.pending_bytes() < PENDING_BYTES
            && self.resealing_count < RESEALS_MAX
            && let Some(ticket) = self.to_reseal.pop_front()
        {
            self.reseal(ticket);
        }
        while self.question_count < QUESTIONS_MAX
            && self.to_ask.is_due(is_flush_due || (self.is_whole && self.question_count == 0))
        {
            self.start_question();
        }
        if !self.to_prove.is_empty() && !self.is_proving {
            self.start_proof();
        }
        let is_quiet = self.is_whole
            && self.question_count == 0
            && self.to_reseal.is_empty()
            && self.resealing_count == 0;
        while !self.to_send.is_empty()
            && self.upload_count < UPLOADS_MAX
            && (self.to_send_bytes >= self.request_bytes || is_quiet || is_flush_due)
        {
            self.start_upload();
        }
        if !self.is_sending_nodes {
            self.start_node_upload();
        }
    }

    fn reseal(&mut self, ticket: Ticket) {
        let (Ticket::Chunk(number), Some(leaf), Some(Content::Plain(block, range))) =
            (ticket, self.window.leaf(ticket).copied(), self.window.content(ticket))
        else {
            return;
        };
        self.resealing_count = self.resealing_count.saturating_add(1);
        self.pipeline.reseal(number, leaf, block, range);
    }

    fn start_question(&mut self) {
        let count = usize::try_from(HAVE_MAX_COUNT).unwrap_or(1);
        let (mut tickets, mut digests) = (Vec::new(), Vec::new());
        while tickets.len() < count
            && let Some(ticket) = self.to_ask.pop()
        {
            if let Some(digest) = self.window.digest(ticket) {
                tickets.push(ticket);
                digests.push(digest);
            }
        }
        let session = self.session.clone();
        self.question_count = self.question_count.saturating_add(1);
        self.requests.spawn(async move {
            let answer = session.have(&digests).await;
            Reply::Had(tickets, answer)
        });
    }

    fn start_proof(&mut self) {
        let count = self.to_prove.len().min(usize::try_from(PROVE_MAX_COUNT).unwrap_or(1));
        let tickets: Vec<Ticket> = self.to_prove.drain(..count).collect();
        let mut envelopes = Vec::with_capacity(tickets.len());
        for ticket in &tickets {
            let content = self.window.content(*ticket);
            if let (Some(digest), Some(Content::Framed(framed))) =
                (self.window.digest(*ticket), content)
            {
                envelopes.push((digest, framed));
            }
        }
        let session = self.session.clone();
        self.is_proving = true;
        self.requests.spawn(async move {
            let proven = challenge::prove(&session, &envelopes).await;
            Reply::Proved(proven.map(|()| tickets))
        });
    }

    fn start_upload(&mut self) {
        let (mut tickets, mut body) = (Vec::new(), Body::empty());
        while let Some(ticket) = self.to_send.front().copied() {
            let Some(Content::Framed(framed)) = self.window.content(ticket) else {
                self.to_send.pop_front();
                continue;
            };
            let wanted = body.byte_count().saturating_add(bytes_of(&framed));
            let is_full = wanted > bytes_of_budget(self.request_bytes)
                || u32::try_from(tickets.len()).map_or(true, |count| count >= UPLOAD_MAX_COUNT);
            if is_full && !tickets.is_empty() {
                break;
            }
            self.to_send.pop_front();
            self.to_send_bytes = self.to_send_bytes.saturating_sub(framed.len());
            tickets.push(ticket);
            body.push(framed);
        }
        if tickets.is_empty() {
            return;
        }
        self.upload_count = self.upload_count.saturating_add(1);
        let (session, failures, bytes) = (self.session.clone(), self.failures, body.byte_count());
        self.requests.spawn(async move {
            Reply::Sent(tickets, bytes, session.upload_or_wait(body, failures).await)
        });
    }

    fn start_node_upload(&mut self) {
        let (mut tickets, mut body) = (Vec::new(), Body::empty());
        for (ticket, framed) in self.window.sendable_nodes(self.request_bytes) {
            tickets.push(ticket);
            body.push(framed);
        }
        if tickets.is_empty() {
            return;
        }
        self.is_sending_nodes = true;
        let (session, failures, bytes) = (self.session.clone(), self.failures, body.byte_count());
        self.requests.spawn(async move {
            Reply::SentNodes(tickets, bytes, session.upload_or_wait(body, failures).await)
        });
    }

    fn handle_reply(&mut self, reply: Reply) -> Result<(), ClientError> {
        match reply {
            Reply::Had(tickets, answer) => {
                self.question_count = self.question_count.saturating_sub(1);
                for (ticket, has) in tickets.into_iter().zip(answer?) {
                    self.handle_answer(ticket, has);
                }
            }
            Reply::Proved(tickets) => {
                self.is_proving = false;
                for ticket in tickets? {
                    self.settle(ticket, Settled::Had);
                }
            }
            Reply::Sent(tickets, bytes, outcome) => {
                self.upload_count = self.upload_count.saturating_sub(1);
                match self.was_sent(bytes, outcome)? {
                    true => tickets.into_iter().for_each(|t| self.settle(t, Settled::Sent)),
                    false if self.ask => {
                        tickets.into_iter().for_each(|t| self.to_ask.push(&self.window, t));
                    }
                    false => tickets.into_iter().for_each(|t| self.enqueue_to_send(t)),
                }
            }
            Reply::SentNodes(tickets, bytes, outcome) => {
                self.is_sending_nodes = false;
                if self.was_sent(bytes, outcome)? {
                    tickets.into_iter().for_each(|t| self.settle(t, Settled::Sent));
                }
                // Else they are still sendable: a node that arrives twice is stored once.
            }
        }
        Ok(())
    }

    fn handle_answer(&mut self, ticket: Ticket, has: bool) {
        match (self.window.content(ticket), ticket) {
            (_, Ticket::Node(_)) if !has => self.window.lacks_node(ticket),
            (Some(Content::Framed(_)), _) if !has => self.enqueue_to_send(ticket),
            (Some(Content::Plain(..)), _) if !has => self.to_reseal.push_back(ticket),
            (Some(Content::Framed(_)), _) if self.sampler.pick() => self.to_prove.push(ticket),
            (Some(Content::Plain(..)), _) if self.sampler.pick() => {
                self.challenged.insert(ticket);
                self.reseal(ticket);
            }
            _ => self.settle(ticket, Settled::Had),
        }
    }

    fn settle(&mut self, ticket: Ticket, how: Settled) {
        if let Some(leaf) = self.window.leaf(ticket) {
            self.monitor.add_done(leaf.plaintext_bytes);
            if how == Settled::Had {
                self.monitor.add_deduplicated(leaf.plaintext_bytes);
            }
        }
        let nodes = self.window.settle(ticket, how);
        self.enqueue_new(nodes);
    }

    /// Counts an upload; says whether it arrived.
    fn was_sent(
        &mut self,
        bytes: u64,
        outcome: Result<Uploaded, Setback>,
    ) -> Result<bool, ClientError> {
        self.sent_sealed_bytes = self.sent_sealed_bytes.saturating_add(bytes);
        match outcome {
            Ok(_) => {
                self.failures = 0;
                self.monitor.add_sent(bytes);
                Ok(true)
            }
            Err(Setback::Again(error)) => {
                self.failures = self.failures.saturating_add(1);
                tracing::info!("upload: {}; going on from what arrived", error.reason());
                Ok(false)
            }
            Err(Setback::Final(error)) => Err(error),
        }
    }
}

fn flush_timer() -> Interval {
    let mut flush = interval(FLUSH_STEP);
    flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
    flush
}

fn bytes_of(framed: &Bytes) -> u64 {
    u64::try_from(framed.len()).unwrap_or(u64::MAX)
}

fn bytes_of_budget(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
