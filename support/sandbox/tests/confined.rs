//! Things tried from inside the sandbox, each in a process of its own.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "maps memory in ways that must be refused")]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::net::{AddressFamily, SocketType};
use sandbox::{Calls, Files, Landlock, confine_calls, confine_files, landlock};

/// Names the part that a process of this test plays.
const PART: &str = "STRATA_SANDBOX_TEST";
const PAGE: usize = 4096;

/// Run this test's `inside` in another process.
fn inside_as(part: &str) -> (ExitStatus, String) {
    let exe = std::env::current_exe().expect("a test has a path");
    let output = Command::new(exe)
        .args(["--ignored", "--exact", "inside", "--nocapture", "--test-threads=1"])
        .env(PART, part)
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
        listener.accept().expect("the connection arrives");
        connected.expect("a connection");
        datagrams.expect("a socket");
    } else {
        refused("connect", connected.map(drop));
        refused("datagrams", datagrams.map(drop).map_err(Into::into));
    }
    let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP));
    refused("raw", raw.map(drop).map_err(Into::into));
    let packet = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None);
    refused("local", packet.map(drop).map_err(Into::into));
    refused("TCP", TcpListener::bind("127.0.0.1:0").map(drop));
    refused("UDP", UdpSocket::bind("127.0.0.1:0").map(drop));
    // SAFETY: it makes nothing: the filter refuses it before it looks at its arguments.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    refused("a ring", if ring < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    refused("fork", Command::new("true").spawn().map(drop));
    println!("tried everything");
}
