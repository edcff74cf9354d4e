//! What a caller asks for and gets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use x86_state::CpuState;

/// A range of the guest-physical address space, as firmware's E820 call
/// describes it (ACPI 6.5, 15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Address range type (ACPI 6.5, table 15.4): see the constants.
    pub kind: u32,
}

impl MemoryRange {
    /// Type: usable RAM.
    pub const RAM: u32 = 1;
    /// Type: reserved.
    pub const RESERVED: u32 = 2;
    /// Type: ACPI tables, free after they are read.
    pub const ACPI: u32 = 3;
    /// Type: ACPI non-volatile storage.
    pub const NVS: u32 = 4;

    /// A range of usable RAM.
    pub fn ram(start: u64, size: u64) -> Self {
        MemoryRange { start, size, kind: Self::RAM }
    }
    /// A reserved range.
    pub fn reserved(start: u64, size: u64) -> Self {
        MemoryRange { start, size, kind: Self::RESERVED }
    }
    pub(crate) fn is_ram(&self) -> bool {
        self.kind == Self::RAM
    }
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The fastest that the image offers.
    #[default]
    Auto,
    /// A bzImage's payload, decompressed on the host and entered at startup_64.
    Uncompressed,
    /// The Linux 64-bit boot protocol: a bzImage's or vmlinux' own 64-bit entry.
    Linux64,
    /// The Linux 32-bit boot protocol of a bzImage.
    Linux32,
    /// The PVH entry of an ELF kernel, or of the ELF within a bzImage.
    Pvh,
    /// Multiboot 1.
    Multiboot,
    /// Firmware at the reset vector.
    Firmware,
}

const NAMES: [(Protocol, &str); 7] = [
    (Protocol::Auto, "auto"),
    (Protocol::Uncompressed, "uncompressed"),
    (Protocol::Linux64, "linux64"),
    (Protocol::Linux32, "linux32"),
    (Protocol::Pvh, "pvh"),
    (Protocol::Multiboot, "multiboot"),
    (Protocol::Firmware, "firmware"),
];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|n| n.0 == *self).map_or("auto", |n| n.1))
    }
}

/// A protocol name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown boot protocol \"{0}\"; known: auto uncompressed linux64 linux32 pvh multiboot firmware")]
pub struct UnknownProtocol(String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;
    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        NAMES.iter().find(|n| n.1 == text).map(|n| n.0).ok_or_else(|| UnknownProtocol(text.to_string()))
    }
}

/// What to boot and how.
#[derive(Debug, Clone)]
pub struct BootRequest<'a> {
    /// The image's bytes.
    pub kernel: &'a [u8],
    /// An initial RAM disk; for Multiboot, its one module.
    pub initrd: Option<&'a [u8]>,
    /// Kernel command line, without a program name.
    pub cmdline: &'a str,
    /// The whole memory map the guest is to see. Usable RAM must include
    /// 0x500 to 0x30000 for every protocol but firmware; for a kernel that lies
    /// there, the same 0x30000 or 0x60000 higher.
    pub memory_map: &'a [MemoryRange],
    /// Guest-physical address of the ACPI RSDP.
    pub rsdp: Option<u64>,
    /// How to enter.
    pub protocol: Protocol,
    /// CPUID.1.EAX of the vCPU model (`CpuModel::signature`).
    pub cpu_signature: u32,
}

/// One thing put into guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// What it is.
    pub what: &'static str,
    /// Its guest-physical address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A machine's bootstrap processor, ready to run.
#[derive(Debug, Clone)]
pub struct BootState {
    /// Its state.
    pub cpu: CpuState,
    /// The protocol that was used.
    pub protocol: Protocol,
    /// Why a faster protocol was passed over, for the user's information.
    pub note: Option<String>,
    /// What is in guest memory now.
    pub loaded: Vec<Loaded>,
}
