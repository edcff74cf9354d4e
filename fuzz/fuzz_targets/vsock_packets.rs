//! See `fuzz_bodies::vsock_packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::vsock_packets(data));
