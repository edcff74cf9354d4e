//! The virtio network card (virtio 1.2 section 5.1).
//!
//! Each pair of queues has a [`Port`] and a worker of its own, so that frames of
//! one pair are carried by one thread, without a lock but the filter's. Whatever
//! the port can take over is offered: partial checksums, segmentation both ways.
//! With mergeable buffers a frame that stands for many segments arrives in as
//! many receive buffers as it needs.
//!
//! The control queue is answered as the standard says, without the vCPU waiting;
//! what it sets is shared with the workers.

mod control;
mod filter;
mod pair;
mod spec;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use port::{MacAddress, Port};
use saved_state::StateError;
use virtio_core::{ActivateError, Activation, DeviceType, Doorbell, Queue, VirtioDevice, Worker};

use control::{Control, lock};
use pair::{CONTROL, Pair, RECEIVE, TRANSMIT};
use spec::{feature, status};

/// Descriptors of a receive queue: four of the longest frames in small buffers.
const RECEIVE_SIZE: u16 = 1024;
/// Descriptors of a transmit queue.
const TRANSMIT_SIZE: u16 = 1024;
/// Descriptors of the control queue: one command at a time, with its tables.
const CONTROL_SIZE: u16 = 64;
/// Bytes of the configuration: address, status, pairs, MTU.
const CONFIG_LEN: usize = 12;
/// Most pairs of queues: as many as a worker's doorbells could ever need, and a port each.
pub const MAX_PAIRS: usize = 64;

/// A virtio network card.
pub struct VirtioNet {
    // Static configuration.
    mac: MacAddress,
    features: u64,
    sizes: Vec<u16>,
    max_pairs: u16,
    mtu: u16,
    // Runtime glue.
    /// Those without a worker.
    ports: Vec<Box<dyn Port>>,
    workers: Vec<Worker<Pair>>,
    /// Index of the control queue while active.
    control_index: usize,
    /// Queues of the last activation that no worker has: those of pairs that were
    /// not agreed on. None where a worker has one.
    unused: Vec<Option<Queue>>,
    // Volatile state.
    control: Arc<Control>,
    /// Neighbours are to be told where the guest is now.
    announce: bool,
}

impl VirtioNet {
    /// A card with this address and a pair of queues for each port.
    ///
    /// # Panics
    /// Without a port, or with more than [`MAX_PAIRS`]: an error of the board's author.
    pub fn new(mac: MacAddress, ports: Vec<Box<dyn Port>>) -> Self {
        assert!((1..=MAX_PAIRS).contains(&ports.len()), "{} ports", ports.len());
        let max_pairs = ports.len() as u16;
        let mut sizes = [RECEIVE_SIZE, TRANSMIT_SIZE].repeat(ports.len());
        sizes.push(CONTROL_SIZE);
        VirtioNet {
            mac,
            features: features_of(&ports),
            sizes,
            max_pairs,
            mtu: ports.iter().map(|p| p.capabilities().mtu).min().unwrap_or(u16::MAX),
            ports,
            workers: Vec::new(),
            control_index: 0,
            unused: Vec::new(),
            control: Arc::new(Control::new(mac, max_pairs)),
            announce: false,
        }
    }

    /// Worker and its own number of a queue.
    fn place(&self, queue: u16) -> (usize, u16) {
        if usize::from(queue) == self.control_index {
            return (0, CONTROL);
        }
        (usize::from(queue / 2), if queue % 2 == 0 { RECEIVE } else { TRANSMIT })
    }

    /// The device's configuration (5.1.4).
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&lock(&self.control.filter).mac);
        config[6..8].copy_from_slice(&self.control.status.load(Ordering::Relaxed).to_le_bytes());
        config[8..10].copy_from_slice(&self.max_pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }
}

/// What a card with these ports offers.
fn features_of(ports: &[Box<dyn Port>]) -> u64 {
    use feature as f;
    let mut features = f::MTU | f::MAC | f::MRG_RXBUF | f::STATUS | f::CTRL_VQ | f::CTRL_RX;
    features |= f::CTRL_VLAN | f::CTRL_RX_EXTRA | f::GUEST_ANNOUNCE | f::CTRL_MAC_ADDR;
    if ports.len() > 1 {
        features |= f::MQ;
    }
    let all = |get: fn(&port::Capabilities) -> port::Offloads, pick: fn(&port::Offloads) -> bool| {
        ports.iter().all(|p| pick(&get(&p.capabilities())))
    };
    let accepts = [
        (f::CSUM, (|o| o.checksum) as fn(&port::Offloads) -> bool),
        (f::HOST_TSO4, |o| o.checksum && o.tcp4),
        (f::HOST_TSO6, |o| o.checksum && o.tcp6),
        (f::HOST_ECN, |o| o.checksum && o.ecn),
        (f::HOST_UFO, |o| o.checksum && o.udp_fragments),
        (f::HOST_USO, |o| o.checksum && o.udp_datagrams),
    ];
    let gives = [
        (f::GUEST_CSUM | f::CTRL_GUEST_OFFLOADS, (|o| o.checksum) as fn(&port::Offloads) -> bool),
        (f::GUEST_TSO4, |o| o.checksum && o.tcp4),
        (f::GUEST_TSO6, |o| o.checksum && o.tcp6),
        (f::GUEST_ECN, |o| o.checksum && o.ecn),
        (f::GUEST_UFO, |o| o.checksum && o.udp_fragments),
        (f::GUEST_USO4 | f::GUEST_USO6, |o| o.checksum && o.udp_datagrams),
    ];
    for (bits, pick) in accepts {
        features |= if all(|c| c.accepts, pick) { bits } else { 0 };
    }
    for (bits, pick) in gives {
        features |= if all(|c| c.gives, pick) { bits } else { 0 };
    }
    features
}

impl VirtioDevice for VirtioNet {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let config = self.config();
        virtio_core::read_config(&config, offset, to);
    }

    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        let has = |bit: u64| a.features & bit != 0;
        let fresh = self.control.features.swap(a.features, Ordering::Relaxed) == 0 && !self.announce;
        if fresh {
            self.control.guest_offloads.store(a.features & feature::GUEST_OFFLOADS, Ordering::Relaxed);
        }
        lock(&self.control.filter).by_vlan = has(feature::CTRL_VLAN);
        // Without multi-queue the control queue is the third (5.1.2).
        let pairs = if has(feature::MQ) { self.ports.len() } else { 1 };
        self.control_index = pairs * 2;
        let mut queues: Vec<Option<Queue>> = a.queues;
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        for (number, port) in std::mem::take(&mut self.ports).into_iter().enumerate() {
            let mut pair = Pair::new(number as u16, port, self.control.clone(), has(feature::MRG_RXBUF));
            if number < pairs {
                (pair.receive, pair.transmit) = (take(2 * number), take(2 * number + 1));
            }
            if number == 0 {
                pair.control_queue = take(self.control_index);
            }
            let name = if number == 0 { "net".to_string() } else { format!("net-{number}") };
            let worker = Worker::start(&name, CONTROL + 1, a.inline, pair)
                .map_err(|error| ActivateError::Host { what: "a thread", error })?;
            self.workers.push(worker);
        }
        self.unused = queues;
        *lock(&self.control.doorbells) = self.workers.iter().filter_map(|w| w.doorbell(CONTROL)).collect();
        if std::mem::take(&mut self.announce) && has(feature::GUEST_ANNOUNCE) {
            self.control.status.fetch_or(status::ANNOUNCE, Ordering::Relaxed);
            a.interrupt.config_changed();
        }
        Ok(())
    }

    fn notify(&mut self, queue: u16) {
        let (worker, queue) = self.place(queue);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.notify(queue);
        }
    }

    fn doorbell(&self, queue: u16) -> Option<Doorbell> {
        let (worker, queue) = self.place(queue);
        self.workers.get(worker)?.doorbell(queue)
    }

    fn quiesce(&mut self) -> Vec<Option<Queue>> {
        lock(&self.control.doorbells).clear();
        if self.workers.is_empty() {
            return Vec::new();
        }
        let mut queues = std::mem::take(&mut self.unused);
        let mut put = |index: usize, queue: Option<Queue>| {
            if let (Some(slot), Some(queue)) = (queues.get_mut(index), queue) {
                *slot = Some(queue);
            }
        };
        for (number, worker) in std::mem::take(&mut self.workers).into_iter().enumerate() {
            let Some(pair) = worker.stop() else { continue };
            let (port, [receive, transmit, control]) = pair.give_back();
            self.ports.push(port);
            put(2 * number, receive);
            put(2 * number + 1, transmit);
            put(self.control_index, control);
        }
        queues
    }

    fn reset(&mut self) {
        self.control.reset(self.mac);
        self.announce = false;
        self.ports.iter_mut().for_each(|p| p.reset());
    }

    fn save(&self) -> Vec<u8> {
        self.control.save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.control.restore(self.name(), state)?;
        self.announce = true;
        Ok(())
    }
}
