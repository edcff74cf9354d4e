//! Disks that machines stand on and do not change.
//!
//! A machine whose disk holds only what it changed has a symbolic link `base` to a
//! file in `bases/`, which is another name of the image's file where the file system
//! allows it, and takes no room then. It stays when the image goes, until no machine
//! stands on it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::keep::{KeepError, Kept, MachineStore, failed, flush, locked};

/// The link in a machine's directory, and what its disk's header names.
pub const BASE: &str = "base";
const LOCK: &str = ".lock";

/// The directory of bases, beside that of machines.
#[derive(Debug)]
pub struct Bases {
    directory: PathBuf,
    machines: PathBuf,
}

impl MachineStore {
    /// What its machines stand on.
    pub fn bases(&self) -> Bases {
        let machines = self.directory().to_path_buf();
        Bases { directory: machines.with_file_name("bases"), machines }
    }
}

impl Bases {
    /// Let a machine stand on the base `name`, a word of letters and digits. `make`
    /// puts it at a path when it is not there yet, or `is_right` says that what is there
    /// is not what it should be; who has that open keeps it.
    ///
    /// # Errors
    /// When the host refuses a file, or `is_right` or `make` fails.
    pub fn lay<E: From<KeepError>>(
        &self,
        machine: &Kept,
        name: &str,
        is_right: impl FnOnce(&Path) -> Result<bool, E>,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(failed("create", &self.directory))?;
        let lock = self.directory.join(LOCK);
        let _guard = locked(&lock, FlockOperation::LockExclusive).map_err(failed("lock", &lock))?;
        let base = self.directory.join(name);
        if !(base.exists() && is_right(&base)?) {
            let new = self.directory.join(".new");
            remove_if_there(&new).map_err(failed("remove", &new))?;
            make(&new)?;
            // The name stands for the content: it comes when that is on the disk.
            flush(&new)?;
            fs::rename(&new, &base).map_err(failed("rename into place", &base))?;
            flush(&self.directory)?;
        }
        let link = machine.directory().join(BASE);
        let target = Path::new("../../bases").join(name);
        symlink(target, &link).map_err(failed("create", &link))?;
        Ok(())
    }

    /// Remove bases that no machine stands on and no image is; answers the bytes of
    /// the host's disk given back.
    ///
    /// # Errors
    /// When the host refuses a file.
    pub fn collect(&self) -> Result<u64, KeepError> {
        let lock = self.directory.join(LOCK);
        if !self.directory.exists() {
            return Ok(0);
        }
        let _guard = locked(&lock, FlockOperation::LockExclusive).map_err(failed("lock", &lock))?;
        let needed: Vec<OsString> = entries(&self.machines)?
            .iter()
            .filter_map(|machine| fs::read_link(machine.join(BASE)).ok()?.file_name().map(OsString::from))
            .collect();
        let mut bytes = 0;
        for base in entries(&self.directory)? {
            let name = base.file_name().unwrap_or_default();
            let held = fs::metadata(&base).map_err(failed("read", &base))?;
            // One that an image still is takes no room, and taking its name away would
            // have the image read again before its next use.
            if name == LOCK || needed.iter().any(|n| n == name) || held.nlink() > 1 {
                continue;
            }
            fs::remove_file(&base).map_err(failed("remove", &base))?;
            bytes += held.blocks() * 512;
        }
        Ok(bytes)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, KeepError> {
    let read = fs::read_dir(directory).map_err(failed("read", directory))?;
    read.map(|e| Ok(e.map_err(failed("read", directory))?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    fn machine(store: &MachineStore) -> crate::Held {
        store.create(Record::new(Vec::new(), "/".into())).expect("a machine")
    }

    fn lay(store: &MachineStore, machine: &Kept, made: &mut usize) {
        let make = |path: &Path| {
            *made += 1;
            fs::write(path, "disk").map_err(failed("write", path))
        };
        store
            .bases()
            .lay(machine, "abc", |base| Ok(fs::read(base).is_ok_and(|b| b == b"disk")), make)
            .expect("a base");
    }

    #[test]
    fn a_base_is_made_once_and_goes_with_the_last_machine_on_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = MachineStore::at(&directory.path().join("machines")).expect("a store");
        assert_eq!(store.bases().collect().expect("nothing there"), 0);
        let (first, second, mut made) = (machine(&store), machine(&store), 0);
        lay(&store, &first.kept, &mut made);
        lay(&store, &second.kept, &mut made);
        assert_eq!(made, 1);
        assert_eq!(fs::read(second.kept.directory().join(BASE)).expect("a link that leads there"), b"disk");
        let remove = |held: crate::Held| {
            let kept = held.kept.clone();
            drop(held);
            store.remove(&kept).expect("it does not run");
            store.bases().collect().expect("a directory")
        };
        assert_eq!(remove(first), 0, "the second stands on it");
        assert!(remove(second) > 0);
        assert!(!directory.path().join("bases/abc").exists());
    }

    #[test]
    fn a_base_that_is_not_right_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = MachineStore::at(&directory.path().join("machines")).expect("a store");
        let (first, second, mut made) = (machine(&store), machine(&store), 0);
        lay(&store, &first.kept, &mut made);
        let base = directory.path().join("bases/abc");
        fs::write(&base, "").expect("writable");
        lay(&store, &second.kept, &mut made);
        assert_eq!((made, fs::read(&base).expect("it is there")), (2, b"disk".to_vec()));
    }

    #[test]
    fn a_base_that_is_an_image_stays_and_a_dead_process_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = MachineStore::at(&directory.path().join("machines")).expect("a store");
        let held = machine(&store);
        lay(&store, &held.kept, &mut 0);
        let (base, image) = (directory.path().join("bases/abc"), directory.path().join("image"));
        fs::hard_link(&base, &image).expect("another name");
        fs::write(directory.path().join("bases/.new"), "half").expect("a file");
        let kept = held.kept.clone();
        drop(held);
        store.remove(&kept).expect("it does not run");
        store.bases().collect().expect("a directory");
        assert!(base.exists() && !directory.path().join("bases/.new").exists());
        fs::remove_file(&image).expect("it is there");
        assert!(store.bases().collect().expect("a directory") > 0);
        assert!(!base.exists());
    }
}
