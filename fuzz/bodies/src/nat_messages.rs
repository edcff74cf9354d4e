//! Arbitrary bytes as DHCP requests, DNS messages and forwarding rules.

use nat::{PortForward, Rule};

/// One run.
pub fn nat_messages(bytes: &[u8]) {
    nat::fuzzing::messages(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(rule) = text.parse::<Rule>() {
            assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
        if let Ok(forward) = text.parse::<PortForward>() {
            assert_eq!(forward.to_string().parse::<PortForward>(), Ok(forward));
        }
    }
}
