//! The entropy device (virtio 1.2, section 5.4): fills buffers with random bytes.
//!
//! A guest may ask for as much as it likes: each buffer gets at most
//! [`MAX_REQUEST`] bytes, and all of them together at most a rate. A buffer that
//! would exceed it waits; what is given is never worse for it.

mod budget;
mod source;

use std::time::Instant;

use saved_state::StateError;
use virtio_core::{ActivateError, Activation, DeviceType, Doorbell, Handler, Queue, VirtioDevice, Worker};

use budget::Budget;
pub use source::Source;

/// Bytes given for one buffer at most: bounds the host's memory and the time of
/// one step. Drivers ask again.
pub const MAX_REQUEST: usize = 64 << 10;
/// Bytes a second unless told otherwise: far above what a guest needs, far below
/// what would keep a host's processor busy.
pub const DEFAULT_RATE: u64 = 4 << 20;

const NAME: &str = "virtio-rng";
const QUEUES: [u16; 1] = [64];

/// The device.
pub struct Rng {
    // Static configuration.
    rate: u64,
    // Runtime glue.
    worker: Option<Worker<Requests>>,
    // Volatile state: the worker has it while there is one.
    source: Option<Source>,
}

impl Rng {
    /// A device that gives at most `rate` bytes a second from `source`.
    pub fn new(source: Source, rate: u64) -> Self {
        Rng { rate, worker: None, source: Some(source) }
    }
}

/// What answers requests, on the worker's thread or inline.
struct Requests {
    queue: Queue,
    source: Source,
    /// None inline: virtual time has no rate.
    budget: Option<Budget>,
    /// Buffers wait until the budget has recovered.
    waiting: bool,
    bytes: Vec<u8>,
}

impl Requests {
    fn serve(&mut self) {
        self.waiting = false;
        while let Some(chain) = self.queue.pop() {
            let allowed =
                self.budget.as_mut().map_or(MAX_REQUEST, |b| b.available(Instant::now(), MAX_REQUEST));
            if allowed == 0 {
                self.queue.put_back(chain);
                self.waiting = true;
                break;
            }
            let len = usize::try_from(chain.writable_len()).unwrap_or(MAX_REQUEST).min(allowed);
            self.bytes.resize(len, 0);
            if !self.source.fill(&mut self.bytes) {
                // The host has none to give: an empty answer, and the driver asks again.
                self.bytes.clear();
            }
            let mut writer = chain.writer();
            let given = writer.write_some(&self.bytes);
            let written = writer.written();
            self.queue.complete(chain, written);
            if let Some(budget) = &mut self.budget {
                budget.spend(given);
            }
        }
        self.queue.signal();
    }
}

impl Handler for Requests {
    fn queue(&mut self, queue: u16) {
        if queue == 0 {
            self.serve();
        }
    }
    fn deadline(&self) -> Option<Instant> {
        self.budget.as_ref().filter(|_| self.waiting).map(Budget::recovered)
    }
    fn expired(&mut self) {
        self.serve();
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        NAME
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::RNG
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }
    fn activate(&mut self, mut a: Activation) -> Result<(), ActivateError> {
        let queue = a.queues.pop().flatten().ok_or(ActivateError::MissingQueue(0))?;
        let source = self.source.take().unwrap_or(Source::Host);
        let budget = (!a.inline).then(|| Budget::new(self.rate, Instant::now()));
        let work = Requests { queue, source, budget, waiting: false, bytes: Vec::new() };
        let worker = Worker::start("rng", 1, a.inline, work);
        self.worker = Some(worker.map_err(|error| ActivateError::Host { what: "a thread", error })?);
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
        let Some(requests) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        self.source = Some(requests.source);
        vec![Some(requests.queue)]
    }
    fn reset(&mut self) {}
    fn save(&self) -> Vec<u8> {
        self.source.as_ref().map(Source::save).unwrap_or_default()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.source.get_or_insert(Source::Host).restore(state)
    }
}

#[cfg(test)]
mod tests;
