//! See `fuzz_bodies::loader_payload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::loader_payload(data));
