//! The driver's side of a controller, for tests.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use device_model::{MsiMessage, MsiSink};
use disk::{Disk, FullListener, RawDisk, RawOptions};
use guest_memory::{GuestMemory, RamOffset};
use nvme::{Nvme, NvmeConfig};
use pci::{BarAccess, PciFunction};
use saved_state::Saved;
use tempfile::NamedTempFile;

/// Guest memory of a test.
pub const MEMORY: u64 = 8 << 20;
/// Where data go.
pub const DATA: u64 = 0x10_0000;
/// Entries of each queue.
pub const ENTRIES: u16 = 8;
const ADMIN_SQ: u64 = 0x1000;
const ADMIN_CQ: u64 = 0x2000;
const IO_SQ: u64 = 0x3000;
const IO_CQ: u64 = 0x4000;

/// Notes the messages sent.
#[derive(Default)]
pub struct Messages(Mutex<Vec<MsiMessage>>);

impl MsiSink for Messages {
    fn send_msi(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

impl Messages {
    pub fn take(&self) -> Vec<u32> {
        self.0.lock().unwrap().drain(..).map(|m| m.data).collect()
    }
}

/// One queue pair, as its driver sees it.
struct Pair {
    sq: u64,
    cq: u64,
    tail: u16,
    head: u16,
    phase: bool,
}

impl Pair {
    fn new(sq: u64, cq: u64) -> Self {
        Pair { sq, cq, tail: 0, head: 0, phase: true }
    }
}

/// A completion: status field without phase, result.
pub type Done = (u16, u32);

pub struct Driver {
    pub nvme: Nvme,
    pub bar: Arc<dyn BarAccess>,
    pub memory: GuestMemory,
    pub messages: Arc<Messages>,
    pub disk: Arc<dyn Disk>,
    _file: NamedTempFile,
    pairs: [Pair; 2],
    next_cid: u16,
}

impl Driver {
    /// A controller on a fresh disk, not enabled.
    pub fn new(size: u64, options: RawOptions, inline: bool) -> Self {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(file.path(), options).unwrap());
        Self::with(disk, file, inline, None)
    }

    /// A controller on a disk in a file, not enabled.
    pub fn with(
        disk: Arc<dyn Disk>,
        file: NamedTempFile,
        inline: bool,
        on_full: Option<FullListener>,
    ) -> Self {
        let memory = GuestMemory::flat(MEMORY).unwrap();
        let messages = Arc::new(Messages::default());
        let config = NvmeConfig { serial: "test-1".to_string(), disk: disk.clone(), inline, on_full };
        let mut nvme = Nvme::new(config, memory.clone(), messages.clone());
        // MSI-X on; vectors 0 and 1 unmasked, with their numbers as data.
        nvme.config_write(0x42, 2, 0x8000);
        let bar = nvme.bar_access().unwrap();
        for vector in 0..2 {
            bar.write(0, 0x2000 + vector * 16, 8, 0xfee0_0000);
            bar.write(0, 0x2008 + vector * 16, 4, vector);
            bar.write(0, 0x200c + vector * 16, 4, 0);
        }
        let pairs = [Pair::new(ADMIN_SQ, ADMIN_CQ), Pair::new(IO_SQ, IO_CQ)];
        Driver { nvme, bar, memory, messages, disk, _file: file, pairs, next_cid: 0x100 }
    }

    /// Put the state of the controller, which stands still, into a fresh one and go
    /// on with that, on the same disk and memory.
    pub fn replace(&mut self, inline: bool, on_full: Option<FullListener>) {
        let handle = self.nvme.handle();
        handle.quiesce();
        let state = handle.save();
        let disk = self.disk.clone();
        let config = NvmeConfig { serial: "test-1".to_string(), disk, inline, on_full };
        let mut fresh = Nvme::new(config, self.memory.clone(), self.messages.clone());
        let space = self.nvme.config().bytes().to_vec();
        fresh.config_mut().restore(&space).unwrap();
        let mut handle = fresh.handle();
        handle.restore(&state).unwrap();
        assert_eq!(handle.save(), state, "what was put in comes out");
        self.nvme = fresh;
        self.bar = self.nvme.bar_access().unwrap();
        handle.resume();
    }

    pub fn register(&mut self, offset: u64) -> u32 {
        self.bar.read(0, offset, 4) as u32
    }

    pub fn set_register(&mut self, offset: u64, value: u32) {
        self.bar.write(0, offset, 4, value.into());
    }

    /// Enable it.
    pub fn enable(&mut self) {
        self.pairs = [Pair::new(ADMIN_SQ, ADMIN_CQ), Pair::new(IO_SQ, IO_CQ)];
        for at in [ADMIN_CQ, IO_CQ] {
            self.memory.write_bytes(RamOffset(at), &[0; 4096]);
        }
        let size = u32::from(ENTRIES) - 1;
        self.set_register(0x24, size << 16 | size);
        self.bar.write(0, 0x28, 8, ADMIN_SQ);
        self.bar.write(0, 0x30, 8, ADMIN_CQ);
        self.set_register(0x14, 0x0046_0001);
        assert_eq!(self.register(0x1c), 1, "ready");
    }

    /// Enable it and make the I/O queue pair.
    pub fn ready(&mut self) {
        self.enable();
        let size = (u32::from(ENTRIES) - 1) << 16 | 1;
        assert_eq!(self.admin(0x05, 0, IO_CQ, &[size, 1 << 16 | 3]), (0, 0), "completion queue");
        assert_eq!(self.admin(0x01, 0, IO_SQ, &[size, 1 << 16 | 1]), (0, 0), "submission queue");
        self.messages.take();
    }

    /// Put a command into a queue without ringing; its identifier.
    pub fn put(&mut self, queue: usize, opcode: u8, nsid: u32, prp: (u64, u64), dwords: &[u32]) -> u16 {
        let cid = self.next_cid;
        self.next_cid += 1;
        let pair = &mut self.pairs[queue];
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[2..4].copy_from_slice(&cid.to_le_bytes());
        entry[4..8].copy_from_slice(&nsid.to_le_bytes());
        entry[24..32].copy_from_slice(&prp.0.to_le_bytes());
        entry[32..40].copy_from_slice(&prp.1.to_le_bytes());
        for (i, d) in dwords.iter().enumerate() {
            entry[40 + 4 * i..44 + 4 * i].copy_from_slice(&d.to_le_bytes());
        }
        self.memory.write_bytes(RamOffset(pair.sq + u64::from(pair.tail) * 64), &entry);
        pair.tail = (pair.tail + 1) % ENTRIES;
        cid
    }

    pub fn ring(&mut self, queue: usize) {
        let tail = self.pairs[queue].tail;
        self.bar.write(0, 0x1000 + 8 * queue as u64, 4, tail.into());
    }

    /// The next completion, if it is there: identifier and outcome.
    pub fn poll(&mut self, queue: usize) -> Option<(u16, Done)> {
        let pair = &mut self.pairs[queue];
        let at = pair.cq + u64::from(pair.head) * 16;
        let last: u32 = self.memory.read(RamOffset(at + 12));
        if (last >> 16 & 1 != 0) != pair.phase {
            return None;
        }
        let result: u32 = self.memory.read(RamOffset(at));
        pair.head = (pair.head + 1) % ENTRIES;
        pair.phase ^= pair.head == 0;
        let head = pair.head;
        self.bar.write(0, 0x1004 + 8 * queue as u64, 4, head.into());
        Some((last as u16, ((last >> 17) as u16, result)))
    }

    /// Wait, without taking anything, until the completion queue is full.
    pub fn wait_until_full(&self, queue: usize) {
        let last = RamOffset(self.pairs[queue].cq + u64::from(ENTRIES - 2) * 16 + 12);
        let until = Instant::now() + Duration::from_secs(60);
        while self.memory.read::<u32>(last) == 0 {
            assert!(Instant::now() < until, "the queue does not fill");
            std::thread::yield_now();
        }
    }

    /// Wait for the next completion.
    pub fn wait(&mut self, queue: usize) -> (u16, Done) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(done) = self.poll(queue) {
                return done;
            }
            assert!(Instant::now() < until, "no completion");
            std::thread::yield_now();
        }
    }

    fn run(&mut self, queue: usize, opcode: u8, nsid: u32, prp: (u64, u64), dwords: &[u32]) -> Done {
        let cid = self.put(queue, opcode, nsid, prp, dwords);
        self.ring(queue);
        let (seen, done) = self.wait(queue);
        assert_eq!(seen, cid, "opcode {opcode:#x}");
        done
    }

    /// Execute an admin command with its data in one page or two adjacent ones.
    pub fn admin(&mut self, opcode: u8, nsid: u32, prp1: u64, dwords: &[u32]) -> Done {
        self.run(0, opcode, nsid, (prp1, (prp1 & !0xfff) + 0x1000), dwords)
    }

    /// Execute an I/O command.
    pub fn io(&mut self, opcode: u8, prp: (u64, u64), dwords: &[u32]) -> Done {
        self.run(1, opcode, 1, prp, dwords)
    }

    /// A page's bytes.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_bytes(RamOffset(at), &mut bytes);
        bytes
    }
}
