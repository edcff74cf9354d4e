//! A host's tap or macvtap interface as a port, a queue for each pair.
//!
//! Frames cross with `struct virtio_net_hdr`, so that segmentation and checksums
//! stay undone from the guest's stack to the host's card. The interface is the
//! host's administrator's: bridges, addresses and filters are set up with `ip`.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use port::{Capabilities, FrameSink, HEADER_LEN, MAX_FRAME, Offload, Offloads, Port};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Most queues of an interface: what a guest can have vCPUs for.
pub const MAX_QUEUES: usize = 16;
/// `TUN_F_*`: what the reader of frames takes.
const CHECKSUM: u32 = 1;
const TSO4: u32 = 2;
const TSO6: u32 = 4;
const TSO_ECN: u32 = 8;
const USO: u32 = 0x20 | 0x40;
/// Frames taken at a time before the guest's are sent.
const TURN: usize = 256;

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// More queues than there may be.
    #[error("{0} queues: a network has 1 to {MAX_QUEUES}")]
    Queues(usize),
    /// The device cannot be opened.
    #[error("cannot open {}: {cause}; it needs root, or use --network nat, which needs nothing", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The interface cannot be used.
    #[error("cannot use the interface {name}: {cause}; make it with: ip tuntap add {name} mode tap vnet_hdr{multi} user $USER",
        multi = if *.multi_queue { " multi_queue" } else { "" })]
    Attach {
        /// The interface.
        name: String,
        /// With several queues.
        multi_queue: bool,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The interface cannot join a bridge.
    #[error(
        "cannot join the bridge {bridge}: {cause}; it needs root and a bridge, made with: ip link add {bridge} type bridge"
    )]
    Bridge {
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// One queue of an interface.
pub struct Tap {
    file: File,
    /// Tells once of each change, so that frames for which there is no room do not keep the thread busy.
    epoll: OwnedFd,
    multi_queue: bool,
    attached: bool,
    mtu: u16,
    offloads: Offloads,
    buffer: Vec<u8>,
}

/// What a device with this name is opened by.
fn device(name: &str) -> PathBuf {
    let class = Path::new("/sys/class/net").join(name);
    if class.join("macvtap").exists()
        && let Ok(index) = std::fs::read_to_string(class.join("ifindex"))
    {
        return PathBuf::from(format!("/dev/tap{}", index.trim()));
    }
    PathBuf::from("/dev/net/tun")
}

fn mtu(name: &str) -> u16 {
    let text = std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("mtu"));
    text.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(1500)
}

impl Tap {
    /// Open so many queues of the interface `name`; it is made if it is not there
    /// and the process may.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Tap>, TapError> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TapError::Queues(queues));
        }
        (0..queues).map(|_| Ok(Tap::queue(name, queues > 1)?.0)).collect()
    }

    /// Make an interface with so many queues that is a port of the bridge. It goes
    /// with the last of them.
    ///
    /// # Errors
    /// When the host refuses: it asks for CAP_NET_ADMIN.
    pub fn open_bridged(bridge: &str, queues: usize) -> Result<Vec<Tap>, TapError> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TapError::Queues(queues));
        }
        let (first, name) = Tap::queue("strata%d", queues > 1)?;
        let refused = |cause| TapError::Bridge { bridge: bridge.to_string(), cause };
        host_sys::join_bridge(bridge, &name).map_err(refused)?;
        let others = (1..queues).map(|_| Ok(Tap::queue(&name, true)?.0));
        std::iter::once(Ok(first)).chain(others).collect()
    }

    /// One more queue, and the interface's name.
    fn queue(name: &str, multi_queue: bool) -> Result<(Tap, String), TapError> {
        let path = device(name);
        let open = OpenOptions::new().read(true).write(true).custom_flags(nonblocking()).open(&path);
        let file = open.map_err(|cause| TapError::Open { path, cause })?;
        let failed = |cause| TapError::Attach { name: name.to_string(), multi_queue, cause };
        let name = host_sys::attach_tap(&file, name, HEADER_LEN as i32, multi_queue).map_err(failed)?;
        let with_uso = CHECKSUM | TSO4 | TSO6 | TSO_ECN | USO;
        // Kernels before 6.2 have no segmentation of UDP.
        let uso = host_sys::set_tap_offloads(&file, with_uso).is_ok();
        host_sys::set_tap_offloads(&file, 0).map_err(failed)?;
        let all = Offloads {
            checksum: true,
            tcp4: true,
            tcp6: true,
            ecn: true,
            udp_fragments: false,
            udp_datagrams: uso,
        };
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &file, EventData::new_u64(0), flags).map_err(|e| failed(e.into()))?;
        let buffer = vec![0; HEADER_LEN + MAX_FRAME];
        let mtu = mtu(&name);
        Ok((Tap { file, epoll, multi_queue, attached: true, mtu, offloads: all, buffer }, name))
    }

    /// Make the port readable, as if a frame had come.
    fn rearm(&self) {
        let flags = EventFlags::IN | EventFlags::ET;
        // It was added with the same descriptor: nothing is left to refuse.
        let _ = epoll::modify(&self.epoll, &self.file, EventData::new_u64(0), flags);
    }
}

fn nonblocking() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

impl Port for Tap {
    fn capabilities(&self) -> Capabilities {
        Capabilities { accepts: self.offloads, gives: self.offloads, mtu: self.mtu }
    }

    fn set_receiver(&mut self, takes: Offloads) {
        let takes = takes.and(self.offloads);
        let bit = |on: bool, bits: u32| if on { bits } else { 0 };
        let others = bit(takes.tcp4, TSO4)
            | bit(takes.tcp6, TSO6)
            | bit(takes.ecn && (takes.tcp4 || takes.tcp6), TSO_ECN)
            | bit(takes.udp_datagrams, USO);
        // Each kind was taken when the interface was opened.
        let _ = host_sys::set_tap_offloads(&self.file, bit(takes.checksum, CHECKSUM | others));
    }

    fn send(&mut self, frame: &[u8], offload: &Offload) {
        let header = offload.to_header();
        // What a full or stopped interface does not take is lost, as on a wire.
        let _ = (&self.file).write_vectored(&[IoSlice::new(&header), IoSlice::new(frame)]);
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) {
        let mut events: Vec<Event> = Vec::with_capacity(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
        for _ in 0..TURN {
            if !sink.room() {
                return;
            }
            let n = match rustix::io::read(&self.file, &mut self.buffer[..]) {
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => continue,
                // Empty, or an interface that is down or gone.
                Err(_) => return,
            };
            let whole = self.buffer.get(..n).unwrap_or_default();
            if let Some((header, frame)) = whole.split_first_chunk::<HEADER_LEN>()
                && let Some(offload) = Offload::from_header(header)
            {
                sink.take(&[frame], &offload);
            }
        }
        self.rearm();
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn set_active(&mut self, active: bool) {
        if self.multi_queue && active != self.attached && host_sys::set_tap_queue(&self.file, active).is_ok()
        {
            self.attached = active;
        }
    }
}
