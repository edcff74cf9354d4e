//! Why a kernel could not be loaded: what was found, and what to do about it.

use crate::{ImageKind, Protocol};

/// Why an image could not be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No bytes at all.
    #[error(
        "the kernel file is empty (0 bytes); give a bzImage, an ELF or Multiboot kernel, or a firmware image"
    )]
    Empty,
    /// Recognised as something else, or not recognised.
    #[error("the kernel file is {found}, which cannot be booted as a kernel; {remedy}")]
    NotAKernel {
        /// What the file looks like.
        found: &'static str,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The image ends before its own headers say it does.
    #[error(
        "the {what} is truncated: its headers describe {needed} bytes, the file has {have}; fetch or copy the file again"
    )]
    Truncated {
        /// Which image.
        what: &'static str,
        /// Bytes its headers ask for.
        needed: u64,
        /// Bytes there are.
        have: u64,
    },
    /// A header field has a value that no correct image has.
    #[error("the {what} is damaged: {field} is {value:#x}, {expected}; fetch or build the file again")]
    Malformed {
        /// Which image.
        what: &'static str,
        /// The field, by its specification's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What was expected.
        expected: &'static str,
    },
    /// The machine's RAM does not reach far enough.
    #[error(
        "too little memory: the {what} needs RAM up to {} MiB, the machine has it up to {} MiB; use --memory {}M or more",
        mib(*.end), mib(*.have), memory_flag(*.end)
    )]
    TooLittleMemory {
        /// What did not fit.
        what: &'static str,
        /// First guest-physical address above what is needed.
        end: u64,
        /// First address above the RAM that holds, or would hold, the start.
        have: u64,
    },
    /// No gap in RAM takes the initrd.
    #[error(
        "the initrd of {} MiB does not fit: the largest gap beside the kernel below {} MiB is {} MiB; use --memory {}M or more, or a smaller initrd",
        mib(*.size), .limit >> 20, .room >> 20, memory_flag(*.wanted)
    )]
    InitrdDoesNotFit {
        /// Bytes of the initrd.
        size: u64,
        /// Addresses must be below this.
        limit: u64,
        /// Bytes of the largest gap.
        room: u64,
        /// End of RAM that would be enough.
        wanted: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes, this kernel takes at most {max}; shorten --append")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The kernel's limit, without the closing zero.
        max: usize,
    },
    /// The command line has a zero byte.
    #[error(
        "the kernel command line has a zero byte at position {at}, where the kernel would cut it; remove it from --append"
    )]
    CmdlineHasNul {
        /// Its position.
        at: usize,
    },
    /// The memory map is longer than the boot protocol can say.
    #[error(
        "the machine's memory map has {ranges} ranges, the boot protocol takes at most {max}; use fewer memory regions"
    )]
    MapTooLong {
        /// Ranges given.
        ranges: usize,
        /// The protocol's limit.
        max: usize,
    },
    /// The payload of a bzImage did not decompress.
    #[error(
        "the kernel's {format} payload does not decompress ({reason}); fetch the file again, or let it decompress itself with --boot-protocol linux64"
    )]
    Decompress {
        /// Compression format.
        format: &'static str,
        /// The library's reason.
        reason: String,
    },
    /// The asked protocol and the image do not go together.
    #[error("{kind} cannot be entered by the {asked} protocol: {reason}; leave --boot-protocol at auto")]
    WrongProtocol {
        /// What was asked.
        asked: Protocol,
        /// What the file is.
        kind: ImageKind,
        /// What is missing.
        reason: &'static str,
    },
    /// The firmware image has no place in the machine.
    #[error(
        "a firmware image of {size:#x} bytes needs read-only memory at {address:#x}, where this machine has none; use a machine type with a firmware region of that size"
    )]
    NoFirmwareRegion {
        /// Bytes of the image.
        size: u64,
        /// Where it would start.
        address: u64,
    },
    /// Guest memory refused an access.
    #[error(transparent)]
    Memory(#[from] guest_memory::MemoryError),
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// A `--memory` value in MiB that certainly reaches `end`: rounded up to 16 MiB.
fn memory_flag(end: u64) -> u64 {
    mib(end).next_multiple_of(16)
}

/// Shorthand of every loader.
pub(crate) type Result<T> = std::result::Result<T, LoadError>;
