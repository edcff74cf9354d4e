//! Images of files that others made.

use std::fs;
use std::path::PathBuf;

use guest_image::Progress;
use image_store::{DiskFormat, FirstBoot, Image, ImageName, NewImage, Store, thin_copy};

use crate::error::{BuildError, failed};
use crate::sniff::{DiskKind, sniff};

/// What to take in.
#[derive(Debug, Clone)]
pub struct Import {
    /// Name of the image.
    pub name: ImageName,
    /// Disk: raw or qcow2.
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
/// When it is no disk that machines here can have, or the host refuses.
pub fn import(store: &Store, wanted: &Import, progress: &dyn Progress) -> Result<Image, BuildError> {
    let (format, virtual_size) = examine(wanted)?;
    if !wanted.replace && store.find(&wanted.name).is_ok() {
        return Err(image_store::StoreError::Exists(wanted.name.clone()).into());
    }
    for part in [&wanted.kernel, &wanted.initrd].into_iter().flatten() {
        fs::File::open(part).map_err(failed("read", part))?;
    }
    let intake = store.begin()?;
    progress.phase(&format!("copying {}", wanted.disk.display()));
    let disk = intake.directory().join("disk");
    thin_copy(&wanted.disk, &disk, None).map_err(failed("copy", &wanted.disk))?;
    progress.phase("storing the image");
    let new = NewImage {
        name: wanted.name.clone(),
        description: format!("{} disk, imported", format.word()),
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

/// Format and size of a disk that can be taken in.
fn examine(wanted: &Import) -> Result<(DiskFormat, u64), BuildError> {
    let path = &wanted.disk;
    let length = fs::metadata(path).map_err(failed("read", path))?.len();
    let refuse = |what: String, remedy| Err(BuildError::Disk { path: path.clone(), what, remedy });
    match sniff(path).map_err(failed("read", path))? {
        DiskKind::Raw | DiskKind::Unknown if length % 512 != 0 => refuse(
            format!("has {length} bytes, which is no whole number of sectors"),
            "see whether it was downloaded whole",
        ),
        DiskKind::Raw => Ok((DiskFormat::Raw, length)),
        DiskKind::Qcow2 { has_backing: true, .. } => refuse(
            "is a qcow2 file that needs another one, its backing file".to_string(),
            "merge them first: qemu-img convert -O qcow2",
        ),
        DiskKind::Qcow2 { size: 0, .. } => {
            refuse("is a qcow2 file of a disk without sectors".to_string(), "give another")
        }
        DiskKind::Qcow2 { size, .. } => Ok((DiskFormat::Qcow2, size)),
        DiskKind::Other(format) => {
            refuse(format!("is a {format} disk"), "convert it first: qemu-img convert -O qcow2")
        }
        DiskKind::NoDisk(what) => refuse(format!("is {what}, not a disk"), "unpack it, or give a disk image"),
        DiskKind::Unknown => refuse(
            "begins like no disk known here: no partition table, no file system, no qcow2 header".to_string(),
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
    fn what_is_no_disk_is_refused_with_what_it_is() {
        let scratch = Scratch::new("refuse");
        let mut backed = vec![0; 4096];
        backed[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        backed[15] = 8;
        let cases: [(&str, &[u8], &str); 7] = [
            ("empty", b"", "empty"),
            ("text", b"hello\n", "whole number of sectors"),
            ("zeros", &[0; 4096], "like no disk"),
            ("odd", &partitioned(1000), "1000 bytes"),
            ("gz", b"\x1f\x8b\x08", "gzip"),
            ("vmdk", b"KDMV\x01", "VMDK"),
            ("backed", &backed, "backing"),
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
