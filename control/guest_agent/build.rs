//! Compiles the agent for guests.
//!
//! Plain rustc, statically linked to the C library of the toolchain's own target
//! (libc6-dev has libc.a), so that no second target has to be installed, no cargo
//! runs inside cargo, and the repository holds no binary.

use std::path::{Path, PathBuf};
use std::process::Command;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn rustc(arguments: &[&str]) {
    let output = Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--target", &variable("TARGET")])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Ccodegen-units=1", "-Ctarget-feature=+crt-static"])
        // Warnings are the workspace build's to tell.
        .args(["--cap-lints=allow"])
        .args(arguments)
        .output()
        .expect("rustc starts, for cargo has just run it");
    assert!(
        output.status.success(),
        "the guest's agent does not compile; it needs a static C library (Debian: libc6-dev):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("cargo's paths are text")
}

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../../guest");
    let out = PathBuf::from(variable("OUT_DIR"));
    for crate_name in ["agent_protocol", "agent"] {
        println!("cargo::rerun-if-changed={}", root.join(crate_name).join("src").display());
    }
    let library = out.join("libagent_protocol.rlib");
    let protocol = root.join("agent_protocol/src/lib.rs");
    rustc(&["--crate-name=agent_protocol", "--crate-type=rlib", "-o", text(&library), text(&protocol)]);
    let (main, program) = (root.join("agent/src/main.rs"), out.join("strata-agent"));
    let library = format!("agent_protocol={}", text(&library));
    rustc(&[
        "--crate-name=strata_agent",
        "--crate-type=bin",
        "-Clto=fat",
        "-Cstrip=symbols",
        "--extern",
        &library,
        "-o",
        text(&program),
        text(&main),
    ]);
}
