//! See `fuzz_bodies::qcow2_read`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::qcow2_read(data));
