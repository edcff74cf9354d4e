//! Small kernel images made from scratch, for the tests of every loader.

#![allow(dead_code, reason = "each test binary uses some of these")]

use guest_memory::{GuestMemory, MemoryMap, Region};
use loader::{BootRequest, MemoryRange, Protocol};

pub const MIB: u64 = 1 << 20;
/// Where the test kernels are linked.
pub const KERNEL_ADDRESS: u64 = 16 * MIB;
pub const CODE: &[u8] = b"\x90\x90\xf4 a kernel's code";

pub fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// An ELF file: 64-bit or 32-bit, one segment at [`KERNEL_ADDRESS`] with `bss`
/// bytes beyond its code, and a PVH note if asked for.
pub fn elf(long: bool, pvh: Option<u32>, bss: u64) -> Vec<u8> {
    let (header, phdr) = if long { (64, 56) } else { (52, 32) };
    let mut f = vec![0u8; 0x1000];
    put(&mut f, 0, *b"\x7fELF");
    f[4] = if long { 2 } else { 1 };
    f[5] = 1;
    f[6] = 1;
    put(&mut f, 16, 2u16.to_le_bytes());
    put(&mut f, 18, (if long { 62u16 } else { 3 }).to_le_bytes());
    let segments = 1 + u16::from(pvh.is_some());
    if long {
        put(&mut f, 24, KERNEL_ADDRESS.to_le_bytes());
        put(&mut f, 32, 64u64.to_le_bytes());
        put(&mut f, 54, 56u16.to_le_bytes());
        put(&mut f, 56, segments.to_le_bytes());
    } else {
        put(&mut f, 24, (KERNEL_ADDRESS as u32).to_le_bytes());
        put(&mut f, 28, 52u32.to_le_bytes());
        put(&mut f, 42, 32u16.to_le_bytes());
        put(&mut f, 44, segments.to_le_bytes());
    }
    let mut segment = |index: usize, kind: u32, offset: u64, physical: u64, file: u64, memory: u64| {
        let at = header + index * phdr;
        put(&mut f, at, kind.to_le_bytes());
        let virtual_address = physical.wrapping_add(0xffff_ffff_8000_0000);
        let values = [offset, virtual_address, physical, file, memory];
        for (i, v) in values.into_iter().enumerate() {
            if long {
                put(&mut f, at + 8 + i * 8, v.to_le_bytes());
            } else {
                put(&mut f, at + 4 + i * 4, (v as u32).to_le_bytes());
            }
        }
    };
    let code_len = CODE.len() as u64;
    segment(0, 1, 0x1000, KERNEL_ADDRESS, code_len, code_len + bss);
    if let Some(entry) = pvh {
        segment(1, 4, 0x800, 0, 20, 20);
        put(&mut f, 0x800, 4u32.to_le_bytes());
        put(&mut f, 0x804, 4u32.to_le_bytes());
        put(&mut f, 0x808, 18u32.to_le_bytes());
        put(&mut f, 0x80c, *b"Xen\0");
        put(&mut f, 0x810, entry.to_le_bytes());
    }
    f.extend_from_slice(CODE);
    f
}

/// An LZ4 legacy frame with the size appended, as the kernel build makes it.
pub fn lz4_payload(data: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(data);
    let mut out = b"\x02\x21\x4c\x18".to_vec();
    out.extend((block.len() as u32).to_le_bytes());
    out.extend(block);
    out.extend((data.len() as u32).to_le_bytes());
    out
}

/// A bzImage of protocol 2.15 with this payload; `xloadflags` bit 0 is the 64-bit entry.
pub fn bzimage(payload: &[u8], xloadflags: u16) -> Vec<u8> {
    const SETUP: usize = 1024;
    const PAYLOAD_AT: usize = 0x400;
    let mut code = vec![0xcc; PAYLOAD_AT];
    code.extend_from_slice(payload);
    code.resize(code.len().next_multiple_of(16), 0);
    let mut f = vec![0u8; SETUP];
    f[0x1f1] = 1;
    put(&mut f, 0x1f4, (code.len() as u32 / 16).to_le_bytes());
    put(&mut f, 0x1fe, 0xaa55u16.to_le_bytes());
    put(&mut f, 0x200, [0xeb, 0x6a]);
    put(&mut f, 0x202, *b"HdrS");
    put(&mut f, 0x206, 0x20fu16.to_le_bytes());
    f[0x211] = 1;
    put(&mut f, 0x22c, 0x7fff_ffffu32.to_le_bytes());
    put(&mut f, 0x230, 0x20_0000u32.to_le_bytes());
    f[0x234] = 1;
    f[0x235] = 21;
    put(&mut f, 0x236, xloadflags.to_le_bytes());
    put(&mut f, 0x238, 2047u32.to_le_bytes());
    put(&mut f, 0x248, (PAYLOAD_AT as u32).to_le_bytes());
    put(&mut f, 0x24c, (payload.len() as u32).to_le_bytes());
    put(&mut f, 0x258, KERNEL_ADDRESS.to_le_bytes());
    put(&mut f, 0x260, (4 * MIB as u32).to_le_bytes());
    f.extend(code);
    f
}

/// A complete amd64 bzImage.
pub fn linux() -> Vec<u8> {
    bzimage(&lz4_payload(&elf(true, Some(KERNEL_ADDRESS as u32 + 2), 0x1000)), 1)
}

/// A flat Multiboot kernel at 1 MiB by the header's address fields.
pub fn multiboot_flat() -> Vec<u8> {
    let mut f = vec![0x90u8; 0x100];
    let flags = 1u32 << 16 | 3;
    let base = MIB as u32;
    let fields = [
        0x1bad_b002,
        flags,
        0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags),
        base + 0x20,
        base,
        base + 0x100,
        base + 0x3000,
        base + 0x40,
    ];
    for (i, v) in fields.into_iter().enumerate() {
        put(&mut f, 0x20 + i * 4, v.to_le_bytes());
    }
    f
}

/// An ELF with a Multiboot header in its unused space.
pub fn multiboot_elf(long: bool) -> Vec<u8> {
    let mut f = elf(long, None, 0x2000);
    put(&mut f, 0x400, 0x1bad_b002u32.to_le_bytes());
    put(&mut f, 0x404, 3u32.to_le_bytes());
    put(&mut f, 0x408, 0u32.wrapping_sub(0x1bad_b002 + 3).to_le_bytes());
    f
}

/// 64 KiB of firmware with a far jump at the reset vector.
pub fn firmware() -> Vec<u8> {
    let mut f: Vec<u8> = (0..0x1_0000u32).map(|i| (i >> 8) as u8).collect();
    put(&mut f, 0xfff0, [0xea, 0x5b, 0xe0, 0x00, 0xf0]);
    f
}

/// A PC's memory: RAM below 640 KiB and from 1 MiB, a firmware region.
pub struct Machine {
    pub memory: GuestMemory,
    pub map: Vec<MemoryRange>,
}

impl Machine {
    pub fn new(megabytes: u64) -> Self {
        let map = vec![
            MemoryRange::ram(0, 0x9fc00),
            MemoryRange::reserved(0x9fc00, 0x10_0000 - 0x9fc00),
            MemoryRange::ram(MIB, megabytes.max(2) * MIB - MIB),
        ];
        let rom = 0x1_0000;
        let regions = [
            Region::ram(0, 0xa0000),
            Region::rom(0x10_0000 - rom, rom),
            Region::ram(MIB, megabytes.max(2) * MIB - MIB),
            Region::rom((1 << 32) - rom, rom),
        ];
        Machine { memory: GuestMemory::new(MemoryMap::new(regions).unwrap()).unwrap(), map }
    }

    pub fn request<'a>(&'a self, kernel: &'a [u8]) -> BootRequest<'a> {
        BootRequest {
            kernel,
            initrd: None,
            cmdline: "console=ttyS0",
            memory_map: &self.map,
            rsdp: Some(0xe_0000),
            protocol: Protocol::Auto,
            cpu_signature: 0xb0681,
        }
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.load(address, &mut bytes).unwrap();
        bytes
    }

    pub fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.read(address, 4).try_into().unwrap())
    }

    pub fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address, 8).try_into().unwrap())
    }
}
