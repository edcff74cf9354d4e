//! State that goes into KVM comes out equal.

mod rig;

use engine::Vcpu;
use rig::Rig;
use x86_state::{
    Activity, CpuState, Exception, F80, InterruptShadow, Segment, TableRegister, cr0, cr4, efer, rflags,
};

/// A vCPU, or `None` with a message where there is no KVM.
fn vcpu() -> Option<Box<dyn Vcpu>> {
    Some(Rig::new()?.vcpu)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// An address with the sign-extension 64-bit mode demands.
    fn canonical(&mut self) -> u64 {
        ((self.next() << 16) as i64 >> 16) as u64
    }
}

/// A state of a mode with random contents wherever every value is legal.
fn random_state(r: &mut Random, mode: u64) -> CpuState {
    let mut s = CpuState::reset(true, 0);
    for g in &mut s.gpr {
        *g = r.next();
    }
    s.cr8 = 5;
    s.cr2 = r.canonical();
    s.rflags =
        rflags::FIXED | r.next() & (rflags::STATUS | rflags::IF | rflags::DF | rflags::IOPL | rflags::ID);
    s.rip = if mode == 2 { r.canonical() } else { r.next() & 0xffff };
    let data = |r: &mut Random, selector| Segment {
        selector,
        base: r.next() & 0xffff_ffff,
        limit: u32::MAX,
        access: 0xc093,
    };
    if mode > 0 {
        s.cr0 = cr0::PE | cr0::NE | cr0::ET | cr0::MP;
        s.segments = [0x10u16; 6].map(|selector| data(r, selector));
        s.segments[1] = Segment { selector: 8, base: 0, limit: u32::MAX, access: 0xc09b };
        s.ldtr = Segment { access: Segment::UNUSABLE, ..Segment::default() };
    }
    if mode == 2 {
        s.cr0 |= cr0::PG | cr0::WP;
        s.cr3 = r.next() & 0xf_f000;
        s.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR;
        s.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        s.segments[1].access = 0xa09b;
        s.segments[4].base = r.canonical();
        s.segments[5].base = r.canonical();
        s.tr = Segment { selector: 0x28, base: r.canonical(), limit: 0x67, access: 0x8b };
    }
    s.gdtr = TableRegister { base: r.next() & 0xffff_ffff, limit: r.next() as u16 };
    s.idtr = TableRegister { base: r.next() & 0xffff_ffff, limit: r.next() as u16 };
    s.dr = [r.next() & 0xffff_ffff; 4];
    s.dr6 |= r.next() & 0xf;
    let m = &mut s.msrs;
    (m.star, m.sfmask) = (r.next(), r.next() & 0xffff_ffff);
    (m.lstar, m.cstar, m.kernel_gs_base) = (r.canonical(), r.canonical(), r.canonical());
    (m.sysenter_cs, m.sysenter_esp, m.sysenter_eip) = (r.next() & 0xffff, r.canonical(), r.canonical());
    (m.tsc_aux, m.tsc_adjust) = (r.next() & 0xffff_ffff, r.next() & 0xffff);
    (m.mtrr_fixed[3], m.mtrr_variable[7], m.mtrr_def_type) = (r.next(), (6, 0xff_0000_0800), 0xc06);
    let f = &mut s.fpu;
    (f.fcw, f.fsw, f.ftw) = (0x37f, (r.next() & 7) as u16 * 0x800, r.next() as u8);
    for x in &mut f.regs {
        *x = F80 { significand: r.next(), sign_exponent: r.next() as u16 };
    }
    f.mxcsr = 0x1f80 | r.next() as u32 & 0x3f;
    for lane in f.ymm.iter_mut().flatten() {
        *lane = r.next();
    }
    let movable = kvm::host_tsc().is_some_and(|t| t.movable);
    s.tsc_offset = if movable { r.next() & 0xffff_ffff_ffff } else { 0 };
    s
}

#[test]
fn random_states_survive_kvm() {
    let Some(mut vcpu) = vcpu() else { return };
    let mut r = Random(0x1234_5678_9abc_def1);
    for round in 0..60 {
        let s = random_state(&mut r, round % 3);
        vcpu.set_state(&s).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(vcpu.state().unwrap(), s, "round {round}");
    }
}

#[test]
fn pending_events_and_activity_survive_kvm() {
    let Some(mut vcpu) = vcpu() else { return };
    let mut r = Random(77);
    let base = random_state(&mut r, 2);
    let exception = |vector, error_code, payload| Some(Exception { vector, error_code, payload });
    type Change = fn(&mut CpuState);
    let cases: [(&str, Change); 5] = [
        ("halted", |s| s.activity = Activity::Halted),
        ("waiting for a startup IPI", |s| s.activity = Activity::WaitForSipi),
        ("NMI blocked", |s| s.nmi_blocked = true),
        ("NMI pending", |s| s.nmi_pending = true),
        ("plain", |_| ()),
    ];
    for (name, change) in cases {
        let mut s = base.clone();
        change(&mut s);
        vcpu.set_state(&s).unwrap();
        assert_eq!(vcpu.state().unwrap(), s, "{name}");
    }
    for pending in [exception(13, Some(0x18), 0), exception(14, Some(6), 0xdead_b000), exception(6, None, 0)]
    {
        let s = CpuState { pending_exception: pending, ..base.clone() };
        vcpu.set_state(&s).unwrap();
        assert_eq!(vcpu.state().unwrap(), s, "{pending:?}");
    }
    for shadow in [InterruptShadow::Sti, InterruptShadow::MovSs] {
        let s = CpuState { shadow, ..base.clone() };
        vcpu.set_state(&s).unwrap();
        let back = vcpu.state().unwrap().shadow;
        // A KVM that interprets keeps no shadow between runs; it executes the one instruction at once.
        assert!(back == shadow || back == InterruptShadow::None, "{shadow:?} came back as {back:?}");
    }
}

#[test]
fn a_refused_state_changes_nothing() {
    let Some(mut vcpu) = vcpu() else { return };
    let mut r = Random(99);
    let good = random_state(&mut r, 2);
    vcpu.set_state(&good).unwrap();
    // Paging without protection is no state of any processor.
    let bad = CpuState { cr0: cr0::PG | cr0::ET, rip: 0x1234, ..good.clone() };
    let refusal = vcpu.set_state(&bad).unwrap_err().to_string();
    assert!(refusal.contains("CR0=0x80000010"), "{refusal}");
    assert_eq!(vcpu.state().unwrap(), good);
}
