//! The host's own kernel and busybox, for hosts without apt.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::cache::Parts;

/// Where distributions put their kernels. `*` stands for every directory entry.
const KERNELS: [&str; 4] = ["/boot/vmlinuz-*", "/lib/modules/*/vmlinuz", "/boot/vmlinuz", "/vmlinuz"];
const BUSYBOXES: [&str; 4] =
    ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/local/bin/busybox"];

/// A readable kernel and a static busybox, or why there are none.
pub(crate) fn find() -> Result<Parts, String> {
    let kernel = find_kernel()?;
    let busybox = BUSYBOXES.iter().map(PathBuf::from).find(|p| is_static_amd64(p));
    let busybox =
        busybox.ok_or("a kernel but no static busybox for amd64 is there; install busybox-static")?;
    let description = format!("this host's kernel {} with a busybox shell", kernel.display());
    // Its modules may be compressed or signed for another kernel: do without.
    Ok(Parts { kernel, busybox, modules: Vec::new(), description })
}

fn find_kernel() -> Result<PathBuf, String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    // The running kernel first, then the newest name.
    let mut candidates: Vec<PathBuf> = KERNELS.iter().flat_map(|p| expand(p)).collect();
    candidates.sort_by_key(|p| std::cmp::Reverse((p.to_string_lossy().contains(&release), p.clone())));
    let mut unreadable = None;
    for path in candidates {
        match head(&path, 0x206) {
            Ok(bytes) if bytes.ends_with(b"HdrS") || bytes.get(0x202..0x206) == Some(b"HdrS") => {
                return Ok(path);
            }
            Ok(_) => {}
            Err(e) => unreadable = Some(format!("{} cannot be read: {e}", path.display())),
        }
    }
    Err(unreadable.unwrap_or_else(|| "no kernel in /boot or /lib/modules".to_string()))
}

/// Files that match a path with one `*` in it.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return [PathBuf::from(pattern)].into_iter().filter(|p| p.exists()).collect();
    };
    let Some((directory, prefix)) = before.rsplit_once('/') else { return Vec::new() };
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    names
        .filter(|n| n.starts_with(prefix))
        .map(|n| PathBuf::from(format!("{directory}/{n}{after}")))
        .filter(|p| p.exists())
        .collect()
}

fn head(path: &Path, len: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A 64-bit x86 ELF file without a program interpreter.
fn is_static_amd64(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(bytes) = head(path, 4096) else { return false };
    let u16_at = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let (Some(machine), Some(count)) = (u16_at(18), u16_at(56)) else { return false };
    let interpreter = (0..usize::from(count))
        .filter_map(|i| bytes.get(64 + i * 56..64 + i * 56 + 4))
        .any(|k| k == PT_INTERP.to_le_bytes());
    bytes.starts_with(b"\x7fELF\x02") && machine == 62 && !interpreter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_expand_to_what_is_there() {
        let directory = std::env::temp_dir().join(format!("strata-host-{}", std::process::id()));
        fs::create_dir_all(directory.join("6.1/x")).unwrap();
        fs::write(directory.join("6.1/vmlinuz"), "").unwrap();
        fs::write(directory.join("vmlinuz-6.1"), "").unwrap();
        let base = directory.display();
        assert_eq!(expand(&format!("{base}/*/vmlinuz")), [directory.join("6.1/vmlinuz")]);
        assert_eq!(expand(&format!("{base}/vmlinuz-*")), [directory.join("vmlinuz-6.1")]);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn only_a_static_program_passes() {
        // This test program is dynamic, or static but not found by mistake as a missing file is.
        assert!(!is_static_amd64(Path::new("/nonexistent")));
        assert!(!is_static_amd64(Path::new("/bin/sh")), "dash and bash are dynamic on every distribution");
    }
}
