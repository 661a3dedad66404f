//! Running commands, and what the kernel says of a process.

use std::fs;
use std::io::Read;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::{Failure, as_f64};

/// How often the peak of a process's memory is looked at, which is gone when the process is.
const SAMPLE_EVERY: Duration = Duration::from_millis(5);
/// Linux counts processor time for user space in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Runs a command; gives what it printed.
pub fn run_to_end(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{command:?}: {}: {message}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and kernel time.
    pub cpu_seconds: f64,
    /// `VmHWM`.
    pub peak_bytes: u64,
    /// What it caused to be written to disk, counted when pages become dirty.
    pub written_bytes: u64,
}

impl Usage {
    /// Nothing, if there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let peak = line_of(&format!("/proc/{pid}/status"), "VmHWM:");
        let written = line_of(&format!("/proc/{pid}/io"), "write_bytes:");
        Some(Self {
            cpu_seconds: as_f64(ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
            peak_bytes: peak.unwrap_or(0) * 1024,
            written_bytes: written.unwrap_or(0),
        })
    }
}

/// The number after a key that begins a line of a file.
fn line_of(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Peak of a process's memory so far.
pub fn peak_of(pid: u32) -> u64 {
    line_of(&format!("/proc/{pid}/status"), "VmHWM:").unwrap_or(0) * 1024
}

/// Forgets the peak of a process's memory so far.
pub fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// What a command took.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// From start to end.
    pub seconds: f64,
    /// Of the process, without children of its own.
    pub usage: Usage,
    /// Standard output, where it was piped.
    pub output: String,
}

/// Runs a command to its end, and looks at its memory meanwhile.
pub fn measure(command: &mut Command) -> Result<Measured, Failure> {
    let started = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
    let output = child.stdout.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).map(|_| text)
        })
    });
    let sampler = Sampler::start(child.id());
    wait_for_end(&child)?;
    let seconds = started.elapsed().as_secs_f64();
    let peak_bytes = sampler.stop();
    // The process stays a zombie, with its times, until wait collects it.
    let usage = Usage { peak_bytes, ..Usage::of(child.id()).unwrap_or_default() };
    let status = child.wait()?;
    let output = match output.map(std::thread::JoinHandle::join) {
        Some(Ok(text)) => text?,
        _ => String::new(),
    };
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    Ok(Measured { seconds, usage, output })
}

fn wait_for_end(child: &Child) -> Result<(), Failure> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).ok_or("no process id")?;
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    Ok(())
}

/// Watches the peak of a process's memory.
struct Sampler {
    is_done: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Sampler {
    fn start(pid: u32) -> Self {
        let (is_done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (done, highest) = (is_done.clone(), peak.clone());
        let thread = std::thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                highest.fetch_max(peak_of(pid), Ordering::SeqCst);
                std::thread::park_timeout(SAMPLE_EVERY);
            }
        });
        Self { is_done, peak, thread }
    }

    fn stop(self) -> u64 {
        self.is_done.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        let _ = self.thread.join();
        self.peak.load(Ordering::SeqCst)
    }
}
