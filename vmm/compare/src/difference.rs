//! Which registers of two states differ.

use std::fmt;

use x86_state::CpuState;

/// One register with two values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The register's name.
    pub register: String,
    /// On the first side.
    pub first: String,
    /// On the second side.
    pub second: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<12} {}  {}", self.register, self.first, self.second)
    }
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

struct List(Vec<Difference>);

impl List {
    fn hex(&mut self, register: &str, a: u64, b: u64) {
        if a != b {
            let value = |v| format!("{v:#018x}");
            self.0.push(Difference { register: register.to_string(), first: value(a), second: value(b) });
        }
    }
    fn debug(&mut self, register: &str, a: &impl fmt::Debug, b: &impl fmt::Debug) {
        let (first, second) = (format!("{a:x?}"), format!("{b:x?}"));
        if first != second {
            self.0.push(Difference { register: register.to_string(), first, second });
        }
    }
}

/// Every register that differs. Both states are taken apart completely, so a new
/// field cannot be forgotten.
pub fn differences(first: &CpuState, second: &CpuState) -> Vec<Difference> {
    let CpuState {
        gpr,
        rip,
        rflags,
        segments,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        xcr0,
        efer,
        dr,
        dr6,
        dr7,
        msrs,
        fpu,
        tsc_offset,
        activity,
        shadow,
        nmi_blocked,
        nmi_pending,
        pending_exception,
        pdpte,
    } = first;
    let o = second;
    let mut list = List(Vec::new());
    for (i, name) in GPR.iter().enumerate() {
        list.hex(name, gpr[i], o.gpr[i]);
    }
    let words = [
        ("rip", *rip, o.rip),
        ("rflags", *rflags, o.rflags),
        ("cr0", *cr0, o.cr0),
        ("cr2", *cr2, o.cr2),
        ("cr3", *cr3, o.cr3),
        ("cr4", *cr4, o.cr4),
        ("cr8", *cr8, o.cr8),
        ("xcr0", *xcr0, o.xcr0),
        ("efer", *efer, o.efer),
        ("dr6", *dr6, o.dr6),
        ("dr7", *dr7, o.dr7),
        ("tsc_offset", *tsc_offset, o.tsc_offset),
    ];
    for (name, a, b) in words {
        list.hex(name, a, b);
    }
    for (i, name) in SEGMENTS.iter().enumerate() {
        list.debug(name, &segments[i], &o.segments[i]);
    }
    list.debug("ldtr", ldtr, &o.ldtr);
    list.debug("tr", tr, &o.tr);
    list.debug("gdtr", gdtr, &o.gdtr);
    list.debug("idtr", idtr, &o.idtr);
    for (i, (a, b)) in dr.iter().zip(&o.dr).enumerate() {
        list.hex(&format!("dr{i}"), *a, *b);
    }
    list.debug("msrs", msrs, &o.msrs);
    list.debug("activity", activity, &o.activity);
    list.debug("shadow", shadow, &o.shadow);
    list.debug("nmi_blocked", nmi_blocked, &o.nmi_blocked);
    list.debug("nmi_pending", nmi_pending, &o.nmi_pending);
    list.debug("exception", pending_exception, &o.pending_exception);
    list.debug("pdpte", pdpte, &o.pdpte);
    fpu_differences(&mut list, fpu, &o.fpu);
    list.0
}

fn fpu_differences(list: &mut List, a: &x86_state::FpuState, b: &x86_state::FpuState) {
    let x86_state::FpuState { fcw, fsw, ftw, fop, fip, fdp, fcs, fds, regs, mxcsr, ymm } = a;
    let words = [
        ("fcw", u64::from(*fcw), u64::from(b.fcw)),
        ("fsw", u64::from(*fsw), u64::from(b.fsw)),
        ("ftw", u64::from(*ftw), u64::from(b.ftw)),
        ("fop", u64::from(*fop), u64::from(b.fop)),
        ("fip", *fip, b.fip),
        ("fdp", *fdp, b.fdp),
        ("fcs", u64::from(*fcs), u64::from(b.fcs)),
        ("fds", u64::from(*fds), u64::from(b.fds)),
        ("mxcsr", u64::from(*mxcsr), u64::from(b.mxcsr)),
    ];
    for (name, x, y) in words {
        list.hex(name, x, y);
    }
    for (i, (x, y)) in regs.iter().zip(&b.regs).enumerate() {
        list.debug(&format!("r{i} (x87)"), x, y);
    }
    for (i, (x, y)) in ymm.iter().zip(&b.ymm).enumerate() {
        list.debug(&format!("ymm{i}"), x, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_changed_registers_are_listed() {
        let a = CpuState::reset(true, 0);
        assert_eq!(differences(&a, &a.clone()), []);
        let mut b = a.clone();
        b.gpr[3] = 7;
        b.segments[1].limit = 1;
        b.fpu.ymm[15][3] = 1;
        b.msrs.star = 2;
        let names: Vec<_> = differences(&a, &b).into_iter().map(|d| d.register).collect();
        assert_eq!(names, ["rbx", "cs", "msrs", "ymm15"]);
    }
}
