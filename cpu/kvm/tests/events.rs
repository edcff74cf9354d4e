//! What wakes a vCPU in KVM, and in which order its doings reach the machine.

mod rig;

use engine::{Halt, attention_bits};
use rig::{CODE, Did, Rig, long_mode, real_mode};
use x86_state::{Activity, CpuState};

const HANDLER: u64 = 0x9000;
/// `out 0x80, al; cli; hlt`
const TELL: &[u8] = &[0xe6, 0x80, 0xfa, 0xf4];

/// In real mode, [`CODE`] tells of itself by AL, which is 0, and an NMI's handler by 1.
fn rig() -> Option<Rig> {
    let rig = Rig::new()?;
    rig.memory.store(CODE, TELL).unwrap();
    rig.memory.store(8, &(HANDLER as u32).to_le_bytes()).unwrap();
    // `mov al, 1`
    rig.memory.store(HANDLER, &[0xb0, 1]).unwrap();
    rig.memory.store(HANDLER + 2, TELL).unwrap();
    Some(rig)
}

const NMI: Did = Did::Port(0x80, 1);

#[test]
fn an_nmi_ends_a_halt_unless_nmis_are_blocked() {
    let Some(mut rig) = rig() else { return };
    let halted = CpuState { activity: Activity::Halted, ..real_mode() };
    let blocked = CpuState { nmi_blocked: true, ..halted.clone() };
    let pending = |s: &CpuState| CpuState { nmi_pending: true, ..s.clone() };
    for (name, state, arrives, done) in [
        ("nothing", halted.clone(), false, &[][..]),
        ("one arrives", halted.clone(), true, &[NMI]),
        ("one is in the state", pending(&halted), false, &[NMI]),
        ("one arrives while blocked", blocked.clone(), true, &[]),
        ("one is in the state while blocked", pending(&blocked), false, &[]),
    ] {
        rig.attention.clear(u32::MAX);
        rig.vcpu.set_state(&state).unwrap();
        if arrives {
            rig.attention.nmi();
        }
        let halt = rig.vcpu.run(u64::MAX);
        assert!(matches!(halt, Halt::Idle), "{name}: {halt:?}");
        assert_eq!(rig.done(), done, "{name}");
        let after = rig.vcpu.state().unwrap();
        let waits = arrives || state.nmi_pending;
        assert_eq!(after.nmi_pending, waits && done.is_empty(), "{name}: an NMI is delivered or waits");
        assert_eq!(after.activity, Activity::Halted, "{name}");
    }
}

#[test]
fn an_nmi_that_waits_outside_is_part_of_the_state() {
    let Some(mut rig) = rig() else { return };
    rig.vcpu.set_state(&real_mode()).unwrap();
    assert!(!rig.vcpu.state().unwrap().nmi_pending);
    rig.attention.nmi();
    let state = rig.vcpu.state().unwrap();
    assert!(state.nmi_pending);
    // The state is carried to another engine, or back: there is one still.
    rig.vcpu.set_state(&state).unwrap();
    assert_eq!(rig.attention.bits() & attention_bits::NMI, 0, "KVM has it");
    assert!(matches!(rig.vcpu.run(u64::MAX), Halt::Idle));
    assert_eq!(rig.done(), [NMI]);
}

#[test]
fn the_task_priority_arrives_before_the_access_behind_it() {
    let Some(mut rig) = rig() else { return };
    let state = CpuState { cr8: 5, ..long_mode() };
    #[rustfmt::skip]
    let code = [
        0xb8, 3, 0, 0, 0, // mov eax, 3
        0x44, 0x0f, 0x22, 0xc0, // mov cr8, rax
        0x89, 0x04, 0x25, 0, 0, 0x18, 0, // mov [0x180000], eax
        0xb0, 7, // mov al, 7
        0x44, 0x0f, 0x22, 0xc0, // mov cr8, rax
        0xe6, 0x80, // out 0x80, al
        0xf4, // hlt
    ];
    let done = rig.run(&state, &code);
    let want = [Did::TaskPriority(3), Did::Store(0x18_0000, 3), Did::TaskPriority(7), Did::Port(0x80, 7)];
    assert_eq!(done, want);
}
