//! kvm-unit-tests on every software engine: images built by hand from that
//! project's sources, in the folder that `STRATA_KVM_UNIT_TESTS` names (its `x86`),
//! the 32-bit ones in `STRATA_KVM_UNIT_TESTS_32`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guests::SOFTWARE_ENGINES;
use guests::machine::Guest;

/// Statuses of the command when a guest writes 0 or 1 to the debug exit port.
const PASSED: i32 = 1;
const FAILED: i32 = 3;
/// The suite's own "every test was skipped".
const SKIPPED: i32 = 77;
/// On a host with many times as much work as processors.
const LIMIT: Duration = Duration::from_secs(600);

/// An image, how it is run, and what comes of it.
struct Case {
    image: &'static str,
    /// The kernel's command line.
    append: &'static str,
    arguments: &'static [&'static str],
    status: i32,
    /// PASS lines, at least.
    passes: usize,
    /// Parts of the FAIL lines that may be, with their reasons.
    may_fail: &'static [(&'static str, &'static str)],
}

const fn case(image: &'static str, passes: usize) -> Case {
    Case { image, append: "", arguments: &[], status: PASSED, passes, may_fail: &[] }
}

const fn with(
    image: &'static str,
    append: &'static str,
    arguments: &'static [&'static str],
    passes: usize,
) -> Case {
    Case { append, arguments, ..case(image, passes) }
}

const fn skipped(image: &'static str) -> Case {
    Case { status: SKIPPED, ..case(image, 0) }
}

const APIC: &[(&str, &str)] = &[("TMCCT", "the timer runs out while a busy host executes something else")];

/// In a command line, the time of day in seconds.
const NOW: &str = "NOW";

const CASES: &[Case] = &[
    case("access_test", 1),
    Case { may_fail: APIC, ..with("apic", "", &["--cpus", "2"], 54) },
    case("debug", 25),
    case("emulator", 149),
    case("eventinj", 13),
    case("hpet_read_test", 1),
    case("hypercall", 4),
    case("idt_test", 4),
    with("ioapic", "", &["--cpus", "4"], 30),
    with("kvmclock_test", "100000 NOW", &["--cpus", "2"], 0),
    with("la57", "", &["--cpu", "x86-64-v2,+la57"], 52),
    case("lam", 19),
    case("memory", 6),
    case("msr", 1808),
    case("pcid", 2),
    with("pcid", "", &["--cpu", "x86-64-v2,-pcid,-invpcid"], 2),
    case("pmu", 1),
    case("rdpru", 1),
    case("realmode", 127),
    case("rmap_chain", 1),
    case("setjmp", 10),
    // 67 s of the interpreter's on an otherwise idle processor.
    case("sieve", 0),
    case("smap", 18),
    with("smptest", "", &["--cpus", "2"], 1),
    with("smptest", "", &["--cpus", "3"], 1),
    case("tsc", 3),
    case("tsc_adjust", 6),
    case("tscdeadline_latency", 1),
    case("umip", 21),
    with("vmexit", "cpuid", &[], 0),
    with("vmexit", "inl_from_pmtimer", &[], 0),
    with("vmexit", "ipi", &["--cpus", "2"], 0),
    case("xsave", 299),
    skipped("asyncpf"),
    skipped("cet"),
    skipped("hyperv_clock"),
    skipped("hyperv_connections"),
    skipped("hyperv_stimer"),
    skipped("hyperv_synic"),
    skipped("pks"),
    skipped("pku"),
    skipped("pmu_lbr"),
    skipped("pmu_pebs"),
    skipped("svm"),
    skipped("svm_npt"),
    skipped("tsx-ctrl"),
    skipped("vmx"),
];

const CASES_32: &[Case] = &[
    case("cmpxchg8b", 1),
    case("emulator", 84),
    case("eventinj", 15),
    case("msr", 1808),
    case("realmode", 127),
    case("setjmp", 10),
    case("smap", 18),
    with("smptest", "", &["--cpus", "2"], 1),
    case("taskswitch", 0),
    case("taskswitch2", 13),
    case("tsc", 3),
    case("umip", 21),
];

/// Run an image; what is wrong with the outcome, if anything.
fn wrong(engine: &str, folder: &Path, case: &Case) -> Option<String> {
    let image = folder.join(format!("{}.flat", case.image));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let append = case.append.replace(NOW, &now.to_string());
    let finished = Guest::new(engine)
        .with(&["--debug-exit", "--no-reboot", "--append", &append, "--kernel", &image.to_string_lossy()])
        .with(case.arguments)
        .limit(LIMIT)
        .run()
        .expect("the guest ends");
    let lines = |start| finished.text.lines().map(str::trim_start).filter(move |l| l.starts_with(start));
    let (passes, fails) = (lines("PASS").count(), lines("FAIL").count());
    let excused = lines("FAIL").all(|l| case.may_fail.iter().any(|(part, _)| l.contains(part)));
    println!(
        "{engine}: {} {:?} {:?}: status {:?}, {passes} pass, {fails} fail, {:.1?}",
        case.image, case.append, case.arguments, finished.status, finished.took
    );
    let status = if fails == 0 { case.status } else { FAILED };
    let good = finished.status == Some(status) && passes >= case.passes && excused;
    (!good).then(|| format!("{engine}: {}: {}", case.image, finished.text))
}

fn check(variable: &str, cases: &[Case]) {
    let Some(folder) = std::env::var_os(variable).map(PathBuf::from) else {
        return println!("skipped: {variable} names no folder of images");
    };
    let only = std::env::var("STRATA_ENGINES").ok();
    for engine in SOFTWARE_ENGINES.into_iter().filter(|e| only.as_deref().is_none_or(|o| o.contains(e))) {
        let wrong: Vec<String> = cases.iter().filter_map(|c| wrong(engine, &folder, c)).collect();
        let files = |status| {
            let mut names: Vec<_> = cases.iter().filter(|c| c.status == status).map(|c| c.image).collect();
            names.dedup();
            names.len()
        };
        println!("{engine}: {} files pass, {} skip themselves", files(PASSED), files(SKIPPED));
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn images_of_64_bits_end_as_listed() {
    check("STRATA_KVM_UNIT_TESTS", CASES);
}

#[test]
fn images_of_32_bits_end_as_listed() {
    check("STRATA_KVM_UNIT_TESTS_32", CASES_32);
}
