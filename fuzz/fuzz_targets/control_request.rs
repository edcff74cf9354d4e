//! Arbitrary bytes on the control socket are a request or are refused with a
//! reason; a request that was accepted is the same after it was written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_api::Request;

fuzz_target!(|line: &[u8]| {
    match Request::parse(line) {
        Ok(request) => {
            let again = serde_json::to_vec(&request).expect("a request is JSON");
            assert_eq!(Request::parse(&again), Ok(request));
        }
        Err(refusal) => assert!(!refusal.message.is_empty()),
    }
});
