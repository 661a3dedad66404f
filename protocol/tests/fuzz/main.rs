//! The fuzz targets of `protocol/fuzz/`, run on stable: each entry point over its corpus, over
//! changes of the corpus, and over bytes at random.
//!
//! `FUZZ_ITERATIONS` sets how many inputs each target gets, `FUZZ_SEED` which. A failure prints
//! the seed and the input. `WRITE_CORPUS=1` writes the seeds of `seeds.rs` into the corpus.
#![allow(clippy::unwrap_used, reason = "a test")]

mod mutate;
mod seeds;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use strongroom_protocol::fuzzing::{TARGETS, Target};
use strongroom_protocol::id::to_hex;

use crate::mutate::{Random, next_input};

const ITERATIONS: u64 = 200_000;
const SEED: u64 = 1;
/// No input of at most 64 KiB may take as long as this, on however slow and busy a machine.
const ONE_INPUT_MAX: Duration = Duration::from_secs(5);

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The corpus of a target: its seeds, and whatever a campaign found and somebody kept.
fn corpus_of(target: &Target) -> Vec<Vec<u8>> {
    let folder = fuzz_folder().join("corpus").join(target.name);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn number_from(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Prints what is needed to see a failure again.
struct Report<'a> {
    target: &'a str,
    seed: u64,
    input: Vec<u8>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{} fails with FUZZ_SEED={} on:", self.target, self.seed);
            println!("{}", to_hex(&self.input));
        }
    }
}

/// `share` is the part of the iterations that a slow target gets: one in so many.
fn run(name: &str, share: u64) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let (seed, mut random) = seed_of(name);
    let iterations = number_from("FUZZ_ITERATIONS", ITERATIONS) / share;
    let corpus = corpus_of(target);
    let mut report = Report { target: name, seed, input: Vec::new() };
    let (started, mut accepted, mut slowest) = (Instant::now(), 0u64, Duration::ZERO);
    for round in 0..iterations {
        let seeds = usize::try_from(round).unwrap();
        report.input = match corpus.get(seeds) {
            Some(input) => input.clone(),
            None => next_input(&mut random, &corpus),
        };
        let before = Instant::now();
        accepted += u64::from((target.decode)(&report.input));
        slowest = slowest.max(before.elapsed());
    }
    assert!(slowest < ONE_INPUT_MAX, "{name}: an input took {slowest:?}");
    println!(
        "{name}: seed {seed}, {iterations} inputs, {accepted} accepted, {:?}, slowest {slowest:?}",
        started.elapsed()
    );
}

/// Each target has its own stream of random numbers.
fn seed_of(name: &str) -> (u64, Random) {
    let seed = number_from("FUZZ_SEED", SEED);
    let salt = name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(257) ^ u64::from(byte));
    (seed, Random::new(salt))
}

#[test]
fn every_target_has_a_program_and_every_program_a_target() {
    let mut programs: Vec<String> = fs::read_dir(fuzz_folder().join("fuzz_targets"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    programs.sort();
    let wanted: Vec<String> = TARGETS.iter().map(|target| format!("{}.rs", target.name)).collect();
    assert_eq!(programs, wanted);
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}

#[test]
fn seeds_are_in_the_corpus_and_accepted() {
    for target in TARGETS {
        let folder = fuzz_folder().join("corpus").join(target.name);
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

macro_rules! fuzz {
    ($($name:ident, $share:literal;)*) => {$(
        #[test]
        fn $name() {
            run(stringify!($name), $share);
        }
    )*};
}

fuzz! {
    catalogue, 1;
    certificate, 1;
    checkpoint, 10;
    descriptor, 10;
    enroll_request, 1;
    entry, 1;
    envelope, 1;
    frames, 1;
    hex_bytes, 1;
    key_block, 1;
    merkle, 2;
    name, 1;
    node, 1;
    promotion, 1;
    receipt, 1;
    record, 1;
    record_body, 1;
    roll_request, 1;
    route, 1;
    seed_manifest, 1;
    seed_table, 1;
    token, 1;
}

#[test]
fn every_target_is_run() {
    let source = include_str!("main.rs");
    for target in TARGETS {
        let line = format!("    {}, ", target.name);
        assert!(source.lines().any(|text| text.starts_with(&line)), "{}", target.name);
    }
}
