//! The messages.

use crate::codec::{Decoder, Encoder, MAX_STRING, ProtocolError};
use crate::tree::TreeItem;

/// The version that both sides must have.
pub const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"\x7fstrata\n";

/// How many bytes of standard input the host may send before the agent grants
/// more by [`ToHost::StdinCredit`]: so that signals and window sizes pass input
/// that nobody reads.
pub const STDIN_WINDOW: usize = 256 << 10;

/// What can stand in a frame.
pub trait Message: Sized {
    /// The byte that names it.
    fn kind(&self) -> u8;
    /// Write the payload.
    fn encode(&self, to: &mut Encoder);
    /// Read the payload; the caller checks that nothing is left.
    ///
    /// # Errors
    /// When the bytes are no such message.
    fn decode(kind: u8, from: &mut Decoder<'_>) -> Result<Self, ProtocolError>;
}

/// The first message of each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    magic: [u8; 8],
    version: u16,
}

impl Hello {
    /// This side's.
    pub fn ours() -> Self {
        Hello { magic: MAGIC, version: VERSION }
    }

    /// Whether the other side can be spoken to.
    ///
    /// # Errors
    /// When it is no agent, or of another version.
    pub fn check(&self) -> Result<(), ProtocolError> {
        if self.magic != MAGIC {
            Err(ProtocolError::NoGreeting)
        } else if self.version != VERSION {
            Err(ProtocolError::Version(self.version))
        } else {
            Ok(())
        }
    }
}

impl Message for Hello {
    fn kind(&self) -> u8 {
        0
    }

    fn encode(&self, to: &mut Encoder) {
        to.raw(&self.magic).u16(self.version);
    }

    fn decode(kind: u8, from: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        if kind != 0 {
            return Err(ProtocolError::NoGreeting);
        }
        let mut magic = [0; 8];
        for byte in &mut magic {
            *byte = from.u8()?;
        }
        Ok(Hello { magic, version: from.u16()? })
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exec {
    /// Program and arguments; at least one. A program without a slash is looked
    /// up in the path of the command's environment.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`, added to the user's environment.
    pub env: Vec<Vec<u8>>,
    /// Working directory; empty: the user's home.
    pub directory: Vec<u8>,
    /// Name or number, with `:GROUP` if wanted; empty: who the agent is.
    pub user: Vec<u8>,
    /// On a terminal of this size instead of pipes.
    pub terminal: Option<Size>,
    /// Whether standard input comes; without, it is /dev/null.
    pub stdin: bool,
}

/// How the guest is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Power off.
    Off,
    /// Start again.
    Reboot,
}

/// From the host to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// Request: run a command. Answered by `Started`, or `Failed`.
    Exec(Exec),
    /// Request: take a tree to `path`. Tree items follow; answered by `Done`.
    CopyIn {
        /// Where: the new name, or a directory to put it in.
        path: Vec<u8>,
    },
    /// Request: send the tree at `path`. Answered by tree items.
    CopyOut {
        /// What.
        path: Vec<u8>,
    },
    /// Request: facts. Answered by `Facts`.
    Facts,
    /// Request: end the guest. Answered by `Done` before it happens.
    Power(Power),
    /// Standard input of the command.
    Stdin(Vec<u8>),
    /// Standard input has ended.
    StdinEnd,
    /// The terminal has another size.
    Resize(Size),
    /// A signal for the command's process group, by its Linux number.
    Signal(u8),
    /// A part of the tree that is copied in.
    Tree(TreeItem),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Status(u8),
    /// By this signal.
    Signal(u8),
}

impl Ending {
    /// What a shell would show: 128 and the signal.
    pub fn status(self) -> u8 {
        match self {
            Ending::Status(status) => status,
            Ending::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// What kind of thing went wrong; a shell tells the first two by 127 and 126.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No such file, program, user or directory.
    NotFound,
    /// It is there and may not be used so.
    Refused,
    /// Anything else.
    Other,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// For people.
    pub text: String,
}

/// What the agent knows of its guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestFacts {
    /// Host name.
    pub hostname: String,
    /// Name of the operating system, of os-release(5).
    pub system: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Seconds since the guest's kernel started.
    pub uptime: u64,
    /// Load averages over 1, 5 and 15 minutes, in hundredths.
    pub load: [u32; 3],
    /// Memory the kernel manages, in bytes.
    pub memory: u64,
    /// Memory that could be used without swapping, in bytes.
    pub memory_available: u64,
    /// Network addresses but those of the loopback interface.
    pub addresses: Vec<String>,
}

/// From the agent to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// The command runs as this process.
    Started(u32),
    /// Standard output, or what its terminal shows.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// So many more bytes of standard input may be sent.
    StdinCredit(u32),
    /// Last: how the command ended. All it wrote has been sent.
    Ended(Ending),
    /// Last: the facts asked for.
    Facts(GuestFacts),
    /// Last: the request is done.
    Done,
    /// Last: it failed.
    Failed(Failure),
    /// A part of the tree that is copied out; its end is the last message.
    Tree(TreeItem),
}

impl ToHost {
    /// Whether the request has ended with this message.
    pub fn is_last(&self) -> bool {
        match self {
            ToHost::Ended(_) | ToHost::Facts(_) | ToHost::Done | ToHost::Failed(_) => true,
            ToHost::Tree(item) => *item == TreeItem::End,
            ToHost::Started(_) | ToHost::Stdout(_) | ToHost::Stderr(_) | ToHost::StdinCredit(_) => false,
        }
    }
}

fn size(from: &mut Decoder<'_>) -> Result<Size, ProtocolError> {
    Ok(Size { rows: from.u16()?, columns: from.u16()? })
}

fn chunk(from: &mut Decoder<'_>) -> Result<Vec<u8>, ProtocolError> {
    let bytes = from.rest();
    if bytes.len() > crate::MAX_CHUNK {
        return Err(ProtocolError::TooLong(bytes.len()));
    }
    Ok(bytes.to_vec())
}

fn text(from: &mut Decoder<'_>) -> Result<String, ProtocolError> {
    Ok(String::from_utf8_lossy(&from.string()?).into_owned())
}

/// A text as it is sent: a guest can name a file of any length in a message.
fn put_text(to: &mut Encoder, text: &str) {
    to.string(&text.as_bytes()[..text.len().min(MAX_STRING)]);
}

impl Message for ToGuest {
    fn kind(&self) -> u8 {
        match self {
            ToGuest::Exec(_) => 1,
            ToGuest::CopyIn { .. } => 2,
            ToGuest::CopyOut { .. } => 3,
            ToGuest::Facts => 4,
            ToGuest::Power(_) => 5,
            ToGuest::Stdin(_) => 6,
            ToGuest::StdinEnd => 7,
            ToGuest::Resize(_) => 8,
            ToGuest::Signal(_) => 9,
            ToGuest::Tree(_) => 10,
        }
    }

    fn encode(&self, to: &mut Encoder) {
        match self {
            ToGuest::Exec(exec) => {
                let Exec { argv, env, directory, user, terminal, stdin } = exec;
                to.strings(argv).strings(env).string(directory).string(user);
                let size = terminal.unwrap_or(Size { rows: 0, columns: 0 });
                to.u8(terminal.is_some().into()).u16(size.rows).u16(size.columns).u8((*stdin).into());
            }
            ToGuest::CopyIn { path } | ToGuest::CopyOut { path } => {
                to.string(path);
            }
            ToGuest::Power(power) => {
                to.u8(matches!(power, Power::Reboot).into());
            }
            ToGuest::Stdin(bytes) => {
                to.raw(bytes);
            }
            ToGuest::Resize(size) => {
                to.u16(size.rows).u16(size.columns);
            }
            ToGuest::Signal(number) => {
                to.u8(*number);
            }
            ToGuest::Tree(item) => item.encode(to),
            ToGuest::Facts | ToGuest::StdinEnd => {}
        }
    }

    fn decode(kind: u8, from: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(match kind {
            1 => {
                let (argv, env) = (from.strings()?, from.strings()?);
                let (directory, user) = (from.string()?, from.string()?);
                let (has_terminal, size) = (from.bool()?, size(from)?);
                let terminal = has_terminal.then_some(size);
                ToGuest::Exec(Exec { argv, env, directory, user, terminal, stdin: from.bool()? })
            }
            2 => ToGuest::CopyIn { path: from.string()? },
            3 => ToGuest::CopyOut { path: from.string()? },
            4 => ToGuest::Facts,
            5 => ToGuest::Power(if from.bool()? { Power::Reboot } else { Power::Off }),
            6 => ToGuest::Stdin(chunk(from)?),
            7 => ToGuest::StdinEnd,
            8 => ToGuest::Resize(size(from)?),
            9 => ToGuest::Signal(from.u8()?),
            10 => ToGuest::Tree(TreeItem::decode(from)?),
            other => return Err(ProtocolError::Unknown(other.into())),
        })
    }
}

impl Message for ToHost {
    fn kind(&self) -> u8 {
        match self {
            ToHost::Started(_) => 64,
            ToHost::Stdout(_) => 65,
            ToHost::Stderr(_) => 66,
            ToHost::StdinCredit(_) => 67,
            ToHost::Ended(_) => 68,
            ToHost::Facts(_) => 69,
            ToHost::Done => 70,
            ToHost::Failed(_) => 71,
            ToHost::Tree(_) => 72,
        }
    }

    fn encode(&self, to: &mut Encoder) {
        match self {
            ToHost::Started(number) | ToHost::StdinCredit(number) => {
                to.u32(*number);
            }
            ToHost::Stdout(bytes) | ToHost::Stderr(bytes) => {
                to.raw(bytes);
            }
            ToHost::Ended(Ending::Status(status)) => {
                to.u8(0).u8(*status);
            }
            ToHost::Ended(Ending::Signal(signal)) => {
                to.u8(1).u8(*signal);
            }
            ToHost::Facts(facts) => encode_facts(facts, to),
            ToHost::Done => {}
            ToHost::Failed(Failure { kind, text }) => {
                to.u8(*kind as u8);
                put_text(to, text);
            }
            ToHost::Tree(item) => item.encode(to),
        }
    }

    fn decode(kind: u8, from: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(match kind {
            64 => ToHost::Started(from.u32()?),
            65 => ToHost::Stdout(chunk(from)?),
            66 => ToHost::Stderr(chunk(from)?),
            67 => ToHost::StdinCredit(from.u32()?),
            68 => match from.u8()? {
                0 => ToHost::Ended(Ending::Status(from.u8()?)),
                1 => ToHost::Ended(Ending::Signal(from.u8()?)),
                other => return Err(ProtocolError::Unknown(other.into())),
            },
            69 => ToHost::Facts(decode_facts(from)?),
            70 => ToHost::Done,
            71 => {
                let kind = match from.u8()? {
                    0 => FailureKind::NotFound,
                    1 => FailureKind::Refused,
                    2 => FailureKind::Other,
                    other => return Err(ProtocolError::Unknown(other.into())),
                };
                ToHost::Failed(Failure { kind, text: text(from)? })
            }
            72 => ToHost::Tree(TreeItem::decode(from)?),
            other => return Err(ProtocolError::Unknown(other.into())),
        })
    }
}

fn encode_facts(facts: &GuestFacts, to: &mut Encoder) {
    let GuestFacts { hostname, system, kernel, uptime, load, memory, memory_available, addresses } = facts;
    for text in [hostname, system, kernel] {
        put_text(to, text);
    }
    to.u64(*uptime).u32(load[0]).u32(load[1]).u32(load[2]).u64(*memory).u64(*memory_available);
    to.strings(&addresses.iter().map(|a| a.as_bytes().to_vec()).collect::<Vec<_>>());
}

fn decode_facts(from: &mut Decoder<'_>) -> Result<GuestFacts, ProtocolError> {
    Ok(GuestFacts {
        hostname: text(from)?,
        system: text(from)?,
        kernel: text(from)?,
        uptime: from.u64()?,
        load: [from.u32()?, from.u32()?, from.u32()?],
        memory: from.u64()?,
        memory_available: from.u64()?,
        addresses: from.strings()?.into_iter().map(|a| String::from_utf8_lossy(&a).into_owned()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frames;
    use crate::tree::{EntryKind, TreeEntry};

    fn check<M: Message + PartialEq + std::fmt::Debug>(message: M) {
        let mut frames = Frames::new();
        let bytes = Frames::encode(&message).unwrap();
        frames.push(&bytes);
        assert_eq!(frames.take::<M>().unwrap().as_ref(), Some(&message));
        // Every shorter payload is refused, unless the message is its bytes.
        if matches!(bytes[4], 6 | 65 | 66) || bytes.len() == 5 {
            return;
        }
        for cut in 5..bytes.len() {
            let mut short = bytes[..cut].to_vec();
            short[..4].copy_from_slice(&(cut as u32 - 5).to_le_bytes());
            let mut frames = Frames::new();
            frames.push(&short);
            let tree_data = matches!(bytes[4], 10 | 72) && bytes[5] == 1;
            assert!(tree_data || frames.take::<M>().is_err(), "{message:?} cut at {cut}");
        }
    }

    #[test]
    fn messages_survive_the_way() {
        let words = |list: &[&str]| list.iter().map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
        let exec = Exec {
            argv: words(&["sh", "-c", "\u{fffd}\n"]),
            env: words(&["A=b"]),
            directory: b"/tmp".to_vec(),
            user: b"1000:10".to_vec(),
            terminal: Some(Size { rows: 24, columns: 80 }),
            stdin: true,
        };
        check(ToGuest::Exec(exec));
        check(ToGuest::Exec(Exec { argv: words(&["x"]), ..Exec::default() }));
        for path in [b"".to_vec(), b"/a b".to_vec()] {
            check(ToGuest::CopyIn { path: path.clone() });
            check(ToGuest::CopyOut { path });
        }
        for m in [ToGuest::Facts, ToGuest::StdinEnd, ToGuest::Signal(9), ToGuest::Stdin(vec![0, 255])] {
            check(m);
        }
        check(ToGuest::Power(Power::Off));
        check(ToGuest::Power(Power::Reboot));
        check(ToGuest::Resize(Size { rows: 1, columns: 65535 }));
        let entry = TreeEntry {
            path: b"a/b".to_vec(),
            kind: EntryKind::File { size: 5 },
            mode: 0o644,
            modified: 1_700_000_000,
        };
        let link = TreeEntry { kind: EntryKind::Symlink { target: b"../x".to_vec() }, ..entry.clone() };
        let items =
            [TreeItem::Entry(entry), TreeItem::Entry(link), TreeItem::Data(vec![1; 9]), TreeItem::End];
        for item in items {
            check(ToGuest::Tree(item.clone()));
            check(ToHost::Tree(item));
        }
        for m in [ToHost::Started(7), ToHost::StdinCredit(1), ToHost::Done, ToHost::Stdout(vec![1])] {
            check(m);
        }
        for ending in [Ending::Status(0), Ending::Status(255), Ending::Signal(9)] {
            check(ToHost::Ended(ending));
        }
        for kind in [FailureKind::NotFound, FailureKind::Refused, FailureKind::Other] {
            check(ToHost::Failed(Failure { kind, text: "x: y".into() }));
        }
        check(ToHost::Facts(GuestFacts {
            hostname: "h".into(),
            load: [1, 2, 3],
            addresses: vec!["10.0.2.15".into(), "::1".into()],
            ..GuestFacts::default()
        }));
    }

    #[test]
    fn a_chunk_longer_than_allowed_is_refused() {
        let bytes = Frames::encode(&ToGuest::Stdin(vec![0; crate::MAX_CHUNK + 1])).unwrap();
        let mut frames = Frames::new();
        frames.push(&bytes);
        assert_eq!(frames.take::<ToGuest>(), Err(ProtocolError::TooLong(crate::MAX_CHUNK + 1)));
    }

    #[test]
    fn endings_are_what_a_shell_shows() {
        assert_eq!(Ending::Status(3).status(), 3);
        assert_eq!(Ending::Signal(9).status(), 137);
    }
}
