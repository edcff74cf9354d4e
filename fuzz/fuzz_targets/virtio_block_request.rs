//! See `fuzz_bodies::virtio_block_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::virtio_block_request(data));
