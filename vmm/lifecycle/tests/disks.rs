//! What a machine's end leaves in its images.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use board::{Board, BoardIo, DiskInterface, DiskSpec, MachineEvent, MachineSpec, SerialSpec};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use lifecycle::{Outcome, Policy, Vm, interpreter};

/// What the guest is taken to have written, and where: clusters far apart, each with a
/// table of its own.
const FILL: u8 = 0x5a;
const PLACES: [u64; 3] = [0, 700 << 20, 1500 << 20];
/// A way to end a machine.
type End<'a> = &'a dyn Fn(&mut Vm);

const PATIENCE: Duration = Duration::from_secs(30);

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("strata-end-{name}-{}", std::process::id()))
}

/// Firmware that stands still.
fn firmware() -> PathBuf {
    let path = file("firmware");
    let mut image = vec![0xf4; 4096];
    // The reset vector: jmp to itself.
    image[4096 - 16..4096 - 14].copy_from_slice(&[0xeb, 0xfe]);
    std::fs::write(&path, image).unwrap();
    path
}

/// Whether a copy of an image is in order, and has what was written.
fn check(image: &Path, way: &str) {
    let copy = image.with_extension("copy");
    std::fs::copy(image, &copy).unwrap();
    let checked = Command::new("qemu-img").arg("check").arg(&copy).stdout(Stdio::null()).status();
    // Leaks are a failure too (qemu-img(1): 3).
    assert!(checked.as_ref().map_or(true, |status| status.success()), "{way}: {checked:?}");
    let disk = Qcow2Disk::open(&copy, Qcow2Options::default()).unwrap();
    for at in PLACES {
        let mut bytes = [0; 4096];
        disk::Disk::read(&disk, at, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == FILL), "{way}: what was written at {at:#x} is lost");
    }
    std::fs::remove_file(copy).unwrap();
}

#[test]
fn each_end_writes_what_images_keep_in_memory() {
    let firmware = firmware();
    let post = |event: fn() -> MachineEvent| {
        move |vm: &mut Vm| {
            vm.board().events().post(event());
            drop(vm.wait(Some(Instant::now() + PATIENCE)).unwrap());
        }
    };
    let late = |vm: &mut Vm| assert!(matches!(vm.wait(Some(Instant::now())).unwrap(), Outcome::Timeout));
    let paused = |vm: &mut Vm| {
        vm.pause().unwrap();
        vm.stop();
    };
    let ways: [(&str, End); 8] = [
        ("power-off", &post(|| MachineEvent::PowerOff)),
        ("reset", &post(|| MachineEvent::Reset)),
        ("triple fault", &post(|| MachineEvent::TripleFault { vcpu: 0 })),
        ("panic", &post(|| MachineEvent::Panic)),
        ("a signal or strata kill", &post(|| MachineEvent::Stop)),
        ("timeout", &late),
        ("stopped while paused", &paused),
        ("stopped", &Vm::stop),
    ];
    for (number, (way, end)) in ways.into_iter().enumerate() {
        let image = file(&format!("{number}.qcow2"));
        disk_qcow2::create(&image, 2 << 30, None).unwrap();
        let mut spec =
            MachineSpec { memory: 2 << 20, serial: vec![SerialSpec::Null], ..MachineSpec::default() };
        spec.boot.firmware = Some(firmware.clone());
        let interface = if number % 2 == 0 { DiskInterface::Nvme } else { DiskInterface::Virtio };
        spec.disks = vec![DiskSpec { interface, ..DiskSpec::new(&image) }];
        let board = Board::build(spec, BoardIo::new()).unwrap();
        let mut vm = Vm::new(board.clone(), interpreter(), Policy { reboot: false }).unwrap();
        vm.start().unwrap();
        let disk = board.disk(0).unwrap();
        PLACES.into_iter().for_each(|at| disk.write(at, &[FILL; 4096]).unwrap());
        end(&mut vm);
        // The board is still there, as a thread that outlasts the machine may hold it.
        check(&image, way);
        assert_eq!(vm.end_faults(), [], "{way}");
        // Nothing else holds it, or the image.
        let weak = Arc::downgrade(&board);
        drop((vm, disk, board));
        assert!(weak.upgrade().is_none(), "{way}");
        drop(Qcow2Disk::open(&image, Qcow2Options::default()).unwrap());
        std::fs::remove_file(image).unwrap();
    }
    std::fs::remove_file(firmware).unwrap();
}
