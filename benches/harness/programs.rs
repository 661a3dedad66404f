//! A running server, and a client that is set up, as a user starts them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use strongroom_protocol::token::Token;

use super::Failure;
use super::place::Place;
use super::process::{Measured, Usage, measure, peak_of, reset_peak, run_to_end};
use super::rows::Row;

const READY_WITHIN: Duration = Duration::from_secs(60);
const SYNC_WITHIN: Duration = Duration::from_secs(600);

/// A repository in a folder, and the process that serves it.
pub struct Server {
    program: PathBuf,
    folder: PathBuf,
    child: Child,
    /// Where clients go.
    pub address: SocketAddr,
    probes: SocketAddr,
    /// From the start of the process until it was ready.
    pub started_in: Duration,
}

impl Server {
    /// Makes a repository in `folder` and serves it.
    pub fn start(place: &Place, folder: &Path) -> Result<Self, Failure> {
        Self::start_with(place, folder, "")
    }

    /// The same with a configuration.
    pub fn start_with(place: &Place, folder: &Path, config: &str) -> Result<Self, Failure> {
        fs::create_dir_all(folder)?;
        let address = free_address()?;
        let init = ["init", "--host", "localhost", "--port", &address.port().to_string()];
        run_to_end(Command::new(&place.server).args(init).arg("--data").arg(folder.join("data")))?;
        fs::write(folder.join("config.toml"), config)?;
        Self::serve(place, folder, address)
    }

    /// Serves the repository that [`Self::start`] made in `folder`.
    pub fn serve(place: &Place, folder: &Path, address: SocketAddr) -> Result<Self, Failure> {
        let (probes, log) = (free_address()?, folder.join("server.log"));
        let mut serve = Command::new(&place.server);
        serve.args(["serve", "--listen", &address.to_string(), "--metrics", &probes.to_string()]);
        serve.arg("--data").arg(folder.join("data"));
        serve.arg("--config").arg(folder.join("config.toml"));
        serve.stdout(Stdio::null()).stderr(File::create(&log)?);
        let started = Instant::now();
        let mut server = Self {
            program: place.server.clone(),
            folder: folder.to_path_buf(),
            child: serve.spawn()?,
            address,
            probes,
            started_in: Duration::ZERO,
        };
        while !server.probe("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if server.child.try_wait()?.is_some() || started.elapsed() > READY_WITHIN {
                return Err(fs::read_to_string(&log)?.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        server.started_in = started.elapsed();
        Ok(server)
    }

    /// Ends the process in order; the repository stays.
    pub fn stop(self) {}

    /// Where the data is.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What a command on the data folder prints.
    pub fn command(&self, words: &[&str]) -> Result<String, Failure> {
        run_to_end(Command::new(&self.program).args(words).arg("--data").arg(self.data()))
    }

    /// An enrolment token for a backup machine of a namespace.
    pub fn token(&self, namespace: &str) -> Result<String, Failure> {
        let words = ["token", "--role", "backup", "--namespace", namespace];
        Ok(self.command(&words)?.trim().to_owned())
    }

    /// What the process has used so far.
    pub fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.child.id()).ok_or_else(|| "the server is gone".into())
    }

    /// Peak of memory since [`Self::reset_peak`].
    pub fn peak(&self) -> u64 {
        peak_of(self.child.id())
    }

    /// Forgets the peak of memory so far.
    pub fn reset_peak(&self) {
        reset_peak(self.child.id());
    }

    fn probe(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.probes)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Sum of the metrics whose name begins so.
    pub fn metric(&self, name: &str) -> Result<u64, Failure> {
        let text = self.probe("/metrics")?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }

    /// Follows a primary that is reached at `address`: where its token says, or through a relay.
    pub fn follow(&self, primary: &Self, address: SocketAddr) -> Result<(), Failure> {
        let token = primary.command(&["token", "--role", "replica"])?;
        let mut token = Token::from_text(token.trim())?;
        token.addresses = address.to_string();
        let token = token.to_text();
        self.command(&["replica", "add", "--token", &token, "--name", "office"]).map(drop)
    }

    /// Waits until the entries that the primary has now, and what they commit, are here. Whatever
    /// this server's questions add to the ledger there is not waited for.
    pub fn wait_for(&self, primary: &Self) -> Result<(), Failure> {
        let began = Instant::now();
        let answer: Value = serde_json::from_str(&primary.command(&["status", "--json"])?)?;
        let wanted = answer["status"]["ledger_size"].as_u64().ok_or("no ledger_size")?;
        loop {
            let answer = self.command(&["replica", "status", "--json"])?;
            let answer: Value = serde_json::from_str(&answer)?;
            let status = &answer["primaries"][0];
            let followed = status["followed_entries"].as_u64().unwrap_or(0);
            if followed >= wanted && status["pending_snapshots"] == 0 {
                return Ok(());
            }
            if began.elapsed() > SYNC_WITHIN {
                return Err(format!("never in sync: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ledger key as `status` shows it.
    pub fn ledger_key(&self) -> Result<String, Failure> {
        let answer: Value = serde_json::from_str(&self.command(&["status", "--json"])?)?;
        let key = answer["status"]["ledger_key"].as_str().map(str::to_owned);
        key.ok_or_else(|| format!("no ledger_key in {answer}").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A machine that is enrolled for backups of one namespace.
pub struct Client {
    program: PathBuf,
    /// Its profile and its kit.
    pub home: PathBuf,
    namespace: String,
}

impl Client {
    /// Enrols a new machine for a new namespace; `keys` are options of `key new`.
    pub fn set_up(
        place: &Place,
        server: &Server,
        namespace: &str,
        keys: &[&str],
    ) -> Result<Self, Failure> {
        let client = Self::at(place, &server.folder, namespace);
        fs::create_dir_all(&client.home)?;
        let token = server.token(namespace)?;
        let mut setup = client.command("machine");
        setup.args(["setup", "--token", &token, "--kit-folder"]).arg(&client.home).args(keys);
        run_to_end(&mut setup)?;
        Ok(client)
    }

    /// The machine that [`Self::set_up`] enrolled on a server in `folder`.
    pub fn at(place: &Place, folder: &Path, namespace: &str) -> Self {
        let home = folder.join(format!("client-{namespace}"));
        Self { program: place.client.clone(), home, namespace: namespace.to_owned() }
    }

    /// A command with a folder of profiles of this name.
    pub fn command(&self, profiles: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--home").arg(self.home.join(profiles)).arg("--json");
        command
    }

    /// The command that backs up a file.
    pub fn backup_of(&self, source: &str, file: &Path) -> Command {
        let mut command = self.command("machine");
        command.args(["backup", source]).arg(file);
        command
    }

    /// Backs a file up, unmeasured; gives the summary.
    pub fn backup(&self, source: &str, file: &Path) -> Result<Value, Failure> {
        Ok(serde_json::from_str(&run_to_end(&mut self.backup_of(source, file))?)?)
    }

    /// The command that restores the newest snapshot of a source with nothing but the kit.
    pub fn restore_of(&self, source: &str, to: &Path) -> Command {
        let mut command = self.command("fresh");
        command.args(["restore", &format!("{source}@latest"), "--kit"]);
        command.arg(self.home.join(format!("recovery-kit-{}.txt", self.namespace)));
        command.arg("--to").arg(to).stdout(Stdio::null());
        command
    }

    /// A row for what a command of this client takes, on this side and on the server's. What was
    /// written before is on disk when it starts.
    pub fn row(
        &self,
        scenario: &str,
        server: &Server,
        command: &mut Command,
    ) -> Result<(Row, String), Failure> {
        run_to_end(&mut Command::new("sync"))?;
        let log = self.home.join("client.log");
        command.stderr(File::create(&log)?);
        server.reset_peak();
        let before = server.usage()?;
        let Measured { seconds, usage, output } = measure(command).map_err(|failure| {
            format!("{failure}: {}", fs::read_to_string(&log).unwrap_or_default())
        })?;
        let after = server.usage()?;
        let row = Row {
            scenario: scenario.to_owned(),
            seconds,
            client_cpu_seconds: usage.cpu_seconds,
            server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            client_peak_bytes: usage.peak_bytes,
            server_peak_bytes: after.peak_bytes,
            written_bytes: Some(after.written_bytes - before.written_bytes),
            ..Row::default()
        };
        Ok((row, output))
    }

    /// A row for the backup of a file.
    pub fn backup_row(
        &self,
        scenario: &str,
        server: &Server,
        source: &str,
        file: &Path,
    ) -> Result<Row, Failure> {
        let mut command = self.backup_of(source, file);
        let (row, json) = self.row(scenario, server, command.stdout(Stdio::piped()))?;
        row.of_summary(&serde_json::from_str(&json)?)
    }

    /// A row for a restore of `bytes`; to standard output, which nobody reads, without a file.
    pub fn restore_row(
        &self,
        scenario: &str,
        server: &Server,
        (source, bytes): (&str, u64),
        to: Option<&Path>,
    ) -> Result<Row, Failure> {
        let mut command = self.restore_of(source, to.unwrap_or(Path::new("-")));
        let (row, _) = self.row(scenario, server, &mut command)?;
        Ok(row.rate_of(bytes))
    }
}

/// A backup by each client of its part, all at the same time.
pub fn all_at_once(clients: &[Client], parts: &[PathBuf]) -> Result<Vec<Measured>, Failure> {
    let measured = std::thread::scope(|scope| {
        let start = |(client, part): (&Client, &PathBuf)| {
            let mut backup = client.backup_of("day", part);
            backup.stdout(Stdio::piped()).stderr(Stdio::null());
            scope.spawn(move || measure(&mut backup).map_err(|failure| failure.to_string()))
        };
        let threads: Vec<_> = clients.iter().zip(parts).map(start).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, Result<Measured, String>>| {
            thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        threads.into_iter().map(end).collect::<Result<Vec<Measured>, String>>()
    })?;
    Ok(measured)
}
