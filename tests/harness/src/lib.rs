//! Drives whole guests in tests.
