//! Registers between [`CpuState`] and KVM's structures. Pure functions.

use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_dtable, kvm_regs,
    kvm_segment, kvm_sregs2, kvm_vcpu_events, kvm_xsave,
};
use x86_state::{
    Activity, CpuState, Exception, F80, FpuState, InterruptShadow, Segment, TableRegister, cr0, cr4, dr6,
    efer, reg, vector,
};

/// A segment register for KVM.
pub(crate) fn segment_to_kvm(s: &Segment) -> kvm_segment {
    let bit = |n: u32| ((s.access >> n) & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind(),
        s: bit(4),
        dpl: s.dpl(),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: u8::from(!s.usable()),
        padding: 0,
    }
}

/// A segment register from KVM.
pub(crate) fn segment_from_kvm(k: &kvm_segment) -> Segment {
    let bit = |v: u8, n: u32| u32::from(v & 1) << n;
    let access = u32::from(k.type_ & 0xf)
        | bit(k.s, 4)
        | u32::from(k.dpl & 3) << 5
        | bit(k.present, 7)
        | bit(k.avl, 12)
        | bit(k.l, 13)
        | bit(k.db, 14)
        | bit(k.g, 15)
        | if k.unusable != 0 { Segment::UNUSABLE } else { 0 };
    Segment { selector: k.selector, base: k.base, limit: k.limit, access }
}

/// General registers, RIP and RFLAGS for KVM.
pub(crate) fn regs_to_kvm(s: &CpuState) -> kvm_regs {
    let g = &s.gpr;
    kvm_regs {
        rax: g[reg::RAX],
        rbx: g[reg::RBX],
        rcx: g[reg::RCX],
        rdx: g[reg::RDX],
        rsi: g[reg::RSI],
        rdi: g[reg::RDI],
        rsp: g[reg::RSP],
        rbp: g[reg::RBP],
        r8: g[reg::R8],
        r9: g[reg::R9],
        r10: g[reg::R10],
        r11: g[reg::R11],
        r12: g[reg::R12],
        r13: g[reg::R13],
        r14: g[reg::R14],
        r15: g[reg::R15],
        rip: s.rip,
        rflags: s.rflags,
    }
}

/// General registers, RIP and RFLAGS from KVM.
pub(crate) fn regs_from_kvm(k: &kvm_regs, s: &mut CpuState) {
    s.gpr = [
        k.rax, k.rcx, k.rdx, k.rbx, k.rsp, k.rbp, k.rsi, k.rdi, k.r8, k.r9, k.r10, k.r11, k.r12, k.r13,
        k.r14, k.r15,
    ];
    s.rip = k.rip;
    s.rflags = k.rflags;
}

fn table_to_kvm(t: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

fn table_from_kvm(k: &kvm_dtable) -> TableRegister {
    TableRegister { base: k.base, limit: k.limit }
}

/// True in PAE paging, where the page-directory pointers are registers.
fn pae_paging(s: &CpuState) -> bool {
    s.cr0 & cr0::PG != 0 && s.cr4 & cr4::PAE != 0 && s.efer & efer::LMA == 0
}

/// Segments, tables and control registers for KVM.
pub(crate) fn sregs_to_kvm(s: &CpuState, apic_base: u64) -> kvm_sregs2 {
    let [es, cs, ss, ds, fs, gs] = s.segments.each_ref().map(segment_to_kvm);
    let pae = pae_paging(s);
    kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: segment_to_kvm(&s.tr),
        ldt: segment_to_kvm(&s.ldtr),
        gdt: table_to_kvm(&s.gdtr),
        idt: table_to_kvm(&s.idtr),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base,
        flags: if pae { u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) } else { 0 },
        pdptrs: if pae { s.pdpte } else { [0; 4] },
    }
}

/// Segments, tables and control registers from KVM.
pub(crate) fn sregs_from_kvm(k: &kvm_sregs2, s: &mut CpuState) {
    s.segments = [&k.es, &k.cs, &k.ss, &k.ds, &k.fs, &k.gs].map(segment_from_kvm);
    s.tr = segment_from_kvm(&k.tr);
    s.ldtr = segment_from_kvm(&k.ldt);
    s.gdtr = table_from_kvm(&k.gdt);
    s.idtr = table_from_kvm(&k.idt);
    (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer) = (k.cr0, k.cr2, k.cr3, k.cr4, k.cr8, k.efer);
    let valid = k.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    s.pdpte = if valid { k.pdptrs } else { [0; 4] };
}

/// Dword positions of the XSAVE area's standard format (SDM volume 1, 13.4).
mod area {
    pub const FIP: usize = 2;
    pub const FDP: usize = 4;
    pub const MXCSR: usize = 6;
    pub const MXCSR_MASK: usize = 7;
    pub const ST0: usize = 8;
    pub const XMM0: usize = 40;
    pub const XSTATE_BV: usize = 128;
    /// Upper halves of YMM; the offset of component 2 is 576 on every processor.
    pub const YMM_HIGH0: usize = 144;
}

fn put(region: &mut [u32], at: usize, v: u64) {
    region[at] = v as u32;
    region[at + 1] = (v >> 32) as u32;
}

fn get(region: &[u32], at: usize) -> u64 {
    u64::from(region[at]) | u64::from(region[at + 1]) << 32
}

/// Overwrite the x87, SSE and AVX components of an XSAVE area. `components` is
/// the mask of those the host manages; x87 and SSE always are.
///
/// The area has ST(i) in order, [`FpuState`] physical registers: ST(i) is
/// physical register TOP + i. The abridged tags are by physical register in both.
pub(crate) fn fpu_to_xsave(f: &FpuState, components: u64, x: &mut kvm_xsave) {
    let r = &mut x.region;
    r[0] = u32::from(f.fcw) | u32::from(f.fsw) << 16;
    r[1] = u32::from(f.ftw) | u32::from(f.fop) << 16;
    put(r, area::FIP, f.fip);
    put(r, area::FDP, f.fdp);
    r[area::MXCSR] = f.mxcsr;
    r[area::MXCSR_MASK] = x86_state::MXCSR_MASK;
    for st in 0..8 {
        let value = &f.regs[(usize::from(f.top()) + st) & 7];
        put(r, area::ST0 + st * 4, value.significand);
        put(r, area::ST0 + st * 4 + 2, u64::from(value.sign_exponent));
    }
    for (i, lanes) in f.ymm.iter().enumerate() {
        put(r, area::XMM0 + i * 4, lanes[0]);
        put(r, area::XMM0 + i * 4 + 2, lanes[1]);
        put(r, area::YMM_HIGH0 + i * 4, lanes[2]);
        put(r, area::YMM_HIGH0 + i * 4 + 2, lanes[3]);
    }
    put(r, area::XSTATE_BV, components & 7 | 3);
}

/// The x87, SSE and AVX components of an XSAVE area.
pub(crate) fn fpu_from_xsave(x: &kvm_xsave) -> FpuState {
    let r = &x.region;
    let present = get(r, area::XSTATE_BV);
    // A component that is absent is in its initial state, except MXCSR, which is always stored.
    let mut f = FpuState::init();
    f.mxcsr = r[area::MXCSR] & x86_state::MXCSR_MASK;
    if present & 1 != 0 {
        f.fcw = r[0] as u16;
        f.fsw = (r[0] >> 16) as u16;
        f.ftw = r[1] as u8;
        f.fop = (r[1] >> 16) as u16 & 0x7ff;
        f.fip = get(r, area::FIP);
        f.fdp = get(r, area::FDP);
        for st in 0..8 {
            f.regs[(usize::from(f.top()) + st) & 7] = F80 {
                significand: get(r, area::ST0 + st * 4),
                sign_exponent: r[area::ST0 + st * 4 + 2] as u16,
            };
        }
    }
    for (i, lanes) in f.ymm.iter_mut().enumerate() {
        if present & 2 != 0 {
            lanes[0] = get(r, area::XMM0 + i * 4);
            lanes[1] = get(r, area::XMM0 + i * 4 + 2);
        }
        if present & 4 != 0 {
            lanes[2] = get(r, area::YMM_HIGH0 + i * 4);
            lanes[3] = get(r, area::YMM_HIGH0 + i * 4 + 2);
        }
    }
    f
}

/// Pending events for KVM. `payload` says that KVM keeps an exception's payload
/// (KVM_CAP_EXCEPTION_PAYLOAD).
pub(crate) fn events_to_kvm(s: &CpuState, payload: bool) -> kvm_vcpu_events {
    let mut e = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    match s.pending_exception {
        // An external interrupt that was acknowledged but not delivered yet.
        Some(x) if x.vector >= 32 => {
            e.interrupt.injected = 1;
            e.interrupt.nr = x.vector;
        }
        Some(x) => {
            e.exception.nr = x.vector;
            e.exception.has_error_code = u8::from(x.error_code.is_some());
            e.exception.error_code = x.error_code.unwrap_or(0);
            if payload {
                e.exception.pending = 1;
                e.exception_has_payload = u8::from(matches!(x.vector, vector::DB | vector::PF));
                e.exception_payload = x.payload;
            } else {
                e.exception.injected = 1;
            }
        }
        None => {}
    }
    if payload {
        e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    e.interrupt.shadow = match s.shadow {
        InterruptShadow::None => 0,
        InterruptShadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        InterruptShadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    e.nmi.pending = u8::from(s.nmi_pending);
    e.nmi.masked = u8::from(s.nmi_blocked);
    e
}

/// What a vCPU does from the moment KVM has its state: an event that KVM was
/// given ends HLT, and KVM delivers it when it is entered.
pub(crate) fn activity_to_kvm(s: &CpuState) -> Activity {
    let due = s.pending_exception.is_some() || s.nmi_pending && !s.nmi_blocked;
    if s.activity == Activity::Halted && due { Activity::Active } else { s.activity }
}

/// What DR6 says of the last #DB.
const DEBUG_CONDITIONS: u64 = 0xf | dr6::BD | dr6::BS | dr6::BT;

/// Pending events from KVM. CR2 and DR6 must have been taken over already: an
/// event without its payload has left it there.
pub(crate) fn events_from_kvm(e: &kvm_vcpu_events, s: &mut CpuState) {
    s.pending_exception = None;
    if e.exception.injected != 0 || e.exception.pending != 0 {
        let payload = match (e.exception_has_payload, e.exception.nr) {
            (0, vector::PF) => s.cr2,
            (0, vector::DB) => s.dr6 & DEBUG_CONDITIONS,
            (0, _) => 0,
            _ => e.exception_payload,
        };
        s.pending_exception = Some(Exception {
            vector: e.exception.nr,
            error_code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
            payload,
        });
    } else if e.interrupt.injected != 0 && e.interrupt.soft == 0 {
        // A soft interrupt (INT n) starts again from its instruction instead.
        s.pending_exception = Some(Exception { vector: e.interrupt.nr, error_code: None, payload: 0 });
    }
    s.shadow = if u32::from(e.interrupt.shadow) & KVM_X86_SHADOW_INT_MOV_SS != 0 {
        InterruptShadow::MovSs
    } else if u32::from(e.interrupt.shadow) & KVM_X86_SHADOW_INT_STI != 0 {
        InterruptShadow::Sti
    } else {
        InterruptShadow::None
    };
    // An NMI whose delivery was cut short is pending again, and not yet blocking.
    s.nmi_pending = e.nmi.pending != 0 || e.nmi.injected != 0;
    s.nmi_blocked = e.nmi.masked != 0 && e.nmi.injected == 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small xorshift generator: the tests need variety, not quality.
    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn segments_survive_both_ways() {
        for access in [0x93, 0x9b, 0xa09b, 0xc0fb, 0xc093, 0x8b, 0x82, 0x1_0000] {
            let s = Segment { selector: 0x1234, base: 0xffff_8000_1234_5678, limit: 0xf_ffff, access };
            assert_eq!(segment_from_kvm(&segment_to_kvm(&s)), s, "access {access:#x}");
        }
    }

    #[test]
    fn x87_registers_are_rotated_by_top() {
        let mut f = FpuState::init();
        f.fsw = 3 << 11;
        f.ftw = 1 << 3;
        f.regs[3] = F80 { significand: 1 << 63, sign_exponent: 0x3fff };
        let mut x = kvm_xsave::default();
        fpu_to_xsave(&f, 7, &mut x);
        assert_eq!(get(&x.region, area::ST0), 1 << 63, "ST(0) is physical register TOP");
        assert_eq!(x.region[1] & 0xff, 1 << 3, "the abridged tag stays physical");
        assert_eq!(fpu_from_xsave(&x), f);
    }

    #[test]
    fn random_fpu_state_survives_both_ways() {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..100 {
            let mut f = FpuState::init();
            f.fcw = random(&mut seed) as u16;
            f.fsw = random(&mut seed) as u16;
            f.ftw = random(&mut seed) as u8;
            f.fop = random(&mut seed) as u16 & 0x7ff;
            f.fip = random(&mut seed);
            f.fdp = random(&mut seed);
            for r in &mut f.regs {
                *r = F80 { significand: random(&mut seed), sign_exponent: random(&mut seed) as u16 };
            }
            f.mxcsr = random(&mut seed) as u32 & x86_state::MXCSR_MASK;
            for lane in f.ymm.iter_mut().flatten() {
                *lane = random(&mut seed);
            }
            let mut x = kvm_xsave::default();
            fpu_to_xsave(&f, 7, &mut x);
            assert_eq!(fpu_from_xsave(&x), f);
        }
    }

    #[test]
    fn events_survive_both_ways() {
        let exception = |vector, error_code, payload| Some(Exception { vector, error_code, payload });
        for pending in [
            None,
            exception(14, Some(2), 0x1000),
            exception(1, None, 0x4000),
            exception(13, Some(0), 0),
            exception(0x30, None, 0),
        ] {
            for shadow in [InterruptShadow::None, InterruptShadow::Sti, InterruptShadow::MovSs] {
                let mut s = CpuState::reset(true, 0);
                (s.pending_exception, s.shadow, s.nmi_blocked) = (pending, shadow, pending.is_none());
                let e = events_to_kvm(&s, true);
                let mut back = CpuState::reset(true, 0);
                events_from_kvm(&e, &mut back);
                assert_eq!(back, s);
            }
        }
    }

    #[test]
    fn a_debug_exception_cut_short_has_the_conditions_that_dr6_has() {
        let check = |has_payload, payload, dr6, want| {
            let mut e = kvm_vcpu_events::default();
            (e.exception.injected, e.exception.nr) = (1, vector::DB);
            (e.exception_has_payload, e.exception_payload) = (has_payload, payload);
            let mut s = CpuState { dr6, ..CpuState::reset(true, 0) };
            events_from_kvm(&e, &mut s);
            let want = Some(Exception { vector: vector::DB, error_code: None, payload: want });
            assert_eq!(s.pending_exception, want, "DR6 {dr6:#x}, payload {payload:#x}");
        };
        check(0, 0, dr6::FIXED | dr6::BS, dr6::BS);
        check(0, 0, dr6::FIXED | dr6::BD | 5, dr6::BD | 5);
        check(1, dr6::BS, dr6::FIXED | 2, dr6::BS);
    }

    #[test]
    fn what_is_due_ends_a_halt() {
        let exception = Some(Exception { vector: vector::DB, error_code: None, payload: dr6::BS });
        for (activity, pending_exception, nmi_pending, nmi_blocked, want) in [
            (Activity::Halted, None, false, false, Activity::Halted),
            (Activity::Halted, None, true, false, Activity::Active),
            (Activity::Halted, None, true, true, Activity::Halted),
            (Activity::Halted, exception, false, true, Activity::Active),
            (Activity::Active, None, false, false, Activity::Active),
            (Activity::WaitForSipi, None, true, false, Activity::WaitForSipi),
            (Activity::Shutdown, None, true, false, Activity::Shutdown),
        ] {
            let reset = CpuState::reset(true, 0);
            let s = CpuState { activity, pending_exception, nmi_pending, nmi_blocked, ..reset };
            assert_eq!(activity_to_kvm(&s), want, "{activity:?} {nmi_pending} {nmi_blocked}");
        }
    }
}
