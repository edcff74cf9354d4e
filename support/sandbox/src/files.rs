//! Files, by Landlock (Linux `Documentation/userspace-api/landlock.rst`).

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::SandboxError;

/// The newest interface whose rights are asked for; older kernels know fewer.
const NEWEST: ABI = ABI::V7;

/// What may still be opened. Paths that do not exist are left out.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Files to read.
    pub read: Vec<PathBuf>,
    /// Devices to open and control.
    pub devices: Vec<PathBuf>,
    /// Files to write that are there.
    pub update: Vec<PathBuf>,
    /// Directories to read with all below them.
    pub read_below: Vec<PathBuf>,
    /// Directories in which, and below, anything but devices may be made, changed and removed.
    pub change_below: Vec<PathBuf>,
    /// Directories to remove with the files in them.
    pub remove: Vec<PathBuf>,
    /// TCP connections may be made.
    pub connect: bool,
}

/// How far the host's Landlock goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// Every right asked for is enforced.
    Full,
    /// An older kernel: files are confined; some finer rights, or signals and abstract
    /// sockets, are not.
    Partial,
    /// The kernel has none, or it is switched off.
    Absent,
}

/// What this host has.
pub fn landlock() -> Landlock {
    let required = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let newest = required().handle_access(AccessFs::from_all(NEWEST));
    let newest = newest.and_then(|rules| rules.scope(Scope::from_all(NEWEST)));
    let oldest = required().handle_access(AccessFs::from_all(ABI::V1));
    match (newest.and_then(Ruleset::create).is_ok(), oldest.and_then(Ruleset::create).is_ok()) {
        (true, _) => Landlock::Full,
        (false, true) => Landlock::Partial,
        _ => Landlock::Absent,
    }
}

/// Take every other file, and TCP connections unless they are allowed, from this
/// thread and those it starts from now on; also signals to other processes and abstract Unix
/// sockets of others. What is open stays open. Rights given away before do not come back.
///
/// Linux 6.12 without its erratum 2 refuses signals to threads of the own process that gave
/// away less; none are sent.
///
/// # Errors
/// When the kernel has Landlock and refuses. One that has none is told by the answer.
pub fn confine_files(files: &Files) -> Result<Landlock, SandboxError> {
    let all = AccessFs::from_all(NEWEST);
    // What is not handled is not taken.
    let network = if files.connect { AccessNet::BindTcp.into() } else { AccessNet::from_all(NEWEST) };
    let mut rules = Ruleset::default()
        .handle_access(all)?
        .handle_access(network)?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        // Inherited by set-user-ID programs otherwise; the process starts none.
        .no_new_privs(true);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let update = AccessFs::WriteFile | AccessFs::Truncate;
    // A directory goes by a right on the one it is in.
    let parents: Vec<_> = files.remove.iter().filter_map(|d| d.parent()).map(PathBuf::from).collect();
    let look = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = AccessFs::from_all(NEWEST)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let lists: [(&[PathBuf], BitFlags<AccessFs>); 7] = [
        (&files.read, AccessFs::ReadFile.into()),
        (&files.devices, device),
        (&files.update, update),
        (&files.read_below, look),
        (&files.change_below, change),
        (&files.remove, AccessFs::RemoveFile.into()),
        (&parents, AccessFs::RemoveDir.into()),
    ];
    for (paths, access) in lists {
        for path in paths.iter().filter(|p| Path::exists(p)) {
            // A directory where a file is expected: its opener is to see what it is.
            let misplaced = access == AccessFs::ReadFile && path.is_dir();
            let access = if misplaced { AccessFs::ReadDir.into() } else { access };
            rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
        }
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Absent,
    })
}
