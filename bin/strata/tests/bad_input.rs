//! Bad input gives one clear error with its remedy and a non-zero status, and
//! nothing panics.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn strata(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("the built command starts")
}

/// Run, expect a status and that standard error holds each text.
fn check(arguments: &[&str], status: i32, texts: &[&str]) {
    let out = strata(arguments);
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{arguments:?}: {err}");
    for text in texts {
        assert!(err.contains(text), "{arguments:?} lacks \"{text}\":\n{err}");
    }
    assert!(!err.contains("panicked at"), "{arguments:?}:\n{err}");
    assert!(out.stdout.is_empty(), "{arguments:?} printed on standard output");
}

/// A directory of this test's own, removed at the end.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("strata-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
        Files(dir)
    }
    fn with(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("the temporary directory is writable");
        text(&path)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("the temporary directory has a plain name").to_string()
}

/// The first page of a bzImage whose header describes far more (Linux
/// Documentation/arch/x86/boot.rst).
fn truncated_kernel() -> Vec<u8> {
    let mut image = vec![0u8; 4096];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&0x8_0000u32.to_le_bytes());
    image
}

#[test]
fn kernels_that_are_none() {
    let files = Files::new("kernels");
    let run = |path: &str, texts: &[&str]| {
        check(&["run", "--engine", "interp", "--timeout", "10s", "--kernel", path], 2, texts);
    };
    run(&files.with("empty", b""), &["error: kernel", "zero bytes", "remedy: "]);
    run(&files.with("text", b"hello, this is no kernel\n"), &["error: ", "text", "remedy: "]);
    run(&files.with("short", &truncated_kernel()), &["error: ", "truncated", "remedy: "]);
    run(&text(&files.0.join("missing")), &["cannot read kernel", "No such file", "remedy: check the path"]);
    run(&text(&files.0), &["not a regular file", "remedy: "]);
}

#[test]
fn unreadable_files() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new("unreadable");
    let path = files.with("kernel", b"x");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("our own file");
    if std::fs::File::open(&path).is_ok() {
        // Root reads everything: no file of ours is unreadable then.
        return;
    }
    check(
        &["run", "--kernel", &path],
        2,
        &["cannot read kernel", "Permission denied", "remedy: make it readable"],
    );
}

#[test]
fn machines_that_cannot_be() {
    let files = Files::new("machines");
    let kernel = files.with("kernel", &truncated_kernel());
    let run = |more: &[&str], texts: &[&str]| {
        let mut line = vec!["run", "--engine", "interp", "--kernel", &kernel];
        line.extend(more);
        check(&line, 2, texts);
    };
    run(&["--memory", "1M"], &["1 MiB of memory is too little", "remedy: give --memory"]);
    run(&["--memory", "0"], &["too little", "remedy: "]);
    run(&["--memory", "600G"], &["600 GiB of memory is too much", "remedy: "]);
    run(&["--memory", "lots"], &["unknown unit", "512M"]);
    run(&["--cpus", "0"], &["0 vCPUs", "remedy: use --cpus 1"]);
    run(&["--cpus", "65"], &["65 vCPUs", "remedy: "]);
    run(&["--cpus", "4", "--cpus-max", "2"], &["4 vCPUs at the start and at most 2", "--cpus-max"]);
    run(&["--memory-max", "600M"], &["512 MiB of memory at the start and at most 600 MiB", "128 MiB"]);
    run(&["--memory-max", "256M"], &["at most 256 MiB later", "--memory-max"]);
    run(&["--watchdog", "bark"], &["reset, power-off or none"]);
    run(&["--cpus", "many"], &["--cpus"]);
    run(&["--cpu", "pentium"], &["unknown CPU model \"pentium\"", "x86-64-v3"]);
    run(&["--cpu", "x86-64-v2,+wings"], &["wings"]);
    run(&["--engine", "xen"], &["unknown engine \"xen\"", "interp"]);
    run(&["--serial", "tcp:1"], &["not a serial sink"]);
    run(&["--initrd", &text(&files.0.join("missing"))], &["cannot read initrd", "remedy: check the path"]);
    check(&["run", "--initrd", &kernel], 2, &["--kernel"]);
    check(&["fly"], 2, &["fly"]);
}

#[test]
fn a_cache_that_cannot_be_written() {
    let files = Files::new("cache");
    // A file where the directory should be refuses root, too.
    let blocked = files.with("blocked", b"");
    let out = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["run", "--engine", "interp"])
        .env("STRATA_CACHE", format!("{blocked}/cache"))
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the built command starts");
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert!(err.contains("error: ") && err.contains("cache") && err.contains("STRATA_CACHE"), "{err}");
}

#[test]
fn help_and_completion_document_the_interface() {
    let help = strata(&["run", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for text in ["Exit status", "124", "Ctrl-A x", "--timeout", "--engine", "--memory"] {
        assert!(help.contains(text), "help lacks {text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let out = strata(&["completion", shell]);
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("strata"), "{shell}");
    }
}
