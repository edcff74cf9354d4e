//! System instructions of 64-bit code, one short program each: all software
//! engines agree after every instruction, and at the end of a run that is not
//! counted, where translated code links its blocks.

use std::time::Duration;

use conformance::{Rig, software_engines};
use engine::Halt;
use guest_memory::{GuestMemory, MemoryMap, Region};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_state::{CpuModel, CpuState, Segment, TableRegister, cr0, cr4, efer, rflags};

const MEMORY: u64 = 0x2_0000;
const TABLES: u64 = 0x20_0000;
/// All memory is at 0 for the user and here for the supervisor.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
/// HLT for each vector but one.
const HANDLERS: u64 = 0x7000;
/// The handler of [`VECTOR`]: counts, notes where it interrupted, returns.
const INTERRUPT: u64 = 0x7800;
const VECTOR: u8 = 0x40;
const KERNEL_STACK: u64 = 0x9800;
const USER_STACK: u64 = 0xa800;
const USER_CODE: u64 = 0xb000;
/// Where SYSCALL goes.
const ENTRY: u64 = 0xc000;
const KERNEL_CODE: u64 = 0xd000;
const DATA: u64 = 0x1_0000;
/// A user's page that programs move from 0 to [`TABLES`], and its page-table entry.
const MOVED: u64 = 0x20_0000;
const MOVED_ENTRY: u64 = TABLES + 0x2008;
/// What the interrupt handler writes.
const NOTES: u64 = 0x1_1000;

const KERNEL_CS: u64 = 0x10;
const KERNEL_SS: u64 = 0x18;
const USER_SS: u64 = 0x2b;
const USER_CS: u64 = 0x33;

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A program: what runs where, from which state.
struct Program {
    name: String,
    kernel: Build,
    entry: Build,
    user: Build,
    /// It begins in the user's code.
    from_user: bool,
    /// [`VECTOR`] is requested before the first instruction.
    interrupt: bool,
    /// Instructions to compare one by one.
    steps: u64,
    state: Box<dyn Fn(&mut CpuState)>,
}

fn stop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.hlt()
}

impl Program {
    /// One of the supervisor; the user's code notes flags and SS, and ends in #GP.
    fn kernel(name: impl Into<String>, kernel: Build) -> Self {
        Program {
            name: name.into(),
            kernel,
            entry: stop,
            user: |a| {
                a.pushfq()?;
                a.pop(rax)?;
                a.mov(ebx, ss)?;
                a.hlt()
            },
            from_user: false,
            interrupt: false,
            steps: 24,
            state: Box::new(|_| ()),
        }
    }

    fn with(mut self, state: impl Fn(&mut CpuState) + 'static) -> Self {
        self.state = Box::new(state);
        self
    }

    fn interrupted(mut self) -> Self {
        self.interrupt = true;
        self
    }
}

fn assemble(build: Build, at: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    build(&mut a).expect("the program is right");
    a.assemble(at).expect("the program fits")
}

fn note_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rbx)?;
    a.mov(rbx, KERNEL + NOTES)?;
    a.inc(qword_ptr(rbx))?;
    a.mov(rax, qword_ptr(rsp + 16))?;
    a.mov(qword_ptr(rbx + 8), rax)?;
    a.mov(rax, qword_ptr(rsp + 32))?;
    a.mov(qword_ptr(rbx + 16), rax)?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.iretq()
}

fn memory() -> GuestMemory {
    let regions = [Region::ram(0, MEMORY), Region::ram(TABLES, 0x5000)];
    let memory = GuestMemory::new(MemoryMap::new(regions).expect("regions")).expect("memory");
    // One 2 MiB page twice, accessed and dirty, for the user and for the supervisor; and
    // behind them a page that programs move, and the tables.
    let entries = [
        (0, TABLES + 0x1027),
        (8 * 256, TABLES + 0x3023),
        (0x1000, TABLES + 0x2027),
        (0x2000, 0xe7),
        (0x2008, 0xe7),
        (0x3000, TABLES + 0x4023),
        (0x4000, 0xe3),
        (0x4008, TABLES + 0xe3),
    ];
    for (at, entry) in entries {
        memory.store(TABLES + at, &u64::to_le_bytes(entry)).expect("page tables");
    }
    memory
}

fn image(p: &Program) -> Vec<u8> {
    let mut m = vec![0; MEMORY as usize];
    let mut put = |at: u64, bytes: &[u8]| m[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    let descriptors: [u64; 8] = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        // Code that is not yet accessed.
        0x00af_9a00_0000_ffff,
    ];
    for (n, d) in descriptors.into_iter().enumerate() {
        put(GDT + 8 * n as u64, &d.to_le_bytes());
    }
    for v in 0..256 {
        let handler = KERNEL + if v == u64::from(VECTOR) { INTERRUPT } else { HANDLERS + v };
        let low = handler & 0xffff | KERNEL_CS << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        put(IDT + 16 * v, &low.to_le_bytes());
        put(IDT + 16 * v + 8, &(handler >> 32).to_le_bytes());
    }
    put(TSS + 4, &(KERNEL + KERNEL_STACK).to_le_bytes());
    put(HANDLERS, &[0xf4; 256]);
    put(INTERRUPT, &assemble(note_interrupt, KERNEL + INTERRUPT));
    put(USER_CODE, &assemble(p.user, USER_CODE));
    put(ENTRY, &assemble(p.entry, KERNEL + ENTRY));
    put(KERNEL_CODE, &assemble(p.kernel, KERNEL + KERNEL_CODE));
    m
}

fn start(p: &Program, reset: CpuState) -> CpuState {
    let mut s = reset;
    let level = if p.from_user { 0x60 } else { 0 };
    let flat =
        |selector: u64, access| Segment { selector: selector as u16, base: 0, limit: u32::MAX, access };
    let null = Segment { selector: 0, base: 0, limit: 0, access: Segment::UNUSABLE };
    let (code, stack) = if p.from_user { (USER_CS, USER_SS) } else { (KERNEL_CS, KERNEL_SS) };
    s.segments = [null; 6];
    s.segments[1] = flat(code, 0xa09b | level);
    s.segments[2] = flat(stack, 0xc093 | level);
    s.segments[4].base = 0x1234_5000;
    s.segments[5].base = DATA;
    s.gdtr = TableRegister { base: KERNEL + GDT, limit: 0x3f };
    s.idtr = TableRegister { base: KERNEL + IDT, limit: 0xfff };
    s.tr = Segment { selector: 0x40, base: KERNEL + TSS, limit: 0x67, access: 0x8b };
    s.cr0 = cr0::PG | cr0::WP | cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::AM;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::FSGSBASE | cr4::PAE | cr4::SMAP;
    s.cr3 = TABLES;
    s.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    s.msrs.lstar = KERNEL + ENTRY;
    s.msrs.star = KERNEL_CS << 32 | ((USER_SS - 8) | 3) << 48;
    s.msrs.sfmask = 0x25_7fd5;
    s.msrs.kernel_gs_base = KERNEL + DATA + 0x800;
    s.rip = if p.from_user { USER_CODE } else { KERNEL + KERNEL_CODE };
    s.gpr[4] = if p.from_user { USER_STACK } else { KERNEL + KERNEL_STACK };
    s.rflags = rflags::FIXED | rflags::CF | rflags::OF | rflags::SF;
    (p.state)(&mut s);
    s
}

fn run(rig: &mut Rig, p: &Program, limit: Option<u64>) -> (CpuState, Vec<u8>) {
    rig.memory.store(0, &image(p)).expect("memory");
    rig.memory.store(MOVED_ENTRY, &0xe7u64.to_le_bytes()).expect("page tables");
    let start = start(p, rig.reset_state());
    if p.interrupt {
        rig.interrupt(VECTOR);
    }
    let (halt, end) = match limit {
        Some(n) => rig.run(&start, n),
        None => rig.run_freely(&start, Duration::from_secs(10)),
    };
    rig.quiet();
    assert!(!matches!(halt, Halt::Failed(_) | Halt::Attention), "{}: {halt:?}", p.name);
    let mut memory = vec![0; MEMORY as usize];
    rig.memory.load(0, &mut memory).expect("memory");
    (end, memory)
}

fn difference(a: &CpuState, b: &CpuState) -> String {
    let lines = |s: &CpuState| format!("{s:#x?}").lines().map(str::to_string).collect::<Vec<_>>();
    let (a, b) = (lines(a), lines(b));
    let other = a.iter().zip(&b).filter(|(x, y)| x != y);
    other.map(|(x, y)| format!("{} | {}", x.trim(), y.trim())).collect::<Vec<_>>().join("\n    ")
}

/// Run programs on every engine, step by step and freely.
fn check(programs: impl IntoIterator<Item = Program>) {
    let engines = software_engines();
    let model: CpuModel = "x86-64-v3,+smap,+fsgsbase,+pcid".parse().expect("the model exists");
    let mut counted: Vec<_> =
        engines.iter().map(|e| Rig::repeatable(&**e, model.clone(), memory())).collect();
    let mut free: Vec<_> = engines.iter().map(|e| Rig::new(&**e, model.clone(), memory())).collect();
    let mut wrong = Vec::new();
    for p in programs {
        for (rigs, limits) in [(&mut counted, (1..=p.steps).map(Some).collect()), (&mut free, vec![None; 2])]
        {
            for limit in limits {
                let ends: Vec<_> = rigs.iter_mut().map(|r| run(r, &p, limit)).collect();
                if let Some(n) = ends.iter().position(|e| *e != ends[0]) {
                    let at = ends[0].1.iter().zip(&ends[n].1).position(|(a, b)| a != b);
                    let state = difference(&ends[0].0, &ends[n].0);
                    let engine = engines[n].name();
                    wrong.push(format!(
                        "{} on {engine} after {limit:?}:\n    {state}\n    memory {at:x?}",
                        p.name
                    ));
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} programs differ\n{}", wrong.len(), wrong.join("\n"));
}

/// SYSCALL entry as operating systems write it: own stack and GS, a window for
/// interrupts, back; RAX 0 ends the run.
fn serve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut end, mut masked) = (a.create_label(), a.create_label());
    a.swapgs()?;
    a.mov(r14, rsp)?;
    a.mov(rsp, KERNEL + KERNEL_STACK)?;
    a.test(eax, eax)?;
    a.je(end)?;
    a.inc(qword_ptr(0).gs())?;
    a.mov(r10d, cs)?;
    a.mov(r13d, ss)?;
    a.sti()?;
    a.nop()?;
    a.pushfq()?;
    a.pop(r12)?;
    a.test(r12d, rflags::IF as i32)?;
    a.je(masked)?;
    a.cli()?;
    a.set_label(&mut masked)?;
    a.pushfq()?;
    a.pop(r15)?;
    a.mov(rsp, r14)?;
    a.swapgs()?;
    a.sysretq()?;
    a.set_label(&mut end)?;
    a.hlt()
}

fn call_repeatedly(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ebx, 30)?;
    a.set_label(&mut again)?;
    a.mov(eax, ebx)?;
    a.cmp(ebx, 7)?;
    a.syscall()?;
    a.pushfq()?;
    a.pop(rdx)?;
    a.add(rbp, rdx)?;
    a.mov(r8d, cs)?;
    a.dec(ebx)?;
    a.jne(again)?;
    a.xor(eax, eax)?;
    a.syscall()
}

fn calls(name: &str, state: impl Fn(&mut CpuState) + 'static) -> Program {
    let p = Program {
        entry: serve,
        user: call_repeatedly,
        from_user: true,
        steps: 80,
        ..Program::kernel(name, stop)
    };
    p.with(state)
}

#[test]
fn system_calls() {
    check([
        calls("interrupts enabled", |s| s.rflags |= rflags::IF),
        calls("interrupts disabled", |_| ()),
        calls("without SMAP", |s| s.cr4 &= !cr4::SMAP),
        calls("ID set", |s| s.rflags |= rflags::ID | rflags::IF),
        calls("DF set", |s| s.rflags |= rflags::DF),
        calls("AC set", |s| s.rflags |= rflags::AC),
        calls("a mask that keeps status flags", |s| s.msrs.sfmask = 0x700),
        calls("SCE clear", |s| s.efer &= !efer::SCE),
        calls("data segments loaded", |s| {
            s.segments[3] = Segment { selector: USER_SS as u16, base: 0, limit: u32::MAX, access: 0xc0f3 };
        }),
        calls("an interrupt waits", |s| s.rflags |= rflags::IF).interrupted(),
        calls("an interrupt waits for the window", |_| ()).interrupted(),
    ]);
}

#[test]
fn sysret() {
    let flags = [0, 2, 0xad5, 0x202, 0x102, 0x402, 0x3002, 0x4002, 0x1_0002, 0x4_0002, 0x18_0202, 0x20_0002];
    let targets = [USER_CODE, 1 << 47, KERNEL + USER_CODE, (1 << 47) - 1];
    let program = |flags: u64, target: u64| {
        Program::kernel(format!("R11 {flags:#x}, RCX {target:#x}"), |a| a.sysretq()).with(move |s| {
            s.gpr[11] = flags | 1 << 40;
            s.gpr[1] = target;
            s.gpr[4] = USER_STACK;
        })
    };
    check(flags.into_iter().map(|f| program(f, USER_CODE)));
    check(targets.into_iter().map(|t| program(0x202, t)));
    check([program(0x202, USER_CODE).interrupted()]);
}

/// IRETQ from a frame in R8 to R12.
fn iretq(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut go = a.create_label();
    for r in [r12, r11, r10, r9, r8] {
        a.push(r)?;
    }
    a.jmp(go)?;
    a.nops_with_size(0x60)?;
    a.set_label(&mut go)?;
    a.iretq()
}

#[derive(Clone, Copy)]
struct Frame {
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

const TO_USER: Frame = Frame { rip: USER_CODE, cs: USER_CS, flags: 0x202, rsp: USER_STACK, ss: USER_SS };
/// To the SYSCALL entry, which is a HLT here.
const TO_KERNEL: Frame = Frame {
    rip: KERNEL + ENTRY,
    cs: KERNEL_CS,
    flags: 0x93,
    rsp: KERNEL + KERNEL_STACK - 0x100,
    ss: KERNEL_SS,
};

fn returns(name: &str, f: Frame) -> Program {
    Program {
        entry: |a| {
            a.pushfq()?;
            a.mov(ebx, ss)?;
            a.mov(rax, qword_ptr(DATA))?;
            a.hlt()
        },
        ..Program::kernel(name, iretq)
    }
    .with(move |s| s.gpr[8..13].copy_from_slice(&[f.rip, f.cs, f.flags, f.rsp, f.ss]))
}

#[test]
fn iret() {
    for to in [TO_USER, TO_KERNEL] {
        let flags = [
            0u64,
            0x2,
            0xad7,
            0x202,
            0x102,
            0x402,
            0x3002,
            0x4002,
            0x1_0202,
            0x4_0202,
            0x8_0002,
            0x10_0002,
            0x20_0002,
            0x2_0002,
            1 << 63,
        ];
        check(flags.map(|flags| returns(&format!("flags {flags:#x}"), Frame { flags, ..to })));
        let code = [0, 3, 0x10, 0x13, 0x14, 0x18, 0x23, 0x2b, 0x33, 0x37, 0x38, 0x40, 0x1_0033, 0xfff8];
        check(code.map(|s| returns(&format!("CS {s:#x}"), Frame { cs: s, ..to })));
        let stack = [0, 3, 0x10, 0x18, 0x1b, 0x28, 0x2b, 0x2f, 0x33, 0x43];
        check(stack.map(|s| returns(&format!("SS {s:#x}"), Frame { ss: s, ..to })));
        let targets = [0, (1 << 47) - 1, 1 << 47, KERNEL - 1, KERNEL + ENTRY, USER_CODE];
        check(targets.map(|rip| returns(&format!("RIP {rip:#x}"), Frame { rip, ..to })));
        check([
            returns("NT set", to).with(move |s| {
                s.rflags |= rflags::NT;
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            }),
            returns("AC set", to).with(move |s| {
                s.rflags |= rflags::AC;
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            }),
            returns("NMIs blocked", to).with(move |s| {
                s.nmi_blocked = true;
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            }),
            returns("a small GDT", to).with(move |s| {
                s.gdtr.limit = 0x17;
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            }),
            returns("a frame that is not aligned", to).with(move |s| {
                s.gpr[4] += 3;
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            }),
            returns("a frame across pages", to).with(move |s| {
                s.gpr[4] = KERNEL + 0x9000 + 16;
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            }),
            returns("data segments loaded", to).with(move |s| {
                s.segments[0] = Segment { selector: 0x18, base: 0, limit: u32::MAX, access: 0xc093 };
                s.segments[3] = Segment { selector: 0x2b, base: 0, limit: u32::MAX, access: 0xc0f3 };
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            }),
            returns("an interrupt waits", Frame { flags: 0x202, ..to }).interrupted(),
            returns("an interrupt waits, RF", Frame { flags: 0x1_0202, ..to }).interrupted(),
        ]);
    }
}

/// RF from a frame holds for the first instruction: an interrupt that comes when the same
/// address is reached once more pushes it clear.
#[test]
fn rf_ends_with_the_first_instruction() {
    let program = Program {
        entry: |a| {
            let (mut again, mut end) = (a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.inc(ebx)?;
            a.cmp(ebx, 3)?;
            a.je(end)?;
            a.sti()?;
            a.jmp(again)?;
            a.set_label(&mut end)?;
            a.cli()?;
            a.hlt()
        },
        ..Program::kernel("a loop that IRETQ enters", |a| {
            a.xor(ebx, ebx)?;
            iretq(a)
        })
    };
    let to = Frame { flags: 0x1_0002, ..TO_KERNEL };
    check([program
        .with(move |s| s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]))
        .interrupted()]);
}

/// At CPL 1 and 2, which are supervisor to paging but may not do what CPL 0 may.
#[test]
fn outer_rings() {
    let programs: [(&str, Build); 9] = [
        ("CLI", |a| a.cli()),
        ("STI", |a| a.sti()),
        ("SWAPGS", |a| a.swapgs()),
        ("MOV from CR3", |a| a.mov(rax, cr3)),
        ("STAC", |a| a.stac()),
        ("SYSRETQ", |a| a.sysretq()),
        ("IRETQ to CPL 0", iretq),
        ("SYSCALL", |a| a.syscall()),
        ("POPFQ", |a| {
            a.push(0x202)?;
            a.popfq()?;
            a.pushfq()?;
            a.pop(rax)?;
            a.mov(ebx, cs)?;
            a.hlt()
        }),
    ];
    for ring in [1, 2] {
        check(programs.map(|(name, b)| {
            Program::kernel(format!("{name} at CPL {ring}"), b).with(move |s| {
                for n in [1, 2] {
                    s.segments[n].selector |= ring as u16;
                    s.segments[n].access |= ring << 5;
                }
                s.gpr[1] = USER_CODE;
                s.gpr[11] = 0x202;
                let to = TO_KERNEL;
                s.gpr[8..13].copy_from_slice(&[to.rip, to.cs, to.flags, to.rsp, to.ss]);
            })
        }));
    }
}

/// Longer than the interpreter goes on by itself where debug registers keep it at it.
fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(r10d, 5000)?;
    a.set_label(&mut again)?;
    a.dec(r10d)?;
    a.jne(again)
}

/// Moves the user's page and flushes it, changes to another context and back; the
/// interpreter does the first two at one go.
fn move_page_between_contexts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, 1)?;
    a.mov(dr7, rax)?;
    a.mov(r9, KERNEL + MOVED_ENTRY)?;
    a.mov(qword_ptr(r9), (TABLES + 0xe7) as i32)?;
    a.invlpg(byte_ptr(MOVED + 0x1000))?;
    a.mov(rax, 1 << 63 | TABLES | 2)?;
    a.mov(cr3, rax)?;
    wait(a)?;
    a.xor(eax, eax)?;
    a.mov(dr7, rax)?;
    wait(a)?;
    a.mov(rax, 1 << 63 | TABLES | 1)?;
    a.mov(cr3, rax)?;
    a.sysretq()
}

#[test]
fn flushes_are_of_the_context_they_were_made_in() {
    let program = Program {
        entry: move_page_between_contexts,
        user: |a| {
            a.mov(rbx, qword_ptr(MOVED + 0x1000))?;
            a.syscall()?;
            a.mov(rbx, qword_ptr(MOVED + 0x1000))?;
            a.hlt()
        },
        from_user: true,
        ..Program::kernel("INVLPG, then another context", stop)
    };
    check([program.with(|s| {
        s.cr4 |= cr4::PCIDE;
        s.cr3 |= 1;
    })]);
}

#[test]
fn access_to_user_pages() {
    let reads: Build = |a| {
        a.stc()?;
        a.stac()?;
        a.mov(rax, qword_ptr(DATA))?;
        a.stac()?;
        a.pushfq()?;
        a.pop(rbx)?;
        a.mov(qword_ptr(DATA + 8), rbx)?;
        a.clac()?;
        a.clac()?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.mov(rax, qword_ptr(DATA))?;
        a.hlt()
    };
    check([
        Program::kernel("SMAP", reads),
        Program::kernel("no SMAP", reads).with(|s| s.cr4 &= !cr4::SMAP),
        Program::kernel("AC set", reads).with(|s| s.rflags |= rflags::AC),
        Program { user: reads, from_user: true, ..Program::kernel("user", stop) },
    ]);
}

#[test]
fn flags_pushed_and_popped() {
    let turn: Build = |a| {
        a.push(r8)?;
        a.popfq()?;
        a.pushfq()?;
        a.pop(rax)?;
        a.nop()?;
        a.hlt()
    };
    let images = [
        0u64, 0xad5, 0x2d5, 0x8ff, 0x200, 0x102, 0x402, 0x3002, 0x4002, 0x1_0002, 0x2_0002, 0x4_0002,
        0x8_0002, 0x10_0002, 0x20_0002, !0x100,
    ];
    for from_user in [false, true] {
        for extra in [0, rflags::IF, rflags::AC, rflags::ID, rflags::NT, rflags::IOPL] {
            check(images.map(|image| {
                let p = Program {
                    user: turn,
                    from_user,
                    steps: 8,
                    ..Program::kernel(format!("{image:#x}, before {extra:#x}, user {from_user}"), turn)
                };
                p.with(move |s| {
                    s.gpr[8] = image;
                    s.rflags |= extra;
                })
            }));
        }
    }
    let opened = Program::kernel("an interrupt waits", turn).with(|s| s.gpr[8] = 0x202).interrupted();
    check([opened]);
}

#[test]
fn the_shadow_of_sti() {
    let programs: [(&str, Build); 12] = [
        ("NOP", |a| {
            a.sti()?;
            a.nop()?;
            a.inc(ebx)?;
            a.hlt()
        }),
        ("HLT", |a| {
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.hlt()
        }),
        ("STI", |a| {
            a.sti()?;
            a.sti()?;
            a.inc(ebx)?;
            a.cli()?;
            a.hlt()
        }),
        ("CLI", |a| {
            a.sti()?;
            a.cli()?;
            a.inc(ebx)?;
            a.hlt()
        }),
        ("a short window", |a| {
            a.sti()?;
            a.nop()?;
            a.cli()?;
            a.hlt()
        }),
        ("a store", |a| {
            a.mov(rcx, KERNEL + DATA)?;
            a.sti()?;
            a.mov(qword_ptr(rcx), rcx)?;
            a.inc(ebx)?;
            a.cli()?;
            a.hlt()
        }),
        ("a fault", |a| {
            a.sti()?;
            a.mov(qword_ptr(DATA), rcx)?;
            a.hlt()
        }),
        ("JMP", |a| {
            let mut to = a.create_label();
            a.sti()?;
            a.jmp(to)?;
            a.nops_with_size(9)?;
            a.set_label(&mut to)?;
            a.inc(ebx)?;
            a.cli()?;
            a.hlt()
        }),
        ("RET", |a| {
            let (mut enable, mut over) = (a.create_label(), a.create_label());
            a.jmp(over)?;
            a.set_label(&mut enable)?;
            a.sti()?;
            a.ret()?;
            a.set_label(&mut over)?;
            a.call(enable)?;
            a.inc(ebx)?;
            a.cli()?;
            a.hlt()
        }),
        ("CALL", |a| {
            let mut to = a.create_label();
            a.sti()?;
            a.call(to)?;
            a.set_label(&mut to)?;
            a.inc(ebx)?;
            a.cli()?;
            a.hlt()
        }),
        ("CPUID", |a| {
            a.sti()?;
            a.cpuid()?;
            a.cli()?;
            a.hlt()
        }),
        ("PUSHFQ", |a| {
            a.sti()?;
            a.pushfq()?;
            a.pop(rax)?;
            a.cli()?;
            a.hlt()
        }),
    ];
    for before in [0, rflags::IF] {
        check(programs.map(|(name, b)| {
            Program::kernel(format!("{name}, before {before:#x}"), b)
                .with(move |s| s.rflags |= before)
                .interrupted()
        }));
        check(programs.map(|(name, b)| Program::kernel(name, b).with(move |s| s.rflags |= before)));
    }
}

#[test]
fn bases_and_registers() {
    let bases: Build = |a| {
        a.swapgs()?;
        a.rdgsbase(rax)?;
        a.rdfsbase(r11)?;
        a.wrfsbase(r8)?;
        a.wrgsbase(r10)?;
        a.rdfsbase(rbx)?;
        a.swapgs()?;
        a.rdgsbase(rdx)?;
        a.mov(r9d, ds)?;
        a.mov(r12, gs)?;
        a.mov(word_ptr(rsp - 8), ss)?;
        a.hlt()
    };
    let control: Build = |a| {
        a.mov(rax, cr0)?;
        a.mov(r10, cr2)?;
        a.mov(r11, cr3)?;
        a.mov(rbx, cr4)?;
        a.cld()?;
        a.mov(rdx, cr8)?;
        a.hlt()
    };
    let with = |name: &str, fs_base: u64, gs_base: u64| {
        Program::kernel(name, bases).with(move |s| {
            s.gpr[8] = fs_base;
            s.gpr[10] = gs_base;
        })
    };
    check([
        with("lower-half bases", 0x1000, (1 << 47) - 1),
        with("upper-half bases", KERNEL + DATA, KERNEL),
        with("FS not canonical", 1 << 47, 0),
        with("GS not canonical", 0, 1 << 63),
        with("no FSGSBASE", 0, 0).with(|s| s.cr4 &= !cr4::FSGSBASE),
        Program { user: bases, from_user: true, ..Program::kernel("SWAPGS of the user", stop) },
        Program::kernel("control registers", control).with(|s| s.cr2 = 0x1234),
        Program { user: control, from_user: true, ..Program::kernel("control registers of the user", stop) },
    ]);
}

/// Whether two time stamps come in order, in RBX, and TSC_AUX, in RSI.
fn read_time(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r8d, 1)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.lea(r9, rax + rdx)?;
    a.rdtscp()?;
    a.shl(rdx, 32)?;
    a.add(rax, rdx)?;
    a.mov(esi, ecx)?;
    a.cmp(r9, rax)?;
    a.setbe(bl)?;
    a.movzx(ebx, bl)?;
    for r in [rax, rdx, r9] {
        a.xor(r, r)?;
    }
    a.hlt()
}

/// Whether time stamps that engines may get by different means come in order, a bit
/// each in RBX: RDTSC, RDMSR of the counter, RDTSCP, and RDTSC after it has been moved.
fn compare_time(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // R9 = the time so far; RBX gets whether RDX:RAX is not before it.
    fn later(a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(r9, rax)?;
        a.setbe(sil)?;
        a.movzx(esi, sil)?;
        a.lea(rbx, rsi + rbx * 2)?;
        a.mov(r9, rax)
    }
    a.xor(ebx, ebx)?;
    a.xor(r9, r9)?;
    for _ in 0..20 {
        a.rdtsc()?;
        later(a)?;
        a.mov(ecx, TSC)?;
        a.rdmsr()?;
        later(a)?;
        a.rdtscp()?;
        later(a)?;
    }
    // Years ahead, which is in RDX alone.
    a.mov(ecx, TSC)?;
    a.mov(edx, 0x0100_0000)?;
    a.xor(eax, eax)?;
    a.wrmsr()?;
    a.rdtsc()?;
    a.mov(r8, rdx)?;
    // Back to where it was, which does not depend on when this runs.
    a.mov(ecx, TSC_ADJUST)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    for r in [rax, rcx, rdx, rsi, r9] {
        a.xor(r, r)?;
    }
    a.hlt()
}

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_TSC_ADJUST.
const TSC_ADJUST: u32 = 0x3b;

#[test]
fn time_stamps_by_all_means_come_in_order() {
    check([
        Program::kernel("RDTSC, RDMSR, RDTSCP", compare_time),
        Program::kernel("the same with TSD", compare_time).with(|s| s.cr4 |= cr4::TSD),
    ]);
}

#[test]
fn time_stamps() {
    let begin = |s: &mut CpuState| {
        s.msrs.tsc_aux = 0x1234;
        s.gpr[1] = u64::MAX;
    };
    let user = |name: &str| Program { user: read_time, from_user: true, ..Program::kernel(name, stop) };
    check([
        Program::kernel("supervisor", read_time).with(begin),
        user("user").with(begin),
        user("user with TSD").with(move |s| {
            begin(s);
            s.cr4 |= cr4::TSD;
        }),
    ]);
}
