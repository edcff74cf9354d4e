//! Serial output to the terminal or a file, and what is recognised in it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use board::{EventPoster, MachineEvent, PortOutput, SerialSpec};
use chipset::{BufferedOutput, SerialOutput};
use machine_store::ConsoleLog;
use vm_process::ConsoleHub;

use crate::failure::InputError;
use crate::phases::{Phase, Phases};

/// Linux begins a panic's report with this.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Linux ends a panic's report with this when it will not restart by itself.
const PANIC_END: &[u8] = b"---[ end Kernel panic";

/// Finds one text in a stream of bytes.
#[derive(Debug)]
struct Matcher {
    text: &'static [u8],
    matched: usize,
}

impl Matcher {
    fn new(text: &'static [u8]) -> Self {
        Matcher { text, matched: 0 }
    }

    /// True when this byte completes the text. The texts' first bytes occur only
    /// at their start, or start again after it, so a mismatch needs no table.
    fn next(&mut self, byte: u8) -> bool {
        if self.text[self.matched] == byte {
            self.matched += 1;
        } else if self.matched == 0 || byte != self.text[0] {
            self.matched = 0;
        } else if !(self.text[..self.matched].iter().all(|b| *b == byte)) {
            self.matched = 1;
        }
        let complete = self.matched == self.text.len();
        if complete {
            self.matched = 0;
        }
        complete
    }
}

/// The number after a text: the exit status of the built-in guest's command.
struct Number {
    text: Matcher,
    /// The text is complete; the digits so far.
    digits: Option<String>,
}

impl Number {
    fn after(text: &'static str) -> Self {
        Number { text: Matcher::new(text.as_bytes()), digits: None }
    }

    /// The number, when this byte ends it.
    fn next(&mut self, byte: u8) -> Option<u8> {
        /// A status has at most three digits; more is something else.
        const MOST: usize = 3;
        match &mut self.digits {
            None if self.text.next(byte) => self.digits = Some(String::new()),
            None => {}
            Some(digits) if byte.is_ascii_digit() && digits.len() < MOST => digits.push(byte.into()),
            Some(_) => {
                // It may begin the text anew.
                self.text.next(byte);
                let digits = self.digits.take()?;
                return digits.parse().ok().filter(|_| !byte.is_ascii_digit());
            }
        }
        None
    }
}

/// The exit status that the guest told last. Until then anything on the console may
/// look like one: a log that is shown, or a command that runs another.
#[derive(Debug, Default)]
pub struct GuestStatus(Mutex<Option<u8>>);

impl GuestStatus {
    fn tell(&self, status: u8) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// The status, if one was told.
    pub fn last(&self) -> Option<u8> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the built-in guest says of itself.
pub struct Markers {
    /// Printed when its shell is ready.
    pub ready: &'static str,
    /// Precedes the exit status of the command it ran.
    pub status: &'static str,
    /// Receives that status.
    pub receiver: Arc<GuestStatus>,
}

/// What the console's output tells about the guest.
pub struct Watch {
    phases: Arc<Phases>,
    events: EventPoster,
    panic: Option<(Matcher, Matcher)>,
    shell: Option<Matcher>,
    status: Option<(Number, Arc<GuestStatus>)>,
    seen: bool,
}

impl Watch {
    /// Watch for the first byte, panics unless told to ignore them, and the
    /// built-in guest's markers.
    pub fn new(phases: Arc<Phases>, events: EventPoster, panics: bool, markers: Option<Markers>) -> Self {
        let mut watch = Watch {
            phases,
            events,
            panic: panics.then(|| (Matcher::new(PANIC), Matcher::new(PANIC_END))),
            shell: None,
            status: None,
            seen: false,
        };
        if let Some(Markers { ready, status, receiver }) = markers {
            watch.shell = Some(Matcher::new(ready.as_bytes()));
            watch.status = Some((Number::after(status), receiver));
        }
        watch
    }

    fn byte(&mut self, byte: u8) {
        if !self.seen {
            self.seen = true;
            self.phases.mark(Phase::FirstOutput);
        }
        if let Some((begin, end)) = &mut self.panic {
            if begin.next(byte) {
                self.events.post(MachineEvent::PanicNoticed);
            }
            if end.next(byte) {
                self.events.post(MachineEvent::Panic);
            }
        }
        if self.shell.as_mut().is_some_and(|m| m.next(byte)) {
            self.phases.mark(Phase::Shell);
            self.shell = None;
        }
        let status = self.status.as_mut().and_then(|(number, receiver)| Some((number.next(byte)?, receiver)));
        if let Some((status, receiver)) = status {
            receiver.tell(status);
        }
    }
}

/// Where a serial port's output goes.
pub enum Destination {
    /// Standard output.
    Terminal,
    /// A file made for it.
    File(File),
    /// Nowhere.
    Null,
}

impl Destination {
    /// Open what a specification names. A file is made before the sandbox closes, which has
    /// no right on the folder it is in.
    ///
    /// # Errors
    /// When the host refuses the file.
    pub fn open(spec: &SerialSpec) -> anyhow::Result<Self> {
        Ok(match spec {
            SerialSpec::Stdio => Destination::Terminal,
            SerialSpec::Null => Destination::Null,
            SerialSpec::File(path) => Destination::File(create(path)?),
        })
    }
}

enum Sink {
    Terminal(Terminal),
    File(File),
    Null,
}

/// Standard output through a thread of its own, so that a reader that stops
/// cannot stop a vCPU.
#[derive(Clone)]
pub struct Terminal(Arc<Mutex<Option<BufferedOutput>>>);

impl Terminal {
    /// Start the thread.
    pub fn start() -> anyhow::Result<Self> {
        let out = BufferedOutput::spawn("console-out", Box::new(std::io::stdout()))
            .context("cannot start the console's output thread")?;
        Ok(Terminal(Arc::new(Mutex::new(Some(out)))))
    }

    fn put(&self, bytes: &[u8]) {
        if let Some(out) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            out.put(bytes);
        }
    }

    /// Write what is left and take no more.
    pub fn finish(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Who else sees the console.
pub struct Listeners {
    /// Clients of the control socket.
    pub hub: Arc<ConsoleHub>,
    /// The log of a machine that is kept.
    pub log: Option<ConsoleLog>,
}

/// One serial port's output.
pub struct Output {
    sink: Sink,
    watch: Option<Watch>,
    listeners: Option<Listeners>,
}

impl Output {
    /// The output of a port that goes there.
    pub fn new(
        to: Destination,
        terminal: &Terminal,
        watch: Option<Watch>,
        listeners: Option<Listeners>,
    ) -> Self {
        let sink = match to {
            Destination::Terminal => Sink::Terminal(terminal.clone()),
            Destination::Null => Sink::Null,
            Destination::File(file) => Sink::File(file),
        };
        Output { sink, watch, listeners }
    }
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| {
        let path = path.display();
        InputError(format!(
            "cannot write serial output to {path}; give a --serial file:PATH that you may write"
        ))
    })
}

impl Output {
    /// The console on standard output.
    pub fn terminal(terminal: &Terminal, watch: Watch, listeners: Listeners) -> Self {
        Output { sink: Sink::Terminal(terminal.clone()), watch: Some(watch), listeners: Some(listeners) }
    }
}

impl PortOutput for Output {
    fn write(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }
}

impl SerialOutput for Output {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(watch) = &mut self.watch {
            bytes.iter().for_each(|b| watch.byte(*b));
        }
        if let Some(Listeners { hub, log }) = &mut self.listeners {
            hub.put(bytes);
            // A full disk takes no more; the console goes on.
            let _ = log.as_mut().map(|log| log.put(bytes));
        }
        // A reader that went away does not stop the guest.
        let _ = match &mut self.sink {
            Sink::Terminal(out) => {
                out.put(bytes);
                Ok(())
            }
            Sink::File(f) => f.write_all(bytes),
            Sink::Null => Ok(()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use board::EventQueue;

    #[test]
    fn texts_are_found_wherever_they_begin() {
        fn count(text: &'static [u8], stream: &[u8]) -> usize {
            let mut m = Matcher::new(text);
            stream.iter().filter(|b| m.next(**b)).count()
        }
        assert_eq!(count(PANIC, b"[ 1.0] KKernel panic - not syncing: x\nKernel panic - not syncing"), 2);
        assert_eq!(count(PANIC_END, b"-----[ end Kernel panic - not syncing: x ]---"), 1);
        assert_eq!(count(PANIC_END, b"--[ end Kernel panic"), 0);
        assert_eq!(count(PANIC, b"Kernel panic: other"), 0);
    }

    #[test]
    fn a_panic_is_noticed_and_its_end_reported() {
        let (events, queue) = EventQueue::new();
        let phases = Arc::new(Phases::new(std::time::Instant::now()));
        let receiver = Arc::new(GuestStatus::default());
        let markers = Markers { ready: "ready", status: "status ", receiver: receiver.clone() };
        let mut watch = Watch::new(phases.clone(), events, true, Some(markers));
        b"Kernel panic - not syncing: x".iter().for_each(|b| watch.byte(*b));
        assert!(matches!(queue.poll(), Some(MachineEvent::PanicNoticed)));
        assert!(queue.poll().is_none());
        b"---[ end Kernel panic - not syncing ready".iter().for_each(|b| watch.byte(*b));
        let rest: Vec<_> = std::iter::from_fn(|| queue.poll()).collect();
        assert!(matches!(rest[..], [MachineEvent::Panic, MachineEvent::PanicNoticed]), "{rest:?}");
        assert_eq!(phases.list().len(), 2);
        // Of what a command prints and what the guest says at the end, the last counts.
        let texts: [(&[u8], Option<u8>); 6] = [
            (b"status x\r\n", None),
            (b"status x, status 42\r\n", Some(42)),
            (b"status 7\r\nstatus 0\r\n", Some(0)),
            (b"status 1000 status 256 status \r\n", Some(0)),
            (b"status status 3\r\n", Some(3)),
            (b"status 4", Some(3)),
        ];
        for (text, expect) in texts {
            text.iter().for_each(|b| watch.byte(*b));
            assert_eq!(receiver.last(), expect, "{}", text.escape_ascii());
        }
    }
}
