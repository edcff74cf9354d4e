//! `strata compare`: one guest on two engines.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use compare::{Plan, Report, Side};
use lifecycle::{EngineChoice, KvmOptions};
use serde_json::json;

use crate::cli::{CompareArgs, Format};
use crate::failure::InputError;
use crate::{guest, run};

/// Exit status when a difference was found.
const DIFFERENT: u8 = 6;
/// The second side's piece: a prime, so that its cuts fall everywhere.
const ODD_PIECE: u64 = 9973;

/// Compare and print the report; answers the exit status.
pub fn command(args: &CompareArgs) -> anyhow::Result<u8> {
    let [first, second] = args.engines[..] else {
        let given = args.engines.len();
        return Err(InputError(format!("{given} engines given; name two, e.g. --engines interp,kvm")).into());
    };
    let mut spec = run::machine_specification(&args.machine);
    if spec.boot.kernel.is_none() && spec.boot.firmware.is_none() {
        spec.boot = guest::built_in(&[], args.machine.append.as_deref(), false)?;
    }
    let plan = Plan { spec, instructions: args.instructions, step: args.step };
    let sides = [side(first, u64::MAX), side(second, ODD_PIECE)];
    let text = args.format == Format::Text;
    let mut shown = 0;
    let report = compare::compare(&plan, &sides, &mut |done| {
        if text && done - shown >= args.instructions.div_ceil(10) {
            shown = done;
            eprintln!("strata: {done} instructions alike");
        }
    })
    .context("cannot compare")?;
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Text => print(&mut out, &report, &sides)?,
        Format::Json => writeln!(out, "{}", json(&report, &sides))?,
    }
    Ok(if report.difference.is_some() { DIFFERENT } else { 0 })
}

fn side(choice: EngineChoice, piece: u64) -> Side {
    Side {
        name: choice.to_string(),
        engine: Arc::new(move |board| match choice {
            EngineChoice::Kvm => {
                lifecycle::kvm(board, KvmOptions::for_host(&lifecycle::probe_kvm(), lifecycle::interpreter()))
            }
            EngineChoice::Jit => lifecycle::translator(),
            EngineChoice::Auto | EngineChoice::Interp => Ok(lifecycle::interpreter()),
        }),
        piece,
    }
}

fn print(out: &mut dyn Write, report: &Report, sides: &[Side; 2]) -> std::io::Result<()> {
    let Some(d) = &report.difference else {
        writeln!(
            out,
            "no difference in {} instructions ({} comparisons)",
            report.instructions, report.comparisons
        )?;
        if let Some(end) = &report.ended {
            writeln!(out, "both ended there: {end:?}")?;
        }
        return Ok(());
    };
    writeln!(out, "first difference after {} instructions, at", d.after)?;
    writeln!(out, "  {}", d.instruction)?;
    if !d.registers.is_empty() {
        writeln!(out, "{:<12} {:<18}  {}", "register", sides[0].name, sides[1].name)?;
    }
    for r in &d.registers {
        writeln!(out, "{r}")?;
    }
    if let Some(address) = d.memory {
        writeln!(out, "memory differs first at guest-physical {address:#x}")?;
    }
    Ok(())
}

fn json(report: &Report, sides: &[Side; 2]) -> serde_json::Value {
    json!({
        "engines": [sides[0].name, sides[1].name],
        "instructions": report.instructions,
        "comparisons": report.comparisons,
        "ended": report.ended.as_ref().map(|e| format!("{e:?}")),
        "difference": report.difference.as_ref().map(|d| json!({
            "after": d.after,
            "instruction": d.instruction.to_string(),
            "registers": d.registers.iter().map(|r| json!([r.register, r.first, r.second])).collect::<Vec<_>>(),
            "memory": d.memory,
        })),
    })
}
