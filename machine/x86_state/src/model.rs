//! Named vCPU models: a fixed set of CPUID leaves, identical on every engine.
//!
//! A model is a base name and a list of switched features, written
//! `x86-64-v3,-avx2,+la57`. CPUID is always answered from here, never from the
//! host. Leaves follow Intel SDM volume 2, CPUID; the hypervisor leaves follow
//! Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::{CpuidResult, Topology};

/// Guest-physical and linear address widths in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysicalBits;

impl PhysicalBits {
    /// MAXPHYADDR of every model: small enough for every host we may meet.
    pub const MAX: u32 = 40;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

macro_rules! features {
    ($($id:ident $name:literal $leaf:literal $sub:literal $reg:ident $bit:literal $level:literal;)*) => {
        /// A CPUID feature that a model may have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "each is documented by its CPUID name")]
        pub enum Feature { $($id),* }

        impl Feature {
            /// Every feature, in table order.
            pub const ALL: &'static [Feature] = &[$(Feature::$id),*];

            fn row(self) -> (&'static str, u32, u32, Register, u32, u8) {
                match self { $(Feature::$id => ($name, $leaf, $sub, $reg, $bit, $level)),* }
            }
        }
    };
}

// Columns: name, leaf, subleaf, register, bit, level. Level is the lowest
// x86-64-vN model that has it by default; 9 is "only when asked for with +name".
features! {
    Fpu "fpu" 1 0 Edx 0 1;
    Vme "vme" 1 0 Edx 1 1;
    De "de" 1 0 Edx 2 1;
    Pse "pse" 1 0 Edx 3 1;
    Tsc "tsc" 1 0 Edx 4 1;
    Msr "msr" 1 0 Edx 5 1;
    Pae "pae" 1 0 Edx 6 1;
    Mce "mce" 1 0 Edx 7 1;
    Cx8 "cx8" 1 0 Edx 8 1;
    Apic "apic" 1 0 Edx 9 1;
    Sep "sep" 1 0 Edx 11 1;
    Mtrr "mtrr" 1 0 Edx 12 1;
    Pge "pge" 1 0 Edx 13 1;
    Mca "mca" 1 0 Edx 14 1;
    Cmov "cmov" 1 0 Edx 15 1;
    Pat "pat" 1 0 Edx 16 1;
    Pse36 "pse36" 1 0 Edx 17 1;
    Clflush "clflush" 1 0 Edx 19 1;
    Mmx "mmx" 1 0 Edx 23 1;
    Fxsr "fxsr" 1 0 Edx 24 1;
    Sse "sse" 1 0 Edx 25 1;
    Sse2 "sse2" 1 0 Edx 26 1;
    Sse3 "sse3" 1 0 Ecx 0 2;
    Pclmulqdq "pclmulqdq" 1 0 Ecx 1 2;
    Ssse3 "ssse3" 1 0 Ecx 9 2;
    Fma "fma" 1 0 Ecx 12 3;
    Cx16 "cx16" 1 0 Ecx 13 2;
    Pcid "pcid" 1 0 Ecx 17 2;
    Sse41 "sse4.1" 1 0 Ecx 19 2;
    Sse42 "sse4.2" 1 0 Ecx 20 2;
    X2apic "x2apic" 1 0 Ecx 21 1;
    Movbe "movbe" 1 0 Ecx 22 3;
    Popcnt "popcnt" 1 0 Ecx 23 2;
    TscDeadline "tsc-deadline" 1 0 Ecx 24 1;
    Aes "aes" 1 0 Ecx 25 2;
    Xsave "xsave" 1 0 Ecx 26 2;
    Avx "avx" 1 0 Ecx 28 3;
    F16c "f16c" 1 0 Ecx 29 3;
    Rdrand "rdrand" 1 0 Ecx 30 2;
    Hypervisor "hypervisor" 1 0 Ecx 31 1;
    Arat "arat" 6 0 Eax 2 1;
    Fsgsbase "fsgsbase" 7 0 Ebx 0 2;
    TscAdjust "tsc-adjust" 7 0 Ebx 1 1;
    Bmi1 "bmi1" 7 0 Ebx 3 3;
    Avx2 "avx2" 7 0 Ebx 5 3;
    Smep "smep" 7 0 Ebx 7 2;
    Bmi2 "bmi2" 7 0 Ebx 8 3;
    Erms "erms" 7 0 Ebx 9 2;
    Invpcid "invpcid" 7 0 Ebx 10 2;
    Rdseed "rdseed" 7 0 Ebx 18 2;
    Adx "adx" 7 0 Ebx 19 3;
    Smap "smap" 7 0 Ebx 20 2;
    Clflushopt "clflushopt" 7 0 Ebx 23 2;
    Clwb "clwb" 7 0 Ebx 24 2;
    Sha "sha-ni" 7 0 Ebx 29 2;
    Umip "umip" 7 0 Ecx 2 2;
    Vaes "vaes" 7 0 Ecx 9 9;
    Vpclmulqdq "vpclmulqdq" 7 0 Ecx 10 9;
    La57 "la57" 7 0 Ecx 16 9;
    Rdpid "rdpid" 7 0 Ecx 22 3;
    Fsrm "fsrm" 7 0 Edx 4 2;
    SpecCtrl "spec-ctrl" 7 0 Edx 26 1;
    ArchCapabilities "arch-capabilities" 7 0 Edx 29 1;
    BhiCtrl "bhi-ctrl" 7 2 Edx 4 1;
    Xsaveopt "xsaveopt" 0xd 1 Eax 0 2;
    Xsavec "xsavec" 0xd 1 Eax 1 2;
    Xgetbv1 "xgetbv1" 0xd 1 Eax 2 2;
    LahfLm "lahf-lm" 0x8000_0001 0 Ecx 0 2;
    Abm "abm" 0x8000_0001 0 Ecx 5 3;
    Prefetchw "3dnowprefetch" 0x8000_0001 0 Ecx 8 2;
    Syscall "syscall" 0x8000_0001 0 Edx 11 1;
    Nx "nx" 0x8000_0001 0 Edx 20 1;
    Pdpe1gb "pdpe1gb" 0x8000_0001 0 Edx 26 2;
    Rdtscp "rdtscp" 0x8000_0001 0 Edx 27 1;
    Lm "lm" 0x8000_0001 0 Edx 29 1;
    InvariantTsc "invtsc" 0x8000_0007 0 Edx 8 1;
}

impl Feature {
    /// The name used on the command line and in errors.
    pub fn name(self) -> &'static str {
        self.row().0
    }
    /// Whether a processor whose CPUID results `cpuid` gives, by leaf and
    /// subleaf, has this feature.
    pub fn reported_by(self, cpuid: impl FnOnce(u32, u32) -> CpuidResult) -> bool {
        let (_, leaf, subleaf, register, bit, _) = self.row();
        let r = cpuid(leaf, subleaf);
        let value = match register {
            Eax => r.eax,
            Ebx => r.ebx,
            Ecx => r.ecx,
            Edx => r.edx,
        };
        value >> bit & 1 != 0
    }
    fn named(name: &str) -> Option<Feature> {
        Feature::ALL.iter().copied().find(|f| f.name() == name)
    }
    /// What this feature cannot exist without.
    fn requires(self) -> &'static [Feature] {
        match self {
            Feature::Avx => &[Feature::Xsave],
            Feature::Avx2 | Feature::Fma | Feature::F16c => &[Feature::Avx],
            Feature::Xsaveopt | Feature::Xsavec | Feature::Xgetbv1 => &[Feature::Xsave],
            Feature::Vaes => &[Feature::Avx, Feature::Aes],
            Feature::Vpclmulqdq => &[Feature::Avx, Feature::Pclmulqdq],
            Feature::Invpcid => &[Feature::Pcid],
            Feature::BhiCtrl => &[Feature::SpecCtrl],
            Feature::Aes | Feature::Pclmulqdq | Feature::Sha => &[Feature::Sse2],
            _ => &[],
        }
    }
}

/// A named, fixed processor model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel {
    name: String,
    features: u128,
    tsc_khz: u32,
}

/// Why a model description was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuModelError {
    /// The base name is not known.
    #[error("unknown CPU model \"{0}\"; known models: x86-64-v1, x86-64-v2, x86-64-v3")]
    UnknownModel(String),
    /// A +name or -name is not known.
    #[error("unknown CPU feature \"{0}\"; known features: {1}")]
    UnknownFeature(String, String),
    /// A feature's prerequisite is off.
    #[error("CPU feature \"{0}\" needs \"{1}\"; add +{1} or remove {0} with -{0}")]
    Missing(&'static str, &'static str),
}

const fn bit(f: Feature) -> u128 {
    1 << (f as u32)
}

impl CpuModel {
    /// The TSC frequency a model states unless told otherwise, in kHz: 1 GHz
    /// makes one TSC tick one nanosecond.
    pub const DEFAULT_TSC_KHZ: u32 = 1_000_000;

    /// The default model of this release.
    pub fn default_model() -> Self {
        Self::level("x86-64-v2", 2)
    }

    fn level(name: &str, level: u8) -> Self {
        let features = Feature::ALL.iter().filter(|f| f.row().5 <= level).fold(0, |m, f| m | bit(*f));
        CpuModel { name: name.to_string(), features, tsc_khz: Self::DEFAULT_TSC_KHZ }
    }

    /// The full description, as accepted by `from_str`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the model has a feature.
    pub fn has(&self, f: Feature) -> bool {
        self.features & bit(f) != 0
    }

    /// Features of this model, by name.
    pub fn feature_names(&self) -> BTreeSet<&'static str> {
        Feature::ALL.iter().filter(|f| self.has(**f)).map(|f| f.name()).collect()
    }

    /// State the TSC frequency in kHz (at least 1 MHz).
    pub fn with_tsc_khz(mut self, khz: u32) -> Self {
        self.tsc_khz = khz.max(1000);
        self
    }

    /// TSC frequency in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// CPUID.1.EAX: family 6, model 0xb8 (outside the tables of processors with
    /// errata and mitigations), stepping 1.
    pub fn signature(&self) -> u32 {
        0x000b_0681
    }

    /// IA32_ARCH_CAPABILITIES: immune to every attack Linux knows a bit for, so
    /// that a guest does not slow itself down for nothing. IBRS_ALL makes Linux set
    /// IBRS once, in SPEC_CTRL, instead of replacing its indirect branches by
    /// returns; a model without `spec-ctrl` does not claim it.
    pub fn arch_capabilities(&self) -> u64 {
        // RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
        // SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
        (1 << 0)
            | (if self.has(Feature::SpecCtrl) { 1 << 1 } else { 0 })
            | (1 << 3)
            | (1 << 4)
            | (1 << 5)
            | (1 << 6)
            | (1 << 8)
            | (1 << 13)
            | (1 << 14)
            | (1 << 15)
            | (1 << 20)
            | (1 << 24)
            | (1 << 26)
            | (1 << 27)
            | (1 << 62)
    }

    /// IA32_SPEC_CTRL bits that may be set: IBRS, STIBP (which a processor without
    /// it ignores), BHI_DIS_S. None has an effect here. Linux wants BHI_DIS_S of
    /// every processor that claims IBRS_ALL, immune or not; without it each system
    /// call clears the branch history by a loop of a hundred instructions.
    pub fn spec_ctrl_mask(&self) -> u64 {
        3 | if self.has(Feature::BhiCtrl) { 1 << 10 } else { 0 }
    }

    /// XCR0 bits the model supports.
    pub fn xcr0_mask(&self) -> u64 {
        use crate::xcr0::{AVX, SSE, X87};
        if self.has(Feature::Avx) { X87 | SSE | AVX } else { X87 | SSE }
    }

    fn feature_bits(&self, leaf: u32, sub: u32, reg: Register) -> u32 {
        Feature::ALL
            .iter()
            .filter(|f| self.has(**f))
            .map(|f| f.row())
            .fold(0, |m, r| if (r.1, r.2, r.3) == (leaf, sub, reg) { m | 1 << r.4 } else { m })
    }

    /// CPUID for one vCPU. `osxsave` is CR4.OSXSAVE and `xcr0` the current XCR0,
    /// the two pieces of state that CPUID reflects.
    pub fn cpuid(
        &self,
        leaf: u32,
        subleaf: u32,
        topology: Topology,
        osxsave: bool,
        xcr0: u64,
    ) -> CpuidResult {
        const MAX_BASIC: u32 = 0x16;
        const MAX_EXTENDED: u32 = 0x8000_0008;
        let leaf = match leaf {
            0..=MAX_BASIC | 0x4000_0000..=0x4000_0010 | 0x8000_0000..=MAX_EXTENDED => leaf,
            0x4000_0011..=0x4fff_ffff => return CpuidResult::default(),
            // Above the maximum: data of the highest basic leaf (SDM volume 2, CPUID).
            _ => MAX_BASIC,
        };
        let r = |eax, ebx, ecx, edx| CpuidResult { eax, ebx, ecx, edx };
        let bits = |sub, reg| self.feature_bits(leaf, sub, reg);
        let mhz = self.tsc_khz / 1000;
        let shift = 32 - topology.cpus.saturating_sub(1).leading_zeros();
        match leaf {
            // "GenuineIntel": Linux takes TSC leaf 15h, x2APIC and MTRR paths from the vendor.
            0 => r(MAX_BASIC, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            1 => {
                let ebx = (topology.apic_id & 0xff) << 24 | topology.cpus.min(255) << 16 | 8 << 8;
                let htt = if topology.cpus > 1 { 1 << 28 } else { 0 };
                let os = if osxsave { 1 << 27 } else { 0 };
                r(self.signature(), ebx, bits(0, Ecx) | os, bits(0, Edx) | htt)
            }
            2 => r(0x00ff_ff01, 0, 0, 0),
            4 => self.cache_leaf(subleaf, topology),
            6 => r(bits(0, Eax), 0, 0, 0),
            // The highest subleaf, which describes SPEC_CTRL, goes with its feature.
            7 if subleaf == 0 => {
                let highest = if self.has(Feature::BhiCtrl) { 2 } else { 0 };
                r(highest, bits(0, Ebx), bits(0, Ecx), bits(0, Edx))
            }
            7 if subleaf == 2 => r(0, 0, 0, bits(2, Edx)),
            0xb => match subleaf {
                0 => r(0, 1, 1 << 8, topology.apic_id),
                1 => r(shift, topology.cpus, 2 << 8 | 1, topology.apic_id),
                _ => r(0, 0, subleaf & 0xff, topology.apic_id),
            },
            0xd if self.has(Feature::Xsave) => self.xsave_leaf(subleaf, xcr0),
            // TSC = crystal * EBX / EAX with a crystal of 1 MHz: exact to the kHz.
            0x15 => r(1000, self.tsc_khz, 1_000_000, 0),
            0x16 => r(mhz, mhz, 100, 0),
            // "KVMKVMKVM\0\0\0"
            0x4000_0000 => r(0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d),
            // CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT.
            0x4000_0001 => r(1 << 0 | 1 << 1 | 1 << 3 | 1 << 24, 0, 0, 0),
            0x4000_0010 => r(self.tsc_khz, 1_000_000, 0, 0),
            0x8000_0000 => r(MAX_EXTENDED, 0, 0, 0),
            0x8000_0001 => r(0, 0, bits(0, Ecx), bits(0, Edx)),
            0x8000_0002..=0x8000_0004 => self.brand_leaf(leaf),
            0x8000_0006 => r(0, 0, 0x0400_6040, 0),
            0x8000_0007 => r(0, 0, 0, bits(0, Edx)),
            0x8000_0008 => {
                let linear = if self.has(Feature::La57) { 57 } else { 48 };
                r(linear << 8 | PhysicalBits::MAX, 0, 0, 0)
            }
            _ => CpuidResult::default(),
        }
    }

    fn brand_leaf(&self, leaf: u32) -> CpuidResult {
        let mut text = [0u8; 48];
        let brand = b"Strata Virtual CPU";
        text[..brand.len()].copy_from_slice(brand);
        let at = (leaf - 0x8000_0002) as usize * 16;
        let word = |i: usize| {
            let p = at + i * 4;
            u32::from_le_bytes([text[p], text[p + 1], text[p + 2], text[p + 3]])
        };
        CpuidResult { eax: word(0), ebx: word(1), ecx: word(2), edx: word(3) }
    }

    fn cache_leaf(&self, subleaf: u32, topology: Topology) -> CpuidResult {
        // (type, level, KiB, ways, shared by all)
        let (kind, level, kib, ways, shared) = match subleaf {
            0 => (1, 1, 32, 8, false),
            1 => (2, 1, 32, 8, false),
            2 => (3, 2, 1024, 16, false),
            3 => (3, 3, 16384, 16, true),
            _ => return CpuidResult::default(),
        };
        let sharing = if shared { topology.cpus - 1 } else { 0 };
        let cores = topology.cpus.saturating_sub(1).min(63);
        let sets = kib * 1024 / (64 * ways);
        CpuidResult {
            eax: kind | level << 5 | 1 << 8 | sharing.min(0xfff) << 14 | cores << 26,
            ebx: 63 | (ways - 1) << 22,
            ecx: sets - 1,
            edx: 0,
        }
    }

    fn xsave_leaf(&self, subleaf: u32, xcr0: u64) -> CpuidResult {
        use crate::xcr0::AVX;
        let size = |mask: u64| if mask & AVX != 0 { 832 } else { 576 };
        match subleaf {
            0 => CpuidResult {
                eax: self.xcr0_mask() as u32,
                ebx: size(xcr0),
                ecx: size(self.xcr0_mask()),
                edx: 0,
            },
            1 => CpuidResult { eax: self.feature_bits(0xd, 1, Eax), ebx: size(xcr0), ecx: 0, edx: 0 },
            2 if self.has(Feature::Avx) => CpuidResult { eax: 256, ebx: 576, ecx: 0, edx: 0 },
            _ => CpuidResult::default(),
        }
    }
}

impl FromStr for CpuModel {
    type Err = CpuModelError;

    fn from_str(text: &str) -> Result<Self, CpuModelError> {
        let mut parts = text.split(',').map(str::trim);
        let base = parts.next().unwrap_or_default();
        let mut model = match base {
            "x86-64-v1" => Self::level(text, 1),
            "x86-64-v2" => Self::level(text, 2),
            "x86-64-v3" => Self::level(text, 3),
            other => return Err(CpuModelError::UnknownModel(other.to_string())),
        };
        for part in parts.filter(|p| !p.is_empty()) {
            let (on, name) = match part.split_at(1) {
                ("-", name) => (false, name),
                ("+", name) => (true, name),
                _ => (true, part),
            };
            let feature = Feature::named(name).ok_or_else(|| {
                let known: Vec<_> = Feature::ALL.iter().map(|f| f.name()).collect();
                CpuModelError::UnknownFeature(name.to_string(), known.join(" "))
            })?;
            if on {
                model.features |= bit(feature);
            } else {
                model.features &= !bit(feature);
                // Switching a feature off takes what needs it along.
                loop {
                    let before = model.features;
                    for f in Feature::ALL {
                        if f.requires().iter().any(|r| !model.has(*r)) {
                            model.features &= !bit(*f);
                        }
                    }
                    if before == model.features {
                        break;
                    }
                }
            }
        }
        for f in Feature::ALL.iter().filter(|f| model.has(**f)) {
            if let Some(r) = f.requires().iter().find(|r| !model.has(**r)) {
                return Err(CpuModelError::Missing(f.name(), r.name()));
            }
        }
        Ok(model)
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Topology = Topology { apic_id: 0, cpus: 1 };

    #[test]
    fn features_appear_in_cpuid_and_masking_takes_dependants_along() {
        let v3: CpuModel = "x86-64-v3".parse().unwrap();
        assert_ne!(v3.cpuid(7, 0, ONE, false, 1).ebx & 1 << 5, 0, "avx2");
        let masked: CpuModel = "x86-64-v3,-avx".parse().unwrap();
        assert!(!masked.has(Feature::Avx2) && !masked.has(Feature::Fma));
        assert_eq!(masked.cpuid(1, 0, ONE, false, 1).ecx & (1 << 28 | 1 << 12), 0);
        assert_eq!(masked.cpuid(0xd, 0, ONE, true, 3).eax, 3);
        let wide: CpuModel = "x86-64-v3,+vaes,+vpclmulqdq".parse().unwrap();
        assert_eq!((wide.cpuid(7, 0, ONE, false, 1).ecx ^ v3.cpuid(7, 0, ONE, false, 1).ecx) >> 9, 3);
    }

    #[test]
    fn osxsave_mirrors_cr4() {
        let m = CpuModel::default_model();
        assert_eq!(m.cpuid(1, 0, ONE, false, 1).ecx & 1 << 27, 0);
        assert_ne!(m.cpuid(1, 0, ONE, true, 1).ecx & 1 << 27, 0);
    }

    /// What a guest is told of its immunity goes with what it can do.
    #[test]
    fn arch_capabilities_go_with_the_features() {
        for (name, ibrs_all) in [("x86-64-v2", true), ("x86-64-v2,-spec-ctrl", false)] {
            let m: CpuModel = name.parse().unwrap();
            assert_eq!(m.arch_capabilities() >> 1 & 1 != 0, ibrs_all, "{name}");
            assert_eq!(m.cpuid(7, 0, ONE, false, 1).edx >> 26 & 1 != 0, ibrs_all, "{name}");
            // BHI_DIS_S goes with SPEC_CTRL.
            assert_eq!(m.cpuid(7, 0, ONE, false, 1).eax, if ibrs_all { 2 } else { 0 }, "{name}");
            assert_eq!(m.cpuid(7, 2, ONE, false, 1).edx >> 4 & 1 != 0, ibrs_all, "{name}");
            assert_eq!(m.spec_ctrl_mask() >> 10 & 1 != 0, ibrs_all, "{name}");
        }
    }

    #[test]
    fn refusals_name_the_remedy() {
        assert!("pentium".parse::<CpuModel>().unwrap_err().to_string().contains("x86-64-v2"));
        assert!("x86-64-v2,+wings".parse::<CpuModel>().unwrap_err().to_string().contains("wings"));
        let e = "x86-64-v2,+avx2".parse::<CpuModel>().unwrap_err().to_string();
        assert!(e.contains("+avx"), "{e}");
    }

    #[test]
    fn tsc_frequency_is_stated_exactly() {
        let m = CpuModel::default_model().with_tsc_khz(2_596_123);
        let l = m.cpuid(0x15, 0, ONE, false, 1);
        let hz = u64::from(l.ecx) * u64::from(l.ebx) / u64::from(l.eax);
        assert_eq!(hz / 1000, 2_596_123);
        assert_eq!(m.cpuid(0x4000_0010, 0, ONE, false, 1).eax, 2_596_123);
    }
}
