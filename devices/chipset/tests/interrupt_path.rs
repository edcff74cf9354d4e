//! The interrupt controllers wired as a board wires them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chipset::{ApicWiring, IoApic, IrqRouter, LocalApics, LocalApicsConfig, Pic, Pit};
use device_model::{Clock, Mmio, PortIo, Timed};
use engine::{Attention, LocalInterrupts, attention_bits};

struct Board {
    clock: Clock,
    pic: Pic,
    ioapic: IoApic,
    router: Arc<IrqRouter>,
    apics: Arc<LocalApics>,
    attention: Vec<Arc<Attention>>,
}

const SVR: u64 = 0xf0;
const EOI: u64 = 0xb0;
const LINT0: u64 = 0x350;

fn board(cpus: u32) -> Board {
    let clock = Clock::virtual_time(1_000_000, 0);
    let attention: Vec<_> = (0..cpus).map(|_| Arc::new(Attention::new())).collect();
    let config = LocalApicsConfig {
        apic_ids: (0..cpus).collect(),
        physical_bits: 46,
        x2apic: true,
        tsc_deadline: true,
    };
    let apics = LocalApics::new(config, clock.clone(), attention.clone());
    let extint = apics.clone();
    let mut pic = Pic::new(Box::new(move |level| extint.set_extint(level)));
    let ioapic = IoApic::new(0, apics.clone());
    apics.connect(ApicWiring {
        end_of_interrupt: ioapic.end_of_interrupt_callback(),
        acknowledge_pic: pic.acknowledge_callback(),
    });
    for (offset, value) in
        [(0, 0x11), (1, 0x20), (1, 4), (1, 1), (0x10, 0x11), (0x11, 0x28), (0x11, 2), (0x11, 1)]
    {
        pic.port_write(offset, 1, value);
    }
    let router = IrqRouter::new(pic.clone(), ioapic.clone());
    Board { clock, pic, ioapic, router, apics, attention }
}

impl Board {
    fn interrupted(&self, vcpu: usize) -> bool {
        self.attention[vcpu].bits() & attention_bits::INTERRUPT != 0
    }
    fn redirect(&mut self, pin: u64, entry: u64) {
        for (register, half) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xffff_ffff)] {
            self.ioapic.mmio_write(0, 4, register);
            self.ioapic.mmio_write(0x10, 4, half);
        }
    }
}

#[test]
fn the_timer_interrupts_through_the_pic() {
    let b = board(2);
    let mut pit = Pit::new(b.clock.clone(), b.router.line(0));
    for (port, value) in [(3, 0x34), (0, 0xe8), (0, 3)] {
        pit.port_write(port, 1, value);
    }
    for _ in 0..3 {
        let due = pit.next_deadline().unwrap();
        b.clock.advance(due - b.clock.now());
        assert!(!b.interrupted(0));
        pit.expire(due);
        assert!(b.interrupted(0) && !b.interrupted(1));
        assert_eq!(b.apics.acknowledge(0), Some(0x20));
        assert!(!b.interrupted(0));
        b.pic.clone().port_write(0, 1, 0x20);
    }
}

#[test]
fn a_level_comes_again_until_its_source_is_quiet() {
    let mut b = board(2);
    b.apics.mmio_write(1, SVR, 4, 0x1ff);
    b.apics.mmio_write(0, LINT0, 4, 0x1_0000);
    b.redirect(9, 1 << 56 | 0x8051);
    let sci = b.router.line(9);
    sci.set(true);
    for _ in 0..3 {
        assert!(b.interrupted(1) && !b.interrupted(0));
        assert_eq!(b.apics.acknowledge(1), Some(0x51));
        assert!(!b.interrupted(1), "in service");
        b.apics.mmio_write(1, EOI, 4, 0);
    }
    assert_eq!(b.apics.acknowledge(1), Some(0x51));
    sci.set(false);
    b.apics.mmio_write(1, EOI, 4, 0);
    assert!(!b.interrupted(1));
    // The PIC was asked as well, and its request has gone with the line.
    assert_eq!(b.pic.clone().port_read(0x10, 1) & 2, 2, "an edge input stays latched");
}

#[test]
fn lines_messages_and_ends_from_many_threads_do_not_deadlock() {
    const ROUNDS: usize = 3_000;
    let mut b = board(4);
    for vcpu in 0..4 {
        b.apics.mmio_write(vcpu, SVR, 4, 0x1ff);
    }
    for pin in 16..20u64 {
        b.redirect(pin, (pin - 16) << 56 | 0x8000 | (0x50 + pin));
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (b, stop) = (&b, &stop);
        for vcpu in 0..4usize {
            s.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if b.apics.acknowledge(vcpu).is_some() {
                        b.apics.mmio_write(vcpu, EOI, 4, 0);
                    }
                }
            });
        }
        let devices: Vec<_> = (0..4u32)
            .map(|i| {
                s.spawn(move || {
                    let (level, edge) = (b.router.line(16 + i), b.router.line(3 + i));
                    for _ in 0..ROUNDS {
                        level.set(true);
                        edge.pulse();
                        level.set(false);
                    }
                })
            })
            .collect();
        let started = std::time::Instant::now();
        let finished = || devices.iter().all(|d| d.is_finished());
        while !finished() && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(finished(), "the threads wait for each other");
        stop.store(true, Ordering::Relaxed);
    });
    // All is taken or announced.
    for vcpu in 0..4 {
        while b.apics.acknowledge(vcpu).is_some() {
            b.apics.mmio_write(vcpu, EOI, 4, 0);
            b.pic.clone().port_write(0, 1, 0x20);
        }
        assert!(!b.interrupted(vcpu));
    }
}
