//! A program's code: items to bytes, names to addresses.

use std::collections::HashMap;
use std::fmt::Write as _;

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Decoder, DecoderOptions, IcedError, Instruction, Mnemonic, Register};

use super::layout::{self, HIGH, LOW, system, variable};
use super::{Call, Function, Item, Patch, Program, Return};

/// Code at [`layout::CODE`].
pub struct Emitted {
    /// The code.
    pub bytes: Vec<u8>,
    /// Length of the instruction that starts at each byte.
    pub lengths: Vec<u8>,
    /// Linear address of the first instruction.
    pub start: u64,
}

impl Emitted {
    /// The instructions, with their offsets.
    fn instructions(&self) -> Vec<(usize, Instruction)> {
        let mut list = Vec::new();
        let mut at = 0;
        while at < self.bytes.len() {
            let n = usize::from(self.lengths[at]);
            if n == 0 {
                at += 1;
                continue;
            }
            let ip = self.start & !0xf_ffff | (layout::CODE + at as u64);
            let i = Decoder::with_ip(64, &self.bytes[at..at + n], ip, DecoderOptions::NONE).decode();
            list.push((at, i));
            at += n;
        }
        list
    }

    /// The instructions, by address.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        for (at, i) in self.instructions() {
            let bytes = &self.bytes[at..at + i.len()];
            let _ = writeln!(text, "    {:x}: {i}    {bytes:02x?}", i.ip());
        }
        text
    }

    /// Where translations are flushed: the instruction and what makes its operand.
    pub fn flushes(&self) -> Vec<std::ops::Range<usize>> {
        /// Bytes of the longest such sequence.
        const LEAD: usize = 40;
        let flushes = |i: &Instruction| {
            i.mnemonic() == Mnemonic::Invlpg
                || matches!(i.op0_register(), Register::CR3 | Register::CR4) && i.mnemonic() == Mnemonic::Mov
        };
        let list = self.instructions();
        let found = list.into_iter().filter(|(_, i)| flushes(i));
        found.map(|(at, i)| at.saturating_sub(LEAD)..at + i.len()).collect()
    }
}

/// A place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Name {
    Local(u32),
    Function(usize),
    Site(u16),
}

/// How a name's address is stored.
#[derive(Clone, Copy)]
enum Form {
    /// 32 bits, from the end of the field, plus bytes that follow it.
    Relative,
    /// 64 bits, in this mapping.
    Absolute(u64),
    /// 32 bits, sign-extended, in this mapping, plus an offset.
    Short(u64, u64),
}

struct Emitter<'a> {
    program: &'a Program,
    bytes: Vec<u8>,
    lengths: Vec<u8>,
    names: HashMap<Name, usize>,
    fixups: Vec<(usize, Name, Form)>,
    locals: u32,
    /// Code that runs now is the user's.
    user: bool,
}

/// Assemble instructions without labels.
///
/// # Panics
/// When they cannot be encoded: the caller's mistake.
pub fn assemble(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit code exists");
    f(&mut a).expect("the operands fit");
    a.assemble(0).expect("the instructions encode")
}

/// The code of a program; `None` when it is longer than its place.
pub fn emit(program: &Program) -> Option<Emitted> {
    let mut e = Emitter {
        program,
        bytes: Vec::new(),
        lengths: Vec::new(),
        names: HashMap::new(),
        fixups: Vec::new(),
        locals: 0,
        user: false,
    };
    for segment in &program.segments {
        e.segment(segment);
    }
    e.code(&[0x48, 0xb8]);
    e.data(&super::handlers::handlers().end.to_le_bytes(), 8);
    e.code(&[0xff, 0xe0]);
    for (number, function) in program.functions.iter().enumerate() {
        e.function(number, function);
    }
    if e.bytes.len() > layout::CODE_LEN {
        return None;
    }
    e.resolve();
    let start = e.mapping() + layout::CODE;
    Some(Emitted { bytes: e.bytes, lengths: e.lengths, start })
}

impl Emitter<'_> {
    /// Where the running code is mapped.
    fn mapping(&self) -> u64 {
        if self.user || self.program.setup.low_supervisor { LOW } else { HIGH }
    }

    /// Where the running code's variables are mapped.
    fn variables(&self) -> u64 {
        layout::VARIABLES + if self.user { LOW } else { HIGH }
    }

    /// Instructions without names.
    fn code(&mut self, bytes: &[u8]) {
        let mut d = Decoder::new(64, bytes, DecoderOptions::NONE);
        while d.can_decode() {
            let n = d.decode().len();
            self.lengths.push(n as u8);
            self.lengths.extend(std::iter::repeat_n(0, n - 1));
        }
        self.bytes.extend(bytes);
    }

    fn asm(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let bytes = assemble(f);
        self.code(&bytes);
    }

    /// Bytes that belong to the `lengthen`ed instruction before them, or to none.
    fn data(&mut self, bytes: &[u8], lengthen: u8) {
        if lengthen != 0 {
            let last = self.lengths.iter().rposition(|n| *n != 0).unwrap_or(0);
            self.lengths[last] += lengthen;
        }
        self.bytes.extend(bytes);
        self.lengths.extend(std::iter::repeat_n(0, bytes.len()));
    }

    /// An instruction whose opcode bytes are followed by a name's address.
    fn named(&mut self, opcode: &[u8], name: Name, form: Form) {
        let n = if matches!(form, Form::Absolute(_)) { 8 } else { 4 };
        self.lengths.push(opcode.len() as u8);
        self.lengths.extend(std::iter::repeat_n(0, opcode.len() - 1));
        self.bytes.extend(opcode);
        self.fixups.push((self.bytes.len(), name, form));
        self.data(&[0; 8][..n], n as u8);
    }

    fn local(&mut self) -> Name {
        self.locals += 1;
        Name::Local(self.locals)
    }

    fn here(&mut self, name: Name) {
        self.names.insert(name, self.bytes.len());
    }

    fn jump(&mut self, to: Name) {
        self.named(&[0xe9], to, Form::Relative);
    }

    fn branch(&mut self, condition: u8, to: Name) {
        self.named(&[0x0f, 0x80 | condition], to, Form::Relative);
    }

    /// LEA register, [RIP + name].
    fn address(&mut self, register: u8, name: Name) {
        let rex = 0x48 | (register >> 3) << 2;
        self.named(&[rex, 0x8d, 5 | (register & 7) << 3], name, Form::Relative);
    }

    /// `opcode` with a variable as its memory operand; REX.W as given.
    fn on_variable(&mut self, wide: bool, opcode: &[u8], field: u8, offset: u64, immediate: &[u8]) {
        let mut code = Vec::new();
        if wide {
            code.push(0x48);
        }
        code.extend(opcode);
        code.extend([4 | field << 3, 0x25]);
        code.extend(((self.variables() + offset) as u32).to_le_bytes());
        code.extend(immediate);
        self.code(&code);
    }

    /// MOV [variable], RAX.
    fn keep_rax(&mut self, offset: u64) {
        self.on_variable(true, &[0x89], 0, offset, &[]);
    }

    /// MOV [variable], RSP.
    fn keep_stack(&mut self, offset: u64) {
        self.on_variable(true, &[0x89], 4, offset, &[]);
    }

    /// MOV RSP, [variable].
    fn take_stack(&mut self, offset: u64) {
        self.on_variable(true, &[0x8b], 4, offset, &[]);
    }

    /// MOV dword [variable], value.
    fn set_slot(&mut self, slot: u16, value: u32) {
        self.on_variable(false, &[0xc7], 0, slot_at(slot), &value.to_le_bytes());
    }

    /// DEC dword [variable].
    fn count_down(&mut self, slot: u16) {
        self.on_variable(false, &[0xff], 1, slot_at(slot), &[]);
    }

    fn segment(&mut self, items: &[Item]) {
        let next = self.local();
        let own = HIGH + layout::SYSTEM;
        let recover = own + system::RECOVER;
        self.asm(|a| {
            use iced_x86::code_asm::*;
            a.mov(rsp, HIGH + layout::KERNEL_STACK_TOP)
        });
        self.address(0, next);
        self.asm(|a| {
            use iced_x86::code_asm::*;
            a.mov(qword_ptr(recover), rax)
        });
        self.items(items);
        self.here(next);
    }

    fn function(&mut self, number: usize, f: &Function) {
        self.user = f.user;
        for _ in 0..f.padding {
            self.code(&[0x90]);
        }
        self.here(Name::Function(number));
        self.keep_stack(slot_at(f.slot));
        self.items(&f.body);
        self.take_stack(slot_at(f.slot));
        if f.retargets {
            let plain = self.local();
            self.code(&[0x31, 0xc0]);
            self.on_variable(true, &[0x87], 0, variable::RETARGET, &[]);
            self.code(&[0x48, 0x85, 0xc0]);
            self.branch(4, plain);
            self.code(&[0x48, 0x89, 0x04, 0x24]);
            self.here(plain);
        }
        if f.arguments == 0 {
            self.code(&[0xc3]);
        } else {
            let bytes = (f.arguments * 8).to_le_bytes();
            self.code(&[0xc2, bytes[0], bytes[1]]);
        }
        self.user = false;
    }

    fn items(&mut self, items: &[Item]) {
        for i in items {
            self.item(i);
        }
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Bytes(b) => self.code(b),
            Item::If { condition, body } => {
                let over = self.local();
                self.branch(*condition, over);
                self.items(body);
                self.here(over);
            }
            Item::Loop { times, slot, body } => {
                let again = self.local();
                self.set_slot(*slot, *times);
                self.here(again);
                self.items(body);
                self.count_down(*slot);
                // JG: a counter that something spoilt ends the loop sooner or later.
                self.branch(0xf, again);
            }
            Item::Switch { slot, arms } => self.switch(*slot, arms),
            Item::Call { to, how, slot } => self.call(*to, *how, *slot),
            Item::Recurse { depth, slot, indirect, body } => self.recurse(*depth, *slot, *indirect, body),
            Item::SetJump { body } => {
                let back = self.local();
                self.keep_stack(variable::JUMP);
                self.address(0, back);
                self.keep_rax(variable::JUMP + 8);
                self.items(body);
                self.here(back);
            }
            Item::LongJump => {
                let over = self.local();
                self.code(&[0x31, 0xc0]);
                self.on_variable(true, &[0x87], 0, variable::JUMP + 8, &[]);
                self.code(&[0x48, 0x85, 0xc0]);
                self.branch(4, over);
                self.take_stack(variable::JUMP);
                self.code(&[0xff, 0xe0]);
                self.here(over);
            }
            Item::OtherStack { slot, off, body } => {
                let top = layout::OTHER_STACK_TOP + if self.user { LOW } else { HIGH };
                self.keep_stack(slot_at(*slot));
                self.asm(|a| {
                    use iced_x86::code_asm::*;
                    a.mov(rsp, top - u64::from(*off))
                });
                self.items(body);
                self.take_stack(slot_at(*slot));
            }
            Item::Return(how) => self.return_here(*how),
            Item::Site { number, register } => {
                self.code(&[0xb8 | register, 1, 0, 0, 0]);
                let at = self.bytes.len() - 4;
                self.names.insert(Name::Site(*number), at);
            }
            Item::Patch { number, value, how } => self.patch(*number, *value, *how),
            Item::Beside => {
                let (over, beside) = (self.local(), self.local());
                self.jump(over);
                self.here(beside);
                self.data(&[7; 8], 0);
                self.here(over);
                self.named(&[0x48, 0xff, 5], beside, Form::Relative);
            }
            Item::User { to, flags, sysret, by_interrupt, off } => {
                self.run_user(*to, *flags, *sysret, *by_interrupt, *off);
            }
            Item::Window { at } => {
                let back = self.local();
                self.address(0, back);
                self.keep_rax(variable::WINDOW_RETURN);
                self.keep_stack(variable::WINDOW_RETURN + 8);
                self.code(&[&[0x48, 0xb8][..], &at.to_le_bytes()].concat());
                self.code(&[0xff, 0xd0]);
                self.here(back);
            }
            Item::Break { body } => self.break_in(body),
        }
    }

    fn switch(&mut self, slot: u16, arms: &[Vec<Item>; 4]) {
        let (table, end) = (self.local(), self.local());
        let names: Vec<_> = arms.iter().map(|_| self.local()).collect();
        self.on_variable(false, &[0xff], 0, slot_at(slot), &[]);
        self.on_variable(false, &[0x8b], 0, slot_at(slot), &[]);
        self.code(&[0x83, 0xe0, 3]);
        self.address(1, table);
        // JMP [RCX + RAX*8]
        self.code(&[0xff, 0x24, 0xc1]);
        self.here(table);
        let mapping = self.mapping();
        for name in &names {
            self.fixups.push((self.bytes.len(), *name, Form::Absolute(mapping)));
            self.data(&[0; 8], 0);
        }
        for (arm, name) in arms.iter().zip(&names) {
            self.here(*name);
            self.items(arm);
            self.jump(end);
        }
        self.here(end);
    }

    fn call(&mut self, to: usize, how: Call, slot: u16) {
        let f = Name::Function(to);
        for n in 0..self.program.functions[to].arguments {
            self.code(&[0x6a, n as u8]);
        }
        let back = self.local();
        let mapping = self.mapping();
        match how {
            Call::Direct => self.named(&[0xe8], f, Form::Relative),
            Call::Register(r) => {
                self.address(r, f);
                if r >= 8 {
                    self.code(&[0x41, 0xff, 0xd0 | r & 7]);
                } else {
                    self.code(&[0xff, 0xd0 | r]);
                }
            }
            Call::Memory => {
                self.address(0, f);
                self.keep_rax(slot_at(slot));
                self.on_variable(false, &[0xff], 2, slot_at(slot), &[]);
            }
            Call::Jump => {
                self.address(0, back);
                self.code(&[0x50]);
                self.jump(f);
            }
            Call::Return => {
                self.address(0, back);
                self.code(&[0x50]);
                self.address(0, f);
                self.code(&[0x50, 0xc3]);
            }
            Call::Alias => {
                self.named(&[0x48, 0xb8], f, Form::Absolute(LOW ^ HIGH ^ mapping));
                self.code(&[0xff, 0xd0]);
            }
            Call::Retargeted => {
                self.address(0, back);
                self.keep_rax(variable::RETARGET);
                self.named(&[0xe8], f, Form::Relative);
                self.code(&[0x0f, 0xc8, 0x48, 0xff, 0xc3]);
            }
        }
        self.here(back);
    }

    fn recurse(&mut self, depth: u32, slot: u16, indirect: bool, body: &[Item]) {
        let (level, out, end) = (self.local(), self.local(), self.local());
        self.set_slot(slot, depth);
        self.named(&[0xe8], level, Form::Relative);
        self.jump(end);
        self.here(level);
        self.items(body);
        self.count_down(slot);
        // JLE
        self.branch(0xe, out);
        if indirect {
            self.address(2, level);
            self.code(&[0xff, 0xd2]);
        } else {
            self.named(&[0xe8], level, Form::Relative);
        }
        self.items(body);
        self.here(out);
        self.code(&[0xc3]);
        self.here(end);
    }

    fn return_here(&mut self, how: Return) {
        let next = self.local();
        let (cs, ss) = if self.user { (0x33, 0x2b) } else { (0x10, 0x18) };
        match how {
            Return::Near => {
                self.address(0, next);
                self.code(&[0x50, 0xc3]);
            }
            Return::NearImmediate => {
                self.code(&[0x50, 0x50]);
                self.address(0, next);
                self.code(&[0x50, 0xc2, 16, 0]);
            }
            Return::Far => {
                self.code(&[0x6a, cs]);
                self.address(0, next);
                self.code(&[0x50, 0x48, 0xcb]);
            }
            Return::Interrupt => {
                self.code(&[0x48, 0x89, 0xe1, 0x6a, ss, 0x51, 0x9c, 0x6a, cs]);
                self.address(0, next);
                self.code(&[0x50, 0x48, 0xcf]);
            }
        }
        self.here(next);
    }

    fn patch(&mut self, number: u16, value: u32, how: Patch) {
        let site = Name::Site(number);
        let mapping = self.mapping();
        let other = LOW ^ HIGH ^ mapping;
        match how {
            Patch::Dword => {
                self.code(&[&[0xb8][..], &value.to_le_bytes()].concat());
                self.named(&[0x89, 4, 0x25], site, Form::Short(mapping, 0));
            }
            Patch::Byte => {
                self.code(&[0xb0, value as u8]);
                self.named(&[0x88, 4, 0x25], site, Form::Short(mapping, u64::from(value >> 8 & 3)));
            }
            Patch::OtherMapping => {
                self.code(&[&[0xb8][..], &value.to_le_bytes()].concat());
                self.named(&[0x87, 4, 0x25], site, Form::Short(other, 0));
            }
            Patch::LargePage => {
                self.code(&[&[0xb9][..], &value.to_le_bytes()].concat());
                self.named(&[0x48, 0xb8], site, Form::Absolute(mapping + layout::LARGE));
                self.code(&[0x89, 0x08]);
            }
            Patch::String => {
                self.address(7, site);
                self.code(&[0xb9, 4, 0, 0, 0, 0xb0, value as u8, 0xf3, 0xaa]);
            }
            Patch::Increment => {
                self.address(7, site);
                self.code(&[0xff, 0x07]);
            }
        }
    }

    fn run_user(&mut self, to: usize, flags: u64, sysret: bool, by_interrupt: bool, off: u8) {
        use iced_x86::code_asm::*;
        let (back, leave) = (self.local(), self.local());
        let own = HIGH + layout::SYSTEM;
        let stack = layout::USER_STACK_TOP - 0x200 - u64::from(off);
        self.address(0, back);
        self.asm(|a| {
            a.mov(qword_ptr(own + system::LEFT), rsp)?;
            a.mov(qword_ptr(own + system::LEFT + 8), rax)
        });
        self.named(&[0x48, 0xb8], leave, Form::Absolute(LOW));
        self.asm(|a| {
            a.mov(qword_ptr(HIGH + stack), rax)?;
            a.swapgs()
        });
        self.named(&[0x48, 0xb9], Name::Function(to), Form::Absolute(LOW));
        self.asm(|a| {
            if sysret {
                a.mov(r11, flags)?;
                a.mov(rsp, LOW + stack)?;
                return a.sysretq();
            }
            a.push(layout::USER_SS as i32)?;
            a.mov(rax, LOW + stack)?;
            a.push(rax)?;
            a.push(flags as i32)?;
            a.push(layout::USER_CS as i32)?;
            a.push(rcx)?;
            a.iretq()
        });
        // The function returns to here, in ring 3.
        self.here(leave);
        if by_interrupt {
            self.code(&[0xcd, 0x81]);
        } else {
            self.code(&[0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
        }
        self.here(back);
        self.asm(|a| a.swapgs());
    }

    fn break_in(&mut self, body: &[Item]) {
        use iced_x86::code_asm::*;
        let at = self.local();
        self.address(0, at);
        self.asm(|a| {
            a.mov(dr0, rax)?;
            a.mov(eax, 0x403)?;
            a.mov(dr7, rax)
        });
        self.here(at);
        self.items(body);
        self.asm(|a| {
            a.mov(eax, 0x400)?;
            a.mov(dr7, rax)
        });
    }

    /// Addresses of names; a site that is not there is the code's last byte.
    fn resolve(&mut self) {
        let end = self.bytes.len().max(8) - 8;
        for (at, name, form) in std::mem::take(&mut self.fixups) {
            let to = self.names.get(&name).copied().unwrap_or(end) as u64 + layout::CODE;
            match form {
                Form::Relative => {
                    let from = layout::CODE + at as u64 + 4;
                    self.put(at, &(to.wrapping_sub(from) as u32).to_le_bytes());
                }
                Form::Absolute(base) => self.put(at, &(base + to).to_le_bytes()),
                Form::Short(base, offset) => self.put(at, &((base + to + offset) as u32).to_le_bytes()),
            }
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Offset of a slot from [`layout::VARIABLES`].
pub fn slot_at(slot: u16) -> u64 {
    variable::SLOTS + u64::from(slot) % 960 * 8
}
