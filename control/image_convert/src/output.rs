//! A new file that gets its name when it is whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use disk::{Access, ImageLock};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::ConvertError;

/// A file on its way. Dropping it removes what is there.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    to: PathBuf,
}

impl Output {
    /// A new name beside `to`. What is at `to` is refused unless it may be replaced,
    /// and then unless nobody uses it and it is not `from`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn begin(from: &Path, to: &Path, replace: bool) -> Result<Output, ConvertError> {
        if let Ok(there) = fs::symlink_metadata(to) {
            if fs::metadata(from).is_ok_and(|f| (f.dev(), f.ino()) == (there.dev(), there.ino())) {
                return Err(ConvertError::Itself(to.to_path_buf()));
            }
            if !replace || !there.is_file() {
                return Err(ConvertError::Exists(to.to_path_buf()));
            }
            // A machine's disk would go on under no name.
            drop(ImageLock::take(to, Access::Write)?);
        }
        let name = to.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let path = to.with_file_name(format!(".{name}.strata-{}", std::process::id()));
        Ok(Output { path, to: to.to_path_buf() })
    }

    /// Where it is until then.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Give it its name, durably.
    ///
    /// # Errors
    /// When something has that name meanwhile, or the host refuses.
    pub fn finish(self, replace: bool) -> Result<(), ConvertError> {
        let fail = |what, source| ConvertError::Write { what, path: self.to.clone(), source };
        File::open(&self.path).and_then(|f| f.sync_all()).map_err(|e| fail("flush", e))?;
        let renamed =
            if replace { fs::rename(&self.path, &self.to) } else { rename_new(&self.path, &self.to) };
        match renamed {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ConvertError::Exists(self.to.clone()));
            }
            other => other.map_err(|e| fail("name", e))?,
        }
        let directory = self.to.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|d| d.sync_all()).map_err(|e| fail("flush the directory of", e))
    }
}

/// Rename, but over nothing that came meanwhile.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot: a second name is refused where there is a first.
        Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
        other => Ok(other?),
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Gone already when it has its name.
        let _ = fs::remove_file(&self.path);
    }
}
