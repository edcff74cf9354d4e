//! Whole guests under test: the built `strata` command runs a stock kernel, as a
//! user would, and what comes out of the serial port and the exit status is
//! judged.
//!
//! [`machine`] starts guests. [`packages`] gets the sources of suites that others
//! wrote by apt's ordinary client, [`suites`] builds their programs, and
//! [`runner`] runs all of them in one guest and natively on the host.

pub mod machine;
pub mod packages;
pub mod root_disk;
pub mod runner;
pub mod suites;

/// Engines that need nothing of the host.
pub const SOFTWARE_ENGINES: [&str; 2] = ["interp", "jit"];

/// Whether tests of many minutes or large downloads were asked for.
pub fn slow_tests() -> bool {
    std::env::var_os("STRATA_SLOW").is_some_and(|v| v == "1")
}

/// Whether whole suites were asked for, long programs of theirs sampled.
pub fn whole_suites() -> bool {
    std::env::var_os("STRATA_WHOLE").is_some_and(|v| v == "1")
}
