//! Several vCPUs on one memory: what x86's memory order forbids is never seen,
//! locked instructions count exactly, code and page tables that one vCPU changes
//! are changed for the others once they were told.
//!
//! `STRATA_ROUNDS` scales the number of rounds.

use conformance::several::{self, FREE, INTERRUPT_PORT, PAGE_ENTRIES, REMAPPED, Source};
use conformance::software_engines;
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Result = std::result::Result<(), IcedError>;
type Body = fn(&mut CodeAssembler) -> Result;

const X: u64 = FREE;
const Y: u64 = FREE + 0x10_0000;
const RESULTS: u64 = FREE + 0x20_0000;
const BARRIER: u64 = FREE + 0x30_0000;
/// More shared words, each on a line of its own.
const SHARED: u64 = BARRIER + 0x1000;
/// Frames and functions that change.
const FRAMES: u64 = FREE + 0x40_0000;
const POISON: u32 = 0xdead;

fn rounds(n: u32) -> u32 {
    let scale: u32 = std::env::var("STRATA_ROUNDS").map_or(1, |s| s.parse().expect("a number"));
    (n * scale).min(16_000)
}

fn word(memory: &GuestMemory, at: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.load(at, &mut bytes).expect("memory");
    u64::from_le_bytes(bytes)
}

fn stop(a: &mut CodeAssembler) -> Result {
    a.cli()?;
    a.hlt()
}

fn no_interrupt(a: &mut CodeAssembler) -> Result {
    a.ud2()
}

/// Spin until a word is at least R13.
fn wait_for(a: &mut CodeAssembler, at: u64) -> Result {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(qword_ptr(at), r13)?;
    a.jb(again)
}

/// A litmus test: X is [R8], Y is [R9]; each thread leaves what it read in EAX and EBX.
struct Litmus {
    name: &'static str,
    threads: &'static [Body],
    /// Outcomes by thread that must not be.
    forbidden: fn(&[[u32; 2]]) -> bool,
    /// Outcomes that show that order was relaxed.
    relaxed: fn(&[[u32; 2]]) -> bool,
}

fn never(_: &[[u32; 2]]) -> bool {
    false
}

fn store_x(a: &mut CodeAssembler) -> Result {
    a.mov(dword_ptr(r8), 1)
}

fn store_y(a: &mut CodeAssembler) -> Result {
    a.mov(dword_ptr(r9), 1)
}

fn load_x_then_y(a: &mut CodeAssembler) -> Result {
    a.mov(eax, dword_ptr(r8))?;
    a.mov(ebx, dword_ptr(r9))
}

fn load_y_then_x(a: &mut CodeAssembler) -> Result {
    a.mov(eax, dword_ptr(r9))?;
    a.mov(ebx, dword_ptr(r8))
}

const LITMUS: &[Litmus] = &[
    Litmus {
        name: "message passing",
        threads: &[
            |a| {
                store_x(a)?;
                store_y(a)
            },
            load_y_then_x,
        ],
        forbidden: |t| t[1] == [1, 0],
        relaxed: never,
    },
    Litmus {
        name: "store buffering",
        threads: &[
            |a| {
                store_x(a)?;
                a.mov(eax, dword_ptr(r9))
            },
            |a| {
                store_y(a)?;
                a.mov(eax, dword_ptr(r8))
            },
        ],
        forbidden: never,
        relaxed: |t| t[0][0] == 0 && t[1][0] == 0,
    },
    Litmus {
        name: "store buffering, fenced",
        threads: &[
            |a| {
                store_x(a)?;
                a.mfence()?;
                a.mov(eax, dword_ptr(r9))
            },
            |a| {
                store_y(a)?;
                a.mfence()?;
                a.mov(eax, dword_ptr(r8))
            },
        ],
        forbidden: |t| t[0][0] == 0 && t[1][0] == 0,
        relaxed: never,
    },
    Litmus {
        name: "store buffering, locked",
        threads: &[
            |a| {
                a.mov(ecx, 1)?;
                a.xchg(dword_ptr(r8), ecx)?;
                a.mov(eax, dword_ptr(r9))
            },
            |a| {
                store_y(a)?;
                a.lock().add(dword_ptr(rsp - 64), 1)?;
                a.mov(eax, dword_ptr(r8))
            },
        ],
        forbidden: |t| t[0][0] == 0 && t[1][0] == 0,
        relaxed: never,
    },
    Litmus {
        name: "load buffering",
        threads: &[
            |a| {
                a.mov(eax, dword_ptr(r8))?;
                store_y(a)
            },
            |a| {
                a.mov(eax, dword_ptr(r9))?;
                store_x(a)
            },
        ],
        forbidden: |t| t[0][0] == 1 && t[1][0] == 1,
        relaxed: never,
    },
    Litmus {
        name: "independent reads of independent writes",
        threads: &[store_x, store_y, load_x_then_y, load_y_then_x],
        forbidden: |t| t[2] == [1, 0] && t[3] == [1, 0],
        relaxed: never,
    },
    Litmus {
        name: "own stores are seen first",
        threads: &[
            |a| {
                store_x(a)?;
                load_x_then_y(a)
            },
            |a| {
                store_y(a)?;
                load_y_then_x(a)
            },
        ],
        forbidden: |t| t[0][0] == 0 || t[1][0] == 0,
        relaxed: |t| t[0] == [1, 0] && t[1] == [1, 0],
    },
    Litmus {
        name: "message passing by string stores and pushes",
        threads: &[
            |a| {
                a.mov(eax, 1)?;
                a.mov(rdi, r8)?;
                a.stosd()?;
                a.mov(r15, rsp)?;
                a.lea(rsp, qword_ptr(r9 + 8))?;
                a.push(1)?;
                a.mov(rsp, r15)
            },
            load_y_then_x,
        ],
        forbidden: |t| t[1] == [1, 0],
        relaxed: never,
    },
];

#[test]
fn memory_order_is_x86s() {
    let n = rounds(1024);
    for engine in software_engines() {
        for test in LITMUS {
            let thread = |number: u64, body: Body, a: &mut CodeAssembler| {
                let (mut again, mut on) = (a.create_label(), a.create_label());
                a.mov(r8, X)?;
                a.mov(r9, Y)?;
                a.mov(r10, RESULTS + number * 8)?;
                a.mov(r12d, n)?;
                a.xor(r13d, r13d)?;
                a.set_label(&mut again)?;
                a.test(r12d, 63)?;
                a.jne(on)?;
                a.lock().inc(qword_ptr(BARRIER))?;
                a.add(r13, test.threads.len() as i32)?;
                wait_for(a, BARRIER)?;
                a.set_label(&mut on)?;
                body(a)?;
                a.mov(dword_ptr(r10), eax)?;
                a.mov(dword_ptr(r10 + 4), ebx)?;
                a.add(r8, 64)?;
                a.add(r9, 64)?;
                a.add(r10, 32)?;
                a.dec(r12d)?;
                a.jne(again)?;
                stop(a)
            };
            let programs: Vec<_> = (0..)
                .zip(test.threads)
                .map(|(number, body)| move |a: &mut CodeAssembler| thread(number, *body, a))
                .collect();
            let programs: Vec<Source<'_>> = programs.iter().map(|p| p as _).collect();
            let memory = several::run(&*engine, &no_interrupt, &programs);
            let (mut forbidden, mut relaxed) = (0, 0);
            for round in 0..u64::from(n) {
                let seen: Vec<[u32; 2]> = (0..test.threads.len() as u64)
                    .map(|t| word(&memory, RESULTS + round * 32 + t * 8))
                    .map(|w| [w as u32, (w >> 32) as u32])
                    .collect();
                forbidden += u32::from((test.forbidden)(&seen));
                relaxed += u32::from((test.relaxed)(&seen));
            }
            println!("{}: {}: {n} rounds, {relaxed} relaxed", engine.name(), test.name);
            assert_eq!(forbidden, 0, "{}: {}", engine.name(), test.name);
        }
    }
}

/// Take the lock at SHARED + 64 with `attempt`, which sets ZF when it has it; add
/// one to SHARED; release.
fn with_lock(a: &mut CodeAssembler, attempt: Body) -> Result {
    let (mut again, mut have) = (a.create_label(), a.create_label());
    a.nop()?;
    a.set_label(&mut again)?;
    attempt(a)?;
    a.je(have)?;
    a.pause()?;
    a.jmp(again)?;
    a.set_label(&mut have)?;
    a.inc(qword_ptr(SHARED))?;
    a.mov(dword_ptr(SHARED + 64), 0)
}

const COUNTERS: &[(&str, u32, Body)] = &[
    ("LOCK INC", 16_000, |a| a.lock().inc(qword_ptr(SHARED))),
    ("LOCK ADD", 16_000, |a| a.lock().add(qword_ptr(SHARED), 1)),
    ("LOCK XADD", 16_000, |a| {
        a.mov(eax, 1)?;
        a.lock().xadd(qword_ptr(SHARED), rax)
    }),
    ("LOCK CMPXCHG", 16_000, |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(SHARED))?;
        a.set_label(&mut again)?;
        a.lea(rcx, qword_ptr(rax + 1))?;
        a.lock().cmpxchg(qword_ptr(SHARED), rcx)?;
        a.jne(again)
    }),
    ("LOCK CMPXCHG16B", 16_000, |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(SHARED))?;
        a.mov(rdx, qword_ptr(SHARED + 8))?;
        a.set_label(&mut again)?;
        a.lea(rbx, qword_ptr(rax + 1))?;
        a.lea(rcx, qword_ptr(rdx + 1))?;
        a.lock().cmpxchg16b(xmmword_ptr(SHARED))?;
        a.jne(again)?;
        // Both halves count the same.
        a.cmp(rax, rdx)?;
        let mut same = a.create_label();
        a.je(same)?;
        a.ud2()?;
        a.set_label(&mut same)?;
        a.nop()
    }),
    ("XCHG lock", 400, |a| {
        with_lock(a, |a| {
            a.mov(eax, 1)?;
            a.xchg(dword_ptr(SHARED + 64), eax)?;
            a.test(eax, eax)
        })
    }),
    ("LOCK BTS lock", 400, |a| {
        with_lock(a, |a| {
            a.lock().bts(dword_ptr(SHARED + 64), 0)?;
            a.sbb(eax, eax)
        })
    }),
];

#[test]
fn locked_instructions_count_exactly() {
    for engine in software_engines() {
        for (name, times, body) in COUNTERS {
            for vcpus in [2, 4] {
                let times = (times / vcpus as u32).max(1);
                let program = |a: &mut CodeAssembler| {
                    let mut again = a.create_label();
                    a.mov(r12d, times)?;
                    a.set_label(&mut again)?;
                    body(a)?;
                    a.dec(r12d)?;
                    a.jne(again)?;
                    stop(a)
                };
                let programs: Vec<Source<'_>> = vec![&program; vcpus];
                let memory = several::run(&*engine, &no_interrupt, &programs);
                let count = word(&memory, SHARED);
                assert_eq!(count, u64::from(times) * vcpus as u64, "{}: {name}, {vcpus}", engine.name());
            }
        }
    }
}

/// The bus is locked for an operand on two pages, too, whether they lie one behind the other
/// in memory or not (SDM volume 3, 9.1.2.2).
#[test]
fn locked_instructions_across_pages_count_exactly() {
    const TIMES: u32 = 50_000;
    for engine in software_engines() {
        for (frames, adjacent) in [([FRAMES, FRAMES + 0x1000], true), ([FRAMES + 0x3000, FRAMES], false)] {
            let program = |a: &mut CodeAssembler| {
                let mut again = a.create_label();
                for (n, frame) in frames.into_iter().enumerate() {
                    a.mov(rax, frame | 7)?;
                    a.mov(qword_ptr(PAGE_ENTRIES + 8 * n as u64), rax)?;
                    a.mov(rax, REMAPPED + 0x1000 * n as u64)?;
                    a.invlpg(byte_ptr(rax))?;
                }
                a.mov(rdi, REMAPPED + 0x1000)?;
                a.mov(r12d, TIMES)?;
                a.set_label(&mut again)?;
                a.lock().inc(dword_ptr(rdi - 2))?;
                a.dec(r12d)?;
                a.jne(again)?;
                stop(a)
            };
            let memory = several::run(&*engine, &no_interrupt, &[&program, &program]);
            let low = word(&memory, frames[0] + 0xff8) >> 48;
            let high = word(&memory, frames[1]) & 0xffff;
            let count = low | high << 16;
            assert_eq!(count, u64::from(2 * TIMES), "{}, adjacent: {adjacent}", engine.name());
        }
    }
}

/// Where the changed function is, and the word that says which version it is.
fn cross_modify(engine: &dyn engine::Engine, function: u64, told: u64, readers: u64, rounds: u32) {
    let acknowledged = SHARED + 0x800;
    let writer = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.xor(r13d, r13d)?;
        a.set_label(&mut again)?;
        a.inc(r13)?;
        a.mov(dword_ptr(function + 1), r13d)?;
        a.mov(qword_ptr(told), r13)?;
        for n in 0..readers {
            wait_for(a, acknowledged + n * 64)?;
        }
        a.cmp(r13d, rounds)?;
        a.jb(again)?;
        stop(a)
    };
    let reader = |number: u64, a: &mut CodeAssembler| {
        let (mut again, mut wrong) = (a.create_label(), a.create_label());
        a.xor(r13d, r13d)?;
        a.mov(r14, function)?;
        a.set_label(&mut again)?;
        a.inc(r13)?;
        wait_for(a, told)?;
        // Serializes, as the manual asks of who is about to run changed code.
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(r14)?;
        a.cmp(eax, r13d)?;
        a.jne(wrong)?;
        a.call(function)?;
        a.cmp(eax, r13d)?;
        a.jne(wrong)?;
        a.mov(qword_ptr(acknowledged + number * 64), r13)?;
        a.cmp(r13d, rounds)?;
        a.jb(again)?;
        stop(a)?;
        a.set_label(&mut wrong)?;
        a.ud2()
    };
    // The function itself is written by the writer's first instructions: MOV EAX; RET.
    let first = |a: &mut CodeAssembler| {
        a.mov(byte_ptr(function), 0xb8u32 as i32 - 256)?;
        a.mov(byte_ptr(function + 5), 0xc3u32 as i32 - 256)?;
        writer(a)
    };
    let readers: Vec<_> = (0..readers).map(|n| move |a: &mut CodeAssembler| reader(n, a)).collect();
    let mut programs: Vec<Source<'_>> = vec![&first];
    programs.extend(readers.iter().map(|r| r as Source<'_>));
    several::run(engine, &no_interrupt, &programs);
}

#[test]
fn changed_code_is_run_by_who_was_told() {
    let n = rounds(15);
    for engine in software_engines() {
        // On a page of its own; beside the word that tells; across two pages.
        for (function, told) in
            [(FRAMES, SHARED), (FRAMES + 0x100, FRAMES + 0x200), (FRAMES + 0xffd, SHARED + 8)]
        {
            for readers in [1, 3] {
                cross_modify(&*engine, function, told, readers, n);
            }
        }
    }
}

#[test]
fn translations_end_with_a_shootdown() {
    let rounds = rounds(15);
    let (acknowledged, over) = (SHARED, SHARED + 64);
    let handler = |a: &mut CodeAssembler| {
        a.invlpg(ptr(REMAPPED))?;
        a.invlpg(ptr(REMAPPED + 0x1000))?;
        a.lock().inc(qword_ptr(acknowledged))?;
        a.iretq()
    };
    for engine in software_engines() {
        for others in [1u64, 3] {
            // R8: new data frame, R9: old. Code frames are two pages behind.
            let changer = |a: &mut CodeAssembler| {
                let (mut again, mut wrong) = (a.create_label(), a.create_label());
                a.xor(r12d, r12d)?;
                a.mov(r8, FRAMES)?;
                a.mov(r9, FRAMES + 0x1000)?;
                a.mov(r13d, others as u32)?;
                a.set_label(&mut again)?;
                a.inc(r12)?;
                a.mov(qword_ptr(r8), r12)?;
                a.mov(qword_ptr(r8 + 8), r12)?;
                a.mov(byte_ptr(r8 + 0x2000), 0xb8u32 as i32 - 256)?;
                a.mov(dword_ptr(r8 + 0x2001), r12d)?;
                a.mov(byte_ptr(r8 + 0x2005), 0xc3u32 as i32 - 256)?;
                a.lea(rax, qword_ptr(r8 + 3))?;
                a.mov(qword_ptr(PAGE_ENTRIES), rax)?;
                a.add(rax, 0x2000)?;
                a.mov(qword_ptr(PAGE_ENTRIES + 8), rax)?;
                a.mov(qword_ptr(acknowledged), 0)?;
                for n in 1..=others {
                    a.mov(edx, u32::from(INTERRUPT_PORT) + n as u32)?;
                    a.out(dx, al)?;
                }
                wait_for(a, acknowledged)?;
                // From here on nobody may reach the old frames.
                a.mov(dword_ptr(r9 + 0x2001), POISON)?;
                a.mov(qword_ptr(r9), POISON as i32)?;
                a.mov(qword_ptr(r9 + 8), POISON as i32)?;
                for _ in 0..20 {
                    a.pause()?;
                }
                a.cmp(qword_ptr(r9 + 8), POISON as i32)?;
                a.jne(wrong)?;
                a.xchg(r8, r9)?;
                a.cmp(r12d, rounds)?;
                a.jb(again)?;
                a.mov(qword_ptr(over), 1)?;
                stop(a)?;
                a.set_label(&mut wrong)?;
                a.ud2()
            };
            let user = |a: &mut CodeAssembler| {
                let (mut again, mut wrong, mut begin) =
                    (a.create_label(), a.create_label(), a.create_label());
                // Until the first frames are there.
                a.sti()?;
                a.set_label(&mut begin)?;
                a.pause()?;
                a.cmp(qword_ptr(PAGE_ENTRIES + 8), 0)?;
                a.je(begin)?;
                a.set_label(&mut again)?;
                a.mov(rax, qword_ptr(REMAPPED))?;
                a.cmp(rax, POISON as i32)?;
                a.je(wrong)?;
                a.mov(qword_ptr(REMAPPED + 8), rax)?;
                a.call(REMAPPED + 0x1000)?;
                a.cmp(eax, POISON)?;
                a.je(wrong)?;
                a.cmp(qword_ptr(over), 0)?;
                a.je(again)?;
                stop(a)?;
                a.set_label(&mut wrong)?;
                a.ud2()
            };
            let mut programs: Vec<Source<'_>> = vec![&changer];
            programs.extend((0..others).map(|_| &user as Source<'_>));
            several::run(&*engine, &handler, &programs);
        }
    }
}
