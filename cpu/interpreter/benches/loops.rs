//! Speed of typical integer loops, in millions of guest instructions a second.

#[path = "../tests/machine/mod.rs"]
mod machine;

use std::time::Instant;

use engine::{Halt, Vcpu};
use iced_x86::code_asm::*;
use machine::{FREE, Machine};
use x86_state::{CpuState, efer};

fn measure(name: &str, write: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
    measure_from(name, |_| (), write);
}

fn measure_from(
    name: &str,
    prepare: impl Fn(&mut CpuState),
    write: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) {
    let mut m = Machine::new(64 << 20, "x86-64-v3");
    let mut state = m.long_mode();
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a).unwrap();
    a.hlt().unwrap();
    m.write(FREE, &a.assemble(FREE).unwrap());
    state.rip = FREE;
    prepare(&mut state);
    m.vcpu.set_state(&state).unwrap();
    let begin = Instant::now();
    let halt = m.vcpu.run(u64::MAX);
    let seconds = begin.elapsed().as_secs_f64();
    assert!(matches!(halt, Halt::Idle), "{halt:?}");
    let n = m.vcpu.retired().unwrap();
    println!("{name:24} {:7.1} M/s  ({n} instructions)", n as f64 / seconds / 1e6);
}

fn main() {
    measure("registers", |a| {
        let mut top = a.create_label();
        a.mov(ecx, 20_000_000)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 7)?;
        a.xor(rax, rdx)?;
        a.lea(rbx, qword_ptr(rax + rdx * 2 + 5))?;
        a.and(ebx, 0xffff)?;
        a.dec(rcx)?;
        a.jnz(top)
    });
    measure("memory", |a| {
        let mut top = a.create_label();
        a.mov(ecx, 20_000_000)?;
        a.mov(rsi, 0x20_0000_u64)?;
        a.set_label(&mut top)?;
        a.mov(eax, ecx)?;
        a.and(eax, 0x3fff)?;
        a.mov(rdx, qword_ptr(rsi + rax * 8))?;
        a.add(rdx, rcx)?;
        a.mov(qword_ptr(rsi + rax * 8), rdx)?;
        a.add(dword_ptr(rsi + 64), 1)?;
        a.sub(ecx, 1)?;
        a.jne(top)
    });
    measure("calls", |a| {
        let (mut top, mut function, mut over) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 10_000_000)?;
        a.set_label(&mut top)?;
        a.mov(edi, ecx)?;
        a.call(function)?;
        a.cmp(eax, ecx)?;
        a.je(over)?;
        a.add(rbx, 1)?;
        a.set_label(&mut over)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.push(rbx)?;
        a.lea(eax, dword_ptr(rdi + 1))?;
        a.test(edi, 1)?;
        a.pop(rbx)?;
        a.leave()?;
        a.ret()
    });
    measure("bytes", |a| {
        let (mut outer, mut top) = (a.create_label(), a.create_label());
        a.mov(r8d, 20_000)?;
        a.set_label(&mut outer)?;
        a.mov(rsi, 0x20_0000_u64)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut top)?;
        a.movzx(eax, byte_ptr(rsi))?;
        a.add(rsi, 1)?;
        a.imul_2(edx, eax)?;
        a.add(edx, eax)?;
        a.mov(byte_ptr(rsi + 4096), dl)?;
        a.cmp(al, 10)?;
        a.loop_(top)?;
        a.dec(r8d)?;
        a.jnz(outer)
    });
    measure_from(
        "system calls",
        |s| {
            s.efer |= efer::SCE;
            s.msrs.star = 0x10_0008 << 32;
            s.msrs.lstar = FREE + 2;
        },
        |a| {
            let (mut start, mut done, mut user) = (a.create_label(), a.create_label(), a.create_label());
            a.jmp(start)?;
            // LSTAR is here, behind a short jump.
            a.test(ebx, ebx)?;
            a.jz(done)?;
            a.sysretq()?;
            a.set_label(&mut start)?;
            a.mov(ebx, 1_000_000)?;
            a.lea(rcx, qword_ptr(user))?;
            a.mov(r11d, 0x202)?;
            a.sysretq()?;
            a.set_label(&mut user)?;
            a.dec(ebx)?;
            a.syscall()?;
            a.jmp(user)?;
            a.set_label(&mut done)?;
            a.nop()
        },
    );
    measure("address spaces", |a| {
        let mut top = a.create_label();
        a.mov(rax, cr3)?;
        a.mov(ecx, 1_000_000)?;
        a.set_label(&mut top)?;
        a.mov(cr3, rax)?;
        a.mov(rdx, qword_ptr(0x20_0000))?;
        a.mov(rdx, qword_ptr(0x20_1000))?;
        a.mov(rdx, qword_ptr(0x20_2000))?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    measure("copies", |a| {
        let mut top = a.create_label();
        a.mov(ebx, 1_000_000)?;
        a.set_label(&mut top)?;
        a.mov(esi, 0x20_0000)?;
        a.mov(edi, 0x30_0000)?;
        a.mov(ecx, 256)?;
        a.rep().movsb()?;
        a.dec(ebx)?;
        a.jnz(top)
    });
}
