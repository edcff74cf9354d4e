//! See `fuzz_bodies::vhost_user_daemon`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::vhost_user_daemon(data));
