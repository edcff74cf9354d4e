//! See `fuzz_bodies::fs_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::fs_requests(data));
