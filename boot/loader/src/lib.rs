//! Kernel images: recognise one, put it into guest memory, and say in what state
//! the bootstrap processor enters it.
//!
//! [`load`] takes a [`BootRequest`] and returns a [`BootState`]. Formats:
//! Linux bzImage (its payload decompressed here and entered directly, or by its
//! own 64-bit and 32-bit entries), ELF vmlinux, ELF with a PVH note, Multiboot 1,
//! and raw firmware. [`sniff`] tells them apart and says what anything else is.
//!
//! Images are untrusted: every field is read with its bounds checked, nothing is
//! written to guest memory that the memory map does not call RAM, and
//! decompression is capped at [`MAX_KERNEL`] bytes.

mod boot_params;
mod bzimage;
mod decompress;
mod elf;
mod entry;
mod error;
mod fields;
mod firmware;
mod linux64;
mod multiboot;
mod place;
mod pvh;
mod request;
mod sniff;

use guest_memory::GuestMemory;

pub use bzimage::extract_vmlinux;
pub use decompress::MAX_KERNEL;
pub use error::LoadError;
pub use request::{BootRequest, BootState, Loaded, MemoryRange, Protocol, UnknownProtocol};
pub use sniff::{ImageKind, sniff};

use place::Placer;

/// Put an image, its command line and its initrd into guest memory.
///
/// # Errors
/// [`LoadError`] says what was found and what to do. Guest memory may have been
/// written in part then; the machine must not be started.
pub fn load(memory: &GuestMemory, request: &BootRequest<'_>) -> Result<BootState, LoadError> {
    let placer = Placer::new(memory, request.memory_map);
    if request.kernel.is_empty() {
        return Err(LoadError::Empty);
    }
    // Firmware needs no signature when it is asked for by name.
    if request.protocol == Protocol::Firmware {
        return firmware::load(placer, request);
    }
    let kind = sniff(request.kernel)?;
    let wrong = |reason| Err(LoadError::WrongProtocol { asked: request.protocol, kind, reason });
    match (kind, request.protocol) {
        (_, Protocol::Multiboot) | (ImageKind::Multiboot, Protocol::Auto) => multiboot::load(placer, request),
        (ImageKind::BzImage, _) => bzimage::load(placer, request),
        (ImageKind::Firmware, Protocol::Auto) => firmware::load(placer, request),
        (ImageKind::ElfPvh, Protocol::Auto | Protocol::Pvh) => pvh::load(placer, request, request.kernel),
        (ImageKind::ElfLinux64, Protocol::Auto)
        | (ImageKind::ElfLinux64 | ImageKind::ElfPvh, Protocol::Linux64) => linux64::load(placer, request),
        (_, Protocol::Uncompressed) => wrong("only a bzImage has a compressed payload"),
        (_, Protocol::Pvh) => wrong("it has no PVH note"),
        _ => wrong("it does not have that entry"),
    }
}
