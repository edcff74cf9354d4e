//! The NAT as a guest sees it, by a guest whose protocols are smoltcp's.

mod guest;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use guest::Guest;
use nat::{Nat, NatConfig, Policy};
use rate_log::RateLog;
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::wire::{IpAddress, IpEndpoint};

const GATEWAY: IpAddress = IpAddress::v4(10, 0, 2, 2);
const DNS: IpAddress = IpAddress::v4(10, 0, 2, 3);

fn gateway6() -> IpAddress {
    IpAddress::v6(0xfd00, 0xa00, 2, 0, 0, 0, 0, 2)
}

fn nat(config: NatConfig) -> Nat {
    Nat::new(config).expect("a NAT")
}

/// Bytes that repeat at no power of two.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ (i / 65_521) as u8).collect()
}

/// A server for one connection.
fn serve(at: &str, session: impl FnOnce(TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind(at).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let thread = std::thread::spawn(move || session(listener.accept().expect("a connection").0));
    (port, thread)
}

#[test]
fn dhcp_gives_the_address_and_the_rest() {
    let resolvers = vec!["127.0.0.1:53".parse().unwrap()];
    let mut guest = Guest::without_address(nat(NatConfig { resolvers, ..NatConfig::default() }));
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let (address, router, dns) =
        guest.until("DHCP", |g| match g.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            Some(dhcpv4::Event::Configured(c)) => Some((c.address, c.router, c.dns_servers.first().copied())),
            _ => None,
        });
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!(router.map(|r| r.to_string()).as_deref(), Some("10.0.2.2"));
    assert_eq!(dns.map(|r| r.to_string()).as_deref(), Some("10.0.2.3"));
}

/// Bytes both ways at once, each side ending in its own time.
fn exchange(at: &str, to: IpAddress, lose_every: usize, length: usize) {
    exchange_with(at, to, length, |g| g.wire.lose_every = lose_every);
}

fn exchange_with(at: &str, to: IpAddress, length: usize, prepare: impl FnOnce(&mut Guest)) -> Guest {
    let (port, server) = serve(at, move |stream| {
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            writer.write_all(&pattern(length)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got).unwrap();
        assert!(got == pattern(length), "{} bytes arrived at the host", got.len());
        sender.join().unwrap();
    });
    let mut guest = Guest::new(nat(NatConfig::default()));
    prepare(&mut guest);
    let (handle, state) = guest.connect((to, port));
    assert_eq!(state, tcp::State::Established);
    let data = pattern(length);
    let (mut sent, mut got) = (0, Vec::new());
    guest.until("the exchange", |g| {
        let socket = g.sockets.get_mut::<tcp::Socket>(handle);
        if sent < length && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        if sent == length {
            socket.close();
        }
        while socket.can_recv() {
            let n = socket.recv(|b| {
                got.extend_from_slice(b);
                (b.len(), b.len())
            });
            assert!(n.is_ok());
        }
        let ended = matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed);
        ended.then_some(())
    });
    assert!(got == data, "{} bytes arrived at the guest", got.len());
    server.join().unwrap();
    guest.until("the end", |g| (g.nat.counters().tcp_connections == 0).then_some(()));
    guest
}

#[test]
fn long_frames_are_segments_that_a_card_can_cut() {
    let guest = exchange_with("127.0.0.1:0", GATEWAY, 3_000_000, Guest::take_work);
    assert!(guest.wire.longest > 20_000, "{} bytes", guest.wire.longest);
    exchange_with("127.0.0.1:0", GATEWAY, 200_000, |g| {
        g.take_work();
        g.wire.lose_every = 301;
    });
}

#[test]
fn bytes_arrive_both_ways_by_ipv4_and_ipv6() {
    exchange("127.0.0.1:0", GATEWAY, 0, 3_000_000);
    exchange("[::1]:0", gateway6(), 0, 3_000_000);
    exchange("127.0.0.1:0", GATEWAY, 0, 0);
}

#[test]
fn bytes_arrive_where_frames_are_lost() {
    exchange("127.0.0.1:0", GATEWAY, 37, 300_000);
}

#[test]
fn each_side_may_end_first() {
    // The guest ends; the host answers after that.
    let (port, server) = serve("127.0.0.1:0", |mut stream| {
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        stream.write_all(format!("{got}, too").as_bytes()).unwrap();
    });
    let mut guest = Guest::new(nat(NatConfig::default()));
    let (handle, _) = guest.connect((GATEWAY, port));
    guest.send(handle, b"me");
    guest.sockets.get_mut::<tcp::Socket>(handle).close();
    assert_eq!(guest.receive_all(handle), b"me, too");
    server.join().unwrap();
    // The host ends; the guest goes on.
    let (port, server) = serve("127.0.0.1:0", |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        assert_eq!(got, "still here");
    });
    let (handle, _) = guest.connect((GATEWAY, port));
    assert_eq!(guest.receive_all(handle), b"");
    guest.send(handle, b"still here");
    guest.sockets.get_mut::<tcp::Socket>(handle).close();
    guest.until("the server", |_| server.is_finished().then_some(()));
    server.join().unwrap();
    // The guest's FIN is acknowledged, not met by a reset when it is sent again.
    let closed =
        |g: &mut Guest| (g.sockets.get::<tcp::Socket>(handle).state() == tcp::State::Closed).then_some(());
    guest.until("the last acknowledgement", closed);
    assert_eq!(guest.wire.resets, 0);
}

#[test]
fn a_closed_port_refuses_and_a_reset_is_passed_on() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new(nat(NatConfig::default()));
    assert_eq!(guest.connect((GATEWAY, closed)).1, tcp::State::Closed);
    let (port, server) = serve("127.0.0.1:0", |mut stream| {
        let e = stream.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
    });
    let (handle, _) = guest.connect((GATEWAY, port));
    guest.sockets.get_mut::<tcp::Socket>(handle).abort();
    guest.until("the reset", |_| server.is_finished().then_some(()));
    server.join().unwrap();
    assert_eq!(guest.nat.counters().tcp_connections, 0);
}

#[test]
fn a_slow_reader_stops_the_sender_and_loses_nothing() {
    // Neither side reads for a while; what is on its way is bounded by the buffers.
    let length = 6_000_000;
    let (port, server) = serve("127.0.0.1:0", move |mut stream| {
        std::thread::sleep(Duration::from_millis(300));
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == pattern(length));
    });
    let mut guest = Guest::new(nat(NatConfig::default()));
    let (handle, _) = guest.connect((GATEWAY, port));
    guest.send(handle, &pattern(length));
    guest.sockets.get_mut::<tcp::Socket>(handle).close();
    guest.until("the server", |_| server.is_finished().then_some(()));
    server.join().unwrap();
}

#[test]
fn a_forward_leads_to_the_guest() {
    let forwards = vec!["0:22".parse().unwrap(), "0:53/udp".parse().unwrap()];
    let mut guest = Guest::new(nat(NatConfig { forwards, ..NatConfig::default() }));
    let listening: Vec<SocketAddr> = guest.nat.listening().into_iter().map(|l| l.1).collect();
    let handle = guest.tcp();
    guest.sockets.get_mut::<tcp::Socket>(handle).listen(22).unwrap();
    let tcp_at = listening[0];
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(tcp_at).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    assert_eq!(guest.receive_all(handle), b"hello");
    let answer = pattern(100_000);
    guest.send(handle, &answer);
    guest.sockets.get_mut::<tcp::Socket>(handle).close();
    guest.until("the client", |_| client.is_finished().then_some(()));
    assert!(client.join().unwrap() == answer);

    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    guest.sockets.get_mut::<udp::Socket>(handle).bind(53).unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.send_to(b"question", listening[1]).unwrap();
    guest.until("a datagram", |g| {
        let socket = g.sockets.get_mut::<udp::Socket>(handle);
        let (data, from) = socket.recv().ok().map(|(d, m)| (d.to_vec(), m.endpoint))?;
        assert_eq!(data, b"question");
        socket.send_slice(b"answer", from).unwrap();
        Some(())
    });
    peer.set_nonblocking(true).unwrap();
    let mut got = [0; 16];
    let n = guest.until("an answer", |_| peer.recv(&mut got).ok());
    assert_eq!(&got[..n], b"answer");
}

/// Send a datagram, get the answer.
fn ask(guest: &mut Guest, to: (IpAddress, u16), data: &[u8]) -> Vec<u8> {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 65_536]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    let socket = guest.sockets.get_mut::<udp::Socket>(handle);
    socket.bind(5000).unwrap();
    socket.send_slice(data, IpEndpoint::from(to)).unwrap();
    let answer = guest.until("an answer", |g| {
        g.sockets.get_mut::<udp::Socket>(handle).recv().ok().map(|(d, _)| d.to_vec())
    });
    guest.sockets.remove(handle);
    answer
}

#[test]
fn datagrams_pass_and_come_back() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        let (n, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..n], from).unwrap();
    });
    let mut guest = Guest::new(nat(NatConfig::default()));
    assert_eq!(ask(&mut guest, (GATEWAY, port), &pattern(1400)), pattern(1400));
    assert_eq!(guest.nat.counters().udp_flows, 1);
    echo.join().unwrap();
}

#[test]
fn datagrams_arrive_beside_a_stream_that_takes_all_room() {
    let (port, _) = serve("127.0.0.1:0", |mut stream| {
        // Until the guest ends.
        while stream.write_all(&[7; 65_536]).is_ok() {}
    });
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = IpEndpoint::from((GATEWAY, server.local_addr().unwrap().port()));
    let mut guest = Guest::new(nat(NatConfig::default()));
    guest.wire.narrow = Some(4);
    let (stream, _) = guest.connect((GATEWAY, port));
    let datagrams = udp_socket(&mut guest);
    let take = |g: &mut Guest| {
        let socket = g.sockets.get_mut::<tcp::Socket>(stream);
        let mut taken = 0;
        while socket.can_recv() {
            taken += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        taken
    };
    server.set_nonblocking(true).unwrap();
    for i in 0..5u8 {
        guest.sockets.get_mut::<udp::Socket>(datagrams).send_slice(&[i], to).unwrap();
        let mut buffer = [0; 8];
        let from = guest.until("the host's side", |g| {
            take(g);
            server.recv_from(&mut buffer).ok().map(|r| r.1)
        });
        server.send_to(&buffer[..1], from).unwrap();
        // Meanwhile more of the stream comes than the guest will take.
        std::thread::sleep(Duration::from_millis(20));
        let (mut taken, mut got) = (0, None);
        for _ in 0..6 {
            guest.step();
            taken += take(&mut guest);
            let socket = guest.sockets.get_mut::<udp::Socket>(datagrams);
            got = got.or(socket.recv().ok().map(|(d, _)| d.to_vec()));
        }
        assert_eq!(got, Some(vec![i]), "beside {taken} bytes of the stream");
        assert!(taken > 0, "the stream goes on");
    }
}

#[test]
fn the_gateway_answers_echo_requests() {
    let mut guest = Guest::new(nat(NatConfig::default()));
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let handle = guest.sockets.add(icmp::Socket::new(buffer(), buffer()));
    let socket = guest.sockets.get_mut::<icmp::Socket>(handle);
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    // Type, code, checksum, identifier, sequence number, data.
    let mut message = vec![8, 0, 0, 0, 0, 7, 0, 1];
    message.extend(b"ping");
    let mut sum: u32 = message.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    socket.send_slice(&message, GATEWAY).unwrap();
    let (reply, from) = guest.until("a reply", |g| {
        g.sockets.get_mut::<icmp::Socket>(handle).recv().ok().map(|(d, a)| (d.to_vec(), a))
    });
    assert_eq!((reply[0], &reply[4..], from), (0, &message[4..], GATEWAY));
}

/// A resolver that knows `allowed.test` as the given address, and a log of refusals.
struct Judged {
    guest: Guest,
    log: Arc<Mutex<Vec<String>>>,
}

impl Judged {
    fn new(allow: &[&str], deny: &[&str], deny_by_default: bool, answer: [u8; 4]) -> Judged {
        let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let resolvers = vec![resolver.local_addr().unwrap()];
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((n, from)) = resolver.recv_from(&mut buffer) {
                let mut response = buffer[..n].to_vec();
                response[2] |= 0x80;
                response[7] = 1;
                response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                response.extend(answer);
                let _ = resolver.send_to(&response, from);
            }
        });
        let log = Arc::new(Mutex::new(Vec::new()));
        let to = log.clone();
        let sink = Box::new(move |line: &str| to.lock().unwrap().push(line.to_string()));
        let log_to = Arc::new(RateLog::with_limit("network", 100, Duration::from_secs(1), sink));
        let rules = |list: &[&str]| list.iter().map(|r| r.parse().unwrap()).collect();
        let policy = Policy { deny_by_default, allow: rules(allow), deny: rules(deny) };
        let nat = nat(NatConfig { policy, resolvers, log: log_to, ..NatConfig::default() });
        Judged { guest: Guest::new(nat), log }
    }

    /// Response code of a query.
    fn query(&mut self, name: &str) -> u8 {
        let mut message = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
        ask(&mut self.guest, (DNS, 53), &message)[3] & 15
    }

    fn told(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|l| l.contains(text))
    }
}

#[test]
fn a_name_opens_its_addresses_and_no_others() {
    // An address of no host (RFC 5737): what is allowed hangs or fails, what is refused is reset at once.
    let mut t = Judged::new(&["*.allowed.test:80/tcp"], &[], true, [192, 0, 2, 1]);
    let to = (IpAddress::v4(192, 0, 2, 1), 80);
    assert_eq!(t.guest.connect(to).1, tcp::State::Closed);
    assert!(t.told("192.0.2.1:80/tcp: no rule allows it"), "{:?}", t.log);
    assert_eq!(t.query("other.test"), 5);
    assert!(t.told("DNS query for other.test: no rule allows it"), "{:?}", t.log);
    let refused = t.guest.nat.counters().refused;
    assert_eq!(t.query("www.allowed.test"), 0);
    let handle = t.guest.tcp();
    let context = t.guest.interface.context();
    t.guest.sockets.get_mut::<tcp::Socket>(handle).connect(context, to, 50_000).unwrap();
    (0..20).for_each(|_| t.guest.step());
    assert_eq!(t.guest.nat.counters().refused, refused, "{:?}", t.log);
    // Another port of it stays closed.
    assert_eq!(t.guest.connect((to.0, 81)).1, tcp::State::Closed);
    assert_eq!(t.guest.nat.counters().refused, refused + 1);
}

#[test]
fn a_name_that_leads_to_the_router_opens_nothing_of_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut t = Judged::new(&["*.allowed.test"], &[], true, [10, 0, 2, 2]);
    assert_eq!(t.query("x.allowed.test"), 0);
    assert_eq!(t.guest.connect((GATEWAY, port)).1, tcp::State::Closed);
    assert!(t.told(&format!("10.0.2.2:{port}/tcp: no rule allows it")), "{:?}", t.log);
    // A rule for the address opens it; a rule for a name that leads there still closes it.
    let mut t = Judged::new(&["10.0.2.2", "x.allowed.test"], &[], true, [10, 0, 2, 2]);
    assert_eq!(t.guest.connect((GATEWAY, port)).1, tcp::State::Established);
    let mut t = Judged::new(&[], &["x.allowed.test:1-65535/tcp"], false, [10, 0, 2, 2]);
    assert_eq!(t.query("x.allowed.test"), 0);
    assert_eq!(t.guest.connect((GATEWAY, port)).1, tcp::State::Closed);
}

#[test]
fn what_a_rule_denies_is_told_with_the_rule() {
    let mut t = Judged::new(&[], &["10.0.2.2:1-65535/tcp"], false, [0; 4]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(t.guest.connect((GATEWAY, port)).1, tcp::State::Closed);
    assert!(t.told("rule 10.0.2.2:1-65535/tcp"), "{:?}", t.log);
}

#[test]
fn after_a_reset_nothing_of_the_old_guest_is_left() {
    use port::Port;
    let (port, server) = serve("127.0.0.1:0", |mut stream| {
        assert!(stream.read(&mut [0; 8]).is_err(), "the peer is told");
    });
    let mut guest = Guest::new(nat(NatConfig::default()));
    guest.connect((GATEWAY, port));
    guest.nat.reset();
    server.join().unwrap();
    assert_eq!(guest.nat.counters().tcp_connections, 0);
}

/// A resolver that answers each query by what `answer` makes of it.
fn resolver(at: &str, mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind(at).unwrap();
    let address = socket.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            for response in answer(&buffer[..n]) {
                let _ = socket.send_to(&response, from);
            }
        }
    });
    address
}

/// A query for one name with this identifier, for addresses of IPv4 (1) or IPv6 (28).
fn query(id: u16, name: &str, kind: u8) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, kind, 0, 1]);
    message
}

/// The response to a query: this address, if it is asked for.
fn response(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut response = query.to_vec();
    response[2] |= 0x80;
    if query.ends_with(&[0, 1, 0, 1]) {
        response[7] = 1;
        response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        response.extend(address);
    }
    response
}

/// A socket of the guest's for several datagrams.
fn udp_socket(guest: &mut Guest) -> smoltcp::iface::SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(5000).unwrap();
    guest.sockets.add(socket)
}

fn send_to_dns(guest: &mut Guest, handle: smoltcp::iface::SocketHandle, message: &[u8]) {
    guest.sockets.get_mut::<udp::Socket>(handle).send_slice(message, IpEndpoint::from((DNS, 53))).unwrap();
}

fn next_answer(guest: &mut Guest, handle: smoltcp::iface::SocketHandle) -> Vec<u8> {
    guest
        .until("an answer", |g| g.sockets.get_mut::<udp::Socket>(handle).recv().ok().map(|(d, _)| d.to_vec()))
}

#[test]
fn questions_asked_at_once_are_all_answered_by_the_first_resolver() {
    // Answers when it has both.
    let mut held = Vec::new();
    let first = resolver("127.0.0.1:0", move |q| {
        held.push(response(q, [192, 0, 2, 1]));
        if held.len() < 2 { Vec::new() } else { std::mem::take(&mut held) }
    });
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let second = resolver("127.0.0.1:0", move |_| {
        *count.lock().unwrap() += 1;
        Vec::new()
    });
    let resolvers = vec![first, second];
    let mut guest = Guest::new(nat(NatConfig { resolvers, ..NatConfig::default() }));
    let handle = udp_socket(&mut guest);
    // As the C library asks: from one socket, without waiting.
    send_to_dns(&mut guest, handle, &query(7, "a.test", 1));
    send_to_dns(&mut guest, handle, &query(8, "a.test", 28));
    let mut ids = [0; 2].map(|_| next_answer(&mut guest, handle)[1]);
    ids.sort();
    assert_eq!((ids, *asked.lock().unwrap()), ([7, 8], 0));
}

#[test]
fn a_question_asked_again_goes_to_the_next_resolver_whatever_its_family() {
    let silent = resolver("127.0.0.1:0", |_| Vec::new());
    let knows = resolver("[::1]:0", |q| vec![response(q, [192, 0, 2, 1])]);
    // One that no socket reaches is passed over.
    let nowhere = "255.255.255.255:53".parse().unwrap();
    let resolvers = vec![silent, nowhere, knows];
    let mut guest = Guest::new(nat(NatConfig { resolvers, ..NatConfig::default() }));
    let handle = udp_socket(&mut guest);
    for id in [7, 8] {
        send_to_dns(&mut guest, handle, &query(id, "a.test", 1));
    }
    (0..20).for_each(|_| guest.step());
    assert!(!guest.sockets.get_mut::<udp::Socket>(handle).can_recv());
    for id in [7, 8] {
        send_to_dns(&mut guest, handle, &query(id, "a.test", 1));
        assert_eq!(next_answer(&mut guest, handle), response(&query(id, "a.test", 1), [192, 0, 2, 1]));
    }
}

#[test]
fn only_the_answer_to_a_question_is_passed_on_and_believed() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let seen = ids.clone();
    let forger = resolver("127.0.0.1:0", move |q| {
        seen.lock().unwrap().push(q[..2].to_vec());
        let mut wrong_id = response(q, [192, 0, 2, 66]);
        wrong_id[1] ^= 1;
        let of_another = response(&[&q[..2], &query(0, "b.test", 1)[2..]].concat(), [192, 0, 2, 66]);
        let right = response(q, [192, 0, 2, 1]);
        let again = response(q, [192, 0, 2, 66]);
        vec![wrong_id, of_another, q.to_vec(), right, again]
    });
    let policy = Policy {
        deny_by_default: true,
        allow: vec!["a.test".parse().unwrap(), "b.test".parse().unwrap()],
        deny: Vec::new(),
    };
    let mut guest = Guest::new(nat(NatConfig { policy, resolvers: vec![forger], ..NatConfig::default() }));
    let handle = udp_socket(&mut guest);
    for id in 1..5 {
        let question = query(id, "a.test", 1);
        send_to_dns(&mut guest, handle, &question);
        assert_eq!(next_answer(&mut guest, handle), response(&question, [192, 0, 2, 1]));
    }
    (0..50).for_each(|_| guest.step());
    assert!(!guest.sockets.get_mut::<udp::Socket>(handle).can_recv(), "one answer to a question");
    let guests: Vec<Vec<u8>> = (1..5u8).map(|id| vec![0, id]).collect();
    assert_ne!(*ids.lock().unwrap(), guests, "identifiers that the guest cannot choose");
    let refused = guest.nat.counters().refused;
    assert_eq!(guest.connect((IpAddress::v4(192, 0, 2, 66), 80)).1, tcp::State::Closed);
    assert_eq!(guest.nat.counters().refused, refused + 1);
}
