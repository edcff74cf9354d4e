//! A device that answers each chain with its readable bytes, inverted.

use virtio_core::{ActivateError, Activation, DeviceType, Doorbell, Handler, Queue, VirtioDevice, Worker};

/// Queues of the device: a large and a small one.
pub const SIZES: [u16; 2] = [64, 8];

#[derive(Default)]
pub struct Echo {
    worker: Option<Worker<Work>>,
    /// Chains answered: state of its own.
    answered: u32,
    config: [u8; 8],
}

struct Work {
    queues: Vec<Option<Queue>>,
    answered: u32,
}

impl Handler for Work {
    fn queue(&mut self, queue: u16) {
        let Some(Some(queue)) = self.queues.get_mut(usize::from(queue)) else { return };
        while let Some(chain) = queue.pop() {
            let mut bytes = vec![0; chain.readable_len() as usize];
            chain.reader().read_some(&mut bytes);
            bytes.iter_mut().for_each(|b| *b = !*b);
            let mut writer = chain.writer();
            writer.write_some(&bytes);
            let written = writer.written();
            queue.complete(chain, written);
            self.answered = self.answered.wrapping_add(1);
        }
        queue.signal();
    }
}

impl VirtioDevice for Echo {
    fn name(&self) -> &'static str {
        "virtio-echo"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType(63)
    }
    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        for (at, byte) in (offset..).zip(to) {
            *byte = usize::try_from(at).ok().and_then(|at| self.config.get(at)).copied().unwrap_or(0);
        }
    }
    fn config_write(&mut self, offset: u64, from: &[u8]) {
        for (at, new) in (offset..).zip(from) {
            if let Some(byte) = usize::try_from(at).ok().and_then(|at| self.config.get_mut(at)) {
                *byte = *new;
            }
        }
    }
    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        let work = Work { queues: a.queues, answered: self.answered };
        let worker = Worker::start("echo", SIZES.len() as u16, a.inline, work);
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
        let Some(Work { queues, answered }) = self.worker.take().and_then(Worker::stop) else {
            return Vec::new();
        };
        self.answered = answered;
        queues
    }
    fn reset(&mut self) {
        self.answered = 0;
        self.config = [0; 8];
    }
    fn save(&self) -> Vec<u8> {
        self.answered.to_le_bytes().to_vec()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), saved_state::StateError> {
        let bytes = state.try_into().map_err(|_| saved_state::StateError::OutOfRange {
            device: "virtio-echo",
            field: "state",
            value: state.len() as u64,
            allowed: "4 bytes",
        })?;
        self.answered = u32::from_le_bytes(bytes);
        Ok(())
    }
}

impl Echo {
    /// Chains answered, while quiesced.
    #[allow(dead_code, reason = "not every test looks")]
    pub fn answered(&self) -> u32 {
        self.answered
    }
}
