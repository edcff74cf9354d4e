//! Instructions that run as themselves, with registers renamed and the memory
//! operand replaced by the looked-up host address.

use iced_x86::{EncodingKind, Instruction, MemorySize, Mnemonic, OpAccess, OpKind, Register};

use super::Builder;
use super::access::{Access, Found, Place, gpr_number};
use super::facts::{Facts, Known};
use super::few::Few;
use super::homes::{at_home, home};
use super::stack::SP;
use crate::emit::Mem;
use crate::layout::{Exit, PINNED, gpr_home, gs, host};

/// A guest register that visits a scratch register for one instruction.
#[derive(Debug, Default, Clone, Copy)]
struct Visitor {
    guest: u8,
    host: u8,
    load: bool,
    store: bool,
}

/// A general register that an instruction names: its number, what happens to it, and
/// whether its old value matters.
type Explicit = (u8, OpAccess, bool);

/// Guest registers that live in the state, a bit each.
const IN_STATE: u16 = {
    let (mut registers, mut n) = (0, 0);
    while n < 16 {
        if PINNED[n].is_none() {
            registers |= 1 << n;
        }
        n += 1;
    }
    registers
};

/// [`PINNED`] for instructions that name no others.
pub(super) const HOSTS: [u8; 16] = {
    let (mut hosts, mut n) = ([0; 16], 0);
    while n < 16 {
        if let Some(host) = PINNED[n] {
            hosts[n] = host;
        }
        n += 1;
    }
    hosts
};

/// Guest registers that are not the host's of the same number, a bit each.
const ELSEWHERE: u16 = {
    let (mut registers, mut n) = (0, 0);
    while n < 16 {
        if HOSTS[n] != n as u8 || PINNED[n].is_none() {
            registers |= 1 << n;
        }
        n += 1;
    }
    registers
};

/// What became of a memory operand.
enum Looked {
    Up(Found),
    /// It and its instruction have been emitted.
    Done,
    /// It is the interpreter's.
    Never,
}

/// Number of guest RSP.
const RSP: u32 = 4;

/// What an instruction does with general registers.
#[derive(Default)]
struct Uses {
    explicit: Few<Explicit>,
    /// RCX is used without being named.
    implicit_rcx: Option<OpAccess>,
    /// A moved register other than RCX is used without being named.
    hidden: bool,
    high_byte: bool,
}

pub(super) fn host_register(number: u8, like: Register) -> Register {
    let n = u32::from(number);
    let base = match like.size() {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        _ if is_high_byte(like) => return high_byte(number),
        // AL CL DL BL, then SPL.. and R8L..
        _ => match number {
            0..=3 => return Register::AL + n,
            _ => return Register::SPL + (n - 4),
        },
    };
    base + n
}

fn high_byte(number: u8) -> Register {
    Register::AH + u32::from(number & 3)
}

pub(super) fn is_high_byte(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

pub(super) fn writes(a: OpAccess) -> bool {
    matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

impl Builder<'_> {
    /// Emit one instruction. False: the interpreter's.
    pub(super) fn copy(&mut self, i: &Instruction, known: &Known) -> bool {
        let facts = &known.facts;
        if facts.hidden {
            return false;
        }
        // Most instructions name registers that hosts hold alone, and that is all.
        let simple = facts.rcx.is_none() && !known.high_byte && known.named & IN_STATE == 0;
        let memory = facts.memory(i);
        let done = match memory {
            _ if !simple => self.copy_with_visitors(i, facts, memory),
            Some(_) => self.copy_with_operand(i, known),
            None => {
                self.now_held = self.held;
                self.repeat(i, known) || self.place_at_home(i, known, None)
            }
        };
        if done && known.written >> RSP & 1 != 0 {
            self.stack_aligned = self.stack_aligned && keeps_alignment(i, self.r.mode.narrow);
        }
        done
    }

    /// Emit the guest's own bytes, if they say the same here. False: they may not.
    fn repeat(&mut self, i: &Instruction, known: &Known) -> bool {
        // Renamed where the model has no such instruction.
        let renamed = !(self.r.features.bmi && self.r.features.lzcnt);
        if known.named & ELSEWHERE != 0 || known.odd || renamed || self.r.mode.narrow {
            return false;
        }
        let at = i.ip().wrapping_sub(self.r.va) as usize;
        let Some(bytes) = self.r.bytes.get(at..).and_then(|b| b.first_chunk()) else { return false };
        self.e.some_bytes(*bytes, i.len());
        true
    }

    /// Emit an instruction with a memory operand that names no registers but those that
    /// hosts hold.
    fn copy_with_operand(&mut self, i: &Instruction, known: &Known) -> bool {
        let window = self.windowed();
        match self.operand(i, &known.facts, window) {
            Looked::Up(found) => self.place_at_home(i, known, Some(&found.mem())),
            Looked::Done => true,
            Looked::Never => false,
        }
    }

    /// Look the operand up, unless it is in this window.
    #[inline(always)]
    fn operand(&mut self, i: &Instruction, facts: &Facts, window: Option<Found>) -> Looked {
        if let Some(found) = window {
            return Looked::Up(found);
        }
        let size = usize::from(facts.size);
        let Some(access) = facts.accessed else { return Looked::Never };
        let aligned = self.is_aligned(i, size);
        if access == Access::Load && self.chase(i, aligned) {
            return Looked::Done;
        }
        match self.address(i).and_then(|place| self.look_up(access, place, size, aligned)) {
            Some(found) => Looked::Up(found),
            None => Looked::Never,
        }
    }

    /// Emit an instruction some of whose registers are not where it can name them.
    fn copy_with_visitors(&mut self, i: &Instruction, facts: &Facts, memory: Option<u32>) -> bool {
        let rewritten = if memory.is_none() { at_home(i, facts) } else { None };
        let source = rewritten.as_ref().unwrap_or(i);
        let uses = uses(source, facts);
        if uses.hidden {
            return false;
        }
        let window = if memory.is_some() { self.windowed() } else { None };
        // A window's operand leaves ADDRESS free; so does no operand. TEMP comes
        // last: it may hold a window.
        let free: &[u8] = match (memory, window) {
            (None, _) => &[host::ADDRESS, host::TEMP],
            (Some(_), Some(_)) if uses.implicit_rcx.is_none() && !uses.high_byte => &[host::ADDRESS],
            _ => &[host::TEMP],
        };
        let Some(visitors) = visitors(&uses, free) else { return false };
        let needs_temp = uses.implicit_rcx.is_some() || visitors.iter().any(|v| v.host == host::TEMP);
        let mut operand = rewritten.as_ref().map(home);
        if memory.is_some() {
            let found = match self.operand(i, facts, window) {
                Looked::Up(found) => found,
                Looked::Done => return true,
                Looked::Never => return false,
            };
            operand = Some(found.mem());
            if needs_temp {
                self.fold(found);
                operand = Some(Mem::base(host::ADDRESS, 0));
            }
        }
        let mut hosts = HOSTS;
        for v in visitors.iter() {
            hosts[usize::from(v.guest & 15)] = v.host;
        }
        for v in visitors.iter().filter(|v| v.load) {
            let guest = usize::from(v.guest);
            match PINNED[guest] {
                Some(h) => self.e.mov(v.host, h),
                None => self.e.load(v.host, Mem::gs(gpr_home(guest))),
            }
        }
        if !self.place(source, &hosts, operand.as_ref()) {
            return false;
        }
        for v in visitors.iter().filter(|v| v.store) {
            let guest = usize::from(v.guest);
            match PINNED[guest] {
                Some(h) => self.e.mov(h, v.host),
                None => self.e.store(Mem::gs(gpr_home(guest)), v.host),
            }
        }
        if needs_temp {
            self.now_held = None;
        } else if memory.is_none() {
            self.now_held = self.held;
        }
        true
    }

    /// Whether the memory operand is known to be a multiple of its size.
    fn is_aligned(&self, i: &Instruction, size: usize) -> bool {
        self.stack_slot(i, size) || checks_alignment(i, size) || self.s.alignment.of(usize::from(self.index))
    }

    /// PAUSE, counted: a vCPU that waits long leaves, so that its thread can yield.
    pub(super) fn pause(&mut self) {
        self.e.load(host::TEMP, Mem::gs(gs!(pauses)));
        self.if_zero_leave(Exit::Interpret, Place::Register(host::ADDRESS, 0));
        self.e.lea(host::TEMP, Mem::base(host::TEMP, -1));
        self.e.store(Mem::gs(gs!(pauses)), host::TEMP);
        self.e.bytes(&[0xf3, 0x90]);
    }

    /// LEA.
    pub(super) fn any_lea(&mut self, i: &Instruction) -> bool {
        if self.r.mode.narrow { self.narrow_lea(i) } else { self.lea(i) }
    }

    /// LEA: an address without an access; no bias.
    fn lea(&mut self, i: &Instruction) -> bool {
        let Some(to) = gpr_number(i.op0_register()) else { return false };
        let wide = i.op0_register().size();
        let narrow_address = i.memory_base().size() == 4 || i.memory_index().size() == 4;
        if wide == 2 || narrow_address || i.memory_base() == Register::EIP {
            return false;
        }
        let target = PINNED[to].unwrap_or(host::ADDRESS);
        if gpr_number(i.memory_index()).is_none_or(|n| PINNED[n].is_some()) {
            self.now_held = self.held;
        }
        let emit = |b: &mut Self, m: Mem| if wide == 8 { b.e.lea(target, m) } else { b.e.lea32(target, m) };
        if i.memory_base() == Register::RIP
            || i.memory_base() == Register::None && i.memory_index() == Register::None
        {
            let v = i.memory_displacement64();
            self.e.mov_imm(target, if wide == 8 { v } else { v & 0xffff_ffff });
        } else {
            let place = |b: &mut Self, r: Register, scratch: u8| {
                let n = gpr_number(r)?;
                Some(PINNED[n].unwrap_or_else(|| {
                    b.e.load(scratch, Mem::gs(gpr_home(n)));
                    scratch
                }))
            };
            let base = place(self, i.memory_base(), host::ADDRESS);
            let index = place(self, i.memory_index(), host::TEMP);
            let scale = i.memory_index_scale().trailing_zeros() as u8;
            let m = Mem {
                gs: false,
                base,
                index: index.map(|x| (x, scale)),
                disp: i.memory_displacement64() as i32,
            };
            emit(self, m);
        }
        match PINNED[to] {
            None => self.e.store(Mem::gs(gpr_home(to)), host::ADDRESS),
            Some(SP) => {
                let by = i.memory_displacement64() % 8 == 0
                    && i.memory_base() == Register::RSP
                    && i.memory_index() == Register::None;
                self.stack_aligned &= by && wide == 8;
            }
            Some(_) => {}
        }
        true
    }
}

/// General registers an instruction touches beyond its memory operand's address.
fn uses(i: &Instruction, facts: &Facts) -> Uses {
    let mut u = Uses { implicit_rcx: facts.rcx, hidden: facts.hidden, ..Uses::default() };
    for n in 0..i.op_count() {
        if i.op_kind(n) == OpKind::Register {
            let r = i.op_register(n);
            if let Some(g) = gpr_number(r) {
                u.high_byte |= is_high_byte(r);
                if !facts.is_count(n) && !is_fixed_accumulator(i, n) {
                    let access = facts.access[n as usize];
                    // All of the register is replaced: 32-bit writes clear the rest.
                    // BSF and BSR leave it alone where there is no bit.
                    let fresh = access == OpAccess::Write
                        && r.size() >= 4
                        && !matches!(i.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
                    u.hidden |= !u.explicit.push((g as u8, access, !fresh));
                }
            }
        }
    }
    u
}

/// Choose scratch registers for what is not in a usable host register.
fn visitors(u: &Uses, free: &[u8]) -> Option<Few<Visitor>> {
    let mut taken = [false; 2];
    let mut list: Few<Visitor> = Few::default();
    if let Some(access) = u.implicit_rcx {
        for (taken, f) in taken.iter_mut().zip(free) {
            *taken = *f == host::TEMP;
        }
        let _ = list.push(Visitor { guest: 1, host: host::TEMP, load: true, store: writes(access) });
    }
    for (guest, access, load) in u.explicit.iter() {
        if let Some(v) = list.iter_mut().find(|v| v.guest == *guest) {
            v.store |= writes(*access);
            v.load |= load;
            continue;
        }
        if PINNED[usize::from(*guest)].is_some_and(|h| !u.high_byte || h < 4) {
            continue;
        }
        // A high byte excludes REX, and with it RDI's low byte.
        let (host, taken) =
            free.iter().zip(&mut taken).find(|(f, taken)| !**taken && (!u.high_byte || **f < 4))?;
        *taken = true;
        let _ = list.push(Visitor { guest: *guest, host: *host, load: *load, store: writes(*access) });
    }
    Some(list)
}

/// The processor itself faults where the operand is not a multiple of its size:
/// it cannot cross a page.
pub(super) fn checks_alignment(i: &Instruction, size: usize) -> bool {
    use Mnemonic as M;
    if size < 16 {
        return false;
    }
    let legacy = size == 16
        && i.encoding() == EncodingKind::Legacy
        && !matches!(i.mnemonic(), M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Cmpxchg16b)
        && !is_string_compare(i);
    let named = matches!(
        i.mnemonic(),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
    );
    let vector =
        (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_vector_register());
    vector && (legacy || named)
}

/// PCMPxSTRx: no alignment check.
fn is_string_compare(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpistri | M::Pcmpistrm
    )
}

/// Nothing to do, and no access to check.
pub(super) fn is_hint(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Nop
            | Mnemonic::Endbr64
            | Mnemonic::Endbr32
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetch
    )
}

/// RSP stays a multiple of 8 (ESP in 32-bit code of 4): adding or subtracting one.
fn keeps_alignment(i: &Instruction, narrow: bool) -> bool {
    use OpKind as K;
    let (register, word) = if narrow { (Register::ESP, 4) } else { (Register::RSP, 8) };
    matches!(i.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::And)
        && matches!(i.op1_kind(), K::Immediate8to64 | K::Immediate32to64 | K::Immediate8to32 | K::Immediate32)
        && i.op0_register() == register
        && i.immediate(1) % word == 0
}

/// The operand that is CL as a shift's count: the encoding's, not a choice.
pub(super) fn shift_count(i: &Instruction) -> Option<u8> {
    is_shift_by_cl(i).then(|| i.op_count() as u8 - 1)
}

fn is_shift_by_cl(i: &Instruction) -> bool {
    let last = i.op_count().wrapping_sub(1);
    i.encoding() == EncodingKind::Legacy
        && matches!(
            i.mnemonic(),
            Mnemonic::Shl
                | Mnemonic::Shr
                | Mnemonic::Sar
                | Mnemonic::Sal
                | Mnemonic::Rol
                | Mnemonic::Ror
                | Mnemonic::Rcl
                | Mnemonic::Rcr
                | Mnemonic::Shld
                | Mnemonic::Shrd
        )
        && i.op_count() > 1
        && i.op_kind(last) == OpKind::Register
        && i.op_register(last) == Register::CL
}

/// RCX is part of the encoding.
pub(super) fn fixed_rcx(i: &Instruction) -> bool {
    is_shift_by_cl(i) || matches!(i.mnemonic(), Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b)
}

/// AL, AX, EAX or RAX that the encoding fixes: it is where it belongs already.
fn is_fixed_accumulator(i: &Instruction, n: u32) -> bool {
    gpr_number(i.op_register(n)) == Some(0) && !is_high_byte(i.op_register(n))
}

/// Bytes the memory operand touches, as far as a page crossing matters.
pub(super) fn access_size(i: &Instruction) -> Option<usize> {
    match i.memory_size() {
        MemorySize::Unknown => None,
        s => match s.size() {
            n @ 1..=64 => Some(n),
            _ => None,
        },
    }
}
