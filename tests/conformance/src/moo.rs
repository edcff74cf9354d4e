//! The MOO single-step test format (SingleStepTests, version 1): little-endian
//! chunks of `tag[4] length:u32 body`.

use std::io::Read;
use std::path::Path;

/// Register order in `REGS` chunks.
pub const REGISTERS: [&str; 14] =
    ["ax", "bx", "cx", "dx", "cs", "ss", "ds", "es", "sp", "bp", "si", "di", "ip", "flags"];

/// Registers (those given) and memory bytes.
#[derive(Debug, Default, Clone)]
pub struct State {
    /// Values in [`REGISTERS`] order; a final state gives only what changed.
    pub registers: [Option<u16>; 14],
    /// Physical address and byte.
    pub memory: Vec<(u32, u8)>,
}

/// One test case.
#[derive(Debug, Default, Clone)]
pub struct Case {
    /// Number in the original set.
    pub index: u32,
    /// Disassembly.
    pub name: String,
    /// Instruction bytes, the waiting HLT included.
    pub bytes: Vec<u8>,
    /// Before.
    pub initial: State,
    /// After.
    pub last: State,
    /// Exception vector and the address of the flags it pushed.
    pub exception: Option<(u8, u32)>,
    /// Name of the case in the suite's revocation list.
    pub hash: String,
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn chunks(mut b: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (tag, len) = (b.get(..4)?, u32_at(b, 4)? as usize);
        let body = b.get(8..8 + len)?;
        b = &b[8 + len..];
        Some((tag, body))
    })
}

fn state(b: &[u8]) -> State {
    let mut s = State::default();
    for (tag, body) in chunks(b) {
        match tag {
            b"REGS" => {
                let mask = u16::from_le_bytes([body[0], body[1]]);
                let mut words = body[2..].chunks_exact(2);
                for (i, slot) in s.registers.iter_mut().enumerate().filter(|(i, _)| mask >> i & 1 != 0) {
                    let w = words.next().unwrap_or_else(|| panic!("register {i} is missing"));
                    *slot = Some(u16::from_le_bytes([w[0], w[1]]));
                }
            }
            b"RAM " => {
                let entries = body[4..].chunks_exact(5);
                s.memory.extend(entries.map(|e| (u32_at(e, 0).unwrap_or(0), e[4])));
            }
            _ => {}
        }
    }
    s
}

fn case(body: &[u8]) -> Case {
    let mut c = Case { index: u32_at(body, 0).unwrap_or(0), ..Case::default() };
    for (tag, b) in chunks(&body[4..]) {
        match tag {
            b"NAME" => c.name = String::from_utf8_lossy(&b[4..]).into_owned(),
            b"BYTS" => c.bytes = b[4..].to_vec(),
            b"INIT" => c.initial = state(b),
            b"FINA" => c.last = state(b),
            b"HASH" => c.hash = b.iter().map(|v| format!("{v:02x}")).collect(),
            b"EXCP" => c.exception = Some((b[0], u32_at(b, 1).unwrap_or(0))),
            _ => {}
        }
    }
    c
}

/// Contents of a gzip'ed file of the suite.
///
/// # Panics
/// When the file cannot be read: the suite is damaged.
pub fn unpack(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes
}

/// Read every case of one gzip'ed file.
///
/// # Panics
/// When the file cannot be read: the suite is damaged.
pub fn read(path: &Path) -> Vec<Case> {
    let bytes = unpack(path);
    chunks(&bytes).filter(|(tag, _)| tag == b"TEST").map(|(_, body)| case(body)).collect()
}
