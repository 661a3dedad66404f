//! A line between two servers that is slow, narrow, lossy, or breaks: a proxy that knows nothing of
//! what goes through. All connections share its rate; each byte arrives half a round trip later.
//!
//! **Loss is emulated above TCP**, as a program sees it: of each connection's segments some are
//! drawn, a segment that is lost arrives a retransmission timeout later and everything behind it
//! waits, and the window is half as large from then on and grows again. The kernel's own TCP runs
//! on loopback and loses nothing; `make netem-replica` has it lose packets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

const PIECE_BYTES: usize = 16 * 1024;
/// Pieces on their way in one direction of a connection: what a line of 1 Gbit/s and 100 ms holds.
const PIECES_MAX: usize = 1024;
/// How far a sender may run ahead of what the rate allows.
const QUEUE_MAX: Duration = Duration::from_millis(20);
/// Payload of a TCP segment on Ethernet.
const SEGMENT_BYTES: usize = 1448;
/// The shortest retransmission timeout of Linux.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// The line; clone it to change it from elsewhere.
#[derive(Clone)]
pub struct Line {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: std::sync::Mutex<SocketAddr>,
    one_way_ms: AtomicU64,
    /// Bytes a second towards whoever asked; 0 is no bound.
    rate: AtomicU64,
    /// Bytes that still go through before every connection is cut; negative: no cut.
    left: AtomicI64,
    /// What goes through before the cut after that.
    next: AtomicI64,
    is_down: AtomicBool,
    stalled: watch::Sender<bool>,
    cuts: watch::Sender<u64>,
    answered_bytes: AtomicU64,
    /// Of 10 000 segments, how many are lost.
    loss: AtomicU64,
    lost_count: AtomicU64,
    /// One bit of so many bytes is flipped; 0 is none.
    flips: AtomicU64,
    flipped_count: AtomicU64,
    /// What went through, requests and answers, since somebody listens.
    heard: std::sync::Mutex<Option<[Vec<u8>; 2]>>,
    /// Numbers the directions of connections, so that each draws its own losses.
    directions: AtomicU64,
    /// When the line is free again.
    free_at: Mutex<Option<Instant>>,
}

impl Line {
    /// A perfect line to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target: std::sync::Mutex::new(target),
            one_way_ms: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            left: AtomicI64::new(-1),
            next: AtomicI64::new(-1),
            is_down: AtomicBool::new(false),
            stalled: watch::channel(false).0,
            cuts: watch::channel(0).0,
            answered_bytes: AtomicU64::new(0),
            loss: AtomicU64::new(0),
            lost_count: AtomicU64::new(0),
            flips: AtomicU64::new(0),
            flipped_count: AtomicU64::new(0),
            heard: std::sync::Mutex::new(None),
            directions: AtomicU64::new(0),
            free_at: Mutex::new(None),
        });
        let serving = state.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                if !serving.is_down.load(Ordering::SeqCst) {
                    tokio::spawn(carry(serving.clone(), near));
                }
            }
        });
        Self { address, state }
    }

    /// There and back again.
    pub fn round_trip(&self, time: Duration) {
        let one_way = u64::try_from(time.as_millis() / 2).unwrap();
        self.state.one_way_ms.store(one_way, Ordering::SeqCst);
    }

    /// Bytes a second of answers, for all connections together.
    pub fn rate(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Loses so many of 10 000 segments of each connection that is opened from now on.
    pub fn loss(&self, of_10_000: u64) {
        self.state.loss.store(of_10_000, Ordering::SeqCst);
    }

    /// Segments that were lost.
    pub fn lost_count(&self) -> u64 {
        self.state.lost_count.load(Ordering::SeqCst)
    }

    /// Flips a bit in about one of so many bytes of answers.
    pub fn flip_every(&self, bytes: u64) {
        self.state.flips.store(bytes, Ordering::SeqCst);
    }

    /// Bits that were flipped.
    pub fn flipped_count(&self) -> u64 {
        self.state.flipped_count.load(Ordering::SeqCst)
    }

    /// Writes down what goes through from now on.
    pub fn listen(&self) {
        *self.state.heard.lock().unwrap() = Some(Default::default());
    }

    /// What went through since: requests and answers.
    pub fn heard(&self) -> [Vec<u8>; 2] {
        self.state.heard.lock().unwrap().clone().unwrap()
    }

    /// Leads somewhere else from now on.
    pub fn redirect(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap() = target;
        self.state.cuts.send_modify(|count| *count += 1);
    }

    /// Cuts all connections each time that so many more bytes of answers came through.
    pub fn cut_every(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap();
        self.state.next.store(bytes, Ordering::SeqCst);
        self.state.left.store(bytes, Ordering::SeqCst);
    }

    /// How often it was cut.
    pub fn cut_count(&self) -> u64 {
        *self.state.cuts.borrow()
    }

    /// Nobody gets through, and everybody is cut; or again.
    pub fn down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
        if is_down {
            self.cut_now();
        }
    }

    /// Cuts all connections, once.
    pub fn cut_now(&self) {
        self.state.cuts.send_modify(|count| *count += 1);
    }

    /// Later connections go elsewhere.
    pub fn retarget(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap() = target;
    }

    /// Connections stay, but nothing comes through.
    pub fn stall(&self, is_stalled: bool) {
        self.state.stalled.send_replace(is_stalled);
    }

    /// Bytes of answers, TLS included.
    pub fn answered_bytes(&self) -> u64 {
        self.state.answered_bytes.load(Ordering::SeqCst)
    }
}

async fn carry(state: Arc<State>, near: TcpStream) {
    let mut cuts = state.cuts.subscribe();
    cuts.mark_unchanged();
    let target = *state.target.lock().unwrap();
    let Ok(far) = TcpStream::connect(target).await else { return };
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        _ = async { tokio::join!(
            pump(state.clone(), near_in, far_out, false),
            pump(state.clone(), far_in, near_out, true),
        ) } => {}
        _ = cuts.changed() => {}
    }
}

/// Carries one direction until it ends.
async fn pump(state: Arc<State>, mut from: OwnedReadHalf, to: OwnedWriteHalf, is_answer: bool) {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let delivering = tokio::spawn(deliver(state.clone(), pieces, to, is_answer));
    // A cut drops this function; what was on its way is lost then.
    let _lost = AbortOnDrop(delivering.abort_handle());
    let mut buffer = vec![0; PIECE_BYTES];
    let mut window = Window::new(&state);
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let mut due = Instant::now();
        if is_answer {
            due = departure(&state, count).await;
        }
        due = window.departure(&state, due, count).await;
        due += Duration::from_millis(state.one_way_ms.load(Ordering::SeqCst));
        if sender.send((due, buffer[..count].to_vec())).await.is_err() {
            break;
        }
    }
    drop(sender);
    let _ = delivering.await;
}

/// The sender's window in one direction of a connection that loses segments.
struct Window {
    loss: u64,
    seed: [u64; 2],
    bytes: f64,
    /// Up to here it doubles each round trip, beyond it grows by a segment.
    threshold: f64,
    free_at: Option<Instant>,
}

impl Window {
    fn new(state: &State) -> Self {
        let direction = state.directions.fetch_add(1, Ordering::SeqCst);
        let (loss, bytes) = (state.loss.load(Ordering::SeqCst), 10.0 * SEGMENT_BYTES as f64);
        Self { loss, seed: [direction, 0], bytes, threshold: f64::INFINITY, free_at: None }
    }

    /// When a piece has left and is not lost any more; waits as long as the window is full.
    async fn departure(&mut self, state: &State, ready: Instant, count: usize) -> Instant {
        if self.loss == 0 {
            return ready;
        }
        let round_trip = state.one_way_ms.load(Ordering::SeqCst) as f64 / 500.0;
        let begins = self.free_at.unwrap_or(ready).max(ready);
        tokio::time::sleep_until(begins).await;
        let taken = Duration::from_secs_f64(round_trip * count as f64 / self.bytes);
        let mut left_at = begins + taken;
        self.free_at = Some(left_at);
        self.bytes += match self.bytes < self.threshold {
            true => count as f64,
            false => SEGMENT_BYTES as f64 * count as f64 / self.bytes,
        };
        if self.loses_one_of(count.div_ceil(SEGMENT_BYTES)) {
            state.lost_count.fetch_add(1, Ordering::SeqCst);
            self.bytes = (self.bytes / 2.0).max(2.0 * SEGMENT_BYTES as f64);
            self.threshold = self.bytes;
            left_at += RETRANSMISSION;
        }
        left_at
    }

    fn loses_one_of(&mut self, segments: usize) -> bool {
        let mut is_lost = false;
        for _ in 0..segments {
            self.seed[1] += 1;
            let drawn = blake3::hash(&self.seed.map(u64::to_le_bytes).concat());
            let drawn = u64::from_le_bytes(*drawn.as_bytes().first_chunk().unwrap());
            is_lost |= drawn % 10_000 < self.loss;
        }
        is_lost
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn deliver(
    state: Arc<State>,
    mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    is_answer: bool,
) {
    let mut stalled = state.stalled.subscribe();
    while let Some((due, mut piece)) = pieces.recv().await {
        tokio::time::sleep_until(due).await;
        tap(&state, &mut piece, is_answer);
        stalled.wait_for(|is_stalled| !*is_stalled).await.unwrap();
        let count = if is_answer { allowed(&state, piece.len()) } else { piece.len() };
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
        if is_answer {
            state.answered_bytes.fetch_add(count as u64, Ordering::SeqCst);
        }
        if count < piece.len() {
            state.left.store(state.next.load(Ordering::SeqCst), Ordering::SeqCst);
            state.cuts.send_modify(|count| *count += 1);
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Somebody on the line: listens, and changes what goes through.
fn tap(state: &State, piece: &mut [u8], is_answer: bool) {
    if let Some(heard) = state.heard.lock().unwrap().as_mut() {
        heard[usize::from(is_answer)].extend_from_slice(piece);
    }
    let flips = state.flips.load(Ordering::SeqCst);
    if is_answer && flips > 0 {
        let length = piece.len() as u64;
        let random = u64::from_le_bytes(blake3::hash(piece).as_bytes()[..8].try_into().unwrap());
        if random % flips < length {
            piece[usize::try_from(random % length).unwrap()] ^= 1;
            state.flipped_count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// How many of `count` bytes go through before the cut that was asked for.
fn allowed(state: &State, count: usize) -> usize {
    let count_signed = i64::try_from(count).unwrap();
    let take = |left: i64| match left {
        ..0 => None,
        left if left <= count_signed => Some(-1),
        left => Some(left - count_signed),
    };
    match state.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
        // The last byte is the one that is missing.
        Ok(left) if left <= count_signed => usize::try_from(left).unwrap().min(count - 1),
        _ => count,
    }
}

/// When a piece has left, at the line's rate; waits while the queue is long.
async fn departure(state: &State, count: usize) -> Instant {
    let rate = state.rate.load(Ordering::SeqCst);
    let now = Instant::now();
    if rate == 0 {
        return now;
    }
    let taken = Duration::from_secs_f64(count as f64 / rate as f64);
    let left_at = {
        let mut free_at = state.free_at.lock().await;
        let left_at = free_at.unwrap_or(now).max(now) + taken;
        *free_at = Some(left_at);
        left_at
    };
    if left_at > now + QUEUE_MAX {
        tokio::time::sleep_until(left_at - QUEUE_MAX).await;
    }
    left_at
}
