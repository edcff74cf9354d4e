//! The agent in a guest.
//!
//! It listens on a vsock port that only the host reaches, runs commands, copies
//! files, tells facts and ends the guest. In small guests it is the first process
//! too. It is one static program without dependencies but `agent_protocol`.
//!
//! | module | what |
//! | --- | --- |
//! | `serve` | connections and their requests |
//! | `exec` | a command, its streams and its end |
//! | `launch` | a process with its user, terminal or pipes |
//! | `users` | passwd(5) and group(5) |
//! | `facts` | what the guest is and does |
//! | `init` | being the first process |
//! | `shares` | folders of the host, mounted |
//! | `sys` | system calls that std has not |

mod exec;
mod facts;
mod init;
mod launch;
mod serve;
mod shares;
mod sys;
mod users;

use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "usage: strata-agent [serve]            serve the host over vsock
       strata-agent unix PATH          serve over a Unix socket, for tests
       strata-agent init [COMMAND...]  be the first process; power off when COMMAND ends
       strata-agent mount              mount the folders that the host shares
       strata-agent version            print the version of the protocol";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next();
    let verb = verb.as_ref().map(|v| v.to_string_lossy());
    let rest: Vec<OsString> = arguments.collect();
    // The kernel starts its first process with arguments of its own choosing.
    let first = std::process::id() == 1;
    let result = match verb.as_deref() {
        Some("init") => init::run(&rest),
        _ if first => init::run(&[]),
        None | Some("serve") => serve::vsock(),
        Some("unix") if rest.len() == 1 => serve::unix(rest[0].as_ref()),
        Some("mount") => shares::mount_all(),
        Some("version") => {
            println!("{}", agent_protocol::VERSION);
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("strata-agent: {e}");
            ExitCode::FAILURE
        }
    }
}
