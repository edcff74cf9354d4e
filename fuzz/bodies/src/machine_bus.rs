//! A whole machine without processors: port, memory and MSR accesses of the
//! fuzzer's making on every device, interrupts and the passing of time. Nothing
//! panics, and the machine powers on again. Virtual time, so that runs repeat.

use crate::images::kernels as images;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use arbitrary::{Arbitrary, Result, Unstructured};
use board::{
    BalloonSpec, Board, BoardIo, BootSpec, DiskInterface, DiskSpec, MachineSpec, RngSpec, TimeSource,
    VsockSpec, WatchdogAction,
};
use chipset::SerialOutput;
use engine::Bus;
use guest_memory::RamOffset;

const MEMORY: u64 = 2 << 20;
const CPUS: usize = 2;
/// Where devices answer; others too, now and then.
const PORTS: [u16; 20] = [
    0x20, 0x40, 0x60, 0x61, 0x64, 0x70, 0x92, 0xa0, 0x2f8, 0x3f8, 0x4d0, 0x505, 0x510, 0x514, 0x600, 0x620,
    0x660, 0xae00, 0xcf8, 0xcfc,
];
/// The I/O APIC, the HPET, local APICs; configuration space; BARs.
const PLACES: [u64; 8] =
    [0xfec0_0000, 0xfed0_0000, 0xfee0_0000, 0xe000_0000, 0xe000_8000, 0xc000_0000, 0xc000_8000, 0xc001_0000];
const MSRS: [u32; 8] = [0x1b, 0x6e0, 0x800, 0x80f, 0x830, 0x832, 0x838, 0x4b56_4d00];

#[derive(Debug, Arbitrary)]
enum Step {
    In {
        port: u8,
        offset: u8,
        size: u8,
    },
    Out {
        port: u8,
        offset: u8,
        size: u8,
        value: u32,
    },
    Load {
        place: u8,
        offset: u16,
        size: u8,
    },
    Store {
        place: u8,
        offset: u16,
        size: u8,
        value: u32,
    },
    /// A PCI function's configuration by mechanism 1.
    Configure {
        slot: u8,
        register: u8,
        value: u32,
    },
    ReadMsr {
        msr: u8,
        offset: u8,
    },
    WriteMsr {
        msr: u8,
        offset: u8,
        value: u64,
    },
    /// What devices will find in memory.
    Fill {
        at: u32,
        value: u64,
    },
    Pass {
        microseconds: u16,
    },
    Acknowledge {
        vcpu: u8,
    },
    TaskPriority {
        vcpu: u8,
        class: u8,
    },
    Type {
        bytes: [u8; 4],
    },
    PowerButton,
    PowerOn,
}

struct Nowhere;
impl SerialOutput for Nowhere {
    fn put(&mut self, _: &[u8]) {}
}

fn file(name: &str, bytes: &[u8], len: u64) -> (OwnedFd, String) {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    rustix::io::write(&file, bytes).expect("its bytes");
    rustix::fs::ftruncate(&file, len).expect("its size");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path)
}

/// One of every device that needs no host time. Made once: it costs more than what is done to it.
fn machine() -> Arc<Board> {
    let kernel = images::multiboot_flat();
    let (kernel_file, kernel) = file("fuzz-kernel", &kernel, kernel.len() as u64);
    let (first_file, first) = file("fuzz-nvme", &[], 1 << 20);
    let (second_file, second) = file("fuzz-virtio", &[], 1 << 20);
    let spec = MachineSpec {
        memory: MEMORY,
        cpus: CPUS as u32,
        time: TimeSource::Virtual,
        boot: BootSpec { kernel: Some(kernel.into()), ..BootSpec::default() },
        disks: vec![
            DiskSpec::new(first),
            DiskSpec { interface: DiskInterface::Virtio, ..DiskSpec::new(second) },
        ],
        watchdog: Some(WatchdogAction::Reset),
        rng: Some(RngSpec::default()),
        balloon: Some(BalloonSpec::default()),
        vsock: Some(VsockSpec::default()),
        ..MachineSpec::default()
    };
    let io = BoardIo { serial: vec![Box::new(Nowhere), Box::new(Nowhere)], ..BoardIo::new() };
    let board = Board::build(spec, io).expect("a machine");
    // The disks have opened theirs anew; the kernel's is read at each power-on.
    std::mem::forget(kernel_file);
    drop((first_file, second_file));
    board
}

/// Let devices act whose time has come.
fn expire(board: &Board) {
    // What is due again at once would be due forever while time stands still.
    for _ in 0..4 {
        let now = board.clock().now();
        for source in board.timers().take_due(now) {
            board.expire(source, now);
        }
        board.timers().arm();
    }
}

fn at<T: Copy>(list: &[T], n: u8) -> T {
    list[usize::from(n) % list.len()]
}

fn step(board: &Board, step: Step) {
    let port = |port: u8, offset: u8| match port {
        0xff => u16::from(offset) << 8 | u16::from(offset),
        _ => at(&PORTS, port).wrapping_add((offset & 31).into()),
    };
    let size = |n: u8| 1u8 << (n % 4);
    let address =
        |place: u8, offset: u16, size: u8| at(&PLACES, place) + u64::from(offset & !(u16::from(size) - 1));
    match step {
        Step::In { port: p, offset, size } => _ = board.port_read(port(p, offset), 1 << (size % 3)),
        Step::Out { port: p, offset, size, value } => {
            board.port_write(
                port(p, offset),
                1 << (size % 3),
                value & (u32::MAX >> (32 - (8 << (size % 3)))),
            );
        }
        Step::Load { place, offset, size: n } => {
            board.mmio_read(usize::from(offset) % CPUS, address(place, offset, size(n)), size(n));
        }
        Step::Store { place, offset, size: n, value } => {
            let vcpu = usize::from(n >> 2) % CPUS;
            board.mmio_write(vcpu, address(place, offset, size(n)), size(n), value.into());
        }
        Step::Configure { slot, register, value } => {
            let select = 0x8000_0000 | u32::from(slot % 12) << 11 | u32::from(register & 0xfc);
            board.port_write(0xcf8, 4, select);
            board.port_write(0xcfc, 4, value);
        }
        Step::ReadMsr { msr, offset } => {
            board.platform_msr_read(usize::from(offset >> 7), at(&MSRS, msr) + u32::from(offset & 63));
        }
        Step::WriteMsr { msr, offset, value } => {
            board.platform_msr_write(
                usize::from(offset >> 7),
                at(&MSRS, msr) + u32::from(offset & 63),
                value,
            );
        }
        Step::Fill { at, value } => _ = board.memory().write(RamOffset(u64::from(at) % (MEMORY - 8)), value),
        Step::Pass { microseconds } => board.clock().advance(u64::from(microseconds) * 1000),
        Step::Acknowledge { vcpu } => _ = board.acknowledge_interrupt(usize::from(vcpu) % CPUS),
        Step::TaskPriority { vcpu, class } => {
            board.write_cr8(usize::from(vcpu) % CPUS, u64::from(class & 15));
            board.read_cr8(usize::from(vcpu) % CPUS);
        }
        Step::Type { bytes } => _ = board.serial_input(usize::from(bytes[0] & 1), &bytes),
        Step::PowerButton => board.press_power_button(),
        Step::PowerOn => _ = board.power_on().expect("it did before"),
    }
    expire(board);
    // What the machine says to its owner.
    while board.event_queue().poll().is_some() {}
}

fn run(data: &[u8]) -> Result<()> {
    static MACHINE: OnceLock<Arc<Board>> = OnceLock::new();
    let board = MACHINE.get_or_init(machine);
    board.power_on().expect("the image is good");
    let mut input = Unstructured::new(data);
    while !input.is_empty() {
        step(board, input.arbitrary()?);
    }
    Ok(())
}

/// One run.
pub fn machine_bus(data: &[u8]) {
    // Input that ends within a step is no input.
    let _ = run(data);
}
