//! The device: its queues, and the worker that serves them and the host's sockets.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::event::PollFlags;
use saved_state::StateError;
use virtio_core::{ActivateError, Activation, DeviceType, Doorbell, Handler, Queue, VirtioDevice, Worker};

use crate::packet::{HEADER, Header};
use crate::switch::Switch;
use crate::{BUFFER, FIRST_GUEST_CID};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const QUEUES: [u16; 3] = [256, 256, 16];
/// VIRTIO_VSOCK_F_STREAM.
const F_STREAM: u64 = 1 << 0;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// The most bytes in one packet to the guest.
const MAX_PACKET: usize = 64 << 10;

/// What a device is made of.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's context identifier, at least [`FIRST_GUEST_CID`], below 2^32 - 1.
    pub cid: u64,
    /// Where host programs come in.
    pub listener: Option<UnixListener>,
    /// The path of host sockets without `_PORT`; `None`: the guest reaches none.
    pub to_host: Option<PathBuf>,
}

/// The socket device.
pub struct VirtioVsock {
    // Static configuration.
    cid: u64,
    // Runtime glue.
    worker: Option<Worker<Work>>,
    /// With the worker while that runs.
    switch: Option<Switch>,
    // Volatile state.
    /// The guest has connections that this device does not: tell it.
    lost: bool,
}

impl VirtioVsock {
    /// A device.
    ///
    /// # Errors
    /// When the identifier is none of a guest, or the host refuses an event loop.
    pub fn new(config: VsockConfig) -> io::Result<Self> {
        let VsockConfig { cid, listener, to_host } = config;
        if !(FIRST_GUEST_CID..u64::from(u32::MAX)).contains(&cid) {
            let text = format!("vsock context identifier {cid}; a guest has one from {FIRST_GUEST_CID} on");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let switch = Switch::new(cid, listener, to_host)?;
        Ok(VirtioVsock { cid, worker: None, switch: Some(switch), lost: false })
    }
}

struct Work {
    queues: Vec<Option<Queue>>,
    switch: Switch,
    lost: bool,
    room: Vec<u8>,
}

impl Work {
    /// Give the guest the packets there are, as far as it has buffers.
    fn deliver(&mut self) {
        let Some(Some(queue)) = self.queues.get_mut(RECEIVE) else { return };
        while self.switch.has_packet() {
            let Some(chain) = queue.pop() else { break };
            let space = chain.writable_len();
            if space <= HEADER as u64 {
                queue.fail(&format_args!("a receive buffer of {space} bytes has no room for a packet"));
                break;
            }
            let most = usize::try_from(space - HEADER as u64).unwrap_or(MAX_PACKET).min(MAX_PACKET);
            let Some((header, len)) = self.switch.next_packet(&mut self.room[..most]) else {
                queue.put_back(chain);
                break;
            };
            let mut writer = chain.writer();
            writer.write_some(&header.encode());
            writer.write_some(&self.room[..len]);
            let written = writer.written();
            queue.complete(chain, written);
        }
        queue.signal();
    }

    /// Take the guest's packets.
    fn collect(&mut self) {
        loop {
            let Some(Some(queue)) = self.queues.get_mut(TRANSMIT) else { return };
            while !self.switch.is_congested() {
                let Some(chain) = queue.pop() else { break };
                let mut reader = chain.reader();
                let mut bytes = [0; HEADER];
                if reader.read_all(&mut bytes).is_err() {
                    queue.fail(&format_args!("a packet of {} bytes has no header", chain.readable_len()));
                    break;
                }
                let header = Header::decode(&bytes);
                let len = header.len as usize;
                let whole = len <= BUFFER as usize
                    && reader.read_all(&mut self.room[..len.min(BUFFER as usize)]).is_ok();
                queue.complete(chain, 0);
                self.switch.guest_packet(&header, whole.then(|| &self.room[..len]));
            }
            queue.signal();
            let was_congested = self.switch.is_congested();
            self.deliver();
            // What stands in the queue rings no bell a second time.
            if !was_congested || self.switch.is_congested() {
                return;
            }
        }
    }

    /// Tell the guest that its connections are gone.
    fn tell_of_loss(&mut self) {
        let Some(Some(queue)) = self.queues.get_mut(EVENT).filter(|_| self.lost) else { return };
        if let Some(chain) = queue.pop() {
            let mut writer = chain.writer();
            // A buffer without room is the guest's loss.
            let _ = writer.write_value(TRANSPORT_RESET);
            let written = writer.written();
            queue.complete(chain, written);
            queue.signal();
            self.lost = false;
        }
    }
}

impl Handler for Work {
    fn queue(&mut self, queue: u16) {
        match usize::from(queue) {
            EVENT => self.tell_of_loss(),
            // Room for answers may be what the guest's packets wait for.
            _ => self.collect(),
        }
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        vec![(self.switch.source(), PollFlags::IN)]
    }

    fn ready(&mut self, _source: usize, _events: PollFlags) {
        self.switch.host_events();
        self.collect();
    }
}

impl VirtioDevice for VirtioVsock {
    fn name(&self) -> &'static str {
        "virtio-vsock"
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::VSOCK
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let config = self.cid.to_le_bytes();
        virtio_core::read_config(&config, offset, to);
    }

    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        a.needs_all_queues()?;
        let gone = || io::Error::other("its worker has failed before");
        let host = |error| ActivateError::Host { what: "a thread", error };
        let mut switch = self.switch.take().ok_or_else(gone).map_err(host)?;
        switch.inline = a.inline;
        let room = vec![0; BUFFER as usize];
        let work = Work { queues: a.queues, switch, lost: self.lost, room };
        let worker = Worker::start("vsock", QUEUES.len() as u16, a.inline, work).map_err(host)?;
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
        let Some(work) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        let Work { queues, switch, lost, room: _ } = work;
        self.switch = Some(switch);
        self.lost = lost;
        queues
    }

    fn reset(&mut self) {
        self.lost = false;
        if let Some(switch) = &mut self.switch {
            switch.reset();
        }
    }

    /// Whether the guest has connections: their other ends are not saved.
    fn save(&self) -> Vec<u8> {
        let VirtioVsock { cid: _, worker: _, switch, lost } = self;
        vec![u8::from(*lost || switch.as_ref().is_some_and(|s| s.len() > 0))]
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let &[lost @ 0..=1] = state else {
            return StateError::check(false, self.name(), "state", state.len() as u64, "one byte, 0 or 1");
        };
        self.reset();
        self.lost = lost == 1;
        Ok(())
    }
}
