//! The agent for guests, as a file to put into them.
//!
//! [`bytes`] is a static program for the target that this crate is compiled for;
//! it needs nothing in the guest but a kernel with vsock. Its source is in
//! `guest/agent`; `docs/agent.md` tells what it does.

/// Where an image carries the agent.
pub const PATH: &str = "usr/local/sbin/strata-agent";
/// Where an image carries [`systemd_unit`].
pub const UNIT_PATH: &str = "etc/systemd/system/strata-agent.service";
/// The link that starts the unit at boot: its path, and what it points to.
pub const UNIT_LINK: (&str, &str) =
    ("etc/systemd/system/multi-user.target.wants/strata-agent.service", "../strata-agent.service");

static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/strata-agent"));

/// The program, an ELF file of 1.3 MB; to be installed with mode 0755.
pub fn bytes() -> &'static [u8] {
    PROGRAM
}

/// The unit that starts the agent in a guest with systemd, for [`UNIT_PATH`].
///
/// It starts with the first services, so that a guest whose network does not come
/// up can still be looked into. What commands leave running belongs to the user,
/// as after a login, and is not ended with the agent.
pub fn systemd_unit() -> &'static str {
    include_str!("strata-agent.service")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offset of the type, the machine and the program headers in an ELF-64 header.
    fn field(at: usize, size: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&PROGRAM[at..at + size]);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn the_program_needs_no_other_file() {
        assert_eq!(&PROGRAM[..5], b"\x7fELF\x02");
        let (table, size, count) = (field(32, 8) as usize, field(54, 2) as usize, field(56, 2) as usize);
        // PT_INTERP would name a dynamic loader.
        assert!((0..count).all(|i| field(table + i * size, 4) != 3));
        assert!(PROGRAM.len() < 2 << 20, "{} bytes", PROGRAM.len());
    }

    #[test]
    fn the_program_runs() {
        let path = std::env::temp_dir().join(format!("strata-agent-{}", std::process::id()));
        std::fs::write(&path, PROGRAM).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let output = std::process::Command::new(&path).arg("version").output();
        std::fs::remove_file(&path).unwrap();
        assert!(output.unwrap().stdout.ends_with(b"\n"));
    }

    #[test]
    fn the_unit_starts_the_program_where_it_is() {
        assert!(systemd_unit().contains(&format!("ExecStart=/{PATH} serve")));
    }
}
