//! Delivery of faults, traps, interrupts and software interrupts in every mode
//! (SDM volume 3, chapter 7; volume 2, INT n).

use x86_mmu::{Descriptor, Gate, system_type};
use x86_state::{Activity, Exception, Segment, cr0, cr4, debugctl, dr6, dr7, reg, rflags, vector};

use super::selector::{CS, DS, ES, EXT, FS, GS, SS, is_null, null_segment};
use super::stack::{Stack, Width};
use super::task::{Reason, TaskSwitch};
use crate::cpu::{Cpu, Privilege, Step, Stop};

/// How an event came up, as far as delivery depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A fault: the pushed image has RF set.
    Fault,
    /// An instruction breakpoint: a fault whose image has RF as it was.
    Breakpoint,
    /// An external interrupt, NMI, trap or ICEBP.
    External,
    /// INT n, INT3 or INTO: the gate's DPL is checked and error codes have no EXT.
    Software,
}

/// One event on its way through the IDT.
#[derive(Debug, Clone, Copy)]
struct Event {
    vector: u8,
    error_code: Option<u32>,
    source: Source,
}

impl Event {
    fn ext(&self) -> u32 {
        if self.source == Source::Software { 0 } else { EXT }
    }

    /// Error code that names this event's IDT entry.
    fn idt_error(&self, ext: u32) -> u32 {
        u32::from(self.vector) << 3 | 2 | ext
    }
}

/// Deliver [`Cpu::fault`]. RIP is that of the faulting instruction.
///
/// # Errors
/// [`Stop::Shutdown`] on a triple fault.
pub(crate) fn deliver_fault(cpu: &mut Cpu) -> Step {
    let event = event_of(cpu, cpu.fault);
    deliver(cpu, event)
}

/// Deliver an external interrupt with the vector the controller gave.
///
/// # Errors
/// [`Stop::Shutdown`] on a triple fault.
pub(crate) fn deliver_interrupt(cpu: &mut Cpu, vector: u8) -> Step {
    cpu.activity = Activity::Active;
    deliver(cpu, Event { vector, error_code: None, source: Source::External })
}

/// Deliver an NMI and block further ones until IRET.
///
/// # Errors
/// [`Stop::Shutdown`] on a triple fault.
pub(crate) fn deliver_nmi(cpu: &mut Cpu) -> Step {
    cpu.activity = Activity::Active;
    cpu.nmi_blocked = true;
    deliver(cpu, Event { vector: vector::NMI, error_code: None, source: Source::External })
}

/// Deliver the debug traps collected in [`Cpu::pending_debug`] as one #DB.
///
/// # Errors
/// [`Stop::Shutdown`] on a triple fault.
pub(crate) fn deliver_debug_trap(cpu: &mut Cpu) -> Step {
    let bits = std::mem::take(&mut cpu.pending_debug);
    record_debug(cpu, bits);
    deliver(cpu, Event { vector: vector::DB, error_code: None, source: Source::External })
}

/// Deliver an event from an instruction that raises it by design, RIP being
/// behind it: INT n, INT3, INTO (`software`) or INT1.
pub(super) fn deliver_by_instruction(cpu: &mut Cpu, vector: u8, software: bool) -> Step {
    let source = if software { Source::Software } else { Source::External };
    let task = cpu.tr.selector;
    match try_deliver(cpu, Event { vector, error_code: None, source }) {
        // A fault of the instruction itself, no task switch having taken place.
        Err(Stop::Fault) if cpu.tr.selector == task => return Err(Stop::Fault),
        Err(Stop::Fault) => deliver_fault(cpu)?,
        other => other?,
    }
    cpu.step_trap = false;
    Err(Stop::Resync)
}

/// INT1. Debug traps that MOV SS held off are reported by the same #DB.
pub(super) fn deliver_icebp(cpu: &mut Cpu) -> Step {
    let held = std::mem::take(&mut cpu.pending_debug);
    let step = deliver_by_instruction(cpu, vector::DB, false);
    if held != 0 && step == Err(Stop::Resync) {
        record_debug(cpu, held);
    }
    step
}

/// Set DR6 as delivery of #DB does: the condition bits of this event replace
/// those of the last, BD, BS and BT accumulate.
fn record_debug(cpu: &mut Cpu, bits: u64) {
    cpu.dr6 = cpu.dr6 & !0xf | bits & (0xf | dr6::BD | dr6::BS | dr6::BT) | dr6::FIXED;
    cpu.dr7 &= !dr7::GD;
    // Branch trapping and recording end with a debug exception (SDM volume 3, 18.4).
    cpu.msrs.debugctl &= !(debugctl::LBR | debugctl::BTF);
    cpu.debug_registers_changed();
}

/// Note what an exception leaves in CR2 or DR6 and how it is delivered.
fn event_of(cpu: &mut Cpu, e: Exception) -> Event {
    let mut source = Source::Fault;
    match e.vector {
        vector::PF => cpu.cr2 = e.payload,
        // One whose delivery another engine has begun: DR6 has it already.
        vector::DB if e.payload == 0 => source = Source::External,
        vector::DB => {
            record_debug(cpu, e.payload);
            if e.payload & dr6::BD == 0 {
                source = Source::Breakpoint;
            }
        }
        // Aborts, traps and acknowledged interrupts that come this way keep RF.
        vector::DF | vector::MC | vector::NMI | vector::BP | vector::OF | 32.. => source = Source::External,
        _ => {}
    }
    Event { vector: e.vector, error_code: e.error_code, source }
}

/// Classes of exceptions for double-fault recognition (SDM volume 3, table 7-4).
#[derive(PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class_of(event: &Event) -> Class {
    if matches!(event.source, Source::External | Source::Software) && event.vector != vector::DF {
        return Class::Benign;
    }
    match event.vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

fn deliver(cpu: &mut Cpu, mut event: Event) -> Step {
    loop {
        match try_deliver(cpu, event) {
            Err(Stop::Fault) => {}
            other => return other,
        }
        let second = event_of(cpu, cpu.fault);
        let (first, then) = (class_of(&event), class_of(&second));
        event = match (first, then) {
            (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
                cpu.activity = Activity::Shutdown;
                return Err(Stop::Shutdown);
            }
            (Class::Contributory, Class::Contributory)
            | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                Event { vector: vector::DF, error_code: Some(0), source: Source::External }
            }
            _ => second,
        };
    }
}

/// The RFLAGS image an event pushes.
fn flags_image(cpu: &Cpu, event: &Event) -> u64 {
    let flags = cpu.rflags();
    if event.source == Source::Fault { flags | rflags::RF } else { flags }
}

/// One attempt: nothing has changed on a fault, unless a task switch was
/// already complete.
fn try_deliver(cpu: &mut Cpu, event: Event) -> Step {
    cpu.leave_at = 0;
    if cpu.cr0 & cr0::PE == 0 {
        return deliver_real(cpu, &event);
    }
    if cpu.long_mode() {
        return deliver_long(cpu, &event);
    }
    deliver_protected(cpu, &event)
}

/// Through the interrupt vector table of real-address mode.
fn deliver_real(cpu: &mut Cpu, event: &Event) -> Step {
    let entry = u64::from(event.vector) * 4;
    if entry + 3 > u64::from(cpu.idtr.limit) {
        let error = event.idt_error(event.ext());
        return Err(cpu.gp(error));
    }
    let target = cpu.read_linear::<u32>(cpu.idtr.base.wrapping_add(entry), Privilege::System)?;
    let selector = (target >> 16) as u16;
    let mut stack = Stack::current(cpu);
    let old_cs = u64::from(cpu.segments[usize::from(CS)].selector);
    stack.push_all(cpu, 2, &[flags_image(cpu, event), old_cs, cpu.rip()])?;
    let cs = cpu.real_segment(CS, selector);
    stack.commit(cpu);
    cpu.set_segment(CS, cs);
    cpu.set_rip((target & 0xffff).into());
    cpu.set_rflags(0, rflags::IF | rflags::TF | rflags::AC | rflags::RF);
    Ok(())
}

impl Cpu {
    /// The IDT entry of an event after the checks every kind of gate shares.
    fn check_gate(&mut self, event: &Event, wide: bool) -> Result<Descriptor, Stop> {
        let bytes = if wide { 16 } else { 8 };
        let entry = u64::from(event.vector) * bytes;
        if entry + bytes - 1 > u64::from(self.idtr.limit) {
            let error = event.idt_error(event.ext());
            return Err(self.gp(error));
        }
        let address = self.idtr.base.wrapping_add(entry);
        let low = self.read_table(address)?;
        let d = if wide {
            let high = self.read_table(address.wrapping_add(8))?;
            Descriptor::parse_wide(u128::from(low) | u128::from(high) << 64)
        } else {
            Descriptor::parse(low)
        };
        use system_type::{INTERRUPT_GATE, INTERRUPT_GATE16, TASK_GATE, TRAP_GATE, TRAP_GATE16};
        let valid = match d.kind() {
            INTERRUPT_GATE | TRAP_GATE => true,
            INTERRUPT_GATE16 | TRAP_GATE16 | TASK_GATE => !wide,
            _ => false,
        };
        if !valid || !d.is_system() {
            let error = event.idt_error(event.ext());
            return Err(self.gp(error));
        }
        if event.source == Source::Software && d.dpl() < self.cpl {
            return Err(self.gp(event.idt_error(0)));
        }
        if !d.is_present() {
            return Err(self.raise(vector::NP, Some(event.idt_error(event.ext()))));
        }
        Ok(d)
    }

    /// The code segment of an interrupt or trap gate and the level it runs at.
    fn check_handler(&mut self, gate: &Gate, ext: u32) -> Result<(Segment, u8), Stop> {
        if is_null(gate.selector) {
            return Err(self.gp(ext));
        }
        let found = self.fetch_descriptor(gate.selector, vector::GP, ext)?;
        let d = found.descriptor;
        let wrong_size = self.long_mode() && (!d.is_long() || d.is_big());
        if !d.is_code() || d.dpl() > self.cpl || wrong_size {
            return Err(self.selector_fault(vector::GP, gate.selector, ext));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, gate.selector, ext));
        }
        let level = if d.is_conforming() { self.cpl } else { d.dpl() };
        // Virtual-8086 mode is left for level 0 only.
        if self.v86() && level != 0 {
            return Err(self.selector_fault(vector::GP, gate.selector, ext));
        }
        let cs = self.accessed_segment(&found, gate.selector & !3 | u16::from(level))?;
        Ok((cs, level))
    }

    /// Flags after entry through a gate: interrupt gates mask interrupts.
    fn clear_flags_on_entry(&mut self, kind: u8) {
        let interrupt_gate = kind & 1 == 0;
        let mut cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        if interrupt_gate {
            cleared |= rflags::IF;
        }
        self.set_rflags(0, cleared);
    }
}

/// Through a 16- or 32-bit interrupt, trap or task gate.
fn deliver_protected(cpu: &mut Cpu, event: &Event) -> Step {
    let d = cpu.check_gate(event, false)?;
    let ext = event.ext();
    let image = flags_image(cpu, event);
    if d.kind() == system_type::TASK_GATE {
        let selector = d.gate().selector;
        let switch = TaskSwitch { selector, reason: Reason::Event, ext, error_code: event.error_code };
        return cpu.switch_task_saving(switch, image)?;
    }
    let wide = d.kind() & 8 != 0;
    let gate = if wide { Gate { offset: d.gate().offset & 0xffff_ffff, ..d.gate() } } else { d.gate16() };
    let size = if wide { 4 } else { 2 };
    let (cs, level) = cpu.check_handler(&gate, ext)?;
    let from_v86 = cpu.v86();
    let inner = level < cpu.cpl;
    let mut stack =
        if inner { cpu.inner_stack(level, ext, None)? } else { Stack::current(cpu).with_error(ext) };
    if from_v86 {
        let outer = [GS, FS, DS, ES].map(|n| u64::from(cpu.segments[usize::from(n)].selector));
        stack.push_all(cpu, size, &outer)?;
    }
    if inner {
        let old_ss = u64::from(cpu.segments[usize::from(SS)].selector);
        stack.push_all(cpu, size, &[old_ss, cpu.regs[reg::RSP]])?;
    }
    let old_cs = u64::from(cpu.segments[usize::from(CS)].selector);
    stack.push_all(cpu, size, &[image, old_cs, cpu.rip()])?;
    if let Some(error) = event.error_code {
        stack.push(cpu, size, error.into())?;
    }
    cpu.check_far_target(&cs, gate.offset, ext)?;

    cpu.clear_flags_on_entry(d.kind());
    cpu.set_segment(CS, cs);
    if inner {
        cpu.set_segment(SS, stack.segment);
    }
    if from_v86 {
        for index in [ES, DS, FS, GS] {
            cpu.set_segment(index, null_segment(0, 0));
        }
    }
    stack.commit(cpu);
    cpu.set_rip(gate.offset);
    Ok(())
}

/// Through a 64-bit interrupt or trap gate.
fn deliver_long(cpu: &mut Cpu, event: &Event) -> Step {
    let d = cpu.check_gate(event, true)?;
    let ext = event.ext();
    let gate = d.gate();
    let (cs, level) = cpu.check_handler(&gate, ext)?;
    let inner = level < cpu.cpl;
    let ist = (gate.ist != 0).then_some(gate.ist);
    let mut stack = if inner || ist.is_some() {
        let new = cpu.inner_stack(level, ext, ist)?;
        if inner { new } else { Stack::inner(cpu.segments[usize::from(SS)], new.pointer, Width::Rsp, ext) }
    } else {
        Stack::current(cpu).in_long_mode().with_error(ext)
    };
    stack.pointer &= !0xf;
    let old_cs = u64::from(cpu.segments[usize::from(CS)].selector);
    let old_ss = u64::from(cpu.segments[usize::from(SS)].selector);
    let image = flags_image(cpu, event);
    stack.push_all(cpu, 8, &[old_ss, cpu.regs[reg::RSP], image, old_cs, cpu.rip()])?;
    if let Some(error) = event.error_code {
        stack.push(cpu, 8, error.into())?;
    }
    cpu.check_far_target(&cs, gate.offset, ext)?;

    cpu.clear_flags_on_entry(d.kind());
    cpu.set_segment(CS, cs);
    if inner {
        cpu.set_segment(SS, stack.segment);
    }
    stack.commit(cpu);
    cpu.set_rip(gate.offset);
    Ok(())
}

/// Where a 32-bit TSS holds the offset of its I/O permission bitmap.
const IO_MAP_BASE: u64 = 0x66;

/// INT n in virtual-8086 mode with CR4.VME: if the redirection bitmap sends
/// `vector` to the 8086 program's own handler, go there (SDM volume 3, 21.3.3).
/// Returns false if the interrupt takes the normal way.
pub(super) fn redirect_v86_interrupt(cpu: &mut Cpu, vector: u8) -> Result<bool, Stop> {
    let limit = u64::from(cpu.tr.limit);
    if cpu.tr.kind() & 8 == 0 || limit < IO_MAP_BASE + 1 {
        return Err(cpu.gp(0));
    }
    let base = cpu.tr.base;
    let map = u64::from(cpu.read_linear::<u16>(base.wrapping_add(IO_MAP_BASE), Privilege::System)?);
    let at = map.wrapping_sub(32).wrapping_add(u64::from(vector >> 3));
    if at > limit {
        return Err(cpu.gp(0));
    }
    let bits = cpu.read_linear::<u8>(base.wrapping_add(at), Privilege::System)?;
    if bits >> (vector & 7) & 1 != 0 {
        return Ok(false);
    }
    let target = cpu.read_linear::<u32>(u64::from(vector) * 4, Privilege::Current)?;
    let iopl3 = cpu.system_flags & rflags::IOPL == rflags::IOPL;
    let mut image = cpu.rflags();
    if !iopl3 {
        let virtual_if = image & rflags::VIF != 0;
        image = image & !rflags::IF | rflags::IOPL | if virtual_if { rflags::IF } else { 0 };
    }
    let mut stack = Stack::current(cpu);
    let old_cs = u64::from(cpu.segments[usize::from(CS)].selector);
    stack.push_all(cpu, 2, &[image, old_cs, cpu.rip()])?;
    stack.commit(cpu);
    let cs = cpu.real_segment(CS, (target >> 16) as u16);
    cpu.set_segment(CS, cs);
    cpu.set_rip((target & 0xffff).into());
    let masked = if iopl3 { rflags::IF } else { rflags::VIF };
    cpu.set_rflags(0, masked | rflags::TF | rflags::NT | rflags::RF);
    Ok(true)
}

/// CR4.VME with virtual-8086 mode.
pub(super) fn v86_extensions(cpu: &Cpu) -> bool {
    cpu.v86() && cpu.cr4 & cr4::VME != 0
}
