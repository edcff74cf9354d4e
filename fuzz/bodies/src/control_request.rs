//! Arbitrary bytes on the control socket are a request or are refused with a
//! reason; a request that was accepted is the same after it was written again.

use vm_api::Request;

/// One run.
pub fn control_request(line: &[u8]) {
    match Request::parse(line) {
        Ok(request) => {
            let again = serde_json::to_vec(&request).expect("a request is JSON");
            assert_eq!(Request::parse(&again), Ok(request));
        }
        Err(refusal) => assert!(!refusal.message.is_empty()),
    }
}
