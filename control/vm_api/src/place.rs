//! The runtime directory: where a user's running machines are found.
//!
//! | who | where |
//! | --- | --- |
//! | anyone with `STRATA_RUNTIME_DIR` | that directory |
//! | a user with a session | `$XDG_RUNTIME_DIR/strata` |
//! | root without one | `/run/strata` |
//! | anyone else | `/tmp/strata-UID` |
//!
//! A session's directory goes when the user logs out, and detached machines do not. They
//! are in `run` beside the machines that are kept, unless `STRATA_RUNTIME_DIR` names a
//! directory for all, or that place does not take them.
//!
//! The directory is the user's own, mode 0700 and no symbolic link: in `/tmp`
//! anyone may have made one of that name.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names a runtime directory of one's own.
pub const RUNTIME_DIR_VARIABLE: &str = "STRATA_RUNTIME_DIR";

/// Names a directory for machines of one's own.
pub const STATE_VARIABLE: &str = "STRATA_STATE";

/// A directory that was found safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir(PathBuf);

/// Why there is no runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It cannot be made or looked at.
    #[error("runtime directory {}: {source}; set {RUNTIME_DIR_VARIABLE} to one you may write", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Somebody else's, or open to others.
    #[error("runtime directory {} {what}; {remedy}", path.display())]
    Unsafe {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
}

impl RuntimeDir {
    /// Make the calling user's directory if it is not there.
    ///
    /// # Errors
    /// When no place can be made, or what is there is not safe.
    pub fn make() -> Result<Self, PlaceError> {
        let mut first = None;
        for made in Self::make_each(false) {
            match made {
                Ok(dir) => return Ok(dir),
                Err(e) => drop(first.get_or_insert(e)),
            }
        }
        Err(first.expect("there is always a place to try"))
    }

    /// The places where the calling user's machines can be, best first, each made when it is
    /// asked for. `lasting`: those that outlast the user's session come first.
    pub fn make_each(lasting: bool) -> impl Iterator<Item = Result<Self, PlaceError>> {
        let uid = rustix::process::geteuid().as_raw();
        let first = if lasting { self::lasting(&environment) } else { None };
        first.into_iter().chain(places(&environment, uid)).map(move |place| Self::make_at(&place, uid))
    }

    /// The directories of the calling user that are there and safe, each once, whatever paths
    /// lead to it.
    pub fn existing() -> Vec<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let all = places(&environment, uid).into_iter().chain(lasting(&environment));
        let mut list: Vec<Self> = Vec::new();
        for dir in all.filter_map(|place| Self::at(&place).ok()) {
            if !list.iter().any(|other| other.inode() == dir.inode()) {
                list.push(dir);
            }
        }
        list
    }

    /// A directory that is there.
    ///
    /// # Errors
    /// When it is not, or not safe.
    pub fn at(place: &Path) -> Result<Self, PlaceError> {
        judge(place, rustix::process::geteuid().as_raw()).map(|()| RuntimeDir(place.into()))
    }

    /// Which directory it is, whatever path leads to it; none if it went.
    pub(crate) fn inode(&self) -> Option<(u64, u64)> {
        std::fs::metadata(&self.0).ok().map(|m| (m.dev(), m.ino()))
    }

    /// Make `place` for user `uid`.
    ///
    /// # Errors
    /// As [`RuntimeDir::make`].
    pub fn make_at(place: &Path, uid: u32) -> Result<Self, PlaceError> {
        match std::fs::DirBuilder::new().mode(0o700).create(place) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PlaceError::Io { path: place.into(), source });
            }
            _ => {}
        }
        judge(place, uid)?;
        Ok(RuntimeDir(place.into()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Where a user's state is: `$STRATA_STATE`, else `$XDG_STATE_HOME/strata`, else
/// `$HOME/.local/state/strata`.
pub fn state_directory() -> Option<PathBuf> {
    state_of(&environment)
}

fn state_of(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set(STATE_VARIABLE)
        .or_else(|| set("XDG_STATE_HOME").map(|d| d.join("strata")))
        .or_else(|| set("HOME").map(|d| d.join(".local/state/strata")))
}

/// The place that outlasts a session. The path of a socket has 107 bytes, of which
/// `/3f9a1c2b/control.sock` takes 22: below a longer one no machine can listen.
fn lasting(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    const MAX_PLACE: usize = 80;
    if variable(RUNTIME_DIR_VARIABLE).is_some_and(|v| !v.is_empty()) {
        return None;
    }
    state_of(variable).map(|d| d.join("run")).filter(|d| d.is_absolute() && d.as_os_str().len() <= MAX_PLACE)
}

/// Where to look, best first.
fn places(variable: &dyn Fn(&str) -> Option<OsString>, uid: u32) -> Vec<PathBuf> {
    if let Some(own) = variable(RUNTIME_DIR_VARIABLE).filter(|v| !v.is_empty()) {
        return vec![own.into()];
    }
    // The XDG base directory specification: relative paths are to be ignored.
    let session = variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    let mut list: Vec<_> = session.map(|p| p.join("strata")).into_iter().collect();
    if uid == 0 {
        list.push("/run/strata".into());
    }
    list.push(format!("/tmp/strata-{uid}").into());
    list
}

fn judge(place: &Path, uid: u32) -> Result<(), PlaceError> {
    let wrong = |what: String, remedy: &str| {
        Err(PlaceError::Unsafe { path: place.into(), what, remedy: remedy.to_string() })
    };
    let m =
        std::fs::symlink_metadata(place).map_err(|source| PlaceError::Io { path: place.into(), source })?;
    let other = format!("remove it, or set {RUNTIME_DIR_VARIABLE} to another");
    if !m.is_dir() {
        wrong("is not a directory".to_string(), &other)
    } else if m.uid() != uid {
        wrong(format!("belongs to user {}, not to user {uid}", m.uid()), &other)
    } else if m.permissions().mode() & 0o077 != 0 {
        let mode = m.permissions().mode() & 0o777;
        wrong(format!("is open to others (mode {mode:o})"), "run: chmod 700 on it")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_suits_is_taken() {
        fn check(variables: &[(&str, &str)], uid: u32, expect: &[&str]) {
            let variable = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| OsString::from(v.1));
            let found = places(&variable, uid);
            assert_eq!(found, expect.iter().map(PathBuf::from).collect::<Vec<_>>(), "{variables:?} {uid}");
        }
        let xdg = ("XDG_RUNTIME_DIR", "/run/user/7");
        check(&[], 7, &["/tmp/strata-7"]);
        check(&[], 0, &["/run/strata", "/tmp/strata-0"]);
        check(&[xdg], 7, &["/run/user/7/strata", "/tmp/strata-7"]);
        check(&[("XDG_RUNTIME_DIR", "here")], 7, &["/tmp/strata-7"]);
        check(&[xdg, (RUNTIME_DIR_VARIABLE, "/x")], 0, &["/x"]);
        check(&[(RUNTIME_DIR_VARIABLE, "")], 7, &["/tmp/strata-7"]);
    }

    #[test]
    fn what_outlasts_a_session_is_beside_the_machines_that_are_kept() {
        fn check(variables: &[(&str, &str)], expect: Option<&str>) {
            let variable = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| OsString::from(v.1));
            assert_eq!(lasting(&variable), expect.map(PathBuf::from), "{variables:?}");
        }
        let (home, xdg) = (("HOME", "/h"), ("XDG_STATE_HOME", "/x"));
        check(&[], None);
        check(&[home], Some("/h/.local/state/strata/run"));
        check(&[home, xdg], Some("/x/strata/run"));
        check(&[home, xdg, (STATE_VARIABLE, "/s")], Some("/s/run"));
        check(&[home, (RUNTIME_DIR_VARIABLE, "/r")], None);
        check(&[home, (RUNTIME_DIR_VARIABLE, "")], Some("/h/.local/state/strata/run"));
        check(&[(STATE_VARIABLE, "s")], None);
        check(&[(STATE_VARIABLE, &format!("/{}", "s".repeat(80)))], None);
    }

    #[test]
    fn only_a_private_directory_of_the_user_is_safe() {
        let uid = rustix::process::geteuid().as_raw();
        let top = std::env::temp_dir().join(format!("strata-place-{}", std::process::id()));
        let dir = RuntimeDir::make_at(&top, uid).unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(RuntimeDir::make_at(&top, uid).unwrap(), dir);

        let refused = |place: &Path, uid: u32, text: &str| {
            let e = RuntimeDir::make_at(place, uid).unwrap_err().to_string();
            assert!(e.contains(text) && e.contains("; "), "{e}");
        };
        refused(&top, uid + 1, "belongs to user");
        refused(&top.join("a/b"), uid, "No such file");
        std::fs::write(top.join("file"), "").unwrap();
        refused(&top.join("file"), uid, "not a directory");
        std::os::unix::fs::symlink(&top, top.join("link")).unwrap();
        refused(&top.join("link"), uid, "not a directory");
        std::fs::set_permissions(&top, std::fs::Permissions::from_mode(0o755)).unwrap();
        refused(&top, uid, "mode 755");
        std::fs::remove_dir_all(&top).unwrap();
    }
}
