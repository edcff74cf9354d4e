//! Bad input gives an error that says what was found and what to do.

mod images;

use images::{KERNEL_ADDRESS, MIB, Machine, put};
use loader::{BootRequest, Protocol, load, sniff};

/// The error of loading `request` contains every one of `words`.
#[track_caller]
fn refused(machine: &Machine, request: &BootRequest<'_>, words: &[&str]) {
    let error = load(&machine.memory, request).expect_err("must be refused").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} expected in: {error}");
    }
}

#[test]
fn files_that_are_no_kernels() {
    let elf_for = |machine: u16| {
        let mut f = images::elf(true, None, 0);
        put(&mut f, 18, machine.to_le_bytes());
        f
    };
    let at = |offset: usize, magic: &[u8]| {
        let mut f = vec![1u8; 0x9000];
        f[offset..offset + magic.len()].copy_from_slice(magic);
        f
    };
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["empty", "0 bytes"]),
        (b"#!/bin/sh\necho hello\n".to_vec(), &["a text file", "--kernel"]),
        (b"\x1f\x8b\x08 and so on".to_vec(), &["gzip", "gunzip"]),
        (vec![0; 8192], &["zero bytes"]),
        (vec![0xa5; 5000], &["unknown format", "vmlinuz"]),
        (elf_for(183), &["ARM", "x86"]),
        (elf_for(243), &["another processor"]),
        (images::elf(false, None, 0), &["32-bit ELF", "PVH"]),
        (at(56, b"ARM\x64"), &["64-bit ARM"]),
        (at(0x24, b"\x18\x28\x6f\x01"), &["32-bit ARM"]),
        (at(0x8001, b"CD001"), &["ISO 9660", "disk"]),
        (at(0, b"QFI\xfb"), &["qcow2", "disk"]),
        (at(0, b"070701"), &["cpio", "--initrd"]),
        (at(0, b"!<arch>\n"), &["Debian package", "dpkg-deb"]),
        (at(510, b"\x55\xaa"), &["boot sector", "disk"]),
    ];
    let machine = Machine::new(4);
    for (file, words) in cases {
        refused(&machine, &machine.request(&file), words);
        assert!(sniff(&file).is_err());
    }
}

#[test]
fn truncated_at_any_length() {
    let machine = Machine::new(64);
    for kernel in [images::linux(), images::elf(true, Some(1), 10), images::multiboot_elf(false)] {
        for len in (0..kernel.len() - 15).step_by(7).chain([kernel.len() - 16]) {
            assert!(
                load(&machine.memory, &machine.request(&kernel[..len])).is_err(),
                "{len} of {}",
                kernel.len()
            );
        }
    }
    let kernel = images::linux();
    refused(&machine, &machine.request(&kernel[..2000]), &["truncated", "2000"]);
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let kernel = images::linux();
    for (megabytes, protocol) in [(1, Protocol::Auto), (8, Protocol::Linux64), (18, Protocol::Linux64)] {
        let machine = Machine::new(megabytes);
        let request = BootRequest { protocol, ..machine.request(&kernel) };
        refused(&machine, &request, &["too little memory", "the kernel", "--memory 32M"]);
    }
    let none = Machine::new(4);
    let request = BootRequest { memory_map: &[], ..none.request(&kernel) };
    refused(&none, &request, &["too little memory", "low memory"]);
}

#[test]
fn initrd_and_command_line() {
    let machine = Machine::new(64);
    let kernel = images::linux();
    let initrd = vec![1; 50 * MIB as usize];
    let request = BootRequest { initrd: Some(&initrd), ..machine.request(&kernel) };
    refused(&machine, &request, &["initrd of 50 MiB", "--memory"]);
    let long = "x".repeat(2048);
    let request = BootRequest { cmdline: &long, ..machine.request(&kernel) };
    refused(&machine, &request, &["2048", "2047", "--append"]);
    let request = BootRequest { cmdline: "a\0b", ..machine.request(&kernel) };
    refused(&machine, &request, &["zero byte at position 1"]);
    let many = vec![loader::MemoryRange::ram(0, 64 * MIB); 200];
    let request = BootRequest { memory_map: &many, ..machine.request(&kernel) };
    refused(&machine, &request, &["200 ranges", "128"]);
}

/// A segment whose virtual addresses go round the end of the address space holds no entry point below it.
#[test]
fn an_entry_point_behind_the_end_of_the_address_space() {
    let machine = Machine::new(64);
    let mut f = images::multiboot_elf(true);
    let phdr = 64;
    put(&mut f, 24, 0x10_u64.to_le_bytes());
    put(&mut f, phdr + 16, u64::MAX.to_le_bytes());
    put(&mut f, phdr + 40, 0x8000_0001_u64.to_le_bytes());
    let request = BootRequest { protocol: Protocol::Multiboot, ..machine.request(&f) };
    refused(&machine, &request, &["e_entry", "0x10"]);
}

#[test]
fn headers_that_lie() {
    let machine = Machine::new(64);
    let patch = |mut file: Vec<u8>, at: usize, value: &[u8]| {
        file[at..at + value.len()].copy_from_slice(value);
        file
    };
    let elf = || images::elf(true, None, 0);
    let phdr = 64;
    // Linked for another physical address, entry point and all.
    let moved = |to: u64| patch(patch(elf(), phdr + 24, &to.to_le_bytes()), 24, &to.to_le_bytes());
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (patch(images::linux(), 0x206, &[5, 2]), &["boot protocol version", "0x205"]),
        (patch(images::linux(), 0x211, &[0]), &["loadflags", "zImage"]),
        (patch(images::linux(), 0x1f4, &[0xff; 4]), &["truncated"]),
        (patch(images::linux(), 0x25c, &[1]), &["pref_address"]),
        (patch(elf(), phdr + 40, &u64::MAX.to_le_bytes()), &["p_memsz"]),
        (patch(moved(0x10000), phdr + 40, &0x6_0000u64.to_le_bytes()), &["load address", "0x60500"]),
        (moved(1 << 40), &["too little memory"]),
        (patch(elf(), phdr + 32, &u64::MAX.to_le_bytes()), &["p_filesz"]),
        (patch(elf(), phdr + 40, &(1u64 << 50).to_le_bytes()), &["too little memory"]),
        (patch(elf(), 24, &[0; 8]), &["e_entry"]),
        (patch(elf(), 56, &[0, 0]), &["e_phnum"]),
        (patch(images::multiboot_flat(), 0x20 + 16, &(9 * MIB as u32).to_le_bytes()), &["load_addr"]),
        (patch(images::multiboot_flat(), 0x20 + 20, &[1, 0, 0, 0]), &["load_end_addr"]),
    ];
    for (file, words) in cases {
        let auto = machine.request(&file);
        // The bzImage's own header is what is damaged, not its payload's.
        refused(&machine, &auto, words);
    }
    let mut video = images::multiboot_elf(false);
    put(&mut video, 0x404, 0x8003u32.to_le_bytes());
    put(&mut video, 0x408, 0u32.wrapping_sub(0x1bad_b002 + 0x8003).to_le_bytes());
    refused(&machine, &machine.request(&video), &["header flags", "0x8003"]);
}

#[test]
fn protocols_that_do_not_fit() {
    let machine = Machine::new(64);
    let (linux, plain, firmware) = (images::linux(), images::elf(true, None, 0), images::firmware());
    let cases: [(&[u8], Protocol, &[&str]); 6] = [
        (&linux, Protocol::Firmware, &["firmware image"]),
        (&linux, Protocol::Multiboot, &["Multiboot header"]),
        (&plain, Protocol::Pvh, &["PVH note", "auto"]),
        (&plain, Protocol::Uncompressed, &["only a bzImage"]),
        (&plain, Protocol::Linux32, &["linux32"]),
        (&firmware, Protocol::Linux64, &["a firmware image cannot be entered by the linux64 protocol"]),
    ];
    for (kernel, protocol, words) in cases {
        refused(&machine, &BootRequest { protocol, ..machine.request(kernel) }, words);
    }
    let no_64 = images::bzimage(b"x", 0);
    let request = BootRequest { protocol: Protocol::Linux64, ..machine.request(&no_64) };
    refused(&machine, &request, &["XLF_KERNEL_64"]);
    let large = vec![0xea; 0x2_0000];
    refused(&machine, &machine.request(&large), &["0x20000", "0xfffe0000"]);
}

#[test]
fn nothing_outside_the_memory_map_is_written() {
    // The machine has RAM up to 64 MiB but tells the guest of 18.
    let machine = Machine::new(64);
    let map = [loader::MemoryRange::ram(0, 0x9f000), loader::MemoryRange::ram(MIB, 17 * MIB)];
    let kernel = images::elf(true, None, 4 * MIB);
    let request = BootRequest { memory_map: &map, ..machine.request(&kernel) };
    refused(&machine, &request, &["too little memory"]);
    assert_eq!(machine.read(KERNEL_ADDRESS, 4), [0; 4], "refused before anything was stored");
}
