//! Task switches through 16- and 32-bit task-state segments (SDM volume 3, chapter 8).

use x86_mmu::{load_pdptes, system_type};
use x86_state::{Segment, cr0, cr4, dr6, reg, rflags, vector};

use super::selector::{
    CS, DS, ES, FS, Found, GS, SS, is_local, is_null, null_segment, rpl, selector_error, v86_segment,
};
use super::stack::Stack;
use crate::cpu::{Cpu, Privilege, Step, Stop};

/// What causes a task switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// JMP.
    Jump,
    /// CALL.
    Call,
    /// IRET with NT set.
    Return,
    /// An exception or interrupt through a task gate.
    Event,
}

/// A task switch to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct TaskSwitch {
    /// Selector of the new TSS.
    pub selector: u16,
    pub reason: Reason,
    /// EXT bit for error codes.
    pub ext: u32,
    /// Error code to push on the new task's stack.
    pub error_code: Option<u32>,
}

/// Offsets within a TSS (SDM volume 3, figures 8-2 and 8-10).
struct Layout {
    /// Bytes of a register slot.
    slot: u64,
    ip: u64,
    general: u64,
    segments: u64,
    segment_count: usize,
    ldt: u64,
    /// Smallest limit.
    limit: u32,
}

const TSS32: Layout =
    Layout { slot: 4, ip: 0x20, general: 0x28, segments: 0x48, segment_count: 6, ldt: 0x60, limit: 0x67 };
const TSS16: Layout =
    Layout { slot: 2, ip: 0x0e, general: 0x12, segments: 0x22, segment_count: 4, ldt: 0x2a, limit: 0x2b };
const CR3: u64 = 0x1c;
const TRAP: u64 = 0x64;

fn layout(kind: u8) -> &'static Layout {
    if kind & 8 != 0 { &TSS32 } else { &TSS16 }
}

/// Segment registers in the order a TSS holds them.
const SEGMENTS: [u8; 6] = [ES, CS, SS, DS, FS, GS];

/// A task's registers as its TSS holds them.
#[derive(Default)]
struct Image {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    general: [u64; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    fn tss_read(&mut self, base: u64, offset: u64, slot: u64) -> Result<u64, Stop> {
        let at = base.wrapping_add(offset) & 0xffff_ffff;
        if slot == 2 {
            Ok(self.read_linear::<u16>(at, Privilege::System)?.into())
        } else {
            Ok(self.read_linear::<u32>(at, Privilege::System)?.into())
        }
    }

    fn tss_write(&mut self, base: u64, offset: u64, slot: u64, value: u64) -> Step {
        let at = base.wrapping_add(offset) & 0xffff_ffff;
        if slot == 2 {
            self.write_linear(at, value as u16, Privilege::System)
        } else {
            self.write_linear(at, value as u32, Privilege::System)
        }
    }

    fn read_task(&mut self, base: u64, wide: bool) -> Result<Image, Stop> {
        let l = if wide { &TSS32 } else { &TSS16 };
        let mut image = Image {
            ip: self.tss_read(base, l.ip, l.slot)?,
            flags: self.tss_read(base, l.ip + l.slot, l.slot)?,
            ..Image::default()
        };
        for (n, g) in image.general.iter_mut().enumerate() {
            // A 16-bit task leaves ones in the upper halves, as on a 386.
            let upper = if wide { 0 } else { 0xffff_0000 };
            *g = self.tss_read(base, l.general + l.slot * n as u64, l.slot)? | upper;
        }
        for (n, s) in image.segments.iter_mut().take(l.segment_count).enumerate() {
            *s = self.tss_read(base, l.segments + l.slot * n as u64, 2)? as u16;
        }
        image.ldt = self.tss_read(base, l.ldt, 2)? as u16;
        if wide {
            image.cr3 = Some(self.tss_read(base, CR3, 4)?);
            image.trap = self.tss_read(base, TRAP, 2)? & 1 != 0;
        }
        Ok(image)
    }

    /// Write the running task's registers to its TSS.
    fn save_task(&mut self, base: u64, l: &Layout, flags: u64) -> Step {
        self.tss_write(base, l.ip, l.slot, self.rip())?;
        self.tss_write(base, l.ip + l.slot, l.slot, flags)?;
        for n in 0..8 {
            self.tss_write(base, l.general + l.slot * n as u64, l.slot, self.regs[n])?;
        }
        for (n, index) in SEGMENTS.iter().take(l.segment_count).enumerate() {
            let selector = self.segments[usize::from(*index)].selector;
            self.tss_write(base, l.segments + l.slot * n as u64, 2, selector.into())?;
        }
        Ok(())
    }

    /// The checks on a new TSS's descriptor (SDM volume 3, 8.3, steps 1 to 4).
    fn check_new_tss(&mut self, s: &TaskSwitch) -> Result<Found, Stop> {
        let invalid = if s.reason == Reason::Return { vector::TS } else { vector::GP };
        if is_local(s.selector) || is_null(s.selector) {
            return Err(self.selector_fault(invalid, s.selector, s.ext));
        }
        let found = self.fetch_descriptor(s.selector, invalid, s.ext)?;
        let d = found.descriptor;
        let busy = if s.reason == Reason::Return { system_type::BUSY_BIT } else { 0 };
        if !d.is_system() || d.kind() & !8 != system_type::TSS16_AVAILABLE | busy {
            return Err(self.selector_fault(invalid, s.selector, s.ext));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, s.selector, s.ext));
        }
        if d.limit() < layout(d.kind()).limit {
            return Err(self.selector_fault(vector::TS, s.selector, s.ext));
        }
        Ok(found)
    }

    /// Switch tasks. The outer error is a fault found while the old task still
    /// runs; the inner one a fault of the new task, at its first instruction.
    pub(super) fn switch_task(&mut self, s: TaskSwitch) -> Result<Step, Stop> {
        let flags = self.rflags();
        self.switch_task_saving(s, flags)
    }

    /// As [`Cpu::switch_task`], with the RFLAGS image to save.
    pub(super) fn switch_task_saving(&mut self, s: TaskSwitch, flags: u64) -> Result<Step, Stop> {
        let new = self.check_new_tss(&s)?;
        let d = new.descriptor;
        let wide = d.kind() & 8 != 0;
        let base = d.base() & 0xffff_ffff;
        let image = self.read_task(base, wide)?;
        let nested = matches!(s.reason, Reason::Call | Reason::Event);

        let old_base = self.tr.base;
        let old_layout = layout(self.tr.kind());
        let old_descriptor = self.find_descriptor(self.tr.selector)?;
        let pdptes = self.task_pdptes(&image)?;
        // Everything that will be written is tried first: after the first write
        // there is no way back.
        let saved = u64::from(old_layout.limit) + 1 - old_layout.ip;
        self.probe_write(old_base.wrapping_add(old_layout.ip) & 0xffff_ffff, saved, Privilege::System)?;
        self.probe_write(new.address.wrapping_add(5), 1, Privilege::System)?;
        if nested {
            self.probe_write(base, 2, Privilege::System)?;
        }
        if let Some(old) = &old_descriptor {
            self.probe_write(old.address.wrapping_add(5), 1, Privilege::System)?;
        }

        let saved_flags = if s.reason == Reason::Return { flags & !rflags::NT } else { flags };
        self.save_task(old_base, old_layout, saved_flags)?;
        if !nested && let Some(old) = &old_descriptor {
            self.set_descriptor_type(old, 0, system_type::BUSY_BIT)?;
        }
        if nested {
            self.tss_write(base, 0, 2, self.tr.selector.into())?;
        }
        if s.reason != Reason::Return {
            self.set_descriptor_type(&new, system_type::BUSY_BIT, 0)?;
        }
        let mut tr = d.segment(s.selector);
        tr.access |= u32::from(system_type::BUSY_BIT);
        self.tr = tr;
        self.enter_task(&image, nested, pdptes);
        Ok(self.load_task_segments(&image, &s, wide))
    }

    /// The PDPTE registers the new task's CR3 brings, in PAE paging.
    fn task_pdptes(&mut self, image: &Image) -> Result<Option<[u64; 4]>, Stop> {
        let pae = self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0;
        match image.cr3.filter(|_| pae) {
            None => Ok(None),
            Some(cr3) => match load_pdptes(&self.memory, cr3) {
                Ok(pdptes) => Ok(Some(pdptes)),
                Err(_) => Err(self.gp(0)),
            },
        }
    }

    /// Load what cannot fault: general registers, flags, CR3, visible selectors.
    fn enter_task(&mut self, image: &Image, nested: bool, pdptes: Option<[u64; 4]>) {
        self.cr0 |= cr0::TS;
        // Local breakpoints are the old task's (SDM volume 3, 18.2.4).
        self.dr7 &= !0x155;
        self.debug_registers_changed();
        if let Some(cr3) = image.cr3.filter(|_| self.cr0 & cr0::PG != 0) {
            self.cr3 = cr3;
            if let Some(pdptes) = pdptes {
                self.pdpte = pdptes;
            }
            self.flush_tlb_nonglobal();
        }
        self.set_rip(image.ip);
        self.regs[..8].copy_from_slice(&image.general);
        let mut flags = image.flags;
        if nested {
            flags |= rflags::NT;
        }
        let all = rflags::STATUS
            | rflags::TF
            | rflags::IF
            | rflags::DF
            | rflags::IOPL
            | rflags::NT
            | rflags::RF
            | rflags::VM
            | rflags::AC
            | rflags::VIF
            | rflags::VIP
            | rflags::ID;
        self.set_rflags(flags, all);
        let level = if self.v86() { 3 } else { rpl(image.segments[usize::from(CS)]) };
        for index in SEGMENTS {
            self.set_segment(index, null_segment(image.segments[usize::from(index)], level));
        }
        self.ldtr = null_segment(image.ldt, 0);
        self.mode_changed();
    }

    /// Load and check LDTR and the segment registers in the new task's context.
    fn load_task_segments(&mut self, image: &Image, s: &TaskSwitch, wide: bool) -> Step {
        if self.v86() {
            for index in SEGMENTS {
                self.set_segment(index, v86_segment(image.segments[usize::from(index)]));
            }
        }
        self.load_task_ldt(image.ldt, s.ext)?;
        if !self.v86() {
            let cs = self.check_task_code(image.segments[usize::from(CS)], s.ext)?;
            self.set_segment(CS, cs);
            let ss = image.segments[usize::from(SS)];
            if is_null(ss) {
                return Err(self.selector_fault(vector::TS, ss, s.ext));
            }
            let segment = self.check_stack_for(ss, self.cpl, vector::TS, s.ext)?;
            self.set_segment(SS, segment);
            for index in [DS, ES, FS, GS] {
                let segment = self.check_task_data(image.segments[usize::from(index)], s.ext)?;
                self.set_segment(index, segment);
            }
        }
        let cs = self.segments[usize::from(CS)];
        if self.rip() > u64::from(cs.limit) {
            return Err(self.gp(s.ext));
        }
        if let Some(error) = s.error_code {
            let mut stack = Stack::current(self).with_error(s.ext);
            stack.push(self, if wide { 4 } else { 2 }, error.into())?;
            stack.commit(self);
        }
        if image.trap {
            self.pending_debug |= dr6::BT;
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16, ext: u32) -> Step {
        if is_null(selector) {
            return Ok(());
        }
        let invalid = selector_error(selector, ext);
        if is_local(selector) {
            return Err(self.raise(vector::TS, Some(invalid)));
        }
        let found = self.fetch_descriptor(selector, vector::TS, ext)?;
        let d = found.descriptor;
        if !d.is_system() || d.kind() != system_type::LDT || !d.is_present() {
            return Err(self.raise(vector::TS, Some(invalid)));
        }
        self.ldtr = d.segment(selector);
        Ok(())
    }

    fn check_task_code(&mut self, selector: u16, ext: u32) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Err(self.selector_fault(vector::TS, selector, ext));
        }
        let found = self.fetch_descriptor(selector, vector::TS, ext)?;
        let d = found.descriptor;
        let level = rpl(selector);
        let allowed = if d.is_conforming() { d.dpl() <= level } else { d.dpl() == level };
        if !d.is_code() || !allowed {
            return Err(self.selector_fault(vector::TS, selector, ext));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, ext));
        }
        self.accessed_segment(&found, selector)
    }

    fn check_task_data(&mut self, selector: u16, ext: u32) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let found = self.fetch_descriptor(selector, vector::TS, ext)?;
        let d = found.descriptor;
        if !d.is_readable() || !d.is_conforming() && rpl(selector).max(self.cpl) > d.dpl() {
            return Err(self.selector_fault(vector::TS, selector, ext));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, ext));
        }
        self.accessed_segment(&found, selector)
    }
}

/// Index of a general register within a TSS is its encoding.
const _: () = assert!(reg::RSP == 4 && reg::RDI == 7);
