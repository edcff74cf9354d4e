//! From a step that differs to the instruction that differs.

use std::fmt;

use guest_memory::GuestMemory;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use x86_mmu::PagingParams;
use x86_state::{CpuState, efer};

use crate::{CompareError, Difference, FirstDifference, Lane, differences, different_memory};

/// Longest x86 instruction.
const MAX_LENGTH: u64 = 15;

/// One instruction as a debugger shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// CS selector and RIP.
    pub at: (u16, u64),
    /// Its bytes, as far as they could be read.
    pub bytes: Vec<u8>,
    /// Disassembly in Intel syntax.
    pub text: String,
}

impl Instruction {
    /// The instruction a state is about to execute.
    pub fn at(memory: &GuestMemory, state: &CpuState) -> Self {
        let cs = &state.segments[1];
        let bits = match () {
            () if cs.long() && state.efer & efer::LMA != 0 => 64,
            () if cs.big() => 32,
            () => 16,
        };
        let bytes = fetch(memory, state, if bits == 64 { 0 } else { cs.base });
        let mut text = String::new();
        let decoded = Decoder::with_ip(bits, &bytes, state.rip, DecoderOptions::NONE).decode();
        IntelFormatter::new().format(&decoded, &mut text);
        let len = decoded.len().min(bytes.len());
        Instruction { at: (cs.selector, state.rip), bytes: bytes[..len].to_vec(), text }
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:016x}  ", self.at.0, self.at.1)?;
        for b in &self.bytes {
            write!(f, "{b:02x}")?;
        }
        write!(f, "  {}", self.text)
    }
}

fn fetch(memory: &GuestMemory, state: &CpuState, base: u64) -> Vec<u8> {
    let params = PagingParams {
        cr0: state.cr0,
        cr3: state.cr3,
        cr4: state.cr4,
        efer: state.efer,
        pdpte: state.pdpte,
        gigabyte_pages: true,
    };
    let byte = |i| {
        let linear = base.wrapping_add(state.rip).wrapping_add(i);
        let physical = x86_mmu::inspect(memory, &params, linear)?;
        let mut b = [0];
        memory.load(physical, &mut b).ok()?;
        Some(b[0])
    };
    (0..MAX_LENGTH).map_while(byte).collect()
}

/// Both lanes are at the start. Run to `alike`, where they were equal, then step
/// singly through the `n` instructions that end in a difference.
pub(crate) fn first_difference(
    mut pair: [Lane; 2],
    alike: u64,
    n: u64,
) -> Result<FirstDifference, CompareError> {
    if alike > 0 {
        pair[0].run(alike)?;
        pair[1].run(alike)?;
    }
    for done in alike..alike + n {
        let [a, b] = &mut pair;
        let before = a.state()?;
        let instruction = Instruction::at(a.board().memory(), &before);
        let ends = [a.run(1)?, b.run(1)?];
        let mut registers = differences(&a.state()?, &b.state()?);
        if ends[0] != ends[1] {
            let text = |e: &Option<crate::End>| format!("{e:?}");
            registers.push(Difference {
                register: "end".to_string(),
                first: text(&ends[0]),
                second: text(&ends[1]),
            });
        }
        let memory = different_memory(&pair);
        if !registers.is_empty() || memory.is_some() {
            return Ok(FirstDifference { after: done, instruction, registers, memory });
        }
        if ends[0].is_some() {
            break;
        }
    }
    Err(CompareError::NotRepeatable(alike))
}
