//! An APIC in the exchange form.

use device_model::Nanos;
use x86_state::ApicState;

use super::apic::{Apic, Vectors, x2apic_logical_id};
use super::registers::*;
use super::timer::{Timer, TimerMode};

fn check(ok: bool, what: &str, value: impl Into<u64>) -> Result<(), String> {
    match ok {
        true => Ok(()),
        false => Err(format!("{what} is {:#x}, which no APIC holds; take the state anew", value.into())),
    }
}

impl Apic {
    /// The state at `now`. A deadline that has passed is acted on first: a
    /// current count of 0 means that a one-shot countdown is over.
    ///
    /// Errors detected since the last write of the ESR are not in the form and are dropped.
    pub(super) fn state(&mut self, now: Nanos) -> ApicState {
        self.expire(now);
        let mut registers = vec![0; ApicState::REGISTERS];
        for (i, r) in registers.iter_mut().enumerate() {
            *r = self.read(i, now).unwrap_or(0);
        }
        if self.timer_mode() == TimerMode::OneShot && self.timer.initial != 0 && !self.timer.over {
            registers[CURRENT_COUNT] = registers[CURRENT_COUNT].max(1);
        }
        ApicState {
            base: self.base,
            registers,
            icr_high: self.icr_high,
            tsc_deadline: self.timer.tsc_deadline,
            timer_start_ns: if self.timer.over { ApicState::TIMER_OVER } else { self.timer.start },
        }
    }

    /// Replace the state. On error, which says what is refused, nothing has changed.
    pub(super) fn set_state(&mut self, state: &ApicState) -> Result<(), String> {
        let ApicState { base, registers, icr_high, tsc_deadline, timer_start_ns } = state;
        let r: &[u32; ApicState::REGISTERS] = registers
            .as_slice()
            .try_into()
            .map_err(|_| format!("{} registers instead of {}", registers.len(), ApicState::REGISTERS))?;
        check(self.base_is_valid(*base), "IA32_APIC_BASE", *base)?;
        let x2 = *base & BASE_X2APIC != 0;
        let id = if x2 { self.id } else { self.id << 24 };
        check(r[ID] == id, "the APIC ID register", r[ID])?;
        check(r[TPR] <= 0xff, "TPR", r[TPR])?;
        let ldr_ok = if x2 { r[LDR] == x2apic_logical_id(self.id) } else { r[LDR] & 0x00ff_ffff == 0 };
        check(ldr_ok, "LDR", r[LDR])?;
        check(x2 || r[DFR] & DFR_FIXED == DFR_FIXED, "DFR", r[DFR])?;
        check(r[SVR] & !SVR_WRITABLE == 0, "SVR", r[SVR])?;
        check(r[ESR] & !0xff == 0, "ESR", r[ESR])?;
        check(r[ICR_LOW] & !(ICR_WRITABLE | ICR_STATUS) == 0, "ICR", r[ICR_LOW])?;
        check(x2 || icr_high & 0x00ff_ffff == 0, "ICR destination", *icr_high)?;
        check(r[DIVIDE] & !DIVIDE_WRITABLE == 0, "divide configuration", r[DIVIDE])?;
        let lvt: [u32; LVT_COUNT] = std::array::from_fn(|i| r[LVT + i]);
        for (i, entry) in lvt.iter().enumerate() {
            check(entry & !(self.lvt_writable(i) | LVT_READ_ONLY) == 0, "an LVT entry", *entry)?;
        }
        let vectors = |at: usize| -> Vectors { std::array::from_fn(|i| r[at + i]) };
        for at in [ISR, IRR] {
            check(r[at] & 0xffff == 0, "a reserved vector's pending or in-service bit", r[at])?;
        }
        // Other engines say so by the count alone; a periodic one may pass through 0.
        let one_shot = TimerMode::of(lvt[LVT_TIMER]) == TimerMode::OneShot;
        let one_shot_over = one_shot && r[INITIAL_COUNT] != 0 && r[CURRENT_COUNT] == 0;
        check(*tsc_deadline == 0 || self.tsc_deadline, "IA32_TSC_DEADLINE", *tsc_deadline)?;

        self.base = *base;
        self.tpr = r[TPR] as u8;
        self.ldr = r[LDR];
        self.dfr = r[DFR] | DFR_FIXED;
        self.svr = r[SVR];
        self.isr = vectors(ISR);
        self.tmr = vectors(TMR);
        self.irr = vectors(IRR);
        self.esr = r[ESR];
        self.new_errors = 0;
        self.icr_low = r[ICR_LOW] & ICR_WRITABLE;
        self.icr_high = *icr_high;
        self.lvt = std::array::from_fn(|i| lvt[i] & self.lvt_writable(i));
        self.timer = Timer {
            initial: r[INITIAL_COUNT],
            divide: r[DIVIDE],
            start: *timer_start_ns,
            over: *timer_start_ns == ApicState::TIMER_OVER || one_shot_over,
            tsc_deadline: *tsc_deadline,
        };
        Ok(())
    }
}
