//! What tests of both transports do, whatever the registers.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use device_model::IrqSink;
use guest_memory::{GuestMemory, RamOffset};
use virtio_core::mock::{DriverQueue, Wish};

/// An interrupt line that remembers how its level changed.
#[derive(Default)]
pub struct Levels(pub Mutex<Vec<bool>>);

impl IrqSink for Levels {
    fn set_level(&self, _: u32, level: bool) {
        let mut levels = self.0.lock().unwrap();
        if levels.last().copied().unwrap_or(false) != level {
            levels.push(level);
        }
    }
}

/// Wait for it.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited for {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Send a byte to [`echo`](crate::echo) and wait for its inverse; `ring` is the doorbell.
pub fn exchange(memory: &GuestMemory, q: &mut DriverQueue, byte: u8, ring: impl FnOnce()) {
    memory.write(RamOffset(0x8_0000), byte);
    q.add(&[(0x8_0000, 1)], &[(0x8_0010, 1)]).unwrap();
    if q.needs_doorbell() {
        ring();
    }
    until("an answer", || q.take_used().is_some());
    assert_eq!(memory.read::<u8>(RamOffset(0x8_0010)), !byte);
    q.wish(Wish::Next);
}
