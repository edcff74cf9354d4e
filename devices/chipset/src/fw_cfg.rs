//! The firmware configuration device: named blobs for firmware and test programs
//! (its interface is QEMU's, `docs/specs/fw_cfg`).

use std::collections::BTreeMap;

use device_model::{Device, PortIo, PortRange};
use guest_memory::GuestMemory;
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

const NAME: &str = "fw-cfg";

/// Selectors with fixed meanings.
pub mod fw_cfg_key {
    /// `QEMU`, by which guests recognize the device.
    pub const SIGNATURE: u16 = 0x00;
    /// Interface version: bit 1 is DMA.
    pub const ID: u16 = 0x01;
    /// RAM size, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// Processors at boot, 16 bits.
    pub const CPU_COUNT: u16 = 0x05;
    /// Kernel, initial RAM disk and command line for firmware that loads them.
    pub const KERNEL_ADDRESS: u16 = 0x07;
    /// Kernel length, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Command line length.
    pub const COMMAND_LINE_SIZE: u16 = 0x14;
    /// Command line.
    pub const COMMAND_LINE: u16 = 0x15;
    /// Greatest number of processors, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The directory of files.
    pub const FILE_DIRECTORY: u16 = 0x19;
    /// First selector of a file.
    pub const FIRST_FILE: u16 = 0x20;
}

/// Version: the port interface and DMA.
const VERSION_WITH_DMA: u32 = 3;
/// What reading the DMA address gives, `QEMU CFG`.
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;
/// Most bytes in one DMA transfer.
const MAX_TRANSFER: u32 = 1 << 30;
/// Longest file name, with its terminating zero.
const NAME_LEN: usize = 56;
/// Most files.
const MAX_FILES: usize = 1024;

const CONTROL_ERROR: u32 = 1;
const CONTROL_READ: u32 = 2;
const CONTROL_SKIP: u32 = 4;
const CONTROL_SELECT: u32 = 8;
const CONTROL_WRITE: u32 = 16;

/// The saved state. The blobs are configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    selector: u16,
    cursor: u32,
    dma_high: u32,
}

/// A file could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The name is empty, too long, taken, or not ASCII.
    #[error("firmware file name {name:?} is refused; use a new ASCII name of at most 55 characters")]
    Name {
        /// The name.
        name: String,
    },
    /// There are too many files, or a file is too long.
    #[error("firmware file {name:?} of {size} bytes is refused; at most 1024 files below 4 GiB fit")]
    Full {
        /// The name.
        name: String,
        /// Its size.
        size: usize,
    },
}

/// Answers an item of 16 bits.
type Ask = Box<dyn Fn() -> u16 + Send>;

/// The device.
pub struct FwCfg {
    // Static configuration.
    items: BTreeMap<u16, Vec<u8>>,
    /// Names in the order of their selectors.
    files: Vec<String>,
    // Runtime glue.
    /// Items that a reset asks for anew.
    asked: Vec<(u16, Ask)>,
    memory: GuestMemory,
    // Volatile state.
    selector: u16,
    /// Bytes of the selected item that were read.
    cursor: u32,
    dma_high: u32,
}

impl FwCfg {
    /// Selector and data, DMA address.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0x510, 2, 0), PortRange::new(0x514, 8, 4)];

    /// A device with its signature, version and an empty directory. DMA goes to `memory`.
    pub fn new(memory: GuestMemory) -> Self {
        let mut this = FwCfg {
            items: BTreeMap::new(),
            files: Vec::new(),
            asked: Vec::new(),
            memory,
            selector: 0,
            cursor: 0,
            dma_high: 0,
        };
        this.set_bytes(fw_cfg_key::SIGNATURE, b"QEMU".to_vec());
        this.set_u32(fw_cfg_key::ID, VERSION_WITH_DMA);
        this.write_directory();
        this
    }

    /// Set an item's bytes; items are at most 4 GiB long, what is beyond is cut.
    pub fn set_bytes(&mut self, key: u16, mut bytes: Vec<u8>) {
        bytes.truncate(u32::MAX as usize);
        self.items.insert(key, bytes);
    }

    /// Set a 16-bit item.
    pub fn set_u16(&mut self, key: u16, value: u16) {
        self.set_bytes(key, value.to_le_bytes().to_vec());
    }

    /// Set a 16-bit item to what `ask` answers, now and at every reset. Called with the
    /// device locked.
    pub fn ask_u16(&mut self, key: u16, ask: impl Fn() -> u16 + Send + 'static) {
        self.set_u16(key, ask());
        self.asked.push((key, Box::new(ask)));
    }

    /// Set a 32-bit item.
    pub fn set_u32(&mut self, key: u16, value: u32) {
        self.set_bytes(key, value.to_le_bytes().to_vec());
    }

    /// Set a 64-bit item.
    pub fn set_u64(&mut self, key: u16, value: u64) {
        self.set_bytes(key, value.to_le_bytes().to_vec());
    }

    /// Add a file, such as `etc/e820`.
    ///
    /// # Errors
    /// [`FwCfgError`] says what is refused.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        let taken = self.files.iter().any(|f| f == name);
        if name.is_empty() || name.len() >= NAME_LEN || !name.is_ascii() || taken {
            return Err(FwCfgError::Name { name: name.to_string() });
        }
        if self.files.len() >= MAX_FILES || u32::try_from(bytes.len()).is_err() {
            return Err(FwCfgError::Full { name: name.to_string(), size: bytes.len() });
        }
        let key = fw_cfg_key::FIRST_FILE + self.files.len() as u16;
        self.files.push(name.to_string());
        self.set_bytes(key, bytes);
        self.write_directory();
        Ok(())
    }

    fn write_directory(&mut self) {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        let mut entries: Vec<_> = (fw_cfg_key::FIRST_FILE..).zip(&self.files).collect();
        entries.sort_by_key(|&(_, name)| name);
        for (key, name) in entries {
            let size = self.items.get(&key).map_or(0, Vec::len) as u32;
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut padded = [0; NAME_LEN];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(padded);
        }
        self.items.insert(fw_cfg_key::FILE_DIRECTORY, directory);
    }

    fn select(&mut self, key: u16) {
        self.selector = key;
        self.cursor = 0;
    }

    /// The selected item from the cursor on.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.selector).map_or(&[][..], Vec::as_slice);
        item.get(self.cursor as usize..).unwrap_or(&[])
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.rest().first().copied();
        // Reading past the end gives zeroes and moves nothing.
        self.cursor = self.cursor.saturating_add(byte.is_some().into());
        byte.unwrap_or(0)
    }

    /// Carry out the transfer whose description lies at `address`.
    fn transfer(&mut self, address: u64) {
        let mut description = [0u8; 16];
        if self.memory.load(address, &mut description).is_err() {
            return;
        }
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| description[at + i]));
        let (control, length) = (word(0), word(4));
        let target = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = match control {
            _ if length > MAX_TRANSFER => false,
            c if c & CONTROL_READ != 0 => self.read_to(target, length),
            // No item can be written.
            c if c & CONTROL_WRITE != 0 => false,
            c if c & CONTROL_SKIP != 0 => {
                self.advance(length);
                true
            }
            _ => true,
        };
        let answer = if done { 0 } else { CONTROL_ERROR };
        // Where the description is in read-only memory the answer is lost.
        self.store(address, &answer.to_be_bytes());
    }

    fn advance(&mut self, length: u32) {
        let left = self.rest().len() as u32;
        self.cursor = self.cursor.saturating_add(length.min(left));
    }

    /// Read to guest memory: the item, then zeroes. False where there is no RAM.
    fn read_to(&mut self, target: u64, length: u32) -> bool {
        const ZEROES: [u8; 4096] = [0; 4096];
        let item = self.rest();
        let n = item.len().min(length as usize);
        if !self.store(target, &item[..n]) {
            return false;
        }
        let end = target.saturating_add(length.into());
        let mut at = target.saturating_add(n as u64);
        while at < end {
            let n = (end - at).min(ZEROES.len() as u64);
            if !self.store(at, &ZEROES[..n as usize]) {
                return false;
            }
            at += n;
        }
        self.advance(length);
        true
    }

    /// Write to RAM by guest-physical address; false where there is none.
    fn store(&self, mut address: u64, mut from: &[u8]) -> bool {
        while !from.is_empty() {
            let Some(hit) = self.memory.translate(address).filter(|hit| hit.writable) else { return false };
            let n = hit.len.min(from.len() as u64) as usize;
            self.memory.write_bytes(hit.offset, &from[..n]);
            address = address.saturating_add(n as u64);
            from = &from[n..];
        }
        true
    }
}

impl Device for FwCfg {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.select(fw_cfg_key::SIGNATURE);
        self.dma_high = 0;
        let now: Vec<_> = self.asked.iter().map(|(key, ask)| (*key, ask())).collect();
        now.into_iter().for_each(|(key, value)| self.set_u16(key, value));
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for FwCfg {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        match (offset, size) {
            (1, 1) => self.read_data().into(),
            // Big-endian, so that the bytes read as text.
            (4, 4) => ((DMA_SIGNATURE >> 32) as u32).swap_bytes(),
            (8, 4) => (DMA_SIGNATURE as u32).swap_bytes(),
            _ => u32::MAX,
        }
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (0, 2) => self.select(value as u16),
            (4, 4) => self.dma_high = value.swap_bytes(),
            (8, 4) => {
                let high = std::mem::take(&mut self.dma_high);
                self.transfer(u64::from(high) << 32 | u64::from(value.swap_bytes()));
            }
            _ => {}
        }
    }
}

impl Saved for FwCfg {
    type State = FwCfgState;
    const VERSION: u16 = 1;

    fn save(&self) -> FwCfgState {
        let FwCfg { items: _, files: _, asked: _, memory: _, selector, cursor, dma_high } = self;
        FwCfgState { selector: *selector, cursor: *cursor, dma_high: *dma_high }
    }

    fn restore(&mut self, state: &FwCfgState) -> Result<(), StateError> {
        let FwCfgState { selector, cursor, dma_high } = state;
        let len = self.items.get(selector).map_or(0, Vec::len);
        StateError::check(*cursor as usize <= len, NAME, "cursor", *cursor, "the selected item's length")?;
        self.selector = *selector;
        self.cursor = *cursor;
        self.dma_high = *dma_high;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEMORY: u64 = 1 << 20;

    fn device() -> FwCfg {
        let mut d = FwCfg::new(GuestMemory::flat(MEMORY).unwrap());
        d.set_u16(fw_cfg_key::CPU_COUNT, 4);
        d.add_file("opt/b", b"second".to_vec()).unwrap();
        d.add_file("etc/a", b"first".to_vec()).unwrap();
        d
    }

    fn read(d: &mut FwCfg, key: u16, n: usize) -> Vec<u8> {
        d.port_write(0, 2, key.into());
        (0..n).map(|_| d.port_read(1, 1) as u8).collect()
    }

    /// Put a description at 0x100 and start it; answers the control word left there.
    fn dma(d: &mut FwCfg, control: u32, length: u32, target: u64) -> u32 {
        let at = d.memory.translate(0x100).unwrap().offset;
        let mut b = control.to_be_bytes().to_vec();
        b.extend(length.to_be_bytes());
        b.extend(target.to_be_bytes());
        d.memory.write_bytes(at, &b);
        d.port_write(4, 4, 0);
        d.port_write(8, 4, 0x100u32.swap_bytes());
        let mut answer = [0; 4];
        d.memory.read_bytes(at, &mut answer);
        u32::from_be_bytes(answer)
    }

    fn memory(d: &FwCfg, at: u64, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        d.memory.read_bytes(d.memory.translate(at).unwrap().offset, &mut b);
        b
    }

    #[test]
    fn items_and_directory() {
        let mut d = device();
        assert_eq!(read(&mut d, fw_cfg_key::SIGNATURE, 6), *b"QEMU\0\0");
        assert_eq!(read(&mut d, fw_cfg_key::ID, 4), [3, 0, 0, 0]);
        assert_eq!(read(&mut d, fw_cfg_key::CPU_COUNT, 2), [4, 0]);
        assert_eq!(read(&mut d, 0x7777, 1), [0]);
        let directory = read(&mut d, fw_cfg_key::FILE_DIRECTORY, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        // Sorted by name; selectors in the order of addition.
        assert_eq!(directory[4..18], *b"\0\0\0\x05\0\x21\0\0etc/a\0");
        assert_eq!(directory[68..82], *b"\0\0\0\x06\0\x20\0\0opt/b\0");
        assert_eq!(read(&mut d, 0x21, 6), *b"first\0");
        assert!(d.add_file("etc/a", vec![]).is_err());
        assert!(d.add_file(&"x".repeat(56), vec![]).is_err());
        assert_eq!((d.port_read(4, 4).to_le_bytes(), d.port_read(8, 4).to_le_bytes()), (*b"QEMU", *b" CFG"));
    }

    #[test]
    fn what_changes_is_asked_for_at_each_reset() {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicU16::new(2));
        let mut d = device();
        let asked = count.clone();
        d.ask_u16(fw_cfg_key::CPU_COUNT, move || asked.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(read(&mut d, fw_cfg_key::CPU_COUNT, 2), [2, 0]);
        count.store(0x103, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(read(&mut d, fw_cfg_key::CPU_COUNT, 2), [2, 0]);
        d.reset();
        assert_eq!(read(&mut d, fw_cfg_key::CPU_COUNT, 2), [3, 1]);
    }

    #[test]
    fn transfers() {
        let mut d = device();
        // (control, length, target, answer, bytes at 0x2000)
        for (control, length, target, answer, bytes) in [
            (0x0020_000au32, 6, 0x2000u64, 0, *b"second"),
            (0x0020_000c, 3, 0, 0, *b"second"),
            (0x0000_0002, 6, 0x2000, 0, *b"ond\0\0\0"),
            (0x0021_0008, 0, 0, 0, *b"ond\0\0\0"),
            (0x0000_0002, 2, 0x2000, 0, *b"fid\0\0\0"),
            (0x0021_0018, 2, 0x2000, 1, *b"fid\0\0\0"),
            (0x0021_000a, 5, MEMORY - 2, 1, *b"fid\0\0\0"),
            (0x0021_000a, 5, u64::MAX - 1, 1, *b"fid\0\0\0"),
            (0x0021_000a, u32::MAX, 0x2000, 1, *b"fid\0\0\0"),
        ] {
            assert_eq!(dma(&mut d, control, length, target), answer, "control {control:#x}");
            let seen = memory(&d, 0x2000, 6);
            assert_eq!(seen, bytes, "control {control:#x}");
        }
    }

    #[test]
    fn state_goes_round_and_is_checked() {
        let mut d = device();
        read(&mut d, 0x21, 2);
        let state = d.save();
        let mut other = device();
        other.restore(&state).unwrap();
        assert_eq!(other.port_read(1, 1), u32::from(b'r'));
        assert!(other.restore(&FwCfgState { cursor: 6, ..state }).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_accesses(ops in proptest::collection::vec((0u8..3, any::<u16>(), any::<u32>()), 1..100)) {
            let mut d = device();
            for (what, offset, value) in ops {
                let size = 1 << (value >> 30).min(2);
                match what {
                    0 => d.port_write(offset % 13, size, value),
                    1 => _ = d.port_read(offset % 13, size),
                    _ => _ = dma(&mut d, value, u32::from(offset), (u64::from(value) << 8) & (2 * MEMORY - 1)),
                }
            }
            let state = d.save();
            prop_assert!(d.restore(&state).is_ok());
        }
    }
}
