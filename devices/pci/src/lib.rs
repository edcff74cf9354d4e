//! PCI host bridge, configuration space, ECAM, BARs, interrupts (PCI local bus 3.0, PCI Express base 5.0).
//!
//! A [`PciFunction`] owns a [`ConfigSpace`]; the [`PciBus`] routes configuration
//! accesses to functions and tells the board where BARs are mapped.

mod bus;
mod config_space;
mod function;
mod host_bridge;
mod intx;
mod msi;
mod msix;

pub use bus::{Ecam, Mapping, PciBus, PciBusConfig, PciBusState};
pub use config_space::{BarKind, ConfigSpace, Identity, command, offset};
pub use function::{BarAccess, BarId, PciFunction};
pub use host_bridge::HostBridge;
pub use msi::MsiCapability;
pub use msix::{MsixState, MsixTable};
