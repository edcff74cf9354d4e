//! Programs from a seed.

use iced_x86::code_asm::*;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, IcedError, Instruction, InstructionInfoFactory, OpAccess, Register,
};
use x86_state::{cr4, rflags};

use super::emit::assemble;
use super::layout::{self, HIGH, LOW};
use super::{Call, Function, Item, Patch, Program, Return, Setup};
use crate::random::{Random, candidate, left_out, moves_environment};

/// Instructions that a program executes at most, about.
const BUDGET: u64 = 12_000;
/// Sites whose constants change.
const SITES: u64 = 10;
const GPR: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const GPR32: [AsmRegister32; 16] =
    [eax, ecx, edx, ebx, esp, ebp, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d];
const GPR8: [AsmRegister8; 16] =
    [al, cl, dl, bl, spl, bpl, sil, dil, r8b, r9b, r10b, r11b, r12b, r13b, r14b, r15b];

/// The program of a seed.
pub fn generate(seed: u64) -> Program {
    let mut r = Random(seed);
    let pick = |r: &mut Random, one_in: u64, bits: u64| if r.below(one_in) == 0 { bits } else { 0 };
    let mut low_supervisor = r.below(3) == 0;
    let controls = pick(&mut r, 2, cr4::PGE)
        | pick(&mut r, 4, cr4::PCIDE)
        | pick(&mut r, 6, cr4::SMEP)
        | pick(&mut r, 6, cr4::SMAP)
        | pick(&mut r, 4, cr4::DE);
    low_supervisor &= controls & cr4::SMEP == 0;
    let setup = Setup {
        seed,
        fuel: 400,
        cr4: controls,
        syscall_mask: [0x700, 0, 0x4_7700, rflags::TF][r.below(4) as usize],
        global: controls & cr4::PGE != 0 && r.below(2) == 0,
        low_supervisor,
    };
    let count = 2 + r.below(7) as usize;
    let users: Vec<bool> = (0..count).map(|_| r.below(3) == 0).collect();
    let mut g =
        Generator { r, setup, slots: 0, user: false, costs: vec![None; count], users, functions: Vec::new() };
    for number in (0..count).rev() {
        let f = g.function(number);
        g.functions.push(f);
    }
    g.functions.reverse();
    g.user = false;
    let segments = (0..1 + g.r.below(4)).map(|_| g.top()).collect();
    Program { setup, segments, functions: g.functions }
}

struct Generator {
    r: Random,
    setup: Setup,
    slots: u16,
    user: bool,
    /// Instructions a call of each function takes, of those there are already.
    costs: Vec<Option<u64>>,
    users: Vec<bool>,
    /// From the last to the first.
    functions: Vec<Function>,
}

/// What an item may cost, and how deep it lies.
#[derive(Clone, Copy)]
struct Room {
    cost: u64,
    depth: u32,
}

impl Generator {
    fn slot(&mut self) -> u16 {
        self.slots += 1;
        self.slots
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.r.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.r.below(from.len() as u64) as usize]
    }

    fn function(&mut self, number: usize) -> Function {
        self.user = self.users[number];
        let n = 3 + self.r.below(16);
        let (body, cost) = self.items(n, Room { cost: BUDGET / 8, depth: 0 });
        self.costs[number] = Some(cost + 8);
        Function {
            user: self.user,
            padding: if self.one_in(2) { 0 } else { self.r.below(70) as u8 },
            arguments: if self.one_in(4) { 1 + self.r.below(3) as u16 } else { 0 },
            retargets: self.one_in(4),
            slot: self.slot(),
            body,
        }
    }

    fn top(&mut self) -> Vec<Item> {
        let n = 3 + self.r.below(12);
        self.items(n, Room { cost: BUDGET / 2, depth: 0 }).0
    }

    /// So many items, and about how many instructions they execute.
    fn items(&mut self, n: u64, room: Room) -> (Vec<Item>, u64) {
        let (mut items, mut cost) = (Vec::new(), 0);
        for _ in 0..n {
            if cost >= room.cost {
                break;
            }
            let (item, c) = self.item(Room { cost: room.cost - cost, depth: room.depth + 1 });
            items.push(item);
            cost += c;
        }
        (items, cost)
    }

    fn some(&mut self, room: Room, times: u64) -> (Vec<Item>, u64) {
        let n = 1 + self.r.below(6);
        self.items(n, Room { cost: room.cost / times, depth: room.depth })
    }

    fn item(&mut self, room: Room) -> (Item, u64) {
        let deep = room.depth > 4 || room.cost < 20;
        match self.r.below(100) {
            0..36 => (Item::Bytes(self.instruction()), 1),
            36..46 => (Item::Bytes(self.value()), 1),
            46..52 => (Item::Bytes(self.access()), 2),
            52..56 => (Item::Bytes(self.neighbours()), 6),
            56..61 => (Item::Bytes(self.stack()), 1),
            61..67 => (self.special(), 3),
            67..71 if !deep => self.container(room),
            71..75 if !deep => {
                let times = 1 + self.r.below(10);
                let (body, c) = self.some(room, times);
                let slot = self.slot();
                (Item::Loop { times: times as u32, slot, body }, times * (c + 2))
            }
            75..84 if !deep => self.call(room),
            84..87 => (
                Item::Site { number: self.r.below(SITES) as u16, register: self.pick(&[0, 1, 2, 3, 6, 7]) },
                1,
            ),
            87..91 => {
                let how = [Patch::Dword, Patch::Byte, Patch::String, Patch::Increment];
                let system = [Patch::OtherMapping, Patch::LargePage, Patch::Dword];
                let how = if !self.user && self.one_in(2) { self.pick(&system) } else { self.pick(&how) };
                (Item::Patch { number: self.r.below(SITES) as u16, value: self.r.next() as u32, how }, 4)
            }
            91 => (Item::Beside, 2),
            92 => {
                let how = [Return::Near, Return::NearImmediate, Return::Far, Return::Interrupt];
                (Item::Return(self.pick(&how)), 8)
            }
            93..95 => (Item::LongJump, 6),
            _ if self.user => (Item::Bytes(self.user_call()), 20),
            _ => self.supervisor(room),
        }
    }

    fn container(&mut self, room: Room) -> (Item, u64) {
        match self.r.below(6) {
            0 | 1 => {
                let (body, c) = self.some(room, 1);
                (Item::If { condition: self.r.below(16) as u8, body }, c + 1)
            }
            2 => {
                let mut cost = 8;
                let arms = std::array::from_fn(|_| {
                    let (body, c) = self.some(room, 4);
                    cost += c;
                    body
                });
                (Item::Switch { slot: self.slot(), arms }, cost)
            }
            3 => {
                let (body, c) = self.some(room, 2);
                (Item::SetJump { body }, 2 * c)
            }
            4 => {
                let (body, c) = self.some(room, 1);
                let off = self.pick(&[0, 0, 8, 1, 4]);
                (Item::OtherStack { slot: self.slot(), off, body }, c)
            }
            _ => {
                let depth = match self.r.below(40) {
                    0 if room.cost > BUDGET / 16 => 8_200 + self.r.below(500),
                    1..20 => 1 + self.r.below(40),
                    _ => 1 + self.r.below(6),
                };
                let body: Vec<_> = (0..self.r.below(3)).map(|_| Item::Bytes(self.steady())).collect();
                let indirect = self.one_in(2);
                let cost = if depth > 8_000 { room.cost } else { depth * (4 + 2 * body.len() as u64) };
                (Item::Recurse { depth: depth as u32, slot: self.slot(), indirect, body }, cost)
            }
        }
    }

    /// A call of a function that exists, or else an instruction.
    fn call(&mut self, room: Room) -> (Item, u64) {
        let fits = |n: &usize| self.users[*n] == self.user && self.costs[*n].is_some_and(|c| c < room.cost);
        let fitting: Vec<usize> = (0..self.costs.len()).filter(fits).collect();
        if fitting.is_empty() {
            return (Item::Bytes(self.instruction()), 1);
        }
        let to = self.pick(&fitting);
        let register = self.pick(&[0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 15]);
        let how = match self.r.below(12) {
            0..5 => Call::Direct,
            5 | 6 => Call::Register(register),
            7 => Call::Memory,
            8 => Call::Jump,
            9 => Call::Return,
            10 if !self.user && self.setup.cr4 & cr4::SMEP == 0 => Call::Alias,
            _ => Call::Retargeted,
        };
        (Item::Call { to, how, slot: self.slot() }, self.costs[to].unwrap_or(0) + 4)
    }

    /// A random instruction that goes on to the next.
    fn instruction(&mut self) -> Vec<u8> {
        loop {
            let bytes = candidate(&mut self.r);
            let i = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
            let plain = i.flow_control() == FlowControl::Next && !moves_environment(&i);
            let usual = !i.is_invalid() && plain && !left_out(&i);
            if usual && (!writes_stack_pointer(&i) || self.one_in(6)) {
                return bytes[..i.len()].to_vec();
            }
        }
    }

    /// One that leaves RSP alone.
    fn steady(&mut self) -> Vec<u8> {
        loop {
            let bytes = self.instruction();
            let i = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            if !writes_stack_pointer(&i) && !i.is_stack_instruction() {
                return bytes;
            }
        }
    }

    /// Linear base of data that the running code reaches.
    fn base(&mut self) -> u64 {
        let low = self.user || self.setup.cr4 & cr4::SMAP == 0 && self.one_in(3);
        if low { LOW } else { HIGH }
    }

    /// An address of data or of a window.
    fn address(&mut self) -> u64 {
        let base = self.base();
        let (at, len) = match self.r.below(4) {
            0 => (layout::WINDOWS + 0x200, layout::WINDOW_COUNT << 12),
            _ => (layout::DATA, layout::DATA_LEN),
        };
        let offset = match self.r.below(3) {
            // Around the end of a page.
            0 => (1 + self.r.below(15)) * 0x1000 - self.r.below(34),
            1 => self.r.below(len) & !15,
            _ => self.r.below(len),
        };
        base + at + offset % len
    }

    fn value(&mut self) -> Vec<u8> {
        let register = GPR[self.pick(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])];
        let value = match self.r.below(4) {
            0 => self.r.number(&layout::LOW_DATA),
            _ => self.address(),
        };
        assemble(|a| a.mov(register, value))
    }

    /// An access to a chosen address.
    fn access(&mut self) -> Vec<u8> {
        let at = self.address();
        let n = self.r.below(16) as usize;
        let (value, quad) = (if n == 4 { 0 } else { n }, qword_ptr(at));
        let kind = self.r.below(20);
        let index = self.r.below(3);
        assemble(|a| match kind {
            0..3 => a.mov(GPR[value], quad),
            3..6 => a.mov(quad, GPR[n]),
            6 => a.add(GPR32[value], dword_ptr(at)),
            7 => a.add(dword_ptr(at), GPR32[n]),
            8 => a.lock().xadd(quad, GPR[value]),
            9 => a.xchg(byte_ptr(at), GPR8[value]),
            10 => a.movups(xmm3, xmmword_ptr(at)),
            11 => a.movaps(xmmword_ptr(at & !15), xmm5),
            12 => a.vmovdqu(ymmword_ptr(at), ymm2),
            13 => a.sub(byte_ptr(at), 3),
            14 => a.push(quad),
            15 => {
                a.mov(rdi, at)?;
                a.mov(ecx, 0x11 * index as u32 + 2)?;
                a.rep().stosq()
            }
            16 => {
                a.mov(rsi, at)?;
                a.lea(rdi, qword_ptr(rsi + 0x7f8))?;
                a.mov(ecx, 0x203 * index as u32 + 5)?;
                a.rep().movsb()
            }
            17 => {
                a.mov(rdi, at)?;
                a.mov(ecx, 300)?;
                a.repne().scasb()
            }
            18 => a.cmpxchg(dword_ptr(at), GPR32[value]),
            _ => a.inc(dword_ptr(at)),
        })
    }

    /// Accesses near one address, by the same registers and by the stack pointer,
    /// with changes of both in between.
    fn neighbours(&mut self) -> Vec<u8> {
        let address = self.address();
        let wide = self.one_in(8);
        let kinds: Vec<_> = (0..2 + self.r.below(6)).map(|_| (self.r.below(12), self.r.next())).collect();
        let free = [rax, rcx, rdx, rbx, r8, r10, r13];
        assemble(|a| {
            a.mov(rsi, address)?;
            a.mov(ebp, 8)?;
            for (kind, bits) in kinds {
                let register = free[(bits >> 32) as usize % free.len()];
                let near = (bits & 0x7f) as i32;
                let disp = if wide { bits as i32 } else { near };
                match kind {
                    0 => a.mov(register, qword_ptr(rsi + disp))?,
                    1 => a.mov(qword_ptr(rsi + disp), register)?,
                    2 => a.mov(register, qword_ptr(rsi + rbp * 2 + near))?,
                    3 => a.add(qword_ptr(rsi + rbp * 2 + near), register)?,
                    4 => a.push(register)?,
                    5 => a.pop(register)?,
                    6 => a.mov(register, qword_ptr(rsp + rbp + near))?,
                    7 => a.mov(qword_ptr(rsp + disp), register)?,
                    8 => a.lea(rsp, qword_ptr(rsp + (near & !7) - 0x40))?,
                    9 => a.add(rsi, near - 0x40)?,
                    10 => a.inc(byte_ptr(address.wrapping_add(near as u64)))?,
                    _ => a.sub(rsp, near & !7)?,
                }
            }
            Ok(())
        })
    }

    fn stack(&mut self) -> Vec<u8> {
        let n = self.r.below(16) as usize;
        let kind = self.r.below(10);
        let by = self.pick(&[8, -8, 16, 1, -1, 4, -24]);
        let at = self.address();
        let bits = self.pick(&[rflags::DF, rflags::AC, 0xd5, 0x8d5, rflags::IF, 0x4000, 0x20_0000]) as i32;
        assemble(|a| match kind {
            0..3 => a.push(GPR[n]),
            3..5 => a.pop(GPR[if n == 4 { 0 } else { n }]),
            5 => a.lea(rsp, ptr(rsp + by)),
            6 => a.pop(qword_ptr(at)),
            7 => {
                a.pushfq()?;
                a.xor(qword_ptr(rsp), bits)?;
                a.popfq()
            }
            8 => {
                a.mov(rbp, rsp)?;
                a.push(rbp)?;
                a.leave()
            }
            _ => a.enter(16, 0),
        })
    }

    /// What raises or arms exceptions.
    fn special(&mut self) -> Item {
        let window = self.base() + layout::WINDOWS + self.r.below(layout::WINDOW_COUNT) * 0x1000;
        let kind = self.r.below(9);
        let masks = self.r.next() as i32 & 0x7fff & 0xff80 | 0x1000;
        let control = self.r.next() as i32 & 0xf3f;
        let fixed = |f: fn(&mut CodeAssembler) -> Result<(), IcedError>| Item::Bytes(assemble(f));
        match kind {
            0 | 1 => Item::Window { at: window },
            2 => fixed(|a| {
                a.xor(ecx, ecx)?;
                a.div(ecx)
            }),
            3 => Item::Bytes(assemble(|a| {
                a.push(masks)?;
                a.ldmxcsr(dword_ptr(rsp))?;
                a.pop(rax)
            })),
            4 => Item::Bytes(assemble(|a| {
                a.push(control)?;
                a.fldcw(word_ptr(rsp))?;
                a.pop(rax)
            })),
            5 => fixed(|a| {
                a.pushfq()?;
                a.or(qword_ptr(rsp), 0x100)?;
                a.popfq()
            }),
            6 => fixed(|a| a.cld()),
            7 => fixed(|a| {
                a.fninit()?;
                a.fldz()?;
                a.fld1()?;
                a.fdivrp(st1, st0)
            }),
            _ => fixed(|a| {
                a.mov(rax, 0x8000_0000_0000_0000u64)?;
                a.cqo()?;
                a.or(ecx, -1)?;
                a.idiv(rcx)
            }),
        }
    }

    fn user_call(&mut self) -> Vec<u8> {
        let kind = self.r.below(6);
        assemble(|a| match kind {
            0..3 => {
                a.mov(eax, 7)?;
                a.syscall()
            }
            3 => a.int(0x80),
            4 => a.int3(),
            _ => a.cli(),
        })
    }

    /// What only the supervisor may do.
    fn supervisor(&mut self, room: Room) -> (Item, u64) {
        let users: Vec<usize> = (0..self.costs.len())
            .filter(|n| self.users[*n] && self.costs[*n].is_some_and(|c| c < room.cost))
            .collect();
        match self.r.below(16) {
            0..6 if !users.is_empty() => {
                let to = self.pick(&users);
                let flags = [2, 2, 2, rflags::AC | 2, rflags::DF | 2, rflags::IF | 2, rflags::TF | 2];
                let item = Item::User {
                    to,
                    flags: self.pick(&flags),
                    sysret: self.one_in(2),
                    by_interrupt: self.one_in(2),
                    off: self.pick(&[0, 0, 0, 8, 1]),
                };
                (item, self.costs[to].unwrap_or(0) + 20)
            }
            0..10 => (Item::Bytes(self.remap()), 12),
            10 => {
                let (body, c) = self.some(room, 1);
                (Item::Break { body }, c + 8)
            }
            11 => {
                let value = self.space();
                (
                    Item::Bytes(assemble(|a| {
                        a.mov(rax, value)?;
                        a.mov(cr3, rax)
                    })),
                    2,
                )
            }
            _ => (Item::Bytes(self.control()), 4),
        }
    }

    /// A value of CR3.
    fn space(&mut self) -> u64 {
        let n = self.r.below(2);
        let mut value = layout::ROOTS[n as usize];
        if self.setup.cr4 & cr4::PCIDE != 0 {
            // More contexts than an engine may keep; each belongs to one of the spaces.
            value |= n | self.r.below(6) << 1 | (self.r.below(2) << 63);
        }
        value
    }

    /// Change a window's or a lazy page's entry and flush what may be cached of it.
    fn remap(&mut self) -> Vec<u8> {
        let table = self.r.below(3);
        let w = self.r.below(layout::WINDOW_COUNT);
        let frame = layout::FRAMES + self.r.below(layout::FRAME_COUNT) * 0x1000;
        let rights = self.pick(&[7, 7, 7, 3, 5, 1, 0x67, 0x47, 0, 7 | 1 << 63, 0x23]);
        let (entry, value, linear) = if self.one_in(4) {
            // A lazy page is lazy again.
            let page = (layout::DATA >> 12) + self.pick(&[2, 5, 11, 0]);
            let rights = self.pick(&[layout::LAZY | 4, layout::LAZY | 5, 0x67, 7]);
            (layout::LOW_TABLE + page * 8, page << 12 | rights, LOW + (page << 12))
        } else {
            let base = if table == 1 { HIGH } else { LOW };
            let at = layout::WINDOW_TABLES[table as usize] + w * 8;
            (at, frame | rights, base + layout::WINDOWS + (w << 12))
        };
        let flush = self.r.below(3);
        // Other contexts know of it too, the upper half's entries as well: they are not global.
        let all = self.setup.cr4 & cr4::PCIDE != 0;
        assemble(|a| {
            a.mov(rax, value)?;
            a.mov(qword_ptr(HIGH + entry), rax)?;
            match flush {
                _ if all => {
                    a.mov(rax, cr4)?;
                    a.btc(eax, 7)?;
                    a.mov(cr4, rax)?;
                    a.btc(eax, 7)?;
                    a.mov(cr4, rax)
                }
                0 => {
                    a.mov(rax, cr3)?;
                    a.mov(cr3, rax)
                }
                _ => {
                    a.mov(rax, linear)?;
                    a.invlpg(ptr(rax))
                }
            }
        })
    }

    fn control(&mut self) -> Vec<u8> {
        let kind = self.r.below(10);
        let smap = self.setup.cr4 & cr4::SMAP != 0;
        let at = self.base() + layout::DATA + self.r.below(0x8000);
        assemble(|a| match kind {
            0 => a.cli(),
            1 => a.sti(),
            2 => {
                a.mov(rax, cr0)?;
                a.or(eax, 8)?;
                a.mov(cr0, rax)
            }
            3 if smap => a.stac(),
            4 if smap => a.clac(),
            5 => a.swapgs(),
            6 => {
                a.mov(ecx, 0xc000_0100u32 + (at as u32 & 1))?;
                a.mov(eax, at as u32)?;
                a.mov(edx, (at >> 32) as u32)?;
                a.wrmsr()
            }
            7 => {
                a.mov(eax, 0x18)?;
                a.mov(ss, eax)
            }
            8 => a.int(0x80),
            _ => a.clts(),
        })
    }
}

fn writes_stack_pointer(i: &Instruction) -> bool {
    InstructionInfoFactory::new().info(i).used_registers().iter().any(|u| {
        u.register().full_register() == Register::RSP
            && !matches!(u.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
    })
}
