//! Images made by hand, in the parts that matter; between them the file has holes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use disk::ImageFormat;

/// Data of the images: one block of it, the rest are zeroes.
pub const FILL: u8 = 0xaa;

/// An image.
#[derive(Clone)]
pub struct Sample {
    pub format: ImageFormat,
    /// Where bytes are, and those.
    pub parts: Vec<(u64, Vec<u8>)>,
    /// Bytes of the file.
    pub len: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the block with data is on the disk, and its bytes.
    pub data: (u64, usize),
    /// Parts whose checksum is at 4.
    sealed: usize,
}

impl Sample {
    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.1.len()).sum()
    }

    /// Change a byte of the parts, counted through all of them.
    pub fn change(&mut self, mut at: usize, byte: u8) {
        at %= self.bytes();
        for (_, part) in &mut self.parts {
            match part.get_mut(at) {
                Some(place) => return *place = byte,
                None => at -= part.len(),
            }
        }
    }

    /// Put bytes at a place of the file, which is in a part.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        let part = self.parts.iter_mut().find(|p| (p.0..p.0 + p.1.len() as u64).contains(&at));
        let (start, part) = part.expect("a place of a part");
        let from = (at - *start) as usize;
        part[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// Make checksums right again, so that what is behind them is looked at.
    pub fn seal(&mut self) {
        for (_, part) in self.parts.iter_mut().take(self.sealed) {
            part[4..8].fill(0);
            let sum = crc32c::crc32c(part);
            part[4..8].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Write it to an empty file.
    pub fn write(&self, file: &File) {
        file.set_len(self.len).expect("room");
        for (at, bytes) in &self.parts {
            file.write_all_at(bytes, *at).expect("room");
        }
    }
}

fn block(len: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, field) in fields {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

fn word(value: u32) -> [u8; 4] {
    value.to_le_bytes()
}

fn long(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

/// 64 KiB in blocks of 4 KiB, of which the third has data.
pub fn vdi() -> Sample {
    let header = [
        (0x40, &word(0xbeda_107f)[..]),
        (0x44, &word(0x1_0001)),
        (0x48, &word(0x180)),
        (0x4c, &word(1)),
        (0x154, &word(0x200)),
        (0x158, &word(0x400)),
        (0x168, &word(512)),
        (0x170, &long(64 << 10)),
        (0x178, &word(4096)),
        (0x180, &word(16)),
        (0x184, &word(1)),
    ];
    let mut map = vec![0xff; 64];
    map[8..12].fill(0);
    let parts = vec![(0, block(0x1c8, &header)), (0x200, map), (0x400, vec![FILL; 4096])];
    let (len, size, data) = (0x1400, 64 << 10, (8192, 4096));
    Sample { format: ImageFormat::Vdi, parts, len, size, data, sealed: 0 }
}

fn vmdk_header(flags: u32, directory: u64) -> Vec<u8> {
    let fields = [
        (0, &b"KDMV"[..]),
        (4, &word(1)),
        (8, &word(flags)),
        (12, &long(128)),
        (20, &long(8)),
        (28, &long(1)),
        (36, &long(1)),
        (44, &word(4)),
        (56, &long(directory)),
        (64, &long(8)),
        (73, b"\n \r\n"),
        (77, &[u8::from(flags & 1 << 16 != 0)]),
    ];
    block(512, &fields)
}

const DESCRIPTOR: &[u8] =
    b"# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"x\"\nRW 128 SPARSE \"x.vmdk\"\n";

/// 64 KiB in grains of 4 KiB, tables of 4; the third grain has data.
pub fn vmdk() -> Sample {
    let parts = vec![
        (0, vmdk_header(3, 2)),
        (512, block(512, &[(0, DESCRIPTOR)])),
        (1024, block(16, &[(0, &word(3))])),
        (1536, block(16, &[(8, &word(4))])),
        (2048, vec![FILL; 4096]),
    ];
    let (len, size, data) = (2048 + 4096, 64 << 10, (8192, 4096));
    Sample { format: ImageFormat::Vmdk, parts, len, size, data, sealed: 0 }
}

/// The same, its grain packed and its header told again at the end.
pub fn packed_vmdk() -> Sample {
    // A stored block of deflate in zlib's frame: 4096 bytes of FILL.
    let mut packed = vec![0x78, 0x01, 0x01, 0x00, 0x10, 0xff, 0xef];
    packed.extend([FILL; 4096]);
    let (mut a, mut b) = (1u32, 0u32);
    for _ in 0..4096 {
        a = (a + u32::from(FILL)) % 65521;
        b = (b + a) % 65521;
    }
    packed.extend((b << 16 | a).to_be_bytes());
    let grain = [&long(16)[..], &word(packed.len() as u32), &packed].concat();
    let parts = vec![
        (0, vmdk_header(3 | 3 << 16, u64::MAX)),
        (512, block(512, &[(0, DESCRIPTOR)])),
        (1024, block(16, &[(0, &word(3))])),
        (1536, block(16, &[(8, &word(4))])),
        (2048, grain),
        (8192 - 1024, vmdk_header(3 | 3 << 16, 2)),
    ];
    let (len, size, data) = (8192, 64 << 10, (8192, 4096));
    Sample { format: ImageFormat::Vmdk, parts, len, size, data, sealed: 0 }
}

const BAT_REGION: [u8; 16] =
    [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08];
const METADATA_REGION: [u8; 16] =
    [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];
const FILE_PARAMETERS: [u8; 16] =
    [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b];
const DISK_SIZE: [u8; 16] =
    [0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8];
const LOGICAL_SECTOR: [u8; 16] =
    [0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f];

/// 3 MiB in blocks of 1 MiB, of which the second has data.
pub fn vhdx() -> Sample {
    const MIB: u64 = 1 << 20;
    let header = block(4096, &[(0, b"head"), (8, &long(7)), (66, &[1, 0])]);
    let region = |at: usize, guid: [u8; 16], offset: u64| {
        vec![(at, guid.to_vec()), (at + 16, long(offset).to_vec()), (at + 24, word(1 << 20).to_vec())]
    };
    let entries = [region(16, METADATA_REGION, MIB), region(48, BAT_REGION, 2 * MIB)].concat();
    let mut regions = block(64 << 10, &[(0, b"regi"), (8, &word(2))]);
    entries.iter().for_each(|(at, bytes)| regions[*at..at + bytes.len()].copy_from_slice(bytes));
    let mut metadata = block(96, &[(0, b"metadata"), (10, &[3, 0])]);
    for (n, (guid, len)) in
        [(FILE_PARAMETERS, 8), (DISK_SIZE, 8), (LOGICAL_SECTOR, 4)].into_iter().enumerate()
    {
        let fields: [&[u8]; 4] = [&guid, &word((64 << 10) + n as u32 * 8), &word(len), &[0; 8]];
        let at = 32 + n * 32;
        metadata.truncate(at);
        metadata.extend(fields.concat());
    }
    let items = [word(1 << 20), word(0), word(3 << 20), word(0), word(512)].concat();
    let parts = vec![
        (64 << 10, header),
        (192 << 10, regions),
        (0, b"vhdxfile".to_vec()),
        (MIB, metadata),
        (MIB + (64 << 10), items),
        (2 * MIB, [long(0), long((3 * MIB) | 6), long(2)].concat()),
        (3 * MIB, vec![FILL; 4096]),
    ];
    let (len, size, data) = (4 * MIB, 3 * MIB, (MIB, 4096));
    let mut sample = Sample { format: ImageFormat::Vhdx, parts, len, size, data, sealed: 2 };
    sample.seal();
    sample
}

/// One of each kind.
pub fn samples() -> [Sample; 4] {
    [vdi(), vmdk(), packed_vmdk(), vhdx()]
}
