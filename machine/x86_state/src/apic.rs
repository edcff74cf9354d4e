//! Local APIC state, in the architecture's terms.

use serde::{Deserialize, Serialize};

/// One local APIC (SDM volume 3, chapter 12). Register offsets are those of the
/// xAPIC page; `registers[i]` is the 32-bit register at offset `i * 16`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicState {
    /// IA32_APIC_BASE: address, BSP flag, xAPIC and x2APIC enables.
    pub base: u64,
    /// The 64 registers of the APIC page, reserved ones zero.
    pub registers: Vec<u32>,
    /// Upper half of the x2APIC ICR (destination).
    pub icr_high: u32,
    /// IA32_TSC_DEADLINE in the machine clock's ticks, 0 when disarmed.
    pub tsc_deadline: u64,
    /// Guest nanoseconds when the current timer period began, valid while the
    /// initial count is not zero; [`ApicState::TIMER_OVER`] when the countdown is over.
    pub timer_start_ns: u64,
}

impl ApicState {
    /// In `timer_start_ns`: a one-shot has counted down and nothing counts.
    pub const TIMER_OVER: u64 = u64::MAX;
    /// Register count of an APIC page.
    pub const REGISTERS: usize = 64;
}
