//! Good images with arbitrary changes never panic a loader. Input: image,
//! protocol, then (16-bit place, length, bytes) for each change.

use crate::images::kernels as images;
use std::sync::OnceLock;

use loader::{BootRequest, Protocol, load};

const PROTOCOLS: [Protocol; 5] =
    [Protocol::Auto, Protocol::Linux64, Protocol::Linux32, Protocol::Pvh, Protocol::Multiboot];

fn bases() -> &'static [Vec<u8>] {
    static BASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    BASES.get_or_init(|| {
        vec![
            images::linux(),
            images::elf(true, Some(0x100_0002), 0x1000),
            images::elf(false, Some(0x100_0002), 0x1000),
            images::multiboot_flat(),
            images::multiboot_elf(false),
            images::multiboot_elf(true),
            images::firmware(),
        ]
    })
}

/// One run.
pub fn loader_damaged(data: &[u8]) {
    let [base, protocol, changes @ ..] = data else { return };
    let mut kernel = bases()[usize::from(*base) % bases().len()].clone();
    let mut rest = changes;
    while let [low, high, len, after @ ..] = rest {
        let at = usize::from(u16::from_le_bytes([*low, *high])) % kernel.len();
        let n = usize::from(len % 16).min(after.len()).min(kernel.len() - at);
        kernel[at..at + n].copy_from_slice(&after[..n]);
        rest = &after[n..];
    }
    let machine = images::Machine::new(32);
    let protocol = PROTOCOLS[usize::from(*protocol) % PROTOCOLS.len()];
    let initrd = [1; 100];
    let request = BootRequest { initrd: Some(&initrd), protocol, ..machine.request(&kernel) };
    let _ = load(&machine.memory, &request);
}
