//! The contract of everything that executes a vCPU.
//!
//! An engine calls devices through [`Bus`]; it returns only decisions that the
//! machine must take ([`Halt`]). No vendor's name appears here. One host thread
//! runs one [`Vcpu`]; other threads reach it only through its [`Attention`].

mod attention;

use std::sync::Arc;

use device_model::{Clock, MsiSink};
use guest_memory::GuestMemory;
use x86_state::{ApicState, CpuModel, CpuState, Topology};

pub use attention::{Attention, KickGuard, attention_bits};

/// Why [`Vcpu::run`] came back. The state is at an instruction boundary.
#[derive(Debug)]
pub enum Halt {
    /// The vCPU is not active (HLT, or waiting for a startup IPI) and nothing it
    /// would wake for is pending. The caller parks on [`Attention::wait`].
    Idle,
    /// The instruction limit is used up.
    Limit,
    /// [`attention_bits::STOP`], `INIT` or `STARTUP` is raised; the caller takes
    /// the bits and acts. The engine leaves them set.
    Attention,
    /// Triple fault: the processor is in shutdown.
    TripleFault,
    /// The engine cannot go on from this state; another one may.
    Failed(EngineError),
}

/// An engine's own failure, never a guest's.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine cannot execute the instruction at this address.
    #[error("engine {engine} cannot execute the instruction at {rip:#x} (bytes {bytes:02x?}): {reason}")]
    Unsupported {
        /// Engine name.
        engine: &'static str,
        /// Guest instruction pointer.
        rip: u64,
        /// Instruction bytes, as far as they could be read.
        bytes: Vec<u8>,
        /// What is missing.
        reason: String,
    },
    /// A host operation failed.
    #[error("engine {engine}: {what}: {source}")]
    Host {
        /// Engine name.
        engine: &'static str,
        /// The operation.
        what: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// The state cannot be loaded into this engine.
    #[error("engine {engine} refuses this state: {reason}")]
    BadState {
        /// Engine name.
        engine: &'static str,
        /// What is wrong with it, with the value seen.
        reason: String,
    },
}

/// The machine around a vCPU, as engines see it. Called from vCPU threads, so
/// implementations lock; they never block on another vCPU.
///
/// Guest RAM never goes through here: engines access [`GuestMemory`] directly
/// and call the bus only for guest-physical addresses outside it, and for
/// writes to read-only memory.
pub trait Bus: Send + Sync {
    /// IN: `size` is 1, 2 or 4.
    fn port_read(&self, port: u16, size: u8) -> u32;
    /// OUT.
    fn port_write(&self, port: u16, size: u8, value: u32);
    /// Load from device memory. `size` is 1, 2, 4 or 8; the engine splits
    /// accesses at their natural alignment. Includes the local APIC page.
    fn mmio_read(&self, vcpu: usize, address: u64, size: u8) -> u64;
    /// Store to device memory.
    fn mmio_write(&self, vcpu: usize, address: u64, size: u8, value: u64);
    /// RDMSR of an MSR the platform owns: APIC_BASE, TSC_DEADLINE, x2APIC
    /// (0x800-0x8ff) and the paravirtual clock's. `None` means #GP(0).
    fn platform_msr_read(&self, vcpu: usize, index: u32) -> Option<u64>;
    /// WRMSR of such an MSR. `None` means #GP(0). TSC_DEADLINE is in the machine
    /// clock's ticks both ways: the engine takes its vCPU's offset off and adds it.
    fn platform_msr_write(&self, vcpu: usize, index: u32, value: u64) -> Option<()>;
    /// Interrupt acknowledge cycle: take the highest-priority deliverable vector
    /// from the local APIC (or, through ExtINT, the PIC). `None` if the request
    /// went away.
    fn acknowledge_interrupt(&self, vcpu: usize) -> Option<u8>;
    /// MOV from CR8: the task-priority class, 0-15.
    fn read_cr8(&self, vcpu: usize) -> u64;
    /// MOV to CR8.
    fn write_cr8(&self, vcpu: usize, value: u64);
}

/// Local interrupt controllers of all vCPUs: the user-space APICs of the
/// chipset, or an engine's own.
pub trait LocalInterrupts: MsiSink {
    /// The PIC's INTR output, wired to LINT0 of the bootstrap processor (and, in
    /// virtual-wire mode, to the processor itself).
    fn set_extint(&self, asserted: bool);
    /// NMI to one vCPU.
    fn nmi(&self, vcpu: usize);
    /// One APIC's state.
    fn apic_state(&self, vcpu: usize) -> Result<ApicState, EngineError>;
    /// Replace one APIC's state.
    fn set_apic_state(&self, vcpu: usize, state: &ApicState) -> Result<(), EngineError>;
}

/// What an engine needs to make one vCPU.
#[derive(Clone)]
pub struct VcpuConfig {
    /// Number of this vCPU, from 0; the bootstrap processor is 0.
    pub index: usize,
    /// The processor model: CPUID and MSRs are answered from it.
    pub model: Arc<CpuModel>,
    /// APIC ID and vCPU count.
    pub topology: Topology,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The machine's clock.
    pub clock: Clock,
    /// How other threads reach this vCPU.
    pub attention: Arc<Attention>,
    /// The machine around it.
    pub bus: Arc<dyn Bus>,
}

/// One vCPU on one engine.
pub trait Vcpu: Send {
    /// Execute until a decision is needed or `limit` instructions have retired
    /// (`u64::MAX`: no limit). A fault that is delivered counts towards `limit`,
    /// though not as retired, so that a limited run always ends. With a virtual clock the engine advances the clock
    /// by one nanosecond for each retired instruction before every bus access
    /// or time-stamp read, and before returning.
    ///
    /// Interrupts: whenever [`attention_bits::INTERRUPT`] is raised, RFLAGS.IF is
    /// set and no shadow blocks, the engine calls [`Bus::acknowledge_interrupt`]
    /// at the next boundary and delivers the vector. It takes the `NMI` bit itself.
    fn run(&mut self, limit: u64) -> Halt;

    /// The complete architectural state.
    fn state(&mut self) -> Result<CpuState, EngineError>;

    /// Replace the complete architectural state. On error nothing has changed.
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError>;

    /// Instructions retired since creation, if the engine counts them.
    fn retired(&self) -> Option<u64>;

    /// Named counters for statistics.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// The machine's clock has stood still while the host's ran for `ticks` of
    /// the guest's TSC. Engines whose guests read hardware's counter take that
    /// much off it; those that read [`VcpuConfig::clock`] have nothing to do.
    ///
    /// # Errors
    /// When the host refuses; the guest's TSC has jumped then.
    fn clock_stood_still(&mut self, ticks: u64) -> Result<(), EngineError> {
        let _ = ticks;
        Ok(())
    }
}

/// A way of executing vCPUs.
pub trait Engine: Send + Sync {
    /// `kvm`, `jit` or `interp`.
    fn name(&self) -> &'static str;
    /// Make a vCPU, in reset state.
    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError>;
    /// The engine's own local APICs, if it brings them; else the platform's are used.
    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>>;
    /// Whether the guest's time can stand still while the machine is paused:
    /// false where guests read a counter of the host's that nobody can move.
    fn time_can_stop(&self) -> bool {
        true
    }
}
