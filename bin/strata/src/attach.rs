//! `strata console`: the console of a running machine, and `strata logs`.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use guest_client::Size;
use host_sys::{RawTerminal, SessionSignals};
use machine_store::{LogReader, MachineStore};
use rustix::event::{PollFd, PollFlags, poll};
use vm_api::{Action, Client, Found};

use crate::cli::{ConsoleArgs, LogsArgs};
use crate::exec::window_size;
use crate::machines;
use crate::terminal_text::LogFilter;

/// What the escape keys do.
pub const KEYS: &str = "  \
Ctrl-A d  leave the console; the machine goes on
  Ctrl-A p  press the power button
  Ctrl-A a  send Ctrl-A to the guest
  Ctrl-A h  show these keys";

/// How long the machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a log is looked at for more.
const LOOK: Duration = Duration::from_millis(200);
const ESCAPE: u8 = 0x01;

/// What to do after some keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Leave,
    PowerButton,
    Help,
}

/// Tells the escape keys from what is typed.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// What goes to the guest, and what is wished; what was typed behind a wish
    /// to leave is nobody's.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, Vec<Wish>) {
        let (mut typed, mut wishes) = (Vec::new(), Vec::new());
        for byte in bytes {
            if !std::mem::take(&mut self.escaped) {
                if *byte == ESCAPE {
                    self.escaped = true;
                } else {
                    typed.push(*byte);
                }
                continue;
            }
            match byte {
                b'd' | b'x' => wishes.push(Wish::Leave),
                b'p' => wishes.push(Wish::PowerButton),
                b'h' | b'?' => wishes.push(Wish::Help),
                b'a' | &ESCAPE => typed.push(ESCAPE),
                other => typed.push(*other),
            }
        }
        (typed, wishes)
    }
}

/// `strata console`.
pub fn console(args: &ConsoleArgs) -> anyhow::Result<u8> {
    let found = machines::find(&args.machine)?;
    let client = Client::connect(&found.socket()).context("the machine does not answer; see `strata ps`")?;
    let (stream, shown) = client.attach(PATIENCE).context("cannot have the machine's console")?;
    // They end this process by themselves where no terminal is to be put back.
    let signals = io::stdin().is_terminal().then(SessionSignals::block).transpose();
    let signals = signals.context("cannot block signals")?;
    let terminal = RawTerminal::enter().context("cannot set the terminal to raw mode")?;
    if terminal.is_some() {
        eprint!("strata: the console of {}; Ctrl-A d leaves it, Ctrl-A h shows all keys\r\n", args.machine);
    }
    if let Some(signals) = signals {
        follow_size(&found, signals)?;
    }
    show(&shown)?;
    let ended = carry(&found, &stream, terminal.is_some());
    drop(terminal);
    if ended? {
        eprintln!("strata: the machine has ended");
    }
    Ok(0)
}

/// Tell the machine the terminal's size, now and whenever it changes. Other signals
/// end this process as they always would.
fn follow_size(found: &Found, signals: SessionSignals) -> anyhow::Result<()> {
    let socket = found.socket();
    let follow = move || {
        loop {
            // A serial console has no size; nothing is to be told then.
            if let (Some(Size { rows, columns }), Ok(mut client)) = (window_size(), Client::connect(&socket))
            {
                let _ = client.call(Action::ResizeConsole { columns, rows }, PATIENCE);
            }
            if let Some(signal) = signals.wait() {
                host_sys::restore_terminal();
                std::process::exit(128 + signal);
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_string()).spawn(follow);
    thread.map(drop).context("cannot start the signal thread")
}

fn show(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Carry bytes both ways until the user leaves or the machine ends; true when
/// the machine did.
fn carry(found: &Found, stream: &UnixStream, terminal: bool) -> anyhow::Result<bool> {
    let stdin = io::stdin();
    let mut keys = Keys::default();
    let mut buffer = [0; 4096];
    let mut input = true;
    loop {
        let mut waits = vec![PollFd::new(stream, PollFlags::IN)];
        if input {
            waits.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut waits, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("cannot wait for the console")?,
        };
        let (from_machine, from_user) =
            (!waits[0].revents().is_empty(), waits.get(1).is_some_and(|w| !w.revents().is_empty()));
        if from_machine {
            match { stream }.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => show(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(true),
            }
        }
        if from_user {
            // Not through the buffer of standard input, which poll does not see.
            let n = rustix::io::read(&stdin, &mut buffer).unwrap_or(0);
            if n == 0 {
                input = false;
                continue;
            }
            let (typed, wishes) =
                if terminal { keys.take(&buffer[..n]) } else { (buffer[..n].to_vec(), Vec::new()) };
            // A machine that ended shows on the other side.
            let _ = { stream }.write_all(&typed);
            for wish in wishes {
                match wish {
                    Wish::Leave => {
                        let _ = stream.shutdown(Shutdown::Both);
                        eprint!("\r\n");
                        return Ok(false);
                    }
                    Wish::PowerButton => press(found),
                    Wish::Help => eprint!("\r\n{}\r\n", KEYS.replace('\n', "\r\n")),
                }
            }
        }
    }
}

fn press(found: &Found) {
    let pressed = Client::connect(&found.socket())
        .map(|mut client| client.call(Action::PressPowerButton, PATIENCE).is_ok());
    if !pressed.unwrap_or(false) {
        eprint!("\r\nstrata: the power button cannot be pressed\r\n");
    }
}

/// Where a log goes: as it is, but to a terminal without what that would obey.
struct LogOutput(Option<LogFilter>);

impl LogOutput {
    fn new() -> Self {
        LogOutput(io::stdout().is_terminal().then(LogFilter::default))
    }

    fn show(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Some(filter) => show(filter.take(bytes).as_bytes()),
            None => show(bytes),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |filter| show(filter.end().as_bytes()))
    }
}

/// `strata logs`.
pub fn logs(args: &LogsArgs) -> anyhow::Result<u8> {
    match show_log(args) {
        // A reader that went away wants no more.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(0)
        }
        other => other.map(|()| 0),
    }
}

fn show_log(args: &LogsArgs) -> anyhow::Result<()> {
    let mut out = LogOutput::new();
    let lost = "cannot write the log";
    let store = MachineStore::open()?;
    let kept = store.find(&args.machine)?;
    if args.messages {
        let path = kept.directory().join(crate::kept::MESSAGES);
        let file =
            File::open(&path).with_context(|| format!("there are no messages in {}", path.display()))?;
        let mut file = io::BufReader::new(file);
        loop {
            let part = file.fill_buf().context("cannot read the machine's messages")?;
            if part.is_empty() {
                return out.end().context(lost);
            }
            out.show(part).context(lost)?;
            let shown = part.len();
            file.consume(shown);
        }
    }
    let mut reader = None;
    loop {
        if reader.is_none() {
            reader = LogReader::open(kept.directory()).context("cannot read the machine's log")?;
        }
        let runs = args.follow && store.find(kept.record.id.as_str()).is_ok_and(|k| k.runs);
        let said = match &mut reader {
            Some(reader) => reader.more().context("cannot read the machine's log")?,
            None => Vec::new(),
        };
        out.show(&said).context(lost)?;
        if said.is_empty() && !runs {
            return out.end().context(lost);
        }
        if said.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_after_ctrl_a_is_ours() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ab\x01"), (b"ab".to_vec(), vec![]));
        assert_eq!(
            keys.take(b"p\x01hc\x01a\x01\x01\x01z"),
            (b"c\x01\x01z".to_vec(), vec![Wish::PowerButton, Wish::Help])
        );
        assert_eq!(keys.take(b"\x01d"), (vec![], vec![Wish::Leave]));
    }
}
