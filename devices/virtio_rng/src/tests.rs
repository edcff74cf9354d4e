//! The device, driven by the mock driver.

use std::time::Duration;

use virtio_core::VirtioDevice;
use virtio_core::mock::{Bench, BenchConfig};

use super::*;

fn bench(source: Source, rate: u64, inline: bool) -> Bench<Rng> {
    Bench::new(Rng::new(source, rate), BenchConfig { inline, ..BenchConfig::default() })
}

#[test]
fn buffers_are_filled_up_to_the_cap() {
    let mut b = bench(Source::Host, u64::MAX, false);
    let first = b.request(0, &[], &[64]);
    let second = b.request(0, &[], &[32, 32]);
    assert_eq!((first.data.len(), second.data.len()), (64, 64));
    assert_ne!(first.data, second.data);
    assert_eq!(b.request(0, &[], &[100_000]).written as usize, MAX_REQUEST);
    assert_eq!(b.request(0, &[b"odd"], &[]).written, 0, "nothing to write is no fault");
    assert!(!b.interrupts.needs_reset());
    b.until("an interrupt", |b| b.interrupts.take_queue(0) > 0);
}

#[test]
fn beyond_the_rate_buffers_wait() {
    let mut b = bench(Source::Host, 20_000, false);
    assert_eq!(b.request(0, &[], &[20_000]).written, 20_000, "a second's worth at once");
    let start = Instant::now();
    let mut got = 0;
    while got < 4_000 {
        got += b.request(0, &[], &[20_000]).written;
    }
    assert!(start.elapsed() >= Duration::from_millis(150), "{got} bytes after {:?}", start.elapsed());
}

#[test]
fn a_seeded_source_repeats_and_goes_on_after_a_restore() {
    let run = |replaced: bool| {
        let mut b = bench(Source::Seeded(7), DEFAULT_RATE, true);
        let mut data = b.request(0, &[], &[40]).data;
        if replaced {
            b.replace(Rng::new(Source::Seeded(0), DEFAULT_RATE));
        }
        data.extend(b.request(0, &[], &[24]).data);
        data
    };
    assert_eq!(run(false), run(true));
    let mut host = Rng::new(Source::Host, 1);
    assert!(host.restore(&[0; 8]).is_err());
}
