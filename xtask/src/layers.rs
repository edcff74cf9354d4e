//! The layer rule: folders are layers, and dependencies point down only.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;
use crate::report::Report;

/// Layers, top first. Folders in one line are siblings.
const LAYERS: [&[&str]; 6] = [
    &["bin"],
    &["control"],
    &["vmm"],
    &["cpu", "devices", "storage", "net", "boot"],
    &["machine"],
    &["support"],
];

/// Outside the layers: may depend on anything, and nothing depends on them.
const OUTSIDE: [&str; 4] = ["tests", "xtask", "bench", "fuzz"];

/// What runs in guests: below everything, and on nothing but itself. Of it, only
/// the contract is for other folders: the agent is a program of its own.
const GUEST: (&str, &str) = ("guest", "agent_protocol");

/// Crates among the siblings that are contracts or shared ground, not
/// implementations: siblings may depend on these alone.
const CONTRACTS: [&str; 8] =
    ["engine", "x86_semantics", "x86_mmu", "soft_float", "code_cache", "virtio_core", "disk", "port"];

/// Dependencies among siblings that the rule would refuse, each with its reason.
const EXCEPTIONS: [(&str, &str, &str); 4] = [
    ("translator", "interpreter", "executes what the translator leaves out: one home for semantics"),
    ("nvme", "pci", "the standard defines a controller as a PCI function"),
    ("virtio_core", "pci", "the PCI transport is half of the virtio contract"),
    ("vhost_user_fs", "virtio_fs", "one device to guests: its tag, queues and requests, whoever serves them"),
];

/// One crate of the workspace.
struct Crate {
    name: String,
    folder: String,
    dependencies: Vec<String>,
}

/// Check every normal and build dependency between crates of the workspace.
pub fn check(report: &mut Report) -> Result<()> {
    let crates = workspace()?;
    let mut findings = Vec::new();
    for c in &crates {
        for d in &c.dependencies {
            let Some(target) = crates.iter().find(|t| t.name == *d) else { continue };
            findings.extend(judge(c, target));
        }
    }
    findings.extend(unexplained_folders(&crates));
    report.add("layers", findings);
    Ok(())
}

fn level(folder: &str) -> Option<usize> {
    LAYERS.iter().position(|l| l.contains(&folder))
}

/// What is wrong with `from` depending on `to`, if anything.
fn judge(from: &Crate, to: &Crate) -> Option<String> {
    let wrong = |why: &str| {
        Some(format!("{}/{} depends on {}/{}: {why}", from.folder, from.name, to.folder, to.name))
    };
    if OUTSIDE.contains(&to.folder.as_str()) && from.folder != to.folder {
        return wrong("nothing depends on tests and tools");
    }
    if from.folder == GUEST.0 || to.folder == GUEST.0 {
        return if to.folder == GUEST.0 && to.name == GUEST.1 {
            None
        } else {
            wrong("what runs in guests stands alone, and only its protocol is for others")
        };
    }
    let (Some(above), Some(below)) = (level(&from.folder), level(&to.folder)) else {
        return if OUTSIDE.contains(&from.folder.as_str()) { None } else { wrong("a folder is in no layer") };
    };
    let siblings = LAYERS[above].len() > 1 && above == below;
    let excepted = EXCEPTIONS.iter().any(|e| (e.0, e.1) == (from.name.as_str(), to.name.as_str()));
    if above > below {
        wrong("arrows point down only; move the shared part below both")
    } else if siblings && !CONTRACTS.contains(&to.name.as_str()) && !excepted {
        wrong("among siblings only contract crates may be depended on")
    } else {
        None
    }
}

/// Each folder with crates states its rule in a README.
fn unexplained_folders(crates: &[Crate]) -> Vec<String> {
    let mut folders: Vec<&str> =
        crates.iter().map(|c| c.folder.as_str()).filter(|f| level(f).is_some() || *f == GUEST.0).collect();
    folders.sort_unstable();
    folders.dedup();
    let missing = folders.into_iter().filter(|f| !Path::new(f).join("README.md").exists());
    missing.map(|f| format!("{f}/README.md is missing; it states the folder's rule")).collect()
}

fn workspace() -> Result<Vec<Crate>> {
    let text = command::output(&command::cargo(), &["metadata", "--format-version=1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
    let root = metadata["workspace_root"].as_str().context("cargo metadata has no workspace_root")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    packages.iter().map(|p| read_crate(p, root)).collect()
}

fn read_crate(package: &Value, root: &str) -> Result<Crate> {
    let name = package["name"].as_str().context("a package has no name")?;
    let manifest = package["manifest_path"].as_str().context("a package has no manifest_path")?;
    let inside =
        Path::new(manifest).strip_prefix(root).with_context(|| format!("{manifest} is outside {root}"))?;
    let folder = inside.components().next().context("a manifest at the root is no crate")?;
    let dependencies = package["dependencies"].as_array().context("a package has no dependencies")?;
    Ok(Crate {
        name: name.to_string(),
        folder: folder.as_os_str().to_string_lossy().into_owned(),
        dependencies: dependencies
            .iter()
            .filter(|d| d["kind"].as_str() != Some("dev"))
            .filter_map(|d| d["name"].as_str().map(str::to_string))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(folder: &str, name: &str) -> Crate {
        Crate { name: name.into(), folder: folder.into(), dependencies: Vec::new() }
    }

    #[test]
    fn arrows_point_down_and_siblings_meet_at_contracts() {
        let cases = [
            (("bin", "strata"), ("vmm", "board"), true),
            (("vmm", "board"), ("vmm", "lifecycle"), true),
            (("vmm", "board"), ("bin", "strata"), false),
            (("machine", "guest_memory"), ("cpu", "engine"), false),
            (("support", "host_sys"), ("machine", "x86_state"), false),
            (("cpu", "interpreter"), ("cpu", "engine"), true),
            (("cpu", "kvm"), ("cpu", "interpreter"), false),
            (("cpu", "translator"), ("cpu", "interpreter"), true),
            (("devices", "chipset"), ("devices", "pci"), false),
            (("devices", "virtio_blk"), ("storage", "disk"), true),
            (("devices", "virtio_blk"), ("storage", "disk_qcow2"), false),
            (("tests", "harness"), ("bin", "strata"), true),
            (("vmm", "board"), ("tests", "harness"), false),
            (("bin", "strata"), ("guest", "agent_protocol"), true),
            (("guest", "agent"), ("guest", "agent_protocol"), true),
            (("bin", "strata"), ("guest", "agent"), false),
            (("guest", "agent"), ("support", "host_sys"), false),
            (("odd", "thing"), ("machine", "x86_state"), false),
        ];
        for (from, to, allowed) in cases {
            let verdict = judge(&named(from.0, from.1), &named(to.0, to.1));
            assert_eq!(verdict.is_none(), allowed, "{from:?} -> {to:?}: {verdict:?}");
        }
    }
}
