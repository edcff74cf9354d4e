//! Rate-limited logging for everything a guest can trigger.
//!
//! A guest may do what is worth a line (an unknown port, a refused register)
//! millions of times a second. Each source of such lines owns a [`RateLog`]:
//! a burst of lines passes in each interval, the rest are only counted, and the
//! next line that passes says how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where lines go. The default is standard error.
pub type LineSink = Box<dyn Fn(&str) + Send + Sync>;

struct Window {
    started: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

/// A source of log lines with a limit.
pub struct RateLog {
    source: &'static str,
    burst: u32,
    interval: Duration,
    sink: LineSink,
    window: Mutex<Window>,
}

impl RateLog {
    /// Lines that pass in each interval unless told otherwise.
    pub const DEFAULT_BURST: u32 = 10;
    /// The interval unless told otherwise.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

    /// Log to standard error under a source name, with the default limit.
    pub fn new(source: &'static str) -> Self {
        Self::with_limit(
            source,
            Self::DEFAULT_BURST,
            Self::DEFAULT_INTERVAL,
            Box::new(|line| {
                use std::io::Write;
                // A closed standard error is no reason to stop a machine.
                let _ = writeln!(std::io::stderr(), "{line}");
            }),
        )
    }

    /// Log to `sink`, at most `burst` lines in each `interval`.
    pub fn with_limit(source: &'static str, burst: u32, interval: Duration, sink: LineSink) -> Self {
        let window = Mutex::new(Window { started: None, lines: 0, suppressed: 0 });
        RateLog { source, burst, interval, sink, window }
    }

    /// Log the line that `make` builds, unless the limit is reached; `make` is
    /// not called then, so that a suppressed line costs no formatting.
    pub fn report(&self, make: impl FnOnce() -> String) {
        let now = Instant::now();
        let left_out = {
            let mut w = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            if w.started.is_none_or(|s| now.duration_since(s) >= self.interval) {
                w.started = Some(now);
                w.lines = 0;
            }
            if w.lines >= self.burst {
                w.suppressed = w.suppressed.saturating_add(1);
                return;
            }
            w.lines += 1;
            std::mem::take(&mut w.suppressed)
        };
        let line = make();
        match left_out {
            0 => (self.sink)(&format!("{}: {line}", self.source)),
            n => (self.sink)(&format!("{}: {line} ({n} earlier lines left out)", self.source)),
        }
    }

    /// Lines left out since the last one that passed.
    pub fn suppressed(&self) -> u64 {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).suppressed
    }
}

impl std::fmt::Debug for RateLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLog").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_burst_passes_the_rest_is_counted_and_named_later() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = lines.clone();
        let log = RateLog::with_limit(
            "pit",
            2,
            Duration::from_millis(20),
            Box::new(move |l| to.lock().unwrap().push(l.to_string())),
        );
        for i in 0..5 {
            log.report(|| {
                assert!(i < 2, "a suppressed line was formatted");
                format!("line {i}")
            });
        }
        assert_eq!(log.suppressed(), 3);
        std::thread::sleep(Duration::from_millis(25));
        log.report(|| "again".to_string());
        assert_eq!(
            *lines.lock().unwrap(),
            ["pit: line 0", "pit: line 1", "pit: again (3 earlier lines left out)"]
        );
        assert_eq!(log.suppressed(), 0);
    }
}
