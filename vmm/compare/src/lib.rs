//! Lock-step comparison of two engines.
