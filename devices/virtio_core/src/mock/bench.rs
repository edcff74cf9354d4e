//! A device with a driver and memory around it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_memory::{GuestMemory, RamOffset};

use super::{DriverQueue, SeenInterrupts, Wish};
use crate::{ActivateError, Activation, Interrupt, Position, Queue, VirtioDevice, features};

/// How long a device may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of guest memory for buffers of each queue.
const BUFFERS: u64 = 4 << 20;

/// How the driver drives.
#[derive(Debug, Clone, Copy)]
pub struct BenchConfig {
    /// Feature bits accepted; those the device does not offer are left out,
    /// VERSION_1 is always in.
    pub features: u64,
    /// No threads, see [`Activation::inline`].
    pub inline: bool,
}

impl Default for BenchConfig {
    /// Everything offered but the packed format, with threads.
    fn default() -> Self {
        BenchConfig { features: !features::RING_PACKED, inline: false }
    }
}

/// What a device did with a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// ID that [`Bench::post`] gave.
    pub id: u16,
    /// Bytes it says it wrote.
    pub written: u32,
    /// What is in the writable buffers, one behind the other: `written` bytes.
    pub data: Vec<u8>,
}

/// A device, its driver, its memory.
pub struct Bench<D> {
    /// The device.
    pub device: D,
    /// Guest memory, flat from 0.
    pub memory: GuestMemory,
    /// The driver's side of each queue.
    pub queues: Vec<DriverQueue>,
    /// What the device signalled.
    pub interrupts: Arc<SeenInterrupts>,
    /// Negotiated.
    pub features: u64,
    inline: bool,
    /// Where each queue's buffers are taken from, and how far.
    buffers: Vec<(u64, u64)>,
    /// Writable buffers of chains with the device.
    pending: BTreeMap<(u16, u16), Vec<(u64, u32)>>,
}

impl<D: VirtioDevice> Bench<D> {
    /// Set a device up.
    ///
    /// # Panics
    /// When the device refuses.
    pub fn new(device: D, config: BenchConfig) -> Self {
        Self::try_new(device, config).expect("the device starts")
    }

    /// Set a device up.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn try_new(device: D, config: BenchConfig) -> Result<Self, ActivateError> {
        let offered = device.features() | features::CORE;
        let features = offered & config.features | features::VERSION_1;
        let sizes = device.queue_sizes().to_vec();
        let rings: u64 = sizes.iter().map(|&s| DriverQueue::footprint(s)).sum();
        let size = (0x1000 + rings + BUFFERS * sizes.len() as u64).next_multiple_of(4096);
        let memory = GuestMemory::flat(size).expect("the host has memory for a test");
        let mut at = 0x1000;
        let mut queues = Vec::new();
        for &size in &sizes {
            queues.push(DriverQueue::new(memory.clone(), at, size, features));
            at += DriverQueue::footprint(size);
        }
        let buffers = (0..sizes.len() as u64).map(|q| (at + BUFFERS * q, 0)).collect();
        let mut bench = Bench {
            device,
            memory,
            queues,
            interrupts: Arc::default(),
            features,
            inline: config.inline,
            buffers,
            pending: BTreeMap::new(),
        };
        let fresh = vec![None; bench.queues.len()];
        bench.activate(&fresh)?;
        Ok(bench)
    }

    fn activate(&mut self, positions: &[Option<Position>]) -> Result<(), ActivateError> {
        let interrupt = Interrupt::new(self.device.name(), self.interrupts.clone());
        let mut queues = Vec::new();
        for ((index, q), position) in (0u16..).zip(&self.queues).zip(positions) {
            let queue =
                Queue::new(self.memory.clone(), q.config(index), interrupt.clone(), position.as_ref());
            queues.push(Some(queue.map_err(|error| ActivateError::Ring { index, error })?));
        }
        let memory = self.memory.clone();
        self.device.activate(Activation {
            memory,
            features: self.features,
            queues,
            interrupt,
            inline: self.inline,
        })
    }

    /// Stop the device, save all of its state, put it into `fresh`, a device made
    /// like it, and go on with that.
    ///
    /// # Panics
    /// When a queue does not come back or the state is refused.
    pub fn replace(&mut self, fresh: D) {
        let queues = self.device.quiesce();
        assert_eq!(queues.len(), self.queues.len(), "all queues come back");
        let positions: Vec<_> = queues.iter().map(|q| q.as_ref().map(Queue::position)).collect();
        drop(queues);
        let state = self.device.save();
        self.device = fresh;
        self.device.restore(&state).expect("its own state");
        self.activate(&positions).expect("the device starts again");
    }

    /// Let a device that stands still go on with its queues.
    ///
    /// # Panics
    /// When it refuses.
    pub fn go_on(&mut self, queues: Vec<Option<Queue>>) {
        let interrupt = Interrupt::new(self.device.name(), self.interrupts.clone());
        let (memory, features, inline) = (self.memory.clone(), self.features, self.inline);
        self.device
            .activate(Activation { memory, features, queues, interrupt, inline })
            .expect("the device goes on");
    }

    /// Guest memory for a buffer.
    fn allocate(&mut self, queue: u16, len: u32) -> u64 {
        let (start, used) = &mut self.buffers[usize::from(queue)];
        // Buffers are reused in a ring; nobody posts 4 MiB at once.
        if *used + u64::from(len) > BUFFERS {
            *used = 0;
        }
        let at = *start + *used;
        *used += u64::from(len);
        at
    }

    /// Make a chain available: what the device reads, and sizes of what it writes
    /// (at most 4 MiB in all). Answers its ID; rings no doorbell.
    ///
    /// # Panics
    /// When the ring is full.
    pub fn post(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let mut read = Vec::new();
        for bytes in readable {
            let at = self.allocate(queue, bytes.len() as u32);
            self.memory.write_bytes(RamOffset(at), bytes);
            read.push((at, bytes.len() as u32));
        }
        let write: Vec<_> = writable.iter().map(|&len| (self.allocate(queue, len), len)).collect();
        let id = self.queues[usize::from(queue)].add(&read, &write).expect("room in the ring");
        self.pending.insert((queue, id), write);
        id
    }

    /// Ring the doorbell if the device asked for it.
    pub fn kick(&mut self, queue: u16) {
        if self.queues[usize::from(queue)].needs_doorbell() {
            match self.device.doorbell(queue) {
                Some(bell) => bell.ring(),
                None => self.device.notify(queue),
            }
        }
    }

    /// The next chain that the device has used, if any; asks for an interrupt at the next.
    pub fn poll(&mut self, queue: u16) -> Option<Response> {
        let (id, written) = self.queues[usize::from(queue)].take_used()?;
        self.queues[usize::from(queue)].wish(Wish::Next);
        let mut data = Vec::new();
        for (at, len) in self.pending.remove(&(queue, id)).unwrap_or_default() {
            let n = (written as usize - data.len().min(written as usize)).min(len as usize);
            let mut piece = vec![0; n];
            self.memory.read_bytes(RamOffset(at), &mut piece);
            data.extend(piece);
        }
        Some(Response { id, written, data })
    }

    /// Wait for the next chain that the device uses.
    ///
    /// # Panics
    /// After ten seconds.
    pub fn wait(&mut self, queue: u16) -> Response {
        let start = Instant::now();
        loop {
            if let Some(response) = self.poll(queue) {
                return response;
            }
            // Inline, what has not been used by now never will be.
            assert!(!self.inline && start.elapsed() < PATIENCE, "the device used nothing of queue {queue}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Post a chain, ring, and wait for it.
    ///
    /// # Panics
    /// As [`Bench::wait`], and when the device uses another chain first.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Response {
        let id = self.post(queue, readable, writable);
        self.kick(queue);
        let response = self.wait(queue);
        assert_eq!(response.id, id, "the chain posted");
        response
    }

    /// Wait until a condition holds.
    ///
    /// # Panics
    /// After ten seconds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "waited for {what}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
