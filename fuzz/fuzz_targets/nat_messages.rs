//! Arbitrary bytes as DHCP requests, DNS messages and forwarding rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nat::{PortForward, Rule};

fuzz_target!(|bytes: &[u8]| {
    nat::fuzzing::messages(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(rule) = text.parse::<Rule>() {
            assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
        if let Ok(forward) = text.parse::<PortForward>() {
            assert_eq!(forward.to_string().parse::<PortForward>(), Ok(forward));
        }
    }
});
