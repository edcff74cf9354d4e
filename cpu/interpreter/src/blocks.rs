//! The cache of decoded blocks.
//!
//! A block is a run of instructions within one page, up to its first control
//! transfer. It is known by the place of its bytes in RAM and the code size
//! they were decoded for, and is valid while the page's code generation stands.
//! In front lies a direct-mapped table by virtual RIP, whose entries hold for
//! one value of [`Cpu::code_keys`].

use guest_memory::RamOffset;

use crate::cpu::{Cpu, Privilege, Stop};
use crate::decode::{MAX_LENGTH, decode};
use crate::insn::{Insn, REG_RIP};
use crate::memory::{Intent, Place};
use crate::tlb::PAGE_MASK;

/// Instructions kept; when they are used up, all blocks are dropped.
const CAPACITY: usize = 96 * 1024;
/// Longest block, in instructions.
const MAX_BLOCK: usize = 48;
/// Most bytes looked at for one block.
const MAX_BYTES: usize = 256;
/// Entries of the table by virtual address.
const LOOKUPS: usize = 4096;
/// Entries of the table by place in RAM.
const PLACES: usize = 16 * 1024;
/// Place of the one instruction that is not cached.
const SCRATCH: usize = 0;

/// A decoded block.
#[derive(Clone, Copy)]
struct Block {
    /// Offset of the first byte in RAM's backing.
    at: u64,
    /// For an instruction that runs into another page: that page's offset.
    second: Option<u64>,
    generation: u32,
    second_generation: u32,
    /// First instruction.
    start: u32,
    /// Instructions.
    len: u16,
    /// Bytes.
    bytes: u16,
    code_bits: u8,
}

#[derive(Clone, Copy, Default)]
struct Lookup {
    rip: u64,
    /// One of `Cpu::code_keys`; 0 is never current.
    key: u64,
    page: u32,
    generation: u32,
    start: u32,
    len: u32,
}

pub(crate) struct Blocks {
    insns: Vec<Insn>,
    blocks: Vec<Block>,
    lookups: Box<[Lookup; LOOKUPS]>,
    /// Index into `blocks` plus 1.
    places: Vec<u32>,
    /// Most instructions of a block decoded from now on, at most [`MAX_BLOCK`].
    longest: usize,
    decoded: u64,
    dropped: u64,
}

impl Blocks {
    pub fn new() -> Self {
        let Ok(lookups) = vec![Lookup::default(); LOOKUPS].into_boxed_slice().try_into() else {
            unreachable!("the length is the array's")
        };
        Blocks {
            insns: Vec::with_capacity(CAPACITY),
            blocks: Vec::new(),
            lookups,
            places: vec![0; PLACES],
            longest: MAX_BLOCK,
            decoded: 0,
            dropped: 0,
        }
    }

    /// Decode one instruction at a time from now on (or blocks again): for who executes
    /// single ones here and there, decoding what follows is wasted time and memory.
    pub fn decode_singly(&mut self, singly: bool) {
        self.longest = if singly { 1 } else { MAX_BLOCK };
    }

    /// Blocks decoded so far, and times the whole cache was dropped.
    pub fn counters(&self) -> (u64, u64) {
        (self.decoded, self.dropped)
    }

    /// The block at the processor's RIP.
    ///
    /// # Errors
    /// `Stop::Fault` when the first instruction cannot be fetched.
    #[inline(always)]
    pub fn find(&mut self, cpu: &mut Cpu) -> Result<&[Insn], Stop> {
        let rip = cpu.regs[REG_RIP as usize];
        let e = &self.lookups[lookup_index(rip)];
        let (start, len) = if e.rip == rip
            && e.key == cpu.code_keys[(rip >> 63) as usize]
            && cpu.memory.marks().code_generation(RamOffset(u64::from(e.page) << 12)) == e.generation
        {
            (e.start, e.len)
        } else {
            self.find_slowly(cpu)?
        };
        Ok(&self.insns[start as usize..(start + len) as usize])
    }

    #[cold]
    #[inline(never)]
    fn find_slowly(&mut self, cpu: &mut Cpu) -> Result<(u32, u32), Stop> {
        let (linear, allowed) = code_address(cpu)?;
        let Place::Ram(at) = cpu.translate(linear, Intent::Fetch, Privilege::Current)? else {
            return self.decode_uncached(cpu, linear, allowed);
        };
        let slot = place_index(at, cpu.code_bits);
        let known = (self.places[slot] as usize).checked_sub(1).map(|n| self.blocks[n]);
        let block = match known {
            Some(b) if b.at == at && b.code_bits == cpu.code_bits && self.holds(cpu, &b, linear, allowed) => {
                b
            }
            _ => self.decode_block(cpu, linear, at, allowed)?,
        };
        let found = (block.start, u32::from(block.len));
        if block.second.is_none() && block.at >> 12 <= u64::from(u32::MAX) {
            let rip = cpu.regs[REG_RIP as usize];
            cpu.note_code(linear);
            self.lookups[lookup_index(rip)] = Lookup {
                rip,
                key: cpu.code_keys[(rip >> 63) as usize],
                page: (block.at >> 12) as u32,
                generation: block.generation,
                start: block.start,
                len: u32::from(block.len),
            };
        }
        Ok(found)
    }

    /// Whether a cached block is what the processor would fetch now.
    fn holds(&self, cpu: &mut Cpu, b: &Block, linear: u64, allowed: u64) -> bool {
        let current = |cpu: &Cpu, at: u64| cpu.memory.marks().code_generation(RamOffset(at));
        if current(cpu, b.at) != b.generation || u64::from(b.bytes) > allowed {
            return false;
        }
        match b.second {
            None => true,
            Some(second) => {
                let next = next_page(cpu, linear);
                let place = next.and_then(|n| cpu.translate(n, Intent::Fetch, Privilege::Current));
                place == Ok(Place::Ram(second)) && current(cpu, second) == b.second_generation
            }
        }
    }

    fn decode_block(&mut self, cpu: &mut Cpu, linear: u64, at: u64, allowed: u64) -> Result<Block, Stop> {
        self.make_room();
        let in_page = 4096 - (at & PAGE_MASK);
        let mut buffer = [0; MAX_BYTES];
        let n = in_page.min(allowed).min(MAX_BYTES as u64) as usize;
        let rip = cpu.regs[REG_RIP as usize];
        let start = self.insns.len();
        loop {
            cpu.memory.read_bytes(RamOffset(at), &mut buffer[..n]);
            let d = decode(&cpu.model, cpu.code_bits, rip, &buffer[..n], self.longest, &mut self.insns);
            if d.count == 0 {
                if n as u64 == allowed {
                    return Err(cpu.gp(0));
                }
                return self.decode_crossing(cpu, linear, at, allowed);
            }
            let generation = cpu.memory.marks().mark_code(RamOffset(at), d.bytes as u64);
            // Marked now: read again what may have changed before the mark.
            let mut again = [0; MAX_BYTES];
            cpu.memory.read_bytes(RamOffset(at), &mut again[..d.bytes]);
            if again[..d.bytes] == buffer[..d.bytes] {
                let block = Block {
                    at,
                    second: None,
                    generation,
                    second_generation: 0,
                    start: start as u32,
                    len: d.count as u16,
                    bytes: d.bytes as u16,
                    code_bits: cpu.code_bits,
                };
                return Ok(self.insert(block));
            }
            self.insns.truncate(start);
        }
    }

    /// One instruction whose bytes lie in two pages.
    fn decode_crossing(&mut self, cpu: &mut Cpu, linear: u64, at: u64, allowed: u64) -> Result<Block, Stop> {
        let head = (4096 - (at & PAGE_MASK)) as usize;
        let next = next_page(cpu, linear)?;
        let second = match cpu.translate(next, Intent::Fetch, Privilege::Current)? {
            Place::Ram(second) => second,
            Place::Bus(_) => {
                let (start, _) = self.decode_uncached(cpu, linear, allowed)?;
                // Its second page is none of RAM, so that it is not found again.
                let second = Some(u64::MAX);
                let code_bits = cpu.code_bits;
                let (generation, second_generation) = (0, 0);
                return Ok(Block {
                    at,
                    second,
                    generation,
                    second_generation,
                    start,
                    len: 1,
                    bytes: 0,
                    code_bits,
                });
            }
        };
        let n = MAX_LENGTH.min(allowed as usize);
        let rip = cpu.regs[REG_RIP as usize];
        let generation = cpu.memory.marks().mark_code(RamOffset(at), head as u64);
        let tail = n.saturating_sub(head);
        let second_generation = cpu.memory.marks().mark_code(RamOffset(second), tail as u64);
        let mut buffer = [0; MAX_LENGTH];
        let head = head.min(n);
        cpu.memory.read_bytes(RamOffset(at), &mut buffer[..head]);
        cpu.memory.read_bytes(RamOffset(second), &mut buffer[head..n]);
        let start = self.insns.len();
        let d = decode(&cpu.model, cpu.code_bits, rip, &buffer[..n], 1, &mut self.insns);
        if d.count == 0 {
            return Err(cpu.gp(0));
        }
        let block = Block {
            at,
            second: Some(second),
            generation,
            second_generation,
            start: start as u32,
            len: 1,
            bytes: d.bytes as u16,
            code_bits: cpu.code_bits,
        };
        Ok(self.insert(block))
    }

    /// One instruction in device memory, read byte by byte each time.
    fn decode_uncached(&mut self, cpu: &mut Cpu, linear: u64, allowed: u64) -> Result<(u32, u32), Stop> {
        self.make_room();
        let mut buffer = [0; MAX_LENGTH];
        let rip = cpu.regs[REG_RIP as usize];
        let start = self.insns.len();
        for n in 0..MAX_LENGTH {
            if n as u64 >= allowed {
                return Err(cpu.gp(0));
            }
            let place = cpu.translate(linear.wrapping_add(n as u64), Intent::Fetch, Privilege::Current)?;
            cpu.read_place(place, &mut buffer[n..=n]);
            if decode(&cpu.model, cpu.code_bits, rip, &buffer[..=n], 1, &mut self.insns).count == 1 {
                self.insns.swap_remove(SCRATCH);
                debug_assert_eq!(self.insns.len(), start);
                return Ok((SCRATCH as u32, 1));
            }
        }
        Err(cpu.gp(0))
    }

    fn insert(&mut self, block: Block) -> Block {
        self.decoded += 1;
        self.blocks.push(block);
        self.places[place_index(block.at, block.code_bits)] = self.blocks.len() as u32;
        block
    }

    fn make_room(&mut self) {
        if self.insns.is_empty() {
            self.insns.push(crate::decode::placeholder());
        }
        if self.insns.len() + MAX_BLOCK > CAPACITY {
            self.dropped += 1;
            self.insns.truncate(1);
            self.blocks.clear();
            self.lookups.fill(Lookup::default());
            self.places.fill(0);
        }
    }
}

#[inline(always)]
fn lookup_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (LOOKUPS - 1)
}

fn place_index(at: u64, code_bits: u8) -> usize {
    (at ^ at >> 14 ^ u64::from(code_bits) << 5) as usize & (PLACES - 1)
}

/// Linear address of the instruction at RIP, and how many bytes the code segment
/// allows from there.
fn code_address(cpu: &mut Cpu) -> Result<(u64, u64), Stop> {
    if cpu.code_bits == 64 {
        let rip = cpu.regs[REG_RIP as usize];
        if !cpu.canonical(rip) {
            return Err(cpu.gp(0));
        }
        return Ok((rip, u64::MAX));
    }
    cpu.regs[REG_RIP as usize] &= 0xffff_ffff;
    let eip = cpu.regs[REG_RIP as usize];
    let cs = &cpu.segments[1];
    let limit = u64::from(cs.limit);
    if eip > limit {
        return Err(cpu.gp(0));
    }
    let allowed = if limit == 0xffff_ffff { u64::MAX } else { limit - eip + 1 };
    Ok((cs.base.wrapping_add(eip) & 0xffff_ffff, allowed))
}

/// First address of the page after `linear`'s.
fn next_page(cpu: &mut Cpu, linear: u64) -> Result<u64, Stop> {
    let next = (linear & !PAGE_MASK).wrapping_add(4096);
    if cpu.code_bits != 64 {
        Ok(next & 0xffff_ffff)
    } else if cpu.canonical(next) {
        Ok(next)
    } else {
        Err(cpu.gp(0))
    }
}
