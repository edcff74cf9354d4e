//! Figures of the machine and its process, as the protocol has them.

use std::collections::BTreeMap;
use std::time::Duration;

use lifecycle::{VcpuStats, VmStats};
use rustix::time::{ClockId, clock_gettime};
use vm_api::{MachineInfo, MachineStats, VcpuFigures};

/// Statistics for the wire.
pub(crate) fn machine(info: MachineInfo, stats: &VmStats, guest_resident: u64) -> MachineStats {
    MachineStats {
        info,
        guest_time_ms: millis(stats.guest_time),
        process_cpu_ms: process_cpu_ms(),
        process_resident: process_resident(),
        guest_resident,
        resets: stats.resets,
        vcpus: stats.vcpus.iter().map(vcpu).collect(),
        devices: named(&stats.devices),
    }
}

fn vcpu(stats: &VcpuStats) -> VcpuFigures {
    VcpuFigures {
        retired: stats.retired,
        // Tenths: what the eye can use.
        halted_percent: stats.times.map(|t| (t.halted_share() * 1000.0).round() / 10.0),
        halts: stats.times.map(|t| t.halts),
        counters: named(&stats.counters),
    }
}

fn named(counters: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    let mut map = BTreeMap::new();
    for (name, value) in counters {
        *map.entry((*name).to_string()).or_insert(0) += value;
    }
    map
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn process_cpu_ms() -> u64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec.unsigned_abs() * 1000 + used.tv_nsec.unsigned_abs() / 1_000_000
}

/// Field 2 of /proc/self/statm (proc(5)) in bytes; 0 where /proc is not mounted.
fn process_resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_one_name_are_summed() {
        let map = named(&[("a", 1), ("b", 2), ("a", 3)]);
        assert_eq!(map.into_iter().collect::<Vec<_>>(), [("a".to_string(), 4), ("b".to_string(), 2)]);
    }

    #[test]
    fn this_process_has_memory_and_has_used_time() {
        assert!(process_resident() > 1 << 20);
        let before = process_cpu_ms();
        while process_cpu_ms() < before + 5 {
            std::hint::spin_loop();
        }
    }
}
