//! Making the host's sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
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

/// Whether an address is one of the host's own, as far as the routes say so now.
///
/// What leaves for such an address has it as its source; or, for a further IPv4 address of
/// an interface, the first, and the loopback interface's longest packets, which are as long
/// as packets can be (but for hosts that change that interface). To bind to the address
/// would say it, but is nothing that the sandbox allows.
pub(crate) fn is_own(address: IpAddr) -> bool {
    // Any port: nothing is sent. Where no route leads a connection fails, too.
    let Ok(socket) = connect_udp(&SocketAddr::new(address, 9)) else { return false };
    let longest = if address.is_ipv4() { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) };
    socket.local_addr().is_ok_and(|source| source.ip() == address)
        || longest.is_ok_and(|l| l >= u32::from(u16::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_knows_its_addresses() {
        for (address, own) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            // Of no host (RFC 5737, RFC 3849).
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(is_own(address.parse().unwrap()), own, "{address}");
        }
    }
}
