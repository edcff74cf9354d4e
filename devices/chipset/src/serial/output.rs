//! Where a serial port's bytes go.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Receives a port's bytes, with the device locked.
pub trait SerialOutput: Send {
    /// Take bytes, or drop them; never block for longer than [`BufferedOutput::STUCK_AFTER`].
    fn put(&mut self, bytes: &[u8]);
}

impl<F: FnMut(&[u8]) + Send> SerialOutput for F {
    fn put(&mut self, bytes: &[u8]) {
        self(bytes);
    }
}

struct Queue {
    bytes: VecDeque<u8>,
    /// The port is gone: write what is there and end.
    closed: bool,
    /// The reader made no progress for too long; bytes are dropped until it does.
    stuck: bool,
    /// The writer is writing bytes it has taken from the queue, or has failed.
    busy: bool,
    failed: bool,
    dropped: u64,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Output through a thread of its own, so that a reader that has stopped reading
/// cannot stop a vCPU: a slow reader slows the guest down, a stuck one loses bytes.
pub struct BufferedOutput(Arc<Shared>);

impl BufferedOutput {
    /// Most bytes that wait for the reader.
    pub const CAPACITY: usize = 256 << 10;
    /// How long a full queue may stand still before bytes are dropped.
    pub const STUCK_AFTER: Duration = Duration::from_secs(1);
    /// Most bytes in one write.
    const CHUNK: usize = 16 << 10;

    /// Start the thread.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn spawn(name: &str, writer: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let queue = Queue {
            bytes: VecDeque::new(),
            closed: false,
            stuck: false,
            busy: false,
            failed: false,
            dropped: 0,
        };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        let to = shared.clone();
        std::thread::Builder::new().name(name.to_string()).spawn(move || Self::write_all(&to, writer))?;
        Ok(BufferedOutput(shared))
    }

    fn write_all(shared: &Shared, mut writer: Box<dyn Write + Send>) {
        let mut queue = shared.lock();
        loop {
            if queue.bytes.is_empty() {
                if queue.closed {
                    return;
                }
                queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let n = queue.bytes.len().min(Self::CHUNK);
            let chunk: Vec<u8> = queue.bytes.drain(..n).collect();
            queue.busy = true;
            queue.stuck = false;
            shared.changed.notify_all();
            drop(queue);
            let result = writer.write_all(&chunk).and_then(|()| writer.flush());
            queue = shared.lock();
            queue.busy = false;
            shared.changed.notify_all();
            if result.is_err() {
                // Nobody reads any more: the port goes on without an output.
                queue.failed = true;
                queue.bytes = VecDeque::new();
                return;
            }
        }
    }

    /// Bytes dropped because the reader was stuck or gone.
    pub fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }
}

impl SerialOutput for BufferedOutput {
    fn put(&mut self, bytes: &[u8]) {
        let mut queue = self.0.lock();
        let until = Instant::now() + Self::STUCK_AFTER;
        while queue.bytes.len() + bytes.len() > Self::CAPACITY && !queue.stuck && !queue.failed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                queue.stuck = true;
            } else {
                queue = self.0.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if queue.failed || queue.bytes.len() + bytes.len() > Self::CAPACITY {
            queue.dropped = queue.dropped.saturating_add(bytes.len() as u64);
            return;
        }
        // A busy writer looks again when it is done: only an idle one needs waking.
        let idle = queue.bytes.is_empty() && !queue.busy;
        queue.bytes.extend(bytes);
        if idle {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for BufferedOutput {
    /// Waits for the last bytes, but no longer than for a stuck reader.
    fn drop(&mut self) {
        let until = Instant::now() + Self::STUCK_AFTER;
        let mut queue = self.0.lock();
        queue.closed = true;
        self.0.changed.notify_all();
        while (queue.busy || !queue.bytes.is_empty()) && !queue.failed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.0.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Gate {
        written: Arc<Mutex<Vec<u8>>>,
        open: Arc<(Mutex<bool>, Condvar)>,
    }
    impl Write for Gate {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            let mut open = self.open.0.lock().unwrap();
            while !*open {
                open = self.open.1.wait(open).unwrap();
            }
            self.written.lock().unwrap().extend(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl Gate {
        fn open(&self) {
            *self.open.0.lock().unwrap() = true;
            self.open.1.notify_all();
        }
    }

    #[test]
    fn all_bytes_arrive_in_order() {
        let gate = Gate::default();
        gate.open();
        let mut out = BufferedOutput::spawn("test", Box::new(gate.clone())).unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        sent.chunks(999).for_each(|c| out.put(c));
        drop(out);
        assert_eq!(*gate.written.lock().unwrap(), sent);
    }

    #[test]
    fn a_stuck_reader_costs_one_wait_and_bounded_memory() {
        let gate = Gate::default();
        let mut out = BufferedOutput::spawn("test", Box::new(gate.clone())).unwrap();
        let start = Instant::now();
        for _ in 0..2 * BufferedOutput::CAPACITY / 1024 {
            out.put(&[b'x'; 1024]);
        }
        let spent = start.elapsed();
        assert!(spent >= BufferedOutput::STUCK_AFTER && spent < 2 * BufferedOutput::STUCK_AFTER, "{spent:?}");
        assert!(out.dropped() > 0);
        assert!(out.0.lock().bytes.len() <= BufferedOutput::CAPACITY);
        gate.open();
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut out = BufferedOutput::spawn("test", Box::new(Gone)).unwrap();
        for _ in 0..2000 {
            out.put(&[0; 1024]);
        }
        assert!(out.dropped() > 0);
    }
}
