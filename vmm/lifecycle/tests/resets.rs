//! What the guest has done, and what time it is, when its owner acts on a reset.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use board::{Board, BoardIo, DiskSpec, MachineEvent, MachineSpec, SerialSpec, SlotKind, TimeSource};
use engine::Bus;
use iced_x86::code_asm::*;
use lifecycle::{Outcome, Policy, Vm, interpreter};

const SIZE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(30);

/// A file that is removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("strata-reset-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Temporary(path)
    }

    /// Firmware of this code, for real mode with CS at 0xf000.
    fn firmware(name: &str, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let mut a = CodeAssembler::new(16).unwrap();
        body(&mut a).unwrap();
        let mut image = a.assemble(0xf000).unwrap();
        image.resize(SIZE, 0xf4);
        // The reset vector, f000:fff0, jumps to f000:f000.
        image[SIZE - 16..SIZE - 13].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
        Self::new(name, &image)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn machine(firmware: &Path, change: impl FnOnce(&mut MachineSpec)) -> Vm {
    let mut spec = MachineSpec { memory: 2 << 20, serial: vec![SerialSpec::Null], ..MachineSpec::default() };
    spec.boot.firmware = Some(firmware.to_path_buf());
    change(&mut spec);
    let board = Board::build(spec, BoardIo::new()).unwrap();
    Vm::new(board, interpreter(), Policy { reboot: false }).unwrap()
}

/// The timer at 1 kHz, then the watchdog with 100 ms.
fn start_watchdog(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    for (port, value) in [(0x662, 1), (0x660, 1)] {
        a.mov(dx, port)?;
        a.mov(ax, value)?;
        a.out(dx, ax)?;
    }
    Ok(())
}

#[test]
fn virtual_time_stands_when_a_watchdog_resets() {
    let idle = Temporary::firmware("idle", |a| {
        start_watchdog(a)?;
        a.cli()?;
        a.hlt()
    });
    let busy = Temporary::firmware("busy", |a| {
        start_watchdog(a)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    for (firmware, cpus) in [(&idle, 1), (&busy, 1), (&idle, 2), (&busy, 2)] {
        let mut vm = machine(&firmware.0, |s| (s.time, s.cpus) = (TimeSource::Virtual, cpus));
        let (board, began) = (vm.board().clone(), vm.board().clock().now());
        vm.start().unwrap();
        // An owner that is slow to hear of it.
        std::thread::sleep(Duration::from_millis(300));
        let outcome = vm.wait(Some(Instant::now() + PATIENCE)).unwrap();
        assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
        let passed = Duration::from_nanos(board.clock().now() - began);
        let expected = Duration::from_millis(100)..Duration::from_micros(100_100);
        assert!(expected.contains(&passed), "{cpus} vCPUs: {passed:?}");
    }
}

#[test]
fn what_the_guest_gave_up_before_a_reset_is_gone_after_it() {
    let firmware = Temporary::firmware("halts", |a| a.hlt());
    let image = Temporary::new("image", &[0; 1 << 20]);
    let mut vm = machine(&firmware.0, |s| s.disks = vec![DiskSpec::new(&image.0)]);
    let board = vm.board().clone();
    vm.start().unwrap();
    vm.pause().unwrap();
    let slot = board.devices().iter().find(|d| d.id == "disk-0").and_then(|d| d.pci_slot).unwrap();
    // Another processor's reset comes first.
    board.events().post(MachineEvent::Reset);
    board.port_write(SlotKind::Pci.port(), 4, slot.into());
    board.port_write(SlotKind::Pci.port() + 4, 4, 8);
    board.events().post(MachineEvent::Stop);
    vm.reset().unwrap();
    assert!(!board.devices().iter().any(|d| d.id == "disk-0"), "{:?}", board.devices());
    assert_eq!(board.mmio_read(0, 0xe000_0000 + (u64::from(slot) << 15), 4), 0xffff_ffff);
    assert!(matches!(board.event_queue().poll(), Some(MachineEvent::Stop)), "the owner's own stays");
    assert!(board.event_queue().poll().is_none());
}
