//! A command in the guest, with its streams here.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use agent_protocol::{Ending, Exec, Frames, STDIN_WINDOW, Size, ToGuest, ToHost};

use crate::dial::out_of_order;
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
pub struct Control(Arc<Mutex<UnixStream>>);

impl Control {
    fn send(&self, message: &ToGuest) -> Result<(), GuestError> {
        let bytes = Frames::encode(message)?;
        // Held over the whole message: they must not mix.
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&bytes).map_err(|e| GuestError::Channel(e.into()))
    }

    /// Send the command's process group a signal, by its Linux number.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn signal(&self, number: u8) -> Result<(), GuestError> {
        self.send(&ToGuest::Signal(number))
    }

    /// Give its terminal another size.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn resize(&self, size: Size) -> Result<(), GuestError> {
        self.send(&ToGuest::Resize(size))
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
fn feed(mut from: Box<dyn Read + Send>, control: &Control, window: &Window) {
    let mut buffer = vec![0; CHUNK];
    while let Some(room) = window.room() {
        let most = room.min(CHUNK);
        let sent = match from.read(&mut buffer[..most]) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // What cannot be read is as if it had ended.
            Ok(0) | Err(_) => {
                let _ = control.send(&ToGuest::StdinEnd);
                return;
            }
            Ok(n) => {
                window.take(n);
                control.send(&ToGuest::Stdin(buffer[..n].to_vec()))
            }
        };
        // The thread that receives tells why.
        if sent.is_err() {
            return;
        }
    }
}

/// Ends the feeding thread's waiting, however a call ends.
struct Closing(Arc<Window>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
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
        channel.send(&ToGuest::Exec(command))?;
        match channel.receive()? {
            ToHost::Started(_) => {}
            ToHost::Failed(failure) => return Err(GuestError::Failed(failure)),
            _ => return Err(out_of_order("the answer to a command")),
        }
        let stream = channel.stream().try_clone().map_err(GuestError::Host)?;
        let control = Control(Arc::new(Mutex::new(stream)));
        let window = Arc::new(Window::default());
        window.grant(STDIN_WINDOW);
        let _closing = Closing(window.clone());
        if let Some(stdin) = stdin {
            let (control, window) = (control.clone(), window.clone());
            // Not joined: a read of standard input cannot be called back.
            std::thread::Builder::new()
                .name("stdin".to_string())
                .spawn(move || feed(stdin, &control, &window))
                .map_err(GuestError::Host)?;
        }
        started(control);
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
