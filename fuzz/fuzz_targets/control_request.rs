//! See `fuzz_bodies::control_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::control_request(data));
