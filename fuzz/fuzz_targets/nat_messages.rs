//! See `fuzz_bodies::nat_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::nat_messages(data));
