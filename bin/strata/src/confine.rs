//! The sandbox of `strata run`.
//!
//! Two steps, since threads start on the way. Before the first one starts, files
//! are confined to those the command line names. When all is set up, the thread
//! that runs the machine, and so its vCPUs, keeps what an engine opens when it
//! takes over and what is removed at the end; and no thread keeps a system call
//! that a running machine does not make.

use std::path::{Path, PathBuf};

use anyhow::Context;
use board::{MachineSpec, NetBackend, SerialSpec, ShareBackend, ShareSpec};
use sandbox::{Calls, Files, Landlock};
use vm_api::Registration;

/// What an engine opens when it takes over.
const KVM: &str = "/dev/kvm";
/// Where the process reads how much memory it has.
const MEMORY: &str = "/proc/self/statm";

/// The sandbox on its way.
pub struct Sandbox {
    landlock: Landlock,
    /// What the owner of the machine needs to its end.
    running: Files,
    /// What its devices need.
    calls: Calls,
}

impl Sandbox {
    /// Confine this thread, and those it starts, to the files of a machine.
    /// `leaving`: a directory whose files are removed at the end.
    pub fn begin(
        spec: &MachineSpec,
        registration: Option<&Registration>,
        leaving: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let networks = || spec.nets.iter().map(|n| &n.backend);
        let connect = networks().any(|b| matches!(b, NetBackend::Nat(_)));
        let tap = networks().any(|b| matches!(b, NetBackend::Tap(_) | NetBackend::Bridge(_)));
        let below = |read_only| {
            // A daemon opens what it serves by itself.
            let shares = own_shares(spec).filter(move |s| s.read_only == read_only);
            shares.map(|s| s.folder.clone()).collect()
        };
        let running = Files {
            // A device's thread is started by the vCPU that sets the device up, and has its rights.
            connect,
            read_below: below(true),
            change_below: below(false),
            read: vec![MEMORY.into()],
            devices: vec![KVM.into()],
            update: registration.map(Registration::guard_path).into_iter().collect(),
            remove: registration
                .map(Registration::directory)
                .into_iter()
                .chain(leaving)
                .map(Path::to_path_buf)
                .collect(),
            ..Files::default()
        };
        let images = [&spec.boot.kernel, &spec.boot.initrd, &spec.boot.firmware];
        let outputs = spec.serial.iter().filter_map(|s| match s {
            SerialSpec::File(path) => Some(directory(path)),
            _ => None,
        });
        let mut files = running.clone();
        files.read.extend(images.into_iter().flatten().cloned());
        files.make.extend(outputs);
        for disk in &spec.disks {
            files.read.extend(disk.files().map_err(board::BoardError::from)?);
            if !disk.read_only {
                files.update.push(disk.path.clone());
            }
        }
        for pmem in &spec.pmems {
            files.read.push(pmem.path.clone());
            if !pmem.read_only {
                files.update.push(pmem.path.clone());
            }
        }
        let landlock = sandbox::confine_files(&files).context("cannot enter the sandbox")?;
        let to_host = spec.vsock.as_ref().is_some_and(|v| v.to_host.is_some());
        let folders = own_shares(spec).next().is_some();
        let calls = Calls { open: false, connect, tap, unix_connect: to_host, folders };
        Ok(Sandbox { landlock, running, calls })
    }

    /// Everything is open. `opens_later`: an engine is still to be opened, for
    /// which a host without Landlock has to allow the opening of any file.
    pub fn seal(self, opens_later: bool) -> anyhow::Result<()> {
        sandbox::confine_files(&self.running)
            .and_then(|_| {
                let open = opens_later || self.landlock != Landlock::Absent;
                sandbox::confine_calls(Calls { open, ..self.calls })
            })
            .context("cannot enter the sandbox")
    }
}

/// The folders that this process serves.
fn own_shares(spec: &MachineSpec) -> impl Iterator<Item = &ShareSpec> {
    spec.shares.iter().filter(|s| s.backend == ShareBackend::Internal)
}

/// Where a file is made.
fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
