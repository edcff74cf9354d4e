//! What can be asked of a machine's process, and what it answers.
//!
//! ```text
//! → {"version":1,"action":"pause"}
//! ← {"version":1,"ok":{"paused":{"time_stands":true}}}
//! → {"version":1,"action":{"switch-engine":{"engine":"kvm"}}}
//! ← {"version":1,"error":{"kind":"refused","message":"…"}}
//! ```
//! A server refuses what it does not know: another version, another action, a
//! field too many. A client ignores fields it does not know, so that replies may
//! grow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::identity::{MachineId, MachineName};

/// The version spoken here.
pub const VERSION: u32 = 1;

/// One line from a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is wanted.
    pub action: Action,
}

/// What can be asked. Every door of a machine's process leads to one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Who it is and how it is doing.
    Info,
    /// What its vCPUs and devices have done so far.
    Stats,
    /// Its whole configuration.
    Inspect,
    /// Continue on another engine; answered when it does.
    SwitchEngine {
        /// `auto`, `kvm`, `jit` or `interp`.
        engine: String,
    },
    /// Park the vCPUs and stop the guest's time.
    Pause,
    /// Go on.
    Resume,
    /// Give the guest other numbers of vCPUs and bytes of RAM: more at once, less
    /// when it lets go. Answered at once with what it has now.
    Update {
        /// vCPUs; `None`: as it is.
        cpus: Option<u32>,
        /// Bytes of RAM; `None`: as it is.
        memory: Option<u64>,
    },
    /// Make a disk larger; the guest is told. Answered when the disk is.
    ResizeDisk {
        /// Its place on the machine's command line, from 0.
        disk: usize,
        /// Bytes, whole blocks.
        size: u64,
    },
    /// Plug in a disk, whose files come along. A machine's process opens none itself.
    AddDisk {
        /// The disk, as a specification has it.
        spec: serde_json::Value,
    },
    /// Plug in a network card.
    AddNet {
        /// The card, as a specification has it.
        spec: serde_json::Value,
    },
    /// Ask the guest to give up a device. It has gone when [`Action::Inspect`] does
    /// not tell of it any more.
    RemoveDevice {
        /// Its name.
        id: String,
    },
    /// The terminal at the console has this size now, in characters.
    ResizeConsole {
        /// Characters of a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// Press and release the ACPI power button; a paused machine goes on first,
    /// or its guest could not answer.
    PressPowerButton,
    /// End now, whatever the guest is doing.
    End,
    /// Make this connection the machine's console: after the answer it carries
    /// the console's bytes both ways, first what was last shown.
    Console,
}

/// One line to a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`].
    pub version: u32,
    /// How it went.
    #[serde(flatten)]
    pub result: Answer,
}

/// How a request went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Done.
    Ok(Reply),
    /// Not done, and nothing has changed.
    Error(Refusal),
}

impl Response {
    /// The response that carries a result.
    pub fn new(result: Result<Reply, Refusal>) -> Self {
        let result = match result {
            Ok(reply) => Answer::Ok(reply),
            Err(refusal) => Answer::Error(refusal),
        };
        Response { version: VERSION, result }
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done; there is nothing to tell.
    Done,
    /// To [`Action::Info`].
    Info(Box<MachineInfo>),
    /// To [`Action::Stats`].
    Stats(Box<MachineStats>),
    /// To [`Action::Inspect`].
    Inspect(Box<serde_json::Value>),
    /// To [`Action::SwitchEngine`].
    Switched {
        /// The engine in use now.
        engine: String,
        /// How long the guest stood, in microseconds; 0 if it was there already.
        took_us: u64,
    },
    /// To [`Action::Update`]: what the guest has.
    Resources {
        /// vCPUs.
        cpus: u32,
        /// Bytes of RAM.
        memory: u64,
    },
    /// To [`Action::AddDisk`] and [`Action::AddNet`]: it is there; the guest was told.
    Added {
        /// Its name in the machine.
        id: String,
    },
    /// To [`Action::Console`]: what follows is the console's.
    Attached,
    /// To [`Action::Pause`].
    Paused {
        /// The guest's time stands still. False where guests read a counter of
        /// the host's that nobody can move.
        time_stands: bool,
    },
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Being made.
    Created,
    /// Its vCPUs execute.
    Running,
    /// Its vCPUs are parked.
    Paused,
    /// Ended.
    Stopped,
    /// Its process lives and does not answer.
    Unresponsive,
}

impl State {
    /// The word used on the wire and in tables.
    pub fn word(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
            State::Unresponsive => "unresponsive",
        }
    }
}

/// Who a machine is and how it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Its identifier.
    pub id: MachineId,
    /// The name it was given.
    pub name: Option<MachineName>,
    /// Where it is in its life.
    pub state: State,
    /// What it waits for by itself, in one line: room on the host for a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// The engine that executes it.
    pub engine: String,
    /// Why that engine, in one line.
    pub engine_reason: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// Processor model.
    pub cpu: String,
    /// Milliseconds since its process took it up.
    pub uptime_ms: u64,
    /// Its process.
    pub pid: u32,
}

/// What a machine has done so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineStats {
    /// Who it is.
    pub info: MachineInfo,
    /// The machine's clock in milliseconds.
    pub guest_time_ms: u64,
    /// Processor time of its process in milliseconds.
    pub process_cpu_ms: u64,
    /// Resident memory of its process in bytes, touched guest RAM included.
    pub process_resident: u64,
    /// Guest RAM that has been touched, in bytes.
    pub guest_resident: u64,
    /// Resets served.
    pub resets: u32,
    /// One a vCPU.
    pub vcpus: Vec<VcpuFigures>,
    /// Accesses by kind of device.
    pub devices: BTreeMap<String, u64>,
}

/// What one vCPU has done so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuFigures {
    /// Instructions retired, if the engine counts them.
    pub retired: Option<u64>,
    /// Percentage of its time that the guest had halted it, if time is the host's.
    pub halted_percent: Option<f64>,
    /// Halts slept through.
    pub halts: Option<u64>,
    /// The engine's counters since it took the vCPU over, by name.
    pub counters: BTreeMap<String, u64>,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of reason.
    pub kind: RefusalKind,
    /// The reason and its remedy.
    pub message: String,
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The line is no request.
    BadRequest,
    /// Another version of this protocol.
    WrongVersion,
    /// The line is longer than [`crate::MAX_REQUEST`].
    TooLong,
    /// The line did not end in time.
    TooSlow,
    /// The peer is another user.
    Forbidden,
    /// Too many connections.
    Busy,
    /// The machine cannot do it, or not now.
    Refused,
    /// The machine is ending, or did not get to the request in time.
    Unavailable,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into() }
    }
}

impl Request {
    /// Read a line.
    ///
    /// # Errors
    /// When it is not a request of this version; the refusal to send back.
    pub fn parse(line: &[u8]) -> Result<Request, Refusal> {
        let bad = |e: serde_json::Error| Refusal::new(RefusalKind::BadRequest, format!("not a request: {e}"));
        // The version comes first: what an action is depends on it.
        let value: serde_json::Value = serde_json::from_slice(line).map_err(bad)?;
        match value.get("version").map(|v| v.as_u64()) {
            Some(Some(v)) if v == u64::from(VERSION) => {}
            Some(Some(v)) => {
                return Err(Refusal::new(
                    RefusalKind::WrongVersion,
                    format!(
                        "version {v} is not spoken here; this machine's process speaks version {VERSION}"
                    ),
                ));
            }
            _ => {
                let message = format!("a request names its version; begin with {{\"version\":{VERSION}");
                return Err(Refusal::new(RefusalKind::BadRequest, message));
            }
        }
        serde_json::from_value(value).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_what_the_document_shows() {
        for (line, action) in [
            (r#"{"version":1,"action":"info"}"#, Action::Info),
            (r#"{"version":1,"action":"stats"}"#, Action::Stats),
            (r#"{"version":1,"action":"inspect"}"#, Action::Inspect),
            (r#"{"version":1,"action":"pause"}"#, Action::Pause),
            (r#"{"version":1,"action":"console"}"#, Action::Console),
            (r#"{"version":1,"action":"resume"}"#, Action::Resume),
            (r#"{"version":1,"action":"press-power-button"}"#, Action::PressPowerButton),
            (r#"{"version":1,"action":"end"}"#, Action::End),
            (
                r#"{"version":1,"action":{"switch-engine":{"engine":"kvm"}}}"#,
                Action::SwitchEngine { engine: "kvm".into() },
            ),
            (
                r#"{"version":1,"action":{"resize-disk":{"disk":1,"size":4096}}}"#,
                Action::ResizeDisk { disk: 1, size: 4096 },
            ),
        ] {
            let request = Request { version: VERSION, action };
            assert_eq!(Request::parse(line.as_bytes()), Ok(request.clone()), "{line}");
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        fn check(line: &[u8], kind: RefusalKind, text: &str) {
            let refusal = Request::parse(line).unwrap_err();
            let shown = String::from_utf8_lossy(line);
            assert_eq!(refusal.kind, kind, "{shown}: {refusal}");
            assert!(refusal.message.contains(text), "{shown}: {refusal}");
        }
        use RefusalKind::{BadRequest, WrongVersion};
        check(b"", BadRequest, "not a request");
        check(b"\xff\xfe\x00", BadRequest, "not a request");
        check(b"hello", BadRequest, "not a request");
        check(b"[]", BadRequest, "version");
        check(b"7", BadRequest, "version");
        check(br#"{"action":"pause"}"#, BadRequest, "version");
        check(br#"{"version":"1","action":"pause"}"#, BadRequest, "version");
        check(br#"{"version":2,"action":"teleport"}"#, WrongVersion, "version 2");
        check(br#"{"version":1}"#, BadRequest, "action");
        check(br#"{"version":1,"action":"fly"}"#, BadRequest, "fly");
        check(br#"{"version":1,"action":"pause","to":"bed"}"#, BadRequest, "to");
        check(br#"{"version":1,"action":{"switch-engine":{}}}"#, BadRequest, "engine");
        check(
            br#"{"version":1,"action":{"switch-engine":{"engine":"kvm","when":"now"}}}"#,
            BadRequest,
            "when",
        );
        check(br#"{"version":1,"action":{"switch-engine":{"engine":7}}}"#, BadRequest, "string");
        check(br#"{"version":1,"action":"pause"} {"#, BadRequest, "trailing");
        check("[".repeat(10_000).as_bytes(), BadRequest, "recursion");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn a_damaged_request_is_another_request_or_refused(
            at in 0usize..60, byte in any::<u8>(), cut in 0usize..60
        ) {
            let request = Request { version: VERSION, action: Action::SwitchEngine { engine: "kvm".into() } };
            let mut line = serde_json::to_vec(&request).unwrap();
            let last = line.len() - 1;
            line[at.min(last)] = byte;
            line.truncate(line.len().saturating_sub(cut % 3));
            if let Ok(other) = Request::parse(&line) {
                prop_assert_eq!(Request::parse(&serde_json::to_vec(&other).unwrap()), Ok(other));
            }
        }
    }

    #[test]
    fn responses_round_trip_and_may_grow() {
        let refusal = Refusal::new(RefusalKind::Refused, "no");
        for result in [
            Ok(Reply::Done),
            Ok(Reply::Switched { engine: "jit".into(), took_us: 7 }),
            Ok(Reply::Paused { time_stands: true }),
            Ok(Reply::Inspect(Box::new(serde_json::json!({"a": [1]})))),
            Err(refusal),
        ] {
            let response = Response::new(result);
            let line = serde_json::to_string(&response).unwrap();
            assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), response, "{line}");
        }
        let newer = r#"{"version":1,"ok":{"switched":{"engine":"jit","took_us":7,"more":1}},"more":2}"#;
        let response: Response = serde_json::from_str(newer).unwrap();
        assert_eq!(response, Response::new(Ok(Reply::Switched { engine: "jit".into(), took_us: 7 })));
    }
}
