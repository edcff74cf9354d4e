//! The block device (virtio 1.2, section 5.2) over a [`disk::Disk`].
//!
//! Each queue has a worker: it takes all requests there are, executes them
//! straight between the disk and guest memory, and interrupts the driver once. A
//! request for which the host has no room stays in its queue until the machine's
//! owner, who is told, has made the device stand still and go on.
//!
//! | module | what |
//! | --- | --- |
//! | `request` | one request: header, execution, status |
//! | `overlap` | several requests of a queue at once, where the disk can |
//! | `config` | the configuration structure |

mod config;
mod overlap;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use disk::{Disk, FullListener};
use rate_log::RateLog;
use saved_state::StateError;
use virtio_core::{
    ActivateError, Activation, Chain, DeviceType, Doorbell, Handler, Interrupt, Queue, VirtioDevice, Worker,
};

use config::{Features, MAX_SEGMENTS};
use request::{Full, Target};

/// Descriptors of a queue: a request of the largest count of segments fits.
pub const QUEUE_SIZE: u16 = 256;
/// Most queues of a device: one a vCPU up to here, with a thread for each.
pub const MAX_QUEUES: u16 = 16;
/// Completions after which the driver hears of them, though more requests wait.
const BATCH: u32 = 32;
/// Bytes of the serial number (5.2.6.1).
pub const SERIAL_LEN: usize = 20;

const NAME: &str = "virtio-block";

/// What a block device is made of.
pub struct BlockConfig {
    /// Where the blocks are.
    pub disk: Arc<dyn Disk>,
    /// Serial number, cut after 20 bytes.
    pub serial: String,
    /// Queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Told when requests wait for room on the host. `None`: they fail.
    pub on_full: Option<FullListener>,
}

/// What all workers share.
struct Shared {
    target: Target,
    /// Where a change of size is told, while active.
    interrupt: Mutex<Option<Interrupt>>,
    /// The driver's choice: a write is done when it is durable (5.2.5).
    write_through: Arc<AtomicBool>,
    on_full: Option<FullListener>,
}

impl Shared {
    fn set_interrupt(&self, interrupt: Option<Interrupt>) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

/// The device.
pub struct Block {
    // Static configuration.
    sizes: Vec<u16>,
    // Runtime glue.
    shared: Arc<Shared>,
    workers: Vec<Option<Worker<Requests>>>,
    /// The size when the device last stood still: a change since is told when it goes on.
    left_at: Option<u64>,
}

impl Block {
    /// A device over a disk.
    pub fn new(config: BlockConfig) -> Self {
        let BlockConfig { disk, serial, queues, on_full } = config;
        let write_through = Arc::new(AtomicBool::new(false));
        let target = Target::new(disk, &serial, write_through.clone(), RateLog::new(NAME));
        let shared = Arc::new(Shared { target, interrupt: Mutex::default(), write_through, on_full });
        let told = Arc::downgrade(&shared);
        shared.target.disk().on_resize(Box::new(move || {
            let Some(shared) = told.upgrade() else { return };
            if let Some(interrupt) = &*shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
                interrupt.config_changed();
            }
        }));
        let queues = queues.clamp(1, MAX_QUEUES);
        Block { sizes: vec![QUEUE_SIZE; queues.into()], shared, workers: Vec::new(), left_at: None }
    }

    fn offered(&self) -> Features {
        Features::of(self.shared.target.disk(), self.sizes.len() as u16)
    }
}

/// One queue's requests, on its worker's thread or inline.
struct Requests {
    queue: Queue,
    shared: Arc<Shared>,
    /// The next request waits for room on the host, until the device goes on.
    held: bool,
    /// Several at once.
    overlaps: bool,
}

impl Requests {
    /// Put a request back until the host has room. It and what follows are
    /// executed when the device goes on after it stood still.
    fn hold(&mut self, chain: Chain, told: &FullListener) {
        self.queue.put_back(chain);
        self.held = true;
        told();
    }
}

impl Handler for Requests {
    fn queue(&mut self, _queue: u16) {
        if self.overlaps {
            return overlap::run(self);
        }
        let mut unsignalled = 0;
        while !self.held {
            let Some(chain) = self.queue.pop() else { break };
            let done = self.shared.target.execute(&chain, self.queue.memory());
            let written = match (done, self.shared.on_full.clone()) {
                (Ok(written), _) => written,
                (Err(Full), Some(told)) => {
                    self.hold(chain, &told);
                    break;
                }
                (Err(Full), None) => Target::fail(&chain),
            };
            self.queue.complete(chain, written);
            unsignalled += 1;
            if unsignalled == BATCH {
                self.queue.signal();
                unsignalled = 0;
            }
        }
        if unsignalled > 0 {
            self.queue.signal();
        }
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        NAME
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }
    fn features(&self) -> u64 {
        self.offered().bits()
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }
    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let cached = !self.shared.write_through.load(Ordering::Acquire);
        let bytes = config::bytes(self.shared.target.disk(), self.sizes.len() as u16, cached);
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or(&[]);
        to.fill(0);
        to.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
    }
    fn config_write(&mut self, offset: u64, from: &[u8]) {
        if let (config::WRITEBACK, [value]) = (offset, from) {
            self.shared.write_through.store(*value == 0, Ordering::Release);
        }
    }
    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        self.shared.target.negotiated(a.features);
        // A driver that does not know flush relies on writes being durable (5.2.6.2).
        if a.features & config::FLUSH == 0 {
            self.shared.write_through.store(true, Ordering::Release);
        }
        if self.left_at.take().is_some_and(|size| size != self.shared.target.disk().geometry().size) {
            a.interrupt.config_changed();
        }
        self.shared.set_interrupt(Some(a.interrupt));
        // Inline, runs are to repeat: one after another.
        let overlaps = !a.inline && self.shared.target.disk().overlaps();
        for (n, queue) in a.queues.into_iter().enumerate() {
            let worker = queue.map(|queue| {
                let requests = Requests { queue, shared: self.shared.clone(), held: false, overlaps };
                Worker::start(&format!("block{n}"), 1, a.inline, requests)
                    .map_err(|error| ActivateError::Host { what: "a thread", error })
            });
            self.workers.push(worker.transpose()?);
        }
        Ok(())
    }
    fn notify(&mut self, queue: u16) {
        if let Some(Some(worker)) = self.workers.get_mut(usize::from(queue)) {
            // Each worker has one queue, its first.
            worker.notify(0);
        }
    }
    fn doorbell(&self, queue: u16) -> Option<Doorbell> {
        self.workers.get(usize::from(queue))?.as_ref()?.doorbell(0)
    }
    fn quiesce(&mut self) -> Vec<Option<Queue>> {
        self.shared.set_interrupt(None);
        self.left_at = Some(self.shared.target.disk().geometry().size);
        let workers = std::mem::take(&mut self.workers);
        workers.into_iter().map(|w| w.and_then(Worker::stop).map(|requests| requests.queue)).collect()
    }
    fn reset(&mut self) {
        self.left_at = None;
        self.shared.write_through.store(false, Ordering::Release);
    }
    fn save(&self) -> Vec<u8> {
        vec![u8::from(self.shared.write_through.load(Ordering::Acquire))]
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let [write_through @ (0 | 1)] = *state else {
            return StateError::check(false, NAME, "write-through", state.len() as u64, "one byte, 0 or 1");
        };
        self.shared.write_through.store(write_through == 1, Ordering::Release);
        Ok(())
    }
}

const _: () = assert!(MAX_SEGMENTS + 2 <= QUEUE_SIZE as u32, "a request fits a queue");
