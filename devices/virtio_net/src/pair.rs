//! One pair of queues, its port, and the thread's work.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use port::{FrameSink, HEADER_LEN, MAX_FRAME, Offload, Offloads, Port};
use rustix::event::PollFlags;
use virtio_core::{Chain, Handler, Queue};

use crate::control::{Control, lock};
use crate::spec::feature;

/// Buffers filled before the driver is told: it may empty them while more come.
const SIGNALLED: usize = 256;
/// Frames taken from the guest before what arrives for it is looked at.
const BATCH: usize = 64;

/// Queues as the worker numbers them.
pub(crate) const RECEIVE: u16 = 0;
pub(crate) const TRANSMIT: u16 = 1;
pub(crate) const CONTROL: u16 = 2;

/// One pair of queues and its port; the first has the control queue, too.
pub(crate) struct Pair {
    // Static configuration.
    pub(crate) number: u16,
    pub(crate) mergeable: bool,
    // Runtime glue.
    pub(crate) port: Box<dyn Port>,
    pub(crate) control: Arc<Control>,
    pub(crate) receive: Option<Queue>,
    pub(crate) transmit: Option<Queue>,
    pub(crate) control_queue: Option<Queue>,
    /// Receive buffers taken but not used yet, in order.
    taken: VecDeque<Chain>,
    /// A frame of the guest's on its way to the port.
    frame: Vec<u8>,
    /// Buffers of one frame, on their way back.
    used: Vec<(Chain, u32)>,
    // Volatile state.
    /// What the port was told; a driver before this one may have told it something else.
    takes: Option<Offloads>,
    active: Option<bool>,
}

/// What `GUEST_*` bits let a port leave to the guest.
fn offloads(bits: u64) -> Offloads {
    let has = |bit: u64| bits & bit != 0;
    Offloads {
        checksum: has(feature::GUEST_CSUM),
        tcp4: has(feature::GUEST_TSO4),
        tcp6: has(feature::GUEST_TSO6),
        ecn: has(feature::GUEST_ECN),
        udp_fragments: has(feature::GUEST_UFO),
        udp_datagrams: has(feature::GUEST_USO4) && has(feature::GUEST_USO6),
    }
}

impl Pair {
    pub(crate) fn new(number: u16, port: Box<dyn Port>, control: Arc<Control>, mergeable: bool) -> Self {
        Pair {
            number,
            mergeable,
            port,
            control,
            receive: None,
            transmit: None,
            control_queue: None,
            taken: VecDeque::new(),
            frame: Vec::new(),
            used: Vec::new(),
            takes: None,
            active: None,
        }
    }

    /// Follow what the control queue says.
    fn follow(&mut self) {
        let takes = offloads(self.control.guest_offloads.load(Ordering::Relaxed));
        if self.takes.replace(takes) != Some(takes) {
            self.port.set_receiver(takes);
        }
        let active = self.number < self.control.pairs.load(Ordering::Relaxed);
        if self.active.replace(active) != Some(active) {
            self.port.set_active(active);
        }
    }

    /// Send what the guest has made available.
    fn transmit(&mut self) {
        loop {
            let Some(queue) = &mut self.transmit else { return };
            let mut count = 0;
            while count < BATCH
                && let Some(chain) = queue.pop()
            {
                if let Some(offload) = read_frame(&chain, &mut self.frame) {
                    self.port.send(&self.frame, &offload);
                }
                queue.complete(chain, 0);
                count += 1;
            }
            queue.signal();
            // Answers wait, as acknowledgements do for the sender's next window.
            self.receive();
            if count < BATCH {
                return;
            }
            // Who asks something waits for the answer, however much is sent meanwhile.
            self.commands();
        }
    }

    /// Answer what the driver asks on the control queue, which the first pair has.
    fn commands(&mut self) {
        let Some(queue) = &mut self.control_queue else { return };
        while let Some(chain) = queue.pop() {
            let written = self.control.command(&chain);
            queue.complete(chain, written);
        }
        queue.signal();
        self.follow();
    }

    /// Hand over what has arrived.
    fn receive(&mut self) {
        let (Some(queue), Some(takes), Some(true)) = (&mut self.receive, self.takes, self.active) else {
            return;
        };
        let longest = if takes.tcp4 || takes.tcp6 || takes.udp_fragments || takes.udp_datagrams {
            MAX_FRAME
        } else {
            usize::from(self.port.capabilities().mtu) + MAX_FRAME - usize::from(u16::MAX)
        };
        let mut sink = Sink {
            queue,
            control: &self.control,
            taken: &mut self.taken,
            used: &mut self.used,
            mergeable: self.mergeable,
            longest: longest + HEADER_LEN,
            delivered: 0,
        };
        self.port.receive(&mut sink);
        if sink.delivered > 0 {
            queue.signal();
        }
    }

    /// Give the queues back: receive, transmit, control. Chains not used are with the driver again.
    pub(crate) fn give_back(mut self) -> (Box<dyn Port>, [Option<Queue>; 3]) {
        if let Some(queue) = &mut self.receive {
            while let Some(chain) = self.taken.pop_back() {
                queue.put_back(chain);
            }
        }
        (self.port, [self.receive, self.transmit, self.control_queue])
    }
}

/// Read a frame of the guest's; `None` for what cannot be one.
fn read_frame(chain: &Chain, frame: &mut Vec<u8>) -> Option<Offload> {
    let mut reader = chain.reader();
    let mut header = [0; HEADER_LEN];
    reader.read_all(&mut header).ok()?;
    let length = usize::try_from(reader.remaining()).ok().filter(|l| *l <= MAX_FRAME)?;
    // Grows to the longest frame once; what was there is overwritten.
    frame.resize(length, 0);
    reader.read_all(frame).ok()?;
    Offload::from_header(&header)
}

impl Handler for Pair {
    fn queue(&mut self, queue: u16) {
        self.follow();
        match queue {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            _ => self.commands(),
        }
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        // What will not be taken does not wake the thread: it would stay readable. Doorbells do.
        let receives = self.receive.is_some() && self.active == Some(true);
        receives.then(|| (self.port.ready_fd(), PollFlags::IN)).into_iter().collect()
    }

    fn ready(&mut self, _source: usize, _events: PollFlags) {
        self.receive();
    }
}

/// Puts frames into the guest's receive buffers.
struct Sink<'a> {
    queue: &'a mut Queue,
    control: &'a Control,
    taken: &'a mut VecDeque<Chain>,
    used: &'a mut Vec<(Chain, u32)>,
    mergeable: bool,
    /// Bytes that the longest frame takes, with its header.
    longest: usize,
    /// Buffers since the driver was last told of any.
    delivered: usize,
}

impl Sink<'_> {
    /// Buffers for so many bytes: how many of those taken.
    fn buffers_for(&self, bytes: usize) -> Option<usize> {
        let mut room = 0;
        let usable = if self.mergeable { usize::MAX } else { 1 };
        for (i, chain) in self.taken.iter().take(usable).enumerate() {
            room += chain.writable_len();
            if room >= bytes as u64 {
                return Some(i + 1);
            }
        }
        None
    }
}

impl FrameSink for Sink<'_> {
    fn room(&mut self) -> bool {
        if !self.mergeable {
            if self.taken.is_empty() {
                self.taken.extend(self.queue.pop());
            }
            return !self.taken.is_empty();
        }
        let mut room: u64 = self.taken.iter().map(Chain::writable_len).sum();
        while room < self.longest as u64 {
            let Some(chain) = self.queue.pop() else { return false };
            room += chain.writable_len();
            self.taken.push_back(chain);
        }
        true
    }

    fn take(&mut self, parts: &[&[u8]], offload: &Offload) {
        let wanted = parts.first().is_some_and(|first| lock(&self.control.filter).wants(first));
        let length = HEADER_LEN + parts.iter().map(|p| p.len()).sum::<usize>();
        if !wanted {
            return;
        }
        // One that is longer than the buffers of a driver that does not merge is lost.
        let Some(buffers) = self.buffers_for(length) else { return };
        let mut header = offload.to_header();
        // At most as many as a queue has.
        header[10..12].copy_from_slice(&(buffers as u16).to_le_bytes());
        let mut source = std::iter::once(&header[..]).chain(parts.iter().copied());
        let mut piece: &[u8] = &[];
        for chain in self.taken.drain(..buffers) {
            let mut writer = chain.writer();
            while writer.remaining() > 0 {
                if piece.is_empty() {
                    match source.next() {
                        Some(next) => piece = next,
                        None => break,
                    }
                }
                let n = writer.write_some(piece);
                piece = piece.get(n..).unwrap_or_default();
            }
            let written = writer.written();
            self.used.push((chain, written));
        }
        self.delivered += buffers;
        self.queue.complete_all(self.used.drain(..));
        if self.delivered >= SIGNALLED {
            self.delivered = 0;
            self.queue.signal();
        }
    }
}
