//! Runs entry points over inputs and looks at what each has of memory: as tests, some hundred
//! thousand inputs each, and as a campaign on all cores.
//!
//! Both crates that have entry points use this file. What an input is follows from the seed, the
//! target and the number of its slice alone. A failure prints the seed and the input.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use strongroom_protocol::fuzzing::Target;
use strongroom_protocol::id::to_hex;

use crate::mutate::{Random, next_input};
use crate::seeds;

const ITERATIONS: u64 = 200_000;
const CAMPAIGN_ITERATIONS: u64 = 100_000_000;
const SEED: u64 = 1;
/// A target of a campaign is run in so many slices.
const SLICES: u64 = 8;

/// The targets of a crate, and its folder of programs and corpus.
pub struct Fuzz {
    pub targets: &'static [Target],
    pub folder: PathBuf,
}

/// A part of what a target is given.
#[derive(Clone, Copy)]
struct Slice {
    target: &'static Target,
    number: u64,
    inputs: u64,
}

/// What came of inputs.
#[derive(Default, Clone, Copy)]
struct Tally {
    inputs: u64,
    accepted: u64,
    /// Most memory at once, and for how long an input.
    peak: (u64, usize),
    slowest: Duration,
    elapsed: Duration,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        self.accepted += other.accepted;
        self.peak = self.peak.max(other.peak);
        self.slowest = self.slowest.max(other.slowest);
        self.elapsed += other.elapsed;
    }

    fn print(&self, name: &str) {
        let Self { inputs, accepted, peak: (bytes, length), slowest, elapsed } = self;
        let each = elapsed.as_nanos() / u128::from((*inputs).max(1));
        println!(
            "{name}: {inputs} inputs, {accepted} accepted, {each} ns each, slowest {slowest:?}, \
             at most {bytes} bytes of memory (for {length} bytes of input)"
        );
    }
}

/// Prints what is needed to see a failure again.
struct Report<'a> {
    slice: &'a Slice,
    seed: u64,
    input: Vec<u8>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (name, number) = (self.slice.target.name, self.slice.number);
            println!("{name} fails with FUZZ_SEED={} in slice {number} on:", self.seed);
            println!("{}", to_hex(&self.input));
        }
    }
}

pub fn number_from(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn seed() -> u64 {
    number_from("FUZZ_SEED", SEED)
}

impl Fuzz {
    /// The corpus of a target: its seeds, and whatever a campaign found and somebody kept.
    fn corpus_of(&self, target: &Target) -> Vec<Vec<u8>> {
        let folder = self.folder.join("corpus").join(target.name);
        let files = fs::read_dir(&folder).unwrap_or_else(|_| panic!("{}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// A target as a test.
    pub fn run(&self, name: &str) {
        let target = self.targets.iter().find(|target| target.name == name).unwrap();
        let inputs = number_from("FUZZ_ITERATIONS", ITERATIONS) / target.cost;
        let slice = Slice { target, number: 0, inputs };
        println!("{name}: seed {}", seed());
        run_slice(&slice, &self.corpus_of(target)).print(name);
    }

    /// All targets, in slices, on all cores. Goes on after a finding, and fails in the end.
    pub fn campaign(&self) {
        let iterations = number_from("FUZZ_ITERATIONS", CAMPAIGN_ITERATIONS);
        let slice = |target: &'static Target, number: u64| {
            let inputs = (iterations / target.cost).div_ceil(SLICES);
            Slice { target, number, inputs }
        };
        let all = self.targets.iter().rev();
        let slices = all.flat_map(|target| (0..SLICES).map(move |number| slice(target, number)));
        let queue = Mutex::new(slices.collect::<Vec<_>>());
        let tallies = Mutex::new(BTreeMap::new());
        let corpora = self.targets.iter().map(|target| (target.name, self.corpus_of(target)));
        let corpora: Corpora = corpora.collect();
        let cores = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        std::thread::scope(|scope| {
            for _ in 0..number_from("FUZZ_THREADS", cores) {
                scope.spawn(|| work(&queue, &corpora, &tallies));
            }
        });
        summary(self.targets, &tallies.into_inner().unwrap());
    }
}

fn work(queue: &Mutex<Vec<Slice>>, corpora: &Corpora, tallies: &Mutex<Tallies>) {
    loop {
        let Some(slice) = queue.lock().unwrap().pop() else { return };
        let corpus = &corpora[slice.target.name];
        let outcome = catch_unwind(AssertUnwindSafe(|| run_slice(&slice, corpus)));
        let mut tallies = tallies.lock().unwrap();
        let (tally, ended) = tallies.entry(slice.target.name).or_default();
        *ended += 1;
        if let Ok(added) = outcome {
            tally.add(&added);
        }
        if *ended == SLICES {
            tally.print(slice.target.name);
        }
    }
}

fn run_slice(slice: &Slice, corpus: &[Vec<u8>]) -> Tally {
    let Slice { target, number, inputs } = *slice;
    let mut random = random_of(target.name, number);
    let mut report = Report { slice, seed: seed(), input: Vec::new() };
    let (started, mut tally) = (Instant::now(), Tally::default());
    for round in 0..inputs {
        match corpus.get(usize::try_from(round).unwrap()) {
            Some(input) => report.input.clone_from(input),
            None => next_input(&mut random, corpus, &mut report.input),
        }
        tally.take(target, &report.input);
    }
    tally.elapsed = started.elapsed();
    tally
}

/// The inputs of each target from which others are made.
type Corpora = BTreeMap<&'static str, Vec<Vec<u8>>>;
/// What came of each target, and how many of its slices ended.
type Tallies = BTreeMap<&'static str, (Tally, u64)>;

/// The last lines of a campaign, which a script reads.
fn summary(targets: &[Target], tallies: &Tallies) {
    let inputs = |target: &Target| tallies.get(target.name).map_or(0, |(tally, _)| tally.inputs);
    let iterations = number_from("FUZZ_ITERATIONS", CAMPAIGN_ITERATIONS);
    // A slice that failed counted nothing.
    let findings = targets.iter().filter(|target| inputs(target) < iterations / target.cost);
    let findings = findings.count();
    for (kind, is_signing) in [("signing", true), ("reading", false)] {
        let of_kind = targets.iter().filter(|target| (target.cost > 1) == is_signing);
        let (count, least) = (of_kind.clone().count(), of_kind.map(inputs).min());
        println!("fuzz {kind}: {count} {} {findings} {}", least.unwrap_or(u64::MAX), seed());
    }
    assert_eq!(findings, 0, "see above");
}

impl Tally {
    /// Gives the target an input.
    fn take(&mut self, target: &Target, input: &[u8]) {
        let before = Instant::now();
        let mut is_accepted = false;
        let memory = measure(|| is_accepted = (target.decode)(input)).bytes_max;
        self.slowest = self.slowest.max(before.elapsed());
        self.inputs += 1;
        self.accepted += u64::from(is_accepted);
        self.peak = self.peak.max((memory, input.len()));
        let bound = target.memory.bound(input.len());
        assert!(memory <= bound, "{memory} bytes of memory for {} of input", input.len());
    }
}

/// Each slice of each target has its own stream of random numbers.
fn random_of(name: &str, slice: u64) -> Random {
    let start = seed().wrapping_add(slice.wrapping_mul(0x9e37_79b9));
    Random::new(name.bytes().fold(start, |sum, byte| sum.wrapping_mul(257) ^ u64::from(byte)))
}

/// Every target has a program for libFuzzer, and every program a target.
pub fn check_programs(fuzz: &Fuzz) {
    let mut programs: Vec<String> = fs::read_dir(fuzz.folder.join("fuzz_targets"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    programs.sort();
    let mut wanted: Vec<String> =
        fuzz.targets.iter().map(|target| format!("{}.rs", target.name)).collect();
    wanted.sort();
    assert_eq!(programs, wanted);
    let manifest = fs::read_to_string(fuzz.folder.join("Cargo.toml")).unwrap();
    for target in fuzz.targets {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}

/// The seeds of every target are in its corpus, and it accepts them; what else is there does no
/// harm. `WRITE_CORPUS=1` writes them.
pub fn check_seeds(fuzz: &Fuzz) {
    for target in fuzz.targets {
        let folder = fuzz.folder.join("corpus").join(target.name);
        let seeds = seeds::of(target.name);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for (name, bytes) in seeds {
            assert!((target.decode)(&bytes), "{}/{name} is refused", target.name);
            let path = folder.join(name);
            if env::var("WRITE_CORPUS").is_ok() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            assert!(fs::read(&path).is_ok_and(|kept| kept == bytes), "{} differs", path.display());
        }
    }
}

/// Every target is named in the list of tests, which is in `source`.
pub fn check_tests(fuzz: &Fuzz, source: &str) {
    for target in fuzz.targets {
        let line = format!("    {};", target.name);
        assert!(source.lines().any(|text| text == line), "{}", target.name);
    }
}
