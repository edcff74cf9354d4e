//! See `fuzz_bodies::state_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::state_stream(data));
