//! Every input that is kept goes through its target: what fuzzing reached stays
//! reached, with the ordinary toolchain.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fuzz_bodies::TARGETS;

/// Caps of what is kept, so that the repository stays small.
const MOST_INPUTS: usize = 32;
const MOST_BYTES: u64 = 2 << 10;
const MOST_BYTES_IN_ALL: u64 = 256 << 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("fuzz/bodies is in fuzz").to_path_buf()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|e| e.expect("a name").file_name().to_string_lossy().into_owned()).collect()
}

/// Run the inputs of one target.
fn replay(name: &str) {
    let (_, run) = TARGETS.iter().find(|t| t.0 == name).expect("a target");
    let folder = fuzz().join("seeds").join(name);
    for input in names(&folder) {
        // Told if it fails: a panic says nothing of the input.
        println!("{name}/{input}");
        run(&std::fs::read(folder.join(input)).expect("an input"));
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*
    };
}

fuzz_bodies::with_targets!(replays);

#[test]
fn targets_have_programs_and_inputs_and_these_are_few() {
    let all: BTreeSet<String> = TARGETS.iter().map(|t| t.0.to_string()).collect();
    let programs: BTreeSet<String> = all.iter().map(|n| format!("{n}.rs")).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), programs);
    assert_eq!(names(&fuzz().join("seeds")), all);
    let mut total = 0;
    for target in &all {
        let folder = fuzz().join("seeds").join(target);
        let inputs = names(&folder);
        assert!((1..=MOST_INPUTS).contains(&inputs.len()), "{target} has {}", inputs.len());
        for input in inputs {
            let len = folder.join(&input).metadata().expect("an input").len();
            assert!(len <= MOST_BYTES, "{target}/{input} has {len} bytes");
            total += len;
        }
    }
    assert!(total <= MOST_BYTES_IN_ALL, "{total} bytes are kept");
}
