//! What guests can do to MSRs, and what the machine sees of it.

mod rig;

use rig::{Did, Rig, real_mode};
use x86_state::{CpuState, msr_index};

/// Where the handler of #GP is, and what it tells.
const HANDLER: u64 = 0x9000;
const FAULT: u32 = 13;

/// `wrmsr` of a value (`mov ecx; mov eax; mov edx; wrmsr`, in real mode).
fn write(index: u32, value: u64) -> Vec<u8> {
    let mut code = Vec::new();
    for (opcode, operand) in [(0xb9, index), (0xb8, value as u32), (0xba, (value >> 32) as u32)] {
        code.extend([0x66, opcode]);
        code.extend(operand.to_le_bytes());
    }
    code.extend([0x0f, 0x30]);
    code
}

fn rig() -> Option<Rig> {
    let rig = Rig::new()?;
    rig.memory.store(13 * 4, &(HANDLER as u32).to_le_bytes()).unwrap();
    // `mov al, 13; out 0x80, al; hlt`
    rig.memory.store(HANDLER, &[0xb0, FAULT as u8, 0xe6, 0x80, 0xf4]).unwrap();
    Some(rig)
}

#[test]
fn values_that_no_processor_takes_fault() {
    use msr_index as i;
    let Some(mut rig) = rig() else { return };
    let mut check = |index, value, faults| {
        let mut code = write(index, value);
        // `hlt`
        code.push(0xf4);
        let done = rig.run(&real_mode(), &code);
        let want = if faults { vec![Did::Port(0x80, FAULT)] } else { Vec::new() };
        assert_eq!(done, want, "{value:#x} to MSR {index:#x}");
    };
    for (index, good, bad) in [
        (i::LSTAR, 0xffff_8000_0000_0000, 1 << 47),
        (i::KERNEL_GS_BASE, 1 << 46, 1 << 47),
        (i::TSC_AUX, 7, 1 << 32),
        (i::MISC_ENABLE, 0x1801, 1 << 2),
        (i::DEBUGCTL, 2, 1 << 6),
        (i::MTRR_DEF_TYPE, 0xc06, 0xc02),
        (i::MTRR_PHYS_BASE0, 6, 0x106),
    ] {
        check(index, good, false);
        check(index, bad, true);
    }
}

#[test]
fn deadlines_are_the_guests_outside_and_the_clocks_inside() {
    const DEADLINE: u32 = msr_index::TSC_DEADLINE;
    let Some(mut rig) = rig() else { return };
    let clock = rig.clock.clone();
    let khz = u64::from(clock.tsc_khz());
    let offset = if kvm::host_tsc().unwrap().movable { 1 << 40 } else { 0 };
    let state = CpuState { tsc_offset: offset, ..real_mode() };
    let mut told = |value| {
        let mut code = write(DEADLINE, value);
        // `xor eax, eax; xor edx, edx; rdmsr; out 0x80, eax; mov eax, edx; out 0x80, eax; hlt`
        code.extend([0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x32, 0x66, 0xe7, 0x80]);
        code.extend([0x66, 0x89, 0xd0, 0x66, 0xe7, 0x80, 0xf4]);
        match rig.run(&state, &code)[..] {
            [Did::Msr(DEADLINE, told), Did::Port(0x80, low), Did::Port(0x80, high)] => {
                (told, u64::from(high) << 32 | u64::from(low))
            }
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(0), (0, 0), "disarmed");
    assert_eq!(told(5).0, 1, "passed");
    // In 10 s, known as exactly as the host lets the test and the engine read two counters.
    let ticks = clock.tsc() + 10_000 * khz;
    let (inside, outside) = told(ticks + offset);
    assert!(inside.abs_diff(ticks) < 100 * khz, "{ticks} became {inside}");
    assert!(outside.abs_diff(ticks + offset) < 100 * khz, "{} became {outside}", ticks + offset);
}
