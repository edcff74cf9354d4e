//! See `fuzz_bodies::machine_bus`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::machine_bus(data));
