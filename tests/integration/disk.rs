//! The library that stands between a server and its disk (`tests/preload/disk.c`), built when a
//! test needs it, and the variables that tell it what to do.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The library, in a folder of its own.
pub struct Disk {
    folder: tempfile::TempDir,
}

/// How a call fails.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// Which call, counted from 1.
    pub call: usize,
    /// The number of the error.
    pub errno: i32,
    /// `once`, `ever` (and all calls after it), or `torn` (half of what is written is).
    pub mode: &'static str,
}

pub const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
pub const ENOSPC: i32 = rustix::io::Errno::NOSPC.raw_os_error();

impl Disk {
    /// Builds it with the compiler that RocksDB was built with.
    pub fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload/disk.c");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(folder.path().join("disk.so"))
            .arg(source)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    /// Variables for a server whose calls on `data` it watches.
    pub fn variables(&self, data: &Path) -> Vec<(String, String)> {
        let library = self.folder.path().join("disk.so").display().to_string();
        let data = data.canonicalize().unwrap().display().to_string();
        vec![("LD_PRELOAD".into(), library), ("STRONGROOM_DISK".into(), data)]
    }

    /// Where it writes down calls.
    pub fn calls_file(&self) -> PathBuf {
        self.folder.path().join("calls")
    }

    /// The same, with a line for each call in [`Self::calls_file`].
    pub fn counting(&self, data: &Path) -> Vec<(String, String)> {
        let calls = self.calls_file().display().to_string();
        let mut variables = self.variables(data);
        variables.push(("STRONGROOM_DISK_CALLS".into(), calls));
        variables
    }

    /// The same, and a call fails.
    pub fn failing(&self, data: &Path, failure: Failure) -> Vec<(String, String)> {
        let mut variables = self.counting(data);
        let mut set = |name: &str, value: String| {
            variables.push((format!("STRONGROOM_DISK_{name}"), value));
        };
        set("FAIL", failure.call.to_string());
        set("ERRNO", failure.errno.to_string());
        set("MODE", failure.mode.into());
        variables
    }

    /// The same as [`Self::variables`], and all that is done is written to `trace`.
    pub fn tracing(&self, data: &Path, trace: &Path) -> Vec<(String, String)> {
        let mut variables = self.variables(data);
        variables.push(("STRONGROOM_DISK_TRACE".into(), trace.display().to_string()));
        variables
    }

    /// The calls that were written down: what each is, and on what.
    pub fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.calls_file()).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }
}
