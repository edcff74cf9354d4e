//! Access to memory: effective addresses through segmentation and paging.
//!
//! The fast path is a segment base that needs no check plus one TLB tag
//! comparison; it also proves canonical form, alignment rules and that the
//! access stays within a page. Everything else falls into the cold functions
//! of this file, which make every check in the architecture's order.

use guest_memory::{RamOffset, Scalar};
use x86_mmu::{Access, PagingParams};
use x86_state::{Exception, Feature, Segment, cr0, cr4, efer, vector};

use crate::cpu::{Cpu, Privilege, Step, Stop};
use crate::insn::Insn;
use crate::tlb::{Entry, PAGE_MASK, Set, page};

/// Segment number of SS, whose violations are #SS.
const SS: u8 = 2;

/// Where an access ends up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Offset into RAM's backing.
    Ram(u64),
    /// Guest-physical address on the bus.
    Bus(u64),
}

/// What is done to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    Fetch,
}

/// Where an operand lies in RAM if it is in one piece there.
pub(crate) fn adjacent(place: (Place, Option<Place>)) -> Option<u64> {
    match place {
        (Place::Ram(at), None) => Some(at),
        (Place::Ram(at), Some(Place::Ram(next))) if (at | PAGE_MASK) + 1 == next => Some(at),
        _ => None,
    }
}

impl Cpu {
    /// Load the instruction's memory operand.
    #[inline(always)]
    pub fn load<T: Scalar>(&mut self, i: &Insn) -> Result<T, Stop> {
        self.read_seg(i.seg, self.effective_address(i))
    }

    /// Store to the instruction's memory operand.
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, i: &Insn, value: T) -> Step {
        self.write_seg(i.seg, self.effective_address(i), value)
    }

    /// Load at the memory operand's address plus `extra` bytes.
    #[inline(always)]
    pub fn load_at<T: Scalar>(&mut self, i: &Insn, extra: u64) -> Result<T, Stop> {
        self.read_seg(i.seg, self.operand_at(i, extra))
    }

    /// Store at the memory operand's address plus `extra` bytes.
    #[inline(always)]
    pub fn store_at<T: Scalar>(&mut self, i: &Insn, extra: u64, value: T) -> Step {
        self.write_seg(i.seg, self.operand_at(i, extra), value)
    }

    /// The memory operand's offset plus `extra`, wrapped to the address size.
    #[inline(always)]
    pub(crate) fn operand_at(&self, i: &Insn, extra: u64) -> u64 {
        self.effective_address(i).wrapping_add(extra) << (i.address_shift & 63) >> (i.address_shift & 63)
    }

    /// Load from `seg:offset` with the program's privilege.
    #[inline(always)]
    pub fn read_seg<T: Scalar>(&mut self, seg: u8, offset: u64) -> Result<T, Stop> {
        let linear = self.read_base[seg as usize & 7].wrapping_add(offset);
        let e = self.tlb.entry(linear);
        if e.read == self.tlb.tag(linear, T::SIZE) {
            return Ok(self.memory.read(ram(e, linear)));
        }
        self.read_seg_checked(seg, offset)
    }

    /// Store to `seg:offset` with the program's privilege.
    #[inline(always)]
    pub fn write_seg<T: Scalar>(&mut self, seg: u8, offset: u64, value: T) -> Step {
        let linear = self.write_base[seg as usize & 7].wrapping_add(offset);
        let e = self.tlb.entry(linear);
        if e.write == self.tlb.tag(linear, T::SIZE) {
            if self.memory.write(ram(e, linear), value) {
                self.leave_at = 0;
            }
            return Ok(());
        }
        self.write_seg_checked(seg, offset, value)
    }

    /// Load from a linear address.
    #[inline]
    pub fn read_linear<T: Scalar>(&mut self, linear: u64, p: Privilege) -> Result<T, Stop> {
        let e = self.tlb.entry(linear);
        if e.read == self.tlb.tag(linear, T::SIZE) && p == Privilege::Current {
            return Ok(self.memory.read(ram(e, linear)));
        }
        self.read_checked(linear, p)
    }

    /// Store to a linear address.
    #[inline]
    pub fn write_linear<T: Scalar>(&mut self, linear: u64, value: T, p: Privilege) -> Step {
        let e = self.tlb.entry(linear);
        if e.write == self.tlb.tag(linear, T::SIZE) && p == Privilege::Current {
            if self.memory.write(ram(e, linear), value) {
                self.leave_at = 0;
            }
            return Ok(());
        }
        self.write_checked(linear, value, p)
    }

    /// Fault as a store of `len` bytes would; changes nothing but accessed and
    /// dirty flags.
    pub fn probe_write(&mut self, linear: u64, len: u64, p: Privilege) -> Step {
        self.locate(linear, len, Intent::Write, p).map(|_| ())
    }

    /// Push `v` as `size` bytes (2, 4 or 8).
    #[inline(always)]
    pub fn push(&mut self, size: u8, v: u64) -> Step {
        let mask = self.stack_pointer_mask;
        let rsp = self.regs[4];
        let new = rsp.wrapping_sub(u64::from(size)) & mask;
        match size {
            8 => self.write_seg(SS, new, v)?,
            4 => self.write_seg(SS, new, v as u32)?,
            _ => self.write_seg(SS, new, v as u16)?,
        }
        self.set_stack_pointer(new);
        Ok(())
    }

    /// Pop `size` bytes (2, 4 or 8).
    #[inline(always)]
    pub fn pop(&mut self, size: u8) -> Result<u64, Stop> {
        let at = self.regs[4] & self.stack_pointer_mask;
        let v = match size {
            8 => self.read_seg::<u64>(SS, at)?,
            4 => u64::from(self.read_seg::<u32>(SS, at)?),
            _ => u64::from(self.read_seg::<u16>(SS, at)?),
        };
        self.set_stack_pointer(at.wrapping_add(u64::from(size)));
        Ok(v)
    }

    /// Replace as much of RSP as the stack size covers. A 32-bit stack pointer
    /// zero-extends, a 16-bit one keeps the upper bits.
    #[inline(always)]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_pointer_mask;
        let kept = if mask == 0xffff { self.regs[4] & !0xffff } else { 0 };
        self.regs[4] = kept | value & mask;
    }

    #[cold]
    #[inline(never)]
    fn read_seg_checked<T: Scalar>(&mut self, seg: u8, offset: u64) -> Result<T, Stop> {
        let linear = self.segment_address(seg, offset, T::SIZE as u64, false)?;
        if self.alignment_checks {
            self.check_alignment(linear, T::SIZE as u64, Intent::Read)?;
        }
        self.read_checked(linear, Privilege::Current)
    }

    #[cold]
    #[inline(never)]
    fn write_seg_checked<T: Scalar>(&mut self, seg: u8, offset: u64, value: T) -> Step {
        let linear = self.segment_address(seg, offset, T::SIZE as u64, true)?;
        if self.alignment_checks {
            self.check_alignment(linear, T::SIZE as u64, Intent::Write)?;
        }
        self.write_checked(linear, value, Privilege::Current)
    }

    /// #AC, which comes after the page faults of the same access. For the 16-byte accesses
    /// of MOVUPS and its kin, which a processor may leave unchecked, as AMD's do it.
    pub(crate) fn check_alignment(&mut self, linear: u64, size: u64, intent: Intent) -> Step {
        if linear % size == 0 {
            return Ok(());
        }
        self.locate(linear, size, intent, Privilege::Current)?;
        Err(self.raise(vector::AC, Some(0)))
    }

    /// Run accesses that alignment checks leave alone: the pieces of an operand whose
    /// own rule has been applied, or that has none.
    pub(crate) fn in_pieces<T>(
        &mut self,
        access: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let checks = std::mem::replace(&mut self.alignment_checks, false);
        let result = access(self);
        self.alignment_checks = checks;
        result
    }

    /// The linear address of `len` bytes at `seg:offset`, after the segment's
    /// checks (SDM volume 3, 6.3 to 6.5) or the canonical check.
    pub(crate) fn segment_address(
        &mut self,
        seg: u8,
        offset: u64,
        len: u64,
        write: bool,
    ) -> Result<u64, Stop> {
        let n = usize::from(seg);
        if self.code_bits == 64 {
            let base = if n == 4 || n == 5 { self.segments[n].base } else { 0 };
            let linear = base.wrapping_add(offset);
            if !self.canonical(linear) || !self.canonical(linear.wrapping_add(len - 1)) {
                return Err(self.segment_violation(seg));
            }
            return Ok(linear);
        }
        let Some(s) = self.segments.get(n).copied() else {
            // No base, no limit: the address is linear already.
            return Ok(offset & 0xffff_ffff);
        };
        if !self.segment_allows(&s, offset, len, write) {
            return Err(self.segment_violation(seg));
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    fn segment_allows(&self, s: &Segment, offset: u64, len: u64, write: bool) -> bool {
        let code = s.kind() & 8 != 0;
        if self.protected() && !self.v86() {
            let allowed = match (code, write) {
                (true, true) => false,
                (true, false) | (false, true) => s.kind() & 2 != 0,
                (false, false) => true,
            };
            if !s.usable() || !allowed {
                return false;
            }
        }
        let limit = u64::from(s.limit);
        let last = offset.wrapping_add(len - 1);
        if !code && s.kind() & 4 != 0 {
            let top = if s.big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top && last >= offset
        } else if s.limit == u32::MAX {
            // Accesses that run over the top of a 4 GiB segment wrap.
            true
        } else {
            last <= limit && last >= offset
        }
    }

    #[cold]
    fn segment_violation(&mut self, seg: u8) -> Stop {
        let v = if seg == SS { vector::SS } else { vector::GP };
        self.raise(v, Some(0))
    }

    /// Whether a linear address is canonical for the current paging depth.
    #[inline]
    pub fn canonical(&self, linear: u64) -> bool {
        let shift = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        ((linear << shift) as i64 >> shift) as u64 == linear
    }

    #[cold]
    #[inline(never)]
    fn read_checked<T: Scalar>(&mut self, linear: u64, p: Privilege) -> Result<T, Stop> {
        let (first, second) = self.locate(linear, T::SIZE as u64, Intent::Read, p)?;
        if self.data_breakpoints {
            self.note_data_access(linear, T::SIZE as u64, false);
        }
        match (first, second) {
            (Place::Ram(at), None) => Ok(self.memory.read(RamOffset(at))),
            _ => {
                let mut bytes = [0; 16];
                self.read_places(linear, &mut bytes[..T::SIZE], first, second);
                Ok(scalar_from(u128::from_le_bytes(bytes)))
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn write_checked<T: Scalar>(&mut self, linear: u64, value: T, p: Privilege) -> Step {
        let (first, second) = self.locate(linear, T::SIZE as u64, Intent::Write, p)?;
        if self.data_breakpoints {
            self.note_data_access(linear, T::SIZE as u64, true);
        }
        match (first, second) {
            (Place::Ram(at), None) => {
                if self.memory.write(RamOffset(at), value) {
                    self.leave_at = 0;
                }
            }
            _ => {
                let bytes = scalar_to(value).to_le_bytes();
                self.write_places(linear, &bytes[..T::SIZE], first, second);
            }
        }
        Ok(())
    }

    /// Read bytes that lie at one place, or cross from one page's place to another's.
    pub(crate) fn read_places(&mut self, linear: u64, to: &mut [u8], first: Place, second: Option<Place>) {
        let split = bytes_in_page(linear, to.len(), second);
        let (head, tail) = to.split_at_mut(split);
        self.read_place(first, head);
        if let Some(place) = second {
            self.read_place(place, tail);
        }
    }

    /// Write bytes, as [`Cpu::read_places`] reads them.
    pub(crate) fn write_places(&mut self, linear: u64, from: &[u8], first: Place, second: Option<Place>) {
        let split = bytes_in_page(linear, from.len(), second);
        self.write_place(first, &from[..split]);
        if let Some(place) = second {
            self.write_place(place, &from[split..]);
        }
    }

    pub(crate) fn read_place(&mut self, place: Place, to: &mut [u8]) {
        match place {
            Place::Ram(at) => self.memory.read_bytes(RamOffset(at), to),
            Place::Bus(mut address) => {
                self.sync_time();
                let mut rest = to;
                while !rest.is_empty() {
                    let n = natural_piece(address, rest.len());
                    let (head, tail) = rest.split_at_mut(n);
                    let v = self.bus.mmio_read(self.index, address, n as u8);
                    head.copy_from_slice(&v.to_le_bytes()[..n]);
                    address += n as u64;
                    rest = tail;
                }
            }
        }
    }

    pub(crate) fn write_place(&mut self, place: Place, from: &[u8]) {
        match place {
            Place::Ram(at) => {
                if self.memory.write_bytes(RamOffset(at), from) {
                    self.leave_at = 0;
                }
            }
            Place::Bus(mut address) => {
                self.sync_time();
                let mut rest = from;
                while !rest.is_empty() {
                    let n = natural_piece(address, rest.len());
                    let (head, tail) = rest.split_at(n);
                    let mut v = [0; 8];
                    v[..n].copy_from_slice(head);
                    self.bus.mmio_write(self.index, address, n as u8, u64::from_le_bytes(v));
                    address += n as u64;
                    rest = tail;
                }
            }
        }
    }

    /// Translate the one or two pages of an access of up to a page, both before
    /// anything is accessed.
    pub(crate) fn locate(
        &mut self,
        linear: u64,
        len: u64,
        intent: Intent,
        p: Privilege,
    ) -> Result<(Place, Option<Place>), Stop> {
        let first = self.translate(linear, intent, p)?;
        if (linear & PAGE_MASK) + len <= 4096 {
            return Ok((first, None));
        }
        let next = (linear & !PAGE_MASK).wrapping_add(4096);
        let next = if self.efer & efer::LMA == 0 { next & 0xffff_ffff } else { next };
        let second = self.translate(next, intent, p)?;
        Ok((first, Some(second)))
    }

    /// Translate one linear address, filling the TLB.
    pub(crate) fn translate(&mut self, linear: u64, intent: Intent, p: Privilege) -> Result<Place, Stop> {
        let linear = if self.efer & efer::LMA == 0 { linear & 0xffff_ffff } else { linear };
        let user = self.cpl == 3 && p == Privilege::Current;
        let ac = self.system_flags & x86_state::rflags::AC != 0 && p == Privilege::Current;
        let set = match (user, ac) {
            (true, _) => Set::User,
            (_, false) => Set::Supervisor,
            _ => Set::SupervisorAc,
        };
        self.tlb.adopt_global(set, linear);
        let (fast, slow) = self.tlb.page_tags(linear);
        let e = *self.tlb.slot(set, linear);
        let tag = match intent {
            Intent::Read => e.read,
            Intent::Write => e.write,
            Intent::Fetch => e.exec,
        };
        if tag == fast || tag == slow {
            let at = u64::from(e.frame) << 12 | linear & PAGE_MASK;
            return Ok(if e.flags & page::DEVICE != 0 { Place::Bus(at) } else { Place::Ram(at) });
        }
        let access = Access {
            write: intent == Intent::Write,
            fetch: intent == Intent::Fetch,
            user,
            system: p == Privilege::System,
            ac,
        };
        self.walk(linear, access, set)
    }

    /// Walk the page tables and enter the result into the TLB.
    #[cold]
    #[inline(never)]
    fn walk(&mut self, linear: u64, access: Access, set: Set) -> Result<Place, Stop> {
        let t = match x86_mmu::walk(&self.memory, &self.paging_params(), linear, access) {
            Ok(t) => t,
            Err(f) => {
                self.fault =
                    Exception { vector: vector::PF, error_code: Some(f.error_code), payload: f.linear };
                return Err(Stop::Fault);
            }
        };
        let hit = self.memory.translate(t.physical);
        let (at, device, writable) = match hit {
            Some(h) => (h.offset.0, false, h.writable),
            None => (t.physical, true, true),
        };
        let place = match hit {
            Some(_) if access.write && !writable => return Ok(Place::Bus(t.physical)),
            Some(h) => Place::Ram(h.offset.0),
            None => Place::Bus(t.physical),
        };
        if t.page_shift > 12 {
            self.tlb.note_large(linear, t.page_shift);
        }
        let (fast, slow) = self.tlb.page_tags(linear);
        let watched = self.data_breakpoints && self.page_is_watched(linear);
        let tag = if device || watched { slow } else { fast };
        let allow = |on: bool, tag: u64| if on { tag } else { 0 };
        let large = if t.page_shift > 12 { page::LARGE | u32::from(t.page_shift) << 8 } else { 0 };
        let entry = Entry {
            read: if t.readable { tag } else { linear & !PAGE_MASK },
            write: allow(t.writable && writable, tag),
            exec: allow(t.executable, if device { slow } else { fast }),
            frame: (at >> 12) as u32,
            flags: large | if t.global { page::GLOBAL } else { 0 } | if device { page::DEVICE } else { 0 },
        };
        // Page numbers above 32 bits (16 TiB) stay uncached.
        if at >> 12 <= u64::from(u32::MAX) {
            *self.tlb.slot(set, linear) = entry;
        }
        Ok(place)
    }

    /// Code at `linear`, just translated, is about to be found by virtual address.
    pub(crate) fn note_code(&mut self, linear: u64) {
        self.code_pages.note(linear);
        let global = self.tlb.entry(linear).flags & page::GLOBAL != 0;
        if linear >> 63 != 0 && !global && !self.private_upper_code {
            self.private_upper_code = true;
            self.set_code_key();
        }
    }

    /// What page walks depend on.
    pub fn paging_params(&self) -> PagingParams {
        PagingParams {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            pdpte: self.pdpte,
            gigabyte_pages: self.model.has(Feature::Pdpe1gb),
        }
    }

    /// Tell a second translation cache, if there is one, what was flushed.
    fn log_flush(&mut self, f: Flush) {
        if let Some(log) = &mut self.flush_log {
            log.push(f);
        }
    }

    /// Forget all translations, global ones too.
    pub fn flush_tlb_all(&mut self) {
        self.log_flush(Flush::All);
        self.tlb.clear();
        self.private_upper_code = false;
        self.code_moved();
    }

    /// Forget all translations of all contexts, except global pages.
    pub fn flush_tlb_nonglobal(&mut self) {
        self.log_flush(Flush::NonGlobal);
        self.tlb.forget_contexts();
        self.code_moved();
    }

    /// INVLPG: forget the page of one linear address, in the current context and
    /// as a global page.
    pub fn flush_tlb_page(&mut self, linear: u64) {
        self.log_flush(Flush::Page(linear));
        let large = self.tlb.may_be_large(linear);
        self.tlb.forget_page(linear);
        if large || self.code_pages.may_hold(linear) {
            self.code_moved();
        }
        self.leave_at = 0;
    }

    /// Forget one process context, except global pages.
    pub fn flush_tlb_pcid(&mut self, pcid: u16) {
        self.log_flush(Flush::Context(pcid));
        self.tlb.forget_context(pcid);
        if self.cr0 & cr0::PG != 0 && self.current_pcid() == pcid {
            self.tlb.new_space();
            self.code_moved();
        }
    }

    /// INVPCID of one address of one context.
    pub fn flush_tlb_page_pcid(&mut self, pcid: u16, linear: u64) {
        self.log_flush(Flush::Context(pcid));
        if self.current_pcid() == pcid {
            self.flush_tlb_page(linear);
        } else {
            self.tlb.forget_context(pcid);
        }
    }

    fn current_pcid(&self) -> u16 {
        if self.cr4 & cr4::PCIDE != 0 { (self.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// After MOV to CR3 has changed `cr3`: enter its address space. `keep` is the
    /// operand's bit 63 under CR4.PCIDE: translations of that context stay.
    pub fn switch_address_space(&mut self, keep: bool) {
        self.log_flush(Flush::Switch { keep: keep && self.cr4 & cr4::PCIDE != 0 });
        if self.cr4 & cr4::PCIDE != 0 {
            self.tlb.enter_context(self.current_pcid(), keep);
        } else {
            self.tlb.new_space();
        }
        self.set_code_key();
        self.leave_at = 0;
    }
}

/// A flush of translations, as the architecture's instructions ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Everything.
    All,
    /// Everything but global pages.
    NonGlobal,
    /// One page of the current context, global or not.
    Page(u64),
    /// One process context, except global pages.
    Context(u16),
    /// CR3 was loaded; without `keep` the context it names starts empty.
    Switch {
        /// Translations of that context stay.
        keep: bool,
    },
}

#[inline(always)]
pub(crate) fn ram(e: &Entry, linear: u64) -> RamOffset {
    RamOffset(u64::from(e.frame) << 12 | linear & PAGE_MASK)
}

fn bytes_in_page(linear: u64, len: usize, second: Option<Place>) -> usize {
    if second.is_some() { (4096 - (linear & PAGE_MASK) as usize).min(len) } else { len }
}

/// The largest naturally aligned access at `address` of at most `len` bytes.
fn natural_piece(address: u64, len: usize) -> usize {
    let mut n = 8;
    while n > len || address % n as u64 != 0 {
        n /= 2;
    }
    n
}

fn scalar_from<T: Scalar>(v: u128) -> T {
    T::truncate(v)
}

fn scalar_to<T: Scalar>(v: T) -> u128 {
    v.widen()
}
