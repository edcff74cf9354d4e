//! The controller through its registers and queues.

mod driver;

use disk::{Aio, RawOptions};
use driver::{DATA, Driver, ENTRIES, MEMORY};
use guest_memory::RamOffset;
use pci::PciFunction;

const SIZE: u64 = 4 << 20;
/// Status fields: invalid field, with "do not retry".
const INVALID_FIELD: u16 = 0x4002;

fn ready() -> Driver {
    let mut driver = Driver::new(SIZE, RawOptions::default(), false);
    driver.ready();
    driver
}

#[test]
fn identify_tells_the_disk() {
    let mut d = ready();
    assert_eq!(d.admin(0x06, 0, DATA, &[1]), (0, 0));
    let controller = d.bytes(DATA, 4096);
    assert_eq!(&controller[4..24], b"test-1              ");
    assert_eq!((controller[512], controller[513], controller[525]), (0x66, 0x44, 7));
    assert!(controller[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
    assert_eq!(d.admin(0x06, 1, DATA, &[0]), (0, 0));
    let namespace = d.bytes(DATA, 4096);
    assert_eq!(namespace[..8], (SIZE / 512).to_le_bytes());
    assert_eq!((namespace[99], namespace[130]), (0, 9));
    // CNS, namespace, status.
    for (cns, nsid, status) in [
        (2, 0, 0),
        (3, 1, 0),
        (0, 2, 0x400b),
        (3, 2, 0x400b),
        (2, 0xffff_ffff, 0x400b),
        (0x1c, 1, INVALID_FIELD),
    ] {
        assert_eq!(d.admin(0x06, nsid, DATA, &[cns]).0, status, "CNS {cns:#x} of {nsid:#x}");
    }
}

#[test]
fn data_go_both_ways_by_pages_and_lists() {
    for (inline, aio) in [(false, Aio::Threads), (true, Aio::Threads), (false, Aio::IoUring)] {
        let mut d = Driver::new(SIZE, RawOptions { aio, ..RawOptions::default() }, inline);
        d.ready();
        // Bytes, first block, offset of the first page: one page, two, a list, a list
        // over several pages of entries.
        for (blocks, lba, skip) in [(1, 0, 0), (8, 8, 0), (9, 20, 0xe00), (16, 64, 0x200), (2048, 100, 0x400)]
        {
            let len = blocks * 512;
            let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251 + lba) as u8).collect();
            // Data pages lie every other page, so that none are neighbours.
            let page = |i: usize| DATA + 0x2000 * i as u64;
            let pieces: Vec<(u64, usize)> = {
                let first = len.min(4096 - skip);
                let rest = (first..len).step_by(4096).enumerate();
                let rest = rest.map(|(i, at)| (page(i + 1), (len - at).min(4096)));
                [(page(0) + skip as u64, first)].into_iter().chain(rest).collect()
            };
            // The list begins late in its page, so that it goes on in another.
            let mut at = MEMORY - 0x4000 + 0xf80;
            let prp2 = match pieces.len() {
                1 => 0,
                2 => pieces[1].0,
                _ => at,
            };
            for (i, piece) in pieces.iter().enumerate().skip(1) {
                if at % 4096 == 4088 && i + 1 < pieces.len() {
                    d.memory.write::<u64>(RamOffset(at), (at & !0xfff) + 0x1000);
                    at = (at & !0xfff) + 0x1000;
                }
                d.memory.write::<u64>(RamOffset(at), piece.0);
                at += 8;
            }
            let mut rest = &data[..];
            for &(to, n) in &pieces {
                d.memory.write_bytes(RamOffset(to), &rest[..n]);
                rest = &rest[n..];
            }
            let dwords = [lba as u32, 0, blocks as u32 - 1];
            assert_eq!(d.io(0x01, (pieces[0].0, prp2), &dwords), (0, 0), "write of {blocks}");
            let mut on_disk = vec![0; len];
            d.disk.read(lba as u64 * 512, &mut on_disk).unwrap();
            assert!(on_disk == data, "write of {blocks} blocks");
            pieces.iter().for_each(|p| {
                d.memory.write_bytes(RamOffset(p.0), &vec![0; p.1]);
            });
            assert_eq!(d.io(0x02, (pieces[0].0, prp2), &dwords), (0, 0), "read of {blocks}");
            let back: Vec<u8> = pieces.iter().flat_map(|p| d.bytes(p.0, p.1)).collect();
            assert!(back == data, "read of {blocks} blocks");
        }
        assert!(d.messages.take().iter().all(|v| *v == 1), "vector 1 only");
    }
}

#[test]
fn many_commands_are_all_answered_while_others_come() {
    for aio in [Aio::Threads, Aio::IoUring] {
        let mut d = Driver::new(SIZE, RawOptions { aio, ..RawOptions::default() }, false);
        d.ready();
        let (mut wanted, mut answered) = (Vec::new(), Vec::new());
        for n in 0..400u32 {
            // A flush now and then.
            wanted.push(if n % 16 == 15 {
                d.put(1, 0x00, 1, (0, 0), &[])
            } else {
                let at = DATA + u64::from(n % 16) * 4096;
                d.memory.write::<u32>(RamOffset(at), n);
                d.put(1, 0x01, 1, (at, 0), &[n, 0, 0])
            });
            d.ring(1);
            if wanted.len() - answered.len() == usize::from(ENTRIES) - 2 {
                answered.push(d.wait(1));
            }
        }
        while answered.len() < wanted.len() {
            answered.push(d.wait(1));
        }
        answered.sort_unstable();
        assert_eq!(answered, wanted.iter().map(|cid| (*cid, (0, 0))).collect::<Vec<_>>(), "{aio:?}");
        for n in (0..400u32).filter(|n| n % 16 != 15) {
            let mut block = [0; 512];
            d.disk.read(u64::from(n) * 512, &mut block).unwrap();
            assert_eq!(block[..4], n.to_le_bytes(), "{aio:?}");
        }
    }
}

#[test]
fn flush_zeroes_and_deallocation_reach_the_disk() {
    let mut d = ready();
    d.disk.write(0, &vec![9; 64 << 10]).unwrap();
    assert_eq!(d.io(0x00, (0, 0), &[]), (0, 0));
    assert_eq!(d.io(0x08, (0, 0), &[8, 0, 7 | 1 << 25]), (0, 0));
    // Two ranges: blocks 32 to 39, 64 to 71.
    for (i, slba) in [32u64, 64].into_iter().enumerate() {
        d.memory.write::<u32>(RamOffset(DATA + 16 * i as u64 + 4), 8);
        d.memory.write::<u64>(RamOffset(DATA + 16 * i as u64 + 8), slba);
    }
    assert_eq!(d.io(0x09, (DATA, 0), &[1, 4]), (0, 0));
    let mut all = vec![0; 64 << 10];
    d.disk.read(0, &mut all).unwrap();
    for (block, bytes) in all.chunks(512).enumerate() {
        let zero = [8..16, 32..40, 64..72].iter().any(|r| r.contains(&block));
        assert!(bytes.iter().all(|b| *b == if zero { 0 } else { 9 }), "block {block}");
    }
}

#[test]
fn bad_commands_get_a_status() {
    let mut d = ready();
    let blocks = (SIZE / 512) as u32;
    let big = 0xffff;
    // Opcode, PRPs, dwords, status.
    for (opcode, prp, dwords, status) in [
        (0x01, (DATA, 0), [blocks, 0, 0], 0x4080),
        (0x02, (DATA, 0), [blocks - 1, 0, 1], 0x4080),
        (0x02, (DATA, 0), [0, 0xffff_ffff, 0], 0x4080),
        (0x02, (DATA, 0), [0, 0, big], 0x4080),
        (0x02, (MEMORY, 0), [0, 0, 0], 0x4004),
        (0x02, (u64::MAX - 3, 0), [0, 0, 0], 0x4004),
        (0x02, (DATA + 1, 0), [0, 0, 0], 0x4013),
        (0x02, (DATA, DATA + 8), [0, 0, 15], 0x4013),
        (0x02, (DATA, MEMORY), [0, 0, 31], 0x4004),
        (0x02, (DATA, DATA + 4), [0, 0, 31], 0x4013),
        (0x02, (DATA, 0), [0, 0, 4095], INVALID_FIELD),
        (0x7f, (DATA, 0), [0, 0, 0], 0x4001),
    ] {
        assert_eq!(d.io(opcode, prp, &dwords).0, status, "{opcode:#x} {prp:x?} {dwords:x?}");
    }
}

#[test]
fn a_read_only_disk_is_write_protected() {
    let options = RawOptions { read_only: true, ..RawOptions::default() };
    let mut d = Driver::new(SIZE, options, false);
    d.ready();
    for (opcode, dwords) in [(0x01, [0, 0, 0]), (0x08, [0, 0, 0]), (0x09, [0, 4, 0])] {
        assert_eq!(d.io(opcode, (DATA, 0), &dwords).0, 0x4020, "{opcode:#x}");
    }
    assert_eq!(d.io(0x02, (DATA, 0), &[0, 0, 0]).0, 0);
    d.admin(0x06, 1, DATA, &[0]);
    assert_eq!(d.bytes(DATA + 99, 1), [1]);
}

#[test]
fn queues_are_made_and_deleted_in_order() {
    let mut d = ready();
    let size = 7 << 16;
    // Opcode, PRP1, dwords 10 and 11, status.
    for (what, opcode, prp, dwords, status) in [
        ("a queue 0", 0x05, 0x5000, [size, 1], 0x4101),
        ("too high", 0x05, 0x5000, [size | 17, 1], 0x4101),
        ("there already", 0x05, 0x5000, [size | 1, 1], 0x4101),
        ("too small", 0x05, 0x5000, [2, 1], 0x4102),
        ("too large", 0x05, 0x5000, [0xffff_0002, 1], 0x4102),
        ("in pieces", 0x05, 0x5000, [size | 2, 0], INVALID_FIELD),
        ("not a page", 0x05, 0x5010, [size | 2, 1], 0x4013),
        ("no RAM", 0x05, MEMORY, [size | 2, 1], INVALID_FIELD),
        ("a vector beyond", 0x05, 0x5000, [size | 2, 17 << 16 | 3], 0x4108),
        ("no completions", 0x01, 0x5000, [size | 2, 2 << 16 | 1], 0x4100),
        ("admin completions", 0x01, 0x5000, [size | 2, 1], 0x4100),
        ("in use", 0x04, 0, [1, 0], 0x410c),
        ("not there", 0x00, 0, [2, 0], 0x4101),
        ("delete", 0x00, 0, [1, 0], 0),
        ("delete again", 0x00, 0, [1, 0], 0x4101),
        ("not in use", 0x04, 0, [1, 0], 0),
    ] {
        assert_eq!(d.admin(opcode, 0, prp, &dwords).0, status, "{what}");
    }
}

#[test]
fn features_and_log_pages() {
    let mut d = ready();
    assert_eq!(d.admin(0x09, 0, 0, &[0x07, 0x003f_003f]), (0, 0x000f_000f), "queues granted");
    assert_eq!(d.admin(0x0a, 0, 0, &[0x06]), (0, 1), "write cache");
    assert_eq!(d.admin(0x09, 0, 0, &[0x06, 0]).0, 0x410e);
    assert_eq!(d.admin(0x09, 0, 0, &[0x04, 0x150]).0, 0);
    assert_eq!(d.admin(0x0a, 0, 0, &[0x04, 0]), (0, 0x150));
    assert_eq!(d.admin(0x0a, 0, 0, &[0x104, 0]), (0, 0x157), "default");
    assert_eq!(d.admin(0x0a, 0, 0, &[0xff]).0, INVALID_FIELD);
    assert_eq!(d.admin(0x02, 0, DATA, &[0x02 | 127 << 16]).0, 0, "health");
    assert_eq!(d.bytes(DATA + 1, 3), [0x2c, 1, 100]);
    assert_eq!(d.admin(0x02, 0, DATA, &[0x77]).0, 0x4109);
    assert_eq!(d.admin(0x08, 0, 0, &[1]), (0, 1), "abort: too late");
}

#[test]
fn growth_of_the_disk_is_an_event() {
    let mut d = ready();
    assert_eq!(d.admin(0x09, 0, 0, &[0x0b, 1 << 8]).0, 0);
    let cid = d.put(0, 0x0c, 0, (0, 0), &[]);
    d.ring(0);
    assert_eq!(d.poll(0), None, "it waits");
    d.messages.take();
    d.disk.resize(2 * SIZE).unwrap();
    assert_eq!(d.poll(0), Some((cid, (0, 0x0004_0002))));
    assert_eq!(d.messages.take(), [0]);
    assert_eq!(d.admin(0x02, 0, DATA, &[0x04 | 0x3ff << 16]).0, 0);
    assert_eq!(d.bytes(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    for _ in 0..4 {
        d.put(0, 0x0c, 0, (0, 0), &[]);
    }
    assert_eq!(d.admin(0x0c, 0, 0, &[]).0, 0x4105, "a fifth request");
}

#[test]
fn a_full_completion_queue_holds_commands_back() {
    for inline in [false, true] {
        let mut d = Driver::new(SIZE, RawOptions::default(), inline);
        d.ready();
        let mut seen = Vec::new();
        let mut put = Vec::new();
        // Twice as many as the completion queue holds, none taken in between.
        for _ in 0..2 {
            for _ in 0..ENTRIES - 1 {
                put.push(d.put(1, 0x02, 1, (DATA, 0), &[0, 0, 0]));
            }
            d.ring(1);
            d.wait_until_full(1);
            while seen.len() + usize::from(ENTRIES) - 1 < put.len() {
                seen.push(d.wait(1).0);
            }
        }
        while seen.len() < put.len() {
            seen.push(d.wait(1).0);
        }
        assert_eq!(seen, put);
        assert_eq!(d.poll(1), None);
    }
}

#[test]
fn a_bad_set_up_is_fatal_until_reset() {
    let mut d = Driver::new(SIZE, RawOptions::default(), false);
    // Admin attributes, submission, completion, configuration.
    for (aqa, asq, acq, cc) in [
        (0, 0x1000, 0x2000, 0x0046_0001),
        (0x0007_0007, MEMORY, 0x2000, 0x0046_0001),
        (0x0007_0007, 0x1000, u64::MAX, 0x0046_0001),
        (0x0007_0007, 0x1000, 0x2000, 0x0046_0081),
    ] {
        d.set_register(0x24, aqa);
        d.bar.write(0, 0x28, 8, asq);
        d.bar.write(0, 0x30, 8, acq);
        d.set_register(0x14, cc);
        assert_eq!(d.register(0x1c), 2, "{aqa:#x} {asq:#x} {acq:#x} {cc:#x}");
        d.set_register(0x14, 0);
        assert_eq!(d.register(0x1c), 0);
    }
    d.ready();
    assert_eq!(d.io(0x00, (0, 0), &[]).0, 0);
}

#[test]
fn shutdown_and_reset_leave_nothing_running() {
    let mut d = ready();
    d.set_register(0x14, 0x0046_4001);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while d.register(0x1c) != 1 | 2 << 2 {
        assert!(std::time::Instant::now() < until, "status {:#x}", d.register(0x1c));
    }
    d.set_register(0x14, 0);
    assert_eq!(d.register(0x1c), 0);
    d.ready();
    assert_eq!(d.io(0x02, (DATA, 0), &[0, 0, 0]).0, 0, "a second life");
    d.nvme.reset();
    assert_eq!((d.register(0x14), d.register(0x1c), d.register(0x24)), (0, 0, 0));
    d.ring(1);
    assert_eq!(d.poll(1), None, "no queue");
}
