//! The reference engine: exact, portable, with a decoded-block cache.
