//! System state across translated code: what SYSCALL, IRET, CLI and their like
//! need goes into the shared state on entry; what they changed comes back.

use std::sync::atomic::Ordering;

use interpreter::Cpu;
use x86_state::{InterruptShadow, Segment, cr4, efer, reg, rflags};

use crate::layout::{Asked, Crossing, NOWHERE, State, System};
use crate::modes::Kind;

const CS: u8 = 1;
const SS: u8 = 2;
const FS: u8 = 4;
const GS: u8 = 5;

/// Flags that SYSCALL must clear for translated code to execute it: the status
/// flags, and those that make the first instruction an unusual one.
const SYSCALL_CLEARS: u64 =
    rflags::STATUS | rflags::TF | rflags::IF | rflags::DF | rflags::NT | rflags::AC | rflags::IOPL;
/// Flags POPF may load that are neither status flags nor IF.
const UNUSUAL: u64 = rflags::TF | rflags::DF | rflags::IOPL | rflags::NT | rflags::AC | rflags::ID;
/// Highest GDT base with which no selector reaches beyond the upper half.
const GDT_TOP: u64 = u64::MAX - 0xffff;
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;

/// Constants that translated code finds in the state.
pub(crate) fn set_up(s: &mut State) {
    let s = &mut s.system;
    s.status_mask = rflags::STATUS;
    s.interrupt_mask = rflags::IF;
    s.overflow_mask = rflags::OF;
    s.unusual_mask = UNUSUAL;
    s.upper_mask = !0 << 47;
    s.resume_at = NOWHERE;
}

/// `Cpu` into the state, before translated code is entered at a new place. `counted`:
/// it comes back after each instruction.
pub(crate) fn export(s: &mut State, cpu: &Cpu, counted: bool) {
    s.fs_base = cpu.segments[usize::from(FS)].base;
    s.gs_base = cpu.segments[usize::from(GS)].base;
    let s = &mut s.system;
    let flags = cpu.system_flags;
    s.interrupt_flag = flags & rflags::IF;
    s.access_flag = flags & rflags::AC;
    s.other_flags = flags & !(rflags::IF | rflags::AC);
    s.resume_at = NOWHERE;
    s.counted = counted.into();
    s.crossing = Crossing::None as u32;
    s.shadow = 0;
    for (to, from) in s.selectors.iter_mut().zip(&cpu.segments) {
        *to = from.selector.into();
    }
    s.kernel_gs_base = cpu.msrs.kernel_gs_base;
    export_clock(s, cpu);
    s.cr = [cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4];
    s.lstar = cpu.msrs.lstar;
    let (call, ret) = ((cpu.msrs.star >> 32) as u16 & 0xfffc, (cpu.msrs.star >> 48) as u16);
    s.syscall_cs = call.into();
    s.syscall_ss = call.wrapping_add(8).into();
    s.sysret_cs = (ret.wrapping_add(16) | 3).into();
    s.sysret_ss = (ret.wrapping_add(8) | 3).into();
    s.syscall_keeps = !(cpu.msrs.sfmask | rflags::RF) | rflags::FIXED;
    let clears = cpu.msrs.sfmask & SYSCALL_CLEARS == SYSCALL_CLEARS;
    // Translated code notes where its branches are in case one leads to no canonical
    // address (`call_stack::note`); SYSCALL does not.
    let usable = cpu.efer & efer::SCE != 0 && clears && cpu.canonical(cpu.msrs.lstar);
    s.syscall_barred = u64::from(!usable);
    let gdt = cpu.gdtr.base;
    s.gdt_base = gdt;
    s.gdt_limit = cpu.gdtr.limit.into();
    let gdt_usable = (UPPER_HALF..=GDT_TOP).contains(&gdt) && gdt % 8 == 0;
    s.iret_barred = u64::from(cpu.nmi_blocked || !gdt_usable);
    let null = |n: usize| cpu.segments[n].selector == 0 && !cpu.segments[n].usable();
    s.user_iret_barred = u64::from(![0, 3, 4, 5].into_iter().all(null));
    s.fsgsbase_barred = u64::from(cpu.cr4 & cr4::FSGSBASE == 0);
}

/// How translated code reads the time. The clock stops only while no vCPU runs, and
/// everything else here changes only on the interpreter.
fn export_clock(s: &mut System, cpu: &Cpu) {
    let map = cpu.clock.tsc_of_host().filter(|_| cpu.cr4 & cr4::TSD == 0);
    s.tsc_ticks = map.map_or(0, |m| m.ticks);
    if let Some(m) = map {
        s.tsc_minus_origin = m.origin.wrapping_mul(8).wrapping_neg();
        s.tsc_offset = m.base.wrapping_add(cpu.tsc_offset);
        s.tsc_aux = cpu.msrs.tsc_aux as u32;
    }
}

/// What translated code changed into `Cpu`; general registers, status flags and
/// RIP are not its business. To be called after every exit: the engine decides by
/// privilege and flags.
pub(crate) fn sync(s: &mut State, cpu: &mut Cpu) {
    let gs = s.gs_base;
    if cpu.segments[usize::from(GS)].base != gs {
        cpu.set_segment(GS, Segment { base: gs, ..cpu.segments[usize::from(GS)] });
    }
    let fs = s.fs_base;
    if cpu.segments[usize::from(FS)].base != fs {
        cpu.set_segment(FS, Segment { base: fs, ..cpu.segments[usize::from(FS)] });
    }
    let s = &mut s.system;
    cpu.msrs.kernel_gs_base = s.kernel_gs_base;
    if s.crossing != Crossing::None as u32 {
        load_flat_segments(s.crossing, s.selectors[1] as u16, s.selectors[2] as u16, cpu);
        s.crossing = Crossing::None as u32;
    }
    let flags = s.interrupt_flag | s.access_flag | s.other_flags;
    if cpu.system_flags != flags {
        cpu.set_rflags(flags, !rflags::STATUS);
    }
}

/// After [`sync`], when `Cpu` goes on at `rip`: what holds for one instruction only.
pub(crate) fn sync_boundary(s: &mut State, cpu: &mut Cpu, rip: u64) {
    let between = std::mem::take(&mut s.string.between) != 0;
    let s = &mut s.system;
    if std::mem::replace(&mut s.resume_at, NOWHERE) == rip || between {
        cpu.set_rflags(rflags::RF, rflags::RF);
    }
    if std::mem::take(&mut s.shadow) != 0 {
        cpu.shadow = InterruptShadow::Sti;
    }
}

/// Give translated code what it left for, if it did: it goes on behind its exit's
/// payload. False: the interpreter's turn.
pub(crate) fn answer(s: &mut State, cpu: &Cpu) -> bool {
    let asked = std::mem::take(&mut s.system.asked);
    let allowed = cpu.cpl == 0 || cpu.cr4 & cr4::TSD == 0;
    // Virtual time counts instructions, which is done at their boundaries.
    if asked == 0 || !allowed || cpu.clock.is_virtual() {
        return false;
    }
    let now = cpu.clock.tsc().wrapping_add(cpu.tsc_offset);
    s.gpr[reg::RAX] = now & 0xffff_ffff;
    s.gpr[reg::RDX] = now >> 32;
    if asked == Asked::TimeStampAndId as u32 {
        s.gpr[reg::RCX] = cpu.msrs.tsc_aux & 0xffff_ffff;
    }
    true
}

fn load_flat_segments(crossing: u32, cs: u16, ss: u16, cpu: &mut Cpu) {
    let level = if crossing == Crossing::User as u32 { 3 << 5 } else { 0 };
    let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access: access | level };
    let stack = if crossing == Crossing::SupervisorNullStack as u32 {
        Segment { selector: ss, base: 0, limit: 0, access: Segment::UNUSABLE }
    } else {
        flat(ss, 0x93 | Segment::G | Segment::DB)
    };
    cpu.set_segment(CS, flat(cs, 0x9b | Segment::G | Segment::L));
    cpu.set_segment(SS, stack);
}

/// The address tables of each kind of access, and the number and class that links
/// are checked against.
pub(crate) fn set_views(s: &mut State, views: [[u64; 2]; 3], number: u32, class: u32, kind: Kind) {
    [s.table_load, s.table_store] = views[kind as usize];
    s.class = class;
    let space = |class: u32| (number << 2 | class).wrapping_neg();
    s.space = space(class);
    s.system.views = views;
    s.system.spaces = [space(0), space(1)];
}

/// From here on an event that comes up ends translated code again. `bits` reads
/// the attention word; answers what it said.
pub(crate) fn rearm(s: &State, bits: impl FnOnce() -> u32) -> u32 {
    s.token.store(1, Ordering::SeqCst);
    s.system.pending.store(0, Ordering::SeqCst);
    let bits = bits();
    if bits != 0 {
        s.system.pending.store(1, Ordering::SeqCst);
    }
    bits
}
