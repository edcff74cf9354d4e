//! The seed disk: who a guest is, told at its first start.
//!
//! One FAT volume labelled `cidata` serves two readers. cloud-init (in the cloud
//! images of distributions) reads `meta-data` and `user-data` at its root, its
//! NoCloud source. The unit in images that Strata builds reads `strata/`, where
//! each thing told is a file, so that no parser is needed in the guest:
//!
//! | file | content |
//! | --- | --- |
//! | `instance` | identifier of the machine; a new one makes the guest take all the rest |
//! | `hostname` | its name |
//! | `user` | a user to make, who may become root |
//! | `password` | that user's (else root's) password, hashed as crypt(5) `$6$` |
//! | `authorized_keys` | SSH keys that may log in as that user (else root) |
//! | `files.tar` | files to write |
//! | `command` | a shell command to run on the console instead of a login, before power off |

mod identity;
mod password;
mod volume;

pub use identity::{GuestFile, Identity, IdentityError, MAX_FILES};
pub use password::PasswordHash;
pub use volume::SeedError;

impl Identity {
    /// The bytes of the seed disk.
    ///
    /// # Errors
    /// When something told is not fit to be told, or the volume cannot be made.
    pub fn seed(&self) -> Result<Vec<u8>, SeedError> {
        self.validate()?;
        volume::write(&self.contents()?)
    }
}
