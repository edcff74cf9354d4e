//! Writes the ELF kernel within a bzImage to a file: `extract_vmlinux BZIMAGE VMLINUX`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, from, to] = &args[..] else { return Err("usage: extract_vmlinux BZIMAGE VMLINUX".into()) };
    std::fs::write(to, loader::extract_vmlinux(&std::fs::read(from)?)?)?;
    Ok(())
}
