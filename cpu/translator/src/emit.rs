//! An emitter for the few instructions that glue translated code together.
//! Guest instructions themselves are re-encoded by iced.

use crate::layout::{host, near};

/// A memory operand `[base + index * 2^scale + disp]`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mem {
    pub gs: bool,
    pub base: Option<u8>,
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

impl Mem {
    pub fn base(base: u8, disp: i32) -> Self {
        Mem { base: Some(base), disp, ..Mem::default() }
    }
    /// A place in the shared state, by the shorter of its two ways.
    pub fn gs(disp: i32) -> Self {
        match near(disp) {
            Some(disp) => Mem::base(host::TABLE, disp.into()),
            None => Mem { gs: true, disp, ..Mem::default() },
        }
    }
    pub fn indexed(base: u8, index: u8, scale: u8) -> Self {
        Mem { base: Some(base), index: Some((index, scale)), ..Mem::default() }
    }
}

/// The bytes of one instruction: at most eight up to the displacement.
#[derive(Debug, Clone, Copy, Default)]
struct Gathered {
    head: u64,
    head_len: u32,
    displacement: u32,
    displacement_len: u32,
}

impl Gathered {
    #[inline(always)]
    fn byte(&mut self, b: u8) {
        self.head |= u64::from(b).wrapping_shl(8 * self.head_len);
        self.head_len = self.head_len.wrapping_add(1);
    }

    /// ModRM, SIB and displacement of a memory operand.
    #[inline(always)]
    fn mem_tail(&mut self, reg: u8, m: &Mem) {
        let reg = (reg & 7) << 3;
        self.displacement = m.disp as u32;
        let Some(b) = m.base else {
            let (i, s) = m.index.unwrap_or((4, 0));
            self.byte(reg | 4);
            self.byte(s << 6 | (i & 7) << 3 | 5);
            self.displacement_len = 4;
            return;
        };
        // RBP and R13 as base need a displacement; RSP and R12 a SIB byte.
        let mode = match m.disp {
            0 if b & 7 != 5 => 0,
            -128..128 => 1,
            _ => 2,
        };
        let modrm = mode << 6 | reg;
        match m.index {
            Some((i, s)) => {
                self.byte(modrm | 4);
                self.byte(s << 6 | (i & 7) << 3 | b & 7);
            }
            None => {
                self.byte(modrm | b & 7);
                if b & 7 == 4 {
                    self.byte(0x24);
                }
            }
        }
        // 0, 1 or 4.
        self.displacement_len = u32::from(mode * mode);
    }
}

/// Code under construction.
#[derive(Default)]
pub(crate) struct Emitter {
    /// The code, and behind it room for more: an instruction is appended by one store
    /// of sixteen bytes.
    memory: Vec<u8>,
    len: usize,
}

impl Emitter {
    /// Bytes by which the memory grows.
    const GROWTH: usize = 4096;

    /// Nothing yet, and room for so many bytes.
    pub fn with_room(bytes: usize) -> Self {
        Emitter { memory: vec![0; bytes + 16], len: 0 }
    }
    /// What was emitted.
    pub fn code(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Go back to an earlier length.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
    /// Append at most sixteen bytes.
    #[inline(always)]
    pub fn bytes(&mut self, b: &[u8]) {
        let mut all = [0; 16];
        all[..b.len()].copy_from_slice(b);
        self.some_bytes(all, b.len());
    }
    /// The first `len` of some bytes: by one store.
    #[inline(always)]
    pub fn some_bytes(&mut self, bytes: [u8; 16], len: usize) {
        match self.memory.get_mut(self.len..).and_then(|room| room.first_chunk_mut()) {
            Some(to) => *to = bytes,
            None => self.grow(bytes),
        }
        self.len = self.len.wrapping_add(len);
    }
    #[cold]
    fn grow(&mut self, bytes: [u8; 16]) {
        self.memory.truncate(self.len);
        self.memory.extend_from_slice(&bytes);
        self.memory.resize(self.len + Self::GROWTH, 0);
    }
    #[inline(always)]
    pub fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }
    /// Replace four bytes that were emitted.
    pub fn patch_u32(&mut self, at: usize, v: u32) {
        self.memory[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }
    /// Replace one byte that was emitted.
    pub fn patch_u8(&mut self, at: usize, v: u8) {
        self.memory[at] = v;
    }

    /// Append what was gathered.
    #[inline(always)]
    fn put(&mut self, g: Gathered) {
        debug_assert!(g.head_len <= 8);
        let bytes = u128::from(g.head) | u128::from(g.displacement).wrapping_shl(8 * g.head_len);
        self.some_bytes(bytes.to_le_bytes(), g.head_len.wrapping_add(g.displacement_len) as usize);
    }

    #[inline(always)]
    fn rex_bits(reg: u8, m: &Mem) -> u8 {
        (reg >> 3) << 2 | m.index.map_or(0, |(i, _)| i >> 3) << 1 | m.base.map_or(0, |b| b >> 3)
    }

    /// An instruction with a register and a memory operand. Inlined where the opcode is
    /// known.
    #[inline(always)]
    pub fn op_mem(&mut self, wide: bool, opcode: &[u8], reg: u8, m: Mem) {
        let mut g = Gathered::default();
        if m.gs {
            g.byte(0x65);
        }
        let rex = 0x40 | u8::from(wide) << 3 | Self::rex_bits(reg, &m);
        if rex != 0x40 {
            g.byte(rex);
        }
        for b in opcode {
            g.byte(*b);
        }
        g.mem_tail(reg, &m);
        self.put(g);
    }

    #[inline(always)]
    pub fn lea(&mut self, reg: u8, m: Mem) {
        self.op_mem(true, &[0x8d], reg, m);
    }
    #[inline(always)]
    pub fn lea32(&mut self, reg: u8, m: Mem) {
        self.op_mem(false, &[0x8d], reg, m);
    }
    #[inline(always)]
    pub fn load(&mut self, reg: u8, m: Mem) {
        self.op_mem(true, &[0x8b], reg, m);
    }
    #[inline(always)]
    pub fn load32(&mut self, reg: u8, m: Mem) {
        self.op_mem(false, &[0x8b], reg, m);
    }
    #[inline(always)]
    pub fn store(&mut self, m: Mem, reg: u8) {
        self.op_mem(true, &[0x89], reg, m);
    }
    #[inline(always)]
    pub fn load_byte(&mut self, reg: u8, m: Mem) {
        self.op_mem(false, &[0x0f, 0xb6], reg, m);
    }
    /// MOV r64, r64.
    #[inline(always)]
    pub fn mov(&mut self, to: u8, from: u8) {
        if to != from {
            self.bytes(&[0x48 | (from >> 3) << 2 | to >> 3, 0x89, 0xc0 | (from & 7) << 3 | to & 7]);
        }
    }
    /// NOT r64.
    pub fn not(&mut self, reg: u8) {
        self.bytes(&[0x48 | reg >> 3, 0xf7, 0xd0 | reg & 7]);
    }
    /// MOVSXD r64, r32.
    pub fn sign_extend32(&mut self, to: u8, from: u8) {
        self.bytes(&[0x48 | (to >> 3) << 2 | from >> 3, 0x63, 0xc0 | (to & 7) << 3 | from & 7]);
    }
    /// MOV r64, imm by the shortest form.
    #[inline(always)]
    pub fn mov_imm(&mut self, to: u8, value: u64) {
        if let Ok(v) = u32::try_from(value) {
            if to >= 8 {
                self.bytes(&[0x41]);
            }
            self.bytes(&[0xb8 | to & 7]);
            self.u32(v);
        } else if let Ok(v) = i32::try_from(value as i64) {
            self.bytes(&[0x48 | to >> 3, 0xc7, 0xc0 | to & 7]);
            self.bytes(&v.to_le_bytes());
        } else {
            self.bytes(&[0x48 | to >> 3, 0xb8 | to & 7]);
            self.bytes(&value.to_le_bytes());
        }
    }
    /// MOV qword [m], imm32 sign-extended.
    #[inline(always)]
    pub fn store_imm(&mut self, m: Mem, value: i32) {
        self.op_mem(true, &[0xc7], 0, m);
        self.bytes(&value.to_le_bytes());
    }
    /// MOV dword [m], imm32.
    #[inline(always)]
    pub fn store32_imm(&mut self, m: Mem, value: i32) {
        self.op_mem(false, &[0xc7], 0, m);
        self.bytes(&value.to_le_bytes());
    }
    /// PEXT to, from, mask (mask in a register).
    #[inline(always)]
    pub fn pext(&mut self, to: u8, from: u8, mask: u8) {
        let registers = (!to >> 3 & 1) << 7 | 0x40 | (!mask >> 3 & 1) << 5 | 2;
        let operands = [0x80 | (!from & 15) << 3 | 2, 0xf5, 0xc0 | (to & 7) << 3 | mask & 7];
        self.bytes(&[0xc4, registers, operands[0], operands[1], operands[2]]);
    }
    /// SHRX to, from, count.
    pub fn shrx(&mut self, to: u8, from: u8, count: u8) {
        self.bytes(&[0xc4, (!to >> 3 & 1) << 7 | 0x40 | (!from >> 3 & 1) << 5 | 2]);
        self.bytes(&[0x80 | (!count & 15) << 3 | 3, 0xf7, 0xc0 | (to & 7) << 3 | from & 7]);
    }
    /// PEXT to, from, qword gs:[disp].
    #[inline(always)]
    pub fn pext_gs(&mut self, to: u8, from: u8, disp: i32) {
        self.bits_gs(2, to, from, disp);
    }
    /// PDEP to, from, qword gs:[disp].
    pub fn pdep_gs(&mut self, to: u8, from: u8, disp: i32) {
        self.bits_gs(3, to, from, disp);
    }
    /// `prefix`: VEX.pp, which tells PEXT from PDEP.
    #[inline(always)]
    fn bits_gs(&mut self, prefix: u8, to: u8, from: u8, disp: i32) {
        let mut g = Gathered::default();
        let m = Mem::gs(disp);
        if m.gs {
            g.byte(0x65);
        }
        let base = m.base.map_or(0, |b| b >> 3);
        let registers = (!to >> 3 & 1) << 7 | (!base & 1) << 5 | 0x42;
        for b in [0xc4, registers, 0x80 | (!from & 15) << 3 | prefix, 0xf5] {
            g.byte(b);
        }
        g.mem_tail(to, &m);
        self.put(g);
    }
    /// JRCXZ with a displacement to fix up; returns its place.
    #[inline(always)]
    pub fn jrcxz(&mut self) -> usize {
        self.bytes(&[0xe3, 0]);
        self.len() - 1
    }
    /// What every look-up has: TEMP = the entry of the page of the address in `linear`, in the
    /// table of stores or that of loads, and JRCXZ. The place of its displacement.
    #[inline(always)]
    pub fn page_entry(&mut self, linear: u8, store: bool) -> usize {
        // PEXT rcx, linear, r14.
        let [a, b, c, d, e] = [0xc4, 0xc2, 0x82 | (!linear & 15) << 3, 0xf5, 0xce];
        if store {
            // MOV rcx, gs:[rcx*8].
            self.some_bytes([a, b, c, d, e, 0x65, 0x48, 0x8b, 0x0c, 0xcd, 0, 0, 0, 0, 0xe3, 0], 16);
        } else {
            // MOV rcx, [r15+rcx*8].
            self.some_bytes([a, b, c, d, e, 0x49, 0x8b, 0x0c, 0xcf, 0xe3, 0, 0, 0, 0, 0, 0], 11);
        }
        self.len() - 1
    }
    /// Point a one-byte displacement at the current end. False when out of reach.
    #[inline(always)]
    #[must_use]
    pub fn land_short(&mut self, at: usize) -> bool {
        let distance = self.len() - (at + 1);
        self.patch_u8(at, distance as u8);
        distance <= 127
    }
    /// JMP rel8 with a displacement to fix up.
    #[inline(always)]
    pub fn jmp_short(&mut self) -> usize {
        self.bytes(&[0xeb, 0]);
        self.len() - 1
    }
    /// JMP to a place earlier in this code.
    pub fn jmp_back(&mut self, to: usize) {
        let distance = to as i32 - (self.len() as i32 + 2);
        match i8::try_from(distance) {
            Ok(d) => self.bytes(&[0xeb, d as u8]),
            Err(_) => {
                self.bytes(&[0xe9]);
                self.u32((distance - 3) as u32);
            }
        }
    }
    /// The displacement of a JMP or Jcc to a place earlier in this code.
    pub fn displacement_back(&mut self, to: usize) {
        self.u32((to as u32).wrapping_sub(self.len() as u32 + 4));
    }
    /// JMP rel32 (or Jcc, CALL) to a place in the code cache, and some bytes behind it;
    /// `here` is the cache offset of this code's start.
    #[inline(always)]
    pub fn branch(&mut self, opcode: &[u8], here: u32, target: u32, behind: &[u8]) {
        let end = opcode.len() + 4;
        let from = here.wrapping_add((self.len + end) as u32);
        let mut all = [0; 16];
        all[..opcode.len()].copy_from_slice(opcode);
        all[opcode.len()..end].copy_from_slice(&target.wrapping_sub(from).to_le_bytes());
        all[end..end + behind.len()].copy_from_slice(behind);
        self.some_bytes(all, end + behind.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{gpr_home, gs};
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    fn check(emit: impl Fn(&mut Emitter), text: &str) {
        let mut e = Emitter::default();
        emit(&mut e);
        let i = Decoder::new(64, e.code(), DecoderOptions::NONE).decode();
        assert_eq!(i.len(), e.len(), "one instruction for {text}");
        let mut out = String::new();
        IntelFormatter::new().format(&i, &mut out);
        assert_eq!(out, text);
    }

    #[test]
    fn a_page_is_looked_up_by_three_instructions() {
        for (linear, store) in (0..16).flat_map(|r| [(r, false), (r, true)]) {
            let (mut e, mut apart) = (Emitter::default(), Emitter::default());
            let at = e.page_entry(linear, store);
            apart.pext(host::TEMP, linear, host::PAGE_MASK);
            let m = Mem::indexed(host::TABLE, host::TEMP, 3);
            apart.load(host::TEMP, if store { Mem { gs: true, base: None, ..m } } else { m });
            assert_eq!(at, apart.jrcxz());
            assert_eq!(e.code(), apart.code());
        }
    }

    #[test]
    fn every_form_is_what_its_name_says() {
        check(
            |e| e.lea(7, Mem { base: Some(14), index: Some((13, 2)), disp: 0x12345, gs: false }),
            "lea rdi,[r14+r13*4+12345h]",
        );
        check(|e| e.lea(7, Mem::base(13, 0)), "lea rdi,[r13]");
        check(|e| e.lea(7, Mem::base(12, 8)), "lea rdi,[r12+8]");
        check(|e| e.load(1, Mem::gs(-0x100)), "mov rcx,gs:[0FFFFFFFFFFFFFF00h]");
        check(
            |e| e.load(1, Mem { gs: true, base: None, index: Some((1, 3)), disp: 0 }),
            "mov rcx,gs:[rcx*8]",
        );
        check(|e| e.load(1, Mem::indexed(15, 1, 3)), "mov rcx,[r15+rcx*8]");
        check(
            |e| e.load_byte(1, Mem { gs: true, base: Some(1), index: None, disp: -0x2000 + 7 }),
            "movzx ecx,byte ptr gs:[rcx-1FF9h]",
        );
        check(|e| e.pext(1, 7, 14), "pext rcx,rdi,r14");
        check(|e| e.shrx(1, 9, 7), "shrx rcx,r9,rdi");
        check(|e| e.shrx(9, 1, 14), "shrx r9,rcx,r14");
        check(|e| e.pext_gs(1, 9, -8), "pext rcx,r9,gs:[0FFFFFFFFFFFFFFF8h]");
        check(|e| e.pext_gs(1, 9, gs!(page_offset_mask)), "pext rcx,r9,[r15-38h]");
        check(|e| e.load32(1, Mem::gs(gs!(token))), "mov ecx,[r15-50h]");
        check(|e| e.store(Mem::gs(gs!(windows) + 24), 1), "mov [r15-8],rcx");
        check(|e| e.load(1, Mem::gs(gs!(windows) + 32)), "mov rcx,gs:[0FFFFFFFFDFFE1000h]");
        check(|e| e.load(7, Mem::gs(gpr_home(15))), "mov rdi,[r15-58h]");
        check(|e| e.pdep_gs(1, 9, -8), "pdep rcx,r9,gs:[0FFFFFFFFFFFFFFF8h]");
        check(|e| e.store32_imm(Mem::gs(-16), 1), "mov dword ptr gs:[0FFFFFFFFFFFFFFF0h],1");
        check(|e| e.mov(8, 1), "mov r8,rcx");
        check(|e| e.not(1), "not rcx");
        check(|e| e.not(9), "not r9");
        check(|e| e.sign_extend32(1, 12), "movsxd rcx,r12d");
        check(|e| e.sign_extend32(8, 2), "movsxd r8,edx");
        check(|e| e.mov_imm(9, 5), "mov r9d,5");
        check(|e| e.mov_imm(7, u64::MAX), "mov rdi,0FFFFFFFFFFFFFFFFh");
        check(|e| e.mov_imm(7, 1 << 40), "mov rdi,10000000000h");
        check(|e| e.store(Mem::gs(-16), 15), "mov gs:[0FFFFFFFFFFFFFFF0h],r15");
        check(|e| e.lea32(7, Mem::base(9, 4)), "lea edi,[r9+4]");
    }
}
