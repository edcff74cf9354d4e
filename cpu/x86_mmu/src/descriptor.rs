//! Descriptor formats (SDM volume 3, 3.4.5, 3.5, 6.8.3, 7.11, 7.14.1, 8.2).

use x86_state::Segment;

/// Types of system descriptors (SDM volume 3, table 3-2). In 64-bit mode only
/// LDT, 32-bit TSS (64-bit there) and the 32-bit call, interrupt and trap gates
/// (64-bit there) exist.
pub mod system_type {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const TSS16_AVAILABLE: u8 = 0x1;
    pub const LDT: u8 = 0x2;
    pub const TSS16_BUSY: u8 = 0x3;
    pub const CALL_GATE16: u8 = 0x4;
    pub const TASK_GATE: u8 = 0x5;
    pub const INTERRUPT_GATE16: u8 = 0x6;
    pub const TRAP_GATE16: u8 = 0x7;
    pub const TSS_AVAILABLE: u8 = 0x9;
    pub const TSS_BUSY: u8 = 0xb;
    pub const CALL_GATE: u8 = 0xc;
    pub const INTERRUPT_GATE: u8 = 0xe;
    pub const TRAP_GATE: u8 = 0xf;
    /// The bit that tells a busy TSS from an available one.
    pub const BUSY_BIT: u8 = 0x2;
}

/// A descriptor as it lies in a descriptor table: 8 bytes, or 16 for system
/// descriptors of 64-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    low: u64,
    high: u64,
}

/// The fields of a call, interrupt, trap or task gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Code segment, or TSS of a task gate.
    pub selector: u16,
    /// Entry point.
    pub offset: u64,
    /// Parameters a 16- or 32-bit call gate copies, 0-31.
    pub parameters: u8,
    /// Interrupt-stack-table index of a 64-bit interrupt or trap gate, 0-7.
    pub ist: u8,
}

impl Descriptor {
    /// An 8-byte descriptor.
    pub fn parse(raw: u64) -> Self {
        Descriptor { low: raw, high: 0 }
    }

    /// A 16-byte descriptor of 64-bit mode.
    pub fn parse_wide(raw: u128) -> Self {
        Descriptor { low: raw as u64, high: (raw >> 64) as u64 }
    }

    /// The lower 8 bytes.
    pub fn raw(&self) -> u64 {
        self.low
    }

    /// The access-rights dword (bits 63:32 of the descriptor).
    pub fn rights(&self) -> u32 {
        (self.low >> 32) as u32
    }

    /// The four type bits.
    pub fn kind(&self) -> u8 {
        (self.low >> 40 & 0xf) as u8
    }

    /// A system descriptor or gate: S is clear.
    pub fn is_system(&self) -> bool {
        self.low & 1 << 44 == 0
    }

    /// A code segment.
    pub fn is_code(&self) -> bool {
        !self.is_system() && self.kind() & 8 != 0
    }

    /// A data segment.
    pub fn is_data(&self) -> bool {
        !self.is_system() && self.kind() & 8 == 0
    }

    /// A conforming code segment.
    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// A data segment, or a readable code segment.
    pub fn is_readable(&self) -> bool {
        self.is_data() || self.is_code() && self.kind() & 2 != 0
    }

    /// A writable data segment.
    pub fn is_writable(&self) -> bool {
        self.is_data() && self.kind() & 2 != 0
    }

    /// The accessed bit of a code or data segment.
    pub fn is_accessed(&self) -> bool {
        self.kind() & 1 != 0
    }

    /// Descriptor privilege level, 0-3.
    pub fn dpl(&self) -> u8 {
        (self.low >> 45 & 3) as u8
    }

    /// P.
    pub fn is_present(&self) -> bool {
        self.low & 1 << 47 != 0
    }

    /// L: a 64-bit code segment.
    pub fn is_long(&self) -> bool {
        self.low & 1 << 53 != 0
    }

    /// D/B.
    pub fn is_big(&self) -> bool {
        self.low & 1 << 54 != 0
    }

    /// Base address: 32 bits, or 64 of a 16-byte descriptor.
    pub fn base(&self) -> u64 {
        self.low >> 16 & 0xff_ffff | self.low >> 32 & 0xff00_0000 | (self.high & 0xffff_ffff) << 32
    }

    /// Limit in bytes, granularity applied.
    pub fn limit(&self) -> u32 {
        let limit = (self.low & 0xffff) as u32 | (self.low >> 32) as u32 & 0xf_0000;
        if self.low & 1 << 55 != 0 { limit << 12 | 0xfff } else { limit }
    }

    /// The type field of the upper 8 bytes of a 16-byte descriptor, which must
    /// be zero (SDM volume 3, 3.5.2, figures 6-9 and 8-4).
    pub fn upper_type(&self) -> u8 {
        (self.high >> 40 & 0x1f) as u8
    }

    /// The hidden part of a segment register loaded with this descriptor.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), access: self.rights() >> 8 & 0xf0ff }
    }

    /// The fields of a gate with a 32- or 64-bit offset.
    pub fn gate(&self) -> Gate {
        let middle = self.low & 0xffff | self.low >> 32 & 0xffff_0000;
        Gate {
            selector: (self.low >> 16) as u16,
            offset: middle | (self.high & 0xffff_ffff) << 32,
            parameters: (self.low >> 32 & 0x1f) as u8,
            ist: (self.low >> 32 & 7) as u8,
        }
    }

    /// The fields of a gate with a 16-bit offset.
    pub fn gate16(&self) -> Gate {
        let gate = self.gate();
        Gate { offset: gate.offset & 0xffff, ..gate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_descriptors() {
        // Linux's __KERNEL_CS, __USER_DS (32-bit flat), a byte-granular 16-bit
        // expand-down data segment.
        let check = |raw: u64, base: u64, limit: u32, access: u32| {
            let s = Descriptor::parse(raw).segment(8);
            assert_eq!((s.selector, s.base, s.limit, s.access), (8, base, limit, access), "{raw:#x}");
        };
        check(0x00af_9b00_0000_ffff, 0, 0xffff_ffff, 0xa09b);
        check(0x00cf_f300_0000_ffff, 0, 0xffff_ffff, 0xc0f3);
        check(0x1203_9645_6789_1234, 0x1245_6789, 0x3_1234, 0x0096);
        let d = Descriptor::parse(0x00af_9b00_0000_ffff);
        assert!(d.is_code() && d.is_readable() && d.is_long() && !d.is_big() && d.is_present());
        assert!(!d.is_conforming() && !d.is_writable() && d.is_accessed() && d.dpl() == 0);
        assert!(Descriptor::parse(0x00cf_9e00_0000_ffff).is_conforming());
        assert!(Descriptor::parse(0x00cf_f300_0000_ffff).is_writable());
    }

    #[test]
    fn system_descriptors_and_gates() {
        let tss = Descriptor::parse_wide({
            let low: u64 = 0x0000_8b12_3456_0067;
            let high: u64 = 0xffff_8801;
            u128::from(low) | u128::from(high) << 64
        });
        assert!(tss.is_system() && tss.kind() == system_type::TSS_BUSY);
        assert_eq!((tss.base(), tss.limit(), tss.upper_type()), (0xffff_8801_0012_3456, 0x67, 0));

        let low: u64 = 0x8123_ee05_0010_4567;
        let gate = Descriptor::parse_wide(u128::from(low) | 0xffff_ffff << 64);
        assert_eq!(
            gate.gate(),
            Gate { selector: 0x10, offset: 0xffff_ffff_8123_4567, parameters: 5, ist: 5 }
        );
        assert_eq!((gate.kind(), gate.dpl()), (system_type::INTERRUPT_GATE, 3));
        assert_eq!(Descriptor::parse(low).gate16().offset, 0x4567);
    }
}
