//! The sandbox of `strata run`.
//!
//! Two steps, since threads start on the way. Before the first one starts, files
//! are confined to those the command line names. When all is set up, the thread
//! that runs the machine, and so its vCPUs, keeps what an engine opens when it
//! takes over and what is removed at the end; and no thread keeps a system call
//! that a running machine does not make.

use std::path::Path;

use anyhow::Context;
use board::{MachineSpec, NetBackend, ShareBackend, ShareSpec};
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
    /// `leaving`: a directory whose files are removed at the end; `trial`: one whose
    /// files are removed if the machine does not come to run.
    pub fn begin(
        spec: &MachineSpec,
        registration: Option<&Registration>,
        leaving: Option<&Path>,
        trial: Option<&Path>,
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
        };
        let images = [&spec.boot.kernel, &spec.boot.initrd, &spec.boot.firmware];
        let mut files = running.clone();
        files.read.extend(images.into_iter().flatten().cloned());
        files.remove.extend(trial.map(Path::to_path_buf));
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{ErrorKind, Write};
    use std::path::PathBuf;
    use std::process::Command;

    use board::SerialSpec;

    use super::*;
    use crate::output::Destination;

    /// Tells a process of this test its folder.
    const FOLDER: &str = "STRATA_CONFINE_TEST";
    const INSIDE: &str = "confine::tests::inside";

    #[test]
    fn a_serial_file_gives_no_right_on_its_folder() {
        if sandbox::landlock() == Landlock::Absent {
            return;
        }
        let folder = std::env::temp_dir().join(format!("strata-confine-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("profile"), "the user's").expect("a file");
        let output = Command::new(std::env::current_exe().expect("a path"))
            .args(["--ignored", "--exact", INSIDE, "--nocapture", "--test-threads=1"])
            .env(FOLDER, &folder)
            .output()
            .expect("it starts");
        let log = fs::read_to_string(folder.join("boot.log"));
        let profile = fs::read_to_string(folder.join("profile"));
        fs::remove_dir_all(&folder).expect("removed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(log.expect("made"), "booted");
        assert_eq!(profile.expect("kept"), "the user's");
    }

    /// Confines its process, so never run with others.
    #[test]
    #[ignore = "started by the other test, in a process of its own"]
    fn inside() {
        let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
        let log = folder.join("boot.log");
        let spec = MachineSpec { serial: vec![SerialSpec::File(log.clone())], ..MachineSpec::default() };
        let serial: Vec<_> = spec.serial.iter().map(|s| Destination::open(s).expect("made")).collect();
        let _sandbox = Sandbox::begin(&spec, None, None, None).expect("confined");
        // A thread that starts between the two steps keeps these rights for life.
        let thread = std::thread::spawn(move || {
            let profile = folder.join("profile");
            for path in [&profile, &log, &folder.join("new")] {
                let opened = File::options().write(true).create(true).truncate(true).open(path);
                let kind = opened.err().map(|e| e.kind());
                assert_eq!(kind, Some(ErrorKind::PermissionDenied), "{}", path.display());
            }
            let removed = fs::remove_file(&profile).err().map(|e| e.kind());
            assert_eq!(removed, Some(ErrorKind::PermissionDenied));
            let [Destination::File(mut file)] = <[_; 1]>::try_from(serial).ok().expect("one") else {
                panic!("no file");
            };
            file.write_all(b"booted").expect("what is open stays open");
        });
        thread.join().expect("as it should be");
    }
}
