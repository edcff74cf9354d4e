//! See `fuzz_bodies::foreign_image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::foreign_image(data));
