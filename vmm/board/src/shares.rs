//! Folders of the host: what is wanted, and who serves them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vhost_user_fs::{Backend, DaemonError, VhostUserFs};
use virtio_core::VirtioDevice;
use virtio_fs::{FsConfig, VirtioFs};

use crate::board::BoardError;
use crate::devices::{Attachment, Context};
use crate::spec::MachineSpec;

/// A folder of the host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSpec {
    /// The name by which the guest mounts it, 1 to 36 bytes.
    pub tag: String,
    /// The folder.
    pub folder: PathBuf,
    /// Whether the guest may change nothing.
    #[serde(default)]
    pub read_only: bool,
    /// Who serves it.
    #[serde(default)]
    pub backend: ShareBackend,
}

/// Who serves a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShareBackend {
    /// The machine's process.
    #[default]
    Internal,
    /// virtiofsd(1), a process of its own.
    Virtiofsd,
}

/// Start the daemons of a machine's folders, for [`crate::BoardIo::shares`]. To be
/// called before a sandbox closes, which they would inherit.
///
/// # Errors
/// When there is no such daemon, or it does not serve.
pub fn open_shares(spec: &MachineSpec) -> Result<Vec<Backend>, DaemonError> {
    let theirs = spec.shares.iter().filter(|s| s.backend == ShareBackend::Virtiofsd);
    theirs.map(|s| vhost_user_fs::start(&s.folder, s.read_only)).collect()
}

/// Make the file system devices, some with daemons that run already.
///
/// # Errors
/// When a folder cannot be opened, or a daemon is missing.
pub(crate) fn make_shares(
    spec: &MachineSpec,
    daemons: Vec<Backend>,
) -> Result<Vec<Box<dyn VirtioDevice>>, BoardError> {
    let mut daemons = daemons.into_iter();
    let mut make = |share: &ShareSpec| -> std::io::Result<Box<dyn VirtioDevice>> {
        let ShareSpec { tag, folder, read_only, backend } = share;
        let read_only = *read_only;
        Ok(match backend {
            ShareBackend::Internal => Box::new(VirtioFs::new(FsConfig { tag, folder, read_only })?),
            ShareBackend::Virtiofsd => {
                let none = || std::io::Error::other("its virtiofsd has not been started");
                let config = vhost_user_fs::FsConfig { tag, read_only };
                Box::new(VhostUserFs::new(config, daemons.next().ok_or_else(none)?)?)
            }
        })
    };
    let shares = spec.shares.iter();
    let failed = |share: &ShareSpec, error| BoardError::Share { folder: share.folder.clone(), error };
    shares.map(|share| make(share).map_err(|e| failed(share, e))).collect()
}

/// The file system devices, which the board has made.
pub(crate) fn virtio_shares(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let mut list = Vec::new();
    for (n, device) in std::mem::take(&mut c.shares).into_iter().enumerate() {
        list.extend(c.plug(format!("share-{n}"), device));
    }
    list
}
