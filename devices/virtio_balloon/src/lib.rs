//! The memory balloon (virtio 1.2, section 5.5), with free page reporting.
//!
//! Pages that the driver puts into the balloon or reports as free go back to the
//! host ([`GuestMemory::discard`]); they come back, as zeroes, when the guest
//! touches them again. The balloon moves only when its owner sets a target
//! ([`BalloonHandle`]); reporting goes on by itself, as the driver sees fit.

mod handle;
mod pages;

use std::sync::Arc;

use guest_memory::GuestMemory;
use saved_state::StateError;
use virtio_core::{
    ActivateError, Activation, Chain, DeviceType, Doorbell, Handler, Queue, VirtioDevice, Worker,
};

pub use handle::{BalloonHandle, BalloonStats};
use handle::{Shared, lock};
use pages::Runs;

const NAME: &str = "virtio-balloon";

/// Feature bits (5.5.3).
mod feature {
    pub const STATS_VQ: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Queues: inflate, deflate, statistics, reporting. Drivers number those that
/// exist without a gap, and there is no free page hinting.
const SIZES: [u16; 4] = [128, 128, 4, 32];
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Doorbell of the handle, which is no queue's.
const ASK_FOR_STATS: u16 = 32;
/// Page numbers taken from a chain at a time.
const BATCH: usize = 1024;
/// Statistics in a buffer at most: the standard defines 16, two bytes tag, eight bytes value.
const MAX_STATS: usize = 32;

/// The device.
pub struct Balloon {
    // Static configuration.
    reporting: bool,
    // Runtime glue, and the volatile state that the owner sees too.
    shared: Arc<Shared>,
    worker: Option<Worker<Work>>,
}

impl Balloon {
    /// An empty balloon; `reporting`: the driver may report free pages.
    pub fn new(reporting: bool) -> Self {
        Balloon { reporting, shared: Arc::default(), worker: None }
    }

    /// The owner's side.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(self.shared.clone())
    }
}

struct Work {
    memory: GuestMemory,
    shared: Arc<Shared>,
    queues: Vec<Option<Queue>>,
    /// Places of the queues that not every driver has.
    stats: Option<usize>,
    reporting: Option<usize>,
    /// The driver's buffer of statistics, kept until somebody asks for new ones.
    kept: Option<Chain>,
}

impl Work {
    fn new(a: Activation, shared: Arc<Shared>) -> Self {
        let Activation { memory, features, queues, .. } = a;
        let stats = (features & feature::STATS_VQ != 0).then_some(2);
        let reporting = (features & feature::PAGE_REPORTING != 0).then_some(2 + usize::from(stats.is_some()));
        Work { memory, shared, queues, stats, reporting, kept: None }
    }

    fn pop(&mut self, queue: usize) -> Option<Chain> {
        self.queues.get_mut(queue)?.as_mut()?.pop()
    }

    fn complete(&mut self, queue: usize, chain: Chain) {
        if let Some(Some(queue)) = self.queues.get_mut(queue) {
            queue.complete(chain, 0);
        }
    }

    fn signal(&mut self, queue: usize) {
        if let Some(Some(queue)) = self.queues.get_mut(queue) {
            queue.signal();
        }
    }

    /// Pages by number, 32 bits each, whatever the guest's page size (5.5.6).
    fn inflate(&mut self) {
        while let Some(chain) = self.pop(INFLATE) {
            let mut reader = chain.reader();
            let mut runs = Runs::new(&self.memory);
            let mut bytes = [0; 4 * BATCH];
            while let n @ 4.. = reader.read_some(&mut bytes) {
                let (numbers, _) = bytes[..n].as_chunks::<4>();
                numbers.iter().for_each(|n| runs.add(u32::from_le_bytes(*n)));
            }
            self.shared.gave_back(runs.finish());
            self.complete(INFLATE, chain);
        }
        self.signal(INFLATE);
    }

    /// Pages come back by being touched: nothing to do.
    fn deflate(&mut self) {
        while let Some(chain) = self.pop(DEFLATE) {
            self.complete(DEFLATE, chain);
        }
        self.signal(DEFLATE);
    }

    /// Free pages, as the writable pieces of a chain (5.5.6.7).
    fn report(&mut self, queue: usize) {
        while let Some(chain) = self.pop(queue) {
            for &(offset, len) in chain.writable() {
                // A host that refuses keeps the pages: nothing is lost.
                self.shared.gave_back(self.memory.discard(offset, len as u64).unwrap_or(0));
            }
            self.complete(queue, chain);
        }
        self.signal(queue);
    }

    /// A new buffer of statistics (5.5.6.3).
    fn take_stats(&mut self, queue: usize) {
        while let Some(chain) = self.pop(queue) {
            let mut bytes = [0; 10 * MAX_STATS];
            let n = chain.reader().read_some(&mut bytes);
            let mut stats = BalloonStats::default();
            for entry in bytes[..n].as_chunks::<10>().0 {
                let [a, b, value @ ..] = *entry;
                stats.set(u16::from_le_bytes([a, b]), u64::from_le_bytes(value));
            }
            *lock(&self.shared.stats) = Some(stats);
            if let Some(older) = self.kept.replace(chain) {
                self.complete(queue, older);
            }
        }
    }
}

impl Handler for Work {
    fn queue(&mut self, queue: u16) {
        match usize::from(queue) {
            INFLATE => self.inflate(),
            DEFLATE => self.deflate(),
            q if Some(q) == self.stats => self.take_stats(q),
            q if Some(q) == self.reporting => self.report(q),
            _ if queue == ASK_FOR_STATS => {
                if let (Some(q), Some(chain)) = (self.stats, self.kept.take()) {
                    self.complete(q, chain);
                    self.signal(q);
                }
            }
            _ => {}
        }
    }
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &'static str {
        NAME
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::BALLOON
    }
    fn features(&self) -> u64 {
        let reporting = if self.reporting { feature::PAGE_REPORTING } else { 0 };
        feature::STATS_VQ | feature::DEFLATE_ON_OOM | reporting
    }
    fn queue_sizes(&self) -> &[u16] {
        if self.reporting { &SIZES } else { &SIZES[..3] }
    }
    /// Wanted and actual size in pages, both 32 bits (5.5.4).
    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let words = [self.shared.target(), self.shared.actual()].map(u32::to_le_bytes);
        virtio_core::read_config(words.as_flattened(), offset, to);
    }
    fn config_write(&mut self, offset: u64, from: &[u8]) {
        let mut actual = self.shared.actual().to_le_bytes();
        for (at, new) in (offset..).zip(from) {
            let at = at.checked_sub(4).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| actual.get_mut(at)) {
                *byte = *new;
            }
        }
        self.shared.set_actual(u32::from_le_bytes(actual));
    }
    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        let (inline, interrupt) = (a.inline, a.interrupt.clone());
        let work = Work::new(a, self.shared.clone());
        let worker = Worker::start("balloon", SIZES.len() as u16, inline, work)
            .map_err(|error| ActivateError::Host { what: "a thread", error })?;
        self.shared.connect(Some(interrupt), worker.doorbell(ASK_FOR_STATS));
        self.worker = Some(worker);
        Ok(())
    }
    fn notify(&mut self, queue: u16) {
        if let Some(worker) = &mut self.worker {
            worker.notify(queue);
        }
    }
    fn doorbell(&self, queue: u16) -> Option<Doorbell> {
        self.worker.as_ref()?.doorbell(queue)
    }
    fn quiesce(&mut self) -> Vec<Option<Queue>> {
        self.shared.connect(None, None);
        let Some(mut work) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        if let (Some(q), Some(chain)) = (work.stats, work.kept.take())
            && let Some(Some(queue)) = work.queues.get_mut(q)
        {
            queue.put_back(chain);
        }
        work.queues
    }
    fn reset(&mut self) {
        self.shared.reset();
    }
    fn save(&self) -> Vec<u8> {
        [self.shared.target(), self.shared.actual()].map(u32::to_le_bytes).concat()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (words, rest) = state.as_chunks::<4>();
        let [target, actual] = *words else {
            return StateError::check(false, NAME, "state", state.len() as u64, "8 bytes");
        };
        StateError::check(rest.is_empty(), NAME, "state", state.len() as u64, "8 bytes")?;
        self.shared.restore(u32::from_le_bytes(target), u32::from_le_bytes(actual));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
