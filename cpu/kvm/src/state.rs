//! Export and import of the complete architectural state.

use engine::{EngineError, attention_bits};
use kvm_bindings::{kvm_debugregs, kvm_xcrs};
use x86_state::{
    Activity, CpuState, InterruptShadow, Segment, SegmentIndex, TableRegister, dr6, efer, reg, rflags, vector,
};

use crate::vcpu::KvmVcpu;
use crate::vm::{host, kvm_error};
use crate::{NAME, convert, sys};

/// APIC base of a processor whose APIC the platform owns, enabled at its usual
/// place, so that KVM leaves CPUID's APIC bit on. Bit 8 marks the bootstrap processor.
const APIC_BASE: u64 = 0xfee0_0800;

fn refused(what: &str, source: &std::io::Error) -> EngineError {
    EngineError::BadState { engine: NAME, reason: format!("KVM does not take the {what}: {source}") }
}

impl KvmVcpu {
    /// The state as KVM has it. No I/O or MSR access is pending.
    pub(crate) fn export(&mut self) -> Result<CpuState, EngineError> {
        self.finish()?;
        // First: where KVM cannot keep an exception's payload apart, asking for events puts it into CR2 or DR6.
        let events = self.fd.get_vcpu_events().map_err(kvm_error("KVM_GET_VCPU_EVENTS"))?;
        let mut s = CpuState::reset(true, 0);
        convert::regs_from_kvm(&self.fd.get_regs().map_err(kvm_error("KVM_GET_REGS"))?, &mut s);
        convert::sregs_from_kvm(&sys::sregs2(&self.fd).map_err(host("KVM_GET_SREGS2"))?, &mut s);
        let debug = self.fd.get_debug_regs().map_err(kvm_error("KVM_GET_DEBUGREGS"))?;
        (s.dr, s.dr6, s.dr7) = (debug.db, debug.dr6, debug.dr7);
        convert::events_from_kvm(&events, &mut s);
        if self.confined.is_some() {
            // What was being delivered happens again on the assistant. A breakpoint is a trap:
            // to happen again it needs its instruction, one byte back.
            s.pending_exception = None;
            if events.exception.nr == vector::BP {
                s.rip = s.rip.wrapping_sub(1);
            }
        }
        let xcrs = self.fd.get_xcrs().map_err(kvm_error("KVM_GET_XCRS"))?;
        s.xcr0 = xcrs.xcrs[0].value;
        let xsave = self.fd.get_xsave().map_err(kvm_error("KVM_GET_XSAVE"))?;
        s.fpu = convert::fpu_from_xsave(&xsave);
        s.msrs = self.msrs.export(&self.fd).map_err(host("KVM_GET_MSRS"))?;
        if let Some(c) = &self.confined {
            c.undo(&mut s);
        }
        s.tsc_offset = self.tsc.offset(&self.fd, &self.config.clock);
        s.cr8 = self.config.bus.read_cr8(self.config.index);
        s.activity = self.activity;
        Ok(s)
    }

    /// Replace the state in KVM. On error the state before is still there.
    pub(crate) fn import(&mut self, s: &CpuState) -> Result<(), EngineError> {
        self.finish()?;
        if self.shared.options.shadow_paging {
            self.shared.forget_shadow()?;
        }
        let before = self.export()?;
        let result = match self.confinement(s)? {
            Some(confined) => {
                let inner = confined.apply_to(s);
                self.load(&inner).map(|()| self.confined = Some(confined))
            }
            None => self.load(s).map(|()| self.confined = None),
        };
        if result.is_err() {
            self.confined = None;
            self.load(&before)?;
        } else if s.nmi_pending {
            // KVM has it now.
            self.config.attention.take(attention_bits::NMI);
        }
        result
    }

    /// How user code is to be confined; `None` for supervisor code, and where
    /// KVM delivers events itself.
    fn confinement(&self, s: &CpuState) -> Result<Option<Confined>, EngineError> {
        let options = &self.shared.options;
        if !options.confine_user || options.assistant.is_none() || s.cpl() != 3 {
            return Ok(None);
        }
        // Debug traps come after their instruction and cannot be found by executing it again.
        let traps = s.rflags & rflags::TF != 0 || s.dr7 & ENABLED_BREAKPOINTS != 0;
        let events = s.pending_exception.is_some() || s.nmi_pending || s.shadow != InterruptShadow::None;
        if traps || events || !s.segments[SegmentIndex::Cs as usize].long() {
            let reason = "user code that only the assistant can execute".into();
            return Err(EngineError::BadState { engine: NAME, reason });
        }
        let [_, cs, ss, ..] = s.segments;
        let (lstar, sysenter_cs) = (s.msrs.lstar, s.msrs.sysenter_cs);
        Ok(Some(Confined { idtr: s.idtr, efer: s.efer, lstar, sysenter_cs, cs, ss }))
    }

    /// Load a state; on error part of it may have been.
    pub(crate) fn load(&mut self, s: &CpuState) -> Result<(), EngineError> {
        let fd = &self.fd;
        let bad = |what: &str, e| refused(what, &sys::errno(e));
        let bsp = if self.config.index == 0 { 1 << 8 } else { 0 };
        // XCR0 depends on CR4, the segments on CR0 and EFER: this order suits all.
        let sregs = convert::sregs_to_kvm(s, APIC_BASE | bsp);
        sys::set_sregs2(fd, &sregs).map_err(|e| {
            let registers =
                format!("control registers (CR0={:#x} CR4={:#x} EFER={:#x})", s.cr0, s.cr4, s.efer);
            refused(&registers, &e)
        })?;
        fd.set_regs(&convert::regs_to_kvm(s)).map_err(|e| bad("general registers", e))?;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = s.xcr0;
        fd.set_xcrs(&xcrs).map_err(|e| bad(&format!("XCR0 {:#x}", s.xcr0), e))?;
        let mut xsave = fd.get_xsave().map_err(kvm_error("KVM_GET_XSAVE"))?;
        convert::fpu_to_xsave(&s.fpu, self.shared.xsave_components, &mut xsave);
        sys::set_xsave(fd, &xsave).map_err(|e| refused("x87 and vector registers", &e))?;
        let debug = kvm_debugregs { db: s.dr, dr6: s.dr6 | dr6::FIXED, dr7: s.dr7, ..Default::default() };
        fd.set_debug_regs(&debug).map_err(|e| bad("debug registers", e))?;
        self.msrs.import(fd, &s.msrs).map_err(|index| EngineError::BadState {
            engine: NAME,
            reason: format!("KVM does not take MSR {index:#x}"),
        })?;
        let events = convert::events_to_kvm(s, self.shared.exception_payload);
        fd.set_vcpu_events(&events).map_err(|e| bad("pending events", e))?;
        self.tsc.set_offset(fd, &self.config.clock, &self.shared.tsc_base, s.tsc_offset)?;
        self.activity = convert::activity_to_kvm(s);
        self.nmi_given = s.nmi_pending;
        let free = s.pending_exception.is_none() && !s.nmi_pending && s.shadow == InterruptShadow::None;
        self.interrupts_on = s.rflags & rflags::IF != 0;
        self.ready = self.interrupts_on && free && s.activity != Activity::WaitForSipi;
        Ok(())
    }
}

/// DR7: local and global enables of all four breakpoints.
const ENABLED_BREAKPOINTS: u64 = 0xff;

/// Where SYSCALL leads in confined user code: the first address of the upper
/// half, which no system maps for user code.
const NOWHERE: u64 = 0xffff_8000_0000_0000;
/// Bytes of SYSCALL.
const SYSCALL_LEN: u64 = 2;

/// What user code in KVM runs without: every way into supervisor code. An
/// event there ends in a shutdown, before the instruction that caused it.
#[derive(Debug, Clone)]
pub(crate) struct Confined {
    idtr: TableRegister,
    efer: u64,
    lstar: u64,
    sysenter_cs: u64,
    cs: Segment,
    ss: Segment,
}

impl Confined {
    /// The state to run in KVM.
    fn apply_to(&self, s: &CpuState) -> CpuState {
        let mut inner = s.clone();
        inner.idtr.limit = 0;
        inner.efer &= !efer::SCE;
        inner.msrs.lstar = NOWHERE;
        inner.msrs.sysenter_cs = 0;
        inner
    }

    /// The guest's own state, from what KVM has after running.
    fn undo(&self, s: &mut CpuState) {
        s.idtr = self.idtr;
        s.efer = self.efer;
        s.msrs.lstar = self.lstar;
        s.msrs.sysenter_cs = self.sysenter_cs;
        if s.rip == NOWHERE {
            // A KVM that does not look at EFER.SCE executed SYSCALL. It happens again on the
            // assistant; what it left in RCX and R11 it will leave there again.
            s.rip = s.gpr[reg::RCX].wrapping_sub(SYSCALL_LEN);
            s.rflags = s.gpr[reg::R11];
            s.segments[SegmentIndex::Cs as usize] = self.cs;
            s.segments[SegmentIndex::Ss as usize] = self.ss;
        }
    }
}
