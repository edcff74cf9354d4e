//! CPUID results of a vCPU model.

/// The four registers CPUID returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "register names")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What CPUID reports of the machine around the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// This processor's APIC ID.
    pub apic_id: u32,
    /// Number of vCPUs in the machine, at least 1.
    pub cpus: u32,
}
