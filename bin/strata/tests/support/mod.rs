//! The built program, in a place of one test's own.

#![allow(dead_code, reason = "each test binary uses some of these")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The size of a firmware, which ends at 4 GiB.
const FIRMWARE: usize = 4096;

/// A directory with the program's files, where it runs; removed at the end with the
/// machines that are left.
pub struct Host(pub PathBuf);

impl Host {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("strata-host-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
        Host(dir)
    }

    /// Write a firmware that does nothing but `code`, in real mode; its path.
    pub fn firmware(&self, name: &str, code: &[u8]) -> String {
        let mut image = code.to_vec();
        image.resize(FIRMWARE, 0xf4);
        // The reset vector, f000:fff0, jumps to f000:f000.
        image[FIRMWARE - 16..FIRMWARE - 13].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
        let path = self.0.join(name);
        std::fs::write(&path, image).expect("writable");
        path.to_str().expect("a plain name").to_string()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command
            .args(arguments)
            .current_dir(&self.0)
            .env("STRATA_RUNTIME_DIR", self.0.join("run"))
            .env("STRATA_STATE", self.0.join("state"))
            .env("STRATA_CACHE", self.0.join("cache"))
            .stdin(Stdio::null());
        command
    }

    pub fn strata(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the built command starts")
    }

    /// Run, expect a status, and answer what was printed.
    pub fn check(&self, arguments: &[&str], status: i32) -> String {
        let out = self.strata(arguments);
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(!text.contains("panicked at"), "{arguments:?}: {text}");
        text
    }

    /// Run, and read what was printed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.check(arguments, 0);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {text}"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed leaves no machine.
        let ids = self.strata(&["ps", "-aq"]).stdout;
        let ids = String::from_utf8_lossy(&ids).into_owned();
        for id in ids.lines() {
            self.strata(&["rm", "-f", id]);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
