//! No command, queue or register value panics the controller or leaves it unable to
//! start again. Input: steps of 20 bytes, a kind and what it needs.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use device_model::{MsiMessage, MsiSink};
use disk::{Disk, RawDisk, RawOptions};
use guest_memory::{GuestMemory, RamOffset};
use nvme::{Nvme, NvmeConfig};
use pci::{BarAccess, PciFunction};
use saved_state::Saved;

struct Nowhere;

impl MsiSink for Nowhere {
    fn send_msi(&self, _: MsiMessage) {}
}

const ADMIN_SQ: u64 = 0x1000;
const ENTRIES: u32 = 8;

fn start(bar: &dyn BarAccess) {
    bar.write(0, 0x24, 4, u64::from((ENTRIES - 1) << 16 | (ENTRIES - 1)));
    bar.write(0, 0x28, 8, ADMIN_SQ);
    bar.write(0, 0x30, 8, 0x2000);
    bar.write(0, 0x14, 4, 0x0046_0001);
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A place in or near memory: a page and an offset.
fn place(value: u16) -> u64 {
    u64::from(value >> 4) << 12 | u64::from(value & 0xf) << 8 >> (value & 3)
}

/// One run.
pub fn nvme_commands(data: &[u8]) {
    let file = rustix::fs::memfd_create("fuzz-disk", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    rustix::fs::ftruncate(&file, 1 << 20).expect("its size");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let disk: Arc<dyn Disk> =
        Arc::new(RawDisk::open(path.as_ref(), RawOptions::default()).expect("a good image"));
    let memory = GuestMemory::flat(1 << 20).expect("memory");
    let config = NvmeConfig { serial: "fuzz".to_string(), disk, inline: true, on_full: None };
    let mut nvme = Nvme::new(config, memory.clone(), Arc::new(Nowhere));
    let bar = nvme.bar_access().expect("a BAR");
    start(&*bar);
    let mut tails = [0u32; 4];
    for step in data.chunks_exact(20) {
        let queue = usize::from(step[1] & 3);
        match step[0] % 9 {
            // A command into a queue, wherever the driver said it is; then its doorbell.
            0..=4 => {
                let base = if queue == 0 { ADMIN_SQ } else { 0x10_000 + 0x1000 * queue as u64 };
                let mut entry = [0; 64];
                entry[0] = step[2];
                entry[1] = step[3] & 0x83;
                entry[4] = step[4] & 3;
                let prp = |at: usize| place(u16::from_le_bytes([step[at], step[at + 1]])).to_le_bytes();
                entry[24..32].copy_from_slice(&prp(5));
                entry[32..40].copy_from_slice(&prp(7));
                entry[40..50].copy_from_slice(&step[9..19]);
                memory.write_bytes(RamOffset(base + u64::from(tails[queue]) * 64), &entry);
                tails[queue] = (tails[queue] + 1) % ENTRIES;
                bar.write(0, 0x1000 + 8 * queue as u64, 4, tails[queue].into());
                bar.write(0, 0x1004 + 8 * queue as u64, 4, u64::from(step[19]) % u64::from(ENTRIES));
            }
            5 => bar.write(0, u64::from(word(step, 2) & 0x3fff), 1 << (step[1] & 3), word(step, 6).into()),
            6 => {
                bar.read(0, u64::from(word(step, 2) & 0x3fff), 1 << (step[1] & 3));
                memory.write_bytes(RamOffset(u64::from(word(step, 2) & 0xf_ff00)), &step[6..20]);
            }
            7 => nvme.config_write((word(step, 2) & 0xff) as u16, 1 << (step[1] % 3), word(step, 6)),
            // Save, restore something else or be refused, go on.
            _ => {
                let mut handle = nvme.handle();
                handle.quiesce();
                let state = handle.save();
                let mut bytes = postcard::to_allocvec(&state).expect("plain values");
                let at = (word(step, 2) & 0xffff) as usize % bytes.len();
                bytes[at] ^= step[6];
                if let Ok(damaged) = postcard::from_bytes(&bytes)
                    && handle.restore(&damaged).is_err()
                {
                    assert_eq!(handle.save(), state, "a refused state changes nothing");
                }
                handle.resume();
            }
        }
    }
    bar.write(0, 0x14, 4, 0);
    start(&*bar);
    assert_eq!(bar.read(0, 0x1c, 4), 1, "ready after a reset");
}
