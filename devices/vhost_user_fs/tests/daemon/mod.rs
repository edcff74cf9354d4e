//! A daemon of the tests': the protocol's other side, written from its description
//! (QEMU's vhost-user.rst) without the crate that the device uses. It reaches the
//! shared memory by its file alone.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// What it does with a request.
pub enum Act {
    /// Answer it with these bytes.
    Answer(Vec<u8>),
    /// Never answer it.
    Hold,
    /// Say that so many bytes were written, as of this descriptor.
    Say(u32, u32),
    /// End.
    Die,
}

/// Judges each request: its queue and its bytes.
pub type Judge = Box<dyn FnMut(u16, &[u8]) -> Act + Send>;

#[derive(Default)]
struct Queue {
    size: u16,
    /// Descriptors, used ring, available ring: where the front-end says it has them.
    parts: [u64; 3],
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
    seen: u16,
    used: u16,
}

struct Daemon {
    stream: UnixStream,
    judge: Judge,
    /// Place at the front-end, and the file.
    memory: Option<(u64, File)>,
    queues: [Queue; 2],
    features: u64,
    replies: bool,
}

/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
pub const FEATURES: u64 = 1 << 32 | 1 << 30;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK, and MQ, which nobody asks for.
const PROTOCOL: u64 = 1 << 3 | 1;

/// Start one at the end of a connection. It ends with that.
pub fn start(features: u64, judge: Judge) -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // Without protocol features queues are enabled from the beginning.
    let queue = || Queue { enabled: features & 1 << 30 == 0, ..Queue::default() };
    let queues = [queue(), queue()];
    let daemon = Daemon { stream: theirs, judge, memory: None, queues, features, replies: false };
    (ours, std::thread::spawn(move || daemon.run()))
}

impl Daemon {
    fn run(mut self) {
        loop {
            let kicks = self.queues.iter().filter_map(|q| q.kick.as_ref());
            let mut files: Vec<_> = kicks
                .map(AsFd::as_fd)
                .chain([self.stream.as_fd()])
                .map(|f| PollFd::from_borrowed_fd(f, PollFlags::IN))
                .collect();
            poll(&mut files, None).unwrap();
            let message = !files.last().unwrap().revents().is_empty();
            drop(files);
            if message && !self.message() {
                return;
            }
            for index in 0..2 {
                if !self.serve(index) {
                    return;
                }
            }
        }
    }

    /// Take a message; false at the end.
    fn message(&mut self) -> bool {
        let mut header = [0; 12];
        let mut space = [const { std::mem::MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            recvmsg(&self.stream, &mut [IoSliceMut::new(&mut header)], &mut control, RecvFlags::empty());
        if !got.is_ok_and(|g| g.bytes == 12) {
            return false;
        }
        let mut files = Vec::<OwnedFd>::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds);
            }
        }
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let (code, flags, size) = (word(0), word(4), word(8));
        assert_eq!(flags & 7, 1, "version 1, no reply");
        let mut body = vec![0; size as usize];
        self.stream.read_exact(&mut body).unwrap();
        let answered = self.obey(code, &body, files.pop().map(File::from));
        if flags & 8 != 0 && self.replies && !answered {
            self.reply(code, 0);
        }
        true
    }

    fn reply(&mut self, code: u32, value: u64) {
        let words = [code, 5, 8].map(u32::to_ne_bytes).concat();
        self.stream.write_all(&[words, value.to_ne_bytes().to_vec()].concat()).unwrap();
    }

    /// Do what a message says; whether it has been answered.
    fn obey(&mut self, code: u32, body: &[u8], file: Option<File>) -> bool {
        let long = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
        match code {
            1 => self.reply(code, self.features),
            15 => self.reply(code, PROTOCOL),
            _ => {}
        }
        match code {
            1 | 15 => return true,
            2 => assert_eq!(long(0), self.features & FEATURES),
            3 => {}
            16 => {
                assert_eq!(long(0), 8, "REPLY_ACK alone");
                self.replies = true;
            }
            5 => {
                assert_eq!((word(0), long(8), long(32)), (1, 0, 0), "one region, from 0");
                let file = file.expect("a file");
                assert_eq!(file.metadata().unwrap().len(), long(16));
                self.memory = Some((long(24), file));
            }
            8 => self.queues[word(0) as usize].size = word(4) as u16,
            9 => {
                let base = self.memory.as_ref().expect("memory first").0;
                self.queues[word(0) as usize].parts = [8, 16, 24].map(|at| long(at) - base);
            }
            10 => assert_eq!(word(4), 0, "from the beginning"),
            12 => self.queues[(long(0) & 0xff) as usize].kick = file,
            13 => self.queues[(long(0) & 0xff) as usize].call = file,
            18 => self.queues[word(0) as usize].enabled = word(4) == 1,
            other => panic!("message {other}"),
        }
        false
    }

    fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.as_ref().unwrap().1.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn number<const N: usize>(&self, at: u64) -> u64 {
        let mut long = [0; 8];
        long[..N].copy_from_slice(&self.bytes(at, N as u64));
        u64::from_le_bytes(long)
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        self.memory.as_ref().unwrap().1.write_all_at(bytes, at).unwrap();
    }

    /// Serve what is available; false to end.
    fn serve(&mut self, index: usize) -> bool {
        let Queue { size, parts: [descriptors, used, available], kick: Some(_), enabled: true, .. } =
            self.queues[index]
        else {
            return true;
        };
        let mut counter = [0; 8];
        // Empty is as good.
        let _ = rustix::io::read(self.queues[index].kick.as_ref().unwrap(), &mut counter);
        while self.number::<2>(available + 2) as u16 != self.queues[index].seen {
            let place = u64::from(self.queues[index].seen % size);
            self.queues[index].seen = self.queues[index].seen.wrapping_add(1);
            let head = self.number::<2>(available + 4 + 2 * place);
            let (mut request, mut room) = (Vec::new(), Vec::new());
            let mut next = Some(head);
            while let Some(at) = next.map(|n| descriptors + 16 * n) {
                let (address, length, flags) =
                    (self.number::<8>(at), self.number::<4>(at + 8), self.number::<2>(at + 12));
                match flags & 2 {
                    0 => request.extend(self.bytes(address, length)),
                    _ => room.push((address, length)),
                }
                next = (flags & 1 != 0).then(|| self.number::<2>(at + 14));
            }
            let (id, length) = match (self.judge)(index as u16, &request) {
                Act::Die => return false,
                Act::Hold => continue,
                Act::Say(id, length) => (id, length),
                Act::Answer(answer) => {
                    let mut rest = answer.as_slice();
                    for (address, length) in room {
                        let (now, later) = rest.split_at(rest.len().min(length as usize));
                        self.store(address, now);
                        rest = later;
                    }
                    assert!(rest.is_empty(), "room for {} bytes more", rest.len());
                    (head as u32, answer.len() as u32)
                }
            };
            let queue = &self.queues[index];
            let entry = used + 4 + 8 * u64::from(queue.used % size);
            self.store(entry, &[id.to_le_bytes(), length.to_le_bytes()].concat());
            let count = queue.used.wrapping_add(1);
            self.store(used + 2, &count.to_le_bytes());
            self.queues[index].used = count;
            // A device that stands still keeps its files.
            let _ = self.queues[index].call.as_ref().unwrap().write(&1u64.to_ne_bytes());
        }
        true
    }
}
