//! The chips of a PC: PIC, IOAPIC, local APIC, PIT, HPET, RTC, 16550, i8042, ACPI PM.

mod acpi_pm;
mod byte_ports;
mod debug_ports;
mod fw_cfg;
mod hotplug;
mod hpet;
mod i8042;
mod ioapic;
mod irq_router;
mod local_apic;
mod pic;
mod pit;
mod power;
mod reset_control;
mod rtc;
mod serial;
mod test_device;
mod watchdog;

pub use acpi_pm::{AcpiPm, AcpiPmState};
pub use debug_ports::{DebugConsole, DebugExit};
pub use fw_cfg::{FwCfg, FwCfgError, FwCfgState, fw_cfg_key};
pub use hotplug::{Ejected, Hotplug, HotplugState, SlotKind};
pub use hpet::{Hpet, HpetLines, HpetState};
pub use i8042::{I8042, I8042State};
pub use ioapic::{IoApic, IoApicState};
pub use irq_router::IrqRouter;
pub use local_apic::{ApicWiring, LocalApics, LocalApicsConfig};
pub use pic::{IntrOutput, Pic, PicState};
pub use pit::{Pit, PitState};
pub use power::PowerEvents;
pub use reset_control::{ResetControl, ResetControlState};
pub use rtc::{Rtc, RtcConfig, RtcState};
pub use serial::{BufferedOutput, Serial, SerialInput, SerialOutput, SerialState};
pub use test_device::{TestDevice, TestDeviceState};
pub use watchdog::{Watchdog, WatchdogExpiry, WatchdogState};
