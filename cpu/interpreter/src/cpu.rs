//! The working state of one processor.

use std::sync::Arc;

use engine::{Attention, Bus, VcpuConfig};
use guest_memory::GuestMemory;
use x86_semantics::flags::Flags;
use x86_state::{CpuModel, CpuState, Exception, FpuState, Msrs, Segment, TableRegister, Topology, vector};

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

/// One processor.
pub struct Cpu {
    /// General registers, then a constant zero (16), RIP (17); the rest pads to
    /// a power of two so that indexing needs no check.
    pub regs: [u64; 32],
    /// Status flags CF PF AF ZF SF OF, lazily evaluated.
    pub flags: Flags,
    /// The other RFLAGS bits (status bits zero, bit 1 set).
    pub system_flags: u64,
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
    pub activity: x86_state::Activity,
    pub shadow: x86_state::InterruptShadow,
    pub nmi_blocked: bool,
    /// Debug-trap bits (DR6 layout) collected by the current instruction, to be
    /// delivered as #DB after it.
    pub pending_debug: u64,
    /// Current privilege level, kept by `set_segment` and flag changes.
    pub cpl: u8,
    /// The exception that goes with `Stop::Fault`.
    pub fault: Exception,
    /// Instructions retired.
    pub retired: u64,

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
        let reset = CpuState::reset(config.index == 0, config.model.signature());
        let _ = reset;
        todo!("core")
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
}
