//! Fuzzes `fuzzing::read_json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_client::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::read_json(data);
});
