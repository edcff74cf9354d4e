//! Raw firmware: mapped so that it ends at 4 GiB, its end shadowed below 1 MiB,
//! entered at the reset vector (SDM volume 3, 10.1.4).

use x86_state::CpuState;

use crate::error::{LoadError, Result};
use crate::place::Placer;
use crate::{BootRequest, BootState, Protocol};

const FOUR_GIB: u64 = 1 << 32;
const ONE_MIB: u64 = 1 << 20;
/// How much of the image's end PCs show below 1 MiB.
const SHADOW: u64 = 128 << 10;
/// Largest image: what chipsets of the kind decode below 4 GiB.
const MAX: u64 = 16 << 20;
const PAGE: u64 = 4096;
/// Distance of the reset vector from the image's end.
const RESET_VECTOR: usize = 16;
/// First opcodes that firmware has there: far and near jumps, CLI, NOP, WBINVD's 0F.
const FIRST_OPCODES: [u8; 6] = [0xea, 0xe9, 0xeb, 0xfa, 0x90, 0x0f];

/// True if the file looks like firmware: whole pages, code at its last 16 bytes.
pub(crate) fn has_reset_vector(bytes: &[u8]) -> bool {
    let whole = !bytes.is_empty() && bytes.len() as u64 % PAGE == 0 && bytes.len() as u64 <= MAX;
    whole && FIRST_OPCODES.contains(&bytes[bytes.len() - RESET_VECTOR])
}

/// Put the image in place. The machine must have memory (normally read-only)
/// there; the shadow goes wherever the machine has memory below 1 MiB.
pub(crate) fn load(mut placer: Placer<'_>, request: &BootRequest<'_>) -> Result<BootState> {
    let image = request.kernel;
    let size = image.len() as u64;
    if size > MAX || size == 0 || size % PAGE != 0 {
        return Err(LoadError::Malformed {
            what: "firmware image",
            field: "its size",
            value: size,
            expected: "whole pages of 4 KiB, at most 16 MiB, expected",
        });
    }
    let address = FOUR_GIB - size;
    let memory = placer.memory();
    if memory.store(address, image).is_err() {
        return Err(LoadError::NoFirmwareRegion { size, address });
    }
    placer.record("firmware", address, size);
    let shadow = size.min(SHADOW);
    let at = ONE_MIB - shadow;
    if memory.store(at, &image[(size - shadow) as usize..]).is_ok() {
        placer.record("firmware shadow", at, shadow);
    }
    let cpu = CpuState::reset(true, request.cpu_signature);
    Ok(BootState { cpu, protocol: Protocol::Firmware, note: None, loaded: placer.finish() })
}
