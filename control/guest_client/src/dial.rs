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

/// A guest, by the socket of its machine.
#[derive(Debug, Clone)]
pub struct Guest {
    socket: PathBuf,
    patience: Duration,
}

impl Guest {
    /// The guest behind a machine's vsock socket, whose agent may take so long to
    /// come up.
    pub fn new(socket: &Path, patience: Duration) -> Self {
        Guest { socket: socket.to_path_buf(), patience }
    }

    /// Connect to the agent and exchange greetings.
    pub(crate) fn connect(&self) -> Result<Channel<UnixStream>, GuestError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let silent = || GuestError::Silent(self.patience);
            let left = deadline.saturating_duration_since(Instant::now()).max(BETWEEN);
            let mut stream = UnixStream::connect(&self.socket)
                .map_err(|error| GuestError::NoSocket { path: self.socket.clone(), error })?;
            match ask(&mut stream, left) {
                // A new thread waits as long as it takes.
                Ok(true) => {
                    let mut channel = Channel::new(stream);
                    channel.greet()?;
                    channel.stream().set_read_timeout(None).map_err(GuestError::Host)?;
                    return Ok(channel);
                }
                // Nobody listens there yet, or the guest's driver is not up yet.
                Ok(false) | Err(_) if Instant::now() + BETWEEN < deadline => std::thread::sleep(BETWEEN),
                Ok(false) | Err(_) => return Err(silent()),
            }
        }
    }

    /// Send one request and wait for its only answer.
    fn ask(&self, request: &ToGuest) -> Result<ToHost, GuestError> {
        let mut channel = self.connect()?;
        channel.send(request)?;
        match channel.receive()? {
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
fn ask(stream: &mut UnixStream, limit: Duration) -> io::Result<bool> {
    stream.set_read_timeout(Some(limit))?;
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
