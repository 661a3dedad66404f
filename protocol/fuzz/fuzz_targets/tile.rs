//! Fuzzes `fuzzing::decode_tile`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_protocol::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::decode_tile(data);
});
