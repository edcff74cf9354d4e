//! Long work, shown on standard error: bars on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_image::Progress;
use indicatif::{ProgressBar, ProgressStyle};

const BYTES: &str = "strata: {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const STEPS: &str = "strata: {bar:24} {pos}/{len} {msg} [{elapsed}]";
/// How often a bar moves by itself, to show the time.
const TICK: Duration = Duration::from_millis(250);

/// Shows steps and downloads.
pub struct Bars {
    bar: Mutex<Option<ProgressBar>>,
    start: Instant,
}

impl Bars {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Bars { bar: Mutex::new(None), start: Instant::now() }
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is constant and valid");
    ProgressBar::new(length).with_style(style)
}

impl Progress for Bars {
    fn phase(&self, text: &str) {
        self.clear();
        eprintln!("strata: {text}");
    }

    fn step(&self, number: usize, of: usize, text: &str) {
        if number >= of {
            self.clear();
        } else if std::io::stderr().is_terminal() {
            let mut shown = self.bar();
            let shown = shown.get_or_insert_with(|| bar(of as u64, STEPS));
            shown.enable_steady_tick(TICK);
            shown.set_length(of as u64);
            shown.set_position(number as u64);
            shown.set_message(text.to_string());
        } else {
            eprintln!("strata: {:>5.1} s  {}/{of} {text}", self.start.elapsed().as_secs_f64(), number + 1);
        }
    }

    fn bytes(&self, done: u64, total: u64) {
        let mut shown = self.bar();
        let shown = shown.get_or_insert_with(|| bar(total, BYTES));
        shown.set_length(total);
        shown.set_position(done);
    }
}
