//! Requests that end or restart the machine.

/// Receives power and reset requests of chips. Called with the chip locked:
/// implementations note the request, wake who acts on it, and return.
pub trait PowerEvents: Send + Sync {
    /// The guest has entered soft-off (S5).
    fn power_off(&self);
    /// The guest has asked for a system reset.
    fn reset(&self);
}
