//! The guest's time-stamp counter, relative to the machine clock's.

use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use device_model::Clock;
use engine::EngineError;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use x86_state::msr_index;

use crate::{NAME, msr, sys};

/// How far, in ms, an immovable TSC may be from where a state wants it: what
/// the host's clock may drift from its TSC in a machine's life.
const TOLERANCE_MS: u64 = 20;

fn attribute() -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), ..Default::default() }
}

/// KVM's own offset from the host's TSC, if it can tell.
fn in_kvm(vcpu: &VcpuFd) -> Option<u64> {
    sys::vcpu_attribute(vcpu.as_raw_fd(), &attribute())
}

fn guest_tsc(vcpu: &VcpuFd) -> u64 {
    msr::read_one(vcpu, msr_index::TSC).unwrap_or(0)
}

/// The host's TSC now.
pub(crate) fn host_now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    return sys::read_tsc();
    #[cfg(not(target_arch = "x86_64"))]
    return 0;
}

/// Whether moving a vCPU's TSC has an effect: some KVMs accept the offset and
/// let the guest read the host's counter all the same.
pub(crate) fn is_movable(vcpu: &VcpuFd) -> bool {
    const FAR: u64 = 1 << 50;
    let Some(before) = in_kvm(vcpu) else { return false };
    let at = guest_tsc(vcpu);
    let set = |value| sys::set_vcpu_attribute(vcpu.as_raw_fd(), &attribute(), value).is_ok();
    let moved = set(before.wrapping_add(FAR)) && guest_tsc(vcpu).wrapping_sub(at) >= FAR;
    set(before) && moved
}

/// A guest's TSC and the machine clock's ticks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    guest: u64,
    clock: u64,
    /// Ticks that reading both took.
    took: u64,
}

impl Moment {
    /// Most readings for a good one.
    const READINGS: u32 = 4;

    /// Now, as exactly as a timer needs it: to half of 10 us, unless the host keeps
    /// interrupting.
    pub(crate) fn now(vcpu: &VcpuFd, clock: &Clock) -> Self {
        Self::within(vcpu, clock, u64::from(clock.tsc_khz()) / 100)
    }

    /// The first reading that took no longer than `ticks`, or the tightest.
    fn within(vcpu: &VcpuFd, clock: &Clock, ticks: u64) -> Self {
        let once = || {
            let (before, guest, after) = (clock.tsc(), guest_tsc(vcpu), clock.tsc());
            let took = after.wrapping_sub(before);
            Moment { guest, clock: before.wrapping_add(took / 2), took }
        };
        let mut best = once();
        for _ in 1..Self::READINGS {
            if best.took <= ticks {
                break;
            }
            let next = once();
            if next.took < best.took {
                best = next;
            }
        }
        best
    }

    /// A deadline of the guest's TSC in the clock's ticks. 0 is disarmed in both;
    /// one that has passed is tick 1, which has passed in any machine.
    pub(crate) fn to_clock(self, deadline: u64) -> u64 {
        match deadline.checked_sub(self.guest) {
            _ if deadline == 0 => 0,
            None | Some(0) => 1,
            Some(left) => self.clock.saturating_add(left),
        }
    }

    /// The other way round.
    pub(crate) fn to_guest(self, deadline: u64) -> u64 {
        if deadline == 0 { 0 } else { self.guest.wrapping_add(deadline.wrapping_sub(self.clock)) }
    }
}

/// One vCPU's TSC.
pub(crate) struct GuestTsc {
    movable: bool,
    /// Offset from the machine clock as [`x86_state::CpuState`] has it.
    nominal: u64,
    /// What was written to KVM for it, once something was.
    written: Option<u64>,
    /// Ticks taken off because the machine's clock stood still.
    off: u64,
}

impl GuestTsc {
    pub(crate) fn new(vcpu: &VcpuFd) -> Self {
        GuestTsc { movable: is_movable(vcpu), nominal: 0, written: None, off: 0 }
    }

    /// Whether the guest's TSC can be moved.
    pub(crate) fn movable(&self) -> bool {
        self.movable
    }

    /// What the guest did to its TSC or TSC_ADJUST since the last look.
    fn follow(&mut self, vcpu: &VcpuFd) {
        if let (true, Some(now), Some(written)) = (self.movable, in_kvm(vcpu), self.written) {
            self.nominal = self.nominal.wrapping_add(now.wrapping_sub(written));
            self.written = Some(now);
        }
    }

    fn write(vcpu: &VcpuFd, value: u64) -> Result<(), EngineError> {
        sys::set_vcpu_attribute(vcpu.as_raw_fd(), &attribute(), value).map_err(|e| EngineError::BadState {
            engine: NAME,
            reason: format!("KVM does not take the TSC offset {value:#x}: {e}"),
        })
    }

    /// The machine's clock stood still for `ticks` of the guest's TSC.
    pub(crate) fn take_off(&mut self, vcpu: &VcpuFd, ticks: u64) -> Result<(), EngineError> {
        self.follow(vcpu);
        self.off = self.off.wrapping_add(ticks);
        if let (true, Some(written)) = (self.movable, self.written) {
            let value = written.wrapping_sub(ticks);
            Self::write(vcpu, value)?;
            self.written = Some(value);
        }
        Ok(())
    }

    /// The guest's TSC minus the clock's, as far as one reading can tell, and
    /// how far that is, in ticks.
    fn measure(vcpu: &VcpuFd, clock: &Clock) -> (u64, u64) {
        let moment = Moment::within(vcpu, clock, 0);
        (moment.guest.wrapping_sub(moment.clock), moment.took)
    }

    /// The offset for an export.
    ///
    /// KVM's TSC and the clock are both the host's, but where the clock is not the
    /// host's TSC, time synchronisation steers it. What has accumulated becomes
    /// part of the offset once it is more than noise.
    pub(crate) fn offset(&mut self, vcpu: &VcpuFd, clock: &Clock) -> u64 {
        self.follow(vcpu);
        let (measured, took) = Self::measure(vcpu, clock);
        let noise = u64::from(clock.tsc_khz()) / 20 + took;
        let apart = (measured.wrapping_sub(self.nominal) as i64).unsigned_abs();
        if apart > noise { measured } else { self.nominal }
    }

    /// Give the guest the clock's TSC plus `offset`. `base` is KVM's offset for
    /// 0, read once for all vCPUs so that their TSCs agree exactly.
    pub(crate) fn set_offset(
        &mut self,
        vcpu: &VcpuFd,
        clock: &Clock,
        base: &OnceLock<u64>,
        offset: u64,
    ) -> Result<(), EngineError> {
        if !self.movable {
            return self.accept_fixed(vcpu, clock, offset);
        }
        if self.written.is_some() && offset == self.nominal {
            return Ok(());
        }
        let now = in_kvm(vcpu).unwrap_or(0);
        let base = *base.get_or_init(|| now.wrapping_sub(Self::measure(vcpu, clock).0));
        let value = base.wrapping_add(offset).wrapping_sub(self.off);
        Self::write(vcpu, value)?;
        (self.nominal, self.written) = (offset, Some(value));
        Ok(())
    }

    /// The guest sees the host's TSC: that must be where the state wants it.
    fn accept_fixed(&mut self, vcpu: &VcpuFd, clock: &Clock, offset: u64) -> Result<(), EngineError> {
        let (measured, took) = Self::measure(vcpu, clock);
        let apart = (measured.wrapping_sub(offset) as i64).unsigned_abs();
        if apart > u64::from(clock.tsc_khz()) * TOLERANCE_MS + took {
            let stood = clock.stood_still();
            let why = if stood > 0 {
                format!("the machine's time stood still for {:.1} s while it was paused", stood as f64 / 1e9)
            } else {
                "start the machine with the clock of host_tsc()".to_string()
            };
            let reason =
                format!("guests see this host's TSC, {apart} ticks from where the state has it; {why}");
            return Err(EngineError::BadState { engine: NAME, reason });
        }
        self.nominal = offset;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_as_far_away_in_both_counters() {
        let check = |guest, clock, deadline, ticks| {
            let moment = Moment { guest, clock, took: 9 };
            assert_eq!(moment.to_clock(deadline), ticks, "{moment:?}, deadline {deadline}");
            moment
        };
        // Disarmed, passed, reached.
        check(1_000, 50, 0, 0);
        check(1_000, 50, 999, 1);
        check(1_000, 50, 1_000, 1);
        for (guest, clock) in [(1_000, 50), (50, 1_000), (7, 7), (u64::MAX - 500, 3)] {
            let moment = check(guest, clock, guest + 400, clock + 400);
            assert_eq!(moment.to_guest(clock + 400), guest + 400);
            assert_eq!(moment.to_guest(0), 0);
        }
        check(1_000, u64::MAX - 5, u64::MAX, u64::MAX);
    }
}
