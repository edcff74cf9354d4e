//! Any driver against each virtio device: registers, rings and doorbells of the
//! fuzzer's making never panic, and a reset brings the device back. A new device
//! adds an arm to [`device`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arbitrary::{Arbitrary, Result, Unstructured};
use device_model::{IrqLine, MsiMessage, MsiSink};
use disk::{Disk, RawDisk, RawOptions};
use guest_memory::{GuestMemory, RamOffset};
use pci::{BarAccess, PciFunction};
use port::{Capabilities, FrameSink, MAX_FRAME, Offload, Offloads};
use saved_state::Saved;
use virtio_balloon::Balloon;
use virtio_block::{Block, BlockConfig};
use virtio_console::{Console, Port, PortOutput};
use virtio_core::{VirtioDevice, VirtioPci, VirtioPciConfig, features};
use virtio_fs::{FsConfig, VirtioFs};
use virtio_net::VirtioNet;
use virtio_pmem::{Pmem, PmemConfig};
use virtio_rng::{Rng, Source};
use virtio_vsock::{VirtioVsock, VsockConfig};

const MEMORY: u64 = 1 << 18;
const NOTIFY: u64 = 0x3000;
/// Rings of queue n are in this many bytes from n times it on.
const RINGS: u64 = 0x4000;
/// Descriptors of every queue that [`Step::SetUp`] makes.
const SIZE: u16 = 16;
/// A chain as long as the fuzzer likes would only cost time: lengths and addresses
/// are near the memory's, seldom beyond.
const SPACE: u64 = MEMORY + 0x4000;

#[derive(Debug, Arbitrary)]
enum Step {
    /// Negotiate and enable all queues, as an honest driver does.
    SetUp {
        features: u8,
    },
    /// Store a descriptor, in either format.
    Descriptor {
        queue: u8,
        index: u8,
        address: u32,
        len: u16,
        third: u16,
        fourth: u16,
    },
    /// Make a head available and ring.
    Offer {
        queue: u8,
        head: u16,
        count: u8,
    },
    /// Store anything anywhere.
    Store {
        at: u32,
        value: u64,
    },
    Write {
        at: u16,
        size: u8,
        value: u64,
    },
    Read {
        at: u16,
        size: u8,
    },
    Config {
        at: u8,
        value: u32,
    },
    /// Save, restore, go on.
    Replace,
    /// Save, restore something else or be refused, go on.
    Damage {
        at: u16,
        bits: u8,
    },
    Reset,
}

struct Nowhere;
impl MsiSink for Nowhere {
    fn send_msi(&self, _: MsiMessage) {}
}
impl PortOutput for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

/// A network that sends every frame back as it came.
struct Echo {
    frames: VecDeque<(Vec<u8>, Offload)>,
    ready: OwnedFd,
}

impl port::Port for Echo {
    fn capabilities(&self) -> Capabilities {
        let all = Offloads {
            checksum: true,
            tcp4: true,
            tcp6: true,
            ecn: true,
            udp_fragments: true,
            udp_datagrams: true,
        };
        Capabilities { accepts: all, gives: all, mtu: 1500 }
    }

    fn set_receiver(&mut self, _: Offloads) {}

    fn send(&mut self, frame: &[u8], offload: &Offload) {
        assert!(frame.len() <= MAX_FRAME);
        self.frames.push_back((frame.to_vec(), *offload));
        self.frames.truncate(8);
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) {
        while !self.frames.is_empty() && sink.room() {
            let Some((frame, offload)) = self.frames.pop_front() else { break };
            sink.take(&[&frame[..frame.len() / 2], &frame[frame.len() / 2..]], &offload);
        }
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

fn disk(len: u64) -> Arc<dyn Disk> {
    let file = rustix::fs::memfd_create("fuzz-disk", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    rustix::fs::ftruncate(&file, len).expect("its size");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Arc::new(RawDisk::open(path.as_ref(), RawOptions::default()).expect("a good image"))
}

/// A folder with one file, made once; the guest may only read it.
fn share() -> &'static Path {
    static SHARE: OnceLock<PathBuf> = OnceLock::new();
    SHARE.get_or_init(|| {
        let share = std::env::temp_dir().join(format!("strata-fuzz-share-{}", std::process::id()));
        std::fs::create_dir_all(&share).expect("a temporary folder");
        std::fs::write(share.join("f"), "text").expect("a temporary file");
        share
    })
}

/// A device of each kind.
fn device(kind: u8) -> Box<dyn VirtioDevice> {
    match kind % 8 {
        0 => Box::new(Rng::new(Source::Seeded(1), 1 << 20)),
        1 => Box::new(Balloon::new(true)),
        2 => Box::new(Block::new(BlockConfig {
            disk: disk(1 << 20),
            serial: "fuzz".to_string(),
            queues: 2,
            on_full: None,
        })),
        3 => {
            let echo = || {
                let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
                let ready = rustix::event::eventfd(0, flags).expect("an event counter");
                Box::new(Echo { frames: VecDeque::new(), ready }) as Box<dyn port::Port>
            };
            let mac = "52:54:00:12:34:56".parse().expect("an address");
            Box::new(VirtioNet::new(mac, vec![echo(), echo()]))
        }
        4 => {
            let config = VsockConfig { cid: 3, listener: None, to_host: None };
            Box::new(VirtioVsock::new(config).expect("a device"))
        }
        5 => {
            let config = FsConfig { tag: "fuzz", folder: share(), read_only: true };
            Box::new(VirtioFs::new(config).expect("the folder is there"))
        }
        6 => {
            let file =
                rustix::fs::memfd_create("fuzz-pmem", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
            let config = PmemConfig { start: 1 << 32, size: 2 << 20, file: Some(file.into()) };
            Box::new(Pmem::new(config))
        }
        _ => {
            let port = |name: &str, console| Port { name: name.into(), console, output: Box::new(Nowhere) };
            let console = Console::new(vec![port("", true), port("agent", false)]);
            let handle = console.handle();
            handle.input(0, b"typed");
            handle.input(1, &[7; 5000]);
            Box::new(console)
        }
    }
}

struct Machine {
    memory: GuestMemory,
    function: VirtioPci,
    bar: Arc<dyn BarAccess>,
    queues: u16,
    packed: bool,
}

impl Machine {
    fn new(kind: u8) -> Self {
        let memory = GuestMemory::flat(MEMORY).expect("memory for a small machine");
        let device = device(kind);
        let queues = device.queue_sizes().len() as u16;
        let intx = IrqLine::unconnected();
        let config =
            VirtioPciConfig { device, memory: memory.clone(), msi: Arc::new(Nowhere), intx, inline: true };
        let function = VirtioPci::new(config);
        let bar = function.bar_access().expect("a BAR of its own");
        Machine { memory, function, bar, queues, packed: false }
    }

    fn write(&self, at: u64, size: u8, value: u64) {
        self.bar.write(0, at, size, value);
    }

    fn set_up(&mut self, wanted: u8) {
        self.write(0x14, 1, 0);
        self.write(0x14, 1, 3);
        self.packed = wanted & 1 != 0;
        let mut accepted = features::VERSION_1 | u64::from(wanted >> 3);
        for (bit, feature) in
            [features::RING_PACKED, features::EVENT_IDX, features::INDIRECT_DESC].into_iter().enumerate()
        {
            accepted |= if wanted >> bit & 1 != 0 { feature } else { 0 };
        }
        for select in [0, 1] {
            // What is not offered would be refused.
            self.write(0x00, 4, select);
            let offered = self.bar.read(0, 0x04, 4);
            self.write(0x08, 4, select);
            self.write(0x0c, 4, accepted >> (32 * select) & offered);
        }
        self.write(0x14, 1, 0xb);
        for queue in 0..self.queues {
            let base = u64::from(queue) * RINGS;
            // The last round's rings are gone. By wide stores: each is traced.
            self.memory.fill(RamOffset(base), 0u64, 0x3000 / 8);
            self.write(0x16, 2, queue.into());
            self.write(0x18, 2, SIZE.min(self.bar.read(0, 0x18, 2) as u16).into());
            for (at, address) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
                self.write(at, 8, address);
            }
            self.write(0x1c, 2, 1);
        }
        self.write(0x14, 1, 0xf);
    }

    fn base(&self, queue: u8) -> u64 {
        u64::from(u16::from(queue) % self.queues) * RINGS
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::SetUp { features } => self.set_up(features),
            Step::Descriptor { queue, index, address, len, third, fourth } => {
                let at = self.base(queue) + 16 * u64::from(index % 32);
                self.memory.write(RamOffset(at), u64::from(address) % SPACE);
                self.memory.write(RamOffset(at + 8), u32::from(len));
                self.memory.write(RamOffset(at + 12), third);
                self.memory.write(RamOffset(at + 14), fourth);
            }
            Step::Offer { queue, head, count } => {
                let base = self.base(queue) + 0x1000;
                if !self.packed {
                    let index: u16 = self.memory.read(RamOffset(base + 2));
                    for n in 0..u16::from(count % 20) {
                        let slot = u64::from(index.wrapping_add(n) % SIZE);
                        self.memory.write(RamOffset(base + 4 + 2 * slot), head.wrapping_add(n));
                    }
                    self.memory.write(RamOffset(base + 2), index.wrapping_add((count % 20).into()));
                }
                self.write(NOTIFY + 4 * u64::from(u16::from(queue) % self.queues), 2, 0);
            }
            Step::Store { at, value } => {
                _ = self.memory.write(RamOffset(u64::from(at) % (MEMORY - 8)), value)
            }
            Step::Write { at, size, value } => self.write(u64::from(at) & 0x7ff8, 1 << (size % 4), value),
            Step::Read { at, size } => _ = self.bar.read(0, u64::from(at) & 0x7ff8, 1 << (size % 4)),
            Step::Config { at, value } => self.function.config_write(u16::from(at & 0xfc), 4, value),
            Step::Replace => {
                let mut handle = self.function.handle();
                handle.quiesce();
                let state = handle.save();
                assert_eq!(handle.restore(&state), Ok(()), "its own state");
                assert_eq!(handle.save(), state);
                handle.resume();
            }
            Step::Damage { at, bits } => {
                let mut handle = self.function.handle();
                handle.quiesce();
                let state = handle.save();
                let mut bytes = postcard::to_allocvec(&state).expect("plain values");
                let at = usize::from(at) % bytes.len();
                bytes[at] ^= bits;
                if let Ok(damaged) = postcard::from_bytes(&bytes)
                    && handle.restore(&damaged).is_err()
                {
                    assert_eq!(handle.save(), state, "a refused state changes nothing");
                }
                handle.resume();
            }
            Step::Reset => self.function.reset(),
        }
    }
}

fn run(data: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(data);
    let mut machine = Machine::new(input.arbitrary()?);
    machine.set_up(input.arbitrary()?);
    while !input.is_empty() {
        let step = input.arbitrary()?;
        machine.step(step);
    }
    machine.set_up(6);
    assert_eq!(machine.bar.read(0, 0x14, 1), 0xf, "a reset brings the device back");
    Ok(())
}

/// One run.
pub fn virtio_device(data: &[u8]) {
    // Input that ends within a step is no input.
    let _ = run(data);
}
