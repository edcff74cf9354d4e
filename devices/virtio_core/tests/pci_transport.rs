//! A device behind the PCI transport, driven through its registers.

mod echo;
mod transport;

use std::sync::{Arc, Mutex};

use device_model::{IrqLine, MsiMessage, MsiSink};
use echo::Echo;
use guest_memory::{GuestMemory, RamOffset};
use pci::{BarAccess, PciFunction};
use saved_state::Saved;
use transport::{Levels, exchange, until};
use virtio_core::features::{EVENT_IDX, RING_PACKED, VERSION_1};
use virtio_core::mock::DriverQueue;
use virtio_core::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK};
use virtio_core::{VirtioHandle, VirtioPci, VirtioPciConfig};

/// Where the capabilities say that structures are.
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX: u64 = 0x4000;
const NO_VECTOR: u64 = 0xffff;

#[derive(Default)]
struct Messages(Mutex<Vec<u32>>);

impl MsiSink for Messages {
    fn send_msi(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message.data);
    }
}

struct Machine {
    memory: GuestMemory,
    messages: Arc<Messages>,
    line: Arc<Levels>,
    function: VirtioPci,
    bar: Arc<dyn BarAccess>,
    handle: VirtioHandle,
}

fn machine(inline: bool) -> Machine {
    machine_with(GuestMemory::flat(1 << 20).unwrap(), inline)
}

fn machine_with(memory: GuestMemory, inline: bool) -> Machine {
    let (messages, line) = (Arc::new(Messages::default()), Arc::new(Levels::default()));
    let function = VirtioPci::new(VirtioPciConfig {
        device: Box::new(Echo::default()),
        memory: memory.clone(),
        msi: messages.clone(),
        intx: IrqLine::new(line.clone(), 0),
        inline,
    });
    let (bar, handle) = (function.bar_access().unwrap(), function.handle());
    Machine { memory, messages, line, function, bar, handle }
}

impl Machine {
    fn read(&self, at: u64, size: u8) -> u64 {
        self.bar.read(0, at, size)
    }
    fn write(&self, at: u64, size: u8, value: u64) {
        self.bar.write(0, at, size, value);
    }
    fn status(&self) -> u8 {
        self.read(0x14, 1) as u8
    }

    /// All up to FEATURES_OK.
    fn negotiate(&self, features: u64) {
        self.write(0x14, 1, 0);
        self.write(0x14, 1, u64::from(ACKNOWLEDGE | DRIVER));
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(0x08, 4, select);
            self.write(0x0c, 4, half);
        }
        self.write(0x14, 1, u64::from(ACKNOWLEDGE | DRIVER | FEATURES_OK));
    }

    fn enable_queue(&self, index: u16, q: &DriverQueue) {
        let c = q.config(index);
        self.write(0x16, 2, index.into());
        self.write(0x18, 2, c.size.into());
        // As Linux does: in halves.
        for (at, address) in
            [(0x20, c.addresses.descriptors), (0x28, c.addresses.driver), (0x30, c.addresses.device)]
        {
            self.write(at, 4, address & 0xffff_ffff);
            self.write(at + 4, 4, address >> 32);
        }
        self.write(0x1c, 2, 1);
    }

    /// Enable MSI-X; vector n sends n.
    fn enable_msix(&mut self) {
        for n in 0..3 {
            self.write(MSIX + 16 * n, 4, 0xfee0_0000);
            self.write(MSIX + 16 * n + 8, 4, n);
            self.write(MSIX + 16 * n + 12, 4, 0);
        }
        self.function.config_write(0x42, 2, 0x8000);
        self.write(0x10, 2, 0);
        for queue in 0..2 {
            self.write(0x16, 2, queue);
            self.write(0x1a, 2, queue + 1);
        }
    }

    fn start(&self, features: u64, queue: u16) -> DriverQueue {
        self.negotiate(features);
        let q = DriverQueue::new(self.memory.clone(), 0x1000, 8, features);
        self.enable_queue(queue, &q);
        self.write(0x14, 1, u64::from(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK));
        q
    }

    /// Send a byte and wait for its inverse.
    fn echo(&self, q: &mut DriverQueue, queue: u16, byte: u8) {
        let ring = || self.write(NOTIFY + 4 * u64::from(queue), 2, queue.into());
        exchange(&self.memory, q, byte, ring);
    }
}

#[test]
fn the_capabilities_say_where_everything_is() {
    let m = machine(true);
    let config = m.function.config();
    assert_eq!((config.read(0, 4), config.read(0x08, 1)), (0x107f_1af4, 1));
    let mut found = Vec::new();
    let mut at = config.read(0x34, 1) as u16;
    while at != 0 {
        if config.read(at, 1) == 9 {
            let field = |o: u16, size| config.read(at + o, size);
            found.push((field(3, 1), field(2, 1), field(4, 1), field(8, 4), field(12, 4)));
        }
        at = config.read(at + 1, 1) as u16;
    }
    // Type, length, BAR, offset, bytes.
    let expected = [
        (1, 16, 0, 0, 0x38),
        (3, 16, 0, 0x1000, 1),
        (4, 16, 0, 0x2000, 0x1000),
        (2, 20, 0, 0x3000, 8),
        (5, 20, 0, 0, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_driver_sets_the_device_up_and_uses_it() {
    for (features, inline) in [(0, false), (RING_PACKED | EVENT_IDX, false), (EVENT_IDX, true)] {
        let mut m = machine(inline);
        m.enable_msix();
        assert_eq!((m.read(0x12, 2), m.read(0x18, 2)), (2, 8), "the second queue's size");
        m.write(0x00, 4, 1);
        assert_eq!(m.read(0x04, 4), 5, "VERSION_1 and RING_PACKED");
        let mut q = m.start(VERSION_1 | features, 1);
        assert_eq!(m.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        m.enable_msix();
        for byte in 0..20 {
            m.echo(&mut q, 1, byte);
            until("its interrupt", || m.messages.0.lock().unwrap().pop() == Some(2));
        }
        m.write(0x14, 1, 0);
        assert_eq!((m.status(), m.read(0x1c, 2), m.read(0x1a, 2)), (0, 0, NO_VECTOR));
        m.write(NOTIFY + 4, 2, 1);
        let mut q = m.start(VERSION_1, 0);
        m.echo(&mut q, 0, 77);
    }
}

#[test]
fn features_must_be_agreed_on() {
    for (features, agreed) in
        [(VERSION_1, true), (0, false), (VERSION_1 | 1 << 5, false), (VERSION_1 | 1 << 3, true)]
    {
        let m = machine(true);
        m.negotiate(features);
        assert_eq!(m.status() & FEATURES_OK != 0, agreed, "{features:#x}");
        m.write(0x0c, 4, 0);
        assert_eq!(m.read(0x0c, 4), if agreed { features >> 32 } else { 0 }, "fixed once agreed on");
        m.write(0x14, 1, u64::from(ACKNOWLEDGE | DRIVER | DRIVER_OK));
        assert_eq!(m.status() & DRIVER_OK != 0, agreed);
    }
}

#[test]
fn a_misplaced_queue_needs_a_reset_and_a_reset_helps() {
    let mut m = machine(true);
    m.negotiate(VERSION_1);
    m.enable_msix();
    m.write(0x16, 2, 0);
    m.write(0x20, 8, 1 << 40);
    m.write(0x1c, 2, 1);
    m.write(0x14, 1, 0xf);
    assert_eq!(m.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
    m.write(NOTIFY, 2, 0);
    assert_eq!(*m.messages.0.lock().unwrap(), [0], "the configuration's vector");
    let mut q = m.start(VERSION_1, 0);
    m.echo(&mut q, 0, 1);
    // A queue larger than the device's is refused like a misplaced one.
    m.negotiate(VERSION_1);
    m.write(0x18, 2, 128);
    m.write(0x1c, 2, 1);
    m.write(0x14, 1, 0xf);
    assert_eq!(m.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
}

#[test]
fn without_msi_x_the_line_is_held_until_the_status_is_read() {
    let mut m = machine(true);
    let mut q = m.start(VERSION_1, 0);
    m.echo(&mut q, 0, 9);
    assert_eq!(*m.line.0.lock().unwrap(), [true]);
    assert_eq!(m.function.config_read(6, 2) & 8, 8, "interrupt status");
    assert_eq!((m.read(ISR, 1), m.read(ISR, 1)), (1, 0));
    assert_eq!(*m.line.0.lock().unwrap(), [true, false]);
    m.function.config_write(4, 2, 0x400);
    m.echo(&mut q, 0, 10);
    assert_eq!(*m.line.0.lock().unwrap(), [true, false], "INTx disabled");
    m.function.config_write(4, 2, 0);
    assert_eq!(*m.line.0.lock().unwrap(), [true, false, true]);
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let mut m = machine(true);
    let at = {
        let config = m.function.config();
        let mut at = config.read(0x34, 1) as u16;
        while !(config.read(at, 1) == 9 && config.read(at + 3, 1) == 5) {
            at = config.read(at + 1, 1) as u16;
        }
        at
    };
    let aim = |m: &mut Machine, offset: u64, len: u32| {
        m.function.config_write(at + 8, 4, offset as u32);
        m.function.config_write(at + 12, 4, len);
    };
    aim(&mut m, DEVICE + 4, 4);
    m.function.config_write(at + 16, 4, 0x1234_5678);
    assert_eq!(m.function.config_read(at + 16, 4), 0x1234_5678);
    assert_eq!(m.read(DEVICE + 4, 4), 0x1234_5678);
    aim(&mut m, 0x12, 2);
    assert_eq!(m.function.config_read(at + 16, 2), 2, "two queues");
    aim(&mut m, 0x12, 3);
    assert_eq!(m.function.config_read(at + 16, 4), 0, "no such access");
}

#[test]
fn a_saved_device_goes_on_in_another_machine() {
    for (features, inline) in [(0, false), (RING_PACKED | EVENT_IDX, true)] {
        let mut m = machine(inline);
        let mut q = m.start(VERSION_1 | features, 1);
        m.enable_msix();
        for byte in 0..11 {
            m.echo(&mut q, 1, byte);
        }
        m.handle.quiesce();
        m.memory.write(RamOffset(0x8_0000), 0x0fu8);
        q.add(&[(0x8_0000, 1)], &[(0x8_0010, 1)]).unwrap();
        m.write(NOTIFY + 4, 2, 1);
        assert_eq!(q.take_used(), None, "a device that stands still answers no doorbell");
        let state = m.handle.save();
        let mut other = machine_with(m.memory.clone(), inline);
        assert_eq!(other.handle.restore(&state), Ok(()));
        assert_eq!(other.handle.save(), state);
        other.handle.resume();
        until("the answer that was owed", || q.take_used().is_some());
        assert_eq!(other.memory.read::<u8>(RamOffset(0x8_0010)), 0xf0);
        q.wish(virtio_core::mock::Wish::Next);
        other.echo(&mut q, 1, 3);
        until("an interrupt by the restored table", || other.messages.0.lock().unwrap().contains(&2));
        // The first goes on as if nothing had happened.
        m.handle.resume();
        assert_eq!(m.status(), other.status());
    }
}

/// A system that starts another one takes the right away (PCI 3.0, 6.2.2); that gives it back
/// before it resets the device.
#[test]
fn a_device_that_may_not_access_memory_stands_still_until_it_is_reset() {
    const COMMAND: u16 = 4;
    for inline in [false, true] {
        let mut m = machine(inline);
        m.function.config_write(COMMAND, 2, 6);
        let mut q = m.start(VERSION_1, 1);
        m.echo(&mut q, 1, 1);
        m.function.config_write(COMMAND, 2, 2);
        m.memory.write(RamOffset(0x8_0000), 0x0fu8);
        m.memory.write(RamOffset(0x8_0010), 0u8);
        q.add(&[(0x8_0000, 1)], &[(0x8_0010, 1)]).unwrap();
        m.write(NOTIFY + 4, 2, 1);
        m.function.config_write(COMMAND, 2, 6);
        m.write(NOTIFY + 4, 2, 1);
        // Neither the machine's owner nor a saved state sets it going again.
        m.handle.quiesce();
        m.handle.resume();
        let state = m.handle.save();
        let mut other = machine_with(m.memory.clone(), inline);
        assert_eq!(other.handle.restore(&state), Ok(()));
        other.handle.resume();
        assert_eq!(other.handle.save(), state);
        std::thread::sleep(std::time::Duration::from_millis(if inline { 0 } else { 20 }));
        assert_eq!((q.take_used(), m.memory.read::<u8>(RamOffset(0x8_0010))), (None, 0));
        let mut q = m.start(VERSION_1, 1);
        m.echo(&mut q, 1, 2);
    }
}

#[test]
fn a_state_of_another_device_is_refused_and_changes_nothing() {
    let m = machine(true);
    let q = m.start(VERSION_1, 1);
    m.handle.quiesce();
    let state = m.handle.save();
    let text = format!("{state:?}");
    drop(q);
    // Rings that are not in this machine's memory.
    let mut small = machine_with(GuestMemory::flat(0x1000).unwrap(), true);
    let before = small.handle.save();
    assert!(small.handle.restore(&state).is_err(), "{text}");
    assert_eq!(small.handle.save(), before);
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
        let at = (a % 0x8000) & !(u64::from(size) - 1);
        match a >> 60 {
            0..6 => m.write(at, size, b),
            6..8 => m.write(a % 0x40, size, b),
            8 => m.write(0x14, 1, b & 0xf),
            9..14 => _ = m.read(at, size),
            14 => m.function.config_write((a % 0x100) as u16 & !3, 4, b as u32),
            _ => _ = m.function.config_read((a % 0x100) as u16 & !3, 4),
        }
    }
}
