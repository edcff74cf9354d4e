//! One vCPU of the translating engine: translated code where it can run, the
//! interpreter for everything else.
// UNSAFE: enters translated code that `Blocks` made.
#![allow(unsafe_code, reason = "enters generated code")]

mod fill;

use std::sync::Arc;

use code_cache::CodeCacheError;
use engine::{EngineError, Halt, Vcpu, VcpuConfig, attention_bits};
use guest_memory::{CodeEvent, DirectWriter, RamOffset};
use interpreter::{Cpu, Flush, InterpreterVcpu, StepEnd};
use x86_mmu::Access;
use x86_semantics::flags::Flags;
use x86_state::{Activity, CpuState, InterruptShadow, cr0, cr4, rflags};

use crate::block::chase::FORESEEN;
use crate::block::{self, HostFeatures, MAX_INSTRUCTIONS, Mode, Variant};
use crate::blocks::{AddressMap, Blocks, Key};
use crate::call_stack::{CallStack, note};
use crate::foresight;
use crate::layout::{Exit, JUMP_INDEX, PAUSES, SIGN, State, TURNS, USER_PROBE, jump_index};
use crate::modes;
use crate::native;
use crate::signals::Running;
use crate::spaces::{CodePage, ContextKey, FLUSHES, Spaces};
use crate::system_state;
use crate::tables::StateMemory;

/// Bytes read to make a block of: more than most blocks cover.
const MOST_BYTES: usize = 512;
/// Instructions interpreted at a time where nothing can be translated.
const INTERPRETED_RUN: u64 = 4096;
const PAGE: u64 = 4096;
/// Bytes of the longest instruction.
const LONGEST_INSTRUCTION: usize = 15;

/// Why the translator's memory could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error(transparent)]
    Code(#[from] CodeCacheError),
    #[error("cannot reserve address tables: {0}; the interpreter needs none: --engine interp")]
    Tables(#[from] rustix::io::Errno),
}

/// Counters, by name in `counters()`.
#[derive(Default)]
struct Counters {
    exits: [u64; 8],
    fills: u64,
    interpreted: u64,
    /// Look-ups of a block by address, and those that the table of recent targets knew.
    lookups: u64,
    recent: u64,
}

/// One vCPU.
pub struct TranslatorVcpu {
    interp: InterpreterVcpu,
    attention: Arc<engine::Attention>,
    _kick: engine::KickGuard,
    state: Arc<StateMemory>,
    /// Announces translated code that runs to those who mark pages.
    writer: Arc<DirectWriter>,
    blocks: Blocks,
    spaces: Spaces,
    calls: CallStack,
    /// The space and privilege that the call stack belongs to.
    calls_space: u32,
    /// Places whose first instruction is the interpreter's, with the generation of
    /// the page's code that says so.
    foreign: AddressMap<Key, u32>,
    /// Where control went lately: see [`Recent`].
    recent: Box<[Recent; RECENT]>,
    /// Code events of guest memory seen so far.
    seen: u64,
    /// The interpreter must execute the next instruction.
    pending_step: bool,
    /// `Some(retired)`: instructions are counted, every block is one instruction,
    /// nothing is linked, and the run ends when that many have retired.
    ends_at: Option<u64>,
    /// Every instruction so far was counted.
    counts: bool,
    /// The mode that jump cache and call stack are good for.
    predicted: Mode,
    /// The x87 and vector registers are the host's and the state's, not `Cpu`'s.
    fpu_in_host: bool,
    counters: Counters,
}

/// Most pages of shared code that may move at once without all blocks being dropped.
const MOST_LOST: usize = 32;
/// Entries of the table of recent targets.
const RECENT: usize = 4096;
/// Most places remembered as the interpreter's.
const FOREIGN_CAP: usize = 1 << 16;

/// A block that control went to, and when that is still right: the same address
/// in the same mode, and in the lower half the same code mapping.
#[derive(Clone, Copy)]
struct Recent {
    va: u64,
    space: u32,
    mode: Mode,
    id: u32,
}

impl Recent {
    /// In `id`: the interpreter's place.
    const FOREIGN: u32 = u32::MAX;

    /// Matches nothing: no code starts at the last byte of the space.
    const NONE: Recent = Recent { va: u64::MAX, space: 0, mode: Mode::NONE, id: 0 };
}

/// What is at a guest address.
enum Place {
    Block(u32),
    /// An instruction for the interpreter.
    Foreign,
    /// It cannot be fetched: the interpreter raises the fault.
    Unreachable,
}

/// What to do after an exit.
enum Then {
    /// Enter translated code at this cache offset; guest registers are in the state.
    Resume(u32),
    /// Look at everything again; guest registers are in `Cpu`.
    Again,
}

impl TranslatorVcpu {
    pub(crate) fn new(config: VcpuConfig) -> Result<Self, SetupError> {
        let attention = config.attention.clone();
        let mut memory = StateMemory::new()?;
        let blocks = Blocks::new(HostFeatures::detect().within(&config.model))?;
        let state = memory.get();
        state.page_offset_mask = PAGE - 1;
        state.user_probe = USER_PROBE;
        state.sign_mask = SIGN;
        state.pauses = PAUSES;
        state.foreseen.fill(foresight::UNKNOWN);
        state.turns = TURNS;
        state.qword_offset_mask = 7;
        state.dword_offset_mask = 3;
        state.alignment_masks = [0, 1, 3, 7, 15, 31];
        (state.dword_element_mask, state.dword_bit_mask) = (!31, 31);
        (state.qword_element_mask, state.qword_bit_mask) = (!63, 63);
        state.within_page[..PAGE as usize].fill(1);
        state.jump_index_mask = JUMP_INDEX;
        system_state::set_up(state);
        state.jump_cache.fill(blocks.address(blocks.thunks.indirect));
        state.forbid_beside();
        let calls = CallStack::new(blocks.address(blocks.thunks.bottom))?;
        state.call_rsp = calls.empty();
        state.call_rsp_empty = calls.empty();
        let spaces = Spaces::new(&memory, config.memory.backing_size())?;
        let mut interp = InterpreterVcpu::new(config);
        interp.cpu().flush_log = Some(Vec::new());
        interp.cpu().x87_pointers = false;
        let state = Arc::new(memory);
        let kicked = state.clone();
        let kick = attention.on_raise(Box::new(move || kicked.want_attention()));
        let woken = state.clone();
        let marks_of = interp.cpu().memory.clone();
        let writer = marks_of.marks().add_writer(move || woken.want_attention());
        let seen = marks_of.marks().event_count();
        Ok(TranslatorVcpu {
            interp,
            attention,
            _kick: kick,
            state,
            writer,
            blocks,
            spaces,
            calls,
            calls_space: 0,
            foreign: AddressMap::default(),
            recent: Box::new([Recent::NONE; RECENT]),
            seen,
            pending_step: false,
            ends_at: None,
            counts: true,
            predicted: Mode::NONE,
            fpu_in_host: false,
            counters: Counters::default(),
        })
    }

    /// Tell `recorder` of every block translated from now on.
    pub(crate) fn record_to(&mut self, recorder: Arc<crate::recorder::Recorder>) {
        self.blocks.ledger.recorder = Some(recorder);
    }

    /// Give out numbers of code mappings from `first` to `last`.
    pub(crate) fn limit_numbers(&mut self, first: u32, last: u32) {
        self.spaces.limit_numbers(first, last);
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: the memory lives as long as self; `&mut self` and the fact that
        // translated code is not running exclude other references. The token is
        // atomic and also written by other threads.
        unsafe { &mut *self.state.pointer() }
    }

    /// The shared state and the interpreter's.
    fn both(&mut self) -> (&mut State, &mut Cpu) {
        // SAFETY: as in `state`; the two do not overlap.
        (unsafe { &mut *self.state.pointer() }, self.interp.cpu())
    }

    /// How many instructions the interpreter should execute before translated code
    /// is worth another look: 0 where the current mode is one that is translated,
    /// 64-bit code with four-level paging at CPL 0 or 3 or 32-bit code with flat
    /// segments, and nothing that watches single instructions.
    fn obstacle(&mut self) -> u64 {
        let cpu = self.interp.cpu();
        let translated = if cpu.long64() { modes::wide(cpu) } else { modes::narrow(cpu) };
        if !translated || cpu.dr7 & 0xff != 0 {
            return INTERPRETED_RUN;
        }
        let checks_alignment = cpu.cpl == 3 && cpu.cr0 & cr0::AM != 0 && cpu.system_flags & rflags::AC != 0;
        let momentary = cpu.activity != Activity::Active
            || cpu.system_flags & (rflags::TF | rflags::RF | rflags::DF) != 0
            || cpu.shadow != InterruptShadow::None
            || cpu.pending_debug != 0
            || checks_alignment;
        u64::from(momentary)
    }

    fn mode(&mut self) -> Mode {
        let longest = if self.ends_at.is_some() { 1 } else { MAX_INSTRUCTIONS as u8 };
        modes::mode(self.interp.cpu(), longest)
    }

    fn access(cpu: &Cpu, write: bool, fetch: bool) -> Access {
        Access { write, fetch, user: cpu.cpl == 3, system: false, ac: cpu.system_flags & rflags::AC != 0 }
    }

    /// Host address of a page of the backing.
    fn host_page(cpu: &Cpu, page: u64) -> u64 {
        cpu.memory.host_mapping().0 as u64 + page * PAGE
    }

    /// Everything a step of the interpreter may have changed.
    fn after_step(&mut self) {
        let log = match &mut self.interp.cpu().flush_log {
            Some(log) if !log.is_empty() => std::mem::take(log),
            _ => Vec::new(),
        };
        // A run of the interpreter may have been in several contexts, and the log does not
        // say in which it flushed what; and each page flushed may take a look at all code pages.
        let several = log.len() > 1 && log.iter().any(|f| matches!(f, Flush::Switch { .. }));
        if several || log.len() > FLUSHES {
            self.flushed(Flush::All);
        } else {
            log.into_iter().for_each(|f| self.flushed(f));
        }
        self.code_events();
    }

    fn flushed(&mut self, f: Flush) {
        self.state().forbid_beside();
        let cpu = self.interp.cpu();
        let key = modes::context(cpu);
        let params = cpu.paging_params();
        let memory = cpu.memory.clone();
        let ac = cpu.system_flags & rflags::AC != 0;
        // Where a page is that may be fetched from without a flag being set.
        let walk = move |va: u64, user: bool| {
            let access = Access { write: false, fetch: true, user, system: false, ac };
            let t = x86_mmu::walk_marked(&memory, &params, va, access)?;
            Some(CodePage::new(memory.translate(t.physical)?.offset.0, &t))
        };
        if !matches!(f, Flush::Switch { .. }) && key != self.spaces.key() && self.spaces.enter(key, false) {
            self.spaces.verify_own(None, &walk);
        }
        let lost = match f {
            Flush::All => {
                self.spaces.flush(true);
                self.spaces.forget_other_code();
                self.spaces.verify_own(None, &walk);
                self.spaces.verify_shared(None, true, &walk)
            }
            Flush::NonGlobal => {
                self.spaces.flush(false);
                self.spaces.forget_other_code();
                self.spaces.verify_own(None, &walk);
                self.spaces.verify_shared(None, false, &walk)
            }
            Flush::Page(va) => {
                let only = self.spaces.flush_page(va);
                self.spaces.verify_own(only, &walk);
                self.spaces.verify_shared(only, true, &walk)
            }
            Flush::Context(p) => {
                let named = if let ContextKey::Pcid(_) = key { ContextKey::Pcid(p) } else { key };
                self.spaces.flush_context(named);
                if named == key {
                    self.spaces.verify_own(None, &walk);
                    self.spaces.verify_shared(None, false, &walk)
                } else {
                    self.spaces.forget_code(named);
                    Vec::new()
                }
            }
            Flush::Switch { keep } => {
                if self.spaces.enter(key, keep) {
                    self.spaces.verify_own(None, &walk);
                }
                self.spaces.verify_shared(None, false, &walk)
            }
        };
        // Links between shared blocks carry no check, so the blocks of pages that moved
        // must go. Where they are many, all go: a kernel has freed what started it. All go,
        // too, where a number that they compare may mean another mapping from now on.
        if self.spaces.take_reused() || lost.len() > MOST_LOST {
            self.drop_blocks();
        } else {
            lost.into_iter().for_each(|page| self.blocks.drop_mapping(page));
        }
    }

    fn drop_blocks(&mut self) {
        self.blocks.drop_all();
        self.foreign.clear();
        self.recent.fill(Recent::NONE);
        self.forget_indirect();
    }

    /// Nothing is known of where indirect jumps and returns go.
    fn forget_indirect(&mut self) {
        let indirect = self.blocks.address(self.blocks.thunks.indirect);
        let s = self.state();
        s.jump_cache.fill(indirect);
        s.call_rsp = s.call_rsp_empty;
    }

    /// Links lead to blocks of the mode they were made in; predictions do not look at
    /// it, save the privilege, and end when it changes.
    fn follow_mode(&mut self) {
        let mode = Mode { user: false, ..self.mode() };
        if std::mem::replace(&mut self.predicted, mode) != mode {
            self.forget_indirect();
        }
    }

    /// Follow what happened to pages with code.
    fn code_events(&mut self) {
        let memory = self.interp.cpu().memory.clone();
        let marks = memory.marks();
        let count = marks.event_count();
        if count == self.seen {
            return;
        }
        match marks.events_since(self.seen) {
            // Too far behind (this vCPU slept): what the events said is in the marks.
            None => {
                self.spaces.forbid_all_stores();
                self.state().forbid_beside();
                self.blocks.drop_changed(|page| marks.code_generation(RamOffset(u64::from(page) * PAGE)));
            }
            Some(events) => {
                for e in events {
                    match e {
                        CodeEvent::Marked(page) => self.spaces.forbid_stores(page),
                        CodeEvent::Changed { page, lines, generation } => {
                            self.blocks.drop_lines(page, lines, generation);
                        }
                        CodeEvent::Logged => {
                            self.spaces.forbid_all_stores();
                            self.state().forbid_beside();
                        }
                    }
                }
            }
        }
        self.seen = count;
    }

    /// Guest registers from `Cpu` into the shared state.
    fn export(&mut self) {
        let counted = self.ends_at.is_some();
        let (s, cpu) = self.both();
        s.gpr.copy_from_slice(&cpu.regs[..16]);
        let flags = cpu.flags.to_rflags();
        s.flags_ah = (flags & 0xd5 | 2) as u8;
        s.flags_of = (flags >> 11 & 1) as u8;
        system_state::export(s, cpu, counted);
        if !self.fpu_in_host {
            let fpu = &self.interp.cpu().fpu;
            native::load_x87(fpu);
            let (ymm, mxcsr) = (fpu.ymm, fpu.mxcsr);
            let s = self.state();
            s.ymm = ymm;
            s.mxcsr = mxcsr;
            self.fpu_in_host = true;
        }
    }

    /// Guest registers from the shared state into `Cpu`, at `rip`.
    fn import(&mut self, rip: u64) {
        let (s, cpu) = self.both();
        let flags = u64::from(s.flags_ah & 0xd5) | u64::from(s.flags_of & 1) << 11;
        cpu.regs[..16].copy_from_slice(&s.gpr);
        system_state::sync_boundary(s, cpu, rip);
        cpu.flags = Flags::from_rflags(flags);
        cpu.set_rip(rip);
    }

    /// x87 and vector registers into `Cpu`.
    fn import_fpu(&mut self) {
        if !self.fpu_in_host {
            return;
        }
        let s = self.state();
        let (ymm, mxcsr) = (s.ymm, s.mxcsr);
        let fpu = &mut self.interp.cpu().fpu;
        fpu.ymm = ymm;
        fpu.mxcsr = mxcsr;
        native::save_x87(fpu);
        self.fpu_in_host = false;
    }

    /// Execute `n` instructions on the interpreter. Some: return to the caller.
    fn interpret(&mut self, n: u64) -> Option<Halt> {
        self.counters.interpreted += 1;
        let until = self.interp.cpu().retired.saturating_add(n);
        let halted = if n == 1 {
            self.step()
        } else {
            self.import_fpu();
            match self.interp.run(n) {
                Halt::Limit => None,
                other => Some(other),
            }
        };
        self.after_step();
        if halted.is_none() {
            // Faults count towards the limit without retiring anything; a repeated string
            // instruction that stops between elements does neither.
            let faults = until.saturating_sub(self.interp.limit_at());
            self.ends_at = self.ends_at.map(|end| end.saturating_sub(faults));
        }
        halted
    }

    /// One instruction; x87 and vector registers move only if it needs them.
    fn step(&mut self) -> Option<Halt> {
        let mut end = self.interp.step(self.fpu_in_host);
        if matches!(end, StepEnd::NeedsFpu) {
            self.import_fpu();
            end = self.interp.step(false);
        }
        match end {
            StepEnd::Halted(halt) => Some(halt),
            StepEnd::Done | StepEnd::NeedsFpu => None,
        }
    }

    /// The block at `va`, translated if need be. `None`: the interpreter's turn
    /// (a fault on fetch, or an instruction for it).
    fn block_at(&mut self, va: u64) -> Option<u32> {
        let mode = self.mode();
        self.block_in(va, mode)
    }

    fn block_in(&mut self, va: u64, mode: Mode) -> Option<u32> {
        let space = if mode.shares(va) { mode.class() } else { self.space() };
        let slot = (va ^ va >> 12) as usize & (RECENT - 1);
        let r = self.recent[slot];
        self.counters.lookups += 1;
        if r.va == va && r.space == space && r.mode == mode {
            self.counters.recent += 1;
            // A place remembered as the interpreter's may have got other code since:
            // then it is interpreted, which is never wrong.
            if r.id == Recent::FOREIGN {
                return None;
            }
            if !self.blocks.get(r.id).dead() {
                return Some(r.id);
            }
        }
        match self.block_at_slowly(va, mode) {
            Place::Block(id) => {
                // A straddling block checks the code mapping itself, and must be set
                // to this one.
                if !self.blocks.get(id).straddles() {
                    self.recent[slot] = Recent { va, space, mode, id };
                }
                Some(id)
            }
            Place::Foreign => {
                self.recent[slot] = Recent { va, space, mode, id: Recent::FOREIGN };
                None
            }
            Place::Unreachable => None,
        }
    }

    /// Where in the backing the page is that code at `va` is fetched from.
    fn code_page(&mut self, va: u64) -> Option<u64> {
        // The walk and the tables look at 48 bits.
        if !self.interp.cpu().canonical(va) {
            return None;
        }
        let user = self.interp.cpu().cpl == 3;
        let mode = self.mode();
        if mode.narrow && va >> 32 != 0 {
            return None;
        }
        let shared = mode.shares(va);
        if let Some(page) = self.spaces.code_page(va, shared, user) {
            return Some(page);
        }
        let cpu = self.interp.cpu();
        let access = Self::access(cpu, false, true);
        let t = x86_mmu::walk(&cpu.memory, &cpu.paging_params(), va, access).ok()?;
        let page = CodePage::new(cpu.memory.translate(t.physical)?.offset.0, &t);
        self.spaces.set_code_page(va, shared, user, page);
        Some(page.ram)
    }

    fn block_at_slowly(&mut self, va: u64, mode: Mode) -> Place {
        if self.spaces.make_room_for_code(mode.shares(va)) {
            self.drop_blocks();
        }
        let Some(page) = self.code_page(va) else { return Place::Unreachable };
        let ram = page | va & (PAGE - 1);
        let key = Key { ram, va, mode };
        if let Some(id) = self.blocks.find(&key) {
            let Some(second) = self.blocks.second(id) else { return Place::Block(id) };
            if self.code_page(va.wrapping_add(PAGE)) == Some(u64::from(second) * PAGE) {
                let space = self.space();
                self.blocks.set_guard(id, space);
                return Place::Block(id);
            }
            self.blocks.kill(id);
        }
        let memory = self.interp.cpu().memory.clone();
        let generation = memory.marks().code_generation(RamOffset(ram));
        if self.foreign.get(&key) == Some(&generation) {
            return Place::Foreign;
        }
        if self.blocks.nearly_full() {
            self.drop_blocks();
        }
        let mut bytes = [0; MOST_BYTES + LONGEST_INSTRUCTION];
        let first = ((PAGE - ram % PAGE) as usize).min(MOST_BYTES);
        memory.read_bytes(RamOffset(ram), &mut bytes[..first]);
        let mut second = None;
        if first < LONGEST_INSTRUCTION && block::straddles(&bytes[..first], va, mode) {
            let Some(page) = self.code_page(va.wrapping_add(PAGE)) else { return Place::Unreachable };
            memory.read_bytes(RamOffset(page), &mut bytes[first..first + LONGEST_INSTRUCTION]);
            second = Some((page, self.space()));
        }
        let bytes = &bytes[..first + if second.is_some() { LONGEST_INSTRUCTION } else { 0 }];
        // A page is marked once it is known how much of it is code; bytes that
        // changed before the mark are seen by reading again.
        let marked = |at: u64, bytes: &[u8]| {
            let generation = memory.marks().mark_code(RamOffset(at), bytes.len() as u64);
            let mut now = [0; MOST_BYTES];
            let now = &mut now[..bytes.len()];
            memory.read_bytes(RamOffset(at), now);
            (now == bytes).then_some(generation)
        };
        let guard = second.map(|(page, space)| ((page / PAGE) as u32, space));
        let host = Self::host_page(self.interp.cpu(), ram / PAGE) + ram % PAGE;
        let id = self.blocks.translate(key, bytes, host, guard, |len| {
            let here = len.min(first as u64) as usize;
            let generation = marked(ram, &bytes[..here])?;
            let Some((page, _)) = second else { return Some((generation, 0)) };
            Some((generation, marked(page, &bytes[here..len as usize])?))
        });
        self.code_events();
        if let Some(id) = id {
            return Place::Block(id);
        }
        if self.foreign.len() >= FOREIGN_CAP {
            self.foreign.clear();
        }
        self.foreign.insert(key, generation);
        Place::Foreign
    }

    /// Enter translated code at a cache offset and deal with its exit.
    fn enter(&mut self, at: u32) -> Result<Then, EngineError> {
        let target = self.blocks.address(at);
        let kind = modes::kind(self.interp.cpu());
        let mode = self.mode();
        let state_memory = self.state.clone();
        let failed = |e: rustix::io::Errno| EngineError::Host {
            engine: "jit",
            what: "reserving address tables".into(),
            source: e.into(),
        };
        self.spaces.view(kind, &state_memory).map_err(failed)?;
        let views = self.spaces.addresses(self.interp.cpu().cr4 & cr4::SMAP != 0);
        let number = self.spaces.number();
        let space = self.space();
        let other_space = std::mem::replace(&mut self.calls_space, space) != space;
        let other_calls = other_space | std::mem::take(&mut self.blocks.returns_lost);
        let (code, code_len) = self.blocks.extent();
        let running = Running {
            code,
            code_len,
            state: state_memory.pointer(),
            fault_exit: self.blocks.address(self.blocks.thunks.fault),
            call_guard: self.calls.guard(),
        };
        let enter = self.blocks.address(self.blocks.thunks.enter);
        let s = self.state();
        s.target = target;
        system_state::set_views(s, views, number, mode.class(), kind);
        if other_calls {
            s.call_rsp = s.call_rsp_empty;
        }
        if !self.writer.begin(self.interp.cpu().memory.marks(), self.seen) {
            return Ok(self.overtaken(at));
        }
        // SAFETY: the entry thunk and a translated instruction's address; the
        // state lies below the store table named in it.
        unsafe { native::enter(enter, running) };
        self.writer.end();
        let (s, cpu) = self.both();
        system_state::sync(s, cpu);
        // Translated code that changes privilege empties the call stack itself.
        self.calls_space = self.space();
        let s = self.state();
        let (exit, site, address) = (s.exit, s.site, s.address);
        let exit = Exit::ALL[(exit & 7) as usize];
        self.counters.exits[exit as usize] += 1;
        self.exited(exit, site, address)
    }

    /// Code changed before the instruction at cache offset `at` could be entered.
    fn overtaken(&mut self, at: u32) -> Then {
        let rip = self.blocks.guest_address(at);
        self.code_events();
        self.give_up(rip)
    }

    fn exited(&mut self, exit: Exit, site: u64, address: u64) -> Result<Then, EngineError> {
        match exit {
            Exit::Link => {
                let (from, number) = self.site(site)?;
                let link = self.blocks.link(from, number);
                let (target, variant) = self.blocks.link_target(link).ok_or_else(|| self.lost(site))?;
                if self.ends_at.is_some() {
                    return Ok(self.counted(target));
                }
                let generation = self.blocks.flushes;
                let mode = Mode { variant, ..self.mode() };
                let Some(id) = self.block_in(target, mode) else {
                    // The usual block is there and would lead here again.
                    self.pending_step = variant != Variant::Usual;
                    return Ok(self.give_up(target));
                };
                // A dead block's link may lie where its way out has been put.
                if generation == self.blocks.flushes && !self.blocks.get(from).dead() {
                    let space = self.space();
                    self.blocks.connect(link, id, space);
                }
                Ok(Then::Resume(self.blocks.get(id).entry()))
            }
            Exit::Indirect if !self.interp.cpu().canonical(address) => self.refuse_branch(),
            Exit::Indirect if self.ends_at.is_some() => Ok(self.counted(address)),
            Exit::Indirect => {
                let Some(id) = self.block_at(address) else { return Ok(self.give_up(address)) };
                let space = self.space();
                if let Some(stub) = self.blocks.jump_stub(id, space) {
                    self.state().jump_cache[jump_index(address)] = stub;
                }
                Ok(Then::Resume(self.blocks.get(id).entry()))
            }
            Exit::MissLoad | Exit::MissStore => {
                let (id, payload) = self.site(site)?;
                let index = usize::from(payload & !FORESEEN);
                let foreseen = payload & FORESEEN != 0;
                let entered = foreseen && self.is_entered(address);
                if entered || self.fill(address, exit == Exit::MissStore) {
                    if foreseen && !self.foresee(id, index, address, entered) {
                        return Ok(self.give_up(self.blocks.linear(id, index)));
                    }
                    return Ok(Then::Resume(self.blocks.host_offset(id, index)));
                }
                Ok(self.interpret_at(id, index))
            }
            Exit::Interpret => {
                if self.state().pauses == 0 {
                    self.state().pauses = PAUSES;
                    std::thread::yield_now();
                }
                let (id, index) = self.site(site)?;
                let (s, cpu) = self.both();
                if system_state::answer(s, cpu) {
                    let behind = self.blocks.behind(site).ok_or_else(|| self.lost(site))?;
                    return Ok(Then::Resume(behind));
                }
                Ok(self.interpret_at(id, index.into()))
            }
            Exit::Attention | Exit::Stale => self.left_at_start(exit, site),
            Exit::Fault => {
                let (id, index) = self.blocks.instruction_at(site).ok_or_else(|| self.lost(site))?;
                self.blocks.faulted(id);
                Ok(self.interpret_at(id, index))
            }
        }
    }

    /// A block was left where it begins: attention is wanted, or it is not good any more.
    fn left_at_start(&mut self, exit: Exit, site: u64) -> Result<Then, EngineError> {
        let (id, _) = self.site(site)?;
        if exit == Exit::Stale && self.blocks.get(id).vigilant() {
            // Its code has changed, or it has had the last turn.
            self.blocks.kill(id);
            let s = self.state();
            if s.turns == 0 {
                s.turns = TURNS;
            }
        }
        let (va, dead) = (self.blocks.get(id).va(), self.blocks.get(id).dead());
        let other_mapping = exit == Exit::Stale && self.blocks.get(id).straddles();
        if !dead && !other_mapping {
            return Ok(self.give_up(va));
        }
        let generation = self.blocks.flushes;
        // Blocks that take less for granted are led to by those that take more.
        let variant = self.blocks.get(id).mode().variant;
        let mode = Mode { variant, ..self.mode() };
        let Some(new) = self.block_in(va, mode) else {
            self.pending_step = variant != Variant::Usual;
            return Ok(self.give_up(va));
        };
        if dead && new != id && generation == self.blocks.flushes {
            let (old, key) = (self.blocks.get(id).key(), self.blocks.get(new).key());
            if old == key {
                self.blocks.replace(id, new);
            } else if key.mode.shares(va) {
                // Links to shared code are not checked, nor need this jump be.
                self.blocks.forward(id, new);
            }
        }
        Ok(Then::Resume(self.blocks.get(new).entry()))
    }

    /// What links to code that is not shared are checked against: the code mapping,
    /// the privilege and the code size.
    fn space(&mut self) -> u32 {
        self.spaces.number() << 2 | self.mode().class()
    }

    /// The block that was left, and what the stub's payload says.
    fn site(&self, site: u64) -> Result<(u32, u8), EngineError> {
        self.blocks.site(site).ok_or_else(|| self.lost(site))
    }

    fn lost(&self, site: u64) -> EngineError {
        EngineError::Unsupported {
            engine: "jit",
            rip: 0,
            bytes: Vec::new(),
            reason: format!("translated code left from an unknown place {site:#x}; this is a bug"),
        }
    }

    /// Registers back to `Cpu`; the caller looks at everything again.
    fn give_up(&mut self, rip: u64) -> Then {
        self.import(rip);
        Then::Again
    }

    /// One instruction has retired while counting.
    fn counted(&mut self, rip: u64) -> Then {
        let cpu = self.interp.cpu();
        cpu.retired = cpu.retired.wrapping_add(1);
        cpu.sync_time();
        self.give_up(rip)
    }

    /// A jump or return went to an address that is not canonical: as if it had not
    /// happened, for the interpreter to raise #GP there.
    fn refuse_branch(&mut self) -> Result<Then, EngineError> {
        let branch = self.state().branch;
        let host = self.blocks.address(note::place(branch));
        let (id, index) = self.blocks.instruction_at(host).ok_or_else(|| self.lost(host))?;
        if note::popped(branch) {
            let sp = &mut self.state().gpr[4];
            *sp = sp.wrapping_sub(8);
        }
        Ok(self.interpret_at(id, index))
    }

    /// Registers back to `Cpu` at an instruction that the interpreter executes next.
    fn interpret_at(&mut self, id: u32, index: usize) -> Then {
        let rip = self.blocks.linear(id, index);
        self.import(rip);
        self.pending_step = true;
        Then::Again
    }

    fn run_to_halt(&mut self) -> Halt {
        loop {
            // From here on a raised bit ends translated code again.
            let attention = self.attention.clone();
            let bits = system_state::rearm(self.state(), || attention.bits());
            let masked = self.interp.cpu().system_flags & rflags::IF == 0;
            let urgent = bits & !attention_bits::INTERRUPT != 0 || bits != 0 && !masked;
            let step = std::mem::take(&mut self.pending_step);
            let left = self.ends_at.map_or(u64::MAX, |end| end.saturating_sub(self.interp.cpu().retired));
            if left == 0 {
                // What wakes a halted processor does so before the limit is looked at.
                return self.interp.run(0);
            }
            let n = if urgent || step { 1 } else { self.obstacle() };
            if n != 0 {
                if let Some(halt) = self.interpret(n.min(left)) {
                    return halt;
                }
                continue;
            }
            self.follow_mode();
            let rip = self.interp.cpu().rip();
            let Some(id) = self.block_at(rip) else {
                if let Some(halt) = self.interpret(1) {
                    return halt;
                }
                continue;
            };
            self.export();
            let mut at = self.blocks.get(id).entry();
            loop {
                match self.enter(at) {
                    Ok(Then::Resume(next)) => at = next,
                    Ok(Then::Again) => break,
                    Err(e) => return Halt::Failed(e),
                }
            }
        }
    }
}

impl Vcpu for TranslatorVcpu {
    fn run(&mut self, limit: u64) -> Halt {
        let cpu = self.interp.cpu();
        let counts = limit != u64::MAX || cpu.clock.is_virtual();
        self.counts &= counts;
        self.ends_at = counts.then(|| cpu.retired.saturating_add(limit));
        let halt = self.run_to_halt();
        if matches!(halt, Halt::Idle) {
            self.blocks.rest();
        }
        self.import_fpu();
        native::reset_x87();
        halt
    }

    fn state(&mut self) -> Result<CpuState, EngineError> {
        self.interp.state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.interp.set_state(state)?;
        self.after_step();
        Ok(())
    }

    fn retired(&self) -> Option<u64> {
        // Free-running code is not counted.
        self.counts.then(|| self.interp.retired()).flatten()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let e = &self.counters.exits;
        let mut list = vec![
            ("blocks_translated", self.blocks.translated),
            ("code_bytes", self.blocks.code_bytes() as u64),
            ("record_bytes", self.blocks.record_bytes() as u64),
            ("code_flushes", self.blocks.flushes),
            ("table_fills", self.counters.fills),
            ("interpreted_runs", self.counters.interpreted),
            ("exits_miss_load", e[Exit::MissLoad as usize]),
            ("exits_miss_store", e[Exit::MissStore as usize]),
            ("exits_link", e[Exit::Link as usize]),
            ("exits_indirect", e[Exit::Indirect as usize]),
            ("exits_interpret", e[Exit::Interpret as usize]),
            ("exits_attention", e[Exit::Attention as usize]),
            ("exits_fault", e[Exit::Fault as usize]),
            ("exits_stale", e[Exit::Stale as usize]),
            ("block_lookups", self.counters.lookups),
            ("block_lookups_recent", self.counters.recent),
        ];
        list.extend(self.blocks.ledger.counters());
        list
    }
}
