//! What the processor's state means for translated code.

use interpreter::Cpu;
use x86_state::{Feature, Segment, cr0, cr4, rflags, xcr0};

use crate::block::{Mode, Variant};
use crate::spaces::ContextKey;

const ES: usize = 0;
const CS: usize = 1;
const SS: usize = 2;
const DS: usize = 3;
const FS: usize = 4;
const GS: usize = 5;

/// Privilege of accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    User = 0,
    Supervisor = 1,
    SupervisorAc = 2,
}

/// Privilege of the program's own accesses.
pub(crate) fn kind(cpu: &Cpu) -> Kind {
    if cpu.cpl == 3 {
        Kind::User
    } else if cpu.cr4 & cr4::SMAP != 0 && cpu.system_flags & rflags::AC != 0 {
        Kind::SupervisorAc
    } else {
        Kind::Supervisor
    }
}

/// The current address space.
pub(crate) fn context(cpu: &Cpu) -> ContextKey {
    if cpu.cr4 & cr4::PCIDE != 0 {
        ContextKey::Pcid((cpu.cr3 & 0xfff) as u16)
    } else {
        // The low bits are cache attributes.
        ContextKey::Root(cpu.cr3 & !0x1f)
    }
}

/// What translated code may assume now.
pub(crate) fn mode(cpu: &Cpu, longest: u8) -> Mode {
    let no_coprocessor = cpu.cr0 & (cr0::EM | cr0::TS) != 0;
    let sse = !no_coprocessor && cpu.cr4 & cr4::OSFXSR != 0;
    let avx_state = xcr0::SSE | xcr0::AVX;
    let narrow = !cpu.long64();
    Mode {
        x87: !no_coprocessor,
        sse,
        avx: sse
            && cpu.cr4 & cr4::OSXSAVE != 0
            && cpu.xcr0 & avx_state == avx_state
            && cpu.model.has(Feature::Avx),
        user: cpu.cpl == 3,
        narrow,
        fs: narrow && whole(&cpu.segments[FS]),
        gs: narrow && whole(&cpu.segments[GS]),
        variant: Variant::Usual,
        longest,
    }
}

/// 64-bit code that can be translated. What is translated for the supervisor does what
/// only CPL 0 may; nobody uses CPL 1 and 2.
pub(crate) fn wide(cpu: &Cpu) -> bool {
    cpu.cr4 & cr4::LA57 == 0 && matches!(cpu.cpl, 0 | 3)
}

/// 32-bit code that can be translated: protected or compatibility mode with a
/// 32-bit stack and flat segments.
pub(crate) fn narrow(cpu: &Cpu) -> bool {
    let (cs, ss) = (&cpu.segments[CS], &cpu.segments[SS]);
    let code = cs.kind() & 8 != 0 && cs.big() && cs.base == 0 && cs.limit == u32::MAX && present(cs);
    let flat = |s: &Segment| s.base == 0 && whole(s);
    cpu.protected()
        && !cpu.v86()
        && code
        && flat(ss)
        && ss.big()
        && flat(&cpu.segments[DS])
        && flat(&cpu.segments[ES])
}

fn present(s: &Segment) -> bool {
    const ORDINARY: u32 = Segment::PRESENT | Segment::S;
    s.usable() && s.access & ORDINARY == ORDINARY
}

/// Writable data that grows upwards, 4 GiB of it.
fn whole(s: &Segment) -> bool {
    present(s) && s.kind() & 0b1110 == 0b0010 && s.limit == u32::MAX
}
