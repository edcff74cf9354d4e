//! Programs that try every combination of their operands: billions of guest
//! instructions, minutes on an interpreter. A sampled build of each executes one
//! combination in so many, turned by the run's seed, and is compared with the
//! same build on the host. Only the loops are changed, in a copy of the source;
//! the full programs run with `STRATA_SLOW=1`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Recipe, sample};
use crate::runner::Judge;

/// A text of a source file, how often it is there, and what takes its place.
struct Change {
    file: &'static str,
    text: &'static str,
    times: usize,
    sampled: &'static str,
}

/// How a program is sampled.
struct Enumeration {
    /// The full program's name in reports.
    program: &'static str,
    /// Its files; the first is compiled.
    files: &'static [&'static str],
    changes: &'static [Change],
    /// One combination in so many: a prime that divides no length of the nested
    /// loops, so that each value of each operand is met.
    step: usize,
}

const ONE_VALUE_IN: Change = Change {
    file: "",
    text: "for (v2 = 0; v2 < NVALS; v2++)",
    times: 3,
    sampled: "for (v2 = STRATA_TURN; v2 < NVALS; v2 += STRATA_STEP)",
};

const ALL: [Enumeration; 4] = [
    Enumeration {
        program: "amd64-fb_test_amd64",
        files: &["fb_test_amd64.c", "fb_test_amd64.h", "fb_test_amd64_muldiv.h", "fb_test_amd64_shift.h"],
        changes: &[Change {
            file: "fb_test_amd64.h",
            text: "exec_op(val[i], val[j]);",
            times: 1,
            sampled: "if ((i * NVALS + j) % STRATA_STEP == STRATA_TURN) exec_op(val[i], val[j]);",
        }],
        step: 29,
    },
    Enumeration {
        program: "amd64-amd64locked",
        files: &["amd64locked.c"],
        changes: &[Change { file: "amd64locked.c", ..ONE_VALUE_IN }],
        step: 7,
    },
    Enumeration {
        program: "x86-x86locked",
        files: &["x86locked.c"],
        changes: &[Change { file: "x86locked.c", ..ONE_VALUE_IN }],
        step: 5,
    },
    Enumeration {
        program: "test-i386-fprem",
        files: &["test-i386-fprem.c"],
        changes: &[Change {
            file: "test-i386-fprem.c",
            text: "do_fprem(a.d, b.d);",
            times: 1,
            sampled: "if (count % STRATA_STEP == STRATA_TURN) do_fprem(a.d, b.d);",
        }],
        step: 31,
    },
];

/// Whether a program of this name is a full enumeration.
pub(super) fn is_full(program: &str) -> bool {
    ALL.iter().any(|e| e.program == program)
}

/// The sampled build of a program whose source stands in `directory`, or None if
/// it is not an enumeration. Its name tells which part of the whole it is.
///
/// # Errors
/// When the source is not the one that the changes were written for.
pub(super) fn sampled(full: &Recipe, directory: &Path) -> Result<Option<Recipe>> {
    let Some(e) = ALL.iter().find(|e| e.program == full.name) else { return Ok(None) };
    let copy = directory.join("sampled");
    fs::create_dir_all(&copy)?;
    for file in e.files {
        let path = directory.join(file);
        let mut text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for change in e.changes.iter().filter(|c| c.file == *file) {
            text =
                changed(&text, change).with_context(|| format!("{} is another version", path.display()))?;
        }
        // Another test may be compiling the same.
        let copied = copy.join(file);
        if fs::read_to_string(&copied).is_ok_and(|old| old == text) {
            continue;
        }
        fs::write(copied, text)?;
    }
    let turn = sample::turn(sample::seed()?, e.step);
    let source = |file: &str, at: &Path| at.join(file).to_string_lossy().into_owned();
    let (before, after) = (source(e.files[0], directory), source(e.files[0], &copy));
    let mut arguments = vec![format!("-DSTRATA_STEP={}", e.step), format!("-DSTRATA_TURN={turn}")];
    arguments.extend(full.arguments.iter().map(|a| if *a == before { after.clone() } else { a.clone() }));
    ensure!(arguments.contains(&after), "{} is not built from {before}", full.name);
    let name = format!("{}.{turn}of{}", full.name, e.step);
    Ok(Some(Recipe { name, judge: Judge::Native, arguments, sampled: true }))
}

fn changed(text: &str, change: &Change) -> Result<String> {
    let found = text.matches(change.text).count();
    ensure!(found == change.times, "\"{}\" is there {found} times, not {}", change.text, change.times);
    Ok(text.replace(change.text, change.sampled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_source_is_refused() {
        let once = Change { file: "f", text: "all();", times: 1, sampled: "some();" };
        assert_eq!(changed("{ all(); }", &once).unwrap(), "{ some(); }");
        for other in ["{ every(); }", "{ all(); all(); }"] {
            assert!(changed(other, &once).is_err(), "{other}");
        }
    }

    #[test]
    fn every_value_of_every_operand_is_met() {
        // Lengths of the nested loops: 57 values each; mantissa, quiet, one,
        // exponent and sign of two numbers.
        for (program, lengths) in
            [("amd64-fb_test_amd64", &[57, 57][..]), ("test-i386-fprem", &[6, 2, 2, 9, 2, 6, 2, 2, 9, 2])]
        {
            let step = ALL.iter().find(|e| e.program == program).unwrap().step;
            let mut met: Vec<Vec<bool>> = lengths.iter().map(|n| vec![false; *n]).collect();
            for mut case in (1..lengths.iter().product()).step_by(step) {
                for values in &mut met {
                    let count = values.len();
                    values[case % count] = true;
                    case /= count;
                }
            }
            assert!(met.iter().flatten().all(|m| *m), "{program}: {met:?}");
        }
    }
}
