//! What a translation depends on and what it yields.

use x86_state::{cr0, cr4, efer};

/// The paging modes (SDM volume 3, table 5-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagingMode {
    /// CR0.PG = 0: linear addresses are physical.
    None,
    /// Two levels of 32-bit entries, 4 KiB and (with CR4.PSE) 4 MiB pages.
    Bits32,
    /// Three levels; the first is the four PDPTE registers.
    Pae,
    /// Four levels, 48-bit linear addresses.
    Level4,
    /// Five levels, 57-bit linear addresses.
    Level5,
}

/// The control state a translation depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagingParams {
    /// CR0: PG and WP matter.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4: PSE, PAE, PGE, LA57, SMEP, SMAP matter.
    pub cr4: u64,
    /// IA32_EFER: LMA and NXE matter.
    pub efer: u64,
    /// The PDPTE registers, used in PAE paging only.
    pub pdpte: [u64; 4],
    /// Whether the model has 1 GiB pages (CPUID.80000001H:EDX.Page1GB); without
    /// them bit 7 of a PDPTE is reserved.
    pub gigabyte_pages: bool,
}

impl PagingParams {
    /// The paging mode these registers select.
    #[inline]
    pub fn mode(&self) -> PagingMode {
        if self.cr0 & cr0::PG == 0 {
            PagingMode::None
        } else if self.cr4 & cr4::PAE == 0 {
            PagingMode::Bits32
        } else if self.efer & efer::LMA == 0 {
            PagingMode::Pae
        } else if self.cr4 & cr4::LA57 == 0 {
            PagingMode::Level4
        } else {
            PagingMode::Level5
        }
    }
}

/// One access to a linear address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// A store, or the load of a read-modify-write instruction.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// A user-mode access: CPL is 3 and the access is not `system`.
    pub user: bool,
    /// An implicit supervisor access: descriptor tables, task-state segments,
    /// stacks of an inner level (SDM volume 3, 5.6.1). RFLAGS.AC does not lift SMAP for it.
    pub system: bool,
    /// RFLAGS.AC, which lifts SMAP for explicit supervisor accesses.
    pub ac: bool,
}

/// Bits of the error code that #PF pushes (SDM volume 3, 5.7).
pub mod page_fault_code {
    /// P: a protection violation; clear for a page that is not present.
    pub const PROTECTION: u32 = 1 << 0;
    /// W/R: the access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// U/S: the access was a user-mode access.
    pub const USER: u32 = 1 << 2;
    /// RSVD: a reserved bit was set in a paging-structure entry.
    pub const RESERVED: u32 = 1 << 3;
    /// I/D: the access was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

/// A page fault: what goes to CR2 and onto the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFault {
    /// The faulting linear address.
    pub linear: u64,
    /// Error code, bits of [`page_fault_code`].
    pub error_code: u32,
}

/// A successful translation: enough to fill a TLB entry for accesses of the
/// same privilege under the same [`PagingParams`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address of the byte asked for.
    pub physical: u64,
    /// log2 of the page size: 12, 21, 22 or 30; 12 without paging.
    pub page_shift: u8,
    /// U/S is set at every level: user-mode accesses are allowed.
    pub user: bool,
    /// R/W is set at every level.
    pub read_write: bool,
    /// The dirty flag is set and a store by this access's privilege is allowed
    /// now: a TLB entry may serve stores without another walk.
    pub writable: bool,
    /// A fetch by this access's privilege is allowed.
    pub executable: bool,
    /// A load by this access's privilege is allowed under its value of AC (SMAP).
    pub readable: bool,
    /// A global page: kept by flushes that keep global translations.
    pub global: bool,
}
