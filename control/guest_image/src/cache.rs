//! The directory that keeps fetched guests.
//!
//! One process works on it at a time (an advisory lock). A guest is prepared in
//! a directory of its own and renamed into place when complete, so that what is
//! found under its name is whole; sizes are checked all the same.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::initramfs;
use crate::modules;
use crate::{GuestFiles, GuestImageError, Progress};

/// Environment variable that overrides the cache directory.
pub const CACHE_VARIABLE: &str = "STRATA_CACHE";

const KERNEL: &str = "vmlinuz";
const BUSYBOX: &str = "busybox";
/// Drivers, an archive to follow the initramfs.
const MODULES: &str = "modules.cpio";
/// Which drivers were asked for, a name a line.
const DRIVERS: &str = "drivers";
const DESCRIPTION: &str = "description";
/// Names and sizes of the files, written last.
const MANIFEST: &str = "manifest";

/// Where the cache is: `$STRATA_CACHE`, else `$XDG_CACHE_HOME/strata`, else
/// `$HOME/.cache/strata`.
///
/// # Errors
/// When none of the three is set.
pub fn cache_directory() -> Result<PathBuf, GuestImageError> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set(CACHE_VARIABLE)
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("strata")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/strata")))
        .ok_or(GuestImageError::NoCacheDirectory)
}

/// What a guest is made from.
pub(crate) struct Parts {
    pub kernel: PathBuf,
    pub busybox: PathBuf,
    /// Drivers that the kernel has as modules.
    pub modules: Vec<PathBuf>,
    pub description: String,
}

/// The cache, locked.
pub(crate) struct Cache {
    directory: PathBuf,
    _lock: File,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GuestImageError {
    let path = path.to_path_buf();
    move |source| GuestImageError::Cache { what, path, source }
}

impl Cache {
    /// Create the directory if need be and wait for the lock.
    pub fn open(directory: &Path, progress: &dyn Progress) -> Result<Self, GuestImageError> {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let path = directory.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(failed("open", &path))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress.phase("another process prepares the guest; waiting for it");
            rustix::fs::flock(&lock, FlockOperation::LockExclusive)
                .map_err(|e| failed("lock", &path)(e.into()))?;
        }
        Ok(Cache { directory: directory.to_path_buf(), _lock: lock })
    }

    /// A guest that is there and whole. One that is not is removed.
    pub fn find(&self, name: &str) -> Result<Option<GuestFiles>, GuestImageError> {
        let home = self.directory.join(name);
        if !home.exists() {
            return Ok(None);
        }
        let Some(description) = self.check(&home) else {
            fs::remove_dir_all(&home).map_err(failed("remove", &home))?;
            return Ok(None);
        };
        let files = GuestFiles {
            kernel: home.join(KERNEL),
            initrd: home.join(initrd_name()),
            busybox: home.join(BUSYBOX),
            description,
        };
        if !is_whole(&home, &initrd_name()) {
            // Made by another version: the start script has changed. Or a host that
            // stopped left it cut short.
            let busybox = fs::read(&files.busybox).map_err(failed("read", &files.busybox))?;
            let modules = home.join(MODULES);
            let modules = fs::read(&modules).map_err(failed("read", &modules))?;
            let initrd = initramfs::default_initramfs(&busybox, &modules);
            write_whole(&files.initrd, &initrd)?;
            let manifest = home.join(MANIFEST);
            let text = fs::read_to_string(&manifest).map_err(failed("read", &manifest))?;
            let others = text.lines().filter(|l| !l.ends_with(&initrd_name())).map(|l| format!("{l}\n"));
            let ours = format!("{} {}\n", initrd.len(), initrd_name());
            write_whole(&manifest, others.chain([ours]).collect::<String>().as_bytes())?;
        }
        Ok(Some(files))
    }

    /// The description, if every file has the size that the manifest says. But for
    /// the initramfs of this version or another, which is made of the others.
    fn check(&self, home: &Path) -> Option<String> {
        let manifest = fs::read_to_string(home.join(MANIFEST)).ok()?;
        // One without drivers is of an older version.
        manifest.lines().find(|l| l.ends_with(MODULES))?;
        // So is one with fewer.
        let drivers = fs::read_to_string(home.join(DRIVERS)).ok()?;
        modules::NAMES.iter().all(|name| drivers.lines().any(|d| d == *name)).then_some(())?;
        for line in manifest.lines() {
            let (_, name) = line.split_once(' ')?;
            if !is_initrd(name) && !is_whole(home, name) {
                return None;
            }
        }
        fs::read_to_string(home.join(DESCRIPTION)).ok()
    }

    /// An empty directory to work in, within the cache, so that renaming out of
    /// it is atomic.
    pub fn work_directory(&self) -> Result<PathBuf, GuestImageError> {
        let path = self.directory.join("work");
        if path.exists() {
            fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        }
        fs::create_dir(&path).map_err(failed("create", &path))?;
        Ok(path)
    }

    /// Make a guest of its parts under a name.
    pub fn install(
        &self,
        name: &str,
        parts: Parts,
        progress: &dyn Progress,
    ) -> Result<GuestFiles, GuestImageError> {
        progress.phase("packing the initramfs");
        let staging = self.directory.join(format!("{name}.new"));
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(failed("remove", &staging))?;
        }
        fs::create_dir(&staging).map_err(failed("create", &staging))?;
        let busybox = fs::read(&parts.busybox).map_err(failed("read", &parts.busybox))?;
        let kernel = fs::read(&parts.kernel).map_err(failed("read", &parts.kernel))?;
        let modules =
            modules::pack(&parts.modules).map_err(|(path, source)| failed("read", &path)(source))?;
        let files = [
            (KERNEL.to_string(), kernel),
            (initrd_name(), initramfs::default_initramfs(&busybox, &modules)),
            (BUSYBOX.to_string(), busybox),
            (MODULES.to_string(), modules),
            (DRIVERS.to_string(), modules::NAMES.join("\n").into_bytes()),
            (DESCRIPTION.to_string(), parts.description.into_bytes()),
        ];
        let mut manifest = String::new();
        for (file, content) in &files {
            write_whole(&staging.join(file), content)?;
            manifest.push_str(&format!("{} {file}\n", content.len()));
        }
        write_whole(&staging.join(MANIFEST), manifest.as_bytes())?;
        let home = self.directory.join(name);
        if home.exists() {
            fs::remove_dir_all(&home).map_err(failed("remove", &home))?;
        }
        fs::rename(&staging, &home).map_err(failed("rename into place", &home))?;
        // What is left of the download; its removal is a courtesy.
        let _ = fs::remove_dir_all(self.directory.join("work"));
        let installed = self.find(name)?;
        installed.ok_or_else(|| failed("check", &home)(std::io::Error::other("it is not what was written")))
    }
}

fn initrd_name() -> String {
    format!("initrd-{}.cpio", initramfs::version())
}

fn is_initrd(name: &str) -> bool {
    name.starts_with("initrd-")
}

/// Whether a file has the size that the manifest says.
fn is_whole(home: &Path, name: &str) -> bool {
    let Ok(manifest) = fs::read_to_string(home.join(MANIFEST)) else { return false };
    let said = manifest.lines().find_map(|l| l.split_once(' ').filter(|l| l.1 == name)?.0.parse().ok());
    said.is_some() && said == fs::metadata(home.join(name)).ok().map(|m| m.len())
}

/// Write a file that is complete or not there, whenever the host stops.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), GuestImageError> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial).map_err(failed("create", &partial))?;
    file.write_all(content).map_err(failed("write", &partial))?;
    file.sync_all().map_err(failed("flush", &partial))?;
    drop(file);
    fs::rename(&partial, path).map_err(failed("rename into place", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("strata-cache-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
        fn parts(&self) -> Parts {
            fs::write(self.0.join("k"), "kernel").unwrap();
            fs::write(self.0.join("b"), "busybox").unwrap();
            Parts {
                kernel: self.0.join("k"),
                busybox: self.0.join("b"),
                modules: Vec::new(),
                description: "a test".into(),
            }
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_installed_is_found_and_what_is_cut_short_is_not() {
        let scratch = Scratch::new("install");
        let cache = Cache::open(&scratch.0.join("cache"), &Silent).unwrap();
        assert_eq!(cache.find("cloud").unwrap(), None);
        let files = cache.install("cloud", scratch.parts(), &Silent).unwrap();
        assert_eq!(fs::read(&files.kernel).unwrap(), b"kernel");
        assert_eq!(cache.find("cloud").unwrap(), Some(files.clone()));

        fs::remove_file(&files.busybox).unwrap();
        assert_eq!(cache.find("cloud").unwrap(), None, "a file of the manifest is missing");

        let files = cache.install("cloud", scratch.parts(), &Silent).unwrap();
        fs::write(&files.kernel, "kern").unwrap();
        assert_eq!(cache.find("cloud").unwrap(), None, "the kernel is cut short");
        assert!(!files.kernel.exists());
    }

    #[test]
    fn drivers_follow_the_initramfs_and_one_without_is_made_again() {
        let scratch = Scratch::new("modules");
        let cache = Cache::open(&scratch.0.join("cache"), &Silent).unwrap();
        fs::write(scratch.0.join("vsock.ko"), "driver").unwrap();
        let parts = Parts { modules: vec![scratch.0.join("vsock.ko")], ..scratch.parts() };
        let files = cache.install("cloud", parts, &Silent).unwrap();
        let has = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
        assert!(has(&fs::read(&files.initrd).unwrap(), b"lib/strata/vsock.ko"));

        let manifest = files.kernel.with_file_name(MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        let drivers = files.kernel.with_file_name(DRIVERS);
        let asked = fs::read_to_string(&drivers).unwrap();
        fs::write(&drivers, asked.replace("vsock", "VSOCK")).unwrap();
        assert_eq!(cache.find("cloud").unwrap(), None, "other drivers");

        let parts = Parts { modules: vec![scratch.0.join("vsock.ko")], ..scratch.parts() };
        cache.install("cloud", parts, &Silent).unwrap();
        let older: String = text.lines().filter(|l| !l.contains(MODULES)).map(|l| format!("{l}\n")).collect();
        fs::write(&manifest, older).unwrap();
        assert_eq!(cache.find("cloud").unwrap(), None);
    }

    #[test]
    fn an_initramfs_that_is_gone_or_cut_short_is_made_again() {
        let scratch = Scratch::new("initrd");
        let cache = Cache::open(&scratch.0.join("cache"), &Silent).unwrap();
        let files = cache.install("cloud", scratch.parts(), &Silent).unwrap();
        let whole = fs::read(&files.initrd).unwrap();
        let manifest = files.kernel.with_file_name(MANIFEST);
        let upgraded = || {
            let text = fs::read_to_string(&manifest).unwrap();
            fs::write(&manifest, text.replace(&initrd_name(), "initrd-0.cpio")).unwrap();
        };
        let steps: [&dyn Fn(); 4] = [
            &|| fs::remove_file(&files.initrd).unwrap(),
            &|| fs::write(&files.initrd, "").unwrap(),
            &upgraded,
            // What was made after the upgrade is in the manifest too.
            &|| fs::write(&files.initrd, "").unwrap(),
        ];
        for (n, step) in steps.iter().enumerate() {
            step();
            assert_eq!(cache.find("cloud").unwrap().as_ref(), Some(&files), "{n}");
            assert!(fs::read(&files.initrd).unwrap() == whole, "{n}");
        }
    }

    #[test]
    fn an_unusable_cache_is_named_with_a_remedy() {
        let scratch = Scratch::new("refuse");
        let file = scratch.0.join("file");
        fs::write(&file, "").unwrap();
        let error = Cache::open(&file.join("cache"), &Silent).err().unwrap().to_string();
        assert!(error.contains("STRATA_CACHE") && error.contains("file/cache"), "{error}");
    }
}
