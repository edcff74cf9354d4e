//! A device behind the MMIO transport, driven through its registers.

mod echo;
mod transport;

use std::sync::Arc;

use device_model::{Device, IrqLine, Mmio};
use echo::Echo;
use guest_memory::GuestMemory;
use saved_state::Saved;
use transport::{Levels, exchange, until};
use virtio_core::features::{EVENT_IDX, RING_PACKED, VERSION_1};
use virtio_core::mock::DriverQueue;
use virtio_core::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK};
use virtio_core::{VirtioHandle, VirtioMmio, VirtioMmioConfig};

const READY: u64 = 0x44;
const NOTIFY: u64 = 0x50;
const CAUSES: u64 = 0x60;
const ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const CONFIG: u64 = 0x100;

struct Machine {
    memory: GuestMemory,
    line: Arc<Levels>,
    device: VirtioMmio,
    handle: VirtioHandle,
}

fn machine_with(memory: GuestMemory, inline: bool) -> Machine {
    let line = Arc::new(Levels::default());
    let device = VirtioMmio::new(VirtioMmioConfig {
        device: Box::new(Echo::default()),
        memory: memory.clone(),
        line: IrqLine::new(line.clone(), 5),
        inline,
    });
    let handle = device.handle();
    Machine { memory, line, device, handle }
}

fn machine(inline: bool) -> Machine {
    machine_with(GuestMemory::flat(1 << 20).unwrap(), inline)
}

impl Machine {
    fn read(&mut self, at: u64) -> u32 {
        self.device.mmio_read(at, 4) as u32
    }
    fn write(&mut self, at: u64, value: u32) {
        self.device.mmio_write(at, 4, value.into());
    }

    fn negotiate(&mut self, features: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, u32::from(ACKNOWLEDGE | DRIVER));
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, select);
            self.write(0x20, half);
        }
        self.write(STATUS, u32::from(ACKNOWLEDGE | DRIVER | FEATURES_OK));
    }

    fn start(&mut self, features: u64, queue: u16) -> DriverQueue {
        self.negotiate(features);
        let q = DriverQueue::new(self.memory.clone(), 0x1000, 8, features);
        let c = q.config(queue);
        self.write(0x30, queue.into());
        assert_eq!(self.read(READY), 0);
        self.write(0x38, c.size.into());
        for (at, address) in
            [(0x80, c.addresses.descriptors), (0x90, c.addresses.driver), (0xa0, c.addresses.device)]
        {
            self.write(at, address as u32);
            self.write(at + 4, (address >> 32) as u32);
        }
        self.write(READY, 1);
        assert_eq!(self.read(READY), 1);
        self.write(STATUS, u32::from(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK));
        q
    }

    /// Send a byte and wait for its inverse.
    fn echo(&mut self, q: &mut DriverQueue, queue: u16, byte: u8) {
        let memory = self.memory.clone();
        exchange(&memory, q, byte, || self.write(NOTIFY, queue.into()));
    }
}

#[test]
fn the_registers_say_what_is_there() {
    let mut m = machine(true);
    // Register, value: magic, version, device, vendor, queue 0's size, no shared memory, a hole.
    for (at, value) in [
        (0x00, 0x7472_6976),
        (0x04, 2),
        (0x08, 63),
        (0x0c, 0x1af4),
        (0x34, 64),
        (0xb0, u32::MAX),
        (0xbc, u32::MAX),
        (0xf0, 0),
    ] {
        assert_eq!(m.read(at), value, "{at:#x}");
    }
    for (queue, size) in [(1, 8), (2, 0), (0x1_0001, 0)] {
        m.write(0x30, queue);
        assert_eq!(m.read(0x34), size, "queue {queue:#x}");
    }
    m.write(0x14, 1);
    assert_eq!(m.read(0x10), 5, "VERSION_1 and RING_PACKED");
    assert_eq!(m.device.mmio_read(0x08, 2), 0, "words only");
    m.device.mmio_write(CONFIG + 1, 2, 0xabcd);
    assert_eq!(m.device.mmio_read(CONFIG, 4), 0x00ab_cd00);
}

#[test]
fn a_driver_uses_the_device_and_the_line_is_held_until_acknowledged() {
    for (features, inline) in [(0, false), (RING_PACKED | EVENT_IDX, false), (EVENT_IDX, true)] {
        let mut m = machine(inline);
        let mut q = m.start(VERSION_1 | features, 1);
        for byte in 0..20 {
            m.echo(&mut q, 1, byte);
            until("its interrupt", || m.line.0.lock().unwrap().last() == Some(&true));
            assert_eq!(m.read(CAUSES), 1);
            m.write(ACK, 2);
            assert_eq!(m.line.0.lock().unwrap().last(), Some(&true), "another cause");
            m.write(ACK, 1);
            assert_eq!((m.read(CAUSES), m.line.0.lock().unwrap().pop()), (0, Some(false)));
        }
        m.write(STATUS, 0);
        m.write(0x30, 1);
        assert_eq!((m.read(STATUS), m.read(READY)), (0, 0));
        m.write(NOTIFY, 1);
        let mut q = m.start(VERSION_1, 0);
        m.echo(&mut q, 0, 77);
        m.device.reset();
        assert_eq!((m.read(STATUS), m.read(CAUSES)), (0, 0));
    }
}

#[test]
fn a_misplaced_queue_needs_a_reset_and_a_queue_can_be_taken_back() {
    let mut m = machine(true);
    m.negotiate(VERSION_1);
    m.write(0x84, 0x100);
    m.write(READY, 1);
    m.write(STATUS, 0xf);
    assert_eq!(m.read(STATUS) as u8 & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
    assert_eq!(m.read(CAUSES), 2, "the configuration has changed");
    m.negotiate(VERSION_1);
    m.write(0x84, 0x100);
    m.write(READY, 1);
    m.write(READY, 0);
    m.write(STATUS, 0xf);
    assert_eq!(m.read(STATUS), 0xf, "it is not in use");
}

#[test]
fn a_saved_device_goes_on_in_another_machine() {
    let mut m = machine(false);
    let mut q = m.start(VERSION_1, 1);
    m.echo(&mut q, 1, 1);
    until("its interrupt", || m.line.0.lock().unwrap().last() == Some(&true));
    m.handle.quiesce();
    let state = m.handle.save();
    let mut other = machine_with(m.memory.clone(), false);
    other.handle.restore(&state).unwrap();
    assert_eq!((other.handle.save(), other.line.0.lock().unwrap().last()), (state, Some(&true)));
    other.handle.resume();
    other.write(ACK, 1);
    other.echo(&mut q, 1, 3);
}

#[test]
fn any_access_is_harmless() {
    let mut m = machine(true);
    let mut x = 1u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..200_000 {
        let (a, b, size) = (next(), next(), 1 << (next() % 4));
        let at = (a % if a >> 63 == 0 { 0x110 } else { VirtioMmio::SIZE }) & !(u64::from(size) - 1);
        match a >> 60 & 7 {
            0..4 => m.write(at & !3, b as u32),
            4 => m.write(STATUS, b as u32 & 0xf),
            5 => m.device.mmio_write(at, size, b),
            _ => _ = m.device.mmio_read(at, size),
        }
    }
}
