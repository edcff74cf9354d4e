//! A daemon that serves a shared folder over vhost-user and has gone wrong: what it
//! says while the two agree, then what it writes into rings and buffers, and how it
//! tells of that. Each request of the guest is given back, within its room, and no run
//! takes long.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vhost_user_fs::{Backend, FsConfig, Patience, VhostUserFs};
use virtio_core::VirtioDevice;
use virtio_core::mock::{Bench, BenchConfig};

/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 32 | 1 << 30;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK.
const REPLY_ACK: u64 = 1 << 3;
/// Messages in the order in which they are answered: features, protocol features, who
/// has the queues, which features, the memory; then of each queue its size, beginning,
/// place, event files and start.
const MESSAGES: [u32; 17] = [1, 15, 3, 2, 5, 8, 10, 9, 13, 12, 18, 8, 10, 9, 13, 12, 18];
/// The header of an answer, and a number.
const ANSWER: usize = 20;
/// Requests of a run at most.
const MOST: usize = 64;

/// What the daemon says while the two agree.
#[derive(Debug, Arbitrary)]
enum Talk {
    /// What it should.
    Good,
    /// That, with bytes of one answer changed and the rest cut off somewhere.
    Damaged { answer: u8, changes: Vec<(u8, u8)>, end: u8 },
    /// Other features.
    Features { device: u64, protocol: u64 },
    /// Anything.
    Raw(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Act {
    /// The guest asks: opcode, bytes behind the header, and room for the answer.
    Ask { first: bool, opcode: u8, length: u16, room: u16 },
    /// An entry in a used ring, in its turn or elsewhere, and its count.
    Use { first: bool, id: u8, length: u16, skip: u8 },
    /// Bytes anywhere in the shared memory, most of them in the rings.
    Store { place: u16, buffers: bool, bytes: [u8; 4] },
    /// Tell of answers.
    Call { first: bool },
    /// Try to make the memory file shorter.
    Shorten,
    /// End.
    End,
    /// The device stands still and goes on.
    Pause,
    /// The driver resets the device.
    Reset,
}

/// What the daemon was given: the memory, and for each queue the event files that
/// tell of answers and of requests.
fn given(stream: &UnixStream) -> Vec<File> {
    let mut files = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let mut space = [const { std::mem::MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::DONTWAIT);
        if !got.is_ok_and(|g| g.bytes > 0) {
            return files;
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds.map(|fd: OwnedFd| File::from(fd)));
            }
        }
    }
}

fn answers(features: u64, protocol: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for code in MESSAGES {
        // Version 1, an answer; a number of 8 bytes.
        bytes.extend([code, 5, 8].map(u32::to_ne_bytes).as_flattened());
        let value = match code {
            1 => features,
            15 => protocol,
            _ => 0,
        };
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

impl Talk {
    fn bytes(self) -> Vec<u8> {
        match self {
            Talk::Good => answers(FEATURES, REPLY_ACK),
            Talk::Features { device, protocol } => answers(device, protocol),
            Talk::Raw(bytes) => bytes,
            Talk::Damaged { answer, changes, end } => {
                let mut bytes = answers(FEATURES, REPLY_ACK);
                let start = usize::from(answer) % MESSAGES.len() * ANSWER;
                for (at, value) in changes {
                    bytes[start + usize::from(at) % ANSWER] = value;
                }
                let cut = usize::from(end) * 2;
                bytes.truncate(if cut == 0 { bytes.len() } else { cut });
                bytes
            }
        }
    }
}

/// A FUSE request of this many bytes behind its header.
fn request(opcode: u8, length: u16) -> Vec<u8> {
    let length = usize::from(length) % 8192;
    let mut bytes = vec![opcode; 40 + length];
    bytes[..4].copy_from_slice(&(40 + length as u32).to_ne_bytes());
    bytes[4..8].copy_from_slice(&u32::from(opcode % 64).to_ne_bytes());
    bytes
}

struct Run {
    bench: Bench<VhostUserFs>,
    daemon: Option<UnixStream>,
    files: Vec<File>,
    used: [u16; 2],
}

impl Run {
    fn memory(&self) -> &File {
        &self.files[0]
    }

    /// Where a queue's ring is.
    fn ring(first: bool) -> u64 {
        if first { 0 } else { 8192 }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Ask { first, opcode, length, room } => {
                let queue = u16::from(!first);
                let room = u32::from(room);
                self.bench.post(queue, &[&request(opcode, length)], &[16, room]);
                self.bench.kick(queue);
                let response = self.bench.poll(queue).expect("given back at once");
                assert!(response.written <= 16 + room, "{response:?}");
            }
            Act::Use { first, id, length, skip } => {
                let count = &mut self.used[usize::from(!first)];
                let entry = Run::ring(first) + 4096 + 4 + 8 * u64::from(*count % 128);
                *count = count.wrapping_add(1).wrapping_add(u16::from(skip / 64));
                let count = *count;
                // The request in a slot has the slot's first descriptor, of eight.
                let id = if id < 128 { u32::from(id) * 8 } else { u32::from(id) };
                let words = [id, u32::from(length)].map(u32::to_le_bytes);
                self.store(entry, words.as_flattened());
                self.store(Run::ring(first) + 4096 + 2, &count.to_le_bytes());
            }
            Act::Store { place, buffers, bytes } => {
                let place = u64::from(place);
                self.store(if buffers { 16384 + place * 256 } else { place % 16384 }, &bytes);
            }
            Act::Call { first } => {
                let file = &self.files[if first { 1 } else { 3 }];
                let _ = (&*file).write(&1u64.to_ne_bytes());
            }
            Act::Shorten => assert!(self.memory().set_len(0).is_err()),
            Act::End => self.daemon = None,
            Act::Pause => {
                let queues = self.bench.device.quiesce();
                self.bench.go_on(queues);
            }
            Act::Reset => {
                let queues = self.bench.device.quiesce();
                self.bench.device.reset();
                self.bench.go_on(queues);
            }
        }
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        self.memory().write_all_at(bytes, at).expect("in the shared memory");
    }
}

/// One run.
pub fn vhost_user_daemon(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(talk) = Talk::arbitrary(&mut input) else { return };
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    (&theirs).write_all(&talk.bytes()).expect("room for all answers");
    // So that there is nothing to wait for behind them.
    theirs.shutdown(std::net::Shutdown::Write).expect("its end");
    let patience = Patience { requests: Duration::from_millis(1), ..Patience::default() };
    let backend = match Backend::new(ours, None, patience) {
        Ok(backend) => backend,
        Err(refusal) => return assert!(!refusal.to_string().is_empty()),
    };
    let files = given(&theirs);
    assert_eq!(files.len(), 5, "the memory, and two event files of each queue");
    let device = VhostUserFs::new(FsConfig { tag: "share", read_only: data.len() % 2 == 1 }, backend);
    let config = BenchConfig { inline: true, ..BenchConfig::default() };
    let bench = Bench::new(device.expect("a good name"), config);
    let mut run = Run { bench, daemon: Some(theirs), files, used: [0; 2] };
    let Ok(acts) = input.arbitrary_iter::<Act>() else { return };
    acts.map_while(Result::ok).take(MOST).for_each(|act| run.act(act));
    run.bench.device.quiesce();
}
