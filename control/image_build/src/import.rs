//! Images of files that others made.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use disk::{Access, ImageFormat, ImageLock};
use disk_qcow2::Backing;
use guest_image::Progress;
use image_convert::{Conversion, ConvertError, Source, Target};
use image_store::{DiskFormat, FirstBoot, Image, ImageName, NewImage, Store, thin_copy};

use crate::error::{BuildError, failed};
use crate::sniff::{DiskKind, sniff};

/// What to take in.
#[derive(Debug, Clone)]
pub struct Import {
    /// Name of the image.
    pub name: ImageName,
    /// Disk: of any format that is read.
    pub disk: PathBuf,
    /// Kernel to boot directly. Absent: the disk's own, which needs firmware.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for it.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// How identity reaches the guest.
    pub first_boot: FirstBoot,
    /// Put it in the place of an image of that name.
    pub replace: bool,
}

/// Take a disk into the store, as a copy that skips what it can.
///
/// # Errors
/// When it is no disk that machines here can have, somebody writes to it, or the host
/// refuses.
pub fn import(store: &Store, wanted: &Import, progress: &dyn Progress) -> Result<Image, BuildError> {
    // Of a disk that changes meanwhile the copy would be none it ever was.
    let lock = ImageLock::take(&wanted.disk, Access::Read).map_err(ConvertError::from)?;
    let found = examine(wanted)?;
    if !wanted.replace && store.find(&wanted.name).is_ok() {
        return Err(image_store::StoreError::Exists(wanted.name.clone()).into());
    }
    for part in [&wanted.kernel, &wanted.initrd].into_iter().flatten() {
        fs::File::open(part).map_err(failed("read", part))?;
    }
    let intake = store.begin()?;
    progress.phase(&format!("copying {}", wanted.disk.display()));
    let disk = intake.directory().join("disk");
    let (format, virtual_size) = match found.keep {
        Some(format) => {
            thin_copy(&wanted.disk, &disk, None).map_err(failed("copy", &wanted.disk))?;
            (format, found.virtual_size)
        }
        // Machines write to raw and plain qcow2 disks only.
        None => {
            let from = Source {
                path: wanted.disk.clone(),
                format: Some(found.format),
                backing: Backing::Deny,
                snapshot: None,
            };
            let conversion = Conversion { from, to: disk.clone(), target: Target::Raw, replace: false };
            let size = image_convert::convert(&conversion, |done, total| {
                progress.bytes(done, total);
                ControlFlow::Continue(())
            })?;
            (DiskFormat::Raw, size)
        }
    };
    drop(lock);
    progress.phase("storing the image");
    let new = NewImage {
        name: wanted.name.clone(),
        description: format!("{} disk, imported", found.format.name()),
        kernel: wanted.kernel.clone(),
        initrd: wanted.initrd.clone(),
        disk,
        format,
        virtual_size,
        cmdline: wanted.cmdline.clone(),
        first_boot: wanted.first_boot,
        source: wanted.disk.display().to_string(),
    };
    Ok(store.commit(&intake, &new, wanted.replace)?)
}

/// A disk that can be taken in.
struct Found {
    format: ImageFormat,
    /// What it is in the store, if it goes there as it is.
    keep: Option<DiskFormat>,
    virtual_size: u64,
}

fn examine(wanted: &Import) -> Result<Found, BuildError> {
    let path = &wanted.disk;
    let length = fs::metadata(path).map_err(failed("read", path))?.len();
    let refuse = |what: String, remedy| Err(BuildError::Disk { path: path.clone(), what, remedy });
    match sniff(path).map_err(failed("read", path))? {
        DiskKind::Raw | DiskKind::Unknown if length % 512 != 0 => refuse(
            format!("has {length} bytes, which is no whole number of sectors"),
            "see whether it was downloaded whole",
        ),
        DiskKind::Raw => {
            Ok(Found { format: ImageFormat::Raw, keep: Some(DiskFormat::Raw), virtual_size: length })
        }
        DiskKind::Image(ImageFormat::Qcow2) => {
            let header = disk_qcow2::header(path).map_err(ConvertError::from)?;
            if header.backing.is_some() {
                return refuse(
                    "is a qcow2 file that needs another one, its backing file".to_string(),
                    "merge them first: strata image convert --backing",
                );
            }
            if header.size == 0 {
                return refuse("is a qcow2 file of a disk without sectors".to_string(), "give another");
            }
            let keep = header.only_read().is_none().then_some(DiskFormat::Qcow2);
            Ok(Found { format: ImageFormat::Qcow2, keep, virtual_size: header.size })
        }
        DiskKind::Image(format @ (ImageFormat::Vhdx | ImageFormat::Vdi | ImageFormat::Vmdk)) => {
            let disk = disk_foreign::open(path, format).map_err(ConvertError::from)?;
            Ok(Found { format, keep: None, virtual_size: disk.geometry().size })
        }
        DiskKind::Image(format) => {
            refuse(format!("is a {} disk", format.name()), "convert it first: qemu-img convert -O qcow2")
        }
        DiskKind::NoDisk(what) => refuse(format!("is {what}, not a disk"), "unpack it, or give a disk image"),
        DiskKind::Unknown => refuse(
            "begins like no disk known here: no partition table, no file system, no header".to_string(),
            "see whether it was downloaded whole",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_image::Silent;
    use std::path::Path;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("strata-import-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
        fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, bytes).unwrap();
            path
        }
        fn store(&self) -> Store {
            Store::open(&self.0.join("images")).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn of(disk: &Path) -> Import {
        Import {
            name: "mine".parse().unwrap(),
            disk: disk.into(),
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            first_boot: FirstBoot::NoCloud,
            replace: false,
        }
    }

    fn partitioned(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[510..512].copy_from_slice(b"\x55\xaa");
        bytes
    }

    #[test]
    fn a_raw_disk_comes_in_whole_and_the_file_stays_as_it_was() {
        let scratch = Scratch::new("raw");
        let (disk, kernel) = (scratch.file("d", &partitioned(1 << 20)), scratch.file("k", b"kernel"));
        let store = scratch.store();
        let wanted = Import { kernel: Some(kernel.clone()), cmdline: "root=x".into(), ..of(&disk) };
        let image = import(&store, &wanted, &Silent).unwrap();
        assert_eq!((image.disk.format, image.disk.virtual_size), (DiskFormat::Raw, 1 << 20));
        let blob = store.verified(&image.disk.blob).unwrap();
        assert!(fs::read(blob).unwrap() == fs::read(&disk).unwrap());
        assert_eq!(fs::read(kernel).unwrap(), b"kernel");
        let again = import(&store, &wanted, &Silent).unwrap_err().to_string();
        assert!(again.contains("mine") && again.contains("--force"), "{again}");
        import(&store, &Import { replace: true, ..wanted }, &Silent).unwrap();
    }

    #[test]
    fn nobody_writes_to_a_disk_while_it_is_copied() {
        struct Watching<'a>(&'a Path, std::cell::Cell<usize>);
        impl Progress for Watching<'_> {
            fn phase(&self, text: &str) {
                if text.starts_with("copying") {
                    assert!(ImageLock::take(self.0, Access::Write).is_err());
                    self.1.set(self.1.get() + 1);
                }
            }
        }
        let scratch = Scratch::new("locked");
        let qcow2 = scratch.0.join("qcow2");
        disk_qcow2::create(&qcow2, 1 << 20, None).unwrap();
        for disk in [scratch.file("raw", &partitioned(1 << 20)), qcow2] {
            let store = scratch.store();
            let wanted = Import { replace: true, ..of(&disk) };
            let held = ImageLock::take(&disk, Access::Write).unwrap();
            let e = import(&store, &wanted, &Silent).unwrap_err().to_string();
            assert!(e.contains("written") && e.contains(disk.to_str().unwrap()), "{e}");
            drop(held);
            let watching = Watching(&disk, Default::default());
            import(&store, &wanted, &watching).unwrap();
            assert_eq!(watching.1.get(), 1);
            ImageLock::take(&disk, Access::Write).unwrap();
        }
    }

    #[test]
    fn a_disk_of_another_product_becomes_raw() {
        let scratch = Scratch::new("foreign");
        // A VDI of 8 KiB in blocks of 4 KiB, of which the first has data.
        let mut vdi = vec![0; 0x1400];
        let fields: [(usize, &[u8]); 9] = [
            (0x40, &0xbeda_107fu32.to_le_bytes()),
            (0x44, &[1, 0, 1, 0, 0x80, 1, 0, 0, 1]),
            (0x154, &[0, 2]),
            (0x158, &[0, 4]),
            (0x168, &[0, 2]),
            (0x170, &[0, 0x20]),
            (0x178, &[0, 0x10]),
            (0x180, &[2]),
            (0x204, &[0xff; 4]),
        ];
        fields.iter().for_each(|(at, bytes)| vdi[*at..at + bytes.len()].copy_from_slice(bytes));
        vdi[0x400..].fill(9);
        let image = import(&scratch.store(), &of(&scratch.file("d", &vdi)), &Silent).unwrap();
        assert_eq!((image.disk.format, image.disk.virtual_size), (DiskFormat::Raw, 8192));
        assert_eq!(image.description, "VDI disk, imported");
        let blob = scratch.store().verified(&image.disk.blob).unwrap();
        assert!(fs::read(blob).unwrap() == [[9; 4096], [0; 4096]].concat());
    }

    #[test]
    fn what_a_qcow2_needs_decides() {
        let scratch = Scratch::new("qcow2");
        let (path, over) = (scratch.0.join("d"), scratch.0.join("over"));
        disk_qcow2::create(&path, 1 << 20, None).unwrap();
        let image = import(&scratch.store(), &of(&path), &Silent).unwrap();
        assert_eq!((image.disk.format, image.disk.virtual_size), (DiskFormat::Qcow2, 1 << 20));
        disk_qcow2::create(&over, 1 << 20, Some(("d", ImageFormat::Qcow2))).unwrap();
        let e = import(&scratch.store(), &of(&over), &Silent).unwrap_err().to_string();
        assert!(e.contains("backing file") && e.contains("strata image convert"), "{e}");
    }

    #[test]
    fn what_is_no_disk_is_refused_with_what_it_is() {
        let scratch = Scratch::new("refuse");
        let mut qcow2 = vec![0; 4096];
        qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        qcow2[23] = 8;
        let cases: [(&str, &[u8], &str); 8] = [
            ("empty", b"", "empty"),
            ("text", b"hello\n", "whole number of sectors"),
            ("zeros", &[0; 4096], "like no disk"),
            ("odd", &partitioned(1000), "1000 bytes"),
            ("gz", b"\x1f\x8b\x08", "a compressed file"),
            ("vmdk", b"KDMV\x01", "ends after"),
            ("luks", b"LUKS\xba\xbe", "LUKS"),
            ("qcow2", &qcow2, "has cluster bits 0x8"),
        ];
        let store = scratch.store();
        for (name, bytes, seen) in cases {
            let e = import(&store, &of(&scratch.file(name, bytes)), &Silent).unwrap_err().to_string();
            assert!(e.contains(seen) && e.contains("; ") && e.contains(name), "{e}");
        }
        let missing = import(&store, &of(&scratch.0.join("none")), &Silent).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
        assert!(store.list().unwrap().is_empty());
    }
}
