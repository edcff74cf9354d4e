//! Segment and descriptor-table registers with their hidden parts.

use serde::{Deserialize, Serialize};

/// Segment register numbers, in the order of instruction encodings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum SegmentIndex {
    /// ES.
    Es = 0,
    /// CS.
    Cs = 1,
    /// SS.
    Ss = 2,
    /// DS.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
}

/// A segment register: the visible selector and the hidden descriptor cache
/// (SDM volume 3, 3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible 16-bit selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Access rights in the layout of the upper descriptor dword shifted right
    /// by 8: type (bits 0-3), S (4), DPL (5-6), P (7), AVL (12), L (13),
    /// D/B (14), G (15). Bit 16 set means "unusable" (a null selector was loaded).
    pub access: u32,
}

impl Segment {
    /// Access-rights bit: unusable (null).
    pub const UNUSABLE: u32 = 1 << 16;
    /// Access-rights bit: present.
    pub const PRESENT: u32 = 1 << 7;
    /// Access-rights bit: code or data (not system).
    pub const S: u32 = 1 << 4;
    /// Access-rights bit: 64-bit code.
    pub const L: u32 = 1 << 13;
    /// Access-rights bit: default operand size / big.
    pub const DB: u32 = 1 << 14;
    /// Access-rights bit: page granularity.
    pub const G: u32 = 1 << 15;

    /// The four type bits.
    pub fn kind(&self) -> u8 {
        (self.access & 0xf) as u8
    }
    /// Descriptor privilege level, 0-3.
    pub fn dpl(&self) -> u8 {
        ((self.access >> 5) & 3) as u8
    }
    /// Requested privilege level of the selector, 0-3.
    pub fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }
    /// True unless a null selector was loaded.
    pub fn usable(&self) -> bool {
        self.access & Self::UNUSABLE == 0
    }
    /// D/B: 32-bit code, or a stack whose pointer is ESP.
    pub fn big(&self) -> bool {
        self.access & Self::DB != 0
    }
    /// L: 64-bit code.
    pub fn long(&self) -> bool {
        self.access & Self::L != 0
    }
    /// A real-mode segment: base = selector * 16, 64 KiB, data read/write (or
    /// code when `code`).
    pub fn real_mode(selector: u16, code: bool) -> Self {
        Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            access: if code { 0x9b } else { 0x93 },
        }
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (last valid offset).
    pub limit: u16,
}
