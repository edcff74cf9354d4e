//! CPUID of a vCPU, from its model.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};
use x86_state::{CpuModel, CpuidResult, Feature, Topology, xcr0};

/// Leaves that exist, with their subleaves; the others of a range read as zero.
const BASIC: std::ops::RangeInclusive<u32> = 0..=0x16;
const HYPERVISOR: [u32; 3] = [0x4000_0000, 0x4000_0001, 0x4000_0010];
const EXTENDED: std::ops::RangeInclusive<u32> = 0x8000_0000..=0x8000_0008;

/// Subleaves of a leaf; empty if ECX does not matter.
fn subleaves(leaf: u32) -> std::ops::Range<u32> {
    match leaf {
        4 => 0..5,
        7 => 0..3,
        0xb => 0..3,
        0xd => 0..3,
        _ => 0..0,
    }
}

/// The whole table for KVM_SET_CPUID2. KVM itself keeps the bits that mirror
/// CR4 and XCR0 current.
pub(crate) fn table(model: &CpuModel, topology: Topology) -> CpuId {
    let entry = |function, index, flags| {
        let CpuidResult { eax, ebx, ecx, edx } = model.cpuid(function, index, topology, false, xcr0::X87);
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
    };
    let mut list = Vec::new();
    for leaf in BASIC.chain(HYPERVISOR).chain(EXTENDED) {
        let subs = subleaves(leaf);
        if subs.is_empty() {
            list.push(entry(leaf, 0, 0));
        }
        list.extend(subs.map(|sub| entry(leaf, sub, KVM_CPUID_FLAG_SIGNIFCANT_INDEX)));
    }
    CpuId::from_entries(&list).expect("the table is far below KVM's limit")
}

/// Bits that KVM keeps current by itself: OSXSAVE and the APIC's enable in leaf
/// 1, the size of the enabled XSAVE area in leaf 0dh.
fn changing(e: &kvm_cpuid_entry2) -> CpuidResult {
    match e.function {
        1 => CpuidResult { ecx: 1 << 27, edx: 1 << 9, ..CpuidResult::default() },
        0xd => CpuidResult { ebx: u32::MAX, ..CpuidResult::default() },
        _ => CpuidResult::default(),
    }
}

/// Leaves that KVM shows a guest otherwise than `table` says.
pub(crate) fn altered(vcpu: &VcpuFd, table: &CpuId) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let shown = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?;
    let differs = |e: &&kvm_cpuid_entry2| {
        let same = |s: &kvm_cpuid_entry2| s.function == e.function && s.index == e.index;
        let Some(s) = shown.as_slice().iter().find(|s| same(s)) else { return true };
        let but = changing(e);
        (s.eax ^ e.eax) & !but.eax != 0
            || (s.ebx ^ e.ebx) & !but.ebx != 0
            || (s.ecx ^ e.ecx) & !but.ecx != 0
            || (s.edx ^ e.edx) & !but.edx != 0
    };
    let mut leaves: Vec<u32> = table.as_slice().iter().filter(differs).map(|e| e.function).collect();
    leaves.dedup();
    Ok(leaves)
}

/// Features that we bring ourselves, whatever KVM says.
fn ours(f: Feature) -> bool {
    use Feature::{
        Apic, Arat, ArchCapabilities, BhiCtrl, Hypervisor, InvariantTsc, Mca, Mce, Mtrr, SpecCtrl,
        TscDeadline, X2apic,
    };
    matches!(
        f,
        Apic | Arat
            | ArchCapabilities
            | BhiCtrl
            | Hypervisor
            | InvariantTsc
            | Mca
            | Mce
            | Mtrr
            | SpecCtrl
            | TscDeadline
            | X2apic
    )
}

/// Features of `model` that KVM on this host cannot give a guest, by name.
pub(crate) fn missing(kvm: &Kvm, model: &CpuModel) -> Result<Vec<&'static str>, kvm_ioctls::Error> {
    let offered = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let lookup = |leaf, sub| {
        let hit = offered.as_slice().iter().find(|e| {
            e.function == leaf && (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || e.index == sub)
        });
        hit.map_or(CpuidResult::default(), |e| CpuidResult { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx })
    };
    let lacking = |f: &&Feature| model.has(**f) && !ours(**f) && !f.reported_by(lookup);
    Ok(Feature::ALL.iter().filter(lacking).map(|f| f.name()).collect())
}
