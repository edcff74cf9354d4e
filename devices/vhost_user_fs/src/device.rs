//! The guest's side: its queues, and the worker between them and the daemon.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::io::Errno;
use saved_state::StateError;
use virtio_core::{
    ActivateError, Activation, Chain, DeviceType, Doorbell, Handler, Interrupt, Queue, VirtioDevice, Worker,
};
use virtio_fs::{IN_HEADER, Opcode, Tag, check_not_mounted, save_mounted};

use crate::backend::{Arrival, Backend, Owner, Pending, QUEUES};
use crate::request::{Request, failure, is_success};

/// What a device is made of.
#[derive(Debug)]
pub struct FsConfig<'a> {
    /// The name by which the guest mounts it: 1 to [`virtio_fs::MAX_TAG`] bytes.
    pub tag: &'a str,
    /// Whether the guest may change nothing: what could is not passed on.
    pub read_only: bool,
}

/// The file system device.
pub struct VhostUserFs {
    // Static configuration.
    tag: Tag,
    read_only: bool,
    // Runtime glue.
    worker: Option<Worker<Work>>,
    // Volatile state; with the worker while that runs.
    state: Option<State>,
}

/// What outlives a worker.
struct State {
    backend: Backend,
    /// Whether a guest has the daemon's inodes in mind.
    mounted: bool,
}

impl VhostUserFs {
    /// A device that a daemon serves.
    ///
    /// # Errors
    /// When the tag is empty or too long.
    pub fn new(config: FsConfig<'_>, backend: Backend) -> io::Result<Self> {
        let FsConfig { tag, read_only } = config;
        let state = Some(State { backend, mounted: false });
        Ok(VhostUserFs { tag: Tag::new(tag)?, read_only, worker: None, state })
    }
}

struct Work {
    queues: Vec<Option<Queue>>,
    state: State,
    interrupt: Interrupt,
    read_only: bool,
    inline: bool,
    /// The request at hand.
    bytes: Vec<u8>,
    /// The device's own request is with the daemon: the guest's wait.
    settling: bool,
}

/// Give a request back with an answer.
fn complete(queue: &mut Queue, chain: Chain, answer: &[u8]) {
    let mut writer = chain.writer();
    writer.write_some(answer);
    let written = writer.written();
    queue.complete(chain, written);
    // The guest waits for each: tell it before the next may take long.
    queue.signal();
}

impl Work {
    /// Pass on what the guest has for the daemon, as far as there is room.
    fn pump(&mut self, index: u16) {
        loop {
            let ring = self.state.backend.rings.get(usize::from(index));
            let waits = self.settling || !ring.is_some_and(|r| r.has_room());
            if waits && self.state.backend.lost().is_none() {
                return;
            }
            let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else { return };
            let Some(chain) = queue.pop() else { return };
            if let Err(why) = self.pass(index, chain) {
                if let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) {
                    queue.fail(&why);
                }
                return;
            }
        }
    }

    /// Pass a request on, or answer it. An error is the driver's.
    fn pass(&mut self, index: u16, chain: Chain) -> Result<(), String> {
        let State { backend, mounted } = &mut self.state;
        let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else { return Ok(()) };
        let length = chain.readable_len();
        let capacity = backend.rings.get(usize::from(index)).map_or(0, |ring| ring.capacity());
        if length < IN_HEADER as u64 || length > capacity {
            return Err(format!("a request of {length} bytes"));
        }
        self.bytes.resize(length as usize, 0);
        // A copy, which the guest does not change any more.
        chain.reader().read_some(&mut self.bytes);
        let Some(request) = Request::parse(&self.bytes) else {
            return Err(format!("a request of {length} bytes that says another length"));
        };
        let error = match () {
            () if backend.lost().is_some() => Some(Errno::IO),
            () if self.read_only => request.refusal(&self.bytes),
            () => None,
        };
        if let Some(error) = error {
            complete(queue, chain, &failure(request.unique, error));
            return Ok(());
        }
        if request.opcode == Opcode::DESTROY {
            *mounted = false;
        }
        let room = chain.writable_len().min(capacity - length) as u32;
        let owner = Owner::Guest(Pending { chain, request });
        if let Err(Owner::Guest(Pending { chain, request })) =
            backend.send(index, request.opcode, &self.bytes, room, owner)
        {
            // Never: there was room.
            complete(queue, chain, &failure(request.unique, Errno::IO));
        }
        Ok(())
    }

    /// Take the daemon's answers of one queue.
    fn collect(&mut self, index: u16) {
        self.state.backend.hush(index);
        loop {
            match self.state.backend.receive(index) {
                Ok(None) => return,
                Ok(Some((Owner::Ours, _))) => self.settling = false,
                Ok(Some((Owner::Guest(Pending { chain, request }), answer))) => {
                    self.state.mounted |= request.opcode == Opcode::INIT && is_success(&answer);
                    if let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) {
                        complete(queue, chain, &answer);
                    }
                }
                Err(nonsense) => return self.lose(nonsense.to_string()),
            }
        }
    }

    /// Answers of all queues, and what may be passed on after them.
    fn collect_all(&mut self) {
        (0..QUEUES as u16).for_each(|index| self.collect(index));
        (0..QUEUES as u16).for_each(|index| self.pump(index));
    }

    /// The daemon serves no longer: all it had, and all to come, is answered with an error.
    fn lose(&mut self, why: String) {
        self.interrupt.report(|| {
            format!("virtiofsd: {why}; the share answers with errors until the machine is started anew")
        });
        for (index, owner) in self.state.backend.give_up(why) {
            let Owner::Guest(Pending { chain, request }) = owner else { continue };
            if let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) {
                complete(queue, chain, &failure(request.unique, Errno::IO));
            }
        }
        self.settling = false;
    }

    fn ended(&mut self) {
        // What it has answered before its end counts.
        self.collect_all();
        if self.state.backend.lost().is_none() {
            self.lose("it has ended".to_string());
        }
        (0..QUEUES as u16).for_each(|index| self.pump(index));
    }

    /// Wait for all that the daemon has.
    fn drain(&mut self) {
        let patience = self.state.backend.patience.requests;
        let until = Instant::now() + patience;
        while self.state.backend.is_busy() {
            match self.state.backend.wait(until) {
                Arrival::Answers => (0..QUEUES as u16).for_each(|index| self.collect(index)),
                Arrival::End => self.ended(),
                Arrival::Late => self.lose(format!("no answer in {patience:?}")),
            }
        }
    }
}

impl Handler for Work {
    fn queue(&mut self, index: u16) {
        self.pump(index);
        while self.inline && self.state.backend.is_busy() {
            self.drain();
            self.pump(index);
        }
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.state.backend.sources()
    }

    fn ready(&mut self, source: usize, _events: PollFlags) {
        if source < QUEUES { self.collect_all() } else { self.ended() }
    }
}

impl VirtioDevice for VhostUserFs {
    fn name(&self) -> &'static str {
        virtio_fs::NAME
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &virtio_fs::QUEUES
    }

    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        self.tag.config_read(offset, to);
    }

    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        a.needs_all_queues()?;
        let host = |error| ActivateError::Host { what: "a thread", error };
        let state = self.state.take().ok_or_else(|| io::Error::other("its worker has failed before"));
        let state = state.map_err(host)?;
        let settling = state.backend.is_busy();
        let work = Work {
            queues: a.queues,
            state,
            interrupt: a.interrupt,
            read_only: self.read_only,
            inline: a.inline,
            bytes: Vec::new(),
            settling,
        };
        self.worker = Some(Worker::start("fs", QUEUES as u16, a.inline, work).map_err(host)?);
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
        let Some(mut work) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        work.drain();
        let Work { queues, state, interrupt: _, read_only: _, inline: _, bytes: _, settling: _ } = work;
        self.state = Some(state);
        queues
    }

    /// The daemon is told to forget; the next guest's requests wait until it has.
    fn reset(&mut self) {
        let Some(State { backend, mounted }) = &mut self.state else { return };
        if std::mem::take(mounted) && backend.lost().is_none() {
            backend.forget();
        }
    }

    fn save(&self) -> Vec<u8> {
        let VhostUserFs { tag: _, read_only: _, worker: _, state } = self;
        save_mounted(state.as_ref().is_some_and(|s| s.mounted))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        check_not_mounted(state)?;
        self.reset();
        Ok(())
    }
}
