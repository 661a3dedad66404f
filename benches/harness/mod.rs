//! What the benches of whole programs share: where things are, dumps, running programs and what
//! they use, references, a line, and rows of `target/bench.json`.
//!
//! A bench says `mod harness;` and takes what it needs; all of them run the programs that a user
//! runs, over TLS, with durability on.
#![allow(dead_code, reason = "no bench needs everything")]

pub mod place;
pub mod process;
pub mod programs;
pub mod reference;
pub mod relay;
pub mod rows;

/// Whatever ended a bench.
pub type Failure = Box<dyn std::error::Error>;

/// Whether the command line has this word.
pub fn has_word(wanted: &str) -> bool {
    std::env::args().any(|word| word == wanted)
}

/// How often everything is measured: `RUNS`, or 3, or 1 with `quick`.
pub fn run_count() -> Result<usize, Failure> {
    match std::env::var("RUNS") {
        Ok(text) => Ok(text.parse::<usize>()?.max(1)),
        Err(_) if has_word("quick") => Ok(1),
        Err(_) => Ok(3),
    }
}

/// Exact up to 2^53, far above any size here.
pub fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Decimal megabytes.
pub fn mb(bytes: u64) -> f64 {
    as_f64(bytes) / 1e6
}
