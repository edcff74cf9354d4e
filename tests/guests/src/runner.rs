//! Many programs in one guest: put into its initramfs, run one after another,
//! their status and output sent back through the second serial port. The same
//! programs run natively for comparison.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::read::MultiGzDecoder;
use guest_image::{ExtraFile, GuestFiles};

use crate::machine::{Finished, Guest, Running};
use crate::slow_tests;

/// Seconds a program may take natively, where some of the selftests hang.
fn native_limit() -> u32 {
    if slow_tests() { 120 } else { 10 }
}

/// Seconds a program may take in the guest: none needs a tenth of it on a host of
/// its own, but a host may have many times as much work as processors.
fn guest_limit() -> u32 {
    if slow_tests() { 7200 } else { 900 }
}

/// How much longer than a program may take a guest may be silent, to boot for
/// instance. One whose programs come back runs as long as it needs.
const SILENCE: Duration = Duration::from_secs(120);
/// No guest runs longer.
const SUITE_LIMIT: Duration = Duration::from_secs(24 * 3600);
const POLL: Duration = Duration::from_millis(100);

/// Output beyond this is cut off, equally natively and in the guest.
const OUTPUT_CAP: u64 = 64 << 20;

/// A program to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// Name in reports, e.g. `ldt_gdt_32`.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// How its run is judged.
    pub judge: Judge,
}

/// What makes a run good.
#[derive(Debug, Clone)]
pub enum Judge {
    /// Status 0 and no line with `[FAIL]`: the kernel's selftests.
    Selftest,
    /// Standard output equals one of these files, both through this filter.
    Expected(Vec<PathBuf>, Option<PathBuf>),
    /// Status and standard output equal the native run's, the output only where
    /// two native runs agree.
    Native,
    /// Status 0, whatever is printed: threads print in any order.
    Status,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Exit status as a shell tells it: 128 plus the signal's number.
    pub status: i32,
    /// Standard output and, for selftests, standard error.
    pub output: Vec<u8>,
}

/// How shells of both sides run program `$0`: within so many seconds, and with
/// the wanted streams.
fn command_line(program: &Program, limit: u32) -> String {
    let errors = if matches!(program.judge, Judge::Selftest) { "2>&1" } else { "2>/dev/null" };
    format!("timeout {limit} \"$0\" </dev/null {errors}")
}

/// Run a program on the host.
///
/// # Errors
/// When it cannot be started.
pub fn run_natively(program: &Program) -> Result<Run> {
    let script = format!(
        "cd /tmp; {{ {}; echo $? >&3; }} 3>&2 | head -c {OUTPUT_CAP}",
        command_line(program, native_limit())
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(&program.path)
        .stdin(Stdio::null())
        .output()
        .context("cannot run sh")?;
    // The status is the last thing written; a shell may tell of a signal before.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let status = said.lines().next_back().and_then(|l| l.trim().parse().ok());
    Ok(Run {
        status: status.with_context(|| format!("no status of {}: {said}", program.name))?,
        output: output.stdout,
    })
}

/// Shared libraries that the programs need, both widths, as the compiler finds them.
const LIBRARIES: [&str; 3] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];
const LOADERS: [(&str, &str); 2] = [("-m64", "lib64/ld-linux-x86-64.so.2"), ("-m32", "lib/ld-linux.so.2")];

fn libraries() -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for (width, loader) in LOADERS {
        files.push((loader.to_string(), read(&Path::new("/").join(loader))?));
        for library in LIBRARIES {
            let found = Command::new("gcc").args([width, &format!("-print-file-name={library}")]).output();
            let found = String::from_utf8(found.context("cannot run gcc")?.stdout).context("gcc's output")?;
            let directory = width.replace("-m", "programs/lib");
            files.push((format!("{directory}/{library}"), read(Path::new(found.trim()))?));
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The script that runs inside the guest.
fn guest_script(programs: &[Program]) -> String {
    let mut script = String::from(
        "export LD_LIBRARY_PATH=/programs/lib64:/programs/lib32\n\
         dmesg -n 1; stty -F /dev/ttyS1 raw; exec 3>/dev/ttyS1; cd /tmp; ip link set lo up\n\
         run() { sh -c \"$3\" \"$2\" | head -c \"$4\" | gzip -1 > /run/out; }\n\
         now() { read -r up idle < /proc/uptime; echo $((${up%.*} * 1000 + 1${up#*.}0 - 1000)); }\n",
    );
    for (i, p) in programs.iter().enumerate() {
        // The status travels through a file: a pipe tells that of its last part.
        let line = format!("{{ {}; echo $? > /run/status; }}", command_line(p, guest_limit()));
        script +=
            &format!("echo '{}'; start=$(now); run {i} /programs/bin/{i} '{line}' {OUTPUT_CAP}\n", p.name);
        script += &format!(
            "echo \"{i} $(cat /run/status) $(wc -c < /run/out) $(($(now) - start))\" >&3; cat /run/out >&3\n"
        );
    }
    script + "exec 3>&-; echo all programs have run\n"
}

/// What the programs did in one guest: as many entries as came back.
pub struct GuestRuns {
    /// By position in the list of programs.
    pub runs: BTreeMap<usize, Run>,
    /// What each took, in guest time.
    pub times: BTreeMap<usize, Duration>,
    /// The console, for a look at what went wrong.
    pub console: String,
    /// The whole boot and run.
    pub took: Duration,
}

/// Run all programs in one guest on this engine.
///
/// # Errors
/// When the guest cannot be made or started. A guest that dies half-way is no
/// error: its remaining programs have no entry.
pub fn run_in_guest(engine: &str, guest: &GuestFiles, name: &str, programs: &[Program]) -> Result<GuestRuns> {
    let script = guest_script(programs);
    let mut files = libraries()?;
    for (i, p) in programs.iter().enumerate() {
        files.push((format!("programs/bin/{i}"), read(&p.path)?));
    }
    files.push(("programs/run".to_string(), script.into_bytes()));
    let extra: Vec<ExtraFile<'_>> =
        files.iter().map(|(path, content)| ExtraFile { path, mode: 0o755, content }).collect();
    let work = std::env::temp_dir().join(format!("strata-{name}-{engine}-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let initrd = work.join("initrd");
    fs::write(&initrd, guest_image::build_initramfs(&read(&guest.busybox)?, &extra))?;
    let results = work.join("results");
    let append = format!(
        "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests vsyscall=emulate {}",
        guest_image::command_parameter("sh /programs/run")
    );
    let text = |p: &Path| p.to_string_lossy().into_owned();
    let started = Guest::new(engine)
        .with(&["--cpu", "x86-64-v3,+vaes,+vpclmulqdq", "--memory", "1G", "--kernel", &text(&guest.kernel)])
        .with(&["--initrd", &text(&initrd), "--append", &append])
        .with(&["--serial", "stdio", "--serial", &format!("file:{}", text(&results))])
        .limit(SUITE_LIMIT)
        .start()?;
    let finished = watch(started, &results)?;
    let (runs, times) = parse_results(&fs::read(&results).unwrap_or_default())?;
    fs::remove_dir_all(&work)?;
    Ok(GuestRuns { runs, times, console: finished.text, took: finished.took })
}

/// Wait for the end, which is brought about when no program comes back any more.
fn watch(mut guest: Running, results: &Path) -> Result<Finished> {
    let patience = SILENCE + Duration::from_secs(u64::from(guest_limit()));
    let (mut length, mut since) = (0, Instant::now());
    while !guest.has_ended()? {
        let now = fs::metadata(results).map_or(0, |m| m.len());
        if now != length {
            (length, since) = (now, Instant::now());
        } else if since.elapsed() > patience {
            guest.terminate()?;
            break;
        }
        std::thread::sleep(POLL);
    }
    guest.finish()
}

type Results = (BTreeMap<usize, Run>, BTreeMap<usize, Duration>);

/// `number status length milliseconds\n` and so many bytes of gzip, again and
/// again; what is cut off at the end is left out.
fn parse_results(mut bytes: &[u8]) -> Result<Results> {
    let (mut runs, mut times) = Results::default();
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let header = std::str::from_utf8(&bytes[..end]).context("a header that is no text")?;
        let words: Vec<&str> = header.split_whitespace().collect();
        ensure!(words.len() == 4, "a header \"{header}\"");
        let (index, status) = (words[0].parse()?, words[1].parse()?);
        times.insert(index, Duration::from_millis(words[3].parse()?));
        let length: usize = words[2].parse()?;
        let Some(packed) = bytes[end + 1..].get(..length) else { break };
        let mut output = Vec::new();
        MultiGzDecoder::new(packed).read_to_end(&mut output).with_context(|| format!("output of {index}"))?;
        runs.insert(index, Run { status, output });
        bytes = &bytes[end + 1 + length..];
    }
    Ok((runs, times))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn results_are_parsed_and_a_cut_end_is_left_out() {
        let mut stream = Vec::new();
        for (i, text) in [b"one\n".as_slice(), b"", b"three"].into_iter().enumerate() {
            let body = packed(text);
            stream.extend_from_slice(format!("{i} {} {} {i}230\n", i * 64, body.len()).as_bytes());
            stream.extend_from_slice(&body);
        }
        let (all, times) = parse_results(&stream).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(times[&1], Duration::from_millis(1230));
        assert_eq!(all[&0], Run { status: 0, output: b"one\n".to_vec() });
        assert_eq!(all[&2], Run { status: 128, output: b"three".to_vec() });
        assert_eq!(parse_results(&stream[..stream.len() - 1]).unwrap().0.len(), 2);
        assert!(parse_results(b"nonsense\n").is_err());
    }

    #[test]
    fn a_native_run_tells_status_and_output() {
        let run = |path: &str, judge| {
            run_natively(&Program { name: path.into(), path: path.into(), judge }).unwrap()
        };
        assert_eq!(run("/bin/false", Judge::Native).status, 1);
        assert_eq!(run("/bin/pwd", Judge::Native), Run { status: 0, output: b"/tmp\n".to_vec() });
    }
}
