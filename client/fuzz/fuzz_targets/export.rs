//! Fuzzes `fuzzing::read_export`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_client::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::read_export(data);
});
