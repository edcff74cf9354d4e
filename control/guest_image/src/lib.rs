//! The default guest of `strata run`.
