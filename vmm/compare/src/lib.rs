//! Lock-step comparison of two engines.
//!
//! The same machine is built twice and runs in virtual time on two engines. After
//! every step of so many instructions the architectural states must be equal, and
//! all memory that either side has written. When they are not, both machines start again (virtual
//! time makes every run the same) and single-step through the step that differed,
//! to the first differing instruction.

mod difference;
mod lane;
mod locate;

use std::sync::Arc;

use board::{Board, BoardError, BoardIo, MachineSpec, TimeSource};
use engine::{Engine, EngineError};
use guest_memory::RamOffset;

pub use difference::{Difference, differences};
pub use lane::{End, Lane};
pub use locate::Instruction;

/// Makes an engine for a board.
pub type MakeEngine = dyn Fn(&Board) -> Result<Arc<dyn Engine>, EngineError> + Send + Sync;

/// How an engine runs its side of the comparison.
#[derive(Clone)]
pub struct Side {
    /// For reports.
    pub name: String,
    /// Makes the engine for a board.
    pub engine: Arc<MakeEngine>,
    /// Run in pieces of this many instructions; different pieces on both sides
    /// show whether anything depends on where a run is cut.
    pub piece: u64,
}

/// What to compare and how far.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The machine; its time is made virtual.
    pub spec: MachineSpec,
    /// Instructions to run.
    pub instructions: u64,
    /// Instructions between two comparisons, at least 1.
    pub step: u64,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A board could not be built.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// An engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Lock-step needs one vCPU.
    #[error("comparison of {0} vCPUs: their order is the scheduler's; use --cpus 1")]
    Cpus(u32),
    /// The engine does not count instructions.
    #[error("engine {0} does not count instructions, so it cannot run in lock-step; choose another one")]
    NotCounted(String),
    /// The second run was not like the first.
    #[error(
        "the difference near instruction {0} did not appear again in a second run; report this as a defect"
    )]
    NotRepeatable(u64),
}

/// The first difference.
#[derive(Debug)]
pub struct FirstDifference {
    /// Instructions both sides had completed alike.
    pub after: u64,
    /// The instruction that made the difference, from the state before it.
    pub instruction: Instruction,
    /// Registers that differ after it.
    pub registers: Vec<Difference>,
    /// Guest-physical address of the first byte of memory that differs, if any.
    pub memory: Option<u64>,
}

/// What a comparison found.
#[derive(Debug)]
pub struct Report {
    /// Instructions compared.
    pub instructions: u64,
    /// States compared.
    pub comparisons: u64,
    /// Why it ended before all instructions had run, if it did.
    pub ended: Option<End>,
    /// The first difference, if there is one.
    pub difference: Option<FirstDifference>,
}

fn build(plan: &Plan) -> Result<Arc<Board>, CompareError> {
    let mut spec = plan.spec.clone();
    if spec.cpus != 1 {
        return Err(CompareError::Cpus(spec.cpus));
    }
    spec.time = TimeSource::Virtual;
    spec.serial.clear();
    Ok(Board::build(spec, BoardIo::new())?)
}

fn lanes(plan: &Plan, sides: &[Side; 2]) -> Result<[Lane; 2], CompareError> {
    let lane = |side: &Side| Lane::new(side, build(plan)?);
    Ok([lane(&sides[0])?, lane(&sides[1])?])
}

/// Run a plan on two sides. `progress` is told the instructions done.
///
/// # Errors
/// When a machine cannot be built or an engine fails; a difference is a result.
pub fn compare(
    plan: &Plan,
    sides: &[Side; 2],
    progress: &mut dyn FnMut(u64),
) -> Result<Report, CompareError> {
    let mut pair = lanes(plan, sides)?;
    let step = plan.step.max(1);
    let mut report = Report { instructions: 0, comparisons: 0, ended: None, difference: None };
    while report.instructions < plan.instructions {
        let n = step.min(plan.instructions - report.instructions);
        let ends = [pair[0].run(n)?, pair[1].run(n)?];
        report.comparisons += 1;
        if ends[0] != ends[1] || !same(&mut pair)? {
            drop(pair);
            report.difference = Some(locate::first_difference(lanes(plan, sides)?, report.instructions, n)?);
            return Ok(report);
        }
        report.instructions = pair[0].ran();
        progress(report.instructions);
        if let [Some(end), _] = ends {
            report.ended = Some(end);
            break;
        }
    }
    Ok(report)
}

/// Equal in registers, and in memory where either side has written.
fn same(pair: &mut [Lane; 2]) -> Result<bool, CompareError> {
    let memory = different_memory(pair);
    let [a, b] = pair;
    Ok(memory.is_none() && a.ran() == b.ran() && a.state()? == b.state()?)
}

/// The first guest-physical address whose byte differs, in the pages that either
/// side has written since the last call.
pub(crate) fn different_memory(pair: &[Lane; 2]) -> Option<u64> {
    const PAGE: usize = guest_memory::PAGE_SIZE as usize;
    let (a, b) = (pair[0].board().memory(), pair[1].board().memory());
    let mut pages = a.marks().take_dirty();
    pages.extend(b.marks().take_dirty());
    pages.sort_unstable();
    pages.dedup();
    let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
    pages.into_iter().find_map(|page| {
        let place = RamOffset(page * guest_memory::PAGE_SIZE);
        a.read_bytes(place, &mut left);
        b.read_bytes(place, &mut right);
        let i = (0..PAGE).find(|i| left[*i] != right[*i])?;
        a.map().address_of(RamOffset(place.0 + i as u64))
    })
}
