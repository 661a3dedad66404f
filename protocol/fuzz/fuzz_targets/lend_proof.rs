//! Fuzzes `fuzzing::decode_lend_proof`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_protocol::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::decode_lend_proof(data);
});
