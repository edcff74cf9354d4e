//! Arbitrary bytes as a kernel image never panic a loader.

use crate::images::kernels as images;
use loader::{BootRequest, Protocol, load};

const PROTOCOLS: [Protocol; 7] = [
    Protocol::Auto,
    Protocol::Uncompressed,
    Protocol::Linux64,
    Protocol::Linux32,
    Protocol::Pvh,
    Protocol::Multiboot,
    Protocol::Firmware,
];

/// One run.
pub fn loader_bytes(data: &[u8]) {
    let Some((first, kernel)) = data.split_first() else { return };
    let machine = images::Machine::new(32);
    let protocol = PROTOCOLS[usize::from(*first) % PROTOCOLS.len()];
    let initrd = [1; 100];
    let request = BootRequest { initrd: Some(&initrd), protocol, ..machine.request(kernel) };
    let _ = load(&machine.memory, &request);
}
