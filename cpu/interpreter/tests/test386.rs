//! The test386 ROM (barotto/test386.asm): real and protected mode, paging, rings,
//! task switches, virtual-8086 mode, and 386 arithmetic against a reference.
//!
//! `STRATA_TEST386_ROM` names the assembled ROM (64 or 128 KiB, with `OUT_PORT`
//! set to 0xE9), `STRATA_SUITES` the folder that has
//! `test386/EE-reference.txt.gz`. Without them the test says so and passes.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use device_model::Clock;
use engine::{Attention, Bus, Halt, Vcpu, VcpuConfig};
use guest_memory::{GuestMemory, MemoryMap, Region};
use interpreter::InterpreterVcpu;
use x86_state::{CpuModel, Topology};

const POST_PORTS: [u16; 2] = [0x190, 0x80];
const TEXT_PORT: u16 = 0xe9;
/// The last code: all tests done.
const DONE: u8 = 0xff;
/// More than the whole ROM takes.
const LIMIT: u64 = 400_000_000;

/// What the ROM has said.
#[derive(Default)]
struct Said {
    posts: Vec<u8>,
    text: Vec<u8>,
}

/// A bus with the ROM's two ports.
#[derive(Default)]
struct Ports(Mutex<Said>);

impl Bus for Ports {
    fn port_read(&self, _: u16, size: u8) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(size))
    }
    fn port_write(&self, port: u16, _: u8, value: u32) {
        let mut said = self.0.lock().unwrap();
        if POST_PORTS.contains(&port) {
            said.posts.push(value as u8);
        } else if port == TEXT_PORT {
            said.text.push(value as u8);
        }
    }
    fn mmio_read(&self, _: usize, _: u64, size: u8) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(size))
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn platform_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn platform_msr_write(&self, _: usize, _: u32, _: u64) -> Option<()> {
        None
    }
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        None
    }
    fn read_cr8(&self, _: usize) -> u64 {
        0
    }
    fn write_cr8(&self, _: usize, _: u64) {}
}

/// The ROM below 1 MiB and below 4 GiB, RAM below it.
fn memory(rom: &[u8]) -> GuestMemory {
    let size = rom.len() as u64;
    let low = 0x10_0000 - size;
    let high = 0x1_0000_0000 - size;
    let regions = [Region::ram(0, low), Region::rom(low, size), Region::rom(high, size)];
    let memory = GuestMemory::new(MemoryMap::new(regions).unwrap()).unwrap();
    memory.store(low, rom).unwrap();
    memory.store(high, rom).unwrap();
    memory
}

fn run(rom: &[u8]) -> (Halt, Said, x86_state::CpuState) {
    let model = Arc::new(CpuModel::default_model());
    let ports = Arc::new(Ports::default());
    let mut vcpu = InterpreterVcpu::new(VcpuConfig {
        index: 0,
        model: model.clone(),
        topology: Topology { apic_id: 0, cpus: 1 },
        memory: memory(rom),
        clock: Clock::virtual_time(model.tsc_khz(), 0),
        attention: Arc::new(Attention::new()),
        bus: ports.clone(),
    });
    let halt = vcpu.run(LIMIT);
    let said = std::mem::take(&mut *ports.0.lock().unwrap());
    (halt, said, vcpu.state().unwrap())
}

/// The reference lines, if the suites are there.
fn reference() -> Option<String> {
    let suites = PathBuf::from(std::env::var_os("STRATA_SUITES")?);
    let file = std::fs::File::open(suites.join("test386/EE-reference.txt.gz")).ok()?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    Some(text)
}

#[test]
fn rom_reaches_its_last_post_code_with_reference_results() {
    let Some(path) = std::env::var_os("STRATA_TEST386_ROM") else {
        eprintln!("skipped: STRATA_TEST386_ROM does not name the assembled ROM");
        return;
    };
    let rom = std::fs::read(path).expect("the ROM is readable");
    let (halt, said, state) = run(&rom);
    let posts: Vec<String> = said.posts.iter().map(|p| format!("{p:02x}")).collect();
    assert_eq!(
        said.posts.last(),
        Some(&DONE),
        "{halt:?} after POST codes {} at {:04x}:{:x}\n{state:x?}",
        posts.join(" "),
        state.segments[1].selector,
        state.rip
    );
    let Some(reference) = reference() else {
        eprintln!("skipped the comparison: STRATA_SUITES has no test386/EE-reference.txt.gz");
        return;
    };
    let text = String::from_utf8_lossy(&said.text);
    let mut differences = Vec::new();
    for (n, (ours, theirs)) in text.lines().zip(reference.lines()).enumerate() {
        if ours != theirs {
            differences.push(format!("line {}: {ours} instead of {theirs}", n + 1));
        }
    }
    differences.truncate(40);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(text.lines().count(), reference.lines().count(), "number of lines");
    eprintln!("test386: POST {} lines {}", posts.join(" "), text.lines().count());
}
