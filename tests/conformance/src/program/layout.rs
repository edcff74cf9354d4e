//! Where things are in a random program's machine.
//!
//! One MiB of RAM, mapped twice: at [`LOW`] for user code (and, by choice, the
//! supervisor's), at [`HIGH`] for the supervisor. Both have a window of eight
//! pages behind it, which programs map as they like, and a 2 MiB page over all.

use std::ops::Range;

/// Bytes of RAM.
pub const RAM: usize = 0x10_0000;
/// Linear address of physical 0 for user code.
pub const LOW: u64 = 0x1000_0000;
/// Linear address of physical 0 for the supervisor.
pub const HIGH: u64 = 0xffff_ffff_8000_0000;
/// Offset of the windows from [`LOW`] and [`HIGH`].
pub const WINDOWS: u64 = 0x20_0000;
/// Windows in each half.
pub const WINDOW_COUNT: u64 = 8;
/// Offset of the 2 MiB page over all of RAM.
pub const LARGE: u64 = 0x40_0000;

/// Physical addresses.
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const HANDLERS: u64 = 0x4000;
/// The supervisor's variables.
pub const SYSTEM: u64 = 0x5000;
/// Variables that programs use, the user's too.
pub const VARIABLES: u64 = 0x6000;
/// What the exception handler saw: a ring of [`LOG_ENTRIES`] times 32 bytes.
pub const LOG: u64 = 0x8000;
pub const LOG_ENTRIES: u64 = 512;
/// The next page is the NMI's stack, which is no result.
pub const NMI_STACK: u64 = 0xc000;
pub const NMI_STACK_TOP: u64 = 0xd000;
pub const FAULT_STACK_TOP: u64 = 0xe000;
/// The stack of SYSCALL and of interrupts from user code.
pub const ENTRY_STACK_TOP: u64 = 0x1_0000;
pub const KERNEL_STACK_TOP: u64 = 0x2_f000;
pub const USER_STACK_TOP: u64 = 0x4_f000;
/// Another stack, for programs that switch.
pub const OTHER_STACK_TOP: u64 = 0x5_0000;
/// The program, one byte of [`LENGTHS`] for each byte.
pub const CODE: u64 = 0x5_0000;
pub const CODE_LEN: usize = 0x7000;
/// Length of the instruction that starts at a byte of code; 0 where none does.
pub const LENGTHS: u64 = 0x5_8000;
pub const DATA: u64 = 0x6_0000;
pub const DATA_LEN: u64 = 0x1_0000;
/// What windows show: each a small function and data.
pub const FRAMES: u64 = 0x7_0000;
pub const FRAME_COUNT: u64 = 8;
pub const TABLES: u64 = 0x8_0000;
/// The page tables of the windows: low, high, low in the second address space.
pub const WINDOW_TABLES: [u64; 3] = [TABLES + 0x8000, TABLES + 0x9000, TABLES + 0xa000];
pub const LOW_TABLE: u64 = TABLES + 0x6000;
pub const HIGH_TABLE: u64 = TABLES + 0x7000;
/// Top-level tables of the two address spaces.
pub const ROOTS: [u64; 2] = [TABLES, TABLES + 0x1000];

/// Linear data addresses in the lower half.
pub const LOW_DATA: Range<u64> = LOW + DATA..LOW + DATA + DATA_LEN;
/// Linear data addresses in the upper half.
pub const HIGH_DATA: Range<u64> = HIGH + DATA..HIGH + DATA + DATA_LEN;

/// Supervisor variables, by offset from [`SYSTEM`].
pub mod system {
    /// Entries written to the log.
    pub const LOGGED: u64 = 0;
    /// Exceptions that may still happen.
    pub const FUEL: u64 = 8;
    /// Where an exception without a way on goes.
    pub const RECOVER: u64 = 16;
    /// Stack pointer and address that user code returns to.
    pub const LEFT: u64 = 24;
    /// The user's stack pointer during SYSCALL.
    pub const USER_STACK: u64 = 40;
    /// Single steps that may still happen.
    pub const STEPS: u64 = 48;
    /// System calls and software interrupts.
    pub const CALLS: u64 = 56;
}

/// Program variables, by offset from [`VARIABLES`].
pub mod variable {
    /// Where a call into a window returns, and its stack pointer.
    pub const WINDOW_RETURN: u64 = 0;
    /// Stack pointer and address of a long jump.
    pub const JUMP: u64 = 16;
    /// Where a callee returns instead.
    pub const RETARGET: u64 = 32;
    /// Calls of functions in frames.
    pub const FRAME_CALLS: u64 = 40;
    /// Eight bytes for each slot, in numbers.
    pub const SLOTS: u64 = 0x100;
}

/// Selectors.
pub const KERNEL_CS: u64 = 0x10;
pub const KERNEL_SS: u64 = 0x18;
pub const USER_SS: u64 = 0x2b;
pub const USER_CS: u64 = 0x33;

/// A page-table entry's software bit: the handler makes the page accessible.
pub const LAZY: u64 = 1 << 9;
