//! What a guest sees of a share whoever serves it: queues, the tag, and that one which
//! is mounted stays where it is.

use std::io;

use saved_state::StateError;

/// High-priority requests, and others: the largest size of each queue.
pub const QUEUES: [u16; 2] = [128, 1024];
/// The longest name of a share (5.11.4), in bytes.
pub const MAX_TAG: usize = 36;
/// The device's name for logs and saved state.
pub const NAME: &str = "virtio-fs";

/// The name by which a guest mounts a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag([u8; MAX_TAG]);

impl Tag {
    /// A name of 1 to [`MAX_TAG`] bytes, none of them 0.
    ///
    /// # Errors
    /// When it is another.
    pub fn new(tag: &str) -> io::Result<Self> {
        if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') {
            let text = format!("tag \"{tag}\" of a share; it has 1 to {MAX_TAG} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut bytes = [0; MAX_TAG];
        bytes[..tag.len()].copy_from_slice(tag.as_bytes());
        Ok(Tag(bytes))
    }

    /// Read `struct virtio_fs_config`: the tag, and one queue for requests.
    pub fn config_read(&self, offset: u64, to: &mut [u8]) {
        let mut config = [0; MAX_TAG + 4];
        config[..MAX_TAG].copy_from_slice(&self.0);
        config[MAX_TAG..].copy_from_slice(&1u32.to_le_bytes());
        virtio_core::read_config(&config, offset, to);
    }
}

/// The state of a share: whether a guest has mounted it. The inodes it knows then are
/// the host's and of one process.
pub fn save_mounted(mounted: bool) -> Vec<u8> {
    vec![u8::from(mounted)]
}

/// Check that a saved share was not mounted.
///
/// # Errors
/// When it was, or this is no state of a share.
pub fn check_not_mounted(state: &[u8]) -> Result<(), StateError> {
    let what = "0: a share that was mounted cannot be restored; unmount it before saving";
    let mounted = state.first().copied().unwrap_or(u8::MAX);
    StateError::check(state == [0], NAME, "mounted", mounted, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_1_to_36_bytes_and_one_queue_behind_them() {
        for (tag, good) in
            [("", false), ("a", true), (&"x".repeat(36), true), (&"x".repeat(37), false), ("a\0b", false)]
        {
            assert_eq!(Tag::new(tag).is_ok(), good, "{tag:?}");
        }
        let mut config = [9; 44];
        Tag::new("ab").unwrap().config_read(0, &mut config);
        assert_eq!((&config[..3], &config[36..]), (&b"ab\0"[..], &[1, 0, 0, 0, 0, 0, 0, 0][..]));
    }

    #[test]
    fn what_was_mounted_is_not_restored() {
        assert!(check_not_mounted(&save_mounted(false)).is_ok());
        for state in [save_mounted(true), vec![], vec![0, 0]] {
            assert!(check_not_mounted(&state).is_err(), "{state:?}");
        }
    }
}
