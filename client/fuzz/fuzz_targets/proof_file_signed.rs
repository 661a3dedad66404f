//! Fuzzes `fuzzing::read_proof_file_signed`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_client::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::read_proof_file_signed(data);
});
