//! Suites that others wrote, inside a Linux guest on every software engine. Each
//! program that passes natively must pass in the guest, outside [`KNOWN`]. A run
//! takes a sample of each suite unless told otherwise.

use std::time::Instant;

use anyhow::Result;
use guest_image::Flavour;
use guests::machine::stock_guest;
use guests::runner::{Run, run_in_guest};
use guests::suites::{Native, Suite, qemu_tcg, selftests, valgrind, verdict};

/// Failures with their reasons: (engine or `*`, suite, program, reason).
const KNOWN: &[(&str, &str, &str, &str)] = &[];

fn known(engine: &str, suite: &str, program: &str) -> Option<&'static str> {
    let found = KNOWN.iter().find(|k| (k.0 == "*" || k.0 == engine) && (k.1, k.2) == (suite, program));
    found.map(|k| k.3)
}

/// Keep both outputs in the directory `STRATA_KEEP` names, to look into a failure.
fn keep(suite: &str, engine: &str, program: &str, guest: Option<&Run>, native: &Run) {
    let Some(directory) = std::env::var_os("STRATA_KEEP") else { return };
    let base = std::path::Path::new(&directory).join(format!("{suite}-{program}"));
    let write = |side: &str, run: &Run| {
        std::fs::write(format!("{}.{side}", base.display()), &run.output).expect("STRATA_KEEP is writable");
    };
    write("native", native);
    if let Some(run) = guest {
        write(engine, run);
    }
}

fn check(name: &str, make: fn() -> Result<Suite>, engine: &str) {
    let Some(guest) = stock_guest(Flavour::Cloud) else { return };
    let suite = match make() {
        Ok(suite) => suite,
        Err(e) => return println!("skipped: {name}: {e:#}"),
    };
    assert!(suite.chosen > 0, "{name}: a run without a program");
    assert_eq!(suite.programs.len() + suite.unbuilt.len(), suite.chosen, "{name}: {}", suite.choice);
    let start = Instant::now();
    let native: Vec<Native> = suite.programs.iter().map(|p| Native::of(p).expect("the shell runs")).collect();
    let passes: Vec<bool> =
        suite.programs.iter().zip(&native).map(|(p, n)| n.passes(p).expect("references are there")).collect();
    let good = passes.iter().filter(|p| **p).count();
    let total = suite.programs.len();
    println!("{name}: {} programs, {}", suite.chosen, suite.choice);
    println!("{name}: native {good} of {total} in {:.0?}; not built: {:?}", start.elapsed(), suite.unbuilt);
    for (p, _) in suite.programs.iter().zip(&passes).filter(|p| !*p.1) {
        println!("{name}: native does not pass {}", p.name);
    }
    let result = run_in_guest(engine, &guest, name, &suite.programs).expect("a guest can be made");
    assert!(!result.runs.is_empty(), "{engine}: no program came back:\n{}", result.console);
    let (mut passed, mut wrong) = (0, Vec::new());
    for (i, program) in suite.programs.iter().enumerate() {
        let judged = match result.runs.get(&i) {
            Some(run) => verdict(program, run, &native[i]).expect("references are there"),
            None => Err("did not come back".to_string()),
        };
        keep(name, engine, &program.name, result.runs.get(&i), &native[i].run);
        let Err(why) = judged else {
            passed += 1;
            continue;
        };
        let reason = known(engine, name, &program.name);
        let same = result.runs.get(&i) == Some(&native[i].run);
        let otherwise = match (passes[i], same) {
            (true, _) => "natively it passes",
            (false, true) => "just as natively",
            (false, false) => "natively it fails too",
        };
        let note = reason.unwrap_or(otherwise);
        println!("{name}: {engine}: {}: {why} ({note})", program.name);
        if passes[i] && reason.is_none() {
            wrong.push(program.name.as_str());
        }
    }
    println!("{name}: {engine} {passed} of {total} in {:.0?}", result.took);
    let mut slowest: Vec<_> =
        result.times.iter().map(|(i, t)| (*t, suite.programs[*i].name.as_str())).collect();
    slowest.sort_unstable_by(|a, b| b.cmp(a));
    let slowest: Vec<_> = slowest.iter().take(5).map(|(t, name)| format!("{name} {t:.1?}")).collect();
    println!("{name}: {engine}: slowest: {}", slowest.join(", "));
    if result.runs.len() < total {
        println!("{}", result.console);
    }
    assert!(wrong.is_empty(), "{engine}: natively these pass: {wrong:?}");
}

macro_rules! suites {
    ($($test:ident: $name:literal $make:path, $engine:literal;)*) => {$(
        #[test]
        #[ignore = "fetches a suite and boots a stock kernel"]
        fn $test() {
            check($name, $make, $engine);
        }
    )*};
}

suites! {
    linux_selftests_on_interp: "selftests" selftests::suite, "interp";
    linux_selftests_on_jit: "selftests" selftests::suite, "jit";
    valgrind_instruction_tests_on_interp: "valgrind" valgrind::suite, "interp";
    valgrind_instruction_tests_on_jit: "valgrind" valgrind::suite, "jit";
    qemu_translator_tests_on_interp: "qemu-tcg" qemu_tcg::suite, "interp";
    qemu_translator_tests_on_jit: "qemu-tcg" qemu_tcg::suite, "jit";
}
