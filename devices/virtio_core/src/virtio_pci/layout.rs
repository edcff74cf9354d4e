//! Where the structures are in the one BAR, and the capabilities that say so
//! (virtio 1.2, 4.1.4).

use pci::ConfigSpace;

/// The BAR that holds everything.
pub(super) const BAR: u8 = 0;
/// Its bytes.
pub(super) const BAR_SIZE: u64 = 0x8000;
/// A page for each structure.
pub(super) const STRUCTURE: u64 = 0x1000;
/// Common configuration.
pub(super) const COMMON: u64 = 0;
/// Interrupt status.
pub(super) const ISR: u64 = 0x1000;
/// Device configuration.
pub(super) const DEVICE: u64 = 0x2000;
/// Doorbells, one each [`NOTIFY_MULTIPLIER`] bytes.
pub(super) const NOTIFY: u64 = 0x3000;
/// MSI-X table.
pub(super) const MSIX_TABLE: u64 = 0x4000;
/// MSI-X pending bits.
pub(super) const MSIX_PENDING: u64 = 0x6000;
/// Bytes between doorbells: a word each, so that the address alone tells the queue.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// Vendor-specific capability.
const ID: u8 = 0x09;
/// Bytes of the configuration access capability before its data.
const ACCESS_HEAD: u16 = 16;

/// Capability types (4.1.4).
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Type {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Access = 5,
}

/// A `virtio_pci_cap` without the ID and link, for [`ConfigSpace::add_capability`].
fn capability(kind: Type, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    // cap_len, cfg_type, bar, id, padding
    let mut body = vec![16 + extra.len() as u8, kind as u8, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// Add all capabilities; answers where the configuration access one is.
pub(super) fn add_capabilities(config: &mut ConfigSpace, queues: u16) -> ConfigAccess {
    let doorbells = u64::from(queues) * u64::from(NOTIFY_MULTIPLIER);
    for body in [
        capability(Type::Common, COMMON, 0x38, &[]),
        capability(Type::Isr, ISR, 1, &[]),
        capability(Type::Device, DEVICE, STRUCTURE, &[]),
        capability(Type::Notify, NOTIFY, doorbells.max(4), &NOTIFY_MULTIPLIER.to_le_bytes()),
    ] {
        config.add_capability(ID, &body, &vec![0; body.len()]);
    }
    let body = capability(Type::Access, 0, 0, &[0; 4]);
    // BAR, offset, length and data are the driver's.
    let mut writable = vec![0; body.len()];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    ConfigAccess { at: config.add_capability(ID, &body, &writable) }
}

/// The window through which firmware reaches the BAR without mapping it (4.1.4.9).
#[derive(Debug, Clone, Copy)]
pub(super) struct ConfigAccess {
    at: u16,
}

/// An access through the window.
pub(super) struct Target {
    pub offset: u64,
    pub size: u8,
}

impl ConfigAccess {
    /// Offset of the data.
    pub fn data(self) -> u16 {
        self.at + ACCESS_HEAD
    }

    /// Whether an access touches the data.
    pub fn hit(self, offset: u16, size: u8) -> bool {
        (self.data()..self.data() + 4).contains(&offset) && size <= 4
    }

    /// What the data stand for now, if it is a possible access.
    pub fn target(self, config: &ConfigSpace) -> Option<Target> {
        let (bar, offset, len) =
            (config.read(self.at + 4, 1), config.read(self.at + 8, 4), config.read(self.at + 12, 4));
        let good = bar == BAR.into() && matches!(len, 1 | 2 | 4) && offset % len == 0;
        good.then_some(Target { offset: offset.into(), size: len as u8 })
    }
}
