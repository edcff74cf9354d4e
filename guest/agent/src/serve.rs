//! Connections and their requests.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent_protocol::{
    Channel, ChannelError, Failure, FailureKind, Power, ProtocolError, Receiver, ToGuest, ToHost, TreeItem,
    TreeName, send_tree,
};

use crate::{exec, facts, sys};

/// Connections at once; each has a thread or two.
const MAX_CONNECTIONS: usize = 128;
/// How long a host may take nothing before it is given up, in seconds.
const SEND_LIMIT: u32 = 3600;
/// How often a port is tried that is not there yet.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Serve the host over vsock. Returns only when that fails.
pub fn vsock() -> io::Result<()> {
    let mut tries = 0;
    // The kernel's modules may still be on their way.
    let listener = loop {
        match sys::vsock_listen(agent_protocol::PORT) {
            Err(_) if tries < TRIES => tries += 1,
            Err(e) => {
                return Err(io::Error::other(format!("no vsock: {e}; load the module vsock in the guest")));
            }
            Ok(listener) => break listener,
        }
        std::thread::sleep(BETWEEN_TRIES);
    };
    let count = Arc::new(AtomicUsize::new(0));
    loop {
        match sys::vsock_accept(listener.as_fd()) {
            // A vsock stream reads, writes and shuts down as a Unix one does.
            Ok((stream, true)) => start(UnixStream::from(stream), &count),
            Ok((_, false)) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => std::thread::sleep(BETWEEN_TRIES),
        }
    }
}

/// Serve over a Unix socket.
pub fn unix(path: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let count = Arc::new(AtomicUsize::new(0));
    loop {
        start(listener.accept()?.0, &count);
    }
}

/// Counts a connection as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start(stream: UnixStream, count: &Arc<AtomicUsize>) {
    let before = count.fetch_add(1, Ordering::Relaxed);
    let counted = Counted(count.clone());
    if before >= MAX_CONNECTIONS {
        return;
    }
    // Where no thread can be had, the connection is closed: the host tells that.
    let _ = std::thread::Builder::new().name("connection".to_string()).spawn(move || {
        let _counted = counted;
        // The host sees why by the connection's end, or has closed it itself.
        let _ = serve(stream);
    });
}

/// A failure to tell the host.
pub fn failed(e: &io::Error) -> ToHost {
    let kind = match e.kind() {
        io::ErrorKind::NotFound => FailureKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            FailureKind::Refused
        }
        // What is no program: ENOEXEC.
        _ if e.raw_os_error() == Some(8) => FailureKind::Refused,
        _ => FailureKind::Other,
    };
    ToHost::Failed(Failure { kind, text: e.to_string() })
}

/// Serve one connection.
pub fn serve(stream: UnixStream) -> Result<(), ChannelError> {
    sys::limit_send_time(stream.as_fd(), SEND_LIMIT)?;
    let mut channel = Channel::new(stream);
    channel.greet()?;
    match channel.receive()? {
        ToGuest::Exec(exec) => exec::run(&exec, &mut channel),
        ToGuest::CopyIn { path } => copy_in(&path, &mut channel),
        ToGuest::CopyOut { path } => copy_out(&path, &mut channel),
        ToGuest::Facts => channel.send(&ToHost::Facts(facts::gather())),
        ToGuest::Power(power) => end_guest(power, &mut channel),
        _ => Err(ProtocolError::OutOfOrder("the first request").into()),
    }
}

fn copy_in(path: &[u8], channel: &mut Channel<UnixStream>) -> Result<(), ChannelError> {
    let mut receiver = match Receiver::new(Path::new(OsStr::from_bytes(path)), TreeName::Sent) {
        Ok(receiver) => Some(receiver),
        Err(e) => {
            channel.send(&failed(&e))?;
            None
        }
    };
    loop {
        let item = match channel.receive()? {
            ToGuest::Tree(item) => item,
            _ => return Err(ProtocolError::OutOfOrder("a request during a copy").into()),
        };
        let end = item == TreeItem::End;
        // After a failure the rest is read and dropped, so that the host, which may
        // be in the middle of a message, sees the failure and not a reset.
        if let Some(r) = &mut receiver {
            match r.accept(item) {
                Ok(_) => {}
                Err(ChannelError::Io(e)) => {
                    channel.send(&failed(&e))?;
                    receiver = None;
                }
                Err(other) => return Err(other),
            }
        }
        if end {
            return if receiver.is_some() { channel.send(&ToHost::Done) } else { Ok(()) };
        }
    }
}

fn copy_out(path: &[u8], channel: &mut Channel<UnixStream>) -> Result<(), ChannelError> {
    // An error of the connection and one of a file look alike: know which it was.
    let mut lost = false;
    let result = send_tree(Path::new(OsStr::from_bytes(path)), &mut |item| {
        let sent = channel.send(&ToHost::Tree(item));
        lost |= sent.is_err();
        sent
    });
    match result {
        Err(ChannelError::Io(e)) if !lost => channel.send(&failed(&e)),
        other => other,
    }
}

fn end_guest(power: Power, channel: &mut Channel<UnixStream>) -> Result<(), ChannelError> {
    let again = power == Power::Reboot;
    // systemd stops its services first.
    if Path::new("/run/systemd/system").exists() {
        let verb = if again { "reboot" } else { "poweroff" };
        let status = std::process::Command::new("systemctl").args(["--no-block", verb]).status();
        return match status {
            Ok(status) if status.success() => channel.send(&ToHost::Done),
            Ok(status) => channel.send(&failed(&io::Error::other(format!("systemctl {verb}: {status}")))),
            Err(e) => channel.send(&failed(&e)),
        };
    }
    channel.send(&ToHost::Done)?;
    // Let the answer leave the guest.
    std::thread::sleep(BETWEEN_TRIES);
    Err(sys::end(again).into())
}
