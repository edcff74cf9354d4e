//! Making the host's sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn family(of: &SocketAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn make(of: &SocketAddr, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family(of), kind, flags, protocol)?;
    if of.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// A connection under way; it is made, or has failed, when it becomes writable.
pub(crate) fn connect_tcp(to: &SocketAddr) -> io::Result<TcpStream> {
    let socket = make(to, SocketType::STREAM, None)?;
    prepare_tcp(&socket)?;
    match rustix::net::connect(&socket, to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(e) => Err(e.into()),
    }
}

/// Settings of a connection's socket: the guest's own TCP decides when to send,
/// and the death of a silent peer is noticed.
pub(crate) fn prepare_tcp(socket: impl std::os::fd::AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    Ok(())
}

/// Close a connection with a reset instead of an orderly end.
pub(crate) fn reset_tcp(stream: TcpStream) {
    // Where the option fails the peer sees an orderly end.
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

/// Datagrams to one peer.
pub(crate) fn connect_udp(to: &SocketAddr) -> io::Result<UdpSocket> {
    let socket = make(to, SocketType::DGRAM, None)?;
    rustix::net::connect(&socket, to)?;
    Ok(socket.into())
}

/// Echo requests to one host, without privilege (icmp(7), ping_group_range).
pub(crate) fn connect_ping(to: &SocketAddr) -> io::Result<UdpSocket> {
    let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    let socket = make(to, SocketType::DGRAM, Some(protocol))?;
    rustix::net::connect(&socket, to)?;
    Ok(socket.into())
}

/// A listening socket.
pub(crate) fn listen_tcp(at: &SocketAddr) -> io::Result<TcpListener> {
    /// Connections that the kernel keeps for the next turn.
    const BACKLOG: i32 = 128;
    let socket = make(at, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, at)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Datagrams from anyone.
pub(crate) fn listen_udp(at: &SocketAddr) -> io::Result<UdpSocket> {
    let socket = make(at, SocketType::DGRAM, None)?;
    rustix::net::bind(&socket, at)?;
    Ok(socket.into())
}

/// Let the process have `more` descriptors than now, as far as it may.
pub(crate) fn allow_descriptors(more: u64) {
    let limit = getrlimit(Resource::Nofile);
    if let Some(current) = limit.current {
        let wanted = current.saturating_add(more);
        let current = Some(limit.maximum.map_or(wanted, |m| m.min(wanted)));
        // What is refused shows as a limit on flows.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
}
