//! The MSR interface: IA32_APIC_BASE, IA32_TSC_DEADLINE and x2APIC mode's
//! registers with their exact faults (SDM volume 3, table 12-6).

use device_model::Nanos;
use x86_state::msr_index;

use super::apic::{Apic, Effect};
use super::registers::*;
use super::timer::TimerMode;

impl Apic {
    /// `None` means #GP(0).
    pub(super) fn msr_read(&mut self, index: u32, now: Nanos) -> Option<u64> {
        match index {
            msr_index::APIC_BASE => Some(self.base),
            msr_index::TSC_DEADLINE => self.tsc_deadline.then_some(self.timer.tsc_deadline),
            msr_index::X2APIC_FIRST..=msr_index::X2APIC_LAST if self.in_x2apic_mode() => {
                match (index - msr_index::X2APIC_FIRST) as usize {
                    ICR_LOW => Some(u64::from(self.icr_low) | u64::from(self.icr_high) << 32),
                    // Write-only, or not there in this mode.
                    EOI | SELF_IPI | DFR | ICR_HIGH => None,
                    register => self.read(register, now).map(u64::from),
                }
            }
            _ => None,
        }
    }

    /// `None` means #GP(0).
    pub(super) fn msr_write(&mut self, index: u32, value: u64, now: Nanos) -> Option<Effect> {
        match index {
            msr_index::APIC_BASE => self.set_base(value).map(|()| Effect::None),
            msr_index::TSC_DEADLINE if self.tsc_deadline => {
                // Without the mode the write is ignored and the MSR reads 0 (SDM 12.5.4.1).
                if self.timer_mode() == TimerMode::TscDeadline {
                    self.timer.tsc_deadline = value;
                }
                Some(Effect::None)
            }
            msr_index::X2APIC_FIRST..=msr_index::X2APIC_LAST if self.in_x2apic_mode() => {
                self.x2apic_write((index - msr_index::X2APIC_FIRST) as usize, value, now)
            }
            _ => None,
        }
    }

    fn x2apic_write(&mut self, register: usize, value: u64, now: Nanos) -> Option<Effect> {
        let allowed = match register {
            TPR => 0xff,
            SVR => SVR_WRITABLE,
            // Only zero may be written.
            EOI | ESR => 0,
            LVT..=LVT_LAST => self.lvt_writable(register - LVT) | LVT_READ_ONLY,
            INITIAL_COUNT => u32::MAX,
            DIVIDE => DIVIDE_WRITABLE,
            SELF_IPI => 0xff,
            ICR_LOW => ICR_WRITABLE | ICR_STATUS,
            _ => return None,
        };
        if value as u32 & !allowed != 0 || (value >> 32 != 0 && register != ICR_LOW) {
            return None;
        }
        match register {
            ICR_LOW => {
                self.icr_low = value as u32 & ICR_WRITABLE;
                self.icr_high = (value >> 32) as u32;
                Some(self.command(true))
            }
            SELF_IPI => {
                self.self_ipi(value as u8);
                Some(Effect::None)
            }
            _ => self.write(register, value as u32, now),
        }
    }
}
