//! See `fuzz_bodies::nat_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::nat_frames(data));
