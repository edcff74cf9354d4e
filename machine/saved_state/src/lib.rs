//! Versioned, engine-neutral saved state.
