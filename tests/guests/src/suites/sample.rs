//! Which programs of a suite one run takes. All of them, on every engine, are
//! minutes; a sample that turns with the day covers all of them in as many days
//! as its step, and each run says how to repeat it. [`enumeration`] does the same
//! within single programs.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::{Recipe, enumeration};
use crate::{slow_tests, whole_suites};

/// Repeats a sample.
const SEED: &str = "STRATA_SAMPLE_SEED";
const SECONDS_OF_A_DAY: u64 = 86_400;

/// The programs to take, which they are in words, and how many there must be.
///
/// `STRATA_PROGRAMS` is a part of the names of those wanted; with `STRATA_SLOW=1`
/// it is all, enumerations in full; with `STRATA_WHOLE=1` all, enumerations
/// sampled; else every `step`th of the latter.
///
/// # Errors
/// When the seed that the environment gives is no number.
pub(super) fn choose(recipes: &[Recipe], step: usize) -> Result<(Vec<&Recipe>, String, usize)> {
    let all = |keep: &dyn Fn(&Recipe) -> bool, words: String| {
        let wanted: Vec<_> = recipes.iter().filter(|r| keep(r)).collect();
        let count = wanted.len();
        Ok((wanted, words, count))
    };
    if let Ok(part) = std::env::var("STRATA_PROGRAMS") {
        return all(&|r| r.name.contains(&part), format!("those with \"{part}\" in their names"));
    }
    if slow_tests() {
        return all(&|r| !r.sampled, "all, enumerations in full".to_string());
    }
    let seed = seed()?;
    let quick: Vec<&Recipe> = recipes.iter().filter(|r| !enumeration::is_full(&r.name)).collect();
    if whole_suites() {
        let count = quick.len();
        return Ok((quick, format!("all, enumerations sampled by {SEED}={seed}"), count));
    }
    let count = (quick.len() + turn(seed, step)) / step;
    let text = format!(
        "one in {step} of {} by {SEED}={seed}; STRATA_WHOLE=1 takes all, STRATA_SLOW=1 enumerations in full",
        quick.len()
    );
    Ok((every(&quick, seed, step), text, count))
}

/// What turns this run's samples: the environment's, else the day.
///
/// # Errors
/// When the environment's is no number.
pub(super) fn seed() -> Result<u64> {
    match std::env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED} is \"{text}\"; give a whole number")),
        Err(_) => {
            Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) / SECONDS_OF_A_DAY)
        }
    }
}

/// How far a seed turns the sample: below `step`.
pub(super) fn turn(seed: u64, step: usize) -> usize {
    (seed % step as u64) as usize
}

/// Every `step`th item, turned by `seed`.
fn every<T: Copy>(items: &[T], seed: u64, step: usize) -> Vec<T> {
    items.iter().skip(step - 1 - turn(seed, step)).step_by(step).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_seeds_as_the_step_take_every_item_once() {
        for (count, step) in [(53, 4), (98, 5), (10, 1), (2, 3), (0, 2)] {
            let items: Vec<usize> = (0..count).collect();
            let mut taken = Vec::new();
            for seed in 20_000..20_000 + step as u64 {
                let sample = every(&items, seed, step);
                assert_eq!(sample, every(&items, seed, step));
                assert_eq!(sample.len(), (count + turn(seed, step)) / step, "{count} by {step}, seed {seed}");
                taken.extend(sample);
            }
            taken.sort_unstable();
            assert_eq!(taken, items);
        }
    }
}
