//! The mock driver against the queues of a device, in both formats.

mod echo;

use echo::{Echo, SIZES};
use guest_memory::GuestMemory;
use proptest::prelude::*;
use virtio_core::features::{EVENT_IDX, INDIRECT_DESC, RING_PACKED, VERSION_1};
use virtio_core::mock::{Bench, BenchConfig, DriverQueue, SeenInterrupts, Wish};
use virtio_core::{Chain, Interrupt, Queue, VirtioDevice};

/// Every set of ring features.
fn feature_sets() -> impl Iterator<Item = u64> {
    (0..8u64).map(|n| {
        let bits = [RING_PACKED, EVENT_IDX, INDIRECT_DESC].into_iter().enumerate();
        bits.filter(|(i, _)| n >> i & 1 != 0).fold(VERSION_1, |f, (_, bit)| f | bit)
    })
}

fn inverted(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| !b).collect()
}

#[test]
fn chains_of_all_shapes_come_back() {
    for (features, inline) in feature_sets().flat_map(|f| [(f, true), (f, false)]) {
        let mut bench = Bench::new(Echo::default(), BenchConfig { features, inline });
        for round in 0..200u32 {
            let bytes: Vec<u8> = (0..round % 97).map(|i| (i * 7 + round) as u8).collect();
            let (a, b) = bytes.split_at(bytes.len() / 3);
            let queue = (round % 2) as u16;
            let (readable, writable): (&[&[u8]], &[u32]) = match round % 4 {
                0 => (&[&bytes], &[200]),
                1 => (&[a, b], &[1, 0, 199]),
                2 => (&[a, &[], b], &[16, 200]),
                _ => (&[&bytes], &[3]),
            };
            let room: u32 = writable.iter().sum();
            let expected = inverted(&bytes[..bytes.len().min(room as usize)]);
            let r = bench.request(queue, readable, writable);
            assert_eq!(
                (r.written as usize, &r.data),
                (expected.len(), &expected),
                "{features:#x} round {round}"
            );
        }
        assert!(!bench.interrupts.needs_reset());
        bench.device.quiesce();
        assert_eq!(bench.device.answered(), 200);
    }
}

/// What a driver does.
#[derive(Debug, Clone)]
enum Step {
    Post {
        queue: u16,
        readable: Vec<u8>,
        writable: Vec<u32>,
    },
    Kick(u16),
    Poll(u16),
    Wish(u16, bool),
    /// The device is saved, and another goes on with its state.
    Replace,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..SIZES.len() as u16;
    let post =
        (queue.clone(), prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(0u32..200, 1..4));
    prop_oneof![
        6 => post.prop_map(|(queue, readable, writable)| Step::Post { queue, readable, writable }),
        4 => queue.clone().prop_map(Step::Kick),
        5 => queue.clone().prop_map(Step::Poll),
        1 => (queue, any::<bool>()).prop_map(|(q, on)| Step::Wish(q, on)),
        1 => Just(Step::Replace),
    ]
}

/// What came back, in order, queue by queue.
fn transcript(features: u64, steps: &[Step]) -> Vec<(u16, u32, Vec<u8>)> {
    let mut bench = Bench::new(Echo::default(), BenchConfig { features, inline: true });
    let mut seen = Vec::new();
    let mut quiet = [false; SIZES.len()];
    for step in steps {
        match step {
            Step::Post { queue, readable, writable } => {
                // Room in the ring, whatever shape the format gives a chain.
                let busy = bench.queues[usize::from(*queue)].outstanding() + 1;
                if busy * 6 <= usize::from(SIZES[usize::from(*queue)]) || busy == 1 {
                    let (a, b) = readable.split_at(readable.len() / 2);
                    bench.post(*queue, &[a, b], writable);
                }
            }
            Step::Kick(queue) => {
                bench.kick(*queue);
                let told = bench.interrupts.take_queue(*queue) > 0;
                assert!(!told || !quiet[usize::from(*queue)], "an interrupt that nobody wished for");
            }
            Step::Poll(queue) => {
                if let Some(r) = bench.poll(*queue) {
                    seen.push((*queue, r.written, r.data));
                    quiet[usize::from(*queue)] = false;
                }
            }
            Step::Wish(queue, on) => {
                let q = usize::from(*queue);
                bench.queues[q].wish(if *on { Wish::Next } else { Wish::Never });
                bench.interrupts.take_queue(*queue);
                quiet[q] = !on;
            }
            Step::Replace => {
                // A restored device rings for itself and may speak of what it finds.
                bench.replace(Echo::default());
                (0..SIZES.len() as u16).for_each(|q| _ = bench.interrupts.take_queue(q));
            }
        }
    }
    for queue in 0..SIZES.len() as u16 {
        while bench.queues[usize::from(queue)].outstanding() > 0 {
            bench.kick(queue);
            let r = bench.wait(queue);
            seen.push((queue, r.written, r.data));
        }
    }
    assert!(!bench.interrupts.needs_reset());
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_same_traffic_has_the_same_result_in_every_format(steps in prop::collection::vec(step(), 1..120)) {
        // Polling sees what was used so far, which depends on suppressed doorbells
        // only in time; each queue's order is what counts.
        let by_queue = |features| {
            let t = transcript(features, &steps);
            (0..SIZES.len() as u16)
                .map(|q| t.iter().filter(|r| r.0 == q).cloned().collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        let first = by_queue(VERSION_1);
        for features in feature_sets() {
            prop_assert_eq!(&by_queue(features), &first, "features {:#x}", features);
        }
    }

    #[test]
    fn chains_are_completed_in_any_order(
        size in prop::sample::select(vec![2u16, 4, 16]),
        rounds in prop::collection::vec((1usize..5, any::<u64>(), 0usize..3), 1..40),
    ) {
        for features in feature_sets() {
            out_of_order(features, size, &rounds);
        }
    }
}

struct Pair {
    driver: DriverQueue,
    queue: Queue,
    seen: std::sync::Arc<SeenInterrupts>,
}

fn pair(features: u64, size: u16) -> Pair {
    let memory = GuestMemory::flat(DriverQueue::footprint(size) + 0x4000).unwrap();
    let driver = DriverQueue::new(memory.clone(), 0x2000, size, features);
    let seen = std::sync::Arc::new(SeenInterrupts::default());
    let interrupt = Interrupt::new("test", seen.clone());
    Pair { queue: Queue::new(memory, driver.config(0), interrupt, None).unwrap(), driver, seen }
}

/// Each round posts chains, takes some, puts some of these back, and completes
/// those it has in an order of its own, all of them at once or one by one.
fn out_of_order(features: u64, size: u16, rounds: &[(usize, u64, usize)]) {
    let Pair { mut driver, mut queue, .. } = pair(features, size);
    let (mut held, mut owed): (Vec<Chain>, Vec<u16>) = (Vec::new(), Vec::new());
    for &(count, order, back) in rounds {
        for _ in 0..count {
            owed.extend(driver.add(&[(0x100, 10)], &[(0x200, 20)]));
        }
        let mut taken: Vec<Chain> = std::iter::from_fn(|| queue.pop()).collect();
        for chain in taken.split_off(taken.len().saturating_sub(back)).into_iter().rev() {
            queue.put_back(chain);
        }
        held.extend(taken);
        let turn = order as usize % held.len().max(1);
        held.rotate_left(turn);
        let done = held.split_off(held.len() / 2);
        let expected = done.len();
        match order & 1 {
            0 => queue.complete_all(done.into_iter().map(|c| (c, 7))),
            _ => done.into_iter().for_each(|c| queue.complete(c, 7)),
        }
        for _ in 0..expected {
            let (id, written) = driver.take_used().expect("a completed chain shows");
            assert_eq!(written, 7);
            let at = owed.iter().position(|&o| o == id).expect("a chain that was posted");
            owed.remove(at);
        }
        assert_eq!(driver.take_used(), None);
    }
    held.extend(std::iter::from_fn(|| queue.pop()));
    queue.complete_all(held.into_iter().map(|c| (c, 0)));
    while let Some((id, _)) = driver.take_used() {
        owed.retain(|&o| o != id);
    }
    assert!(owed.is_empty() && driver.outstanding() == 0, "every chain came back once");
}

#[test]
fn doorbells_are_asked_for_only_when_the_device_has_run_dry() {
    for features in feature_sets() {
        let Pair { mut driver, mut queue, .. } = pair(features, 4);
        for round in 0..30 {
            assert!(queue.pop().is_none());
            let post = |driver: &mut DriverQueue| driver.add(&[(0x100, 1)], &[]).unwrap();
            post(&mut driver);
            assert!(driver.needs_doorbell(), "{features:#x} round {round}: the device sleeps");
            let first = queue.pop().unwrap();
            post(&mut driver);
            post(&mut driver);
            assert!(!driver.needs_doorbell(), "{features:#x} round {round}: the device is at work");
            let rest = [queue.pop().unwrap(), queue.pop().unwrap()];
            queue.complete_all([first].into_iter().chain(rest).map(|c| (c, 0)));
            while driver.take_used().is_some() {}
        }
    }
}

#[test]
fn interrupts_come_when_wished_for() {
    for features in feature_sets() {
        let Pair { mut driver, mut queue, seen } = pair(features, 8);
        let events = features & EVENT_IDX != 0;
        // Not a divisor of the ring's size, so that every place of the ring has its turn.
        for round in 0..50 {
            for (wish, signals) in [
                (Wish::Next, [true, !events, !events]),
                (Wish::Never, [false; 3]),
                (Wish::After(1), [!events, true, !events]),
                (Wish::After(2), [!events, !events, true]),
            ] {
                driver.wish(wish);
                for (n, expected) in signals.into_iter().enumerate() {
                    driver.add(&[(0x100, 1)], &[]).unwrap();
                    let chain = queue.pop().unwrap();
                    queue.complete(chain, 0);
                    let told = queue.signal();
                    assert_eq!(told, expected, "{features:#x} round {round} {wish:?} buffer {n}");
                    assert_eq!(seen.take_queue(0), u64::from(told));
                    assert!(!queue.signal(), "nothing new");
                }
                while driver.take_used().is_some() {}
            }
        }
    }
}

/// A device that completes more than a ring's size before it speaks up has forgotten where it
/// last did: the wish may lie anywhere in the rounds between.
#[test]
fn an_interrupt_is_due_after_more_than_a_ring_of_silence() {
    for features in feature_sets() {
        for (before, after) in [(15, 3), (8, 8), (1, 31), (7, 1)] {
            let Pair { mut driver, mut queue, .. } = pair(features, 8);
            let exchange = |driver: &mut DriverQueue, queue: &mut Queue| {
                driver.add(&[(0x100, 1)], &[]).unwrap();
                let chain = queue.pop().unwrap();
                queue.complete(chain, 0);
                driver.take_used().unwrap();
            };
            exchange(&mut driver, &mut queue);
            queue.signal();
            (0..before).for_each(|_| exchange(&mut driver, &mut queue));
            driver.wish(Wish::Next);
            (0..after).for_each(|_| exchange(&mut driver, &mut queue));
            assert!(queue.signal(), "{features:#x}: {before}, a wish, {after}");
        }
    }
}
