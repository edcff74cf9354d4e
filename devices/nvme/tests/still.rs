//! Standing still: commands that wait for room on the host, and saved state.

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use disk::mock::FullDisk;
use disk::{FullListener, RawDisk, RawOptions};
use driver::{DATA, Driver};
use guest_memory::RamOffset;
use saved_state::Saved;
use tempfile::NamedTempFile;

const SIZE: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

fn listener() -> (FullListener, Receiver<()>) {
    let (tell, told) = channel();
    (Arc::new(move || tell.send(()).unwrap()), told)
}

/// A driver of a full disk.
fn full_disk(inline: bool, overlaps: bool, on_full: Option<FullListener>) -> (Driver, Arc<FullDisk>) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let disk = Arc::new(RawDisk::open(file.path(), RawOptions::default()).unwrap());
    let full = Arc::new(FullDisk { disk, is_full: AtomicBool::new(true), overlaps });
    let mut driver = Driver::with(full.clone(), file, inline, on_full);
    driver.ready();
    (driver, full)
}

#[test]
fn commands_wait_for_room_on_the_host() {
    for (inline, overlaps, flushes) in
        [(false, false, true), (false, true, true), (false, true, false), (true, true, true)]
    {
        let (on_full, told) = listener();
        let (mut d, full) = full_disk(inline, overlaps, Some(on_full.clone()));
        d.memory.write_bytes(RamOffset(DATA), &[7; 512]);
        let read = d.put(1, 0x02, 1, (DATA + 0x1000, 0), &[0, 0, 0]);
        let write = d.put(1, 0x01, 1, (DATA, 0), &[8, 0, 0]);
        let flush = flushes.then(|| d.put(1, 0x00, 1, (0, 0), &[]));
        let back = d.put(1, 0x02, 1, (DATA + 0x1000, 0), &[8, 0, 0]);
        d.ring(1);
        assert_eq!(d.wait(1), (read, (0, 0)), "it needs no room");
        told.recv_timeout(PATIENCE).expect("told");
        // It goes on while there is no room: held again, by a controller with its state.
        d.replace(inline, Some(on_full.clone()));
        told.recv_timeout(PATIENCE).expect("told again");
        assert_eq!(d.poll(1), None, "nothing is answered");
        full.is_full.store(false, Ordering::SeqCst);
        d.nvme.handle().quiesce();
        d.nvme.handle().resume();
        let expect: Vec<_> = [Some(write), flush, Some(back)].into_iter().flatten().collect();
        let done: Vec<_> = expect.iter().map(|_| d.wait(1)).collect();
        assert_eq!(done, expect.iter().map(|cid| (*cid, (0, 0))).collect::<Vec<_>>());
        // Without the flush between, it is open which comes first.
        let seen = d.bytes(DATA + 0x1000, 512);
        assert!(seen == [7; 512] || !flushes && seen == [0; 512], "{seen:?}");
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn without_a_listener_the_command_fails() {
    let (mut d, _full) = full_disk(false, false, None);
    assert_eq!(d.io(0x01, (DATA, 0), &[8, 0, 0]).0, 0x0081, "capacity exceeded; may be tried again");
}

#[test]
fn a_shutdown_waits_for_room_as_well() {
    let (on_full, told) = listener();
    let (mut d, full) = full_disk(false, false, Some(on_full));
    d.set_register(0x14, 0x0046_4001);
    told.recv_timeout(PATIENCE).expect("told");
    d.nvme.handle().quiesce();
    assert_eq!(d.register(0x1c), 1 | 1 << 2, "still shutting down");
    full.is_full.store(false, Ordering::SeqCst);
    d.nvme.handle().resume();
    let until = std::time::Instant::now() + PATIENCE;
    while d.register(0x1c) != 1 | 2 << 2 {
        assert!(std::time::Instant::now() < until, "status {:#x}", d.register(0x1c));
    }
}

#[test]
fn a_controller_goes_on_in_another() {
    for inline in [false, true] {
        let mut d = Driver::new(SIZE, RawOptions::default(), inline);
        d.ready();
        assert_eq!(d.admin(0x09, 0, 0, &[0x04, 0x150]).0, 0, "a feature");
        assert_eq!(d.admin(0x09, 0, 0, &[0x0b, 1 << 8]).0, 0, "notices");
        let event = d.put(0, 0x0c, 0, (0, 0), &[]);
        d.ring(0);
        d.memory.write_bytes(RamOffset(DATA), &[3; 512]);
        // Often enough that the queues wrap between and across.
        for round in 0..20u32 {
            assert_eq!(d.io(0x01, (DATA, 0), &[round, 0, 0]), (0, 0), "round {round}");
            if round % 3 == 0 {
                d.replace(inline, None);
            }
        }
        assert_eq!(d.admin(0x0a, 0, 0, &[0x04, 0]), (0, 0x150), "the feature stays");
        // Nothing is told while it stands still, all of it when it goes on.
        let handle = d.nvme.handle();
        handle.quiesce();
        d.disk.resize(2 * SIZE).unwrap();
        assert_eq!(d.poll(0), None);
        handle.resume();
        assert_eq!(d.poll(0), Some((event, (0, 0x0004_0002))));
        d.replace(inline, None);
        assert_eq!(d.admin(0x02, 0, DATA, &[0x04 | 0x3ff << 16]).0, 0);
        assert_eq!(d.bytes(DATA, 4), [1, 0, 0, 0], "the change is still listed");
    }
}

#[test]
fn a_state_that_cannot_be_is_refused_and_nothing_changes() {
    let mut d = Driver::new(SIZE, RawOptions::default(), false);
    d.ready();
    let mut handle = d.nvme.handle();
    handle.quiesce();
    let good = serde_json::to_value(handle.save()).unwrap();
    // Where, what.
    for (path, value) in [
        ("/configuration", serde_json::json!(0xff00_0000u32)),
        ("/status", serde_json::json!(0x100)),
        ("/admin", serde_json::json!(null)),
        ("/admin/head", serde_json::json!(8)),
        ("/admin/base", serde_json::json!(1)),
        ("/admin/completions/vector", serde_json::json!(17)),
        ("/submissions", serde_json::json!([])),
        ("/submissions/0/entries", serde_json::json!(0)),
        ("/submissions/0/base", serde_json::json!(!0xfffu64)),
        ("/submissions/0/completions", serde_json::json!(1)),
        ("/submissions/0/tail", serde_json::json!(8)),
        ("/completions/0/tail", serde_json::json!(8)),
        ("/events/requests", serde_json::json!([1, 2, 3, 4, 5])),
        ("/msix/pending", serde_json::json!([])),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap_or_else(|| panic!("no {path}")) = value;
        assert!(handle.restore(&serde_json::from_value(bad).unwrap()).is_err(), "{path}");
        assert_eq!(serde_json::to_value(handle.save()).unwrap(), good, "{path}");
    }
    handle.resume();
    assert_eq!(d.io(0x00, (0, 0), &[]).0, 0, "it still works");
}
