//! The persistent memory device (virtio 1.2, section 5.19): a range of
//! guest-physical addresses in which the board has mapped a file, and a queue of
//! requests to make durable what the guest has written there.
//!
//! A guest reads and writes without the device; the host's page cache is the
//! guest's disk, and no copy of it is needed in the guest.

use std::fs::File;

use virtio_core::{ActivateError, Activation, DeviceType, Doorbell, Handler, Queue, VirtioDevice, Worker};

const NAME: &str = "virtio-pmem";
const QUEUES: [u16; 1] = [64];

/// The request to make everything durable (5.19.6).
const FLUSH: u32 = 0;
/// What answers say (5.19.6).
mod answer {
    pub const OK: u32 = 0;
    pub const ERROR: u32 = 1;
}

/// What the device says and does.
pub struct PmemConfig {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// The file to make durable; `None`: nothing is ever written.
    pub file: Option<File>,
}

/// The device.
pub struct Pmem {
    // Static configuration.
    start: u64,
    size: u64,
    // Runtime glue.
    worker: Option<Worker<Requests>>,
    /// The worker has it while there is one.
    file: Option<File>,
}

struct Requests {
    queue: Queue,
    file: Option<File>,
}

impl Requests {
    fn answer(&self, request: Option<u32>) -> u32 {
        match (request, &self.file) {
            (Some(FLUSH), None) => answer::OK,
            // The size is as it was: data alone has changed.
            (Some(FLUSH), Some(file)) if file.sync_data().is_ok() => answer::OK,
            _ => answer::ERROR,
        }
    }
}

impl Handler for Requests {
    fn queue(&mut self, _queue: u16) {
        while let Some(chain) = self.queue.pop() {
            let mut request = [0; 4];
            let whole = chain.reader().read_all(&mut request).is_ok();
            let answer = self.answer(whole.then(|| u32::from_le_bytes(request)));
            let mut writer = chain.writer();
            writer.write_some(&answer.to_le_bytes());
            let written = writer.written();
            self.queue.complete(chain, written);
        }
        self.queue.signal();
    }
}

impl Pmem {
    /// A device for a range that the board has mapped.
    pub fn new(config: PmemConfig) -> Self {
        let PmemConfig { start, size, file } = config;
        Pmem { start, size, worker: None, file }
    }
}

impl VirtioDevice for Pmem {
    fn name(&self) -> &'static str {
        NAME
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::PMEM
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }
    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let config = [self.start.to_le_bytes(), self.size.to_le_bytes()];
        virtio_core::read_config(config.as_flattened(), offset, to);
    }
    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        let queue = a.queues.into_iter().next().flatten().ok_or(ActivateError::MissingQueue(0))?;
        let requests = Requests { queue, file: self.file.take() };
        let worker = Worker::start("pmem", 1, a.inline, requests)
            .map_err(|error| ActivateError::Host { what: "a thread", error })?;
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
        let Some(requests) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        self.file = requests.file;
        vec![Some(requests.queue)]
    }
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use virtio_core::mock::{Bench, BenchConfig};

    use super::*;

    fn bench(file: Option<File>) -> Bench<Pmem> {
        let device = Pmem::new(PmemConfig { start: 4 << 30, size: 6 << 20, file });
        Bench::new(device, BenchConfig::default())
    }

    #[test]
    fn the_configuration_says_where_the_range_is() {
        let mut b = bench(None);
        let mut config = [9; 20];
        b.device.config_read(0, &mut config);
        let expected = [&(4u64 << 30).to_le_bytes()[..], &(6u64 << 20).to_le_bytes(), &[0; 4]].concat();
        assert_eq!(config[..], expected);
    }

    #[test]
    fn flushes_are_answered_and_nothing_else_is() {
        // A pipe cannot be made durable: the error reaches the guest.
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        let path = std::env::temp_dir().join(format!("strata-pmem-{}", std::process::id()));
        let real = File::create(&path).unwrap();
        for (file, request, ret) in [
            (None, &FLUSH.to_le_bytes()[..], answer::OK),
            (Some(real), &FLUSH.to_le_bytes()[..], answer::OK),
            (Some(pipe), &FLUSH.to_le_bytes()[..], answer::ERROR),
            (None, &7u32.to_le_bytes()[..], answer::ERROR),
            (None, &[0; 3][..], answer::ERROR),
        ] {
            let mut b = bench(file);
            assert_eq!(b.request(0, &[request], &[4]).data, ret.to_le_bytes(), "{request:?}");
            b.replace(Pmem::new(PmemConfig { start: 4 << 30, size: 6 << 20, file: None }));
            assert_eq!(b.request(0, &[&FLUSH.to_le_bytes()], &[4]).data, answer::OK.to_le_bytes());
            assert_eq!(b.request(0, &[&FLUSH.to_le_bytes()], &[2]).written, 2, "a buffer too short");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
