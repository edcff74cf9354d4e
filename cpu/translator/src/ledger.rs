//! What translation has cost and brought, and who is told of each block.

use std::sync::Arc;
use std::time::Instant;

use crate::recorder::Recorder;

/// Sums over all blocks translated so far, dropped ones included.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Guest instructions.
    pub instructions: u64,
    /// Bytes of guest code.
    pub guest_bytes: u64,
    /// Bytes of host code made of it.
    pub host_bytes: u64,
    /// Nanoseconds it took.
    pub nanos: u64,
    /// Told of each block.
    pub recorder: Option<Arc<Recorder>>,
}

/// One block, as the ledger wants it.
pub(crate) struct Entry<'a> {
    pub began: Instant,
    /// Guest linear address.
    pub guest: u64,
    pub guest_len: u32,
    pub instructions: usize,
    /// Where the code is executed.
    pub host: u64,
    pub code: &'a [u8],
}

impl Ledger {
    /// A block was translated.
    pub fn note(&mut self, entry: &Entry<'_>) {
        self.instructions += entry.instructions as u64;
        self.guest_bytes += u64::from(entry.guest_len);
        self.host_bytes += entry.code.len() as u64;
        self.nanos += entry.began.elapsed().as_nanos() as u64;
        if let Some(recorder) = &self.recorder {
            recorder.block(entry.guest, entry.host, entry.code);
        }
    }

    pub fn counters(&self) -> [(&'static str, u64); 4] {
        [
            ("instructions_translated", self.instructions),
            ("guest_bytes_translated", self.guest_bytes),
            ("host_bytes_translated", self.host_bytes),
            ("translate_ns", self.nanos),
        ]
    }
}
