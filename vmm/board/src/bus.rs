//! The board as engines see it.

use std::sync::atomic::Ordering;

use engine::Bus;
use x86_state::msr_index;

use crate::board::Board;
use crate::devices;
use crate::ranges::Range;

/// Register offsets of the local APIC page that can move its timer (SDM volume
/// 3, table 12-1): LVT timer, initial count, divide configuration, and the
/// spurious register, whose enable bit masks all of them.
fn moves_timer(offset: u64) -> bool {
    matches!(offset & 0xff0, 0xf0 | 0x320 | 0x380 | 0x3e0)
}

/// The same for MSRs, APIC_BASE and TSC_DEADLINE included.
fn msr_moves_timer(index: u32) -> bool {
    match index {
        msr_index::APIC_BASE | msr_index::TSC_DEADLINE => true,
        msr_index::X2APIC_FIRST..=msr_index::X2APIC_LAST => {
            moves_timer(u64::from(index - msr_index::X2APIC_FIRST) << 4)
        }
        _ => false,
    }
}

/// All ones of an access size: what a bus reads where nobody answers.
fn floating(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl Board {
    /// Run `access` on the device of a slot, then note its next deadline.
    fn with_device<T>(&self, slot: usize, access: impl FnOnce(&mut dyn device_model::Device) -> T) -> T {
        let mut device = devices::lock(&self.devices[slot]);
        let result = access(&mut *device);
        if let Some(timed) = device.timed() {
            self.timers().set(slot, timed.next_deadline());
        }
        drop(device);
        if let Some((_, routes)) = self.pci.as_ref().filter(|(slots, _)| slots.contains(&slot)) {
            routes.refresh();
        }
        result
    }

    fn unclaimed(&self) {
        self.counts.unclaimed.fetch_add(1, Ordering::Relaxed);
    }

    fn pci_read(&self, port: bool, address: u64, size: u8) -> Option<u64> {
        self.pci.as_ref().and_then(|(_, routes)| routes.read(port, address, size))
    }

    fn pci_write(&self, port: bool, address: u64, size: u8, value: u64) {
        if self.pci.as_ref().and_then(|(_, routes)| routes.write(port, address, size, value)).is_none() {
            self.unclaimed();
        }
    }

    /// Offset into the local APIC page, if `address` is in it.
    fn apic_offset(&self, vcpu: usize, address: u64) -> Option<u64> {
        let page = self.apics.page_address(vcpu)?;
        let offset = address.wrapping_sub(page);
        (offset < 0x1000).then_some(offset)
    }
}

fn offset_in(range: Range, address: u64) -> u64 {
    range.offset + (address - range.start)
}

impl Bus for Board {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.counts.port.fetch_add(1, Ordering::Relaxed);
        let value = match self.ports.find(port.into()) {
            Some(r) => {
                let offset = offset_in(r, port.into()) as u16;
                self.with_device(r.slot, |d| d.port_io().map(|io| io.port_read(offset, size)))
            }
            None => self.pci_read(true, port.into(), size).map(|v| v as u32),
        };
        value.unwrap_or_else(|| {
            self.unclaimed();
            floating(size) as u32
        })
    }

    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.counts.port.fetch_add(1, Ordering::Relaxed);
        match self.ports.find(port.into()) {
            Some(r) => {
                let offset = offset_in(r, port.into()) as u16;
                self.with_device(r.slot, |d| d.port_io().map(|io| io.port_write(offset, size, value)));
            }
            None => self.pci_write(true, port.into(), size, value.into()),
        }
    }

    fn mmio_read(&self, vcpu: usize, address: u64, size: u8) -> u64 {
        if let Some(offset) = self.apic_offset(vcpu, address) {
            self.counts.apic.fetch_add(1, Ordering::Relaxed);
            return self.apics.mmio_read(vcpu, offset, size);
        }
        self.counts.mmio.fetch_add(1, Ordering::Relaxed);
        let value = match self.mmio.find(address) {
            Some(r) => {
                self.with_device(r.slot, |d| d.mmio().map(|io| io.mmio_read(offset_in(r, address), size)))
            }
            None => self.pci_read(false, address, size),
        };
        value.unwrap_or_else(|| {
            self.unclaimed();
            floating(size)
        })
    }

    fn mmio_write(&self, vcpu: usize, address: u64, size: u8, value: u64) {
        if let Some(offset) = self.apic_offset(vcpu, address) {
            self.counts.apic.fetch_add(1, Ordering::Relaxed);
            self.apics.mmio_write(vcpu, offset, size, value);
            if moves_timer(offset) {
                self.apic_deadline_changed();
            }
            return;
        }
        self.counts.mmio.fetch_add(1, Ordering::Relaxed);
        match self.mmio.find(address) {
            Some(r) => {
                self.with_device(r.slot, |d| {
                    d.mmio().map(|io| io.mmio_write(offset_in(r, address), size, value))
                });
            }
            None => self.pci_write(false, address, size, value),
        }
    }

    fn platform_msr_read(&self, vcpu: usize, index: u32) -> Option<u64> {
        self.pvclock.read(vcpu, index).or_else(|| self.apics.msr_read(vcpu, index))
    }

    fn platform_msr_write(&self, vcpu: usize, index: u32, value: u64) -> Option<()> {
        if self.pvclock.write(vcpu, index, value).is_some() {
            return Some(());
        }
        self.counts.apic.fetch_add(1, Ordering::Relaxed);
        let done = self.apics.msr_write(vcpu, index, value);
        if msr_moves_timer(index) {
            self.apic_deadline_changed();
        }
        done
    }

    fn acknowledge_interrupt(&self, vcpu: usize) -> Option<u8> {
        if self.interrupts.is_foreign() {
            // The engine's APIC passed an ExtINT on: the vector is the PIC's.
            return Some(self.pic.acknowledge());
        }
        self.apics.acknowledge(vcpu)
    }

    fn read_cr8(&self, vcpu: usize) -> u64 {
        self.apics.read_cr8(vcpu)
    }

    fn write_cr8(&self, vcpu: usize, value: u64) {
        self.apics.write_cr8(vcpu, value);
    }
}
