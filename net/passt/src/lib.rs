//! passt(1) as a port: a user-mode network of its own process, installed by the host.
//!
//! It speaks QEMU's stream protocol: each frame behind its length, four bytes, most
//! significant first. Checksums are whole and nothing is segmented.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use port::{Capabilities, ETHERNET_HEADER, FrameSink, MAX_FRAME, Offload, Offloads, Port};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// The longest packet passt takes, in bytes, and what it tells guests unless told otherwise.
pub const MAX_MTU: u16 = 65520;
/// Bytes of the length before each frame.
const LENGTH: usize = 4;
/// Bytes read at a time: the longest frame and more.
const INPUT: usize = 256 << 10;
/// Bytes that may wait for passt; frames beyond are lost, as on a wire.
const OUTPUT_CAP: usize = 1 << 20;
/// Frames after which the guest's are sent before more is read.
const TURN: usize = 256;

/// What to start passt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasstConfig {
    /// Longest packet in bytes, at most [`MAX_MTU`].
    pub mtu: u16,
    /// TCP ports of the host that lead to the guest, as passt(1) has them: `127.0.0.1/2222:22`.
    pub tcp: Vec<String>,
    /// UDP ports, likewise.
    pub udp: Vec<String>,
}

/// Why there is no passt.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It cannot be started.
    #[error(
        "cannot start passt: {0}; install it (apt-get install passt), or use --network nat, which needs nothing"
    )]
    Start(#[source] io::Error),
    /// There is none at a socket.
    #[error("no passt at {}: {cause}; start it there: passt --socket {}", path.display(), path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The host has no descriptor left.
    #[error("cannot watch the connection to passt: {0}")]
    Watch(#[source] io::Error),
}

/// A connection to passt.
pub struct Passt {
    stream: UnixStream,
    /// Tells once of each change, so that frames for which there is no room do not keep the thread busy.
    epoll: OwnedFd,
    mtu: u16,
    input: Vec<u8>,
    /// What has been read and not handed over, in `input`.
    start: usize,
    end: usize,
    /// What passt has not taken yet, from `sent` on.
    output: Vec<u8>,
    sent: usize,
    closed: bool,
}

impl Passt {
    /// Start passt with a connection to it. It ends with the connection.
    ///
    /// # Errors
    /// When it is not installed, or the host refuses.
    pub fn start(config: &PasstConfig) -> Result<Passt, PasstError> {
        let (ours, theirs) = UnixStream::pair().map_err(PasstError::Start)?;
        // The connection is its standard input: no other descriptor is inherited.
        Command::new("passt")
            .args(arguments(config))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(PasstError::Start)?;
        Passt::new(ours, config.mtu)
    }

    /// Connect to a passt that runs already.
    ///
    /// # Errors
    /// When there is none at the socket.
    pub fn connect(path: &Path, mtu: u16) -> Result<Passt, PasstError> {
        let refused = |cause| PasstError::Connect { path: path.to_path_buf(), cause };
        Passt::new(UnixStream::connect(path).map_err(refused)?, mtu)
    }

    /// A port at the end of a connection.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(stream: UnixStream, mtu: u16) -> Result<Passt, PasstError> {
        let watch = |e: rustix::io::Errno| PasstError::Watch(e.into());
        stream.set_nonblocking(true).map_err(PasstError::Watch)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(watch)?;
        epoll::add(&epoll, &stream, EventData::new_u64(0), EventFlags::IN | EventFlags::ET).map_err(watch)?;
        Ok(Passt {
            stream,
            epoll,
            mtu: mtu.min(MAX_MTU),
            input: vec![0; INPUT],
            start: 0,
            end: 0,
            output: Vec::new(),
            sent: 0,
            closed: false,
        })
    }

    /// Watch for what is to come: input, and room while something waits for it. Makes
    /// the port readable if either is there.
    fn rearm(&self) {
        let room = if self.output.is_empty() { EventFlags::empty() } else { EventFlags::OUT };
        let flags = EventFlags::IN | EventFlags::ET | room;
        // It was added with the same descriptor: nothing is left to refuse.
        let _ = epoll::modify(&self.epoll, &self.stream, EventData::new_u64(0), flags);
    }

    /// passt has ended, or speaks another protocol: the wire is cut.
    fn close(&mut self) {
        self.closed = true;
        (self.start, self.end) = (0, 0);
        self.output = Vec::new();
        // It may be gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Send what waits.
    fn flush(&mut self) {
        let waited = !self.output.is_empty();
        while let Some(rest) = self.output.get(self.sent..).filter(|r| !r.is_empty()) {
            match (&self.stream).write(rest) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.close(),
            }
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        if waited == self.output.is_empty() {
            self.rearm();
        }
    }

    /// Where the next whole frame is in `input`.
    fn next(&mut self) -> Option<std::ops::Range<usize>> {
        let read = self.input.get(self.start..self.end)?;
        let length = u32::from_be_bytes(*read.first_chunk::<LENGTH>()?) as usize;
        if !(ETHERNET_HEADER..=MAX_FRAME).contains(&length) {
            self.close();
            return None;
        }
        let first = self.start + LENGTH;
        (self.end - first >= length).then(|| first..first + length)
    }

    /// Read on; false if nothing is there.
    fn fill(&mut self) -> bool {
        // Less than a frame: what there is goes to the front.
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            match (&self.stream).read(&mut self.input[self.end..]) {
                Ok(0) => break,
                Ok(n) => {
                    self.end += n;
                    return true;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => break,
            }
        }
        self.close();
        false
    }
}

/// passt's command line.
fn arguments(config: &PasstConfig) -> Vec<OsString> {
    let PasstConfig { mtu, tcp, udp } = config;
    let mut line: Vec<OsString> =
        ["--foreground", "--quiet", "--fd", "0", "--mtu"].map(OsString::from).into();
    line.push(mtu.min(&MAX_MTU).to_string().into());
    for (flag, ports) in [("--tcp-ports", tcp), ("--udp-ports", udp)] {
        line.extend(ports.iter().flat_map(|p| [flag.into(), p.into()]));
    }
    line
}

impl Port for Passt {
    fn capabilities(&self) -> Capabilities {
        Capabilities { accepts: Offloads::NONE, gives: Offloads::NONE, mtu: self.mtu }
    }

    fn set_receiver(&mut self, _takes: Offloads) {}

    fn send(&mut self, frame: &[u8], _offload: &Offload) {
        // A guest that was offered no offload and uses one sends a broken frame: its own loss.
        let too_much = self.output.len() - self.sent + LENGTH + frame.len() > OUTPUT_CAP;
        if self.closed || too_much || frame.len() < ETHERNET_HEADER || frame.len() > MAX_FRAME {
            return;
        }
        self.output.drain(..self.sent);
        self.sent = 0;
        let waited = !self.output.is_empty();
        self.output.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.output.extend_from_slice(frame);
        // While something waits, room is announced.
        if !waited {
            self.flush();
            if !self.output.is_empty() {
                self.rearm();
            }
        }
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) {
        let mut events: Vec<Event> = Vec::with_capacity(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
        self.flush();
        let mut turn = 0;
        loop {
            // What has been read is handed over first: for that nothing wakes the caller.
            let Some(frame) = self.next() else {
                if turn >= TURN {
                    return self.rearm();
                }
                if self.closed || !self.fill() {
                    return;
                }
                continue;
            };
            if !sink.room() {
                return;
            }
            self.start = frame.end;
            sink.take(&[&self.input[frame]], &Offload::NONE);
            turn += 1;
        }
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many frames.
    struct Frames(Vec<Vec<u8>>, usize);

    impl FrameSink for Frames {
        fn room(&mut self) -> bool {
            self.0.len() < self.1
        }
        fn take(&mut self, parts: &[&[u8]], offload: &Offload) {
            assert_eq!(*offload, Offload::NONE);
            self.0.push(parts.concat());
        }
    }

    fn pair() -> (Passt, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        (Passt::new(ours, 1500).unwrap(), theirs)
    }

    fn with_length(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    fn take(port: &mut Passt, most: usize) -> Vec<Vec<u8>> {
        let mut frames = Frames(Vec::new(), most);
        port.receive(&mut frames);
        frames.0
    }

    fn is_readable(port: &Passt) -> bool {
        let fds =
            &mut [rustix::event::PollFd::from_borrowed_fd(port.ready_fd(), rustix::event::PollFlags::IN)];
        rustix::event::poll(fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn frames_cross_with_their_length() {
        let (mut port, mut passt) = pair();
        let frames = [vec![1; 60], vec![2; MAX_FRAME], vec![3; ETHERNET_HEADER]];
        frames.iter().for_each(|f| port.send(f, &Offload::NONE));
        for frame in &frames {
            let mut got = vec![0; LENGTH + frame.len()];
            passt.read_exact(&mut got).unwrap();
            assert!(got == with_length(frame));
        }
        // Whatever the pieces in which it arrives.
        let all = frames.iter().flat_map(|f| with_length(f)).collect::<Vec<u8>>();
        for cut in [1, 3, 4, 5, 64, 70, all.len() - 1] {
            passt.write_all(&all[..cut]).unwrap();
            let mut got = take(&mut port, 9);
            passt.write_all(&all[cut..]).unwrap();
            got.extend(take(&mut port, 9));
            assert!(got == frames, "cut at {cut}");
        }
    }

    #[test]
    fn what_has_no_room_waits_without_a_sound() {
        let (mut port, mut passt) = pair();
        let frames: Vec<_> = (0..1000u32).map(|i| i.to_be_bytes().repeat(20)).collect();
        passt.write_all(&frames.iter().flat_map(|f| with_length(f)).collect::<Vec<u8>>()).unwrap();
        assert!(is_readable(&port));
        assert!(take(&mut port, 10) == frames[..10]);
        assert!(!is_readable(&port));
        assert!(take(&mut port, 2000) == frames[10..]);
        assert!(take(&mut port, 2000).is_empty() && !is_readable(&port));
        // More than is read at a time.
        let frames: Vec<_> = (0..2 * TURN as u32).map(|i| i.to_be_bytes().repeat(375)).collect();
        let all: Vec<u8> = frames.iter().flat_map(|f| with_length(f)).collect();
        let writer = std::thread::spawn(move || passt.write_all(&all).map(|()| passt));
        let mut got = Vec::new();
        while got.len() < frames.len() {
            if is_readable(&port) {
                got.extend(take(&mut port, 2000));
            }
        }
        assert!(got == frames && writer.join().is_ok());
    }

    #[test]
    fn what_waits_for_passt_is_bounded_and_whole() {
        let (mut port, mut passt) = pair();
        let frames: Vec<_> = (0..2000u32).map(|i| i.to_be_bytes().repeat(375)).collect();
        frames.iter().for_each(|f| port.send(f, &Offload::NONE));
        assert!(port.output.len() > OUTPUT_CAP / 2 && port.output.capacity() < 2 * OUTPUT_CAP);
        let mut got = Vec::new();
        passt.set_nonblocking(true).unwrap();
        loop {
            // Room is announced.
            let (before, all) = (got.len(), passt.read_to_end(&mut got));
            assert_eq!(all.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            if got.len() == before {
                break;
            }
            assert!(is_readable(&port) || port.output.is_empty());
            assert!(take(&mut port, 1).is_empty());
        }
        let whole = frames.iter().flat_map(|f| with_length(f)).collect::<Vec<u8>>();
        assert!(got.len() >= OUTPUT_CAP && whole.starts_with(&got) && got.len() % 1504 == 0, "{}", got.len());
        assert!(port.output.is_empty());
    }

    #[test]
    fn a_broken_connection_is_silence() {
        for said in [&[][..], &[0, 0, 0, 13, 1], &[0, 1, 0, 100], &[0xff; 5], &[0, 0]] {
            let (mut port, mut passt) = pair();
            passt.write_all(said).unwrap();
            drop(passt);
            assert!(take(&mut port, 9).is_empty() && port.closed, "{said:?}");
            port.send(&[0; 60], &Offload::NONE);
            assert!(take(&mut port, 9).is_empty() && port.output.is_empty(), "{said:?}");
        }
    }

    #[test]
    fn its_command_line_is_as_its_manual_says() {
        let tcp = vec!["127.0.0.1/2222:22".to_string(), "8080:80".to_string()];
        let line = arguments(&PasstConfig { mtu: u16::MAX, tcp, udp: vec!["53".to_string()] });
        let words: Vec<_> = line.iter().map(|w| w.to_str().unwrap()).collect();
        assert_eq!(
            words.join(" "),
            "--foreground --quiet --fd 0 --mtu 65520 --tcp-ports 127.0.0.1/2222:22 --tcp-ports 8080:80 --udp-ports 53"
        );
    }
}
