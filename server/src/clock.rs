//! The only file of the server that reads time, and what tells one start of one machine from
//! another.
//!
//! A [`Clock`] is handed to whoever needs time, so that tests can turn it. Three clocks are read:
//! the wall clock, which anybody with the right to set it can set; the boot clock, which counts
//! from the start of the machine, suspends included, and cannot be set; and a monotonic one for
//! periods inside the process. What the first two say together is a [`Reading`], from which
//! `clock_state.rs` makes the clock that locks are counted in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Names one start of a machine; random, from the kernel.
pub type BootId = [u8; 16];
/// Names a machine, without saying which to whoever reads it.
pub type MachineId = [u8; 32];

const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID_FILE: &str = "/etc/machine-id";
const MACHINE_CONTEXT: &str = "strongroom v1 machine id";
/// Tries to read two clocks without being interrupted in between.
const READ_TRIES: usize = 5;
/// Two clocks that were read within this were read at one moment.
const READ_APART_MAX: Duration = Duration::from_millis(1);

/// What the clocks say at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: u64,
    /// Time since the machine was started, suspends included, in milliseconds.
    pub boot_ms: u64,
    /// Which start of the machine that was.
    pub boot_id: BootId,
    /// Which machine.
    pub machine: MachineId,
}

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Wall clock, milliseconds since 1970.
    fn wall_ms(&self) -> u64;

    /// Monotonic time since any fixed moment; only differences are used.
    fn monotonic(&self) -> Duration;

    /// Wall clock and boot clock, read at one moment.
    fn reading(&self) -> Reading;
}

/// Measures how long this server waits for a peer: by the machine's own clock, because peers wait
/// in real time also where a test turns the clock.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
    boot_id: BootId,
    machine: MachineId,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { started: Instant::now(), boot_id: read_boot_id(), machine: read_machine_id() }
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        // A clock before 1970 reads as 1970: nothing expires early by that.
        millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn reading(&self) -> Reading {
        let mut best = (Duration::MAX, 0, Duration::ZERO);
        for _ in 0..READ_TRIES {
            let before = boot_time();
            let wall_ms = self.wall_ms();
            let after = boot_time();
            let apart = after.saturating_sub(before);
            if apart < best.0 {
                best = (apart, wall_ms, before);
            }
            if apart <= READ_APART_MAX {
                break;
            }
        }
        let (_, wall_ms, boot) = best;
        let (boot_id, machine) = (self.boot_id, self.machine);
        Reading { wall_ms, boot_ms: millis(boot), boot_id, machine }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn boot_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Zeros where the kernel does not say. Then all starts look like one, whose boot clock went back:
/// less is counted than has passed, never more.
fn read_boot_id() -> BootId {
    let text = std::fs::read_to_string(BOOT_ID_FILE).unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes()
}

/// Zeros where the machine has no id.
fn read_machine_id() -> MachineId {
    let id = std::fs::read(MACHINE_ID_FILE).unwrap_or_default();
    let id = id.trim_ascii();
    if id.is_empty() { [0; 32] } else { blake3::derive_key(MACHINE_CONTEXT, id) }
}

/// A clock that moves when it is told to.
#[derive(Debug)]
pub struct ManualClock {
    wall_ms: AtomicU64,
    monotonic_ms: AtomicU64,
    boot_ms: AtomicU64,
    boot: AtomicU64,
    machine: AtomicU64,
}

impl ManualClock {
    /// Starts at this wall time, on a machine that has been up for an hour.
    pub fn at_ms(wall_ms: u64) -> Self {
        Self {
            wall_ms: AtomicU64::new(wall_ms),
            monotonic_ms: AtomicU64::new(0),
            boot_ms: AtomicU64::new(3_600_000),
            boot: AtomicU64::new(1),
            machine: AtomicU64::new(1),
        }
    }

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        self.suspend(by);
        self.monotonic_ms.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// Time passes while the machine sleeps.
    pub fn suspend(&self, by: Duration) {
        self.wall_ms.fetch_add(millis(by), Ordering::SeqCst);
        self.boot_ms.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// Somebody sets the wall clock forward.
    pub fn set_wall_ahead(&self, by: Duration) {
        self.wall_ms.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// Somebody sets the wall clock back, at most to 1970.
    pub fn set_wall_back(&self, by: Duration) {
        let back = |wall: u64| Some(wall.saturating_sub(millis(by)));
        let _ = self.wall_ms.fetch_update(Ordering::SeqCst, Ordering::SeqCst, back);
    }

    /// The machine is off for so long, and starts again; its wall clock goes on.
    pub fn reboot(&self, off: Duration) {
        self.wall_ms.fetch_add(millis(off), Ordering::SeqCst);
        self.monotonic_ms.fetch_add(millis(off), Ordering::SeqCst);
        self.boot_ms.store(0, Ordering::SeqCst);
        self.boot.fetch_add(1, Ordering::SeqCst);
    }

    /// The disks are put into another machine, which has been up for `up` and tells the same time.
    pub fn move_to_another_machine(&self, up: Duration) {
        self.machine.fetch_add(1, Ordering::SeqCst);
        self.boot.fetch_add(1, Ordering::SeqCst);
        self.boot_ms.store(millis(up), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst))
    }

    fn reading(&self) -> Reading {
        let mut machine = [0; 32];
        machine[..8].copy_from_slice(&self.machine.load(Ordering::SeqCst).to_be_bytes());
        Reading {
            wall_ms: self.wall_ms(),
            boot_ms: self.boot_ms.load(Ordering::SeqCst),
            boot_id: u128::from(self.boot.load(Ordering::SeqCst)).to_be_bytes(),
            machine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_names_itself_and_its_start() {
        let (one, other) = (SystemClock::default(), SystemClock::default());
        let (first, second) = (one.reading(), other.reading());
        assert_ne!(first.boot_id, [0; 16]);
        assert_eq!((first.boot_id, first.machine), (second.boot_id, second.machine));
        assert!(first.boot_ms > 0 && second.boot_ms >= first.boot_ms);
    }
}
