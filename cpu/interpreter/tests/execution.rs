//! The loop's promises: faults, restarts, events, limits, code that changes.

mod machine;

use engine::{Halt, Vcpu, attention_bits};
use guest_memory::{GuestMemory, MemoryMap, RamOffset, Region};
use iced_x86::code_asm::*;
use interpreter::StepEnd;
use machine::{FREE, HANDLERS, Machine};
use x86_state::{Activity, CpuState, InterruptShadow, TableRegister, cr0, reg, rflags, vector};

type Assembly = Result<(), iced_x86::IcedError>;

fn assemble(bits: u32, at: u64, write: impl Fn(&mut CodeAssembler) -> Assembly) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    write(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// A machine in 64-bit mode with this code at FREE.
fn long(write: impl Fn(&mut CodeAssembler) -> Assembly) -> (Machine, CpuState) {
    let mut m = Machine::new(16 << 20, "x86-64-v3");
    let mut s = m.long_mode();
    m.write(FREE, &assemble(64, FREE, write));
    s.rip = FREE;
    (m, s)
}

/// Expect that the machine halted in the handler of `vector`; gives (error code
/// or RIP, next) as the frame has them.
#[track_caller]
fn expect_vector(m: &Machine, s: &CpuState, halt: &Halt, vector: u8) -> [u64; 3] {
    assert!(matches!(halt, Halt::Idle), "{halt:?}, rip {:#x}", s.rip);
    assert_eq!(s.rip, HANDLERS + u64::from(vector) + 1, "vector {}", s.rip.wrapping_sub(HANDLERS + 1));
    let stack = s.gpr[reg::RSP];
    [m.read_u64(stack), m.read_u64(stack + 8), m.read_u64(stack + 16)]
}

/// Unmap the 2 MiB page of `linear` in [`Machine::long_mode`]'s tables, or map
/// it by a page table at 0x6000 with only 4 KiB page `keep` present.
fn unmap(m: &Machine, linear: u64, keep: Option<u64>) {
    let entry = 0x3000 + 8 * (linear >> 21);
    let value = match keep {
        None => 0,
        Some(page) => {
            for n in 0..512 {
                m.memory.write::<u64>(RamOffset(0x6000 + 8 * n), 0);
            }
            m.memory.write::<u64>(RamOffset(0x6000 + 8 * (page >> 12 & 511)), page | 7);
            0x6000 | 7
        }
    };
    m.memory.write::<u64>(RamOffset(entry), value);
}

#[test]
fn every_limit_is_met_exactly() {
    let (mut m, s) = long(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 5)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.push(rax)?;
        a.pop(rbx)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.hlt()
    });
    // MOV, five rounds of five, HLT.
    for limit in 0..27 {
        let before = m.vcpu.retired().unwrap();
        let (_, halt) = m.run(&s, limit);
        assert!(matches!(halt, Halt::Limit), "{limit}: {halt:?}");
        assert_eq!(m.vcpu.retired().unwrap() - before, limit);
    }
    let (end, halt) = m.run(&s, 27);
    assert!(matches!(halt, Halt::Idle));
    assert_eq!((end.gpr[reg::RAX], end.activity), (15, Activity::Halted));
}

#[test]
fn a_block_that_changes_itself_takes_effect_at_the_next_instruction() {
    let (mut m, s) = long(|a| {
        let mut patched = a.create_label();
        a.lea(rdi, qword_ptr(patched))?;
        a.mov(byte_ptr(rdi + 1), 0x55)?;
        a.set_label(&mut patched)?;
        a.mov(eax, 0x11)?;
        a.hlt()
    });
    for _ in 0..2 {
        let (end, _) = m.run(&s, 100);
        assert_eq!(end.gpr[reg::RAX], 0x55);
        m.write(FREE, &assemble(64, FREE, |a| a.jmp(FREE + 0x20)));
        m.write(
            FREE + 0x20,
            &assemble(64, FREE + 0x20, |a| {
                a.mov(eax, 0x55)?;
                a.hlt()
            }),
        );
    }
}

#[test]
fn a_descriptor_marked_accessed_in_the_running_block_is_seen() {
    // MOV DS,EAX; three NOPs; XCHG EAX,EDX; HLT, and the descriptor of a data segment:
    // its rights, 92h, become 93h, XCHG EAX,EBX.
    let (mut m, mut s) = long(|a| a.db(&[0x8e, 0xd8, 0x90, 0x90, 0x90, 0x92, 0xf4, 0]));
    s.gdtr = TableRegister { base: FREE - 8, limit: 0xf };
    (s.gpr[reg::RAX], s.gpr[reg::RDX], s.gpr[reg::RBX]) = (8, 7, 5);
    let (end, halt) = m.run(&s, 100);
    assert!(matches!(halt, Halt::Idle), "{halt:?}");
    assert_eq!((end.gpr[reg::RAX], end.gpr[reg::RBX]), (5, 8));
}

#[test]
fn string_stores_into_the_running_block_are_seen() {
    let (mut m, s) = long(|a| {
        let mut patched = a.create_label();
        a.lea(rdi, qword_ptr(patched))?;
        a.mov(eax, 0x40)?; // REX prefixes
        a.mov(ecx, 2)?;
        a.rep().stosb()?;
        a.set_label(&mut patched)?;
        a.inc(dword_ptr(rsp))?; // ff 04 24: becomes REX REX 24 f4, AND AL, 0xf4
        a.hlt()
    });
    let (end, halt) = m.run(&s, 5);
    assert!(matches!(halt, Halt::Limit));
    assert_eq!((end.gpr[reg::RAX], end.rip - FREE), (0x40 & 0xf4, 7 + 5 + 5 + 2 + 4));
}

#[test]
fn a_page_fault_names_the_first_missing_byte_of_an_instruction_when_it_is_reached() {
    let mut m = Machine::new(16 << 20, "x86-64-v3");
    let mut s = m.long_mode();
    let page = 0x40_1000;
    unmap(&m, page, Some(page));
    // Two NOPs, then MOV EAX, imm32 with its last byte in the next page.
    m.write(page + 0xffa, &[0x90, 0x90, 0xb8, 1, 2, 3]);
    s.rip = page + 0xffa;
    let (end, halt) = m.run(&s, 2);
    assert!(matches!(halt, Halt::Limit));
    assert_eq!(end.rip, page + 0xffc);
    let (end, halt) = m.run(&s, 100);
    let [error, rip, _] = expect_vector(&m, &end, &halt, vector::PF);
    assert_eq!((end.cr2, rip, error), (page + 0x1000, page + 0xffc, 0x10), "instruction fetch, not present");
    // With the page there the instruction runs; it is decoded anew when either page changes.
    m.memory.write::<u64>(RamOffset(0x6000 + 16), 0x40_2007);
    for last in [4, 5] {
        m.write(page + 0x1000, &[last, 0xf4]);
        let (end, _) = m.run(&s, 100);
        assert_eq!(end.gpr[reg::RAX], u64::from(last) << 24 | 0x03_0201);
    }
}

#[test]
fn instructions_over_15_bytes_and_undefined_ones_fault() {
    for (bytes, vector) in [
        (&[&[0x66; 14][..], &[0x90]].concat()[..], None),
        (&[&[0x66; 15][..], &[0x90]].concat()[..], Some(vector::GP)),
        (&[0x0f, 0x0b], Some(vector::UD)),
        (&[0xf0, 0x90], Some(vector::UD)),
        (&[0xf0, 0x01, 0xc0], Some(vector::UD)),
        (&[0xf0, 0x03, 0x04, 0x24], Some(vector::UD)),
        (&[0x06], Some(vector::UD)),
        (&[0x0f, 0x18, 0x3c, 0x24], None),
        (&[0x0f, 0x1e, 0xfa], None),
        (&[0xf3, 0x0f, 0x1e, 0xfa], None),
        (&[0xf3, 0x48, 0x0f, 0x1e, 0xc8], None),
        (&[0x0f, 0x0d, 0x0c, 0x24], None),
        // Reserved NOPs, MPX among them; a shift by the alias of SHL; TEST /1.
        (&[0x0f, 0x19, 0xc0], None),
        (&[0x0f, 0x1a, 0xc0], None),
        (&[0xf3, 0x0f, 0x1a, 0x04, 0x24], None),
        (&[0x66, 0x0f, 0x1b, 0x04, 0x24], None),
        (&[0x0f, 0x1b, 0xc0], None),
        (&[0x0f, 0x1c, 0x04, 0x24], None),
        (&[0x0f, 0x1d, 0xc0], None),
        (&[0x0f, 0x1f, 0x84, 0x24, 0, 0, 0, 0], None),
        (&[0xd1, 0xf0], None),
        (&[0xf6, 0xc8, 1], None),
        (&[0xf2, 0x0f, 0x1f, 0x00], None),
        (&[0x0f, 0xff, 0xc0], Some(vector::UD)),
        (&[0x0f, 0xb9, 0xc0], Some(vector::UD)),
        (&[0x0f, 0x3f], Some(vector::UD)),
        (&[0xd6], Some(vector::UD)),
        (&[0xc4, 0xe3, 0xfd, 0xff, 0xc0, 0], Some(vector::UD)),
        (&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0], Some(vector::UD)),
    ] {
        let (mut m, s) = long(|a| a.hlt());
        m.write(FREE, bytes);
        m.write(FREE + bytes.len() as u64, &[0xf4]);
        let (end, halt) = m.run(&s, 100);
        match vector {
            Some(v) => {
                let frame = expect_vector(&m, &end, &halt, v);
                assert_eq!(frame[usize::from(v == vector::GP)], FREE, "{bytes:02x?}");
            }
            None => assert_eq!(end.rip, FREE + bytes.len() as u64 + 1, "{bytes:02x?}"),
        }
    }
}

#[test]
fn a_repeated_move_stops_at_the_fault_with_its_progress() {
    let (mut m, mut s) = long(|a| {
        a.rep().movsb()?;
        a.hlt()
    });
    let page = 0x40_1000;
    unmap(&m, page, Some(page));
    s.gpr[reg::RSI] = 0x20_0000;
    s.gpr[reg::RDI] = page + 0xf00;
    s.gpr[reg::RCX] = 0x200;
    for n in 0..0x200 {
        m.write(0x20_0000 + n, &[n as u8]);
    }
    let (end, halt) = m.run(&s, 100);
    let [error, rip, _] = expect_vector(&m, &end, &halt, vector::PF);
    assert_eq!((error, rip, end.cr2), (2, FREE, page + 0x1000));
    assert_eq!(end.gpr[reg::RCX], 0x100);
    assert_eq!((end.gpr[reg::RSI], end.gpr[reg::RDI]), (0x20_0100, page + 0x1000));
    assert_eq!(m.read_u64(page + 0xff8), 0xfffe_fdfc_fbfa_f9f8);
}

#[test]
fn overlapping_moves_repeat_what_they_have_written() {
    for (distance, df) in [(1u64, false), (3, false), (8, false), (3, true)] {
        let (mut m, mut s) = long(|a| {
            a.rep().movsb()?;
            a.hlt()
        });
        let mut expected: Vec<u8> = (0..200).collect();
        m.write(0x20_0000, &expected);
        let (start, count) = (if df { 150 } else { 0 }, 100);
        for k in 0..count {
            let at = if df { start - k } else { k };
            expected[at + distance as usize] = expected[at];
        }
        s.gpr[reg::RSI] = 0x20_0000 + start as u64;
        s.gpr[reg::RDI] = 0x20_0000 + start as u64 + distance;
        s.gpr[reg::RCX] = count as u64;
        s.rflags |= if df { rflags::DF } else { 0 };
        let (end, _) = m.run(&s, 100);
        let mut got = [0; 200];
        m.memory.read_bytes(RamOffset(0x20_0000), &mut got);
        assert_eq!(got[..], expected[..], "distance {distance}, DF {df}");
        assert_eq!(end.gpr[reg::RCX], 0);
    }
}

#[test]
fn single_step_traps_after_each_instruction_and_iteration() {
    let (mut m, mut s) = long(|a| {
        a.mov(eax, 1)?;
        a.rep().stosb()?;
        a.hlt()
    });
    s.gpr[reg::RDI] = 0x20_0000;
    s.gpr[reg::RCX] = 2;
    s.rflags |= rflags::TF;
    let (end, halt) = m.run(&s, 100);
    let [rip, _, flags] = expect_vector(&m, &end, &halt, vector::DB);
    assert_eq!(rip, FREE + 5);
    assert_ne!(flags & rflags::TF, 0);
    assert_ne!(end.dr6 & x86_state::dr6::BS, 0);
    s.rip = FREE + 5;
    let (end, halt) = m.run(&s, 100);
    let [rip, ..] = expect_vector(&m, &end, &halt, vector::DB);
    assert_eq!((rip, end.gpr[reg::RCX]), (FREE + 5, 1), "after one iteration");
}

#[test]
fn interrupts_wait_for_the_instruction_after_sti_and_wake_hlt() {
    let (mut m, s) = long(|a| {
        a.sti()?;
        a.inc(eax)?;
        a.inc(eax)?;
        a.hlt()
    });
    *m.bus.vector.lock().unwrap() = Some(0x41);
    m.attention.raise(attention_bits::INTERRUPT);
    let (end, _) = m.run(&s, 1);
    assert_eq!(end.shadow, InterruptShadow::Sti);
    let (end, halt) = m.run(&s, 100);
    let [rip, ..] = expect_vector(&m, &end, &halt, 0x41);
    assert_eq!(end.gpr[reg::RAX] & 3, 1, "one instruction after STI");
    assert_eq!(rip, FREE + 3);

    m.attention.clear(attention_bits::INTERRUPT);
    let (halted, halt) = m.run(&s, 100);
    assert!(matches!(halt, Halt::Idle));
    assert_eq!((halted.activity, halted.rip), (Activity::Halted, FREE + 6));
    *m.bus.vector.lock().unwrap() = Some(0x42);
    m.attention.raise(attention_bits::INTERRUPT);
    let (end, halt) = m.run(&halted, 100);
    let [rip, ..] = expect_vector(&m, &end, &halt, 0x42);
    assert_eq!(rip, FREE + 6, "behind HLT");
}

#[test]
fn a_masked_interrupt_does_not_disturb_and_nmi_does() {
    let (mut m, s) = long(|a| {
        a.mov(ecx, 1000)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.hlt()
    });
    m.attention.raise(attention_bits::INTERRUPT);
    let (end, halt) = m.run(&s, 500);
    assert!(matches!(halt, Halt::Limit));
    m.attention.raise(attention_bits::NMI);
    let (end, halt) = {
        m.vcpu.set_state(&CpuState { nmi_pending: true, ..end }).unwrap();
        let halt = m.vcpu.run(1000);
        (m.vcpu.state().unwrap(), halt)
    };
    expect_vector(&m, &end, &halt, vector::NMI);
    assert!(end.nmi_blocked && !end.nmi_pending);
}

#[test]
fn breakpoints_stop_before_code_and_after_data() {
    let (mut m, mut s) = long(|a| {
        a.mov(dword_ptr(0x20_0008), eax)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.nop()?;
        a.hlt()
    });
    let after_store = FREE + 9;
    s.gpr[reg::RSI] = 0x20_0010;
    // DR0: write of 4 bytes; then DR1: execution.
    s.dr[0] = 0x20_0008;
    s.dr7 = 0x400 | 1 | 0xd << 16;
    let (end, halt) = m.run(&s, 100);
    let [rip, ..] = expect_vector(&m, &end, &halt, vector::DB);
    assert_eq!((rip, end.dr6 & 0xf), (after_store, 1));
    s.dr7 = 0x400 | 4;
    s.dr[1] = rip;
    let (end, halt) = m.run(&s, 100);
    let [at, _, flags] = expect_vector(&m, &end, &halt, vector::DB);
    assert_eq!((at, end.dr6 & 0xf), (rip, 2));
    assert_eq!(flags & rflags::RF, 0, "the handler's task (SDM volume 3, 18.3.1.1)");
    let (end, halt) = m.run(&CpuState { rip, rflags: s.rflags | rflags::RF, ..s.clone() }, 100);
    assert!(matches!(halt, Halt::Idle));
    assert_eq!(end.rip, rip + 2 + 1 + 1);
}

#[test]
fn device_memory_is_reached_in_natural_pieces_and_rom_writes_go_to_the_bus() {
    let (mut m, s) = long(|a| {
        a.mov(esi, 0x4000_0000)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rbx, qword_ptr(rsi + 5))?;
        a.mov(dword_ptr(rsi + 2), ebx)?;
        a.mov(ecx, dword_ptr(rsi + 0xffe))?;
        a.hlt()
    });
    let (end, _) = m.run(&s, 100);
    assert_eq!(end.gpr[reg::RAX], 0x0706_0504_0302_0100);
    assert_eq!(end.gpr[reg::RBX], 0x0c0b_0a09_0807_0605);
    assert_eq!(end.gpr[reg::RCX], 0x0100_fffe);
    let b = 0x4000_0000;
    let expected = [
        ('r', b, 8, 0),
        ('r', b + 5, 1, 0),
        ('r', b + 6, 2, 0),
        ('r', b + 8, 4, 0),
        ('r', b + 12, 1, 0),
        ('w', b + 2, 2, 0x0605),
        ('w', b + 4, 2, 0x0807),
        ('r', b + 0xffe, 2, 0),
        ('r', b + 0x1000, 2, 0),
    ];
    assert_eq!(m.bus.log.lock().unwrap()[..], expected);
}

#[test]
fn device_memory_executes_also_from_the_middle_of_an_instruction() {
    // Reads of device memory give the address's low byte. MOV EAX, imm32 has its
    // last two bytes there.
    let mut m = Machine::new(16 << 20, "x86-64-v2");
    let mut s = m.long_mode();
    m.write((16 << 20) - 3, &[0xb8, 0x55, 0x66]);
    s.rip = (16 << 20) - 3;
    let (end, halt) = m.run(&s, 1);
    assert!(matches!(halt, Halt::Limit));
    assert_eq!((end.gpr[reg::RAX], end.rip), (0x0100_6655, (16 << 20) + 2));
    let (end, halt) = m.run(&CpuState { gpr: [FREE; 16], ..end }, 1);
    assert!(matches!(halt, Halt::Limit));
    // 02 03: ADD AL, [RBX].
    assert_eq!(end.rip, (16 << 20) + 4);
}

#[test]
fn rom_executes_and_its_writes_go_to_the_bus() {
    let map = MemoryMap::new([Region::ram(0, 1 << 20), Region::rom(0xffff_0000, 0x1_0000)]).unwrap();
    let mut m = Machine::with_memory(GuestMemory::new(map).unwrap(), "x86-64-v2", 1);
    // At the reset vector: MOV [0xfff0 (in CS)], AL; HLT.
    m.memory.store(0xffff_fff0, &[0x2e, 0xa2, 0xf0, 0xff, 0xf4]).unwrap();
    let s = CpuState::reset(true, 0x1234);
    let (end, halt) = m.run(&s, 10);
    assert!(matches!(halt, Halt::Idle), "{halt:?}");
    assert_eq!(end.rip, 0xfff5);
    assert_eq!(m.bus.log.lock().unwrap()[..], [('w', 0xffff_fff0, 1, 0)]);
}

#[test]
fn translations_live_until_they_are_invalidated() {
    let (mut m, s) = long(|a| {
        a.mov(rax, qword_ptr(0x60_0000))?;
        // Redirect the 2 MiB page at 6 MiB to the one at 8 MiB.
        a.mov(rbx, 0x80_0087_u64)?;
        a.mov(qword_ptr(0x3018), rbx)?;
        a.mov(rcx, qword_ptr(0x60_0000))?;
        a.invlpg(byte_ptr(0x60_1000))?;
        a.mov(rdx, qword_ptr(0x60_0000))?;
        a.mov(rbx, 0x60_0087_u64)?;
        a.mov(qword_ptr(0x3018), rbx)?;
        a.mov(rsi, cr3)?;
        a.mov(cr3, rsi)?;
        a.mov(rdi, qword_ptr(0x60_0000))?;
        a.hlt()
    });
    m.write(0x60_0000, &[1]);
    m.write(0x80_0000, &[2]);
    let (end, _) = m.run(&s, 100);
    let got = [reg::RAX, reg::RCX, reg::RDX, reg::RDI].map(|r| end.gpr[r]);
    assert_eq!(got, [1, 1, 2, 1], "first, cached, after INVLPG in the page, after MOV CR3");
}

#[test]
fn segment_limits_hold_in_protected_mode() {
    let mut m = Machine::new(16 << 20, "x86-64-v2");
    let base = m.protected_mode();
    let code = assemble(32, FREE, |a| {
        a.mov(eax, dword_ptr(ebx))?;
        a.mov(dword_ptr(ebx), eax)?;
        a.hlt()
    });
    m.write(FREE, &code);
    let handled = |v: u8| HANDLERS + u64::from(v) + 1;
    let done = FREE + code.len() as u64;
    for (access, limit, offset, rip) in [
        (0xc093, 0xffff_ffff, 0xffc, done),
        (0x4093, 0xfff, 0xffc, done),
        (0x4093, 0xfff, 0xffd, handled(vector::GP)),
        (0x4093, 0xfff, 0xffff_ffff, handled(vector::GP)),
        // Expand-down: valid above the limit.
        (0x4097, 0xfff, 0x1000, done),
        (0x4097, 0xfff, 0xffc, handled(vector::GP)),
        // Read-only, execute-only.
        (0xc091, 0xffff_ffff, 0x1000, handled(vector::GP)),
        (0xc099, 0xffff_ffff, 0x1000, handled(vector::GP)),
        (0x1_0000, 0, 0, handled(vector::GP)),
    ] {
        let mut s = base.clone();
        s.rip = FREE;
        s.segments[3].access = access;
        s.segments[3].limit = limit;
        s.gpr[reg::RBX] = offset;
        let (end, _) = m.run(&s, 100);
        assert_eq!(end.rip, rip, "access {access:#x}, limit {limit:#x}, offset {offset:#x}");
    }
}

#[test]
fn a_branch_out_of_the_canonical_range_faults_itself() {
    let top = 0x7fff_ffff_fff0;
    for code in [&[0xeb, 0x20][..], &[0xe8, 0x20, 0, 0, 0], &[0x74, 0x20], &[0xff, 0xe3], &[0xff, 0xd3]] {
        let (mut m, mut s) = long(|a| a.hlt());
        // The last 2 MiB of the lower half are the page at 2 MiB.
        for (at, entry) in
            [(0x1000 + 8 * 255, 0x2007), (0x2000 + 8 * 511, 0x4007), (0x4000 + 8 * 511, 0x20_0087)]
        {
            m.memory.write::<u64>(RamOffset(at), entry);
        }
        m.write(0x3f_fff0, code);
        s.rip = top;
        s.rflags |= rflags::ZF;
        s.gpr[reg::RBX] = 1 << 47;
        let (end, halt) = m.run(&s, 10);
        let [error, rip, _] = expect_vector(&m, &end, &halt, vector::GP);
        assert_eq!((error, rip), (0, top), "{code:02x?}");
    }
}

#[test]
fn addresses_wrap_at_4_gib_in_a_segment_with_a_base() {
    let mut m = Machine::new(16 << 20, "x86-64-v2");
    let mut s = m.protected_mode();
    s.segments[5].base = 0x20_1000;
    let code = assemble(32, FREE, |a| {
        a.mov(eax, dword_ptr(ebx).gs())?;
        a.mov(ecx, dword_ptr(ebx + 0x18).gs())?;
        a.mov(dword_ptr(edx).gs(), eax)?;
        a.hlt()
    });
    m.write(FREE, &code);
    m.write(0x20_0ff0, &[1]);
    m.write(0x20_1008, &[2]);
    s.rip = FREE;
    s.gpr[reg::RBX] = 0xffff_fff0;
    s.gpr[reg::RDX] = 0x10;
    let (end, halt) = m.run(&s, 100);
    assert!(matches!(halt, Halt::Idle));
    assert_eq!((end.gpr[reg::RAX], end.gpr[reg::RCX], end.rip), (1, 2, FREE + code.len() as u64));
    assert_eq!(m.memory.read::<u32>(RamOffset(0x20_1010)), 1);
}

#[test]
fn real_mode_wraps_and_faults_at_64_kib() {
    let mut m = Machine::new(16 << 20, "x86-64-v2");
    let mut s = m.real_mode();
    let code = assemble(16, 0x7c00, |a| {
        a.mov(ax, 0x1234)?;
        a.mov(ds, ax)?;
        a.mov(byte_ptr(bx), 7)?;
        a.push(ax)?;
        a.pop(cx)?;
        a.mov(si, 0xffff)?;
        a.mov(ax, word_ptr(si))?;
        a.hlt()
    });
    m.write(0x7c00, &code);
    s.rip = 0x7c00;
    s.gpr[reg::RBX] = 0xabcd_0010;
    s.gpr[reg::RSP] = 0x5555_0000;
    let (end, _) = m.run(&s, 100);
    assert_eq!(m.memory.read::<u8>(RamOffset(0x12350)), 7);
    assert_eq!(end.gpr[reg::RCX], 0x1234);
    // The word at offset 0xffff crosses the limit: #GP, three words on the stack.
    assert_eq!(end.rip & 0xffff, (HANDLERS + 13 + 1) & 0xffff);
    assert_eq!(end.gpr[reg::RSP], 0x5555_fffa, "SP wraps within 16 bits");
}

#[test]
fn locked_additions_of_two_processors_lose_nothing() {
    let memory = GuestMemory::flat(16 << 20).unwrap();
    const ROUNDS: u32 = 100_000;
    std::thread::scope(|scope| {
        for n in 0..2u64 {
            let memory = memory.clone();
            scope.spawn(move || {
                let mut m = Machine::with_memory(memory, "x86-64-v3", 2);
                let mut s = m.long_mode();
                let at = FREE + n * 0x1000;
                let code = assemble(64, at, |a| {
                    let mut top = a.create_label();
                    a.mov(ecx, ROUNDS)?;
                    a.set_label(&mut top)?;
                    a.lock().inc(dword_ptr(0x20_0000))?;
                    a.mov(eax, 1)?;
                    a.lock().xadd(dword_ptr(0x20_0004), eax)?;
                    a.dec(ecx)?;
                    a.jnz(top)?;
                    a.hlt()
                });
                m.write(at, &code);
                s.rip = at;
                let (_, halt) = m.run(&s, u64::MAX);
                assert!(matches!(halt, Halt::Idle), "{halt:?}");
            });
        }
    });
    assert_eq!(memory.read::<u64>(RamOffset(0x20_0000)), u64::from(2 * ROUNDS) << 32 | u64::from(2 * ROUNDS));
}

#[test]
fn virtual_time_is_the_number_of_instructions() {
    let (mut m, s) = long(|a| {
        a.rdtsc()?;
        a.mov(esi, eax)?;
        a.nop()?;
        a.nop()?;
        a.rdtsc()?;
        a.sub(eax, esi)?;
        a.hlt()
    });
    let (end, _) = m.run(&s, 100);
    assert_eq!(end.gpr[reg::RAX], 4);
}

#[test]
fn a_refused_state_changes_nothing() {
    let (mut m, s) = long(|a| a.hlt());
    m.vcpu.set_state(&s).unwrap();
    let mut bad = s.clone();
    bad.cr0 &= !x86_state::cr0::PE;
    bad.rip = 0;
    let error = m.vcpu.set_state(&bad).unwrap_err().to_string();
    assert!(error.contains("PG without PE"), "{error}");
    assert_eq!(m.vcpu.state().unwrap(), s);
}

/// In 64-bit code prefixes of CS, DS, ES and SS do nothing: which base an address has tells
/// whether a violation is #SS.
#[test]
fn ignored_prefixes_do_not_choose_the_fault() {
    let (general, stack) = (vector::GP, vector::SS);
    // (MOV RAX, [RAX] or [RBP] behind a prefix, expected)
    let table: [(&[u8], u8); 6] = [
        (&[0x48, 0x8b, 0x00], general),
        (&[0x36, 0x48, 0x8b, 0x00], general),
        (&[0x48, 0x8b, 0x45, 0x00], stack),
        (&[0x2e, 0x48, 0x8b, 0x45, 0x00], stack),
        (&[0x3e, 0x48, 0x8b, 0x45, 0x00], stack),
        (&[0x64, 0x48, 0x8b, 0x45, 0x00], general),
    ];
    for (code, expected) in table {
        let (mut m, mut s) = long(|a| a.nop());
        m.write(FREE, code);
        (s.gpr[reg::RAX], s.gpr[reg::RBP]) = (1 << 63, 1 << 63);
        let (after, halt) = m.run(&s, 100);
        expect_vector(&m, &after, &halt, expected);
    }
}

/// An instruction that cannot be fetched may be one that needs registers which are elsewhere.
#[test]
fn a_step_without_registers_leaves_what_may_need_them() {
    let step = |m: &mut Machine, s: &CpuState| {
        m.vcpu.set_state(s).unwrap();
        let end = m.vcpu.step(true);
        (end, m.vcpu.state().unwrap().rip)
    };
    let (mut m, s) = long(|a| a.movups(xmm0, xmmword_ptr(rsi)));
    let (end, rip) = step(&mut m, &s);
    assert!(matches!(end, StepEnd::NeedsFpu), "{end:?}");
    assert_eq!(rip, FREE);
    let (mut m, s) = long(|a| a.inc(rax));
    let (end, rip) = step(&mut m, &s);
    assert!(matches!(end, StepEnd::Done), "{end:?}");
    assert_eq!(rip, FREE + 3);
    let (mut m, mut s) = long(|a| a.nop());
    unmap(&m, 0x40_0000, None);
    s.rip = 0x40_0000;
    let (end, rip) = step(&mut m, &s);
    assert!(matches!(end, StepEnd::NeedsFpu), "{end:?}");
    assert_eq!(rip, 0x40_0000, "the fault is not delivered yet");
    assert!(matches!(m.vcpu.step(false), StepEnd::Done));
    assert_eq!(m.vcpu.state().unwrap().rip, HANDLERS + u64::from(vector::PF));
}

/// What a port gave would be lost with the fault of its store.
#[test]
fn a_port_is_not_read_for_a_misaligned_store() {
    for (offset, reads) in [(2, 0), (4, 1)] {
        let (mut m, mut s) = long(|a| a.insd());
        s.cr0 |= cr0::AM;
        s.rflags |= rflags::AC | rflags::IOPL;
        s.segments[1].access |= 0x60;
        s.segments[2].access |= 0x60;
        s.gpr[reg::RDI] = FREE + 0x1000 + offset;
        m.run(&s, 1);
        assert_eq!(m.bus.log.lock().unwrap().len(), reads, "at {offset}");
    }
}
