//! A type 0 configuration space: what it says, and which bits software may write.

use saved_state::StateError;

const NAME: &str = "pci config space";

/// Offsets of the header's registers.
pub mod offset {
    /// Vendor ID, 16 bits.
    pub const VENDOR: u16 = 0x00;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// First of six BARs.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID and ID.
    pub const SUBSYSTEM: u16 = 0x2c;
    /// First capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, written by firmware.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin: 1 is INTA#.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register.
pub mod command {
    /// I/O BARs decode.
    pub const IO: u16 = 1 << 0;
    /// Memory BARs decode.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may write memory and send MSIs.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// INTx is not asserted.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// All that exist: with parity and SERR# enables.
    pub(crate) const WRITABLE: u16 = IO | MEMORY | BUS_MASTER | 1 << 6 | 1 << 8 | INTX_DISABLE;
}

/// Status: there is a capability list.
const HAS_CAPABILITIES: u16 = 1 << 4;
/// Status: INTx is asserted.
const INTX_STATUS: u16 = 1 << 3;
/// Status bits that are cleared by writing ones: aborts and parity errors.
const STATUS_CLEARABLE: u16 = 0xf900;
/// Where capabilities begin.
const FIRST_CAPABILITY: u16 = 0x40;

/// Who a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
}

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere, prefetchable; takes the next BAR as well.
    Memory64,
}

#[derive(Debug, Clone, Copy)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// 4 KiB of configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    // Static configuration.
    at_reset: Vec<u8>,
    /// Bits that software writes.
    writable: Vec<u8>,
    /// Bits that software clears by writing ones.
    clearable: Vec<u8>,
    /// Bits that the device changes.
    volatile: Vec<u8>,
    bars: [Option<Bar>; 6],
    /// Where the next capability goes, and where its address is to be put.
    next_capability: u16,
    last_link: u16,
    // Volatile state.
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// Bytes of a function's space.
    pub const SIZE: usize = 4096;

    /// The header of a function without BARs and capabilities.
    pub fn new(id: Identity) -> Self {
        let mut c = ConfigSpace {
            at_reset: vec![0; Self::SIZE],
            writable: vec![0; Self::SIZE],
            clearable: vec![0; Self::SIZE],
            volatile: vec![0; Self::SIZE],
            bars: [None; 6],
            next_capability: FIRST_CAPABILITY,
            last_link: offset::CAPABILITIES,
            bytes: vec![0; Self::SIZE],
        };
        c.set(offset::VENDOR, &id.vendor.to_le_bytes());
        c.set(0x02, &id.device.to_le_bytes());
        c.set(0x08, &(id.class << 8 | u32::from(id.revision)).to_le_bytes());
        c.set(offset::SUBSYSTEM, &id.subsystem.0.to_le_bytes());
        c.set(offset::SUBSYSTEM + 2, &id.subsystem.1.to_le_bytes());
        let put = |to: &mut Vec<u8>, at: u16, v: u16| {
            to[usize::from(at)..usize::from(at) + 2].copy_from_slice(&v.to_le_bytes());
        };
        put(&mut c.writable, offset::COMMAND, command::WRITABLE);
        put(&mut c.clearable, offset::STATUS, STATUS_CLEARABLE);
        put(&mut c.volatile, offset::STATUS, INTX_STATUS);
        c.writable[usize::from(offset::INTERRUPT_LINE)] = 0xff;
        // Cache line size and latency timer are writable without effect.
        c.writable[0x0c] = 0xff;
        c
    }

    /// Set bytes, now and after reset.
    ///
    /// # Panics
    /// When the bytes do not fit: an error of the device's author.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        let range = usize::from(offset)..usize::from(offset) + bytes.len();
        self.at_reset[range.clone()].copy_from_slice(bytes);
        self.bytes[range].copy_from_slice(bytes);
    }

    /// Say which bits the device itself changes with [`ConfigSpace::set_volatile`].
    ///
    /// # Panics
    /// As [`ConfigSpace::set`].
    pub fn mark_volatile(&mut self, offset: u16, mask: &[u8]) {
        let at = usize::from(offset);
        self.volatile[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Set bits that were marked, until reset; other bits stay.
    ///
    /// # Panics
    /// As [`ConfigSpace::set`].
    pub fn set_volatile(&mut self, offset: u16, bytes: &[u8]) {
        for (at, new) in (usize::from(offset)..).zip(bytes) {
            let mask = self.volatile[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    /// A multi-function device, said in function 0.
    pub fn multi_function(mut self) -> Self {
        self.set(0x0e, &[0x80]);
        self
    }

    /// Use INTx: pin 1 (INTA#) to 4.
    pub fn with_interrupt_pin(mut self, pin: u8) -> Self {
        self.set(offset::INTERRUPT_PIN, &[pin]);
        self
    }

    /// Add a BAR of `size` bytes.
    ///
    /// # Panics
    /// When `index` is taken or above 5, or the size is no power of two of at
    /// least 4 (ports) or 16 (memory): errors of the device's author.
    pub fn with_bar(mut self, index: u8, kind: BarKind, size: u64) -> Self {
        let i = usize::from(index);
        let least = if kind == BarKind::Io { 4 } else { 16 };
        assert!(size.is_power_of_two() && size >= least, "BAR size {size:#x}");
        assert!(self.bars[i].is_none(), "BAR {index} is taken");
        let at = offset::BAR0 + 4 * u16::from(index);
        let (flags, flag_bits) = match kind {
            BarKind::Io => (1u32, 3u32),
            BarKind::Memory32 => (0, 0xf),
            BarKind::Memory64 => (0xc, 0xf),
        };
        let mask = !(size - 1);
        self.set(at, &flags.to_le_bytes());
        self.mask_writable(at, &(mask as u32 & !flag_bits).to_le_bytes());
        if kind == BarKind::Memory64 {
            assert!(i < 5 && self.bars[i + 1].is_none(), "no room for the upper half of BAR {index}");
            self.mask_writable(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        self.bars[i] = Some(Bar { kind, size });
        self
    }

    fn mask_writable(&mut self, offset: u16, mask: &[u8]) {
        self.writable[usize::from(offset)..usize::from(offset) + mask.len()].copy_from_slice(mask);
    }

    /// Append a capability: its body after ID and link, and the body's writable
    /// bits. Answers its offset.
    ///
    /// # Panics
    /// When 256 bytes do not suffice, or the mask has another length: errors of the device's author.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        assert_eq!(body.len(), writable.len(), "one mask byte for each byte of capability {id:#x}");
        let at = self.next_capability;
        let end = at + 2 + body.len() as u16;
        assert!(end <= 0x100, "no room for capability {id:#x}");
        self.set(self.last_link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.mask_writable(at + 2, writable);
        self.last_link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        self.set(offset::STATUS, &HAS_CAPABILITIES.to_le_bytes());
        at
    }

    /// Read 1, 2 or 4 bytes; what lies outside reads as ones.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        (0..usize::from(size.min(4))).fold(0, |value, i| {
            let byte = self.bytes.get(usize::from(offset) + i).copied().unwrap_or(0xff);
            value | u32::from(byte) << (8 * i)
        })
    }

    /// Software writes 1, 2 or 4 bytes.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        for i in 0..usize::from(size.min(4)) {
            let (at, new) = (usize::from(offset) + i, (value >> (8 * i)) as u8);
            let Some(byte) = self.bytes.get_mut(at) else { return };
            let (w, c) = (self.writable[at], self.clearable[at]);
            *byte = (*byte & !w | new & w) & !(new & c);
        }
    }

    fn u16_at(&self, offset: u16) -> u16 {
        self.read(offset, 2) as u16
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.u16_at(offset::COMMAND)
    }

    /// Note whether INTx is wanted; answers whether the pin is to be asserted.
    pub fn set_intx_status(&mut self, wanted: bool) -> bool {
        self.set_volatile(offset::STATUS, &[if wanted { INTX_STATUS as u8 } else { 0 }]);
        wanted && self.command() & command::INTX_DISABLE == 0
    }

    /// BARs that decode now: number, kind, address, size. A BAR at address 0 or
    /// one that runs over the end of its space decodes nothing.
    pub fn mapped_bars(&self) -> impl Iterator<Item = (u8, BarKind, u64, u64)> + '_ {
        let command = self.command();
        self.bars.iter().enumerate().filter_map(move |(i, bar)| {
            let Bar { kind, size } = (*bar)?;
            let at = offset::BAR0 + 4 * i as u16;
            let low = u64::from(self.read(at, 4));
            let (enable, address, last) = match kind {
                BarKind::Io => (command::IO, low & !3, 0xffff),
                BarKind::Memory32 => (command::MEMORY, low & !0xf, 0xffff_ffff),
                BarKind::Memory64 => {
                    (command::MEMORY, low & !0xf | u64::from(self.read(at + 4, 4)) << 32, u64::MAX)
                }
            };
            let fits = address != 0 && address.checked_add(size - 1).is_some_and(|end| end <= last);
            (command & enable != 0 && fits).then_some((i as u8, kind, address, size))
        })
    }

    /// Every BAR: number, kind, size.
    pub fn bars(&self) -> impl Iterator<Item = (u8, BarKind, u64)> + '_ {
        let bars = self.bars.iter().enumerate();
        bars.filter_map(|(i, bar)| bar.map(|Bar { kind, size }| (i as u8, kind, size)))
    }

    /// Put a BAR at an address, as firmware does.
    pub fn place_bar(&mut self, index: u8, address: u64) {
        let at = offset::BAR0 + 4 * u16::from(index);
        self.write(at, 4, address as u32);
        if self.bars.get(usize::from(index)).is_some_and(|b| b.is_some_and(|b| b.kind == BarKind::Memory64)) {
            self.write(at + 4, 4, (address >> 32) as u32);
        }
    }

    /// The state after power-up.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.at_reset);
    }

    /// All bytes, for saved state.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Put saved bytes back.
    ///
    /// # Errors
    /// When they are another function's: bits differ that software cannot write.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.check(bytes)?;
        self.bytes.copy_from_slice(bytes);
        Ok(())
    }

    /// Whether [`ConfigSpace::restore`] would accept these bytes.
    ///
    /// # Errors
    /// As [`ConfigSpace::restore`].
    pub fn check(&self, bytes: &[u8]) -> Result<(), StateError> {
        StateError::check(bytes.len() == Self::SIZE, NAME, "length", bytes.len() as u64, "4096")?;
        for (i, &byte) in bytes.iter().enumerate() {
            let variable = self.writable[i] | self.clearable[i] | self.volatile[i];
            let same = (byte ^ self.at_reset[i]) & !variable == 0;
            StateError::check(same, NAME, "read-only byte", i as u64, "the value the device has")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            class: 0x02_0000,
            revision: 1,
            subsystem: (0x1af4, 0x40),
        })
        .with_bar(0, BarKind::Memory32, 0x1000)
        .with_bar(2, BarKind::Memory64, 1 << 33)
        .with_bar(4, BarKind::Io, 32)
        .with_interrupt_pin(1)
    }

    #[test]
    fn header_and_sizing() {
        let mut c = space();
        for (offset, size, value) in [
            (0x00, 4, 0x1041_1af4),
            (0x08, 4, 0x0200_0001),
            (0x0a, 2, 0x0200),
            (0x2c, 4, 0x0040_1af4),
            (0x3d, 1, 1),
            (0x10, 4, 0),
            (0x18, 4, 0xc),
            (0x20, 4, 1),
            (0xfff, 2, 0xff00),
        ] {
            assert_eq!(c.read(offset, size), value, "offset {offset:#x}");
        }
        for (offset, sized) in
            [(0x10, 0xffff_f000), (0x14, 0), (0x18, 0xc), (0x1c, 0xffff_fffe), (0x20, 0xffff_ffe1), (0x30, 0)]
        {
            c.write(offset, 4, 0xffff_ffff);
            assert_eq!(c.read(offset, 4), sized, "offset {offset:#x}");
        }
    }

    #[test]
    fn bars_decode_when_enabled_and_placed() {
        let mut c = space();
        c.write(0x10, 4, 0xc000_0000);
        c.write(0x1c, 4, 0x40);
        c.write(0x20, 4, 0xc000);
        let mapped =
            |c: &ConfigSpace| c.mapped_bars().map(|(bar, _, address, _)| (bar, address)).collect::<Vec<_>>();
        for (command, expected) in [
            (0, vec![]),
            (command::IO, vec![(4, 0xc000)]),
            (command::MEMORY, vec![(0, 0xc000_0000), (2, 0x40_0000_0000)]),
        ] {
            c.write(offset::COMMAND, 2, command.into());
            assert_eq!(mapped(&c), expected);
        }
        c.write(0x10, 4, 0);
        c.write(0x1c, 4, 0xffff_ffff);
        assert_eq!(mapped(&c), [(2, 0xffff_fffe_0000_0000)]);
        c.reset();
        assert_eq!(mapped(&c), []);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut c = space();
        let a = c.add_capability(0x09, &[1, 2, 3], &[0, 0xf0, 0]);
        let b = c.add_capability(0x05, &[0; 8], &[0; 8]);
        assert_eq!((a, b), (0x40, 0x48));
        assert_eq!((c.read(0x34, 1), c.read(a, 2), c.read(b, 2)), (0x40, 0x4809, 0x0005));
        assert_eq!(c.read(offset::STATUS, 2), 0x10);
        c.write(a + 2, 4, 0xffff_ffff);
        assert_eq!(c.read(a + 2, 4), 0x0003_f201);
    }

    #[test]
    fn intx_status_and_disable() {
        let mut c = space();
        assert!(c.set_intx_status(true));
        assert_eq!(c.read(offset::STATUS, 2), 8);
        c.write(offset::COMMAND, 2, command::INTX_DISABLE.into());
        assert!(!c.set_intx_status(true));
        assert!(!c.set_intx_status(false));
        assert_eq!(c.read(offset::STATUS, 2), 0);
    }

    #[test]
    fn restore_refuses_another_function() {
        let mut c = space();
        c.write(0x10, 4, 0xc000_0000);
        let saved = c.bytes().to_vec();
        let mut other = space();
        other.restore(&saved).unwrap();
        assert_eq!(other.bytes(), saved);
        for (at, value) in [(0, 0), (0x18, 0), (0x500, 1)] {
            let mut bad = saved.clone();
            bad[at] = value;
            assert!(other.restore(&bad).is_err(), "byte {at:#x}");
        }
        assert!(other.restore(&saved[1..]).is_err());
    }
}
