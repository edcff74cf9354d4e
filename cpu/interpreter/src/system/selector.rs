//! Descriptor-table access and the loading of segment registers.

use guest_memory::RamOffset;
use x86_mmu::Descriptor;
use x86_state::{Segment, vector};

use crate::cpu::{Cpu, Privilege, Step, Stop};
use crate::memory::{Intent, Place};

pub(super) const ES: u8 = 0;
pub(super) const CS: u8 = 1;
pub(super) const SS: u8 = 2;
pub(super) const DS: u8 = 3;
pub(super) const FS: u8 = 4;
pub(super) const GS: u8 = 5;

/// EXT bit of an error code: the fault came up while delivering an event that
/// was not a software interrupt (SDM volume 3, 7.13).
pub(super) const EXT: u32 = 1;

/// TI: the selector refers to the local descriptor table.
const TI: u16 = 1 << 2;

/// A selector's index and table are zero.
pub(super) fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// Requested privilege level.
pub(super) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// The selector refers to the local descriptor table.
pub(super) fn is_local(selector: u16) -> bool {
    selector & TI != 0
}

/// The error code that names a selector.
pub(super) fn selector_error(selector: u16, ext: u32) -> u32 {
    u32::from(selector & 0xfffc) | ext
}

/// A descriptor and where it lies.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub descriptor: Descriptor,
    /// Linear address.
    pub address: u64,
}

/// A segment register that holds a null selector. `dpl` matters for SS, where
/// it carries the privilege level.
pub(super) fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0, access: Segment::UNUSABLE | u32::from(dpl) << 5 }
}

impl Cpu {
    /// Canonical as far as registers are concerned: bases and entry points may use
    /// all bits that the processor supports, whatever the paging mode.
    pub(super) fn is_canonical_for_registers(&self, address: u64) -> bool {
        let unused = if self.model.has(x86_state::Feature::La57) { 7 } else { 16 };
        (address << unused) as i64 >> unused == address as i64
    }

    /// IA-32e mode is active (64-bit or compatibility mode).
    pub(super) fn long_mode(&self) -> bool {
        self.efer & x86_state::efer::LMA != 0
    }

    /// Protected mode proper: PE set and not virtual-8086.
    pub(super) fn protected_segments(&self) -> bool {
        self.protected() && !self.v86()
    }

    /// Linear address of a selector's descriptor of `bytes` bytes, if it lies
    /// within its table's limit.
    fn descriptor_address(&self, selector: u16, bytes: u64) -> Option<u64> {
        let (base, limit) = if !is_local(selector) {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.usable() {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            return None;
        };
        let index = u64::from(selector & 0xfff8);
        (index + bytes - 1 <= limit).then(|| base.wrapping_add(index))
    }

    /// Read 8 bytes of a descriptor table. Its base may be an address that only
    /// another paging mode can use.
    pub(super) fn read_table(&mut self, linear: u64) -> Result<u64, Stop> {
        if self.long_mode() && !self.canonical(linear) {
            return Err(self.gp(0));
        }
        self.read_linear::<u64>(linear, Privilege::System)
    }

    /// Read a selector's 8-byte descriptor; `None` beyond the table's limit.
    pub(super) fn find_descriptor(&mut self, selector: u16) -> Result<Option<Found>, Stop> {
        let Some(address) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let raw = self.read_table(address)?;
        Ok(Some(Found { descriptor: Descriptor::parse(raw), address }))
    }

    /// Read a selector's 16-byte descriptor; `None` beyond the table's limit.
    pub(super) fn find_wide_descriptor(&mut self, selector: u16) -> Result<Option<Found>, Stop> {
        let Some(address) = self.descriptor_address(selector, 16) else { return Ok(None) };
        let low = self.read_table(address)?;
        let high = self.read_table(address.wrapping_add(8))?;
        let raw = u128::from(low) | u128::from(high) << 64;
        Ok(Some(Found { descriptor: Descriptor::parse_wide(raw), address }))
    }

    /// Read a selector's descriptor; beyond the table's limit raise
    /// `fault_vector` with the selector as error code.
    pub(super) fn fetch_descriptor(
        &mut self,
        selector: u16,
        fault_vector: u8,
        ext: u32,
    ) -> Result<Found, Stop> {
        match self.find_descriptor(selector)? {
            Some(found) => Ok(found),
            None => Err(self.selector_fault(fault_vector, selector, ext)),
        }
    }

    /// As [`Cpu::fetch_descriptor`], 16 bytes.
    pub(super) fn fetch_wide_descriptor(
        &mut self,
        selector: u16,
        fault_vector: u8,
        ext: u32,
    ) -> Result<Found, Stop> {
        match self.find_wide_descriptor(selector)? {
            Some(found) => Ok(found),
            None => Err(self.selector_fault(fault_vector, selector, ext)),
        }
    }

    /// A fault whose error code names a selector.
    #[cold]
    pub(super) fn selector_fault(&mut self, fault_vector: u8, selector: u16, ext: u32) -> Stop {
        self.raise(fault_vector, Some(selector_error(selector, ext)))
    }

    /// Set and clear type bits of a descriptor in memory (accessed, busy) with a
    /// locked operation.
    pub(super) fn set_descriptor_type(&mut self, found: &Found, set: u8, clear: u8) -> Step {
        let at = found.address.wrapping_add(5);
        match self.translate(at, Intent::Write, Privilege::System)? {
            Place::Ram(offset) => {
                self.memory.update::<u8>(RamOffset(offset), |rights| rights & !clear | set);
                // The byte may be code that follows in this block.
                self.leave_at = 0;
                Ok(())
            }
            Place::Bus(_) => {
                let rights = self.read_linear::<u8>(at, Privilege::System)?;
                self.write_linear(at, rights & !clear | set, Privilege::System)
            }
        }
    }

    /// The segment a code or data descriptor describes, marked accessed in
    /// memory and in the result.
    pub(super) fn accessed_segment(&mut self, found: &Found, selector: u16) -> Result<Segment, Stop> {
        if !found.descriptor.is_accessed() {
            self.set_descriptor_type(found, 1, 0)?;
        }
        let mut segment = found.descriptor.segment(selector);
        segment.access |= 1;
        Ok(segment)
    }

    /// Real-address and virtual-8086 mode: the base follows the selector. In real
    /// mode limit and rights stay what they were, as on every processor since
    /// the 386 ("unreal mode" rests on it).
    pub(super) fn real_segment(&self, index: u8, selector: u16) -> Segment {
        if self.v86() {
            return v86_segment(selector);
        }
        let old = self.segments[usize::from(index).min(5)];
        if !old.usable() {
            return Segment::real_mode(selector, index == CS);
        }
        let access = old.access | Segment::PRESENT | Segment::S;
        Segment { selector, base: u64::from(selector) << 4, access, ..old }
    }

    /// What loading DS, ES, FS or GS yields, with all checks.
    pub(super) fn check_data_segment(&mut self, index: u8, selector: u16) -> Result<Segment, Stop> {
        if !self.protected_segments() {
            return Ok(self.real_segment(index, selector));
        }
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let found = self.fetch_descriptor(selector, vector::GP, 0)?;
        let d = found.descriptor;
        let privilege_matters = !d.is_conforming();
        if !d.is_readable() || privilege_matters && rpl(selector).max(self.cpl) > d.dpl() {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.accessed_segment(&found, selector)
    }

    /// What loading SS yields at the current privilege level, with all checks.
    pub(super) fn check_stack_segment(&mut self, selector: u16) -> Result<Segment, Stop> {
        if !self.protected_segments() {
            return Ok(self.real_segment(SS, selector));
        }
        if is_null(selector) {
            if self.long64() && self.cpl != 3 && rpl(selector) == self.cpl {
                return Ok(null_segment(selector, self.cpl));
            }
            return Err(self.gp(0));
        }
        self.check_stack_for(selector, self.cpl, vector::GP, 0)
    }

    /// Check a non-null stack selector for privilege level `cpl`; `invalid` is
    /// the vector of all faults but not-present (#GP, or #TS when the selector
    /// comes from a task-state segment).
    pub(super) fn check_stack_for(
        &mut self,
        selector: u16,
        cpl: u8,
        invalid: u8,
        ext: u32,
    ) -> Result<Segment, Stop> {
        let found = self.fetch_descriptor(selector, invalid, ext)?;
        let d = found.descriptor;
        if rpl(selector) != cpl || !d.is_writable() || d.dpl() != cpl {
            return Err(self.selector_fault(invalid, selector, ext));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::SS, selector, ext));
        }
        self.accessed_segment(&found, selector)
    }

    /// Load any segment register but CS, as MOV and POP do.
    pub(super) fn load_segment(&mut self, index: u8, selector: u16) -> Step {
        let segment = if index == SS {
            self.check_stack_segment(selector)?
        } else {
            self.check_data_segment(index, selector)?
        };
        self.set_segment(index, segment);
        Ok(())
    }

    /// After a return to an outer level: data segments the new level may not use
    /// become null (SDM volume 2, RET).
    pub(super) fn drop_inner_segments(&mut self) {
        for index in [ES, FS, GS, DS] {
            let s = self.segments[usize::from(index)];
            let conforming_code = s.kind() & 0xc == 0xc;
            if !s.usable() || !conforming_code && s.dpl() < self.cpl {
                // The base survives: 64-bit mode uses it with a null selector too.
                let null = Segment { selector: 0, access: s.access | Segment::UNUSABLE, ..s };
                self.set_segment(index, null);
            }
        }
    }
}

/// A segment of virtual-8086 mode.
pub(super) fn v86_segment(selector: u16) -> Segment {
    Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, access: 0xf3 }
}
