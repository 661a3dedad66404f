//! Fuzzes `fuzzing::read_chunk_payload`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_client::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::read_chunk_payload(data);
});
