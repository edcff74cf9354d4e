//! Things tried from inside the sandbox, each in a process of its own.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "makes calls that must be refused")]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::net::{AddressFamily, SocketType};
use sandbox::{Calls, Files, Landlock, confine_calls, confine_files, landlock};

/// Names the part that a process of this test plays.
const PART: &str = "STRATA_SANDBOX_TEST";
/// Names a process that it is not to reach.
const VICTIM: &str = "STRATA_SANDBOX_TEST_VICTIM";
const PAGE: usize = 4096;

/// Run this test's `inside` in another process.
fn inside_as(part: &str) -> (ExitStatus, String) {
    inside_against(part, std::process::id())
}

fn inside_against(part: &str, victim: u32) -> (ExitStatus, String) {
    let exe = std::env::current_exe().expect("a test has a path");
    let output = Command::new(exe)
        .args(["--ignored", "--exact", "inside", "--nocapture", "--test-threads=1"])
        .env(PART, part)
        .env(VICTIM, victim.to_string())
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status, text.into_owned())
}

#[test]
fn what_is_left_and_what_is_not() {
    let (status, text) = inside_as("tries");
    assert!(status.success(), "{text}");
    assert!(text.contains("tried everything"), "{text}");
}

#[test]
fn what_user_mode_nat_needs_besides() {
    let (status, text) = inside_as("connects");
    assert!(status.success(), "{text}");
    assert!(text.contains("tried everything"), "{text}");
}

#[test]
fn starting_a_program_ends_the_process() {
    let (status, text) = inside_as("execve");
    assert_eq!(status.signal(), Some(31), "SIGSYS expected: {text}");
}

/// Another process of the same user.
struct Victim(Child);

impl Victim {
    fn start() -> Victim {
        Victim(Command::new("sleep").arg("60").spawn().expect("it starts"))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a confined process does to others does not reach them.
fn check_others_are_left_alone(part: &str) {
    let mut victim = Victim::start();
    let (status, text) = inside_against(part, victim.0.id());
    assert!(status.success(), "{text}");
    assert!(text.contains("tried everything"), "{text}");
    assert_eq!(victim.0.try_wait().expect("our child"), None, "the other process has ended");
}

#[test]
fn files_send_signals_to_nobody() {
    check_others_are_left_alone("files_signal");
}

#[test]
fn others_keep_their_limits_processors_and_threads() {
    check_others_are_left_alone("others");
}

#[test]
fn signals_and_abstract_sockets_end_at_the_process() {
    if landlock() == Landlock::Full {
        check_others_are_left_alone("scopes");
    }
}

/// What a call answers.
fn answer(result: impl Into<i64>) -> Result<(), Errno> {
    let failed = || Errno::from_io_error(&std::io::Error::last_os_error()).expect("an error of the system");
    if result.into() < 0 { Err(failed()) } else { Ok(()) }
}

fn victim() -> libc::pid_t {
    std::env::var(VICTIM).expect("set by the test").parse().expect("a process")
}

/// Let the kernel send SIGKILL when something happens to a pipe, and do something.
/// Answers what each step did.
fn signal_by_a_pipe(victim: libc::pid_t) -> [Result<(), Errno>; 3] {
    /// Of fcntl(2); not in crate libc.
    const F_SETSIG: libc::c_int = 10;
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let fd = reader.as_raw_fd();
    // SAFETY: these commands take integers.
    let step = |command, argument: libc::c_int| answer(unsafe { libc::fcntl(fd, command, argument) });
    let steps = [
        step(libc::F_SETOWN, victim),
        step(F_SETSIG, libc::SIGKILL),
        step(libc::F_SETFL, libc::O_RDONLY | libc::O_ASYNC),
    ];
    std::io::Write::write_all(&mut writer, b"x").expect("room");
    std::thread::sleep(std::time::Duration::from_millis(100));
    steps
}

fn try_files_that_signal() {
    confine_calls(Calls::default()).expect("confined");
    assert_eq!(signal_by_a_pipe(victim()), [Err(Errno::PERM); 3]);
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let fd = reader.as_raw_fd();
    let no = Err(Errno::PERM);
    // What is used: modes, duplicates, locks; and two other ways to ask for signals.
    for (command, argument, expected) in [
        (libc::F_SETFL, libc::O_NONBLOCK, Ok(())),
        (libc::F_GETFL, 0, Ok(())),
        (libc::F_SETFD, libc::FD_CLOEXEC, Ok(())),
        (libc::F_GETFD, 0, Ok(())),
        (libc::F_DUPFD_CLOEXEC, 0, Ok(())),
        (libc::F_NOTIFY, 0, no),
        (libc::F_SETLEASE, libc::F_RDLCK, no),
        (libc::F_SETPIPE_SZ, 1 << 20, no),
    ] {
        // SAFETY: these commands take integers.
        let result = answer(unsafe { libc::fcntl(fd, command, argument) });
        assert_eq!(result, expected, "command {command}");
    }
    for request in [libc::FIOASYNC, 0x8901 /* FIOSETOWN */, 0x8902 /* SIOCSPGRP */, libc::TIOCSTI] {
        let argument = victim();
        // SAFETY: they read an integer, of which TIOCSTI takes a byte.
        let result = answer(unsafe { libc::ioctl(fd, request, &raw const argument) });
        assert_eq!(result, no, "ioctl {request:#x}");
    }
}

fn try_calls_that_reach_others() {
    // A pointer whose lower half is null.
    let at = 0x1_0000_0000_usize;
    let data = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: a new mapping where none is.
    let page = unsafe { mmap_anonymous(at as *mut _, PAGE, data, flags) }.expect("a free address");
    assert_eq!(page as usize, at);
    let limit = page.cast::<libc::rlimit>();
    // SAFETY: mapped above, and aligned to a page.
    unsafe { limit.write(libc::rlimit { rlim_cur: 64, rlim_max: 64 }) };
    confine_calls(Calls::default()).expect("confined");
    let (victim, own, limit) = (i64::from(victim()), i64::from(std::process::id()), limit as i64);
    let mut old = [0_u64; 2];
    let old = old.as_mut_ptr() as i64;
    let files = i64::from(libc::RLIMIT_NOFILE);
    let (thread, no) =
        (i64::from(libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD), Err(Errno::PERM));
    // What would otherwise be done is harmless here, or refused for another reason.
    for (call, arguments, expected) in [
        (libc::SYS_prlimit64, [0, files, 0, old], Ok(())),
        (libc::SYS_prlimit64, [0, files, limit, 0], no),
        (libc::SYS_prlimit64, [victim, files, limit, 0], no),
        (libc::SYS_prlimit64, [victim, files, 0, old], no),
        (libc::SYS_sched_setaffinity, [victim, 8, old, 0], no),
        (libc::SYS_sched_setscheduler, [victim, 0, old, 0], no),
        (libc::SYS_setpriority, [0, victim, 19, 0], no),
        (libc::SYS_ioprio_set, [1, victim, 0, 0], no),
        (libc::SYS_kill, [victim, 0, 0, 0], no),
        (libc::SYS_tkill, [victim, 0, 0, 0], no),
        (libc::SYS_tgkill, [victim, victim, 0, 0], no),
        (libc::SYS_tgkill, [own, own, 0, 0], Ok(())),
        (libc::SYS_pidfd_open, [victim, 0, 0, 0], no),
        (libc::SYS_kcmp, [own, victim, 0, 0], no),
        (libc::SYS_clone, [thread | i64::from(libc::CLONE_NEWUSER), 0, 0, 0], no),
        (libc::SYS_clone, [i64::from(libc::CLONE_THREAD), 0, 0, 0], no),
        (libc::SYS_madvise, [at as i64, 0, i64::from(libc::MADV_HWPOISON), 0], no),
        (libc::SYS_madvise, [at as i64, 0, i64::from(libc::MADV_SOFT_OFFLINE), 0], no),
        (libc::SYS_madvise, [at as i64, PAGE as i64, i64::from(libc::MADV_DONTNEED), 0], Ok(())),
        (libc::SYS_io_uring_register, [0, 0, 0, 0], no),
        (libc::SYS_personality, [0x0040_0000, 0, 0, 0], no),
        (libc::SYS_pkey_mprotect, [at as i64, PAGE as i64, 7, -1], no),
        (libc::SYS_pidfd_getfd, [0, 0, 0, 0], no),
        (libc::SYS_process_madvise, [0, 0, 0, 0], no),
    ] {
        let [a, b, c, d] = arguments;
        // SAFETY: the pointers among the arguments are to memory of this function.
        let result = answer(unsafe { libc::syscall(call, a, b, c, d) });
        assert_eq!(result, expected, "system call {call} {arguments:x?}");
    }
}

/// Without the filter of calls, what Landlock does by itself.
fn try_to_leave_the_scope() {
    let name = SocketAddr::from_abstract_name(format!("strata-sandbox-{}", std::process::id()));
    let name = name.expect("short enough");
    let _listener = UnixListener::bind_addr(&name).expect("a free name");
    confine_files(&Files::default()).expect("confined");
    // SAFETY: no memory is involved; signal 0 only asks.
    let to = |process| answer(unsafe { libc::kill(process, 0) });
    assert_eq!(to(victim()), Err(Errno::PERM));
    assert_eq!(to(std::process::id() as libc::pid_t), Ok(()));
    let connected = UnixStream::connect_addr(&name).map(drop).map_err(|e| e.kind());
    assert_eq!(connected, Err(ErrorKind::PermissionDenied));
    // The signal is dropped; the victim says so by living on.
    assert_eq!(signal_by_a_pipe(victim()), [Ok(()); 3]);
}

/// A page mapped so, then protected so.
fn page(first: ProtFlags, then: Option<MprotectFlags>) -> Result<(), Errno> {
    // SAFETY: a new mapping, wherever the kernel likes; nobody uses it.
    unsafe {
        let p = mmap_anonymous(std::ptr::null_mut(), PAGE, first, MapFlags::PRIVATE)?;
        then.map_or(Ok(()), |flags| mprotect(p, PAGE, flags))
    }
}

/// The other side of these tests: confines its process, so never run with others.
#[test]
#[ignore = "started by the other tests, in a process of its own"]
fn inside() {
    let Ok(part) = std::env::var(PART) else { return };
    match part.as_str() {
        "files_signal" => try_files_that_signal(),
        "others" => try_calls_that_reach_others(),
        "scopes" => try_to_leave_the_scope(),
        _ => try_usual_things(&part),
    }
    println!("tried everything");
}

/// As a machine of no network, or of one (`connects`); or start a program (`execve`).
fn try_usual_things(part: &str) {
    let exe = std::env::current_exe().expect("a path");
    let connect = part == "connects";
    let files = Files { read: vec![exe.clone()], connect, ..Files::default() };
    // Bound before, as those of port forwards are.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let confined = confine_files(&files).expect("confined");
    assert_eq!(confined, landlock(), "what was found is what was enforced");
    let calls = Calls { open: confined != Landlock::Absent, connect, ..Calls::default() };
    confine_calls(calls).expect("confined");
    if part == "execve" {
        panic!("not refused: {}", Command::new(exe).exec());
    }
    // What a machine needs.
    assert_eq!(std::thread::spawn(|| 42).join().expect("threads start"), 42);
    let data = ProtFlags::READ | ProtFlags::WRITE;
    let code = MprotectFlags::READ | MprotectFlags::EXEC;
    assert_eq!(page(data, None), Ok(()));
    assert_eq!(page(data, Some(code)), Ok(()));
    if confined != Landlock::Absent {
        File::open(&exe).expect("an allowed file opens");
    }
    // What it does not.
    assert_eq!(page(data, Some(code | MprotectFlags::WRITE)), Err(Errno::PERM));
    assert_eq!(page(ProtFlags::READ | ProtFlags::EXEC, None), Err(Errno::PERM));
    assert_eq!(page(data | ProtFlags::EXEC, None), Err(Errno::PERM));
    let refused = |what: &str, result: std::io::Result<()>| {
        let kind = result.err().map(|e| e.kind());
        assert_eq!(kind, Some(ErrorKind::PermissionDenied), "{what}");
    };
    refused("open", File::open("/etc/passwd").map(drop));
    refused("list", fs::read_dir("/etc").map(drop));
    refused("create", File::create("/tmp/strata-sandbox-test").map(drop));
    refused("link", fs::hard_link("/etc/passwd", "/tmp/strata-sandbox-test"));
    let connected = TcpStream::connect(listener.local_addr().expect("an address"));
    let datagrams = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    if connect {
        let echo =
            rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, Some(rustix::net::ipproto::ICMP));
        // EACCES: the group is not in ping_group_range; the filter says EPERM.
        assert_ne!(echo.err(), Some(Errno::PERM), "echo requests");
        listener.accept().expect("the connection arrives");
        connected.expect("a connection");
        datagrams.expect("a socket");
    } else {
        refused("connect", connected.map(drop));
        refused("datagrams", datagrams.map(drop).map_err(Into::into));
    }
    let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP));
    refused("raw", raw.map(drop).map_err(Into::into));
    let multipath =
        rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(rustix::net::ipproto::MPTCP));
    refused("multipath TCP", multipath.map(drop).map_err(Into::into));
    let packet = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None);
    refused("local", packet.map(drop).map_err(Into::into));
    refused("TCP", TcpListener::bind("127.0.0.1:0").map(drop));
    refused("UDP", UdpSocket::bind("127.0.0.1:0").map(drop));
    // SAFETY: it makes nothing: the filter refuses it before it looks at its arguments.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    refused("a ring", if ring < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    refused("fork", Command::new("true").spawn().map(drop));
}
