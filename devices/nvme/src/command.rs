//! Submission queue entries (4.2).

use crate::spec::SQE_SIZE;

/// A command as the driver wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    pub opcode: u8,
    /// Fused operation and scatter-gather lists: bits that must be zero.
    pub unsupported: bool,
    /// Command identifier.
    pub cid: u16,
    pub nsid: u32,
    pub prp1: u64,
    pub prp2: u64,
    /// Command dwords 10 to 15.
    pub dwords: [u32; 6],
}

impl Command {
    pub fn parse(entry: &[u8; SQE_SIZE as usize]) -> Self {
        let word = |i: usize| {
            u32::from_le_bytes([entry[4 * i], entry[4 * i + 1], entry[4 * i + 2], entry[4 * i + 3]])
        };
        let long = |i: usize| u64::from(word(i)) | u64::from(word(i + 1)) << 32;
        let first = word(0);
        Command {
            opcode: first as u8,
            unsupported: first >> 8 & 0xc3 != 0,
            cid: (first >> 16) as u16,
            nsid: word(1),
            prp1: long(6),
            prp2: long(8),
            dwords: std::array::from_fn(|i| word(10 + i)),
        }
    }

    /// Command dword 10, 11, ... 15.
    pub fn dword(&self, n: usize) -> u32 {
        self.dwords[n - 10]
    }

    /// Starting logical block of an I/O command.
    pub fn lba(&self) -> u64 {
        u64::from(self.dword(10)) | u64::from(self.dword(11)) << 32
    }

    /// Logical blocks of an I/O command, which counts from 0.
    pub fn blocks(&self) -> u64 {
        u64::from(self.dword(12) & 0xffff) + 1
    }
}
