//! What is known of a machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vm_api::{MachineId, MachineName};

/// The version of records written here.
pub(crate) const VERSION: u32 = 1;

/// Whether a machine that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When it did not end as it should, at most so many times; 0: always.
    OnFailure(u32),
    /// However it ended, unless it was stopped.
    Always,
}

impl Restart {
    /// Whether one that ended with this status is started again, having been so
    /// `before` times. Who ended it by force or by the terminal meant it.
    pub fn again(self, status: u8, before: u32) -> bool {
        /// `Outcome::Stopped` of a run.
        const STOPPED: u8 = 130;
        match self {
            Restart::No => false,
            Restart::OnFailure(most) => status != 0 && status != STOPPED && (most == 0 || before < most),
            Restart::Always => status != STOPPED,
        }
    }
}

impl FromStr for Restart {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("on-failure:").map(str::parse)) {
            ("no", _) => Ok(Restart::No),
            ("always", _) => Ok(Restart::Always),
            ("on-failure", _) => Ok(Restart::OnFailure(0)),
            (_, Some(Ok(most @ 1..))) => Ok(Restart::OnFailure(most)),
            _ => {
                Err(format!("\"{text}\" is not a restart policy; use no, on-failure, on-failure:N or always"))
            }
        }
    }
}

impl TryFrom<String> for Restart {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> String {
        restart.to_string()
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Restart::No => f.write_str("no"),
            Restart::OnFailure(0) => f.write_str("on-failure"),
            Restart::OnFailure(most) => write!(f, "on-failure:{most}"),
            Restart::Always => f.write_str("always"),
        }
    }
}

/// A machine, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this record.
    pub version: u32,
    /// Its identifier, the same each time it runs.
    pub id: MachineId,
    /// The name it was given.
    pub name: Option<MachineName>,
    /// The image it was made from.
    pub image: Option<String>,
    /// Arguments of `strata run` that start it.
    pub arguments: Vec<String>,
    /// Where relative paths among them begin.
    pub directory: String,
    /// It goes when it ends.
    pub remove_at_end: bool,
    /// Whether it is started again.
    pub restart: Restart,
    /// Seconds since 1970.
    pub created: u64,
}

impl Record {
    /// A new machine.
    pub fn new(arguments: Vec<String>, directory: String) -> Self {
        Record {
            version: VERSION,
            id: fresh_id(),
            name: None,
            image: None,
            arguments,
            directory,
            remove_at_end: false,
            restart: Restart::No,
            created: now(),
        }
    }
}

/// An identifier of 32 random bits.
pub(crate) fn fresh_id() -> MachineId {
    MachineId::from_number(host_sys::entropy().unwrap_or_else(|| now() << 20 ^ u64::from(std::process::id())))
}

pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// One word: `power-off`, `panic`, …
    pub outcome: String,
    /// The status its process ended with.
    pub status: u8,
    /// Seconds since 1970.
    pub at: u64,
}

impl End {
    /// An end now.
    pub fn now(outcome: &str, status: u8) -> Self {
        End { outcome: outcome.to_string(), status, at: now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_shown_as_they_are_written() {
        for text in ["no", "always", "on-failure", "on-failure:3"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        for bad in ["", "yes", "on-failure:", "on-failure:0", "on-failure:-1", "always:1"] {
            assert!(bad.parse::<Restart>().unwrap_err().contains("; use"), "{bad}");
        }
    }

    #[test]
    fn only_what_the_policy_says_starts_again() {
        fn check(policy: &str, status: u8, before: u32, again: bool) {
            let policy: Restart = policy.parse().unwrap();
            assert_eq!(policy.again(status, before), again, "{policy} {status} {before}");
        }
        check("no", 1, 0, false);
        check("always", 0, 99, true);
        check("always", 3, 0, true);
        check("always", 130, 0, false);
        check("on-failure", 0, 0, false);
        check("on-failure", 3, 99, true);
        check("on-failure", 130, 0, false);
        check("on-failure:2", 3, 1, true);
        check("on-failure:2", 3, 2, false);
    }
}
