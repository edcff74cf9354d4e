//! Reaching the agent.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_protocol::{Channel, ChannelError, Failure, FailureKind, GuestFacts, PORT, Power, ToGuest, ToHost};

/// Between two attempts while the guest starts.
const BETWEEN: Duration = Duration::from_millis(100);
/// The longest answer to `CONNECT`: `OK 4294967295\n`.
const MAX_ANSWER: usize = 16;

/// Why a guest did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The machine has no socket device, or its process is gone.
    #[error("no way to the guest's agent at {}: {error}; start the machine with a socket device (--vsock)", path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
        /// The host's error.
        error: io::Error,
    },
    /// Nobody answers.
    #[error(
        "no agent has answered in the guest within {0:?}; it starts with the guest's userland, and images made by `strata image build` have it"
    )]
    Silent(Duration),
    /// Somebody answered, and then said too little.
    #[error(
        "the guest's agent has not said all within {0:?}; see whether the guest is paused, or its agent another program"
    )]
    Stalled(Duration),
    /// It does not read.
    #[error("the guest's agent takes no more messages; see whether the guest is paused")]
    Full,
    /// The connection broke.
    #[error("the connection to the guest's agent: {0}; see whether the guest still runs")]
    Channel(ChannelError),
    /// The guest refused.
    #[error("{}", .0.text)]
    Failed(Failure),
    /// A file or stream of the host.
    #[error(transparent)]
    Host(io::Error),
}

impl GuestError {
    /// What kind of refusal it is, if it is the guest's.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            GuestError::Failed(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

impl From<ChannelError> for GuestError {
    fn from(e: ChannelError) -> Self {
        GuestError::Channel(e)
    }
}

impl From<agent_protocol::ProtocolError> for GuestError {
    fn from(e: agent_protocol::ProtocolError) -> Self {
        GuestError::Channel(e.into())
    }
}

/// A connection whose reads and writes may have to be over at some time. The agent is
/// not trusted: a limit on each read would let it speak a byte at a time for ever.
#[derive(Debug)]
pub(crate) struct Timed {
    stream: UnixStream,
    until: Option<Instant>,
}

impl Timed {
    pub(crate) fn until(&mut self, time: Instant) {
        self.until = Some(time);
    }

    /// From now on a read waits as long as it takes.
    pub(crate) fn for_ever(&mut self) -> Result<(), GuestError> {
        self.until = None;
        let limits = self.stream.set_read_timeout(None).and_then(|()| self.stream.set_write_timeout(None));
        limits.map_err(GuestError::Host)
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn within<T>(
        &mut self,
        set: fn(&UnixStream, Option<Duration>) -> io::Result<()>,
        act: impl FnOnce(&mut UnixStream) -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(until) = self.until else { return act(&mut self.stream) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set(&self.stream, Some(left))?;
        act(&mut self.stream).map_err(|e| match e.kind() {
            // Linux says EAGAIN when a limit has passed.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => e,
        })
    }
}

impl Read for Timed {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.within(UnixStream::set_read_timeout, |stream| stream.read(to))
    }
}

impl Write for Timed {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.within(UnixStream::set_write_timeout, |stream| stream.write(from))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest, by the socket of its machine.
#[derive(Debug, Clone)]
pub struct Guest {
    socket: PathBuf,
    patience: Duration,
}

impl Guest {
    /// The guest behind a machine's vsock socket, whose agent may take so long to
    /// come up and to answer.
    pub fn new(socket: &Path, patience: Duration) -> Self {
        Guest { socket: socket.to_path_buf(), patience }
    }

    /// Connect to the agent and exchange greetings. What is read and written then has
    /// to be over at the same time, unless that is changed.
    pub(crate) fn connect(&self) -> Result<Channel<Timed>, GuestError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let stream = UnixStream::connect(&self.socket)
                .map_err(|error| GuestError::NoSocket { path: self.socket.clone(), error })?;
            let until = deadline.max(Instant::now() + BETWEEN);
            let mut stream = Timed { stream, until: Some(until) };
            match ask(&mut stream) {
                Ok(true) => {
                    let mut channel = Channel::new(stream);
                    channel.greet().map_err(|e| self.stalled(e))?;
                    return Ok(channel);
                }
                // Nobody listens there yet, or the guest's driver is not up yet.
                Ok(false) | Err(_) if Instant::now() + BETWEEN < deadline => std::thread::sleep(BETWEEN),
                Ok(false) | Err(_) => return Err(GuestError::Silent(self.patience)),
            }
        }
    }

    /// An error before a deadline of this guest's patience.
    pub(crate) fn stalled(&self, error: ChannelError) -> GuestError {
        match error {
            ChannelError::Io(e) if e.kind() == io::ErrorKind::TimedOut => GuestError::Stalled(self.patience),
            other => other.into(),
        }
    }

    /// When this guest's patience ends.
    pub(crate) fn patience_from_now(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// Send one request and wait for its only answer, all within the patience.
    fn ask(&self, request: &ToGuest) -> Result<ToHost, GuestError> {
        let mut channel = self.connect()?;
        let answer = channel.send(request).and_then(|()| channel.receive());
        match answer.map_err(|e| self.stalled(e))? {
            ToHost::Failed(failure) => Err(GuestError::Failed(failure)),
            answer => Ok(answer),
        }
    }

    /// What the guest is and does.
    ///
    /// # Errors
    /// When the agent is not reached.
    pub fn facts(&self) -> Result<GuestFacts, GuestError> {
        match self.ask(&ToGuest::Facts)? {
            ToHost::Facts(facts) => Ok(facts),
            _ => Err(out_of_order("the answer to a question")),
        }
    }

    /// Ask the guest to end.
    ///
    /// # Errors
    /// When the agent is not reached, or refuses.
    pub fn power(&self, power: Power) -> Result<(), GuestError> {
        match self.ask(&ToGuest::Power(power))? {
            ToHost::Done => Ok(()),
            _ => Err(out_of_order("the answer to a power request")),
        }
    }
}

pub(crate) fn out_of_order(what: &'static str) -> GuestError {
    agent_protocol::ProtocolError::OutOfOrder(what).into()
}

/// Ask the socket device for the agent's port; false: nobody listens there.
fn ask(stream: &mut Timed) -> io::Result<bool> {
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut line = Vec::new();
    // What follows the line is the agent's: byte by byte.
    while line.len() < MAX_ANSWER {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Ok(false),
            Ok(_) if byte[0] == b'\n' => return Ok(line.starts_with(b"OK ")),
            Ok(_) => line.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
