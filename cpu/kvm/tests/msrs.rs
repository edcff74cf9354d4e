//! What guests can do to MSRs, and what the machine sees of it.

mod rig;

use rig::{Did, Rig, real_mode};
use x86_state::msr_index;

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
