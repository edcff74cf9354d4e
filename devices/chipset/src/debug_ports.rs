//! Ports for test programs and firmware logs, where a board wants them.

use device_model::{Device, PortIo, PortRange};

use crate::SerialOutput;

/// Ends the machine with a status that the guest writes.
pub struct DebugExit {
    exit: Box<dyn Fn(u32) + Send + Sync>,
}

impl DebugExit {
    /// Where test programs expect it.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0xf4, 4, 0)];

    /// `exit` is called with the device locked and the value written: note it and return.
    pub fn new(exit: Box<dyn Fn(u32) + Send + Sync>) -> Self {
        DebugExit { exit }
    }
}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "debug-exit"
    }
    fn reset(&mut self) {}
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for DebugExit {
    fn port_read(&mut self, _: u16, _: u8) -> u32 {
        0
    }
    fn port_write(&mut self, offset: u16, _: u8, value: u32) {
        if offset == 0 {
            (self.exit)(value);
        }
    }
}

/// Passes each byte written to a sink, as Bochs's port 0xe9 and firmware's 0x402 do.
pub struct DebugConsole {
    output: Box<dyn SerialOutput>,
}

impl DebugConsole {
    /// Bochs's port.
    pub const BOCHS: PortRange = PortRange::new(0xe9, 1, 0);
    /// SeaBIOS's and OVMF's port.
    pub const FIRMWARE: PortRange = PortRange::new(0x402, 1, 0);
    /// What a read gives, by which guests find the port.
    const SIGNATURE: u32 = 0xe9;

    /// A console that writes to `output`.
    pub fn new(output: Box<dyn SerialOutput>) -> Self {
        DebugConsole { output }
    }
}

impl Device for DebugConsole {
    fn name(&self) -> &'static str {
        "debug-console"
    }
    fn reset(&mut self) {}
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for DebugConsole {
    fn port_read(&mut self, _: u16, _: u8) -> u32 {
        Self::SIGNATURE
    }
    fn port_write(&mut self, _: u16, size: u8, value: u32) {
        // String output of words arrives as words; each byte is a character.
        let bytes = value.to_le_bytes();
        self.output.put(&bytes[..usize::from(size.min(4))]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn values_and_characters_arrive() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (a, b) = (seen.clone(), seen.clone());
        let mut exit = DebugExit::new(Box::new(move |v| a.lock().unwrap().extend(v.to_le_bytes())));
        exit.port_write(0, 1, 0x31);
        exit.port_write(1, 1, 7);
        let mut console = DebugConsole::new(Box::new(move |bytes: &[u8]| b.lock().unwrap().extend(bytes)));
        console.port_write(0, 1, 0x41);
        console.port_write(0, 2, 0x4342);
        assert_eq!(*seen.lock().unwrap(), *b"1\0\0\0ABC");
        assert_eq!(console.port_read(0, 1), 0xe9);
    }
}
