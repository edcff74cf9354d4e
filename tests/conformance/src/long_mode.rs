//! 64-bit mode, as tests begin in it.

use x86_state::{CpuState, Segment, cr0, cr4, efer};

/// 64-bit mode with flat segments of the supervisor (code 0x10, data 0x18) or of the
/// user (code 0x33, data 0x2b), and paging by the tables at `cr3`. All else is the
/// reset's: descriptor tables, flags and registers are the test's.
pub fn long_mode(reset: CpuState, cr3: u64, user: bool) -> CpuState {
    let (level, code, data) = if user { (0x60, 0x33, 0x2b) } else { (0, 0x10, 0x18) };
    let mut s = reset;
    s.segments = [Segment { selector: data, base: 0, limit: u32::MAX, access: 0xc093 | level }; 6];
    s.segments[1] = Segment { selector: code, base: 0, limit: u32::MAX, access: 0xa09b | level };
    s.cr0 = cr0::PG | cr0::WP | cr0::PE | cr0::ET | cr0::NE;
    s.cr4 = cr4::PAE;
    s.cr3 = cr3;
    s.efer = efer::LME | efer::LMA;
    s
}
