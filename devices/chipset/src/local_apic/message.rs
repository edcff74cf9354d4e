//! Interrupt messages: what is sent and to whom (SDM volume 3, 12.6 and 12.11).

use device_model::MsiMessage;

/// Physical and logical destination of everyone.
pub(super) const BROADCAST: u32 = 0xffff_ffff;

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// The APIC with this ID, or [`BROADCAST`].
    Physical(u32),
    /// Those whose logical ID matches.
    Logical(u32),
    /// The sender.
    Itself,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

/// What it does there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Fixed { vector: u8, level: bool },
    LowestPriority { vector: u8, level: bool },
    Nmi,
    Init,
    Startup { vector: u8 },
    ExtInt,
}

impl Mode {
    /// From a delivery mode field; `None` for what this machine does not have
    /// (SMI) and for what does nothing (INIT de-assert).
    fn decode(field: u32, vector: u8, level: bool, asserted: bool) -> Option<Mode> {
        match field & 7 {
            0 => Some(Mode::Fixed { vector, level }),
            1 => Some(Mode::LowestPriority { vector, level }),
            4 => Some(Mode::Nmi),
            5 if level && !asserted => None,
            5 => Some(Mode::Init),
            6 => Some(Mode::Startup { vector }),
            7 => Some(Mode::ExtInt),
            _ => None,
        }
    }

    /// The vector, if the mode is one that delivers it to the interrupt registers.
    pub(super) fn queued_vector(self) -> Option<u8> {
        match self {
            Mode::Fixed { vector, .. } | Mode::LowestPriority { vector, .. } => Some(vector),
            Mode::Nmi | Mode::Init | Mode::Startup { .. } | Mode::ExtInt => None,
        }
    }
}

/// A message-signalled interrupt. Address bits 11:5 extend the destination to
/// 15 bits, as hypervisors define them and IOAPIC entries follow.
pub(super) fn from_msi(m: MsiMessage) -> Option<(Destination, Mode)> {
    if m.address & !0xf_ffff != 0xfee0_0000 {
        return None;
    }
    let address = m.address as u32;
    let id = address >> 12 & 0xff | (address >> 5 & 0x7f) << 8;
    let to = match address & 1 << 2 {
        0 if id == 0xff => Destination::Physical(BROADCAST),
        0 => Destination::Physical(id),
        _ => Destination::Logical(id),
    };
    let (level, asserted) = (m.data & 1 << 15 != 0, m.data & 1 << 14 != 0);
    Mode::decode(m.data >> 8, m.data as u8, level, asserted).map(|mode| (to, mode))
}

/// A write to the interrupt command register. `wide`: x2APIC's 32-bit destination.
pub(super) fn from_icr(low: u32, high: u32, wide: bool) -> Option<(Destination, Mode)> {
    let logical = low & 1 << 11 != 0;
    let to = match low >> 18 & 3 {
        1 => Destination::Itself,
        2 => Destination::All,
        3 => Destination::Others,
        _ => match (wide, high >> 24) {
            (true, _) if logical => Destination::Logical(high),
            (true, _) => Destination::Physical(high),
            (false, id) if logical => Destination::Logical(id),
            (false, 0xff) => Destination::Physical(BROADCAST),
            (false, id) => Destination::Physical(id),
        },
    };
    // The trigger bit means something for INIT de-assert alone: other IPIs are edges (SDM 12.6.1).
    let (level, asserted) = (low & 1 << 15 != 0, low & 1 << 14 != 0);
    let mode = Mode::decode(low >> 8, low as u8, level, asserted)?;
    let mode = match mode {
        Mode::Fixed { vector, .. } => Mode::Fixed { vector, level: false },
        Mode::LowestPriority { vector, .. } => Mode::LowestPriority { vector, level: false },
        other => other,
    };
    Some((to, mode))
}
