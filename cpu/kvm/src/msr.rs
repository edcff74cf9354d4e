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

const MTRR_LAST_FIXED: u32 = 0x26f;
const MTRR_CAPABILITIES: u64 = Msrs::VARIABLE_MTRRS as u64 | 1 << 8 | 1 << 10;
/// Machine-check banks reported to the guest.
const MCA_BANKS: u64 = 0;
/// Bits of MISC_ENABLE that software may change; none has an effect: fast
/// strings, automatic thermal control, enhanced SpeedStep, MONITOR, CPUID limit,
/// xTPR disable, XD disable.
const MISC_ENABLE_WRITABLE: u64 = 1 << 0 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// MISC_ENABLE: branch trace and PEBS are unavailable.
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;
/// DEBUGCTL: neither branch records nor branch trapping exist.
const DEBUGCTL_WRITABLE: u64 = 3;

/// First MSR and count of the runs that KVM must hand to us: 16 are all it takes.
fn filtered(model: &CpuModel) -> [(u32, u32); 16] {
    [
        (msr_index::KVM_WALL_CLOCK_OLD, 2),
        (msr_index::PLATFORM_ID, 1),
        (msr_index::APIC_BASE, 1),
        // TSC_ADJUST is next; KVM lets guests use it whatever their CPUID says.
        (msr_index::FEATURE_CONTROL, if model.has(Feature::TscAdjust) { 1 } else { 2 }),
        (msr_index::SPEC_CTRL, 2),
        (msr_index::BIOS_SIGN_ID, 1),
        (msr_index::MTRR_CAP, 1),
        (msr_index::ARCH_CAPABILITIES, 1),
        // MCG_STATUS and MCG_CTL, too.
        (msr_index::MCG_CAP, 3),
        (msr_index::MISC_ENABLE, 1),
        (msr_index::DEBUGCTL, 1),
        (msr_index::MTRR_PHYS_BASE0, MTRR_LAST_FIXED - msr_index::MTRR_PHYS_BASE0 + 1),
        (msr_index::MTRR_DEF_TYPE, 1),
        (msr_index::TSC_DEADLINE, 1),
        (msr_index::XSS, 1),
        (msr_index::KVM_WALL_CLOCK, 16),
    ]
}

/// Make KVM exit for the MSRs it does not keep for us.
pub(crate) fn install_filter(vm: &VmFd, model: &CpuModel) -> Result<(), kvm_ioctls::Error> {
    const NONE_ALLOWED: [u8; 16] = [0; 16];
    let ranges = filtered(model).map(|(base, msr_count)| MsrFilterRange {
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
    pub(crate) fn read(&mut self, vcpu: &VcpuFd, model: &CpuModel, index: u32) -> Option<u64> {
        if !exists(model, index) {
            return None;
        }
        if self.in_kvm.contains(&index) { read_one(vcpu, index) } else { self.read_kept(model, index) }
    }

    /// WRMSR that came to us. `None` is #GP(0).
    pub(crate) fn write(&mut self, vcpu: &VcpuFd, model: &CpuModel, index: u32, value: u64) -> Option<()> {
        if !allows(model, index, value) {
            return None;
        }
        if !self.in_kvm.contains(&index) {
            return self.write_kept(index, value);
        }
        // KVM refused the guest what the model allows: TSC_AUX on a host without RDTSCP.
        let set = entries(std::iter::once((index, value)));
        matches!(vcpu.set_msrs(&set), Ok(1)).then_some(())
    }

    fn read_kept(&mut self, model: &CpuModel, index: u32) -> Option<u64> {
        use msr_index as i;
        match index {
            i::PLATFORM_ID => Some(0),
            // Locked, VMX off.
            i::FEATURE_CONTROL => Some(1),
            i::ARCH_CAPABILITIES => Some(model.arch_capabilities()),
            i::MTRR_CAP => Some(MTRR_CAPABILITIES),
            i::MCG_CAP => Some(MCA_BANKS),
            i::MISC_ENABLE => Some(self.kept.misc_enable | MISC_ENABLE_FIXED),
            _ => field(&mut self.kept, index).map(|f| *f),
        }
    }

    fn write_kept(&mut self, index: u32, value: u64) -> Option<()> {
        let stored = match index {
            // IBPB: as in the interpreter, accepted and left to the host.
            msr_index::PRED_CMD => return Some(()),
            msr_index::MISC_ENABLE => value & MISC_ENABLE_WRITABLE,
            _ => value,
        };
        *field(&mut self.kept, index)? = stored;
        Some(())
    }
}

/// Whether the model has an MSR; true of those that no model has, too.
fn exists(model: &CpuModel, index: u32) -> bool {
    use msr_index as i;
    match index {
        i::SPEC_CTRL | i::PRED_CMD => model.has(Feature::SpecCtrl),
        i::ARCH_CAPABILITIES => model.has(Feature::ArchCapabilities),
        i::TSC_ADJUST => model.has(Feature::TscAdjust),
        i::TSC_AUX => model.has(Feature::Rdtscp),
        _ => true,
    }
}

/// Whether software may write this to an MSR, if it is one that [`field`] has (SDM
/// volume 4; the rules are the interpreter's).
fn allows(model: &CpuModel, index: u32, value: u64) -> bool {
    use msr_index as i;
    if !exists(model, index) {
        return false;
    }
    let only = |bits: u64| value & !bits == 0;
    let address = ((1u64 << PhysicalBits::MAX) - 1) & !0xfff;
    match index {
        i::SPEC_CTRL => only(model.spec_ctrl_mask()),
        i::PRED_CMD => only(1),
        i::MISC_ENABLE => only(MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED),
        i::DEBUGCTL => only(DEBUGCTL_WRITABLE),
        i::MCG_STATUS => only(7),
        i::MTRR_DEF_TYPE => only(0xcff) && is_memory_type(value as u8),
        i::MTRR_PHYS_BASE0..i::MTRR_FIX64K if index & 1 == 0 => {
            only(address | 0xff) && is_memory_type(value as u8)
        }
        i::MTRR_PHYS_BASE0..i::MTRR_FIX64K => only(address | 1 << 11),
        i::MTRR_FIX64K..=MTRR_LAST_FIXED => value.to_le_bytes().into_iter().all(is_memory_type),
        // PAT has UC- (7), too.
        i::PAT => value.to_le_bytes().into_iter().all(|kind| is_memory_type(kind) || kind == 7),
        i::SFMASK | i::TSC_AUX => only(u64::from(u32::MAX)),
        i::LSTAR | i::CSTAR | i::KERNEL_GS_BASE | i::SYSENTER_ESP | i::SYSENTER_EIP => {
            let unused = if model.has(Feature::La57) { 7 } else { 16 };
            (value << unused) as i64 >> unused == value as i64
        }
        _ => true,
    }
}

/// UC, WC, WT, WP, WB.
fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// On a host whose KVM keeps none: writing `value` faults, or reading gives `read` afterwards.
    fn check(model: &str, index: u32, value: u64, read: Option<u64>) {
        let model: CpuModel = model.parse().unwrap();
        let mut file = MsrFile { in_kvm: Vec::new(), kept: Msrs::reset() };
        let written = allows(&model, index, value) && file.write_kept(index, value).is_some();
        assert_eq!(written, read.is_some(), "{model}: {value:#x} to MSR {index:#x}");
        if read.is_some() {
            assert_eq!(file.read_kept(&model, index), read, "{model}: MSR {index:#x}");
        }
    }

    #[test]
    fn msrs_that_the_model_lacks_fault() {
        use msr_index as i;
        for (without, index) in
            [("tsc-adjust", i::TSC_ADJUST), ("rdtscp", i::TSC_AUX), ("spec-ctrl", i::SPEC_CTRL)]
        {
            check("x86-64-v3", index, 0, Some(0));
            check(&format!("x86-64-v3,-{without}"), index, 0, None);
        }
        for index in [i::XSS, 0x17b, i::MCG_CAP, i::FEATURE_CONTROL, i::MTRR_CAP, i::PLATFORM_ID, 0x1234] {
            check("x86-64-v3", index, 0, None);
        }
    }

    #[test]
    fn reserved_bits_and_types_fault() {
        use msr_index as i;
        let check = |index, value, read| check("x86-64-v3", index, value, read);
        check(i::MISC_ENABLE, 1 << 11 | 1, Some(0x1801));
        check(i::MISC_ENABLE, 1 << 12, Some(0x1800));
        check(i::MISC_ENABLE, 1 << 2, None);
        check(i::DEBUGCTL, 3, Some(3));
        check(i::DEBUGCTL, 1 << 6, None);
        check(i::MTRR_DEF_TYPE, 0xc06, Some(0xc06));
        check(i::MTRR_DEF_TYPE, 0xc02, None);
        check(i::MTRR_DEF_TYPE, 0x1006, None);
        check(i::MTRR_FIX64K, 0x0606_0504_0100_0606, Some(0x0606_0504_0100_0606));
        check(i::MTRR_FIX4K_C0000 + 7, 0x0606_0606_0606_0607, None);
        check(i::MTRR_FIX64K + 1, 0, None);
        check(i::MTRR_PHYS_BASE0 + 14, 0xc000_0006, Some(0xc000_0006));
        check(i::MTRR_PHYS_BASE0 + 14, 0xc000_0003, None);
        check(i::MTRR_PHYS_BASE0, 0x106, None);
        check(i::MTRR_PHYS_BASE0 + 1, 0xff_c000_0800, Some(0xff_c000_0800));
        check(i::MTRR_PHYS_BASE0 + 1, 6, None);
        check(i::MTRR_PHYS_BASE0 + 16, 0, None);
        check(i::MCG_STATUS, 8, None);
        // Those that a KVM does not keep.
        check(i::TSC_AUX, u64::from(u32::MAX), Some(u64::from(u32::MAX)));
        check(i::TSC_AUX, 1 << 32, None);
        check(i::PAT, 0x0007_0406_0007_0406, Some(0x0007_0406_0007_0406));
        check(i::PAT, 2, None);
        check(i::SYSENTER_EIP, 0xffff_8000_0000_0000, Some(0xffff_8000_0000_0000));
        check(i::SYSENTER_EIP, 1 << 47, None);
    }

    #[test]
    fn tsc_adjust_comes_to_us_where_the_model_lacks_it() {
        for (model, comes) in [("x86-64-v3", false), ("x86-64-v3,-tsc-adjust", true)] {
            let ranges = filtered(&model.parse().unwrap());
            let within =
                |&(first, count): &(u32, u32)| (first..first + count).contains(&msr_index::TSC_ADJUST);
            assert_eq!(ranges.iter().any(within), comes, "{model}");
        }
    }
}
