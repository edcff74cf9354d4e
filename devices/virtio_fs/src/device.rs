//! The device: its queues and the worker.

use std::io;
use std::path::Path;

use saved_state::StateError;
use virtio_core::{
    ActivateError, Activation, Chain, DeviceType, Doorbell, Handler, Queue, VirtioDevice, Worker,
};

use crate::abi::{IN_HEADER, MAX_ARGUMENTS, MAX_TRANSFER, OUT_HEADER};
use crate::server::Server;

/// High-priority requests, and others.
const QUEUES: [u16; 2] = [128, 1024];
/// The longest name of a share (5.11.4).
pub const MAX_TAG: usize = 36;
/// The longest request and the longest answer.
const MAX_REQUEST: usize = MAX_TRANSFER + MAX_ARGUMENTS;

/// What a device is made of.
#[derive(Debug)]
pub struct FsConfig<'a> {
    /// The name by which the guest mounts it: 1 to [`MAX_TAG`] bytes.
    pub tag: &'a str,
    /// The folder of the host.
    pub folder: &'a Path,
    /// Whether the guest may change nothing.
    pub read_only: bool,
}

/// The file system device.
pub struct VirtioFs {
    // Static configuration.
    tag: [u8; MAX_TAG],
    // Runtime glue.
    worker: Option<Worker<Work>>,
    // Volatile state; with the worker while that runs.
    server: Option<Server>,
}

impl VirtioFs {
    /// A device that serves a folder.
    ///
    /// # Errors
    /// When the tag is empty or too long, or the folder cannot be opened.
    pub fn new(config: FsConfig<'_>) -> io::Result<Self> {
        let FsConfig { tag, folder, read_only } = config;
        if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') {
            let text = format!("tag \"{tag}\" of a share; it has 1 to {MAX_TAG} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut bytes = [0; MAX_TAG];
        bytes[..tag.len()].copy_from_slice(tag.as_bytes());
        Ok(VirtioFs { tag: bytes, worker: None, server: Some(Server::new(folder, read_only)?) })
    }
}

struct Work {
    queues: Vec<Option<Queue>>,
    server: Server,
    request: Vec<u8>,
}

impl Work {
    /// Serve one request; answers how long the answer is.
    fn serve(&mut self, chain: &Chain) -> Result<u32, String> {
        let length = chain.readable_len();
        if length < IN_HEADER as u64 || length > MAX_REQUEST as u64 {
            return Err(format!("a request of {length} bytes"));
        }
        self.request.resize(length as usize, 0);
        chain.reader().read_some(&mut self.request);
        let room = chain.writable_len().min((OUT_HEADER + MAX_TRANSFER) as u64) as usize;
        let mut writer = chain.writer();
        if let Some(answer) = self.server.serve(&self.request, room) {
            writer.write_some(&answer);
        }
        Ok(writer.written())
    }
}

impl Handler for Work {
    fn queue(&mut self, index: u16) {
        while let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) {
            let Some(chain) = queue.pop() else {
                queue.signal();
                return;
            };
            let served = self.serve(&chain);
            let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else { return };
            match served {
                Ok(written) => queue.complete(chain, written),
                Err(why) => queue.fail(&why),
            }
            // The guest waits for each: tell it before the next may take long.
            queue.signal();
        }
    }
}

impl VirtioDevice for VirtioFs {
    fn name(&self) -> &'static str {
        "virtio-fs"
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    /// `struct virtio_fs_config`: the tag, and one queue for requests.
    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let mut config = [0; MAX_TAG + 4];
        config[..MAX_TAG].copy_from_slice(&self.tag);
        config[MAX_TAG..].copy_from_slice(&1u32.to_le_bytes());
        virtio_core::read_config(&config, offset, to);
    }

    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        let missing = (0u16..).zip(&a.queues).find(|(_, q)| q.is_none());
        if let Some((index, _)) = missing {
            return Err(ActivateError::MissingQueue(index));
        }
        let host = |error| ActivateError::Host { what: "a thread", error };
        let server = self.server.take().ok_or_else(|| io::Error::other("its worker has failed before"));
        let work = Work { queues: a.queues, server: server.map_err(host)?, request: Vec::new() };
        self.worker = Some(Worker::start("fs", QUEUES.len() as u16, a.inline, work).map_err(host)?);
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
        let Some(work) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        let Work { queues, server, request: _ } = work;
        self.server = Some(server);
        queues
    }

    fn reset(&mut self) {
        if let Some(server) = &mut self.server {
            server.reset();
        }
    }

    /// Whether a guest has mounted it: the inodes it knows are the host's and of
    /// this process.
    fn save(&self) -> Vec<u8> {
        let VirtioFs { tag: _, worker: _, server } = self;
        vec![u8::from(server.as_ref().is_some_and(Server::is_in_use))]
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let what = "0: a share that was mounted cannot be restored; unmount it before saving";
        let mounted = state.first().copied().unwrap_or(u8::MAX);
        StateError::check(state == [0], self.name(), "mounted", mounted, what)?;
        self.reset();
        Ok(())
    }
}
