//! A comparison finds exactly the instruction an engine gets wrong.

use std::path::PathBuf;
use std::sync::Arc;

use board::{Board, MachineSpec};
use compare::{End, Plan, Side, compare};
use engine::{Engine, EngineError, Halt, LocalInterrupts, Vcpu, VcpuConfig};
use interpreter::Interpreter;
use x86_state::{CpuState, reg};

/// An engine that flips a bit of RBX when its `at`-th instruction completes.
struct Faulty {
    at: u64,
}

struct FaultyVcpu {
    inner: Box<dyn Vcpu>,
    at: u64,
}

impl Engine for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }
    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(FaultyVcpu { inner: Interpreter.create_vcpu(config)?, at: self.at }))
    }
    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
        None
    }
}

impl Vcpu for FaultyVcpu {
    fn run(&mut self, limit: u64) -> Halt {
        let done = self.inner.retired().unwrap();
        if done >= self.at {
            return self.inner.run(limit);
        }
        let halt = self.inner.run(limit.min(self.at - done));
        if self.inner.retired().unwrap() == self.at {
            let mut state = self.inner.state().unwrap();
            state.gpr[reg::RBX] ^= 1;
            self.inner.set_state(&state).unwrap();
        }
        halt
    }
    fn state(&mut self) -> Result<CpuState, EngineError> {
        self.inner.state()
    }
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.inner.set_state(state)
    }
    fn retired(&self) -> Option<u64> {
        self.inner.retired()
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

struct Firmware(PathBuf);

impl Firmware {
    /// `again: inc ax; add [0x1000], ax; jmp again`, or with `halt` a `cli; hlt`.
    fn new(name: &str, halt: bool) -> Self {
        let mut image = vec![0xf4; 4096];
        let code: &[u8] = if halt { &[0xfa, 0xf4] } else { &[0x40, 0x01, 0x06, 0x00, 0x10, 0xeb, 0xf9] };
        image[..code.len()].copy_from_slice(code);
        // The reset vector, f000:fff0, jumps to f000:f000.
        image[4080..4083].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
        let path = std::env::temp_dir().join(format!("strata-compare-{name}-{}", std::process::id()));
        std::fs::write(&path, image).unwrap();
        Firmware(path)
    }

    fn plan(&self) -> Plan {
        let mut spec = MachineSpec { memory: 2 << 20, ..MachineSpec::default() };
        spec.boot.firmware = Some(self.0.clone());
        Plan { spec, instructions: 10_000, step: 1_000 }
    }
}

impl Drop for Firmware {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn side(piece: u64, faulty_at: Option<u64>) -> Side {
    let engine = move |_: &Board| -> Result<Arc<dyn Engine>, EngineError> {
        Ok(match faulty_at {
            Some(at) => Arc::new(Faulty { at }),
            None => Arc::new(Interpreter),
        })
    };
    Side { name: "side".to_string(), engine: Arc::new(engine), piece }
}

#[test]
fn equal_engines_show_no_difference_however_runs_are_cut() {
    let firmware = Firmware::new("equal", false);
    let report = compare(&firmware.plan(), &[side(u64::MAX, None), side(7, None)], &mut |_| {}).unwrap();
    assert!(report.difference.is_none(), "{report:?}");
    assert_eq!((report.instructions, report.comparisons, report.ended), (10_000, 10, None));
}

#[test]
fn the_first_wrong_instruction_is_named_with_its_registers() {
    let firmware = Firmware::new("wrong", false);
    // Instruction 1 is the reset vector's jump; then INC, ADD, JMP in turn.
    for (at, text) in [(4_321, "jmp"), (2_000, "inc"), (2_001, "add")] {
        let sides = [side(u64::MAX, None), side(u64::MAX, Some(at))];
        let found = compare(&firmware.plan(), &sides, &mut |_| {}).unwrap().difference.unwrap();
        assert_eq!(found.after, at - 1);
        assert!(found.instruction.text.starts_with(text), "{at}: {}", found.instruction);
        let names: Vec<_> = found.registers.iter().map(|r| r.register.as_str()).collect();
        assert_eq!(names, ["rbx"], "{at}");
        assert_eq!(found.memory, None);
    }
}

#[test]
fn a_guest_that_ends_alike_on_both_sides_is_no_difference() {
    let firmware = Firmware::new("end", true);
    let report = compare(&firmware.plan(), &[side(u64::MAX, None), side(1, None)], &mut |_| {}).unwrap();
    assert!(report.difference.is_none());
    assert_eq!(report.ended, Some(End::Idle));
}
