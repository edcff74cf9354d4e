//! One table of guest programs, run on every engine: each must see the same.

mod support;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_state::{CpuModel, Topology, reg};

use demo::layout::{self, address};
use demo::machine::{MachineError, SCRATCH, port};
use support::{EXIT_OK, Mode, Program, check, exit, value, wait_for_count};

/// Interrupt and exception handlers count here.
const COUNTER: u64 = address::DATA;
const TOPOLOGY: Topology = Topology { apic_id: 0, cpus: 1 };

fn model() -> CpuModel {
    CpuModel::default_model()
}

#[test]
fn real_mode_arithmetic_and_ports() {
    check(&Program {
        name: "real mode",
        mode: Mode::Real,
        code: |a| {
            a.mov(cx, 10)?;
            a.xor(ebx, ebx)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.movzx(eax, cx)?;
            a.add(ebx, eax)?;
            a.loop_(again)?;
            value(a, ebx)?;
            // A string of bytes to the serial port.
            a.mov(si, 0x6000)?;
            a.mov(word_ptr(si), 0x6968)?;
            a.mov(cx, 2)?;
            a.mov(dx, u32::from(port::SERIAL))?;
            a.rep().outsb()?;
            exit(a)
        },
        values: &[55],
        said: "hi",
        ..Program::EMPTY
    });
}

#[test]
fn real_mode_interrupt_handler_and_return() {
    check(&Program {
        name: "real-mode interrupt",
        mode: Mode::Real,
        code: |a| {
            let (mut handler, mut start) = (a.create_label(), a.create_label());
            a.jmp(start)?;
            a.set_label(&mut handler)?;
            a.inc(dword_ptr(0x6000))?;
            // End of interrupt by the x2APIC's MSR is not there in xAPIC mode: the observer's
            // interrupts stay in service, so each test takes one only.
            a.iret()?;
            a.set_label(&mut start)?;
            a.mov(dword_ptr(0x6000), 0)?;
            a.mov(word_ptr(0x30 * 4), address::REAL_CODE as u32 + 2)?;
            a.mov(word_ptr(0x30 * 4 + 2), 0)?;
            a.mov(eax, 0x30)?;
            a.mov(dx, u32::from(port::INTERRUPT))?;
            a.out(dx, eax)?;
            a.sti()?;
            wait_for_count(a, 0x6000, 1)?;
            a.movzx(ebx, word_ptr(0x6000))?;
            value(a, ebx)?;
            exit(a)
        },
        values: &[1],
        ..Program::EMPTY
    });
}

#[test]
fn protected_mode_reaches_device_memory() {
    check(&Program {
        name: "protected mode",
        mode: Mode::Protected,
        code: |a| {
            a.mov(esi, SCRATCH as u32)?;
            a.mov(dword_ptr(esi), 0x1234_5678)?;
            a.mov(word_ptr(esi + 4), 0x9abc)?;
            a.add(dword_ptr(esi), 1)?;
            a.mov(ebx, dword_ptr(esi))?;
            value(a, ebx)?;
            // Crosses the middle of the register: two aligned pieces at least.
            a.mov(ebx, dword_ptr(esi + 2))?;
            value(a, ebx)?;
            a.push(ebx)?;
            a.pop(ecx)?;
            a.movzx(ebx, cx)?;
            value(a, ebx)?;
            exit(a)
        },
        values: &[0x1234_5679, 0x9abc_1234, 0x1234],
        ..Program::EMPTY
    });
}

#[test]
fn long_mode_reaches_device_memory_with_eight_bytes() {
    check(&Program {
        name: "long mode",
        mode: Mode::Long,
        code: |a| {
            a.mov(rsi, SCRATCH)?;
            a.mov(rax, 0x1122_3344_5566_7788u64)?;
            a.mov(qword_ptr(rsi), rax)?;
            a.mov(r8, qword_ptr(rsi))?;
            a.rol(r8, 8)?;
            a.mov(ebx, r8d)?;
            value(a, ebx)?;
            a.shr(r8, 32)?;
            a.mov(ebx, r8d)?;
            value(a, ebx)?;
            exit(a)
        },
        values: &[0x6677_8811, 0x2233_4455],
        ..Program::EMPTY
    });
}

#[test]
fn ring_3_computes_and_reaches_ports() {
    check(&Program {
        name: "ring 3",
        mode: Mode::User,
        code: |a| {
            a.mov(ecx, 100_000)?;
            a.xor(ebx, ebx)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.add(ebx, ecx)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            value(a, ebx)?;
            a.mov(ebx, cs)?;
            value(a, ebx)?;
            exit(a)
        },
        values: &[(100_000u64 * 100_001 / 2) as u32, 0x33],
        ..Program::EMPTY
    });
}

/// Count, acknowledge, return.
fn count_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.inc(dword_ptr(COUNTER))?;
    a.mov(eax, 0xfee0_00b0u32)?;
    a.mov(dword_ptr(rax), 0)?;
    a.pop(rax)?;
    a.iretq()
}

#[test]
fn interrupts_are_delivered_and_returned_from() {
    check(&Program {
        name: "interrupts",
        mode: Mode::Long,
        code: |a| {
            a.mov(dword_ptr(COUNTER), 0)?;
            a.mov(edx, u32::from(port::INTERRUPT))?;
            a.mov(eax, 0x41)?;
            a.out(dx, eax)?;
            a.mov(eax, 0x52)?;
            a.out(dx, eax)?;
            a.mov(ebx, dword_ptr(COUNTER))?;
            value(a, ebx)?;
            a.sti()?;
            wait_for_count(a, COUNTER, 2)?;
            a.mov(ebx, dword_ptr(COUNTER))?;
            value(a, ebx)?;
            exit(a)
        },
        handlers: &[(0x41, count_interrupt), (0x52, count_interrupt)],
        values: &[0, 2],
        ..Program::EMPTY
    });
}

#[test]
fn task_priority_holds_interrupts_back() {
    check(&Program {
        name: "task priority",
        mode: Mode::Long,
        code: |a| {
            a.mov(dword_ptr(COUNTER), 0)?;
            a.mov(eax, 5)?;
            a.mov(cr8, rax)?;
            a.mov(edx, u32::from(port::INTERRUPT))?;
            a.mov(eax, 0x41)?;
            a.out(dx, eax)?;
            a.sti()?;
            a.nop()?;
            a.nop()?;
            a.mov(ebx, dword_ptr(COUNTER))?;
            value(a, ebx)?;
            a.mov(rbx, cr8)?;
            value(a, ebx)?;
            a.xor(eax, eax)?;
            a.mov(cr8, rax)?;
            wait_for_count(a, COUNTER, 1)?;
            a.mov(ebx, dword_ptr(COUNTER))?;
            value(a, ebx)?;
            exit(a)
        },
        handlers: &[(0x41, count_interrupt)],
        values: &[0, 5, 1],
        not_interpreted: &["kvm alone", "kvm"],
        ..Program::EMPTY
    });
}

#[test]
fn a_halted_processor_wakes_for_its_timer() {
    check(&Program {
        name: "halt and timer",
        mode: Mode::Long,
        code: |a| {
            a.mov(dword_ptr(COUNTER), 0)?;
            a.mov(esi, 0xfee0_0000u32)?;
            a.mov(dword_ptr(rsi + 0x3e0), 0xb)?;
            a.mov(dword_ptr(rsi + 0x320), 0x41)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(dword_ptr(rsi + 0x380), 500_000)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.cmp(dword_ptr(COUNTER), 3)?;
            a.jb(again)?;
            a.mov(ebx, dword_ptr(COUNTER))?;
            value(a, ebx)?;
            exit(a)
        },
        handlers: &[(0x41, count_interrupt)],
        values: &[3],
        ..Program::EMPTY
    });
}

/// Report the error code and CR2, skip the two-byte instruction at fault.
fn report_fault(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pop(rbx)?;
    value(a, ebx)?;
    a.mov(rbx, cr2)?;
    value(a, ebx)?;
    a.add(qword_ptr(rsp), 2)?;
    a.iretq()
}

/// Report a one, skip the two-byte instruction at fault.
fn report_trap(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ebx, 1)?;
    value(a, ebx)?;
    a.add(qword_ptr(rsp), 2)?;
    a.iretq()
}

/// Report where it returns to.
fn report_return(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbx, qword_ptr(rsp))?;
    value(a, ebx)?;
    a.iretq()
}

/// Report the error code, skip the two-byte instruction at fault.
fn report_protection(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pop(rbx)?;
    a.or(ebx, 0xd0_0000)?;
    value(a, ebx)?;
    a.add(qword_ptr(rsp), 2)?;
    a.iretq()
}

#[test]
fn exceptions_carry_their_error_codes() {
    check(&Program {
        name: "exceptions",
        mode: Mode::Long,
        code: |a| {
            // Nothing is mapped between 1 and 3 GiB.
            a.mov(esi, 0x4000_1000u32)?;
            a.mov(dword_ptr(rsi), ecx)?;
            a.mov(ecx, dword_ptr(rsi))?;
            // #DE.
            a.xor(ecx, ecx)?;
            a.mov(eax, 1)?;
            a.xor(edx, edx)?;
            a.div(ecx)?;
            a.ud2()?;
            // A selector beyond the GDT: #GP with it.
            a.mov(eax, 0x1230)?;
            a.mov(ds, eax)?;
            exit(a)
        },
        handlers: &[(14, report_fault), (0, report_trap), (6, report_trap), (13, report_protection)],
        values: &[2, 0x4000_1000, 0, 0x4000_1000, 1, 1, 0xd0_1230],
        ..Program::EMPTY
    });
}

#[test]
fn msrs_keep_their_values_and_unknown_ones_fault() {
    check(&Program {
        name: "MSRs",
        mode: Mode::Long,
        code: |a| {
            // STAR, LSTAR, KERNEL_GS_BASE, SYSENTER_EIP, PAT, MTRR_DEF_TYPE.
            for index in [0xc000_0081u32, 0xc000_0082, 0xc000_0102, 0x176, 0x2ff] {
                a.mov(ecx, index)?;
                a.mov(eax, 0xc06)?;
                a.xor(edx, edx)?;
                a.wrmsr()?;
                a.xor(eax, eax)?;
                a.rdmsr()?;
                a.mov(ebx, eax)?;
                value(a, ebx)?;
            }
            // The local APIC's base.
            a.mov(ecx, 0x1b)?;
            a.rdmsr()?;
            a.mov(ebx, eax)?;
            value(a, ebx)?;
            a.mov(ecx, 0x1234_5678)?;
            a.rdmsr()?;
            exit(a)
        },
        handlers: &[(13, report_protection)],
        values: &[0xc06, 0xc06, 0xc06, 0xc06, 0xc06, 0xfee0_0900, 0xd0_0000],
        ..Program::EMPTY
    });
}

#[test]
fn user_code_takes_exceptions_and_interrupts() {
    check(&Program {
        name: "events in ring 3",
        mode: Mode::User,
        code: |a| {
            // INT3 and INT n return behind themselves, faults to themselves.
            a.int3()?;
            a.int(0x80)?;
            a.mov(esi, 0x4000_1000u32)?;
            a.mov(dword_ptr(rsi), ecx)?;
            a.ud2()?;
            a.mov(dword_ptr(COUNTER), 0)?;
            a.mov(edx, u32::from(port::INTERRUPT))?;
            a.mov(eax, 0x41)?;
            a.out(dx, eax)?;
            let (mut again, mut done) = (a.create_label(), a.create_label());
            a.mov(ecx, 100_000_000)?;
            a.set_label(&mut again)?;
            a.cmp(dword_ptr(COUNTER), 1)?;
            a.jae(done)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.set_label(&mut done)?;
            a.mov(ebx, dword_ptr(COUNTER))?;
            value(a, ebx)?;
            exit(a)
        },
        handlers: &[
            (3, report_return),
            (0x80, report_return),
            (14, report_fault),
            (6, report_trap),
            (0x41, count_interrupt),
        ],
        values: &[(address::USER_CODE + 1) as u32, (address::USER_CODE + 3) as u32, 6, 0x4000_1000, 1, 1],
        not_interpreted: &["kvm alone", "kvm"],
        ..Program::EMPTY
    });
}

#[test]
fn x2apic_registers_are_msrs_of_the_platform() {
    check(&Program {
        name: "x2APIC",
        mode: Mode::Long,
        code: |a| {
            a.mov(ecx, 0x1b)?;
            a.rdmsr()?;
            a.or(eax, 0xc00)?;
            a.wrmsr()?;
            // The task priority, then a reserved register, then one that cannot be written.
            a.mov(ecx, 0x808)?;
            a.mov(eax, 0x30)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            a.xor(eax, eax)?;
            a.rdmsr()?;
            a.mov(ebx, eax)?;
            value(a, ebx)?;
            a.mov(rbx, cr8)?;
            value(a, ebx)?;
            a.mov(ecx, 0x801)?;
            a.rdmsr()?;
            a.mov(ecx, 0x803)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            exit(a)
        },
        handlers: &[(13, report_protection)],
        values: &[0x30, 3, 0xd0_0000, 0xd0_0000],
        ..Program::EMPTY
    });
}

#[test]
fn a_limit_counts_instructions() {
    for engine in support::engines() {
        let machine = support::machine(&engine, model());
        layout::write_tables(machine.memory()).unwrap();
        machine.memory().store(address::PROTECTED_CODE, &[0x90; 64]).unwrap();
        let made = (engine.make)(machine.memory(), machine.model(), machine.clock()).unwrap();
        let mut vcpu = machine.vcpu(&*made).unwrap();
        vcpu.set_state(&layout::protected_mode()).unwrap();
        let mut at = address::PROTECTED_CODE;
        for limit in [0, 1, 7, 20] {
            let halt = vcpu.run(limit);
            at += limit;
            assert!(matches!(halt, engine::Halt::Limit), "{}: {halt:?}", engine.name);
            assert_eq!(vcpu.state().unwrap().rip, at, "{} after {limit} more", engine.name);
        }
    }
}

/// Leaves and subleaves whose results depend on the model alone.
const LEAVES: [(u32, u32); 16] = [
    (0, 0),
    (1, 0),
    (4, 0),
    (4, 2),
    (6, 0),
    (7, 0),
    (0xb, 0),
    (0xb, 1),
    (0xd, 0),
    (0xd, 1),
    (0x15, 0),
    (0x4000_0000, 0),
    (0x4000_0001, 0),
    (0x8000_0001, 0),
    (0x8000_0002, 0),
    (0x8000_0008, 0),
];

#[test]
fn cpuid_is_the_models() {
    let want: Vec<u32> = LEAVES
        .iter()
        .flat_map(|&(leaf, sub)| {
            let r = support::host_model(model()).cpuid(leaf, sub, TOPOLOGY, false, 1);
            [r.eax, r.ebx, r.ecx, r.edx]
        })
        .collect();
    check(&Program {
        name: "CPUID",
        mode: Mode::Long,
        code: |a| {
            for (leaf, sub) in LEAVES {
                a.mov(eax, leaf)?;
                a.mov(ecx, sub)?;
                a.cpuid()?;
                a.mov(esi, ebx)?;
                a.mov(edi, ecx)?;
                a.mov(ebp, edx)?;
                for r in [eax, esi, edi, ebp] {
                    value(a, r)?;
                }
            }
            exit(a)
        },
        values: &want,
        not_interpreted: &["kvm alone", "kvm"],
        ..Program::EMPTY
    });
}

#[test]
fn vector_and_x87_registers_work() {
    check(&Program {
        name: "SSE2 and x87",
        mode: Mode::Long,
        code: |a| {
            a.mov(eax, 3)?;
            a.cvtsi2sd(xmm9, eax)?;
            a.mulsd(xmm9, xmm9)?;
            a.cvttsd2si(ebx, xmm9)?;
            value(a, ebx)?;
            a.mov(rsi, address::DATA)?;
            a.fninit()?;
            a.mov(dword_ptr(rsi), 16)?;
            a.fild(dword_ptr(rsi))?;
            a.fsqrt()?;
            a.fistp(dword_ptr(rsi))?;
            a.mov(ebx, dword_ptr(rsi))?;
            value(a, ebx)?;
            exit(a)
        },
        values: &[9, 4],
        ..Program::EMPTY
    });
}

#[test]
fn the_assistant_completes_what_kvm_cannot() {
    let engines = support::engines();
    let Some(kvm) = engines.iter().find(|e| e.name == "kvm") else { return };
    let machine = support::machine(kvm, model());
    layout::write_tables(machine.memory()).unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.xor(ebx, ebx).unwrap();
    a.mov(ecx, 100).unwrap();
    a.set_label(&mut again).unwrap();
    a.popcnt(eax, ecx).unwrap();
    a.cvtsi2sd(xmm0, eax).unwrap();
    a.cvttsd2si(eax, xmm0).unwrap();
    a.add(ebx, eax).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(again).unwrap();
    value(&mut a, ebx).unwrap();
    exit(&mut a).unwrap();
    machine.memory().store(address::CODE, &a.assemble(address::CODE).unwrap()).unwrap();
    let made = (kvm.make)(machine.memory(), machine.model(), machine.clock()).unwrap();
    let mut vcpu = machine.vcpu(&*made).unwrap();
    vcpu.set_state(&layout::long_mode(0)).unwrap();
    machine.run(&mut *vcpu, support::PATIENCE).unwrap();
    let bits: u32 = (1..=100u32).map(u32::count_ones).sum();
    assert_eq!(machine.notes().values, [bits]);
    let counters = vcpu.counters();
    let count = |name: &str| counters.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v);
    if kvm::probe().ring0_native {
        assert_eq!(count("kvm_assists"), 0, "a processor executes all of it");
    } else {
        // Failures come thick here, so bursts grow: far fewer hand-overs than the 300 failures.
        assert!((1..100).contains(&count("kvm_assists")), "{counters:?}");
    }
}

#[test]
fn system_calls_go_to_ring_0_and_back() {
    check(&Program {
        name: "SYSCALL and SYSRET",
        mode: Mode::Long,
        code: |a| {
            let (mut handler, mut start) = (a.create_label(), a.create_label());
            a.jmp(start)?;
            a.set_label(&mut handler)?;
            a.mov(ebx, cs)?;
            value(a, ebx)?;
            a.sysretq()?;
            a.set_label(&mut start)?;
            a.mov(ecx, 0xc000_0081u32)?;
            a.xor(eax, eax)?;
            a.mov(edx, 0x23_0010)?;
            a.wrmsr()?;
            a.lea(rax, ptr(handler))?;
            a.xor(edx, edx)?;
            a.mov(ecx, 0xc000_0082u32)?;
            a.wrmsr()?;
            let mut user = a.create_label();
            // IRETQ to ring 3.
            a.push(0x2b)?;
            a.push(address::USER_STACK as i32)?;
            a.push(0x2)?;
            a.push(0x33)?;
            a.lea(rax, ptr(user))?;
            a.push(rax)?;
            a.iretq()?;
            a.set_label(&mut user)?;
            a.mov(ebx, cs)?;
            value(a, ebx)?;
            a.syscall()?;
            a.mov(ebx, ss)?;
            value(a, ebx)?;
            exit(a)
        },
        values: &[0x33, 0x10, 0x2b],
        not_interpreted: &["kvm alone", "kvm"],
        ..Program::EMPTY
    });
}

#[test]
fn self_modified_code_is_seen() {
    check(&Program {
        name: "self-modifying code",
        mode: Mode::Long,
        code: |a| {
            let mut patched = a.create_label();
            a.mov(ecx, 3)?;
            a.lea(rsi, ptr(patched))?;
            a.set_label(&mut patched)?;
            a.mov(ebx, 7)?;
            value(a, ebx)?;
            a.add(dword_ptr(rsi + 1), 1)?;
            a.dec(ecx)?;
            a.jnz(patched)?;
            exit(a)
        },
        values: &[7, 8, 9],
        ..Program::EMPTY
    });
}

#[test]
fn a_triple_fault_ends_the_run() {
    for engine in support::engines() {
        let machine = support::machine(&engine, model());
        layout::write_tables(machine.memory()).unwrap();
        // UD2 without any gate.
        machine.memory().store(address::CODE, &[0x0f, 0x0b]).unwrap();
        let made = (engine.make)(machine.memory(), machine.model(), machine.clock()).unwrap();
        let mut vcpu = machine.vcpu(&*made).unwrap();
        vcpu.set_state(&layout::long_mode(0)).unwrap();
        let error = machine.run(&mut *vcpu, support::PATIENCE).unwrap_err();
        // AMD's processors lose their state in a shutdown.
        let lost = engine.name.starts_with("kvm") && kvm::probe().ring0_native;
        let found = matches!(error, MachineError::TripleFault(at) if at == address::CODE || lost);
        assert!(found, "{}: {error}", engine.name);
    }
}

/// Page tables that somebody else changed (another engine, between two turns)
/// are what an engine uses when it takes the state back.
#[test]
fn page_tables_changed_by_others_are_used() {
    const WINDOW: u64 = 0x60_0000;
    const LARGE_PAGE: u64 = 0x87;
    for engine in support::engines() {
        let machine = support::machine(&engine, model());
        let memory = machine.memory();
        layout::write_tables(memory).unwrap();
        memory.store(0x20_0000, &1u32.to_le_bytes()).unwrap();
        memory.store(0x40_0000, &2u32.to_le_bytes()).unwrap();
        let mut a = CodeAssembler::new(64).unwrap();
        a.mov(ebx, dword_ptr(WINDOW)).unwrap();
        value(&mut a, ebx).unwrap();
        exit(&mut a).unwrap();
        memory.store(address::USER_CODE, &a.assemble(address::USER_CODE).unwrap()).unwrap();
        let made = (engine.make)(memory, machine.model(), machine.clock()).unwrap();
        let mut vcpu = machine.vcpu(&*made).unwrap();
        for page in [0x20_0000, 0x40_0000, 0x20_0000] {
            let entry = address::LOW_DIRECTORY + (WINDOW >> 21) * 8;
            memory.store(entry, &(page | LARGE_PAGE).to_le_bytes()).unwrap();
            vcpu.set_state(&layout::long_mode(3)).unwrap();
            machine.run(&mut *vcpu, support::PATIENCE).unwrap_or_else(|e| panic!("{}: {e}", engine.name));
        }
        assert_eq!(machine.notes().values, [1, 2, 1], "{}", engine.name);
    }
}

/// A loop moves between engines many times and never notices.
#[test]
fn state_moves_between_engines_in_mid_loop() {
    let engines = support::engines();
    if engines.len() < 2 {
        eprintln!("skipped: only one engine here");
        return;
    }
    const ITERATIONS: u32 = 100_000_000;
    let machine = support::machine_for(&engines, model());
    layout::write_tables(machine.memory()).unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    support::compute_program(&mut a).unwrap();
    machine.memory().store(address::USER_CODE, &a.assemble(address::USER_CODE).unwrap()).unwrap();
    let mut state = layout::long_mode(3);
    state.gpr[reg::RCX] = u64::from(ITERATIONS);
    let mut moves = 0;
    let status = loop {
        // As a live switch does: a new vCPU, which owns the way to be interrupted.
        let engine = &engines[moves % engines.len()];
        let name = engine.name;
        let made = (engine.make)(machine.memory(), machine.model(), machine.clock()).unwrap();
        let mut vcpu = machine.vcpu(&*made).unwrap();
        vcpu.set_state(&state).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Engines that write memory behind the others' backs leave no marks.
        machine.memory().marks().forget_all_code();
        let slice = std::time::Duration::from_micros(1500);
        if let Some(status) = machine.run_until(&mut *vcpu, slice).unwrap_or_else(|e| panic!("{name}: {e}")) {
            break status;
        }
        state = vcpu.state().unwrap();
        moves += 1;
        assert!(moves < 100_000, "no progress at {:#x}", state.rip);
    };
    assert_eq!(status, EXIT_OK);
    assert_eq!(machine.notes().values, [demo::guest::compute_result(ITERATIONS)]);
    // Once round and on: hardware assist to the interpreter and back is among them.
    assert!(moves > engines.len(), "the loop was over after {moves} moves");
    eprintln!("{moves} moves between {} engines", engines.len());
}
