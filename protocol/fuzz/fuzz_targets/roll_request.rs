//! Fuzzes `fuzzing::decode_roll_request`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_protocol::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::decode_roll_request(data);
});
