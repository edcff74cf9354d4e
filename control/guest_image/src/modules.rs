//! Drivers of the default guest that its kernel has as modules.

use std::path::PathBuf;

use crate::Archive;

/// Those packed, whatever devices a machine has; the start script loads what it
/// finds devices for, in an order that suits their dependencies.
pub(crate) const NAMES: [&str; 25] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "virtio-rng",
    "virtio_balloon",
    "virtio_console",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "fuse",
    "virtiofs",
    "libnvdimm",
    "nd_btt",
    "nd_pmem",
    "nd_virtio",
    "virtio_pmem",
    "button",
    "evdev",
];

/// Where they are in the guest.
const FOLDER: &str = "lib/strata";

/// The file of a module.
pub(crate) fn file(name: &str) -> String {
    format!("{name}.ko")
}

/// Where they are in a kernel's package: `*` stands for folders too.
pub(crate) fn patterns() -> Vec<String> {
    NAMES.iter().map(|name| format!("*/{}", file(name))).collect()
}

/// An archive of modules, to follow the initramfs: the kernel unpacks one behind
/// the other.
///
/// # Errors
/// When one cannot be read.
pub(crate) fn pack(modules: &[PathBuf]) -> Result<Vec<u8>, (PathBuf, std::io::Error)> {
    let mut archive = Archive::new();
    archive.directory(FOLDER);
    for path in modules {
        let content = std::fs::read(path).map_err(|e| (path.clone(), e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("{FOLDER}/{name}"), 0o644, &content);
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_script_loads_nothing_that_is_not_packed() {
        let script = include_str!("init.sh");
        let mut seen = 0;
        for line in script.lines().map(str::trim) {
            let Some((_, words)) = line.split_once("load ") else { continue };
            for word in words.split_whitespace().take_while(|w| *w != ";;") {
                assert!(NAMES.contains(&word), "{word} in: {line}");
                seen += 1;
            }
        }
        assert_eq!(seen, NAMES.len(), "each once");
    }
}
