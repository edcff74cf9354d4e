//! A command in the guest, with its streams here.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use agent_protocol::{ChannelError, Ending, Exec, Frames, STDIN_WINDOW, Size, ToGuest, ToHost};

use crate::dial::out_of_order;
use crate::outbox::{NotTaken, Outbox};
use crate::{Guest, GuestError};

/// How much of standard input is sent at once.
const CHUNK: usize = 32 << 10;

/// Where a command's streams come from and go.
pub struct Streams<'a> {
    /// Read by a thread of its own, which ends with the process at the latest. Its
    /// end is told to the command. `None`: the command reads from /dev/null.
    pub stdin: Option<Box<dyn Read + Send>>,
    /// What the command writes.
    pub stdout: &'a mut dyn Write,
    /// Its errors; with a terminal they are in `stdout`.
    pub stderr: &'a mut dyn Write,
}

/// Speaks to a command that runs. Clones are the same.
#[derive(Clone)]
pub struct Control(Arc<Outbox>);

impl Control {
    /// Send the command's process group a signal, by its Linux number. Does not wait
    /// for the guest.
    ///
    /// # Errors
    /// When the connection is gone, or the guest has not taken those before.
    pub fn signal(&self, number: u8) -> Result<(), GuestError> {
        self.send(&ToGuest::Signal(number))
    }

    /// Give its terminal another size. Does not wait for the guest.
    ///
    /// # Errors
    /// As [`Control::signal`].
    pub fn resize(&self, size: Size) -> Result<(), GuestError> {
        self.send(&ToGuest::Resize(size))
    }

    fn send(&self, message: &ToGuest) -> Result<(), GuestError> {
        self.0.signal(Frames::encode(message)?).map_err(|e| match e {
            NotTaken::Full => GuestError::Full,
            NotTaken::Closed => ChannelError::Closed.into(),
        })
    }
}

/// How much of standard input the agent takes; shared with the thread that reads.
#[derive(Default)]
struct Window {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Window {
    fn grant(&self, count: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = state.0.saturating_add(count).min(STDIN_WINDOW);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    /// Wait for room; None: nobody reads any more.
    fn room(&self) -> Option<usize> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.changed.wait_while(state, |s| s.0 == 0 && !s.1);
        let state = waiting.unwrap_or_else(PoisonError::into_inner);
        (!state.1).then_some(state.0)
    }

    fn take(&self, count: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = state.0.saturating_sub(count);
    }
}

/// Carry standard input to the agent until it ends or nobody reads it.
fn feed(mut from: Box<dyn Read + Send>, outbox: &Outbox, window: &Window) {
    let send = |message| Frames::encode(&message).is_ok_and(|frame| outbox.input(frame).is_ok());
    let mut buffer = vec![0; CHUNK];
    while let Some(room) = window.room() {
        let most = room.min(CHUNK);
        let sent = match from.read(&mut buffer[..most]) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // What cannot be read is as if it had ended.
            Ok(0) | Err(_) => {
                send(ToGuest::StdinEnd);
                return;
            }
            Ok(n) => {
                window.take(n);
                send(ToGuest::Stdin(buffer[..n].to_vec()))
            }
        };
        // The thread that receives tells why.
        if !sent {
            return;
        }
    }
}

/// Ends the other threads' waiting, and hangs up, however a call ends.
struct Closing {
    window: Arc<Window>,
    outbox: Arc<Outbox>,
    stream: UnixStream,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.window.close();
        self.outbox.close();
        // A thread may be in the middle of a write, or hold the connection open.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), GuestError> {
    let thread = std::thread::Builder::new().name(name.to_string()).spawn(work);
    thread.map(drop).map_err(GuestError::Host)
}

impl Guest {
    /// Run a command; answers how it ended. `started` is told how to speak to it
    /// as soon as it runs.
    ///
    /// # Errors
    /// When the agent is not reached, the command cannot be started, the connection
    /// breaks, or one of `streams` cannot be written: the command is hung up on then.
    pub fn exec(
        &self,
        mut command: Exec,
        streams: Streams<'_>,
        started: impl FnOnce(Control),
    ) -> Result<Ending, GuestError> {
        let Streams { stdin, stdout, stderr } = streams;
        command.stdin = stdin.is_some();
        let mut channel = self.connect()?;
        // Starting it takes no longer than the agent may.
        channel.stream_mut().until(self.patience_from_now());
        let answer = channel.send(&ToGuest::Exec(command)).and_then(|()| channel.receive());
        match answer.map_err(|e| self.stalled(e))? {
            ToHost::Started(_) => {}
            ToHost::Failed(failure) => return Err(GuestError::Failed(failure)),
            _ => return Err(out_of_order("the answer to a command")),
        }
        channel.stream_mut().for_ever()?;
        let clone = || channel.stream().stream().try_clone().map_err(GuestError::Host);
        let (window, outbox) = (Arc::new(Window::default()), Arc::new(Outbox::default()));
        window.grant(STDIN_WINDOW);
        let _closing = Closing { window: window.clone(), outbox: outbox.clone(), stream: clone()? };
        let (own, stream) = (outbox.clone(), clone()?);
        spawn("exec-send", move || own.carry(stream))?;
        if let Some(stdin) = stdin {
            let (outbox, window) = (outbox.clone(), window.clone());
            // Not joined: a read of standard input cannot be called back.
            spawn("stdin", move || feed(stdin, &outbox, &window))?;
        }
        started(Control(outbox));
        loop {
            match channel.receive()? {
                ToHost::Stdout(bytes) => put(stdout, &bytes)?,
                ToHost::Stderr(bytes) => put(stderr, &bytes)?,
                ToHost::StdinCredit(count) => window.grant(count as usize),
                ToHost::Ended(ending) => return Ok(ending),
                ToHost::Failed(failure) => return Err(GuestError::Failed(failure)),
                _ => return Err(out_of_order("a message during a command")),
            }
        }
    }
}

/// Write and flush: what a command shows is to be seen at once.
fn put(to: &mut dyn Write, bytes: &[u8]) -> Result<(), GuestError> {
    let written: io::Result<()> = to.write_all(bytes).and_then(|()| to.flush());
    written.map_err(GuestError::Host)
}
