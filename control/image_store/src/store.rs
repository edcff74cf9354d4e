//! The directory.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::copy::{CopyMethod, share, thin_copy};
use crate::digest::Digest;
use crate::error::{StoreError, failed};
use crate::intake::{Intake, NewImage, take_disk, take_in};
use crate::manifest::{Blob, Image, VERSION};
use crate::name::ImageName;

/// The longest manifest read, in bytes: one holds a command line and few names.
const MAX_MANIFEST: u64 = 64 << 10;

/// A store of images.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// An image's name, and the image unless its manifest is damaged.
pub type Listed = (ImageName, Result<Image, StoreError>);

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Blobs that no image needs.
    pub blobs: u64,
    /// Work that its process left behind.
    pub works: u64,
    /// Bytes of the host's disk given back.
    pub bytes: u64,
}

impl Store {
    /// Open the store in a directory, which is made if need be. It is closed to other
    /// users: images may be of disks that only their owner could read.
    ///
    /// # Errors
    /// When it cannot be made, or not be closed.
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        let store = Store { directory: directory.to_path_buf() };
        for part in ["manifests", "blobs", "checked", "work"] {
            let path = directory.join(part);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(failed("create", &path))?;
        }
        close_to_others(directory).map_err(failed("close to other users", directory))?;
        Ok(store)
    }

    fn blobs(&self) -> PathBuf {
        self.directory.join("blobs")
    }

    fn manifest_path(&self, name: &ImageName) -> PathBuf {
        self.directory.join("manifests").join(name.file_name())
    }

    /// Held while something comes or goes.
    fn guard(&self) -> Result<File, StoreError> {
        let path = self.directory.join("lock");
        lock(&path, FlockOperation::LockExclusive).map_err(failed("lock", &path))
    }

    /// All images, by name. One whose manifest is damaged is told in its place.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let directory = self.directory.join("manifests");
        let mut list = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed("read", &directory))? {
            let entry = entry.map_err(failed("read", &directory))?;
            let Some(name) = entry.file_name().to_str().and_then(ImageName::from_file_name) else { continue };
            match self.find(&name) {
                // It went meanwhile.
                Err(StoreError::Unknown(_)) => {}
                found => list.push((name, found)),
            }
        }
        list.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(list)
    }

    /// The image of a name.
    ///
    /// # Errors
    /// When there is none, or its manifest is damaged.
    pub fn find(&self, name: &ImageName) -> Result<Image, StoreError> {
        let path = self.manifest_path(name);
        let size = match fs::metadata(&path) {
            Ok(m) => m.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Unknown(name.clone()));
            }
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let damaged = |cause: String| StoreError::Manifest { name: name.clone(), cause };
        if size > MAX_MANIFEST {
            return Err(damaged(format!("it has {size} bytes")));
        }
        let image = Image::parse(&fs::read(&path).map_err(failed("read", &path))?).map_err(damaged)?;
        if image.name != *name {
            return Err(damaged(format!("it is that of \"{}\"", image.name)));
        }
        Ok(image)
    }

    /// Begin to make an image.
    ///
    /// # Errors
    /// When the host refuses the directory.
    pub fn begin(&self) -> Result<Intake, StoreError> {
        let _guard = self.guard()?;
        let work = self.directory.join("work");
        // The guard is held: a number that is free stays so.
        let directory = (0u32..).map(|n| work.join(n.to_string())).find(|d| !d.exists());
        let directory = directory.unwrap_or_else(|| work.join("full"));
        fs::create_dir(&directory).map_err(failed("create", &directory))?;
        let path = directory.join("lock");
        let lock = lock(&path, FlockOperation::NonBlockingLockExclusive).map_err(failed("lock", &path))?;
        Ok(Intake { directory, _lock: lock })
    }

    /// Keep an image under its name, in place of one of that name if `replace`.
    ///
    /// # Errors
    /// When the name is taken, or the host refuses a file; nothing has changed then.
    pub fn commit(&self, intake: &Intake, new: &NewImage, replace: bool) -> Result<Image, StoreError> {
        let _guard = self.guard()?;
        let path = self.manifest_path(&new.name);
        if path.exists() && !replace {
            return Err(StoreError::Exists(new.name.clone()));
        }
        let blobs = self.blobs();
        let part = |file: &Option<PathBuf>| file.as_ref().map(|f| take_in(intake, &blobs, f)).transpose();
        let image = Image {
            version: VERSION,
            name: new.name.clone(),
            description: new.description.clone(),
            kernel: part(&new.kernel)?,
            initrd: part(&new.initrd)?,
            disk: take_disk(intake, &blobs, new)?,
            cmdline: new.cmdline.clone(),
            first_boot: new.first_boot,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            source: new.source.clone(),
        };
        for blob in image.blobs() {
            // Just hashed.
            self.remember(&blob.digest)?;
        }
        // What a manifest names is there, whenever the host stops.
        sync_directory(&blobs)?;
        let staged = intake.directory().join("manifest");
        let text = serde_json::to_vec_pretty(&image).map_err(|e| failed("write", &staged)(e.into()))?;
        fs::write(&staged, text).map_err(failed("write", &staged))?;
        File::open(&staged).and_then(|f| f.sync_all()).map_err(failed("flush", &staged))?;
        fs::rename(&staged, &path).map_err(failed("rename into place", &path))?;
        sync_directory(&self.directory.join("manifests"))?;
        Ok(image)
    }

    /// Forget an image. Its blobs go with the next collection.
    ///
    /// # Errors
    /// When there is none of that name, or the host refuses.
    pub fn remove(&self, name: &ImageName) -> Result<(), StoreError> {
        let _guard = self.guard()?;
        let path = self.manifest_path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(StoreError::Unknown(name.clone())),
            result => result.map_err(failed("remove", &path)),
        }
    }

    /// Whether a file is what [`Store::lend`] would put there: the blob under another
    /// name, or, on another file system, a file of its length. One that is the name of a
    /// blob since replaced is not.
    ///
    /// # Errors
    /// As [`Store::verified`].
    pub fn is_lent(&self, blob: &Blob, file: &Path) -> Result<bool, StoreError> {
        let ours = self.verified(blob)?;
        let ours = fs::metadata(&ours).map_err(failed("read", &ours))?;
        let there = fs::metadata(file).map_err(failed("read", file))?;
        Ok(if ours.dev() == there.dev() { ours.ino() == there.ino() } else { ours.len() == there.len() })
    }

    /// Remove what no image needs and what dead processes left. A damaged
    /// manifest stops it: what that image needs is not known.
    ///
    /// # Errors
    /// When a manifest is damaged or the host refuses.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        let _guard = self.guard()?;
        let mut needed = std::collections::HashSet::new();
        for (_, image) in self.list()? {
            needed.extend(image?.blobs().map(|b| b.digest.to_string()));
        }
        let mut collected = Collected::default();
        for (directory, count) in [("blobs", true), ("checked", false)] {
            for path in entries(&self.directory.join(directory))? {
                let name = path.file_name().and_then(|n| n.to_str());
                if name.is_some_and(|n| needed.contains(n)) {
                    continue;
                }
                let held = fs::metadata(&path).map_or(0, |m| m.blocks() * 512);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                if count {
                    collected.blobs += 1;
                    collected.bytes += held;
                }
            }
        }
        for path in entries(&self.directory.join("work"))? {
            let in_use = lock(&path.join("lock"), FlockOperation::NonBlockingLockExclusive)
                .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            if !in_use {
                collected.bytes += below(&path);
                collected.works += 1;
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(collected)
    }

    /// The file of a blob, found to be what its name says. It is read whole when
    /// it has changed since it was last read.
    ///
    /// # Errors
    /// When it is gone or not what it was.
    pub fn verified(&self, blob: &Blob) -> Result<PathBuf, StoreError> {
        let path = self.blobs().join(blob.digest.as_str());
        let missing = || StoreError::Missing { digest: blob.digest.clone() };
        let Some(stamp) = stamp(&path) else { return Err(missing()) };
        let known = fs::read_to_string(self.directory.join("checked").join(blob.digest.as_str()));
        if known.is_ok_and(|known| known == stamp) {
            return Ok(path);
        }
        self.check(blob)?;
        Ok(path)
    }

    /// Read a blob whole, whatever is known of it.
    ///
    /// # Errors
    /// When it is gone or not what it was.
    pub fn check(&self, blob: &Blob) -> Result<(), StoreError> {
        let path = self.blobs().join(blob.digest.as_str());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { digest: blob.digest.clone() });
            }
            Err(e) => return Err(failed("open", &path)(e)),
        };
        let found = Digest::of(&file).map_err(failed("read", &path))?;
        if found != blob.digest {
            return Err(StoreError::Damaged { digest: blob.digest.clone(), found: found.to_string() });
        }
        self.remember(&blob.digest)
    }

    /// Note that a blob is right as it is now.
    fn remember(&self, digest: &Digest) -> Result<(), StoreError> {
        let note = self.directory.join("checked").join(digest.as_str());
        let stamp = stamp(&self.blobs().join(digest.as_str()));
        // A note that is cut short is no stamp, and the blob is read again.
        fs::write(&note, stamp.unwrap_or_default()).map_err(failed("write", &note))
    }

    /// A verified blob as a machine's own writable file.
    ///
    /// # Errors
    /// As [`Store::verified`], and when the host cannot copy.
    pub fn copy(&self, blob: &Blob, to: &Path, size: Option<u64>) -> Result<CopyMethod, StoreError> {
        let from = self.verified(blob)?;
        thin_copy(&from, to, size).map_err(failed("copy the image to", to))
    }

    /// A verified blob as a machine's own writable file that takes no room until it is
    /// written; false, and nothing is made, where the file system cannot share.
    ///
    /// # Errors
    /// As [`Store::copy`].
    pub fn share(&self, blob: &Blob, to: &Path, size: Option<u64>) -> Result<bool, StoreError> {
        let from = self.verified(blob)?;
        share(&from, to, size).map_err(failed("copy the image to", to))
    }

    /// A verified blob as a machine's own file to read: the same file under
    /// another name, or a copy on another file system.
    ///
    /// # Errors
    /// As [`Store::copy`].
    pub fn lend(&self, blob: &Blob, to: &Path) -> Result<(), StoreError> {
        let from = self.verified(blob)?;
        match fs::hard_link(&from, to) {
            // The change of its link count shows in the stamp.
            Ok(()) => self.remember(&blob.digest),
            Err(_) => thin_copy(&from, to, None).map(drop).map_err(failed("copy the image to", to)),
        }
    }
}

/// A file that is locked until it is closed.
fn lock(path: &Path, operation: FlockOperation) -> std::io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    loop {
        match flock(&file, operation) {
            Err(Errno::INTR) => {}
            result => return Ok(result.map(|()| file)?),
        }
    }
}

/// Take other users' rights to a directory of one's own away; another's is its owner's
/// to open.
fn close_to_others(directory: &Path) -> std::io::Result<()> {
    let m = fs::metadata(directory)?;
    let mode = m.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 || m.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(mode & !0o077))
}

/// Names that came into a directory are there after the host stops.
fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed("flush", directory))
}

/// What changes whenever a file does: ctime moves with its content, mode, owner
/// and links, and nobody can set it.
fn stamp(path: &Path) -> Option<String> {
    let m = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(format!("{} {} {}.{:09}\n", m.len(), m.ino(), m.ctime(), m.ctime_nsec()))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = fs::read_dir(directory).map_err(failed("read", directory))?;
    read.map(|e| Ok(e.map_err(failed("read", directory))?.path())).collect()
}

/// Bytes of the host's disk that a directory takes.
fn below(directory: &Path) -> u64 {
    let Ok(read) = fs::read_dir(directory) else { return 0 };
    read.flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => below(&e.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{DiskFormat, FirstBoot};
    use std::os::unix::fs::FileExt;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("strata-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
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

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    /// An image of a sparse disk that begins with `content`.
    fn add(store: &Store, named: &str, content: &[u8], replace: bool) -> Result<Image, StoreError> {
        let intake = store.begin().unwrap();
        let (disk, kernel) = (intake.directory().join("disk"), intake.directory().join("kernel"));
        let file = File::create(&disk).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(content, 4096).unwrap();
        fs::write(&kernel, "a kernel").unwrap();
        let new = NewImage {
            name: name(named),
            description: "a test".into(),
            kernel: Some(kernel),
            initrd: None,
            disk,
            format: DiskFormat::Raw,
            virtual_size: 8 << 20,
            cmdline: "root=/dev/x".into(),
            first_boot: FirstBoot::Strata,
            source: "made here".into(),
        };
        store.commit(&intake, &new, replace)
    }

    #[test]
    fn what_is_kept_is_found_and_shared_parts_are_kept_once() {
        let scratch = Scratch::new("keep");
        let store = scratch.store();
        assert!(store.list().unwrap().is_empty());
        let first = add(&store, "debian", b"one", false).unwrap();
        add(&store, "debian:12", b"two", false).unwrap();
        assert_eq!(store.find(&name("debian")).unwrap(), first);
        let names: Vec<_> = store.list().unwrap().into_iter().map(|(n, _)| n.to_string()).collect();
        assert_eq!(names, ["debian:12", "debian"]);
        assert_eq!(entries(&store.blobs()).unwrap().len(), 3, "two disks and one kernel");
        assert!(entries(&store.directory.join("work")).unwrap().is_empty());
        let blob = store.verified(&first.disk.blob).unwrap();
        assert_eq!(fs::metadata(&blob).unwrap().permissions().mode() & 0o777, 0o444);
        assert!(first.disk.stored < 1 << 20 && first.disk.blob.size == 8 << 20);
    }

    #[test]
    fn a_name_is_given_once_unless_replaced() {
        let scratch = Scratch::new("replace");
        let store = scratch.store();
        let first = add(&store, "a", b"one", false).unwrap();
        assert!(matches!(add(&store, "a", b"two", false), Err(StoreError::Exists(_))));
        assert_eq!(store.find(&name("a")).unwrap(), first);
        let second = add(&store, "a", b"two", true).unwrap();
        assert_ne!(first.disk.blob, second.disk.blob);
        assert_eq!(store.find(&name("a")).unwrap(), second);
    }

    #[test]
    fn only_what_no_image_needs_is_collected() {
        let scratch = Scratch::new("collect");
        let store = scratch.store();
        let a = add(&store, "a", b"one", false).unwrap();
        let b = add(&store, "b", b"two", false).unwrap();
        assert_eq!(store.collect().unwrap(), Collected::default());
        let working = store.begin().unwrap();
        fs::create_dir(store.directory.join("work/9")).unwrap();
        store.remove(&name("a")).unwrap();
        assert!(matches!(store.remove(&name("a")), Err(StoreError::Unknown(_))));
        let collected = store.collect().unwrap();
        assert_eq!((collected.blobs, collected.works), (1, 1), "its disk; the kernel is b's too");
        assert!(collected.bytes > 0 && working.directory().exists());
        assert!(matches!(store.verified(&a.disk.blob), Err(StoreError::Missing { .. })));
        assert!(b.blobs().all(|blob| store.verified(blob).is_ok()));
        fs::write(store.manifest_path(&name("c")), "{").unwrap();
        assert!(matches!(store.collect(), Err(StoreError::Manifest { .. })));
    }

    #[test]
    fn a_changed_blob_is_noticed_before_it_is_used() {
        let scratch = Scratch::new("verify");
        let store = scratch.store();
        let image = add(&store, "a", b"one", false).unwrap();
        let blob = &image.disk.blob;
        let path = store.verified(blob).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let times = fs::metadata(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"x", 5000).unwrap();
        // One who changes it may set its time back.
        file.set_modified(times.modified().unwrap()).unwrap();
        drop(file);
        let target = scratch.0.join("copy");
        let e = store.copy(blob, &target, None).unwrap_err();
        assert!(matches!(e, StoreError::Damaged { .. }), "{e}");
        assert!(!target.exists());
        File::options().write(true).open(&path).unwrap().write_all_at(b"\0", 5000).unwrap();
        store.verified(blob).unwrap();
    }

    #[test]
    fn an_image_made_again_mends_a_damaged_part_for_all_who_share_it() {
        let scratch = Scratch::new("mend");
        let store = scratch.store();
        let image = add(&store, "a", b"one", false).unwrap();
        let twin = add(&store, "b", b"one", false).unwrap();
        let blob = &image.disk.blob;
        let lent = scratch.0.join("lent");
        store.lend(blob, &lent).unwrap();
        assert!(store.is_lent(blob, &lent).unwrap());
        let path = store.verified(blob).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", 5000).unwrap();
        assert!(matches!(store.verified(blob), Err(StoreError::Damaged { .. })));
        assert!(matches!(store.is_lent(blob, &lent), Err(StoreError::Damaged { .. })));
        // A damaged manifest, which stops collections, stops this not.
        fs::write(store.manifest_path(&name("c")), "{").unwrap();
        store.remove(&name("a")).unwrap();
        assert!(store.collect().is_err());
        add(&store, "a", b"one", false).unwrap();
        assert!(image.blobs().chain(twin.blobs()).all(|blob| store.check(blob).is_ok()));
        assert!(!store.is_lent(blob, &lent).unwrap(), "the damaged file, under the name lent");
    }

    #[test]
    fn other_users_see_nothing_of_a_new_store_nor_of_one_made_open() {
        let scratch = Scratch::new("closed");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let directory = scratch.0.join("images");
        scratch.store();
        assert_eq!(mode(&directory), 0o700);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        scratch.store();
        assert_eq!(mode(&directory), 0o700);
    }

    #[test]
    fn machines_get_their_own_and_keep_it_when_the_image_goes() {
        let scratch = Scratch::new("copy");
        let store = scratch.store();
        let image = add(&store, "a", b"one", false).unwrap();
        let (disk, kernel) = (scratch.0.join("disk"), scratch.0.join("kernel"));
        store.copy(&image.disk.blob, &disk, Some(16 << 20)).unwrap();
        store.lend(image.kernel.as_ref().unwrap(), &kernel).unwrap();
        File::options().write(true).open(&disk).unwrap().write_all_at(b"mine", 0).unwrap();
        assert!(image.blobs().all(|blob| store.check(blob).is_ok()));
        store.remove(&name("a")).unwrap();
        store.collect().unwrap();
        assert_eq!(fs::read(&kernel).unwrap(), b"a kernel");
        let bytes = fs::read(&disk).unwrap();
        assert_eq!((&bytes[..4], &bytes[4096..4099], bytes.len()), (&b"mine"[..], &b"one"[..], 16 << 20));
    }

    #[test]
    fn damaged_manifests_are_told_and_hide_no_other() {
        let scratch = Scratch::new("damaged");
        let store = scratch.store();
        let good = add(&store, "good", b"one", false).unwrap();
        let mut other = serde_json::to_value(&good).unwrap();
        other["version"] = 2.into();
        for text in
            ["", "{}", "[1]", &other.to_string(), &serde_json::to_string(&good).unwrap(), &" ".repeat(70_000)]
        {
            fs::write(store.manifest_path(&name("bad")), text).unwrap();
            let list = store.list().unwrap();
            assert_eq!(list.iter().map(|l| l.1.is_ok()).collect::<Vec<_>>(), [false, true], "{text:.40}");
            let e = store.find(&name("bad")).unwrap_err().to_string();
            assert!(e.contains("strata image rm bad"), "{e}");
        }
    }
}
