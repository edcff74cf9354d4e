//! See `fuzz_bodies::agent_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::agent_messages(data));
