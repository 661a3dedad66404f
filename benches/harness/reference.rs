//! What the machine itself does in the same minutes.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Advice, fadvise};

use super::Failure;
use super::process::{measure, run_to_end};
use super::rows::Row;

/// Reads a file, so that it is in the page cache where memory allows.
pub fn warm(path: &Path) -> Result<(), Failure> {
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// Takes a file out of the page cache. What is dirty stays there, so it is synced first.
pub fn cool(path: &Path) -> Result<(), Failure> {
    let file = File::open(path)?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// A row for a command that moves `bytes`.
pub fn reference(scenario: &str, bytes: u64, command: &mut Command) -> Result<Row, Failure> {
    run_to_end(&mut Command::new("sync"))?;
    let measured = measure(command)?;
    let row = Row {
        scenario: scenario.to_owned(),
        seconds: measured.seconds,
        client_cpu_seconds: measured.usage.cpu_seconds,
        client_peak_bytes: measured.usage.peak_bytes,
        is_reference: true,
        ..Row::default()
    };
    Ok(row.rate_of(bytes))
}

/// `cat FILE >/dev/null`.
pub fn cat(scenario: &str, file: &Path) -> Result<Row, Failure> {
    let bytes = fs::metadata(file)?.len();
    reference(scenario, bytes, Command::new("cat").arg(file).stdout(Stdio::null()))
}

/// Copies the first `bytes` of a file to another, and syncs it.
pub fn dd(scenario: &str, file: &Path, bytes: u64, scratch: &Path) -> Result<Row, Failure> {
    let copy = scratch.join("copy");
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", file.display())).arg(format!("of={}", copy.display()));
    dd.args(["bs=1M", "iflag=count_bytes", &format!("count={bytes}")]);
    dd.args(["conv=fdatasync", "status=none"]);
    warm(file)?;
    let row = reference(scenario, bytes, &mut dd)?;
    fs::remove_file(&copy)?;
    Ok(row)
}

/// ChaCha20-Poly1305 on messages of 64 KiB by one process, or by so many at once, all together:
/// what the cores do side by side, which on a shared machine is less than one of them does often;
/// nothing without openssl.
pub fn openssl(processes: u32) -> Option<Row> {
    let words = ["speed", "-seconds", "1", "-bytes", "65536", "-evp", "chacha20-poly1305"];
    let mut command = Command::new("openssl");
    command.args(words);
    if processes > 1 {
        command.args(["-multi", &processes.to_string()]);
    }
    let text = run_to_end(&mut command).ok()?;
    let last = text.trim_end().rsplit(' ').next()?;
    let thousands = last.strip_suffix('k')?.parse::<f64>().ok()?;
    let name = format!("openssl ChaCha20-Poly1305, 64 KiB, processes: {processes}");
    let row = Row::figure(&name, thousands / 1e3, "MB/s");
    Some(Row { is_reference: true, ..row })
}
