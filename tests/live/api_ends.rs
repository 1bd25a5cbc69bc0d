//! Why a connection ended, and which bytes are its own: where two might be confused, they are reported as unknown.

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::{fs, process, thread};

use socket2::{Domain, Protocol, Socket, Type};

use crate::api_network::Network;
use crate::api_traffic::{begin_connect, set_option, tcp_socket};
use crate::api_watcher::{CLOSES, COUNTERS, ERROR, Event, FAILED, GIVEN_UP, Watcher};
use crate::consumer::{is_beyond_the_rung, patience, pipe, rung_is_tracepoint, turn};
use crate::traffic::{Connection, V4, set_linger_0};

/// Sequence number of the next byte that a connection will send.
fn next_sequence(stream: &impl AsRawFd) -> u32 {
    // linux/tcp.h: TCP_SEND_QUEUE, and the end of repair without a probe of the window.
    const SEND_QUEUE: i32 = 2;
    const OFF_WITHOUT_PROBE: i32 = -1;

    set_option(stream, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1);
    let sequence = queue_sequence(stream, SEND_QUEUE);
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_REPAIR, OFF_WITHOUT_PROBE);
    sequence
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// include/uapi/linux/icmp.h: ICMP_NET_UNREACH, ICMP_HOST_UNREACH, ICMP_PROT_UNREACH, ICMP_PKT_FILTERED.
const NET_UNREACHABLE: u8 = 0;
const HOST_UNREACHABLE: u8 = 1;
const PROTOCOL_UNREACHABLE: u8 = 2;
const FILTERED: u8 = 13;

/// Answers a segment from the first of two IPv4 addresses to the other, as a router that cannot forward it.
fn answer_unreachable(code: u8, ends: [SocketAddr; 2], sequence: u32) {
    // ICMP_DEST_UNREACH; then the offending header, and 8 bytes of its payload.
    let mut message = vec![3, code, 0, 0, 0, 0, 0, 0];
    message.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    for end in ends {
        let IpAddr::V4(address) = end.ip() else { panic!("{end} is not of IPv4") };
        message.extend(address.octets());
    }
    for end in ends {
        message.extend(end.port().to_be_bytes());
    }
    message.extend(sequence.to_be_bytes());
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let router = Socket::new(Domain::IPV4, Type::from(libc::SOCK_RAW), Some(Protocol::ICMPV4)).unwrap();
    router.send_to(&message, &SocketAddr::new(ends[0].ip(), 0).into()).unwrap();
}

/// Has a router report the host of a loopback connection as unreachable, and waits until that is the socket's error.
/// The program never reads it.
fn leave_host_unreachable(stream: &TcpStream) {
    set_option(stream, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
    let ends = [stream.local_addr().unwrap(), stream.peer_addr().unwrap()];
    answer_unreachable(HOST_UNREACHABLE, ends, next_sequence(stream));
    let mut polled = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    let milliseconds = patience().as_millis().try_into().unwrap();
    // SAFETY: one valid structure.
    assert_eq!(unsafe { libc::poll(&raw mut polled, 1, milliseconds) }, 1, "the message has not come to the socket");
    assert_eq!(polled.revents & libc::POLLERR, libc::POLLERR);
}

/// The closes of both ends, the one with these ports first.
fn both_closes(watcher: &mut Watcher, ports: (u16, u16)) -> [Event; 2] {
    let ends = [ports, (ports.1, ports.0)];
    let is_its = |event: &&Event| ends.contains(&event.ports());
    let events = watcher.events_until(0, "both ends", |events| events.iter().filter(is_its).count() == 2);
    ends.map(|ports| events.iter().find(|event| event.ports() == ports).unwrap().clone())
}

#[test]
fn an_earlier_icmp_message_is_not_the_error_of_an_orderly_close() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    for client_first in [true, false] {
        let connection = Connection::open(V4(), V4());
        let ports = connection.ports();
        leave_host_unreachable(&connection.client);
        let Connection { client, mut server, .. } = connection;
        if client_first {
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            drop(server);
        } else {
            server.shutdown(Shutdown::Write).unwrap();
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            drop(server);
        }
        for event in both_closes(&mut watcher, ports) {
            assert_eq!((event.error, event.flags), (0, 0), "{event:#?}");
        }
    }
}

#[test]
fn an_earlier_icmp_message_is_not_the_error_of_a_reset_by_the_program() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    leave_host_unreachable(&connection.client);
    let Connection { client, mut server, .. } = connection;
    set_linger_0(&client);
    drop(client);
    server.read(&mut [0]).expect_err("it was reset");
    drop(server);
    let [of_client, of_server] = both_closes(&mut watcher, ports);
    // A plain tracepoint gets the counters from a socket that the kernel has cleared by then.
    assert_eq!((of_client.error, of_client.flags), (0, 0), "{of_client:#?}");
    assert_eq!(of_client.knows_end(), [true, !rung_is_tracepoint()], "{of_client:#?}");
    assert_eq!(of_client.pid, process::id(), "{of_client:#?}");
    if !rung_is_tracepoint() {
        assert_eq!(of_client.owner_by, "close", "{of_client:#?}");
    }
    assert_eq!((of_server.error, of_server.flags), (libc::ECONNRESET, 0), "{of_server:#?}");
}

#[test]
fn a_connect_given_up_after_a_routers_answer_has_its_error() {
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    // The answers: host unreachable, prohibited by an administrator, network unreachable.
    for (port, route, error) in [
        (9, Some("unreachable"), libc::EHOSTUNREACH),
        (10, Some("prohibit"), libc::EHOSTUNREACH),
        (11, None, libc::ENETUNREACH),
    ] {
        network.route_unreachable(route);
        // Some kernels limit a router to one answer a second for each host (6.1: ip_error, inet_peer_xrlim_allow).
        thread::sleep(Duration::from_millis(1100));
        let to = SocketAddr::new(Network::UNREACHABLE_V4.parse().unwrap(), port);
        // The answer to the first SYN arrives while connect() still holds the socket: the kernel notes it, and goes on.
        let socket = network.here.run(|| begin_connect(to));
        // Longer than what a plain tracepoint takes for the duration of connect() itself.
        thread::sleep(Duration::from_millis(50));
        drop(socket);
        let event = end_of_attempt(&mut watcher, to);
        if rung_is_tracepoint() {
            assert_eq!((event.flags, event.error), (FAILED | GIVEN_UP, 0), "{route:?}: {event:#?}");
            assert_eq!(event.knows_end(), [false, false], "{route:?}: {event:#?}");
        } else {
            assert_eq!((event.flags, event.error), (FAILED | GIVEN_UP, error), "{route:?}: {event:#?}");
        }
        assert_eq!(event.pid, process::id(), "{route:?}: {event:#?}");
    }
}

fn end_of_attempt(watcher: &mut Watcher, to: SocketAddr) -> Event {
    let is_its = |event: &Event| event.remote == to;
    let events = watcher.events_until(0, "its end", |events| events.iter().any(is_its));
    events.into_iter().find(is_its).unwrap()
}

#[test]
fn an_attempt_that_a_firewalls_answer_ends_was_not_given_up() {
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    network.here.cut();
    for (port, code, error) in [
        (9, NET_UNREACHABLE, libc::ENETUNREACH),
        (10, HOST_UNREACHABLE, libc::EHOSTUNREACH),
        (11, PROTOCOL_UNREACHABLE, libc::ENOPROTOOPT),
        (12, FILTERED, libc::EHOSTUNREACH),
    ] {
        let to = SocketAddr::new(Network::THERE_V4.parse().unwrap(), port);
        let socket = network.here.run(|| {
            let socket = begin_connect(to);
            let from = socket.local_addr().unwrap().as_socket().unwrap();
            let sequence = next_sequence(&socket);
            // Longer than what a plain tracepoint takes for the duration of connect() itself.
            thread::sleep(Duration::from_millis(20));
            answer_unreachable(code, [from, to], sequence);
            socket
        });
        let event = end_of_attempt(&mut watcher, to);
        // The kernel has ended it; the program closes it afterwards.
        assert_eq!(socket.take_error().unwrap().and_then(|error| error.raw_os_error()), Some(error), "code {code}");
        drop(socket);
        if rung_is_tracepoint() {
            assert_eq!((event.error, event.knows(ERROR)), (0, false), "code {code}: {event:#?}");
        } else {
            assert_eq!((event.flags, event.error), (FAILED, error), "code {code}: {event:#?}");
        }
        assert_eq!(event.pid, process::id(), "code {code}: {event:#?}");
    }
}

/// The kernel may also end a connect within connect() itself, and a plain tracepoint cannot tell that from a program
/// that gives up.
#[test]
fn a_plain_tracepoint_does_not_mark_a_connect_that_ends_within_10_ms_as_given_up() {
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    network.here.cut();
    for port in 9..100 {
        let to = SocketAddr::new(Network::THERE_V4.parse().unwrap(), port);
        let began = Instant::now();
        network.here.run(|| drop(begin_connect(to)));
        let was_quick = began.elapsed() < Duration::from_millis(10);
        let event = end_of_attempt(&mut watcher, to);
        if !rung_is_tracepoint() {
            assert_eq!((event.flags, event.error), (FAILED | GIVEN_UP, 0), "{event:#?}");
            return;
        }
        if was_quick {
            assert_eq!((event.flags, event.error), (FAILED, 0), "{event:#?}");
            assert_eq!(event.knows_end(), [false, false], "{event:#?}");
            return;
        }
    }
    panic!("none of so many attempts was quick enough");
}

/// The port is taken because the same connection already exists.
#[test]
fn an_attempt_whose_local_port_is_taken_was_not_given_up() {
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    let (to, _kept) = network.here.run(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 9)).unwrap();
        let to = listener.local_addr().unwrap();
        let sockets = [(), ()].map(|()| {
            let socket = tcp_socket(to);
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000)).into()).unwrap();
            socket
        });
        sockets[0].connect(&to.into()).unwrap();
        let error = sockets[1].connect(&to.into()).expect_err("the connection exists");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        (to, (listener, sockets))
    });
    let is_its = |event: &&Event| event.remote == to && event.old_state == "SYN_SENT";
    let events = watcher.events_until(0, "its end", |events| events.iter().any(|event| is_its(&event)));
    let event = events.iter().find(is_its).unwrap();
    assert_eq!((event.flags, event.error), (FAILED, 0), "{event:#?}");
    assert_eq!(event.knows_end(), [!rung_is_tracepoint(); 2], "{event:#?}");
}

#[test]
fn a_plain_tracepoint_says_that_it_does_not_know_why_a_connect_has_failed() {
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    network.here.cut();
    let to = SocketAddr::new(Network::THERE_V4.parse().unwrap(), 9);
    let _socket = network.here.run(|| {
        let socket = begin_connect(to);
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 500);
        socket
    });
    let is_its = |event: &&Event| event.remote == to;
    let events = watcher.events_until(0, "its end", |events| events.iter().any(|event| is_its(&event)));
    let event = events.iter().find(is_its).unwrap();
    if rung_is_tracepoint() {
        assert_eq!((event.flags, event.error), (FAILED, 0), "{event:#?}");
        assert_eq!(event.knows_end(), [false, false], "{event:#?}");
    } else {
        assert_eq!((event.flags, event.error), (FAILED, libc::ETIMEDOUT), "{event:#?}");
    }
}

// ---- Whose bytes

/// Checks that the bytes sent are right, or reported as unknown.
fn check_sent(event: &Event, sent: u64) {
    if !event.knows(COUNTERS) && rung_is_tracepoint() {
        assert_eq!(event.payload(), [0; 3], "{event:#?}");
    } else {
        assert_eq!((event.payload_sent, event.knows(COUNTERS)), (sent, true), "{event:#?}");
    }
}

/// The closes of one end, in order of arrival.
fn closes_of_end(watcher: &mut Watcher, ports: (u16, u16), count: usize) -> Vec<Event> {
    let is_its = |event: &&Event| event.ports() == ports;
    let events = watcher.events_until(0, "its closes", |events| events.iter().filter(is_its).count() == count);
    events.iter().filter(is_its).cloned().collect()
}

/// A connection from a port whose first socket may still exist.
fn connect_from(port: u16, to: SocketAddr) -> TcpStream {
    let socket = tcp_socket(to);
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// A connection from a port that sends bytes: both ends.
fn send_from(port: u16, listener: &TcpListener, count: usize) -> (TcpStream, TcpStream) {
    let mut client = connect_from(port, listener.local_addr().unwrap());
    let bytes = vec![b'x'; count];
    client.write_all(&bytes).unwrap();
    let mut server = listener.accept().unwrap().0;
    server.read_exact(&mut vec![0; count]).unwrap();
    (client, server)
}

/// One end resets, and the other has seen it.
fn reset(one: TcpStream, other: &mut TcpStream) {
    set_linger_0(&one);
    drop(one);
    other.read(&mut [0]).expect_err("it was reset");
}

/// A listener; a client, still open, that sent it 7 bytes and was then reset; and the client's ports.
fn seven_bytes_and_a_reset() -> (TcpListener, TcpStream, (u16, u16)) {
    let listener = TcpListener::bind(V4()).unwrap();
    let (mut first, server) = send_from(0, &listener, 7);
    let ports = (first.local_addr().unwrap().port(), listener.local_addr().unwrap().port());
    reset(server, &mut first);
    (listener, first, ports)
}

#[test]
fn of_a_port_that_is_used_again_no_connection_has_the_others_bytes() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let (listener, first, ports) = seven_bytes_and_a_reset();
    // The first socket is still held: the kernel does not report its counters.
    let (mut second, server) = send_from(ports.0, &listener, 9000);
    drop(server);
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    drop(second);
    let closes = closes_of_end(&mut watcher, ports, 2);
    check_sent(&closes[0], 7);
    check_sent(&closes[1], 9000);
    drop(first);
}

/// As above, but long after: the first close has been reported by then.
#[test]
fn counters_that_come_late_are_not_those_of_a_later_connection() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let (listener, first, ports) = seven_bytes_and_a_reset();
    check_sent(&closes_of_end(&mut watcher, ports, 1)[0], 7);

    let (mut second, server) = send_from(ports.0, &listener, 9000);
    reset(server, &mut second);
    drop(first);
    check_sent(&closes_of_end(&mut watcher, ports, 1)[0], 9000);
    drop(second);
}

#[test]
fn a_socket_that_connects_again_reports_the_bytes_of_each_connection() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let listeners = [(), ()].map(|()| TcpListener::bind(V4()).unwrap());
    let socket = tcp_socket(V4());
    let mut ports = Vec::new();
    for (listener, sent) in listeners.iter().zip([5usize, 600]) {
        let to = listener.local_addr().unwrap();
        socket.connect(&to.into()).unwrap();
        ports.push((socket.local_addr().unwrap().as_socket().unwrap().port(), to.port()));
        assert_eq!(socket.send(&vec![b'x'; sent]).unwrap(), sent);
        let mut server = listener.accept().unwrap().0;
        server.read_exact(&mut vec![0; sent]).unwrap();
        crate::api_traffic::disconnect(&socket);
    }
    drop(socket);
    let is_its = |event: &&Event| ports.contains(&event.ports());
    let events = watcher.events_until(0, "its closes", |events| events.iter().filter(is_its).count() == 2);
    for (ports, sent) in ports.iter().zip([5, 600]) {
        check_sent(events.iter().find(|event| event.ports() == *ports).unwrap(), sent);
    }
}

// ---- Ways to send

/// Sends in one way, and returns how many bytes.
type Send = fn(&TcpStream, &fs::File) -> usize;

#[test]
fn bytes_are_exact_whichever_call_sends_them() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let path = std::env::temp_dir().join(format!("tcpevent-sent-{}", process::id()));
    fs::write(&path, vec![b'x'; 30_000]).unwrap();
    let ways: [(&str, Send); 4] =
        [("out of band", send_urgent), ("sendfile", send_file), ("splice", splice), ("MSG_ZEROCOPY", send_zero_copy)];
    for (way, send) in ways {
        let file = fs::File::open(&path).unwrap();
        let Connection { client, mut server, .. } = Connection::open(V4(), V4());
        let ports = (client.local_addr().unwrap().port(), client.peer_addr().unwrap().port());
        set_option(&server, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
        let sent = send(&client, &file);
        client.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), sent, "{way}");
        drop(server);
        drop(client);
        let sent = sent as u64;
        let [of_client, of_server] = both_closes(&mut watcher, ports);
        assert_eq!([of_client.payload_sent, of_client.payload_acked], [sent, sent], "{way}: {of_client:#?}");
        assert_eq!([of_server.payload_received, of_server.payload_sent], [sent, 0], "{way}: {of_server:#?}");
    }
    fs::remove_file(path).unwrap();
}

fn send_urgent(client: &TcpStream, _file: &fs::File) -> usize {
    let mut sent = 0;
    for flags in [0, libc::MSG_OOB, 0, libc::MSG_OOB] {
        sent += socket2::SockRef::from(client).send_with_flags(b"!!!", flags).unwrap();
    }
    sent
}

fn send_file(client: &TcpStream, file: &fs::File) -> usize {
    let mut sent = 0;
    loop {
        // SAFETY: two descriptors, and no offset.
        let count = unsafe { libc::sendfile(client.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), 1 << 20) };
        match usize::try_from(count).expect("sendfile") {
            0 => return sent,
            count => sent += count,
        }
    }
}

fn splice(client: &TcpStream, file: &fs::File) -> usize {
    let (reader, writer) = pipe();
    let null = std::ptr::null_mut();
    let mut sent = 0;
    loop {
        // SAFETY: descriptors, and no offsets.
        let count = unsafe { libc::splice(file.as_raw_fd(), null, writer.as_raw_fd(), null, 1 << 14, 0) };
        let mut left = usize::try_from(count).expect("splice");
        if left == 0 {
            return sent;
        }
        sent += left;
        while left > 0 {
            // SAFETY: descriptors, and no offsets.
            let count = unsafe { libc::splice(reader.as_raw_fd(), null, client.as_raw_fd(), null, left, 0) };
            left -= usize::try_from(count).expect("splice");
        }
    }
}

fn send_zero_copy(client: &TcpStream, _file: &fs::File) -> usize {
    set_option(client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1);
    let mut sent = 0;
    // Unchanged until the kernel no longer needs it: longer than the connection.
    let bytes: &'static [u8] = vec![b'z'; 40_000].leak();
    while sent < bytes.len() {
        sent += socket2::SockRef::from(client).send_with_flags(&bytes[sent..], libc::MSG_ZEROCOPY).unwrap();
    }
    sent
}

/// A connection is removed without a segment, and restored: its counters are those of its new socket.
#[test]
fn a_connection_that_is_repaired_counts_from_then_on() {
    if is_beyond_the_rung("the counters of sockets that are still held") {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let Connection { client, mut server, .. } = Connection::open(V4(), V4());
    let ports = (client.local_addr().unwrap().port(), client.peer_addr().unwrap().port());
    let [local, remote] = [client.local_addr().unwrap(), client.peer_addr().unwrap()];
    (&client).write_all(&[b'x'; 1000]).unwrap();
    server.read_exact(&mut [0; 1000]).unwrap();
    set_option(&client, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1);
    let sequences = [1, 2].map(|queue| queue_sequence(&client, queue));
    drop(client);
    let taken = closes_of_end(&mut watcher, ports, 1).remove(0);
    assert_eq!((taken.error, taken.payload_sent), (0, 1000), "{taken:#?}");

    let socket = tcp_socket(local);
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1);
    socket.set_reuse_address(true).unwrap();
    socket.bind(&local.into()).unwrap();
    for (queue, sequence) in [1, 2].into_iter().zip(sequences) {
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue);
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, i32::from_ne_bytes(sequence.to_ne_bytes()));
    }
    socket.connect(&remote.into()).unwrap();
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0);
    assert_eq!(socket.send(&[b'y'; 50]).unwrap(), 50);
    server.read_exact(&mut [0; 50]).unwrap();
    server.write_all(&[b'z'; 60]).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 60];
    assert_eq!(socket.recv_with_flags(&mut buffer, libc::MSG_WAITALL).unwrap(), 60);
    drop(server);
    assert_eq!(socket.recv(&mut buffer).unwrap(), 0);
    drop(socket);
    let restored = closes_of_end(&mut watcher, ports, 1).remove(0);
    assert_eq!((restored.error, restored.payload()), (0, [60, 50, 50]), "{restored:#?}");
}

fn queue_sequence(stream: &impl AsRawFd, queue: i32) -> u32 {
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue);
    let mut sequence = 0u32;
    let mut length = libc::socklen_t::try_from(size_of_val(&sequence)).unwrap();
    // SAFETY: a number to fill, and its size.
    let result = unsafe {
        let to = (&raw mut sequence).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, to, &raw mut length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    sequence
}
