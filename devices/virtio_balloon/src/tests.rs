//! The balloon, driven by the mock driver.

use guest_memory::{PAGE_SIZE, RamOffset};
use virtio_core::mock::{Bench, BenchConfig};

use super::*;

const STATS: u16 = 2;
const REPORTING: u16 = 3;
/// Pages in the bench's memory for buffers of the first queue, which no test posts whole.
const PAGES: std::ops::Range<u64> = 0x200..0x210;

fn bench() -> (Bench<Balloon>, BalloonHandle) {
    let balloon = Balloon::new(true);
    let handle = balloon.handle();
    let bench = Bench::new(balloon, BenchConfig::default());
    for page in PAGES {
        bench.memory.fill(RamOffset(page * PAGE_SIZE), 0xaau8, PAGE_SIZE as usize);
    }
    (bench, handle)
}

fn kept(bench: &Bench<Balloon>) -> Vec<u64> {
    PAGES
        .filter(|p| bench.memory.read::<u8>(RamOffset(p * PAGE_SIZE)) == 0xaa)
        .map(|p| p - PAGES.start)
        .collect()
}

#[test]
fn pages_in_the_balloon_go_back_to_the_host() {
    let (mut b, handle) = bench();
    // Up, down, apart, twice, and two that are not memory.
    let pages = [0u32, 1, 2, 9, 8, 7, 12, 12, 0xffff_fd00, 0x000f_0000];
    let list: Vec<u8> = pages.iter().flat_map(|p| p.wrapping_add(PAGES.start as u32).to_le_bytes()).collect();
    let r = b.request(INFLATE as u16, &[&list[..10], &list[10..]], &[]);
    assert_eq!(r.written, 0);
    assert_eq!(kept(&b), [3, 4, 5, 6, 10, 11, 13, 14, 15]);
    assert_eq!(handle.given_back(), 8 * PAGE_SIZE);
    b.request(DEFLATE as u16, &[&list[..8]], &[]);
    b.request(INFLATE as u16, &[&[1, 2, 3]], &[]);
    assert!(!b.interrupts.needs_reset());
}

#[test]
fn reported_pages_go_back_to_the_host() {
    let (mut b, handle) = bench();
    let at = (PAGES.start + 4) * PAGE_SIZE;
    b.queues[usize::from(REPORTING)].add(&[], &[(at, 3 * PAGE_SIZE as u32), (at + 0x5800, 0x1000)]).unwrap();
    b.kick(REPORTING);
    b.until("the report", |b| b.queues[usize::from(REPORTING)].take_used().is_some());
    assert_eq!(kept(&b), [0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(handle.given_back(), 3 * PAGE_SIZE);
}

#[test]
fn the_owner_sets_a_target_and_sees_what_the_driver_does() {
    let (mut b, handle) = bench();
    handle.set_target(5 * PAGE_SIZE + 1);
    assert_eq!(b.interrupts.take_config(), 1);
    let mut words = [0; 12];
    b.device.config_read(0, &mut words);
    assert_eq!(words, [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    b.device.config_write(4, &3u32.to_le_bytes());
    b.device.config_write(0, &[9]);
    assert_eq!((handle.actual(), handle.target()), (3 * PAGE_SIZE, 5 * PAGE_SIZE));
    b.replace(Balloon::new(true));
    b.device.config_read(0, &mut words[..8]);
    assert_eq!(words[..8], [5, 0, 0, 0, 3, 0, 0, 0]);
}

#[test]
fn statistics_come_when_asked_for() {
    let (mut b, handle) = bench();
    let stats = |free: u64| {
        let list = [(4u16, free), (5, 1 << 30), (0, u64::MAX), (99, 1)];
        list.iter()
            .flat_map(|(tag, v)| [&tag.to_le_bytes()[..], &v.to_le_bytes()].concat())
            .collect::<Vec<u8>>()
    };
    let id = b.post(STATS, &[&stats(7)], &[]);
    b.kick(STATS);
    b.until("the first statistics", |_| handle.stats().is_some());
    let expected = BalloonStats { free: Some(7), total: Some(1 << 30), ..BalloonStats::default() };
    assert_eq!(handle.stats(), Some(expected));
    assert_eq!(b.poll(STATS), None, "the buffer is kept");
    handle.ask_for_stats();
    assert_eq!(b.wait(STATS).id, id);
    b.post(STATS, &[&stats(8)], &[]);
    b.kick(STATS);
    b.until("the second", |_| handle.stats().is_some_and(|s| s.free == Some(8)));
    // A buffer that is kept goes back to the ring, and is read again afterwards.
    let queues = b.device.quiesce();
    assert!(queues[usize::from(STATS)].as_ref().is_some_and(Queue::has_available));
}

#[test]
fn states_of_another_length_are_refused() {
    let mut balloon = Balloon::new(false);
    assert!(balloon.restore(&[0; 7]).is_err() && balloon.restore(&[0; 12]).is_err());
    assert_eq!(balloon.queue_sizes().len(), 3);
}
