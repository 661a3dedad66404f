//! The fuzz targets of `client/fuzz/`, run on stable by the runner of `protocol/tests/fuzz/`.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../../protocol/tests/fuzz/mutate.rs"]
mod mutate;
#[path = "../../../protocol/tests/fuzz/runner.rs"]
mod runner;
mod seeds;

use std::path::Path;

use strongroom_client::fuzzing::TARGETS;

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
    addresses;
    age_file;
    catalogue_rules;
    chunk_payload;
    export;
    json;
    kit;
    proof_file;
    proof_file_signed;
    share;
}
