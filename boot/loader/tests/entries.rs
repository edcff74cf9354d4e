//! What each protocol finds in memory and registers.

mod images;

use images::{CODE, KERNEL_ADDRESS, MIB, Machine};
use loader::{BootState, Protocol, load};
use x86_state::{cr0, cr4, efer, reg, rflags};

const BOOT_PARAMS: u64 = 0x7000;

/// Walk the identity page tables for one address, as the processor would.
fn walk(machine: &Machine, cr3: u64, address: u64) -> u64 {
    let mut table = cr3;
    for shift in [39, 30, 21] {
        let entry = machine.u64(table + (address >> shift & 511) * 8);
        assert_eq!(entry & 3, 3, "present and writable at {address:#x}");
        if entry & 1 << 7 != 0 {
            return (entry & !0x1f_ffff) + (address & 0x1f_ffff);
        }
        table = entry & !0xfff;
    }
    panic!("no large page for {address:#x}");
}

/// The descriptor a selector names agrees with what the segment register caches.
fn check_segments(machine: &Machine, state: &BootState) {
    let cpu = &state.cpu;
    for (segment, access) in
        [(cpu.segments[1], cpu.segments[1].access), (cpu.segments[3], cpu.segments[3].access)]
    {
        let raw = machine.u64(cpu.gdtr.base + u64::from(segment.selector));
        assert!(u64::from(segment.selector) + 7 <= u64::from(cpu.gdtr.limit));
        assert_eq!(raw >> 40 & 0xff, u64::from(access & 0xff), "type, S, DPL, P");
        assert_eq!(raw >> 52 & 0xf, u64::from(access >> 12), "AVL, L, D/B, G");
        assert_eq!((raw & 0xffff, raw >> 48 & 0xf), (0xffff, 0xf), "limit");
        assert_eq!((segment.base, segment.limit), (0, 0xffff_ffff));
    }
    assert_eq!(cpu.segments[1].selector, 0x10, "__BOOT_CS");
    assert_eq!(cpu.segments[3].selector, 0x18, "__BOOT_DS");
    assert_eq!(cpu.rflags & rflags::IF, 0, "interrupts off");
}

fn check_long_mode(machine: &Machine, state: &BootState) {
    let cpu = &state.cpu;
    assert_eq!(cpu.efer & (efer::LME | efer::LMA), efer::LME | efer::LMA);
    assert_eq!(cpu.cr0 & (cr0::PE | cr0::PG | cr0::CD | cr0::NW), cr0::PE | cr0::PG);
    assert_ne!(cpu.cr4 & cr4::PAE, 0);
    assert!(cpu.segments[1].long() && !cpu.segments[1].big());
    assert_eq!(cpu.gpr[reg::RSI], BOOT_PARAMS);
    for address in [0x7123, KERNEL_ADDRESS + 5, 0xffff_fff0] {
        assert_eq!(walk(machine, cpu.cr3, address), address);
    }
    check_segments(machine, state);
}

fn check_protected(machine: &Machine, state: &BootState) {
    let cpu = &state.cpu;
    assert_eq!(cpu.cr0 & (cr0::PE | cr0::PG), cr0::PE);
    assert_eq!((cpu.cr4, cpu.efer), (0, 0));
    assert!(cpu.segments[1].big() && !cpu.segments[1].long());
    check_segments(machine, state);
}

/// The zero page: map, command line, initrd, RSDP, loader.
fn check_boot_params(machine: &Machine, initrd: &[u8]) {
    let at = |offset: u64| BOOT_PARAMS + offset;
    assert_eq!(machine.read(at(0x1e8), 1)[0] as usize, machine.map.len());
    for (i, r) in machine.map.iter().enumerate() {
        let entry = at(0x2d0 + i as u64 * 20);
        assert_eq!(
            (machine.u64(entry), machine.u64(entry + 8), machine.u32(entry + 16)),
            (r.start, r.size, r.kind)
        );
    }
    assert_eq!(machine.u64(at(0x70)), 0xe_0000, "acpi_rsdp_addr");
    assert_eq!(machine.read(at(0x202), 4), b"HdrS");
    assert_eq!(machine.read(at(0x210), 2), [0xff, 1], "type_of_loader, loadflags");
    let cmdline = u64::from(machine.u32(at(0x228)));
    assert_eq!(machine.read(cmdline, 14), b"console=ttyS0\0");
    let ramdisk = u64::from(machine.u32(at(0x218)));
    assert_eq!(machine.u32(at(0x21c)) as usize, initrd.len());
    assert_eq!(machine.read(ramdisk, initrd.len()), initrd);
    assert_eq!(ramdisk % 4096, 0);
}

#[test]
fn bzimage_is_decompressed_and_entered_at_startup_64() {
    let (machine, kernel) = (Machine::new(64), images::linux());
    let initrd = vec![7; 5000];
    let request = loader::BootRequest { initrd: Some(&initrd), ..machine.request(&kernel) };
    let state = load(&machine.memory, &request).unwrap();
    assert_eq!((state.protocol, &state.note), (Protocol::Uncompressed, &None));
    assert_eq!(state.cpu.rip, KERNEL_ADDRESS);
    assert_eq!(machine.read(KERNEL_ADDRESS, CODE.len()), CODE);
    check_long_mode(&machine, &state);
    check_boot_params(&machine, &initrd);
    assert_eq!(machine.u32(BOOT_PARAMS + 0x218), 64 * MIB as u32 - 0x2000, "as high as it goes");
}

#[test]
fn bzimage_own_entries() {
    for (protocol, entry) in
        [(Protocol::Linux64, KERNEL_ADDRESS + 0x200), (Protocol::Linux32, KERNEL_ADDRESS)]
    {
        let (machine, kernel) = (Machine::new(64), images::linux());
        let initrd = vec![9; 100];
        let request = loader::BootRequest { initrd: Some(&initrd), protocol, ..machine.request(&kernel) };
        let state = load(&machine.memory, &request).unwrap();
        assert_eq!((state.protocol, state.cpu.rip), (protocol, entry));
        assert_eq!(machine.read(KERNEL_ADDRESS, 16), [0xcc; 16]);
        assert_eq!(state.cpu.gpr[reg::RSI], BOOT_PARAMS);
        check_boot_params(&machine, &initrd);
        if protocol == Protocol::Linux64 {
            check_long_mode(&machine, &state);
        } else {
            check_protected(&machine, &state);
            assert_eq!([state.cpu.gpr[reg::RBX], state.cpu.gpr[reg::RBP], state.cpu.gpr[reg::RDI]], [0; 3]);
        }
    }
}

#[test]
fn a_payload_that_does_not_decompress_falls_back_to_the_kernels_own_entry() {
    let machine = Machine::new(64);
    for (xloadflags, expected) in [(1, Protocol::Linux64), (0, Protocol::Linux32)] {
        let kernel = images::bzimage(b"\x89LZO unsupported", xloadflags);
        let state = load(&machine.memory, &machine.request(&kernel)).unwrap();
        assert_eq!(state.protocol, expected);
        assert_eq!(state.note.is_some(), xloadflags == 1);
    }
}

#[test]
fn the_initrd_avoids_the_kernel_and_its_limit() {
    let machine = Machine::new(64);
    let kernel = images::linux();
    // 44 MiB fit above the kernel's 20 MiB end only; 15 MiB would fit below too.
    for size in [40 * MIB, 43 * MIB] {
        let initrd = vec![1; size as usize];
        let request = loader::BootRequest {
            initrd: Some(&initrd),
            protocol: Protocol::Linux64,
            ..machine.request(&kernel)
        };
        load(&machine.memory, &request).unwrap();
        let at = u64::from(machine.u32(BOOT_PARAMS + 0x218));
        assert!(at >= 20 * MIB && at + size <= 64 * MIB, "{at:#x}");
    }
}

#[test]
fn vmlinux_and_pvh() {
    let machine = Machine::new(64);
    let kernel = images::elf(true, None, 0x2000);
    // What lies in the bss beforehand must be gone.
    machine.memory.store(KERNEL_ADDRESS + 0x1000, b"dirty").unwrap();
    let state = load(&machine.memory, &machine.request(&kernel)).unwrap();
    assert_eq!((state.protocol, state.cpu.rip), (Protocol::Linux64, KERNEL_ADDRESS));
    assert_eq!(machine.read(KERNEL_ADDRESS + 0x1000, 5), [0; 5]);
    check_long_mode(&machine, &state);

    let entry = KERNEL_ADDRESS as u32 + 2;
    let initrd = [5; 10];
    for long in [true, false] {
        let kernel = images::elf(long, Some(entry), 0x2000);
        let request = loader::BootRequest { initrd: Some(&initrd), ..machine.request(&kernel) };
        let state = load(&machine.memory, &request).unwrap();
        assert_eq!((state.protocol, state.cpu.rip), (Protocol::Pvh, entry.into()));
        check_protected(&machine, &state);
        let info = state.cpu.gpr[reg::RBX];
        assert_eq!((machine.u32(info), machine.u32(info + 4), machine.u32(info + 12)), (0x336e_c578, 1, 1));
        let module = machine.u64(info + 16);
        assert_eq!(machine.read(machine.u64(module), 10), initrd);
        assert_eq!(machine.u64(module + 8), 10);
        assert_eq!(machine.read(machine.u64(info + 24), 14), b"console=ttyS0\0");
        assert_eq!(machine.u64(info + 32), 0xe_0000, "rsdp");
        assert_eq!(machine.u32(info + 48) as usize, machine.map.len());
        let map = machine.u64(info + 40);
        assert_eq!((machine.u64(map + 48), machine.u32(map + 64)), (MIB, 1));
    }
}

#[test]
fn multiboot_kernels() {
    let cases = [
        (images::multiboot_flat(), MIB + 0x40, MIB + 0x3000),
        (images::multiboot_elf(false), KERNEL_ADDRESS, KERNEL_ADDRESS + 0x3000),
        (images::multiboot_elf(true), KERNEL_ADDRESS, KERNEL_ADDRESS + 0x3000),
    ];
    for (kernel, entry, module) in cases {
        let machine = Machine::new(64);
        let initrd = b"A=1\n";
        let request = loader::BootRequest { initrd: Some(initrd), ..machine.request(&kernel) };
        let state = load(&machine.memory, &request).unwrap();
        assert_eq!((state.protocol, state.cpu.rip), (Protocol::Multiboot, entry));
        check_protected(&machine, &state);
        assert_eq!(state.cpu.gpr[reg::RAX], 0x2bad_b002);
        let info = state.cpu.gpr[reg::RBX];
        assert_eq!(machine.u32(info), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
        assert_eq!((machine.u32(info + 4), machine.u32(info + 8)), (639, 63 * 1024));
        assert_eq!(machine.read(machine.u32(info + 16).into(), 21), b"kernel console=ttyS0\0");
        let modules = u64::from(machine.u32(info + 24));
        assert_eq!(u64::from(machine.u32(modules)), module);
        assert_eq!(u64::from(machine.u32(modules + 4)), module + 4);
        assert_eq!(machine.read(module, 4), initrd);
        assert_eq!(machine.u32(info + 44) as usize, machine.map.len() * 24);
        let map = u64::from(machine.u32(info + 48));
        assert_eq!((machine.u32(map), machine.u64(map + 4 + 48)), (20, MIB));
    }
}

/// A kernel linked where the boot data usually lies has it moved, whole.
#[test]
fn the_boot_data_makes_way_for_a_kernel() {
    const HERE: u64 = 0x8000;
    let moved = |mut file: Vec<u8>| {
        images::put(&mut file, 64 + 24, HERE.to_le_bytes());
        images::put(&mut file, 24, HERE.to_le_bytes());
        file
    };
    let cases = [
        (moved(images::multiboot_elf(true)), Protocol::Multiboot),
        (moved(images::elf(true, Some(HERE as u32), 0x2000)), Protocol::Pvh),
        (moved(images::elf(true, None, 0x2000)), Protocol::Linux64),
    ];
    for (kernel, protocol) in cases {
        let machine = Machine::new(64);
        let state = load(&machine.memory, &machine.request(&kernel)).unwrap();
        assert_eq!((state.protocol, state.cpu.rip), (protocol, HERE));
        let (kernels, data): (Vec<_>, Vec<_>) =
            state.loaded.iter().copied().partition(|l| l.what == "kernel");
        assert_eq!((kernels.len(), kernels[0].address), (1, HERE));
        assert!(data.len() >= 3, "{data:?}");
        for l in data {
            assert!(l.address >= 0x3_0500 && l.address + l.size <= 0x6_0000, "{l:x?}");
        }
        let table = state.cpu.gdtr.base;
        assert_eq!(machine.u64(table + 0x10) >> 40 & 0xff, 0x9b, "the code segment is in the moved table");
        let cmdline = match protocol {
            Protocol::Linux64 => u64::from(machine.u32(state.cpu.gpr[reg::RSI] + 0x228)),
            Protocol::Pvh => machine.u64(state.cpu.gpr[reg::RBX] + 24),
            _ => u64::from(machine.u32(state.cpu.gpr[reg::RBX] + 16)) + "kernel ".len() as u64,
        };
        assert_eq!(machine.read(cmdline, 14), b"console=ttyS0\0");
    }
}

#[test]
fn firmware_ends_at_4_gib_and_is_shadowed_below_1_mib() {
    let (machine, image) = (Machine::new(4), images::firmware());
    let state = load(&machine.memory, &machine.request(&image)).unwrap();
    assert_eq!(state.protocol, Protocol::Firmware);
    assert_eq!(state.cpu, x86_state::CpuState::reset(true, 0xb0681));
    assert_eq!(machine.read((1 << 32) - 16, 1), [0xea]);
    assert_eq!(machine.read(MIB - 16, 1), [0xea]);
    assert_eq!(machine.read((1 << 32) - 0x1_0000, 0x1_0000), image);
}
