//! See `fuzz_bodies::loader_damaged`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::loader_damaged(data));
