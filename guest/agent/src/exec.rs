//! A command: its streams, its signals, its end.
//!
//! One thread waits for everything. What the command writes goes out as fast as
//! the connection takes it; what it is to read is held up to the protocol's window
//! until the command takes it, so that signals pass it by.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use agent_protocol::{
    Channel, ChannelError, Ending, Exec, MAX_CHUNK, ProtocolError, STDIN_WINDOW, ToGuest, ToHost,
};

use crate::launch::{self, Launched};
use crate::serve::failed;
use crate::sys::{self, Poll};

const SIGHUP: u8 = 1;
/// What ends a terminal's input: ^D.
const END_OF_INPUT: u8 = 4;

/// Reads that empty a pipe or terminal of any size the kernel allows: what a
/// process left behind goes on to write is no longer the command's.
const LAST_READS: u32 = 64;

/// Standard input on its way.
struct Input {
    file: Option<File>,
    held: Vec<u8>,
    /// Bytes granted to the host and not received.
    window: usize,
    ended: bool,
    terminal: bool,
}

impl Input {
    fn receive(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.ended {
            return Err(ProtocolError::OutOfOrder("standard input"));
        }
        self.window = self.window.checked_sub(bytes.len()).ok_or(ProtocolError::TooLong(bytes.len()))?;
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) {
        if !self.ended && self.terminal {
            self.held.push(END_OF_INPUT);
        }
        self.ended = true;
    }

    /// Whether there is something to write.
    fn waits(&self) -> Option<i32> {
        self.file.as_ref().filter(|_| !self.held.is_empty()).map(AsRawFd::as_raw_fd)
    }

    /// Write what the command takes; answers how much more the host may send.
    fn write(&mut self) -> usize {
        let mut done = 0;
        if let Some(file) = &mut self.file {
            while done < self.held.len() {
                match file.write(&self.held[done..]) {
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => {
                        self.file = None;
                        break;
                    }
                }
            }
        }
        if self.file.is_none() {
            // Nobody reads it any more: the rest is taken and dropped.
            done = self.held.len();
        }
        self.held.drain(..done);
        if self.held.is_empty() && self.ended && !self.terminal {
            self.file = None;
        }
        // ^D is no byte that the host sent.
        let granted = done.min(STDIN_WINDOW - self.window);
        self.window += granted;
        granted
    }
}

/// Read once; true: it has ended.
fn forward(
    from: &mut Option<File>,
    channel: &mut Channel<UnixStream>,
    message: fn(Vec<u8>) -> ToHost,
) -> Result<bool, ChannelError> {
    let Some(file) = from else { return Ok(true) };
    let mut buffer = vec![0; MAX_CHUNK];
    match file.read(&mut buffer) {
        Ok(n @ 1..) => {
            buffer.truncate(n);
            channel.send(&message(buffer))?;
            return Ok(false);
        }
        Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
        // A terminal whose other side is closed answers with an error.
        Ok(_) | Err(_) => *from = None,
    }
    Ok(true)
}

/// Wait for a child in a thread of its own; the descriptor ends when it has.
fn watch(mut child: Child) -> io::Result<(io::PipeReader, std::thread::JoinHandle<io::Result<ExitStatus>>)> {
    let (reader, writer) = io::pipe()?;
    let thread = std::thread::Builder::new().name("wait".to_string()).spawn(move || {
        let status = child.wait();
        drop(writer);
        status
    })?;
    Ok((reader, thread))
}

fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Status(code as u8),
        (None, signal) => Ending::Signal(signal.unwrap_or(0) as u8),
    }
}

/// Run a command for the host.
///
/// # Errors
/// When the connection fails or the host does not keep to the protocol; the
/// command is hung up on.
pub fn run(exec: &Exec, channel: &mut Channel<UnixStream>) -> Result<(), ChannelError> {
    let launched = match launch::launch(exec) {
        Ok(launched) => launched,
        Err(e) => return channel.send(&failed(&e)),
    };
    let pid = launched.child.id();
    let (exit, waiting) = watch_launched(launched)?;
    let mut session = exit;
    let result = channel.send(&ToHost::Started(pid)).and_then(|()| session.carry(pid, channel));
    if let Err(e) = result {
        if !session.ended {
            // It may have ended meanwhile, unseen.
            let _ = sys::signal_group(pid, SIGHUP);
        }
        return Err(e);
    }
    let status = waiting.join().map_err(|_| io::Error::other("waiting for the command failed"))??;
    channel.send(&ToHost::Ended(ending(status)))
}

/// A command that runs.
struct Session {
    input: Input,
    stdout: Option<File>,
    stderr: Option<File>,
    terminal: Option<File>,
    exit: io::PipeReader,
    ended: bool,
}

fn watch_launched(
    launched: Launched,
) -> io::Result<(Session, std::thread::JoinHandle<io::Result<ExitStatus>>)> {
    let Launched { child, stdin, stdout, stderr, terminal } = launched;
    let (exit, waiting) = watch(child)?;
    let is_terminal = terminal.is_some();
    let input =
        Input { file: stdin, held: Vec::new(), window: STDIN_WINDOW, ended: false, terminal: is_terminal };
    Ok((Session { input, stdout, stderr, terminal, exit, ended: false }, waiting))
}

impl Session {
    /// Carry streams until the command has ended and all it wrote is sent.
    fn carry(&mut self, pid: u32, channel: &mut Channel<UnixStream>) -> Result<(), ChannelError> {
        self.requests(pid, channel)?;
        loop {
            let fd = |f: &Option<File>| f.as_ref().map(AsRawFd::as_raw_fd);
            let mut fds = [
                Poll::input(Some(channel.stream().as_raw_fd())),
                Poll::input(Some(self.exit.as_raw_fd())),
                Poll::input(fd(&self.stdout)),
                Poll::input(fd(&self.stderr)),
                Poll::output(self.input.waits()),
            ];
            sys::poll(&mut fds)?;
            let [host, exit, out, err, input] = fds.map(Poll::ready);
            if exit {
                self.ended = true;
                // What it wrote is in the pipes; others may hold them open for long.
                for _ in 0..LAST_READS {
                    if forward(&mut self.stdout, channel, ToHost::Stdout)? {
                        break;
                    }
                }
                for _ in 0..LAST_READS {
                    if forward(&mut self.stderr, channel, ToHost::Stderr)? {
                        break;
                    }
                }
                return Ok(());
            }
            if out {
                forward(&mut self.stdout, channel, ToHost::Stdout)?;
            }
            if err {
                forward(&mut self.stderr, channel, ToHost::Stderr)?;
            }
            if host {
                if channel.read_more()? == 0 {
                    return Err(ChannelError::Closed);
                }
                self.requests(pid, channel)?;
            }
            if input || !self.input.held.is_empty() {
                let granted = self.input.write();
                if granted > 0 {
                    channel.send(&ToHost::StdinCredit(granted as u32))?;
                }
            }
        }
    }

    /// Do what has been received.
    fn requests(&mut self, pid: u32, channel: &mut Channel<UnixStream>) -> Result<(), ChannelError> {
        while let Some(message) = channel.pending()? {
            match message {
                ToGuest::Stdin(bytes) => self.input.receive(&bytes)?,
                ToGuest::StdinEnd => {
                    self.input.end();
                    self.input.write();
                }
                // A size the kernel refuses changes nothing.
                ToGuest::Resize(size) => {
                    let _ = self.terminal.as_ref().map(|t| launch::resize(t, size));
                }
                // It may have ended at this moment; its end will tell.
                ToGuest::Signal(signal @ 1..=64) => {
                    let _ = sys::signal_group(pid, signal);
                }
                _ => return Err(ProtocolError::OutOfOrder("a request during a command").into()),
            }
        }
        Ok(())
    }
}
