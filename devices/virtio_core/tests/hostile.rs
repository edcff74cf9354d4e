//! Drivers that break the rules: the device needs a reset, nothing else happens.

use std::sync::Arc;

use guest_memory::{GuestMemory, MemoryMap, RamOffset, Region};
use virtio_core::features::{INDIRECT_DESC, RING_PACKED, VERSION_1};
use virtio_core::mock::SeenInterrupts;
use virtio_core::{
    Interrupt, MAX_CHAIN_DESCRIPTORS, Position, Queue, QueueAddresses, QueueConfig, RingError,
};

const SIZE: u16 = 8;
const RING: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const TABLE: u64 = 0x4000;
/// RAM ends here; a read-only region begins.
const RAM: u64 = 0x1_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> GuestMemory {
    let map = MemoryMap::new([Region::ram(0, RAM), Region::rom(RAM, 0x1000), Region::ram(0x2_0000, 0x1000)]);
    GuestMemory::new(map.unwrap()).unwrap()
}

fn config(features: u64) -> QueueConfig {
    let addresses = QueueAddresses { descriptors: RING, driver: DRIVER, device: DEVICE };
    QueueConfig { index: 0, size: SIZE, addresses, features: VERSION_1 | features }
}

/// A descriptor in the format's own words.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const fn d(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, len, flags, next }
}

fn store(m: &GuestMemory, at: u64, packed: bool, list: &[Descriptor]) {
    for (i, x) in (0u64..).zip(list) {
        let at = at + 16 * i;
        m.write(RamOffset(at), x.address);
        m.write(RamOffset(at + 8), x.len);
        // Available in the first round of a packed ring.
        let (third, fourth) = if packed { (0, x.flags | 1 << 7) } else { (x.flags, x.next) };
        m.write(RamOffset(at + 12), third);
        m.write(RamOffset(at + 14), fourth);
    }
}

/// Make the chain of descriptor 0 available and take it.
fn pop(features: u64, ring: &[Descriptor], table: &[Descriptor]) -> Result<(Vec<usize>, Vec<usize>), ()> {
    let m = memory();
    let packed = features & RING_PACKED != 0;
    let seen = Arc::new(SeenInterrupts::default());
    let mut q =
        Queue::new(m.clone(), config(features), Interrupt::new("hostile", seen.clone()), None).unwrap();
    store(&m, RING, packed, ring);
    store(&m, TABLE, packed, table);
    if !packed {
        m.write(RamOffset(DRIVER + 2), 1u16);
    }
    let chain = q.pop();
    assert_eq!(seen.needs_reset(), q.is_broken());
    let lens = |pieces: &[virtio_core::Piece]| pieces.iter().map(|p| p.1).collect();
    match chain {
        Some(chain) => Ok((lens(chain.readable()), lens(chain.writable()))),
        None => {
            assert!(
                q.is_broken() && q.pop().is_none() && !q.has_available() && !q.signal(),
                "silent until a reset"
            );
            Err(())
        }
    }
}

#[test]
fn chains_that_break_the_rules_need_a_reset() {
    let both = [0, RING_PACKED];
    let indirect = [INDIRECT_DESC, INDIRECT_DESC | RING_PACKED];
    let bad = |features: &[u64], name: &str, ring: &[Descriptor], table: &[Descriptor]| {
        for &f in features {
            assert_eq!(pop(f, ring, table), Err(()), "{name}, features {f:#x}");
        }
    };
    bad(&both, "not memory", &[d(0x8000_0000, 16, 0, 0)], &[]);
    bad(&both, "runs out of memory", &[d(0x2_0ff0, 32, 0, 0)], &[]);
    bad(&both, "the end of the address space", &[d(u64::MAX - 3, 16, 0, 0)], &[]);
    bad(&both, "writes read-only memory", &[d(RAM, 16, WRITE, 0)], &[]);
    bad(&both, "writes on into read-only memory", &[d(RAM - 8, 16, WRITE, 0)], &[]);
    bad(&both, "readable behind writable", &[d(0, 8, NEXT | WRITE, 1), d(0, 8, 0, 0)], &[]);
    bad(&both, "more than 4 GiB", &[d(0, 16, NEXT, 1), d(0, u32::MAX, 0, 0)], &[]);
    bad(&both, "indirect not negotiated", &[d(TABLE, 16, INDIRECT, 0)], &[d(0, 8, 0, 0)]);
    bad(&both, "longer than the ring", &[d(0, 8, NEXT, 1); 9], &[]);
    bad(&[0], "a loop", &[d(0, 8, NEXT, 1), d(0, 8, NEXT, 0)], &[]);
    bad(&[0], "no such descriptor", &[d(0, 8, NEXT, SIZE)], &[]);
    bad(&indirect, "a nested table", &[d(TABLE, 16, INDIRECT, 0)], &[d(TABLE, 16, INDIRECT, 0)]);
    bad(&indirect, "a table that goes on", &[d(TABLE, 16, INDIRECT | NEXT, 1), d(0, 8, 0, 0)], &[]);
    bad(&indirect, "an empty table", &[d(TABLE, 0, INDIRECT, 0)], &[]);
    bad(&indirect, "part of a descriptor", &[d(TABLE, 24, INDIRECT, 0)], &[]);
    bad(&indirect, "a table that is not memory", &[d(0x8000_0000, 16, INDIRECT, 0)], &[]);
    bad(&indirect, "a huge table", &[d(0, 16 * (u32::from(MAX_CHAIN_DESCRIPTORS) + 1), INDIRECT, 0)], &[]);
    bad(&indirect[..1], "a loop in a table", &[d(TABLE, 16, INDIRECT, 0)], &[d(0, 8, NEXT, 0)]);
    bad(&indirect[..1], "beyond the table", &[d(TABLE, 16, INDIRECT, 0)], &[d(0, 8, NEXT, 1), d(0, 8, 0, 0)]);
}

#[test]
fn unusual_chains_are_no_fault() {
    let check = |features: &[u64],
                 ring: &[Descriptor],
                 table: &[Descriptor],
                 readable: &[usize],
                 writable: &[usize]| {
        for &f in features {
            assert_eq!(pop(f, ring, table), Ok((readable.to_vec(), writable.to_vec())), "features {f:#x}");
        }
    };
    let (both, indirect) = ([0, RING_PACKED], [INDIRECT_DESC, INDIRECT_DESC | RING_PACKED]);
    check(&both, &[d(0x8000_0000, 0, 0, 0)], &[], &[], &[]);
    check(&both, &[d(RAM - 8, 16, NEXT, 1), d(0, 5, WRITE, 0)], &[], &[8, 8], &[5]);
    check(&indirect, &[d(0, 4, NEXT, 1), d(TABLE, 16, INDIRECT, 0)], &[d(0, 6, WRITE, 0)], &[4], &[6]);
    // A table may be longer than the queue.
    let long: Vec<_> = (1..=20).map(|next| d(0, 1, if next < 20 { NEXT } else { 0 }, next)).collect();
    check(&indirect, &[d(TABLE, 320, INDIRECT, 0)], &long, &[1; 20], &[]);
}

#[test]
fn an_impossible_available_index_needs_a_reset() {
    let m = memory();
    let seen = Arc::new(SeenInterrupts::default());
    let mut q = Queue::new(m.clone(), config(0), Interrupt::new("hostile", seen.clone()), None).unwrap();
    m.write(RamOffset(DRIVER + 2), SIZE + 1);
    assert!(q.pop().is_none() && seen.needs_reset());
}

/// A device may hold what it has taken; buffers it holds are not offered again.
#[test]
fn no_more_is_taken_than_there_are_buffers() {
    for features in [0, RING_PACKED] {
        let packed = features != 0;
        let m = memory();
        let seen = Arc::new(SeenInterrupts::default());
        let mut q =
            Queue::new(m.clone(), config(features), Interrupt::new("hostile", seen.clone()), None).unwrap();
        store(&m, RING, packed, &[d(0, 4, 0, 0); SIZE as usize]);
        m.write(RamOffset(DRIVER + 2), if packed { 0 } else { SIZE });
        let held: Vec<_> = (0..SIZE).map(|_| q.pop().expect("a buffer")).collect();
        assert!(q.pop().is_none() && !seen.needs_reset(), "there are no more");
        // The first again, as of the next round.
        match packed {
            true => m.write(RamOffset(RING + 14), 1u16 << 15),
            false => m.write(RamOffset(DRIVER + 2), SIZE + 1),
        };
        assert!(q.pop().is_none() && seen.needs_reset(), "packed: {packed}");
        let interrupt = Interrupt::new("hostile", Arc::new(SeenInterrupts::default()));
        Queue::new(m, config(features), interrupt, Some(&q.position())).expect("its own position");
        drop(held);
    }
}

#[test]
fn misplaced_queues_and_impossible_positions_are_refused() {
    let make = |c: QueueConfig, position: Option<Position>| {
        let interrupt = Interrupt::new("hostile", Arc::new(SeenInterrupts::default()));
        Queue::new(memory(), c, interrupt, position.as_ref()).err()
    };
    let with = |f: &dyn Fn(&mut QueueConfig)| {
        let mut c = config(0);
        f(&mut c);
        make(c, None)
    };
    assert_eq!(with(&|_| ()), None);
    assert_eq!(with(&|c| c.size = 0), Some(RingError::Size(0)));
    assert_eq!(with(&|c| c.size = 6), Some(RingError::Size(6)));
    assert_eq!(with(&|c| c.size = 2048), Some(RingError::Size(2048)));
    let place = |e: Option<RingError>| matches!(e, Some(RingError::Place { .. }));
    assert!(place(with(&|c| c.addresses.descriptors += 8)));
    assert!(place(with(&|c| c.addresses.device = RAM)));
    assert!(place(with(&|c| c.addresses.device = RAM - 4)));
    assert!(place(with(&|c| c.addresses.driver = u64::MAX - 1)));
    let packed = QueueConfig { size: 6, ..config(RING_PACKED) };
    assert_eq!(make(packed, None), None, "packed rings have any size");
    let p = |next_available, next_used, available_wrap, used_wrap| {
        Some(Position { next_available, next_used, available_wrap, used_wrap, signalled: None })
    };
    let refused = |c, position| matches!(make(c, position), Some(RingError::Position(_)));
    assert!(!refused(config(0), p(3, 0xfffe, false, false)));
    assert!(refused(config(0), p(3, 4, false, false)));
    assert!(refused(config(0), p(9, 0, false, false)));
    assert!(!refused(packed, p(1, 3, false, true)));
    assert!(refused(packed, p(6, 3, true, true)));
    assert!(refused(packed, p(1, 3, true, true)));
    assert!(refused(packed, p(4, 3, false, true)));
}
