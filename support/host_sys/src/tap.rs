//! Tap interfaces (Linux `Documentation/networking/tuntap.rst`).
// UNSAFE: ioctls that rustix does not have.
#![allow(unsafe_code, reason = "the tun driver is spoken to by ioctls that have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_ulong, c_void};

/// ioctls of the tun driver: `_IOW('T', n, int)`.
const TUNSETIFF: c_ulong = 0x4004_54ca;
/// Which offloads the reader of frames takes; the values of [`set_tap_offloads`].
pub const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
/// Attach and detach a queue.
pub const TUNSETQUEUE: c_ulong = 0x4004_54d9;
const TUNSETVNETLE: c_ulong = 0x4004_54dc;
/// Add an interface to a bridge (netdevice(7)'s `ifreq`: its name and the interface's index).
const SIOCBRADDIF: c_ulong = 0x89a2;

fn flags_of(flags: c_int) -> libc::ifreq {
    // SAFETY: a C structure of integers and arrays, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The flags fit: the largest is 0x4000.
    request.ifr_ifru.ifru_flags = flags as i16;
    request
}

fn control(fd: impl AsFd, request: c_ulong, argument: *mut c_void) -> io::Result<()> {
    // SAFETY: callers in this module pass an argument of the type that the request
    // reads (ifreq or int, or the value itself), alive for the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Make an open `/dev/net/tun` or macvtap device a queue of the interface `name`, with a
/// `virtio_net_hdr` of `header` bytes, little-endian, before each frame; answers its name,
/// where a `%d` in `name` stands for a number that is free.
///
/// # Errors
/// The host's; a name that is too long is `InvalidInput`.
pub fn attach_tap(fd: impl AsFd, name: &str, header: i32, multi_queue: bool) -> io::Result<String> {
    let multi = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = flags_of(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi);
    put_name(&mut request, name)?;
    let pointer: *mut libc::ifreq = &mut request;
    control(&fd, TUNSETIFF, pointer.cast())?;
    let mut size: c_int = header;
    let pointer: *mut c_int = &mut size;
    control(&fd, TUNSETVNETHDRSZ, pointer.cast())?;
    let mut little: c_int = 1;
    let pointer: *mut c_int = &mut little;
    control(&fd, TUNSETVNETLE, pointer.cast())?;
    let named = request.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8(named).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Name the interface that a request is about.
fn put_name(request: &mut libc::ifreq, name: &str) -> io::Result<()> {
    // A zero byte ends the name.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(())
}

/// Make an interface a port of a bridge, and set it up. Needs CAP_NET_ADMIN.
///
/// # Errors
/// The host's.
pub fn join_bridge(bridge: &str, interface: &str) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = flags_of(libc::IFF_UP);
    put_name(&mut request, interface)?;
    let pointer: *mut libc::ifreq = &mut request;
    control(&socket, libc::SIOCSIFFLAGS as c_ulong, pointer.cast())?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    put_name(&mut request, bridge)?;
    request.ifr_name[bridge.len()..].fill(0);
    request.ifr_ifru.ifru_ifindex = index as c_int;
    let pointer: *mut libc::ifreq = &mut request;
    control(&socket, SIOCBRADDIF, pointer.cast())
}

/// Say which offloads the reader of frames takes: `TUN_F_*` bits.
///
/// # Errors
/// The host's.
pub fn set_tap_offloads(fd: impl AsFd, bits: u32) -> io::Result<()> {
    // The argument is the value itself.
    control(fd, TUNSETOFFLOAD, bits as usize as *mut c_void)
}

/// Attach or detach a queue of an interface with several.
///
/// # Errors
/// The host's.
pub fn set_tap_queue(fd: impl AsFd, attached: bool) -> io::Result<()> {
    let mut request = flags_of(if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE });
    let pointer: *mut libc::ifreq = &mut request;
    control(fd, TUNSETQUEUE, pointer.cast())
}
