//! What vCPUs have done, for people and programs that ask.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::Vcpu;

use crate::vcpu_thread::Times;

/// One vCPU's figures since the machine started. Counters of an engine begin
/// anew when the machine moves to another.
#[derive(Debug, Clone)]
pub struct VcpuStats {
    /// Instructions retired, if the engine counts them.
    pub retired: Option<u64>,
    /// How its thread spent its time; `None` in virtual time.
    pub times: Option<VcpuTimes>,
    /// The engine's counters, by name.
    pub counters: Vec<(&'static str, u64)>,
}

/// How one vCPU's thread spent its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuTimes {
    /// Asleep because the guest had halted.
    pub halted: Duration,
    /// Executing the guest.
    pub executing: Duration,
    /// Halts slept through.
    pub halts: u64,
}

/// A machine's figures.
#[derive(Debug, Clone)]
pub struct VmStats {
    /// One a vCPU.
    pub vcpus: Vec<VcpuStats>,
    /// Accesses by kind of device, by name.
    pub devices: Vec<(&'static str, u64)>,
    /// The machine's clock.
    pub guest_time: Duration,
    /// Resets served.
    pub resets: u32,
}

impl VcpuStats {
    pub(crate) fn read(vcpu: &dyn Vcpu, times: Option<&Times>) -> Self {
        let nanos = |sum: &AtomicU64| Duration::from_nanos(sum.load(Ordering::Relaxed));
        VcpuStats {
            retired: vcpu.retired(),
            times: times.map(|t| VcpuTimes {
                halted: nanos(&t.halted),
                executing: nanos(&t.executing),
                halts: t.halts.load(Ordering::Relaxed),
            }),
            counters: vcpu.counters(),
        }
    }
}

impl VcpuTimes {
    /// The share of its time that the vCPU was halted, 0 to 1; 0 before it ran.
    pub fn halted_share(&self) -> f64 {
        let whole = (self.halted + self.executing).as_nanos();
        if whole > 0 { self.halted.as_nanos() as f64 / whole as f64 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halted_share_is_of_the_time_that_was_measured() {
        let share = |halted, executing| {
            let of = Duration::from_millis;
            VcpuTimes { halted: of(halted), executing: of(executing), halts: 1 }.halted_share()
        };
        assert_eq!(share(0, 0), 0.0);
        assert_eq!(share(75, 25), 0.75);
        assert_eq!(share(10, 0), 1.0);
    }
}
