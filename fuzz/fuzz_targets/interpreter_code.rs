//! See `fuzz_bodies::interpreter_code`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::interpreter_code(data));
