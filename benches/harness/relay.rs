//! A line to a server: it delays what goes through, holds it to a rate, and counts it.
//!
//! It is a pipe: each piece arrives its delay after it left, and pieces follow one another without
//! waiting for answers. All connections share the rate, each direction has its own. A sender may
//! run ahead of the rate by [`QUEUE_MAX`], as with a router that has a queue; so with the delay
//! more than twice the product of rate and round trip is under way. It works above TCP: there is
//! no loss and no slow start.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Failure;

const QUEUE_MAX: Duration = Duration::from_millis(100);
const PIECE_BYTES: usize = 64 << 10;
/// Pieces on their way in one direction of a connection.
const PIECES_MAX: usize = 4096;

/// Carries connections to a server.
pub struct Relay {
    /// Where to connect instead of the server.
    pub address: SocketAddr,
    line: Arc<Line>,
}

#[derive(Default)]
struct Line {
    carried: AtomicU64,
    delay_us: AtomicU64,
    /// Bytes a second; 0 is no bound.
    rate: AtomicU64,
    /// When each direction is free again.
    free_at: [Mutex<Option<Instant>>; 2],
}

impl Relay {
    /// A perfect line.
    pub fn to(target: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let line = Arc::new(Line::default());
        let carrying = line.clone();
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (direction, from, to) in [(0, &near, &far), (1, &far, &near)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let _ = (from.set_nodelay(true), to.set_nodelay(true));
                    let line = carrying.clone();
                    std::thread::spawn(move || carry(&line, direction, from, to));
                }
            }
        });
        Ok(Self { address, line })
    }

    /// From now on each byte arrives so much later.
    pub fn delay(&self, one_way: Duration) {
        let micros = u64::try_from(one_way.as_micros()).unwrap_or(u64::MAX);
        self.line.delay_us.store(micros, Ordering::SeqCst);
    }

    /// From now on so many bytes a second go through in each direction; 0 is no bound.
    pub fn rate(&self, bytes_per_second: u64) {
        self.line.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Bytes of both directions, TLS and HTTP included.
    pub fn carried(&self) -> u64 {
        self.line.carried.load(Ordering::SeqCst)
    }
}

impl Line {
    /// When `count` bytes have left; waits while the queue is long.
    fn departure(&self, direction: usize, count: u64) -> Instant {
        let (rate, now) = (self.rate.load(Ordering::SeqCst), Instant::now());
        if rate == 0 {
            return now;
        }
        let taken = Duration::from_nanos(count.saturating_mul(1_000_000_000) / rate);
        let left_at = {
            let mut free_at =
                self.free_at[direction].lock().unwrap_or_else(PoisonError::into_inner);
            let left_at = free_at.unwrap_or(now).max(now) + taken;
            *free_at = Some(left_at);
            left_at
        };
        std::thread::sleep(left_at.saturating_duration_since(now + QUEUE_MAX));
        left_at
    }
}

fn carry(line: &Line, direction: usize, mut from: TcpStream, to: TcpStream) {
    let (sender, pieces) = sync_channel(PIECES_MAX);
    let delivering = std::thread::spawn(move || deliver(pieces, to));
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = u64::try_from(count).unwrap_or(0);
        line.carried.fetch_add(bytes, Ordering::SeqCst);
        let delay = Duration::from_micros(line.delay_us.load(Ordering::SeqCst));
        let due = line.departure(direction, bytes) + delay;
        let Some(piece) = buffer.get(..count) else { break };
        if sender.send((due, piece.to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = delivering.join();
}

fn deliver(pieces: Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    while let Ok((due, piece)) = pieces.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
