//! The host bridge: a function that only says that it is one.

use crate::{ConfigSpace, Identity, PciFunction};

/// A host bridge with an ID that no driver takes for a chipset it would program.
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    const IDENTITY: Identity =
        Identity { vendor: 0x8086, device: 0x0d57, class: 0x06_0000, revision: 0, subsystem: (0, 0) };

    /// The bridge of a bus.
    pub fn new() -> Self {
        HostBridge { config: ConfigSpace::new(Self::IDENTITY) }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn name(&self) -> &'static str {
        "pci-host-bridge"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn reset(&mut self) {
        self.config.reset();
    }
}
