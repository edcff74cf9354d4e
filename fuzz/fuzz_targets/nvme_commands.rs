//! See `fuzz_bodies::nvme_commands`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::nvme_commands(data));
