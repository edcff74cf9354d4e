//! One local APIC. Knows nothing of the others: what it wants done to them it
//! returns as an [`Effect`].

use std::sync::Arc;

use device_model::{Clock, Nanos};
use engine::{Attention, attention_bits};

use super::LocalApicsConfig;
use super::message::{self, BROADCAST, Destination, Mode};
use super::registers::*;
use super::timer::{Timer, TimerMode};

/// Where the xAPIC page is after power-up.
pub(super) const DEFAULT_PAGE: u64 = 0xfee0_0000;

/// What an access wants done once the APIC is unlocked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    EndOfInterrupt(u8),
    Send(Destination, Mode),
}

/// A 256-bit register: IRR, ISR or TMR.
pub(super) type Vectors = [u32; 8];

pub(super) fn highest(v: &Vectors) -> Option<u8> {
    let i = v.iter().rposition(|&w| w != 0)?;
    Some((i as u32 * 32 + 31 - v[i].leading_zeros()) as u8)
}

fn set(v: &mut Vectors, vector: u8, on: bool) {
    let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
    match on {
        true => v[word] |= bit,
        false => v[word] &= !bit,
    }
}

fn has(v: &Vectors, vector: u8) -> bool {
    v[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
}

pub(super) struct Apic {
    // Static configuration.
    pub(super) id: u32,
    bootstrap: bool,
    physical_bits: u8,
    x2apic: bool,
    pub(super) tsc_deadline: bool,

    // Runtime glue.
    clock: Clock,
    attention: Arc<Attention>,

    // Volatile state.
    pub(super) base: u64,
    pub(super) tpr: u8,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    pub(super) isr: Vectors,
    pub(super) tmr: Vectors,
    pub(super) irr: Vectors,
    /// ESR as software sees it, and errors since its last write.
    pub(super) esr: u32,
    pub(super) new_errors: u32,
    pub(super) icr_low: u32,
    pub(super) icr_high: u32,
    pub(super) lvt: [u32; LVT_COUNT],
    pub(super) timer: Timer,
    /// Level of the LINT0 pin, which the PIC drives; not part of the state that
    /// engines exchange, since the PIC drives it again.
    lint0: bool,
}

impl Apic {
    pub(super) fn new(
        config: &LocalApicsConfig,
        index: usize,
        clock: Clock,
        attention: Arc<Attention>,
    ) -> Self {
        let mut apic = Apic {
            id: config.apic_ids[index],
            bootstrap: index == 0,
            physical_bits: config.physical_bits,
            x2apic: config.x2apic,
            tsc_deadline: config.tsc_deadline,
            clock,
            attention,
            base: 0,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            esr: 0,
            new_errors: 0,
            icr_low: 0,
            icr_high: 0,
            lvt: [0; LVT_COUNT],
            timer: Timer::default(),
            lint0: false,
        };
        apic.power_up();
        apic
    }

    pub(super) fn power_up(&mut self) {
        self.base = DEFAULT_PAGE | BASE_ENABLED | if self.bootstrap { BASE_BSP } else { 0 };
        self.init();
    }

    /// Everything but IA32_APIC_BASE.
    pub(super) fn init(&mut self) {
        self.tpr = 0;
        self.ldr = if self.in_x2apic_mode() { x2apic_logical_id(self.id) } else { 0 };
        self.dfr = 0xffff_ffff;
        self.svr = 0xff;
        self.isr = [0; 8];
        self.tmr = [0; 8];
        self.irr = [0; 8];
        self.esr = 0;
        self.new_errors = 0;
        self.icr_low = 0;
        self.icr_high = 0;
        self.lvt = [LVT_MASKED; LVT_COUNT];
        if self.bootstrap {
            // Virtual wire mode through LINT0, as firmware leaves it and as other
            // platforms reset to: a kernel started without firmware expects the PIC to work.
            self.lvt[LVT_LINT0] = 7 << 8;
        }
        self.timer = Timer::default();
    }

    pub(super) fn attention(&self) -> &Attention {
        &self.attention
    }

    pub(super) fn enabled(&self) -> bool {
        self.base & BASE_ENABLED != 0
    }

    pub(super) fn in_x2apic_mode(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    pub(super) fn accepts_fixed(&self) -> bool {
        self.enabled() && self.software_enabled()
    }

    pub(super) fn page_address(&self) -> Option<u64> {
        (self.enabled() && !self.in_x2apic_mode()).then_some(self.base & !0xfff)
    }

    // Interrupt priorities (SDM 12.8.3).

    /// The PPR.
    pub(super) fn processor_priority(&self) -> u8 {
        let in_service = highest(&self.isr).unwrap_or(0);
        match self.tpr >> 4 >= in_service >> 4 {
            true => self.tpr,
            false => in_service & 0xf0,
        }
    }

    fn deliverable(&self) -> Option<u8> {
        if !self.enabled() {
            return None;
        }
        highest(&self.irr).filter(|v| v >> 4 > self.processor_priority() >> 4)
    }

    /// Whether the PIC's request reaches the processor.
    pub(super) fn external_interrupt(&self) -> bool {
        let lint0 = self.lvt[LVT_LINT0];
        let wired = lint0 & LVT_MASKED == 0 && lint0 >> 8 & 7 == 7;
        self.lint0 && (!self.enabled() || wired)
    }

    pub(super) fn update_attention(&self) {
        match self.external_interrupt() || self.deliverable().is_some() {
            true => self.attention.raise(attention_bits::INTERRUPT),
            false => self.attention.clear(attention_bits::INTERRUPT),
        }
    }

    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        set(&mut self.irr, vector, false);
        set(&mut self.isr, vector, true);
        Some(vector)
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = highest(&self.isr) else { return Effect::None };
        set(&mut self.isr, vector, false);
        match has(&self.tmr, vector) {
            true => Effect::EndOfInterrupt(vector),
            false => Effect::None,
        }
    }

    // Receiving (SDM 12.6.2, 12.8.4).

    pub(super) fn is_addressed(&self, to: Destination, itself: bool) -> bool {
        match to {
            Destination::Itself => itself,
            Destination::All => true,
            Destination::Others => !itself,
            Destination::Physical(id) => id == BROADCAST || id == self.id,
            Destination::Logical(BROADCAST) => true,
            Destination::Logical(id) if self.in_x2apic_mode() => {
                id >> 16 == self.ldr >> 16 && id & self.ldr & 0xffff != 0
            }
            Destination::Logical(id) if id > 0xff => false,
            Destination::Logical(id) => match self.dfr >> 28 {
                0xf => self.ldr >> 24 & id != 0,
                0 => {
                    let cluster = id >> 4 == 0xf || id >> 4 == self.ldr >> 28;
                    cluster && self.ldr >> 24 & id & 0xf != 0
                }
                _ => false,
            },
        }
    }

    /// A message for this APIC.
    pub(super) fn receive(&mut self, mode: Mode) {
        if !self.enabled() {
            return;
        }
        match mode {
            Mode::Fixed { vector, level } | Mode::LowestPriority { vector, level } => {
                self.queue(vector, level)
            }
            Mode::Nmi => self.attention.nmi(),
            Mode::Init => self.attention.raise(attention_bits::INIT),
            Mode::Startup { vector } => self.attention.startup(vector),
            // Only the PIC, at LINT0, can be asked for its vector.
            Mode::ExtInt => {}
        }
    }

    fn queue(&mut self, vector: u8, level: bool) {
        if !self.accepts_fixed() {
            return;
        }
        if vector < FIRST_VECTOR {
            self.error(ESR_RECEIVE_ILLEGAL);
            return;
        }
        set(&mut self.irr, vector, true);
        set(&mut self.tmr, vector, level);
    }

    fn error(&mut self, bit: u32) {
        self.new_errors |= bit;
        let entry = self.lvt[LVT_ERROR];
        let vector = entry as u8;
        match vector < FIRST_VECTOR {
            // An illegal vector here is one more error, but never a loop.
            true if entry & LVT_MASKED == 0 => self.new_errors |= ESR_RECEIVE_ILLEGAL,
            true => {}
            false => self.local_interrupt(LVT_ERROR),
        }
    }

    /// A source of the local vector table fires.
    fn local_interrupt(&mut self, source: usize) {
        let entry = self.lvt[source];
        if entry & LVT_MASKED != 0 || !self.enabled() {
            return;
        }
        // The timer's and the error entry have no delivery mode: fixed.
        let mode = if matches!(source, LVT_TIMER | LVT_ERROR) { 0 } else { entry >> 8 & 7 };
        match mode {
            0 => self.queue(entry as u8, entry & LVT_LEVEL != 0 && source == LVT_LINT0),
            4 => self.attention.nmi(),
            5 => self.attention.raise(attention_bits::INIT),
            _ => {}
        }
    }

    pub(super) fn set_lint0(&mut self, asserted: bool) {
        let rising = asserted && !self.lint0;
        self.lint0 = asserted;
        if rising {
            self.local_interrupt(LVT_LINT0);
        }
    }

    // Task priority.

    pub(super) fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    pub(super) fn set_cr8(&mut self, value: u64) {
        self.tpr = ((value & 0xf) << 4) as u8;
    }

    // Timer.

    pub(super) fn timer_mode(&self) -> TimerMode {
        TimerMode::of(self.lvt[LVT_TIMER])
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.timer.deadline(self.timer_mode(), &self.clock)
    }

    pub(super) fn expire(&mut self, now: Nanos) {
        if self.deadline().is_some_and(|d| d <= now) {
            self.timer.expired(self.timer_mode(), now);
            self.local_interrupt(LVT_TIMER);
        }
    }

    // Registers, as both interfaces see them.

    /// `None`: not a register.
    pub(super) fn read(&mut self, register: usize, now: Nanos) -> Option<u32> {
        Some(match register {
            ID if self.in_x2apic_mode() => self.id,
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TPR => u32::from(self.tpr),
            PPR => u32::from(self.processor_priority()),
            LDR => self.ldr,
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr[register - ISR],
            TMR..IRR => self.tmr[register - TMR],
            IRR..ESR => self.irr[register - IRR],
            ESR => self.esr,
            ICR_LOW => self.icr_low,
            ICR_HIGH => self.icr_high,
            LVT..=LVT_LAST => self.lvt[register - LVT],
            INITIAL_COUNT => self.timer.initial,
            CURRENT_COUNT => self.timer.current_count(self.timer_mode(), now),
            DIVIDE => self.timer.divide,
            // Write-only.
            EOI => 0,
            _ => return None,
        })
    }

    /// Bits outside a register's writable ones are ignored; the x2APIC interface
    /// has refused them before. `None`: not a writable register.
    pub(super) fn write(&mut self, register: usize, value: u32, now: Nanos) -> Option<Effect> {
        match register {
            TPR => self.tpr = value as u8,
            EOI => return Some(self.end_of_interrupt()),
            LDR => self.ldr = value & 0xff00_0000,
            DFR => self.dfr = value | DFR_FIXED,
            SVR => {
                self.svr = value & SVR_WRITABLE;
                if !self.software_enabled() {
                    self.lvt.iter_mut().for_each(|e| *e |= LVT_MASKED);
                }
            }
            ESR => {
                self.esr = self.new_errors;
                self.new_errors = 0;
            }
            ICR_HIGH => self.icr_high = value & 0xff00_0000,
            ICR_LOW => {
                self.icr_low = value & ICR_WRITABLE;
                return Some(self.command(false));
            }
            LVT..=LVT_LAST => self.write_lvt(register - LVT, value),
            INITIAL_COUNT => self.timer.set_initial(self.timer_mode(), value, now),
            DIVIDE => self.timer.set_divide(self.timer_mode(), value & DIVIDE_WRITABLE, now),
            // Read-only registers: the write is lost.
            ID | VERSION | PPR | CURRENT_COUNT | ISR..ESR => {}
            _ => return None,
        }
        Some(Effect::None)
    }

    pub(super) fn lvt_writable(&self, entry: usize) -> u32 {
        match entry {
            LVT_TIMER if !self.tsc_deadline => LVT_WRITABLE[entry] & !(1 << 18),
            _ => LVT_WRITABLE[entry],
        }
    }

    fn write_lvt(&mut self, entry: usize, value: u32) {
        let before = self.timer_mode();
        let forced = if self.software_enabled() { 0 } else { LVT_MASKED };
        self.lvt[entry] = value & self.lvt_writable(entry) | forced;
        self.timer.change_mode(before, self.timer_mode());
    }

    /// The interrupt command register has been written.
    pub(super) fn command(&mut self, wide: bool) -> Effect {
        let Some((to, mode)) = message::from_icr(self.icr_low, self.icr_high, wide) else {
            return Effect::None;
        };
        if mode.queued_vector().is_some_and(|v| v < FIRST_VECTOR) {
            self.error(ESR_SEND_ILLEGAL);
            return Effect::None;
        }
        Effect::Send(to, mode)
    }

    pub(super) fn self_ipi(&mut self, vector: u8) {
        match vector < FIRST_VECTOR {
            true => self.error(ESR_SEND_ILLEGAL),
            false => self.queue(vector, false),
        }
    }

    // The xAPIC page.

    pub(super) fn page_read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        if self.page_address().is_none() {
            // The page went away between the routing of the access and this.
            return u64::MAX;
        }
        let (register, within) = ((offset >> 4 & 0xff) as usize, offset & 0xf);
        if within >= 4 {
            return 0;
        }
        let Some(value) = self.read(register, now) else {
            self.error(ESR_ILLEGAL_REGISTER);
            return 0;
        };
        let mask = if size >= 8 { u64::MAX } else { (1 << (u32::from(size) * 8)) - 1 };
        u64::from(value) >> (within * 8) & mask
    }

    pub(super) fn page_write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) -> Effect {
        if offset & 0xf != 0 || size < 4 || self.page_address().is_none() {
            return Effect::None;
        }
        self.write((offset >> 4 & 0xff) as usize, value as u32, now).unwrap_or_else(|| {
            self.error(ESR_ILLEGAL_REGISTER);
            Effect::None
        })
    }

    // IA32_APIC_BASE (SDM 12.4.4 and 12.12.5).

    pub(super) fn base_is_valid(&self, value: u64) -> bool {
        let address = (1u64 << self.physical_bits.clamp(32, 63)) - 1;
        let modes = BASE_ENABLED | if self.x2apic { BASE_X2APIC } else { 0 };
        value & !(address & !0xfff | modes | BASE_BSP) == 0
            && value & (BASE_ENABLED | BASE_X2APIC) != BASE_X2APIC
    }

    pub(super) fn set_base(&mut self, value: u64) -> Option<()> {
        if !self.base_is_valid(value) {
            return None;
        }
        let modes = BASE_ENABLED | BASE_X2APIC;
        let (was, becomes) = (self.base & modes, value & modes);
        match (was, becomes) {
            // x2APIC mode is entered from xAPIC mode and left by disabling only.
            (0, b) if b == modes => return None,
            (w, BASE_ENABLED) if w == modes => return None,
            _ => {}
        }
        self.base = value;
        if becomes == 0 && was != 0 {
            self.init();
        } else if becomes == modes && was != modes {
            self.ldr = x2apic_logical_id(self.id);
            self.icr_high = 0;
        }
        Some(())
    }
}

/// SDM 12.12.10.2.
pub(super) fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}
