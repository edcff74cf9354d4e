//! Control messages of consoles with several ports (virtio 1.2, 5.3.6.2).

/// What a message is about.
pub(crate) mod event {
    /// Guest: the driver is ready, or not.
    pub const DEVICE_READY: u16 = 0;
    /// Host: there is a port.
    pub const PORT_ADD: u16 = 1;
    /// Guest: it has set the port up.
    pub const PORT_READY: u16 = 3;
    /// Host: the port is a terminal.
    pub const CONSOLE_PORT: u16 = 4;
    /// Host: its size, which follows.
    pub const RESIZE: u16 = 5;
    /// Both: the other side has it open.
    pub const PORT_OPEN: u16 = 6;
    /// Host: its name, which follows.
    pub const PORT_NAME: u16 = 7;
}

/// A message's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control {
    pub port: u32,
    pub event: u16,
    pub value: u16,
}

impl Control {
    /// Bytes.
    pub const LEN: usize = 8;

    pub fn parse(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Control {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// The message with what follows it.
    pub fn encode(self, rest: &[u8]) -> Vec<u8> {
        let mut bytes = self.port.to_le_bytes().to_vec();
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.extend(rest);
        bytes
    }
}
