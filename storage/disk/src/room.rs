//! How much the host has left.

use std::os::fd::AsFd;

/// Bytes that this user may still write to the file system of an open file; `None`
/// where it does not tell. Quotas are not counted.
pub fn room(file: impl AsFd) -> Option<u64> {
    let told = rustix::fs::fstatvfs(file).ok()?;
    told.f_bavail.checked_mul(told.f_frsize)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_system_tells() {
        let file = tempfile::tempfile().expect("a temporary file");
        let room = super::room(&file).expect("it tells");
        assert!(room > 0 && room < 1 << 60, "{room}");
    }
}
