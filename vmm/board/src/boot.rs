//! From images on the host to a bootstrap processor ready to run.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use guest_memory::GuestMemory;
use loader::{BootRequest, BootState, MemoryRange, Protocol};

use crate::memory;
use crate::spec::{BootSpec, bytes_text};

/// The largest image read: far above every kernel and initramfs in use, below
/// what would press the host for memory.
pub const MAX_IMAGE: u64 = 2 << 30;
/// The largest firmware image: PC firmware is 64 KiB to 16 MiB.
pub const MAX_FIRMWARE: u64 = 16 << 20;

/// End of conventional memory: the extended BIOS data area and device memory follow.
const LOW_END: u64 = 0x9_fc00;
/// Where memory behind the legacy hole begins.
const HIGH_START: u64 = 0x10_0000;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The host refuses it.
    #[error("cannot read {what} {path}: {source}; {remedy}", path = .path.display(), remedy = remedy(source))]
    Read {
        /// `kernel`, `initrd`, `firmware`.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// It is not a regular file.
    #[error("{what} {path} is not a regular file; give the path of an image", path = .path.display())]
    NotAFile {
        /// `kernel`, `initrd`, `firmware`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// It is empty.
    #[error("{what} {path} has zero bytes; copy or download it again", path = .path.display())]
    Empty {
        /// `kernel`, `initrd`, `firmware`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// It is larger than any real image.
    #[error("{what} {path} has {size} bytes, more than {limit}; is it the right file?", path = .path.display(), limit = bytes_text(*.limit))]
    TooLarge {
        /// `kernel`, `initrd`, `firmware`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The most there may be.
        limit: u64,
    },
}

fn remedy(e: &std::io::Error) -> &'static str {
    match e.kind() {
        std::io::ErrorKind::NotFound => "check the path",
        std::io::ErrorKind::PermissionDenied => "make it readable for this user (chmod +r) or use a copy",
        _ => "check the file and the host's disk",
    }
}

/// An image file, opened once; its bytes are read anew for each power-on.
#[derive(Debug)]
pub(crate) struct Image {
    what: &'static str,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Image {
    pub(crate) fn open(what: &'static str, path: &Path, limit: u64) -> Result<Self, ImageError> {
        let fail = |source| ImageError::Read { what, path: path.to_path_buf(), source };
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let path = path.to_path_buf();
        match meta.len() {
            _ if !meta.is_file() => Err(ImageError::NotAFile { what, path }),
            0 => Err(ImageError::Empty { what, path }),
            size if size > limit => Err(ImageError::TooLarge { what, path, size, limit }),
            size => Ok(Image { what, path, file, size }),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// At most the size it had when opened: a file that grows is no way around the limit.
    pub(crate) fn read(&self) -> Result<Vec<u8>, ImageError> {
        let fail = |source| ImageError::Read { what: self.what, path: self.path.clone(), source };
        let mut bytes = Vec::with_capacity(self.size as usize);
        (&self.file).rewind().map_err(fail)?;
        (&self.file).take(self.size).read_to_end(&mut bytes).map_err(fail)?;
        Ok(bytes)
    }
}

/// The opened images of a machine.
#[derive(Debug, Default)]
pub(crate) struct Images {
    kernel: Option<Image>,
    initrd: Option<Image>,
    firmware: Option<Image>,
    cmdline: String,
    protocol: Protocol,
}

/// Why a machine cannot be brought to its start state.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// An image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image is not what it should be.
    #[error(transparent)]
    Load(#[from] loader::LoadError),
    /// Guest memory has no place for something.
    #[error(transparent)]
    Memory(#[from] guest_memory::MemoryError),
    /// There is nothing to start.
    #[error("nothing to start: give --kernel or --firmware, or no image at all for the built-in guest")]
    Nothing,
}

impl Images {
    pub(crate) fn open(spec: &BootSpec) -> Result<Self, ImageError> {
        let open = |what, path: &Option<PathBuf>, limit| {
            path.as_deref().map(|p| Image::open(what, p, limit)).transpose()
        };
        Ok(Images {
            kernel: open("kernel", &spec.kernel, MAX_IMAGE)?,
            initrd: open("initrd", &spec.initrd, MAX_IMAGE)?,
            firmware: open("firmware", &spec.firmware, MAX_FIRMWARE)?,
            cmdline: spec.cmdline.clone(),
            protocol: spec.protocol,
        })
    }

    pub(crate) fn firmware_size(&self) -> Option<u64> {
        self.firmware.as_ref().map(Image::size)
    }

    /// Put the images into memory. The machine must have been given `map`.
    pub(crate) fn load(
        &self,
        guest: &GuestMemory,
        map: &[MemoryRange],
        rsdp: u64,
        signature: u32,
    ) -> Result<BootState, BootError> {
        let (image, protocol) = match (&self.firmware, &self.kernel) {
            (Some(firmware), _) => (firmware, Protocol::Firmware),
            (None, Some(kernel)) => (kernel, self.protocol),
            (None, None) => return Err(BootError::Nothing),
        };
        let initrd = self.initrd.as_ref().map(Image::read).transpose()?;
        let request = BootRequest {
            kernel: &image.read()?,
            initrd: initrd.as_deref(),
            cmdline: &self.cmdline,
            memory_map: map,
            rsdp: Some(rsdp),
            protocol,
            cpu_signature: signature,
        };
        Ok(loader::load(guest, &request)?)
    }
}

/// The memory map the guest is told (ACPI 6.5, chapter 15).
pub(crate) fn memory_map(ram: u64, reserved: &[(u64, u64)]) -> Vec<MemoryRange> {
    let (below, above) = memory::split(ram);
    let mut map = vec![
        MemoryRange::ram(0, LOW_END),
        MemoryRange::reserved(LOW_END, HIGH_START - LOW_END),
        MemoryRange::ram(HIGH_START, below - HIGH_START),
    ];
    map.extend(reserved.iter().map(|(start, size)| MemoryRange::reserved(*start, *size)));
    if above > 0 {
        map.push(MemoryRange::ram(memory::HIGH_RAM_START, above));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_are_refused_with_cause_and_remedy() {
        let dir = std::env::temp_dir().join(format!("strata-board-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let empty = dir.join("empty");
        std::fs::write(&empty, b"").unwrap();
        let big = dir.join("big");
        std::fs::write(&big, vec![0; 33]).unwrap();
        for (path, expect) in [
            (dir.join("missing"), "check the path"),
            (dir.clone(), "not a regular file"),
            (empty, "zero bytes"),
            (big, "33 bytes, more than 32"),
        ] {
            let text = Image::open("kernel", &path, 32).unwrap_err().to_string();
            assert!(text.contains(expect) && text.contains("kernel"), "{text}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_map_told_covers_all_memory_once() {
        for ram in [2 << 20, 512 << 20, 5 << 30] {
            let map = memory_map(ram, &[(0xe000_0000, 0x1000_0000)]);
            let usable: u64 = map.iter().filter(|r| r.kind == MemoryRange::RAM).map(|r| r.size).sum();
            assert_eq!(usable, ram - (HIGH_START - LOW_END));
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].size <= pair[1].start, "{pair:?}");
            }
        }
    }
}
