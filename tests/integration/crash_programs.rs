//! `kill -9` of the real programs, server and clients, at random moments, while backups of several
//! sources, forgets and collection cycles run: what a client printed a receipt of is there, locked
//! and whole; what nobody was told of is whole, or nowhere.
//!
//! Where time namespaces and libfaketime are to be had, the server's clocks stand a day later at
//! every few starts, so that locks end, quarantines pass and cycles reap. Else they only look.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use strongroom_client::kit::Kit;
use strongroom_client::landing::Target;
use strongroom_client::progress::Monitor;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::snapshot::list_rows;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::message::SnapshotRow;

use crate::claims::below;
use crate::clock::faketime_library;
use crate::harness::{connect_to, program, unpack_dumps};
use crate::programs::{Served, json, text};
use crate::replica_kill::{Dice, socket};

const CONFIG: &str = "segment = \"1MiB\"\n[retention]\nminimum = \"1d\"\ndefault = \"1d\"\n\
                      [gc]\nquarantine = \"1d\"\npace = 1.0\n";
/// Each machine has a namespace of its own.
const MACHINES: [&str; 2] = ["erp", "shop"];
const DUMP_BYTES: usize = 300_000;
const FILES: u64 = 8;
/// The server's clocks stand a day later at one start of so many.
const STARTS_A_DAY: u64 = 3;

type Hash = [u8; 32];

/// A program that can be killed by whoever has it.
#[derive(Default)]
struct Running(Mutex<Option<Child>>);

impl Running {
    fn start(&self, command: &mut Command) {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        *self.0.lock().unwrap() = Some(child.spawn().unwrap());
    }

    /// Waits for the program to end, however that comes; its exit code and output.
    fn wait(&self) -> (ExitStatus, String, String) {
        loop {
            let mut running = self.0.lock().unwrap();
            if running.as_mut().unwrap().try_wait().unwrap().is_some() {
                let output = running.take().unwrap().wait_with_output().unwrap();
                return (output.status, text(&output.stdout), text(&output.stderr));
            }
            drop(running);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills what runs; whether anything did.
    fn kill(&self) -> bool {
        let mut running = self.0.lock().unwrap();
        let Some(child) = running.as_mut() else { return false };
        child.try_wait().unwrap().is_none() && child.kill().is_ok()
    }
}

/// What may be done to a round besides working in it.
struct Round {
    dice: Dice,
    number: u64,
    is_over: AtomicBool,
    /// A server that was killed excuses a client that fails.
    is_server_killed: AtomicBool,
    was_client_killed: AtomicBool,
}

impl Round {
    fn kills_server(&self) -> bool {
        self.dice.byte(2) % 4 != 1
    }
}

/// A machine that makes backups of three sources.
struct Machine {
    home: PathBuf,
    folder: PathBuf,
    days: Vec<Vec<u8>>,
    running: Running,
    kit: Kit,
}

/// What a backup was of, and whether it was acknowledged.
struct Attempt {
    hash: Hash,
    acknowledged: Option<RecordDigest>,
}

impl Machine {
    fn client(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("strongroom"));
        command.arg("--home").arg(&self.home).args(words);
        command
    }

    /// Makes backups until the round is over.
    fn work(&self, round: &Round, salt: u64) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for turn in 0.. {
            if round.is_over.load(Ordering::SeqCst) {
                break;
            }
            let dice = Dice::of(round.number * 1000 + turn, salt);
            attempts.push(self.back_up(round, &dice));
        }
        attempts
    }

    fn back_up(&self, round: &Round, dice: &Dice) -> Attempt {
        let source = ["db", "mail", "files"][usize::try_from(dice.byte(0) % 3).unwrap()];
        let (path, hash) = match source {
            "files" => self.next_tree(dice),
            _ => self.next_dump(source, dice),
        };
        let words = ["--json", "backup", source, path.to_str().unwrap()];
        self.running.start(&mut self.client(&words));
        let (status, output, errors) = self.running.wait();
        let receipt: Option<serde_json::Value> = serde_json::from_str(&output).ok();
        let acknowledged =
            receipt.map(|receipt| receipt["snapshot"].as_str().unwrap().parse().unwrap());
        assert!(!status.success() || acknowledged.is_some(), "{status}: {output} {errors}");
        let is_excused = round.is_server_killed.load(Ordering::SeqCst)
            || round.was_client_killed.load(Ordering::SeqCst);
        assert!(status.success() || is_excused, "a backup that nobody killed: {errors}");
        Attempt { hash, acknowledged }
    }

    /// A real dump, a little later each time, and some bytes that no other has.
    fn next_dump(&self, source: &str, dice: &Dice) -> (PathBuf, Hash) {
        let day = &self.days[usize::try_from(dice.byte(1)).unwrap() % self.days.len()];
        let mut bytes = day[..DUMP_BYTES - 1000 * usize::try_from(dice.byte(2)).unwrap()].to_vec();
        bytes.extend((3..32).flat_map(|at| dice.byte(at).to_le_bytes()).cycle().take(5000));
        let path = self.folder.join(source);
        std::fs::write(&path, &bytes).unwrap();
        (path, *blake3::hash(&bytes).as_bytes())
    }

    /// A folder of which one file changed.
    fn next_tree(&self, dice: &Dice) -> (PathBuf, Hash) {
        let folder = self.folder.join("files");
        std::fs::create_dir_all(&folder).unwrap();
        let changed = format!("file{}", dice.byte(1) % FILES);
        let bytes: Vec<u8> = (2..32).flat_map(|at| dice.byte(at).to_le_bytes()).collect();
        std::fs::write(folder.join(changed), bytes.repeat(40)).unwrap();
        let hash = hash_below(&folder);
        (folder, hash)
    }
}

/// A hash of a file, or of the names and contents of the files below a folder.
fn hash_below(path: &Path) -> Hash {
    if path.is_file() {
        return *blake3::hash(&std::fs::read(path).unwrap()).as_bytes();
    }
    let mut files = Vec::new();
    below(path, &mut files);
    files.sort_by_key(|file| file.file_name().map(OsStr::to_owned));
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(file.file_name().unwrap().as_encoded_bytes());
        hasher.update(blake3::hash(&std::fs::read(&file).unwrap()).as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// What clients were told of the snapshots of one machine.
#[derive(Default)]
struct Told {
    attempted: HashSet<Hash>,
    /// Acknowledged, with what was backed up; whoever forgot one is not told of it any more.
    kept: BTreeMap<RecordDigest, Hash>,
    /// Acknowledged in this round.
    fresh: BTreeSet<RecordDigest>,
    /// Whether it was forgotten was never answered.
    doubtful: BTreeSet<RecordDigest>,
    gone: BTreeSet<RecordDigest>,
    /// Read back to the last byte.
    verified: BTreeSet<RecordDigest>,
    /// Listed, and kept by nothing any more.
    free: Vec<RecordDigest>,
}

impl Told {
    fn add(&mut self, attempts: Vec<Attempt>) {
        for Attempt { hash, acknowledged } in attempts {
            self.attempted.insert(hash);
            if let Some(record) = acknowledged {
                self.kept.insert(record, hash);
                self.fresh.insert(record);
            }
        }
    }
}

/// What a campaign found.
#[derive(Default)]
struct Findings {
    kills: u64,
    lost: u64,
    half: u64,
    acknowledged: usize,
    forgotten: usize,
    restored: u64,
}

struct Campaign {
    served: Served,
    seed: u64,
    machines: Vec<Machine>,
    told: Vec<Told>,
    operator: Running,
    found: Findings,
    starts: u64,
    library: Option<&'static str>,
    runtime: tokio::runtime::Runtime,
}

impl Campaign {
    fn new(seed: u64) -> Self {
        let mut served = Served::start();
        assert!(served.signal(Signal::TERM).success());
        served.config = CONFIG.into();
        served.serve();
        let days = unpack_dumps(served.folder.path());
        let days: Vec<Vec<u8>> = days.iter().map(|day| std::fs::read(day).unwrap()).collect();
        let machines = MACHINES.map(|namespace| set_up(&served, namespace, &days)).into();
        let token = served.token(None, "operator");
        let enrolled = served.client("operator", &["enroll", "--token", &token]);
        assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
        Self {
            served,
            seed,
            machines,
            told: MACHINES.map(|_| Told::default()).into(),
            operator: Running::default(),
            found: Findings::default(),
            starts: 0,
            library: time_namespaces().then(faketime_library).flatten(),
            runtime: tokio::runtime::Runtime::new().unwrap(),
        }
    }

    /// The next start of the server is now and then a day later.
    fn next_start(&mut self) {
        self.starts += 1;
        let days = self.starts / STARTS_A_DAY;
        if let Some(library) = self.library {
            let boot = (days * 86_400).to_string();
            let words = ["unshare", "--time", "--boottime", &boot, "--", "env"].map(str::to_owned);
            let lies = [
                format!("LD_PRELOAD={library}"),
                format!("FAKETIME=+{days}d"),
                "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
                "FAKETIME_DISABLE_SHM=1".to_owned(),
            ];
            self.served.wrapper = words.into_iter().chain(lies).collect();
        }
    }

    /// Everybody works, and somebody is killed.
    fn round(&mut self, number: u64) {
        let round = Round {
            dice: Dice::of(self.seed, number),
            number,
            is_over: AtomicBool::new(false),
            is_server_killed: AtomicBool::new(false),
            was_client_killed: AtomicBool::new(false),
        };
        if round.kills_server() {
            self.next_start();
        }
        let (machines, operator, cycling) = (&self.machines, &self.operator, Running::default());
        let candidates: Vec<_> = self.told.iter().map(|told| told.free.clone()).collect();
        let is_cycling = round.dice.byte(3).is_multiple_of(2);
        if is_cycling {
            cycling.start(&mut self.served.prepared(&["gc", "run"]));
        }
        let forget = Forget { home: self.served.folder.path().join("operator"), candidates };
        let served = &mut self.served;
        let (attempts, forgotten, kills) = std::thread::scope(|scope| {
            let work = |at: usize| {
                let round = &round;
                scope.spawn(move || machines[at].work(round, at as u64))
            };
            let working: Vec<_> = (0..machines.len()).map(work).collect();
            let forgetting = scope.spawn(|| forget.work(operator, &round));
            std::thread::sleep(Duration::from_millis(20 + round.dice.byte(1) * 2));
            let kills = kill(served, machines, [operator, &cycling], &round);
            let attempts: Vec<_> = working.into_iter().map(|work| work.join().unwrap()).collect();
            (attempts, forgetting.join().unwrap(), kills)
        });
        if is_cycling {
            cycling.wait();
        }
        self.found.kills += kills;
        for (told, attempts) in self.told.iter_mut().zip(attempts) {
            told.add(attempts);
        }
        for (at, record, answer) in forgotten {
            self.note_forgotten(at, record, answer);
        }
        self.check();
    }

    fn note_forgotten(&mut self, at: usize, record: RecordDigest, answer: Answer) {
        let told = &mut self.told[at];
        match answer {
            Answer::Done => {
                told.kept.remove(&record);
                told.gone.insert(record);
                self.found.forgotten += 1;
            }
            Answer::Unknown => drop(told.doubtful.insert(record)),
            Answer::Refused => {}
        }
    }

    /// Compares what is listed with what clients were told, and reads back what is new.
    fn check(&mut self) {
        for at in 0..self.machines.len() {
            let connect = connect_to(socket(&self.served));
            let kit = &self.machines[at].kit;
            let access = self.runtime.block_on(ReadAccess::with_kit(kit, &connect, false)).unwrap();
            let rows = self.runtime.block_on(list_rows(&access, None)).unwrap();
            self.compare(at, &rows);
            let told = &self.told[at];
            let new = rows.iter().filter(|row| !told.verified.contains(&row.record));
            let new: Vec<RecordDigest> = new.map(|row| row.record).collect();
            for record in new {
                self.read_back(at, &access, record);
            }
        }
    }

    fn compare(&mut self, at: usize, rows: &[SnapshotRow]) {
        let (told, found) = (&mut self.told[at], &mut self.found);
        let listed: BTreeSet<RecordDigest> = rows.iter().map(|row| row.record).collect();
        for record in std::mem::take(&mut told.doubtful) {
            if !listed.contains(&record) {
                told.kept.remove(&record);
                told.gone.insert(record);
            }
        }
        for record in told.kept.keys().filter(|record| !listed.contains(record)) {
            println!("{record} was acknowledged and is lost");
            found.lost += 1;
        }
        for row in rows {
            assert!(!told.gone.contains(&row.record), "forgotten {} came back", row.record);
            // A day at least, and the clock goes on by a day at most between commit and check.
            let is_fresh =
                told.fresh.contains(&row.record) && !self.starts.is_multiple_of(STARTS_A_DAY);
            assert!(!is_fresh || row.kept.is_some(), "{} is not locked", row.record);
        }
        found.acknowledged += std::mem::take(&mut told.fresh).len();
        let free = rows.iter().filter(|row| row.kept.is_none());
        told.free = free.map(|row| row.record).collect();
    }

    /// A snapshot that is listed must be one that somebody tried to make, to the last byte.
    fn read_back(&mut self, at: usize, access: &ReadAccess, record: RecordDigest) {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("restored");
        let options = RestoreOptions::to(Target::Path(to.clone()));
        let monitor = Monitor::hidden();
        let restoring = restore::restore(access, record, &options, &monitor);
        let outcome = self.runtime.block_on(restoring);
        let told = &mut self.told[at];
        let is_whole = outcome.is_ok() && {
            let hash = hash_below(&to);
            told.kept.get(&record).map_or(told.attempted.contains(&hash), |kept| *kept == hash)
        };
        if !is_whole {
            println!("{record} is not whole: {:?}", outcome.err());
            self.found.half += 1;
        }
        told.verified.insert(record);
        self.found.restored += 1;
    }

    /// Reads everything back once more, and lets the server look at itself.
    fn end(&mut self) -> String {
        for told in &mut self.told {
            told.verified.clear();
        }
        self.check();
        let cycle = self.served.command(&["gc", "run"]);
        assert!(cycle.status.success(), "{}", text(&cycle.stderr));
        let scrubbed = self.served.command(&["scrub", "run", "--json"]);
        assert!(scrubbed.status.success(), "{} {}", text(&scrubbed.stdout), text(&scrubbed.stderr));
        self.check();
        let cycles = json(&self.served.command(&["gc", "status", "--json"]));
        assert!(self.served.signal(Signal::TERM).success());
        cycles.to_string()
    }
}

fn set_up(served: &Served, namespace: &'static str, days: &[Vec<u8>]) -> Machine {
    let folder = served.folder.path().join(format!("{namespace}-data"));
    let kits = folder.join("kit");
    std::fs::create_dir_all(&folder).unwrap();
    let token = served.token(Some(namespace), "backup");
    let words = ["setup", "--token", &token, "--kit-folder", kits.to_str().unwrap()];
    let done = served.client(namespace, &words);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let files = std::fs::read_dir(&kits).unwrap().map(|file| file.unwrap().path());
    let kit = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "txt"));
    let kit = Kit::parse(&std::fs::read_to_string(kit.unwrap()).unwrap()).unwrap();
    let home = served.folder.path().join(namespace);
    let (days, running) = (days.to_vec(), Running::default());
    Machine { home, folder, days, running, kit }
}

/// Kills whom the dice name, and ends the round; how many were alive.
fn kill(
    served: &mut Served,
    machines: &[Machine],
    [operator, cycling]: [&Running; 2],
    round: &Round,
) -> u64 {
    let whom = round.dice.byte(2);
    let mut kills = 0;
    if round.kills_server() {
        round.is_server_killed.store(true, Ordering::SeqCst);
        served.signal(Signal::KILL);
        // Without a server it would open the folder itself, or does already.
        kills += 1 + u64::from(cycling.kill());
    }
    round.is_over.store(true, Ordering::SeqCst);
    if !whom.is_multiple_of(4) {
        round.was_client_killed.store(true, Ordering::SeqCst);
        kills += u64::from(machines[usize::from(whom & 4 == 0)].running.kill());
        kills += u64::from(whom & 8 == 0 && operator.kill());
    }
    // Whoever lives goes on when the server is back.
    if round.kills_server() {
        served.serve();
    }
    kills
}

/// What came of a wish to forget.
enum Answer {
    Done,
    Refused,
    Unknown,
}

/// An operator who forgets what is not locked any more.
struct Forget {
    home: PathBuf,
    candidates: Vec<Vec<RecordDigest>>,
}

impl Forget {
    fn work(&self, running: &Running, round: &Round) -> Vec<(usize, RecordDigest, Answer)> {
        let mut answers = Vec::new();
        for (at, records) in self.candidates.iter().enumerate() {
            for record in records {
                if round.is_over.load(Ordering::SeqCst) {
                    return answers;
                }
                let name = record.to_string();
                let mut command = Command::new(program("strongroom"));
                command.arg("--home").arg(&self.home);
                command.args(["forget", &name, "--namespace", MACHINES[at]]);
                running.start(&mut command);
                let (status, ..) = running.wait();
                let answer = match status.code() {
                    Some(0) => Answer::Done,
                    Some(4) => Answer::Refused,
                    _ => Answer::Unknown,
                };
                answers.push((at, *record, answer));
            }
        }
        answers
    }
}

fn time_namespaces() -> bool {
    let words = ["--time", "--boottime", "86400", "--", "true"];
    Command::new("unshare").args(words).output().is_ok_and(|output| output.status.success())
}

#[test]
fn no_acknowledged_snapshot_is_lost_when_server_and_client_programs_are_killed() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (kills, seed) = (number("KILLS", 20), number("SEED", 1));
    println!("campaign-crash: SEED={seed}");
    let mut campaign = Campaign::new(seed);
    for round in 0.. {
        if campaign.found.kills >= kills {
            break;
        }
        campaign.round(round);
    }
    let cycles = campaign.end();
    let Findings { kills, lost, half, acknowledged, forgotten, restored } = campaign.found;
    println!(
        "campaign-crash: {} starts of the server, {acknowledged} snapshots acknowledged, \
         {forgotten} forgotten, {restored} read back; cycles: {cycles}",
        campaign.starts
    );
    println!("campaign-crash: {kills} kills, {lost} acknowledged lost, {half} half visible");
    assert!(lost == 0 && half == 0);
    assert!(acknowledged > 0, "no snapshot was ever acknowledged: nothing was tested");
}
