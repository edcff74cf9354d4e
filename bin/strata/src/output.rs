//! Serial output to the terminal or a file, and what is recognised in it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use board::{EventPoster, MachineEvent, SerialSpec};
use chipset::SerialOutput;

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

/// What the console's output tells about the guest.
pub struct Watch {
    phases: Arc<Phases>,
    events: EventPoster,
    panic: Option<(Matcher, Matcher)>,
    shell: Option<Matcher>,
    seen: bool,
}

impl Watch {
    /// Watch for the first byte, panics unless told to ignore them, and the
    /// built-in guest's marker for a ready shell.
    pub fn new(phases: Arc<Phases>, events: EventPoster, panics: bool, shell: Option<&'static str>) -> Self {
        Watch {
            phases,
            events,
            panic: panics.then(|| (Matcher::new(PANIC), Matcher::new(PANIC_END))),
            shell: shell.map(|s| Matcher::new(s.as_bytes())),
            seen: false,
        }
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
    }
}

enum Sink {
    Stdout,
    File(File),
    Null,
}

/// One serial port's output.
pub struct Output {
    sink: Sink,
    watch: Option<Watch>,
}

impl Output {
    /// Open what a specification names.
    pub fn open(spec: &SerialSpec, watch: Option<Watch>) -> anyhow::Result<Self> {
        let sink = match spec {
            SerialSpec::Stdio => Sink::Stdout,
            SerialSpec::Null => Sink::Null,
            SerialSpec::File(path) => Sink::File(create(path)?),
        };
        Ok(Output { sink, watch })
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

impl SerialOutput for Output {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(watch) = &mut self.watch {
            bytes.iter().for_each(|b| watch.byte(*b));
        }
        // A reader that went away does not stop the guest.
        let _ = match &mut self.sink {
            Sink::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
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
        let mut watch = Watch::new(phases.clone(), events, true, Some("ready"));
        b"Kernel panic - not syncing: x".iter().for_each(|b| watch.byte(*b));
        assert!(matches!(queue.poll(), Some(MachineEvent::PanicNoticed)));
        assert!(queue.poll().is_none());
        b"---[ end Kernel panic - not syncing ready".iter().for_each(|b| watch.byte(*b));
        let rest: Vec<_> = std::iter::from_fn(|| queue.poll()).collect();
        assert!(matches!(rest[..], [MachineEvent::Panic, MachineEvent::PanicNoticed]), "{rest:?}");
        assert_eq!(phases.list().len(), 2);
    }
}
