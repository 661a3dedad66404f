//! The fuzz targets of `protocol/fuzz/`, run on stable: each entry point over its corpus, over
//! changes of the corpus, and over bytes at random.
//!
//! `FUZZ_ITERATIONS` sets how many inputs each target gets, `FUZZ_SEED` which. `WRITE_CORPUS=1`
//! writes the seeds of `seeds.rs` into the corpus.
#![allow(clippy::unwrap_used, reason = "a test")]

mod mutate;
mod runner;
mod seeds;

use std::path::Path;

use strongroom_protocol::fuzzing::TARGETS;

use crate::runner::Fuzz;

fn fuzz() -> Fuzz {
    Fuzz { targets: &TARGETS, folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz") }
}

#[test]
fn every_target_has_a_program_and_every_program_a_target() {
    runner::check_programs(&fuzz());
}

#[test]
fn seeds_are_in_the_corpus_and_accepted() {
    runner::check_seeds(&fuzz());
}

#[test]
fn every_target_is_run() {
    runner::check_tests(&fuzz(), include_str!("main.rs"));
}

/// Not a test of every day: 10^8 inputs for each target.
#[test]
#[ignore = "make campaign-fuzz"]
fn campaign() {
    fuzz().campaign();
}

macro_rules! fuzz {
    ($($name:ident;)*) => {$(
        #[test]
        fn $name() {
            fuzz().run(stringify!($name));
        }
    )*};
}

fuzz! {
    catalogue;
    certificate;
    checkpoint;
    checkpoint_signed;
    descriptor;
    descriptor_signed;
    enroll_request;
    entry;
    envelope;
    frames;
    hex_bytes;
    key_block;
    lend_proof;
    merkle;
    name;
    node;
    policy;
    promotion;
    receipt;
    record;
    record_body;
    roll_request;
    route;
    seed_manifest;
    seed_table;
    tile;
    token;
}
