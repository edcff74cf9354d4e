//! A guest started by the command, watched, and ended.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_image::{Flavour, GuestFiles, Silent};

/// Longer than any boot may take, on a busy host too.
pub const LIMIT: Duration = Duration::from_secs(180);
/// A command that ignores its own `--timeout` for so long is hung.
const GRACE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// The command under test: `$STRATA_BIN`, else the one built beside this test.
///
/// # Errors
/// When there is none.
pub fn command_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("STRATA_BIN") {
        return Ok(path.into());
    }
    // Tests are in <target>/<profile>/deps.
    let test = std::env::current_exe().context("this test does not know its own path")?;
    let built = test.ancestors().nth(2).map(|d| d.join("strata")).filter(|p| p.is_file());
    built.context("the strata command is not built; run: cargo build -p strata with the test's profile, or set STRATA_BIN")
}

/// A stock kernel and busybox, or None with the reason printed.
pub fn stock_guest(flavour: Flavour) -> Option<GuestFiles> {
    match guest_image::ensure_guest(flavour, &Silent) {
        Ok(files) => Some(files),
        Err(e) => {
            println!("skipped: no {flavour:?} guest: {e}");
            None
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Guest {
    arguments: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    under: Vec<String>,
    command: Option<PathBuf>,
    limit: Duration,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit status; None if a signal ended the command.
    pub status: Option<i32>,
    /// Everything printed, the guest's console first.
    pub text: String,
    /// What the command printed on standard error, part of `text`.
    pub errors: String,
    /// From start to end.
    pub took: Duration,
}

impl Guest {
    /// A guest on this engine, of one processor model on every host; RAM, vCPUs
    /// and images are the command's defaults.
    pub fn new(engine: &str) -> Self {
        let arguments = ["--engine", engine, "--cpu", "x86-64-v2"].map(str::to_string).to_vec();
        Guest { arguments, environment: Vec::new(), under: Vec::new(), command: None, limit: LIMIT }
    }

    /// More arguments of `strata run`.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|a| a.to_string()));
        self
    }

    /// A variable of the command's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.to_string(), value.to_path_buf()));
        self
    }

    /// A program that is given the command and its arguments, after its own.
    #[must_use]
    pub fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|a| a.to_string()).collect();
        self
    }

    /// A copy of the command, for those who cannot reach the one under test.
    #[must_use]
    pub fn command(mut self, path: impl Into<PathBuf>) -> Self {
        self.command = Some(path.into());
        self
    }

    /// Another time limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Start it.
    ///
    /// # Errors
    /// When there is no command, or it does not start.
    pub fn start(&self) -> Result<Running> {
        let timeout = format!("{}s", self.limit.as_secs());
        let command = self.command.clone().map_or_else(command_path, Ok)?;
        let mut words = self.under.iter().map(PathBuf::from).chain([command]);
        let mut child = Command::new(words.next().unwrap_or_default())
            .args(words)
            .args(["run", "--timeout", &timeout])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("the command does not start")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let out = child.stdout.take().map(|o| collect(o, seen.clone()));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let err = child.stderr.take().map(|e| collect(e, errors.clone()));
        let readers = out.into_iter().chain(err).collect();
        Ok(Running { child, seen, errors, readers, start: Instant::now(), limit: self.limit + GRACE })
    }

    /// Run it to its end.
    ///
    /// # Errors
    /// As [`Guest::start`]; also when it hangs beyond its own time limit.
    pub fn run(&self) -> Result<Finished> {
        self.start()?.finish()
    }
}

fn collect(mut from: impl Read + Send + 'static, to: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]);
        }
    })
}

fn text_of(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// A guest that runs. It is killed when dropped.
pub struct Running {
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
    errors: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    start: Instant,
    limit: Duration,
}

impl Running {
    /// The command's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Wait until the console has shown a text.
    ///
    /// # Errors
    /// When the guest ends or the time limit passes before.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        self.wait_for_times(text, 1)
    }

    /// Wait until the console has shown a text so many times.
    ///
    /// # Errors
    /// As [`Running::wait_for`].
    pub fn wait_for_times(&mut self, text: &str, times: usize) -> Result<()> {
        loop {
            if text_of(&self.seen).matches(text).count() >= times {
                return Ok(());
            }
            let ended = self.child.try_wait().context("cannot wait for the command")?;
            if ended.is_some() || self.start.elapsed() > self.limit {
                let what = if ended.is_some() { "ended" } else { "took too long" };
                bail!("{what} without \"{text}\":\n{}\n{}", text_of(&self.seen), text_of(&self.errors));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Type on the guest's console.
    ///
    /// # Errors
    /// When the command is gone.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("no input")?;
        input.write_all(text.as_bytes()).context("the command takes no input")
    }

    /// End the command's standard input.
    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Ask the command to end, by a signal.
    ///
    /// # Errors
    /// When there is no `kill`.
    pub fn terminate(&self) -> Result<()> {
        let sent =
            Command::new("kill").arg(self.child.id().to_string()).status().context("cannot run kill")?;
        ensure!(sent.success(), "kill: {sent}");
        Ok(())
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("cannot wait for the command")?.is_some())
    }

    /// End it as a crash does, by SIGKILL; everything printed until then.
    ///
    /// # Errors
    /// When it has ended already, or cannot be waited for.
    pub fn kill(mut self) -> Result<String> {
        self.child.kill().context("it cannot be killed")?;
        self.child.wait().context("cannot wait for the command")?;
        for reader in self.readers.drain(..) {
            // It only reads; a panic there would show as missing text.
            let _ = reader.join();
        }
        Ok(text_of(&self.seen) + &text_of(&self.errors))
    }

    /// Wait for the end.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn finish(mut self) -> Result<Finished> {
        let status = loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the command")? {
                break status;
            }
            if self.start.elapsed() > self.limit {
                bail!("the command hangs:\n{}\n{}", text_of(&self.seen), text_of(&self.errors));
            }
            std::thread::sleep(POLL);
        };
        let took = self.start.elapsed();
        for reader in self.readers.drain(..) {
            // It only reads; a panic there would show as missing text.
            let _ = reader.join();
        }
        let errors = text_of(&self.errors);
        let text = text_of(&self.seen) + &errors;
        Ok(Finished { status: status.code(), text, errors, took })
    }

    /// Whether every thread of the command is under a system-call filter.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn is_confined(&self) -> Result<bool> {
        let tasks = Path::new("/proc").join(self.child.id().to_string()).join("task");
        let tasks = std::fs::read_dir(&tasks).with_context(|| format!("cannot read {}", tasks.display()))?;
        let statuses = tasks.flatten().map(|t| std::fs::read_to_string(t.path().join("status")));
        // A thread that has ended meanwhile says nothing.
        let mut statuses = statuses.flatten().peekable();
        ensure!(statuses.peek().is_some(), "no thread");
        // proc(5): mode 2 is a filter.
        Ok(statuses.all(|s| s.lines().any(|l| l.split_whitespace().eq(["Seccomp:", "2"]))))
    }

    /// Processor time used so far, user and system.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = self.proc_file("stat")?;
        // proc(5): utime and stime are fields 14 and 15, in ticks of 10 ms; the
        // second field is a name in parentheses that may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let field = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).context("stat has changed");
        Ok(Duration::from_millis(10 * (field(11)? + field(12)?)))
    }

    /// Resident memory of the process in bytes: all of it, and of the guest's RAM.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<(u64, u64)> {
        let (mut all, mut ram, mut in_ram) = (0, 0, false);
        for line in self.proc_file("smaps")?.lines() {
            let first = line.split_whitespace().next().unwrap_or("");
            if !first.ends_with(':') {
                in_ram = line.contains("memfd:");
            } else if first == "Rss:" {
                let kib: u64 = line
                    .split_whitespace()
                    .nth(1)
                    .and_then(|w| w.parse().ok())
                    .context("smaps has changed")?;
                all += kib << 10;
                ram += if in_ram { kib << 10 } else { 0 };
            }
        }
        Ok((all, ram))
    }

    fn proc_file(&self, name: &str) -> Result<String> {
        let path = Path::new("/proc").join(self.child.id().to_string()).join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
