//! ACPI fixed hardware: PM1a event and control, power-management timer, GPE0
//! (ACPI 6.5, 4.8.3 and 4.8.4), laid out as in the ICH9.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{Clock, Device, IrqLine, Nanos, PortIo, PortRange, Timed};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::{PowerEvents, byte_ports};

const NAME: &str = "acpi-pm";
/// Power-management timer in Hz.
const TIMER_HZ: u128 = 3_579_545;

const TIMER: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC: u16 = 1 << 10;
const WAKE: u16 = 1 << 15;
/// Enable bits that exist.
const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;
/// Status bits that can be set.
const STATUSES: u16 = ENABLES | 1 << 4 | WAKE;

/// PM1 control: ACPI mode, always on because there is no SMI command port to leave it.
const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_ENABLE: u16 = 1 << 13;
/// Bus-master reload and sleep type.
const CONTROL_WRITABLE: u16 = 1 << 1 | 7 << SLEEP_TYPE_SHIFT;

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: [u8; 8],
    gpe_enable: [u8; 8],
    seen: u64,
}

struct Block {
    // Runtime glue.
    clock: Clock,
    sci: IrqLine,
    power: Arc<dyn PowerEvents>,
    // Volatile state.
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: [u8; 8],
    gpe_enable: [u8; 8],
    /// Guest time up to which timer overflows are in `status`.
    seen: Nanos,
}

fn ticks(now: Nanos) -> u64 {
    (u128::from(now) * TIMER_HZ / 1_000_000_000) as u64
}

impl Block {
    fn reset(&mut self) {
        self.status = 0;
        self.enable = 0;
        self.control = 0;
        self.gpe_status = [0; 8];
        self.gpe_enable = [0; 8];
        self.drive();
    }

    fn drive(&mut self) {
        let gpe = self.gpe_status.iter().zip(self.gpe_enable).any(|(s, e)| s & e != 0);
        self.sci.set(self.status & self.enable & ENABLES != 0 || gpe);
    }

    /// The timer status is set whenever bit 31 of the timer changes.
    fn advance(&mut self, now: Nanos) {
        if ticks(now) >> 31 != ticks(self.seen) >> 31 {
            self.status |= TIMER;
        }
        self.seen = self.seen.max(now);
        self.drive();
    }

    fn read(&self, offset: u16, now: Nanos) -> u8 {
        let pick = |word: u32, byte: u16| (word >> (8 * byte)) as u8;
        match offset {
            0..=1 => pick(self.status.into(), offset),
            2..=3 => pick(self.enable.into(), offset - 2),
            4..=5 => pick((self.control | SCI_ENABLED).into(), offset - 4),
            6..=7 => 0,
            8..=11 => pick(ticks(now) as u32, offset - 8),
            0x20..=0x27 => self.gpe_status[usize::from(offset - 0x20)],
            0x28..=0x2f => self.gpe_enable[usize::from(offset - 0x28)],
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u16, value: u8) {
        let replace = |word: u16, byte: u16| {
            let shift = 8 * byte;
            word & !(0xff << shift) | u16::from(value) << shift
        };
        match offset {
            // Write one to clear.
            0..=1 => self.status &= !(u16::from(value) << (8 * offset)),
            2..=3 => self.enable = replace(self.enable, offset - 2) & ENABLES,
            4..=5 => {
                let control = replace(self.control, offset - 4);
                self.control = control & CONTROL_WRITABLE;
                if control & SLEEP_ENABLE != 0 {
                    self.sleep((control >> SLEEP_TYPE_SHIFT & 7) as u8);
                }
            }
            0x20..=0x27 => self.gpe_status[usize::from(offset - 0x20)] &= !value,
            0x28..=0x2f => self.gpe_enable[usize::from(offset - 0x28)] = value,
            _ => return,
        }
        self.drive();
    }

    fn sleep(&self, sleep_type: u8) {
        // Type 0 is what firmware made for virtual q35 machines uses for soft-off.
        if sleep_type == AcpiPm::SLEEP_TYPE_S5 || sleep_type == 0 {
            self.power.power_off();
        }
    }
}

/// The power-management block. A handle: clones are the same block, so that the
/// power button can be pressed from another thread.
#[derive(Clone)]
pub struct AcpiPm(Arc<Mutex<Block>>);

impl AcpiPm {
    /// Everything, relative to the PM base.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0, 0x30, 0)];
    /// Where the PM base is unless firmware moves it.
    pub const DEFAULT_BASE: u16 = 0x600;
    /// Offset of the event block (4 bytes).
    pub const PM1_EVENT: u16 = 0;
    /// Offset of the control block (2 bytes).
    pub const PM1_CONTROL: u16 = 4;
    /// Offset of the 32-bit timer.
    pub const PM_TIMER: u16 = 8;
    /// Offset of GPE0 (16 bytes: 8 status, 8 enable).
    pub const GPE0: u16 = 0x20;
    /// SLP_TYP of soft-off, for `\_S5`.
    pub const SLEEP_TYPE_S5: u8 = 7;

    /// A block after power-up, in ACPI mode.
    pub fn new(clock: Clock, sci: IrqLine, power: Arc<dyn PowerEvents>) -> Self {
        let seen = clock.now();
        AcpiPm(Arc::new(Mutex::new(Block {
            clock,
            sci,
            power,
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: [0; 8],
            gpe_enable: [0; 8],
            seen,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Block> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        let mut block = self.lock();
        block.status |= POWER_BUTTON;
        block.drive();
    }

    /// General-purpose event `n` (0-63; others do not exist) happens.
    pub fn raise_gpe(&self, n: u8) {
        let mut block = self.lock();
        if let Some(byte) = block.gpe_status.get_mut(usize::from(n / 8)) {
            *byte |= 1 << (n % 8);
        }
        block.drive();
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.lock().reset();
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PortIo for AcpiPm {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let mut block = self.lock();
        let now = block.clock.now();
        block.advance(now);
        byte_ports::read(offset, size, |o| block.read(o, now))
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let mut block = self.lock();
        let now = block.clock.now();
        block.advance(now);
        byte_ports::write(offset, size, value, |o, v| block.write(o, v));
    }
}

impl Timed for AcpiPm {
    fn next_deadline(&self) -> Option<Nanos> {
        let block = self.lock();
        let wanted = block.enable & TIMER != 0 && block.status & TIMER == 0;
        let change = u128::from((ticks(block.seen) >> 31) + 1) << 31;
        wanted.then(|| u64::try_from((change * 1_000_000_000).div_ceil(TIMER_HZ)).unwrap_or(Nanos::MAX))
    }
    fn expire(&mut self, now: Nanos) {
        self.lock().advance(now);
    }
}

impl Saved for AcpiPm {
    type State = AcpiPmState;
    const VERSION: u16 = 1;

    fn save(&self) -> AcpiPmState {
        let block = self.lock();
        let Block { clock: _, sci: _, power: _, status, enable, control, gpe_status, gpe_enable, seen } =
            &*block;
        AcpiPmState {
            status: *status,
            enable: *enable,
            control: *control,
            gpe_status: *gpe_status,
            gpe_enable: *gpe_enable,
            seen: *seen,
        }
    }

    fn restore(&mut self, state: &AcpiPmState) -> Result<(), StateError> {
        let AcpiPmState { status, enable, control, gpe_status, gpe_enable, seen } = state;
        StateError::check(status & !STATUSES == 0, NAME, "status", *status, "defined bits")?;
        StateError::check(enable & !ENABLES == 0, NAME, "enable", *enable, "defined bits")?;
        StateError::check(control & !CONTROL_WRITABLE == 0, NAME, "control", *control, "defined bits")?;
        let mut block = self.lock();
        block.status = *status;
        block.enable = *enable;
        block.control = *control;
        block.gpe_status = *gpe_status;
        block.gpe_enable = *gpe_enable;
        block.seen = *seen;
        block.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use device_model::IrqSink;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct World {
        sci: AtomicBool,
        off: AtomicU32,
    }
    impl IrqSink for World {
        fn set_level(&self, _: u32, asserted: bool) {
            self.sci.store(asserted, Ordering::Relaxed);
        }
    }
    impl PowerEvents for World {
        fn power_off(&self) {
            self.off.fetch_add(1, Ordering::Relaxed);
        }
        fn reset(&self) {}
    }

    fn pm() -> (AcpiPm, Clock, Arc<World>) {
        let (clock, world) = (Clock::virtual_time(1_000_000, 0), Arc::new(World::default()));
        (AcpiPm::new(clock.clone(), IrqLine::new(world.clone(), 9), world.clone()), clock, world)
    }

    #[test]
    fn soft_off_needs_type_and_enable() {
        // (offset, size, value, whether the machine goes off)
        for (offset, size, value, off) in [
            (4, 2, 7 << 10, 0),
            (4, 2, 7 << 10 | 1 << 13, 1),
            (4, 2, 1 << 13, 1),
            (4, 2, 1 << 10 | 1 << 13, 0),
            (5, 1, 0x3c, 1),
            (4, 4, 0x3c00, 1),
        ] {
            let (mut pm, _, world) = pm();
            pm.port_write(offset, size, value);
            assert_eq!(world.off.load(Ordering::Relaxed), off, "{value:#x} to {offset}");
            assert_eq!(pm.port_read(4, 2), value & 0x1c00 | 1 | if offset == 5 { 7 << 10 } else { 0 });
        }
    }

    #[test]
    fn power_button_interrupts_until_cleared() {
        let (mut pm, _, world) = pm();
        pm.press_power_button();
        assert!(!world.sci.load(Ordering::Relaxed));
        pm.port_write(2, 2, 0x100);
        assert!(world.sci.load(Ordering::Relaxed));
        assert_eq!(pm.port_read(0, 2), 0x100);
        pm.port_write(0, 2, 0x100);
        assert!(!world.sci.load(Ordering::Relaxed));
        pm.raise_gpe(11);
        assert_eq!(pm.port_read(0x21, 1), 8);
        pm.port_write(0x29, 1, 8);
        assert!(world.sci.load(Ordering::Relaxed));
        pm.port_write(0x21, 1, 8);
        assert!(!world.sci.load(Ordering::Relaxed));
    }

    #[test]
    fn timer_counts_exactly_and_reports_its_top_bit() {
        let (mut pm, clock, world) = pm();
        for second in 1..100u32 {
            clock.advance(1_000_000_000);
            assert_eq!(pm.port_read(8, 4), 3_579_545 * second);
        }
        assert_eq!(pm.next_deadline(), None);
        pm.port_write(2, 2, 1);
        let due = pm.next_deadline().unwrap();
        assert_eq!((ticks(due), ticks(due - 1)), (1 << 31, (1 << 31) - 1));
        clock.advance(due - clock.now());
        pm.expire(due);
        assert!(world.sci.load(Ordering::Relaxed));
        assert_eq!(pm.next_deadline(), None, "no more wake-ups until it is cleared");
        pm.port_write(0, 2, 1);
        assert!(pm.next_deadline().unwrap() > due);
    }

    #[test]
    fn state_goes_round_and_is_checked() {
        let (mut pm, ..) = pm();
        pm.port_write(2, 2, 0x100);
        pm.press_power_button();
        let state = pm.save();
        let (mut other, _, world) = self::pm();
        other.restore(&state).unwrap();
        assert!(world.sci.load(Ordering::Relaxed));
        assert_eq!(other.save(), state);
        let mut bad = state.clone();
        bad.control = SLEEP_ENABLE;
        assert!(other.restore(&bad).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_accesses(ops in proptest::collection::vec((any::<bool>(), any::<u16>(), any::<u32>()), 1..200)) {
            let (mut pm, clock, _) = pm();
            for (write, offset, value) in ops {
                let (offset, size) = (if offset & 1 == 0 { offset } else { offset % 0x32 }, 1 << (value >> 30).min(2));
                match write {
                    true => pm.port_write(offset, size, value),
                    false => _ = pm.port_read(offset, size),
                }
                clock.advance(u64::from(value) * 64);
                pm.expire(clock.now());
            }
            let state = pm.save();
            prop_assert!(pm.restore(&state).is_ok());
        }
    }
}
