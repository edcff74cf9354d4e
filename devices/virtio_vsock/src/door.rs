//! Host programs that have connected to the machine's socket and not said yet
//! which port of the guest they want.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

/// Programs that may stand there; the one that has waited longest makes room.
pub(crate) const MAX_VISITORS: usize = 64;
/// The longest line: `CONNECT 4294967295\n`.
const MAX_LINE: usize = 19;

/// A program that is saying where it wants to go.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub token: u64,
    stream: UnixStream,
    line: Vec<u8>,
}

/// What has become of a visitor.
#[derive(Debug)]
pub(crate) enum Said {
    /// Nothing whole yet.
    Nothing,
    /// It wants this port.
    Port(u32, UnixStream),
    /// It is gone, or said something else.
    Leave,
}

/// The visitors, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Door(VecDeque<Visitor>);

/// The port of `CONNECT PORT\n`, without its end.
fn port(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?.parse().ok()
}

impl Door {
    /// Somebody comes.
    pub fn enter(&mut self, token: u64, stream: UnixStream) {
        if self.0.len() >= MAX_VISITORS {
            self.0.pop_front();
        }
        self.0.push_back(Visitor { token, stream, line: Vec::new() });
    }

    /// All leave.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// A visitor's stream has something. None: `token` is no visitor.
    pub fn listen(&mut self, token: u64) -> Option<Said> {
        let at = self.0.iter().position(|v| v.token == token)?;
        let said = self.0[at].read();
        match said {
            Line::Part => Some(Said::Nothing),
            Line::Port(port) => self.0.remove(at).map(|v| Said::Port(port, v.stream)),
            Line::Wrong => self.0.remove(at).map(|_| Said::Leave),
        }
    }
}

enum Line {
    Part,
    Port(u32),
    Wrong,
}

impl Visitor {
    fn read(&mut self) -> Line {
        loop {
            // What follows the line is the connection's: byte by byte.
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return port(&self.line).map_or(Line::Wrong, Line::Port),
                Ok(1) if self.line.len() < MAX_LINE => self.line.push(byte[0]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Line::Part,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return Line::Wrong,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_is_understood() {
        for (line, expect) in [
            ("CONNECT 0", Some(0)),
            ("CONNECT 4294967295", Some(u32::MAX)),
            ("CONNECT 4294967296", None),
            ("CONNECT -1", None),
            ("CONNECT ", None),
            ("connect 1", None),
            ("GET / HTTP/1.1", None),
        ] {
            assert_eq!(port(line.as_bytes()), expect, "{line}");
        }
    }
}
