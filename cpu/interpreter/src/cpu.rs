//! The working state of one processor.

use std::sync::Arc;

use engine::{Attention, Bus, VcpuConfig};
use guest_memory::GuestMemory;
use x86_semantics::flags::Flags;
use x86_state::{
    Activity, CpuModel, CpuState, Exception, Feature, FpuState, InterruptShadow, Msrs, Segment,
    TableRegister, Topology, cr0, cr4, efer, rflags, vector,
};

use crate::insn::{REG_RIP, SEG_FLAT};
use crate::tlb::Tlb;

/// Why a handler did not simply finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// [`Cpu::fault`] is to be delivered; RIP goes back to the instruction.
    Fault,
    /// The instruction is complete, but cached assumptions (mode, translation,
    /// interrupt state, code bytes) may be stale: leave the block.
    Resync,
    /// The instruction is complete and the processor is no longer active (HLT).
    Idle,
    /// Triple fault.
    Shutdown,
}

/// What a handler returns. `Ok` goes on with the next instruction of the block;
/// every block ends with its first control transfer, so that is right for them too.
pub type Step = Result<(), Stop>;

/// On whose behalf a linear address is accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// The program's own access at CPL.
    Current,
    /// An implicit supervisor access: descriptor tables, task-state segments,
    /// stacks of an inner level (SDM volume 3, 5.6.1).
    System,
}

/// A segment base that no TLB entry can match: sends every access through it to
/// the complete checks.
const NEVER: u64 = 1 << 62;

const SS: usize = 2;
const CS: usize = 1;

/// A hashed set of page numbers.
pub(crate) struct CodePages([u64; 64]);

impl CodePages {
    fn place(linear: u64) -> (usize, u64) {
        let n = linear >> 12;
        ((n >> 6 ^ n >> 18) as usize & 63, 1 << (n & 63))
    }
    pub fn note(&mut self, linear: u64) {
        let (word, bit) = Self::place(linear);
        self.0[word] |= bit;
    }
    pub fn may_hold(&self, linear: u64) -> bool {
        let (word, bit) = Self::place(linear);
        self.0[word] & bit != 0
    }
}

/// One processor.
#[allow(missing_docs, reason = "registers bear the manual's names")]
pub struct Cpu {
    /// General registers, then a constant zero (16), RIP (17); the rest pads to
    /// a power of two so that indexing needs no check.
    pub regs: [u64; 32],
    /// Status flags CF PF AF ZF SF OF, lazily evaluated.
    pub flags: Flags,
    /// The other RFLAGS bits (status bits zero, bit 1 set).
    pub system_flags: u64,
    /// Current privilege level, kept by `set_segment` and flag changes.
    pub cpl: u8,
    /// Instructions retired.
    pub retired: u64,
    /// The running block is left once `retired` reaches this; 0 leaves it after
    /// the current instruction.
    pub(crate) leave_at: u64,
    /// Flushes since it was last read, when an engine that keeps translations of
    /// its own asked for them (`Some`); it drains the list after every step.
    pub flush_log: Option<Vec<crate::memory::Flush>>,
    /// Each x87 instruction records where it and its operand were (FIP, FDP, FOP). An
    /// engine that executes them otherwise clears this: then only those of 16-bit code do,
    /// and the pointers change where they are loaded or initialised.
    pub x87_pointers: bool,
    /// The run's instruction limit, in terms of `retired`.
    pub(crate) limit_at: u64,
    /// Value of `retired` when virtual time was last brought up to date.
    pub(crate) synced: u64,
    /// Segment bases for accesses that need no check (by segment number, with
    /// [`SEG_FLAT`]), or [`NEVER`].
    pub(crate) read_base: [u64; 8],
    pub(crate) write_base: [u64; 8],
    pub(crate) tlb: Tlb,
    /// Default code size of CS: 16, 32 or 64.
    pub(crate) code_bits: u8,
    /// CR0.AM, RFLAGS.AC and CPL 3: misaligned accesses fault.
    pub(crate) alignment_checks: bool,
    /// Mask of the stack pointer: 16, 32 or 64 bits.
    pub(crate) stack_pointer_mask: u64,
    /// Changes whenever a virtual address may mean other code under the same
    /// address space, mode and privilege.
    pub(crate) code_epoch: u32,
    /// All that, with `code_epoch`, decides what code a value of RIP means: for
    /// the lower and the upper half of the address space. The latter leaves the
    /// address space out while all code seen there is in global pages.
    pub(crate) code_keys: [u64; 2],
    /// Code in the upper half was found in a page that is not global.
    pub(crate) private_upper_code: bool,
    /// Pages from which code was looked up by virtual address.
    pub(crate) code_pages: CodePages,
    /// CS base and limit, when 64-bit code does not ignore them.
    code_window: (u64, u32),
    /// Instruction breakpoints are enabled in DR7.
    pub(crate) code_breakpoints: bool,
    /// Data breakpoints are enabled in DR7.
    pub(crate) data_breakpoints: bool,
    /// The paging controls the TLB was filled under.
    paging_controls: [u64; 3],
    /// Whether the machine has several processors, so that LOCK must lock.
    pub(crate) smp: bool,
    /// Why this engine cannot go on, for `Halt::Failed`.
    pub(crate) failure: Option<String>,
    /// An exception that came with a loaded state and waits for delivery.
    pub(crate) injected: Option<Exception>,

    /// ES CS SS DS FS GS. Change only through `set_segment`, which keeps the
    /// derived mode and fast forms right.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    pub efer: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub pdpte: [u64; 4],
    pub msrs: Msrs,
    pub fpu: FpuState,
    pub tsc_offset: u64,
    pub activity: Activity,
    pub shadow: InterruptShadow,
    pub nmi_blocked: bool,
    /// Debug-trap bits (DR6 layout) collected by the current instruction, to be
    /// delivered as #DB after it.
    pub pending_debug: u64,
    /// The instruction being executed began with TF set and ends in a single-step
    /// trap, unless its handler says otherwise.
    pub(crate) step_trap: bool,
    /// The exception that goes with `Stop::Fault`.
    pub fault: Exception,

    pub model: Arc<CpuModel>,
    pub topology: Topology,
    pub memory: GuestMemory,
    pub clock: device_model::Clock,
    pub attention: Arc<Attention>,
    pub bus: Arc<dyn Bus>,
    /// Number of this vCPU on the bus.
    pub index: usize,
}

impl Cpu {
    /// A processor in reset state.
    pub fn new(config: VcpuConfig) -> Self {
        let s = CpuState::reset(config.index == 0, config.model.signature());
        let mut cpu = Cpu {
            regs: [0; 32],
            flags: Flags::from_rflags(0),
            system_flags: rflags::FIXED,
            cpl: 0,
            retired: 0,
            leave_at: 0,
            flush_log: None,
            x87_pointers: true,
            limit_at: 0,
            synced: 0,
            read_base: [NEVER; 8],
            write_base: [NEVER; 8],
            tlb: Tlb::new(),
            code_bits: 16,
            alignment_checks: false,
            stack_pointer_mask: 0xffff,
            code_epoch: 1,
            code_keys: [0; 2],
            private_upper_code: false,
            code_pages: CodePages([0; 64]),
            code_window: (0, 0),
            code_breakpoints: false,
            data_breakpoints: false,
            paging_controls: [0; 3],
            smp: config.topology.cpus > 1,
            failure: None,
            injected: None,
            segments: s.segments,
            ldtr: s.ldtr,
            tr: s.tr,
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            xcr0: s.xcr0,
            efer: s.efer,
            dr: s.dr,
            dr6: s.dr6,
            dr7: s.dr7,
            pdpte: s.pdpte,
            msrs: s.msrs.clone(),
            fpu: s.fpu.clone(),
            tsc_offset: s.tsc_offset,
            activity: s.activity,
            shadow: s.shadow,
            nmi_blocked: s.nmi_blocked,
            pending_debug: 0,
            step_trap: false,
            fault: Exception { vector: 0, error_code: None, payload: 0 },
            model: config.model,
            topology: config.topology,
            memory: config.memory,
            clock: config.clock,
            attention: config.attention,
            bus: config.bus,
            index: config.index,
        };
        cpu.apply(&s);
        cpu
    }

    /// The complete architectural state.
    pub fn to_state(&self) -> CpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        let debug = Exception { vector: vector::DB, error_code: None, payload: self.pending_debug };
        CpuState {
            gpr,
            rip: self.regs[REG_RIP as usize],
            rflags: self.rflags(),
            segments: self.segments,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.bus.read_cr8(self.index),
            xcr0: self.xcr0,
            efer: self.efer,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            msrs: self.msrs.clone(),
            fpu: self.fpu.clone(),
            tsc_offset: self.tsc_offset,
            activity: self.activity,
            shadow: self.shadow,
            nmi_blocked: self.nmi_blocked,
            nmi_pending: self.attention.bits() & engine::attention_bits::NMI != 0,
            pending_exception: self.injected.or((self.pending_debug != 0).then_some(debug)),
            pdpte: self.pdpte,
        }
    }

    /// Replace the complete architectural state.
    ///
    /// # Errors
    /// The reason why no processor can be in this state; nothing has changed then.
    pub fn load_state(&mut self, s: &CpuState) -> Result<(), String> {
        self.check(s)?;
        self.apply(s);
        Ok(())
    }

    /// Refuse what no sequence of instructions can lead to.
    fn check(&self, s: &CpuState) -> Result<(), String> {
        let pg = s.cr0 & cr0::PG != 0;
        if pg && s.cr0 & cr0::PE == 0 {
            return Err(format!("CR0 is {:#x}: PG without PE; set PE", s.cr0));
        }
        let lma = s.efer & efer::LMA != 0;
        if lma != (pg && s.efer & efer::LME != 0) {
            return Err(format!("EFER is {:#x} with CR0 {:#x}: LMA must be LME and PG", s.efer, s.cr0));
        }
        if lma && s.cr4 & cr4::PAE == 0 {
            return Err(format!("CR4 is {:#x}: long mode needs PAE", s.cr4));
        }
        if s.cr4 & cr4::LA57 != 0 && !self.model.has(Feature::La57) {
            return Err(format!("CR4 is {:#x}: this model has no LA57; use a model with +la57", s.cr4));
        }
        if s.rflags & rflags::VM != 0 && (lma || s.cr0 & cr0::PE == 0) {
            return Err(format!("RFLAGS is {:#x}: VM needs protected mode outside IA-32e mode", s.rflags));
        }
        if s.xcr0 & !self.model.xcr0_mask() != 0 || s.xcr0 & 1 == 0 {
            return Err(format!("XCR0 is {:#x}; the model supports {:#x}", s.xcr0, self.model.xcr0_mask()));
        }
        if s.fpu.mxcsr & !x86_state::MXCSR_MASK != 0 {
            return Err(format!(
                "MXCSR is {:#x}; bits outside {:#x} are reserved",
                s.fpu.mxcsr,
                x86_state::MXCSR_MASK
            ));
        }
        Ok(())
    }

    fn apply(&mut self, s: &CpuState) {
        self.regs = [0; 32];
        self.regs[..16].copy_from_slice(&s.gpr);
        self.regs[REG_RIP as usize] = s.rip;
        self.flags = Flags::from_rflags(s.rflags);
        self.system_flags = s.rflags & !rflags::STATUS | rflags::FIXED;
        self.segments = s.segments;
        self.ldtr = s.ldtr;
        self.tr = s.tr;
        self.gdtr = s.gdtr;
        self.idtr = s.idtr;
        (self.cr0, self.cr2, self.cr3, self.cr4) = (s.cr0, s.cr2, s.cr3, s.cr4);
        self.xcr0 = s.xcr0;
        self.efer = s.efer;
        self.dr = s.dr;
        self.dr6 = s.dr6;
        self.dr7 = s.dr7;
        self.pdpte = s.pdpte;
        self.msrs = s.msrs.clone();
        self.fpu = s.fpu.clone();
        self.tsc_offset = s.tsc_offset;
        self.activity = s.activity;
        self.shadow = s.shadow;
        self.nmi_blocked = s.nmi_blocked;
        self.failure = None;
        self.pending_debug = 0;
        self.injected = None;
        match s.pending_exception {
            Some(e) if e.vector == vector::DB && e.payload != 0 => self.pending_debug = e.payload,
            other => self.injected = other,
        }
        // CR8 is the local APIC's and travels with its state.
        if s.nmi_pending {
            self.attention.raise(engine::attention_bits::NMI);
        } else {
            self.attention.clear(engine::attention_bits::NMI);
        }
        self.flush_tlb_all();
        self.mode_changed();
        self.debug_registers_changed();
    }

    /// Record a fault and return what the handler passes up:
    /// `return Err(cpu.raise(vector::GP, Some(0)))`.
    #[cold]
    pub fn raise(&mut self, vector: u8, error_code: Option<u32>) -> Stop {
        self.fault = Exception { vector, error_code, payload: 0 };
        Stop::Fault
    }

    /// #GP(error code).
    #[cold]
    pub fn gp(&mut self, error_code: u32) -> Stop {
        self.raise(vector::GP, Some(error_code))
    }

    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }

    /// RFLAGS as software sees it.
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.flags.to_rflags()
    }

    /// Replace those RFLAGS bits that `mask` allows, with the effects on
    /// privilege, alignment checks and interrupts. The caller leaves the block
    /// (`Stop::Resync`) when IF, TF, RF or VM may have changed.
    pub fn set_rflags(&mut self, value: u64, mask: u64) {
        let new = self.rflags() & !mask | value & mask | rflags::FIXED;
        let before = self.system_flags;
        self.flags = Flags::from_rflags(new);
        self.system_flags = new & !rflags::STATUS;
        let changed = before ^ self.system_flags;
        if changed & rflags::VM != 0 {
            self.mode_changed();
        } else if changed & rflags::AC != 0 {
            self.privilege_changed();
        }
        if changed & (rflags::IF | rflags::TF | rflags::RF | rflags::VM) != 0 {
            self.leave_at = 0;
        }
    }

    /// Set RIP (already truncated to the operand size).
    #[inline(always)]
    pub fn set_rip(&mut self, rip: u64) {
        self.regs[REG_RIP as usize] = rip;
    }

    /// RIP. Within a handler: of the next instruction.
    #[inline(always)]
    pub fn rip(&self) -> u64 {
        self.regs[REG_RIP as usize]
    }

    /// Executing 64-bit code.
    #[inline(always)]
    pub fn long64(&self) -> bool {
        self.code_bits == 64
    }

    /// CR0.PE.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Virtual-8086 mode.
    #[inline(always)]
    pub fn v86(&self) -> bool {
        self.system_flags & rflags::VM != 0
    }

    /// Mask of the stack pointer for the current stack size.
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        self.stack_pointer_mask
    }

    /// Load a segment register's visible and hidden parts. CPL follows SS.
    pub fn set_segment(&mut self, index: u8, s: Segment) {
        let n = usize::from(index).min(5);
        let before = self.segments[n];
        self.segments[n] = s;
        match n {
            CS => {
                let same = before.base == s.base && before.limit == s.limit && before.access == s.access;
                // From 64-bit code to 64-bit code nothing derived changes.
                if !(same || self.code_bits == 64 && s.long()) {
                    self.mode_changed();
                }
            }
            SS => {
                if self.code_bits != 64 {
                    self.set_stack_mask();
                    self.set_bases(n);
                }
                let cpl = self.state_cpl();
                if cpl != self.cpl {
                    self.cpl = cpl;
                    self.privilege_changed();
                }
            }
            _ => self.set_bases(n),
        }
    }

    fn state_cpl(&self) -> u8 {
        if !self.protected() {
            0
        } else if self.v86() {
            3
        } else {
            self.segments[SS].dpl()
        }
    }

    fn set_stack_mask(&mut self) {
        self.stack_pointer_mask = match (self.code_bits, self.segments[SS].big()) {
            (64, _) => u64::MAX,
            (_, true) => 0xffff_ffff,
            _ => 0xffff,
        };
    }

    /// Bring derived state up to date after a change of CPL or RFLAGS.AC alone.
    fn privilege_changed(&mut self) {
        let ac = self.system_flags & rflags::AC != 0;
        if (self.cpl == 3 && ac && self.cr0 & cr0::AM != 0) != self.alignment_checks {
            self.mode_changed();
        }
        self.select_translations();
        self.set_code_key();
        self.leave_at = 0;
    }

    /// Bring derived state up to date after a change of CR0, CR3's mode bits,
    /// CR4, EFER, CS or RFLAGS.VM/AC. Empties the TLB if paging changed.
    pub fn mode_changed(&mut self) {
        let cs = self.segments[CS];
        let long = self.efer & efer::LMA != 0 && self.protected() && !self.v86();
        self.code_bits = match (long && cs.long(), cs.big()) {
            (true, _) => 64,
            (_, true) => 32,
            _ => 16,
        };
        self.cpl = self.state_cpl();
        self.alignment_checks =
            self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.system_flags & rflags::AC != 0;
        self.set_stack_mask();
        for n in 0..8 {
            self.set_bases(n);
        }
        let controls = [
            self.cr0 & (cr0::PG | cr0::WP | cr0::PE),
            self.cr4 & (cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP),
            self.efer & (efer::LMA | efer::NXE),
        ];
        if controls != self.paging_controls {
            self.paging_controls = controls;
            self.flush_tlb_all();
        }
        self.select_translations();
        let window = if self.code_bits == 64 { (0, u32::MAX) } else { (cs.base, cs.limit) };
        if window != self.code_window {
            self.code_window = window;
            self.code_epoch = self.code_epoch.wrapping_add(1);
        }
        self.set_code_key();
        self.leave_at = 0;
    }

    /// Choose the translations that need no further check: none while alignment is checked.
    fn select_translations(&mut self) {
        if self.alignment_checks {
            self.tlb.select_none();
        } else {
            self.tlb.select(self.cpl == 3, self.system_flags & rflags::AC != 0);
        }
    }

    /// Derive the key of virtual code look-ups.
    pub(crate) fn set_code_key(&mut self) {
        let user = u64::from(self.cpl == 3);
        let epoch = u64::from(self.code_epoch.wrapping_add(self.tlb.clears()));
        let shared = epoch << 32 | user << 7 | u64::from(self.code_bits);
        let private = shared | self.tlb.space() << 8;
        let upper_is_global = self.cr4 & cr4::PGE != 0 && !self.private_upper_code;
        self.code_keys = [private, if upper_is_global { shared } else { private }];
    }

    /// Virtual addresses may mean other code from now on.
    pub(crate) fn code_moved(&mut self) {
        self.code_epoch = self.code_epoch.wrapping_add(1);
        self.code_pages = CodePages([0; 64]);
        self.set_code_key();
        self.leave_at = 0;
    }

    /// Derive the unchecked bases of segment `n`.
    fn set_bases(&mut self, n: usize) {
        let (read, write) = self.bases(n);
        self.read_base[n] = read;
        self.write_base[n] = write;
    }

    fn bases(&self, n: usize) -> (u64, u64) {
        if self.alignment_checks {
            return (NEVER, NEVER);
        }
        if self.code_bits == 64 {
            let base = if n == 4 || n == 5 { self.segments[n].base } else { 0 };
            return (base, base);
        }
        if n >= SEG_FLAT as usize {
            return (0, 0);
        }
        let s = &self.segments[n];
        // Outside IA-32e mode no page lies above 4 GiB, so that a sum that would
        // wrap finds no translation and is wrapped by the complete checks.
        let flat = s.limit == u32::MAX && (s.base == 0 || self.efer & efer::LMA == 0);
        if !flat {
            return (NEVER, NEVER);
        }
        if !self.protected() {
            return (s.base, s.base);
        }
        let (code, down_or_conforming, writable_or_readable) =
            (s.kind() & 8 != 0, s.kind() & 4 != 0, s.kind() & 2 != 0);
        if !s.usable() || s.access & (Segment::PRESENT | Segment::S) != (Segment::PRESENT | Segment::S) {
            return (NEVER, NEVER);
        }
        match (code, down_or_conforming, writable_or_readable) {
            (true, _, true) => (s.base, NEVER),
            (false, false, true) => (s.base, s.base),
            (false, false, false) => (s.base, NEVER),
            _ => (NEVER, NEVER),
        }
    }

    /// Bring virtual time up to date: one nanosecond for each instruction
    /// retired since the last call. To be called before bus accesses and
    /// time-stamp reads.
    #[inline]
    pub fn sync_time(&mut self) {
        let passed = self.retired.wrapping_sub(self.synced);
        self.synced = self.retired;
        self.clock.advance(passed);
    }

    /// 64 bits of entropy for RDRAND and RDSEED: the one place where host
    /// entropy enters. In virtual time the numbers are a function of the time, so
    /// that runs repeat. `None`: the host has none to give now.
    pub fn entropy(&mut self) -> Option<u64> {
        if self.clock.is_virtual() {
            self.sync_time();
            // SplitMix64's output function: distinct inputs give distinct outputs.
            let mut z =
                (self.clock.now() << 8 | self.index as u64 & 0xff).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            return Some(z ^ z >> 31);
        }
        host_sys::entropy()
    }
}
