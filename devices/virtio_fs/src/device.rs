//! The device: its queues and the worker.

use std::io;
use std::path::Path;

use saved_state::StateError;
use virtio_core::{
    ActivateError, Activation, Chain, DeviceType, Doorbell, Handler, Queue, VirtioDevice, Worker,
};

use crate::abi::{IN_HEADER, MAX_ARGUMENTS, MAX_TRANSFER, OUT_HEADER};
use crate::front::{NAME, QUEUES, Tag, check_not_mounted, save_mounted};
use crate::server::Server;

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
    tag: Tag,
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
        Ok(VirtioFs { tag: Tag::new(tag)?, worker: None, server: Some(Server::new(folder, read_only)?) })
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
        NAME
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

    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        self.tag.config_read(offset, to);
    }

    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        a.needs_all_queues()?;
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

    fn save(&self) -> Vec<u8> {
        let VirtioFs { tag: _, worker: _, server } = self;
        save_mounted(server.as_ref().is_some_and(Server::is_in_use))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        check_not_mounted(state)?;
        self.reset();
        Ok(())
    }
}
