//! Identify data structures (5.15.2).

use disk::Geometry;

use crate::spec::{NSID, VERSION};
use crate::{MAX_EVENT_REQUESTS, MAX_TRANSFER_LOG2_PAGES};

/// Bytes of each.
pub const SIZE: usize = 4096;
/// PCI vendor and subsystem vendor.
pub const VENDOR: u16 = 0x1b36;
/// Longest serial number.
pub const SERIAL_LEN: usize = 20;
const MODEL: &str = "Strata NVMe disk";

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

/// ASCII, padded with spaces (1.5).
fn text(to: &mut [u8], at: usize, len: usize, text: &str) {
    let field = &mut to[at..at + len];
    field.fill(b' ');
    for (to, byte) in field.iter_mut().zip(text.bytes()) {
        *to = if byte.is_ascii_graphic() { byte } else { b' ' };
    }
}

/// Sixteen bytes that differ from serial number to serial number and are the same
/// in every run: FNV-1a, twice.
pub fn unique_id(serial: &str) -> [u8; 16] {
    let hash = |basis: u64| {
        serial
            .bytes()
            .fold(basis, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
            .to_be_bytes()
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325));
    id[8..].copy_from_slice(&hash(0x8422_2325_cbf2_9ce4));
    // Version 8 (made up by the vendor) and variant of RFC 9562.
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

fn uuid_text(id: [u8; 16]) -> String {
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The controller (figure 247).
pub fn controller(serial: &str, read_only: bool) -> Vec<u8> {
    let mut d = vec![0; SIZE];
    put(&mut d, 0, &VENDOR.to_le_bytes());
    put(&mut d, 2, &VENDOR.to_le_bytes());
    text(&mut d, 4, SERIAL_LEN, serial);
    text(&mut d, 24, 40, MODEL);
    text(&mut d, 64, 8, env!("CARGO_PKG_VERSION"));
    // Recommended arbitration burst.
    d[72] = 4;
    d[77] = MAX_TRANSFER_LOG2_PAGES;
    put(&mut d, 80, &VERSION.to_le_bytes());
    // Events: namespace attributes.
    put(&mut d, 92, &(1u32 << 8).to_le_bytes());
    // An I/O controller.
    d[111] = 1;
    // Abort command limit and event request limit, from 0.
    d[258] = 3;
    d[259] = (MAX_EVENT_REQUESTS - 1) as u8;
    // One firmware slot, read-only.
    d[260] = 0b11;
    // Warning and critical temperature, in kelvins.
    put(&mut d, 266, &343u16.to_le_bytes());
    put(&mut d, 268, &373u16.to_le_bytes());
    // Entry sizes: 64 and 16 bytes.
    d[512] = 0x66;
    d[513] = 0x44;
    put(&mut d, 516, &1u32.to_le_bytes());
    // Dataset management and write zeroes.
    put(&mut d, 520, &0x000cu16.to_le_bytes());
    // A volatile write cache; flush reaches all namespaces.
    d[525] = if read_only { 0 } else { 0b111 };
    text(&mut d, 768, 0, "");
    let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid_text(unique_id(serial)));
    put(&mut d, 768, nqn.as_bytes());
    // One power state, of 1 W in units of 10 mW.
    put(&mut d, 2048, &100u16.to_le_bytes());
    d
}

/// The namespace (figure 245).
pub fn namespace(serial: &str, geometry: Geometry, read_only: bool) -> Vec<u8> {
    let mut d = vec![0; SIZE];
    let block = geometry.logical_block;
    let blocks = geometry.size / u64::from(block);
    for at in [0, 8, 16] {
        put(&mut d, at, &blocks.to_le_bytes());
    }
    // Thin provisioning, and the preferred units below.
    d[24] = 1 | 1 << 4;
    // Deallocated blocks: nothing is promised of what they read as; write zeroes may deallocate.
    d[33] = 1 << 3;
    let unit = |bytes: u32| ((bytes / block).clamp(1, 0x1_0000) - 1) as u16;
    // Preferred write granularity and alignment, then those of deallocation.
    put(&mut d, 64, &unit(geometry.physical_block).to_le_bytes());
    put(&mut d, 66, &unit(geometry.physical_block).to_le_bytes());
    put(&mut d, 68, &unit(geometry.discard_unit).to_le_bytes());
    put(&mut d, 70, &unit(geometry.discard_unit).to_le_bytes());
    // Write protected.
    d[99] = u8::from(read_only);
    put(&mut d, 104, &unique_id(serial));
    // One format: the block size as a power of two.
    d[130] = block.trailing_zeros() as u8;
    d
}

/// Active namespaces above `after` (CNS 2).
pub fn namespace_list(after: u32) -> Vec<u8> {
    let mut d = vec![0; SIZE];
    if after < NSID {
        put(&mut d, 0, &NSID.to_le_bytes());
    }
    d
}

/// What identifies the namespace (CNS 3): its UUID.
pub fn descriptors(serial: &str) -> Vec<u8> {
    let mut d = vec![0; SIZE];
    put(&mut d, 0, &[3, 16, 0, 0]);
    put(&mut d, 4, &unique_id(serial));
    d
}
