//! The protocol's side that has the queues (vhost-user, "front-end"), and the memory
//! that is shared with the daemon.
//!
//! Messages are the crate `vhost`'s. All of them are exchanged when the connection is
//! made; after that only rings and event files are used, and the connection tells of
//! the daemon's end.
// UNSAFE: one event file's descriptor changes its owner's type.
#![allow(
    unsafe_code,
    reason = "the vhost crate wants event files of a type that can be made of raw descriptors only"
)]

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use guest_memory::{GuestMemory, MemoryError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_core::Chain;
use virtio_fs::{IN_HEADER, OUT_HEADER, Opcode};
use vmm_sys_util::eventfd::EventFd;

use crate::request::{Request, WRITE_ARGUMENTS, plain};
use crate::ring::{Nonsense, RING_BYTES, RING_SIZE, Ring, SLOTS};

/// High-priority requests, and others.
pub(crate) const QUEUES: usize = 2;
/// The most bytes of a request and its answer, of each queue: names only, or a
/// transfer of 256 pages with headers, names or attributes.
const SLOT_BYTES: [u64; QUEUES] = [64 << 10, (1 << 20) + (128 << 10)];
/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// Where the daemon is told that the shared memory is in this process: any place that
/// is not null.
const SHARED_ADDRESS: u64 = 1 << 32;

/// How long a daemon is waited for. One that hangs is told from one that works by this
/// alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until the two agree and it can serve.
    pub agreement: Duration,
    /// For all requests that it has when the device is to stand still.
    pub requests: Duration,
}

impl Default for Patience {
    /// 10 s and 30 s.
    fn default() -> Self {
        Patience { agreement: Duration::from_secs(10), requests: Duration::from_secs(30) }
    }
}

/// Why there is no daemon to work with.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The host refuses memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host refuses a descriptor.
    #[error("cannot make an event file for virtiofsd: {0}; let the process have more open files")]
    Events(#[source] io::Error),
    /// The daemon does not take part.
    #[error(
        "virtiofsd does not answer as it should ({0}); see what it has said itself (that of Debian 12 has to be started by root), or leave backend=virtiofsd out"
    )]
    Protocol(vhost::Error),
    /// The daemon hangs.
    #[error(
        "virtiofsd has not answered in {0:?}; see whether the folder's file system answers, or leave backend=virtiofsd out"
    )]
    Late(Duration),
    /// The host refuses a thread.
    #[error("cannot start a thread that watches virtiofsd: {0}; let the user have more processes")]
    Thread(#[source] io::Error),
    /// It lacks something.
    #[error("virtiofsd knows only virtio devices of before version 1 (features {0:#x}); install a newer one")]
    Features(u64),
}

/// A request of the guest's that the daemon has.
#[derive(Debug)]
pub(crate) struct Pending {
    pub chain: Chain,
    pub request: Request,
}

impl From<vhost::Error> for BackendError {
    fn from(error: vhost::Error) -> Self {
        BackendError::Protocol(error)
    }
}

/// Whose a request is.
#[derive(Debug)]
pub(crate) enum Owner {
    /// The guest's.
    Guest(Pending),
    /// The device's, which the guest's wait for.
    Ours,
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Answers in a queue's ring, or nothing.
    Answers,
    /// The daemon's end.
    End,
    /// The time has passed.
    Late,
}

/// A daemon, ready to serve.
pub struct Backend {
    // Static configuration.
    pub(crate) patience: Patience,
    // Runtime glue.
    stream: UnixStream,
    /// Keeps its end of the connection.
    _frontend: Frontend,
    /// Not waited for: it ends with the connection.
    _daemon: Option<Child>,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    /// Why it serves no longer.
    lost: Option<String>,
    // Volatile state: with the device's requests.
    pub(crate) rings: Vec<Ring<Owner>>,
}

impl Backend {
    /// Agree with the daemon at the other end of a connection.
    ///
    /// # Errors
    /// When it does not answer, or not as it should, or the host refuses memory.
    pub fn new(
        stream: UnixStream,
        mut daemon: Option<Child>,
        patience: Patience,
    ) -> Result<Backend, BackendError> {
        let mut frontend =
            Frontend::from_stream(stream.try_clone().map_err(BackendError::Events)?, QUEUES as u64);
        let buffers: u64 = SLOT_BYTES.iter().map(|bytes| bytes * u64::from(SLOTS)).sum();
        let memory = GuestMemory::flat(RING_BYTES * QUEUES as u64 + buffers)?;
        let agreed = within(patience.agreement, &stream, || {
            negotiate(&mut frontend)?;
            share(&frontend, &memory)?;
            queues(&mut frontend, &memory)
        });
        if let (Err(_), Some(daemon)) = (&agreed, &mut daemon) {
            // One that hangs does not see the connection's end.
            let _ = daemon.kill();
        }
        let Parts { rings, kicks, calls } = agreed?;
        Ok(Backend {
            patience,
            stream,
            _frontend: frontend,
            _daemon: daemon,
            kicks,
            calls,
            lost: None,
            rings,
        })
    }

    /// Why it serves no longer; `None`: it does.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// The requests it had, each with its queue. It gets no more.
    pub(crate) fn give_up(&mut self, why: String) -> Vec<(u16, Owner)> {
        self.lost.get_or_insert(why);
        // It may be gone already; if not, this ends it.
        let _ = self.stream.shutdown(Shutdown::Both);
        let rings = (0u16..).zip(&mut self.rings);
        rings.flat_map(|(queue, ring)| ring.abandon().into_iter().map(move |owner| (queue, owner))).collect()
    }

    /// Whether it has requests.
    pub(crate) fn is_busy(&self) -> bool {
        self.rings.iter().any(Ring::is_busy)
    }

    /// The files that tell of answers, a queue each, and the one that tells of its end.
    pub(crate) fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        if self.lost.is_some() {
            return Vec::new();
        }
        let calls = self.calls.iter().map(|call| (call.as_fd(), PollFlags::IN));
        // An end is always told.
        calls.chain([(self.stream.as_fd(), PollFlags::empty())]).collect()
    }

    /// Wait until something comes.
    pub(crate) fn wait(&self, until: Instant) -> Arrival {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let sources = self.sources();
        let mut files: Vec<_> =
            sources.iter().map(|(file, what)| PollFd::from_borrowed_fd(*file, *what)).collect();
        match poll(&mut files, Some(&timeout)) {
            Ok(0) => Arrival::Late,
            Ok(_) if files.last().is_some_and(|f| !f.revents().is_empty()) => Arrival::End,
            // A signal looks like answers, of which there are none.
            Ok(_) | Err(_) => Arrival::Answers,
        }
    }

    /// Hand a request over; gives it back when there is no room.
    pub(crate) fn send(
        &mut self,
        queue: u16,
        opcode: Opcode,
        request: &[u8],
        room: u32,
        owner: Owner,
    ) -> Result<(), Owner> {
        let Some(ring) = self.rings.get_mut(usize::from(queue)) else { return Err(owner) };
        let parts = [IN_HEADER, if opcode == Opcode::WRITE { WRITE_ARGUMENTS } else { 0 }];
        ring.send(request, &parts, room, OUT_HEADER as u32, owner)?;
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // The counter cannot overflow: 16 requests are there at most.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    /// The next answer in a queue's ring.
    pub(crate) fn receive(&mut self, queue: u16) -> Result<Option<(Owner, Vec<u8>)>, Nonsense> {
        self.rings.get_mut(usize::from(queue)).map_or(Ok(None), Ring::receive)
    }

    /// Before answers are looked for: what comes from now on is told anew.
    pub(crate) fn hush(&self, queue: u16) {
        if let Some(call) = self.calls.get(usize::from(queue)) {
            // Nothing to read is as good.
            let _ = rustix::io::read(call, &mut [0; 8]);
        }
    }

    /// Make it forget what its guest knew: to be called while it has no requests.
    pub(crate) fn forget(&mut self) {
        let request = plain(Opcode::DESTROY);
        // There is room: it has no others.
        let _ = self.send(1, Opcode::DESTROY, &request, OUT_HEADER as u32, Owner::Ours);
    }
}

/// Do this, with the connection shut when the time has passed. (A limit on reads would
/// not do: the crate `vhost` tries them again.)
fn within<T>(
    patience: Duration,
    stream: &UnixStream,
    agree: impl FnOnce() -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    let (done, end) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let wait = move || {
            let late = end.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
            // An error: the daemon has ended the connection.
            late && stream.shutdown(Shutdown::Both).is_ok()
        };
        let watch = std::thread::Builder::new().name("vio-fs-patience".to_string());
        let watch = watch.spawn_scoped(scope, wait).map_err(BackendError::Thread)?;
        let result = agree();
        drop(done);
        match watch.join() {
            Ok(true) => Err(BackendError::Late(patience)),
            Ok(false) | Err(_) => result,
        }
    })
}

/// What is there of each queue.
#[derive(Default)]
struct Parts {
    rings: Vec<Ring<Owner>>,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
}

/// All queues, with their buffers behind the rings.
fn queues(frontend: &mut Frontend, memory: &GuestMemory) -> Result<Parts, BackendError> {
    let mut parts = Parts::default();
    let mut buffers = RING_BYTES * QUEUES as u64;
    for (index, bytes) in SLOT_BYTES.into_iter().enumerate() {
        let ring = Ring::new(memory.clone(), RING_BYTES * index as u64, buffers, bytes);
        buffers += bytes * u64::from(SLOTS);
        let (kick, call) = (event_file()?, event_file()?);
        set_up(frontend, index, ring.parts(), [&kick, &call])?;
        parts.rings.push(ring);
        parts.kicks.push(kick);
        parts.calls.push(call);
    }
    Ok(parts)
}

/// Features of both, and who has the queues.
fn negotiate(frontend: &mut Frontend) -> Result<(), BackendError> {
    let offered = frontend.get_features()?;
    if offered & VERSION_1 == 0 {
        return Err(BackendError::Features(offered));
    }
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    if offered & protocol != 0 {
        let known = frontend.get_protocol_features()?;
        let wanted = VhostUserProtocolFeatures::REPLY_ACK & known;
        frontend.set_protocol_features(wanted)?;
        if !wanted.is_empty() {
            // Each message from here on is answered: an error is known as such.
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }
    frontend.set_owner()?;
    Ok(frontend.set_features(offered & (VERSION_1 | protocol))?)
}

/// The memory: all that the daemon sees of this process.
fn share(frontend: &Frontend, memory: &GuestMemory) -> Result<(), BackendError> {
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: memory.backing_size(),
        userspace_addr: SHARED_ADDRESS,
        mmap_offset: 0,
        mmap_handle: memory.host_mapping().1.as_raw_fd(),
    };
    frontend.set_mem_table(&[region])?;
    Ok(())
}

/// One queue, from its beginning.
fn set_up(
    frontend: &mut Frontend,
    index: usize,
    [descriptors, available, used]: [u64; 3],
    [kick, call]: [&OwnedFd; 2],
) -> Result<(), BackendError> {
    frontend.set_vring_num(index, RING_SIZE)?;
    frontend.set_vring_base(index, 0)?;
    frontend.set_vring_addr(
        index,
        &VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 0,
            desc_table_addr: SHARED_ADDRESS + descriptors,
            used_ring_addr: SHARED_ADDRESS + used,
            avail_ring_addr: SHARED_ADDRESS + available,
            log_addr: None,
        },
    )?;
    frontend.set_vring_call(index, &lend(call)?)?;
    frontend.set_vring_kick(index, &lend(kick)?)?;
    match frontend.set_vring_enable(index, true) {
        // Without protocol features queues begin by their event files alone.
        Err(vhost::Error::VhostUserProtocol(vhost::vhost_user::Error::InactiveFeature(_))) => Ok(()),
        result => Ok(result?),
    }
}

fn event_file() -> Result<OwnedFd, BackendError> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    eventfd(0, flags).map_err(|e| BackendError::Events(e.into()))
}

/// The same event file, as the crate `vhost` has them.
fn lend(file: &OwnedFd) -> Result<EventFd, BackendError> {
    let copy = file.try_clone().map_err(BackendError::Events)?;
    // SAFETY: a descriptor of an event file that nobody else owns from here on.
    Ok(unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) })
}
