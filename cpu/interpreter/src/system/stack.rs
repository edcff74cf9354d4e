//! Stacks of transfers: values move through a copy of the stack pointer, which
//! is committed only when nothing can fault any more.

use x86_state::{Segment, reg, vector};

use super::selector::SS;
use crate::cpu::{Cpu, Privilege, Step, Stop};
use crate::memory::Intent;

/// How wide the stack pointer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Sp,
    Esp,
    Rsp,
}

impl Width {
    pub fn of(segment: &Segment) -> Self {
        if segment.big() { Width::Esp } else { Width::Sp }
    }

    fn mask(self) -> u64 {
        match self {
            Width::Sp => 0xffff,
            Width::Esp => 0xffff_ffff,
            Width::Rsp => u64::MAX,
        }
    }
}

/// A stack while a transfer uses it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stack {
    /// SS as it is or will be.
    pub segment: Segment,
    /// Stack pointer; bits beyond the width are kept.
    pub pointer: u64,
    width: Width,
    /// Error code of #SS when the stack has no room.
    error: u32,
    privilege: Privilege,
}

impl Stack {
    /// The stack in use.
    pub fn current(cpu: &Cpu) -> Self {
        let segment = cpu.segments[usize::from(SS)];
        let width = if cpu.long64() { Width::Rsp } else { Width::of(&segment) };
        Stack { segment, pointer: cpu.regs[reg::RSP], width, error: 0, privilege: Privilege::Current }
    }

    /// The stack of an inner level; `error` is what #SS reports.
    pub fn inner(segment: Segment, pointer: u64, width: Width, error: u32) -> Self {
        Stack { segment, pointer, width, error, privilege: Privilege::System }
    }

    /// This stack as 64-bit code sees it.
    pub fn in_long_mode(self) -> Self {
        Stack { width: Width::Rsp, ..self }
    }

    /// This stack with another error code for #SS.
    pub fn with_error(self, error: u32) -> Self {
        Stack { error, ..self }
    }

    /// Linear address of `size` bytes at an offset, after the segment's checks.
    fn linear(&self, cpu: &mut Cpu, offset: u64, size: u8, write: bool) -> Result<u64, Stop> {
        let last = offset.wrapping_add(u64::from(size) - 1);
        let linear = if self.width == Width::Rsp {
            (cpu.canonical(offset) && cpu.canonical(last)).then_some(offset)
        } else {
            segment_allows(cpu, &self.segment, offset, last, write)
                .then(|| self.segment.base.wrapping_add(offset) & 0xffff_ffff)
        };
        let linear = linear.ok_or_else(|| cpu.raise(vector::SS, Some(self.error)))?;
        if cpu.alignment_checks && self.privilege == Privilege::Current {
            let intent = if write { Intent::Write } else { Intent::Read };
            cpu.check_alignment(linear, size.into(), intent)?;
        }
        Ok(linear)
    }

    fn moved(&self, by: u64) -> u64 {
        let mask = self.width.mask();
        self.pointer & !mask | self.pointer.wrapping_add(by) & mask
    }

    /// Push the low `size` bytes (2, 4 or 8) of a value.
    pub fn push(&mut self, cpu: &mut Cpu, size: u8, value: u64) -> Step {
        let pointer = self.moved(u64::from(size).wrapping_neg());
        let offset = pointer & self.width.mask();
        let linear = self.linear(cpu, offset, size, true)?;
        match size {
            2 => cpu.write_linear(linear, value as u16, self.privilege)?,
            4 => cpu.write_linear(linear, value as u32, self.privilege)?,
            _ => cpu.write_linear(linear, value, self.privilege)?,
        }
        self.pointer = pointer;
        Ok(())
    }

    /// Push several values, first to last.
    pub fn push_all(&mut self, cpu: &mut Cpu, size: u8, values: &[u64]) -> Step {
        values.iter().try_for_each(|v| self.push(cpu, size, *v))
    }

    /// Pop `size` bytes, zero-extended.
    pub fn pop(&mut self, cpu: &mut Cpu, size: u8) -> Result<u64, Stop> {
        let offset = self.pointer & self.width.mask();
        let linear = self.linear(cpu, offset, size, false)?;
        let value = match size {
            2 => u64::from(cpu.read_linear::<u16>(linear, self.privilege)?),
            4 => u64::from(cpu.read_linear::<u32>(linear, self.privilege)?),
            _ => cpu.read_linear::<u64>(linear, self.privilege)?,
        };
        self.skip(size.into());
        Ok(value)
    }

    /// Pop the selector in a slot of `size` bytes: the other bytes are read as
    /// part of the slot and ignored.
    pub fn pop_selector(&mut self, cpu: &mut Cpu, size: u8) -> Result<u16, Stop> {
        Ok(self.pop(cpu, size)? as u16)
    }

    /// Release `bytes` bytes.
    pub fn skip(&mut self, bytes: u64) {
        self.pointer = self.moved(bytes);
    }

    /// Make the stack pointer the processor's (not SS: the caller loads that). On
    /// a 16-bit stack the upper half of ESP stays what it was before the
    /// transfer, as processors do.
    pub fn commit(&self, cpu: &mut Cpu) {
        let rsp = &mut cpu.regs[reg::RSP];
        *rsp = match self.width {
            Width::Sp => *rsp & 0xffff_0000 | self.pointer & 0xffff,
            Width::Esp => self.pointer & 0xffff_ffff,
            Width::Rsp => self.pointer,
        };
    }
}

/// Whether a stack segment allows an access from `offset` to `last`.
fn segment_allows(cpu: &Cpu, s: &Segment, offset: u64, last: u64, write: bool) -> bool {
    if cpu.protected() {
        let data = s.kind() & 8 == 0;
        if !s.usable() || write && !(data && s.kind() & 2 != 0) {
            return false;
        }
    }
    let limit = u64::from(s.limit);
    let expand_down = s.kind() & 0xc == 4;
    if expand_down {
        let top = if s.big() { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top && offset <= last
    } else {
        last <= limit
    }
}
