//! A dump command that runs: in a process group of its own, with its end known.
//!
//! Its standard input is empty. Its standard error passes through and its end is kept. Only exit
//! code 0 counts. Whoever drops it before it has ended ends the whole process group: a failed
//! backup leaves no dump running.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use strongroom_protocol::limits::STDERR_MAX_BYTES;

use crate::clock::Moment;
use crate::error::ClientError;

/// How often a command that closed its output is asked whether it has ended.
pub const WAIT_STEP: Duration = Duration::from_millis(10);
/// How long standard error is waited for after the command ended.
const STDERR_PATIENCE: Duration = Duration::from_secs(2);
/// How long a process group has between the request to end and the order.
const KILL_PATIENCE: Duration = Duration::from_millis(500);

/// A command that was started.
pub struct RunningCommand {
    program: String,
    child: Child,
    exit: Option<(ExitStatus, Moment)>,
    tail: Arc<Mutex<Tail>>,
    stderr_thread: Option<JoinHandle<()>>,
}

impl RunningCommand {
    /// Starts a command whose standard output is the dump.
    pub fn start(command: &[String]) -> Result<(Self, ChildStdout), ClientError> {
        let mut running = Self::spawn(command, Stdio::piped())?;
        let stdout = running.child.stdout.take();
        let stdout = stdout.ok_or_else(|| ClientError::Bug("command without output".into()))?;
        Ok((running, stdout))
    }

    /// Starts a command whose standard output is for people.
    pub fn start_talking(command: &[String]) -> Result<Self, ClientError> {
        // Our own standard output is for results.
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        let stderr = stderr.map_err(|error| ClientError::file("use standard error", error))?;
        Self::spawn(command, stderr.into())
    }

    fn spawn(command: &[String], stdout: Stdio) -> Result<Self, ClientError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(ClientError::Usage("no command after --".into()));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| ClientError::DumpFailed(format!("cannot run {program}: {error}")))?;
        let tail = Arc::new(Mutex::new(Tail::default()));
        let stderr_thread = child.stderr.take().map(|stderr| pass_through(stderr, tail.clone()));
        Ok(Self { program: program.clone(), child, exit: None, tail, stderr_thread })
    }

    /// The end of what it wrote to standard error, once it has ended with 0; nothing before.
    pub fn try_finish(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let fail = |error| ClientError::file(format!("wait for {}", self.program), error);
        let (status, since) = match self.exit {
            Some(exit) => exit,
            None => match self.child.try_wait().map_err(fail)? {
                Some(status) => *self.exit.insert((status, Moment::now())),
                None => return Ok(None),
            },
        };
        let is_reading = self.stderr_thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if is_reading && since.elapsed() < STDERR_PATIENCE {
            return Ok(None);
        }
        if !status.success() {
            return Err(ClientError::DumpFailed(failure_of(&self.program, status)));
        }
        Ok(Some(self.tail.lock().bytes.iter().copied().collect()))
    }

    /// Waits until it has ended with 0; gives the end of what it wrote to standard error.
    pub async fn finish(&mut self) -> Result<Vec<u8>, ClientError> {
        loop {
            if let Some(standard_error) = self.try_finish()? {
                return Ok(standard_error);
            }
            tokio::time::sleep(WAIT_STEP).await;
        }
    }

    /// Ends the process group: first asks, then orders.
    fn end(&mut self) {
        let group = Pid::from_child(&self.child);
        let since = Moment::now();
        // Errors mean that the group has gone, which is what is wanted.
        let _ = kill_process_group(group, Signal::TERM);
        while since.elapsed() < KILL_PATIENCE {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(WAIT_STEP);
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.end();
        }
    }
}

fn failure_of(program: &str, status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("dump command {program} exited with code {code}"),
        (None, Some(signal)) => format!("dump command {program} was ended by signal {signal}"),
        (None, None) => format!("dump command {program} failed"),
    }
}

/// The last bytes of a text.
#[derive(Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    /// Adds what comes next; what is too much goes at the front.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let max = usize::try_from(STDERR_MAX_BYTES).unwrap_or(usize::MAX);
        let excess = self.bytes.len().saturating_sub(max);
        self.bytes.drain(..excess);
    }

    /// What is there now.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into()
    }
}

fn pass_through(mut stderr: ChildStderr, tail: Arc<Mutex<Tail>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match stderr.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or(&[]);
                    // Where our own standard error is closed there is nobody to tell.
                    let _ = io::stderr().write_all(bytes);
                    tail.lock().push(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let mut tail = Tail::default();
        tail.push(&[1; 100_000]);
        tail.push(&[2; 10]);
        assert_eq!(tail.bytes.len(), 65_536);
        assert_eq!(tail.bytes.back(), Some(&2));
        assert_eq!(tail.into_bytes().first(), Some(&1));
    }
}
