//! The VM: memory, capabilities, and the engine that makes vCPUs in it.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use device_model::Clock;
use engine::{Engine, EngineError, LocalInterrupts, Vcpu, VcpuConfig};
use guest_memory::{GuestMemory, PAGE_SIZE, RegionKind};
use kvm_bindings::{KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_USER_SPACE_MSR, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, MsrExitReason, VmFd};
use x86_state::{CpuModel, PhysicalBits};

use crate::assist::Assistance;
use crate::probe::ProbeResult;
use crate::vcpu::KvmVcpu;
use crate::{NAME, cpuid, msr, sys, tsc};

/// Where KVM keeps a page of its own on processors without unrestricted guest
/// mode: between the local APIC's page and the 16 MiB that firmware may take, an
/// area of the memory map no machine uses.
const IDENTITY_MAP_ADDRESS: u64 = 0xfeff_c000;
/// Three more such pages.
const TSS_ADDRESS: u64 = IDENTITY_MAP_ADDRESS + PAGE_SIZE;

/// Where the passing page is: the last page that processors of every model can address.
const PASSING_ADDRESS: u64 = (1 << PhysicalBits::MAX) - PAGE_SIZE;

/// What to do about model features that KVM cannot give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingFeatures {
    /// Refuse the model and list them.
    #[default]
    Refuse,
    /// Go on; CPUID still shows them. Right where an assistant executes what KVM
    /// cannot, and on hosts where user code runs on the bare processor.
    Continue,
}

/// How to set the engine up.
#[derive(Clone, Default)]
pub struct Options {
    /// Features the host lacks.
    pub missing: MissingFeatures,
    /// The engine that completes what KVM cannot execute.
    pub assistant: Option<Arc<dyn Engine>>,
    /// When the assistant is used.
    pub assistance: Assistance,
    /// Let KVM execute nothing but plain instructions of user code: system calls,
    /// exceptions and interrupts there are the assistant's. For hosts whose KVM
    /// does not deliver them as the architecture says. Needs an assistant.
    pub confine_user: bool,
    /// KVM follows the guest's page tables by trapping writes to them, so those
    /// of anyone else must make it forget what it derived (hosts without nested paging).
    pub shadow_paging: bool,
    /// Run code in KVM even if KVM shows guests another CPUID than the model's,
    /// which it does where it cannot intercept the instruction. Otherwise all
    /// code is the assistant's on such a host.
    pub accept_other_cpuid: bool,
}

impl Options {
    /// What suits a host of which `probe` is known.
    pub fn for_host(probe: &ProbeResult, assistant: Arc<dyn Engine>) -> Options {
        let native = probe.ring0_native;
        Options {
            missing: MissingFeatures::Continue,
            assistant: Some(assistant),
            assistance: if native { Assistance::OnFailure } else { Assistance::Supervisor },
            confine_user: !native,
            shadow_paging: !native,
            accept_other_cpuid: false,
        }
    }

    /// Whether a shutdown that KVM reports may be an event that it cannot deliver,
    /// which the assistant can. Elsewhere it is a triple fault, and there may be no
    /// state to go on from: AMD's processors leave theirs undefined, so that KVM
    /// resets the vCPU before it tells.
    pub(crate) fn rechecks_shutdowns(&self) -> bool {
        self.assistant.is_some() && self.confine_user
    }
}

/// What all vCPUs of a VM share.
pub(crate) struct Shared {
    pub(crate) vm: VmFd,
    /// Keeps the mapping that the memory slots point into; dropped after `vm`.
    pub(crate) memory: GuestMemory,
    pub(crate) options: Options,
    /// KVM keeps exceptions apart from their payloads.
    pub(crate) exception_payload: bool,
    /// XSAVE components the host manages.
    pub(crate) xsave_components: u64,
    /// A page in a memory slot that comes and goes; see [`Shared::forget_shadow`].
    passing: Mutex<Option<GuestMemory>>,
    /// KVM's TSC offset at which guests read the machine clock's TSC.
    pub(crate) tsc_base: OnceLock<u64>,
    /// Whether guests can have a TSC of their own; known once a vCPU exists.
    pub(crate) tsc_movable: OnceLock<bool>,
}

impl Shared {
    /// Make KVM forget all it derived from guest page tables: it does when any
    /// memory slot is removed.
    pub(crate) fn forget_shadow(&self) -> Result<(), EngineError> {
        let mut passing = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        let page = match &mut *passing {
            Some(page) => page,
            none => none.insert(
                GuestMemory::flat(PAGE_SIZE)
                    .map_err(|e| EngineError::BadState { engine: NAME, reason: e.to_string() })?,
            ),
        };
        let slot = self.memory.map().regions().count() as u32;
        let address = page.host_mapping().0 as u64;
        for size in [PAGE_SIZE, 0] {
            sys::map_memory(&self.vm, slot, PASSING_ADDRESS, size, address, true)
                .map_err(host("renew KVM's shadow page tables"))?;
        }
        Ok(())
    }
}

/// The engine. Its VM and memory slots exist from the start; vCPUs are added.
pub struct KvmEngine {
    shared: Arc<Shared>,
    missing: Vec<&'static str>,
}

/// An error of the host, with what was attempted.
pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> EngineError {
    let what = what.into();
    move |source| EngineError::Host { engine: NAME, what, source }
}

/// The same for kvm-ioctls' error type.
pub(crate) fn kvm_error(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> EngineError {
    let with = host(what);
    move |e| with(sys::errno(e))
}

pub(crate) fn open() -> Result<Kvm, EngineError> {
    Kvm::new().map_err(kvm_error(
        "open /dev/kvm (is it there, and may this user read and write it? else choose another --engine)",
    ))
}

/// What vCPUs of this host's KVM see when they read the TSC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTsc {
    /// Frequency in kHz. Where KVM cannot scale, a model must state this one.
    pub khz: u32,
    /// KVM can give a guest a TSC of its own; else guests see the host's.
    pub movable: bool,
}

/// The TSC of this host's KVM; `None` without a usable /dev/kvm.
pub fn host_tsc() -> Option<HostTsc> {
    let vcpu = Kvm::new().ok()?.create_vm().ok()?.create_vcpu(0).ok()?;
    let khz = vcpu.get_tsc_khz().ok()?;
    Some(HostTsc { khz, movable: tsc::is_movable(&vcpu) })
}

impl HostTsc {
    /// A clock for a machine on this host, whose ticks are the host's TSC's where
    /// that is a clock: it starts at 0 where guests can have a TSC of their own, and
    /// else where the host's is.
    pub fn clock(self) -> Clock {
        if self.movable {
            // Not at the rate that was measured for the host's TSC: guests have theirs at the stated one.
            return Clock::host_with_tsc(self.khz, 0);
        }
        // An interruption between the two readings would set them apart: take the tightest pair.
        let once = || {
            let before = tsc::host_now();
            let clock = Clock::host_with_tsc(self.khz, before);
            (tsc::host_now().wrapping_sub(before), clock)
        };
        let (mut took, mut clock) = once();
        for _ in 0..7 {
            let next = once();
            if next.0 < took {
                (took, clock) = next;
            }
        }
        clock
    }
}

impl KvmEngine {
    /// Make a VM around `memory` for vCPUs of `model`.
    ///
    /// # Errors
    /// When /dev/kvm is absent, too old or forbidden, when it cannot give the
    /// model's features (see [`MissingFeatures`]), and when `clock` is virtual:
    /// KVM does not count instructions.
    pub fn new(
        memory: &GuestMemory,
        model: &CpuModel,
        clock: &Clock,
        options: Options,
    ) -> Result<KvmEngine, EngineError> {
        let refuse = |reason| Err(EngineError::BadState { engine: NAME, reason });
        if clock.is_virtual() {
            return refuse(
                "virtual time needs an engine that counts instructions; use --engine interp".into(),
            );
        }
        let kvm = open()?;
        for (cap, name) in [
            (Cap::UserMemory, "user memory"),
            (Cap::ReadonlyMem, "read-only memory"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::X86UserSpaceMsr, "user-space MSRs"),
            (Cap::X86MsrFilter, "MSR filters"),
            (Cap::Xsave, "XSAVE"),
            (Cap::Xcrs, "XCRs"),
            (Cap::Debugregs, "debug registers"),
            (Cap::VcpuEvents, "vCPU events"),
        ] {
            if !kvm.check_extension(cap) {
                return refuse(format!("/dev/kvm lacks {name}; Linux 5.14 or later is needed"));
            }
        }
        let missing = cpuid::missing(&kvm, model).map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
        if options.missing == MissingFeatures::Refuse && !missing.is_empty() {
            let without = missing.join(",-");
            return refuse(format!(
                "this host's KVM lacks features of CPU model {model}; use --cpu {model},-{without} or --engine interp"
            ));
        }
        let vm = kvm.create_vm().map_err(kvm_error("KVM_CREATE_VM"))?;
        let exception_payload = Self::configure(&vm, model)?;
        Self::map_memory(&vm, memory)?;
        let shared = Shared {
            vm,
            memory: memory.clone(),
            options,
            exception_payload,
            xsave_components: host_xsave_components(),
            passing: Mutex::default(),
            tsc_base: OnceLock::new(),
            tsc_movable: OnceLock::new(),
        };
        Ok(KvmEngine { shared: Arc::new(shared), missing })
    }

    /// Enable what the run loop relies on. Returns whether exceptions and their
    /// payloads are kept apart.
    fn configure(vm: &VmFd, model: &CpuModel) -> Result<bool, EngineError> {
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TSS_ADDRESS as usize).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
        let reasons = MsrExitReason::Unknown | MsrExitReason::Inval | MsrExitReason::Filter;
        let enable = |cap, argument| {
            let mut request = kvm_enable_cap { cap, ..Default::default() };
            request.args[0] = argument;
            vm.enable_cap(&request)
        };
        enable(KVM_CAP_X86_USER_SPACE_MSR, u64::from(reasons.bits()))
            .map_err(kvm_error("enable KVM_CAP_X86_USER_SPACE_MSR"))?;
        msr::install_filter(vm, model).map_err(kvm_error("KVM_X86_SET_MSR_FILTER"))?;
        Ok(enable(KVM_CAP_EXCEPTION_PAYLOAD, 1).is_ok())
    }

    fn map_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), EngineError> {
        let (base, _) = memory.host_mapping();
        for (slot, (region, offset)) in memory.map().regions().enumerate() {
            let (address, size) = (base as u64 + offset.0, region.size);
            let read_only = region.kind == RegionKind::Rom;
            sys::map_memory(vm, slot as u32, region.start, size, address, read_only)
                .map_err(host(format!("map guest memory {:#x}+{size:#x}", region.start)))?;
        }
        Ok(())
    }

    /// Features of the model that this host's KVM does not give.
    pub fn missing_features(&self) -> &[&'static str] {
        &self.missing
    }
}

/// x87 and SSE always; AVX where the host has it.
fn host_xsave_components() -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        return 7;
    }
    3
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(KvmVcpu::new(self.shared.clone(), config)?))
    }

    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
        None
    }

    fn time_can_stop(&self) -> bool {
        self.shared.tsc_movable.get().copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvms_own_pages_are_beside_the_local_apics_and_any_firmware() {
        const APIC_END: u64 = 0xfef0_0000;
        const FIRMWARE: u64 = (1 << 32) - (16 << 20);
        let ours = IDENTITY_MAP_ADDRESS..TSS_ADDRESS + 3 * PAGE_SIZE;
        assert!(ours.start >= APIC_END && ours.end <= FIRMWARE, "{ours:x?}");
    }

    /// An engine that is there and no more.
    struct Nobody;

    impl Engine for Nobody {
        fn name(&self) -> &'static str {
            "nobody"
        }
        fn create_vcpu(&self, _: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
            unreachable!("not in this test")
        }
        fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
            None
        }
    }

    #[test]
    fn a_shutdown_is_final_where_supervisor_code_runs_on_the_processor() {
        for (ring0_native, rechecks) in [(true, false), (false, true)] {
            let host = ProbeResult { ring0_native, ..ProbeResult::default() };
            assert_eq!(Options::for_host(&host, Arc::new(Nobody)).rechecks_shutdowns(), rechecks);
        }
        assert!(!Options { confine_user: true, ..Options::default() }.rechecks_shutdowns());
    }
}
