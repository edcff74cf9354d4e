use std::sync::atomic::{AtomicBool, AtomicUsize};

use engine::attention_bits;
use proptest::prelude::*;

use super::registers::*;
use super::timer::MIN_PERIOD_NS;
use super::*;

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const X2: u64 = 0xfee0_0c00;

struct Machine {
    apics: Arc<LocalApics>,
    attention: Vec<Arc<Attention>>,
    clock: Clock,
    ended: Arc<Mutex<Vec<u8>>>,
}

impl Machine {
    fn new(cpus: u32) -> Self {
        let clock = Clock::virtual_time(1_000_000, 0);
        let attention: Vec<_> = (0..cpus).map(|_| Arc::new(Attention::new())).collect();
        let config = LocalApicsConfig {
            apic_ids: (0..cpus).collect(),
            physical_bits: 46,
            x2apic: true,
            tsc_deadline: true,
        };
        let apics = LocalApics::new(config, clock.clone(), attention.clone());
        let ended = Arc::new(Mutex::new(Vec::new()));
        let to = ended.clone();
        apics.connect(ApicWiring {
            end_of_interrupt: Box::new(move |v| to.lock().unwrap().push(v)),
            acknowledge_pic: Box::new(|| Some(0x27)),
        });
        Machine { apics, attention, clock, ended }
    }

    /// All software-enabled.
    fn enabled(cpus: u32) -> Self {
        let m = Self::new(cpus);
        (0..cpus as usize).for_each(|v| m.write(v, SVR, 0x1ff));
        m
    }

    fn x2apic(cpus: u32) -> Self {
        let m = Self::enabled(cpus);
        (0..cpus as usize).for_each(|v| m.apics.msr_write(v, APIC_BASE, X2).unwrap());
        m
    }

    fn write(&self, vcpu: usize, register: usize, value: u32) {
        self.apics.mmio_write(vcpu, register as u64 * 16, 4, u64::from(value));
    }

    fn read(&self, vcpu: usize, register: usize) -> u32 {
        self.apics.mmio_read(vcpu, register as u64 * 16, 4) as u32
    }

    fn bits(&self, vcpu: usize) -> u32 {
        self.attention[vcpu].bits()
    }

    /// vCPUs with an interrupt to take, as a bit mask.
    fn interrupted(&self) -> u32 {
        (0..self.apics.len()).map(|v| (self.bits(v) & attention_bits::INTERRUPT) << v).sum()
    }
}

#[test]
fn power_up_values() {
    let m = Machine::new(2);
    for (register, bsp, ap) in [
        (ID, 0, 1 << 24),
        (VERSION, 0x5_0014, 0x5_0014),
        (TPR, 0, 0),
        (LDR, 0, 0),
        (DFR, 0xffff_ffff, 0xffff_ffff),
        (SVR, 0xff, 0xff),
        (LVT + LVT_TIMER, 0x1_0000, 0x1_0000),
        (LVT + LVT_LINT0, 0x700, 0x1_0000),
    ] {
        assert_eq!((m.read(0, register), m.read(1, register)), (bsp, ap), "register {register:#x}");
    }
    assert_eq!(m.apics.msr_read(0, APIC_BASE), Some(0xfee0_0900));
    assert_eq!(m.apics.msr_read(1, APIC_BASE), Some(0xfee0_0800));
    assert_eq!(m.apics.page_address(1), Some(0xfee0_0000));
}

#[test]
fn base_transitions() {
    let m = Machine::new(1);
    // (written, accepted, page afterwards)
    for (value, ok, page) in [
        (0xfee0_0400u64, false, Some(0xfee0_0000)),
        (1 << 46 | 0x800, false, Some(0xfee0_0000)),
        (0xfee0_0801, false, Some(0xfee0_0000)),
        (0xfed0_0900, true, Some(0xfed0_0000)),
        (0xfee0_0d00, true, None),
        (0xfee0_0900, false, None),
        (0xfee0_0100, true, None),
        (0xfee0_0d00, false, None),
        (0xfee0_0900, true, Some(0xfee0_0000)),
    ] {
        assert_eq!(m.apics.msr_write(0, APIC_BASE, value).is_some(), ok, "{value:#x}");
        assert_eq!(m.apics.page_address(0), page, "{value:#x}");
    }
}

#[test]
fn priorities_and_end_of_interrupt() {
    let m = Machine::enabled(1);
    let send = |vector: u32, level: u32| {
        m.apics.send_msi(MsiMessage { address: 0xfee0_0000, data: vector | level << 15 | 1 << 14 })
    };
    send(0x41, 1);
    send(0x52, 0);
    assert_eq!(m.apics.acknowledge(0), Some(0x52));
    assert_eq!(m.read(0, PPR), 0x50);
    assert_eq!(m.interrupted(), 0, "0x41 waits for 0x52");
    send(0x5f, 0);
    assert_eq!(m.interrupted(), 0, "same class waits");
    send(0x61, 0);
    assert_eq!(m.apics.acknowledge(0), Some(0x61));
    // Each EOI ends the highest in service; only the level-triggered one is broadcast.
    for (next, ended) in [(None, None), (Some(0x5f), None), (Some(0x41), None), (None, Some(0x41))] {
        m.write(0, EOI, 0);
        assert_eq!(m.apics.acknowledge(0), next);
        assert_eq!(m.ended.lock().unwrap().last().copied(), ended);
    }
}

#[test]
fn task_priority_holds_back_and_cr8_is_its_upper_half() {
    let m = Machine::enabled(1);
    m.apics.send_msi(MsiMessage { address: 0xfee0_0000, data: 0x35 });
    for (cr8, interrupted, ppr) in [(3, 0, 0x30), (4, 0, 0x40), (2, 1, 0x20), (15, 0, 0xf0), (0, 1, 0)] {
        m.apics.write_cr8(0, cr8);
        assert_eq!((m.interrupted(), m.read(0, PPR), m.read(0, TPR)), (interrupted, ppr, (cr8 as u32) << 4));
        assert_eq!(m.apics.read_cr8(0), cr8);
    }
    m.write(0, TPR, 0x2f);
    assert_eq!(m.read(0, PPR), 0x2f, "the TPR's low half shows while it rules");
    assert_eq!(m.apics.acknowledge(0), Some(0x35));
    assert_eq!(m.read(0, PPR), 0x30);
}

#[test]
fn xapic_destinations() {
    // (DFR, LDRs, ICR low, ICR high >> 24, who gets it)
    let flat = 0xffff_ffff;
    let cases: &[(u32, [u32; 4], u32, u32, u32)] = &[
        (flat, [1, 2, 4, 8], 0x40, 2, 0b0100),
        (flat, [1, 2, 4, 8], 0x40, 0xff, 0b1111),
        (flat, [1, 2, 4, 8], 0x840, 0b1010, 0b1010),
        (flat, [1, 2, 4, 8], 0x840, 0xff, 0b1111),
        (0x0fff_ffff, [0x11, 0x12, 0x21, 0x22], 0x840, 0x23, 0b1100),
        (0x0fff_ffff, [0x11, 0x12, 0x21, 0x22], 0x840, 0xf1, 0b0101),
        (flat, [1, 2, 4, 8], 0x4_0040, 0, 0b0001),
        (flat, [1, 2, 4, 8], 0x8_0040, 0, 0b1111),
        (flat, [1, 2, 4, 8], 0xc_0040, 0, 0b1110),
        (flat, [1, 2, 4, 8], 0x40, 9, 0),
    ];
    for &(dfr, ldr, low, high, expected) in cases {
        let m = Machine::enabled(4);
        for (v, &id) in ldr.iter().enumerate() {
            m.write(v, DFR, dfr);
            m.write(v, LDR, id << 24);
        }
        m.write(0, ICR_HIGH, high << 24);
        m.write(0, ICR_LOW, low);
        assert_eq!(m.interrupted(), expected, "ICR {high:#x}:{low:#x} DFR {dfr:#x}");
    }
}

#[test]
fn x2apic_destinations() {
    // (ICR, who gets it); logical IDs of 0-15 are cluster 0, of 16-19 cluster 1.
    for (icr, expected) in [
        (17u64 << 32 | 0x40, 1 << 17),
        (0xffff_ffff << 32 | 0x40, 0xf_ffff),
        (0x0000_8001 << 32 | 0x840, 1 << 15 | 1),
        (0x0001_0006 << 32 | 0x840, 0b110 << 16),
        (0xffff_ffff << 32 | 0x840, 0xf_ffff),
        (0xff << 32 | 0x40, 0),
        (0xc_0040, 0xf_fffe),
    ] {
        let m = Machine::x2apic(20);
        assert_eq!(m.apics.msr_read(17, 0x80d), Some(0x1_0002));
        m.apics.msr_write(0, 0x830, icr).unwrap();
        assert_eq!(m.interrupted(), expected, "ICR {icr:#x}");
    }
}

#[test]
fn lowest_priority_goes_to_the_least_busy_and_equals_take_turns() {
    let m = Machine::enabled(3);
    (0..3).for_each(|v| m.write(v, LDR, 1 << (24 + v)));
    let send = || m.apics.send_msi(MsiMessage { address: 0xfee0_7004, data: 0x150 });
    m.apics.write_cr8(1, 2);
    let mut got = [0; 3];
    for _ in 0..6 {
        send();
        for (v, n) in got.iter_mut().enumerate() {
            if m.apics.acknowledge(v).is_some() {
                *n += 1;
                m.write(v, EOI, 0);
            }
        }
    }
    assert_eq!(got, [3, 0, 3]);
}

#[test]
fn nmi_init_and_startup_reach_the_attention_word() {
    let m = Machine::enabled(2);
    m.write(0, ICR_HIGH, 1 << 24);
    for (low, bit) in [
        (0x400, attention_bits::NMI),
        (0x8500, 0), // INIT level de-assert
        (0x500, attention_bits::INIT),
        (0x69a, attention_bits::STARTUP),
        (0x200, 0), // SMI
    ] {
        m.write(0, ICR_LOW, low);
        assert_eq!(m.attention[1].take(u32::MAX), bit, "ICR {low:#x}");
    }
    assert_eq!(m.attention[1].startup_vector(), 0x9a);
    assert_eq!(m.bits(0), 0);
}

#[test]
fn x2apic_faults() {
    let m = Machine::x2apic(1);
    // (MSR, written value, accepted)
    for (index, value, ok) in [
        (0x802, 0, false),
        (0x803, 0, false),
        (0x808, 0x20, true),
        (0x808, 0x100, false),
        (0x808, 1 << 32, false),
        (0x809, 0, false),
        (0x80a, 0, false),
        (0x80b, 0, true),
        (0x80b, 1, false),
        (0x80d, 0, false),
        (0x80e, 0, false),
        (0x80f, 0x1ff, true),
        (0x80f, 0x1000, false),
        (0x810, 0, false),
        (0x827, 0, false),
        (0x828, 0, true),
        (0x828, 1, false),
        (0x82f, 0x1_0000, false),
        (0x830, 0x1000_0000_0004_4040, true),
        (0x830, 0x2000, false),
        (0x831, 0, false),
        (0x832, 0x2_0050, true),
        (0x832, 0x100, false),
        (0x835, 0x1_a7ff, true),
        (0x837, 0x700, false),
        (0x838, 0xffff_ffff, true),
        (0x839, 0, false),
        (0x83e, 0xb, true),
        (0x83e, 4, false),
        (0x83f, 0x50, true),
        (0x83f, 0x150, false),
        (0x840, 0, false),
        (0x8ff, 0, false),
    ] {
        assert_eq!(m.apics.msr_write(0, index, value).is_some(), ok, "WRMSR {index:#x}, {value:#x}");
    }
    for (index, ok) in [
        (0x800, false),
        (0x802, true),
        (0x803, true),
        (0x80b, false),
        (0x80e, false),
        (0x82f, false),
        (0x830, true),
        (0x831, false),
        (0x839, true),
        (0x83f, false),
        (0x840, false),
    ] {
        assert_eq!(m.apics.msr_read(0, index).is_some(), ok, "RDMSR {index:#x}");
    }
    let xapic = Machine::enabled(1);
    assert_eq!(xapic.apics.msr_read(0, 0x802), None, "not in xAPIC mode");
    assert_eq!(xapic.apics.msr_write(0, 0x808, 0), None);
}

#[test]
fn errors_are_latched_and_interrupt() {
    let m = Machine::enabled(1);
    m.write(0, LVT + LVT_ERROR, 0xe1);
    m.write(0, ICR_LOW, 0x4_0008);
    assert_eq!(m.read(0, ESR), 0, "not yet latched");
    m.write(0, ESR, 0);
    assert_eq!(m.read(0, ESR), ESR_SEND_ILLEGAL);
    assert_eq!(m.apics.acknowledge(0), Some(0xe1));
    m.apics.send_msi(MsiMessage { address: 0xfee0_0000, data: 5 });
    m.read(0, 0x3d);
    m.write(0, ESR, 0);
    assert_eq!(m.read(0, ESR), ESR_RECEIVE_ILLEGAL | ESR_ILLEGAL_REGISTER);
    m.write(0, ESR, 0);
    assert_eq!(m.read(0, ESR), 0);
    m.write(0, LVT + LVT_ERROR, 3);
    m.write(0, ICR_LOW, 0x4_0008);
    m.write(0, ESR, 0);
    assert_eq!(
        m.read(0, ESR),
        ESR_SEND_ILLEGAL | ESR_RECEIVE_ILLEGAL,
        "illegal vector in the error entry itself"
    );
}

#[test]
fn software_disabling_masks_and_refuses() {
    let m = Machine::enabled(1);
    m.write(0, LVT + LVT_TIMER, 0x40);
    m.apics.send_msi(MsiMessage { address: 0xfee0_0000, data: 0x50 });
    m.write(0, SVR, 0xff);
    assert_eq!(m.read(0, LVT + LVT_TIMER), 0x1_0040);
    m.write(0, LVT + LVT_TIMER, 0x41);
    assert_eq!(m.read(0, LVT + LVT_TIMER), 0x1_0041, "the mask cannot be cleared");
    m.apics.send_msi(MsiMessage { address: 0xfee0_0000, data: 0x60 });
    assert_eq!(m.apics.acknowledge(0), Some(0x50), "what was pending stays; what came is lost");
    assert_eq!(m.apics.acknowledge(0), None);
}

#[test]
fn external_interrupts_through_lint0() {
    let m = Machine::new(2);
    m.apics.set_extint(true);
    assert_eq!(m.interrupted(), 1);
    assert_eq!(m.apics.acknowledge(0), Some(0x27));
    m.write(0, SVR, 0x1ff);
    for (lvt, interrupted) in [(0x1_0700, 0), (0x700, 1), (0x030, 0)] {
        m.write(0, LVT + LVT_LINT0, lvt);
        assert_eq!(m.interrupted(), interrupted, "LINT0 {lvt:#x}");
    }
    m.apics.set_extint(false);
    m.apics.set_extint(true);
    assert_eq!(m.apics.acknowledge(0), Some(0x30), "LINT0 as a fixed interrupt");
    m.apics.msr_write(0, APIC_BASE, 0xfee0_0100).unwrap();
    assert_eq!(m.interrupted(), 1, "a disabled APIC passes INTR through");
    m.apics.set_extint(false);
    assert_eq!(m.interrupted(), 0);
}

#[test]
fn timer_modes() {
    let m = Machine::enabled(1);
    let at = |t: u64| {
        m.clock.advance(t - m.clock.now());
        m.apics.expire(t);
        m.apics.acknowledge(0).inspect(|_| m.write(0, EOI, 0))
    };
    m.write(0, DIVIDE, 0b1011); // by 1
    m.write(0, LVT + LVT_TIMER, 0x40);
    m.write(0, INITIAL_COUNT, 1000);
    assert_eq!(m.apics.next_deadline(), Some(1000));
    assert_eq!(at(400), None);
    assert_eq!(m.read(0, CURRENT_COUNT), 600);
    m.write(0, DIVIDE, 0b0000); // by 2: 600 counts take 1200 ns
    assert_eq!(m.read(0, CURRENT_COUNT), 600);
    assert_eq!(m.apics.next_deadline(), Some(1600));
    assert_eq!(at(1600), Some(0x40));
    assert_eq!((m.read(0, CURRENT_COUNT), m.apics.next_deadline()), (0, None));

    m.write(0, LVT + LVT_TIMER, 0x2_0041);
    m.write(0, INITIAL_COUNT, 50_000);
    assert_eq!(at(101_600), Some(0x41));
    assert_eq!(m.apics.next_deadline(), Some(201_600));
    assert_eq!(at(520_000), Some(0x41), "missed periods are skipped");
    assert_eq!(m.apics.next_deadline(), Some(601_600), "and the grid is kept");
    m.write(0, INITIAL_COUNT, 1);
    assert_eq!(m.apics.next_deadline(), Some(520_000 + MIN_PERIOD_NS));

    m.write(0, LVT + LVT_TIMER, 0x4_0042);
    assert_eq!(m.apics.next_deadline(), None, "a new mode disarms");
    m.write(0, INITIAL_COUNT, 7);
    assert_eq!(m.apics.next_deadline(), None, "no counting in TSC-deadline mode");
    m.apics.msr_write(0, TSC_DEADLINE, 620_000).unwrap();
    assert_eq!(m.apics.next_deadline(), Some(620_000));
    assert_eq!(at(620_000), Some(0x42));
    assert_eq!(m.apics.msr_read(0, TSC_DEADLINE), Some(0));
    m.apics.msr_write(0, TSC_DEADLINE, 5).unwrap();
    assert_eq!(at(620_001), Some(0x42), "a deadline of the past fires at once");
    m.write(0, LVT + LVT_TIMER, 0x1_0043);
    m.apics.msr_write(0, TSC_DEADLINE, 5).unwrap();
    assert_eq!(m.apics.msr_read(0, TSC_DEADLINE), Some(0), "ignored outside the mode");
}

#[test]
fn deadline_of_the_past_needs_no_timer_thread_and_ended_counts_stay_zero() {
    let m = Machine::enabled(1);
    m.write(0, LVT + LVT_TIMER, 0x4_0042);
    m.clock.advance(1_000);
    m.apics.msr_write(0, TSC_DEADLINE, 5).unwrap();
    assert_eq!(m.apics.acknowledge(0), Some(0x42));
    assert_eq!(m.apics.msr_read(0, TSC_DEADLINE), Some(0));

    m.write(0, LVT + LVT_TIMER, 0x43);
    m.write(0, INITIAL_COUNT, 1);
    m.clock.advance(100_000);
    m.apics.expire(m.clock.now());
    m.write(0, LVT + LVT_TIMER, 0x2_0043);
    assert_eq!(m.apics.next_deadline(), None, "periodic mode waits for an initial count");
}

#[test]
fn state_goes_round_and_bad_state_is_refused() {
    let m = Machine::x2apic(2);
    m.apics.msr_write(1, 0x832, 0x2_0050).unwrap();
    m.apics.msr_write(1, 0x838, 90_000).unwrap();
    m.apics.msr_write(1, 0x83f, 0x99).unwrap();
    m.apics.msr_write(1, 0x830, 7 << 32 | 0x4_4440).unwrap();
    let state = m.apics.apic_state(1).unwrap();
    let other = Machine::new(2);
    other.apics.set_apic_state(1, &state).unwrap();
    assert_eq!(other.apics.apic_state(1).unwrap(), state);
    assert_eq!(other.apics.next_deadline(), m.apics.next_deadline());
    assert_eq!(other.apics.acknowledge(1), Some(0x99));
    assert!(other.apics.set_apic_state(0, &state).is_err(), "another APIC's ID");

    type Damage = fn(&mut ApicState);
    let damages: &[Damage] = &[
        |s| s.base |= 1,
        |s| s.base &= !0x800,
        |s| s.registers.truncate(63),
        |s| s.registers[TPR] = 0x100,
        |s| s.registers[LDR] ^= 1,
        |s| s.registers[SVR] = 0x1_0000,
        |s| s.registers[IRR] = 1,
        |s| s.registers[LVT] = 0x8_0000,
        |s| s.registers[DIVIDE] = 0x10,
        |s| s.registers[ICR_LOW] = 1 << 31,
    ];
    for (i, damage) in damages.iter().enumerate() {
        let mut bad = state.clone();
        damage(&mut bad);
        assert!(other.apics.set_apic_state(1, &bad).is_err(), "damage {i}");
    }
}

#[test]
fn a_finished_one_shot_stays_finished_after_restore() {
    let m = Machine::enabled(1);
    m.write(0, LVT + LVT_TIMER, 0x40);
    m.write(0, INITIAL_COUNT, 10);
    let running = m.apics.apic_state(0).unwrap();
    m.clock.advance(100);
    let over = m.apics.apic_state(0).unwrap();
    assert_eq!(m.apics.acknowledge(0), Some(0x40), "taking the state acted on the deadline");
    m.apics.set_apic_state(0, &over).unwrap();
    assert_eq!(m.apics.next_deadline(), None);
    m.apics.set_apic_state(0, &running).unwrap();
    assert_eq!(m.apics.next_deadline(), Some(20));
}

#[test]
fn interrupts_between_threads_do_not_deadlock_or_get_lost() {
    const EACH: usize = 5_000;
    let m = Machine::x2apic(4);
    let done = AtomicBool::new(false);
    let taken = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for vcpu in 0..4 {
            let (m, done, taken) = (&m, &done, &taken);
            s.spawn(move || {
                for n in 0..EACH {
                    let vector = 0x40 + (n % 16) as u64;
                    m.apics.msr_write(vcpu, 0x830, 0xc_0000 | vector).unwrap();
                    if let Some(v) = m.apics.acknowledge(vcpu) {
                        assert!((0x40..0x50).contains(&v));
                        taken.fetch_add(1, Ordering::Relaxed);
                        m.apics.msr_write(vcpu, 0x80b, 0).unwrap();
                    }
                }
                done.store(true, Ordering::Release);
            });
        }
    });
    assert!(taken.load(Ordering::Relaxed) > 0);
    // Whatever is still queued is announced: level and registers agree.
    for v in 0..4 {
        while m.bits(v) & attention_bits::INTERRUPT != 0 {
            assert!(m.apics.acknowledge(v).is_some());
            m.apics.msr_write(v, 0x80b, 0).unwrap();
        }
        assert_eq!(m.apics.acknowledge(v), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_accesses_leave_a_state_that_restores(
        ops in proptest::collection::vec((0u8..6, any::<u16>(), any::<u64>()), 1..200)
    ) {
        let m = Machine::new(2);
        for (what, address, value) in ops {
            let (vcpu, offset) = (usize::from(address & 1), u64::from(address >> 2 & 0x3ff) << 2);
            let size = 1 << (value & 3);
            match what {
                0 => m.apics.mmio_write(vcpu, offset, size, value >> 2),
                1 => _ = m.apics.mmio_read(vcpu, offset, size),
                2 => _ = m.apics.msr_write(vcpu, 0x800 + u32::from(address >> 8), value & 0xf_ffff),
                3 => _ = m.apics.msr_write(vcpu, APIC_BASE, 0xfee0_0000 | u64::from(address & 0xd00)),
                4 => m.apics.send_msi(MsiMessage { address: 0xfee0_0000 | value & 0xff00c, data: address.into() }),
                _ => {
                    m.clock.advance(value & 0xffff);
                    m.apics.expire(m.clock.now());
                    m.apics.acknowledge(vcpu);
                }
            }
        }
        for v in 0..2 {
            let state = m.apics.apic_state(v).unwrap();
            m.apics.set_apic_state(v, &state).unwrap();
            prop_assert_eq!(m.apics.apic_state(v).unwrap(), state);
        }
    }
}
