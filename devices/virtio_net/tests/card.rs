//! The card, driven by the mock driver, with ports that answer each frame with itself.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use port::{
    Capabilities, Checksum, FrameSink, HEADER_LEN, MacAddress, Offload, Offloads, Port, SegmentKind, Segments,
};
use rustix::event::{EventfdFlags, eventfd};
use virtio_core::mock::{Bench, BenchConfig};
use virtio_core::{VirtioDevice, features};
use virtio_net::VirtioNet;

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
const RX: u16 = 0;
const TX: u16 = 1;
const ALL: Offloads =
    Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp_fragments: false, udp_datagrams: true };
/// Feature bits of the standard that the tests speak of.
const MRG_RXBUF: u64 = 1 << 15;
const MQ: u64 = 1 << 22;

/// What a port was told.
#[derive(Default)]
struct Told {
    offloads: Vec<Offload>,
    takes: Option<Offloads>,
    active: Option<bool>,
    resets: u32,
    /// How often its file was asked for: once for each wait.
    waits: u32,
}

struct Echo {
    frames: VecDeque<(Vec<u8>, Offload)>,
    told: Arc<Mutex<Told>>,
    file: OwnedFd,
}

impl Echo {
    fn port() -> (Box<dyn Port>, Arc<Mutex<Told>>) {
        let told = Arc::new(Mutex::new(Told::default()));
        // Readable: something may have happened before.
        let file = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        (Box::new(Echo { frames: VecDeque::new(), told: told.clone(), file }), told)
    }
}

impl Port for Echo {
    fn capabilities(&self) -> Capabilities {
        Capabilities { accepts: ALL, gives: ALL, mtu: 1500 }
    }
    fn set_receiver(&mut self, takes: Offloads) {
        self.told.lock().unwrap().takes = Some(takes);
    }
    fn send(&mut self, frame: &[u8], offload: &Offload) {
        self.told.lock().unwrap().offloads.push(*offload);
        self.frames.push_back((frame.to_vec(), *offload));
        rustix::io::write(&self.file, &1u64.to_ne_bytes()).unwrap();
    }
    fn receive(&mut self, sink: &mut dyn FrameSink) {
        let _ = rustix::io::read(&self.file, &mut [0; 8]);
        while !self.frames.is_empty() && sink.room() {
            if let Some((frame, offload)) = self.frames.pop_front() {
                let (a, b) = frame.split_at(frame.len().min(20));
                sink.take(&[a, b], &offload);
            }
        }
    }
    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.told.lock().unwrap().waits += 1;
        self.file.as_fd()
    }
    fn set_active(&mut self, active: bool) {
        self.told.lock().unwrap().active = Some(active);
    }
    fn reset(&mut self) {
        self.told.lock().unwrap().resets += 1;
    }
}

fn bench(features: u64) -> (Bench<VirtioNet>, Arc<Mutex<Told>>) {
    let (port, told) = Echo::port();
    let config = BenchConfig { features, ..BenchConfig::default() };
    (Bench::new(VirtioNet::new(MAC, vec![port]), config), told)
}

/// A frame to this address, of this length.
fn frame(to: [u8; 6], length: usize) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend((6..length).map(|i| i as u8));
    frame
}

/// Send a frame and wait for the card to have read it.
fn send(bench: &mut Bench<VirtioNet>, offload: &Offload, frame: &[u8]) {
    let used = bench.request(TX, &[&offload.to_header(), frame], &[]);
    assert_eq!(used.written, 0);
}

#[test]
fn frames_pass_with_their_headers_in_both_ring_formats() {
    for format in [0, features::RING_PACKED] {
        let (mut bench, told) = bench(!features::RING_PACKED & !MRG_RXBUF | format);
        bench.post(RX, &[], &[12, 1514]);
        bench.kick(RX);
        let segments = Segments { kind: SegmentKind::Tcp4, size: 1448, header_len: 54, ecn: false };
        let offload =
            Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segments: Some(segments) };
        send(&mut bench, &offload, &frame(MAC.0, 600));
        let got = bench.wait(RX);
        assert_eq!(Offload::from_header(got.data.first_chunk().unwrap()), Some(offload));
        assert_eq!(got.data[10..12], [1, 0], "one buffer");
        assert_eq!(got.data[HEADER_LEN..], frame(MAC.0, 600));
        assert_eq!(told.lock().unwrap().offloads, [offload]);
        assert_eq!(told.lock().unwrap().takes, Some(ALL));
    }
}

#[test]
fn a_long_frame_fills_as_many_buffers_as_it_needs() {
    let (mut bench, _) = bench(!features::RING_PACKED);
    for _ in 0..60 {
        bench.post(RX, &[], &[1526]);
    }
    bench.kick(RX);
    let long = frame(MAC.0, 60_000);
    send(&mut bench, &Offload::NONE, &long);
    let mut got = bench.wait(RX).data;
    let buffers = usize::from(u16::from_le_bytes([got[10], got[11]]));
    assert_eq!(buffers, (60_000usize + HEADER_LEN).div_ceil(1526));
    for _ in 1..buffers {
        got.extend(bench.wait(RX).data);
    }
    assert_eq!(got[HEADER_LEN..], long);
}

#[test]
fn frames_wait_for_buffers_and_bad_ones_are_dropped() {
    let (mut bench, told) = bench(!features::RING_PACKED & !MRG_RXBUF);
    send(&mut bench, &Offload::NONE, &frame(MAC.0, 100));
    // Too short for a header, longer than any frame, a kind of segments that is none.
    bench.request(TX, &[&[0; 11]], &[]);
    bench.request(TX, &[&[0; 12], &vec![0; 66_000]], &[]);
    bench.request(TX, &[&[0, 9, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[0; 60]], &[]);
    bench.post(RX, &[], &[2000]);
    bench.kick(RX);
    assert_eq!(bench.wait(RX).data.len(), 112);
    assert_eq!(told.lock().unwrap().offloads.len(), 1);
}

/// Control commands and whether the card does them.
fn commands(bench: &mut Bench<VirtioNet>, cases: &[(&[u8], bool)]) {
    let control = bench.queues.len() as u16 - 1;
    for (command, done) in cases {
        let used = bench.request(control, &[command], &[1]);
        assert_eq!(used.data, [u8::from(!done)], "{command:?}");
    }
}

#[test]
fn the_control_queue_answers_as_the_standard_says() {
    let (mut bench, told) = bench(!features::RING_PACKED);
    let new_mac = [1, 1, 0x52, 0x54, 0, 9, 9, 9];
    let table = [&[1, 0][..], &[1, 0, 0, 0, 2, 2, 2, 2, 2, 2], &[0; 4]].concat();
    let cut = [&[1, 0][..], &[2, 0, 0, 0, 2, 2, 2, 2, 2, 2], &[0; 4]].concat();
    let long = [&[1, 0][..], &65u32.to_le_bytes(), &[2; 65 * 6], &[0; 4]].concat();
    commands(
        &mut bench,
        &[
            (&[0, 0, 0], true),
            (&[0, 1, 1], true),
            (&[0, 5, 0], true),
            (&[0, 6, 0], false),
            (&[0, 0], false),
            (&[], false),
            (&new_mac, true),
            (&table, true),
            (&cut, false),
            (&long, true),
            (&[2, 0, 5, 0], true),
            (&[2, 0, 0, 16], false),
            (&[2, 1, 5, 0], true),
            (&[3, 0], true),
            // One pair: no multi-queue to command.
            (&[4, 0, 1, 0], false),
            (&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], true),
            (&[5, 0, 4, 0, 0, 0, 0, 0, 0, 0], false),
            (&[9, 0, 0], false),
        ],
    );
    let mut config = [0; 12];
    bench.device.config_read(0, &mut config);
    assert_eq!(config, [0x52, 0x54, 0, 9, 9, 9, 1, 0, 1, 0, 0xdc, 5]);
    let checksum = Offloads { checksum: true, ..Offloads::NONE };
    bench.until("the port to hear", |_| told.lock().unwrap().takes == Some(checksum));
}

#[test]
fn what_the_filter_does_not_want_does_not_arrive() {
    let (mut bench, _) = bench(!features::RING_PACKED & !MRG_RXBUF);
    commands(&mut bench, &[(&[0, 0, 0], true)]);
    for _ in 0..2 {
        bench.post(RX, &[], &[2000]);
    }
    bench.kick(RX);
    send(&mut bench, &Offload::NONE, &frame([2, 2, 2, 2, 2, 2], 60));
    send(&mut bench, &Offload::NONE, &frame(MAC.0, 61));
    assert_eq!(bench.wait(RX).data.len(), 73);
}

#[test]
fn pairs_are_switched_on_by_the_driver() {
    let (ports, told): (Vec<_>, Vec<_>) = (0..3).map(|_| Echo::port()).unzip();
    let mut bench = Bench::new(VirtioNet::new(MAC, ports), BenchConfig::default());
    assert_ne!(bench.features & MQ, 0);
    let active = |i: usize| told[i].lock().unwrap().active;
    bench.until("the first pair", |_| active(0) == Some(true));
    // A tap's queues are attached until it is told otherwise.
    bench.until("the others", |_| active(1) == Some(false) && active(2) == Some(false));
    commands(&mut bench, &[(&[4, 0, 2, 0], true), (&[4, 0, 0, 0], false), (&[4, 0, 4, 0], false)]);
    bench.until("the second pair", |_| active(1) == Some(true));
    bench.until("the third pair", |_| active(2) == Some(false));
    // The second pair carries frames.
    bench.post(2, &[], &[1526]);
    (0..60).for_each(|_| {
        bench.post(2, &[], &[1526]);
    });
    bench.kick(2);
    bench.request(3, &[&[0; 12], &frame(MAC.0, 90)], &[]);
    assert_eq!(bench.wait(2).data.len(), 102);
}

#[test]
fn threads_of_pairs_that_receive_nothing_sleep() {
    // A thread that does not sleep waits thousands of times meanwhile.
    let sleeps = |told: &Mutex<Told>| {
        let before = told.lock().unwrap().waits;
        std::thread::sleep(std::time::Duration::from_millis(30));
        let waits = told.lock().unwrap().waits - before;
        assert!(waits < 10, "{waits} waits");
    };
    let (ports, told): (Vec<_>, Vec<_>) = (0..2).map(|_| Echo::port()).unzip();
    let mut bench = Bench::new(VirtioNet::new(MAC, ports), BenchConfig::default());
    bench.until("the second pair", |_| told[1].lock().unwrap().active == Some(false));
    sleeps(&told[1]);
    // A driver that only sends.
    let (port, told) = Echo::port();
    let config = BenchConfig { features: !features::RING_PACKED & !MRG_RXBUF, ..BenchConfig::default() };
    let mut bench = Bench::new(VirtioNet::new(MAC, vec![port]), config);
    bench.until("the port to be looked at", |_| told.lock().unwrap().waits > 0);
    let mut queues = bench.device.quiesce();
    let receive = queues[usize::from(RX)].take();
    bench.go_on(queues);
    send(&mut bench, &Offload::NONE, &frame(MAC.0, 60));
    sleeps(&told);
    // With a receive queue it takes what has come.
    let mut queues = bench.device.quiesce();
    queues[usize::from(RX)] = receive;
    bench.go_on(queues);
    bench.post(RX, &[], &[2000]);
    bench.kick(RX);
    assert_eq!(bench.wait(RX).data.len(), 72);
}

#[test]
fn a_port_is_told_what_the_next_driver_takes() {
    let (mut bench, told) = bench(!features::RING_PACKED);
    bench.until("what Linux takes", |_| told.lock().unwrap().takes == Some(ALL));
    bench.device.quiesce();
    bench.device.reset();
    // Firmware that agrees to nothing.
    let config = BenchConfig { features: 0, ..BenchConfig::default() };
    let mut bench = Bench::new(bench.device, config);
    bench.until("what firmware takes", |_| told.lock().unwrap().takes == Some(Offloads::NONE));
}

#[test]
fn a_card_goes_on_from_its_saved_state() {
    let (mut bench, _) = bench(!features::RING_PACKED);
    let new_mac = [1, 1, 0x52, 0x54, 0, 9, 9, 9];
    commands(&mut bench, &[(&new_mac, true), (&[0, 0, 0], true)]);
    for _ in 0..50 {
        bench.post(RX, &[], &[1526]);
    }
    bench.kick(RX);
    send(&mut bench, &Offload::NONE, &frame([0x52, 0x54, 0, 9, 9, 9], 70));
    assert_eq!(bench.wait(RX).data.len(), 82);
    let (port, told) = Echo::port();
    bench.replace(VirtioNet::new(MAC, vec![port]));
    send(&mut bench, &Offload::NONE, &frame(MAC.0, 70));
    send(&mut bench, &Offload::NONE, &frame([0x52, 0x54, 0, 9, 9, 9], 71));
    assert_eq!(bench.wait(RX).data.len(), 83, "the filter is the old one's");
    let mut status = [0; 2];
    bench.device.config_read(6, &mut status);
    assert_eq!(status, [3, 0], "neighbours are to be told");
    commands(&mut bench, &[(&[3, 0], true)]);
    bench.device.config_read(6, &mut status);
    assert_eq!(status, [1, 0]);
    bench.device.quiesce();
    bench.device.reset();
    assert_eq!(told.lock().unwrap().resets, 1);
    assert!(bench.device.restore(&[1, 2, 3]).is_err());
}

#[test]
fn queues_of_pairs_that_were_not_agreed_on_come_back_too() {
    let (ports, _told): (Vec<_>, Vec<_>) = (0..2).map(|_| Echo::port()).unzip();
    let config = BenchConfig { features: !MQ, ..BenchConfig::default() };
    let mut bench = Bench::new(VirtioNet::new(MAC, ports), config);
    for _ in 0..60 {
        bench.post(RX, &[], &[1526]);
    }
    bench.kick(RX);
    send(&mut bench, &Offload::NONE, &frame(MAC.0, 70));
    assert_eq!(bench.wait(RX).data.len(), 82);
    let queues = bench.device.quiesce();
    assert_eq!(queues.iter().map(Option::is_some).collect::<Vec<_>>(), [true; 5]);
}
