//! Arbitrary bytes as a compressed payload never panic, and never take more
//! memory than the cap.

use crate::images::kernels as images;
use loader::extract_vmlinux;

const MAGICS: [&[u8]; 6] =
    [b"\x1f\x8b", b"BZh", b"\x5d\0\0", b"\xfd7zXZ\0", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd"];

/// One run.
pub fn loader_payload(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut payload = MAGICS[usize::from(*first) % MAGICS.len()].to_vec();
    payload.extend_from_slice(rest);
    let _ = extract_vmlinux(&images::bzimage(&payload, 1));
}
