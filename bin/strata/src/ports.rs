//! `--port NAME=PATH`: programs of the host at the guest's named channels.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use board::{ConsoleHandle, MachineSpec, PortOutput, PortSpec};

use crate::failure::InputError;

/// How long a client may take to read; one that takes longer has left.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before a guest that does not read is offered the rest again.
const RETRY: Duration = Duration::from_millis(10);

/// Parse the option's value.
pub fn parse(text: &str) -> Result<PortSpec, String> {
    let parts = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = parts.ok_or("write --port NAME=PATH, the path of a Unix socket to be made")?;
    Ok(PortSpec { name: name.to_string(), socket: path.into() })
}

/// The client of a port, if there is one.
type Client = Arc<Mutex<Option<UnixStream>>>;

fn client(client: &Client) -> Option<UnixStream> {
    client.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|c| c.try_clone().ok())
}

/// Gives a port's output to its client.
struct Output(Client);

impl PortOutput for Output {
    /// What the guest writes to nobody is lost; its driver knows that nobody is there.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(mut stream) = client(&self.0)
            && stream.write_all(bytes).is_err()
        {
            // Its reader ends, and with it the connection.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// The sockets of a machine's ports, bound and not yet served.
pub struct Ports(Vec<(UnixListener, Client)>);

impl Ports {
    /// Bind them, before the sandbox closes. A socket that a machine left behind is
    /// taken over.
    pub fn bind(spec: &MachineSpec) -> anyhow::Result<Ports> {
        let bound = spec.ports.iter().map(|port| {
            let listener = bind(&port.socket).with_context(|| {
                let path = port.socket.display();
                InputError(format!("cannot listen on {path} for port {}; give a free path", port.name))
            })?;
            Ok((listener, Client::default()))
        });
        bound.collect::<anyhow::Result<_>>().map(Ports)
    }

    /// Where the ports' output goes.
    pub fn outputs(&self) -> Vec<Box<dyn PortOutput>> {
        self.0.iter().map(|(_, client)| Box::new(Output(client.clone())) as Box<dyn PortOutput>).collect()
    }

    /// Serve them, a thread each, until the process ends.
    pub fn serve(self, handle: &ConsoleHandle) -> anyhow::Result<()> {
        for (number, (listener, client)) in self.0.into_iter().enumerate() {
            let handle = handle.clone();
            std::thread::Builder::new()
                .name(format!("port-{number}"))
                .spawn(move || serve(&listener, &client, &handle, number))
                .context("cannot start a port's thread")?;
        }
        Ok(())
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        // Nobody listens: a machine that ended.
        Err(e) if e.kind() == ErrorKind::AddrInUse && is_left_behind(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

/// A socket that refuses; so does a file that is none, and that is somebody's.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

fn serve(listener: &UnixListener, client: &Client, handle: &ConsoleHandle, number: usize) {
    loop {
        let accepted = listener.accept().and_then(|(stream, _)| {
            stream.set_write_timeout(Some(PATIENCE))?;
            let own = stream.try_clone()?;
            *client.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
            Ok(stream)
        });
        let Ok(stream) = accepted else {
            // The host has no descriptor left.
            std::thread::sleep(PATIENCE);
            continue;
        };
        handle.set_connected(number, true);
        carry(&stream, handle, number);
        handle.set_connected(number, false);
        *client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Carry what a client says to the guest until it has no more to say and has left.
fn carry(mut stream: &UnixStream, handle: &ConsoleHandle, number: usize) {
    let mut buffer = [0; 4096];
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            rest = &rest[handle.input(number, rest).min(rest.len())..];
            if !rest.is_empty() {
                std::thread::sleep(RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_name_and_a_path() {
        let port = PortSpec { name: "org.example.0".into(), socket: "/tmp/a=b".into() };
        assert_eq!(parse("org.example.0=/tmp/a=b"), Ok(port));
        for bad in ["", "name", "=path", "name="] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_left_behind_is_taken_over_and_one_in_use_is_not() {
        let path = std::env::temp_dir().join(format!("strata-port-{}", std::process::id()));
        let first = bind(&path).unwrap();
        assert!(bind(&path).is_err());
        drop(first);
        drop(bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
        std::fs::remove_file(&path).unwrap();
    }
}
