//! The watchdog action table (hardware watchdog timers design specification,
//! version 1.01): how to work the watchdog, register by register.

use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use crate::{WatchdogDescription, bytes_of, table};

/// Registers, 16 bits each.
const CONTROL: u16 = 0;
const LOAD: u16 = 2;
const COUNT: u16 = 4;
const RESTART: u16 = 6;
const RUNNING: u32 = 1;
const EXPIRED: u32 = 2;

/// Instructions.
const READ_VALUE: u8 = 0;
const READ_COUNTDOWN: u8 = 1;
const WRITE_VALUE: u8 = 2;
const WRITE_COUNTDOWN: u8 = 3;
/// Bits outside the mask keep what they were.
const PRESERVE: u8 = 0x80;

/// (action, instruction, register, value, mask)
type Entry = (u8, u8, u16, u32, u32);

const ENTRIES: [Entry; 11] = [
    // Restart the countdown.
    (1, WRITE_VALUE, RESTART, 1, 0xffff),
    // What is left, the countdown, set it.
    (4, READ_COUNTDOWN, COUNT, 0, 0xffff),
    (5, READ_COUNTDOWN, LOAD, 0, 0xffff),
    (6, WRITE_COUNTDOWN, LOAD, 0, 0xffff),
    // Is it running? Start.
    (8, READ_VALUE, CONTROL, RUNNING, RUNNING),
    (9, WRITE_VALUE, CONTROL, RUNNING, RUNNING),
    // Is it stopped? Stop.
    (10, READ_VALUE, CONTROL, 0, RUNNING),
    (11, WRITE_VALUE, CONTROL, 0, RUNNING),
    // It resets the machine: read, set.
    (16, READ_VALUE, RESTART, 0, 0),
    // Has it expired? Clear that; the other bit as it is.
    (32, READ_VALUE, CONTROL, EXPIRED, EXPIRED),
    (33, WRITE_VALUE | PRESERVE, CONTROL, EXPIRED, EXPIRED),
];

pub(crate) fn wdat(w: &WatchdogDescription) -> Vec<u8> {
    /// Not a PCI device: segment, bus, device, function.
    const NO_PCI: [u8; 5] = [0xff, 0, 0xff, 0xff, 0xff];
    const HEADER: u32 = 32;
    const ENABLED: u8 = 1;
    let mut b = HEADER.to_le_bytes().to_vec();
    b.extend(NO_PCI);
    b.extend([0; 3]);
    b.extend(w.period_ms.to_le_bytes());
    b.extend(u32::from(w.max_count).to_le_bytes());
    b.extend(1u32.to_le_bytes());
    b.extend([ENABLED, 0, 0, 0]);
    b.extend((ENTRIES.len() as u32).to_le_bytes());
    for (action, instruction, register, value, mask) in ENTRIES {
        b.extend([action, instruction, 0, 0]);
        let address = u64::from(w.port + register);
        b.extend(bytes_of(&GAS::new(AddressSpace::SystemIo, 16, 0, AccessSize::WordAccess, address)));
        b.extend(value.to_le_bytes());
        b.extend(mask.to_le_bytes());
    }
    let mut t = table(b"WDAT", 1);
    t.append_slice(&b);
    t.as_slice().to_vec()
}
