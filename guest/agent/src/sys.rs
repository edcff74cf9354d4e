//! System calls that the standard library has not, each behind a safe function.
//! Constants and structures are Linux's, for x86-64 and aarch64.
// UNSAFE: foreign functions with pointers to plain structures.
#![allow(
    unsafe_code,
    reason = "the agent has no dependencies, and std has no vsock, terminals or init calls"
)]

use std::ffi::{CStr, c_char, c_int, c_long, c_short, c_uint, c_ulong, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

const AF_VSOCK: u16 = 40;
const SOCK_STREAM: c_int = 1;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
const SOL_SOCKET: c_int = 1;
const SO_SNDTIMEO: c_int = 21;
const F_GETFL: c_int = 3;
const F_SETFL: c_int = 4;
const O_NONBLOCK: c_int = 0o4000;
const O_RDWR_NOCTTY_CLOEXEC: c_int = 0o2_000_402;
const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSWINSZ: c_ulong = 0x5414;
const TIOCSPTLCK: c_ulong = 0x4004_5431;
const TIOCGPTPEER: c_ulong = 0x5441;
const MS_RDONLY: c_ulong = 1;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const RB_AUTOBOOT: c_int = 0x0123_4567;

/// Any of this machine's context identifiers.
const CID_ANY: u32 = u32::MAX;
/// The host's context identifier.
const CID_HOST: u32 = 2;

/// vm_sockets.h, `struct sockaddr_vm`.
#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

/// poll(2), `struct pollfd`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Poll {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

unsafe extern "C" {
    safe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    safe fn listen(fd: c_int, backlog: c_int) -> c_int;
    safe fn setsid() -> c_int;
    safe fn setgid(id: c_uint) -> c_int;
    safe fn setuid(id: c_uint) -> c_int;
    #[link_name = "kill"]
    safe fn kill_process(pid: c_int, signal: c_int) -> c_int;
    #[link_name = "sync"]
    safe fn sync_disks();
    #[link_name = "reboot"]
    safe fn reboot_kernel(how: c_int) -> c_int;
    fn bind(fd: c_int, address: *const VsockAddress, length: c_uint) -> c_int;
    fn accept4(fd: c_int, address: *mut VsockAddress, length: *mut c_uint, flags: c_int) -> c_int;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: c_uint) -> c_int;
    fn fcntl(fd: c_int, command: c_int, argument: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int;
    #[link_name = "poll"]
    fn poll_many(fds: *mut Poll, count: c_ulong, timeout: c_int) -> c_int;
    #[link_name = "signal"]
    fn set_signal(signal: c_int, handler: usize) -> usize;
    fn setgroups(count: usize, list: *const c_uint) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    #[link_name = "mount"]
    fn mount_fs(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call that answered this descriptor has just opened it for us.
    checked(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Listen on a vsock port of every context identifier.
pub fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    let fd = owned(socket(AF_VSOCK.into(), SOCK_STREAM | SOCK_CLOEXEC, 0))?;
    let address = VsockAddress { family: AF_VSOCK, reserved: 0, port, cid: CID_ANY, flags: 0, zero: [0; 3] };
    // SAFETY: the address is a whole sockaddr_vm, and its size is given.
    checked(unsafe { bind(fd.as_raw_fd(), &address, size_of::<VsockAddress>() as c_uint) })?;
    checked(listen(fd.as_raw_fd(), 16))?;
    Ok(fd)
}

/// The next connection, and whether it comes from the host: a program of the
/// guest can reach the port too where vsock has a loopback.
pub fn vsock_accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, bool)> {
    let mut address = VsockAddress { family: 0, reserved: 0, port: 0, cid: 0, flags: 0, zero: [0; 3] };
    let mut length = size_of::<VsockAddress>() as c_uint;
    // SAFETY: the address and its length are ours to be written, and of the size told.
    let fd = unsafe { accept4(listener.as_raw_fd(), &mut address, &mut length, SOCK_CLOEXEC) };
    Ok((owned(fd)?, address.cid == CID_HOST))
}

/// Writes to a socket give up after so many seconds without progress.
pub fn limit_send_time(fd: BorrowedFd<'_>, seconds: u32) -> io::Result<()> {
    let time: [c_long; 2] = [c_long::from(seconds), 0];
    let length = size_of_val(&time) as c_uint;
    // SAFETY: the option takes a timeval, two longs, which is read only.
    let result = unsafe { setsockopt(fd.as_raw_fd(), SOL_SOCKET, SO_SNDTIMEO, time.as_ptr().cast(), length) };
    checked(result).map(drop)
}

impl Poll {
    const IN: c_short = 1;
    const OUT: c_short = 4;
    const WRONG: c_short = 8 | 16 | 32;

    /// Wait for input or the end. `None`: for nothing.
    pub fn input(fd: Option<RawFd>) -> Self {
        Poll { fd: fd.unwrap_or(-1), events: Self::IN, revents: 0 }
    }

    /// Wait for room.
    pub fn output(fd: Option<RawFd>) -> Self {
        Poll { fd: fd.unwrap_or(-1), events: Self::OUT, revents: 0 }
    }

    /// Whether it came: input, room, the end or an error.
    pub fn ready(self) -> bool {
        self.revents & (self.events | Self::WRONG) != 0
    }
}

/// Wait until one is ready.
pub fn poll(fds: &mut [Poll]) -> io::Result<()> {
    loop {
        // SAFETY: the slice is ours to be written, and its length is given.
        match checked(unsafe { poll_many(fds.as_mut_ptr(), fds.len() as c_ulong, -1) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Reads and writes answer at once.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take integers.
    let flags = checked(unsafe { fcntl(fd.as_raw_fd(), F_GETFL, 0) })?;
    // SAFETY: as above.
    checked(unsafe { fcntl(fd.as_raw_fd(), F_SETFL, flags | O_NONBLOCK) }).map(drop)
}

/// The other side of an open /dev/ptmx.
pub fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut unlock: c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int.
    checked(unsafe { ioctl(master.as_raw_fd(), TIOCSPTLCK, (&raw mut unlock).cast()) })?;
    let flags = O_RDWR_NOCTTY_CLOEXEC as usize as *mut c_void;
    // SAFETY: TIOCGPTPEER takes flags in the place of the pointer, and opens a descriptor.
    owned(unsafe { ioctl(master.as_raw_fd(), TIOCGPTPEER, flags) })
}

/// Tell a terminal its size.
pub fn set_terminal_size(master: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let mut size = [rows, columns, 0, 0];
    // SAFETY: TIOCSWINSZ reads a winsize, four u16.
    checked(unsafe { ioctl(master.as_raw_fd(), TIOCSWINSZ, size.as_mut_ptr().cast()) }).map(drop)
}

/// Who a process becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The process is to lead a session of its own, with its standard input as the
/// controlling terminal if it is one, and to become this user.
pub fn prepare(command: &mut Command, terminal: bool, credentials: Option<Credentials>) {
    /// SIGHUP, SIGINT, SIGQUIT, SIGTERM.
    const ENDING: [c_int; 4] = [1, 2, 3, 15];
    const DEFAULT: usize = 0;
    let become_them = move || {
        checked(setsid())?;
        // What whoever started the agent wanted ignored is no wish of the command's user.
        for signal in ENDING {
            // SAFETY: the default action, no handler of ours.
            unsafe { set_signal(signal, DEFAULT) };
        }
        if terminal {
            // SAFETY: TIOCSCTTY takes an integer in the place of the pointer.
            checked(unsafe { ioctl(0, TIOCSCTTY, std::ptr::null_mut()) })?;
        }
        if let Some(Credentials { uid, gid, groups }) = &credentials {
            // SAFETY: the list is read only, and its length is given.
            checked(unsafe { setgroups(groups.len(), groups.as_ptr()) })?;
            checked(setgid(*gid))?;
            checked(setuid(*uid))?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only: it neither allocates nor takes
    // a lock, which the child of a process with threads must not.
    unsafe { command.pre_exec(become_them) };
}

/// Send a signal to a process group.
pub fn signal_group(leader: u32, signal: u8) -> io::Result<()> {
    // A group of 0 or 1 would be everyone.
    let Some(group) = c_int::try_from(leader).ok().filter(|g| *g > 1) else { return Ok(()) };
    checked(kill_process(-group, signal.into())).map(drop)
}

/// Wait for any child; answers its process and wait status (wait(2)).
pub fn reap() -> io::Result<(u32, i32)> {
    let mut status = 0;
    // SAFETY: the status is ours to be written.
    let pid = checked(unsafe { waitpid(-1, &mut status, 0) })?;
    Ok((pid as u32, status))
}

/// Mount a file system, perhaps read-only.
pub fn mount(source: &CStr, target: &CStr, kind: &CStr, read_only: bool, options: &CStr) -> io::Result<()> {
    let flags = if read_only { MS_RDONLY } else { 0 };
    let options = options.as_ptr().cast();
    // SAFETY: four strings that end in zero.
    checked(unsafe { mount_fs(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options) }).map(drop)
}

/// Do what `poweroff`, `halt` and `reboot` ask of the first process, by signals of which
/// it has to want to know: programs are told to end and get a second for it.
pub fn end_when_asked() {
    /// SIGUSR1 (halt), SIGUSR2 (power off), SIGTERM (reboot), as busybox sends them.
    const ASKING: [c_int; 3] = [10, 12, TERMINATE];
    const TERMINATE: c_int = 15;
    const KILL: c_int = 9;
    /// Everyone but the first process.
    const EVERYONE: c_int = -1;
    extern "C" fn end_as_asked(signal: c_int) {
        // System calls only, as in any handler of signals.
        kill_process(EVERYONE, TERMINATE);
        // SAFETY: no descriptors, so nothing is read.
        unsafe { poll_many(std::ptr::null_mut(), 0, 1000) };
        kill_process(EVERYONE, KILL);
        // A halted machine could do nothing more but be ended from outside.
        let _ = end(signal == TERMINATE);
    }
    let handler: extern "C" fn(c_int) = end_as_asked;
    for signal in ASKING {
        // SAFETY: the handler makes system calls only, and lives as long as the program.
        unsafe { set_signal(signal, handler as usize) };
    }
}

/// Write what is not on disk, then end the guest. Returns only when refused.
pub fn end(again: bool) -> io::Error {
    sync_disks();
    reboot_kernel(if again { RB_AUTOBOOT } else { RB_POWER_OFF });
    io::Error::last_os_error()
}
