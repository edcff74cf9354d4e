//! What a machine's end does for its devices.
//!
//! Images keep tables in this process's memory until they are flushed, and a guest that
//! dies does not ask for that. So each device is brought to rest and its disk flushed,
//! all at once and with one limit: storage of the host's that does not answer must not
//! keep the machine's process.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use board::Board;

/// How long the devices may take. Who tells a machine's process to end waits longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a machine's end could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndFault {
    /// A disk was not written to its end.
    #[error("{id}: what the guest wrote last may be missing: {error}; look at its storage")]
    Disk {
        /// The device's name.
        id: String,
        /// The disk's error.
        error: String,
    },
    /// A device did not answer.
    #[error(
        "{id} did not come to rest in {limit:?}: what the guest wrote last may be missing; look at its storage"
    )]
    Late {
        /// The device's name.
        id: String,
        /// How long it had.
        limit: Duration,
    },
}

/// Bring every device to rest and flush its disk. No vCPU runs any more. A device that
/// takes too long keeps the board, so that nobody waits for it to be closed.
pub(crate) fn finish_devices(board: &Arc<Board>, limit: Duration) -> Vec<EndFault> {
    let until = Instant::now() + limit;
    let (sender, done) = channel();
    let mut waiting = Vec::new();
    let mut faults = Vec::new();
    let judge = |id: String, result: Result<(), disk::DiskError>| {
        result.err().map(|error| EndFault::Disk { id, error: error.to_string() })
    };
    for device in board.ending_devices() {
        let id = device.id().to_string();
        let (own, sender, told) = ((device.clone(), board.clone()), sender.clone(), id.clone());
        let body = move || {
            let result = own.0.finish();
            // Before it is told: the owner is the last to hold the board.
            drop(own);
            let _ = sender.send((told, result));
        };
        match std::thread::Builder::new().name(format!("end-{id}")).spawn(body) {
            Ok(_) => waiting.push(id),
            // The host refuses a thread.
            Err(_) => faults.extend(judge(id, device.finish())),
        }
    }
    drop(sender);
    while !waiting.is_empty() {
        // An end without an answer is a panic, which has been printed.
        let Ok((id, result)) = done.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            break;
        };
        waiting.retain(|other| *other != id);
        faults.extend(judge(id, result));
    }
    faults.extend(waiting.into_iter().map(|id| EndFault::Late { id, limit }));
    faults
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::Receiver;

    use board::{BoardIo, DiskSpec, MachineSpec};
    use disk::{Disk, DiskError, Geometry};

    use super::*;

    /// A disk whose flush is what it is told to be: without an answer it waits.
    struct Told(Mutex<Receiver<Result<(), DiskError>>>);

    impl Disk for Told {
        fn geometry(&self) -> Geometry {
            Geometry { size: 1 << 20, logical_block: 512, physical_block: 512, discard_unit: 512 }
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read(&self, _offset: u64, _to: &mut [u8]) -> Result<(), DiskError> {
            Ok(())
        }
        fn write(&self, _offset: u64, _from: &[u8]) -> Result<(), DiskError> {
            Ok(())
        }
        fn flush(&self) -> Result<(), DiskError> {
            self.0.lock().unwrap().recv().unwrap_or(Ok(()))
        }
        fn discard(&self, _offset: u64, _len: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<(), DiskError> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_fails_or_hangs_is_told_and_holds_up_no_other() {
        let spec = MachineSpec { memory: 2 << 20, serial: Vec::new(), ..MachineSpec::default() };
        let board = Board::build(spec, BoardIo::new()).unwrap();
        let mut answers = Vec::new();
        for _ in 0..3 {
            let (answer, flush) = channel();
            board.add_disk(&DiskSpec::new("told"), Arc::new(Told(Mutex::new(flush)))).unwrap();
            answers.push(answer);
        }
        // The first hangs.
        answers[1].send(Err(DiskError::NoSpace)).unwrap();
        answers[2].send(Ok(())).unwrap();
        let limit = Duration::from_millis(300);
        let faults = finish_devices(&board, limit);
        let error = DiskError::NoSpace.to_string();
        let expect =
            [EndFault::Disk { id: "disk-1".into(), error }, EndFault::Late { id: "disk-0".into(), limit }];
        assert_eq!(faults, expect);
        // Who closes the board now would wait for that disk: its thread keeps it.
        let weak = Arc::downgrade(&board);
        drop(board);
        assert!(weak.upgrade().is_some());
        answers.clear();
        let start = Instant::now();
        while weak.upgrade().is_some() {
            assert!(start.elapsed() < PATIENCE, "the board stays");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
