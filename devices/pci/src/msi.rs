//! The MSI capability (PCI local bus 3.0, 6.8.1): 64-bit, with masks for each vector.

use device_model::MsiMessage;

use crate::ConfigSpace;

const ID: u8 = 0x05;
const CONTROL: u16 = 2;
const ADDRESS: u16 = 4;
const DATA: u16 = 0xc;
const MASK: u16 = 0x10;
const PENDING: u16 = 0x14;

const ENABLE: u16 = 1 << 0;
const WIDE: u16 = 1 << 7;
const MASKABLE: u16 = 1 << 8;
/// Multiple message enable.
const ENABLED_COUNT: u16 = 7 << 4;

/// Where a function's MSI capability is; its registers are in the configuration space.
#[derive(Debug, Clone, Copy)]
pub struct MsiCapability {
    offset: u16,
}

impl MsiCapability {
    /// Add the capability for `2^log2_vectors` vectors, at most 32.
    pub fn add(config: &mut ConfigSpace, log2_vectors: u8) -> Self {
        let log2 = log2_vectors.min(5);
        let control = WIDE | MASKABLE | u16::from(log2) << 1;
        let mut body = [0; 22];
        body[..2].copy_from_slice(&control.to_le_bytes());
        let mut writable = [0; 22];
        writable[..2].copy_from_slice(&(ENABLE | ENABLED_COUNT).to_le_bytes());
        writable[2..6].copy_from_slice(&0xffff_fffcu32.to_le_bytes());
        writable[6..10].fill(0xff);
        writable[10..12].fill(0xff);
        let vectors = ((1u64 << (1 << log2)) - 1) as u32;
        writable[14..18].copy_from_slice(&vectors.to_le_bytes());
        let offset = config.add_capability(ID, &body, &writable);
        config.mark_volatile(offset + PENDING, &vectors.to_le_bytes());
        MsiCapability { offset }
    }

    fn control(self, config: &ConfigSpace) -> u16 {
        config.read(self.offset + CONTROL, 2) as u16
    }

    /// Whether software has enabled MSI.
    pub fn enabled(self, config: &ConfigSpace) -> bool {
        self.control(config) & ENABLE != 0
    }

    /// Vector `n` wants to be sent: its message, or `None` when MSI is off or the
    /// vector is masked, in which case it becomes pending. Vectors beyond those
    /// that software enabled share the enabled ones.
    pub fn trigger(self, config: &mut ConfigSpace, n: u8) -> Option<MsiMessage> {
        let control = self.control(config);
        if control & ENABLE == 0 {
            return None;
        }
        let count = 1u32 << ((control & ENABLED_COUNT) >> 4).min(5);
        let n = u32::from(n) & (count - 1);
        if config.read(self.offset + MASK, 4) >> n & 1 != 0 {
            self.set_pending(config, n, true);
            return None;
        }
        Some(self.message(config, n, count))
    }

    fn message(self, config: &ConfigSpace, n: u32, count: u32) -> MsiMessage {
        let low = u64::from(config.read(self.offset + ADDRESS, 4));
        let high = u64::from(config.read(self.offset + ADDRESS + 4, 4));
        let data = config.read(self.offset + DATA, 2) & !(count - 1) | n;
        MsiMessage { address: low | high << 32, data }
    }

    fn set_pending(self, config: &mut ConfigSpace, n: u32, pending: bool) {
        let now = config.read(self.offset + PENDING, 4);
        let new = if pending { now | 1 << n } else { now & !(1 << n) };
        config.set_volatile(self.offset + PENDING, &new.to_le_bytes());
    }

    /// After a configuration write: messages that were pending and may go now.
    pub fn released(self, config: &mut ConfigSpace) -> Vec<MsiMessage> {
        let control = self.control(config);
        if control & ENABLE == 0 {
            return Vec::new();
        }
        let count = 1u32 << ((control & ENABLED_COUNT) >> 4).min(5);
        let ready = config.read(self.offset + PENDING, 4) & !config.read(self.offset + MASK, 4);
        (0..32)
            .filter(|n| ready >> n & 1 != 0)
            .map(|n| {
                self.set_pending(config, n, false);
                self.message(config, n, count)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BarKind, Identity};

    #[test]
    fn messages_masks_and_pending() {
        let id = Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) };
        let mut c = ConfigSpace::new(id).with_bar(0, BarKind::Memory32, 16);
        let msi = MsiCapability::add(&mut c, 2);
        assert_eq!(c.read(0x40, 4), 0x0184_0005);
        assert_eq!(msi.trigger(&mut c, 0), None);
        c.write(0x44, 4, 0xfee0_1003);
        c.write(0x4c, 2, 0x4143);
        // (control, vector, message data): as many vectors as software enabled.
        for (control, n, data) in
            [(1u32, 3, 0x4143u32), (0x11, 3, 0x4143), (0x11, 2, 0x4142), (0x21, 1, 0x4141)]
        {
            c.write(0x42, 2, control);
            let message = MsiMessage { address: 0xfee0_1000, data };
            assert_eq!(msi.trigger(&mut c, n), Some(message), "control {control:#x}");
        }
        c.write(0x50, 4, 0xffff_ffff);
        assert_eq!(c.read(0x50, 4), 0xf, "four vectors have masks");
        assert_eq!(msi.trigger(&mut c, 2), None);
        assert_eq!((c.read(0x54, 4), msi.released(&mut c)), (4, vec![]));
        assert_eq!(c.check(c.bytes()), Ok(()), "pending bits may be restored");
        c.write(0x50, 4, 0);
        assert_eq!(msi.released(&mut c), [MsiMessage { address: 0xfee0_1000, data: 0x4142 }]);
        assert_eq!((c.read(0x54, 4), msi.released(&mut c)), (0, vec![]));
    }
}
