//! Register numbers (offset in the page / 16) and their bits (SDM volume 3, table 12-1).

pub(super) const ID: usize = 0x02;
pub(super) const VERSION: usize = 0x03;
pub(super) const TPR: usize = 0x08;
pub(super) const PPR: usize = 0x0a;
pub(super) const EOI: usize = 0x0b;
pub(super) const LDR: usize = 0x0d;
pub(super) const DFR: usize = 0x0e;
pub(super) const SVR: usize = 0x0f;
pub(super) const ISR: usize = 0x10;
pub(super) const TMR: usize = 0x18;
pub(super) const IRR: usize = 0x20;
pub(super) const ESR: usize = 0x28;
pub(super) const ICR_LOW: usize = 0x30;
pub(super) const ICR_HIGH: usize = 0x31;
pub(super) const LVT: usize = 0x32;
pub(super) const LVT_LAST: usize = LVT + LVT_COUNT - 1;
pub(super) const INITIAL_COUNT: usize = 0x38;
pub(super) const CURRENT_COUNT: usize = 0x39;
pub(super) const DIVIDE: usize = 0x3e;
pub(super) const SELF_IPI: usize = 0x3f;

/// Entries of the local vector table, in register order.
pub(super) const LVT_COUNT: usize = 6;
pub(super) const LVT_TIMER: usize = 0;
pub(super) const LVT_LINT0: usize = 3;
pub(super) const LVT_ERROR: usize = 5;

/// Version 0x14 (integrated APIC) with six LVT entries.
pub(super) const VERSION_VALUE: u32 = 0x14 | (LVT_COUNT as u32 - 1) << 16;

pub(super) const LVT_MASKED: u32 = 1 << 16;
pub(super) const LVT_LEVEL: u32 = 1 << 15;
/// Delivery status and remote IRR: read-only bits that a write may contain.
pub(super) const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;
/// Writable bits of each LVT entry: timer, thermal, performance, LINT0, LINT1, error.
pub(super) const LVT_WRITABLE: [u32; LVT_COUNT] =
    [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

pub(super) const SVR_ENABLED: u32 = 1 << 8;
/// Vector, enable, focus processor checking.
pub(super) const SVR_WRITABLE: u32 = 0x3ff;
/// The low 28 bits of the DFR are all ones.
pub(super) const DFR_FIXED: u32 = 0x0fff_ffff;
pub(super) const DIVIDE_WRITABLE: u32 = 0xb;
/// Vector, delivery mode, destination mode, level, trigger, shorthand.
pub(super) const ICR_WRITABLE: u32 = 0xc_cfff;
/// Delivery status: read-only, a write may contain it.
pub(super) const ICR_STATUS: u32 = 1 << 12;

pub(super) const ESR_SEND_ILLEGAL: u32 = 1 << 5;
pub(super) const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_X2APIC: u64 = 1 << 10;
pub(super) const BASE_ENABLED: u64 = 1 << 11;

/// Lowest vector an APIC accepts.
pub(super) const FIRST_VECTOR: u8 = 16;
