//! The paravirtual clock (Linux `Documentation/virt/kvm/x86/msr.rst`,
//! MSR_KVM_SYSTEM_TIME_NEW and MSR_KVM_WALL_CLOCK_NEW).
//!
//! The guest registers one page fragment for each vCPU; time is a linear
//! function of its TSC. The function never changes while the machine runs, so
//! the structures are written once, at registration, and the stable flag holds:
//! all vCPUs read the same time.

use std::sync::atomic::{AtomicU64, Ordering};

use device_model::Clock;
use guest_memory::GuestMemory;
use x86_state::msr_index;

/// Bit 0 of the system-time MSR: the guest wants the structure kept.
const ENABLE: u64 = 1;
/// `pvclock_vcpu_time_info.flags`: time is the same on all vCPUs.
const TSC_STABLE: u8 = 1;

/// Paravirtual clock state of a machine.
pub struct ParavirtualClock {
    clock: Clock,
    memory: GuestMemory,
    /// System-time MSR of each vCPU.
    system_time: Box<[AtomicU64]>,
    wall_clock: AtomicU64,
}

/// Multiplier and shift such that nanoseconds = (ticks << shift) * multiplier >> 32.
fn scale(tsc_khz: u32) -> (u32, i8) {
    const SECOND: u64 = 1_000_000_000;
    let (mut hz, mut shift) = (u64::from(tsc_khz.max(1)) * 1000, 0i8);
    while hz > 2 * SECOND {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= SECOND {
        hz <<= 1;
        shift += 1;
    }
    (((SECOND << 32) / hz) as u32, shift)
}

impl ParavirtualClock {
    /// For a machine of `cpus` vCPUs.
    pub fn new(clock: Clock, memory: GuestMemory, cpus: usize) -> Self {
        ParavirtualClock {
            clock,
            memory,
            system_time: (0..cpus).map(|_| AtomicU64::new(0)).collect(),
            wall_clock: AtomicU64::new(0),
        }
    }

    /// Forget all registrations (machine reset).
    pub fn reset(&self) {
        for s in &self.system_time {
            s.store(0, Ordering::Relaxed);
        }
        self.wall_clock.store(0, Ordering::Relaxed);
    }

    /// RDMSR; `None` if the MSR is not the clock's.
    pub fn read(&self, vcpu: usize, index: u32) -> Option<u64> {
        match index {
            msr_index::KVM_SYSTEM_TIME | msr_index::KVM_SYSTEM_TIME_OLD => {
                Some(self.system_time.get(vcpu)?.load(Ordering::Relaxed))
            }
            msr_index::KVM_WALL_CLOCK | msr_index::KVM_WALL_CLOCK_OLD => {
                Some(self.wall_clock.load(Ordering::Relaxed))
            }
            _ => None,
        }
    }

    /// WRMSR; `None` if the MSR is not the clock's.
    pub fn write(&self, vcpu: usize, index: u32, value: u64) -> Option<()> {
        match index {
            msr_index::KVM_SYSTEM_TIME | msr_index::KVM_SYSTEM_TIME_OLD => {
                self.system_time.get(vcpu)?.store(value, Ordering::Relaxed);
                if value & ENABLE != 0 {
                    self.publish(value & !ENABLE);
                }
                Some(())
            }
            msr_index::KVM_WALL_CLOCK | msr_index::KVM_WALL_CLOCK_OLD => {
                self.wall_clock.store(value, Ordering::Relaxed);
                self.publish_wall(value);
                Some(())
            }
            _ => None,
        }
    }

    /// `struct pvclock_vcpu_time_info`: 32 bytes. Reference point is power-on,
    /// the same for all vCPUs, whatever the TSC was then.
    fn publish(&self, address: u64) {
        let (multiplier, shift) = scale(self.clock.tsc_khz());
        let mut s = [0u8; 32];
        s[0..4].copy_from_slice(&2u32.to_le_bytes());
        s[8..16].copy_from_slice(&self.clock.tsc_at(0).to_le_bytes());
        s[24..28].copy_from_slice(&multiplier.to_le_bytes());
        s[28] = shift as u8;
        s[29] = TSC_STABLE;
        self.store(address, &s);
    }

    /// `struct pvclock_wall_clock`: UTC at power-on, 12 bytes.
    fn publish_wall(&self, address: u64) {
        let wall = self.clock.wall_at(0);
        let mut s = [0u8; 12];
        s[0..4].copy_from_slice(&2u32.to_le_bytes());
        s[4..8].copy_from_slice(&((wall / 1_000_000_000) as u32).to_le_bytes());
        s[8..12].copy_from_slice(&((wall % 1_000_000_000) as u32).to_le_bytes());
        self.store(address, &s);
    }

    /// The address is the guest's: anything that is not whole RAM is ignored, as
    /// a bus would.
    fn store(&self, address: u64, bytes: &[u8]) {
        if let Some(hit) =
            self.memory.translate(address).filter(|h| h.writable && h.len >= bytes.len() as u64)
        {
            self.memory.write_bytes(hit.offset, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest computes from the structure.
    fn guest_nanos(ticks: u64, khz: u32) -> u64 {
        let (multiplier, shift) = scale(khz);
        let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
        ((u128::from(shifted) * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn the_guest_computes_our_nanoseconds_at_every_frequency() {
        for khz in [1_000, 999_999, 1_000_000, 1_000_001, 2_000_000, 2_596_123, 10_000_000] {
            let clock = Clock::virtual_time(khz, 0);
            for now in [0, 1_000_000, 1_000_000_000, 3_600_000_000_000] {
                let seen = guest_nanos(clock.tsc_at(now), khz);
                let tolerance = 1_000 + now / 1_000_000_000;
                assert!(seen.abs_diff(now) <= tolerance, "{khz} kHz at {now}: {seen}");
            }
        }
        assert_eq!(guest_nanos(123_456_789, 1_000_000), 123_456_789);
    }

    #[test]
    fn time_counts_from_power_on_whatever_the_tsc_starts_at() {
        for base in [0, 7_432_219_486_706] {
            let memory = GuestMemory::flat(0x4000).unwrap();
            let clock = Clock::host_with_tsc(2_596_130, base);
            let pv = ParavirtualClock::new(clock.clone(), memory.clone(), 1);
            pv.write(0, msr_index::KVM_SYSTEM_TIME, 0x2001).unwrap();
            let mut s = [0; 32];
            memory.load(0x2000, &mut s).unwrap();
            let field = |at: usize| u64::from_le_bytes(s[at..at + 8].try_into().unwrap());
            let now = 5_000_000_000;
            let seen = field(16) + guest_nanos(clock.tsc_at(now) - field(8), clock.tsc_khz());
            assert!(seen.abs_diff(now) < 10_000, "{seen} with a TSC that started at {base}");
        }
    }

    #[test]
    fn registration_writes_the_structures_and_bad_addresses_are_ignored() {
        let memory = GuestMemory::flat(0x4000).unwrap();
        let clock = Clock::virtual_time(1_000_000, 5_000_000_007);
        let pv = ParavirtualClock::new(clock, memory.clone(), 2);
        assert_eq!(pv.write(1, msr_index::KVM_SYSTEM_TIME, 0x2001), Some(()));
        assert_eq!(pv.read(1, msr_index::KVM_SYSTEM_TIME), Some(0x2001));
        assert_eq!(pv.read(0, msr_index::KVM_SYSTEM_TIME), Some(0));
        let mut s = [0; 32];
        memory.load(0x2000, &mut s).unwrap();
        assert_eq!((s[0], s[28], s[29]), (2, 1, 1));
        pv.write(0, msr_index::KVM_WALL_CLOCK, 0x1000).unwrap();
        memory.load(0x1000, &mut s).unwrap();
        assert_eq!(s[4..12], [5, 0, 0, 0, 7, 0, 0, 0]);
        for bad in [0x3ff1, 0x4001, u64::MAX] {
            assert_eq!(pv.write(0, msr_index::KVM_SYSTEM_TIME, bad), Some(()));
        }
        assert_eq!(pv.write(0, msr_index::APIC_BASE, 0), None);
    }
}
