//! What a person or a log sees of a running backup, restore or verify.
//!
//! The work counts into [`Monitor`], which is atomics only and costs the pipeline nothing; a
//! [`Display`] reads them a few times a second on a thread of its own. On a terminal it draws a
//! bar, elsewhere it writes one line a minute, and with `--quiet` or `--json` nothing.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::Moment;

const DRAW_STEP: Duration = Duration::from_millis(200);
const LINE_STEP: Duration = Duration::from_secs(60);

/// Counters of one run. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Monitor(Arc<Counters>);

/// What is counted; bytes of plaintext but for `sent_bytes`.
#[derive(Debug, Default)]
struct Counters {
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    deduplicated_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

impl Monitor {
    /// A monitor that nobody looks at.
    pub fn hidden() -> Self {
        Self::default()
    }

    /// Says how much there is to do, where that is known.
    pub fn set_total(&self, bytes: u64) {
        self.0.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Starts over, as after a session was lost.
    pub fn restart(&self) {
        self.0.done_bytes.store(0, Ordering::Relaxed);
        self.0.deduplicated_bytes.store(0, Ordering::Relaxed);
    }

    /// Counts plaintext that is done.
    pub fn add_done(&self, bytes: u64) {
        self.0.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts plaintext that the server had already.
    pub fn add_deduplicated(&self, bytes: u64) {
        self.0.deduplicated_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts sealed bytes that were sent.
    pub fn add_sent(&self, bytes: u64) {
        self.0.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn total_bytes(&self) -> Option<u64> {
        Some(self.0.total_bytes.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }

    fn done_bytes(&self) -> u64 {
        self.0.done_bytes.load(Ordering::Relaxed)
    }

    /// `1.2 GiB new, 87 % deduplicated`; nothing where nothing is sent or saved, as in a restore.
    fn details(&self) -> String {
        let sent = HumanBytes(self.0.sent_bytes.load(Ordering::Relaxed));
        let deduplicated = self.0.deduplicated_bytes.load(Ordering::Relaxed);
        if sent.0 == 0 && deduplicated == 0 {
            return String::new();
        }
        let share = deduplicated.saturating_mul(100) / self.done_bytes().max(1);
        format!("{sent} new, {share} % deduplicated")
    }
}

/// How a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Not at all.
    Hidden,
    /// A bar on a terminal, one line a minute elsewhere.
    Automatic,
}

/// Shows a monitor until it is dropped.
#[derive(Debug)]
pub struct Display {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Starts to show `monitor` under the word `verb`.
    pub fn start(monitor: &Monitor, verb: &'static str, style: Style) -> Self {
        if style == Style::Hidden {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = bounded::<()>(0);
        let monitor = monitor.clone();
        let thread = std::thread::spawn(move || {
            let is_over =
                |step| !matches!(stopped.recv_timeout(step), Err(RecvTimeoutError::Timeout));
            if std::io::stderr().is_terminal() {
                draw_bar(&monitor, verb, is_over);
            } else {
                write_lines(&monitor, verb, is_over);
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A display that panicked must not fail the backup.
            let _ = thread.join();
        }
    }
}

fn draw_bar(monitor: &Monitor, verb: &'static str, is_over: impl Fn(Duration) -> bool) {
    const KNOWN: &str = "{prefix} {bar:24} {percent:>3} % of {total_bytes}  \
                         {binary_bytes_per_sec}  {msg}  {eta} left";
    const UNKNOWN: &str = "{prefix} {spinner} {bytes}  {binary_bytes_per_sec}  {msg}  {elapsed}";
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_prefix(verb);
    let mut is_known = false;
    set_style(&bar, UNKNOWN);
    while !is_over(DRAW_STEP) {
        if let Some(total) = monitor.total_bytes() {
            if !is_known {
                set_style(&bar, KNOWN);
                is_known = true;
            }
            bar.set_length(total);
        }
        bar.set_position(monitor.done_bytes());
        bar.set_message(monitor.details());
        bar.tick();
    }
    bar.finish_and_clear();
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

fn write_lines(monitor: &Monitor, verb: &'static str, is_over: impl Fn(Duration) -> bool) {
    let since = Moment::now();
    while !is_over(LINE_STEP) {
        let done = monitor.done_bytes();
        let seconds = since.elapsed().as_secs().max(1);
        let rate = HumanBytes(done / seconds);
        let share = match monitor.total_bytes() {
            Some(total) => format!(" of {}", HumanBytes(total)),
            None => String::new(),
        };
        let details = monitor.details();
        let comma = if details.is_empty() { "" } else { ", " };
        let line = format!("{verb}: {}{share}, {rate}/s{comma}{details}\n", HumanBytes(done));
        // Where standard error is closed there is nobody to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_name_new_bytes_and_share() {
        let monitor = Monitor::hidden();
        monitor.add_done(1000);
        assert_eq!(monitor.details(), "");
        monitor.add_deduplicated(870);
        monitor.add_sent(2048);
        assert_eq!(monitor.details(), "2.00 KiB new, 87 % deduplicated");
        monitor.restart();
        assert_eq!(monitor.done_bytes(), 0);
    }

    #[test]
    fn a_display_ends_with_its_handle() {
        let monitor = Monitor::hidden();
        drop(Display::start(&monitor, "backup", Style::Automatic));
        drop(Display::start(&monitor, "backup", Style::Hidden));
    }
}
