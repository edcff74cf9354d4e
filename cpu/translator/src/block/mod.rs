//! One block: guest instructions in, host code out.
//!
//! Every guest instruction becomes a run of host instructions that either
//! completes it or leaves everything as it was: table look-ups and probes come
//! first, the one instruction that changes guest state last. So a miss or a
//! host fault anywhere in it means "this instruction has not happened", and
//! code after its first change (a register's home being stored) cannot fault.
//! Nothing but guest instructions touches the host's flags.

mod access;
mod alignment;
mod bits;
pub(crate) mod chase;
mod classify;
mod control;
mod copy;
#[cfg(test)]
mod cost;
mod facts;
mod few;
mod homes;
mod narrow;
#[cfg(test)]
mod reach;
mod shape;
mod stack;
mod string;
mod system;
mod template;
mod unroll;
mod vigilant;
mod windows;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Encoder, FlowControl, Instruction};

use copy::host_register;
use facts::{FactTable, Facts, Known, Route};

use crate::emit::{Emitter, Mem};
use crate::foresight::Foresight;
use crate::layout::{Exit, gs, host};
use crate::string_thunks::StringThunks;
use crate::system_thunks::SystemThunks;
use crate::thunks::Thunks;

pub(crate) use classify::HostFeatures;
pub(crate) const WINDOW_SPAN: usize = windows::SPAN as usize;

/// Most guest instructions in a block.
pub(crate) const MAX_INSTRUCTIONS: usize = 64;

/// Bytes of a stub: a call and one byte that says what for.
const STUB: usize = 6;

/// Conditional branches that a block goes on behind.
const MAX_BRANCHES: usize = 3;
/// Calls that a block goes on behind, when they return.
const MAX_CALLS: usize = 3;

/// How much a block takes for granted of its operands' addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Variant {
    /// Windows, and alignment that is checked where the block begins.
    #[default]
    Usual = 0,
    /// Windows, no alignment: what a block goes on in whose registers are not aligned.
    Probing = 1,
    /// Neither: what a block with a straddling window goes on in.
    Plain = 2,
}

impl Variant {
    /// The variant whose number the low two bits are.
    pub fn unpack(number: u32) -> Self {
        match number & 3 {
            1 => Variant::Probing,
            2 => Variant::Plain,
            _ => Variant::Usual,
        }
    }
}

/// What the translation may assume; part of a block's key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Mode {
    /// x87 and MMX instructions may execute (CR0.EM and CR0.TS clear).
    pub x87: bool,
    /// SSE instructions may execute.
    pub sse: bool,
    /// AVX instructions may execute.
    pub avx: bool,
    /// CPL 3.
    pub user: bool,
    /// 32-bit code with a 32-bit stack; CS, SS, DS and ES are flat.
    pub narrow: bool,
    /// In 32-bit code: FS is an ordinary data segment of 4 GiB with any base.
    pub fs: bool,
    /// The same of GS.
    pub gs: bool,
    /// What the block may take for granted.
    pub variant: Variant,
    /// Longest block, in instructions: 1 when stepping.
    pub longest: u8,
}

impl Mode {
    /// No block's: none has no instructions.
    pub const NONE: Mode = Mode {
        x87: false,
        sse: false,
        avx: false,
        user: false,
        narrow: false,
        fs: false,
        gs: false,
        variant: Variant::Usual,
        longest: 0,
    };

    /// What follows from the processor's state, as a number below 128.
    pub fn word(self) -> u32 {
        let bit = |b: bool, n: u32| u32::from(b) << n;
        bit(self.x87, 0)
            | bit(self.sse, 1)
            | bit(self.avx, 2)
            | bit(self.user, 3)
            | bit(self.narrow, 4)
            | bit(self.fs, 5)
            | bit(self.gs, 6)
    }

    /// All of it in sixteen bits.
    pub fn pack(self) -> u16 {
        u16::from(self.longest) << 9 | (self.variant as u16) << 7 | self.word() as u16
    }

    /// What [`Mode::pack`] made.
    pub fn unpack(packed: u16) -> Self {
        let bit = |n: u32| packed >> n & 1 != 0;
        Mode {
            x87: bit(0),
            sse: bit(1),
            avx: bit(2),
            user: bit(3),
            narrow: bit(4),
            fs: bit(5),
            gs: bit(6),
            variant: Variant::unpack(u32::from(packed >> 7)),
            longest: (packed >> 9) as u8,
        }
    }

    /// What may change from one instruction to the next without a change of the
    /// control registers: privilege and code size, below 4; 64-bit supervisor is 0.
    pub fn class(self) -> u32 {
        u32::from(self.narrow) << 1 | u32::from(self.user)
    }

    /// Whether code at `va` is the same in all address spaces: the upper half, and
    /// what the supervisor of a 32-bit system executes. Links to such code are not
    /// checked; when its mapping changes, all blocks go.
    pub fn shares(self, va: u64) -> bool {
        va >> 63 != 0 || self.narrow && !self.user
    }

    /// Size of the code, for the decoder.
    fn bits(self) -> u32 {
        if self.narrow { 32 } else { 64 }
    }
}

/// A block to translate.
pub(crate) struct Request<'a> {
    /// Guest bytes from the first instruction to the end of its page.
    pub bytes: &'a [u8],
    /// Linear address of the first.
    pub va: u64,
    /// Cache offset the code will have.
    pub at: u32,
    pub mode: Mode,
    /// The block is the one instruction at `va`, which ends in the next page; it is
    /// good for this code mapping.
    pub straddling: Option<u32>,
    /// The block is to be vigilant (see [`vigilant`]): host address of the first of
    /// `bytes` in the guest's memory.
    pub vigilant: Option<u64>,
    pub thunks: &'a Thunks,
    pub strings: &'a StringThunks,
    pub system: &'a SystemThunks,
    pub features: &'a HostFeatures,
    /// Which sites foresee addends.
    pub foresight: &'a Foresight,
    /// Operands of this block have crossed pages: probes that find that leave, instead of
    /// faulting.
    pub careful: bool,
    /// Cache offsets of the entry, and of what follows its look at the token, of a
    /// block that links from this one may lead to without a check.
    pub known: &'a dyn Fn(u64, Variant) -> Option<(u32, u32)>,
}

impl<'a> Request<'a> {
    fn decoder(&self) -> Decoder<'a> {
        Decoder::with_ip(self.mode.bits(), self.bytes, self.va, DecoderOptions::NONE)
    }
}

/// An exit to a known guest address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// Guest address it leads to.
    pub target: u64,
    /// What the block there may take for granted.
    pub variant: Variant,
    /// A jump that leads forward, so the look at the token can be left out: whatever runs
    /// on goes back somewhere, or calls.
    pub forward: bool,
    /// Cache offset of the 4-byte displacement to patch, or of a stub's call that
    /// becomes a jump.
    pub patch: u32,
    pub call: bool,
    /// Cache offset of the address-space number to patch, for links that leave
    /// the page in user space.
    pub guard: Option<u32>,
}

/// A translated block.
pub(crate) struct Translated {
    e: Emitter,
    /// Offset of the entry within the code.
    pub entry: u32,
    /// Offset of what follows the look at the token.
    pub inner: u32,
    /// Where the block goes on when it repeats, if not at its entry.
    pub again: Option<u32>,
    /// (host offset, guest offset) of each instruction.
    pub map: Vec<(u16, u16)>,
    /// Guest bytes covered.
    pub guest_len: u16,
    pub links: Vec<Link>,
    /// Offset in the code of the number of the code mapping a straddling block of the
    /// lower half checks.
    pub guard: Option<u32>,
}

impl Translated {
    /// The code.
    pub fn code(&self) -> &[u8] {
        self.e.code()
    }
}

/// Whether the first instruction goes on beyond `bytes`.
pub(crate) fn straddles(bytes: &[u8], va: u64, mode: Mode) -> bool {
    let mut decoder = Decoder::with_ip(mode.bits(), bytes, va, DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes
}

/// What follows an instruction.
enum Next {
    /// The next instruction of the block.
    Continue,
    /// Nothing: the block has left.
    End,
}

/// A JRCXZ that waits for its stub.
#[derive(Clone, Copy)]
struct Pending {
    /// Offset of its displacement.
    at: usize,
    kind: PendingKind,
}

#[derive(Clone, Copy)]
enum PendingKind {
    /// An operand of an instruction of this block was not found.
    Miss { exit: Exit, index: u8, place: access::Place },
    /// The same of a store, which may go on beside code.
    Beside { index: u8, place: access::Place },
    /// A window straddles two pages at this instruction.
    Plain(u64),
}

impl PendingKind {
    /// Most bytes its stub has.
    #[inline(always)]
    fn len(self) -> usize {
        match self {
            PendingKind::Miss { place, .. } => STUB + place.len(),
            PendingKind::Beside { place, .. } => 14 + place.len(),
            PendingKind::Plain(_) => STUB,
        }
    }
}

/// What outlives a block: the decoder's tables in shape, and memory to build in.
pub(crate) struct Scratch {
    facts: FactTable,
    shapes: shape::Shapes,
    encoder: Encoder,
    /// The block's instructions, and room for others.
    list: Vec<Instruction>,
    /// What is known of the list's instructions.
    known: Vec<Known>,
    plan: windows::Plan,
    alignment: alignment::Alignment,
    pending: Vec<Pending>,
    links: Vec<Link>,
    branches: Vec<control::Branch>,
    code: Emitter,
    map: Vec<(u16, u16)>,
}

impl Scratch {
    /// For blocks whose requests name the same `features`.
    pub fn new(features: HostFeatures) -> Self {
        Scratch {
            facts: FactTable::new(features),
            shapes: shape::Shapes::default(),
            encoder: Encoder::new(64),
            list: vec![Instruction::default(); MAX_INSTRUCTIONS],
            known: vec![Known::NONE; MAX_INSTRUCTIONS],
            plan: windows::Plan::default(),
            alignment: alignment::Alignment::default(),
            pending: Vec::new(),
            links: Vec::new(),
            branches: Vec::new(),
            code: Emitter::default(),
            map: Vec::new(),
        }
    }

    /// Build the next block in the memory of one that has been copied.
    pub fn recycle(&mut self, t: Translated) {
        (self.code, self.map, self.links) = (t.e, t.map, t.links);
    }

    /// Nothing is planned or emitted yet.
    fn clear(&mut self) {
        self.plan.clear();
        self.alignment.clear();
        self.pending.clear();
        self.links.clear();
        self.branches.clear();
        self.code.truncate(0);
        self.map.clear();
    }
}

/// A point that emission can go back to.
#[derive(Clone, Copy)]
struct Mark {
    code: usize,
    pending: usize,
    links: usize,
    branches: usize,
    sp_behind: i32,
    guest_len: u16,
}

struct Builder<'a> {
    r: &'a Request<'a>,
    e: Emitter,
    /// Offset of the entry.
    entry: u32,
    s: &'a mut Scratch,
    index: u8,
    /// The block goes on behind the current instruction.
    goes_on: bool,
    /// The branch that ends the first of two rounds of a loop: see [`unroll`].
    turns_at: Option<usize>,
    /// The stack pointer is known to be a multiple of the word.
    stack_aligned: bool,
    /// What is still to be added to RSP: pushes and pops in one window move it once.
    sp_behind: i32,
    /// Offset of where this block goes on when it repeats.
    again: Option<usize>,
    /// The current instruction follows STI.
    shadowed: bool,
    /// Address of the current instruction.
    ip: u64,
    /// The window whose host address TEMP holds, before the current instruction and
    /// (as far as it is known) after.
    held: Option<u8>,
    now_held: Option<u8>,
    /// Emit every stub right behind its instruction: see [`translate`].
    near: bool,
    out_of_reach: bool,
    /// Bytes of the pending stubs.
    stubs: usize,
    /// For the one that will be farthest from its jump: bytes of the stubs in front of it
    /// less the offset of the jump, plus 2^16.
    reach: usize,
}

/// Translate a block. `None` when the first instruction needs the interpreter.
///
/// Stubs gather in islands, which execution jumps over, as far apart as a short
/// jump's reach allows by an estimate of what the next instruction becomes. Where
/// the estimate is too low, the block is made again with an island behind every
/// instruction.
pub(crate) fn translate(r: &Request<'_>, s: &mut Scratch) -> Option<Translated> {
    match attempt(r, s, false) {
        Err(OutOfReach) => attempt(r, s, true).unwrap_or(None),
        Ok(t) => t,
    }
}

/// A stub ended up too far from its jump.
struct OutOfReach;

fn attempt(r: &Request<'_>, s: &mut Scratch, near: bool) -> Result<Option<Translated>, OutOfReach> {
    s.clear();
    let mut b = Builder {
        r,
        e: std::mem::take(&mut s.code),
        entry: 0,
        again: None,
        s,
        index: 0,
        goes_on: false,
        turns_at: None,
        stack_aligned: false,
        sp_behind: 0,
        shadowed: false,
        ip: r.va,
        held: None,
        now_held: None,
        near,
        out_of_reach: false,
        stubs: 0,
        reach: 0,
    };
    let (mut list, mut known) = (std::mem::take(&mut b.s.list), std::mem::take(&mut b.s.known));
    let count = b.decode(&mut list, &mut known);
    let made = if count == 0 { None } else { b.block(&list[..count], &known[..count]) };
    let (e, out_of_reach, entry) = (b.e, b.out_of_reach, b.entry);
    let again = b.again.map(|a| a as u32);
    (s.list, s.known) = (list, known);
    match made {
        Some(made) if !out_of_reach => {
            let (map, links) = (std::mem::take(&mut s.map), std::mem::take(&mut s.links));
            let Made { inner, guard, guest_len } = made;
            Ok(Some(Translated { e, entry, inner, again, map, guest_len, links, guard }))
        }
        made => {
            s.code = e;
            if made.is_some() { Err(OutOfReach) } else { Ok(None) }
        }
    }
}

/// A block that has been emitted.
struct Made {
    inner: u32,
    guard: Option<u32>,
    guest_len: u16,
}

impl Builder<'_> {
    /// Emit the block that was decoded. `None` when its first instruction needs the
    /// interpreter.
    fn block(&mut self, list: &[Instruction], known: &[Known]) -> Option<Made> {
        let r = self.r;
        self.make_plans(list, known);
        let inner = self.begin(list);
        let guard = r.straddling.filter(|_| !r.mode.shares(r.va)).map(|space| self.check_mapping(space));
        let mut ended = false;
        let (mut guest_len, mut covered) = (0, 0);
        let mut sti = None;
        let plain = r.vigilant.is_none();
        let (mut n, mut rest) = (0, known.iter());
        for i in list {
            let Some(known) = rest.next() else { break };
            if known.facts.usual && plain && sti.is_none() {
                if !self.usual(n, i, known) {
                    break;
                }
                guest_len = i.next_ip().wrapping_sub(r.va) as u16;
                covered = guest_len.max(covered);
                n += 1;
                continue;
            }
            self.shadowed = sti.is_some();
            if self.shadowed {
                self.s.plan.leave_out(n);
            } else if known.facts.system && r.mode.longest > 1 && self.is_native_sti(i) {
                self.island_here();
                sti = Some(self.mark(guest_len));
            } else {
                self.make_room(i, &known.facts, n);
            }
            self.settle_before(n, i, &known.facts);
            self.goes_on = n + 1 < list.len();
            let before = self.mark(guest_len);
            self.s.map.push((self.e.len() as u16, (i.ip() - r.va) as u16));
            self.index = n as u8;
            match self.instruction(i, known) {
                Some(next) => {
                    guest_len = (i.next_ip() - r.va) as u16;
                    covered = guest_len.max(covered);
                    if matches!(next, Next::End) {
                        ended = true;
                        break;
                    }
                    if self.shadowed {
                        self.end_shadow();
                    }
                }
                None => {
                    // The interpreter's; and so is STI in front of it.
                    let back = if self.shadowed { sti.unwrap_or(before) } else { before };
                    guest_len = self.take_back(&back);
                    self.s.map.truncate(n - usize::from(self.shadowed));
                    break;
                }
            }
            n += 1;
        }
        if self.s.map.is_empty() {
            return None;
        }
        if !ended {
            self.settle_sp();
            let next = r.va + u64::from(guest_len);
            if sti.is_some() { self.leave_to_look(next) } else { self.leave_to(next) }
        }
        self.island();
        self.branch_exits();
        // Less than before where a second round of a loop is cut short.
        let guest_len = guest_len.max(if self.turns_at.is_some() { covered } else { 0 });
        Some(Made { inner: inner as u32, guard, guest_len })
    }

    /// Emit an instruction that needs nothing but to be copied. False: it is the
    /// interpreter's, and nothing was emitted.
    #[inline(always)]
    fn usual(&mut self, n: usize, i: &Instruction, known: &Known) -> bool {
        self.make_room(i, &known.facts, n);
        self.settle_before(n, i, &known.facts);
        let (begin, sp_behind) = (self.e.len(), self.sp_behind);
        self.ip = i.ip();
        self.s.map.push((begin as u16, self.ip.wrapping_sub(self.r.va) as u16));
        self.index = n as u8;
        self.held = self.now_held.take();
        let done = match known.facts.route {
            Route::Copy => self.copy(i, known),
            Route::Lea => self.any_lea(i),
            Route::Hint => {
                self.now_held = self.held;
                true
            }
            Route::Other => self.depending(i, known).is_some(),
        };
        if !done {
            self.sp_behind = sp_behind;
            self.take_back_usual(begin);
        }
        done
    }

    /// Undo what was emitted of an instruction that begins there: neither links nor branches.
    #[cold]
    fn take_back_usual(&mut self, begin: usize) {
        let pending = self.s.pending.iter().take_while(|p| p.at < begin).count();
        self.take_back(&Mark { code: begin, pending, ..self.mark(0) });
        self.s.map.pop();
    }

    /// Look ahead at the block's operands.
    fn make_plans(&mut self, list: &[Instruction], known: &[Known]) {
        let mode = self.r.mode;
        let word = self.word();
        if mode.variant != Variant::Plain && list.len() > 1 {
            self.s.plan.make(list, known, word, self.turns_at);
        }
        let alone = self.r.straddling.is_some() || self.r.vigilant.is_some();
        if mode.variant == Variant::Usual && mode.longest > 1 && !mode.narrow && !alone {
            let Scratch { alignment, plan, .. } = &mut *self.s;
            alignment.make(list, known, plan, self.r.va);
        }
    }

    /// The stubs that every block has in front of its entry, and the entry; where links
    /// that lead forward go.
    fn begin(&mut self, list: &[Instruction]) -> usize {
        self.call_exit(Exit::Attention);
        let leave = self.e.len();
        if self.r.vigilant.is_some() {
            self.call_exit(Exit::Stale);
        }
        let entry = self.e.len();
        self.entry = entry as u32;
        if self.s.alignment.repeats() {
            self.check_alignment();
            self.again = Some(self.e.len());
            self.look_at_token();
            return entry;
        }
        self.look_at_token();
        let inner = self.e.len();
        match self.r.vigilant {
            Some(from) => self.be_vigilant(list, from, leave),
            None => self.check_alignment(),
        }
        inner
    }

    /// Leave by the stub that the code begins with if attention is wanted.
    fn look_at_token(&mut self) {
        self.e.load32(host::TEMP, Mem::gs(gs!(token)));
        let back = self.e.jrcxz();
        self.e.patch_u8(back, 0usize.wrapping_sub(back + 1) as u8);
    }

    /// The guest's instructions up to the first that leaves or is not translated, and
    /// what is known of them; how many they are. One that follows STI is the last, so
    /// that events are looked for behind it.
    fn decode(&mut self, list: &mut [Instruction], known: &mut [Known]) -> usize {
        let r = self.r;
        let longest = if r.straddling.is_some() { 1 } else { usize::from(r.mode.longest) };
        let mut decoder = None;
        let mut at = 0_usize;
        let (mut count, mut branches, mut calls, mut shadowed) = (0, 0, 0, false);
        let most_calls = if longest > 1 && r.vigilant.is_none() { MAX_CALLS } else { 0 };
        let mut is_loop = false;
        // Decoded where they stay: they are not small.
        let mut room = known.iter_mut();
        for i in list.iter_mut().take(longest) {
            let Some(known) = room.next() else { break };
            let bytes = r.bytes.get(at..at.wrapping_add(16)).unwrap_or_default();
            let ip = r.va.wrapping_add(at as u64);
            let common = if r.mode.narrow { None } else { self.s.shapes.decode(bytes, ip, i, known) };
            at += match common {
                Some(len) => len,
                None => {
                    self.decode_oddly(decoder.get_or_insert_with(|| r.decoder()), at, i, known);
                    i.len()
                }
            };
            let facts = &known.facts;
            if facts.usual && !shadowed && r.vigilant.is_none() {
                count += 1;
                continue;
            }
            if i.is_invalid() {
                break;
            }
            if !self.supported(i, facts) || shadowed && !self.may_follow_sti(i) {
                break;
            }
            if r.vigilant.is_some() && !self.may_be_vigilant(i, facts) {
                break;
            }
            let sti = facts.system && self.is_native_sti(i);
            count += 1;
            if shadowed {
                return count;
            }
            shadowed = sti;
            match facts.flow {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch if calls == 0 && self.is_short_loop(i, count) => {
                    is_loop = true;
                    break;
                }
                FlowControl::ConditionalBranch if branches < MAX_BRANCHES => branches += 1,
                FlowControl::Call | FlowControl::IndirectCall if calls < most_calls => calls += 1,
                _ => break,
            }
        }
        if is_loop {
            return self.unroll(list, known, count);
        }
        // STI ends no block.
        count - usize::from(shadowed && r.mode.longest > 1)
    }

    /// Decode the instruction at an offset that is of no common form, or the first of one.
    fn decode_oddly(&mut self, decoder: &mut Decoder<'_>, at: usize, i: &mut Instruction, known: &mut Known) {
        let r = self.r;
        if at >= r.bytes.len() || decoder.set_position(at).is_err() {
            (*i, *known) = (Instruction::default(), Known::NONE);
            return;
        }
        decoder.set_ip(r.va.wrapping_add(at as u64));
        decoder.decode_out(i);
        interpreter::exchange_for_pause(&r.bytes[at..], i);
        if r.mode.narrow {
            narrow::widen(i);
        }
        self.without_count_instructions(i);
        self.s.facts.note(i, known);
        if !r.mode.narrow {
            self.s.shapes.learn(r.bytes.get(at..).unwrap_or_default(), i, known);
        }
    }

    #[inline(always)]
    fn mark(&self, guest_len: u16) -> Mark {
        Mark {
            code: self.e.len(),
            pending: self.s.pending.len(),
            links: self.s.links.len(),
            branches: self.s.branches.len(),
            sp_behind: self.sp_behind,
            guest_len,
        }
    }

    /// Undo what was emitted since; the guest bytes that are left.
    fn take_back(&mut self, to: &Mark) -> u16 {
        self.e.truncate(to.code);
        let kept: Vec<Pending> = self.s.pending.drain(..).take(to.pending).collect();
        (self.stubs, self.reach) = (0, 0);
        kept.into_iter().for_each(|p| self.pend(p));
        self.s.links.truncate(to.links);
        self.s.branches.truncate(to.branches);
        self.sp_behind = to.sp_behind;
        to.guest_len
    }

    /// One instruction. `None`: not one this translator does.
    fn instruction(&mut self, i: &Instruction, known: &Known) -> Option<Next> {
        let facts = &known.facts;
        self.ip = i.ip();
        self.held = self.now_held.take();
        if self.r.vigilant.is_some() && self.with_constant(i) {
            return Some(Next::Continue);
        }
        match facts.route {
            Route::Copy => return self.copy(i, known).then_some(Next::Continue),
            Route::Lea => return self.any_lea(i).then_some(Next::Continue),
            Route::Hint => {
                self.now_held = self.held;
                return Some(Next::Continue);
            }
            Route::Other => {}
        }
        self.depending(i, known)
    }

    /// One of those that are translated in other ways.
    fn depending(&mut self, i: &Instruction, known: &Known) -> Option<Next> {
        let facts = &known.facts;
        if facts.system && self.is_native_system(i) {
            return self.system(i);
        }
        if let Some(next) = self.control(i, facts) {
            return next;
        }
        if let Some(done) = self.all_registers(i) {
            return done.map(|()| Next::Continue);
        }
        if facts.stack
            && let Some(done) = self.stack(i)
        {
            return done.then_some(Next::Continue);
        }
        if facts.string && self.string(i).is_some() {
            return Some(Next::Continue);
        }
        if let Some(done) = self.bit_string(i) {
            return done.then_some(Next::Continue);
        }
        if i.code() == Code::Pause && !self.single() {
            self.pause();
            return Some(Next::Continue);
        }
        (!facts.stack && self.copy(i, known)).then_some(Next::Continue)
    }

    /// `call thunk; payload`: leaves to the engine, naming an instruction (of a link,
    /// its number in the block). The engine knows the block by where the call is.
    #[inline(always)]
    fn stub(&mut self, exit: Exit, index: u8) {
        self.e.branch(&[0xe8], self.r.at, self.r.thunks.exits[exit as usize], &[index]);
    }

    /// A stub without a payload: what it leaves for concerns the block.
    #[inline(always)]
    fn call_exit(&mut self, exit: Exit) {
        self.e.branch(&[0xe8], self.r.at, self.r.thunks.exits[exit as usize], &[]);
    }

    /// JRCXZ to a stub emitted later, which has the operand's address in ADDRESS.
    #[inline(always)]
    fn if_zero_leave(&mut self, exit: Exit, place: access::Place) {
        let at = self.e.jrcxz();
        self.pend(Pending { at, kind: PendingKind::Miss { exit, index: self.index, place } });
    }

    /// Emit a stub later.
    #[inline(always)]
    fn pend(&mut self, p: Pending) {
        let behind = (self.stubs + (1 << 16)).saturating_sub(p.at);
        self.reach = self.reach.max(behind);
        self.stubs += p.kind.len();
        self.s.pending.push(p);
    }

    /// ADDRESS = what it names.
    #[inline(always)]
    fn address_of(&mut self, place: access::Place) {
        match place {
            access::Place::Register(r, _) => self.e.mov(host::ADDRESS, r),
            access::Place::Constant(linear) => self.e.mov_imm(host::ADDRESS, linear),
        }
    }

    /// Emit the pending stubs here; execution must not fall into them.
    fn island(&mut self) {
        for n in 0..self.s.pending.len() {
            let p = self.s.pending[n];
            self.out_of_reach |= !self.e.land_short(p.at);
            match p.kind {
                PendingKind::Plain(ip) => self.leave_to_plain(ip),
                PendingKind::Miss { exit, index, place } => {
                    self.address_of(place);
                    self.stub(exit, index);
                }
                PendingKind::Beside { index, place } => {
                    self.address_of(place);
                    self.e.branch(&[0xe8], self.r.at, self.r.thunks.beside, &crate::beside::PAYLOAD_OPCODE);
                    self.e.bytes(&[index]);
                    // Back to behind the JRCXZ, with the addend in TEMP.
                    self.e.jmp_back(p.at + 1);
                }
            }
        }
        self.s.pending.clear();
        (self.stubs, self.reach) = (0, 0);
    }

    /// Emit the pending stubs here if one might be out of reach behind the next
    /// instruction, number `index`.
    #[inline(always)]
    fn make_room(&mut self, next: &Instruction, facts: &Facts, index: usize) {
        if self.s.pending.is_empty() {
            return;
        }
        let farthest = (self.e.len() + 2 + self.reach).saturating_sub(1 << 16);
        if !self.near && farthest + self.room_for(next, facts, index) < 127 {
            return;
        }
        self.island_here();
    }

    /// Emit the pending stubs, if any, where execution comes by.
    fn island_here(&mut self) {
        if !self.s.pending.is_empty() {
            let over = self.e.jmp_short();
            self.island();
            self.out_of_reach |= !self.e.land_short(over);
        }
    }

    /// About how much host code an instruction becomes, in bytes.
    fn room_for(&self, i: &Instruction, facts: &Facts, index: usize) -> usize {
        let memory = facts.stack || facts.memory(i).is_some();
        match () {
            () if facts.string || facts.system => 110,
            () if windows::is_call(facts) => 100,
            () if self.s.plan.opens(index) => 88,
            () if memory && self.r.careful => 72,
            () if memory => 56,
            () => 24,
        }
    }

    /// Encode a guest instruction with its general registers in these host registers,
    /// by number, and with this memory operand.
    fn place(&mut self, i: &Instruction, hosts: &[u8; 16], memory: Option<&Mem>) -> bool {
        if let Some((bytes, len)) = self.s.facts.template(i).and_then(|t| t.encode_for(i, hosts, memory)) {
            self.e.some_bytes(bytes, len);
            return true;
        }
        self.place_oddly(i, hosts, memory)
    }

    /// The same for one whose general registers are all where hosts hold them alone.
    #[inline(always)]
    fn place_at_home(&mut self, i: &Instruction, known: &Known, memory: Option<&Mem>) -> bool {
        let template = self.s.facts.template_of(known);
        if let Some((bytes, len)) = template.and_then(|t| t.encode(i, known.odd, memory)) {
            self.e.some_bytes(bytes, len);
            return true;
        }
        self.place_oddly(i, &copy::HOSTS, memory)
    }

    /// The same for what has no template, or is met as another form of something else for
    /// the first time.
    #[cold]
    fn place_oddly(&mut self, i: &Instruction, hosts: &[u8; 16], memory: Option<&Mem>) -> bool {
        let out = template::placed(i, &self.s.facts.of(i), hosts, memory);
        self.encode(&out)
    }

    /// Encode a rewritten guest instruction.
    fn encode(&mut self, i: &Instruction) -> bool {
        let done = self.s.encoder.encode(i, 0).is_ok();
        let mut bytes = self.s.encoder.take_buffer();
        if done {
            self.e.bytes(&bytes);
        }
        bytes.clear();
        self.s.encoder.set_buffer(bytes);
        done
    }
}
