//! `strata doctor`: what this host offers, what is missing, how to get it.

use std::io::Write;
use std::path::{Path, PathBuf};

use board::bytes_text;
use engine::EngineError;
use lifecycle::ProbeResult;
use sandbox::Landlock;
use serde::Serialize;
use vm_api::RuntimeDir;
use x86_state::CpuModel;

use crate::cli::{DoctorArgs, Format};

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// As it should be.
    Good,
    /// Works, but less well than it could.
    Fair,
    /// Something does not work here.
    Bad,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    subject: &'static str,
    grade: Grade,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn good(subject: &'static str, found: impl Into<String>) -> Finding {
    Finding { subject, grade: Grade::Good, found: found.into(), remedy: None }
}

fn lacking(
    subject: &'static str,
    grade: Grade,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { subject, grade, found: found.into(), remedy: Some(remedy.into()) }
}

/// Look at the host and print what was found. Status 0 unless something is bad.
pub fn command(args: &DoctorArgs) -> anyhow::Result<u8> {
    let probe = lifecycle::probe_kvm();
    let findings = look(&probe);
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => writeln!(out, "{}", serde_json::to_string(&findings)?)?,
        Format::Text => {
            for f in &findings {
                let mark = match f.grade {
                    Grade::Good => "ok  ",
                    Grade::Fair => "fair",
                    Grade::Bad => "BAD ",
                };
                writeln!(out, "{mark}  {:<14} {}", f.subject, f.found)?;
                if let Some(remedy) = &f.remedy {
                    writeln!(out, "{:21}remedy: {remedy}", "")?;
                }
            }
        }
    }
    Ok(u8::from(findings.iter().any(|f| f.grade == Grade::Bad)))
}

fn look(probe: &ProbeResult) -> Vec<Finding> {
    let translator = lifecycle::check_translator(1);
    vec![
        kvm(probe),
        jit(&translator),
        engine(probe, &translator),
        models(probe),
        memory(),
        processors(),
        confinement(),
        disks(),
        fetching(),
        cache(),
        runtime(),
    ]
}

fn jit(translator: &Result<(), EngineError>) -> Finding {
    match translator {
        Ok(()) => good("jit", "this processor runs translated code; address tables can be reserved"),
        Err(e) => lacking(
            "jit",
            Grade::Fair,
            e.to_string(),
            "nothing to do for a missing processor feature; a refused reservation wants ulimit -v unlimited",
        ),
    }
}

/// What `--engine auto` takes here, and why.
fn engine(probe: &ProbeResult, translator: &Result<(), EngineError>) -> Finding {
    let found = match (probe.usable, translator) {
        (true, _) => "auto takes kvm: it runs guests on the processor",
        (false, Ok(())) => "auto takes jit: KVM is absent or restricted, and translated code runs",
        (false, Err(_)) => "auto takes interp: neither KVM nor translated code runs",
    };
    good("engine", found)
}

fn runtime() -> Finding {
    const SUBJECT: &str = "runtime";
    match RuntimeDir::make() {
        Ok(dir) => good(SUBJECT, format!("running machines are found in {}", dir.path().display())),
        Err(e) => {
            let text = e.to_string();
            let (what, remedy) = text.split_once("; ").unwrap_or((&text, "set STRATA_RUNTIME_DIR"));
            lacking(SUBJECT, Grade::Fair, what, remedy)
        }
    }
}

fn kvm(probe: &ProbeResult) -> Finding {
    const SUBJECT: &str = "kvm";
    let path = Path::new("/dev/kvm");
    if !path.exists() {
        return lacking(
            SUBJECT,
            Grade::Fair,
            "/dev/kvm is not there; guests run on a software engine",
            "load kvm_intel or kvm_amd, enable virtualization in the firmware, or nested virtualization in the cloud",
        );
    }
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open(path) {
        return lacking(
            SUBJECT,
            Grade::Fair,
            format!("/dev/kvm cannot be opened ({e}); guests run on a software engine"),
            "add this user to the group kvm: sudo usermod -aG kvm $USER, then log in again",
        );
    }
    if probe.usable {
        return good(SUBJECT, probe.reason.clone());
    }
    lacking(
        SUBJECT,
        Grade::Fair,
        probe.reason.clone(),
        "nothing to do on this host; --engine kvm works with the interpreter's help",
    )
}

fn models(probe: &ProbeResult) -> Finding {
    const SUBJECT: &str = "cpu models";
    let names = ["x86-64-v1", "x86-64-v2", "x86-64-v3"];
    let under_kvm = if probe.present { "" } else { "; none under kvm" };
    let count = |name: &str| name.parse::<CpuModel>().map_or(0, |m| m.feature_names().len());
    let list: Vec<_> = names.iter().map(|n| format!("{n} ({} features)", count(n))).collect();
    let default = lifecycle::default_model();
    good(
        SUBJECT,
        format!("{}{under_kvm}; the default is {}: {}", list.join(", "), default.name, default.reason),
    )
}

/// A field of /proc/meminfo in bytes.
fn meminfo(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

fn memory() -> Finding {
    const SUBJECT: &str = "memory";
    const WANTED: u64 = 768 << 20;
    match meminfo("MemAvailable:") {
        Some(bytes) if bytes >= WANTED => {
            good(SUBJECT, format!("{} available", bytes_text(bytes >> 20 << 20)))
        }
        Some(bytes) => lacking(
            SUBJECT,
            Grade::Fair,
            format!(
                "{} available, less than a 512 MiB guest and its VMM want",
                bytes_text(bytes >> 20 << 20)
            ),
            "give guests less with --memory, or free some",
        ),
        None => lacking(SUBJECT, Grade::Fair, "cannot read /proc/meminfo", "mount /proc"),
    }
}

fn processors() -> Finding {
    const SUBJECT: &str = "host cpus";
    match std::thread::available_parallelism() {
        Ok(n) => good(SUBJECT, format!("{n}; one thread a vCPU runs in parallel up to that")),
        Err(e) => {
            lacking(SUBJECT, Grade::Fair, format!("count unknown ({e})"), "check the process's CPU affinity")
        }
    }
}

fn confinement() -> Finding {
    const SUBJECT: &str = "sandbox";
    let partial = |found: &str, remedy: &str| lacking(SUBJECT, Grade::Fair, found, remedy);
    match sandbox::landlock() {
        Landlock::Full => good(SUBJECT, "seccomp and Landlock confine every run"),
        Landlock::Partial => partial(
            "seccomp and an older Landlock confine every run; some finer rights are not taken",
            "a kernel of version 6.12 or newer",
        ),
        Landlock::Absent => partial(
            "no Landlock; seccomp alone confines a run",
            "a kernel with CONFIG_SECURITY_LANDLOCK and landlock in its lsm= list",
        ),
    }
}

fn disks() -> Finding {
    const SUBJECT: &str = "io_uring";
    match disk::check_io_uring() {
        Ok(()) => good(SUBJECT, "a disk with aio=io_uring has several requests of a queue under way"),
        Err(e) => lacking(
            SUBJECT,
            Grade::Fair,
            format!(
                "not for this process ({e}); a disk with aio=io_uring executes one request after another"
            ),
            "a kernel of version 5.10 or newer, sysctl kernel.io_uring_disabled=0, a container that allows it",
        ),
    }
}

/// The program's path, if PATH has it.
fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join(name)).find(|p| p.is_file())
}

fn fetching() -> Finding {
    const SUBJECT: &str = "apt";
    match program("apt-get") {
        Some(path) => good(SUBJECT, format!("{} fetches the built-in guest at first use", path.display())),
        None => lacking(
            SUBJECT,
            Grade::Fair,
            "apt-get is not there; the built-in guest cannot be fetched",
            "give images with --kernel and --initrd, or run on Debian or Ubuntu",
        ),
    }
}

fn cache() -> Finding {
    const SUBJECT: &str = "cache";
    let dir = match crate::guest::cache_dir() {
        Ok(dir) => dir,
        Err(e) => {
            return lacking(
                SUBJECT,
                Grade::Bad,
                e.to_string(),
                "set STRATA_CACHE to a directory you may write",
            );
        }
    };
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    let written = std::fs::create_dir_all(&dir)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe));
    match written {
        Ok(()) => good(SUBJECT, format!("{} is writable", dir.display())),
        Err(e) => lacking(
            SUBJECT,
            Grade::Bad,
            format!("{} cannot be written ({e})", dir.display()),
            "set STRATA_CACHE or XDG_CACHE_HOME to a directory that can",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_has_a_remedy() {
        let probe = lifecycle::probe_kvm();
        let mut findings = look(&probe);
        let refused = EngineError::BadState { engine: "jit", reason: "no room".into() };
        findings.push(jit(&Err(refused)));
        for f in findings {
            assert_eq!(f.grade == Grade::Good, f.remedy.is_none(), "{f:?}");
            assert!(!f.found.is_empty());
        }
    }

    #[test]
    fn the_engine_named_is_the_best_that_works() {
        let mut probe = lifecycle::probe_kvm();
        let refused = || Err(EngineError::BadState { engine: "jit", reason: "no room".into() });
        for (usable, translator, name) in [
            (true, Ok(()), "kvm"),
            (true, refused(), "kvm"),
            (false, Ok(()), "jit"),
            (false, refused(), "interp"),
        ] {
            probe.usable = usable;
            let found = engine(&probe, &translator).found;
            assert!(found.starts_with(&format!("auto takes {name}")), "{found}");
        }
    }
}
