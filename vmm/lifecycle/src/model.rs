//! Which processor model a machine has when none is named.

/// A processor model's name, and why it is the one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultModel {
    /// The name.
    pub name: &'static str,
    /// Why, in one line.
    pub reason: String,
}

/// What `x86-64-v3` adds to `x86-64-v2` (System V ABI for x86-64, table 3.1),
/// with whether this host's processor and kernel have it.
fn additions() -> [(&'static str, bool); 7] {
    #[cfg(target_arch = "x86_64")]
    return [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("bmi1", std::is_x86_feature_detected!("bmi1")),
        ("bmi2", std::is_x86_feature_detected!("bmi2")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("lzcnt", std::is_x86_feature_detected!("lzcnt")),
        ("movbe", std::is_x86_feature_detected!("movbe")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    return ["avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"].map(|name| (name, false));
}

/// The model for this host: `x86-64-v3` where its processor has all of it, so
/// that the translator and hardware assist run the guest's code as it is, else
/// `x86-64-v2`. The interpreter has both everywhere.
pub fn default_model() -> DefaultModel {
    choose(&additions())
}

fn choose(additions: &[(&'static str, bool)]) -> DefaultModel {
    let missing: Vec<_> = additions.iter().filter(|a| !a.1).map(|a| a.0).collect();
    if missing.is_empty() {
        let reason = "the host's processor has all of it".to_string();
        return DefaultModel { name: "x86-64-v3", reason };
    }
    let reason = format!("the host's processor lacks {} of x86-64-v3", missing.join(", "));
    DefaultModel { name: "x86-64-v2", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_model_needs_everything_it_adds() {
        let all = additions().map(|(name, _)| (name, true));
        assert_eq!(choose(&all).name, "x86-64-v3");
        for i in 0..all.len() {
            let mut one_less = all;
            one_less[i].1 = false;
            let model = choose(&one_less);
            assert_eq!(model.name, "x86-64-v2");
            assert!(model.reason.contains(all[i].0), "{}", model.reason);
        }
    }

    #[test]
    fn both_are_models() {
        for name in ["x86-64-v2", "x86-64-v3"] {
            assert!(name.parse::<x86_state::CpuModel>().is_ok());
        }
    }
}
