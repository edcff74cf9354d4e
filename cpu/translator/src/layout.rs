//! Where guest state lives while translated code runs.
//!
//! | host register | holds |
//! | --- | --- |
//! | RAX RDX RBX RBP RSI | the guest's own |
//! | R8 R9 R10 R11 R12 R13 | guest RDI RSP RCX R8 R9 R12 |
//! | RDI | an effective address (`ADDRESS`) |
//! | RCX | scratch (`TEMP`); RCX so that JRCXZ tests it without touching flags |
//! | R14 | the page-number mask of PEXT |
//! | R15 | the load table; the end of [`State`]'s first page just below it |
//! | RSP | the call stack: host return addresses of guest calls |
//! | GS base | the store table; [`State`] lies just below it |
//! | flags, vector and x87 registers | the guest's own |
//!
//! Guest R10, R11, R13, R14 and R15 live in [`State`].

/// Host register numbers.
pub(crate) mod host {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R8: u8 = 8;
    pub const R9: u8 = 9;
    pub const R10: u8 = 10;
    pub const R11: u8 = 11;
    pub const R12: u8 = 12;
    pub const R13: u8 = 13;
    pub const R14: u8 = 14;
    pub const R15: u8 = 15;

    /// Scratch.
    pub const TEMP: u8 = RCX;
    /// Effective address.
    pub const ADDRESS: u8 = RDI;
    /// The constant [`super::PAGE_NUMBER`].
    pub const PAGE_MASK: u8 = R14;
    /// Base of the load table.
    pub const TABLE: u8 = R15;
}

use host::*;

/// Selects the page number of a 48-bit address (PEXT). A non-canonical address
/// has the number of its canonical alias; the sum with that page's addend is
/// non-canonical again and faults.
pub(crate) const PAGE_NUMBER: u64 = 0x0000_ffff_ffff_f000;

/// Host register of each guest register, or `None` when it lives in [`State`].
pub(crate) const PINNED: [Option<u8>; 16] = [
    Some(RAX),
    Some(R10),
    Some(RDX),
    Some(RBX),
    Some(R9),
    Some(RBP),
    Some(RSI),
    Some(R8),
    Some(R11),
    Some(R12),
    None,
    None,
    Some(R13),
    None,
    None,
    None,
];

/// Bits of a target address that choose its entry in the jump cache. Functions
/// start at multiples of 16, targets of switches anywhere.
pub(crate) const JUMP_INDEX: u64 = 0xfff4;
/// Entries of the jump cache.
pub(crate) const JUMP_CACHE: usize = 1 << JUMP_INDEX.count_ones();

/// Entry of a target address: what PEXT by [`JUMP_INDEX`] gives.
pub(crate) fn jump_index(address: u64) -> usize {
    ((address >> 4 & 0xfff) << 1 | address >> 2 & 1) as usize
}

/// PAUSE instructions after which a vCPU's thread yields: some 20 microseconds of
/// waiting, perhaps for a vCPU whose thread has no processor.
pub(crate) const PAUSES: u64 = 1000;

/// Turns of vigilant blocks: many beside the three times that code must be rewritten
/// before its block is one, few where code has come to rest.
pub(crate) const TURNS: u64 = 4096;

/// Most windows of a block.
pub(crate) const WINDOWS: usize = 8;

/// Why translated code came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Exit {
    /// A load found no table entry.
    MissLoad = 0,
    /// A store or read-modify-write found none.
    MissStore = 1,
    /// A direct exit that is not linked yet.
    Link = 2,
    /// An indirect jump the jump cache does not know; `address` is the target.
    Indirect = 3,
    /// The interpreter must execute the instruction at the site.
    Interpret = 4,
    /// Attention: leave at the block's start.
    Attention = 5,
    /// The block was invalidated.
    Stale = 6,
    /// A host fault at `site`.
    Fault = 7,
}

impl Exit {
    pub(crate) const ALL: [Exit; 8] = [
        Exit::MissLoad,
        Exit::MissStore,
        Exit::Link,
        Exit::Indirect,
        Exit::Interpret,
        Exit::Attention,
        Exit::Stale,
        Exit::Fault,
    ];
}

/// What a thunk for a repeated string instruction keeps while it uses the registers.
#[repr(C)]
pub(crate) struct StringState {
    pub rax: u64,
    pub rdx: u64,
    /// AH as LAHF gives it, AL as SETO does.
    pub flags: u64,
    pub count: u64,
    /// Nonzero between two elements, where RF is set (SDM volume 3, 18.3.1.1).
    pub between: u64,
}

/// What translated code and the engine share, one a vCPU. Lies [`REGION`] bytes
/// below every store table (the same pages, mapped there again).
#[repr(C, align(64))]
pub(crate) struct State {
    _before: [u8; NEAR_START - 8 * 10],
    /// From the eleventh on near (see [`near`]): those that no host register holds.
    pub gpr: [u64; 16],
    /// Zero when the vCPU's attention is wanted; tested at every block entry.
    pub token: std::sync::atomic::AtomicU32,
    /// Number of the current address-space generation, negated, for user links.
    pub space: u32,
    pub fs_base: u64,
    pub gs_base: u64,
    pub page_offset_mask: u64,
    pub qword_offset_mask: u64,
    pub jump_index_mask: u64,
    /// Host addresses of the starts of a block's windows; the first four are the last
    /// that is near.
    pub windows: [u64; WINDOWS],
    /// Status flags: AH as LAHF gives it, and OF.
    pub flags_ah: u8,
    pub flags_of: u8,
    pub mxcsr: u32,
    pub native_mxcsr: u32,
    /// `Mode::class` of the running code: tested before jumps to shared code.
    pub class: u32,
    pub exit: u32,
    /// Host address after the exit's call, or of the faulting instruction.
    pub site: u64,
    /// `ADDRESS` at the exit.
    pub address: u64,
    /// Entry target, set before entering.
    pub target: u64,
    pub native_rsp: u64,
    /// Host stack pointer of translated code, and its value when no call is
    /// outstanding: see [`crate::call_stack`].
    pub call_rsp: u64,
    pub call_rsp_empty: u64,
    /// Holds a value across a second table look-up of one instruction.
    pub scratch: u64,
    pub string: StringState,
    pub table_load: u64,
    pub table_store: u64,
    pub dword_offset_mask: u64,
    /// The low bits of a multiple of each power of two up to 32.
    pub alignment_masks: [u64; 6],
    /// PAUSE instructions until the thread offers its processor to others.
    pub pauses: u64,
    /// Times that vigilant blocks may be entered until one of them is made anew.
    pub turns: u64,
    /// Of the number of a bit in a bit string: the element's number, the bit's in it.
    pub dword_element_mask: u64,
    pub dword_bit_mask: u64,
    pub qword_element_mask: u64,
    pub qword_bit_mask: u64,
    pub user_probe: u64,
    pub sign_mask: u64,
    /// At an [`Exit::Indirect`]: which branch it was, as [`crate::call_stack::note`] says.
    pub branch: u32,
    /// Addends that loads met last: see [`crate::foresight`].
    pub foreseen: [u64; crate::foresight::SLOTS],
    pub system: System,
    pub ymm: [[u64; 4]; 16],
    pub jump_cache: [u64; JUMP_CACHE],
    pub beside: [crate::beside::Beside; crate::beside::ENTRIES],
    /// 1 for each byte of a page, 0 beyond: indexed by the last byte of a window that
    /// starts at some offset in a page.
    pub within_page: [u8; 0x1000 + crate::block::WINDOW_SPAN],
}

/// System state that translated code reads and changes; filled and written back
/// by `system_state`. Selectors are indexed as the instruction set numbers
/// segment registers: ES CS SS DS FS GS.
#[repr(C)]
pub(crate) struct System {
    /// Nonzero while an event may be waiting: setting IF then clears the token.
    /// Other threads set it.
    pub pending: std::sync::atomic::AtomicU32,
    /// The last instruction was STI with IF clear.
    pub shadow: u32,
    /// What [`Exit::Interpret`] asks the engine for: an [`Asked`].
    pub asked: u32,
    /// What RDTSCP gives beside the time.
    pub tsc_aux: u32,
    /// The guest's TSC as a function of the host's: `offset + ((host * 8 - origin) *
    /// ticks >> 64)`. `ticks` is 0 where translated code must ask.
    pub tsc_ticks: u64,
    pub tsc_minus_origin: u64,
    pub tsc_offset: u64,
    /// RFLAGS.IF in its place, or zero.
    pub interrupt_flag: u64,
    /// RFLAGS.AC in its place, or zero.
    pub access_flag: u64,
    /// The other system flags; RF is never among them.
    pub other_flags: u64,
    /// RF was loaded with this RIP, where translated code is left; [`NOWHERE`] without RF.
    pub resume_at: u64,
    /// Nonzero: translated code is left after each instruction.
    pub counted: u32,
    /// Which flat segments CS and SS hold since `Cpu` was last told: a [`Crossing`].
    pub crossing: u32,
    pub selectors: [u32; 6],
    pub kernel_gs_base: u64,
    pub lstar: u64,
    /// Selectors that SYSCALL and SYSRET load.
    pub syscall_cs: u32,
    pub syscall_ss: u32,
    pub sysret_cs: u32,
    pub sysret_ss: u32,
    /// System flags that SYSCALL keeps.
    pub syscall_keeps: u64,
    /// Nonzero: the instruction is the interpreter's.
    pub syscall_barred: u64,
    pub iret_barred: u64,
    pub user_iret_barred: u64,
    pub fsgsbase_barred: u64,
    pub gdt_base: u64,
    pub gdt_limit: u64,
    pub cr: [u64; 5],
    /// Load and store table of each kind of access (`Kind`), zero where none exists yet.
    pub views: [[u64; 2]; 3],
    /// What `State::space` holds for the supervisor and for the user.
    pub spaces: [u32; 2],
    /// Guest RAX or ADDRESS while a thunk needs the register.
    pub saved: [u64; 2],
    /// Guest status flags while a thunk computes: as LAHF and SETO leave them in AX.
    pub saved_flags: u64,
    pub status_mask: u64,
    pub interrupt_mask: u64,
    pub overflow_mask: u64,
    pub unusual_mask: u64,
    pub upper_mask: u64,
}

/// What translated code leaves for and goes on with right behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Asked {
    /// RDTSC.
    TimeStamp = 1,
    /// RDTSCP.
    TimeStampAndId = 2,
}

/// No instruction begins here.
pub(crate) const NOWHERE: u64 = u64::MAX;

/// What translated code has loaded into CS and SS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Crossing {
    /// Nothing: `Cpu` is right.
    None = 0,
    /// Flat 64-bit code and stack of the supervisor.
    Supervisor = 1,
    /// The same with a null SS.
    SupervisorNullStack = 2,
    /// Flat 64-bit code and stack of the user.
    User = 3,
}

/// Distance from [`State`] to the store table.
pub(crate) const REGION: usize = GUARD + 0x1_f000;
/// Distance from the guard bytes (one readable page, then [`GUARDED`] that fault) to
/// the store table: loading byte `offset + size - 1` from here faults when an
/// access of `size` bytes at page offset `offset` crosses the page.
pub(crate) const GUARD: usize = GUARDED + 0x1000;
/// As many as [`USER_PROBE`] gives values: it selects the page offset and, above it,
/// what must be zero in an address of the user's.
pub(crate) const GUARDED: usize = 1 << USER_PROBE.count_ones();

/// Selects the bits of an address that are all equal where it is canonical (PEXT).
pub(crate) const SIGN: u64 = 0xffff_8000_0000_0000;

/// Selects the page offset of an address and all bits above the lower half of the
/// 48-bit space (PEXT).
pub(crate) const USER_PROBE: u64 = 0xffff_8000_0000_0fff;

const _: () = assert!(size_of::<State>() <= REGION - GUARD);

/// Bytes of [`State`]'s first page, which lies just below every load table too.
pub(crate) const NEAR_PAGE: usize = 0x1000;
/// Where the last 128 bytes of that page begin: [`Mem`](crate::emit::Mem) reaches them
/// from the load table by displacements of one byte instead of four and a segment
/// prefix, so what nearly every block uses is there.
const NEAR_START: usize = NEAR_PAGE - 128;

/// For a GS-relative displacement, that from the load table, if it is near.
pub(crate) fn near(disp: i32) -> Option<i8> {
    i8::try_from(disp.wrapping_add((REGION - NEAR_PAGE) as i32)).ok().filter(|d| *d < 0)
}

const _: () = assert!(std::mem::offset_of!(State, gpr) + 8 * 10 == NEAR_START);
const _: () = assert!(std::mem::offset_of!(State, windows) + 8 * 4 == NEAR_PAGE);

/// GS-relative displacement of a field of [`State`].
macro_rules! gs {
    ($field:ident) => {
        std::mem::offset_of!($crate::layout::State, $field) as i32 - $crate::layout::REGION as i32
    };
}
pub(crate) use gs;

/// GS-relative displacement of a field of [`System`], or of an element of one.
macro_rules! system {
    ($($field:tt)+) => {
        (std::mem::offset_of!($crate::layout::State, system)
            + std::mem::offset_of!($crate::layout::System, $($field)+)) as i32
            - $crate::layout::REGION as i32
    };
}
pub(crate) use system;

/// GS-relative displacement of a guest register's home.
pub(crate) fn gpr_home(n: usize) -> i32 {
    gs!(gpr) + 8 * n as i32
}
