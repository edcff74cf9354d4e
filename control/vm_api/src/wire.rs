//! Lines on a socket: one JSON value each, with a cap on length and time.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The longest request in bytes, its newline included: the longest action is a
/// few dozen, and what a client sends is held in memory.
pub const MAX_REQUEST: usize = 16 << 10;
/// The longest response a client takes: the statistics of 64 vCPUs fit many times.
pub(crate) const MAX_RESPONSE: usize = 4 << 20;

/// Open files that go with one request: a disk image and all it may stand on.
pub const MAX_FILES: usize = 16;

/// Why no line came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The line is longer than the cap.
    #[error("the line is longer than {0} bytes")]
    TooLong(usize),
    /// It did not end in time.
    #[error("no whole line within {0:?}")]
    TooSlow(Duration),
    /// The peer ended in the middle of a line.
    #[error("the line has no end")]
    Cut,
    /// The host's error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads lines from a socket.
pub(crate) struct Lines<'a> {
    stream: &'a UnixStream,
    cap: usize,
    /// Read and not yet taken.
    rest: Vec<u8>,
    /// Files that came along, not yet taken.
    files: Vec<OwnedFd>,
}

/// Room for [`MAX_FILES`] in a message, aligned as the host wants it.
type Control = [MaybeUninit<u8>; rustix::cmsg_space!(ScmRights(MAX_FILES))];

impl<'a> Lines<'a> {
    /// Lines of at most `cap` bytes.
    pub(crate) fn new(stream: &'a UnixStream, cap: usize) -> Self {
        Lines { stream, cap, rest: Vec::new(), files: Vec::new() }
    }

    /// The files that came with what was read so far, at most [`MAX_FILES`].
    pub(crate) fn take_files(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.files)
    }

    /// Read bytes and files; more files than there may be are closed.
    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut space: Control = [const { MaybeUninit::uninit() }; _];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(self.stream, &mut [IoSliceMut::new(to)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files);
            }
        }
        self.files.truncate(MAX_FILES);
        Ok(got.bytes)
    }

    /// What was read and is no line yet.
    pub(crate) fn rest(self) -> Vec<u8> {
        self.rest
    }

    /// The next line without its newline, whole within `limit`; `None` when the
    /// peer has ended.
    pub(crate) fn next(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, LineError> {
        let deadline = Instant::now() + limit;
        let mut looked = 0;
        loop {
            if let Some(end) = self.rest[looked..].iter().position(|b| *b == b'\n') {
                let after = self.rest.split_off(looked + end + 1);
                let mut line = std::mem::replace(&mut self.rest, after);
                line.pop();
                return Ok(Some(line));
            }
            looked = self.rest.len();
            if looked >= self.cap {
                return Err(LineError::TooLong(self.cap));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LineError::TooSlow(limit));
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            let room = buffer.len().min(self.cap - looked);
            match self.receive(&mut buffer[..room]) {
                Ok(0) if self.rest.is_empty() => return Ok(None),
                Ok(0) => return Err(LineError::Cut),
                Ok(n) => self.rest.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Write one value and its newline; `limit` bounds each write.
pub(crate) fn send(stream: &UnixStream, value: &impl serde::Serialize, limit: Duration) -> io::Result<()> {
    send_with(stream, value, &[], limit)
}

/// [`send`], with open files for the other end.
pub(crate) fn send_with(
    stream: &UnixStream,
    value: &impl serde::Serialize,
    files: &[BorrowedFd<'_>],
    limit: Duration,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(limit))?;
    let mut sent = 0;
    if !files.is_empty() {
        let mut space: Control = [const { MaybeUninit::uninit() }; _];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // The space is rounded up and may take one more.
        if files.len() > MAX_FILES || !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other(format!(
                "{} files: at most {MAX_FILES} go with a request",
                files.len()
            )));
        }
        sent = sendmsg(stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    }
    let mut stream = stream;
    stream.write_all(&line[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn lines_come_whole_however_they_were_sent() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(&b, 16);
        (&a).write_all(b"one\ntwo\nth").unwrap();
        assert_eq!(lines.next(LIMIT).unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(lines.next(LIMIT).unwrap().as_deref(), Some(&b"two"[..]));
        (&a).write_all(b"ree\n\n").unwrap();
        assert_eq!(lines.next(LIMIT).unwrap().as_deref(), Some(&b"three"[..]));
        assert_eq!(lines.next(LIMIT).unwrap().as_deref(), Some(&b""[..]));
        drop(a);
        assert!(lines.next(LIMIT).unwrap().is_none());
    }

    #[test]
    fn files_go_along_and_more_than_a_few_do_not() {
        use std::os::fd::AsFd;
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send_with(&a, &1, &[writer.as_fd(), writer.as_fd()], LIMIT).unwrap();
        drop(writer);
        let mut lines = Lines::new(&b, 16);
        assert_eq!(lines.next(LIMIT).unwrap().as_deref(), Some(&b"1"[..]));
        let files = lines.take_files();
        assert_eq!((files.len(), lines.take_files().len()), (2, 0));
        rustix::io::write(&files[1], b"x").unwrap();
        drop(files);
        let mut seen = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut seen).unwrap();
        assert_eq!(seen, b"x", "and every end is closed");
        let many = [a.as_fd(); MAX_FILES + 1];
        assert!(send_with(&a, &1, &many, LIMIT).is_err());
        for _ in 0..3 {
            send_with(&a, &1, &many[..MAX_FILES], LIMIT).unwrap();
        }
        for _ in 0..3 {
            lines.next(LIMIT).unwrap();
        }
        assert!(lines.take_files().len() <= MAX_FILES);
    }

    #[test]
    fn long_slow_and_cut_lines_are_told_apart() {
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&[b'x'; 17]).unwrap();
        assert!(matches!(Lines::new(&b, 16).next(LIMIT), Err(LineError::TooLong(16))));

        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(b"half").unwrap();
        let short = Duration::from_millis(20);
        assert!(matches!(Lines::new(&b, 16).next(short), Err(LineError::TooSlow(_))));
        drop(a);
        assert!(matches!(Lines::new(&b, 16).next(LIMIT), Ok(None)));

        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(b"half").unwrap();
        drop(a);
        assert!(matches!(Lines::new(&b, 16).next(LIMIT), Err(LineError::Cut)));
    }

    #[test]
    fn a_dripping_peer_cannot_stretch_its_time() {
        let (a, b) = UnixStream::pair().unwrap();
        let drip = std::thread::spawn(move || {
            let mut sent = 0;
            while (&a).write_all(b"x").is_ok() && sent < 1000 {
                sent += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let start = Instant::now();
        let result = Lines::new(&b, 1 << 20).next(Duration::from_millis(60));
        assert!(matches!(result, Err(LineError::TooSlow(_))), "{result:?}");
        assert!(start.elapsed() < Duration::from_secs(2));
        drop(b);
        drip.join().unwrap();
    }
}
