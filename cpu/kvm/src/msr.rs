//! Model-specific registers: which of them KVM keeps, and the rest.
//!
//! The platform's MSRs (local APIC, paravirtual clock) go to the bus. Those a
//! guest's speed depends on live in KVM. All others are kept here and reach us
//! through the MSR filter, so that they behave as the model says whatever the host is.

use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use x86_state::{CpuModel, Feature, Msrs, PhysicalBits, msr_index};

use crate::sys;

/// MSRs that KVM keeps where it can.
const IN_KVM: [u32; 11] = [
    msr_index::STAR,
    msr_index::LSTAR,
    msr_index::CSTAR,
    msr_index::SFMASK,
    msr_index::KERNEL_GS_BASE,
    msr_index::TSC_AUX,
    msr_index::TSC_ADJUST,
    msr_index::SYSENTER_CS,
    msr_index::SYSENTER_ESP,
    msr_index::SYSENTER_EIP,
    msr_index::PAT,
];

const MCG_CTL: u32 = 0x17b;
const MTRR_LAST_FIXED: u32 = 0x26f;
const MTRR_CAPABILITIES: u64 = Msrs::VARIABLE_MTRRS as u64 | 1 << 8 | 1 << 10;
/// Machine-check banks reported to the guest.
const MCA_BANKS: u64 = 0;

/// First MSR and count of the runs that KVM must hand to us.
const FILTERED: [(u32, u32); 16] = [
    (msr_index::KVM_WALL_CLOCK_OLD, 2),
    (msr_index::PLATFORM_ID, 1),
    (msr_index::APIC_BASE, 1),
    (msr_index::FEATURE_CONTROL, 1),
    (msr_index::SPEC_CTRL, 2),
    (msr_index::BIOS_SIGN_ID, 1),
    (msr_index::MTRR_CAP, 1),
    (msr_index::ARCH_CAPABILITIES, 1),
    (msr_index::MCG_CAP, 3),
    (msr_index::MISC_ENABLE, 1),
    (msr_index::DEBUGCTL, 1),
    (msr_index::MTRR_PHYS_BASE0, MTRR_LAST_FIXED - msr_index::MTRR_PHYS_BASE0 + 1),
    (msr_index::MTRR_DEF_TYPE, 1),
    (msr_index::TSC_DEADLINE, 1),
    (msr_index::XSS, 1),
    (msr_index::KVM_WALL_CLOCK, 16),
];

/// Make KVM exit for the MSRs it does not keep for us.
pub(crate) fn install_filter(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    const NONE_ALLOWED: [u8; 16] = [0; 16];
    let ranges = FILTERED.map(|(base, msr_count)| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count,
        bitmap: &NONE_ALLOWED,
    });
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
}

/// True for MSRs that belong to the machine around the processor.
pub(crate) fn is_platform(index: u32) -> bool {
    use msr_index as m;
    matches!(index, m::APIC_BASE | m::TSC_DEADLINE | m::KVM_WALL_CLOCK_OLD | m::KVM_SYSTEM_TIME_OLD)
        || (m::X2APIC_FIRST..=m::X2APIC_LAST).contains(&index)
        || (m::KVM_WALL_CLOCK..m::KVM_WALL_CLOCK + 16).contains(&index)
}

/// The stored value of an MSR that is nothing but storage to software.
fn field(m: &mut Msrs, index: u32) -> Option<&mut u64> {
    use msr_index as i;
    Some(match index {
        i::STAR => &mut m.star,
        i::LSTAR => &mut m.lstar,
        i::CSTAR => &mut m.cstar,
        i::SFMASK => &mut m.sfmask,
        i::KERNEL_GS_BASE => &mut m.kernel_gs_base,
        i::TSC_AUX => &mut m.tsc_aux,
        i::TSC_ADJUST => &mut m.tsc_adjust,
        i::SYSENTER_CS => &mut m.sysenter_cs,
        i::SYSENTER_ESP => &mut m.sysenter_esp,
        i::SYSENTER_EIP => &mut m.sysenter_eip,
        i::PAT => &mut m.pat,
        i::MISC_ENABLE => &mut m.misc_enable,
        i::DEBUGCTL => &mut m.debugctl,
        i::SPEC_CTRL => &mut m.spec_ctrl,
        i::MTRR_DEF_TYPE => &mut m.mtrr_def_type,
        i::MTRR_FIX64K => &mut m.mtrr_fixed[0],
        i::MTRR_FIX16K_80000 => &mut m.mtrr_fixed[1],
        i::MTRR_FIX16K_A0000 => &mut m.mtrr_fixed[2],
        i::MTRR_FIX4K_C0000..=MTRR_LAST_FIXED => {
            m.mtrr_fixed.get_mut(3 + (index - i::MTRR_FIX4K_C0000) as usize)?
        }
        i::MTRR_PHYS_BASE0..i::MTRR_FIX64K => {
            let pair = m.mtrr_variable.get_mut((index - i::MTRR_PHYS_BASE0) as usize / 2)?;
            if index & 1 == 0 { &mut pair.0 } else { &mut pair.1 }
        }
        i::MCG_STATUS => &mut m.mcg_status,
        i::BIOS_SIGN_ID => &mut m.bios_sign_id,
        _ => return None,
    })
}

/// The MSRs of one vCPU that are not the platform's.
pub(crate) struct MsrFile {
    /// What KVM keeps here, and so is fetched for an export.
    in_kvm: Vec<u32>,
    /// The values of all others (those in KVM are stale here).
    kept: Msrs,
}

impl MsrFile {
    /// Find out what this KVM keeps; CPUID must have been set.
    pub(crate) fn new(vcpu: &VcpuFd) -> Self {
        let in_kvm = IN_KVM.into_iter().filter(|&index| read_one(vcpu, index).is_some()).collect();
        MsrFile { in_kvm, kept: Msrs::reset() }
    }

    /// All values.
    pub(crate) fn export(&self, vcpu: &VcpuFd) -> std::io::Result<Msrs> {
        let mut all = self.kept.clone();
        let mut list = entries(self.in_kvm.iter().map(|&i| (i, 0)));
        let got = vcpu.get_msrs(&mut list).map_err(sys::errno)?;
        for e in &list.as_slice()[..got.min(self.in_kvm.len())] {
            if let Some(f) = field(&mut all, e.index) {
                *f = e.data;
            }
        }
        Ok(all)
    }

    /// Replace all values. Fails, with the MSR, where KVM refuses one.
    pub(crate) fn import(&mut self, vcpu: &VcpuFd, values: &Msrs) -> Result<(), u32> {
        let mut all = values.clone();
        let pairs: Vec<_> = self.in_kvm.iter().filter_map(|&i| field(&mut all, i).map(|f| (i, *f))).collect();
        let list = entries(pairs.iter().copied());
        let taken = vcpu.set_msrs(&list).unwrap_or(0);
        match pairs.get(taken) {
            Some(&(refused, _)) => Err(refused),
            None => {
                self.kept = all;
                Ok(())
            }
        }
    }

    /// RDMSR that came to us. `None` is #GP(0).
    pub(crate) fn read(&mut self, model: &CpuModel, index: u32) -> Option<u64> {
        use msr_index as i;
        match index {
            i::PLATFORM_ID | MCG_CTL | i::XSS => Some(0),
            i::SPEC_CTRL if !model.has(Feature::SpecCtrl) => None,
            // Locked, VMX off.
            i::FEATURE_CONTROL => Some(1),
            i::ARCH_CAPABILITIES if model.has(Feature::ArchCapabilities) => Some(model.arch_capabilities()),
            i::MTRR_CAP => Some(MTRR_CAPABILITIES),
            i::MCG_CAP => Some(MCA_BANKS),
            _ => field(&mut self.kept, index).map(|f| *f),
        }
    }

    /// WRMSR that came to us. `None` is #GP(0).
    pub(crate) fn write(&mut self, model: &CpuModel, index: u32, value: u64) -> Option<()> {
        use msr_index as i;
        let allowed = match index {
            i::MTRR_CAP | i::MCG_CAP | i::ARCH_CAPABILITIES | i::FEATURE_CONTROL | i::PLATFORM_ID => {
                return None;
            }
            i::SPEC_CTRL | i::PRED_CMD if !model.has(Feature::SpecCtrl) => return None,
            // IBPB: as in the interpreter, accepted and left to the host.
            i::PRED_CMD => return (value & !1 == 0).then_some(()),
            MCG_CTL => return Some(()),
            i::SPEC_CTRL => model.spec_ctrl_mask(),
            i::XSS => return (value == 0).then_some(()),
            i::MTRR_PHYS_BASE0..i::MTRR_FIX64K => (1 << PhysicalBits::MAX) - 1,
            i::MTRR_DEF_TYPE => 0xcff,
            i::MCG_STATUS => 7,
            _ => u64::MAX,
        };
        if value & !allowed != 0 {
            return None;
        }
        *field(&mut self.kept, index)? = value;
        Some(())
    }
}

fn entries(pairs: impl Iterator<Item = (u32, u64)>) -> KvmMsrs {
    let list: Vec<_> =
        pairs.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    KvmMsrs::from_entries(&list).expect("a few MSRs fit the ioctl's limit of 256")
}

/// One MSR, if KVM has it.
pub(crate) fn read_one(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut list = entries(std::iter::once((index, 0)));
    matches!(vcpu.get_msrs(&mut list), Ok(1)).then(|| list.as_slice()[0].data)
}
