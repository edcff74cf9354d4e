//! The architectural state of one logical processor.

use serde::{Deserialize, Serialize};

use crate::{FpuState, Msrs, Segment, TableRegister, bits};

/// General-purpose register numbers, in the order of instruction encodings.
pub mod reg {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// What the processor is doing (SDM volume 3, 25.4.2 uses the same states).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    Active,
    /// In HLT, waiting for an interrupt.
    Halted,
    /// After INIT on an application processor, waiting for a startup IPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// Blocking of events for one instruction (SDM volume 3, 7.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptShadow {
    /// None.
    None,
    /// After STI: maskable interrupts wait one instruction.
    Sti,
    /// After MOV SS or POP SS: interrupts and debug traps wait one instruction.
    MovSs,
}

/// A fault, trap or abort with what is delivered with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Vector, 0-31; as a pending event also 32-255, an external interrupt that
    /// was acknowledged but not delivered yet.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// For #PF: the value for CR2. For #DB: bits for DR6. Else 0.
    pub payload: u64,
}

/// Everything the architecture defines for one logical processor, except its
/// local APIC ([`crate::ApicState`]), which the platform owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub struct CpuState {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8-R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// ES CS SS DS FS GS.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// Task priority as MOV CR8 sees it, 0-15. Mirrors the local APIC's TPR;
    /// authoritative here only while no APIC is attached.
    pub cr8: u64,
    pub xcr0: u64,
    pub efer: u64,
    /// DR0-DR3.
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub msrs: Msrs,
    pub fpu: FpuState,
    /// Added to the machine clock's TSC to give the guest's TSC.
    pub tsc_offset: u64,
    pub activity: Activity,
    pub shadow: InterruptShadow,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI has arrived and waits.
    pub nmi_pending: bool,
    /// An exception recognised but not delivered yet, e.g. a pending debug trap.
    pub pending_exception: Option<Exception>,
    /// The four PAE page-directory-pointer entries, loaded by MOV CR3 (valid in
    /// PAE paging only).
    pub pdpte: [u64; 4],
}

impl CpuState {
    /// State after hardware reset (SDM volume 3, table 10-1). `bsp` is the
    /// bootstrap processor; others wait for a startup IPI. `signature` is
    /// CPUID.1.EAX, which reset leaves in EDX.
    pub fn reset(bsp: bool, signature: u32) -> Self {
        let data = Segment::real_mode(0, false);
        let mut gpr = [0; 16];
        gpr[reg::RDX] = u64::from(signature);
        let mut s = CpuState {
            gpr,
            rip: 0xfff0,
            rflags: bits::rflags::FIXED,
            segments: [data; 6],
            ldtr: Segment { limit: 0xffff, access: 0x82, ..Default::default() },
            tr: Segment { limit: 0xffff, access: 0x8b, ..Default::default() },
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: bits::cr0::CD | bits::cr0::NW | bits::cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: bits::xcr0::X87,
            efer: 0,
            dr: [0; 4],
            dr6: bits::dr6::FIXED,
            dr7: bits::dr7::FIXED,
            msrs: Msrs::reset(),
            fpu: FpuState::reset(),
            tsc_offset: 0,
            activity: if bsp { Activity::Active } else { Activity::WaitForSipi },
            shadow: InterruptShadow::None,
            nmi_blocked: false,
            nmi_pending: false,
            pending_exception: None,
            pdpte: [0; 4],
        };
        s.segments[1] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, access: 0x9b };
        s
    }

    /// Apply INIT (SDM volume 3, 10.1 and table 10-1): as reset, but the x87,
    /// vector registers, MSRs (other than EFER's LMA effect through CR0), TSC
    /// and CR0's CD/NW survive.
    pub fn init(&mut self, bsp: bool, signature: u32) {
        let mut s = CpuState::reset(bsp, signature);
        s.fpu = self.fpu.clone();
        s.msrs = self.msrs.clone();
        s.tsc_offset = self.tsc_offset;
        s.xcr0 = self.xcr0;
        s.cr0 = (self.cr0 & (bits::cr0::CD | bits::cr0::NW)) | bits::cr0::ET;
        *self = s;
    }

    /// Apply a startup IPI: real mode at `vector << 12`.
    pub fn startup(&mut self, vector: u8) {
        self.segments[1] = Segment::real_mode(u16::from(vector) << 8, true);
        self.rip = 0;
        self.activity = Activity::Active;
    }

    /// Current privilege level: SS.DPL in protected mode, 0 in real mode, 3 in
    /// virtual-8086 mode.
    pub fn cpl(&self) -> u8 {
        if self.cr0 & bits::cr0::PE == 0 {
            0
        } else if self.rflags & bits::rflags::VM != 0 {
            3
        } else {
            self.segments[2].dpl()
        }
    }
}
